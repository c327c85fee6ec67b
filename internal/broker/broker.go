package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"groupferry/internal/clock"
)

const (
	// opTimeout is how long one request to the server may take. A server that syncs every write to a busy disk answers
	// within a fraction of it.
	opTimeout = 5 * time.Second

	// minAttempts is how often a request is made, and a connection tried, before NATS counts as out of reach: a process
	// that was frozen for longer than opTimeout has not asked once in that time.
	minAttempts = 3

	// oversleep is how much later than its end an attempt returns when the process was frozen; otherwise it is some
	// milliseconds. Taking a busy machine for a frozen process costs one more attempt.
	oversleep = 250 * time.Millisecond

	// attemptPause is between two attempts.
	attemptPause = 50 * time.Millisecond

	// oldestMajor and oldestMinor name the first server with atomic publishing.
	oldestMajor, oldestMinor = 2, 12
)

// A Conn is a connection to the NATS server of one namespace. It is safe for concurrent use.
type Conn struct {
	cfg      Config
	log      *slog.Logger
	where    string
	embedded *embedded // nil with an external server
	scratch  string    // directory that Close removes; "" for none
	nc       *nats.Conn
	js       jetstream.JetStream

	apiPrefix string // of the subjects of JetStream's API

	life   atomic.Pointer[life] // of the present connection
	denied atomic.Pointer[denial]
	outage outage
	closed atomic.Bool
	close  sync.Once

	saidReading atomic.Int64 // when Reading said it last, in nanoseconds
}

// Open connects to the server that cfg names, or to the embedded one, which it starts if no other process runs it. It
// gives up after about five seconds with an error that wraps [ErrUnreachable]; once open, a connection that is lost is
// sought again until Close.
//
// The other errors that can be told apart are [*ConfigError], [*AuthError], [*DiskError], [*DamagedError], [ErrTooOld],
// [ErrNoJetStream], [ErrDenied] and [ErrNoData].
func Open(ctx context.Context, cfg Config) (*Conn, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	c := &Conn{cfg: cfg, log: cfg.Log}
	c.nextLife()
	if cfg.embedded() {
		err = c.connectEmbedded(ctx)
	} else {
		err = c.connectExternal(ctx)
	}
	if err == nil {
		err = c.check(ctx)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// check refuses a server that cannot do what is needed.
func (c *Conn) check(ctx context.Context) error {
	if v := c.nc.ConnectedServerVersion(); tooOld(v) {
		return fmt.Errorf("%s: nats-server %s is %w", c.where, v, ErrTooOld)
	}
	err := c.Ask(ctx, func(ctx context.Context) error {
		_, err := c.js.AccountInfo(ctx)
		return err
	})
	if errors.Is(err, ErrDenied) { // an account need not be allowed this one to work
		return nil
	}
	return c.streamFault(ctx, "ask for JetStream", err)
}

// tooOld is for certain only: a version that cannot be read is tried, for streams are checked when they are opened.
func tooOld(version string) bool {
	var major, minor int
	if _, err := fmt.Sscanf(version, "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major < oldestMajor || major == oldestMajor && minor < oldestMinor
}

// Close leaves the server, and stops it when this process runs it. Only the first call does something.
func (c *Conn) Close() error {
	var err error
	c.close.Do(func() {
		c.closed.Store(true)
		if c.nc != nil {
			if c.nc.IsConnected() {
				// What was published without waiting for an answer may still be in a buffer; it is not worth an error.
				_ = c.nc.FlushTimeout(time.Second)
			}
			c.nc.Close()
		}
		c.life.Load().end()
		if c.embedded != nil {
			err = c.embedded.close()
		}
		if c.scratch != "" {
			err = errors.Join(err, os.RemoveAll(c.scratch))
		}
	})
	return err
}

// Embedded tells whether this process runs the server. That can change while the connection is open: when the process
// that ran the embedded server ends, another one that has its data directory open takes over.
func (c *Conn) Embedded() bool { return c.embedded != nil && c.embedded.running() }

// Where says in words for people which server it is. It holds no secret.
func (c *Conn) Where() string { return c.where }

// Connected tells whether there is a connection at the moment.
func (c *Conn) Connected() bool { return c.nc.IsConnected() }

// Reconnects tells how often the connection was lost, and is back.
func (c *Conn) Reconnects() int64 { return int64(c.nc.Stats().Reconnects) }

// Namespace is that of the Config, or its default.
func (c *Conn) Namespace() string { return c.cfg.Namespace }

// Replicas is that of the Config, or its default.
func (c *Conn) Replicas() int { return c.cfg.Replicas }

// JoinOnly is that of the Config.
func (c *Conn) JoinOnly() bool { return c.cfg.JoinOnly }

// Command gives a command line of groupferry that is about this server and namespace.
func (c *Conn) Command(words ...string) string {
	return "groupferry " + strings.Join(words, " ") + c.cfg.CommandFlags
}

// Log is that of the Config, or one that discards.
func (c *Conn) Log() *slog.Logger { return c.log }

// NATS is the connection itself.
func (c *Conn) NATS() *nats.Conn { return c.nc }

// JetStream is JetStream as it is reached from here: see APIPrefix.
func (c *Conn) JetStream() jetstream.JetStream { return c.js }

// APIPrefix is what the subjects of JetStream's API start with, with the dot at its end: "$JS.API." unless a NATS context
// says otherwise.
func (c *Conn) APIPrefix() string { return c.apiPrefix }

// MaxPayload is the number of bytes that the server takes in one message, headers included.
func (c *Conn) MaxPayload() int64 { return c.nc.MaxPayload() }

// Subject joins the namespace and tokens that are known to be valid: NS.a.b.
func (c *Conn) Subject(tokens ...string) string {
	return c.cfg.Namespace + "." + strings.Join(tokens, ".")
}

// Format keeps the Config and the embedded server's token, which are inside, out of logs and errors, whatever the verb.
func (c *Conn) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "broker.Conn to %s", c.where) }

// Within bounds one request to the server: by d, and by the life of the connection that it is sent on. The library
// would wait in vain for the answer to what was sent on a connection that broke.
func (c *Conn) Within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	bounded, cancel := context.WithTimeout(ctx, d)
	stop := context.AfterFunc(c.life.Load().ctx, cancel)
	return bounded, func() {
		stop()
		cancel()
	}
}

// Ask makes a request that may take five seconds, bounded as by [Conn.Within]. It makes it again for a while when it
// failed because something changes hands: the embedded server, when the process that ran it ended, or a stream of a
// cluster that has no leader at the moment. So do may run again though it had its effect, and has to tell.
//
// It gives up after three attempts and five seconds, whichever is later: a process that was frozen for longer than that
// has not asked in that time. For the same reason an attempt is repeated that ended well after its time was up.
func (c *Conn) Ask(ctx context.Context, do func(context.Context) error) error {
	end := time.Now().Add(opTimeout)
	for attempt := 1; ; attempt++ {
		start := time.Now()
		bounded, cancel := c.Within(ctx, opTimeout)
		err := do(bounded)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
		if denied := c.Denied(start, err); denied != nil {
			return denied
		}
		if attempt >= minAttempts && time.Now().After(end) || !c.mayPass(err, time.Since(start)) {
			return err
		}
		if !clock.Pause(ctx, attemptPause) {
			return err
		}
	}
}

// Denied tells whether a request that was made at start, or later, and failed with err had no response because the account
// may not send it: the error is what the server said then, and nil otherwise. [Conn.Ask] tells by itself.
func (c *Conn) Denied(start time.Time, err error) error {
	if d := c.denied.Load(); d != nil && d.at.After(start) && Unreachable(err) && APIError(err) == nil {
		return d.err
	}
	return nil
}

// mayPass tells whether the same request can have another outcome in a moment. It took so long.
func (c *Conn) mayPass(err error, took time.Duration) bool {
	if api := APIError(err); api != nil {
		return api.Code == 503 && api.ErrorCode != CodeStoreFailed && !WithoutJetStream(err)
	}
	if errors.Is(err, jetstream.ErrNoStreamResponse) { // a stream without a leader, and not an API error to APIError's eyes
		return true
	}
	return Unreachable(err) && !c.closed.Load() && (c.embedded != nil || took > opTimeout+oversleep)
}

// A life is that of one connection of the several that a Conn may have, one after the other.
type life struct {
	ctx context.Context // ends with it
	end context.CancelFunc
}

// nextLife ends the present life, if there is one. What is asked from now on waits for the next connection.
func (c *Conn) nextLife() {
	ctx, end := context.WithCancel(context.Background())
	if old := c.life.Swap(&life{ctx, end}); old != nil {
		old.end()
	}
}
