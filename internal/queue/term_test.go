package queue

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"testing"
	"time"

	"groupferry/internal/broker"
	"groupferry/internal/job"
)

// leaderQueue opens a queue on an embedded server that ends with the test.
func leaderQueue(t testing.TB) *Queue {
	t.Helper()
	return leaderQueueIn(t, broker.Config{DataDir: t.TempDir()})
}

func leaderQueueIn(t testing.TB, cfg broker.Config) *Queue {
	t.Helper()
	conn, err := broker.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	q, err := Open(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// numberedJobs gives n jobs of an import, whose IDs are job-0 and so on.
func numberedJobs(id string, n, conversations int) iter.Seq[job.Job] {
	return func(yield func(job.Job) bool) {
		for i := range n {
			j := job.Job{
				Import: id, ID: fmt.Sprintf("job-%d", i), FromAccount: fmt.Sprintf("user%d", i), GroupName: "friends",
				Files: []string{"in.csv"},
			}
			for k := range conversations {
				j.Conversations = append(j.Conversations, job.Conversation{
					Type: job.OneToOne, ID: fmt.Sprintf("peer%d", k), Line: int64(i*conversations + k + 2),
				})
			}
			if !yield(j) {
				return
			}
		}
	}
}

// imported begins an import and enqueues n jobs of two conversations.
func imported(t testing.TB, q *Queue, id string, n int) {
	t.Helper()
	if _, _, err := q.Begin(t.Context(), Import{ID: id, Digest: "digest of " + id}); err != nil {
		t.Fatal(err)
	}
	if _, err := q.Enqueue(t.Context(), id, numberedJobs(id, n, 2), nil); err != nil {
		t.Fatal(err)
	}
}

// A ledTerm is a term that runs.
type ledTerm struct {
	*Term
	cancel context.CancelFunc
	done   chan error

	mu        sync.Mutex
	completed []Import
}

// lead begins a term and runs it until the test ends, or stop or kill is called.
func lead(t testing.TB, q *Queue, cfg TermConfig) *ledTerm {
	t.Helper()
	l := &ledTerm{done: make(chan error, 1)}
	cfg.OnComplete = func(i Import) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.completed = append(l.completed, i)
	}
	term, err := q.Lead(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	l.Term = term
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	l.cancel = cancel
	go func() { l.done <- term.Run(ctx) }()
	t.Cleanup(l.kill)
	return l
}

// kill ends the term as a crash would: nothing more is written.
func (l *ledTerm) kill() {
	l.cancel()
	<-l.done
	l.done <- nil
}

// stop ends the term as a process does that is asked to.
func (l *ledTerm) stop(t testing.TB) {
	t.Helper()
	l.kill()
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// complete waits until the term has completed so many imports.
func (l *ledTerm) complete(t testing.TB, n int) {
	t.Helper()
	wait(t, fmt.Sprintf("%d imports complete", n), func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.completed) >= n
	})
}

// wait polls until a condition holds, and fails the test when that takes half a minute.
func wait(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still waiting for: %s", what)
		}
	}
}

// next gets the next job, or fails the test.
func (l *ledTerm) next(t testing.TB) *Delivery {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	d, err := l.Next(ctx)
	if err != nil {
		t.Fatalf("next job: %v, %+v", err, l.Snapshot())
	}
	return d
}

// none makes sure that no job is handed out for a while. It can only fail to see what comes later.
func (l *ledTerm) none(t testing.TB, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if got, err := l.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got job %v, %v, want none", got, err)
	}
}

// resultOf is a result in which the first failing conversations failed.
func resultOf(t testing.TB, d *Delivery, failing int) job.Result {
	t.Helper()
	j, err := d.Job()
	if err != nil {
		t.Fatal(err)
	}
	r := job.Result{
		FromAccount: j.FromAccount, GroupName: j.GroupName, Files: j.Files, Attempts: d.Attempt(), Calls: 1, Worker: "w",
		Started: time.Unix(1e9, 0), Finished: time.Unix(1e9+1, 0),
	}
	for i, c := range j.Conversations {
		cr := job.ConversationResult{Conversation: c}
		if i < failing {
			cr.Code = "50001"
		}
		r.Conversations = append(r.Conversations, cr)
	}
	r.SetOutcome()
	return r
}

// work does n jobs; fail says how many conversations of each fail.
func (l *ledTerm) work(t testing.TB, n int, fail func(i int, d *Delivery) int) {
	t.Helper()
	for i := range n {
		d := l.next(t)
		failing := 0
		if fail != nil {
			failing = fail(i, d)
		}
		d.Finish(resultOf(t, d, failing))
	}
}

// written reads all result messages of an import, superseded ones included, and makes sure that no job of a generation
// has two.
func written(t testing.TB, q *Queue, id string) []job.Result {
	t.Helper()
	var all []job.Result
	seen := map[string]bool{}
	scan := resultScan{q: q, id: id, outcomes: job.Outcomes}
	err := scan.run(t.Context(), func(m stored) error {
		r, err := job.DecodeResult(m.Data)
		if err != nil {
			return err
		}
		key := fmt.Sprintf("%s of generation %d", r.Job, r.Generation)
		if seen[key] {
			t.Errorf("job %s has two results", key)
		}
		seen[key] = true
		all = append(all, r)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// exported reads the results as an export does: job ID to outcome.
func exported(t testing.TB, q *Queue, id string, outcomes ...job.Outcome) map[string]job.Outcome {
	t.Helper()
	all := map[string]job.Outcome{}
	for r, err := range q.Results(t.Context(), id, outcomes...) {
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := all[r.Job]; twice {
			t.Errorf("job %s is exported twice", r.Job)
		}
		all[r.Job] = r.Outcome
	}
	return all
}

func record(t testing.TB, q *Queue, id string) Import {
	t.Helper()
	i, err := q.Import(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// An import is worked to its end: the record, the counts, the export and the progress agree, and no job is left.
func TestTermCompletesAnImport(t *testing.T) {
	q := leaderQueue(t)
	imported(t, q, "imp", 700)
	l := lead(t, q, TermConfig{Term: 1, Name: "w"})
	l.work(t, 700, func(i int, _ *Delivery) int { return []int{0, 0, 1, 2}[i%4] })
	l.complete(t, 1)
	i := record(t, q, "imp")
	want := Counts{Results: 700, Calls: 700, LastResult: i.Counts.LastResult}
	want.Jobs.Done, want.Jobs.Partial, want.Jobs.Failed = 350, 175, 175
	want.Conversations.Done, want.Conversations.Failed = 875, 525
	if i.State != Complete || i.Counts != want || i.Counts.LastResult.IsZero() {
		t.Errorf("record: got %+v, want complete with %+v", i, want)
	}
	if got := len(written(t, q, "imp")); got != 700 {
		t.Errorf("got %d results, want 700", got)
	}
	if got := len(exported(t, q, "imp")); got != 700 {
		t.Errorf("exported %d, want 700", got)
	}
	if got := exported(t, q, "imp", job.Failed, job.Partial); len(got) != 350 {
		t.Errorf("exported %d failures, want 350", len(got))
	}
	p, err := q.Progress(t.Context(), "imp")
	if err != nil || p.Counts != want || p.Pending != 0 {
		t.Errorf("progress: got %+v, %v", p, err)
	}
	wait(t, "idle", l.Idle)
	if open, err := q.OpenImports(t.Context()); err != nil || len(open) > 0 {
		t.Errorf("open imports: got %v, %v, want none", open, err)
	}
}
