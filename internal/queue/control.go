package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"groupferry/internal/job"
)

// The states of a [Halt].
const (
	Halted = "halted" // the API answered that every call would fail the same way
	Paused = "paused" // a person said wait
)

// A Halt says why the fleet stands still. It stays until somebody clears it, over restarts too.
type Halt struct {
	State   string    `json:"state"`             // Halted or Paused
	Code    string    `json:"code,omitempty"`    // the API's code, if that was the reason
	Reason  string    `json:"reason,omitempty"`  // what happened
	Mend    string    `json:"mend,omitempty"`    // what to do about it
	Command string    `json:"command,omitempty"` // which command goes on afterwards
	By      string    `json:"by,omitempty"`      // who said so
	Since   time.Time `json:"since,omitzero"`
}

const (
	// haltKey is where the halt stands; the value is null when there is none, so that each change has a revision.
	haltKey = "halt"

	haltVersion = 1

	// haltPoll is how late a change is noticed at most when the server's notification of it is lost.
	haltPoll = 5 * time.Second
)

type storedHalt struct {
	Version int `json:"v"`
	Halt
}

func decodeHalt(b []byte) (*Halt, error) {
	var s *storedHalt
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("decode halt: %w", err)
	}
	if s == nil {
		return nil, nil
	}
	if s.Version > haltVersion {
		return nil, fmt.Errorf("decode halt: version %d: %w", s.Version, job.ErrVersion)
	}
	return &s.Halt, nil
}

// Halted reads the halt; it is nil when the fleet may work.
func (q *Queue) Halted(ctx context.Context) (*Halt, error) {
	h, _, err := q.halt(ctx)
	return h, err
}

func (q *Queue) halt(ctx context.Context) (*Halt, uint64, error) {
	var e jetstream.KeyValueEntry
	err := q.ask(ctx, func(c context.Context) (err error) {
		e, err = q.control.Get(c, haltKey)
		return err
	})
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, q.fault(ctx, "read halt", err)
	}
	h, err := decodeHalt(e.Value())
	return h, e.Revision(), err
}

// SetHalt stops the fleet. A halt that is there already stays as it is: the first reason is the one to mend. Since is
// set unless it is.
func (q *Queue) SetHalt(ctx context.Context, h Halt) error {
	if h.State != Halted && h.State != Paused {
		return fmt.Errorf("halt state %q: want %s or %s", h.State, Halted, Paused)
	}
	if h.Since.IsZero() {
		h.Since = time.Now()
	}
	h.Since = h.Since.UTC()
	b, err := json.Marshal(storedHalt{haltVersion, h})
	if err != nil {
		return err
	}
	_, err = q.swapHalt(ctx, b, func(now *Halt) bool { return now == nil })
	return err
}

// ClearHalt lets the fleet work again, and returns what it cleared: nil when there was nothing.
func (q *Queue) ClearHalt(ctx context.Context) (was *Halt, err error) {
	return q.swapHalt(ctx, []byte("null"), func(now *Halt) bool { return now != nil })
}

// swapHalt writes b if what is there now calls for it, and returns what was there.
func (q *Queue) swapHalt(ctx context.Context, b []byte, wanted func(now *Halt) bool) (*Halt, error) {
	for {
		now, revision, err := q.halt(ctx)
		if err != nil || !wanted(now) {
			return now, err
		}
		err = q.ask(ctx, func(c context.Context) (err error) {
			if revision == 0 {
				_, err = q.control.Create(c, haltKey, b)
			} else {
				_, err = q.control.Update(c, haltKey, b, revision)
			}
			return err
		})
		if err == nil {
			return now, nil
		}
		if !lostRace(err) && !errors.Is(err, jetstream.ErrKeyExists) {
			return nil, q.fault(ctx, "write halt", err)
		}
	}
}

// WatchHalt calls changed with the halt as it is, and again after each change, one call at a time, until ctx ends; it
// returns nil then. While the server is out of reach nothing is known and nothing is called. Changes that follow each
// other quickly may come as one. The error is the one of the first read, or says that a newer binary wrote the halt.
func (q *Queue) WatchHalt(ctx context.Context, changed func(*Halt)) error {
	known, told := uint64(0), false
	tell := func(h *Halt, revision uint64) {
		if !told || revision > known {
			known, told = revision, true
			changed(h)
		}
	}
	h, revision, err := q.halt(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	tell(h, revision)

	poll := time.NewTicker(haltPoll)
	defer poll.Stop()
	var w jetstream.KeyWatcher
	var line context.Context // the connection that w came with, and goes with
	stop := func() {
		if w != nil {
			_ = w.Stop()
			w = nil
		}
	}
	defer stop()
	for {
		var updates <-chan jetstream.KeyValueEntry
		if w == nil {
			// Without one the poll goes on, and tries again.
			line = q.line.Load().ctx
			w, _ = q.control.Watch(ctx, haltKey)
		}
		if w != nil {
			updates = w.Updates()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-line.Done():
			stop()
			pause(ctx, reconnectWait)
		case e, ok := <-updates:
			if !ok {
				w = nil
				pause(ctx, reconnectWait)
				continue
			}
			if e == nil {
				continue
			}
			h, err := decodeHalt(e.Value())
			if err != nil {
				return err
			}
			tell(h, e.Revision())
		case <-poll.C:
			h, revision, err := q.halt(ctx)
			if errors.Is(err, job.ErrVersion) {
				return err
			}
			if err == nil && revision > known {
				// The watch should have said so first: it is dead.
				stop()
				tell(h, revision)
			}
		}
	}
}
