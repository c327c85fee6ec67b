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

	// callsWindow is over how much time calls are counted, and callsLeast how much is needed to say anything.
	callsWindow = 5 * time.Second
	callsLeast  = time.Second
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

// A Pace is how fast jobs are done, and calls are made, as people are shown it: by what the State of a process says from time
// to time. The zero value is ready to use.
type Pace struct {
	noted  time.Time     // of the last sample
	works  bool          // jobs are done since then
	worked time.Duration // in all, for only that counts
	jobs   []jobsSample
	calls  []callsSample
	limit  float64 // calls a second
}

type jobsSample struct {
	worked   time.Duration
	imports  int
	finished int64
}

type callsSample struct {
	at      time.Time
	term    uint64
	granted map[string]uint64 // by command
}

// Note takes in what a process says at a time. The totals are those of its progress.
func (p *Pace) Note(now time.Time, s *State, t Totals) {
	if p.works {
		p.worked += max(now.Sub(p.noted), 0)
	}
	p.limit, p.noted, p.works = float64(s.Rate), now, works(s, t) && s.Reason != Starting

	n := len(p.jobs)
	if n > 0 && (t.Imports != p.jobs[n-1].imports || t.Finished < p.jobs[n-1].finished) { // they are others
		p.jobs, n = nil, 0
	}
	if n == 1 && t.Finished == p.jobs[0].finished { // what comes before the first result is no pace
		p.jobs[0].worked = p.worked
	}
	if p.works && (n == 0 || p.worked-p.jobs[n-1].worked >= jobsEvery) {
		p.jobs = append(p.jobs, jobsSample{p.worked, t.Imports, t.Finished})
		for p.worked-p.jobs[0].worked > jobsWindow {
			p.jobs = p.jobs[1:]
		}
	}

	n = len(p.calls)
	if n > 0 && (len(s.Commands) == 0 || s.Term != p.calls[n-1].term) {
		p.calls = nil
	}
	if len(s.Commands) > 0 {
		granted := map[string]uint64{}
		for command, lane := range s.Commands {
			granted[command] = lane.Granted
		}
		p.calls = append(p.calls, callsSample{now, s.Term, granted})
		for now.Sub(p.calls[0].at) > callsWindow {
			p.calls = p.calls[1:]
		}
	}
}

// works reports whether this process, or the one that leads, does jobs.
func works(s *State, t Totals) bool {
	return (s.Mode == Running || s.Mode == Standby) && !s.Stopping && !t.Paused
}

// Calls returns the calls a second of the command with the most of them in the last seconds; each command has the limit for
// itself. It is not known in a standby.
func (p *Pace) Calls() (perSecond float64, known bool) {
	if len(p.calls) == 0 {
		return 0, false
	}
	first, last := p.calls[0], p.calls[len(p.calls)-1]
	took := last.at.Sub(first.at)
	if took < callsLeast {
		return 0, false
	}
	for command, granted := range last.granted {
		perSecond = max(perSecond, float64(granted-first.granted[command])/took.Seconds())
	}
	// Calls come a little closer than the limit has them, with a pause in each second. A time that ends before the pause has
	// up to 1 % more in it.
	return min(perSecond, p.limit), true
}

// Left returns how long it will take, 0 while nobody knows: what was noted last.
func (p *Pace) Left(s *State, t Totals) time.Duration {
	if !works(s, t) || s.Reason == Starting { // the API has not responded yet
		return 0
	}
	limit, throttled := float64(s.Rate), 1.0
	for _, lane := range s.Commands {
		throttled = min(throttled, lane.Effective/lane.Limit)
	}
	// A permit is free again a second after its call has ended: see internal/governor.
	limit *= throttled / (1 + s.RoundTrip.Seconds())
	var measured float64
	var over time.Duration
	if len(p.jobs) > 0 {
		if over = p.worked - p.jobs[0].worked; over > 0 {
			measured = float64(t.Finished-p.jobs[0].finished) / over.Seconds()
		}
	}
	return timeLeft(t.Jobs-t.Finished, planned(limit, t.Jobs, t.Calls), measured, over)
}
