package queue

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
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

// MaxSyncName is how many bytes the name of a sync can have.
const MaxSyncName = 32

var (
	// ErrNoSync is wrapped by the error of a call for a sync that has no record yet.
	ErrNoSync = errors.New("no such sync")

	// ErrSyncChanged is wrapped by the error of an [Queue.UpdateSync] whose sync was moved on by another process.
	ErrSyncChanged = errors.New("another process began a night of this sync")
)

// ValidSyncName tells whether a sync can have that name.
func ValidSyncName(name string) bool { return len(name) <= MaxSyncName && job.ValidImportID(name) }

// A Sync is the record of a recurring import. Each of its imports is a night:
//
//	night N, pending        its results are on the results stream, and in no snapshot
//	  │  night N+1: plan on snapshot and results, FenceNight, read the results again, PutSnapshot
//	  ▼
//	UpdateSync              generation + 1, the new snapshot has the results of night N, pending is night N+1
//	  │  Begin, Enqueue; DeleteSnapshots
//	  ▼
//	night N+1, pending
//
// A crash anywhere leaves a record that is right: a snapshot is stored before the record names it, and the results of the
// pending night are not deleted. Each change is a compare-and-set.
type Sync struct {
	Name   string `json:"name"`
	Target string `json:"target"` // which API the groups are in: what one holds is never taken for what another one does

	Generation int    `json:"generation"`         // counts up each time that a night is begun on something new
	Object     string `json:"object,omitempty"`   // the snapshot in the object store; "" before the first
	Previous   string `json:"previous,omitempty"` // the one before it
	Groups     int64  `json:"groups,omitempty"`   // in the snapshot
	Size       int64  `json:"size,omitempty"`     // of the snapshot in bytes, compressed

	Night    int    `json:"night,omitempty"`   // number of the last one that was begun
	Pending  *Night `json:"pending,omitempty"` // that one: the snapshot does not have its results yet; nil before the first
	Complete *Night `json:"last_complete,omitempty"`

	Confirmed time.Time `json:"confirmed,omitzero"`  // when a night found nothing to do
	Unchanged int       `json:"unchanged,omitempty"` // nights in a row whose input was that of the night before

	revision uint64 // of the record that was read; 0 if there was none
}

// A Night is one import of a sync. The counts are the importer's, but for those of a complete night; this package keeps
// them.
type Night struct {
	Number  int    `json:"night"`
	Import  string `json:"import"`
	Digest  string `json:"digest"`            // of the import's record
	Content string `json:"content,omitempty"` // digest of the input alone
	Base    int    `json:"base"`              // generation that it was planned on

	Files    int   `json:"files,omitempty"`
	Rows     int64 `json:"rows,omitempty"`
	Accepted int64 `json:"accepted,omitempty"`
	Rejected int64 `json:"rejected,omitempty"`
	Users    int64 `json:"users,omitempty"`
	Groups   int64 `json:"groups,omitempty"`

	Mirror  bool `json:"mirror,omitempty"`  // it was begun in mirror mode
	Removes bool `json:"removes,omitempty"` // and it is not the first one in it, which removes nothing
	Clear   bool `json:"clear,omitempty"`   // users of whom the input has no row lose all

	Begun time.Time `json:"begun,omitzero"`

	// Of Sync.Complete alone:
	Completed time.Time `json:"completed,omitzero"`  // for the first time
	Unchanged int64     `json:"unchanged,omitempty"` // of the accepted rows: nothing was sent for them
	Done      int64     `json:"done,omitempty"`      // conversations that were sent, and are in their group
	Failed    int64     `json:"failed,omitempty"`    // that are not
	Removed   int64     `json:"removed,omitempty"`   // conversations that were taken out, those of deleted groups, too
	Withheld  int64     `json:"withheld,omitempty"`  // that were not, for rejected rows
	Deleted   int64     `json:"deleted,omitempty"`   // groups
}

// completed is the night as its import says that it was complete.
func (n Night) completed(i *Import) *Night {
	n.Completed, n.Unchanged = i.Completed, i.Unchanged
	n.Done, n.Failed = i.Counts.Conversations.Done, i.Counts.Conversations.Failed
	n.Removed, n.Withheld, n.Deleted = i.Counts.Removals.Done, i.Withheld, i.Counts.Deleted
	return &n
}

// AsNight is a complete import as a night of its sync, with what its record knows.
func (i *Import) AsNight() *Night { return Night{Number: i.Night, Import: i.ID}.completed(i) }

// LastComplete is the last night that was complete; nil if there is none. Its record may not say so yet: pending is the
// import of the pending night, or nil.
func (s *Sync) LastComplete(pending *Import) *Night {
	if pending != nil && pending.State == Complete && s.pending(pending.ID) {
		night := s.Pending.completed(pending)
		if c := s.Complete; c != nil && c.Number == night.Number {
			night.Completed = c.Completed // not that of a retry
		}
		return night
	}
	return s.Complete
}

// Seen is when a night was complete, or found nothing to do; the zero time before the first.
func (s *Sync) Seen() time.Time {
	seen := s.Confirmed
	if s.Complete != nil && s.Complete.Completed.After(seen) {
		seen = s.Complete.Completed
	}
	return seen
}

// NewSync is the record of a sync that has none yet.
func NewSync(name, target string) Sync { return Sync{Name: name, Target: target} }

// pending tells whether an import is the pending night.
func (s *Sync) pending(importID string) bool { return s.Pending != nil && s.Pending.Import == importID }

// sameBase tells whether a night that was planned on one of both holds on the other one, too.
func (s *Sync) sameBase(other *Sync) bool {
	return s.Generation == other.Generation && s.Night == other.Night && s.Object == other.Object &&
		(s.Pending == nil) == (other.Pending == nil) && (s.Pending == nil || other.pending(s.Pending.Import))
}

// clone copies what s points to.
func (s Sync) clone() Sync {
	for _, n := range []**Night{&s.Pending, &s.Complete} {
		if *n != nil {
			night := **n
			*n = &night
		}
	}
	return s
}

// syncVersion is the version of a sync's record that this package writes, and the newest that it reads.
const syncVersion = 1

// storedSync is the wire form.
type storedSync struct {
	Version int    `json:"v"`
	Write   string `json:"write"` // new with each write: tells whether it was this one that came through
	Sync
}

const syncPrefix = "sync."

// syncID is NAME.HASH, for keys and subjects.
func syncID(name, target string) string {
	sum := sha256.Sum256([]byte(target))
	return name + "." + hex.EncodeToString(sum[:6])
}

func (s *Sync) id() string { return syncID(s.Name, s.Target) }

func decodeSync(b []byte, revision uint64) (s storedSync, err error) {
	if err := decodeVersioned(b, syncVersion, &s); err != nil {
		return s, fmt.Errorf("decode the record of a sync: %w", err)
	}
	s.revision = revision
	return s, nil
}

// Sync reads the record of a sync. The error wraps [ErrNoSync] when there is none.
func (q *Queue) Sync(ctx context.Context, name, target string) (Sync, error) {
	s, err := q.storedSync(ctx, name, target)
	return s.Sync, err
}

func (q *Queue) storedSync(ctx context.Context, name, target string) (storedSync, error) {
	if !ValidSyncName(name) {
		return storedSync{}, fmt.Errorf("sync name %q: use 1 to %d of A-Z, a-z, 0-9, - and _", name, MaxSyncName)
	}
	b, revision, err := q.controlValue(ctx, syncPrefix+syncID(name, target))
	if err != nil {
		return storedSync{}, err
	}
	if len(b) == 0 {
		return storedSync{}, fmt.Errorf("%w: %s", ErrNoSync, name)
	}
	s, err := decodeSync(b, revision)
	if err == nil && (s.Name != name || s.Target != target) {
		err = fmt.Errorf("the record of sync %s is that of %s at %s", name, s.Name, s.Target)
	}
	return s, err
}

// Syncs reads the records of all syncs, by name.
func (q *Queue) Syncs(ctx context.Context) ([]Sync, error) {
	entries, err := q.controlValues(ctx, syncPrefix+">")
	if err != nil {
		return nil, q.fault(ctx, "list syncs", err)
	}
	all := make([]Sync, 0, len(entries))
	for _, e := range entries {
		s, err := decodeSync(e.Value(), e.Revision())
		if err != nil {
			return nil, err
		}
		all = append(all, s.Sync)
	}
	slices.SortFunc(all, func(a, b Sync) int { return strings.Compare(a.id(), b.id()) })
	return all, nil
}

// UpdateSync changes the record of a sync that was read before, and returns it as it is then. What was noted meanwhile
// that no plan rests on, as that the pending night is complete, does no harm: change is made to the newest record, once
// more if another process was quicker, so that it must depend on its argument alone. Where the generation, the snapshot or
// the pending night are others by now, the error wraps [ErrSyncChanged] and nothing is written. With the record of a
// [NewSync] it makes one.
func (q *Queue) UpdateSync(ctx context.Context, read Sync, change func(*Sync)) (Sync, error) {
	doing := "update sync " + read.Name
	write := nuid.Next()
	for {
		now, err := q.storedSync(ctx, read.Name, read.Target)
		if errors.Is(err, ErrNoSync) {
			now, err = storedSync{Sync: NewSync(read.Name, read.Target)}, nil
		}
		switch {
		case err != nil:
			return Sync{}, err
		case now.Write == write: // the response to it was lost
			return now.Sync, nil
		case !now.sameBase(&read):
			return Sync{}, fmt.Errorf("%s: %w", doing, ErrSyncChanged)
		}
		next := now.clone()
		change(&next)
		next.Name, next.Target, next.revision = read.Name, read.Target, now.revision
		if now.revision != 0 && reflect.DeepEqual(next, now.Sync) {
			return next, nil
		}
		b, err := json.Marshal(storedSync{syncVersion, write, next})
		if err != nil {
			return Sync{}, err
		}
		broker.Failpoint("sync-before")
		broker.FailInside("sync-inside")
		err = q.conn.Ask(ctx, func(ctx context.Context) (err error) {
			if now.revision == 0 {
				next.revision, err = q.control.Create(ctx, syncPrefix+next.id(), b)
			} else {
				next.revision, err = q.control.Update(ctx, syncPrefix+next.id(), b, now.revision)
			}
			return err
		})
		if err == nil {
			broker.Failpoint("sync-after")
			return next, nil
		}
		if !broker.LostRace(err) && !errors.Is(err, jetstream.ErrKeyExists) {
			return Sync{}, q.fault(ctx, doing, err)
		}
	}
}
