package governor

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"groupferry/internal/clock"
)

// TestInherited measures when the permits of a predecessor come back.
func TestInherited(t *testing.T) {
	for _, tc := range []struct {
		name  string
		from  Inherited
		early int           // permits of ten that come first
		at    time.Duration // when they do
		late  time.Duration // when the others do
	}{
		{"none", Inherited{}, 10, 0, 0},
		{"all calls had ended", Inherited{Any: true}, 10, cooldown, 0},
		{"four may be under way", Inherited{Any: true, Calls: map[string]int{create: 4}, Timeout: 3 * time.Second}, 6, cooldown, 3*time.Second + cooldown},
		{"timeout not said", Inherited{Any: true, Calls: map[string]int{create: 4}}, 6, cooldown, 10*time.Second + cooldown},
		{"of another command", Inherited{Any: true, Calls: map[string]int{"other": 4}, Timeout: 3 * time.Second}, 10, cooldown, 0},
		{"more than there are now", Inherited{Any: true, Calls: map[string]int{create: 40}, Timeout: 3 * time.Second}, 0, 0, 3*time.Second + cooldown},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				// The credit of this process says nothing about the calls of another.
				g := New(Config{Rate: 10, RoundTrip: seen(200 * time.Millisecond)}, tc.from)
				defer g.Close()
				g.Promised(map[string]int{create: 100}, clock.Clock{}.In(time.Hour))
				start := time.Now()
				grants := make(chan time.Duration, 10)
				for i := range 10 {
					go func() {
						if _, err := g.Acquire(t.Context(), create, fmt.Sprint(i)); err == nil {
							grants <- time.Since(start)
						}
					}()
				}
				for i := range 10 {
					at, want := <-grants, tc.at
					if i >= tc.early {
						want = tc.late
					}
					// 10/s are spaced by 95 ms, after a burst of four.
					if at < want || i == 0 && at != want || i == tc.early && at != want || at > want+time.Second {
						t.Errorf("grant %d after %v, want %v", i, at, want)
					}
				}
			})
		})
	}
}

// seen returns a MinRTT that has seen enough.
func seen(d time.Duration) *MinRTT {
	m := &MinRTT{}
	for range minSamples {
		m.Note(d)
	}
	return m
}

func TestMinRTT(t *testing.T) {
	var m MinRTT
	for i := range minSamples {
		if got := m.credit(); got != 0 {
			t.Fatalf("credit %v after %d round trips", got, i)
		}
		m.Note(time.Duration(1000+i) * time.Millisecond)
	}
	if got := m.credit(); got != creditMost {
		t.Errorf("credit %v of a second, want %v", got, creditMost)
	}
	m.Note(40 * time.Millisecond)
	m.Note(50 * time.Millisecond)
	if got := m.credit(); got != 20*time.Millisecond || m.Shortest() != 40*time.Millisecond {
		t.Errorf("credit %v of %v, want half of 40ms", got, m.Shortest())
	}
	m.Note(0)
	if got := m.credit(); got != 0 {
		t.Errorf("credit %v without a path", got)
	}
	if got := (*MinRTT)(nil).credit(); got != 0 {
		t.Errorf("credit %v of none", got)
	}
}

// TestCredit: what has a response comes back earlier by half of the shortest round trip, what has none does not.
func TestCredit(t *testing.T) {
	for outcome, want := range map[Outcome]time.Duration{
		Unsent: 0, Responded: cooldown - 20*time.Millisecond, Throttled: cooldown - 20*time.Millisecond, Lost: cooldown,
		Cancelled: DefaultTimeout + cooldown,
	} {
		synctest.Test(t, func(t *testing.T) {
			g := open(Config{Rate: 1, RoundTrip: seen(40 * time.Millisecond)})
			p, _ := g.Acquire(t.Context(), create, "u")
			time.Sleep(time.Second) // a grant would be on the dot again
			start := time.Now()
			if outcome == Cancelled {
				start = p.granted
			}
			p.Done(outcome)
			if _, err := g.Acquire(t.Context(), create, "u"); err != nil {
				t.Fatal(err)
			}
			if got := time.Since(start); got != want {
				t.Errorf("outcome %d: free after %v, want %v", outcome, got, want)
			}
		})
	}
}

func TestCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := open(Config{Rate: 2, Timeout: 5 * time.Second})
		p, _ := g.Acquire(t.Context(), create, "u")
		start := time.Now()
		time.Sleep(100 * time.Millisecond)
		if p.Done(Cancelled) || p.Done(Responded) { // the second does nothing
			t.Error("excused")
		}
		if g.Silent() != 0 {
			t.Errorf("silent for %v, though nobody waits for a response", g.Silent())
		}
		next := make(chan time.Duration)
		go func() { // the user is busy, in every command
			if _, err := g.Acquire(t.Context(), "a", "u"); err != nil {
				t.Error(err)
			}
			next <- time.Since(start)
		}()
		time.Sleep(4900*time.Millisecond - 1)
		synctest.Wait()
		if got, _ := g.UnderWay(); got[create] != 1 || got["a"] != 0 {
			t.Errorf("under way %v, want the cancelled call", got)
		}
		if calls, _ := g.Propose(); calls[create] < 1 {
			t.Errorf("proposed %v without the cancelled call", calls)
		}
		if got := <-next; got != 5*time.Second {
			t.Errorf("the user's next call after %v, want 5s", got)
		}
		if got, _ := g.UnderWay(); got[create] != 0 {
			t.Errorf("under way %v after the deadline", got)
		}
		// One permit is free, the other cools for a second.
		for i, want := range []time.Duration{5 * time.Second, 5*time.Second + cooldown} {
			if _, err := g.Acquire(t.Context(), create, fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
			if got := time.Since(start); got != want {
				t.Errorf("permit %d after %v, want %v", i, got, want)
			}
		}
	})
}

// TestCancelledLate: a call that is cancelled after its deadline, by a process that was frozen, is over at once.
func TestCancelledLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := open(Config{Rate: 1})
		p, _ := g.Acquire(t.Context(), create, "u")
		time.Sleep(time.Minute)
		start := time.Now()
		p.Done(Cancelled)
		if got, _ := g.UnderWay(); len(got) != 0 {
			t.Errorf("under way %v", got)
		}
		if _, err := g.Acquire(t.Context(), create, "u"); err != nil || time.Since(start) != cooldown {
			t.Errorf("got %v after %v, want a permit after %v", err, time.Since(start), cooldown)
		}
	})
}

// TestCancelledSaysNothing: a cancelled call neither ends nor begins an outage, and after a cancelled probe there is another.
func TestCancelledSaysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := open(Config{})
		for i := range 2 * outageStreak {
			p, _ := g.Acquire(t.Context(), create, fmt.Sprint("gone-", i))
			p.Done(Cancelled)
		}
		if s := g.Snapshot().State; s != Running {
			t.Fatalf("%s after cancelled calls", s)
		}
		for i := range outageStreak {
			p, err := g.Acquire(t.Context(), create, fmt.Sprint("lost-", i))
			if err != nil {
				t.Fatal(err)
			}
			p.Done(Lost)
		}
		if s := g.Snapshot().State; s != Outage {
			t.Fatalf("%s after lost calls", s)
		}
		for i := range 5 {
			start := time.Now()
			p, err := g.Acquire(t.Context(), create, fmt.Sprint("probe-", i))
			if err != nil {
				t.Fatal(err)
			}
			if d := time.Since(start); i > 0 && d != probeFirst {
				t.Errorf("probe %d after %v, want %v", i, d, probeFirst)
			}
			p.Done(Cancelled)
			if s := g.Snapshot().State; s != Outage {
				t.Errorf("%s after a cancelled probe", s)
			}
		}
		p, _ := g.Acquire(t.Context(), create, "good")
		p.Done(Responded)
		if s := g.Snapshot().State; s != Running {
			t.Errorf("%s after a response", s)
		}
	})
}

// A wall is a wall clock that can be set.
type wall struct{ offset atomic.Int64 }

func (w *wall) now() time.Time       { return time.Now().Add(time.Duration(w.offset.Load())) }
func (w *wall) step(d time.Duration) { w.offset.Add(int64(d)) }

// TestRight: nothing is granted after the right has passed, by either clock, until there is a new one.
func TestRight(t *testing.T) {
	for _, tc := range []struct {
		name string
		pass func(*wall)
		want bool // passed
	}{
		{"not yet", func(*wall) { time.Sleep(2*time.Second - 1) }, false},
		{"time", func(*wall) { time.Sleep(2 * time.Second) }, true},
		{"the machine was suspended", func(w *wall) { w.step(time.Minute) }, true},
		{"the wall clock steps forward", func(w *wall) { w.step(time.Hour) }, true},
		{"the wall clock steps back", func(w *wall) { w.step(-time.Hour); time.Sleep(2*time.Second - 1) }, false},
		{"the wall clock steps back, and time", func(w *wall) { w.step(-time.Hour); time.Sleep(2 * time.Second) }, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &wall{}
				cfg := Config{Clock: clock.Clock{Wall: w.now}}
				g := New(cfg, Inherited{})
				calls := map[string]int{create: 100}
				g.Promised(calls, cfg.Clock.In(2*time.Second))
				held, err := g.Acquire(t.Context(), create, "held")
				if err != nil {
					t.Fatal(err)
				}
				endBy := held.EndBy()
				tc.pass(w)
				ctx, cancel := context.WithCancel(t.Context())
				got := make(chan error, 1)
				go func() { _, err := g.Acquire(ctx, create, "u"); got <- err }()
				synctest.Wait()
				if granted := len(got) == 1; granted == tc.want {
					t.Errorf("granted: %v, want %v", granted, !tc.want)
				}
				if held.Sendable() == tc.want {
					t.Errorf("sendable: %v, want %v", held.Sendable(), !tc.want)
				}
				g.Promised(calls, cfg.Clock.In(2*time.Second))
				if err := <-got; err != nil {
					t.Errorf("after a new right: %v", err)
				}
				cancel()
				// The new right is not the one of the call that began before, and its deadline is what it was.
				if held.Sendable() == tc.want || held.EndBy() != endBy {
					t.Errorf("a new right changed a permit: sendable %v, end %v", held.Sendable(), held.EndBy())
				}
			})
		})
	}
}

// TestCallTimeout: the deadline of a call counts from the grant, whatever happens before the call is made.
func TestCallTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wall{}
		g := open(Config{Timeout: 3 * time.Second, Clock: clock.Clock{Wall: w.now}})
		start := time.Now()
		p, _ := g.Acquire(t.Context(), create, "u")
		time.Sleep(3*time.Second - 1)
		if !p.Sendable() || p.EndBy() != start.Add(3*time.Second) || p.SendBy().Left() != 1 {
			t.Errorf("sendable %v for %v, ends at %v", p.Sendable(), p.SendBy().Left(), p.EndBy().Sub(start))
		}
		time.Sleep(time.Nanosecond)
		if p.Sendable() {
			t.Error("sendable after its timeout")
		}
		p.Done(Unsent)
		p, _ = g.Acquire(t.Context(), create, "u")
		w.step(3 * time.Second) // suspended
		if p.Sendable() {
			t.Error("sendable after its timeout on the wall clock")
		}
	})
}

func TestDoneTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := open(Config{Rate: 1})
		p, _ := g.Acquire(t.Context(), create, "u")
		p.Done(Responded)
		start := time.Now()
		for _, o := range []Outcome{Unsent, Responded, Throttled, Lost, Cancelled} {
			if p.Done(o) {
				t.Error("excused")
			}
		}
		if s := g.Snapshot().Lanes[create]; s.Out != 0 || s.Throttled != 0 {
			t.Errorf("got %+v", s)
		}
		g.Acquire(t.Context(), create, "u")
		if d := time.Since(start); d != cooldown {
			t.Errorf("free after %v, want %v", d, cooldown)
		}
	})
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := open(Config{Rate: 1})
		held, _ := g.Acquire(t.Context(), create, "a")
		got := make(chan error)
		go func() { _, err := g.Acquire(t.Context(), create, "b"); got <- err }()
		synctest.Wait()
		g.Close()
		g.Close()
		if err := <-got; !errors.Is(err, ErrClosed) {
			t.Errorf("waiter got %v, want closed", err)
		}
		if n := underWay(g, create); n != 1 {
			t.Errorf("%d under way, want 1", n)
		}
		held.Done(Responded)
		if n := underWay(g, create); n != 0 {
			t.Errorf("%d under way after the end", n)
		}
		time.Sleep(time.Minute) // the permit is free
		for i := range 20 {
			if _, err := g.Acquire(t.Context(), create, fmt.Sprint(i)); !errors.Is(err, ErrClosed) {
				t.Errorf("newcomer got %v, want closed", err)
			}
		}
	})
}

func TestSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := open(Config{})
		check := func(when string, want time.Duration) {
			t.Helper()
			if got := g.Silent(); got != want {
				t.Errorf("%s: silent for %v, want %v", when, got, want)
			}
		}
		acquire := func(user string) *Permit {
			p, err := g.Acquire(t.Context(), create, user)
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		time.Sleep(time.Minute)
		check("idle", 0)
		a := acquire("a")
		time.Sleep(time.Second)
		b := acquire("b")
		time.Sleep(2 * time.Second)
		check("two hang", 3*time.Second)
		a.Done(Responded)
		check("one had a response", 0)
		time.Sleep(2 * time.Second)
		check("the other hangs on", 2*time.Second)
		b.Done(Lost)
		check("nothing is under way", 0)
		time.Sleep(time.Minute)
		c := acquire("c")
		check("a new one", 0)
		c.Done(Responded)
		for i := range outageStreak {
			acquire(fmt.Sprint(i)).Done(Lost)
		}
		since := g.streakFrom
		time.Sleep(time.Second)
		check("between probes", time.Since(since))
		acquire("probe").Done(Responded)
		check("it is over", 0)
	})
}
