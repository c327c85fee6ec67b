package app

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"groupferry/importer"
)

// badInput is an input with one good row and a bad one.
func badInput(t *testing.T) string { return writeInput(t, "a,g,b", ",g,c") }

// planOf reads an input that is closed with the test.
func planOf(t *testing.T, files ...string) *importer.Plan {
	t.Helper()
	plan, err := importer.Read(t.Context(), files, importer.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { plan.Close() })
	return plan
}

// keep keeps the rejects of a plan, and returns the content of the file that has them.
func keep(t *testing.T, plan *importer.Plan, name string) (*Rejects, string) {
	t.Helper()
	r, err := findRejects(plan, name, nil)
	if err == nil {
		err = r.Keep()
	}
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(r.File)
	if err != nil {
		t.Fatal(err)
	}
	return r, string(b)
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// A file that has other content than the rejects stays as it is, and is not written again if it has the same.
func TestRejectsStay(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "r.csv")
	plan := planOf(t, badInput(t))
	for range 2 {
		if r, text := keep(t, plan, name); r.File != name || r.Other != "" || !strings.Contains(text, ",g,1,c,,50002,") {
			t.Errorf("got %+v with %q", r, text)
		}
	}
	_, text := keep(t, plan, name)
	for _, changed := range []string{
		strings.Replace(text, ",g,1,c", "a,g,1,c", 1), // fixed
		text + "a,g,1,d,,,,,\n",                       // one more
		strings.SplitAfter(text, "\n")[0],             // one is gone
	} {
		write(t, name, changed)
		for range 2 { // the second time it is there
			r, got := keep(t, plan, name)
			if want := filepath.Join(dir, "r-2.csv"); r.File != want || r.Other != name || got != text {
				t.Errorf("got %+v with %q, want %s", r, got, want)
			}
		}
		if b, _ := os.ReadFile(name); string(b) != changed {
			t.Errorf("%q became %q", changed, b)
		}
	}
	write(t, filepath.Join(dir, "r-2.csv"), "fixed as well")
	if r, _ := keep(t, plan, name); r.File != filepath.Join(dir, "r-3.csv") {
		t.Errorf("got %+v, want r-3.csv", r)
	}
	write(t, filepath.Join(dir, "empty"), "") // as mktemp makes one
	if r, got := keep(t, plan, filepath.Join(dir, "empty")); r.Other != "" || got != text {
		t.Errorf("an empty file: got %+v with %q", r, got)
	}
	if got, want := names(t, dir), []string{"empty", "r-2.csv", "r-3.csv", "r.csv"}; !slices.Equal(got, want) {
		t.Errorf("got files %q, want %q", got, want)
	}
}

// An input is not written to, whatever its name there is.
func TestRejectsAreNoInput(t *testing.T) {
	dir := t.TempDir()
	bad, empty := filepath.Join(dir, "in.csv"), filepath.Join(dir, "in.jsonl")
	write(t, bad, "from_account,group_name,to_account\n,g,c\n")
	write(t, empty, "")
	before, _ := os.ReadFile(bad)
	plan := planOf(t, bad, empty)
	if err := os.Link(empty, filepath.Join(dir, "same.jsonl")); err != nil {
		t.Skip(err)
	}
	for _, name := range []string{"in.csv", "in.jsonl", "same.jsonl"} {
		r, _ := keep(t, plan, filepath.Join(dir, name))
		if ext := filepath.Ext(name); r.File != filepath.Join(dir, strings.TrimSuffix(name, ext)+"-2"+ext) {
			t.Errorf("%s: got %+v", name, r)
		}
	}
	if after, _ := os.ReadFile(bad); string(after) != string(before) {
		t.Errorf("the input became %q", after)
	}
	if info, _ := os.Stat(empty); info.Size() != 0 {
		t.Errorf("the empty input has %d bytes", info.Size())
	}
}

// A device stays one, a link is refused.
func TestRejectsElsewhere(t *testing.T) {
	dir := t.TempDir()
	plan := planOf(t, badInput(t))
	var b strings.Builder
	r, err := findRejects(plan, Stdout, &b)
	if err == nil {
		err = r.Keep()
	}
	if err != nil || r.File != "" || !strings.Contains(b.String(), ",g,1,c,,50002,") {
		t.Errorf("standard output: got %q and %+v, %v", &b, r, err)
	}
	if r, err = findRejects(plan, os.DevNull, nil); err == nil {
		err = r.Keep()
	}
	if info, _ := os.Stat(os.DevNull); err != nil || r.File != "" || info.Mode().IsRegular() {
		t.Errorf("%s: got %+v, %v; it is %v now", os.DevNull, r, err, info.Mode())
	}

	target, link, loose := filepath.Join(dir, "target"), filepath.Join(dir, "link"), filepath.Join(dir, "loose")
	write(t, target, "")
	if err := errors.Join(os.Symlink(target, link), os.Symlink("nowhere", loose)); err != nil {
		t.Skip(err)
	}
	for _, name := range []string{link, loose, dir, filepath.Join(dir, "none", "r.csv")} {
		_, err := findRejects(plan, name, nil)
		if e := (*RejectsError)(nil); !errors.As(err, &e) || e.Name != name {
			t.Errorf("%s: got %v, want an error that names it", name, err)
		}
	}
	if got, want := names(t, dir), []string{"link", "loose", "target"}; !slices.Equal(got, want) {
		t.Errorf("got files %q, want %q", got, want)
	}
	if runtime.GOOS == "linux" { // what a shell gives for >(command)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		fifo, err := findRejects(plan, fmt.Sprintf("/proc/self/fd/%d", w.Fd()), nil)
		if err == nil {
			err = fifo.Keep()
		}
		w.Close()
		buf := make([]byte, 4096)
		n, _ := r.Read(buf)
		if err != nil || fifo.File != "" || !strings.Contains(string(buf[:n]), ",g,1,c,,50002,") {
			t.Errorf("a pipe: got %q, %v", buf[:n], err)
		}
		r.Close()
	}
}

// Nothing is written before the rejects are kept, but a folder that cannot be written to is found out.
func TestRejectsWait(t *testing.T) {
	dir := t.TempDir()
	in, err := ReadInput(t.Context(), InputConfig{Files: []string{badInput(t)}, Rejects: filepath.Join(dir, "r.csv")})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if got := names(t, dir); len(got) > 0 {
		t.Errorf("before Keep: got files %q", got)
	}
	if err := in.Rejects.Keep(); err != nil || in.Record.RejectsFile != filepath.Join(dir, "r.csv") {
		t.Errorf("got %v and the record %+v", err, in.Record)
	}
	if got := names(t, dir); !slices.Equal(got, []string{"r.csv"}) {
		t.Errorf("got files %q", got)
	}
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(dir, 0o700)
	_, err = ReadInput(t.Context(), InputConfig{Files: []string{badInput(t)}, Rejects: filepath.Join(dir, "s.csv")})
	if os.Getuid() > 0 && !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a folder that cannot be written to: got %v", err)
	}
}

// A run without rejects says which file is not its own.
func TestOlderRejects(t *testing.T) {
	good := writeInput(t, "a,g,b")
	old := filepath.Join(t.TempDir(), "old.csv")
	for _, step := range []struct{ text, want string }{{"", ""}, {"rejects of yesterday", old}} {
		write(t, old, step.text)
		if r, err := findRejects(planOf(t, good), old, nil); err != nil || r.Older != step.want || r.write != nil {
			t.Errorf("%q: got %+v, %v", step.text, r, err)
		}
	}
	if r, err := findRejects(planOf(t, good), good, nil); err != nil || r.Older != "" {
		t.Errorf("the input itself: got %+v, %v", r, err)
	}
}
