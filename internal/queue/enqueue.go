package queue

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"groupferry/internal/broker"
	"groupferry/internal/clock"
	"groupferry/internal/job"
)

const (
	// maxBatchBytes is the size at which a batch is sent before it has maxBatchJobs. With the largest job that a server
	// takes by default, 1 MiB, a batch stays below the 8 MiB that a client buffers while it reconnects.
	maxBatchBytes = 7_000_000

	// bytesToTidy is how many bytes of jobs are sent before a batch removes the older checkpoints. For that the server
	// reads what it wrote since the last time. With a much larger value a slow disk would exceed commitTimeout; a much
	// smaller one would keep more in the server's memory, see publish.
	bytesToTidy = 256 << 20

	// batchesInTurn is how many batches an import sends before another one that is enqueued at the same time has its
	// turn. turnPause is the length of that turn: see share. A server takes some 25 batches a second.
	batchesInTurn = 16
	turnPause     = 2 * time.Second

	// commitTimeout is for a whole batch. The server gives up one that has been quiet for 10 s.
	commitTimeout = 10 * time.Second

	// headerRoom is how many bytes headers and protocol may add to a job.
	headerRoom = 1024
)

// maxBatchJobs and the checkpoint make 1,000 messages, the server's limit for an atomic batch. With failpoints it is
// small, so that a small import is enqueued in many batches.
var maxBatchJobs = func() int {
	if broker.Failpoints {
		return 17
	}
	return 999
}()

// JetStream's codes for a batch that did not arrive as a whole, or had to wait for others. Nothing of it is on the
// stream.
const (
	codeBatchMissingSeq jetstream.ErrorCode = 10175
	codeBatchIncomplete jetstream.ErrorCode = 10176
	codeBatchInflight   jetstream.ErrorCode = 10210
)

// ErrOrder is wrapped by the error of a [Queue.Enqueue] whose jobs differ from those already enqueued.
var ErrOrder = errors.New("this input no longer gives the jobs that were enqueued before; " +
	"import it under another import ID")

// EnqueueStats says what a [Queue.Enqueue] did.
type EnqueueStats struct {
	Jobs    int64 // put on the queue by this call
	Skipped int64 // on the queue already, by an earlier call or another process
}

// Enqueue puts the jobs of an import on the queue, each exactly once, however often it is called, by however many
// processes, and wherever an earlier call was cut off; then it sets the record to [Running], or [Complete] if there are
// none, which takes no leader. The sequence of jobs must
// be the same each time: jobs that are there already are skipped, and the error wraps [ErrOrder] when they are not the
// ones that were put there, or not as many as the record announced. An import that is enqueued as a whole is not read
// again.
//
// After each batch Enqueue calls progress, unless it is nil, with the number of jobs on the queue. If it ends early, by
// ctx or an error, the record stays [Enqueueing] and the jobs stay on the queue; the leader may have started on them.
// After the import is cancelled, no further batch is written: the error wraps [ErrCancelled], or [ErrNoImport] if it
// was deleted.
func (q *Queue) Enqueue(
	ctx context.Context, importID string, jobs iter.Seq[job.Job], progress func(done int64),
) (EnqueueStats, error) {
	stats, err := q.enqueue(ctx, importID, jobs, progress)
	if err != nil {
		err = fmt.Errorf("enqueue import %s: %w", importID, err)
	}
	return stats, err
}

func (q *Queue) enqueue(
	ctx context.Context, importID string, jobs iter.Seq[job.Job], progress func(done int64),
) (EnqueueStats, error) {
	rec, err := q.Import(ctx, importID)
	if err != nil {
		return EnqueueStats{}, err
	}
	switch rec.State {
	case Enqueueing:
	case Cancelled:
		return EnqueueStats{}, rec.cancelled()
	case Deleting:
		return EnqueueStats{}, fmt.Errorf("%w: it is being deleted", ErrNoImport)
	default:
		return EnqueueStats{Skipped: rec.Jobs}, nil
	}
	w := &writer{q: q, rec: rec, announced: rec.Jobs, progress: progress}
	err = w.open(ctx)
	if err == nil && !w.last.Done {
		err = w.putAll(ctx, jobs)
	}
	if err == nil {
		rec, err = q.Update(ctx, importID, func(i *Import) { i.enqueued(w.last) })
	}
	switch {
	case errors.Is(err, errElsewhere): // and the import is over by now
		rec, err = q.Import(ctx, importID)
		return EnqueueStats{Jobs: w.written, Skipped: rec.Jobs - w.written}, err
	case err == nil && rec.Incarnation != w.rec.Incarnation:
		err = fmt.Errorf("%w: it was deleted", ErrNoImport)
	case err == nil && rec.State == Cancelled:
		err = rec.cancelled()
	case err == nil && rec.State == Complete && w.last.Jobs == 0:
		err = q.completed(ctx, rec)
	}
	return EnqueueStats{Jobs: w.written, Skipped: w.last.Jobs - w.written}, err
}

// A writer puts the jobs of one generation of an import on the queue, in batches that end with a checkpoint. Jobs that
// are not on the queue yet wait in msgs:
//
//	jobs of the source   0 ──────────────── last.Jobs ──────────── seen ─────────►
//	                     on the stream      │ waiting in msgs      │ not taken yet
//
// While seen is below last.Jobs nothing waits, and jobs are skipped.
type writer struct {
	q         *Queue
	rec       Import // from when the writer started; only incarnation and generation matter
	progress  func(int64)
	announced int64 // jobs according to the record; 0 if it does not say
	name      string

	last checkpoint // the newest known one
	seq  uint64     // its sequence

	aside  int // batches to be conditional on the checkpoint's subject, see publish
	turn   int // batches since another import had its turn
	untidy int // bytes sent since older checkpoints were removed

	seen    int64      // jobs that were taken so far
	chain   chain      // over them
	source  checkpoint // what a retry adds to each checkpoint: After, Looked and so on
	written int64      // jobs that this writer put on the queue

	msgs   []*nats.Msg // waiting; those between len and cap are reused
	chains []chain     // after each of them
	bytes  []byte      // what they hold
}

// open finds out how far the generation is enqueued, and removes the jobs of an incomplete batch.
func (w *writer) open(ctx context.Context) (err error) {
	w.name, w.aside = nuid.Next(), 1
	w.last, w.seq, err = w.q.startGeneration(ctx, w.rec)
	if err == nil && !w.last.Done {
		err = w.dropTorn(ctx)
	}
	return err
}

// putAll takes all jobs of an input, from the first one on.
func (w *writer) putAll(ctx context.Context, jobs iter.Seq[job.Job]) error {
	for j := range jobs {
		if err := w.take(ctx, &j); err != nil {
			return err
		}
	}
	// An iterator stops early when its context ends. That must not be taken for the end of the input.
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if w.seen < w.last.Jobs || w.announced != 0 && w.seen != w.announced {
		return fmt.Errorf("%d jobs, want %d: %w", w.seen, max(w.last.Jobs, w.announced), ErrOrder)
	}
	return w.commit(ctx, true)
}

// take takes one job: it adds it to the waiting jobs, or skips it. When enough wait, take commits them.
func (w *writer) take(ctx context.Context, j *job.Job) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if j.Import != w.rec.ID || j.ID == "" {
		return fmt.Errorf("job %q of import %q does not belong to it", j.ID, j.Import)
	}
	w.seen++
	w.chain = w.chain.add(j.ID)
	if w.seen <= w.last.Jobs {
		if w.seen == w.last.Jobs && w.chain.String() != w.last.Digest {
			return ErrOrder
		}
		return nil
	}
	if w.last.Done { // another process has finished, with fewer jobs
		return ErrOrder
	}
	start := len(w.bytes)
	w.bytes = j.AppendJSON(w.bytes)
	data := w.bytes[start:len(w.bytes):len(w.bytes)]
	if room := w.q.conn.MaxPayload() - headerRoom; int64(len(data)) > room {
		return fmt.Errorf("job %s has %d bytes and the server takes %d: raise its max_payload", j.ID, len(data), room)
	}
	m := w.slot()
	m.Subject, m.Reply, m.Data = w.q.jobsSubject(w.rec.ID), "", data
	w.chains = append(w.chains, w.chain)
	if len(w.msgs) == maxBatchJobs || len(w.bytes) >= maxBatchBytes {
		return w.commit(ctx, false)
	}
	return nil
}

// slot adds a message and returns it. It reuses an old one if it can: publishing copies the contents.
func (w *writer) slot() *nats.Msg {
	n := len(w.msgs)
	if n < cap(w.msgs) && w.msgs[:n+1][n] != nil {
		w.msgs = w.msgs[:n+1]
	} else {
		w.msgs = append(w.msgs, &nats.Msg{Header: nats.Header{}})
	}
	return w.msgs[n]
}

// commit writes the waiting jobs and a checkpoint in one batch, on the condition that nobody else wrote a checkpoint.
// If somebody did, it skips the jobs that they wrote, and tries the rest again. If there is no response, the checkpoint
// shows what happened.
func (w *writer) commit(ctx context.Context, done bool) error {
	var giveUp time.Time
	for wait := 50 * time.Millisecond; len(w.msgs) > 0 || done && !w.last.Done; wait = min(2*wait, 2*time.Second) {
		err := w.publish(ctx, done)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if api := broker.APIError(err); api != nil && api.ErrorCode == broker.CodeStoreFailed {
			return fmt.Errorf("stream %s takes no more jobs: %w; its limits have to hold all jobs of the imports that are "+
				"not complete; delete those that were cancelled", w.q.jobsStream(), err)
		}
		outrun := broker.LostRace(err)
		if !outrun && !transient(err) {
			return err
		}
		if giveUp.IsZero() {
			giveUp = time.Now().Add(retryTime)
		}
		before := w.seq
		readErr := w.catchUp(ctx)
		if readErr == nil && !outrun {
			readErr = w.dropTorn(ctx) // of this batch: the server may have been killed in the middle
		}
		if readErr != nil {
			if !transient(readErr) {
				return readErr
			}
			err = readErr
		}
		if done && w.seen < w.last.Jobs { // the other input is longer than ours
			return ErrOrder
		}
		if w.seq != before {
			giveUp = time.Time{}
			continue
		}
		if outrun && w.aside == 0 && readErr == nil { // by another import
			if !w.share(ctx) {
				return context.Cause(ctx)
			}
			giveUp = time.Time{}
			continue
		}
		if time.Now().After(giveUp) {
			return w.q.fault(ctx, "put jobs on the queue", err)
		}
		if !clock.Pause(ctx, wait) {
			return context.Cause(ctx)
		}
	}
	if w.progress != nil {
		w.progress(w.last.Jobs)
	}
	return nil
}

// share is called when another import is enqueued at the same time. The two take turns, so that neither makes the other
// send everything twice. An import that had a long turn pauses. One whose turn has just begun continues, for a while
// with a condition that the other one cannot break. share returns false when ctx ends.
func (w *writer) share(ctx context.Context) bool {
	if w.turn < batchesInTurn {
		w.aside = batchesInTurn - w.turn
		return true
	}
	w.aside, w.turn = 1, 0
	return clock.Pause(ctx, turnPause)
}

// publish sends the waiting jobs and a checkpoint as one batch. The server writes it only if the newest checkpoint is
// the one that this writer saw last.
//
// The condition could be the last message of the checkpoint's subject, and each checkpoint could remove the one before.
// But to compare or remove a message the server reads it. It then keeps the block with that message, 8 MiB, in memory
// for 10 seconds longer than other blocks: at full speed that is hundreds of MB. So the condition is that the whole
// stream ends with this writer's last checkpoint, which the server knows without reading. That is true unless another
// import is enqueued at the same time; only then some batches use the subject. Old checkpoints are removed many at a
// time; until then only the last one counts.
//
// The first batch uses the subject: the initial checkpoint may have been removed, and the stream still ends with it.
func (w *writer) publish(ctx context.Context, done bool) error {
	ctx, cancel := w.q.conn.Within(ctx, commitTimeout)
	defer cancel()
	next := w.source
	next.Version, next.Incarnation, next.Generation = checkpointVersion, w.rec.Incarnation, w.rec.Generation
	next.Jobs, next.Digest, next.Done, next.Writer = w.seen, w.chain.String(), done, w.name
	data, err := json.Marshal(next)
	if err != nil {
		return err
	}
	last := &nats.Msg{Subject: w.q.checkpointSubject(w.rec.ID), Data: data, Header: nats.Header{}}
	tidy := done || w.untidy >= bytesToTidy
	if tidy {
		last.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
	}
	batch := slices.Concat(w.msgs, []*nats.Msg{last})
	if w.aside > 0 {
		last.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(w.seq, 10))
	} else {
		// The server takes it with the first message only. The message is reused, so the header is removed again.
		batch[0].Header.Set(jetstream.ExpectedLastSeqHeader, strconv.FormatUint(w.seq, 10))
		defer batch[0].Header.Del(jetstream.ExpectedLastSeqHeader)
	}
	name := "enqueue"
	if w.rec.Generation > 0 {
		name = "retry"
	}
	broker.Failpoint(name + "-before")
	broker.FailInside(name + "-inside")
	start := time.Now()
	ack, err := jetstreamext.PublishMsgBatch(ctx, w.q.js, batch)
	if err != nil {
		return cmp.Or(w.q.conn.Denied(start, err), err)
	}
	broker.Failpoint(name + "-after")
	w.last, w.seq = next, ack.Sequence
	w.aside = max(0, w.aside-1)
	w.turn++
	w.untidy += len(w.bytes)
	if tidy {
		w.untidy = 0
	}
	w.written += int64(len(w.msgs))
	w.drop(len(w.msgs))
	return nil
}

// transient reports whether a batch may go through when it is sent again.
func transient(err error) bool {
	if broker.Unreachable(err) || errors.Is(err, jetstreamext.ErrInvalidBatchAck) {
		return true
	}
	if api := broker.APIError(err); api != nil {
		switch api.ErrorCode {
		case codeBatchIncomplete, codeBatchMissingSeq, codeBatchInflight:
			return true
		}
	}
	return false
}

// catchUp reads the checkpoint again, and drops the waiting jobs that it counts. The error is that of [Queue.notLive]
// if the generation has ended.
func (w *writer) catchUp(ctx context.Context) error {
	p, seq, err := w.q.checkpoint(ctx, w.rec.ID)
	if err != nil || seq == w.seq {
		return err
	}
	// The record is read after the checkpoint: see the fence.
	rec, err := w.q.Import(ctx, w.rec.ID)
	if err != nil {
		return err
	}
	if !rec.live() || !rec.same(&w.rec) {
		return w.q.notLive(ctx, &w.rec)
	}
	if seq < w.seq || !p.of(&w.rec) || p.Ended || p.Jobs < w.last.Jobs {
		return w.q.lost(w.rec.ID, "it is %s, and the checkpoint of its first %d jobs is gone", rec.State, w.last.Jobs)
	}
	covered := p.Jobs - w.last.Jobs
	waiting := int64(len(w.msgs))
	if p.Done && p.Jobs < w.seen {
		return ErrOrder
	}
	if n := min(covered, waiting); n > 0 {
		if covered <= waiting && w.chains[n-1].String() != p.Digest {
			return ErrOrder
		}
		if p.Writer == w.name {
			w.written += n
		}
		w.drop(int(n))
	}
	w.last, w.seq = p, seq
	return nil
}

// drop removes the first n waiting messages.
func (w *writer) drop(n int) {
	if n == len(w.msgs) {
		w.msgs, w.chains, w.bytes = w.msgs[:0], w.chains[:0], w.bytes[:0]
		return
	}
	// Move the dropped ones behind the rest, to be reused.
	dropped := slices.Clone(w.msgs[:n])
	copy(w.msgs, w.msgs[n:])
	copy(w.msgs[len(w.msgs)-n:], dropped)
	w.msgs = w.msgs[:len(w.msgs)-n]
	w.chains = append(w.chains[:0], w.chains[n:]...)
}

// dropTorn removes the jobs of an incomplete batch from the queue.
//
// The server writes a batch message by message. After a kill it completes the batch when it starts. But if its disk was
// full, and still is at the next start, it drops the rest. Nobody sees a batch before the checkpoint at its end is
// written. So a job after the newest checkpoint, while that stays the newest, is from an incomplete batch.
//
// A stream with copies on several servers writes a batch as one entry of its log.
func (w *writer) dropTorn(ctx context.Context) error {
	if w.q.jobs.CachedInfo().Config.Replicas > 1 {
		return nil
	}
	stream, subject := w.q.jobsStream(), w.q.jobsSubject(w.rec.ID)
	n := 0
	for after := w.seq; ; {
		m, err := w.q.conn.NextMsg(ctx, stream, after+1, subject)
		if errors.Is(err, broker.ErrNotFound) {
			break
		}
		if err != nil {
			return err
		}
		// Read it after each job: another process may enqueue the import, and its jobs have a checkpoint.
		if _, newest, err := w.q.checkpoint(ctx, w.rec.ID); err != nil {
			return err
		} else if newest != w.seq {
			break
		}
		after = m.Sequence
		err = w.q.conn.Ask(ctx, func(ctx context.Context) error { return w.q.jobs.DeleteMsg(ctx, after) })
		if err != nil && !errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) {
			return w.q.fault(ctx, "remove what a batch left that was cut off", err)
		}
		n++
	}
	if n > 0 {
		w.q.log.Warn("removed jobs that were not written as a whole; they are written again", "import", w.rec.ID, "jobs", n)
	}
	return nil
}
