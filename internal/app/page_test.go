package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
	"groupferry/internal/page"
	"groupferry/internal/queue"
)

// stateFor makes a state of that mode and reason, with an error and a halt whose texts hold the ID of a user.
func stateFor(mode, reason string) State {
	code := map[string]string{Credentials: "70009", OfApp: "70020", Edition: "51013", AllowList: "60021", Address: "http-403"}[reason]
	s := State{Mode: mode, Reason: reason, Leader: "other", Connected: true, Progress: &Progress{}}
	switch mode {
	case Halted:
		s.Halt = &Halt{Halt: queue.Halt{State: queue.Halted, Code: code, Reason: code + ": alice is wrong", Remedy: "fix it", By: "there"}}
		if code == "" {
			s.Halt.Reason = "nothing more is written"
		}
	case Paused:
		s.Halt = &Halt{Halt: queue.Halt{State: queue.Paused, Reason: "by hand", By: "there"}}
	case OutOfReach:
		s.Outage = &Outage{Err: &chat.Error{Command: chat.CreateContactGroup, Status: 502, Info: "no route for alice"}}
	}
	return s
}

// The page says in words what each state is, and for those that a person has to end what to do; without what the API said,
// which may name a user.
func TestPageOfEachMode(t *testing.T) {
	for _, m := range Modes() {
		if m[1] == Starting && m[0] == Leaderless {
			continue // before there is a process
		}
		var n page.Process
		s := stateFor(m[0], m[1])
		describe(&n, &s, func(words ...string) string { return "groupferry " + strings.Join(words, " ") })
		b, _ := json.Marshal(n)
		if n.Headline == "" || n.State == "" || m[0] != Running && n.Detail == "" {
			t.Errorf("%v: got %s, want words", m, b)
		}
		if stands := m[0] == Halted || m[0] == Paused || m[1] == AllPaused; stands != (n.Command != "") {
			t.Errorf("%v: got the command %q", m, n.Command)
		}
		if (m[0] == Halted || m[0] == OutOfReach || m[1] == NoNATS) && n.Remedy == "" {
			t.Errorf("%v: got no remedy", m)
		}
		if strings.Contains(string(b), "alice") {
			t.Errorf("%v: got the ID of a user: %s", m, b)
		}
	}
	for _, err := range []error{nil, errors.New("alice"), &chat.Error{Cause: context.DeadlineExceeded}} {
		if text := outageText(err); strings.Contains(text, "alice") {
			t.Errorf("outage: got %q", text)
		}
	}
}

// Whatever code a result can have, the page says what it means and what to do.
func TestPageCodes(t *testing.T) {
	codes := append(chat.Reasons(), "http-502", "http-403", queue.OtherCodes)
	constant := regexp.MustCompile(`(?m)^(?:const |\t)Code\w+ += "([^"]+)"`)
	for _, pattern := range []string{"../../worker/*.go", "../job/*.go", "../queue/*.go"} {
		files, _ := filepath.Glob(pattern)
		for _, file := range files {
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, found := range constant.FindAllSubmatch(source, -1) {
				codes = append(codes, string(found[1]))
			}
		}
	}
	for code := range ownCodes {
		if !slices.Contains(codes, code) {
			t.Errorf("%s: no result has this code", code)
		}
	}
	for _, code := range chat.Codes() {
		if chat.ClassOf(code) != chat.Throttle {
			codes = append(codes, strconv.Itoa(code))
		}
	}
	for _, code := range codes {
		if c := codeOnPage(code); c.Meaning == "" || c.Meaning == "unknown" || c.Remedy == "" {
			t.Errorf("%s: got %+v", code, c)
		}
	}
	if c := codeOnPage("new"); c.Meaning != "unknown" || c.Remedy == "" {
		t.Errorf("a code that nobody knows: got %+v", c)
	}
}

// Calls are counted by the second for ten minutes; those of a second that has not ended wait.
func TestRecentCalls(t *testing.T) {
	var o tallyObserver
	start := time.Unix(1_000_000_000, 0) // a bucket begins
	call := func(second, n int) {
		for range n {
			o.called("create", start.Add(time.Duration(second)*time.Second))
		}
	}
	at := func(second int) CallRate {
		return o.recent(start.Add(time.Duration(second) * time.Second))["create"]
	}
	for second := range 12 {
		call(second, 10*(second+1))
	}
	got := at(11) // 11 has not ended, nor has the bucket of 10
	last := got.PerSecond[len(got.PerSecond)-3:]
	if len(got.PerSecond) != 120 || !slices.Equal(last, []float64{0, 30, 80}) || got.Now != 90 {
		t.Errorf("got %d buckets that end in %v, and %v now; want 120, [0 30 80], 90", len(got.PerSecond), last, got.Now)
	}
	if got := at(600); got.PerSecond[0] != 30 || got.PerSecond[1] != 80 || got.Now != 0 {
		t.Errorf("ten minutes later: got %v, %v now", got.PerSecond[:3], got.Now)
	}
	call(602, 5) // in the place of an older second
	if got := at(605); got.PerSecond[0] != 80 || got.PerSecond[119] != 1 {
		t.Errorf("after that: got %v to %v", got.PerSecond[0], got.PerSecond[119])
	}
	if got := o.recent(start.Add(time.Hour)); len(got) != 0 {
		t.Errorf("an hour later: got %v, want nothing", got)
	}
}

// Where the clock is set back, calls of a time that has not come do not come up again when it does.
func TestRecentCallsOfAClockSetBack(t *testing.T) {
	var o tallyObserver
	start := time.Unix(1_000_000_000, 0)
	o.called("create", start.Add(5*time.Minute))
	if got := o.recent(start); len(got) != 0 {
		t.Errorf("set back: got %v, want nothing", got)
	}
	if got := o.recent(start.Add(6 * time.Minute)); len(got) != 0 {
		t.Errorf("when it is so late again: got %v, want nothing", got)
	}
}

// The newest records are kept, in order, and what is deleted goes.
func TestNoteRecord(t *testing.T) {
	var all []*queue.Import
	note := func(n int, state queue.ImportState) {
		all, _ = noteRecord(all, queue.Import{ID: strconv.Itoa(n), State: state, Created: time.Unix(int64(n), 0)})
	}
	ids := func() (list []string) {
		for _, i := range all {
			list = append(list, i.ID+string(i.State)[:1])
		}
		return list
	}
	for _, n := range []int{2, 1, 3} {
		note(n, queue.Running)
	}
	note(2, queue.Complete)
	note(9, queue.Deleting) // which nobody knew
	if got := strings.Join(ids(), " "); got != "3r 2c 1r" {
		t.Errorf("got %q, want 3r 2c 1r", got)
	}
	before := all
	note(3, queue.Deleting)
	if got := strings.Join(ids(), " "); got != "2c 1r" || before[0].ID != "3" {
		t.Errorf("got %q, want 2c 1r, and the list before as it was", got)
	}
	for n := range 3 * maxRecords {
		note(n+10, queue.Complete)
	}
	note(5, queue.Complete) // older than all
	if len(all) != maxRecords || all[0].ID != strconv.Itoa(3*maxRecords+9) || all[maxRecords-1].ID != strconv.Itoa(2*maxRecords+10) {
		t.Errorf("got %d from %s to %s", len(all), all[0].ID, all[len(all)-1].ID)
	}
}

// The time left is known from the first second on, and nobody names one while no call is made.
func TestSecondsLeft(t *testing.T) {
	p := ImportProgress{}
	p.Import.Jobs, p.Import.Calls, p.Pending, p.At, p.RateOver = 100, 200, 50, time.Now(), time.Minute
	p.Counts.Jobs.Done = 50
	for _, test := range []struct {
		name  string
		state State
		rate  float64
		over  time.Duration
		want  float64 // < 0: nobody knows
	}{
		{"at first", State{Mode: Running, Rate: 10}, 0, 0, 10},
		{"at its pace", State{Mode: Standby, Rate: 10}, 2, time.Minute, 25},
		{"before the rate is known", State{Mode: Running}, 0, 0, -1},
		{"halted", State{Mode: Halted, Rate: 10}, 5, time.Minute, -1},
		{"an outage", State{Mode: OutOfReach, Rate: 10}, 5, time.Minute, -1},
		{"NATS away", State{Mode: Leaderless, Rate: 10}, 5, time.Minute, -1},
		{"at a stop", State{Mode: Running, Stopping: true, Rate: 10}, 5, time.Minute, -1},
	} {
		p.Rate, p.RateOver = test.rate, test.over
		totals := (&Progress{Imports: []ImportProgress{p}}).Totals("")
		got := secondsLeft(&test.state, &p, &totals)
		if got == nil && test.want >= 0 || got != nil && *got != test.want {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
		}
	}
	p.Rate, p.RateOver, p.At = 2, time.Minute, time.Now().Add(-time.Hour)
	totals := (&Progress{Imports: []ImportProgress{p}}).Totals("")
	if got := secondsLeft(&State{Mode: Running, Rate: 10}, &p, &totals); got == nil || *got != 10 {
		t.Errorf("an old pace: got %v, want 10, as at first", got)
	}
}

// While nobody knows how far an import is, page and metrics keep what they had, for it is not undone; a record that says more
// goes before that, and one without any progress is said to have none.
func TestProgressOutOfReach(t *testing.T) {
	var p ImportProgress
	p.Import = queue.Import{ID: "one", State: queue.Running, Jobs: 4, Conversations: 12}
	p.Pending, p.Counts.Jobs.Done, p.Counts.Conversations.Done = 3, 1, 3
	s := State{
		Mode: Leaderless, Reason: NoNATS, LastProgress: &Progress{Imports: []ImportProgress{p}},
		Records: []*queue.Import{{ID: "one", State: queue.Running}, {ID: "two", State: queue.Running}},
		Imports: map[string]queue.Import{"single": p.Import},
	}
	var n page.Snapshot
	importsOnPage(&n, &s)
	if len(n.Live) != 2 || n.Live[0].Done != 3 || n.Live[0].Finished != 1 || n.Live[0].Unknown || !n.Live[1].Unknown {
		t.Errorf("the page: got %+v, want one as it was, and two unknown", n.Live)
	}
	if got := importsOf(&s)[0]; got.Done != 3 || got.Left != 3 {
		t.Errorf("the metrics: got %+v, want it as it was", got)
	}
	s.Records[0] = &queue.Import{ID: "one", State: queue.Complete}
	n = page.Snapshot{}
	importsOnPage(&n, &s)
	if len(n.Over) != 1 || len(n.Live) != 1 {
		t.Errorf("complete: got %+v and %+v, want one over", n.Over, n.Live)
	}
}

// Names of files, syncs and rejects cannot turn the text around that stands beside them. Of thousands of files the page has the
// first. A night of a mirror says what it removed.
func TestImportOnPage(t *testing.T) {
	var p queue.Progress
	p.Import = queue.Import{ID: "one", State: queue.Complete, Sync: "a\u202eb", Night: 2, RejectsFile: "r\u2066\x1b[2J", Removals: 4}
	p.Counts.Removals = queue.Ended{Done: 3, Failed: 1}
	for range 3000 {
		p.Import.Files = append(p.Import.Files, "evil\u202evsc.\x07")
	}
	p.Import.Files = FileNames(p.Import.Files)
	i := importOnPage(p)
	if i.FileCount != 3000 || len(i.Files) != 3 || i.Files[0] != `evil\u202evsc.\u0007` || i.Name != `a\u202eb, night 2` || i.Rejects != `r\u2066\u001b[2J` {
		t.Errorf("got %+v, want three names as they are written", i)
	}
	for _, n := range []int{0, 1, 20, 21, 22} {
		if got := fileCount(FileNames(make([]string, n))); got != n {
			t.Errorf("%d files: got %d", n, got)
		}
	}
	if i.Removals != 4 || i.Removed != 3 || i.Failed != 1 {
		t.Errorf("got %+v, want 3 of 4 removed", i)
	}
	s := State{LastProgress: &Progress{Imports: []ImportProgress{{Progress: p}}}, Progress: &Progress{}}
	process := Process{cfg: ProcessConfig{Import: "one"}}
	var n page.Snapshot
	importsOnPage(&n, &s)
	process.describeEnd(&n, &s)
	if !strings.Contains(n.Process.Detail, "3 of 4 were taken out of theirs") {
		t.Errorf("at the end: got %q", n.Process.Detail)
	}
}

// pageOf is what the page shows, as JSON.
func pageOf(m *Monitor) string {
	b, err := json.Marshal(m.page())
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// The page goes from reading, over running with who stands by, to how it ended, and shows what failed by code: never a user.
func TestPageOfAProcess(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1, FailIDs: map[string]int{"user1": 50001}})
	m, get, _ := serve(t)
	m.ReadsInput = true
	if got := m.page().Process; got.Headline != "Reading the input" {
		t.Errorf("before there is a process: got %+v", got)
	}
	m.noNATS.Store(true)
	if got := m.page().Process; got.Headline != "Waiting for NATS" || got.Remedy == "" {
		t.Errorf("without NATS: got %+v", got)
	}
	n.enqueue("one", 3)
	p := n.process(func(c *ProcessConfig) {
		c.Monitor, c.Import, c.Engine.Host = m, "one", "me-1"
	})
	if err := n.PauseImport(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	stop := make(chan struct{})
	go func() { done <- p.Run(t.Context(), stop) }()
	n.await("the paused import", func() bool { return m.page().Process.Headline == "Paused" })
	if got := m.page(); len(got.Live) != 1 || got.Live[0].State != "paused" || !strings.Contains(got.Process.Command, "resume one") {
		t.Errorf("paused: got %+v", got)
	}
	standby := n.start(func(c *EngineConfig) { c.Host = "other-2" })
	n.await("who stands by", func() bool {
		return fmt.Sprint(m.page().Process.Standbys) == "[other-2]" && fmt.Sprint(standby.State().Others) == "[me-1]"
	})
	standby.stop()
	n.await("nobody to stand by", func() bool { return len(m.page().Process.Standbys) == 0 })
	if err := n.ResumeImport(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	got := m.page()
	if got.Process.State != "done" || len(got.Live) != 0 || len(got.Over) != 1 {
		t.Fatalf("at the end: got %+v", got)
	}
	if i := got.Over[0]; i.State != "complete" || i.Done != 2 || i.Failed != 1 || i.Codes["50001"] != 1 || !i.Retry || got.Codes["50001"].Remedy == "" {
		t.Errorf("at the end: got %+v and %+v", i, got.Codes)
	}
	if len(got.Calls.Commands) == 0 {
		t.Error("at the end: got no calls")
	}
	if text := pageOf(m); strings.Contains(text, "user1") || strings.Contains(text, "friend") {
		t.Errorf("the page has the ID of a user: %s", text)
	}
	if status, text := get("/"); status != 200 || !strings.Contains(text, "page.js") {
		t.Errorf("/: got %d %s", status, text)
	}
}

// An open page does not hold up the end, and is told of it; so is a button that nobody can push any more.
func TestPageAtTheEnd(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := NewMonitor("", "")
	stop := m.Serve(l, nil)
	response, err := http.Get("http://" + m.Address + "/events")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	stopped := make(chan struct{})
	go func() {
		stop()
		close(stopped)
	}()
	b, err := io.ReadAll(response.Body)
	if err != nil || !strings.HasSuffix(string(b), "event: end\ndata: {}\n\n") || !strings.Contains(string(b), `"headline":"Ended"`) {
		t.Errorf("got %v and %q, want the end", err, b)
	}
	select {
	case <-stopped:
	case <-time.After(patience):
		t.Error("an open page holds up the end")
	}

	entered := make(chan struct{})
	end := m.Control(t.Context(), func(ctx context.Context, _ page.Action) page.Answer {
		close(entered)
		<-ctx.Done()
		return page.Answer{Text: "cut short"}
	})
	answered := make(chan page.Answer)
	go func() { answered <- m.actions.act(page.Action{Name: page.Pause}) }()
	<-entered
	end()
	if got := <-answered; got.Text != "cut short" {
		t.Errorf("under way at the end: got %+v", got)
	}
	if got := m.actions.act(page.Action{Name: page.Pause}); got.OK || got.Hint == "" {
		t.Errorf("after the end: got %+v, want why not", got)
	}
}
