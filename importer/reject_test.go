package importer

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestRejectsAgain imports a reject file: as it is, everything is rejected again; fixed, it goes in.
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
	fixed := strings.Replace(first.String(), `u1,"""a",,x1`, `u1,"a",1,x1`, 1)
	if got := readString(t, fixed, Config{}).Summary.Accepted; got != 1 {
		t.Errorf("got %d accepted after fixing one row, want 1", got)
	}
	// From then on nothing is lost: all but the reasons stays as it is.
	fields := func(p *Plan) (texts []string) {
		for _, r := range rejectsOf(t, p) {
			texts = append(texts, fmt.Sprintf("%q", []string{r.FromAccount, r.GroupName, r.Type, r.ToAccount, r.ToGroupID}))
		}
		return texts
	}
	wantLines(t, "fields", fields(again), fields(p)...)
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

// TestRejectsOfOneLine keeps the order of what one line has: what is invalid, then what went over a limit before its
// partition was split, then the rest.
func TestRejectsOfOneLine(t *testing.T) {
	var b strings.Builder
	for u := range 200 {
		fmt.Fprintf(&b, `{"From_Account":"user%d","GroupContactItem":[`, u)
		for g := range 24 {
			if g > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, `{"GroupName":"g%d","ContactItem":[{"Type":1,"To_Account":"x%d"},{"Type":3,"To_Account":"bad%d"}]}`, g, g, g)
		}
		b.WriteString("]}\n")
	}
	for _, memory := range []int{1, 10_000, 0} {
		p := readString(t, b.String(), Config{Format: FormatJSONL, memory: memory, workers: 2})
		var got []string
		for _, r := range rejectsOf(t, p) {
			got = append(got, fmt.Sprintf("%d %s %s", r.Line, r.Code, r.ToAccount))
		}
		var want []string
		for u := range 200 {
			for g := range 24 {
				want = append(want, fmt.Sprintf("%d %s bad%d", u+1, codeBadParameter, g))
			}
			for g := 20; g < 24; g++ {
				want = append(want, fmt.Sprintf("%d %s x%d", u+1, codeTooManyGroups, g))
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("memory %d: got %d rejects in another order, want %d", memory, len(got), len(want))
		}
	}
}

// TestRejectOrder merges logs that all have rejects of the same lines.
func TestRejectOrder(t *testing.T) {
	s := newTestSpool(t, 5000)
	p := &Plan{Files: []string{"a", "b"}, spool: s, rejects: recordLog{spool: s}}
	logs := []*recordLog{&p.rejects}
	for range 9 {
		r := &run{overLimit: recordLog{spool: s}}
		p.runs, logs = append(p.runs, r), append(logs, &r.overLimit)
	}
	var want []string
	for file := range 2 {
		for line := range int64(300) {
			for i, log := range logs {
				if (int(line)+i)%3 == 0 {
					continue
				}
				code := fmt.Sprint(i)
				if err := log.add(appendReject(nil, position{file, line}, invalid{code, "why"}, new([numColumns]string))); err != nil {
					t.Fatal(err)
				}
				want = append(want, fmt.Sprintf("%s:%d %s", p.Files[file], line, code))
			}
		}
	}
	var got []string
	for _, r := range rejectsOf(t, p) {
		got = append(got, fmt.Sprintf("%s:%d %s", r.File, r.Line, r.Code))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %d rejects, want %d by input, line and log", len(got), len(want))
	}
}

// TestWriteRejects writes more rejects than are given to gocsv at a time: one header, and every field as it was.
func TestWriteRejects(t *testing.T) {
	var b strings.Builder
	b.WriteString(csvHeader)
	n := rejectsAtOnce + 5
	for i := range n {
		fmt.Fprintf(&b, "u%d,\"a, \"\"b\"\"\",3,x,\n", i)
	}
	p := readString(t, b.String(), Config{})
	var out bytes.Buffer
	if err := p.WriteRejects(&out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	if want := "from_account,group_name,type,to_account,to_group_id,code,reason,file,line"; lines[0] != want || len(lines) != n+2 {
		t.Fatalf("got %d lines and header %q, want %d and %q", len(lines), lines[0], n+2, want)
	}
	for i, line := range lines[1 : n+1] {
		if want := fmt.Sprintf(`u%d,"a, ""b""",3,x,,50002,type is neither 1 nor 2,-,%d`, i, i+2); line != want {
			t.Fatalf("got %q, want %q", line, want)
		}
	}
}
