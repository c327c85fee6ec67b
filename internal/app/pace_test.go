package app

import (
	"math"
	"slices"
	"testing"
	"time"

	"groupferry/internal/governor"
	"groupferry/internal/queue"
)

// A paceRun is a run of jobs at a steady pace, of which a Pace is shown a sample five times a second.
type paceRun struct {
	pace   Pace
	at     time.Time
	state  State
	totals Totals
	done   float64
}

// second lets a second pass with so many jobs, and returns the time left after it. The progress is read once in it.
func (r *paceRun) second(jobs float64) time.Duration {
	for range 5 {
		r.at = r.at.Add(time.Second / 5)
		r.pace.Note(r.at, &r.state, r.totals)
	}
	r.done = min(r.done+jobs, float64(r.totals.Jobs))
	r.totals.Finished = int64(r.done)
	r.pace.Note(r.at, &r.state, r.totals)
	return r.pace.Left(&r.state, r.totals)
}

func newPaceRun(jobs, calls int64) *paceRun {
	return &paceRun{at: time.Unix(1e9, 0), totals: Totals{Imports: 1, Jobs: jobs, Calls: calls}, state: State{
		Mode: Running, Reason: Working, Rate: 200, Leading: true,
		Commands: map[string]governor.LaneSnapshot{"create": {Limit: 200, Effective: 200}},
	}}
}

// The time left is right from the first second to the last, and goes down.
func TestPaceLeft(t *testing.T) {
	tests := []struct {
		name        string
		jobs, calls int64
		perSecond   float64
		change      func(*State)
	}{
		{"at the limit", 20000, 20000, 195, func(*State) {}},
		{"large groups", 5000, 50000, 19.5, func(*State) {}},
		{"a little slower than planned", 20000, 20000, 145, func(*State) {}},
		{"a slow API", 7000, 7000, 68, func(s *State) { s.RoundTrip = 2 * time.Second }},
		{"a throttled one", 5000, 5000, 50, func(s *State) {
			s.Commands = map[string]governor.LaneSnapshot{"create": {Limit: 200, Effective: 52}}
		}},
		{"in a standby", 20000, 20000, 190, func(s *State) { s.Mode, s.Reason, s.Commands = Standby, OtherLeads, nil }},
	}
	for _, test := range tests {
		r := newPaceRun(test.jobs, test.calls)
		test.change(&r.state)
		before, truth := r.pace.Left(&r.state, r.totals).Seconds(), float64(test.jobs)/test.perSecond
		if before < truth/1.5 || before > truth*1.5 {
			t.Errorf("%s: got %.0f s before the first job, want about %.0f", test.name, before, truth)
		}
		for second := 1; r.totals.Finished < r.totals.Jobs; second++ {
			left := r.second(test.perSecond).Seconds()
			truth = float64(r.totals.Jobs-r.totals.Finished) / test.perSecond
			if left < truth/1.5 || left > truth*1.5+0.1 {
				t.Errorf("%s: got %.1f s after second %d, want about %.1f", test.name, left, second, truth)
			}
			if left > before+truth/20 {
				t.Errorf("%s: got %.1f s after second %d, and %.1f just before", test.name, left, second, before)
			}
			before = left
		}
		if before != 0 {
			t.Errorf("%s: got %.1f s at the end, want 0", test.name, before)
		}
	}
}

// After another rate is set, what was measured before says nothing.
func TestPaceLeftAfterRate(t *testing.T) {
	r := newPaceRun(20000, 20000)
	pass := func(perSecond float64) float64 {
		r.at, r.done = r.at.Add(time.Second), r.done+perSecond
		r.totals.Finished = int64(r.done)
		r.pace.Note(r.at, &r.state, r.totals)
		return r.pace.Left(&r.state, r.totals).Seconds()
	}
	for range 50 {
		pass(190)
	}
	for _, rate := range []int{20, 200} {
		r.state.Rate = rate
		perSecond := float64(rate) * 0.95
		for second := range 30 {
			left := pass(perSecond)
			if truth := float64(r.totals.Jobs-r.totals.Finished) / perSecond; left < truth/1.2 || left > truth*1.2 {
				t.Errorf("%d calls a second: got %.0f s in second %d, want about %.0f", rate, left, second, truth)
			}
		}
	}
}

// A standby that comes later knows what the leader has measured.
func TestPaceLeftOfLeader(t *testing.T) {
	r := newPaceRun(20000, 20000)
	r.state.Mode, r.state.Reason, r.state.Commands = Standby, OtherLeads, nil
	r.totals.Rate, r.totals.RateOver = 20, time.Minute
	if got := r.pace.Left(&r.state, r.totals); got != 1000*time.Second {
		t.Errorf("got %v, want 20,000 jobs at 20 a second", got)
	}
	r.totals.Rate, r.totals.RateOver = 0, 0 // it does not say any more
	if got := r.pace.Left(&r.state, r.totals); got != 100*time.Second {
		t.Errorf("without a rate: got %v, want 20,000 jobs at 200 a second", got)
	}
}

// While nothing is done nobody knows how long it takes, and that time does not count afterwards.
func TestPaceLeftAfterStandstill(t *testing.T) {
	for name, stand := range map[string]func(*paceRun){
		"pause":           func(r *paceRun) { r.state.Mode, r.state.Reason = Paused, ByHand },
		"pause of import": func(r *paceRun) { r.totals.Paused = true },
		"halt":            func(r *paceRun) { r.state.Mode, r.state.Reason = Halted, Edition },
		"outage":          func(r *paceRun) { r.state.Mode, r.state.Reason = OutOfReach, NoAPI },
		"no leader":       func(r *paceRun) { r.state.Mode, r.state.Reason = Leaderless, Election },
		"stop":            func(r *paceRun) { r.state.Stopping = true },
	} {
		r := newPaceRun(20000, 20000)
		for range 20 {
			r.second(100)
		}
		stand(r)
		for range 300 {
			if left := r.second(0); left != 0 {
				t.Fatalf("%s: got %v, want none", name, left)
			}
		}
		r.state.Mode, r.state.Reason, r.state.Stopping, r.totals.Paused = Running, Working, false, false
		for second := range 20 {
			left := r.second(100).Seconds()
			if truth := float64(r.totals.Jobs-r.totals.Finished) / 100; left < truth/1.2 || left > truth*1.2 {
				t.Errorf("%s: got %.0f s in second %d after it, want about %.0f", name, left, second, truth)
			}
		}
	}
}

// The calls a second are right as soon as they are known: after the first whole second. In a standby they are not.
func TestCallsNow(t *testing.T) {
	var o tallyObserver
	start := time.Unix(1_000_000_000, 0)
	s := State{Rate: 200, Commands: map[string]governor.LaneSnapshot{"create": {}}}
	at := func(second int) (float64, bool) {
		s.Calls = o.recent(start.Add(time.Duration(second) * time.Second))
		return s.CallsNow()
	}
	for second, calls := range []int{20, 150, 150, 210, 210, 210, 210, 210, 0, 0, 0, 0, 0} { // the first second is no whole one
		want := []float64{-1, -1, 150, 150, 170, 180, 186, 198, 200, 168, 126, 84, 42}[second]
		if got, known := at(second); known != (want >= 0) || known && got != want {
			t.Errorf("second %d: got %v, %t, want %v", second, got, known, want)
		}
		for range calls {
			o.called("create", start.Add(time.Duration(second)*time.Second))
		}
		o.called("get", start.Add(time.Duration(second)*time.Second)) // each has the limit for itself
	}
	if got, known := at(20); got != 0 || !known {
		t.Errorf("after five seconds without: got %v, %t, want 0", got, known)
	}
	s.Commands = nil
	if _, known := at(20); known {
		t.Error("known in a standby")
	}
}

// What is possible is less than the limit where the API is slow, or throttles; the page reckons with it, too.
func TestPossible(t *testing.T) {
	slow := State{Mode: Running, Rate: 10, RoundTrip: time.Second}
	throttled := State{Rate: 10, Commands: map[string]governor.LaneSnapshot{"get": {Limit: 10, Effective: 10}, "create": {Limit: 10, Effective: 2}}}
	if got, want := []float64{(&State{Rate: 10}).possible(), slow.possible(), throttled.possible()}, []float64{10, 5, 2}; !slices.Equal(got, want) {
		t.Errorf("got %v calls a second, want %v", got, want)
	}
	if got := secondsLeft(&slow, &ImportProgress{}, &Totals{Jobs: 100, Calls: 100}); got == nil || *got != 20 {
		t.Errorf("the page: got %v, want 100 jobs at 5 a second", got)
	}
}

// The first rate that a leader writes is of too short a time to say how long it takes.
func TestTimeLeft(t *testing.T) {
	for _, test := range []struct {
		measured float64
		over     time.Duration
		want     time.Duration
	}{
		{0, 0, 10 * time.Second},                  // planned
		{5, 2 * time.Second, 11 * time.Second},    // 2,000 jobs at 180.5 a second
		{100, 10 * time.Second, 13 * time.Second}, // at 150
		{100, 20 * time.Second, 20 * time.Second},
		{100, time.Minute, 20 * time.Second},
		{0, time.Minute, 0}, // it stands still
	} {
		if got := timeLeft(2000, planned(200, 2000, 2000), test.measured, test.over); got.Truncate(time.Second) != test.want {
			t.Errorf("%v in %v: got %v, want %v", test.measured, test.over, got, test.want)
		}
	}
	if got := timeLeft(0, 200, 200, time.Minute); got != 0 {
		t.Errorf("without jobs: got %v", got)
	}
}

// What status says is the same, of what the leader wrote last.
func TestStatusTimeLeft(t *testing.T) {
	now := time.Now()
	for name, test := range map[string]struct {
		change func(*queue.Progress)
		want   float64 // 0: nobody knows
	}{
		"planned":         {func(p *queue.Progress) { p.Rate, p.RateOver = 0, 2*time.Second }, 50 / 0.9},
		"measured":        {func(*queue.Progress) {}, 100},
		"an old leader":   {func(p *queue.Progress) { p.At = now.Add(-time.Minute) }, 0},
		"no leader":       {func(p *queue.Progress) { p.At = time.Time{} }, 0},
		"paused":          {func(p *queue.Progress) { p.Import.Paused = true }, 0},
		"a retry":         {func(p *queue.Progress) { p.Import.Generation, p.Pending, p.InFlight = 1, 90, 10 }, 1},
		"a retry planned": {func(p *queue.Progress) { p.Import.Generation, p.Pending, p.RateOver = 1, 200, 0 }, 1},
	} {
		p := queue.Progress{
			Import: queue.Import{State: queue.Running, Jobs: 10000, Calls: 10000},
			Rate:   100, RateOver: time.Minute, At: now,
		}
		test.change(&p)
		s := newImportStatus(p, 200)
		got := 0.0
		if s.SecondsLeft != nil {
			got = *s.SecondsLeft
		}
		if math.Abs(got-test.want) > 0.1 {
			t.Errorf("%s: got %.1f s, want %.1f", name, got, test.want)
		}
	}
}
