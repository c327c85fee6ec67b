package broker

import (
	"context"
	"errors"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"groupferry/internal/lease"
)

const (
	leaseBucket = "lease"

	// LeaderLease and ReaderLease are the keys of the bucket: who leads, and who reads groups back beside the leader.
	LeaderLease = "leader"
	ReaderLease = "reader"
)

// A LeaseStore keeps the lease in a bucket of its own. It is safe for concurrent use.
type LeaseStore struct {
	c               *Conn
	stream, subject string
}

var _ lease.Store = (*LeaseStore)(nil)

// Lease makes sure that the bucket of the leases is there, as [Conn.EnsureStream] does, also with JoinOnly: whoever asks for
// one is going to write to it.
func (c *Conn) Lease(ctx context.Context, key string) (*LeaseStore, error) {
	if _, err := c.ensureBucket(ctx, leaseBucket, "groupferry: which process leads", false); err != nil {
		return nil, err
	}
	return c.LeaseOf(c.cfg.Namespace, key), nil
}

// LeaseOf is a lease of any namespace, to be read: nothing is made.
func (c *Conn) LeaseOf(namespace, key string) *LeaseStore {
	bucket := namespace + "-" + leaseBucket
	return &LeaseStore{c: c, stream: "KV_" + bucket, subject: "$KV." + bucket + "." + key}
}

// LeaseSubject is the subject that a lease is written to.
func (c *Conn) LeaseSubject(key string) string { return c.LeaseOf(c.cfg.Namespace, key).subject }

// Namespaces lists those of the server in which a process has stood for election, if the user may list streams.
func (c *Conn) Namespaces(ctx context.Context) (names []string, err error) {
	denied, err := c.Denies(ctx, []string{c.apiPrefix + "STREAM.NAMES"})
	if err != nil || len(denied) > 0 {
		return nil, err
	}
	err = c.Ask(ctx, func(ctx context.Context) error {
		names = nil
		list := c.js.StreamNames(ctx)
		for stream := range list.Name() {
			bucket, isBucket := strings.CutPrefix(stream, "KV_")
			if name, isLease := strings.CutSuffix(bucket, "-"+leaseBucket); isBucket && isLease {
				names = append(names, name)
			}
		}
		return list.Err()
	})
	return names, c.Fault(ctx, "list streams", err)
}

// Read is part of [lease.Store]: the stream's leader answers. The record of a lease that a person deleted is empty, and
// has a revision. A request is made once, and bounded by ctx and the life of the connection, five seconds at most.
func (s *LeaseStore) Read(ctx context.Context) (record []byte, revision uint64, err error) {
	bounded, cancel := s.c.Within(ctx, opTimeout)
	defer cancel()
	m, err := s.c.getOnce(bounded, s.stream, getRequest{LastFor: s.subject})
	none := errors.Is(err, ErrNotFound)
	if err != nil && !none {
		return nil, 0, s.failed(ctx, "read the lease", err)
	}
	s.c.inReach(true)
	if none {
		return nil, 0, nil
	}
	return m.Data, m.Sequence, nil
}

// Replace is part of [lease.Store]: it writes the record if its revision is still that one, and returns its new one;
// [lease.ErrMoved] if it is not. Revision 0 stands for no record. After any other error it is open whether the record was
// written, or will be: what waits for a connection is sent when there is one again.
func (s *LeaseStore) Replace(ctx context.Context, record []byte, revision uint64) (uint64, error) {
	bounded, cancel := s.c.Within(ctx, opTimeout)
	defer cancel()
	Failpoint("lease-before")
	FailInside("lease-inside")
	ack, err := s.c.js.PublishMsg(bounded, &nats.Msg{Subject: s.subject, Data: record},
		jetstream.WithExpectLastSequencePerSubject(revision), jetstream.WithRetryAttempts(0))
	if err != nil && !LostRace(err) {
		return 0, s.failed(ctx, "write the lease", err)
	}
	s.c.inReach(true)
	if err != nil {
		return 0, lease.ErrMoved
	}
	Failpoint("lease-after")
	return ack.Sequence, nil
}

// failed makes the error of a request, and has it logged unless ctx was cancelled.
func (s *LeaseStore) failed(ctx context.Context, doing string, err error) error {
	err = s.c.Fault(ctx, doing, err)
	if !errors.Is(ctx.Err(), context.Canceled) {
		s.c.outOfReach(err)
	}
	return err
}
