package importer

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

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
			wantLines(t, "jobs", jobTexts(t, p), "u1/g: 1:x1@-:2 1:x2@-:3")
			if p.Digest != want.Digest || p.ImportID != want.ImportID || p.Summary.Bytes != want.Summary.Bytes {
				t.Errorf("got %s %s %d, want %s %s %d", p.Digest, p.ImportID, p.Summary.Bytes,
					want.Digest, want.ImportID, want.Summary.Bytes)
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
