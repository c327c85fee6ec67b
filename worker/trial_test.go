package worker

import (
	"context"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/governor"
)

// A lagging API lists what was there some time ago. Where create replaces, it lists for that time what was there before, too:
// it puts in first, and takes out later.
type lagging struct {
	*api
	lag     time.Duration
	history []moment
}

// A moment is what groups there are from then on.
type moment struct {
	at     time.Time
	groups map[string]map[chat.Item]bool
}

func (l *lagging) note() {
	m := moment{time.Now(), map[string]map[chat.Item]bool{}}
	for key, members := range l.groups {
		m.groups[key] = maps.Clone(members)
	}
	l.history = append(l.history, m)
}

func (l *lagging) Create(ctx context.Context, r chat.CreateRequest) (chat.Response, error) {
	defer l.note()
	return l.api.Create(ctx, r)
}

func (l *lagging) Update(ctx context.Context, r chat.UpdateRequest) (chat.Response, error) {
	defer l.note()
	return l.api.Update(ctx, r)
}

func (l *lagging) Delete(ctx context.Context, user, group string) error {
	defer l.note()
	return l.api.Delete(ctx, user, group)
}

func (l *lagging) Get(ctx context.Context, user string, start int64) (chat.Page, error) {
	now := l.groups
	defer func() { l.groups = now }()
	seen := map[string]map[chat.Item]bool{}
	for _, m := range l.history {
		if time.Since(m.at) >= l.lag {
			seen = m.groups
			continue
		}
		if l.existing != "replace" {
			break
		}
		for key, members := range m.groups {
			if seen[key] == nil {
				seen[key] = map[chat.Item]bool{}
			}
			maps.Copy(seen[key], members)
		}
	}
	l.groups = seen
	return l.api.Get(ctx, user, start)
}

// A list that lags behind, or shows the middle of a write, teaches nothing that is not so, and nothing is left because of it.
func TestTrialWithLists(t *testing.T) {
	for _, existing := range []string{"append", "replace", "refuse"} {
		for _, fold := range []bool{false, true} {
			for _, lag := range []time.Duration{0, 300 * time.Millisecond, 1500 * time.Millisecond, 3 * time.Second} {
				synctest.Test(t, func(t *testing.T) {
					a := &lagging{api: newAPI(existing), lag: lag}
					a.fold = fold
					a.latency = 50 * time.Millisecond
					trial := NewTrial(Config{}, a, startGovernor(t, governor.Config{}), "nobody", "groupferry-doctor-012345")
					trial.Settle = TrialSettle
					r, err := trial.Run(t.Context(), "admin", func() bool { return false })
					if err != nil {
						t.Fatal(err)
					}
					names := map[bool]Names{false: ExactNames, true: FoldedNames}[fold]
					if wrong := r.Create != "" && r.Create != Reading(existing) || r.Names != "" && r.Names != names; wrong && lag < TrialSettle {
						t.Errorf("%s, fold %t, %v late: got %+v", existing, fold, lag, r)
					}
					if lag == 0 && (r.Create != Reading(existing) || fold && existing == "append" && r.Names != names || !fold && r.Names != names) {
						t.Errorf("%s, fold %t: got %+v", existing, fold, r)
					}
					if err := trial.Clean(t.Context(), time.Time{}); err != nil {
						t.Error(err)
					}
					if len(a.groups) > 0 {
						t.Errorf("%s, fold %t, %v late: left %d groups", existing, fold, lag, len(a.groups))
					}
				})
			}
		}
	}
}

// A group that stays although the API deletes it is said to be there, and ends the cleaning.
func TestTrialThatCannotClean(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &lagging{api: newAPI("append"), lag: time.Hour}
		a.put("nobody/groupferry-doctor-012345-chat", "x")
		a.history = []moment{{groups: map[string]map[chat.Item]bool{"nobody/groupferry-doctor-012345-chat": {}}}}
		trial := NewTrial(Config{}, a, startGovernor(t, governor.Config{}), "nobody", "groupferry-doctor-012345")
		err := trial.Clean(t.Context(), time.Time{})
		const want = "they were deleted, and are listed all the same: 1"
		if err == nil || err.Error() != want || a.count(chat.DelContactGroup) > 20 {
			t.Errorf("got %v after %d deletions, want %q", err, a.count(chat.DelContactGroup), want)
		}
	})
}
