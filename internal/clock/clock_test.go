package clock

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var step time.Duration // of the wall clock
		c := Clock{Wall: func() time.Time { return time.Now().Add(step) }}
		d := c.In(2 * time.Second)
		check := func(what string, left time.Duration) {
			t.Helper()
			if got := d.Left(); got != left || d.Passed() != (left == 0) {
				t.Errorf("%s: got %v left, passed %v; want %v left", what, got, d.Passed(), left)
			}
		}
		check("at first", 2*time.Second)
		time.Sleep(time.Second)
		check("after a second", time.Second)
		step = -time.Hour
		check("wall clock set back", time.Second)
		step = 900 * time.Millisecond
		check("wall clock set ahead, or a suspended machine", 100*time.Millisecond)
		step = time.Hour
		check("wall clock far ahead", 0)
		step = -time.Hour
		time.Sleep(time.Second)
		check("monotonic clock at the deadline", 0)
	})
}

func TestEarlier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c Clock
		a, b := c.In(time.Second), c.In(3*time.Second)
		for _, d := range []Deadline{Earlier(a, b), Earlier(b, a)} {
			if got := d.Left(); got != time.Second {
				t.Errorf("got %v left, want 1s", got)
			}
		}
		if !Earlier(a, Deadline{}).Passed() {
			t.Error("a zero deadline has not passed")
		}
	})
}
