package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"groupferry/internal/broker"
	"groupferry/internal/clock"
	"groupferry/internal/job"
)

var (
	// ErrSuperseded is wrapped by the errors of a [Term] after which another leader began.
	ErrSuperseded = errors.New("another leader took over")

	// ErrClosed is wrapped by the error of a [Term.Next] after [Term.Close].
	ErrClosed = errors.New("the term has ended")
)

const (
	// relistEvery is how soon an import is found whose notification was lost.
	relistEvery = 5 * time.Second

	// loaders is how many imports are loaded at a time: each takes three to five requests.
	loaders = 8

	// resultHeadroom is what the headers of a result's message may take of the server's limit.
	resultHeadroom = 1 << 10
)

// TermConfig configures a [Term].
type TermConfig struct {
	// Term is the number of the term, from the lease: higher than that of every leader before.
	Term uint64

	// Name is the leader's name, for people.
	Name string

	// Crashed says that the last leader was another process and did not release the lease: a job that it had in flight
	// may have killed it.
	Crashed bool

	// Late is for how long, from the begin of this term on, calls of earlier leaders can still take effect; 0 if there are none.
	Late time.Duration

	// Target is which API the calls of this process go to. An import of a sync with another target is left to a leader that
	// has it, as if it was paused. With "" all imports are handed out.
	Target string

	// Log gets what happens; nil stands for that of the connection.
	Log *slog.Logger

	// OnComplete, unless nil, is called with the record of each import that this leader completes.
	OnComplete func(Import)

	// OnWaiting, unless nil, is called with the reason when results cannot be written, and with nil when they are
	// written again. It must not block.
	OnWaiting func(err error)

	// OnWriteError, unless nil, is called for each failed attempt to write results. It must not block.
	OnWriteError func()

	// OnDamaged, unless nil, is called for each import that cannot continue or become complete because its data is
	// damaged. It must not block.
	OnDamaged func(importID string, err error)
}

// A Term is the work of one leader: it hands out the jobs of all open imports, and writes their results. Only its
// memory holds which jobs are in flight or requeued, and how often they were tried. It is safe for concurrent use.
//
//	jobs stream ──► readJobs ──► dispatcher ──► Next ──► worker
//	                                 ▲                     │ Finish, Requeue
//	results stream ◄── commitResults ◄─────────────────────┘
//	record ◄── complete ◄── (all results are written)
type Term struct {
	q      *Queue
	cfg    TermConfig
	log    *slog.Logger
	marker uint64 // sequence of this term's marker
	began  time.Time

	commitKick   chan struct{} // something to write
	feedKick     chan struct{} // some buffer is low
	keepKick     chan struct{} // some record changed
	completeKick chan struct{} // some import is at its end

	// Used by the goroutine that writes; by Close after Run.
	expected uint64 // where the results stream ends, as far as known
	groups   uint64
	reported bool // it was reported that results cannot be written
	warned   bool // by a warning

	mu         sync.Mutex
	d          dispatcher
	byID       map[string]*active
	left       []*active        // dropped with jobs in flight
	damagedIDs map[string]error // includes imports that could not be loaded
	waiters    []chan *Delivery
	wake       *time.Timer
	waiting    []*waitingResult
	sent       *group // taken from waiting; not known to be written
	changed    map[string]bool
	relist     bool
	finished   []*active // to be completed
	closing    bool
	ended      error // why nothing is handed out any more
}

// marker is the first message of a term.
type marker struct {
	Version int    `json:"v"`
	Term    uint64 `json:"term"`
	Name    string `json:"name"`
	Nonce   string `json:"nonce"`
}

// Lead starts a term: after that no result of an earlier leader is written. It reads a few messages for each open
// import, and no results. The error wraps [ErrSuperseded] if a later term has begun. Lead waits while NATS is out of
// reach.
//
// An import with damaged data is reported and not worked on; the others continue.
func (q *Queue) Lead(ctx context.Context, cfg TermConfig) (*Term, error) {
	t := &Term{
		q: q, cfg: cfg, log: cfg.Log, began: time.Now(),
		commitKick: make(chan struct{}, 1), feedKick: make(chan struct{}, 1),
		keepKick: make(chan struct{}, 1), completeKick: make(chan struct{}, 1),
		byID: make(map[string]*active), damagedIDs: make(map[string]error), changed: make(map[string]bool),
	}
	if t.log == nil {
		t.log = q.log
	}
	t.wake = time.AfterFunc(time.Hour, t.woken)
	t.wake.Stop()
	nonce := nuid.Next()
	for wait := repeatWait; ; wait = min(2*wait, repeatMax) {
		err := t.begin(ctx, nonce)
		if err == nil {
			break
		}
		if errors.Is(err, ErrSuperseded) || ctx.Err() != nil {
			return nil, fmt.Errorf("begin term %d: %w", cfg.Term, err)
		}
		t.reportWaiting(err)
		clock.Pause(ctx, wait)
	}
	t.reportWaiting(nil)
	ids, err := q.OpenImports(ctx)
	if err != nil {
		return nil, fmt.Errorf("begin term %d: %w", cfg.Term, err)
	}
	if err := t.loadAll(ctx, ids, cfg.Crashed); err != nil {
		return nil, fmt.Errorf("begin term %d: %w", cfg.Term, err)
	}
	return t, nil
}

// begin writes the marker, unless it is there.
func (t *Term) begin(ctx context.Context, nonce string) error {
	for {
		// Read the end of the stream first: a marker that is written later moves it.
		end, err := t.q.resultsEnd(ctx)
		if err != nil {
			return err
		}
		last, seq, err := t.q.lastMarker(ctx)
		switch {
		case err != nil:
			return err
		case last.Nonce == nonce: // the response to an earlier try was lost
			t.marker, t.expected = seq, max(end, seq)
			return nil
		case last.Term > t.cfg.Term:
			return fmt.Errorf("term %d has begun: %w", last.Term, ErrSuperseded)
		}
		b, err := json.Marshal(marker{1, t.cfg.Term, t.cfg.Name, nonce})
		if err != nil {
			return err
		}
		broker.Failpoint("marker-before")
		broker.FailInside("marker-inside")
		c, cancel := t.q.conn.Within(ctx, requestTime)
		// It does not replace the marker before it, some 100 bytes. To remove that one the server would read all
		// messages since then: a second and 500 MB with 2 million results.
		ack, err := t.q.js.PublishMsg(c, &nats.Msg{Subject: t.q.termSubject(), Data: b, Header: nats.Header{
			jetstream.ExpectedLastSeqHeader: {strconv.FormatUint(end, 10)},
		}})
		cancel()
		if err == nil {
			broker.Failpoint("marker-after")
			t.marker, t.expected = ack.Sequence, ack.Sequence
			return nil
		}
		if !broker.LostRace(err) {
			return t.q.fault(ctx, "write the marker of the term", err)
		}
		if !clock.Pause(ctx, time.Millisecond) {
			return context.Cause(ctx)
		}
	}
}

// lastMarker reads the newest marker of a term and its sequence; 0 if there is none.
func (q *Queue) lastMarker(ctx context.Context) (m marker, seq uint64, err error) {
	msg, err := q.conn.LastMsg(ctx, q.resultsStream(), q.termSubject())
	if errors.Is(err, broker.ErrNotFound) {
		return marker{}, 0, nil
	}
	if err == nil {
		err = json.Unmarshal(msg.Data, &m)
	}
	if err != nil {
		return marker{}, 0, fmt.Errorf("read the marker of the term: %w", err)
	}
	return m, msg.Sequence, nil
}

// Run does the work of the term. It returns nil when ctx ends, and an error that wraps [ErrSuperseded] when another
// leader has begun. It waits while NATS is out of reach. It can run once.
func (t *Term) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var all sync.WaitGroup
	for _, loop := range []func(context.Context){t.readJobs, t.keepRecords, t.completeImports} {
		all.Go(func() { loop(ctx) })
	}
	err := t.commitResults(ctx)
	if err != nil {
		t.end(err)
	}
	cancel()
	all.Wait()
	return err
}

// Close writes the waiting results, and states with no job in flight. It also completes the imports that are at their
// end: somebody who sees that an import is complete may stop the leader while it removes the jobs. After Close nothing
// is handed out or written. Call it when Run has returned. It stops when ctx ends or another leader has begun.
func (t *Term) Close(ctx context.Context) error {
	t.mu.Lock()
	err := t.ended
	t.closing = true
	for _, a := range t.d.imports {
		if !a.hold && !a.finishing {
			a.stateWant = true
		}
	}
	t.mu.Unlock()
	for err == nil {
		var ready bool
		if ready, _, err = t.toWrite(); !ready {
			break
		}
		err = t.writeGroup(ctx)
	}
	for done := true; err == nil && done; {
		done, err = t.completeNext(ctx)
	}
	t.end(ErrClosed)
	if err != nil {
		return fmt.Errorf("end term %d: %w", t.cfg.Term, err)
	}
	return nil
}

// end makes Next return err from now on. The first err is kept.
func (t *Term) end(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended == nil {
		t.ended = err
	}
	t.wake.Stop()
	for _, w := range t.waiters {
		close(w)
	}
	t.waiters = nil
}

// Next waits for a job that can be handed out. The error is that of ctx, or wraps [ErrSuperseded] or [ErrClosed].
//
// Imports take turns, a job each. No job is handed out while 2,000 are in flight or have results that wait to be
// written.
func (t *Term) Next(ctx context.Context) (*Delivery, error) {
	t.mu.Lock()
	if t.ended != nil {
		defer t.mu.Unlock()
		return nil, t.ended
	}
	w := make(chan *Delivery, 1)
	t.waiters = append(t.waiters, w)
	t.dispatch()
	t.mu.Unlock()
	select {
	case d, ok := <-w:
		if ok {
			broker.Failpoint("fetch-after")
			if broker.Failpoints { // a job that kills its worker
				j, _ := d.Job()
				broker.Failpoint("job-" + j.FromAccount)
			}
			return d, nil
		}
	case <-ctx.Done():
		t.mu.Lock()
		if i := slices.Index(t.waiters, w); i >= 0 {
			t.waiters = slices.Delete(t.waiters, i, i+1)
			t.mu.Unlock()
			return nil, context.Cause(ctx)
		}
		t.mu.Unlock()
		if d, ok := <-w; ok { // it arrived at the same moment
			d.Requeue(0, false)
			return nil, context.Cause(ctx)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return nil, t.ended
}

func (t *Term) woken() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dispatch()
}

// dispatch hands out all jobs that can be, and wakes the goroutines that have something to do. The lock is held.
func (t *Term) dispatch() {
	for len(t.waiters) > 0 && t.ended == nil && !t.closing {
		e, wake := t.d.pick(time.Now())
		if !wake.IsZero() {
			t.wake.Reset(time.Until(wake))
		}
		if e == nil {
			break
		}
		t.waiters[0] <- &Delivery{t: t, e: e, lap: e.lap, attempt: e.attempt + 1, data: e.data}
		t.waiters[0], t.waiters = nil, t.waiters[1:]
	}
	if t.d.hungry {
		t.d.hungry = false
		kick(t.feedKick)
	}
	if t.d.stating {
		t.d.stating = false
		kick(t.commitKick)
	}
}

func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// A Delivery is one job in flight. Its owner calls Finish or Requeue once; later calls do nothing.
type Delivery struct {
	t       *Term
	e       *entry
	lap     uint64
	attempt int
	data    []byte

	// Used by the goroutine that has the job.
	decoded    bool
	job        job.Job
	err        error
	priorShare *share
}

// Import is the ID of the import that the job belongs to; known even when the job cannot be read.
func (d *Delivery) Import() string { return d.e.of.id }

// Sequence is the job's place on the jobs stream; it is the same for every delivery of it.
func (d *Delivery) Sequence() uint64 { return d.e.seq }

// Attempt is the number of this attempt in this term, from 1. Attempts that were requeued as not counted do not count.
func (d *Delivery) Attempt() int { return d.attempt }

// Earlier reports whether an earlier leader may have had the job in flight: it may have done a part of it, and its calls may
// still take effect.
func (d *Delivery) Earlier() bool { return d.e.earlier }

// Night reports whether the job is of a night of a sync: the next one may do the opposite.
func (d *Delivery) Night() bool { return d.e.of.sync.name != "" }

// Job decodes the job. The error wraps [job.ErrVersion] if a newer binary wrote it.
func (d *Delivery) Job() (job.Job, error) {
	if !d.decoded {
		d.decoded = true
		d.job, d.err = job.Decode(d.data)
		if d.err == nil && d.job.Import != d.e.of.id {
			d.err = fmt.Errorf("decode job: it says import %s and stands under %s", d.job.Import, d.e.of.id)
		}
	}
	return d.job, d.err
}

// Prior reads the result that this job's result will replace, in a retry; nil if it replaces none. The error is a
// [*broker.DamagedError] if it is missing.
func (d *Delivery) Prior(ctx context.Context) (*job.Result, error) {
	j, err := d.Job()
	if err != nil || j.Prior == 0 {
		return nil, err
	}
	r, err := d.t.q.resultAt(ctx, d.e.of.id, j.Prior)
	if err != nil {
		return nil, err
	}
	s := shareOf(&r)
	d.priorShare = &s
	return &r, nil
}

// Finish sets the final result of the job. It is written soon. It is lost if this process dies or the import ends
// before that. Finish fills in the fields that name the job and its import.
//
// A result that is too large for the server is written without the texts of its codes. If that is not enough, it is
// written without its conversations, as failed with the code [CodeTooLarge]. The counts are right in any case.
func (d *Delivery) Finish(r job.Result) {
	t := d.t
	j, err := d.Job()
	if err == nil {
		r.Job = j.ID
	} else if r.Job == "" {
		r.Job = fmt.Sprintf("seq-%d", d.e.seq)
	}
	r.Import, r.Generation, r.Replaces = d.e.of.id, d.e.of.generation, j.Prior
	if !slices.Contains(job.Outcomes, r.Outcome) {
		r.SetOutcome()
	}
	w := &waitingResult{
		e: d.e, share: shareOf(&r), prior: j.Prior, priorShare: d.priorShare, unreadable: err != nil,
	}
	w.data = fit(&r, t.q.conn.MaxPayload()-resultHeadroom)
	w.kind, w.share.outcome = string(r.Outcome), r.Outcome

	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.d.finish(d.e, d.lap) {
		t.dispatch()
		return
	}
	t.enqueue(w)
}

// enqueue adds a result to those that wait to be written. The lock is held.
func (t *Term) enqueue(w *waitingResult) {
	w.e.data = nil
	t.waiting = append(t.waiting, w)
	if n := len(t.waiting); n == 1 || n == fullGroup || w.e.of.lastResultIn() {
		kick(t.commitKick)
	}
	t.dispatch()
}

// Requeue puts the job on the queue again, to be handed out after a while. Counted says whether this was an attempt.
func (d *Delivery) Requeue(after time.Duration, counted bool) {
	t := d.t
	t.mu.Lock()
	defer t.mu.Unlock()
	t.d.requeue(d.e, d.lap, time.Now().Add(max(after, 0)), counted)
	t.maybeComplete(d.e.of) // if it was cancelled
	t.dispatch()
}

// CodeTooLarge is the code of a result that is too large for the server with its conversations.
const CodeTooLarge = "too_large"

// fit encodes a result in no more than room bytes. If necessary it leaves out what Finish says.
func fit(r *job.Result, room int64) []byte {
	data := r.AppendJSON(make([]byte, 0, 512+64*len(r.Conversations)))
	size := int64(len(data))
	if size <= room {
		return data
	}
	texts := *r
	texts.Conversations = slices.Clone(r.Conversations)
	for i := range texts.Conversations {
		texts.Conversations[i].Info = ""
	}
	if data = texts.AppendJSON(data[:0]); int64(len(data)) <= room {
		*r = texts
		return data
	}
	r.Outcome, r.Code = job.Failed, CodeTooLarge
	r.Info = fmt.Sprintf("the result has %d bytes, and the server takes %d: raise its max_payload", size, room)
	r.Conversations, r.Keep, r.Rename, r.Delete = nil, nil, "", false
	return r.AppendJSON(nil)
}

// Changed notes that the record of an import changed, or may be new.
func (t *Term) Changed(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changed[id] = true
	kick(t.keepKick)
}

// Resync notes that changes of records may have been missed.
func (t *Term) Resync() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id := range t.byID {
		t.changed[id] = true
	}
	t.relist = true
	kick(t.keepKick)
}

// Idle tells whether there is nothing left to do at the moment: nothing is in flight, requeued or unwritten, every job
// that is on the queue has its result, and every import whose jobs are all there is complete. Imports that are damaged,
// or of another target, do not count.
func (t *Term) Idle() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.d.inFlight > 0 || t.d.unwritten > 0 || len(t.changed) > 0 || len(t.finished) > 0 {
		return false
	}
	for _, a := range t.d.imports {
		if a.damaged == nil && !a.elsewhere && (!a.atEnd() || a.checkpoint.Done) {
			return false
		}
	}
	return true
}

// A TermSnapshot is the state of a term at one moment.
type TermSnapshot struct {
	Imports   int   // that are loaded
	InFlight  int64 // jobs handed out and not finished
	Requeued  int64 // jobs that wait to be handed out again
	Unwritten int64 // results that wait to be written
	Pending   int64 // known jobs without a result, including those in flight and requeued

	Damaged map[string]error // imports that cannot continue or become complete
}

// Snapshot returns the present numbers.
func (t *Term) Snapshot() TermSnapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := TermSnapshot{
		Imports: len(t.d.imports), InFlight: t.d.inFlight, Requeued: t.d.requeued(), Unwritten: t.d.unwritten,
		Damaged: make(map[string]error, len(t.damagedIDs)),
	}
	for _, a := range t.d.imports {
		s.Pending += max(a.checkpoint.Jobs-a.handed, 0) + int64(len(a.open)) - a.unwritten
	}
	for id, err := range t.damagedIDs {
		s.Damaged[id] = err
	}
	return s
}

// damage notes that an import cannot become complete. The lock is held.
func (t *Term) damage(a *active, err error) {
	if a.damaged == nil {
		a.damaged = err
		t.reportDamage(a.id, err)
	}
}

// reportDamage reports each damaged import once. The lock is held.
func (t *Term) reportDamage(id string, err error) {
	if t.damagedIDs[id] != nil {
		return
	}
	t.damagedIDs[id] = err
	t.log.Error("import cannot be completed", "import", id, "error", err)
	if t.cfg.OnDamaged != nil {
		t.cfg.OnDamaged(id, err)
	}
}
