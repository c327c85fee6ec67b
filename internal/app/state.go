package app

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/governor"
	"groupferry/internal/queue"
)

// The modes of a process, see [State].
const (
	Running    = "running"    // it leads, and calls may go out
	Standby    = "standby"    // another process leads
	Leaderless = "leaderless" // nobody is known to lead, or NATS is out of reach
	Paused     = "paused"     // a person said wait
	Halted     = "halted"     // every job would fail the same way
	OutOfReach = "outage"     // it leads and the API is out of reach
)

// Reasons of modes, see [Modes].
const (
	Working    = "working"       // jobs wait or are in flight
	Idle       = "idle"          // no job waits
	AllPaused  = "import-paused" // a person paused the imports that have jobs
	Starting   = "starting"      // the credentials are not proved yet; or not even NATS was asked for
	OtherLeads = "other-leads"
	NoNATS     = "nats"     // it is out of reach
	Election   = "election" // nobody is known to lead
	ByHand     = "by-hand"
	NoAPI      = "api"

	// Of a halt: what has to be fixed.
	Credentials = "credentials"
	OfApp       = "app" // SDKAppID, plan, region
	Edition     = "edition"
	AllowList   = "allow-list"
	Address     = "address" // the API's, or something on the way to it
	OtherHalt   = "other"
)

// Modes lists all modes, each with its reasons: what a process does, and why nothing else.
func Modes() [][2]string {
	return [][2]string{
		{Running, Working}, {Running, Idle}, {Running, AllPaused}, {Running, Starting},
		{Standby, OtherLeads},
		{Leaderless, Starting}, {Leaderless, NoNATS}, {Leaderless, Election},
		{Paused, ByHand},
		{Halted, Credentials}, {Halted, OfApp}, {Halted, Edition}, {Halted, AllowList}, {Halted, Address}, {Halted, OtherHalt},
		{OutOfReach, NoAPI},
	}
}

// A State is what a process looks like at one moment. Log lines about changes, metrics, readiness and the progress line
// are all drawn from it. [Engine.Watch] tells of each change, but for the numbers at the end: those are as of the moment
// when the State was asked for.
type State struct {
	Mode   string // one of the above
	Reason string // of it, see Modes

	Leading       bool
	Term          uint64 // of its lead, or of its last one
	Leader        string // host and process of the leader, as last seen; "" for nobody
	LeaderChanges int64  // that this process saw
	OtherLeads    bool   // another process was seen to renew its lease
	Previous      string // who led before this process; "" for nobody
	Inherited     int    // calls of that one that could still be in flight when this process began to lead
	Yielded       error  // why it stands by after it has led; nil while it leads
	Lapsed        bool   // while it leads: its lease could not be renewed in time, and no call may be made until it is

	Connected bool // to NATS
	Verified  bool // the credentials of this process have worked

	Rate       int    // calls a second for each command
	RateSet    int    // by 'groupferry rate'; 0: by nobody
	RateOf     string // host of the process with the lowest, if processes were started with different ones and none is set
	RateCapped bool   // it is the limit of the app, which is less

	RoundTrip time.Duration // the shortest of a call that this process has seen; 0 before the first

	Others []string // hosts of the other processes that lead or stand by, in order

	Stopping bool // it was told to stop

	Halt   *Halt   // why no call may be made; nil while they may
	Outage *Outage // while this process leads and calls fail one after another without a response
	Silent bool    // no call had a response for [handoverAfter], outage or not

	Progress     *Progress // how far the imports are; nil while nobody knows
	LastProgress *Progress // how far they were when somebody last knew

	Records []*queue.Import         // the newest records of imports, newest first, without Inputs; not to be changed
	Imports map[string]queue.Import // the newest of each kind, see [kindOf]: its record, without its files; not to be changed
	Storage map[string]int64        // bytes that NATS keeps, see [queue.Queue.Storage]; nil while nobody knows

	Syncs []queue.Sync // those of the API of this process, by name, as far as it knows; not to be changed

	Tally      Tally                            // what this process did
	Calls      map[string]CallRate              // of the last ten minutes, by command
	Commands   map[string]governor.LaneSnapshot // the pace, while it leads
	Jobs       *queue.TermSnapshot              // the jobs, while it leads
	Standstill time.Duration                    // how long calls have waited for over a second without any permit, halts apart
}

// A Halt is why no call may be made: Reason says what happened, Remedy what to do about it, Command what continues.
type Halt struct {
	queue.Halt
	Cause error
	own   bool // this process halts the namespace
}

// An Outage is that the API is out of reach.
type Outage struct {
	Since time.Time
	Err   error // of the last call that had no response
}

// A Progress is how far the imports are that are not over, and the one that this process is for.
type Progress struct {
	Imports []ImportProgress // by ID
}

// An ImportProgress is how far one import is. Damaged says what is wrong with what is stored of it.
type ImportProgress struct {
	queue.Progress
	Abandoned bool // it is not on the queue as a whole, and nothing has come for 10 s
}

// Totals are imports added up.
type Totals struct {
	Imports  int
	Import   string // if it is one
	Jobs     int64  // of a retry, those that are on the queue again
	Calls    int64  // of these jobs, by the plan
	Finished int64
	Failed   int64 // or partial
	Pending  int64
	InFlight int64
	Rate     float64       // jobs a second, by what the leader wrote last, where that says something about now
	RateOver time.Duration // how long that was measured, at least
	Paused   bool          // all of them
}

// Totals adds up the imports that are worked on, or will be: not those that are damaged or abandoned. With an ID it is
// about that import alone.
func (p *Progress) Totals(id string) Totals {
	t := Totals{Paused: true}
	for _, i := range p.Imports {
		if i.Damaged != nil || i.Abandoned || id != "" && i.Import.ID != id {
			continue
		}
		jobs, calls, n := i.Import.Jobs, i.Import.Calls, i.Counts.Jobs
		finished := n.Done + n.Partial + n.Failed
		if i.Import.Generation > 0 {
			jobs, calls = i.Import.Retried, i.Import.Retried
			finished = jobs - i.Pending - i.InFlight
		}
		t.Imports++
		if t.Import = ""; t.Imports == 1 {
			t.Import = i.Import.ID
		}
		t.Jobs += jobs
		t.Calls += calls
		t.Finished += finished
		t.Failed += n.Partial + n.Failed
		t.Pending += i.Pending
		t.InFlight += i.InFlight
		if hasRate(&i.Progress) {
			if t.Rate == 0 || i.RateOver < t.RateOver {
				t.RateOver = i.RateOver
			}
			t.Rate += i.Rate
		}
		t.Paused = t.Paused && i.Import.Paused
	}
	t.Paused = t.Paused && t.Imports > 0
	return t
}

// Ready returns nil while this process can do its part, as leader or as standby. Else it returns why not: a
// *[governor.HaltedError], or that NATS is out of reach.
func (s *State) Ready() error {
	if s.Halt != nil {
		return &governor.HaltedError{Cause: s.Halt.Cause}
	}
	if !s.Connected || s.Lapsed {
		return errors.New("NATS is out of reach")
	}
	return nil
}

// A stateKeeper holds the state of a process, and tells those who watch of each change.
type stateKeeper struct {
	report func(before, now *State) // called for each change, one at a time

	mu      sync.Mutex
	now     State
	changed chan struct{} // closed at the next change
}

func (k *stateKeeper) set(change func(*State)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	before := k.now
	change(&k.now)
	close(k.changed)
	k.changed = make(chan struct{})
	k.report(&before, &k.now)
}

func (k *stateKeeper) get() (State, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.now, k.changed
}

// await returns nil as soon as the state is so, or ctx's error when that ends first.
func (k *stateKeeper) await(ctx context.Context, so func(*State) bool) error {
	for {
		s, changed := k.get()
		if so(&s) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// State returns the present state.
func (e *Engine) State() State {
	s, _ := e.Watch()
	return s
}

// Watch returns the present state, and a channel that is closed at the next change.
func (e *Engine) Watch() (State, <-chan struct{}) {
	s, changed := e.state.get()
	s.Mode = Leaderless
	if !s.Connected || s.Lapsed { // who led may not lead any more
		s.Leader = ""
	}
	if s.Leader != "" {
		s.Mode = Standby
	}
	if s.Outage != nil {
		out := *s.Outage
		if last := e.noResponse.Load(); last != nil {
			out.Err = *last
		}
		s.Outage = &out
	}
	if s.Leading && !s.Lapsed {
		s.Leader, s.Mode = e.cfg.Host, Running
		if s.Outage != nil {
			s.Mode = OutOfReach
		}
	}
	if s.Halt != nil {
		s.Mode = Halted
		if IsPause(s.Halt.Cause) {
			s.Mode = Paused
		}
	}
	s.Reason = s.reason()
	pace, jobs := e.present()
	if pace != nil {
		s.Commands = pace.Snapshot().Lanes
	}
	if jobs != nil {
		n := jobs.Snapshot()
		s.Jobs = &n
	}
	s.Tally, s.Calls = e.tally.read(), e.tally.recent(time.Now())
	if e.cfg.RoundTrip != nil {
		s.RoundTrip = e.cfg.RoundTrip.Shortest()
	}
	s.Standstill = time.Duration(e.standstill.Load())
	return s, changed
}

// reason says why the mode is what it is.
func (s *State) reason() string {
	switch s.Mode {
	case Standby:
		return OtherLeads
	case Leaderless:
		if s.Connected && !s.Lapsed {
			return Election
		}
		return NoNATS
	case Paused:
		return ByHand
	case Halted:
		return haltReason(s.Halt.Code)
	case OutOfReach:
		return NoAPI
	}
	if !s.Verified || s.Progress == nil {
		return Starting
	}
	switch n := s.Progress.Totals(""); {
	case n.Pending+n.InFlight == 0:
		return Idle
	case n.Paused:
		return AllPaused
	}
	return Working
}

// haltReason says what has to be fixed after a halt with that code, see [chat.Error.Reason].
func haltReason(code string) string {
	if strings.HasPrefix(code, "http-") {
		return Address
	}
	n, _ := strconv.Atoi(code)
	switch n {
	case chat.CodeEditionLacks:
		return Edition
	case 60021:
		return AllowList
	case chat.CodeBadURL, chat.CodeNotOffered:
		return Address
	case chat.CodeBadSDKAppID, chat.CodeSDKAppIDMissing, chat.CodeAppDisabled, 60017, 60020, 70016, 70020:
		return OfApp
	case 0:
		return OtherHalt
	}
	return Credentials // of the caller: admin, signature, key
}

// report logs what changed.
func (e *Engine) report(before, now *State) {
	if e.reads() {
		e.reportReader(before, now)
		return
	}
	var handed *handedOverError
	switch {
	case !before.Leading && now.Leading && now.Previous != "":
		e.log.Info("leading: waiting 1 s, for calls of the previous leader may still be in flight", "term", now.Term,
			"previous", now.Previous, "calls", now.Inherited)
	case !before.Leading && now.Leading:
		e.log.Info("leading", "term", now.Term)
	case before.Yielded == nil && errors.As(now.Yielded, &handed):
		e.log.Warn("standing by: the API is out of reach from here, and the lead was handed over", "host", handed.to, "error", handed.cause)
	case before.Yielded == nil && now.Yielded != nil:
		e.log.Warn("standing by: another process leads", "error", now.Yielded)
	}
	e.reportRate(before, now)
	if now.Leading { // one process is enough
		e.reportSyncs(before.Syncs, now.Syncs)
	}
	switch {
	case before.Outage == nil && now.Outage != nil:
		e.log.Warn("the API is out of reach: probing with one call at a time, no job is lost", "error", now.Outage.Err)
	case before.Outage != nil && now.Outage == nil && now.Leading:
		e.log.Info("the API responds again")
	}
	switch h := now.Halt; {
	case before.Halt == nil && h != nil && IsPause(h.Cause):
		e.log.Warn("paused", "reason", h.Reason, "host", h.By, "to_continue", h.Command)
	case before.Halt == nil && h != nil:
		e.log.Error("halted: every job would fail the same way", "code", h.Code, "reason", h.Reason, "hint", h.Remedy,
			"host", h.By, "to_continue", h.Command)
	case before.Halt != nil && h == nil:
		e.log.Info("resumed")
	}
}

// wroteNothing reports whether the API holds after a night what it held before. Such a night is logged by reportSyncs, for it
// may have ended without a term; each other one by the process whose term ended it.
func wroteNothing(n *queue.Night) bool { return n.Done+n.Failed+n.Removed+n.Deleted == 0 }

// reportSyncs logs which nights had nothing to write, and which had nothing to do.
func (e *Engine) reportSyncs(before, now []queue.Sync) {
	for _, s := range now {
		i, known := findSync(before, s.Name)
		if !known {
			continue // it may be an old one
		}
		was := before[i]
		if n := s.Complete; n != nil && (was.Complete == nil || was.Complete.Number < n.Number) && wroteNothing(n) {
			logNight(e.log, s.Name, n)
		}
		if s.Confirmed.After(was.Confirmed) {
			e.log.Info("night found nothing to do: the input is the same", "sync", s.Name, "night", s.Night, "unchanged_nights", s.Unchanged)
		}
	}
}

// logNight logs that a night is complete, once for each.
func logNight(log *slog.Logger, name string, n *queue.Night) {
	fields := []any{"sync", name, "night", n.Number, "import", n.Import, "done", n.Done, "failed", n.Failed, "unchanged", n.Unchanged}
	if n.Removed+n.Deleted+n.Withheld > 0 {
		fields = append(fields, "removed", n.Removed, "deleted", n.Deleted, "withheld", n.Withheld)
	}
	log.Info("night is complete", fields...)
}

func findSync(all []queue.Sync, name string) (int, bool) {
	return slices.BinarySearchFunc(all, name, func(s queue.Sync, name string) int { return strings.Compare(s.Name, name) })
}

// kindOf is which kind of import it is: a night of a sync, or single.
func kindOf(i *queue.Import) string {
	if i.Sync != "" {
		return "night"
	}
	return "single"
}

// maxRecords bounds State.Records.
const maxRecords = 100

// noteRecord takes in a record; one that is being deleted goes. The list that it gets stays as it is.
func noteRecord(all []*queue.Import, i queue.Import) (now []*queue.Import, changed bool) {
	older := func(r *queue.Import) bool { return r.Created.Before(i.Created) }
	at := slices.IndexFunc(all, func(r *queue.Import) bool { return r.ID == i.ID })
	if at < 0 && (i.State == queue.Deleting || len(all) == maxRecords && !older(all[maxRecords-1])) {
		return all, false
	}
	all = slices.Clone(all)
	if at >= 0 {
		all = slices.Delete(all, at, at+1)
	}
	if i.State == queue.Deleting {
		return all, true
	}
	at = slices.IndexFunc(all, older)
	if at < 0 {
		at = len(all)
	}
	all = slices.Insert(all, at, &i)
	return all[:min(len(all), maxRecords)], true
}

// importChanged notes the record of an import: among the newest, and if it is the newest one of its kind.
func (e *Engine) importChanged(i queue.Import) {
	if i.Target != "" && i.Target != Target(e.cfg.App, e.cfg.API.Address()) {
		return
	}
	i.Inputs = nil // there may be thousands
	s, _ := e.state.get()
	if records, changed := noteRecord(s.Records, i); changed {
		e.state.set(func(s *State) { s.Records = records })
	}
	i.Files = nil
	kind := kindOf(&i)
	have, known := s.Imports[kind]
	switch {
	case i.State == queue.Deleting && (!known || have.ID != i.ID), known && i.Created.Before(have.Created):
		return
	}
	e.state.set(func(s *State) {
		s.Imports = maps.Clone(s.Imports)
		if s.Imports == nil {
			s.Imports = make(map[string]queue.Import)
		}
		if s.Imports[kind] = i; i.State == queue.Deleting {
			delete(s.Imports, kind)
		}
	})
}

// syncChanged notes the record of a sync.
func (e *Engine) syncChanged(sync queue.Sync) {
	if sync.Target != Target(e.cfg.App, e.cfg.API.Address()) {
		return
	}
	e.state.set(func(s *State) {
		i, known := findSync(s.Syncs, sync.Name)
		s.Syncs = slices.Clone(s.Syncs)
		if known {
			s.Syncs[i] = sync
		} else {
			s.Syncs = slices.Insert(s.Syncs, i, sync)
		}
	})
}

// haltFor says what a cause of the gate is to people. A halt that this process began gets the reason and the remedy of
// the call that failed.
func (e *Engine) haltFor(cause error) *Halt {
	var standing *StandingHalt
	var failure *chat.Error
	switch {
	case cause == nil:
		return nil
	case errors.As(cause, &standing):
		return &Halt{Halt: standing.Halt, Cause: cause}
	}
	h := &Halt{Cause: cause, own: true}
	h.Halt = queue.Halt{State: queue.Halted, Reason: cause.Error(), Command: e.cfg.Resume, By: e.cfg.Host}
	if errors.As(cause, &failure) {
		h.Code, h.Remedy = failure.Reason(), failure.Remedy()
	}
	return h
}
