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
	Jobs          int64 // each with what failed of a job
	Conversations int64 // that failed, and are wanted again
	Unreadable    int64 // failed jobs that cannot be retried: they could not be read
}

// Retry puts the failed and partial jobs of an import on the queue again, each with the conversations that failed; if
// codes are given, with those alone that failed with one of them. What counts is the newest result of a job. Each is put
// there exactly once, wherever an earlier call was cut off, and however many processes call it; progress, unless nil, gets
// how many there are.
//
// The import has to be complete; the error wraps [ErrUnfinished] when it is not, and [ErrCancelled] when it was
// cancelled, or the retry is, meanwhile. A night of a sync cannot be retried once a newer one has begun to take over from
// it: the error is a [*NewerNightError]. A retry that was cut off is resumed if the codes are the same. The record's
// Generation counts the retries. A retry for which there are no such failures leaves the import complete.
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
	rec, err := q.beginRetry(ctx, id, codes)
	if err != nil {
		return rec, RetryStats{}, err
	}
	w := &writer{q: q, rec: rec, progress: progress}
	if err = w.open(ctx); err == nil && !w.last.Done {
		err = w.putFailures(ctx)
	}
	p := w.last
	stats := RetryStats{Jobs: p.Jobs, Conversations: p.Conversations, Unreadable: p.Unreadable}
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
func (q *Queue) beginRetry(ctx context.Context, id string, codes []string) (Import, error) {
	for {
		rec, err := q.Import(ctx, id)
		if err != nil {
			return rec, err
		}
		switch rec.State {
		case Complete:
		case Retrying:
			if !slices.Equal(rec.RetryCodes, codes) {
				return rec, fmt.Errorf("%w: a retry of %s was begun and not finished", ErrUnfinished, codeList(rec.RetryCodes))
			}
			return rec, nil
		case Cancelled:
			return rec, rec.cancelled()
		case Deleting:
			return rec, fmt.Errorf("%w: it is being deleted", ErrNoImport)
		default:
			return rec, fmt.Errorf("%w: it is %s", ErrUnfinished, rec.State)
		}
		// The end of the generation before may have been cut off. After it, no result of the import comes any more, until
		// there are jobs of the next one.
		if err := q.finishEnd(ctx, rec); err != nil {
			return rec, err
		}
		if rec, err = q.Import(ctx, id); err != nil { // with the counts
			return rec, err
		}
		if rec.State != Complete { // another process retries it
			continue
		}
		s, err := q.conn.StreamState(ctx, q.resultsStream(), q.resultSubject(id, "*"))
		if err != nil {
			return rec, err
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
				err = lost(id, "it had %d results when it was complete, and %d are there", rec.Counts.Results, results)
			}
			if err != nil {
				return rec, err
			}
			continue
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
			return rec, err
		}
		if newer {
			return now, now.newer()
		}
		if !changed { // another process retries it, or deletes it
			continue
		}
		return now, nil
	}
}

func codeList(codes []string) string {
	if len(codes) == 0 {
		return "all codes"
	}
	return "the codes " + strings.Join(codes, ",")
}

// putFailures takes a job for each result that failed, after those that were looked at before:
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
	// Results of the present retry do not count: they would change what it is about.
	replaced, err := w.q.replacedResults(ctx, &w.rec, w.rec.RetryFrom)
	if err != nil {
		return err
	}
	scan := resultScan{
		q: w.q, id: w.rec.ID, outcomes: []job.Outcome{job.Partial, job.Failed}, next: w.source.After + 1, upTo: w.rec.RetryFrom,
	}
	var refused error
	err = scan.run(ctx, func(m stored) error {
		if refused = w.takeFailure(ctx, m, replaced); refused != nil {
			return errStopped
		}
		return nil
	})
	if refused != nil {
		return refused
	}
	if err != nil {
		return err
	}
	if w.source.Looked != w.rec.RetryOf {
		if now, err := w.q.Import(ctx, w.rec.ID); err != nil || !now.live() || !now.same(&w.rec) {
			return w.q.notLive(ctx, &w.rec) // it was deleted while its results were read
		}
		return lost(w.rec.ID, "%d results of partial and failed jobs can be read, of %d", w.source.Looked, w.rec.RetryOf)
	}
	w.source.After = w.rec.RetryFrom
	return w.commit(ctx, true)
}

// takeFailure looks at one result, and takes a job for what failed in it.
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
	if len(r.Conversations) == 0 {
		w.source.Unreadable++
	}
	j := retryJob(&w.rec, m.seq, &r)
	if len(j.Conversations) == 0 {
		return nil
	}
	w.source.Conversations += int64(len(j.Conversations))
	return w.take(ctx, &j)
}

// retryJob makes a job of what failed in a result, if anything did that is wanted.
func retryJob(rec *Import, seq uint64, r *job.Result) job.Job {
	j := job.Job{
		Import: rec.ID, ID: r.Job, FromAccount: r.FromAccount, GroupName: r.GroupName,
		Generation: rec.Generation, Prior: seq, Files: r.Files,
	}
	for _, c := range r.Conversations {
		if c.Code != "" && (len(rec.RetryCodes) == 0 || slices.Contains(rec.RetryCodes, c.Code)) {
			j.Conversations = append(j.Conversations, c.Conversation)
		}
	}
	return j
}
