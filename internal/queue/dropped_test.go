package queue

import (
	"errors"
	"slices"
	"testing"

	"groupferry/internal/job"
)

// wantDropped makes sure that these jobs of an import, by number, were dropped.
func wantDropped(t *testing.T, q *Queue, id string, want ...int) {
	t.Helper()
	d, err := q.Dropped(t.Context(), id)
	if err != nil || d.Jobs != int64(len(want)) || d.At.IsZero() {
		t.Fatalf("%s: got %+v, %v; want %d jobs", id, d, err, len(want))
	}
	var got, wanted []string
	for j, err := range d.All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, j.ID)
	}
	for _, n := range want {
		wanted = append(wanted, testJob(id, n).ID)
	}
	if !slices.Equal(got, wanted) {
		t.Errorf("%s: got the jobs %v, want %v", id, got, wanted)
	}
}

// The jobs of a cancelled import that have no result can be read until it is deleted, and the others are gone as far as
// they come before them.
func TestDropped(t *testing.T) {
	q := openQueue(t)
	results := func(id string, jobs int, handed int64, unfinished []int, with ...int) {
		t.Helper()
		h := &handWriter{q: q, rec: begin(t, q, id, jobs)}
		var seqs []uint64
		for next := uint64(1); len(seqs) < jobs; next = seqs[len(seqs)-1] + 1 {
			m, err := q.conn.NextMsg(t.Context(), q.jobsStream(), next, q.jobsSubject(id))
			if err != nil {
				t.Fatal(err)
			}
			seqs = append(seqs, m.Sequence)
		}
		h.state.Handed, h.state.Next = handed, seqs[jobs-1]+1
		if int(handed) < jobs {
			h.state.Next = seqs[handed]
		}
		for _, n := range unfinished {
			h.state.Unfinished = append(h.state.Unfinished, seqs[n])
		}
		var all []job.Result
		for _, n := range with {
			all = append(all, testResult(id, n))
		}
		h.write(t, all...)
	}
	results("some", 6, 4, []int{1, 3}, 0, 2)
	results("rest", 5, 3, nil, 0, 1, 2)
	results("none", 3, 3, nil, 0, 1, 2)
	early := begin(t, q, "all", 2500)
	if _, err := q.markOver(t.Context(), "all", 0); err != nil {
		t.Fatal(err)
	}
	if _, err := q.Dropped(t.Context(), "all"); !errors.Is(err, ErrUnfinished) {
		t.Errorf("before the end of the cancel: got %v, want ErrUnfinished", err)
	}
	for range 2 { // the second one changes nothing
		for _, id := range []string{"some", "rest", "none", "all"} {
			if err := q.Cancel(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
	}
	wantDropped(t, q, "some", 1, 3, 4, 5)
	wantDropped(t, q, "rest", 3, 4)
	wantDropped(t, q, "none")
	every := make([]int, 2500)
	for i := range every {
		every[i] = i
	}
	wantDropped(t, q, "all", every...)
	for id, want := range map[string]int{"some": 5, "rest": 2, "none": 0, "all": 2500} {
		if got := len(storedJobs(t, q, id)); got != want {
			t.Errorf("%s: got %d jobs on the stream, want %d", id, got, want)
		}
	}
	if open, err := q.OpenImports(t.Context()); err != nil || len(open) > 0 {
		t.Errorf("open imports: got %v, %v", open, err)
	}
	// Whoever comes late with jobs finds that it was cancelled.
	if _, _, err := q.startGeneration(t.Context(), early); !errors.Is(err, ErrCancelled) {
		t.Errorf("a late start: got %v, want ErrCancelled", err)
	}
	for _, id := range []string{"some", "rest", "none", "all"} {
		if err := q.Delete(t.Context(), id); err != nil {
			t.Error(err)
		}
		wantNothing(t, q, id)
	}
	begin(t, q, "all", 3) // as new
	wantJobs(t, q, "all", 3)
	if d, err := q.Dropped(t.Context(), "all"); d != nil || err != nil {
		t.Errorf("not cancelled: got %+v, %v, want nothing", d, err)
	}
}

// The leader ends an import while its jobs are read, as another sync's plan does. Those that have a result are removed then, and
// not missed.
func TestJobsAreReadWhileTheirImportEnds(t *testing.T) {
	const jobs, done = 3000, 2500
	q := leaderQueue(t)
	imported(t, q, "imp", jobs)
	l := lead(t, q, TermConfig{Term: 1})
	l.work(t, done, nil)
	l.stop(t)
	i, err := q.markOver(t.Context(), "imp", 0)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	err = q.readJobs(t.Context(), "imp", dropped{next: 1}, func(uint64, *job.Job) error {
		if n++; n == 1 {
			return q.finishEnd(t.Context(), i)
		}
		return nil
	})
	if err != nil || n < jobs-done || n == jobs {
		t.Errorf("read %d jobs, %v; want the %d that have no result, and not all", n, err, jobs-done)
	}
}
