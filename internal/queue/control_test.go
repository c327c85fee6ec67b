package queue

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"
)

func TestClaimApp(t *testing.T) {
	q := openQueue(t)
	if a, err := q.App(t.Context()); a != nil || err != nil {
		t.Errorf("got %v, %v", a, err)
	}
	mine := App{SDKAppID: 1400000001}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := q.ClaimApp(t.Context(), mine); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if a, err := q.App(t.Context()); err != nil || a == nil || *a != mine {
		t.Errorf("got %v, %v", a, err)
	}
	for _, other := range []App{{SDKAppID: 1400000002}, {SDKAppID: 1400000001, Simulated: true}} {
		var e *OtherAppError
		if err := q.ClaimApp(t.Context(), other); !errors.As(err, &e) || e.Want != other || e.Have != mine {
			t.Errorf("got %v, want an OtherAppError", err)
		}
	}
}

func TestHalt(t *testing.T) {
	q := openQueue(t)
	if h, err := q.Halted(t.Context()); h != nil || err != nil {
		t.Fatalf("got %+v, %v", h, err)
	}
	if was, err := q.ClearHalt(t.Context()); was != nil || err != nil {
		t.Errorf("got %+v, %v", was, err)
	}
	if err := q.SetHalt(t.Context(), Halt{State: "tired"}); err == nil {
		t.Error("no error")
	}
	first := Halt{State: Halted, Code: "70003", Reason: "UserSig expired", Remedy: "make a new one", By: "host"}
	if err := q.SetHalt(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if err := q.SetHalt(t.Context(), Halt{State: Paused}); err != nil { // the first one stays
		t.Fatal(err)
	}
	h, err := q.Halted(t.Context())
	if err != nil || h == nil || h.Code != "70003" || h.Remedy != first.Remedy || h.Since.IsZero() {
		t.Errorf("got %+v, %v", h, err)
	}
	if was, err := q.ClearHalt(t.Context()); err != nil || was == nil || was.Code != "70003" {
		t.Errorf("got %+v, %v", was, err)
	}
	if err := q.SetHalt(t.Context(), Halt{State: Paused}); err != nil {
		t.Fatal(err)
	}
	if h, err := q.Halted(t.Context()); err != nil || h == nil || h.State != Paused {
		t.Errorf("got %+v, %v", h, err)
	}
}

func TestRate(t *testing.T) {
	q := openQueue(t)
	if n, err := q.Rate(t.Context()); err != nil || n != 0 {
		t.Errorf("got %d, %v", n, err)
	}
	if err := q.SetRate(t.Context(), 50); err != nil {
		t.Fatal(err)
	}
	if n, err := q.Rate(t.Context()); err != nil || n != 50 {
		t.Errorf("got %d, %v", n, err)
	}
	if err := q.SetRate(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if n, err := q.Rate(t.Context()); err != nil || n != 0 {
		t.Errorf("got %d, %v", n, err)
	}
	if err := q.SetRate(t.Context(), -1); err == nil {
		t.Error("no error")
	}
}

func TestPauseImport(t *testing.T) {
	q := openQueue(t)
	begin(t, q, "a", 1)
	for _, paused := range []bool{true, true, false} {
		do := q.ResumeImport
		if paused {
			do = q.PauseImport
		}
		if err := do(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if i, err := q.Import(t.Context(), "a"); err != nil || i.Paused != paused {
			t.Errorf("got %+v, %v", i, err)
		}
	}
	if err := q.Cancel(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if err := q.PauseImport(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if i, err := q.Import(t.Context(), "a"); err != nil || i.Paused {
		t.Errorf("got %+v, %v", i, err)
	}
}

// watched runs Watch until the test ends, and gives what it calls.
type watched struct {
	halts   chan *Halt
	rates   chan int
	imports chan string
	resyncs chan struct{}
}

func watch(t *testing.T, q *Queue) watched {
	w := watched{make(chan *Halt, 100), make(chan int, 100), make(chan string, 100), make(chan struct{}, 100)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- q.Watch(ctx, Watcher{
			Halt: func(h *Halt) { w.halts <- h }, Rate: func(n int) { w.rates <- n },
			Import: func(id string) { w.imports <- id }, Resync: func() { w.resyncs <- struct{}{} },
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("watch: %v", err)
		}
	})
	return w
}

// next waits for a value that is wanted, and passes over others.
func next[T any](t *testing.T, what string, c <-chan T, wanted func(T) bool) {
	t.Helper()
	late := time.After(30 * time.Second)
	for {
		select {
		case v := <-c:
			if wanted(v) {
				return
			}
		case <-late:
			t.Fatalf("no %s", what)
		}
	}
}

func TestWatch(t *testing.T) {
	q := openQueue(t)
	if err := q.SetRate(t.Context(), 120); err != nil {
		t.Fatal(err)
	}
	begin(t, q, "before", 1)
	w := watch(t, q)
	if h, n := <-w.halts, <-w.rates; h != nil || n != 120 {
		t.Errorf("at first: got %+v, %d", h, n)
	}
	if err := q.SetHalt(t.Context(), Halt{State: Paused}); err != nil {
		t.Fatal(err)
	}
	if h := <-w.halts; h == nil || h.State != Paused {
		t.Errorf("got %+v", h)
	}
	if _, err := q.ClearHalt(t.Context()); err != nil {
		t.Fatal(err)
	}
	if h := <-w.halts; h != nil {
		t.Errorf("got %+v", h)
	}
	if err := q.SetRate(t.Context(), 50); err != nil {
		t.Fatal(err)
	}
	if n := <-w.rates; n != 50 {
		t.Errorf("got %d", n)
	}
	begin(t, q, "a", 1)
	if id := <-w.imports; id != "a" {
		t.Errorf("got %s, want a: imports from before are not changes", id)
	}
	if err := q.Cancel(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	next(t, "change of a", w.imports, func(id string) bool { return id == "a" })
	if len(w.resyncs) > 0 {
		t.Error("resync without a gap")
	}
}

// Another server takes over: what changed meanwhile is seen, and so is what changes later.
func TestWatchReconnects(t *testing.T) {
	dir := t.TempDir()
	server := openConn(t, dir)
	if _, err := Open(t.Context(), server); err != nil {
		t.Fatal(err)
	}
	q, err := Open(t.Context(), openConn(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	w := watch(t, q)
	<-w.halts
	<-w.rates
	server.Close()
	if err := q.SetRate(t.Context(), 70); err != nil {
		t.Fatal(err)
	}
	next(t, "resync", w.resyncs, func(struct{}) bool { return true })
	next(t, "rate of 70", w.rates, func(n int) bool { return n == 70 })
	if err := q.SetHalt(t.Context(), Halt{State: Halted, Code: "1"}); err != nil {
		t.Fatal(err)
	}
	next(t, "halt", w.halts, func(h *Halt) bool { return h != nil && h.Code == "1" })
	begin(t, q, "a", 1)
	next(t, "change of a", w.imports, func(id string) bool { return id == "a" })
}
