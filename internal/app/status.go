package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"groupferry/internal/broker"
	"groupferry/internal/governor"
	"groupferry/internal/queue"
)

// An ImportStatus is how far an import is. Its JSON form is read by programs: fields are added, never changed.
type ImportStatus struct {
	Import        string             `json:"import"`
	State         string             `json:"state"` // enqueueing, running, complete, cancelled, retrying, deleting
	Paused        bool               `json:"paused"`
	Simulated     bool               `json:"simulated,omitempty"`
	Files         []string           `json:"files"`
	Created       time.Time          `json:"created"`
	Completed     *time.Time         `json:"completed,omitempty"`
	Rows          int64              `json:"rows"`
	Accepted      int64              `json:"accepted"`
	Unchanged     int64              `json:"unchanged,omitempty"` // of these: nothing is to be sent, see [Night]
	Duplicates    int64              `json:"duplicates"`
	Rejected      int64              `json:"rejected"`
	RejectsFile   string             `json:"rejects_file,omitempty"`
	Jobs          JobCounts          `json:"jobs"`
	Conversations ConversationCounts `json:"conversations"`      // that are added
	Removals      ConversationCounts `json:"removals,omitzero"`  // conversations that are taken out
	Withheld      int64              `json:"withheld,omitempty"` // conversations that a mirror would take out, but for rejected rows
	Restored      ConversationCounts `json:"restored,omitzero"`  // that were there before, and were sent again because their group was gone
	Deleted       int64              `json:"deleted_groups,omitempty"`
	Renamed       int64              `json:"renamed_groups,omitempty"`
	Calls         int64              `json:"calls"`        // that the results took
	Rate          float64            `json:"rate"`         // jobs a second over the last minute
	SecondsLeft   *float64           `json:"seconds_left"` // null when nobody knows
	LastResult    *time.Time         `json:"last_result,omitempty"`
	Retry         *RetryStatus       `json:"retry,omitempty"`   // the last one
	Damaged       string             `json:"damaged,omitempty"` // what is wrong with what is stored of it

	Sync       string `json:"sync,omitempty"`         // the import is a night of this sync
	Night      int    `json:"night_number,omitempty"` // its number; "night" is the report of a run
	NextNight  int    `json:"next_night,omitempty"`   // that has taken over from it: it cannot be retried any more
	Superseded bool   `json:"superseded,omitempty"`   // it was not over then: what had not started was dropped
}

// A SyncStatus is how far a sync is. Its JSON form is read by programs: fields are added, never changed.
type SyncStatus struct {
	Sync          string       `json:"sync"`
	Target        string       `json:"target"`              // see [Target]
	Last          *queue.Night `json:"last_complete"`       // null before the first
	Night         int          `json:"night"`               // the last one that was begun
	Import        string       `json:"import"`              // that one
	Begun         *time.Time   `json:"begun,omitempty"`     // that one
	Confirmed     *time.Time   `json:"confirmed,omitempty"` // when a night last found nothing to do
	Unchanged     int          `json:"unchanged_nights"`    // in a row, whose input was that of the night before
	Generation    int          `json:"generation"`          // of the snapshot
	Snapshot      int64        `json:"snapshot_groups"`
	SnapshotBytes int64        `json:"snapshot_bytes"`
}

// newSyncStatus needs the import of the pending night, if there is a record of it.
func newSyncStatus(s *queue.Sync, pending *queue.Import) SyncStatus {
	status := SyncStatus{
		Sync: s.Name, Target: s.Target, Last: s.LastComplete(pending), Night: s.Night, Unchanged: s.Unchanged,
		Generation: s.Generation, Snapshot: s.Groups, SnapshotBytes: s.Size,
	}
	if p := s.Pending; p != nil {
		status.Import, status.Begun = p.Import, &p.Begun
	}
	if !s.Confirmed.IsZero() {
		status.Confirmed = &s.Confirmed
	}
	return status
}

// A RetryStatus is how far a retry is. Until a job of it has its new result, it counts as what it was before.
type RetryStatus struct {
	Generation int      `json:"generation"`      // 1 for the first retry
	Jobs       int64    `json:"jobs"`            // 0 until all are on the queue
	Pending    int64    `json:"pending"`         // those in flight included
	Codes      []string `json:"codes,omitempty"` // of the failures that it is about; all when empty
}

// JobCounts are the jobs of an import by what became of them.
type JobCounts struct {
	Total    int64 `json:"total"`
	Done     int64 `json:"done"`
	Partial  int64 `json:"partial"`
	Failed   int64 `json:"failed"`
	Pending  int64 `json:"pending"` // without a result, those in flight included
	InFlight int64 `json:"in_flight"`
	Dropped  int64 `json:"dropped"` // by cancel
}

// Add adds the jobs of another import.
func (n *JobCounts) Add(other JobCounts) {
	n.Total += other.Total
	n.Done += other.Done
	n.Partial += other.Partial
	n.Failed += other.Failed
	n.Pending += other.Pending
	n.InFlight += other.InFlight
	n.Dropped += other.Dropped
}

// ConversationCounts are the conversations of an import by what became of them.
type ConversationCounts struct {
	Total   int64 `json:"total"`
	Done    int64 `json:"done"`
	Failed  int64 `json:"failed"`
	Pending int64 `json:"pending"`
	Dropped int64 `json:"dropped"`
}

func (n *ConversationCounts) drop() { n.Pending, n.Dropped = 0, n.Pending }

// rateFresh is the maximum age of a rate that is shown: what a leader wrote before that says nothing about now. Clocks of
// other machines are not exact to much less.
const rateFresh = 15 * time.Second

// hasRate reports whether the rate of an import says something about now.
func hasRate(p *queue.Progress) bool { return !p.Import.Paused && time.Since(p.At).Abs() < rateFresh }

// ImportStatus reads how far an import is. The error wraps [queue.ErrNoImport] when there is none. It is a
// *[broker.DamagedError] when what is stored of it is damaged; the status then says what could be read.
func (n *Namespace) ImportStatus(ctx context.Context, id string) (ImportStatus, error) {
	p, err := n.Progress(ctx, id)
	if damaged := errors.As(err, new(*broker.DamagedError)) && p.Import.ID != ""; err != nil && !damaged {
		return ImportStatus{}, err
	}
	limit, rateErr := n.limit(ctx)
	if rateErr != nil {
		return ImportStatus{}, rateErr
	}
	return newImportStatus(p, limit), err
}

// limit is how many calls a second the leader may make of each command, as far as anybody else knows.
func (n *Namespace) limit(ctx context.Context) (float64, error) {
	set, err := n.Rate(ctx)
	return float64(cmp.Or(set, governor.DefaultRate)), err
}

// newImportStatus needs the limit for the time left, until a rate is measured.
func newImportStatus(p queue.Progress, limit float64) ImportStatus {
	i, n := p.Import, p.Counts
	results := n.Jobs.Done + n.Jobs.Partial + n.Jobs.Failed
	s := ImportStatus{
		Import: i.ID, State: string(i.State), Paused: i.Paused, Simulated: i.Simulated, Files: i.Files, Created: i.Created,
		Rows: i.Rows, Accepted: i.Accepted, Unchanged: i.Unchanged, Duplicates: i.Duplicates, Rejected: i.Rejected, RejectsFile: i.RejectsFile,
		Jobs: JobCounts{Total: i.Jobs, Done: n.Jobs.Done, Partial: n.Jobs.Partial, Failed: n.Jobs.Failed,
			Pending: i.Jobs - results, InFlight: p.InFlight},
		Conversations: ConversationCounts{Total: i.Conversations, Done: n.Conversations.Done, Failed: n.Conversations.Failed,
			Pending: i.Conversations - n.Conversations.Done - n.Conversations.Failed},
		Removals: ConversationCounts{Total: i.Removals, Done: n.Removals.Done, Failed: n.Removals.Failed,
			Pending: i.Removals - n.Removals.Done - n.Removals.Failed},
		Withheld: i.Withheld,
		Restored: ConversationCounts{Total: n.Restored.Done + n.Restored.Failed, Done: n.Restored.Done, Failed: n.Restored.Failed},
		Deleted:  n.Deleted, Renamed: n.Renamed,
		Calls: n.Calls,
		Sync:  i.Sync, Night: i.Night, NextNight: i.NextNight, Superseded: i.Superseded,
	}
	if s.Files == nil {
		s.Files = []string{}
	}
	if !i.Completed.IsZero() {
		s.Completed = &i.Completed
	}
	if !n.LastResult.IsZero() {
		s.LastResult = &n.LastResult
	}
	todo, calls := s.Jobs.Pending, i.Calls
	if i.Generation > 0 {
		todo, calls = p.Pending+p.InFlight, i.Jobs
		s.Retry = &RetryStatus{Generation: i.Generation, Jobs: i.Retried, Pending: todo, Codes: i.RetryCodes}
	}
	if i.State == queue.Cancelled {
		s.Jobs.Pending, s.Jobs.Dropped = 0, s.Jobs.Pending
		s.Conversations.drop()
		s.Removals.drop()
	}
	switch {
	case i.State.Over():
		zero := 0.0
		s.SecondsLeft = &zero
	case hasRate(&p):
		s.Rate = p.Rate
		if left := timeLeft(todo, planned(limit, i.Jobs, calls), p.Rate, p.RateOver).Seconds(); left > 0 {
			s.SecondsLeft = &left
		}
	}
	return s
}

// Over reports whether nothing more is going to be done for the import, unless it is retried.
func (s *ImportStatus) Over() bool { return queue.ImportState(s.State).Over() }

// Incomplete reports whether a row was rejected, or a job failed, is partial or was dropped.
func (s *ImportStatus) Incomplete() bool {
	return s.Rejected > 0 || s.Jobs.Partial > 0 || s.Jobs.Failed > 0 || s.Jobs.Dropped > 0
}

// CheckSums returns an error when a row or a conversation is unaccounted for.
func (s *ImportStatus) CheckSums() error {
	c, pending := s.Conversations, s.Conversations.Pending+s.Removals.Pending
	switch {
	case s.Rows != s.Accepted+s.Duplicates+s.Rejected:
		return fmt.Errorf("the counts do not add up: %d rows, %d accepted + %d duplicates + %d rejected",
			s.Rows, s.Accepted, s.Duplicates, s.Rejected)
	case s.Accepted != s.Unchanged+c.Total:
		return fmt.Errorf("the counts do not add up: %d rows accepted, %d of them unchanged, %d conversations",
			s.Accepted, s.Unchanged, c.Total)
	case c.Pending < 0 || s.Removals.Pending < 0 || s.Jobs.Pending < 0 || pending > 0 && s.Jobs.Pending == 0 ||
		pending == 0 && s.Jobs.Pending > 0 && s.Sync == "": // a job of a sync may be no more than a rename
		return fmt.Errorf("the counts do not add up: %d of %d jobs, %d of %d conversations and %d of %d removals have no result",
			s.Jobs.Pending, s.Jobs.Total, c.Pending, c.Total, s.Removals.Pending, s.Removals.Total)
	case s.State == string(queue.Complete) && pending != 0:
		return fmt.Errorf("the counts do not add up: complete, but %d conversations and %d removals have no result",
			c.Pending, s.Removals.Pending)
	}
	return nil
}

// A Status is how far the imports of a namespace are. Its JSON form is read by programs.
type Status struct {
	Imports []ImportStatus `json:"imports"`         // newest first
	Syncs   []SyncStatus   `json:"syncs,omitempty"` // by name; not where imports are named
	Halt    *queue.Halt    `json:"halt"`            // null while calls may be made

	Damaged error `json:"-"` // about the imports that are
}

// Status reads how far the imports with these IDs are, or all of them when none is named. The error wraps
// [queue.ErrNoImport] when there is no import of an ID. Damage is no error, but part of the status.
func (n *Namespace) Status(ctx context.Context, ids ...string) (Status, error) {
	s := Status{Imports: []ImportStatus{}}
	var err error
	if s.Halt, err = n.Halted(ctx); err != nil {
		return s, err
	}
	if len(ids) == 0 {
		all, err := n.AllProgress(ctx)
		if err != nil {
			return s, err
		}
		limit, err := n.limit(ctx)
		if err != nil {
			return s, err
		}
		records := map[string]*queue.Import{}
		for i, p := range all {
			s.add(newImportStatus(p, limit), p.Damaged)
			records[p.Import.ID] = &all[i].Import
		}
		syncs, err := n.Syncs(ctx)
		if err != nil {
			return s, err
		}
		for _, sync := range syncs {
			var pending *queue.Import
			if sync.Pending != nil {
				pending = records[sync.Pending.Import]
			}
			s.Syncs = append(s.Syncs, newSyncStatus(&sync, pending))
		}
	}
	for _, id := range ids {
		i, err := n.ImportStatus(ctx, id)
		if err != nil && !errors.As(err, new(*broker.DamagedError)) {
			return s, err
		}
		s.add(i, err)
	}
	return s, nil
}

func (s *Status) add(i ImportStatus, damaged error) {
	if damaged != nil {
		s.Damaged = errors.Join(s.Damaged, damaged)
		i.Damaged = damaged.Error()
	}
	if s.Halt != nil && !i.Over() { // no call is made
		i.Rate, i.SecondsLeft = 0, nil
	}
	s.Imports = append(s.Imports, i)
}

// Over reports whether nothing is going to change by itself.
func (s *Status) Over() bool {
	for i := range s.Imports {
		if !s.Imports[i].Over() {
			return false
		}
	}
	return true
}
