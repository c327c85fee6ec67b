package main

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"groupferry/internal/chatsim"
)

// codes waits for processes and gives their exit codes, sorted.
func codes(processes ...*process) []int {
	var got []int
	for _, p := range processes {
		got = append(got, p.wait())
	}
	slices.Sort(got)
	return got
}

// Imports side by side on one data directory: each ends well, or with a sentence that says what is wrong.
func TestSideBySide(t *testing.T) {
	t.Parallel()
	sizes := make([]int, 1500) // more than one piece
	for i := range sizes {
		sizes[i] = 1 + i%2
	}
	rows := makeRows(41, sizes...)
	file := writeRows(t, rows)
	otherRows := makeRows(42, 3, 2, 1)
	other := writeRows(t, otherRows)

	t.Run("the same file twice", func(t *testing.T) {
		t.Parallel()
		s := newShell(t, "")
		one, two := s.spawn("import", file), s.spawn("import", file)
		if got := codes(one, two); !slices.Equal(got, []int{exitDone, exitDone}) {
			t.Fatalf("got exit codes %v, want 0 and 0\n%s\n%s", got, &one.stderr, &two.stderr)
		}
		id := strings.TrimSpace(one.stdout.String())
		if id == "" || id != strings.TrimSpace(two.stdout.String()) {
			t.Errorf("got imports %q and %q, want the same", id, &two.stdout)
		}
		if got := s.onQueue(id); got != int64(len(sizes)) {
			t.Errorf("got %d jobs on the queue, want %d", got, len(sizes))
		}
	})

	t.Run("one name for two files", func(t *testing.T) {
		t.Parallel()
		s := newShell(t, "")
		one, two := s.spawn("import", "--import-id", "nightly", file), s.spawn("import", "--import-id", "nightly", other)
		if got := codes(one, two); !slices.Equal(got, []int{exitDone, exitFailed}) {
			t.Fatalf("got exit codes %v, want 0 and 1\n%s\n%s", got, &one.stderr, &two.stderr)
		}
		if said := one.stderr.String() + two.stderr.String(); !strings.Contains(said, "belongs to an import with other content") {
			t.Errorf("got %q, want it to say that the name is taken", said)
		}
		want := int64(len(sizes))
		if one.wait() != exitDone {
			want = 3
		}
		if got := s.onQueue("nightly"); got != want {
			t.Errorf("got %d jobs on the queue, want %d", got, want)
		}
	})

	t.Run("imports while a worker runs", func(t *testing.T) {
		t.Parallel()
		sim, url := startSim(t, chatsim.Config{})
		s := newShell(t, url)
		work := s.start("work", "--quiet", "--listen", "off")
		s.run(exitDone, "import", "--quiet", "--import-id", "first", file)
		s.run(exitDone, "import", "--quiet", "--import-id", "second", other)
		for _, id := range []string{"first", "second"} {
			await(t, "the end of import "+id, func() bool {
				return strings.Contains(s.run(exitDone, "status", id).stdout.String(), "): complete")
			})
		}
		work.signals <- os.Interrupt
		work.wait(exitDone)
		checkState(t, sim, stateOf(append(slices.Clone(rows), otherRows...)))
	})

	t.Run("two runs", func(t *testing.T) {
		t.Parallel()
		sim, url := startSim(t, chatsim.Config{Latency: time.Millisecond})
		s := newShell(t, url)
		one := s.spawn("run", "--import-id", "first", "--output", "json", file)
		await(t, "the first calls", func() bool { return created(sim) > 20 })
		// The same again helps, and another one takes turns with it.
		two, three := s.spawn("run", "--import-id", "first", file), s.spawn("run", "--import-id", "second", other)
		if got := codes(one, two, three); !slices.Equal(got, []int{exitDone, exitDone, exitDone}) {
			t.Fatalf("got exit codes %v, want 0 of all\n%s\n%s\n%s", got, &one.stderr, &two.stderr, &three.stderr)
		}
		checkState(t, sim, stateOf(append(slices.Clone(rows), otherRows...)))
		// One more, to find out what create does.
		if got := created(sim); got != len(sizes)+4 {
			t.Errorf("got %d create calls, want %d", got, len(sizes)+4)
		}
	})
}
