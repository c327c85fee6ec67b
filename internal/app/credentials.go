package app

import (
	"context"
	"errors"
	"fmt"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/clock"
	"groupferry/internal/governor"
	"groupferry/internal/queue"
)

// verify proves the credentials before the first job of this process, and ends a halt if it is to.
func (e *Engine) verify(ctx context.Context, pace *governor.Governor) error {
	for s, _ := e.state.get(); !s.Verified; s, _ = e.state.get() {
		if cause := e.gate.Halted(); cause != nil {
			if e.cfg.LeaveOnHalt && !IsPause(cause) {
				return &governor.HaltedError{Cause: cause}
			}
			if err := e.gate.AwaitResume(ctx); err != nil {
				return err
			}
		}
		err := e.checkCredentials(ctx, pace)
		switch {
		case err == nil:
			// Not before: a number with a typo would make the namespace that of an app that is not there.
			err := e.retry(ctx, "claim the namespace", func() error { return e.cfg.Namespace.ClaimApp(ctx, e.cfg.App) })
			if err != nil {
				return err
			}
			e.state.set(func(s *State) { s.Verified = true })
		case errors.Is(err, ErrCredentials):
			return err
		case governor.IsHalted(err): // by somebody, meanwhile
		default:
			return err
		}
	}
	if e.lifting.Load() {
		var was *queue.Halt
		err := e.retry(ctx, "lift the halt", func() (err error) {
			was, err = e.cfg.Namespace.ClearHalt(ctx)
			return err
		})
		if err != nil {
			return err
		}
		e.lifting.Store(false)
		if was != nil {
			e.log.Info("the halt is lifted: the credentials work", "since", was.Since, "reason", was.Reason)
		}
	}
	return nil
}

// A failure of the call that proves the credentials may pass, as that of any other call. It is made again after 0.2,
// 0.4, 0.8 s and so on, up to 5 s.
const (
	checkBackoff = 200 * time.Millisecond
	checkPause   = 5 * time.Second

	// maxRejections calls in a row that something in between rejected, within 3 s by the pauses between them, are no accident.
	maxRejections = 5

	// checkLimit is for commands that end with their import: somebody waits to be told that the API is out of
	// reach. No new call is made after it.
	checkLimit = 15 * time.Second
)

// ErrCredentials says that the API, or something on the way to it, rejected this process, whose credentials have never worked.
var ErrCredentials = errors.New("no call of this process was ever accepted")

// ErrAPIUnreachable says that the API did not respond before the first call of a job.
var ErrAPIUnreachable = errors.New("the API is out of reach")

func (e *Engine) checkCredentials(ctx context.Context, pace *governor.Governor) error {
	start, renewed, rejected := time.Now(), false, 0
	for pause := checkBackoff; ; pause = min(2*pause, checkPause) {
		failure, err := e.checkOnce(ctx, pace)
		if failure == nil || ctx.Err() != nil {
			return err
		}
		rejected++
		if failure.Class() != chat.HaltRepeated {
			rejected = 0
		}
		switch class := failure.Class(); {
		case class == chat.Refresh && !renewed:
			renewed = true
			if rerr := e.cfg.API.Renew(); rerr != nil {
				return fmt.Errorf("%w: %w", ErrCredentials, &governor.HaltedError{Cause: err})
			}
			continue
		case class == chat.Halt, class == chat.Refresh, rejected >= maxRejections:
			return fmt.Errorf("%w: %w", ErrCredentials, &governor.HaltedError{Cause: err})
		}
		if time.Since(start) > checkLimit {
			if e.cfg.LeaveOnHalt {
				return fmt.Errorf("%w: %w", ErrAPIUnreachable, err)
			}
			if s, _ := e.state.get(); s.Outage == nil { // else it is logged
				e.log.Warn("the API does not respond yet", "error", err)
			}
			start = time.Now()
		}
		if !clock.Pause(ctx, pause) {
			return ctx.Err()
		}
	}
}

// checkOnce makes the call. The first result is the error as the API's, if it is one.
func (e *Engine) checkOnce(ctx context.Context, pace *governor.Governor) (*chat.Error, error) {
	return e.callOnce(ctx, pace, chat.GetContactGroup, e.cfg.API.Check)
}

// callOnce makes a call that is about no job. The first result is the error as the API's, if it is one.
func (e *Engine) callOnce(
	ctx context.Context, pace *governor.Governor, command chat.Command, do func(context.Context) error,
) (*chat.Error, error) {
	permit, err := pace.Acquire(ctx, string(command), "")
	if err != nil {
		return nil, err
	}
	start := time.Now()
	err = do(chat.WithDeadline(ctx, permit.EndBy(), permit.Sendable))
	code, took := "ok", time.Since(start)
	var failure *chat.Error
	errors.As(err, &failure)
	outcome := governor.Responded
	switch {
	case failure == nil:
	case failure.Unsent():
		outcome = governor.Unsent
	case ctx.Err() != nil:
		outcome = governor.Cancelled
	case failure.Class() == chat.Throttle:
		outcome = governor.Throttled
	case failure.Code == 0 && !failure.NotOffered():
		outcome = governor.Lost
		e.noResponse.Store(&err)
	}
	permit.Done(outcome)
	if outcome == governor.Unsent {
		return failure, err
	}
	if failure != nil {
		code = failure.Reason()
	}
	e.tally.CallDone(string(command), code, took)
	return failure, err
}
