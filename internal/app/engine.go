// Package app is what the commands do, without a terminal: it joins queue, lease, governor, worker and API client.
//
//	            standby ◄────────────── lost, handed over ───────────────┐
//	               │ lease taken                                         │
//	               ▼                                                     │
//	lease.Keep ◄─ leader ─► queue.Lead ─► Term ─► worker ─► calls ─► results
//	     │                                          ▲
//	     └── right, promised calls ──► governor ────┘ permits
//
// An [Engine] is one process of a namespace. It stands by until it takes the lease, leads one term, and stands by again
// when it loses the lease or hands it over. A term has a governor, a queue.Term and a worker of its own: what they hold
// in memory ends with it.
package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"groupferry/internal/broker"
	"groupferry/internal/chat"
	"groupferry/internal/clock"
	"groupferry/internal/governor"
	"groupferry/internal/lease"
	"groupferry/internal/queue"
	"groupferry/worker"
)

// EngineConfig says with what to work. Conn, Queue, API and App are needed.
type EngineConfig struct {
	Conn  *broker.Conn
	Queue *queue.Queue
	API   *chat.Client
	App   queue.App

	RoundTrip *governor.MinRTT // that API feeds; nil: no credit for round trips
	Name      string           // unlike that of any other process, now or earlier
	Host      string           // names the process for people
	Rate      int              // calls a second for each command, unless the namespace has a rate; 0: governor.DefaultRate
	Timeout   time.Duration    // of a call
	Clock     clock.Clock      // the zero value is the machine's; tests set the wall clock
	Worker    worker.Config    // Name, Observer and Log included; LeaveOn is set by the engine
	Log       *slog.Logger

	// LeaveOnHalt makes Run return a *governor.HaltedError when the namespace halts, instead of waiting for its end.
	LeaveOnHalt bool

	// LiftHalt makes the engine end a halt that is there when it starts, once its credentials are proved.
	LiftHalt bool

	// Resume is the command that continues after a halt of this process.
	Resume string

	OnGrant    func(command string, waited time.Duration) // a permit was granted; may be nil
	OnComplete func(queue.Import)                         // an import is complete; may be nil
	OnImport   func(id string)                            // a record changed; may be nil
}

// An Engine works on the jobs of a namespace while it leads. Use NewEngine.
type Engine struct {
	cfg       EngineConfig
	log       *slog.Logger
	gate      *governor.Gate
	candidate *lease.Candidate

	verified atomic.Bool  // the credentials have worked
	others   atomic.Int64 // renewals by other leaders, as seen here
	lifting  atomic.Bool  // a halt that stands is to be ended by this process: it does not close the gate
	rate     atomic.Int64 // of the namespace; 0: that of this process
	changes  atomic.Int64 // of the leader, as seen here
	leader   atomic.Pointer[lease.Record]
	answered atomic.Bool // in this term the API has answered
	standstillCounter

	mu    sync.Mutex
	term  *term     // while this process leads
	since time.Time // when it began to lead, or to stand by
}

// A term is the time in which this process leads.
type term struct {
	number   uint64
	governor *governor.Governor
	queue    *queue.Term // nil until it is open
}

var (
	// errHandedOver ends a term whose leader gave the lease to a standby.
	errHandedOver = errors.New("the lead was handed over")

	// errStopped ends a term because the process is to stop.
	errStopped = errors.New("stopped")
)

// NewEngine returns an engine. Nothing happens before Run.
func NewEngine(ctx context.Context, cfg EngineConfig) (*Engine, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Rate <= 0 {
		cfg.Rate = governor.DefaultRate
	}
	store, err := cfg.Conn.Lease(ctx)
	if err != nil {
		return nil, err
	}
	e := &Engine{cfg: cfg, log: cfg.Log, since: time.Now()}
	e.gate = &governor.Gate{OnHalt: e.halted}
	e.lifting.Store(cfg.LiftHalt)
	e.candidate = lease.New(store, lease.Config{
		Name: cfg.Name, Host: cfg.Host, Rate: cfg.Rate, Timeout: cfg.Timeout, Clock: cfg.Clock, Log: cfg.Log,
		OnObserve: e.observe,
	})
	return e, nil
}

// observe notes who leads, and that another process does: one whose record is renewed.
func (e *Engine) observe(r lease.Record, _ uint64) {
	was := e.leader.Swap(&r)
	switch {
	case was == nil || was.Term != r.Term:
		e.changes.Add(1)
	case r.Holder != e.cfg.Name && !r.Released:
		e.others.Add(1)
	}
}

// Run leads or stands by until stop is closed, ctx ends, or it cannot continue. After stop the jobs in flight may end;
// when ctx ends they are left to the next leader at once. The error is nil after a stop, and a *governor.HaltedError
// after a halt with LeaveOnHalt, or when the credentials of this process have never worked.
func (e *Engine) Run(ctx context.Context, stop <-chan struct{}) error {
	ctx, leave := context.WithCancelCause(ctx)
	standby, endStandby := context.WithCancel(ctx)
	var aside sync.WaitGroup
	defer aside.Wait()
	defer endStandby()
	defer leave(nil)
	aside.Go(func() {
		select {
		case <-stop:
			endStandby()
		case <-ctx.Done():
		}
	})
	aside.Go(func() { e.watch(ctx) })
	aside.Go(func() { e.countStandstill(ctx) })
	answer, err := e.cfg.Conn.Standby(func() []byte { return e.presence(ctx) })
	if err != nil {
		return err
	}
	defer answer()
	if e.cfg.LeaveOnHalt {
		aside.Go(func() { e.leaveWhenHalted(ctx, leave) })
	}

	for {
		tenure, err := e.candidate.Lead(standby)
		if err != nil {
			if cause := context.Cause(ctx); governor.IsHalted(cause) {
				return cause
			}
			if standby.Err() != nil {
				return nil
			}
			return err
		}
		err = e.lead(ctx, stop, tenure)
		switch {
		case err == nil, errors.Is(err, errStopped):
			return nil
		case errors.Is(err, errHandedOver):
			e.log.Info("standing by: the lead was handed over")
		case errors.Is(err, lease.ErrLost), errors.Is(err, queue.ErrSuperseded):
			e.log.Warn("standing by: another process leads", "cause", err)
		default:
			return err
		}
	}
}

// leaveWhenHalted ends a standby when the namespace halts, with the error that the leader would return. A halt that
// this process is to lift gets a moment for that: until it is clear that another process leads.
func (e *Engine) leaveWhenHalted(ctx context.Context, leave context.CancelCauseFunc) {
	const settled = lease.TakeoverDelay + lease.Duration
	for start := time.Now(); sleep(ctx, 250*time.Millisecond); {
		if time.Since(start) > settled && !e.Leading() && e.lifting.Swap(false) {
			if h, err := e.cfg.Queue.Halted(ctx); err == nil && h != nil {
				e.applyHalt(h)
			}
		}
		if cause := e.gate.Halted(); cause != nil && !IsPause(cause) && !e.Leading() {
			leave(&governor.HaltedError{Cause: cause})
			return
		}
	}
}

// watch follows what people and other processes say: halts, the rate, the records of imports.
func (e *Engine) watch(ctx context.Context) {
	watcher := queue.Watcher{
		Halt: e.applyHalt,
		Rate: func(rate int) {
			e.rate.Store(int64(rate))
			if pace, _ := e.present(); pace != nil {
				pace.SetRate(e.effectiveRate())
			}
		},
		Import: func(id string) {
			if _, jobs := e.present(); jobs != nil {
				jobs.Changed(id)
			}
			if e.cfg.OnImport != nil {
				e.cfg.OnImport(id)
			}
		},
		Resync: func() {
			if _, jobs := e.present(); jobs != nil {
				jobs.Resync()
			}
		},
	}
	for {
		err := e.cfg.Queue.Watch(ctx, watcher)
		if err == nil || ctx.Err() != nil {
			return
		}
		e.log.Warn("changes by other processes are not noticed; trying again", "err", err)
		if !sleep(ctx, time.Second) {
			return
		}
	}
}

func (e *Engine) applyHalt(h *queue.Halt) {
	switch {
	case h == nil:
		e.gate.Resume()
	case h.State == queue.Halted && e.lifting.Load():
	default:
		e.gate.Halt(&StandingHalt{*h})
	}
}

// AwaitWork returns nil when the credentials of this process are proved, when another process is seen to lead, or while
// the namespace is paused: then jobs can be put on the queue that somebody will do.
func (e *Engine) AwaitWork(ctx context.Context) error {
	for !e.verified.Load() && e.others.Load() == 0 && !IsPause(e.gate.Halted()) {
		if !sleep(ctx, 10*time.Millisecond) {
			return ctx.Err()
		}
	}
	return nil
}

// present returns the pace and the jobs of the present term; nil where there are none.
func (e *Engine) present() (*governor.Governor, *queue.Term) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.term == nil {
		return nil, nil
	}
	return e.term.governor, e.term.queue
}

func (e *Engine) effectiveRate() int {
	if rate := e.rate.Load(); rate > 0 {
		return int(rate)
	}
	return e.cfg.Rate
}

// Leading tells whether this process leads.
func (e *Engine) Leading() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.term != nil
}

func (e *Engine) setTerm(t *term) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.term, e.since = t, time.Now()
}

// What a term still has to write when it ends takes closing at most; when the process is to leave at once, leaving.
const (
	closing = 15 * time.Second
	leaving = time.Second
)

// last returns a context for what is still to be written when ctx may have ended.
func last(ctx context.Context) (context.Context, context.CancelFunc) {
	bound := closing
	switch cause := context.Cause(ctx); {
	case errors.As(cause, new(*broker.DiskError)):
		bound = 0 // nothing can be written
	case errors.Is(cause, context.Canceled):
		bound = leaving
	}
	return context.WithTimeout(context.WithoutCancel(ctx), bound)
}

// lead is one term: from the lease to its release, or its loss.
func (e *Engine) lead(ctx context.Context, stop <-chan struct{}, tenure *lease.Tenure) error {
	before := tenure.Before()
	e.answered.Store(false)
	broker.Failpoint("lead")
	var commands []string
	for _, c := range chat.Commands() {
		commands = append(commands, string(c))
	}
	pace := governor.New(governor.Config{
		Rate: e.effectiveRate(), Timeout: e.cfg.Timeout, Commands: commands, Gate: e.gate, RoundTrip: e.cfg.RoundTrip,
		Clock: e.cfg.Clock,
		OnSlower: func(command string, rate float64) {
			e.log.Warn("throttled by the API: slowing down", "command", command, "calls_per_second", int(rate))
		},
		OnOutage: e.outage,
		OnNeed:   tenure.Kick,
		OnGrant: func(command string, waited time.Duration) {
			broker.Failpoint("grant")
			e.lastGrant.Store(time.Now().UnixNano())
			if e.cfg.OnGrant != nil {
				e.cfg.OnGrant(command, waited)
			}
		},
	}, governor.Inherited{Calls: before.Calls, Timeout: before.Timeout, Any: before.Term > 0})
	t := &term{number: tenure.Term(), governor: pace}

	// The term ends with its context: when the lease is lost, another leader's marker is found, or ctx ends.
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	// The lease is kept until all is written, also when ctx ended.
	keeping, stopKeeping := context.WithCancel(context.WithoutCancel(ctx))
	var kept sync.WaitGroup
	defer kept.Wait()
	defer stopKeeping()
	kept.Go(func() {
		if err := tenure.Keep(keeping, pace); err != nil {
			end(err)
		}
	})
	tenure.Kick()
	e.setTerm(t)
	pace.SetRate(e.effectiveRate()) // it may have changed since
	if before.Term > 0 {
		e.log.Info("leading: waiting 1 s, for calls of the previous leader may still be in flight", "term", t.number,
			"previous", before.Host, "calls", sum(before.Calls))
	} else {
		e.log.Info("leading", "term", t.number)
	}

	successor, err := e.serve(ctx, end, stop, t, before)
	lost := lostTerm(context.Cause(ctx))
	if lost == nil {
		lost = lostTerm(err)
	}
	pace.Close()
	e.setTerm(nil)
	stopKeeping()
	kept.Wait()
	if lost != nil {
		return lost
	}
	handovers := 0
	if successor != "" {
		handovers = 1
		if !e.answered.Load() {
			handovers = before.Handovers + 1
		}
	}
	release, cancel := last(ctx)
	defer cancel()
	if rerr := tenure.Release(release, pace.UnderWay(), e.cfg.Timeout, successor, handovers); rerr != nil {
		e.log.Debug("release the lease", "err", rerr)
	}
	if cause := context.Cause(ctx); cause != nil && (err == nil || errors.Is(err, context.Canceled)) {
		err = cause
	}
	if errors.Is(err, context.Canceled) {
		err = errStopped
	}
	return err
}

// lostTerm returns err if it says that another process leads.
func lostTerm(err error) error {
	if errors.Is(err, lease.ErrLost) || errors.Is(err, queue.ErrSuperseded) {
		return err
	}
	return nil
}

// serve does the work of a term. It returns the standby that is to lead next, if one is, with errHandedOver.
func (e *Engine) serve(
	ctx context.Context, end context.CancelCauseFunc, stop <-chan struct{}, t *term, before lease.Record,
) (successor string, err error) {
	var jobs *queue.Term
	err = e.retry(ctx, "begin the term", func() (err error) {
		jobs, err = e.cfg.Queue.Lead(ctx, queue.TermConfig{
			Term: t.number, Name: e.cfg.Host, Crashed: before.Term > 0 && !before.Released, Log: e.log,
			OnComplete: e.cfg.OnComplete,
		})
		return err
	})
	if err != nil {
		return "", err
	}
	e.mu.Lock()
	t.queue = jobs
	e.mu.Unlock()
	jobs.Resync() // records may have changed since they were read

	var running sync.WaitGroup
	writing, stopWriting := context.WithCancel(context.WithoutCancel(ctx))
	running.Go(func() { // what a command that was cut off left behind
		if err := e.cfg.Queue.Sweep(writing); err != nil && writing.Err() == nil {
			e.log.Warn("an import that was ended is not removed yet", "err", err)
		}
	})
	running.Go(func() {
		if err := jobs.Run(writing); err != nil {
			end(err)
		}
	})
	monitor, stopMonitor := context.WithCancel(ctx)
	running.Go(func() {
		if next := e.awaitHandover(monitor, t, before); next != "" {
			successor = next
			end(errHandedOver)
		}
	})

	working, stopWorking := context.WithCancel(ctx) // for the check of the credentials, which a stop ends at once
	go func() {
		select {
		case <-stop:
			stopWorking()
		case <-working.Done():
		}
	}()
	err = e.verify(working, t)
	stopped := working.Err() != nil && ctx.Err() == nil
	stopWorking()
	if err == nil && !stopped {
		cfg := e.cfg.Worker
		cfg.LeaveOn = nil
		if e.cfg.LeaveOnHalt {
			cfg.LeaveOn = func(cause error) bool { return !IsPause(cause) }
		}
		err = worker.New(cfg, termJobs{jobs, t.governor}, e.cfg.API, t.governor).Run(ctx, stop)
	}
	stopMonitor()
	if stopped {
		err = errStopped
	}
	stopWriting()
	running.Wait()
	if lostTerm(context.Cause(ctx)) == nil {
		closing, cancel := last(ctx)
		if cerr := jobs.Close(closing); cerr != nil && lostTerm(cerr) == nil {
			e.log.Warn("not all that this term had left was written; the next leader does the rest", "err", cerr)
		} else if err == nil {
			err = cerr
		}
		cancel()
	}
	if successor != "" {
		err = errHandedOver
	}
	return successor, err
}

// retry calls do until it succeeds, fails for another reason than NATS being out of reach, or ctx ends.
func (e *Engine) retry(ctx context.Context, doing string, do func() error) error {
	for {
		err := do()
		if err == nil || !broker.Unreachable(err) || ctx.Err() != nil {
			return err
		}
		e.log.Warn("NATS is out of reach; trying again", "doing", doing, "err", err)
		if !sleep(ctx, time.Second) {
			return ctx.Err()
		}
	}
}

// verify proves the credentials before the first job of this process, and ends a halt if it is to.
func (e *Engine) verify(ctx context.Context, t *term) error {
	for !e.verified.Load() {
		if cause := e.gate.Halted(); cause != nil {
			if e.cfg.LeaveOnHalt && !IsPause(cause) {
				return &governor.HaltedError{Cause: cause}
			}
			if err := e.gate.AwaitResume(ctx); err != nil {
				return err
			}
		}
		err := e.checkCredentials(ctx, t.governor)
		switch {
		case err == nil:
			// Not before: a number with a typo would make the namespace that of an app that is not there.
			err := e.retry(ctx, "claim the namespace", func() error { return e.cfg.Queue.ClaimApp(ctx, e.cfg.App) })
			if err != nil {
				return err
			}
			e.answered.Store(true)
			e.verified.Store(true)
		case errors.Is(err, errCredentials):
			return err
		case governor.IsHalted(err): // by somebody, meanwhile
		default:
			return err
		}
	}
	if e.lifting.Load() {
		var was *queue.Halt
		err := e.retry(ctx, "lift the halt", func() (err error) {
			was, err = e.cfg.Queue.ClearHalt(ctx)
			return err
		})
		if err != nil {
			return err
		}
		e.lifting.Store(false)
		if was != nil {
			e.log.Info("the halt is lifted: the credentials work", "since", was.Since, "reason", was.Reason)
		}
	}
	return nil
}

// A failure of the call that proves the credentials may pass, as that of any other call. It is made again after 0.2,
// 0.4, 0.8 s and so on, up to 5 s.
const (
	checkBackoff = 200 * time.Millisecond
	checkPause   = 5 * time.Second

	// checkPatience is for commands that end with their import: somebody waits to be told that the API is out of
	// reach. No new call is made after it.
	checkPatience = 15 * time.Second
)

// errCredentials says that the API refused this process, whose credentials have never worked.
var errCredentials = errors.New("the API refuses the credentials of this process")

// ErrAPIUnreachable says that the API did not answer before the first call of a job.
var ErrAPIUnreachable = errors.New("the API is out of reach")

func (e *Engine) checkCredentials(ctx context.Context, pace *governor.Governor) error {
	start, renewed := time.Now(), false
	for pause := checkBackoff; ; pause = min(2*pause, checkPause) {
		failure, err := e.checkOnce(ctx, pace)
		if failure == nil || ctx.Err() != nil {
			return err
		}
		switch class := failure.Class(); {
		case class == chat.Refresh && !renewed:
			renewed = true
			if rerr := e.cfg.API.Renew(); rerr != nil {
				return fmt.Errorf("%w: %w", errCredentials, &governor.HaltedError{Cause: err})
			}
			continue
		case class == chat.Halt, class == chat.Refresh:
			return fmt.Errorf("%w: %w", errCredentials, &governor.HaltedError{Cause: err})
		case failure.Code != 0:
			return nil // busy, or about this account: the signature was accepted
		}
		if time.Since(start) > checkPatience {
			if e.cfg.LeaveOnHalt {
				return fmt.Errorf("%w: %w", ErrAPIUnreachable, err)
			}
			e.log.Warn("the API does not answer yet", "err", err)
			start = time.Now()
		}
		if !sleep(ctx, pause) {
			return ctx.Err()
		}
	}
}

// checkOnce makes the call. The first result is the error as the API's, if it is one.
func (e *Engine) checkOnce(ctx context.Context, pace *governor.Governor) (*chat.Error, error) {
	permit, err := pace.Acquire(ctx, string(chat.GetContactGroup), "")
	if err != nil {
		return nil, err
	}
	start := time.Now()
	err = e.cfg.API.Check(chat.WithDeadline(ctx, permit.EndBy(), permit.Sendable))
	word, took := "ok", time.Since(start)
	var failure *chat.Error
	errors.As(err, &failure)
	outcome := governor.Answered
	switch {
	case failure == nil:
	case failure.Unsent():
		outcome = governor.Unsent
	case ctx.Err() != nil:
		outcome = governor.Cancelled
	case failure.Class() == chat.Throttle:
		outcome = governor.Throttled
	case failure.Code == 0 && !failure.NotOffered():
		outcome = governor.Lost
	}
	permit.Done(outcome)
	if outcome == governor.Unsent {
		return failure, err
	}
	if failure != nil {
		word = failure.Word()
	}
	if e.cfg.Worker.Observer != nil {
		e.cfg.Worker.Observer.CallDone(string(chat.GetContactGroup), word, took)
	}
	return failure, err
}

func (e *Engine) outage(on bool) {
	if on {
		e.log.Warn("the API is out of reach: probing with one call at a time, no job is lost")
		return
	}
	e.answered.Store(true)
	e.log.Info("the API answers again")
}

// halted makes a halt of this process everybody's, and keeps it over restarts.
func (e *Engine) halted(cause error) {
	var standing *StandingHalt
	if errors.As(cause, &standing) {
		return
	}
	h := queue.Halt{State: queue.Halted, Reason: cause.Error(), Command: e.cfg.Resume, By: e.cfg.Host}
	var failure *chat.Error
	if errors.As(cause, &failure) {
		h.Code, h.Remedy = failure.Word(), failure.Remedy()
	}
	e.log.Error("halted: every job would fail the same way", "code", h.Code, "reason", h.Reason, "remedy", h.Remedy,
		"to_continue", h.Command)
	ctx, cancel := context.WithTimeout(context.Background(), closing)
	defer cancel()
	if err := e.cfg.Queue.SetHalt(ctx, h); err != nil {
		e.log.Error("the halt was not stored", "err", err)
	}
}

// Gate is what halts this process.
func (e *Engine) Gate() *governor.Gate { return e.gate }

// A StandingHalt is a halt or a pause of the namespace, said by another process, a person, or an earlier run.
type StandingHalt struct{ queue.Halt }

func (h *StandingHalt) Error() string {
	since := h.Since.Local().Format(time.DateTime)
	if h.State == queue.Paused {
		return fmt.Sprintf("paused %s on %s since %s", h.Reason, h.By, since)
	}
	return fmt.Sprintf("%s (by %s since %s)", h.Reason, h.By, since)
}

// IsPause tells a pause, which a person ends, from a halt, which needs fixing: nobody leaves because of a pause.
func IsPause(cause error) bool {
	var standing *StandingHalt
	return errors.As(cause, &standing) && standing.State == queue.Paused
}

const (
	// An outage lasts handoverAfter before the leader asks who could lead instead: two renewals of the lease longer than
	// a path that lost one packet needs.
	handoverAfter = 4 * time.Second

	// askWait is how long standbys may take to answer: they connect to the API first.
	askWait = 2 * time.Second

	// handoverPause is how long a leader that was handed the lead keeps it at least; it doubles with each hand-over in
	// a row without an answer of the API, up to mostPause.
	handoverPause = 10 * time.Second
	mostPause     = 5 * time.Minute
)

// presence is what a process that stands by says about itself.
type presence struct {
	Name      string    `json:"name"`
	Host      string    `json:"host"`
	App       queue.App `json:"app"`
	Reachable bool      `json:"reachable"` // it can connect to the API
}

// presence answers a leader that asks who stands by; the leader itself says nothing.
func (e *Engine) presence(ctx context.Context) []byte {
	if e.Leading() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	b, err := json.Marshal(presence{
		Name: e.cfg.Name, Host: e.cfg.Host, App: e.cfg.App, Reachable: e.cfg.API.Reach(ctx) == nil,
	})
	if err != nil {
		return nil
	}
	return b
}

// awaitHandover watches for an outage, and returns the name of a standby that can reach the API when one lasts. It
// returns "" when ctx ends.
func (e *Engine) awaitHandover(ctx context.Context, t *term, before lease.Record) string {
	began, broken := time.Now(), time.Time{}
	pause := time.Duration(0)
	if before.Handovers > 0 {
		pause = min(mostPause, handoverPause<<min(before.Handovers-1, 5))
	}
	for wait := 250 * time.Millisecond; sleep(ctx, wait); {
		wait = 250 * time.Millisecond
		silent := t.governor.Silent()
		out := t.governor.Snapshot().State == governor.Outage
		switch {
		case !out && silent < handoverAfter:
			broken = time.Time{}
			continue
		case broken.IsZero():
			broken = time.Now()
			if silent < handoverAfter {
				continue
			}
		}
		if silent < handoverAfter && time.Since(broken) < handoverAfter || time.Since(began) < pause {
			continue
		}
		if next, ok := e.findSuccessor(ctx); ok {
			e.log.Warn("the API is out of reach from here: handing the lead over", "to", next.Host)
			return next.Name
		}
		wait = time.Second
	}
	return ""
}

func (e *Engine) findSuccessor(ctx context.Context) (presence, bool) {
	answers, err := e.cfg.Conn.AskStandbys(ctx, askWait+time.Second)
	if err != nil {
		e.log.Debug("ask the standbys", "err", err)
	}
	for _, b := range answers {
		var p presence
		if json.Unmarshal(b, &p) == nil && p.Reachable && p.App == e.cfg.App && p.Name != e.cfg.Name {
			return p, true
		}
	}
	return presence{}, false
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

func sum(calls map[string]int) int {
	n := 0
	for _, c := range calls {
		n += c
	}
	return n
}

// sleep waits, and returns false when ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
