package queue

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"groupferry/internal/job"
)

// completed makes an import of n jobs with three conversations each, does them so that job i has i%4 failures, and
// completes it. Half of the failures have code 50001.
func completed(t testing.TB, q *Queue, id string, n int) {
	t.Helper()
	begin(t, q, id)
	_, err := q.Enqueue(t.Context(), id, func(yield func(job.Job) bool) {
		for i := range n {
			if !yield(testJob(id, i, 3)) {
				return
			}
		}
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	i := 0
	work(t, q, id, n, func(j job.Job, _ *job.Result) job.Result {
		r := testResult(id, i, 3, i%4)
		if i%8 > 3 {
			for k := range r.Conversations {
				if r.Conversations[k].Code != "" {
					r.Conversations[k].Code = "50001"
				}
			}
		}
		i++
		return r
	})
	if err := q.Complete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

// work does n jobs of an import, given the result that each has so far.
func work(t testing.TB, q *Queue, id string, n int, do func(job.Job, *job.Result) job.Result) {
	t.Helper()
	s := q.Source(id)
	for done := 0; done < n; {
		for _, d := range fetch(t, s, n-done) {
			j, err := d.Job()
			if err != nil {
				t.Fatal(err)
			}
			earlier, seq, err := q.Result(t.Context(), id, j.ID)
			if err != nil && !errors.Is(err, ErrNoResult) {
				t.Fatal(err)
			}
			put(t, q, do(j, &earlier), seq)
			if err := d.Ack(t.Context()); err != nil {
				t.Fatal(err)
			}
			done++
		}
	}
}

// mended is the result of a retry in which everything went well.
func mended(j job.Job, r *job.Result) job.Result {
	n := *r
	n.Round, n.Attempts, n.Calls, n.Conversations = j.Round, r.Attempts+1, r.Calls+1, slices.Clone(r.Conversations)
	for i, c := range n.Conversations {
		if slices.Contains(j.Conversations, c.Conversation) {
			n.Conversations[i].Code, n.Conversations[i].Info = "", ""
		}
	}
	n.Settle()
	return n
}

func retry(t *testing.T, q *Queue, id string, want RetryStats, codes ...string) Import {
	t.Helper()
	i, got, err := q.Retry(t.Context(), id, codes, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("retry: got %+v, want %+v", got, want)
	}
	return i
}

func TestRetry(t *testing.T) {
	dir := t.TempDir()
	q, other := open(t, Config{DataDir: dir}), open(t, Config{DataDir: dir})
	completed(t, q, "i", 16) // 4 done, 8 partial, 4 failed; 24 conversations failed, 12 of them 50001
	checkTally(t, other, "i", [3]int64{4, 8, 4}, [2]int64{24, 24}, 32)

	if i := retry(t, q, "i", RetryStats{Jobs: 6, Conversations: 12}, "50001"); i.State != Enqueued || i.Round != 1 || i.Retried != 6 {
		t.Errorf("got record %+v, want round 1 of 6 jobs enqueued", i)
	}
	if _, _, err := q.Retry(t.Context(), "i", nil, nil); !errors.Is(err, ErrUnfinished) {
		t.Errorf("a retry amid another one: got %v, want %v", err, ErrUnfinished)
	}
	if err := q.Forget(t.Context(), "i"); !errors.Is(err, ErrUnfinished) {
		t.Errorf("forget amid a retry: got %v, want %v", err, ErrUnfinished)
	}
	work(t, q, "i", 3, mended)
	for _, q := range []*Queue{q, other} { // of the first three jobs with 50001, one was failed and two were partial
		checkTally(t, q, "i", [3]int64{7, 6, 3}, [2]int64{30, 18}, 35)
	}
	work(t, q, "i", 3, mended)
	if err := q.Complete(t.Context(), "i"); err != nil {
		t.Fatal(err)
	}
	for _, q := range []*Queue{q, other} {
		checkTally(t, q, "i", [3]int64{10, 4, 2}, [2]int64{36, 12}, 38)
	}
	// The rest, without codes; then there is nothing left, and the import is complete again at once.
	retry(t, other, "i", RetryStats{Jobs: 6, Conversations: 12})
	work(t, other, "i", 6, mended)
	if i := retry(t, q, "i", RetryStats{}); i.State != Complete || i.Round != 3 {
		t.Errorf("got record %+v, want complete after round 3", i)
	}
	for _, q := range []*Queue{q, other, open(t, Config{DataDir: dir})} {
		checkTally(t, q, "i", [3]int64{16, 0, 0}, [2]int64{48, 0}, 44)
	}
	if p, h, err := q.Pending(t.Context(), "i"); p != 0 || h != 0 || err != nil {
		t.Errorf("got %d pending, %d in hand, %v; want none", p, h, err)
	}
}

// Cut off anywhere, and called by two at once, a retry puts each job on the queue once.
func TestRetryOnce(t *testing.T) {
	dir := t.TempDir()
	q := open(t, Config{DataDir: dir})
	const n = 4000 // 3,000 of which failed or are partial
	begin(t, q, "i")
	if _, err := q.Enqueue(t.Context(), "i", func(func(job.Job) bool) {}, nil); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for k := range 16 {
		wg.Go(func() {
			for i := k; i < n; i += 16 {
				if err := q.PutResult(t.Context(), testResult("i", i, 3, i%4), 0); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := q.Complete(t.Context(), "i"); err != nil {
		t.Fatal(err)
	}

	for cut := int64(0); cut < 2000; cut += 999 {
		ctx, cancel := context.WithCancel(t.Context())
		_, _, err := q.Retry(ctx, "i", nil, func(jobs int64) {
			if jobs >= cut {
				cancel()
			}
		})
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("a retry that was cut off: got %v, want %v", err, context.Canceled)
		}
	}
	if _, _, err := q.Retry(t.Context(), "i", []string{"50001"}, nil); !errors.Is(err, ErrUnfinished) {
		t.Errorf("a retry of other codes: got %v, want %v", err, ErrUnfinished)
	}
	if err := q.Complete(t.Context(), "i"); !errors.Is(err, ErrUnfinished) {
		t.Errorf("complete: got %v, want %v", err, ErrUnfinished)
	}
	work(t, q, "i", 500, mended) // workers begin meanwhile
	other := open(t, Config{DataDir: dir})
	for _, q := range []*Queue{q, other} {
		wg.Go(func() {
			if _, got, err := q.Retry(t.Context(), "i", nil, nil); err != nil || got.Jobs != 3000 {
				t.Errorf("got %+v, %v; want 3000 jobs", got, err)
			}
		})
	}
	wg.Wait()
	ids := onStream(t, q, "i")
	slices.Sort(ids)
	if got := len(slices.Compact(ids)); got != 3000 || len(ids) != 3000 {
		t.Errorf("got %d jobs on the stream, %d different ones, want 3000", len(ids), got)
	}
}

// A retry that is cancelled leaves the import complete, and its failures to be retried again.
func TestCancelledRetry(t *testing.T) {
	q := open(t, Config{})
	completed(t, q, "i", 8)
	retry(t, q, "i", RetryStats{Jobs: 6, Conversations: 12})
	work(t, q, "i", 2, mended)
	held := fetch(t, q.Source("i"), 1)
	if err := q.Cancel(t.Context(), "i"); err != nil {
		t.Fatal(err)
	}
	if i, err := q.Import(t.Context(), "i"); err != nil || i.State != Complete || i.InHand != 1 {
		t.Errorf("got record %+v, %v; want complete with 1 job in hand", i, err)
	}
	if err := q.Forget(t.Context(), "i"); !errors.Is(err, ErrUnfinished) {
		t.Errorf("forget with a job in hand: got %v, want %v", err, ErrUnfinished)
	}
	retry(t, q, "i", RetryStats{Jobs: 4, Conversations: 9})
	work(t, q, "i", 4, mended)
	j, err := held[0].Job()
	if err != nil {
		t.Fatal(err)
	}
	if err := q.PutResult(t.Context(), mended(j, &job.Result{Import: "i", Job: j.ID}), 1); !errors.Is(err, ErrResultExists) {
		t.Errorf("the result of the job in hand: got %v, want %v", err, ErrResultExists)
	}
	if err := q.Complete(t.Context(), "i"); err != nil {
		t.Fatal(err)
	}
	checkTally(t, q, "i", [3]int64{8, 0, 0}, [2]int64{24, 0}, 22)
}

func TestForget(t *testing.T) {
	dir := t.TempDir()
	q := open(t, Config{DataDir: dir})
	completed(t, q, "i", 8)
	completed(t, q, "other", 2)
	retry(t, q, "i", RetryStats{Jobs: 6, Conversations: 12})
	work(t, q, "i", 6, mended)
	if err := q.Complete(t.Context(), "i"); err != nil {
		t.Fatal(err)
	}
	if gone, err := q.ForgetOlder(t.Context(), 1<<40); len(gone) != 0 || err != nil {
		t.Errorf("forget what is old: got %q, %v; want none", gone, err)
	}
	if err := q.Forget(t.Context(), "i"); err != nil {
		t.Fatal(err)
	}
	if err := q.Forget(t.Context(), "i"); !errors.Is(err, ErrNoImport) {
		t.Errorf("forget again: got %v, want %v", err, ErrNoImport)
	}
	if got := results(t, q, "i"); len(got) != 0 {
		t.Errorf("got %d results, want none", len(got))
	}
	info, err := q.jobs.Info(t.Context())
	if err != nil || info.State.Msgs != 1 { // the checkpoint of the other one
		t.Errorf("got %d messages on the jobs stream, %v; want 1", info.State.Msgs, err)
	}
	// Its ID can be used again, and is counted from the start.
	completed(t, q, "i", 4)
	checkTally(t, q, "i", [3]int64{1, 2, 1}, [2]int64{6, 6}, 8)

	// Cut off in the middle: the next call goes on, or the next import does it.
	for _, end := range []func() error{
		func() error { return q.Forget(t.Context(), "i") },
		func() error { _, _, err := q.Begin(t.Context(), Import{ID: "i", Digest: "another"}); return err },
	} {
		if _, err := q.Update(t.Context(), "i", func(i *Import) { i.State = Forgetting }); err != nil {
			t.Fatal(err)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if got := results(t, q, "i"); len(got) != 0 {
			t.Errorf("got %d results, want none", len(got))
		}
		if i, err := q.Import(t.Context(), "i"); err == nil && i.Digest == "another" {
			return
		}
		completed(t, q, "i", 4)
	}
	t.Error("the import was not begun anew")
}

// A process can be killed between taking a consumer down and making it again.
func TestConsumerIsMadeAgain(t *testing.T) {
	q := open(t, Config{})
	enqueued(t, q, "i", 3)
	if err := q.PauseImport(t.Context(), "i"); err != nil {
		t.Fatal(err)
	}
	if err := q.deleteConsumer(t.Context(), "i"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if p, h, err := q.Pending(t.Context(), "i"); p != 3 || h != 0 || err != nil {
			t.Errorf("got %d pending, %d in hand, %v; want 3 and none", p, h, err)
		}
	}
	if got, err := q.Source("i").Fetch(t.Context(), 3); len(got) != 0 || err != nil {
		t.Errorf("paused: got %d jobs, %v; want none", len(got), err)
	}
	if err := q.ResumeImport(t.Context(), "i"); err != nil {
		t.Fatal(err)
	}
	if got := drain(t, q, "i", 3); len(got) != 3 {
		t.Errorf("got %d jobs, want 3", len(got))
	}
}

// A count that is stored lets another process read what is new alone.
func TestStoredTally(t *testing.T) {
	dir := t.TempDir()
	q := open(t, Config{DataDir: dir})
	begin(t, q, "i")
	for i := range tallyEvery {
		put(t, q, testResult("i", i, 1, 0), 0)
	}
	checkTally(t, q, "i", [3]int64{tallyEvery, 0, 0}, [2]int64{tallyEvery, 0}, 2*tallyEvery)
	other := open(t, Config{DataDir: dir})
	rec, err := other.Import(t.Context(), "i")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := other.countedSoFar(t.Context(), &rec); err != nil || got.Total() != tallyEvery || got.UpTo == 0 {
		t.Errorf("got stored count %+v, %v; want %d", got, err, tallyEvery)
	}
	put(t, other, testResult("i", tallyEvery, 1, 1), 0)
	checkTally(t, other, "i", [3]int64{tallyEvery, 0, 1}, [2]int64{tallyEvery, 1}, 2*tallyEvery+2)
}
