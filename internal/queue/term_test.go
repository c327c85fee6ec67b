package queue

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
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

// leave ends the first term with a job in flight, stopped or lost. A second one follows it, writes a state of each import, and is
// stopped before it hands out a job.
func (l *ledTerm) leave(t testing.TB, inFlight *Delivery, lost bool) {
	t.Helper()
	if lost {
		l.kill()
	} else {
		inFlight.Requeue(0, false)
		l.stop(t)
	}
	next := lead(t, l.q, TermConfig{Term: 2, Crashed: lost})
	wait(t, "the first states", func() bool {
		next.Term.mu.Lock()
		defer next.Term.mu.Unlock()
		return !slices.ContainsFunc(next.d.imports, func(a *active) bool { return a.hold })
	})
	next.stop(t)
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
		FromAccount: j.FromAccount, GroupName: j.GroupName, Attempts: d.Attempt(), Calls: 1, Worker: "w",
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
	want.Codes = map[string]int64{"50001": 525}
	if i.State != Complete || !sameCounts(i.Counts, want) || i.Counts.LastResult.IsZero() {
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
	if err != nil || !sameCounts(p.Counts, want) || p.Pending != 0 {
		t.Errorf("progress: got %+v, %v", p, err)
	}
	wait(t, "idle", l.Idle)
	if open, err := q.OpenImports(t.Context()); err != nil || len(open) > 0 {
		t.Errorf("open imports: got %v, %v, want none", open, err)
	}
}

// A retried job that crashes the leader has a few of the conversations of its result; the others keep theirs.
func TestCrashedRetry(t *testing.T) {
	conversation := func(id, code string) job.ConversationResult {
		return job.ConversationResult{Conversation: job.Conversation{Type: job.OneToOne, ID: id}, Code: code}
	}
	before := job.Result{
		Job: "j", Outcome: job.Partial, Attempts: 2, Calls: 3, GroupID: 4,
		Conversations: []job.ConversationResult{conversation("a", ""), conversation("b", "1"), conversation("c", "2")},
	}
	j := job.Job{ID: "j", Prior: 7, Conversations: []job.Conversation{{Type: job.OneToOne, ID: "b"}}}
	r := crashedResult(&j, &before)
	want := []job.ConversationResult{conversation("a", ""), conversation("b", CodeCrashed), conversation("c", "2")}
	if !slices.Equal(r.Conversations, want) || r.Outcome != job.Partial || r.Replaces != 7 {
		t.Errorf("got %s with %+v in place of %d, want partial with %+v in place of 7", r.Outcome, r.Conversations, r.Replaces, want)
	}
	if r.Calls != 3 || r.Attempts != 3 || r.GroupID != 4 || before.Conversations[1].Code != "1" {
		t.Errorf("got %+v of %+v, want 3 calls and attempts, and group 4", r, before)
	}
}

// Whoever sees that an import is complete may stop the leader at once, which is then at removing its jobs, or not yet.
func TestCloseCompletesAnImport(t *testing.T) {
	q := leaderQueue(t)
	imported(t, q, "i", 3)
	l := lead(t, q, TermConfig{Term: 1})
	for range 2 {
		d := l.next(t)
		d.Finish(resultOf(t, d, 0))
	}
	last := l.next(t)
	l.kill()
	last.Finish(resultOf(t, last, 0))
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if i := record(t, q, "i"); i.State != Complete || i.Counts.Results != 3 {
		t.Errorf("got state %s with %d results, want complete with 3", i.State, i.Counts.Results)
	}
	for subject, n := range remains(t, q, "i") {
		if subject == q.jobsSubject("i") || subject == q.checkpointSubject("i") {
			t.Errorf("got %d messages on %s, want none", n, subject)
		}
	}
	if len(l.completed) != 1 {
		t.Errorf("got %d imports completed, want 1", len(l.completed))
	}
}

// busy takes jobs and finishes them, as many as most for each worker, until the term has ended.
func (l *ledTerm) busy(t testing.TB, workers, most int) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for range most {
				d, err := l.Next(ctx)
				if err != nil {
					return
				}
				d.Finish(resultOf(t, d, 0))
			}
		})
	}
	return func() {
		cancel()
		all.Wait()
	}
}

// Leaders take over from each other in the middle of their work, without knowing it: the earlier one is told, and no job
// has two results or none.
func TestTermTakenOver(t *testing.T) {
	q := leaderQueue(t)
	const jobs = 5000
	imported(t, q, "one", jobs)
	imported(t, q, "two", jobs)
	var l *ledTerm
	for n := 1; n <= 6; n++ {
		before := l
		l = lead(t, q, TermConfig{Term: uint64(n), Crashed: n%2 == 0})
		most := 190 // five leaders do not come to the end
		if n == 6 {
			most = 2 * jobs
		}
		stop := l.busy(t, 8, most)
		defer stop()
		if before != nil {
			before.Resync() // makes it look now, if it has nothing to write
			if err := <-before.done; !errors.Is(err, ErrSuperseded) {
				t.Errorf("term %d: got %v, want %v", n-1, err, ErrSuperseded)
			}
			before.done <- nil
			if _, err := before.Next(t.Context()); !errors.Is(err, ErrSuperseded) {
				t.Errorf("next job of term %d: got %v, want %v", n-1, err, ErrSuperseded)
			}
			if err := before.Close(t.Context()); !errors.Is(err, ErrSuperseded) {
				t.Errorf("close term %d: got %v, want %v", n-1, err, ErrSuperseded)
			}
		}
		if n < 6 {
			wait(t, "a group of this term", func() bool {
				s, _, err := q.lastState(t.Context(), "one")
				if err != nil {
					t.Fatal(err)
				}
				return s != nil && s.Marker == l.marker
			})
		}
	}
	for _, id := range []string{"one", "two"} {
		wait(t, "import "+id+" complete", func() bool { return record(t, q, id).State == Complete })
	}
	for _, id := range []string{"one", "two"} {
		if got := len(written(t, q, id)); got != jobs {
			t.Errorf("import %s has %d results, want %d", id, got, jobs)
		}
		if i := record(t, q, id); i.State != Complete || i.Counts.Jobs.Done != jobs {
			t.Errorf("import %s: got %+v, want complete with %d done", id, i, jobs)
		}
	}
	if _, err := q.Lead(t.Context(), TermConfig{Term: 5}); !errors.Is(err, ErrSuperseded) {
		t.Errorf("an earlier term: got %v, want %v", err, ErrSuperseded)
	}
}

// notRunning begins a term that does not run: what would be written is written step by step.
func notRunning(t testing.TB, q *Queue, cfg TermConfig) *Term {
	t.Helper()
	term, err := q.Lead(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if ready, _, _ := term.toWrite(); ready { // the first states, before which nothing is handed out
		if err := term.writeGroup(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return term
}

// take reads jobs into the buffers and gives n of them.
func take(t testing.TB, term *Term, n int) (all []*Delivery) {
	t.Helper()
	r := term.q.newBatchReader(term.q.jobsStream())
	defer r.close()
	for len(all) < n {
		if _, err := term.fillAll(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		for len(all) < n {
			d, err := term.Next(ctx)
			if err != nil {
				break
			}
			all = append(all, d)
		}
		cancel()
		if t.Failed() {
			t.FailNow()
		}
	}
	return all
}

// A group whose response was lost is sent again, and found to be there.
func TestGroupWithoutResponse(t *testing.T) {
	q := leaderQueue(t)
	imported(t, q, "imp", 20)
	term := notRunning(t, q, TermConfig{Term: 1})
	for _, d := range take(t, term, 10) {
		d.Finish(resultOf(t, d, 0))
	}
	term.sent = term.nextGroup(time.Now())
	if _, err := term.send(t.Context(), term.sent); err != nil { // and nobody hears of it
		t.Fatal(err)
	}
	if err := term.writeGroup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := term.Snapshot(); s.Unwritten != 0 {
		t.Errorf("got %+v, want nothing unwritten", s)
	}
	if got := len(written(t, q, "imp")); got != 10 {
		t.Errorf("got %d results, want 10", got)
	}
	for _, d := range take(t, term, 10) {
		d.Finish(resultOf(t, d, 0))
	}
	if err := term.writeGroup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := len(written(t, q, "imp")); got != 20 {
		t.Errorf("got %d results, want 20", got)
	}
	s, _, err := q.lastState(t.Context(), "imp")
	if err != nil || s.Counts.Results != 20 || s.Handed != 20 || len(s.Unfinished) != 0 {
		t.Errorf("state: got %+v, %v", s, err)
	}
}

// The response was lost, and before the group was sent again another leader began: it is not written twice.
func TestGroupWithoutResponseSuperseded(t *testing.T) {
	q := leaderQueue(t)
	imported(t, q, "imp", 20)
	term := notRunning(t, q, TermConfig{Term: 1})
	for _, d := range take(t, term, 10) {
		d.Finish(resultOf(t, d, 0))
	}
	term.sent = term.nextGroup(time.Now())
	if _, err := term.send(t.Context(), term.sent); err != nil {
		t.Fatal(err)
	}
	l := lead(t, q, TermConfig{Term: 2, Crashed: true})
	if err := term.writeGroup(t.Context()); !errors.Is(err, ErrSuperseded) {
		t.Errorf("got %v, want %v", err, ErrSuperseded)
	}
	l.work(t, 10, nil)
	l.complete(t, 1)
	if got := len(written(t, q, "imp")); got != 20 {
		t.Errorf("got %d results, want 20", got)
	}
}

// An import ends while a group with its results is under way: they are dropped, and those of the others are written.
func TestGroupAndTheEndOfAnImport(t *testing.T) {
	q := leaderQueue(t)
	imported(t, q, "one", 10)
	imported(t, q, "two", 10)
	imported(t, q, "three", 10)
	term := notRunning(t, q, TermConfig{Term: 1})
	for _, d := range take(t, term, 30) {
		d.Finish(resultOf(t, d, 0))
	}
	term.sent = term.nextGroup(time.Now())
	if got := len(term.sent.parts); got != 3 {
		t.Fatalf("got %d parts, want 3", got)
	}
	if err := q.Cancel(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	if err := q.Cancel(t.Context(), "three"); err != nil {
		t.Fatal(err)
	}
	if err := q.Delete(t.Context(), "three"); err != nil {
		t.Fatal(err)
	}
	imported(t, q, "three", 5) // it is another one now
	if err := term.writeGroup(t.Context()); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]int{"one": 0, "two": 10, "three": 0} {
		if got := len(written(t, q, id)); got != want {
			t.Errorf("import %s has %d results, want %d", id, got, want)
		}
	}
	if i := record(t, q, "one"); i.State != Cancelled || i.Counts.Results != 0 {
		t.Errorf("got %+v, want cancelled without results", i)
	}
	if s := term.Snapshot(); s.Unwritten != 0 || s.Imports != 1 {
		t.Errorf("got %+v, want nothing unwritten, and one import", s)
	}
	l := lead(t, q, TermConfig{Term: 2})
	l.work(t, 5, nil)
	l.complete(t, 2)
	if got := len(exported(t, q, "three")); got != 5 {
		t.Errorf("exported %d, want 5", got)
	}
}

// With 2,000 results unwritten no job is handed out, and when they are written, the others are.
func TestTermStopsAtUnwritten(t *testing.T) {
	q := leaderQueue(t)
	imported(t, q, "one", 1500)
	imported(t, q, "two", 1500)
	term := notRunning(t, q, TermConfig{Term: 1})
	for _, a := range term.byID {
		a.limit = 1 << 40 // the bound on what is not stated comes first otherwise
	}
	for _, d := range take(t, term, maxOpen) {
		d.Finish(resultOf(t, d, 0))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if d, err := term.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v, %v, want no job", d, err)
	}
	if s := term.Snapshot(); s.Unwritten != maxOpen {
		t.Errorf("got %+v, want %d unwritten", s, maxOpen)
	}
	done := make(chan error, 1)
	run, end := context.WithCancel(t.Context())
	go func() { done <- term.Run(run) }()
	l := &ledTerm{Term: term}
	l.work(t, 3000-maxOpen, nil)
	wait(t, "all complete", term.Idle)
	end()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, id := range []string{"one", "two"} {
		if got := len(written(t, q, id)); got != 1500 {
			t.Errorf("import %s has %d results, want 1,500", id, got)
		}
	}
}

// An import of 50 jobs beside one of 10,000 is complete long before that one.
func TestTermIsFair(t *testing.T) {
	q := leaderQueue(t)
	imported(t, q, "large", 10_000)
	l := lead(t, q, TermConfig{Term: 1})
	l.work(t, 100, nil)
	imported(t, q, "urgent", 50)
	l.Changed("urgent")
	done := 0
	for urgent := 0; urgent < 50; done++ {
		d := l.next(t)
		if d.Import() == "urgent" {
			urgent++
		}
		d.Finish(resultOf(t, d, 0))
	}
	// Until the import is found the other one continues; then they take turns.
	if done > 5000 {
		t.Errorf("50 jobs were handed out among %d, want far fewer", done)
	}
	l.complete(t, 1)
	if i := record(t, q, "urgent"); i.State != Complete {
		t.Errorf("got %+v, want complete", i)
	}
	if i := record(t, q, "large"); i.State != Running {
		t.Errorf("got %+v, want running", i)
	}
}

func TestTermPausesAnImport(t *testing.T) {
	q := leaderQueue(t)
	imported(t, q, "imp", 10)
	l := lead(t, q, TermConfig{Term: 1})
	l.work(t, 3, nil)
	if err := q.PauseImport(t.Context(), "imp"); err != nil {
		t.Fatal(err)
	}
	l.Changed("imp")
	wait(t, "paused", func() bool {
		l.mu2().Lock()
		defer l.mu2().Unlock()
		return l.byID["imp"].paused
	})
	l.none(t, 50*time.Millisecond)
	if l.Idle() {
		t.Error("idle with jobs left")
	}
	if err := q.ResumeImport(t.Context(), "imp"); err != nil {
		t.Fatal(err)
	}
	l.Resync()
	l.work(t, 7, nil)
	l.complete(t, 1)
}

// mu2 is the lock of the term itself.
func (l *ledTerm) mu2() *sync.Mutex { return &l.Term.mu }

// Jobs are handed out while the import is still being enqueued, and it becomes complete when all are there.
func TestTermWhileEnqueueing(t *testing.T) {
	q := leaderQueue(t)
	if _, _, err := q.Begin(t.Context(), Import{ID: "imp", Digest: "d"}); err != nil {
		t.Fatal(err)
	}
	l := lead(t, q, TermConfig{Term: 1})
	worked := make(chan struct{})
	go func() {
		defer close(worked)
		l.work(t, 2500, nil)
	}()
	if _, err := q.Enqueue(t.Context(), "imp", numberedJobs("imp", 2500, 2), nil); err != nil {
		t.Fatal(err)
	}
	<-worked
	l.complete(t, 1)
	if got := len(exported(t, q, "imp")); got != 2500 {
		t.Errorf("exported %d, want 2,500", got)
	}
}

// Who enqueued no jobs was killed before the record said so.
func TestTermCompletesWithoutJobs(t *testing.T) {
	q := leaderQueue(t)
	rec, _, err := q.Begin(t.Context(), Import{ID: "imp", Digest: "d"})
	if err != nil {
		t.Fatal(err)
	}
	w := &writer{q: q, rec: rec}
	if err := w.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.putAll(t.Context(), numberedJobs("imp", 0, 2)); err != nil {
		t.Fatal(err)
	}
	l := lead(t, q, TermConfig{Term: 1})
	l.complete(t, 1)
	if i := record(t, q, "imp"); i.State != Complete {
		t.Errorf("got %+v, want complete", i)
	}
}

// A leader that stops leaves what it did not finish to the next one, and no job under suspicion.
func TestTermHandsOver(t *testing.T) {
	q := leaderQueue(t)
	imported(t, q, "imp", 100)
	l := lead(t, q, TermConfig{Term: 1})
	var left []*Delivery
	for i := range 60 {
		d := l.next(t)
		if i%10 == 0 {
			left = append(left, d)
			continue
		}
		d.Finish(resultOf(t, d, 0))
	}
	for _, d := range left {
		d.Requeue(time.Hour, false)
	}
	l.stop(t)
	if _, err := l.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("next job after the end: got %v, want %v", err, ErrClosed)
	}
	p, err := q.Progress(t.Context(), "imp")
	if err != nil || p.Pending != 46 || p.InFlight != 0 || p.Counts.Results != 54 {
		t.Errorf("progress: got %+v, %v, want 46 pending, none in flight", p, err)
	}
	if p.Rate <= 0 || p.RateOver < time.Second || p.RateOver > time.Minute {
		t.Errorf("progress: got a rate of %v over %v, want one over a second at least", p.Rate, p.RateOver)
	}
	next := lead(t, q, TermConfig{Term: 2})
	for range left {
		d := next.next(t)
		found := false
		for _, old := range left {
			found = found || old.Sequence() == d.Sequence()
		}
		if !found || d.Attempt() != 1 {
			t.Errorf("job %d, attempt %d: want those first that were left, at attempt 1", d.Sequence(), d.Attempt())
		}
		d.Finish(resultOf(t, d, 0))
	}
	next.work(t, 40, nil)
	next.complete(t, 1)
	if got := len(written(t, q, "imp")); got != 100 {
		t.Errorf("got %d results, want 100", got)
	}
}

// Whatever an earlier leader may have done a part of is known as that: what it had in flight, and, if it was lost, what it may
// have taken since its last state; also after a leader that took nothing.
func TestWhatAnEarlierLeaderMayHaveHadInFlight(t *testing.T) {
	for _, lost := range []bool{false, true} {
		q := leaderQueue(t)
		imported(t, q, "imp", 2*minAhead)
		l := lead(t, q, TermConfig{Term: 1})
		d := l.next(t)
		if d.Earlier() {
			t.Error("the first leader has none before it")
		}
		l.leave(t, d, lost)
		l = lead(t, q, TermConfig{Term: 3})
		earlier := 0
		for range 2 * minAhead {
			d := l.next(t)
			if d.Earlier() {
				earlier++
			}
			d.Finish(resultOf(t, d, 0))
		}
		l.complete(t, 1)
		if want := map[bool]int{false: 1, true: minAhead}[lost]; earlier != want {
			t.Errorf("lost %t: %d jobs may have been in flight, want %d", lost, earlier, want)
		}
	}
}

// A leader closes its term, and is lost before it releases the lease. It had nothing in flight, so that nothing is tried by itself.
func TestLostAfterItsTermWasClosed(t *testing.T) {
	q := leaderQueue(t)
	imported(t, q, "imp", 40)
	l := lead(t, q, TermConfig{Term: 1})
	l.next(t).Requeue(0, false)
	l.stop(t)
	term := notRunning(t, q, TermConfig{Term: 2, Crashed: true})
	open := term.byID["imp"].open
	for _, e := range open {
		if e.crashes > 0 {
			t.Errorf("the job at %d is to be tried", e.seq)
		}
	}
	if len(open) != 1 {
		t.Errorf("got %d jobs without a result, want 1", len(open))
	}
}

func TestRequeueCountsAttempts(t *testing.T) {
	q := leaderQueue(t)
	imported(t, q, "imp", 1)
	l := lead(t, q, TermConfig{Term: 1})
	for i, counted := range []bool{false, true, true} {
		d := l.next(t)
		if want := []int{1, 1, 2}[i]; d.Attempt() != want {
			t.Errorf("attempt: got %d, want %d", d.Attempt(), want)
		}
		d.Requeue(time.Millisecond, counted)
		d.Finish(resultOf(t, d, 0)) // too late
	}
	if d := l.next(t); d.Attempt() != 3 {
		t.Errorf("attempt: got %d, want 3", d.Attempt())
	} else {
		d.Finish(resultOf(t, d, 0))
	}
	l.complete(t, 1)
	if got := len(written(t, q, "imp")); got != 1 {
		t.Errorf("got %d results, want 1", got)
	}
}
