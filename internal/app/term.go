package app

import (
	"context"
	"errors"
	"sync"
	"time"

	"groupferry/internal/broker"
	"groupferry/internal/chat"
	"groupferry/internal/governor"
	"groupferry/internal/lease"
	"groupferry/internal/queue"
	"groupferry/worker"
)

// A term is the time in which this process leads.
type term struct {
	e      *Engine
	tenure *lease.Tenure
	before lease.Record // of the leader before
	stop   <-chan struct{}

	// ctx lasts until the term has to end at once: the lease is lost, another leader has begun, the lead is handed over, or
	// the process is to leave. end ends it.
	ctx context.Context
	end context.CancelCauseFunc

	pace *governor.Governor
	jobs *queue.Term // nil until it is open; guarded by the engine's lock

	began     time.Time
	late      time.Duration    // for how long after that calls of earlier leaders can take effect
	openCalls bool             // calls without a response, of jobs that were left in flight, can take effect
	successor string           // the standby that is to lead next
	handed    *handedOverError // why
}

func (e *Engine) newTerm(ctx context.Context, stop <-chan struct{}, tenure *lease.Tenure) *term {
	t := &term{e: e, tenure: tenure, before: tenure.Before(), stop: stop, began: time.Now()}
	if b := t.before; !e.besideLeader() && b.Term > 0 && (!b.Released || len(b.Calls) > 0) { // the calls of readers have no effect
		t.late = worker.LateTime
	}
	t.ctx, t.end = context.WithCancelCause(ctx)
	var commands []string
	for _, c := range chat.Commands() {
		commands = append(commands, string(c))
	}
	share := leaderShare
	if e.besideLeader() {
		commands, share = []string{string(chat.GetContactGroup)}, readerShare
	}
	t.pace = governor.New(governor.Config{
		Rate: e.effectiveRate(), Timeout: e.cfg.Timeout, Commands: commands, Gate: e.gate, RoundTrip: e.cfg.RoundTrip,
		Clock: e.cfg.Clock, Share: share,
		OnSlower: func(command string, rate float64) {
			e.log.Warn("throttled by the API: slowing down", "command", command, "calls_per_second", int(rate))
		},
		OnOutage: e.outage,
		OnNeed:   tenure.Kick,
		OnGrant: func(_ string, waited time.Duration) {
			broker.Failpoint("grant")
			e.lastGrant.Store(time.Now().UnixNano())
			if e.cfg.OnGrant != nil {
				e.cfg.OnGrant(waited)
			}
		},
	}, governor.Inherited{Calls: t.before.Calls, Timeout: t.before.Timeout, Any: t.before.Term > 0})
	return t
}

// lead is the term: from the lease to its release, or its loss.
func (t *term) lead() error {
	e := t.e
	defer t.end(nil)
	broker.Failpoint("lead")
	// The lease is kept until all is written, also when ctx ended.
	keeping, stopKeeping := context.WithCancel(context.WithoutCancel(t.ctx))
	var kept sync.WaitGroup
	defer kept.Wait()
	defer stopKeeping()
	kept.Go(func() {
		if err := t.tenure.Keep(keeping, t.pace); err != nil {
			t.end(err)
		}
	})
	e.setTerm(t)
	t.pace.SetRate(e.effectiveRate()) // it may have changed since

	work := t.work
	switch {
	case e.cfg.Examine != nil:
		work = t.examine
	case e.reads():
		work = t.read
	}
	err := work()
	closing, cancel := e.closingContext(t.ctx)
	defer cancel()
	if lost := t.lost(err); lost == nil && t.jobs != nil {
		if cerr := t.jobs.Close(closing); cerr != nil && t.lost(cerr) == nil {
			e.log.Warn("not all that this term had left was written; the next leader does the rest", "error", cerr)
		} else if err == nil {
			err = cerr
		}
	}
	t.pace.Close()
	e.setTerm(nil)
	stopKeeping()
	kept.Wait()
	if lost := t.lost(err); lost != nil {
		return lost
	}
	t.release(closing)
	if t.handed != nil {
		return t.handed
	}
	if cause := context.Cause(t.ctx); cause != nil && (err == nil || errors.Is(err, context.Canceled)) {
		err = cause
	}
	if errors.Is(err, context.Canceled) {
		err = errStopped
	}
	return err
}

// lost returns why the lead is lost, if it is: err says so, or what ended the term.
func (t *term) lost(err error) error {
	for _, err := range []error{context.Cause(t.ctx), err} {
		if errors.Is(err, lease.ErrLost) || errors.Is(err, queue.ErrSuperseded) {
			return err
		}
	}
	return nil
}

// release gives the lead up, to the successor if there is one.
func (t *term) release(ctx context.Context) {
	handovers := 0
	if t.successor != "" {
		handovers = 1
		if !t.pace.Snapshot().Responded {
			handovers = t.before.Handovers + 1
		}
	}
	calls, timeout := t.pace.UnderWay()
	if len(calls) == 0 && (t.openCalls || time.Since(t.began) < t.late) { // the API may have one that was given up
		calls = map[string]int{string(chat.UpdateContactGroup): 1}
	}
	if err := t.tenure.Release(ctx, calls, timeout, t.successor, handovers); err != nil {
		t.e.log.Debug("release the lease", "error", err)
	}
}

// work does the work of the term, from its begin until it is stopped or has to end. All that it started has ended when it
// returns.
func (t *term) work() error {
	e := t.e
	var running sync.WaitGroup
	defer running.Wait()
	// Until the first job a stop ends all at once.
	beginning, begun := context.WithCancel(t.ctx)
	defer begun()
	running.Go(func() {
		select {
		case <-t.stop:
			begun()
		case <-beginning.Done():
		}
	})
	if err := t.open(beginning); err != nil {
		return err
	}
	writing, stopWriting := context.WithCancel(context.WithoutCancel(t.ctx))
	defer stopWriting()
	swept := make(chan struct{})
	running.Go(func() { // what a command that was cut off left behind
		defer close(swept)
		if err := e.cfg.Namespace.Sweep(writing); err != nil && writing.Err() == nil {
			e.cfg.Namespace.Conn.LogRetry("an import that was ended is not removed yet", err)
		}
	})
	running.Go(func() {
		if err := t.jobs.Run(writing); err != nil {
			t.end(err)
		}
	})
	working, stopWorking := context.WithCancel(t.ctx)
	defer stopWorking()
	running.Go(func() {
		if next := e.awaitHandover(working, t.before); next != nil {
			t.successor, t.handed = next.Name, e.handedOver(next)
			t.end(t.handed)
		}
	})
	running.Go(func() { t.cutGraceShort(working, stopWorking) })

	err := e.verify(beginning, t.pace)
	if err != nil {
		return err
	}
	cfg := e.cfg.Worker
	cfg.OnNoResponse = func(err error) { e.noResponse.Store(&err) }
	cfg.LeaveOn = nil
	if e.cfg.LeaveOnHalt {
		cfg.LeaveOn = func(cause error) bool { return !IsPause(cause) }
	}
	learned := make(chan worker.Known, 1)
	cfg.OnKnown = func(k worker.Known) { latest(learned, k) }
	running.Go(func() { e.keepKnown(writing, learned) })
	if cfg.Known, err = e.knownAPI(beginning); err != nil {
		return err
	}
	w := worker.New(cfg, termJobs{t.jobs, t.pace}, e.cfg.API, t.pace)
	err = w.Run(working, t.stop)
	t.openCalls = w.OpenCalls()
	last, cancel := e.closingContext(t.ctx)
	defer cancel()
	select {
	case <-swept: // who works until nothing is left, leaves nothing
	case <-last.Done():
	case <-t.ctx.Done():
	}
	return err
}

// open begins the term on the queue, and waits until it is known whether the namespace is halted, and its rate.
func (t *term) open(ctx context.Context) error {
	e := t.e
	var jobs *queue.Term
	err := e.retry(ctx, "begin the term", func() (err error) {
		jobs, err = e.cfg.Namespace.Lead(ctx, queue.TermConfig{
			Term: t.tenure.Term(), Name: e.cfg.Host, Log: e.log, OnComplete: e.cfg.OnComplete, OnWriteError: e.cfg.OnWriteError,
			Target:  Target(e.cfg.App, e.cfg.API.Address()),
			Late:    t.late,
			Crashed: t.before.Term > 0 && !t.before.Released && t.before.Holder != e.cfg.Name,
		})
		return err
	})
	if err != nil {
		return err
	}
	e.mu.Lock()
	t.jobs = jobs
	e.mu.Unlock()
	jobs.Resync() // records may have changed since they were read
	select {
	case <-e.known:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// cutGraceShort ends the work after a stop when what is in flight cannot end anyway: no permit is granted without the
// lease, and no call has a response during an outage.
func (t *term) cutGraceShort(ctx context.Context, stopWorking func()) {
	select {
	case <-t.stop:
	case <-ctx.Done():
		return
	}
	for {
		s, changed := t.e.state.get()
		left := t.tenure.Right().Left() // more with each renewal
		if left <= 0 || s.Outage != nil || s.Silent {
			stopWorking()
			return
		}
		select {
		case <-changed:
		case <-time.After(left):
		case <-ctx.Done():
			return
		}
	}
}

// What a term still has to write when it ends takes closing at most; closingAway while NATS is out of reach, and leaving
// when the process is to leave at once.
const (
	closing     = 10 * time.Second
	closingAway = time.Second
	leaving     = time.Second
)

// closingContext returns a context for what is still to be written when a term ends, and ctx may have ended.
func (e *Engine) closingContext(ctx context.Context) (context.Context, context.CancelFunc) {
	bound := closing
	switch {
	case errors.As(context.Cause(ctx), new(*broker.DiskError)):
		bound = 0 // nothing can be written
	case !e.cfg.Namespace.Conn.Connected(), e.lapsed():
		bound = closingAway
	}
	c, cancel := context.WithTimeout(context.WithoutCancel(ctx), bound)
	stopWatching := context.AfterFunc(e.hard, func() { time.AfterFunc(leaving, cancel) })
	return c, func() {
		stopWatching()
		cancel()
	}
}

// backlog is how many calls may wait for their turn before the next job is taken: what 200 calls a second take in a tenth
// of a second. More would have to be done again after a crash, and keep a stop, a cancel and a small import waiting.
const backlog = 20

// termJobs gives the jobs of a term to the worker, as they are needed.
type termJobs struct {
	jobs *queue.Term
	pace *governor.Governor
}

func (j termJobs) Next(ctx context.Context) (worker.Delivery, error) {
	if err := j.pace.AwaitRoom(ctx, string(chat.CreateContactGroup), backlog); err != nil {
		return nil, err
	}
	d, err := j.jobs.Next(ctx)
	if err != nil {
		return nil, err
	}
	return d, nil
}
