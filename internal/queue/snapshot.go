package queue

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"groupferry/internal/broker"
	"groupferry/internal/clock"
)

// Snapshots are objects in a JetStream object store, so that every NATS tool can list and copy them:
//
//	stream OBJ_NS-snapshots
//	  $O.NS-snapshots.C.NAME.HASH.GENERATION.RANDOM   chunks, in order
//	  $O.NS-snapshots.M.(NAME.HASH/GENERATION.RANDOM) written last: size, number of chunks, SHA-256
//
// The library's own Put and Get are not used. Put sends up to 4,000 chunks that are not acknowledged; it repeats one with
// the bytes of a later one, where a stream has no leader for a moment; and killed, it leaves chunks that nobody finds again.
// Get waits until its context ends for a chunk that is gone, and without a deadline it has five seconds for everything.

// ErrSnapshot is wrapped by the errors of a snapshot that is missing, or cannot be read as it was written.
var ErrSnapshot = errors.New("the snapshot is missing or unreadable")

const (
	// snapshotChunk is how much of a snapshot is in one message, unless the server takes less.
	snapshotChunk = 256 << 10

	// chunksAtOnce bounds one reading.
	chunksAtOnce = 8
)

func (q *Queue) snapshotBucket() string { return q.conn.Namespace() + "-snapshots" }
func (q *Queue) snapshotStream() string { return "OBJ_" + q.snapshotBucket() }

// chunkSubject has the chunks of an object, or of what takes wildcards for a name.
func (q *Queue) chunkSubject(object string) string {
	return "$O." + q.snapshotBucket() + ".C." + chunksOf(object)
}

// metaSubject has the description of an object.
func (q *Queue) metaSubject(object string) string {
	return "$O." + q.snapshotBucket() + ".M." + base64.URLEncoding.EncodeToString([]byte(object))
}

// chunksOf is what the object store calls the NUID of an object.
func chunksOf(object string) string { return strings.Replace(object, "/", ".", 1) }

// objectOf undoes chunksOf, and gives the generation.
func objectOf(chunks string) (object string, generation int, ok bool) {
	tokens := strings.Split(chunks, ".")
	if len(tokens) != 4 {
		return "", 0, false
	}
	generation, err := strconv.Atoi(tokens[2])
	return tokens[0] + "." + tokens[1] + "/" + tokens[2] + "." + tokens[3], generation, err == nil
}

// openSnapshots makes sure that the object store is there. Only the first snapshot of a namespace makes it.
func (q *Queue) openSnapshots(ctx context.Context) (jetstream.Stream, error) {
	bucket := q.snapshotBucket()
	return q.conn.EnsureStream(ctx, jetstream.StreamConfig{
		Name:        q.snapshotStream(),
		Description: "groupferry: what each sync has put into the app",
		Subjects:    []string{"$O." + bucket + ".C.>", "$O." + bucket + ".M.>"},
		Retention:   jetstream.LimitsPolicy,
		Discard:     jetstream.DiscardNew,
		Storage:     jetstream.FileStorage,
		AllowRollup: true,
		AllowDirect: true,
	})
}

// PutSnapshot stores what write writes as the snapshot of the generation after that of s, and returns the object's name
// and size. Nobody sees it before [Queue.UpdateSync] has put the name into the record. It keeps one chunk in memory.
func (q *Queue) PutSnapshot(ctx context.Context, s Sync, write func(io.Writer) error) (object string, size int64, err error) {
	doing := "write a snapshot of sync " + s.Name
	stream, err := q.openSnapshots(ctx)
	if err != nil {
		return "", 0, fmt.Errorf("%s: %w", doing, err)
	}
	object = fmt.Sprintf("%s/%d.%s", s.id(), s.Generation+1, nuid.Next())
	w := &snapshotWriter{
		q: q, ctx: ctx, subject: q.chunkSubject(object), digest: sha256.New(),
		chunk: make([]byte, 0, min(snapshotChunk, q.conn.MaxPayload()-headerRoom)),
	}
	w.last, err = q.lastSeq(ctx, q.snapshotStream())
	if err == nil {
		err = write(w)
	}
	if err == nil {
		err = w.finish(object)
	}
	if err != nil {
		// What is left of it otherwise, DeleteSnapshots finds.
		if ctx.Err() == nil && !broker.Unreachable(err) {
			_ = q.purge(ctx, stream, w.subject, w.last)
		}
		return "", 0, fmt.Errorf("%s: %w", doing, err)
	}
	return object, w.size, nil
}

// A snapshotWriter writes chunks, one after the other.
type snapshotWriter struct {
	q       *Queue
	ctx     context.Context
	subject string
	last    uint64 // where the stream ends, as far as is known
	chunk   []byte
	chunks  int
	size    int64
	digest  hash.Hash
}

func (w *snapshotWriter) Write(b []byte) (n int, err error) {
	for n < len(b) {
		took := min(len(b)-n, cap(w.chunk)-len(w.chunk))
		w.chunk = append(w.chunk, b[n:n+took]...)
		n += took
		if len(w.chunk) == cap(w.chunk) {
			if err := w.flush(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

func (w *snapshotWriter) flush() error {
	if len(w.chunk) == 0 {
		return nil
	}
	broker.Failpoint("snapshot-chunk-before")
	broker.FailInside("snapshot-chunk-inside")
	if err := w.put(&nats.Msg{Subject: w.subject, Data: w.chunk, Header: nats.Header{}}); err != nil {
		return err
	}
	broker.Failpoint("snapshot-chunk-after")
	w.chunks++
	w.size += int64(len(w.chunk))
	w.digest.Write(w.chunk)
	w.chunk = w.chunk[:0]
	return nil
}

// finish writes the rest, and the description, which makes an object of the chunks.
func (w *snapshotWriter) finish(object string) error {
	if err := w.flush(); err != nil {
		return err
	}
	if w.size == 0 {
		return errors.New("nothing was written")
	}
	b, err := json.Marshal(jetstream.ObjectInfo{
		ObjectMeta: jetstream.ObjectMeta{
			Name: object, Opts: &jetstream.ObjectMetaOptions{ChunkSize: uint32(cap(w.chunk))},
		},
		Bucket: w.q.snapshotBucket(), NUID: chunksOf(object), Size: uint64(w.size), Chunks: uint32(w.chunks),
		Digest: jetstream.GetObjectDigestValue(w.digest),
	})
	if err != nil {
		return err
	}
	broker.Failpoint("snapshot-before")
	broker.FailInside("snapshot-inside")
	if err := w.put(&nats.Msg{Subject: w.q.metaSubject(object), Data: b, Header: nats.Header{}}); err != nil {
		return err
	}
	broker.Failpoint("snapshot-after")
	return nil
}

// put writes a message once, though the response to a first try may be lost: only if the stream ends where it did before,
// which the server knows without reading.
func (w *snapshotWriter) put(m *nats.Msg) error {
	for {
		m.Header.Set(jetstream.ExpectedLastSeqHeader, strconv.FormatUint(w.last, 10))
		seq, err := w.q.put(w.ctx, m)
		if err == nil {
			w.last = seq
			return nil
		}
		if !broker.LostRace(err) {
			return w.q.fault(w.ctx, "write to stream "+w.q.snapshotStream(), err)
		}
		// It came through, or another sync wrote. The end comes first: what arrives after it makes it another one.
		end, err := w.q.lastSeq(w.ctx, w.q.snapshotStream())
		if err != nil {
			return err
		}
		stored, err := w.q.conn.LastMsg(w.ctx, w.q.snapshotStream(), m.Subject)
		switch {
		case err == nil && stored.Sequence > w.last && bytes.Equal(stored.Data, m.Data):
			w.last = stored.Sequence
			return nil
		case err != nil && !errors.Is(err, broker.ErrNotFound):
			return err
		}
		if end == w.last && !clock.Pause(w.ctx, 50*time.Millisecond) { // a cluster has the same under way already
			return context.Cause(w.ctx)
		}
		w.last = end
	}
}

// OpenSnapshot opens an object that [Queue.PutSnapshot] wrote. The error of opening or reading it wraps [ErrSnapshot] when
// it is not there, or a part of it is not there, or it is not what was written, which is known at its end: io.EOF says that
// all of it was right. Any other error says that it could not be read now, and wraps [broker.ErrUnreachable] as elsewhere.
// ctx counts for the reading, too. It keeps about 2 MB in memory.
func (q *Queue) OpenSnapshot(ctx context.Context, object string) (io.ReadCloser, error) {
	m, err := q.conn.LastMsg(ctx, q.snapshotStream(), q.metaSubject(object))
	if noStream(err) || errors.Is(err, broker.ErrNotFound) {
		return nil, fmt.Errorf("%w: %s is not there", ErrSnapshot, object)
	}
	if _, damaged := errors.AsType[*broker.DamagedError](err); damaged {
		return nil, fmt.Errorf("%w: %s: %w", ErrSnapshot, object, err)
	}
	if err != nil {
		return nil, err
	}
	r := &snapshotReader{
		q: q, ctx: ctx, object: object, batch: q.newBatchReader(q.snapshotStream()), digest: sha256.New(), next: 1,
	}
	if err := json.Unmarshal(m.Data, &r.info); err != nil || r.info.Deleted || r.info.NUID != chunksOf(object) {
		return nil, fmt.Errorf("%w: the description of %s is not what was written", ErrSnapshot, object)
	}
	return r, nil
}

// noStream tells whether the server says that there is no such stream.
func noStream(err error) bool {
	api := broker.APIError(err)
	return api != nil && api.ErrorCode == jetstream.JSErrCodeStreamNotFound
}

// A snapshotReader reads the chunks of an object.
type snapshotReader struct {
	q      *Queue
	ctx    context.Context
	object string
	info   jetstream.ObjectInfo

	batch  *batchReader
	next   uint64 // where the next reading begins
	ready  []stored
	rest   []byte // of the chunk that is being read
	chunks uint32
	digest hash.Hash
	err    error
}

func (r *snapshotReader) Read(b []byte) (int, error) {
	for len(r.rest) == 0 && r.err == nil {
		r.rest, r.err = r.chunk()
	}
	if r.err != nil {
		return 0, r.err
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *snapshotReader) Close() error {
	r.batch.close()
	return nil
}

// chunk gives the next one, or io.EOF after the last one if all were right.
func (r *snapshotReader) chunk() ([]byte, error) {
	if r.chunks == r.info.Chunks {
		if jetstream.GetObjectDigestValue(r.digest) != r.info.Digest {
			return nil, fmt.Errorf("%w: %s is not what was written", ErrSnapshot, r.object)
		}
		return nil, io.EOF
	}
	if len(r.ready) == 0 {
		if err := r.read(); err != nil {
			return nil, err
		}
	}
	m := r.ready[0]
	r.ready = r.ready[1:]
	r.next = m.seq + 1
	r.chunks++
	r.digest.Write(m.Data)
	return m.Data, nil
}

func (r *snapshotReader) read() error {
	subject := r.q.chunkSubject(r.object)
	r.q.conn.Reading()
	err := r.q.conn.Ask(r.ctx, func(ctx context.Context) (err error) {
		r.ready, err = r.batch.read(ctx, r.next, subject, chunksAtOnce, chunksAtOnce*snapshotChunk)
		if len(r.ready) > 0 {
			err = nil
		}
		return err
	})
	if err != nil {
		return r.q.fault(r.ctx, "read snapshot "+r.object, err)
	}
	if len(r.ready) > 0 {
		return nil
	}
	// The server that responded may lag behind; the stream's leader does not.
	m, err := r.q.conn.NextMsg(r.ctx, r.q.snapshotStream(), r.next, subject)
	if errors.Is(err, broker.ErrNotFound) {
		return fmt.Errorf("%w: %s has %d of its %d parts", ErrSnapshot, r.object, r.chunks, r.info.Chunks)
	}
	if err != nil {
		return err
	}
	r.ready = append(r.ready, stored{&nats.Msg{Data: m.Data}, m.Sequence})
	return nil
}

// DeleteSnapshots deletes the snapshots of a sync, and what was left of some that were not written to their end, up to the
// generation of s, but for the two that s names: s is the record that the caller has read or written. A snapshot that
// another process is writing is of a later generation, or is never going to be named by a record.
func (q *Queue) DeleteSnapshots(ctx context.Context, s Sync) error {
	doing := "delete old snapshots of sync " + s.Name
	var stream jetstream.Stream
	err := q.conn.Ask(ctx, func(ctx context.Context) (err error) {
		stream, err = q.js.Stream(ctx, q.snapshotStream())
		return err
	})
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil
	}
	if err != nil {
		return q.fault(ctx, doing, err)
	}
	all := q.chunkSubject(s.id() + ".>")
	state, err := q.conn.StreamState(ctx, q.snapshotStream(), all)
	if err != nil {
		return err
	}
	for subject := range state.Subjects {
		object, generation, ok := objectOf(strings.TrimPrefix(subject, q.chunkSubject("")))
		if !ok || generation > s.Generation || slices.Contains([]string{s.Object, s.Previous}, object) {
			continue
		}
		// The chunks come last: it is by them that it is found.
		for _, subject := range []string{q.metaSubject(object), subject} {
			broker.Failpoint("snapshot-delete-before")
			broker.FailInside("snapshot-delete-inside")
			if err := q.purge(ctx, stream, subject, state.LastSeq); err != nil {
				return q.fault(ctx, doing, err)
			}
			broker.Failpoint("snapshot-delete-after")
		}
	}
	return nil
}
