package lease

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"groupferry/internal/clock"
)

// A shelf is a store whose requests take 1 ms each way, and otherwise what fault says.
type shelf struct {
	mu     sync.Mutex
	raw    []byte
	rev    uint64
	reads  int
	writes []time.Time // when they were sent

	// fault, if set, says what happens to the nth request of a kind, from 1.
	fault func(write bool, n int) fault
}

type fault struct {
	there, back time.Duration // in addition
	lost        bool          // the request
	noResponse  bool          // the response is lost
	err         error         // at once, instead
}

func (s *shelf) request(ctx context.Context, write bool, do func()) error {
	s.mu.Lock()
	n := s.reads + 1
	if write {
		s.writes = append(s.writes, time.Now())
		n = len(s.writes)
	} else {
		s.reads++
	}
	var f fault
	if s.fault != nil {
		f = s.fault(write, n)
	}
	s.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	responded := make(chan struct{})
	if !f.lost {
		time.AfterFunc(time.Millisecond+f.there, func() {
			s.mu.Lock()
			do()
			s.mu.Unlock()
			if !f.noResponse {
				time.AfterFunc(time.Millisecond+f.back, func() { close(responded) })
			}
		})
	}
	select {
	case <-responded:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *shelf) Read(ctx context.Context) (raw []byte, rev uint64, err error) {
	var response struct {
		raw []byte
		rev uint64
	}
	if err := s.request(ctx, false, func() { response.raw, response.rev = s.raw, s.rev }); err != nil {
		return nil, 0, err
	}
	return response.raw, response.rev, nil
}

func (s *shelf) Replace(ctx context.Context, raw []byte, rev uint64) (uint64, error) {
	var next uint64
	if err := s.request(ctx, true, func() {
		if s.rev == rev {
			s.raw, s.rev = raw, s.rev+1
			next = s.rev
		}
	}); err != nil {
		return 0, err
	}
	if next == 0 {
		return 0, ErrMoved
	}
	return next, nil
}

// put replaces the record by hand.
func (s *shelf) put(r Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.Version = version
	s.raw, _ = json.Marshal(r)
	s.rev++
}

func (s *shelf) record(t *testing.T) Record {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	var r Record
	if err := json.Unmarshal(s.raw, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// sent returns when writes were sent.
func (s *shelf) sent() []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.writes)
}

func (s *shelf) setFault(f func(write bool, n int) fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// A pace proposes a number of calls and keeps what it was told.
type pace struct {
	mu       sync.Mutex
	calls    int
	proposed int
	promised []promise
}

type promise struct {
	calls int
	at    time.Time
	right clock.Deadline
	left  time.Duration
}

func (p *pace) Propose() (map[string]int, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.proposed++
	return map[string]int{create: p.calls}, 10 * time.Second
}

func (p *pace) Promised(calls map[string]int, right clock.Deadline) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.promised = append(p.promised, promise{calls[create], time.Now(), right, right.Left()})
}

func (p *pace) set(calls int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = calls
}

// promises returns how many there were.
func (p *pace) promises() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.promised)
}

// unpromised returns how many proposals came to nothing so far.
func (p *pace) unpromised() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.proposed - len(p.promised)
}

// first returns the first promise of so many calls.
func (p *pace) first(t *testing.T, calls int) promise {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, got := range p.promised {
		if got.calls == calls {
			return got
		}
	}
	t.Fatalf("%d calls were not promised", calls)
	return promise{}
}

func (p *pace) last(t *testing.T) promise {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.promised) == 0 {
		t.Fatal("nothing was promised")
	}
	return p.promised[len(p.promised)-1]
}

func lead(t *testing.T, c *Candidate) *Tenure {
	t.Helper()
	tenure, err := c.Lead(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return tenure
}

// keep runs Keep until stop is called, which returns its error.
func keep(t *testing.T, tenure *Tenure, p Pace) (stop func() error) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- tenure.Keep(ctx, p) }()
	return func() error {
		cancel()
		return <-done
	}
}

func within(t *testing.T, what string, got, least, most time.Duration) {
	t.Helper()
	if got < least || got > most {
		t.Errorf("%s: got %v, want %v to %v", what, got, least, most)
	}
}

func TestLeadTakes(t *testing.T) {
	const soon = 5 * time.Millisecond
	held := Record{Holder: "x", Term: 7, Renewal: 3, Timeout: time.Minute, Calls: map[string]int{create: 4}}
	released, toMe, toOther := held, held, held
	released.Released = true
	toMe.Released, toMe.Successor = true, "me"
	toOther.Released, toOther.Successor = true, "y"
	mine := held
	mine.Holder = "me"
	for _, tc := range []struct {
		name   string
		record *Record
		after  time.Duration
	}{
		{"there never was one", nil, 0},
		{"held", &held, TakeoverDelay},
		{"held by this process, from a tenure before", &mine, TakeoverDelay},
		{"released", &released, 0},
		{"released to this candidate", &toMe, 0},
		{"released to another", &toOther, TakeoverDelay},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var s shelf
				var before Record
				if tc.record != nil {
					s.put(*tc.record)
					before = s.record(t)
				}
				c := New(&s, Config{Name: "me", Host: "here", Rate: 200, Timeout: 10 * time.Second})
				start := time.Now()
				tenure := lead(t, c)
				within(t, "leads after", time.Since(start), tc.after, tc.after+soon)
				if got := tenure.Before(); !reflect.DeepEqual(got, before) {
					t.Errorf("got predecessor %+v, want %+v", got, before)
				}
				want := Record{
					Version: 1, Holder: "me", Host: "here", Term: before.Term + 1, Renewal: 1, Rate: 200,
					Timeout: max(10*time.Second, before.Timeout), Calls: before.Calls,
				}
				if got := s.record(t); !reflect.DeepEqual(got, want) {
					t.Errorf("got record %+v, want %+v", got, want)
				}
				if got, ok := c.Observed(); !ok || !reflect.DeepEqual(got, want) {
					t.Errorf("observed %+v, %v, want %+v", got, ok, want)
				}
				within(t, "right", tenure.Right().Left(), Duration-soon, Duration-2*time.Millisecond)
			})
		})
	}
}

// TestTakeoverCountsFromTheResponse has late first responses: what they say may have been stored only just now.
func TestTakeoverCountsFromTheResponse(t *testing.T) {
	for _, f := range []fault{{there: 800 * time.Millisecond}, {back: 800 * time.Millisecond}} {
		synctest.Test(t, func(t *testing.T) {
			s := shelf{fault: func(write bool, n int) fault {
				if !write && n == 1 {
					return f
				}
				return fault{}
			}}
			s.put(Record{Holder: "x", Term: 1})
			start := time.Now()
			lead(t, New(&s, Config{Name: "me"}))
			within(t, "leads after", time.Since(start), 802*time.Millisecond+TakeoverDelay, 810*time.Millisecond+TakeoverDelay)
		})
	}
}

func TestTakeoverCountsFromTheLastRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s shelf
		s.put(Record{Holder: "x", Term: 1})
		start := time.Now()
		led := make(chan time.Duration, 1)
		go func() {
			lead(t, New(&s, Config{Name: "me"}))
			led <- time.Since(start)
		}()
		time.Sleep(2400 * time.Millisecond)
		s.put(Record{Holder: "x", Term: 1, Renewal: 1})
		at := time.Since(start)
		within(t, "leads after", <-led, at+TakeoverDelay, at+TakeoverDelay+pollEvery+5*time.Millisecond)
	})
}

// TestTakeoverByOne has candidates that are all due at the same instant.
func TestTakeoverByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s shelf
		s.put(Record{Holder: "x", Term: 1})
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		var terms []uint64
		var all sync.WaitGroup
		for _, name := range []string{"a", "b", "c", "d"} {
			all.Go(func() {
				tenure, err := New(&s, Config{Name: name}).Lead(ctx)
				if err != nil {
					return
				}
				mu.Lock()
				terms = append(terms, tenure.Term())
				mu.Unlock()
				if err := tenure.Keep(ctx, &pace{}); err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(time.Minute)
		cancel()
		all.Wait()
		if len(terms) != 1 || terms[0] != 2 {
			t.Errorf("got tenures of terms %v, want one of term 2", terms)
		}
	})
}

// TestOutOfReachForAll cuts everybody off for a while: the leader has its lease still, for nobody could watch it.
func TestOutOfReachForAll(t *testing.T) {
	for _, f := range []fault{{lost: true}, {err: errRefused}} {
		for _, long := range []time.Duration{time.Second, 3 * time.Second, time.Minute} {
			synctest.Test(t, func(t *testing.T) {
				var s shelf
				var p pace
				tenure := lead(t, New(&s, Config{Name: "me"}))
				stop := keep(t, tenure, &p)
				ctx, cancel := context.WithCancel(t.Context())
				var others sync.WaitGroup
				for _, name := range []string{"a", "b"} {
					others.Go(func() {
						if o, err := New(&s, Config{Name: name}).Lead(ctx); err == nil {
							t.Errorf("%v of %+v: %s has term %d", long, f, name, o.Term())
						}
					})
				}
				time.Sleep(10 * time.Second)
				s.setFault(func(bool, int) fault { return f })
				time.Sleep(long)
				if long > Duration && !tenure.Right().Passed() {
					t.Error("a right without a renewal")
				}
				s.setFault(nil)
				time.Sleep(5 * time.Second)
				if tenure.Right().Passed() {
					t.Errorf("%v of %+v: the leader does not continue", long, f)
				}
				if err := stop(); err != nil {
					t.Error(err)
				}
				cancel()
				others.Wait()
			})
		}
	}
}

func TestRenews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s shelf
		p := pace{calls: 8}
		c := New(&s, Config{Name: "me", Rate: 200})
		tenure := lead(t, c)
		start := time.Now()
		stop := keep(t, tenure, &p)
		time.Sleep(RenewEvery / 2)
		first := p.last(t)
		within(t, "first promise after", first.at.Sub(start), 0, 5*time.Millisecond)
		p.set(9)
		c.SetRate(100)
		time.Sleep(10 * time.Second) // to the middle of a period
		within(t, "right", tenure.Right().Left(), Duration-RenewEvery-5*time.Millisecond, Duration)
		if got := p.promises(); got < 20 || got > 21 {
			t.Errorf("%d promises in 10 s, want one each 0.5 s", got)
		}
		if got := p.last(t); got.calls != 9 || got.left != Duration-2*time.Millisecond {
			t.Errorf("got promise %+v, want 9 calls and what is left of 2 s from before it was sent", got)
		}
		if r := s.record(t); r.Calls[create] != 9 || r.Timeout != 10*time.Second || r.Rate != 100 || r.Term != 1 || r.Renewal != uint64(len(s.sent())) {
			t.Errorf("got record %+v after %d writes", r, len(s.sent()))
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestRenewalWithoutResponse loses the response to one renewal, or the renewal.
func TestRenewalWithoutResponse(t *testing.T) {
	for _, tc := range []struct {
		name  string
		fault fault
		left  time.Duration // of the right when it is known what became of the renewal
		tries int
	}{
		{"the response", fault{noResponse: true}, Duration - callTimeout - 2*time.Millisecond, 1},
		{"the request", fault{lost: true}, Duration - 2*time.Millisecond, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var s shelf
				p := pace{calls: 1}
				tenure := lead(t, New(&s, Config{Name: "me"}))
				stop := keep(t, tenure, &p)
				time.Sleep(RenewEvery / 2)
				n := len(s.sent())
				p.set(5)
				s.setFault(func(write bool, i int) fault {
					if write && i == n+1 {
						return tc.fault
					}
					return fault{}
				})
				time.Sleep(RenewEvery) // it is sent
				if got := p.last(t); got.calls != 1 {
					t.Errorf("%d calls promised without a response", got.calls)
				}
				if tenure.Right().Passed() {
					t.Error("the right passed")
				}
				time.Sleep(callTimeout - RenewEvery/2 + 10*time.Millisecond)
				if got := p.first(t, 5); got.left != tc.left {
					t.Errorf("got a promise with %v left, want %v", got.left, tc.left)
				}
				if lost := p.unpromised(); lost != tc.tries-1 {
					t.Errorf("%d proposals came to nothing, want %d", lost, tc.tries-1)
				}
				if err := stop(); err != nil {
					t.Error(err)
				}
				for i, next := range p.promised[1:] {
					if before := p.promised[i]; next.at.Sub(before.at) >= before.left {
						t.Errorf("no right from %v until %v after, though only one renewal was lost", before.left, next.at.Sub(before.at))
					}
				}
			})
		})
	}
}

// TestLateRenewal stores a renewal after the next one was sent: the next one fails by that, and what was stored gives
// no right, for nobody knows when it was.
func TestLateRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s shelf
		p := pace{calls: 1}
		tenure := lead(t, New(&s, Config{Name: "me"}))
		stop := keep(t, tenure, &p)
		time.Sleep(RenewEvery / 2)
		n := len(s.sent())
		s.setFault(func(write bool, i int) fault {
			switch {
			case write && i == n+1:
				return fault{there: callTimeout + 10*time.Millisecond, noResponse: true}
			case write && i == n+2:
				return fault{there: 20 * time.Millisecond}
			}
			return fault{}
		})
		known := p.promises()
		late := s.sent()[0].Add(RenewEvery).Add(callTimeout) // about when the one after it is sent
		time.Sleep(time.Until(late.Add(100 * time.Millisecond)))
		if got := p.promises(); got != known {
			t.Errorf("%d promises while nothing was acknowledged", got-known)
		}
		if r := s.record(t); r.Renewal != uint64(n+1) {
			t.Fatalf("the store has renewal %d, want the late one, %d", r.Renewal, n+1)
		}
		time.Sleep(time.Second)
		if tenure.Right().Passed() {
			t.Error("the leader does not continue")
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestTakingWithoutResponse(t *testing.T) {
	for _, tc := range []struct {
		name   string
		fault  fault
		writes int
		right  time.Duration
	}{
		{"the response is lost", fault{noResponse: true}, 1, Duration - callTimeout - 2*time.Millisecond},
		{"the request is lost", fault{lost: true}, 2, Duration - 2*time.Millisecond},
		{"the request is late, the next one fails", fault{there: callTimeout + 5*time.Millisecond, noResponse: true}, 2, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := shelf{fault: func(write bool, n int) fault {
					switch {
					case write && n == 1:
						return tc.fault
					case write && n == 2:
						return fault{there: 100 * time.Millisecond}
					}
					return fault{}
				}}
				if tc.right > 0 { // the second one is not late
					s.fault = func(write bool, n int) fault {
						if write && n == 1 {
							return tc.fault
						}
						return fault{}
					}
				}
				s.put(Record{Holder: "x", Term: 4, Released: true, Calls: map[string]int{create: 3}})
				tenure := lead(t, New(&s, Config{Name: "me"}))
				if tenure.Term() != 5 || tenure.Before().Term != 4 || tenure.Before().Calls[create] != 3 {
					t.Errorf("got term %d after %+v", tenure.Term(), tenure.Before())
				}
				if tc.right > 0 && len(s.sent()) != tc.writes {
					t.Errorf("got %d writes, want %d", len(s.sent()), tc.writes)
				}
				if got := tenure.Right().Left(); got != tc.right {
					t.Errorf("got %v of a right, want %v", got, tc.right)
				}
				var p pace
				stop := keep(t, tenure, &p)
				time.Sleep(time.Second)
				if tenure.Right().Passed() {
					t.Error("no right after a second")
				}
				if err := stop(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestTakingRefused has a store that can be read, and not written.
func TestTakingRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := shelf{fault: func(write bool, n int) fault {
			if write {
				return fault{err: errRefused}
			}
			return fault{}
		}}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := New(&s, Config{Name: "me"}).Lead(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the error of the context", err)
		}
		if got := len(s.sent()); got < 30 || got > 41 {
			t.Errorf("%d tries in 10 s, want one each 250 ms", got)
		}
	})
}

func TestLost(t *testing.T) {
	for name, put := range map[string]func(*shelf){
		"another took it":            func(s *shelf) { s.put(Record{Holder: "x", Host: "there-1", Term: 2}) },
		"a new term of this process": func(s *shelf) { s.put(Record{Holder: "me", Term: 2}) },
		"a record of another version": func(s *shelf) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.raw, s.rev = []byte(`{"version":2}`), s.rev+1
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var s shelf
				tenure := lead(t, New(&s, Config{Name: "me"}))
				done := make(chan error, 1)
				go func() { done <- tenure.Keep(t.Context(), &pace{}) }()
				time.Sleep(RenewEvery / 2)
				put(&s)
				if err := <-done; !errors.Is(err, ErrLost) {
					t.Errorf("got %v, want ErrLost", err)
				} else if strings.HasPrefix(name, "another") && !strings.Contains(err.Error(), "there-1") {
					t.Errorf("%v does not say who has it", err)
				}
				if !tenure.Right().Passed() {
					t.Error("a right after the lease was lost")
				}
				raw := string(s.raw)
				if err := tenure.Keep(t.Context(), &pace{}); !errors.Is(err, ErrLost) {
					t.Errorf("Keep: got %v, want ErrLost", err)
				}
				if err := tenure.Release(t.Context(), nil, 0, "", 0); !errors.Is(err, ErrLost) {
					t.Errorf("Release: got %v, want ErrLost", err)
				}
				if string(s.raw) != raw {
					t.Errorf("the record became %s", s.raw)
				}
			})
		})
	}
}

// TestSuspendedMachine lets the wall clock of a leader jump ahead while its monotonic clock stands still. In the
// meantime another process took the lease, or none did.
func TestSuspendedMachine(t *testing.T) {
	for _, taken := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			var s shelf
			var mu sync.Mutex
			var slept time.Duration
			wall := clock.Clock{Wall: func() time.Time {
				mu.Lock()
				defer mu.Unlock()
				return time.Now().Add(slept)
			}}
			var p pace
			tenure := lead(t, New(&s, Config{Name: "me", Clock: wall}))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- tenure.Keep(ctx, &p) }()
			time.Sleep(RenewEvery / 2)
			promised := p.last(t).right
			if taken {
				s.put(Record{Holder: "x", Term: 2})
			}
			mu.Lock()
			slept = 10 * time.Second
			mu.Unlock()
			if !tenure.Right().Passed() || !promised.Passed() {
				t.Error("a right after the machine was suspended")
			}
			if taken {
				if err := <-done; !errors.Is(err, ErrLost) {
					t.Errorf("got %v, want ErrLost", err)
				}
				return
			}
			time.Sleep(RenewEvery)
			if tenure.Right().Passed() {
				t.Error("the leader does not continue")
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestWallClockOfACandidate sets the wall clock of a candidate that watches a dead leader.
func TestWallClockOfACandidate(t *testing.T) {
	for _, step := range []time.Duration{time.Hour, -time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			var s shelf
			s.put(Record{Holder: "x", Term: 1})
			begin := time.Now()
			c := New(&s, Config{Name: "me", Clock: clock.Clock{Wall: func() time.Time {
				if time.Since(begin) > time.Second {
					return time.Now().Add(step)
				}
				return time.Now()
			}}})
			lead(t, c)
			within(t, "leads after", time.Since(begin), TakeoverDelay, TakeoverDelay+5*time.Millisecond)
		})
	}
}

func TestLeadEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s shelf
		s.put(Record{Holder: "x", Term: 1})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := New(&s, Config{Name: "me"}).Lead(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the error of the context", err)
		}
	})
}

func TestVersion(t *testing.T) {
	for _, raw := range []string{`{"version":2,"term":1}`, `{}`, `nonsense`, ``} {
		synctest.Test(t, func(t *testing.T) {
			s := shelf{raw: []byte(raw), rev: 1}
			if _, err := New(&s, Config{Name: "me"}).Lead(t.Context()); !errors.Is(err, ErrVersion) {
				t.Errorf("%s: got %v, want ErrVersion", raw, err)
			}
			if len(s.sent()) > 0 {
				t.Errorf("%s was replaced", raw)
			}
		})
	}
}

func TestKick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s shelf
		var p pace
		tenure := lead(t, New(&s, Config{Name: "me"}))
		stop := keep(t, tenure, &p)
		time.Sleep(100 * time.Millisecond)
		p.set(7)
		kicked := time.Now()
		tenure.Kick()
		time.Sleep(10 * time.Millisecond)
		if got := p.last(t); got.calls != 7 {
			t.Errorf("%d calls promised, want 7", got.calls)
		}
		n := len(s.sent())
		for time.Since(kicked) < time.Second {
			tenure.Kick()
			time.Sleep(time.Millisecond)
		}
		if got := len(s.sent()) - n; got < 15 || got > 20 {
			t.Errorf("%d renewals in a second of kicks, want one each 50 ms", got)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestRelease(t *testing.T) {
	for _, tc := range []struct {
		name  string
		fault fault // of the first write of the release
	}{
		{"without a fault", fault{}},
		{"the response is lost", fault{noResponse: true}},
		{"the request is lost", fault{lost: true}},
		{"refused", fault{err: errRefused}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var s shelf
				tenure := lead(t, New(&s, Config{Name: "me"}))
				stop := keep(t, tenure, &pace{})
				time.Sleep(time.Second)
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Millisecond) // a request that stop cut off
				n := len(s.sent())
				var had bool
				s.setFault(func(write bool, i int) fault {
					had = had || write && !tenure.Right().Passed()
					if write && i == n+1 {
						return tc.fault
					}
					return fault{}
				})
				if err := tenure.Release(t.Context(), map[string]int{create: 2}, time.Second, "next", 3); err != nil {
					t.Error(err)
				}
				if had {
					t.Error("the release was sent while there was a right")
				}
				r := s.record(t)
				if !r.Released || r.Successor != "next" || r.Calls[create] != 2 || r.Timeout != time.Second || r.Handovers != 3 || r.Term != 1 {
					t.Errorf("got record %+v", r)
				}
				if err := tenure.Keep(t.Context(), &pace{}); !errors.Is(err, ErrLost) {
					t.Errorf("Keep: got %v, want ErrLost", err)
				}
				start := time.Now()
				next := lead(t, New(&s, Config{Name: "next"}))
				within(t, "the successor leads after", time.Since(start), 0, 5*time.Millisecond)
				if r := s.record(t); next.Before().Calls[create] != 2 || r.Calls[create] != 2 || r.Handovers != 0 {
					t.Errorf("got record %+v after %+v", r, next.Before())
				}
			})
		})
	}
}

func TestReleaseOutOfReach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s shelf
		tenure := lead(t, New(&s, Config{Name: "me"}))
		s.setFault(func(bool, int) fault { return fault{err: errRefused} })
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if err := tenure.Release(ctx, nil, 0, "", 0); !errors.Is(err, errRefused) {
			t.Errorf("got %v, want why it was not released", err)
		}
		if got := len(s.sent()); got < 11 || got > 14 {
			t.Errorf("%d tries in 3 s, want one each 250 ms", got)
		}
	})
}

func TestOnObserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s shelf
		s.put(Record{Holder: "x", Term: 1})
		type seen struct {
			holder   string
			revision uint64
			released bool
		}
		var got []seen
		c := New(&s, Config{Name: "me", OnObserve: func(r Record, revision uint64) {
			got = append(got, seen{r.Holder, revision, r.Released})
		}})
		if _, ok := c.Observed(); ok {
			t.Error("observed something before it looked")
		}
		tenure := lead(t, c)
		if err := tenure.Release(t.Context(), nil, 0, "", 0); err != nil {
			t.Error(err)
		}
		if want := []seen{{"x", 1, false}, {"me", 2, false}, {"me", 3, true}}; !reflect.DeepEqual(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

// TestRecord fixes the wire form.
func TestRecord(t *testing.T) {
	raw, err := json.Marshal(Record{
		Version: 1, Holder: "h", Host: "host-1", Term: 2, Renewal: 3, Released: true, Successor: "s", Rate: 200,
		Timeout: time.Second, Calls: map[string]int{"create": 4}, Handovers: 5,
	})
	want := `{"version":1,"holder":"h","host":"host-1","term":2,"renewal":3,"released":true,"successor":"s","rate":200,` +
		`"timeout":1000000000,"calls":{"create":4},"handovers":5}`
	if err != nil || string(raw) != want {
		t.Errorf("got %s, %v; want %s", raw, err, want)
	}
	if r, rev, err := Read(t.Context(), &shelf{}); err != nil || rev != 0 || !reflect.DeepEqual(r, Record{}) {
		t.Errorf("got %+v, %d, %v from an empty store", r, rev, err)
	}
}
