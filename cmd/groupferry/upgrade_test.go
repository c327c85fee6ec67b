package main

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
)

// testdata/upgrade holds data directories as earlier versions left them. Each was made with
//
//	groupferry simulate --fail-id dana=51007 --fail-id aisha=50001
//	groupferry run --import-id old-complete groups.csv
//	groupferry import --import-id old-waiting groups.jsonl
//
// of the samples. v1 knows no round, no stored count, and writes each result by itself; its jobs stream is a work queue.
// v2 keeps jobs until their import is complete.

// unpack writes a data directory.
func unpack(t *testing.T, file, dir string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, filepath.FromSlash(h.Name))
		if h.FileInfo().IsDir() {
			err = os.MkdirAll(path, 0o700)
		} else {
			var b []byte
			if b, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(path, b, 0o600)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A newer binary goes on with everything that an older one left.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	stored, err := filepath.Glob(filepath.Join("testdata", "upgrade", "*.tar.gz"))
	if err != nil || len(stored) == 0 {
		t.Fatalf("got %q, %v; want a stored data directory", stored, err)
	}
	samples := map[string]string{}
	var rows []row
	for _, name := range []string{"groups.csv", "groups.jsonl"} {
		samples[name] = filepath.Join(root, "samples", name)
		more, err := readRows(samples[name])
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, more...)
	}
	for _, file := range stored {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".tar.gz"), func(t *testing.T) {
			sim, url := startSim(t, chatsim.Config{
				FailIDs: map[string]int{"dana": chat.CodeGroupUnresolved, "aisha": chat.CodeUserNotImported},
			})
			// The app as the older binary left it.
			newShell(t, url).run(exitIncomplete, "run", "--quiet", "--import-id", "old-complete", samples["groups.csv"])

			s := newShell(t, url)
			unpack(t, file, s.dir)
			c := s.run(exitDone, "status")
			for _, want := range []string{
				"import old-waiting (groups.jsonl): enqueued", "pending 8",
				"import old-complete (groups.csv): complete", "done 6 · partial 4 · failed 2 · pending 0",
			} {
				if !strings.Contains(c.stdout.String(), want) {
					t.Errorf("status: got no %q in\n%s", want, &c.stdout)
				}
			}
			if got := len(s.results("old-complete", "--failed")); got != 10 {
				t.Errorf("results: got %d failed conversations, want 10", got)
			}
			if err := sim.Configure(func(c *chatsim.Config) { c.FailIDs = nil }); err != nil {
				t.Fatal(err)
			}
			s.run(exitDone, "run", "--quiet", "--import-id", "old-waiting", samples["groups.jsonl"])
			s.run(exitDone, "retry", "old-complete", "--code", "60001").wantErr("nothing to do")
			s.run(exitDone, "retry", "old-complete")
			s.run(exitDone, "work", "--drain", "--quiet", "--listen", "off")
			checkState(t, sim, stateOf(rows))
			for _, id := range []string{"old-complete", "old-waiting"} {
				if got := len(s.results(id, "--failed")); got != 0 {
					t.Errorf("%s: got %d failed conversations after all, want none", id, got)
				}
				s.run(exitDone, "forget", id)
			}
		})
	}
}
