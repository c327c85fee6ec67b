// Package worker takes jobs, makes their calls and gives back their results.
//
//	            as many as there are free slots
//	jobs ─────────────────────────────────────────► job
//	 ▲                                               │
//	 │ requeue: failed for now, stop, halt           ▼
//	 └───────────────────────────────── chunk by chunk: permit ► call ► response
//	                                                 │
//	                                                 ▼ the outcome of every conversation is known
//	                                          Finish(result)
//
// Each of the slots does one job at a time: it takes a job, makes the job's calls, and either finishes the job with a
// result or requeues it. A job is taken only when there is a slot for it, so none waits in a buffer here. The queue
// keeps track of the jobs in flight, of requeued jobs and of attempts. A job whose result was not stored is done again,
// and doing a job again leads to the same groups.
//
// A failure is handled in one of four ways, by the class of the code. The call is repeated here: it was throttled, was
// not sent, or failed in a way that may pass. The whole job is requeued, which counts as an attempt. What failed is
// recorded: the result says partial or failed. Or everything halts, because every job would fail the same way. During
// an outage nothing counts as an attempt. A panic ends one job as failed, not the process. See [chat.Class] and
// [internal/governor].
//
// # Performance
//
// Measured on 2 cores of a virtual machine: one `work --drain` took 0.20 to 0.27 CPU seconds for 1,000 jobs, of 10,000
// with 20 conversations each, embedded server included and every result synced to disk. Without a limit and without
// latency it made 4,800 to 5,500 calls a second, 24 times what the API takes and more. At 200 calls a second, 1,000
// jobs took 0.65 CPU seconds; a bare loop of as many calls took 0.37. More than half of the time goes into the calls
// themselves, a fifth into the batches that the results are written with. This measures it again:
//
//	go test ./cmd/groupferry -run '^$' -bench Drain -benchtime 3x
package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"groupferry/internal/chat"
	"groupferry/internal/governor"
	"groupferry/internal/job"
)

// Jobs is where jobs come from.
type Jobs interface {
	// Next waits for a job. It is not called again before it returned. An error that is not about ctx means that there
	// are no more jobs here, and ends Run.
	Next(ctx context.Context) (Delivery, error)
}

// A Delivery is a job in flight. Exactly one of Finish and Requeue is called on it.
type Delivery interface {
	Import() string
	Sequence() uint64 // names the message on the stream
	Job() (job.Job, error)

	// Prior returns the result that a retried job replaces; nil when there is none.
	Prior(context.Context) (*job.Result, error)

	// Earlier reports whether an earlier leader may have made calls for the job, which may still take effect.
	Earlier() bool

	// Night reports whether a later import may do the opposite of this one, once the job is over: it is a night of a sync.
	Night() bool

	// Attempt counts from 1: this delivery, and those before it that were requeued as counted.
	Attempt() int

	// Finish hands over the job's result. It does not wait until the result is written.
	Finish(job.Result)

	// Requeue puts the job on the queue again, to be delivered after a while. An attempt is counted or not.
	Requeue(after time.Duration, counted bool)
}

// API is the REST API, as far as it writes groups and reads them.
type API interface {
	Create(context.Context, chat.CreateRequest) (chat.Response, error)
	Update(context.Context, chat.UpdateRequest) (chat.Response, error)
	Rename(context.Context, chat.RenameRequest) error
	Delete(ctx context.Context, fromAccount, groupName string) error // no error where there is no such group
	Get(ctx context.Context, fromAccount string, start int64) (chat.Page, error)
	Renew() error
}

// Pace says when a call may be made.
type Pace interface {
	Acquire(ctx context.Context, command, userID string) (*governor.Permit, error)
	Halt(cause error)
	Halted() error
	AwaitResume(context.Context) error
}

// An Observer is notified of events. Its methods are called from many goroutines at once.
type Observer interface {
	// CallDone reports one call that was sent: "ok", "partial" (some conversations failed) or the code of its error.
	CallDone(command, code string, d time.Duration)
	Retry(command string)
	JobStarted()
	// JobDone reports a job that has its result, and how many conversations it put into the group, or failed to.
	JobDone(outcome string, conversationsDone, conversationsFailed int, d time.Duration, attempts int)
	// Removed reports what such a job took out of its group, or failed to, and the groups that it deleted, if any.
	Removed(conversations, conversationsFailed, groups int)
	// JobRequeued reports that a job was requeued without a result: "retry", "stop" or "halt".
	JobRequeued(reason string)
}

// Config says how to work. The zero value is ready to use.
type Config struct {
	Concurrency int           // slots: jobs in flight at once; 0 means 256, enough for 200 calls a second of more than a second each
	ChunkSize   int           // conversations in a call, at most and by default chat.MaxItemsPerCall
	MaxAttempts int           // attempts of a job before its failure is final; 0 means 8
	Grace       time.Duration // how long jobs in flight may continue after a stop; 0 means 30 s
	Name        string        // who wrote a result
	Observer    Observer      // may be nil
	Log         *slog.Logger  // may be nil

	// Known is what an earlier run learned about this API. OnKnown, unless nil, is called with each change of it; it
	// must not block.
	Known   Known
	OnKnown func(Known)

	// AcceptReplace allows create even if it may remove what a group holds, and there is no way to check that.
	AcceptReplace bool

	// OnNoResponse, unless nil, is called with the error of each call that the API did not respond to, before the pace
	// knows of it.
	OnNoResponse func(error)

	// LeaveOn reports whether Run returns a halt instead of waiting for its end; nil means that it always waits.
	LeaveOn func(cause error) bool
}

const (
	haltDelay  = time.Second     // before a job that a halt sent back may be delivered again
	priorDelay = 5 * time.Second // before a retried job whose earlier result could not be read is delivered again

	// A job that failed for now comes back after 1, 2, 4 … 60 s, give or take a quarter.
	retryFirst = time.Second
	retryMost  = time.Minute

	// forgetAfter is how long the state of a requeued job is kept that is not delivered again: its import was
	// cancelled.
	forgetAfter = time.Hour
)

// CodePanic is the code of conversations that were not done because a defect of this program ended their job.
const CodePanic = "panic"

// A Worker works on jobs. Use New.
type Worker struct {
	cfg  Config
	jobs Jobs
	api  API
	pace Pace

	turn    chan struct{} // one place: the slot whose turn it is to take a job
	waiting atomic.Int64  // slots that wait for a job

	started time.Time
	known   *knowledge
	users   keys          // those whose groups a job works on
	deleter chan struct{} // a place for each of the few jobs that may be about to delete a group
	repeats repeats

	mu       sync.Mutex
	open     time.Time              // until then a call of a job that was stopped may take effect
	spent    map[messageID]spent    // on jobs that were requeued
	deletes  map[messageID]deletion // jobs that have no result yet
	tidiedAt time.Time              // when spent was last rid of what did not come back
}

// A messageID names what a delivery delivers.
type messageID struct {
	importID string
	sequence uint64
}

// spent is what earlier deliveries of a job took.
type spent struct {
	calls      int
	started    time.Time // the first of them
	ended      time.Time // the last of them
	needsCheck bool      // a call had no response
	anew       bool      // the group was gone, and is being created anew
	deleting   int64     // the group that may have been deleted; 0 for none
}

// A deletion is a job that is to delete a group of a user.
type deletion struct {
	user  string
	begun time.Time // its last attempt
}

// New returns a worker. Nothing happens before Run.
func New(cfg Config, jobs Jobs, api API, pace Pace) *Worker {
	if cfg.Concurrency <= 0 {
		cfg.Concurrency = 256
	}
	if cfg.ChunkSize <= 0 || cfg.ChunkSize > chat.MaxItemsPerCall {
		cfg.ChunkSize = chat.MaxItemsPerCall
	}
	if cfg.MaxAttempts <= 0 {
		cfg.MaxAttempts = 8
	}
	if cfg.Grace <= 0 {
		cfg.Grace = 30 * time.Second
	}
	if cfg.Observer == nil {
		cfg.Observer = nobody{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Worker{
		cfg: cfg, jobs: jobs, api: api, pace: pace,
		turn: make(chan struct{}, 1), started: time.Now(),
		known:   newKnowledge(cfg.Known, cfg.OnKnown, cfg.Log),
		users:   keys{held: map[string]chan struct{}{}},
		deleter: make(chan struct{}, deleters),
		spent:   map[messageID]spent{}, deletes: map[messageID]deletion{},
	}
}

// Run works until stop is closed, ctx ends, or it cannot continue. It stops in two phases. When stop is closed it takes
// no more jobs, lets those in flight continue for the grace time and requeues the rest. When ctx ends it requeues all
// of them at once.
//
// It returns nil when it was stopped, a *governor.HaltedError when it was halted and configured to leave then, and
// otherwise [ErrMayReplace], the error of Jobs.Next or governor.ErrClosed; jobs in flight then have the grace time as
// well.
func (w *Worker) Run(ctx context.Context, stop <-chan struct{}) error {
	working, leave := context.WithCancel(ctx) // phase two: no more calls
	defer leave()
	taking, stopTaking := context.WithCancel(working) // phase one: no more jobs
	defer stopTaking()

	// The slots stay for all jobs: a goroutine for each job would have to grow its stack each time. There is always one
	// that waits for a job, until there are as many as may be.
	var slots errgroup.Group
	var started atomic.Int64
	var add func()
	add = func() {
		if started.Add(1) > int64(w.cfg.Concurrency) {
			return
		}
		slots.Go(func() error {
			defer stopTaking() // what ends one slot ends all
			return w.work(working, taking, add)
		})
	}
	add()
	ended := make(chan error, 1)
	go func() { ended <- slots.Wait() }()

	select {
	case err := <-ended:
		return err
	case <-stop:
		stopTaking()
	case <-taking.Done():
	}
	select {
	case err := <-ended:
		return err
	case <-time.After(w.cfg.Grace):
		leave()
	}
	return <-ended
}

// work is what one slot does; it adds another one when it leaves none behind that waits for a job. It returns nil when
// taking has ended, and the error for which nobody can continue.
func (w *Worker) work(working, taking context.Context, add func()) error {
	for {
		w.waiting.Add(1)
		d, err := w.take(taking)
		if w.waiting.Add(-1) == 0 && err == nil {
			add()
		}
		if err == nil {
			err = w.handle(working, d)
		}
		if taking.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// take waits for a job, and before that for the end of a halt. One slot at a time waits; the others wait for their
// turn.
func (w *Worker) take(taking context.Context) (Delivery, error) {
	select {
	case w.turn <- struct{}{}:
	case <-taking.Done():
		return nil, taking.Err()
	}
	defer func() { <-w.turn }()

	for {
		if err := w.awaitResume(taking); err != nil {
			return nil, err
		}
		d, err := w.jobs.Next(taking)
		switch {
		case err != nil:
			return nil, err
		case taking.Err() != nil:
			w.cfg.Observer.JobStarted()
			w.requeue(d, "stop", 0, false)
			return nil, taking.Err()
		case w.pace.Halted() != nil: // it was halted while this waited for a job
			w.cfg.Observer.JobStarted()
			w.requeue(d, "halt", 0, false)
		default:
			return d, nil
		}
	}
}

// awaitResume returns at once when nothing is halted.
func (w *Worker) awaitResume(taking context.Context) error {
	cause := w.pace.Halted()
	if cause == nil {
		return nil
	}
	if w.cfg.LeaveOn != nil && w.cfg.LeaveOn(cause) {
		return &governor.HaltedError{Cause: cause}
	}
	return w.pace.AwaitResume(taking)
}

// handle does one job: it finishes or requeues d. What happened to the job is in its result; an error says that no job
// can be done any more.
func (w *Worker) handle(ctx context.Context, d Delivery) error {
	w.cfg.Observer.JobStarted()
	start := time.Now()
	a := newAttempt(w, d, start)
	handled := false // no panic comes from what follows then
	defer func() {
		if handled {
			return
		}
		w.finishPanic(d, a, start, recover())
	}()

	err := a.prepare(ctx)
	if err == nil {
		err = a.run(ctx)
	}
	handled = true
	switch made := d.Attempt(); {
	case err == nil:
		w.finish(d, a, start)
	case errors.Is(err, errUndecodable):
		a.fail(job.CodeUndecodable, err.Error())
		w.finish(d, a, start)
	case ctx.Err() != nil:
		w.requeueAttempt(d, a, "stop", 0, false)
	case errors.Is(err, governor.ErrClosed):
		w.requeueAttempt(d, a, "stop", 0, false)
		return err
	case governor.IsHalted(err):
		w.requeueAttempt(d, a, "halt", haltDelay, false)
	case errors.Is(err, ErrMayReplace):
		w.requeueAttempt(d, a, "stop", 0, false)
		return err
	case errors.Is(err, errStale):
		w.requeueAttempt(d, a, "retry", 0, false)
	case errors.Is(err, errPrior):
		w.cfg.Log.Warn("a job waits because the result that it replaces could not be read", "import", d.Import(), "error", err)
		w.requeueAttempt(d, a, "retry", priorDelay, false)
	case made >= w.cfg.MaxAttempts:
		a.giveUp(err)
		w.finish(d, a, start)
	default:
		w.cfg.Log.Debug("job failed for now", "import", d.Import(), "job", d.Sequence(), "attempt", made, "error", err)
		w.requeueAttempt(d, a, "retry", jittered(backoff(retryFirst, retryMost, made-1)), true)
	}
	return nil
}

// finish passes the result on.
func (w *Worker) finish(d Delivery, a *attempt, start time.Time) {
	r := a.final()
	r.Worker, r.Finished = w.cfg.Name, time.Now()
	w.mu.Lock()
	delete(w.spent, messageOf(d))
	delete(w.deletes, messageOf(d))
	w.mu.Unlock()
	// Counted before it is handed over: the result may be the last one, and the process gone with it.
	done, failed := count(&r, job.Add)
	// What an earlier generation did was counted then; of that, some may be out of the group by now.
	done = max(0, done-a.doneBefore())
	removed, removesFailed := count(&r, job.Remove)
	if a.before != nil {
		before, _ := count(a.before, job.Remove)
		removed -= before
	}
	deleted := 0
	if r.Deleted {
		deleted = 1
	}
	if removed+removesFailed+deleted > 0 {
		w.cfg.Observer.Removed(removed, removesFailed, deleted)
	}
	w.cfg.Observer.JobDone(string(r.Outcome), done, failed, time.Since(start), a.made)
	d.Finish(r)
}

// finishPanic makes a defect in this program the failure of one job. Neither the log nor the result repeats the value
// of the panic unless the runtime made it, for it may hold anything.
func (w *Worker) finishPanic(d Delivery, a *attempt, start time.Time, value any) {
	text := fmt.Sprintf("a panic with a value of type %T", value)
	if err, ok := value.(runtime.Error); ok {
		text = err.Error()
	}
	w.cfg.Log.Error("a job ended in a panic; it is recorded as failed", "error", text, "stack", string(debug.Stack()))
	a.fail(CodePanic, text)
	w.finish(d, a, start)
}

// requeueAttempt requeues a job of which an attempt was made, and keeps what the attempt took.
func (w *Worker) requeueAttempt(d Delivery, a *attempt, reason string, after time.Duration, counted bool) {
	now := time.Now()
	w.mu.Lock()
	w.spent[messageOf(d)] = spent{calls: a.calls, started: a.started, ended: now, needsCheck: a.needsCheck, anew: a.restarted || a.anew, deleting: a.deleting}
	if a.openUntil.After(w.open) {
		w.open = a.openUntil
	}
	if now.Sub(w.tidiedAt) > forgetAfter {
		w.tidiedAt = now
		maps.DeleteFunc(w.spent, func(_ messageID, s spent) bool { return now.Sub(s.ended) > forgetAfter })
		maps.DeleteFunc(w.deletes, func(_ messageID, d deletion) bool { return now.Sub(d.begun) > forgetAfter })
	}
	w.mu.Unlock()
	w.requeue(d, reason, after, counted)
}

func (w *Worker) requeue(d Delivery, reason string, after time.Duration, counted bool) {
	w.cfg.Observer.JobRequeued(reason)
	d.Requeue(after, counted)
}

// OpenCalls reports whether a call without a response, of a job that a stop left without a result, may still take effect.
// Call it when Run has returned.
func (w *Worker) OpenCalls() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Now().Before(w.open)
}

// earlierUntil is when the calls of an earlier leader for a job have taken effect, if they ever do; zero if there are
// none.
func (w *Worker) earlierUntil(d Delivery) time.Time {
	if !d.Earlier() || w.known.harmless() {
		return time.Time{}
	}
	return w.started.Add(LateTime)
}

func (w *Worker) spentOn(d Delivery) spent {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.spent[messageOf(d)]
}

// noteDelete notes that there is a job that is to delete a group of a user.
func (w *Worker) noteDelete(d Delivery, user string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deletes[messageOf(d)] = deletion{user, time.Now()}
}

// deletesGroup reports whether there is a job that is to delete a group of a user, and has no result yet.
func (w *Worker) deletesGroup(user string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.deletes {
		if d.user == user {
			return true
		}
	}
	return false
}

func messageOf(d Delivery) messageID { return messageID{d.Import(), d.Sequence()} }

func sequenceName(n uint64) string { return "seq-" + strconv.FormatUint(n, 10) }

type nobody struct{}

func (nobody) CallDone(string, string, time.Duration)       {}
func (nobody) Retry(string)                                 {}
func (nobody) JobStarted()                                  {}
func (nobody) JobDone(string, int, int, time.Duration, int) {}
func (nobody) Removed(int, int, int)                        {}
func (nobody) JobRequeued(string)                           {}
