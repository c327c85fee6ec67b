package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"groupferry/internal/app"
	"groupferry/internal/broker"
	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
	"groupferry/internal/job"
	"groupferry/internal/longtest"
	"groupferry/internal/queue"
)

// The tests of this file run a fleet as people do: workers and the NATS server are processes of their own, and only the
// simulator is in this one, so that its ledger can be asked.
//
//	worker ──────► door ──► simulator: its ledger counts what arrived
//	   │  └ cable? └ a listener that can be shut, and can hold what comes
//	   ▼
//	nats-server
//
// A test asserts what always has to be so: never over the limit, no call throttled, everything done in the end. How fast it
// went and how long the fleet stood still is logged (-v), for this depends on the machine.

var long = flag.Bool("long", false, "fleet tests: outages, pauses and imports of a length that people know; with -timeout 30m")

// either gives what the flag -long asks for.
func either[T any](short, whenLong T) T {
	if *long {
		return whenLong
	}
	return short
}

// mostPer100ms is what the API has to take at once at most, of each command, where nothing on the way stood still: what
// stood still arrives together. smooth is how late this process may be woken for that to be asked of a noisy machine.
const (
	mostPer100ms = 40
	smooth       = 20 * time.Millisecond
)

// fleetPatience bounds every wait of these tests.
const fleetPatience = 4 * time.Minute

// A gate holds whoever comes while it is shut.
type gate struct {
	mu    sync.Mutex
	opens chan struct{} // nil while it is open
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.opens == nil {
		g.opens = make(chan struct{})
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.opens != nil {
		close(g.opens)
		g.opens = nil
	}
}

// pass waits until the gate is open, and tells whether it was shut.
func (g *gate) pass() (held bool) {
	g.mu.Lock()
	opens := g.opens
	g.mu.Unlock()
	if opens != nil {
		<-opens
	}
	return opens != nil
}

// A fleet is what a test has of workers, their queue and the API that they call.
type fleet struct {
	*shell
	t       *testing.T
	sim     *chatsim.Sim
	rate    int
	perUser int // groups of a user
	readers int // beside the leader: each proves its credentials with a call for the same user, the admin
	nats    *natsProcess
	queue   *app.Namespace
	front   *door // of workers that are given no other

	workers []*process
	rows    []row
	jobs    int // that were enqueued, one for each group
	imports []string

	late func() time.Duration // see feelPulse

	mu       sync.Mutex
	arrivals []arrival
}

// An arrival is a call that came to the simulator.
type arrival struct {
	at      time.Time
	command chat.Command
	by      *door
}

// newFleet has all but the workers. They are started with a rate, which cfg enforces unless it has one of its own.
func newFleet(t *testing.T, rate int, cfg chatsim.Config) *fleet {
	t.Helper()
	longtest.Only(t)
	return newFleetOn(t, rate, cfg, startNATS(t))
}

// newFleetOn has its queue on one server, or on a cluster with as many copies as there are nodes.
func newFleetOn(t *testing.T, rate int, cfg chatsim.Config, nodes ...*natsProcess) *fleet {
	t.Helper()
	if cfg.Rate == 0 {
		cfg.Rate = rate
	}
	cfg.SecretKey = testKey
	f := &fleet{t: t, rate: rate, perUser: 5, sim: chatsim.New(cfg), nats: nodes[0]}
	t.Cleanup(f.sim.Close)
	f.front = f.door()
	f.shell = newShell(t, f.front.url())
	f.env["GROUPFERRY_RATE"] = strconv.Itoa(rate)
	var urls []string
	for _, n := range nodes {
		urls = append(urls, "nats://"+n.client)
	}
	f.env["NATS_URL"] = strings.Join(urls, ",")
	f.env["GROUPFERRY_REPLICAS"] = strconv.Itoa(len(nodes))
	f.queue = openStore(t, broker.Config{URL: f.env["NATS_URL"], Replicas: len(nodes)})
	t.Cleanup(func() { f.queue.Close() })
	f.late = feelPulse(t)
	return f
}

// feelPulse notes, until the test ends, how late this process is woken, and gives the most so far.
func feelPulse(t testing.TB) (late func() time.Duration) {
	var most atomic.Int64
	done := make(chan struct{})
	var feeling sync.WaitGroup
	feeling.Go(func() {
		const beat = 5 * time.Millisecond
		tick := time.NewTicker(beat)
		defer tick.Stop()
		for last := time.Now(); ; {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			now := time.Now()
			most.Store(max(most.Load(), int64(now.Sub(last)-beat)))
			last = now
		}
	})
	t.Cleanup(func() {
		close(done)
		feeling.Wait()
	})
	return func() time.Duration { return time.Duration(most.Load()) }
}

// A door is a way to the simulator. It can be closed, so that nobody listens there, and its gate holds calls that were
// sent and have not arrived.
type door struct {
	gate
	fleet   *fleet
	address string
	server  *http.Server
	serving sync.WaitGroup
	waiting atomic.Int64 // at the gate
}

func (f *fleet) door() *door {
	f.t.Helper()
	d := &door{fleet: f, address: "127.0.0.1:0"}
	d.listen()
	f.t.Cleanup(func() {
		d.gate.open()
		d.close()
	})
	return d
}

func (d *door) url() string { return "http://" + d.address }

func (d *door) listen() {
	d.fleet.t.Helper()
	l, err := net.Listen("tcp", d.address)
	if err != nil {
		d.fleet.t.Fatal(err)
	}
	d.address = l.Addr().String()
	d.server = &http.Server{Handler: d}
	d.serving.Go(func() { d.server.Serve(l) })
}

func (d *door) close() {
	d.server.Close()
	d.serving.Wait()
}

func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.waiting.Add(1)
	d.pass()
	d.waiting.Add(-1)
	f := d.fleet
	f.mu.Lock()
	f.arrivals = append(f.arrivals, arrival{time.Now(), chat.Command(r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]), d})
	f.mu.Unlock()
	f.sim.ServeHTTP(w, r)
}

// arrived gives the times at which calls arrived after some moment, in order: of any command and by any door, unless a
// command or a door is given.
func (f *fleet) arrived(after time.Time, command chat.Command, by *door) []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	var at []time.Time
	for _, a := range f.arrivals {
		if a.at.After(after) && (command == "" || a.command == command) && (by == nil || a.by == by) {
			at = append(at, a.at)
		}
	}
	slices.SortFunc(at, time.Time.Compare)
	return at
}

// awaitCalls waits until so many creates have arrived after some moment.
// On a machine that is slow enough there are not so many left: then it waits for the last one.
func (f *fleet) awaitCalls(after time.Time, n int, by *door) {
	f.t.Helper()
	f.await(fmt.Sprintf("%d calls", n), func() bool {
		return len(f.arrived(after, chat.CreateContactGroup, by)) >= n ||
			len(f.arrived(time.Time{}, chat.CreateContactGroup, nil)) >= f.jobs
	})
}

func (f *fleet) await(what string, so func() bool) {
	f.t.Helper()
	for end := time.Now().Add(fleetPatience); !so(); {
		if time.Now().After(end) {
			var said strings.Builder
			for i, p := range f.workers {
				fmt.Fprintf(&said, "worker %d:\n%s\n", i, &p.stderr)
			}
			f.t.Fatalf("waited %v in vain for: %s\n%s", fleetPatience, what, &said)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// enqueue puts so many groups of a size on the queue, five of each user unless the test says otherwise.
func (f *fleet) enqueue(id string, groups, size int) {
	f.t.Helper()
	f.jobs += groups
	rows := make([]row, 0, groups*size)
	for i := range groups {
		for k := range size {
			rows = append(rows, row{
				user: fmt.Sprintf("%s-%d", id, i/f.perUser), group: names[i%f.perUser],
				item: chat.Item{Type: chat.OneToOne, ID: fmt.Sprintf("friend-%d", k)},
			})
		}
	}
	f.run(exitDone, "import", "--quiet", "--import-id", id, writeRows(f.t, rows))
	f.rows = append(f.rows, rows...)
	f.imports = append(f.imports, id)
}

// startWorker starts a worker; see awaitWorking.
func (f *fleet) startWorker(args ...string) *process {
	f.t.Helper()
	p := f.spawn(append([]string{"work", "--listen", "127.0.0.1:0"}, args...)...)
	f.workers = append(f.workers, p)
	return p
}

// awaitWorking waits until a worker leads or stands by.
func (f *fleet) awaitWorking(p *process) *process {
	f.t.Helper()
	f.await("a worker", func() bool { return strings.Contains(p.stderr.String(), "msg=working") })
	return p
}

// startWorkers starts so many workers at once.
func (f *fleet) startWorkers(n int, args ...string) {
	f.t.Helper()
	for range n {
		f.startWorker(args...)
	}
	for _, p := range f.workers {
		f.awaitWorking(p)
	}
}

// stopWorkers stops all workers in the way of a service manager.
func (f *fleet) stopWorkers() {
	f.t.Helper()
	for _, p := range f.workers {
		p.cmd.Process.Signal(syscall.SIGTERM)
	}
	for _, p := range f.workers {
		if code := p.wait(); code != exitDone {
			f.t.Errorf("worker: got exit code %d, want %d\n%s", code, exitDone, &p.stderr)
		}
	}
	f.workers = nil
}

// kill is kill -9.
func (f *fleet) kill(p *process) {
	f.t.Helper()
	p.cmd.Process.Kill()
	if code := p.wait(); code >= 0 {
		f.t.Errorf("killed worker: got exit code %d, want a signal\n%s", code, &p.stderr)
	}
	f.workers = slices.DeleteFunc(f.workers, func(other *process) bool { return other == p })
}

var servingAt = regexp.MustCompile(`msg="serving the page, metrics and status" url=(\S+)`)

// samples are the metrics of a worker; none while it does not respond.
func (p *process) samples() map[string]float64 {
	m := servingAt.FindStringSubmatch(p.stderr.String())
	if m == nil {
		return nil
	}
	return scrape(p.t, m[1]+"/metrics")
}

// leader waits until one of the workers given, or of all, leads.
func (f *fleet) leader(among ...*process) (leader *process) {
	f.t.Helper()
	if len(among) == 0 {
		among = f.workers
	}
	f.await("a leader", func() bool {
		i := slices.IndexFunc(among, func(p *process) bool { return p.samples()["groupferry_leader"] == 1 })
		if i >= 0 {
			leader = among[i]
		}
		return i >= 0
	})
	return leader
}

// standby is a worker that does not lead.
func (f *fleet) standby(leader *process) *process {
	f.t.Helper()
	i := slices.IndexFunc(f.workers, func(p *process) bool { return p != leader })
	if i < 0 {
		f.t.Fatal("there is no worker but the leader")
	}
	return f.workers[i]
}

// status is what the queue knows about an import, false while it is out of reach.
func (f *fleet) status(id string) (app.ImportStatus, bool) {
	s, err := f.queue.ImportStatus(f.t.Context(), id)
	return s, err == nil
}

// awaitDone waits until all jobs of some imports, or of all, have a result.
func (f *fleet) awaitDone(ids ...string) {
	f.t.Helper()
	if len(ids) == 0 {
		ids = f.imports
	}
	for _, id := range ids {
		f.await("the end of import "+id, func() bool {
			s, ok := f.status(id)
			return ok && s.Jobs.Pending == 0
		})
	}
}

// checkDone checks that every row is where it belongs.
func (f *fleet) checkDone() {
	f.t.Helper()
	f.awaitDone()
	for _, id := range f.imports {
		if s, ok := f.status(id); !ok || s.Jobs.Done != s.Jobs.Total {
			f.t.Errorf("import %s: got %+v, want all of %d done", id, s.Jobs, s.Jobs.Total)
		}
	}
	checkState(f.t, f.sim, stateOf(f.rows))
}

// checkAttempts checks that nothing but the first attempt was counted for any job.
func (f *fleet) checkAttempts() {
	f.t.Helper()
	for _, id := range f.imports {
		n := 0
		for r, err := range f.queue.Results(f.t.Context(), id) {
			if err != nil {
				f.t.Fatal(err)
			}
			if n++; r.Attempts != 1 || r.Outcome != job.Done {
				f.t.Errorf("import %s: job %s: got %s after %d attempts, want done after 1", id, r.Job, r.Outcome, r.Attempts)
			}
		}
		if s, _ := f.status(id); int64(n) != s.Jobs.Total {
			f.t.Errorf("import %s: got %d results, want %d", id, n, s.Jobs.Total)
		}
	}
}

// checkPace checks that the fleet never was over its limit.
func (f *fleet) checkPace() {
	f.t.Helper()
	l, late := f.sim.Ledger(), f.late()
	for _, command := range chat.Commands() {
		c := l.Commands[command]
		if c.MaxPerSecond > f.rate {
			f.t.Errorf("%s: got %d calls in a second, want at most %d", command, c.MaxPerSecond, f.rate)
		}
		if c.MaxPer100ms > mostPer100ms && late <= smooth {
			f.t.Errorf("%s: got %d calls in 100 ms, want at most %d", command, c.MaxPer100ms, mostPer100ms)
		}
		if c.Throttled != 0 {
			f.t.Errorf("%s: got %d calls throttled, want none", command, c.Throttled)
		}
		if c.Calls > 1 {
			f.t.Logf("%s: %s; woken %v late at most", command, paceText(c), late.Round(time.Millisecond))
		}
	}
	if l.MostAtOnce > 1+f.readers {
		f.t.Errorf("calls for one user at once: got %d, want %d", l.MostAtOnce, 1+f.readers)
	}
	if l.BadRequests > 0 {
		f.t.Errorf("bad requests: got %d, such as %+v", l.BadRequests, l.BadSamples[0])
	}
}

func paceText(c chatsim.Calls) string {
	return fmt.Sprintf("%d calls, %.1f/s; at most %d in a second, %d in 100 ms",
		c.Calls, float64(c.Calls-1)/c.Seconds, c.MaxPerSecond, c.MaxPer100ms)
}

// stoodStill is the longest time without a call after some moment.
func (f *fleet) stoodStill(after time.Time) time.Duration {
	var gap time.Duration
	for _, at := range f.arrived(after, chat.CreateContactGroup, nil) {
		gap, after = max(gap, at.Sub(after)), at
	}
	return gap
}

// mostIn counts the times in the fullest span.
func mostIn(span time.Duration, times []time.Time) int {
	most, first := 0, 0
	for i, at := range times {
		for at.Sub(times[first]) >= span {
			first++
		}
		most = max(most, i-first+1)
	}
	return most
}

func TestMostIn(t *testing.T) {
	start := time.Now()
	var times []time.Time
	for _, ms := range []int{0, 500, 999, 1000, 1400, 1900, 2500} {
		times = append(times, start.Add(time.Duration(ms)*time.Millisecond))
	}
	if got := mostIn(time.Second, times); got != 4 { // 500 to 1400
		t.Errorf("got %d, want 4", got)
	}
	if got := mostIn(time.Second, nil); got != 0 {
		t.Errorf("nothing: got %d, want 0", got)
	}
}

// One, two and four workers keep to the limit of one, near the API and NATS and far from them, and the table says what
// that costs.
func TestFleetPace(t *testing.T) {
	calls := either(400, 6000)
	var table strings.Builder
	fmt.Fprintf(&table, "%8s %10s %10s %8s %6s %10s %16s %11s\n",
		"workers", "API", "NATS", "mean/s", "max/s", "max/100 ms", "NATS msgs a call", "leader CPU")
	for _, test := range []struct {
		workers         int
		latency, toNATS time.Duration // of a call; round trip between workers and NATS
		onlyWhenLong    bool
	}{
		{1, 0, 0, false},
		{2, 5 * time.Millisecond, 0, false},
		{4, 50 * time.Millisecond, 0, false},
		{1, 50 * time.Millisecond, 0, true},
		{4, 0, 0, true},
		{2, 5 * time.Millisecond, 120 * time.Millisecond, false},
		{2, 50 * time.Millisecond, 120 * time.Millisecond, true},
		{2, 5 * time.Millisecond, 400 * time.Millisecond, false},
	} {
		if test.onlyWhenLong && !*long {
			continue
		}
		t.Run(fmt.Sprintf("workers=%d,latency=%v,nats=%v", test.workers, test.latency, test.toNATS), func(t *testing.T) {
			f := newFleet(t, 200, chatsim.Config{Latency: test.latency, Jitter: test.latency / 5})
			var flags []string
			if test.toNATS > 0 {
				far := newPath(t, f.nats.client)
				far.length(test.toNATS)
				flags = []string{"--nats-url", "nats://" + far.address}
			}
			f.startWorkers(test.workers, flags...)
			leader := f.leader()
			f.enqueue("i", calls, 1)
			start, messages, cpu := time.Now(), f.nats.messages(), leader.samples()["process_cpu_seconds_total"]
			f.awaitCalls(time.Time{}, calls, nil)
			messages = f.nats.messages() - messages
			counted := len(f.arrived(start, "", nil)) // some came while the others were enqueued
			cpu = (leader.samples()["process_cpu_seconds_total"] - cpu) / time.Since(start).Seconds()
			f.checkDone()
			f.checkAttempts()
			f.stopWorkers()
			f.checkPace()
			c := f.sim.Ledger().Commands[chat.CreateContactGroup]
			fmt.Fprintf(&table, "%8d %10v %10v %8.1f %6d %10d %16.1f %10.0f%%\n", test.workers, test.latency, test.toNATS,
				float64(c.Calls-1)/c.Seconds, c.MaxPerSecond, c.MaxPer100ms, float64(messages)/float64(counted), 100*cpu)
		})
	}
	t.Logf("%d calls each\n%s", calls, &table)
}

// After a rest the fleet does not make up for it.
func TestFleetIdle(t *testing.T) {
	f := newFleet(t, 200, chatsim.Config{})
	f.startWorkers(2)
	f.enqueue("before", 300, 1)
	f.awaitDone()
	time.Sleep(either(4*time.Second, time.Minute))
	f.enqueue("after", 400, 1)
	f.checkDone()
	f.checkPace()
	f.stopWorkers()
}

// A worker that has worked, and has nothing more to do, costs a Prometheus few series and its host little: half a percent of
// a core, counted in CPU time.
func TestFleetIdleCost(t *testing.T) {
	f := newFleet(t, 200, chatsim.Config{})
	if longtest.Asked() {
		f.program = withFailpoints(t) // a build without the race detector: what counts is CPU time
	}
	f.startWorkers(1)
	f.enqueue("before", 120, 1)
	f.awaitDone()
	leader := f.leader()
	f.await("what NATS keeps", func() bool { _, there := leader.samples()[`groupferry_storage_bytes{stream="results"}`]; return there })
	if got := len(leader.samples()); got >= 200 || got < 100 {
		t.Errorf("series: got %d, want fewer than 200", got)
	}
	if longtest.Asked() {
		const idle = 20 * time.Second
		before := leader.samples()["process_cpu_seconds_total"]
		time.Sleep(idle)
		cpu := leader.samples()["process_cpu_seconds_total"] - before
		if share := cpu / idle.Seconds(); before == 0 || share > .005 {
			t.Errorf("idle: got %.2f %% of a core, want at most 0.5 %%", 100*share)
		}
		t.Logf("idle: %.0f ms of CPU in %v", 1000*cpu, idle)
	}
	f.stopWorkers()
}

// Groups of more than a hundred conversations need two commands, and each has a limit of its own.
func TestFleetTwoCommands(t *testing.T) {
	f := newFleet(t, 200, chatsim.Config{Latency: 10 * time.Millisecond})
	f.startWorkers(2)
	f.enqueue("i", either(400, 4000), 101)
	f.checkDone()
	f.checkAttempts()
	f.checkPace()
	f.stopWorkers()
	// Some more are made until it is known what create does.
	if c := f.sim.Ledger().Commands[chat.UpdateContactGroup]; c.Calls < len(f.rows)/101 {
		t.Errorf("update: got %d calls, want %d at least", c.Calls, len(f.rows)/101)
	}
}

// The tests from here on run side by side, those that take longest first.

// Whoever is killed, the others continue, and never faster for it.
func TestFleetKilled(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 100, chatsim.Config{Latency: 20 * time.Millisecond, Jitter: 10 * time.Millisecond})
	slots := []string{"--concurrency", "16"}
	f.startWorkers(4, slots...)
	f.enqueue("i", 2000, 1)
	f.awaitCalls(time.Time{}, 100, nil)
	disaster := func(what string, strike func()) {
		t.Helper()
		start := time.Now()
		strike()
		f.awaitCalls(time.Now(), 100, nil)
		t.Logf("%s: no call for %v", what, f.stoodStill(start).Round(10*time.Millisecond))
	}
	disaster("a worker killed", func() { f.kill(f.standby(f.leader())) })
	f.startWorkers(2, slots...)
	disaster("the leader killed, and two successors before they could grant", func() {
		for range 3 {
			f.kill(f.leader())
		}
	})
	f.startWorkers(1, slots...)
	disaster("the leader killed", func() { f.kill(f.leader()) })
	f.startWorkers(1, slots...)
	disaster("the leader stopped", func() {
		leader := f.leader()
		leader.cmd.Process.Signal(syscall.SIGTERM)
		if code := leader.wait(); code != exitDone {
			t.Errorf("stopped leader: got exit code %d, want %d\n%s", code, exitDone, &leader.stderr)
		}
		f.workers = slices.DeleteFunc(f.workers, func(p *process) bool { return p == leader })
	})
	disaster("NATS killed for a second", func() {
		f.nats.kill()
		time.Sleep(time.Second)
		f.nats.start()
		f.nats.ready()
	})
	f.checkDone()
	f.checkPace()
	f.stopWorkers()
}

// When a leader is killed while its calls are on their way, its successor knows from the lease how many they may be and
// how long they may take, and does without their permits until then.
func TestFleetTimeouts(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 100, chatsim.Config{})
	side := f.door()
	leader := f.awaitWorking(f.startWorker("--timeout", "12s", "--api-url", side.url()))
	f.leader(leader)
	f.awaitWorking(f.startWorker("--timeout", "4s"))
	f.enqueue("i", 1500, 1)
	f.awaitCalls(time.Time{}, 50, side)

	// Its calls leave it and do not arrive yet.
	side.gate.shut()
	f.await("calls on their way", func() bool { return side.waiting.Load() >= 10 })
	f.kill(leader)
	killed := time.Now()
	f.awaitCalls(killed, 300, f.front) // the successor is at its pace
	t.Logf("the leader killed: no call for %v, %d of its calls on their way", f.stoodStill(killed).Round(10*time.Millisecond),
		side.waiting.Load())
	side.gate.open()
	f.awaitCalls(time.Now(), 100, f.front)
	f.checkDone()
	f.checkPace()
	f.stopWorkers()
}

// A leader that stands still for a while and then continues is one too many.
func TestFleetStopped(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 100, chatsim.Config{Latency: 20 * time.Millisecond, Jitter: 10 * time.Millisecond})
	f.startWorkers(2, "--concurrency", "16")
	f.enqueue("i", 1000, 1)
	f.awaitCalls(time.Time{}, 100, nil)
	leader := f.leader()
	start := time.Now()
	freeze(t, leader.cmd)
	time.Sleep(either(6*time.Second, 20*time.Second))
	thaw(t, leader.cmd)
	f.awaitCalls(time.Now(), 200, nil)
	t.Logf("the leader stopped: no call for %v", f.stoodStill(start).Round(10*time.Millisecond))
	f.checkDone()
	f.checkPace()
	f.stopWorkers()
}

// A leader without NATS makes no call once its right has ended, and stands by when NATS is back.
func TestFleetParted(t *testing.T) {
	t.Parallel()
	const right, timeout = 2 * time.Second, 3 * time.Second // of a leader whose lease is not renewed, and of a call
	f := newFleet(t, 100, chatsim.Config{Latency: 20 * time.Millisecond, Jitter: 10 * time.Millisecond})
	wire, side := newPath(t, f.nats.client), f.door()
	flags := []string{"--concurrency", "16", "--timeout", timeout.String()}
	apart := f.awaitWorking(f.startWorker(append([]string{"--nats-url", "nats://" + wire.address, "--api-url", side.url()}, flags...)...))
	f.leader(apart)
	f.awaitWorking(f.startWorker(flags...))
	f.enqueue("i", 1200, 1)
	f.awaitCalls(time.Time{}, 50, side)
	wire.cut()
	parted := time.Now()
	f.awaitCalls(parted.Add(right+timeout), 50, f.front) // the other one leads
	healed := time.Now()
	wire.heal()
	late := f.arrived(parted, "", side)
	if len(late) > 0 {
		t.Logf("parted: %d calls, the last one after %v", len(late), late[len(late)-1].Sub(parted).Round(time.Millisecond))
	}
	for _, at := range late {
		if d := at.Sub(parted); at.Before(healed) && d > right+timeout {
			t.Errorf("parted: got a call after %v, want none after %v", d, right+timeout)
		}
	}
	t.Logf("parted: no call at all for %v", f.stoodStill(parted).Round(10*time.Millisecond))
	f.checkDone()
	f.checkPace()
	f.stopWorkers()
}

// A leader that is cut off from the API hands over to a standby that can reach it, and all is done while it is cut off.
// When nobody can reach the API, nobody hands over.
func TestFleetCut(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 100, chatsim.Config{Latency: 20 * time.Millisecond})
	paths := map[*process]*path{}
	for range 3 {
		way := newPath(t, f.front.address)
		paths[f.startWorker("--concurrency", "16", "--api-url", "http://"+way.address)] = way
	}
	for _, p := range f.workers {
		f.awaitWorking(p)
	}
	f.enqueue("i", 900, 1)
	f.awaitCalls(time.Time{}, 100, nil)
	leader := f.leader()
	paths[leader].cut()
	cut := time.Now()
	f.awaitCalls(cut.Add(time.Second), 200, nil)
	if log := leader.stderr.String(); strings.Count(log, "the lead was handed over\" host=") != 1 {
		t.Errorf("got log\n%s\nwant one line about the hand-over", log)
	}
	t.Logf("the leader cut off: no call for %v", f.stoodStill(cut).Round(10*time.Millisecond))

	for _, way := range paths {
		way.cut()
	}
	next := f.leader()
	changes := next.samples()["groupferry_leader_changes_total"]
	time.Sleep(either(8*time.Second, time.Minute))
	if got := f.leader(); got != next || got.samples()["groupferry_leader_changes_total"] != changes {
		t.Error("all cut off: the lead changed, want it to stay where it is")
	}
	paths[next].heal() // and the first leader stays cut off
	f.checkDone()
	f.checkPace()
	for _, way := range paths {
		way.heal()
	}
	f.stopWorkers()
}

// An API that takes less than it should is not asked for more, at no job's cost, and is asked for more again later.
func TestFleetThrottled(t *testing.T) {
	t.Parallel()
	const less = 120
	f := newFleet(t, 200, chatsim.Config{Rate: less, Latency: 5 * time.Millisecond})
	f.startWorkers(2)
	f.enqueue("i", either(3000, 20_000), 1)
	every, rises := either(2*time.Second, 5*time.Second), either(150.0, 195.0)
	var seen chatsim.Calls
	var log strings.Builder
	effective := func() float64 {
		return f.leader().samples()[`groupferry_rate_effective_calls_per_second{command="create_contact_group"}`]
	}
	watch := func(until func() bool) {
		for next := time.Now().Add(every); ; next = next.Add(every) {
			f.await("the next sample", func() bool { return time.Now().After(next) })
			c := f.sim.Ledger().Commands[chat.CreateContactGroup]
			n, throttled := c.Calls-seen.Calls, c.Throttled-seen.Throttled
			fmt.Fprintf(&log, "%6.1f calls/s, %4.1f%% throttled, pace %5.1f\n",
				float64(n)/every.Seconds(), 100*float64(throttled)/float64(max(n, 1)), effective())
			seen = c
			if until() {
				return
			}
		}
	}
	watch(func() bool { return seen.Calls >= len(f.rows)/2 })
	fmt.Fprintf(&log, "and %d/s again:\n", f.rate)
	if err := f.sim.Configure(func(c *chatsim.Config) { c.Rate = f.rate }); err != nil {
		t.Fatal(err)
	}
	risen := false
	watch(func() bool {
		risen = risen || effective() >= rises
		s, ok := f.status("i")
		return risen && ok && s.Jobs.Pending == 0
	})
	f.checkDone()
	f.checkAttempts()
	f.stopWorkers()
	c := f.sim.Ledger().Commands[chat.CreateContactGroup]
	t.Logf("%d of %d calls throttled\n%s", c.Throttled, c.Calls, &log)
	if share := float64(c.Throttled) / float64(c.Calls); share >= 0.05 {
		t.Errorf("throttled: got %.1f%% of the calls, want less than 5%%", 100*share)
	}
}

// An API that is away costs time and nothing else.
func TestFleetOutage(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 100, chatsim.Config{Latency: 5 * time.Millisecond})
	f.startWorkers(2)
	f.enqueue("i", 500, 1)
	f.awaitCalls(time.Time{}, 150, nil)
	f.front.close()
	away := time.Now()
	time.Sleep(either(8*time.Second, 10*time.Minute))
	back := time.Now()
	f.front.listen()
	f.awaitCalls(back, 1, nil)
	t.Logf("away for %v, and the first call %v later", back.Sub(away).Round(time.Millisecond),
		f.arrived(back, "", nil)[0].Sub(back).Round(time.Millisecond))
	f.checkDone()
	f.checkAttempts()
	f.checkPace()
	f.stopWorkers()
}

// Workers that are stopped while NATS is away end, and so does a second signal at once; what they had in flight is done by
// the next ones.
func TestFleetStoppedWithoutNATS(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 100, chatsim.Config{Latency: 20 * time.Millisecond})
	f.startWorkers(2)
	f.enqueue("i", 400, 1)
	f.awaitCalls(time.Time{}, 100, nil)
	f.nats.kill()
	start := time.Now()
	f.stopWorkers()
	t.Logf("stopped after %v", time.Since(start).Round(10*time.Millisecond))
	f.nats.start()
	f.nats.ready()
	f.startWorkers(1)
	f.checkDone()
	f.checkPace()
	f.stopWorkers()
}

// standsStill checks that no call arrives from a moment on; it looks for two seconds more.
func (f *fleet) standsStill(from time.Time) {
	f.t.Helper()
	time.Sleep(time.Until(from) + 2*time.Second)
	if late := f.arrived(from, "", nil); len(late) > 0 {
		f.t.Errorf("got %d calls, up to %v later, want none", len(late), late[len(late)-1].Sub(from))
	}
}

// haltOf is what status says about why nothing happens.
func (f *fleet) haltOf() *queue.Halt {
	f.t.Helper()
	var r app.Status
	if err := json.Unmarshal([]byte(f.run(exitDone, "status", "--output", "json").stdout.String()), &r); err != nil {
		f.t.Fatal(err)
	}
	if r.Halt == nil {
		f.t.Fatal("status: got no halt, want one")
	}
	return r.Halt
}

// followed is how soon a command to the fleet is followed by all of it.
const followed = 2 * time.Second

// A pause holds for all workers, those that come later included.
func TestFleetPaused(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 100, chatsim.Config{Latency: 5 * time.Millisecond})
	f.startWorkers(2)
	f.enqueue("i", 500, 1)
	f.awaitCalls(time.Time{}, 100, nil)
	f.run(exitDone, "pause")
	paused := time.Now().Add(followed)
	f.awaitWorking(f.startWorker())
	f.standsStill(paused)
	h := f.haltOf()
	if h.State != queue.Paused || h.By == "" || !strings.HasPrefix(h.Command, "groupferry resume") || h.Since.IsZero() {
		t.Errorf("got %+v, want it paused, by whom, since when, and the command that continues", h)
	}
	text := f.run(exitDone, "status").stdout.String()
	for _, want := range []string{"paused by " + h.By + " since ", "then: groupferry resume"} {
		if !strings.Contains(text, want) {
			t.Errorf("status: got no %q in\n%s", want, text)
		}
	}
	f.run(exitDone, "resume")
	f.checkDone()
	f.checkAttempts()
	f.checkPace()
	f.stopWorkers()
}

// One import is paused and another one cancelled, and the third does not notice.
func TestFleetPauseAndCancel(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 60, chatsim.Config{Latency: 5 * time.Millisecond})
	f.enqueue("paused", 900, 1)
	f.enqueue("cancelled", 900, 1)
	f.enqueue("other", 300, 1)
	f.startWorkers(2, "--concurrency", "8")
	f.await("a result of each", func() bool {
		for _, id := range f.imports {
			if s, ok := f.status(id); !ok || s.Jobs.Done == 0 {
				return false
			}
		}
		return true
	})
	f.run(exitDone, "pause", "paused")
	f.run(exitDone, "cancel", "cancelled")
	f.awaitDone("other")

	if s, _ := f.status("paused"); !s.Paused || s.Jobs.Pending == 0 {
		t.Errorf("paused: got %+v, want it paused with jobs left", s)
	}
	s, _ := f.status("cancelled")
	if s.Jobs.Dropped == 0 || s.Jobs.Done == 0 || s.Jobs.Done+s.Jobs.Dropped != s.Jobs.Total || s.CheckSums() != nil {
		t.Errorf("cancelled: got %+v, want some done and the others dropped", s.Jobs)
	}
	f.standsStill(time.Now().Add(followed))
	f.run(exitDone, "resume", "paused")
	f.awaitDone("paused")

	// What was cancelled is in the app as far as its results say, and all the rest in full.
	var want []row
	done := f.results("cancelled")
	for _, r := range f.rows {
		if _, ok := done[r]; ok || !strings.HasPrefix(r.user, "cancelled-") {
			want = append(want, r)
		}
	}
	checkState(t, f.sim, stateOf(want))
	f.checkPace()
	f.stopWorkers()
}

// A rate that is set while the fleet works holds for all of it, until it is left to the workers again.
func TestFleetRate(t *testing.T) {
	t.Parallel()
	const slower = 50
	f := newFleet(t, 100, chatsim.Config{Latency: 5 * time.Millisecond})
	f.startWorkers(2)
	f.enqueue("i", 3000, 1)
	limit := func() float64 {
		return f.leader().samples()[`groupferry_rate_limit_calls_per_second{command="create_contact_group"}`]
	}
	f.awaitCalls(time.Time{}, 200, nil)
	f.run(exitDone, "rate", strconv.Itoa(slower))
	said := time.Now()
	f.await("the slower rate", func() bool { return limit() == slower })
	slow := time.Now()
	t.Logf("followed after %v", slow.Sub(said).Round(time.Millisecond))
	f.awaitWorking(f.startWorker())
	f.awaitCalls(slow.Add(time.Second), 3*slower, nil)
	most := mostIn(time.Second, f.arrived(slow.Add(time.Second), chat.CreateContactGroup, nil))
	t.Logf("at most %d calls in a second", most)
	if most > slower {
		t.Errorf("slower: got %d calls in a second, want at most %d", most, slower)
	}
	f.run(exitDone, "rate", "0")
	f.await("the rate of the workers", func() bool { return limit() == float64(f.rate) })
	f.checkDone()
	f.checkPace()
	f.stopWorkers()
}

// When no job can succeed, the fleet stops and stays stopped, whoever leaves and joins, until a person has fixed it.
func TestFleetHalted(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 100, chatsim.Config{Latency: 5 * time.Millisecond, Faults: []chatsim.Fault{
		{Command: chat.CreateContactGroup, Kind: "51013", After: 100},
	}})
	f.startWorkers(2)
	f.enqueue("i", 400, 1)
	f.await("the first of these responses", func() bool {
		return f.sim.Ledger().Commands[chat.CreateContactGroup].Faulted > 0
	})
	f.standsStill(time.Now().Add(followed))
	t.Logf("%d calls had the response 51013", f.sim.Ledger().Commands[chat.CreateContactGroup].Faulted)
	f.stopWorkers()
	back := time.Now()
	f.startWorkers(2)
	f.standsStill(back)

	h := f.haltOf()
	if h.State != queue.Halted || h.Code != "51013" || h.By == "" || h.Since.IsZero() || h.Remedy == "" ||
		!strings.HasPrefix(h.Command, "groupferry resume") {
		t.Errorf("got %+v, want it halted for 51013, by whom, since when, what to do, and the command that continues", h)
	}
	text := f.run(exitDone, "status").stdout.String()
	for _, want := range []string{"halted by " + h.By + " since ", "51013", "remedy: " + h.Remedy, "then: " + h.Command} {
		if !strings.Contains(text, want) {
			t.Errorf("status: got no %q in\n%s", want, text)
		}
	}
	if err := f.sim.Configure(func(c *chatsim.Config) { c.Faults = nil }); err != nil {
		t.Fatal(err)
	}
	args, err := shellWords(strings.TrimPrefix(h.Command, "groupferry "))
	if err != nil {
		t.Fatal(err)
	}
	f.run(exitDone, args...)
	f.checkDone()
	f.checkAttempts()
	f.checkPace()
	f.stopWorkers()
}

// A small import does not wait for a large one that came before.
func TestFleetFair(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 60, chatsim.Config{}) // slowly, so that the test is quicker than the fleet on any machine
	f.startWorkers(2)
	f.enqueue("large", 2000, 1)
	f.awaitCalls(time.Time{}, 1, nil)
	f.perUser = 1 // groups of one user wait for each other
	f.enqueue("small", 50, 1)
	before, _ := f.status("large")
	f.awaitDone("small")
	s, ok := f.status("large")
	if !ok || s.Jobs.Pending == 0 {
		t.Errorf("large import when the small one is complete: got %+v, want jobs of it pending", s.Jobs)
	}
	t.Logf("large import when the small one is complete: %d of %d jobs pending, %d when it was enqueued", s.Jobs.Pending, s.Jobs.Total, before.Jobs.Pending)
	f.checkDone()
	f.checkPace()
	f.stopWorkers()
}
