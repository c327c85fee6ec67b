package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"groupferry/internal/job"
)

var (
	// ErrUnreachable is wrapped by every error that says: NATS did not answer. The same call may work later.
	ErrUnreachable = errors.New("NATS is out of reach")

	// ErrTooOld is wrapped by the error of an [Open] that met a server without atomic publishing.
	ErrTooOld = errors.New("too old: 2.12 or newer is needed")

	// ErrNoJetStream is wrapped by the error of an [Open] that met a server, or an account, without JetStream.
	ErrNoJetStream = errors.New("JetStream is not enabled")

	// ErrNoData is wrapped by the error of an [Open] with JoinOnly where no import was ever begun.
	ErrNoData = errors.New("no groupferry data")
)

const (
	// defaultDataDir is where the embedded server keeps its data when nobody says otherwise.
	defaultDataDir = "groupferry-data"

	// defaultNamespace is the first part of all names on the server when nobody says otherwise.
	defaultNamespace = "groupferry"

	// maxNamespace keeps the names of streams and the paths below the data directory short.
	maxNamespace = 32

	// opTimeout is how long one request to the server may take. A server that syncs every write to a busy disk answers
	// within a fraction of it.
	opTimeout = 5 * time.Second

	// oldestMajor and oldestMinor name the first server with atomic publishing.
	oldestMajor, oldestMinor = 2, 12
)

// Config says which server to use, and under which name. The zero value is an embedded server in ./groupferry-data.
type Config struct {
	// URL names an existing server, or several of one cluster, separated by commas. It wins over Context. When both
	// are empty the server is an embedded one. It may hold a password.
	URL string `json:"-"`

	// Creds is a file with the credentials for an existing server.
	Creds string

	// Context is the name, or the absolute path, of a NATS context as the nats command keeps them.
	Context string

	// DataDir is the directory of the embedded server; default groupferry-data. It is created for its owner alone.
	DataDir string

	// Namespace keeps several installations apart on one server: 1 to 32 of A–Z, a–z, 0–9, - and _; default groupferry.
	Namespace string

	// Replicas is how many servers of a cluster keep a copy; default 1. It counts when a stream is made, and changes
	// none that is there.
	Replicas int

	// Name is what the server calls this client in its reports; default groupferry.
	Name string

	// Log gets what happens to the connection and to the embedded server; nil discards it.
	Log *slog.Logger

	// OnBroken, unless nil, is called when the embedded server, run by this process, can no longer write its data: once,
	// also while Open has not returned, and from any goroutine. Nothing can be written through the queue from then on.
	OnBroken func(*DiskError)

	// JoinOnly makes Open fail with [ErrNoData] where there is nothing to look at, rather than create it.
	JoinOnly bool
}

func (c Config) withDefaults() (Config, error) {
	if c.DataDir == "" {
		c.DataDir = defaultDataDir
	}
	if c.Namespace == "" {
		c.Namespace = defaultNamespace
	}
	if c.Replicas == 0 {
		c.Replicas = 1
	}
	if c.Name == "" {
		c.Name = "groupferry"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if !validNamespace(c.Namespace) {
		return c, fmt.Errorf("namespace %q: use 1 to %d of A-Z, a-z, 0-9, - and _", c.Namespace, maxNamespace)
	}
	if c.Replicas < 1 || c.Replicas > 5 {
		return c, fmt.Errorf("%d replicas: JetStream keeps 1 to 5", c.Replicas)
	}
	return c, nil
}

// Format keeps what the URL may hold out of logs and errors, whatever the verb.
func (c Config) Format(f fmt.State, _ rune) {
	server := "embedded server in " + c.DataDir
	if !c.embedded() {
		server = "existing server"
	}
	fmt.Fprintf(f, "queue.Config{%s, namespace %q}", server, c.Namespace)
}

// Format does the same for the queue, which has the Config and the embedded server's token inside.
func (q *Queue) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "queue at %s", q.where) }

func (c Config) embedded() bool { return c.URL == "" && c.Context == "" }

// validNamespace takes what an import ID can be made of, for both become parts of the same names.
func validNamespace(s string) bool { return len(s) <= maxNamespace && job.ValidImportID(s) }

// A Queue is a connection to the streams and buckets of one namespace. It is safe for concurrent use.
type Queue struct {
	cfg   Config
	log   *slog.Logger
	where string
	home  *home // nil unless embedded
	nc    *nats.Conn
	js    jetstream.JetStream

	apiPrefix string // of the subjects of JetStream's API

	jobs    jetstream.Stream
	results jetstream.Stream
	control jetstream.KeyValue

	line    atomic.Pointer[line]
	tallies tallyCache
	keeps   bool     // the jobs stream keeps a job until its import is complete
	doubts  sync.Map // of imports that are not settled: ID → *doubt
	batches bool     // the results stream takes them
	puts    gather[*waitingPut]
	lookups gather[*lookup]
	close   sync.Once
}

// Open connects to the server that cfg names, or to the embedded one, and makes sure that streams and buckets are there
// and are what this package needs. It gives up after about five seconds with an error that wraps [ErrUnreachable];
// once open, a connection that is lost is sought again for as long as the queue is open.
//
// The other errors that can be told apart wrap a [*DiskError], [ErrTooOld], [ErrNoJetStream], [ErrNoData], and
// job.ErrVersion when a newer groupferry made the streams.
func Open(ctx context.Context, cfg Config) (*Queue, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	q := &Queue{cfg: cfg, log: cfg.Log}
	q.puts = gather[*waitingPut]{
		do: q.commit, most: maxTogether, room: maxBatchBytes, size: func(p *waitingPut) int { return len(p.msg.Data) },
		many: minTogether, plenty: enoughTogether, patience: togetherWait,
	}
	q.lookups = gather[*lookup]{do: q.lookUp, most: maxLookups}
	q.nextLine()
	if cfg.embedded() {
		err = q.connectHome(ctx)
	} else {
		err = q.connectAbroad()
	}
	if err == nil {
		err = q.prepare(ctx)
	}
	if err != nil {
		q.Close()
		return nil, err
	}
	return q, nil
}

func (q *Queue) prepare(ctx context.Context) error {
	v := q.nc.ConnectedServerVersion()
	if tooOld(v) {
		return fmt.Errorf("%s: nats-server %s is %w", q.where, v, ErrTooOld)
	}
	return q.ensureTopology(ctx)
}

// tooOld is for certain only: a version that cannot be read is tried, for the streams are checked after their creation.
func tooOld(version string) bool {
	var major, minor int
	if _, err := fmt.Sscanf(version, "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major < oldestMajor || major == oldestMajor && minor < oldestMinor
}

// Close leaves the server, and stops it when this process runs it. Only the first call does something.
func (q *Queue) Close() error {
	var err error
	q.close.Do(func() {
		if q.nc != nil {
			// A job that was handed back without an answer may still be in a buffer; it is not worth an error.
			_ = q.nc.FlushTimeout(time.Second)
			q.nc.Close()
		}
		q.line.Load().cut()
		q.puts.running.Wait()
		q.lookups.running.Wait()
		if q.home != nil {
			err = q.home.close()
		}
	})
	return err
}

// Embedded tells whether this process runs the server. That can change while the queue is open: when the process that
// ran the embedded server ends, another one that has its data directory open takes over.
func (q *Queue) Embedded() bool { return q.home != nil && q.home.running() }

// Where says in words for people where the queue is. It holds no secret.
func (q *Queue) Where() string { return q.where }

// fault turns what came back from the server into the error of an exported method. Trouble on the way comes out as
// ErrUnreachable, the end of the caller's context as that, and an answer that says no as itself.
func (q *Queue) fault(ctx context.Context, doing string, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", doing, context.Cause(ctx))
	case errors.Is(err, context.Canceled): // not by the caller: see within
		return fmt.Errorf("%s: %w: %s: %w", doing, ErrUnreachable, q.where, nats.ErrDisconnected)
	case unreachable(err):
		return fmt.Errorf("%s: %w: %s: %w", doing, ErrUnreachable, q.where, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// unreachable tells trouble on the way. A context that ended is that too, for callers ask about their own one first.
func unreachable(err error) bool {
	for _, target := range []error{
		ErrUnreachable,
		context.DeadlineExceeded,
		context.Canceled,
		io.EOF,
		nats.ErrTimeout,
		nats.ErrNoResponders,
		nats.ErrNoServers,
		nats.ErrDisconnected,
		nats.ErrConnectionClosed,
		nats.ErrConnectionDraining,
		nats.ErrConnectionReconnecting,
		nats.ErrReconnectBufExceeded,
		nats.ErrStaleConnection,
		jetstream.ErrConnectionClosed,
		jetstream.ErrNoStreamResponse,
		jetstream.ErrNoHeartbeat,
		errNobodyHome,
	} {
		if errors.Is(err, target) {
			return true
		}
	}
	if api := apiError(err); api != nil {
		return api.Code == 503 && api.ErrorCode != codeStoreFailed
	}
	_, ok := errors.AsType[net.Error](err)
	return ok
}

// apiError gives what the server itself answered, or nil when err is none of its answers.
func apiError(err error) *jetstream.APIError {
	if e, ok := errors.AsType[jetstream.JetStreamError](err); ok {
		return e.APIError()
	}
	// The library watches a bucket by its older half, whose errors are of another type.
	if e, ok := errors.AsType[nats.JetStreamError](err); ok && e.APIError() != nil {
		old := e.APIError()
		return &jetstream.APIError{
			Code: old.Code, ErrorCode: jetstream.ErrorCode(old.ErrorCode), Description: old.Description,
		}
	}
	return nil
}

// withoutJetStream tells whether the server, or the account, says that it has none.
func withoutJetStream(err error) bool {
	api := apiError(err)
	return api != nil && (api.ErrorCode == jetstream.JSErrCodeJetStreamNotEnabled ||
		api.ErrorCode == jetstream.JSErrCodeJetStreamNotEnabledForAccount)
}

// lostRace tells whether a write was refused because someone else wrote first. A cluster has a code of its own for it.
func lostRace(err error) bool {
	api := apiError(err)
	return api != nil && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence ||
		api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// within bounds one request to the server: by opTimeout, and by the life of the connection that it is sent on. The
// library would wait in vain for an answer to what was sent on a connection that broke.
func (q *Queue) within(ctx context.Context) (context.Context, context.CancelFunc) {
	return q.withinTime(ctx, opTimeout)
}

func (q *Queue) withinTime(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	c, cancel := context.WithTimeout(ctx, d)
	stop := context.AfterFunc(q.line.Load().ctx, cancel)
	return c, func() {
		stop()
		cancel()
	}
}

// ask makes a request, within the bounds of [Queue.within], and makes it again for a while when it failed because
// something changes hands: the embedded server, when the process that ran it ended, or a stream of a cluster that has no
// leader for the moment. So do may run again though it had its effect, and has to tell.
func (q *Queue) ask(ctx context.Context, do func(context.Context) error) error {
	for end := time.Now().Add(opTimeout); ; {
		c, cancel := q.within(ctx)
		err := do(c)
		cancel()
		leaderless := errors.Is(err, jetstream.ErrNoStreamResponse)
		if api := apiError(err); api != nil && !withoutJetStream(err) {
			leaderless = leaderless || api.Code == 503
		}
		handedOver := q.home != nil && unreachable(err)
		if !leaderless && !handedOver || ctx.Err() != nil || time.Now().After(end) {
			return err
		}
		pause(ctx, joinPause)
	}
}

// A line is one connection of the several that a Queue may have in its life, one after the other.
type line struct {
	ctx context.Context // ends with it
	cut context.CancelFunc
}

// nextLine ends the present line, if there is one. What is asked from now on waits for the next connection.
func (q *Queue) nextLine() {
	ctx, cut := context.WithCancel(context.Background())
	if old := q.line.Swap(&line{ctx, cut}); old != nil {
		old.cut()
	}
}

// pause waits for d, and tells whether ctx is still alive then.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// subject joins the namespace and tokens that are known to be valid.
func (q *Queue) subject(tokens ...string) string {
	return q.cfg.Namespace + "." + strings.Join(tokens, ".")
}
