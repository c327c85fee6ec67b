// Package worker takes jobs, makes their calls and writes their results.
//
//	            fetch as many as there are free hands
//	jobs ──────────────────────────────────────────────► job
//	 ▲                                                    │ a result is there already? ──► ack
//	 │ put back: failed for now, stop, halt               ▼
//	 └──────────────────────────────────────── chunk by chunk: permit ► call ► answer
//	                                                      │
//	                                                      ▼ every conversation is settled
//	                                           result, then ack
//
// A job is taken from the stream only when there is a hand for it, so none waits in a buffer; while it is in hand a
// heartbeat keeps the queue from giving it to anybody else. The result is written before the job is acknowledged, and
// every delivery looks for a result first: whatever is cut short at any point, the job is done again, and doing a job
// again leads to the same end.
//
// What goes wrong is settled in one of four ways, told by the class of the code: the call is made again here (throttled,
// or a failure that passes), the whole job is put back for later (an attempt), what failed is recorded (a result says
// partial or failed), or everything halts because every job would fail the same way. During an outage nothing counts
// as an attempt. See [internal/chat.Class] and [internal/governor].
package worker

import (
	"context"
	"errors"
	"log/slog"
	"maps"
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
	// Fetch waits for at least one job and returns at most max. It returns none, and no error, when nothing came
	// for a while. An error means that the queue is out of reach for now.
	Fetch(ctx context.Context, max int) ([]Delivery, error)
}

// A Delivery is a job in hand. What is neither acknowledged nor put back is delivered again after a minute without a
// heartbeat.
type Delivery interface {
	Import() string
	Sequence() uint64 // names the message on the stream
	Job() (job.Job, error)
	Ack(context.Context) error
	Nak(ctx context.Context, delay time.Duration) error
	Working(context.Context) error // the heartbeat
}

// Results is where results go.
type Results interface {
	// Get reads the newest result of a job and the sequence at which it stands; 0 when there is none.
	Get(ctx context.Context, importID, jobID string) (job.Result, uint64, error)
	// Put stores a result in place of the one at that sequence, 0 when it is to be the first. False says that another
	// one stands there by now.
	Put(ctx context.Context, r job.Result, sequence uint64) (bool, error)
}

// API is the part of the REST API that writes groups.
type API interface {
	Create(context.Context, chat.CreateRequest) (chat.Answer, error)
	Update(context.Context, chat.UpdateRequest) (chat.Answer, error)
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

// Observer is told what happens; it is never asked.
type Observer interface {
	// CallDone tells of one call: "ok", "partial" (some conversations failed) or the word of its error.
	CallDone(command, word string, d time.Duration)
	Retry(command string)
	JobStarted()
	JobDone(outcome string, conversationsDone, conversationsFailed int, d time.Duration, attempts int)
	// JobPutBack tells that a job left without a result: "retry", "stop" or "halt".
	JobPutBack(reason string)
}

// Config says how to work. The zero value is ready to use.
type Config struct {
	Concurrency int           // jobs in hand at once; 0 means 256: enough for 200 calls a second of more than a second each
	ChunkSize   int           // conversations in a call, at most and by default chat.MaxItemsPerCall
	MaxAttempts int           // attempts of a job before its failure is final; 0 means 8
	Grace       time.Duration // how long jobs in hand may go on after a stop; 0 means 30 s
	Name        string        // who wrote a result
	Observer    Observer      // may be nil
	Log         *slog.Logger  // may be nil

	// LeaveOn tells whether Run returns a halt instead of waiting for its end; nil means that it always waits.
	LeaveOn func(cause error) bool

	// Finished is asked when no job came for a while and none is in hand; Run returns when it says so. Nil means
	// that work never ends by itself.
	Finished func(context.Context) (bool, error)
}

const (
	heartbeat = 15 * time.Second      // a quarter of the queue's ack wait, so that three may get lost
	settle    = 10 * time.Second      // for a result and an ack after the context of the work has ended
	linger    = 10 * time.Millisecond // for more hands to come free, so that not each job is asked for by itself
	haltDelay = time.Second           // before a job that a halt sent back may be delivered again

	// A job that failed for now comes back after 1, 2, 4 … 60 s, give or take a quarter.
	putBackFirst = time.Second
	putBackMost  = time.Minute
)

// A Worker works on jobs. Use New.
type Worker struct {
	cfg     Config
	jobs    Jobs
	results Results
	api     API
	pace    Pace

	noUpdate atomic.Bool // update_contact_group is not offered; see calls.go
	noGet    atomic.Bool // nor is get_contact_group
	repeats  atomic.Int32

	mu        sync.Mutex
	inHand    map[messageID]Delivery
	attempts  map[string]attempts // of jobs that failed for now, by job ID
	forgotten time.Time           // when attempts was last tidied
	handFree  chan struct{}       // one place: a hand came free
}

// attempts is what is left of a job between two deliveries to this process.
type attempts struct {
	round       int // of the job
	made, calls int
	started     time.Time // of the first
	last        time.Time // of the last, by its end
}

// forgetAfter is when a job that was put back and did not return is no longer counted here: another worker has it.
const forgetAfter = time.Hour

// New returns a worker. Nothing happens before Run.
func New(cfg Config, jobs Jobs, results Results, api API, pace Pace) *Worker {
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
		cfg: cfg, jobs: jobs, results: results, api: api, pace: pace,
		inHand:   map[messageID]Delivery{},
		attempts: map[string]attempts{},
		handFree: make(chan struct{}, 1),
	}
}

// Run works until stop is closed, the work is finished, or it cannot go on. When stop is closed it takes no more
// jobs, lets those in hand go on for the grace time and puts back the rest; when ctx ends it puts back all of them
// at once. It returns nil when it was stopped or is finished, and a *governor.HaltedError when it was halted and
// configured to leave then.
func (w *Worker) Run(ctx context.Context, stop <-chan struct{}) error {
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	fetching, stopFetching := context.WithCancel(ctx)
	defer stopFetching()

	var aside sync.WaitGroup
	defer aside.Wait()
	done := make(chan struct{})
	defer close(done)
	aside.Go(func() { // phase one: no more jobs; phase two: no more calls
		select {
		case <-stop:
			stopFetching()
		case <-done:
			return
		}
		select {
		case <-time.After(w.cfg.Grace):
			leave()
		case <-done:
		}
	})
	aside.Go(func() { w.beat(done) })

	var group errgroup.Group // whose error is that of the fetching; the hands go on after it with what they have
	taken := make(chan Delivery)
	group.Go(func() error {
		defer close(taken)
		return w.fetch(fetching, taken)
	})
	for range w.cfg.Concurrency { // not a goroutine for each job: its stack would have to grow each time
		group.Go(func() error {
			for d := range taken {
				w.handle(ctx, d)
				w.letGo(d)
			}
			return nil
		})
	}
	err := group.Wait()
	if fetching.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// fetch gives jobs to the hands until there are no more to give.
func (w *Worker) fetch(fetching context.Context, taken chan<- Delivery) error {
	for {
		if cause := w.pace.Halted(); cause != nil {
			if w.cfg.LeaveOn != nil && w.cfg.LeaveOn(cause) {
				return &governor.HaltedError{Cause: cause}
			}
			if err := w.pace.AwaitResume(fetching); err != nil {
				return err
			}
		}
		free, err := w.awaitHands(fetching)
		if err != nil {
			return err
		}
		deliveries, err := w.jobs.Fetch(fetching, free)
		if fetching.Err() != nil {
			w.putBackAll(fetching, deliveries)
			return fetching.Err()
		}
		if err != nil {
			w.cfg.Log.Warn("the queue does not answer; trying again", "err", err)
		}
		for _, d := range deliveries {
			if w.take(d) {
				taken <- d
			}
		}
		if len(deliveries) > 0 || err != nil || w.cfg.Finished == nil || w.hands() > 0 {
			continue
		}
		finished, err := w.cfg.Finished(fetching)
		if err != nil && fetching.Err() == nil {
			w.cfg.Log.Warn("cannot tell whether the work is finished; trying again", "err", err)
		}
		if finished {
			return nil
		}
	}
}

// awaitHands waits for a hand to come free, and a moment for others, and returns how many are.
func (w *Worker) awaitHands(ctx context.Context) (int, error) {
	var enough <-chan time.Time
	for {
		switch free := w.cfg.Concurrency - w.hands(); {
		case free >= max(w.cfg.Concurrency/8, 1):
			return free, nil
		case free > 0 && enough == nil:
			enough = time.After(linger)
		}
		select {
		case <-w.handFree:
		case <-enough:
			return w.cfg.Concurrency - w.hands(), nil
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// A messageID names what a delivery delivers, also when it is delivered a second time.
type messageID struct {
	importID string
	sequence uint64
}

func messageOf(d Delivery) messageID { return messageID{d.Import(), d.Sequence()} }

// take notes a job as in hand. It returns false for a job that is in hand already: its heartbeats got lost, so it was
// delivered again; the ack of the first delivery settles the second as well.
func (w *Worker) take(d Delivery) bool {
	m := messageOf(d)
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.inHand[m]; ok {
		return false
	}
	w.inHand[m] = d
	return true
}

func (w *Worker) letGo(d Delivery) {
	w.mu.Lock()
	delete(w.inHand, messageOf(d))
	w.mu.Unlock()
	select {
	case w.handFree <- struct{}{}:
	default:
	}
}

func (w *Worker) hands() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.inHand)
}

// beat tells the queue now and then that the jobs in hand are being worked on.
func (w *Worker) beat(done <-chan struct{}) {
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		w.mu.Lock()
		held := make([]Delivery, 0, len(w.inHand))
		for _, d := range w.inHand {
			held = append(held, d)
		}
		w.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), heartbeat/2)
		for _, d := range held {
			if err := d.Working(ctx); err != nil {
				w.cfg.Log.Debug("heartbeat", "err", err)
			}
		}
		cancel()
	}
}

// handle sees one delivery through. What befalls the job is in its result.
func (w *Worker) handle(ctx context.Context, d Delivery) {
	w.cfg.Observer.JobStarted()
	start := time.Now()
	j, err := d.Job()
	if err != nil {
		w.settle(ctx, d, &attempt{w: w, made: 1, result: job.Result{
			Import: d.Import(), Job: seqName(d.Sequence()), Outcome: job.Failed,
			Code: job.CodeUndecodable, Info: err.Error(), Started: start,
		}}, 0, start)
		return
	}
	known, sequence, err := w.results.Get(ctx, j.Import, j.ID)
	if err != nil {
		w.putBack(ctx, d, "retry", putBackFirst)
		return
	}
	if sequence != 0 && known.Round >= j.Round {
		ctx, cancel := afterwards(ctx)
		defer cancel()
		w.ack(ctx, d)
		w.cfg.Observer.JobPutBack("known")
		return
	}

	a := w.begin(j, start)
	if sequence != 0 {
		a.goOn(known)
	}
	switch err := a.run(ctx); {
	case err == nil:
		w.settle(ctx, d, a, sequence, start)
	case governor.IsHalted(err):
		w.remember(j, a, false)
		w.putBack(ctx, d, "halt", haltDelay)
	case ctx.Err() != nil:
		w.putBack(ctx, d, "stop", 0)
	default:
		if made := w.remember(j, a, true); made >= w.cfg.MaxAttempts {
			a.giveUp(err)
			w.settle(ctx, d, a, sequence, start)
		} else {
			w.cfg.Log.Debug("job failed for now", "import", j.Import, "job", j.ID, "attempt", made, "err", err)
			w.putBack(ctx, d, "retry", jittered(backoff(putBackFirst, putBackMost, made-1)))
		}
	}
}

// begin starts an attempt with what earlier ones of this process left.
func (w *Worker) begin(j job.Job, start time.Time) *attempt {
	w.mu.Lock()
	earlier := w.attempts[j.ID]
	w.mu.Unlock()
	if earlier.round != j.Round {
		earlier = attempts{}
	}
	if !earlier.started.IsZero() {
		start = earlier.started
	}
	return newAttempt(w, j, start, earlier)
}

// remember keeps the count of a job that goes back, and returns how many attempts count.
func (w *Worker) remember(j job.Job, a *attempt, counts bool) int {
	made := a.made
	if !counts {
		made--
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	w.attempts[j.ID] = attempts{round: j.Round, made: made, calls: a.calls, started: a.started, last: now}
	if now.Sub(w.forgotten) > forgetAfter {
		w.forgotten = now
		maps.DeleteFunc(w.attempts, func(_ string, a attempts) bool { return now.Sub(a.last) > forgetAfter })
	}
	return made
}

// settle writes the result in place of the one at sequence, then acknowledges the job. Without a result there is no
// ack: the job comes back.
func (w *Worker) settle(ctx context.Context, d Delivery, a *attempt, sequence uint64, start time.Time) {
	ctx, cancel := afterwards(ctx)
	defer cancel()
	r := a.final()
	r.Worker, r.Finished = w.cfg.Name, time.Now()
	stored, err := w.results.Put(ctx, r, sequence)
	if err != nil {
		w.cfg.Log.Warn("a result could not be stored; its job will be done again", "import", r.Import, "job", r.Job, "err", err)
		w.putBack(ctx, d, "retry", putBackFirst)
		return
	}
	w.mu.Lock()
	delete(w.attempts, r.Job)
	w.mu.Unlock()
	if stored {
		failed := r.FailedConversations()
		// What an earlier round did was told then; of that, some may be out of the group by now.
		done := max(0, len(r.Conversations)-failed-a.doneBefore())
		w.cfg.Observer.JobDone(string(r.Outcome), done, failed, time.Since(start), a.made)
	} else if sequence != 0 {
		w.putBack(ctx, d, "known", 0) // another result came in between: whether it is of this round the next look tells
		return
	} else {
		w.cfg.Observer.JobPutBack("known")
	}
	w.ack(ctx, d)
}

// afterwards is for what is still to be said of a job, whether or not the context of the work has ended.
func afterwards(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), settle)
}

// ack does not worry about a failure: the job would come back, find its result and be acknowledged then. Its context is
// one of afterwards.
func (w *Worker) ack(ctx context.Context, d Delivery) {
	if err := d.Ack(ctx); err != nil {
		w.cfg.Log.Debug("ack", "err", err)
	}
}

// putBack does not worry about a failure either: the job comes back later then.
func (w *Worker) putBack(ctx context.Context, d Delivery, reason string, delay time.Duration) {
	w.cfg.Observer.JobPutBack(reason)
	ctx, cancel := afterwards(ctx)
	defer cancel()
	if err := d.Nak(ctx, delay); err != nil {
		w.cfg.Log.Debug("put back", "err", err)
	}
}

// putBackAll returns jobs that came as the stop did.
func (w *Worker) putBackAll(ctx context.Context, deliveries []Delivery) {
	for _, d := range deliveries {
		w.cfg.Observer.JobStarted()
		w.putBack(ctx, d, "stop", 0)
	}
}

type nobody struct{}

func (nobody) CallDone(string, string, time.Duration)       {}
func (nobody) Retry(string)                                 {}
func (nobody) JobStarted()                                  {}
func (nobody) JobDone(string, int, int, time.Duration, int) {}
func (nobody) JobPutBack(string)                            {}
