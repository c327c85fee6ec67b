package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/natscontext"
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

// connectOptions are those of every connection.
func (q *Queue) connectOptions() []nats.Option {
	return []nats.Option{
		nats.Name(q.cfg.Name),
		nats.Timeout(dialTimeout),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(reconnectWait),
		nats.ReconnectJitter(reconnectJitter, reconnectJitter),
		nats.PingInterval(pingInterval),
		nats.MaxPingsOutstanding(pingsOut),
		// A credentials file can be replaced while the process runs; giving up would need a restart to notice.
		nats.IgnoreAuthErrorAbort(),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			q.nextLine()
			if err != nil {
				q.log.Warn("connection to NATS lost", "server", q.where, "error", err)
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) {
			q.log.Info("connection to NATS is back", "server", q.where)
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			level := slog.LevelDebug
			if errors.Is(err, nats.ErrPermissionViolation) {
				level = slog.LevelWarn // the request in question only ever times out: this is what says why
			}
			q.log.Log(context.Background(), level, "NATS reports an error", "server", q.where, "error", err)
		}),
	}
}

// connectAbroad connects to a server that somebody else runs.
func (q *Queue) connectAbroad() error {
	opts := q.connectOptions()
	if q.cfg.Creds != "" {
		opts = append(opts, nats.UserCredentials(q.cfg.Creds))
	}
	var set natscontext.Settings
	var err error
	if q.cfg.URL != "" {
		if q.where, err = redact(q.cfg.URL); err != nil {
			return err
		}
		q.nc, err = nats.Connect(q.cfg.URL, opts...)
	} else {
		q.where = "NATS context " + q.cfg.Context
		q.nc, set, err = natscontext.Connect(q.cfg.Context, opts...)
	}
	if err != nil {
		return connectError(q.where, err)
	}
	return q.useJetStream(set.JSDomain, set.JSAPIPrefix)
}

// useJetStream takes JetStream as it is reached from here: a context can say that it is in another domain, or that an
// account imports it under another prefix.
func (q *Queue) useJetStream(domain, prefix string) (err error) {
	switch {
	case prefix != "":
		q.apiPrefix = strings.TrimSuffix(prefix, ".") + "."
		q.js, err = jetstream.NewWithAPIPrefix(q.nc, prefix)
	case domain != "":
		q.apiPrefix = "$JS." + domain + ".API."
		q.js, err = jetstream.NewWithDomain(q.nc, domain)
	default:
		q.apiPrefix = "$JS.API."
		q.js, err = jetstream.New(q.nc)
	}
	if err != nil {
		return fmt.Errorf("use JetStream of %s: %w", q.where, err)
	}
	return nil
}

// connectError tells a server out of reach from a configuration that nothing can be reached with, and drops the URL
// that an error of the latter kind repeats.
func connectError(where string, err error) error {
	if _, ok := errors.AsType[*url.Error](err); ok {
		return fmt.Errorf("connect to %s: the server's address is no URL", where)
	}
	if unreachable(err) {
		return fmt.Errorf("%w: %s: %w", ErrUnreachable, where, err)
	}
	return fmt.Errorf("connect to %s: %w", where, err)
}

// redact takes user, password and token out of a list of URLs.
func redact(list string) (string, error) {
	var out []string
	for s := range strings.SplitSeq(list, ",") {
		s = strings.TrimSpace(s)
		if !strings.Contains(s, "://") {
			s = "nats://" + s
		}
		u, err := url.Parse(s)
		if err != nil || u.Host == "" {
			// The cause would repeat the text, and a password can be what makes it unreadable.
			return "", errors.New("NATS URL: want nats://host:port, or several of them separated by commas")
		}
		out = append(out, u.Scheme+"://"+u.Host)
	}
	return strings.Join(out, ","), nil
}
