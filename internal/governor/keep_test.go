package governor

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"groupferry/internal/clock"
)

const (
	renewEvery   = 500 * time.Millisecond // as in package lease
	rightFor     = 2 * time.Second
	takeoverRest = 500 * time.Millisecond // between the end of a right and the next term: 2.5 s - 2 s
)

// keep renews the promise of g until ctx ends, as package lease does: one request at a time, each takes the given time.
// kick is what g's OnNeed writes to.
func keep(ctx context.Context, g *Governor, kick <-chan struct{}, took time.Duration) {
	for ctx.Err() == nil {
		start := time.Now()
		calls, _ := g.Propose()
		right := clock.Clock{}.In(rightFor)
		time.Sleep(took)
		g.Promised(calls, right)
		select {
		case <-time.After(time.Until(start.Add(renewEvery))):
		case <-kick:
		case <-ctx.Done():
		}
	}
}

// TestThroughput measures the mean rate under a lease, at several call times and distances to NATS. With -v it prints it.
func TestThroughput(t *testing.T) {
	for _, tc := range []struct {
		name    string
		from    time.Duration // a call takes from this
		to      time.Duration // to this
		arrives float64       // after this share of it
		nats    time.Duration // a renewal takes this
		least   float64       // share of 200/s
	}{
		{"0 ms", 0, 0, 0, time.Millisecond, 0.98},
		{"5 ms", 5 * time.Millisecond, 5 * time.Millisecond, 0.5, time.Millisecond, 0.98},
		{"50 ± 10 ms in the API", 40 * time.Millisecond, 60 * time.Millisecond, 0, time.Millisecond, 0.96},
		{"50 ± 10 ms on the way there", 40 * time.Millisecond, 60 * time.Millisecond, 1, time.Millisecond, 0.96},
		{"50 ± 10 ms, NATS 120 ms away", 40 * time.Millisecond, 60 * time.Millisecond, 0.5, 120 * time.Millisecond, 0.96},
		{"50 ± 10 ms, NATS 400 ms away", 40 * time.Millisecond, 60 * time.Millisecond, 0.5, 400 * time.Millisecond, 0.96},
		{"0 ms, NATS a second away", 0, 0, 0, time.Second, 0.98},
		{"150 ± 50 ms", 100 * time.Millisecond, 200 * time.Millisecond, 0.5, time.Millisecond, 0.90},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				random := rand.New(rand.NewPCG(1, 2))
				trips := &MinRTT{}
				kick := make(chan struct{}, 1)
				g := New(Config{Commands: []string{create}, RoundTrip: trips, OnNeed: func() {
					select {
					case kick <- struct{}{}:
					default:
					}
				}}, Inherited{})
				ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
				defer cancel()
				var renewing sync.WaitGroup
				defer renewing.Wait()
				renewing.Go(func() { keep(ctx, g, kick, tc.nats) })
				var a arrivals
				callers(ctx, t, g, 64, func(int) Outcome {
					a.mu.Lock()
					call := tc.from + time.Duration(random.Int64N(int64(tc.to-tc.from)+1))
					a.mu.Unlock()
					there := time.Duration(float64(call) * tc.arrives)
					time.Sleep(there)
					a.note()
					time.Sleep(call - there)
					trips.Note(call)
					return Responded
				}).Wait()
				most, pulse := a.most(time.Second), a.most(100*time.Millisecond)
				warm := a.at[0].Add(10 * time.Second)
				n := 0
				for _, at := range a.at {
					if !at.Before(warm) && at.Before(warm.Add(20*time.Second)) {
						n++
					}
				}
				mean := float64(n) / 20 / DefaultRate
				t.Logf("%5.1f %%, at most %d in a second and %d in 100 ms", 100*mean, most, pulse)
				if most > DefaultRate || pulse > 40 {
					t.Errorf("%d calls in a second, %d in 100 ms", most, pulse)
				}
				if mean < tc.least {
					t.Errorf("mean rate %.1f %%, want %.0f %%", 100*mean, 100*tc.least)
				}
			})
		})
	}
}

// TestPathSilent lets the path hold everything for a while, both ways. The held calls and those granted then must not
// arrive as a pulse.
func TestPathSilent(t *testing.T) {
	for _, silent := range []time.Duration{500 * time.Millisecond, 2600 * time.Millisecond, 5 * time.Second, 8 * time.Second} {
		for _, oneWay := range []time.Duration{0, 25 * time.Millisecond} {
			t.Run(fmt.Sprint(silent, "_", oneWay), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					g := open(Config{})
					start := time.Now()
					held := func() { // silent for a while, then well for five seconds
						if phase := time.Since(start) % (silent + 5*time.Second); phase > 5*time.Second {
							time.Sleep(silent + 5*time.Second - phase)
						}
					}
					ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
					defer cancel()
					var a arrivals
					callers(ctx, t, g, 300, func(int) Outcome {
						time.Sleep(oneWay)
						held()
						a.note()
						time.Sleep(oneWay)
						held()
						return Responded
					}).Wait()
					pulse, second := a.most(100*time.Millisecond), a.most(time.Second)
					t.Logf("at most %d in 100 ms, %d in a second, %d in all", pulse, second, len(a.at))
					if pulse > 40 || second > DefaultRate {
						t.Errorf("got %d calls in 100 ms and %d in a second, want at most 40 and %d", pulse, second, DefaultRate)
					}
					well := 60 * float64(5*time.Second) / float64(5*time.Second+silent)
					if got, want := float64(len(a.at)), 0.85*well*DefaultRate; got < want {
						t.Errorf("got %.0f calls in a minute, want at least %.0f", got, want)
					}
				})
			})
		}
	}
}
