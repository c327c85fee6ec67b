package app

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
	"groupferry/internal/job"
	"groupferry/internal/queue"
)

// putGroups fills the simulator's groups of a user, by group name.
func (n *namespace) putGroups(user string, groups map[string][]string) {
	n.t.Helper()
	c := n.client(chatsim.DemoSecretKey)
	defer c.Close()
	for name, ids := range groups {
		r := chat.CreateRequest{FromAccount: user, GroupName: name}
		for _, id := range ids {
			r.Items = append(r.Items, chat.Item{Type: chat.OneToOne, ID: id})
		}
		if _, err := c.Create(n.t.Context(), r); err != nil {
			n.t.Fatal(err)
		}
	}
}

// enqueueMirror enqueues jobs of a mirror for groups of a user.
func (n *namespace) enqueueMirror(id, user string, jobs ...job.Job) {
	n.t.Helper()
	rec := queue.Import{ID: id, Digest: id, Jobs: int64(len(jobs))}
	for i := range jobs {
		j := &jobs[i]
		j.Import, j.FromAccount, j.ID = id, user, job.ID(id, user, j.GroupName)
		for k := range j.Conversations {
			c := &j.Conversations[k]
			c.Type = chat.OneToOne
			switch c.Op {
			case job.Add:
				rec.Conversations++
			case job.Remove:
				rec.Removals++
			}
		}
	}
	rec.Rows, rec.Accepted = rec.Conversations, rec.Conversations
	if _, _, err := n.Begin(n.t.Context(), rec); err != nil {
		n.t.Fatal(err)
	}
	if _, err := n.Enqueue(n.t.Context(), id, slices.Values(jobs), nil); err != nil {
		n.t.Fatal(err)
	}
}

func (n *namespace) csv(id string, asInput bool, lines Lines) string {
	n.t.Helper()
	var b strings.Builder
	if err := WriteResults(&b, CSV, asInput, n.ResultLines(n.t.Context(), id, lines)); err != nil {
		n.t.Fatal(err)
	}
	return b.String()
}

// What a mirror took out is in its results, also of groups that it deleted; as an input it puts that in again. What failed to
// be taken out is no row to be imported.
func TestResultsOfAMirror(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1})
	n.putGroups("anna", map[string][]string{
		"work": {"old1", "old2", "stuck", "stays", "other"}, "gone": {"old3"}, "Case": {"stays"},
	})
	before := n.sim.State()
	n.enqueueMirror("night", "anna",
		job.Job{GroupName: "work", Conversations: []job.Conversation{{ID: "new", Line: 2}, {ID: "bad id", Line: 3}, {ID: "stays", Op: job.Keep},
			{ID: "old1", Op: job.Remove}, {ID: "old2", Op: job.Remove}, {ID: "stuck", Op: job.Remove}}},
		job.Job{GroupName: "gone", Delete: true, Conversations: []job.Conversation{{ID: "old3", Op: job.Remove}}},
		job.Job{GroupName: "case", OldName: "Case", Conversations: []job.Conversation{{ID: "stays", Op: job.Keep}}},
		job.Job{GroupName: "lost", Conversations: []job.Conversation{{ID: "new", Line: 4}, {ID: "back", Op: job.Keep}}})
	if err := n.sim.Configure(func(c *chatsim.Config) { c.FailIDs = map[string]int{"stuck": 50001, "bad id": 50001} }); err != nil {
		t.Fatal(err)
	}
	e := n.start(nil)
	n.awaitComplete("night")

	s, err := n.ImportStatus(t.Context(), "night")
	if err != nil || s.CheckSums() != nil {
		t.Errorf("got %+v, %v, %v", s, err, s.CheckSums())
	}
	none := ConversationCounts{}
	if want := (ConversationCounts{Total: 3, Done: 2, Failed: 1}); s.Conversations != want {
		t.Errorf("conversations: got %+v, want %+v", s.Conversations, want)
	}
	if want := (ConversationCounts{Total: 4, Done: 3, Failed: 1}); s.Removals != want {
		t.Errorf("removals: got %+v, want %+v", s.Removals, want)
	}
	if want := (ConversationCounts{Total: 1, Done: 1}); s.Restored != want || s.Deleted != 1 || s.Renamed != 1 {
		t.Errorf("restored: got %+v, want %+v; %d deleted, %d renamed, want 1 and 1", s.Restored, want, s.Deleted, s.Renamed)
	}
	f, err := n.Failures(t.Context(), "night")
	if err != nil || f.Done != 3 || f.Failed != 1 || f.Removed != 3 || f.RemovalsFailed != 1 || f.Deleted != 1 || f.Renamed != 1 || len(f.Codes) != 1 {
		t.Errorf("failures: got %+v, %v", f, err)
	}

	if got := n.csv("night", false, FailedLines); strings.Count(got, "\n") != 2 || !strings.Contains(got, "anna,work,1,bad id,,50001,") {
		t.Errorf("failed: got %q, want the row alone that was to be added", got)
	}
	all := n.csv("night", false, AllLines)
	for _, want := range []string{"finished,op\n", ",op", "anna,work,1,old1,,,,,,", "anna,work,1,stuck,,50001,", "anna,gone,1,old3,", "anna,lost,1,back,,"} {
		if !strings.Contains(all, want) {
			t.Errorf("all: got %q, want %q in it", all, want)
		}
	}
	if adds, removes := strings.Count(all, ",add\n"), strings.Count(all, ",remove\n"); adds != 4 || removes != 4 {
		t.Errorf("all: got %d added and %d removed, want 4 of each: %s", adds, removes, all)
	}
	removed := n.csv("night", true, RemovedLines)
	lines := strings.Split(strings.TrimSpace(removed), "\n")
	slices.Sort(lines)
	want := []string{"anna,gone,1,old3,", "anna,work,1,old1,", "anna,work,1,old2,", "from_account,group_name,type,to_account,to_group_id"}
	if !slices.Equal(lines, want) {
		t.Errorf("removed: got %q, want %q", lines, want)
	}

	// The way back.
	file := filepath.Join(t.TempDir(), "removed.csv")
	if err := os.WriteFile(file, []byte(removed), 0o600); err != nil {
		t.Fatal(err)
	}
	in, err := ReadInput(t.Context(), InputConfig{Files: []string{file}})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if len(in.Plan.Notices) > 0 || in.Plan.Summary.Rejected > 0 {
		t.Errorf("got notices %q and %d rejected", in.Plan.Notices, in.Plan.Summary.Rejected)
	}
	if _, _, err := n.Begin(t.Context(), in.Record); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Enqueue(t.Context(), n.Namespace, nil); err != nil {
		t.Fatal(err)
	}
	n.awaitComplete(in.Record.ID)
	now := n.sim.State()
	for group, was := range before["anna"] {
		if group == "Case" {
			group = "case"
		}
		for _, it := range was {
			if !slices.Contains(now["anna"][group], it) {
				t.Errorf("%s: %s is not there again", group, it.ID)
			}
		}
	}
	if s, err := n.ImportStatus(t.Context(), in.Record.ID); err != nil || s.Removals != none || s.Incomplete() {
		t.Errorf("the way back: got %+v, %v", s, err)
	}
	if err := e.end(t); err != nil {
		t.Error(err)
	}
}

// Of a night that was cancelled, what was done of it can be put in again, and nothing else.
func TestRemovedOfACancelledNight(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1})
	n.putGroups("anna", map[string][]string{"first": {"old1"}, "second": {"old2"}})
	n.enqueueMirror("night", "anna",
		job.Job{GroupName: "first", Conversations: []job.Conversation{{ID: "old1", Op: job.Remove}, {ID: "keep", Op: job.Keep}}},
		job.Job{GroupName: "second", Conversations: []job.Conversation{{ID: "old2", Op: job.Remove}, {ID: "keep", Op: job.Keep}, {ID: "new", Line: 2}}})
	// All calls are halted before the second job.
	if err := n.sim.Configure(func(c *chatsim.Config) {
		c.Faults = []chatsim.Fault{{Command: chat.UpdateContactGroup, Kind: "60016", After: 1}}
	}); err != nil {
		t.Fatal(err)
	}
	e := n.start(func(c *EngineConfig) { c.Worker.Concurrency = 1 })
	n.await("a result", func() bool {
		s, err := n.ImportStatus(t.Context(), "night")
		return err == nil && s.Jobs.Done == 1
	})
	if _, err := n.CancelImport(t.Context(), "night"); err != nil {
		t.Fatal(err)
	}
	s, err := n.ImportStatus(t.Context(), "night")
	if err != nil || s.CheckSums() != nil || s.Removals != (ConversationCounts{Total: 2, Done: 1, Dropped: 1}) || s.Conversations.Dropped != 1 {
		t.Errorf("got %+v, %v, %v", s, err, s.CheckSums())
	}
	if got := n.csv("night", true, RemovedLines); got != "from_account,group_name,type,to_account,to_group_id\nanna,first,1,old1,\n" {
		t.Errorf("removed: got %q", got)
	}
	if got := n.csv("night", false, FailedLines); strings.Count(got, "\n") != 2 || !strings.Contains(got, "anna,second,1,new,,dropped,") {
		t.Errorf("failed: got %q, want the dropped row alone", got)
	}
	if err := e.end(t); err != nil {
		t.Error(err)
	}
}
