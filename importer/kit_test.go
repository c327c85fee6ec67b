package importer

import (
	"bytes"
	"context"
	"encoding/csv"
	"fmt"
	"io"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"groupferry/internal/job"
)

const csvHeader = "from_account,group_name,type,to_account,to_group_id\n"

// readString reads s as standard input.
func readString(t testing.TB, s string, cfg Config) *Plan {
	t.Helper()
	cfg.Stdin = strings.NewReader(s)
	p, err := Read(context.Background(), []string{"-"}, cfg)
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	closeAtEnd(t, p)
	checkSums(t, p)
	return p
}

func closeAtEnd(t testing.TB, p *Plan) {
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
}

func rejectsOf(t testing.TB, p *Plan) []Reject {
	t.Helper()
	return collect(t, p.Rejects())
}

func jobsOf(t testing.TB, p *Plan) []job.Job {
	t.Helper()
	return collect(t, p.Jobs())
}

func collect[T any](t testing.TB, seq iter.Seq2[T, error]) (all []T) {
	t.Helper()
	for v, err := range seq {
		if err != nil {
			t.Fatalf("got %v after %d", err, len(all))
		}
		all = append(all, v)
	}
	return all
}

// readAll takes the rows of an input block by block, in this goroutine.
func readAll(s splitter, file int, out rowHandler) error {
	p := s.newParser()
	for b := new(block); ; {
		b.reset(file)
		err := s.next(b)
		p.parse(b, out)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// readCSV reads a CSV input, by blocks of a block's usual size; line is where it stopped.
func readCSV(src io.Reader, comma rune, cols *columns, file int, out rowHandler) (line int64, err error) {
	c, err := newCSVSplitter(src, new(buffers), comma, cols)
	if err != nil {
		return c.at(), err
	}
	err = readAll(c, file, out)
	return c.at(), err
}

func readJSONL(src io.Reader, cols *columns, file int, out rowHandler) (line int64, err error) {
	j := newJSONLSplitter(src, new(buffers), cols)
	err = readAll(j, file, out)
	return j.at(), err
}

// readError reads s as standard input and gives the error, which there must be.
func readError(t *testing.T, s string, cfg Config) error {
	t.Helper()
	cfg.Stdin = strings.NewReader(s)
	p, err := Read(context.Background(), []string{"-"}, cfg)
	if err == nil {
		t.Fatalf("got no error and %+v, want an error", p.Summary)
	}
	return err
}

// checkSums holds a plan against what must be true of every plan.
func checkSums(t testing.TB, p *Plan) {
	t.Helper()
	s := p.Summary
	if got := s.Accepted + s.Duplicates + s.Rejected; got != s.Rows {
		t.Errorf("got %d rows accounted for, want %d", got, s.Rows)
	}
	rejects := rejectsOf(t, p)
	if int64(len(rejects)) != s.Rejected {
		t.Errorf("got %d rejects, want %d", len(rejects), s.Rejected)
	}
	codes := map[string]int64{}
	for i, r := range rejects {
		codes[r.Code]++
		if r.Line < 1 || r.Reason == "" || r.File == "" {
			t.Errorf("reject %d: got %+v, want file, line and reason", i, r)
		}
		if i == 0 {
			continue
		}
		before := rejects[i-1]
		if c := slices.Index(p.Files, before.File) - slices.Index(p.Files, r.File); c > 0 || c == 0 && before.Line > r.Line {
			t.Errorf("reject %d: got %s:%d after %s:%d", i, r.File, r.Line, before.File, before.Line)
		}
	}
	if !maps.Equal(codes, s.RejectCodes) {
		t.Errorf("got codes %v, want %v", s.RejectCodes, codes)
	}
	var jobs, conversations int64
	users, ids := map[string]int{}, map[string]bool{}
	for _, j := range jobsOf(t, p) {
		jobs++
		conversations += int64(len(j.Conversations))
		users[j.FromAccount]++
		if ids[j.ID] {
			t.Errorf("job id %s is there twice", j.ID)
		}
		ids[j.ID] = true
		if n := len(j.Conversations); n < 1 || n > 1000 {
			t.Errorf("job %s has %d conversations", j.ID, n)
		}
		for i, c := range j.Conversations {
			if i > 0 {
				if b := j.Conversations[i-1]; c.File < b.File || c.File == b.File && c.Line < b.Line {
					t.Errorf("job %s: conversation %d stands before its place", j.ID, i)
				}
			}
		}
		back, err := job.Decode(j.AppendJSON(nil))
		if err != nil || back.FromAccount != j.FromAccount || back.GroupName != j.GroupName ||
			!slices.Equal(back.Conversations, j.Conversations) {
			t.Errorf("job %s does not survive the wire: %v", j.ID, err)
		}
	}
	if jobs != s.Jobs || conversations != s.Conversations || conversations != s.Accepted || int64(len(users)) != s.Users {
		t.Errorf("got %d jobs, %d conversations, %d users, want %+v", jobs, conversations, len(users), s)
	}
	for u, n := range users {
		if n > 20 {
			t.Errorf("user %q has %d jobs", u, n)
		}
	}
}

// jobTexts writes each job on a line: user/group: type:id@file:line …
func jobTexts(t testing.TB, p *Plan) []string {
	t.Helper()
	var texts []string
	for _, j := range jobsOf(t, p) {
		var b strings.Builder
		fmt.Fprintf(&b, "%s/%s:", j.FromAccount, j.GroupName)
		for _, c := range j.Conversations {
			fmt.Fprintf(&b, " %d:%s@%s:%d", c.Type, c.ID, p.Files[c.File], c.Line)
		}
		texts = append(texts, b.String())
	}
	return texts
}

// rejectTexts writes each reject on a line: line code reason.
func rejectTexts(t testing.TB, p *Plan) []string {
	t.Helper()
	var texts []string
	for _, r := range rejectsOf(t, p) {
		texts = append(texts, fmt.Sprintf("%d %s %s", r.Line, r.Code, r.Reason))
	}
	return texts
}

func wantLines(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got\n  %s\nwant\n  %s", what, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// A record is a row as a reader hands it over, or a reject if code is set.
type record struct {
	line   int64
	field  [numColumns]string
	code   string
	reason string
}

// A recorder is a rowHandler that keeps what it gets.
type recorder struct {
	rows, rejects []record
	refused       int64 // line from which on the input was refused
	warnings      []int64
	ignored       []string
}

func (s *recorder) row(r *row) { s.rows = append(s.rows, record{line: r.line, field: r.field}) }
func (s *recorder) reject(r *row, code, reason string) {
	s.rejects = append(s.rejects, record{r.line, r.field, code, reason})
}
func (s *recorder) refuse(line int64, _, _ string) { s.refused = line }
func (s *recorder) warn(at position, _ string)     { s.warnings = append(s.warnings, at.line) }
func (s *recorder) ignore(name string)             { s.ignored = append(s.ignored, name) }

// scripts are beginnings of group names, all short enough to get a number behind them.
var scripts = []string{"Family ", "家族", "Друзья", "أصدقاء", "कार्य", "เพื่อน", "🎮 ", "Ärzte, \"1\" "}

// shuffled makes a CSV input of groups groups with each conversations, in an order that seed decides, and the grouping
// that must come of it: by user and group, the conversations as type:id in the order of their rows. A user has up to
// perUser groups.
func shuffled(seed uint64, groups, each, perUser int) (input []byte, want map[[2]string][]string) {
	var rows [][]string
	for g := range groups {
		from := fmt.Sprintf("user%d", g/perUser)
		name := fmt.Sprintf("%s%d", scripts[g%len(scripts)], g%perUser)
		for c := range each {
			if (g+c)%7 == 0 {
				rows = append(rows, []string{from, name, "2", "", fmt.Sprintf("@TGS#%d_%d", g, c)})
			} else {
				rows = append(rows, []string{from, name, "1", fmt.Sprintf("peer%d_%d", g, c), ""})
			}
		}
	}
	r := rand.New(rand.NewPCG(seed, 1))
	r.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
	want = map[[2]string][]string{}
	var b bytes.Buffer
	b.WriteString(csvHeader)
	w := csv.NewWriter(&b)
	for _, row := range rows {
		_ = w.Write(row) // to memory
		key := [2]string{row[0], row[1]}
		want[key] = append(want[key], row[2]+":"+row[3]+row[4])
	}
	w.Flush()
	return b.Bytes(), want
}

func sorted(texts []string) []string {
	slices.Sort(texts)
	return texts
}
