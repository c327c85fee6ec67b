package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"groupferry/internal/broker"
	"groupferry/internal/job"
)

const (
	// resultsAhead and resultsAheadBytes bound what one request for results brings.
	resultsAhead      = 256
	resultsAheadBytes = 1 << 20
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
// cancelled, or the retry is, meanwhile. A retry that was cut off is resumed if the codes are the same. The record's
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
	now, err := q.Update(ctx, id, func(i *Import) {
		i.enqueued(p)
		if p.Jobs == 0 && i.same(&rec) && i.live() { // nothing that a leader would have to do
			i.State, i.Completed, i.Paused = Complete, i.Enqueued, false
		}
	})
	if err == nil && now.State == Complete && p.Jobs == 0 {
		if err = q.finishEnd(ctx, now); err == nil {
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
			return rec, ErrCancelled
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
		changed := false
		now, err := q.Update(ctx, id, func(i *Import) {
			if changed = i.State == Complete && i.same(&rec); !changed {
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
	replaced, err := w.q.replaced(ctx, w.rec)
	if err != nil {
		return err
	}
	kinds := []job.Outcome{job.Partial, job.Failed}
	err = w.q.eachResult(ctx, w.rec.ID, kinds, w.source.After, w.rec.RetryFrom, func(seq uint64, r *job.Result) error {
		w.source.After = seq
		w.source.Looked++
		if _, found := slices.BinarySearch(replaced, seq); found {
			return nil
		}
		if len(r.Conversations) == 0 {
			w.source.Unreadable++
		}
		j := retryJob(&w.rec, seq, r)
		if len(j.Conversations) == 0 {
			return nil
		}
		w.source.Conversations += int64(len(j.Conversations))
		return w.take(ctx, &j)
	})
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

// replaced lists the results, by sequence and in order, that an earlier retry has replaced: 8 bytes of memory for each.
func (q *Queue) replaced(ctx context.Context, rec Import) ([]uint64, error) {
	var all []uint64
	if rec.FirstRetry >= rec.RetryFrom {
		return nil, nil
	}
	err := q.eachResult(ctx, rec.ID, job.Outcomes, rec.FirstRetry, rec.RetryFrom, func(_ uint64, r *job.Result) error {
		if r.Replaces != 0 {
			all = append(all, r.Replaces)
		}
		return nil
	})
	slices.Sort(all)
	return all, err
}

// eachResult reads the results of an import with some outcomes, after a sequence and up to another, in their order. It
// stops at the first error that each returns, and returns that.
func (q *Queue) eachResult(
	ctx context.Context, id string, outcomes []job.Outcome, after, upTo uint64, each func(seq uint64, r *job.Result) error,
) error {
	cursors := make([]*cursor, 0, len(outcomes))
	for _, o := range outcomes {
		c := &cursor{q: q, subject: q.resultSubject(id, string(o)), next: after + 1, upTo: upTo}
		cursors = append(cursors, c)
		m, err := q.conn.LastMsg(ctx, q.resultsStream(), c.subject)
		if err != nil && !errors.Is(err, broker.ErrNotFound) {
			return err
		}
		if err == nil {
			c.last = m.Sequence
		}
	}
	reader := q.newBatchReader(q.resultsStream())
	defer reader.close()
	for {
		var first *cursor
		for _, c := range cursors {
			if err := c.fill(ctx, reader); err != nil {
				return err
			}
			if len(c.ahead) > 0 && (first == nil || c.ahead[0].seq < first.ahead[0].seq) {
				first = c
			}
		}
		if first == nil {
			return nil
		}
		m := first.ahead[0]
		first.ahead = first.ahead[1:]
		r, err := job.DecodeResult(m.Data)
		if err != nil {
			return fmt.Errorf("result %d: %w", m.seq, err)
		}
		if err := each(m.seq, &r); err != nil {
			return err
		}
	}
}

// A cursor reads the messages with one subject of the results stream, in their order.
type cursor struct {
	q       *Queue
	subject string
	next    uint64 // where those begin that were not read
	last    uint64 // the last one that there is, as the stream's leader says
	upTo    uint64 // none after it is wanted
	ahead   []stored
}

// fill reads ahead if there is nothing ahead, and something left. A server that lags behind the leader is waited for.
func (c *cursor) fill(ctx context.Context, reader *batchReader) error {
	giveUp := time.Now().Add(patience)
	for len(c.ahead) == 0 && c.next <= min(c.last, c.upTo) {
		got, err := reader.read(ctx, c.next, c.subject, resultsAhead, resultsAheadBytes)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && (!broker.Unreachable(err) || time.Now().After(giveUp)):
			return c.q.fault(ctx, "read results", err)
		case len(got) == 0:
			// The leader knows whether that is the end: they may have been deleted meanwhile.
			m, err := c.q.conn.NextMsg(ctx, c.q.resultsStream(), c.next, c.subject)
			if errors.Is(err, broker.ErrNotFound) || err == nil && m.Sequence > c.upTo {
				c.last = 0
				return nil
			}
			if err == nil && time.Now().After(giveUp) {
				err = errors.New("no server gives it but the stream's leader")
			}
			if err != nil {
				return c.q.fault(ctx, fmt.Sprintf("read result %d", c.next), err)
			}
			if !pause(ctx, 50*time.Millisecond) {
				return context.Cause(ctx)
			}
			continue
		}
		c.next = got[len(got)-1].seq + 1
		for len(got) > 0 && got[len(got)-1].seq > c.upTo {
			got = got[:len(got)-1]
		}
		c.ahead = got
	}
	return nil
}
