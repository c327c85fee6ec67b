package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"groupferry/internal/broker"
	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
	"groupferry/internal/queue"
	"groupferry/metrics"
	"groupferry/worker"
)

// A patient is what a doctor looks at: a namespace of a server that others use, too, with a simulator of its own.
type patient struct {
	t   *testing.T
	dir string
	ns  string
	sim *chatsim.Sim
	url string
	api *chat.Client
}

const tried = "throw-away"

func newPatient(t *testing.T, dir, ns string, cfg chatsim.Config) *patient {
	t.Helper()
	p := &patient{t: t, dir: dir, ns: ns, sim: chatsim.New(cfg)}
	var err error
	if p.url, err = p.sim.Start("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.sim.Close)
	p.api, err = chat.New(chat.Config{BaseURL: p.url, SDKAppID: chatsim.DemoSDKAppID, SecretKey: chatsim.DemoSecretKey})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// behind puts something between the doctor and the simulator.
func (p *patient) behind(serve http.HandlerFunc) {
	p.t.Helper()
	front := httptest.NewServer(serve)
	p.t.Cleanup(front.Close)
	var err error
	if p.api, err = chat.New(chat.Config{BaseURL: front.URL, SDKAppID: chatsim.DemoSDKAppID, SecretKey: chatsim.DemoSecretKey}); err != nil {
		p.t.Fatal(err)
	}
	p.url = front.URL
}

var engines atomic.Int64

// see has a doctor look, with a trial unless account is "".
func (p *patient) see(ctx context.Context, stop <-chan struct{}, account string, change func(*EngineConfig)) (DoctorReport, error) {
	return Doctor(ctx, stop, p.config(account, change))
}

func (p *patient) config(account string, change func(*EngineConfig)) DoctorConfig {
	return DoctorConfig{
		API: p.api, App: testApp, Admin: chat.DefaultAdmin, TryAccount: account,
		Command: func(more ...string) string { return strings.Join(append([]string{"groupferry doctor"}, more...), " ") },
		Date:    func() (time.Time, time.Time) { return time.Now(), time.Now() },
		Queue:   &broker.Config{DataDir: p.dir, Namespace: p.ns},
		Named:   func(flag string) string { return "--" + flag },
		Hint:    func(error) string { return "" },
		Engine: func(n *Namespace) EngineConfig {
			e := EngineConfig{Namespace: n, API: p.api, App: testApp, Rate: 1000, Timeout: 10 * time.Second,
				Name: fmt.Sprintf("doctor-%d", engines.Add(1)), Host: "doctor"}
			e.Worker.Concurrency = 256
			if change != nil {
				change(&e)
			}
			return e
		},
	}
}

// look is see without a stop.
func (p *patient) look(account string) DoctorReport {
	p.t.Helper()
	r, err := p.see(p.t.Context(), nil, account, nil)
	if err != nil {
		p.t.Errorf("%s: %v", p.ns, err)
	}
	return r
}

// known is what workers know after a trial; nil if they know nothing. No trial may have left a record.
func (p *patient) known() *worker.Known {
	p.t.Helper()
	n, err := Open(p.t.Context(), broker.Config{DataDir: p.dir, Namespace: p.ns})
	if err != nil {
		p.t.Fatal(err)
	}
	defer n.Close()
	if left, _, err := n.leftTrial(p.t.Context()); left != nil || err != nil {
		p.t.Errorf("%s: got the record %+v, %v; want none", p.ns, left, err)
	}
	b, err := n.KnownAPI(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	if b == nil {
		return nil
	}
	var s storedKnown
	if err := json.Unmarshal(b, &s); err != nil || s.App != testApp || s.Address != p.url {
		p.t.Errorf("%s: got %s, %v; want what is known of %s", p.ns, b, err, p.url)
	}
	return &s.Known
}

// wantEmpty checks that nothing is left in the app.
func (p *patient) wantEmpty() {
	p.t.Helper()
	if s := p.sim.State(); len(s) > 0 {
		p.t.Errorf("%s: got %v in the app, want nothing", p.ns, s)
	}
}

// finding gives the one of that name.
func finding(r DoctorReport, name string) Finding {
	i := slices.IndexFunc(r.Findings, func(f Finding) bool { return f.Name == name })
	if i < 0 {
		return Finding{}
	}
	return r.Findings[i]
}

// server is an embedded server for several namespaces.
func server(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	n, err := Open(t.Context(), broker.Config{DataDir: dir, Namespace: "first"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return dir
}

// A reading is what create does, and which names are one group.
type apiReading struct {
	existing chatsim.Existing
	names    chatsim.Names
}

func (r apiReading) known() (worker.Reading, worker.Names) {
	return worker.Reading(r.existing), map[chatsim.Names]worker.Names{chatsim.Exact: worker.ExactNames, chatsim.Fold: worker.FoldedNames}[r.names]
}

func apiReadings() (all []apiReading) {
	for _, existing := range []chatsim.Existing{chatsim.Append, chatsim.Replace, chatsim.Refuse} {
		for _, names := range []chatsim.Names{chatsim.Exact, chatsim.Fold} {
			all = append(all, apiReading{existing, names})
		}
	}
	return all
}

// A trial tells all readings of the simulator apart, whatever it does with conversations of unknown users, and leaves nothing.
func TestTrial(t *testing.T) {
	t.Parallel()
	dir := server(t)
	const accepted = worker.TrialAccepted
	for i, r := range apiReadings() {
		for k, test := range []struct {
			cfg           chatsim.Config
			user, chat    string
			updateMissing string
			page          int
			more          bool
		}{
			{cfg: chatsim.Config{}, user: accepted, chat: accepted, updateMissing: "the call fails with 51009", page: 100},
			{cfg: chatsim.Config{PageSize: 1000}, user: accepted, chat: accepted, updateMissing: "the call fails with 51009", page: 400, more: true},
			{cfg: chatsim.Config{NoUpdate: true, NotOfferedCode: chat.CodeNotOffered, PageSize: 37}, user: accepted, chat: accepted, page: 37},
			{cfg: chatsim.Config{Faults: []chatsim.Fault{{Command: chat.CreateContactGroup, Kind: "item-50001", For: 1}}},
				user: "the conversation fails with 50001", chat: accepted, updateMissing: "the call fails with 51009"},
			{cfg: chatsim.Config{Faults: []chatsim.Fault{{Command: chat.CreateContactGroup, Kind: "50001", For: 2}}},
				user: "the call fails with 50001", chat: "the call fails with 50001", updateMissing: "the call fails with 51009"},
		} {
			test.cfg.Existing, test.cfg.Names, test.cfg.Rate = r.existing, r.names, -1
			p := newPatient(t, dir, fmt.Sprintf("r%d-%d", i, k), test.cfg)
			report := p.look(tried)
			want := worker.TrialResult{UnknownUser: test.user, UnknownGroup: test.chat, UpdateMissing: test.updateMissing, Page: test.page, PageOrMore: test.more, DeleteMissing: accepted}
			want.Create, want.Names = r.known()
			if report.Trial == nil || !report.Trial.Kept {
				t.Fatalf("%+v, %d: got %+v", r, k, report)
			}
			got := report.Trial.TrialResult
			if test.more && got.Page >= test.page { // the other groups of the trial have some, too
				want.Page = got.Page
			}
			if got != want {
				t.Errorf("%+v, %d: got %+v, want %+v", r, k, got, want)
			}
			if !report.Healthy {
				t.Errorf("%+v, %d: got %+v, want it to be healthy", r, k, report)
			}
			if says := finding(report, "create").What; strings.Contains(says, "with update") && test.cfg.NoUpdate {
				t.Errorf("%+v, %d: got %q, though update is not offered", r, k, says)
			}
			if known := p.known(); known == nil || known.Create != want.Create || known.Names != want.Names || known.NoUpdateAt.IsZero() == test.cfg.NoUpdate {
				t.Errorf("%+v, %d: workers know %+v, want %+v", r, k, known, want)
			}
			p.wantEmpty()
		}
	}
}

// A trial writes nothing where it could not be cleaned up, or where the user is not for throwing away.
func TestTrialRefused(t *testing.T) {
	t.Parallel()
	dir := server(t)
	for i, test := range []struct {
		cfg     chatsim.Config
		account string
		group   bool
		want    string
		remedy  string
	}{
		{group: true, want: "the user has 1 group", remedy: "throw-away user"},
		{cfg: chatsim.Config{NoDelete: true, NotOfferedCode: chat.CodeNotOffered}, want: "del_contact_group is not offered", remedy: "leave --try-account out"},
		{cfg: chatsim.Config{NoGet: true, NotOfferedCode: chat.CodeNotOffered}, want: "get_contact_group is not offered", remedy: "leave --try-account out"},
		{cfg: chatsim.Config{FailIDs: map[string]int{tried: chat.CodeUserNotImported}}, want: "the app has no user throw-away", remedy: "account_import"},
		{cfg: chatsim.Config{FailIDs: map[string]int{tried: chat.CodeBadParameter}}, want: "cannot be read: 50002", remedy: "another user"},
		{account: chat.DefaultAdmin, want: "it is the admin account", remedy: "throw-away user"},
	} {
		test.cfg.Rate = -1
		p := newPatient(t, dir, fmt.Sprintf("refused%d", i), test.cfg)
		if test.group {
			if _, err := p.api.Create(t.Context(), chat.CreateRequest{FromAccount: tried, GroupName: "g", Items: []chat.Item{{Type: 1, ID: "x"}}}); err != nil {
				t.Fatal(err)
			}
		}
		if test.account == "" {
			test.account = tried
		}
		before := p.sim.Ledger().Added
		r := p.look(test.account)
		f := finding(r, tryAccount)
		if f.Result != Failed || !strings.Contains(f.What, "refused: ") || !strings.Contains(f.What, test.want) || !strings.Contains(f.Remedy, test.remedy) || r.Healthy {
			t.Errorf("%d: got %+v, want it refused: %s; %s", i, f, test.want, test.remedy)
		}
		if got := p.sim.Ledger().Added; got != before {
			t.Errorf("%d: got %d conversations written, want none", i, got-before)
		}
		p.known()
	}
}

// The simulator carries out what arrives at once, so nothing takes effect later.
func init() { trialLeft, trialSettle = 0, 0 }

// die has a process with a trial die after so many calls: its connection is gone, and its calls end. It reports whether the
// trial made so many.
func (p *patient) die(after int64) (died bool) {
	ctx, die := context.WithCancel(p.t.Context())
	defer die()
	var done atomic.Int64
	_, _ = p.see(ctx, nil, tried, func(e *EngineConfig) {
		e.Worker.Observer = deadly{metricsObserver{newMetrics(metrics.BuildInfo{})}, func() {
			if done.Add(1) == after { // before anything else is written
				died = true
				e.Namespace.Conn.NATS().Close()
				die()
			}
		}}
	})
	return died
}

// A deadly observer is told of each call.
type deadly struct {
	worker.Observer
	called func()
}

func (o deadly) CallDone(command, code string, took time.Duration) {
	o.Observer.CallDone(command, code, took)
	o.called()
}

// A trial that dies after any of its calls leaves a record, and the next one leaves nothing at all.
func TestTrialDies(t *testing.T) {
	t.Parallel()
	dir := server(t)
	const first, most = 12, 52 // the calls before the first one are of no trial
	var all sync.WaitGroup
	var deaths, leftOver atomic.Int64
	readings := apiReadings()
	for n := first; n <= most; n++ {
		r := readings[n%len(readings)]
		p := newPatient(t, dir, fmt.Sprintf("dies%d", n), chatsim.Config{Existing: r.existing, Names: r.names, Rate: -1})
		all.Go(func() {
			if !p.die(int64(n)) {
				return
			}
			deaths.Add(1)
			if len(p.sim.State()) > 0 {
				leftOver.Add(1)
			}
			report := p.look(tried)
			if create, names := r.known(); report.Trial == nil || report.Trial.Create != create || report.Trial.Names != names || !report.Healthy {
				t.Errorf("%s, %+v: got %+v", p.ns, r, report)
			}
			p.wantEmpty()
			p.known()
		})
	}
	all.Wait()
	if n := deaths.Load(); n < 20 || n == most-first+1 || leftOver.Load() < n/2 {
		t.Errorf("got %d deaths, %d of them with groups left; want one for each call of a trial, and more rounds than calls", n, leftOver.Load())
	}
}

// A stop lets the call under way end, and deletes what was written.
func TestTrialStopped(t *testing.T) {
	t.Parallel()
	p := newPatient(t, server(t), "stopped", chatsim.Config{Rate: -1})
	stop := make(chan struct{})
	r, err := p.see(t.Context(), stop, tried, func(e *EngineConfig) {
		end := sync.OnceFunc(func() { close(stop) })
		e.OnGrant = func(time.Duration) {
			if p.sim.Ledger().Added > 0 {
				end()
			}
		}
	})
	if !errors.Is(err, ErrStopped) || r.Trial != nil {
		t.Errorf("got %+v, %v; want %v", r, err, ErrStopped)
	}
	p.wantEmpty()
	if known := p.known(); known != nil {
		t.Errorf("got %+v known, want nothing", known)
	}
}

// Without --try-account, a doctor says what a trial that died has left, and touches nothing.
func TestTrialLeft(t *testing.T) {
	t.Parallel()
	p := newPatient(t, server(t), "left", chatsim.Config{Rate: -1})
	if !p.die(18) || len(p.sim.State()) == 0 {
		t.Fatal("the trial has left nothing")
	}
	left := p.sim.State()
	r := p.look("")
	f := finding(r, leftovers)
	if f.Result != Warning || !strings.Contains(f.What, tried) || !strings.Contains(f.Remedy, "groupferry doctor --try-account throw-away") || !r.Healthy {
		t.Errorf("got %+v", f)
	}
	if got := p.sim.State(); fmt.Sprint(got) != fmt.Sprint(left) {
		t.Errorf("got %v, want %v", got, left)
	}

	// With another API nothing can be done about it.
	other := newPatient(t, p.dir, p.ns, chatsim.Config{Rate: -1})
	for account, want := range map[string]string{"": Warning, tried: Failed} {
		f := finding(other.look(account), leftovers)
		if f.Result != want || !strings.Contains(f.What, "another API") || !strings.Contains(f.Remedy, "--api-url "+p.url+" --sdk-app-id 1400000000 --try-account") {
			t.Errorf("with another API: got %+v", f)
		}
	}
	other.wantEmpty()
}

// Beside a leader that works a doctor makes calls of get alone, with the permits of readers, and no trial: the limit holds.
func TestDoctorBesideLeader(t *testing.T) {
	t.Parallel()
	const rate = 50
	n := newNamespace(t, chatsim.Config{Rate: rate, NoUpdate: true, NotOfferedCode: chat.CodeNotOffered}) // the leader reads, too
	n.enqueue("one", 150)
	at := func(c *EngineConfig) { c.Rate = rate }
	leader := n.start(at)
	n.await("calls of a leader", func() bool { return n.sim.Ledger().Commands[chat.GetContactGroup].OK > 5 })
	p := &patient{t: t, dir: n.dir, sim: n.sim, url: n.url, api: n.client(chatsim.DemoSecretKey)}
	r, err := p.see(t.Context(), nil, tried, at)
	if err != nil {
		t.Error(err)
	}
	for name, want := range map[string]string{"credentials": Fine, "round trip": Fine, "commands": Skipped, tryAccount: Failed, "imports": Warning} {
		if f := finding(r, name); f.Result != want {
			t.Errorf("%s: got %+v, want %s", name, f, want)
		}
	}
	if f := finding(r, tryAccount); !strings.Contains(f.What, "here leads") {
		t.Errorf("got %+v, want the leader", f)
	}
	record := `{"v":1,"app":{"sdk_app_id":1400000000},"address":"` + n.url + `","account":"anna","groups":"groupferry-doctor-012345"}`
	if _, err := n.SetTrial(t.Context(), []byte(record), 0); err != nil {
		t.Fatal(err)
	}
	if r, err = p.see(t.Context(), nil, "", at); err != nil || finding(r, leftovers).Result != Warning {
		t.Errorf("got %+v, %v; want what is left", r, err)
	}
	n.awaitComplete("one")
	if err := leader.end(t); err != nil {
		t.Error(err)
	}
	l := n.sim.Ledger()
	for command, c := range l.Commands {
		if c.Throttled > 0 {
			t.Errorf("%s: got %d calls throttled: together they were over the limit", command, c.Throttled)
		}
	}
	if l.BadRequests > 0 {
		t.Errorf("got calls of commands that only a leader has permits for: %+v", l.BadSamples)
	}
}

// A rate of 1, whoever has it, leaves no half beside a leader: then no call is made, and nothing is said of the API.
func TestDoctorBesideLeaderAtOneCall(t *testing.T) {
	t.Parallel()
	n := newNamespace(t, chatsim.Config{Rate: -1})
	leader := n.start(func(*EngineConfig) {})
	n.await("a call of a leader", func() bool { return n.sim.Ledger().Commands[chat.GetContactGroup].OK > 0 })
	if err := n.SetRate(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	r := (&patient{t: t, dir: n.dir, sim: n.sim, url: n.url, api: n.client(chatsim.DemoSecretKey)}).look("")
	for _, name := range []string{"credentials", "clock", "commands", "round trip"} {
		if f := finding(r, name); f.Result != Skipped || !strings.Contains(f.What, "here leads, and a rate of 1 has no half") {
			t.Errorf("%s: got %+v", name, f)
		}
	}
	if err := leader.end(t); err != nil {
		t.Error(err)
	}
}

// What is free on a disk is a finding.
func TestDoctorDisk(t *testing.T) {
	defer func(was func(string) (int64, bool)) { freeSpace = was }(freeSpace)
	p := newPatient(t, filepath.Join(t.TempDir(), "data"), "disk", chatsim.Config{Rate: -1})
	for free, want := range map[int64]Finding{
		50 << 20:  {Result: Failed, What: "50 MiB free, for some 209,000 rows", Remedy: "make room, or name a directory on another disk with --data-dir"},
		500 << 20: {Result: Warning, What: "500 MiB free, for some 2,097,000 rows", Remedy: "make room, or name a directory on another disk with --data-dir"},
		50 << 30:  {Result: Fine, What: "50 GiB free, for some 214,748,000 rows"},
	} {
		freeSpace = func(string) (int64, bool) { return free, true }
		r := p.look("")
		f := finding(r, "data directory")
		if f.Result != want.Result || !strings.Contains(f.What, want.What) || f.Remedy != want.Remedy || r.Healthy == (want.Result == Failed) {
			t.Errorf("%d bytes free: got %+v, want %+v", free, f, want)
		}
	}
}

// What is no record of a trial names no user and no group: nothing is deleted because of it, and there is a way out.
func TestTrialRecordDamaged(t *testing.T) {
	t.Parallel()
	p := newPatient(t, server(t), "damaged", chatsim.Config{Rate: -1})
	for _, group := range []string{"work-user", "-user", "groupferry-doctor-user"} {
		if _, err := p.api.Create(t.Context(), chat.CreateRequest{FromAccount: "anna", GroupName: group, Items: []chat.Item{{Type: 1, ID: "x"}}}); err != nil {
			t.Fatal(err)
		}
	}
	before := fmt.Sprint(p.sim.State())
	n, err := Open(t.Context(), broker.Config{DataDir: p.dir, Namespace: p.ns})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	revision := uint64(0)
	for i, test := range []struct{ record, what, remedy string }{
		{`{"v":1,"account":"anna","groups":"work"`, "damaged", "or name another namespace with --namespace"},
		{`{"v":1,"app":{"sdk_app_id":1400000000},"address":"` + p.url + `","account":"anna"}`, "damaged", "--namespace"},
		{`{"v":1,"app":{"sdk_app_id":1400000000},"address":"` + p.url + `","account":"anna","groups":"work"}`, "damaged", "--namespace"},
		{`{"v":1,"app":{"sdk_app_id":1400000000},"address":"` + p.url + `","account":"anna","groups":"groupferry-doctor-"}`, "damaged", "--namespace"},
		{`{"v":1,"app":{"sdk_app_id":1400000000},"address":"` + p.url + `","account":"","groups":"groupferry-doctor-012345"}`, "damaged", "--namespace"},
		{`{"v":2,"app":{"sdk_app_id":1400000000},"what":"anna"}`, "another version", "doctor of that version"},
	} {
		if revision, err = n.SetTrial(t.Context(), []byte(test.record), revision); err != nil {
			t.Fatal(err)
		}
		_, _, err = n.leftTrial(t.Context())
		if err == nil || !strings.Contains(err.Error(), test.what) || !strings.Contains((&doctor{cfg: p.config("", nil)}).recordRemedy(err), test.remedy) {
			t.Errorf("%s: got %v", test.record, err)
		}
		if i == 2 {
			if f := finding(p.look(tried), leftovers); f.Result != Failed || !strings.Contains(f.What, test.what) || !strings.Contains(f.Remedy, test.remedy) {
				t.Errorf("%s: got %+v", test.record, f)
			}
		}
	}
	if got := fmt.Sprint(p.sim.State()); got != before {
		t.Errorf("got %s, want %s", got, before)
	}
}

// A process that stood still neither replaces nor removes the record of the trial that another one has begun.
func TestTrialRecordOfAnother(t *testing.T) {
	t.Parallel()
	n, err := Open(t.Context(), broker.Config{DataDir: server(t), Namespace: "two"})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	one, other := &doctor{ns: n}, &doctor{ns: n}
	if err := one.keepTrial(t.Context(), &trialRecord{Account: "one"}); err != nil {
		t.Fatal(err)
	}
	if _, other.recordRevision, err = n.Trial(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := other.keepTrial(t.Context(), &trialRecord{Account: "other"}); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*trialRecord{nil, {Account: "one"}} {
		if err := one.keepTrial(t.Context(), r); !errors.Is(err, queue.ErrTrialChanged) {
			t.Errorf("got %v, want %v", err, queue.ErrTrialChanged)
		}
	}
	if b, _, err := n.Trial(t.Context()); err != nil || !strings.Contains(string(b), `"other"`) {
		t.Errorf("got %s, %v; want that of the other", b, err)
	}
	if err := other.keepTrial(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

// A command that does not respond for now is no command that is not offered: nothing is tried, and workers learn nothing.
func TestTrialWithoutACommand(t *testing.T) {
	t.Parallel()
	p := newPatient(t, server(t), "without", chatsim.Config{Rate: -1})
	p.behind(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, string(chat.UpdateContactGroup)) {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		p.sim.ServeHTTP(w, r)
	})
	f := finding(p.look(tried), tryAccount)
	if f.Result != Failed || !strings.Contains(f.What, "refused: update_contact_group does not work (http-502)") {
		t.Errorf("got %+v", f)
	}
	if known := p.known(); known != nil {
		t.Errorf("workers know %+v, want nothing", known)
	}
	p.wantEmpty()
}

// A trial ends although the API is gone, says what is left, and the next one removes it.
func TestTrialWithoutAPI(t *testing.T) {
	t.Parallel()
	p := newPatient(t, server(t), "gone", chatsim.Config{Rate: -1})
	cfg := p.config(tried, func(e *EngineConfig) {
		e.OnGrant = func(time.Duration) {
			if p.sim.Ledger().Added > 0 {
				p.sim.Configure(func(c *chatsim.Config) { c.Faults = []chatsim.Fault{{Kind: "http-502"}} })
			}
		}
	})
	cfg.trialLimit, cfg.cleanLimit = 300*time.Millisecond, 300*time.Millisecond
	r, err := Doctor(t.Context(), nil, cfg)
	var said []string
	for _, f := range r.Findings {
		if f.Name == tryAccount {
			said = append(said, f.What)
		}
	}
	if err != nil || r.Trial != nil || len(said) != 2 || !strings.Contains(said[0], "not ended within 300ms") || !strings.Contains(said[1], "user throw-away may have groups") {
		t.Errorf("got %q, %v", said, err)
	}
	if len(p.sim.State()) == 0 {
		t.Error("nothing is left: the API was gone too early")
	}
	p.sim.Configure(func(c *chatsim.Config) { c.Faults = nil })
	if r := p.look(tried); !r.Healthy || r.Trial == nil {
		t.Errorf("got %+v", r)
	}
	p.known()
	p.wantEmpty()
}

// A doctor that loses NATS in the middle ends, and says so; it does not wait for it.
func TestDoctorLosesNATS(t *testing.T) {
	t.Parallel()
	p := newPatient(t, server(t), "lost", chatsim.Config{Rate: -1})
	lost := false
	cfg := p.config(tried, func(e *EngineConfig) {
		e.Worker.Observer = deadly{metricsObserver{newMetrics(metrics.BuildInfo{})}, func() {
			if !lost && p.sim.Ledger().Added > 0 {
				lost = true
				e.Namespace.Conn.NATS().Close()
			}
		}}
	})
	cfg.lapseLimit = 100 * time.Millisecond
	r, err := Doctor(t.Context(), nil, cfg)
	f := finding(r, "calls")
	if err != nil || f.Result != Failed || !strings.Contains(f.What, "the lease was lost") || !strings.Contains(f.Remedy, "groupferry doctor") {
		t.Errorf("got %+v, %v", r, err)
	}
}

// The calls that find out what is offered are for nobody: not for the caller either, as whom an API may take an empty user.
func TestDoctorCallsForNobody(t *testing.T) {
	t.Parallel()
	p := newPatient(t, server(t), "nobody", chatsim.Config{Rate: -1})
	var mu sync.Mutex
	asked := map[string]int{}
	p.behind(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var named struct {
			User string `json:"From_Account"`
		}
		json.Unmarshal(body, &named)
		command := strings.TrimPrefix(r.URL.Path, chat.PathPrefix)
		mu.Lock()
		asked[command]++
		if command != string(chat.GetContactGroup) && (len(named.User) <= chat.MaxUserIDBytes || strings.Contains(string(body), `""`) || strings.Contains(string(body), `"Type":`)) {
			t.Errorf("%s: got %s", command, body)
		}
		mu.Unlock()
		r.Body = io.NopCloser(bytes.NewReader(body))
		p.sim.ServeHTTP(w, r)
	})
	if f := finding(p.look(""), "commands"); f.Result != Fine || len(asked) != 4 {
		t.Errorf("got %+v, calls %v", f, asked)
	}
}
