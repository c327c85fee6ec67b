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

// maxZstdWindow bounds what a zstd input can make the decoder hold: the most that zstd itself takes without --long
// is 8 MiB, and --long=25 is 32 MiB.
const maxZstdWindow = 32 << 20

// decompress tells compression by the first bytes and takes it off. name is that of the compression, "" for none.
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

// explainCompression puts into e what an error of compressed content means. name is that of the compression.
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
