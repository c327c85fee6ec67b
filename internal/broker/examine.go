package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Limits are what a server, and the account there, has for streams.
type Limits struct {
	Version    string // of the server
	MaxPayload int64  // bytes of a message, headers included

	Known         bool  // the rest; the user may not be allowed to ask
	Storage, Used int64 // bytes on disk; Storage is -1 where the account has no limit
	Streams, Have int   // Streams is -1 where the account has no limit
}

// Limits asks what the server has.
func (c *Conn) Limits(ctx context.Context) (Limits, error) {
	l := Limits{Version: c.nc.ConnectedServerVersion(), MaxPayload: c.MaxPayload()}
	var account *jetstream.AccountInfo
	err := c.Ask(ctx, func(ctx context.Context) (err error) {
		account, err = c.js.AccountInfo(ctx)
		return err
	})
	if errors.Is(err, ErrDenied) {
		return l, nil
	}
	if err != nil {
		return l, c.streamFault(ctx, "ask for the limits of the account", err)
	}
	l.Known, l.Used, l.Have = true, int64(account.Store), account.Streams
	l.Storage, l.Streams = account.Limits.MaxStore, account.Limits.MaxStreams
	if len(account.Tiers) > 0 { // limits for each number of replicas, in place of those
		tier, ok := account.Tiers[fmt.Sprintf("R%d", c.cfg.Replicas)]
		l.Known, l.Used, l.Have, l.Storage, l.Streams = ok, int64(tier.Store), tier.Streams, tier.Limits.MaxStore, tier.Limits.MaxStreams
	}
	if l.Streams == 0 {
		l.Streams = -1
	}
	return l, nil
}

// Denies finds out which of these subjects the user of the connection may not publish to. What it publishes changes nothing: for
// a stream it is for one of another name, and to the API of JetStream it is a request that says nothing. Subjects that
// remove something, where no request is safe, must not be among them. With the embedded server all is allowed.
func (c *Conn) Denies(ctx context.Context, subjects []string) (denied []string, err error) {
	if c.embedded != nil {
		return nil, nil
	}
	// A connection of its own: what it is denied is no warning, and its end is not that of c.
	nc, _, err := c.dial(nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
		nats.DisconnectErrHandler(nil), nats.ReconnectHandler(nil), nats.NoReconnect())
	if err != nil {
		return nil, c.Fault(ctx, "try permissions", err)
	}
	defer nc.Close()
	for _, subject := range subjects {
		if slices.Contains(denied, subject) {
			continue
		}
		m := nats.NewMsg(subject)
		m.Header.Set(jetstream.ExpectedStreamHeader, "groupferry-doctor")
		m.Data = []byte("{}")
		if err = nc.PublishMsg(m); err == nil {
			err = c.flush(ctx, nc)
		}
		if err != nil {
			return nil, c.Fault(ctx, "try permissions", err)
		}
		// The server says so before it answers the flush.
		if last := nc.LastError(); errors.Is(last, nats.ErrPermissionViolation) && strings.Contains(last.Error(), `"`+subject+`"`) {
			denied = append(denied, subject)
		}
	}
	return denied, nil
}

func (c *Conn) flush(ctx context.Context, nc *nats.Conn) error {
	bounded, cancel := c.Within(ctx, opTimeout)
	defer cancel()
	return nc.FlushWithContext(bounded)
}
