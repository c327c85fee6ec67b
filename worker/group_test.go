package worker

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/governor"
	"groupferry/internal/job"
)

var (
	groupRuns = flag.Int("groups", 15, "runs of TestSharedGroups for each API")
	groupSeed = flag.Uint64("groups-seed", 1, "of the first run of TestSharedGroups")
)

// imported makes a job of one import that has some of the conversations that testJob numbers.
func imported(id, user, group string, from, to int) job.Job {
	j := testJob(user, group, to)
	j.ID = job.ID(id, user, group)
	j.Conversations = j.Conversations[from:]
	return j
}

// A group is filled by one import, and then added to by another: of rejects, of what failed, of new rows.
func TestSecondImport(t *testing.T) {
	for _, existing := range []string{"append", "replace", "refuse"} {
		for _, offered := range []string{"all", "no get", "no update"} {
			t.Run(existing+" "+offered, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a := newAPI(existing)
					a.offer(offered)
					for _, j := range []job.Job{imported("one", "anna", "g", 0, 9), imported("two", "anna", "g", 9, 10)} {
						s := newStream(j)
						if err := work(t, Config{}, s, a); err != nil {
							t.Fatal(err)
						}
						if existing == "refuse" && offered == "no update" && strings.HasSuffix(j.ID, job.ID("two", "anna", "g")) {
							continue // nothing can add to it
						}
						holds(t, s, a, j, job.Done)
					}
					want := 10
					if existing == "refuse" && offered == "no update" {
						want = 9
					}
					if got := len(a.groups["anna/g"]); got != want {
						t.Errorf("the group holds %d, want %d", got, want)
					}
				})
			})
		}
	}
}

// Two imports that have the same group at the same time do not take each other's conversations out.
func TestSameGroupAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("replace")
		a.latency = 50 * time.Millisecond
		var jobs []job.Job
		for i := range 8 {
			jobs = append(jobs, imported(fmt.Sprint("i", i), "anna", "g", 10*i, 10*i+10))
		}
		s := newStream(jobs...)
		if err := work(t, Config{}, s, a); err != nil {
			t.Fatal(err)
		}
		for _, j := range jobs {
			holds(t, s, a, j, job.Done)
		}
	})
}

// Where only create can write, conversations that are sent again bring the whole group with them.
func TestResendCarriesTheGroup(t *testing.T) {
	for _, existing := range []string{"append", "replace"} {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI(existing)
			a.offer("create only")
			a.item = func(it chat.Item) int {
				if it.ID == "c0004" {
					return chat.CodeGroupUnresolved
				}
				return 0
			}
			j := testJob("anna", "g", 10)
			s := newStream(j)
			if err := work(t, Config{AcceptReplace: true}, s, a); err != nil {
				t.Fatal(err)
			}
			if r := holds(t, s, a, j, job.Partial); r.FailedConversations() != 1 || len(a.groups["anna/g"]) != 9 {
				t.Errorf("%s: got %d failed and %d in the group, want 1 and 9", existing, r.FailedConversations(), len(a.groups["anna/g"]))
			}
		})
	}
}

// A create without a response takes effect late, and would take out what was added meanwhile.
func TestLateCreate(t *testing.T) {
	for _, offered := range []string{"all", "no get"} {
		t.Run(offered, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAPI("replace")
				a.offer(offered)
				a.latency = 20 * time.Millisecond
				rnd := rand.New(rand.NewPCG(1, 2))
				a.late = func(c chat.Command) bool { return c == chat.CreateContactGroup && rnd.IntN(3) == 0 }
				var jobs []job.Job
				for i := range 30 {
					jobs = append(jobs, testJob(fmt.Sprint("u", i), "g", 450))
				}
				s := newStream(jobs...)
				if err := work(t, Config{}, s, a); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Second)
				for _, j := range jobs {
					holds(t, s, a, j, job.Done)
				}
			})
		})
	}
}

// A group is read back after a call without a response, and what is missing is sent again.
func TestReadBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		lost := false
		a.fault = func(_ int, c chat.Command, _ string) (error, bool) {
			if c == chat.UpdateContactGroup && !lost {
				lost = true
				time.AfterFunc(time.Second, func() { // somebody else
					a.mu.Lock()
					defer a.mu.Unlock()
					delete(a.groups["anna/g"], chat.Item{Type: 1, ID: "c0000"})
				})
				return &chat.Error{Command: c, Cause: errors.New("reset")}, true
			}
			return nil, false
		}
		a.latency = time.Second
		j := testJob("anna", "g", 150)
		s := newStream(j)
		if err := work(t, Config{Known: appends()}, s, a); err != nil {
			t.Fatal(err)
		}
		holds(t, s, a, j, job.Done)
		if n := a.count(chat.GetContactGroup); n < 2 {
			t.Errorf("got %d reads, want the group to be read back, and once more", n)
		}
	})
}

// One HTTP 404 says nothing about a command. Several do, until the command has had a response.
func TestNotFound(t *testing.T) {
	t.Run("once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI("replace")
			once := false
			a.fault = func(_ int, c chat.Command, _ string) (error, bool) {
				if c == chat.UpdateContactGroup && !once {
					once = true
					return status(c, 404), false
				}
				return nil, false
			}
			j := testJob("anna", "g", 1000)
			s := newStream(j)
			if err := work(t, Config{}, s, a); err != nil {
				t.Fatal(err)
			}
			holds(t, s, a, j, job.Done)
		})
	})
	t.Run("after a response", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI("append")
			var missing atomic.Bool
			a.fault = func(_ int, c chat.Command, _ string) (error, bool) {
				if missing.Load() && c == chat.UpdateContactGroup {
					return status(c, 404), false
				}
				return nil, false
			}
			first, second := testJob("anna", "g", 150), testJob("bob", "g", 150)
			s := newStream(first)
			w := New(Config{}, s, a, startGovernor(t, governor.Config{}))
			if err := runUntilEmpty(t, w, s); err != nil {
				t.Fatal(err)
			}
			missing.Store(true)
			s.add(second.AppendJSON(nil))
			time.AfterFunc(time.Minute, func() { missing.Store(false) })
			if err := runUntilEmpty(t, w, s); err != nil {
				t.Fatal(err)
			}
			holds(t, s, a, second, job.Done)
		})
	})
	t.Run("asked again", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI("replace")
			a.offer("no update")
			var known Known
			j := testJob("anna", "g", 150)
			s := newStream(j)
			if err := work(t, Config{OnKnown: func(k Known) { known = k }}, s, a); err != nil {
				t.Fatal(err)
			}
			holds(t, s, a, j, job.Partial)
			tried := a.count(chat.UpdateContactGroup)
			for _, wait := range []time.Duration{0, askAgain + time.Second} {
				time.Sleep(wait)
				s = newStream(j)
				if err := work(t, Config{Known: known}, s, a); err != nil {
					t.Fatal(err)
				}
				if again := a.count(chat.UpdateContactGroup) > tried; again != (wait > 0) {
					t.Errorf("after %v: update was called again: %t", wait, again)
				}
			}
		})
	})
}

// Conversations whose code may pass requeue the job, as a call does with the same code.
func TestPassingConversations(t *testing.T) {
	for _, code := range []int{50004, 50005} {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI("append")
			end := time.Now().Add(6 * time.Second)
			a.item = func(it chat.Item) int {
				if it.ID == "c0001" && time.Now().Before(end) {
					return code
				}
				return 0
			}
			j := testJob("anna", "g", 5)
			s := newStream(j)
			if err := work(t, Config{}, s, a); err != nil {
				t.Fatal(err)
			}
			if r := holds(t, s, a, j, job.Done); r.Attempts < 2 {
				t.Errorf("%d: got %d attempts, want it to be requeued", code, r.Attempts)
			}
			end = time.Now().Add(24 * time.Hour)
			other := testJob("bob", "g", 5)
			s = newStream(other)
			if err := work(t, Config{MaxAttempts: 3}, s, a); err != nil {
				t.Fatal(err)
			}
			if r := holds(t, s, a, other, job.Partial); r.Attempts != 3 || r.Conversations[1].Code != fmt.Sprint(code) {
				t.Errorf("for ever: got %d attempts and code %q, want 3 and %d", r.Attempts, r.Conversations[1].Code, code)
			}
		})
	}
}

// An unknown code on the first create has three tries, whatever else is offered.
func TestUnknownCode(t *testing.T) {
	for _, offered := range []string{"all", "no update", "create only"} {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI("append")
			a.offer(offered)
			a.fault = func(_ int, c chat.Command, _ string) (error, bool) {
				if c == chat.CreateContactGroup {
					return coded(c, 59999), false
				}
				return nil, false
			}
			s := newStream(testJob("anna", "g", 1))
			if err := work(t, Config{AcceptReplace: true}, s, a); err != nil {
				t.Fatal(err)
			}
			if n := a.count(chat.CreateContactGroup); n != unknownTries {
				t.Errorf("%s: got %d creates, want %d", offered, n, unknownTries)
			}
		})
	}
}

// Responses of something in between halt after a few calls, with its status and text.
func TestRejectedInBetween(t *testing.T) {
	for _, s := range []int{401, 403, 404, 407, 451} {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI("append")
			a.fault = func(_ int, c chat.Command, _ string) (error, bool) {
				return &chat.Error{Command: c, Status: s, Info: "blocked by policy"}, false
			}
			var why error
			cfg := Config{LeaveOn: always, Known: appends(), OnNoResponse: func(err error) { why = err }}
			err := work(t, cfg, newStream(testJob("anna", "g", 1)), a)
			if !governor.IsHalted(err) || !strings.Contains(err.Error(), fmt.Sprint(s)) || !strings.Contains(err.Error(), "blocked by policy") {
				t.Errorf("%d: got %v, want halted, with the text", s, err)
			}
			if len(a.calls) < repeatsMost || len(a.calls) > 2*callTries || why == nil && s != 404 {
				t.Errorf("%d: halted after %d calls, told of %v", s, len(a.calls), why)
			}
		})
	}
}

// A first import costs one call more per group; where create appends, only until one job has learned that.
func TestCallsOfAFirstImport(t *testing.T) {
	for existing, perGroup := range map[string]int{"append": 1, "refuse": 2, "replace": 2} {
		synctest.Test(t, func(t *testing.T) {
			const groups = 400
			a := newAPI(existing)
			a.latency = 20 * time.Millisecond
			var jobs []job.Job
			for i := range groups {
				jobs = append(jobs, testJob(fmt.Sprint("u", i), "g", 3))
			}
			s := newStream(jobs...)
			var known Known
			if err := work(t, Config{Concurrency: 20, OnKnown: func(k Known) { known = k }}, s, a); err != nil {
				t.Fatal(err)
			}
			if least := perGroup * groups; len(a.calls) < least || len(a.calls) > least+60 {
				t.Errorf("%s: got %d calls for %d groups, want %d and a few", existing, len(a.calls), groups, least)
			}
			a.calls, a.groups = nil, map[string]map[chat.Item]bool{}
			s = newStream(jobs...)
			if err := work(t, Config{Concurrency: 20, Known: known}, s, a); err != nil {
				t.Fatal(err)
			}
			if len(a.calls) != perGroup*groups {
				t.Errorf("%s, known: got %d calls for %d groups, want %d", existing, len(a.calls), groups, perGroup*groups)
			}
		})
	}
}

// TestSharedGroups runs imports that share groups with each other, and with what was there before, against every API
// there may be, with faults and crashes. Nothing that was in a group goes, nothing is said to be done that is not there,
// and what can be done is.
func TestSharedGroups(t *testing.T) {
	for _, existing := range []string{"append", "replace", "refuse"} {
		for _, offered := range []string{"all", "no update", "no update 60009", "no get"} {
			t.Run(existing+" "+offered, func(t *testing.T) {
				for i := range *groupRuns {
					seed := *groupSeed + uint64(i)
					synctest.Test(t, func(t *testing.T) { sharedGroups(t, existing, offered, seed) })
					if t.Failed() {
						t.Fatalf("to repeat it: go test ./worker -run '%s' -groups 1 -groups-seed %d", t.Name(), seed)
					}
				}
			})
		}
	}
}

func sharedGroups(t *testing.T, existing, offered string, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 5))
	chance := rand.New(rand.NewPCG(seed, 6)) // of the API, under its lock
	a := newAPI(existing)
	a.offer(offered)
	a.latency = 30 * time.Millisecond
	bad := func(it chat.Item) bool { return it.ID == "c0007" || it.ID == "c0040" }
	before := map[string][]chat.Item{}
	for _, key := range []string{"u0/g0", "u1/g1"} {
		a.groups[key] = map[chat.Item]bool{}
		for i := range 1 + rnd.IntN(20) {
			it := chat.Item{Type: 1, ID: fmt.Sprint("before", i)}
			before[key] = append(before[key], it)
			a.groups[key][it] = true
		}
	}
	var faulty atomic.Bool
	faulty.Store(true)
	a.late = func(c chat.Command) bool {
		return faulty.Load() && c != chat.GetContactGroup && chance.IntN(20) == 0
	}
	a.fault = func(_ int, c chat.Command, _ string) (error, bool) {
		if !faulty.Load() || chance.IntN(8) > 0 {
			return nil, false
		}
		switch chance.IntN(7) {
		case 0:
			return coded(c, 50004), chance.IntN(2) == 0
		case 1:
			return status(c, 502), chance.IntN(2) == 0
		case 2:
			return status(c, 404), false
		case 3:
			return status(c, 403), false
		case 4:
			return coded(c, 60007), false
		case 5:
			return &chat.Error{Command: c, Cause: context.DeadlineExceeded}, chance.IntN(2) == 0
		}
		return &chat.Error{Command: c, Cause: errors.New("reset")}, chance.IntN(2) == 0
	}
	a.item = func(it chat.Item) int {
		switch {
		case it.ID == "c0007":
			return chat.CodeGroupUnresolved
		case it.ID == "c0040":
			return chat.CodeUserNotImported
		case faulty.Load() && !strings.HasPrefix(offered, "no update") && chance.IntN(100) == 0:
			return 50005 // where create has to carry what is there, this takes it out
		}
		return 0
	}
	var jobs []job.Job
	for i := range 8 {
		for u := range 2 {
			for g := range 2 {
				from := rnd.IntN(100)
				to := from + 1 + rnd.IntN(60)
				if rnd.IntN(3) == 0 {
					to = from + 150
				}
				jobs = append(jobs, imported(fmt.Sprint("i", i), fmt.Sprint("u", u), fmt.Sprint("g", g), from, to))
			}
		}
	}
	s := newStream(jobs...)
	var keep sync.Mutex
	var known Known
	for life := 0; !s.empty(); life++ {
		faulty.Store(life < 4)
		ctx, crash := context.WithCancel(t.Context())
		done := make(chan error, 1)
		stop := make(chan struct{})
		keep.Lock()
		cfg := Config{Concurrency: 12, Known: known, OnKnown: func(k Known) {
			keep.Lock()
			defer keep.Unlock()
			known = k
		}}
		keep.Unlock()
		w := New(cfg, s, a, startGovernor(t, governor.Config{}))
		go func() { done <- w.Run(ctx, stop) }()
		if faulty.Load() {
			time.Sleep(time.Duration(rnd.IntN(4000)) * time.Millisecond)
			s.crash()
		} else {
			for end := time.Now().Add(2 * time.Hour); !s.empty(); time.Sleep(100 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("the work does not end")
				}
			}
		}
		crash()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second) // until another one leads
	}
	time.Sleep(10 * time.Second)
	a.mu.Lock()
	defer a.mu.Unlock()
	for key, items := range before {
		for _, it := range items {
			if !a.groups[key][it] {
				t.Errorf("seed %d: %s: %s was there before, and is gone", seed, key, it.ID)
			}
		}
	}
	for _, j := range jobs {
		key := j.FromAccount + "/" + j.GroupName
		r := s.results["imp/"+j.ID]
		for _, c := range r.Conversations {
			it := chat.Item{Type: c.Type, ID: c.ID}
			in := a.groups[key][it]
			if c.Code == "" && !in {
				t.Errorf("seed %d: %s: %s is said to be done and is not there", seed, key, it.ID)
				return
			}
			if c.Code != "" && !bad(it) && (offered == "all" || offered == "no get") {
				t.Errorf("seed %d: %s: %s failed with %q", seed, key, it.ID, c.Code)
				return
			}
		}
	}
}
