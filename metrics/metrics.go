// Package metrics watches the importer, the worker and the governor, and serves what it saw to Prometheus.
//
//	rows ──────► Rows, JobsEnqueued ───────────────┐
//	calls ─────► CallDone, Retry, Throttled ───────┤
//	jobs ──────► JobStarted, JobDone, JobPutBack ──┼──► registry ──► /metrics
//	permits ───► Granted ──────────────────────────┤        ▲
//	UserSig ───► SetUserSigExpiry ─────────────────┘        │ asked at each scrape
//	governor, queue ◄── WatchPace, WatchQueue ──────────────┘
//
// It never steers: no method returns anything that another room could act on, and none blocks. The rooms that it
// watches do not know it; each has a small interface of its own that a [Metrics] happens to fulfil.
//
// Every series starts with groupferry_ and is in base units. Labels are closed sets: a value that is not in its set is
// counted as "other", and no label ever holds an id, a name or a text that came from outside. Label values that are
// known beforehand start at 0, for a rate cannot see the first event of a series that begins with it. Gauges that
// nobody knows yet are left out, which an alert can tell from 0. [Table] lists all series.
//
// Each process counts for itself, so counters are summed over the workers. What is true of the whole fleet (state, rate,
// queue) is the same everywhere or known by one process only: take the max of it.
package metrics

import (
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"groupferry/internal/job"
)

// Config says what the closed sets are. Its zero value works: all commands and API codes are then "other".
type Config struct {
	Build    BuildInfo
	Commands []string // the API's commands: values of the label command
	Codes    []string // the API's error codes, in decimal, that the label code may hold
}

// BuildInfo says which build is running. An empty field shows as "unknown".
type BuildInfo struct {
	Version  string
	Revision string
}

// words returns what [Metrics.CallDone] takes beside Config.Codes: how a call can end without an API code.
func words() []string {
	return []string{
		"ok", "partial",
		"timeout", "refused", "reset", "cut-off", "undecodable", "network", "cancelled",
		"http-404", "http-408", "http-429", "http-500", "http-502", "http-503", "http-504",
	}
}

// other stands for every value that is not in the set of its label.
const other = "other"

// Metrics counts what happens in this process. All methods may be called from many goroutines at once.
type Metrics struct {
	registry *prometheus.Registry
	watched  *watched

	commands, codes, outcomes, reasons set

	rows              *prometheus.CounterVec
	jobsEnqueued      prometheus.Counter
	jobs              *prometheus.CounterVec
	jobAttempts       prometheus.Counter
	conversations     *prometheus.CounterVec
	jobDuration       prometheus.Histogram
	jobsInHand        prometheus.Gauge
	jobsPutBack       *prometheus.CounterVec
	callDuration      *prometheus.HistogramVec
	calls             *prometheus.CounterVec
	callRetries       *prometheus.CounterVec
	permitsGranted    *prometheus.CounterVec
	permitWait        prometheus.Histogram
	throttled         *prometheus.CounterVec
	conversationsDone prometheus.Counter
	conversationsFail prometheus.Counter
}

// set is the closed set of the values of a label.
type set map[string]bool

func newSet(values ...string) set {
	s := make(set, len(values))
	for _, v := range values {
		s[v] = true
	}
	return s
}

func (s set) fold(value string) string {
	if s[value] {
		return value
	}
	return other
}

// New returns Metrics with a registry of its own, which also holds the collectors of the Go runtime and the process.
func New(cfg Config) *Metrics {
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)

	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + name, Help: help})
		reg.MustRegister(c)
		return c
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + name, Help: help}, labels)
		reg.MustRegister(c)
		return c
	}

	m := &Metrics{
		registry: reg,
		watched:  newWatched(cfg.Commands),
		commands: newSet(cfg.Commands...),
		codes:    newSet(slices.Concat(words(), cfg.Codes)...),
		outcomes: set{},
		reasons:  newSet("retry", "stop", "halt", "known"),

		rows: counters("rows_total",
			"Rows read, by what became of them: accepted, duplicate or rejected.", "outcome"),
		jobsEnqueued: counter("jobs_enqueued_total",
			"Jobs put on the stream by this process."),
		jobs: counters("jobs_total",
			"Jobs that got their result, by outcome: done, partial or failed.", "outcome"),
		jobAttempts: counter("job_attempts_total",
			"Attempts that the jobs with a result took. Over jobs_total: attempts per job."),
		conversations: counters("conversations_total",
			"Conversations of the jobs that got their result: done (in the group) or failed.", "outcome"),
		jobsPutBack: counters("jobs_put_back_total",
			"Jobs that left this process without a new result: to retry later, at a stop, at a halt, or known before.", "reason"),
		calls: counters("calls_total",
			"Calls that ended, by code: ok, partial, the API's error code, or a word where it gave none.",
			"command", "code"),
		callRetries: counters("call_retries_total",
			"Calls made again after a failure that may pass.", "command"),
		permitsGranted: counters("permits_granted_total",
			"Permits granted to this process.", "command"),
		throttled: counters("throttled_total",
			"Calls that the API refused because they came too fast.", "command"),

		// A job is 1 to 10 calls and as many waits for a permit; retries and throttling take it to minutes.
		jobDuration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    prefix + "job_duration_seconds",
			Help:    "Time from a job's start in this process to its result.",
			Buckets: []float64{.05, .1, .25, .5, 1, 2.5, 5, 15, 60, 300},
		}),
		// 3 s is the backend's own timeout, 10 s the client's by default: a call in the last bucket is one that hung.
		callDuration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    prefix + "call_duration_seconds",
			Help:    "Time of a call, from request to response or error.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 3, 10},
		}, []string{"command"}),
		permitWait: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    prefix + "permit_wait_seconds",
			Help:    "Time a call waited for its permit.",
			Buckets: []float64{.001, .005, .025, .1, .25, .5, 1, 5, 30, 300},
		}),
		jobsInHand: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: prefix + "jobs_in_hand",
			Help: "Jobs that this process is working on.",
		}),
	}
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: prefix + "build_info",
		Help: "Always 1; the labels say which build is running.",
	}, []string{"version", "revision", "goversion"})
	build.WithLabelValues(orUnknown(cfg.Build.Version), orUnknown(cfg.Build.Revision), runtime.Version()).Set(1)

	reg.MustRegister(m.jobDuration, m.callDuration, m.permitWait, m.jobsInHand, m.watched, build)
	m.start()
	return m
}

// start makes the series whose label values are known, at 0.
func (m *Metrics) start() {
	for _, outcome := range []string{"accepted", "duplicate", "rejected"} {
		m.rows.WithLabelValues(outcome)
	}
	for _, outcome := range job.Outcomes {
		m.outcomes[string(outcome)] = true
		m.jobs.WithLabelValues(string(outcome))
	}
	m.conversationsDone = m.conversations.WithLabelValues("done")
	m.conversationsFail = m.conversations.WithLabelValues("failed")
	for reason := range m.reasons {
		m.jobsPutBack.WithLabelValues(reason)
	}
	for command := range m.commands {
		m.callDuration.WithLabelValues(command)
		m.callRetries.WithLabelValues(command)
		m.permitsGranted.WithLabelValues(command)
		m.throttled.WithLabelValues(command)
		for code := range m.codes {
			m.calls.WithLabelValues(command, code)
		}
		m.calls.WithLabelValues(command, other)
	}
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

// Rows counts rows of an input that was read and checked.
func (m *Metrics) Rows(accepted, duplicates, rejected int64) {
	m.rows.WithLabelValues("accepted").Add(float64(accepted))
	m.rows.WithLabelValues("duplicate").Add(float64(duplicates))
	m.rows.WithLabelValues("rejected").Add(float64(rejected))
}

// JobsEnqueued counts n jobs that are on the stream now.
func (m *Metrics) JobsEnqueued(n int) { m.jobsEnqueued.Add(float64(n)) }

// CallDone counts a call that took d. The word is "ok", "partial" (OK, but some conversations were refused), the
// API's error code in decimal, or what happened where the API gave no code: "http-502", "timeout", "refused", "reset",
// "cut-off", "undecodable", "network", "cancelled".
func (m *Metrics) CallDone(command, word string, d time.Duration) {
	command = m.commands.fold(command)
	m.callDuration.WithLabelValues(command).Observe(d.Seconds())
	m.calls.WithLabelValues(command, m.codes.fold(word)).Inc()
}

// Retry counts a call that is made again after a failure that may pass.
func (m *Metrics) Retry(command string) {
	m.callRetries.WithLabelValues(m.commands.fold(command)).Inc()
}

// JobStarted says that this process has one more job in hand. Each is followed by one JobDone or JobPutBack.
func (m *Metrics) JobStarted() { m.jobsInHand.Inc() }

// JobDone counts a job that got its result: its outcome (a [job.Outcome]), its conversations that are in the group and
// that are not, the time since JobStarted, and the attempts that it took over all processes.
func (m *Metrics) JobDone(outcome string, conversationsDone, conversationsFailed int, d time.Duration, attempts int) {
	m.jobsInHand.Dec()
	m.jobs.WithLabelValues(m.outcomes.fold(outcome)).Inc()
	m.jobAttempts.Add(float64(attempts))
	m.conversationsDone.Add(float64(conversationsDone))
	m.conversationsFail.Add(float64(conversationsFailed))
	m.jobDuration.Observe(d.Seconds())
	m.watched.set(func(w *watched) { w.lastResult = time.Now() })
}

// JobPutBack counts a job that is no longer in hand and got no result here. The reason is "retry" (it goes back to the
// stream after a failure that may pass), "stop" (after this process was told to leave), "halt", or "known" (it had its
// result from an earlier attempt).
func (m *Metrics) JobPutBack(reason string) {
	m.jobsInHand.Dec()
	m.jobsPutBack.WithLabelValues(m.reasons.fold(reason)).Inc()
}

// Granted counts a permit that this process was given after it had waited.
func (m *Metrics) Granted(command string, wait time.Duration) {
	m.permitsGranted.WithLabelValues(m.commands.fold(command)).Inc()
	m.permitWait.Observe(wait.Seconds())
}

// Throttled counts a call that the API refused because it came too fast.
func (m *Metrics) Throttled(command string) {
	m.throttled.WithLabelValues(m.commands.fold(command)).Inc()
}

// WatchPace has pace asked at every scrape. It must be quick and safe to call from any goroutine.
func (m *Metrics) WatchPace(pace func() Pace) { m.watched.set(func(w *watched) { w.pace = pace }) }

// WatchQueue has queue asked at every scrape. It must be quick, so it tells what it knows rather than asks the server,
// and reports false when it knows nothing recent. It must be safe to call from any goroutine.
func (m *Metrics) WatchQueue(queue func() (Queue, bool)) {
	m.watched.set(func(w *watched) { w.queue = queue })
}

// SetUserSigExpiry says when the UserSig in use ends. The zero time means that nobody knows.
func (m *Metrics) SetUserSigExpiry(t time.Time) { m.watched.set(func(w *watched) { w.expiry = t }) }

// Pace is what the governor knows about the whole fleet.
type Pace struct {
	State    string          // one of [States]
	Commands map[string]Lane // of the process that leads; the others know none

	Leading       bool          // this process grants the permits of all
	LeaderChanges int64         // that this process saw
	Refused       int64         // permits that came too late to be used
	Standstill    time.Duration // how long calls of this process have waited while none was permitted
}

// A Lane is the pace of one command.
type Lane struct {
	Limit     float64 // calls a second, as configured
	Effective float64 // calls a second, after throttling
	Out       int     // permits that are out now
	Waiting   int     // calls that wait for one
}

// Queue says how many jobs are on the stream.
type Queue struct {
	Pending int64 // not delivered to any worker
	InHand  int64 // delivered, without a result yet
}

// States returns the values of Pace.State: calls go out; a person said wait; every job would fail the same way; the API
// is out of reach.
func States() []string { return []string{"running", "paused", "halted", "outage", "leaderless"} }

const prefix = "groupferry_"

// watched holds what is known rather than counted. It is a collector of its own so that each value is as fresh as the
// scrape, and so that a value nobody knows is missing instead of 0.
type watched struct {
	commands []string

	mu         sync.Mutex // guards what follows
	pace       func() Pace
	queue      func() (Queue, bool)
	expiry     time.Time
	lastResult time.Time

	state, limit, effective, out, waiting *prometheus.Desc
	leading, changes, refused, standstill *prometheus.Desc
	pending, inHand                       *prometheus.Desc
	userSigExpiry, lastResultTime         *prometheus.Desc
}

func newWatched(commands []string) *watched {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prefix+name, help, labels, nil)
	}
	return &watched{
		commands: commands,
		state: desc("state",
			"1 for the state that the fleet is in, 0 for the others: "+strings.Join(States(), ", ")+".", "state"),
		limit: desc("rate_limit_calls_per_second",
			"Calls a second that are allowed, for the whole app.", "command"),
		effective: desc("rate_effective_calls_per_second",
			"Calls a second that are granted at most, after throttling.", "command"),
		out: desc("permits_out",
			"Permits that are out now.", "command"),
		waiting: desc("permits_waiting",
			"Calls that wait for a permit now.", "command"),
		leading: desc("leading",
			"1 if this process grants the permits of the fleet, else 0."),
		changes: desc("leader_changes_total",
			"Changes of the leader that this process saw."),
		refused: desc("permits_refused_total",
			"Permits that came too late to be used."),
		standstill: desc("standstill_seconds_total",
			"Time in which calls waited and none was permitted for over a second, halts apart."),
		pending: desc("queue_pending_jobs",
			"Jobs on the stream that no worker has yet."),
		inHand: desc("queue_in_hand_jobs",
			"Jobs that some worker has and that have no result yet."),
		userSigExpiry: desc("usersig_expiry_timestamp_seconds",
			"When the UserSig in use ends, in Unix time."),
		lastResultTime: desc("last_result_timestamp_seconds",
			"When this process last wrote a result, in Unix time."),
	}
}

func (w *watched) set(f func(*watched)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(w)
}

// Describe implements [prometheus.Collector].
func (w *watched) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		w.state, w.limit, w.effective, w.out, w.waiting, w.pending, w.inHand, w.userSigExpiry, w.lastResultTime,
	} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (w *watched) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	w.mu.Lock()
	pace, queue, expiry, lastResult := w.pace, w.queue, w.expiry, w.lastResult
	w.mu.Unlock()

	if pace != nil {
		p := pace()
		for _, s := range States() {
			is := 0.0
			if s == p.State {
				is = 1
			}
			gauge(w.state, is, s)
		}
		counter := func(d *prometheus.Desc, v float64) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v)
		}
		leading := 0.0
		if p.Leading {
			leading = 1
		}
		gauge(w.leading, leading)
		counter(w.changes, float64(p.LeaderChanges))
		counter(w.refused, float64(p.Refused))
		counter(w.standstill, p.Standstill.Seconds())
		for _, command := range w.commands {
			lane, ok := p.Commands[command]
			if !ok {
				continue
			}
			gauge(w.limit, lane.Limit, command)
			gauge(w.effective, lane.Effective, command)
			gauge(w.out, float64(lane.Out), command)
			gauge(w.waiting, float64(lane.Waiting), command)
		}
	}
	if queue != nil {
		if q, ok := queue(); ok {
			gauge(w.pending, float64(q.Pending))
			gauge(w.inHand, float64(q.InHand))
		}
	}
	if !expiry.IsZero() {
		gauge(w.userSigExpiry, unixSeconds(expiry))
	}
	if !lastResult.IsZero() {
		gauge(w.lastResultTime, unixSeconds(lastResult))
	}
}

func unixSeconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
