package importer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"groupferry/internal/chat"
)

// TestOrder has users whose groups come one behind the other: the jobs take all users in turn before one comes again.
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
	for _, j := range jobsOf(t, p) {
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
	if again := readString(t, b.String(), Config{}); !slices.Equal(jobTexts(t, again), jobTexts(t, p)) {
		t.Error("got another order from the same input")
	}
	// Written down, because a checkpoint of an import that is under way counts on it.
	wantLines(t, "first users", users[:4], "user32", "user39", "user31", "user06")
}

func TestJobsStop(t *testing.T) {
	input, _ := shuffled(1, 10, 1, 1)
	p := readString(t, string(input), Config{})
	n := 0
	for _, err := range p.Jobs() {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 3 {
			break
		}
	}
	if n != 3 {
		t.Errorf("got %d jobs, want to stop at 3", n)
	}
}

// TestFiles has the number of its file in every conversation.
func TestFiles(t *testing.T) {
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
	wantLines(t, "jobs", sorted(jobTexts(t, p)),
		"u1/g: 1:x2@c.csv:2 1:x3@c.csv:4 1:x1@b.csv:3",
		"u2/g: 1:x1@a.csv:3",
		"u3/g: 1:x2@c.csv:3 1:x1@b.csv:2")
	if want := []string{"c.csv", "b.csv", "a.csv"}; !slices.Equal(p.Files, want) {
		t.Errorf("got files %v, want %v", p.Files, want)
	}
}

// TestDamagedSpool has the file of the spool end within a job: the jobs before come whole, then the error, and no other
// job.
func TestDamagedSpool(t *testing.T) {
	p := readString(t, overfull(50_000), Config{SpoolDir: t.TempDir(), resident: -1})
	whole := jobTexts(t, p)
	var ranks []segment // in the order of the jobs
	for rank := range chat.MaxGroupsPerUser {
		for _, r := range p.runs {
			if r.jobs[rank].size > 0 {
				ranks = append(ranks, r.jobs[rank])
			}
		}
	}
	latest := slices.MaxFunc(ranks, func(a, b segment) int { return cmp.Compare(a.at, b.at) })
	for _, size := range []int64{latest.at + int64(latest.size) - 1, latest.at / 2} {
		if err := p.spool.file.Truncate(size); err != nil {
			t.Fatal(err)
		}
		n, failed := 0, 0
		for j, err := range p.Jobs() {
			switch {
			case err != nil:
				failed++
				if !errors.Is(err, io.EOF) || j.ID != "" {
					t.Errorf("got job %q with %v, want none with EOF", j.ID, err)
				}
			case failed > 0:
				t.Fatalf("got job %s after an error", j.ID)
			case n < len(whole) && !strings.HasPrefix(whole[n], j.FromAccount+"/"+j.GroupName+":"):
				t.Fatalf("job %d: got %s/%s, want %s", n, j.FromAccount, j.GroupName, whole[n])
			default:
				n++
			}
		}
		if failed != 1 || n >= len(whole) {
			t.Errorf("%d bytes: got %d of %d jobs and %d errors, want fewer and 1", size, n, len(whole), failed)
		}
	}

	if err := p.spool.file.Truncate(0); err != nil {
		t.Fatal(err)
	}
	failed := 0
	for _, err := range p.Rejects() {
		if err != nil {
			failed++
		}
	}
	if err := p.WriteRejects(io.Discard); failed != 1 || !errors.Is(err, io.EOF) {
		t.Errorf("got %d errors and %v, want 1 and EOF", failed, err)
	}
}

// TestClosedPlan has jobs and rejects of a plan that is closed: one error, and nothing else.
func TestClosedPlan(t *testing.T) {
	for _, resident := range []int{0, -1} {
		p := readString(t, overfull(50_000), Config{SpoolDir: t.TempDir(), resident: resident})
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		for j, err := range p.Jobs() {
			if j.ID != "" || !errors.Is(err, os.ErrClosed) {
				t.Errorf("got job %q with %v, want %v", j.ID, err, os.ErrClosed)
			}
		}
		if err := p.WriteRejects(io.Discard); !errors.Is(err, os.ErrClosed) {
			t.Errorf("got %v, want %v", err, os.ErrClosed)
		}
	}
}
