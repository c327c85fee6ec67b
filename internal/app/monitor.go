package app

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/page"
	"groupferry/internal/queue"
	"groupferry/metrics"
)

// A Monitor serves metrics, readiness and the page for people, all drawn from the [State] of a process. It does so before
// there is one, too: while the input is read, or NATS is waited for. Use NewMonitor.
type Monitor struct {
	Metrics *metrics.Metrics
	Address string // where it serves

	ReadsInput bool   // before there is a process
	Token      string // of the actions of the page; "": there are none

	version string
	process atomic.Pointer[Process]
	last    atomic.Pointer[State] // of a process that has ended
	noNATS  atomic.Bool           // there is no process, because NATS is out of reach
	ended   atomic.Bool           // the program ends
	actions actions
}

// NewMonitor returns a monitor for one process. The revision of the program may be unknown.
func NewMonitor(version, revision string) *Monitor {
	m := &Monitor{version: version, Metrics: newMetrics(metrics.BuildInfo{Version: version, Revision: revision})}
	m.Metrics.Watch(m.snapshot)
	return m
}

// Serve serves on l until stop is called, which waits for requests in flight, but for open pages: these are told.
func (m *Monitor) Serve(l net.Listener, log *slog.Logger) (stop func()) {
	m.Address = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	forPrograms, forPeople := m.Metrics.Handler(m.ready), page.New(m.page, m.Token, m.actions.act)
	mux := http.NewServeMux()
	for _, path := range []string{"/metrics", "/livez", "/readyz"} {
		mux.Handle(path, forPrograms)
	}
	mux.Handle("/", forPeople)
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := metrics.Serve(ctx, l, mux); err != nil {
			log.Error("metrics are not served", "error", err)
		}
	})
	return func() {
		m.ended.Store(true)
		forPeople.Close()
		cancel()
		serving.Wait()
	}
}

// state is that of the process, and known once something is.
func (m *Monitor) state() (p *Process, s State, known bool) {
	if p = m.process.Load(); p != nil {
		return p, p.State(), true
	}
	if m.noNATS.Load() {
		return nil, State{Mode: Leaderless, Reason: NoNATS}, true
	}
	return nil, State{Mode: Leaderless, Reason: Starting}, false
}

func (m *Monitor) ready() error {
	_, s, known := m.state()
	if !known {
		return errors.New("starting")
	}
	return s.Ready()
}

// snapshot is the state as the metrics show it.
func (m *Monitor) snapshot() metrics.Snapshot {
	p, s, known := m.state()
	n := metrics.Snapshot{
		State: metrics.State{State: s.Mode, Reason: s.Reason}, Ready: known && s.Ready() == nil,
		Leader: s.Leading && !s.Lapsed, LeaderChanges: s.LeaderChanges, Standstill: s.Standstill,
		Commands: map[string]metrics.Lane{}, Queue: queueOf(s.Progress), Storage: s.Storage,
		Imports: importsOf(&s), Syncs: syncsOf(&s),
	}
	for command, l := range s.Commands {
		n.Commands[command] = metrics.Lane{Limit: l.Limit, Effective: l.Effective, InUse: l.Out, Waiting: l.Waiting}
	}
	if known {
		n.NATS = &metrics.NATS{Connected: s.Connected}
	}
	if p != nil {
		n.NATS.Reconnects = p.cfg.Engine.Namespace.Conn.Reconnects()
		api := p.cfg.Engine.API
		n.UserSigExpiry, n.UserSigRenewed = api.SigExpiry(), api.Renews()
	}
	return n
}

// queueOf is how much is on the queue; nil while nobody knows.
func queueOf(p *Progress) *metrics.Queue {
	if p == nil {
		return nil
	}
	var n metrics.Queue
	for _, i := range p.Imports {
		switch {
		case i.Damaged != nil || i.Import.State.Over():
			continue
		case i.Import.Paused:
			n.Paused += i.Pending
		default:
			n.Pending += i.Pending
		}
		n.Imports++
		n.InFlight += i.InFlight
	}
	return &n
}

// importsOf are the newest imports. The record of one that is not over has no counts of its results.
func importsOf(s *State) []metrics.Import {
	var all []metrics.Import
	for _, kind := range slices.Sorted(maps.Keys(s.Imports)) {
		i := s.Imports[kind]
		m := metrics.Import{
			Kind: kind, Begun: i.Created, Accepted: i.Accepted, Duplicates: i.Duplicates, Rejected: i.Rejected,
			Done: i.Counts.Conversations.Done, Failed: i.Counts.Conversations.Failed,
		}
		if i.State == queue.Complete {
			m.Complete = i.Completed
		}
		if s.LastProgress != nil && !i.State.Over() { // also while NATS is out of reach: they are not gone
			for _, p := range s.LastProgress.Imports {
				if p.Import.ID == i.ID {
					m.Done, m.Failed = p.Counts.Conversations.Done, p.Counts.Conversations.Failed
					m.Left = p.Pending + p.InFlight
				}
			}
		}
		all = append(all, m)
	}
	return all
}

func syncsOf(s *State) []metrics.Sync {
	all := make([]metrics.Sync, 0, len(s.Syncs))
	for _, s := range s.Syncs {
		m := metrics.Sync{Name: s.Name, Done: s.Seen(), Unchanged: s.Unchanged}
		if n := s.Pending; n != nil {
			m.Begun, m.Confirmed = n.Begun, s.Confirmed.After(n.Begun)
		}
		if n := s.Complete; n != nil {
			m.Night, m.Rejected, m.Failed = n.Number, n.Rejected, n.Failed
			m.Removed, m.Withheld = n.Removed, n.Withheld
		}
		all = append(all, m)
	}
	return all
}

// A metricsObserver says how a call ended in the words of the metrics.
type metricsObserver struct{ *metrics.Metrics }

func (o metricsObserver) CallDone(command, code string, d time.Duration) {
	o.Metrics.CallDone(command, outcomeOf(code), code, d)
}

func (o metricsObserver) Retry(string) { o.Metrics.Retry() }

// outcomeOf sorts the codes of a [worker.Observer].
func outcomeOf(code string) string {
	switch _, err := strconv.Atoi(code); {
	case code == "ok", code == "partial":
		return code
	case code == chat.ReasonCancelled, code == chat.ReasonUnsent:
		return "cancelled"
	case isThrottle(code):
		return "throttled"
	case err == nil:
		return "rejected"
	}
	return "unanswered"
}

func newMetrics(build metrics.BuildInfo) *metrics.Metrics {
	cfg := metrics.Config{Build: build, Codes: chat.Reasons()}
	for _, c := range chat.Commands() {
		cfg.Commands = append(cfg.Commands, string(c))
	}
	for _, c := range chat.Codes() {
		code := strconv.Itoa(c)
		cfg.Codes = append(cfg.Codes, code)
		switch chat.ClassOf(c) {
		case chat.Halt, chat.HaltRepeated, chat.Refresh:
			cfg.Expected = append(cfg.Expected, code)
		}
	}
	for _, status := range []int{401, 403, 404, 407, 408, 429, 451, 500, 502, 503, 504} {
		e := chat.Error{Status: status}
		cfg.Codes = append(cfg.Codes, e.Reason())
		if e.Class() == chat.HaltRepeated {
			cfg.Expected = append(cfg.Expected, e.Reason())
		}
	}
	for _, m := range Modes() {
		cfg.States = append(cfg.States, metrics.State{State: m[0], Reason: m[1]})
	}
	return metrics.New(cfg)
}
