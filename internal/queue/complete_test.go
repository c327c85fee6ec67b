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
}

// What nobody can mend is said.
func TestJobsThatAreGone(t *testing.T) {
	q := open(t, Config{})
	enqueued(t, q, "i", 3)
	if err := q.jobs.Purge(t.Context(), jetstream.WithPurgeSubject(q.jobsSubject("i"))); err != nil {
		t.Fatal(err)
	}
	_, err := q.Settled(t.Context(), "i")
	if err == nil || !strings.Contains(err.Error(), "3 of its jobs have no result and are not on the queue any more") {
		t.Errorf("got %v, want that 3 jobs are gone", err)
	}
}

// Jobs that a retry puts there while somebody completes the import stay.
func TestPurgeLeavesLaterJobs(t *testing.T) {
	q := open(t, Config{})
	enqueued(t, q, "i", 3)
	upTo, err := lastOf(t.Context(), q, q.jobs)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.js.Publish(t.Context(), q.jobsSubject("i"), []byte("later")); err != nil {
		t.Fatal(err)
	}
	if err := q.purgeJobs(t.Context(), "i", upTo); err != nil {
		t.Fatal(err)
	}
	if left, err := q.onStream(t.Context(), "i"); err != nil || left != 1 {
		t.Errorf("got %d jobs on the stream, %v; want the later one", left, err)
	}
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
