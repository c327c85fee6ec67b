// Package clock has deadlines that hold when a process was frozen, its machine suspended, or its wall clock set; and a
// pause that ends early.
//
// The monotonic clock of a process stands still while its machine is suspended; the wall clock can be set at any time.
// A [Deadline] is kept on both, and has passed as soon as one of them says so. So it can pass too early, and never later
// than either clock alone would have it.
package clock

import (
	"context"
	"time"
)

// A Clock reads time. The zero value reads the clocks of the machine.
type Clock struct {
	// Wall replaces the wall clock in tests; nil means time.Now. The monotonic clock is always that of time.Now.
	Wall func() time.Time
}

func (c Clock) wall() time.Time {
	if c.Wall != nil {
		return c.Wall().Round(0)
	}
	return time.Now().Round(0) // without the monotonic reading
}

// In returns the deadline at d from now.
func (c Clock) In(d time.Duration) Deadline {
	return Deadline{clock: c, mono: time.Now().Add(d), wall: c.wall().Add(d)}
}

// A Deadline is a moment on both clocks. The zero value has passed.
type Deadline struct {
	clock      Clock
	mono, wall time.Time
}

// IsZero reports whether d is the zero value.
func (d Deadline) IsZero() bool { return d.mono.IsZero() }

// Passed reports whether one of the clocks is at d or past it.
func (d Deadline) Passed() bool { return d.Left() == 0 }

// Left returns how much time is left until d: on the clock that has less, and not below 0.
func (d Deadline) Left() time.Duration {
	if d.IsZero() {
		return 0
	}
	return max(0, min(time.Until(d.mono), d.wall.Sub(d.clock.wall())))
}

// Earlier returns a deadline that passes as soon as a or b does. Both are of the same Clock.
func Earlier(a, b Deadline) Deadline {
	if a.IsZero() || b.IsZero() {
		return Deadline{}
	}
	if b.mono.Before(a.mono) {
		a.mono = b.mono
	}
	if b.wall.Before(a.wall) {
		a.wall = b.wall
	}
	return a
}

// Pause waits for d, and reports whether ctx is still alive then.
func Pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
