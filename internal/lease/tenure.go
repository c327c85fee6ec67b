package lease

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"groupferry/internal/clock"
)

// A Pace decides what the record promises. Its methods are called by the goroutine that runs Keep, in turn.
type Pace interface {
	// Propose returns what the next renewal should promise: by command the calls that may be under way, inherited ones
	// included, and the longest timeout of one. Numbers lower than before apply from now on.
	Propose() (calls map[string]int, timeout time.Duration)

	// Promised tells that the last proposal was acknowledged: its numbers may be used, until right passes. Proposals
	// before it do not matter any more.
	Promised(calls map[string]int, right clock.Deadline)
}

// A Tenure is one term of one leader.
type Tenure struct {
	c      *Candidate
	term   uint64
	before Record
	kick   chan struct{} // one place: renew now

	// Of the goroutine that runs Keep or Release.
	revision uint64         // that the next write replaces
	sent     Record         // the last write
	deadline clock.Deadline // the right from it, if it succeeded

	mu    sync.Mutex
	right clock.Deadline
	over  bool // lost or released: no more renewals
}

// Term returns the number of this term.
func (t *Tenure) Term() uint64 { return t.term }

// Before returns the last record of the term before: what the predecessor promised, and whether it released the lease.
// It is the zero Record when there never was one.
func (t *Tenure) Before() Record { return t.before.clone() }

// Right returns until when this process may act as the leader, as far as is known. It moves ahead with each renewal and
// has passed for good once the lease is lost or being released.
func (t *Tenure) Right() clock.Deadline {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.right
}

// Kick makes Keep renew the lease soon: at once, but not within 50 ms of the renewal before.
func (t *Tenure) Kick() {
	select {
	case t.kick <- struct{}{}:
	default: // one is due already
	}
}

// take tries once to take the lease. After an error, found reports whether it was taken all the same.
func (t *Tenure) take(ctx context.Context) error {
	return t.write(ctx, t.c.record(t.term, t.before.Calls, max(t.before.Timeout, t.c.cfg.Timeout)))
}

// write writes a record in place of the last one. If that succeeds, the right counts from before it was sent.
func (t *Tenure) write(ctx context.Context, r Record) error {
	t.sent, t.deadline = r, t.c.cfg.Clock.In(Duration)
	revision, err := replace(ctx, t.c.store, r, t.revision)
	if err == nil {
		t.acknowledge(revision)
		t.c.observe(r, revision)
	}
	return err
}

// found takes in a record that was read, and reports whether it is of this tenure, and if so whether it is the last
// write. An earlier write gives no right: it could have been stored long ago.
func (t *Tenure) found(r Record, revision uint64) (own, last bool) {
	if revision == 0 || r.Holder != t.c.cfg.Name || r.Term != t.term {
		return false, false
	}
	if r.Renewal == t.sent.Renewal {
		t.acknowledge(revision)
		return true, true
	}
	t.revision = revision
	return true, false
}

// acknowledge notes that the last write is stored.
func (t *Tenure) acknowledge(revision uint64) {
	t.revision = revision
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.over {
		t.right = t.deadline
	}
}

// end gives up the right for good, and reports whether this was the first time.
func (t *Tenure) end() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	first := !t.over
	t.right, t.over = clock.Deadline{}, true
	return first
}

func (t *Tenure) isOver() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.over
}

// Keep renews the lease at once and then every RenewEvery, one request at a time, until ctx ends or the lease is lost.
// It returns nil when ctx ended; the lease stays as it is then, for Release, or for Keep again. Otherwise the error
// wraps ErrLost. Requests that fail are repeated, also when the right has passed: as long as nobody else took the lease
// this process still has it.
func (t *Tenure) Keep(ctx context.Context, pace Pace) error {
	if t.isOver() {
		return fmt.Errorf("renew lease: %w", ErrLost)
	}
	for ctx.Err() == nil {
		asked := time.Now()
		renewed, err := t.renew(ctx, pace)
		if err != nil {
			t.end()
			return fmt.Errorf("renew lease: %w", err)
		}
		next, soonest := asked.Add(RenewEvery), asked.Add(kickEvery)
		if !renewed {
			next, soonest = asked.Add(pollEvery), asked.Add(pollEvery)
		}
		timer := time.NewTimer(time.Until(next))
		select {
		case <-timer.C:
		case <-t.kick:
			_ = sleep(ctx, time.Until(soonest)) // the loop checks ctx
		case <-ctx.Done():
		}
		timer.Stop()
	}
	return nil
}

// renew tries once to renew the lease, and reports whether it did. An error wraps ErrLost.
func (t *Tenure) renew(ctx context.Context, pace Pace) (renewed bool, err error) {
	calls, timeout := pace.Propose()
	r := t.c.record(t.term, calls, timeout)
	if err := t.write(ctx, r); err != nil {
		if renewed, err := t.find(ctx); err != nil || !renewed {
			return false, err
		}
	}
	pace.Promised(r.clone().Calls, t.deadline)
	return true, nil
}

// find reads what became of the last write, and reports whether the store has it. An error wraps ErrLost.
func (t *Tenure) find(ctx context.Context) (stored bool, err error) {
	r, revision, err := Read(ctx, t.c.store)
	switch {
	case errors.Is(err, ErrVersion):
		return false, fmt.Errorf("%w: %w", ErrLost, err)
	case err != nil:
		return false, nil
	}
	t.c.observe(r, revision)
	own, stored := t.found(r, revision)
	if !own {
		return false, fmt.Errorf("%w: %s has it for term %d", ErrLost, r.name(), r.Term)
	}
	return stored, nil
}

// Release releases the lease: to everybody, or to the candidate of the given name first. Call it after Keep has
// returned. The process must not act as the leader any more: the right ends before anything is sent. Calls are those
// that may be under way, inherited ones and unused permits included; timeout is the longest that one of them takes.
// Handovers is for Record.Handovers.
//
// Requests that fail are repeated until ctx ends; then the error wraps the last one, and it is open whether the lease
// was released: others take it after TakeoverDelay at the latest. The error wraps ErrLost when another process has the
// lease, which may have got it by this release.
func (t *Tenure) Release(ctx context.Context, calls map[string]int, timeout time.Duration, successor string, handovers int) error {
	if !t.end() {
		return fmt.Errorf("release lease: %w", ErrLost)
	}
	for {
		r := t.c.record(t.term, calls, timeout)
		r.Released, r.Successor, r.Handovers = true, successor, handovers
		asked := time.Now()
		err := t.write(ctx, r)
		if err == nil {
			return nil
		}
		if stored, err := t.find(ctx); err != nil || stored {
			if err != nil {
				err = fmt.Errorf("release lease: %w", err)
			}
			return err
		}
		if sleep(ctx, time.Until(asked.Add(pollEvery))) != nil {
			return fmt.Errorf("release lease: %w", err)
		}
	}
}

// name returns who holds the lease, for people.
func (r Record) name() string {
	switch {
	case r.Host != "":
		return r.Host
	case r.Holder != "":
		return r.Holder
	}
	return "nobody"
}
