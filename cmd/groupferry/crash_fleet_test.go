package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"groupferry/internal/app"
	"groupferry/internal/broker"
	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
	"groupferry/internal/longtest"
	"groupferry/internal/queue"
)

// A crashRun takes an import in a fleet through all its steps, on a NATS server or a cluster of its own: two imports at
// once, three workers, two retries at once, and another import that is cancelled while they work. Processes are killed
// at failpoints and at random moments, held while somebody else continues, or stopped as a service is; servers are
// killed too.
// Killed and stopped processes are started again. In the end everything has to be accounted for.
type crashRun struct {
	t     *testing.T
	s     *shell
	sim   *chatsim.Sim
	nodes []*natsProcess
	q     *app.Namespace
	rng   *rand.Rand

	members   []*member
	disasters int         // that are to befall workers yet
	natsDies  []time.Time // when a server is to be killed

	kills, natsKills int
	log              strings.Builder // what happened, in order
	start            time.Time
}

// A member is a process of a crash run, and what is to become of it.
type member struct {
	name  string
	p     *process
	args  []string
	fate  crash
	stops bool // in the way of a service, rather than killed
	at    time.Time
}

// hold is long enough that another process leads meanwhile.
const hold = 6 * time.Second

var (
	fleetWork = slices.Concat(around("lease"), []string{"lead", "grant", "fetch-after"},
		around("marker", "group", "record-complete", "end", "end-results", "drop"))
	fleetHolds = []string{"lease-before", "lease-after", "lead", "grant", "fetch-after", "marker-before", "marker-after",
		"group-before", "group-after", "record-complete-before", "record-complete-after", "end-before", "end-after",
		"end-results-before", "drop-before", "drop-after"}
	fleetImport = around("begin", "start", "enqueue", "record-running")
	fleetRetry  = around("record-retrying", "start", "retry", "record-running")
	fleetCancel = around("record-cancelled", "end", "end-results", "drop")
)

// TestCrashFleet is the crash matrix of a fleet; -matrix N adds a quarter of N runs.
func TestCrashFleet(t *testing.T) {
	crashFleets(t, 2+*matrixRuns/4, func(t *testing.T) []*natsProcess { return []*natsProcess{startNATS(t)} })
}

// TestCrashCluster is the same on a cluster of three with three copies of each stream, whose servers are killed one after
// the other, or while another one is not back yet; -matrix N adds an eighth of N runs.
func TestCrashCluster(t *testing.T) {
	crashFleets(t, 1+*matrixRuns/8, func(t *testing.T) []*natsProcess { return startCluster(t) })
}

func crashFleets(t *testing.T, runs int, startNodes func(*testing.T) []*natsProcess) {
	longtest.Only(t)
	t.Parallel()
	binary := withFailpoints(t)
	if _, err := natsServer(); err != nil {
		t.Fatal(err)
	}
	for n := range runs {
		seed := nthSeed(n)
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			q := &crashRun{t: t, rng: rand.New(rand.NewPCG(seed, 8)), start: time.Now()}
			t.Cleanup(func() {
				name, _, _ := strings.Cut(t.Name(), "/")
				t.Logf("to repeat it: GROUPFERRY_LONG_TESTS=1 go test ./cmd/groupferry -run %s -matrix-seed %d\n%d kills, %d of servers\n%s",
					name, seed, q.kills, q.natsKills, &q.log)
			})
			q.nodes = startNodes(t)
			q.run(binary)
		})
	}
}

func (q *crashRun) note(format string, v ...any) {
	fmt.Fprintf(&q.log, "%6.2f "+format+"\n", append([]any{time.Since(q.start).Seconds()}, v...)...)
}

func (q *crashRun) run(binary string) {
	t := q.t
	const (
		failing     = "friend-1"
		callTimeout = 3 * time.Second
	)
	slots := []string{"4", "64"}[q.rng.IntN(2)]
	var sizes []int
	for i := range 120 {
		sizes = append(sizes, 1+i%4)
	}
	rows := makeRows(q.rng.Uint64(), append(sizes, 230)...)
	good := slices.DeleteFunc(slices.Clone(rows), func(r row) bool { return r.item.ID == failing })
	more := makeRows(q.rng.Uint64(), sizes...)
	for i := range more {
		more[i].user = "other-" + more[i].user
	}

	existing := []chatsim.Existing{chatsim.Append, chatsim.Replace, chatsim.Refuse}[q.rng.IntN(3)]
	sim, url := startSim(t, chatsim.Config{
		Existing: existing, Latency: 20 * time.Millisecond, FailIDs: map[string]int{failing: chat.CodeUserNotImported},
	})
	q.sim, q.s = sim, newShell(t, url)
	late := feelPulse(t)
	q.s.program = binary
	var urls []string
	for _, n := range q.nodes {
		urls = append(urls, "nats://"+n.client)
	}
	q.s.env["NATS_URL"] = strings.Join(urls, ",")
	q.s.env["GROUPFERRY_REPLICAS"] = fmt.Sprint(len(q.nodes))
	q.s.env["GROUPFERRY_TIMEOUT"] = callTimeout.String()
	q.s.env["GROUPFERRY_RATE"] = "100"
	at := openStore(t, broker.Config{URL: q.s.env["NATS_URL"], Replicas: len(q.nodes)})
	t.Cleanup(func() { at.Close() })
	q.q = at

	// Two imports at once: each job is on the queue once.
	file := writeRows(t, rows)
	q.troubleNATS(time.Second)
	q.both(fleetImport, nil, "import", "--import-id", "first", file)
	q.awaitNodes()
	if pending, want := pendingJobs(t, at, "first"), int64(len(sizes)+1); pending != want {
		t.Fatalf("import: got %d jobs on the queue, want %d", pending, want)
	}

	// Workers: everything but what fails is in its group, and what fails is in a result.
	q.disasters = 5
	q.troubleNATS(4 * time.Second)
	for i := range 3 {
		q.add(fmt.Sprintf("worker %d", i), "work", "--listen", "off", "--concurrency", slots)
	}
	q.awaitComplete("first")
	q.redoCrashed("first")
	q.check("work", good, len(rows)-len(good))

	// Two retries at once: what failed is done.
	if err := sim.Configure(func(c *chatsim.Config) { c.FailIDs = nil }); err != nil {
		t.Fatal(err)
	}
	q.disasters = 3
	q.troubleNATS(3 * time.Second)
	q.both(fleetRetry, []string{"not finished"}, "retry", "first")
	q.awaitComplete("first")
	q.awaitLate()
	q.redoCrashed("first")
	q.check("retry", rows, 0)

	// An import is cancelled while it is worked on, slowly.
	q.await("a slower rate", func() bool { return at.SetRate(t.Context(), 20) == nil })
	q.both(nil, nil, "import", "--import-id", "other", writeRows(t, more))
	q.await("some results", func() bool {
		s, err := at.ImportStatus(t.Context(), "other")
		return err == nil && s.Jobs.Done >= 5
	})
	q.disasters = 1
	q.both(fleetCancel, []string{"it is complete already"}, "cancel", "other") // on a slow machine
	q.awaitNodes()
	if pending := pendingJobs(t, at, "other"); pending != 0 {
		t.Errorf("cancel: got %d jobs on the queue, want none", pending)
	}
	for _, m := range q.members { // what is in flight ends
		m.p.cmd.Process.Signal(os.Interrupt)
	}
	for _, m := range q.members {
		switch code := m.p.wait(); {
		case code == exitDone, code == exitInterrupted:
		case code < 0 && m.fate != (crash{}):
		default:
			t.Errorf("%s: got exit code %d, want %d\n%s", m.name, code, exitDone, &m.p.stderr)
		}
	}
	// What has a result is in the app; a worker that was killed may have done more, but nothing else.
	held := rowsOf(sim.State())
	for r, line := range q.s.results("other") {
		if line.Code != "" || !held[r] {
			t.Errorf("cancel: got result %+v, and in the app: %t; want it done", line, held[r])
		}
	}
	for _, r := range slices.Concat(rows, more) {
		delete(held, r)
	}
	if len(held) > 0 {
		t.Errorf("got %d conversations in the app that are in no input", len(held))
	}
	l := sim.Ledger()
	if l.BadRequests > 0 {
		t.Errorf("got bad requests %+v, want none", l.BadSamples)
	}
	// The simulator continues a call whose caller has timed out. On a slow machine that happens.
	if most := late(); l.MostAtOnce > 1 {
		report := t.Errorf
		if most >= callTimeout/4 {
			report = t.Logf
		}
		report("got %d calls of one user at once, want 1; woken %v late at most", l.MostAtOnce, most)
	}
}

// redoCrashed retries what failed because it may have been in flight when three leaders in a row were killed.
func (q *crashRun) redoCrashed(id string) {
	q.t.Helper()
	for {
		q.awaitNodes()
		n := 0
		for _, line := range q.s.results(id, "--failed") {
			if line.Code == queue.CodeCrashed {
				n++
			}
		}
		if n == 0 {
			return
		}
		q.note("%d conversations are suspected of three crashes", n)
		q.both(nil, []string{"not finished"}, "retry", id, "--code", queue.CodeCrashed)
		q.awaitComplete(id)
	}
}

// awaitNodes waits until every server is up and has caught up, and the streams have leaders again.
func (q *crashRun) awaitNodes() {
	q.t.Helper()
	for _, n := range q.nodes {
		n.ready()
	}
	await(q.t, "the streams", func() bool {
		_, err := q.q.Progress(q.t.Context(), "first")
		return !errors.Is(err, broker.ErrUnreachable)
	})
}

// check looks at the app, the results and the queue.
func (q *crashRun) check(after string, inApp []row, failed int) {
	q.t.Helper()
	q.awaitNodes()
	checkState(q.t, q.sim, stateOf(inApp))
	s, err := q.q.ImportStatus(q.t.Context(), "first")
	if err != nil {
		q.t.Fatal(err)
	}
	if err := s.CheckSums(); err != nil {
		q.t.Errorf("%s: %v", after, err)
	}
	if got := int(s.Conversations.Failed); got != failed || s.Conversations.Pending != 0 || s.Jobs.Pending != 0 {
		q.t.Errorf("%s: got %+v and %+v, want %d conversations failed and nothing pending",
			after, s.Conversations, s.Jobs, failed)
	}
	if got := len(q.s.results("first")); int64(got) != s.Conversations.Total {
		q.t.Errorf("%s: got results of %d conversations, want %d", after, got, s.Conversations.Total)
	}
	if got := len(q.s.results("first", "--failed")); got != failed {
		q.t.Errorf("%s: got failed results of %d conversations, want %d", after, got, failed)
	}
	if pending := pendingJobs(q.t, q.q, "first"); pending != 0 {
		q.t.Errorf("%s: got %d jobs on the queue, want none", after, pending)
	}
}

// troubleNATS has a server killed within some time, or not; of a cluster, up to three.
func (q *crashRun) troubleNATS(within time.Duration) {
	for range q.rng.IntN(len(q.nodes) + 1) {
		q.natsDies = append(q.natsDies, time.Now().Add(time.Duration(q.rng.Int64N(int64(within)))))
	}
}

// add starts a worker, with the next disaster for it if there is one left.
func (q *crashRun) add(name string, args ...string) {
	q.t.Helper()
	m := &member{name: name, args: args}
	q.members = append(q.members, m)
	q.restart(m)
}

func (q *crashRun) restart(m *member) {
	q.t.Helper()
	m.fate, m.stops, m.at = crash{}, false, time.Time{}
	if q.disasters > 0 {
		q.disasters--
		switch q.rng.IntN(10) {
		case 0:
			m.stops = true
			m.at = time.Now().Add(time.Duration(q.rng.IntN(4000)) * time.Millisecond)
		case 1, 2:
			m.fate.after = time.Duration(q.rng.IntN(4000)) * time.Millisecond
			m.at = time.Now().Add(m.fate.after)
		case 3, 4, 5:
			m.fate = crash{point: fleetHolds[q.rng.IntN(len(fleetHolds))], pass: 1 + q.rng.IntN(6), hold: hold}
			if q.rng.IntN(3) == 0 { // so long that a retry may be over
				m.fate.hold *= 4
			}
		default:
			m.fate = crash{point: fleetWork[q.rng.IntN(len(fleetWork))], pass: 1 + q.rng.IntN(10)}
		}
	}
	q.spawn(m)
}

func (q *crashRun) spawn(m *member) {
	q.t.Helper()
	if m.fate.point != "" {
		q.s.env["GROUPFERRY_FAILPOINT"] = m.fate.String()
	}
	m.p = q.s.spawn(m.args...)
	delete(q.s.env, "GROUPFERRY_FAILPOINT")
	if m.stops {
		q.note("%s starts, to be stopped", m.name)
	} else {
		q.note("%s starts, to die or be held at %v", m.name, m.fate)
	}
}

// both calls a command twice at once, each again until it has ended by itself. One of them is killed and one is held,
// if there are points for that. A refusal with one of the texts is an end as well.
func (q *crashRun) both(points, refusals []string, args ...string) {
	q.t.Helper()
	one, two := &member{name: args[0] + " 1", args: args}, &member{name: args[0] + " 2", args: args}
	if len(points) > 0 {
		pass := func() int { return 1 + q.rng.IntN(2)*q.rng.IntN(4) } // some are passed once
		one.fate = crash{point: points[q.rng.IntN(len(points))], pass: pass()}
		two.fate = crash{point: points[q.rng.IntN(len(points))], pass: pass(), hold: time.Second}
	}
	running := []*member{one, two}
	q.spawn(one)
	q.spawn(two)
	q.await("the end of "+strings.Join(args[:2], " "), func() bool {
		running = slices.DeleteFunc(running, func(m *member) bool {
			if !m.p.ended() {
				return false
			}
			code := m.p.wait()
			q.note("%s ends with %d", m.name, code)
			refused := slices.ContainsFunc(refusals, func(text string) bool {
				return strings.Contains(m.p.stderr.String(), text)
			})
			switch {
			case code == exitDone, code == exitFailed && refused:
				return true
			case code < 0:
				q.kills++
			case code != exitUnreachable || q.natsKills == 0:
				q.t.Fatalf("%s: got exit code %d, want 0\n%s", m.name, code, &m.p.stderr)
			}
			m.fate = crash{}
			q.spawn(m)
			return false
		})
		return len(running) == 0
	})
}

// tend does what is due.
func (q *crashRun) tend() {
	q.t.Helper()
	now := time.Now()
	q.natsDies = slices.DeleteFunc(q.natsDies, func(at time.Time) bool {
		if now.Before(at) {
			return false
		}
		n := q.nodes[q.rng.IntN(len(q.nodes))]
		n.kill()
		q.natsKills++
		q.note("server %s is killed", n.name)
		n.start()
		return true
	})
	for _, m := range q.members {
		if !m.at.IsZero() && now.After(m.at) && !m.p.ended() {
			m.at = time.Time{}
			if m.stops {
				m.p.cmd.Process.Signal(os.Interrupt)
			} else {
				m.p.cmd.Process.Kill()
			}
		}
		if !m.p.ended() {
			continue
		}
		code := m.p.wait()
		q.note("%s ends with %d", m.name, code)
		switch {
		case code < 0:
			q.kills++
		case m.stops && (code == exitDone || code == exitInterrupted): // the latter before it had begun to work
		case code == exitUnreachable && q.natsKills > 0:
		default:
			q.t.Fatalf("%s: got exit code %d\n%s", m.name, code, &m.p.stderr)
		}
		q.restart(m)
	}
}

func (q *crashRun) await(what string, so func() bool) {
	q.t.Helper()
	q.note("waiting for %s", what)
	for end := time.Now().Add(fleetPatience); !so(); q.tend() {
		if time.Now().After(end) {
			var said strings.Builder
			for _, m := range q.members {
				fmt.Fprintf(&said, "%s:\n%s\n", m.name, &m.p.stderr)
			}
			q.t.Fatalf("waited %v in vain for: %s\n%s", fleetPatience, what, &said)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// awaitLate waits for those who are held, and would do now what they should have done before.
func (q *crashRun) awaitLate() {
	q.t.Helper()
	q.await("those who are held", func() bool {
		return !slices.ContainsFunc(q.members, func(m *member) bool {
			said := m.p.stderr.String()
			return strings.Count(said, "failpoint: held at") > strings.Count(said, "failpoint: on from")
		})
	})
}

func (q *crashRun) awaitComplete(id string) {
	q.t.Helper()
	q.await(id+" to be complete", func() bool {
		// The results are counted as they come, and those that take the place of counted ones have to say so.
		s, err := q.q.ImportStatus(q.t.Context(), id)
		return err == nil && s.State == string(queue.Complete)
	})
}
