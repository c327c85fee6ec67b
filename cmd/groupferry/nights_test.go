package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
	"groupferry/internal/longtest"
)

// The lock of a sync is free once its jobs are on the queue, also for a run that found them there.
func TestNightDuringRun(t *testing.T) {
	sim, url := startSim(t, chatsim.Config{Latency: 100 * time.Millisecond})
	s := newShell(t, url)
	var sizes []int
	for range 60 {
		sizes = append(sizes, 1)
	}
	rows := makeRows(1, sizes...)
	file := writeRows(t, rows)
	s.run(exitDone, "import", "--sync", "contacts", file)
	running := s.start("run", "--sync", "contacts", "--concurrency", "2", file)
	await(t, "calls", func() bool { return created(sim) > 0 })
	more := append(slices.Clone(rows), row{"another", "group", chat.Item{Type: chat.OneToOne, ID: "friend"}})
	s.run(exitDone, "import", "--sync", "contacts", writeRows(t, more))
	running.wait(exitIncomplete)
	s.run(exitDone, "run", "--sync", "contacts", writeRows(t, more))
	checkState(t, sim, stateOf(more))
}

// The steps of nights that are killed, with the failpoints that each passes.
var nightSteps = []matrixStep{
	{"first", slices.Concat(around("lock", "sync", "begin", "start"), []string{"lead"}, around("enqueue", "record-running", "group",
		"record-complete", "end", "end-results", "drop"), []string{"note-before", "note-after"})},
	{"second", slices.Concat(around("lock", "snapshot-chunk", "snapshot", "sync", "begin", "start", "enqueue", "record-running",
		"group", "record-complete"), []string{"note-before", "note-after"})},
	{"third", slices.Concat(around("lock", "snapshot-chunk", "snapshot", "sync", "begin", "start", "enqueue", "record-running"))},
	{"supersede", around("lock", "record-cancelled", "end", "end-results", "drop", "sync",
		"begin", "start", "enqueue")},
	{"fence", slices.Concat([]string{"fence-before"}, around("begin", "start"), []string{"fence-after"},
		around("record-cancelled", "end", "sync"))},
	{"work", slices.Concat([]string{"lead"}, around("group", "record-complete", "end", "end-results", "drop"),
		[]string{"note-before", "note-after"})},
	{"empty", around("lock", "snapshot-chunk", "snapshot", "sync", "snapshot-delete", "begin", "start", "enqueue", "record-complete")},
	{"same", around("lock", "sync")},
}

// TestCrashNights takes a sync through nights whose commands are killed at each failpoint, at their first pass, and called
// again; with -matrix N it continues with N runs that draw points and passes. In the end the app has what the nights wanted
// that were worked on, and nothing of those that the next one came before.
func TestCrashNights(t *testing.T) {
	longtest.Only(t)
	t.Parallel()
	// Which process comes by a point first is not always the same.
	killSteps(t, stepKills{steps: nightSteps, runs: 12, again: 5, random: randomNightCrashes, run: runNights})
}

func randomNightCrashes(seed uint64) map[string][]crash {
	rng := rand.New(rand.NewPCG(seed, 7))
	crashes := map[string][]crash{}
	for _, step := range nightSteps {
		for range rng.IntN(4) {
			c := crash{point: step.points[rng.IntN(len(step.points))], pass: 1 + rng.IntN(4)}
			if rng.IntN(3) == 0 {
				c = crash{after: time.Duration(rng.IntN(1200)) * time.Millisecond}
			}
			crashes[step.name] = append(crashes[step.name], c)
		}
	}
	return crashes
}

func runNights(t *testing.T, binary string, seed uint64, crashes map[string][]crash, seen *reached) {
	const failing, slots = "friend-1", 8
	var sizes []int
	for i := range 40 {
		sizes = append(sizes, 1+i%4)
	}
	all := makeRows(seed, sizes...)
	sim, url := startSim(t, chatsim.Config{
		Existing: []chatsim.Existing{chatsim.Append, chatsim.Replace, chatsim.Refuse}[seed%3],
		FailIDs:  map[string]int{failing: chat.CodeUserNotImported},
	})
	m := &matrixRun{t: t, s: newShell(t, url), sim: sim, crashes: crashes, seen: seen}
	m.s.program = binary
	m.s.env["GROUPFERRY_TIMEOUT"] = "8s"            // a call that takes longer on a busy machine would be sent again
	m.s.env["GROUPFERRY_SYNC_LOCK_STALE"] = "300ms" // nobody lives who would renew it
	add := func(rows []row, user string, n int) []row {
		rows = slices.Clone(rows)
		for i := range n {
			rows = append(rows, row{user, "new", chat.Item{Type: chat.OneToOne, ID: fmt.Sprint("n", i)}})
		}
		return rows
	}
	command := func(name string, rows []row, more ...string) []string {
		args := []string{name, "--sync", "contacts", "--max-shrink", "90%"}
		if name == "run" {
			args = append(args, "--concurrency", fmt.Sprint(slots))
		}
		return append(append(args, more...), writeRows(t, rows))
	}
	// A job that would find out what create does learns nothing where a conversation fails, and sends all of its own again.
	withFailure, inVain := map[[2]string]bool{}, 0
	for _, r := range all[:len(all)/2] {
		if r.item.ID == failing {
			withFailure[[2]string{r.user, r.group}] = true
		}
	}
	for _, r := range all[:len(all)/2] {
		if withFailure[[2]string{r.user, r.group}] {
			inVain++
		}
	}
	readded, kills := 0, 0
	sentOnce := func(night string) {
		t.Helper()
		got := sim.Ledger().Readded - readded
		most := 2 + (m.kills-kills)*slots*4 // one job finds out what create does
		if night == "first" {
			most += inVain
		}
		if got > most {
			t.Errorf("%s: got %d conversations sent again after %d kills, want %d at most", night, got, m.kills-kills, most)
		}
		readded, kills = sim.Ledger().Readded, m.kills
	}
	without := func(rows []row) []row {
		return slices.DeleteFunc(slices.Clone(rows), func(r row) bool { return r.item.ID == failing })
	}
	first := all[:len(all)/2]
	m.do("first", []int{exitIncomplete}, command("run", first)...)
	checkState(t, sim, stateOf(without(first)))
	sentOnce("first")

	second := add(all, "u2", 3)
	m.do("second", []int{exitIncomplete}, command("run", second)...)
	checkState(t, sim, stateOf(without(second)))
	sentOnce("second")
	if err := sim.Configure(func(c *chatsim.Config) { c.FailIDs = nil }); err != nil {
		t.Fatal(err)
	}

	// Nobody works: each of these nights takes over from one before any job of it is done.
	m.do("third", []int{exitDone}, command("import", add(all, "u3", 3))...)
	m.do("supersede", []int{exitDone}, command("import", add(all, "u4", 3))...)
	m.crash("", crash{point: "begin-before", pass: 1}, []int{exitDone}, command("import", add(all, "u5", 3)))
	last := add(all, "u6", 3)
	m.do("fence", []int{exitDone}, command("import", last)...)
	checkState(t, sim, stateOf(without(second)))
	m.do("work", []int{exitDone}, "work", "--drain", "--listen", "off", "--concurrency", fmt.Sprint(slots))
	want := stateOf(append(slices.Clone(second), last...))
	checkState(t, sim, want)
	sentOnce("last")

	// The same again, as a file, and as rows: nothing is sent, and at last there is nothing to do.
	same := command("run", last)
	calls := m.calls()
	m.do("empty", []int{exitDone}, same...)
	if p := m.do("same", []int{exitDone}, same...); !strings.Contains(p.stderr.String(), "nothing to do") {
		t.Errorf("the same file again: got\n%s\n%s", &p.stdout, &p.stderr)
	}
	slices.Reverse(last)
	m.do("shuffled", []int{exitDone}, command("run", last)...)
	if got := m.calls() - calls; got > 0 {
		t.Errorf("the same rows again: got %d calls, want none", got)
	}
	checkState(t, sim, want)
	seen.mu.Lock()
	seen.runs++
	seen.mu.Unlock()
}

// Nights of a mirror follow each other within a second, while half of the calls have no response and are applied seconds later,
// and the process that works is killed or stopped now and then. In the end the app has what the last night wants and nothing
// else: no call of a night comes after one of the next. -matrix N adds N/4 runs.
func TestLateNights(t *testing.T) {
	longtest.Only(t)
	t.Parallel()
	for n := range 2 + *matrixRuns/4 {
		seed := nthSeed(n)
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			lateNights(t, rand.New(rand.NewPCG(seed, 11)))
		})
	}
}

func lateNights(t *testing.T, rng *rand.Rand) {
	existing := []chatsim.Existing{chatsim.Append, chatsim.Replace, chatsim.Refuse}[rng.IntN(3)]
	sim, url := startSim(t, chatsim.Config{Existing: existing, Latency: 20 * time.Millisecond})
	s := newShell(t, url)
	s.env["GROUPFERRY_LISTEN"] = "off"
	night := func(command string, rows map[row]bool) int {
		t.Helper()
		return s.spawn(command, "--sync", "contacts", "--mode", "mirror", "--missing-users", "clear", "--max-removals", "100%",
			"--max-shrink", "100%", "--wait", writeRows(t, slices.Collect(maps.Keys(rows)))).wait()
	}
	faulty := func(faults ...chatsim.Fault) {
		if err := sim.Configure(func(c *chatsim.Config) { c.Faults = faults }); err != nil {
			t.Fatal(err)
		}
	}
	rows := map[row]bool{}
	work := s.spawn("work")
	for n := range 20 {
		if rng.IntN(3) == 0 {
			maps.DeleteFunc(rows, func(row, bool) bool { return rng.IntN(2) == 0 })
		}
		for range 3 + rng.IntN(20) {
			it := chat.Item{Type: chat.OneToOne, ID: fmt.Sprint("c", rng.IntN(6))}
			rows[row{fmt.Sprint("u", rng.IntN(5)), fmt.Sprint("g", rng.IntN(4)), it}] = true
		}
		if code := night("import", rows); code != exitDone {
			t.Fatalf("night %d: got exit code %d", n+1, code)
		}
		if n == 0 {
			await(t, "the first night to work", func() bool { return created(sim) > 0 })
			faulty(chatsim.Fault{Kind: chatsim.Late, Share: 0.5})
		}
		// What is under way, and what not yet, is left to chance.
		time.Sleep(time.Duration(rng.IntN(400)) * time.Millisecond)
		switch rng.IntN(12) {
		case 0, 1:
			work.cmd.Process.Kill()
			work.wait()
			work = s.spawn("work")
		case 2:
			work.cmd.Process.Signal(os.Interrupt)
			work.wait()
			work = s.spawn("work")
		}
	}
	faulty()
	for range 2 { // the first takes over from whatever is under way
		if code := night("run", rows); code != exitDone {
			t.Errorf("got exit code %d", code)
		}
	}
	work.cmd.Process.Signal(os.Interrupt)
	if code := work.wait(); code != exitDone {
		t.Errorf("work: got exit code %d\n%s", code, &work.stderr)
	}
	checkState(t, sim, stateOf(slices.Collect(maps.Keys(rows))))
}
