package governor

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var storms = flag.Uint64("storms", 40, "random lives of a fleet to try; the first seed is 0")

var errCut = errors.New("out of reach")

// A hub keeps the lease and carries the messages of a fleet under test.
type hub struct {
	mu       sync.Mutex
	rnd      *rand.Rand
	lease    []byte
	revision uint64
	written  time.Time
	ears     map[string]func([]byte)
	down     bool // nobody reaches it
	messages int

	lose  float64 // share of the messages
	delay func(*rand.Rand) time.Duration
	forge func([]byte) []byte // what Lease says instead, for planted bugs
}

func newHub(seed uint64) *hub {
	return &hub{
		rnd: rand.New(rand.NewPCG(seed, 7)), ears: map[string]func([]byte){},
		delay: func(r *rand.Rand) time.Duration { return time.Duration(r.IntN(3)) * time.Millisecond },
	}
}

func (h *hub) sent() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.messages
}

// A line is one member's way to the hub.
type line struct {
	hub  *hub
	mu   sync.Mutex
	cut  bool          // partitioned, or dead
	hold chan struct{} // frozen until it is closed; nil while it is not
}

func (l *line) wait() error {
	l.mu.Lock()
	hold, cut := l.hold, l.cut
	l.mu.Unlock()
	if hold != nil {
		<-hold
		return l.wait()
	}
	l.hub.mu.Lock()
	defer l.hub.mu.Unlock()
	if cut || l.hub.down {
		return errCut
	}
	return nil
}

func (l *line) set(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
}

func (l *line) freeze() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hold = make(chan struct{})
}

func (l *line) thaw() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.hold)
	l.hold = nil
}

func (l *line) Lease(context.Context) ([]byte, uint64, time.Duration, error) {
	time.Sleep(time.Millisecond)
	if err := l.wait(); err != nil {
		return nil, 0, 0, err
	}
	h := l.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	raw := h.lease
	if h.forge != nil && h.revision > 0 {
		raw = h.forge(raw)
	}
	return raw, h.revision, time.Since(h.written), nil
}

func (l *line) PutLease(_ context.Context, raw []byte, revision uint64) (uint64, error) {
	time.Sleep(time.Millisecond)
	if err := l.wait(); err != nil {
		return 0, err
	}
	h := l.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if revision != h.revision {
		return 0, ErrLeaseMoved
	}
	h.revision++
	h.lease, h.written = raw, time.Now()
	if h.lose > 0 && h.rnd.Float64() < h.lose {
		return 0, errCut // it was written, and the answer got lost
	}
	return h.revision, nil
}

func (l *line) Send(to string, raw []byte) error {
	if err := l.wait(); err != nil {
		return err
	}
	h := l.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	h.messages++
	ear := h.ears[to]
	if ear == nil || h.rnd.Float64() < h.lose {
		return nil
	}
	time.AfterFunc(h.delay(h.rnd), func() { ear(slices.Clone(raw)) })
	return nil
}

func (l *line) Listen(name string, heard func([]byte)) (func(), error) {
	h := l.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ears[name] = func(raw []byte) {
		if l.wait() == nil {
			heard(raw)
		}
	}
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.ears, name)
	}, nil
}

// A fleet is members that make calls to a server.
type fleet struct {
	t       *testing.T
	hub     *hub
	rate    int
	timeout time.Duration
	users   int
	way     func(*rand.Rand) (there, back time.Duration) // of a call; what is longer than the timeout is aborted
	early   bool                                         // planted bug: permits come back when their call begins

	mu       sync.Mutex
	rnd      *rand.Rand
	arrivals []time.Time
	underway map[string]int
	overlap  int
	members  []*sailor
	named    int
}

// A sailor is a member with its workers.
type sailor struct {
	*Member
	line *line
	stop context.CancelFunc
	done sync.WaitGroup
	trip Trips
}

func newFleet(t *testing.T, seed uint64) *fleet {
	return &fleet{
		t: t, hub: newHub(seed), rate: 50, timeout: 2 * time.Second, users: 400,
		rnd: rand.New(rand.NewPCG(seed, 3)), underway: map[string]int{},
		way: func(r *rand.Rand) (time.Duration, time.Duration) {
			return time.Duration(r.IntN(20)) * time.Millisecond, time.Duration(r.IntN(20)) * time.Millisecond
		},
	}
}

func (f *fleet) random(n int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rnd.IntN(n)
}

// launch adds a member with so many workers.
func (f *fleet) launch(workers int, cfg MemberConfig) *sailor {
	f.mu.Lock()
	f.named++
	cfg.Name, cfg.Rate, cfg.CallTimeout = fmt.Sprint("m", f.named), f.rate, f.timeout
	f.mu.Unlock()
	l := &line{hub: f.hub}
	s := &sailor{line: l}
	cfg.RoundTrip = s.trip.Shortest
	m, err := Join(l, cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(f.t.Context())
	s.Member, s.stop = m, stop
	for range workers {
		s.done.Go(func() { f.work(ctx, s) })
	}
	f.mu.Lock()
	f.members = append(f.members, s)
	f.mu.Unlock()
	return s
}

func (f *fleet) work(ctx context.Context, s *sailor) {
	for {
		user := fmt.Sprint("u", f.random(f.users))
		p, err := s.Acquire(ctx, create, user)
		if err != nil {
			return
		}
		f.mu.Lock()
		there, back := f.way(f.rnd)
		f.underway[user]++
		if f.underway[user] > 1 {
			f.overlap++
		}
		f.mu.Unlock()
		if f.early {
			p.Done(Answered)
		}
		outcome := Answered
		if there+back > f.timeout {
			outcome = Lost
			there, back = min(there, f.timeout), max(0, f.timeout-there)
		}
		time.Sleep(there)
		f.mu.Lock()
		f.arrivals = append(f.arrivals, time.Now())
		f.mu.Unlock()
		time.Sleep(back)
		f.mu.Lock()
		f.underway[user]--
		f.mu.Unlock()
		if outcome == Answered {
			s.trip.Note(there + back)
		}
		s.line.wait() // a frozen process does not go on
		p.Done(outcome)
	}
}

// kill ends a member without a word. Its calls go on to the server for a while, as bytes on the wire do.
func (f *fleet) kill(s *sailor) {
	s.line.set(true)
	s.stop()
	f.drop(s)
	go s.Leave()
}

// retire lets a member end its work and leave.
func (f *fleet) retire(s *sailor) {
	s.stop()
	s.done.Wait()
	s.Leave()
	f.drop(s)
}

func (f *fleet) drop(s *sailor) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.members = slices.DeleteFunc(f.members, func(o *sailor) bool { return o == s })
}

func (f *fleet) any() *sailor {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.members[f.rnd.IntN(len(f.members))]
}

func (f *fleet) leader() *sailor {
	for _, s := range f.members {
		if s.Snapshot().Leading {
			return s
		}
	}
	return nil
}

// end retires everybody and returns the calls of the fullest second, and whether calls of one user overlapped.
func (f *fleet) end() (most int, overlap int) {
	for len(f.members) > 0 {
		s := f.members[0]
		s.line.set(false)
		f.retire(s)
	}
	a := arrivals{at: f.arrivals}
	return a.most(time.Second), f.overlap
}

// count is how many calls arrived so far.
func (f *fleet) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.arrivals)
}

func TestFleetSharesThePace(t *testing.T) {
	for _, members := range []int{1, 2, 4, 20} {
		synctest.Test(t, func(t *testing.T) {
			f := newFleet(t, 1)
			f.rate = 200
			f.users = 100_000
			f.way = func(*rand.Rand) (time.Duration, time.Duration) { return time.Millisecond, time.Millisecond }
			for range members {
				f.launch(128/members, MemberConfig{})
			}
			time.Sleep(10 * time.Second)
			before, sent := f.count(), f.hub.sent()
			time.Sleep(20 * time.Second)
			calls, messages := f.count()-before, f.hub.sent()-sent
			if calls < 20*200*98/100 {
				t.Errorf("%d members: %d calls in 20 s, want at least 98 %%", members, calls)
			}
			if perCall := float64(messages) / float64(calls); perCall > 4 {
				t.Errorf("%d members: %.1f messages a call", members, perCall)
			}
			if most, overlap := f.end(); most > 200 || overlap > 0 {
				t.Errorf("%d members: %d calls in a second, %d overlaps of a user", members, most, overlap)
			}
		})
	}
}

// TestRoundTripCredit is the experiment behind the credit of the shortest round trip: with jitter, with most of the
// delay on one side, with long tails, over one and several processes. With -v it prints the table.
func TestRoundTripCredit(t *testing.T) {
	ms := func(r *rand.Rand, from, to int) time.Duration {
		return time.Duration(from)*time.Millisecond + time.Duration(r.Int64N(int64(to-from)*1e6+1))
	}
	for _, tc := range []struct {
		name  string
		way   func(r *rand.Rand) (there, back time.Duration)
		least float64 // of the rate, once enough trips have been seen
	}{
		{"50 ms ± 10 ms in the server", func(r *rand.Rand) (time.Duration, time.Duration) { return 0, ms(r, 40, 60) }, 0.98},
		{"50 ms ± 10 ms on the way there", func(r *rand.Rand) (time.Duration, time.Duration) { return ms(r, 40, 60), 0 }, 0.98},
		{"both ways 10–40 ms", func(r *rand.Rand) (time.Duration, time.Duration) { return ms(r, 10, 40), ms(r, 10, 40) }, 0.96},
		{"150 ms, asymmetric, one in 50 takes a second more", func(r *rand.Rand) (time.Duration, time.Duration) {
			there, back := ms(r, 120, 130), ms(r, 20, 30)
			if r.IntN(50) == 0 {
				there += time.Second
			}
			return there, back
		}, 0.95},
		{"0–40 ms, no floor", func(r *rand.Rand) (time.Duration, time.Duration) { return ms(r, 0, 20), ms(r, 0, 20) }, 0.97},
	} {
		for _, members := range []int{1, 4} {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, 11)
				f.rate, f.users, f.way = 200, 100_000, tc.way
				f.timeout = 10 * time.Second
				for range members {
					f.launch(120, MemberConfig{})
				}
				time.Sleep(30 * time.Second)
				before := f.count()
				time.Sleep(20 * time.Second)
				mean := float64(f.count()-before) / 20
				most, _ := f.end()
				t.Logf("%-50s %d processes: mean %.1f/s, at most %d in a second", tc.name, members, mean, most)
				if most > 200 {
					t.Errorf("%s, %d processes: %d calls in a second", tc.name, members, most)
				}
				if mean < tc.least*200 {
					t.Errorf("%s, %d processes: mean %.1f/s, want %.1f", tc.name, members, mean, tc.least*200)
				}
			})
		}
	}
}

// TestFirstLeaderStartsAtOnce is about a run by itself: the first ever, after one that ended well, after one that was
// killed with its server, and after one that was killed elsewhere.
func TestFirstLeaderStartsAtOnce(t *testing.T) {
	first := func(f *fleet, cfg MemberConfig) (*sailor, time.Duration) {
		start, before := time.Now(), f.count()
		s := f.launch(10, cfg)
		for f.count() == before {
			time.Sleep(10 * time.Millisecond)
		}
		return s, time.Since(start)
	}
	inherited := 0
	atHome := MemberConfig{Home: func() bool { return true }, OnInherit: func() { inherited++ }}
	for _, tc := range []struct {
		name        string
		first, then MemberConfig
		end         func(*fleet, *sailor)
		least, most time.Duration
	}{
		{"handed over a moment ago", MemberConfig{}, MemberConfig{}, (*fleet).retire, time.Second, 1200 * time.Millisecond},
		{"handed over long ago", MemberConfig{}, MemberConfig{},
			func(f *fleet, s *sailor) { f.retire(s); time.Sleep(time.Hour) }, 0, 200 * time.Millisecond},
		{"handed over with its server", atHome, atHome, (*fleet).retire, time.Second, 1200 * time.Millisecond},
		{"killed with its server", atHome, atHome, (*fleet).kill, 2 * time.Second, 2200 * time.Millisecond},
		{"killed elsewhere", MemberConfig{}, MemberConfig{}, (*fleet).kill, 5 * time.Second, 8 * time.Second},
		{"killed elsewhere long ago", MemberConfig{}, MemberConfig{},
			func(f *fleet, s *sailor) { f.kill(s); time.Sleep(time.Hour) }, 0, 200 * time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, 1)
				s, took := first(f, tc.first)
				if took > 200*time.Millisecond {
					t.Errorf("the first ever began after %v", took)
				}
				time.Sleep(3 * time.Second)
				tc.end(f, s)
				time.Sleep(100 * time.Millisecond)
				_, took = first(f, tc.then)
				if took < tc.least || took > tc.most {
					t.Errorf("began after %v, want %v to %v", took, tc.least, tc.most)
				}
				if most, _ := f.end(); most > f.rate {
					t.Errorf("%d calls in a second, want at most %d", most, f.rate)
				}
				time.Sleep(time.Minute) // what was killed gives up
			})
		})
	}
	if inherited != 2 {
		t.Errorf("inherited %d times, want twice: after each that is gone with its server", inherited)
	}
}

// TestFleetSurvives lets the leader die, leave, freeze and be cut off, and the hub go down, and measures how long the
// fleet stands still after each.
func TestFleetSurvives(t *testing.T) {
	takeover := reign + validity + 2*time.Second /* timeout */ + cooldown + 2*time.Second // the others look each half second
	for _, tc := range []struct {
		name string
		do   func(*fleet, *sailor)
		most time.Duration // of a standstill
	}{
		{"a follower dies", func(f *fleet, lead *sailor) {
			for _, s := range f.members {
				if s != lead {
					f.kill(s)
					return
				}
			}
		}, time.Second},
		{"the leader dies", func(f *fleet, lead *sailor) { f.kill(lead) }, takeover},
		{"the leader leaves", func(f *fleet, lead *sailor) { f.retire(lead) }, 3 * time.Second},
		{"the leader freezes for 20 s", func(f *fleet, lead *sailor) {
			lead.line.freeze()
			time.Sleep(20 * time.Second)
			lead.line.thaw()
		}, takeover},
		{"the leader is cut off for 20 s", func(f *fleet, lead *sailor) {
			lead.line.set(true)
			time.Sleep(20 * time.Second)
			lead.line.set(false)
		}, takeover},
		{"the hub is down for a second", func(f *fleet, _ *sailor) {
			f.hub.mu.Lock()
			f.hub.down = true
			f.hub.mu.Unlock()
			time.Sleep(time.Second)
			f.hub.mu.Lock()
			f.hub.down = false
			f.hub.mu.Unlock()
		}, time.Second + askAgain + 2*time.Second},
		{"the hub does not answer for a while, the leader last", func(f *fleet, lead *sailor) {
			lead.line.freeze()
			time.Sleep(renewEvery) // until all have seen its last renewal
			f.mu.Lock()
			others := slices.DeleteFunc(slices.Clone(f.members), func(s *sailor) bool { return s == lead })
			f.mu.Unlock()
			for _, s := range others {
				s.line.freeze()
			}
			time.Sleep(patience)
			for _, s := range others {
				s.line.thaw()
			}
			time.Sleep(renewEvery / 2)
			lead.line.thaw()
		}, patience + askAgain + 2*time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, 5)
				for range 4 {
					f.launch(20, MemberConfig{})
				}
				time.Sleep(10 * time.Second)
				lead := f.leader()
				if lead == nil {
					t.Fatal("nobody leads")
				}
				go tc.do(f, lead)
				var still, longest time.Duration
				for range 600 { // a minute
					before := f.count()
					time.Sleep(100 * time.Millisecond)
					if f.count() > before {
						still = 0
					} else {
						still += 100 * time.Millisecond
						longest = max(longest, still)
					}
				}
				t.Logf("stood still for %v", longest)
				if longest > tc.most {
					t.Errorf("stood still for %v, want at most %v", longest, tc.most)
				}
				if f.leader() == nil {
					t.Error("nobody leads in the end")
				}
				if most, overlap := f.end(); most > f.rate || overlap > 0 {
					t.Errorf("%d calls in a second, want at most %d; %d overlaps of a user", most, f.rate, overlap)
				}
				time.Sleep(time.Minute)
			})
		})
	}
}

// storm makes a random life of a fleet: messages get lost and late, members are killed, cut off, frozen, started and
// stopped, calls take any time up to their timeout. It returns the fullest second and the overlaps.
func storm(t *testing.T, seed uint64, plant func(*fleet)) (most, overlap int) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, seed)
		f.rate = 5 + f.random(40)
		f.hub.lose = float64(f.random(3)) * 0.02
		late := f.random(4) == 0
		f.hub.delay = func(r *rand.Rand) time.Duration {
			if late && r.IntN(50) == 0 {
				return time.Duration(r.IntN(3000)) * time.Millisecond
			}
			return time.Duration(r.IntN(20)) * time.Millisecond
		}
		slow := f.random(3)
		f.way = func(r *rand.Rand) (time.Duration, time.Duration) {
			span := 30
			if slow > 0 && r.IntN(10) < slow {
				span = 2500
			}
			return time.Duration(r.IntN(span)) * time.Millisecond, time.Duration(r.IntN(span)) * time.Millisecond
		}
		if plant != nil {
			plant(f)
		}
		for range 1 + f.random(3) {
			f.launch(1+f.random(25), MemberConfig{})
		}
		for range 12 {
			time.Sleep(time.Duration(f.random(6000)) * time.Millisecond)
			s := f.any()
			if lead := f.leader(); lead != nil && f.random(2) == 0 {
				s = lead
			}
			switch f.random(6) {
			case 0:
				f.launch(1+f.random(25), MemberConfig{})
				f.kill(s)
			case 1:
				f.launch(1+f.random(25), MemberConfig{})
				f.retire(s)
			case 2:
				s.line.freeze()
				time.Sleep(time.Duration(f.random(12000)) * time.Millisecond)
				s.line.thaw()
			case 3:
				s.line.set(true)
				time.Sleep(time.Duration(f.random(12000)) * time.Millisecond)
				s.line.set(false)
			case 4:
				f.hub.mu.Lock()
				f.hub.down = true
				f.hub.mu.Unlock()
				time.Sleep(time.Duration(f.random(5000)) * time.Millisecond)
				f.hub.mu.Lock()
				f.hub.down = false
				f.hub.mu.Unlock()
			case 5:
				f.launch(1+f.random(25), MemberConfig{})
			}
		}
		f.hub.mu.Lock()
		f.hub.lose = 0
		f.hub.mu.Unlock()
		before := f.count()
		time.Sleep(40 * time.Second)
		if plant == nil && f.count() == before {
			t.Errorf("seed %d: the fleet did not come back", seed)
		}
		rate := f.rate
		most, overlap = f.end()
		most -= rate
		time.Sleep(time.Minute)
	})
	return most, overlap
}

func TestStorm(t *testing.T) {
	for seed := range *storms {
		if over, overlap := storm(t, seed, nil); over > 0 || overlap > 0 {
			t.Fatalf("seed %d: %d calls over the limit, %d overlaps of a user", seed, over, overlap)
		}
	}
}

// TestStormCatchesPlantedBugs shows that the storm can fail.
func TestStormCatchesPlantedBugs(t *testing.T) {
	for name, plant := range map[string]func(*fleet){
		"permits come back when their call begins": func(f *fleet) { f.early = true },
		"no quarantine": func(f *fleet) {
			f.hub.forge = func(raw []byte) []byte {
				// What nobody handed over looks as if it had been, long ago.
				return []byte(`{"v":1,"leader":"nobody","clean":true}`)
			}
		},
	} {
		caught := false
		for seed := uint64(0); seed < 60 && !caught; seed++ {
			over, _ := storm(t, seed, plant)
			caught = over > 0
		}
		if !caught {
			t.Errorf("%s: not caught by 60 storms", name)
		}
	}
}
