package app

import (
	"fmt"
	"strconv"
	"sync"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
	"groupferry/internal/job"
	"groupferry/worker"
)

// Count writes a number in groups of three, as people read it: 1,234,567.
func Count(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// A Tally is what one process did. What an import comes to is in its results; other processes may have done a part.
type Tally struct {
	Calls         int64 // that were sent
	Throttled     int64 // calls that the API throttled
	Retries       int64 // calls made again after a failure that may pass
	Done          int64 // jobs
	Partial       int64
	Failed        int64
	Conversations int64 // that are in their groups
	Removed       int64 // conversations that were taken out
	Deleted       int64 // groups
}

// A tallyObserver counts what a worker does, and passes it on.
type tallyObserver struct {
	worker.Observer

	mu    sync.Mutex
	n     Tally
	calls map[string]*recentCalls // by command
}

func (o *tallyObserver) count(add func(*Tally)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	add(&o.n)
}

func (o *tallyObserver) read() (n Tally) {
	o.count(func(now *Tally) { n = *now })
	return n
}

func (o *tallyObserver) CallDone(command, code string, d time.Duration) {
	o.count(func(n *Tally) {
		o.called(command, time.Now())
		n.Calls++
		if isThrottle(code) {
			n.Throttled++
		}
	})
	o.Observer.CallDone(command, code, d)
}

func (o *tallyObserver) Retry(command string) {
	o.count(func(n *Tally) { n.Retries++ })
	o.Observer.Retry(command)
}

func (o *tallyObserver) JobDone(outcome string, done, failed int, d time.Duration, attempts int) {
	o.count(func(n *Tally) {
		switch job.Outcome(outcome) {
		case job.Done:
			n.Done++
		case job.Partial:
			n.Partial++
		case job.Failed:
			n.Failed++
		}
		n.Conversations += int64(done)
	})
	o.Observer.JobDone(outcome, done, failed, d, attempts)
}

func (o *tallyObserver) Removed(removed, failed, deleted int) {
	o.count(func(n *Tally) {
		n.Removed += int64(removed)
		n.Deleted += int64(deleted)
	})
	o.Observer.Removed(removed, failed, deleted)
}

const (
	// recentSeconds is how far back calls are counted by the second.
	recentSeconds = 600

	// callsBucket is how many of these seconds CallRate.PerSecond has as one.
	callsBucket = 5
)

// recentCalls counts calls by the second, for the last [recentSeconds] and those of a bucket that has not ended.
type recentCalls [recentSeconds + 2*callsBucket]struct{ second, calls int64 }

// called counts a call. The lock is held.
func (o *tallyObserver) called(command string, at time.Time) {
	if o.calls == nil {
		o.calls = map[string]*recentCalls{}
	}
	r := o.calls[command]
	if r == nil {
		r = &recentCalls{}
		o.calls[command] = r
	}
	second := at.Unix()
	s := &r[second%int64(len(r))]
	if s.second != second {
		s.second, s.calls = second, 0
	}
	s.calls++
}

// A CallRate is how many calls a second ended, of those that this process made.
type CallRate struct {
	PerSecond []float64 // of each five seconds of the last ten minutes, the newest last
	Now       float64   // over the last five seconds, or those since the second of the first call
	Known     bool      // Now is: there was one
}

// CallsNow returns the calls a second of the command with the most of them; each command has the limit for itself. It is not
// known in a standby.
func (s *State) CallsNow() (perSecond float64, known bool) {
	for _, r := range s.Calls {
		perSecond, known = max(perSecond, r.Now), known || r.Known
	}
	return min(perSecond, float64(s.Rate)), known && len(s.Commands) > 0 // they end more closely than they begin
}

// recent returns the rates of the commands that were called in the last ten minutes.
func (o *tallyObserver) recent(now time.Time) map[string]CallRate {
	o.mu.Lock()
	defer o.mu.Unlock()
	present := now.Unix() // a second that has not ended
	end := present / callsBucket * callsBucket
	var all map[string]CallRate
	for command, r := range o.calls {
		for i, s := range r { // the clock was set back: these would come up again later
			if s.second > present+callsBucket {
				r[i].calls = 0
			}
		}
		rate, called := CallRate{PerSecond: make([]float64, recentSeconds/callsBucket)}, false
		first := present
		for _, s := range r {
			if s.calls > 0 {
				first = min(first, s.second)
			}
		}
		over := min(present-first-1, callsBucket)
		rate.Known = over > 0
		for _, s := range r {
			if s.second > present-recentSeconds && s.calls > 0 {
				called = true
			}
			if i := (s.second - end + recentSeconds); s.second < end && i >= 0 {
				rate.PerSecond[i/callsBucket] += float64(s.calls) / callsBucket
			}
			if s.second < present && s.second >= present-over {
				rate.Now += float64(s.calls) / float64(over)
			}
		}
		if !called {
			continue
		}
		if all == nil {
			all = map[string]CallRate{}
		}
		all[command] = rate
	}
	return all
}

// isThrottle reports whether a code, as an observer gets it, says that the API throttled the call.
func isThrottle(code string) bool {
	n, err := strconv.Atoi(code)
	return err == nil && chat.ClassOf(n) == chat.Throttle
}

// A RunReport is what one run did, apart from what the import came to. Its JSON form is read by programs.
type RunReport struct {
	Seconds   float64          `json:"seconds"`
	Calls     int64            `json:"calls"`
	Throttled int64            `json:"throttled"`
	Repeated  int64            `json:"repeated"`
	Simulator *SimulatorReport `json:"simulator,omitempty"`
}

// A SimulatorReport is what a simulator saw of a run.
type SimulatorReport struct {
	Calls         int64  `json:"calls"`
	MaxPerSecond  int    `json:"max_per_second"`
	Throttled     int    `json:"throttled"`
	BadRequests   int    `json:"bad_requests"`
	Groups        int    `json:"groups"`
	Conversations int    `json:"conversations"`
	Disagrees     string `json:"disagrees,omitempty"` // where the simulator and the process counted otherwise
}

// NewRunReport reports what a process did in so much time, and compares it with the ledger of its simulator if it has one.
func NewRunReport(n Tally, took time.Duration, l *chatsim.Ledger) *RunReport {
	r := &RunReport{Seconds: took.Seconds(), Calls: n.Calls, Throttled: n.Throttled, Repeated: n.Retries}
	if l == nil {
		return r
	}
	s := &SimulatorReport{BadRequests: l.BadRequests, Groups: l.Groups, Conversations: l.Conversations}
	for _, c := range l.Commands {
		s.Calls += int64(c.Calls)
		s.Throttled += c.Throttled
		s.MaxPerSecond = max(s.MaxPerSecond, c.MaxPerSecond)
	}
	switch groups := n.Done + n.Partial - n.Deleted; {
	case s.Calls != n.Calls:
		s.Disagrees = fmt.Sprintf("%d calls arrived, %d were made", s.Calls, n.Calls)
	case int64(l.Conversations) != n.Conversations:
		s.Disagrees = fmt.Sprintf("%d conversations are in groups, %d were reported done", l.Conversations, n.Conversations)
	case int64(l.Groups) != groups:
		s.Disagrees = fmt.Sprintf("there are %d groups, %d were reported", l.Groups, groups)
	case l.BadRequests > 0:
		s.Disagrees = fmt.Sprintf("%d calls broke a limit or a rule, such as %+v", l.BadRequests, l.BadSamples[0])
	}
	r.Simulator = s
	return r
}
