package worker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/governor"
)

// A getter is an API whose responses to get come from a function; n counts the calls from 1.
type getter struct {
	API
	n       atomic.Int64
	get     func(n int, start int64) (chat.Page, error)
	renewed int
}

func (g *getter) Get(_ context.Context, user string, start int64) (chat.Page, error) {
	return g.get(int(g.n.Add(1)), start)
}

func (g *getter) Renew() error {
	g.renewed++
	return nil
}

func listed(group int64, ids ...string) (all []chat.Membership) {
	for _, id := range ids {
		all = append(all, chat.Membership{Item: chat.Item{Type: 1, ID: id}, GroupIDs: []int64{group}})
	}
	return all
}

// What the API can say of a user's list, and what is made of it.
func TestReader(t *testing.T) {
	groups := map[int64]string{1: "b", 2: "a"}
	whole := chat.Page{Groups: groups, Conversations: append(listed(1, "y", "x"), listed(2, "z")...), Complete: true}
	code := func(code int) error { return &chat.Error{Command: chat.GetContactGroup, Code: code} }
	firstOf := func(next int64) chat.Page {
		return chat.Page{Groups: groups, Conversations: listed(1, "y"), Next: next}
	}
	tests := []struct {
		name   string
		get    func(n int, start int64) (chat.Page, error)
		want   string // groups, or a code
		calls  int    // 0: any number
		halted bool
	}{
		{"one page", func(int, int64) (chat.Page, error) { return whole, nil }, "[{a [{1 z}]} {b [{1 x} {1 y}]}]", 1, false},
		{"two pages", func(n int, start int64) (chat.Page, error) {
			if start == 0 {
				return firstOf(1), nil
			}
			return chat.Page{Groups: groups, Conversations: listed(1, "x"), Complete: true}, nil
		}, "[{a []} {b [{1 x} {1 y}]}]", 4, false},
		{"two pages, and one that moves up between them", func(n int, start int64) (chat.Page, error) {
			switch {
			case n == 1: // w, y and x; then w is taken out
				return chat.Page{Groups: groups, Conversations: listed(1, "w"), Next: 1}, nil
			case start == 0:
				return firstOf(1), nil
			}
			return chat.Page{Groups: groups, Conversations: listed(1, "x"), Complete: true}, nil
		}, "[{a []} {b [{1 x} {1 y}]}]", 6, false},
		{"two pages, another list each time", func(n int, start int64) (chat.Page, error) {
			if start == 0 {
				return chat.Page{Groups: groups, Conversations: listed(1, fmt.Sprint("w", n)), Next: 1}, nil
			}
			return chat.Page{Groups: groups, Conversations: listed(1, "x"), Complete: true}, nil
		}, CodeChanged, 6, false},
		{"no groups", func(int, int64) (chat.Page, error) { return chat.Page{}, code(51009) }, "[]", 1, false},
		{"no such user", func(int, int64) (chat.Page, error) { return chat.Page{}, code(50001) }, "no user", 1, false},
		{"no such account", func(int, int64) (chat.Page, error) { return chat.Page{}, code(70107) }, "no user", 1, false},
		{"rejected", func(int, int64) (chat.Page, error) { return chat.Page{}, code(50002) }, "50002", 1, false},
		{"no end: cut short by a plan", func(_ int, start int64) (chat.Page, error) {
			if start == 0 {
				return firstOf(1), nil
			}
			return chat.Page{Groups: groups, Next: start + 1}, nil
		}, CodeNoEnd, 2, false},
		{"no end: no next page", func(int, int64) (chat.Page, error) { return firstOf(0), nil }, CodeNoEnd, 1, false},
		{"changed once", func(n int, start int64) (chat.Page, error) {
			switch {
			case start == 0 && n == 1:
				return firstOf(1), nil
			case n == 2:
				return chat.Page{Groups: groups, Conversations: listed(1, "y"), Complete: true}, nil
			}
			return whole, nil
		}, "[{a [{1 z}]} {b [{1 x} {1 y}]}]", 3, false},
		{"renamed each time", func(n int, start int64) (chat.Page, error) {
			if start == 0 {
				return firstOf(1), nil
			}
			return chat.Page{Groups: map[int64]string{1: fmt.Sprint("b", n)}, Conversations: listed(1, "x"), Complete: true}, nil
		}, CodeChanged, 6, false},
		{"in a group that is not named", func(int, int64) (chat.Page, error) {
			return chat.Page{Groups: groups, Conversations: listed(3, "x"), Complete: true}, nil
		}, CodeChanged, 3, false},
		{"a page is missing", func(n int, start int64) (chat.Page, error) {
			if start == 0 {
				return firstOf(1), nil
			}
			return chat.Page{}, code(50004)
		}, "50004", 3 * (1 + callTries), false},
		{"throttled, timed out, cut off, and then well", func(n int, start int64) (chat.Page, error) {
			switch n {
			case 1:
				return chat.Page{}, code(60007)
			case 2:
				return chat.Page{}, code(60011)
			case 3:
				return chat.Page{}, &chat.Error{Command: chat.GetContactGroup, Cause: context.DeadlineExceeded}
			case 4:
				return chat.Page{}, &chat.Error{Command: chat.GetContactGroup, Status: 502}
			}
			return whole, nil
		}, "[{a [{1 z}]} {b [{1 x} {1 y}]}]", 5, false},
		{"a UserSig that ran out", func(n int, start int64) (chat.Page, error) {
			if n == 1 {
				return chat.Page{}, code(70001)
			}
			return whole, nil
		}, "[{a [{1 z}]} {b [{1 x} {1 y}]}]", 2, false},
		{"one that cannot be renewed", func(int, int64) (chat.Page, error) { return chat.Page{}, code(70001) }, "", 2, true},
		{"a wrong key", func(int, int64) (chat.Page, error) { return chat.Page{}, code(70009) }, "", 1, true},
		{"a plan that expired", func(int, int64) (chat.Page, error) { return chat.Page{}, code(60020) }, "", 1, true},
		{"not offered", func(int, int64) (chat.Page, error) { return chat.Page{}, code(60009) }, "", 1, true},
		{"a code that nobody knows", func(int, int64) (chat.Page, error) { return chat.Page{}, code(59999) }, "59999", unknownTries, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api := &getter{get: test.get}
				list, err := NewReader(Config{}, api, startGovernor(t, governor.Config{})).Read(t.Context(), "anna")
				got := fmt.Sprint(list.Groups)
				unread, isUnread := errors.AsType[*Unread](err)
				switch {
				case list.NoUser:
					got = "no user"
				case isUnread:
					got = unread.Code
				case err != nil:
					got = ""
				}
				if got != test.want || governor.IsHalted(err) != test.halted || (err != nil) != (isUnread || test.halted) {
					t.Errorf("got %q, %v; want %q, halted %t", got, err, test.want, test.halted)
				}
				if isUnread && (len(list.Groups) > 0 || unread.Info == "") {
					t.Errorf("got %+v, %v; want nothing of the list, and a reason", list, err)
				}
				if n := api.n.Load(); n != int64(test.calls) {
					t.Errorf("got %d calls, want %d", n, test.calls)
				}
			})
		})
	}
}

// An outage makes nobody unread, however long it is; the end of the context ends the reading.
func TestReaderOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		api := &getter{get: func(int, int64) (chat.Page, error) {
			if time.Since(start) < time.Hour {
				return chat.Page{}, &chat.Error{Command: chat.GetContactGroup, Cause: fs.ErrClosed}
			}
			return chat.Page{Complete: true}, nil
		}}
		r := NewReader(Config{}, api, startGovernor(t, governor.Config{}))
		errs := make(chan error, 20)
		for i := range cap(errs) {
			go func() {
				_, err := r.Read(t.Context(), fmt.Sprint("user", i))
				errs <- err
			}()
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := r.Read(ctx, "x"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the end of the context", err)
		}
		for range cap(errs) {
			if err := <-errs; err != nil {
				t.Errorf("got %v, want none after the outage", err)
			}
		}
	})
}
