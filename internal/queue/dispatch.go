package queue

import (
	"container/heap"
	"time"
)

const (
	// maxOpen bounds the results that are not written and the jobs that are in flight, of all imports: at 200 calls a
	// second ten seconds of work, which is what a crash can cost to do again.
	maxOpen = 2000

	// maxUnfinished bounds the jobs of an import that were handed out and have no result: with about 3 bytes for each in
	// the state, 5 KB. A job that was requeued counts until it has its result.
	maxUnfinished = 1500

	// maxAhead bounds how many jobs of an import are handed out beyond what its last state says. A leader that died can
	// have been at any of them, so more would put more jobs under suspicion.
	maxAhead = 1024

	// lowWater is from how few jobs on the buffer of an import is filled again.
	lowWater = 128

	// aloneTime is how long a job is under way alone until it is cleared: what kills a process does so sooner. A job can be
	// under way for long, while the API is out of reach, and a leader can be lost meanwhile for other reasons.
	aloneTime = time.Second

	// suspectCrashes is from how many crashes on a job is handed out alone.
	suspectCrashes = 2
)

// A dispatcher decides which job is handed out next. It does no I/O and reads no clock; it is not safe for concurrent use.
//
//	          ┌ unfinished of the last leader ┐
//	read ───► │ requeued, when they are due   │ ──► pick ──► in flight ──► finish ──► unwritten ──► written
//	          │ new ones                      │                  │
//	          └ suspects, one at a time       ┘ ◄──── requeue ───┘
//
// Imports take turns, a job each. Within an import the order is that of the picture. A job that may have been under way
// at two crashes is handed out last in its import and while nothing else is in flight, and only after a state was written
// that names it.
type dispatcher struct {
	imports []*active
	turn    int // the import that is asked first

	inFlight  int64
	unwritten int64

	alone      *entry     // the job that is or shall be under way alone
	alonePhase alonePhase // of it
	aloneOf    *active
	aloneSince time.Time // when it was handed out

	// Raised here, and lowered by whoever sees to it.
	hungry  bool // some import's buffer is low
	stating bool // some import wants a state to be written
}

// alonePhase is how far a job is that is handed out alone.
type alonePhase int

const (
	notAlone   alonePhase = iota
	draining              // waiting until nothing else is in flight
	announcing            // waiting for the state that names it
	alone                 // waiting to be handed out, or in flight
	ending                // waiting for the state that no longer names it
)

// An active is an import that the leader works on.
type active struct {
	id          string
	incarnation string
	generation  int
	paused      bool
	gone        bool  // it was dropped: what comes back is ignored
	damaged     error // why it cannot become complete

	// Jobs that were read.
	earlier []*entry // unfinished ones of the last leader
	again   dueHeap  // requeued ones
	fresh   []*entry // never handed out, in stream order
	suspect []*entry // to be handed out alone

	// open are the jobs handed out, by this leader or an earlier one, whose result is not written.
	open map[uint64]*entry

	next       uint64 // where the jobs begin that were never handed out
	handed     int64  // jobs below next
	limit      int64  // handed may not exceed it before another state is written
	stated     int64  // handed, as the last state that was made says
	unwritten  int64  // results that wait to be written
	inFlight   int64
	unreadable int64
	crashes    map[uint64]int // of jobs that were not handed out yet

	// What is known of the jobs on the stream.
	checkpoint    checkpoint
	checkpointSeq uint64
	checked       time.Time // when the checkpoint was read
	readNext      uint64    // where the next reading begins; checkpointSeq when all were read
	jump          bool      // see readRun
	missingSince  time.Time // when jobs that should be there were first not found
	lost          sequences // unfinished jobs of the last leader that are not loaded yet

	counts    Counts // of what was written
	rate      meter
	stateWant bool   // a state shall be written without waiting for results
	dirty     bool   // the last state does not say what is in flight and requeued
	hold      bool   // no job is handed out before a state was written
	aloneWas  uint64 // the last leader crashed while this job was under way alone
	aloneNow  uint64 // what the next state says about it
	finishing bool   // it is being completed, or ended
	ending    bool   // it was cancelled: no job is handed out, and what is in flight may end
}

// An entry is a job of an active import.
type entry struct {
	of      *active
	seq     uint64
	data    []byte
	attempt int // counted attempts so far
	crashes int
	due     time.Time
	lap     uint64 // grows with each time it is handed out; tells a late answer from the present one
	flying  bool
}

// pick gives the next job, or nil and the time from which on there may be one; zero when that depends on what happens.
func (d *dispatcher) pick(now time.Time) (*entry, time.Time) {
	if d.alonePhase != notAlone {
		return d.pickAlone(now)
	}
	if d.unwritten+d.inFlight >= maxOpen {
		return nil, time.Time{}
	}
	var wake time.Time
	for i := range d.imports {
		at := (d.turn + i) % len(d.imports)
		a := d.imports[at]
		e := a.take(now)
		d.hungry = d.hungry || a.wantsJobs()
		d.stating = d.stating || a.stateWant
		if e != nil {
			d.turn = (at + 1) % len(d.imports)
			return d.fly(e), time.Time{}
		}
		if e := a.takeSuspect(now); e != nil {
			d.turn = (at + 1) % len(d.imports)
			d.alone, d.aloneOf, d.alonePhase = e, a, draining
			return d.pickAlone(now)
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
	e.of.dirty = true
	d.inFlight++
	return e
}

// pickAlone moves the job that is handed out alone on, and gives it when it is its time. A job that has been under way
// alone for [aloneTime] is suspected no more.
func (d *dispatcher) pickAlone(now time.Time) (*entry, time.Time) {
	if d.alonePhase == draining && d.inFlight == 0 {
		d.alonePhase = announcing
		d.aloneOf.aloneNow = d.alone.seq
		d.wantState(d.aloneOf)
	}
	if d.alonePhase == alone && d.alone.flying {
		if cleared := d.aloneSince.Add(aloneTime); now.Before(cleared) {
			return nil, cleared
		}
		d.alone.crashes = 0
		d.landed()
	}
	if d.alonePhase != alone || d.unwritten >= maxOpen {
		return nil, time.Time{}
	}
	d.aloneSince = now
	return d.fly(d.alone), now.Add(aloneTime)
}

// landed is called when the job that was under way alone is no longer.
func (d *dispatcher) landed() {
	d.alonePhase = ending
	d.aloneOf.aloneNow = 0
	d.wantState(d.aloneOf)
}

// wantState asks for a state of the import to be written at once.
func (d *dispatcher) wantState(a *active) { a.stateWant, d.stating = true, true }

// announced is called when a state of a was written that names the job, or 0.
func (d *dispatcher) announced(a *active, named uint64) {
	if d.aloneOf != a {
		return
	}
	switch {
	case d.alonePhase == announcing && named == d.alone.seq:
		d.alonePhase = alone
	case d.alonePhase == ending && named == 0:
		d.notAlone()
	}
}

func (d *dispatcher) notAlone() { d.alone, d.aloneOf, d.alonePhase = nil, nil, notAlone }

// end is called once for each job that was picked, when it is neither in flight nor going to be; false if it was for
// nothing, as the import is gone or this was not the last time that the job was picked.
func (d *dispatcher) end(e *entry, lap uint64) bool {
	if !e.flying || e.lap != lap {
		return false
	}
	e.flying = false
	e.of.dirty = true
	d.inFlight--
	e.of.inFlight--
	if d.alone == e {
		if e.of.gone {
			d.notAlone()
		} else {
			d.landed()
		}
	}
	return !e.of.gone
}

// finish takes a job out of flight that has its result, which waits to be written from now on.
func (d *dispatcher) finish(e *entry, lap uint64) bool {
	if !d.end(e, lap) {
		return false
	}
	d.unwritten++
	e.of.unwritten++
	return true
}

// requeue takes a job out of flight that is to be handed out again at due.
func (d *dispatcher) requeue(e *entry, lap uint64, due time.Time, counted bool) bool {
	if !d.end(e, lap) {
		return false
	}
	if counted {
		e.attempt++
	}
	e.due = due
	if e.crashes >= suspectCrashes {
		e.of.suspect = append(e.of.suspect, e)
	} else {
		heap.Push(&e.of.again, e)
	}
	return true
}

// written is called when the result of a job was written.
func (d *dispatcher) written(e *entry) {
	d.unwritten--
	e.of.unwritten--
	delete(e.of.open, e.seq)
}

func (d *dispatcher) add(a *active) { d.imports = append(d.imports, a) }

// drop forgets an import. What is in flight of it counts until it comes back.
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
	if d.aloneOf == a && !(d.alonePhase == alone && d.alone.flying) {
		d.notAlone()
	}
}

// requeued counts the jobs that wait to be handed out again, of all imports.
func (d *dispatcher) requeued() (n int64) {
	for _, a := range d.imports {
		n += a.requeued()
	}
	return n
}

// take gives the next job of the import that can be handed out while others are in flight.
func (a *active) take(now time.Time) *entry {
	if a.paused || a.hold || a.ending {
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
	for len(a.fresh) > 0 && len(a.lost) == 0 {
		if len(a.open) >= maxUnfinished {
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
		a.handed++
		delete(a.crashes, e.seq)
		if e.crashes < suspectCrashes {
			return e
		}
		a.suspect = append(a.suspect, e)
	}
	return nil
}

// takeSuspect gives a job that is to be handed out alone, when the import has nothing else to hand out.
func (a *active) takeSuspect(now time.Time) *entry {
	if a.paused || a.hold || a.ending || len(a.suspect) == 0 || len(a.earlier) > 0 || len(a.lost) > 0 {
		return nil
	}
	if !a.handedOut() && len(a.open) < maxUnfinished {
		return nil
	}
	for i, e := range a.suspect {
		if !now.Before(e.due) {
			a.suspect = append(a.suspect[:i:i], a.suspect[i+1:]...)
			return e
		}
	}
	return nil
}

// due is when a requeued job can be handed out; zero if there is none.
func (a *active) due() time.Time {
	if a.paused || a.hold || a.ending {
		return time.Time{}
	}
	var due time.Time
	if len(a.again) > 0 {
		due = a.again[0].due
	}
	for _, e := range a.suspect {
		if !e.due.IsZero() && (due.IsZero() || e.due.Before(due)) {
			due = e.due
		}
	}
	return due
}

// allRead tells whether every job up to the newest known checkpoint was read.
func (a *active) allRead() bool {
	return len(a.lost) == 0 && a.readNext >= a.checkpointSeq && a.missingSince.IsZero()
}

// missing is how many jobs up to the newest known checkpoint were not read, as far as is known.
func (a *active) missing() int64 { return a.checkpoint.Jobs - a.handed - int64(len(a.fresh)) }

// handedOut tells whether every job up to the newest known checkpoint was handed out.
func (a *active) handedOut() bool { return a.allRead() && len(a.fresh) == 0 }

// atEnd tells whether nothing is left to do: every job up to the newest known checkpoint has a result that is written.
func (a *active) atEnd() bool { return a.handedOut() && len(a.open) == 0 }

// lastResultIn tells whether all results are there, and only wait to be written.
func (a *active) lastResultIn() bool {
	return a.unwritten > 0 && a.handedOut() && int64(len(a.open)) == a.unwritten
}

// wantsJobs tells whether the buffer has room. Its jobs are counted against what may be handed out, so that an import
// whose jobs all wait for something does not fill it.
func (a *active) wantsJobs() bool {
	return len(a.lost) > 0 || len(a.fresh) < lowWater && !a.allRead()
}

func (a *active) requeued() int64 { return int64(len(a.again) + len(a.suspect)) }

// dueHeap has the entry on top that is due first.
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
