package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// inHandAtMost is how long after a cancel a worker that had a job in hand may still write its result: every try of
// every call of the largest job takes less.
const inHandAtMost = 10 * time.Minute

// Forget removes an import with its results, its checkpoints and its record, so that nothing of it is left; its ID is
// free again. The error wraps [ErrUnfinished] while the import is not over, or a result of it may still come. Where it
// was cut off, the next call, or the next [Queue.Begin] of the same import, goes on.
func (q *Queue) Forget(ctx context.Context, id string) error {
	i, err := q.Update(ctx, id, func(i *Import) {
		if i.State.Over() && !i.mayChange() {
			i.State = Forgetting
		}
	})
	switch {
	case err != nil:
		return err
	case !i.State.Over():
		return fmt.Errorf("forget import %s: %w: it is %s", id, ErrUnfinished, i.State)
	case i.State != Forgetting:
		return fmt.Errorf("forget import %s: %w: workers had %d jobs of it in hand when it was cancelled, and may end "+
			"them until %s", id, ErrUnfinished, i.InHand, i.Completed.Add(inHandAtMost).Local().Format(time.TimeOnly))
	}
	if err := q.drop(ctx, id, 0); err != nil {
		return err
	}
	doing := "forget import " + id
	for _, p := range []struct {
		stream  jetstream.Stream
		subject string
	}{
		{q.results, q.resultSubject(id, "*")},
		{q.jobs, q.retryPointSubject(id)},
		{q.jobs, q.checkpointSubject(id)},
	} {
		failpoint("forget-before")
		failInside("forget-inside")
		err := q.ask(ctx, func(c context.Context) error {
			return p.stream.Purge(c, jetstream.WithPurgeSubject(p.subject))
		})
		if err != nil {
			return q.fault(ctx, doing, err)
		}
	}
	failpoint("forget-after")
	for _, key := range []string{tallyKey(id), importKey(id)} { // the record last: it says what is still to be done
		failpoint("forget-record-before")
		err := q.ask(ctx, func(c context.Context) error { return q.control.Purge(c, key) })
		if err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) {
			return q.fault(ctx, doing, err)
		}
		failpoint("forget-record-after")
	}
	return nil
}

// mayChange tells whether a result may still come though the import is over.
func (i *Import) mayChange() bool {
	return i.State.Over() && i.InHand > 0 && time.Since(i.Completed) < inHandAtMost
}

// ForgetOlder forgets the imports that were over longer ago than age, and returns their IDs.
func (q *Queue) ForgetOlder(ctx context.Context, age time.Duration) ([]string, error) {
	all, err := q.Imports(ctx)
	if err != nil {
		return nil, err
	}
	var gone []string
	for _, i := range all {
		if !i.State.Over() || time.Since(i.Completed) < age || i.mayChange() {
			continue
		}
		if err := q.Forget(ctx, i.ID); err != nil && !errors.Is(err, ErrNoImport) {
			return gone, err
		}
		gone = append(gone, i.ID)
	}
	return gone, nil
}
