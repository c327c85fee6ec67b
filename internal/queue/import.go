package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"groupferry/internal/broker"
	"groupferry/internal/job"
)

var (
	// ErrNoImport is wrapped by the error of a call for an import that never existed or is deleted.
	ErrNoImport = errors.New("no such import")

	// ErrUnfinished is wrapped by the error of a call that is possible only after the end of an import.
	ErrUnfinished = errors.New("import is not finished")

	// ErrCancelled is wrapped by the error of a [Queue.Enqueue] or [Queue.Retry] that somebody cancelled.
	ErrCancelled = errors.New("the import was cancelled")
)

// A ConflictError says that an import ID is taken by an import with other content.
type ConflictError struct{ ID string }

func (e *ConflictError) Error() string {
	return fmt.Sprintf("import ID %q belongs to an import with other content: choose another --import-id, "+
		"or leave it out to have one made from the content", e.ID)
}

// ImportState says how far an import got. Each change is a compare-and-set of the record:
//
//	enqueueing ──► running ──► complete ──► deleting ──► (gone)
//	   │              │   ▲      │  ▲            ▲
//	   │              │   │      ▼  │ cancelled  │
//	   │              │   └─── retrying          │
//	   └──────────────┴─────► cancelled ─────────┘
//
// An import, or a retry, without jobs is complete when it is enqueued.
// A retry that is cancelled, as it is enqueued or later, leaves the import complete.
type ImportState string

const (
	Enqueueing ImportState = "enqueueing" // some of its jobs may not be on the queue yet
	Running    ImportState = "running"    // all of its jobs are on the queue
	Complete   ImportState = "complete"   // all of its jobs have a result
	Cancelled  ImportState = "cancelled"  // its jobs without a result were dropped
	Retrying   ImportState = "retrying"   // some of the jobs of a retry may not be on the queue yet
	Deleting   ImportState = "deleting"   // its results and then its record are being removed
)

// Over reports whether the import has ended, unless it is retried.
func (s ImportState) Over() bool { return s == Complete || s == Cancelled || s == Deleting }

// importVersion is the version of an import record that this package writes, and the newest that it reads.
const importVersion = 1

// An Import is the record of one import. This package stores the counts of rows, which the importer makes.
type Import struct {
	ID        string      `json:"import"`
	Digest    string      `json:"digest"` // of the content and of the options that change jobs
	State     ImportState `json:"state"`
	Simulated bool        `json:"simulated,omitempty"` // its calls go to the simulator
	Paused    bool        `json:"paused,omitempty"`    // by a person: none of its jobs is handed out

	Created   time.Time `json:"created,omitzero"`
	Enqueued  time.Time `json:"enqueued,omitzero"`  // since when all jobs of the generation are on the queue
	Completed time.Time `json:"completed,omitzero"` // since when it is over

	Rows          int64 `json:"rows"` // Accepted + Duplicates + Rejected
	Accepted      int64 `json:"accepted"`
	Duplicates    int64 `json:"duplicates"`
	Rejected      int64 `json:"rejected"`
	Unchanged     int64 `json:"unchanged,omitempty"` // of the accepted ones, those that a night of a sync found to be there
	Conversations int64 `json:"conversations"`       // that its jobs add
	Removals      int64 `json:"removals,omitempty"`  // conversations that its jobs take out
	Withheld      int64 `json:"withheld,omitempty"`  // conversations that a mirror would take out, but for rejected rows
	Calls         int64 `json:"calls"`               // if none has to be repeated
	Jobs          int64 `json:"jobs"`                // 0 until Enqueue has counted them, if Begin did not get it

	// Incarnation is new with each Begin. It tells the data of a deleted import from that of a later one with the same
	// ID.
	Incarnation string `json:"incarnation"`

	Generation int      `json:"generation,omitempty"`  // how often it was retried
	Retried    int64    `json:"retried,omitempty"`     // jobs of the last retry, once they are on the queue
	RetryCodes []string `json:"retry_codes,omitempty"` // of the failures that are retried; empty means all
	RetryFrom  uint64   `json:"retry_from,omitempty"`  // results of this generation have a higher sequence
	RetryOf    int64    `json:"retry_of,omitempty"`    // partial and failed results, replaced ones too, up to RetryFrom
	FirstRetry uint64   `json:"first_retry,omitempty"` // RetryFrom of the first retry; 0 if there was none

	Counts Counts `json:"counts"` // of its results; final, and set while it is over

	Sync       string `json:"sync,omitempty"`       // the import is a night of this sync
	Night      int    `json:"night,omitempty"`      // its number
	Target     string `json:"target,omitempty"`     // of the sync; a leader with another one hands out none of its jobs
	NextNight  int    `json:"next_night,omitempty"` // the night that takes over from it: it cannot be retried any more
	Superseded bool   `json:"superseded,omitempty"` // it was not over when that night came, and was cut off

	Files       []string `json:"files,omitempty"`  // as a person named them, and maybe not all
	Inputs      Names    `json:"inputs,omitempty"` // those that were read; what job.Conversation.File counts into
	RejectsFile string   `json:"rejects_file,omitempty"`
}

// same reports whether both records have the same incarnation and generation.
func (i *Import) same(other *Import) bool {
	return i.Incarnation == other.Incarnation && i.Generation == other.Generation
}

// live reports whether jobs of the record's generation may be on the queue or be put there.
func (i *Import) live() bool { return !i.State.Over() }

// enqueued sets what a checkpoint says that is done: all jobs of the record's generation are on the queue. It does
// nothing if the record says so already, or is over. Whoever sets Complete calls it first: the enqueuer may have been
// killed before it did. With no jobs the import is complete: there is nothing that a leader would have to do.
func (i *Import) enqueued(p checkpoint) {
	if !p.Done || p.Ended || !p.of(i) {
		return
	}
	switch i.State {
	case Enqueueing:
		i.Jobs = p.Jobs
	case Retrying:
		i.Retried = p.Jobs
	default:
		return
	}
	i.State, i.Enqueued = Running, now()
	if p.Jobs == 0 {
		i.State, i.Completed, i.Paused = Complete, i.Enqueued, false
	}
}

// now returns the time for records: in UTC, without the monotonic reading, which the wire form does not have.
func now() time.Time { return time.Now().UTC().Round(0) }

// storedImport is the wire form.
type storedImport struct {
	Version int `json:"v"`
	Import
}

const importPrefix = "import."

func importKey(id string) string { return importPrefix + id }

func encodeImport(i Import) ([]byte, error) {
	return json.Marshal(storedImport{importVersion, i})
}

func decodeImport(b []byte) (Import, error) {
	var s storedImport
	if err := decodeVersioned(b, importVersion, &s); err != nil {
		return Import{}, fmt.Errorf("decode import record: %w", err)
	}
	return s.Import, nil
}

// Begin stores the record of a new import, in the state [Enqueueing]. It sets Created if it is zero. If the ID exists
// with the same digest, Begin returns the stored record, and existed is true; with another digest the error is a
// [*ConflictError].
//
// What was cut off is finished first: the deletion of an import of that ID, or the end of one that is over. The error is a
// [*broker.DamagedError] if there are jobs or results of an import whose record is not there.
//
// A night of a sync can be begun while it is the pending one; the error is a [*NewerNightError] when it is not any more.
func (q *Queue) Begin(ctx context.Context, i Import) (stored Import, existed bool, err error) {
	if !job.ValidImportID(i.ID) {
		return Import{}, false, fmt.Errorf("import ID %q: use 1 to %d of A-Z, a-z, 0-9, - and _", i.ID, job.MaxImportID)
	}
	i.State, i.Generation, i.Incarnation, i.Counts = Enqueueing, 0, nuid.Next(), Counts{}
	if i.Created.IsZero() {
		i.Created = time.Now()
	}
	i.Created = i.Created.UTC().Round(0)
	for {
		stored, existed, err = q.begin(ctx, i)
		if err == nil {
			err = q.checkPending(ctx, &stored)
		}
		if !errors.Is(err, errStale) {
			return stored, existed, err
		}
	}
}

func (q *Queue) begin(ctx context.Context, i Import) (stored Import, existed bool, err error) {
	stored, _, err = q.importRecord(ctx, i.ID)
	if errors.Is(err, ErrNoImport) {
		if err = q.create(ctx, i); err == nil {
			_, _, err = q.startGeneration(ctx, i)
			return i, false, err
		}
	}
	if err != nil {
		return Import{}, false, err
	}
	if stored.State == Deleting {
		if err := q.Delete(ctx, i.ID); err != nil && !errors.Is(err, ErrNoImport) {
			return Import{}, false, err
		}
		return Import{}, false, errStale
	}
	if stored.Incarnation == i.Incarnation { // the response to an earlier request was lost
		_, _, err = q.startGeneration(ctx, stored)
		return stored, false, err
	}
	if stored.Digest != i.Digest {
		return Import{}, false, &ConflictError{ID: i.ID}
	}
	if stored.State.Over() { // its end may have been cut off
		if err := q.drainAndEnd(ctx, stored, drainTime); err != nil {
			return Import{}, false, fmt.Errorf("end import %s: %w", i.ID, err)
		}
	}
	return stored, true, nil
}

// create stores a new record. It returns errStale if there is one by now.
func (q *Queue) create(ctx context.Context, i Import) error {
	leftovers, err := q.leftovers(ctx, i.ID)
	if err != nil {
		return err
	}
	b, err := encodeImport(i)
	if err != nil {
		return err
	}
	broker.Failpoint("begin-before")
	broker.FailInside("begin-inside")
	err = q.conn.Ask(ctx, func(ctx context.Context) error {
		_, err := q.control.Create(ctx, importKey(i.ID), b)
		return err
	})
	if errors.Is(err, jetstream.ErrKeyExists) || broker.LostRace(err) {
		return errStale
	}
	if err != nil {
		return q.fault(ctx, "begin import "+i.ID, err)
	}
	broker.Failpoint("begin-after")
	// There was no record when this one was made, so what is older is from deleted imports.
	if leftovers > 0 {
		return q.purgeResults(ctx, i.ID, leftovers)
	}
	return nil
}

// Import reads the record of an import. The error wraps [ErrNoImport] if there is none.
func (q *Queue) Import(ctx context.Context, id string) (Import, error) {
	i, _, err := q.importRecord(ctx, id)
	return i, err
}

func (q *Queue) importRecord(ctx context.Context, id string) (Import, uint64, error) {
	if !job.ValidImportID(id) {
		return Import{}, 0, fmt.Errorf("%w: %q", ErrNoImport, id)
	}
	var e jetstream.KeyValueEntry
	err := q.conn.Ask(ctx, func(ctx context.Context) (err error) {
		e, err = q.control.Get(ctx, importKey(id))
		return err
	})
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return Import{}, 0, fmt.Errorf("%w: %s", ErrNoImport, id)
	}
	if err != nil {
		return Import{}, 0, q.fault(ctx, "read import "+id, err)
	}
	i, err := decodeImport(e.Value())
	return i, e.Revision(), err
}

// Imports reads the records of all imports, newest first.
func (q *Queue) Imports(ctx context.Context) ([]Import, error) {
	entries, err := q.controlValues(ctx, importKey("*"))
	if err != nil {
		return nil, q.fault(ctx, "list imports", err)
	}
	var all []Import
	for _, e := range entries {
		i, err := decodeImport(e.Value())
		if err != nil {
			return nil, q.fault(ctx, "list imports", err)
		}
		all = append(all, i)
	}
	slices.SortFunc(all, func(a, b Import) int { return b.Created.Compare(a.Created) })
	return all, nil
}

// OpenImports lists the imports that may have jobs on the queue, in order of their IDs. These have a checkpoint, which
// is removed last when an import ends. It takes one request, however many imports are over.
func (q *Queue) OpenImports(ctx context.Context) ([]string, error) {
	all := q.checkpointSubject("*")
	s, err := q.conn.StreamState(ctx, q.jobsStream(), all)
	if err != nil {
		return nil, fmt.Errorf("list open imports: %w", err)
	}
	ids := make([]string, 0, len(s.Subjects))
	for subject := range s.Subjects {
		ids = append(ids, strings.TrimPrefix(subject, strings.TrimSuffix(all, "*")))
	}
	slices.Sort(ids)
	return ids, nil
}

// Update changes the record of an import, and returns the new one. It calls change with the newest record, and again if
// another process changed that meanwhile, so change must depend on its argument only.
func (q *Queue) Update(ctx context.Context, id string, change func(*Import)) (Import, error) {
	i, _, err := q.update(ctx, id, change)
	return i, err
}

func (q *Queue) update(ctx context.Context, id string, change func(*Import)) (Import, uint64, error) {
	for {
		i, revision, err := q.importRecord(ctx, id)
		if err != nil {
			return Import{}, 0, err
		}
		was := i
		was.Files, was.RetryCodes = slices.Clone(i.Files), slices.Clone(i.RetryCodes)
		change(&i)
		i.ID, i.Incarnation = id, was.Incarnation
		if reflect.DeepEqual(i, was) {
			return i, revision, nil
		}
		b, err := encodeImport(i)
		if err != nil {
			return Import{}, 0, err
		}
		broker.Failpoint("record-" + string(i.State) + "-before")
		broker.FailInside("record-" + string(i.State) + "-inside")
		var written uint64
		err = q.conn.Ask(ctx, func(ctx context.Context) (err error) {
			written, err = q.control.Update(ctx, importKey(id), b, revision)
			return err
		})
		if err == nil {
			broker.Failpoint("record-" + string(i.State) + "-after")
			return i, written, nil
		}
		if !broker.LostRace(err) {
			return Import{}, 0, q.fault(ctx, "update import "+id, err)
		}
	}
}

// PauseImport stops handing out jobs of the import until [Queue.ResumeImport]. Jobs in flight are finished. It does
// nothing to an import that is over.
func (q *Queue) PauseImport(ctx context.Context, id string) error {
	_, err := q.Update(ctx, id, func(i *Import) { i.Paused = i.Paused || i.live() })
	return err
}

// ResumeImport ends a pause of the import.
func (q *Queue) ResumeImport(ctx context.Context, id string) error {
	_, err := q.Update(ctx, id, func(i *Import) { i.Paused = i.Paused && !i.live() })
	return err
}
