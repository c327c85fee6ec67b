package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"groupferry/internal/broker"
	"groupferry/internal/job"
)

// completed returns an import of n jobs that is complete: job i failed with code 51007 in one conversation if i%3 is 1, and
// with 50001 and 51007 if it is 2.
func completed(t *testing.T, q *Queue, id string, n int) *handWriter {
	t.Helper()
	h := &handWriter{q: q, rec: begin(t, q, id, n)}
	var all []job.Result
	for i := range n {
		all = append(all, testResult(id, i, [][]string{{}, {"51007"}, {"50001", "51007"}}[i%3]...))
	}
	h.write(t, all...)
	h.complete(t)
	return h
}

func wantRetry(t *testing.T, q *Queue, id string, generation int, want map[int]int) {
	t.Helper()
	jobs := storedJobs(t, q, id)
	if len(jobs) != len(want) {
		t.Fatalf("%d jobs, want %d", len(jobs), len(want))
	}
	seen := map[string]job.Job{}
	for _, j := range jobs {
		seen[j.ID] = j
	}
	for n, conversations := range want {
		j, ok := seen[testJob(id, n).ID]
		if !ok || len(j.Conversations) != conversations || j.Generation != generation || j.Prior == 0 {
			t.Errorf("job %d: got %+v, want %d conversations", n, j, conversations)
		}
		m, err := q.conn.MsgAt(t.Context(), q.resultsStream(), j.Prior)
		if err != nil {
			t.Fatal(err)
		}
		if r, err := job.DecodeResult(m.Data); err != nil || r.Job != j.ID {
			t.Errorf("job %d: its prior result is of job %s, %v", n, r.Job, err)
		}
	}
}

func TestRetry(t *testing.T) {
	q := openQueue(t)
	for _, c := range []struct {
		id    string
		codes []string
		want  map[int]int
	}{
		{"all", nil, map[int]int{1: 1, 2: 2, 4: 1, 5: 2}},
		{"one", []string{"51007"}, map[int]int{1: 1, 2: 1, 4: 1, 5: 1}},
		{"two", []string{"51007", "50001", "51007"}, map[int]int{1: 1, 2: 2, 4: 1, 5: 2}},
	} {
		completed(t, q, c.id, 6)
		var last int64
		rec, stats, err := q.Retry(t.Context(), c.id, c.codes, func(n int64) { last = n })
		if err != nil || stats.Jobs != 4 || last != 4 {
			t.Fatalf("%s: got %+v, progress %d, %v", c.id, stats, last, err)
		}
		if rec.State != Running || rec.Generation != 1 || rec.Retried != 4 || rec.RetryFrom == 0 || rec.FirstRetry != rec.RetryFrom ||
			!sameCounts(rec.Counts, Counts{}) || rec.Jobs != 6 {
			t.Errorf("%s: got %+v", c.id, rec)
		}
		wantRetry(t, q, c.id, 1, c.want)
		if _, _, err := q.Retry(t.Context(), c.id, c.codes, nil); !errors.Is(err, ErrUnfinished) {
			t.Errorf("%s: again: got %v, want ErrUnfinished", c.id, err)
		}
	}
}

func TestRetryOfNothing(t *testing.T) {
	q := openQueue(t)
	h := completed(t, q, "a", 6)
	rec, stats, err := q.Retry(t.Context(), "a", []string{"60000"}, nil)
	if err != nil || stats != (RetryStats{}) || rec.State != Complete || !sameCounts(rec.Counts, h.state.Counts) {
		t.Errorf("got %+v, %+v, %v", rec, stats, err)
	}
	if rec.Generation != 0 {
		t.Errorf("got retry %d, want none: there was nothing to do", rec.Generation)
	}
	if open, err := q.OpenImports(t.Context()); err != nil || len(open) != 0 {
		t.Errorf("open imports: got %v, %v", open, err)
	}
	if _, stats, err := q.Retry(t.Context(), "a", nil, nil); err != nil || stats.Jobs != 4 {
		t.Errorf("got %+v, %v", stats, err)
	}
	wantRetry(t, q, "a", 1, map[int]int{1: 1, 2: 2, 4: 1, 5: 2})
}

// What counts is the newest result of a job, whichever retry it is of.
func TestRetryOfRetry(t *testing.T) {
	q := openQueue(t)
	h := completed(t, q, "a", 9) // 1, 2, 4, 5, 7, 8 failed
	rec, _, err := q.Retry(t.Context(), "a", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	prior := map[string]uint64{}
	for _, j := range storedJobs(t, q, "a") {
		prior[j.ID] = j.Prior
	}
	h.rec = rec
	replace := func(n int, codes ...string) job.Result {
		r := testResult("a", n, codes...)
		r.Replaces = prior[r.Job]
		if r.Replaces == 0 {
			t.Fatalf("job %d was not retried", n)
		}
		return r
	}
	// 1 and 2 are done now, 4 failed otherwise; the retry is cancelled before 5, 7 and 8.
	seqs := h.write(t, replace(1), replace(4, "50001", "50001"), replace(2))
	if err := q.Cancel(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if rec, err = q.Import(t.Context(), "a"); err != nil || rec.State != Complete || rec.Counts.Results != 12 {
		t.Fatalf("got %+v, %v", rec, err)
	}
	rec, stats, err := q.Retry(t.Context(), "a", nil, nil)
	if err != nil || rec.Generation != 2 || stats.Jobs != 4 || stats.Conversations != 2+2+1+2 {
		t.Fatalf("got %+v, %+v, %v", rec, stats, err)
	}
	wantRetry(t, q, "a", 2, map[int]int{4: 2, 5: 2, 7: 1, 8: 2})
	for _, j := range storedJobs(t, q, "a") {
		if j.ID == testJob("a", 4).ID && j.Prior != seqs[1] {
			t.Errorf("job 4: its prior result is %d, want %d", j.Prior, seqs[1])
		}
	}
}

// A retry that is cut off after any batch, or in none, is resumed there.
func TestRetryResumes(t *testing.T) {
	q := openQueue(t)
	const n = 3 * 1500 // makes 3,000 jobs: four batches
	completed(t, q, "a", n)
	want := map[int]int{}
	for i := range n {
		if i%3 > 0 {
			want[i] = i % 3
		}
	}
	for cut := range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		batches := 0
		rec, _, err := q.Retry(ctx, "a", nil, func(int64) {
			if batches++; batches == 1 {
				cancel()
			}
		})
		cancel()
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("cut %d: got %+v, %v", cut, rec, err)
		}
		if _, _, err := q.Retry(t.Context(), "a", []string{"51007"}, nil); !errors.Is(err, ErrUnfinished) {
			t.Errorf("other codes: got %v, want ErrUnfinished", err)
		}
	}
	rec, stats, err := q.Retry(t.Context(), "a", nil, nil)
	if err != nil || rec.State != Running || stats.Jobs != 3000 || stats.Conversations != 4500 {
		t.Fatalf("got %+v, %+v, %v", rec, stats, err)
	}
	wantRetry(t, q, "a", 1, want)
}

func TestTwoRetriesAtOnce(t *testing.T) {
	dir := t.TempDir()
	q, err := Open(t.Context(), openConn(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	const n = 3 * 1500
	completed(t, q, "a", n)
	want := map[int]int{}
	for i := range n {
		if i%3 > 0 {
			want[i] = i % 3
		}
	}
	var wg sync.WaitGroup
	for p := range 3 {
		other, err := Open(t.Context(), openConn(t, dir))
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			_, stats, err := other.Retry(t.Context(), "a", nil, nil)
			// One that comes when all is on the queue finds an import that is running.
			if err != nil && !errors.Is(err, ErrUnfinished) || err == nil && stats.Jobs != 3000 {
				t.Errorf("process %d: got %+v, %v", p, stats, err)
			}
		})
	}
	wg.Wait()
	wantRetry(t, q, "a", 1, want)
}

func TestRetryRefuses(t *testing.T) {
	q := openQueue(t)
	begin(t, q, "running", 3)
	if _, _, err := q.Retry(t.Context(), "running", nil, nil); !errors.Is(err, ErrUnfinished) {
		t.Errorf("got %v, want ErrUnfinished", err)
	}
	if _, _, err := q.Retry(t.Context(), "none", nil, nil); !errors.Is(err, ErrNoImport) {
		t.Errorf("got %v, want ErrNoImport", err)
	}
	// A result that is gone is not passed over.
	for _, when := range []string{"before", "meanwhile"} {
		completed(t, q, when, 6)
		if when == "meanwhile" {
			if _, _, err := q.beginRetry(t.Context(), when, nil); err != nil {
				t.Fatal(err)
			}
		}
		m, err := q.conn.NextMsg(t.Context(), q.resultsStream(), 1, q.resultSubject(when, "partial"))
		if err == nil {
			err = q.results.DeleteMsg(t.Context(), m.Sequence)
		}
		if err != nil {
			t.Fatal(err)
		}
		var damaged *broker.DamagedError
		if _, _, err := q.Retry(t.Context(), when, nil, nil); !errors.As(err, &damaged) {
			t.Errorf("%s: got %v, want a DamagedError", when, err)
		}
	}
}

// Cancel and delete during a retry, after each of its batches.
func TestCancelDuringRetry(t *testing.T) {
	q := openQueue(t)
	const n = 3 * 1500
	for _, remove := range []bool{false, true} {
		id := fmt.Sprintf("a%v", remove)
		completed(t, q, id, n)
		batches := 0
		_, _, err := q.Retry(t.Context(), id, nil, func(int64) {
			if batches++; batches != 2 {
				return
			}
			if err := q.Cancel(t.Context(), id); err != nil {
				t.Error(err)
			}
			if remove {
				if err := q.Delete(t.Context(), id); err != nil {
					t.Error(err)
				}
			}
		})
		if batches != 2 {
			t.Errorf("%d batches, want 2", batches)
		}
		if remove {
			if !errors.Is(err, ErrNoImport) {
				t.Errorf("got %v, want ErrNoImport", err)
			}
			wantNothing(t, q, id)
			continue
		}
		rec, _ := q.Import(t.Context(), id)
		if !errors.Is(err, ErrCancelled) || rec.State != Complete || rec.Counts.Results != n {
			t.Errorf("got %v, %+v", err, rec)
		}
		wantJobs(t, q, id, 0)
	}
}

// An import is deleted while a retry of it looks for failures: that is no damage.
func TestDeletedWhileARetryLooksForFailures(t *testing.T) {
	q := openQueue(t)
	h := handWriter{q: q, rec: begin(t, q, "imp", 2)}
	seqs := h.write(t, testResult("imp", 0, "51007"), testResult("imp", 1, "51007"))
	h.complete(t)
	if found, _, err := q.hasFailures(t.Context(), h.rec, nil, seqs[1], 2); err != nil || !found {
		t.Errorf("got %t, %v, want failures", found, err)
	}
	var damaged *broker.DamagedError
	if _, _, err := q.hasFailures(t.Context(), h.rec, []string{"50001"}, seqs[1], 3); !errors.As(err, &damaged) {
		t.Errorf("one is missing: got %v", err)
	}
	if err := q.Delete(t.Context(), "imp"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := q.hasFailures(t.Context(), h.rec, nil, seqs[1], 2); !errors.Is(err, ErrNoImport) {
		t.Errorf("got %v, want ErrNoImport", err)
	}
}
