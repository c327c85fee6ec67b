package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"
	"sync"
	"testing"
	"time"

	"groupferry/internal/clock"
)

// A world is a store, machines that reach it over bad paths, and a ledger of who has a right, and of which calls are
// under way. It runs in a synctest bubble, whose clock is real time. It notes in failures what must not happen.
type world struct {
	mu       sync.Mutex
	rnd      *rand.Rand
	raw      []byte
	rev      uint64
	stored   Record // of raw
	machines []*machine
	named    int
	failures []string

	// Faults of the paths: shares of the requests.
	loseRequest, loseResponse, double, late float64
	delay                                   time.Duration // the most, each way

	// Planted bugs, to show that the ledger notices.
	takeAll bool          // each Replace succeeds
	noWall  bool          // a wall clock stands still while its machine is suspended
	longer  time.Duration // that rights last longer than they should
	greedy  bool          // higher numbers are used before they are acknowledged
	forget  bool          // inherited calls are promised in the first record of a term only

	tenures, lost, made int // tenures begun, and lost to another; calls made
}

func newWorld(seed uint64) *world {
	return &world{rnd: rand.New(rand.NewPCG(seed, 9)), delay: time.Millisecond}
}

func (w *world) random(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rnd.IntN(n)
}

func (w *world) randomTime(most time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Duration(w.rnd.Int64N(int64(most)))
}

func (w *world) chance(share float64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rnd.Float64() < share
}

// wrong notes a failure; the lock is held.
func (w *world) wrong(format string, args ...any) {
	if len(w.failures) < 5 {
		w.failures = append(w.failures, fmt.Sprintf(format, args...))
	}
}

// A machine runs one process after another. It has clocks, and a path to the store.
type machine struct {
	w *world

	// Under w.mu.
	cutOut, cutIn bool          // what it sends, or what it should get, is lost
	thaw          chan struct{} // while it is frozen or suspended
	step          time.Duration // of the wall clock
	slept         time.Duration // that the monotonic clock did not count
	suspended     time.Time     // since when it is; zero: it is not
	stepped       time.Time     // when the wall clock was last set back
	woke          time.Time     // from the last suspension

	probe   time.Time     // what the wall clock says instead, if set
	unslept time.Duration // what the monotonic clock lacked when the last write was sent

	timeout time.Duration // of its calls
	sent    []time.Time   // when its calls end that are under way, by whichever process
	right   *right        // of its present tenure
	proc    *process
}

// A process stands for election, and leads, until it is killed or leaves.
type process struct {
	*machine
	name string
	c    *Candidate
	stop context.CancelFunc // as if it was killed
	quit chan string        // release the lease, to that successor
	done chan struct{}
	dead bool
}

// A right is until when a tenure may act, on the clocks of its machine.
type right struct {
	term       uint64
	mono, wall time.Time
}

var errRefused = errors.New("out of reach")

func (m *machine) monoNow() time.Time { // under w.mu
	t := time.Now().Add(-m.slept)
	if !m.suspended.IsZero() {
		t = t.Add(-time.Since(m.suspended))
	}
	return t
}

func (m *machine) wallNow() time.Time { // under w.mu
	if m.w.noWall {
		return m.monoNow().Add(m.step)
	}
	return time.Now().Add(m.step)
}

func (m *machine) live() bool { // under w.mu
	return m.right != nil && m.monoNow().Before(m.right.mono) && m.wallNow().Before(m.right.wall)
}

// checkRights checks whether more than one right is live; under w.mu. Rights begin at an acknowledgment, and can come
// back to life only when a clock is set, so it is enough to check then.
func (w *world) checkRights(when string) {
	var live []string
	for _, m := range w.machines {
		if m.live() {
			live = append(live, fmt.Sprintf("%s (term %d)", m.proc.name, m.right.term))
		}
	}
	if len(live) > 1 {
		w.wrong("%s: rights overlap: %v", when, live)
	}
}

// awake waits while the machine is frozen or suspended.
func (m *machine) awake() {
	for {
		m.w.mu.Lock()
		thaw := m.thaw
		m.w.mu.Unlock()
		if thaw == nil {
			return
		}
		<-thaw
	}
}

// request takes a request to the store and its response back.
func (p *process) request(ctx context.Context, do func() any) (any, error) {
	w := p.w
	p.awake()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	response := make(chan any, 2)
	w.mu.Lock()
	lost := p.cutOut || p.dead || w.rnd.Float64() < w.loseRequest
	lostResponse := w.rnd.Float64() < w.loseResponse
	times := 1
	if w.rnd.Float64() < w.double {
		times = 2
	}
	trip := func() time.Duration {
		d := time.Duration(w.rnd.Int64N(int64(w.delay) + 1))
		if w.rnd.Float64() < w.late {
			d += time.Duration(w.rnd.Int64N(int64(5 * time.Second)))
		}
		return d
	}
	if !lost {
		for range times {
			back := trip()
			time.AfterFunc(trip(), func() {
				a := do()
				time.AfterFunc(back, func() {
					w.mu.Lock()
					defer w.mu.Unlock()
					if !p.cutIn && !p.dead && !lostResponse {
						response <- a
					}
				})
			})
		}
	}
	w.mu.Unlock()
	select {
	case a := <-response:
		p.awake()
		return a, nil
	case <-ctx.Done():
		p.awake()
		return nil, ctx.Err()
	}
}

type readResponse struct {
	raw []byte
	rev uint64
}

func (p *process) Read(ctx context.Context) ([]byte, uint64, error) {
	a, err := p.request(ctx, func() any {
		p.w.mu.Lock()
		defer p.w.mu.Unlock()
		return readResponse{slices.Clone(p.w.raw), p.w.rev}
	})
	if err != nil {
		return nil, 0, err
	}
	return a.(readResponse).raw, a.(readResponse).rev, nil
}

func (p *process) Replace(ctx context.Context, raw []byte, rev uint64) (uint64, error) {
	raw = slices.Clone(raw)
	p.w.mu.Lock()
	p.unslept = time.Since(p.monoNow())
	p.w.mu.Unlock()
	a, err := p.request(ctx, func() any { return p.w.store(raw, rev) })
	if err != nil {
		return 0, err
	}
	if n := a.(uint64); n != 0 {
		return n, nil
	}
	return 0, ErrMoved
}

// store replaces the record, and checks the new one against the old one. It returns 0 when the record has moved.
func (w *world) store(raw []byte, rev uint64) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if rev != w.rev && !w.takeAll {
		return 0
	}
	var r Record
	if err := json.Unmarshal(raw, &r); err != nil {
		w.wrong("record %s: %v", raw, err)
	}
	old := w.stored
	switch {
	case r.Term == old.Term:
		if r.Holder != old.Holder {
			w.wrong("term %d went from %s to %s", r.Term, old.Holder, r.Holder)
		}
		if old.Released && !r.Released {
			w.wrong("term %d continued after it was released", r.Term)
		}
		if r.Renewal <= old.Renewal {
			w.wrong("term %d: renewal %d after %d", r.Term, r.Renewal, old.Renewal)
		}
	case r.Term == old.Term+1:
		for command, n := range old.Calls {
			if r.Calls[command] < n {
				w.wrong("first record of term %d promises %d calls of %s, inherited %d", r.Term, r.Calls[command], command, n)
			}
		}
		if r.Timeout < old.Timeout {
			w.wrong("first record of term %d has timeout %v, inherited %v", r.Term, r.Timeout, old.Timeout)
		}
	default:
		w.wrong("term %d after term %d", r.Term, old.Term)
	}
	w.raw, w.stored = raw, r
	w.rev++
	w.checkPromise("a new record")
	return w.rev
}

// checkPromise checks that the record promises all calls that are under way, whoever made them; under w.mu.
func (w *world) checkPromise(when string) {
	var n int
	var left time.Duration
	for _, m := range w.machines {
		for _, end := range m.calls() {
			n++
			left = max(left, time.Until(end))
		}
	}
	if w.stored.Calls[create] < n {
		w.wrong("%s: %d calls under way, the record of term %d promises %d", when, n, w.stored.Term, w.stored.Calls[create])
	}
	if w.stored.Timeout < left {
		w.wrong("%s: a call has %v left, the record of term %d says %v", when, left, w.stored.Term, w.stored.Timeout)
	}
}

const create = "create"

// launch starts a process on a new machine.
func (w *world) launch(t *testing.T) *machine {
	w.mu.Lock()
	m := &machine{w: w, timeout: time.Second + time.Duration(w.rnd.Int64N(int64(4*time.Second)))}
	m.step = time.Duration(w.rnd.Int64N(int64(time.Hour))) // wall clocks have nothing in common
	w.machines = append(w.machines, m)
	w.mu.Unlock()
	m.start(t)
	return m
}

// start starts a process on this machine, which has none.
func (m *machine) start(t *testing.T) {
	w := m.w
	ctx, stop := context.WithCancel(t.Context())
	p := &process{machine: m, stop: stop, quit: make(chan string, 1), done: make(chan struct{})}
	w.mu.Lock()
	w.named++
	p.name = fmt.Sprint("p", w.named)
	m.proc = p
	w.mu.Unlock()
	p.c = New(p, Config{
		Name: p.name, Host: "host-" + p.name, Timeout: m.timeout,
		Clock: clock.Clock{Wall: func() time.Time {
			w.mu.Lock()
			defer w.mu.Unlock()
			if !m.probe.IsZero() {
				return m.probe
			}
			return m.wallNow()
		}},
	})
	go func() {
		defer close(p.done)
		p.run(ctx)
	}()
}

// run stands for election and leads until ctx ends, as in a kill, or until it was told to leave.
func (p *process) run(ctx context.Context) {
	stay, leave := context.WithCancel(ctx)
	defer leave()
	var successor string
	left := make(chan struct{})
	go func() {
		defer close(left)
		select {
		case successor = <-p.quit:
		case <-ctx.Done():
		}
		leave()
	}()
	for stay.Err() == nil {
		t, err := p.c.Lead(stay)
		if err != nil {
			break
		}
		a := p.begin(t)
		tenure, end := context.WithCancel(stay)
		var calls sync.WaitGroup
		calls.Go(func() { a.work(tenure) })
		err = t.Keep(stay, a)
		end()
		a.end(err)
		calls.Wait()
		if err != nil {
			continue
		}
		<-left
		n, timeout := a.Propose()
		release, cancel := context.WithTimeout(ctx, 3*time.Second)
		_ = t.Release(release, n, timeout, successor, 0) // what counts is what the store has
		cancel()
		if !t.Right().Passed() {
			p.w.mu.Lock()
			p.w.wrong("a right after the release")
			p.w.mu.Unlock()
		}
	}
	<-left
}

// An agent makes calls for a tenure, and is its Pace.
type agent struct {
	*process
	t         *Tenure
	before    Record
	inherited time.Time // until when inherited calls may be under way

	// Under w.mu.
	own      []time.Time // when own calls end
	proposed []int       // since the last acknowledgment
	acked    int
}

func running(ends []time.Time) []time.Time {
	now := time.Now()
	return slices.DeleteFunc(ends, func(end time.Time) bool { return !end.After(now) })
}

// calls returns when the calls of this machine end that are under way; under w.mu.
func (m *machine) calls() []time.Time {
	m.sent = running(m.sent)
	return m.sent
}

func (p *process) begin(t *Tenure) *agent {
	before := t.Before()
	a := &agent{process: p, t: t, before: before, inherited: time.Now().Add(before.Timeout)}
	p.w.mu.Lock()
	p.w.tenures++
	p.w.mu.Unlock()
	a.extend(t.Right())
	return a
}

// extend notes a right, as the clocks of the machine see it.
func (a *agent) extend(d clock.Deadline) {
	w, m := a.w, a.machine
	probe := func(at time.Time) {
		w.mu.Lock()
		defer w.mu.Unlock()
		m.probe = at
	}
	w.mu.Lock()
	wall := m.wallNow().Add(-3 * time.Hour)
	w.mu.Unlock()
	probe(wall)
	left := d.Left() // on the monotonic clock, for the wall clock has hours left
	if left > 0 {
		ahead := sort.Search(int(6*time.Hour), func(n int) bool {
			probe(wall.Add(time.Duration(n)))
			return d.Passed()
		})
		wall = wall.Add(time.Duration(ahead))
	}
	probe(time.Time{})
	w.mu.Lock()
	defer w.mu.Unlock()
	r := &right{term: a.t.Term(), wall: wall.Add(w.longer)}
	if left > 0 {
		r.mono = time.Now().Add(left - m.unslept + w.longer)
	}
	m.right = r
	w.checkRights("a right begins")
}

func (a *agent) end(err error) {
	a.w.mu.Lock()
	defer a.w.mu.Unlock()
	a.right = nil
	if errors.Is(err, ErrLost) {
		a.w.lost++
	}
}

// inUse is how many calls this tenure has to take for under way; under w.mu.
func (a *agent) inUse() int {
	a.own = running(a.own)
	n := len(a.own)
	if time.Now().Before(a.inherited) && !a.w.forget {
		n += a.before.Calls[create]
	}
	return n
}

func (a *agent) Propose() (map[string]int, time.Duration) {
	a.w.mu.Lock()
	defer a.w.mu.Unlock()
	n := a.inUse() + a.w.rnd.IntN(8)
	a.proposed = append(a.proposed, n)
	timeout := a.timeout
	if time.Now().Before(a.inherited) {
		timeout = max(timeout, a.before.Timeout)
	}
	return map[string]int{create: n}, timeout
}

func (a *agent) Promised(calls map[string]int, right clock.Deadline) {
	a.w.mu.Lock()
	if last := a.proposed[len(a.proposed)-1]; calls[create] != last {
		a.w.wrong("promised %d, proposed %d", calls[create], last)
	}
	a.acked, a.proposed = calls[create], nil
	a.w.mu.Unlock()
	a.extend(right)
}

// work makes calls, as many as the tenure may, until ctx ends.
func (a *agent) work(ctx context.Context) {
	for sleep(ctx, time.Millisecond+a.w.randomTime(60*time.Millisecond)) == nil {
		a.awake()
		a.w.mu.Lock()
		most := a.acked
		for _, n := range a.proposed {
			if a.w.greedy {
				most = max(most, n)
			} else {
				most = min(most, n)
			}
		}
		if ctx.Err() == nil && a.live() && a.inUse() < most {
			end := time.Now().Add(time.Duration(a.w.rnd.Int64N(int64(a.timeout))))
			a.own, a.sent = append(a.own, end), append(a.sent, end)
			a.w.made++
			a.w.checkPromise("a new call")
		} else if len(a.proposed) == 0 && a.live() {
			a.t.Kick()
		}
		a.w.mu.Unlock()
	}
}

// kill ends the process of a machine without a release. What it has sent stays on its way.
func (m *machine) kill() {
	m.wake()
	m.w.mu.Lock()
	p := m.proc
	p.dead, m.right = true, nil
	m.w.mu.Unlock()
	p.stop()
	<-p.done
}

// retire lets the process release the lease to a successor, or to everybody, and end.
func (m *machine) retire(successor string) {
	m.wake()
	m.proc.quit <- successor
	<-m.proc.done
	m.proc.stop()
}

// freeze stops the process, or with suspend the machine and its monotonic clock too, until wake.
func (m *machine) freeze(suspend bool) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if m.thaw != nil || suspend && time.Since(m.stepped) < 2*Duration {
		return // not covered: suspended, and the clock set back, within one right
	}
	m.thaw = make(chan struct{})
	if suspend {
		m.suspended = time.Now()
	}
}

func (m *machine) wake() {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if m.thaw == nil {
		return
	}
	close(m.thaw)
	m.thaw = nil
	if !m.suspended.IsZero() {
		m.slept += time.Since(m.suspended)
		m.suspended, m.woke = time.Time{}, time.Now()
		m.w.checkRights("a machine resumes")
	}
}

// set sets the wall clock.
func (m *machine) set(step time.Duration) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if step < 0 {
		if !m.suspended.IsZero() || time.Since(m.woke) < 2*Duration {
			return // see freeze
		}
		m.stepped = time.Now()
	}
	m.step += step
	m.w.checkRights("a wall clock is set")
}

func (m *machine) cut(out, in bool) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	m.cutOut, m.cutIn = out, in
}

// leader returns the machine that has a live right, or nil.
func (w *world) leader() *machine {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.machines {
		if m.live() {
			return m
		}
	}
	return nil
}

func (w *world) term() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stored.Term
}

// await waits until another machine than old leads, and returns it and how long that took; nil after a minute.
func (w *world) await(old *machine) (*machine, time.Duration) {
	start := time.Now()
	for time.Since(start) < time.Minute {
		if m := w.leader(); m != nil && m != old {
			return m, time.Since(start)
		}
		time.Sleep(time.Millisecond)
	}
	return nil, time.Since(start)
}

// end kills all processes, waits until nothing is on its way any more, and reports failures.
func (w *world) end(t *testing.T, report bool) {
	for _, m := range w.machines {
		m.kill()
	}
	time.Sleep(time.Minute)
	for _, f := range w.failures {
		if report {
			t.Error(f)
		}
	}
}
