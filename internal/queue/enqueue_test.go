package queue

import (
	"context"
	"errors"
	"iter"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"groupferry/internal/job"
)

// checkStream compares what is on the stream with what should be, job by job and in order.
func checkStream(t *testing.T, q *Queue, id string, n int) {
	t.Helper()
	got, want := onStream(t, q, id), idsOf(jobsOf(id, n))
	if !slices.Equal(got, want) {
		t.Errorf("got %d jobs on the stream, want exactly the %d of the input, in order", len(got), len(want))
	}
}

// cutOff is jobsOf, except that it cancels and stops after stop jobs, as an importer does on a signal.
func cutOff(id string, n, stop int, cancel func()) iter.Seq[job.Job] {
	return func(yield func(job.Job) bool) {
		i := 0
		for j := range jobsOf(id, n) {
			if i == stop {
				cancel()
				return
			}
			if !yield(j) {
				return
			}
			i++
		}
	}
}

func TestEnqueueGoesOnWhereItWasCutOff(t *testing.T) {
	q := open(t, Config{})
	const n = 3500
	begin(t, q, "i")
	var total int64
	for _, stop := range []int{0, 1, 998, 999, 1000, 2500, 3499, n} {
		ctx, cancel := context.WithCancel(t.Context())
		got, err := q.Enqueue(ctx, "i", cutOff("i", n, stop, cancel), nil)
		cancel()
		if stop < n && !errors.Is(err, context.Canceled) {
			t.Fatalf("cut off at %d: got %v, want %v", stop, err, context.Canceled)
		}
		if got.Skipped != total {
			t.Errorf("cut off at %d: got %d skipped, want the %d of earlier calls", stop, got.Skipped, total)
		}
		total += got.Jobs
		rec, err := q.Import(t.Context(), "i")
		if err != nil {
			t.Fatal(err)
		}
		if want := map[bool]ImportState{true: Enqueueing, false: Enqueued}[stop < n]; rec.State != want {
			t.Errorf("cut off at %d: got state %s, want %s", stop, rec.State, want)
		}
	}
	if total != n {
		t.Errorf("got %d jobs enqueued in all, want %d", total, n)
	}
	checkStream(t, q, "i", n)
}

func TestEnqueueOfNothing(t *testing.T) {
	q := open(t, Config{})
	enqueued(t, q, "empty", 0)
	if err := q.Complete(t.Context(), "empty"); err != nil {
		t.Error(err)
	}
}

func TestEnqueueTellsProgress(t *testing.T) {
	q := open(t, Config{})
	begin(t, q, "i")
	var got []int64
	if _, err := q.Enqueue(t.Context(), "i", jobsOf("i", 2000), func(n int64) { got = append(got, n) }); err != nil {
		t.Fatal(err)
	}
	if want := []int64{999, 1998, 2000}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestEnqueueRefusesAnotherInput(t *testing.T) {
	const n = 2500
	swapped := func(yield func(job.Job) bool) {
		all := slices.Collect(jobsOf("i", n))
		all[3], all[4] = all[4], all[3]
		for _, j := range all {
			if !yield(j) {
				return
			}
		}
	}
	tests := []struct {
		name string
		jobs iter.Seq[job.Job]
	}{
		{"another order", swapped},
		{"fewer than there are", jobsOf("i", 500)},
		{"none", jobsOf("i", 0)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			q := open(t, Config{})
			begin(t, q, "i")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if _, err := q.Enqueue(ctx, "i", cutOff("i", n, 1500, cancel), nil); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			_, err := q.Enqueue(t.Context(), "i", test.jobs, nil)
			if !errors.Is(err, ErrOrder) {
				t.Errorf("got %v, want %v", err, ErrOrder)
			}
			checkStream(t, q, "i", 999)
			if rec, err := q.Import(t.Context(), "i"); err != nil || rec.State != Enqueueing {
				t.Errorf("got state %s, %v; want %s", rec.State, err, Enqueueing)
			}
		})
	}
}

func TestEnqueueWantsTheJobsThatWereAnnounced(t *testing.T) {
	q := open(t, Config{})
	if _, _, err := q.Begin(t.Context(), Import{ID: "i", Jobs: 10}); err != nil {
		t.Fatal(err)
	}
	// An input that ended early, for whatever reason, must not count as all of it.
	if _, err := q.Enqueue(t.Context(), "i", jobsOf("i", 9), nil); !errors.Is(err, ErrOrder) {
		t.Errorf("got %v, want %v", err, ErrOrder)
	}
	if _, err := q.Enqueue(t.Context(), "i", jobsOf("i", 10), nil); err != nil {
		t.Error(err)
	}
	checkStream(t, q, "i", 10)
}

func TestEnqueueRefuses(t *testing.T) {
	q := open(t, Config{})
	begin(t, q, "i")
	if _, err := q.Enqueue(t.Context(), "none", jobsOf("none", 1), nil); !errors.Is(err, ErrNoImport) {
		t.Errorf("unknown import: got %v, want %v", err, ErrNoImport)
	}
	if _, err := q.Enqueue(t.Context(), "i", jobsOf("other", 1), nil); err == nil {
		t.Error("job of another import: got no error")
	}
	huge := testJob("i", 0, 1)
	huge.GroupName = strings.Repeat("x", 1<<20)
	_, err := q.Enqueue(t.Context(), "i", slices.Values([]job.Job{huge}), nil)
	if err == nil || !strings.Contains(err.Error(), "max_payload") {
		t.Errorf("huge job: got %v, want an error that names max_payload", err)
	}
	checkStream(t, q, "i", 0)
}

func TestTwoImportersOfOneInput(t *testing.T) {
	dir := t.TempDir()
	const n = 6000
	queues := []*Queue{open(t, Config{DataDir: dir}), open(t, Config{DataDir: dir})}
	begin(t, queues[0], "i")
	var (
		wg    sync.WaitGroup
		stats [2]EnqueueStats
		errs  [2]error
	)
	for k, q := range queues {
		wg.Go(func() { stats[k], errs[k] = q.Enqueue(t.Context(), "i", jobsOf("i", n), nil) })
	}
	wg.Wait()
	for k := range queues {
		if errs[k] != nil {
			t.Errorf("importer %d: %v", k, errs[k])
		}
		if got := stats[k].Jobs + stats[k].Skipped; got != n {
			t.Errorf("importer %d: got %+v, want a sum of %d", k, stats[k], n)
		}
	}
	if got := stats[0].Jobs + stats[1].Jobs; got != n {
		t.Errorf("got %d jobs enqueued by both, want %d", got, n)
	}
	checkStream(t, queues[0], "i", n)
}

// TestImportsThatShareTheStream enqueues one import while another one is under way: each batch of either can make the
// other's next one wrong.
func TestImportsThatShareTheStream(t *testing.T) {
	q := open(t, Config{})
	const n = 3_000
	ids := []string{"a", "b"}
	for _, id := range ids {
		begin(t, q, id)
	}
	var wg sync.WaitGroup
	for _, id := range ids {
		wg.Go(func() {
			if got, err := q.Enqueue(t.Context(), id, jobsOf(id, n), nil); err != nil || got.Jobs != n {
				t.Errorf("import %s: got %+v, %v; want %d enqueued", id, got, err, n)
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		checkStream(t, q, id, n)
		if got := checkpoints(t, q, id); got != 1 {
			t.Errorf("import %s: got %d checkpoints, want one", id, got)
		}
	}
}

// TestImportsTakeTurns lets a second import come after one that had the stream for a whole turn: the first steps back,
// the second does not.
func TestImportsTakeTurns(t *testing.T) {
	q := open(t, Config{})
	enqueue := func(id string) (e *enqueuer, commit func()) {
		begin(t, q, id)
		e = &enqueuer{q: q, id: id, writer: "of " + id, aside: 1}
		return e, func() {
			j := testJob(id, int(e.seen), 1)
			if err := e.take(&j); err != nil {
				t.Fatal(err)
			}
			if err := e.commit(t.Context(), false); err != nil {
				t.Fatal(err)
			}
		}
	}
	first, commitFirst := enqueue("a")
	second, commitSecond := enqueue("b")
	for range batchesInTurn {
		commitFirst()
	}
	commitSecond()
	commitFirst()
	if first.turn != 1 {
		t.Errorf("got batch %d of the first import's turn, want a new turn", first.turn)
	}
	commitSecond()
	if second.turn != 2 || second.aside != batchesInTurn-2 {
		t.Errorf("got batch %d of the second import's turn and %d by the subject, want 2 and %d",
			second.turn, second.aside, batchesInTurn-2)
	}
	checkStream(t, q, "a", batchesInTurn+1)
	checkStream(t, q, "b", 2)
}

// checkpoints counts those of an import that are on the stream.
func checkpoints(t *testing.T, q *Queue, id string) uint64 {
	t.Helper()
	subject := q.checkpointSubject(id)
	info, err := q.jobs.Info(t.Context(), jetstream.WithSubjectFilter(subject))
	if err != nil {
		t.Fatal(err)
	}
	return info.State.Subjects[subject]
}

// TestCheckpointsArePutAway follows the checkpoints of an import: each batch leaves one, until there are enough.
func TestCheckpointsArePutAway(t *testing.T) {
	q := open(t, Config{})
	begin(t, q, "i")
	e := &enqueuer{q: q, id: "i", writer: "me", aside: 1}
	wants := []uint64{1, 2, 3, 4, 1, 2, 3}
	for i, want := range wants {
		if i == 4 {
			e.untidy = bytesToTidy
		}
		j := testJob("i", i, 1)
		if err := e.take(&j); err != nil {
			t.Fatal(err)
		}
		if err := e.commit(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		if got := checkpoints(t, q, "i"); got != want {
			t.Errorf("after batch %d: got %d checkpoints, want %d", i+1, got, want)
		}
	}
	if err := e.commit(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if got := checkpoints(t, q, "i"); got != 1 {
		t.Errorf("got %d checkpoints at the end, want one", got)
	}
	checkStream(t, q, "i", len(wants))
}

// TestEnqueueTakesLittleMemory enqueues much within the 10 s for which the embedded server would keep it, if it had to
// read what was written.
func TestEnqueueTakesLittleMemory(t *testing.T) {
	q := open(t, Config{})
	begin(t, q, "i")
	const n, size, most = 6000, 8 << 10, 16 << 20
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	if _, err := q.Enqueue(t.Context(), "i", padded(jobsOf("i", n), size), nil); err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.GC() // what was in a pool at the first one is free after the second
	runtime.ReadMemStats(&after)
	if got := int64(after.HeapAlloc) - int64(before.HeapAlloc); got > most {
		t.Errorf("got %d MiB more in use after %d MiB of jobs, want at most %d", got>>20, n*size>>20, most>>20)
	}
}

// TestEnqueueAfterAnother lets a second importer move the checkpoint while the first has jobs waiting.
func TestEnqueueAfterAnother(t *testing.T) {
	const (
		n     = 3000
		pause = 1500 // where the first importer is: 999 jobs are on the queue, 501 wait
	)
	tests := []struct {
		name string
		stop int // where the second importer is cut off
		big  bool
	}{
		{"part of what waits", 1200, true},
		{"more than what waits", 2500, false},
		{"all", n, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			q := open(t, Config{})
			begin(t, q, "i")
			first := func(yield func(job.Job) bool) {
				i := 0
				for j := range jobsOf("i", n) {
					if i == pause {
						ctx, cancel := context.WithCancel(t.Context())
						defer cancel()
						second := cutOff("i", n, test.stop, cancel)
						if test.big { // so that it sends what it has in smaller pieces
							second = padded(second, 100<<10)
						}
						if _, err := q.Enqueue(ctx, "i", second, nil); err != nil && !errors.Is(err, context.Canceled) {
							t.Error(err)
						}
					}
					if !yield(j) {
						return
					}
					i++
				}
			}
			got, err := q.Enqueue(t.Context(), "i", first, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got.Jobs < 999 || got.Jobs == n || got.Jobs+got.Skipped != n {
				t.Errorf("got %+v, want at least 999 enqueued, some skipped, %d in all", got, n)
			}
			checkStream(t, q, "i", n)
		})
	}
}

// TestEnqueueOfLessThanAnother ends its input where another importer went on: it must not take the rest back.
func TestEnqueueOfLessThanAnother(t *testing.T) {
	const n = 3000
	for _, stop := range []int{2500, n} {
		q := open(t, Config{})
		begin(t, q, "i")
		less := func(yield func(job.Job) bool) {
			for j := range jobsOf("i", 1200) {
				if !yield(j) {
					return
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if _, err := q.Enqueue(ctx, "i", cutOff("i", n, stop, cancel), nil); err != nil && stop == n {
				t.Error(err)
			}
		}
		if _, err := q.Enqueue(t.Context(), "i", less, nil); !errors.Is(err, ErrOrder) {
			t.Errorf("other stopped at %d: got %v, want %v", stop, err, ErrOrder)
		}
		if _, err := q.Enqueue(t.Context(), "i", jobsOf("i", n), nil); err != nil {
			t.Error(err)
		}
		checkStream(t, q, "i", n)
	}
}

// padded makes jobs larger without making them others.
func padded(jobs iter.Seq[job.Job], size int) iter.Seq[job.Job] {
	return func(yield func(job.Job) bool) {
		for j := range jobs {
			j.Files = []string{strings.Repeat("x", size)}
			if !yield(j) {
				return
			}
		}
	}
}

// TestCommitWhoseAnswerWasLost puts an enqueuer back to before a batch that the server has: it must find out.
func TestCommitWhoseAnswerWasLost(t *testing.T) {
	q := open(t, Config{})
	begin(t, q, "i")
	if err := q.createConsumer(t.Context(), "i", 0); err != nil {
		t.Fatal(err)
	}
	e := &enqueuer{q: q, id: "i", writer: "me"}
	for j := range jobsOf("i", 10) {
		if err := e.take(&j); err != nil {
			t.Fatal(err)
		}
	}
	msgs, chains := slices.Clone(e.msgs), slices.Clone(e.chains)
	if err := e.commit(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	e.last, e.seq, e.written, e.msgs, e.chains = checkpoint{}, 0, 0, msgs, chains
	if err := e.commit(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if e.written != 10 || len(e.msgs) != 0 {
		t.Errorf("got %d written, %d waiting; want 10, 0", e.written, len(e.msgs))
	}
	checkStream(t, q, "i", 10)
}

func TestDropKeepsEveryMessage(t *testing.T) {
	e := &enqueuer{}
	for range 10 {
		e.slot()
		e.chains = append(e.chains, chain{})
	}
	all := slices.Clone(e.msgs)
	e.drop(3)
	if !slices.Equal(e.msgs, all[3:]) {
		t.Error("what waits is not what was behind the dropped ones")
	}
	for range 3 {
		e.slot()
	}
	seen := map[*nats.Msg]bool{}
	for _, m := range e.msgs {
		seen[m] = true
	}
	if len(seen) != 10 {
		t.Errorf("got %d different messages, want 10", len(seen))
	}
}

// A stream that takes no more says so, and is not out of reach.
func TestEnqueueIntoAFullStream(t *testing.T) {
	q := open(t, Config{})
	cfg := q.jobs.CachedInfo().Config
	cfg.MaxMsgs = 10
	if _, err := q.js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	begin(t, q, "i")
	_, err := q.Enqueue(t.Context(), "i", jobsOf("i", 20), nil)
	if err == nil || errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "takes no more jobs") {
		t.Errorf("got %v, want that the stream takes no more", err)
	}
}
