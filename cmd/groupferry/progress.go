package main

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"groupferry/importer"
	"groupferry/internal/app"
)

// How far something is: a line that is drawn over and over on a terminal, and a log line elsewhere. What is drawn comes from
// pure functions. A line of a terminal has parts. Where the window is too narrow for all of them they are shortened, and
// then those that matter least are left out:
//
//	━━━━━━━━━━━━━━━───────────────   53%  1,592 of 3,000 jobs  199 of 200 calls/s  4m 10s left  2 failed
//	━━━━━─────   53%  1,592/3,000 jobs  199/200 calls/s  4m 10s left  2 failed
//	━━━───   53%  199/200 calls/s  4m 10s left  2 failed

// A progress is how far something is.
type progress struct {
	text  string // of a log line
	event event
	line  line // of a terminal
}

// A line is what is drawn on a terminal.
type line struct {
	doing       string // before all else; may be ""
	done, total int64  // as a bar and a share, if total is not 0
	parts       []part
}

// A part is a piece of a line.
type part struct {
	text  string
	short string // for a narrow window; "" for none
	rank  rank
	color color
	bar   bool // the text is drawn when its width is known
}

// A rank says how much a part matters: those of the lowest rank are left out first.
type rank int

const (
	rankThrottled rank = iota
	rankCount
	rankRate
	rankBar
	rankLeft
	rankFailed
	rankShare
	rankDoing
	rankState
)

// A bar has barLeast to barMost columns, in steps: so it stays as wide as it is when a number gets a digit more.
const (
	barLeast = 6
	barStep  = 4
	barMost  = 30
)

// line draws a line that is shorter than the window is wide.
func (l look) line(n line) string {
	var parts []part
	if n.doing != "" {
		parts = append(parts, part{text: n.doing, rank: rankDoing})
	}
	if n.total > 0 {
		share := min(max(n.done*100/n.total, 0), 100)
		parts = append(parts, part{text: strings.Repeat("-", barLeast), rank: rankBar, bar: true},
			part{text: fmt.Sprintf("%3d%%", share), rank: rankShare})
	}
	parts = append(parts, n.parts...)
	const gap = "  "
	room := max(l.width-len("^C")-1, 1) // the terminal prints that behind the line
	used := func() int {
		all := len(gap) * (len(parts) - 1)
		for _, p := range parts {
			all += columns(p.text)
		}
		return all
	}
	if used() > room {
		for i, p := range parts {
			parts[i].text = cmp.Or(p.short, p.text)
		}
	}
	for len(parts) > 1 && used() > room {
		least := slices.MinFunc(parts, func(a, b part) int { return cmp.Compare(a.rank, b.rank) }).rank
		parts = slices.DeleteFunc(parts, func(p part) bool { return p.rank == least })
	}
	spare := max(room-used(), 0) / barStep * barStep
	drawn := make([]string, len(parts))
	for i, p := range parts {
		if drawn[i] = l.paint(p.color, cut(p.text, room)); p.bar {
			drawn[i] = l.bar(min(barLeast+spare, barMost), n.done, n.total)
		}
	}
	return strings.Join(drawn, gap)
}

// bar draws a bar that takes so many columns.
func (l look) bar(width int, done, total int64) string {
	if !l.unicode {
		full := filled(width-2, done, total)
		return "[" + l.paint(cyan, strings.Repeat("#", full)) + strings.Repeat(".", width-2-full) + "]"
	}
	full := filled(width, done, total)
	return l.paint(cyan, strings.Repeat("━", full)) + strings.Repeat("─", width-full)
}

// filled is how much of a width is done; all of it only when all is done.
func filled(width int, done, total int64) int {
	return int(float64(width) * min(max(float64(done)/float64(total), 0), 1))
}

// progress shows how far it is; at is asked only when it is to be shown.
func (c *console) progress(at func() progress) {
	if c.quiet {
		return
	}
	now := time.Now()
	every, drawn := logEvery, c.draws()
	if drawn {
		every = redraw
	}
	c.mu.Lock()
	if c.last.IsZero() && !drawn {
		c.last = now // the first log line after ten seconds, not at once
	}
	due := now.Sub(c.last) >= every
	if due {
		c.last = now
	}
	c.mu.Unlock()
	if !due {
		return
	}
	switch p := at(); {
	case c.json:
		c.log.Info(p.event.msg, p.event.fields...)
	case !drawn:
		c.log.Info(p.text)
	default:
		c.draw(p.line)
	}
}

// draws reports whether progress is a line that is drawn.
func (c *console) draws() bool { return c.terminal && !c.json && !c.quiet }

// draw draws a line over the one that stands there. Whatever the terminal takes for wide, it does not wrap.
func (c *console) draw(n line) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.look()
	if l.width == 0 { // it is gone
		return
	}
	before := c.rewind(l)
	c.line, c.drawnAt = l.line(n), l.width
	fmt.Fprintf(c.w, "%s\x1b[?7l%s\x1b[K\x1b[?7h", before, c.line)
}

// rewind goes to the begin of the line that stands there, which a window that got narrower has wrapped.
func (c *console) rewind(l look) string {
	if c.line != "" && 0 < l.width && l.width < c.drawnAt {
		if rows := (columns(plainText(c.line)) - 1) / l.width; rows > 0 {
			return fmt.Sprintf("\r\x1b[%dA\x1b[J", rows)
		}
	}
	return "\r"
}

// plainText is a text without colors.
func plainText(text string) string { return colors.ReplaceAllString(text, "") }

// watch shows how far a process is, of an import or of all imports that are not over, and at the first signal what is waited
// for, until the function that it returns is called.
func (p *program) watch(ctx context.Context, w *app.Process, importID string) (end func()) {
	every := time.Second
	if p.console.draws() {
		every = redraw
	}
	ending, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(every)
		defer tick.Stop()
		var pace app.Pace
		var totals app.Totals
		stopped := ctx.Done()
		for {
			select {
			case <-ending:
				return
			case <-stopped:
				stopped = nil
				p.sayStopping(w)
			case <-tick.C:
			}
			s := w.State()
			switch {
			case s.Progress != nil:
				totals = s.Progress.Totals(importID)
			case !p.console.draws(): // NATS is out of reach, which a log line says; the line has what is known
				continue
			}
			p.showProgress(&s, &pace, totals)
		}
	}()
	return func() {
		close(ending)
		<-ended
		p.console.end()
	}
}

// showProgress shows how far imports are that are not over; none if there is none.
func (p *program) showProgress(s *app.State, pace *app.Pace, t app.Totals) {
	if t.Imports == 0 {
		p.console.end()
		return
	}
	pace.Note(time.Now(), s, t)
	p.console.progress(func() progress {
		left := pace.Left(s, t)
		calls, known := s.CallsNow()
		if !known {
			calls = -1
		}
		return progress{progressText(s, t, left), p.console.event("progress", progressFields(s, t, left)...), progressLine(s, t, left, calls)}
	})
}

// progressFields are those of a log line.
func progressFields(s *app.State, t app.Totals, left time.Duration) []any {
	fields := []any{"imports", t.Imports}
	if t.Imports == 1 {
		fields = []any{"import", t.Import}
	}
	fields = append(fields, "state", s.Mode, "done", t.Finished, "total", t.Jobs, "failed", t.Failed,
		"throttled", s.Tally.Throttled, "rate", math.Round(10*t.Rate)/10)
	if s.Mode == app.Standby {
		fields = append(fields, "leader", s.Leader)
	}
	if left > 0 {
		fields = append(fields, "seconds_left", int64(left.Seconds()))
	}
	return fields
}

// progressText is a log line.
func progressText(s *app.State, t app.Totals, left time.Duration) string {
	text := fmt.Sprintf("%s of %s done", count(t.Finished), jobs(t.Jobs))
	if t.Rate > 0 {
		text += fmt.Sprintf(", %.0f jobs/s", t.Rate)
	}
	if t.Failed > 0 {
		text += fmt.Sprintf(", %s failed or partial", count(t.Failed))
	}
	if n := s.Tally.Throttled; n > 0 {
		text += fmt.Sprintf(", %s throttled", count(n))
	}
	switch {
	case s.Stopping:
		text += ", stopping"
	case t.Paused:
		text += ", paused"
	case s.Mode == app.Standby:
		text += ", sent by " + s.Leader
	case s.Mode != app.Running:
		text += ", " + s.Mode
	}
	if left > 0 {
		text += ", " + span(left) + " left"
	}
	return text
}

// progressLine is what is drawn; calls are those of a second, or less than 0 if nobody knows.
func progressLine(s *app.State, t app.Totals, left time.Duration, calls float64) line {
	n := line{done: t.Finished, total: max(t.Jobs, 1)}
	add := func(is bool, p part) {
		if is {
			n.parts = append(n.parts, p)
		}
	}
	state := statePart(s, t)
	add(!s.Stopping, part{text: count(t.Finished) + " of " + jobs(t.Jobs), short: count(t.Finished) + "/" + jobs(t.Jobs), rank: rankCount})
	add(calls >= 0 && state.text == "", part{
		text:  fmt.Sprintf("%.0f of %d calls/s", calls, s.Rate),
		short: fmt.Sprintf("%.0f/%d calls/s", calls, s.Rate), rank: rankRate,
	})
	add(left > 0, part{text: brief(left) + " left", rank: rankLeft})
	add(t.Failed > 0, part{text: count(t.Failed) + " failed", rank: rankFailed, color: red})
	add(s.Tally.Throttled > 0 && !s.Stopping, part{text: count(s.Tally.Throttled) + " throttled", rank: rankThrottled, color: yellow})
	add(state.text != "", state)
	return n
}

// statePart says why nothing is done, or who does it; without text where this process does.
func statePart(s *app.State, t app.Totals) part {
	p := part{rank: rankState, color: yellow}
	switch {
	case s.Stopping:
		inFlight := int64(0)
		if s.Jobs != nil {
			inFlight = s.Jobs.InFlight
		}
		p.text = "stopping"
		if inFlight > 0 {
			p.text = fmt.Sprintf("stopping: waiting for %s, Ctrl-C again to leave now", jobs(inFlight))
			p.short = fmt.Sprintf("stopping: %s, Ctrl-C again to leave", jobs(inFlight))
		}
	case s.Mode == app.Halted:
		p.text, p.color = "halted", red
		if s.Reason != app.OtherHalt {
			p.text += fmt.Sprintf(": %s (%s)", s.Reason, s.Halt.Code)
		}
	case s.Mode == app.Paused:
		p.text = "paused by hand"
	case s.Mode == app.OutOfReach:
		p.text, p.color = "API out of reach", red
	case s.Mode == app.Leaderless && s.Reason == app.NoNATS:
		p.text, p.color = "NATS out of reach", red
	case s.Mode == app.Leaderless:
		p.text = "waiting for a leader"
	case t.Paused && t.Imports == 1:
		p.text = "import paused by hand"
	case t.Paused:
		p.text = "imports paused by hand"
	case s.Mode == app.Standby:
		p.text, p.short, p.color = "standby: "+inLine(s.Leader)+" leads", "standby", ""
	case s.Reason == app.Starting:
		p.text, p.color = "starting", ""
	}
	return p
}

// showReading returns what shows progress while an input is read.
func (p *program) showReading() func(importer.Progress) {
	start := time.Now()
	return func(at importer.Progress) {
		p.console.progress(func() progress { return p.readingProgress(at, time.Since(start)) })
	}
}

// readingProgress is how far an input is read or sorted after so much time.
func (p *program) readingProgress(at importer.Progress, took time.Duration) progress {
	n := line{parts: []part{{text: rows(at.Rows), rank: rankLeft}}}
	if at.Sorting {
		n.doing, n.done, n.total = "sorting", int64(at.Sorted), 100
		return progress{fmt.Sprintf("sorting: %s rows, %d%%", count(at.Rows), at.Sorted),
			p.console.event("sorting", "rows", at.Rows, "percent", at.Sorted), n}
	}
	rate := int64(float64(at.Rows) / max(took.Seconds(), 0.001))
	text := fmt.Sprintf("reading: %s rows, %s rows/s", count(at.Rows), count(rate))
	e := p.console.event("reading", "rows", at.Rows, "rate", rate)
	if at.Total > 0 {
		percent := at.Bytes * 100 / at.Total
		text += fmt.Sprintf(", %d%%", percent)
		e.fields = append(e.fields, "percent", percent)
	}
	n.doing, n.done, n.total = "reading", at.Bytes, at.Total
	n.parts = append(n.parts, part{text: count(rate) + " rows/s", rank: rankRate})
	return progress{text, e, n}
}

// brief writes a duration in a few columns: 7s, 4m 10s, 2h 5m, 3d 4h.
func brief(d time.Duration) string {
	switch s := int64(d.Round(time.Second).Seconds()); {
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%dm %ds", s/60, s%60)
	case s < 86400:
		return fmt.Sprintf("%dh %dm", s/3600, s/60%60)
	default:
		return fmt.Sprintf("%dd %dh", s/86400, s/3600%24)
	}
}

// age writes how old something is in its largest unit: 12s, 5m, 3h, 2d.
func age(d time.Duration) string {
	unit, _, _ := strings.Cut(brief(max(d.Truncate(time.Second), 0)), " ")
	return unit
}
