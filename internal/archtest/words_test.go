package archtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// dialect are words that earlier versions used in a sense of their own: a reader would have to translate them. In an
// identifier they stand in camel case.
var dialect = regexp.MustCompile(`(?i)\b(mend(s|ed|ing)?|unmended|muster\w*|crews?|heed\w*|squads?|put back|in hand|worked off|put aside` +
	`|drained off|steer(s|ed|ing)?|reigns?|sightings?|quarantin\w*|abroad|tapes?|intakes?)\b` +
	`|putBack|in_hand|put_back|permits_out|inHand|workedOff|putAside|letGo|handFree|\bgoOn\b|takeOut`)

// texts are the files that people read.
var texts = []string{".go", ".md", ".txt", ".txtar", ".yaml", ".yml", ".json", ".service", ".timer"}

// TestWords keeps help texts, documents, comments and identifiers in words that are found in a dictionary of the field.
func TestWords(t *testing.T) {
	seen := 0
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "fuzz"):
			return filepath.SkipDir
		case d.IsDir() || !slices.Contains(texts, filepath.Ext(path)) || d.Name() == "words_test.go":
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		seen++
		for i, line := range strings.Split(string(b), "\n") {
			if word := dialect.FindString(line); word != "" {
				t.Errorf("%s:%d: %q is dialect", path, i+1, word)
			}
		}
		return nil
	})
	if err != nil || seen < 100 {
		t.Errorf("read %d files, %v", seen, err)
	}
	for _, line := range []string{"it is mended", "// put back", "func (j *jobs) putBack()", "the crew musters", "jobs_in_hand 3",
		"TestSteered: a worker is steered", "goOn := true"} {
		if !dialect.MatchString(line) {
			t.Errorf("%q is not found", line)
		}
	}
}
