package lease

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

var (
	storms = flag.Uint64("storms", 20, "number of random storms")
	seed   = flag.Uint64("seed", 1, "seed of the first storm; 0 picks one")
)

func firstSeed(t *testing.T) uint64 {
	if *seed != 0 {
		return *seed
	}
	s := rand.Uint64N(1 << 40)
	t.Logf("first seed %d", s)
	return s
}

// storm makes a random run of a few candidates, and returns its world for what is in the ledger. A seed repeats the
// faults; the order of goroutines that run at the same instant is not repeated.
func storm(t *testing.T, seed uint64, plant func(*world)) *world {
	w := newWorld(seed)
	synctest.Test(t, func(t *testing.T) {
		if plant != nil {
			plant(w)
		}
		for range 2 + w.random(4) {
			w.launch(t)
		}
		delay := []time.Duration{time.Millisecond, 20 * time.Millisecond, 200 * time.Millisecond}[w.random(3)]
		w.mu.Lock()
		w.delay = delay
		w.mu.Unlock()
		var dead []*machine
		for range 40 {
			time.Sleep(w.randomTime(4 * time.Second))
			m := w.leader()
			if m == nil || w.chance(0.4) {
				m = w.machines[w.random(len(w.machines))]
			}
			if len(dead) > 0 && w.chance(0.4) {
				dead[0].start(t)
				dead = dead[1:]
			}
			if slices.Contains(dead, m) {
				continue
			}
			hold := w.randomTime(12 * time.Second)
			switch w.random(12) {
			case 0:
				m.kill()
				dead = append(dead, m)
			case 1: // and the next leader soon after it took over
				m.kill()
				dead = append(dead, m)
				if next, _ := w.await(m); next != nil {
					time.Sleep(w.randomTime(3 * time.Second))
					next.kill()
					dead = append(dead, next)
				}
			case 2:
				m.retire("")
				m.start(t)
			case 3:
				next := w.machines[w.random(len(w.machines))] // may be dead, or m itself, whose name is no more
				m.retire(next.proc.name)
				m.start(t)
			case 4, 5:
				m.freeze(false)
				time.AfterFunc(hold, m.wake)
			case 6, 7:
				m.freeze(true)
				time.AfterFunc(hold, m.wake)
			case 8:
				out, in := w.chance(0.6), w.chance(0.6)
				m.cut(out, in)
				time.AfterFunc(hold, func() { m.cut(false, false) })
			case 9, 10:
				step := time.Hour
				if w.chance(0.5) {
					step = w.randomTime(5 * time.Second)
				}
				if w.chance(0.5) {
					step = -step
				}
				m.set(step)
			case 11:
				w.mu.Lock()
				w.loseRequest, w.loseResponse = 0.3*w.rnd.Float64(), 0.3*w.rnd.Float64()
				w.double, w.late = 0.3*w.rnd.Float64(), 0.3*w.rnd.Float64()
				w.mu.Unlock()
			}
		}
		w.mu.Lock()
		w.loseRequest, w.loseResponse, w.double, w.late, w.delay = 0, 0, 0, 0, 10*time.Millisecond
		w.mu.Unlock()
		for _, m := range w.machines {
			m.wake()
			m.cut(false, false)
		}
		for _, m := range dead {
			m.start(t)
		}
		time.Sleep(20 * time.Second)
		if plant == nil {
			calm(t, w)
		}
		w.end(t, plant == nil)
	})
	return w
}

// calm checks what holds when all paths are good: a leader that dies is succeeded within 3.25 s, one that leaves at
// the next poll, and one that is left alone continues.
func calm(t *testing.T, w *world) {
	old := w.leader()
	if old == nil {
		t.Error("nobody leads after the storm")
		return
	}
	for range 3 {
		old.kill()
		next, took := w.await(old)
		if next == nil || took > 3250*time.Millisecond {
			t.Errorf("the next leads %v after its leader died", took)
		}
		old.start(t)
		if next == nil {
			return
		}
		time.Sleep(w.randomTime(5 * time.Second))
		old = next
	}
	old.retire("")
	next, took := w.await(old)
	if next == nil || took > pollEvery+4*w.delay {
		t.Errorf("the next leads %v after the lease was released", took)
	}
	old.start(t)
	time.Sleep(time.Second)
	term := w.term()
	time.Sleep(time.Minute)
	if now := w.term(); now != term {
		t.Errorf("term %d became %d, without any fault", term, now)
	}
}

func TestStorm(t *testing.T) {
	first := firstSeed(t)
	var tenures, lost, made int
	for n := first; n < first+*storms; n++ {
		ok := t.Run(fmt.Sprint("seed=", n), func(t *testing.T) {
			w := storm(t, n, nil)
			tenures, lost, made = tenures+w.tenures, lost+w.lost, made+w.made
		})
		if !ok {
			t.Fatalf("seed %d; to repeat: go test ./internal/lease -run TestStorm -seed %d -storms 1", n, n)
		}
	}
	t.Logf("%d tenures, %d lost, %d calls", tenures, lost, made)
	if lost == 0 || made == 0 {
		t.Errorf("the storms are too mild: %d tenures, %d lost, %d calls", tenures, lost, made)
	}
}

// TestStormNoticesPlantedBugs shows that the storm can fail.
func TestStormNoticesPlantedBugs(t *testing.T) {
	for name, plant := range map[string]func(*world){
		"the store replaces any revision":                          func(w *world) { w.takeAll = true },
		"suspended machines with wall clocks that stand still too": func(w *world) { w.noWall = true },
		"rights that last 1 s longer":                              func(w *world) { w.longer = time.Second },
		"higher numbers are used at once":                          func(w *world) { w.greedy = true },
		"inherited calls are forgotten":                            func(w *world) { w.forget = true },
	} {
		t.Run(name, func(t *testing.T) {
			for seed := uint64(1); seed <= 40; seed++ {
				if w := storm(t, seed, plant); len(w.failures) > 0 {
					t.Logf("seed %d: %s", seed, w.failures[0])
					return
				}
			}
			t.Error("40 storms did not notice")
		})
	}
}
