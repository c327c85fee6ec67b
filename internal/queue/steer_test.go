package queue

import (
	"errors"
	"testing"
	"time"

	"groupferry/internal/job"
)

func TestReclaim(t *testing.T) {
	q := open(t, Config{})
	enqueued(t, q, "imp", 10)
	s := q.Source("imp")
	if got := fetch(t, s, 4); len(got) != 4 {
		t.Fatalf("got %d jobs, want 4", len(got))
	} else if err := got[0].Ack(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := q.Reclaim(t.Context()); err != nil {
		t.Fatal(err)
	}
	if pending, inHand, err := q.Pending(t.Context(), "imp"); err != nil || pending != 9 || inHand != 0 {
		t.Errorf("got %d pending, %d in hand, %v; want 9 and none", pending, inHand, err)
	}
	seen := map[string]bool{}
	for len(seen) < 9 {
		for _, d := range fetch(t, s, 20) {
			j, err := d.Job()
			if err != nil {
				t.Fatal(err)
			}
			if seen[j.ID] {
				t.Errorf("job %s was delivered twice", j.ID)
			}
			seen[j.ID] = true
		}
	}
}

func TestPauseAndResumeImport(t *testing.T) {
	q := open(t, Config{})
	enqueued(t, q, "imp", 3)
	if err := q.PauseImport(t.Context(), "imp"); err != nil {
		t.Fatal(err)
	}
	if i, err := q.Import(t.Context(), "imp"); err != nil || !i.Paused {
		t.Errorf("record: paused %v, %v", i.Paused, err)
	}
	s := q.Source()
	for range 3 {
		if got, err := s.Fetch(t.Context(), 5); err != nil || len(got) > 0 {
			t.Fatalf("got %d jobs of a paused import, %v", len(got), err)
		}
	}
	if err := q.ResumeImport(t.Context(), "imp"); err != nil {
		t.Fatal(err)
	}
	if got := fetch(t, s, 5); len(got) == 0 {
		t.Error("nothing after resume")
	}
	if err := q.PauseImport(t.Context(), "other"); !errors.Is(err, ErrNoImport) {
		t.Errorf("got %v, want ErrNoImport", err)
	}
}

func TestCancel(t *testing.T) {
	q := open(t, Config{})
	enqueued(t, q, "imp", 10)
	inHand := fetch(t, q.Source(), 2)
	if err := q.Cancel(t.Context(), "imp"); err != nil {
		t.Fatal(err)
	}
	// What is in hand ends: its result is kept, its ack does no harm.
	r := job.Result{Import: "imp", Job: testJob("imp", 0, 1).ID, Outcome: job.Done, Started: time.Now(), Finished: time.Now()}
	if err := q.PutResult(t.Context(), r, 0); err != nil {
		t.Fatal(err)
	}
	_ = inHand[0].Ack(t.Context())
	i, err := q.Import(t.Context(), "imp")
	if err != nil || i.State != Cancelled || !i.State.Over() || i.Jobs != 10 {
		t.Errorf("record: %+v, %v", i, err)
	}
	if left, err := q.onStream(t.Context(), "imp"); err != nil || left != 0 {
		t.Errorf("%d jobs left, %v", left, err)
	}
	if _, err := q.Enqueue(t.Context(), "imp", nil, nil); !errors.Is(err, ErrCancelled) {
		t.Errorf("enqueue: got %v, want ErrCancelled", err)
	}
	if err := q.Cancel(t.Context(), "imp"); err != nil {
		t.Errorf("again: %v", err)
	}
	if err := q.Complete(t.Context(), "imp"); err != nil {
		t.Errorf("complete: %v", err)
	}
	if i, _ := q.Import(t.Context(), "imp"); i.State != Cancelled {
		t.Errorf("state %s, want it to stay cancelled", i.State)
	}
}

func TestRate(t *testing.T) {
	q := open(t, Config{})
	if n, err := q.Rate(t.Context()); n != 0 || err != nil {
		t.Errorf("got %d, %v; want none", n, err)
	}
	if err := q.SetRate(t.Context(), 160); err != nil {
		t.Fatal(err)
	}
	if n, err := q.Rate(t.Context()); n != 160 || err != nil {
		t.Errorf("got %d, %v; want 160", n, err)
	}
	if err := q.SetRate(t.Context(), -1); err == nil {
		t.Error("-1: no error")
	}
}
