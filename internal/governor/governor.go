// Package governor paces the calls: it hands out permits, one for each call, and decides when none may be made.
//
//	Acquire(command, user) ──► waiting: first come first served, one call of a user at a time
//	                              │
//	                              ▼   granted when a permit of the command is free, the pace allows it,
//	                            permit    and nothing is halted
//	                              │
//	    Done(outcome) ◄── call ◄──┘
//	        │
//	        └─► cooling: the permit is free again one second after its call has ended
//
// # Never over the limit
//
// Every command has as many permits as calls are allowed in a second. A call reaches the server after its permit was
// granted and before [Permit.Done] is called for it, and the permit stays taken for a second after that. So all calls
// that arrive within any one second hold different permits at the end of that second, and there are no more calls
// than permits. Neither the delay of the network nor the server's clock is in that argument: time is measured here
// alone, and only how much of it has passed.
//
// What it takes for granted: a caller calls Done only once the call can no longer reach the server, and no other
// program calls the API for the same app.
//
// # A steady stream
//
// Permits alone would let 200 calls go in one instant after a start or a pause. Grants are therefore spaced as well,
// a little closer than the rate asks so that the permits, not the spacing, set the pace; time lost is caught up by
// at most [burst] calls at once. And when nothing is answered for a moment, the calls that pile up on the way would
// arrive together: only so many go out ahead of the last answer as are under way at the usual length of a call, and
// [ahead] more.
//
// # Slower, or not at all
//
// A throttled call lowers the rate of its command for everybody, and time without one raises it again. A halt refuses
// all permits until somebody resumes. When calls fail one after another without reaching the API (an outage), one
// probe at a time goes out until one gets through.
package governor

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"
)

// DefaultRate is the vendor's limit for each command of an app, in calls a second.
const DefaultRate = 200

const (
	// cooldown is how long a permit stays taken after its call has ended: the length of the window that the limit
	// is counted in.
	cooldown = time.Second

	// spacing is how much closer than 1/rate grants may follow each other.
	spacing = 1.05

	// burst is how many grants may come at once after time was lost. In 100 ms there are then at most
	// 0.1 s × 200/s × 1.05 + 4 = 25.
	burst = 4

	// ahead is how many calls more than usual may be under way that were granted after the last one answered. When
	// a server that stood still goes on, they arrive within the same 100 ms as the next 25: 37 at most, of the 40
	// that are allowed.
	ahead = 12

	// smoothing is the weight of one call in the usual length of a call.
	smoothing = 1.0 / 16

	// slowdown is what a throttled call leaves of the rate, and recovery the share of the full rate that comes back
	// with each second without one. At 200/s a rate that fell to half is whole again after 50 s.
	slowdown = 0.8
	recovery = 0.01

	// An outage is outageStreak calls in a row without an answer, or outageFew of them over outageTime: with few
	// calls under way a long streak would take too long to gather.
	outageStreak = 10
	outageFew    = 3
	outageTime   = 2 * time.Second

	// The pause between probes grows from probeFirst to probeMost, which is also how late the end of an outage is
	// noticed at most.
	probeFirst = 250 * time.Millisecond
	probeMost  = 5 * time.Second
)

// Outcome is what became of a permit.
type Outcome int

const (
	Unsent    Outcome = iota // no call was made: the permit is free at once
	Answered                 // the API answered, whatever it said
	Throttled                // the API answered: slower
	Lost                     // no answer: refused, reset, timed out, or from something in between
)

// State says in one word what the governor does.
type State string

const (
	Running State = "running"
	Halted  State = "halted" // see [Governor.Halt]
	Outage  State = "outage" // probing
)

// States lists all states.
var States = []State{Running, Halted, Outage}

// Config says how fast. The zero value is ready to use.
type Config struct {
	Rate       int           // calls a second for each command; 0 means DefaultRate
	Quarantine time.Duration // no permit is granted before this much time has passed; see [New]
	OnHalt     func(error)   // called once for each halt with its cause, without any lock held; may be nil
	OnGrant    func(command string, waited time.Duration)
	OnSlower   func(command string, rate float64) // a throttled call lowered the rate
	OnOutage   func(on bool)
}

// A HaltedError is what Acquire returns while nothing may be called.
type HaltedError struct {
	Cause error // what made it halt
}

func (e *HaltedError) Error() string { return fmt.Sprintf("halted: %v", e.Cause) }
func (e *HaltedError) Unwrap() error { return e.Cause }

// A Governor hands out permits. All of its methods may be called at the same time.
type Governor struct {
	cfg       Config
	notBefore time.Time

	mu      sync.Mutex
	lanes   map[string]*lane
	users   map[string]*user
	timer   *time.Timer
	halt    error         // nil while it runs
	resumed chan struct{} // closed when halt goes back to nil

	outage     bool
	streak     int       // calls without an answer since the last one with one
	streakFrom time.Time // end of the first of them
	probing    bool      // a probe is out
	probeAt    time.Time // the next probe not before
	probePause time.Duration
}

// A lane holds the permits of one command.
type lane struct {
	command   string
	limit     float64 // calls a second, as configured
	rate      float64 // calls a second now: less than limit after a throttled call
	rateAt    time.Time
	slowed    time.Time   // when the rate was last lowered
	out       int         // permits whose call has not ended
	granted   uint64      // counts the grants
	answered  uint64      // number of the latest grant whose call has ended
	usual     float64     // length of a call in seconds, smoothed
	cooling   []time.Time // when the others come back, in order
	next      time.Time   // a grant at this time would be on the dot
	ready     []*waiter   // in order of arrival; each is the first of its user
	waiting   int         // all waiters, also those behind another of the same user
	throttled int
}

// A user has at most one call under way, over all commands.
type user struct {
	name    string
	busy    bool
	waiting []*waiter // the first is in its lane's ready list, unless the user is busy
}

type waiter struct {
	lane    *lane
	user    *user
	since   time.Time
	grant   chan *Permit // one place
	refused chan error   // one place
	gone    bool         // its caller left: skip it
}

// A Permit is the right to make one call now.
type Permit struct {
	governor *Governor
	lane     *lane
	user     *user
	number   uint64 // counts the grants of the lane
	granted  time.Time
	probe    bool
	ended    bool
}

// New returns a governor that grants from now on, or after the quarantine. A quarantine is needed where calls of an
// earlier governor of the same app may still be on their way: it has to cover the longest call and a second.
func New(cfg Config) *Governor {
	if cfg.Rate <= 0 {
		cfg.Rate = DefaultRate
	}
	g := &Governor{
		cfg:       cfg,
		notBefore: time.Now().Add(cfg.Quarantine),
		lanes:     map[string]*lane{},
		users:     map[string]*user{},
		resumed:   make(chan struct{}),
	}
	g.timer = time.AfterFunc(math.MaxInt64, g.tick)
	g.timer.Stop()
	return g
}

// Acquire waits for the right to make one call of a command for a user. It returns a *[HaltedError] at once while
// the governor is halted, and ctx's error when that ends first. The permit has to be handed back with [Permit.Done].
func (g *Governor) Acquire(ctx context.Context, command, userID string) (*Permit, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	w := &waiter{since: time.Now(), grant: make(chan *Permit, 1), refused: make(chan error, 1)}
	g.mu.Lock()
	if g.halt != nil {
		defer g.mu.Unlock()
		return nil, &HaltedError{g.halt}
	}
	w.lane = g.lane(command)
	w.lane.waiting++
	w.user = g.users[userID]
	if w.user == nil {
		w.user = &user{name: userID}
		g.users[userID] = w.user
	}
	w.user.waiting = append(w.user.waiting, w)
	if !w.user.busy && len(w.user.waiting) == 1 {
		w.lane.ready = append(w.lane.ready, w)
	}
	g.pump()
	g.mu.Unlock()

	select {
	case p := <-w.grant:
		if g.cfg.OnGrant != nil {
			g.cfg.OnGrant(command, p.granted.Sub(w.since))
		}
		return p, nil
	case err := <-w.refused:
		return nil, err
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case p := <-w.grant: // granted in the meantime
		p.end(Unsent, time.Now())
		g.pump()
	case <-w.refused:
	default:
		w.leave()
		g.forget(w.user)
		g.pump()
	}
	return nil, ctx.Err()
}

// Done hands the permit back with what became of its call. Until then the call counts as under way; a second Done
// does nothing. It tells whether a lost call is excused: during an outage it says nothing about the job it was for.
func (p *Permit) Done(o Outcome) (excused bool) {
	g := p.governor
	g.mu.Lock()
	if p.ended {
		g.mu.Unlock()
		return false
	}
	now := time.Now()
	before, rate := g.outage, p.lane.rate
	p.end(o, now)
	after, slower := g.outage, p.lane.rate < rate
	rate = p.lane.rate
	g.pump()
	g.mu.Unlock()

	if slower && g.cfg.OnSlower != nil {
		g.cfg.OnSlower(p.lane.command, rate)
	}
	if before != after && g.cfg.OnOutage != nil {
		g.cfg.OnOutage(after)
	}
	return o == Lost && after
}

// end takes the permit back; the lock is held.
func (p *Permit) end(o Outcome, now time.Time) {
	g, l, u := p.governor, p.lane, p.user
	p.ended = true
	l.out--
	if o != Unsent {
		l.cooling = append(l.cooling, now.Add(cooldown))
	}
	l.answered = max(l.answered, p.number)
	if o == Answered {
		l.usual += smoothing * (now.Sub(p.granted).Seconds() - l.usual)
	}
	u.busy = false
	if len(u.waiting) > 0 {
		next := u.waiting[0]
		next.lane.ready = append(next.lane.ready, next)
	}
	g.forget(u)

	if p.probe {
		g.probing = false
	}
	switch o {
	case Answered, Throttled:
		g.streak, g.outage = 0, false
	case Lost:
		g.lost(p, now)
	}
	if o == Throttled {
		l.throttle(p.granted, now)
	}
}

// lost notes a call without an answer.
func (g *Governor) lost(p *Permit, now time.Time) {
	if g.outage {
		if p.probe {
			g.probePause = min(2*g.probePause, probeMost)
			g.probeAt = now.Add(g.probePause)
		}
		return
	}
	if g.streak == 0 {
		g.streakFrom = now
	}
	g.streak++
	if g.streak >= outageStreak || g.streak >= outageFew && now.Sub(g.streakFrom) >= outageTime {
		g.outage = true
		g.probePause = probeFirst
		g.probeAt = now.Add(probeFirst)
	}
}

// throttle lowers the rate, once for all the calls that were granted before the last lowering could show.
func (l *lane) throttle(granted, now time.Time) {
	l.throttled++
	if !granted.After(l.slowed) {
		return
	}
	l.recover(now)
	l.rate = max(1, l.rate*slowdown)
	l.slowed = now
}

// recover gives back what time has healed.
func (l *lane) recover(now time.Time) {
	if l.rate < l.limit {
		healed := now.Sub(l.rateAt).Seconds() * recovery * l.limit
		l.rate = min(l.limit, l.rate+healed)
	}
	l.rateAt = now
}

// lane returns the lane of a command; the lock is held.
func (g *Governor) lane(command string) *lane {
	l := g.lanes[command]
	if l == nil {
		rate := float64(g.cfg.Rate)
		l = &lane{command: command, limit: rate, rate: rate, rateAt: time.Now()}
		g.lanes[command] = l
	}
	return l
}

// forget drops a user of whom nothing is left; the lock is held.
func (g *Governor) forget(u *user) {
	if !u.busy && len(u.waiting) == 0 {
		delete(g.users, u.name)
	}
}

// leave takes a waiter out of its queues; the lock is held.
func (w *waiter) leave() {
	w.gone = true
	w.lane.waiting--
	u := w.user
	for i, other := range u.waiting {
		if other != w {
			continue
		}
		u.waiting = append(u.waiting[:i], u.waiting[i+1:]...)
		if i == 0 && !u.busy && len(u.waiting) > 0 {
			next := u.waiting[0]
			next.lane.ready = append(next.lane.ready, next)
		}
		return
	}
}

func (g *Governor) tick() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pump()
}

// pump grants all that may be granted now and sets the timer for the next time something may be; the lock is held.
func (g *Governor) pump() {
	if g.halt != nil {
		return
	}
	now := time.Now()
	var wake time.Time
	for _, l := range g.lanes {
		at := g.pumpLane(l, now)
		if !at.IsZero() && (wake.IsZero() || at.Before(wake)) {
			wake = at
		}
	}
	if !wake.IsZero() {
		g.timer.Reset(time.Until(wake))
	}
}

// pumpLane grants what it can and returns when to look again; zero where only an event can help.
func (g *Governor) pumpLane(l *lane, now time.Time) time.Time {
	for len(l.ready) > 0 {
		w := l.ready[0]
		if w.gone {
			l.ready = l.ready[1:]
			continue
		}
		if at, ok := g.mayGrant(l, now); !ok {
			return at
		}
		l.ready = l.ready[1:]
		l.waiting--
		l.out++
		l.granted++
		step := time.Duration(float64(time.Second) / (l.rate * spacing))
		l.next = later(l.next, now.Add(-(burst-1)*step)).Add(step)
		w.user.busy = true
		w.user.waiting = w.user.waiting[1:]
		if g.outage {
			g.probing = true
		}
		w.grant <- &Permit{governor: g, lane: l, user: w.user, number: l.granted, granted: now, probe: g.outage}
	}
	return time.Time{}
}

// mayGrant tells whether a permit of the lane can be granted now, and if not, when to ask again.
func (g *Governor) mayGrant(l *lane, now time.Time) (time.Time, bool) {
	if now.Before(g.notBefore) {
		return g.notBefore, false
	}
	if g.outage {
		if g.probing {
			return time.Time{}, false
		}
		if now.Before(g.probeAt) {
			return g.probeAt, false
		}
	}
	l.recover(now)
	for len(l.cooling) > 0 && !now.Before(l.cooling[0]) {
		l.cooling = l.cooling[1:]
	}
	if l.out+len(l.cooling) >= int(l.rate) {
		if len(l.cooling) == 0 {
			return time.Time{}, false
		}
		return l.cooling[0], false
	}
	if float64(l.granted-l.answered) >= ahead+l.rate*l.usual {
		return time.Time{}, false
	}
	if now.Before(l.next) {
		return l.next, false
	}
	return time.Time{}, true
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// Halt refuses all permits from now on: every call would fail as this one did. Those who wait get a *[HaltedError];
// calls under way end as they will. The first cause is kept.
func (g *Governor) Halt(cause error) {
	g.mu.Lock()
	if g.halt != nil {
		g.mu.Unlock()
		return
	}
	g.halt = cause
	for _, u := range g.users {
		for _, w := range u.waiting {
			w.gone = true
			w.lane.waiting--
			w.refused <- &HaltedError{cause}
		}
		u.waiting = nil
		g.forget(u)
	}
	for _, l := range g.lanes {
		l.ready = nil
	}
	g.mu.Unlock()
	if g.cfg.OnHalt != nil {
		g.cfg.OnHalt(cause)
	}
}

// Resume ends a halt.
func (g *Governor) Resume() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.halt == nil {
		return
	}
	g.halt = nil
	close(g.resumed)
	g.resumed = make(chan struct{})
}

// Halted returns the cause of the halt, nil while there is none.
func (g *Governor) Halted() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.halt
}

// AwaitResume returns nil as soon as the governor is not halted, or ctx's error when that ends first.
func (g *Governor) AwaitResume(ctx context.Context) error {
	for {
		g.mu.Lock()
		halted, resumed := g.halt != nil, g.resumed
		g.mu.Unlock()
		if !halted {
			return nil
		}
		select {
		case <-resumed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// A Snapshot is what the governor looks like at one moment.
type Snapshot struct {
	State State
	Lanes map[string]LaneSnapshot // by command
}

// A LaneSnapshot is what the permits of one command look like.
type LaneSnapshot struct {
	Limit     float64 // calls a second, as configured
	Effective float64 // calls a second, as lowered by throttled calls
	Out       int     // permits whose call has not ended
	Waiting   int     // calls that wait for a permit
	Throttled int     // throttled calls so far
}

// Snapshot returns the present state.
func (g *Governor) Snapshot() Snapshot {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := Snapshot{State: Running, Lanes: make(map[string]LaneSnapshot, len(g.lanes))}
	switch {
	case g.halt != nil:
		s.State = Halted
	case g.outage:
		s.State = Outage
	}
	now := time.Now()
	for _, l := range g.lanes {
		l.recover(now)
		s.Lanes[l.command] = LaneSnapshot{l.limit, l.rate, l.out, l.waiting, l.throttled}
	}
	return s
}

// IsHalted tells whether err says that the governor is halted.
func IsHalted(err error) bool {
	var h *HaltedError
	return errors.As(err, &h)
}
