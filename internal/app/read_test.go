package app

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"groupferry/importer"
	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
	"groupferry/internal/governor"
	"groupferry/internal/queue"
	"groupferry/worker"
)

// reading is the config of a process that reads.
func (n *namespace) reading(host string, change func(*EngineConfig)) ReadConfig {
	n.t.Helper()
	cfg := EngineConfig{
		Namespace: n.open(), API: n.client(chatsim.DemoSecretKey), App: testApp, Rate: 1000, Timeout: 10 * time.Second,
		Name: fmt.Sprintf("%s-%s-%d", n.t.Name(), host, time.Now().UnixNano()), Host: host,
	}
	if change != nil {
		change(&cfg)
	}
	return ReadConfig{Engine: cfg}
}

// put makes a group, as somebody else would.
func (n *namespace) put(user, group string, items ...chat.Item) {
	n.t.Helper()
	for part := range slices.Chunk(items, chat.MaxItemsPerCall) {
		_, err := n.client(chatsim.DemoSecretKey).Create(n.t.Context(), chat.CreateRequest{FromAccount: user, GroupName: group, Items: part})
		if err != nil {
			n.t.Fatal(err)
		}
	}
}

// people puts a group into the simulator for each of so many users, and returns their list.
func (n *namespace) people(users int) (list []string) {
	n.t.Helper()
	api := n.client(chatsim.DemoSecretKey)
	for i := range users {
		id := fmt.Sprintf("user%d", i)
		items := []chat.Item{{Type: 1, ID: "friend"}, {Type: 2, ID: fmt.Sprint("chat", i)}}
		if _, err := api.Create(n.t.Context(), chat.CreateRequest{FromAccount: id, GroupName: "g", Items: items}); err != nil {
			n.t.Fatal(err)
		}
		list = append(list, id)
	}
	return list
}

func userPlan(t *testing.T, list ...string) *importer.Plan {
	t.Helper()
	p, err := importer.Read(t.Context(), []string{"-"}, importer.Config{UsersOnly: true, Stdin: strings.NewReader(strings.Join(list, "\n"))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// export exports users, to a file unless that is "".
func (n *namespace) export(stop <-chan struct{}, cfg ReadConfig, users *importer.Plan, file string) (ExportReport, string, error) {
	n.t.Helper()
	var out bytes.Buffer
	r, err := Export(n.t.Context(), stop, ExportConfig{
		Read: cfg, Users: users, Stdout: &out, File: file, Target: "target", OnUnread: func(UnreadUser) {},
	})
	return r, out.String(), err
}

// A leader and readers share the limit of get: it is never exceeded, though each of them makes as many calls as it may, and
// one reader dies and another one takes over. The leader reads each group, for update is not offered.
func TestReadBesideLeader(t *testing.T) {
	t.Parallel()
	const rate = 100
	n := newNamespace(t, chatsim.Config{NoUpdate: true, NotOfferedCode: 60009, Rate: -1})
	list := n.people(120)
	if err := n.sim.Configure(func(c *chatsim.Config) { c.Rate = rate }); err != nil {
		t.Fatal(err)
	}
	n.enqueue("one", 250)
	slow := func(c *EngineConfig) { c.Rate, c.Timeout = rate, 3*time.Second }
	leader := n.start(slow)
	n.await("the leader to read", func() bool { return n.sim.Ledger().Commands[chat.GetContactGroup].OK > 10 })

	var waited atomic.Pointer[string]
	first := n.reading("first", slow)
	began := make(chan struct{})
	begin := sync.OnceFunc(func() { close(began) })
	dying, die := context.WithCancel(t.Context())
	defer die()
	first.OnRead = func(State) {
		begin()
		if waited.Load() != nil && dying.Err() == nil { // nobody hears of it any more, and its calls are under way
			first.Engine.Namespace.Close()
			die()
		}
	}
	firstDone := make(chan error, 1)
	go func() {
		_, err := Export(dying, nil, ExportConfig{Read: first, Users: userPlan(t, list...), Stdout: io.Discard, OnUnread: func(UnreadUser) {}})
		firstDone <- err
	}()
	<-began
	second := n.reading("second", func(c *EngineConfig) {
		slow(c)
		c.Waiting = func(host string) { waited.Store(&host) }
	})
	r, out, err := n.export(nil, second, userPlan(t, list...), "")
	if err != nil || !r.Complete || strings.Count(out, "\n") != 1+240 {
		t.Errorf("second: got %+v, %v and %d lines; want all users", r, err, strings.Count(out, "\n"))
	}
	if err := <-firstDone; err == nil {
		t.Error("first: got no error, though it died")
	}
	if host := waited.Load(); host == nil || *host != "first" {
		t.Errorf("the second waited for %v, want the first", host)
	}
	n.awaitComplete("one")
	if err := leader.end(t); err != nil {
		t.Error(err)
	}
	l := n.sim.Ledger().Commands[chat.GetContactGroup]
	if l.Throttled > 0 {
		t.Errorf("got %d calls throttled: together they were over the limit", l.Throttled)
	}
}

// A second reader ends, unless it is to wait, and says who reads.
func TestSecondReader(t *testing.T) {
	t.Parallel()
	n := newNamespace(t, chatsim.Config{Rate: -1, Latency: 20 * time.Millisecond})
	list := n.people(1)
	release, holding := make(chan struct{}), make(chan struct{})
	first := n.reading("first", nil)
	first.OnRead = func(State) {
		close(holding)
		<-release
	}
	done := make(chan error, 1)
	users := userPlan(t, list...)
	go func() {
		_, _, err := n.export(nil, first, users, "")
		done <- err
	}()
	<-holding
	_, _, err := n.export(nil, n.reading("second", nil), userPlan(t, list...), "")
	if busy, ok := errors.AsType[*ReadingError](err); !ok || busy.Host != "first" {
		t.Errorf("got %v, want that the first reads", err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
	// It left no trace: the next one begins at once.
	if _, _, err := n.export(nil, n.reading("third", nil), userPlan(t, list...), ""); err != nil {
		t.Error(err)
	}
}

// What is exported can be imported as it is, whatever the names are; an import takes no name with a control character.
func TestExportRoundTrip(t *testing.T) {
	t.Parallel()
	n := newNamespace(t, chatsim.Config{Rate: -1, PageSize: 7})
	one := func(id string) chat.Item { return chat.Item{Type: 1, ID: id} }
	for i, name := range []string{
		"a,b", `say "hi"`, "=1+1", "@SUM(A1)", "-2", "家族 ❤", " spaces ", "'", "#comment", "from_account", "a;b\\", `""`,
	} {
		n.put("ann", name, one("b,c"), one(`"`), one("=x"), chat.Item{Type: 2, ID: fmt.Sprintf("@TGS#%d", i)})
	}
	var many []chat.Item
	for i := range 250 {
		many = append(many, one(fmt.Sprint("friend", i)))
	}
	n.put("bob,\"x\"", "g", many...)
	want := n.sim.State()
	n.put("zed", "two\nlines", one("x"))

	users, err := importer.ReadUsers(t.Context(), func(yield func(string, error) bool) {
		for _, id := range []string{"ann", "bob,\"x\"", "ann", "zed", "nobody"} {
			if !yield(id, nil) {
				return
			}
		}
	}, importer.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer users.Close()
	r, out, err := n.export(nil, n.reading("here", nil), users, "")
	if err != nil || r.Users != 4 || r.WithoutGroups != 1 || r.Groups != 14 {
		t.Errorf("got %+v, %v; want 4 users, one without a group, and 14 groups", r, err)
	}
	in, err := ReadInput(t.Context(), InputConfig{Files: []string{"-"}, Importer: importer.Config{Stdin: strings.NewReader(out)}, Rejects: filepath.Join(t.TempDir(), "rejects.csv")})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if s := in.Plan.Summary; s.Rejected != 1 || s.Duplicates != 0 || s.Rows != r.Conversations {
		t.Errorf("got %+v of %d rows, want one rejected: the name of two lines", s, r.Conversations)
	}
	got := map[string]map[string][]chat.Item{}
	for j, err := range in.Plan.Jobs() {
		if err != nil {
			t.Fatal(err)
		}
		if got[j.FromAccount] == nil {
			got[j.FromAccount] = map[string][]chat.Item{}
		}
		for _, c := range j.Conversations {
			got[j.FromAccount][j.GroupName] = append(got[j.FromAccount][j.GroupName], chat.Item{Type: c.Type, ID: c.ID})
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// The same export continues where it was stopped or torn, reads what it could not read before, and makes the same file.
func TestExportContinues(t *testing.T) {
	t.Parallel()
	n := newNamespace(t, chatsim.Config{Rate: -1})
	list := n.people(400)
	users := userPlan(t, list...)
	if err := n.sim.Configure(func(c *chatsim.Config) { c.FailIDs = map[string]int{"user7": 50002, "user8": 50001} }); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "out.csv")

	// A stop after some users, and then a tear: of the file, and of what was written after the last save.
	stop := make(chan struct{})
	cfg := n.reading("here", nil)
	read := 0
	cfg.OnRead = func(State) {
		if read++; read == 20 {
			close(stop)
		}
	}
	r, _, err := n.export(stop, cfg, users, file)
	if !errors.Is(err, ErrStopped) || r.Users < 20 || r.Users >= 400 {
		t.Fatalf("stopped: got %+v, %v", r, err)
	}
	saved, err := os.ReadFile(file)
	if err != nil || saved[len(saved)-1] != '\n' {
		t.Fatalf("got %q, %v; want whole lines", saved, err)
	}
	edited := append([]byte("\ufeff"), saved...)
	if err := os.WriteFile(file, edited, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := n.export(nil, n.reading("here", nil), users, file); !errors.Is(err, ErrExportFile) {
		t.Errorf("edited: got %v", err)
	}
	if err := os.WriteFile(file, append(bytes.Clone(saved), "user1,g,1,fri"...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := n.export(nil, n.reading("here", nil), userPlan(t, "another"), file); !errors.Is(err, ErrExportFile) {
		t.Errorf("other users: got %v", err)
	}
	before := n.sim.Ledger().Commands[chat.GetContactGroup].Calls
	slices.Reverse(list) // the same users
	r2, _, err := n.export(nil, n.reading("here", nil), userPlan(t, list...), file)
	if err != nil || !r2.Complete || len(r2.Unread) != 1 || r2.Unread[0].FromAccount != "user7" || r2.Unread[0].Code != "50002" {
		t.Fatalf("continued: got %+v, %v; want all but user7", r2, err)
	}
	if n := n.sim.Ledger().Commands[chat.GetContactGroup].Calls - before; int64(n) > 400-r.Users+3 { // user7, who calls, and again
		t.Errorf("got %d calls for the rest after %d users: it began anew", n, r.Users)
	}
	// The same command reads the unread one, and nothing else. Then it is done.
	if err := n.sim.Configure(func(c *chatsim.Config) { c.FailIDs = map[string]int{"user7": 0} }); err != nil {
		t.Fatal(err)
	}
	r3, _, err := n.export(nil, n.reading("here", nil), users, file)
	if err != nil || r3.Users != 1 || len(r3.Unread) != 0 || r3.Calls != 2 {
		t.Errorf("again: got %+v, %v; want one user", r3, err)
	}
	if _, err := os.Stat(file + ".progress"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want the progress gone", err)
	}
	if _, _, err := n.export(nil, n.reading("here", nil), users, file); !errors.Is(err, ErrExportFile) {
		t.Errorf("complete: got %v, want that it is there", err)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(got)), "\n")
	slices.Sort(lines)
	if len(lines) != 1+2*399 || len(slices.Compact(lines)) != len(lines) {
		t.Errorf("got %d lines, want the header and two for each of 399 users, once", len(lines))
	}
}

// After the error of one user nobody is passed on any more, though others are read: it may have taken a part of that user.
func TestReadEachFails(t *testing.T) {
	t.Parallel()
	n := newNamespace(t, chatsim.Config{Rate: -1})
	cfg := n.reading("here", nil)
	cfg.Begin = func() (iter.Seq2[importer.PlannedUser, error], error) {
		return userPlan(t, n.people(40)...).Users(), nil
	}
	full, calls := errors.New("full"), 0
	_, _, err := readAll(t.Context(), nil, cfg, func(*UserList) error {
		if calls++; calls == 3 {
			return full
		}
		return nil
	})
	if !errors.Is(err, full) || calls != 3 {
		t.Errorf("got %v after %d users, want the error of the third", err, calls)
	}
}

// The progress says nothing of rows that could not be written.
func TestExportNotWritten(t *testing.T) {
	t.Parallel()
	file, err := openExport(filepath.Join(t.TempDir(), "out.csv"), "users", "target")
	if err == nil {
		err = file.begin()
	}
	if err != nil {
		t.Fatal(err)
	}
	w := newExportWriter(file)
	u := &UserList{List: worker.List{Groups: []worker.Group{{Name: "g", Items: []chat.Item{{Type: 1, ID: "a"}}}}}}
	if err := cmp.Or(w.header(), w.user(u, new(int64))); err != nil {
		t.Fatal(err)
	}
	file.state.Users++
	file.f.Close()
	if file.f, err = os.Open(file.name); err != nil { // as on a disk that has room for the progress alone
		t.Fatal(err)
	}
	defer file.f.Close()
	if err := w.save(file, nil); err == nil {
		t.Error("got no error of a file that cannot be written to")
	}
	if again, err := openExport(file.name, "users", "target"); err != nil || again.state.Users != 0 {
		t.Errorf("got progress %+v, %v; want that of the begin", again.state, err)
	}
}

// Of two exports that continue one file the later one has it, and makes it complete: one that was frozen meanwhile, or whose
// queue is another one, adds nothing to it any more.
func TestExportTwice(t *testing.T) {
	t.Parallel()
	n, other := newNamespace(t, chatsim.Config{Rate: -1}), newNamespace(t, chatsim.Config{Rate: -1})
	list := n.people(50)
	other.people(50)
	users := userPlan(t, list...)
	file := filepath.Join(t.TempDir(), "out.csv")
	var want []byte
	first := n.reading("first", nil)
	first.OnRead = func(State) {
		if want != nil {
			return
		}
		if r, _, err := other.export(nil, other.reading("second", nil), users, file); err != nil || !r.Complete {
			t.Errorf("the second: got %+v, %v", r, err)
		}
		n.put("user1", "new", chat.Item{Type: 1, ID: "friend"})
		var err error
		if want, err = os.ReadFile(file); err != nil {
			t.Error(err)
		}
	}
	if r, _, err := n.export(nil, first, users, file); err == nil || r.Complete || !strings.Contains(err.Error(), "another export") {
		t.Errorf("the first: got %+v, %v", r, err)
	}
	if got, err := os.ReadFile(file); err != nil || len(want) == 0 || !bytes.Equal(got, want) {
		t.Errorf("got %q, %v; want what the second wrote, %q", got, err, want)
	}
	if _, err := os.Stat(file + ".progress"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want no progress", err)
	}
}

// A reader whose credentials are wrong halts itself, and not those who work.
func TestReadHalts(t *testing.T) {
	t.Parallel()
	n := newNamespace(t, chatsim.Config{Rate: -1})
	list := n.people(3)
	_, _, err := n.export(nil, n.reading("here", func(c *EngineConfig) { c.API = n.client("wrong") }), userPlan(t, list...), "")
	if !errors.Is(err, ErrCredentials) || !governor.IsHalted(err) {
		t.Errorf("a wrong key: got %v", err)
	}
	if err := n.sim.Configure(func(c *chatsim.Config) { c.Faults = []chatsim.Fault{{Kind: "60020", After: 2}} }); err != nil {
		t.Fatal(err)
	}
	r, _, err := n.export(nil, n.reading("here", nil), userPlan(t, list...), "")
	if !governor.IsHalted(err) || r.Complete {
		t.Errorf("a plan that expired: got %+v, %v", r, err)
	}
	if h, err := n.Halted(t.Context()); err != nil || h != nil {
		t.Errorf("got halt %+v, %v; want none: it is the reader's own", h, err)
	}
}

// Throttled calls, timeouts and short failures cost nothing but time; what does not pass makes a user unread.
func TestReadFaults(t *testing.T) {
	t.Parallel()
	n := newNamespace(t, chatsim.Config{Rate: -1})
	list := n.people(40)
	if err := n.sim.Configure(func(c *chatsim.Config) {
		c.Rate = 60 // less than the half
		for _, f := range []string{"60011@25+1", "50004:5%", "reset:5%", "cut:5%", "http-502:5%"} {
			fault, err := chatsim.ParseFault(f)
			if err != nil {
				t.Fatal(err)
			}
			c.Faults = append(c.Faults, fault)
		}
	}); err != nil {
		t.Fatal(err)
	}
	r, out, err := n.export(nil, n.reading("here", func(c *EngineConfig) { c.Rate = 160 }), userPlan(t, list...), "")
	if err != nil || len(r.Unread) > 0 || strings.Count(out, "\n") != 1+80 {
		t.Errorf("got %+v, %v; want all users", r, err)
	}
}

// Users of an import and of a sync; one that is not over, and one that does not exist.
func TestUsersOf(t *testing.T) {
	t.Parallel()
	n := newNamespace(t, chatsim.Config{Rate: -1})
	n.enqueue("one", 5)
	collect := func(users func(func(string, error) bool)) (ids []string, err error) {
		for id, err := range users {
			if err != nil {
				return nil, err
			}
			ids = append(ids, id)
		}
		slices.Sort(ids)
		return ids, nil
	}
	if _, err := collect(n.UsersOfImport(t.Context(), "one")); err == nil {
		t.Error("an import that is not over: got no error")
	}
	e := n.start(nil)
	n.awaitComplete("one")
	e.end(t)
	ids, err := collect(n.UsersOfImport(t.Context(), "one"))
	if want := []string{"user0", "user1", "user2", "user3", "user4"}; err != nil || !slices.Equal(ids, want) {
		t.Errorf("got %q, %v; want %q", ids, err, want)
	}
	if _, err := collect(n.UsersOfImport(t.Context(), "none")); !errors.Is(err, queue.ErrNoImport) {
		t.Errorf("got %v", err)
	}
	if _, err := collect(n.UsersOfSync(t.Context(), "none", "x")); !errors.Is(err, queue.ErrNoSync) {
		t.Errorf("got %v", err)
	}
}
