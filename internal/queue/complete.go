package queue

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"groupferry/internal/job"
)

// purgeTime is how long the server may take to drop the jobs of an import: it looks at each of them, and a million are
// a few gigabytes.
const purgeTime = 2 * time.Minute

// Complete marks an import as done with and takes its jobs and its consumer off the queue. The error wraps
// [ErrUnfinished] unless all of its jobs were enqueued and all have a result. Doing it again does no harm.
func (q *Queue) Complete(ctx context.Context, id string) error {
	i, err := q.Import(ctx, id)
	if err != nil {
		return err
	}
	switch i.State {
	case Enqueueing:
		return fmt.Errorf("complete import %s: %w: it is still being enqueued", id, ErrUnfinished)
	case Retrying:
		return fmt.Errorf("complete import %s: %w: a retry was begun and not ended, 'groupferry retry %s' goes on",
			id, ErrUnfinished, id)
	case Enqueued:
		// Jobs after this one are those of a retry, which another process may begin as soon as the import is complete.
		upTo, err := lastOf(ctx, q, q.jobs)
		if err != nil {
			return q.fault(ctx, "complete import "+id, err)
		}
		left, err := q.unsettled(ctx, i)
		if err != nil {
			return err
		}
		if left > 0 {
			return fmt.Errorf("complete import %s: %w: %d jobs left", id, ErrUnfinished, left)
		}
		if err := q.purgeJobs(ctx, id, upTo); err != nil {
			return err
		}
		round := i.Round
		i, err = q.Update(ctx, id, func(i *Import) {
			if i.State == Enqueued && i.Round == round {
				i.State, i.Completed = Complete, time.Now().UTC()
			}
		})
		if err != nil {
			return err
		}
	}
	if !i.State.Over() { // somebody retries it
		return nil
	}
	return q.deleteConsumer(ctx, id)
}

// Settled tells whether nothing is left to do for an import: all of its jobs have a result, or it was cancelled. While
// it is being enqueued nobody knows, and the answer is whether it has no job on the queue.
func (q *Queue) Settled(ctx context.Context, id string) (bool, error) {
	i, err := q.Import(ctx, id)
	if err != nil || i.State.Over() {
		return err == nil, err
	}
	if i.State == Enqueued {
		left, err := q.unsettled(ctx, i)
		return err == nil && left == 0, err
	}
	pending, inHand, err := q.Pending(ctx, id)
	return err == nil && pending+inHand == 0, err
}

// unsettled counts the jobs of an enqueued import that have no result, or says that there are some.
//
// While the consumer has jobs to give that tells. Then the results are counted, for what a consumer knows is written
// down by and by: after a crash of the server it takes jobs for being in hand that were acknowledged, and a job that it
// took for done by mistake would be lost. If it has none to give, none in hand, and results are missing all the same,
// all jobs are given out again, and those that have a result are acknowledged for it.
func (q *Queue) unsettled(ctx context.Context, i Import) (int64, error) {
	kept, err := q.onStream(ctx, i.ID)
	if err != nil || !q.keeps { // on a work queue what is left is all that there is to know
		return kept, err
	}
	pending, inHand, err := q.Pending(ctx, i.ID)
	if err != nil || pending > 0 {
		return pending + inHand, err
	}
	wanted, after := i.Jobs, uint64(0)
	if i.Round > 0 {
		wanted, after = i.Retried, i.RetryFrom
	}
	results, err := q.countResults(ctx, i.ID, jetstream.ConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: after + 1,
	})
	if err != nil {
		return 0, err
	}
	missing := wanted - results
	if inHand > 0 {
		// What is no job of ours gets a result as well, and must not stand for one that is in hand.
		return min(inHand, max(missing, kept-results, 0)), nil
	}
	if missing <= 0 {
		return 0, nil
	}
	if kept == 0 {
		return 0, fmt.Errorf("import %s: %d of its jobs have no result and are not on the queue any more: "+
			"cancel and forget it, then import its files again", i.ID, missing)
	}
	q.log.Warn("some jobs were taken for done that have no result; giving all out again", "import", i.ID, "jobs", missing)
	if err := q.deleteConsumer(ctx, i.ID); err != nil {
		return 0, err
	}
	return missing, q.makeConsumer(ctx, i, 0)
}

// countResults counts the results of an import from where a consumer would begin; the server counts, and none is read.
func (q *Queue) countResults(ctx context.Context, id string, from jetstream.ConsumerConfig) (int64, error) {
	doing := "count results of import " + id
	if !job.ValidImportID(id) {
		return 0, fmt.Errorf("%s: %w", doing, ErrNoImport)
	}
	c, cancel := q.within(ctx)
	defer cancel()
	from.FilterSubject = q.resultSubject(id, "*")
	from.AckPolicy = jetstream.AckNonePolicy
	from.HeadersOnly = true
	from.MemoryStorage = true
	from.InactiveThreshold = time.Minute
	consumer, err := q.results.CreateConsumer(c, from)
	if err != nil {
		return 0, q.fault(ctx, doing, err)
	}
	info := consumer.CachedInfo()
	_ = q.results.DeleteConsumer(c, info.Name) // it would go by itself in a minute
	return int64(info.NumPending), nil
}

// Recent counts the results of an import that were written within the given time before now.
func (q *Queue) Recent(ctx context.Context, id string, window time.Duration) (int64, error) {
	since := time.Now().Add(-window)
	return q.countResults(ctx, id, jetstream.ConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &since,
	})
}

// onStream counts the jobs of an import on the stream, those in hand included.
func (q *Queue) onStream(ctx context.Context, id string) (int64, error) {
	c, cancel := q.within(ctx)
	defer cancel()
	subject := q.jobsSubject(id)
	info, err := q.jobs.Info(c, jetstream.WithSubjectFilter(subject))
	if err != nil {
		return 0, q.fault(ctx, "count jobs of import "+id, err)
	}
	return int64(info.State.Subjects[subject]), nil
}

// lastOf gives the sequence of the newest message of a stream.
func lastOf(ctx context.Context, q *Queue, s jetstream.Stream) (uint64, error) {
	c, cancel := q.within(ctx)
	defer cancel()
	info, err := s.Info(c)
	if err != nil {
		return 0, err
	}
	return info.State.LastSeq, nil
}

// purgeJobs drops the jobs of an import up to a sequence; all of them if that is 0.
func (q *Queue) purgeJobs(ctx context.Context, id string, upTo uint64) error {
	c, cancel := q.withinTime(ctx, purgeTime)
	defer cancel()
	opts := []jetstream.StreamPurgeOpt{jetstream.WithPurgeSubject(q.jobsSubject(id))}
	if upTo > 0 {
		opts = append(opts, jetstream.WithPurgeSequence(upTo+1)) // it drops what comes before
	}
	failpoint("drop-before")
	failInside("drop-inside")
	err := q.jobs.Purge(c, opts...)
	failpoint("drop-after")
	return q.fault(ctx, "drop the jobs of import "+id, err)
}
