package importer

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
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
