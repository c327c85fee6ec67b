package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"groupferry/internal/chatsim"
	"groupferry/metrics"
)

// documents are the pages of the project. What these tests say of one, they say of each.
var documents = []string{"README.md", "samples/README.md", "deploy/README.md"}

// readmeMost is how many bytes of README.md a newcomer gets to read.
const readmeMost = 10<<10 + 512

func document(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestReadmeSize(t *testing.T) {
	if got := len(document(t, "README.md")); got > readmeMost {
		t.Errorf("README.md: got %d bytes, want at most %d; detail belongs into samples/README.md or deploy/README.md", got, readmeMost)
	}
}

// A block is a fenced block of a document.
type block struct {
	line     int
	language string
	text     string
	marks    map[string]string // comments of the form <!-- key: value --> in the lines before it
}

var markLine = regexp.MustCompile(`^<!-- (\w[\w ]*?)(?:: (.*))? -->$`)

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

// A reader follows a document at the root of a fresh checkout: the blocks run there in their order, and what one exports
// the later ones have. A few things are not what a document calls them.
type reader struct {
	t       *testing.T
	dir     string
	env     []string
	exports string
	stdout  string            // of the last block that ran
	real    *strings.Replacer // what stands in a document, and what it is here
}

func newReader(t *testing.T, text string) *reader {
	t.Helper()
	r := &reader{t: t, dir: t.TempDir()}
	// What a command leaves in the directory where it is called stays out of the checkout.
	for _, name := range []string{"cmd", "importer", "worker", "metrics", "internal", "samples", "go.mod", "go.sum"} {
		absolute, err := filepath.Abs(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(absolute, filepath.Join(r.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	groups := document(t, "samples/groups.csv")
	if err := os.Mkdir(filepath.Join(r.dir, "export"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"key": testKey, "groups.csv": groups, "export/monday.csv.gz": gzipped(t, groups)} {
		if err := os.WriteFile(filepath.Join(r.dir, filepath.FromSlash(name)), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, api := startSim(t, chatsim.Config{})
	real := []string{"--region singapore", "--api-url " + api}
	if strings.Contains(text, "nats://queue:4222") {
		real = append(real, "nats://queue:4222", "nats://"+startNATS(t).client)
	}
	r.real = strings.NewReplacer(real...)
	r.env = append(os.Environ(), "GOFLAGS=-buildvcs=false", "GOBIN="+t.TempDir())
	return r
}

func gzipped(t *testing.T, text string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// run runs a block and returns what it wrote to standard error.
func (r *reader) run(text string) (code int, stderr string) {
	r.t.Helper()
	text = r.real.Replace(text)
	cmd := exec.CommandContext(r.t.Context(), "sh", "-e", "-c", r.exports+text)
	cmd.Dir, cmd.Env = r.dir, r.env
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	var exit *exec.ExitError
	if e := cmd.Run(); e != nil && !errors.As(e, &exit) {
		r.t.Fatal(e)
	}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "export ") {
			r.exports += line
		}
	}
	r.stdout = out.String()
	code = cmd.ProcessState.ExitCode()
	if code == 1 { // what go run itself exits with, whatever the program did
		if m := regexp.MustCompile(`(?m)^exit status (\d+)$`).FindStringSubmatch(err.String()); m != nil {
			code, _ = strconv.Atoi(m[1])
		}
	}
	return code, err.String()
}

// varies finds what is another number each time: in the lines of a report about the calls, and times.
var varies = regexp.MustCompile(`(?m)^  (?:this run|simulator) .*$|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`)

func masked(report string) string {
	number := regexp.MustCompile(`[\d.,]+`)
	return varies.ReplaceAllStringFunc(report, func(line string) string { return number.ReplaceAllString(line, "N") })
}

// Every shell block of a document is marked: as a test, which runs as it is and ends with the code of its mark exit, or
// with the reason why it is none. A block that is marked as output is what the block before it printed.
func TestReadmeRuns(t *testing.T) {
	t.Parallel()
	for _, name := range documents {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := document(t, name)
			r := newReader(t, text)
			ran := 0
			for _, b := range blocks(text) {
				_, isTest := b.marks["test"]
				_, isOutput := b.marks["output"]
				isNone := b.marks["no test"] != ""
				switch {
				case isOutput:
					if got, want := masked(r.stdout), masked(b.text); !strings.HasSuffix(got, want) {
						t.Errorf("%s:%d: got\n%s\nwant at its end\n%s", name, b.line, got, want)
					}
				case b.language != "sh" && (isTest || isNone):
					t.Errorf("%s:%d: a test in %q, want sh", name, b.line, b.language)
				case b.language == "sh" && isTest == isNone:
					t.Errorf("%s:%d: got no mark, want <!-- test --> or <!-- no test: why -->", name, b.line)
				case isTest:
					want := 0
					if text, ok := b.marks["exit"]; ok {
						var err error
						if want, err = strconv.Atoi(text); err != nil {
							t.Fatal(err)
						}
					}
					if got, stderr := r.run(b.text); got != want {
						t.Errorf("%s:%d: got exit code %d, want %d\n%s%s%s", name, b.line, got, want, b.text, r.stdout, stderr)
					}
					ran++
				}
			}
			if ran == 0 {
				t.Errorf("%s: got no block that is marked as a test", name)
			}
		})
	}
}

// between gives the text from a mark of a document to the next end mark, and whether it is there.
func between(text, mark string) (string, bool) {
	_, rest, found := strings.Cut(text, "<!-- "+mark+" -->\n")
	if !found {
		return "", false
	}
	inner, _, found := strings.Cut(rest, "<!-- end -->")
	return inner, found
}

// What a document copies from the program is the program's.
func TestReadmeCopies(t *testing.T) {
	fenced := func(s string) string { return "```\n" + strings.TrimRight(s, "\n") + "\n```\n" }
	wants := map[string]string{"help: exit codes": fenced(exitsText(exitMeaning)), "metrics": metrics.Table(), "help: root": fenced(helpText(t, ""))}
	for _, command := range commandNames(t)[1:] {
		wants["help: "+command] = fenced(helpText(t, command))
	}
	copies := map[string]int{}
	for _, name := range documents {
		text := document(t, name)
		for _, m := range regexp.MustCompile(`(?m)^<!-- (help: [\w ]+|metrics) -->$`).FindAllStringSubmatch(text, -1) {
			want, known := wants[m[1]]
			got, there := between(text, m[1])
			switch {
			case !known || !there:
				t.Errorf("%s: mark %q: got no such text, or no end mark", name, m[1])
			case strings.TrimSpace(got) != strings.TrimSpace(want):
				t.Errorf("%s: %s: got\n%s\nwant\n%s", name, m[1], got, want)
			}
			copies[m[1]]++
		}
	}
	for _, mark := range []string{"help: exit codes", "metrics"} {
		if copies[mark] == 0 {
			t.Errorf("%s: got no document with it, want one at least", mark)
		}
	}
}

// Every alert is in the table of deploy/README.md, with its severity, and no other.
func TestReadmeAlerts(t *testing.T) {
	find := func(name, pattern string) (found []string) {
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(document(t, name), -1) {
			found = append(found, m[1]+" "+m[2])
		}
		return found
	}
	want := find("deploy/prometheus/alerts.yaml", `- alert: (\w+)\n(?s:.*?)severity: (\w+)`)
	got := find("deploy/README.md", "(?m)^\\| `(Groupferry\\w+)` \\| (\\w+) \\|")
	if !slices.Equal(got, want) || len(want) == 0 {
		t.Errorf("deploy/README.md: got alerts %q, want %q", got, want)
	}
}

var (
	links    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	fences   = regexp.MustCompile("(?ms)^```.*?^```$")
	headings = regexp.MustCompile(`(?m)^#+ (.+)$`)
)

// anchors are what a link to a heading of a document can name, as GitHub makes them.
func anchors(text string) map[string]bool {
	found := map[string]bool{}
	for _, m := range headings.FindAllStringSubmatch(fences.ReplaceAllString(text, ""), -1) {
		name := regexp.MustCompile(`[^\p{L}\p{N}_ -]`).ReplaceAllString(strings.ToLower(m[1]), "")
		found[strings.ReplaceAll(name, " ", "-")] = true
	}
	return found
}

// A link leads to a file of the project, and to a heading that is there; or out of it, which nobody checks.
func TestReadmeLinks(t *testing.T) {
	for _, name := range documents {
		inner := 0
		for _, m := range links.FindAllStringSubmatch(fences.ReplaceAllString(document(t, name), ""), -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.HasPrefix(target, "https://") {
				continue
			}
			inner++
			to := name
			if target != "" {
				to = filepath.ToSlash(filepath.Join(filepath.Dir(name), target))
			}
			if _, err := os.Stat(filepath.Join(root, filepath.FromSlash(to))); err != nil {
				t.Errorf("%s: link %q: %v", name, m[1], err)
			} else if anchor != "" && !anchors(document(t, to))[anchor] {
				t.Errorf("%s: link %q: %s has no such heading", name, m[1], to)
			}
		}
		if inner == 0 {
			t.Errorf("%s: got no link to a file of the project, want one at least", name)
		}
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
	// A list in YAML on one line; what is not groupferry's begins with no command.
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
		"README.md", "samples/README.md", "deploy/README.md", "deploy/compose.yaml", "deploy/kubernetes/worker.yaml", "deploy/kubernetes/cronjob.yaml",
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
