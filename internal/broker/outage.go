package broker

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// An outage is that NATS is out of reach: the connection is lost, or it is there and the lease can be neither read nor
// written. It is logged once, with its cause, and its end once; what fails meanwhile is detail, see [Conn.Level].
type outage struct {
	mu    sync.Mutex
	since time.Time // zero: there is none
	lease bool      // it has ended when the lease is read or written again: a server that is back may have no JetStream yet
}

// outOfReach notes that a request or the connection failed because NATS is out of reach.
func (c *Conn) outOfReach(err error) {
	c.outage.mu.Lock()
	defer c.outage.mu.Unlock()
	if c.closed.Load() || !c.outage.since.IsZero() {
		return
	}
	c.outage.since = time.Now()
	c.log.Warn("NATS is out of reach; trying again", "queue", c.where, "error", err)
}

// inReach notes that the connection is back, or that a request succeeded: one that was made to the lease ends the outage of a
// process that keeps one.
func (c *Conn) inReach(lease bool) {
	c.outage.mu.Lock()
	defer c.outage.mu.Unlock()
	c.outage.lease = c.outage.lease || lease
	if c.outage.since.IsZero() || lease != c.outage.lease {
		return
	}
	c.log.Info("NATS is in reach again", "queue", c.where, "seconds", int(time.Since(c.outage.since).Seconds()))
	c.outage.since = time.Time{}
}

// Level is that of a line about something that failed and is tried again: detail while NATS is out of reach, which is
// logged already, else a warning.
func (c *Conn) Level(err error) slog.Level {
	c.outage.mu.Lock()
	defer c.outage.mu.Unlock()
	if Unreachable(err) && !c.outage.since.IsZero() {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}

// LogRetry logs that something failed and is tried again, at its [Conn.Level]. It tells whether that is a warning.
func (c *Conn) LogRetry(msg string, err error) (warned bool) {
	level := c.Level(err)
	c.log.Log(context.Background(), level, msg, "error", err)
	return level == slog.LevelWarn
}
