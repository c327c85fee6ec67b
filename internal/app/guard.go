package app

import (
	"fmt"
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

	// Accept is the import ID that a refusal named: what the guards said of this content, on this base, is accepted.
	Accept string
}

// DefaultMaxShrink and DefaultMaxRejects hold for a sync where nothing else is said.
var (
	DefaultMaxShrink  = Budget{Limited: true, Percent: 10}
	DefaultMaxRejects = Budget{Limited: true, Percent: 1}
)

// minShrink rows, users or groups may always be missing where a share is allowed: of a small input a few are a large one.
const minShrink = 20

// A Guard is one comparison, with the last complete night or with a limit.
type Guard struct {
	What  string `json:"what"` // rows, users, groups, files or rejected
	Now   int64  `json:"now"`
	Last  int64  `json:"last"`  // of the last complete night; 0 if it is compared with nothing
	Limit int64  `json:"limit"` // what Now may not be below; for rejected, above
	OK    bool   `json:"ok"`
}

// compare returns the guards of a night, and what is wrong by them. last is nil before there is a complete night.
func (g SyncGuards) compare(plan *importer.Plan, last *queue.Night) (all []Guard, wrong []string) {
	s := plan.Summary
	if last != nil {
		for _, c := range []struct {
			what      string
			now, last int64
		}{{"rows", s.Accepted, last.Accepted}, {"users", s.Users, last.Users}, {"groups", s.Groups, last.Groups}} {
			fewer := g.MaxShrink.Rows
			if !g.MaxShrink.Limited {
				g.MaxShrink = DefaultMaxShrink
			}
			if g.MaxShrink.Percent > 0 {
				fewer = max(g.MaxShrink.allowed(c.last), minShrink)
			} else if c.what != "rows" {
				continue
			}
			guard := Guard{c.what, c.now, c.last, max(c.last-fewer, 0), true}
			if guard.OK = guard.Now >= guard.Limit; !guard.OK {
				wrong = append(wrong, fmt.Sprintf("%d accepted %s, after %d in night %d: --max-shrink %v wants %d at least",
					c.now, c.what, c.last, last.Number, g.MaxShrink, guard.Limit))
			}
			all = append(all, guard)
		}
		guard := Guard{"files", int64(s.Files), int64(last.Files), int64(last.Files), s.Files >= last.Files}
		if !guard.OK {
			wrong = append(wrong, fmt.Sprintf("%d files, after %d in night %d", s.Files, last.Files, last.Number))
		}
		all = append(all, guard)
	}
	if len(plan.CutOff) > 0 {
		wrong = append(wrong, strings.Join(plan.CutOff, ", ")+": the last line does not end, as if the file was cut off")
	}
	if len(plan.Changed) > 0 {
		wrong = append(wrong, strings.Join(plan.Changed, ", ")+" changed while being read")
	}
	return all, wrong
}

// A ShrinkError says that the guards of a sync refused a night: nothing of it was enqueued.
type ShrinkError struct {
	Sync   string
	Import string   // what --accept takes
	Wrong  []string // what is wrong
}

func (e *ShrinkError) Error() string {
	return fmt.Sprintf("sync %s: %s: nothing was enqueued", e.Sync, strings.Join(e.Wrong, "; "))
}
