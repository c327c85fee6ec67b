package importer

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
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
