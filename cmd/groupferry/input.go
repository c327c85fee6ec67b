package main

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"groupferry/importer"
	"groupferry/internal/app"
	"groupferry/internal/queue"
	"groupferry/metrics"
)

// maxShown is how many rejects, and how many warnings, are shown one by one. The file has all rejects.
const maxShown = 50

// showReading returns what draws the progress line while an input is read.
func (p *program) showReading() func(importer.Progress) {
	start := time.Now()
	return func(at importer.Progress) {
		p.console.progress(func() string {
			s := fmt.Sprintf("reading: %s rows, %s rows/s", count(at.Rows), count(int64(float64(at.Rows)/time.Since(start).Seconds())))
			if at.Total > 0 {
				s += fmt.Sprintf(", %d%%", at.Bytes*100/at.Total)
			}
			return s
		})
	}
}

// showPlan says what is noteworthy about an input, and what is wrong with it.
func (p *program) showPlan(plan *importer.Plan) error {
	p.console.end()
	for _, n := range plan.Notices {
		p.console.say("note: %s", n)
	}
	for i, w := range plan.Warnings {
		if i == maxShown {
			p.console.warn("and %s more", count(plan.Summary.Warnings-int64(i)))
			break
		}
		p.console.warn("%s:%d: %s", w.File, w.Line, w.Text)
	}
	shown := 0
	for r := range plan.Rejects() {
		if shown == maxShown {
			p.console.say("… and %s more", count(plan.Summary.Rejected-maxShown))
			break
		}
		p.console.say("rejected: %s:%d: %s: %s", r.File, r.Line, r.Code, r.Reason)
		shown++
	}
	return plan.Err()
}

// readInput reads the input of import and run, and says which file has its rejects.
func (p *program) readInput(files []string, flags *inputFlags, chunk int) (*app.Input, error) {
	cfg, err := flags.config(p, files, chunk)
	if err != nil {
		return nil, err
	}
	in, err := app.ReadInput(p.soft, cfg)
	p.console.end()
	var budget *app.BudgetError
	switch {
	case err == nil && in.Record.RejectsFile != "":
		p.showKept(in.Record.Rejected, in.Record.RejectsFile)
	case errors.As(err, &budget):
		p.showKept(budget.Rejected, budget.RejectsFile)
	}
	debug.FreeOSMemory() // what sorting took is free for what comes now
	return in, err
}

func (p *program) showKept(rejected int64, file string) {
	p.console.say("%s rejected, kept in %s: fix and import that file", rows(rejected), file)
}

func rows(n int64) string {
	if n == 1 {
		return "1 row"
	}
	return count(n) + " rows"
}

// begin makes the record of an import, or finds that of an earlier run with the same content.
func (p *program) begin(ctx context.Context, s *app.Namespace, in *app.Input) (queue.Import, error) {
	stored, existed, err := in.Begin(ctx, s)
	if err != nil {
		return stored, err
	}
	id, at := stored.ID, stored.Created.Local().Format(time.DateTime)
	switch {
	case !existed:
	case stored.State == queue.Cancelled:
		p.console.say("import %s was begun at %s and cancelled: nothing to do; another --import-id imports it again", id, at)
	case stored.State == queue.Complete:
		p.console.say("import %s was begun at %s and is complete: nothing to do", id, at)
	default:
		p.console.say("continuing import %s, begun at %s", id, at)
	}
	return stored, nil
}

// enqueue puts the jobs on the queue that are not there yet.
func (p *program) enqueue(ctx context.Context, s *app.Namespace, in *app.Input, m *metrics.Metrics) error {
	total := in.Record.Jobs
	stats, err := in.Enqueue(ctx, s, func(done int64) {
		p.console.progress(func() string { return fmt.Sprintf("enqueued %s of %s jobs", count(done), count(total)) })
	})
	p.console.end()
	if m != nil {
		m.JobsEnqueued(int(stats.Jobs)) // not those of an earlier run
	}
	if err == nil && stats.Skipped > 0 && stats.Jobs > 0 {
		p.console.say("%s jobs were on the queue already", count(stats.Skipped))
	}
	return err
}
