package app

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"groupferry/internal/clock"
	"groupferry/internal/governor"
	"groupferry/internal/queue"
)

// The states of a process, see [Snapshot].
const (
	Running    = "running"    // it leads, and calls may go out
	Standby    = "standby"    // another process leads
	Leaderless = "leaderless" // nobody is known to lead
	Paused     = "paused"     // a person said wait
	Halted     = "halted"     // every job would fail the same way
	Outage     = "outage"     // it leads and the API is out of reach
)

// A Snapshot is what an engine looks like at one moment.
type Snapshot struct {
	State         string // one of the above
	Leading       bool
	Leader        string // host and process of the leader, as last seen; "" for nobody
	LeaderChanges int64  // that this process saw
	Cause         error  // why it is paused or halted
	Commands      map[string]governor.LaneSnapshot
	Jobs          *queue.TermSnapshot // while it leads
	Standstill    time.Duration       // how long calls have waited for over a second without any permit, halts apart
}

// Snapshot returns the present state.
func (e *Engine) Snapshot() Snapshot {
	pace, jobs := e.present()
	s := Snapshot{
		State: Leaderless, LeaderChanges: e.changes.Load(), Cause: e.gate.Halted(),
		Standstill: time.Duration(e.standstill.Load()),
	}
	if r := e.leader.Load(); r != nil && !r.Released {
		s.Leader, s.State = r.Host, Standby
	}
	if pace != nil {
		now := pace.Snapshot()
		s.Leading, s.Leader, s.State, s.Commands = true, e.cfg.Host, Running, now.Lanes
		if now.State == governor.Outage {
			s.State = Outage
		}
	}
	if jobs != nil {
		n := jobs.Snapshot()
		s.Jobs = &n
	}
	if s.Cause != nil {
		s.State = Halted
		if IsPause(s.Cause) {
			s.State = Paused
		}
	}
	return s
}

// Ready returns nil while this process can do its part: as leader or as standby. Else it says why not.
func (e *Engine) Ready() error {
	if cause := e.gate.Halted(); cause != nil {
		return &governor.HaltedError{Cause: cause}
	}
	if !e.cfg.Namespace.Conn.Connected() {
		return errors.New("NATS is out of reach")
	}
	return nil
}

const (
	// standing is how long calls wait without any permit before it counts as a standstill.
	standing     = time.Second
	standingTick = 250 * time.Millisecond
)

// countStandstill counts, until ctx ends, the time in which calls wait and none is permitted.
func (e *Engine) countStandstill(ctx context.Context) {
	for clock.Pause(ctx, standingTick) {
		now := time.Now()
		waiting := 0
		if pace, _ := e.present(); pace != nil {
			for _, lane := range pace.Snapshot().Lanes {
				waiting += lane.Waiting
			}
		}
		last := time.Unix(0, e.lastGrant.Load())
		switch {
		case waiting == 0 || e.gate.Halted() != nil:
			e.lastGrant.Store(now.UnixNano())
		case now.Sub(last) > standing:
			e.standstill.Add(int64(standingTick))
		}
	}
}

// standstillCounter is embedded in Engine.
type standstillCounter struct {
	lastGrant  atomic.Int64 // Unix time in nanoseconds; or when calls began to wait
	standstill atomic.Int64 // nanoseconds
}
