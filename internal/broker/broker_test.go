package broker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// open opens a connection, to an embedded server in a directory of the test unless cfg says otherwise.
func open(t testing.TB, cfg Config) *Conn {
	t.Helper()
	if cfg.embedded() && cfg.DataDir == "" {
		cfg.DataDir = t.TempDir()
	}
	c, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return c
}

// testStream is of the kind that the queue has.
func testStream(name string) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: name, Subjects: []string{name + ".>"}, Discard: jetstream.DiscardNew,
		AllowRollup: true, AllowDirect: true, AllowAtomicPublish: true,
	}
}

func ensure(t testing.TB, c *Conn, name string) {
	t.Helper()
	if _, err := c.EnsureStream(t.Context(), testStream(name)); err != nil {
		t.Fatal(err)
	}
}

func publish(t testing.TB, c *Conn, subject, data string) uint64 {
	t.Helper()
	var ack *jetstream.PubAck
	err := c.Ask(t.Context(), func(ctx context.Context) (err error) {
		ack, err = c.JetStream().Publish(ctx, subject, []byte(data))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return ack.Sequence
}

// waitFor polls for what other goroutines bring about.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still waiting for: %s", what)
		}
	}
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

func debugLog(w *lockedBuffer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func TestConfig(t *testing.T) {
	for _, name := range []string{"a.b", "a b", "é", "*", "a/b", strings.Repeat("x", 33)} {
		if _, err := Open(t.Context(), Config{DataDir: t.TempDir(), Namespace: name}); err == nil {
			t.Errorf("namespace %q: got no error", name)
		}
	}
	for _, n := range []int{-1, 6} {
		if _, err := Open(t.Context(), Config{DataDir: t.TempDir(), Replicas: n}); err == nil {
			t.Errorf("%d replicas: got no error", n)
		}
	}
	c := open(t, Config{})
	if c.Namespace() != "groupferry" || c.Replicas() != 1 || c.APIPrefix() != "$JS.API." || c.JoinOnly() || c.Log() == nil {
		t.Errorf("got namespace %q, %d replicas, prefix %q, join only %t", c.Namespace(), c.Replicas(), c.APIPrefix(), c.JoinOnly())
	}
	if got := c.Subject("results", "i", "done"); got != "groupferry.results.i.done" {
		t.Errorf("got subject %q", got)
	}
	if !c.Connected() || c.MaxPayload() != 1<<20 {
		t.Errorf("got connected %t, %d bytes; want true and a MiB", c.Connected(), c.MaxPayload())
	}
}

// fake returns a Conn without a server, for what Ask does by itself.
func fake(e *embedded) *Conn {
	c := &Conn{log: slog.New(slog.DiscardHandler), where: "here", embedded: e}
	c.nextLife()
	return c
}

func TestAsk(t *testing.T) {
	leaderless := &jetstream.APIError{Code: 503, ErrorCode: 10008}
	full := &jetstream.APIError{Code: 503, ErrorCode: CodeStoreFailed}
	refused := &jetstream.APIError{Code: 400, ErrorCode: 10071}
	slow := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	quick := func(err error) func(context.Context) error { return func(context.Context) error { return err } }
	frozen := func(ctx context.Context) error { time.Sleep(40 * time.Second); return ctx.Err() }
	for _, test := range []struct {
		name     string
		embedded bool
		do       []func(context.Context) error // the last one again and again
		want     error
		attempts int // 0: more than 50
		took     time.Duration
	}{
		{"done", false, []func(context.Context) error{quick(nil)}, nil, 1, 0},
		{"refused", true, []func(context.Context) error{quick(refused)}, refused, 1, 0},
		{"disk full", true, []func(context.Context) error{quick(full)}, full, 1, 0},
		{"no leader", false, []func(context.Context) error{quick(leaderless)}, leaderless, 0, 5050 * time.Millisecond},
		{"no stream responds", false, []func(context.Context) error{quick(jetstream.ErrNoStreamResponse)}, jetstream.ErrNoStreamResponse, 0, 5050 * time.Millisecond},
		{"a leader again", false, []func(context.Context) error{quick(leaderless), quick(nil)}, nil, 2, 50 * time.Millisecond},
		{"no response", false, []func(context.Context) error{slow}, context.DeadlineExceeded, 1, 5 * time.Second},
		{"no response, embedded", true, []func(context.Context) error{slow}, context.DeadlineExceeded, 3, 15100 * time.Millisecond},
		{"handed over", true, []func(context.Context) error{quick(nats.ErrConnectionReconnecting), quick(nil)}, nil, 2, 50 * time.Millisecond},
		{"frozen", false, []func(context.Context) error{frozen, quick(nil)}, nil, 2, 40050 * time.Millisecond},
		{"frozen, embedded", true, []func(context.Context) error{frozen, frozen, quick(nil)}, nil, 3, 80100 * time.Millisecond},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := fake(nil)
				if test.embedded {
					c.embedded = &embedded{}
				}
				attempts, start := 0, time.Now()
				err := c.Ask(t.Context(), func(ctx context.Context) error {
					attempts++
					return test.do[min(attempts, len(test.do))-1](ctx)
				})
				if !errors.Is(err, test.want) {
					t.Errorf("got %v, want %v", err, test.want)
				}
				if attempts != test.attempts && (test.attempts != 0 || attempts < 50) {
					t.Errorf("got %d attempts, want %d", attempts, test.attempts)
				}
				if took := time.Since(start); took != test.took {
					t.Errorf("it took %v, want %v", took, test.took)
				}
			})
		})
	}
}

func TestAskEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := fake(&embedded{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		err := c.Ask(ctx, func(context.Context) error { return nats.ErrTimeout })
		if took := time.Since(start); took != time.Second {
			t.Errorf("it took %v, want 1s", took)
		}
		if err := c.Fault(ctx, "ask", err); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnreachable) {
			t.Errorf("got %v, want the end of the context", err)
		}
	})
}

// TestRequestOnAConnectionThatBreaks has a request on its way when the connection goes: it ends then, not when its time
// is up.
func TestRequestOnAConnectionThatBreaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := fake(nil)
		bounded, cancel := c.Within(t.Context(), time.Hour)
		defer cancel()
		c.nextLife()
		<-bounded.Done()
		if err := c.Fault(t.Context(), "ask", bounded.Err()); !errors.Is(err, ErrUnreachable) || errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want %v and no end of a context", err, ErrUnreachable)
		}
		again, cancelAgain := c.Within(t.Context(), time.Hour)
		defer cancelAgain()
		synctest.Wait()
		if again.Err() != nil {
			t.Error("what is asked on the next connection ended too")
		}
	})
}

// Open ends with its context, also while it waits for a server that says nothing.
func TestOpenEndsWithItsContext(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		if conn, err := silent.Accept(); err == nil { // now it waits
			defer conn.Close()
			cancel()
			<-t.Context().Done()
		}
	}()
	if _, err := Open(ctx, Config{URL: "nats://" + silent.Addr().String()}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want it cancelled", err)
	}
}

func TestUnreachable(t *testing.T) {
	const code, text = 10008, "JetStream system temporarily unavailable"
	for _, err := range []error{ // either of the library's types
		&jetstream.APIError{Code: 503, ErrorCode: code, Description: text},
		&nats.APIError{Code: 503, ErrorCode: code, Description: text},
		context.DeadlineExceeded, nats.ErrNoServers, errNoServer, &net.OpError{Op: "dial", Err: errors.New("x")},
	} {
		if err := fmt.Errorf("watch: %w", err); !Unreachable(err) || WithoutJetStream(err) {
			t.Errorf("%T: got it taken for reachable: %t, for JetStream that is not there: %t",
				err, !Unreachable(err), WithoutJetStream(err))
		}
	}
	for _, err := range []error{
		nil, errors.New("x"), &jetstream.APIError{Code: 503, ErrorCode: CodeStoreFailed}, ErrNotFound,
		fmt.Errorf("%w: %w", ErrDenied, nats.ErrTimeout), &DiskError{}, &DamagedError{},
	} {
		if Unreachable(err) {
			t.Errorf("%v: got it taken for out of reach", err)
		}
	}
	for _, err := range []error{jetstream.ErrJetStreamNotEnabledForAccount, nats.ErrJetStreamNotEnabled} {
		if !WithoutJetStream(err) {
			t.Errorf("got %T %[1]v not taken for JetStream that is not there", err)
		}
	}
	c := fake(nil)
	once := c.Fault(t.Context(), "read", nats.ErrTimeout)
	twice := c.Fault(t.Context(), "list", once)
	if got, want := twice.Error(), "list: read: NATS is out of reach: here: nats: timeout"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if c.Fault(t.Context(), "read", nil) != nil {
		t.Error("no error became one")
	}
}

func TestTooOld(t *testing.T) {
	for version, want := range map[string]bool{
		"2.11.9": true, "1.4.0": true, "2.12.0": false, "2.12.0-RC.1": false, "2.15.2": false, "3.0.0": false, "": false, "x": false,
	} {
		if got := tooOld(version); got != want {
			t.Errorf("%s: got %t, want %t", version, got, want)
		}
	}
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"nats://host:4222":           "nats://host:4222",
		"host":                       "nats://host",
		"host:4222":                  "nats://host:4222",
		"user:pass-word-1@host:4222": "nats://host:4222",
		"pass-word-1@a, u:pass-word-1@b:2 ,tls://u:pass-word-1@c": "nats://a,nats://b:2,tls://c",
		"tls://user:pass-word-1@host:4222":                        "tls://host:4222",
		"nats://pass-word-1@a:1, nats://b:2?x=pw":                 "nats://a:1,nats://b:2",
		"nats://a:1/pass-word-1#pass-word-1":                      "nats://a:1",
		"nats://user:pass-word-1/@host":                           "",
		"user:pass-word-1/@host":                                  "",
		"a:1,nats://user:%zzpass-word-1@host":                     "",
		"nats://user:pass-word-1@":                                "",
		"a:1,":                                                    "",
		"nats://user:12,34@host":                                  "",
		"a:1,u:pass-word-1@b":                                     "",
		"":                                                        "",
	} {
		got, err := redact(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: got %q, %v; want %q", in, got, err, want)
		}
		if err != nil && strings.Contains(err.Error(), password) || strings.Contains(got, password) {
			t.Errorf("%s: the password is in %q, %v", in, got, err)
		}
	}
}

// FuzzRedact: whatever stands before the last @ of an entry is in nothing that is said.
func FuzzRedact(f *testing.F) {
	f.Add("user", "nats://", "host:1")
	f.Add("user:/?#", "", "host")
	f.Fuzz(func(t *testing.T, user, scheme, host string) {
		const secret = "Zq9Zq9Zq9"
		before := scheme + user
		if strings.Contains(host, secret) || strings.Contains(host, "@") || strings.Contains(before, ",") && strings.Contains(before, "@") {
			return
		}
		for _, list := range []string{scheme + user + ":" + secret + "@" + host, "u@a:1, " + scheme + secret + user + "@" + host} {
			got, err := redact(list)
			if strings.Contains(got, secret) || err != nil && strings.Contains(err.Error(), secret) {
				t.Errorf("%q: got %q, %v", list, got, err)
			}
		}
	})
}

func TestStandbys(t *testing.T) {
	dir := t.TempDir()
	leader := open(t, Config{DataDir: dir})
	if got, err := askAll(t.Context(), leader, time.Minute); len(got) != 0 || err != nil {
		t.Errorf("nobody stands by: got %q, %v", got, err) // and not after a minute
	}
	other := open(t, Config{DataDir: dir, Namespace: "other"})
	stops := []func(){}
	standBy := func(c *Conn, text []byte) {
		stop, err := c.Standby(func() []byte { return text })
		if err != nil {
			t.Fatal(err)
		}
		stops = append(stops, stop)
		if err := c.NATS().Flush(); err != nil {
			t.Fatal(err)
		}
	}
	standBy(other, []byte("of another namespace"))
	guests := map[string]bool{}
	for i := range 3 {
		name := fmt.Sprint("standby ", i)
		guests[name] = true
		standBy(open(t, Config{DataDir: dir, JoinOnly: true}), []byte(name))
	}
	standBy(leader, nil) // says nothing
	got, err := askAll(t.Context(), leader, 500*time.Millisecond)
	if err != nil || len(got) != len(guests) {
		t.Errorf("got %q, %v; want the responses of 3", got, err)
	}
	for _, b := range got {
		if !guests[string(b)] {
			t.Errorf("got %q, which is no response of a guest, or came twice", b)
		}
		delete(guests, string(b))
	}
	for _, stop := range stops {
		stop()
	}
	if err := other.NATS().Flush(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := askAll(ctx, leader, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("context over: got %v, want %v", err, context.Canceled)
	}
}

// TestStandbyStops stops while a response is being made: stop returns when that is done.
func TestStandbyStops(t *testing.T) {
	c := open(t, Config{})
	asked, response := make(chan struct{}), make(chan struct{})
	over := false
	stop, err := c.Standby(func() []byte {
		close(asked)
		<-response
		over = true
		return []byte("late")
	})
	if err != nil {
		t.Fatal(err)
	}
	var ask sync.WaitGroup
	ask.Go(func() {
		if got, err := askAll(t.Context(), c, 100*time.Millisecond); len(got) > 1 || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
	})
	<-asked
	var stopping sync.WaitGroup
	stopping.Go(func() {
		stop()
		if !over {
			t.Error("stop returned before the response was made")
		}
	})
	close(response)
	stopping.Wait()
	ask.Wait()
}

func TestFormatHoldsNoSecret(t *testing.T) {
	c := Config{URL: "nats://u:" + password + "@h:1", DataDir: filepath.Join("a", "b")}
	if s := fmt.Sprintf("%v %+v %#v %s %d", c, c, c, c, c); strings.Contains(s, password) || !strings.Contains(s, "external") {
		t.Errorf("got %s", s)
	}
}

// askAll asks the standbys, and returns all their responses.
func askAll(ctx context.Context, c *Conn, wait time.Duration) (responses [][]byte, err error) {
	err = c.AskStandbys(ctx, wait, func(response []byte) bool {
		responses = append(responses, response)
		return false
	})
	return responses, err
}
