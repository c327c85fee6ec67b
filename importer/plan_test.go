package importer

import (
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
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
			for j := range p.Jobs() {
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

// TestOrder has users whose groups come one behind the other: the jobs go round all users before one comes again.
func TestOrder(t *testing.T) {
	var b strings.Builder
	b.WriteString(csvHeader)
	for u := range 50 {
		for g := range 1 + u%20 {
			fmt.Fprintf(&b, "user%02d,g%d,1,x,\n", u, g)
		}
	}
	p := readString(t, b.String(), Config{})
	var users []string
	var ranks []int
	for j := range p.Jobs() {
		rank := 0
		fmt.Sscanf(j.GroupName, "g%d", &rank)
		users, ranks = append(users, j.FromAccount), append(ranks, rank)
	}
	if !slices.IsSorted(ranks) {
		t.Errorf("got groups in the order %v, want all first ones first", ranks)
	}
	if slices.IsSorted(users[:50]) {
		t.Error("got users in the order of their names, want them spread")
	}
	if again := readString(t, b.String(), Config{}); !slices.Equal(jobTexts(again), jobTexts(p)) {
		t.Error("got another order from the same input")
	}
	// Written down, because a checkpoint of an import that is under way counts on it.
	wantLines(t, "first users", users[:4], "user32", "user39", "user31", "user06")
}

func TestJobsStop(t *testing.T) {
	input, _ := shuffled(1, 10, 1, 1)
	p := readString(t, string(input), Config{})
	n := 0
	for range p.Jobs() {
		if n++; n == 3 {
			break
		}
	}
	if n != 3 {
		t.Errorf("got %d jobs, want to stop at 3", n)
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
	wantLines(t, "rejects", rejectTexts(p),
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
	wantLines(t, "rejects", rejectTexts(p),
		"2 50002 type is neither 1 nor 2",
		"23 51010 the user has 20 groups before this one, 20 at most",
		"24 51010 the user has 20 groups before this one, 20 at most",
		"25 51010 the user has 20 groups before this one, 20 at most",
		"26 51010 the user has 20 groups before this one, 20 at most") // not there, so not there already
	if s := p.Summary; s.Duplicates != 0 || s.Jobs != 21 || s.Users != 2 || s.Accepted != 22 {
		t.Errorf("got %+v, want no duplicate, 21 jobs, 2 users, 22 accepted", s)
	}
}

func TestWarnings(t *testing.T) {
	var b strings.Builder
	b.WriteString(csvHeader)
	for i := range 1001 {
		fmt.Fprintf(&b, "u1,g%d,1,x%d,\n", i%2, i)
		fmt.Fprintf(&b, "u2,g%d,1,x%d,\n", i%2, i/2) // as many rows, half as many conversations
	}
	b.WriteString("u3, a,1,x,\nu3,b ,1,x,\nu3,b ,1,y,\n")
	p := readString(t, b.String(), Config{})
	if len(p.Warnings) != 2 {
		t.Fatalf("got %+v, want 2 warnings", p.Warnings)
	}
	w := p.Warnings[0]
	if w.Line != 2002 || w.File != "-" || w.FromAccount != "u1" || !strings.Contains(w.Text, "1001 distinct conversations") {
		t.Errorf("got %+v, want line 2002 and 1001 conversations of u1", w)
	}
	if strings.Contains(w.Text, "u1") {
		t.Errorf("got %q, which holds an id", w.Text)
	}
	if w := p.Warnings[1]; w.Line != 2004 || !strings.HasSuffix(w.Text, ": 2") {
		t.Errorf("got %+v, want line 2004 and 2 groups", w)
	}
	if p.Summary.Rejected != 0 {
		t.Errorf("got %d rejects, want none", p.Summary.Rejected)
	}
}

// TestRejectsAgain imports a reject file: as it is, everything is rejected again; mended, it goes in.
func TestRejectsAgain(t *testing.T) {
	bad := []string{
		`u1,"a,1,x1,`,
		`u1,a,1,x1`,
		`u1,a,1,x1,,`,
		`u1,a, b,1,x1,`,
		"u1,\"a\r\nb\",1,x1,",
		`"u ""1""` + "\x00" + `",g,1,x1,`,
		"\xff,g,1,x1,",
		` u1,g,,x1,`,
		`from_account,group_name,type,to_account,to_group_id`,
		strings.Repeat("u", 300) + ",g,1,x1,",
		`u1,` + strings.Repeat("家", 90) + `,1,x1,`,
		``, // separates the rows from the one that is not closed
		`u1,g,1,x1,"`,
	}
	p := readString(t, csvHeader+strings.Join(bad, "\n"), Config{})
	var first, second bytes.Buffer
	if err := p.WriteRejects(&first); err != nil {
		t.Fatal(err)
	}
	again := readString(t, first.String(), Config{})
	wantLines(t, "notices", again.Notices)
	if again.Summary.Accepted != 0 || again.Summary.Rejected != p.Summary.Rejected {
		t.Errorf("got %+v, want all %d rejected again:\n%s", again.Summary, p.Summary.Rejected, &first)
	}
	if err := again.WriteRejects(&second); err != nil {
		t.Fatal(err)
	}
	mended := strings.Replace(first.String(), `u1,"""a",,x1`, `u1,"a",1,x1`, 1)
	if got := readString(t, mended, Config{}).Summary.Accepted; got != 1 {
		t.Errorf("got %d accepted after mending one row, want 1", got)
	}
	// From then on nothing is lost: all but the reasons stays as it is.
	fields := func(p *Plan) (texts []string) {
		for r := range p.Rejects() {
			texts = append(texts, fmt.Sprintf("%q", []string{r.FromAccount, r.GroupName, r.Type, r.ToAccount, r.ToGroupID}))
		}
		return texts
	}
	wantLines(t, "fields", fields(again), fields(p)...)
}

// TestAppendField holds our way to write a field against the library's.
func TestAppendField(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	some := []string{"", ",", `"`, "\r", "\n", " ", "\t", `\`, ".", "a", "家", "\u00a0", "\xff", "\x00"}
	for range 20_000 {
		var field string
		for range r.IntN(5) {
			field += some[r.IntN(len(some))]
		}
		var want bytes.Buffer
		out := csv.NewWriter(&want)
		if err := out.Write([]string{field, "end"}); err != nil { // a single field that is empty would get quotes
			t.Fatal(err)
		}
		out.Flush()
		if got := string(appendField(nil, []byte(field))) + ",end\n"; got != want.String() {
			t.Fatalf("%q: got %q, want %q", field, got, &want)
		}
	}
}

func TestWriteRejectsError(t *testing.T) {
	p := readString(t, csvHeader+"x\n", Config{})
	full := errors.New("disk full")
	err := p.WriteRejects(writerFunc(func([]byte) (int, error) { return 0, full }))
	if !errors.Is(err, full) {
		t.Errorf("got %v, want %v", err, full)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestFilesOfJobs names in each job only the files that it has rows in.
func TestFilesOfJobs(t *testing.T) {
	files(t, map[string]string{
		"a.csv": csvHeader + "u1,g,1,x1,\nu2,g,1,x1,\n",
		"b.csv": csvHeader + "u3,g,1,x1,\nu1,g,1,x1,\n",
		"c.csv": csvHeader + "u1,g,1,x2,\nu3,g,1,x2,\nu1,g,1,x3,\n",
	})
	p, err := Read(context.Background(), []string{"c.csv", "b.csv", "a.csv"}, Config{})
	if err != nil {
		t.Fatal(err)
	}
	checkSums(t, p)
	wantLines(t, "jobs", sorted(jobTexts(p)),
		"u1/g: 1:x2@c.csv:2 1:x3@c.csv:4 1:x1@b.csv:3",
		"u2/g: 1:x1@a.csv:3",
		"u3/g: 1:x2@c.csv:3 1:x1@b.csv:2")
	for j := range p.Jobs() {
		if j.FromAccount == "u2" && !slices.Equal(j.Files, []string{"a.csv"}) {
			t.Errorf("got files %v, want a.csv alone", j.Files)
		}
	}
}
