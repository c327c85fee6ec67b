package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"groupferry/internal/job"
)

// ErrNoImport is wrapped by the error of a call for an import that was never begun.
var ErrNoImport = errors.New("no such import")

// ErrUnfinished is wrapped by the error of a [Queue.Complete] that came too early.
var ErrUnfinished = errors.New("import is not finished")

// A ConflictError says that an import ID is taken by an import with other content.
type ConflictError struct{ ID string }

func (e *ConflictError) Error() string {
	return fmt.Sprintf("import ID %q belongs to an import with other content: choose another --import-id, "+
		"or leave it out to have one made from the content", e.ID)
}

// ImportState says how far an import got. It goes forward, but for a retry, which makes a complete one work again:
//
//	enqueueing ► enqueued ► complete ► retrying ► enqueued ► complete …     (any) ► forgetting ► gone
//	         └────────┴───► cancelled
type ImportState string

const (
	Enqueueing ImportState = "enqueueing" // some of its jobs may not be on the queue yet
	Enqueued   ImportState = "enqueued"   // all of its jobs were put on the queue
	Complete   ImportState = "complete"   // all of its jobs have a result
	Cancelled  ImportState = "cancelled"  // somebody had those of its jobs dropped that nobody had in hand
	Retrying   ImportState = "retrying"   // some of the jobs of a retry may not be on the queue yet
	Forgetting ImportState = "forgetting" // its results, and then its record, are being removed
)

// Over tells whether nothing more is going to happen to the import.
func (s ImportState) Over() bool { return s == Complete || s == Cancelled || s == Forgetting }

// importVersion is the version of an import record that this package writes, and the newest that it reads.
const importVersion = 1

// An Import is the record of one intake of input. The counts are the importer's; this package keeps them.
type Import struct {
	ID        string      `json:"import"`
	Digest    string      `json:"digest"` // of the content and of the options that change jobs
	State     ImportState `json:"state"`
	Simulated bool        `json:"simulated,omitempty"` // its calls go to the simulator
	Paused    bool        `json:"paused,omitempty"`    // by a person: no worker takes a job of it

	Created   time.Time `json:"created,omitzero"`
	Enqueued  time.Time `json:"enqueued,omitzero"`
	Completed time.Time `json:"completed,omitzero"`

	Rows          int64 `json:"rows"` // Accepted + Duplicates + Rejected
	Accepted      int64 `json:"accepted"`
	Duplicates    int64 `json:"duplicates"`
	Rejected      int64 `json:"rejected"`
	Conversations int64 `json:"conversations"`
	Calls         int64 `json:"calls"` // needed if all goes well
	Jobs          int64 `json:"jobs"`  // 0 until Enqueue has counted them, if Begin was not told

	Round      int      `json:"round,omitempty"`       // how often it was retried
	Retried    int64    `json:"retried,omitempty"`     // jobs of the last retry
	RetryCodes []string `json:"retry_codes,omitempty"` // which failures it is about; all when empty
	RetryFrom  uint64   `json:"retry_from,omitempty"`  // its results come after this one, by sequence

	// InHand is how many jobs some worker had when somebody cancelled: results that may still come.
	InHand int64 `json:"in_hand,omitempty"`

	Files       []string `json:"files,omitempty"`
	RejectsFile string   `json:"rejects_file,omitempty"`
}

// storedImport is the wire form.
type storedImport struct {
	Version int `json:"v"`
	Import
}

func importKey(id string) string { return "import." + id }

func encodeImport(i Import) ([]byte, error) {
	return json.Marshal(storedImport{importVersion, i})
}

func decodeImport(b []byte) (Import, error) {
	var v struct {
		Version int `json:"v"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return Import{}, fmt.Errorf("decode import record: %w", err)
	}
	if v.Version > importVersion {
		return Import{}, fmt.Errorf("decode import record: version %d: %w", v.Version, job.ErrVersion)
	}
	var s storedImport
	if err := json.Unmarshal(b, &s); err != nil {
		return Import{}, fmt.Errorf("decode import record: %w", err)
	}
	return s.Import, nil
}

// Begin stores the record of a new import, in the state [Enqueueing]; Created is set unless it is. When the ID is
// there already with the same digest, the record as stored comes back, and existed is true; with another digest the
// error is a [*ConflictError].
func (q *Queue) Begin(ctx context.Context, i Import) (stored Import, existed bool, err error) {
	if !job.ValidImportID(i.ID) {
		return Import{}, false, fmt.Errorf("import ID %q: use 1 to %d of A-Z, a-z, 0-9, - and _", i.ID, job.MaxImportID)
	}
	i.State = Enqueueing
	if i.Created.IsZero() {
		i.Created = time.Now()
	}
	i.Created = i.Created.UTC()
	b, err := encodeImport(i)
	if err != nil {
		return Import{}, false, err
	}
	failpoint("begin-before")
	failInside("begin-inside")
	err = q.ask(ctx, func(c context.Context) error {
		_, err := q.control.Create(c, importKey(i.ID), b)
		return err
	})
	if err == nil {
		failpoint("begin-after")
		return i, false, nil
	}
	if !errors.Is(err, jetstream.ErrKeyExists) && !lostRace(err) {
		return Import{}, false, q.fault(ctx, "begin import "+i.ID, err)
	}
	stored, err = q.Import(ctx, i.ID)
	if err == nil && stored.State == Forgetting { // and was cut off at it
		if err = q.Forget(ctx, i.ID); err == nil {
			return q.Begin(ctx, i)
		}
	}
	if err != nil {
		return Import{}, false, err
	}
	if stored.Digest != i.Digest {
		return Import{}, false, &ConflictError{ID: i.ID}
	}
	return stored, true, nil
}

// Import reads the record of an import. The error wraps [ErrNoImport] when there is none.
func (q *Queue) Import(ctx context.Context, id string) (Import, error) {
	i, _, err := q.importRecord(ctx, id)
	return i, err
}

func (q *Queue) importRecord(ctx context.Context, id string) (Import, uint64, error) {
	if !job.ValidImportID(id) {
		return Import{}, 0, fmt.Errorf("%w: %q", ErrNoImport, id)
	}
	var e jetstream.KeyValueEntry
	err := q.ask(ctx, func(c context.Context) (err error) {
		e, err = q.control.Get(c, importKey(id))
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
	var all []Import
	err := q.ask(ctx, func(c context.Context) (err error) {
		all, err = q.listImports(c)
		return err
	})
	if err != nil {
		return nil, q.fault(ctx, "list imports", err)
	}
	return all, nil
}

func (q *Queue) listImports(ctx context.Context) ([]Import, error) {
	w, err := q.control.Watch(ctx, importKey("*"), jetstream.IgnoreDeletes())
	if err != nil {
		return nil, err
	}
	defer w.Stop()
	var all []Import
	for {
		select {
		case e, ok := <-w.Updates():
			if !ok {
				return nil, errors.Join(ctx.Err(), jetstream.ErrConnectionClosed)
			}
			if e == nil { // all that was there has come
				slices.SortFunc(all, func(a, b Import) int { return b.Created.Compare(a.Created) })
				return all, nil
			}
			i, err := decodeImport(e.Value())
			if err != nil {
				return nil, err
			}
			all = append(all, i)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Update changes the record of an import, and returns it as it is then. The change is made to the newest record, once
// more if another process was quicker, so that change must depend on its argument alone.
func (q *Queue) Update(ctx context.Context, id string, change func(*Import)) (Import, error) {
	for {
		i, revision, err := q.importRecord(ctx, id)
		if err != nil {
			return Import{}, err
		}
		was := i
		was.Files, was.RetryCodes = slices.Clone(i.Files), slices.Clone(i.RetryCodes)
		change(&i)
		i.ID = id
		if reflect.DeepEqual(i, was) {
			return i, nil
		}
		b, err := encodeImport(i)
		if err != nil {
			return Import{}, err
		}
		failpoint("record-" + string(i.State) + "-before")
		failInside("record-" + string(i.State) + "-inside")
		err = q.ask(ctx, func(c context.Context) error {
			_, err := q.control.Update(c, importKey(id), b, revision)
			return err
		})
		if err == nil {
			failpoint("record-" + string(i.State) + "-after")
			return i, nil
		}
		if !lostRace(err) {
			return Import{}, q.fault(ctx, "update import "+id, err)
		}
	}
}
