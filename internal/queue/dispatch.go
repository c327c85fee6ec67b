package queue

import (
	"container/heap"
	"slices"
	"time"
)

const (
	// maxOpen bounds the unwritten results and the jobs in flight, of all imports together. At 200 calls a second that
	// is ten seconds of work, which a crash can cost.
	maxOpen = 2000

	// maxUnfinished bounds the jobs of an import that were handed out and have no result. Each takes about 3 bytes in
	// the state: 5 KB in all. A requeued job counts until it has its result.
	maxUnfinished = 1500

	// maxAhead bounds how many jobs of an import are handed out beyond its last state. A leader that died may have
	// worked on any of them, so a larger number would make more jobs suspects.
	maxAhead = 1024

	// lowWater is the number of jobs below which the buffer of an import is filled again.
	lowWater = 128

	// A trial ends TrialTime after its last job was handed out: a job that kills the process does so sooner. A new leader
	// makes no call in its first second, and a job may have to wait 4 s more until calls of an earlier leader have taken
	// effect. A job can be under way for longer, while the API is out of reach, and the leader can be lost meanwhile for
	// other reasons.
	TrialTime = 7 * time.Second
)

// trialSizes is how many jobs are tried together, by how often they were under way when a leader was lost: once, twice,
// and so on. After a first loss a hundred jobs are suspects, so a trial has as many jobs as are usually in flight. A
// job that was under way alone when the leader was lost gets a failed result.
var trialSizes = [...]int{16, 1}

// A dispatcher decides which job is handed out next. It does no I/O and reads no clock; it is not safe for concurrent
// use.
//
//	          ┌ unfinished of the last leader ┐
//	read ───► │ requeued, when they are due   │ ──► pick ──► in flight ──► finish ──► unwritten ──► written
//	          │ new ones                      │                  │
//	          └ suspects, in trials           ┘ ◄──── requeue ───┘
//
// Imports take turns, a job or a trial each.
//
// Suspects are jobs that may have been under way when a leader was lost: one of them may have crashed it. They are
// handed out in a trial: while no other job is in flight, and only after a state was written that names them. If the
// leader is lost then, only these were under way. A job that ends in its trial is cleared. Suspects of one loss are
// tried before all other jobs of their import; suspects of more losses come last.
type dispatcher struct {
	imports []*active
	turn    int // the import that is asked first

	inFlight  int64
	unwritten int64

	phase   trialPhase
	trialOf *active
	trial   []*entry // jobs of the trial that were not handed out yet
	tried   []*entry // jobs of the trial that were handed out
	since   time.Time

	// Set here, and cleared by the goroutine that acts on it.
	hungry  bool // some import's buffer is low
	stating bool // some import needs a state written
}

// trialPhase is how far a trial is.
type trialPhase int

const (
	noTrial    trialPhase = iota
	draining              // waiting until nothing is in flight
	announcing            // waiting until a state is written that names the trial, or no trial after its end
	trying                // handing its jobs out, or waiting for them
)

// An active is an import that the leader works on.
type active struct {
	id          string
	incarnation string
	generation  int
	sync        syncNight
	paused      bool
	elsewhere   bool  // its target is not that of this process
	gone        bool  // it was dropped: what comes back is ignored
	damaged     error // why it cannot become complete

	// Jobs that were read.
	earlier  []*entry                  // unfinished ones of the last leader
	again    dueHeap                   // requeued ones
	fresh    []*entry                  // never handed out, in stream order
	suspects [len(trialSizes)][]*entry // to be tried, by the number of losses, from 1
	ahead    int64                     // how many of the next new jobs are suspects too

	// open are the jobs handed out, by this leader or an earlier one, whose result is not written.
	open map[uint64]*entry

	next        uint64 // the first sequence whose job was never handed out
	handed      int64  // jobs below next
	limit       int64  // of handed until another state is written
	maybeHanded int64  // an earlier leader may have handed out so many
	stated      int64  // handed in the last state that was made
	unwritten   int64  // results that wait to be written
	inFlight    int64
	unreadable  int64

	// The jobs on the stream, as far as known.
	checkpoint    checkpoint
	checkpointSeq uint64
	checked       time.Time // when the checkpoint was read
	readNext      uint64    // where the next read begins; checkpointSeq when all were read
	jump          bool      // see readRun
	missingSince  time.Time // when expected jobs were first not found
	lost          sequences // unfinished jobs of the last leader that are not loaded yet

	counts    Counts // of the written results
	rate      meter
	stateWant bool      // write a state without waiting for results
	hold      bool      // hand out no job until a state was written
	trial     sequences // named by the next state
	finishing bool      // it is being completed, or ended
	ending    bool      // it was cancelled: no job is handed out, jobs in flight may end
}

// An entry is a job of an active import.
type entry struct {
	of      *active
	seq     uint64
	data    []byte
	attempt int // counted attempts so far
	crashes int // leaders lost while it may have been under way, since it last ended
	due     time.Time
	earlier bool   // an earlier leader may have made calls for it
	lap     uint64 // counts how often it was handed out; a result of an earlier time is ignored
	flying  bool
}

// pick returns the next job, or nil and the time when there may be one; zero if only an event can change something.
func (d *dispatcher) pick(now time.Time) (*entry, time.Time) {
	if d.phase != noTrial {
		return d.pickTrial(now)
	}
	if d.unwritten+d.inFlight >= maxOpen {
		return nil, time.Time{}
	}
	var wake time.Time
	for i := range d.imports {
		at := (d.turn + i) % len(d.imports)
		a := d.imports[at]
		trial := a.takeTrial()
		var e *entry
		if trial == nil {
			e = a.take(now)
		}
		d.hungry = d.hungry || a.wantsJobs()
		d.stating = d.stating || a.stateWant
		if e != nil {
			d.turn = (at + 1) % len(d.imports)
			return d.fly(e), time.Time{}
		}
		if trial != nil {
			d.turn = (at + 1) % len(d.imports)
			d.trialOf, d.trial, d.phase = a, trial, draining
			return d.pickTrial(now)
		}
		if due := a.due(); !due.IsZero() && (wake.IsZero() || due.Before(wake)) {
			wake = due
		}
	}
	return nil, wake
}

func (d *dispatcher) fly(e *entry) *entry {
	e.flying = true
	e.lap++
	e.of.inFlight++
	d.inFlight++
	return e
}

// pickTrial advances the trial, and returns a job of it when one is due.
func (d *dispatcher) pickTrial(now time.Time) (*entry, time.Time) {
	if d.phase == draining && d.inFlight == 0 {
		d.announce()
	}
	if d.phase != trying {
		return nil, time.Time{}
	}
	if d.since.IsZero() {
		d.since = now
	}
	over := d.since.Add(TrialTime)
	if d.trialDone() || !now.Before(over) {
		d.endTrial()
		return nil, time.Time{}
	}
	if len(d.trial) == 0 || d.trialOf.held() || d.unwritten >= maxOpen {
		return nil, over
	}
	e := d.trial[0]
	d.trial, d.tried = d.trial[1:], append(d.tried, e)
	d.since = now
	return d.fly(e), now.Add(TrialTime)
}

// announce requests a state that names the trial, or no trial.
func (d *dispatcher) announce() {
	d.phase = announcing
	d.trialOf.trial = make(sequences, 0, len(d.trial))
	for _, e := range d.trial {
		d.trialOf.trial = append(d.trialOf.trial, e.seq)
	}
	slices.Sort(d.trialOf.trial)
	d.trialOf.stateWant, d.stating = true, true
}

// announced is called when a state of a was written that names a trial, or no trial.
func (d *dispatcher) announced(a *active, trial sequences) {
	if d.phase != announcing || d.trialOf != a || !slices.Equal(trial, a.trial) {
		return
	}
	if d.phase = trying; len(d.trial) == 0 {
		d.phase = noTrial
	}
}

// trialDone reports whether no job of the trial is in flight or will be.
func (d *dispatcher) trialDone() bool {
	return d.phase == trying && d.inFlight == 0 && (len(d.trial) == 0 || d.trialOf.held())
}

// endTrial ends a trial, and begins the next one of the import if there is one. Its jobs that are still in flight are
// cleared.
func (d *dispatcher) endTrial() {
	a := d.trialOf
	for _, e := range d.tried {
		e.crashes = 0
	}
	for _, e := range d.trial {
		a.suspects[e.crashes-1] = append(a.suspects[e.crashes-1], e)
	}
	d.trial, d.tried, d.since = nil, nil, time.Time{}
	if a.gone {
		d.phase = noTrial
		return
	}
	if d.inFlight == 0 {
		d.trial = a.takeTrial()
	}
	d.announce()
}

// end takes a picked job out of flight. It returns false if the result is to be ignored: the import is gone, or the job
// was picked again since.
func (d *dispatcher) end(e *entry, lap uint64) bool {
	if !e.flying || e.lap != lap {
		return false
	}
	e.flying = false
	d.inFlight--
	e.of.inFlight--
	e.crashes = 0
	if d.trialDone() {
		d.endTrial()
	}
	return !e.of.gone
}

// finish takes a job out of flight that has its result. The result now waits to be written.
func (d *dispatcher) finish(e *entry, lap uint64) bool {
	if !d.end(e, lap) {
		return false
	}
	d.unwritten++
	e.of.unwritten++
	return true
}

// requeue takes a job out of flight, to be handed out again at due.
func (d *dispatcher) requeue(e *entry, lap uint64, due time.Time, counted bool) bool {
	if !d.end(e, lap) {
		return false
	}
	if counted {
		e.attempt++
	}
	e.due = due
	heap.Push(&e.of.again, e)
	return true
}

// written is called when the result of a job was written.
func (d *dispatcher) written(e *entry) {
	d.unwritten--
	e.of.unwritten--
	delete(e.of.open, e.seq)
}

func (d *dispatcher) add(a *active) { d.imports = append(d.imports, a) }

// drop removes an import. Its jobs in flight count until they end.
func (d *dispatcher) drop(a *active) {
	for i, other := range d.imports {
		if other == a {
			d.imports = append(d.imports[:i:i], d.imports[i+1:]...)
			if d.turn > i {
				d.turn--
			}
			break
		}
	}
	if len(d.imports) > 0 {
		d.turn %= len(d.imports)
	}
	d.unwritten -= a.unwritten
	a.unwritten = 0
	a.gone = true
	if d.trialOf == a && d.phase != noTrial {
		if d.phase != trying || d.inFlight == 0 {
			d.phase = noTrial
		}
		d.trial, d.tried, d.since = nil, nil, time.Time{}
	}
}

// requeued counts the jobs that wait to be handed out again, of all imports.
func (d *dispatcher) requeued() (n int64) {
	for _, a := range d.imports {
		n += a.requeued()
	}
	return n
}

// held tells whether no job of the import may be handed out.
func (a *active) held() bool { return a.paused || a.elsewhere || a.hold || a.ending || a.gone }

// take returns the next job of the import, suspects excluded.
func (a *active) take(now time.Time) *entry {
	if a.held() {
		return nil
	}
	if len(a.earlier) > 0 {
		e := a.earlier[0]
		a.earlier = a.earlier[1:]
		return e
	}
	if len(a.again) > 0 && !now.Before(a.again[0].due) {
		return heap.Pop(&a.again).(*entry)
	}
	return a.takeFresh()
}

// takeFresh returns the next job that was never handed out.
func (a *active) takeFresh() *entry {
	if len(a.fresh) == 0 || len(a.lost) > 0 || len(a.open) >= maxUnfinished {
		return nil
	}
	if a.handed >= a.limit {
		a.stateWant = true
		return nil
	}
	e := a.fresh[0]
	a.fresh[0], a.fresh = nil, a.fresh[1:]
	a.open[e.seq] = e
	a.next = e.seq + 1
	e.earlier = a.handed < a.maybeHanded
	a.handed++
	return e
}

// takeTrial returns the jobs of the next trial, nil if none is due.
func (a *active) takeTrial() []*entry {
	if a.held() || len(a.lost) > 0 {
		return nil
	}
	for a.ahead > 0 && len(a.suspects[0]) < trialSizes[0] {
		e := a.takeFresh()
		if e == nil {
			break
		}
		a.ahead--
		e.crashes = 1
		a.suspects[0] = append(a.suspects[0], e)
	}
	for i, size := range trialSizes {
		if i > 0 && (len(a.earlier) > 0 || !a.handedOut() && len(a.open) < maxUnfinished) {
			break
		}
		if all := a.suspects[i]; len(all) > 0 {
			n := min(size, len(all))
			a.suspects[i] = all[n:]
			return all[:n:n]
		}
	}
	return nil
}

// due returns when a requeued job can be handed out; zero if there is none.
func (a *active) due() time.Time {
	if a.held() || len(a.again) == 0 {
		return time.Time{}
	}
	return a.again[0].due
}

// allRead reports whether every job up to the newest known checkpoint was read.
func (a *active) allRead() bool {
	return len(a.lost) == 0 && a.readNext >= a.checkpointSeq && a.missingSince.IsZero()
}

// missing returns how many jobs up to the newest known checkpoint were not read.
func (a *active) missing() int64 { return a.checkpoint.Jobs - a.handed - int64(len(a.fresh)) }

// handedOut reports whether every job up to the newest known checkpoint was handed out.
func (a *active) handedOut() bool { return a.allRead() && len(a.fresh) == 0 }

// atEnd reports whether every job up to the newest known checkpoint has a written result.
func (a *active) atEnd() bool { return a.handedOut() && len(a.open) == 0 }

// lastResultIn reports whether every job has its result, and some of the results wait to be written.
func (a *active) lastResultIn() bool {
	return a.unwritten > 0 && a.handedOut() && int64(len(a.open)) == a.unwritten
}

// wantsJobs reports whether the buffer is to be filled. Only fresh jobs count: an import
// whose jobs cannot be handed out keeps them, and reads no more.
func (a *active) wantsJobs() bool {
	return len(a.lost) > 0 || len(a.fresh) < lowWater && !a.allRead()
}

func (a *active) requeued() int64 {
	n := len(a.again)
	for _, s := range a.suspects {
		n += len(s)
	}
	return int64(n)
}

// dueHeap is a heap of entries; the first is due first.
type dueHeap []*entry

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h dueHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *dueHeap) Push(e any)        { *h = append(*h, e.(*entry)) }
func (h *dueHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return e
}
