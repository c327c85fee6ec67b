package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"groupferry/importer"
	"groupferry/internal/broker"
	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
	"groupferry/internal/job"
	"groupferry/internal/longtest"
	"groupferry/internal/queue"
)

var (
	nightRuns = flag.Int("nights", 0, "random runs of nights of a sync; 0: a few, and more in the long tests")
	nightSeed = flag.Uint64("nights-seed", 1, "of the first of them, the next has one more; 0: random ones. A failure tells its own")
)

// TestNights takes a small sync through random nights, and compares each plan, each call and the API in the end with an
// oracle that knows no snapshots: it keeps what the results said, night by night.
//
//	go test ./internal/app -run TestNights -nights 500 -nights-seed 1
func TestNights(t *testing.T) {
	runs := *nightRuns
	switch {
	case runs == 0 && longtest.Asked():
		runs = 10
	case runs == 0:
		runs = 3
	}
	t.Run("seeds", func(t *testing.T) {
		for i := range runs {
			seed := *nightSeed + uint64(i)
			if *nightSeed == 0 {
				seed = rand.Uint64()
			}
			t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
				t.Parallel()
				newWorld(t, seed, *nightRuns > 0 || longtest.Asked()).run()
			})
		}
	})
}

// A conv is one conversation of a group.
type conv struct {
	user, group string
	item        chat.Item
}

// key orders the conversations of a group as the limits take them.
func (c conv) key() string { return fmt.Sprintf("%d%s", c.item.Type, c.item.ID) }

// convs are conversations, and whether each is in its group.
type convs map[conv]bool

func (c convs) applied() convs {
	there := maps.Clone(c)
	maps.DeleteFunc(there, func(_ conv, applied bool) bool { return !applied })
	return there
}

// A world is a namespace, and the APIs that a sync has been for.
type world struct {
	*namespace
	seed uint64
	rng  *rand.Rand
	log  []string // what was done
	apis []*syncedAPI
	api  *syncedAPI // the present one
	work *engineRun
	kill context.CancelFunc // of work

	began    time.Time
	hard     bool   // a process may leave its lease behind, which the next one waits for
	rows     convs  // what is wanted at present; all false
	files    *input // that have fileRows
	fileRows convs
	limits   bool
	mirrors  bool // most nights are in mirror mode
	variants bool // some names differ in case only: then what the API holds in the end is compared, whatever the case
	clean    bool // no rows are rejected
	batches  int
}

// A syncedAPI is a simulator, and what an oracle says about the sync for it.
type syncedAPI struct {
	sim    *chatsim.Sim
	url    string
	target string

	base       convs  // what the nights before the pending one have said
	unsure     convs  // of these: they may be there
	maybe      convs  // nobody but the queue knows whether they were under way when a night was cut off
	removes    convs  // of the pending night
	mayRemove  convs  // what was ever to be removed
	mirror     bool   // the pending night
	second     convs  // rows of the last night of another sync, with users of its own; nil before its first
	secondID   string // of its last import
	gone       convs  // what it does not try to remove again
	secondLost bool   // somebody damaged its snapshot, and no night of it was begun since
	leftover   bool   // it lost its snapshot, once
	foreign    convs  // that somebody else put in
	orphans    convs  // that no snapshot has any more
	may        convs  // what was ever wanted in a night that was begun
	pending    string // import
	number     int
	wants      convs // all of the pending night
	jobs       convs // of the pending night
	content    string
	full       bool
	lost       bool  // somebody damaged the snapshot, and no night was begun since
	protected  convs // must not be sent

	mu   sync.Mutex
	sent []sent
}

// sent is a conversation in a call.
type sent struct {
	conv
	remove  bool
	at      time.Time
	command string
}

// ServeHTTP notes what is sent, and passes it on.
func (a *syncedAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	type item struct {
		User  string `json:"To_Account"`
		Group string `json:"ToGroupId"`
	}
	var call struct {
		User   string `json:"From_Account"`
		Create []struct {
			GroupName   string
			ContactItem []item
		} `json:"GroupContactItem"`
		Update struct {
			OldGroupName      string
			ContactUpdateItem []struct {
				ContactOptType int
				ContactItem    item
			}
		} `json:"UpdateGroup"`
	}
	if strings.Contains(r.URL.Path, "contact_group") && json.Unmarshal(body, &call) == nil {
		a.mu.Lock()
		add := func(group string, i item, remove bool) {
			it := chat.Item{Type: chat.OneToOne, ID: i.User}
			if i.Group != "" {
				it = chat.Item{Type: chat.GroupChat, ID: i.Group}
			}
			a.sent = append(a.sent, sent{conv{call.User, group, it}, remove, time.Now(), filepath.Base(r.URL.Path)})
		}
		for _, g := range call.Create {
			for _, i := range g.ContactItem {
				add(g.GroupName, i, false)
			}
		}
		for _, i := range call.Update.ContactUpdateItem {
			add(call.Update.OldGroupName, i.ContactItem, i.ContactOptType == 2)
		}
		a.mu.Unlock()
	}
	a.sim.ServeHTTP(w, r)
}

func newWorld(t *testing.T, seed uint64, hard bool) *world {
	w := &world{began: time.Now(), hard: hard, seed: seed, rng: rand.New(rand.NewPCG(seed, 13)), rows: convs{}}
	w.limits, w.mirrors = w.rng.IntN(4) == 0, w.rng.IntN(2) == 0
	names := chatsim.Exact
	if w.variants = w.mirrors && !w.limits && w.rng.IntN(3) == 0; w.variants && w.rng.IntN(2) == 0 {
		names = chatsim.Fold
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("to repeat it: go test ./internal/app -run TestNights -nights 1 -nights-seed %d\n%s", seed, strings.Join(w.log, "\n"))
		}
	})
	existing := []chatsim.Existing{chatsim.Append, chatsim.Replace, chatsim.Refuse}[w.rng.IntN(3)]
	w.note("an API that does %s, names %s, limits %t, mirrors %t, variants %t", existing, names, w.limits, w.mirrors, w.variants)
	w.namespace = &namespace{t: t, dir: filepath.Join(t.TempDir(), "data")}
	w.Namespace = w.open()
	for range 2 {
		a := &syncedAPI{sim: chatsim.New(chatsim.Config{Rate: -1, Existing: existing, Names: names, Seed: seed}), base: convs{}, may: convs{},
			unsure: convs{}, maybe: convs{}, gone: convs{}, mayRemove: convs{}, foreign: convs{}, orphans: convs{}}
		server := httptest.NewServer(a)
		t.Cleanup(server.Close)
		a.url = server.URL
		address, err := chat.Address(a.url)
		if err != nil {
			t.Fatal(err)
		}
		a.target = Target(testApp, address)
		w.apis = append(w.apis, a)
	}
	w.use(w.apis[0])
	return w
}

func (w *world) use(a *syncedAPI) {
	w.api = a
	w.namespace.sim, w.namespace.url = a.sim, a.url
}

func (w *world) note(format string, args ...any) {
	w.log = append(w.log, fmt.Sprintf("%5.2f s: ", time.Since(w.began).Seconds())+fmt.Sprintf(format, args...))
}

// chance is true once in n times.
func (w *world) chance(n int) bool { return w.rng.IntN(n) == 0 }

func (w *world) run() {
	nights := 4 + w.rng.IntN(5)
	if !w.hard {
		nights = 4
	}
	for range nights {
		w.change()
		w.between()
		w.night()
		w.afterwards()
		if w.t.Failed() {
			return
		}
	}
	// Faults are over: one clean night, then one that has nothing to send, then one that has nothing to do.
	w.faults(0)
	w.clean, w.files = w.mirrors, nil
	for _, a := range w.apis {
		if a.number == 0 && a != w.api {
			continue
		}
		w.stop(false)
		w.use(a)
		var ids []string
		for i := range 4 {
			w.note("clean night %d of %s", i+1, a.target)
			at := w.attempt(w.Namespace, attempt{same: true, mirror: w.mirrors})
			for w.lostInMirror(at) { // one in add mode comes before, of the sync whose snapshot it is
				if a.lost {
					w.adopt(w.attempt(w.Namespace, attempt{same: true}))
				} else {
					w.secondSync(false)
				}
				at = w.attempt(w.Namespace, attempt{same: true, mirror: true})
			}
			if at.err != nil {
				w.t.Fatal(at.err)
			}
			w.adopt(at)
			ids = append(ids, a.pending)
			w.start()
			w.awaitOver()
			if w.t.Failed() {
				return
			}
		}
		w.check(ids)
		w.stop(false)
		w.checkSecond()
	}
}

// change changes what is wanted.
func (w *world) change() {
	users, groups := 3, 4
	if w.limits {
		users, groups = 2, 24
	}
	some := func() conv {
		it := chat.Item{Type: chat.OneToOne, ID: fmt.Sprintf("c%d", w.rng.IntN(8))}
		if w.chance(3) {
			it = chat.Item{Type: chat.GroupChat, ID: fmt.Sprintf("@TGS#%d", w.rng.IntN(4))}
		}
		group := fmt.Sprintf("g%d", w.rng.IntN(groups))
		if w.variants && w.chance(3) {
			group = strings.ToUpper(group)
		}
		return conv{fmt.Sprintf("u%d", w.rng.IntN(users)), group, it}
	}
	switch w.rng.IntN(6) {
	case 0:
		w.note("nothing changes")
		if len(w.rows) > 0 {
			return
		}
	case 1:
		for c := range w.rows { // many are gone
			if w.chance(2) {
				delete(w.rows, c)
			}
		}
	case 2:
		if w.limits { // a group on its way to the limit
			w.batches++
			for i := range 600 {
				w.rows[conv{"u0", "g1", chat.Item{Type: chat.OneToOne, ID: fmt.Sprintf("b%d-%d", w.batches%3, i)}}] = false
			}
		}
	}
	for range 1 + w.rng.IntN(25) {
		w.rows[some()] = false
	}
	for range w.rng.IntN(4) {
		delete(w.rows, some())
	}
	w.note("%d rows", len(w.rows))
}

// between does what people, faults and time do between two nights.
func (w *world) between() {
	ctx := w.t.Context()
	w.faults(w.rng.IntN(7))
	if w.chance(6) {
		w.note("another API")
		w.stop(w.chance(2))
		other := w.apis[0]
		if w.api == other {
			other = w.apis[1]
		}
		w.use(other)
		w.faults(w.rng.IntN(7))
	}
	if w.chance(4) {
		w.note("the process dies")
		w.reopen()
	}
	if w.chance(4) {
		gone, err := w.DeleteOlder(ctx, 0)
		w.note("delete old ones: %v, %v", gone, err)
		if err != nil {
			w.t.Error(err)
		}
		if s, err := w.Queue.Sync(ctx, "contacts", w.api.target); err == nil && slices.Contains(gone, s.Pending.Import) {
			w.t.Errorf("the pending night was deleted")
		}
	}
	if w.chance(6) {
		w.damage()
	}
	if w.mirrors && w.work == nil {
		w.intrude()
	}
	if w.chance(4) {
		w.secondSync(true)
	}
	if w.chance(2) {
		w.start()
	}
}

// secondSync is a night of another sync, in mirror mode; of other rows if it changes. It returns the import.
func (w *world) secondSync(changes bool) (id string) {
	a := w.api
	if changes || a.second == nil {
		a.second = convs{}
		for range 1 + w.rng.IntN(9) {
			it := chat.Item{Type: chat.OneToOne, ID: fmt.Sprintf("c%d", w.rng.IntN(5))}
			a.second[conv{fmt.Sprintf("x%d", w.rng.IntN(2)), fmt.Sprintf("g%d", w.rng.IntN(3)), it}] = false
		}
	}
	var lines []string
	for c := range a.second {
		lines = append(lines, c.user+","+c.group+","+c.item.ID)
	}
	all := Budget{Limited: true, Percent: 100}
	cfg := SyncConfig{Name: "second", Target: a.target, Holder: "a test", Mirror: true, Clear: true, Guards: SyncGuards{MaxShrink: all, MaxRemovals: all}}
	in := InputConfig{Files: []string{writeInput(w.t, lines...)}}
	night, err := w.ReadNight(w.t.Context(), in, cfg)
	if lost, ok := errors.AsType[*SnapshotError](err); ok { // its own, or that of the other one
		w.note("the other sync: %v", lost)
		a.leftover, cfg.Mirror, cfg.Clear = true, false, false
		night, err = w.ReadNight(w.t.Context(), in, cfg)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	defer night.Close()
	if a.secondID != "" && a.secondID != night.Record.ID { // it is over by now
		for r, err := range w.Results(w.t.Context(), a.secondID) {
			if err != nil {
				w.t.Fatal(err)
			}
			for _, c := range r.Conversations {
				if c.Op == job.Remove && job.Gone(c.Code) {
					a.gone[conv{r.FromAccount, r.GroupName, chat.Item{Type: c.Type, ID: c.ID}}] = true
				}
			}
		}
	}
	a.secondID = night.Record.ID
	w.enqueueNight(night)
	a.secondLost = false
	w.note("the other sync: import %s, night %d, %d rows", night.Record.ID, night.Number, len(a.second))
	return night.Record.ID
}

// checkSecond lets the other sync have its nights, and compares what the API has of it.
func (w *world) checkSecond() {
	a := w.api
	if a.second == nil {
		return
	}
	w.start()
	for range 4 {
		w.awaitEnd(w.secondSync(false))
	}
	w.stop(false)
	there := convs{}
	for user, groups := range a.sim.State() {
		for group, items := range groups {
			for _, it := range items {
				if c := (conv{user, group, it}); user[0] == 'x' {
					there[c] = true
					if !has(a.second, c) && !a.leftover && !a.gone[c] {
						w.t.Errorf("it is there, and the other sync does not want it: %+v", c)
					}
				}
			}
		}
	}
	for c := range a.second {
		if !there[c] {
			w.t.Errorf("the other sync wants it, and it is not there: %+v", c)
		}
	}
}

// intrude lets somebody else put conversations into groups, and make some.
func (w *world) intrude() {
	a := w.api
	var faults []chatsim.Fault // of our calls
	configure := func(change func(*chatsim.Config)) {
		if err := a.sim.Configure(change); err != nil {
			w.t.Fatal(err)
		}
	}
	configure(func(c *chatsim.Config) { faults, c.Faults = c.Faults, nil })
	defer configure(func(c *chatsim.Config) { c.Faults = faults })
	for range w.rng.IntN(3) {
		c := conv{fmt.Sprintf("u%d", w.rng.IntN(3)), fmt.Sprintf("g%d", w.rng.IntN(4)), chat.Item{Type: chat.OneToOne, ID: fmt.Sprintf("f%d", w.rng.IntN(3))}}
		server := httptest.NewServer(a.sim)
		client, err := chat.New(chat.Config{BaseURL: server.URL, SDKAppID: chatsim.DemoSDKAppID, Admin: "administrator", SecretKey: chatsim.DemoSecretKey})
		if err != nil {
			w.t.Fatal(err)
		}
		_, err = client.Update(w.t.Context(), chat.UpdateRequest{FromAccount: c.user, GroupName: c.group, Add: []chat.Item{c.item}})
		items, there := groupOf(a.sim, c)
		if err != nil && !there && w.chance(2) {
			_, _ = client.Create(w.t.Context(), chat.CreateRequest{FromAccount: c.user, GroupName: c.group, Items: []chat.Item{c.item}})
			items, _ = groupOf(a.sim, c)
		}
		server.Close()
		if slices.Contains(items, c.item) {
			w.note("somebody else adds %+v", c)
			a.foreign[c] = true
		}
	}
}

// groupOf is what the app has in a group; one whose name differs in case only may be the same.
func groupOf(sim *chatsim.Sim, c conv) (items []chat.Item, there bool) {
	for name, of := range sim.State()[c.user] {
		if strings.EqualFold(name, c.group) {
			items, there = append(items, of...), true
		}
	}
	return items, there
}

// faults sets what fails at the simulators.
func (w *world) faults(kind int) {
	var faults []chatsim.Fault
	var latency time.Duration
	failing := map[string]int{}
	switch kind {
	case 1:
		faults = []chatsim.Fault{{Kind: "item-51007", Share: 0.3}}
	case 2:
		failing = map[string]int{"u1": chat.CodeUserNotImported, "c3": chat.CodeUserNotImported}
		if w.hard && !w.limits { // it takes seconds to give up
			faults = []chatsim.Fault{{Kind: "50004", Share: 0.3}}
		}
	case 3:
		faults = []chatsim.Fault{{Kind: chatsim.Lost, Share: 1, For: 2}}
		latency = 5 * time.Millisecond
	case 4:
		latency = 20 * time.Millisecond
	case 6:
		if w.hard { // it takes seconds until nothing can come any more
			faults = []chatsim.Fault{{Kind: chatsim.Late, Share: 0.2, For: 10}}
		}
	case 5:
		faults = []chatsim.Fault{{Kind: "item-30001", Share: 0.1}}
		failing = map[string]int{"u0": chat.CodeUserNotImported}
		latency = 5 * time.Millisecond
	}
	w.note("faults: %v, failing %v, latency %v", faults, failing, latency)
	for _, a := range w.apis {
		if err := a.sim.Configure(func(c *chatsim.Config) { c.Faults, c.FailIDs, c.Latency = faults, failing, latency }); err != nil {
			w.t.Fatal(err)
		}
	}
}

// damage deletes the snapshot, or a part of it.
func (w *world) damage() {
	ctx := w.t.Context()
	s, err := w.Queue.Sync(ctx, "contacts", w.api.target)
	if errors.Is(err, queue.ErrNoSync) || s.Object == "" {
		return
	}
	js, err := w.Conn.JetStream().Stream(ctx, "OBJ_"+w.Conn.Namespace()+"-snapshots")
	if err != nil {
		w.t.Fatal(err)
	}
	chunks := "$O." + w.Conn.Namespace() + "-snapshots.C." + strings.Replace(s.Object, "/", ".", 1)
	all := w.chance(2)
	w.note("the snapshot %s is damaged, all of them %t", s.Object, all)
	if all {
		err = js.Purge(ctx)
	} else if last, lerr := js.GetLastMsgForSubject(ctx, chunks); lerr == nil {
		err = js.DeleteMsg(ctx, last.Sequence)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	for _, a := range w.apis {
		if s, err := w.Queue.Sync(ctx, "contacts", a.target); err == nil && s.Object != "" && (a == w.api || all) {
			a.lost = true
		}
		a.secondLost = a.secondLost || all && a.second != nil
	}
}

// start lets a process work for the present API.
func (w *world) start() {
	if w.work != nil {
		return
	}
	w.note("a process works")
	w.protect()
	hard, kill := context.WithCancel(context.Background())
	n := w.open()
	e, err := NewEngine(w.t.Context(), EngineConfig{
		Namespace: n, App: testApp, Rate: 1000, Timeout: 10 * time.Second, Host: "here", API: w.client(chatsim.DemoSecretKey),
		Name: fmt.Sprintf("%d-%d", w.seed, time.Now().UnixNano()),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	stopped := make(chan struct{})
	w.work = &engineRun{Engine: e, stop: sync.OnceFunc(func() { close(stopped) }), done: make(chan error, 1)}
	w.kill = kill
	go func() {
		err := e.Run(hard, stopped)
		n.Close()
		w.work.done <- err
	}()
	w.t.Cleanup(kill)
}

// stop ends the process that works.
func (w *world) stop(hard bool) {
	if w.work == nil {
		return
	}
	hard = hard && w.hard
	w.note("it stops, hard %t", hard)
	if hard {
		w.kill()
	}
	if err := w.work.end(w.t); err != nil && !hard {
		w.t.Error(err)
	}
	w.work = nil
}

// reopen is the end of all processes, and the beginning of new ones.
func (w *world) reopen() {
	w.stop(true)
	w.Namespace.Close()
	w.Namespace = w.open()
}

// protect adds what the pending night has by now to what must not be sent again.
func (w *world) protect() {
	a := w.api
	if a.pending == "" {
		return
	}
	applied := w.results(a.pending).applied()
	w.flushSent() // after that: what was sent in between may have got its result by then
	maps.Copy(a.protected, applied)
}

// flushSent checks what was sent since the last time.
func (w *world) flushSent() {
	a := w.api
	a.mu.Lock()
	all := a.sent
	a.sent = nil
	a.mu.Unlock()
	again, unwanted, removed := convs{}, convs{}, convs{}
	for _, c := range all {
		if c.user[0] == 'x' {
			continue
		}
		if c.remove {
			if !a.mayRemove[c.conv] {
				removed[c.conv] = true
			}
			continue
		}
		if a.protected[c.conv] {
			again[c.conv] = true
			w.note("sent again: %+v at %.3f s by %s", c.conv, c.at.Sub(w.began).Seconds(), c.command)
		}
		if _, ok := a.may[c.conv]; !ok {
			unwanted[c.conv] = true
		}
	}
	w.same("sent again, with a result by then", again, convs{})
	w.same("sent, and never wanted", unwanted, convs{})
	w.same("removed, and never to be", removed, convs{})
}

// results are what the results of an import say.
func (w *world) results(id string) convs {
	all := convs{}
	for r, err := range w.Results(w.t.Context(), id) {
		if errors.Is(err, queue.ErrNoImport) {
			return convs{}
		}
		if err != nil {
			w.t.Fatal(err)
		}
		for _, c := range r.Conversations {
			if c.Op != job.Remove {
				all[conv{r.FromAccount, r.GroupName, chat.Item{Type: c.Type, ID: c.ID}}] = c.Code == ""
			}
		}
	}
	return all
}

// An attempt is one process that prepares a night.
type attempt struct {
	// how
	rows   convs // nil: those of the world
	same   bool  // the files of the last attempt, if they have these rows
	full   bool
	mirror bool
	clear  bool // users without rows, too
	accept string
	dies   time.Duration // unless it is 0
	until  int           // how far it goes: 0 is to the end
	wait   bool
	races  bool // with another one

	// what came of it
	err       error
	id        string
	number    int
	content   string
	continued bool
	nothing   bool
	jobs      convs
	removes   convs
	input     *input
}

// An input is what was written as files.
type input struct {
	files     []string
	withheld  map[string]bool // users with rejected rows
	suspended bool            // a rejected row has no user
}

// How far an attempt goes.
const (
	toRead = 1 + iota
	toBegin
)

// write writes the rows as files, with duplicates and rows that are rejected.
func (w *world) write(rows convs) *input {
	in := &input{withheld: map[string]bool{}}
	var lines []string
	for c := range rows {
		line := fmt.Sprintf("%s,%s,1,%s,", c.user, c.group, c.item.ID)
		if c.item.Type == chat.GroupChat {
			line = fmt.Sprintf("%s,%s,2,,%s", c.user, c.group, c.item.ID)
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	for range w.rng.IntN(3) {
		if len(lines) > 0 {
			lines = append(lines, lines[w.rng.IntN(len(lines))])
		}
		switch {
		case w.clean, w.chance(2):
		case w.mirrors && !w.chance(4):
			user := fmt.Sprintf("u%d", w.rng.IntN(3))
			in.withheld[user] = true
			lines = append(lines, user+",,1,x,")
		default:
			in.suspended = true
			lines = append(lines, ",g,1,x,")
		}
	}
	w.rng.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
	dir := w.t.TempDir()
	parts := [][]string{lines}
	if w.chance(3) {
		n := w.rng.IntN(len(lines) + 1)
		parts = [][]string{lines[:n], lines[n:]}
	}
	for i, part := range parts {
		text := "from_account,group_name,type,to_account,to_group_id\n"
		for _, line := range part {
			text += line + "\n"
		}
		in.files = append(in.files, filepath.Join(dir, fmt.Sprintf("%d.csv", i)))
		if err := os.WriteFile(in.files[i], []byte(text), 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
	return in
}

// attempt prepares a night as import does.
func (w *world) attempt(n *Namespace, at attempt) *attempt {
	if at.rows == nil {
		at.rows = maps.Clone(w.rows)
	}
	if w.files == nil || !maps.Equal(w.fileRows, at.rows) || !at.same && !w.chance(4) {
		w.files, w.fileRows = w.write(at.rows), at.rows
	}
	return w.attemptFiles(n, w.files, at)
}

func (w *world) attemptFiles(n *Namespace, files *input, at attempt) *attempt {
	at.input = files
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if at.dies > 0 {
		defer time.AfterFunc(at.dies, cancel).Stop()
	}
	cfg := SyncConfig{Name: "contacts", Target: w.api.target, Holder: "a test", Full: at.full, Mirror: at.mirror, Clear: at.clear, Guards: SyncGuards{
		MaxShrink: Budget{Limited: true, Percent: 100}, MaxRemovals: Budget{Limited: true, Percent: 100}, Accept: at.accept,
	}}
	if at.wait {
		cfg.Waiting = func(*queue.LockedError) {}
	}
	dir := w.t.TempDir()
	night, err := n.ReadNight(ctx, InputConfig{
		Files: files.files, MaxRejects: Budget{Limited: true, Percent: 90}, AllowEmpty: true,
		Rejects: filepath.Join(dir, "rejects.csv"),
	}, cfg)
	if at.err = err; err != nil {
		if refused, ok := errors.AsType[*ShrinkError](err); ok && at.accept == "" {
			for _, accept := range []string{"0123456789abcdef", refused.Import} {
				at.accept = accept
				got := w.attemptFiles(n, files, at)
				if got.err != nil && ctx.Err() != nil {
					return got
				}
				// A process that works may complete the night before in between, and then that is what counts.
				if !at.races && w.work == nil && errors.As(got.err, new(*ShrinkError)) == (accept == refused.Import) {
					w.t.Errorf("refused %v, and with --accept %s: %v", refused, accept, got.err)
				}
				if accept == refused.Import {
					return got
				}
			}
		}
		return &at
	}
	defer night.Close()
	defer night.Release(context.Background())
	at.id, at.number, at.content, at.continued, at.nothing = night.Record.ID, night.Number, night.content, night.Continued, night.NothingToDo
	at.jobs, at.removes = convs{}, convs{}
	for j, err := range night.Plan.Jobs() {
		if err != nil {
			w.t.Error(err)
		}
		for _, c := range j.Conversations {
			if c.Op == job.Keep {
				continue
			}
			key := conv{j.FromAccount, j.GroupName, chat.Item{Type: c.Type, ID: c.ID}}
			if _, twice := at.jobs[key]; twice {
				w.t.Errorf("%+v is in the plan twice", key)
			}
			if c.Op == job.Remove {
				at.removes[key] = false
			} else {
				at.jobs[key] = false
			}
		}
	}
	if at.until == toRead {
		return &at
	}
	stored, _, err := n.Begin(ctx, night.Record)
	if at.err = err; err != nil || at.until == toBegin {
		return &at
	}
	if stored.State == queue.Enqueueing {
		_, at.err = night.Enqueue(ctx, n, nil)
	}
	return &at
}

// night is one night, with all that can happen in it.
func (w *world) night() {
	at := attempt{full: w.chance(8), mirror: w.mirrors && !w.chance(5)}
	at.clear = at.mirror && w.chance(3)
	switch kind := w.rng.IntN(8); kind {
	case 0, 1: // the process dies in it, and the same command comes again
		for range 1 + w.rng.IntN(2) {
			dying := at
			switch w.rng.IntN(3) {
			case 0:
				dying.until = 1 + w.rng.IntN(2)
			default:
				dying.dies = time.Duration(w.rng.IntN(40)) * time.Millisecond
			}
			got := w.attempt(w.Namespace, dying)
			w.note("it dies at %d or after %v: import %s, night %d, %v", dying.until, dying.dies, got.id, got.number, got.err)
			w.reopen()
			w.adopt(got)
			if w.chance(3) {
				w.change()
			}
		}
	case 2, 3: // two at once
		at.races = true
		other := attempt{rows: w.rows, races: true, mirror: at.mirror != w.chance(4) && w.mirrors}
		at.wait, other.wait = w.chance(2), w.chance(2)
		if w.chance(2) {
			w.change()
		}
		at.rows = maps.Clone(w.rows)
		one, two := w.write(at.rows), w.write(other.rows)
		n := w.open()
		defer n.Close()
		var both sync.WaitGroup
		var first, second *attempt
		both.Go(func() { first = w.attemptFiles(w.Namespace, one, at) })
		both.Go(func() { second = w.attemptFiles(n, two, other) })
		both.Wait()
		w.note("two at once: import %s, night %d, %v; import %s, night %d, %v",
			first.id, first.number, first.err, second.id, second.number, second.err)
		for _, got := range []*attempt{first, second} {
			if got.err != nil && !errors.As(got.err, new(*queue.LockedError)) && !errors.As(got.err, new(*ShrinkError)) && !errors.Is(got.err, queue.ErrCancelled) &&
				!w.lostInMirror(got) {
				w.t.Errorf("two at once: got %v", got.err)
			}
			if got.err != nil && got.wait && errors.As(got.err, new(*queue.LockedError)) {
				w.t.Errorf("waiting: got %v", got.err)
			}
		}
		w.adopt(first, second)
		return
	}
	before := w.api.pending
	got := w.attempt(w.Namespace, at)
	if w.lostInMirror(got) {
		w.note("%v", got.err)
		at.mirror, at.clear = false, false
		got = w.attempt(w.Namespace, at)
	}
	w.note("import %s, night %d, full %t, mirror %t, continued %t, nothing to do %t, %v", got.id, got.number, got.full, got.mirror,
		got.continued, got.nothing, got.err)
	if got.err != nil && !(errors.Is(got.err, queue.ErrCancelled) && got.continued) {
		w.t.Errorf("night: %v", got.err)
	}
	w.adopt(got)
	if before != "" && before != w.api.pending {
		_, stats, err := w.Retry(w.t.Context(), before, nil, nil)
		if (err != nil || stats.Jobs > 0) && !errors.As(err, new(*queue.NewerNightError)) && !errors.Is(err, queue.ErrCancelled) {
			w.t.Errorf("retry of the night before: got %+v, %v, want it refused", stats, err)
		}
	}
}

// lostInMirror reports whether an attempt ended because a snapshot is lost, as it should.
func (w *world) lostInMirror(at *attempt) bool {
	e, lost := errors.AsType[*SnapshotError](at.err)
	return lost && at.mirror && (e.Sync == "contacts" && w.api.lost || e.Sync == "second" && w.api.secondLost)
}

// adopt lets the oracle follow what attempts came to.
func (w *world) adopt(attempts ...*attempt) {
	a := w.api
	s, err := w.Queue.Sync(w.t.Context(), "contacts", a.target)
	if errors.Is(err, queue.ErrNoSync) {
		return
	}
	if err != nil {
		w.t.Fatal(err)
	}
	slices.SortFunc(attempts, func(x, y *attempt) int { return x.number - y.number })
	// One that died may have begun a night, which only the record knows.
	for _, at := range attempts {
		if at.err != nil && at.id == "" && s.Pending != nil && s.Night > a.number && len(attempts) == 1 {
			at.id, at.number, at.content = s.Pending.Import, s.Night, s.Pending.Content
		}
	}
	before, took := a.protected, 0
	for _, at := range attempts {
		switch {
		case at.id == "":
		case at.number <= a.number: // continued, or nothing to do
			if at.id != a.pending && at.number == a.number {
				w.t.Errorf("night %d is import %s and %s", at.number, a.pending, at.id)
			}
			if at.nothing {
				i, err := w.Import(w.t.Context(), at.id)
				if err != nil || i.State != queue.Complete || i.Counts.Results > 0 || at.content != a.content || at.full {
					w.t.Errorf("nothing to do: got import %+v, %v", i, err)
				}
			} else if at.jobs != nil {
				w.same("jobs of the night that is continued", at.jobs, a.jobs)
				w.same("removals of the night that is continued", at.removes, a.removes)
			}
		default:
			took++
			if w.take(at) { // all is sent again
				before = nil
			}
		}
	}
	if took > 0 { // calls of each of these nights may have been made by now
		after := a.protected
		a.protected = maps.Clone(before)
		maps.DeleteFunc(a.protected, func(c conv, _ bool) bool { return !has(after, c) })
		w.flushSent()
		a.protected = after
	}
	if s.Night != a.number || s.Pending.Import != a.pending {
		w.t.Errorf("the record has night %d, import %s; want %d, %s", s.Night, s.Pending.Import, a.number, a.pending)
	}
	w.checkRecord(s)
}

// take moves the oracle on to a new night, and reports whether that one sends again what is there.
func (w *world) take(at *attempt) (again bool) {
	a := w.api
	if at.number != a.number+1 {
		w.t.Errorf("got night %d after %d", at.number, a.number)
	}
	lost := a.lost
	inFlight := convs{} // maybe: jobs of the night before without a result
	if a.pending != "" {
		if lost {
			maps.Copy(a.orphans, a.base.applied())
			maps.Copy(a.orphans, a.unsure)
			maps.Copy(a.orphans, a.maybe)
			a.base, a.unsure, a.maybe = convs{}, convs{}, convs{}
		}
		a.lost = false
		i, err := w.Import(w.t.Context(), a.pending)
		if err != nil || !i.State.Over() {
			w.t.Errorf("the night before, %s: got %v %v, want it to be over", a.pending, i.State, err)
		}
		ended := w.fold(a.pending)
		for _, jobs := range []convs{a.jobs, a.removes} {
			for c := range jobs {
				if !ended[c] {
					inFlight[c], a.maybe[c] = true, true
				}
			}
		}
		for j, err := range w.UnderWay(w.t.Context(), &i) { // of a retry; other jobs are gone by now
			if err != nil {
				w.t.Error(err)
			}
			for _, c := range j.Conversations {
				if key := (conv{j.FromAccount, j.GroupName, chat.Item{Type: c.Type, ID: c.ID}}); c.Op != job.Keep {
					inFlight[key], a.maybe[key], a.base[key] = true, true, false
				}
			}
		}
	}
	a.wants, a.removes = w.expect(at)
	a.jobs = maps.Clone(a.wants)
	if !at.full {
		maps.DeleteFunc(a.jobs, func(c conv, _ bool) bool { return a.base[c] })
	}
	if at.jobs != nil {
		// Of what may have been under way only the queue knows.
		for _, all := range []struct{ got, want convs }{{at.jobs, a.jobs}, {at.removes, a.removes}} {
			for c := range a.maybe {
				if delete(all.want, c); has(all.got, c) {
					all.want[c] = false
				}
			}
		}
		if w.limits && len(a.maybe) > 0 { // nor which groups count
			a.jobs, a.removes = at.jobs, at.removes
			maps.Copy(a.wants, at.jobs)
		}
		w.same("jobs", at.jobs, a.jobs)
		w.same("removals", at.removes, a.removes)
	}
	maps.Copy(a.may, a.wants)
	for c := range a.removes {
		a.mayRemove[c] = true
	}
	a.protected = a.base.applied()
	maps.DeleteFunc(a.protected, func(c conv, _ bool) bool { return has(a.jobs, c) || has(a.removes, c) || inFlight[c] || a.maybe[c] })
	a.pending, a.number, a.content, a.full, a.mirror = at.id, at.number, at.content, at.full, at.mirror
	return lost || at.full
}

func has(all convs, c conv) bool {
	_, ok := all[c]
	return ok
}

// fold adds what the results of an import say to what is known, and returns what they are about.
func (w *world) fold(id string) convs {
	a := w.api
	ended := convs{}
	for r, err := range w.Results(w.t.Context(), id) {
		if err != nil {
			w.t.Fatal(err)
		}
		if r.Deleted || r.Anew {
			for _, all := range []convs{a.base, a.unsure} {
				maps.DeleteFunc(all, func(c conv, _ bool) bool { return c.user == r.FromAccount && c.group == r.GroupName })
			}
		}
		for _, c := range r.Conversations {
			key := conv{r.FromAccount, r.GroupName, chat.Item{Type: c.Type, ID: c.ID}}
			if r.Deleted {
				ended[key] = true
				delete(a.maybe, key)
				continue
			}
			refused := c.Code == "50001" || c.Code == "51007" || c.Code == "51008" || c.Code == "51010"
			ended[key] = true
			if !refused || c.Op == job.Remove && (c.Code == "50001" || c.Code == "51007") { // else it is as it was
				delete(a.maybe, key)
			}
			switch {
			case c.Op == job.Remove && (c.Code == "" || c.Code == "50001" || c.Code == "51007"):
				if delete(a.base, key); c.Code != "" {
					a.orphans[key] = true
				}
				delete(a.unsure, key)
			case c.Op == job.Remove && refused:
			case c.Op == job.Remove:
				a.base[key], a.unsure[key] = false, true
			default:
				live := a.base[key] || a.unsure[key]
				a.base[key] = c.Code == ""
				if delete(a.unsure, key); c.Code != "" && (!refused || live) { // to send it once more takes nothing out
					a.unsure[key] = true
				}
				if c.Code == "" {
					delete(a.orphans, key)
				}
			}
		}
	}
	return ended
}

// expect works out what a night wants, and what it removes.
func (w *world) expect(at *attempt) (wants, removes convs) {
	a := w.api
	present := map[string]bool{}
	for c := range at.rows {
		present[c.user] = true
	}
	over := map[string]bool{}
	for {
		removes = convs{}
		if at.mirror && a.mirror && !at.input.suspended {
			for c, applied := range a.base {
				if !has(at.rows, c) && (applied || a.unsure[c]) && (present[c.user] || at.clear) && !at.input.withheld[c.user] && !over[c.user] {
					removes[c] = false
				}
			}
		}
		stays := maps.Clone(a.base)
		maps.DeleteFunc(stays, func(c conv, _ bool) bool { return has(removes, c) })
		wants = wanted(at.rows, stays)
		more := false
		for c := range at.rows {
			if !has(wants, c) && !over[c.user] {
				over[c.user], more = true, true
			}
		}
		if !more {
			return wants, removes
		}
	}
}

// wanted are the rows that the limits let through.
func wanted(rows, base convs) convs {
	groups, size := map[string]map[string]bool{}, map[[2]string]int{}
	for c := range base.applied() {
		if groups[c.user] == nil {
			groups[c.user] = map[string]bool{}
		}
		groups[c.user][c.group] = true
		size[[2]string{c.user, c.group}]++
	}
	byUser := slices.SortedFunc(maps.Keys(rows), func(x, y conv) int {
		return strings.Compare(x.user+"\x00"+x.group+"\x00"+x.key(), y.user+"\x00"+y.group+"\x00"+y.key())
	})
	all := convs{}
	for _, c := range byUser {
		if groups[c.user] == nil {
			groups[c.user] = map[string]bool{}
		}
		if !groups[c.user][c.group] && len(groups[c.user]) >= chat.MaxGroupsPerUser {
			continue
		}
		groups[c.user][c.group] = true
		if at := [2]string{c.user, c.group}; !base[c] {
			if size[at] >= chat.MaxConversationsPerGroup {
				continue
			}
			size[at]++
		}
		all[c] = false
	}
	return all
}

func (w *world) same(what string, got, want convs) {
	if w.variants {
		return
	}
	var all []string
	for c := range want {
		if _, ok := got[c]; !ok {
			all = append(all, fmt.Sprintf("missing %+v", c))
		}
	}
	for c := range got {
		if _, ok := want[c]; !ok {
			all = append(all, fmt.Sprintf("too many %+v", c))
		}
	}
	if len(all) > 0 {
		slices.Sort(all)
		w.t.Errorf("%s, night %d:\n%s", what, w.api.number, strings.Join(all[:min(len(all), 10)], "\n"))
	}
}

// checkRecord compares the snapshot with what the oracle knows, and looks for what is left of old ones.
func (w *world) checkRecord(s queue.Sync) {
	a := w.api
	if s.Object == "" || a.lost {
		return
	}
	got, want := convs{}, a.base.applied()
	maps.Copy(want, a.unsure)
	maps.DeleteFunc(want, func(c conv, _ bool) bool { return a.maybe[c] })
	w.yieldSnapshot(w.t.Context(), s.Object, func(g importer.Group, err error) bool {
		if err != nil {
			w.t.Errorf("snapshot: %v", err)
			return false
		}
		for _, c := range g.Conversations {
			key := conv{g.FromAccount, g.GroupName, chat.Item{Type: c.Type, ID: c.ID}}
			if c.State != importer.Refused && !a.maybe[key] {
				got[key] = true
			}
		}
		return true
	})
	w.same("snapshot", got, want)
}

// afterwards works for a while, and does what people do then.
func (w *world) afterwards() {
	ctx := w.t.Context()
	switch w.rng.IntN(6) {
	case 0: // nobody works
		return
	case 1: // somebody does, for a moment
		w.start()
		time.Sleep(time.Duration(w.rng.IntN(30)) * time.Millisecond)
		if stop, hard := w.chance(2), w.chance(2); stop && w.hard { // the next process waits a second for its calls
			w.stop(hard)
		}
		return
	case 2:
		if w.api.pending == "" {
			return
		}
		if w.chance(2) {
			w.start()
		}
		err := w.Cancel(ctx, w.api.pending)
		w.note("cancel %s: %v", w.api.pending, err)
		return
	}
	w.start()
	w.awaitOver()
	for range w.rng.IntN(3) {
		if w.api.pending == "" {
			return
		}
		w.faults(w.rng.IntN(3))
		w.protect()
		_, stats, err := w.Retry(ctx, w.api.pending, nil, nil)
		w.note("retry: %+v, %v", stats, err)
		if w.chance(3) {
			return
		}
		w.awaitOver()
	}
}

// awaitOver waits for the end of the pending night, if there is one with a record.
func (w *world) awaitOver() {
	if w.api.pending != "" {
		w.awaitEnd(w.api.pending)
	}
}

func (w *world) awaitEnd(at string) {
	var last queue.Import
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		i, err := w.Import(w.t.Context(), at)
		if errors.Is(err, queue.ErrNoImport) || err == nil && (i.State.Over() || i.State == queue.Enqueueing || i.State == queue.Retrying) {
			return
		}
		if last = i; time.Now().After(end) {
			w.t.Fatalf("import %s does not end: %+v, %v", at, last, err)
		}
	}
}

// check compares the API with the oracle after clean nights, whose imports have these IDs.
func (w *world) check(ids []string) {
	a := w.api
	w.flushSent()
	if ids[3] != ids[2] && !w.limits {
		w.t.Errorf("clean nights: got imports %v, want the last one to have nothing to do", ids)
	}
	if len(a.jobs) > 0 && !w.limits && !w.variants {
		w.t.Errorf("the last night has %d conversations to send, want none", len(a.jobs))
	}
	name := func(c conv) conv {
		if w.variants {
			c.group = strings.ToLower(c.group)
		}
		return c
	}
	by := func(all convs) convs {
		named := convs{}
		for c := range all {
			named[name(c)] = true
		}
		return named
	}
	there := convs{}
	for user, groups := range a.sim.State() {
		if user[0] == 'x' {
			continue
		}
		for group, items := range groups {
			for _, it := range items {
				there[name(conv{user, group, it})] = true
			}
		}
	}
	wants, may, foreign, orphans, users := by(a.wants), by(a.may), by(a.foreign), by(a.orphans), map[string]bool{}
	for c := range w.rows {
		users[c.user] = true
	}
	for c := range wants {
		if !there[c] && !w.limits {
			w.t.Errorf("wanted, and not there: %+v", c)
		}
	}
	for c := range a.base.applied() {
		if !there[c] && !w.variants {
			w.t.Errorf("it is known to be there, and is not: %+v", c)
		}
	}
	for c := range foreign {
		if !there[c] {
			w.t.Errorf("somebody else added it, and it is gone: %+v", c)
		}
	}
	for c := range there {
		switch {
		case foreign[c]:
		case !may[c]:
			w.t.Errorf("it is there, and was never wanted: %+v", c)
		case w.mirrors && !w.limits && users[c.user] && !wants[c] && !orphans[c]:
			w.t.Errorf("it is there, and not wanted any more: %+v", c)
		}
	}
	bad := slices.DeleteFunc(a.sim.Ledger().BadSamples, func(b chatsim.BadRequest) bool {
		return w.variants && b.Reason == "the user has a group of the new name" // somebody else made it
	})
	if len(bad) > 0 && !w.limits {
		w.t.Errorf("bad requests: %+v", bad)
	}
	var objects int
	if s, err := w.Conn.StreamState(w.t.Context(), "OBJ_"+w.Conn.Namespace()+"-snapshots", "$O.*.C.contacts."+syncHash(w, a)+".>"); err == nil {
		objects = len(s.Subjects)
	} else if !errors.Is(err, broker.ErrNotFound) && !strings.Contains(err.Error(), "not found") {
		w.t.Error(err)
	}
	if objects > 2 {
		w.t.Errorf("got %d snapshots, want two at most", objects)
	}
}

// syncHash is the part of a snapshot's name that stands for the target.
func syncHash(w *world, a *syncedAPI) string {
	s, err := w.Queue.Sync(w.t.Context(), "contacts", a.target)
	if err != nil || s.Object == "" {
		return "none"
	}
	name, _, _ := strings.Cut(s.Object, "/")
	_, hash, _ := strings.Cut(name, ".")
	return hash
}

// The tests of this package wait more than they work.
func TestMain(m *testing.M) {
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// contacts is a sync of a namespace.
func (n *namespace) contacts() SyncConfig {
	return SyncConfig{Name: "contacts", Target: Target(testApp, n.url), Holder: "a test"}
}

// readNight reads lines as a night, or fails the test.
func (n *namespace) readNight(cfg SyncConfig, in InputConfig, lines ...string) *Night {
	n.t.Helper()
	in.Files = []string{writeInput(n.t, lines...)}
	night, err := n.ReadNight(n.t.Context(), in, cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { night.Close() })
	return night
}

// enqueueNight begins and enqueues a night, and lets the next one be prepared.
func (n *namespace) enqueueNight(night *Night) queue.Import {
	n.t.Helper()
	stored, _, err := n.Begin(n.t.Context(), night.Record)
	if err == nil && stored.State == queue.Enqueueing {
		_, err = night.Enqueue(n.t.Context(), n.Namespace, nil)
	}
	if err = errors.Join(err, night.Release(n.t.Context())); err != nil {
		n.t.Fatal(err)
	}
	return stored
}

// A process that stood still between the record of the sync and that of its import resumes while the next night is planned:
// what it has done by the fence is part of the base.
func TestNightOfAFrozenProcess(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1})
	frozen := n.readNight(n.contacts(), InputConfig{}, "a,g,b", "a,g,c")
	if err := frozen.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	e := n.start(nil)
	resumed := func(*importer.Plan) error {
		n.enqueueNight(frozen)
		n.awaitComplete(frozen.Record.ID)
		return nil
	}
	night := n.readNight(n.contacts(), InputConfig{OnRead: resumed}, "a,g,b", "a,g,c", "a,g,d")
	if night.Number != 2 || night.Plan.Summary.Conversations != 1 || night.Sync.Groups != 1 {
		t.Errorf("got night %d of %d conversations, on a snapshot of %d groups; want 2, 1, 1",
			night.Number, night.Plan.Summary.Conversations, night.Sync.Groups)
	}
	n.enqueueNight(night)
	n.awaitComplete(night.Record.ID)
	if l := n.sim.Ledger(); l.Readded > 0 || l.Conversations != 3 {
		t.Errorf("got %d conversations, %d of them sent twice, want 3 and none", l.Conversations, l.Readded)
	}
	if err := e.end(t); err != nil {
		t.Error(err)
	}
}

// The same content is another import where it goes to another API.
func TestNightsOfTwoTargets(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1})
	other := n.contacts()
	other.Target += "/other"
	first := n.enqueueNight(n.readNight(n.contacts(), InputConfig{}, "a,g,b"))
	second := n.enqueueNight(n.readNight(other, InputConfig{}, "a,g,b"))
	if first.ID == second.ID || first.Target == second.Target {
		t.Errorf("got imports %s for %s and %s for %s, want two", first.ID, first.Target, second.ID, second.Target)
	}
}

// A lost snapshot is reported once, however often the night is planned.
func TestLostSnapshotWarnsOnce(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1})
	n.enqueueNight(n.readNight(n.contacts(), InputConfig{}, "a,g,b"))
	e := n.start(nil)
	n.await("the first night", func() bool {
		all, err := n.Imports(t.Context())
		return err == nil && len(all) == 1 && all[0].State == queue.Complete
	})
	if err := e.end(t); err != nil {
		t.Error(err)
	}
	live := n.readNight(n.contacts(), InputConfig{}, "a,g,b", "a,g,c")
	n.enqueueNight(live) // and nobody works on it
	js, err := n.Conn.JetStream().Stream(t.Context(), "OBJ_"+n.Conn.Namespace()+"-snapshots")
	if err != nil || js.Purge(t.Context()) != nil {
		t.Fatal(err)
	}
	cfg := n.contacts()
	var warnings []string
	cfg.Warn = func(text string) { warnings = append(warnings, text) }
	night := n.readNight(cfg, InputConfig{}, "a,g,b", "a,g,c")
	if len(warnings) != 1 || !strings.Contains(warnings[0], "all groups of sync contacts are sent again") {
		t.Errorf("got warnings %q, want one", warnings)
	}
	if night.Number != 3 || night.Plan.Summary.Conversations != 2 {
		t.Errorf("got night %d with %d conversations, want 3 with 2", night.Number, night.Plan.Summary.Conversations)
	}
}
