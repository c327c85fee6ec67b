package governor

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// beatEvery is how often a member that wants or has permits gives its leader a sign of life.
	beatEvery = 250 * time.Millisecond

	// askAgain is how old a want is before a leader that does not know it has to be asked again: it got lost.
	askAgain = time.Second

	// silent is how long a leader keeps the wants of a member that gives no sign of life.
	silent = 2 * time.Second

	// gone is how long it remembers such a member at all.
	gone = 30 * time.Second

	// handOver is how long a leader that leaves waits for the permits that are out.
	handOver = 3 * time.Second

	// standing is how long calls wait without any permit before it counts as a standstill.
	standing = time.Second
)

// MemberConfig says who joins a fleet. Name is needed; the rest has defaults.
type MemberConfig struct {
	Name        string        // unlike that of any other member, now or earlier
	Rate        int           // calls a second for each command, while this member leads; 0 means DefaultRate
	CallTimeout time.Duration // after which a call of this process is over, whatever happens; 0 means DefaultCallTimeout
	Home        func() bool   // tells whether this process runs the embedded server that keeps the lease; nil: it does not
	Gate        *Gate         // who halts; nil means a gate of its own

	// RoundTrip tells the shortest time from the first byte of a call to the first byte of its answer that this
	// process has seen, 0 when it knows none; nil: it never does.
	RoundTrip func() time.Duration

	// These are told what happens, without any lock held; each may be nil.
	OnGrant  func(command string, waited time.Duration)
	OnSlower func(command string, rate float64)
	OnOutage func(on bool)
	OnLead   func(leading bool, wait time.Duration) // with how long the first permit has to wait
	OnError  func(error)                            // of the lease; the member goes on trying

	// OnInherit is told, before the first permit, that the process which led before is known to be gone, and that no
	// other was at work: what it had in hand is nobody's.
	OnInherit func()
}

// A Member is one process of a fleet. Of all members one leads: its [Governor] grants the permits of all.
type Member struct {
	*Gate
	cfg  MemberConfig
	link Link

	mu      sync.Mutex
	term    *term         // while this member leads
	turn    chan struct{} // closed when term changes
	leader  string        // who leads, as far as this member knows; "" for nobody
	epoch   uint64
	state   State // of the leader, as it told
	beat    uint64
	beats   [16]beatAt // the last ones, by number
	wants   map[uint64]*want
	out     map[uint64]bool // permits of another member's governor
	lastID  uint64
	granted time.Time // when this member last got a permit, or began to wait for one

	poke     chan struct{} // one place: look at the lease now
	changes  atomic.Int64
	refused  atomic.Int64
	stood    atomic.Int64 // nanoseconds
	running  sync.WaitGroup
	stop     context.CancelFunc
	stopHear func()
}

type beatAt struct {
	number uint64
	at     time.Time
}

// A want is a call of this member that waits for the permit of another.
type want struct {
	id            uint64
	command, user string
	asked         time.Time
	grant         chan granted // one place
}

type granted struct {
	permit *Permit
	until  time.Time // when its call has to have begun
}

// A term is the time in which a member leads.
type term struct {
	governor *Governor
	epoch    uint64
	lease    lease // as it was last written
	change   lease // as it has to be before certain members get permits
	renew    chan struct{}
	held     []message // wants that have to wait for that
	grants   uint64    // counts the permits of peers
	peers    map[string]*peer
}

// A peer is another member, as the leader sees it.
type peer struct {
	name    string
	beat    uint64
	heard   time.Time
	longest time.Duration
	trip    time.Duration
	wants   map[uint64]context.CancelFunc
	permits map[uint64]*peerPermit // by number of the grant
	served  map[uint64]bool        // wants whose permit is out
}

type peerPermit struct {
	permit *Permit
	want   uint64
	expiry *time.Timer
}

// A message is what members send each other. T is one of the kinds below.
type message struct {
	T         string        `json:"t"`
	From      string        `json:"from"`
	Epoch     uint64        `json:"epoch,omitempty"`
	ID        uint64        `json:"id,omitempty"`    // of a want
	Grant     uint64        `json:"grant,omitempty"` // of a permit: a want can be granted twice if messages are late
	Beat      uint64        `json:"beat,omitempty"`
	Command   string        `json:"command,omitempty"`
	User      string        `json:"user,omitempty"`
	Longest   time.Duration `json:"longest,omitempty"`
	RoundTrip time.Duration `json:"trip,omitempty"`
	Outcome   Outcome       `json:"outcome,omitempty"`
	State     State         `json:"state,omitempty"`
	Waiting   int           `json:"waiting,omitempty"`
}

const (
	mWant  = "want"  // to the leader: a call waits
	mDrop  = "drop"  // to the leader: it waits no longer
	mBeat  = "beat"  // to the leader: a sign of life
	mDone  = "done"  // to the leader: a permit comes back
	mGrant = "grant" // from the leader: a permit, in answer to the sign of life with that number
	mState = "state" // from the leader: how it stands, and how many wants of the member it knows
	mBye   = "bye"   // from the leader: it leaves
)

// Join makes this process a member of the fleet behind the link. It has to [Member.Leave].
func Join(link Link, cfg MemberConfig) (*Member, error) {
	if cfg.CallTimeout <= 0 {
		cfg.CallTimeout = DefaultCallTimeout
	}
	if cfg.Home == nil {
		cfg.Home = func() bool { return false }
	}
	if cfg.RoundTrip == nil {
		cfg.RoundTrip = func() time.Duration { return 0 }
	}
	if cfg.Gate == nil {
		cfg.Gate = &Gate{}
	}
	m := &Member{
		Gate: cfg.Gate, cfg: cfg, link: link,
		turn:  make(chan struct{}),
		wants: map[uint64]*want{},
		out:   map[uint64]bool{},
		poke:  make(chan struct{}, 1),
	}
	stop, err := link.Listen(cfg.Name, m.hear)
	if err != nil {
		return nil, err
	}
	m.stopHear = stop
	ctx, cancel := context.WithCancel(context.Background())
	m.stop = cancel
	m.running.Go(func() { m.elect(ctx) })
	m.running.Go(func() { m.live(ctx) })
	return m, nil
}

// Leave hands the lead over, if this member has it, and ends its membership. Its own calls should have ended.
func (m *Member) Leave() {
	m.stop()
	m.running.Wait()
	m.stopHear()
}

// Acquire is [Governor.Acquire] for the whole fleet.
func (m *Member) Acquire(ctx context.Context, command, userID string) (*Permit, error) {
	start := time.Now()
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		p, until, err := m.acquire(ctx, command, userID)
		switch {
		case errors.Is(err, errClosed):
			continue
		case err != nil:
			return nil, err
		}
		now := time.Now()
		if now.After(until) { // this process slept since
			m.refused.Add(1)
			p.Done(Unsent)
			continue
		}
		m.mu.Lock()
		m.granted = now
		m.mu.Unlock()
		if m.cfg.OnGrant != nil {
			m.cfg.OnGrant(command, now.Sub(start))
		}
		return p, nil
	}
}

// acquire gets a permit from whoever leads. The error is errClosed when that changed meanwhile.
func (m *Member) acquire(ctx context.Context, command, userID string) (*Permit, time.Time, error) {
	closed := m.closed()
	m.mu.Lock()
	if t := m.term; t != nil {
		m.mu.Unlock()
		p, err := t.governor.Acquire(ctx, command, userID)
		if err != nil {
			return nil, time.Time{}, err
		}
		return p, p.granted.Add(validity), nil
	}
	turn := m.turn
	if len(m.wants) == 0 {
		m.granted = time.Now() // the wait begins here
	}
	m.lastID++
	w := &want{id: m.lastID, command: command, user: userID, grant: make(chan granted, 1)}
	m.wants[w.id] = w
	m.ask(w)
	m.mu.Unlock()

	var err error
	select {
	case g := <-w.grant:
		return g.permit, g.until, nil
	case <-turn:
		err = errClosed
	case <-closed:
		err = &HaltedError{m.Halted()}
	case <-ctx.Done():
		err = ctx.Err()
	}
	m.mu.Lock()
	delete(m.wants, w.id)
	leader := m.leader
	m.mu.Unlock()
	select {
	case g := <-w.grant: // granted in the meantime
		g.permit.Done(Unsent)
	default:
		m.send(leader, message{T: mDrop, ID: w.id})
	}
	return nil, time.Time{}, err
}

// ask sends a want to the leader; the lock is held. What gets lost is asked again by hearState.
func (m *Member) ask(w *want) {
	w.asked = time.Now()
	m.send(m.leader, message{T: mWant, ID: w.id, Command: w.command, User: w.user, Beat: m.nextBeat(), Longest: m.cfg.CallTimeout})
}

// nextBeat numbers a sign of life and notes when it was given; the lock is held.
func (m *Member) nextBeat() uint64 {
	m.beat++
	m.beats[m.beat%uint64(len(m.beats))] = beatAt{m.beat, time.Now()}
	return m.beat
}

// send sends a message, to nobody if there is no leader. One that cannot be sent is one that is lost.
func (m *Member) send(to string, msg message) {
	if to == "" || to == m.cfg.Name {
		return
	}
	msg.From = m.cfg.Name
	if raw, err := json.Marshal(msg); err == nil {
		_ = m.link.Send(to, raw)
	}
}

func (m *Member) fault(err error) {
	if m.cfg.OnError != nil {
		m.cfg.OnError(err)
	}
}

// live gives signs of life, and counts standstills, until ctx ends.
func (m *Member) live(ctx context.Context) {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		m.mu.Lock()
		now := time.Now()
		waiting := len(m.wants)
		if t := m.term; t != nil {
			waiting += t.governor.waiting()
		} else if waiting > 0 || len(m.out) > 0 {
			m.send(m.leader, message{T: mBeat, Beat: m.nextBeat(), Longest: m.cfg.CallTimeout})
		}
		switch {
		case waiting == 0 || m.Halted() != nil:
			m.granted = now
		case now.Sub(m.granted) > standing:
			m.stood.Add(int64(beatEvery))
		}
		m.mu.Unlock()
	}
}

// elect follows whoever leads, and leads when nobody does.
func (m *Member) elect(ctx context.Context) {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	var known sighting
	inSight := false // known has been in sight, unchanged, since known.seen
	for {
		asked := time.Now()
		s, err := m.look(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			m.fault(err)
			inSight = false
		default:
			if !inSight || s.revision != known.revision {
				known, inSight = s, true
			} else {
				// While an answer is overdue nothing is in sight, and the leader may not be heard for the same reason.
				known.seen = known.seen.Add(max(0, time.Since(asked)-renewEvery))
			}
			m.follow(known.lease)
			take, grant := known.takeAt(m.cfg.Home())
			if !time.Now().Before(take) && m.lead(ctx, known, grant) {
				inSight = false
				continue
			}
		}
		select {
		case <-tick.C:
		case <-m.poke:
		case <-ctx.Done():
			return
		}
	}
}

// follow turns to the leader that a lease names.
func (m *Member) follow(l lease) {
	m.mu.Lock()
	defer m.mu.Unlock()
	leader := l.Leader
	if l.Clean {
		leader = ""
	}
	if leader == m.leader && l.Epoch == m.epoch {
		return
	}
	m.leader, m.epoch, m.state = leader, l.Epoch, Running
	m.changes.Add(1)
	clear(m.out) // the one who granted them no longer counts; its successor has waited for them
	for _, w := range m.wants {
		m.ask(w)
	}
}

// lead takes the lease and leads until somebody else has it, or ctx ends and the lead is handed over. It returns false
// when it could not take the lease.
func (m *Member) lead(ctx context.Context, before sighting, grantFrom time.Time) bool {
	l := lease{
		Leader: m.cfg.Name, Epoch: before.Epoch + 1, Longest: m.cfg.CallTimeout,
		Home: m.cfg.Home(), Alone: true,
	}
	sent := time.Now()
	revision, err := m.put(ctx, l, before.revision)
	if err != nil {
		if !errors.Is(err, ErrLeaseMoved) {
			m.fault(err)
		}
		return false
	}
	if m.cfg.OnInherit != nil && before.Leader != m.cfg.Name && before.orphaned(m.cfg.Home()) {
		m.cfg.OnInherit()
	}
	wait := max(0, time.Until(grantFrom))
	t := &term{
		epoch: l.Epoch, lease: l, change: l, renew: make(chan struct{}, 1), peers: map[string]*peer{},
		governor: New(Config{
			Rate: m.rate(), Quarantine: wait, Gate: m.Gate, RoundTrip: m.cfg.RoundTrip, OnSlower: m.cfg.OnSlower,
			OnOutage: func(on bool) {
				if m.cfg.OnOutage != nil {
					m.cfg.OnOutage(on)
				}
				m.tellState()
			},
		}),
	}
	t.governor.Until(sent.Add(reign))
	m.mu.Lock()
	m.term, m.leader, m.epoch = t, m.cfg.Name, l.Epoch
	close(m.turn) // those who wait turn to the governor of this process
	m.changes.Add(1)
	m.mu.Unlock()
	if m.cfg.OnLead != nil {
		m.cfg.OnLead(true, wait)
	}

	revision, reigning := m.reign(ctx, t, revision)

	t.governor.Close()
	if reigning { // it leaves on its own account
		m.settle(t)
		l = t.lease
		l.Clean = t.governor.Out() == 0
		l.Renewal++
		if _, err := m.put(context.WithoutCancel(ctx), l, revision); err != nil {
			m.fault(err)
		}
	}
	m.mu.Lock()
	m.term, m.leader, m.turn = nil, "", make(chan struct{})
	peers := t.peers
	t.peers = nil
	for _, p := range peers {
		for _, cancel := range p.wants {
			cancel()
		}
		for _, g := range p.permits {
			g.expiry.Stop()
		}
	}
	m.mu.Unlock()
	for name := range peers {
		m.send(name, message{T: mBye, Epoch: t.epoch})
	}
	if m.cfg.OnLead != nil {
		m.cfg.OnLead(false, 0)
	}
	return true
}

// reign renews the lease until it is lost, or ctx ends; it returns the last revision, and whether it still reigns.
func (m *Member) reign(ctx context.Context, t *term, revision uint64) (uint64, bool) {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			m.tellState()
			m.tidy(t)
		case <-t.renew:
		case <-ctx.Done():
			return revision, true
		}
		m.mu.Lock()
		l := t.change
		l.Renewal = t.lease.Renewal + 1
		m.mu.Unlock()
		sent := time.Now()
		next, err := m.put(ctx, l, revision)
		switch {
		case err == nil:
			revision = next
			m.mu.Lock()
			t.lease = l
			held := t.held
			t.held = nil
			for _, msg := range held {
				if p := t.peers[msg.From]; p != nil {
					m.serve(t, p, msg)
				}
			}
			m.mu.Unlock()
			t.governor.Until(sent.Add(reign))
		case errors.Is(err, ErrLeaseMoved):
			// A renewal whose answer got lost moves it too.
			s, err := m.look(ctx)
			if err == nil && (s.Leader != m.cfg.Name || s.Epoch != t.epoch) {
				return 0, false
			}
			if err == nil {
				revision = s.revision
			}
		case ctx.Err() == nil:
			m.fault(err)
		}
	}
}

// settle waits for the permits that are out, for a while.
func (m *Member) settle(t *term) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(handOver); t.governor.Out() > 0 && time.Now().Before(end); {
		<-tick.C
	}
}

// tidy drops the wants of members that give no sign of life, and in the end the members.
func (m *Member) tidy(t *term) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for name, p := range t.peers {
		quiet := now.Sub(p.heard)
		if quiet > silent {
			for id, cancel := range p.wants {
				cancel()
				delete(p.wants, id)
			}
		}
		if quiet > gone && len(p.permits) == 0 {
			delete(t.peers, name)
		}
	}
}

// tellState tells the members how the leader stands.
func (m *Member) tellState() {
	m.mu.Lock()
	t := m.term
	waiting := map[string]int{}
	if t != nil {
		for name, p := range t.peers {
			if time.Since(p.heard) < silent {
				waiting[name] = len(p.wants)
			}
		}
	}
	m.mu.Unlock()
	if len(waiting) == 0 {
		return
	}
	state := t.governor.Snapshot().State
	for name, n := range waiting {
		m.send(name, message{T: mState, Epoch: t.epoch, State: state, Waiting: n})
	}
}

// hear takes a message in.
func (m *Member) hear(raw []byte) {
	var msg message
	if err := json.Unmarshal(raw, &msg); err != nil || msg.From == "" {
		return // of no member that this version knows
	}
	switch msg.T {
	case mWant, mDrop, mBeat, mDone:
		m.hearMember(msg)
	case mGrant:
		m.hearGrant(msg)
	case mState:
		m.hearState(msg)
	case mBye:
		select {
		case m.poke <- struct{}{}:
		default:
		}
	}
}

// hearState notes how the leader stands, and asks again for what the leader does not know of.
func (m *Member) hearState(msg message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if msg.From != m.leader || msg.Epoch != m.epoch {
		return
	}
	m.state = msg.State
	now := time.Now()
	var old []*want
	for _, w := range m.wants {
		if now.Sub(w.asked) >= askAgain {
			old = append(old, w)
		}
	}
	if msg.Waiting < len(old) {
		for _, w := range old {
			m.ask(w)
		}
	}
}

// hearMember takes in what another member tells its leader.
func (m *Member) hearMember(msg message) {
	if g, trip := m.noteMember(msg); g != nil {
		g.doneAfter(msg.Outcome, trip)
	}
}

// noteMember is hearMember under the lock; it returns the permit that came back, if one did.
func (m *Member) noteMember(msg message) (back *Permit, roundTrip time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.term
	if t == nil || t.peers == nil {
		return nil, 0
	}
	p := t.peers[msg.From]
	if p == nil {
		p = &peer{name: msg.From, wants: map[uint64]context.CancelFunc{}, permits: map[uint64]*peerPermit{}, served: map[uint64]bool{}}
		t.peers[msg.From] = p
	}
	p.heard = time.Now()
	p.beat = max(p.beat, msg.Beat)
	p.longest = max(p.longest, msg.Longest)
	if msg.RoundTrip > 0 {
		p.trip = msg.RoundTrip
	}
	switch msg.T {
	case mWant:
		m.serve(t, p, msg)
	case mDrop:
		if cancel := p.wants[msg.ID]; cancel != nil {
			cancel()
			delete(p.wants, msg.ID)
		}
	case mDone:
		if g := p.permits[msg.Grant]; g != nil {
			delete(p.permits, msg.Grant)
			delete(p.served, g.want)
			g.expiry.Stop()
			return g.permit, p.trip
		}
	}
	return nil, 0
}

// serve gets a permit for a member and sends it; the lock is held. Before a member gets its first, the lease has to say
// what a successor needs to know about it.
func (m *Member) serve(t *term, p *peer, msg message) {
	if p.wants[msg.ID] != nil || p.served[msg.ID] {
		return // it waits already, or the grant is on its way; if that got lost, the permit expires
	}
	if t.lease.Alone || t.lease.Longest < p.longest {
		t.change.Alone = false
		t.change.Longest = max(t.change.Longest, p.longest)
		t.held = append(t.held, msg)
		select {
		case t.renew <- struct{}{}:
		default:
		}
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.wants[msg.ID] = cancel
	m.running.Go(func() {
		defer cancel()
		permit, err := t.governor.Acquire(ctx, msg.Command, msg.User)
		m.mu.Lock()
		if err != nil || ctx.Err() != nil || t.peers == nil {
			delete(p.wants, msg.ID)
			m.mu.Unlock()
			if permit != nil {
				permit.Done(Unsent)
			}
			return
		}
		delete(p.wants, msg.ID)
		t.grants++
		number := t.grants
		g := &peerPermit{permit: permit, want: msg.ID}
		// Whoever has it began its call within the validity, and that call is over by its timeout.
		g.expiry = time.AfterFunc(validity+p.longest, func() {
			m.mu.Lock()
			delete(p.permits, number)
			delete(p.served, msg.ID)
			m.mu.Unlock()
			permit.Done(vanished)
		})
		p.permits[number], p.served[msg.ID] = g, true
		beat := p.beat
		m.mu.Unlock()
		m.send(p.name, message{T: mGrant, Epoch: t.epoch, ID: msg.ID, Grant: number, Beat: beat})
	})
}

// hearGrant takes a permit in, or hands it back when nobody waits for it.
func (m *Member) hearGrant(msg message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.wants[msg.ID]
	b := m.beats[msg.Beat%uint64(len(m.beats))]
	if w == nil || msg.From != m.leader || msg.Epoch != m.epoch {
		m.send(msg.From, message{T: mDone, Grant: msg.Grant, Outcome: Unsent})
		return
	}
	if b.number != msg.Beat || time.Since(b.at) > validity {
		m.refused.Add(1)
		m.send(msg.From, message{T: mDone, Grant: msg.Grant, Outcome: Unsent})
		m.ask(w)
		return
	}
	delete(m.wants, w.id)
	m.out[msg.Grant] = true
	epoch := msg.Epoch
	w.grant <- granted{
		until: b.at.Add(validity),
		permit: &Permit{granted: time.Now(), end: func(o Outcome, _ time.Duration) bool {
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.epoch != epoch {
				return false // its governor is no more
			}
			delete(m.out, msg.Grant)
			m.send(m.leader, message{T: mDone, Grant: msg.Grant, Outcome: o, RoundTrip: m.cfg.RoundTrip()})
			return o == Lost && m.state == Outage
		}},
	}
}

func (m *Member) rate() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cfg.Rate
}

// SetRate changes the calls a second for each command of the fleet, if this member leads or when it will.
func (m *Member) SetRate(rate int) {
	m.mu.Lock()
	m.cfg.Rate = rate
	t := m.term
	m.mu.Unlock()
	if t != nil {
		t.governor.SetRate(rate)
	}
}

// Snapshot returns the present state of the fleet as far as this member knows it.
func (m *Member) Snapshot() Snapshot {
	m.mu.Lock()
	t, state, waiting := m.term, m.state, len(m.wants)
	leader, out := m.leader, len(m.out)
	m.mu.Unlock()
	s := Snapshot{State: state}
	if t != nil {
		s = t.governor.Snapshot()
		s.Leading = true
	} else {
		switch {
		case m.Halted() != nil:
			s.State = Halted
		case leader == "" || state == "":
			s.State = Leaderless
		}
		s.Waiting, s.Out = waiting, out
	}
	s.LeaderChanges, s.Refused = m.changes.Load(), m.refused.Load()
	s.Standstill = time.Duration(m.stood.Load())
	return s
}
