package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
)

// Exports beside a leader that reads all it may, for update is not offered: whoever is killed or frozen, of them or of the
// workers, the limit is kept, and each export ends with all of its users in its file, by the same command.
func TestFleetExport(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 100, chatsim.Config{
		NoUpdate: true, NotOfferedCode: chat.CodeNotOffered, Latency: 20 * time.Millisecond, Jitter: 10 * time.Millisecond,
	})
	f.env["GROUPFERRY_TIMEOUT"] = "4s"
	f.perUser, f.readers = 1, 1
	f.startWorkers(2)
	f.enqueue("a", 600, 3)
	f.enqueue("b", 600, 3)
	f.awaitDone("a", "b")
	gets := func() int { return f.sim.Ledger().Commands[chat.GetContactGroup].Calls }
	f.enqueue("new", 1500, 2)

	dir := t.TempDir()
	type export struct {
		name string
		p    *process
	}
	start := func(e *export) {
		e.p = f.spawn("export", "--import", e.name, "--to", filepath.Join(dir, e.name+".csv"), "--wait")
	}
	one, two := &export{name: "a"}, &export{name: "b"}
	start(one)
	start(two)
	for round := range either(3, 10) {
		before := gets()
		f.await("calls", func() bool { return gets() > before+100 || one.p.ended() && two.p.ended() })
		switch round % 3 {
		case 0:
			f.kill(one.p)
			start(one)
		case 1: // both: one of them is the reader
			freeze(t, one.p.cmd)
			freeze(t, two.p.cmd)
			time.Sleep(5 * time.Second) // longer than a right, and than the last of its calls
			thaw(t, two.p.cmd)
			time.Sleep(4 * time.Second) // and the other one takes over meanwhile
			thaw(t, one.p.cmd)
		case 2:
			f.kill(two.p)
			start(two)
			leader := f.leader()
			f.kill(leader)
			f.awaitWorking(f.startWorker())
		}
	}
	for _, e := range []*export{one, two} {
		if code := e.p.wait(); code != exitDone {
			t.Fatalf("export of %s: got exit code %d\n%s\n%s", e.name, code, &e.p.stdout, &e.p.stderr)
		}
		got, err := os.ReadFile(filepath.Join(dir, e.name+".csv"))
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(string(bytes.TrimSpace(got)), "\n")
		slices.Sort(lines)
		if n := len(slices.Compact(lines)); n != 1+600*3 || len(lines) != n {
			t.Errorf("export of %s: got %d lines, %d different ones; want the header and 1,800 rows", e.name, len(lines), n)
		}
	}
	f.checkDone()
	f.checkPace()
	f.stopWorkers()
}
