package queue

import (
	"errors"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"groupferry/internal/job"
)

func settled(t *testing.T, q *Queue, id string) bool {
	t.Helper()
	q.doubts.Clear() // so that it is counted anew
	done, err := q.Settled(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

// A job that the consumer takes for done though it has no result is given out again.
func TestJobTakenForDone(t *testing.T) {
	q := open(t, Config{})
	enqueued(t, q, "i", 5)
	do := func(j job.Job, r *job.Result) job.Result {
		if r.Job != "" {
			return *r // it is there, and put again as it is
		}
		return doneWith(j)
	}
	work(t, q, "i", 3, do)
	for _, d := range fetch(t, q.Source("i"), 2) {
		if err := d.Ack(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	awaitIdle(t, q, "i")
	if settled(t, q, "i") {
		t.Fatal("two jobs have no result, and the import is settled")
	}
	if err := q.Complete(t.Context(), "i"); !errors.Is(err, ErrUnfinished) {
		t.Errorf("complete: got %v, want %v", err, ErrUnfinished)
	}
	work(t, q, "i", 5, do)
	if !settled(t, q, "i") {
		t.Error("all jobs have a result, and the import is not settled")
	}
	if err := q.Complete(t.Context(), "i"); err != nil {
		t.Error(err)
	}
	if left, err := q.onStream(t.Context(), "i"); err != nil || left != 0 {
		t.Errorf("complete: got %d jobs on the stream, %v; want none", left, err)
	}
}

// A job with a result whose ack got lost holds nothing up; one without a result does, whatever else has one.
func TestSettledByResults(t *testing.T) {
	q := open(t, Config{})
	enqueued(t, q, "i", 3)
	if _, err := q.js.Publish(t.Context(), q.jobsSubject("i"), []byte("no job")); err != nil {
		t.Fatal(err)
	}
	held := fetch(t, q.Source("i"), 10)
	for n, d := range held {
		if settled(t, q, "i") {
			t.Fatalf("settled with %d results for %d jobs", n, len(held))
		}
		r := testResult("i", n, 2, 0)
		if n == 3 {
			r.Job = "4"
		}
		put(t, q, r, 0)
		if n == 0 {
			continue
		}
		if err := d.Ack(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if !settled(t, q, "i") {
		t.Error("every job has a result, and the import is not settled")
	}
	if err := q.Complete(t.Context(), "i"); err != nil { // at once
		t.Error(err)
	}
}

// What nobody can mend is said.
func TestJobsThatAreGone(t *testing.T) {
	q := open(t, Config{})
	enqueued(t, q, "i", 3)
	if err := q.jobs.Purge(t.Context(), jetstream.WithPurgeSubject(q.jobsSubject("i"))); err != nil {
		t.Fatal(err)
	}
	_, err := q.Settled(t.Context(), "i")
	if !errors.Is(err, ErrJobsGone) || !strings.Contains(err.Error(), "3 have none and are not on the queue") {
		t.Errorf("got %v, want that 3 jobs are gone", err)
	}
}

// A process that was stopped while it completed an import takes no jobs of a retry that began since.
func TestCompleteLeavesLaterJobs(t *testing.T) {
	q := open(t, Config{})
	upTo := uint64(0)
	completing(t, q, "i", 4, func() { upTo, _ = q.lastOf(t.Context(), q.jobs) })
	stale, err := q.Import(t.Context(), "i")
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Complete(t.Context(), "i"); err != nil {
		t.Fatal(err)
	}
	retry(t, q, "i", RetryStats{Jobs: 3, Conversations: 6})
	held := fetch(t, q.Source("i"), 3)
	if err := q.complete(t.Context(), stale, upTo); err != nil && !errors.Is(err, ErrUnfinished) {
		t.Error(err)
	}
	if left, err := q.onStream(t.Context(), "i"); err != nil || left != 3 {
		t.Errorf("got %d jobs on the stream, %v; want the retry's 3", left, err)
	}
	for _, d := range held {
		if err := d.Nak(t.Context(), 0); err != nil {
			t.Error(err)
		}
	}
	work(t, q, "i", 3, mended)
	if err := q.Complete(t.Context(), "i"); err != nil {
		t.Error(err)
	}
}

// A late result of a retry that was cancelled stands for none of the next retry.
func TestLateResultOfARetry(t *testing.T) {
	q := open(t, Config{})
	completed(t, q, "i", 4)
	retry(t, q, "i", RetryStats{Jobs: 3, Conversations: 6})
	j, err := fetch(t, q.Source("i"), 1)[0].Job()
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Cancel(t.Context(), "i"); err != nil {
		t.Fatal(err)
	}
	retry(t, q, "i", RetryStats{Jobs: 3, Conversations: 6})
	earlier, seq, err := q.Result(t.Context(), "i", j.ID)
	if err != nil {
		t.Fatal(err)
	}
	late := mended(j, &earlier)
	late.Conversations[0].Code = "50001" // not all went well
	late.Settle()
	put(t, q, late, seq)
	for _, d := range fetch(t, q.Source("i"), 3) {
		now, err := d.Job()
		if err != nil {
			t.Fatal(err)
		}
		if now.ID == j.ID {
			continue // still in hand
		}
		known, seq, err := q.Result(t.Context(), "i", now.ID)
		if err != nil {
			t.Fatal(err)
		}
		put(t, q, mended(now, &known), seq)
		if err := d.Ack(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if settled(t, q, "i") {
		t.Error("a job has no result of this round, and the retry is settled")
	}
}

// Jobs are not given out again for ever.
func TestGivenOutSoOften(t *testing.T) {
	q := open(t, Config{})
	enqueued(t, q, "i", 1)
	for range giveOuts + 1 {
		if err := fetch(t, q.Source("i"), 1)[0].Ack(t.Context()); err != nil {
			t.Fatal(err)
		}
		awaitIdle(t, q, "i")
		if done, err := q.Settled(t.Context(), "i"); err != nil {
			if errors.Is(err, ErrJobsGone) {
				return
			}
			t.Fatal(err)
		} else if done {
			t.Fatal("settled without a result")
		}
	}
	t.Errorf("given out %d times, want an end", giveOuts+2)
}

// A retry is not settled by the results of the rounds before it.
func TestRetryTakenForDone(t *testing.T) {
	q := open(t, Config{})
	completed(t, q, "i", 4)
	retry(t, q, "i", RetryStats{Jobs: 3, Conversations: 6})
	for _, d := range fetch(t, q.Source("i"), 3) {
		if err := d.Ack(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	awaitIdle(t, q, "i")
	if settled(t, q, "i") {
		t.Fatal("three jobs have no result of this round, and the retry is settled")
	}
	work(t, q, "i", 3, mended)
	if err := q.Complete(t.Context(), "i"); err != nil {
		t.Error(err)
	}
}
