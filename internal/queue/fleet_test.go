package queue

import (
	"errors"
	"testing"
	"time"

	"groupferry/internal/governor"
)

func TestLease(t *testing.T) {
	q := open(t, Config{})
	a, err := q.Link(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, err := q.Link(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, revision, _, err := a.Lease(t.Context()); revision != 0 || err != nil {
		t.Fatalf("got revision %d, %v; want none", revision, err)
	}
	first, err := a.PutLease(t.Context(), []byte("a"), 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, revision := range []uint64{0, first + 1} {
		if _, err := b.PutLease(t.Context(), []byte("b"), revision); !errors.Is(err, governor.ErrLeaseMoved) {
			t.Errorf("put at revision %d: got %v, want ErrLeaseMoved", revision, err)
		}
	}
	raw, revision, age, err := b.Lease(t.Context())
	if string(raw) != "a" || revision != first || err != nil || age < 0 || age > time.Minute {
		t.Errorf("got %q at %d, %v old, %v", raw, revision, age, err)
	}
	if _, err := b.PutLease(t.Context(), []byte("b"), first); err != nil {
		t.Errorf("put at the revision that is there: %v", err)
	}
	if raw, _, _, _ := a.Lease(t.Context()); string(raw) != "b" {
		t.Errorf("got %q, want b", raw)
	}
}

// TestLeaseSurvives is what the wait of a new leader rests on: who led before is known after a restart of the server.
func TestLeaseSurvives(t *testing.T) {
	dir := t.TempDir()
	q, err := Open(t.Context(), Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	l, err := q.Link(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want, err := l.PutLease(t.Context(), []byte("a"), 0)
	if err != nil {
		t.Fatal(err)
	}
	q.Close()
	q = open(t, Config{DataDir: dir})
	if l, err = q.Link(t.Context()); err != nil {
		t.Fatal(err)
	}
	if raw, revision, _, err := l.Lease(t.Context()); string(raw) != "a" || revision != want || err != nil {
		t.Errorf("got %q at %d, %v; want a at %d", raw, revision, err, want)
	}
}

func TestFleetMessages(t *testing.T) {
	q := open(t, Config{})
	l, err := q.Link(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan string, 10)
	stop, err := l.Listen("me", func(m []byte) { heard <- string(m) })
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []struct{ to, text string }{{"other", "not for me"}, {"me", "one"}, {"me", "two"}} {
		if err := l.Send(m.to, []byte(m.text)); err != nil {
			t.Fatal(err)
		}
	}
	if a, b := <-heard, <-heard; a != "one" || b != "two" {
		t.Errorf("heard %q and %q, want one and two", a, b)
	}
	stop()
}
