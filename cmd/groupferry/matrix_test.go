package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"groupferry/internal/app"
	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
	"groupferry/internal/longtest"
	"groupferry/internal/queue"
)

var (
	matrixRuns = flag.Int("matrix", 0, "number of random crash runs, beside the short form")
	matrixSeed = flag.Uint64("matrix-seed", 1, "of the first of them, the next has one more; 0: random ones. A failure tells its own")
)

// nthSeed gives the seed of the n-th random run. What happens in a run is drawn from it; when, is up to the machine.
func nthSeed(n int) uint64 {
	if *matrixSeed == 0 {
		return rand.Uint64()
	}
	return *matrixSeed + uint64(n)
}

// A run of the crash matrix takes an import through all its steps: run, retry, run; a second import through import,
// cancel, delete; and a third one is imported by two processes at once. Each command is killed a few times, at failpoints (see
// internal/broker, which has them in builds with the tag failpoint) or at random moments, and called again each time,
// until it ends by itself. The embedded server dies with it. After each of them everything has to be accounted for.
//
// Pairs of commands at once are in crash_pairs_test.go, the crash runs of a fleet in crash_fleet_test.go.

// A step of a run of the matrix, with the failpoints that it passes, in their order.
type matrixStep struct {
	name   string
	points []string
}

func around(names ...string) []string {
	var points []string
	for _, name := range names {
		points = append(points, name+"-before", name+"-inside", name+"-after")
	}
	return points
}

var matrixSteps = []matrixStep{
	{"run", slices.Concat([]string{"heal-before", "heal-after", "embedded-locked"}, around("stream"),
		[]string{"embedded-started"}, around("lease"), []string{"lead"}, around("begin", "start", "marker"),
		[]string{"grant"}, around("enqueue", "record-running"), []string{"fetch-after"}, around("group"),
		around("record-complete", "end", "end-results", "drop"))},
	{"retry", slices.Concat([]string{"embedded-started"}, around("record-retrying", "start", "retry", "record-running"))},
	{"again", slices.Concat(around("lease"), []string{"lead"}, around("marker"), []string{"grant", "fetch-after"},
		around("group", "record-complete", "end", "end-results", "drop"))},
	{"import", slices.Concat([]string{"embedded-locked"}, around("begin", "start", "enqueue", "record-running"))},
	{"cancel", around("record-cancelled", "end", "end-results", "drop")},
	{"delete", slices.Concat(around("record-deleting", "end", "end-results", "drop", "delete", "delete-record"))},
}

// A crash is a failpoint, at one of the times it is passed, or a moment after the start. With a hold, who comes to the
// failpoint is not killed but kept there.
type crash struct {
	point string
	pass  int
	hold  time.Duration
	after time.Duration
}

func (c crash) String() string {
	if c.point == "" {
		return c.after.String()
	}
	if c.hold > 0 {
		return fmt.Sprintf("%s:%d:%s", c.point, c.pass, c.hold)
	}
	return fmt.Sprintf("%s:%d", c.point, c.pass)
}

// failpointBuild builds the program with failpoints, beside the one without, and gives its path.
var failpointBuild = sync.OnceValues(func() (string, error) {
	program, err := exec.LookPath("groupferry")
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(program), "groupferry-failpoint"+filepath.Ext(program))
	out, err := exec.Command("go", "build", "-tags", "failpoint", "-o", path, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build with failpoints: %w\n%s", err, out)
	}
	return path, nil
})

func withFailpoints(t testing.TB) string {
	t.Helper()
	path, err := failpointBuild()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestCrashMatrix covers each failpoint of each step once; with -matrix N it continues with N random runs.
func TestCrashMatrix(t *testing.T) {
	longtest.Only(t)
	t.Parallel()
	killSteps(t, stepKills{steps: matrixSteps, runs: 8, again: 3, random: randomCrashes, run: runMatrix})
}

// stepKills says how steps are killed at each of their failpoints.
type stepKills struct {
	steps  []matrixStep
	runs   int                                  // that the failpoints are spread over
	again  int                                  // how often points that were missed are tried again
	random func(seed uint64) map[string][]crash // for -matrix
	run    func(t *testing.T, binary string, seed uint64, crashes map[string][]crash, seen *reached)
}

func killSteps(t *testing.T, k stepKills) {
	binary := withFailpoints(t)
	seen := &reached{at: map[string]bool{}}
	name := t.Name()
	t.Run("short", func(t *testing.T) {
		for n := range k.runs {
			t.Run(fmt.Sprint(n), func(t *testing.T) {
				t.Parallel()
				crashes := map[string][]crash{}
				for _, step := range k.steps {
					for i := n; i < len(step.points); i += k.runs {
						crashes[step.name] = append(crashes[step.name], crash{point: step.points[i], pass: 1})
					}
				}
				k.run(t, binary, uint64(n), crashes, seen)
			})
		}
		for n := range *matrixRuns {
			seed := nthSeed(n)
			t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
				t.Parallel()
				t.Logf("to repeat it: GROUPFERRY_LONG_TESTS=1 go test ./cmd/groupferry -run %s -matrix 1 -matrix-seed %d", name, seed)
				k.run(t, binary, seed, k.random(seed), seen)
			})
		}
	})
	// On a busy machine a point that is only come by in time can be missed once.
	for range k.again {
		missed := seen.missed(k.steps)
		if len(missed) == 0 {
			break
		}
		t.Logf("missed so far: %v", missed)
		t.Run("missed", func(t *testing.T) { k.run(t, binary, 0, missed, seen) })
	}
	for step, crashes := range seen.missed(k.steps) {
		t.Errorf("%s did not come by %v", step, crashes)
	}
	t.Logf("%d runs, %d kills", seen.runs, seen.kills)
}

func randomCrashes(seed uint64) map[string][]crash {
	rng := rand.New(rand.NewPCG(seed, 7))
	crashes := map[string][]crash{}
	for _, step := range matrixSteps {
		for range 1 + rng.IntN(4) {
			c := crash{point: step.points[rng.IntN(len(step.points))], pass: 1 + rng.IntN(6)}
			if strings.HasPrefix(c.point, "heal-") {
				c.point = "embedded-locked" // streams are made once in a run
			}
			if rng.IntN(3) == 0 {
				c = crash{after: time.Duration(rng.IntN(1500)) * time.Millisecond}
			}
			crashes[step.name] = append(crashes[step.name], c)
		}
	}
	return crashes
}

// reached is which crashes came about.
type reached struct {
	mu          sync.Mutex
	at          map[string]bool // step and point
	kills, runs int
}

// missed gives the failpoints of each step that nobody came by.
func (r *reached) missed(steps []matrixStep) map[string][]crash {
	missed := map[string][]crash{}
	for _, step := range steps {
		for _, point := range step.points {
			// Who is to die within two milliseconds may have ended by then.
			if !r.at[step.name+" "+point] && !strings.HasSuffix(point, "-inside") {
				missed[step.name] = append(missed[step.name], crash{point: point, pass: 1})
			}
		}
	}
	return missed
}

// A matrixRun is one run of the crash matrix, on an embedded server of its own.
type matrixRun struct {
	t       *testing.T
	s       *shell
	sim     *chatsim.Sim
	crashes map[string][]crash
	seen    *reached
	kills   int

	generation int // of the import, so far
}

// do calls a command until it ends by itself, with the crashes of its step on the way, and checks how it ended. A
// command that was killed when all was done may find nothing to do, and end as the codes say.
func (m *matrixRun) do(step string, codes []int, args ...string) *process {
	m.t.Helper()
	for _, c := range m.crashes[step] {
		if strings.HasPrefix(c.point, "heal-") { // there is something to heal only then
			m.crash(step, crash{point: "begin-before", pass: 1}, codes, args)
			m.halfMade()
		}
		m.crash(step, c, codes, args)
	}
	p := m.s.spawn(args...)
	if code := p.wait(); !slices.Contains(codes, code) {
		m.t.Fatalf("%s after the crashes %v: got exit code %d, want one of %v\n%s\n%s",
			step, m.crashes[step], code, codes, &p.stdout, &p.stderr)
	}
	return p
}

// crash calls a command that is to be killed; it may end before.
func (m *matrixRun) crash(step string, c crash, codes []int, args []string) {
	m.t.Helper()
	m.s.env["GROUPFERRY_FAILPOINT"] = c.String()
	p := m.s.spawn(args...)
	delete(m.s.env, "GROUPFERRY_FAILPOINT")
	if c.point == "" {
		after := time.Now().Add(c.after)
		p.killWhen(func() bool { return time.Now().After(after) })
	}
	code := p.wait()
	if code >= 0 {
		if !slices.Contains(codes, code) {
			m.t.Fatalf("%s, to be killed at %s: got exit code %d, want one of %v\n%s\n%s",
				step, c, code, codes, &p.stdout, &p.stderr)
		}
		return
	}
	m.kills++
	m.seen.mu.Lock()
	m.seen.kills++
	m.seen.at[step+" "+c.point] = true
	m.seen.mu.Unlock()
}

// halfMade leaves of the streams, in which there is nothing yet, what a kill leaves of one that is being made.
func (m *matrixRun) halfMade() {
	m.t.Helper()
	sums, err := filepath.Glob(filepath.Join(m.s.dir, "jetstream", "*", "streams", "*", "meta.sum"))
	if err != nil || len(sums) == 0 {
		m.t.Fatalf("got %q, %v; want the streams of a process that was killed", sums, err)
	}
	for _, sum := range sums {
		if err := os.Remove(sum); err != nil {
			m.t.Fatal(err)
		}
	}
}

func runMatrix(t *testing.T, binary string, seed uint64, crashes map[string][]crash, seen *reached) {
	const failing = "friend-1"
	slots := []int{4, 64}[seed/3%2]
	sizes := []int{230}
	for i := range 60 {
		sizes = append(sizes, 1+i%4)
	}
	rows := makeRows(seed, sizes...)
	good := slices.DeleteFunc(slices.Clone(rows), func(r row) bool { return r.item.ID == failing })
	var bad int // groups
	for _, n := range sizes {
		if n > 1 {
			bad++
		}
	}
	sim, url := startSim(t, chatsim.Config{
		Existing: []chatsim.Existing{chatsim.Append, chatsim.Replace, chatsim.Refuse}[seed%3],
		FailIDs:  map[string]int{failing: chat.CodeUserNotImported},
	})
	m := &matrixRun{t: t, s: newShell(t, url), sim: sim, crashes: crashes, seen: seen}
	m.s.program = binary
	m.s.env["GROUPFERRY_TIMEOUT"] = "3s"
	file := writeRows(t, rows)
	run := []string{"run", "--import-id", "first", "--concurrency", fmt.Sprint(slots), "--output", "json", file}

	// Everything but what fails is in its group, and what fails is in a result.
	p := m.redoCrashed(m.do("run", []int{exitIncomplete}, run...), run)
	m.check(p, good, len(rows), len(rows)-len(good))
	calls := len(sizes) + 2 // one group takes three
	if got, most := m.calls(), calls+m.kills*3*slots; got < calls || got > 2*most {
		t.Errorf("run: got %d calls after %d kills, want %d to %d", got, m.kills, calls, most)
	}

	// What failed is done, and nothing else again but what was in flight at a kill.
	if err := sim.Configure(func(c *chatsim.Config) { c.FailIDs = nil }); err != nil {
		t.Fatal(err)
	}
	m.generation++
	m.retry()
	if got := m.s.onQueue("first"); got != int64(bad) {
		t.Errorf("retry: got %d jobs on the queue, want %d", got, bad)
	}
	before, kills := m.calls(), m.kills
	p = m.redoCrashed(m.do("again", []int{exitDone, exitIncomplete}, run...), run)
	m.check(p, rows, len(rows), 0)
	if got, most := m.calls()-before, bad+(m.kills-kills)*2*slots; got > 2*most {
		t.Errorf("retry: got %d calls after %d kills, want at most %d", got, m.kills-kills, most)
	}

	// Each job of another import is on the queue once; then it is gone without a trace.
	m.do("import", []int{exitDone}, "import", "--import-id", "second", file)
	if got := m.s.onQueue("second"); got != int64(len(sizes)) {
		t.Errorf("import: got %d jobs on the queue, want %d", got, len(sizes))
	}
	m.do("cancel", []int{exitDone}, "cancel", "second")
	if got := m.s.onQueue("second"); got != 0 {
		t.Errorf("cancel: got %d jobs on the queue, want none", got)
	}
	m.do("delete", []int{exitDone, exitFailed}, "delete", "second") // exitFailed: there is none any more
	if p := m.s.spawn("status", "second"); p.wait() != exitFailed || !strings.Contains(p.stderr.String(), "no such import") {
		t.Errorf("delete: the import is still there:\n%s", &p.stdout)
	}

	// Two at once, of which one stands still for a while before one of its pieces.
	m.s.env["GROUPFERRY_FAILPOINT"] = fmt.Sprintf("enqueue-before:%d:1s", 1+seed%4)
	slow := m.s.spawn("import", "--import-id", "third", file)
	delete(m.s.env, "GROUPFERRY_FAILPOINT")
	quick := m.s.spawn("import", "--import-id", "third", file)
	if got := codes(slow, quick); !slices.Equal(got, []int{exitDone, exitDone}) {
		t.Fatalf("two imports: got exit codes %v, want 0 and 0\n%s\n%s", got, &slow.stderr, &quick.stderr)
	}
	if got := m.s.onQueue("third"); got != int64(len(sizes)) {
		t.Errorf("two imports: got %d jobs on the queue, want %d", got, len(sizes))
	}
	checkState(t, sim, stateOf(rows))
	seen.mu.Lock()
	seen.runs++
	seen.mu.Unlock()
}

// redoCrashed retries what failed because it may have been in flight when three leaders in a row were killed, and gives
// the last run, with its report.
func (m *matrixRun) redoCrashed(p *process, run []string) *process {
	m.t.Helper()
	for {
		n := 0
		for _, line := range m.s.results("first", "--failed") {
			if line.Code == queue.CodeCrashed {
				n++
			}
		}
		if n == 0 {
			return p
		}
		m.t.Logf("%d conversations are suspected of three crashes", n)
		m.generation++
		m.s.run(exitDone, "retry", "first", "--code", queue.CodeCrashed)
		p = m.s.spawn(run...)
		p.wait()
	}
}

// retry puts what failed on the queue again. A retry that was killed when it was done finds its jobs there and says so.
func (m *matrixRun) retry() {
	m.t.Helper()
	p := m.do("retry", []int{exitDone, exitFailed}, "retry", "first")
	if m.t.Failed() {
		return
	}
	if p.cmd.ProcessState.ExitCode() == exitFailed && !strings.Contains(p.stderr.String(), "not finished") {
		m.t.Fatalf("retry: got\n%s", &p.stderr)
	}
}

func (m *matrixRun) calls() int {
	n := 0
	for _, command := range []chat.Command{chat.CreateContactGroup, chat.UpdateContactGroup} {
		n += m.sim.Ledger().Commands[command].Calls
	}
	return n
}

// check looks at the app, the report of a run, the results and the queue.
func (m *matrixRun) check(p *process, inApp []row, conversations, failed int) {
	m.t.Helper()
	checkState(m.t, m.sim, stateOf(inApp))
	var r app.ImportStatus
	if err := json.Unmarshal([]byte(p.stdout.String()), &r); err != nil {
		m.t.Fatalf("%v\n%s", err, &p.stdout)
	}
	want := app.ConversationCounts{Total: int64(conversations), Done: int64(conversations - failed), Failed: int64(failed)}
	if r.Conversations != want {
		m.t.Errorf("conversations: got %+v, want %+v", r.Conversations, want)
	}
	if m.generation > 0 && (r.Retry == nil || r.Retry.Generation != m.generation || r.Retry.Pending != 0) {
		m.t.Errorf("retry: got %+v, want generation %d and none pending", r.Retry, m.generation)
	}
	if got := len(m.s.results("first")); got != conversations {
		m.t.Errorf("results: got %d conversations, want %d", got, conversations)
	}
	if got := len(m.s.results("first", "--failed")); got != failed {
		m.t.Errorf("results: got %d failed conversations, want %d", got, failed)
	}
	if got := m.s.onQueue("first"); got != 0 {
		m.t.Errorf("got %d jobs on the queue, want none", got)
	}
}
