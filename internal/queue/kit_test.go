package queue

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"groupferry/internal/broker"
	"groupferry/internal/job"
)

// openConn opens a connection of its own to the embedded server in dir; the first one runs it.
func openConn(t testing.TB, dir string) *broker.Conn {
	t.Helper()
	conn, err := broker.Open(t.Context(), broker.Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// openQueue opens a Queue with an embedded server of its own.
func openQueue(t testing.TB) *Queue {
	t.Helper()
	q, err := Open(t.Context(), openConn(t, t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// testJob is the n-th job, from 0, of an import.
func testJob(id string, n int) job.Job {
	user := fmt.Sprintf("user-%d", n)
	return job.Job{
		Import: id, ID: job.ID(id, user, "friends"), FromAccount: user, GroupName: "friends",
		Conversations: []job.Conversation{
			{Type: job.OneToOne, ID: "bob", Line: int64(2*n + 2)},
			{Type: job.GroupChat, ID: "g1", Line: int64(2*n + 3)},
		},
	}
}

// testJobs returns the first n jobs of an import.
func testJobs(id string, n int) iter.Seq[job.Job] {
	return func(yield func(job.Job) bool) {
		for i := range n {
			if !yield(testJob(id, i)) {
				return
			}
		}
	}
}

// begin begins an import of so many jobs, and enqueues it.
func begin(t testing.TB, q *Queue, id string, jobs int) Import {
	t.Helper()
	if _, _, err := q.Begin(t.Context(), Import{ID: id, Digest: "d", Jobs: int64(jobs)}); err != nil {
		t.Fatal(err)
	}
	if _, err := q.Enqueue(t.Context(), id, testJobs(id, jobs), nil); err != nil {
		t.Fatal(err)
	}
	i, err := q.Import(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// storedJobs reads the jobs of an import that are on the stream, in order.
func storedJobs(t testing.TB, q *Queue, id string) []job.Job {
	t.Helper()
	r := q.newBatchReader(q.jobsStream())
	defer r.close()
	var all []job.Job
	for seq := uint64(1); ; {
		got, err := r.read(t.Context(), seq, q.jobsSubject(id), 1000, 8<<20)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) == 0 {
			return all
		}
		for _, m := range got {
			j, err := job.Decode(m.Data)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, j)
			seq = m.seq + 1
		}
	}
}

// wantJobs makes sure that exactly the first n jobs of an import are on the stream, in order.
func wantJobs(t testing.TB, q *Queue, id string, n int) {
	t.Helper()
	got := storedJobs(t, q, id)
	if len(got) != n {
		t.Fatalf("import %s: %d jobs on the queue, want %d", id, len(got), n)
	}
	for i, j := range got {
		if want := testJob(id, i); j.ID != want.ID {
			t.Fatalf("import %s: job %d is %s, want %s", id, i, j.ID, want.ID)
		}
	}
}

// wantNothing makes sure that nothing is left of an import: no record, no jobs, no checkpoint, no results.
func wantNothing(t testing.TB, q *Queue, id string) {
	t.Helper()
	if left := remains(t, q, id); len(left) > 0 {
		t.Fatalf("import %s: %v are left, want nothing", id, left)
	}
}

// remains lists what there is of an import, by subject.
func remains(t testing.TB, q *Queue, id string) map[string]uint64 {
	t.Helper()
	left := map[string]uint64{}
	for stream, subject := range map[string][]string{
		q.jobsStream():    {q.jobsSubject(id), q.checkpointSubject(id)},
		q.resultsStream(): {q.resultSubject(id, "*")},
	} {
		for _, s := range subject {
			state, err := q.conn.StreamState(context.WithoutCancel(t.Context()), stream, s)
			if err != nil {
				t.Fatal(err)
			}
			for subject, n := range state.Subjects {
				left[subject] = n
			}
		}
	}
	if _, err := q.Import(context.WithoutCancel(t.Context()), id); err == nil {
		left["record"] = 1
	} else if !errors.Is(err, ErrNoImport) {
		t.Fatal(err)
	}
	return left
}

// A handWriter writes results by hand, as a leader would: a state after each group.
type handWriter struct {
	q     *Queue
	rec   Import
	state state
}

func (h *handWriter) write(t testing.TB, results ...job.Result) (seqs []uint64) {
	t.Helper()
	for _, r := range results {
		r.Import = h.rec.ID
		r.Generation = h.rec.Generation
		header := nats.Header{jobSequenceHeader: {"1"}}
		if r.Replaces != 0 {
			header[replacesHeader] = []string{strconv.FormatUint(r.Replaces, 10)}
		}
		ack, err := h.q.js.PublishMsg(t.Context(), &nats.Msg{
			Subject: h.q.resultSubject(h.rec.ID, string(r.Outcome)), Data: r.AppendJSON(nil), Header: header,
		})
		if err != nil {
			t.Fatal(err)
		}
		seqs = append(seqs, ack.Sequence)
		h.state.Counts.Results++
		if r.Replaces == 0 {
			h.state.Counts.add(shareOf(&r), 1)
		}
	}
	h.state.Incarnation, h.state.Generation = h.rec.Incarnation, h.rec.Generation
	h.state.Counts.LastResult = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	if _, err := h.q.put(t.Context(), &nats.Msg{
		Subject: h.q.resultSubject(h.rec.ID, stateKind), Data: h.state.encode(),
		Header: nats.Header{"Nats-Rollup": {"sub"}},
	}); err != nil {
		t.Fatal(err)
	}
	return seqs
}

// complete makes a running import complete, as a leader does.
func (h *handWriter) complete(t testing.TB) {
	t.Helper()
	i, err := h.q.Update(t.Context(), h.rec.ID, func(i *Import) {
		i.State, i.Completed, i.Counts = Complete, now(), h.state.Counts
	})
	if err == nil {
		err = h.q.finishEnd(t.Context(), i)
	}
	if err != nil {
		t.Fatal(err)
	}
	h.rec = i
}

// testResult is a result of the n-th job of an import: the codes are those of its two conversations.
func testResult(id string, n int, codes ...string) job.Result {
	j := testJob(id, n)
	r := job.Result{
		Import: id, Job: j.ID, FromAccount: j.FromAccount, GroupName: j.GroupName, Calls: 1, Attempts: 1,
	}
	for i, c := range j.Conversations {
		code := ""
		if i < len(codes) {
			code = codes[i]
		}
		r.Conversations = append(r.Conversations, job.ConversationResult{Conversation: c, Code: code})
	}
	r.SetOutcome()
	return r
}
