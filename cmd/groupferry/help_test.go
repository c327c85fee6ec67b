package main

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// newProgram gives a program that is not run.
func newProgram(t testing.TB, env map[string]string) *program {
	return &program{
		getenv: func(name string) (string, bool) {
			v, ok := env[name]
			return v, ok
		},
		stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard,
		console: newConsole(io.Discard),
	}
}

// commandNames returns the names of all commands; "" is the root.
func commandNames(t testing.TB) []string {
	names := []string{""}
	for _, c := range newProgram(t, nil).root().Commands() {
		if !c.Hidden && c.Name() != "help" {
			names = append(names, c.Name())
		}
	}
	return names
}

// find returns a new command of that name.
func find(t testing.TB, p *program, command string) *cobra.Command {
	t.Helper()
	root := p.root()
	if command == "" {
		return root
	}
	for _, c := range root.Commands() {
		if c.Name() == command {
			return c
		}
	}
	t.Fatalf("command %q: got none", command)
	return nil
}

func helpText(t testing.TB, command string) string {
	t.Helper()
	args := []string{"--help"}
	if command != "" {
		args = []string{command, "--help"}
	}
	var stdout, stderr bytes.Buffer
	code := run(nil, args, func(string) (string, bool) { return "", false }, strings.NewReader(""), &stdout, &stderr)
	if code != exitDone || stderr.Len() > 0 {
		t.Fatalf("groupferry %q: got exit code %d and %q on standard error, want 0 and nothing", args, code, &stderr)
	}
	return stdout.String()
}

func helpFile(command string) string {
	if command == "" {
		command = "root"
	}
	return filepath.Join("testdata", "help", command+".txt")
}

func TestHelp(t *testing.T) {
	known := map[string]bool{}
	for _, command := range commandNames(t) {
		file := helpFile(command)
		known[file] = true
		got := helpText(t, command)
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Errorf("%v; go test ./cmd/groupferry -run TestHelp -update writes it", err)
		} else if got != string(want) {
			t.Errorf("groupferry %s --help: got\n%s\nwant (go test ./cmd/groupferry -run TestHelp -update writes it anew)\n%s", command, got, want)
		}
	}
	files, err := filepath.Glob(filepath.Join("testdata", "help", "*.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if !known[file] {
			t.Errorf("%s: there is no such command", file)
		}
	}
}

// A terminal of 80 columns shows every help text as it is.
func TestHelpWidth(t *testing.T) {
	for _, command := range append(commandNames(t), "help") {
		for line := range strings.Lines(helpText(t, command)) {
			if got := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); got > helpWidth {
				t.Errorf("groupferry %s --help: got %d columns, want at most %d: %s", command, got, helpWidth, line)
			}
		}
	}
}

// Every flag is in one section of its help, and those of the groups are where people look for them.
func TestHelpGroups(t *testing.T) {
	want := map[string][]string{
		"Flags": {"drain", "simulate", "keep", "help", "watch", "failed", "to", "import", "show", "live"},
		"Sync":  {"mode", "accept", "wait"}, "Input": {"preset", "format", "rejects", "import-id"},
		"API":   {"region", "api-url", "rate", "secret-key-file", "timeout", "accept-replace"},
		"Queue": {"nats-url", "data-dir", "namespace"}, "Output": {"output", "log-format", "quiet"},
	}
	for _, command := range []string{"run", "check", "import", "work", "status", "results", "export", "retry", "pause"} {
		c := find(t, newProgram(t, nil), command)
		seen := map[string]string{}
		for _, s := range sections(c) {
			s.flags.VisitAll(func(f *pflag.Flag) {
				if seen[f.Name] != "" {
					t.Errorf("%s: --%s is in %s and in %s", command, f.Name, seen[f.Name], s.title)
				}
				seen[f.Name] = s.title
			})
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if seen[f.Name] == "" {
				t.Errorf("%s: --%s is in no section", command, f.Name)
			}
		})
		for title, flags := range want {
			for _, name := range flags {
				if got := seen[name]; got != "" && got != title && !(command == "export" && name == "wait") {
					t.Errorf("%s: got --%s in %s, want %s", command, name, got, title)
				}
			}
		}
	}
}

// Each command lists the exit codes that it can end with: the tests fail on one that is not listed, see listedExit.
func TestExitCodes(t *testing.T) {
	for command, want := range map[string][]int{
		"status": {0, 1, 2, 75, 130}, "work": {0, 1, 2, 3, 4, 75, 130}, "import": {0, 1, 2, 3, 5, 75, 130},
		"run": {0, 1, 2, 3, 4, 5, 75, 130}, "simulate": {0, 1, 2}, "retry": {0, 1, 2, 75, 130},
	} {
		if got := slices.Sorted(maps.Keys(exitsOf(find(t, newProgram(t, nil), command)))); !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", command, got, want)
		}
	}
	for _, command := range append(commandNames(t), "help") {
		text := helpText(t, command)
		for code, meaning := range exitsOf(find(t, newProgram(t, nil), command)) {
			if !strings.Contains(text, fmt.Sprintf("\n  %-4d %s\n", code, meaning)) || meaning == "" {
				t.Errorf("groupferry %s --help: got no line for code %d (%q)", command, code, meaning)
			}
		}
	}
	status := find(t, newProgram(t, nil), "status")
	if isListed(status, exitIncomplete) || !isListed(status, exitUnreachable) {
		t.Errorf("status: got %v, %v for codes 3 and 75, want false, true", isListed(status, exitIncomplete), isListed(status, exitUnreachable))
	}
}

// samplesFor gives two values of a flag that differ from each other and from its default, as text, and as the flag
// shows them.
func samplesFor(t testing.TB, f *pflag.Flag) (values, shown [2]string) {
	t.Helper()
	if of := f.Annotations[valuesAnnotation]; len(of) > 1 {
		values = [2]string{of[len(of)-1], of[0]}
		return values, values
	}
	switch kind := f.Value.Type(); kind {
	case "string":
		values = [2]string{"one", "two"}
	case "int", "uint64":
		values = [2]string{"41", "42"}
	case "duration":
		values = [2]string{"1m30s", "2h0m0s"}
	case "bool":
		values = [2]string{"true", "false"}
	case "stringArray":
		return [2]string{"50004:10%", "lost"}, [2]string{"[50004:10%]", "[lost]"}
	case "stringSlice":
		return [2]string{"50001,51007", "lost"}, [2]string{"[50001,51007]", "[lost]"}
	case "time":
		return [2]string{"30d", "12h"}, [2]string{"720h0m0s", "12h0m0s"}
	case "stringToString":
		return [2]string{"a=b", "c=d"}, [2]string{"[a=b]", "[c=d]"}
	default:
		t.Fatalf("--%s: a flag of type %s; how is it given?", f.Name, kind)
	}
	return values, values
}

// Every flag of every command comes from the environment too, and the flag wins.
func TestEnvironment(t *testing.T) {
	for _, command := range commandNames(t)[1:] {
		if slices.Contains([]string{"version", "completion", "man"}, command) { // of which there is no other setting
			continue
		}
		var flags []string
		cmd := find(t, newProgram(t, nil), command)
		cmd.Flags().VisitAll(func(f *pflag.Flag) { flags = append(flags, f.Name) })
		if len(flags) < 3 {
			t.Errorf("%s: got flags %q, want more", command, flags)
		}
		for _, name := range flags {
			t.Run(command+" "+name, func(t *testing.T) {
				env := "GROUPFERRY_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
				if strings.HasPrefix(name, "nats-") {
					env = strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
				}
				if name == "accept" { // see TestNoAcceptance
					return
				}
				if command == "simulate" && (name == "listen" || name == "rate") { // those of workers are another setting
					env = strings.Replace(env, "GROUPFERRY_", "GROUPFERRY_SIMULATE_", 1)
				}
				values, shown := samplesFor(t, cmd.Flags().Lookup(name))
				p := newProgram(t, map[string]string{env: values[0]})

				c := find(t, p, command)
				if err := p.fromEnvironment(c); err != nil {
					t.Fatal(err)
				}
				if got := c.Flags().Lookup(name).Value.String(); got != shown[0] {
					t.Errorf("%s=%s: got %q, want %q", env, values[0], got, shown[0])
				}

				c = find(t, p, command)
				if err := c.ParseFlags([]string{"--" + name + "=" + values[1]}); err != nil {
					t.Fatal(err)
				}
				if err := p.fromEnvironment(c); err != nil {
					t.Fatal(err)
				}
				if got := c.Flags().Lookup(name).Value.String(); got != shown[1] {
					t.Errorf("--%s=%s with %s=%s: got %q, want the flag's %q", name, values[1], env, values[0], got, shown[1])
				}
			})
		}
	}
}

// What the environment says wrongly is told by the variable's name; an empty variable is as good as none.
func TestEnvironmentErrors(t *testing.T) {
	tests := []struct{ env, value, want string }{
		{"GROUPFERRY_RATE", "fast", "GROUPFERRY_RATE"},
		{"GROUPFERRY_TIMEOUT", "10", "GROUPFERRY_TIMEOUT"},
		{"GROUPFERRY_SDK_APP_ID", "-1", "GROUPFERRY_SDK_APP_ID"},
		{"GROUPFERRY_QUIET", "perhaps", "GROUPFERRY_QUIET"},
		{"GROUPFERRY_LOG_LEVEL", "loud", "GROUPFERRY_LOG_LEVEL"},
		{"GROUPFERRY_RATE", "", ""},
		{"GROUPFERRY_HELP", "true", ""},
	}
	for _, test := range tests {
		p := newProgram(t, map[string]string{test.env: test.value})
		err := p.fromEnvironment(find(t, p, "run"))
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s=%q: got %v, want no error", test.env, test.value, err)
		case test.want != "" && (exitCode(err) != exitUsage || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s=%q: got %v with exit code %d, want 2 and an error that names %s", test.env, test.value, err, exitCode(err), test.want)
		}
	}
}

// Secrets come from a file or the environment: no flag takes one, where every process of the machine could read it.
func TestNoFlagTakesASecret(t *testing.T) {
	for _, command := range commandNames(t) {
		find(t, newProgram(t, nil), command).Flags().VisitAll(func(f *pflag.Flag) {
			if slices.Contains([]string{"secret-key", "usersig", "key", "token", "password"}, f.Name) {
				t.Errorf("%s: got flag --%s", command, f.Name)
			}
		})
	}
}

// parses returns what is wrong with a command line after the word groupferry: an unknown command or flag.
func parses(t testing.TB, args []string) error {
	t.Helper()
	p := newProgram(t, nil)
	root := p.root()
	cmd, rest, err := root.Find(args)
	switch {
	case err != nil:
		return err
	case cmd == root && len(rest) > 0 && !strings.HasPrefix(rest[0], "-"):
		return fmt.Errorf("unknown command %q", rest[0])
	}
	cmd.InitDefaultHelpFlag()
	cmd.InitDefaultVersionFlag()
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	if slices.Contains([]string{"run", "check", "import"}, cmd.Name()) {
		return cmd.Args(cmd, cmd.Flags().Args())
	}
	return nil
}

// The examples of the help texts are command lines that there are.
func TestExamples(t *testing.T) {
	for _, command := range commandNames(t) {
		c := find(t, newProgram(t, nil), command)
		for line := range strings.Lines(strings.ReplaceAll(c.Example, "\\\n", "")) {
			command, found := strings.CutPrefix(strings.TrimSpace(line), "groupferry ")
			if !found {
				t.Errorf("%s: example %q does not call groupferry", command, line)
				continue
			}
			args, err := shellWords(command)
			if err == nil {
				err = parses(t, args)
			}
			if err != nil {
				t.Errorf("%s: example %q: %v", command, line, err)
			}
		}
	}
}

// TestNoAcceptance: what a person accepted once is not accepted every night by a variable.
func TestNoAcceptance(t *testing.T) {
	for _, command := range []string{"run", "import", "check"} {
		p := newProgram(t, map[string]string{"GROUPFERRY_ACCEPT": "one", "-": "one"})
		c := find(t, p, command)
		if err := p.fromEnvironment(c); err != nil {
			t.Fatal(err)
		}
		if got := c.Flags().Lookup("accept").Value.String(); got != "" {
			t.Errorf("%s: got %q, want none", command, got)
		}
	}
}
