package app

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"

	"groupferry/internal/chatsim"
)

// groupsState is what groups hold: a set of conversations by name.
type groupsState map[string]string

func (s groupsState) String() string {
	var all []string
	for _, g := range slices.Sorted(maps.Keys(s)) {
		all = append(all, g+"="+s[g])
	}
	return strings.Join(all, " ")
}

// subsets gives all sets of these conversations, as sorted strings.
func subsets(of string) []string {
	all := []string{""}
	for _, c := range of {
		for _, s := range all {
			all = append(all, s+string(c))
		}
	}
	return all
}

func setWithout(s, out string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(out, r) {
			return -1
		}
		return r
	}, s)
}

func setWith(s, in string) string {
	all := []rune(setWithout(s, in) + in)
	slices.Sort(all)
	return string(all)
}

// next gives each state that one write makes of s. Somebody else's conversation f is never taken out.
func (s groupsState) next(names []string, rename bool) (all []groupsState) {
	with := func(group, set string) {
		n := maps.Clone(s)
		n[group] = set
		all = append(all, n)
	}
	for _, g := range names {
		set, there := s[g]
		if !there {
			for _, add := range subsets("ab")[1:] {
				with(g, add)
			}
			continue
		}
		for _, add := range subsets("ab") {
			for _, out := range subsets("ab") {
				with(g, setWith(setWithout(set, out), add))
			}
		}
		if !strings.Contains(set, "f") {
			n := maps.Clone(s)
			delete(n, g)
			all = append(all, n)
		}
		for _, to := range names {
			if _, taken := s[to]; rename && !taken {
				n := maps.Clone(s)
				delete(n, g)
				n[to] = set
				all = append(all, n)
			}
		}
	}
	return all
}

// fewest is the least number of writes that lead from one state to another.
func fewest(from, to groupsState, names []string, rename bool) int {
	seen, now := map[string]bool{from.String(): true}, []groupsState{from}
	for n := 0; ; n++ {
		var then []groupsState
		for _, s := range now {
			if s.String() == to.String() {
				return n
			}
			for _, next := range s.next(names, rename) {
				if !seen[next.String()] {
					seen[next.String()] = true
					then = append(then, next)
				}
			}
		}
		now = then
	}
}

// TestFewestWrites takes users from every small state to every other one, in one night of a mirror, and compares the writes
// for each with the fewest that there are.
func TestFewestWrites(t *testing.T) {
	type user struct {
		before, after groupsState // ours
		theirs        bool        // somebody else has put f into g
		rename        bool
	}
	users := map[string]*user{}
	states := func(names ...string) (all []groupsState) {
		all = []groupsState{{}}
		for _, name := range names {
			for _, s := range slices.Clone(all) {
				for _, set := range subsets("ab")[1:] {
					n := maps.Clone(s)
					n[name] = set
					all = append(all, n)
				}
			}
		}
		return all
	}
	for _, before := range states("g", "h") {
		for _, after := range states("g", "h") {
			if len(after) == 0 { // such a user is kept
				continue
			}
			users[fmt.Sprint("u", len(users))] = &user{before: before, after: after}
			if before["g"] != "" {
				users[fmt.Sprint("u", len(users))] = &user{before: before, after: after, theirs: true}
			}
		}
	}
	for _, before := range states("g")[1:] {
		for _, after := range states("G")[1:] {
			users[fmt.Sprint("u", len(users))] = &user{before: before, after: after, rename: true}
		}
	}

	n := newNamespace(t, chatsim.Config{Rate: -1})
	var mu sync.Mutex
	writes := map[string]int{}
	counter := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		var call struct {
			From string `json:"From_Account"`
		}
		if json.Unmarshal(body, &call) == nil && path.Base(r.URL.Path) != "get_contact_group" {
			mu.Lock()
			writes[call.From]++
			mu.Unlock()
		}
		n.sim.ServeHTTP(w, r)
	}))
	t.Cleanup(counter.Close)
	n.url = counter.URL
	e := n.start(nil)
	m := &mirror{namespace: n, t: t, cfg: n.contacts()}
	m.cfg.Mirror = true
	m.cfg.Guards.MaxShrink, m.cfg.Guards.MaxRemovals = Budget{Limited: true, Percent: 100}, Budget{Limited: true, Percent: 100}
	rows := func(of func(*user) groupsState) (all []string) {
		for name, u := range users {
			for g, set := range of(u) {
				for _, c := range set {
					all = append(all, fmt.Sprintf("%s,%s,%c", name, g, c))
				}
			}
		}
		return all
	}
	m.twice(rows(func(u *user) groupsState { return u.before })...)
	m.cfg.Name = "" // of the users
	for name, u := range users {
		if u.theirs {
			m.somebody(name, "g", "f")
		}
	}
	m.cfg.Name = "contacts"
	mu.Lock()
	clear(writes)
	mu.Unlock()
	m.night(rows(func(u *user) groupsState { return u.after })...)
	if err := e.end(t); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	for name, u := range users {
		names, from, to := []string{"g", "h"}, maps.Clone(u.before), maps.Clone(u.after)
		if u.rename {
			names = []string{"g", "G"}
		}
		if u.theirs {
			from["g"] += "f"
			to["g"] += "f"
		}
		if want := fewest(from, to, names, u.rename); writes[name] != want {
			t.Errorf("%v to %v: got %d writes, want %d", from, to, writes[name], want)
		}
		got := groupsState{}
		for g, items := range n.sim.State()[name] {
			for _, it := range items {
				got[g] = setWith(got[g], it.ID)
			}
			if len(items) == 0 {
				got[g] = ""
			}
		}
		if got.String() != to.String() {
			t.Errorf("%v to %v: got %v", from, to, got)
		}
	}
}
