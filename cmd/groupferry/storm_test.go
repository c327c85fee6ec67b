package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
	"groupferry/internal/longtest"
	"groupferry/internal/queue"
)

var (
	stormFaults = flag.Int("storm", 14, "so many faults in TestStorm; 300 take about ten minutes")
	stormSeed   = flag.Uint64("storm-seed", 1, "of TestStorm; 0 takes a random one")
)

const (
	stormRate    = 100
	stormTimeout = 4 * time.Second // of a call
	stormPath    = 40 * time.Millisecond
	maxHeld      = 500 * time.Millisecond // by this process, for the limit to be judged
)

// A storm is a fleet to which things happen, several at a time: whatever happens, the limit is kept, and what was
// enqueued is done in the end.
//
//	worker ──► path ──► nats-server        each path can be cut, in one direction or both
//	   └─────► path ──► simulator          and be longer, or shorter down to 55 % of the shortest that it was
type storm struct {
	*fleet
	nodes   []*natsProcess // one, or a cluster
	rng     *rand.Rand
	workers []*stormWorker
	slowest func() time.Duration // see watchCarrier
	undo    []undo
	faults  int
	log     strings.Builder
	start   time.Time
}

// A stormWorker is a worker with paths and a wall clock of its own.
type stormWorker struct {
	n         int
	p         *process
	nats, api *path
	shortest  time.Duration // that the path to the API ever was
	wall      string        // the file that says by how much the wall clock is off
	frozen    bool
}

// An undo ends a fault.
type undo struct {
	at time.Time
	do func()
}

func TestStorm(t *testing.T) {
	longtest.Only(t)
	t.Parallel()
	storming(t, *stormFaults, func(t *testing.T) []*natsProcess { return []*natsProcess{startNATS(t)} })
}

// TestStormCluster is a storm over three servers, of which two can be gone: then there is no quorum.
func TestStormCluster(t *testing.T) {
	longtest.Only(t)
	t.Parallel()
	storming(t, *stormFaults/2, func(t *testing.T) []*natsProcess { return startCluster(t) })
}

func storming(t *testing.T, faults int, start func(*testing.T) []*natsProcess) {
	seed := *stormSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	nodes := start(t)
	s := &storm{
		fleet: newFleetOn(t, stormRate, chatsim.Config{}, nodes...), nodes: nodes,
		rng: rand.New(rand.NewPCG(seed, 3)), start: time.Now(),
	}
	t.Cleanup(func() {
		t.Logf("to repeat it: GROUPFERRY_LONG_TESTS=1 go test ./cmd/groupferry -run %s$ -storm %d -storm-seed %d\n%scalls in each second: %v",
			t.Name(), *stormFaults, seed, &s.log, s.perSecond())
	})
	s.env["GROUPFERRY_TIMEOUT"] = stormTimeout.String()
	for n := range 4 {
		w := &stormWorker{
			n: n, nats: newPath(t, nodes[n%len(nodes)].client), api: newPath(t, s.front.address), shortest: stormPath,
			wall: filepath.Join(t.TempDir(), "wall"),
		}
		w.api.userTimeout = stormTimeout
		w.api.length(stormPath)
		s.workers = append(s.workers, w)
		s.restart(w)
	}
	s.slowest = s.watchCarrier()
	s.supply()
	for s.faults < faults {
		s.strike()
		for next := time.Now().Add(time.Duration(200+s.rng.IntN(2500)) * time.Millisecond); time.Now().Before(next); {
			s.tend()
			time.Sleep(20 * time.Millisecond)
		}
		s.supply()
	}
	for _, u := range s.undo {
		u.do()
	}
	s.undo = nil
	s.note("the storm is over")
	s.awaitDone()
	s.redoCrashed()
	s.checkStorm()
	for _, w := range s.workers {
		w.p.cmd.Process.Signal(syscall.SIGTERM)
	}
	for _, w := range s.workers {
		if code := w.p.wait(); code != exitDone {
			t.Errorf("worker %d: got exit code %d, want %d\n%s", w.n, code, exitDone, &w.p.stderr)
		}
	}
}

// watchCarrier sends requests over a path of its own to the simulator, until the test ends, and returns how long one took at
// most so far: what this process itself adds to the storm.
func (s *storm) watchCarrier() (slowest func() time.Duration) {
	way := newPath(s.t, s.front.address)
	client := &http.Client{}
	ctx, stop := context.WithCancel(context.Background())
	var most atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			start := time.Now()
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+way.address+"/nothing", nil)
			if err != nil {
				panic(err)
			}
			if response, err := client.Do(request); err == nil {
				response.Body.Close()
			}
			most.Store(max(most.Load(), int64(time.Since(start))))
			time.Sleep(20 * time.Millisecond)
		}
	}()
	s.t.Cleanup(func() {
		stop()
		<-done
	})
	return func() time.Duration { return time.Duration(most.Load()) }
}

// perSecond counts the calls that arrived in each second of the storm.
func (s *storm) perSecond() []int {
	var n []int
	for _, at := range s.arrived(s.start, chat.CreateContactGroup, nil) {
		second := int(at.Sub(s.start) / time.Second)
		n = append(n, make([]int, max(0, second+1-len(n)))...)
		n[second]++
	}
	return n
}

func (s *storm) note(format string, v ...any) {
	fmt.Fprintf(&s.log, "%7.2f "+format+"\n", append([]any{time.Since(s.start).Seconds()}, v...)...)
}

// supply enqueues more if there is little left, while nothing is wrong. It goes to NATS directly.
func (s *storm) supply() {
	s.t.Helper()
	if len(s.undo) > 0 {
		return
	}
	left := int64(0)
	for _, id := range s.imports {
		p, ok := s.status(id)
		if !ok {
			return // NATS is away; there will be another occasion
		}
		left += p.Jobs.Pending
	}
	if left > 10*stormRate {
		return
	}
	s.enqueue(fmt.Sprintf("storm-%d", len(s.imports)), 20*stormRate, 1)
}

func (s *storm) restart(w *stormWorker) {
	env := s.env["NATS_URL"]
	s.env["NATS_URL"] = "nats://" + w.nats.address
	s.env[wallEnv] = w.wall
	w.p = s.spawn("work", "--listen", "off", "--api-url", "http://"+w.api.address)
	delete(s.env, wallEnv)
	s.env["NATS_URL"] = env
}

// tend ends the faults whose time is over.
func (s *storm) tend() {
	now := time.Now()
	s.undo = slices.DeleteFunc(s.undo, func(u undo) bool {
		if now.Before(u.at) {
			return false
		}
		u.do()
		return true
	})
	for _, w := range s.workers {
		if w.p.ended() {
			s.t.Fatalf("worker %d ended with %d\n%s", w.n, w.p.wait(), &w.p.stderr)
		}
	}
}

func (s *storm) later(d time.Duration, do func()) {
	s.undo = append(s.undo, undo{time.Now().Add(d), do})
}

// leading is the worker that said last that it leads.
func (s *storm) leading() *stormWorker {
	best, last := s.workers[0], ""
	for _, w := range s.workers {
		// A log line begins with its time, in the same form for all.
		for line := range strings.Lines(w.p.stderr.String()) {
			if strings.Contains(line, "msg=leading") || strings.Contains(line, `msg="leading`) {
				if line > last {
					best, last = w, line
				}
			}
		}
	}
	return best
}

func (s *storm) kill(w *stormWorker) {
	if w.frozen {
		thaw(s.t, w.p.cmd)
		w.frozen = false
	}
	w.p.cmd.Process.Kill()
	w.p.wait()
	s.restart(w)
}

// strike lets one thing happen.
func (s *storm) strike() {
	s.faults++
	w := s.workers[s.rng.IntN(len(s.workers))]
	if s.rng.IntN(2) == 0 {
		w = s.leading()
	}
	span := func(least, most time.Duration) time.Duration {
		return least + time.Duration(s.rng.Int64N(int64(most-least)))
	}
	note := func(format string, v ...any) { s.note("worker %d: "+format, append([]any{w.n}, v...)...) }
	switch s.rng.IntN(14) {
	case 0, 1:
		note("killed")
		s.kill(w)
	case 2:
		note("killed, and whoever leads 4 s later")
		s.kill(w)
		s.later(4*time.Second, func() {
			next := s.leading()
			s.note("worker %d: killed as the next leader", next.n)
			s.kill(next)
		})
	case 3:
		note("stopped")
		thaw(s.t, w.p.cmd)
		w.frozen = false
		w.p.cmd.Process.Signal(syscall.SIGTERM)
		w.p.wait()
		s.restart(w)
	case 4, 5:
		d := span(time.Second, either(6*time.Second, 40*time.Second))
		note("frozen for %v", d)
		p := w.p
		w.frozen = true
		freeze(s.t, p.cmd)
		s.later(d, func() {
			if !p.ended() {
				thaw(s.t, p.cmd)
			}
			if w.p == p {
				w.frozen = false
			}
		})
	case 6:
		d := span(time.Second, 8*time.Second)
		note("cut from NATS for %v", d)
		w.nats.cut()
		s.later(d, w.nats.heal)
	case 7:
		d := span(time.Second, 8*time.Second)
		way, dir := "to", &w.nats.up
		if s.rng.IntN(2) == 0 {
			way, dir = "from", &w.nats.down
		}
		note("cut %s NATS for %v", way, d)
		dir.shut()
		s.later(d, w.nats.heal)
	case 8:
		d := span(time.Second, 12*time.Second)
		note("cut from the API for %v", d)
		w.api.cut()
		s.later(d, w.api.heal)
	case 9:
		d := span(time.Second, 8*time.Second)
		way, dir := "to", &w.api.up
		if s.rng.IntN(2) == 0 {
			way, dir = "from", &w.api.down
		}
		note("cut %s the API for %v", way, d)
		dir.shut()
		s.later(d, w.api.heal)
	case 10:
		d := span(0, 4*time.Second)
		gone := s.nodes[:1+s.rng.IntN(min(2, len(s.nodes)))] // two of three are the quorum
		s.note("NATS: %d killed for %v", len(gone), d)
		for _, n := range gone {
			n.kill()
		}
		time.Sleep(d)
		for _, n := range gone {
			n.start()
		}
		for _, n := range s.nodes {
			for !n.isReady() { // another one may be frozen
				s.tend()
			}
		}
	case 11:
		d := span(time.Second, 6*time.Second)
		n := s.nodes[s.rng.IntN(len(s.nodes))]
		s.note("NATS %s frozen for %v", n.name, d)
		n.freeze()
		s.later(d, n.thaw)
	case 12:
		off := []time.Duration{time.Hour, -time.Hour, 3 * time.Second, -3 * time.Second, 0}[s.rng.IntN(5)]
		note("wall clock off by %v", off)
		if err := os.WriteFile(w.wall, []byte(off.String()), 0o600); err != nil {
			s.t.Fatal(err)
		}
	case 13:
		least := time.Duration(0.55 * float64(w.shortest))
		d := span(least, 4*stormPath)
		if s.rng.IntN(2) == 0 {
			d = least
		}
		note("path to the API %v long", d)
		w.api.length(d)
		w.shortest = min(w.shortest, d)
	}
}

// redoCrashed retries what failed because it was under way when three leaders in a row were lost. A storm loses them every
// few seconds, so that happens; nothing else may fail.
func (s *storm) redoCrashed() {
	s.t.Helper()
	for _, id := range s.imports {
		n := 0
		for r, line := range s.results(id, "--failed") {
			if line.Code != queue.CodeCrashed {
				s.t.Errorf("%s: %v failed: %+v", id, r, line)
			}
			n++
		}
		if n > 0 {
			s.note("%s: %d conversations are suspected of three crashes", id, n)
			s.run(exitDone, "retry", id, "--code", queue.CodeCrashed)
			s.await("the end of the retry of "+id, func() bool {
				status, ok := s.status(id)
				return ok && status.State == string(queue.Complete)
			})
		}
	}
}

// checkStorm checks what holds whatever happened.
func (s *storm) checkStorm() {
	s.t.Helper()
	l, slowest := s.sim.Ledger(), s.slowest()
	s.t.Logf("a request that nothing happens to took %v at most", slowest.Round(time.Millisecond))
	// This process is the network and the API. Where it stood still so long, and then let go at once what it had held, the
	// path lost more at one instant than package governor assumes of any: then the limit is not judged, all else is.
	judged := slowest <= maxHeld
	if !judged {
		s.t.Logf("that is more than %v: the machine was too busy to judge the limit", maxHeld)
	}
	for _, command := range chat.Commands() {
		c := l.Commands[command]
		if judged && c.MaxPerSecond > stormRate {
			s.t.Errorf("%s: got %d calls in a second, want at most %d", command, c.MaxPerSecond, stormRate)
		}
		if judged && c.Throttled > 0 {
			s.t.Errorf("%s: got %d calls throttled, want none", command, c.Throttled)
		}
		if c.Calls > 1 {
			s.t.Logf("%s: %s", command, paceText(c))
		}
	}
	for _, id := range s.imports {
		st, ok := s.status(id)
		if !ok || st.Jobs.Done != st.Jobs.Total || st.State != "complete" {
			s.t.Errorf("import %s: got %s, %+v; want all of %d done", id, st.State, st.Jobs, st.Jobs.Total)
		}
		if ok && st.CheckSums() != nil {
			s.t.Errorf("import %s: %v", id, st.CheckSums())
		}
	}
	checkState(s.t, s.sim, stateOf(s.rows))
}
