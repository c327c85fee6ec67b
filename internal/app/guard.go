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

// A Guard is one comparison with the last complete night.
type Guard struct {
	What  string `json:"what"` // rows, users, groups or files
	Now   int64  `json:"now"`
	Last  int64  `json:"last"`  // of the last complete night
	Limit int64  `json:"limit"` // what Now may not be below
	OK    bool   `json:"ok"`
}

// compare returns the guards of a night, and what is wrong by them. last is nil before there is a complete night.
func (g SyncGuards) compare(plan *importer.Plan, last *queue.Night) (all []Guard, wrong []string) {
	s := plan.Summary
	if !g.MaxShrink.Limited {
		g.MaxShrink = DefaultMaxShrink
	}
	if last != nil {
		add := func(what string, now, last, fewer int64) {
			limit := max(last-fewer, 0)
			all = append(all, Guard{what, now, last, limit, now >= limit})
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
	if len(plan.CutOff) > 0 {
		wrong = append(wrong, strings.Join(plan.CutOff, ", ")+": the last line has no line end, as if the file was cut off")
	}
	if len(plan.Changed) > 0 {
		wrong = append(wrong, strings.Join(plan.Changed, ", ")+" changed while being read")
	}
	return all, wrong
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
