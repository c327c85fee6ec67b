package governor

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"groupferry/internal/clock"
)

var lives = flag.Uint64("lives", 30, "random lives of an app to try")

// A life is a random sequence of terms at one API, each with its own governor. It breaks no assumption of the package
// comment, unless a bug is planted.
type life struct {
	seed uint64
	plan plan

	mu       sync.Mutex
	rnd      *rand.Rand
	path     path
	arrivals map[string][]time.Time
	rates    []change
	underway map[string]int // by user
	overlap  int            // two calls of a user at once
	unknown  int            // more calls than the record says
	record   Inherited      // the lease record
	answered int
	calls    int
}

// A plan is a bug, or an assumption that does not hold.
type plan struct {
	early     bool // permits come back when their call begins
	cancelled bool // a cancelled call is reported as answered
	forgetful bool // a successor does not know what its predecessor promised
	lying     bool // the record says nothing about calls under way
	vanishing bool // the path vanishes now and then
}

// A path to the API: a call needs its share of the length to get there, and the rest for the response. Each way takes
// longer by up to a share of the length, so that a round trip is at most 1.8 times as long as the shortest possible.
type path struct {
	share  float64
	length time.Duration
	jitter float64 // up to 0.4
}

func (p path) there(rnd *rand.Rand) time.Duration { return p.way(p.share, rnd) }
func (p path) back(rnd *rand.Rand) time.Duration  { return p.way(1-p.share, rnd) }

func (p path) way(share float64, rnd *rand.Rand) time.Duration {
	return time.Duration((share + p.jitter*rnd.Float64()) * float64(p.length))
}

type change struct {
	at   time.Time
	rate int
}

// A process works for one term.
type process struct {
	*Governor
	trips   *MinRTT
	wall    *wall
	clock   clock.Clock
	timeout time.Duration
	kick    chan struct{}
	stop    context.CancelFunc // the workers
	working sync.WaitGroup
	lapse   context.CancelFunc // the renewals
	keeping sync.WaitGroup
	right   clock.Deadline
}

var commands = []string{"create", "update"}

func (l *life) intN(n int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rnd.IntN(n)
}

func (l *life) random(d time.Duration) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Duration(l.rnd.Int64N(int64(d) + 1))
}

func (l *life) chance(p float64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rnd.Float64() < p
}

// setRate changes the rate, of the process too if there is one.
func (l *life) setRate(p *process, rate int) {
	l.mu.Lock()
	l.rates = append(l.rates, change{time.Now(), rate})
	l.mu.Unlock()
	if p != nil {
		p.SetRate(rate)
	}
}

// start begins a term.
func (l *life) start(ctx context.Context, trips *MinRTT) *process {
	p := &process{trips: trips, wall: &wall{}, kick: make(chan struct{}, 1)}
	p.timeout = time.Second + l.random(4*time.Second)
	p.clock = clock.Clock{Wall: p.wall.now}
	l.mu.Lock()
	from := Inherited{Any: l.record.Any, Calls: maps.Clone(l.record.Calls), Timeout: l.record.Timeout}
	l.record.Any = true
	l.record.Timeout = max(l.record.Timeout, p.timeout)
	rate := l.rates[len(l.rates)-1].rate
	l.mu.Unlock()
	if l.plan.forgetful {
		from = Inherited{}
	}
	p.Governor = New(Config{Rate: rate, Timeout: p.timeout, RoundTrip: trips, Clock: p.clock, OnNeed: func() {
		select {
		case p.kick <- struct{}{}:
		default:
		}
	}}, from)
	p.right = p.clock.In(rightFor)
	p.Promised(from.Calls, p.right)
	renewing, lapse := context.WithCancel(ctx)
	working, stop := context.WithCancel(ctx)
	p.lapse, p.stop = lapse, stop
	p.keeping.Go(func() { l.keep(renewing, p) })
	for range 5 + l.intN(60) {
		p.working.Go(func() { l.work(working, p) })
	}
	return p
}

// keep renews the lease; some renewals get lost, and some acknowledgements.
func (l *life) keep(ctx context.Context, p *process) {
	for ctx.Err() == nil {
		start := time.Now()
		calls, timeout := p.Propose()
		right := p.clock.In(rightFor)
		time.Sleep(l.random(20 * time.Millisecond))
		if lost := l.chance(0.1); !lost {
			l.mu.Lock()
			l.record = Inherited{Any: true, Calls: calls, Timeout: timeout}
			if l.plan.lying {
				l.record.Calls = nil
			}
			l.mu.Unlock()
			time.Sleep(l.random(20 * time.Millisecond))
			if !l.chance(0.1) && ctx.Err() == nil {
				p.Promised(calls, right)
				p.right = right
			}
		}
		select {
		case <-time.After(time.Until(start.Add(renewEvery))):
		case <-p.kick:
		case <-ctx.Done():
		}
	}
}

func (l *life) work(ctx context.Context, p *process) {
	for {
		command, user := commands[l.intN(2)], fmt.Sprintf("%p-%d", p, l.intN(300)) // the promise is for one process
		permit, err := p.Acquire(ctx, command, user)
		if err != nil {
			return
		}
		l.checkRecord(p, command)
		l.enter(user)
		if l.plan.early {
			permit.Done(Responded)
		}
		if l.chance(0.02) { // it takes a while until the call is made
			time.Sleep(l.random(p.timeout))
		}
		if !permit.Sendable() {
			l.leave(user)
			permit.Done(Unsent)
			continue
		}
		l.call(p, permit, command, user)
	}
}

// call makes one call: it is answered, or lost, or cancelled. What is lost or cancelled arrives at any time before its end.
func (l *life) call(p *process, permit *Permit, command, user string) {
	l.mu.Lock()
	l.calls++
	there := l.path.there(l.rnd)
	if l.rnd.IntN(20) == 0 { // the API, or the way, takes its time
		there += time.Duration(l.rnd.Int64N(int64(2 * p.timeout)))
	}
	kind := l.rnd.IntN(30)
	l.mu.Unlock()
	left := time.Until(permit.EndBy())
	switch {
	case kind == 0 && left > 0: // cancelled
		l.arriveBetween(command, there, left)
		time.Sleep(l.random(left))
		if l.plan.cancelled {
			l.leave(user)
			permit.Done(Responded)
			return
		}
		time.AfterFunc(time.Until(permit.EndBy())-1, func() { l.leave(user) }) // just before the governor's own timer
		permit.Done(Cancelled)
		return
	case kind == 1 && left > 0: // lost: reset by something in between
		end := l.random(left)
		l.arriveBetween(command, there, end)
		time.Sleep(end)
		l.leave(user)
		permit.Done(Lost)
		return
	}
	sent := time.Now()
	time.Sleep(min(there, left))
	if there < left {
		l.arrive(command, 0)
		l.mu.Lock() // the way back is the one at that time
		back := l.path.back(l.rnd)
		l.mu.Unlock()
		time.Sleep(min(back, left-there))
		if there+back < left {
			l.mu.Lock()
			l.answered++
			l.mu.Unlock()
			p.trips.Note(time.Since(sent))
			l.leave(user)
			permit.Done(Responded)
			return
		}
	}
	l.leave(user)
	permit.Done(Lost)
}

// arriveBetween lets a call arrive at any time that the path allows, and not at all if it allows none.
func (l *life) arriveBetween(command string, from, to time.Duration) {
	if from < to {
		l.arrive(command, from+l.random(to-from))
	}
}

func (l *life) arrive(command string, after time.Duration) {
	at := time.Now().Add(after)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.arrivals[command] = append(l.arrivals[command], at)
}

func (l *life) enter(user string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.underway[user]++
	if l.underway[user] > 1 {
		l.overlap++
	}
}

func (l *life) leave(user string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.underway[user]--
}

// checkRecord looks whether a successor would know of all calls under way, if it took over now.
func (l *life) checkRecord(p *process, command string) {
	n := underWay(p, command)
	l.mu.Lock()
	defer l.mu.Unlock()
	if n > l.record.Calls[command] {
		l.unknown++
	}
}

// shift changes the path: longer, or shorter down to 55 % of the shortest that the process has seen.
func (l *life) shift(p *process) {
	l.mu.Lock()
	defer l.mu.Unlock()
	least := time.Duration(0.55 * float64(p.trips.Shortest()))
	if l.plan.vanishing {
		if p.trips.credit() > 0 {
			l.path.length = 0
		}
		return
	}
	switch l.rnd.IntN(3) {
	case 0:
		l.path.length = least
	case 1:
		l.path.length = least + time.Duration(l.rnd.Int64N(int64(400*time.Millisecond)))
	case 2:
		l.path.length = max(least, l.path.length*3/4)
	}
}

// run lives through some terms. Each ends as a leader that stops, or one that is killed.
func (l *life) run(ctx context.Context) {
	trips := &MinRTT{}
	l.setRate(nil, 5+l.intN(45))
	var before []*process
	for range 3 + l.intN(3) {
		p := l.start(ctx, trips)
		before = append(before, p)
		for range 2 + l.intN(6) {
			time.Sleep(3*time.Second + l.random(3*time.Second)) // the path does not halve twice within a second
			switch l.intN(5) {
			case 0, 1, 2:
				l.shift(p)
			case 3:
				l.setRate(p, 5+l.intN(45))
			case 4: // suspended, or set
				p.wall.step(time.Duration(l.intN(7200)-3600) * time.Second)
			}
		}
		time.Sleep(3 * time.Second)
		p.lapse()
		p.keeping.Wait()
		if l.chance(0.5) { // it stops, with what is under way; the successor begins at once
			p.stop()
			p.Close()
			l.mu.Lock()
			l.record = Inherited{Any: true}
			l.record.Calls, l.record.Timeout = p.UnderWay()
			l.mu.Unlock()
		} else { // killed, or frozen: its calls continue, and permits are granted until the right has passed
			time.Sleep(p.right.Left() + takeoverRest)
			p.stop()
		}
		if l.chance(0.5) { // another process, which has seen nothing
			trips = &MinRTT{}
		}
	}
	for _, p := range before {
		p.stop()
		p.working.Wait()
	}
	time.Sleep(time.Minute)
}

// over returns by how many calls the fullest second of a command was over its rate. A second has the highest rate of
// its own time and of the calls that may have been under way when it began.
func (l *life) over() (most int) {
	most = -1000
	for _, at := range l.arrivals {
		slices.SortFunc(at, time.Time.Compare)
		from := 0
		for i, t := range at {
			for t.Sub(at[from]) >= time.Second {
				from++
			}
			most = max(most, i-from+1-l.rateSince(at[from].Add(-5*time.Second-cooldown), t))
		}
	}
	return most
}

func (l *life) rateSince(from, to time.Time) (rate int) {
	for i, c := range l.rates {
		if !c.at.After(to) && (i+1 == len(l.rates) || l.rates[i+1].at.After(from)) {
			rate = max(rate, c.rate)
		}
	}
	return rate
}

// live returns how far over the rate the life with a seed got.
func live(t *testing.T, seed uint64, plan plan) (over int) {
	synctest.Test(t, func(t *testing.T) {
		rnd := rand.New(rand.NewPCG(seed, 9))
		l := &life{seed: seed, plan: plan, rnd: rnd, arrivals: map[string][]time.Time{}, underway: map[string]int{}}
		l.path = path{
			share:  []float64{0, 0.5, 1, rnd.Float64()}[rnd.IntN(4)],
			length: time.Duration(rnd.IntN(400)) * time.Millisecond,
			jitter: 0.4 * rnd.Float64(),
		}
		l.run(t.Context())
		if plan == none && l.answered < l.calls/2 {
			t.Errorf("seed %d: %d of %d calls were answered", seed, l.answered, l.calls)
		}
		over = l.over()
		if plan == none && (l.overlap > 0 || l.unknown > 0) {
			t.Errorf("seed %d: %d calls overlap another of their user, %d are more than the record says", seed, l.overlap, l.unknown)
		}
	})
	return over
}

var none plan

func TestLives(t *testing.T) {
	fullest := -1000
	for seed := range *lives {
		over := live(t, seed, plan{})
		if over > 0 || t.Failed() {
			t.Fatalf("seed %d: %d calls over the rate", seed, over)
		}
		fullest = max(fullest, over)
	}
	if fullest != 0 {
		t.Errorf("the fullest second of all lives has %d calls more than the rate, want 0: they test little", fullest)
	}
}

// TestLivesCatchBugs shows that a life can fail.
func TestLivesCatchBugs(t *testing.T) {
	for name, plan := range map[string]plan{
		"permits come back when their call begins":                 {early: true},
		"cancelled calls are reported as answered":                 {cancelled: true},
		"a successor does not know what its predecessor promised":  {forgetful: true},
		"the record says nothing about calls under way":            {lying: true},
		"the path loses more than half of its shortest round trip": {vanishing: true},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(100) {
				if over := live(t, seed, plan); over > 0 {
					t.Logf("seed %d: %d over", seed, over)
					return
				}
			}
			t.Error("not caught by 100 lives")
		})
	}
}
