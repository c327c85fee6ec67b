package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"time"

	"groupferry/importer"
	"groupferry/internal/chat"
	"groupferry/internal/job"
	"groupferry/internal/queue"
)

// A sync is an import that recurs under a name; each of its imports is a night. A night has jobs for what is not there yet,
// as far as the nights before know:
//
//	rows ─────────────────────────────┐
//	snapshot ─┐                       ▼
//	          ├─► base ───► plan ───► guards ──► fence ──► snapshot, record of the sync ──► Begin, Enqueue
//	results ──┘  of the night         that is: the night
//	             before               before is over for good
//
// What holds when a process dies on the way is in [queue.Sync].

// SyncConfig says which sync an input is a night of.
type SyncConfig struct {
	Name   string
	Target string // see [Target]
	Holder string // this process, for people
	Full   bool   // send all that is wanted, also what is there
	Mirror bool   // remove what the sync added, and the input has no more
	Clear  bool   // in a mirror: also of users of whom the input has no row at all
	Guards SyncGuards

	// Waiting is called when another process is preparing a night of this sync, which is waited for then. If it is nil the
	// error is a *[queue.LockedError] instead.
	Waiting func(*queue.LockedError)

	// Warn gets a sentence about what does not stop the night.
	Warn func(text string)
}

// Target says which API the groups of a sync are in. A simulator in the same process has another address in each run.
func Target(app queue.App, address string) string {
	if app.Simulated {
		address = "simulated"
	}
	return fmt.Sprintf("%d %s", app.SDKAppID, address)
}

// supersedeWait is how long a night waits for the results of what is in flight of the one before. A call takes some seconds
// at most. What comes later has no result, and is sent again.
const supersedeWait = 30 * time.Second

// A Night is an input that was read as a night of a sync. It has to be closed.
type Night struct {
	*Input
	Sync   queue.Sync // its record
	Number int        // of the night
	Guards []Guard
	Wrong  []string // by the guards

	Continued   bool // the night was begun before, and is not finished
	NothingToDo bool // the input is that of the last night, which is complete, and nothing became known since

	before  *queue.Import // the night before, nil if it has no record
	last    *queue.Night  // the last one that became complete, nil if there is none
	base    int           // generation that it was planned on
	content string

	removals  importer.Removals
	mayReject int64
	fold      bool // the snapshot of the plan is to be stored
	lost      bool // the last snapshot could not be read
	lock      *queue.SyncLock
}

// errAgain says that the night before has ended only now: the night has to be planned again.
var errAgain = errors.New("the night before has ended meanwhile")

// ReadNight reads an input as a night of a sync, and moves the sync on to it. Then its record can be begun, and its jobs
// enqueued; until the night is closed no other process prepares one. Beside those of [ReadInput] the errors are a
// *[ShrinkError], a *[queue.LockedError], one that wraps [queue.ErrLockLost] or [queue.ErrSyncChanged] if another process
// took over, and those of the queue.
func (n *Namespace) ReadNight(ctx context.Context, in InputConfig, cfg SyncConfig) (_ *Night, err error) {
	lock, err := n.LockSync(ctx, cfg.Name, cfg.Holder, cfg.Waiting)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Release(context.WithoutCancel(ctx)))
		}
	}()
	held, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(lock.Context(), func() { cancel(context.Cause(lock.Context())) })()
	night, err := n.readNight(held, in, cfg)
	if err != nil && ctx.Err() == nil && held.Err() != nil {
		err = fmt.Errorf("sync %s: %w", cfg.Name, context.Cause(held))
	}
	if err != nil {
		return nil, err
	}
	night.lock = lock
	return night, nil
}

func (n *Namespace) readNight(ctx context.Context, in InputConfig, cfg SyncConfig) (_ *Night, err error) {
	rows, err := importer.ReadRows(ctx, in.Files, in.Importer)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			rows.Close()
		}
	}()
	warn := cfg.Warn
	cfg.Warn = func(text string) {
		if warn != nil {
			warn(text)
		}
		warn = nil // of every plan it is the same
	}
	for {
		night, err := n.planNight(ctx, rows, in, cfg)
		if err != nil {
			return nil, err
		}
		if in.OnRead != nil {
			if err := in.OnRead(night.Plan); err != nil {
				return nil, err
			}
			in.OnRead = nil
		}
		if err := night.conflict(); err != nil {
			return nil, err
		}
		if err := night.findRejects(in); err != nil {
			return nil, err
		}
		if !night.Continued && !night.NothingToDo {
			if err := night.guard(in, cfg); err != nil {
				return nil, cmp.Or(night.Rejects.Keep(), err)
			}
			err = n.takeNight(ctx, night, cfg)
		} else if night.NothingToDo {
			night.Sync, err = n.UpdateSync(ctx, night.Sync, func(s *queue.Sync) { s.Confirmed, s.Unchanged = now(), s.Unchanged+1 })
		}
		if !errors.Is(err, errAgain) {
			return night, err
		}
	}
}

// now is the time for records.
func now() time.Time { return time.Now().UTC().Round(0) }

// planNight plans rows as the next night of a sync, or as the one that was begun and is not finished. It changes nothing.
func (n *Namespace) planNight(ctx context.Context, rows *importer.Rows, in InputConfig, cfg SyncConfig) (*Night, error) {
	s := queue.NewSync(cfg.Name, cfg.Target)
	if n != nil {
		found, err := n.Queue.Sync(ctx, cfg.Name, cfg.Target)
		if err == nil {
			s = found
		} else if !errors.Is(err, queue.ErrNoSync) {
			return nil, err
		}
	}
	night := &Night{Sync: s, Number: s.Night + 1, base: s.Generation + 1, removals: importer.KeepAll}
	if cfg.Mirror {
		night.removals = importer.OnlyCount // the first one in this mode
		if s.Pending != nil && s.Pending.Mirror {
			night.removals = importer.RemoveAbsent
		}
	}
	if s.Pending == nil {
		return night, n.plan(ctx, night, rows, in, cfg, false)
	}
	before, err := n.Import(ctx, s.Pending.Import)
	switch {
	case err == nil:
		night.before = &before
	case !errors.Is(err, queue.ErrNoImport):
		return nil, err
	}
	over := night.before != nil && night.before.State.Over()
	if !over && rows.Content() == s.Pending.Content {
		// It is this input's own night, unless other flags were given. It was planned on the snapshot alone.
		own := *night
		own.Number, own.base, own.before = s.Pending.Number, s.Pending.Base, nil
		if cfg.Mirror && !s.Pending.Removes {
			own.removals = importer.OnlyCount
		}
		err := n.plan(ctx, &own, rows, in, cfg, true)
		switch {
		case err == nil && own.Plan.ImportID == s.Pending.Import:
			own.Continued = true
			return &own, nil
		case err != nil && !unreadable(err):
			return nil, err
		}
	}
	if err := n.plan(ctx, night, rows, in, cfg, false); err != nil {
		return nil, err
	}
	// The same input is another night where something became known since, and where a person cancelled the last one; and in
	// another mode, or after the first night of a mirror, where it removes something.
	if over && before.State == queue.Complete && before.Counts.Results == 0 && night.content == s.Pending.Content &&
		!night.lost && !cfg.Full && cfg.Mirror == s.Pending.Mirror && night.Plan.Summary.Jobs == 0 {
		night.NothingToDo = true
		night.Number, night.Record.ID, night.Record.Digest = s.Pending.Number, s.Pending.Import, s.Pending.Digest
	}
	return night, nil
}

// unreadable reports whether a snapshot is missing or damaged.
func unreadable(err error) bool {
	return errors.Is(err, queue.ErrSnapshot) || errors.Is(err, importer.ErrSnapshot)
}

// plan plans rows on the snapshot of a sync and the results of the night before. Unless it has to be exact, a snapshot that
// cannot be read is replaced by nothing: then all is sent, once. A mirror is exact, for it removes what is in the snapshot.
func (n *Namespace) plan(
	ctx context.Context, night *Night, rows *importer.Rows, in InputConfig, cfg SyncConfig, exact bool,
) error {
	var results bool
	base := func(snapshot string) *importer.Base {
		name := cfg.Name + "\n" + cfg.Target // the same content for another API is another import
		b := &importer.Base{
			Name: name, Generation: night.base, All: cfg.Full, Removals: night.removals, Clear: cfg.Clear,
			Groups: func(yield func(importer.Group, error) bool) {
				n.yieldKnown(ctx, snapshot, night.before, &results, yield)
			},
		}
		if cfg.Mirror && n != nil {
			b.Others = n.otherGroups(ctx, cfg)
		}
		return b
	}
	plan, err := rows.Plan(ctx, base(night.Sync.Object))
	if err != nil && unreadable(err) && !exact {
		if other, ok := errors.AsType[*SnapshotError](err); ok {
			return other
		}
		if cfg.Mirror {
			return &SnapshotError{cfg.Name, err}
		}
		if cfg.Warn != nil {
			cfg.Warn(fmt.Sprintf("%v: all groups of sync %s are sent again", err, cfg.Name))
		}
		night.lost, night.fold = true, true
		plan, err = rows.Plan(ctx, base(""))
	}
	if err != nil {
		return err
	}
	night.fold = night.fold || results
	if night.Input, err = newInput(plan, in); err != nil {
		return err
	}
	night.content, night.mayReject = plan.Content, in.MaxRejects.allowed(plan.Summary.Rows)
	night.Record.Sync, night.Record.Night, night.Record.Target = cfg.Name, night.Number, cfg.Target
	night.Record.Withheld = plan.Summary.Withheld
	if night.removals == importer.RemoveAbsent {
		night.Record.Removals = plan.Summary.Removed.Conversations
	}
	night.last = night.Sync.LastComplete(night.before)
	night.Guards, night.Wrong = cfg.Guards.compare(plan, night.last, night.removals)
	return nil
}

// yieldKnown passes on what a sync knows: a snapshot, unless it is "", and what became of the night after it, unless that is
// nil. results is set when there is something of the second kind.
func (n *Namespace) yieldKnown(
	ctx context.Context, snapshot string, night *queue.Import, results *bool, yield func(importer.Group, error) bool,
) {
	if snapshot != "" && !n.yieldSnapshot(ctx, snapshot, yield) || night == nil {
		return
	}
	for r, err := range n.Results(ctx, night.ID) {
		*results = true
		if !yield(resultGroup(&r), err) {
			return
		}
	}
	for j, err := range n.UnderWay(ctx, night) {
		*results = true
		for _, g := range underWay(&j) {
			if !yield(g, err) {
				return
			}
		}
		if err != nil && !yield(importer.Group{}, err) {
			return
		}
	}
}

// otherGroups gives the groups that the other syncs of an API know.
func (n *Namespace) otherGroups(ctx context.Context, cfg SyncConfig) iter.Seq2[importer.OtherGroup, error] {
	return func(yield func(importer.OtherGroup, error) bool) {
		all, err := n.Syncs(ctx)
		if err != nil {
			yield(importer.OtherGroup{}, err)
			return
		}
		for _, s := range all {
			if s.Name == cfg.Name || s.Target != cfg.Target {
				continue
			}
			var pending *queue.Import
			if s.Pending != nil {
				i, err := n.Import(ctx, s.Pending.Import)
				if err == nil {
					pending = &i
				} else if !errors.Is(err, queue.ErrNoImport) {
					yield(importer.OtherGroup{}, err)
					return
				}
			}
			more := true
			n.yieldKnown(ctx, s.Object, pending, new(bool), func(g importer.Group, err error) bool {
				if err != nil && unreadable(err) {
					err = &SnapshotError{s.Name, err}
				}
				more = yield(importer.OtherGroup{Sync: s.Name, FromAccount: g.FromAccount, GroupName: g.GroupName}, err)
				return more && err == nil
			})
			if !more {
				return
			}
		}
	}
}

// yieldSnapshot passes a snapshot on, and reports whether more is wanted.
func (n *Namespace) yieldSnapshot(ctx context.Context, object string, yield func(importer.Group, error) bool) bool {
	r, err := n.OpenSnapshot(ctx, object)
	if err != nil {
		return yield(importer.Group{}, err)
	}
	defer r.Close()
	var groups iter.Seq2[importer.Group, error] = importer.ReadSnapshot(r)
	for g, err := range groups {
		if !yield(g, err) {
			return false
		}
	}
	return true
}

// resultGroup is what a result says about its group.
func resultGroup(r *job.Result) importer.Group {
	g := importer.Group{FromAccount: r.FromAccount, GroupName: r.GroupName, OldName: r.OldName, Deleted: r.Deleted || r.Anew}
	if r.Deleted { // with all that the result names, also of an earlier generation
		return g
	}
	for i := range r.Conversations {
		c := &r.Conversations[i]
		state := importer.Applied
		switch refused := chat.Refuses(c.Code); {
		case c.Op == job.Remove && (c.Code == "" || job.Gone(c.Code)):
			state = importer.Removed
		case c.Op == job.Remove && refused: // it is as it was
			continue
		case c.Code == "":
		case refused:
			state = importer.Refused
		default:
			state = importer.Unsure
		}
		g.Conversations = append(g.Conversations, importer.GroupConversation{Type: c.Type, ID: c.ID, State: state})
	}
	return g
}

// underWay is what is known of the group of a job whose calls may have taken effect.
func underWay(j *job.Job) []importer.Group {
	g := importer.Group{FromAccount: j.FromAccount, GroupName: j.GroupName}
	for _, c := range j.Conversations {
		if c.Op == job.Keep && j.OldName == "" {
			continue
		}
		g.Conversations = append(g.Conversations, importer.GroupConversation{Type: c.Type, ID: c.ID, State: importer.Unsure})
	}
	if j.OldName == "" {
		return []importer.Group{g}
	}
	old := g
	old.GroupName = j.OldName
	return []importer.Group{old, g}
}

// conflict returns an *OtherSyncError if a group is another sync's, too.
func (night *Night) conflict() error {
	if c := night.Plan.Conflicts; len(c) > 0 {
		return &OtherSyncError{night.Sync.Name, c}
	}
	return nil
}

// guard asks all guards of a night.
func (night *Night) guard(in InputConfig, cfg SyncConfig) error {
	err := in.guard(night.Plan.Summary, night.Rejects)
	if e, ok := errors.AsType[*GuardError](err); ok && night.last != nil {
		e.Night, e.Last = night.last.Number, night.last.Accepted
	}
	return cmp.Or(err, night.guardShrink(cfg))
}

func (night *Night) guardShrink(cfg SyncConfig) error {
	if len(night.Wrong) == 0 {
		return nil
	}
	e := &ShrinkError{cfg.Name, night.Plan.ImportID, cfg.Guards.Accept, night.Wrong}
	if e.Accepted != e.Import {
		return e
	}
	tooMuch := slices.ContainsFunc(night.Guards, func(g Guard) bool { return g.AtMost && !g.OK })
	if before := night.before; tooMuch && before != nil && !before.State.Over() { // what it still adds may be removed, too
		e.Accepted = ""
		e.Wrong = append(e.Wrong[:len(e.Wrong):len(e.Wrong)],
			fmt.Sprintf("night %d is not over, so that it may become more: accept it after that, or cancel import %s", before.Night, before.ID))
		return e
	}
	return nil
}

// takeNight ends the night before for good, and moves the sync on. The error is errAgain when there may be more results of
// that night now than the plan knows.
func (n *Namespace) takeNight(ctx context.Context, night *Night, cfg SyncConfig) error {
	s := night.Sync
	if s.Pending != nil {
		if night.before != nil {
			if err := n.NoteComplete(ctx, *night.before); err != nil {
				return err
			}
		}
		ended, err := n.FenceNight(ctx, s, supersedeWait)
		if err != nil {
			return err
		}
		before := night.before
		if before == nil { // it was to have no record, and no results
			before = &queue.Import{State: queue.Cancelled}
		}
		if !before.State.Over() || ended.Generation != before.Generation || ended.Counts.Results != before.Counts.Results {
			return errAgain
		}
	}
	object, size, groups := s.Object, s.Size, s.Groups
	if night.fold {
		var err error
		object, size, err = n.PutSnapshot(ctx, s, func(w io.Writer) (err error) {
			groups, err = importer.WriteSnapshot(w, night.Plan.Snapshot())
			return err
		})
		if err != nil {
			return err
		}
	}
	sum := night.Plan.Summary
	moved, err := n.UpdateSync(ctx, s, func(next *queue.Sync) {
		next.Generation = night.base
		if object != next.Object {
			next.Object, next.Previous, next.Size, next.Groups = object, next.Object, size, groups
		}
		if next.Unchanged++; next.Pending == nil || next.Pending.Content != night.content {
			next.Unchanged = 0
		}
		next.Night = night.Number
		next.Pending = &queue.Night{
			Number: night.Number, Import: night.Plan.ImportID, Digest: night.Plan.Digest, Content: night.content, Base: night.base,
			Mirror: cfg.Mirror, Removes: night.removals == importer.RemoveAbsent, Clear: cfg.Clear,
			Files: sum.Files, Rows: sum.Rows, Accepted: sum.Accepted, Rejected: sum.Rejected, Users: sum.Users, Groups: sum.Groups,
			Begun: now(),
		}
	})
	if err != nil {
		return err
	}
	night.Sync = moved
	if night.before != nil {
		if err := n.DropJobs(ctx, night.before); err != nil {
			return err
		}
	}
	return n.DeleteSnapshots(ctx, moved)
}

// Release lets the next night of the sync be prepared. It can be called more than once, and for no night.
func (night *Night) Release(ctx context.Context) error {
	if night == nil || night.lock == nil {
		return nil
	}
	return night.lock.Release(ctx)
}

// A NightReport says what a night was planned to be. Its JSON form is read by programs: fields are added, never changed.
type NightReport struct {
	Sync          string        `json:"sync"`
	Night         int           `json:"night"`
	Import        string        `json:"import"`
	Last          *queue.Night  `json:"last_complete"` // what the guards compare with; null in the first night
	Files         int           `json:"files"`
	Accepted      int64         `json:"accepted"`
	Rejected      int64         `json:"rejected"`
	MayReject     int64         `json:"may_reject"`
	Create        int64         `json:"create"`    // groups that the sync has put nothing into
	Add           int64         `json:"add"`       // groups that get something new
	Unchanged     int64         `json:"unchanged"` // groups
	Mirror        *Mirror       `json:"mirror,omitempty"`
	Examples      NightExamples `json:"examples"`
	Guards        []Guard       `json:"guards"`
	Wrong         []string      `json:"wrong,omitempty"`
	Generation    int           `json:"generation"` // of the snapshot
	Snapshot      int64         `json:"snapshot_groups"`
	SnapshotBytes int64         `json:"snapshot_bytes"`
	Run           *NightRun     `json:"run,omitempty"`
	Continued     bool          `json:"continued,omitempty"`
	NothingToDo   bool          `json:"nothing_to_do,omitempty"`
}

// A Mirror is what a night in mirror mode removes.
type Mirror struct {
	OnlyAdds      bool   `json:"only_adds"`            // it is the first one in this mode: it removes nothing of this
	Conversations int64  `json:"remove_conversations"` // those of deleted groups, too
	Remove        int64  `json:"remove"`               // groups that lose some
	Delete        int64  `json:"delete"`               // groups
	Users         int64  `json:"clear"`                // users who lose all
	Rename        int64  `json:"rename"`               // groups
	Withheld      int64  `json:"withheld"`             // conversations that stay though the input has them no more
	WithheldUsers int64  `json:"withheld_users"`       // whose rows were rejected
	Suspended     string `json:"suspended,omitempty"`  // why nothing at all is removed
}

// NightExamples are the first groups of each kind.
type NightExamples struct {
	Create    []importer.GroupName `json:"create,omitempty"`
	Add       []importer.GroupName `json:"add,omitempty"`
	Remove    []importer.GroupName `json:"remove,omitempty"`
	Delete    []importer.GroupName `json:"delete,omitempty"`
	Rename    []importer.GroupName `json:"rename,omitempty"`
	Unchanged []importer.GroupName `json:"unchanged,omitempty"`
}

// A NightRun is what came of a night.
type NightRun struct {
	Calls       int64   `json:"calls"`
	Seconds     float64 `json:"seconds"`
	FailedNew   int64   `json:"failed_new"`   // conversations
	FailedKnown int64   `json:"failed_known"` // that an earlier night had sent in vain, too

	Added          int64 `json:"added"`           // conversations
	Removed        int64 `json:"removed"`         // those of deleted groups, too
	RemovalsFailed int64 `json:"removals_failed"` // conversations
	Deleted        int64 `json:"deleted_groups"`
}

// NightFailures counts what was to be added in a night and failed: conversations that were sent for the first time, and
// others.
func (n *Namespace) NightFailures(ctx context.Context, importID string) (first, known int64, err error) {
	for r, err := range n.Results(ctx, importID, job.Partial, job.Failed) {
		if err != nil {
			return first, known, err
		}
		for _, c := range r.Conversations {
			switch {
			case c.Code == "", c.Op == job.Remove:
			case c.Again:
				known++
			default:
				first++
			}
		}
	}
	return first, known, nil
}

// Report says what the night was planned to be; nil for no night.
func (night *Night) Report() *NightReport {
	if night == nil {
		return nil
	}
	s := night.Plan.Summary
	var mirror *Mirror
	if night.removals != importer.KeepAll {
		mirror = &Mirror{
			OnlyAdds: night.removals == importer.OnlyCount, Conversations: s.Removed.Conversations, Remove: s.RemovedFrom,
			Delete: s.Removed.Groups, Users: s.Removed.Users, Rename: s.Renamed, Withheld: s.Withheld,
			WithheldUsers: s.WithheldUsers, Suspended: night.Plan.Suspended,
		}
	}
	return &NightReport{
		Sync: night.Sync.Name, Night: night.Number, Import: night.Plan.ImportID, Last: night.last,
		Files: s.Files, Accepted: s.Accepted, Rejected: s.Rejected, MayReject: night.mayReject,
		Create: s.NewGroups, Add: s.AddedTo, Unchanged: s.Unchanged, Mirror: mirror, Examples: NightExamples(night.Plan.Examples),
		Guards: night.Guards, Wrong: night.Wrong,
		Generation: night.Sync.Generation, Snapshot: night.Sync.Groups, SnapshotBytes: night.Sync.Size,
		Continued: night.Continued, NothingToDo: night.NothingToDo,
	}
}
