package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"

	"groupferry/importer"
	"groupferry/internal/job"
	"groupferry/internal/queue"
	"groupferry/metrics"
)

// shownRejects is how many rejects are shown one by one; the file has them all.
const shownRejects = 50

// read reads the whole input, and says what is wrong with it. The plan has to be closed.
func (p *program) read(inputs []string, in *inputFlags, chunk int) (*importer.Plan, error) {
	cfg, err := in.config(p, chunk)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	cfg.Progress = func(at importer.Progress) {
		p.console.progress(func() string {
			s := fmt.Sprintf("reading: %s rows, %s rows/s", count(at.Rows), count(int64(float64(at.Rows)/time.Since(start).Seconds())))
			if at.Total > 0 {
				s += fmt.Sprintf(", %d%%", at.Bytes*100/at.Total)
			}
			return s
		})
	}
	plan, err := importer.Read(p.soft, inputs, cfg)
	p.console.end()
	if err != nil {
		return nil, err
	}
	for _, n := range plan.Notices {
		p.console.say("note: %s", n)
	}
	for i, w := range plan.Warnings {
		if i == shownRejects {
			p.console.warn("and %s more", count(plan.Summary.Warnings-int64(i)))
			break
		}
		p.console.warn("%s:%d: %s", w.File, w.Line, w.Text)
	}
	shown := 0
	for r, err := range plan.Rejects() {
		if err != nil {
			plan.Close()
			return nil, err
		}
		if shown == shownRejects {
			p.console.say("… and %s more", count(plan.Summary.Rejected-shownRejects))
			break
		}
		p.console.say("rejected: %s:%d: %s: %s", r.File, r.Line, r.Code, r.Reason)
		shown++
	}
	return plan, nil
}

// keepRejects writes the file of rejects, if there are any, and returns its name.
func (p *program) keepRejects(plan *importer.Plan, in *inputFlags) (string, error) {
	if plan.Summary.Rejected == 0 {
		return "", nil
	}
	name := in.rejects
	if name == "" {
		name = plan.ImportID + "-rejects.csv"
	}
	// Written beside and renamed, so that a crash leaves no half of it under its name.
	f, err := os.CreateTemp(filepath.Dir(name), ".rejects-*")
	if err != nil {
		return "", fmt.Errorf("write rejects: %w", err)
	}
	defer os.Remove(f.Name())
	err = plan.WriteRejects(f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return "", fmt.Errorf("write rejects: %w", err)
	}
	return name, nil
}

// withinBudget refuses a plan with more rejects than wanted.
func (p *program) withinBudget(plan *importer.Plan, in *inputFlags, rejectsFile string) error {
	allowed, err := in.budget(plan.Summary.Rows)
	if err != nil {
		return err
	}
	if allowed < 0 || plan.Summary.Rejected <= allowed {
		return nil
	}
	err = &budgetError{plan.Summary.Rejected, plan.Summary.Rows, allowed}
	if rejectsFile == "" {
		return err
	}
	return hint(err, "fix the rows in %s, or allow more", rejectsFile)
}

// take reads the input and keeps to the budget: what import and run have in common before they need a queue. The plan
// has to be closed.
func (p *program) take(inputs []string, in *inputFlags, chunk int) (_ *importer.Plan, _ queue.Import, err error) {
	plan, err := p.read(inputs, in, chunk)
	if err != nil {
		return nil, queue.Import{}, err
	}
	defer func() {
		if err != nil {
			plan.Close()
		}
	}()
	rejects, err := p.keepRejects(plan, in)
	if err != nil {
		return nil, queue.Import{}, err
	}
	if rejects != "" {
		p.console.say("%s rejected, kept in %s: fix and import that file", rows(plan.Summary.Rejected), rejects)
	}
	if err := p.withinBudget(plan, in, rejects); err != nil {
		return nil, queue.Import{}, err
	}
	debug.FreeOSMemory() // what sorting took is free for what comes now
	s := plan.Summary
	return plan, queue.Import{
		ID: plan.ImportID, Digest: plan.Digest, Files: fileNames(inputs), RejectsFile: rejects,
		Rows: s.Rows, Accepted: s.Accepted, Duplicates: s.Duplicates, Rejected: s.Rejected,
		Conversations: s.Conversations, Calls: s.Calls, Jobs: s.Jobs,
	}, nil
}

func rows(n int64) string {
	if n == 1 {
		return "1 row"
	}
	return count(n) + " rows"
}

// fileNames keeps a record small where a shell has expanded a glob into very many names.
func fileNames(inputs []string) []string {
	const most = 20
	if len(inputs) > most {
		return append(slices.Clone(inputs[:most]), fmt.Sprintf("and %d more", len(inputs)-most))
	}
	return inputs
}

// begin makes the record of an import, or finds that of an earlier run with the same content.
func (p *program) begin(ctx context.Context, q *queue.Queue, i queue.Import) (queue.Import, error) {
	stored, existed, err := q.Begin(ctx, i)
	if err != nil {
		return stored, err
	}
	at := stored.Created.Local().Format(time.DateTime)
	switch {
	case !existed:
	case stored.State == queue.Cancelled:
		p.console.say("import %s was begun at %s and cancelled: nothing to do; another --import-id imports it again", i.ID, at)
	case stored.State == queue.Complete:
		p.console.say("import %s was begun at %s and is complete: nothing to do", i.ID, at)
	default:
		p.console.say("continuing import %s, begun at %s", i.ID, at)
	}
	return stored, nil
}

// enqueue puts the jobs on the queue that are not there yet.
func (p *program) enqueue(ctx context.Context, q *queue.Queue, plan *importer.Plan, m *metrics.Metrics) error {
	total := plan.Summary.Jobs
	var unread error // the queue only knows that there were fewer jobs than announced
	jobs := func(yield func(job.Job) bool) {
		for j, err := range plan.Jobs() {
			if unread = err; err != nil || !yield(j) {
				return
			}
		}
	}
	stats, err := q.Enqueue(ctx, plan.ImportID, jobs, func(done int64) {
		p.console.progress(func() string { return fmt.Sprintf("enqueued %s of %s jobs", count(done), count(total)) })
	})
	p.console.end()
	if unread != nil {
		err = unread
	}
	if m != nil {
		m.JobsEnqueued(int(stats.Jobs)) // not those of an earlier run
	}
	if errors.Is(err, queue.ErrOrder) {
		return hint(err, "give the input another --import-id to import it as a whole")
	}
	if err == nil && stats.Skipped > 0 && stats.Jobs > 0 {
		p.console.say("%s jobs were on the queue already", count(stats.Skipped))
	}
	return err
}
