package importer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// maxRecord is the longest CSV record in bytes, without its line end. Our five columns at their longest need a few
// hundred; the rest is room for columns that are not ours.
const maxRecord = 64 << 10

// lookahead is what must be in the buffer to scan the next record: the longest one and CRLF.
const lookahead = maxRecord + 2

// A csvSplitter comes before the CSV parser and passes on whole, sound records: their quotes are closed and they have as
// many fields as the header. It reads by the rules of encoding/csv, so that the parser accepts all of it. Only the
// fields of lines without a quote are left to the parser, which counts them anyway.
//
// Of a record whose quotes do not close only the first physical line is skipped; reading continues at the next line. So
// a quote that is never closed costs its own row and not the rest of the file. A record whose quotes close and that has
// another number of fields is skipped as a whole: what stands between its quotes is no row. Empty lines replace what was
// skipped: the parser skips them, and its line numbers stay right.
//
// The work stays linear, whatever the input: a line with an odd number of quotes ends every look ahead that an earlier
// line began, and only such a line begins one.
type csvSplitter struct {
	src   io.Reader
	comma []byte
	head  *header // nil until it is read: the header has any number of fields

	buf        []byte
	start, end int   // of what is in buf and not yet scanned
	quote      int   // the first quote in it; end if there is none, below start if not known
	line       int64 // physical line at start
	err        error // of src; io.EOF at its end
	open       bool  // the last line does not end
}

// newCSVSplitter reads the header of an input, without its byte order mark. The error is that of src, or an [*Error]
// without a file for a header that cannot be used.
func newCSVSplitter(src io.Reader, buf *buffers, comma rune, cols *columns) (*csvSplitter, error) {
	if buf.records == nil {
		buf.records = make([]byte, 8*maxRecord)
	}
	s := &csvSplitter{src: src, comma: []byte(string(comma)), buf: buf.records, quote: -1, line: 1}
	for {
		if err := s.fill(); err == io.EOF {
			return s, &Error{Problem: "there is no header, only empty lines"}
		} else if err != nil {
			return s, err
		}
		size := lineSize(s.buf[s.start:s.end])
		if len(trimEnd(s.buf[s.start:s.start+size])) > 0 {
			break
		}
		s.start += size
		s.line++
	}
	size, lines, _, reason := s.record(s.buf[s.start:s.end])
	head, err := parseHeader(string(trimEnd(s.buf[s.start:s.start+size])), reason, comma, cols)
	if err != nil {
		var e *Error
		if errors.As(err, &e) {
			e.Line = s.line
		}
		return s, err
	}
	s.head = head
	s.start += size
	s.line += lines
	return s, nil
}

func (s *csvSplitter) newParser() parser {
	comma, _ := utf8.DecodeRune(s.comma)
	return newCSVParser(s.head, comma)
}

// next implements splitter.
func (s *csvSplitter) next(b *block) error {
	b.line = s.line
	for !b.full() && s.line-b.line < blockLines {
		if err := s.scan(b); err != nil {
			return err
		}
	}
	return nil
}

// scan adds the next run of sound records to b, or one line that is skipped. Its error is that of the source.
func (s *csvSplitter) scan(b *block) error {
	if err := s.fill(); err != nil {
		return err
	}
	from, most := s.start, s.line+blockLines
	for s.start < s.end && s.start-from < blockBytes && s.line < most && (s.err == io.EOF || s.end-s.start >= lookahead) {
		if size := s.unquotedRun(); size > 0 {
			s.line += int64(bytes.Count(s.buf[s.start:s.start+size], emptyLine))
			s.start += size
			continue
		}
		size, n, suspect, reason := s.record(s.buf[s.start:s.end])
		if reason != "" {
			if s.start == from {
				return s.skip(b, size, n, reason)
			}
			break // sound records go first; the next call gets to this one again
		}
		if suspect {
			b.suspects = append(b.suspects, lines{s.line, s.line + n - 1})
		}
		s.start += size
		s.line += n
	}
	b.data = append(b.data, s.buf[from:s.start]...)
	return nil
}

// unquotedRun gives the size of lines that come next and have no quotes, as most have not: of as many as the longest record
// could hold, so that none of them is too long.
func (s *csvSplitter) unquotedRun() (size int) {
	if s.quote < s.start {
		s.quote = s.end
		if i := bytes.IndexByte(s.buf[s.start:s.end], '"'); i >= 0 {
			s.quote = s.start + i
		}
	}
	lines := s.buf[s.start:s.quote]
	return bytes.LastIndexByte(lines[:min(len(lines), maxRecord+1)], '\n') + 1
}

// fill reads until the next record can be scanned. It returns the error of the source after all that came before it was
// scanned, except up to lookahead bytes before an error other than io.EOF: their record may be incomplete.
func (s *csvSplitter) fill() error {
	if s.end-s.start < lookahead && s.err == nil {
		s.end = copy(s.buf, s.buf[s.start:s.end])
		s.start, s.quote = 0, -1
		for s.end < len(s.buf) && s.err == nil {
			var n int
			n, s.err = s.src.Read(s.buf[s.end:])
			s.end += n
		}
		s.open = s.err == io.EOF && s.end > 0 && s.buf[s.end-1] != '\n'
	}
	switch {
	case s.err == nil, s.err == io.EOF && s.start < s.end, s.end-s.start >= lookahead:
		return nil
	}
	return s.err
}

// at is the number of the line at which the source ended or broke.
func (s *csvSplitter) at() int64 {
	return s.line + int64(bytes.Count(s.buf[s.start:s.end], emptyLine))
}

// skip adds the n lines at start, or the one, to the bad ones of b. They have size bytes as far as they are in the buffer.
func (s *csvSplitter) skip(b *block, size int, n int64, reason string) error {
	raw := trimEnd(s.buf[s.start : s.start+size])
	b.skipBad(s.line, raw[:min(len(raw), maxRecord)], len(raw) > maxRecord, reason)
	for {
		ended := s.buf[s.start+size-1] == '\n'
		s.start += size
		if ended {
			break
		}
		if err := s.fill(); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		size = lineSize(s.buf[s.start:s.end])
	}
	s.line += n
	b.data = append(b.data, bytes.Repeat(emptyLine, int(n))...)
	return nil
}

var emptyLine = []byte("\n")

// record scans the record at the start of b, which is all that is left of the source or at least lookahead bytes.
// A sound record has size bytes and n lines; it is suspect if it has several lines of which some could be records
// themselves. Of one that is not sound, size and n are what is to be skipped.
func (s *csvSplitter) record(b []byte) (size int, n int64, suspect bool, reason string) {
	size = lineSize(b)
	line := trimEnd(b[:size])
	switch {
	case len(line) > maxRecord:
		return size, 1, false, fmt.Sprintf("the line is over %d KiB", maxRecord>>10)
	case bytes.IndexByte(line, '"') < 0:
		return size, 1, false, ""
	}
	whole, n, fields, reason := s.quoted(b[:min(len(b), lookahead)], s.err == io.EOF && len(b) <= lookahead)
	if reason == "" && s.head != nil {
		if reason = fieldCount(fields, len(s.head.cols)); reason != "" && n > 1 {
			reason = fmt.Sprintf("a quote opens here and closes in line %d, which leaves %s", s.line+n-1, reason)
			return whole, n, false, reason
		}
	}
	if reason != "" {
		return size, 1, false, reason
	}
	return whole, n, n > 1 && s.holdsRecord(trimEnd(b[size:whole])), ""
}

// fieldCount says that a record has another number of fields than the header, or "" if it has as many.
func fieldCount(fields, header int) string {
	switch fields {
	case header:
		return ""
	case 1:
		return fmt.Sprintf("1 field where the header has %d", header)
	}
	return fmt.Sprintf("%d fields where the header has %d", fields, header)
}

// quoted walks through a record with quotes in it. b ends with the source if last is set, else it is cut.
func (s *csvSplitter) quoted(b []byte, last bool) (size int, lines int64, fields int, reason string) {
	const unclosed = "a quote opens here and is never closed"
	eol := lineSize(b) // where the line that i stands in ends
	i := 0
	lines, fields = 1, 1
	fail := func(here string) (int, int64, int, string) {
		if lines > 1 {
			here = unclosed
		}
		return 0, 0, 0, here
	}
	for ; ; fields++ {
		if i < len(b) && b[i] == '"' {
			for i++; ; i += 2 {
				j := bytes.IndexByte(b[i:], '"')
				if j < 0 {
					if last {
						return fail(unclosed)
					}
					return fail(fmt.Sprintf("%s within %d KiB", unclosed, maxRecord>>10))
				}
				i += j
				if i+1 == len(b) || b[i+1] != '"' {
					break
				}
			}
			i++
			for i > eol {
				eol += lineSize(b[eol:])
				lines++
			}
			rest := b[i:eol]
			switch {
			case bytes.HasPrefix(rest, s.comma):
				i += len(s.comma)
				continue
			case len(trimEnd(rest)) > 0:
				return fail("text follows a closing quote")
			}
		} else {
			rest := trimEnd(b[i:eol])
			j := bytes.Index(rest, s.comma)
			field := rest
			if j >= 0 {
				field = rest[:j]
			}
			if bytes.IndexByte(field, '"') >= 0 {
				return fail("a quote stands in a field that does not begin with one")
			}
			if j >= 0 {
				i += j + len(s.comma)
				continue
			}
		}
		if len(trimEnd(b[:eol])) > maxRecord {
			return fail(fmt.Sprintf("the record is over %d KiB", maxRecord>>10))
		}
		return eol, lines, fields, ""
	}
}

// holdsRecord tells whether a line of b by itself could be a record.
func (s *csvSplitter) holdsRecord(b []byte) bool {
	for s.head != nil && len(b) > 0 {
		size := lineSize(b)
		line := trimEnd(b[:size])
		b = b[size:]
		if len(line) == 0 {
			continue
		}
		if _, lines, fields, reason := s.quoted(line, true); reason == "" && lines == 1 && fields == len(s.head.cols) {
			return true
		}
	}
	return false
}

// lineSize is the length of the first line of b with its end, or of all of b when no line ends in it.
func lineSize(b []byte) int {
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		return i + 1
	}
	return len(b)
}

// trimEnd takes off a line end: LF, CRLF, or the lone CR that encoding/csv drops before the end of a file.
func trimEnd(line []byte) []byte {
	for _, end := range [...]byte{'\n', '\r'} {
		if n := len(line); n > 0 && line[n-1] == end {
			line = line[:n-1]
		}
	}
	return line
}
