package queue

import (
	"context"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"groupferry/internal/job"
)

// Recent counts the results of an import that were written within the given time before now. The server counts; no
// result is read.
func (q *Queue) Recent(ctx context.Context, importID string, window time.Duration) (int64, error) {
	doing := "count recent results of import " + importID
	if !job.ValidImportID(importID) {
		return 0, ErrNoImport
	}
	c, cancel := q.within(ctx)
	defer cancel()
	since := time.Now().Add(-window)
	consumer, err := q.results.CreateConsumer(c, jetstream.ConsumerConfig{
		FilterSubject:     q.resultSubject(importID, "*"),
		DeliverPolicy:     jetstream.DeliverByStartTimePolicy,
		OptStartTime:      &since,
		AckPolicy:         jetstream.AckNonePolicy,
		HeadersOnly:       true,
		MemoryStorage:     true,
		InactiveThreshold: time.Minute,
	})
	if err != nil {
		return 0, q.fault(ctx, doing, err)
	}
	info := consumer.CachedInfo()
	_ = q.results.DeleteConsumer(c, info.Name) // it would go by itself in a minute
	return int64(info.NumPending), nil
}
