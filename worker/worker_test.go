package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
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

// A stream gives out jobs and keeps their results, in memory.
type stream struct {
	mu      sync.Mutex
	jobs    map[uint64]*message
	next    uint64
	closed  error // what Next returns from now on
	results map[string]job.Result
	kept    []job.Result // all results, by sequence from 1
	plain   bool         // its import is no night of a sync
	failed  int          // so many reads of a prior result fail
	taking  int          // calls of Next at this moment
	crashes int          // what was delivered before the last one is ignored
}

type message struct {
	raw      []byte
	from     time.Time // not delivered before
	inFlight bool
	earlier  bool // an earlier worker had it
	attempts int  // counted ones
	requeues []requeue
}

type requeue struct {
	after   time.Duration
	counted bool
}

func newStream(jobs ...job.Job) *stream {
	s := &stream{jobs: map[uint64]*message{}, results: map[string]job.Result{}}
	for _, j := range jobs {
		s.add(j.AppendJSON(nil))
	}
	return s
}

func (s *stream) add(raw []byte) {
	s.next++
	s.jobs[s.next] = &message{raw: raw}
}

func (s *stream) Next(ctx context.Context) (Delivery, error) {
	s.mu.Lock()
	if s.taking++; s.taking > 1 {
		panic("Next is called twice at once")
	}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.taking--
		s.mu.Unlock()
	}()
	for {
		if d, err := s.due(); d != nil || err != nil {
			return d, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(10 * time.Millisecond): // fake time
		}
	}
}

func (s *stream) due() (Delivery, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil {
		return nil, s.closed
	}
	for seq := uint64(1); seq <= s.next; seq++ {
		if m := s.jobs[seq]; m != nil && !m.inFlight && !time.Now().Before(m.from) {
			m.inFlight = true
			return &delivery{s: s, seq: seq, attempt: m.attempts + 1, life: s.crashes}, nil
		}
	}
	return nil, nil
}

func (s *stream) empty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.jobs) == 0
}

// inFlight counts the jobs that were taken and are neither finished nor requeued.
func (s *stream) inFlight() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.jobs {
		if m.inFlight {
			n++
		}
	}
	return n
}

type delivery struct {
	s       *stream
	seq     uint64
	attempt int
	life    int // crashes before it
}

// crash makes everything in flight be delivered again, as a new leader does; what its worker says of it now is too late.
func (s *stream) crash() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.crashes++
	for _, m := range s.jobs {
		m.earlier = true
		m.inFlight, m.attempts = false, 0
	}
}

func (d *delivery) Import() string   { return "imp" }
func (d *delivery) Sequence() uint64 { return d.seq }
func (d *delivery) Attempt() int     { return d.attempt }
func (d *delivery) Earlier() bool {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	m := d.s.jobs[d.seq]
	return m != nil && m.earlier
}
func (d *delivery) Night() bool { return !d.s.plain }
func (d *delivery) Job() (job.Job, error) {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	m := d.s.jobs[d.seq]
	if m == nil { // after a crash
		return job.Job{}, errors.New("gone")
	}
	return job.Decode(m.raw)
}

func (d *delivery) Prior(context.Context) (*job.Result, error) {
	j, err := d.Job()
	if err != nil {
		return nil, err
	}
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	if d.s.failed > 0 {
		d.s.failed--
		return nil, errors.New("out of reach")
	}
	return &d.s.kept[j.Prior-1], nil
}

func (d *delivery) Finish(r job.Result) {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	if d.life != d.s.crashes {
		return
	}
	if m := d.s.jobs[d.seq]; m == nil || !m.inFlight {
		panic("finished and not in flight")
	}
	delete(d.s.jobs, d.seq)
	d.s.kept = append(d.s.kept, r)
	d.s.results[r.Import+"/"+r.Job] = r
}

func (d *delivery) Requeue(after time.Duration, counted bool) {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	if d.life != d.s.crashes {
		return
	}
	m := d.s.jobs[d.seq]
	if m == nil || !m.inFlight {
		panic("requeued and not in flight")
	}
	m.inFlight, m.from = false, time.Now().Add(after)
	m.requeues = append(m.requeues, requeue{after, counted})
	if counted {
		m.attempts++
	}
}

// again puts the failed conversations of a job's last result on the stream, as the command retry does; of those only
// the wanted ones, if any are named.
func (s *stream) again(j job.Job, generation int, wanted ...job.Conversation) {
	r := s.results["imp/"+j.ID]
	j.Generation, j.Conversations, j.OldName, j.Delete = generation, wanted, r.Rename, r.Delete
	if len(wanted) == 0 {
		for _, c := range r.Conversations {
			if c.Code != "" {
				j.Conversations = append(j.Conversations, c.Conversation)
			}
		}
	}
	j.Conversations = append(j.Conversations, r.Keep...)
	for i, k := range s.kept {
		if k.Job == j.ID {
			j.Prior = uint64(i + 1)
		}
	}
	s.add(j.AppendJSON(nil))
}

// api is a model of the API, as small as the plan of group.go needs it.
type api struct {
	mu       sync.Mutex
	existing string // append, replace, refuse
	refuse   int    // with this code
	noUpdate error
	noGet    error
	noDelete error
	most     int                           // conversations of a group; 0 for no limit. What a call takes out makes no room in the same call
	fold     bool                          // names that differ in case are those of one group
	groups   map[string]map[chat.Item]bool // by user/group
	ids      map[string]int64              // by user/group: what Get numbers it
	lastID   int64
	calls    []string // command names
	updates  []string // of what was added and removed: "+60 -40"
	underway map[string]int
	renewed  int
	latency  time.Duration

	// fault may respond in place of the API; applied tells it to respond only after the call took effect.
	fault func(n int, command chat.Command, user string) (err error, applied bool)
	item  func(chat.Item) int // code of a conversation

	// late may say that a call has no response, and takes effect 2.5 s later.
	late  func(command chat.Command) bool
	short bool // a response leaves out the last conversation, once
}

func newAPI(existing string) *api {
	return &api{existing: existing, refuse: chat.CodeBadParameter, groups: map[string]map[chat.Item]bool{}, ids: map[string]int64{}, underway: map[string]int{}}
}

func coded(c chat.Command, code int) error { return &chat.Error{Command: c, Code: code, Info: "told"} }
func status(c chat.Command, s int) error   { return &chat.Error{Command: c, Status: s} }

func (a *api) call(c chat.Command, user string, apply func() (chat.Response, error)) (chat.Response, error) {
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
	if a.late != nil && a.late(c) {
		time.AfterFunc(2500*time.Millisecond, func() {
			a.mu.Lock()
			defer a.mu.Unlock()
			apply()
		})
		return chat.Response{}, &chat.Error{Command: c, Cause: errors.New("reset")}
	}
	if a.fault != nil {
		if err, applied := a.fault(n, c, user); err != nil {
			if applied {
				apply()
			}
			return chat.Response{}, err
		}
	}
	return apply()
}

// key finds the group of a name.
func (a *api) key(user, name string) string {
	key := user + "/" + name
	if a.fold && a.groups[key] == nil {
		for other := range a.groups {
			if strings.EqualFold(other, key) {
				return other
			}
		}
	}
	return key
}

func (a *api) add(key string, items []chat.Item) chat.Response { return a.change(key, items, nil) }

func (a *api) change(key string, add, remove []chat.Item) chat.Response {
	items := slices.Concat(add, remove)
	response := chat.Response{GroupID: 7}
	for i, it := range items {
		r := chat.ItemResult{Item: it, Reported: true}
		if a.item != nil {
			r.Code = a.item(it)
		}
		if a.short && i == len(items)-1 {
			a.short, r.Reported = false, false
		}
		switch {
		case r.Code != 0 || !r.Reported:
		case i < len(add):
			a.groups[key][it] = true
		default:
			delete(a.groups[key], it)
		}
		response.Items = append(response.Items, r)
	}
	return response
}

func (a *api) Create(_ context.Context, r chat.CreateRequest) (chat.Response, error) {
	return a.call(chat.CreateContactGroup, r.FromAccount, func() (chat.Response, error) {
		key := a.key(r.FromAccount, r.GroupName)
		if a.groups[key] != nil && a.existing == "refuse" {
			return chat.Response{}, coded(chat.CreateContactGroup, a.refuse)
		}
		if a.groups[key] == nil || a.existing == "replace" {
			a.groups[key] = map[chat.Item]bool{}
		}
		return a.add(key, r.Items), nil
	})
}

func (a *api) Update(_ context.Context, r chat.UpdateRequest) (chat.Response, error) {
	return a.call(chat.UpdateContactGroup, r.FromAccount, func() (chat.Response, error) {
		if a.noUpdate != nil {
			return chat.Response{}, a.noUpdate
		}
		key := a.key(r.FromAccount, r.GroupName)
		if a.groups[key] == nil {
			return chat.Response{}, coded(chat.UpdateContactGroup, 51009)
		}
		a.updates = append(a.updates, fmt.Sprintf("+%d -%d", len(r.Add), len(r.Remove)))
		if n := len(r.Add) + len(r.Remove); n < 1 || n > chat.MaxItemsPerCall {
			panic(fmt.Sprintf("an update of %d conversations", n))
		}
		more := 0
		for _, it := range r.Add {
			if !a.groups[key][it] {
				more++
			}
		}
		if a.most > 0 && more > 0 && len(a.groups[key])+more > a.most {
			return chat.Response{}, coded(chat.UpdateContactGroup, chat.CodeTooManyConversations)
		}
		return a.change(key, r.Add, r.Remove), nil
	})
}

func (a *api) Rename(_ context.Context, r chat.RenameRequest) error {
	_, err := a.call(chat.UpdateContactGroup, r.FromAccount, func() (chat.Response, error) {
		if a.noUpdate != nil {
			return chat.Response{}, a.noUpdate
		}
		old, other := a.key(r.FromAccount, r.OldName), a.key(r.FromAccount, r.NewName)
		switch {
		case a.groups[old] == nil:
			return chat.Response{}, coded(chat.UpdateContactGroup, 51009)
		case other != old && a.groups[other] != nil:
			return chat.Response{}, coded(chat.UpdateContactGroup, chat.CodeBadParameter)
		}
		members, id := a.groups[old], a.ids[old]
		delete(a.groups, old)
		delete(a.ids, old)
		key := r.FromAccount + "/" + r.NewName
		a.groups[key], a.ids[key] = members, id
		return chat.Response{}, nil
	})
	return err
}

// Delete is no error where there is no such group, as that of the client.
func (a *api) Delete(_ context.Context, user, group string) error {
	_, err := a.call(chat.DelContactGroup, user, func() (chat.Response, error) {
		if a.noDelete != nil {
			return chat.Response{}, a.noDelete
		}
		key := a.key(user, group)
		delete(a.groups, key)
		delete(a.ids, key)
		return chat.Response{}, nil
	})
	return err
}

// Get gives pages of 70.
func (a *api) Get(_ context.Context, user string, start int64) (chat.Page, error) {
	var page chat.Page
	_, err := a.call(chat.GetContactGroup, user, func() (chat.Response, error) {
		if a.noGet != nil {
			return chat.Response{}, a.noGet
		}
		page.Groups = map[int64]string{}
		groups := map[chat.Item][]int64{}
		for _, key := range slices.Sorted(maps.Keys(a.groups)) {
			members := a.groups[key]
			if name, ok := strings.CutPrefix(key, user+"/"); ok {
				if a.ids[key] == 0 { // it keeps its number while others come between two pages
					a.lastID++
					a.ids[key] = a.lastID
				}
				id := a.ids[key]
				page.Groups[id] = name
				for it := range members {
					groups[it] = append(groups[it], id)
				}
			}
		}
		var all []chat.Membership
		for it, ids := range groups {
			all = append(all, chat.Membership{Item: it, GroupIDs: ids})
		}
		slices.SortFunc(all, func(x, y chat.Membership) int { return cmp.Or(strings.Compare(x.ID, y.ID), x.Type-y.Type) })
		start = min(start, int64(len(all)))
		end := min(start+70, int64(len(all)))
		page.Conversations, page.Next, page.Complete = all[start:end], end, end == int64(len(all))
		return chat.Response{}, nil
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
	j := job.Job{Import: "imp", ID: job.ID("imp", user, group), FromAccount: user, GroupName: group}
	for i := range n {
		j.Conversations = append(j.Conversations, job.Conversation{Type: 1 + i%2, ID: fmt.Sprintf("c%04d", i), Line: int64(i + 2)})
	}
	return j
}

// startGovernor returns a governor whose lease holds until the test ends.
func startGovernor(t *testing.T, cfg governor.Config) *governor.Governor {
	t.Helper()
	kick := make(chan struct{}, 1)
	for _, c := range chat.Commands() {
		cfg.Commands = append(cfg.Commands, string(c))
	}
	cfg.OnNeed = func() {
		select {
		case kick <- struct{}{}:
		default:
		}
	}
	g := governor.New(cfg, governor.Inherited{})
	renew := func() {
		calls, _ := g.Propose()
		g.Promised(calls, cfg.Clock.In(2*time.Second))
	}
	renew()
	stop, kept := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(kept)
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				renew()
			case <-kick:
				renew()
			case <-stop:
				return
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-kept; g.Close() })
	return g
}

// work runs a worker until the stream is empty and gives it at most ten hours of fake time.
func work(t *testing.T, cfg Config, s *stream, a API) error {
	t.Helper()
	return workWith(t, cfg, s, a, startGovernor(t, governor.Config{}))
}

func workWith(t *testing.T, cfg Config, s *stream, a API, pace Pace) error {
	t.Helper()
	return runUntilEmpty(t, New(cfg, s, a, pace), s)
}

func runUntilEmpty(t *testing.T, w *Worker, s *stream) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Hour)
	defer cancel()
	stop, ended := make(chan struct{}), make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		for !s.empty() {
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ended:
				return
			}
		}
		close(stop)
	})
	err := w.Run(ctx, stop)
	close(ended)
	watching.Wait()
	if ctx.Err() != nil {
		t.Fatal("the work did not end")
	}
	if n := s.inFlight(); n != 0 {
		t.Errorf("%d jobs were neither finished nor requeued", n)
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
	case "no get":
		a.noGet = status(chat.GetContactGroup, 404)
	case "no update 60009":
		a.noUpdate = coded(chat.UpdateContactGroup, 60009)
	case "create only":
		a.noUpdate, a.noGet = status(chat.UpdateContactGroup, 404), status(chat.GetContactGroup, 404)
	}
}

// appends is an API of which it is known that create appends.
func appends() Known { return Known{Create: Append, CreateAt: time.Now()} }

// TestEveryReadingOfCreate does jobs of up to 1,000 conversations under each thing create may do to a group that is
// there, with update, without it, and with nothing but create; once on groups that hold something already, and once more
// afterwards. Nothing that a group held goes, and nothing is said to be done that is not there.
func TestEveryReadingOfCreate(t *testing.T) {
	for _, existing := range []string{"append", "replace", "refuse"} {
		for _, offered := range []string{"all", "no update", "no update 60009", "create only", "no get"} {
			t.Run(existing+" "+offered, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a := newAPI(existing)
					a.offer(offered)
					jobs := []job.Job{testJob("anna", "all", 1000), testJob("anna", "one", 1), testJob("bob", "some", 101), testJob("bob", "full", 100)}
					there := chat.Item{Type: 1, ID: "there"}
					if offered != "create only" {
						jobs = append(jobs, testJob("carl", "held", 5))
						a.groups["carl/held"] = map[chat.Item]bool{there: true, {Type: 1, ID: "c0002"}: true}
					}
					var known Known
					for pass := range 2 {
						s := newStream(jobs...)
						cfg := Config{AcceptReplace: offered == "create only", Known: known, OnKnown: func(k Known) { known = k }}
						if err := work(t, cfg, s, a); err != nil {
							t.Fatal(err)
						}
						for _, j := range jobs {
							want := job.Done
							switch {
							case offered == "create only" && existing == "refuse" && pass == 1:
								want = job.Failed // all is there, and nothing tells
								if got := s.results["imp/"+j.ID].Outcome; got != want {
									t.Errorf("got %s, want %s", got, want)
								}
								continue
							case j.GroupName == "held" && existing == "refuse" && strings.HasPrefix(offered, "no update"):
								want = job.Partial // that which was there
							case len(j.Conversations) > 100 && offered != "all" && offered != "no get" &&
								(existing != "append" || offered == "create only"):
								want = job.Partial // more than create can carry
							}
							holds(t, s, a, j, want)
						}
						if offered != "create only" && !a.groups["carl/held"][there] {
							t.Errorf("pass %d: what the group held is gone", pass)
						}
					}
					if offered == "all" && string(known.Create) != existing {
						t.Errorf("learned that create does %q, want %q", known.Create, existing)
					}
				})
			})
		}
	}
}

// TestMayReplace refuses to write where create may replace and nobody can tell, before the first create.
func TestMayReplace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("replace")
		a.offer("create only")
		s := newStream(testJob("anna", "g", 3))
		if err := work(t, Config{}, s, a); !errors.Is(err, ErrMayReplace) {
			t.Errorf("got %v, want %v", err, ErrMayReplace)
		}
		if n := a.count(chat.CreateContactGroup); n != 0 || len(s.jobs) != 1 {
			t.Errorf("got %d creates and %d jobs left, want 0 and 1", n, len(s.jobs))
		}
	})
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
		{"an unknown code: three tries", 59999, 90, 4},
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
				if err := work(t, Config{Known: appends()}, s, a); err != nil {
					t.Fatal(err)
				}
				holds(t, s, a, good, job.Done)
				r := holds(t, s, a, bad, job.Failed)
				if c := r.Conversations[tc.jobSize-1]; c.Code != fmt.Sprint(tc.code) || c.Info != "told" {
					t.Errorf("got code %q %q, want %d and the API's text", c.Code, c.Info, tc.code)
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
		if err := work(t, Config{Known: Known{Create: Replace, CreateAt: time.Now()}}, s, a); err != nil {
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
		if err := work(t, Config{Known: appends(), MaxAttempts: 3}, s, a); err != nil {
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
				return &chat.Error{Command: c, Cause: errors.New("connection refused")}, false
			}
			return nil, false
		}
		var jobs []job.Job
		for i := range 100 {
			jobs = append(jobs, testJob(fmt.Sprint("u", i), "g", 3))
		}
		s := newStream(jobs...)
		if err := work(t, Config{Known: appends(), MaxAttempts: 2, Concurrency: 20}, s, a); err != nil {
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
		fixed := false
		a.fault = func(n int, c chat.Command, _ string) (error, bool) {
			if n > 50 && !fixed {
				return coded(c, 51013), false
			}
			return nil, false
		}
		var jobs []job.Job
		for i := range 200 {
			jobs = append(jobs, testJob(fmt.Sprint("u", i), "g", 3))
		}
		s := newStream(jobs...)
		err := work(t, Config{Known: appends(), LeaveOn: always}, s, a)
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
		fixed = true
		if err := work(t, Config{Known: appends()}, s, a); err != nil {
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
		fixed := false
		a.fault = func(_ int, c chat.Command, _ string) (error, bool) {
			if !fixed {
				return status(c, 404), false // of create: the URL is wrong, for every job
			}
			return nil, false
		}
		j := testJob("anna", "g", 3)
		s := newStream(j)
		g := startGovernor(t, governor.Config{})
		go func() {
			time.Sleep(time.Hour)
			a.mu.Lock()
			fixed = true
			a.mu.Unlock()
			g.Resume()
		}()
		if err := workWith(t, Config{Known: appends()}, s, a, g); err != nil {
			t.Fatal(err)
		}
		// Five calls over two seconds, which may be the last of one attempt or the first of the next; one more after it.
		if r := holds(t, s, a, j, job.Done); r.Attempts > 2 || len(a.calls) > 2*callTries {
			t.Errorf("got attempt %d after %d calls, want a few", r.Attempts, len(a.calls))
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
		if err := work(t, Config{Known: appends()}, s, a); err != nil {
			t.Fatal(err)
		}
		holds(t, s, a, j, job.Done)
		if a.renewed != 1 {
			t.Errorf("signed again %d times, want once", a.renewed)
		}

		a.fault = func(_ int, c chat.Command, _ string) (error, bool) { return coded(c, 70001), false }
		if err := work(t, Config{Known: appends(), LeaveOn: always}, newStream(j), a); !governor.IsHalted(err) {
			t.Errorf("rejected with a new signature too: got %v, want halted", err)
		}
		a.fault = func(_ int, c chat.Command, _ string) (error, bool) { return coded(c, 60004), false }
		if err := work(t, Config{Known: appends(), LeaveOn: always}, newStream(j), a); !governor.IsHalted(err) {
			t.Errorf("60004 again and again: got %v, want halted", err)
		}
	})
}

// TestRetry does a job of which some conversations fail, fixes the cause of some, and does those again: what was done
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
					if err := work(t, Config{AcceptReplace: offered == "create only"}, s, a); err != nil {
						t.Fatal(err)
					}
					first := holds(t, s, a, j, job.Partial)
					before := len(a.calls)

					delete(failing, j.Conversations[3].ID)
					delete(failing, j.Conversations[30].ID)
					s.again(j, 1, j.Conversations[3], j.Conversations[30])
					if err := work(t, Config{AcceptReplace: offered == "create only"}, s, a); err != nil {
						t.Fatal(err)
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
					if made := len(a.calls) - before; r.Generation != 1 || r.Replaces != 1 || r.Attempts != first.Attempts+1 || r.Calls != first.Calls+made {
						t.Errorf("got generation %d in place of result %d, %d attempts, %d calls; want 1, 1, %d, %d", r.Generation, r.Replaces,
							r.Attempts, r.Calls, first.Attempts+1, first.Calls+made)
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
			s.again(j, 1)
		}
		if err := work(t, Config{}, s, a); err != nil {
			t.Fatal(err)
		}
		holds(t, s, a, many, job.Done)
		holds(t, s, a, failed, job.Done)
		holds(t, s, a, gone, job.Done)
	})
}

// TestUndecodable records a message that is no job as failed, without a call.
func TestUndecodable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		s := newStream()
		s.add([]byte("not a job"))
		s.add([]byte(`{"v":99}`))
		if err := work(t, Config{Name: "w"}, s, a); err != nil {
			t.Fatal(err)
		}
		if len(a.calls) != 0 {
			t.Errorf("%d calls for jobs that cannot be read", len(a.calls))
		}
		for _, id := range []string{"seq-1", "seq-2"} {
			r := s.results["imp/"+id]
			if r.Outcome != job.Failed || r.Code != job.CodeUndecodable || r.Info == "" || r.Worker != "w" || r.Finished.IsZero() {
				t.Errorf("%s: got %+v, want failed as undecodable", id, r)
			}
		}
	})
}

// TestPoisonJob has one job that fails in a way that may pass, for ever, among many slots. The attempts are those that
// are allowed, of five calls each, and no more.
func TestPoisonJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		a.latency = 30 * time.Millisecond
		a.fault = func(_ int, c chat.Command, user string) (error, bool) {
			if user == "poison" {
				return coded(c, 50004), false
			}
			return nil, false
		}
		poison := testJob("poison", "g", 3)
		jobs := []job.Job{poison}
		for i := range 100 {
			jobs = append(jobs, testJob(fmt.Sprint("u", i), "g", 3))
		}
		s := newStream(jobs...)
		first := s.jobs[1]
		w := New(Config{Known: appends(), Concurrency: 20, MaxAttempts: 8}, s, a, startGovernor(t, governor.Config{}))
		if err := runUntilEmpty(t, w, s); err != nil {
			t.Fatal(err)
		}
		if made := len(a.calls) - 100; made != 8*callTries {
			t.Errorf("got %d calls for the poison job, want %d", made, 8*callTries)
		}
		if r := holds(t, s, a, poison, job.Failed); r.Attempts != 8 || r.Calls != 8*callTries || r.Conversations[0].Code != "50004" {
			t.Errorf("got %d attempts, %d calls, code %s; want 8, %d, 50004", r.Attempts, r.Calls, r.Conversations[0].Code, 8*callTries)
		}
		if len(first.requeues) != 7 {
			t.Fatalf("requeued %d times, want 7", len(first.requeues))
		}
		for i, r := range first.requeues {
			want := min(retryFirst<<i, retryMost)
			if !r.counted || r.after < want*3/4 || r.after > want*5/4 {
				t.Errorf("requeue %d: after %v, counted %v; want %v and counted", i, r.after, r.counted, want)
			}
		}
		if len(w.spent) != 0 {
			t.Errorf("what %d jobs took is kept after their results", len(w.spent))
		}
	})
}

// TestPriorOutOfReach waits with a retried job whose earlier result cannot be read, and counts no attempt.
func TestPriorOutOfReach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		bad := true
		a.item = func(it chat.Item) int {
			if bad && it.ID == "c0001" {
				return 50001
			}
			return 0
		}
		j := testJob("anna", "g", 3)
		s := newStream(j)
		if err := work(t, Config{Known: appends()}, s, a); err != nil {
			t.Fatal(err)
		}
		bad = false
		s.again(j, 1)
		s.failed = 10
		if err := work(t, Config{Known: appends(), MaxAttempts: 2}, s, a); err != nil {
			t.Fatal(err)
		}
		if r := holds(t, s, a, j, job.Done); r.Attempts != 2 || len(a.calls) != 2 {
			t.Errorf("got %d attempts and %d calls, want 2 and 2", r.Attempts, len(a.calls))
		}
	})
}

// TestPanic is about defects, in the middle of a job and before its first call. The job fails, what a response said
// holds, and the others continue. Neither the log nor the result tells ids.
func TestPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		a.latency = 10 * time.Millisecond
		a.fault = func(n int, c chat.Command, user string) (error, bool) {
			switch {
			case user == "index" && c == chat.UpdateContactGroup:
				_ = []int{}[n]
			case user == "value":
				panic("an id of " + user)
			}
			return nil, false
		}
		index, value := testJob("index", "g", 150), testJob("value", "g", 3)
		jobs := []job.Job{index, value}
		for i := range 50 {
			jobs = append(jobs, testJob(fmt.Sprint("u", i), "g", 3))
		}
		s := newStream(jobs...)
		var log strings.Builder
		g := startGovernor(t, governor.Config{})
		seen := &counter{}
		cfg := Config{Known: appends(), Concurrency: 5, Observer: seen, Log: slog.New(slog.NewTextHandler(&locked{w: &log}, nil))}
		if err := workWith(t, cfg, s, a, g); err != nil {
			t.Fatal(err)
		}
		for _, j := range jobs[2:] {
			holds(t, s, a, j, job.Done)
		}
		r := holds(t, s, a, index, job.Partial)
		if c := r.Conversations; c[99].Code != "" || c[100].Code != CodePanic || !strings.Contains(c[100].Info, "index out of range") {
			t.Errorf("got %+v and %+v, want the first chunk done and the second ended by the panic", c[99], c[100])
		}
		r = holds(t, s, a, value, job.Failed)
		if c := r.Conversations[0]; c.Code != CodePanic || c.Info != "a panic with a value of type string" {
			t.Errorf("got %+v, want the type of the panic's value", c)
		}
		if text := log.String(); strings.Count(text, "level=ERROR") != 2 || !strings.Contains(text, "worker_test.go") || strings.Contains(text, "an id of") {
			t.Errorf("got the log %q, want two errors with stacks and no value", text)
		}
		if len(seen.started) != 0 {
			t.Errorf("%d jobs are in flight for the observer", len(seen.started))
		}
		// A call that panicked may still arrive: its permit is back after the call timeout and a second.
		if n := callsUnderWay(g); n == 0 {
			t.Error("a call that ended in a panic is not under way any more")
		}
	})
}

// A counter counts as an observer.
type counter struct {
	nobody
	mu       sync.Mutex
	started  []struct{}
	requeued []string
	calls    []string
}

func (c *counter) JobStarted() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.started = append(c.started, struct{}{})
}

func (c *counter) JobDone(string, int, int, time.Duration, int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.started = c.started[1:]
}

func (c *counter) JobRequeued(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.started, c.requeued = c.started[1:], append(c.requeued, reason)
}

func (c *counter) CallDone(_, code string, _ time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, code)
}

// locked is a writer for many goroutines.
type locked struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *locked) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

// TestUnsentIsRepeated has calls that were not sent: they are made again under another permit, without a try, an
// attempt, or a call being counted, however many they are.
func TestUnsentIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		j := testJob("anna", "g", 3)
		s := newStream(j)
		seen := &counter{}
		u := &unsentAPI{api: a, left: unsentMost}
		g := startGovernor(t, governor.Config{})
		if err := workWith(t, Config{Known: appends(), MaxAttempts: 1, Observer: seen}, s, u, g); err != nil {
			t.Fatal(err)
		}
		if r := holds(t, s, a, j, job.Done); r.Attempts != 1 || r.Calls != 1 || len(seen.calls) != 1 || u.left != 0 {
			t.Errorf("got %d attempts, %d calls, %d of them observed, %d unsent ones left; want 1, 1, 1, 0", r.Attempts, r.Calls, len(seen.calls), u.left)
		}
		if g.Snapshot().State == governor.Outage {
			t.Error("unsent calls made an outage")
		}
	})
}

// TestNeverSent has an API to which no connection is made while a permit holds: that is an outage.
func TestNeverSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		s := newStream(testJob("anna", "g", 3), testJob("bert", "g", 3))
		u := &unsentAPI{api: a, left: 1_000_000}
		g := startGovernor(t, governor.Config{})
		w := New(Config{Name: "w"}, s, u, g)
		ctx, leave := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx, nil) }()
		for g.Snapshot().State != governor.Outage {
			time.Sleep(time.Second) // virtual
		}
		leave()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// unsentAPI is a real client whose permits have ended for some calls.
type unsentAPI struct {
	*api
	mu   sync.Mutex
	left int
}

func (u *unsentAPI) Create(ctx context.Context, r chat.CreateRequest) (chat.Response, error) {
	u.mu.Lock()
	over := u.left == 0
	u.left = max(u.left-1, 0)
	u.mu.Unlock()
	if over {
		return u.api.Create(ctx, r)
	}
	client, err := chat.New(chat.Config{BaseURL: "http://127.0.0.1:1", SDKAppID: 1, SecretKey: "k"})
	if err != nil {
		return chat.Response{}, err
	}
	return client.Create(chat.WithDeadline(ctx, time.Now().Add(time.Minute), func() bool { return false }), r)
}

func TestOutcomeOf(t *testing.T) {
	live := t.Context()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	client, err := chat.New(chat.Config{BaseURL: "http://127.0.0.1:1", SDKAppID: 1, SecretKey: "k"})
	if err != nil {
		t.Fatal(err)
	}
	_, unsent := client.Get(chat.WithDeadline(live, time.Now(), func() bool { return false }), "u", 0)
	_, before := client.Get(gone, "u", 0)
	c := chat.CreateContactGroup
	for _, tc := range []struct {
		name string
		ctx  context.Context
		err  error
		want governor.Outcome
	}{
		{"well", live, nil, governor.Responded},
		{"well, as the context ended", gone, nil, governor.Responded},
		{"a code", live, coded(c, 50001), governor.Responded},
		{"a code, as the context ended", gone, coded(c, 51013), governor.Responded},
		{"slower", live, coded(c, 60007), governor.Throttled},
		{"slower, as the context ended", gone, coded(c, 60011), governor.Throttled},
		{"not offered, or something in between", live, status(c, 404), governor.Responded},
		{"not offered", live, coded(c, 60009), governor.Responded},
		{"something in between", live, status(c, 502), governor.Lost},
		{"something in between, as the context ended", gone, status(c, 502), governor.Lost},
		{"forbidden by something in between", live, status(c, 403), governor.Lost},
		{"no response", live, &chat.Error{Command: c, Cause: os.ErrDeadlineExceeded}, governor.Lost},
		{"given up", gone, &chat.Error{Command: c, Cause: context.Canceled}, governor.Cancelled},
		{"given up before it was sent", gone, before, governor.Unsent},
		{"not sent", live, unsent, governor.Unsent},
		{"another error", live, errors.New("what"), governor.Cancelled},
	} {
		if got := outcomeOf(tc.ctx, tc.err); got != tc.want {
			t.Errorf("%s: got %v, want %v", tc.name, got, tc.want)
		}
	}
}

// TestCancelledCallsStayUnderWay leaves at once while calls are under way. They count until they cannot arrive any more.
func TestCancelledCallsStayUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var jobs []job.Job
		for i := range 10 {
			jobs = append(jobs, testJob(fmt.Sprint("u", i), "g", 3))
		}
		s := newStream(jobs...)
		g := startGovernor(t, governor.Config{Timeout: 10 * time.Second})
		ctx, cancel := context.WithCancel(t.Context())
		left := make(chan error)
		go func() {
			left <- New(Config{Known: appends(), Concurrency: 4}, s, &slowAPI{newAPI("append"), 5 * time.Second}, g).Run(ctx, nil)
		}()
		time.Sleep(time.Second)
		cancel()
		if err := <-left; err != nil {
			t.Errorf("got %v, want nil", err)
		}
		if n := callsUnderWay(g); n != 4 {
			t.Errorf("%d calls are under way after they were cancelled, want 4", n)
		}
		time.Sleep(10 * time.Second)
		if n := callsUnderWay(g); n != 0 {
			t.Errorf("%d calls are under way after their timeout, want 0", n)
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
		{"jobs in flight finish", 5 * time.Second, false, 4, 5 * time.Second},
		{"what takes longer than the grace is requeued", 2 * time.Minute, false, 0, 30 * time.Second},
		{"the second signal leaves at once", 5 * time.Second, true, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var jobs []job.Job
				for i := range 10 {
					jobs = append(jobs, testJob(fmt.Sprint("u", i), "g", 3))
				}
				s := newStream(jobs...)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				stop := make(chan struct{})
				seen := &counter{}
				g := startGovernor(t, governor.Config{Timeout: 3 * time.Minute})
				w := New(Config{Known: appends(), Concurrency: 4, Observer: seen}, s, &slowAPI{newAPI("append"), tc.latency}, g)
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
				if n := s.inFlight(); n != 0 {
					t.Errorf("%d jobs were not requeued", n)
				}
				for seq, m := range s.jobs {
					for _, r := range m.requeues {
						if r.counted || r.after != 0 {
							t.Errorf("job %d was requeued %+v, want at once and not counted", seq, r)
						}
					}
				}
				if len(seen.started) != 0 || len(seen.requeued) != 4-tc.wantDone {
					t.Errorf("the observer has %d jobs in flight and %d requeued, want none and %d", len(seen.started), len(seen.requeued), 4-tc.wantDone)
				}
			})
		})
	}
}

// TestNoMoreJobs ends with the error of who gives out the jobs, after those in flight are done.
func TestNoMoreJobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStream(testJob("anna", "g", 3), testJob("bob", "g", 3))
		superseded := errors.New("superseded")
		left := make(chan error)
		go func() {
			left <- New(Config{Known: appends(), Concurrency: 4}, s, &slowAPI{newAPI("append"), 5 * time.Second}, startGovernor(t, governor.Config{})).Run(t.Context(), nil)
		}()
		time.Sleep(time.Second)
		s.mu.Lock()
		s.closed = superseded
		s.mu.Unlock()
		if err := <-left; !errors.Is(err, superseded) {
			t.Errorf("got %v, want %v", err, superseded)
		}
		if len(s.results) != 2 {
			t.Errorf("got %d results, want 2", len(s.results))
		}
	})
}

// TestPaceClosed requeues what waits for a permit of a term that is over, and leaves.
func TestPaceClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		a.latency = time.Second
		var jobs []job.Job
		for i := range 20 {
			jobs = append(jobs, testJob("anna", fmt.Sprint("g", i), 3)) // one at a time
		}
		s := newStream(jobs...)
		g := startGovernor(t, governor.Config{})
		left := make(chan error)
		go func() { left <- New(Config{Known: appends(), Concurrency: 8}, s, a, g).Run(t.Context(), nil) }()
		time.Sleep(2500 * time.Millisecond)
		g.Close()
		if err := <-left; !errors.Is(err, governor.ErrClosed) {
			t.Errorf("got %v, want %v", err, governor.ErrClosed)
		}
		if len(s.results) != 3 || s.inFlight() != 0 {
			t.Errorf("got %d results and %d jobs in flight, want 3 and none", len(s.results), s.inFlight())
		}
		for seq, m := range s.jobs {
			for _, r := range m.requeues {
				if r.counted {
					t.Errorf("job %d: an attempt was counted", seq)
				}
			}
		}
	})
}

// TestLeavesAHaltWhileIdle halts while every other slot waits for a job that does not come.
func TestLeavesAHaltWhileIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		a.fault = func(_ int, c chat.Command, _ string) (error, bool) { return coded(c, 51013), false }
		s := newStream(testJob("anna", "g", 3))
		start := time.Now()
		if err := work(t, Config{LeaveOn: always}, s, a); !governor.IsHalted(err) {
			t.Errorf("got %v, want halted", err)
		}
		if d := time.Since(start); d > 2*haltDelay {
			t.Errorf("left after %v, want the %v after which the job comes back", d, haltDelay)
		}
	})
}

// slowAPI ends with the context, as a real client does.
type slowAPI struct {
	*api
	latency time.Duration
}

func (a *slowAPI) Create(ctx context.Context, r chat.CreateRequest) (chat.Response, error) {
	if err := sleep(ctx, a.latency); err != nil {
		return chat.Response{}, &chat.Error{Command: chat.CreateContactGroup, Cause: err}
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
			if err := work(t, Config{Known: appends(), ChunkSize: int(size)}, s, a); err != nil {
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

// callsUnderWay counts the creates that may still arrive.
func callsUnderWay(g *governor.Governor) int {
	calls, _ := g.UnderWay()
	return calls[string(chat.CreateContactGroup)]
}
