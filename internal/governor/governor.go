// Package governor paces the calls of the leader: it grants permits, one for each call, and decides when no call may be
// made.
//
//	          ┌────────────────────────────────────────────────────────────┐
//	Acquire ─►│ waiting   first come, first served; one call of a user     │
//	          │    │                                                       │
//	          │    ▼      granted when a permit of the command is free,    │
//	          │ permit    the pace allows it, the promise has a place left,│
//	          │    │      the right has not passed and nothing is halted   │
//	          │    ▼                                                       │
//	Done    ─►│ cooling   free one second after the call has ended         │
//	          └────────────────────────────────────────────────────────────┘
//	              ▲ Propose, Promised: the lease record says how many calls may be under way
//
// There is one [Governor] for each term of leadership. A [Gate] and a [MinRTT] outlive it. The package does no I/O and
// uses only the standard library and internal/clock.
//
// # Never over the limit
//
// Claim: as long as the rate is not changed, no more calls of a command than its rate arrive at the API within any
// second.
//
// One process. A command has as many permits as calls are allowed in a second. A call arrives after its permit was
// granted and before its end is known ([Permit.Done]). Nobody waits for the end of a call that was cancelled: it
// arrives before its deadline ([Permit.EndBy]) or not at all, and is under way until then. The permit stays taken for
// a second after the end. So two calls with the same permit arrive at least a second apart, and calls that arrive
// within one second hold different permits. The delay of the network is not in that argument.
//
// The next process. Rights of two processes do not overlap (package lease), and no byte of a call is written after the
// right under which its permit was granted ([Permit.Sendable]). So there are two kinds of calls when a right has ended.
// Calls whose end was known arrived before the right ended. The others arrive within the call timeout. Their number is
// at most the one in the lease record, whichever record the successor finds: a higher number is used only after its
// renewal was acknowledged, a lower one already before its renewal is sent. So a successor grants nothing for a second.
// It keeps that many permits taken for the call timeout and a second. Calls that it inherited count as its own in the
// next record.
//
// Two governors of one command. Processes that call the same command under leases of their own share its rate by
// [Config.Share]: the shares of a rate add up to it, so what holds for each of them holds for both together.
//
// A change of the rate. A second that begins after the rate was lowered can exceed the new rate only by calls that were
// under way at that moment.
//
// Waiting times are measured on the monotonic clock: they can only get longer while a machine is suspended. A right
// ends by the monotonic or the wall clock, whichever is first.
//
// What this assumes:
//
//   - Nothing delivers bytes of a call after its connection was closed: no proxy and no paused machine holds unsent
//     bytes. A process that was killed or frozen leaves its bytes to the kernel, which drops them within the call timeout.
//   - A process is not stopped between its last check of [Permit.Sendable] and the write that follows.
//   - NATS keeps the lease record that it acknowledged.
//   - Nobody else calls the API for the app.
//   - Our clock runs at most 0.1 % faster than that of the API (see drift).
//   - The round trip never gets shorter than half of the shortest one seen (see the next section).
//
// # Close to the limit
//
// A permit is taken for the call time and a second, so the rate is limit / (1 s + call time). But take two calls with
// one permit. The first arrived at the API before its response was sent back. The second arrives only after its own way
// there. One way back and one way there make a round trip. So a permit is free earlier after a response: by half of the
// shortest round trip that the process has ever seen, by [creditMost] at most ([MinRTT]). A round trip includes the
// time in the API. If one is shorter than that half, a second can exceed the limit by the calls that the rate makes in
// the difference, until its response arrives. Calls of another process get no credit.
//
// # A steady stream
//
// Permits alone would allow 200 calls in one instant after a start or a pause. Grants are therefore spaced as well. The
// spacing is a little closer than the rate requires, so that the permits set the pace. After lost time at most [burst]
// calls are granted at once. When no response comes for a moment, calls pile up on the way and arrive together. So the
// calls granted since the last response are limited: as many as are under way at the usual call time, and [ahead] more;
// then a few at growing pauses. The first response after that starts a [rest], in which only the piled-up calls arrive.
//
// # Slower, or not at all
//
// A throttled call lowers the rate of its command to what the API has just accepted. Time without one raises it again.
// A halt stops all permits until somebody resumes. When calls fail one after another without reaching the API (an
// outage), one probe at a time is sent until one has a response.
package governor

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"groupferry/internal/clock"
)

// DefaultRate is the vendor's limit for each command of an app, in calls a second.
const DefaultRate = 200

// DefaultTimeout is how long a call may take unless Config says otherwise.
const DefaultTimeout = 10 * time.Second

const (
	// drift is how much longer our second is: NTP slews a clock by 500 ppm at most, so two clocks that are corrected in
	// opposite directions differ by 0.1 %.
	drift = time.Millisecond

	// cooldown is how long a permit stays taken after its call has ended: the second for which the limit is defined.
	cooldown = time.Second + drift

	// An outage is outageStreak calls in a row without a response, or outageFew of them over outageTime: with few calls
	// under way a long streak would take too long.
	outageStreak = 10
	outageFew    = 3
	outageTime   = 2 * time.Second

	// The pause between probes grows from probeFirst to probeMost. While calls wait, the end of an outage is noticed at
	// most probeMost late.
	probeFirst = 250 * time.Millisecond
	probeMost  = 5 * time.Second
)

// ErrClosed is the error of Acquire and AwaitRoom after Close.
var ErrClosed = errors.New("the governor is closed")

// State is what the governor does.
type State string

const (
	Running State = "running"
	Halted  State = "halted" // see [Gate.Halt]
	Outage  State = "outage" // probing
)

// Config sets the rate and the callbacks. The zero value is ready to use. The functions are called without any lock
// held, and must not block; each may be nil.
type Config struct {
	Rate      int           // calls a second for each command; 0 means DefaultRate
	Timeout   time.Duration // of a call; 0 means DefaultTimeout
	Commands  []string      // commands of the first promise; others are added to the next promise when they are used
	Gate      *Gate         // nil means a gate of its own
	RoundTrip *MinRTT       // nil means none: a permit is always taken for the whole second
	Clock     clock.Clock   // for the deadlines of calls

	// Share, unless nil, returns how many of the rate's calls a second this governor grants for a command; the others are
	// another process's. It may be 0.
	Share func(command string, rate int) int

	OnSlower func(command string, rate float64)         // a throttled call lowered the rate
	OnOutage func(on bool)                              // an outage begins or ends
	OnNeed   func()                                     // only the promise limits the calls; once for each proposal
	OnGrant  func(command string, waited time.Duration) // a permit was granted
}

// Inherited is what the predecessor's lease record says about its calls.
type Inherited struct {
	Any     bool           // there was a predecessor
	Calls   map[string]int // by command: calls that may be under way
	Timeout time.Duration  // the longest timeout of one of them; 0 means that of Config
}

// A Governor hands out permits for one term of leadership. All of its methods may be called at the same time.
type Governor struct {
	*Gate
	cfg       Config
	notBefore time.Time // no grant before: calls of a predecessor may have arrived until a second earlier
	inherited struct {
		timeout time.Duration
		until   time.Time // the predecessor's calls are over; their permits are taken for another second
	}

	mu      sync.Mutex
	lanes   map[string]*lane
	users   map[string]*user
	timer   *time.Timer
	tickets uint64 // counts the waiters
	right   clock.Deadline
	promise promise
	asked   bool // OnNeed was called since the last proposal
	need    bool // OnNeed must be called
	closed  bool
	over    chan struct{} // closed by Close

	open        int       // permits that are not done
	openSince   time.Time // when it was last 0
	respondedAt time.Time // the last response

	outage     bool
	streak     int       // calls without a response since the last response
	streakFrom time.Time // when the first of them ended
	probing    bool      // a probe is out
	probeAt    time.Time // no probe before
	probePause time.Duration
}

// A user has at most one call under way, over all commands. Calls of a predecessor are not known by user.
type user struct {
	name    string
	busy    bool
	waiting []*waiter // the first is in its lane's ready list, unless the user is busy
}

type waiter struct {
	ticket uint64 // counts the arrivals
	lane   *lane
	user   *user
	grant  chan *Permit // one place
	gone   bool         // its caller left: skip it
}

// New returns a governor for a term. It grants nothing before [Governor.Promised] is called. If there was a
// predecessor, it grants nothing for a second, and keeps the permits of the predecessor's calls taken for their timeout
// and a second.
func New(cfg Config, from Inherited) *Governor {
	if cfg.Rate <= 0 {
		cfg.Rate = DefaultRate
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultTimeout
	}
	if from.Timeout <= 0 {
		from.Timeout = cfg.Timeout
	}
	g := &Governor{
		Gate:  cfg.Gate,
		cfg:   cfg,
		lanes: map[string]*lane{},
		users: map[string]*user{},
		over:  make(chan struct{}),
	}
	if g.Gate == nil {
		g.Gate = &Gate{}
	}
	now := time.Now()
	if from.Any {
		g.notBefore = now.Add(cooldown)
	}
	g.inherited.timeout, g.inherited.until = from.Timeout, now.Add(from.Timeout)
	for _, command := range cfg.Commands {
		g.lane(command)
	}
	for command, n := range from.Calls {
		g.lane(command).inherited = max(0, n)
	}
	g.timer = time.AfterFunc(math.MaxInt64, g.tick)
	g.timer.Stop()
	return g
}

// Acquire waits for the right to make one call of a command for a user. It returns a *[HaltedError] at once while the
// gate is halted, [ErrClosed] after Close, and ctx's error when that ends first. The caller must return the permit with
// [Permit.Done].
func (g *Governor) Acquire(ctx context.Context, command, userID string) (*Permit, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	start := time.Now()
	halted := g.Gate.closed()
	w := &waiter{grant: make(chan *Permit, 1)}
	g.mu.Lock()
	w.lane = g.lane(command)
	w.lane.waiting++
	g.tickets++
	w.ticket = g.tickets
	w.user = g.users[userID]
	if w.user == nil {
		w.user = &user{name: userID}
		g.users[userID] = w.user
	}
	w.user.waiting = append(w.user.waiting, w)
	if !w.user.busy && len(w.user.waiting) == 1 {
		w.lane.queue(w)
	}
	g.pump()
	g.unlock()

	var err error
	select {
	case p := <-w.grant:
		if g.cfg.OnGrant != nil {
			g.cfg.OnGrant(command, time.Since(start))
		}
		return p, nil
	case <-halted:
		err = &HaltedError{g.lastCause()} // it may be resumed by now
	case <-g.over:
		err = ErrClosed
	case <-ctx.Done():
		err = ctx.Err()
	}
	g.mu.Lock()
	defer g.unlock()
	select {
	case p := <-w.grant: // granted in the meantime
		p.ended.Store(true)
		g.end(p, Unsent, time.Now())
	default:
		w.leave()
		g.forget(w.user)
	}
	g.pump()
	return nil, err
}

// AwaitRoom waits until fewer than most calls of a command wait for their turn. A call that waits for another call of
// its user does not count. A caller that starts work only then keeps the queue here short: it can stop or start more
// urgent work at once, and a crash leaves little under way. AwaitRoom returns [ErrClosed] after Close, and ctx's error
// when that ends first.
func (g *Governor) AwaitRoom(ctx context.Context, command string, most int) error {
	for {
		g.mu.Lock()
		l := g.lane(command)
		if len(l.ready) < most {
			g.mu.Unlock()
			return nil
		}
		if l.room == nil {
			l.room = make(chan struct{})
		}
		room := l.room
		g.mu.Unlock()
		select {
		case <-room:
		case <-g.over:
			return ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// unlock releases the lock, and calls OnNeed if a higher promise is needed.
func (g *Governor) unlock() {
	need := g.need
	g.need = false
	g.mu.Unlock()
	if need && g.cfg.OnNeed != nil {
		g.cfg.OnNeed()
	}
}

// done takes a permit back.
func (g *Governor) done(p *Permit, o Outcome) (excused bool) {
	g.mu.Lock()
	before, rate := g.outage, p.lane.rate
	g.end(p, o, time.Now())
	after, slower := g.outage, p.lane.rate < rate
	rate = p.lane.rate
	g.pump()
	g.unlock()

	if slower && g.cfg.OnSlower != nil {
		g.cfg.OnSlower(p.lane.command, rate)
	}
	if before != after && g.cfg.OnOutage != nil {
		g.cfg.OnOutage(after)
	}
	return o == Lost && after
}

// end notes the outcome of a call, and releases its permit; that of a cancelled call only at its deadline. The lock is
// held.
func (g *Governor) end(p *Permit, o Outcome, now time.Time) {
	g.open--
	if p.probe {
		g.probing = false
	}
	switch o {
	case Unsent:
		g.release(p, time.Time{})
	case Cancelled: // says nothing about the API
		if p.probe && g.outage {
			g.probeAt = now.Add(g.probePause)
		}
		if left := p.endBy.Sub(now); left > 0 {
			time.AfterFunc(left, func() {
				g.mu.Lock()
				defer g.unlock()
				g.release(p, time.Now().Add(cooldown))
				g.pump()
			})
			return
		}
		g.release(p, now.Add(cooldown))
	case Lost:
		g.lost(p, now)
		g.release(p, now.Add(cooldown))
	case Responded, Throttled:
		g.respondedAt, g.streak, g.outage = now, 0, false
		p.lane.responded(now)
		g.release(p, now.Add(cooldown-g.cfg.RoundTrip.credit()))
		if o == Responded {
			p.lane.accepted(p.granted, now)
		} else {
			p.lane.throttle(p.granted, now)
		}
	}
}

// release frees the permit of an ended call at the given time, at once if that is zero; the lock is held.
func (g *Governor) release(p *Permit, free time.Time) {
	p.lane.release(p.number, free)
	u := p.user
	u.busy = false
	if len(u.waiting) > 0 {
		next := u.waiting[0]
		next.lane.queue(next)
	}
	g.forget(u)
}

// lost notes a call without a response; the lock is held.
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

// lane returns the lane of a command; the lock is held.
func (g *Governor) lane(command string) *lane {
	l := g.lanes[command]
	if l == nil {
		limit := g.limitOf(command)
		l = &lane{command: command, limit: limit, rate: limit}
		g.lanes[command] = l
	}
	return l
}

// limitOf returns the calls a second of a command.
func (g *Governor) limitOf(command string) float64 {
	if g.cfg.Share != nil {
		return float64(g.cfg.Share(command, g.cfg.Rate))
	}
	return float64(g.cfg.Rate)
}

// forget drops a user without a call and without waiters; the lock is held.
func (g *Governor) forget(u *user) {
	if !u.busy && len(u.waiting) == 0 {
		delete(g.users, u.name)
	}
}

// leave removes a waiter from its queues; the lock is held.
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
			next.lane.queue(next)
		}
		return
	}
}

func (g *Governor) tick() {
	g.mu.Lock()
	defer g.unlock()
	g.pump()
}

// pump grants all permits that may be granted now, and sets the timer for the next; the lock is held.
func (g *Governor) pump() {
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

// pumpLane grants what it can, and returns when to try again; zero if only an event can change something.
func (g *Governor) pumpLane(l *lane, now time.Time) time.Time {
	for len(l.ready) > 0 {
		w := l.ready[0]
		if w.gone {
			l.ready = l.ready[1:]
			l.shorter()
			continue
		}
		if at, ok := g.mayGrant(l, now); !ok {
			return at
		}
		l.ready = l.ready[1:]
		l.shorter()
		l.waiting--
		w.user.busy = true
		w.user.waiting = w.user.waiting[1:]
		if g.open == 0 {
			g.openSince = now
		}
		g.open++
		if g.outage {
			g.probing = true
		}
		w.grant <- &Permit{
			governor: g, lane: l, user: w.user, number: l.grant(now), probe: g.outage,
			granted: now,
			endBy:   now.Add(g.cfg.Timeout),
			sendBy:  clock.Earlier(g.right, g.cfg.Clock.In(g.cfg.Timeout)),
		}
	}
	return time.Time{}
}

// mayGrant reports whether a permit of the lane can be granted now, and if not, when to try again.
func (g *Governor) mayGrant(l *lane, now time.Time) (time.Time, bool) {
	if g.closed || g.Halted() != nil || g.right.Passed() {
		return time.Time{}, false
	}
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
	inheritedFree := g.inherited.until.Add(cooldown)
	taken := 0
	if now.Before(inheritedFree) {
		taken = l.inherited
	}
	if at, ok := l.free(now, taken, inheritedFree); !ok {
		return at, false
	}
	if at, ok := l.spaced(now); !ok {
		return at, false
	}
	if inherited := g.inheritedCalls(l, now); l.out+inherited >= g.promise.inUse(l.command) {
		if !g.asked && l.needed(now)+inherited > g.promise.latest(l.command) {
			g.asked, g.need = true, true
		}
		if inherited > 0 {
			return g.inherited.until, false
		}
		return time.Time{}, false
	}
	return time.Time{}, true
}

// inheritedCalls returns how many of the predecessor's calls may be under way.
func (g *Governor) inheritedCalls(l *lane, now time.Time) int {
	if now.Before(g.inherited.until) {
		return l.inherited
	}
	return 0
}

// Propose returns what the next renewal of the lease should promise: for each command how many calls may be under way,
// inherited ones included, and how long the longest of them may take. Numbers lower than before apply from now on.
func (g *Governor) Propose() (calls map[string]int, timeout time.Duration) {
	g.mu.Lock()
	defer g.unlock()
	now := time.Now()
	calls, timeout = make(map[string]int, len(g.lanes)), g.cfg.Timeout
	for _, l := range g.lanes {
		inherited := g.inheritedCalls(l, now)
		if inherited > 0 {
			timeout = max(timeout, g.inherited.timeout)
		}
		calls[l.command] = l.needed(now) + inherited
	}
	g.promise.propose(calls)
	g.asked = false
	return calls, timeout
}

// Promised tells the governor that a renewal was acknowledged. The lease record has these numbers of calls, which may
// be used until right passes. No renewal that was sent earlier may still change the record.
func (g *Governor) Promised(calls map[string]int, right clock.Deadline) {
	g.mu.Lock()
	defer g.unlock()
	g.promise.acknowledge(calls)
	g.right = right
	g.pump()
}

// UnderWay returns how many calls of each command may still arrive: permits that are not done, cancelled calls until
// their timeout, and inherited ones until theirs. It also returns the longest timeout of one of them.
func (g *Governor) UnderWay() (calls map[string]int, timeout time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	calls, timeout = map[string]int{}, g.cfg.Timeout
	for _, l := range g.lanes {
		inherited := g.inheritedCalls(l, now)
		if inherited > 0 {
			timeout = max(timeout, g.inherited.timeout)
		}
		if n := l.out + inherited; n > 0 {
			calls[l.command] = n
		}
	}
	return calls, timeout
}

// SetRate changes the calls a second for each command; 0 means DefaultRate. It resets what throttled calls have
// changed.
func (g *Governor) SetRate(rate int) {
	if rate <= 0 {
		rate = DefaultRate
	}
	g.mu.Lock()
	defer g.unlock()
	g.cfg.Rate = rate
	for _, l := range g.lanes {
		limit := g.limitOf(l.command)
		l.limit, l.rate, l.slowed = limit, limit, time.Time{}
	}
	g.pump()
}

// Close stops the granting of permits. Waiting callers get [ErrClosed]. Granted permits can still be returned.
func (g *Governor) Close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.closed = true
		close(g.over)
	}
}

// Silent returns for how long the API has not responded: since its last response, or since calls have been under way if
// that is shorter. In an outage it is the time since the first call without a response ended. Outside an outage it is 0
// while no call is under way.
func (g *Governor) Silent() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.outage:
		return time.Since(g.streakFrom)
	case g.open == 0:
		return 0
	}
	return time.Since(later(g.openSince, g.respondedAt))
}

// A Snapshot is the state of a governor at one moment.
type Snapshot struct {
	State State
	Right time.Duration           // for how long permits may be granted without another renewal
	Lanes map[string]LaneSnapshot // by command

	Responded bool // the API has responded to a call of this governor
}

// A LaneSnapshot is the state of the permits of one command.
type LaneSnapshot struct {
	Limit     float64 // calls a second, as configured
	Effective float64 // calls a second, lowered by throttled calls
	Out       int     // own calls that may still arrive: not ended, or cancelled and before their deadline
	Inherited int     // calls of a predecessor that may still arrive
	Promised  int     // limit of Out and Inherited together
	Waiting   int     // calls that wait for a permit
	Throttled int     // throttled calls so far
}

// Snapshot returns the present state.
func (g *Governor) Snapshot() Snapshot {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := Snapshot{State: Running, Right: g.right.Left(), Responded: !g.respondedAt.IsZero(), Lanes: make(map[string]LaneSnapshot, len(g.lanes))}
	switch {
	case g.Halted() != nil:
		s.State = Halted
	case g.outage:
		s.State = Outage
	}
	now := time.Now()
	for _, l := range g.lanes {
		l.recover(now)
		s.Lanes[l.command] = LaneSnapshot{
			Limit: l.limit, Effective: l.rate, Out: l.out, Inherited: g.inheritedCalls(l, now),
			Promised: g.promise.inUse(l.command), Waiting: l.waiting, Throttled: l.throttled,
		}
	}
	return s
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
