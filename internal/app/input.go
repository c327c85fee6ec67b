package app

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"

	"groupferry/importer"
	"groupferry/internal/job"
	"groupferry/internal/queue"
)

// InputConfig says what to read, and how many rows may be rejected.
type InputConfig struct {
	Files    []string // names of files, globs, - for Importer.Stdin
	Importer importer.Config

	// Rejects names the file for rejected rows. "" means IMPORT-rejects.csv; for [Check], no file. [Stdout] is that of
	// this config.
	Rejects string
	Stdout  io.Writer

	// MaxRejects is how many rows may be rejected; the zero value allows all.
	MaxRejects Budget

	// AllowEmpty takes an input of which no row is accepted.
	AllowEmpty bool

	// OnRead, unless nil, is called when all is read, before a file is written or the budget is asked: rejects and warnings
	// can be shown then. Its error ends the reading.
	OnRead func(*importer.Plan) error
}

// A Budget is how many rows may be rejected.
type Budget struct {
	Limited bool    // else all
	Rows    int64   // so many
	Percent float64 // or this share of the rows, if it is not 0
}

func (b Budget) String() string {
	switch {
	case !b.Limited:
		return "all"
	case b.Percent > 0:
		return fmt.Sprintf("%g%%", b.Percent)
	}
	return fmt.Sprint(b.Rows)
}

func (b Budget) allowed(rows int64) int64 {
	switch {
	case !b.Limited:
		return rows
	case b.Percent > 0:
		return int64(b.Percent / 100 * float64(rows))
	}
	return b.Rows
}

// guard returns a *GuardError for an input of which nothing is to be enqueued.
func (cfg *InputConfig) guard(s importer.Summary, r *Rejects) error {
	e := &GuardError{Rows: s.Rows, Rejected: s.Rejected, Accepted: s.Accepted, Rejects: r}
	switch e.Allowed = cfg.MaxRejects.allowed(s.Rows); {
	case s.Rejected > e.Allowed:
		e.Percent = cfg.MaxRejects.Percent
		return e
	case s.Accepted == 0 && !cfg.AllowEmpty:
		return e
	}
	return nil
}

// A GuardError says that nothing of an input was enqueued: more rows were rejected than allowed, or none was accepted.
type GuardError struct {
	Rows, Accepted, Rejected int64

	Allowed int64   // how many may be rejected
	Percent float64 // which is this share of the rows; 0 if it is a number
	Rejects *Rejects

	Night int   // of a sync, the last one that is complete; 0 for none
	Last  int64 // rows that it accepted
}

func (e *GuardError) Error() string {
	var why string
	switch {
	case e.Rejected > e.Allowed:
		why = fmt.Sprintf("%s of %s rows were rejected, --max-rejects allows %s", Count(e.Rejected), Count(e.Rows), Count(e.Allowed))
		if e.Percent > 0 {
			why = fmt.Sprintf("%s of %s rows (%.3g%%) were rejected, --max-rejects %g%% allows %s",
				Count(e.Rejected), Count(e.Rows), 100*float64(e.Rejected)/float64(e.Rows), e.Percent, Count(e.Allowed))
		}
	case e.Rows == 0:
		why = "the input has no rows"
	default:
		why = fmt.Sprintf("no row was accepted, %s rejected", Count(e.Rows))
	}
	if e.Night > 0 {
		why += fmt.Sprintf("; night %d had %s accepted rows", e.Night, Count(e.Last))
	}
	return why + ": nothing was enqueued"
}

// An Input is what was read for an import. It has to be closed.
type Input struct {
	Plan    *importer.Plan
	Record  queue.Import // as the queue is going to keep it
	Rejects *Rejects     // to be kept once the queue has the record: see [Rejects.Keep]
}

// ReadInput reads and checks the whole input. The errors are those of [importer.Read], of [queue.PackNames], a
// *RejectsError, and a *GuardError; then the rejects are kept already, for they are what has to be fixed.
func ReadInput(ctx context.Context, cfg InputConfig) (_ *Input, err error) {
	in, err := readPlan(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			in.Close()
		}
	}()
	if err = in.findRejects(cfg); err != nil {
		return nil, err
	}
	if err := cfg.guard(in.Plan.Summary, in.Rejects); err != nil {
		return nil, cmp.Or(in.Rejects.Keep(), err)
	}
	return in, nil
}

// findRejects decides where the rejects go.
func (in *Input) findRejects(cfg InputConfig) (err error) {
	in.Rejects, err = findRejects(in.Plan, cmp.Or(cfg.Rejects, in.Record.ID+"-rejects.csv"), cfg.Stdout)
	if err == nil {
		in.Record.RejectsFile = in.Rejects.File
	}
	return err
}

// readPlan reads the input, and makes its record.
func readPlan(ctx context.Context, cfg InputConfig) (*Input, error) {
	plan, err := importer.Read(ctx, cfg.Files, cfg.Importer)
	if err != nil {
		return nil, err
	}
	in, err := newInput(plan, cfg)
	if err == nil && cfg.OnRead != nil {
		err = cfg.OnRead(plan)
	}
	if err != nil {
		plan.Close()
		return nil, err
	}
	return in, nil
}

// newInput makes the record of a plan. The error is that of [queue.PackNames].
func newInput(plan *importer.Plan, cfg InputConfig) (*Input, error) {
	names, err := queue.PackNames(plan.Files)
	if err != nil {
		return nil, err
	}
	s := plan.Summary
	return &Input{Plan: plan, Record: queue.Import{
		ID: plan.ImportID, Digest: plan.Digest, Files: FileNames(cfg.Files), Inputs: names,
		Rows: s.Rows, Accepted: s.Accepted, Duplicates: s.Duplicates, Rejected: s.Rejected,
		Unchanged: s.Accepted - s.Conversations, Conversations: s.Conversations, Calls: s.Calls, Jobs: s.Jobs,
	}}, nil
}

// FileNames shortens a list of inputs where a shell has expanded a glob into very many names.
func FileNames(inputs []string) []string {
	if len(inputs) > mostFileNames {
		return append(slices.Clone(inputs[:mostFileNames]), fmt.Sprintf(moreFiles, len(inputs)-mostFileNames))
	}
	return inputs
}

const (
	mostFileNames = 20
	moreFiles     = "and %d more"
)

// fileCount returns how many inputs FileNames made a list of.
func fileCount(names []string) int {
	var more int
	if len(names) == mostFileNames+1 {
		if _, err := fmt.Sscanf(names[mostFileNames], moreFiles, &more); err == nil {
			return mostFileNames + more
		}
	}
	return len(names)
}

// Close removes what the input has on disk.
func (in *Input) Close() error { return in.Plan.Close() }

// Enqueue puts the jobs on the queue that are not there yet; progress, unless nil, gets how many are. The record has to be
// there: see [queue.Queue.Begin]. The errors are those of [queue.Queue.Enqueue], and one about what the input has on disk.
func (in *Input) Enqueue(ctx context.Context, n *Namespace, progress func(done int64)) (queue.EnqueueStats, error) {
	var unread error // the queue only knows that there were fewer jobs than announced
	jobs := func(yield func(job.Job) bool) {
		for j, err := range in.Plan.Jobs() {
			if unread = err; err != nil || !yield(j) {
				return
			}
		}
	}
	stats, err := n.Enqueue(ctx, in.Plan.ImportID, jobs, progress)
	if unread != nil {
		err = unread
	}
	return stats, err
}
