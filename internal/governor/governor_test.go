package governor

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sort"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const create = "create_contact_group"

// arrivals notes when calls reach a server.
type arrivals struct {
	mu sync.Mutex
	at []time.Time
}

func (a *arrivals) note() {
	a.mu.Lock()
	a.at = append(a.at, time.Now())
	a.mu.Unlock()
}

// most counts the arrivals in the fullest window of the given length, which is open at one end.
func (a *arrivals) most(window time.Duration) int {
	sort.Slice(a.at, func(i, j int) bool { return a.at[i].Before(a.at[j]) })
	most, from := 0, 0
	for i, t := range a.at {
		for t.Sub(a.at[from]) >= window {
			from++
		}
		most = max(most, i-from+1)
	}
	return most
}

// open returns a governor that may make as many calls as its rate allows, for ever.
func open(cfg Config) *Governor {
	g := New(cfg, Inherited{})
	calls := map[string]int{}
	for _, command := range []string{create, "a", "b", "c0", "c1"} {
		calls[command] = math.MaxInt
	}
	g.Promised(calls, cfg.Clock.In(100*time.Hour))
	return g
}

// callers makes calls with n goroutines until ctx ends; call is one call at the server.
func callers(ctx context.Context, t *testing.T, g *Governor, n int, call func(worker int) Outcome) *sync.WaitGroup {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			for k := 0; ; k++ {
				p, err := g.Acquire(ctx, create, fmt.Sprintf("user-%d-%d", i, k))
				if err != nil {
					if ctx.Err() == nil {
						t.Errorf("acquire: %v", err)
					}
					return
				}
				p.Done(call(i))
			}
		})
	}
	return &wg
}

func TestNeverOverTheLimit(t *testing.T) {
	for _, tc := range []struct {
		name          string
		rate          int
		before, after time.Duration // delay to and from the server
		jitter        time.Duration
		least         float64 // share of the rate that has to be reached
	}{
		{name: "no latency", rate: 200, least: 0.98},
		{name: "5 ms", rate: 200, before: 2 * time.Millisecond, after: 3 * time.Millisecond, least: 0.98},
		{name: "50 ms and jitter", rate: 200, before: 20 * time.Millisecond, after: 20 * time.Millisecond, jitter: 20 * time.Millisecond, least: 0.93},
		{name: "slow one way", rate: 200, before: 900 * time.Millisecond, jitter: 300 * time.Millisecond, least: 0.40},
		{name: "slow other way", rate: 200, after: 900 * time.Millisecond, jitter: 300 * time.Millisecond, least: 0.40},
		{name: "low rate", rate: 3, before: time.Millisecond, least: 0.9},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := open(Config{Rate: tc.rate})
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				var a arrivals
				callers(ctx, t, g, 400, func(int) Outcome {
					time.Sleep(tc.before + rand.N(tc.jitter+1))
					a.note()
					time.Sleep(tc.after + rand.N(tc.jitter+1))
					return Responded
				}).Wait()
				if got := a.most(time.Second); got > tc.rate {
					t.Errorf("got %d calls in a second, want at most %d", got, tc.rate)
				}
				if got, want := float64(len(a.at)), tc.least*30*float64(tc.rate); got < want {
					t.Errorf("got %.0f calls in 30 s, want at least %.0f", got, want)
				}
				if got := a.most(100 * time.Millisecond); tc.jitter == 0 && got > 40 {
					t.Errorf("got %d calls in 100 ms, want at most 40", got)
				}
			})
		})
	}
}

func TestNoPulse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := open(Config{})
		var a arrivals
		for range 3 { // a start, and two returns from an idle minute
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			callers(ctx, t, g, 300, func(int) Outcome { a.note(); return Responded }).Wait()
			cancel()
			time.Sleep(time.Minute)
		}
		if got := a.most(100 * time.Millisecond); got > 40 {
			t.Errorf("got %d calls in 100 ms, want at most 40", got)
		}
		if got := a.most(time.Second); got > DefaultRate {
			t.Errorf("got %d calls in a second, want at most %d", got, DefaultRate)
		}
	})
}

// TestServerStandsStill lets the server stop reading now and then: queued calls must not arrive as a pulse.
func TestServerStandsStill(t *testing.T) {
	for _, latency := range []time.Duration{0, 50 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			g := open(Config{})
			start := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			var a arrivals
			callers(ctx, t, g, 300, func(int) Outcome {
				// Of every three seconds the last 0.7 pass without anything being read.
				if phase := time.Since(start) % (3 * time.Second); phase > 2300*time.Millisecond {
					time.Sleep(3*time.Second - phase)
				}
				a.note()
				time.Sleep(latency)
				return Responded
			}).Wait()
			if got := a.most(100 * time.Millisecond); got > 40 {
				t.Errorf("latency %v: got %d calls in 100 ms, want at most 40", latency, got)
			}
			if got := a.most(time.Second); got > DefaultRate {
				t.Errorf("latency %v: got %d calls in a second, want at most %d", latency, got, DefaultRate)
			}
			if got, want := len(a.at), 60*DefaultRate*6/10; got < want {
				t.Errorf("latency %v: got %d calls in a minute, want at least %d", latency, got, want)
			}
		})
	}
}

// TestHangingCallsHoldNobodyUp lets one call in ten hang for as long as a call may take.
func TestHangingCallsHoldNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := open(Config{})
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		var a arrivals
		callers(ctx, t, g, 600, func(int) Outcome {
			a.note()
			if rand.IntN(10) == 0 {
				time.Sleep(10 * time.Second)
				return Lost
			}
			time.Sleep(5 * time.Millisecond)
			return Responded
		}).Wait()
		// Of 200 permits each is taken 0.9 × 1.005 s + 0.1 × 11 s = 2 s a call.
		if got, want := len(a.at), 60*95; got < want {
			t.Errorf("got %d calls in a minute, want at least %d", got, want)
		}
	})
}

// TestTurnOfAUsersNextCall: who waited behind another call of the same user does not wait behind all others as well.
func TestTurnOfAUsersNextCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := open(Config{Rate: 1})
		held, _ := g.Acquire(t.Context(), create, "a")
		turns := make(chan string, 10)
		for _, user := range []string{"a", "b", "c", "d"} {
			go func() {
				p, err := g.Acquire(t.Context(), create, user)
				if err != nil {
					t.Error(err)
					return
				}
				turns <- user
				p.Done(Responded)
			}()
			synctest.Wait()
		}
		held.Done(Responded)
		for _, want := range []string{"a", "b", "c", "d"} {
			if got := <-turns; got != want {
				t.Errorf("got the turn of %s, want %s", got, want)
			}
		}
	})
}

// TestSomeHang: calls without a response, all on one broken connection, do not keep others from going out for long.
func TestSomeHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := open(Config{Rate: 100})
		for round := range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), 9*time.Second)
			var hanging sync.WaitGroup
			for i := range ahead + 2 { // they ask first, and hang
				hanging.Go(func() {
					if p, err := g.Acquire(ctx, create, fmt.Sprint("cut-", i)); err == nil {
						<-ctx.Done()
						p.Done(Lost)
					}
				})
			}
			synctest.Wait()
			var a arrivals
			start := time.Now()
			callers(ctx, t, g, 20, func(int) Outcome {
				a.note()
				time.Sleep(5 * time.Millisecond)
				return Responded
			}).Wait()
			hanging.Wait()
			cancel()
			// The first of those with a response goes out after three times a trickle: 0.25 + 0.5 + 1 s.
			if d := a.at[0].Sub(start); d > 1900*time.Millisecond {
				t.Errorf("round %d: the first response after %v, want 1.75s and a moment", round, d)
			}
			if got, want := len(a.at), 7*80; got < want { // 14 of 100 permits hang
				t.Errorf("round %d: got %d calls in 9 s, want at least %d", round, got, want)
			}
			p, err := g.Acquire(t.Context(), create, "probe") // ends the outage that the lost ones make
			if err != nil {
				t.Fatal(err)
			}
			p.Done(Responded)
			time.Sleep(2 * time.Second)
		}
	})
}

func TestCommandsHaveTheirOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := open(Config{Rate: 2})
		for i, command := range []string{"a", "a", "b", "b"} {
			p, err := g.Acquire(t.Context(), command, fmt.Sprint(i))
			if err != nil {
				t.Fatal(err)
			}
			defer p.Done(Responded)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if _, err := g.Acquire(ctx, "a", "x"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("third call of a: got %v, want it to wait", err)
		}
	})
}

func TestOneCallOfAUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := open(Config{})
		var mu sync.Mutex
		under := map[string]int{}
		var wg sync.WaitGroup
		for i := range 60 {
			wg.Go(func() {
				user, command := fmt.Sprint("u", i%3), fmt.Sprint("c", i%2)
				p, err := g.Acquire(t.Context(), command, user)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				under[user]++
				if under[user] > 1 {
					t.Errorf("%d calls of %s at once", under[user], user)
				}
				mu.Unlock()
				time.Sleep(50 * time.Millisecond)
				mu.Lock()
				under[user]--
				mu.Unlock()
				p.Done(Responded)
			})
		}
		wg.Wait()
		if len(g.users) != 0 {
			t.Errorf("%d users are remembered for nothing", len(g.users))
		}
	})
}

func TestBusyUserHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := open(Config{})
		held, _ := g.Acquire(t.Context(), create, "slow")
		ctx, cancel := context.WithCancel(t.Context())
		left := make(chan error)
		go func() { _, err := g.Acquire(ctx, create, "slow"); left <- err }()
		synctest.Wait()
		p, err := g.Acquire(t.Context(), create, "other")
		if err != nil {
			t.Fatal(err)
		}
		p.Done(Responded)
		cancel()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want canceled", err)
		}
		held.Done(Responded)
		held.Done(Responded) // a second time changes nothing
		if s := g.Snapshot().Lanes[create]; s.Out != 0 || s.Waiting != 0 {
			t.Errorf("got %+v, want nothing out or waiting", s)
		}
	})
}

// TestLeavingWaiters lets callers give up at every moment and checks that no permit gets lost with them.
func TestLeavingWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := open(Config{Rate: 5})
		var wg sync.WaitGroup
		for i := range 500 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), rand.N(20*time.Second))
				defer cancel()
				p, err := g.Acquire(ctx, create, fmt.Sprint(i%40))
				if err == nil {
					time.Sleep(rand.N(50 * time.Millisecond))
					p.Done(Outcome(rand.IntN(2)))
				}
			})
		}
		wg.Wait()
		time.Sleep(2 * time.Second)
		if s := g.Snapshot().Lanes[create]; s.Out != 0 || s.Waiting != 0 || len(g.users) != 0 {
			t.Fatalf("got %+v and %d users, want nothing out or waiting", s, len(g.users))
		}
		start := time.Now()
		for i := range 5 { // all five permits are still there
			if _, err := g.Acquire(t.Context(), create, fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(start); d > cooldown {
			t.Errorf("five permits took %v", d)
		}
	})
}

func TestUnsentIsFreeAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := open(Config{Rate: 1})
		for range 3 {
			start := time.Now()
			p, _ := g.Acquire(t.Context(), create, "u")
			if d := time.Since(start); d >= time.Second {
				t.Errorf("waited %v for a permit that no call had used", d)
			}
			p.Done(Unsent)
		}
		p, _ := g.Acquire(t.Context(), create, "u")
		p.Done(Responded)
		start := time.Now()
		g.Acquire(t.Context(), create, "u")
		if d := time.Since(start); d != cooldown {
			t.Errorf("waited %v after a call, want %v", d, cooldown)
		}
	})
}

// TestThrottleSettlesAndComesBack has a server that accepts 120 calls in any second for a while, although the rate is 200.
func TestThrottleSettlesAndComesBack(t *testing.T) {
	for _, latency := range []time.Duration{0, 50 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			g := open(Config{})
			const throttled = 60 * time.Second
			var mu sync.Mutex
			var accepted, rejected []time.Duration // since the start
			start := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), throttled+40*time.Second)
			defer cancel()
			callers(ctx, t, g, 300, func(int) Outcome {
				time.Sleep(latency / 2)
				defer time.Sleep(latency / 2)
				mu.Lock()
				defer mu.Unlock()
				now := time.Since(start)
				inWindow := 0
				for i := len(accepted) - 1; i >= 0 && now-accepted[i] < time.Second; i-- {
					inWindow++
				}
				if now < throttled && inWindow >= 120 {
					rejected = append(rejected, now)
					return Throttled
				}
				accepted = append(accepted, now)
				return Responded
			}).Wait()
			count := func(all []time.Duration, from, to time.Duration) (n int) {
				for _, at := range all {
					if from <= at && at < to {
						n++
					}
				}
				return n
			}
			taken := float64(count(accepted, 10*time.Second, throttled)) / 50
			bad := count(rejected, 10*time.Second, throttled)
			back := float64(count(accepted, throttled+30*time.Second, throttled+40*time.Second)) / 10
			t.Logf("latency %v: %.1f calls/s of 120, %d throttled in 50 s; 30 s later %.1f/s", latency, taken, bad, back)
			if taken < 0.95*120*float64(time.Second)/float64(time.Second+latency) {
				t.Errorf("latency %v: settled at %.1f calls a second, want just below 120", latency, taken)
			}
			if bad > 50 {
				t.Errorf("latency %v: %d calls throttled in 50 s, want at most one a second", latency, bad)
			}
			if early := count(rejected, 0, 10*time.Second); early > 60 {
				t.Errorf("latency %v: %d calls throttled in the first ten seconds", latency, early)
			}
			if back < 0.93*200 {
				t.Errorf("latency %v: %.1f calls a second half a minute after the throttle ended", latency, back)
			}
		})
	}
}

func TestGain(t *testing.T) {
	for d, want := range map[time.Duration]float64{
		0: 0, hold: 0, hold + time.Second: 0.005, hold + 5*time.Second: 0.025, hold + 10*time.Second: 0.075,
		hold + 15*time.Second: 0.175, hold + 20*time.Second: 0.375, hold + 30*time.Second: 0.875,
	} {
		if got := gain(d); got < want-1e-9 || got > want+1e-9 {
			t.Errorf("after %v: got %v, want %v", d, got, want)
		}
	}
}

// TestThrottledByOthers: when the calls of another program use up the app's limit, few of ours get through.
func TestThrottledByOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var slower []float64
		g := open(Config{OnSlower: func(_ string, r float64) { slower = append(slower, r) }})
		for i := range 20 {
			p, _ := g.Acquire(t.Context(), create, fmt.Sprint(i))
			o := Responded
			if i == 19 {
				o = Throttled
			}
			p.Done(o)
		}
		if got, want := g.Snapshot().Lanes[create].Effective, 19*slowdown; got != want {
			t.Errorf("got %v calls a second, want %v: nineteen were taken", got, want)
		}
		if len(slower) != 1 {
			t.Errorf("told %d times, want once", len(slower))
		}
	})
}

func TestOneThrottledBurstSlowsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var slower []float64
		g := open(Config{OnSlower: func(_ string, r float64) { slower = append(slower, r) }})
		var permits []*Permit
		for i := range ahead {
			p, _ := g.Acquire(t.Context(), create, fmt.Sprint(i))
			permits = append(permits, p)
		}
		for _, p := range permits {
			p.Done(Throttled)
		}
		s := g.Snapshot().Lanes[create]
		if s.Effective != least*DefaultRate || s.Throttled != ahead || len(slower) != 1 {
			t.Errorf("got %+v, told %v; want one step down to the least, for nothing was taken", s, slower)
		}
	})
}

func TestHalt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []error
		g := open(Config{Rate: 1, Gate: &Gate{OnHalt: func(err error) { told = append(told, err) }}})
		held, _ := g.Acquire(t.Context(), create, "a")
		errs := make(chan error, 3)
		for _, u := range []string{"a", "b", "b"} {
			go func() { _, err := g.Acquire(t.Context(), create, u); errs <- err }()
		}
		synctest.Wait()
		cause := errors.New("51013")
		g.Halt(cause)
		g.Halt(errors.New("another"))
		for range 3 {
			if err := <-errs; !IsHalted(err) || !errors.Is(err, cause) {
				t.Errorf("waiter got %v, want halted by %v", err, cause)
			}
		}
		if _, err := g.Acquire(t.Context(), create, "c"); !errors.Is(err, cause) {
			t.Errorf("newcomer got %v, want halted by %v", err, cause)
		}
		held.Done(Responded)
		if len(told) != 1 || told[0] != cause || g.Halted() != cause || g.Snapshot().State != Halted {
			t.Errorf("told %v, cause %v, want %v once", told, g.Halted(), cause)
		}
		back := make(chan error)
		go func() { back <- g.AwaitResume(t.Context()) }()
		synctest.Wait()
		g.Resume()
		if err := <-back; err != nil {
			t.Error(err)
		}
		if _, err := g.Acquire(t.Context(), create, "c"); err != nil {
			t.Errorf("after resume: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		g.Halt(cause)
		if err := g.AwaitResume(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want canceled", err)
		}
	})
}

func TestOutageProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var turns []bool
		g := open(Config{OnOutage: func(on bool) { turns = append(turns, on) }})
		var mu sync.Mutex
		calls, blamed, underway, most := 0, 0, 0, 0
		start := time.Now()
		end := start.Add(10 * time.Minute)
		var back time.Duration
		ctx, cancel := context.WithTimeout(t.Context(), 11*time.Minute)
		defer cancel()
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() {
				for {
					p, err := g.Acquire(ctx, create, fmt.Sprint(i))
					if err != nil {
						return
					}
					mu.Lock()
					calls++
					underway++
					if g.Snapshot().State == Outage {
						most = max(most, underway)
					}
					mu.Unlock()
					time.Sleep(time.Millisecond)
					mu.Lock()
					underway--
					mu.Unlock()
					if time.Now().After(end) {
						p.Done(Responded)
						mu.Lock()
						if back == 0 {
							back = time.Since(end)
						}
						mu.Unlock()
						return
					}
					if !p.Done(Lost) {
						mu.Lock()
						blamed++
						mu.Unlock()
					}
				}
			})
		}
		wg.Wait()
		if blamed >= outageStreak {
			t.Errorf("%d calls were not excused, want fewer than %d", blamed, outageStreak)
		}
		if calls > 64+64+130 { // the first few, one probe each 5 s for 10 min, and one good call each
			t.Errorf("%d calls in an outage of ten minutes", calls)
		}
		if back > probeMost+time.Second {
			t.Errorf("noticed the end after %v", back)
		}
		if most > 1 {
			t.Errorf("%d probes at once", most)
		}
		if len(turns) != 2 || !turns[0] || turns[1] {
			t.Errorf("turns %v, want on and off", turns)
		}
	})
}

// With one caller a streak of ten takes long to gather; three over two seconds are enough.
func TestOutageOfOneCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := open(Config{})
		blamed := 0
		for range 20 {
			p, err := g.Acquire(t.Context(), create, "u")
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			if !p.Done(Lost) {
				blamed++
			}
		}
		if blamed != 2 {
			t.Errorf("%d calls were not excused, want 2", blamed)
		}
		p, _ := g.Acquire(t.Context(), create, "u")
		p.Done(Responded)
		if s := g.Snapshot().State; s != Running {
			t.Errorf("after a response: %s", s)
		}
	})
}

func BenchmarkAcquireDone(b *testing.B) {
	g := open(Config{Rate: 1 << 30})
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		p, err := g.Acquire(b.Context(), create, "user")
		if err != nil {
			b.Fatal(err)
		}
		p.Done(Unsent)
	}
}
