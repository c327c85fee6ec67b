package app

import (
	"fmt"
	"math"
	"strings"

	"groupferry/importer"
	"groupferry/internal/queue"
)

// SyncGuards stop a night of a sync before anything is enqueued: a file that was cut off, or exported from half a
// database, must not be taken for what is wanted. A first night is compared with nothing.
type SyncGuards struct {
	// MaxShrink is by how many accepted rows a night may have fewer than the last complete one, or by which share of the
	// rows, users and groups. The zero value is DefaultMaxShrink.
	MaxShrink Budget

	// MaxRemovals is how many conversations, groups and users a night in mirror mode may remove, each by itself, or which
	// share of what the sync has. The zero value is DefaultMaxRemovals, and 10,000 at most.
	MaxRemovals Budget

	// Accept is the import ID that a refusal named: what the guards said of this content, on this base, is accepted.
	Accept string
}

// DefaultMaxShrink and DefaultMaxRejects hold for a sync where nothing else is said.
var (
	DefaultMaxShrink  = Budget{Limited: true, Percent: 10}
	DefaultMaxRejects = Budget{Limited: true, Percent: 1}

	DefaultMaxRemovals = Budget{Limited: true, Percent: 5}
)

// mostRemovals is what the default share is at most: of a million groups 5 % is more than a person looks through.
const mostRemovals = 10_000

// minShrink rows, users or groups may always be missing, and be removed, where a share is allowed: of a small input a few are a large one.
const minShrink = 20

// A Guard is one comparison with what there was before.
type Guard struct {
	What   string `json:"what"` // rows, users, groups or files; or what is removed
	Now    int64  `json:"now"`
	Last   int64  `json:"last"`              // of the last complete night; of what is removed: what the sync has
	Limit  int64  `json:"limit"`             // what Now may not be below, or above
	AtMost bool   `json:"at_most,omitempty"` // above
	OK     bool   `json:"ok"`
}

// compare returns the guards of a night, and what is wrong by them. last is nil before there is a complete night.
func (g SyncGuards) compare(plan *importer.Plan, last *queue.Night, removals importer.Removals) (all []Guard, wrong []string) {
	s := plan.Summary
	if !g.MaxShrink.Limited {
		g.MaxShrink = DefaultMaxShrink
	}
	if last != nil {
		add := func(what string, now, last, fewer int64) {
			limit := max(last-fewer, 0)
			all = append(all, Guard{What: what, Now: now, Last: last, Limit: limit, OK: now >= limit})
		}
		share := func(n int64) int64 { return max(g.MaxShrink.allowed(n), minShrink) }
		if g.MaxShrink.Percent > 0 {
			add("rows", s.Accepted, last.Accepted, share(last.Accepted))
			add("users", s.Users, last.Users, share(last.Users))
			add("groups", s.Groups, last.Groups, share(last.Groups))
		} else {
			add("rows", s.Accepted, last.Accepted, g.MaxShrink.Rows)
		}
		add("files", int64(s.Files), int64(last.Files), 0)
		var fewer []string
		for _, c := range all {
			if !c.OK && c.What != "files" {
				fewer = append(fewer, fmt.Sprintf("%s %s instead of %s (at least %s)", Count(c.Now), c.What, Count(c.Last), Count(c.Limit)))
			}
		}
		if len(fewer) > 0 {
			wrong = append(wrong, fmt.Sprintf("fewer than --max-shrink %v allows after night %d: %s",
				g.MaxShrink, last.Number, strings.Join(fewer, ", ")))
		}
		if files := all[len(all)-1]; !files.OK {
			wrong = append(wrong, fmt.Sprintf("fewer files than in night %d: %d instead of %d", last.Number, files.Now, files.Last))
		}
	}
	if removals == importer.RemoveAbsent {
		removed, text := g.compareRemovals(&s)
		all = append(all, removed...)
		if text != "" {
			wrong = append(wrong, text)
		}
	}
	if len(plan.CutOff) > 0 {
		wrong = append(wrong, strings.Join(plan.CutOff, ", ")+": the last line has no line end, as if the file was cut off")
	}
	if len(plan.Changed) > 0 {
		wrong = append(wrong, strings.Join(plan.Changed, ", ")+" changed while being read")
	}
	return all, wrong
}

// compareRemovals guards against gross removals; text says what is wrong.
func (g SyncGuards) compareRemovals(s *importer.Summary) (all []Guard, text string) {
	budget, cap := g.MaxRemovals, int64(math.MaxInt64)
	if !budget.Limited {
		budget, cap = DefaultMaxRemovals, mostRemovals
	}
	var more []string
	add := func(what string, now, known int64) {
		limit := budget.Rows
		if budget.Percent > 0 {
			limit = max(min(budget.allowed(known), cap), minShrink)
		}
		all = append(all, Guard{What: "removed " + what, Now: now, Last: known, Limit: limit, AtMost: true, OK: now <= limit})
		if now > limit {
			more = append(more, fmt.Sprintf("%s of %s %s (at most %s)", Count(now), Count(known), what, Count(limit)))
		}
	}
	add("conversations", s.Removed.Conversations, s.Known.Conversations)
	add("groups", s.Removed.Groups, s.Known.Groups)
	add("users", s.Removed.Users, s.Known.Users)
	if len(more) > 0 {
		text = fmt.Sprintf("it would remove more than --max-removals %v allows: %s", budget, strings.Join(more, ", "))
	}
	return all, text
}

// A SnapshotError says that a mirror cannot know what it may remove: nothing was enqueued.
type SnapshotError struct {
	Sync string
	Err  error // about its snapshot
}

func (e *SnapshotError) Error() string {
	return fmt.Sprintf("sync %s: %v, and a mirror removes nothing without it: nothing was enqueued", e.Sync, e.Err)
}

func (e *SnapshotError) Unwrap() error { return e.Err }

// An OtherSyncError says that groups of a mirror are those of another sync, too: nothing was enqueued.
type OtherSyncError struct {
	Sync   string
	Groups []importer.OtherGroup // some of them
}

func (e *OtherSyncError) Error() string {
	g := e.Groups[0]
	return fmt.Sprintf("sync %s: group %q of %s is also in sync %s, and a mirror would remove what that one adds: nothing was enqueued",
		e.Sync, g.GroupName, g.FromAccount, g.Sync)
}

// A ShrinkError says that the guards of a sync refused a night: nothing of it was enqueued.
type ShrinkError struct {
	Sync     string
	Import   string   // what --accept takes
	Accepted string   // what it was given, for something else
	Wrong    []string // what is wrong
}

func (e *ShrinkError) Error() string {
	wrong := e.Wrong
	if e.Accepted != "" {
		wrong = append(wrong[:len(wrong):len(wrong)], "--accept "+e.Accepted+" is for other content, or for another night")
	}
	return fmt.Sprintf("sync %s: %s: nothing was enqueued", e.Sync, strings.Join(wrong, "; "))
}
