package governor

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// A HaltedError is the error of Acquire while the gate is halted.
type HaltedError struct {
	Cause error // of the halt
}

func (e *HaltedError) Error() string { return fmt.Sprintf("halted: %v", e.Cause) }
func (e *HaltedError) Unwrap() error { return e.Cause }

// IsHalted reports whether err is or wraps a [HaltedError].
func IsHalted(err error) bool {
	var h *HaltedError
	return errors.As(err, &h)
}

// A Gate is open or halted. A process has one Gate for all its governors. The zero value is open.
type Gate struct {
	OnHalt func(error) // called once for each halt with its cause, without any lock held; may be nil

	mu     sync.Mutex
	cause  error         // nil while it is open
	last   error         // the cause of the last halt
	halted chan struct{} // closed while it is halted
	opened chan struct{} // closed while it is open
}

// Halt stops the granting of permits: every call would fail as this one did. Waiting callers get a *[HaltedError].
// Calls under way continue. The first cause is kept.
func (g *Gate) Halt(cause error) {
	g.mu.Lock()
	g.make()
	first := g.cause == nil
	if first {
		g.cause, g.last = cause, cause
		g.opened = make(chan struct{})
		close(g.halted)
	}
	g.mu.Unlock()
	if first && g.OnHalt != nil {
		g.OnHalt(cause)
	}
}

// Resume ends a halt.
func (g *Gate) Resume() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.make()
	if g.cause != nil {
		g.cause = nil
		g.halted = make(chan struct{})
		close(g.opened)
	}
}

// Halted returns the cause of the halt, nil while there is none.
func (g *Gate) Halted() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.cause
}

// lastCause returns the cause of the last halt, nil if there never was one.
func (g *Gate) lastCause() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.last
}

// AwaitResume returns nil as soon as nothing is halted, or ctx's error when that ends first.
func (g *Gate) AwaitResume(ctx context.Context) error {
	g.mu.Lock()
	g.make()
	opened := g.opened
	g.mu.Unlock()
	select {
	case <-opened:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// closed returns a channel that is closed while the gate is halted.
func (g *Gate) closed() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.make()
	return g.halted
}

// make makes the channels of a zero gate; the lock is held.
func (g *Gate) make() {
	if g.halted == nil {
		g.halted, g.opened = make(chan struct{}), make(chan struct{})
		close(g.opened)
	}
}
