package worker

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/governor"
	"groupferry/internal/job"
)

// preset fills a group with what was there before.
func preset(a *api, key string, n int) (items []chat.Item) {
	a.groups[key] = map[chat.Item]bool{}
	for i := range n {
		it := chat.Item{Type: 1, ID: fmt.Sprintf("before%03d", i)}
		a.groups[key][it] = true
		items = append(items, it)
	}
	return items
}

// kept checks that nothing of it is gone.
func kept(t *testing.T, a *api, key string, items []chat.Item) {
	t.Helper()
	gone := 0
	for _, it := range items {
		if !a.groups[key][it] {
			gone++
		}
	}
	if gone > 0 {
		t.Errorf("%s: %d of %d that were there before are gone", key, gone, len(items))
	}
}

// honest checks that nothing is said to be done that is not in the group, and counts what failed.
func honest(t *testing.T, s *stream, a *api, j job.Job) (failed int) {
	t.Helper()
	lies := 0
	for _, c := range s.results["imp/"+j.ID].Conversations {
		in := a.groups[j.FromAccount+"/"+j.GroupName][chat.Item{Type: c.Type, ID: c.ID}]
		if c.Code == "" && !in {
			lies++
		}
		if c.Code != "" {
			failed++
		}
	}
	if lies > 0 {
		t.Errorf("%d are said to be done and are not there", lies)
	}
	return failed
}

// A code for two seconds after the first create looks as if create rejected it, of an API that replaces.
func TestWrongRefuse(t *testing.T) {
	for _, code := range []int{59999, 50002, 51008} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAPI("replace")
				before := preset(a, "bob/g", 10)
				creates := 0
				var end time.Time
				a.fault = func(_ int, c chat.Command, _ string) (error, bool) {
					if c == chat.CreateContactGroup {
						if creates++; creates == 2 {
							end = time.Now().Add(2 * time.Second)
						}
						if creates >= 2 && time.Now().Before(end) {
							return coded(c, code), false
						}
					}
					return nil, false
				}
				var known Known
				s := newStream(testJob("anna", "g", 4))
				if err := work(t, Config{OnKnown: func(k Known) { known = k }}, s, a); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				j := testJob("bob", "g", 4)
				s = newStream(j)
				if err := work(t, Config{Known: known}, s, a); err != nil {
					t.Fatal(err)
				}
				kept(t, a, "bob/g", before)
			})
		})
	}
}

// pages wraps an api whose Get says something else.
type pages struct {
	*api
	page func(chat.Page, error, int64) (chat.Page, error)
}

func (p *pages) Get(ctx context.Context, user string, start int64) (chat.Page, error) {
	var page chat.Page
	var err error
	if start < 100 { // the fake has no more
		page, err = p.api.Get(ctx, user, start)
	} else {
		p.api.mu.Lock()
		p.api.calls = append(p.api.calls, string(chat.GetContactGroup))
		p.api.mu.Unlock()
	}
	return p.page(page, err, start)
}

// The list of what a user has does not end: a group that cannot be read back is not read for ever.
func TestEndlessRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		p := &pages{a, func(page chat.Page, err error, start int64) (chat.Page, error) {
			page.Complete, page.Next = false, start+100
			return page, err
		}}
		j := testJob("anna", "g", 4)
		s := newStream(j)
		if err := workWith(t, Config{}, s, p, startGovernor(t, governor.Config{})); err != nil {
			t.Fatal(err)
		}
		holds(t, s, a, j, job.Done)
		if n := a.count(chat.GetContactGroup); n > 10 {
			t.Errorf("got %d reads, want a few", n)
		}
	})
}

// A read that ends before it is complete does not say what a group holds.
func TestPartialRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("replace")
		a.offer("no update 60009")
		before := preset(a, "anna/g", 80)
		p := &pages{a, func(page chat.Page, err error, _ int64) (chat.Page, error) {
			page.Next = 0 // not complete, and no way on
			page.Complete = false
			return page, err
		}}
		s := newStream(testJob("anna", "g", 4))
		g := startGovernor(t, governor.Config{})
		if err := workWith(t, Config{MaxAttempts: 2}, s, p, g); !errors.Is(err, ErrMayReplace) {
			t.Errorf("got %v, want %v", err, ErrMayReplace)
		}
		kept(t, a, "anna/g", before)
	})
}

// Something in between responds with 404 for a moment, while the first calls are made.
func TestBlip404(t *testing.T) {
	for _, only := range []chat.Command{"", chat.UpdateContactGroup} {
		t.Run(string(only), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAPI("append")
				a.latency = 20 * time.Millisecond
				end := time.Now().Add(300 * time.Millisecond)
				a.fault = func(_ int, c chat.Command, _ string) (error, bool) {
					if time.Now().Before(end) && (only == "" || c == only) {
						return status(c, 404), false
					}
					return nil, false
				}
				var jobs []job.Job
				for i := range 20 {
					jobs = append(jobs, testJob(fmt.Sprint("u", i), "g", 250))
				}
				preset(a, "u3/g", 50)
				s := newStream(jobs...)
				var known Known
				if err := work(t, Config{OnKnown: func(k Known) { known = k }}, s, a); err != nil {
					t.Errorf("%q: %v", only, err)
					time.Sleep(time.Minute) // the proxy works long since
					n := len(a.calls)
					err := work(t, Config{Known: known}, s, a)
					t.Errorf("%q: started again: %v after %d calls", only, err, len(a.calls)-n)
					return
				}
				failed := 0
				for _, j := range jobs {
					failed += honest(t, s, a, j)
				}
				if failed > 0 {
					t.Errorf("%q: %d failed", only, failed)
				}
			})
		})
	}
}

// The lead is handed over, or the process is stopped, while a create without a response may take effect.
func TestHandover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("replace")
		a.latency = 20 * time.Millisecond
		once := true
		a.late = func(c chat.Command) bool {
			was := once
			if c == chat.CreateContactGroup {
				once = false
			}
			return was && c == chat.CreateContactGroup
		}
		j := testJob("anna", "g", 450)
		s := newStream(j)
		known := Known{Create: Replace, CreateAt: time.Now()}
		ctx, handOver := context.WithCancel(t.Context())
		done := make(chan error, 1)
		w := New(Config{Known: known}, s, a, startGovernor(t, governor.Config{}))
		go func() { done <- w.Run(ctx, nil) }()
		time.Sleep(100 * time.Millisecond) // the create has been lost
		handOver()
		<-done
		s.crash()
		time.Sleep(1100 * time.Millisecond) // as long as a new leader makes no call
		if err := work(t, Config{Known: known}, s, a); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		honest(t, s, a, j)
	})
}

// A retry of some codes is not requeued because of conversations that it does not send.
func TestPassing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		a.item = func(it chat.Item) int {
			switch it.ID {
			case "c0001":
				return 50004
			case "c0002":
				return 50001
			}
			return 0
		}
		j := testJob("anna", "g", 5)
		s := newStream(j)
		if err := work(t, Config{MaxAttempts: 2}, s, a); err != nil {
			t.Fatal(err)
		}
		a.item = nil
		s.again(j, 1, j.Conversations[2]) // retry --code 50001
		a.calls = nil
		start := time.Now()
		if err := work(t, Config{}, s, a); err != nil {
			t.Fatal(err)
		}
		if len(a.calls) > 2 {
			t.Errorf("the retry of one conversation took %d calls and %v", len(a.calls), time.Since(start))
		}
	})
}

// The chunk size says nothing about what create can carry.
func TestChunkSize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("replace")
		a.offer("no update 60009")
		j := testJob("anna", "g", 50)
		s := newStream(j)
		if err := work(t, Config{ChunkSize: 10}, s, a); err != nil {
			t.Fatal(err)
		}
		if failed := honest(t, s, a, j); failed > 0 {
			t.Errorf("%d of 50 failed", failed)
		}
	})
}

// What was read is hours old when the create is sent at last.
func TestOldNews(t *testing.T) {
	for _, offered := range []string{"all", "no update 60009"} {
		t.Run(offered, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAPI("replace")
				a.offer(offered)
				a.latency = 20 * time.Millisecond
				start := time.Now()
				a.fault = func(_ int, c chat.Command, _ string) (error, bool) {
					if d := time.Since(start); d > 30*time.Millisecond && d < time.Hour && c == chat.CreateContactGroup {
						return &chat.Error{Command: c, Cause: errors.New("connection refused")}, false
					}
					return nil, false
				}
				var before []chat.Item
				time.AfterFunc(30*time.Minute, func() { // the user makes the group himself
					a.mu.Lock()
					defer a.mu.Unlock()
					before = preset(a, "u3/g", 10)
				})
				var jobs []job.Job
				for i := range 30 {
					jobs = append(jobs, testJob(fmt.Sprint("u", i), "g", 3))
				}
				s := newStream(jobs...)
				known := Known{Create: Replace, CreateAt: time.Now()}
				if err := work(t, Config{Known: known}, s, a); err != nil {
					t.Fatal(err)
				}
				kept(t, a, "u3/g", before)
			})
		})
	}
}

// Update is found not to be offered between two chunks of a job, and get is not offered.
func TestAddOrFind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("replace")
		a.offer("no get")
		a.latency = 50 * time.Millisecond
		before := preset(a, "anna/g", 10)
		a.fault = func(n int, c chat.Command, user string) (error, bool) {
			if c == chat.UpdateContactGroup && user == "anna" {
				a.noUpdate = coded(c, 60009) // from now on
				return coded(c, 50002), false
			}
			return nil, false
		}
		s := newStream(testJob("anna", "g", 20))
		w := New(Config{ChunkSize: 10, Known: Known{NoGetAt: time.Now()}}, s, a, startGovernor(t, governor.Config{}))
		time.AfterFunc(50*time.Millisecond, func() { w.known.missed(coded(chat.UpdateContactGroup, 60009).(*chat.Error)) }) // another job
		if err := runUntilEmpty(t, w, s); err != nil && !errors.Is(err, ErrMayReplace) {
			t.Error(err)
		}
		kept(t, a, "anna/g", before)
	})
}

// sparing replaces only where it has something to put in.
type sparing struct{ *api }

func (p *sparing) Create(ctx context.Context, r chat.CreateRequest) (chat.Response, error) {
	p.mu.Lock()
	fine := false
	for _, it := range r.Items {
		fine = fine || p.item(it) == 0
	}
	if fine {
		p.existing = "replace"
	} else {
		p.existing = "append"
	}
	p.mu.Unlock()
	return p.api.Create(ctx, r)
}

// All conversations of the second create are rejected, which shows nothing.
func TestWrongAppend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("replace")
		before := preset(a, "bob/g", 10)
		a.item = func(it chat.Item) int {
			if it.ID >= "c0002" && it.Type == 1 || it.ID == "c0003" {
				return 51007
			}
			return 0
		}
		s := newStream(testJob("anna", "g", 4), testJob("bob", "g", 4))
		if err := workWith(t, Config{Concurrency: 1}, s, &sparing{a}, startGovernor(t, governor.Config{})); err != nil {
			t.Fatal(err)
		}
		kept(t, a, "bob/g", before)
	})
}

// The group is deleted twice.
func TestDeletedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		updates := 0
		a.fault = func(_ int, c chat.Command, _ string) (error, bool) {
			if c == chat.UpdateContactGroup {
				if updates++; updates == 3 || updates == 6 {
					delete(a.groups, "anna/g")
				}
			}
			return nil, false
		}
		j := testJob("anna", "g", 600)
		s := newStream(j)
		if err := work(t, Config{Known: appends()}, s, a); err != nil {
			t.Fatal(err)
		}
		honest(t, s, a, j)
	})
}

// Get is always rejected; creates and updates are accepted.
func TestGetRejected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("append")
		a.noGet = coded(chat.GetContactGroup, 50001)
		var jobs []job.Job
		for i := range 5 {
			jobs = append(jobs, testJob(fmt.Sprint("u", i), "g", 10))
		}
		s := newStream(jobs...)
		if err := work(t, Config{Concurrency: 1}, s, a); err != nil {
			t.Fatal(err)
		}
		failed := 0
		for _, j := range jobs {
			failed += honest(t, s, a, j)
		}
		if failed > 0 {
			t.Errorf("%d of 50 failed; anna's group holds %d", failed, len(a.groups["u0/g"]))
		}
	})
}

// A create with a code that nobody knows takes effect late.
func TestUnknownLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("replace")
		a.latency = 20 * time.Millisecond
		n := 0
		a.fault = func(_ int, c chat.Command, _ string) (error, bool) {
			if c == chat.CreateContactGroup {
				if n++; n <= 3 {
					return coded(c, 59999), false
				}
			}
			return nil, false
		}
		time.AfterFunc(2*time.Second, func() { // the first of them
			a.mu.Lock()
			defer a.mu.Unlock()
			a.groups["anna/g"] = map[chat.Item]bool{}
			a.add("anna/g", items(testJob("anna", "g", 100)))
		})
		j := testJob("anna", "g", 450)
		s := newStream(j)
		if err := work(t, Config{Known: Known{Create: Replace, CreateAt: time.Now()}}, s, a); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		honest(t, s, a, j)
	})
}

// A retry where only create is left does not lose what the import itself put there.
func TestAcceptRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("replace")
		a.item = func(it chat.Item) int {
			if it.ID == "c0001" {
				return 50001
			}
			return 0
		}
		j := testJob("anna", "g", 300)
		s := newStream(j)
		if err := work(t, Config{}, s, a); err != nil {
			t.Fatal(err)
		}
		n := len(a.groups["anna/g"])
		a.item = nil
		a.noUpdate, a.noGet = coded(chat.UpdateContactGroup, 60009), coded(chat.GetContactGroup, 60009)
		s.again(j, 1)
		if err := work(t, Config{AcceptReplace: true}, s, a); err != nil {
			t.Fatal(err)
		}
		honest(t, s, a, j)
		if now := len(a.groups["anna/g"]); now < n {
			t.Errorf("the group held %d of the import before the retry of one, and %d after it", n, now)
		}
	})
}

// A moment of 404 on get does not make create go out blindly.
func TestAcceptBlip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI("replace")
		a.offer("no update 60009")
		a.latency = 20 * time.Millisecond
		end := time.Now().Add(300 * time.Millisecond)
		a.fault = func(_ int, c chat.Command, _ string) (error, bool) {
			if c == chat.GetContactGroup && time.Now().Before(end) {
				return status(c, 404), false
			}
			return nil, false
		}
		var jobs []job.Job
		for i := range 20 {
			jobs = append(jobs, testJob(fmt.Sprint("u", i), "g", 5))
		}
		before := preset(a, "u9/g", 50)
		s := newStream(jobs...)
		if err := work(t, Config{AcceptReplace: true}, s, a); err != nil {
			t.Fatal(err)
		}
		kept(t, a, "u9/g", before)
	})
}

// A conversation that was taken out on purpose since does not come back with the retry of another.
func TestComesBack(t *testing.T) {
	for _, lost := range []bool{false, true} {
		t.Run(fmt.Sprint(lost), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAPI("append")
				a.item = func(it chat.Item) int {
					if it.ID == "c0001" {
						return 50001
					}
					return 0
				}
				j := testJob("anna", "g", 5)
				s := newStream(j)
				if err := work(t, Config{}, s, a); err != nil {
					t.Fatal(err)
				}
				out := chat.Item{Type: 1, ID: "c0000"}
				delete(a.groups["anna/g"], out)
				a.item = nil
				a.fault = func(_ int, c chat.Command, _ string) (error, bool) {
					if lost {
						lost = false
						return status(c, 502), false
					}
					return nil, false
				}
				s.again(j, 1)
				if err := work(t, Config{}, s, a); err != nil {
					t.Fatal(err)
				}
				if a.groups["anna/g"][out] {
					t.Error("it is in the group again")
				}
			})
		})
	}
}

func items(j job.Job) (list []chat.Item) {
	for _, c := range j.Conversations {
		list = append(list, chat.Item{Type: c.Type, ID: c.ID})
	}
	return list
}
