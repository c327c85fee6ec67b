package queue

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"groupferry/internal/job"
)

// retryPointVersion is the version of a retry point that this package writes, and the newest that it reads.
const retryPointVersion = 1

// A retryPoint says how much of a retry is on the queue. It is written with the jobs that it counts, in one piece.
type retryPoint struct {
	Version int    `json:"v"`
	Round   int    `json:"round"`
	After   uint64 `json:"after"` // results up to this sequence were looked at
	Done    bool   `json:"done"`  // all were
	RetryStats
}

// RetryStats says what a retry put on the queue.
type RetryStats struct {
	Jobs          int64 `json:"jobs"`
	Conversations int64 `json:"conversations"` // that failed, and are wanted again
	Unreadable    int64 `json:"unreadable"`    // failed jobs that cannot be retried, for nobody could read them
}

// Retry puts the failed and partial jobs of an import on the queue again, with the conversations that failed alone; if
// codes are given, with those alone that failed with one of them. Each is put there exactly once, wherever an earlier
// call was cut off, and however many processes call it; progress, unless nil, hears how many there are.
//
// The import has to be complete; the error wraps [ErrUnfinished] when it is not, and [ErrCancelled] when it was
// cancelled. A retry that was cut off goes on, if the codes are the same. The record's Round tells the retries apart,
// and workers by it that a result is of an earlier one.
func (q *Queue) Retry(
	ctx context.Context, id string, codes []string, progress func(jobs int64),
) (Import, RetryStats, error) {
	var none RetryStats
	codes = slices.Compact(slices.Sorted(slices.Values(codes)))
	rec, err := q.Import(ctx, id)
	if err == nil && rec.State == Enqueued { // the last result may just have come
		if err = q.Complete(ctx, id); err == nil {
			rec, err = q.Import(ctx, id)
		}
	}
	if err != nil {
		return rec, none, err
	}
	switch rec.State {
	case Cancelled:
		return rec, none, fmt.Errorf("retry import %s: %w", id, ErrCancelled)
	case Complete, Retrying:
	default:
		return rec, none, fmt.Errorf("retry import %s: %w: it is %s", id, ErrUnfinished, rec.State)
	}
	if rec.State == Complete {
		// What was counted up to here is what the count goes on from while results are replaced.
		if _, err := q.Tally(ctx, id); err != nil {
			return rec, none, err
		}
		from, err := q.lastOf(ctx, q.results)
		if err != nil {
			return rec, none, q.fault(ctx, "retry import "+id, err)
		}
		round := rec.Round // another process can do a whole retry meanwhile
		rec, err = q.Update(ctx, id, func(i *Import) {
			if i.State == Complete && i.Round == round {
				i.State, i.Round, i.Retried, i.RetryCodes, i.InHand = Retrying, i.Round+1, 0, codes, 0
				i.Completed, i.RetryFrom = time.Time{}, from
			}
		})
		if err != nil {
			return rec, none, err
		}
	}
	if rec.State == Retrying && !slices.Equal(rec.RetryCodes, codes) {
		return rec, none, fmt.Errorf("retry import %s: %w: a retry of %s was begun and not ended",
			id, ErrUnfinished, codeList(rec.RetryCodes))
	}
	// Before the first job, so that no job is ever on the queue without one who would fetch it.
	if err := q.createConsumer(ctx, id, 0); err != nil {
		return rec, none, err
	}
	p, err := q.putRetries(ctx, rec, progress)
	if err != nil {
		return rec, p.RetryStats, err
	}
	round := rec.Round
	rec, err = q.Update(ctx, id, func(i *Import) {
		if i.State == Retrying && i.Round == round {
			i.State, i.Retried, i.Enqueued = Enqueued, p.Jobs, time.Now().UTC()
		}
	})
	switch {
	case err != nil:
	case rec.State.Over() && p.Jobs > 0: // done with, or cancelled, meanwhile
		err = q.drop(ctx, id, 0)
	case p.Jobs == 0:
		if err = q.Complete(ctx, id); err == nil {
			rec, err = q.Import(ctx, id)
		}
	}
	return rec, p.RetryStats, err
}

func codeList(codes []string) string {
	if len(codes) == 0 {
		return "all codes"
	}
	return "the codes " + strings.Join(codes, ",")
}

// retryPoint reads how far the last retry of an import is enqueued, and the sequence to compare with.
func (q *Queue) retryPoint(ctx context.Context, id string) (p retryPoint, seq uint64, err error) {
	what := "checkpoint of a retry of import " + id
	seq, err = q.readPoint(ctx, q.retryPointSubject(id), what, retryPointVersion, &p)
	return p, seq, err
}

// putRetries puts the jobs of the record's round on the queue that are not there yet. Whenever it is not known whether
// a piece arrived, or another process wrote one, it goes on from what the retry point says.
func (q *Queue) putRetries(ctx context.Context, rec Import, progress func(int64)) (retryPoint, error) {
	giveUp, seen := time.Now().Add(enqueuePatience), uint64(0)
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		p, seq, err := q.retryPoint(ctx, rec.ID)
		if err == nil {
			if p.Round > rec.Round || p.Round == rec.Round && p.Done {
				return p, nil
			}
			if p.Round < rec.Round {
				p = retryPoint{Version: retryPointVersion, Round: rec.Round}
			}
			if seq != seen {
				giveUp, seen = time.Now().Add(enqueuePatience), seq
			}
			r := retrier{q: q, rec: rec, at: p, seq: seq, progress: progress}
			if err = r.run(ctx); err == nil {
				return r.at, nil
			}
		}
		switch {
		case ctx.Err() != nil:
			return p, fmt.Errorf("retry import %s: %w", rec.ID, context.Cause(ctx))
		case !lostRace(err) && !transient(err), time.Now().After(giveUp):
			return p, q.fault(ctx, "retry import "+rec.ID, err)
		}
		pause(ctx, wait)
	}
}

// A retrier reads results and makes jobs of what failed:
//
//	results of the import  ──── at.After ───────────── looked ─────────►
//	                       done │ jobs waiting in msgs │ not read yet
type retrier struct {
	q        *Queue
	rec      Import
	progress func(int64)

	at     retryPoint // the newest known one
	seq    uint64     // its sequence
	looked uint64

	msgs  []*nats.Msg // waiting
	stats RetryStats  // of those
	bytes int
}

func (r *retrier) run(ctx context.Context) error {
	r.looked = r.at.After
	upTo, err := r.q.scan(ctx, r.rec.ID, r.at.After, false, func(m jetstream.Msg, meta *jetstream.MsgMetadata) error {
		result, err := job.DecodeResult(m.Data())
		if err != nil {
			return err
		}
		r.looked = meta.Sequence.Stream
		if result.Round >= r.rec.Round || result.Outcome == job.Done {
			return nil
		}
		r.take(&result)
		if len(r.msgs) == maxBatchJobs || r.bytes >= maxBatchBytes {
			return r.commit(ctx, false)
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.looked = max(r.looked, upTo)
	return r.commit(ctx, true)
}

// take makes a job of what failed in a result, if anything did that is wanted.
func (r *retrier) take(result *job.Result) {
	j := job.Job{
		Import: result.Import, ID: result.Job, FromAccount: result.FromAccount, GroupName: result.GroupName,
		Round: r.rec.Round, Files: result.Files,
	}
	for _, c := range result.Conversations {
		if c.Code != "" && (len(r.rec.RetryCodes) == 0 || slices.Contains(r.rec.RetryCodes, c.Code)) {
			j.Conversations = append(j.Conversations, c.Conversation)
		}
	}
	if len(result.Conversations) == 0 {
		r.stats.Unreadable++
	}
	if len(j.Conversations) == 0 {
		return
	}
	data := j.AppendJSON(nil)
	r.msgs = append(r.msgs, &nats.Msg{Subject: r.q.jobsSubject(r.rec.ID), Data: data, Header: nats.Header{}})
	r.bytes += len(data)
	r.stats.Jobs++
	r.stats.Conversations += int64(len(j.Conversations))
}

// commit puts what waits on the queue, with a retry point, all or nothing, and only if nobody else moved the point.
func (r *retrier) commit(ctx context.Context, done bool) error {
	c, cancel := r.q.withinTime(ctx, commitTimeout)
	defer cancel()
	next := r.at
	next.After, next.Done = r.looked, done
	next.Jobs += r.stats.Jobs
	next.Conversations += r.stats.Conversations
	next.Unreadable += r.stats.Unreadable
	data, err := json.Marshal(next)
	if err != nil {
		return err
	}
	last := &nats.Msg{
		Subject: r.q.retryPointSubject(r.rec.ID),
		Data:    data,
		Header: nats.Header{
			jetstream.ExpectedLastSubjSeqHeader: {strconv.FormatUint(r.seq, 10)},
			jetstream.MsgRollup:                 {jetstream.MsgRollupSubject},
		},
	}
	failpoint("retry-before")
	failInside("retry-inside")
	ack, err := jetstreamext.PublishMsgBatch(c, r.q.js, append(r.msgs, last))
	if err != nil {
		return err
	}
	failpoint("retry-after")
	r.at, r.seq = next, ack.Sequence
	r.msgs, r.stats, r.bytes = nil, RetryStats{}, 0
	if r.progress != nil {
		r.progress(r.at.Jobs)
	}
	return nil
}
