package governor

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// underWay counts the calls of a command that may still arrive.
func underWay(g interface {
	UnderWay() (map[string]int, time.Duration)
}, command string) int {
	calls, _ := g.UnderWay()
	return calls[command]
}

// A leader passes on the calls that it inherited and could not wait for, with their timeout, not its own.
func TestInheritedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Config{Timeout: 10 * time.Second}, Inherited{
			Any: true, Calls: map[string]int{create: 150}, Timeout: time.Minute,
		})
		time.Sleep(30 * time.Second)
		g.Close()
		if calls, timeout := g.UnderWay(); calls[create] != 150 || timeout != time.Minute {
			t.Errorf("handed on: got %v for %v, want 150 for 1m0s", calls, timeout)
		}
		time.Sleep(time.Minute)
		if calls, timeout := g.UnderWay(); len(calls) != 0 || timeout != 10*time.Second {
			t.Errorf("when they are over: got %v for %v, want none, and 10s", calls, timeout)
		}
	})
}

// A caller that waits when a halt begins gets its cause, also if the halt ends before the caller reads it.
func TestHaltAndResumeAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Config{}, Inherited{}) // nothing is promised, so nothing is granted
		cause := errors.New("why")
		got := make(chan error, 1)
		go func() {
			_, err := g.Acquire(t.Context(), create, "u")
			got <- err
		}()
		synctest.Wait()
		g.Halt(cause)
		g.Resume()
		if err := <-got; !IsHalted(err) || !errors.Is(err, cause) {
			t.Errorf("got %v, want halted: why", err)
		}
	})
}
