package worker

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"

	"slices"
	"strings"
	"sync/atomic"

	"testing"
	"testing/synctest"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/governor"
	"groupferry/internal/job"
)

var (
	mirrorRuns = flag.Int("mirrors", 6, "runs of TestRandomMirror for each API")
	mirrorSeed = flag.Uint64("mirrors-seed", 1, "of the first run of TestRandomMirror")
)

// ids are user ids that begin with a word.
func ids(word string, n int) (list []string) {
	for i := range n {
		list = append(list, fmt.Sprintf("%s%03d", word, i))
	}
	return list
}

func contacts(ids []string) (list []chat.Item) {
	for _, id := range ids {
		list = append(list, chat.Item{Type: chat.OneToOne, ID: id})
	}
	return list
}

// put makes a group that holds ids.
func (a *api) put(key string, ids ...string) {
	a.groups[key] = map[chat.Item]bool{}
	for _, it := range contacts(ids) {
		a.groups[key][it] = true
	}
}

// mirrorJob makes a job that adds, removes and keeps ids in a group of anna.
func mirrorJob(group string, add, remove, keep []string) job.Job {
	j := job.Job{Import: "imp", ID: job.ID("imp", "anna", group), FromAccount: "anna", GroupName: group}
	for i, id := range add {
		j.Conversations = append(j.Conversations, job.Conversation{Type: chat.OneToOne, ID: id, Line: int64(i + 2)})
	}
	for _, id := range remove {
		j.Conversations = append(j.Conversations, job.Conversation{Type: chat.OneToOne, ID: id, Op: job.Remove})
	}
	for _, id := range keep {
		j.Conversations = append(j.Conversations, job.Conversation{Type: chat.OneToOne, ID: id, Op: job.Keep})
	}
	return j
}

// deleteJob makes a job that deletes a group of anna.
func deleteJob(group string, remove ...string) job.Job {
	j := mirrorJob(group, nil, remove, nil)
	j.Delete = true
	return j
}

// mirror does jobs of which an API is known that create appends, and returns the results.
func mirror(t *testing.T, a *api, jobs ...job.Job) (results []job.Result) {
	t.Helper()
	s := newStream(jobs...)
	if err := work(t, Config{Known: appends()}, s, a); err != nil {
		t.Fatal(err)
	}
	for _, j := range jobs {
		results = append(results, s.results["imp/"+j.ID])
	}
	return results
}

// has checks what a group holds, and whether it is there at all.
func (a *api) has(t *testing.T, key string, want ...string) {
	t.Helper()
	var got []string
	for it := range a.groups[key] {
		got = append(got, it.ID)
	}
	slices.Sort(got)
	slices.Sort(want)
	if a.groups[key] == nil || !slices.Equal(got, want) {
		t.Errorf("%s: got %v, want %v", key, got, want)
	}
}

func (a *api) hasNot(t *testing.T, key string) {
	t.Helper()
	if a.groups[key] != nil {
		t.Errorf("%s is there, with %d conversations", key, len(a.groups[key]))
	}
}

// ended checks the outcome of a job, and counts what it put in and took out.
func ended(t *testing.T, r job.Result, want job.Outcome, added, removed int) {
	t.Helper()
	done, _ := count(&r, job.Add)
	out, _ := count(&r, job.Remove)
	if r.Outcome != want || done != added || out != removed {
		t.Errorf("got %s, %d added and %d removed, want %s, %d and %d: %.300s", r.Outcome, done, out, want, added, removed, fmt.Sprintf("%+v", r))
	}
}

func TestAddsAndRemovesShareCallsAndAddsComeFirst(t *testing.T) {
	for _, tt := range []struct {
		add, remove int
		want        []string
	}{
		{60, 40, []string{"+60 -40"}}, {0, 40, []string{"+0 -40"}}, {150, 40, []string{"+100 -0", "+50 -40"}},
		{60, 150, []string{"+60 -40", "+0 -100", "+0 -10"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI("replace")
			a.put("anna/g", slices.Concat(ids("old", tt.remove), ids("keep", 5), ids("other", 5))...)
			r := mirror(t, a, mirrorJob("g", ids("new", tt.add), ids("old", tt.remove), ids("keep", 5)))
			ended(t, r[0], job.Done, tt.add, tt.remove)
			if !slices.Equal(a.updates, tt.want) || len(a.calls) != len(tt.want) {
				t.Errorf("%d and %d: got %v of %d calls, want %v", tt.add, tt.remove, a.updates, len(a.calls), tt.want)
			}
			a.has(t, "anna/g", slices.Concat(ids("new", tt.add), ids("keep", 5), ids("other", 5))...)
		})
	}
}

func TestRemovesComeFirstOnlyWhereThousandConversationsAskForIt(t *testing.T) {
	for _, tt := range []struct {
		name                      string
		add, remove, keep, others int
		items                     bool // the API says it of each conversation
		want                      []string
	}{
		{"known", 60, 40, 920, 0, false, []string{"+0 -40", "+60 -0"}},
		{"known, in several calls", 150, 150, 850, 0, false, []string{"+0 -100", "+0 -50", "+100 -0", "+50 -0"}},
		{"room for both", 60, 40, 900, 0, false, []string{"+60 -40"}},
		{"others take the room", 60, 60, 800, 120, false, []string{"+60 -40", "+0 -60", "+60 -0"}},
		{"others take the room of some", 60, 60, 800, 120, true, []string{"+60 -40", "+0 -20", "+40 -0"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAPI("append")
				key := "anna/g"
				a.put(key, slices.Concat(ids("old", tt.remove), ids("keep", tt.keep), ids("other", tt.others))...)
				if a.most = 1000; tt.items {
					a.most = 0
					a.item = func(it chat.Item) int {
						if strings.HasPrefix(it.ID, "new") && len(a.groups[key]) >= 1000 {
							return chat.CodeTooManyConversations
						}
						return 0
					}
				}
				r := mirror(t, a, mirrorJob("g", ids("new", tt.add), ids("old", tt.remove), ids("keep", tt.keep)))
				ended(t, r[0], job.Done, tt.add, tt.remove)
				if !slices.Equal(a.updates, tt.want) {
					t.Errorf("got %v, want %v", a.updates, tt.want)
				}
				a.has(t, key, slices.Concat(ids("new", tt.add), ids("keep", tt.keep), ids("other", tt.others))...)
			})
		})
	}
	t.Run("full all the same", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI("append")
			a.most = 100
			a.put("anna/g", slices.Concat(ids("old", 5), ids("other", 95))...)
			r := mirror(t, a, mirrorJob("g", ids("new", 6), ids("old", 5), nil))
			ended(t, r[0], job.Partial, 0, 5)
			if want := []string{"+6 -5", "+0 -5", "+6 -0"}; !slices.Equal(a.updates, want) || r[0].Conversations[0].Code != "51008" {
				t.Errorf("got %v and %+v, want %v and 51008", a.updates, r[0].Conversations[0], want)
			}
		})
	})
}

// The job that makes room among a user's 20 groups may come to its end after the one that needs it.
func TestACreateWaitsForTheDeletionThatMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		for i := range 20 {
			a.put(fmt.Sprint("anna/g", i), "old")
		}
		deletions := 0
		a.fault = func(_ int, c chat.Command, _ string) (error, bool) {
			if c == chat.DelContactGroup {
				deletions++
				return coded(c, 50004), false
			}
			if c == chat.CreateContactGroup && len(a.groups) == 20 {
				if deletions > 6 { // it failed twice, and is waiting for another attempt
					a.fault = nil
				}
				return coded(c, 51010), false
			}
			return nil, false
		}
		r := mirror(t, a, deleteJob("g0", "old"), mirrorJob("new", ids("new", 2), nil, nil))
		ended(t, r[0], job.Done, 0, 1)
		ended(t, r[1], job.Done, 2, 0)
		a.hasNot(t, "anna/g0")
		if a.fault != nil {
			t.Error("no create met a user with 20 groups")
		}
		// Nobody is going to make room.
		a.fault = func(_ int, c chat.Command, _ string) (error, bool) {
			if c == chat.CreateContactGroup {
				return coded(c, 51010), false
			}
			return nil, false
		}
		r = mirror(t, a, mirrorJob("newer", ids("new", 2), nil, nil))
		if ended(t, r[0], job.Failed, 0, 0); r[0].Attempts != 1 {
			t.Errorf("got %d attempts, want 1", r[0].Attempts)
		}
	})
}

func TestAnAddToNoGroupCreatesTheWholeWantedGroup(t *testing.T) {
	for _, existing := range []string{"append", "replace", "refuse"} {
		for _, keep := range []int{3, 250, 950} {
			synctest.Test(t, func(t *testing.T) {
				a := newAPI(existing)
				s := newStream(mirrorJob("g", ids("new", 50), ids("old", 60), ids("keep", keep)))
				if err := work(t, Config{}, s, a); err != nil {
					t.Fatal(err)
				}
				r := s.kept[0]
				ended(t, r, job.Done, 50+keep, 60)
				a.has(t, "anna/g", slices.Concat(ids("new", 50), ids("keep", keep))...)
				kept := 0
				for _, c := range r.Conversations {
					if c.Kept && c.Op == job.Add {
						kept++
					}
				}
				if kept != keep || r.Deleted || r.Keep != nil {
					t.Errorf("%s: got %d of %d kept ones in the result, deleted %t", existing, kept, keep, r.Deleted)
				}
			})
		}
	}
}

// An attempt, or a leader, ends after it has created a part of the group anew.
func TestAGroupThatIsCreatedAnewIsCreatedToTheEnd(t *testing.T) {
	for _, how := range []string{"requeued", "crash", "crash, no get"} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAPI("append")
				a.latency = 10 * time.Millisecond
				if how == "crash, no get" {
					a.offer("no get")
				}
				a.fault = func(n int, c chat.Command, _ string) (error, bool) {
					if c != chat.GetContactGroup && n >= 3 && n < 10 { // after the first create
						return coded(c, 50004), false
					}
					return nil, false
				}
				s := newStream(mirrorJob("g", ids("new", 2), ids("old", 2), ids("keep", 300)))
				if strings.HasPrefix(how, "crash") {
					ctx, crash := context.WithCancel(t.Context())
					done := make(chan error, 1)
					w := New(Config{Known: appends()}, s, a, startGovernor(t, governor.Config{}))
					go func() { done <- w.Run(ctx, nil) }()
					time.Sleep(100 * time.Millisecond)
					s.crash()
					crash()
					<-done
					time.Sleep(time.Second)
				}
				if err := work(t, Config{Known: appends()}, s, a); err != nil {
					t.Fatal(err)
				}
				ended(t, s.kept[0], job.Done, len(s.kept[0].Conversations)-2, 2)
				a.has(t, "anna/g", slices.Concat(ids("new", 2), ids("keep", 300))...)
			})
		})
	}
}

// What a person took out since is not put in again while the group is there.
func TestWhatIsKeptIsNotSentWhileTheGroupIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		a.put("anna/g", "keep000")
		r := mirror(t, a, mirrorJob("g", ids("new", 1), nil, ids("keep", 3)))
		ended(t, r[0], job.Done, 1, 0)
		a.has(t, "anna/g", "keep000", "new000")
	})
}

// Also where an earlier leader may have begun with it.
func TestARemovalFromNoGroupIsDone(t *testing.T) {
	for _, crash := range []bool{false, true} {
		for _, keep := range []int{0, 3} {
			synctest.Test(t, func(t *testing.T) {
				a := newAPI("append")
				s := newStream(mirrorJob("g", nil, ids("old", 150), ids("keep", keep)))
				if crash {
					s.crash()
				}
				if err := work(t, Config{Known: appends()}, s, a); err != nil {
					t.Fatal(err)
				}
				if ended(t, s.kept[0], job.Done, 0, 150); !s.kept[0].Deleted {
					t.Error("the result does not say that the group is gone")
				}
				if a.hasNot(t, "anna/g"); len(a.calls) != 1 {
					t.Errorf("got %v, want one call", a.calls)
				}
			})
		}
	}
}

func TestCodesOfARemovalAreRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		a.put("anna/g", ids("old", 3)...)
		codes := map[string]int{"old000": 50001, "old001": 51007}
		a.item = func(it chat.Item) int { return codes[it.ID] }
		j := mirrorJob("g", nil, ids("old", 3), ids("keep", 2))
		s := newStream(j)
		if err := work(t, Config{}, s, a); err != nil {
			t.Fatal(err)
		}
		r := s.kept[0]
		ended(t, r, job.Partial, 0, 1)
		for i, want := range []string{"50001", "51007", ""} {
			if c := r.Conversations[i]; c.Code != want || job.Gone(c.Code) != (want != "") {
				t.Errorf("got %+v, want code %q", c, want)
			}
		}
		if want := []string{"+0 -3", "+0 -1", "+0 -1"}; !slices.Equal(a.updates, want) { // 51007 is tried twice more
			t.Errorf("got %v, want %v", a.updates, want)
		}
		// A retry sends the failed ones again, and what the group needs if it is gone.
		clear(codes)
		if !slices.EqualFunc(r.Keep, j.Conversations[3:], func(a, b job.Conversation) bool { return a == b }) {
			t.Errorf("the result keeps %v for a retry, want %v", r.Keep, j.Conversations[3:])
		}
		s.again(j, 1)
		if err := work(t, Config{}, s, a); err != nil {
			t.Fatal(err)
		}
		ended(t, s.kept[1], job.Done, 0, 3)
		a.has(t, "anna/g")
	})
}

func TestAGroupIsDeletedOnlyIfACompleteReadShowsNothingElse(t *testing.T) {
	for _, tt := range []struct {
		name   string
		others []string
		set    func(*api) API
		gone   bool
		dels   int
	}{
		{"nothing else", nil, nil, true, 1},
		{"several pages", ids("old", 199), nil, true, 1},
		{"something else", []string{"other"}, nil, false, 0},
		{"no get", nil, func(a *api) API { a.offer("no get"); return a }, false, 0},
		{"get 60009", nil, func(a *api) API { a.noGet = coded(chat.GetContactGroup, 60009); return a }, false, 0},
		{"no del", nil, func(a *api) API { a.noDelete = status(chat.DelContactGroup, 404); return a }, false, 8},
		{"del 60009", nil, func(a *api) API { a.noDelete = coded(chat.DelContactGroup, 60009); return a }, false, 1},
		{"del rejected", nil, func(a *api) API { a.noDelete = coded(chat.DelContactGroup, 50002); return a }, false, 1},
		{"something else that every other read has on no page", []string{"other"}, everyOther(0), false, 0},
		{"the same, from the second read on", []string{"other"}, everyOther(1), false, 0},
		{"a list without an end", nil, func(a *api) API {
			return &pages{a, func(p chat.Page, err error, start int64) (chat.Page, error) {
				p.Complete, p.Next = false, 0
				return p, err
			}}
		}, false, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAPI("append")
				remove := ids("old", 200)
				a.put("anna/g", append(slices.Clone(remove), tt.others...)...)
				a.put("anna/another", "friend")
				var api API = a
				if tt.set != nil {
					api = tt.set(a)
				}
				s := newStream(deleteJob("g", remove...))
				if err := workWith(t, Config{}, s, api, startGovernor(t, governor.Config{})); err != nil {
					t.Fatal(err)
				}
				r := s.kept[0]
				ended(t, r, job.Done, 0, 200)
				if r.Deleted != tt.gone {
					t.Errorf("got deleted %t, want %t", r.Deleted, tt.gone)
				}
				if tt.gone {
					a.hasNot(t, "anna/g")
				} else {
					a.has(t, "anna/g", tt.others...)
				}
				if n := a.count(chat.DelContactGroup); n > tt.dels || tt.gone && len(a.updates) > 0 {
					t.Errorf("got %d deletions and updates %v, want %d at most", n, a.updates, tt.dels)
				}
				a.has(t, "anna/another", "friend")
			})
		})
	}
}

// shifting is an API of which every other read of the list lacks a conversation, from the first or the second one on: it moved
// from the page behind to the one that was read.
type shifting struct {
	*api
	reads, from int
}

func everyOther(from int) func(*api) API { return func(a *api) API { return &shifting{a, 0, from} } }

func (s *shifting) Get(ctx context.Context, user string, start int64) (chat.Page, error) {
	page, err := s.api.Get(ctx, user, start)
	if start == 0 {
		s.reads++
	}
	if s.reads%2 != s.from {
		page.Conversations = slices.DeleteFunc(page.Conversations, func(m chat.Membership) bool { return m.ID == "other" })
	}
	return page, err
}

// A deletion has no response, and somebody puts something into the group, or makes a new one.
func TestAfterADeletionWithoutAResponseTheGroupIsReadAgain(t *testing.T) {
	for _, tt := range []struct {
		name      string
		applied   bool
		meanwhile []string
		gone      bool
	}{
		{"not applied", false, nil, true},
		{"applied", true, nil, true},
		{"not applied, and something else is in it", false, []string{"other"}, false},
		{"applied, and there is a new one", true, []string{"other", "old000"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAPI("append")
				a.put("anna/g", ids("old", 3)...)
				struck := false
				a.fault = func(_ int, c chat.Command, _ string) (error, bool) {
					if c != chat.DelContactGroup || struck {
						return nil, false
					}
					struck = true
					if tt.applied {
						delete(a.groups, "anna/g")
						delete(a.ids, "anna/g")
					}
					if tt.meanwhile != nil && a.groups["anna/g"] == nil {
						a.put("anna/g")
					}
					for _, it := range contacts(tt.meanwhile) {
						a.groups["anna/g"][it] = true
					}
					return &chat.Error{Command: c, Cause: errors.New("reset")}, false
				}
				r := mirror(t, a, deleteJob("g", ids("old", 3)...))
				ended(t, r[0], job.Done, 0, 3)
				if r[0].Deleted != tt.gone {
					t.Errorf("got deleted %t, want %t", r[0].Deleted, tt.gone)
				}
				if tt.gone && tt.meanwhile == nil {
					a.hasNot(t, "anna/g")
				} else {
					a.has(t, "anna/g", tt.meanwhile...)
				}
			})
		})
	}
}

// The result of a deletion, or of a removal, is not there before a call without a response can take effect no more.
func TestNoResultBeforeALateCallTookEffect(t *testing.T) {
	for _, j := range []job.Job{deleteJob("g", ids("old", 3)...), mirrorJob("g", nil, ids("old", 3), nil)} {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI("append")
			a.put("anna/g", ids("old", 3)...)
			once := false
			a.late = func(c chat.Command) bool {
				was := once
				once = once || c != chat.GetContactGroup
				return !was && once
			}
			ended(t, mirror(t, a, j)[0], job.Done, 0, 3)
			a.put("anna/g", "old000") // by the way back, say
			time.Sleep(10 * time.Second)
			a.has(t, "anna/g", "old000")
		})
	}
}

// Nor is that of what adds something: the next night may take it out again.
func TestNoResultBeforeALateAddTookEffect(t *testing.T) {
	for _, late := range []chat.Command{chat.UpdateContactGroup, chat.CreateContactGroup} {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI("append")
			if late == chat.UpdateContactGroup {
				a.put("anna/g", "old000")
			}
			once := false
			a.late = func(c chat.Command) bool {
				was := once
				once = once || c == late
				return !was && once
			}
			ended(t, mirror(t, a, mirrorJob("g", ids("new", 150), nil, nil))[0], job.Done, 150, 0)
			if !once {
				t.Errorf("%s was not called", late)
			}
			a.mu.Lock() // a goroutine of its own applies the late call
			clear(a.groups["anna/g"])
			a.mu.Unlock()
			time.Sleep(10 * time.Second)
			if n := len(a.groups["anna/g"]); n > 0 {
				t.Errorf("%d are in the group again", n)
			}
		})
	}
}

// Of an import that is no night, nothing is taken out again.
func TestAnImportDoesNotWaitForALateAdd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		once := false
		a.late = func(chat.Command) bool {
			was := once
			once = true
			return !was
		}
		s := newStream(mirrorJob("g", ids("new", 150), nil, nil))
		s.plain = true
		start := time.Now()
		if err := work(t, Config{Known: appends()}, s, a); err != nil {
			t.Fatal(err)
		}
		ended(t, s.kept[0], job.Done, 150, 0)
		if d := time.Since(start); !once || d >= LateTime {
			t.Errorf("it took %v, a call without a response %t", d, once)
		}
	})
}

// Who is stopped at once knows that a call without a response may still take effect, and for how long.
func TestOpenCalls(t *testing.T) {
	for _, lost := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI("append")
			a.late = func(chat.Command) bool { return lost }
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			w := New(Config{Known: appends()}, newStream(mirrorJob("g", ids("new", 1), nil, nil)), a, startGovernor(t, governor.Config{}))
			done := make(chan error, 1)
			go func() { done <- w.Run(ctx, nil) }()
			time.Sleep(1500 * time.Millisecond)
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			if w.OpenCalls() != lost {
				t.Errorf("got %t, want %t", w.OpenCalls(), lost)
			}
			if time.Sleep(LateTime); w.OpenCalls() {
				t.Errorf("it is so for longer than %v", LateTime)
			}
		})
	}
}

// The result of a rename neither: somebody may make a group of the old name then.
func TestNoResultBeforeALateRenameTookEffect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		a.put("anna/work", "keep000")
		once := false
		a.late = func(c chat.Command) bool {
			was := once
			once = true
			return !was
		}
		j := mirrorJob("Work", nil, nil, ids("keep", 1))
		j.OldName = "work"
		ended(t, mirror(t, a, j)[0], job.Done, 0, 0)
		delete(a.groups, "anna/Work")
		a.put("anna/work", "friend")
		time.Sleep(10 * time.Second)
		a.has(t, "anna/work", "friend")
	})
}

// The result of a deletion is lost. What somebody made since is not deleted by the job that is done again.
func TestADuplicateDoesNotDeleteWhatWasMadeSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		a.put("anna/g", ids("old", 3)...)
		j := deleteJob("g", ids("old", 3)...)
		ended(t, mirror(t, a, j)[0], job.Done, 0, 3)
		a.put("anna/g", "friend")
		s := newStream(j)
		s.crash()
		if err := work(t, Config{Known: appends()}, s, a); err != nil {
			t.Fatal(err)
		}
		ended(t, s.kept[0], job.Done, 0, 3)
		a.has(t, "anna/g", "friend")
	})
}

func TestNamesThatDifferInCaseAreARename(t *testing.T) {
	renameTo := func(add, remove, keep []string) job.Job {
		j := mirrorJob("Work", add, remove, keep)
		j.OldName = "work"
		return j
	}
	for _, tt := range []struct {
		name  string
		set   func(*api)
		job   job.Job
		want  []string // in the group of the new name
		old   []string // in that of the old name; nil if there is none
		moved bool
		calls int
		code  string // of what was to be removed
	}{
		{"and no more", func(a *api) { a.put("anna/work", "keep000", "other") }, renameTo(nil, nil, ids("keep", 1)),
			[]string{"keep000", "other"}, nil, true, 1, ""},
		{"and more", func(a *api) { a.put("anna/work", "keep000", "old000", "other") }, renameTo(ids("new", 1), ids("old", 1), ids("keep", 1)),
			[]string{"keep000", "new000", "other"}, nil, true, 2, ""},
		{"where names are folded", func(a *api) { a.fold = true; a.put("anna/work", "keep000", "old000") },
			renameTo(ids("new", 1), ids("old", 1), ids("keep", 1)), []string{"keep000", "new000"}, nil, true, 2, ""},
		{"done before", func(a *api) { a.put("anna/Work", "keep000", "old000") }, renameTo(ids("new", 1), ids("old", 1), ids("keep", 1)),
			[]string{"keep000", "new000"}, nil, true, 3, ""},
		{"of no group", func(a *api) {}, renameTo(ids("new", 1), ids("old", 1), ids("keep", 1)),
			[]string{"keep000", "new000"}, nil, true, 3, ""},
		{"of no group, and no get", func(a *api) { a.offer("no get") }, renameTo(nil, ids("old", 1), ids("keep", 1)),
			[]string{"keep000"}, nil, true, 15, ""},
		{"done before, and no get", func(a *api) { a.offer("no get"); a.put("anna/Work", "keep000", "old000") },
			renameTo(nil, ids("old", 1), ids("keep", 1)), []string{"keep000"}, nil, true, 15, ""},
		{"to another group", func(a *api) { a.put("anna/work", "keep000", "old000"); a.put("anna/Work", "old000", "other") },
			renameTo(ids("new", 1), ids("old", 1), ids("keep", 1)), []string{"keep000", "new000", "old000", "other"},
			[]string{"keep000", "old000"}, false, 3, job.CodeNotRenamed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAPI("append")
				tt.set(a)
				r := mirror(t, a, tt.job)[0]
				a.has(t, "anna/Work", tt.want...)
				if tt.old != nil {
					a.has(t, "anna/work", tt.old...)
				} else {
					a.hasNot(t, "anna/work")
				}
				if (r.OldName == "work") != tt.moved || (r.Outcome == job.Done) != tt.moved || (r.Rename == "work") == tt.moved {
					t.Errorf("got %+v", r)
				}
				for _, c := range r.Conversations {
					if c.Op == job.Remove && c.Code != tt.code || c.Op == job.Add && c.Code != "" {
						t.Errorf("got %+v, want code %q of a removal", c, tt.code)
					}
				}
				if len(a.calls) > tt.calls {
					t.Errorf("got %v, want %d calls at most", a.calls, tt.calls)
				}
				if a.count(chat.DelContactGroup) > 0 {
					t.Error("a group was deleted")
				}
			})
		})
	}
}

// A rename that the API rejects fails, and a retry makes it; nothing is sent under either name before.
func TestARejectedRename(t *testing.T) {
	for _, keepOnly := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI("append")
			a.put("anna/work", "keep000", "old000")
			rejecting := true
			a.fault = func(_ int, c chat.Command, _ string) (error, bool) {
				if rejecting && c == chat.UpdateContactGroup {
					return coded(c, 50002), false
				}
				return nil, false
			}
			j := mirrorJob("Work", nil, nil, ids("keep", 1))
			if !keepOnly {
				j = mirrorJob("Work", ids("new", 1), ids("old", 1), ids("keep", 1))
			}
			j.OldName = "work"
			s := newStream(j)
			if err := work(t, Config{}, s, a); err != nil {
				t.Fatal(err)
			}
			r := s.kept[0]
			if r.Outcome != job.Failed || r.Code != "50002" || r.Rename != "work" || r.OldName != "" || len(r.Keep) != 1 {
				t.Errorf("got %+v", r)
			}
			rejecting = false
			s.again(j, 1)
			if err := work(t, Config{}, s, a); err != nil {
				t.Fatal(err)
			}
			r = s.kept[1]
			if r.Outcome != job.Done || r.Code != "" || r.Rename != "" || r.OldName != "work" || r.Keep != nil {
				t.Errorf("retried: got %+v", r)
			}
			if a.hasNot(t, "anna/work"); keepOnly {
				a.has(t, "anna/Work", "keep000", "old000")
			} else {
				a.has(t, "anna/Work", "keep000", "new000")
			}
		})
	}
}

func TestWithoutUpdateNothingIsTakenOut(t *testing.T) {
	for _, existing := range []string{"append", "replace", "refuse"} {
		for _, offered := range []string{"no update 60009", "no update", "create only"} {
			synctest.Test(t, func(t *testing.T) {
				a := newAPI(existing)
				a.offer(offered)
				before := []string{"keep000", "old000", "other"}
				a.put("anna/g", before...)
				rename := mirrorJob("Work", nil, ids("old", 1), ids("keep", 1))
				rename.OldName = "work"
				a.put("anna/work", before...)
				jobs := []job.Job{mirrorJob("g", ids("new", 1), ids("old", 1), ids("keep", 1)), rename}
				s := newStream(jobs...)
				if err := work(t, Config{AcceptReplace: true}, s, a); err != nil {
					t.Fatal(err)
				}
				for _, j := range jobs {
					for _, c := range s.results["imp/"+j.ID].Conversations {
						if c.Op == job.Remove && c.Code != CodeNeedsUpdate {
							t.Errorf("%s, %s: got code %q of a removal, want %q", existing, offered, c.Code, CodeNeedsUpdate)
						}
					}
				}
				if offered != "create only" || existing != "replace" { // the user accepted that
					for _, it := range contacts(before) {
						if !a.groups["anna/g"][it] {
							t.Errorf("%s, %s: %s is gone", existing, offered, it.ID)
						}
					}
				}
				if !a.groups["anna/g"][contacts(ids("keep", 1))[0]] {
					t.Errorf("%s, %s: what the job keeps is gone", existing, offered)
				}
				a.has(t, "anna/work", before...)
			})
		}
	}
	synctest.Test(t, func(t *testing.T) { // but a group can be deleted
		a := newAPI("append")
		a.offer("no update 60009")
		a.put("anna/g", "old000")
		if r := mirror(t, a, deleteJob("g", "old000")); !r[0].Deleted {
			t.Errorf("got %+v", r[0])
		}
		a.hasNot(t, "anna/g")
	})
}

// A group whose name another tool wrote in another case is found by what the API says to an update.
func TestReadBackWhereNamesAreFolded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		a.fold = true
		a.put("anna/WORK", "old000", "other")
		a.ids["anna/WORK"], a.lastID = 7, 7
		lost := true
		a.fault = func(_ int, c chat.Command, _ string) (error, bool) {
			if c == chat.UpdateContactGroup && lost {
				lost = false
				return &chat.Error{Command: c, Cause: errors.New("reset")}, true
			}
			return nil, false
		}
		r := mirror(t, a, mirrorJob("work", ids("new", 1), ids("old", 1), nil))
		ended(t, r[0], job.Done, 1, 1)
		a.has(t, "anna/WORK", "new000", "other")
		// A deletion takes no chance.
		r = mirror(t, a, deleteJob("work", "new000"))
		if ended(t, r[0], job.Done, 0, 1); r[0].Deleted {
			t.Error("it is said to be deleted")
		}
		a.has(t, "anna/WORK", "other")
	})
}

// A group that may be there under another case is not taken for gone, whatever else fails.
func TestAGroupOfAnotherCaseIsNotTakenForGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		a.fold = true
		a.put("anna/WORK", "old000", "other")
		n := 0
		a.fault = func(_ int, c chat.Command, _ string) (error, bool) {
			if c != chat.UpdateContactGroup {
				return nil, false
			}
			if n++; n == 1 {
				return &chat.Error{Command: c, Cause: errors.New("reset")}, false
			}
			return coded(c, chat.CodeUserNotImported), false
		}
		r := mirror(t, a, mirrorJob("work", nil, ids("old", 1), nil))
		if ended(t, r[0], job.Failed, 0, 0); r[0].Deleted {
			t.Error("it is said to be gone")
		}
	})
}

// Where a trial has shown that names are exact, a group of another case is another one. What it showed a week ago says nothing.
func TestWithoutUpdateAndWithExactNames(t *testing.T) {
	for ago, outcome := range map[time.Duration]job.Outcome{0: job.Done, knownFor + time.Hour: job.Failed} {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI("replace")
			a.offer("no update 60009")
			a.put("anna/WORK", "other")
			j := mirrorJob("work", ids("new", 1), nil, nil)
			s := newStream(j)
			if err := work(t, Config{Known: Known{Names: ExactNames, NamesAt: time.Now().Add(-ago)}}, s, a); err != nil {
				t.Fatal(err)
			}
			if r := s.results["imp/"+j.ID]; r.Outcome != outcome {
				t.Errorf("learned %v ago: got %+v, want it %s", ago, r, outcome)
			}
			a.has(t, "anna/WORK", "other")
		})
	}
}

// Where only create can write, and replaces, a group of another case keeps what it holds.
func TestWithoutUpdateAGroupOfAnotherCaseKeepsWhatItHolds(t *testing.T) {
	for _, fold := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI("replace")
			a.offer("no update 60009")
			a.fold = fold
			a.put("anna/WORK", "other")
			j := mirrorJob("work", ids("new", 1), nil, nil)
			s := newStream(j)
			if err := work(t, Config{}, s, a); err != nil {
				t.Fatal(err)
			}
			if r := s.results["imp/"+j.ID]; r.Outcome != job.Failed || r.Conversations[0].Code != CodeNeedsUpdate {
				t.Errorf("got %+v, want it failed with %s", r, CodeNeedsUpdate)
			}
			a.has(t, "anna/WORK", "other")
		})
	}
}

// A removal fails as long as the API does not make it.
func TestARemovalThatIsNotMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		a.put("anna/g", ids("old", 2)...)
		a.fault = func(_ int, c chat.Command, _ string) (error, bool) {
			if c == chat.UpdateContactGroup && len(a.calls) == 1 {
				return coded(c, 50005), false
			}
			if c == chat.GetContactGroup { // somebody puts it in again
				a.groups["anna/g"][chat.Item{Type: chat.OneToOne, ID: "old000"}] = true
			}
			return nil, false
		}
		r := mirror(t, a, mirrorJob("g", nil, ids("old", 2), nil))
		if ended(t, r[0], job.Partial, 0, 1); r[0].Conversations[0].Code != CodeStillInGroup {
			t.Errorf("got %+v, want code %s", r[0].Conversations[0], CodeStillInGroup)
		}
	})
}

// A mirrored group is one of TestRandomMirror: what it held before, and the job that it gets.
type mirrored struct {
	job    job.Job
	before map[chat.Item]bool // of the old name, if there is one; nil: there was none
	other  map[chat.Item]bool // of the new name, if there is an old one
	others []chat.Item        // what others put in, before and meanwhile
}

func (m *mirrored) list(ops ...job.Op) (list []chat.Item) {
	for _, c := range m.job.Conversations {
		if slices.Contains(ops, c.Op) {
			list = append(list, chat.Item{Type: c.Type, ID: c.ID})
		}
	}
	return list
}

// key is where the group is before its job.
func (m *mirrored) key() string {
	name := m.job.GroupName
	if m.job.OldName != "" {
		name = m.job.OldName
	}
	return m.job.FromAccount + "/" + name
}

func (m *mirrored) newKey() string { return m.job.FromAccount + "/" + m.job.GroupName }

// drawMirrored draws a group with its job. Some ids can never be added or removed: those that begin with bad.
func drawMirrored(rnd *rand.Rand, a *api, user, group string) *mirrored {
	size := []int{1 + rnd.IntN(5), 1 + rnd.IntN(60), 90 + rnd.IntN(120)}[rnd.IntN(3)]
	id := func(word string, i int) string {
		if rnd.IntN(40) == 0 {
			word = "bad" + word
		}
		return fmt.Sprintf("%s%03d", word, i)
	}
	m := &mirrored{before: map[chat.Item]bool{}}
	var add, remove, keep []string
	kind := rnd.IntN(4)
	for i := range size {
		ours := id("ours", i)
		if kind == 0 || rnd.IntN(3) == 0 {
			remove = append(remove, ours)
		} else {
			keep = append(keep, ours)
		}
		if rnd.IntN(20) > 0 { // or somebody took it out
			m.before[chat.Item{Type: chat.OneToOne, ID: ours}] = true
		}
		if kind > 0 && rnd.IntN(2) == 0 {
			add = append(add, id("new", i))
		}
	}
	if kind == 1 {
		add = nil
	}
	for i := range rnd.IntN(2) * rnd.IntN(4) {
		m.others = append(m.others, chat.Item{Type: chat.GroupChat, ID: fmt.Sprintf("other%03d", i)})
	}
	m.job = mirrorJob(group, add, remove, keep)
	m.job.FromAccount, m.job.ID, m.job.Delete = user, job.ID("imp", user, group), kind == 0
	if kind > 0 && rnd.IntN(4) == 0 {
		m.job.OldName = strings.ToUpper(group)
		if !a.fold && rnd.IntN(4) == 0 {
			m.other = map[chat.Item]bool{{Type: chat.GroupChat, ID: "theirs"}: true}
			a.groups[m.newKey()] = maps.Clone(m.other)
		}
	}
	for _, it := range m.others {
		m.before[it] = true
	}
	if rnd.IntN(6) == 0 {
		m.before, m.others = nil, nil
	} else {
		a.groups[m.key()] = maps.Clone(m.before)
	}
	if len(m.job.Conversations) == 0 {
		panic("a job of nothing")
	}
	return m
}

// writes returns how many calls that write a job takes at least where nothing fails: create is known to do what reading says,
// and everything is offered. In a group that may not exist, an update has to tell.
func (m *mirrored) writes(reading Reading) int {
	chunks := func(n int) int { return (n + chat.MaxItemsPerCall - 1) / chat.MaxItemsPerCall }
	add, remove, keep := len(m.list(job.Add)), len(m.list(job.Remove)), len(m.list(job.Keep))
	renames := 0
	if m.job.OldName != "" {
		renames = 1
	}
	switch {
	case m.other != nil && m.before != nil: // the keep is not known to be in the other one
		return renames + chunks(add+keep)
	case m.other != nil:
		return renames + chunks(add+remove)
	case m.before == nil && m.job.Delete: // the read tells
		return 0
	case m.before == nil && renames > 0:
		return renames + chunks(add+keep)
	case m.before == nil && add == 0:
		return min(1, remove)
	case m.before == nil && reading == Append && keep+remove == 0:
		return chunks(add)
	case m.before == nil:
		return 1 + chunks(add+keep)
	case m.job.Delete && len(m.others) == 0:
		return 1
	}
	return renames + chunks(add+remove)
}

// TestRandomMirror does random jobs of a mirror against every API there may be, with faults, crashes and people who change
// the groups meanwhile. What others put in is untouched, what a job names is done or said to have failed, and nothing else
// goes. Without faults there are no more writes than needed.
func TestRandomMirror(t *testing.T) {
	for _, existing := range []string{"append", "replace", "refuse"} {
		for _, offered := range []string{"all", "no update 60009", "no get", "no del", "fold", "faultless", "faultless fold"} {
			t.Run(existing+" "+offered, func(t *testing.T) {
				for i := range *mirrorRuns {
					seed := *mirrorSeed + uint64(i)
					synctest.Test(t, func(t *testing.T) { randomMirror(t, existing, offered, seed) })
					if t.Failed() {
						t.Fatalf("to repeat it: go test ./worker -run '%s' -mirrors 1 -mirrors-seed %d", t.Name(), seed)
					}
				}
			})
		}
	}
}

func randomMirror(t *testing.T, existing, offered string, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 7))
	chance := rand.New(rand.NewPCG(seed, 8)) // of the API, under its lock
	a := newAPI(existing)
	a.offer(offered)
	if offered == "no del" {
		a.noDelete = coded(chat.DelContactGroup, chat.CodeNotOffered)
	}
	a.fold = strings.HasSuffix(offered, "fold")
	a.latency = 30 * time.Millisecond
	faultless := strings.HasPrefix(offered, "faultless")
	a.item = func(it chat.Item) int {
		switch {
		case strings.HasPrefix(it.ID, "badours"):
			return chat.CodeGroupUnresolved
		case strings.HasPrefix(it.ID, "bad"):
			return chat.CodeUserNotImported
		}
		return 0
	}
	groups := map[string]*mirrored{} // by user and name before the job
	var jobs []job.Job
	for u := range 3 {
		for g := range 3 {
			m := drawMirrored(rnd, a, fmt.Sprint("u", u), fmt.Sprint("g", g))
			groups[m.key()] = m
			jobs = append(jobs, m.job)
		}
	}
	var faulty atomic.Bool
	faulty.Store(!faultless)
	a.late = func(c chat.Command) bool {
		return faulty.Load() && c != chat.GetContactGroup && chance.IntN(20) == 0
	}
	a.fault = func(_ int, c chat.Command, user string) (error, bool) {
		if !faulty.Load() || chance.IntN(6) > 0 {
			return nil, false
		}
		for key, m := range groups { // somebody puts something in, and the next read has to show it
			if members := a.groups[key]; members != nil && strings.HasPrefix(key, user) && c == chat.DelContactGroup && chance.IntN(2) == 0 {
				it := chat.Item{Type: chat.GroupChat, ID: "meanwhile"}
				m.others = append(m.others, it)
				members[it] = true
				return status(c, 502), false
			}
		}
		switch chance.IntN(7) {
		case 0:
			return coded(c, 50004), chance.IntN(2) == 0
		case 1:
			return status(c, 502), chance.IntN(2) == 0
		case 2:
			return status(c, 404), false
		case 3:
			return status(c, 403), false
		case 4:
			return coded(c, 60007), false
		case 5:
			return &chat.Error{Command: c, Cause: context.DeadlineExceeded}, chance.IntN(2) == 0
		}
		return &chat.Error{Command: c, Cause: errors.New("reset")}, chance.IntN(2) == 0
	}
	s := newStream(jobs...)
	known := Known{Create: Reading(existing), CreateAt: time.Now()}
	for life := 0; !s.empty(); life++ {
		faulty.Store(!faultless && life < 4)
		ctx, crash := context.WithCancel(t.Context())
		done := make(chan error, 1)
		w := New(Config{Concurrency: 12, Known: known}, s, a, startGovernor(t, governor.Config{}))
		go func() { done <- w.Run(ctx, nil) }()
		if faulty.Load() {
			time.Sleep(time.Duration(rnd.IntN(4000)) * time.Millisecond)
			s.crash()
		} else {
			for end := time.Now().Add(2 * time.Hour); !s.empty(); time.Sleep(100 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("the work does not end")
				}
			}
		}
		crash()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, ErrMayReplace) {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second) // until another one leads
	}
	time.Sleep(10 * time.Second)
	a.mu.Lock()
	defer a.mu.Unlock()
	writes, want := 0, 0
	for _, m := range groups {
		m.verify(t, a, s.results["imp/"+m.job.ID], offered)
		want += m.writes(Reading(existing))
		if t.Failed() {
			t.Logf("seed %d: others %v, another group: %t: %.1000s", seed, m.others, m.other != nil, m.job.AppendJSON(nil))
			return
		}
	}
	if !faultless {
		a.item = nil
		s.retried(t, a, groups, offered, known)
		return
	}
	for _, c := range a.calls {
		if c != string(chat.GetContactGroup) {
			writes++
		}
	}
	// 51007 is tried twice more.
	for _, m := range groups {
		if slices.ContainsFunc(m.list(job.Add, job.Remove, job.Keep), func(it chat.Item) bool { return strings.HasPrefix(it.ID, "bad") }) {
			want += 2
		}
	}
	if writes > want {
		t.Errorf("seed %d: got %d writes, want %d: %v", seed, writes, want, a.updates)
	}
}

// retried retries what failed, now that nothing fails for a reason of its own. The lock of the API is held.
func (s *stream) retried(t *testing.T, a *api, groups map[string]*mirrored, offered string, known Known) {
	t.Helper()
	for _, m := range groups {
		if r := s.results["imp/"+m.job.ID]; r.Outcome != job.Done {
			s.again(m.job, 1)
		}
	}
	a.mu.Unlock()
	err := work(t, Config{Known: known}, s, a)
	a.mu.Lock()
	if err != nil && !errors.Is(err, ErrMayReplace) {
		t.Fatal(err)
	}
	for _, m := range groups {
		r := s.results["imp/"+m.job.ID]
		m.verify(t, a, r, offered)
		for _, c := range r.Conversations {
			if c.Code != "" && strings.HasPrefix(c.ID, "bad") && offered != "no update 60009" && m.other == nil {
				t.Errorf("%s: %s %q failed again, with %q", m.newKey(), c.ID, c.Op, c.Code)
			}
		}
		if t.Failed() {
			t.Logf("retried: others %v, another group: %t: %.1000s", m.others, m.other != nil, m.job.AppendJSON(nil))
			return
		}
	}
}

func (m *mirrored) verify(t *testing.T, a *api, r job.Result, offered string) {
	t.Helper()
	now := a.groups[m.newKey()]
	if r.Outcome == "" {
		t.Errorf("%s has no result", m.newKey())
		return
	}
	// What others put in stays, under the one name or the other.
	was := a.groups[m.key()]
	for _, it := range m.others {
		if !now[it] && !was[it] {
			t.Errorf("%s: %s of somebody else is gone", m.newKey(), it.ID)
		}
	}
	for it := range m.other {
		if !now[it] {
			t.Errorf("%s: %s of the group that was there is gone", m.newKey(), it.ID)
		}
	}
	// Nothing goes but what the job takes out.
	removes, keeps := m.list(job.Remove), m.list(job.Keep)
	for it := range m.before {
		if offered == "no update 60009" && strings.HasPrefix(it.ID, "bad") {
			continue // where create has to carry what is there, it is lost: see writeWhole
		}
		if !now[it] && !was[it] && !slices.Contains(removes, it) {
			t.Errorf("%s: %s is gone, and the job does not take it out", m.newKey(), it.ID)
		}
	}
	// What is said to be done is done, and what can be done is.
	reported := map[chat.Item]bool{}
	for i := range r.Conversations {
		c := &r.Conversations[i]
		it := itemOf(c)
		reported[it] = true
		if c.Code == "" && now[it] != (c.Op == job.Add) {
			t.Errorf("%s: %s %q is said to be done, and is in the group: %t", m.newKey(), c.ID, c.Op, now[it])
		}
		able := offered != "no update 60009" && c.Code != job.CodeNotRenamed &&
			!(offered == "no get" && m.other != nil) // why the rename was rejected is not known
		if c.Code != "" && !strings.HasPrefix(c.ID, "bad") && able {
			t.Errorf("%s: %s %q failed with %q", m.newKey(), c.ID, c.Op, c.Code)
			return
		}
		if c.Code == job.CodeNotRenamed && m.other == nil {
			t.Errorf("%s: %s: got %q, and there was no other group", m.newKey(), c.ID, c.Code)
		}
	}
	for _, it := range m.list(job.Add, job.Remove) {
		if !reported[it] {
			t.Errorf("%s: %s is not in the result", m.newKey(), it.ID)
		}
	}
	// A group that was created anew has what the job keeps.
	if m.before == nil && m.other == nil && now != nil {
		for _, it := range keeps {
			if !now[it] && !strings.HasPrefix(it.ID, "bad") && !reported[it] {
				t.Errorf("%s: the group was created anew without %s", m.newKey(), it.ID)
			}
		}
	}
	if r.Deleted && now != nil {
		t.Errorf("%s is said to be gone, and is there with %d conversations", m.newKey(), len(now))
	}
	if !r.Deleted && m.job.Delete && now == nil {
		t.Errorf("%s is gone, and the result does not say so", m.newKey())
	}
	if m.job.Delete && now != nil && len(m.others) == 0 && offered != "no get" && offered != "no del" {
		t.Errorf("%s is still there", m.newKey())
	}
	if renamed := m.job.OldName != "" && (m.other == nil || m.before == nil) && offered != "no update 60009"; renamed != (r.OldName != "") {
		t.Errorf("%s: got old name %q and code %q, want it renamed: %t", m.newKey(), r.OldName, r.Code, renamed)
	}
}

// restless is an API whose list changes between two pages, so many times: what was on the first one moves to the next.
type restless struct {
	*api
	times int
}

func (r *restless) Get(ctx context.Context, user string, start int64) (chat.Page, error) {
	page, err := r.api.Get(ctx, user, start)
	if start > 0 && r.times > 0 {
		r.times--
		page.Conversations = append(page.Conversations, chat.Membership{Item: contacts(ids("old", 1))[0]})
	}
	return page, err
}

func TestAGroupIsNotDeletedByPagesThatDoNotGoTogether(t *testing.T) {
	for _, times := range []int{2, 3} {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI("append")
			a.put("anna/g", ids("old", 100)...)
			s := newStream(deleteJob("g", ids("old", 100)...))
			if err := workWith(t, Config{}, s, &restless{a, times}, startGovernor(t, governor.Config{})); err != nil {
				t.Fatal(err)
			}
			if ended(t, s.kept[0], job.Done, 0, 100); s.kept[0].Deleted != (times < 3) {
				t.Errorf("the list changed %d times: got deleted %t", times, s.kept[0].Deleted)
			}
		})
	}
}
