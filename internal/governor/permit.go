package governor

import (
	"sync/atomic"
	"time"

	"groupferry/internal/clock"
)

// Outcome is what became of the call of a permit.
type Outcome int

const (
	Unsent    Outcome = iota // no byte of the call was written: the permit is free at once
	Responded                // the API responded, with or without an error
	Throttled                // the API responded that calls come too fast
	Lost                     // no response of the API: connection refused, reset, timeout, or something in between responded
	Cancelled                // the caller gave up: the call may arrive until its deadline, and counts as under way until then
)

// A Permit is the right to make one call now.
type Permit struct {
	governor *Governor
	lane     *lane
	user     *user
	number   uint64 // counts the grants of the lane
	granted  time.Time
	endBy    time.Time
	sendBy   clock.Deadline
	probe    bool // granted in an outage
	ended    atomic.Bool
}

// Sendable reports whether bytes of the call may still be written. Ask it right before each write: a process that was
// frozen since the grant may have lost its right.
func (p *Permit) Sendable() bool { return !p.sendBy.Passed() }

// SendBy returns the deadline for writing bytes of the call: the end of the right that the permit was granted under, or
// the call timeout if that is earlier. A later right does not move it.
func (p *Permit) SendBy() clock.Deadline { return p.sendBy }

// EndBy returns the call's own deadline: the time of the grant plus the call timeout. The caller has to cancel the call
// then.
func (p *Permit) EndBy() time.Time { return p.endBy }

// Done returns the permit, with the outcome of its call. Until then the call counts as under way. Do not call Done
// before it is certain that no more bytes of the call are written; a second Done does nothing. It reports whether a
// lost call is excused: a call lost in an outage says nothing about its job.
func (p *Permit) Done(o Outcome) (excused bool) {
	if p.ended.Swap(true) {
		return false
	}
	return p.governor.done(p, o)
}
