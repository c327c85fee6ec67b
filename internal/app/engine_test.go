package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"groupferry/internal/broker"
	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
	"groupferry/internal/governor"
	"groupferry/internal/job"
	"groupferry/internal/lease"
	"groupferry/internal/queue"
	"groupferry/metrics"
	"groupferry/worker"
)

// patience bounds every wait.
const patience = time.Minute

var testApp = queue.App{SDKAppID: chatsim.DemoSDKAppID}

// A namespace is an embedded server with a simulator behind it, for one or more engines.
type namespace struct {
	t   *testing.T
	dir string
	sim *chatsim.Sim
	url string
	*Namespace
}

func newNamespace(t *testing.T, cfg chatsim.Config) *namespace {
	t.Helper()
	n := &namespace{t: t, dir: filepath.Join(t.TempDir(), "data"), sim: chatsim.New(cfg)}
	var err error
	if n.url, err = n.sim.Start("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.sim.Close)
	n.Namespace = n.open()
	return n
}

func (n *namespace) open() *Namespace {
	n.t.Helper()
	opened, err := Open(n.t.Context(), broker.Config{DataDir: n.dir})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { opened.Close() })
	return opened
}

// enqueue puts so many jobs of one conversation on the queue.
func (n *namespace) enqueue(id string, jobs int) {
	n.t.Helper()
	n.enqueueAs(queue.Import{}, id, jobs)
}

// enqueueAs enqueues an import of which a part of the record is given.
func (n *namespace) enqueueAs(i queue.Import, id string, jobs int) {
	n.t.Helper()
	i.ID, i.Digest, i.Rows, i.Accepted, i.Conversations, i.Jobs = id, id, int64(jobs), int64(jobs), int64(jobs), int64(jobs)
	if _, _, err := n.Begin(n.t.Context(), i); err != nil {
		n.t.Fatal(err)
	}
	var all iter.Seq[job.Job] = func(yield func(job.Job) bool) {
		for i := range jobs {
			j := job.Job{
				Import: id, FromAccount: fmt.Sprintf("user%d", i), GroupName: "g",
				Conversations: []job.Conversation{{Type: job.OneToOne, ID: "friend", Line: int64(i + 1)}},
			}
			j.ID = job.ID(id, j.FromAccount, j.GroupName)
			if !yield(j) {
				return
			}
		}
	}
	if _, err := n.Enqueue(n.t.Context(), id, all, nil); err != nil {
		n.t.Fatal(err)
	}
}

func (n *namespace) await(what string, so func() bool) {
	n.t.Helper()
	for end := time.Now().Add(patience); !so(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			n.t.Fatalf("waited %v in vain for: %s", patience, what)
		}
	}
}

func (n *namespace) awaitComplete(id string) {
	n.t.Helper()
	n.await(id+" to be complete", func() bool {
		i, err := n.Import(n.t.Context(), id)
		return err == nil && i.State == queue.Complete
	})
}

func (n *namespace) creates() int { return n.sim.Ledger().Commands[chat.CreateContactGroup].Calls }

// An engineRun is an engine that runs.
type engineRun struct {
	*Engine
	stop func()
	done chan error
}

func (n *namespace) start(change func(*EngineConfig)) *engineRun {
	n.t.Helper()
	cfg := EngineConfig{Namespace: n.open(), App: testApp, Rate: 1000, Timeout: 10 * time.Second,
		Name: fmt.Sprintf("%s-%d", n.t.Name(), time.Now().UnixNano()), Host: "here"}
	key := chat.Secret(chatsim.DemoSecretKey)
	cfg.Resume = "groupferry resume"
	if change != nil {
		change(&cfg)
	}
	if cfg.API == nil {
		cfg.API = n.client(key)
	}
	e, err := NewEngine(n.t.Context(), cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	stopped := make(chan struct{})
	r := &engineRun{Engine: e, stop: sync.OnceFunc(func() { close(stopped) }), done: make(chan error, 1)}
	go func() { r.done <- e.Run(context.Background(), stopped) }()
	n.t.Cleanup(r.stop)
	return r
}

func (n *namespace) client(key chat.Secret) *chat.Client {
	n.t.Helper()
	api, err := chat.New(chat.Config{BaseURL: n.url, SDKAppID: chatsim.DemoSDKAppID, SecretKey: key})
	if err != nil {
		n.t.Fatal(err)
	}
	return api
}

func (r *engineRun) end(t *testing.T) error {
	t.Helper()
	r.stop()
	select {
	case err := <-r.done:
		return err
	case <-time.After(patience):
		t.Fatal("the engine does not stop")
		return nil
	}
}

func TestEngine(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1})
	n.enqueue("one", 20)
	e := n.start(nil)
	n.awaitComplete("one")
	if s := e.State(); !s.Leading || s.Mode != Running || s.Ready() != nil {
		t.Errorf("got %+v, ready %v; want it to lead and to be ready", s, s.Ready())
	}
	if err := e.end(t); err != nil {
		t.Errorf("stopped: got %v", err)
	}
	if got := n.creates(); got != 20 {
		t.Errorf("got %d creates, want 20", got)
	}
	if id, err := n.App(t.Context()); err != nil || id == nil || *id != testApp {
		t.Errorf("the namespace belongs to %v, %v; want %v", id, err, testApp)
	}
}

// The second one stands by, and takes over when the first one stops.
func TestStandby(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1})
	first := n.start(nil)
	n.await("a leader", first.Leading)
	second := n.start(func(c *EngineConfig) { c.Host = "there" })
	n.await("a standby that sees the leader", func() bool { return second.State().Leader == "here" })
	if s := second.State(); s.Leading || s.Mode != Standby || s.Ready() != nil {
		t.Errorf("standby: got %+v, ready %v", s, s.Ready())
	}
	n.enqueue("one", 5)
	n.awaitComplete("one")
	if err := first.end(t); err != nil {
		t.Error(err)
	}
	n.enqueue("two", 5)
	n.awaitComplete("two")
	if !second.Leading() {
		t.Error("the standby does not lead")
	}
	if err := second.end(t); err != nil {
		t.Error(err)
	}
	if got := n.creates(); got != 5 {
		t.Errorf("got %d creates, want 5: the second import adds to the same groups", got)
	}
}

// What a person said before the start holds from the first call on.
func TestPausedAndSlowedBeforeTheStart(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1})
	n.enqueue("one", 10)
	if err := n.SetHalt(t.Context(), queue.Halt{State: queue.Paused, Reason: "by hand"}); err != nil {
		t.Fatal(err)
	}
	if err := n.SetRate(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	e := n.start(nil)
	n.await("the pause", func() bool { return e.State().Mode == Paused && e.Leading() })
	if limit := e.State().Commands[string(chat.CreateContactGroup)].Limit; limit != 7 {
		t.Errorf("got a limit of %v, want 7", limit)
	}
	s := e.State()
	if err := s.Ready(); !governor.IsHalted(err) {
		t.Errorf("ready: got %v, want it paused", err)
	}
	if got := n.sim.Ledger().Commands[chat.GetContactGroup].Calls + n.creates(); got != 0 {
		t.Errorf("paused: got %d calls, want none", got)
	}
	if _, err := n.ClearHalt(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.awaitComplete("one")
	if err := e.end(t); err != nil {
		t.Error(err)
	}
}

// A process whose credentials never worked ends. It neither halts the namespace nor makes it its own, and the one that
// comes after it works.
func TestWrongKey(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1})
	n.enqueue("one", 3)
	wrong := n.start(func(c *EngineConfig) { c.API = n.client("another-key") })
	select {
	case err := <-wrong.done:
		if !governor.IsHalted(err) || !errors.Is(err, ErrCredentials) {
			t.Errorf("got %v, want it rejected for its credentials", err)
		}
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
	if h, err := n.Halted(t.Context()); h != nil || err != nil {
		t.Errorf("the namespace is halted: %+v, %v", h, err)
	}
	if id, err := n.App(t.Context()); id != nil || err != nil {
		t.Errorf("the namespace belongs to %v, %v; want nobody", id, err)
	}
	e := n.start(nil)
	n.awaitComplete("one")
	if err := e.end(t); err != nil {
		t.Error(err)
	}
}

// A response about the load of the app proves no credentials: a halt is lifted only after one that does.
func TestHaltIsLiftedByProof(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1, Faults: []chatsim.Fault{{Kind: "60011"}}})
	n.enqueue("one", 3)
	if err := n.SetHalt(t.Context(), queue.Halt{State: queue.Halted, Reason: "a key was revoked"}); err != nil {
		t.Fatal(err)
	}
	e := n.start(func(c *EngineConfig) { c.LiftHalt, c.LeaveOnHalt = true, true })
	n.await("responses", func() bool { return n.sim.Ledger().Commands[chat.GetContactGroup].Faulted >= 3 })
	if h, err := n.Halted(t.Context()); h == nil || err != nil {
		t.Errorf("got halt %v, %v before any proof, want it to stay", h, err)
	}
	if err := n.sim.Configure(func(c *chatsim.Config) { c.Faults = nil }); err != nil {
		t.Fatal(err)
	}
	n.awaitComplete("one")
	if h, err := n.Halted(t.Context()); h != nil || err != nil {
		t.Errorf("got halt %v, %v, want none", h, err)
	}
	if err := e.end(t); err != nil {
		t.Error(err)
	}
}

// A logOf keeps the attributes of the log lines from the level ERROR on.
type logOf struct {
	slog.Handler
	mu     sync.Mutex
	errors []map[string]string
}

func newLog() *logOf { return &logOf{Handler: slog.DiscardHandler} }

func (l *logOf) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelError }

func (l *logOf) Handle(_ context.Context, r slog.Record) error {
	line := map[string]string{}
	r.Attrs(func(a slog.Attr) bool { line[a.Key] = a.Value.String(); return true })
	l.mu.Lock()
	defer l.mu.Unlock()
	l.errors = append(l.errors, line)
	return nil
}

// wantHalt checks that the log has one error: the halt, with all that somebody needs to know.
func (l *logOf) wantHalt(t *testing.T, who string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.errors) != 1 {
		t.Errorf("%s: got errors %v in the log, want one", who, l.errors)
		return
	}
	e := l.errors[0]
	if e["code"] != "51013" || !strings.Contains(e["reason"], "51013") || e["hint"] == "" || e["to_continue"] != "groupferry resume" {
		t.Errorf("%s: got %v in the log, want code, reason, hint, and the command that continues", who, e)
	}
}

// A halt of the leader is the namespace's, and ends whoever is to leave then. Each process logs it once.
func TestHalted(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1, Faults: []chatsim.Fault{{Kind: "51013", After: 1}}})
	n.enqueue("one", 30)
	logs := map[string]*logOf{"leader": newLog(), "standby": newLog(), "one that leaves": newLog()}
	logTo := func(who string) func(*EngineConfig) {
		return func(c *EngineConfig) {
			c.Log, c.LeaveOnHalt = slog.New(logs[who]), who == "one that leaves"
		}
	}
	leader := n.start(logTo("leader"))
	n.await("the halt", func() bool { return leader.State().Mode == Halted })
	n.await("the stored halt", func() bool {
		h, err := n.Halted(t.Context())
		return err == nil && h != nil && h.Code == "51013" && h.Remedy != "" && h.Command == "groupferry resume"
	})
	standby := n.start(logTo("standby"))
	leaves := n.start(logTo("one that leaves"))
	select {
	case err := <-leaves.done:
		if !governor.IsHalted(err) {
			t.Errorf("standby: got %v, want it halted", err)
		}
	case <-time.After(patience):
		t.Fatal("the standby does not leave")
	}
	n.await("the halt at the standby", func() bool { return standby.State().Mode == Halted })
	for _, e := range []*engineRun{standby, leader} {
		if err := e.end(t); err != nil {
			t.Error(err)
		}
	}
	for who, log := range logs {
		log.wantHalt(t, who)
	}
}

// Without a response of the API a stop does not wait for what is in flight.
func TestStopWithoutAPI(t *testing.T) {
	t.Parallel()
	for name, noticed := range map[string]func(*State) bool{
		chatsim.Reset: func(s *State) bool { return s.Outage != nil },
		chatsim.Hang:  func(s *State) bool { return s.Silent },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNamespace(t, chatsim.Config{Rate: -1})
			n.enqueue("one", 20)
			e := n.start(func(c *EngineConfig) { c.Worker.Grace = time.Hour })
			n.awaitComplete("one")
			if err := n.sim.Configure(func(c *chatsim.Config) { c.Faults = []chatsim.Fault{{Kind: name}} }); err != nil {
				t.Fatal(err)
			}
			n.enqueue("two", 20)
			n.await("the outage", func() bool { s := e.State(); return noticed(&s) })
			if s := e.State(); s.Jobs == nil || s.Jobs.InFlight == 0 {
				t.Errorf("got jobs %+v, want some in flight", s.Jobs)
			}
			if err := e.end(t); err != nil {
				t.Error(err)
			}
			if !e.State().Stopping {
				t.Error("got no stop")
			}
			if name == chatsim.Hang && e.noResponse.Load() != nil {
				t.Error("it waited until the calls were given up")
			}
		})
	}
}

// The lead is not handed over, and the API not called out of reach, when it has responded while the standbys were asked.
func TestNoHandoverAfterResponse(t *testing.T) {
	n := newNamespace(t, chatsim.Config{})
	e, err := NewEngine(t.Context(), EngineConfig{Namespace: n.open(), API: n.client(chatsim.DemoSecretKey), App: testApp, Name: "leader"})
	if err != nil {
		t.Fatal(err)
	}
	var responds atomic.Bool
	stop, err := n.open().Conn.Standby(func() []byte {
		if responds.Load() {
			e.outage(false)
		}
		b, err := json.Marshal(presence{Name: "standby", Host: "there", App: testApp, Reachable: true})
		if err != nil {
			t.Error(err)
		}
		return b
	})
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	e.state.set(func(s *State) { s.Leading = true })
	e.outage(true)
	n.await("the standby", func() bool { // the server may not know of it yet
		next, found := e.findSuccessor(t.Context())
		return found && next.Host == "there"
	})
	responds.Store(true)
	if next, found := e.findSuccessor(t.Context()); found || next.Host != "there" {
		t.Errorf("the API has responded: got %+v, %t, want the standby, and that nobody has to lead", next, found)
	}
}

// Who leaves a job of a night in the middle, after a call that had no response, says that a call may still take effect; and so
// does who leads after it, for as long. Who has nothing in flight does not.
func TestALeaderSaysThatACallMayTakeEffect(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1})
	store, err := n.Conn.Lease(t.Context(), broker.LeaderLease)
	if err != nil {
		t.Fatal(err)
	}
	left := func() (lease.Record, uint64) {
		t.Helper()
		r, revision, err := lease.Read(t.Context(), store)
		if err != nil || !r.Released {
			t.Fatalf("got %+v, %v, want a lease that was released", r, err)
		}
		return r, revision
	}
	says := func() bool {
		r, _ := left()
		return len(r.Calls) > 0
	}
	e := n.start(nil)
	n.enqueue("zero", 1)
	n.awaitComplete("zero")
	if err := e.end(t); err != nil || says() {
		t.Errorf("nothing is in flight: got %v, says %t", err, says())
	}
	if err := n.sim.Configure(func(c *chatsim.Config) {
		c.Faults = []chatsim.Fault{{Command: chat.CreateContactGroup, Kind: chatsim.Lost}, {Command: chat.UpdateContactGroup, Kind: chatsim.Lost}}
	}); err != nil {
		t.Fatal(err)
	}
	api := n.client(chatsim.DemoSecretKey)
	contacts, err := n.UpdateSync(t.Context(), queue.NewSync("contacts", Target(testApp, api.Address())), func(s *queue.Sync) {
		s.Night, s.Pending = 1, &queue.Night{Number: 1, Import: "one", Digest: "one"}
	})
	if err != nil {
		t.Fatal(err)
	}
	n.enqueueAs(queue.Import{Sync: contacts.Name, Night: contacts.Night, Target: contacts.Target}, "one", 1)
	ctx, kill := context.WithCancel(t.Context())
	defer kill()
	cfg := EngineConfig{Namespace: n.open(), App: testApp, Rate: 1000, Timeout: 10 * time.Second, Name: "first", Host: "here", API: api}
	cfg.Worker.Observer = onRetry{metricsObserver{newMetrics(metrics.BuildInfo{})}, kill}
	first, err := NewEngine(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Run(ctx, nil); err != nil || !says() {
		t.Errorf("a call had no response: got %v, says %t", err, says())
	}
	if err := n.sim.Configure(func(c *chatsim.Config) { c.Faults = nil }); err != nil {
		t.Fatal(err)
	}
	r, revision := left()
	r.Released, r.Calls = false, nil // as if it had died instead, and was promised no call
	raw, err := json.Marshal(r)
	if err == nil {
		_, err = store.Replace(t.Context(), raw, revision)
	}
	if err != nil {
		t.Fatal(err)
	}
	second := n.start(nil)
	n.await("the second to lead", second.Leading)
	if err := second.end(t); err != nil || !says() {
		t.Errorf("soon after that: got %v, says %t", err, says())
	}
}

// A reader that follows a lost one, and ends soon, leaves no call: those of readers have no effect.
func TestAReaderLeavesNoCall(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1})
	store, err := n.Conn.Lease(t.Context(), broker.ReaderLease)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(lease.Record{Version: 1, Holder: "lost", Term: 1, Timeout: time.Second})
	if err == nil {
		_, err = store.Replace(t.Context(), raw, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	e := n.start(func(cfg *EngineConfig) {
		cfg.Read = func(context.Context, <-chan struct{}, *worker.Reader) error { return nil }
	})
	if err := <-e.done; err != nil {
		t.Error(err)
	}
	r, _, err := lease.Read(t.Context(), store)
	if err != nil || r.Term != 2 || !r.Released || len(r.Calls) > 0 {
		t.Errorf("got %+v, %v, want the second term released, without calls", r, err)
	}
}

// A job that kills the process does so in its trial, also if it has to wait before its first call. A second is for the pace,
// which waits as well.
func TestATrialOutlastsTheWaitForEarlierCalls(t *testing.T) {
	if queue.TrialTime <= worker.LateTime+time.Second {
		t.Errorf("a trial takes %v, and a job may wait %v", queue.TrialTime, worker.LateTime)
	}
}

// onRetry calls do when a call failed and is to be made again.
type onRetry struct {
	worker.Observer
	do func()
}

func (o onRetry) Retry(string) { o.do() }
