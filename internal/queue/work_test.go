package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"groupferry/internal/job"
)

// fetch fetches until something comes, and fails the test if nothing does for long.
func fetch(t testing.TB, s *Source, limit int) []*Delivery {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
		ds, err := s.Fetch(t.Context(), limit)
		if err != nil {
			t.Fatal(err)
		}
		if len(ds) > 0 {
			return ds
		}
	}
	t.Fatal("no job came")
	return nil
}

func TestSourceTakesTurns(t *testing.T) {
	q := open(t, Config{})
	for id, n := range map[string]int{"large": 1500, "small": 3, "tiny": 1} {
		enqueued(t, q, id, n)
	}
	s := q.Source()
	got := map[string]int{}
	for got["small"] < 3 || got["tiny"] < 1 {
		for _, d := range fetch(t, s, 30) {
			got[d.Import()]++
		}
	}
	// One fetch does it unless the machine is very busy; first come, first served would need fifty.
	if got["large"] > 150 {
		t.Errorf("got %d large ones before the small ones were through", got["large"])
	}
	for range 3 { // what the others leave is for the large one
		for _, d := range fetch(t, s, 30) {
			if d.Import() != "large" {
				t.Errorf("got one more of %s", d.Import())
			}
		}
	}
}

func TestSourceTakesTurnsOneByOne(t *testing.T) {
	q := open(t, Config{})
	for _, id := range []string{"a", "b", "c", "d"} {
		enqueued(t, q, id, map[bool]int{true: 3, false: 100}[id == "d"])
	}
	s := q.Source("d", "a", "b") // c is none of ours
	got := map[string]int{}
	for range 9 {
		got[fetch(t, s, 1)[0].Import()]++
	}
	if got["a"] != 3 || got["b"] != 3 || got["d"] != 3 {
		t.Errorf("got %v, want 3 of each of a, b and d", got)
	}
}

func TestSourceNoticesNewImports(t *testing.T) {
	q := open(t, Config{})
	s := q.Source()
	if ds, err := s.Fetch(t.Context(), 1); len(ds) != 0 || err != nil {
		t.Errorf("nothing there: got %d jobs, %v; want none, nil", len(ds), err)
	}
	enqueued(t, q, "a", 1)
	if d := fetch(t, s, 1)[0]; d.Import() != "a" {
		t.Errorf("got a job of %s, want one of a", d.Import())
	}
	enqueued(t, q, "b", 1)
	if d := fetch(t, s, 1)[0]; d.Import() != "b" {
		t.Errorf("got a job of %s, want one of b", d.Import())
	}
}

func TestSourceForgetsCompleteImports(t *testing.T) {
	q := open(t, Config{})
	enqueued(t, q, "a", 1)
	enqueued(t, q, "b", 2)
	s := q.Source()
	for _, d := range fetch(t, s, 10) {
		if d.Import() == "a" {
			put(t, q, doneWith(testJob("a", 0, 2)), 0)
			if err := d.Ack(t.Context()); err != nil {
				t.Fatal(err)
			}
		} else if err := d.Nak(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.Complete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	// The list that the source has still names a.
	for left := 2; left > 0; {
		for _, d := range fetch(t, s, left) {
			if d.Import() != "b" {
				t.Fatalf("got a job of %s", d.Import())
			}
			left--
		}
	}
}

func TestDelivery(t *testing.T) {
	q := open(t, Config{})
	enqueued(t, q, "i", 2)
	s := q.Source("i")
	ds := fetch(t, s, 1)
	d := ds[0]
	if p, h, err := q.Pending(t.Context(), "i"); p != 1 || h != 1 || err != nil {
		t.Errorf("got pending %d, in hand %d, %v; want 1, 1, nil", p, h, err)
	}
	want := testJob("i", 0, 2)
	j, err := d.Job()
	if err != nil {
		t.Fatal(err)
	}
	if j.ID != want.ID || string(d.Data()) != string(want.AppendJSON(nil)) || d.Import() != "i" {
		t.Errorf("got job %s of import %s, want %s of i", j.ID, d.Import(), want.ID)
	}
	if err := d.Working(t.Context()); err != nil {
		t.Error(err)
	}

	const delay = 300 * time.Millisecond
	start := time.Now()
	if err := d.Nak(t.Context(), delay); err != nil {
		t.Fatal(err)
	}
	other := fetch(t, s, 1)[0]
	if other.Sequence() == d.Sequence() {
		t.Fatal("the job that was put back came before the other one")
	}
	again := fetch(t, s, 1)[0]
	if again.Sequence() != d.Sequence() {
		t.Errorf("got job %d, want %d again", again.Sequence(), d.Sequence())
	}
	if waited := time.Since(start); waited < delay {
		t.Errorf("it came after %s, want not before %s", waited, delay)
	}
	for range 2 {
		if err := again.Ack(t.Context()); err != nil {
			t.Errorf("ack: %v", err)
		}
	}
	if err := other.Ack(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitIdle(t, q, "i")
}

// awaitIdle waits until the server has heard the acks of all jobs of an import.
func awaitIdle(t *testing.T, q *Queue, id string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; {
		pending, inHand, err := q.Pending(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if pending+inHand == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("got %d pending, %d in hand, want none", pending, inHand)
		}
	}
}

func TestFetchEndsWithItsContext(t *testing.T) {
	q := open(t, Config{})
	enqueued(t, q, "i", 5)
	s := q.Source("i")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if ds, err := s.Fetch(ctx, 5); len(ds) != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("got %d jobs, %v; want none, %v", len(ds), err, context.Canceled)
	}
	// Jobs that came all the same are handed back, and there at once for the next one.
	got, _, err := s.pull([]string{"i"}, 5, longWait)
	if len(got) != 5 || err != nil {
		t.Fatalf("got %d jobs, %v; want 5", len(got), err)
	}
	s.handBack(got)
	for left := 5; left > 0; {
		left -= len(fetch(t, q.Source(), left))
	}
}

// The answer to a pull that was given up is on the connection when a process that was stopped goes on. It has to come
// within a second, which a slow machine may take; so it gets three chances.
func TestLateAnswer(t *testing.T) {
	t.Parallel() // it waits most of the time
	srv := startServer(t, server.Options{JetStream: true})
	held := &heldAnswers{}
	q := open(t, Config{URL: held.listen(t, srv.Addr().String())})
	for try := 1; ; try++ {
		id := fmt.Sprint("i", try)
		enqueued(t, open(t, Config{URL: srv.ClientURL()}), id, 7)
		s := q.Source(id)
		if err := s.prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
		held.hold.Lock()
		time.AfterFunc(opTimeout+lateWait/4, held.hold.Unlock)
		got, _, err := s.pull([]string{id}, 5, shortWait)
		if len(got) == 0 && try < 3 {
			t.Logf("try %d: got no job, %v", try, err)
			continue
		}
		if len(got) != 5 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %d jobs, %v; want 5, %v", len(got), err, context.DeadlineExceeded)
		}
		if got := fetch(t, s, 5); len(got) != 2 {
			t.Errorf("got %d more jobs, want 2", len(got))
		}
		return
	}
}

// heldAnswers passes on to a server what is said to it, and its answers while nobody has the lock.
type heldAnswers struct {
	hold    sync.Mutex
	running sync.WaitGroup
}

func (h *heldAnswers) listen(t *testing.T, to string) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.running.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				near.Close()
				continue
			}
			h.running.Go(func() {
				defer far.Close()
				io.Copy(far, near)
			})
			h.running.Go(func() {
				defer near.Close()
				for b := make([]byte, 4096); ; {
					n, err := far.Read(b)
					h.hold.Lock()
					_, werr := near.Write(b[:n])
					h.hold.Unlock()
					if err != nil || werr != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		h.running.Wait()
	})
	return "nats://" + l.Addr().String()
}

func TestFetchOverATakeOver(t *testing.T) {
	dir := t.TempDir()
	owner := open(t, Config{DataDir: dir})
	guest := open(t, Config{DataDir: dir})
	const n = 60
	enqueued(t, owner, "i", n)
	s := guest.Source()
	seen := map[uint64]bool{}
	for len(seen) < n {
		ds, err := s.Fetch(t.Context(), 7)
		if err != nil && !errors.Is(err, ErrUnreachable) {
			t.Fatal(err)
		}
		for _, d := range ds {
			// An ack that got lost with the connection is tried again, as a worker would.
			for err := d.Ack(t.Context()); err != nil; err = d.Ack(t.Context()) {
				if !errors.Is(err, ErrUnreachable) {
					t.Fatal(err)
				}
			}
			seen[d.Sequence()] = true
		}
		if len(seen) > n/2 {
			if err := owner.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !guest.Embedded() {
		t.Error("the guest does not run the server")
	}
}

func TestFetchFromAClosedQueue(t *testing.T) {
	q := open(t, Config{})
	enqueued(t, q, "i", 1)
	s := q.Source()
	d := fetch(t, s, 1)[0]
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Fetch(t.Context(), 1); !errors.Is(err, ErrUnreachable) {
		t.Errorf("fetch: got %v, want %v", err, ErrUnreachable)
	}
	if err := d.Ack(t.Context()); !errors.Is(err, ErrUnreachable) {
		t.Errorf("ack: got %v, want %v", err, ErrUnreachable)
	}
}

func TestJobThatCannotBeRead(t *testing.T) {
	q := open(t, Config{})
	enqueued(t, q, "i", 0)
	if _, err := q.js.Publish(t.Context(), q.jobsSubject("i"), []byte(`{"v":99}`)); err != nil {
		t.Fatal(err)
	}
	d := fetch(t, q.Source("i"), 1)[0]
	if _, err := d.Job(); !errors.Is(err, job.ErrVersion) {
		t.Errorf("got %v, want %v", err, job.ErrVersion)
	}
	if d.Import() != "i" || string(d.Data()) != `{"v":99}` {
		t.Errorf("got import %s, data %s", d.Import(), d.Data())
	}
}

func TestPendingOfNoImport(t *testing.T) {
	q := open(t, Config{})
	if _, _, err := q.Pending(t.Context(), "none"); !errors.Is(err, ErrNoImport) {
		t.Errorf("got %v, want %v", err, ErrNoImport)
	}
	begin(t, q, "begun")
	if p, h, err := q.Pending(t.Context(), "begun"); p != 0 || h != 0 || err != nil {
		t.Errorf("got %d, %d, %v; want 0, 0, nil", p, h, err)
	}
}
