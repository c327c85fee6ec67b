package worker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/governor"
)

const (
	// A call that failed in a way that passes is made again after 0.2, 0.4, 0.8 and 1.6 s, give or take a quarter;
	// the fifth failure ends the attempt.
	callTries   = 5
	callBackoff = 200 * time.Millisecond

	// A code that no document names may be anything: three tries.
	unknownTries = 3

	// Conversations that failed in a way that may pass are sent again twice (51007: "retry twice, then permanent").
	resends = 2

	// After unsentMost unsent tries in a row there is no way to the API: making a connection takes longer than a permit
	// lasts. A frozen process or a suspended machine causes one or two of them.
	unsentMost = 10

	// A response that may come from something in between, such as a proxy that is being restarted, is believed after
	// repeatsMost such calls in a row over repeatsTime, counted over all jobs.
	repeatsMost = 5
	repeatsTime = 2 * time.Second

	// LateTime is how long after it failed a call without a response may take effect; a second is for the way there.
	LateTime = chat.ServerTimeout + time.Second
)

// repeats counts calls in a row that ended in a way that is believed if it lasts. It is safe for concurrent use.
type repeats struct {
	mu    sync.Mutex
	n     int
	since time.Time
}

// add counts one, and reports whether it lasts.
func (r *repeats) add() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.n++; r.n == 1 {
		r.since = time.Now()
	}
	return r.n >= repeatsMost && time.Since(r.since) >= repeatsTime
}

func (r *repeats) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n = 0
}

// call makes one call, and repeats it as necessary: it waits for a permit each time, slows down when throttled, signs
// again once, and tries again after failures that may pass. A *chat.Error is the API's final response; it comes wrapped
// in errAgain when more tries may help later, and in a *governor.HaltedError when every job would fail the same way.
func call[A any](ctx context.Context, a *attempt, command chat.Command, do func(context.Context) (A, error), code func(A) string) (A, error) {
	return callAfter(ctx, a, command, nil, do, code)
}

// callAfter is a call that is made only after before returned nil, no longer than staleAfter ago: that is called before each
// try. An error of it ends the call.
func callAfter[A any](ctx context.Context, a *attempt, command chat.Command, before func(context.Context) error,
	do func(context.Context) (A, error), code func(A) string,
) (A, error) {
	var none A
	tries, unsent, renewed := 0, 0, false
	for {
		var ready time.Time
		if before != nil {
			if err := before(ctx); err != nil {
				return none, err
			}
			ready = time.Now()
		}
		permit, err := a.w.pace.Acquire(ctx, string(command), a.result.FromAccount)
		if err != nil {
			return none, err
		}
		if command != chat.CreateContactGroup && !a.w.known.offers(command) { // learned meanwhile
			permit.Done(governor.Unsent)
			return none, &chat.Error{Command: command, Code: chat.CodeNotOffered}
		}
		if command == chat.CreateContactGroup && a.stale() {
			permit.Done(governor.Unsent)
			return none, errStale
		}
		if before != nil && time.Since(ready) > staleAfter {
			permit.Done(governor.Unsent)
			continue
		}
		response, excused, err := callOnce(ctx, a, permit, command, unsent >= unsentMost, do, code)
		if err == nil {
			a.w.repeats.reset()
			return response, nil
		}
		if ctx.Err() != nil {
			return none, ctx.Err()
		}
		var e *chat.Error
		if !errors.As(err, &e) {
			return none, fmt.Errorf("%w: %w", errAgain, err)
		}
		class := e.Class()
		if e.Unsent() && unsent < unsentMost {
			unsent++
			continue // with another permit; it counts as no try
		}
		if class == chat.Throttle {
			continue
		}
		if class != chat.HaltRepeated {
			a.w.repeats.reset()
		}
		if !excused {
			tries++
		}
		again, err := a.repeat(e, command, tries, renewed)
		if !again {
			return none, err
		}
		if class == chat.Refresh {
			renewed = true
			continue
		}
		a.w.cfg.Observer.Retry(string(command))
		if err := sleep(ctx, jittered(backoff(callBackoff, 5*time.Second, max(0, tries-1)))); err != nil {
			return none, err
		}
	}
}

// callOnce makes one call under a permit. Excused says that a failure does not count, for there is an outage. Far tells
// that a call which is not sent again is one that found no way: see unsentMost.
func callOnce[A any](ctx context.Context, a *attempt, permit *governor.Permit, command chat.Command, far bool,
	do func(context.Context) (A, error), code func(A) string,
) (response A, excused bool, err error) {
	// What a panic leaves open may still arrive.
	outcome := governor.Cancelled
	defer func() { excused = permit.Done(outcome) }()

	start := time.Now()
	response, err = do(chat.WithDeadline(ctx, permit.EndBy(), permit.Sendable))
	took := time.Since(start)
	outcome = outcomeOf(ctx, err)
	if outcome == governor.Unsent {
		if far && ctx.Err() == nil {
			outcome = governor.Lost
			a.w.noResponse(err)
		}
		return response, false, err
	}
	if outcome == governor.Lost {
		a.w.noResponse(err)
	}
	a.calls++
	var e *chat.Error
	errors.As(err, &e)
	if err == nil || e != nil && e.Code != 0 && !e.NotOffered() {
		a.w.known.heard(command)
	}
	if err != nil && (e == nil || e.Code == 0 || e.Class() == chat.Retry || e.Class() == chat.Unknown) {
		a.noteNoResponse(command, e != nil && e.Class() == chat.Unknown)
	}
	switch {
	case err == nil && code != nil:
		a.w.cfg.Observer.CallDone(string(command), code(response), took)
	case err == nil:
		a.w.cfg.Observer.CallDone(string(command), "ok", took)
	case e != nil:
		a.w.cfg.Observer.CallDone(string(command), e.Reason(), took)
	}
	return response, false, err // excused is set by the deferred function
}

func (w *Worker) noResponse(err error) {
	if w.cfg.OnNoResponse != nil {
		w.cfg.OnNoResponse(err)
	}
}

// noteNoResponse notes that nobody knows what became of a call: it had no response, or the response was an internal
// error or timeout of the API, which does not tell either. An unknown code means the same each time, so it needs no
// check.
func (a *attempt) noteNoResponse(command chat.Command, unknown bool) {
	if command == chat.GetContactGroup {
		return
	}
	a.needsCheck = a.needsCheck || !unknown
	late := time.Now().Add(LateTime)
	if a.night {
		a.openUntil = late
	}
	a.maybeCreated = a.maybeCreated || command == chat.CreateContactGroup
	if command == chat.DelContactGroup || command == chat.UpdateContactGroup && a.takesOut ||
		command == chat.CreateContactGroup && !a.w.known.harmless() {
		a.lateUntil = late
	}
}

// outcomeOf tells the governor how a call ended.
func outcomeOf(ctx context.Context, err error) governor.Outcome {
	var e *chat.Error
	switch {
	case err == nil:
		return governor.Responded
	case !errors.As(err, &e):
		return governor.Cancelled // nobody knows whether it was sent
	case e.Unsent():
		return governor.Unsent
	case e.Class() == chat.Throttle:
		return governor.Throttled
	case e.Code != 0, e.NotOffered():
		return governor.Responded
	case e.Status == 0 && ctx.Err() != nil:
		return governor.Cancelled
	}
	return governor.Lost // HTTP 200 carries every response of the API; anything else came from something in between
}

// repeat decides what follows a call that failed: again, or the error to return. Tries counts the failures of this call
// that were not excused, this one included.
func (a *attempt) repeat(e *chat.Error, command chat.Command, tries int, renewed bool) (again bool, err error) {
	most := callTries
	switch class := e.Class(); {
	case e.NotOffered() && command != chat.CreateContactGroup:
		if a.w.known.missed(e) {
			return false, e
		}
	case class == chat.Halt:
		return false, a.halt(e)
	case class == chat.Refresh:
		if renewed {
			return false, a.halt(e)
		}
		if err := a.w.api.Renew(); err != nil {
			return false, a.halt(fmt.Errorf("%w: %w", e, err))
		}
		return true, nil
	case class == chat.HaltRepeated:
		if a.w.repeats.add() {
			return false, a.halt(e)
		}
	case class == chat.Permanent:
		return false, e
	case class == chat.ItemRetry:
		if tries >= 1+resends {
			return false, e
		}
	case class == chat.Unknown && e.Code != 0:
		if tries >= unknownTries {
			return false, e
		}
	}
	if tries >= most {
		return false, fmt.Errorf("%w: %w", errAgain, e)
	}
	return true, nil
}

func (a *attempt) halt(cause error) error {
	a.w.pace.Halt(cause)
	return &governor.HaltedError{Cause: cause}
}

// backoff doubles from first with each step, up to most.
func backoff(first, most time.Duration, step int) time.Duration {
	if step > 20 {
		return most
	}
	return min(most, first<<step)
}

// jittered spreads d by a quarter to either side, so that what failed together does not come back together.
func jittered(d time.Duration) time.Duration {
	return d*3/4 + rand.N(d/2+1)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
