package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// maxStandbys bounds what a question takes in: far more than anybody has.
const maxStandbys = 1000

// statusHeader is on what the server itself answers: 503, when nobody listens.
const statusHeader = "Status"

func (c *Conn) standbySubject() string { return c.Subject("standby") }

// Standby has answer called for each question of [Conn.AskStandbys], one after the other; nil is no answer. It is a plain
// NATS message that nobody keeps. After stop has returned, answer is not running and is not called again.
func (c *Conn) Standby(answer func() []byte) (stop func(), err error) {
	var mu sync.Mutex
	stopped := false
	sub, err := c.nc.Subscribe(c.standbySubject(), func(m *nats.Msg) {
		mu.Lock()
		defer mu.Unlock()
		if stopped || m.Reply == "" {
			return
		}
		if b := answer(); b != nil {
			if err := m.Respond(b); err != nil {
				c.log.Debug("a question to standbys could not be answered", "error", err)
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("listen for questions to standbys: %w", err)
	}
	return func() {
		_ = sub.Unsubscribe() // fails on a closed connection, where it is gone anyway
		mu.Lock()
		defer mu.Unlock()
		stopped = true
	}, nil
}

// AskStandbys asks all processes that stand by, and gives their answers to heard as they arrive, until it has heard enough
// or wait is over. The question is lost, as the answers can be, when there is no connection.
func (c *Conn) AskStandbys(ctx context.Context, wait time.Duration, heard func(answer []byte) (enough bool)) error {
	const doing = "ask the standbys"
	bounded, cancel := c.Within(ctx, wait)
	defer cancel()
	inbox := c.nc.NewInbox()
	sub, err := c.nc.SubscribeSync(inbox)
	if err != nil {
		return c.Fault(ctx, doing, err)
	}
	defer sub.Unsubscribe()
	if err := c.nc.PublishRequest(c.standbySubject(), inbox, nil); err != nil {
		return c.Fault(ctx, doing, err)
	}
	for range maxStandbys {
		m, err := sub.NextMsgWithContext(bounded)
		switch {
		case ctx.Err() != nil:
			return c.Fault(ctx, doing, ctx.Err())
		case bounded.Err() != nil:
			return nil
		case errors.Is(err, nats.ErrNoResponders):
			return nil
		case err != nil:
			return c.Fault(ctx, doing, err)
		case m.Header.Get(statusHeader) != "":
			return nil
		}
		if heard(m.Data) {
			return nil
		}
	}
	return nil
}

func (c *Conn) announceSubject() string { return c.Subject("announce") }

// Announce tells b to all processes of the namespace, this one included. It is a plain NATS message that nobody keeps:
// who has no connection at the moment does not get it, and while this one has none, nothing is sent.
func (c *Conn) Announce(b []byte) error {
	if !c.Connected() {
		return nil
	}
	return c.nc.Publish(c.announceSubject(), b)
}

// Announcements has heard called for each [Conn.Announce] of any process, one after the other. After stop no call begins.
func (c *Conn) Announcements(heard func(b []byte)) (stop func(), err error) {
	sub, err := c.nc.Subscribe(c.announceSubject(), func(m *nats.Msg) { heard(m.Data) })
	if err != nil {
		return nil, fmt.Errorf("listen for announcements: %w", err)
	}
	return func() { _ = sub.Unsubscribe() }, nil // fails on a closed connection, where it is gone anyway
}
