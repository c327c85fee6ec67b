package importer

import (
	"bufio"
	"fmt"
	"io"
)

// maxLine is the longest JSONL line in bytes with its line end: room for the request body of a user with 20 full
// groups of usual ids.
const maxLine = 1 << 20

// A jsonlSplitter cuts a JSONL input into blocks of whole lines.
type jsonlSplitter struct {
	cols  *columns
	lines *bufio.Reader
	line  int64 // the next one
}

func newJSONLSplitter(src io.Reader, buf *buffers, cols *columns) *jsonlSplitter {
	return &jsonlSplitter{cols: cols, lines: reset(&buf.lines, src, maxLine), line: 1}
}

func (j *jsonlSplitter) at() int64 { return j.line }

func (j *jsonlSplitter) next(b *block) error {
	b.line = j.line
	for !b.full() {
		line, err := j.lines.ReadSlice('\n')
		if err == bufio.ErrBufferFull {
			for err == bufio.ErrBufferFull {
				_, err = j.lines.ReadSlice('\n')
			}
			b.skipBad(j.line, nil, true, fmt.Sprintf("the line is over %d KiB", maxLine>>10))
			line = emptyLine
		}
		if err != nil && err != io.EOF {
			return err
		}
		b.data = append(b.data, line...)
		if err != nil {
			return err
		}
		j.line++
	}
	return nil
}

func (j *jsonlSplitter) newParser() parser { return newJSONLParser(j.cols) }
