// Package queue keeps jobs, results and the records of imports on NATS JetStream. All names on the server begin with
// the namespace, NS:
//
//	importer: Begin, Enqueue            Cancel, Delete, Retry              status, results: Progress, Results
//	   │ up to 999 jobs and a checkpoint,  │ a terminal checkpoint,           ▲
//	   │ all or nothing                    │ an end message                   │
//	   ▼                                   ▼                                  │
//	┌─ stream NS-jobs ───────────────────────────┐  ┌─ stream NS-results ─────┴──────────────────────────┐
//	│ NS.jobs.IMPORT        until the import ends│  │ NS.results.IMPORT.done|partial|failed   one per job│
//	│ NS.checkpoint.IMPORT  how far Enqueue got  │  │ NS.results.IMPORT.state  counts, and what is open  │
//	└───────────────┬────────────────────────────┘  │ NS.results.IMPORT.end    no result comes after it  │
//	                │ Term.Next                     │ NS.term                  marker of the leader      │
//	                ▼                               └────────────────────────────────────────────────────┘
//	   the leader: a Term, one per namespace                                  ▲
//	                └── Delivery.Finish ─► a group of results and states, all or nothing
//
//	bucket NS-control: import.IMPORT (record of an import), sync.NAME.HASH (record of a sync), lock.NAME, app, halt, rate;
//	                   each change is a compare-and-set
//	object store NS-snapshots: what each sync has put into the app; made with the first snapshot
//
// Commands change records; the leader follows them with [Queue.Watch]. Processes that enqueue or retry write jobs. Only
// the leader writes results. A job and its result are identified by the sequence of the job on the jobs stream.
//
// # Writers
//
// A batch of jobs is written only if the newest checkpoint of the import is the one that its writer saw last. So two
// processes can enqueue the same import: the one that lost the race skips the jobs of the other. Two imports that are
// enqueued at once take turns of a few seconds. [Queue.Enqueue] and [Queue.Retry] write in the same way.
//
// Every end of an import, by completion, [Queue.Cancel], [Queue.Delete] or retention, is fenced against batches of jobs
// and groups of results that are under way: see the comment in end.go.
//
// # What a crash leaves behind
//
// A process, and the embedded server with it, can be killed at any point. The next one finds and does this:
//
//   - After [Queue.Begin] wrote the record: no checkpoint. Begin or Enqueue writes it.
//   - While a batch is on its way: the server puts a batch on the stream as a whole or not at all. The checkpoint in it
//     counts the jobs up to its end, so Enqueue reads it and resumes after it.
//   - After the last batch, before the record says running: the checkpoint says done. Enqueue, [Queue.Sweep], or the
//     leader when the import is complete, sets the record.
//   - While an import ends: a record that is over, and a checkpoint. Sweep, the next leader, or any command for the
//     import does the rest.
//   - In [Queue.Delete], a record that says deleting, with a checkpoint or without. Sweep finishes it in the first case; in
//     both, Delete, Begin and DeleteOlder do.
//   - After Delete removed all, an end message of another process that ended the import at the same time and was killed
//     right then. The next Begin of that ID removes it.
//   - In Retry: a record that says retrying, and a checkpoint. The next Retry with the same codes resumes.
//   - If the disk was full during a batch, and still is at the next start: some jobs of the batch without its checkpoint.
//     Nobody reads jobs after the newest checkpoint; the next Enqueue or Retry removes them and writes them again.
//   - While a leader works: see [Term].
//   - After it made a night of a sync complete, before the sync's record says so: the next night calls [Queue.NoteComplete].
//   - In [Queue.PutSnapshot]: chunks that no record names. [Queue.DeleteSnapshots] removes them when a later night has
//     their generation.
//   - In [Queue.FenceNight]: an import that says which night takes over, and cannot be retried. The next night goes on.
//
// Anything else is damage: jobs without a record, a missing checkpoint, counts that differ. It is reported as a
// [*broker.DamagedError], and only Delete removes anything then.
//
// Message ids are not used for this: the server drops them after some time.
//
// # Limits
//
// The jobs stream has to hold all jobs of the imports that are not over, and what was dropped of the cancelled ones; the
// results stream all results that are kept. A job has to fit into the server's max_payload, 1 MiB by default.
package queue

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"groupferry/internal/broker"
	"groupferry/internal/job"
)

// A Queue is the streams and the bucket of one namespace. It is safe for concurrent use.
type Queue struct {
	conn *broker.Conn
	js   jetstream.JetStream
	log  *slog.Logger

	jobs    jetstream.Stream
	results jetstream.Stream
	control jetstream.KeyValue

	lockTimes lockTimes
}

// Open creates the streams and the bucket if needed, and checks that they have the configuration that this package
// relies on. With JoinOnly it creates none; the error then wraps [broker.ErrNoData]. It changes nothing else. The
// caller keeps the connection, which has to outlive the Queue.
func Open(ctx context.Context, conn *broker.Conn) (*Queue, error) {
	q := &Queue{conn: conn, js: conn.JetStream(), log: conn.Log(), lockTimes: usualLockTimes}
	var err error
	q.jobs, err = conn.EnsureStream(ctx, jetstream.StreamConfig{
		Name:               q.jobsStream(),
		Description:        "groupferry: jobs of the imports that are not over, and how far each import is enqueued",
		Subjects:           []string{q.jobsSubject("*"), q.checkpointSubject("*")},
		Retention:          jetstream.LimitsPolicy,
		Discard:            jetstream.DiscardNew,
		Storage:            jetstream.FileStorage,
		AllowRollup:        true,
		AllowDirect:        true,
		AllowAtomicPublish: true,
	})
	if err != nil {
		return nil, err
	}
	q.results, err = conn.EnsureStream(ctx, jetstream.StreamConfig{
		Name:               q.resultsStream(),
		Description:        "groupferry: what became of each job, and what the leader knows of each import",
		Subjects:           []string{q.resultSubject("*", "*"), q.termSubject()},
		Retention:          jetstream.LimitsPolicy,
		Discard:            jetstream.DiscardNew,
		Storage:            jetstream.FileStorage,
		AllowRollup:        true,
		AllowDirect:        true,
		AllowAtomicPublish: true,
	})
	if err != nil {
		return nil, err
	}
	if err = q.openControl(ctx); err != nil {
		return nil, err
	}
	return q, nil
}

func (q *Queue) openControl(ctx context.Context) (err error) {
	q.control, err = q.conn.EnsureBucket(ctx, "control",
		"groupferry: import records, the app of the namespace, its rate, and whether it is halted")
	return err
}

// Records reads the records of imports, newest first, and of syncs, and needs nothing but the bucket that has them.
func Records(ctx context.Context, conn *broker.Conn) ([]Import, []Sync, error) {
	q := &Queue{conn: conn, js: conn.JetStream(), log: conn.Log()}
	if err := q.openControl(ctx); err != nil {
		return nil, nil, err
	}
	imports, err := q.Imports(ctx)
	if err != nil {
		return nil, nil, err
	}
	syncs, err := q.Syncs(ctx)
	return imports, syncs, err
}

// The names of streams and subjects. IMPORT is a valid import ID, or a wildcard.

func (q *Queue) jobsStream() string    { return q.conn.Namespace() + "-jobs" }
func (q *Queue) resultsStream() string { return q.conn.Namespace() + "-results" }
func (q *Queue) controlStream() string { return "KV_" + q.conn.Namespace() + "-control" }

// Replicas is how many copies of the jobs the server keeps.
func (q *Queue) Replicas() int { return q.jobs.CachedInfo().Config.Replicas }

// Storage asks how many bytes the server keeps of the namespace: jobs, results, and control, which has the records.
func (q *Queue) Storage(ctx context.Context) (map[string]int64, error) {
	bytes := make(map[string]int64)
	for name, stream := range map[string]string{"jobs": q.jobsStream(), "results": q.resultsStream(), "control": q.controlStream()} {
		s, err := q.conn.StreamState(ctx, stream, "")
		if err != nil {
			return nil, err
		}
		bytes[name] = int64(s.Bytes)
	}
	return bytes, nil
}

// jobsSubject has the jobs of an import, in the order in which they are handed out.
func (q *Queue) jobsSubject(importID string) string { return q.conn.Subject("jobs", importID) }

// checkpointSubject has the checkpoints of an import; the last one counts.
func (q *Queue) checkpointSubject(importID string) string {
	return q.conn.Subject("checkpoint", importID)
}

// resultSubject has the results of an import with one outcome, or the messages of another kind: [stateKind], [endKind].
func (q *Queue) resultSubject(importID, kind string) string {
	return q.conn.Subject("results", importID, kind)
}

// termSubject has a marker of each leader's term; the last one counts.
func (q *Queue) termSubject() string { return q.conn.Subject("term") }

const (
	stateKind = "state" // the leader's state of an import, with each group of results
	endKind   = "end"   // the import has ended: no result is written after it
)

// outcomeKinds are the kinds of the messages that are results.
func outcomeKinds() []string {
	kinds := make([]string, len(job.Outcomes))
	for i, o := range job.Outcomes {
		kinds[i] = string(o)
	}
	return kinds
}

const (
	// requestTime is how long one request may take; see [broker.Conn.Ask].
	requestTime = 5 * time.Second

	// purgeTime is how long the server may take to remove the messages of a subject. It reads each block that has some:
	// 0.26 s for 400,000 messages, measured on a machine with two cores; 1.3 s for the jobs of 300,000 groups of 20.
	purgeTime = 2 * time.Minute

	// retryTime is how long a failed write is tried again before its command gives up.
	retryTime = 30 * time.Second
)

// fault is [broker.Conn.Fault].
func (q *Queue) fault(ctx context.Context, doing string, err error) error {
	return q.conn.Fault(ctx, doing, err)
}

// lastSeq returns the sequence at which a stream ends.
func (q *Queue) lastSeq(ctx context.Context, stream string) (uint64, error) {
	s, err := q.conn.StreamState(ctx, stream, "")
	return s.LastSeq, err
}

// errStale says that what was read has changed since: read it again. It stays inside this package.
var errStale = errors.New("changed meanwhile")
