package queue

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"groupferry/internal/job"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDirEnv); dir != "" {
		crashChild(dir)
	}
	os.Exit(m.Run())
}

// open opens a queue on an embedded server that ends with the test.
func open(t testing.TB, cfg Config) *Queue {
	t.Helper()
	if cfg.embedded() && cfg.DataDir == "" {
		cfg.DataDir = t.TempDir()
	}
	q, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return q
}

// jobsOf gives n jobs of an import, in the same order each time.
func jobsOf(importID string, n int) iter.Seq[job.Job] {
	return func(yield func(job.Job) bool) {
		for i := range n {
			if !yield(testJob(importID, i, 2)) {
				return
			}
		}
	}
}

func testJob(importID string, i, conversations int) job.Job {
	j := job.Job{
		Import:      importID,
		FromAccount: fmt.Sprintf("user%d", i/3),
		GroupName:   fmt.Sprintf("group%d", i%3),
		Files:       []string{"in.csv"},
	}
	j.ID = job.ID(importID, j.FromAccount, j.GroupName)
	for k := range conversations {
		j.Conversations = append(j.Conversations, job.Conversation{
			Type: job.OneToOne, ID: fmt.Sprintf("peer%d", k), Line: int64(i*conversations + k + 2),
		})
	}
	return j
}

func begin(t testing.TB, q *Queue, id string) Import {
	t.Helper()
	i, _, err := q.Begin(t.Context(), Import{ID: id, Digest: "digest of " + id})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// enqueued begins an import and enqueues n jobs.
func enqueued(t testing.TB, q *Queue, id string, n int) {
	t.Helper()
	begin(t, q, id)
	got, err := q.Enqueue(t.Context(), id, jobsOf(id, n), nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := (EnqueueStats{Jobs: int64(n)}); got != want {
		t.Fatalf("enqueue: got %+v, want %+v", got, want)
	}
}

// onStream reads the ids of an import's jobs off the stream, in stream order, without consuming them.
func onStream(t testing.TB, q *Queue, id string) []string {
	t.Helper()
	var ids []string
	again := 0
	for next := uint64(1); ; {
		got, err := jetstreamext.GetBatch(t.Context(), q.js, q.jobsStream(), 1000,
			jetstreamext.GetBatchSeq(next), jetstreamext.GetBatchSubject(q.jobsSubject(id)))
		if err != nil {
			t.Fatal(err)
		}
		before := next
		for m, err := range got {
			if errors.Is(err, jetstreamext.ErrNoMessages) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			j, err := job.Decode(m.Data)
			if err != nil {
				t.Fatal(err)
			}
			ids, next = append(ids, j.ID), m.Sequence+1
		}
		if next > before {
			continue
		}
		info, err := q.jobs.Info(t.Context(), jetstream.WithSubjectFilter(q.jobsSubject(id)))
		if err != nil {
			t.Fatal(err)
		}
		there := info.State.Subjects[q.jobsSubject(id)]
		if uint64(len(ids)) < there && again < 5 { // a busy server can be too late for one reading
			again++
			continue
		}
		if uint64(len(ids)) != there {
			t.Errorf("read %d jobs up to %d, and the server has %d up to %d", len(ids), next-1, there, info.State.LastSeq)
		}
		return ids
	}
}

func idsOf(jobs iter.Seq[job.Job]) []string {
	var ids []string
	for j := range jobs {
		ids = append(ids, j.ID)
	}
	return ids
}

// doneWith is the result of a job in which everything went well.
func doneWith(j job.Job) job.Result {
	r := job.Result{
		Import: j.Import, Job: j.ID, FromAccount: j.FromAccount, GroupName: j.GroupName, Files: j.Files,
		Round: j.Round, Attempts: 1, Calls: 1, Worker: "w",
		Started: time.Unix(1e9, 0), Finished: time.Unix(1e9+1, 0),
	}
	for _, c := range j.Conversations {
		r.Conversations = append(r.Conversations, job.ConversationResult{Conversation: c})
	}
	r.Settle()
	return r
}

// drain does n jobs, and returns the ids in the order of their coming.
func drain(t testing.TB, q *Queue, id string, n int) []string {
	t.Helper()
	s := q.Source(id)
	var ids []string
	for len(ids) < n {
		ds, err := s.Fetch(t.Context(), 100)
		if err != nil {
			t.Fatal(err)
		}
		if len(ds) == 0 {
			t.Fatalf("no more jobs after %d of %d", len(ids), n)
		}
		for _, d := range ds {
			j, err := d.Job()
			if err != nil {
				t.Fatal(err)
			}
			put(t, q, doneWith(j), 0)
			if err := d.Ack(t.Context()); err != nil {
				t.Fatal(err)
			}
			ids = append(ids, j.ID)
		}
	}
	return ids
}

func TestLifeOfAnImport(t *testing.T) {
	q := open(t, Config{})
	ctx := t.Context()
	const n = 1200
	enqueued(t, q, "May", n)

	if got, want := onStream(t, q, "May"), idsOf(jobsOf("May", n)); !slices.Equal(got, want) {
		t.Fatalf("got %d jobs on the stream, want %d in order", len(got), len(want))
	}
	rec, err := q.Import(ctx, "May")
	if err != nil {
		t.Fatal(err)
	}
	if rec.State != Enqueued || rec.Jobs != n || rec.Enqueued.IsZero() {
		t.Errorf("got record %+v, want %d jobs enqueued", rec, n)
	}
	if p, h, err := q.Pending(ctx, "May"); p != n || h != 0 || err != nil {
		t.Errorf("got pending %d, in hand %d, %v; want %d, 0, nil", p, h, err, n)
	}
	if err := q.Complete(ctx, "May"); !errors.Is(err, ErrUnfinished) {
		t.Errorf("complete with jobs left: got %v, want %v", err, ErrUnfinished)
	}
	if got, want := drain(t, q, "May", n), idsOf(jobsOf("May", n)); !slices.Equal(got, want) {
		t.Errorf("got %d jobs delivered, want %d in order", len(got), len(want))
	}
	for range 2 {
		if err := q.Complete(ctx, "May"); err != nil {
			t.Fatal(err)
		}
	}
	if p, h, err := q.Pending(ctx, "May"); p != 0 || h != 0 || err != nil {
		t.Errorf("complete: got pending %d, in hand %d, %v; want 0, 0, nil", p, h, err)
	}
	got, err := q.Enqueue(ctx, "May", func(func(job.Job) bool) { t.Error("a complete import was read again") }, nil)
	if want := (EnqueueStats{Skipped: n}); got != want || err != nil {
		t.Errorf("enqueue again: got %+v, %v; want %+v", got, err, want)
	}
	rec, err = q.Import(ctx, "May")
	if err != nil || rec.State != Complete || rec.Completed.IsZero() {
		t.Errorf("got record %+v, %v; want it complete", rec, err)
	}
}

// TestWithoutLeader checks that the word of a cluster that has no quorum is known in either of the library's types.
func TestWithoutLeader(t *testing.T) {
	const code, text = 10008, "JetStream system temporarily unavailable"
	for _, err := range []error{
		&jetstream.APIError{Code: 503, ErrorCode: code, Description: text},
		&nats.APIError{Code: 503, ErrorCode: code, Description: text},
	} {
		if !unreachable(fmt.Errorf("watch: %w", err)) || withoutJetStream(err) {
			t.Errorf("%T: got it taken for reachable: %t, for JetStream that is not there: %t",
				err, !unreachable(err), withoutJetStream(err))
		}
	}
	for _, err := range []error{jetstream.ErrJetStreamNotEnabledForAccount, nats.ErrJetStreamNotEnabled} {
		if !withoutJetStream(err) {
			t.Errorf("got %T %[1]v not taken for JetStream that is not there", err)
		}
	}
}
