package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"groupferry/internal/app"
	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
	"groupferry/internal/longtest"
	"groupferry/internal/queue"
)

// TestCrashPairs calls two commands for one import at once, on an embedded server that one of them runs, or this process.
// Each is killed or held on its way, or not, and called again until it ends by itself. Afterwards the import is whole: it
// is gone without a trace, or over with the results that its record counts, or live with all its jobs. In the end all are
// done, everything is accounted for, and deleted. -matrix N adds a quarter of N runs.
func TestCrashPairs(t *testing.T) {
	longtest.Only(t)
	t.Parallel()
	binary := withFailpoints(t)
	for n := range 2 + *matrixRuns/4 {
		seed := nthSeed(n)
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			p := &pairRun{
				t: t, rng: rand.New(rand.NewPCG(seed, 9)), start: time.Now(), input: map[string][]row{}, file: map[string]string{},
			}
			t.Cleanup(func() {
				t.Logf("to repeat it: GROUPFERRY_LONG_TESTS=1 go test ./cmd/groupferry -run TestCrashPairs -matrix-seed %d\n%d kills\n%s",
					seed, p.kills, &p.log)
			})
			p.run(binary, seed)
		})
	}
}

// A pair is two commands for an import in a state: "" (there is none), enqueued, cancelled or complete, with failures.
type pair struct{ state, one, two string }

var pairs = []pair{
	{"", "import", "import"},
	{"", "import", "cancel"},
	{"", "import", "delete"},
	{"", "run", "run"},
	{"", "run", "cancel"},
	{"enqueued", "run", "cancel"},
	{"enqueued", "cancel", "cancel"},
	{"enqueued", "cancel", "delete"},
	{"cancelled", "delete", "delete"},
	{"cancelled", "import", "delete"}, // of the same content
	{"cancelled", "run", "delete"},
	{"complete", "import", "delete"},
	{"complete", "retry", "retry"},
	{"complete", "retry", "cancel"},
	{"complete", "retry", "delete"},
}

// How a command of a pair may end, and where it can be killed or held.
type pairEnd struct {
	codes    []int
	refusals []string // with exit code 1
	points   []string
}

var pairEnds = map[string]pairEnd{
	"import": {
		[]int{exitDone, exitIncomplete}, []string{"the import was cancelled", "no such import"},
		slices.Concat(around("begin", "start", "enqueue", "record-running"), []string{"delete-before", "delete-after"}),
	},
	"run": {
		[]int{exitDone, exitIncomplete}, []string{"the import was cancelled", "no such import"},
		slices.Concat(around("begin", "start", "enqueue", "record-running", "marker", "group", "record-complete", "end",
			"end-results", "drop"), []string{"lead", "grant", "fetch-after"}),
	},
	"retry": {
		[]int{exitDone}, []string{"not finished", "the import was cancelled", "no such import"},
		around("record-retrying", "start", "retry", "record-running"),
	},
	"cancel": {
		[]int{exitDone}, []string{"already", "no such import"},
		around("record-cancelled", "record-complete", "end", "end-results", "drop"),
	},
	"delete": {
		[]int{exitDone}, []string{"not finished", "no such import"},
		around("record-deleting", "end", "end-results", "drop", "delete", "delete-record"),
	},
}

// A pairRun is one after the other of the pairs.
type pairRun struct {
	t     *testing.T
	s     *shell
	sim   *chatsim.Sim
	rng   *rand.Rand
	own   *app.Namespace // nil: the commands run the server
	input map[string][]row
	file  map[string]string // of the input

	kills int
	log   strings.Builder // what happened, in order
	start time.Time
}

func (p *pairRun) note(format string, v ...any) {
	fmt.Fprintf(&p.log, "%6.2f "+format+"\n", append([]any{time.Since(p.start).Seconds()}, v...)...)
}

const pairFailing = "friend-1"

func (p *pairRun) run(binary string, seed uint64) {
	t := p.t
	sim, url := startSim(t, chatsim.Config{
		Existing: []chatsim.Existing{chatsim.Append, chatsim.Replace, chatsim.Refuse}[p.rng.IntN(3)],
		FailIDs:  map[string]int{pairFailing: chat.CodeUserNotImported},
	})
	p.sim, p.s = sim, newShell(t, url)
	p.s.program = binary
	p.s.env["GROUPFERRY_TIMEOUT"] = "3s"
	if seed%2 == 0 {
		p.note("the server is this process's")
		p.own = p.s.open()
		t.Cleanup(func() { p.own.Close() })
	}
	order := p.rng.Perm(len(pairs))
	id := func(n int) string { return fmt.Sprintf("pair-%d", n) }
	for _, state := range []string{"complete", "cancelled", "enqueued", ""} {
		for n, pr := range pairs {
			if pr.state != state {
				continue
			}
			rows := makeRows(uint64(n), 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3)
			for i := range rows {
				rows[i].user = id(n) + "-" + rows[i].user
			}
			p.input[id(n)], p.file[id(n)] = rows, writeRows(t, rows)
			if state != "" {
				p.s.run(exitDone, p.args("import", id(n))...)
			}
			if state == "cancelled" {
				p.s.run(exitDone, "cancel", id(n))
			}
		}
		if state == "complete" {
			p.s.run(exitIncomplete, "work", "--drain", "--listen", "off")
		}
	}
	for _, n := range order {
		p.both(pairs[n], id(n))
		p.with(func(q *app.Namespace) { p.whole(q, id(n), false) })
		if t.Failed() {
			return
		}
	}

	// What is left is done, by one process.
	c := p.s.start("work", "--drain", "--listen", "off")
	if <-c.done; c.code != exitIncomplete {
		c.wait(exitDone)
	}
	held := rowsOf(sim.State())
	for n := range pairs {
		p.account(id(n), held)
		for _, r := range p.input[id(n)] {
			delete(held, r)
		}
	}
	if len(held) > 0 {
		t.Errorf("got %d conversations in the app that are in no input", len(held))
	}
	if l := sim.Ledger(); l.BadRequests > 0 || l.MostAtOnce > 1 {
		t.Errorf("got bad requests %+v and %d calls of one user at once, want none and 1", l.BadSamples, l.MostAtOnce)
	}
	for n := range pairs {
		p.with(func(q *app.Namespace) {
			if err := q.Delete(t.Context(), id(n)); err != nil && !errors.Is(err, queue.ErrNoImport) {
				t.Error(err)
			}
			p.whole(q, id(n), true)
			if _, err := q.Import(t.Context(), id(n)); !errors.Is(err, queue.ErrNoImport) {
				t.Errorf("%s: it is still there after a delete: %v", id(n), err)
			}
		})
	}
}

// with looks at the queue beside the commands.
func (p *pairRun) with(look func(*app.Namespace)) {
	q := p.own
	if q == nil {
		q = p.s.open()
		defer q.Close()
	}
	look(q)
}

func (p *pairRun) args(command, id string) []string {
	switch command {
	case "import":
		return []string{"import", "--import-id", id, p.file[id]}
	case "run":
		return []string{"run", "--import-id", id, "--concurrency", "4", p.file[id]}
	}
	return []string{command, id}
}

// fate draws what is to become of a command.
func (p *pairRun) fate(command string) crash {
	points := pairEnds[command].points
	c := crash{point: points[p.rng.IntN(len(points))], pass: 1 + p.rng.IntN(2)*p.rng.IntN(3)}
	switch p.rng.IntN(8) {
	case 0:
		return crash{}
	case 1:
		return crash{after: time.Duration(50+p.rng.IntN(400)) * time.Millisecond}
	case 2, 3:
		c.hold = 500 * time.Millisecond
	}
	return c
}

// both calls two commands at once, each again until it has ended by itself.
func (p *pairRun) both(pr pair, id string) {
	p.t.Helper()
	p.note("%s: %s and %s, %s", id, pr.one, pr.two, pr.state)
	type side struct {
		command string
		fate    crash
		due     time.Time // of a kill
		p       *process
		refused int
		over    bool
	}
	sides := []*side{{command: pr.one, fate: p.fate(pr.one)}, {command: pr.two, fate: p.fate(pr.two)}}
	spawn := func(s *side) {
		if s.fate.point != "" {
			p.s.env["GROUPFERRY_FAILPOINT"] = s.fate.String()
		}
		s.p = p.s.spawn(p.args(s.command, id)...)
		delete(p.s.env, "GROUPFERRY_FAILPOINT")
		s.due = time.Time{}
		if s.fate.point == "" && s.fate.after > 0 {
			s.due = time.Now().Add(s.fate.after)
		}
		p.note("%s starts, to die or be held at %v", s.command, s.fate)
		s.fate = crash{}
	}
	first := p.rng.IntN(2)
	spawn(sides[first])
	time.Sleep(time.Duration(p.rng.IntN(3)*p.rng.IntN(60)) * time.Millisecond) // a head start, or none
	spawn(sides[1-first])
	await(p.t, "the end of both", func() bool {
		for i, s := range sides {
			if s.over {
				continue
			}
			if !s.due.IsZero() && time.Now().After(s.due) {
				s.due = time.Time{}
				s.p.cmd.Process.Kill()
			}
			if !s.p.ended() {
				continue
			}
			code, said := s.p.wait(), s.p.stderr.String()
			p.note("%s ends with %d", s.command, code)
			end := pairEnds[s.command]
			switch {
			case code < 0:
				p.kills++
				spawn(s)
			case slices.Contains(end.codes, code):
				s.over = true
			case code == exitFailed && slices.ContainsFunc(end.refusals, func(text string) bool { return strings.Contains(said, text) }):
				// It came too early, perhaps: while the other is under way it is called again, a few times.
				s.refused++
				if s.over = sides[1-i].over || sides[1-i].command == s.command || s.refused > 5; !s.over {
					spawn(s)
				}
			default:
				p.t.Fatalf("%s: %s ended with exit code %d\n%s\n%s", id, s.command, code, &s.p.stdout, said)
			}
		}
		return sides[0].over && sides[1].over
	})
}

// whole checks that an import is in one of the states in which a command may leave it. Clean says that nothing at all may
// be left of one that is deleted: before that, who was killed just after its end message may have left that.
func (p *pairRun) whole(q *app.Namespace, id string, clean bool) {
	t := p.t
	t.Helper()
	onJobs, err := q.Conn.StreamState(t.Context(), q.Conn.Namespace()+"-jobs", q.Conn.Subject("*", id))
	if err != nil {
		t.Fatal(err)
	}
	onResults, err := q.Conn.StreamState(t.Context(), q.Conn.Namespace()+"-results", q.Conn.Subject("results", id, "*"))
	if err != nil {
		t.Fatal(err)
	}
	results := int64(0)
	for subject, n := range onResults.Subjects {
		if last := subject[strings.LastIndexByte(subject, '.')+1:]; last != "state" && last != "end" {
			results += int64(n)
		}
	}
	i, err := q.Import(t.Context(), id)
	switch {
	case errors.Is(err, queue.ErrNoImport):
		if !clean {
			delete(onResults.Subjects, q.Conn.Subject("results", id, "end"))
		}
		if len(onJobs.Subjects)+len(onResults.Subjects) > 0 {
			t.Errorf("%s is deleted: got %v and %v left of it, want nothing", id, onJobs.Subjects, onResults.Subjects)
		}
	case err != nil:
		t.Fatal(err)
	case i.State == queue.Complete, i.State == queue.Cancelled:
		if i.State == queue.Cancelled { // what was dropped stays
			delete(onJobs.Subjects, q.Conn.Subject("jobs", id))
		}
		if len(onJobs.Subjects) > 0 || results != i.Counts.Results {
			t.Errorf("%s is %s: got %v on the queue and %d results, want nothing and %d",
				id, i.State, onJobs.Subjects, results, i.Counts.Results)
		}
	case i.State == queue.Running:
		want := i.Jobs
		if i.Generation > 0 {
			want = i.Retried
		}
		if got := int64(onJobs.Subjects[q.Conn.Subject("jobs", id)]); got != want || want == 0 || len(onJobs.Subjects) != 2 {
			t.Errorf("%s is running: got %v on the queue, want %d jobs and a checkpoint", id, onJobs.Subjects, want)
		}
	default:
		t.Errorf("%s: got state %s after commands that ended by themselves", id, i.State)
	}
}

// account checks an import against its input and the app when nothing is under way any more.
func (p *pairRun) account(id string, held map[row]bool) {
	t := p.t
	t.Helper()
	var s app.ImportStatus
	gone := false
	p.with(func(q *app.Namespace) {
		var err error
		s, err = q.ImportStatus(t.Context(), id)
		if gone = errors.Is(err, queue.ErrNoImport); err != nil && !gone {
			t.Fatalf("%s: %v", id, err)
		}
		p.whole(q, id, false)
	})
	if gone {
		return
	}
	if err := s.CheckSums(); err != nil {
		t.Errorf("%s: %v", id, err)
	}
	input := map[row]bool{}
	for _, r := range p.input[id] {
		input[r] = true
	}
	results := p.s.results(id)
	failed := 0
	for r, line := range results {
		if line.Code != "" {
			failed++
		}
		if line.Code == queue.CodeCrashed { // a leader was killed three times, and this may have been in flight
			continue
		}
		if !input[r] || (line.Code == "") != held[r] || (line.Code == "") != (r.item.ID != pairFailing) {
			t.Errorf("%s: got result %+v; in the input: %t, in the app: %t", id, line, input[r], held[r])
		}
	}
	c := s.Conversations
	if int64(len(results)) != c.Done+c.Failed || int64(failed) != c.Failed {
		t.Errorf("%s: got %d results, %d of them failed; status says %+v", id, len(results), failed, c)
	}
	switch {
	case s.State == string(queue.Complete) && len(results) == len(input):
	case s.State == string(queue.Cancelled):
	default:
		t.Errorf("%s: got state %s with results of %d of %d conversations", id, s.State, len(results), len(input))
	}
}

// A job that kills the process whenever it is taken is failed after three crashes, with a code of its own. All else is
// done, and it can be retried.
func TestCrashJob(t *testing.T) {
	longtest.Only(t)
	t.Parallel()
	rows := makeRows(3, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2)
	const killer = "killer"
	deadly := 0
	var harmless []row
	for i := range rows {
		if rows[i].group == names[7] {
			rows[i].user = killer
			deadly++
		} else {
			harmless = append(harmless, rows[i])
		}
	}
	sim, url := startSim(t, chatsim.Config{Existing: chatsim.Replace})
	s := newShell(t, url)
	s.program = withFailpoints(t)
	s.env["GROUPFERRY_TIMEOUT"] = "3s"
	run := []string{"run", "--import-id", "deadly", "--concurrency", "4", writeRows(t, rows)}
	s.env["GROUPFERRY_FAILPOINT"] = "job-" + killer
	kills := 0
	p := s.spawn(run...)
	for ; p.wait() < 0; p = s.spawn(run...) {
		if kills++; kills > 10 {
			t.Fatalf("killed %d times, and still not done\n%s", kills, &p.stderr)
		}
	}
	delete(s.env, "GROUPFERRY_FAILPOINT")
	if code := p.wait(); code != exitIncomplete || kills != 3 {
		t.Fatalf("got exit code %d after %d kills, want %d after 3\n%s\n%s", code, kills, exitIncomplete, &p.stdout, &p.stderr)
	}
	checkState(t, sim, stateOf(harmless))
	failed := 0
	for r, line := range s.results("deadly") {
		want := ""
		if r.user == killer {
			want = queue.CodeCrashed
			failed++
		}
		if line.Code != want {
			t.Errorf("got code %q for %+v, want %q", line.Code, r, want)
		}
	}
	if failed != deadly || deadly == 0 {
		t.Errorf("got %d conversations failed, want %d", failed, deadly)
	}
	s.run(exitDone, "retry", "deadly")
	s.run(exitDone, run...)
	checkState(t, sim, stateOf(rows))
}

// An import is cancelled and deleted while the process that runs it is frozen: it ends when it thaws.
func TestCrashFrozenRun(t *testing.T) {
	longtest.Only(t)
	t.Parallel()
	sim, url := startSim(t, chatsim.Config{})
	nats := startNATS(t)
	s := newShell(t, url)
	s.env["NATS_URL"] = "nats://" + nats.client
	s.env["GROUPFERRY_RATE"] = "10"
	rows := makeRows(1, slices.Repeat([]int{1}, 200)...)
	for i := range rows {
		rows[i].user = fmt.Sprintf("user-%d", i) // so that few jobs are in flight, and wait for their turn
	}
	p := s.spawn("run", "--import-id", "gone", writeRows(t, rows))
	await(t, "some calls", func() bool { return created(sim) >= 5 })
	freeze(t, p.cmd)
	s.run(exitDone, "cancel", "gone")
	s.run(exitDone, "delete", "gone")
	thaw(t, p.cmd)
	if code := p.wait(); code != exitFailed || !strings.Contains(p.stderr.String(), "no such import") {
		t.Errorf("got exit code %d, want %d and that there is no such import\n%s", code, exitFailed, &p.stderr)
	}
}

// dynamicPoints are the names of failpoints that are put together where they stand in the source.
var dynamicPoints = map[string][]string{
	// Of records in other states nothing but a pause is changed.
	`"record-" + string(i.State)`: {"record-running", "record-complete", "record-cancelled", "record-retrying", "record-deleting"},
	`name`:                        {"enqueue", "retry"},
	`"job-" + j.FromAccount`:      nil, // see TestCrashJob
}

// elsewherePoints are failpoints that no crash run comes by.
var elsewherePoints = append([]string{
	// Results at the end of the stream without a state: the server leaves that behind only if its disk is full, killed in
	// a group, and full still when it starts. TestTornGroup of package queue makes such an end by hand.
	"torn-before",

	// Of a trial: TestTrialKilled comes by them.
	"trial-recorded", "trial-call", "trial-known", "trial-clean", "trial-end",

	// Of the nights of a sync: TestNightsKilled of package queue comes by them.
	"note-before", "note-after", "fence-before", "fence-after",
}, around("sync", "snapshot-chunk", "snapshot", "snapshot-delete", "lock")...)

// Every failpoint in the source is in a step of the crash matrix, or said to be elsewhere.
func TestCrashPoints(t *testing.T) {
	matrix := map[string]bool{}
	for _, step := range matrixSteps {
		for _, point := range step.points {
			matrix[point] = true
		}
	}
	call := regexp.MustCompile(`\b(?:Failpoint|FailInside)\(((?:[^()]|\([^()]*\))+)\)`)
	found := map[string]bool{}
	for _, dir := range []string{"internal", "worker", "cmd"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			source, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(source)) {
				if code := strings.TrimSpace(line); strings.HasPrefix(code, "//") || strings.HasPrefix(code, "func ") {
					continue
				}
				for _, m := range call.FindAllStringSubmatch(line, -1) {
					name, suffix := m[1], ""
					if i := strings.LastIndex(name, ` + "-`); i > 0 {
						name, suffix = name[:i], strings.Trim(name[i+3:], `"`)
					}
					if all, ok := dynamicPoints[name]; ok {
						for _, point := range all {
							found[point+suffix] = true
						}
						continue
					}
					if name != m[1] || !strings.HasPrefix(name, `"`) {
						t.Errorf("%s: what can the name of %s be?", path, m[0])
					}
					found[strings.Trim(name, `"`)] = true
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for point := range found {
		if !matrix[point] && !slices.Contains(elsewherePoints, point) {
			t.Errorf("failpoint %s is in no step of the crash matrix", point)
		}
		delete(matrix, point)
	}
	for point := range matrix {
		t.Errorf("the crash matrix has failpoint %s, which is not in the source", point)
	}
	if len(found) < 50 {
		t.Errorf("found %d failpoints in the source, want more", len(found))
	}
}
