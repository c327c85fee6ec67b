package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"groupferry/internal/job"
)

// ErrJobsGone is wrapped by the error of a [Queue.Settled] or [Queue.Complete] of an import with jobs that have no result
// and that nobody can be given any more. Waiting does not help.
var ErrJobsGone = errors.New("some of its jobs can get no result")

const (
	// countPause is how old a count of results may be while some worker has a job in hand.
	countPause = 2 * time.Second

	// giveOuts is how often one process gives out all jobs of an import again because some have no result. Once is what
	// it can take.
	giveOuts = 3
)

// purgeTime is how long the server may take to drop the jobs of an import: it looks at each of them, and a million are
// a few gigabytes.
const purgeTime = 2 * time.Minute

// Complete marks an import as done with and takes its jobs and its consumer off the queue. The error wraps
// [ErrUnfinished] unless all of its jobs were enqueued and all have a result. Doing it again does no harm.
func (q *Queue) Complete(ctx context.Context, id string) error {
	// Asked before the record: jobs after this one are of a later round than the record's, for another process may
	// complete the import at any time, and begin a retry.
	upTo, err := q.lastOf(ctx, q.jobs)
	if err != nil {
		return q.fault(ctx, "complete import "+id, err)
	}
	i, err := q.Import(ctx, id)
	if err != nil {
		return err
	}
	return q.complete(ctx, i, upTo)
}

// complete is Complete with the record as it was at some time, and the newest job of a time before.
func (q *Queue) complete(ctx context.Context, i Import, upTo uint64) error {
	id := i.ID
	switch i.State {
	case Enqueueing:
		return fmt.Errorf("complete import %s: %w: it is still being enqueued", id, ErrUnfinished)
	case Retrying:
		return fmt.Errorf("complete import %s: %w: a retry was begun and not ended, 'groupferry retry %s' goes on",
			id, ErrUnfinished, id)
	case Enqueued:
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
// it is being enqueued nobody knows, and the answer is whether no job waits or is in hand. The error wraps [ErrJobsGone]
// when that will never be.
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
// all jobs are given out again, and those that have a result are acknowledged for it. For that each job of an import has
// an ID of its own.
func (q *Queue) unsettled(ctx context.Context, i Import) (int64, error) {
	kept, err := q.onStream(ctx, i.ID)
	if err != nil || !q.keeps { // on a work queue what is left is all that there is to know
		return kept, err
	}
	pending, inHand, err := q.Pending(ctx, i.ID)
	if err != nil || pending > 0 {
		return pending + inHand, err
	}
	doubt := q.doubtOf(i)
	if inHand > 0 && !doubt.due() {
		return inHand, nil
	}
	missing, err := q.missing(ctx, i, kept)
	switch {
	case err != nil || missing == 0:
		return 0, err
	case inHand > 0:
		doubt.count()
		return min(inHand, missing), nil
	case kept == 0 && i.Round > 0:
		return 0, fmt.Errorf("import %s: %w: %d of the retry have none and are not on the queue: "+
			"cancel it, and retry it again", i.ID, ErrJobsGone, missing)
	case kept == 0:
		return 0, fmt.Errorf("import %s: %w: %d have none and are not on the queue: "+
			"cancel and forget it, then import its files again", i.ID, ErrJobsGone, missing)
	case !doubt.again():
		return 0, fmt.Errorf("import %s: %w: %d have none, though all were given out %d times",
			i.ID, ErrJobsGone, missing, giveOuts+1)
	}
	q.log.Warn("some jobs were taken for done that have no result; giving all out again", "import", i.ID, "jobs", missing)
	if err := q.deleteConsumer(ctx, i.ID); err != nil {
		return 0, err
	}
	return missing, q.makeConsumer(ctx, i.ID, 0)
}

// missing counts the jobs of an enqueued import that have no result of its round; kept are its jobs on the stream.
func (q *Queue) missing(ctx context.Context, i Import, kept int64) (int64, error) {
	todo, err := q.Todo(ctx, i)
	if err != nil {
		return 0, err
	}
	switch {
	case i.Round == 0:
		// What is no job of ours gets a result as well, and must not stand for one that has none.
		todo = max(todo, kept-(i.Jobs-todo))
	case i.Round > 1 && todo <= 0:
		// A retry before this one can have been cancelled, and a worker that had a job of it in hand write its result yet.
		results := int64(0)
		_, err = q.scan(ctx, i.ID, i.RetryFrom, true, func(m jetstream.Msg, _ *jetstream.MsgMetadata) error {
			if roundOf(m.Headers().Get(tallyHeader)) == i.Round {
				results++
			}
			return nil
		})
		todo = i.Retried - results
	}
	return max(todo, 0), err
}

// Todo counts the jobs of an enqueued import, or of its retry, without a result. Where an earlier retry was cancelled it
// can be too low: late results of that are not told apart.
func (q *Queue) Todo(ctx context.Context, i Import) (int64, error) {
	wanted := i.Jobs
	if i.Round > 0 {
		wanted = i.Retried
	}
	results, err := q.countResults(ctx, i.ID, jetstream.ConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: i.RetryFrom + 1,
	})
	return wanted - results, err
}

// A doubt is what this process remembers of a round of an import while it is not settled.
type doubt struct {
	mu      sync.Mutex
	round   int
	counted time.Time
	given   int // out again
}

func (q *Queue) doubtOf(i Import) *doubt {
	fresh := &doubt{round: i.Round}
	was, known := q.doubts.LoadOrStore(i.ID, fresh)
	if d := was.(*doubt); known && d.round == i.Round {
		return d
	}
	q.doubts.Store(i.ID, fresh)
	return fresh
}

// due tells whether results are to be counted again, after a count that found some missing.
func (d *doubt) due() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return time.Since(d.counted) >= countPause
}

func (d *doubt) count() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.counted = time.Now()
}

// again tells whether all jobs may be given out once more.
func (d *doubt) again() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.given++
	return d.given <= giveOuts
}

// countResults counts the results of an import from where a consumer would begin; the server counts, and none is read.
func (q *Queue) countResults(ctx context.Context, id string, from jetstream.ConsumerConfig) (int64, error) {
	doing := "count results of import " + id
	if !job.ValidImportID(id) {
		return 0, fmt.Errorf("%s: %w", doing, ErrNoImport)
	}
	from.FilterSubject = q.resultSubject(id, "*")
	from.AckPolicy = jetstream.AckNonePolicy
	from.HeadersOnly = true
	from.MemoryStorage = true
	from.InactiveThreshold = time.Minute
	var pending uint64
	err := q.ask(ctx, func(c context.Context) error {
		consumer, err := q.results.CreateConsumer(c, from)
		if err == nil {
			pending = consumer.CachedInfo().NumPending
			_ = q.results.DeleteConsumer(c, consumer.CachedInfo().Name) // it would go by itself in a minute
		}
		return err
	})
	return int64(pending), q.fault(ctx, doing, err)
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
	subject := q.jobsSubject(id)
	var info *jetstream.StreamInfo
	err := q.ask(ctx, func(c context.Context) (err error) {
		info, err = q.jobs.Info(c, jetstream.WithSubjectFilter(subject))
		return err
	})
	if err != nil {
		return 0, q.fault(ctx, "count jobs of import "+id, err)
	}
	return int64(info.State.Subjects[subject]), nil
}

// lastOf gives the sequence of the newest message of a stream.
func (q *Queue) lastOf(ctx context.Context, s jetstream.Stream) (uint64, error) {
	var last uint64
	err := q.ask(ctx, func(c context.Context) error {
		info, err := s.Info(c)
		if err == nil {
			last = info.State.LastSeq
		}
		return err
	})
	return last, err
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
