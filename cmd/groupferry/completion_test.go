package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"groupferry/internal/broker"
	"groupferry/internal/chat"
)

// completed returns what a shell is given after these words, of which the last is not complete.
func completed(t testing.TB, env map[string]string, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := run(nil, append([]string{cobra.ShellCompRequestCmd}, args...), func(name string) (string, bool) {
		value, ok := env[name]
		return value, ok
	}, strings.NewReader(""), &stdout, &stderr)
	if code != exitDone || strings.Contains(stderr.String(), "groupferry:") {
		t.Errorf("groupferry %q: got exit code %d, %s", args, code, &stderr)
	}
	return stdout.String()
}

// enqueued is a data directory with two imports, of which one is a night of a sync, and no server.
func enqueued(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	for _, more := range [][]string{
		{"--import-id", "earlier"}, {"--sync", "contacts", "--region", "seoul", "--sdk-app-id", "1400000000"},
	} {
		var stderr bytes.Buffer
		args := append([]string{"import", "--quiet", "--data-dir", dir, filepath.Join(root, "samples", "groups.csv")}, more...)
		if code := run(nil, args, func(string) (string, bool) { return "", false }, strings.NewReader(""), &bytes.Buffer{}, &stderr); code != exitDone {
			t.Fatalf("groupferry %q: got exit code %d, %s", args, code, &stderr)
		}
	}
	return dir
}

// night is the ID of the second of them, which is made from its content.
const night = "038677f2785460fb"

// tree lists what is below a directory, with times and sizes.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := d.Info()
		if err == nil {
			fmt.Fprintln(&b, path, i.Size(), i.Mode(), i.ModTime().UnixNano())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// words are what a shell completes to, without descriptions, and the directive.
func words(completed string) string {
	var all []string
	for line := range strings.Lines(completed) {
		word, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
		all = append(all, word)
	}
	return strings.Join(all, " ")
}

// Import IDs and syncs are completed where nothing runs, and nobody notices: the data directory stays as it is.
func TestCompleteImports(t *testing.T) {
	dir, scratch := enqueued(t), t.TempDir()
	t.Setenv("TMPDIR", scratch)
	before := tree(t, dir)
	for _, test := range []struct {
		env  map[string]string
		args []string
		want string
	}{
		{nil, []string{"results", "--data-dir", dir, ""}, night + " earlier :36"}, // newest first
		{map[string]string{"GROUPFERRY_DATA_DIR": dir}, []string{"pause", "ea"}, "earlier :36"},
		{map[string]string{"GROUPFERRY_DATA_DIR": "/missing"}, []string{"delete", "--data-dir", dir, "ea"}, "earlier :36"},
		{nil, []string{"retry", "earlier", "--data-dir", dir, ""}, ":4"}, // it takes one
		{nil, []string{"export", "--data-dir", dir, "--import", "ear"}, "earlier :36"},
		{nil, []string{"run", "--data-dir", dir, "--sync", ""}, "contacts :4"},
		{nil, []string{"status", "--data-dir", dir, "--namespace", "another", ""}, ":36"},
		{nil, []string{"status", "--data-dir", dir, "--namespace", "a.b", ""}, ":36"},
		{nil, []string{"status", "--data-dir", dir + "/none", ""}, ":36"},
		{map[string]string{"GROUPFERRY_QUIET": "perhaps"}, []string{"status", "--data-dir", dir, ""}, ":36"},
	} {
		if got := words(completed(t, test.env, test.args...)); got != test.want {
			t.Errorf("%q: got %q, want %q", test.args, got, test.want)
		}
	}
	about := completed(t, nil, "status", "--data-dir", dir, "ear")
	if ok, err := regexp.MatchString(`^earlier\trunning, [0-9]+s ago: .*groups\.csv\n`, about); !ok || err != nil {
		t.Errorf("got %q, want state, age and files", about)
	}
	if after := tree(t, dir); after != before {
		t.Errorf("got another data directory:\n%s\nwant\n%s", after, before)
	}
	if left, err := os.ReadDir(scratch); err != nil || len(left) > 0 {
		t.Errorf("got %v, %v left behind, want nothing", left, err)
	}
}

// Where a server runs it is asked, and it is not waited for if it does not respond.
func TestCompleteFromServer(t *testing.T) {
	t.Parallel()
	env := map[string]string{"NATS_URL": "nats://" + startNATS(t).client}
	args := []string{"import", "--quiet", "--import-id", "elsewhere", filepath.Join(root, "samples", "groups.csv")}
	getenv := func(name string) (string, bool) { return env[name], env[name] != "" }
	if code := run(nil, args, getenv, strings.NewReader(""), &bytes.Buffer{}, os.Stderr); code != exitDone {
		t.Fatalf("groupferry %q: got exit code %d", args, code)
	}
	if got, want := words(completed(t, env, "cancel", "")), "elsewhere :36"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}

	dir := enqueued(t)
	conn, err := broker.Open(t.Context(), broker.Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, want := words(completed(t, nil, "cancel", "--data-dir", dir, "")), night+" earlier :36"; got != want {
		t.Errorf("with its server: got %q, want %q", got, want)
	}

	silent, err := net.Listen("tcp", "127.0.0.1:0") // it accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	p := newProgram(t, map[string]string{"NATS_URL": "nats://" + silent.Addr().String()})
	cancel := find(t, p, "cancel")
	if imports, syncs := p.records(cancel, 10*time.Millisecond); imports != nil || syncs != nil {
		t.Errorf("a silent server: got %v, %v, want nothing", imports, syncs)
	}
}

func TestCompleteValues(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"sta", "status :4"},
		{"completion ", "bash zsh fish powershell :4"},
		{"run --region=", strings.Join(chat.Regions(), " ") + " :36"},
		{"check --preset ", "openim sdk xmpp yunxin :36"},
		{"check --format ", "auto csv jsonl :36"},
		{"export --format ", "auto csv jsonl users :36"},
		{"results -o ", "csv jsonl :36"},
		{"status --output ", "text json :36"},
		{"work --log-level ", "debug info warn error :36"},
		{"simulate --existing ", "append replace refuse :36"},
		{"run --mode ", "add mirror :36"},
		{"status --dat", "--data-dir :4"},
		{"run ", ":0"},                   // files
		{"run --secret-key-file ", ":0"}, // files
		{"verify a.csv ", ":0"},          // files
		{"run --data-dir ", ":16"},       // directories
		{"check --spool-dir ", ":16"},
		{"run --rate ", ":4"}, // nothing
		{"work ", ":4"},
		{"rate ", ":4"},
	} {
		if got := words(completed(t, nil, strings.Split(test.args, " ")...)); got != test.want {
			t.Errorf("groupferry %s: got %q, want %q", test.args, got, test.want)
		}
	}
	if got := completed(t, nil, "run", "--pre"); got != "--preset\tsystem that the input comes from: openim, sdk, xmpp or yunxin\n:4\n" {
		t.Errorf("run --pre: got %q", got)
	}
}

// Shells read the scripts without a complaint, where they are installed.
func TestCompletionScripts(t *testing.T) {
	for _, shell := range shells {
		var stdout, stderr bytes.Buffer
		code := run(nil, []string{"completion", shell}, os.LookupEnv, strings.NewReader(""), &stdout, &stderr)
		if code != exitDone || stderr.Len() > 0 || !strings.Contains(stdout.String(), "__complete") {
			t.Errorf("%s: got exit code %d, %s, %d bytes, want a script", shell, code, &stderr, stdout.Len())
		}
		if _, err := exec.LookPath(shell); err != nil || shell == "powershell" {
			continue
		}
		check := exec.CommandContext(t.Context(), shell, "-n") // reads, and does nothing
		check.Stdin = &stdout
		if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s -n: %v, %s", shell, err, out)
		}
	}
}
