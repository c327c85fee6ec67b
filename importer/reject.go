package importer

import (
	"bufio"
	"bytes"
	"cmp"
	"container/heap"
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"groupferry/internal/chat"
)

// The first byte of a stored reject. Behind it stand, for one of its own, input, line, code, reason and the fields,
// and for a row over a limit the stored row.
const (
	ownReject byte = iota
	excessConversation
	excessGroup
)

// What a row over a limit is rejected for, by the first byte.
var (
	excessCodes   = [...][]byte{excessConversation: []byte(codeTooManyConversations), excessGroup: []byte(codeTooManyGroups)}
	excessReasons = [...][]byte{
		excessConversation: fmt.Appendf(nil, "the group is full: %d conversations at most", chat.MaxConversationsPerGroup),
		excessGroup:        fmt.Appendf(nil, "the user has %d groups before this one, %[1]d at most", chat.MaxGroupsPerUser),
	}
)

// A rejected is a stored reject. Its parts share the memory of what it was cut from.
type rejected struct {
	file         int // index of the input
	line         int64
	code, reason []byte
	fields       [numColumns][]byte
}

func appendReject(b []byte, file int, line int64, code, reason string, fields *[numColumns]string) []byte {
	b = append(b, ownReject)
	b = binary.AppendUvarint(b, uint64(file))
	b = binary.AppendUvarint(b, uint64(line))
	b = appendText(appendText(b, code), reason)
	for _, f := range fields {
		b = appendText(b, f)
	}
	return b
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// cut cuts the first reject from b.
func (r *rejected) cut(b []byte) (rest []byte) {
	kind := b[0]
	if kind != ownReject {
		s, rest := cutStored(b[1:])
		r.file, r.line = place(s.member, s.conv)
		r.code, r.reason, r.fields = excessCodes[kind], excessReasons[kind], s.fields()
		return rest
	}
	b = b[1:]
	number := func() uint64 {
		n, size := binary.Uvarint(b)
		b = b[size:]
		return n
	}
	text := func() (s []byte) {
		n := number()
		s, b = b[:n], b[n:]
		return s
	}
	r.file, r.line = int(number()), int64(number())
	r.code, r.reason = text(), text()
	for i := range r.fields {
		r.fields[i] = text()
	}
	return b
}

// Rejects goes through the rejected rows by input, then by line. It may be ranged over any number of times, also at
// once; ask Err afterwards.
func (p *Plan) Rejects() iter.Seq[Reject] {
	return func(yield func(Reject) bool) {
		for r := range p.rejected() {
			f := &r.fields
			if !yield(Reject{
				File: p.files[r.file], Line: r.line, Code: string(r.code), Reason: string(r.reason),
				FromAccount: string(f[colFrom]), GroupName: string(f[colGroup]), Type: string(f[colType]),
				ToAccount: string(f[colUser]), ToGroupID: string(f[colChat]),
			}) {
				return
			}
		}
	}
}

// rejected goes through the same as Rejects. What it gives is gone after the turn.
func (p *Plan) rejected() iter.Seq[*rejected] {
	return func(yield func(*rejected) bool) {
		// Rows that were rejected as they came, and those of each partition that went over a limit, are in order by
		// themselves: they need to be merged only.
		var m merge
		start := func(t *tape) bool {
			c := &cursor{spool: p.spool, tape: t, number: len(m)}
			more, err := c.next()
			if err != nil {
				p.fail(err)
				return false
			}
			if more {
				m = append(m, c)
			}
			return true
		}
		if !start(&p.rejects) {
			return
		}
		for _, r := range p.runs {
			if !start(&r.excess) {
				return
			}
		}
		heap.Init(&m)
		for len(m) > 0 {
			if !yield(&m[0].head) {
				return
			}
			switch more, err := m[0].next(); {
			case err != nil:
				p.fail(err)
				return
			case more:
				heap.Fix(&m, 0)
			default:
				heap.Pop(&m)
			}
		}
	}
}

// WriteRejects writes the rejects as CSV: our five columns, which can be mended and imported as they are, and code,
// reason, file and line, which an import skips.
func (p *Plan) WriteRejects(w io.Writer) error {
	out := bufio.NewWriterSize(w, 64<<10)
	line := []byte(strings.Join(append(columnNames[:], extraColumns...), ",") + "\n")
	// An error stays with the writer until it is asked for at the end.
	_, _ = out.Write(line)
	// Code and reason of the reject before, which most have again, and both with the file as they are written.
	var code, reason, why []byte
	file := -1
	for r := range p.rejected() {
		if r.file != file || !bytes.Equal(r.code, code) || !bytes.Equal(r.reason, reason) {
			file, code, reason = r.file, append(code[:0], r.code...), append(reason[:0], r.reason...)
			why = append(appendField(why[:0], code), ',')
			why = append(appendField(why, reason), ',')
			why = append(appendField(why, []byte(p.files[file])), ',')
		}
		line = line[:0]
		for i := range r.fields {
			line = append(appendField(line, r.fields[i]), ',')
		}
		line = append(strconv.AppendInt(append(line, why...), r.line, 10), '\n')
		_, _ = out.Write(line)
	}
	if err := cmp.Or(p.Err(), out.Flush()); err != nil {
		return fmt.Errorf("write rejects: %w", err)
	}
	return nil
}

// appendField appends a field of CSV, byte for byte as encoding/csv does. That one wants strings, and took a twentieth
// of an import in which half of the rows are rejected.
func appendField(b, field []byte) []byte {
	quotes := false
	for _, c := range field {
		if c == ',' || c == '"' || c == '\r' || c == '\n' {
			quotes = true
			break
		}
	}
	if first, _ := utf8.DecodeRune(field); !quotes && !unicode.IsSpace(first) && string(field) != `\.` {
		return append(b, field...)
	}
	b = append(b, '"')
	for _, c := range field {
		if c == '"' {
			b = append(b, '"')
		}
		b = append(b, c)
	}
	return append(b, '"')
}

// A cursor goes through one sequence of rejects.
type cursor struct {
	spool  *spool
	tape   *tape
	number int // breaks ties: rows of one line are of one user, and so in one sequence or, after a split, in the next one
	piece  int // the next one
	buf    []byte
	b      []byte // what is left of the piece at hand
	head   rejected
}

func (c *cursor) next() (more bool, err error) {
	for len(c.b) == 0 {
		switch {
		case c.piece < len(c.tape.extents):
			e := c.tape.extents[c.piece]
			if c.b, err = c.spool.get(e, c.buf); err != nil {
				return false, err
			}
			if e.at >= 0 {
				c.buf = c.b
			}
		case c.piece == len(c.tape.extents):
			c.b = c.tape.buf
		default:
			return false, nil
		}
		c.piece++
	}
	c.b = c.head.cut(c.b)
	return true, nil
}

// A merge is a heap of cursors, the one with the next reject on top.
type merge []*cursor

func (m merge) Len() int { return len(m) }
func (m merge) Less(i, j int) bool {
	a, b := m[i], m[j]
	if a.head.file != b.head.file {
		return a.head.file < b.head.file
	}
	if a.head.line != b.head.line {
		return a.head.line < b.head.line
	}
	return a.number < b.number
}
func (m merge) Swap(i, j int) { m[i], m[j] = m[j], m[i] }
func (m *merge) Push(x any)   { *m = append(*m, x.(*cursor)) }
func (m *merge) Pop() any {
	old := *m
	c := old[len(old)-1]
	*m = old[:len(old)-1]
	return c
}
