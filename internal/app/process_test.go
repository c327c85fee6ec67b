package app

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"groupferry/importer"
	"groupferry/internal/broker"
	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
	"groupferry/internal/queue"
)

// process returns a process of the namespace that has not started.
func (n *namespace) process(change func(*ProcessConfig)) *Process {
	n.t.Helper()
	cfg := ProcessConfig{Engine: EngineConfig{
		Namespace: n.Namespace, API: n.client(chat.Secret(chatsim.DemoSecretKey)), App: testApp, Rate: 1000,
		Timeout: 10 * time.Second, Name: n.t.Name(), Host: "here",
	}}
	if change != nil {
		change(&cfg)
	}
	p, err := NewProcess(n.t.Context(), cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	return p
}

func TestDrain(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1})
	n.enqueue("one", 5)
	p := n.process(func(c *ProcessConfig) { c.Drain = true })
	if err := p.Run(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if s, err := n.ImportStatus(t.Context(), "one"); err != nil || s.Jobs.Done != 5 {
		t.Errorf("got %+v, %v; want 5 jobs done", s, err)
	}
	if got := p.State().Tally; got.Done != 5 || got.Conversations != 5 {
		t.Errorf("tally: got %+v, want 5 jobs and conversations", got)
	}
}

// An input goes to its end in one process, whose state says how far it is all the time.
func TestRunImport(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1})
	in, err := ReadInput(t.Context(), InputConfig{
		Files:    []string{writeInput(t, "a,g,b", "a,h,c", "d,g,e")},
		Importer: importer.Config{ImportID: "one"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, _, err := n.Begin(t.Context(), in.Record); err != nil {
		t.Fatal(err)
	}
	p := n.process(func(c *ProcessConfig) { c.Import = "one" })
	err = p.RunImport(t.Context(), nil, func(ctx context.Context) error {
		_, err := in.Enqueue(ctx, n.Namespace, nil)
		return err
	})
	if s := p.State(); err != nil || s.Tally.Done != 3 || s.Progress == nil || !s.Progress.Imports[0].Import.State.Over() {
		t.Errorf("got %v, state %+v; want it to be over, with 3 jobs done", err, s)
	}
	l := n.sim.Ledger()
	if r := NewRunReport(p.State().Tally, time.Second, &l); r.Simulator.Disagrees != "" || r.Simulator.Groups != 3 {
		t.Errorf("report: got %+v, simulator %+v", r, r.Simulator)
	}
}

// A stop ends the enqueueing as well, and an error of the enqueueing ends the work.
func TestRunImportEnds(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1})
	if _, _, err := n.Begin(t.Context(), queue.Import{ID: "one", Digest: "one", Jobs: 5}); err != nil {
		t.Fatal(err)
	}
	p := n.process(func(c *ProcessConfig) { c.Import = "one" })
	full := errors.New("the disk is full")
	if err := p.RunImport(t.Context(), nil, func(context.Context) error { return full }); err != full {
		t.Errorf("got %v, want the error of the enqueueing", err)
	}
	p = n.process(func(c *ProcessConfig) { c.Import, c.Engine.Name = "one", "another" })
	stop := make(chan struct{})
	err := p.RunImport(t.Context(), stop, func(ctx context.Context) error {
		close(stop)
		<-ctx.Done()
		return nil
	})
	if !errors.Is(err, ErrStopped) {
		t.Errorf("stopped: got %v, want %v", err, ErrStopped)
	}
}

func TestOtherApp(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1})
	if err := n.ClaimApp(t.Context(), queue.App{SDKAppID: 1}); err != nil {
		t.Fatal(err)
	}
	_, err := NewProcess(t.Context(), ProcessConfig{Engine: EngineConfig{Namespace: n.Namespace, App: testApp}})
	if !errors.As(err, new(*queue.OtherAppError)) {
		t.Errorf("got %v, want it to belong to another app", err)
	}
}

// An import for which nothing has come for a while is taken for abandoned, until something comes or it is over. What was
// seen of an import that has left the queue says nothing about its retry.
func TestAbandoned(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1})
	var reported int
	p := n.process(func(c *ProcessConfig) {
		c.Drain = true
		c.OnAbandoned = func(ImportProgress) { reported++ }
	})
	read := func() *Progress {
		t.Helper()
		now, err := p.readProgress(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return &now
	}
	wait := func() {
		for id, q := range p.quiet {
			q.since = q.since.Add(-abandonedAfter)
			p.quiet[id] = q
		}
	}
	if _, _, err := n.Begin(t.Context(), queue.Import{ID: "one", Digest: "one", Jobs: 5}); err != nil {
		t.Fatal(err)
	}
	if done, err := p.isDone(read(), nil); done || err != nil {
		t.Errorf("at first: got done %v, %v", done, err)
	}
	wait()
	read()
	if done, err := p.isDone(read(), nil); !done || !errors.Is(err, ErrAbandoned) || reported != 1 {
		t.Errorf("after a while: got done %v, %v, reported %d times", done, err, reported)
	}
	if err := n.Cancel(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	if done, err := p.isDone(read(), nil); !done || err != nil || len(p.quiet) != 0 {
		t.Errorf("cancelled: got done %v, %v, remembered %v; want it done and forgotten", done, err, p.quiet)
	}
}

// Metrics and readiness come from the state, and the end of the UserSig is that of the one in use.
func TestServedState(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := NewMonitor("", "")
	defer m.Serve(l, slog.New(slog.DiscardHandler))()
	p := n.process(func(c *ProcessConfig) { c.Monitor = m })
	get := func(path string) (int, string) {
		response, err := http.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		b, _ := io.ReadAll(response.Body)
		return response.StatusCode, string(b)
	}
	expiry := func() float64 {
		_, page := get("/metrics")
		_, value, _ := strings.Cut(page, "\ngroupferry_usersig_expiry_timestamp_seconds{renewed=\"yes\"} ")
		value, _, _ = strings.Cut(value, "\n")
		seconds, _ := strconv.ParseFloat(value, 64)
		return seconds
	}
	stop := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		if err := p.Run(t.Context(), stop); err != nil {
			t.Error(err)
		}
	})
	n.await("the lead", func() bool { _, page := get("/metrics"); return strings.Contains(page, "\ngroupferry_leader 1\n") })
	if code, text := get("/readyz"); code != http.StatusOK {
		t.Errorf("leading: got %d %s", code, text)
	}
	before := expiry()
	time.Sleep(1100 * time.Millisecond) // a UserSig ends on a whole second
	if err := p.cfg.Engine.API.Renew(); err != nil {
		t.Fatal(err)
	}
	if after := expiry(); before == 0 || after <= before {
		t.Errorf("end of the UserSig: got %v after it was renewed, want later than %v", after, before)
	}
	if _, err := n.Pause(t.Context(), "a test", "resume"); err != nil {
		t.Fatal(err)
	}
	n.await("the pause", func() bool { code, _ := get("/readyz"); return code == http.StatusServiceUnavailable })
	if s := p.State(); s.Mode != Paused || s.Halt.By != "a test" || s.Halt.Command != "resume" {
		t.Errorf("state: got %+v, halt %+v", s, s.Halt)
	}
	close(stop)
	running.Wait()
}

// The state has an outage with its last error, until the API responds.
func TestOutageInState(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1})
	n.enqueue("one", 50)
	e := n.start(nil)
	n.awaitComplete("one")
	if err := n.sim.Configure(func(c *chatsim.Config) { c.Faults = []chatsim.Fault{{Kind: chatsim.Reset}} }); err != nil {
		t.Fatal(err)
	}
	n.enqueue("two", 50)
	n.await("the outage", func() bool { s := e.State(); return s.Outage != nil && s.Mode == OutOfReach })
	if s := e.State(); s.Outage.Err == nil || s.Outage.Since.IsZero() {
		t.Errorf("got outage %+v, want it with its error and its time", s.Outage)
	}
	if err := n.sim.Configure(func(c *chatsim.Config) { c.Faults = nil }); err != nil {
		t.Fatal(err)
	}
	n.awaitComplete("two")
	if s := e.State(); s.Outage != nil || s.Mode != Running {
		t.Errorf("after it: got %+v", s)
	}
	if err := e.end(t); err != nil {
		t.Error(err)
	}
}

// Who watches learns of each change, and everything that a change brings is there at once.
func TestWatch(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1})
	e := n.start(nil)
	n.await("proved credentials", func() bool { return e.State().Verified })
	s, changed := e.Watch()
	if err := n.SetRate(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	for end := time.After(patience); s.Rate != 7; {
		select {
		case <-changed:
			s, changed = e.Watch()
		case <-end:
			t.Fatalf("got a rate of %d, want 7", s.Rate)
		}
	}
	if err := e.end(t); err != nil {
		t.Error(err)
	}
	if s := e.State(); s.Leading || s.Commands != nil || s.Jobs != nil {
		t.Errorf("ended: got %+v, want nothing of its lead", s)
	}
}

func TestTotals(t *testing.T) {
	of := func(id string, jobs, done, pending int64) ImportProgress {
		p := ImportProgress{Progress: queue.Progress{
			Import: queue.Import{ID: id, Jobs: jobs, Calls: 3 * jobs}, Pending: pending, Rate: 2, RateOver: time.Minute, At: time.Now(),
		}}
		p.Counts.Jobs.Done = done
		return p
	}
	retried, damaged, paused := of("retried", 100, 90, 4), of("damaged", 9, 9, 9), of("paused", 3, 1, 2)
	retried.Import.Generation, retried.Import.Retried = 1, 10
	damaged.Damaged = &broker.DamagedError{}
	paused.Import.Paused = true // so it has no rate now
	retried.RateOver = time.Second
	old := of("old", 2, 1, 1) // the leader wrote nothing for a while: nor has this
	old.At = time.Now().Add(-time.Minute)
	p := Progress{[]ImportProgress{of("one", 5, 2, 3), retried, damaged, paused, old}}
	want := Totals{Imports: 4, Jobs: 20, Calls: 3*5 + 10 + 3*3 + 3*2, Finished: 10, Pending: 10, Rate: 4, RateOver: time.Second}
	if got := p.Totals(""); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	want = Totals{Imports: 1, Import: "paused", Jobs: 3, Calls: 9, Finished: 1, Pending: 2, Paused: true}
	if got := p.Totals("paused"); got != want {
		t.Errorf("one of them: got %+v, want %+v", got, want)
	}
	if got := p.Totals("damaged"); got != (Totals{}) {
		t.Errorf("a damaged one: got %+v, want nothing", got)
	}
}

// A UserSig that nobody renews is logged once, a day before its end, or at once if that has passed.
func TestWarnOfEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		for _, test := range []struct{ ends, logged time.Duration }{
			{30 * time.Hour, 6 * time.Hour},
			{2 * time.Hour, 6 * time.Hour}, // after the one before
			{-time.Hour, 6 * time.Hour},
		} {
			var log strings.Builder
			warnOfEnd(t.Context(), slog.New(slog.NewTextHandler(&log, nil)), start.Add(test.ends))
			if got := time.Since(start); got != test.logged {
				t.Errorf("ends after %v: got the line after %v, want %v", test.ends, got, test.logged)
			}
			left := strconv.Itoa(int((test.ends - test.logged).Seconds()))
			if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "level=WARN") ||
				!strings.Contains(got, "seconds_left="+left+" ") || !strings.Contains(got, "hint=") {
				t.Errorf("ends after %v: got %q, want one warning with seconds_left=%s and a hint", test.ends, got, left)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		var log strings.Builder
		warnOfEnd(ctx, slog.New(slog.NewTextHandler(&log, nil)), time.Now().Add(48*time.Hour))
		warnOfEnd(ctx, slog.New(slog.NewTextHandler(&log, nil)), time.Time{})
		if log.Len() > 0 {
			t.Errorf("got %q, want nothing", log.String())
		}
	})
}
