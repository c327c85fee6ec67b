package queue

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
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

	"groupferry/internal/job"
)

const (
	// maxBatchBytes is when a batch is sent before it has maxBatchJobs. With the largest job that a server takes by
	// default, 1 MiB, it stays below 8 MiB, which is what a client buffers while it reconnects.
	maxBatchBytes = 7_000_000

	// bytesToTidy is how many bytes of jobs are sent before a batch removes the checkpoints of those before it. For that
	// the server reads what it wrote since the last time: much longer pieces would not be read within commitTimeout on a
	// slow disk, much shorter ones would keep much in its memory, see publish.
	bytesToTidy = 256 << 20

	// batchesInTurn is how many batches an import has for itself before it makes way for another one that is enqueued on
	// the same server, and turnPause is for how long: see share. A server takes some 25 batches a second.
	batchesInTurn = 16
	turnPause     = 2 * time.Second

	// commitTimeout is for a whole batch. The server gives up one that has been quiet for 10 s.
	commitTimeout = 10 * time.Second

	// enqueuePatience is how long one batch is tried again before Enqueue gives up.
	enqueuePatience = 30 * time.Second

	// headerRoom is what headers and protocol may add to a job.
	headerRoom = 1024

	checkpointVersion = 1
)

// JetStream's codes for a batch that did not arrive as a whole, or had to wait for others. The stream holds nothing
// of it then.
const (
	codeBatchMissingSeq jetstream.ErrorCode = 10175
	codeBatchIncomplete jetstream.ErrorCode = 10176
	codeBatchInflight   jetstream.ErrorCode = 10210
)

const (
	codeConsumerFailed jetstream.ErrorCode = 10012 // a consumer could not be made
	codeStoreFailed    jetstream.ErrorCode = 10077 // a stream takes no more
)

// ErrOrder is wrapped by the error of an [Queue.Enqueue] whose jobs are not those that the import began with.
var ErrOrder = errors.New("this input no longer gives the jobs that were enqueued before; " +
	"import it under another import ID")

// EnqueueStats says what an [Queue.Enqueue] did.
type EnqueueStats struct {
	Jobs    int64 // put on the queue by this call
	Skipped int64 // found there: put by an earlier call, or by another process in the meantime
}

// A checkpoint says how much of an import is on the queue. It is written with the jobs that it counts, in one piece.
type checkpoint struct {
	Version int    `json:"v"`
	Jobs    int64  `json:"jobs"`   // from the first one on
	Digest  string `json:"digest"` // chain over the ids of those jobs, in order
	Done    bool   `json:"done"`   // these are all
	Writer  string `json:"writer"` // which call of Enqueue wrote it
}

// A chain is a digest that grows job by job.
type chain [sha256.Size]byte

func (c chain) add(jobID string) chain {
	var buf [sha256.Size + 32]byte
	return sha256.Sum256(append(append(buf[:0], c[:]...), jobID...))
}

func (c chain) String() string { return hex.EncodeToString(c[:]) }

// Enqueue puts the jobs of an import, each with an ID of its own, on the queue, each exactly once, however often it is called, by however many
// processes, and wherever an earlier call was cut off; then it sets the record to [Enqueued]. The sequence of jobs must
// be the same each time: jobs that are there already are skipped, and the error wraps [ErrOrder] when they are not the
// ones that were put there, or not as many as the record announced. An import that is enqueued as a whole is not read
// again.
//
// After each piece, progress, unless nil, hears how many jobs are on the queue. An Enqueue that ends early, by ctx or
// by an error, leaves the record [Enqueueing] and what it put on the queue there; workers may have begun with it.
func (q *Queue) Enqueue(
	ctx context.Context, importID string, jobs iter.Seq[job.Job], progress func(done int64),
) (EnqueueStats, error) {
	rec, err := q.Import(ctx, importID)
	if err != nil {
		return EnqueueStats{}, err
	}
	if rec.State == Cancelled {
		return EnqueueStats{}, fmt.Errorf("enqueue import %s: %w", importID, ErrCancelled)
	}
	e := &enqueuer{q: q, id: importID, writer: nuid.Next(), progress: progress, announced: rec.Jobs, aside: 1}
	if e.last, e.seq, err = q.checkpoint(ctx, importID); err != nil {
		return EnqueueStats{}, err
	}
	if !e.last.Done {
		// Before the first job, so that no job is ever on the queue without one who would fetch it.
		if err := q.createConsumer(ctx, importID, 0); err != nil {
			return EnqueueStats{}, err
		}
		if err := e.run(ctx, jobs); err != nil {
			return e.stats(), err
		}
	}
	rec, err = q.Update(ctx, importID, func(i *Import) {
		i.Jobs = e.last.Jobs
		if i.State == Enqueueing {
			i.State, i.Enqueued = Enqueued, time.Now().UTC()
		}
	})
	if err == nil && rec.State == Complete {
		// Another process enqueued and finished it while this one looked: the consumer made above is one too many.
		err = q.deleteConsumer(ctx, importID)
	}
	if err == nil && rec.State == Cancelled { // meanwhile: what came after that is dropped as well
		if err = q.drop(ctx, importID, 0); err == nil {
			err = fmt.Errorf("enqueue import %s: %w", importID, ErrCancelled)
		}
	}
	return e.stats(), err
}

// checkpoint reads how far an import is enqueued, and the sequence to compare with: zero when it is not at all.
func (q *Queue) checkpoint(ctx context.Context, importID string) (p checkpoint, seq uint64, err error) {
	seq, err = q.readPoint(ctx, q.checkpointSubject(importID), "checkpoint of import "+importID, checkpointVersion, &p)
	return p, seq, err
}

// readPoint reads the newest message on a subject of the jobs stream into p, if there is one of a version up to newest,
// and gives its sequence, else 0.
func (q *Queue) readPoint(ctx context.Context, subject, what string, newest int, p any) (uint64, error) {
	var m *jetstream.RawStreamMsg
	err := q.ask(ctx, func(c context.Context) (err error) {
		m, err = q.jobs.GetLastMsgForSubject(c, subject)
		return err
	})
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, q.fault(ctx, "read "+what, err)
	}
	var v struct {
		Version int `json:"v"`
	}
	if err := json.Unmarshal(m.Data, &v); err != nil {
		return 0, fmt.Errorf("decode %s: %w", what, err)
	}
	if v.Version > newest {
		return 0, fmt.Errorf("%s: version %d: %w", what, v.Version, job.ErrVersion)
	}
	if err := json.Unmarshal(m.Data, p); err != nil {
		return 0, fmt.Errorf("decode %s: %w", what, err)
	}
	return m.Sequence, nil
}

// An enqueuer is one run of Enqueue. The jobs that it has read and that are not on the queue yet wait in msgs:
//
//	jobs of the input   0 ──────────────── last.Jobs ──────────── seen ─────────►
//	                    on the stream      │ waiting in msgs      │ not read yet
//
// While seen is below last.Jobs nothing waits, and what is read is skipped.
type enqueuer struct {
	q         *Queue
	id        string
	writer    string
	progress  func(int64)
	announced int64 // jobs that the record promises; 0 when it does not

	last checkpoint // the newest known one
	seq  uint64     // its sequence

	aside  int // batches that go by the checkpoint's subject, see publish
	turn   int // batches since another import had its turn
	untidy int // bytes sent since the checkpoints before were removed

	seen    int64 // jobs that the input gave so far
	chain   chain // over them
	written int64 // of them, put on the queue by this run

	msgs   []*nats.Msg // waiting; what lies between len and cap is used again
	chains []chain     // after each of them
	bytes  []byte      // what they hold
}

func (e *enqueuer) stats() EnqueueStats {
	return EnqueueStats{Jobs: e.written, Skipped: e.last.Jobs - e.written}
}

func (e *enqueuer) run(ctx context.Context, jobs iter.Seq[job.Job]) error {
	for j := range jobs {
		if ctx.Err() != nil {
			return e.interrupted(ctx)
		}
		if err := e.take(&j); err != nil {
			return err
		}
		if len(e.msgs) == maxBatchJobs || len(e.bytes) >= maxBatchBytes {
			if err := e.commit(ctx, false); err != nil {
				return err
			}
		}
	}
	// An iterator stops early when its context ends, and that must not pass for the end of the input.
	if ctx.Err() != nil {
		return e.interrupted(ctx)
	}
	if e.seen < e.last.Jobs || e.announced != 0 && e.seen != e.announced {
		return fmt.Errorf("enqueue import %s: %d jobs, want %d: %w",
			e.id, e.seen, max(e.last.Jobs, e.announced), ErrOrder)
	}
	return e.commit(ctx, true)
}

func (e *enqueuer) interrupted(ctx context.Context) error {
	return fmt.Errorf("enqueue import %s: %w", e.id, context.Cause(ctx))
}

// take reads one job: it joins those that wait, or is skipped.
func (e *enqueuer) take(j *job.Job) error {
	if j.Import != e.id || j.ID == "" {
		return fmt.Errorf("enqueue import %s: job %q of import %q does not belong to it", e.id, j.ID, j.Import)
	}
	e.seen++
	e.chain = e.chain.add(j.ID)
	if e.seen <= e.last.Jobs {
		if e.seen == e.last.Jobs && e.chain.String() != e.last.Digest {
			return fmt.Errorf("enqueue import %s: %w", e.id, ErrOrder)
		}
		return nil
	}
	if e.last.Done { // by another process, in the meantime, and there were fewer
		return fmt.Errorf("enqueue import %s: %w", e.id, ErrOrder)
	}
	start := len(e.bytes)
	e.bytes = j.AppendJSON(e.bytes)
	data := e.bytes[start:len(e.bytes):len(e.bytes)]
	if room := e.q.nc.MaxPayload() - headerRoom; int64(len(data)) > room {
		return fmt.Errorf("enqueue import %s: job %s has %d bytes and the server takes %d: raise its max_payload",
			e.id, j.ID, len(data), room)
	}
	m := e.slot()
	m.Subject, m.Reply, m.Data = e.q.jobsSubject(e.id), "", data
	e.chains = append(e.chains, e.chain)
	return nil
}

// slot adds a message, one that was used before if there is one. Publishing copies what a message holds.
func (e *enqueuer) slot() *nats.Msg {
	n := len(e.msgs)
	if n < cap(e.msgs) && e.msgs[:n+1][n] != nil {
		e.msgs = e.msgs[:n+1]
	} else {
		e.msgs = append(e.msgs, &nats.Msg{Header: nats.Header{}})
	}
	return e.msgs[n]
}

// commit puts what waits on the queue, together with a checkpoint that says so, in one piece and only if nobody else
// moved the checkpoint. If someone did, what they wrote is taken for written, and the rest is tried again. When no
// answer came, the checkpoint tells what happened.
func (e *enqueuer) commit(ctx context.Context, done bool) error {
	var giveUp time.Time
	for wait := 50 * time.Millisecond; len(e.msgs) > 0 || done && !e.last.Done; wait = min(2*wait, 2*time.Second) {
		err := e.publish(ctx, done)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return e.interrupted(ctx)
		}
		if api := apiError(err); api != nil && api.ErrorCode == codeStoreFailed {
			return fmt.Errorf("enqueue import %s: stream %s takes no more jobs: %w; its limits have to hold all jobs of the "+
				"imports that are not complete", e.id, e.q.jobsStream(), err)
		}
		if !lostRace(err) && !transient(err) {
			return fmt.Errorf("enqueue import %s: %w", e.id, err)
		}
		if giveUp.IsZero() {
			giveUp = time.Now().Add(enqueuePatience)
		}
		shared := lostRace(err) && e.aside == 0
		if shared && !e.share(ctx) {
			return e.interrupted(ctx)
		}
		before := e.seq
		if readErr := e.catchUp(ctx); readErr != nil {
			if !transient(readErr) {
				return readErr
			}
			err = readErr
		}
		if done && e.seen < e.last.Jobs { // the other one's input goes on where ours ended
			return fmt.Errorf("enqueue import %s: %w", e.id, ErrOrder)
		}
		if e.seq != before || shared {
			giveUp = time.Time{}
			continue
		}
		if time.Now().After(giveUp) {
			return e.q.fault(ctx, "enqueue import "+e.id, err)
		}
		if !pause(ctx, wait) {
			return e.interrupted(ctx)
		}
	}
	if e.progress != nil {
		e.progress(e.last.Jobs)
	}
	return nil
}

// share is called when another import turned out to be enqueued at the same time. The two take turns, so that neither
// makes the other send everything twice: who had the stream for long steps back, who has just begun goes on, for a while
// in a way that the other one cannot disturb. It returns false when ctx ends.
func (e *enqueuer) share(ctx context.Context) bool {
	if e.turn < batchesInTurn {
		e.aside = batchesInTurn - e.turn
		return true
	}
	e.aside, e.turn = 1, 0
	return pause(ctx, turnPause)
}

// publish sends what waits, and a checkpoint behind it, to be written as one and only if the checkpoint is where this run
// saw it last.
//
// It could say so by the last message of the checkpoint's subject, and have each checkpoint remove the one before. But
// the server reads a message to compare with it or to remove it, and it keeps the block of the stream, 8 MiB, in which
// a message was read for 10 seconds longer than the others, which it gives up when they are full: at full speed that
// is hundreds of MB. So it says that the whole stream ends with this run's last checkpoint, which the server knows
// without reading, and which is true unless another import is enqueued at the same time; only then it goes by the
// subject for some batches. And old checkpoints are removed many at a time; until then the last one is what counts.
func (e *enqueuer) publish(ctx context.Context, done bool) error {
	ctx, cancel := e.q.withinTime(ctx, commitTimeout)
	defer cancel()
	next := checkpoint{
		Version: checkpointVersion, Jobs: e.seen, Digest: e.chain.String(), Done: done, Writer: e.writer,
	}
	data, err := json.Marshal(next)
	if err != nil {
		return err
	}
	last := &nats.Msg{Subject: e.q.checkpointSubject(e.id), Data: data, Header: nats.Header{}}
	tidy := done || e.untidy >= bytesToTidy
	if tidy {
		last.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
	}
	batch := slices.Concat(e.msgs, []*nats.Msg{last})
	if e.aside > 0 {
		last.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(e.seq, 10))
	} else {
		// The server takes it with the first message only, which is used again.
		batch[0].Header.Set(jetstream.ExpectedLastSeqHeader, strconv.FormatUint(e.seq, 10))
		defer batch[0].Header.Del(jetstream.ExpectedLastSeqHeader)
	}
	failpoint("enqueue-before")
	failInside("enqueue-inside")
	ack, err := jetstreamext.PublishMsgBatch(ctx, e.q.js, batch)
	if err != nil {
		return err
	}
	failpoint("enqueue-after")
	e.last, e.seq = next, ack.Sequence
	e.aside = max(0, e.aside-1)
	e.turn++
	e.untidy += len(e.bytes)
	if tidy {
		e.untidy = 0
	}
	e.written += int64(len(e.msgs))
	e.drop(len(e.msgs))
	return nil
}

// transient tells whether a batch may go through when it is sent again.
func transient(err error) bool {
	if unreachable(err) || errors.Is(err, jetstreamext.ErrInvalidBatchAck) {
		return true
	}
	if api := apiError(err); api != nil {
		switch api.ErrorCode {
		case codeBatchIncomplete, codeBatchMissingSeq, codeBatchInflight:
			return true
		}
	}
	return false
}

// catchUp reads the checkpoint again and takes what it counts for written.
func (e *enqueuer) catchUp(ctx context.Context) error {
	now, seq, err := e.q.checkpoint(ctx, e.id)
	if err != nil {
		return err
	}
	if seq == e.seq {
		return nil
	}
	covered := now.Jobs - e.last.Jobs
	waiting := int64(len(e.msgs))
	if seq < e.seq || covered < 0 || now.Done && now.Jobs < e.seen {
		return fmt.Errorf("enqueue import %s: %w", e.id, ErrOrder)
	}
	if n := min(covered, waiting); n > 0 {
		if covered <= waiting && e.chains[n-1].String() != now.Digest {
			return fmt.Errorf("enqueue import %s: %w", e.id, ErrOrder)
		}
		if now.Writer == e.writer {
			e.written += n
		}
		e.drop(int(n))
	}
	e.last, e.seq = now, seq
	return nil
}

// drop takes the first n messages away from those that wait.
func (e *enqueuer) drop(n int) {
	if n == len(e.msgs) {
		e.msgs, e.chains, e.bytes = e.msgs[:0], e.chains[:0], e.bytes[:0]
		return
	}
	// The dropped ones go behind the rest, to be used again.
	dropped := slices.Clone(e.msgs[:n])
	copy(e.msgs, e.msgs[n:])
	copy(e.msgs[len(e.msgs)-n:], dropped)
	e.msgs = e.msgs[:len(e.msgs)-n]
	e.chains = append(e.chains[:0], e.chains[n:]...)
}
