package importer

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

const someRows = csvHeader + "u1,g,1,x1,\nu1,g,1,x2,\n"

// files writes what there is to a new directory and changes into it.
func files(t *testing.T, content map[string]string) {
	t.Helper()
	dir := t.TempDir()
	for name, s := range content {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
}

func TestInputs(t *testing.T) {
	files(t, map[string]string{
		"b.csv":      "from_account,group_name,to_account,note\nu1,g,x1,\nu1,g,x3,\n",
		"a.jsonl":    `{"from_account":"u1","group_name":"g","to_account":"x1","note":1}`,
		"c.csv.gz":   gzipped("from_account,group_name,to_account,note\nu1,g,x2,\nu2,g,x2,\n,,,\n"),
		"e.jsonl":    "",
		"h.csv":      "from_account,group_name,to_account\n",
		"[odd].csv":  "from_account,group_name,to_account\nu3,g,x1\n",
		"sub/d.csv":  "from_account,group_name,to_account\nu4,g,x1\n",
		"sub/x.text": "",
	})
	p, err := Read(context.Background(),
		[]string{"b.csv", "[ac].*", "-", "./b.csv", "[odd].csv", "sub/*.csv", "e.jsonl", "h.csv"},
		Config{Stdin: strings.NewReader(`{"from_account":"u1","group_name":"g","to_account":"x9"}`)})
	if err != nil {
		t.Fatal(err)
	}
	checkSums(t, p)
	wantLines(t, "jobs", sorted(jobTexts(t, p)),
		"u1/g: 1:x1@b.csv:2 1:x3@b.csv:3 1:x2@c.csv.gz:2 1:x9@-:1",
		"u2/g: 1:x2@c.csv.gz:3",
		"u3/g: 1:x1@[odd].csv:2",
		"u4/g: 1:x1@sub/d.csv:2")
	wantLines(t, "notices", p.Notices,
		"./b.csv is named twice and read once",
		"e.jsonl is empty",
		`b.csv and 2 more: columns ignored: "note"`)
	wantLines(t, "rejects", rejectTexts(t, p), "4 50002 from_account is empty")
	if s := p.Summary; s.Files != 7+1 || s.Duplicates != 1 || rejectsOf(t, p)[0].File != "c.csv.gz" {
		t.Errorf("got %+v, want 8 files, 1 duplicate and the reject in c.csv.gz", s)
	}
}

func TestInputsRefused(t *testing.T) {
	files(t, map[string]string{"a.csv": someRows, "dir/b.csv": "", "x.csv.gz": gzipped(someRows)[:20]})
	for _, tc := range []struct {
		inputs []string
		want   string
		is     error
	}{
		{[]string{"a.csv", "none.csv"}, "none.csv: no such file", fs.ErrNotExist},
		{[]string{"none*.csv"}, "none*.csv: matches no file", fs.ErrNotExist},
		{[]string{"a["}, "a[: is no pattern of file names", filepath.ErrBadPattern},
		{[]string{"dir"}, "dir: is a directory; name the files in it, for example dir/*.csv", nil},
		{[]string{"a.csv", "-"}, "-: there is no standard input here", nil},
		{[]string{"a.csv", "dir/*"}, "dir/b.csv: is empty; a CSV file begins with a header", nil},
		{[]string{"x.csv.gz"}, "x.csv.gz: line 1: the gzip data is cut off; fetch or make the file again", io.ErrUnexpectedEOF},
		{nil, "nothing to read: no input was named", nil},
	} {
		_, err := Read(context.Background(), tc.inputs, Config{})
		if err == nil || err.Error() != tc.want {
			t.Errorf("%q: got %v, want %s", tc.inputs, err, tc.want)
		}
		if tc.is != nil && !errors.Is(err, tc.is) {
			t.Errorf("%q: got %v, want it to be %v", tc.inputs, err, tc.is)
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestErrorsNameTheFile has each way in which reading a named file can fail.
func TestErrorsNameTheFile(t *testing.T) {
	files(t, map[string]string{
		"good.csv":     someRows,
		"head.csv":     "\n\na,b\n",
		"wide.csv":     inUTF16(someRows, true, true),
		"cr.csv":       "from_account,group_name,to_account\ru1,g,x1\r",
		"short.csv.gz": gzipped(someRows)[:5],
	})
	for _, tc := range []struct{ name, want string }{
		{"head.csv", "head.csv: line 3: the header has no column"},
		{"wide.csv", "wide.csv: is UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8 wide.csv > utf8.csv"},
		{"cr.csv", `cr.csv: line 1: the lines end in CR alone; convert it: tr '\r' '\n' < cr.csv > lines.csv`},
		{"short.csv.gz", "short.csv.gz: the gzip data is cut off; fetch or make the file again"},
	} {
		_, err := Read(context.Background(), []string{"good.csv", tc.name}, Config{})
		if err == nil || !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("got %v, want %s", err, tc.want)
		}
	}
	// A file that is gone by the time it is read.
	_, err := source{name: "gone.csv"}.open(t.Context(), nil, new(atomic.Int64), new(buffers))
	var e *Error
	if !errors.As(err, &e) || e.File != "gone.csv" || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want an error of gone.csv that wraps %v", err, fs.ErrNotExist)
	}
}

// TestEndlessRead leaves a read alone that never ends, as that of a terminal at which nobody types.
func TestEndlessRead(t *testing.T) {
	for name, typed := range map[string]string{"nothing": "", "a header": csvHeader, "rows": someRows, "compressed": gzipped(someRows)[:30]} {
		ctx, cancel := context.WithCancel(t.Context())
		first := strings.NewReader(typed)
		_, err := Read(ctx, []string{"-"}, Config{Stdin: readerFunc(func(p []byte) (int, error) {
			if first.Len() > 0 {
				return first.Read(p)
			}
			cancel()
			select {}
		})})
		if err != context.Canceled {
			t.Errorf("%s: got %v, want %v", name, err, context.Canceled)
		}
	}
}

// TestMeter ends where its source ended first, although that has more, as a terminal does.
func TestMeter(t *testing.T) {
	reads := 0
	var read atomic.Int64
	m := &meter{ctx: t.Context(), read: &read, src: readerFunc(func(p []byte) (int, error) {
		reads++
		return copy(p, "rows"), io.EOF
	})}
	p := make([]byte, 10)
	if n, err := m.Read(p); n != 4 || err != io.EOF {
		t.Errorf("got %d, %v; want 4, EOF", n, err)
	}
	if n, err := m.Read(p); n != 0 || err != io.EOF || reads != 1 || read.Load() != 4 {
		t.Errorf("got %d, %v after %d reads of %d bytes; want 0, EOF after 1 of 4", n, err, reads, read.Load())
	}

	ctx, cancel := context.WithCancel(t.Context())
	m = &meter{ctx: ctx, read: &read, src: strings.NewReader("rows")}
	cancel()
	if n, err := m.Read(p); n != 0 || err != context.Canceled {
		t.Errorf("got %d, %v after a cancel; want 0, %v", n, err, context.Canceled)
	}
}

// A file that is written to, or replaced, while it is read is named; so is one whose last line does not end.
func TestChangedFile(t *testing.T) {
	dir := t.TempDir()
	for name, change := range map[string]func(file string) error{
		"left alone": func(string) error { return nil },
		"appended": func(file string) error {
			f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteString("u,g,1,more,\n")
			return errors.Join(err, f.Close())
		},
		"replaced": func(file string) error {
			if err := os.WriteFile(file+".new", []byte(csvHeader+"u,g,1,v,\n"), 0o644); err != nil {
				return err
			}
			return os.Rename(file+".new", file)
		},
		"removed": os.Remove,
	} {
		file := filepath.Join(dir, strings.ReplaceAll(name, " ", "-")+".csv")
		if err := os.WriteFile(file, []byte(csvHeader+"u,g,1,v,\nu,g,1,w,"), 0o644); err != nil {
			t.Fatal(err)
		}
		var once sync.Once
		var failed error
		// The progress comes while the file is open.
		p, err := Read(t.Context(), []string{file}, Config{Progress: func(Progress) { once.Do(func() { failed = change(file) }) }})
		if err != nil || failed != nil {
			t.Fatal(err, failed)
		}
		closeAtEnd(t, p)
		if changed := len(p.Changed) == 1; changed != (name != "left alone") {
			t.Errorf("%s: got changed %q", name, p.Changed)
		}
		if !slices.Equal(p.CutOff, []string{file}) {
			t.Errorf("%s: got cut off %q", name, p.CutOff)
		}
	}
}
