package queue

import (
	"context"
	"errors"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
)

// dropTorn takes a piece of an import off the queue that is not there as a whole, so that it can be put there again.
//
// The server writes a batch message by message. What a kill cuts off it completes when it starts, but when its disk is
// full, and full still at the next start, it throws the rest away. A piece ends with its checkpoint and is seen by
// nobody before that, so a job that is the newest message of the stream belongs to such a one, and with it all jobs of
// its import after the last checkpoint.
//
// A stream with copies on several servers takes a batch as one; and one of these may answer that has not seen the last
// checkpoint yet. There nothing is dropped.
func (q *Queue) dropTorn(ctx context.Context) error {
	info := q.jobs.CachedInfo() // of a moment ago: opening the stream brought it
	state := info.State
	if state.Msgs == 0 || info.Config.Replicas > 1 {
		return nil
	}
	newest, err := q.jobMessage(ctx, state.LastSeq)
	if newest == nil || err != nil {
		return err
	}
	importID, ok := strings.CutPrefix(newest.Subject, q.jobsSubject(""))
	if !ok {
		return nil
	}
	_, checkpoint, err := q.checkpoint(ctx, importID)
	if err != nil {
		return err
	}
	_, retryPoint, err := q.retryPoint(ctx, importID)
	if err != nil {
		return err
	}
	at := max(checkpoint, retryPoint)
	if at > state.LastSeq { // the piece was being written, and is there by now
		return nil
	}
	n := 0
	for {
		m, err := q.jobMessage(ctx, at+1, jetstream.WithGetMsgSubject(newest.Subject))
		if err != nil {
			return err
		}
		if m == nil || m.Sequence > state.LastSeq {
			break
		}
		at = m.Sequence
		err = q.ask(ctx, func(c context.Context) error { return q.jobs.DeleteMsg(c, at) })
		if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
			return q.fault(ctx, "drop a torn piece of import "+importID, err)
		}
		n++
	}
	q.log.Warn("jobs that were not written as a whole are off the queue; the import puts them there again",
		"import", importID, "jobs", n)
	return nil
}

// jobMessage reads a message of the jobs stream; nil when it is not there.
func (q *Queue) jobMessage(
	ctx context.Context, seq uint64, opts ...jetstream.GetMsgOpt,
) (m *jetstream.RawStreamMsg, err error) {
	err = q.ask(ctx, func(c context.Context) (err error) {
		m, err = q.jobs.GetMsg(c, seq, opts...)
		return err
	})
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil
	}
	return m, q.fault(ctx, "read the jobs", err)
}
