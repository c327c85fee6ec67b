package worker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/governor"
	"groupferry/internal/job"
)

func always(error) bool { return true }

// stream is a work queue in memory: what is fetched comes back after a minute without a heartbeat.
type stream struct {
	mu      sync.Mutex
	jobs    map[uint64]*message
	next    uint64
	results map[string]job.Result
	puts    map[string]uint64 // how often each was put, which is its sequence
	noPut   int               // so many results cannot be stored
}

type message struct {
	raw   []byte
	from  time.Time // not delivered before
	held  bool
	naks  int
	beats int
}

func newStream(jobs ...job.Job) *stream {
	s := &stream{jobs: map[uint64]*message{}, results: map[string]job.Result{}, puts: map[string]uint64{}}
	for _, j := range jobs {
		s.add(j.AppendJSON(nil))
	}
	return s
}

func (s *stream) add(raw []byte) {
	s.next++
	s.jobs[s.next] = &message{raw: raw}
}

func (s *stream) Fetch(ctx context.Context, most int) ([]Delivery, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for {
		s.mu.Lock()
		var got []Delivery
		for seq := uint64(1); seq <= s.next && len(got) < most; seq++ {
			if m := s.jobs[seq]; m != nil && (!m.held || time.Since(m.from) > time.Minute) && !time.Now().Before(m.from) {
				m.held, m.from = true, time.Now()
				got = append(got, &delivery{s, seq})
			}
		}
		s.mu.Unlock()
		if len(got) > 0 {
			return got, nil
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (s *stream) empty(context.Context) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.jobs) == 0, nil
}

func (s *stream) Get(_ context.Context, imp, id string) (job.Result, uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := imp + "/" + id
	return s.results[key], s.puts[key], nil
}

func (s *stream) Put(_ context.Context, r job.Result, sequence uint64) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.noPut > 0 {
		s.noPut--
		return false, errors.New("out of reach")
	}
	key := r.Import + "/" + r.Job
	if s.puts[key] != sequence {
		return false, nil
	}
	s.results[key] = r
	s.puts[key]++
	return true, nil
}

type delivery struct {
	s   *stream
	seq uint64
}

func (d *delivery) Import() string   { return "imp" }
func (d *delivery) Sequence() uint64 { return d.seq }
func (d *delivery) Job() (job.Job, error) {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	return job.Decode(d.s.jobs[d.seq].raw)
}
func (d *delivery) Ack(context.Context) error {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	delete(d.s.jobs, d.seq)
	return nil
}
func (d *delivery) Nak(_ context.Context, delay time.Duration) error {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	if m := d.s.jobs[d.seq]; m != nil {
		m.held, m.from = false, time.Now().Add(delay)
		m.naks++
	}
	return nil
}
func (d *delivery) Working(context.Context) error {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	if m := d.s.jobs[d.seq]; m != nil {
		m.from = time.Now()
		m.beats++
	}
	return nil
}

// api is a model of the API, as small as the plan of calls.go needs it.
type api struct {
	mu       sync.Mutex
	existing string // append, replace, refuse
	refuse   int    // with this code
	noUpdate error
	noGet    error
	groups   map[string]map[chat.Item]bool // by user/group
	calls    []string                      // command names
	underway map[string]int
	renewed  int
	latency  time.Duration

	// fault may answer in the API's stead; applied tells it to answer only after the call took effect.
	fault func(n int, command chat.Command, user string) (err error, applied bool)
	item  func(chat.Item) int // code of a conversation
	short bool                // an answer leaves out the last conversation, once
}

func newAPI(existing string) *api {
	return &api{existing: existing, refuse: chat.CodeBadParameter, groups: map[string]map[chat.Item]bool{}, underway: map[string]int{}}
}

func coded(c chat.Command, code int) error { return &chat.Error{Command: c, Code: code, Info: "told"} }
func status(c chat.Command, s int) error   { return &chat.Error{Command: c, Status: s} }

func (a *api) call(c chat.Command, user string, apply func() (chat.Answer, error)) (chat.Answer, error) {
	a.mu.Lock()
	a.calls = append(a.calls, string(c))
	n := len(a.calls)
	if a.underway[user]++; a.underway[user] > 1 {
		panic("two calls of " + user + " at once")
	}
	a.mu.Unlock()
	time.Sleep(a.latency)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.underway[user]--
	if a.fault != nil {
		if err, applied := a.fault(n, c, user); err != nil {
			if applied {
				apply()
			}
			return chat.Answer{}, err
		}
	}
	return apply()
}

func (a *api) add(key string, items []chat.Item) chat.Answer {
	answer := chat.Answer{GroupID: 7}
	for i, it := range items {
		r := chat.ItemResult{Item: it, Answered: true}
		if a.item != nil {
			r.Code = a.item(it)
		}
		if a.short && i == len(items)-1 {
			a.short, r.Answered = false, false
		}
		if r.Code == 0 && r.Answered {
			a.groups[key][it] = true
		}
		answer.Items = append(answer.Items, r)
	}
	return answer
}

func (a *api) Create(_ context.Context, r chat.CreateRequest) (chat.Answer, error) {
	return a.call(chat.CreateContactGroup, r.FromAccount, func() (chat.Answer, error) {
		key := r.FromAccount + "/" + r.GroupName
		if a.groups[key] != nil && a.existing == "refuse" {
			return chat.Answer{}, coded(chat.CreateContactGroup, a.refuse)
		}
		if a.groups[key] == nil || a.existing == "replace" {
			a.groups[key] = map[chat.Item]bool{}
		}
		return a.add(key, r.Items), nil
	})
}

func (a *api) Update(_ context.Context, r chat.UpdateRequest) (chat.Answer, error) {
	return a.call(chat.UpdateContactGroup, r.FromAccount, func() (chat.Answer, error) {
		if a.noUpdate != nil {
			return chat.Answer{}, a.noUpdate
		}
		key := r.FromAccount + "/" + r.GroupName
		if a.groups[key] == nil {
			return chat.Answer{}, coded(chat.UpdateContactGroup, 51009)
		}
		return a.add(key, r.Add), nil
	})
}

// Get gives pages of 70.
func (a *api) Get(_ context.Context, user string, start int64) (chat.Page, error) {
	var page chat.Page
	_, err := a.call(chat.GetContactGroup, user, func() (chat.Answer, error) {
		if a.noGet != nil {
			return chat.Answer{}, a.noGet
		}
		page.Groups = map[int64]string{}
		var all []chat.Membership
		id := int64(0)
		for _, key := range slices.Sorted(maps.Keys(a.groups)) {
			members := a.groups[key]
			if name, ok := strings.CutPrefix(key, user+"/"); ok {
				id++
				page.Groups[id] = name
				for it := range members {
					all = append(all, chat.Membership{Item: it, GroupIDs: []int64{id}})
				}
			}
		}
		slices.SortStableFunc(all, func(x, y chat.Membership) int { return strings.Compare(x.ID, y.ID) })
		end := min(start+70, int64(len(all)))
		page.Conversations, page.Next, page.Complete = all[start:end], end, end == int64(len(all))
		return chat.Answer{}, nil
	})
	return page, err
}

func (a *api) Renew() error { a.renewed++; return nil }

func (a *api) count(c chat.Command) (n int) {
	for _, name := range a.calls {
		if name == string(c) {
			n++
		}
	}
	return n
}

func testJob(user, group string, n int) job.Job {
	j := job.Job{Import: "imp", ID: job.ID("imp", user, group), FromAccount: user, GroupName: group, Files: []string{"f.csv"}}
	for i := range n {
		j.Conversations = append(j.Conversations, job.Conversation{Type: 1 + i%2, ID: fmt.Sprintf("c%04d", i), Line: int64(i + 2)})
	}
	return j
}

// work runs a worker until the stream is empty and gives it at most ten hours.
func work(t *testing.T, cfg Config, s *stream, a *api) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Hour)
	defer cancel()
	cfg.Finished = s.empty
	err := New(cfg, s, s, a, governor.New(governor.Config{})).Run(ctx, nil)
	if ctx.Err() != nil {
		t.Fatal("the work did not end")
	}
	return err
}

// holds checks that the group holds what the result says, and the result all of the job.
func holds(t *testing.T, s *stream, a *api, j job.Job, want job.Outcome) job.Result {
	t.Helper()
	r, ok := s.results["imp/"+j.ID]
	if !ok {
		t.Fatalf("%s/%s: no result", j.FromAccount, j.GroupName)
	}
	if r.Outcome != want || len(r.Conversations) != len(j.Conversations) {
		t.Errorf("%s/%s: got %s with %d conversations, want %s with %d", j.FromAccount, j.GroupName, r.Outcome, len(r.Conversations), want, len(j.Conversations))
	}
	members := a.groups[j.FromAccount+"/"+j.GroupName]
	for i, c := range r.Conversations {
		if c.Conversation != j.Conversations[i] {
			t.Fatalf("conversation %d: got %+v, want %+v", i, c.Conversation, j.Conversations[i])
		}
		if in := members[chat.Item{Type: c.Type, ID: c.ID}]; in != (c.Code == "") {
			t.Errorf("%s/%s: conversation %d: in the group %v, code %q", j.FromAccount, j.GroupName, i, in, c.Code)
			break
		}
	}
	return r
}

// offer leaves of the commands what a test calls by that name.
func (a *api) offer(what string) {
	switch what {
	case "no update":
		a.noUpdate = status(chat.UpdateContactGroup, 404)
	case "no update 60009":
		a.noUpdate = coded(chat.UpdateContactGroup, 60009)
	case "create only":
		a.noUpdate, a.noGet = status(chat.UpdateContactGroup, 404), status(chat.GetContactGroup, 404)
	}
}

// TestEveryReadingOfCreate does jobs of up to 1,000 conversations under each thing create may do to a group that is
// there, with update, without it, and with nothing but create; once on an empty account and once more afterwards.
func TestEveryReadingOfCreate(t *testing.T) {
	for _, existing := range []string{"append", "replace", "refuse"} {
		for _, offered := range []string{"all", "no update", "no update 60009", "create only"} {
			t.Run(existing+" "+offered, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a := newAPI(existing)
					a.offer(offered)
					jobs := []job.Job{testJob("anna", "all", 1000), testJob("anna", "one", 1), testJob("bob", "some", 101), testJob("bob", "full", 100)}
					for pass := range 2 {
						s := newStream(jobs...)
						if err := work(t, Config{}, s, a); err != nil {
							t.Fatal(err)
						}
						for _, j := range jobs {
							want := job.Done
							if offered != "all" {
								// More than one call cannot get into one group where create replaces or refuses.
								// What cannot be done is not said to be done, unless nothing can tell.
								switch {
								case existing == "append":
								case existing == "replace" && offered == "create only":
									continue
								case existing == "refuse" && offered == "create only" && pass == 1:
									want = job.Failed
									if s.results["imp/"+j.ID].Outcome != want {
										t.Errorf("got %s, want %s", s.results["imp/"+j.ID].Outcome, want)
									}
									continue
								case len(j.Conversations) > 100:
									want = job.Partial
								}
							}
							holds(t, s, a, j, want)
						}
					}
				})
			})
		}
	}
}

// TestFaults makes one call in three fail, in every way a call can fail for now.
func TestFaults(t *testing.T) {
	for _, existing := range []string{"append", "replace", "refuse"} {
		t.Run(existing, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAPI(existing)
				a.latency = 20 * time.Millisecond
				rnd := rand.New(rand.NewPCG(1, 2))
				a.fault = func(n int, c chat.Command, user string) (error, bool) {
					if rnd.IntN(3) > 0 {
						return nil, false
					}
					applied := rnd.IntN(2) == 0
					switch rnd.IntN(7) {
					case 0:
						return coded(c, 50004), applied
					case 1:
						return status(c, 502), applied
					case 2:
						return status(c, 429), false
					case 3:
						return &chat.Error{Command: c, Cause: context.DeadlineExceeded}, applied
					case 4:
						return coded(c, 60007), false
					case 5:
						return coded(c, 60002), false
					}
					return &chat.Error{Command: c, Cause: errors.New("reset")}, applied
				}
				a.short = true
				var jobs []job.Job
				for i := range 60 {
					jobs = append(jobs, testJob(fmt.Sprint("u", i%7), fmt.Sprint("g", i), 1+i*7))
				}
				s := newStream(jobs...)
				if err := work(t, Config{Concurrency: 16}, s, a); err != nil {
					t.Fatal(err)
				}
				for _, j := range jobs {
					holds(t, s, a, j, job.Done)
				}
			})
		})
	}
}

func TestPermanentFailures(t *testing.T) {
	for _, tc := range []struct {
		name    string
		code    int
		jobSize int
		calls   int // of create and update
	}{
		{"unknown user ends the job", 50001, 250, 1},
		{"too many groups, looked at with update", 51010, 250, 2},
		{"a malformed chunk says nothing of the next", chat.CodeBadParameter, 250, 6},
		{"an unknown code: three tries of both", 59999, 90, 6},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAPI("append")
				a.fault = func(_ int, c chat.Command, user string) (error, bool) {
					if user == "bad" && c == chat.CreateContactGroup {
						return coded(c, tc.code), false
					}
					return nil, false
				}
				bad, good := testJob("bad", "g", tc.jobSize), testJob("good", "g", 3)
				s := newStream(bad, good)
				if err := work(t, Config{}, s, a); err != nil {
					t.Fatal(err)
				}
				holds(t, s, a, good, job.Done)
				r := holds(t, s, a, bad, job.Failed)
				if c := r.Conversations[tc.jobSize-1]; c.Code != fmt.Sprint(tc.code) || c.Info != "told" {
					t.Errorf("got code %q %q, want %d and the API's text", c.Code, c.Info, tc.code)
				}
				if tc.code == 59999 {
					return // update's own three tries come on top
				}
				if r.Calls != tc.calls {
					t.Errorf("got %d calls, want %d", r.Calls, tc.calls)
				}
			})
		})
	}
}

func TestConversationFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("replace") // sending some again with create would lose the others
		seen := map[string]int{}
		a.item = func(it chat.Item) int {
			seen[it.ID]++
			switch it.ID {
			case "c0003":
				return 50001
			case "c0004":
				return 51007
			case "c0005":
				if seen[it.ID] < 3 {
					return 50004
				}
			}
			return 0
		}
		a.short = true
		j := testJob("anna", "g", 150)
		s := newStream(j)
		if err := work(t, Config{}, s, a); err != nil {
			t.Fatal(err)
		}
		r := holds(t, s, a, j, job.Partial)
		if r.FailedConversations() != 2 || r.Conversations[3].Code != "50001" || r.Conversations[4].Code != "51007" {
			t.Errorf("got %d failed, %q and %q; want 50001 and 51007", r.FailedConversations(), r.Conversations[3].Code, r.Conversations[4].Code)
		}
		if seen["c0003"] != 1 || seen["c0004"] != 3 || seen["c0005"] != 3 || seen["c0006"] != 1 {
			t.Errorf("sent %d, %d, %d and %d times, want 1, 3, 3 and 1", seen["c0003"], seen["c0004"], seen["c0005"], seen["c0006"])
		}
		if r.GroupID != 7 {
			t.Errorf("group id %d, want 7", r.GroupID)
		}
	})
}

func TestGivingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		a.fault = func(_ int, c chat.Command, user string) (error, bool) {
			if user == "bad" && c == chat.UpdateContactGroup {
				return coded(c, 50004), false
			}
			return nil, false
		}
		bad, good := testJob("bad", "g", 150), testJob("good", "g", 150)
		s := newStream(bad, good)
		if err := work(t, Config{MaxAttempts: 3}, s, a); err != nil {
			t.Fatal(err)
		}
		holds(t, s, a, good, job.Done)
		r := holds(t, s, a, bad, job.Partial)
		if r.Attempts != 3 || r.Calls != 3*(1+callTries) || r.FailedConversations() != 50 || r.Conversations[120].Code != "50004" {
			t.Errorf("got %d attempts, %d calls, %d failed with %q; want 3, %d, 50 with 50004",
				r.Attempts, r.Calls, r.FailedConversations(), r.Conversations[120].Code, 3*(1+callTries))
		}
	})
}

func TestOutageBurnsNoAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		end := time.Now().Add(10 * time.Minute)
		a.fault = func(_ int, c chat.Command, _ string) (error, bool) {
			if time.Now().Before(end) {
				return &chat.Error{Command: c, Cause: errors.New("refused")}, false
			}
			return nil, false
		}
		var jobs []job.Job
		for i := range 100 {
			jobs = append(jobs, testJob(fmt.Sprint("u", i), "g", 3))
		}
		s := newStream(jobs...)
		if err := work(t, Config{MaxAttempts: 2, Concurrency: 20}, s, a); err != nil {
			t.Fatal(err)
		}
		for _, j := range jobs {
			if r := holds(t, s, a, j, job.Done); r.Attempts != 1 {
				t.Errorf("got %d attempts, want 1", r.Attempts)
			}
		}
		if late := time.Since(end); late > 10*time.Second {
			t.Errorf("finished %v after the outage", late)
		}
	})
}

func TestHalt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		a.latency = 10 * time.Millisecond
		mended := false
		a.fault = func(n int, c chat.Command, _ string) (error, bool) {
			if n > 50 && !mended {
				return coded(c, 51013), false
			}
			return nil, false
		}
		var jobs []job.Job
		for i := range 200 {
			jobs = append(jobs, testJob(fmt.Sprint("u", i), "g", 3))
		}
		s := newStream(jobs...)
		err := work(t, Config{LeaveOn: always}, s, a)
		var cause *chat.Error
		if !governor.IsHalted(err) || !errors.As(err, &cause) || cause.Code != 51013 {
			t.Fatalf("got %v, want halted by 51013", err)
		}
		if n := len(a.calls); n > 60 {
			t.Errorf("%d calls, want a handful after 50", n)
		}
		if len(s.results)+len(s.jobs) != len(jobs) || len(s.results) != 50 {
			t.Errorf("%d results and %d jobs left, want 50 and 150", len(s.results), len(s.jobs))
		}
		mended = true
		if err := work(t, Config{}, s, a); err != nil {
			t.Fatal(err)
		}
		for _, j := range jobs {
			holds(t, s, a, j, job.Done)
		}
	})
}

func TestHaltThenResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		mended := false
		a.fault = func(_ int, c chat.Command, _ string) (error, bool) {
			if !mended {
				return status(c, 404), false // of create: the URL is wrong, for every job
			}
			return nil, false
		}
		j := testJob("anna", "g", 3)
		s := newStream(j)
		g := governor.New(governor.Config{})
		go func() {
			time.Sleep(time.Hour)
			a.mu.Lock()
			mended = true
			a.mu.Unlock()
			g.Resume()
		}()
		if err := New(Config{Finished: s.empty}, s, s, a, g).Run(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if r := holds(t, s, a, j, job.Done); r.Attempts != 1 || len(a.calls) != 2 {
			t.Errorf("got attempt %d after %d calls, want the first, after 2", r.Attempts, len(a.calls))
		}
	})
}

func TestSignsAgainOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		a.fault = func(n int, c chat.Command, _ string) (error, bool) {
			if n == 1 {
				return coded(c, 70001), false
			}
			return nil, false
		}
		j := testJob("anna", "g", 3)
		s := newStream(j)
		if err := work(t, Config{}, s, a); err != nil {
			t.Fatal(err)
		}
		holds(t, s, a, j, job.Done)
		if a.renewed != 1 {
			t.Errorf("signed again %d times, want once", a.renewed)
		}

		a.fault = func(_ int, c chat.Command, _ string) (error, bool) { return coded(c, 70001), false }
		if err := work(t, Config{LeaveOn: always}, newStream(j), a); !governor.IsHalted(err) {
			t.Errorf("refused with a new signature too: got %v, want halted", err)
		}
		a.fault = func(_ int, c chat.Command, _ string) (error, bool) { return coded(c, 60004), false }
		if err := work(t, Config{LeaveOn: always}, newStream(j), a); !governor.IsHalted(err) {
			t.Errorf("60004 again and again: got %v, want halted", err)
		}
	})
}

// TestRetry does a job of which some conversations fail, mends the cause of some, and does those again: what was done
// stays in the group under everything that create may do to a group that is there.
func TestRetry(t *testing.T) {
	for _, existing := range []string{"append", "replace", "refuse"} {
		for _, offered := range []string{"all", "no update", "create only"} {
			t.Run(existing+" "+offered, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a := newAPI(existing)
					a.offer(offered)
					j := testJob("anna", "friends", 40)
					failing := map[string]int{j.Conversations[3].ID: 50001, j.Conversations[20].ID: 51006, j.Conversations[30].ID: 50001}
					a.item = func(it chat.Item) int { return failing[it.ID] }
					s := newStream(j)
					if err := work(t, Config{}, s, a); err != nil {
						t.Fatal(err)
					}
					first := holds(t, s, a, j, job.Partial)
					before := len(a.calls)

					delete(failing, j.Conversations[3].ID)
					delete(failing, j.Conversations[30].ID)
					again := j
					again.Round = 1
					again.Conversations = []job.Conversation{j.Conversations[3], j.Conversations[30]}
					for range 2 { // the second one finds the first one's result
						s.add(again.AppendJSON(nil))
						if err := work(t, Config{}, s, a); err != nil {
							t.Fatal(err)
						}
					}
					r := s.results["imp/"+j.ID]
					// Where create refuses and nothing else is offered, the group cannot be changed.
					want := []string{"", "51006", ""}
					if existing == "refuse" && offered != "all" {
						want = []string{"50002", "51006", "50002"}
					}
					for i, k := range []int{3, 20, 30} {
						if got := r.Conversations[k].Code; got != want[i] {
							t.Errorf("conversation %d: got code %q, want %q", k, got, want[i])
						}
					}
					holds(t, s, a, j, job.Partial)
					if made := len(a.calls) - before; r.Round != 1 || r.Attempts != first.Attempts+1 || r.Calls != first.Calls+made {
						t.Errorf("got round %d, %d attempts, %d calls; want 1, %d, %d", r.Round, r.Attempts, r.Calls,
							first.Attempts+1, first.Calls+made)
					}
					if offered == "all" && len(a.calls) != before+1 {
						t.Errorf("got %d calls for the retry, want 1", len(a.calls)-before)
					}
				})
			})
		}
	}
}

// TestRetryOfMany retries one conversation of a group of 1,000, a group that somebody deleted meanwhile, and a job of
// which nothing was done.
func TestRetryOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("replace")
		many, gone, failed := testJob("anna", "many", 1000), testJob("bob", "gone", 5), testJob("carl", "failed", 150)
		failing := true
		a.item = func(it chat.Item) int {
			if failing && (it.ID == many.Conversations[999].ID || it.ID == gone.Conversations[4].ID) {
				return 50001
			}
			return 0
		}
		a.fault = func(_ int, c chat.Command, user string) (error, bool) {
			if failing && user == "carl" {
				return coded(c, chat.CodeUserNotImported), false
			}
			return nil, false
		}
		s := newStream(many, gone, failed)
		if err := work(t, Config{}, s, a); err != nil {
			t.Fatal(err)
		}
		failing = false
		delete(a.groups, "bob/gone")
		for _, j := range []job.Job{many, gone, failed} {
			r := s.results["imp/"+j.ID]
			again := j
			again.Round, again.Conversations = 1, nil
			for _, c := range r.Conversations {
				if c.Code != "" {
					again.Conversations = append(again.Conversations, c.Conversation)
				}
			}
			s.add(again.AppendJSON(nil))
		}
		if err := work(t, Config{}, s, a); err != nil {
			t.Fatal(err)
		}
		holds(t, s, a, many, job.Done)
		holds(t, s, a, failed, job.Done)
		if r := holds(t, s, a, gone, job.Partial); r.Conversations[0].Code != CodeNotInGroup || r.Conversations[4].Code != "" {
			t.Errorf("a group that was deleted: got %+v, want the last one done and the others %s", r.Conversations, CodeNotInGroup)
		}
	})
}

func TestPoisonAndKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		known := testJob("anna", "known", 3)
		s := newStream(known)
		s.add([]byte("not a job"))
		s.add([]byte(`{"v":99}`))
		s.Put(t.Context(), job.Result{Import: "imp", Job: known.ID, Outcome: job.Done}, 0)
		if err := work(t, Config{}, s, a); err != nil {
			t.Fatal(err)
		}
		if len(a.calls) != 0 {
			t.Errorf("%d calls for jobs that need none", len(a.calls))
		}
		for _, id := range []string{"seq-2", "seq-3"} {
			if r := s.results["imp/"+id]; r.Outcome != job.Failed || r.Code != job.CodeUndecodable || r.Info == "" {
				t.Errorf("%s: got %+v, want failed as undecodable", id, r)
			}
		}
	})
}

func TestResultBeforeAck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("replace")
		j := testJob("anna", "g", 250)
		s := newStream(j)
		s.noPut = 3
		if err := work(t, Config{}, s, a); err != nil {
			t.Fatal(err)
		}
		holds(t, s, a, j, job.Done)
		if n := a.count(chat.CreateContactGroup); n != 4 {
			t.Errorf("done %d times, want 4: a job without a result comes back", n)
		}
	})
}

func TestHeartbeatKeepsALongJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		a.latency = 3 * time.Minute
		j := testJob("anna", "g", 250)
		s := newStream(j)
		if err := work(t, Config{}, s, a); err != nil {
			t.Fatal(err)
		}
		if holds(t, s, a, j, job.Done); len(a.calls) != 3 {
			t.Errorf("%d calls, want 3: a job in hand is not given out again", len(a.calls))
		}
	})
}

func TestStop(t *testing.T) {
	for _, tc := range []struct {
		name      string
		latency   time.Duration
		hard      bool
		wantDone  int
		wantAfter time.Duration
	}{
		{"jobs in hand finish", 5 * time.Second, false, 4, 5 * time.Second},
		{"what takes longer than the grace goes back", 2 * time.Minute, false, 0, 30 * time.Second},
		{"the second signal leaves at once", 5 * time.Second, true, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAPI("append")
				a.latency = 0
				var jobs []job.Job
				for i := range 10 {
					jobs = append(jobs, testJob(fmt.Sprint("u", i), "g", 3))
				}
				s := newStream(jobs...)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				stop := make(chan struct{})
				slow := &slowAPI{api: a, latency: tc.latency}
				w := New(Config{Concurrency: 4, Finished: s.empty}, s, s, slow, governor.New(governor.Config{}))
				left := make(chan error)
				go func() { left <- w.Run(ctx, stop) }()
				time.Sleep(time.Second) // fake time: the first four are under way
				start := time.Now()
				close(stop)
				if tc.hard {
					cancel()
				}
				if err := <-left; err != nil {
					t.Errorf("got %v, want nil", err)
				}
				if d := time.Since(start); d > tc.wantAfter {
					t.Errorf("left after %v, want %v", d, tc.wantAfter)
				}
				if len(s.results) != tc.wantDone || len(s.jobs) != 10-tc.wantDone {
					t.Errorf("%d results and %d jobs left, want %d and %d", len(s.results), len(s.jobs), tc.wantDone, 10-tc.wantDone)
				}
				for seq, m := range s.jobs {
					if m.held {
						t.Errorf("job %d was not put back", seq)
					}
				}
			})
		})
	}
}

// slowAPI heeds the context as a real client does.
type slowAPI struct {
	*api
	latency time.Duration
}

func (a *slowAPI) Create(ctx context.Context, r chat.CreateRequest) (chat.Answer, error) {
	if err := sleep(ctx, a.latency); err != nil {
		return chat.Answer{}, &chat.Error{Command: chat.CreateContactGroup, Cause: err}
	}
	return a.api.Create(ctx, r)
}

// FuzzChunks holds the calls of a job against the limits and the job.
func FuzzChunks(f *testing.F) {
	f.Add(uint16(1), uint8(100))
	f.Add(uint16(1000), uint8(100))
	f.Add(uint16(101), uint8(0))
	f.Add(uint16(7), uint8(3))
	f.Fuzz(func(t *testing.T, n uint16, size uint8) {
		n = n%1000 + 1
		synctest.Test(t, func(t *testing.T) {
			a := newAPI("replace")
			j := testJob("anna", "g", int(n))
			s := newStream(j)
			if err := work(t, Config{ChunkSize: int(size)}, s, a); err != nil {
				t.Fatal(err)
			}
			holds(t, s, a, j, job.Done)
			chunk := int(size)
			if chunk == 0 || chunk > chat.MaxItemsPerCall {
				chunk = chat.MaxItemsPerCall
			}
			if want := (int(n) + chunk - 1) / chunk; len(a.calls) != want {
				t.Errorf("got %d calls for %d conversations, want %d", len(a.calls), n, want)
			}
		})
	})
}
