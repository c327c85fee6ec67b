package queue

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"groupferry/internal/job"
)

func TestBegin(t *testing.T) {
	q := open(t, Config{})
	ctx := t.Context()
	want := Import{ID: "i", Digest: "d", Simulated: true, Rows: 7, Files: []string{"a.csv"}, RejectsFile: "r.csv"}
	first, existed, err := q.Begin(ctx, want)
	if existed || err != nil {
		t.Fatalf("got existed %t, %v; want a new one", existed, err)
	}
	if first.State != Enqueueing || first.Created.IsZero() || first.Rows != 7 || !first.Simulated {
		t.Errorf("got %+v", first)
	}
	again, existed, err := q.Begin(ctx, Import{ID: "i", Digest: "d", Rows: 8})
	if !existed || err != nil || again.Rows != 7 || !again.Created.Equal(first.Created) {
		t.Errorf("again: got %+v, existed %t, %v; want the stored one", again, existed, err)
	}
	_, _, err = q.Begin(ctx, Import{ID: "i", Digest: "e"})
	if conflict, ok := errors.AsType[*ConflictError](err); !ok || conflict.ID != "i" {
		t.Errorf("other content: got %v, want a conflict over i", err)
	}
	if _, _, err := q.Begin(ctx, Import{ID: "a.b"}); err == nil {
		t.Error("ID with a dot: got no error")
	}
	for _, id := range []string{"none", "a.b", "", "*", ">"} {
		if _, err := q.Import(ctx, id); !errors.Is(err, ErrNoImport) {
			t.Errorf("import %q: got %v, want %v", id, err, ErrNoImport)
		}
	}
}

func TestImportsNewestFirst(t *testing.T) {
	q := open(t, Config{})
	if got, err := q.Imports(t.Context()); len(got) != 0 || err != nil {
		t.Errorf("got %v, %v; want none", got, err)
	}
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i, id := range []string{"b", "A", "a"} {
		if _, _, err := q.Begin(t.Context(), Import{ID: id, Created: start.AddDate(0, 0, i)}); err != nil {
			t.Fatal(err)
		}
	}
	all, err := q.Imports(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, i := range all {
		got = append(got, i.ID)
	}
	if want := []string{"a", "A", "b"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestUpdateLosesNothing(t *testing.T) {
	q := open(t, Config{})
	begin(t, q, "i")
	const n = 8
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			if _, err := q.Update(t.Context(), "i", func(i *Import) { i.Rows++ }); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got, err := q.Import(t.Context(), "i"); got.Rows != n || err != nil {
		t.Errorf("got %d, %v; want %d", got.Rows, err, n)
	}
	if _, err := q.Update(t.Context(), "none", func(*Import) {}); !errors.Is(err, ErrNoImport) {
		t.Errorf("got %v, want %v", err, ErrNoImport)
	}
}

func TestRecordOfANewerBinary(t *testing.T) {
	q := open(t, Config{})
	for key, value := range map[string]string{importKey("i"): `{"v":2,"rows":"many"}`, haltKey: `{"v":2}`} {
		if _, err := q.control.Put(t.Context(), key, []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	_, importErr := q.Import(t.Context(), "i")
	_, importsErr := q.Imports(t.Context())
	_, haltErr := q.Halted(t.Context())
	watchErr := q.WatchHalt(t.Context(), func(*Halt) { t.Error("called") })
	for what, err := range map[string]error{
		"import": importErr, "imports": importsErr, "halted": haltErr, "watch": watchErr,
	} {
		if !errors.Is(err, job.ErrVersion) {
			t.Errorf("%s: got %v, want %v", what, err, job.ErrVersion)
		}
	}
}

func TestHalt(t *testing.T) {
	q := open(t, Config{})
	ctx := t.Context()
	check := func(what string, want *Halt) {
		t.Helper()
		got, err := q.Halted(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if (got == nil) != (want == nil) || got != nil && got.Reason != want.Reason {
			t.Errorf("%s: got %+v, want %+v", what, got, want)
		}
	}
	check("at first", nil)
	if was, err := q.ClearHalt(ctx); was != nil || err != nil {
		t.Errorf("clear nothing: got %+v, %v", was, err)
	}
	first := Halt{State: Halted, Code: "70003", Reason: "first", Mend: "the key", Command: "resume", By: "w"}
	for range 2 {
		if err := q.SetHalt(ctx, first); err != nil {
			t.Fatal(err)
		}
		if err := q.SetHalt(ctx, Halt{State: Paused, Reason: "second"}); err != nil {
			t.Fatal(err)
		}
		check("after two", &first)
		was, err := q.ClearHalt(ctx)
		if err != nil || was == nil {
			t.Fatalf("clear: got %+v, %v", was, err)
		}
		if was.Since.IsZero() {
			t.Error("since is not set")
		}
		was.Since = first.Since
		if *was != first {
			t.Errorf("cleared %+v, want %+v", *was, first)
		}
		check("after clear", nil)
	}
	if err := q.SetHalt(ctx, Halt{State: "tired"}); err == nil {
		t.Error("unknown state: got no error")
	}
}

// TestWatchHalt watches from a queue that takes the server over in between.
func TestWatchHalt(t *testing.T) {
	dir := t.TempDir()
	owner, guest := open(t, Config{DataDir: dir}), open(t, Config{DataDir: dir})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := owner.SetHalt(ctx, Halt{State: Paused, Reason: "one"}); err != nil {
		t.Fatal(err)
	}
	states, ended := make(chan *Halt), make(chan error, 1)
	go func() {
		ended <- guest.WatchHalt(ctx, func(h *Halt) {
			select {
			case states <- h:
			case <-ctx.Done():
			}
		})
	}()
	next := func(want string) {
		t.Helper()
		select {
		case h := <-states:
			got := ""
			if h != nil {
				got = h.Reason
			}
			if got != want {
				t.Errorf("got reason %q, want %q", got, want)
			}
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(time.Minute):
			t.Fatalf("the change to %q was not noticed", want)
		}
	}
	next("one")
	if _, err := owner.ClearHalt(ctx); err != nil {
		t.Fatal(err)
	}
	next("")
	if err := owner.Close(); err != nil {
		t.Fatal(err)
	}
	takenOver(t, guest)
	if err := guest.SetHalt(ctx, Halt{State: Halted, Reason: "two"}); err != nil {
		t.Fatal(err)
	}
	next("two")
	if _, err := guest.ClearHalt(ctx); err != nil {
		t.Fatal(err)
	}
	next("")
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("got %v, want nil", err)
	}
}
