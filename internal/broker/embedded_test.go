package broker

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

func TestSecondProcessJoins(t *testing.T) {
	dir := t.TempDir()
	owner := open(t, Config{DataDir: dir})
	guest := open(t, Config{DataDir: dir, JoinOnly: true})
	if !owner.Embedded() || guest.Embedded() {
		t.Fatalf("got owner %t, guest %t running the server; want true, false", owner.Embedded(), guest.Embedded())
	}
	ensure(t, owner, "s")
	publish(t, owner, "s.a", "x")
	if m, err := guest.LastMsg(t.Context(), "s", "s.a"); err != nil || string(m.Data) != "x" {
		t.Errorf("got %+v, %v; want x", m, err)
	}
	if got, want := guest.Where(), "the embedded server in "+dir; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestNextOpenAfterClose(t *testing.T) {
	dir := t.TempDir()
	c := open(t, Config{DataDir: dir})
	ensure(t, c, "s")
	publish(t, c, "s.a", "x")
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, serverFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after close: got %v for %s, want it gone", err, serverFile)
	}
	if _, err := c.LastMsg(t.Context(), "s", "s.a"); !errors.Is(err, ErrUnreachable) {
		t.Errorf("after close: got %v, want %v", err, ErrUnreachable)
	}
	next := open(t, Config{DataDir: dir, JoinOnly: true})
	if !next.Embedded() {
		t.Error("the next one does not run the server")
	}
	if m, err := next.LastMsg(t.Context(), "s", "s.a"); err != nil || string(m.Data) != "x" {
		t.Errorf("got %+v, %v; want x", m, err)
	}
}

// TestTakeOver closes the connection that runs the server while guests write through it.
func TestTakeOver(t *testing.T) {
	dir := t.TempDir()
	owner := open(t, Config{DataDir: dir})
	ensure(t, owner, "s")
	guests := []*Conn{open(t, Config{DataDir: dir}), open(t, Config{DataDir: dir})}
	const n = 200
	var writers sync.WaitGroup
	half := make(chan struct{}, len(guests))
	for i, guest := range guests {
		writers.Go(func() {
			for k := range n {
				if k == n/2 {
					half <- struct{}{}
				}
				publish(t, guest, fmt.Sprintf("s.%d", i), fmt.Sprint(k)) // again if it is not sure
			}
		})
	}
	<-half
	if err := owner.Close(); err != nil {
		t.Error(err)
	}
	writers.Wait()
	if a, b := guests[0].Embedded(), guests[1].Embedded(); a == b {
		t.Errorf("got guests %t, %t running the server; want one of them", a, b)
	}
	third := open(t, Config{DataDir: dir})
	state, err := third.StreamState(t.Context(), "s", "s.*")
	if err != nil {
		t.Fatal(err)
	}
	for i := range guests {
		if got := state.Subjects[fmt.Sprintf("s.%d", i)]; got < n {
			t.Errorf("got %d messages of guest %d, want %d", got, i, n)
		}
	}
}

// childEnv has the directory in which this binary runs a server until it is killed, instead of the tests.
const childEnv = "BROKER_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		c, err := Open(context.Background(), Config{DataDir: dir})
		if err == nil {
			_, err = c.EnsureStream(context.Background(), testStream("s"))
		}
		if err == nil {
			_, err = c.Lease(context.Background(), LeaderLease)
		}
		fmt.Println("open:", err)
		select {}
	}
	os.Exit(m.Run())
}

// TestTakeOverAfterKill kills the process that runs the server while a guest writes.
func TestTakeOverAfterKill(t *testing.T) {
	dir := t.TempDir()
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), childEnv+"="+dir)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "open: <nil>\n" {
		t.Fatalf("the child says %q, %v", line, err)
	}
	guest := open(t, Config{DataDir: dir})
	if guest.Embedded() {
		t.Fatal("the child does not run the server")
	}
	const n = 100
	for i := range n {
		if i == n/2 {
			if err := child.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = child.Wait() // it was killed
		}
		publish(t, guest, fmt.Sprintf("s.%d", i), "x")
	}
	if !guest.Embedded() {
		t.Error("the guest does not run the server")
	}
	state, err := guest.StreamState(t.Context(), "s", "s.*")
	if err != nil || len(state.Subjects) != n {
		t.Errorf("got %d subjects, %v; want %d", len(state.Subjects), err, n)
	}
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
		if c := open(t, Config{DataDir: dir}); !c.Embedded() {
			t.Errorf("%q: the server was not started", content)
		}
	}
}

func newTestEmbedded(dir string) *embedded {
	return newEmbedded(dir, slog.New(slog.DiscardHandler), func(*DiskError) {})
}

func TestLockedButNoResponse(t *testing.T) {
	t.Parallel() // it waits for as long as Open does
	dir := t.TempDir()
	e := newTestEmbedded(dir)
	if ok, err := e.lock.TryLock(); !ok || err != nil {
		t.Fatal(ok, err)
	}
	defer e.lock.Close()
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

// TestDiskError has the server's own log say what the disk said, and a directory that takes no file.
func TestDiskError(t *testing.T) {
	var told []*DiskError
	e := newEmbedded("data", slog.New(slog.DiscardHandler), func(d *DiskError) { told = append(told, d) })
	log := &serverLog{log: e.log, onError: func(err error) { e.brokenBy(err) }}
	log.Warnf("no error %d", 1)
	log.Errorf("write: %v", errors.New("of another kind"))
	if len(told) != 0 {
		t.Fatalf("got %v, want nothing told yet", told)
	}
	for range 2 {
		log.Errorf("write: %v", &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC})
	}
	if len(told) != 1 || !errors.Is(told[0], syscall.ENOSPC) || !strings.Contains(told[0].Error(), "."+string(filepath.Separator)+"data") {
		t.Errorf("got %v, want a full disk told once, and where", told)
	}
	if Unreachable(told[0]) {
		t.Error("it is taken for a matter of reach")
	}
}

func TestDirThatCannotBeWritten(t *testing.T) {
	if runtime.GOOS == "windows" || os.Getuid() == 0 {
		t.Skip("permissions do not hold here")
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	broken := 0
	_, err := Open(t.Context(), Config{DataDir: dir, OnBroken: func(*DiskError) { broken++ }})
	if _, ok := errors.AsType[*DiskError](err); !ok || broken != 1 {
		t.Errorf("got %v, told %d times; want a disk error, told once", err, broken)
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
	c := open(t, Config{DataDir: dir, JoinOnly: true})
	if _, err = c.EnsureStream(t.Context(), testStream("s")); !errors.Is(err, ErrNoData) {
		t.Errorf("no such stream: got %v, want %v", err, ErrNoData)
	}
	if _, err = c.EnsureBucket(t.Context(), "control", ""); !errors.Is(err, ErrNoData) {
		t.Errorf("no such bucket: got %v, want %v", err, ErrNoData)
	}
	if _, err := c.JetStream().Stream(t.Context(), "s"); err == nil {
		t.Error("the stream was created")
	}
	if _, err = c.Lease(t.Context(), LeaderLease); err != nil { // which a worker that joins needs
		t.Errorf("lease: %v", err)
	}
}

func TestPermissionsAndToken(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	open(t, Config{DataDir: dir})
	a := readAddress(t, dir)
	if runtime.GOOS != "windows" {
		for name, want := range map[string]fs.FileMode{
			dir: 0o700, filepath.Join(dir, serverFile): 0o600, filepath.Join(dir, lockFile): 0o600, filepath.Join(dir, listFile): 0o600,
		} {
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

func TestTokenIsInNoLog(t *testing.T) {
	dir := t.TempDir()
	var log lockedBuffer
	owner := open(t, Config{DataDir: dir, Log: debugLog(&log)})
	first := readAddress(t, dir).Token
	guest := open(t, Config{DataDir: dir, Log: debugLog(&log)})
	for _, c := range []*Conn{owner, guest} {
		fmt.Fprintf(&log, "%v %+v %#v %s %d\n", c, c, c, c, c)
		fmt.Fprintf(&log, "%v %+v %#v %s %d\n", c.cfg, c.cfg, c.cfg, c.cfg, c.cfg)
	}
	if err := owner.Close(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the guest runs the server", guest.Embedded)
	ensure(t, guest, "s")
	second := readAddress(t, dir).Token
	if first == second {
		t.Error("the token was used twice")
	}
	waitFor(t, "what the log should hold", func() bool {
		return strings.Contains(log.String(), "nats-server: ") && strings.Contains(log.String(), "NATS is in reach again")
	})
	for _, token := range []string{first, second} {
		if strings.Contains(log.String(), token) {
			t.Error("the token is in the log")
		}
	}
}

func TestCloseWithoutResponse(t *testing.T) {
	dir := t.TempDir()
	owner := open(t, Config{DataDir: dir})
	guest := open(t, Config{DataDir: dir})
	// Somebody takes the lock when the owner leaves, most likely before the guest does, and starts no server.
	thief := newTestEmbedded(dir)
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
	_, err := guest.LastMsg(t.Context(), "s", "s.a")
	if !errors.Is(err, ErrUnreachable) {
		t.Errorf("after close: got %v, want %v", err, ErrUnreachable)
	}
}

// TestOpenDuringHandOver opens connections while the process that runs the server leaves it.
func TestOpenDuringHandOver(t *testing.T) {
	dir := t.TempDir()
	open(t, Config{DataDir: dir}).Close()
	for round := range 8 {
		owner := open(t, Config{DataDir: dir})
		var guests sync.WaitGroup
		for range 3 {
			guests.Go(func() {
				c, err := Open(t.Context(), Config{DataDir: dir})
				if err != nil {
					t.Errorf("round %d: %v", round, err)
					return
				}
				defer c.Close()
				if _, err := c.Lease(t.Context(), LeaderLease); err != nil {
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
