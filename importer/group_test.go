package importer

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"groupferry/internal/chat"
	"groupferry/internal/job"
)

// TestGrouping has the rows of a group all over the input, and groups as full as they may be.
func TestGrouping(t *testing.T) {
	for _, tc := range []struct{ groups, each, perUser int }{
		{3, 1000, 1},
		{150, 20, 20},
		{1000, 3, 7},
	} {
		for seed := range uint64(3) {
			input, want := shuffled(seed, tc.groups, tc.each, tc.perUser)
			p := readString(t, string(input), Config{})
			got := map[[2]string][]string{}
			for _, j := range jobsOf(t, p) {
				key := [2]string{j.FromAccount, j.GroupName}
				for _, c := range j.Conversations {
					got[key] = append(got[key], fmt.Sprintf("%d:%s", c.Type, c.ID))
				}
			}
			if !maps.EqualFunc(got, want, slices.Equal) {
				t.Errorf("%+v, seed %d: the groups differ", tc, seed)
			}
			s := p.Summary
			if s.Jobs != int64(tc.groups) || s.Rows != int64(tc.groups*tc.each) || s.Accepted != s.Rows {
				t.Errorf("%+v: got %+v", tc, s)
			}
			if calls := int64(tc.groups * ((tc.each + 99) / 100)); s.Calls != calls {
				t.Errorf("%+v: got %d calls, want %d", tc, s.Calls, calls)
			}
		}
	}
}

// TestFullGroup counts to 1,000 in the order of the input, after duplicates are gone.
func TestFullGroup(t *testing.T) {
	var b strings.Builder
	b.WriteString(csvHeader)
	for i := range 1000 {
		fmt.Fprintf(&b, "u1,g,1,x%d,\n", i)
		if i == 500 {
			b.WriteString("u1,g,1,x0,\n") // a duplicate takes no place
		}
	}
	b.WriteString("u1,g,1,x1000,\nu1,g,1,x7,\nu1,g,2,,x7\nu2,g,1,x1000,\n")
	p := readString(t, b.String(), Config{ChunkSize: 30})
	wantLines(t, "rejects", rejectTexts(t, p),
		"1003 51008 the group is full: 1000 conversations at most",
		"1005 51008 the group is full: 1000 conversations at most")
	s := p.Summary
	if s.Accepted != 1001 || s.Duplicates != 2 || s.Jobs != 2 || s.Calls != 34+1 {
		t.Errorf("got %+v, want 1001 accepted, 2 duplicates, 2 jobs, 35 calls", s)
	}
	r := rejectsOf(t, p)[1]
	if r.FromAccount != "u1" || r.GroupName != "g" || r.Type != "2" || r.ToAccount != "" || r.ToGroupID != "x7" {
		t.Errorf("got %+v, want the row as it was", r)
	}
	if len(p.Warnings) != 0 {
		t.Errorf("got %+v, want no warning", p.Warnings)
	}
}

// TestManyGroups takes the 20 groups of a user that appear first.
func TestManyGroups(t *testing.T) {
	var b strings.Builder
	b.WriteString(csvHeader)
	b.WriteString("u1,bad,3,x,\n") // a reject makes no group
	for i := range 20 {
		fmt.Fprintf(&b, "u1,g%d,1,x,\n", 20-i)
	}
	b.WriteString("u1,a,1,x,\nu1,b,1,x,\nu1,a,1,y,\nu1,a,1,x,\nu1,g20,1,y,\nu2,a,1,x,\n")
	p := readString(t, b.String(), Config{})
	wantLines(t, "rejects", rejectTexts(t, p),
		"2 50002 type is neither 1 nor 2",
		"23 51010 the user has 20 groups before this one, 20 at most",
		"24 51010 the user has 20 groups before this one, 20 at most",
		"25 51010 the user has 20 groups before this one, 20 at most",
		"26 51010 the user has 20 groups before this one, 20 at most") // not there, so not there already
	if s := p.Summary; s.Duplicates != 0 || s.Jobs != 21 || s.Users != 2 || s.Accepted != 22 {
		t.Errorf("got %+v, want no duplicate, 21 jobs, 2 users, 22 accepted", s)
	}
}

// testRow makes a spooled row.
func testRow(user, group, id string, line int64) spooledRow {
	r := row{position: position{0, line}}
	r.field[colFrom], r.field[colGroup] = user, group
	s, rest := decodeSpooledRow(appendSpooledRow(nil, &r, job.OneToOne, id))
	if len(rest) > 0 {
		panic("a spooled row has something behind it")
	}
	return s
}

func TestSpooledRow(t *testing.T) {
	for _, tc := range []struct {
		kind int
		id   string
		at   position
	}{
		{job.OneToOne, "x", position{0, 1}},
		{job.GroupChat, strings.Repeat("x", chat.MaxGroupIDBytes), position{300, 1 << 40}},
	} {
		r := row{position: tc.at}
		r.field[colFrom], r.field[colGroup] = strings.Repeat("u", chat.MaxUserIDBytes), "家族"
		b := appendSpooledRow(nil, &r, tc.kind, tc.id)
		s, rest := decodeSpooledRow(append(b, "rest"...))
		if string(rest) != "rest" || s.entry.position() != tc.at || s.entry.kind() != tc.kind || string(s.entry.id()) != tc.id {
			t.Errorf("got %q at %v and %q behind it, want %+v", s.entry.bytes, s.entry.position(), rest, tc)
		}
		want := r.field
		want[colType] = fmt.Sprint(tc.kind)
		want[map[int]column{job.OneToOne: colUser, job.GroupChat: colChat}[tc.kind]] = tc.id
		if got := s.fields(); got != want {
			t.Errorf("got fields %q, want %q", got, want)
		}
	}
}

// TestGrouper gives each row its verdict at once, in the order of the rows.
func TestGrouper(t *testing.T) {
	g := newGrouper()
	for range 2 { // reset leaves nothing behind
		g.reset()
		add := func(user, group, id string, want verdict) {
			t.Helper()
			if got := g.add(testRow(user, group, id, 1)); got != want {
				t.Fatalf("%s/%s %s: got %d, want %d", user, group, id, got, want)
			}
		}
		for i := range chat.MaxConversationsPerGroup {
			add("u", "g0", fmt.Sprint(i), accepted)
		}
		add("u", "g0", "7", duplicate)
		add("u", "g0", "one more", tooManyConversations)
		add("u", "g0", "one more", tooManyConversations) // not there, so not there twice
		for i := 1; i < chat.MaxGroupsPerUser; i++ {
			add("u", fmt.Sprint("g", i), "7", accepted)
		}
		add("u", "g20", "7", tooManyGroups)
		add("u", "g19", "8", accepted)
		add("v", "g20", "7", accepted)
		if len(g.users) != 2 || len(g.groups) != 21 || len(g.rows) != 1000+19+1+1 || g.users[0].rows != 1020 {
			t.Errorf("got %d users, %d groups, %d rows, %d of the first user", len(g.users), len(g.groups), len(g.rows),
				g.users[0].rows)
		}
	}
}

// TestIndex has all things share one hash.
func TestIndex(t *testing.T) {
	x := index{}
	names := []string{"a", "b", "c", "d"}
	find := func(name string) (uint32, uint64, bool) {
		return x.find(math.MaxUint64-1, func(n uint32) bool { return names[n] == name })
	}
	for i, name := range names {
		_, key, ok := find(name)
		if ok {
			t.Fatalf("%s: found before it was there", name)
		}
		x[key] = uint32(i)
	}
	for i, name := range names {
		if n, _, ok := find(name); !ok || n != uint32(i) {
			t.Errorf("%s: got %d, %t; want %d", name, n, ok, i)
		}
	}
}

// TestLayout decodes the jobs of each rank as they were grouped.
func TestLayout(t *testing.T) {
	g := newGrouper()
	line := int64(0)
	for i := range 300 {
		for u := range 5 {
			line++
			g.add(testRow(fmt.Sprint("user", u), fmt.Sprint("g", i%(u+1)), fmt.Sprint(i), line))
		}
	}
	var l layout
	for range 2 { // again in the same memory
		l.layoutJobs(g)
		jobs, conversations := 0, 0
		for rank := range chat.MaxGroupsPerUser {
			users := 0
			for b := l.rank(rank); len(b) > 0; users++ {
				var j job.Job
				j, b = decodeJob(b, "imp")
				var u int
				fmt.Sscanf(j.FromAccount, "user%d", &u)
				if j.GroupName != fmt.Sprint("g", rank) || j.ID != job.ID("imp", j.FromAccount, j.GroupName) {
					t.Errorf("rank %d: got %+v", rank, j)
				}
				for k, c := range j.Conversations {
					i := rank + k*(u+1)
					if want := (job.Conversation{Type: 1, ID: fmt.Sprint(i), Line: int64(5*i + u + 1)}); c != want {
						t.Fatalf("%s/%s: got %+v, want %+v", j.FromAccount, j.GroupName, c, want)
					}
				}
				jobs, conversations = jobs+1, conversations+len(j.Conversations)
			}
			if want := max(0, 5-rank); users != want {
				t.Errorf("rank %d: got jobs of %d users, want %d", rank, users, want)
			}
		}
		if jobs != 15 || conversations != 1500 {
			t.Errorf("got %d jobs and %d conversations, want 15 and 1500", jobs, conversations)
		}
	}
}
