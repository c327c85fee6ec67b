package app

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"groupferry/importer"
	"groupferry/internal/job"
	"groupferry/internal/queue"
)

// InputConfig says what to read, and how many rows may be rejected.
type InputConfig struct {
	Files    []string // names of files, globs, - for Importer.Stdin
	Importer importer.Config

	// Rejects names the file for rejected rows. "" means IMPORT-rejects.csv; for [Check], no file.
	Rejects string

	// MaxRejects is how many rows may be rejected; the zero value allows all.
	MaxRejects Budget

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

// check returns a *BudgetError when more rows were rejected than allowed.
func (b Budget) check(s importer.Summary, rejects string) error {
	allowed := b.Rows
	if b.Percent > 0 {
		allowed = int64(b.Percent / 100 * float64(s.Rows))
	}
	if !b.Limited || s.Rejected <= allowed {
		return nil
	}
	return &BudgetError{s.Rejected, s.Rows, allowed, rejects}
}

// A BudgetError says that more rows were rejected than allowed.
type BudgetError struct {
	Rejected, Rows, Allowed int64
	RejectsFile             string // that has them; "" if there is none
}

func (e *BudgetError) Error() string {
	return fmt.Sprintf("%d of %d rows were rejected, --max-rejects allows %d: nothing was enqueued", e.Rejected, e.Rows, e.Allowed)
}

// An Input is what was read for an import. It has to be closed.
type Input struct {
	Plan   *importer.Plan
	Record queue.Import // as the queue is going to keep it
}

// ReadInput reads and checks the whole input, writes its rejects to a file, and keeps to the budget. The errors are those
// of [importer.Read], one about the file of rejects, and a *BudgetError.
func ReadInput(ctx context.Context, cfg InputConfig) (_ *Input, err error) {
	plan, err := readPlan(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			plan.Close()
		}
	}()
	name := cfg.Rejects
	if name == "" {
		name = plan.ImportID + "-rejects.csv"
	}
	names, err := queue.PackNames(plan.Files)
	if err != nil {
		return nil, err
	}
	rejects, err := writeRejects(plan, name)
	if err != nil {
		return nil, err
	}
	if err := cfg.MaxRejects.check(plan.Summary, rejects); err != nil {
		return nil, err
	}
	s := plan.Summary
	return &Input{plan, queue.Import{
		ID: plan.ImportID, Digest: plan.Digest, Files: FileNames(cfg.Files), Inputs: names, RejectsFile: rejects,
		Rows: s.Rows, Accepted: s.Accepted, Duplicates: s.Duplicates, Rejected: s.Rejected,
		Conversations: s.Conversations, Calls: s.Calls, Jobs: s.Jobs,
	}}, nil
}

func readPlan(ctx context.Context, cfg InputConfig) (*importer.Plan, error) {
	plan, err := importer.Read(ctx, cfg.Files, cfg.Importer)
	if err == nil && cfg.OnRead != nil {
		if err = cfg.OnRead(plan); err != nil {
			plan.Close()
		}
	}
	return plan, err
}

// writeRejects writes the file of rejects, if there are any, and returns its name.
func writeRejects(plan *importer.Plan, name string) (string, error) {
	if plan.Summary.Rejected == 0 {
		return "", nil
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

// FileNames shortens a list of inputs where a shell has expanded a glob into very many names.
func FileNames(inputs []string) []string {
	const most = 20
	if len(inputs) > most {
		return append(slices.Clone(inputs[:most]), fmt.Sprintf("and %d more", len(inputs)-most))
	}
	return inputs
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
