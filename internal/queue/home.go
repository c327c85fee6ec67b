package queue

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

const (
	lockFile   = "lock"
	serverFile = "server.json" // where the embedded server listens, and the token that it asks for
	storeDir   = "jetstream"   // the server adds this name to its StoreDir by itself

	// joinPatience is how long Open waits for a server that another process is about to start or to hand over.
	joinPatience = 5 * time.Second
	joinPause    = 50 * time.Millisecond

	// maxStore is what the embedded server may take of the disk: all of it, an exbibyte. Left to itself it takes three
	// quarters of what was free when it started, and what it says beyond that sounds like a server out of reach.
	maxStore = 1 << 60

	// readyTimeout is for a server with nothing wrong; recovery of a store happens before it counts.
	readyTimeout = 10 * time.Second
)

// errNobodyHome says that another process holds the lock of the data directory and no server answers for it.
var errNobodyHome = errors.New("another process holds the data directory, and its server does not answer")

// A DiskError says why the embedded server cannot write its data: the disk is full or broken, or must not be written
// to. What it said it has written is there. The server writes again when it is started again.
type DiskError struct {
	Dir string // the data directory
	Err error
}

func (e *DiskError) Error() string {
	return fmt.Sprintf("the embedded server in %s cannot write its data: %v", shown(e.Dir), e.Err)
}

func (e *DiskError) Unwrap() error { return e.Err }

// diskFaults are what the operating system says then.
var diskFaults = []error{
	syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EIO, syscall.EFBIG, fs.ErrPermission,
}

// diskFault finds one of them in an error, or returns nil.
func diskFault(err error) error {
	for _, fault := range diskFaults {
		if errors.Is(err, fault) {
			return fault
		}
	}
	return nil
}

// A home is the embedded server's data directory, seen from one of the processes that have it open. Whoever holds the
// lock runs the server; the others connect to it. The connection of either goes through Dial, so that a process whose
// server went away becomes the next one to run it by nothing else than its attempt to reconnect.
type home struct {
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

func newHome(dir string, log *slog.Logger, onBroken func(*DiskError)) *home {
	return &home{
		dir:      dir,
		log:      log,
		onBroken: onBroken,
		lock:     flock.New(filepath.Join(dir, lockFile), flock.SetPermissions(0o600)),
	}
}

// connectHome connects to the embedded server, which it starts if need be.
func (q *Queue) connectHome(ctx context.Context) error {
	dir := q.cfg.DataDir
	q.where = "the embedded server in " + shown(dir)
	if q.cfg.JoinOnly {
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
	h := newHome(dir, q.log, func(e *DiskError) {
		q.nextLine() // what waits for an answer may get none
		if q.cfg.OnBroken != nil {
			q.cfg.OnBroken(e)
		}
	})
	q.home = h
	opts := append(q.connectOptions(),
		nats.SetCustomDialer(h),
		nats.TokenHandler(h.currentToken),
		nats.IgnoreDiscoveredServers())

	deadline := time.Now().Add(joinPatience)
	for {
		// The address is for the library's eyes only: Dial knows where to go.
		nc, err := nats.Connect("nats://127.0.0.1:4222", opts...)
		if err == nil {
			q.nc = nc
			return q.useJetStream("", "")
		}
		if broken := h.whyBroken(); broken != nil {
			if _, ok := errors.AsType[*DiskError](broken); ok { // which says where
				return broken
			}
			return fmt.Errorf("start %s: %w", q.where, broken)
		}
		if !time.Now().Before(deadline) || !pause(ctx, joinPause) {
			return q.fault(ctx, "join", err)
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
func (h *home) Dial(_, _ string) (net.Conn, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, net.ErrClosed
	}
	if h.server != nil {
		return h.server.InProcessConn()
	}
	got, err := h.lock.TryLock()
	if err != nil {
		h.broken = h.brokenBy(fmt.Errorf("lock: %w", err))
		return nil, h.broken
	}
	if !got {
		return h.join()
	}
	failpoint("home-locked")
	if err := h.start(); err != nil {
		err = h.brokenBy(err)
		if h.token != "" && (h.broken == nil || h.broken.Error() != err.Error()) {
			// Open is long over, so nobody is there to be told, and this comes again with every attempt.
			h.log.Error("embedded server cannot be taken over", "dir", h.dir, "error", err)
		}
		h.broken = err
		return nil, errors.Join(err, h.lock.Unlock())
	}
	h.broken = nil
	return h.server.InProcessConn()
}

// brokenBy tells whoever is to know when err is the disk's, and returns it as that then.
func (h *home) brokenBy(err error) error {
	fault := diskFault(err)
	if fault == nil {
		return err
	}
	e := &DiskError{h.dir, fault}
	h.told.Do(func() { h.onBroken(e) })
	return e
}

func (h *home) currentToken() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.token
}

func (h *home) whyBroken() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.broken
}

func (h *home) running() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.server != nil
}

// An address is what the server file holds.
type address struct {
	Version int    `json:"v"`
	URL     string `json:"url"`
	Token   string `json:"token"`
}

func (h *home) join() (net.Conn, error) {
	b, err := os.ReadFile(filepath.Join(h.dir, serverFile))
	if err != nil {
		return nil, errNobodyHome
	}
	var a address
	// No cause in either error: it could repeat what the file holds.
	if json.Unmarshal(b, &a) != nil {
		return nil, errNobodyHome
	}
	u, err := url.Parse(a.URL)
	if err != nil {
		return nil, errNobodyHome
	}
	conn, err := net.DialTimeout("tcp", u.Host, dialTimeout)
	if err != nil {
		return nil, errNobodyHome
	}
	h.token = a.Token
	return conn, nil
}

// start runs the server. The caller holds the lock of the directory.
func (h *home) start() error {
	file := filepath.Join(h.dir, serverFile)
	if err := removeFile(file); err != nil {
		return err
	}
	if err := healStore(filepath.Join(h.dir, storeDir)); err != nil {
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
		StoreDir:               h.dir,
		SyncAlways:             true,
		JetStreamMaxStore:      maxStore,
		DisableJetStreamBanner: true,
		NoSigs:                 true,
	})
	if err != nil {
		return err
	}
	log := &serverLog{log: h.log, heard: func(err error) { h.brokenBy(err) }}
	s.SetLoggerV2(log, false, false, false)
	s.Start()
	stop := func(err error) error {
		s.Shutdown()
		s.WaitForShutdown()
		return err
	}
	if err := log.death(); err != nil {
		return stop(err)
	}
	if !s.ReadyForConnections(readyTimeout) || !s.JetStreamEnabled() {
		return stop(fmt.Errorf("the server is not ready after %s", readyTimeout))
	}
	b, err := json.Marshal(address{Version: 1, URL: s.ClientURL(), Token: token})
	if err != nil {
		return stop(err)
	}
	if err := writeFile(file, b); err != nil {
		return stop(err)
	}
	failpoint("home-started")
	h.server, h.token = s, token
	h.log.Debug("embedded server is up", "dir", h.dir)
	return nil
}

// healStore mends what a kill -9 can leave of a stream or a consumer that was just being made: its description
// (meta.inf) without the checksum of it (meta.sum). The server leaves such a one out at every start, and when it is made
// again over the same directory writes no checksum either, for the description is there. Without the description both
// are written anew, and the messages beside them are kept.
func healStore(dir string) error {
	for _, pattern := range []string{"*/streams/*/meta.inf", "*/streams/*/obs/*/meta.inf"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return err
		}
		for _, meta := range found {
			_, err := os.Stat(filepath.Join(filepath.Dir(meta), "meta.sum"))
			if errors.Is(err, os.ErrNotExist) {
				failpoint("heal-before")
				err = os.Remove(meta)
				failpoint("heal-after")
			}
			if err != nil {
				return fmt.Errorf("mend the store: %w", err)
			}
		}
	}
	return nil
}

// newToken makes 256 random bits.
func newToken() (string, error) {
	var b [32]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	return hex.EncodeToString(b[:]), nil
}

// writeFile puts a file in place as a whole, readable by its owner alone.
func writeFile(name string, b []byte) (err error) {
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
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

func removeFile(name string) error {
	if err := os.Remove(name); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// close stops the server if this process runs it. The file goes first, so that nobody joins a server that leaves, and
// the lock last, so that nobody starts one beside it.
func (h *home) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	h.closed = true
	var err error
	if h.server != nil {
		err = removeFile(filepath.Join(h.dir, serverFile))
		h.server.Shutdown()
		h.server.WaitForShutdown()
		h.server = nil
	}
	return errors.Join(err, h.lock.Close())
}

// A serverLog carries what the embedded server says to our log: warnings as what they are, all else as detail.
type serverLog struct {
	log   *slog.Logger
	heard func(error) // is told each error that the server warns of

	mu   sync.Mutex
	last error // words of a server that could not go on
}

func (l *serverLog) Noticef(format string, v ...any) { l.say(slog.LevelDebug, format, v) }
func (l *serverLog) Warnf(format string, v ...any)   { l.warn(slog.LevelWarn, format, v) }
func (l *serverLog) Errorf(format string, v ...any)  { l.warn(slog.LevelError, format, v) }
func (l *serverLog) Debugf(format string, v ...any)  { l.say(slog.LevelDebug, format, v) }
func (l *serverLog) Tracef(format string, v ...any)  { l.say(slog.LevelDebug, format, v) }

// Fatalf is the server's way to say why it does not start. It expects to be ended here, which is not ours to do.
func (l *serverLog) Fatalf(format string, v ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last == nil {
		l.last = fmt.Errorf("nats-server: "+format, v...)
	}
}

func (l *serverLog) death() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// warn also listens: an error of the disk comes out of the server in its log, and nowhere else.
func (l *serverLog) warn(level slog.Level, format string, v []any) {
	l.say(level, format, v)
	for _, arg := range v {
		if err, ok := arg.(error); ok {
			l.heard(err)
		}
	}
}

func (l *serverLog) say(level slog.Level, format string, v []any) {
	if l.log.Enabled(context.Background(), level) {
		l.log.Log(context.Background(), level, "nats-server: "+fmt.Sprintf(format, v...))
	}
}
