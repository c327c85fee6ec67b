package importer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const someRows = csvHeader + "u1,g,1,x1,\nu1,g,1,x2,\n"

func gzipped(parts ...string) string {
	var b bytes.Buffer
	for _, s := range parts {
		w := gzip.NewWriter(&b)
		io.WriteString(w, s)
		w.Close()
	}
	return b.String()
}

func zstded(t testing.TB, s string, opts ...zstd.EOption) string {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, opts...)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, s)
	w.Close()
	return b.String()
}

func inUTF16(s string, little, mark bool) string {
	if mark {
		s = "\ufeff" + s
	}
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		if little {
			b = append(b, byte(u), byte(u>>8))
		} else {
			b = append(b, byte(u>>8), byte(u))
		}
	}
	return string(b)
}

// TestSameContent has one content in many wrappings: the rows, the digest and so the import are the same.
func TestSameContent(t *testing.T) {
	half := len(someRows) / 2
	want := readString(t, someRows, Config{})
	for name, input := range map[string]string{
		"gzip":                  gzipped(someRows),
		"gzip in two members":   gzipped(someRows[:half], someRows[half:]),
		"zstd":                  zstded(t, someRows),
		"zstd in two frames":    zstded(t, someRows[:half]) + zstded(t, someRows[half:]),
		"zstd, a frame to skip": "\x52\x2a\x4d\x18\x03\x00\x00\x00abc" + zstded(t, someRows),
		"zstd with 32 MiB":      zstded(t, someRows, zstd.WithWindowSize(maxZstdWindow), zstd.WithSingleSegment(false)),
	} {
		t.Run(name, func(t *testing.T) {
			p := readString(t, input, Config{})
			wantLines(t, "jobs", jobTexts(p), "u1/g: 1:x1@-:2 1:x2@-:3")
			if p.Digest != want.Digest || p.ImportID != want.ImportID || p.Summary.Bytes != want.Summary.Bytes {
				t.Errorf("got %s %s %d, want %s %s %d", p.Digest, p.ImportID, p.Summary.Bytes,
					want.Digest, want.ImportID, want.Summary.Bytes)
			}
		})
	}
}

func TestDigest(t *testing.T) {
	base := readString(t, someRows, Config{})
	if len(base.Digest) != 64 || base.ImportID != base.Digest[:16] {
		t.Errorf("got import %q of digest %q, want its first 16 digits", base.ImportID, base.Digest)
	}
	same := map[string]*Plan{
		"again":                 readString(t, someRows, Config{}),
		"another chunk size":    readString(t, someRows, Config{ChunkSize: 7}),
		"the format by name":    readString(t, someRows, Config{Format: FormatCSV}),
		"the default delimiter": readString(t, someRows, Config{Delimiter: ','}),
		"an import id":          readString(t, someRows, Config{ImportID: "nightly"}),
	}
	for name, p := range same {
		if p.Digest != base.Digest {
			t.Errorf("%s: got another digest, want the same", name)
		}
	}
	if got := same["an import id"].ImportID; got != "nightly" {
		t.Errorf("got import id %q, want nightly", got)
	}
	other := map[string]*Plan{
		"other content":     readString(t, someRows+"\n", Config{}),
		"a byte order mark": readString(t, "\ufeff"+someRows, Config{}),
		"renamed columns":   readString(t, someRows, Config{Columns: map[string]string{"to_account": "to_account"}}),
		"another delimiter": readString(t, strings.ReplaceAll(someRows, ",", ";"), Config{Delimiter: ';'}),
		"JSONL":             readString(t, someRows, Config{Format: FormatJSONL}),
	}
	seen := map[string]string{base.Digest: "the base"}
	for name, p := range other {
		if before, twice := seen[p.Digest]; twice {
			t.Errorf("%s and %s have the same digest", name, before)
		}
		seen[p.Digest] = name
	}
}

func TestRefusedContent(t *testing.T) {
	truncated := func(s string) string { return s[:len(s)-9] }
	big := someRows + strings.Repeat("u1,g,1,x3,\n", 20_000)
	for _, tc := range []struct{ name, input, want string }{
		{"empty", "", "-: is empty; a CSV file begins with a header"},
		{"byte order mark only", "\ufeff", "-: is empty"},
		{"gzip of nothing", gzipped(""), "-: is empty"},
		{"gzip cut off", truncated(gzipped(big)), "the gzip data is cut off"},
		{"gzip cut off at once", gzipped(big)[:5], "the gzip data is cut off"},
		{"gzip with something behind it", gzipped(big) + "garbage beyond the end", "the gzip data is damaged"},
		{"zstd cut off", truncated(zstded(t, big)), "the zstd data is cut off"},
		{"zstd with 64 MiB", zstded(t, big, zstd.WithWindowSize(2*maxZstdWindow)), "zstd with a window over 32 MiB; compress it again"},
		{"UTF-16 LE with mark", inUTF16(someRows, true, true), "iconv -f UTF-16 -t UTF-8 - >"},
		{"UTF-16 BE with mark", inUTF16(someRows, false, true), "iconv -f UTF-16 -t UTF-8 - >"},
		{"UTF-16 LE", inUTF16(someRows, true, false), "iconv -f UTF-16LE -t UTF-8 - >"},
		{"UTF-16 BE", inUTF16(someRows, false, false), "iconv -f UTF-16BE -t UTF-8 - >"},
		{"UTF-16 in gzip", gzipped(inUTF16(someRows, true, true)), "is UTF-16"},
		{"spreadsheet", "PK\x03\x04 and so on", "is a spreadsheet or a zip archive"},
		{"bzip2", "BZh91AY&SY", "compressed with bzip2"},
		{"xz", "\xfd7zXZ\x00", "compressed with xz"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := readError(t, tc.input, Config{})
			var e *Error
			if !errors.As(err, &e) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error of the input with %q", err, tc.want)
			}
		})
	}
}

// TestCutOffLine tells in which line a cut-off archive ends.
func TestCutOffLine(t *testing.T) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	io.WriteString(w, someRows+"u1,g,1")
	w.Flush()
	err := readError(t, b.String(), Config{})
	if want := "-: line 4: the gzip data is cut off; fetch or make the file again"; err.Error() != want {
		t.Errorf("got %v, want %v", err, want)
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v, want it to wrap %v", err, io.ErrUnexpectedEOF)
	}
}

func TestFormat(t *testing.T) {
	for _, tc := range []struct {
		name, head string
		want       Format
	}{
		{"a.csv", "{", FormatCSV},
		{"dir.jsonl/A.CSV.GZ", "{", FormatCSV},
		{"a.jsonl", "from", FormatJSONL},
		{"a.ndjson.zst", "from", FormatJSONL},
		{"a.JSONL.gz", "", FormatJSONL},
		{"-", "{", FormatJSONL},
		{"-", " \r\n\t{", FormatJSONL},
		{"-", "from", FormatCSV},
		{"-", "", FormatCSV},
		{"a.json", "{", FormatJSONL},
		{"a.txt.gz", "from", FormatCSV},
	} {
		if got := sniff(tc.name, []byte(tc.head)); got != tc.want {
			t.Errorf("%s with %q: got %s, want %s", tc.name, tc.head, got, tc.want)
		}
	}
}

func TestConfigRefused(t *testing.T) {
	for _, tc := range []struct {
		field string
		cfg   Config
	}{
		{"Format", Config{Format: "xml"}},
		{"Delimiter", Config{Delimiter: '"'}},
		{"Delimiter", Config{Delimiter: '\n'}},
		{"Delimiter", Config{Delimiter: 'x'}},
		{"Delimiter", Config{Delimiter: '_'}},
		{"Delimiter", Config{Delimiter: -1}},
		{"Delimiter", Config{Delimiter: 0xFFFD}},
		{"Delimiter", Config{Delimiter: 0xD800}},
		{"ImportID", Config{ImportID: "a b"}},
		{"ImportID", Config{ImportID: strings.Repeat("a", 65)}},
		{"ChunkSize", Config{ChunkSize: 101}},
		{"ChunkSize", Config{ChunkSize: -1}},
		{"Columns", Config{Columns: map[string]string{"sender": "x"}}},
		{"Columns", Config{Columns: map[string]string{"type": " "}}},
		{"Columns", Config{Columns: map[string]string{"type": "x", "Type": "y"}}},
		{"Columns", Config{Columns: map[string]string{"type": "x", "to_account": "X"}}},
		{"Columns", Config{Columns: map[string]string{"to_account": "from_account"}}},
	} {
		_, err := Read(context.Background(), []string{"-"}, tc.cfg)
		var e *ConfigError
		if !errors.As(err, &e) || e.Field != tc.field {
			t.Errorf("%+v: got %v, want a refusal of %s", tc.cfg, err, tc.field)
		}
	}
}

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
	wantLines(t, "jobs", sorted(jobTexts(p)),
		"u1/g: 1:x1@b.csv:2 1:x3@b.csv:3 1:x2@c.csv.gz:2 1:x9@-:1",
		"u2/g: 1:x2@c.csv.gz:3",
		"u3/g: 1:x1@[odd].csv:2",
		"u4/g: 1:x1@sub/d.csv:2")
	wantLines(t, "notices", p.Notices,
		"./b.csv is named twice and read once",
		"e.jsonl is empty",
		`b.csv and 2 more: columns ignored: "note"`)
	wantLines(t, "rejects", rejectTexts(p), "4 50002 from_account is empty")
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

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	src := io.MultiReader(strings.NewReader(gzipped(someRows)), readerFunc(func([]byte) (int, error) {
		cancel()
		return 0, nil
	}))
	_, err := Read(ctx, []string{"-"}, Config{Stdin: src})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestProgress(t *testing.T) {
	packed := gzipped(someRows)
	files(t, map[string]string{"a.csv.gz": packed, "b.csv": someRows})
	var last Progress
	calls := 0
	_, err := Read(context.Background(), []string{"a.csv.gz", "b.csv"}, Config{Progress: func(p Progress) {
		if p.Rows < last.Rows || p.Bytes < last.Bytes {
			t.Errorf("got %+v after %+v", p, last)
		}
		last = p
		calls++
	}})
	if err != nil {
		t.Fatal(err)
	}
	n := int64(len(packed) + len(someRows))
	if want := (Progress{Rows: 4, Bytes: n, Total: n}); last != want || calls == 0 {
		t.Errorf("got %+v at the end of %d calls, want %+v", last, calls, want)
	}
}
