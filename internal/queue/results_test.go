package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"groupferry/internal/job"
)

// testResult is the result of testJob, whose first failed conversations failed.
func testResult(importID string, i, conversations, failed int) job.Result {
	j := testJob(importID, i, conversations)
	r := job.Result{
		Import: j.Import, Job: j.ID, FromAccount: j.FromAccount, GroupName: j.GroupName, Files: j.Files,
		Attempts: 1, Calls: 2, Worker: "w",
		Started:  time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Finished: time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC),
	}
	for k, c := range j.Conversations {
		cr := job.ConversationResult{Conversation: c}
		if k < failed {
			cr.Code, cr.Info = "51007", "no such group"
		}
		r.Conversations = append(r.Conversations, cr)
	}
	r.Settle()
	return r
}

func put(t testing.TB, q *Queue, r job.Result, seq uint64) {
	t.Helper()
	if err := q.PutResult(t.Context(), r, seq); err != nil {
		t.Fatal(err)
	}
}

func TestResultIsWrittenOnce(t *testing.T) {
	q := open(t, Config{})
	ctx := t.Context()
	first, second := testResult("i", 0, 3, 1), testResult("i", 0, 3, 0)
	if _, _, err := q.Result(ctx, "i", first.Job); !errors.Is(err, ErrNoResult) {
		t.Errorf("got %v, want %v", err, ErrNoResult)
	}
	put(t, q, first, 0)
	put(t, q, first, 0) // as after an answer that was lost
	if err := q.PutResult(ctx, second, 0); !errors.Is(err, ErrResultExists) {
		t.Errorf("second result: got %v, want %v", err, ErrResultExists)
	}
	got, seq, err := q.Result(ctx, "i", first.Job)
	if err != nil {
		t.Fatal(err)
	}
	if string(got.AppendJSON(nil)) != string(first.AppendJSON(nil)) || seq == 0 {
		t.Errorf("got %+v at %d, want %+v", got, seq, first)
	}
	if err := q.PutResult(ctx, second, seq+1); !errors.Is(err, ErrResultExists) {
		t.Errorf("wrong sequence: got %v, want %v", err, ErrResultExists)
	}
	put(t, q, second, seq)
	got, _, err = q.Result(ctx, "i", first.Job)
	if err != nil || got.Outcome != job.Done {
		t.Errorf("after it was replaced: got %s, %v; want %s", got.Outcome, err, job.Done)
	}
	if err := q.PutResult(ctx, first, seq); !errors.Is(err, ErrResultExists) {
		t.Errorf("sequence of before: got %v, want %v", err, ErrResultExists)
	}
	for _, id := range []string{"", "a.b", "*", ">", "a b"} {
		if err := q.PutResult(ctx, job.Result{Import: "i", Job: id}, 0); err == nil {
			t.Errorf("job ID %q: got no error", id)
		}
	}
}

func results(t testing.TB, q *Queue, id string) []string {
	t.Helper()
	var ids []string
	for r, err := range q.Results(t.Context(), id) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, r.Job)
	}
	return ids
}

func TestResults(t *testing.T) {
	q := open(t, Config{})
	if got := results(t, q, "none"); len(got) != 0 {
		t.Errorf("got %v, want none", got)
	}
	var want []string
	for i := range 100 {
		r := testResult("i", i, 2, 0)
		put(t, q, r, 0)
		put(t, q, testResult("other", i, 2, 0), 0)
		want = append(want, r.Job)
	}
	if got := results(t, q, "i"); !slices.Equal(got, want) {
		t.Errorf("got %d results, want %d in order", len(got), len(want))
	}
	n := 0
	for _, err := range q.Results(t.Context(), "i") {
		if n++; err != nil || n == 3 {
			break
		}
	}
	if n != 3 {
		t.Errorf("got %d results before the break, want 3", n)
	}
}

// Results that come at once are written in groups. One that comes second fails by itself, and takes no other with it.
func TestResultsTogether(t *testing.T) {
	for _, atomic := range []bool{true, false} { // without, as on a stream of an older binary on a server that is not ours
		t.Run(fmt.Sprintf("atomic=%t", atomic), func(t *testing.T) {
			q := open(t, Config{})
			if !atomic {
				cfg := q.results.CachedInfo().Config
				cfg.AllowAtomicPublish = false
				if _, err := q.js.UpdateStream(t.Context(), cfg); err != nil {
					t.Fatal(err)
				}
				q.batches = false
			}
			const n = 6 * minTogether
			second := func(i int) bool { return i%100 == 7 }
			for i := range n {
				if second(i) {
					put(t, q, testResult("i", i, 1, 1), 0)
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if err := q.PutResult(ctx, testResult("i", n, 1, 0), 0); !errors.Is(err, context.Canceled) {
				t.Errorf("after the end of the context: got %v, want %v", err, context.Canceled)
			}
			var wg sync.WaitGroup
			for i := range n {
				wg.Go(func() {
					err := q.PutResult(t.Context(), testResult("i", i, 1, 0), 0)
					if second(i) != errors.Is(err, ErrResultExists) || !second(i) && err != nil {
						t.Errorf("result %d: got %v, want it refused: %t", i, err, second(i))
					}
				})
			}
			wg.Wait()
			got := map[string]job.Outcome{}
			for r, err := range q.Results(t.Context(), "i") {
				if err != nil {
					t.Fatal(err)
				}
				got[r.Job] = r.Outcome
			}
			for i := range n {
				want := job.Done
				if second(i) {
					want = job.Failed
				}
				if r := testResult("i", i, 1, 0); got[r.Job] != want {
					t.Errorf("result %d: got %q, want %q", i, got[r.Job], want)
				}
			}
		})
	}
}

func TestResultsThatCannotBeRead(t *testing.T) {
	q := open(t, Config{})
	put(t, q, testResult("i", 0, 1, 0), 0)
	if _, err := q.js.Publish(t.Context(), q.resultSubject("i", "newer"), []byte(`{"v":99}`)); err != nil {
		t.Fatal(err)
	}
	var got []error
	for _, err := range q.Results(t.Context(), "i") {
		got = append(got, err)
	}
	if len(got) != 2 || got[0] != nil || !errors.Is(got[1], job.ErrVersion) {
		t.Errorf("got %v, want one result and %v", got, job.ErrVersion)
	}
	if _, err := q.Tally(t.Context(), "i"); err == nil {
		t.Error("tally over a result without its header: got no error")
	}
}

func checkTally(t *testing.T, q *Queue, id string, jobs [3]int64, conversations [2]int64, calls int64) Tally {
	t.Helper()
	got, err := q.Tally(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	var want Tally
	want.Jobs.Done, want.Jobs.Partial, want.Jobs.Failed = jobs[0], jobs[1], jobs[2]
	want.Conversations.Done, want.Conversations.Failed = conversations[0], conversations[1]
	want.Calls, want.LastResult = calls, got.LastResult
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if (got.Total() == 0) != got.LastResult.IsZero() {
		t.Errorf("got last result at %v with %d results", got.LastResult, got.Total())
	}
	return got
}

func TestTally(t *testing.T) {
	dir := t.TempDir()
	q, other := open(t, Config{DataDir: dir}), open(t, Config{DataDir: dir})
	checkTally(t, q, "i", [3]int64{}, [2]int64{}, 0)
	for i := range 10 {
		put(t, q, testResult("i", i, 3, i%4), 0) // 3 done, 5 partial (1, 2 failed), 2 failed
		put(t, q, testResult("j", i, 3, 0), 0)
	}
	first := checkTally(t, q, "i", [3]int64{3, 5, 2}, [2]int64{17, 13}, 20)
	// Again, with what came since on top.
	put(t, q, testResult("i", 10, 1, 0), 0)
	second := checkTally(t, q, "i", [3]int64{4, 5, 2}, [2]int64{18, 13}, 22)
	if second.LastResult.Before(first.LastResult) {
		t.Errorf("got last result %v, want it after %v", second.LastResult, first.LastResult)
	}
	checkTally(t, q, "i", [3]int64{4, 5, 2}, [2]int64{18, 13}, 22)
	// Retried elsewhere: a failed one is done now, and a new one was replaced before it was counted.
	failed := testResult("i", 3, 3, 3)
	_, seq, err := other.Result(t.Context(), "i", failed.Job)
	if err != nil {
		t.Fatal(err)
	}
	put(t, other, testResult("i", 3, 3, 0), seq)
	put(t, other, testResult("i", 11, 1, 1), 0)
	_, seq, err = other.Result(t.Context(), "i", testResult("i", 11, 1, 1).Job)
	if err != nil {
		t.Fatal(err)
	}
	put(t, other, testResult("i", 11, 1, 0), seq)
	for _, q := range []*Queue{q, other} {
		checkTally(t, q, "i", [3]int64{6, 5, 1}, [2]int64{22, 10}, 24)
	}
	checkTally(t, q, "j", [3]int64{10, 0, 0}, [2]int64{30, 0}, 20)
}

func TestTallyLeavesNoConsumer(t *testing.T) {
	q := open(t, Config{})
	put(t, q, testResult("i", 0, 1, 0), 0)
	if _, err := q.Tally(t.Context(), "i"); err != nil {
		t.Fatal(err)
	}
	results(t, q, "i")
	info, err := q.results.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.State.Consumers != 0 {
		t.Errorf("got %d consumers, want none", info.State.Consumers)
	}
}

// An oneEyed iterator has its first message only for who asks again.
type oneEyed struct {
	jetstream.MessagesContext
	asked int
}

func (o *oneEyed) Next(...jetstream.NextOpt) (jetstream.Msg, error) {
	if o.asked++; o.asked == 1 {
		return nil, context.DeadlineExceeded
	}
	return nil, nil
}

func TestNextIsAskedAgain(t *testing.T) {
	if _, err := nextOf(t.Context(), &oneEyed{}); err != nil {
		t.Errorf("silent once: got %v, want no error", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := nextOf(ctx, &oneEyed{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silent at the end: got %v, want %v", err, context.DeadlineExceeded)
	}
}

func TestRecent(t *testing.T) {
	q := open(t, Config{})
	for i := range 3 {
		put(t, q, testResult("i", i, 1, 0), 0)
	}
	for id, want := range map[string]int64{"i": 3, "other": 0} {
		if got, err := q.Recent(t.Context(), id, time.Hour); got != want || err != nil {
			t.Errorf("%s: got %d, %v; want %d", id, got, err, want)
		}
	}
}

func TestTallyLine(t *testing.T) {
	for _, line := range []string{
		"", "done", "done 1 2 3", "done 1 2 x 0", "well 1 2 3 0", "done 1 2 3 99999999999999999999",
	} {
		if err := new(Tally).add(line, 0); err == nil {
			t.Errorf("%q: got no error", line)
		}
	}
	r, before := testResult("i", 0, 3, 1), testResult("i", 0, 3, 3)
	line := tallyLine(&r, 7, tallyLine(&before, 0, ""))
	for _, tc := range []struct {
		counted uint64
		line    string
		want    string
		err     error
	}{
		{0, line, "{0 1 0} {2 1} 2", nil}, // the one before was gone when the count began
		{6, line + " more", "{0 1 0} {2 1} 2", nil},
		{7, line, "{0 1 -1} {2 -2} 0", nil},
		{7, tallyLine(&r, 7, ""), "{0 1 0} {2 1} 2", errReplaced},
	} {
		var got Tally
		err := got.add(tc.line, tc.counted)
		if s := fmt.Sprint(got.Jobs, got.Conversations, got.Calls); s != tc.want || !errors.Is(err, tc.err) {
			t.Errorf("%q after %d: got %s, %v; want %s, %v", tc.line, tc.counted, s, err, tc.want, tc.err)
		}
	}
}
