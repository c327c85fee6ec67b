package app

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"groupferry/internal/broker"
	"groupferry/internal/clock"
	"groupferry/internal/queue"
)

// A Namespace is the queue of a namespace with the connection that it is reached by. What a command does with the queue
// alone is a method here or, where nothing has to be added, of [queue.Queue]: Retry, Delete, ClearHalt, SetRate.
type Namespace struct {
	*queue.Queue
	Conn *broker.Conn

	connected atomic.Pointer[func()] // called when the connection is lost or back
}

// Open connects to a namespace. With JoinOnly it makes nothing: where no import was ever begun the error wraps
// [broker.ErrNoData]. The other errors are those of [broker.Open] and [queue.Open].
func Open(ctx context.Context, cfg broker.Config) (*Namespace, error) {
	n, err := connect(ctx, cfg)
	if err == nil {
		err = n.openQueue(ctx)
	}
	if err != nil {
		return nil, err
	}
	return n, nil
}

// connect is the first half of Open.
func connect(ctx context.Context, cfg broker.Config) (*Namespace, error) {
	n := &Namespace{}
	next := cfg.OnConnection
	cfg.OnConnection = func(up bool, err error) {
		if next != nil {
			next(up, err)
		}
		if heard := n.connected.Load(); heard != nil {
			(*heard)()
		}
	}
	var err error
	n.Conn, err = broker.Open(ctx, cfg)
	return n, err
}

// openQueue is the second half of Open. When it fails the connection is closed.
func (n *Namespace) openQueue(ctx context.Context) (err error) {
	if n.Queue, err = queue.Open(ctx, n.Conn); err != nil {
		n.Conn.Close()
	}
	return err
}

// maxOpenPause is the longest pause between two attempts to reach NATS.
const maxOpenPause = time.Minute

// OpenWaiting is Open, but waits for NATS as long as it takes, until ctx ends: a worker that is started before its server
// is up would else have to be started again. Each attempt takes about five seconds by itself; the first that failed is logged
// as a warning. The monitor, unless nil, shows that. The error is ErrStopped when ctx ended between two attempts.
func OpenWaiting(ctx context.Context, cfg broker.Config, monitor *Monitor) (*Namespace, error) {
	level := slog.LevelWarn
	for pause := time.Second; ; pause = min(2*pause, maxOpenPause) {
		n, err := Open(ctx, cfg)
		if err == nil || !errors.Is(err, broker.ErrUnreachable) || ctx.Err() != nil {
			return n, err
		}
		if monitor != nil {
			monitor.noNATS.Store(true)
		}
		if cfg.Log != nil {
			cfg.Log.Log(ctx, level, "waiting for NATS", "error", err)
			level = slog.LevelDebug
		}
		if !clock.Pause(ctx, pause) {
			return nil, ErrStopped
		}
	}
}

// onConnection calls changed now, and whenever the connection is lost or back.
func (n *Namespace) onConnection(changed func()) {
	n.connected.Store(&changed)
	changed()
}

// Where says for people where the queue is.
func (n *Namespace) Where() string { return n.Conn.Where() }

// Close leaves the server, and stops it when this process runs it.
func (n *Namespace) Close() error { return n.Conn.Close() }

// Pause lets no call be made until somebody resumes: by says who paused, resume is the command that continues. It
// returns what stands then. A halt that is there already stays, because its reason is the one to fix.
func (n *Namespace) Pause(ctx context.Context, by, resume string) (*queue.Halt, error) {
	err := n.SetHalt(ctx, queue.Halt{State: queue.Paused, Reason: "by hand", Command: resume, By: by})
	if err != nil {
		return nil, err
	}
	return n.Halted(ctx)
}

// SetImportPaused pauses one import, or resumes it, and returns its record. It does nothing to an import that is over.
// The error wraps [queue.ErrNoImport] when there is no such import.
func (n *Namespace) SetImportPaused(ctx context.Context, id string, paused bool) (queue.Import, error) {
	set := n.ResumeImport
	if paused {
		set = n.PauseImport
	}
	if err := set(ctx, id); err != nil {
		return queue.Import{}, err
	}
	return n.Import(ctx, id)
}

// CancelImport drops the jobs of an import that have no result, and returns what it comes to. A retry that is cancelled
// leaves the import complete. The errors are those of [queue.Queue.Cancel].
func (n *Namespace) CancelImport(ctx context.Context, id string) (ImportStatus, error) {
	if err := n.Cancel(ctx, id); err != nil {
		return ImportStatus{}, err
	}
	return n.ImportStatus(ctx, id)
}
