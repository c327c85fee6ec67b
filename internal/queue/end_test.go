package queue

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"groupferry/internal/broker"
	"groupferry/internal/job"
	"groupferry/internal/longtest"
)

func cancelAndDelete(ctx context.Context, q *Queue, id string) error {
	if err := q.Cancel(ctx, id); err != nil {
		return err
	}
	return q.Delete(ctx, id)
}

func TestCancel(t *testing.T) {
	q := openQueue(t)
	begin(t, q, "a", 1500)
	h := &handWriter{q: q, rec: begin(t, q, "b", 3)}
	h.write(t, testResult("b", 0), testResult("b", 1, "51007"))
	for range 2 { // the second one finds nothing to do
		for _, id := range []string{"a", "b"} {
			if err := q.Cancel(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
	}
	a, _ := q.Import(t.Context(), "a")
	b, _ := q.Import(t.Context(), "b")
	if a.State != Cancelled || a.Jobs != 1500 || a.Counts.Results != 0 || a.Completed.IsZero() {
		t.Errorf("got %+v", a)
	}
	if b.State != Cancelled || !sameCounts(b.Counts, h.state.Counts) || b.Counts.Results != 2 {
		t.Errorf("got %+v, want the counts %+v", b, h.state.Counts)
	}
	wantJobs(t, q, "a", 1500) // what was dropped stays
	if open, err := q.OpenImports(t.Context()); err != nil || len(open) != 0 {
		t.Errorf("open imports: got %v, %v", open, err)
	}
	if s := remains(t, q, "b"); s[q.resultSubject("b", "done")] != 1 || s[q.resultSubject("b", endKind)] != 1 {
		t.Errorf("got %v, want the results and the end", s)
	}
	if _, err := q.Enqueue(t.Context(), "a", testJobs("a", 1500), nil); !errors.Is(err, ErrCancelled) {
		t.Errorf("enqueue: got %v, want ErrCancelled", err)
	}
	if _, _, err := q.Retry(t.Context(), "b", nil, nil); !errors.Is(err, ErrCancelled) {
		t.Errorf("retry: got %v, want ErrCancelled", err)
	}
	h = &handWriter{q: q, rec: begin(t, q, "c", 1)}
	h.write(t, testResult("c", 0))
	h.complete(t)
	if err := q.Cancel(t.Context(), "c"); err == nil {
		t.Error("cancel of a complete import: no error")
	}
	if err := q.Cancel(t.Context(), "none"); !errors.Is(err, ErrNoImport) {
		t.Errorf("got %v, want ErrNoImport", err)
	}
}

// A retry is cancelled that has its record, and no checkpoint yet: the import is complete again, with the counts that it
// had, and can be retried.
func TestCancelBeforeRetryStarts(t *testing.T) {
	q := openQueue(t)
	begin(t, q, "i", 20)
	if err := completeWithFailures(t.Context(), q, "i", 20); err != nil {
		t.Fatal(err)
	}
	want := record(t, q, "i").Counts
	if want.Results == 0 {
		t.Fatal("got no results, want some")
	}
	if _, _, err := q.beginRetry(t.Context(), "i", nil); err != nil {
		t.Fatal(err)
	}
	if err := q.Cancel(t.Context(), "i"); err != nil {
		t.Fatal(err)
	}
	i := record(t, q, "i")
	if i.State != Complete || !sameCounts(i.Counts, want) {
		t.Errorf("got state %s with %+v, want complete with %+v", i.State, i.Counts, want)
	}
	if _, err := q.Progress(t.Context(), "i"); err != nil {
		t.Errorf("progress: %v", err)
	}
	if _, _, err := q.Retry(t.Context(), "i", nil, nil); err != nil {
		t.Errorf("retry: %v", err)
	}
}

// Two processes cancel an import. The late one removes its end message, which took the place of the other's. The leader
// writes no result nevertheless.
func TestNoResultAfterTwoCancels(t *testing.T) {
	q := leaderQueue(t)
	imported(t, q, "i", 2)
	l := lead(t, q, TermConfig{Term: 1})
	first, late := l.next(t), l.next(t)
	first.Finish(resultOf(t, first, 0))
	wait(t, "a result", func() bool { return len(written(t, q, "i")) == 1 })
	i, err := q.markCancelled(t.Context(), "i")
	if err == nil {
		err = q.finishEnd(t.Context(), i)
	}
	if err != nil {
		t.Fatal(err)
	}
	m, err := q.conn.LastMsg(t.Context(), q.resultsStream(), q.resultSubject("i", endKind))
	if err != nil {
		t.Fatal(err)
	}
	if err := q.results.DeleteMsg(t.Context(), m.Sequence); err != nil {
		t.Fatal(err)
	}
	late.Finish(resultOf(t, late, 0))
	l.stop(t)
	if got := len(written(t, q, "i")); got != 1 {
		t.Errorf("got %d results, want the 1 that was there when the import was cancelled", got)
	}
	if _, err := q.Progress(t.Context(), "i"); err != nil {
		t.Errorf("progress: %v", err)
	}
}

// The end of an import that is complete was cut off. Who begins it again finishes that.
func TestBeginFinishesTheEnd(t *testing.T) {
	q := openQueue(t)
	begin(t, q, "i", 20)
	if _, err := q.Update(t.Context(), "i", func(i *Import) { i.State = Complete }); err != nil {
		t.Fatal(err)
	}
	i := record(t, q, "i")
	if _, existed, err := q.Begin(t.Context(), Import{ID: "i", Digest: i.Digest}); err != nil || !existed {
		t.Fatalf("got existed %t, %v, want true", existed, err)
	}
	if open, err := q.OpenImports(t.Context()); err != nil || len(open) > 0 {
		t.Errorf("open imports: got %v, %v, want none", open, err)
	}
}

func TestDelete(t *testing.T) {
	q := openQueue(t)
	begin(t, q, "a", 10)
	begin(t, q, "b", 10)
	if err := q.Delete(t.Context(), "a"); !errors.Is(err, ErrUnfinished) {
		t.Fatalf("got %v, want ErrUnfinished", err)
	}
	if err := cancelAndDelete(t.Context(), q, "a"); err != nil {
		t.Fatal(err)
	}
	wantNothing(t, q, "a")
	if err := q.Delete(t.Context(), "a"); !errors.Is(err, ErrNoImport) {
		t.Errorf("again: got %v, want ErrNoImport", err)
	}
	wantJobs(t, q, "b", 10)
	begin(t, q, "a", 20)
	wantJobs(t, q, "a", 20)
}

func TestDeleteManyResults(t *testing.T) {
	q := openQueue(t)
	const n = 20_000
	h := &handWriter{q: q, rec: begin(t, q, "a", 1)}
	other := &handWriter{q: q, rec: begin(t, q, "b", 1)}
	other.write(t, testResult("b", 0))
	for i := 0; i < n; i += 1000 {
		batch := make([]*nats.Msg, 1000)
		for k := range batch {
			r := testResult("a", i+k, []string{"", "51007"}[k%2])
			batch[k] = &nats.Msg{
				Subject: q.resultSubject("a", string(r.Outcome)), Data: r.AppendJSON(nil), Header: nats.Header{},
			}
		}
		if _, err := jetstreamext.PublishMsgBatch(t.Context(), q.js, batch); err != nil {
			t.Fatal(err)
		}
	}
	h.state.Counts.Results = n
	h.write(t)
	h.complete(t)
	if err := q.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	wantNothing(t, q, "a")
	if s := remains(t, q, "b"); s[q.resultSubject("b", "done")] != 1 {
		t.Errorf("the other import's results: got %v", s)
	}
}

func TestDeleteOlder(t *testing.T) {
	q := openQueue(t)
	for i, id := range []string{"old", "young", "cut", "running"} {
		h := &handWriter{q: q, rec: begin(t, q, id, 1)}
		if id == "running" {
			continue
		}
		h.write(t, testResult(id, 0))
		h.complete(t)
		_, err := q.Update(t.Context(), id, func(r *Import) {
			if i != 1 {
				r.Completed = now().Add(-48 * time.Hour)
			}
			if id == "cut" {
				r.State, r.Completed = Deleting, now()
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	gone, err := q.DeleteOlder(t.Context(), 24*time.Hour)
	if err != nil || fmt.Sprint(gone) != "[cut old]" {
		t.Fatalf("got %v, %v", gone, err)
	}
	wantNothing(t, q, "old")
	wantNothing(t, q, "cut")
	for _, id := range []string{"young", "running"} {
		if _, err := q.Import(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
}

// Cancel and delete while an enqueue is under way, after each of its batches: it stops, and after a delete nothing is left.
func TestCancelAndDeleteDuringEnqueue(t *testing.T) {
	q := openQueue(t)
	const batches = 4
	for at := range batches + 1 {
		for _, then := range []struct {
			name string
			do   func(context.Context, *Queue, string) error
			want error
		}{
			{"cancel", func(ctx context.Context, q *Queue, id string) error { return q.Cancel(ctx, id) }, ErrCancelled},
			{"delete", cancelAndDelete, ErrNoImport},
		} {
			id := fmt.Sprintf("%s-%d", then.name, at)
			if _, _, err := q.Begin(t.Context(), Import{ID: id, Digest: "d"}); err != nil {
				t.Fatal(err)
			}
			batch, given := 0, 0
			jobs := func(yield func(job.Job) bool) {
				for j := range testJobs(id, batches*maxBatchJobs) {
					if given == at*maxBatchJobs {
						if err := then.do(t.Context(), q, id); err != nil {
							t.Fatal(err)
						}
					}
					given++
					if !yield(j) {
						return
					}
				}
				if at == batches { // after all jobs were given, before the end is known
					if err := then.do(t.Context(), q, id); err != nil {
						t.Fatal(err)
					}
				}
			}
			_, err := q.Enqueue(t.Context(), id, jobs, func(int64) { batch++ })
			if !errors.Is(err, then.want) {
				t.Errorf("%s: got %v, want %v", id, err, then.want)
			}
			if batch != at {
				t.Errorf("%s: it was stopped after %d batches, want %d", id, batch, at)
			}
			if then.want == ErrNoImport {
				wantNothing(t, q, id)
			} else {
				wantJobs(t, q, id, at*maxBatchJobs)
				if err := q.Delete(t.Context(), id); err != nil {
					t.Error(err)
				}
				wantNothing(t, q, id)
			}
		}
	}
}

// A batch that was sent before an import was deleted, and comes after it, is rejected: also when nothing else was written
// since, and by either condition.
func TestLateBatchIsRejected(t *testing.T) {
	q := openQueue(t)
	for _, aside := range []int{0, 1} {
		for _, again := range []bool{false, true} {
			rec, _, err := q.Begin(t.Context(), Import{ID: "a", Digest: "d"})
			if err != nil {
				t.Fatal(err)
			}
			w := &writer{q: q, rec: rec}
			if err := w.open(t.Context()); err != nil {
				t.Fatal(err)
			}
			for i := range maxBatchJobs + 1 {
				j := testJob("a", i)
				if err := w.take(t.Context(), &j); err != nil {
					t.Fatal(err)
				}
			}
			if err := cancelAndDelete(t.Context(), q, "a"); err != nil {
				t.Fatal(err)
			}
			if again {
				begin(t, q, "a", 2)
			}
			w.aside = aside
			if err := w.publish(t.Context(), true); !broker.LostRace(err) {
				t.Errorf("aside %d, begun again %v: got %v, want it rejected", aside, again, err)
			}
			if err := w.commit(t.Context(), true); !errors.Is(err, ErrNoImport) {
				t.Errorf("aside %d, begun again %v: got %v, want ErrNoImport", aside, again, err)
			}
			if again {
				wantJobs(t, q, "a", 2)
				if err := cancelAndDelete(t.Context(), q, "a"); err != nil {
					t.Fatal(err)
				}
			}
			wantNothing(t, q, "a")
		}
	}
}

// A delete that stood still in any of its steps, while another process finished it and began the import anew, does the
// new one no harm.
func TestDeleteOvertakenByBegin(t *testing.T) {
	q := openQueue(t)
	begin(t, q, "a", 10)
	if err := q.Cancel(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	old, revision, err := q.update(t.Context(), "a", func(i *Import) { i.State = Deleting })
	if err != nil {
		t.Fatal(err)
	}
	p := newCheckpoint(&old)
	p.Ended = true
	seq, err := q.putCheckpoint(t.Context(), "a", p, 0)
	if err != nil {
		t.Fatal(err)
	}
	end, err := q.putEnd(t.Context(), &old)
	if err != nil {
		t.Fatal(err)
	}
	h := &handWriter{q: q, rec: begin(t, q, "a", 20)} // finishes the delete
	h.write(t, testResult("a", 0))
	want := remains(t, q, "a")

	for name, step := range map[string]func() error{
		"all": func() error { return q.finishEnd(t.Context(), old) },
		"from its end message on": func() error {
			_, err := q.removeEnded(t.Context(), old, revision, p, seq)
			return err
		},
		"its jobs":       func() error { return q.purgeJobs(t.Context(), q.jobsSubject("a"), seq) },
		"its checkpoint": func() error { return q.purgeJobs(t.Context(), q.checkpointSubject("a"), seq) },
		"its results":    func() error { return q.purgeResults(t.Context(), "a", end) },
		"its record": func() error {
			if err := q.control.Purge(t.Context(), importKey("a"), jetstream.LastRevision(revision)); !broker.LostRace(err) {
				return fmt.Errorf("got %v, want it rejected", err)
			}
			return nil
		},
		"its terminal checkpoint": func() error {
			if _, err := q.putCheckpoint(t.Context(), "a", p, 0); !broker.LostRace(err) {
				return fmt.Errorf("got %v, want it rejected", err)
			}
			return nil
		},
	} {
		if err := step(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := remains(t, q, "a"); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("%s: got %v, want %v", name, got, want)
		}
	}
	wantJobs(t, q, "a", 20)
}

// A start that stood still between record and checkpoint, while the import was deleted.
func TestStartOvertakenByDelete(t *testing.T) {
	q := openQueue(t)
	rec, _, err := q.Begin(t.Context(), Import{ID: "a", Digest: "d"})
	if err != nil {
		t.Fatal(err)
	}
	if err := cancelAndDelete(t.Context(), q, "a"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := q.startGeneration(t.Context(), rec); !errors.Is(err, ErrNoImport) {
		t.Errorf("got %v, want ErrNoImport", err)
	}
	wantNothing(t, q, "a")

	// And one that was killed right after it wrote the checkpoint. Nobody adopts it.
	orphan := func() uint64 {
		seq, err := q.putCheckpoint(t.Context(), "a", newCheckpoint(&rec), 0)
		if err != nil {
			t.Fatal(err)
		}
		return seq
	}
	orphan()
	w := &writer{q: q, rec: rec}
	if err := w.catchUp(t.Context()); !errors.Is(err, ErrNoImport) {
		t.Errorf("got %v, want ErrNoImport", err)
	}
	if err := q.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantNothing(t, q, "a")
	orphan()
	begin(t, q, "a", 5)
	wantJobs(t, q, "a", 5)
}

// Records that were lost: it is said, nothing is removed, and delete gets rid of the rest.
func TestLostRecord(t *testing.T) {
	for _, results := range []bool{false, true} {
		q := openQueue(t)
		h := &handWriter{q: q, rec: begin(t, q, "a", 2000)}
		if results {
			h.write(t, testResult("a", 0))
			h.complete(t)
		}
		if err := q.control.Purge(t.Context(), importKey("a")); err != nil {
			t.Fatal(err)
		}
		left := fmt.Sprint(remains(t, q, "a"))
		var damaged *broker.DamagedError
		if _, _, err := q.Begin(t.Context(), Import{ID: "a", Digest: "d"}); !errors.As(err, &damaged) {
			t.Errorf("begin: got %v, want a DamagedError", err)
		}
		if err := q.Sweep(t.Context()); !results && !errors.As(err, &damaged) {
			t.Errorf("sweep: got %v, want a DamagedError", err)
		}
		if got := fmt.Sprint(remains(t, q, "a")); got != left {
			t.Errorf("got %s, want %s", got, left)
		}
		if err := q.Delete(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		wantNothing(t, q, "a")
		begin(t, q, "a", 5)
		wantJobs(t, q, "a", 5)
	}
}

// A checkpoint that was lost does not make an enqueue put its jobs there once more.
func TestLostCheckpoint(t *testing.T) {
	q := openQueue(t)
	ctx, cancel := context.WithCancel(t.Context())
	if _, _, err := q.Begin(t.Context(), Import{ID: "a", Digest: "d"}); err != nil {
		t.Fatal(err)
	}
	if _, err := q.Enqueue(ctx, "a", stopAfter(testJobs("a", 3000), 2500, cancel), nil); err == nil {
		t.Fatal("no error")
	}
	last, err := q.lastSeq(t.Context(), q.jobsStream())
	if err == nil {
		err = q.purgeJobs(t.Context(), q.checkpointSubject("a"), last)
	}
	if err != nil {
		t.Fatal(err)
	}
	var damaged *broker.DamagedError
	if _, err := q.Enqueue(t.Context(), "a", testJobs("a", 3000), nil); !errors.As(err, &damaged) {
		t.Errorf("got %v, want a DamagedError", err)
	}
	wantJobs(t, q, "a", 2*maxBatchJobs)
}

// Any commands at once, each cut off at any time or not: what is left is whole, after the next Sweep at the latest.
func TestCommandsAtOnce(t *testing.T) {
	dir := t.TempDir()
	queues := make([]*Queue, 3)
	for i := range queues {
		q, err := Open(t.Context(), openConn(t, dir))
		if err != nil {
			t.Fatal(err)
		}
		queues[i] = q
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	rounds := 20
	if longtest.Asked() {
		rounds = 150
	}
	for round := range rounds {
		commandsAtOnce(t, rng, queues)
		if t.Failed() {
			t.Fatalf("seed %d, round %d", seed, round)
		}
	}
}

func commandsAtOnce(t *testing.T, rng *rand.Rand, queues []*Queue) {
	const id, jobs = "a", 2*999 + 5
	enqueue := func(ctx context.Context, q *Queue) error {
		if _, _, err := q.Begin(ctx, Import{ID: id, Digest: "d"}); err != nil {
			return err
		}
		_, err := q.Enqueue(ctx, id, testJobs(id, jobs), nil)
		return err
	}
	commands := []struct {
		name string
		do   func(context.Context, *Queue) error
	}{
		{"enqueue", enqueue},
		{"enqueue", enqueue},
		{"cancel", func(ctx context.Context, q *Queue) error { return q.Cancel(ctx, id) }},
		{"delete", func(ctx context.Context, q *Queue) error { return q.Delete(ctx, id) }},
		{"cancel and delete", func(ctx context.Context, q *Queue) error { return cancelAndDelete(ctx, q, id) }},
		{"retry", func(ctx context.Context, q *Queue) error { _, _, err := q.Retry(ctx, id, nil, nil); return err }},
		{"sweep", func(ctx context.Context, q *Queue) error { return q.Sweep(ctx) }},
		{"retention", func(ctx context.Context, q *Queue) error { _, err := q.DeleteOlder(ctx, 0); return err }},
		{"complete", func(ctx context.Context, q *Queue) error { return completeWithFailures(ctx, q, id, jobs) }},
	}
	var wg sync.WaitGroup
	var ran [3]string
	for p, q := range queues {
		command := commands[rng.IntN(len(commands))]
		pause := time.Duration(rng.Int64N(int64(10 * time.Millisecond)))
		cut := time.Hour
		if rng.IntN(2) == 0 {
			cut = time.Duration(rng.Int64N(int64(40 * time.Millisecond)))
		}
		ran[p] = fmt.Sprintf("%s after %v for %v", command.name, pause, cut)
		wg.Go(func() {
			time.Sleep(pause) // not a wait for anything: it mixes the commands
			ctx, cancel := context.WithTimeout(t.Context(), cut)
			defer cancel()
			var damaged *broker.DamagedError
			if err := command.do(ctx, q); errors.As(err, &damaged) {
				t.Errorf("%s: %v", command.name, err)
			}
		})
	}
	wg.Wait()
	checkWhole(t, queues[0], id, fmt.Sprintf("%q", ran))
}

// checkWhole makes sure that what is there of an import fits together: at once, that no jobs are there without a record;
// the rest after a Sweep, or a Delete if it is being deleted.
func checkWhole(t *testing.T, q *Queue, id, after string) {
	t.Helper()
	left := remains(t, q, id)
	i, err := q.Import(t.Context(), id)
	if left[q.jobsSubject(id)] > 0 && err != nil {
		t.Errorf("after %s: jobs without a record: %v, %v", after, left, err)
	}
	if err == nil && i.State == Deleting { // a command for it finishes that; Sweep need not see it
		if err := q.Delete(t.Context(), id); err != nil {
			t.Errorf("after %s: %v", after, err)
		}
	}
	if err := q.Sweep(t.Context()); err != nil {
		t.Errorf("after %s: %v", after, err)
	}
	left = nil
	// What a command that was cut off had sent can still arrive, so the checkpoint is read on both sides of the counts: it
	// changes with the jobs, in one batch.
	var p checkpoint
	var seq uint64
	for {
		before := seq
		var perr error
		if p, seq, perr = q.checkpoint(t.Context(), id); perr != nil {
			t.Fatal(perr)
		}
		if left != nil && before == seq {
			break
		}
		left = remains(t, q, id)
		i, err = q.Import(t.Context(), id)
	}
	switch {
	case errors.Is(err, ErrNoImport):
		delete(left, q.resultSubject(id, endKind)) // of a process that was cut off; the next Begin removes it
		if len(left) > 0 {
			t.Errorf("after %s: no record, and %v", after, left)
		}
	case err != nil:
		t.Error(err)
	case !i.live():
		if seq != 0 || left[q.jobsSubject(id)] > 0 && i.State != Cancelled {
			t.Errorf("after %s: %s, and %v", after, i.State, left)
		}
	case seq == 0:
		if left[q.jobsSubject(id)] > 0 {
			t.Errorf("after %s: %s, no checkpoint, and %v", after, i.State, left)
		}
	default:
		if !p.of(&i) || p.Ended || left[q.jobsSubject(id)] != uint64(p.Jobs) {
			t.Errorf("after %s: %s with the checkpoint %+v, and %v", after, i.State, p, left)
		}
		if i.State == Running && !p.Done {
			t.Errorf("after %s: running, and the checkpoint is %+v", after, p)
		}
	}
	if i.Generation == 0 && err == nil {
		stored := storedJobs(t, q, id)
		for n, j := range stored {
			if j.ID != testJob(id, n).ID {
				t.Errorf("after %s: job %d is %s", after, n, j.ID)
				return
			}
		}
	}
}

// completeWithFailures does what a leader does at the end of an import: it writes results, a few of them failed, unless it
// finds that the import is over, and completes it.
func completeWithFailures(ctx context.Context, q *Queue, id string, jobs int) error {
	s, err := q.conn.StreamState(ctx, q.resultsStream(), "")
	if err != nil {
		return err
	}
	p, seq, err := q.checkpoint(ctx, id)
	if err != nil {
		return err
	}
	rec, err := q.Import(ctx, id)
	if err != nil || !rec.live() || seq == 0 || !p.Done || !p.of(&rec) {
		return err
	}
	st := state{Incarnation: rec.Incarnation, Generation: rec.Generation}
	if m, err := q.conn.LastMsg(ctx, q.resultsStream(), q.resultSubject(id, stateKind)); err == nil {
		old, err := decodeState(m.Data)
		if err != nil {
			return err
		}
		if old.Incarnation == rec.Incarnation {
			st.Counts = old.Counts
		}
	}
	var batch []*nats.Msg
	for n := range 5 {
		r := testResult(id, n, "51007", "51007")
		r.Generation = rec.Generation
		batch = append(batch, &nats.Msg{
			Subject: q.resultSubject(id, string(r.Outcome)), Data: r.AppendJSON(nil), Header: nats.Header{},
		})
		st.Counts.Results++
	}
	batch = append(batch, &nats.Msg{
		Subject: q.resultSubject(id, stateKind), Data: st.encode(), Header: nats.Header{"Nats-Rollup": {"sub"}},
	})
	batch[0].Header.Set("Nats-Expected-Last-Sequence", fmt.Sprint(s.LastSeq))
	bounded, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := jetstreamext.PublishMsgBatch(bounded, q.js, batch); err != nil {
		return err
	}
	i, err := q.Update(ctx, id, func(i *Import) {
		if i.same(&rec) && i.live() {
			i.enqueued(p)
			i.State, i.Completed, i.Counts = Complete, now(), st.Counts
		}
	})
	if err != nil || !i.same(&rec) || i.live() {
		return err
	}
	return q.finishEnd(ctx, i)
}
