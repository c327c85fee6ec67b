package app

import "time"

const (
	// paceOver is how long a pace is measured until it alone says how long jobs take. Before that, what the limit allows counts
	// as well: the first seconds of a term are unlike those that follow, and a slow API responds in waves of 200 calls.
	paceOver = 20 * time.Second

	// jobsWindow is over how much time of work jobs are counted, and jobsEvery how often. The progress of imports is read
	// as often.
	jobsWindow = time.Minute
	jobsEvery  = time.Second
)

// timeLeft returns how long so many jobs take, 0 while nobody knows. Planned is how many jobs a second the limit allows,
// measured how many a second were done in so much time.
func timeLeft(jobs int64, planned, measured float64, over time.Duration) time.Duration {
	weight := min(float64(over)/float64(paceOver), 1)
	pace := (1-weight)*planned + weight*measured
	if jobs <= 0 || pace <= 0 {
		return 0
	}
	return time.Duration(float64(jobs) / pace * float64(time.Second))
}

// planned returns how many jobs a second the limit allows, if they are like those of an import, or of several.
func planned(limit float64, jobs, calls int64) float64 {
	return limit * float64(max(jobs, 1)) / float64(max(calls, jobs, 1))
}

// possible is how many calls a second of a command the API takes now, as far as this process knows. A permit is free again a
// second after its call has ended: see internal/governor.
func (s *State) possible() float64 {
	throttled := 1.0
	for _, lane := range s.Commands {
		throttled = min(throttled, lane.Effective/lane.Limit)
	}
	return float64(s.Rate) * throttled / (1 + s.RoundTrip.Seconds())
}

// A Pace is how fast jobs are done, as people are shown it: by what the State of a process says from time to time. The zero
// value is ready to use.
type Pace struct {
	noted  time.Time     // of the last sample
	works  bool          // jobs are done since then
	worked time.Duration // in all, for only that counts
	jobs   []jobsSample
}

type jobsSample struct {
	worked   time.Duration
	imports  int
	rate     int // calls a second that are allowed
	finished int64
}

// Note takes in what a process says at a time. The totals are those of its progress.
func (p *Pace) Note(now time.Time, s *State, t Totals) {
	if p.works {
		p.worked += max(now.Sub(p.noted), 0)
	}
	p.noted, p.works = now, works(s, t)

	n := len(p.jobs)
	if n > 0 && (t.Imports != p.jobs[n-1].imports || s.Rate != p.jobs[n-1].rate || t.Finished < p.jobs[n-1].finished) { // they are others
		p.jobs, n = nil, 0
	}
	if n == 1 && t.Finished == p.jobs[0].finished { // what comes before the first result is no pace
		p.jobs[0].worked = p.worked
	}
	if p.works && (n == 0 || p.worked-p.jobs[n-1].worked >= jobsEvery) {
		p.jobs = append(p.jobs, jobsSample{p.worked, t.Imports, s.Rate, t.Finished})
		for p.worked-p.jobs[0].worked > jobsWindow {
			p.jobs = p.jobs[1:]
		}
	}
}

// works reports whether this process, or the one that leads, does jobs; not before the API has responded.
func works(s *State, t Totals) bool {
	return (s.Mode == Running && s.Reason != Starting || s.Mode == Standby) && !s.Stopping && !t.Paused
}

// Left returns how long it will take, 0 while nobody knows: what was noted last.
func (p *Pace) Left(s *State, t Totals) time.Duration {
	if !works(s, t) {
		return 0
	}
	limit := s.possible()
	var measured float64
	var over time.Duration
	if len(p.jobs) > 0 {
		if over = p.worked - p.jobs[0].worked; over > 0 {
			measured = float64(t.Finished-p.jobs[0].finished) / over.Seconds()
		}
	}
	if s.Mode == Standby && t.RateOver > over { // the leader began before, and knows the API
		measured, over = t.Rate, t.RateOver
	}
	return timeLeft(t.Jobs-t.Finished, planned(limit, t.Jobs, t.Calls), measured, over)
}
