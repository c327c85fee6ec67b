package importer

import (
	"bytes"
	"context"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestSamples imports the files that people get to try, from the root as they would.
func TestSamples(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir("..")
	for _, tc := range []struct {
		name    string
		summary Summary
	}{
		{"groups.csv", Summary{Rows: 40, Accepted: 40, Users: 5, Jobs: 12}},
		{"groups.jsonl", Summary{Rows: 15, Accepted: 15, Users: 4, Jobs: 8}},
		{"messy.csv", Summary{Rows: 57, Accepted: 28, Duplicates: 1, Rejected: 28, Users: 2, Jobs: 23}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := Read(context.Background(), []string{"samples/" + tc.name}, Config{})
			if err != nil {
				t.Fatal(err)
			}
			checkSums(t, p)
			s, want := p.Summary, tc.summary
			if s.Rows != want.Rows || s.Accepted != want.Accepted || s.Duplicates != want.Duplicates ||
				s.Rejected != want.Rejected || s.Users != want.Users || s.Jobs != want.Jobs || s.Calls != want.Jobs {
				t.Errorf("got %+v, want %+v", s, want)
			}
			wantLines(t, "notices", p.Notices)
			golden(t, filepath.Join(here, "testdata", tc.name+".jobs"), []byte(strings.Join(jobTexts(t, p), "\n")+"\n"))
			if want.Rejected > 0 {
				var b bytes.Buffer
				if err := p.WriteRejects(&b); err != nil {
					t.Fatal(err)
				}
				golden(t, "samples/messy-rejects.csv", b.Bytes())
			}
		})
	}
}

// TestSampleRejects imports the reject file as it is. The one row that goes in was good but for the other groups of its
// user, which are not in this file.
func TestSampleRejects(t *testing.T) {
	p, err := Read(context.Background(), []string{"../samples/messy-rejects.csv"}, Config{})
	if err != nil {
		t.Fatal(err)
	}
	checkSums(t, p)
	wantLines(t, "jobs", jobTexts(t, p), "ivan/Group 21: 1:anna@../samples/messy-rejects.csv:29")
	wantLines(t, "notices", p.Notices)
	if got := p.Summary.Rejected; got != 27 {
		t.Errorf("got %d rejected, want 27", got)
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs: got\n%s\nwant\n%s", name, got, want)
	}
}
