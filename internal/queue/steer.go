package queue

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// ErrCancelled is wrapped by the error of an [Queue.Enqueue] of an import that somebody cancelled.
var ErrCancelled = errors.New("the import was cancelled")

const (
	rateKey = "rate"

	// pausedFor is how long the server pauses a consumer at a time: for good, as people count.
	pausedFor = 100 * 365 * 24 * time.Hour
)

// PauseImport lets no worker take a job of the import until [Queue.ResumeImport]. Jobs in hand end as they will.
func (q *Queue) PauseImport(ctx context.Context, id string) error {
	return q.steer(ctx, id, true, func(c context.Context) error { return q.pauseConsumer(c, id) })
}

func (q *Queue) pauseConsumer(c context.Context, id string) error {
	_, err := q.jobs.PauseConsumer(c, consumerName(id), time.Now().Add(pausedFor))
	return err
}

// ResumeImport ends a pause of the import.
func (q *Queue) ResumeImport(ctx context.Context, id string) error {
	return q.steer(ctx, id, false, func(c context.Context) error {
		_, err := q.jobs.ResumeConsumer(c, consumerName(id))
		return err
	})
}

// steer notes in the record that an import is paused, or not, and tells its consumer. The record comes first: whoever
// is cut off in between says it again, and both are as they should be.
func (q *Queue) steer(ctx context.Context, id string, paused bool, tell func(context.Context) error) error {
	if _, err := q.Update(ctx, id, func(i *Import) { i.Paused = paused && !i.State.Over() }); err != nil {
		return err
	}
	err := q.ask(ctx, tell)
	if errors.Is(err, jetstream.ErrConsumerNotFound) { // nothing of it is on the queue
		return nil
	}
	return q.fault(ctx, "steer import "+id, err)
}

// Cancel drops the jobs of an import that nobody has in hand; what is in hand ends, and its results are kept. The
// record says how many jobs were dropped: those without a result. A retry that is cancelled leaves the import complete,
// with the failures that it did not get to.
func (q *Queue) Cancel(ctx context.Context, id string) error {
	// What comes after this is not cancelled: jobs of a retry that somebody begins as soon as the record is written.
	upTo, err := q.lastOf(ctx, q.jobs)
	if err != nil {
		return q.fault(ctx, "cancel import "+id, err)
	}
	i, err := q.Update(ctx, id, func(i *Import) {
		switch {
		case i.State.Over():
		case i.Round > 0:
			i.State, i.Completed, i.Paused = Complete, time.Now().UTC(), false
		default:
			i.State, i.Completed, i.Paused = Cancelled, time.Now().UTC(), false
		}
	})
	if err != nil {
		return err
	}
	if i.State != Cancelled && i.Round == 0 {
		return fmt.Errorf("cancel import %s: it is %s already", id, i.State)
	}
	inHand, err := q.haltDeliveries(ctx, id)
	if err != nil {
		return err
	}
	if inHand > 0 { // noted before their consumer goes, for then nobody can count them
		_, err = q.Update(ctx, id, func(i *Import) {
			if i.State.Over() {
				i.InHand = max(i.InHand, inHand)
			}
		})
		if err != nil {
			return err
		}
	}
	return q.drop(ctx, id, upTo)
}

// haltDeliveries lets nobody take a job of an import any more, and counts those that some worker has in hand.
func (q *Queue) haltDeliveries(ctx context.Context, id string) (inHand int64, err error) {
	failpoint("drop-pause-before")
	err = q.ask(ctx, func(c context.Context) error {
		if err := q.pauseConsumer(c, id); err != nil {
			return err
		}
		consumer, err := q.jobs.Consumer(c, consumerName(id))
		if err == nil {
			inHand = int64(consumer.CachedInfo().NumAckPending)
		}
		return err
	})
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return 0, nil
	}
	return inHand, q.fault(ctx, "drop the jobs of import "+id, err)
}

// drop takes the jobs of an import, up to a sequence or, if that is 0, all, and its consumer off the queue.
func (q *Queue) drop(ctx context.Context, id string, upTo uint64) error {
	if err := q.purgeJobs(ctx, id, upTo); err != nil {
		return err
	}
	return q.deleteConsumer(ctx, id)
}

// Rate reads how many calls a second somebody has allowed for the fleet; 0 when nobody has.
func (q *Queue) Rate(ctx context.Context) (int, error) {
	var e jetstream.KeyValueEntry
	err := q.ask(ctx, func(c context.Context) (err error) {
		e, err = q.control.Get(c, rateKey)
		return err
	})
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, q.fault(ctx, "read rate", err)
	}
	n, err := strconv.Atoi(string(e.Value()))
	if err != nil || n < 0 {
		return 0, fmt.Errorf("read rate: %q is no number of calls", e.Value())
	}
	return n, nil
}

// SetRate allows so many calls a second for the fleet, whatever its workers were started with; 0 leaves it to them.
func (q *Queue) SetRate(ctx context.Context, calls int) error {
	if calls < 0 {
		return fmt.Errorf("set rate: %d calls a second", calls)
	}
	err := q.ask(ctx, func(c context.Context) error {
		_, err := q.control.Put(c, rateKey, []byte(strconv.Itoa(calls)))
		return err
	})
	return q.fault(ctx, "set rate", err)
}
