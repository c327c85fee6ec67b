package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"groupferry/internal/job"
)

// RetryStats says what a retry put on the queue.
type RetryStats struct {
	Jobs          int64 // each has the failed conversations of one job
	Conversations int64 // that are retried
	Unreadable    int64 // failed jobs that cannot be retried because they could not be read
}

// Retry puts the failed and partial jobs of an import on the queue again. Each has the conversations that failed; if
// there are codes, only those that failed with one of them. The newest result of a job counts. Each job is put there
// exactly once, also after an earlier call was interrupted, and with any number of processes. Retry calls progress,
// unless it is nil, with the number of jobs on the queue.
//
// The import has to be complete; the error wraps [ErrUnfinished] when it is not, and [ErrCancelled] when it was
// cancelled, or the retry is, meanwhile. A night of a sync cannot be retried once a newer one has begun to take over from
// it: the error is a [*NewerNightError]. A retry that was cut off is resumed if the codes are the same. The record's
// Generation counts the retries. Where there are no such failures nothing is changed: that is no retry.
func (q *Queue) Retry(
	ctx context.Context, id string, codes []string, progress func(jobs int64),
) (Import, RetryStats, error) {
	rec, stats, err := q.retry(ctx, id, slices.Compact(slices.Sorted(slices.Values(codes))), progress)
	if err != nil {
		err = fmt.Errorf("retry import %s: %w", id, err)
	}
	return rec, stats, err
}

func (q *Queue) retry(
	ctx context.Context, id string, codes []string, progress func(jobs int64),
) (Import, RetryStats, error) {
	rec, stats, err := q.beginRetry(ctx, id, codes)
	if err != nil || rec.State != Retrying {
		return rec, stats, err
	}
	w := &writer{q: q, rec: rec, progress: progress}
	if err = w.open(ctx); err == nil && !w.last.Done {
		err = w.putFailures(ctx)
	}
	p := w.last
	stats = RetryStats{Jobs: p.Jobs, Conversations: p.Conversations, Unreadable: p.Unreadable}
	if errors.Is(err, errElsewhere) { // and it is over by now
		rec, err = q.Import(ctx, id)
		return rec, RetryStats{Jobs: rec.Retried}, err
	}
	if err != nil {
		return rec, stats, err
	}
	now, err := q.Update(ctx, id, func(i *Import) { i.enqueued(p) })
	if err == nil && now.State == Complete && p.Jobs == 0 {
		if err = q.completed(ctx, now); err == nil {
			now, err = q.Import(ctx, id)
		}
	}
	if err == nil && now.Incarnation != rec.Incarnation {
		err = fmt.Errorf("%w: it was deleted", ErrNoImport)
	}
	return now, stats, err
}

// beginRetry makes a complete import's record one that is being retried, or finds one that is already, for these codes.
// The record stays complete where there is nothing to retry; the stats then have what cannot be.
func (q *Queue) beginRetry(ctx context.Context, id string, codes []string) (Import, RetryStats, error) {
	none := RetryStats{}
	for {
		rec, err := q.Import(ctx, id)
		if err != nil {
			return rec, none, err
		}
		switch rec.State {
		case Complete:
		case Retrying:
			if !slices.Equal(rec.RetryCodes, codes) {
				return rec, none, fmt.Errorf("%w: a retry of %s was begun and not finished", ErrUnfinished, codeList(rec.RetryCodes))
			}
			return rec, none, nil
		case Cancelled:
			return rec, none, rec.cancelled()
		case Deleting:
			return rec, none, fmt.Errorf("%w: it is being deleted", ErrNoImport)
		default:
			return rec, none, fmt.Errorf("%w: it is %s", ErrUnfinished, rec.State)
		}
		// The end of the last generation may have been interrupted. After it there are no more results of the import
		// until there are jobs of the next generation.
		if err := q.finishEnd(ctx, rec); err != nil {
			return rec, none, err
		}
		if rec, err = q.Import(ctx, id); err != nil { // with the counts
			return rec, none, err
		}
		if rec.State != Complete { // another process retries it
			continue
		}
		s, err := q.conn.StreamState(ctx, q.resultsStream(), q.resultSubject(id, "*"))
		if err != nil {
			return rec, none, err
		}
		var results, failures int64
		for _, kind := range job.Outcomes {
			n := int64(s.Subjects[q.resultSubject(id, string(kind))])
			if results += n; kind != job.Done {
				failures += n
			}
		}
		if results != rec.Counts.Results {
			now, err := q.Import(ctx, id)
			if err == nil && now.State == Complete && now.same(&rec) {
				err = q.lost(id, "it had %d results when it was complete, and %d are there", rec.Counts.Results, results)
			}
			if err != nil {
				return rec, none, err
			}
			continue
		}
		if found, unreadable, err := q.hasFailures(ctx, rec, codes, s.LastSeq, failures); err != nil || !found {
			return rec, RetryStats{Unreadable: unreadable}, err
		}
		changed, newer := false, false
		now, err := q.Update(ctx, id, func(i *Import) {
			newer = i.State == Complete && i.NextNight > 0
			if changed = i.State == Complete && i.same(&rec) && !newer; !changed {
				return
			}
			i.State, i.Generation, i.RetryCodes = Retrying, i.Generation+1, codes
			i.RetryFrom, i.RetryOf, i.Retried = s.LastSeq, failures, 0
			if i.FirstRetry == 0 {
				i.FirstRetry = i.RetryFrom
			}
			i.Enqueued, i.Completed, i.Counts = time.Time{}, time.Time{}, Counts{}
		})
		if err != nil {
			return rec, none, err
		}
		if newer {
			return now, none, now.newer()
		}
		if !changed { // another process retries it, or deletes it
			continue
		}
		return now, none, nil
	}
}

// hasFailures tells whether there is something to retry in a complete import, among so many results of partial and failed
// jobs up to a sequence; it reads to the first one. If there is nothing, it counts those that could not be read.
func (q *Queue) hasFailures(
	ctx context.Context, rec Import, codes []string, upTo uint64, failures int64,
) (found bool, lost int64, err error) {
	if failures == 0 {
		return false, 0, nil
	}
	replaced, err := q.replacedResults(ctx, &rec, upTo)
	if err != nil {
		return false, 0, err
	}
	rec.RetryCodes = codes
	scan := resultScan{q: q, id: rec.ID, outcomes: []job.Outcome{job.Partial, job.Failed}, upTo: upTo}
	var refused error
	err = scan.run(ctx, func(m stored) error {
		if _, old := slices.BinarySearch(replaced, m.seq); old {
			return nil
		}
		r, err := job.DecodeResult(m.Data)
		if err != nil {
			refused = fmt.Errorf("result %d: %w", m.seq, err)
			return errStopped
		}
		if unreadable(&r) {
			lost++
		}
		if found = len(retryJob(&rec, m.seq, &r).Conversations) > 0; found {
			return errStopped
		}
		return nil
	})
	switch {
	case refused != nil:
		return false, 0, refused
	case found:
		return true, 0, nil
	case err == nil && scan.read < failures:
		now, err := q.Import(ctx, rec.ID)
		if err != nil || now.State != Complete || !now.same(&rec) { // another process deletes it, or retries it: the update finds that
			return true, 0, err
		}
		return false, lost, q.lost(rec.ID, "%d results of partial and failed jobs can be read, of %d", scan.read, failures)
	}
	return false, lost, err
}

func codeList(codes []string) string {
	if len(codes) == 0 {
		return "all codes"
	}
	return "the codes " + strings.Join(codes, ",")
}

// putFailures takes a job for each failed result, after the results that were read earlier:
//
//	results of the import  ──── last.After ─────────── source.After ─────────► RetryFrom
//	                       done │ their jobs wait      │ not read yet
//
// The results, and so the jobs and their order, are the same each time.
func (w *writer) putFailures(ctx context.Context) (err error) {
	if w.chain, err = parseChain(w.last.Digest); err != nil {
		return err
	}
	w.seen, w.source = w.last.Jobs, checkpoint{
		After: w.last.After, Looked: w.last.Looked, Conversations: w.last.Conversations, Unreadable: w.last.Unreadable,
	}
	// Ignore results of the present retry: they would change the list of its jobs.
	replaced, err := w.q.replacedResults(ctx, &w.rec, w.rec.RetryFrom)
	if err != nil {
		return err
	}
	scan := resultScan{
		q: w.q, id: w.rec.ID, outcomes: []job.Outcome{job.Partial, job.Failed}, next: w.source.After + 1, upTo: w.rec.RetryFrom,
	}
	var takeErr error
	err = scan.run(ctx, func(m stored) error {
		if takeErr = w.takeFailure(ctx, m, replaced); takeErr != nil {
			return errStopped
		}
		return nil
	})
	if takeErr != nil {
		return takeErr
	}
	if err != nil {
		return err
	}
	if w.source.Looked != w.rec.RetryOf {
		if now, err := w.q.Import(ctx, w.rec.ID); err != nil || !now.live() || !now.same(&w.rec) {
			return w.q.notLive(ctx, &w.rec) // it was deleted while its results were read
		}
		return w.q.lost(w.rec.ID, "%d results of partial and failed jobs can be read, of %d", w.source.Looked, w.rec.RetryOf)
	}
	w.source.After = w.rec.RetryFrom
	return w.commit(ctx, true)
}

// takeFailure reads one result, and takes a job for the failed conversations in it.
func (w *writer) takeFailure(ctx context.Context, m stored, replaced []uint64) error {
	w.source.After = m.seq
	w.source.Looked++
	if _, found := slices.BinarySearch(replaced, m.seq); found {
		return nil
	}
	r, err := job.DecodeResult(m.Data)
	if err != nil {
		return fmt.Errorf("result %d: %w", m.seq, err)
	}
	if unreadable(&r) {
		w.source.Unreadable++
	}
	j := retryJob(&w.rec, m.seq, &r)
	if len(j.Conversations) == 0 {
		return nil
	}
	for _, c := range j.Conversations {
		if c.Op != job.Keep {
			w.source.Conversations++
		}
	}
	return w.take(ctx, &j)
}

// retryJob makes a job of the failed conversations in a result that have one of the codes, with what the result keeps for
// it. It may have none.
func retryJob(rec *Import, seq uint64, r *job.Result) job.Job {
	j := job.Job{
		Import: rec.ID, ID: r.Job, FromAccount: r.FromAccount, GroupName: r.GroupName,
		OldName: r.Rename, Delete: r.Delete, Generation: rec.Generation, Prior: seq,
	}
	wanted := func(code string) bool {
		return code != "" && (len(rec.RetryCodes) == 0 || slices.Contains(rec.RetryCodes, code))
	}
	for _, c := range r.Conversations {
		if wanted(c.Code) {
			j.Conversations = append(j.Conversations, c.Conversation)
		}
	}
	if len(j.Conversations) > 0 || r.Rename != "" && wanted(r.Code) {
		j.Conversations = append(j.Conversations, r.Keep...)
	}
	return j
}

// unreadable reports whether nothing is known of what a failed job was to do.
func unreadable(r *job.Result) bool { return len(r.Conversations) == 0 && r.Rename == "" }
