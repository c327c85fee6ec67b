package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"groupferry/internal/app"
	"groupferry/internal/broker"
	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
	"groupferry/internal/clock"
	"groupferry/internal/job"
	"groupferry/internal/queue"
	"groupferry/metrics"
	"groupferry/worker"
)

const (
	// queueEvery is how old the queue's counts in the metrics can be.
	queueEvery = 5 * time.Second

	// progressEvery is how often the progress of an import is read.
	progressEvery = time.Second
)

// wallClock replaces the machine's wall clock in tests that set it; nil otherwise.
var wallClock func() time.Time

// A workerProcess is what work and run have in common: an engine, and those who watch it.
type workerProcess struct {
	p        *program
	store    *app.Namespace
	engine   *app.Engine
	metrics  *metrics.Metrics
	counters *counters

	changed   chan struct{}          // one place: the record of an import changed
	quiet     map[string]quietImport // by ID; of the goroutine that runs done
	completed atomic.Int64           // imports that this process completed
}

// processOptions say how a workerProcess works.
type processOptions struct {
	leaveOnHalt, liftHalt bool
	resume                string // the command that continues after a halt
}

// newWorkerProcess makes an engine that has not started, for a namespace that is this app's, or nobody's yet.
func (p *program) newWorkerProcess(
	s *app.Namespace, api *apiClient, a *apiFlags, m *metrics.Metrics, opts processOptions,
) (*workerProcess, error) {
	id := queue.App{SDKAppID: a.app, Simulated: a.simulator != ""}
	if id.Simulated {
		id.SDKAppID = chatsim.DemoSDKAppID
	}
	if have, err := s.App(p.soft); err != nil {
		return nil, err
	} else if have != nil && *have != id {
		return nil, otherApp(&queue.OtherAppError{Want: id, Have: *have})
	}
	w := &workerProcess{p: p, store: s, metrics: m, counters: &counters{}, changed: make(chan struct{}, 1),
		quiet: map[string]quietImport{}}
	var err error
	w.engine, err = app.NewEngine(p.soft, app.EngineConfig{
		Namespace: s, API: api.Client, App: id, RoundTrip: api.minRTT,
		Name: uniqueName(), Host: processName(), Rate: a.rate, Timeout: a.timeout, Clock: clock.Clock{Wall: wallClock},
		Worker: worker.Config{
			Concurrency: a.concurrency, ChunkSize: a.chunk, MaxAttempts: a.attempts, AcceptReplace: a.acceptReplace,
			Name: processName(), Observer: observer{w.counters, m}, Log: p.console.log,
		},
		Log: p.console.log, LeaveOnHalt: opts.leaveOnHalt, LiftHalt: opts.liftHalt, Resume: opts.resume,
		OnGrant: m.Granted,
		OnComplete: func(i queue.Import) {
			w.completed.Add(1)
			p.console.log.Info("import is complete", "import", i.ID)
		},
		OnImport: func(string) {
			select {
			case w.changed <- struct{}{}:
			default:
			}
		},
	})
	if err != nil {
		return nil, err
	}
	m.WatchPace(w.pace)
	m.SetUserSigExpiry(api.SigExpiry())
	return w, nil
}

// otherApp is the error of a namespace that belongs to another app.
func otherApp(err error) error {
	return hint(&usageError{err}, "name another --namespace, or another --data-dir")
}

// uniqueName is processName with a part that no earlier process had.
func uniqueName() string {
	b := make([]byte, 8)
	rand.Read(b)
	return strings.Map(func(r rune) rune {
		if r == '.' || r == '*' || r == '>' || unicode.IsSpace(r) {
			return '_' // of a subject
		}
		return r
	}, processName()) + "-" + hex.EncodeToString(b)
}

// run works until stop is closed, until done says so, or until it cannot continue; done is asked about once a second,
// and whenever the record of an import changed. Those who watch continue until the work has ended.
func (w *workerProcess) run(stop <-chan struct{}, listener net.Listener, done func(context.Context) (bool, error)) error {
	p := w.p
	watching, stopWatching := context.WithCancel(p.hard)
	var watchers sync.WaitGroup
	defer watchers.Wait()
	defer stopWatching()
	if listener != nil {
		w.metrics.WatchQueue(w.watchQueue(watching, &watchers))
		watchers.Go(func() {
			if err := metrics.Serve(watching, listener, w.metrics.Handler(w.engine.Ready)); err != nil {
				p.console.log.Error("metrics are not served", "err", err)
			}
		})
	}
	finished := make(chan struct{}) // closed when the engine has to stop
	var doneErr error
	watchers.Go(func() {
		defer close(finished)
		doneErr = w.awaitDone(watching, stop, done)
	})
	err := w.engine.Run(p.hard, finished)
	if errors.As(err, new(*queue.OtherAppError)) { // another process was quicker
		err = otherApp(err)
	}
	stopWatching()
	<-finished
	p.console.end()
	if err == nil {
		err = doneErr
	}
	return err
}

// awaitDone returns when stop is closed, ctx ends or done says so.
func (w *workerProcess) awaitDone(
	ctx context.Context, stop <-chan struct{}, done func(context.Context) (bool, error),
) error {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		finished, err := done(ctx)
		switch {
		case finished:
			return err
		case errors.As(err, new(*broker.DamagedError)), errors.Is(err, queue.ErrNoImport), errors.Is(err, job.ErrVersion):
			return err // asking again does not help
		case err != nil && ctx.Err() == nil:
			w.p.console.log.Debug("cannot tell whether the work is done", "err", err)
		}
		select {
		case <-stop:
			return nil
		case <-ctx.Done():
			return nil
		case <-w.changed:
		case <-tick.C:
		}
	}
}

// pace shows the engine to the metrics.
func (w *workerProcess) pace() metrics.Pace {
	s := w.engine.Snapshot()
	p := metrics.Pace{
		State: s.State, Commands: map[string]metrics.Lane{}, Leader: s.Leading,
		LeaderChanges: s.LeaderChanges, Standstill: s.Standstill,
	}
	for command, l := range s.Commands {
		p.Commands[command] = metrics.Lane{Limit: l.Limit, Effective: l.Effective, InUse: l.Out, Waiting: l.Waiting}
	}
	return p
}

// watchQueue asks for the counts of the queue now and then; a scrape gets the last ones.
func (w *workerProcess) watchQueue(ctx context.Context, running *sync.WaitGroup) func() (metrics.Queue, bool) {
	var last atomic.Pointer[metrics.Queue]
	running.Go(func() {
		tick := time.NewTicker(queueEvery)
		defer tick.Stop()
		for {
			n, err := queueCounts(ctx, w.store.Queue)
			if err != nil {
				last.Store(nil)
			} else {
				last.Store(&n)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	return func() (metrics.Queue, bool) {
		if n := last.Load(); n != nil {
			return *n, true
		}
		return metrics.Queue{}, false
	}
}

func queueCounts(ctx context.Context, q *queue.Queue) (metrics.Queue, error) {
	var n metrics.Queue
	open, err := q.OpenImports(ctx)
	for _, id := range open {
		p, perr := q.Progress(ctx, id)
		switch {
		case errors.Is(perr, queue.ErrNoImport), errors.As(perr, new(*broker.DamagedError)), perr == nil && p.Import.State.Over():
		case perr != nil:
			return n, perr
		default:
			n.Pending += p.Pending
			n.InFlight += p.InFlight
		}
	}
	return n, err
}

// showProgress draws the progress line of an import, or of all imports that are not over.
func (w *workerProcess) showProgress(p queue.Progress) {
	n := w.counters
	total, left := p.Import.Jobs, p.Pending+p.InFlight
	finished := p.Counts.Jobs.Done + p.Counts.Jobs.Partial + p.Counts.Jobs.Failed
	if p.Import.Generation > 0 {
		total = p.Import.Retried
		finished = total - left
	}
	w.p.console.progress(func() string {
		s := fmt.Sprintf("%s of %s jobs done", count(finished), count(total))
		state := w.engine.Snapshot()
		if p.Rate > 0 {
			s += fmt.Sprintf(", %.0f jobs/s", p.Rate)
		}
		if bad := p.Counts.Jobs.Partial + p.Counts.Jobs.Failed; bad > 0 {
			s += fmt.Sprintf(", %s failed or partial", count(bad))
		}
		if n := n.throttled.Load(); n > 0 {
			s += fmt.Sprintf(", %s throttled", count(n))
		}
		switch {
		case p.Import.Paused:
			s += ", paused"
		case state.State == app.Standby:
			s += ", sent by " + state.Leader
		case state.State != app.Running:
			s += ", " + state.State
		}
		if p.Rate > 0 && left > 0 && !p.Import.Paused && state.Cause == nil {
			s += ", " + span(time.Duration(float64(left)/p.Rate*float64(time.Second))) + " left"
		}
		return s
	})
}

// listen opens the address for metrics and status; "" and "off" mean none.
func listen(address string) (net.Listener, error) {
	if address == "" || address == "off" {
		return nil, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, hint(usagef("--listen: %w", err), "choose another address, or --listen off")
	}
	return l, nil
}

// counters is what this process did, for its progress line and its report; the queue has the truth about an import.
type counters struct {
	calls, throttled, retries atomic.Int64
	done, partial, failed     atomic.Int64
	conversations             atomic.Int64 // in their groups
}

// observer tells the metrics and the counters what the worker does.
type observer struct {
	*counters
	*metrics.Metrics
}

func (o observer) CallDone(command, word string, d time.Duration) {
	o.calls.Add(1)
	if code, err := strconv.Atoi(word); err == nil && chat.ClassOf(code) == chat.Throttle {
		o.throttled.Add(1)
		o.Metrics.Throttled(command)
	}
	o.Metrics.CallDone(command, word, d)
}

func (o observer) Retry(command string) {
	o.retries.Add(1)
	o.Metrics.Retry(command)
}

func (o observer) JobDone(outcome string, done, failed int, d time.Duration, attempts int) {
	switch job.Outcome(outcome) {
	case job.Done:
		o.counters.done.Add(1)
	case job.Partial:
		o.counters.partial.Add(1)
	case job.Failed:
		o.counters.failed.Add(1)
	}
	o.conversations.Add(int64(done))
	o.Metrics.JobDone(outcome, done, failed, d, attempts)
}

func newMetrics() *metrics.Metrics {
	var commands, codes []string
	for _, c := range chat.Commands() {
		commands = append(commands, string(c))
	}
	for _, c := range chat.Codes() {
		codes = append(codes, strconv.Itoa(c))
	}
	return metrics.New(metrics.Config{Build: metrics.BuildInfo{Version: version()}, Commands: commands, Codes: codes})
}

// sleepFor waits, and returns false when ctx ends first.
func sleepFor(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}
