package queue

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"groupferry/internal/job"
)

func TestSecondProcessJoins(t *testing.T) {
	dir := t.TempDir()
	owner := open(t, Config{DataDir: dir})
	guest := open(t, Config{DataDir: dir, JoinOnly: true})
	if !owner.Embedded() || guest.Embedded() {
		t.Fatalf("got owner %t, guest %t running the server; want true, false", owner.Embedded(), guest.Embedded())
	}
	enqueued(t, owner, "i", 10)
	checkStream(t, guest, "i", 10)
	if got, want := guest.Where(), "the embedded server in "+dir; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestNextOpenAfterClose(t *testing.T) {
	dir := t.TempDir()
	q := open(t, Config{DataDir: dir})
	enqueued(t, q, "i", 10)
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, serverFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after close: got %v for %s, want it gone", err, serverFile)
	}
	next := open(t, Config{DataDir: dir, JoinOnly: true})
	if !next.Embedded() {
		t.Error("the next one does not run the server")
	}
	checkStream(t, next, "i", 10)
}

// TestTakeOver closes the queue that runs the server while another one enqueues through it.
func TestTakeOver(t *testing.T) {
	dir := t.TempDir()
	owner := open(t, Config{DataDir: dir})
	guest := open(t, Config{DataDir: dir})
	begin(t, owner, "i")
	const n = 4000
	i := 0
	jobs := func(yield func(job.Job) bool) {
		for j := range jobsOf("i", n) {
			if i++; i == 1500 {
				if err := owner.Close(); err != nil {
					t.Error(err)
				}
			}
			if !yield(j) {
				return
			}
		}
	}
	if _, err := guest.Enqueue(t.Context(), "i", jobs, nil); err != nil {
		t.Fatal(err)
	}
	if !guest.Embedded() {
		t.Error("the guest does not run the server")
	}
	checkStream(t, guest, "i", n)
	third := open(t, Config{DataDir: dir})
	checkStream(t, third, "i", n)
}

// TestStaleServerFile is what a process that was killed leaves behind.
func TestStaleServerFile(t *testing.T) {
	for _, content := range []string{
		`{"v":1,"url":"nats://127.0.0.1:1","token":"old"}`, `{"v":1,"url":"%zz","token":"old"}`, "", "no JSON",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, serverFile), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if q := open(t, Config{DataDir: dir}); !q.Embedded() {
			t.Errorf("%q: the server was not started", content)
		}
	}
}

func TestLockedButNobodyAnswers(t *testing.T) {
	t.Parallel() // it waits for as long as Open does
	dir := t.TempDir()
	h := newHome(dir, slog.New(slog.DiscardHandler), func(*DiskError) {})
	if ok, err := h.lock.TryLock(); !ok || err != nil {
		t.Fatal(ok, err)
	}
	defer h.lock.Close()
	_, err := Open(t.Context(), Config{DataDir: dir})
	if !errors.Is(err, ErrUnreachable) {
		t.Errorf("got %v, want %v", err, ErrUnreachable)
	}
}

func TestDataDirThatCannotBe(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Config{DataDir: filepath.Join(file, "below")}); err == nil {
		t.Error("got no error")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, storeDir), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), Config{DataDir: dir})
	if err == nil || !strings.Contains(err.Error(), dir) || errors.Is(err, ErrUnreachable) {
		t.Errorf("a file in place of the store: got %v, want an error that names it, and not to try again", err)
	}
}

func TestJoinOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	_, err := Open(t.Context(), Config{DataDir: dir, JoinOnly: true})
	if !errors.Is(err, ErrNoData) {
		t.Errorf("no directory: got %v, want %v", err, ErrNoData)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the directory was created")
	}
	open(t, Config{DataDir: dir})
	_, err = Open(t.Context(), Config{DataDir: dir, JoinOnly: true, Namespace: "other"})
	if !errors.Is(err, ErrNoData) {
		t.Errorf("no such namespace: got %v, want %v", err, ErrNoData)
	}
}

func TestPermissionsAndToken(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	open(t, Config{DataDir: dir})
	a := readAddress(t, dir)
	if runtime.GOOS != "windows" {
		for name, want := range map[string]fs.FileMode{dir: 0o700, filepath.Join(dir, serverFile): 0o600} {
			info, err := os.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			if got := info.Mode().Perm(); got != want {
				t.Errorf("%s: got mode %o, want %o", name, got, want)
			}
		}
	}
	if len(a.Token) != 64 {
		t.Errorf("got a token of %d hex digits, want 64", len(a.Token))
	}
	if !strings.HasPrefix(a.URL, "nats://127.0.0.1:") {
		t.Errorf("got %s, want a loopback address", a.URL)
	}
	for _, token := range []string{"", "wrong"} {
		nc, err := nats.Connect(a.URL, nats.Token(token))
		if !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("token %q: got %v, want %v", token, err, nats.ErrAuthorization)
		}
		if nc != nil {
			nc.Close()
		}
	}
}

func readAddress(t *testing.T, dir string) address {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, serverFile))
	if err != nil {
		t.Fatal(err)
	}
	var a address
	if err := json.Unmarshal(b, &a); err != nil {
		t.Fatal(err)
	}
	return a
}

// A lockedBuffer takes logs of several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestTokenIsInNoLog(t *testing.T) {
	dir := t.TempDir()
	var log lockedBuffer
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	owner := open(t, Config{DataDir: dir, Log: logger})
	first := readAddress(t, dir).Token
	guest := open(t, Config{DataDir: dir, Log: logger})
	for _, q := range []*Queue{owner, guest} {
		fmt.Fprintf(&log, "%v %+v %#v %s %d\n", q, q, q, q, q)
		fmt.Fprintf(&log, "%v %+v %#v %s %d\n", q.cfg, q.cfg, q.cfg, q.cfg, q.cfg)
	}
	if err := owner.Close(); err != nil {
		t.Fatal(err)
	}
	takenOver(t, guest)
	begin(t, guest, "i")
	second := readAddress(t, dir).Token
	if first == second {
		t.Error("the token was used twice")
	}
	text := log.String()
	if !strings.Contains(text, "nats-server: ") || !strings.Contains(text, "connection to NATS is back") {
		t.Fatalf("the log does not hold what it should: %s", text)
	}
	for _, token := range []string{first, second} {
		if strings.Contains(text, token) {
			t.Error("the token is in the log")
		}
	}
}

// TestRequestOnALineThatBreaks has a request on its way when the connection goes: it ends then, not when its time is up.
func TestRequestOnALineThatBreaks(t *testing.T) {
	q := open(t, Config{})
	c, cancel := q.within(t.Context())
	defer cancel()
	q.nextLine()
	<-c.Done()
	if err := q.fault(t.Context(), "ask", c.Err()); !errors.Is(err, ErrUnreachable) || errors.Is(err, c.Err()) {
		t.Errorf("got %v, want %v and not %v", err, ErrUnreachable, c.Err())
	}
	if deadline, ok := c.Deadline(); !ok || time.Now().After(deadline) {
		t.Error("it ended by its deadline")
	}
	begin(t, q, "i") // what is asked from now on is not concerned
}

// takenOver waits until a guest runs the server. What it asks before it noticed that the owner left can fail.
func takenOver(t *testing.T, guest *Queue) {
	t.Helper()
	for !guest.Embedded() {
		if t.Context().Err() != nil {
			t.Fatal("the guest does not take over")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestCloseWhileNobodyAnswers(t *testing.T) {
	dir := t.TempDir()
	owner := open(t, Config{DataDir: dir})
	guest := open(t, Config{DataDir: dir})
	// Somebody takes the lock when the owner leaves, most likely before the guest does, and starts no server.
	thief := newHome(dir, slog.New(slog.DiscardHandler), func(*DiskError) {})
	defer thief.lock.Close()
	stolen := make(chan struct{})
	go func() {
		defer close(stolen)
		for {
			if ok, err := thief.lock.TryLock(); ok || err != nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	if err := owner.Close(); err != nil {
		t.Fatal(err)
	}
	if err := guest.Close(); err != nil {
		t.Error(err)
	}
	<-stolen
	if err := guest.Close(); err != nil {
		t.Errorf("close again: %v", err)
	}
	_, err := guest.Import(t.Context(), "i")
	if !errors.Is(err, ErrUnreachable) {
		t.Errorf("after close: got %v, want %v", err, ErrUnreachable)
	}
}

// TestStoreIsHealed takes away what a server that is killed while it makes a stream has not written yet. Without the
// mending the stream works until the server ends, and all that was in it is out of sight from then on.
func TestStoreIsHealed(t *testing.T) {
	dir := t.TempDir()
	reopen := func(q *Queue) *Queue {
		if q != nil {
			if err := q.Close(); err != nil {
				t.Fatal(err)
			}
		}
		q, err := Open(t.Context(), Config{DataDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		return q
	}
	q := reopen(nil)
	q.Close()
	sums, err := filepath.Glob(filepath.Join(dir, storeDir, "*", "streams", "*", "meta.sum"))
	if err != nil || len(sums) < 3 {
		t.Fatalf("found %d streams, %v; want three", len(sums), err)
	}
	for _, sum := range sums {
		if err := os.Remove(sum); err != nil {
			t.Fatal(err)
		}
	}
	q = reopen(nil)
	enqueued(t, q, "imp", 5)
	q = reopen(q)
	defer q.Close()
	if i, err := q.Import(t.Context(), "imp"); err != nil || i.State != Enqueued {
		t.Errorf("record: %+v, %v", i, err)
	}
	if pending, _, err := q.Pending(t.Context(), "imp"); err != nil || pending != 5 {
		t.Errorf("got %d jobs, %v; want 5", pending, err)
	}
}

// TestOpenDuringHandOver opens the queue while the process that runs the server leaves it.
func TestOpenDuringHandOver(t *testing.T) {
	dir := t.TempDir()
	open(t, Config{DataDir: dir}).Close()
	for round := range 8 {
		owner := open(t, Config{DataDir: dir})
		var guests sync.WaitGroup
		for range 3 {
			guests.Go(func() {
				q, err := Open(t.Context(), Config{DataDir: dir})
				if err != nil {
					t.Errorf("round %d: %v", round, err)
					return
				}
				defer q.Close()
				if _, err := q.Link(t.Context()); err != nil {
					t.Errorf("round %d: %v", round, err)
				}
			})
		}
		time.Sleep(rand.N(20 * time.Millisecond)) // anywhere within their Open
		if err := owner.Close(); err != nil {
			t.Error(err)
		}
		guests.Wait()
	}
}
