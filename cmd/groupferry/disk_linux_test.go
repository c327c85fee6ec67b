package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"groupferry/internal/chatsim"
)

// A disk is a small file system of its own, in which a shell has its data directory.
type disk struct {
	t   *testing.T
	dir string
}

// newDisk needs the right to mount a file system; without it the test is skipped.
func newDisk(t *testing.T, s *shell) *disk {
	t.Helper()
	d := &disk{t: t, dir: t.TempDir()}
	if err := syscall.Mount("tmpfs", d.dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Skipf("no disk of its own to fill, for nothing can be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(d.dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s.dir = filepath.Join(d.dir, "data")
	s.env["GROUPFERRY_DATA_DIR"] = s.dir
	return d
}

// fill leaves so many bytes free.
func (d *disk) fill(free int64) {
	d.t.Helper()
	var s syscall.Statfs_t
	if err := syscall.Statfs(d.dir, &s); err != nil {
		d.t.Fatal(err)
	}
	b := make([]byte, max(0, int64(s.Bavail)*s.Bsize-free))
	if err := os.WriteFile(filepath.Join(d.dir, "ballast"), b, 0o600); err != nil {
		d.t.Fatal(err)
	}
}

func (d *disk) empty() {
	d.t.Helper()
	if err := os.Remove(filepath.Join(d.dir, "ballast")); err != nil {
		d.t.Fatal(err)
	}
}

// protect lets nobody write, or everybody again.
func (d *disk) protect(on bool) {
	d.t.Helper()
	flags := uintptr(syscall.MS_REMOUNT)
	if on {
		flags |= syscall.MS_RDONLY
	}
	if err := syscall.Mount("tmpfs", d.dir, "tmpfs", flags, "size=64m"); err != nil {
		d.t.Fatal(err)
	}
}

// wantBroken checks that a command ended because nothing could be written, and how it said so.
func (s *shell) wantBroken(why error, args ...string) {
	s.t.Helper()
	p := s.spawn(args...)
	if code := p.wait(); code != exitFailed {
		s.t.Fatalf("%q: got exit code %d, want %d\n%s\n%s", args, code, exitFailed, &p.stdout, &p.stderr)
	}
	for _, want := range []string{
		"groupferry: error: the embedded server in " + s.dir + " cannot write its data: " + why.Error() + "\n",
		"groupferry: hint: make room on its disk, or see that it can be written to\n",
		"groupferry: to continue, once that is fixed: groupferry " + args[0],
	} {
		if !strings.Contains(p.stderr.String(), want) {
			s.t.Errorf("%q: got no %q in\n%s", args, want, &p.stderr)
		}
	}
}

// The disk is full, at various moments. Each command says so and ends; when there is space, it continues, and nothing is
// lost or doubled.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	sizes := make([]int, 4000)
	for i := range sizes {
		sizes[i] = 1 + i%3
	}
	rows := makeRows(61, sizes...)
	file := writeRows(t, rows)
	for _, test := range []struct {
		name   string
		before []string // while there is space
		free   int64
		args   []string
	}{
		{"import, from the start", nil, 0, []string{"import", "--import-id", "full", file}},
		{"import, amid the jobs", nil, 500 << 10, []string{"import", "--import-id", "full", file}},
		{"run, amid the jobs", nil, 500 << 10, []string{"run", "--import-id", "full", file}},
		{"run, amid the results", []string{"import", "--import-id", "full", file}, 400 << 10,
			[]string{"run", "--import-id", "full", file}},
		{"work, from the start", []string{"import", "--import-id", "full", file}, 0,
			[]string{"work", "--drain", "--listen", "off"}},
		{"work, amid the results", []string{"import", "--import-id", "full", file}, 400 << 10,
			[]string{"work", "--drain", "--listen", "off"}},
		{"work without an end, amid the results", []string{"import", "--import-id", "full", file}, 400 << 10,
			[]string{"work", "--listen", "off"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			sim, url := startSim(t, chatsim.Config{Latency: time.Millisecond})
			s := newShell(t, url)
			d := newDisk(t, s)
			if test.before != nil {
				s.run(exitDone, test.before...)
			}
			d.fill(test.free)
			s.wantBroken(syscall.ENOSPC, test.args...)
			s.wantBroken(syscall.ENOSPC, test.args...) // a second time is no worse
			d.empty()

			if test.args[0] == "work" {
				s.run(exitDone, "work", "--drain", "--listen", "off")
			} else {
				s.run(exitDone, test.args...)
			}
			if test.args[0] == "import" {
				if got := s.onQueue("full"); got != int64(len(sizes)) {
					t.Fatalf("got %d jobs on the queue, want %d", got, len(sizes))
				}
				s.run(exitDone, "work", "--drain", "--listen", "off")
			}
			checkState(t, sim, stateOf(rows))
			if got := len(s.results("full")); got != len(rows) {
				t.Errorf("got results of %d conversations, want %d", got, len(rows))
			}
			if got := s.onQueue("full"); got != 0 {
				t.Errorf("got %d jobs on the queue in the end, want none", got)
			}
		})
	}
}

// A data directory that must not be written to, new or with an import in it.
func TestDiskReadOnly(t *testing.T) {
	t.Parallel()
	rows := makeRows(62, 3, 2, 1)
	file := writeRows(t, rows)
	run := []string{"run", "--import-id", "read-only", file}
	commands := [][]string{
		run, {"import", "--import-id", "read-only", file}, {"work", "--drain", "--listen", "off"}, {"status"},
	}
	sim, url := startSim(t, chatsim.Config{})
	s := newShell(t, url)
	d := newDisk(t, s)
	d.protect(true)
	s.wantBroken(syscall.EROFS, run...)
	s.wantBroken(syscall.EROFS, "import", "--import-id", "read-only", file)
	d.protect(false)
	s.run(exitDone, "import", "--import-id", "read-only", file)
	d.protect(true)
	for _, args := range commands {
		s.wantBroken(syscall.EROFS, args...)
	}
	d.protect(false)
	s.run(exitDone, run...)
	checkState(t, sim, stateOf(rows))
	if _, err := os.Stat(s.dir); errors.Is(err, os.ErrNotExist) {
		t.Errorf("the data is not on that disk: %v", err)
	}
}
