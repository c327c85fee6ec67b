package worker

import (
	"cmp"
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"

	"groupferry/internal/chat"
	"groupferry/internal/job"
)

// A Reader reads back what groups users have. Its calls are repeated, and end, as those of jobs do. It is safe for
// concurrent use.
type Reader struct{ w *Worker }

// NewReader returns a reader.
func NewReader(cfg Config, api API, pace Pace) *Reader { return &Reader{New(cfg, nil, api, pace)} }

// A List is what the API says of the groups of one user.
type List struct {
	Groups []Group // by name
	NoUser bool    // the API does not know the user
}

// A Group is one group of a user, and what it holds: by type and id.
type Group struct {
	Name  string
	Items []chat.Item
}

// Codes of an [Unread] that no code of the API stands for.
const (
	CodeNoEnd   = "no-end"  // the pages end without the one that says that it is the last, as where a plan cuts the list short
	CodeChanged = "changed" // each time that it was read, the list was another one
)

// An Unread is why the list of a user could not be read as a whole.
type Unread struct {
	Code string // of the API, one of the above, or a reason as of [chat.Error.Reason]
	Info string
}

func (e *Unread) Error() string { return e.Code + ": " + e.Info }

// A list that was another one from one page to the next is read again, listReads times in all. One of several pages is read
// until two reads in a row are the same: a conversation that was taken out between two pages moves those behind it up, and
// the first of them is on neither page.
const listReads = 3

// readAttempts is how often a list is tried that could not be read for now. Others wait for it, so it is less than the
// attempts of a job.
const readAttempts = 3

// Read reads all groups of a user. A user without groups, or whom the API does not know, has an empty list. The error is an
// *[Unread] when this list cannot be read as a whole; then nothing of it is returned. Any other error is about ctx, the
// pace, or a halt: then no list can be read.
func (r *Reader) Read(ctx context.Context, user string) (List, error) {
	var before *List
	for made, reads := 1, 1; ; {
		a := &attempt{w: r.w, result: job.Result{FromAccount: user}}
		page, changed, err := a.list(ctx)
		rejected, final := rejection(err)
		switch {
		case err == nil:
			list, ok := listOf(page)
			if ok = ok && !changed; ok && (page.Next == 0 || before != nil && reflect.DeepEqual(list, *before)) {
				return list, nil
			}
			if before = nil; ok {
				before = &list
			}
			if reads++; reads > listReads {
				return List{}, &Unread{CodeChanged, "the list changed while it was read"}
			}
		case errors.Is(err, errNoEnd):
			return List{}, &Unread{CodeNoEnd, "no page says that it is the last, as where a plan cuts lists short"}
		case final && rejected.NotOffered():
			return List{}, a.halt(rejected)
		case final && (rejected.Code == chat.CodeUserNotImported || rejected.Code == chat.CodeNoAccount):
			return List{NoUser: true}, nil
		case final:
			return List{}, &Unread{rejected.Reason(), cmp.Or(rejected.Info, rejected.Error())}
		case !errors.Is(err, errAgain):
			return List{}, err
		case made == readAttempts:
			code, info := reasonOf(err)
			return List{}, &Unread{code, info}
		default:
			if err := sleep(ctx, jittered(backoff(retryFirst, retryMost, made-1))); err != nil {
				return List{}, err
			}
			made++
		}
	}
}

// listOf sorts a list by group. It is not right if it has a conversation in a group that it does not name.
func listOf(page chat.Page) (list List, ok bool) {
	at := map[int64]int{}
	for id, name := range page.Groups {
		at[id] = len(list.Groups)
		list.Groups = append(list.Groups, Group{Name: name})
	}
	for _, m := range page.Conversations {
		for _, id := range m.GroupIDs {
			i, known := at[id]
			if !known {
				return List{}, false
			}
			list.Groups[i].Items = append(list.Groups[i].Items, m.Item)
		}
	}
	for i := range list.Groups {
		slices.SortFunc(list.Groups[i].Items, func(a, b chat.Item) int {
			return cmp.Or(cmp.Compare(a.Type, b.Type), strings.Compare(a.ID, b.ID))
		})
	}
	slices.SortFunc(list.Groups, func(a, b Group) int { return strings.Compare(a.Name, b.Name) })
	return list, true
}
