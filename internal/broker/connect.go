package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/natscontext"

	"groupferry/internal/clock"
)

const (
	// dialTimeout is for one server of a list.
	dialTimeout = 3 * time.Second

	// reconnectWait, and up to as much again at random, passes between two rounds over the servers.
	reconnectWait   = 250 * time.Millisecond
	reconnectJitter = 250 * time.Millisecond

	// A server that does not answer pingsOut pings, one every pingInterval, is taken for lost.
	pingInterval = 10 * time.Second
	pingsOut     = 2
)

// A denial is what the server said last about a subject that the account must not use. It does not say to which
// request it belongs, which gets no answer and times out.
type denial struct {
	at  time.Time
	err error
}

// connectOptions are those of every connection.
func (c *Conn) connectOptions() []nats.Option {
	return []nats.Option{
		nats.Name(c.cfg.Name),
		nats.Timeout(dialTimeout),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(reconnectWait),
		nats.ReconnectJitter(reconnectJitter, reconnectJitter),
		nats.PingInterval(pingInterval),
		nats.MaxPingsOutstanding(pingsOut),
		// A credentials file can be replaced while the process runs; giving up would need a restart to notice.
		nats.IgnoreAuthErrorAbort(),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil && !c.closed.Load() {
				c.outOfReach(err) // before what it breaks off is logged
			}
			c.nextLife()
			if !c.closed.Load() {
				c.report(false, err)
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) {
			c.inReach(false)
			c.report(true, nil)
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			level := slog.LevelDebug
			if errors.Is(err, nats.ErrPermissionViolation) {
				level = slog.LevelWarn
				c.denied.Store(&denial{time.Now(), fmt.Errorf("%s: %w: %w", c.where, ErrDenied, err)})
			}
			c.log.Log(context.Background(), level, "NATS reports an error", "queue", c.where, "error", err)
		}),
	}
}

func (c *Conn) report(up bool, err error) {
	if c.cfg.OnConnection != nil {
		c.cfg.OnConnection(up, err)
	}
}

// connectExternal connects to a server that somebody else runs.
func (c *Conn) connectExternal(ctx context.Context) error {
	c.where = "NATS context " + c.cfg.Context
	if c.cfg.URL != "" {
		c.where = c.cfg.servers()
	}
	// Longer than this takes only a process that was frozen. A context may have several servers too: one attempt more then.
	longest := time.Duration(strings.Count(c.cfg.URL, ",")+1)*dialTimeout + oversleep
	for attempt := 1; ; attempt++ {
		start := time.Now()
		set, err := c.dialUntil(ctx)
		if err == nil {
			return c.useJetStream(set.JSDomain, set.JSAPIPrefix)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if attempt == minAttempts || !Unreachable(err) || time.Since(start) < longest || !clock.Pause(ctx, attemptPause) {
			return c.connectError(err)
		}
	}
}

// dialUntil is dial, but ends with ctx, which the library does not know.
func (c *Conn) dialUntil(ctx context.Context) (natscontext.Settings, error) {
	var nc *nats.Conn
	var set natscontext.Settings
	var err error
	dialed := make(chan struct{})
	go func() {
		defer close(dialed)
		nc, set, err = c.dial()
	}()
	select {
	case <-dialed:
		c.nc = nc
		return set, err
	case <-ctx.Done():
		go func() {
			if <-dialed; nc != nil {
				nc.Close()
			}
		}()
		return natscontext.Settings{}, context.Cause(ctx)
	}
}

// dial makes a connection to an external server. The settings are those of a context.
func (c *Conn) dial(more ...nats.Option) (nc *nats.Conn, set natscontext.Settings, err error) {
	opts := append(c.connectOptions(), more...)
	if c.cfg.Creds != "" {
		opts = append(opts, nats.UserCredentials(c.cfg.Creds))
	}
	if c.cfg.URL != "" {
		nc, err = nats.Connect(c.cfg.URL, opts...)
	} else {
		nc, set, err = natscontext.Connect(c.cfg.Context, opts...)
	}
	return nc, set, err
}

// useJetStream takes JetStream as it is reached from here: a context can say that it is in another domain, or that an
// account imports it under another prefix.
func (c *Conn) useJetStream(domain, prefix string) (err error) {
	switch {
	case prefix != "":
		c.apiPrefix = strings.TrimSuffix(prefix, ".") + "."
		c.js, err = jetstream.NewWithAPIPrefix(c.nc, prefix)
	case domain != "":
		c.apiPrefix = "$JS." + domain + ".API."
		c.js, err = jetstream.NewWithDomain(c.nc, domain)
	default:
		c.apiPrefix = "$JS.API."
		c.js, err = jetstream.New(c.nc)
	}
	if err != nil {
		return fmt.Errorf("use JetStream of %s: %w", c.where, err)
	}
	return nil
}
