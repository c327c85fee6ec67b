// Package metrics watches the importer, the worker and the governor, and serves what it saw to Prometheus.
//
//	rows ──────► Rows, JobsEnqueued ────────────────┐
//	calls ─────► CallDone, Retry ───────────────────┤
//	jobs ──────► JobStarted, JobDone, JobRequeued ──┼──► registry ──► /metrics
//	permits ───► Granted ───────────────────────────┤        │ asks at each scrape
//	results ───► ResultWriteFailed ─────────────────┘        ▼
//	                 state, pace, queue, imports, syncs ◄── Watch
//
// It only observes: no method returns anything that another package could act on, and none blocks. The packages that it
// watches do not know it; each has a small interface of its own that a [Metrics] happens to fulfil.
//
// Every series starts with groupferry_ and is in base units. Labels are closed sets: a value that is not in its set is
// counted as "other", and no label holds an id, a name or a text that came from outside; but for the name of a sync, which a
// person chose: of [MaxSyncs] at most. A rate cannot see the first event of a series that begins with it. So what an alert
// or an operator waits for starts at 0: how calls end, and the codes that halt everything. Other codes begin when they come.
// Gauges that nobody knows yet are left out, which an alert can tell from 0. [Table] lists all series.
//
// Each process counts for itself, so counters are summed over the processes. The pace (rate, permits) is known by the
// leader only. The queue, its imports and syncs are the same everywhere: take the max. State and readiness are those of the
// process; a standby says standby, and is ready.
//
// Histograms are classic and native: a Prometheus that asks for native ones gets those as well.
package metrics

import (
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"groupferry/internal/job"
)

// Config says what the closed sets are. Its zero value works: all commands and codes are then "other", and no state is shown.
type Config struct {
	Build    BuildInfo
	Commands []string // the API's commands: values of the label command
	Codes    []string // how a call can fail: values of the label code
	Expected []string // those of Codes whose series starts at 0
	States   []State  // that a process can be in
}

// A State is what a process does, and why it does that or nothing.
type State struct{ State, Reason string }

// BuildInfo says which build is running. An empty field shows as "unknown".
type BuildInfo struct {
	Version  string
	Revision string
}

// outcomes returns how a call can end: the API accepted it, or all but some conversations of it; it said slow down, or no;
// there was no response that says anything; or the caller gave it up.
func outcomes() []string {
	return []string{"ok", "partial", "throttled", "rejected", "unanswered", "cancelled"}
}

// other stands for every value that is not in the set of its label.
const other = "other"

// Metrics counts what happens in this process. All methods may be called from many goroutines at once.
type Metrics struct {
	registry *prometheus.Registry
	watched  *watched

	commands, codes, callOutcomes, jobOutcomes, reasons set

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
	callErrors        *prometheus.CounterVec
	callRetries       prometheus.Counter
	permitWait        prometheus.Histogram
	resultErrors      prometheus.Counter
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

// New returns Metrics with a registry of its own, which also holds the process's own collector. Of the Go runtime it has the
// number of goroutines alone: some forty series more would tell nobody what to do.
func New(cfg Config) *Metrics {
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "go_goroutines", Help: "Number of goroutines that currently exist."},
			func() float64 { return float64(runtime.NumGoroutine()) }),
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

	histogram := func(name, help string, buckets ...float64) prometheus.HistogramOpts {
		return prometheus.HistogramOpts{
			Name: prefix + name, Help: help, Buckets: buckets,
			NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100, NativeHistogramMinResetDuration: time.Hour,
		}
	}

	m := &Metrics{
		registry:     reg,
		watched:      newWatched(cfg),
		commands:     newSet(cfg.Commands...),
		codes:        newSet(cfg.Codes...),
		callOutcomes: newSet(outcomes()...),
		jobOutcomes:  set{},
		reasons:      newSet("retry", "stop", "halt"),

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
			"Calls that ended, by outcome: ok, partial (some conversations were rejected), throttled, rejected (the API gave "+
				"another code), unanswered (no response of the API) or cancelled.", "command", "outcome"),
		callErrors: counters("call_errors_total",
			"Calls that failed, by the API's code, or by what happened where the API gave none: timeout, http-502, …", "code"),
		callRetries: counter("call_retries_total",
			"Calls made again after a failure that may pass."),
		resultErrors: counter("result_write_errors_total",
			"Failed attempts to write results to NATS. They are written again until it works."),

		// A job is 1 to 10 calls and as many waits for a permit; retries and throttling take it to minutes.
		jobDuration: prometheus.NewHistogram(histogram("job_duration_seconds",
			"Time from a job's start in this process to its result.",
			.1, .25, .5, 1, 5, 30, 300)),
		// 3 s is the backend's own timeout, 10 s the client's by default: a call in the last bucket is one that hung.
		callDuration: prometheus.NewHistogramVec(histogram("call_duration_seconds",
			"Time of a call, from request to response or error.",
			.025, .05, .1, .25, 1, 3, 10), []string{"command"}),
		permitWait: prometheus.NewHistogram(histogram("permit_wait_seconds",
			"Time a call waited for its permit.",
			.005, .1, .5, 1, 5, 60)),
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
	m.start(cfg.Expected)
	return m
}

// start makes the series that start at 0.
func (m *Metrics) start(expected []string) {
	for _, outcome := range []string{"accepted", "duplicate", "rejected"} {
		m.rows.WithLabelValues(outcome)
	}
	for _, outcome := range job.Outcomes {
		m.jobOutcomes[string(outcome)] = true
		m.jobs.WithLabelValues(string(outcome))
	}
	m.conversationsDone = m.conversations.WithLabelValues("done")
	m.conversationsFail = m.conversations.WithLabelValues("failed")
	m.Removed(0, 0, 0) // they start at 0
	for reason := range m.reasons {
		m.jobsRequeued.WithLabelValues(reason)
	}
	for command := range m.commands {
		for _, outcome := range outcomes()[:5] { // not cancelled, which tells nobody anything
			m.calls.WithLabelValues(command, outcome)
		}
	}
	for _, code := range expected {
		m.callErrors.WithLabelValues(m.codes.fold(code))
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

// CallDone counts a call that took d. The outcome is one of "ok", "partial", "throttled", "rejected", "unanswered" and
// "cancelled". The code says more about all but the first two: the API's in decimal, or what happened where the API gave none.
func (m *Metrics) CallDone(command, outcome, code string, d time.Duration) {
	command = m.commands.fold(command)
	m.callDuration.WithLabelValues(command).Observe(d.Seconds())
	m.calls.WithLabelValues(command, m.callOutcomes.fold(outcome)).Inc()
	if outcome != "ok" && outcome != "partial" {
		m.callErrors.WithLabelValues(m.codes.fold(code)).Inc()
	}
	m.watched.set(func(w *watched) { w.lastCall = time.Now() })
}

// Retry counts a call that is made again after a failure that may pass.
func (m *Metrics) Retry() { m.callRetries.Inc() }

// JobStarted says that this process has one more job in flight. Each is followed by one JobDone or JobRequeued.
func (m *Metrics) JobStarted() { m.jobsInFlight.Inc() }

// JobDone counts a job that got its result: its outcome (a [job.Outcome]), its conversations that are in the group and
// that are not, the time since JobStarted, and the attempts that it took over all processes.
func (m *Metrics) JobDone(outcome string, conversationsDone, conversationsFailed int, d time.Duration, attempts int) {
	m.jobsInFlight.Dec()
	m.jobs.WithLabelValues(m.jobOutcomes.fold(outcome)).Inc()
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
func (m *Metrics) Granted(wait time.Duration) { m.permitWait.Observe(wait.Seconds()) }

// ResultWriteFailed counts an attempt to write results that failed.
func (m *Metrics) ResultWriteFailed() { m.resultErrors.Inc() }

// Watch has snapshot asked at every scrape. It must be quick, so it tells what it knows rather than asks a server, and safe to
// call from any goroutine.
func (m *Metrics) Watch(snapshot func() Snapshot) {
	m.watched.set(func(w *watched) { w.snapshot = snapshot })
}

// A Snapshot is what a process knows at one moment. What is nil, or the zero time, is not known, and has no series.
type Snapshot struct {
	State State // one of Config.States
	Ready bool  // as /readyz says
	NATS  *NATS

	Leader        bool            // this process leads
	LeaderChanges int64           // that this process saw
	Standstill    time.Duration   // how long calls of this process have waited while none was permitted
	Commands      map[string]Lane // of the process that leads; the others know none

	Queue   *Queue
	Storage map[string]int64 // bytes that NATS keeps, by what it is
	Imports []Import         // the newest one of each kind
	Syncs   []Sync           // by name; of more than [MaxSyncs] the first are shown

	UserSigExpiry  time.Time // when the UserSig in use ends
	UserSigRenewed bool      // before it ends, by this process
}

// NATS says how the connection to it is.
type NATS struct {
	Connected  bool
	Reconnects int64 // how often it was lost, and is back
}

// A Lane is the pace of one command.
type Lane struct {
	Limit     float64 // calls a second, as configured
	Effective float64 // calls a second, after throttling
	InUse     int     // permits whose calls have not ended
	Waiting   int     // calls that wait for one
}

// Queue says how many imports and jobs are on the stream.
type Queue struct {
	Imports  int   // that are not over
	Pending  int64 // jobs that wait
	Paused   int64 // jobs that wait because a person paused their import
	InFlight int64 // jobs that the leader is working on
}

// An Import is how far an import is.
type Import struct {
	Kind     string // "single", or "night" of any sync: no more than two series of each name
	Begun    time.Time
	Complete time.Time // zero while it is not

	Accepted, Duplicates, Rejected int64 // rows
	Done, Failed                   int64 // conversations
	Left                           int64 // jobs without a result
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
	Removed  int64 // conversations that it took out, of a mirror
	Withheld int64 // conversations that it did not take out, for rejected rows
}

const prefix = "groupferry_"

// watched holds what is known rather than counted. It is a collector of its own so that each value is as fresh as the
// scrape, and so that a value nobody knows is missing instead of 0.
type watched struct {
	cfg   Config
	descs []*prometheus.Desc

	mu         sync.Mutex // guards what follows
	snapshot   func() Snapshot
	lastResult time.Time
	lastCall   time.Time

	state, ready, connected, reconnects         *prometheus.Desc
	leader, changes, standstill                 *prometheus.Desc
	limit, effective, inUse, waiting            *prometheus.Desc
	imports, pending, paused, inFlight, storage *prometheus.Desc
	userSigExpiry, lastResultTime, lastCallTime *prometheus.Desc

	importBegun, importDone, importRows, importConversations, importLeft *prometheus.Desc

	syncBegun, syncDone, syncNight, syncConfirmed, syncUnchanged, syncRejected, syncFailed,
	syncRemoved, syncWithheld *prometheus.Desc
}

func newWatched(cfg Config) *watched {
	w := &watched{cfg: cfg}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		d := prometheus.NewDesc(prefix+name, help, labels, nil)
		w.descs = append(w.descs, d)
		return d
	}
	w.state = desc("state", "1 for the state that this process is in, and the reason of that; 0 for the others.", "state", "reason")
	w.ready = desc("ready", "1 if this process can do its part, as leader or as standby; else 0: as /readyz says.")
	w.connected = desc("nats_connected", "1 while this process is connected to NATS, else 0.")
	w.reconnects = desc("nats_reconnects_total", "Connections to NATS that were lost, and are back.")
	w.leader = desc("leader", "1 if this process leads and makes the calls, 0 if it stands by.")
	w.changes = desc("leader_changes_total", "Changes of the leader that this process saw.")
	w.standstill = desc("standstill_seconds_total",
		"Time in which calls waited and none was permitted for over a second, halts apart.")
	w.limit = desc("rate_limit_calls_per_second", "Calls a second that are allowed for the app. Only the leader has it.", "command")
	w.effective = desc("rate_effective_calls_per_second",
		"Calls a second that are allowed after throttling. Only the leader has it.", "command")
	w.inUse = desc("permits_in_use", "Permits whose calls have not ended. Only the leader has it.", "command")
	w.waiting = desc("permits_waiting", "Calls that wait for a permit. Only the leader has it.", "command")
	w.imports = desc("queue_imports", "Imports that are not over: on the queue, or being put there.")
	w.pending = desc("queue_pending_jobs", "Jobs on the stream that wait: not in flight, not paused, without a result.")
	w.paused = desc("queue_paused_jobs", "Jobs on the stream that wait because a person paused their import.")
	w.inFlight = desc("queue_in_flight_jobs", "Jobs that the leader is working on.")
	w.storage = desc("storage_bytes", "Bytes that NATS keeps of the namespace: jobs, results and control (records).", "stream")
	w.userSigExpiry = desc("usersig_expiry_timestamp_seconds",
		"When the UserSig in use ends, in Unix time. One with renewed=\"yes\" is renewed in time, by the secret key.", "renewed")
	w.lastResultTime = desc("last_result_timestamp_seconds", "When this process last finished a job, in Unix time.")
	w.lastCallTime = desc("last_call_timestamp_seconds", "When a call of this process last ended, in Unix time.")
	w.importBegun = desc("import_begun_timestamp_seconds",
		"When the newest import of its kind was begun, in Unix time. The kind is single, or night (of any sync).", "kind")
	w.importDone = desc("import_complete_timestamp_seconds",
		"When the newest import of its kind was complete, in Unix time; 0 while it is not.", "kind")
	w.importRows = desc("import_rows", "Rows of the newest import of its kind: accepted, duplicate or rejected.", "kind", "outcome")
	w.importConversations = desc("import_conversations",
		"Conversations of the newest import of its kind that have a result: done or failed.", "kind", "outcome")
	w.importLeft = desc("import_unfinished_jobs", "Jobs of the newest import of its kind without a result.", "kind")
	w.syncBegun = desc("sync_begun_timestamp_seconds", "When the last night of a sync was begun, in Unix time.", "sync")
	w.syncDone = desc("sync_complete_timestamp_seconds",
		"When a night of a sync was last complete, or found nothing to do, in Unix time; 0 before the first.", "sync")
	w.syncNight = desc("sync_night", "Number of the last night of a sync that was complete; 0 before the first.", "sync")
	w.syncConfirmed = desc("sync_confirmed", "1 if the last night of a sync found nothing to do, else 0.", "sync")
	w.syncUnchanged = desc("sync_unchanged_nights", "Nights of a sync in a row whose input was that of the night before.", "sync")
	w.syncRejected = desc("sync_rejected_rows", "Rows of the last complete night of a sync that were rejected.", "sync")
	w.syncFailed = desc("sync_failed_rows",
		"Rows of the last complete night of a sync whose conversation is not in its group: it failed.", "sync")
	w.syncRemoved = desc("sync_removed_conversations", "Conversations that the last complete night of a sync took out of groups.", "sync")
	w.syncWithheld = desc("sync_withheld_conversations",
		"Conversations that the last complete night of a sync did not take out, for their users have rejected rows.", "sync")
	return w
}

func (w *watched) set(f func(*watched)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(w)
}

// Describe implements [prometheus.Collector].
func (w *watched) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range w.descs {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (w *watched) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v)
	}
	w.mu.Lock()
	snapshot, lastResult, lastCall := w.snapshot, w.lastResult, w.lastCall
	w.mu.Unlock()
	if !lastResult.IsZero() {
		gauge(w.lastResultTime, unixSeconds(lastResult))
	}
	if !lastCall.IsZero() {
		gauge(w.lastCallTime, unixSeconds(lastCall))
	}
	if snapshot == nil {
		return
	}

	s := snapshot()
	for _, state := range w.cfg.States {
		gauge(w.state, is(state == s.State), state.State, state.Reason)
	}
	gauge(w.ready, is(s.Ready))
	if s.NATS != nil {
		gauge(w.connected, is(s.NATS.Connected))
		counter(w.reconnects, float64(s.NATS.Reconnects))
	}
	gauge(w.leader, is(s.Leader))
	counter(w.changes, float64(s.LeaderChanges))
	counter(w.standstill, s.Standstill.Seconds())
	for _, command := range w.cfg.Commands {
		if lane, ok := s.Commands[command]; ok {
			gauge(w.limit, lane.Limit, command)
			gauge(w.effective, lane.Effective, command)
			gauge(w.inUse, float64(lane.InUse), command)
			gauge(w.waiting, float64(lane.Waiting), command)
		}
	}
	if s.Queue != nil {
		gauge(w.imports, float64(s.Queue.Imports))
		gauge(w.pending, float64(s.Queue.Pending))
		gauge(w.paused, float64(s.Queue.Paused))
		gauge(w.inFlight, float64(s.Queue.InFlight))
	}
	for stream, bytes := range s.Storage {
		gauge(w.storage, float64(bytes), stream)
	}
	for _, i := range s.Imports {
		gauge(w.importBegun, unixSeconds(i.Begun), i.Kind)
		gauge(w.importDone, unixSeconds(i.Complete), i.Kind)
		gauge(w.importRows, float64(i.Accepted), i.Kind, "accepted")
		gauge(w.importRows, float64(i.Duplicates), i.Kind, "duplicate")
		gauge(w.importRows, float64(i.Rejected), i.Kind, "rejected")
		gauge(w.importConversations, float64(i.Done), i.Kind, "done")
		gauge(w.importConversations, float64(i.Failed), i.Kind, "failed")
		gauge(w.importLeft, float64(i.Left), i.Kind)
	}
	for _, y := range s.Syncs[:min(len(s.Syncs), MaxSyncs)] {
		gauge(w.syncBegun, unixSeconds(y.Begun), y.Name)
		gauge(w.syncDone, unixSeconds(y.Done), y.Name)
		gauge(w.syncNight, float64(y.Night), y.Name)
		gauge(w.syncConfirmed, is(y.Confirmed), y.Name)
		gauge(w.syncUnchanged, float64(y.Unchanged), y.Name)
		gauge(w.syncRejected, float64(y.Rejected), y.Name)
		gauge(w.syncFailed, float64(y.Failed), y.Name)
		gauge(w.syncRemoved, float64(y.Removed), y.Name)
		gauge(w.syncWithheld, float64(y.Withheld), y.Name)
	}
	if !s.UserSigExpiry.IsZero() {
		renewed := "no"
		if s.UserSigRenewed {
			renewed = "yes"
		}
		gauge(w.userSigExpiry, unixSeconds(s.UserSigExpiry), renewed)
	}
}

func is(so bool) float64 {
	if so {
		return 1
	}
	return 0
}

// unixSeconds is 0 for the zero time.
func unixSeconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}
