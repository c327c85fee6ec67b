package governor

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Two governors with shares of one command make its rate together and never more, also after the rate was lowered, with a
// rate that has no halves, and while the API throttles.
func TestShare(t *testing.T) {
	rest := func(_ string, rate int) int { return rate - rate/2 }
	half := func(_ string, rate int) int { return rate / 2 }
	for _, rate := range []int{200, 31, 2, 1} {
		synctest.Test(t, func(t *testing.T) {
			var arrived arrivals
			one, two := open(Config{Rate: 2 * rate, Share: rest}), open(Config{Rate: 2 * rate, Share: half})
			ctx, cancel := context.WithCancel(t.Context())
			var outcome atomic.Int64
			outcome.Store(int64(Responded))
			call := func(int) Outcome {
				time.Sleep(10 * time.Millisecond)
				arrived.note()
				time.Sleep(10 * time.Millisecond)
				return Outcome(outcome.Load())
			}
			first, second := callers(ctx, t, one, 2*rate+5, call), callers(ctx, t, two, 2*rate+5, call)
			time.Sleep(5 * time.Second)
			one.SetRate(rate)
			two.SetRate(rate)
			time.Sleep(2 * time.Second) // what was under way is over
			arrived.mu.Lock()
			arrived.at = nil
			arrived.mu.Unlock()
			time.Sleep(20 * time.Second)
			outcome.Store(int64(Throttled))
			time.Sleep(5 * time.Second)
			cancel()
			first.Wait()
			second.Wait()
			if got := arrived.most(time.Second); got > rate || got < rate*9/10 {
				t.Errorf("rate %d: got %d calls in a second, want that many and no more", rate, got)
			}
			want := map[int]float64{200: 100, 31: 15, 2: 1, 1: 0}[rate]
			if got := two.Snapshot().Lanes[create]; got.Limit != want || got.Effective > want {
				t.Errorf("rate %d: got %+v of the second, want a limit of %v", rate, got, want)
			}
		})
	}
}
