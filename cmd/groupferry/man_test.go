package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// Each command has a man page with all that its help has, and the same each time.
func TestMan(t *testing.T) {
	dirs := []string{filepath.Join(t.TempDir(), "man1"), t.TempDir()}
	for _, dir := range dirs {
		var stderr bytes.Buffer
		if code := run(nil, []string{"man", dir}, os.LookupEnv, strings.NewReader(""), &bytes.Buffer{}, &stderr); code != exitDone {
			t.Fatalf("got exit code %d, %s", code, &stderr)
		}
	}
	mandoc, _ := exec.LookPath("mandoc")
	macros := regexp.MustCompile(`^\.(TH|SH|SS|TP|PP|B|BR|br|nf|fi|nh|ad l)( |$)`)
	known := map[string]bool{}
	for _, command := range commandNames(t) {
		c := find(t, newProgram(t, nil), command)
		file := pageName(c) + ".1"
		known[file] = true
		b, err := os.ReadFile(filepath.Join(dirs[0], file))
		if err != nil {
			t.Error(err)
			continue
		}
		page := string(b)
		if again, err := os.ReadFile(filepath.Join(dirs[1], file)); err != nil || string(again) != page {
			t.Errorf("%s: got another page the second time, %v", file, err)
		}
		if date := regexp.MustCompile(`\b20\d\d\b`).FindString(page); date != "" {
			t.Errorf("%s: got a date: %s", file, date)
		}
		for line := range strings.SplitSeq(page, "\n") {
			if strings.HasPrefix(line, "'") || strings.HasPrefix(line, ".") && !macros.MatchString(line) {
				t.Errorf("%s: got an instruction: %s", file, line)
			}
		}
		plain := strings.NewReplacer(`\-`, "-", `\e`, `\`, `\&`, "", `\fB`, "", `\fR`, "", `\fI`, "").Replace(page)
		c.Flags().VisitAll(func(f *pflag.Flag) {
			_, usage := pflag.UnquoteUsage(f)
			if !strings.Contains(plain, "--"+f.Name) || !strings.Contains(plain, usage) {
				t.Errorf("%s: got no --%s, %s", file, f.Name, usage)
			}
		})
		for _, line := range slices.Concat(strings.Split(c.Long, "\n"), strings.Split(c.Example, "\n")) {
			if !strings.Contains(plain, line) {
				t.Errorf("%s: got no line %q", file, line)
			}
		}
		for code, meaning := range exitsOf(c) {
			if !strings.Contains(plain, ".B "+strconv.Itoa(code)+"\n"+meaning+"\n") {
				t.Errorf("%s: got no code %d", file, code)
			}
		}
		if mandoc == "" {
			continue
		}
		out, _ := exec.CommandContext(t.Context(), mandoc, "-Tlint", "-Wwarning", filepath.Join(dirs[0], file)).CombinedOutput()
		for line := range strings.Lines(string(out)) {
			if !strings.Contains(line, "missing date") { // it would make another page of each build
				t.Errorf("%s: %s", file, line)
			}
		}
	}
	files, err := os.ReadDir(dirs[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !known[f.Name()] {
			t.Errorf("%s: there is no such command", f.Name())
		}
	}
}

// What a text has in it is no instruction to roff.
func TestRoff(t *testing.T) {
	for text, want := range map[string]string{
		".TH x": `\&.TH x`, "a\n'b": "a\n\\&'b", `a\tb`: `a\etb`, "--rate": `\-\-rate`, "a.b": "a.b", "a\n\nb": "a\n\nb",
	} {
		if got := roff(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}
