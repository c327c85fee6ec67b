package queue

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// newActive makes an import whose first n jobs were read, of a stream that ends after them.
func newActive(id string, n int) *active {
	a := &active{id: id, open: map[uint64]*entry{}, limit: 1 << 40, next: 1}
	a.checkpoint.Jobs, a.checkpoint.Done, a.checkpointSeq = int64(n), true, uint64(n+1)
	a.readNext = a.checkpointSeq
	for i := range n {
		a.fresh = append(a.fresh, &entry{of: a, seq: uint64(i + 1)})
	}
	return a
}

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// name is how the tests below call a job.
func name(e *entry) string {
	if e == nil {
		return "-"
	}
	return fmt.Sprintf("%s%d", e.of.id, e.seq)
}

// pickAll picks until there is nothing.
func (d *dispatcher) pickAll(now time.Time) (all []string) {
	for {
		e, _ := d.pick(now)
		if e == nil {
			return all
		}
		all = append(all, name(e))
	}
}

func TestDispatcherTakesTurns(t *testing.T) {
	var d dispatcher
	for _, a := range []*active{newActive("a", 5), newActive("b", 2), newActive("c", 3)} {
		d.add(a)
	}
	got := d.pickAll(noon)
	if want := []string{"a1", "b1", "c1", "a2", "b2", "c2", "a3", "c3", "a4", "a5"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if d.inFlight != 10 {
		t.Errorf("in flight: got %d, want 10", d.inFlight)
	}
}

// A small import beside a large one is through after as many jobs of the other one.
func TestDispatcherIsFair(t *testing.T) {
	var d dispatcher
	d.add(newActive("large", 1400))
	for range 500 {
		d.pick(noon)
	}
	small := newActive("small", 50)
	d.add(small)
	picked := 0
	for ; len(small.fresh) > 0; picked++ {
		if e, _ := d.pick(noon); e == nil {
			t.Fatal("nothing to pick")
		}
	}
	if picked > 101 {
		t.Errorf("50 jobs took %d picks, want 101 at most", picked)
	}
}

func TestDispatcherOrderWithinAnImport(t *testing.T) {
	a := newActive("a", 2)
	a.fresh[0].seq, a.fresh[1].seq = 21, 22
	for _, seq := range []uint64{3, 7} {
		e := &entry{of: a, seq: seq}
		a.open[seq] = e
		a.earlier = append(a.earlier, e)
	}
	var d dispatcher
	d.add(a)
	first, _ := d.pick(noon)
	second, _ := d.pick(noon)
	d.requeue(second, second.lap, noon.Add(2*time.Second), true)
	d.requeue(first, first.lap, noon.Add(time.Second), false)
	if got, want := d.pickAll(noon), []string{"a21", "a22"}; !slices.Equal(got, want) {
		t.Errorf("at noon: got %v, want %v", got, want)
	}
	if e, wake := d.pick(noon); e != nil || !wake.Equal(noon.Add(time.Second)) {
		t.Errorf("got %s, wake up at %v, want none until a second later", name(e), wake)
	}
	if got, want := d.pickAll(noon.Add(time.Second)), []string{"a3"}; !slices.Equal(got, want) {
		t.Errorf("a second later: got %v, want %v", got, want)
	}
	if got, want := d.pickAll(noon.Add(2*time.Second)), []string{"a7"}; !slices.Equal(got, want) {
		t.Errorf("two seconds later: got %v, want %v", got, want)
	}
	if first.attempt != 0 || second.attempt != 1 {
		t.Errorf("counted attempts: got %d and %d, want 0 and 1", first.attempt, second.attempt)
	}
}

// What is handed out is bounded: by the state that was written, by the results that were not, and by the jobs without one.
func TestDispatcherBounds(t *testing.T) {
	a := newActive("a", 3000)
	a.limit = 10
	var d dispatcher
	d.add(a)
	if got := len(d.pickAll(noon)); got != 10 || !a.stateWant || !d.stating {
		t.Errorf("picked %d, a state is wanted: %v, %v; want 10 and true", got, a.stateWant, d.stating)
	}
	a.limit = 1 << 40
	if got := len(d.pickAll(noon)); got != maxUnfinished-10 {
		t.Errorf("picked %d, want %d", got, maxUnfinished-10)
	}
	b := newActive("b", 3000)
	d.add(b)
	if got := len(d.pickAll(noon)); got != maxOpen-maxUnfinished {
		t.Errorf("picked %d, want %d", got, maxOpen-maxUnfinished)
	}
	var some []*entry
	for _, e := range b.open {
		some = append(some, e)
	}
	for _, e := range some {
		d.finish(e, e.lap)
	}
	if got := d.pickAll(noon); got != nil || d.unwritten != maxOpen-maxUnfinished {
		t.Errorf("with %d unwritten: picked %v, want none", d.unwritten, got)
	}
	for _, e := range some {
		d.written(e)
	}
	if got := len(d.pickAll(noon)); got != len(some) {
		t.Errorf("when they are written: picked %d, want %d", got, len(some))
	}
}

func TestDispatcherPauseAndDrop(t *testing.T) {
	a, b := newActive("a", 3), newActive("b", 3)
	var d dispatcher
	d.add(a)
	d.add(b)
	a.paused = true
	if e, _ := d.pick(noon); name(e) != "b1" {
		t.Errorf("got %s, want b1", name(e))
	}
	a.paused = false
	e, _ := d.pick(noon)
	if name(e) != "a1" {
		t.Errorf("got %s, want a1", name(e))
	}
	again, _ := d.pick(noon)
	d.finish(again, again.lap)
	d.drop(a)
	if d.inFlight != 2 || d.unwritten != 1 {
		t.Errorf("in flight %d, unwritten %d, want 2 and 1", d.inFlight, d.unwritten)
	}
	if d.finish(e, e.lap) || d.inFlight != 1 || d.unwritten != 1 {
		t.Errorf("a result of a dropped import: in flight %d, unwritten %d, want 1 and 1", d.inFlight, d.unwritten)
	}
	if got, want := d.pickAll(noon), []string{"b3"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	d.drop(b)
	if d.unwritten != 0 || len(d.imports) != 0 {
		t.Errorf("unwritten %d, imports %d, want none", d.unwritten, len(d.imports))
	}
}

// A job is finished or requeued once for each time that it was picked.
func TestDispatcherIgnoresLateResults(t *testing.T) {
	a := newActive("a", 1)
	var d dispatcher
	d.add(a)
	e, _ := d.pick(noon)
	first := e.lap
	if !d.requeue(e, first, noon, false) || d.requeue(e, first, noon, false) || d.finish(e, first) {
		t.Error("a second result was taken")
	}
	if e, _ = d.pick(noon); e == nil || d.finish(e, first) || !d.finish(e, e.lap) || d.finish(e, e.lap) {
		t.Error("a result of an earlier delivery was taken, or the right one was not")
	}
	if d.inFlight != 0 || d.unwritten != 1 {
		t.Errorf("in flight %d, unwritten %d, want 0 and 1", d.inFlight, d.unwritten)
	}
}

// suspectActive makes an import with suspects of as many losses as their numbers say, before n new jobs.
func suspectActive(id string, n int, losses ...int) *active {
	a := newActive(id, len(losses)+n)
	for _, c := range losses {
		e := a.takeFresh()
		e.crashes = c
		a.suspects[c-1] = append(a.suspects[c-1], e)
	}
	return a
}

// A flight is what a test has in flight.
type flight struct {
	t   *testing.T
	d   *dispatcher
	now time.Time
	all []*entry
}

// pick picks as often as there are names, and wants those.
func (f *flight) pick(want ...string) {
	f.t.Helper()
	for _, want := range want {
		e, _ := f.d.pick(f.now)
		if name(e) != want {
			f.t.Fatalf("got %s, want %s", name(e), want)
		}
		if e != nil {
			f.all = append(f.all, e)
		}
	}
}

// finish finishes all that is in flight.
func (f *flight) finish() {
	for _, e := range f.all {
		f.d.finish(e, e.lap)
		f.d.written(e)
	}
	f.all = nil
}

// announce wants the next state of an import to name a trial, and writes it.
func (f *flight) announce(a *active, want ...uint64) {
	f.t.Helper()
	if f.d.phase != announcing || !a.stateWant || !slices.Equal(a.trial, want) {
		f.t.Fatalf("phase %d, a state is wanted: %t; it names %v, want %v", f.d.phase, a.stateWant, a.trial, want)
	}
	a.stateWant = false
	f.d.announced(a, a.trial)
}

// Suspects of one loss come first in their import, those of two last and one by one; each trial has the flight for
// itself, after a state that names it.
func TestDispatcherTries(t *testing.T) {
	a, b := suspectActive("a", 2, 1, 2, 1, 2), newActive("b", 4)
	f := &flight{t: t, d: &dispatcher{}, now: noon}
	f.d.add(b)
	f.d.add(a)
	f.pick("b1", "-") // it is the turn of a
	f.finish()
	f.pick("-")
	f.d.announced(b, nil)
	f.d.announced(a, nil) // a state that was under way before
	f.pick("-")
	f.announce(a, 1, 3)
	f.pick("a1", "a3", "-")
	f.finish()
	f.announce(a)
	f.pick("b2", "a5", "b3", "a6", "b4", "-") // it is the turn of a, which has but suspects of two
	f.finish()
	f.pick("-")
	f.announce(a, 2)
	f.pick("a2", "-")
	f.finish()
	f.announce(a, 4)
	f.pick("a4", "-")
	f.finish()
	f.announce(a)
	f.pick("-")
	if f.d.phase != noTrial || !a.atEnd() || !b.atEnd() {
		t.Errorf("phase %d, at end: %v and %v, want all done", f.d.phase, a.atEnd(), b.atEnd())
	}
}

// The first trials are large, and so many of the new jobs take part as the last leader may have handed out.
func TestDispatcherTriesAhead(t *testing.T) {
	a := newActive("a", 200)
	a.ahead = 40
	f := &flight{t: t, d: &dispatcher{}, now: noon}
	f.d.add(a)
	for _, want := range []int{16, 16, 8, 0} {
		f.d.pick(noon)
		if got := len(a.trial); got != want {
			t.Fatalf("the state names %d, want %d", got, want)
		}
		f.announce(a, a.trial...)
		for range want {
			e, _ := f.d.pick(noon)
			f.all = append(f.all, e)
		}
		f.finish()
	}
	if got := len(f.d.pickAll(noon)); got != 160 {
		t.Errorf("picked %d afterwards, want 160", got)
	}
}

// A job that came back is a suspect no more, and neither is one that has been under way for a while; one that was not
// handed out stays one.
func TestDispatcherClears(t *testing.T) {
	a, b := suspectActive("a", 0, 1, 1, 1), newActive("b", 1)
	f := &flight{t: t, d: &dispatcher{}, now: noon}
	f.d.add(a)
	f.pick("-")
	f.announce(a, 1, 2, 3)
	f.pick("a1", "a2")
	f.d.add(b)
	first, second := f.all[0], f.all[1]
	f.d.requeue(first, first.lap, noon.Add(time.Hour), true)
	f.now = noon.Add(TrialTime)
	f.pick("-")
	f.announce(a)
	if first.crashes != 0 || second.crashes != 0 {
		t.Errorf("got %d and %d losses, want none", first.crashes, second.crashes)
	}
	f.pick("-") // the third has to wait until nothing is in flight
	f.d.finish(second, second.lap)
	f.pick("-")
	f.announce(a, 3)
	f.pick("a3", "-")
	f.all = f.all[2:]
	f.finish()
	f.announce(a)
	f.pick("b1", "-")
	f.now = noon.Add(time.Hour)
	f.pick("a1")
}

// An import that is paused in a trial does not keep the others waiting, and its suspects stay suspects.
func TestDispatcherPausesATrial(t *testing.T) {
	a, b := suspectActive("a", 0, 1, 1), newActive("b", 1)
	f := &flight{t: t, d: &dispatcher{}, now: noon}
	f.d.add(a)
	f.d.add(b)
	f.pick("-")
	f.announce(a, 1, 2)
	f.pick("a1")
	a.paused = true
	f.pick("-")
	f.finish()
	f.announce(a)
	f.pick("b1", "-")
	f.finish()
	a.paused = false
	f.pick("-")
	f.announce(a, 2)
	f.pick("a2")
}

// An import that is dropped in a trial does not keep the others waiting.
func TestDispatcherDropsATrial(t *testing.T) {
	for phase := draining; phase <= trying; phase++ {
		for _, inFlight := range []bool{false, true} {
			a, b := suspectActive("a", 0, 1, 1), newActive("b", 2)
			f := &flight{t: t, d: &dispatcher{}, now: noon}
			f.d.add(b)
			f.d.add(a)
			f.pick("b1", "-")
			if phase > draining {
				f.finish()
				f.pick("-")
			}
			if phase > announcing {
				f.announce(a, 1, 2)
			}
			if inFlight && phase == trying {
				f.pick("a1")
			}
			if f.d.phase != phase {
				t.Fatalf("got phase %d, want %d", f.d.phase, phase)
			}
			f.d.drop(a)
			if inFlight && phase == trying {
				f.pick("-")
				f.d.finish(f.all[0], f.all[0].lap)
			}
			f.pick("b2")
		}
	}
}

func TestMeter(t *testing.T) {
	var m meter
	m.add(noon, 0)
	for i := range 10 {
		m.add(noon.Add(time.Duration(i)*time.Second), 5)
	}
	if got, over := m.perSecond(noon.Add(10 * time.Second)); got != 5 || over != 10 {
		t.Errorf("after ten seconds: got %v over %v s, want 5 over 10 s", got, over)
	}
	if got, over := m.perSecond(noon.Add(64 * time.Second)); got != 25.0/60 || over != 60 {
		t.Errorf("a minute after some of it: got %v over %v s, want %v over 60 s", got, over, 25.0/60)
	}
	m.add(noon.Add(time.Hour), 8) // after a pause
	if got, over := m.perSecond(noon.Add(time.Hour + 4*time.Second)); got != 2 || over != 4 {
		t.Errorf("after an hour: got %v over %v s, want 2 over 4 s", got, over)
	}
	if got, _ := m.perSecond(noon.Add(3 * time.Hour)); got != 0 {
		t.Errorf("after hours: got %v, want 0", got)
	}
	if got, _ := m.perSecond(noon); got != 0 {
		t.Errorf("after the clock went back: got %v, want 0", got)
	}
}
