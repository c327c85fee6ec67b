package importer

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxZstdWindow bounds the memory of the zstd decoder: zstd uses at most 8 MiB without --long, and 32 MiB with
// --long=25.
const maxZstdWindow = 32 << 20

// decompress detects compression by the first bytes and removes it. name is "gzip", "zstd" or "" for none.
func decompress(r *bufio.Reader) (content io.ReadCloser, name string, err error) {
	magic, err := r.Peek(4)
	if err != nil && err != io.EOF {
		return nil, "", err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, "gzip", err
		}
		return z, "gzip", nil
	case len(magic) == 4 && (bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) || // a frame
		magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18})): // a frame to be skipped before it
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, "zstd", err
		}
		return z.IOReadCloser(), "zstd", nil
	}
	return io.NopCloser(r), "", nil
}

// explainCompression describes in e an error in compressed content.
func explainCompression(e *Error, name string, err error) {
	switch {
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		e.Problem = fmt.Sprintf("zstd with a window over %d MiB", maxZstdWindow>>20)
		e.Hint = "compress it again without --long or --ultra, or unpack it first"
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		e.Problem = "the " + name + " data is cut off"
		e.Hint = "fetch or make the file again"
	default:
		e.Problem = "the " + name + " data is damaged: " + plainError(err)
		e.Hint = "fetch or make the file again"
	}
}
