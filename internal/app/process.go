package app

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"groupferry/internal/broker"
	"groupferry/internal/clock"
	"groupferry/internal/job"
	"groupferry/internal/queue"
	"groupferry/metrics"
)

// ProcessConfig says how a process works, and when it ends.
type ProcessConfig struct {
	Engine  EngineConfig // OnGrant, OnComplete, OnImport, OnWriteError and Worker.Observer are set by the process
	Monitor *Monitor     // serves metrics and readiness; nil: nobody does

	Import string        // end when this import is over
	Drain  bool          // end when nothing is left to do for any import
	Keep   time.Duration // delete imports that ended longer ago, at the start and every hour; 0 means never

	// OnAbandoned, unless nil, is called once for each import that is found to be abandoned.
	OnAbandoned func(ImportProgress)
}

var (
	// ErrStopped says that a process was told to stop before its import was over, or before it reached NATS.
	ErrStopped = errors.New("stopped")

	// ErrAbandoned says that all is done but for imports that are not on the queue as a whole, and nothing has come for 10 s.
	ErrAbandoned = errors.New("an import is not on the queue as a whole")
)

// A Process is what the commands run and work have in common: an [Engine], and those who watch its state. Use NewProcess.
type Process struct {
	*Engine
	Metrics *metrics.Metrics

	cfg     ProcessConfig
	log     *slog.Logger
	changed chan struct{}          // one place: the record of an import changed
	quiet   map[string]quietImport // by ID; of the goroutine that reads the progress
	before  []queue.Import         // with Drain: all imports, before anything was done
}

// NewProcess returns a process. Nothing happens before Run. The error is a *[queue.OtherAppError] when the namespace
// belongs to another app; it may also belong to nobody yet.
func NewProcess(ctx context.Context, cfg ProcessConfig) (*Process, error) {
	monitor := cfg.Monitor
	if monitor == nil {
		monitor = NewMonitor("", "")
	}
	p := &Process{cfg: cfg, Metrics: monitor.Metrics, changed: make(chan struct{}, 1), quiet: map[string]quietImport{}}
	engine := cfg.Engine
	engine.OnGrant, engine.OnWriteError = p.Metrics.Granted, p.Metrics.ResultWriteFailed
	engine.Worker.Observer = metricsObserver{p.Metrics}
	engine.OnComplete = func(i queue.Import) {
		if i.Sync != "" {
			if n := i.AsNight(); !wroteNothing(n) {
				logNight(p.log, i.Sync, n)
			}
			return
		}
		p.log.Info("import is complete", "import", i.ID)
	}
	engine.OnImport = func(string) {
		select {
		case p.changed <- struct{}{}:
		default:
		}
	}
	var err error
	if p.Engine, err = NewEngine(ctx, engine); err != nil {
		return nil, err
	}
	p.log = p.Engine.log
	var have *queue.App
	err = p.begin(ctx, "read the app of the namespace", func() (err error) {
		have, err = cfg.Engine.Namespace.App(ctx)
		return err
	})
	if err == nil && have != nil && *have != cfg.Engine.App {
		err = &queue.OtherAppError{Want: cfg.Engine.App, Have: *have}
	}
	if err == nil && cfg.Drain {
		err = p.begin(ctx, "list the imports", func() (err error) {
			p.before, err = cfg.Engine.Namespace.Imports(ctx)
			return err
		})
	}
	if err != nil {
		return nil, err
	}
	monitor.process.Store(p)
	return p, nil
}

// Run works until stop is closed, until Import or Drain says that it is done, or until it cannot continue; see
// [Engine.Run]. The error is ErrAbandoned when Drain leaves an import, and a *[broker.DamagedError] when it leaves one
// that is damaged. All that Run started has ended when it returns.
func (p *Process) Run(ctx context.Context, stop <-chan struct{}) error {
	watching, stopWatching := context.WithCancel(ctx)
	var watchers sync.WaitGroup
	defer watchers.Wait()
	defer stopWatching()
	if p.cfg.Monitor != nil {
		watchers.Go(func() { p.watchStorage(watching) })
		if api := p.cfg.Engine.API; !api.Renews() {
			watchers.Go(func() { warnOfEnd(watching, p.log, api.SigExpiry()) })
		}
	}
	if p.cfg.Keep > 0 {
		watchers.Go(func() {
			deleting, end := untilStopped(ctx, stop) // what it has begun it ends, unless a stop comes
			defer end()
			for {
				p.cfg.Engine.Namespace.DeleteOld(deleting, p.cfg.Keep, p.log)
				if !clock.Pause(watching, tidyEvery) {
					return
				}
			}
		})
	}
	finished := make(chan struct{}) // closed when the engine has to stop
	finish := sync.OnceFunc(func() { close(finished) })
	watchers.Go(func() { // also while the progress is read, which takes seconds without NATS
		select {
		case <-stop:
			finish()
		case <-watching.Done():
		}
	})
	var overErr error
	watchers.Go(func() { overErr = p.watchProgress(watching, stop, finish) })
	err := p.Engine.Run(ctx, finished)
	stopWatching()
	watchers.Wait()
	if p.cfg.Monitor != nil {
		last := p.State()
		p.cfg.Monitor.last.Store(&last)
	}
	if err == nil {
		err = overErr
	}
	return err
}

// RunImport works as Run does, and calls enqueue, unless it is nil, as soon as somebody can do its jobs: a wrong key is
// reported before anything is on the queue. An error of either ends the other. The error is ErrStopped when stop was
// closed before the import was over.
func (p *Process) RunImport(ctx context.Context, stop <-chan struct{}, enqueue func(context.Context) error) error {
	enqueueing, stopEnqueueing := untilStopped(ctx, stop)
	defer stopEnqueueing()
	ended := make(chan struct{}) // closed by a stop, or when the enqueueing failed
	enqueued := make(chan error, 1)
	go func() {
		var err error
		if enqueue != nil {
			if err = p.AwaitWork(enqueueing); err == nil {
				err = enqueue(enqueueing)
			}
		}
		enqueued <- err
		if err == nil {
			<-enqueueing.Done()
		}
		close(ended)
	}()
	err := p.Run(ctx, ended)
	stopEnqueueing()
	enqueueErr := <-enqueued
	stopped := isClosed(stop)
	over := !stopped || err != nil // so there was no more use in enqueueing
	if enqueueErr != nil && !(over && errors.Is(enqueueErr, context.Canceled)) {
		return enqueueErr
	}
	if err != nil || !stopped {
		return err
	}
	// The stop may have come after the last result.
	i, err := p.cfg.Engine.Namespace.Import(context.WithoutCancel(ctx), p.cfg.Import)
	if err == nil && !i.State.Over() {
		err = ErrStopped
	}
	return err
}

// Drained returns what the imports have come to, newest first, that were not over when this process was made, or came
// later. It is for Drain, after Run. An import that is damaged, or deleted meanwhile, is left out.
func (p *Process) Drained(ctx context.Context) ([]ImportStatus, error) {
	n := p.cfg.Engine.Namespace
	now, err := n.Imports(ctx)
	if err != nil {
		return nil, err
	}
	var all []ImportStatus
	for _, i := range now {
		wasOver := func(b queue.Import) bool {
			return b.ID == i.ID && b.Incarnation == i.Incarnation && b.Generation == i.Generation && b.State.Over()
		}
		if slices.ContainsFunc(p.before, wasOver) {
			continue
		}
		s, err := n.ImportStatus(ctx, i.ID)
		switch {
		case errors.Is(err, queue.ErrNoImport), errors.As(err, new(*broker.DamagedError)):
		case err != nil:
			return nil, err
		default:
			all = append(all, s)
		}
	}
	return all, nil
}

const (
	// progressEvery is how often the progress of imports is read; the record of an import that changes is read at once.
	progressEvery = time.Second

	// abandonedAfter is how long nothing is put on the queue for an import until its importer is taken for gone.
	abandonedAfter = 10 * time.Second

	// storageEvery is how often NATS is asked what it keeps: about as often as a Prometheus asks.
	storageEvery = 15 * time.Second

	// sigWarning is how long before its end a UserSig that nobody renews is logged, and GroupferryUserSigExpires fires.
	sigWarning = 24 * time.Hour

	// tidyEvery is how often a process looks for imports that are too old to be kept.
	tidyEvery = time.Hour
)

// warnOfEnd logs, once it is near, that a UserSig ends which nobody renews. It waits for that, or until ctx ends. The zero
// time means that nobody knows when.
func warnOfEnd(ctx context.Context, log *slog.Logger, end time.Time) {
	if end.IsZero() || !clock.Pause(ctx, time.Until(end.Add(-sigWarning))) {
		return
	}
	log.Warn("the UserSig ends soon, and nobody renews it", "seconds_left", int(time.Until(end).Seconds()),
		"hint", "start again with a new UserSig, or with --secret-key-file, from which groupferry makes its own")
}

// watchProgress keeps the progress in the state until ctx ends. It calls end when all is done that this process is for,
// unless stop was closed before; the error is about that.
func (p *Process) watchProgress(ctx context.Context, stop <-chan struct{}, end func()) error {
	defer end()
	var result error
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for done := false; ; {
		now, err := p.readProgress(ctx)
		if ctx.Err() != nil {
			return result
		}
		p.state.set(func(s *State) {
			if s.Progress = nil; err == nil {
				s.Progress, s.LastProgress = &now, &now
			}
		})
		if !done {
			if done, err = p.isDone(&now, err); done {
				result = err
				end()
			}
		}
		select {
		case <-stop:
			stop, done = nil, true
		case <-ctx.Done():
			return result
		case <-p.changed:
		case <-tick.C:
		}
	}
}

// isDone reports whether there is nothing left of what this process is for, whoever did it; readErr is the error of the
// progress. An import that is damaged can have no end: the error is about that, once all others are done.
func (p *Process) isDone(now *Progress, readErr error) (done bool, err error) {
	switch {
	case errors.As(readErr, new(*broker.DamagedError)), errors.Is(readErr, queue.ErrNoImport), errors.Is(readErr, job.ErrVersion):
		return true, readErr // asking again does not help
	case readErr != nil:
		p.log.Debug("cannot tell whether the work is done", "error", readErr)
		return false, nil
	case p.cfg.Import != "":
		for _, i := range now.Imports {
			done = done || i.Import.ID == p.cfg.Import && i.Import.State.Over()
		}
		return done, nil
	case !p.cfg.Drain || now.Totals("").Imports > 0:
		return false, nil
	}
	for _, i := range now.Imports {
		if i.Damaged != nil {
			return true, i.Damaged
		}
	}
	if len(now.Imports) > 0 {
		return true, ErrAbandoned
	}
	return true, nil
}

// readProgress reads how far the imports are. A process that is for one import alone, and serves no metrics, reads that
// one; its error then is one about that import.
func (p *Process) readProgress(ctx context.Context) (now Progress, err error) {
	n := p.cfg.Engine.Namespace
	if p.cfg.Import != "" {
		own, err := n.Progress(ctx, p.cfg.Import)
		if err != nil {
			return now, err
		}
		now.Imports = append(now.Imports, ImportProgress{Progress: own})
		if p.cfg.Monitor == nil {
			return now, nil
		}
	}
	open, err := n.OpenImports(ctx)
	if err != nil {
		if p.cfg.Import != "" {
			err = nil
		}
		return now, err
	}
	maps.DeleteFunc(p.quiet, func(id string, _ quietImport) bool { return !slices.Contains(open, id) })
	for _, id := range open {
		if id == p.cfg.Import {
			continue
		}
		at, err := n.Progress(ctx, id)
		switch {
		case errors.Is(err, queue.ErrNoImport), err == nil && at.Import.State.Over():
			continue // its jobs are just being removed
		case errors.As(err, new(*broker.DamagedError)):
			at.Damaged = err
		case err != nil && p.cfg.Import != "":
			continue // it is nothing to this process
		case err != nil:
			return now, err
		}
		i := ImportProgress{Progress: at}
		i.Abandoned = err == nil && at.Pending+at.InFlight == 0 && p.isAbandoned(i)
		now.Imports = append(now.Imports, i)
	}
	return now, nil
}

// A quietImport is how far an import was enqueued, since when.
type quietImport struct {
	jobs     int64
	since    time.Time
	reported bool
}

// isAbandoned reports whether an import that is not on the queue as a whole has not got further for a while. It reports
// so once: nobody can tell here whether its importer is gone or slow.
func (p *Process) isAbandoned(i ImportProgress) bool {
	id := i.Import.ID
	if i.Import.State != queue.Enqueueing && i.Import.State != queue.Retrying {
		delete(p.quiet, id)
		return false
	}
	was, known := p.quiet[id]
	if !known || was.jobs != i.Enqueued {
		p.quiet[id] = quietImport{jobs: i.Enqueued, since: time.Now()}
		return false
	}
	if time.Since(was.since) < abandonedAfter {
		return false
	}
	if !was.reported && p.cfg.OnAbandoned != nil {
		p.cfg.OnAbandoned(i)
	}
	was.reported = true
	p.quiet[id] = was
	return true
}

// DeleteOld deletes the imports that were over longer ago than keep, and logs which; 0 means none.
func (n *Namespace) DeleteOld(ctx context.Context, keep time.Duration, log *slog.Logger) {
	if keep == 0 {
		return
	}
	gone, err := n.DeleteOlder(ctx, keep)
	for _, id := range gone {
		log.Info("import is deleted", "import", id, "keep_seconds", int(keep.Seconds()))
	}
	if err != nil && ctx.Err() == nil {
		log.Warn("imports that are too old could not be deleted", "error", err)
	}
}

// watchStorage keeps in the state what NATS keeps, until ctx ends.
func (p *Process) watchStorage(ctx context.Context) {
	for {
		bytes, err := p.cfg.Engine.Namespace.Storage(ctx)
		if err != nil {
			p.log.Debug("ask for what NATS keeps", "error", err)
		}
		p.state.set(func(s *State) { s.Storage = bytes })
		if !clock.Pause(ctx, storageEvery) {
			return
		}
	}
}

// untilStopped returns a context that ends with ctx, or when stop is closed.
func untilStopped(ctx context.Context, stop <-chan struct{}) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		select {
		case <-stop:
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
