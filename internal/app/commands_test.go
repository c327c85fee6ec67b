package app

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"groupferry/importer"
	"groupferry/internal/chatsim"
	"groupferry/internal/queue"
)

// What these tests call is what the commands call: each needs a namespace, or a file, and nothing of a terminal.

// writeInput writes a file and returns its name.
func writeInput(t *testing.T, lines ...string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "in.csv")
	text := "from_account,group_name,to_account\n" + strings.Join(lines, "\n") + "\n"
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestCheck(t *testing.T) {
	files := []string{writeInput(t, "a,g,b", "a,g,b", "a,g,c", ",g,b", ",g,c")}
	r, err := Check(t.Context(), CheckConfig{Input: InputConfig{Files: files}, Rate: 2, Show: 5})
	if err != nil || r.Rows != 5 || r.Accepted != 2 || r.Duplicates != 1 || r.Rejected != 2 || r.Seconds != 1 {
		t.Errorf("got %+v, %v", r, err)
	}
	if len(r.FirstCalls) != 1 || !strings.Contains(string(r.FirstCalls[0]), `"From_Account":"a"`) {
		t.Errorf("first calls: got %s", r.FirstCalls)
	}
	if len(r.Rejects) != 1 || r.Rejects[0].Count != 2 || r.Rejects[0].Line != 5 {
		t.Errorf("rejects: got %+v, want one reason, met twice, first in line 5", r.Rejects)
	}
}

func TestGuard(t *testing.T) {
	some, all, none := importer.Summary{Rows: 200, Accepted: 195, Rejected: 5}, importer.Summary{Rows: 3, Rejected: 3}, importer.Summary{}
	tests := []struct {
		s     importer.Summary
		b     Budget
		empty bool
		want  string // "" if the input is taken
	}{
		{some, Budget{}, false, ""},
		{some, Budget{Limited: true}, false, "5 of 200 rows were rejected, --max-rejects allows 0"},
		{some, Budget{Limited: true, Rows: 4}, false, "5 of 200 rows were rejected, --max-rejects allows 4"},
		{some, Budget{Limited: true, Rows: 5}, false, ""},
		{some, Budget{Limited: true, Percent: 2.49}, false, "5 of 200 rows (2.5%) were rejected, --max-rejects 2.49% allows 4"},
		{some, Budget{Limited: true, Percent: 2.5}, false, ""},
		{all, Budget{}, false, "no row was accepted, 3 rejected"},
		{all, Budget{}, true, ""},
		{all, Budget{Limited: true, Percent: 1}, true, "3 of 3 rows (100%) were rejected, --max-rejects 1% allows 0"},
		{none, Budget{}, false, "the input has no rows"},
		{none, Budget{}, true, ""},
	}
	for _, test := range tests {
		cfg := InputConfig{MaxRejects: test.b, AllowEmpty: test.empty}
		got := ""
		if err := cfg.guard(test.s, nil); err != nil {
			got = strings.TrimSuffix(err.Error(), ": nothing was enqueued")
		}
		if got != test.want {
			t.Errorf("%+v: got %q, want %q", test, got, test.want)
		}
	}
}

// Nothing is left of an input that is refused but the file with its rejects.
func TestReadInputOverBudget(t *testing.T) {
	rejects := filepath.Join(t.TempDir(), "rejects.csv")
	_, err := ReadInput(t.Context(), InputConfig{
		Files: []string{writeInput(t, "a,g,b", ",g,b")}, Rejects: rejects, MaxRejects: Budget{Limited: true},
	})
	var e *GuardError
	if !errors.As(err, &e) || e.Rejected != 1 || e.Rejects.File != rejects {
		t.Errorf("got %v, want one reject too many, in %s", err, rejects)
	}
	if b, err := os.ReadFile(rejects); err != nil || !strings.Contains(string(b), ",g,1,b,,50002,") {
		t.Errorf("rejects: got %q, %v", b, err)
	}
}

// An import goes from its file to its results, and through a retry.
func TestImportToResults(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1, FailIDs: map[string]int{"c": 51007}})
	in, err := ReadInput(t.Context(), InputConfig{Files: []string{writeInput(t, "d,g,e"), writeInput(t, "a,g,b", "a,g,c")}})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	second := in.Plan.Files[1]
	if _, existed, err := n.Begin(t.Context(), in.Record); existed || err != nil {
		t.Fatalf("begin: got existed %v, %v", existed, err)
	}
	if stats, err := in.Enqueue(t.Context(), n.Namespace, nil); stats.Jobs != 2 || err != nil {
		t.Fatalf("enqueue: got %+v, %v; want 2 jobs", stats, err)
	}
	id := in.Record.ID
	e := n.start(nil)
	n.awaitComplete(id)

	s, err := n.ImportStatus(t.Context(), id)
	if err != nil || s.CheckSums() != nil || !s.Over() || !s.Incomplete() || s.Jobs.Done != 1 || s.Jobs.Partial != 1 || s.Conversations.Failed != 1 {
		t.Errorf("status: got %+v, %v, sums %v", s, err, s.CheckSums())
	}
	var b strings.Builder
	if err := WriteResults(&b, CSV, false, n.ResultLines(t.Context(), id, FailedLines)); err != nil || !strings.Contains(b.String(), second+",3,") ||
		!strings.Contains(b.String(), "\na,g,1,c,,51007,") {
		t.Errorf("failed results: got %q, %v", &b, err)
	}
	f, err := n.Failures(t.Context(), id)
	if err != nil || f.Done != 2 || f.Failed != 1 || len(f.Codes) != 1 || f.Codes[0].Example.ToAccount != "c" {
		t.Errorf("failures: got %+v, %v", f, err)
	}

	if err := n.sim.Configure(func(c *chatsim.Config) { c.FailIDs = nil }); err != nil {
		t.Fatal(err)
	}
	if i, stats, err := n.Retry(t.Context(), id, nil, nil); i.Generation != 1 || stats.Conversations != 1 || err != nil {
		t.Errorf("retry: got %+v, %+v, %v", i, stats, err)
	}
	n.awaitComplete(id)
	if s, err := n.Status(t.Context()); err != nil || len(s.Imports) != 1 || s.Imports[0].Incomplete() || s.Imports[0].Retry.Pending != 0 {
		t.Errorf("status after the retry: got %+v, %v", s, err)
	}
	if err := e.end(t); err != nil {
		t.Error(err)
	}
}

func TestPauseAndCancel(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1})
	n.enqueue("one", 3)
	if h, err := n.Pause(t.Context(), "a test", "resume"); err != nil || h.State != queue.Paused || h.By != "a test" || h.Command != "resume" {
		t.Errorf("pause: got %+v, %v", h, err)
	}
	if i, err := n.SetImportPaused(t.Context(), "one", true); err != nil || !i.Paused {
		t.Errorf("pause of the import: got %+v, %v", i, err)
	}
	if s, err := n.Status(t.Context(), "one"); err != nil || s.Halt == nil || s.Over() || !s.Imports[0].Paused || s.Imports[0].SecondsLeft != nil {
		t.Errorf("status: got %+v, %v", s, err)
	}
	if s, err := n.CancelImport(t.Context(), "one"); err != nil || s.Jobs.Dropped != 3 || s.Conversations.Pending != 0 || !s.Over() {
		t.Errorf("cancel: got %+v, %v", s, err)
	}
	// What was dropped is among its results, until it is deleted.
	var b strings.Builder
	if err := WriteResults(&b, CSV, false, n.ResultLines(t.Context(), "one", FailedLines)); err != nil || strings.Count(b.String(), ",dropped,") != 6 {
		t.Errorf("results: got %q, %v; want 3 lines of what was dropped", &b, err)
	}
	if f, err := n.Failures(t.Context(), "one"); err != nil || f.Dropped != 3 || f.Failed != 0 || f.Codes[0].Count != 3 {
		t.Errorf("failures: got %+v, %v; want 3 dropped", f, err)
	}
	if err := n.Delete(t.Context(), "one"); err != nil {
		t.Error(err)
	}
	// What was not on the queue cannot be among them.
	if _, _, err := n.Begin(t.Context(), queue.Import{ID: "early", Digest: "early", Jobs: 5}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.CancelImport(t.Context(), "early"); err != nil {
		t.Fatal(err)
	}
	var missing *NotQueuedError
	if err := WriteResults(io.Discard, CSV, false, n.ResultLines(t.Context(), "early", AllLines)); !errors.As(err, &missing) || missing.Jobs != 5 {
		t.Errorf("results of one that was cancelled before its jobs were on the queue: got %v, want 5 missing", err)
	}
	if _, err := n.Status(t.Context(), "two"); !errors.Is(err, queue.ErrNoImport) {
		t.Errorf("status of an import that is not there: got %v", err)
	}
}

// A halt that is there keeps its reason when a person pauses.
func TestPauseKeepsAHalt(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1})
	if err := n.SetHalt(t.Context(), queue.Halt{State: queue.Halted, Reason: "the key"}); err != nil {
		t.Fatal(err)
	}
	if h, err := n.Pause(t.Context(), "a test", "resume"); err != nil || h.State != queue.Halted || h.Reason != "the key" {
		t.Errorf("got %+v, %v", h, err)
	}
}

// A group whose rows are in 300 files with very long names is one job like others, and its results name the files.
func TestManyFiles(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1})
	dir := filepath.Join(append([]string{t.TempDir()}, slices.Repeat([]string{strings.Repeat("long", 60)}, 15)...)...)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Skip(err)
	}
	for i := range 300 {
		text := fmt.Sprintf("from_account,group_name,to_account\na,g,b%d\n", i)
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%03d.csv", i)), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	in, err := ReadInput(t.Context(), InputConfig{Files: []string{filepath.Join(dir, "*.csv")}})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, _, err := n.Begin(t.Context(), in.Record); err != nil {
		t.Fatal(err)
	}
	if stats, err := in.Enqueue(t.Context(), n.Namespace, nil); stats.Jobs != 1 || err != nil {
		t.Fatalf("enqueue: got %+v, %v; want 1 job", stats, err)
	}
	e := n.start(nil)
	n.awaitComplete(in.Record.ID)
	lines := 0
	for l, err := range n.ResultLines(t.Context(), in.Record.ID, AllLines) {
		if want := filepath.Join(dir, fmt.Sprintf("%03s.csv", strings.TrimPrefix(l.ToAccount, "b"))); err != nil || l.File != want || l.Line != 2 {
			t.Fatalf("got %+v, %v; want line 2 of %s", l, err, want)
		}
		lines++
	}
	if lines != 300 {
		t.Errorf("got %d lines, want 300", lines)
	}
	if err := e.end(t); err != nil {
		t.Error(err)
	}
}
