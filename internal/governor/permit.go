package governor

import (
	"sync/atomic"
	"time"

	"groupferry/internal/clock"
)

// Outcome is what became of a permit.
type Outcome int

const (
	Unsent    Outcome = iota // no byte of the call was written: the permit is free at once
	Responded                // the API answered, whatever it said
	Throttled                // the API answered: slower
	Lost                     // no response: refused, reset, timed out, or from something in between
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

// Sendable tells whether bytes of the call may still be written. It has to be asked right before each write: a process
// that was frozen since the grant may have lost its right.
func (p *Permit) Sendable() bool { return !p.sendBy.Passed() }

// SendBy returns the deadline for writing bytes of the call: that of the right that the permit was granted under, or the
// call timeout if that is earlier. A later right does not move it.
func (p *Permit) SendBy() clock.Deadline { return p.sendBy }

// EndBy returns the call's own deadline: the grant and the call timeout. The caller has to give the call up then.
func (p *Permit) EndBy() time.Time { return p.endBy }

// Done hands the permit back with what became of its call. Until then the call counts as under way. Done must not be
// called before it is certain that no more bytes of the call are written; a second Done does nothing. It tells whether
// a lost call is excused: during an outage it says nothing about the job it was for.
func (p *Permit) Done(o Outcome) (excused bool) {
	if p.ended.Swap(true) {
		return false
	}
	return p.governor.done(p, o)
}
