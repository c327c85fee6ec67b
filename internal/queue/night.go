package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"groupferry/internal/broker"
)

// The nights of a sync follow each other over these compare-and-sets, whatever the processes do in between:
//
//	next night                               retry of this one           late process that would begin this one
//	  record of the import: NextNight          refused if NextNight        refused if it has a record
//	  end of the import, see the fence
//	  its results are final: read them
//	  record of the sync: pending moves                                    refused, or cancelled, if not pending
//	  jobs of the next night
//
// So no result of a night comes after its results were read for the last time. What was in flight at the end of the fence is
// all that remains: its calls can still take effect, and have no result. The leader hands out the jobs of the next night when
// none of them can any more, see [Term.mayFollow]: a call of the night before would undo what the next one does.

// A syncNight says which night of which sync an import is; name is "" and number 0 if it is none.
type syncNight struct {
	name, target string
	number       int
}

func (i *Import) syncNight() syncNight { return syncNight{i.Sync, i.Target, i.Night} }

// after reports whether it is a later night of the same sync.
func (n syncNight) after(other syncNight) bool {
	return n.name == other.name && n.target == other.target && n.number > other.number
}

// A NewerNightError says that an import is a night of a sync that is over for good, for a newer one has its results.
type NewerNightError struct {
	Import, Sync string
	Night, Newer int
}

func (e *NewerNightError) Error() string {
	return fmt.Sprintf("import %s is night %d of sync %s, and night %d has taken over from it: "+
		"run the sync again, it sends what failed or is missing", e.Import, e.Night, e.Sync, e.Newer)
}

// newer is the error about an import that the next night has taken over from.
func (i *Import) newer() error { return &NewerNightError{i.ID, i.Sync, i.Night, i.NextNight} }

// cancelled is the error about an import that was cancelled, by a person or for the next night.
func (i *Import) cancelled() error {
	if i.Superseded {
		return fmt.Errorf("%w: %w", ErrCancelled, i.newer())
	}
	return ErrCancelled
}

// A PendingNightError says that an import cannot be deleted, for the next night of its sync needs its results.
type PendingNightError struct {
	Import, Sync string
	Night        int
}

func (e *PendingNightError) Error() string {
	return fmt.Sprintf("import %s is the last night (%d) of sync %s, and the next night needs its results: "+
		"delete it after the next night", e.Import, e.Night, e.Sync)
}

// checkNotPending makes sure that no night needs the results of an import any more. An import becomes pending before it is
// begun, and no second time: so what is found here stays so.
func (q *Queue) checkNotPending(ctx context.Context, i *Import) error {
	if i.Sync == "" {
		return nil
	}
	s, err := q.Sync(ctx, i.Sync, i.Target)
	if errors.Is(err, ErrNoSync) {
		return nil
	}
	if err == nil && s.pending(i.ID) {
		err = &PendingNightError{i.ID, i.Sync, i.Night}
	}
	return err
}

// checkPending makes sure that an import that was begun is the pending night. A process that was frozen for days may begin
// one that is not, when even its record is deleted; that one is ended again.
func (q *Queue) checkPending(ctx context.Context, i *Import) error {
	if i.Sync == "" || !i.live() {
		return nil
	}
	s, err := q.Sync(ctx, i.Sync, i.Target)
	if err != nil || s.pending(i.ID) {
		return err
	}
	if _, err := q.Supersede(ctx, i.ID, s.Night, 0); err != nil {
		return err
	}
	return &NewerNightError{i.ID, i.Sync, i.Night, s.Night}
}

// Supersede ends an import for good, for a newer night of its sync: from then on its results are final, and it cannot be
// retried. Of one that is not over, in whatever state, the jobs that have not started are dropped, and it waits so long for
// the results of those that are in flight; what comes later does not count. Nobody may lead, and nobody knows then that
// nothing is in flight: that takes the whole time. The record as it is then says by which night, and whether the import was
// cut off by it. Of one that is over the record alone is changed, and its end finished if that was cut off.
//
// The error wraps [ErrNoImport] when there is no such import, or it is being deleted.
func (q *Queue) Supersede(ctx context.Context, id string, night int, wait time.Duration) (Import, error) {
	i, err := q.supersede(ctx, id, night, wait)
	if err != nil {
		err = fmt.Errorf("end import %s for night %d: %w", id, night, err)
	}
	return i, err
}

func (q *Queue) supersede(ctx context.Context, id string, night int, wait time.Duration) (Import, error) {
	i, err := q.markOver(ctx, id, night)
	if err != nil {
		return i, err
	}
	if i.State == Deleting {
		return i, fmt.Errorf("%w: it is being deleted", ErrNoImport)
	}
	if err := q.drainAndEnd(ctx, i, wait); err != nil {
		return i, err
	}
	return q.Import(ctx, id) // with the counts
}

// FenceNight makes sure that the pending night of a sync is over for good, and gives its record: see [Queue.Supersede]. A
// night that has no record, for the process that was to begin it died or froze, is begun and ended at once: that process
// finds it cancelled. The error wraps [ErrSyncChanged] when another process has moved the sync on.
func (q *Queue) FenceNight(ctx context.Context, s Sync, wait time.Duration) (Import, error) {
	p := s.Pending
	if p == nil {
		return Import{}, fmt.Errorf("sync %s has no night yet", s.Name)
	}
	for {
		i, err := q.Supersede(ctx, p.Import, p.Number+1, wait)
		if !errors.Is(err, ErrNoImport) {
			return i, err
		}
		broker.Failpoint("fence-before")
		_, _, err = q.Begin(ctx, Import{
			ID: p.Import, Digest: p.Digest, Sync: s.Name, Night: p.Number, Target: s.Target,
			Rows: p.Rows, Accepted: p.Accepted, Rejected: p.Rejected,
		})
		if _, newer := errors.AsType[*NewerNightError](err); newer {
			return Import{}, fmt.Errorf("end night %d of sync %s: %w", p.Number, s.Name, ErrSyncChanged)
		}
		if _, other := errors.AsType[*ConflictError](err); err != nil && !other {
			return Import{}, err
		}
		broker.Failpoint("fence-after")
	}
}

// NoteComplete puts a complete night into the record of its sync, if it is the pending one; after a retry, with its new
// counts. The leader does, and a night whose leader died is noted by the next one: it calls this before it moves the record
// on. It does nothing for other imports.
func (q *Queue) NoteComplete(ctx context.Context, i Import) error {
	if i.Sync == "" || i.State != Complete {
		return nil
	}
	for {
		s, err := q.Sync(ctx, i.Sync, i.Target)
		if errors.Is(err, ErrNoSync) || err == nil && !s.pending(i.ID) {
			return nil
		}
		if err != nil {
			return err
		}
		broker.Failpoint("note-before")
		_, err = q.UpdateSync(ctx, s, func(s *Sync) { s.Complete = s.LastComplete(&i) })
		broker.Failpoint("note-after")
		if !errors.Is(err, ErrSyncChanged) {
			return err
		}
	}
}

// completed finishes the end of an import that was made complete, and notes it in its sync.
func (q *Queue) completed(ctx context.Context, i Import) error {
	if err := q.finishEnd(ctx, i); err != nil || i.Sync == "" {
		return err
	}
	i, err := q.Import(ctx, i.ID) // with the counts
	if errors.Is(err, ErrNoImport) {
		return nil
	}
	if err == nil {
		err = q.NoteComplete(ctx, i)
	}
	if err != nil && ctx.Err() == nil && !broker.Unreachable(err) {
		q.log.Warn("the last complete night of a sync could not be noted", "import", i.ID, "sync", i.Sync, "error", err)
		return nil
	}
	return err
}
