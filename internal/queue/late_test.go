package queue

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"groupferry/internal/broker"
	"groupferry/internal/job"
)

// The response to a group is lost, and an import in it ends before the leader checks what became of the group: no result
// of that import is written any more, also if another import of the group continues.
func TestEndAfterLostResponse(t *testing.T) {
	for _, gone := range []bool{false, true} {
		t.Run(fmt.Sprintf("deleted=%t", gone), func(t *testing.T) {
			q := leaderQueue(t)
			imported(t, q, "one", 30)
			imported(t, q, "two", 30)
			term := notRunning(t, q, TermConfig{Term: 1})
			all := take(t, term, 20)
			for _, d := range all[:10] {
				d.Finish(resultOf(t, d, 0))
			}
			term.sent = term.nextGroup(time.Now())
			if _, err := term.send(t.Context(), term.sent); err != nil { // and nobody hears of it
				t.Fatal(err)
			}
			if err := q.Cancel(t.Context(), "one"); err != nil {
				t.Fatal(err)
			}
			if gone {
				if err := q.Delete(t.Context(), "one"); err != nil {
					t.Fatal(err)
				}
			}
			for _, d := range all[10:] {
				d.Finish(resultOf(t, d, 0))
			}
			for term.Snapshot().Unwritten > 0 {
				if err := term.writeGroup(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if p, err := q.Progress(t.Context(), "two"); err != nil || p.Counts.Results != 10 {
				t.Errorf("two: got %d results, %v; want 10", p.Counts.Results, err)
			}
			if !gone {
				if p, err := q.Progress(t.Context(), "one"); err != nil || p.Counts.Results != 5 {
					t.Errorf("one: got %d results, %v; want the 5 before its end", p.Counts.Results, err)
				}
				return
			}
			if _, existed, err := q.Begin(t.Context(), Import{ID: "one", Digest: "another"}); err != nil || existed {
				t.Errorf("one, begun anew: got existed %t, %v; want a new import", existed, err)
			}
		})
	}
}

// An import that can never be complete does not keep another one from it.
func TestCompletionGoesOn(t *testing.T) {
	q := leaderQueue(t)
	imported(t, q, "a", 2)
	imported(t, q, "b", 2)
	l := lead(t, q, TermConfig{Term: 1})
	var all []*Delivery
	for range 4 {
		all = append(all, l.next(t))
	}
	i, revision, err := q.importRecord(t.Context(), "a") // a newer binary writes its record
	if err != nil {
		t.Fatal(err)
	}
	b, err := encodeImport(i)
	if err != nil {
		t.Fatal(err)
	}
	b = append([]byte(`{"v":99,`), b[len(`{"v":1,`):]...)
	if _, err := q.control.Update(t.Context(), importKey("a"), b, revision); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"a", "b"} {
		for _, d := range all {
			if d.Import() == id {
				d.Finish(resultOf(t, d, 0))
			}
		}
	}
	wait(t, "b to be complete", func() bool {
		r, err := q.Import(t.Context(), "b")
		return err == nil && r.State == Complete
	})
	if _, err := q.Import(t.Context(), "a"); !errors.Is(err, job.ErrVersion) {
		t.Errorf("a: got %v, want it to be of another version", err)
	}
}

// Reading an import while it is cancelled shows no damage.
func TestProgressWhileCancelled(t *testing.T) {
	q := leaderQueue(t)
	for n := range 20 {
		id := fmt.Sprintf("i%d", n)
		imported(t, q, id, 3)
		l := lead(t, q, TermConfig{Term: uint64(n + 1)})
		l.work(t, 2, nil)
		l.stop(t)
		cancelled := make(chan error, 1)
		go func() { cancelled <- q.Cancel(t.Context(), id) }()
		for over := false; !over; {
			select {
			case err := <-cancelled:
				if err != nil {
					t.Fatal(err)
				}
				over = true
			default:
			}
			if p, err := q.Progress(t.Context(), id); errors.As(err, new(*broker.DamagedError)) {
				t.Fatalf("import %s, %s: got %v", id, p.Import.State, err)
			}
		}
	}
}

// An import is cancelled while the leader completes it. The leader ends it then, which the cancel waits for.
func TestCancelledAtItsEnd(t *testing.T) {
	q := leaderQueue(t)
	imported(t, q, "imp", 5)
	term := notRunning(t, q, TermConfig{Term: 1})
	for _, d := range take(t, term, 5) {
		d.Finish(resultOf(t, d, 0))
	}
	if err := term.writeGroup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := q.markOver(t.Context(), "imp", 0); err != nil {
		t.Fatal(err)
	}
	if err := term.recheck(t.Context(), "imp"); err != nil {
		t.Fatal(err)
	}
	if done, err := term.completeNext(t.Context()); !done || err != nil {
		t.Fatalf("nothing was to be completed: %t, %v", done, err)
	}
	if _, seq, err := q.checkpoint(t.Context(), "imp"); err != nil || seq != 0 {
		t.Errorf("got a checkpoint at %d, %v, want none", seq, err)
	}
	if i := record(t, q, "imp"); i.State != Cancelled || i.Counts.Results != 5 {
		t.Errorf("got %+v, want it cancelled with 5 results", i)
	}
}
