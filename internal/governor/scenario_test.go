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

var scenarios = flag.Uint64("scenarios", 30, "number of random scenarios to try")

// A scenario is a random sequence of terms at one API, each with its own governor. It keeps the assumptions of the package
// comment, unless a bug is planted.
type scenario struct {
	seed uint64
	plan plan

	mu        sync.Mutex
	rnd       *rand.Rand
	path      path
	arrivals  map[string][]time.Time
	rates     []change
	underway  map[string]int // by user
	overlap   int            // two calls of a user at once
	unknown   int            // more calls than the record says
	record    Inherited      // the lease record
	responded int
	calls     int
}

// A plan is a bug, or an assumption that does not hold.
type plan struct {
	early     bool // permits come back when their call begins
	cancelled bool // a cancelled call is reported as one with a response
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

func (s *scenario) intN(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rnd.IntN(n)
}

func (s *scenario) random(d time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Duration(s.rnd.Int64N(int64(d) + 1))
}

func (s *scenario) chance(p float64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rnd.Float64() < p
}

// setRate changes the rate, of the process too if there is one.
func (s *scenario) setRate(p *process, rate int) {
	s.mu.Lock()
	s.rates = append(s.rates, change{time.Now(), rate})
	s.mu.Unlock()
	if p != nil {
		p.SetRate(rate)
	}
}

// start begins a term.
func (s *scenario) start(ctx context.Context, trips *MinRTT) *process {
	p := &process{trips: trips, wall: &wall{}, kick: make(chan struct{}, 1)}
	p.timeout = time.Second + s.random(4*time.Second)
	p.clock = clock.Clock{Wall: p.wall.now}
	s.mu.Lock()
	from := Inherited{Any: s.record.Any, Calls: maps.Clone(s.record.Calls), Timeout: s.record.Timeout}
	s.record.Any = true
	s.record.Timeout = max(s.record.Timeout, p.timeout)
	rate := s.rates[len(s.rates)-1].rate
	s.mu.Unlock()
	if s.plan.forgetful {
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
	p.keeping.Go(func() { s.keep(renewing, p) })
	for range 5 + s.intN(60) {
		p.working.Go(func() { s.work(working, p) })
	}
	return p
}

// keep renews the lease; some renewals get lost, and some acknowledgements.
func (s *scenario) keep(ctx context.Context, p *process) {
	for ctx.Err() == nil {
		start := time.Now()
		calls, timeout := p.Propose()
		right := p.clock.In(rightFor)
		time.Sleep(s.random(20 * time.Millisecond))
		if lost := s.chance(0.1); !lost {
			s.mu.Lock()
			s.record = Inherited{Any: true, Calls: calls, Timeout: timeout}
			if s.plan.lying {
				s.record.Calls = nil
			}
			s.mu.Unlock()
			time.Sleep(s.random(20 * time.Millisecond))
			if !s.chance(0.1) && ctx.Err() == nil {
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

func (s *scenario) work(ctx context.Context, p *process) {
	for {
		command, user := commands[s.intN(2)], fmt.Sprintf("%p-%d", p, s.intN(300)) // the promise is for one process
		permit, err := p.Acquire(ctx, command, user)
		if err != nil {
			return
		}
		s.checkRecord(p, command)
		s.enter(user)
		if s.plan.early {
			permit.Done(Responded)
		}
		if s.chance(0.02) { // it takes a while until the call is made
			time.Sleep(s.random(p.timeout))
		}
		if !permit.Sendable() {
			s.leave(user)
			permit.Done(Unsent)
			continue
		}
		s.call(p, permit, command, user)
	}
}

// call makes one call: it has a response, or is lost, or is cancelled. What is lost or cancelled arrives at any time before its end.
func (s *scenario) call(p *process, permit *Permit, command, user string) {
	s.mu.Lock()
	s.calls++
	there := s.path.there(s.rnd)
	if s.rnd.IntN(20) == 0 { // the API, or the way, takes its time
		there += time.Duration(s.rnd.Int64N(int64(2 * p.timeout)))
	}
	kind := s.rnd.IntN(30)
	s.mu.Unlock()
	left := time.Until(permit.EndBy())
	switch {
	case kind == 0 && left > 0: // cancelled
		s.arriveBetween(command, there, left)
		time.Sleep(s.random(left))
		if s.plan.cancelled {
			s.leave(user)
			permit.Done(Responded)
			return
		}
		time.AfterFunc(time.Until(permit.EndBy())-1, func() { s.leave(user) }) // just before the governor's own timer
		permit.Done(Cancelled)
		return
	case kind == 1 && left > 0: // lost: reset by something in between
		end := s.random(left)
		s.arriveBetween(command, there, end)
		time.Sleep(end)
		s.leave(user)
		permit.Done(Lost)
		return
	}
	sent := time.Now()
	time.Sleep(min(there, left))
	if there < left {
		s.arrive(command, 0)
		s.mu.Lock() // the way back is the one at that time
		back := s.path.back(s.rnd)
		s.mu.Unlock()
		time.Sleep(min(back, left-there))
		if there+back < left {
			s.mu.Lock()
			s.responded++
			s.mu.Unlock()
			p.trips.Note(time.Since(sent))
			s.leave(user)
			permit.Done(Responded)
			return
		}
	}
	s.leave(user)
	permit.Done(Lost)
}

// arriveBetween lets a call arrive at any time that the path allows, and not at all if it allows none.
func (s *scenario) arriveBetween(command string, from, to time.Duration) {
	if from < to {
		s.arrive(command, from+s.random(to-from))
	}
}

func (s *scenario) arrive(command string, after time.Duration) {
	at := time.Now().Add(after)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.arrivals[command] = append(s.arrivals[command], at)
}

func (s *scenario) enter(user string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.underway[user]++
	if s.underway[user] > 1 {
		s.overlap++
	}
}

func (s *scenario) leave(user string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.underway[user]--
}

// checkRecord checks whether a successor would know of all calls under way, if it took over now.
func (s *scenario) checkRecord(p *process, command string) {
	n := underWay(p, command)
	s.mu.Lock()
	defer s.mu.Unlock()
	if n > s.record.Calls[command] {
		s.unknown++
	}
}

// shift changes the path: longer, or shorter down to 55 % of the shortest that the process has seen.
func (s *scenario) shift(p *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	least := time.Duration(0.55 * float64(p.trips.Shortest()))
	if s.plan.vanishing {
		if p.trips.credit() > 0 {
			s.path.length = 0
		}
		return
	}
	switch s.rnd.IntN(3) {
	case 0:
		s.path.length = least
	case 1:
		s.path.length = least + time.Duration(s.rnd.Int64N(int64(400*time.Millisecond)))
	case 2:
		s.path.length = max(least, s.path.length*3/4)
	}
}

// run runs some terms. Each ends as a leader that stops, or one that is killed.
func (s *scenario) run(ctx context.Context) {
	trips := &MinRTT{}
	s.setRate(nil, 5+s.intN(45))
	var before []*process
	for range 3 + s.intN(3) {
		p := s.start(ctx, trips)
		before = append(before, p)
		for range 2 + s.intN(6) {
			time.Sleep(3*time.Second + s.random(3*time.Second)) // the path does not halve twice within a second
			switch s.intN(5) {
			case 0, 1, 2:
				s.shift(p)
			case 3:
				s.setRate(p, 5+s.intN(45))
			case 4: // suspended, or set
				p.wall.step(time.Duration(s.intN(7200)-3600) * time.Second)
			}
		}
		time.Sleep(3 * time.Second)
		p.lapse()
		p.keeping.Wait()
		if s.chance(0.5) { // it stops, with what is under way; the successor begins at once
			p.stop()
			p.Close()
			s.mu.Lock()
			s.record = Inherited{Any: true}
			s.record.Calls, s.record.Timeout = p.UnderWay()
			s.mu.Unlock()
		} else { // killed, or frozen: its calls continue, and permits are granted until the right has passed
			time.Sleep(p.right.Left() + takeoverRest)
			p.stop()
		}
		if s.chance(0.5) { // another process, which has seen nothing
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
func (s *scenario) over() (most int) {
	most = -1000
	for _, at := range s.arrivals {
		slices.SortFunc(at, time.Time.Compare)
		from := 0
		for i, t := range at {
			for t.Sub(at[from]) >= time.Second {
				from++
			}
			most = max(most, i-from+1-s.rateSince(at[from].Add(-5*time.Second-cooldown), t))
		}
	}
	return most
}

func (s *scenario) rateSince(from, to time.Time) (rate int) {
	for i, c := range s.rates {
		if !c.at.After(to) && (i+1 == len(s.rates) || s.rates[i+1].at.After(from)) {
			rate = max(rate, c.rate)
		}
	}
	return rate
}

// live returns by how many calls the scenario with a seed exceeds the rate.
func runScenario(t *testing.T, seed uint64, plan plan) (over int) {
	synctest.Test(t, func(t *testing.T) {
		rnd := rand.New(rand.NewPCG(seed, 9))
		s := &scenario{seed: seed, plan: plan, rnd: rnd, arrivals: map[string][]time.Time{}, underway: map[string]int{}}
		s.path = path{
			share:  []float64{0, 0.5, 1, rnd.Float64()}[rnd.IntN(4)],
			length: time.Duration(rnd.IntN(400)) * time.Millisecond,
			jitter: 0.4 * rnd.Float64(),
		}
		s.run(t.Context())
		if plan == none && s.responded < s.calls/2 {
			t.Errorf("seed %d: %d of %d calls had a response", seed, s.responded, s.calls)
		}
		over = s.over()
		if plan == none && (s.overlap > 0 || s.unknown > 0) {
			t.Errorf("seed %d: %d calls overlap another of their user, %d are more than the record says", seed, s.overlap, s.unknown)
		}
	})
	return over
}

var none plan

func TestScenarios(t *testing.T) {
	fullest := -1000
	for seed := range *scenarios {
		over := runScenario(t, seed, plan{})
		if over > 0 || t.Failed() {
			t.Fatalf("seed %d: %d calls over the rate", seed, over)
		}
		fullest = max(fullest, over)
	}
	if fullest != 0 {
		t.Errorf("the fullest second of all scenarios has %d calls more than the rate, want 0: they test little", fullest)
	}
}

// TestScenariosCatchBugs shows that a scenario can fail.
func TestScenariosCatchBugs(t *testing.T) {
	for name, plan := range map[string]plan{
		"permits come back when their call begins":                 {early: true},
		"cancelled calls are reported as responded":                {cancelled: true},
		"a successor does not know what its predecessor promised":  {forgetful: true},
		"the record says nothing about calls under way":            {lying: true},
		"the path loses more than half of its shortest round trip": {vanishing: true},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(100) {
				if over := runScenario(t, seed, plan); over > 0 {
					t.Logf("seed %d: %d over", seed, over)
					return
				}
			}
			t.Error("not caught by 100 scenarios")
		})
	}
}
