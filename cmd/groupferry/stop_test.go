package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"groupferry/internal/app"
	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
	"groupferry/internal/longtest"
)

// A process is the program as one of its own.
type process struct {
	t              testing.TB
	cmd            *exec.Cmd
	stdout, stderr buffer
	done           chan struct{}
	err            error // once done is closed
}

// spawn starts the program as a process with the shell's environment.
func (s *shell) spawn(args ...string) *process {
	s.t.Helper()
	p := &process{t: s.t, cmd: exec.Command(cmp.Or(s.program, "groupferry"), args...), done: make(chan struct{})}
	p.cmd.Env = os.Environ()
	for _, name := range slices.Sorted(maps.Keys(s.env)) {
		p.cmd.Env = append(p.cmd.Env, name+"="+s.env[name])
	}
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	if err := p.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	s.t.Cleanup(func() {
		p.cmd.Process.Kill()
		<-p.done
	})
	return p
}

// wait waits for the end and returns the exit code; -1 when it was killed.
func (p *process) wait() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(2 * patience):
		p.t.Fatalf("%q does not end; so far:\n%s\n%s", p.cmd.Args, &p.stdout, &p.stderr)
	}
	if leak := leakIn(p.stdout.String() + p.stderr.String()); leak != "" {
		p.t.Errorf("%q: printed a secret: %s", p.cmd.Args, leak)
	}
	var exit *exec.ExitError
	if p.err != nil && !errors.As(p.err, &exit) {
		p.t.Fatal(p.err)
	}
	return p.cmd.ProcessState.ExitCode()
}

// ended tells whether the process has.
func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// killWhen kills the process when so is true, and tells whether it had ended by itself.
func (p *process) killWhen(so func() bool) (ended bool) {
	p.t.Helper()
	await(p.t, "a moment to kill", func() bool {
		ended = p.ended()
		return ended || so()
	})
	if !ended {
		p.cmd.Process.Kill()
	}
	return p.wait() >= 0
}

// Killed again and again at random moments, and called again each time: at the end every conversation is in its group,
// has one result, and nothing is left on the queue. Create replaces here, so that a job that was cut short is told from
// one that was done.
func TestKilledRun(t *testing.T) {
	longtest.Only(t)
	t.Parallel()
	sizes := []int{1000, 450, 201}
	for i := range 1500 {
		sizes = append(sizes, 1+i%3)
	}
	rows := makeRows(21, sizes...)
	sim, url := startSim(t, chatsim.Config{Existing: chatsim.Replace, Latency: 20 * time.Millisecond})
	s := newShell(t, url)
	// With 8 calls of 20 ms at a time there are 40 results in 100 ms, and a group of results is written as often; on a
	// slow disk it takes longer, while more results come.
	const slots, unwritten = 8, 150
	args := []string{"run", "--import-id", "killed", "--concurrency", "8", "--output", "json", writeRows(t, rows)}
	seed := nthSeed(0)
	t.Logf("to repeat it: GROUPFERRY_LONG_TESTS=1 go test ./cmd/groupferry -run %s$ -matrix-seed %d", t.Name(), seed)
	rng := rand.New(rand.NewPCG(seed, 0))

	kills := 0
	for range 3 { // while it reads, starts its server, enqueues
		after := time.Now().Add(time.Duration(rng.IntN(400)) * time.Millisecond)
		if p := s.spawn(args...); p.killWhen(func() bool { return time.Now().After(after) }) {
			t.Fatalf("ended with exit code %d after %d kills:\n%s\n%s", p.wait(), kills, &p.stdout, &p.stderr)
		}
		kills++
	}
	for range 8 { // while it makes calls
		before, more := created(sim), 1+rng.IntN(150)
		if p := s.spawn(args...); p.killWhen(func() bool { return created(sim) >= before+more }) {
			t.Fatalf("ended with exit code %d after %d kills:\n%s\n%s", p.wait(), kills, &p.stdout, &p.stderr)
		}
		kills++
	}
	p := s.spawn(args...)
	if code := p.wait(); code != exitDone {
		t.Fatalf("after %d kills: got exit code %d, want 0\n%s\n%s", kills, code, &p.stdout, &p.stderr)
	}

	checkState(t, sim, stateOf(rows))
	var r app.ImportStatus
	if err := json.Unmarshal([]byte(p.stdout.String()), &r); err != nil {
		t.Fatal(err)
	}
	if want := (app.JobCounts{Total: int64(len(sizes)), Done: int64(len(sizes))}); r.Jobs != want {
		t.Errorf("jobs: got %+v, want %+v", r.Jobs, want)
	}
	if got := s.onQueue("killed"); got != 0 {
		t.Errorf("jobs on the queue: got %d, want 0", got)
	}
	if got := len(s.results("killed")); got != len(rows) {
		t.Errorf("results: got %d conversations, want %d", got, len(rows))
	}
	// A job is done again only if it was in flight at a kill, or its result was not written yet.
	if got, most := created(sim), len(sizes)+kills*(slots+unwritten); got < len(sizes) || got > most {
		t.Errorf("create calls: got %d, want %d to %d", got, len(sizes), most)
	}
	t.Logf("%d kills, %d create calls for %d jobs", kills, created(sim), len(sizes))
}

// Killed while it enqueues, and called again: each job is on the stream once.
func TestKilledImport(t *testing.T) {
	t.Parallel()
	sizes := make([]int, 10000)
	for i := range sizes {
		sizes[i] = 1
	}
	file := writeRows(t, makeRows(22, sizes...))
	s := newShell(t, "")
	seed := nthSeed(0)
	t.Logf("to repeat it: GROUPFERRY_LONG_TESTS=1 go test ./cmd/groupferry -run %s$ -matrix-seed %d", t.Name(), seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	kills, amid := 0, 0
	var ids []string
	for n := 0; kills < 8 || amid == 0; n++ {
		if n == 10 {
			t.Fatalf("%d kills in 10 imports, %d of them amid the jobs", kills, amid)
		}
		id := fmt.Sprintf("killed-%d", n)
		ids = append(ids, id)
		// Later and later, so that each import ends however slow the machine is.
		for window, ended := 100, false; !ended; window += window / 2 {
			p := s.spawn("import", "--import-id", id, file)
			after := time.Now().Add(time.Duration(rng.IntN(window)) * time.Millisecond)
			if ended = p.killWhen(func() bool { return time.Now().After(after) }); !ended {
				kills++
				if n := s.onQueue(id); 0 < n && n < int64(len(sizes)) {
					amid++
				}
			} else if code := p.wait(); code != exitDone {
				t.Fatalf("import %s: got exit code %d, want 0\n%s", id, code, &p.stderr)
			}
		}
	}
	for _, id := range ids {
		if got := s.onQueue(id); got != int64(len(sizes)) {
			t.Errorf("jobs of import %s on the queue: got %d, want %d", id, got, len(sizes))
		}
	}
	t.Logf("%d kills in %d imports, %d of them amid the jobs", kills, len(ids), amid)
}

func TestInterrupt(t *testing.T) {
	t.Parallel()
	var sizes []int
	for i := range 200 {
		sizes = append(sizes, 1+i%2)
	}
	rows := makeRows(6, sizes...)
	sim, url := startSim(t, chatsim.Config{Latency: time.Millisecond})
	s := newShell(t, url)
	file := filepath.Join(filepath.Dir(writeRows(t, rows)), "it's input.csv")
	if err := os.Rename(filepath.Join(filepath.Dir(file), "input.csv"), file); err != nil {
		t.Fatal(err)
	}
	c := s.start("run", "--rate", "200", "--concurrency", "4", file)
	await(t, "20 calls", func() bool { return created(sim) >= 20 })
	c.signals <- os.Interrupt
	c.wait(exitInterrupted)
	if n := len(rowsOf(sim.State())); n >= len(rows) {
		t.Fatalf("conversations at the interrupt: got all %d", n)
	}
	if text := c.stdout.String(); !strings.Contains(text, "pending") || strings.Contains(text, " left\n") {
		t.Errorf("got no report of what was done, or a time left though nothing is done any more:\n%s", text)
	}
	s.run(exitDone, c.resumeCommand("interrupted; to continue")...)
	checkState(t, sim, stateOf(rows))
	if got := sim.Ledger().Readded; got != 0 {
		t.Errorf("conversations sent twice: got %d, want 0: the first interrupt lets calls finish", got)
	}
}

// An interrupt before anything was begun prints the command that resumes, not what it interrupted.
func TestInterruptAtStart(t *testing.T) {
	t.Parallel()
	_, url := startSim(t, chatsim.Config{})
	file := writeRows(t, makeRows(10, 1))
	for _, args := range [][]string{{"import", file}, {"run", file}, {"work", "--listen", "off"}} {
		s := newShell(t, url)
		c := s.start(args...)
		c.signals <- os.Interrupt
		c.wait(exitInterrupted)
		if strings.Contains(c.stderr.String(), "error:") {
			t.Errorf("%q: got an error, want none:\n%s", args, &c.stderr)
		}
		if got := c.resumeCommand("interrupted; to continue"); !slices.Equal(got, args) {
			t.Errorf("%q: got %q to resume, want the same", args, got)
		}
	}
}

// The second interrupt leaves at once, also if calls get no response, and loses nothing.
func TestSecondInterrupt(t *testing.T) {
	t.Parallel()
	rows := makeRows(9, 3, 4, 5)
	sim, url := startSim(t, chatsim.Config{Faults: []chatsim.Fault{{Command: chat.CreateContactGroup, Kind: chatsim.Hang}}})
	s := newShell(t, url)
	c := s.start("run", "--timeout", "10m", writeRows(t, rows))
	await(t, "a call", func() bool { return created(sim) > 0 })
	c.signals <- os.Interrupt
	c.signals <- os.Interrupt
	c.wait(exitInterrupted)
	if err := sim.Configure(func(c *chatsim.Config) { c.Faults = nil }); err != nil {
		t.Fatal(err)
	}
	s.run(exitDone, c.resumeCommand("interrupted; to continue")...)
	checkState(t, sim, stateOf(rows))
}

// A readerFunc is a reader of one function.
type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// The first interrupt ends the reading of a pipe or a terminal that gives nothing.
func TestInterruptWhileReading(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"check", "-"}, {"import", "-"}, {"run", "-"}} {
		_, url := startSim(t, chatsim.Config{})
		s := newShell(t, url)
		reading := make(chan bool, 1)
		s.stdin = readerFunc(func([]byte) (int, error) {
			reading <- true
			select {}
		})
		c := s.start(args...)
		<-reading
		c.signals <- os.Interrupt
		c.wait(exitInterrupted)
		if got := c.resumeCommand("interrupted; to continue"); !slices.Equal(got, args) {
			t.Errorf("%q: got %q to go on, want the same", args, got)
		}
	}
}

// The second interrupt leaves also where a command is stuck in something that no context ends, such as a write.
func TestSecondInterruptAnywhere(t *testing.T) {
	t.Parallel()
	unread, stdout := io.Pipe()
	defer unread.Close()
	signals, code := make(chan os.Signal, 2), make(chan int, 1)
	getenv := func(string) (string, bool) { return "", false }
	go func() { code <- run(signals, []string{"--help"}, getenv, strings.NewReader(""), stdout, io.Discard) }()
	signals <- os.Interrupt
	signals <- os.Interrupt
	select {
	case got := <-code:
		if got != exitInterrupted {
			t.Errorf("got exit code %d, want %d", got, exitInterrupted)
		}
	case <-time.After(patience):
		t.Error("it does not end")
	}
}
