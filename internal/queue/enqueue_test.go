package queue

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"groupferry/internal/job"
)

// stopAfter gives n of the jobs, and then cancels.
func stopAfter(jobs iter.Seq[job.Job], n int, cancel func()) iter.Seq[job.Job] {
	return func(yield func(job.Job) bool) {
		for j := range jobs {
			if n--; n < 0 {
				cancel()
				return
			}
			if !yield(j) {
				return
			}
		}
	}
}

func TestEnqueue(t *testing.T) {
	q := openQueue(t)
	for _, n := range []int{1, maxBatchJobs, maxBatchJobs + 1, 2500} {
		id := fmt.Sprintf("i%d", n)
		_, existed, err := q.Begin(t.Context(), Import{ID: id, Digest: "d"})
		if err != nil || existed {
			t.Fatalf("begin: existed %v, %v", existed, err)
		}
		var last int64
		stats, err := q.Enqueue(t.Context(), id, testJobs(id, n), func(done int64) { last = done })
		if err != nil || stats.Jobs != int64(n) || stats.Skipped != 0 || last != int64(n) {
			t.Fatalf("%d jobs: got %+v, progress %d, %v", n, stats, last, err)
		}
		wantJobs(t, q, id, n)
		i, err := q.Import(t.Context(), id)
		if err != nil || i.State != Running || i.Jobs != int64(n) || i.Enqueued.IsZero() {
			t.Fatalf("record: got %+v, %v", i, err)
		}
		// Doing it again reads no input.
		stats, err = q.Enqueue(t.Context(), id, func(func(job.Job) bool) { t.Error("the input was read") }, nil)
		if err != nil || stats.Jobs != 0 || stats.Skipped != int64(n) {
			t.Fatalf("again: got %+v, %v", stats, err)
		}
		if s := remains(t, q, id); s[q.checkpointSubject(id)] != 1 {
			t.Errorf("%d jobs: %d checkpoints are kept, want 1", n, s[q.checkpointSubject(id)])
		}
	}
	open, err := q.OpenImports(t.Context())
	if got := strings.Join(open, " "); err != nil || got != fmt.Sprintf("i1 i1000 i2500 i%d", maxBatchJobs) {
		t.Errorf("open imports: got %s, %v", got, err)
	}
}

// An enqueue that was cut off anywhere is resumed there.
func TestEnqueueResumes(t *testing.T) {
	q := openQueue(t)
	const n = 3200
	rng := rand.New(rand.NewPCG(7, 7))
	for round := range 6 {
		id := fmt.Sprintf("r%d", round)
		if _, _, err := q.Begin(t.Context(), Import{ID: id, Digest: "d", Jobs: n}); err != nil {
			t.Fatal(err)
		}
		written, cut := int64(0), 0
		for {
			ctx, cancel := context.WithCancel(t.Context())
			cut += 1 + rng.IntN(1500)
			stats, err := q.Enqueue(ctx, id, stopAfter(testJobs(id, n), cut, cancel), nil)
			cancel()
			written += stats.Jobs
			if err == nil {
				break
			}
			if !errors.Is(err, context.Canceled) || cut > n {
				t.Fatalf("cut at %d: %v", cut, err)
			}
			if i, _ := q.Import(t.Context(), id); i.State != Enqueueing {
				t.Fatalf("cut at %d: the record is %s", cut, i.State)
			}
		}
		if written != n {
			t.Errorf("%d jobs were written, want %d", written, n)
		}
		wantJobs(t, q, id, n)
	}
}

// An enqueue that was killed before it changed the record is finished by Sweep, without the input.
func TestSweepFinishesEnqueue(t *testing.T) {
	q := openQueue(t)
	begin(t, q, "a", 5)
	if _, err := q.Update(t.Context(), "a", func(i *Import) { i.State, i.Jobs = Enqueueing, 0 }); err != nil {
		t.Fatal(err)
	}
	if err := q.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if i, err := q.Import(t.Context(), "a"); err != nil || i.State != Running || i.Jobs != 5 {
		t.Errorf("got %+v, %v", i, err)
	}
}

// Several processes enqueue the same import at once: each job is there once.
func TestEnqueueTwice(t *testing.T) {
	dir := t.TempDir()
	first := openConn(t, dir)
	q, err := Open(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	const n, processes = 6000, 3
	if _, _, err := q.Begin(t.Context(), Import{ID: "a", Digest: "d"}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	stats, errs := make([]EnqueueStats, processes), make([]error, processes)
	for p := range processes {
		other, err := Open(t.Context(), openConn(t, dir))
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() { stats[p], errs[p] = other.Enqueue(t.Context(), "a", testJobs("a", n), nil) })
	}
	wg.Wait()
	sum := int64(0)
	for p := range processes {
		if errs[p] != nil {
			t.Errorf("process %d: %v", p, errs[p])
		}
		if stats[p].Jobs+stats[p].Skipped != n {
			t.Errorf("process %d: got %+v", p, stats[p])
		}
		sum += stats[p].Jobs
	}
	if sum != n {
		t.Errorf("%d jobs were written, want %d", sum, n)
	}
	wantJobs(t, q, "a", n)
}

// Two imports at once: neither disturbs the other.
func TestEnqueueTwoImports(t *testing.T) {
	q := openQueue(t)
	var wg sync.WaitGroup
	for _, id := range []string{"a", "b"} {
		wg.Go(func() {
			if _, _, err := q.Begin(t.Context(), Import{ID: id, Digest: "d"}); err != nil {
				t.Error(err)
			}
			if _, err := q.Enqueue(t.Context(), id, testJobs(id, 5000), nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	wantJobs(t, q, "a", 5000)
	wantJobs(t, q, "b", 5000)
}

func TestEnqueueRefusesOtherJobs(t *testing.T) {
	q := openQueue(t)
	other := func(n int) iter.Seq[job.Job] {
		return func(yield func(job.Job) bool) {
			for j := range testJobs("a", n) {
				j.ID += "x"
				if !yield(j) {
					return
				}
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, _, err := q.Begin(t.Context(), Import{ID: "a", Digest: "d"}); err != nil {
		t.Fatal(err)
	}
	if _, err := q.Enqueue(ctx, "a", stopAfter(testJobs("a", 3000), 2500, cancel), nil); err == nil {
		t.Fatal("no error")
	}
	for name, jobs := range map[string]iter.Seq[job.Job]{"other": other(3000), "fewer": testJobs("a", 100)} {
		if _, err := q.Enqueue(t.Context(), "a", jobs, nil); !errors.Is(err, ErrOrder) {
			t.Errorf("%s jobs: got %v, want ErrOrder", name, err)
		}
	}
	if _, err := q.Enqueue(t.Context(), "a", testJobs("b", 1), nil); err == nil {
		t.Error("jobs of another import: no error")
	}
	if _, err := q.Enqueue(t.Context(), "none", testJobs("none", 1), nil); !errors.Is(err, ErrNoImport) {
		t.Errorf("got %v, want ErrNoImport", err)
	}
	wantJobs(t, q, "a", 2*maxBatchJobs)
}

// A batch that the server did not write as a whole leaves jobs without a checkpoint. They are removed before the next
// batch, and those of a batch that is there are not.
func TestTornBatch(t *testing.T) {
	q := openQueue(t)
	const n = 2500
	if _, _, err := q.Begin(t.Context(), Import{ID: "a", Digest: "d"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := q.Enqueue(ctx, "a", stopAfter(testJobs("a", n), maxBatchJobs+1, cancel), nil); err == nil {
		t.Fatal("no error")
	}
	for i := range 7 {
		j := testJob("a", maxBatchJobs+i)
		if _, err := q.js.Publish(t.Context(), q.jobsSubject("a"), j.AppendJSON(nil)); err != nil {
			t.Fatal(err)
		}
	}
	begin(t, q, "b", 10) // so that the torn ones are not at the end of the stream
	if _, err := q.Enqueue(t.Context(), "a", testJobs("a", n), nil); err != nil {
		t.Fatal(err)
	}
	wantJobs(t, q, "a", n)
	wantJobs(t, q, "b", 10)
}

// The same before the first batch, and in the middle of a run whose batch got no response.
func TestTornBatchAfterLostResponse(t *testing.T) {
	q := openQueue(t)
	if _, _, err := q.Begin(t.Context(), Import{ID: "a", Digest: "d"}); err != nil {
		t.Fatal(err)
	}
	rec, err := q.Import(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	w := &writer{q: q, rec: rec}
	if err := w.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		j := testJob("a", i)
		if _, err := q.js.Publish(t.Context(), q.jobsSubject("a"), j.AppendJSON(nil)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.dropTorn(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.putAll(t.Context(), testJobs("a", 100)); err != nil {
		t.Fatal(err)
	}
	wantJobs(t, q, "a", 100)
	if err := w.dropTorn(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Another process is behind: what is there after its checkpoint is not torn.
	late := &writer{q: q, rec: rec, seq: 1}
	if err := late.dropTorn(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantJobs(t, q, "a", 100)
}

func TestBegin(t *testing.T) {
	q := openQueue(t)
	a, existed, err := q.Begin(t.Context(), Import{ID: "a", Digest: "d", Rows: 7, Counts: Counts{Results: 3}})
	if err != nil || existed || a.State != Enqueueing || a.Incarnation == "" || a.Created.IsZero() || a.Counts.Results != 0 {
		t.Fatalf("got %+v, %v, %v", a, existed, err)
	}
	b, existed, err := q.Begin(t.Context(), Import{ID: "a", Digest: "d", Rows: 8})
	if err != nil || !existed || b.Rows != 7 || b.Incarnation != a.Incarnation {
		t.Errorf("got %+v, %v, %v", b, existed, err)
	}
	var conflict *ConflictError
	if _, _, err := q.Begin(t.Context(), Import{ID: "a", Digest: "e"}); !errors.As(err, &conflict) {
		t.Errorf("got %v, want a ConflictError", err)
	}
	for _, id := range []string{"", "a.b", "a*", strings.Repeat("x", job.MaxImportID+1)} {
		if _, _, err := q.Begin(t.Context(), Import{ID: id}); err == nil {
			t.Errorf("ID %q: no error", id)
		}
		if _, err := q.Import(t.Context(), id); !errors.Is(err, ErrNoImport) {
			t.Errorf("ID %q: got %v, want ErrNoImport", id, err)
		}
	}
	if p, seq, err := q.checkpoint(t.Context(), "a"); err != nil || seq == 0 || !p.of(&a) || p.Jobs != 0 {
		t.Errorf("checkpoint: got %+v at %d, %v", p, seq, err)
	}
	all, err := q.Imports(t.Context())
	if err != nil || len(all) != 1 || all[0].ID != "a" {
		t.Errorf("imports: got %+v, %v", all, err)
	}
}

// A process that was killed between record and checkpoint, and then Enqueue.
func TestEnqueueWithoutCheckpoint(t *testing.T) {
	q := openQueue(t)
	a, _, err := q.Begin(t.Context(), Import{ID: "a", Digest: "d"})
	if err != nil {
		t.Fatal(err)
	}
	_, seq, err := q.checkpoint(t.Context(), "a")
	if err == nil {
		err = q.purgeJobs(t.Context(), q.checkpointSubject("a"), seq)
	}
	if err != nil {
		t.Fatal(err)
	}
	if b, existed, err := q.Begin(t.Context(), Import{ID: "a", Digest: "d"}); err != nil || !existed || b.Incarnation != a.Incarnation {
		t.Fatalf("got %+v, %v, %v", b, existed, err)
	}
	if _, err := q.Enqueue(t.Context(), "a", testJobs("a", 3), nil); err != nil {
		t.Fatal(err)
	}
	wantJobs(t, q, "a", 3)
}
