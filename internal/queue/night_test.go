package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"groupferry/internal/broker"
	"groupferry/internal/job"
)

// outcomes counts the results of an import as Results gives them.
func outcomes(t testing.TB, q *Queue, id string) (done, failed int) {
	t.Helper()
	for r, err := range q.Results(t.Context(), id) {
		if err != nil {
			t.Fatal(err)
		}
		if r.Outcome == job.Done {
			done++
		} else {
			failed++
		}
	}
	return done, failed
}

func TestDeletePendingNight(t *testing.T) {
	q := openQueue(t)
	s := night(t, q, NewSync("contacts", testTarget), "i1")
	completeNight(t, q, "i1", 2)
	var pending *PendingNightError
	if err := q.Delete(t.Context(), "i1"); !errors.As(err, &pending) || pending.Night != 1 || pending.Sync != "contacts" {
		t.Fatalf("got %v, want a PendingNightError", err)
	}
	h := &handWriter{q: q, rec: begin(t, q, "other", 1)}
	h.write(t, testResult("other", 0))
	h.complete(t)
	if gone, err := q.DeleteOlder(t.Context(), 0); err != nil || !slices.Equal(gone, []string{"other"}) {
		t.Errorf("got %q, %v, want the other import alone", gone, err)
	}
	if done, failed := outcomes(t, q, "i1"); done != 1 || failed != 1 {
		t.Errorf("got %d done and %d failed, want 1 and 1", done, failed)
	}
	if _, err := q.FenceNight(t.Context(), s, 0); err != nil {
		t.Fatal(err)
	}
	night(t, q, s, "i2")
	if err := q.Delete(t.Context(), "i1"); err != nil {
		t.Errorf("the night before the last: %v", err)
	}
	wantNothing(t, q, "i1")
}

func TestRetryNight(t *testing.T) {
	q := openQueue(t)
	s := night(t, q, NewSync("contacts", testTarget), "i1")
	completeNight(t, q, "i1", 4)
	i, stats, err := q.Retry(t.Context(), "i1", nil, nil)
	if err != nil || stats.Jobs != 2 || i.State != Running {
		t.Fatalf("retry of the last night: got %+v, %+v, %v", i, stats, err)
	}
	if i, err = q.FenceNight(t.Context(), s, 0); err != nil || i.State != Complete || i.NextNight != 2 || !i.Superseded ||
		i.Counts.Results != 4 {
		t.Fatalf("got %+v, %v, want the retry cut off by night 2", i, err)
	}
	wantJobs(t, q, "i1", 0)
	var newer *NewerNightError
	if _, _, err := q.Retry(t.Context(), "i1", nil, nil); !errors.As(err, &newer) || newer.Night != 1 || newer.Newer != 2 {
		t.Errorf("got %v, want a NewerNightError", err)
	}
}

// A retry and the next night come at once, and a second process retries, too. Whoever wins: when the night has read the
// results, none is added, and no job is on the queue.
func TestRetryAndNightAtOnce(t *testing.T) {
	q := openQueue(t)
	s := NewSync("contacts", testTarget)
	retried, refused := 0, 0
	for round := range 6 {
		id := fmt.Sprint("i", round)
		s = night(t, q, s, id)
		completeNight(t, q, id, 6)
		var all sync.WaitGroup
		var mu sync.Mutex
		for range 2 {
			all.Go(func() {
				_, _, err := q.Retry(t.Context(), id, nil, nil)
				mu.Lock()
				defer mu.Unlock()
				_, newer := errors.AsType[*NewerNightError](err)
				switch {
				case err == nil:
					retried++
				case newer, errors.Is(err, ErrCancelled):
					refused++
				default:
					t.Error(err)
				}
			})
		}
		if round%2 == 1 { // otherwise the night mostly comes first
			wait(t, "a retry to begin", func() bool { return record(t, q, id).Generation == 1 })
		}
		if _, err := q.FenceNight(t.Context(), s, 0); err != nil {
			t.Fatal(err)
		}
		all.Wait()
		i := record(t, q, id)
		if i.State != Complete || i.NextNight != i.Night+1 || i.Counts.Results != 6 {
			t.Errorf("round %d: got %+v", round, i)
		}
		wantJobs(t, q, id, 0)
	}
	t.Logf("%d retries were begun, %d refused", retried, refused)
}

// Two processes prepare the next night, and delete what is old, at once. One night is begun, and no result is lost to it.
func TestTwoNightsAtOnce(t *testing.T) {
	q := openQueue(t)
	s := night(t, q, NewSync("contacts", testTarget), "i0")
	for round := 1; round <= 4; round++ {
		before := s.Pending.Import
		completeNight(t, q, before, 6)
		var all sync.WaitGroup
		var mu sync.Mutex
		won := 0
		for n := range 3 {
			all.Go(func() {
				i, err := q.FenceNight(t.Context(), s, 0)
				if errors.Is(err, ErrSyncChanged) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				done := 0
				for _, err := range q.Results(t.Context(), i.ID) {
					if err != nil && !errors.Is(err, ErrNoImport) {
						t.Error(err)
					}
					if err == nil {
						done++
					}
				}
				object, _, err := q.PutSnapshot(t.Context(), s, writeAll([]byte(fmt.Sprint(done))))
				if err != nil {
					t.Error(err)
					return
				}
				next, err := q.UpdateSync(t.Context(), s, func(s *Sync) {
					s.Night++
					s.Generation++
					s.Object, s.Previous = object, s.Object
					s.Pending = &Night{Number: s.Night, Import: fmt.Sprintf("i%d-%d", round, n), Digest: "d"}
				})
				if errors.Is(err, ErrSyncChanged) {
					return
				}
				if err == nil {
					err = q.DeleteSnapshots(t.Context(), next)
				}
				if err == nil {
					_, _, err = q.Begin(t.Context(), nightImport(next))
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				won++
			})
		}
		all.Go(func() {
			for range 3 {
				if _, err := q.DeleteOlder(t.Context(), 0); err != nil {
					t.Error(err)
				}
			}
		})
		all.Wait()
		var err error
		if s, err = q.Sync(t.Context(), "contacts", testTarget); err != nil || won != 1 || s.Night != round+1 {
			t.Fatalf("round %d: %d begun, %+v, %v", round, won, s, err)
		}
		if got, err := readSnapshot(t, q, s.Object); err != nil || string(got) != "6" {
			t.Errorf("round %d: the snapshot has %q results, %v, want 6", round, got, err)
		}
		record(t, q, s.Pending.Import)
	}
	// The two that are named, and at most what the losers wrote for a generation that is still to come.
	if err := q.DeleteSnapshots(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if got := objects(t, q); !slices.Contains(got, s.Object) || !slices.Contains(got, s.Previous) || len(got) != 2 {
		t.Errorf("got %q, want %q and %q", got, s.Object, s.Previous)
	}
}

func TestSupersede(t *testing.T) {
	q := openQueue(t)
	s := night(t, q, NewSync("contacts", testTarget), "i1")
	h := &handWriter{q: q, rec: record(t, q, "i1")}
	if _, err := q.Enqueue(t.Context(), "i1", testJobs("i1", 5), nil); err != nil {
		t.Fatal(err)
	}
	h.write(t, testResult("i1", 0), testResult("i1", 1, "51007"))
	if done, failed := outcomes(t, q, "i1"); done != 1 || failed != 1 { // while it runs
		t.Errorf("got %d done and %d failed, want 1 and 1", done, failed)
	}
	for range 2 { // the second one finds nothing to do
		i, err := q.Supersede(t.Context(), "i1", 2, 0)
		if err != nil || i.State != Cancelled || i.NextNight != 2 || !i.Superseded || i.Counts.Results != 2 {
			t.Fatalf("got %+v, %v", i, err)
		}
	}
	wantJobs(t, q, "i1", 5) // until what was under way is known
	i, err := q.Import(t.Context(), "i1")
	if err == nil {
		err = q.DropJobs(t.Context(), &i)
	}
	if err != nil {
		t.Fatal(err)
	}
	wantJobs(t, q, "i1", 0)
	if done, failed := outcomes(t, q, "i1"); done != 1 || failed != 1 {
		t.Errorf("got %d done and %d failed, want 1 and 1", done, failed)
	}
	// An end that was cut off is finished: its leader could write results otherwise.
	s = night(t, q, s, "i2")
	if _, err := q.Enqueue(t.Context(), "i2", testJobs("i2", 3), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := q.markOver(t.Context(), "i2", 0); err != nil {
		t.Fatal(err)
	}
	if i, err := q.FenceNight(t.Context(), s, 0); err != nil || i.State != Cancelled || i.NextNight != 3 || i.Superseded {
		t.Errorf("got %+v, %v, want one that a person cancelled", i, err)
	}
	wantJobs(t, q, "i2", 3) // what a person's cancel dropped can be exported
	if done, failed := outcomes(t, q, "i2"); done+failed != 0 {
		t.Errorf("got %d results, want none", done+failed)
	}
	// A complete one: nothing but the note.
	night(t, q, s, "i3")
	completeNight(t, q, "i3", 2)
	if i, err := q.Supersede(t.Context(), "i3", 4, time.Hour); err != nil || i.State != Complete || i.NextNight != 4 || i.Superseded {
		t.Errorf("got %+v, %v", i, err)
	}
	if _, err := q.Supersede(t.Context(), "none", 2, 0); !errors.Is(err, ErrNoImport) {
		t.Errorf("got %v, want ErrNoImport", err)
	}
}

// A night is cut off while another process enqueues it: that one learns why, and no job stays.
func TestSupersedeWhileEnqueued(t *testing.T) {
	q := openQueue(t)
	s := night(t, q, NewSync("contacts", testTarget), "i1")
	first := make(chan struct{})
	go func() {
		<-first
		if _, err := q.FenceNight(t.Context(), s, 0); err != nil {
			t.Error(err)
		}
		first <- struct{}{}
	}()
	_, err := q.Enqueue(t.Context(), "i1", testJobs("i1", 5000), func(n int64) {
		if n < 2000 && first != nil {
			first <- struct{}{}
			<-first
		}
	})
	if _, newer := errors.AsType[*NewerNightError](err); !newer || !errors.Is(err, ErrCancelled) {
		t.Errorf("got %v, want ErrCancelled and a NewerNightError", err)
	}
	i, err := q.Import(t.Context(), "i1")
	if err == nil {
		err = q.DropJobs(t.Context(), &i)
	}
	if err != nil {
		t.Error(err)
	}
	wantJobs(t, q, "i1", 0)
}

// What is in flight when a night is superseded ends, and counts. The leader hands out nothing more.
func TestSupersedeInFlight(t *testing.T) {
	q := leaderQueue(t)
	s := queuedNight(t, q, NewSync("contacts", testTarget), "i1", 40)
	l := lead(t, q, TermConfig{Term: 1, Target: testTarget})
	a, b := l.next(t), l.next(t)
	if st, _, err := q.lastState(t.Context(), "i1"); err != nil || st == nil || st.InFlight != 0 {
		t.Fatalf("got %+v, %v, want a state of before the first job", st, err)
	}
	ended := make(chan Import, 1)
	go func() {
		i, err := q.FenceNight(t.Context(), s, 20*time.Second)
		if err != nil {
			t.Error(err)
		}
		ended <- i
	}()
	wait(t, "the record to be over", func() bool { return record(t, q, "i1").State == Cancelled })
	l.Changed("i1")
	a.Finish(resultOf(t, a, 0))
	b.Finish(resultOf(t, b, 1))
	if i := <-ended; i.Counts.Results != 2 || !i.Superseded {
		t.Errorf("got %+v, want the two results that were in flight", i)
	}
	if done, failed := outcomes(t, q, "i1"); done != 1 || failed != 1 {
		t.Errorf("got %d done and %d failed, want 1 and 1", done, failed)
	}
}

// A night is cut off before the leader that follows a lost one has begun with it. Nothing of it is in flight any more.
func TestSupersededBeforeTheNextLeaderHasBegun(t *testing.T) {
	q := leaderQueue(t)
	s := queuedNight(t, q, NewSync("contacts", testTarget), "i1", 40)
	l := lead(t, q, TermConfig{Term: 1})
	l.next(t)
	l.kill()
	if _, err := q.markOver(t.Context(), "i1", 2); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := q.FenceNight(t.Context(), s, time.Hour)
		ended <- err
	}()
	l = lead(t, q, TermConfig{Term: 2, Crashed: true})
	l.Changed("i1")
	wait(t, "the end of the first night", func() bool {
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
			return true
		default:
			return false
		}
	})
}

// nextNight fences the pending night of a sync without waiting for it, and begins and enqueues the next one.
func nextNight(t *testing.T, q *Queue, s Sync, id string) Sync {
	t.Helper()
	if _, err := q.FenceNight(t.Context(), s, 0); err != nil {
		t.Fatal(err)
	}
	return queuedNight(t, q, s, id, 3)
}

// wantOnly makes sure that a term hands out the jobs of an import that came last, and none of another one that is there.
func (l *ledTerm) wantOnly(t *testing.T, q *Queue, last string) {
	t.Helper()
	imported(t, q, last, 20)
	l.Resync()
	for range 20 {
		d := l.next(t)
		if d.Import() != last || d.Night() {
			t.Fatalf("got a job of %s, of a night %t, want %s", d.Import(), d.Night(), last)
		}
		d.Finish(resultOf(t, d, 0))
	}
}

// A job of a night is in flight for longer than the fence waits. What it calls for would undo the next night, so that one
// begins after it. Another import does not wait.
func TestANightWaitsForWhatIsInFlightOfTheOneBefore(t *testing.T) {
	q := leaderQueue(t)
	s := queuedNight(t, q, NewSync("contacts", testTarget), "i1", 40)
	l := lead(t, q, TermConfig{Term: 1, Target: testTarget})
	a, b := l.next(t), l.next(t)
	s = nextNight(t, q, s, "i2") // it is cut off before it hands out a job
	nextNight(t, q, s, "i3")
	l.Resync()
	wait(t, "the leader to see that the first night is over", func() bool {
		l.Term.mu.Lock()
		defer l.Term.mu.Unlock()
		return l.byID["i1"] == nil
	})
	l.wantOnly(t, q, "other")
	a.Finish(resultOf(t, a, 0)) // nobody counts it
	l.wantOnly(t, q, "another")
	b.Requeue(0, true)
	for range 3 {
		d := l.next(t)
		if d.Import() != "i3" || !d.Night() {
			t.Errorf("got a job of %s, of a night %t, want i3", d.Import(), d.Night())
		}
		d.Finish(resultOf(t, d, 0))
	}
	wait(t, "the third night", func() bool { return record(t, q, "i3").State == Complete })
	if done, failed := outcomes(t, q, "i1"); done+failed != 0 {
		t.Errorf("got %d results of the first night, want none", done+failed)
	}
}

// The data of a night is damaged, so that it cannot become complete. That does not keep the next one waiting.
func TestANightFollowsADamagedOne(t *testing.T) {
	q := leaderQueue(t)
	s := queuedNight(t, q, NewSync("contacts", testTarget), "i1", 5)
	l := lead(t, q, TermConfig{Term: 1, Target: testTarget})
	held := l.next(t)
	l.work(t, 4, nil)
	wait(t, "a result is written", func() bool {
		done, _ := outcomes(t, q, "i1")
		return done > 0
	})
	m, err := q.conn.NextMsg(t.Context(), q.resultsStream(), 1, q.resultSubject("i1", string(job.Done)))
	if err == nil {
		err = q.results.DeleteMsg(t.Context(), m.Sequence)
	}
	if err != nil {
		t.Fatal(err)
	}
	held.Finish(resultOf(t, held, 0))
	wait(t, "the damage is found", func() bool { return l.Snapshot().Damaged["i1"] != nil })
	nextNight(t, q, s, "i2")
	l.Resync()
	if d := l.next(t); d.Import() != "i2" {
		t.Errorf("got a job of %s, want i2", d.Import())
	}
}

// The leader before was lost: calls that it made for the night before can still take effect. The first night has none before
// it.
func TestANightWaitsForCallsOfAnEarlierLeader(t *testing.T) {
	q := leaderQueue(t)
	s := queuedNight(t, q, NewSync("contacts", testTarget), "i1", 3)
	l := lead(t, q, TermConfig{Term: 1, Late: time.Hour})
	if d := l.next(t); d.Import() != "i1" {
		t.Errorf("got a job of %s, want i1", d.Import())
	}
	l.kill()
	nextNight(t, q, s, "i2")
	l = lead(t, q, TermConfig{Term: 2, Late: time.Hour})
	l.wantOnly(t, q, "other")
	l.complete(t, 1)
	l.kill()
	l = lead(t, q, TermConfig{Term: 3, Late: time.Second})
	for range 3 {
		if d := l.next(t); d.Import() != "i2" || time.Since(l.began) < time.Second {
			t.Errorf("got a job of %s after %v", d.Import(), time.Since(l.began))
		}
	}
	l.kill()
	l = lead(t, q, TermConfig{Term: 4, Late: time.Hour})
	if d := l.next(t); d.Import() != "i2" { // it had begun: all calls of the night before had taken effect
		t.Errorf("got a job of %s, want i2", d.Import())
	}
}

// A night was moved to, and never begun. The next one fences it, and the process that wakes up later sends nothing, even
// when the record that fenced it was deleted long ago.
func TestFenceNight(t *testing.T) {
	q := openQueue(t)
	s := put(t, q, NewSync("contacts", testTarget), func(s *Sync) {
		s.Night, s.Generation, s.Pending = 1, 1, &Night{Number: 1, Import: "i1", Digest: "d", Rows: 7}
	})
	i, err := q.FenceNight(t.Context(), s, time.Hour)
	if err != nil || i.State != Cancelled || !i.Superseded || i.NextNight != 2 || i.Night != 1 || i.Rows != 7 {
		t.Fatalf("got %+v, %v", i, err)
	}
	late := nightImport(s)
	if i, existed, err := q.Begin(t.Context(), late); err != nil || !existed || i.State != Cancelled {
		t.Errorf("late: got %+v, existed %t, %v", i, existed, err)
	}
	if _, err := q.Enqueue(t.Context(), "i1", testJobs("i1", 3), nil); !errors.Is(err, ErrCancelled) {
		t.Errorf("late: got %v, want ErrCancelled", err)
	}
	if done, failed := outcomes(t, q, "i1"); done+failed != 0 {
		t.Errorf("got %d results, want none", done+failed)
	}
	if err := q.Delete(t.Context(), "i1"); err == nil {
		t.Error("the pending night was deleted")
	}
	next := night(t, q, s, "i2")
	if err := q.Delete(t.Context(), "i1"); err != nil {
		t.Fatal(err)
	}
	var newer *NewerNightError
	if _, _, err := q.Begin(t.Context(), late); !errors.As(err, &newer) || newer.Newer != 2 {
		t.Errorf("very late: got %v, want a NewerNightError", err)
	}
	if _, err := q.Enqueue(t.Context(), "i1", testJobs("i1", 3), nil); !errors.Is(err, ErrCancelled) {
		t.Errorf("very late: got %v, want ErrCancelled", err)
	}
	wantJobs(t, q, "i1", 0)
	if err := q.Delete(t.Context(), "i1"); err != nil {
		t.Fatal(err)
	}
	if _, err := q.FenceNight(t.Context(), s, 0); !errors.Is(err, ErrSyncChanged) {
		t.Errorf("late: got %v, want ErrSyncChanged", err)
	}
	if i, existed, err := q.Begin(t.Context(), nightImport(next)); err != nil || !existed || i.State != Enqueueing {
		t.Errorf("the pending one: got %+v, existed %t, %v", i, existed, err)
	}
	if _, _, err := q.Begin(t.Context(), Import{ID: "x", Digest: "d", Sync: "none", Night: 1, Target: testTarget}); !errors.Is(err, ErrNoSync) {
		t.Errorf("got %v, want ErrNoSync", err)
	}
}

// The leader notes in the record of the sync that a night is complete; if it died before, the next night does.
func TestNoteComplete(t *testing.T) {
	q := leaderQueue(t)
	s := queuedNight(t, q, NewSync("contacts", testTarget), "i1", 5)
	l := lead(t, q, TermConfig{Term: 1, Target: testTarget})
	l.work(t, 5, func(i int, _ *Delivery) int { return i % 2 })
	l.complete(t, 1)
	noted := func() *Night {
		t.Helper()
		s, err := q.Sync(t.Context(), "contacts", testTarget)
		if err != nil {
			t.Fatal(err)
		}
		return s.Complete
	}
	i := record(t, q, "i1")
	if n := noted(); n == nil || n.Number != 1 || n.Import != "i1" || n.Rows != 7 || !n.Completed.Equal(i.Completed) {
		t.Fatalf("got %+v, want night 1 at %v", n, i.Completed)
	}
	i.Completed = i.Completed.Add(time.Hour) // as after a retry
	if err := q.NoteComplete(t.Context(), i); err != nil || noted().Completed.Equal(i.Completed) {
		t.Errorf("got %v, %v: a second time counts for nothing", noted(), err)
	}
	if c := i.Counts.Conversations; noted().Done != c.Done || c.Failed == 0 || noted().Failed != c.Failed {
		t.Errorf("got %+v, want the counts of the import: %+v", noted(), i.Counts)
	}
	i.Counts.Conversations.Done, i.Counts.Conversations.Failed = 9, 1
	if err := q.NoteComplete(t.Context(), i); err != nil || noted().Done != 9 || noted().Failed != 1 {
		t.Errorf("got %+v, %v, want the counts of the retry", noted(), err)
	}
	if _, err := q.FenceNight(t.Context(), s, 0); err != nil {
		t.Fatal(err)
	}
	s = night(t, q, s, "i2") // with what was read before the leader's note
	completeNight(t, q, "i2", 1)
	if n := noted(); n.Number != 1 {
		t.Fatalf("got %+v, want nobody to have noted night 2", n)
	}
	if err := q.NoteComplete(t.Context(), record(t, q, "i2")); err != nil || noted().Number != 2 {
		t.Errorf("got %+v, %v, want night 2", noted(), err)
	}
	night(t, q, s, "i3")
	if err := q.NoteComplete(t.Context(), record(t, q, "i2")); err != nil || noted().Number != 2 {
		t.Errorf("got %+v, %v, want night 2", noted(), err)
	}
	if _, err := q.Supersede(t.Context(), "i3", 4, 0); err != nil {
		t.Fatal(err)
	}
	if err := q.NoteComplete(t.Context(), record(t, q, "i3")); err != nil || noted().Number != 2 {
		t.Errorf("got %+v, %v, want night 2: night 3 was cut off", noted(), err)
	}
}

// An import without jobs is complete when it is enqueued, whether somebody leads or not, and wherever that is cut off.
func TestNoJobs(t *testing.T) {
	q := leaderQueue(t)
	none := func(func(job.Job) bool) {}
	check := func(id string) {
		t.Helper()
		i := record(t, q, id)
		if i.State != Complete || i.Completed.IsZero() || i.Enqueued.IsZero() || i.Jobs != 0 {
			t.Errorf("got %+v, want it complete", i)
		}
		if open, err := q.OpenImports(t.Context()); err != nil || len(open) > 0 {
			t.Errorf("open imports: got %q, %v", open, err)
		}
		if p, err := q.Progress(t.Context(), id); err != nil || p.Counts.Results != 0 {
			t.Errorf("progress: got %+v, %v", p, err)
		}
		if done, failed := outcomes(t, q, id); done+failed > 0 {
			t.Errorf("got %d results", done+failed)
		}
	}
	s := NewSync("contacts", testTarget)
	for n, leading := range []bool{false, true} {
		id := fmt.Sprint("i", n)
		s = night(t, q, s, id)
		if leading {
			l := lead(t, q, TermConfig{Term: 1})
			defer l.kill()
		}
		for range 2 {
			if stats, err := q.Enqueue(t.Context(), id, none, nil); err != nil || stats != (EnqueueStats{}) {
				t.Fatalf("got %+v, %v", stats, err)
			}
			check(id)
		}
		if got, err := q.Sync(t.Context(), "contacts", testTarget); err != nil || got.Complete == nil || got.Complete.Import != id {
			t.Errorf("got %+v, %v, want night %d noted", got, err, n+1)
		}
		if _, err := q.FenceNight(t.Context(), s, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	// The checkpoint is there, and the record does not say so.
	rec, _, err := q.Begin(t.Context(), Import{ID: "cut", Digest: "d"})
	if err != nil {
		t.Fatal(err)
	}
	w := &writer{q: q, rec: rec}
	if err := w.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.putAll(t.Context(), none); err != nil {
		t.Fatal(err)
	}
	if err := q.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("cut")
}

// A leader whose calls go elsewhere hands out no job of a sync's night, and says so. Other imports go on.
func TestTermOfAnotherTarget(t *testing.T) {
	var log bytes.Buffer
	q := leaderQueue(t)
	s := night(t, q, NewSync("contacts", "simulated"), "theirs")
	if _, err := q.Enqueue(t.Context(), "theirs", numberedJobs("theirs", 10, 2), nil); err != nil {
		t.Fatal(err)
	}
	imported(t, q, "mine", 10)
	l := lead(t, q, TermConfig{Term: 1, Target: testTarget, Log: slog.New(slog.NewTextHandler(&log, nil))})
	for range 10 {
		d := l.next(t)
		if d.Import() != "mine" {
			t.Fatalf("got a job of %s", d.Import())
		}
		d.Finish(resultOf(t, d, 0))
	}
	l.complete(t, 1)
	wait(t, "nothing to be left to do", l.Idle)
	l.stop(t)
	if n := strings.Count(log.String(), "belongs to another API"); n != 1 || !strings.Contains(log.String(), "target=simulated") {
		t.Errorf("got %d warnings, want 1:\n%s", n, &log)
	}
	l = lead(t, q, TermConfig{Term: 2, Target: s.Target})
	l.work(t, 10, func(int, *Delivery) int { return 0 })
	l.complete(t, 1)
}

// The nights below are what a program does with this package, made small: a night wants the first n users, and the snapshot
// is the list of those that a result says are done.

// nightsLife runs nights until the one that wants all is complete. The inputs grow; of each night one job fails at first.
func nightsLife(ctx context.Context, q *Queue, extra int) error {
	for {
		s, err := q.Sync(ctx, "contacts", testTarget)
		if err != nil && !errors.Is(err, ErrNoSync) {
			return err
		}
		n := 1
		if s.Complete != nil {
			n = s.Complete.Number + 1
		}
		if n > 4 && s.Complete.Rows >= 40 {
			return nil
		}
		if err := oneNight(ctx, q, min(10*n, 40)+extra); err != nil {
			return err
		}
	}
}

func oneNight(ctx context.Context, q *Queue, wanted int) (err error) {
	lock, err := q.LockSync(ctx, "contacts", "test", func(*LockedError) {})
	if err != nil {
		return err
	}
	defer func() {
		if e := lock.Release(ctx); err == nil {
			err = e
		}
	}()
	s, err := q.Sync(ctx, "contacts", testTarget)
	if errors.Is(err, ErrNoSync) {
		s, err = NewSync("contacts", testTarget), nil
	}
	if err != nil {
		return err
	}
	content := fmt.Sprint(wanted)
	known := map[string]bool{}
	if s.Object != "" {
		if err := readKnown(ctx, q, s.Object, known); err != nil {
			return err
		}
	}
	var before Import
	if s.Pending != nil {
		before, err = q.Import(ctx, s.Pending.Import)
		if s.Pending.Content == content && (errors.Is(err, ErrNoImport) || err == nil && before.live()) {
			return finishNight(ctx, q, s, known)
		}
		if before, err = q.FenceNight(ctx, s, 0); err != nil {
			return err
		}
		if err := q.NoteComplete(ctx, before); err != nil {
			return err
		}
		for r, err := range q.Results(ctx, before.ID) {
			if err != nil {
				return err
			}
			known[r.FromAccount] = known[r.FromAccount] || r.Outcome == job.Done
		}
	}
	object, size, err := q.PutSnapshot(ctx, s, func(w io.Writer) error {
		fmt.Fprintf(w, "%d users\n", len(known))
		for _, user := range slices.Sorted(maps.Keys(known)) {
			if known[user] {
				fmt.Fprintln(w, user)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	s, err = q.UpdateSync(ctx, s, func(s *Sync) {
		s.Generation++
		s.Night++
		s.Object, s.Previous, s.Size = object, s.Object, size
		s.Pending = &Night{
			Number: s.Night, Import: fmt.Sprintf("%s-on-%d", content, s.Generation), Digest: content, Content: content,
			Base: s.Generation, Rows: int64(wanted),
		}
	})
	if err != nil {
		return err
	}
	if err := q.DeleteSnapshots(ctx, s); err != nil {
		return err
	}
	return finishNight(ctx, q, s, known)
}

// finishNight begins the pending night, and leads until it is complete.
func finishNight(ctx context.Context, q *Queue, s Sync, known map[string]bool) error {
	rec := nightImport(s)
	if _, _, err := q.Begin(ctx, rec); err != nil {
		return err
	}
	id := rec.ID
	jobs := func(yield func(job.Job) bool) {
		for n := range int(s.Pending.Rows) {
			if j := testJob(id, n); !known[j.FromAccount] && !yield(j) {
				return
			}
		}
	}
	if _, err := q.Enqueue(ctx, id, iter.Seq[job.Job](jobs), nil); err != nil {
		return err
	}
	last, _, err := q.lastMarker(ctx)
	if err != nil {
		return err
	}
	complete := make(chan struct{})
	term, err := q.Lead(ctx, TermConfig{
		Term: last.Term + 1, Target: testTarget, OnComplete: func(Import) { close(complete) },
	})
	if err != nil {
		return err
	}
	if i, err := q.Import(ctx, id); err != nil || i.State.Over() {
		return errors.Join(err, term.Close(ctx))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var running sync.WaitGroup
	running.Go(func() { _ = term.Run(ctx) }) // ends with ctx
	defer running.Wait()
	working, stop := context.WithCancel(ctx)
	defer stop()
	running.Go(func() {
		for {
			d, err := term.Next(working)
			if err != nil {
				return
			}
			j, err := d.Job()
			if err != nil {
				return
			}
			r := job.Result{FromAccount: j.FromAccount, GroupName: j.GroupName, Calls: 1}
			for _, c := range j.Conversations {
				code := ""
				if j.FromAccount == "user-3" && s.Night == 1 {
					code = "51007"
				}
				r.Conversations = append(r.Conversations, job.ConversationResult{Conversation: c, Code: code})
			}
			r.SetOutcome()
			d.Finish(r)
		}
	})
	<-complete
	stop()
	cancel()
	running.Wait()
	return term.Close(context.WithoutCancel(ctx))
}

func readKnown(ctx context.Context, q *Queue, object string, known map[string]bool) error {
	r, err := q.OpenSnapshot(ctx, object)
	if err != nil {
		return err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		if user := strings.TrimSuffix(line, "\n"); strings.HasPrefix(user, "user-") {
			known[user] = true
		}
	}
	return nil
}

// checkNights makes sure that over all nights each user was done exactly once, and that nothing is left over.
func checkNights(t *testing.T, q *Queue, users int, after string) {
	t.Helper()
	done := map[string]int{}
	imports, err := q.Imports(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range imports {
		for r, err := range q.Results(t.Context(), i.ID) {
			if err != nil {
				t.Fatalf("after %s: %v", after, err)
			}
			if r.Outcome == job.Done {
				done[r.FromAccount]++
			}
		}
		if !i.State.Over() {
			t.Errorf("after %s: import %s is %s", after, i.ID, i.State)
		}
	}
	for n := range users {
		if user := fmt.Sprint("user-", n); done[user] != 1 {
			t.Errorf("after %s: %s was done %d times", after, user, done[user])
		}
	}
	if len(done) != users {
		t.Errorf("after %s: %d users were done, want %d", after, len(done), users)
	}
	s, err := q.Sync(t.Context(), "contacts", testTarget)
	if err != nil {
		t.Fatal(err)
	}
	if err := q.DeleteSnapshots(t.Context(), s); err != nil { // as the next night does
		t.Fatal(err)
	}
	want := []string{s.Previous, s.Object}
	if got := objects(t, q); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		t.Errorf("after %s: got the snapshots %q, want %q", after, got, want)
	}
}

func TestNights(t *testing.T) {
	q := leaderQueue(t)
	if err := nightsLife(t.Context(), q, 0); err != nil {
		t.Fatal(err)
	}
	checkNights(t, q, 40, "four nights")
}

// TestNightsKilled kills a process, with the server in it or not, at each failpoint of the nights of a sync, and each time
// that it comes there. The next process goes on, with the same input or with another one.
func TestNightsKilled(t *testing.T) {
	if !broker.Failpoints {
		t.Skip("needs -tags failpoint")
	}
	var names []string
	for _, point := range []string{"sync", "snapshot-chunk", "snapshot", "snapshot-delete", "lock", "begin", "enqueue",
		"record-complete", "group"} {
		for _, when := range []string{"before", "inside", "after"} {
			names = append(names, point+"-"+when)
		}
	}
	names = append(names, "note-before", "note-after", "fence-before", "fence-after")
	const most = 3 // nights repeat themselves
	kills := 0
	for _, name := range names {
		for n := 1; n <= most; n++ {
			after := fmt.Sprintf("%s:%d", name, n)
			dir := t.TempDir()
			mode := "nights"
			if strings.HasPrefix(name, "fence") {
				// A night that was moved to and not begun comes first, and one with another input.
				mode = "nights-more"
				killedAt(t, dir, "nights", "begin-before:1")
			}
			var server *broker.Conn
			if n%2 == 0 {
				server = openConn(t, dir)
			}
			if !killedAt(t, dir, mode, after) {
				if n == 1 && !strings.HasSuffix(name, "-inside") {
					t.Errorf("%s: it was never there", name)
				}
				break
			}
			kills++
			if server == nil {
				server = openConn(t, dir)
			}
			q, err := Open(t.Context(), server)
			if err == nil {
				fastLocks(q)
				err = q.Sweep(t.Context())
			}
			extra := n % 2
			if err == nil {
				err = nightsLife(t.Context(), q, extra)
			}
			if err != nil {
				t.Fatalf("%s: %v", after, err)
			}
			users := 40 + extra
			if mode == "nights-more" {
				users = 41
			}
			if s, err := q.Sync(t.Context(), "contacts", testTarget); err == nil && s.Complete.Rows < 41 {
				users = 40
			}
			checkNights(t, q, users, after)
			server.Close()
		}
	}
	t.Logf("%d kills", kills)
}

// killedAt runs a process that is killed at a failpoint; false if it came to its end.
func killedAt(t *testing.T, dir, mode, failpoint string) bool {
	t.Helper()
	cmd, lines := crashProcess(t, dir, crashModeEnv+"="+mode, "GROUPFERRY_FAILPOINT="+failpoint,
		"GROUPFERRY_SYNC_LOCK_STALE=1s")
	for lines.Scan() {
	}
	err := cmd.Wait()
	if err != nil && cmd.ProcessState.Exited() {
		t.Fatalf("%s: %v", failpoint, err)
	}
	return err != nil
}
