// Package governor paces the calls of a whole fleet: it hands out permits, one for each call, and decides when none may
// be made.
//
//	 one of the members leads, elected by a lease
//	┌───────────────────────────────────────────────────────────────────┐
//	│ Governor     waiting: first come first served, one call of a user │◄── wants of the other members
//	│                 │                                                 │
//	│                 ▼     granted when a permit of the command is     │
//	│               permit  free, the pace allows it, nothing is halted │──► grants
//	│                 │                                                 │
//	│  Done(outcome) ◄┘ call                                            │◄── outcomes
//	│      │                                                            │
//	│      └─► cooling: free again one second after the call has ended  │
//	└───────────────────────────────────────────────────────────────────┘
//
// A [Governor] does that for one process. [Member] is a process of a fleet: it asks whoever leads, and leads when
// nobody does. The package uses the standard library only; a [Link] carries its lease and its messages.
//
// # Never over the limit
//
// Every command has as many permits as calls are allowed in a second. A call reaches the server after its permit was
// granted and before its end is known, and the permit stays taken for a second after that. So all calls that arrive
// within any one second hold different permits at the end of that second, and there are no more calls than permits.
// Neither the delay of the network nor the clock of any other machine is in that argument: each process measures only
// how much time has passed.
//
// In a fleet the leader may not hear of a call's end. A member gives its leader signs of life, and a grant answers the
// last one. Its call begins within [validity] of that sign, or the permit goes back unused; it is over after the
// timeout of that member's calls. So a permit of which nothing is heard is free after validity + timeout + 1 s.
//
// There are never two leaders that grant. A leader grants until [reign] after it sent the last renewal of its lease
// that succeeded. A member that takes the lease from it first waits until everything that may have been granted is
// over: reign + validity + the longest timeout + 1 s after it first saw the last renewal. It waits no more than a second
// after a lease that was handed over with all permits back, and not at all after one that is long past. Where the leader
// alone used the permits and ran the embedded server that this process runs now, it is dead, its connections have
// dropped what they held, and what is on the wire gets [wire].
//
// What this takes for granted: a caller says Done only when its call cannot reach the server any more (the client drops
// what is unsent with a connection that it gives up); clocks run at the same speed, and do not stand still while the
// machine works; the server of the lease does not lose what it has acknowledged. Outside of it are a process that
// freezes between looking at the validity of its permit and writing the call, and other programs that call the API for
// the same app.
//
// # Close to the limit
//
// A permit is taken for the length of its call and a second, so the rate is limit / (1 s + call time). But of two calls
// with one permit the first was at the server before its answer began the way back, and the second is there only after
// the way there: the second can be shorter by the shortest round trip there is. The shortest that was seen of many, less
// a margin of a twentieth and a millisecond at least, is taken for that; see [Trips] and TestRoundTripCredit. A path that suddenly is shorter than it ever was by more than the margin can let a
// second have as many calls too many as the difference makes, until the first answer on it is in.
//
// # A steady stream
//
// Permits alone would let 200 calls go in one instant after a start or a pause. Grants are therefore spaced as well,
// a little closer than the rate asks so that the permits, not the spacing, set the pace; time lost is caught up by
// at most [burst] calls at once. And when nothing is answered for a moment, the calls that pile up on the way would
// arrive together: only so many go out ahead of the last answer as are under way at the usual length of a call, and
// [ahead] more; then one each [trickle].
//
// # Slower, or not at all
//
// A throttled call lowers the rate of its command for everybody to what the API has just taken, and time without one
// raises it again. A halt refuses all permits until somebody resumes. When calls fail one after another without
// reaching the API (an outage), one probe at a time goes out until one gets through.
package governor

import (
	"cmp"
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"sync/atomic"
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

	// trickle is how long nothing is granted then until one call goes out all the same: those that are not answered may
	// be of one process whose way to the API is cut, and the next one's answer says that the way of others is not.
	trickle = 250 * time.Millisecond

	// smoothing is the weight of one call in the usual length of a call.
	smoothing = 1.0 / 16

	// A throttled call lowers the rate to slowdown times what the API has taken in the last second, and by a step at
	// least: the limit that it enforces cannot be lower than what it took. It stays above the full rate times least,
	// for an API that refuses calls at random, or because of others, gives no rate to settle at.
	slowdown = 0.97
	step     = 0.95
	least    = 0.05

	// After that the rate stays for hold. Then it rises, each second by firstGain of the full rate, twice as much
	// after each doubling without a throttled call, up to mostGain. So it finds the limit again with a refused call now
	// and then, and a limit that is gone is noticed: from half of the full rate it takes 21 s to the whole.
	hold      = 2 * time.Second
	firstGain = 0.005
	mostGain  = 0.05
	doubling  = 5 * time.Second

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

	vanished Outcome = -1 // nobody said: the permit is free when its call must have ended, and a second later
)

// State says in one word what the governor does.
type State string

const (
	Running State = "running"
	Halted  State = "halted" // see [Gate.Halt]
	Outage  State = "outage" // probing

	Leaderless State = "leaderless" // of a member that knows no leader
)

// Config says how fast. The zero value is ready to use.
type Config struct {
	Rate       int                                // calls a second for each command; 0 means DefaultRate
	Quarantine time.Duration                      // no permit is granted before this much time has passed; see [New]
	Gate       *Gate                              // who halts; nil means a gate of its own
	RoundTrip  func() time.Duration               // see [MemberConfig]; may be nil
	OnSlower   func(command string, rate float64) // a throttled call lowered the rate
	OnOutage   func(on bool)
}

// errClosed is what waiters of a governor get that hands out no more permits.
var errClosed = errors.New("another governor leads")

// A Governor hands out permits. All of its methods may be called at the same time.
type Governor struct {
	*Gate
	cfg       Config
	notBefore time.Time

	mu      sync.Mutex
	lanes   map[string]*lane
	users   map[string]*user
	timer   *time.Timer
	tickets uint64        // counts the waiters
	until   time.Time     // no grant from then on; zero for ever
	over    chan struct{} // closed by Close

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
	limit     float64     // calls a second, as configured
	rate      float64     // calls a second now: less than limit after a throttled call
	floor     float64     // what it was lowered to
	slowed    time.Time   // when that was
	taken     []time.Time // when calls of the last second were answered, throttled ones apart
	out       int         // permits whose call has not ended
	granted   uint64      // counts the grants
	answered  uint64      // number of the latest grant whose call has ended
	usual     float64     // length of a call in seconds, smoothed
	cooling   []time.Time // when the others come back, in order
	last      time.Time   // of the last grant
	next      time.Time   // a grant at this time would be on the dot
	ready     []*waiter   // by ticket; each is the first of its user
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
	ticket  uint64 // counts the arrivals
	lane    *lane
	user    *user
	grant   chan *Permit // one place
	granted *grant       // what is in grant
	gone    bool         // its caller left: skip it
}

// A Permit is the right to make one call now.
type Permit struct {
	granted time.Time
	ended   atomic.Bool
	end     func(o Outcome, roundTrip time.Duration) (excused bool)
}

// Done hands the permit back with what became of its call. Until then the call counts as under way; a second Done
// does nothing. It tells whether a lost call is excused: during an outage it says nothing about the job it was for.
func (p *Permit) Done(o Outcome) (excused bool) {
	return p.doneAfter(o, -1)
}

// doneAfter is Done for a call of a process that has seen round trips as short as the given one; negative for this
// process.
func (p *Permit) doneAfter(o Outcome, roundTrip time.Duration) (excused bool) {
	if p.ended.Swap(true) {
		return false
	}
	return p.end(o, roundTrip)
}

// A grant is a permit that is out, as its governor sees it.
type grant struct {
	lane   *lane
	user   *user
	number uint64 // counts the grants of the lane
	at     time.Time
	probe  bool
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
		over:      make(chan struct{}),
		Gate:      cfg.Gate,
	}
	if g.Gate == nil {
		g.Gate = &Gate{}
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
	w := &waiter{grant: make(chan *Permit, 1)}
	closed := g.closed()
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
		w.lane.line(w)
	}
	g.pump()
	g.mu.Unlock()

	var err error
	select {
	case p := <-w.grant:
		return p, nil
	case <-closed:
		err = &HaltedError{g.Halted()}
	case <-g.over:
		err = errClosed
	case <-ctx.Done():
		err = ctx.Err()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case p := <-w.grant: // granted in the meantime
		p.ended.Store(true)
		g.end(w.granted, Unsent, 0, time.Now())
	default:
		w.leave()
		g.forget(w.user)
	}
	g.pump()
	return nil, err
}

// done takes a permit back.
func (g *Governor) done(t *grant, o Outcome, roundTrip time.Duration) (excused bool) {
	if roundTrip < 0 {
		roundTrip = 0
		if g.cfg.RoundTrip != nil {
			roundTrip = g.cfg.RoundTrip()
		}
	}
	g.mu.Lock()
	now := time.Now()
	before, rate := g.outage, t.lane.rate
	g.end(t, o, roundTrip, now)
	after, slower := g.outage, t.lane.rate < rate
	rate = t.lane.rate
	g.pump()
	g.mu.Unlock()

	if slower && g.cfg.OnSlower != nil {
		g.cfg.OnSlower(t.lane.command, rate)
	}
	if before != after && g.cfg.OnOutage != nil {
		g.cfg.OnOutage(after)
	}
	return o == Lost && after
}

// end takes a permit back; the lock is held.
func (g *Governor) end(t *grant, o Outcome, roundTrip time.Duration, now time.Time) {
	l, u := t.lane, t.user
	l.out--
	if o != Unsent {
		free := now.Add(cooldown)
		if o == Answered || o == Throttled {
			free = free.Add(-credit(roundTrip))
		}
		i := len(l.cooling)
		for i > 0 && l.cooling[i-1].After(free) {
			i--
		}
		l.cooling = slices.Insert(l.cooling, i, free)
	}
	l.answered = max(l.answered, t.number)
	if o == Answered {
		l.forgetTaken(now)
		l.taken = append(l.taken, now)
		l.usual += smoothing * (now.Sub(t.at).Seconds() - l.usual)
	}
	u.busy = false
	if len(u.waiting) > 0 {
		next := u.waiting[0]
		next.lane.line(next)
	}
	g.forget(u)

	if t.probe {
		g.probing = false
	}
	switch o {
	case Answered, Throttled:
		g.streak, g.outage = 0, false
	case Lost:
		g.lost(t, now)
	}
	if o == Throttled {
		l.throttle(t.at, now)
	}
}

// credit is how much earlier than a second after its call a permit may come back; see the package comment.
func credit(roundTrip time.Duration) time.Duration {
	return max(0, roundTrip-max(roundTrip/20, time.Millisecond))
}

// lost notes a call without an answer.
func (g *Governor) lost(t *grant, now time.Time) {
	if g.outage {
		if t.probe {
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
	l.forgetTaken(now)
	l.rate = max(1, l.limit*least, min(l.rate*step, float64(len(l.taken))*slowdown))
	l.floor, l.slowed = l.rate, now
}

// recover gives back what time has healed.
func (l *lane) recover(now time.Time) {
	if l.rate < l.limit {
		l.rate = min(l.limit, l.floor+l.limit*gain(now.Sub(l.slowed)))
	}
}

// gain is the share of the full rate that comes back within d after it was lowered.
func gain(d time.Duration) float64 {
	var sum float64
	for d, each := d-hold, firstGain; d > 0; d, each = d-doubling, min(2*each, mostGain) {
		sum += min(d, doubling).Seconds() * each
		if each == mostGain {
			return sum + max(0, d-doubling).Seconds()*each
		}
	}
	return sum
}

// forgetTaken forgets calls that were answered more than a second ago.
func (l *lane) forgetTaken(now time.Time) {
	old := 0
	for old < len(l.taken) && now.Sub(l.taken[old]) >= cooldown {
		old++
	}
	l.taken = l.taken[old:]
}

// lane returns the lane of a command; the lock is held.
func (g *Governor) lane(command string) *lane {
	l := g.lanes[command]
	if l == nil {
		rate := float64(g.cfg.Rate)
		l = &lane{command: command, limit: rate, rate: rate}
		g.lanes[command] = l
	}
	return l
}

// line puts a waiter whose turn it is for its user where it would stand if it had never waited for another of that user.
func (l *lane) line(w *waiter) {
	i, _ := slices.BinarySearchFunc(l.ready, w.ticket, func(o *waiter, t uint64) int { return cmp.Compare(o.ticket, t) })
	l.ready = slices.Insert(l.ready, i, w)
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
			next.lane.line(next)
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
		l.last = now
		space := time.Duration(float64(time.Second) / (l.rate * spacing))
		l.next = later(l.next, now.Add(-(burst-1)*space)).Add(space)
		w.user.busy = true
		w.user.waiting = w.user.waiting[1:]
		if g.outage {
			g.probing = true
		}
		t := &grant{lane: l, user: w.user, number: l.granted, at: now, probe: g.outage}
		w.granted = t
		w.grant <- &Permit{granted: now, end: func(o Outcome, trip time.Duration) bool { return g.done(t, o, trip) }}
	}
	return time.Time{}
}

// mayGrant tells whether a permit of the lane can be granted now, and if not, when to ask again.
func (g *Governor) mayGrant(l *lane, now time.Time) (time.Time, bool) {
	if g.Halted() != nil || !g.until.IsZero() && !now.Before(g.until) {
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
	if float64(l.granted-l.answered) >= ahead+l.rate*l.usual && now.Sub(l.last) < trickle {
		return l.last.Add(trickle), false
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

// Until lets the governor grant only before t, until it is told a later time.
func (g *Governor) Until(t time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.until = t
	g.pump()
}

// SetRate changes the calls a second for each command. Throttled commands begin anew.
func (g *Governor) SetRate(rate int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if rate <= 0 {
		rate = DefaultRate
	}
	g.cfg.Rate = rate
	for _, l := range g.lanes {
		l.limit, l.rate, l.slowed = float64(rate), float64(rate), time.Time{}
	}
	g.pump()
}

// Close ends all granting. Those who wait get an error; permits that are out can still be handed back. Close can be
// called once.
func (g *Governor) Close() {
	g.Until(time.Unix(0, 0))
	close(g.over)
}

// Out counts the permits that are out.
func (g *Governor) Out() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for _, l := range g.lanes {
		n += l.out
	}
	return n
}

// waiting counts the calls that wait.
func (g *Governor) waiting() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for _, l := range g.lanes {
		n += l.waiting
	}
	return n
}

// A Snapshot is what a governor, or a member, looks like at one moment.
type Snapshot struct {
	State State
	Lanes map[string]LaneSnapshot // by command; of a governor, or a member that leads

	// Of members.
	Leading       bool
	Waiting, Out  int           // calls of this member that wait, or are under way, where another one leads
	LeaderChanges int64         // so far, as this member saw them
	Refused       int64         // permits that came too late to be used
	Standstill    time.Duration // how long calls of this member have waited while none was permitted
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
	case g.Halted() != nil:
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
