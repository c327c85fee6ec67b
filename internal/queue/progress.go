package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"groupferry/internal/broker"
	"groupferry/internal/job"
)

// progressTries is how often Progress reads an import that changes meanwhile.
const progressTries = 3

// Progress says how far an import is, by what the leader wrote last.
type Progress struct {
	Import Import
	Counts Counts

	Enqueued int64 // jobs of this generation that were put on the queue
	Pending  int64 // of Enqueued: without a result and not in flight
	InFlight int64 // of Enqueued: in flight when the leader wrote last

	Rate     float64       // results a second over the last minute before At, or since the leader began with the import
	RateOver time.Duration // how long that was
	At       time.Time     // when the leader wrote last, by its clock; zero if it never did

	Damaged error // a [*broker.DamagedError], where AllProgress found damage
}

// Progress reads how far an import is. It takes a few requests, whatever the size of the import. The error wraps
// [ErrNoImport] when there is no such import. It is a [*broker.DamagedError] when the leader's numbers differ from
// those of the stream's leader; what could be read comes with it.
func (q *Queue) Progress(ctx context.Context, id string) (Progress, error) {
	for try := 1; ; try++ {
		p, stable, err := q.progress(ctx, id)
		if stable || try == progressTries {
			return p, err
		}
	}
}

// progress reads everything once. The result is not stable if the import changed meanwhile; then a difference means
// nothing.
func (q *Queue) progress(ctx context.Context, id string) (p Progress, stable bool, err error) {
	var revision uint64
	if p.Import, revision, err = q.importRecord(ctx, id); err != nil {
		return p, true, err
	}
	last, seq, err := q.lastState(ctx, id)
	if err != nil {
		return p, true, err
	}
	mine := last != nil && last.Incarnation == p.Import.Incarnation
	if mine {
		p.Counts = last.Counts
	}
	if p.Import.State == Deleting {
		p.Counts = p.Import.Counts
		return p, true, nil
	}
	point, pointSeq, err := q.checkpoint(ctx, id)
	if err != nil {
		return p, true, err
	}
	if p.Import.State.Over() && pointSeq == 0 { // with a checkpoint, the record may not have the last counts
		p.Counts = p.Import.Counts
	}
	var onStream int64
	working := pointSeq > 0 && point.of(&p.Import) && !point.Ended && p.Import.live()
	if working {
		p.Enqueued, p.Pending = point.Jobs, point.Jobs
		if mine && last.Generation == p.Import.Generation {
			p.Rate, p.RateOver, p.At = last.Rate, time.Duration(last.RateOver*float64(time.Second)), last.At
			p.InFlight = last.InFlight
			p.Pending = max(point.Jobs-last.finished()-p.InFlight, 0)
		}
		jobs, err := q.conn.StreamState(ctx, q.jobsStream(), q.jobsSubject(id))
		if err != nil {
			return p, true, err
		}
		onStream = int64(jobs.Subjects[q.jobsSubject(id)])
	}
	n, err := q.countResults(ctx, id)
	if err != nil {
		return p, true, err
	}

	// If something changed meanwhile, the numbers cannot be compared.
	_, seqNow, err := q.lastState(ctx, id)
	if err != nil {
		return p, true, err
	}
	_, revisionNow, err := q.importRecord(ctx, id)
	if err != nil && !errors.Is(err, ErrNoImport) {
		return p, true, err
	}
	stable = err == nil && seqNow == seq && revisionNow == revision
	if !stable {
		return p, false, nil
	}
	switch there := sum(n, job.Outcomes...); {
	case last == nil && there > 0:
		err = q.resultsDamaged(id, fmt.Sprintf("its state is missing, with %d results there", there))
	case there != p.Counts.Results:
		err = q.resultsDamaged(id, fmt.Sprintf("%d results are there, and %d are counted", there, p.Counts.Results))
	case working && onStream < point.Jobs:
		err = q.jobsDamaged(id, fmt.Sprintf("%d of its %d jobs are missing", point.Jobs-onStream, point.Jobs))
	}
	return p, true, err
}

// AllProgress returns the progress of all imports, newest first. It takes a few requests, and as many as
// [Queue.Progress] for each import that is not over. A damaged import has its error in Damaged; the other errors are
// those of Progress.
func (q *Queue) AllProgress(ctx context.Context) ([]Progress, error) {
	imports, err := q.Imports(ctx)
	if err != nil {
		return nil, err
	}
	open, err := q.OpenImports(ctx)
	if err != nil {
		return nil, err
	}
	results, err := q.conn.StreamState(ctx, q.resultsStream(), q.resultSubject("*", "*"))
	if err != nil {
		return nil, err
	}
	all := make([]Progress, 0, len(imports))
	for _, i := range imports {
		there := int64(0)
		for _, kind := range outcomeKinds() {
			there += int64(results.Subjects[q.resultSubject(i.ID, kind)])
		}
		p := Progress{Import: i, Counts: i.Counts}
		_, isOpen := slices.BinarySearch(open, i.ID)
		if isOpen || !i.State.Over() || there != i.Counts.Results { // its record is not final
			if p, err = q.Progress(ctx, i.ID); errors.Is(err, ErrNoImport) {
				continue // it was deleted just now
			}
			if _, damaged := errors.AsType[*broker.DamagedError](err); damaged {
				p.Damaged, err = err, nil
			}
			if err != nil {
				return nil, err
			}
		}
		all = append(all, p)
	}
	return all, nil
}
