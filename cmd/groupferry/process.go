package main

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"strings"
	"time"
	"unicode"

	"groupferry/internal/app"
	"groupferry/internal/chatsim"
	"groupferry/internal/clock"
	"groupferry/internal/queue"
	"groupferry/worker"
)

// wallClock replaces the machine's wall clock in tests that set it; nil otherwise.
var wallClock func() time.Time

// processConfig is what run and work have in common: how to call the API, and what is shown on the way. With an import
// ID, the progress of that import alone is shown.
func (p *program) processConfig(s *app.Namespace, api *apiClient, a *apiFlags, importID string) app.ProcessConfig {
	id := queue.App{SDKAppID: a.app, Simulated: a.simulator != ""}
	if id.Simulated {
		id.SDKAppID = chatsim.DemoSDKAppID
	}
	return app.ProcessConfig{
		Engine: app.EngineConfig{
			Namespace: s, API: api.Client, App: id, RoundTrip: api.minRTT,
			Name: uniqueName(), Host: processName(), Rate: a.rate, Timeout: a.timeout, Clock: clock.Clock{Wall: wallClock},
			Worker: worker.Config{
				Concurrency: a.concurrency, ChunkSize: a.chunk, MaxAttempts: a.attempts, AcceptReplace: a.acceptReplace,
				Name: processName(), Log: p.console.log,
			},
			Log: p.console.log,
		},
		Version: version(), Import: importID,
		OnChange: func(s app.State) { p.showProgress(&s, importID) },
		OnAbandoned: func(i app.ImportProgress) {
			next := "import its files again"
			if i.Import.State == queue.Retrying {
				next = "groupferry retry " + i.Import.ID
			}
			p.console.warn("import %s is %s, and nothing comes any more; to continue: %s", i.Import.ID, i.Import.State, next)
		},
	}
}

// uniqueName is processName with a part that no earlier process had.
func uniqueName() string {
	b := make([]byte, 8)
	rand.Read(b)
	return strings.Map(func(r rune) rune {
		if r == '.' || r == '*' || r == '>' || unicode.IsSpace(r) {
			return '_' // of a subject
		}
		return r
	}, processName()) + "-" + hex.EncodeToString(b)
}

// showProgress draws the progress line of an import, or of all imports that are not over.
func (p *program) showProgress(s *app.State, importID string) {
	if s.Progress == nil {
		return
	}
	t := s.Progress.Totals(importID)
	if t.Imports == 0 {
		return
	}
	p.console.progress(func() string { return progressLine(s, t) })
}

func progressLine(s *app.State, t app.Totals) string {
	line := fmt.Sprintf("%s of %s jobs done", count(t.Finished), count(t.Jobs))
	if t.Rate > 0 {
		line += fmt.Sprintf(", %.0f jobs/s", t.Rate)
	}
	if t.Failed > 0 {
		line += fmt.Sprintf(", %s failed or partial", count(t.Failed))
	}
	if n := s.Tally.Throttled; n > 0 {
		line += fmt.Sprintf(", %s throttled", count(n))
	}
	switch {
	case t.Paused:
		line += ", paused"
	case s.Mode == app.Standby:
		line += ", sent by " + s.Leader
	case s.Mode != app.Running:
		line += ", " + s.Mode
	}
	if left := t.Pending + t.InFlight; t.Rate > 0 && left > 0 && !t.Paused && s.Halt == nil {
		line += ", " + span(time.Duration(float64(left)/t.Rate*float64(time.Second))) + " left"
	}
	return line
}

// listen opens the address for metrics and status; "" and "off" mean none.
func listen(address string) (net.Listener, error) {
	if address == "" || address == "off" {
		return nil, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, hint(usagef("--listen: %w", err), "choose another address, or --listen off")
	}
	return l, nil
}

// warnHalted says that the namespace is halted or paused already; with paused, only the latter.
func (p *program) warnHalted(s *app.Namespace, paused bool) error {
	h, err := s.Halted(p.soft)
	if err == nil && h != nil && (!paused || h.State == queue.Paused) {
		p.console.warn("%s: %s; to continue: %s", h.State, h.Reason, h.Command)
	}
	return err
}
