package app

import (
	"context"
	"fmt"
	"time"

	"groupferry/internal/broker"
	"groupferry/internal/chat"
	"groupferry/internal/clock"
	"groupferry/internal/lease"
	"groupferry/worker"
)

// A reader is a process that reads groups back: export, verify, check --live. Its calls are get_contact_group, which the
// leader makes as well, so the two share the rate of that command in fixed halves:
//
//	leader ──► lease "leader" ──► governor: all commands at the rate, get at the half ────┐
//	                                                                                      ├─► at most the rate, in any second
//	reader ──► lease "reader" ──► governor:                           get at the other ───┘
//	  └── others stand by, or end
//
// A namespace has one reader at a time. The lease, its rights and its promises are those of the leader under another key, and
// the governor is the same, so the proof is the same too: a reader that was killed or frozen, and the one after it, never
// make more calls in a second than their half. Nothing has to be said between leader and reader, whichever of them dies.
//
// The half costs a leader next to nothing: it proves its credentials with one get, learns with another what create does, and
// reads a group whose call had no response. Where the API does not offer update, it reads every group, and then writes half
// as many in a second.
//
// A reader takes the rate from the others, and tells its own, like any process: see rate.go. Beside a leader it makes no call
// in the first ratesKnown, in which it may not have heard all of them. It does not know jobs, so a halt of the namespace is nothing to it;
// a pause is. An error for which it cannot read is its own: it halts nobody else.

// ratesKnown is how long after its start a process has heard the rates of all others.
const ratesKnown = announceEvery + announceEvery/4

// leaderShare and readerShare are how many of the rate's calls each of them may make.
func leaderShare(command string, rate int) int {
	if command == string(chat.GetContactGroup) {
		return rate - readerShare(command, rate)
	}
	return rate
}

func readerShare(_ string, rate int) int { return rate / 2 }

// A ReadingError says that another process has the permits of readers.
type ReadingError struct{ Host string }

func (e *ReadingError) Error() string {
	return fmt.Sprintf("%s reads groups back at present, and one process at a time can; try again later, or wait for it with --wait", e.Host)
}

// A leadingError says that another process leads.
type leadingError struct{ host string }

func (e *leadingError) Error() string { return e.host + " leads at present" }

// reads reports whether this engine is a reader, or another one without jobs.
func (e *Engine) reads() bool { return e.cfg.Read != nil || e.cfg.Examine != nil }

// besideLeader reports whether this engine has the lease and the permits of readers.
func (e *Engine) besideLeader() bool { return e.cfg.Read != nil || e.cfg.BesideLeader }

// watchReader says that another process has the lease: to who waits, or as the error that ends this one.
func (e *Engine) watchReader(ctx context.Context, leave context.CancelCauseFunc) {
	said := ""
	for {
		var host string
		err := e.state.await(ctx, func(s *State) bool {
			host = s.Leader
			return s.OtherLeads && !s.Leading && s.Leader != "" && s.Leader != said
		})
		if err != nil {
			return
		}
		switch {
		case !e.besideLeader():
			leave(&leadingError{host})
			return
		case e.cfg.Waiting == nil:
			leave(&ReadingError{host})
			return
		}
		said = host
		e.cfg.Waiting(host)
	}
}

// read is the term of a reader.
func (t *term) read() error {
	e := t.e
	beginning, begun := untilStopped(t.ctx, t.stop)
	defer begun()
	if err := t.awaitRate(beginning); err != nil {
		return err
	}
	if err := e.verify(beginning, t.pace); err != nil {
		return err
	}
	return e.cfg.Read(t.ctx, t.stop, worker.NewReader(e.workerConfig(), e.cfg.API, t.pace))
}

// examine is the term of an engine that examines.
func (t *term) examine() error {
	beginning, begun := untilStopped(t.ctx, t.stop)
	defer begun()
	if err := t.awaitRate(beginning); err != nil {
		return err
	}
	return t.e.cfg.Examine(t.ctx, t.stop, t.e, t.pace)
}

// awaitRate waits until a process without jobs knows the rate.
func (t *term) awaitRate(ctx context.Context) error {
	e := t.e
	select {
	case <-e.known:
	case <-ctx.Done():
		return ctx.Err()
	}
	if e.besideLeader() && !e.leaderless(ctx) && !clock.Pause(ctx, ratesKnown-time.Since(e.started)) {
		return ctx.Err()
	}
	return nil
}

// workerConfig is what a worker without jobs is made with.
func (e *Engine) workerConfig() worker.Config {
	cfg := e.cfg.Worker
	cfg.OnNoResponse = func(err error) { e.noResponse.Store(&err) }
	return cfg
}

// leaderless reports whether nobody leads for certain, so that no rate but this process's own counts.
func (e *Engine) leaderless(ctx context.Context) bool {
	store, err := e.cfg.Namespace.Conn.Lease(ctx, broker.LeaderLease)
	if err != nil {
		return false
	}
	leader, revision, err := lease.Read(ctx, store)
	return err == nil && (revision == 0 || leader.Released)
}

// reportReader logs what changed for a reader.
func (e *Engine) reportReader(before, now *State) {
	e.reportRate(before, now)
	switch {
	case before.Yielded == nil && now.Yielded != nil:
		e.log.Warn("no calls: the lease of this process was lost", "error", now.Yielded)
	case now.Rate != before.Rate && readerShare("", now.Rate) == 0:
		e.log.Warn("no calls: a rate of 1 has no half for who reads", "hint", e.cfg.Namespace.Conn.Command("rate", "N"))
	case before.Outage == nil && now.Outage != nil:
		e.log.Warn("the API is out of reach: probing with one call at a time", "error", now.Outage.Err)
	case before.Outage != nil && now.Outage == nil && now.Leading:
		e.log.Info("the API responds again")
	case before.Halt == nil && now.Halt != nil && IsPause(now.Halt.Cause):
		e.log.Warn("paused", "reason", now.Halt.Reason, "host", now.Halt.By, "to_continue", now.Halt.Command)
	case before.Halt != nil && now.Halt == nil:
		e.log.Info("resumed")
	}
}
