package app

import (
	"context"
	"encoding/json"
	"time"

	"groupferry/internal/lease"
	"groupferry/internal/queue"
)

const (
	// handoverAfter is how long calls are under way without any response, or an outage lasts, before the leader asks who
	// could lead instead: longer than the 3 s after which the API itself gives a request up.
	handoverAfter = 4 * time.Second

	// askWait is how long standbys may take to respond: they connect to the API first.
	askWait = 2 * time.Second

	// handoverPause is how long a leader that was handed the lead keeps it at least; it doubles with each hand-over in
	// a row without a response of the API, up to mostPause.
	handoverPause = 10 * time.Second
	mostPause     = 5 * time.Minute
)

// presence is what a process that stands by says about itself.
type presence struct {
	Name      string    `json:"name"`
	Host      string    `json:"host"`
	App       queue.App `json:"app"`
	Reachable bool      `json:"reachable"` // it can connect to the API
}

// presence is the response to a leader that asks who stands by; the leader itself has none.
func (e *Engine) presence(ctx context.Context) []byte {
	if e.Leading() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	b, err := json.Marshal(presence{
		Name: e.cfg.Name, Host: e.cfg.Host, App: e.cfg.App, Reachable: e.cfg.API.Reach(ctx) == nil,
	})
	if err != nil {
		return nil
	}
	return b
}

// awaitHandover watches for an outage, and returns a standby that can reach the API when one lasts. It returns nil when ctx
// ends.
func (e *Engine) awaitHandover(ctx context.Context, before lease.Record) *presence {
	earliest := time.Now()
	if before.Handovers > 0 {
		earliest = earliest.Add(min(mostPause, handoverPause<<min(before.Handovers-1, 5)))
	}
	for {
		s, changed := e.state.get()
		wait := time.Until(earliest)
		if s.Outage != nil && !s.Silent {
			wait = max(wait, time.Until(s.Outage.Since.Add(handoverAfter)))
		}
		switch {
		case s.Outage == nil && !s.Silent:
			wait = time.Hour // the next change comes first
		case wait <= 0:
			if next, ok := e.findSuccessor(ctx); ok {
				return &next
			}
			wait, changed = time.Second, nil
		}
		select {
		case <-changed:
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

// handedOver says to whom this process hands the lead over, and why.
func (e *Engine) handedOver(to *presence) *handedOverError {
	cause := errSilent
	if s := e.State(); s.Outage != nil && s.Outage.Err != nil {
		cause = s.Outage.Err
	}
	return &handedOverError{to.Host, cause}
}

// findSuccessor asks who could lead instead. When a call has had a response meanwhile, nobody has to.
func (e *Engine) findSuccessor(ctx context.Context) (next presence, found bool) {
	err := e.cfg.Namespace.Conn.AskStandbys(ctx, askWait+time.Second, func(b []byte) (enough bool) {
		var p presence
		found = json.Unmarshal(b, &p) == nil && p.Reachable && p.App == e.cfg.App && p.Name != e.cfg.Name
		next = p
		return found
	})
	if err != nil {
		e.log.Debug("ask the standbys", "error", err)
	}
	s, _ := e.state.get()
	return next, found && (s.Outage != nil || s.Silent)
}
