package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
)

// One process reads; another one says which, or waits. The first Ctrl-C ends it with whole users, and the command that it
// names continues.
func TestExportStopped(t *testing.T) {
	t.Parallel()
	sim, url := startSim(t, chatsim.Config{Latency: 20 * time.Millisecond})
	s := newShell(t, url)
	const users, rate = 2000, 2000 // two seconds
	var rows []row
	for i := range users {
		rows = append(rows, row{user: fmt.Sprint("user", i), group: "g", item: chat.Item{Type: chat.OneToOne, ID: "friend"}})
	}
	file := writeRows(t, rows)
	s.run(exitDone, "run", "--quiet", file)
	s.env["GROUPFERRY_RATE"] = fmt.Sprint(rate)
	gets := func() int { return sim.Ledger().Commands[chat.GetContactGroup].Calls }
	before := gets()

	to := filepath.Join(t.TempDir(), "out.csv")
	first := s.start("export", file, "--to", to)
	await(t, "the first reads", func() bool { return gets() > before+5 })
	s.run(exitUnreachable, "verify", "--quiet", file).wantErr("reads groups back at present", "--wait", "to continue: groupferry verify --quiet")
	verify := s.start("verify", file, "--wait")
	await(t, "one that waits", func() bool {
		select {
		case <-first.done:
			t.Skip("the machine is so slow that it was done before")
		default:
		}
		return strings.Contains(verify.stderr.String(), "waiting for ")
	})
	first.signals <- os.Interrupt
	<-first.done
	if first.code == exitDone {
		t.Skip("the machine is so slow that it was done before")
	}
	first.wait(exitInterrupted)
	if !strings.Contains(first.stdout.String(), "export: not complete") {
		t.Errorf("got report %s", &first.stdout)
	}
	if got, err := os.ReadFile(to); err != nil || len(got) == 0 || got[len(got)-1] != '\n' {
		t.Errorf("got %q, %v; want whole lines", got, err)
	}
	verify.wait(exitDone)
	s.env["GROUPFERRY_RATE"] = "100000"
	s.run(exitDone, first.resumeCommand("interrupted; to continue")...)
	got, err := os.ReadFile(to)
	if err != nil {
		t.Fatal(err)
	}
	checkExport(t, got, users)

	stopped := s.start("export", file)
	await(t, "some rows", func() bool { return strings.Contains(stopped.stderr.String(), "reading ") })
	stopped.signals <- os.Interrupt
	stopped.wait(exitInterrupted)
	if out := stopped.stdout.String(); out != "" && out[len(out)-1] != '\n' {
		t.Errorf("got %q, want whole lines", out)
	}
}

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
		checkExport(t, got, 600*3)
	}
	f.checkDone()
	f.checkPace()
	f.stopWorkers()
}

// checkExport checks that an export has so many rows, each once.
func checkExport(t *testing.T, csv []byte, rows int) {
	t.Helper()
	lines := strings.Split(string(bytes.TrimSpace(csv)), "\n")
	all := len(lines)
	slices.Sort(lines)
	if n := len(slices.Compact(lines)); n != 1+rows || all != n {
		t.Errorf("got %d lines, %d different ones; want the header and %d rows", all, n, rows)
	}
}
