package broker

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
)

// A serverLog carries what the embedded server says to our log: warnings as what they are, all else as detail.
type serverLog struct {
	log     *slog.Logger
	onError func(error) // is told each error that the server warns of

	mu    sync.Mutex
	first error // why the server could not go on
}

func (l *serverLog) Noticef(format string, v ...any) { l.print(slog.LevelDebug, format, v) }
func (l *serverLog) Warnf(format string, v ...any)   { l.warn(slog.LevelWarn, format, v) }
func (l *serverLog) Errorf(format string, v ...any)  { l.warn(slog.LevelError, format, v) }
func (l *serverLog) Debugf(format string, v ...any)  { l.print(slog.LevelDebug, format, v) }
func (l *serverLog) Tracef(format string, v ...any)  { l.print(slog.LevelDebug, format, v) }

// Fatalf is the server's way to say why it does not start. It expects to be ended here, which is not ours to do.
func (l *serverLog) Fatalf(format string, v ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.first == nil {
		l.first = fmt.Errorf("nats-server: "+format, v...)
	}
}

func (l *serverLog) fatal() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first
}

// warn also listens: an error of the disk comes out of the server in its log, and nowhere else.
func (l *serverLog) warn(level slog.Level, format string, v []any) {
	l.print(level, format, v)
	for _, arg := range v {
		if err, ok := arg.(error); ok {
			l.onError(err)
		}
	}
}

func (l *serverLog) print(level slog.Level, format string, v []any) {
	if l.log.Enabled(context.Background(), level) {
		l.log.Log(context.Background(), level, "nats-server: "+fmt.Sprintf(format, v...))
	}
}
