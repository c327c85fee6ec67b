package broker

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/gofrs/flock"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"groupferry/internal/clock"
)

const (
	lockFile   = "lock"
	serverFile = "server.json" // where the embedded server listens, and the token that it asks for
	storeDir   = "jetstream"   // the server adds this name to its StoreDir by itself

	// joinTimeout is how long Open waits for a server that another process is about to start or to hand over.
	joinTimeout = 5 * time.Second

	// maxStore is what the embedded server may take of the disk: all of it, an exbibyte. Left to itself it takes three
	// quarters of what was free when it started, and what it says beyond that sounds like a server out of reach.
	maxStore = 1 << 60

	// readyTimeout is for a server with nothing wrong; recovery of a store happens before it counts. It is waited for
	// several times over, for a process can be frozen in one of them.
	readyTimeout = 4 * time.Second
)

// ServerVersion is that of the embedded server.
const ServerVersion = server.VERSION

// errNoServer says that another process holds the lock of the data directory and no server answers for it.
var errNoServer = errors.New("another process holds the data directory, and its server does not answer")

// An embedded is the embedded server's data directory, seen from one of the processes that have it open. Whoever holds
// the lock runs the server; the others connect to it. The connection of either goes through Dial, so that a process
// whose server went away becomes the next one to run it by nothing else than its attempt to reconnect.
type embedded struct {
	dir      string
	log      *slog.Logger
	lock     *flock.Flock
	onBroken func(*DiskError) // called once
	told     sync.Once

	mu     sync.Mutex
	server *server.Server // nil while another process runs it
	token  string         // of the server that was dialed last
	broken error          // why the server could not be started at the last attempt
	closed bool
}

func newEmbedded(dir string, log *slog.Logger, onBroken func(*DiskError)) *embedded {
	return &embedded{
		dir:      dir,
		log:      log,
		onBroken: onBroken,
		lock:     flock.New(filepath.Join(dir, lockFile), flock.SetPermissions(0o600)),
	}
}

// connectEmbedded connects to the embedded server, which it starts if need be.
func (c *Conn) connectEmbedded(ctx context.Context) error {
	c.where = "the embedded server in " + shown(c.cfg.DataDir)
	if c.cfg.ReadOnly {
		if err := c.connectReadOnly(); err != nil || c.nc != nil {
			return err
		}
	}
	dir := c.cfg.DataDir
	if c.cfg.JoinOnly {
		if _, err := os.Stat(filepath.Join(dir, storeDir)); errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%w in %s", ErrNoData, shown(dir))
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		if fault := diskFault(err); fault != nil {
			return &DiskError{dir, fault}
		}
		return fmt.Errorf("data directory: %w", err)
	}
	e := newEmbedded(dir, c.log, func(e *DiskError) {
		c.nextLife() // what waits for an answer may get none
		if c.cfg.OnBroken != nil {
			c.cfg.OnBroken(e)
		}
	})
	c.embedded = e
	opts := append(c.connectOptions(),
		nats.SetCustomDialer(e),
		nats.TokenHandler(e.currentToken),
		nats.IgnoreDiscoveredServers())

	end := time.Now().Add(joinTimeout)
	for attempt := 1; ; attempt++ {
		// The address is for the library's eyes only: Dial knows where to go.
		nc, err := nats.Connect("nats://127.0.0.1:4222", opts...)
		if err == nil {
			c.nc = nc
			if err := c.boundMemory(); err != nil {
				return c.Fault(ctx, "join", err)
			}
			return c.useJetStream("", "")
		}
		if broken := e.whyBroken(); broken != nil {
			if saysWhere(broken) {
				return broken
			}
			return fmt.Errorf("start %s: %w", c.where, broken)
		}
		if attempt >= minAttempts && time.Now().After(end) || !clock.Pause(ctx, attemptPause) {
			return c.Fault(ctx, "join", err)
		}
	}
}

// shown makes a relative directory look like one.
func shown(dir string) string {
	if filepath.IsAbs(dir) || strings.HasPrefix(dir, ".") {
		return dir
	}
	return "." + string(filepath.Separator) + dir
}

// Dial gives a connection to the embedded server, whichever process runs it; and when none does, this one starts it.
// The lock is tried before the file is read: a file left behind by a process that was killed names a port that may
// be anyone's by now.
func (e *embedded) Dial(_, _ string) (net.Conn, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, net.ErrClosed
	}
	if e.server != nil {
		return e.server.InProcessConn()
	}
	if _, ok := errors.AsType[*DamagedError](e.broken); ok { // it is read once, not at each attempt
		return nil, e.broken
	}
	got, err := e.lock.TryLock()
	if err != nil {
		e.broken = e.brokenBy(fmt.Errorf("lock: %w", err))
		return nil, e.broken
	}
	if !got {
		return e.join()
	}
	Failpoint("embedded-locked")
	if err := e.start(); err != nil {
		err = e.brokenBy(err)
		if e.token != "" && (e.broken == nil || e.broken.Error() != err.Error()) {
			// Open has returned long ago, so nobody is there to be told, and this comes again with every attempt.
			e.log.Error("embedded server cannot be taken over", "dir", e.dir, "error", err)
		}
		e.broken = err
		return nil, errors.Join(err, e.lock.Unlock())
	}
	e.broken = nil
	return e.server.InProcessConn()
}

// brokenBy tells whoever is to know when err is the disk's, and returns it as that then.
func (e *embedded) brokenBy(err error) error {
	fault := diskFault(err)
	if fault == nil {
		return err
	}
	disk := &DiskError{e.dir, fault}
	e.told.Do(func() { e.onBroken(disk) })
	return disk
}

func (e *embedded) currentToken() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.token
}

func (e *embedded) whyBroken() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.broken
}

func (e *embedded) running() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.server != nil
}

// An address is what the server file holds.
type address struct {
	Version int    `json:"v"`
	URL     string `json:"url"`
	Token   string `json:"token"`
}

func (e *embedded) join() (net.Conn, error) {
	b, err := os.ReadFile(filepath.Join(e.dir, serverFile))
	if err != nil {
		return nil, errNoServer
	}
	var a address
	// No cause in either error: it could repeat what the file holds.
	if json.Unmarshal(b, &a) != nil {
		return nil, errNoServer
	}
	u, err := url.Parse(a.URL)
	if err != nil {
		return nil, errNoServer
	}
	conn, err := net.DialTimeout("tcp", u.Host, dialTimeout)
	if err != nil {
		return nil, errNoServer
	}
	e.token = a.Token
	return conn, nil
}

// start runs the server. The caller holds the lock of the directory.
func (e *embedded) start() error {
	file := filepath.Join(e.dir, serverFile)
	if err := removeFile(file); err != nil {
		return err
	}
	if err := e.checkStore(); err != nil {
		return err
	}
	token, err := newToken()
	if err != nil {
		return err
	}
	s, err := server.NewServer(&server.Options{
		ServerName:             "groupferry",
		Host:                   "127.0.0.1",
		Port:                   server.RANDOM_PORT,
		Authorization:          token,
		JetStream:              true,
		StoreDir:               e.dir,
		SyncAlways:             true,
		JetStreamMaxStore:      maxStore,
		DisableJetStreamBanner: true,
		NoSigs:                 true,
	})
	if err != nil {
		return err
	}
	log := &serverLog{log: e.log, onError: func(err error) { e.brokenBy(err) }}
	s.SetLoggerV2(log, false, false, false)
	s.Start()
	stop := func(err error) error {
		s.Shutdown()
		s.WaitForShutdown()
		return err
	}
	if err := log.fatal(); err != nil {
		return stop(err)
	}
	if !ready(s) {
		return stop(fmt.Errorf("the server is not ready after %s", minAttempts*readyTimeout))
	}
	if err := e.checkLoaded(s); err != nil {
		return stop(err)
	}
	b, err := json.Marshal(address{Version: 1, URL: s.ClientURL(), Token: token})
	if err != nil {
		return stop(err)
	}
	if err := writeFile(file, b, false); err != nil {
		return stop(err)
	}
	Failpoint("embedded-started")
	e.server, e.token = s, token
	e.log.Debug("embedded server is up", "dir", e.dir)
	return nil
}

func ready(s *server.Server) bool {
	for range minAttempts {
		if s.ReadyForConnections(readyTimeout) && s.JetStreamEnabled() {
			return true
		}
	}
	return false
}

// newToken makes 256 random bits.
func newToken() (string, error) {
	var b [32]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	return hex.EncodeToString(b[:]), nil
}

// writeFile puts a file in place as a whole, readable by its owner alone. With sync its content is on the disk by then.
func writeFile(name string, b []byte, sync bool) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(b); err != nil {
		f.Close()
		return err
	}
	if sync {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

// syncDir has the names in a directory written to the disk. Not every system can.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); diskFault(err) != nil {
		return err
	}
	return nil
}

func removeFile(name string) error {
	if err := os.Remove(name); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// close stops the server if this process runs it. The file goes first, so that nobody joins a server that leaves, and
// the lock last, so that nobody starts one beside it.
func (e *embedded) close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	var err error
	if e.server != nil {
		err = removeFile(filepath.Join(e.dir, serverFile))
		e.server.Shutdown()
		e.server.WaitForShutdown()
		e.server = nil
		e.sealStore()
	}
	return errors.Join(err, e.lock.Close())
}
