package queue

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"groupferry/internal/job"
)

// Dropped is what a cancel dropped. Its jobs stay on the stream until the import is deleted.
type Dropped struct {
	At   time.Time // when it was cancelled
	Jobs int64     // without a result; some of them may never have been on the queue

	q    *Queue
	id   string
	from dropped
}

// dropped says which jobs have no result: those from next on, and some below it.
type dropped struct {
	next       uint64
	unfinished sequences
}

// first is the lowest sequence that may be one of them.
func (d *dropped) first() uint64 {
	if len(d.unfinished) > 0 {
		return min(d.next, d.unfinished[0])
	}
	return d.next
}

func (d *dropped) has(seq uint64) bool {
	_, found := slices.BinarySearch(d.unfinished, seq)
	return found || seq >= d.next
}

// droppedFrom reads it from the last state of the import, after which no result comes any more.
func (q *Queue) droppedFrom(ctx context.Context, i *Import) (dropped, error) {
	s, _, err := q.lastState(ctx, i.ID)
	if err != nil || s == nil || s.Incarnation != i.Incarnation || s.Generation != i.Generation {
		return dropped{next: 1}, err
	}
	return dropped{max(s.Next, 1), s.Unfinished}, nil
}

// Dropped returns what the cancel of an import dropped; nil when it was not cancelled, or by the next night of its sync. The error wraps [ErrNoImport] when
// there is none, and [ErrUnfinished] when the cancel was cut off, and has to be called again.
func (q *Queue) Dropped(ctx context.Context, id string) (*Dropped, error) {
	i, err := q.Import(ctx, id)
	if err != nil || i.State != Cancelled || i.Superseded {
		return nil, err
	}
	if _, seq, err := q.checkpoint(ctx, id); err != nil {
		return nil, err
	} else if seq != 0 {
		return nil, fmt.Errorf("%w: its cancel is under way, or was cut off", ErrUnfinished)
	}
	if i, err = q.Import(ctx, id); err != nil { // with the final counts
		return nil, err
	}
	d := &Dropped{At: i.Completed, Jobs: i.Jobs - i.Counts.JobsWithResult(), q: q, id: id}
	d.from, err = q.droppedFrom(ctx, &i)
	return d, err
}

// All reads the jobs in the order in which they were enqueued. It keeps few of them in memory. An error is the last thing
// that it yields: it wraps [ErrNoImport] when the import was deleted meanwhile, and is a [*broker.DamagedError] when jobs
// cannot be read.
func (d *Dropped) All(ctx context.Context) iter.Seq2[job.Job, error] {
	return func(yield func(job.Job, error) bool) {
		yieldAll(yield, func(yield func(job.Job, error) bool) error { return d.read(ctx, yield) })
	}
}

func (d *Dropped) read(ctx context.Context, yield func(job.Job, error) bool) error {
	return d.q.readJobs(ctx, d.id, d.from, func(_ uint64, j *job.Job) error {
		if !yield(*j, nil) {
			return errStopped
		}
		return nil
	})
}

// UnderWay reads the jobs of an import that is over, have no result, and may have been handed out: what was in flight when
// it ended and its leader died. Their calls may have taken effect, or not. The jobs of a retry are gone when it is cut off:
// then it makes all of them again that have no result. The errors are those of [Dropped.All] and [Queue.Results].
func (q *Queue) UnderWay(ctx context.Context, i *Import) iter.Seq2[job.Job, error] {
	return func(yield func(job.Job, error) bool) {
		yieldAll(yield, func(yield func(job.Job, error) bool) error {
			if i.State == Complete && i.Generation > 0 {
				return q.retriesUnderWay(ctx, i, yield)
			}
			if i.State != Cancelled || i.Counts.JobsWithResult() == i.Jobs {
				return nil
			}
			s, _, err := q.lastState(ctx, i.ID)
			if err != nil {
				return err
			}
			handed, ahead := dropped{next: 1}, int64(minAhead) // before the first state of a generation
			if s != nil && s.Incarnation == i.Incarnation && s.Generation == i.Generation {
				handed, ahead = dropped{s.Next, s.Unfinished}, s.Ahead
			}
			return q.readJobs(ctx, i.ID, handed, func(seq uint64, j *job.Job) error {
				if j.Generation != i.Generation {
					return nil
				}
				if seq >= handed.next {
					if ahead--; ahead < 0 {
						return errStopped
					}
				}
				if !yield(*j, nil) {
					return errStopped
				}
				return nil
			})
		})
	}
}

// retriesUnderWay reads the jobs of a retry that is over and have no result.
func (q *Queue) retriesUnderWay(ctx context.Context, i *Import, yield func(job.Job, error) bool) error {
	var ended int64
	for r, err := range q.Results(ctx, i.ID) {
		if err != nil {
			return err
		}
		if r.Generation == i.Generation {
			ended++
		}
	}
	if !i.Enqueued.IsZero() && ended >= i.Retried {
		return nil
	}
	for r, err := range q.Results(ctx, i.ID, job.Partial, job.Failed) {
		if err != nil {
			return err
		}
		if r.Generation == i.Generation {
			continue
		}
		if j := retryJob(i, 0, &r); len(j.Conversations) > 0 && !yield(j, nil) {
			return nil
		}
	}
	return nil
}

// DropJobs removes the jobs of a night that was cut off by the next one, once the sync knows what was under way of it: the
// next night has what is wanted. It does nothing for other imports.
func (q *Queue) DropJobs(ctx context.Context, i *Import) error {
	if !i.Superseded {
		return nil
	}
	subject := q.jobsSubject(i.ID)
	s, err := q.conn.StreamState(ctx, q.jobsStream(), subject)
	if err != nil || s.Subjects[subject] == 0 {
		return err
	}
	return q.purgeJobs(ctx, subject, s.LastSeq)
}

// readJobs reads those jobs of an import that of has. It keeps few of them in memory. An error of each ends it;
// [errStopped] is none.
func (q *Queue) readJobs(ctx context.Context, id string, of dropped, each func(seq uint64, j *job.Job) error) error {
	s, err := q.conn.StreamState(ctx, q.jobsStream(), q.jobsSubject(id))
	if err != nil {
		return err
	}
	scan := resultScan{q: q, id: id}
	var unreadable int64
	err = scan.run(ctx, func(m stored) error {
		if !of.has(m.seq) {
			return nil
		}
		j, err := job.Decode(m.Data)
		switch {
		case errors.Is(err, job.ErrVersion):
			return err
		case err != nil:
			unreadable++
			return nil
		}
		return each(m.seq, &j)
	})
	if errors.Is(err, errStopped) {
		return nil
	}
	if err != nil {
		return err
	}
	there := int64(s.Subjects[q.jobsSubject(id)])
	if scan.read < there {
		// A deletion may be the reason, or the end of the import, which removes those that have a result.
		if now, err := q.Import(ctx, id); err != nil || now.State == Deleting {
			return errors.Join(err, fmt.Errorf("read jobs: %w: %s was deleted", ErrNoImport, id))
		}
		if s, err = q.conn.StreamState(ctx, q.jobsStream(), q.jobsSubject(id)); err != nil {
			return err
		}
		there = min(there, int64(s.Subjects[q.jobsSubject(id)]))
	}
	if missing := max(there-scan.read, 0) + unreadable; missing > 0 {
		return q.jobsDamaged(id, fmt.Sprintf("%d of its dropped jobs cannot be read", missing))
	}
	return nil
}
