package governor

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"groupferry/internal/clock"
)

func TestPromise(t *testing.T) {
	type step struct {
		propose, acknowledge int // -1: not
		want                 int // in use after it
	}
	for name, steps := range map[string][]step{
		"nothing is used before it is acknowledged": {{8, -1, 0}, {-1, 8, 8}},
		"a higher number after its acknowledgement": {{8, -1, 0}, {-1, 8, 8}, {24, -1, 8}, {-1, 24, 24}},
		"a lower one before it is sent":             {{24, -1, 0}, {-1, 24, 24}, {8, -1, 8}, {-1, 8, 8}},
		"a lower one without an acknowledgement": {
			{24, -1, 0}, {-1, 24, 24}, {8, -1, 8}, {20, -1, 8}, {24, -1, 8}, {-1, 24, 24},
		},
		"an acknowledgement of what was not proposed last": {{8, -1, 0}, {-1, 8, 8}, {5, -1, 5}, {24, -1, 5}, {-1, 8, 5}, {-1, 24, 24}},
		"what was taken with the lease":                    {{-1, 3, 3}, {11, -1, 3}, {-1, 11, 11}},
	} {
		var p promise
		for i, s := range steps {
			if s.propose >= 0 {
				p.propose(map[string]int{create: s.propose})
			}
			if s.acknowledge >= 0 {
				p.acknowledge(map[string]int{create: s.acknowledge, "unused": 0})
			}
			if got := p.inUse(create); got != s.want {
				t.Errorf("%s: step %d: got %d in use, want %d", name, i, got, s.want)
			}
		}
	}
	var p promise // a command that only one of the open proposals names
	p.acknowledge(map[string]int{"a": 9, "b": 9})
	p.propose(map[string]int{"a": 9})
	p.propose(map[string]int{"a": 9, "b": 9})
	if a, b := p.inUse("a"), p.inUse("b"); a != 9 || b != 0 {
		t.Errorf("got %d and %d in use, want 9 and 0", a, b)
	}
}

// acquireAll starts n calls of users of their own and returns the permits that are granted so far, by order.
func acquireAll(t *testing.T, g *Governor, n int) <-chan *Permit {
	permits := make(chan *Permit, n)
	for i := range n {
		go func() {
			if p, err := g.Acquire(t.Context(), create, fmt.Sprint("many-", i)); err == nil {
				permits <- p
			}
		}()
	}
	synctest.Wait()
	return permits
}

// TestPromiseLimitsCalls lets calls hang and follows how many go out, and when a higher promise is asked for.
func TestPromiseLimitsCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		needs := 0
		g := New(Config{OnNeed: func() { needs++ }, Commands: []string{create}}, Inherited{})
		defer g.Close()
		right := func() clock.Deadline { return clock.Clock{}.In(time.Hour) }
		for range 60 { // a usual call takes a second, so that more than 12 may hang
			g.lane(create).accepted(time.Now().Add(-time.Second), time.Now())
		}
		permits := acquireAll(t, g, 100)
		out := func() int {
			for i := range 3 { // others that come and leave again do not ask once more
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				if _, err := g.Acquire(ctx, create, fmt.Sprint("other-", i)); err == nil {
					t.Error("granted out of turn")
				}
				cancel()
			}
			synctest.Wait()
			return len(permits)
		}
		if got := out(); got != 0 {
			t.Fatalf("%d calls before anything was promised", got)
		}
		g.Promised(nil, right())
		if got := out(); got != 0 || needs != 1 {
			t.Errorf("%d calls of no promise, asked %d times; want 0 and 1", got, needs)
		}
		for i, want := range []int{8, 24, 56} {
			calls, timeout := g.Propose()
			if calls[create] != want || timeout != DefaultTimeout {
				t.Errorf("proposed %v and %v, want %d and %v", calls, timeout, want, DefaultTimeout)
			}
			before := needs
			if got, was := out(), []int{0, 8, 24}[i]; got != was || needs != before {
				t.Errorf("%d calls before the acknowledgement, want %d; asked %d times more", got, was, needs-before)
			}
			g.Promised(calls, right())
			if got := out(); got != want || needs != before+1 {
				t.Errorf("%d calls, asked %d times more; want %d and 1", got, needs-before, want)
			}
		}
		if got, _ := g.UnderWay(); len(got) != 1 || got[create] != 56 {
			t.Errorf("under way %v, want 56", got)
		}
		// The promise is never below what is under way, and shrinks with it.
		g.SetRate(10)
		if calls, _ := g.Propose(); calls[create] != 56 {
			t.Errorf("proposed %v with 56 calls under way", calls)
		}
		g.SetRate(200)
		for range 56 {
			(<-permits).Done(Unsent)
			calls, _ := g.Propose() // not acknowledged, so it holds at least
			if now := underWay(g, create); calls[create] < now {
				t.Fatalf("proposed %v with %d calls under way", calls, now)
			}
		}
	})
}

func TestPromiseShrinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := open(Config{})
		defer g.Close()
		permits := acquireAll(t, g, 10)
		time.Sleep(time.Second)
		if calls, _ := g.Propose(); calls[create] != 28 {
			t.Errorf("proposed %v, want 28", calls)
		}
		for range 10 {
			(<-permits).Done(Responded)
		}
		time.Sleep(peakTime)
		if calls, _ := g.Propose(); calls[create] != 28 {
			t.Errorf("proposed %v a moment after ten calls, want 28", calls)
		}
		time.Sleep(2 * peakTime)
		if calls, _ := g.Propose(); calls[create] != 8 {
			t.Errorf("proposed %v long after, want 8", calls)
		}
	})
}

// TestPromiseAfterAPause: nothing was proposed, and no call made, for longer than a peak counts.
func TestPromiseAfterAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := open(Config{})
		defer g.Close()
		permits := acquireAll(t, g, 10)
		time.Sleep(time.Second)
		for range 10 {
			(<-permits).Done(Responded)
		}
		time.Sleep(2 * peakTime)
		if calls, _ := g.Propose(); calls[create] != 8 {
			t.Errorf("proposed %v, want 8", calls)
		}
	})
}

// TestInheritedInPromise: what a successor inherited is in its promise until it is over, beside its own calls.
func TestInheritedInPromise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		from := Inherited{Any: true, Calls: map[string]int{create: 30}, Timeout: 5 * time.Second}
		g := New(Config{Rate: 50, Timeout: 2 * time.Second}, from)
		defer g.Close()
		right := clock.Clock{}.In(time.Hour)
		g.Promised(map[string]int{create: 30}, right) // as the lease was taken
		permits := acquireAll(t, g, 10)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := len(permits); got != 0 {
			t.Errorf("%d own calls in a promise that the inherited ones fill", got)
		}
		calls, timeout := g.Propose()
		if calls[create] != 38 || timeout != 5*time.Second {
			t.Errorf("proposed %v and %v, want 38 and 5s", calls, timeout)
		}
		g.Promised(calls, right)
		time.Sleep(time.Second)
		synctest.Wait()
		if got := len(permits); got != 8 {
			t.Errorf("%d own calls, want 8", got)
		}
		if got := underWay(g, create); got != 38 {
			t.Errorf("%d under way, want 38", got)
		}
		if s := g.Snapshot().Lanes[create]; s.Out != 8 || s.Inherited != 30 || s.Promised != 38 {
			t.Errorf("got %+v", s)
		}
		time.Sleep(2*time.Second - 1) // 5 s are nearly over
		if got := underWay(g, create); got != 38 {
			t.Errorf("%d under way, want 38", got)
		}
		time.Sleep(20 * time.Millisecond)
		synctest.Wait()
		if got := len(permits); got != 10 { // the place of the inherited ones is free without a renewal
			t.Errorf("%d own calls after the inherited ones are over, want 10", got)
		}
		if got := underWay(g, create); got != 10 {
			t.Errorf("%d under way, want 10", got)
		}
		if calls, timeout := g.Propose(); calls[create] != 28 || timeout != 2*time.Second {
			t.Errorf("proposed %v and %v, want 28 and 2s", calls, timeout)
		}
	})
}
