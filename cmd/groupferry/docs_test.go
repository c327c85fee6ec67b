package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"groupferry/metrics"
)

func readme(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A block is a fenced block of the README.
type block struct {
	line     int
	language string
	text     string
	marks    map[string]string // comments of the form <!-- key: value --> in the lines before it
}

var markLine = regexp.MustCompile(`^<!-- (\w+)(?:: (.*))? -->$`)

func blocks(text string) []block {
	var found []block
	var open *block
	marks := map[string]string{}
	for i, line := range strings.Split(text, "\n") {
		switch m := markLine.FindStringSubmatch(line); {
		case open != nil && line == "```":
			found = append(found, *open)
			open, marks = nil, map[string]string{}
		case open != nil:
			open.text += line + "\n"
		case strings.HasPrefix(line, "```"):
			open = &block{line: i + 1, language: strings.TrimPrefix(line, "```"), marks: marks}
		case m != nil:
			marks[m[1]] = m[2]
		case line != "":
			marks = map[string]string{}
		}
	}
	return found
}

// The shell blocks of the README that are marked as tests run as they are, at the root of a fresh checkout.
func TestReadmeRuns(t *testing.T) {
	t.Parallel()
	ran := 0
	for _, b := range blocks(readme(t)) {
		if _, isTest := b.marks["test"]; !isTest {
			continue
		}
		if b.language != "sh" {
			t.Errorf("README.md:%d: a test in %q, want sh", b.line, b.language)
			continue
		}
		ran++
		t.Run(fmt.Sprintf("line %d", b.line), func(t *testing.T) {
			t.Parallel()
			want := 0
			if text, ok := b.marks["exit"]; ok {
				var err error
				if want, err = strconv.Atoi(text); err != nil {
					t.Fatal(err)
				}
			}
			// What a command leaves in the directory where it is called stays out of the checkout.
			dir := t.TempDir()
			names := []string{"cmd", "importer", "worker", "metrics", "internal", "samples", "go.mod", "go.sum"}
			for _, name := range names {
				absolute, err := filepath.Abs(filepath.Join(root, name))
				if err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(absolute, filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.CommandContext(t.Context(), "sh", "-e", "-c", b.text)
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false")
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			got := cmd.ProcessState.ExitCode()
			if got == 1 { // what go run itself exits with, whatever the program did
				if m := regexp.MustCompile(`(?m)^exit status (\d+)$`).FindSubmatch(out); m != nil {
					got, _ = strconv.Atoi(string(m[1]))
				}
			}
			if got != want {
				t.Errorf("README.md:%d: got exit code %d, want %d\n%s%s", b.line, got, want, b.text, out)
			}
		})
	}
	if ran == 0 {
		t.Error("README.md: got no block that is marked as a test")
	}
}

// between gives the text from a mark of the README to the next end mark, and whether it is there.
func between(text, mark string) (string, bool) {
	_, rest, found := strings.Cut(text, "<!-- "+mark+" -->\n")
	if !found {
		return "", false
	}
	inner, _, found := strings.Cut(rest, "<!-- end -->")
	return inner, found
}

// What the README copies from the program is the program's.
func TestReadmeCopies(t *testing.T) {
	text := readme(t)
	fenced := func(s string) string { return "```\n" + strings.TrimRight(s, "\n") + "\n```\n" }
	wants := map[string]string{"help: exit codes": fenced(exitCodes), "metrics": metrics.Table(), "help: root": fenced(helpText(t, ""))}
	for _, verb := range verbs(t)[1:] {
		wants["help: "+verb] = fenced(helpText(t, verb))
	}
	copies := 0
	for _, m := range regexp.MustCompile(`(?m)^<!-- (help: [\w ]+|metrics) -->$`).FindAllStringSubmatch(text, -1) {
		want, known := wants[m[1]]
		got, there := between(text, m[1])
		switch {
		case !known || !there:
			t.Errorf("README.md: mark %q: got no such text, or no end mark", m[1])
		case strings.TrimSpace(got) != strings.TrimSpace(want):
			t.Errorf("README.md: %s: got\n%s\nwant\n%s", m[1], got, want)
		}
		copies++
	}
	if copies == 0 {
		t.Error("README.md: got no help text, want one at least")
	}
}

// A mention is a command line of groupferry in a file.
type mention struct {
	where string
	args  string // after the word groupferry
}

var (
	// A shell line, as it stands in a block of a README or after a $ or # of a comment.
	inShell = regexp.MustCompile(`^\s*(?:\$ )?(?:[A-Z_]+=\S+ )*(?:groupferry|go run \./cmd/groupferry) (.+)$`)
	// Between backquotes, in any file.
	inQuotes = regexp.MustCompile("`groupferry ([^`]+)`")
	// In a unit of systemd.
	inUnit = regexp.MustCompile(`^Exec\w+=[-+!@:]*/\S*/groupferry (.+)$`)
	// A list in YAML on one line; what is not groupferry's begins with no verb.
	inList = regexp.MustCompile(`^\s*(?:command|args): \[([a-z]+(?:, .*)?)\]$`)
	// The beginning of a list in YAML over several lines.
	listStart = regexp.MustCompile(`^(\s*)(?:command|args):$`)
)

// mentions finds the command lines in a file.
func mentions(path, text string) []mention {
	var found []mention
	text = strings.ReplaceAll(text, "\\\n", " ")
	lines := strings.Split(text, "\n")
	fence := ""
	add := func(i int, args string) { found = append(found, mention{fmt.Sprintf("%s:%d", path, i+1), args}) }
	for i, line := range lines {
		if rest, isFence := strings.CutPrefix(line, "```"); isFence {
			if fence == "" {
				fence = rest + "."
			} else {
				fence = ""
			}
			continue
		}
		for _, m := range inQuotes.FindAllStringSubmatch(line, -1) {
			add(i, m[1])
		}
		switch shell, unit, list := inShell.FindStringSubmatch(line), inUnit.FindStringSubmatch(line), inList.FindStringSubmatch(line); {
		case shell != nil && fence == "sh.":
			add(i, shell[1])
		case unit != nil:
			add(i, unit[1])
		case list != nil:
			add(i, strings.ReplaceAll(list[1], ",", " "))
		}
		if start := listStart.FindStringSubmatch(line); start != nil {
			var args []string
			for _, next := range lines[i+1:] {
				entry, isEntry := strings.CutPrefix(strings.TrimSpace(next), "- ")
				if !isEntry {
					break
				}
				args = append(args, entry)
			}
			add(i, strings.Join(args, " "))
		}
	}
	return found
}

// Every command line in the documents and in deploy/ is one that this program takes.
func TestCommandLinesInDocuments(t *testing.T) {
	var all []mention
	for _, place := range []string{"README.md", "deploy", "samples"} {
		err := filepath.WalkDir(filepath.Join(root, place), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			if ext := filepath.Ext(path); ext == ".go" || ext == ".csv" || ext == ".jsonl" {
				return nil
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			all = append(all, mentions(strings.TrimPrefix(filepath.ToSlash(path), root+"/"), string(b))...)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	places := map[string]int{}
	for _, m := range all {
		file, _, _ := strings.Cut(m.where, ":")
		places[file]++
		args, err := shellWords(m.args)
		if err == nil {
			err = parses(t, args)
		}
		if err != nil {
			t.Errorf("%s: groupferry %s: %v", m.where, m.args, err)
		}
	}
	// Where command lines stand today; one that is no longer found is one that is no longer checked.
	for _, file := range []string{
		"README.md", "deploy/compose.yaml", "deploy/kubernetes/worker.yaml", "deploy/kubernetes/cronjob.yaml",
		"deploy/systemd/groupferry-worker.service", "deploy/systemd/groupferry-import.service", "deploy/prometheus/alerts.yaml",
	} {
		if places[file] == 0 {
			t.Errorf("%s: got no command line, want one at least", file)
		}
	}
}

func TestMentions(t *testing.T) {
	text := "Run `groupferry resume`, then\n```sh\ngroupferry run a.csv \\\n    --region seoul # so\nGROUPFERRY_RATE=9 groupferry work\n```\n" +
		"groupferry imports groups\nExecStart=/usr/bin/groupferry import x\n  command: [work, --listen, \"a:1\"]\n  command: [--jetstream]\n" +
		"      args:\n        - work\n        - --quiet\n      x: y\n"
	var got []string
	for _, m := range mentions("f", text) {
		args, err := shellWords(m.args)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, strings.Join(args, " "))
	}
	want := "resume|run a.csv --region seoul|work|import x|work --listen a:1|work --quiet"
	if strings.Join(got, "|") != want {
		t.Errorf("got %q, want %q", strings.Join(got, "|"), want)
	}
	for _, bad := range [][]string{{"runn", "x"}, {"run"}, {"run", "--rat", "1", "x"}, {"work", "--rate=x"}, {"status", "--failed"}} {
		if parses(t, bad) == nil {
			t.Errorf("groupferry %q: got no error, want one", bad)
		}
	}
}
