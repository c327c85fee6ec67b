package importer

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/klauspost/compress/zstd"
)

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
		if got := detectFormat(tc.name, []byte(tc.head)); got != tc.want {
			t.Errorf("%s with %q: got %s, want %s", tc.name, tc.head, got, tc.want)
		}
	}
}
