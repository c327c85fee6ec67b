package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"groupferry/internal/governor"
)

// leaseKey is the one key of the lease bucket.
const leaseKey = "governor"

// A Link carries the lease and the messages of the fleet that works on this queue, for [governor.Join]. The lease is
// in a bucket of its own, without an age: who leads is judged by whether it changes, not by a clock of the server.
// Messages are plain NATS ones, which nobody keeps.
type Link struct {
	q      *Queue
	bucket jetstream.KeyValue

	// The server is asked for its time only when the lease has changed.
	revision uint64
	age      time.Duration
	at       time.Time
}

// Link makes sure that the lease bucket is there. A link is for one member.
func (q *Queue) Link(ctx context.Context) (*Link, error) {
	var bucket jetstream.KeyValue
	err := q.ask(ctx, func(c context.Context) (err error) {
		bucket, err = q.leaseBucket(c)
		return err
	})
	if err != nil {
		return nil, q.fault(ctx, "open the lease", err)
	}
	return &Link{q: q, bucket: bucket}, nil
}

func (q *Queue) leaseBucket(c context.Context) (jetstream.KeyValue, error) {
	name := q.cfg.Namespace + "-lease"
	bucket, err := q.js.KeyValue(c, name)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		bucket, err = q.js.CreateKeyValue(c, jetstream.KeyValueConfig{
			Bucket:      name,
			Description: "groupferry: who leads the governor",
			History:     1,
			Replicas:    q.cfg.Replicas,
			Storage:     jetstream.FileStorage,
		})
		if errors.Is(err, jetstream.ErrBucketExists) { // another member was quicker
			bucket, err = q.js.KeyValue(c, name)
		}
	}
	return bucket, err
}

// Lease is part of [governor.Link].
func (l *Link) Lease(ctx context.Context) (lease []byte, revision uint64, age time.Duration, err error) {
	c, cancel := l.q.within(ctx)
	defer cancel()
	entry, err := l.bucket.Get(c, leaseKey)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, 0, 0, nil
	}
	if err != nil {
		return nil, 0, 0, l.q.fault(ctx, "read the lease", err)
	}
	if entry.Revision() != l.revision {
		now, err := l.serverTime(c)
		if err != nil {
			return nil, 0, 0, l.q.fault(ctx, "read the lease", err)
		}
		l.revision, l.age, l.at = entry.Revision(), now.Sub(entry.Created()), time.Now()
	}
	return entry.Value(), entry.Revision(), l.age + time.Since(l.at), nil
}

// serverTime reads the clock that dates the lease.
func (l *Link) serverTime(ctx context.Context) (time.Time, error) {
	status, err := l.bucket.Status(ctx)
	if err != nil {
		return time.Time{}, err
	}
	s, ok := status.(*jetstream.KeyValueBucketStatus)
	if !ok || s.StreamInfo() == nil {
		return time.Time{}, errors.New("the server does not tell its time")
	}
	return s.StreamInfo().TimeStamp, nil
}

// PutLease is part of [governor.Link].
func (l *Link) PutLease(ctx context.Context, lease []byte, revision uint64) (uint64, error) {
	c, cancel := l.q.within(ctx)
	defer cancel()
	failpoint("lease-before")
	failInside("lease-inside")
	var next uint64
	var err error
	if revision == 0 {
		next, err = l.bucket.Create(c, leaseKey, lease)
	} else {
		next, err = l.bucket.Update(c, leaseKey, lease, revision)
	}
	if errors.Is(err, jetstream.ErrKeyExists) || lostRace(err) {
		return 0, governor.ErrLeaseMoved
	}
	if err != nil {
		return 0, l.q.fault(ctx, "write the lease", err)
	}
	failpoint("lease-after")
	return next, nil
}

func (l *Link) subject(member string) string { return l.q.subject("fleet", member) }

// Send is part of [governor.Link].
func (l *Link) Send(to string, message []byte) error {
	return l.q.nc.Publish(l.subject(to), message)
}

// Listen is part of [governor.Link].
func (l *Link) Listen(name string, heard func(message []byte)) (stop func(), err error) {
	sub, err := l.q.nc.Subscribe(l.subject(name), func(m *nats.Msg) { heard(m.Data) })
	if err != nil {
		return nil, fmt.Errorf("listen to the fleet: %w", err)
	}
	return func() { _ = sub.Unsubscribe() }, nil
}

var _ governor.Link = (*Link)(nil)
