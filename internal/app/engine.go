package app

import (
	"context"
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
	"groupferry/metrics"
	"groupferry/worker"
)

// EngineConfig says with what to work. Namespace, API and App are needed.
type EngineConfig struct {
	Namespace *Namespace
	API       *chat.Client
	App       queue.App

	RoundTrip *governor.MinRTT // that API feeds; nil: no credit for round trips
	Name      string           // unlike that of any other process, now or earlier
	Host      string           // names the process for people
	Rate      int              // calls a second for each command, see rate.go; 0: governor.DefaultRate
	Limit     int              // calls a second that the app has, whatever the rate of the namespace; 0: nobody knows
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

	// Read, unless nil, makes the engine a reader: see reader.go. It is called each time that the engine has the lease of
	// the readers, and Run ends when it returns nil. Worker says how its calls are repeated.
	Read func(ctx context.Context, stop <-chan struct{}, r *worker.Reader) error

	// Examine, unless nil, makes the engine one without jobs, as Read does, but with the lease and the permits of the leader:
	// nobody works meanwhile. Run then ends with what it returns, or with a *[leadingError] when another process leads. With
	// BesideLeader it has those of the readers: for get_contact_group alone.
	Examine      func(ctx context.Context, stop <-chan struct{}, e *Engine, pace *governor.Governor) error
	BesideLeader bool

	// Waiting, of a reader, is called with the host of another one, which is waited for then. If it is nil, Run returns a
	// *[ReadingError] instead.
	Waiting func(host string)

	OnGrant      func(waited time.Duration) // a permit was granted; may be nil
	OnComplete   func(queue.Import)         // an import is complete; may be nil
	OnImport     func(id string)            // a record changed; may be nil
	OnWriteError func()                     // results could not be written, and will be again; may be nil
}

// An Engine works on the jobs of a namespace while it leads. Use NewEngine.
type Engine struct {
	cfg       EngineConfig
	log       *slog.Logger
	gate      *governor.Gate
	candidate *lease.Candidate
	state     stateKeeper
	rates     rates
	tally     tallyObserver

	lifting    atomic.Bool           // a halt that stands is to be ended by this process: it does not close the gate
	noResponse atomic.Pointer[error] // of the last call without a response
	leader     atomic.Pointer[lease.Record]
	known      chan struct{} // closed once halt and rate of the namespace are known
	once       sync.Once     // closes it

	lastGrant  atomic.Int64 // Unix time in nanoseconds; or when calls began to wait
	standstill atomic.Int64 // nanoseconds, see State

	hard    context.Context // of Run
	started time.Time       // of Run

	mu   sync.Mutex
	term *term // while this process leads
}

var (
	// errSilent is why the lead is handed over before a call has failed.
	errSilent = errors.New("calls have had no response for " + handoverAfter.String())

	// errStopped ends a term because the process is to stop.
	errStopped = errors.New("stopped")
)

// A handedOverError ends a term whose leader gave the lease to a standby.
type handedOverError struct {
	to    string // its host
	cause error  // why no call has a response
}

func (e *handedOverError) Error() string { return "the lead was handed over to " + e.to }

// NewEngine returns an engine. Nothing happens before Run. One that does not leave on a halt waits for NATS here, as it
// does later.
func NewEngine(ctx context.Context, cfg EngineConfig) (*Engine, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Rate <= 0 {
		cfg.Rate = governor.DefaultRate
	}
	e := &Engine{cfg: cfg, log: cfg.Log, known: make(chan struct{})}
	var store *broker.LeaseStore
	key := broker.LeaderLease
	if e.besideLeader() {
		key = broker.ReaderLease
	}
	err := e.begin(ctx, "open the lease", func() (err error) {
		store, err = cfg.Namespace.Conn.Lease(ctx, key)
		return err
	})
	if err != nil {
		return nil, err
	}
	e.state = stateKeeper{report: e.report, changed: make(chan struct{}), now: State{Rate: cfg.Rate}}
	cfg.Namespace.onConnection(func() {
		e.state.set(func(s *State) { s.Connected = cfg.Namespace.Conn.Connected() })
	})
	if e.tally.Observer = cfg.Worker.Observer; e.tally.Observer == nil {
		e.tally.Observer = metricsObserver{newMetrics(metrics.BuildInfo{})}
	}
	e.cfg.Worker.Observer = &e.tally
	e.gate = &governor.Gate{OnHalt: e.halted}
	e.lifting.Store(cfg.LiftHalt)
	e.candidate = lease.New(store, lease.Config{
		Name: cfg.Name, Host: cfg.Host, Rate: cfg.Rate, Timeout: cfg.Timeout, Clock: cfg.Clock,
		OnObserve: e.observe,
	})
	return e, nil
}

// observe notes who leads, and that another process does: one whose record is renewed.
func (e *Engine) observe(r lease.Record, _ uint64) {
	was := e.leader.Swap(&r)
	begins := was == nil || was.Term != r.Term
	renews := !begins && r.Holder != e.cfg.Name && !r.Released
	if s, _ := e.state.get(); !begins && was.Released == r.Released && (!renews || s.OtherLeads) {
		return
	}
	e.state.set(func(s *State) {
		s.Leader = ""
		if !r.Released {
			s.Leader = r.Host
		}
		if begins {
			s.LeaderChanges++
		}
		s.OtherLeads = s.OtherLeads || renews
	})
}

// Run leads or stands by until stop is closed, ctx ends, or it cannot continue. After stop the jobs in flight may end;
// when ctx ends they are left to the next leader at once. The error is nil after a stop, and a *governor.HaltedError
// after a halt with LeaveOnHalt, or when the credentials of this process have never worked.
func (e *Engine) Run(ctx context.Context, stop <-chan struct{}) error {
	e.hard, e.started = ctx, time.Now()
	ctx, leave := context.WithCancelCause(ctx)
	standby, endStandby := context.WithCancel(ctx)
	var background sync.WaitGroup
	defer background.Wait()
	defer endStandby()
	defer leave(nil)
	background.Go(func() {
		select {
		case <-stop:
			e.state.set(func(s *State) { s.Stopping = true })
			endStandby()
		case <-ctx.Done():
		}
	})
	background.Go(func() { e.follow(ctx) })
	background.Go(func() { e.sample(ctx) })
	background.Go(func() { e.announce(ctx) })
	if e.reads() {
		background.Go(func() { e.watchReader(ctx, leave) })
	} else {
		stopPresence, err := e.cfg.Namespace.Conn.Standby(func() []byte { return e.presence(ctx) })
		if err != nil {
			return err
		}
		defer stopPresence()
	}
	if e.cfg.LeaveOnHalt {
		background.Go(func() { e.leaveWhenHalted(ctx, leave) })
	}

	for {
		tenure, err := e.candidate.Lead(standby)
		if err != nil {
			if cause := context.Cause(ctx); governor.IsHalted(cause) || errors.As(cause, new(*ReadingError)) || errors.As(cause, new(*leadingError)) {
				return cause
			}
			if standby.Err() != nil {
				return nil
			}
			return err
		}
		err = e.newTerm(ctx, stop, tenure).lead()
		switch {
		case err == nil, errors.Is(err, errStopped):
			return nil
		case errors.As(err, new(*handedOverError)), errors.Is(err, lease.ErrLost), errors.Is(err, queue.ErrSuperseded):
			e.state.set(func(s *State) { s.Yielded = err })
		default:
			return err
		}
	}
}

// leaveWhenHalted ends a standby when the namespace halts, with the error that the leader would return. A halt that
// this process is to lift gets a moment for that: until it is clear that another process leads.
func (e *Engine) leaveWhenHalted(ctx context.Context, leave context.CancelCauseFunc) {
	const elected = lease.TakeoverDelay + lease.Duration
	var lifting sync.WaitGroup
	defer lifting.Wait()
	if e.lifting.Load() {
		lifting.Go(func() {
			if !clock.Pause(ctx, elected) || e.state.await(ctx, func(s *State) bool { return !s.Leading }) != nil {
				return
			}
			if !e.lifting.Swap(false) {
				return
			}
			if h, err := e.cfg.Namespace.Halted(ctx); err == nil && h != nil {
				e.applyHalt(h)
			}
		})
	}
	var cause error
	err := e.state.await(ctx, func(s *State) bool {
		if s.Halt == nil || s.Leading {
			return false
		}
		cause = s.Halt.Cause
		return !IsPause(cause)
	})
	if err == nil {
		leave(&governor.HaltedError{Cause: cause})
	}
}

// follow learns what people and other processes say: halts, the rate, the records of imports and syncs.
func (e *Engine) follow(ctx context.Context) {
	watcher := queue.Watcher{
		Halt: e.applyHalt,
		Rate: func(rate int) {
			e.changeRates(func(r *rates) { r.set = rate })
			e.once.Do(func() { close(e.known) }) // the halt comes before the rate
		},
		Import: func(id string) {
			if _, jobs := e.present(); jobs != nil {
				jobs.Changed(id)
			}
			if e.cfg.OnImport != nil {
				e.cfg.OnImport(id)
			}
		},
		Record: e.importChanged,
		Sync:   e.syncChanged,
		Resync: func() {
			if _, jobs := e.present(); jobs != nil {
				jobs.Resync()
			}
		},
	}
	for {
		err := e.cfg.Namespace.Watch(ctx, watcher)
		if err == nil || ctx.Err() != nil {
			return
		}
		e.cfg.Namespace.Conn.LogRetry("changes by other processes are not noticed; trying again", err)
		if !clock.Pause(ctx, time.Second) {
			return
		}
	}
}

func (e *Engine) applyHalt(h *queue.Halt) {
	if e.reads() && h != nil && h.State == queue.Halted { // of jobs: whether it can read, its own calls say
		h = nil
	}
	switch {
	case h == nil:
		e.gate.Resume()
		e.state.set(func(s *State) { s.Halt = e.haltFor(e.gate.Halted()) })
	case h.State == queue.Halted && e.lifting.Load():
	default:
		e.gate.Halt(&StandingHalt{*h})
	}
}

// AwaitWork returns nil when the credentials of this process are proved, when another process is seen to lead, or while
// the namespace is paused: then jobs can be put on the queue that somebody will do.
func (e *Engine) AwaitWork(ctx context.Context) error {
	return e.state.await(ctx, func(s *State) bool {
		return s.Verified || s.OtherLeads || s.Halt != nil && IsPause(s.Halt.Cause)
	})
}

// present returns the pace and the jobs of the present term; nil where there are none.
func (e *Engine) present() (*governor.Governor, *queue.Term) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.term == nil {
		return nil, nil
	}
	return e.term.pace, e.term.jobs
}

func (e *Engine) effectiveRate() int {
	s, _ := e.state.get()
	return s.Rate
}

// Leading reports whether this process leads.
func (e *Engine) Leading() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.term != nil
}

// lapsed reports whether this process leads, and its lease is not renewed.
func (e *Engine) lapsed() bool {
	e.mu.Lock()
	t := e.term
	e.mu.Unlock()
	return t != nil && t.tenure.Right().Left() <= 0
}

// setTerm notes that a term begins, or ends when t is nil.
func (e *Engine) setTerm(t *term) {
	e.mu.Lock()
	e.term = t
	e.mu.Unlock()
	e.state.set(func(s *State) {
		s.Outage, s.Lapsed = nil, false
		if s.Leader == e.cfg.Host { // nobody follows that is known
			s.Leader = ""
		}
		if s.Leading = t != nil; s.Leading {
			s.Term, s.Previous, s.Inherited, s.Yielded = t.tenure.Term(), t.before.Host, sum(t.before.Calls), nil
		}
	})
}

// begin is retry, but once for an engine that leaves on a halt: somebody waits to be told that NATS is out of reach.
func (e *Engine) begin(ctx context.Context, doing string, do func() error) error {
	err := do()
	if err != nil && !e.cfg.LeaveOnHalt {
		err = e.retry(ctx, doing, do)
	}
	return err
}

// retry calls do until it succeeds, fails for another reason than NATS being out of reach, or ctx ends.
func (e *Engine) retry(ctx context.Context, doing string, do func() error) error {
	for first := true; ; first = false {
		err := do()
		if err == nil || !broker.Unreachable(err) || ctx.Err() != nil {
			return err
		}
		if first {
			e.cfg.Namespace.Conn.LogRetry("a request to NATS failed; trying again", fmt.Errorf("%s: %w", doing, err))
		}
		if !clock.Pause(ctx, time.Second) {
			return ctx.Err()
		}
	}
}

// outage notes that an outage begins or ends.
func (e *Engine) outage(on bool) {
	e.state.set(func(s *State) {
		s.Outage = nil
		if on && s.Leading {
			s.Outage = &Outage{Since: time.Now()}
			if last := e.noResponse.Load(); last != nil {
				s.Outage.Err = *last
			}
		}
	})
}

// halted makes a halt of this process everybody's, and keeps it over restarts.
func (e *Engine) halted(cause error) {
	e.state.set(func(s *State) { s.Halt = e.haltFor(e.gate.Halted()) })
	h := e.haltFor(cause)
	if !h.own || e.reads() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closing)
	defer cancel()
	defer context.AfterFunc(e.hard, cancel)()
	if err := e.cfg.Namespace.SetHalt(ctx, h.Halt); err != nil {
		e.log.Error("the halt was not stored", "error", err)
	}
}

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

// sampleEvery is how often the pace of this process is looked at.
const sampleEvery = 250 * time.Millisecond

// sample keeps, until ctx ends, what only time brings about: that the lease lapses, that no call has a response, and for how
// long calls have waited while none was permitted. It also corrects an outage that was reported in the wrong order.
func (e *Engine) sample(ctx context.Context) {
	const standing = time.Second // waiting that long without a permit begins to count
	differ := 0
	for clock.Pause(ctx, sampleEvery) {
		s, _ := e.state.get()
		waiting, silent, out := 0, false, s.Outage != nil
		if pace, _ := e.present(); pace != nil {
			now := pace.Snapshot()
			for _, lane := range now.Lanes {
				waiting += lane.Waiting
			}
			silent = pace.Silent() >= handoverAfter
			if now.State != governor.Halted { // which hides an outage
				out = now.State == governor.Outage
			}
		}
		if lapsed := e.lapsed(); silent != s.Silent || lapsed != s.Lapsed {
			e.state.set(func(s *State) { s.Silent, s.Lapsed = silent, lapsed && s.Leading })
		}
		if differ++; out == (s.Outage != nil) {
			differ = 0
		} else if differ == 2 { // not just about to be reported
			e.outage(out)
		}
		now := time.Now()
		switch {
		case waiting == 0 || s.Halt != nil:
			e.lastGrant.Store(now.UnixNano())
		case now.Sub(time.Unix(0, e.lastGrant.Load())) > standing:
			e.standstill.Add(int64(sampleEvery))
		}
	}
}

func sum(calls map[string]int) int {
	n := 0
	for _, c := range calls {
		n += c
	}
	return n
}
