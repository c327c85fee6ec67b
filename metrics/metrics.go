// Package metrics watches the importer, the worker and the governor, and serves what it saw to Prometheus.
//
//	rows ──────► Rows, JobsEnqueued ────────────────┐
//	calls ─────► CallDone, Retry, Throttled ────────┤
//	jobs ──────► JobStarted, JobDone, JobRequeued ──┼──► registry ──► /metrics
//	permits ───► Granted ───────────────────────────┘        │ asks at each scrape
//	                                                         ▼
//	      governor, queue, syncs, UserSig ◄── WatchPace, WatchQueue, WatchSyncs, WatchUserSig
//
// It only observes: no method returns anything that another package could act on, and none blocks. The packages that it
// watches do not know it; each has a small interface of its own that a [Metrics] happens to fulfil.
//
// Every series starts with groupferry_ and is in base units. Labels are closed sets: a value that is not in its set is
// counted as "other", and no label holds an id, a name or a text that came from outside; but for the name of a sync, which a
// person chose: of [MaxSyncs] at most. Label values that are known
// beforehand start at 0, for a rate cannot see the first event of a series that begins with it. Gauges that nobody knows
// yet are left out, which an alert can tell from 0. [Table] lists all series.
//
// Each process counts for itself, so counters are summed over the processes. The pace (rate, permits) is known by the
// leader only, and the queue and its syncs are the same everywhere: take the max of all of them. The state is that of the process; a standby
// says standby.
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

// reasons returns what [Metrics.CallDone] takes beside Config.Codes: how a call can end without an API code.
func reasons() []string {
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
	removals          *prometheus.CounterVec
	groupsDeleted     prometheus.Counter
	jobDuration       prometheus.Histogram
	jobsInFlight      prometheus.Gauge
	jobsRequeued      *prometheus.CounterVec
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
		codes:    newSet(slices.Concat(reasons(), cfg.Codes)...),
		outcomes: set{},
		reasons:  newSet("retry", "stop", "halt"),

		rows: counters("rows_total",
			"Rows read, by what became of them: accepted, duplicate or rejected.", "outcome"),
		jobsEnqueued: counter("jobs_enqueued_total",
			"Jobs that this process put on the stream."),
		jobs: counters("jobs_total",
			"Jobs that this process finished, by outcome: done, partial or failed.", "outcome"),
		jobAttempts: counter("job_attempts_total",
			"Attempts that the finished jobs took. Over jobs_total: attempts per job."),
		conversations: counters("conversations_total",
			"Conversations of the finished jobs: done (in the group) or failed.", "outcome"),
		removals: counters("removals_total",
			"Conversations that the finished jobs of mirrors were to take out of groups: done or failed.", "outcome"),
		groupsDeleted: counter("groups_deleted_total",
			"Groups that the finished jobs of mirrors deleted, or found gone."),
		jobsRequeued: counters("jobs_requeued_total",
			"Jobs that this process gave back without a result: to try again later, at a stop or at a halt.", "reason"),
		calls: counters("calls_total",
			"Calls that ended, by code: ok, partial, the API's error code, or a reason where it gave none.",
			"command", "code"),
		callRetries: counters("call_retries_total",
			"Calls made again after a failure that may pass.", "command"),
		permitsGranted: counters("permits_granted_total",
			"Permits granted to this process.", "command"),
		throttled: counters("throttled_total",
			"Calls that the API throttled.", "command"),

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
		jobsInFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: prefix + "jobs_in_flight",
			Help: "Jobs that this process is working on.",
		}),
	}
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: prefix + "build_info",
		Help: "Always 1; the labels say which build is running.",
	}, []string{"version", "revision", "goversion"})
	build.WithLabelValues(orUnknown(cfg.Build.Version), orUnknown(cfg.Build.Revision), runtime.Version()).Set(1)

	reg.MustRegister(m.jobDuration, m.callDuration, m.permitWait, m.jobsInFlight, m.watched, build)
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
	m.Removed(0, 0, 0) // they start at 0
	for reason := range m.reasons {
		m.jobsRequeued.WithLabelValues(reason)
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

// CallDone counts a call that took d. The code is "ok", "partial" (OK, but some conversations were rejected), the
// API's error code in decimal, or what happened where the API gave no code: "http-502", "timeout", "refused", "reset",
// "cut-off", "undecodable", "network", "cancelled".
func (m *Metrics) CallDone(command, code string, d time.Duration) {
	command = m.commands.fold(command)
	m.callDuration.WithLabelValues(command).Observe(d.Seconds())
	m.calls.WithLabelValues(command, m.codes.fold(code)).Inc()
}

// Retry counts a call that is made again after a failure that may pass.
func (m *Metrics) Retry(command string) {
	m.callRetries.WithLabelValues(m.commands.fold(command)).Inc()
}

// JobStarted says that this process has one more job in flight. Each is followed by one JobDone or JobRequeued.
func (m *Metrics) JobStarted() { m.jobsInFlight.Inc() }

// JobDone counts a job that got its result: its outcome (a [job.Outcome]), its conversations that are in the group and
// that are not, the time since JobStarted, and the attempts that it took over all processes.
func (m *Metrics) JobDone(outcome string, conversationsDone, conversationsFailed int, d time.Duration, attempts int) {
	m.jobsInFlight.Dec()
	m.jobs.WithLabelValues(m.outcomes.fold(outcome)).Inc()
	m.jobAttempts.Add(float64(attempts))
	m.conversationsDone.Add(float64(conversationsDone))
	m.conversationsFail.Add(float64(conversationsFailed))
	m.jobDuration.Observe(d.Seconds())
	m.watched.set(func(w *watched) { w.lastResult = time.Now() })
}

// Removed counts what a finished job took out of its group, or failed to, and the groups that it deleted.
func (m *Metrics) Removed(conversations, conversationsFailed, groups int) {
	m.removals.WithLabelValues("done").Add(float64(conversations))
	m.removals.WithLabelValues("failed").Add(float64(conversationsFailed))
	m.groupsDeleted.Add(float64(groups))
}

// JobRequeued counts a job that is no longer in flight here and has no result. The reason is "retry" (it is tried again
// later, after a failure that may pass), "stop" (this process was told to leave) or "halt".
func (m *Metrics) JobRequeued(reason string) {
	m.jobsInFlight.Dec()
	m.jobsRequeued.WithLabelValues(m.reasons.fold(reason)).Inc()
}

// Granted counts a permit that this process was given after it had waited.
func (m *Metrics) Granted(command string, wait time.Duration) {
	m.permitsGranted.WithLabelValues(m.commands.fold(command)).Inc()
	m.permitWait.Observe(wait.Seconds())
}

// Throttled counts a call that the API throttled.
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

// WatchSyncs has syncs asked at every scrape for what it knows, by name. It must be quick and safe to call from any
// goroutine. Of more than [MaxSyncs] the first are shown.
func (m *Metrics) WatchSyncs(syncs func() []Sync) {
	m.watched.set(func(w *watched) { w.syncs = syncs })
}

// WatchUserSig has expiry asked at every scrape when the UserSig in use ends: it is renewed while the process runs. The zero
// time means that nobody knows. It must be quick and safe to call from any goroutine.
func (m *Metrics) WatchUserSig(expiry func() time.Time) {
	m.watched.set(func(w *watched) { w.expiry = expiry })
}

// Pace is what a process knows about who calls and how fast.
type Pace struct {
	State    string          // one of [States]
	Commands map[string]Lane // of the process that leads; the others know none

	Leader        bool          // this process leads
	LeaderChanges int64         // that this process saw
	Standstill    time.Duration // how long calls of this process have waited while none was permitted
}

// A Lane is the pace of one command.
type Lane struct {
	Limit     float64 // calls a second, as configured
	Effective float64 // calls a second, after throttling
	InUse     int     // permits whose calls have not ended
	Waiting   int     // calls that wait for one
}

// Queue says how many jobs are on the stream.
type Queue struct {
	Pending  int64 // that wait
	InFlight int64 // that the leader is working on
}

// MaxSyncs is of how many syncs there are series: more than anybody has, and few enough for a Prometheus.
const MaxSyncs = 100

// A Sync is how far an import is that recurs under a name.
type Sync struct {
	Name  string
	Begun time.Time // its last night
	Done  time.Time // when a night was last complete, or found nothing to do; zero before the first

	Night     int  // the last one that was complete
	Confirmed bool // the last one found nothing to do
	Unchanged int  // nights in a row whose input was that of the night before

	Rejected int64 // rows of the last complete night
	Failed   int64 // rows of it whose conversation is not in its group
}

// States returns the values of Pace.State: this process leads, and calls go out; another one leads; nobody does; a person
// said wait; every job would fail the same way; this process leads, and the API is out of reach.
func States() []string {
	return []string{"running", "standby", "leaderless", "paused", "halted", "outage"}
}

const prefix = "groupferry_"

// watched holds what is known rather than counted. It is a collector of its own so that each value is as fresh as the
// scrape, and so that a value nobody knows is missing instead of 0.
type watched struct {
	commands []string

	mu         sync.Mutex // guards what follows
	pace       func() Pace
	queue      func() (Queue, bool)
	syncs      func() []Sync
	expiry     func() time.Time
	lastResult time.Time

	state, limit, effective, inUse, waiting *prometheus.Desc
	leader, changes, standstill             *prometheus.Desc
	pending, inFlight                       *prometheus.Desc
	userSigExpiry, lastResultTime           *prometheus.Desc

	syncBegun, syncDone, syncNight, syncConfirmed, syncUnchanged, syncRejected, syncFailed *prometheus.Desc
}

func newWatched(commands []string) *watched {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prefix+name, help, labels, nil)
	}
	return &watched{
		commands: commands,
		state: desc("state",
			"1 for the state that this process is in, 0 for the others: "+strings.Join(States(), ", ")+".", "state"),
		limit: desc("rate_limit_calls_per_second",
			"Calls a second that are allowed for the app. Only the leader has it.", "command"),
		effective: desc("rate_effective_calls_per_second",
			"Calls a second that are allowed after throttling. Only the leader has it.", "command"),
		inUse: desc("permits_in_use",
			"Permits whose calls have not ended. Only the leader has it.", "command"),
		waiting: desc("permits_waiting",
			"Calls that wait for a permit. Only the leader has it.", "command"),
		leader: desc("leader",
			"1 if this process leads and makes the calls, 0 if it stands by."),
		changes: desc("leader_changes_total",
			"Changes of the leader that this process saw."),
		standstill: desc("standstill_seconds_total",
			"Time in which calls waited and none was permitted for over a second, halts apart."),
		pending: desc("queue_pending_jobs",
			"Jobs on the stream that wait: not in flight, without a result."),
		inFlight: desc("queue_in_flight_jobs",
			"Jobs that the leader is working on."),
		userSigExpiry: desc("usersig_expiry_timestamp_seconds",
			"When the UserSig in use ends, in Unix time."),
		lastResultTime: desc("last_result_timestamp_seconds",
			"When this process last finished a job, in Unix time."),
		syncBegun: desc("sync_begun_timestamp_seconds",
			"When the last night of a sync was begun, in Unix time.", "sync"),
		syncDone: desc("sync_complete_timestamp_seconds",
			"When a night of a sync was last complete, or found nothing to do, in Unix time; 0 before the first.", "sync"),
		syncNight: desc("sync_night",
			"Number of the last night of a sync that was complete; 0 before the first.", "sync"),
		syncConfirmed: desc("sync_confirmed",
			"1 if the last night of a sync found nothing to do, else 0.", "sync"),
		syncUnchanged: desc("sync_unchanged_nights",
			"Nights of a sync in a row whose input was that of the night before.", "sync"),
		syncRejected: desc("sync_rejected_rows",
			"Rows of the last complete night of a sync that were rejected.", "sync"),
		syncFailed: desc("sync_failed_rows",
			"Rows of the last complete night of a sync whose conversation is not in its group: it failed.", "sync"),
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
		w.state, w.limit, w.effective, w.inUse, w.waiting, w.leader, w.changes, w.standstill,
		w.pending, w.inFlight, w.userSigExpiry, w.lastResultTime,
		w.syncBegun, w.syncDone, w.syncNight, w.syncConfirmed, w.syncUnchanged, w.syncRejected, w.syncFailed,
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
	pace, queue, syncs, expiry, lastResult := w.pace, w.queue, w.syncs, w.expiry, w.lastResult
	w.mu.Unlock()

	is := func(so bool) float64 {
		if so {
			return 1
		}
		return 0
	}

	if pace != nil {
		p := pace()
		for _, s := range States() {
			gauge(w.state, is(s == p.State), s)
		}
		counter := func(d *prometheus.Desc, v float64) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v)
		}
		gauge(w.leader, is(p.Leader))
		counter(w.changes, float64(p.LeaderChanges))
		counter(w.standstill, p.Standstill.Seconds())
		for _, command := range w.commands {
			lane, ok := p.Commands[command]
			if !ok {
				continue
			}
			gauge(w.limit, lane.Limit, command)
			gauge(w.effective, lane.Effective, command)
			gauge(w.inUse, float64(lane.InUse), command)
			gauge(w.waiting, float64(lane.Waiting), command)
		}
	}
	if queue != nil {
		if q, ok := queue(); ok {
			gauge(w.pending, float64(q.Pending))
			gauge(w.inFlight, float64(q.InFlight))
		}
	}
	if syncs != nil {
		all := syncs()
		for _, s := range all[:min(len(all), MaxSyncs)] {
			gauge(w.syncBegun, unixSeconds(s.Begun), s.Name)
			gauge(w.syncDone, unixSeconds(s.Done), s.Name)
			gauge(w.syncNight, float64(s.Night), s.Name)
			gauge(w.syncConfirmed, is(s.Confirmed), s.Name)
			gauge(w.syncUnchanged, float64(s.Unchanged), s.Name)
			gauge(w.syncRejected, float64(s.Rejected), s.Name)
			gauge(w.syncFailed, float64(s.Failed), s.Name)
		}
	}
	if expiry != nil {
		if t := expiry(); !t.IsZero() {
			gauge(w.userSigExpiry, unixSeconds(t))
		}
	}
	if !lastResult.IsZero() {
		gauge(w.lastResultTime, unixSeconds(lastResult))
	}
}

// unixSeconds is 0 for the zero time.
func unixSeconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}
