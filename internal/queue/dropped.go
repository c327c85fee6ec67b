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
	s, err := d.q.conn.StreamState(ctx, d.q.jobsStream(), d.q.jobsSubject(d.id))
	if err != nil {
		return err
	}
	scan := resultScan{q: d.q, id: d.id}
	var unreadable int64
	err = scan.run(ctx, func(m stored) error {
		if !d.from.has(m.seq) {
			return nil
		}
		j, err := job.Decode(m.Data)
		switch {
		case errors.Is(err, job.ErrVersion):
			return err
		case err != nil:
			unreadable++
		case !yield(j, nil):
			return errStopped
		}
		return nil
	})
	if err != nil {
		return err
	}
	if missing := int64(s.Subjects[d.q.jobsSubject(d.id)]) - scan.read + unreadable; missing > 0 {
		if now, err := d.q.Import(ctx, d.id); err != nil || now.State == Deleting {
			return errors.Join(err, fmt.Errorf("read dropped jobs: %w: %s was deleted", ErrNoImport, d.id))
		}
		return d.q.jobsDamaged(d.id, fmt.Sprintf("%d of its dropped jobs cannot be read", missing))
	}
	return nil
}
