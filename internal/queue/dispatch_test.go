package queue

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// newActive makes an import whose first n jobs were read, of a stream that ends after them.
func newActive(id string, n int) *active {
	a := &active{id: id, open: map[uint64]*entry{}, crashes: map[uint64]int{}, limit: 1 << 40, next: 1}
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
func TestDispatcherIgnoresLateAnswers(t *testing.T) {
	a := newActive("a", 1)
	var d dispatcher
	d.add(a)
	e, _ := d.pick(noon)
	first := e.lap
	if !d.requeue(e, first, noon, false) || d.requeue(e, first, noon, false) || d.finish(e, first) {
		t.Error("a second answer was taken")
	}
	if e, _ = d.pick(noon); e == nil || d.finish(e, first) || !d.finish(e, e.lap) || d.finish(e, e.lap) {
		t.Error("an answer to an earlier delivery was taken, or the right one was not")
	}
	if d.inFlight != 0 || d.unwritten != 1 {
		t.Errorf("in flight %d, unwritten %d, want 0 and 1", d.inFlight, d.unwritten)
	}
}

// A job that was under way at two crashes comes last in its import, alone, and between two states.
func TestDispatcherHandsOutAlone(t *testing.T) {
	a, b := newActive("a", 3), newActive("b", 4)
	a.fresh[0].crashes = suspectCrashes
	var d dispatcher
	d.add(a)
	d.add(b)
	var flying []*entry
	pick := func(want string) {
		t.Helper()
		e, _ := d.pick(noon)
		if name(e) != want {
			t.Fatalf("got %s, want %s", name(e), want)
		}
		if e != nil {
			flying = append(flying, e)
		}
	}
	land := func() {
		for _, e := range flying {
			d.finish(e, e.lap)
			d.written(e)
		}
		flying = nil
	}
	pick("a2")
	pick("b1")
	pick("a3")
	pick("b2")
	pick("-") // it is the turn of a, whose only job left is to be alone
	land()
	pick("-")
	if a.aloneNow != 1 || !a.stateWant {
		t.Fatalf("the next state names %d, wanted: %v; want 1 and true", a.aloneNow, a.stateWant)
	}
	d.announced(b, 0)
	d.announced(a, 0) // one that was under way before
	pick("-")
	d.announced(a, 1)
	pick("a1")
	pick("-")
	e := flying[0]
	flying = nil
	a.stateWant = false
	d.requeue(e, e.lap, noon.Add(time.Second), true)
	if a.aloneNow != 0 || !a.stateWant {
		t.Fatalf("requeued: the next state names %d, wanted: %v; want 0 and true", a.aloneNow, a.stateWant)
	}
	pick("-")
	d.announced(a, 0)
	pick("b3")
	pick("b4")
	land()
	if e, wake := d.pick(noon); e != nil || !wake.Equal(noon.Add(time.Second)) {
		t.Fatalf("got %s, wake up at %v, want none until a second later", name(e), wake)
	}
	d.pick(noon.Add(time.Second))
	d.announced(a, 1)
	pick("a1")
	land()
	d.announced(a, 0)
	if d.alonePhase != notAlone || !a.atEnd() || !b.atEnd() {
		t.Errorf("phase %d, at end: %v and %v, want all done", d.alonePhase, a.atEnd(), b.atEnd())
	}
}

// A job that has been under way alone for a while did not kill the process: it is in flight like others from then on,
// and is not alone when it comes back.
func TestDispatcherClears(t *testing.T) {
	a := newActive("a", 1)
	a.fresh[0].crashes = suspectCrashes
	var d dispatcher
	d.add(a)
	pick := func(at time.Time, want string) *entry {
		t.Helper()
		e, _ := d.pick(at)
		if name(e) != want {
			t.Fatalf("at %v: got %s, want %s", at.Sub(noon), name(e), want)
		}
		return e
	}
	pick(noon, "-")
	d.announced(a, 1)
	e, wake := d.pick(noon)
	if name(e) != "a1" || !wake.Equal(noon.Add(aloneTime)) {
		t.Fatalf("got %s, wake up at %v, want a1 and to look again after %v", name(e), wake, aloneTime)
	}
	b := newActive("b", 1)
	d.add(b)
	pick(noon.Add(aloneTime-1), "-")
	pick(noon.Add(aloneTime), "-")
	if a.aloneNow != 0 || !a.stateWant || e.crashes != 0 {
		t.Fatalf("the next state names %d, wanted: %v, %d crashes; want 0, true, 0", a.aloneNow, a.stateWant, e.crashes)
	}
	d.announced(a, 0)
	pick(noon.Add(aloneTime), "b1")
	d.requeue(e, e.lap, noon.Add(aloneTime), true)
	if got := pick(noon.Add(aloneTime), "a1"); got.crashes != 0 {
		t.Errorf("handed out again: got %d crashes, want none", got.crashes)
	}
}

// An import that is dropped does not keep the others waiting for its job to be alone.
func TestDispatcherDropsAlone(t *testing.T) {
	for phase := draining; phase <= ending; phase++ {
		a, b := newActive("a", 1), newActive("b", 2)
		a.fresh[0].crashes = suspectCrashes
		var d dispatcher
		d.add(b)
		d.add(a)
		other, _ := d.pick(noon)
		d.pick(noon)
		var e *entry
		if phase > draining {
			d.finish(other, other.lap)
			d.pick(noon)
		}
		if phase > announcing {
			d.announced(a, 1)
			e, _ = d.pick(noon)
		}
		if phase > alone {
			d.finish(e, e.lap)
		}
		if d.alonePhase != phase {
			t.Fatalf("got phase %d, want %d", d.alonePhase, phase)
		}
		d.drop(a)
		if phase == alone {
			if got, _ := d.pick(noon); got != nil {
				t.Errorf("picked %s while a job of a dropped import is under way alone", name(got))
			}
			d.finish(e, e.lap)
		}
		if got, _ := d.pick(noon); name(got) != "b2" {
			t.Errorf("phase %d: got %s, want b2", phase, name(got))
		}
	}
}

func TestMeter(t *testing.T) {
	var m meter
	m.add(noon, 0)
	for i := range 10 {
		m.add(noon.Add(time.Duration(i)*time.Second), 5)
	}
	if got := m.perSecond(noon.Add(10 * time.Second)); got != 5 {
		t.Errorf("after ten seconds: got %v, want 5", got)
	}
	if got, want := m.perSecond(noon.Add(64*time.Second)), 25.0/60; got != want {
		t.Errorf("a minute after some of it: got %v, want %v", got, want)
	}
	if got := m.perSecond(noon.Add(time.Hour)); got != 0 {
		t.Errorf("after an hour: got %v, want 0", got)
	}
	if got := m.perSecond(noon); got != 0 {
		t.Errorf("after the clock went back: got %v, want 0", got)
	}
}
