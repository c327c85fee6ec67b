package importer

import (
	"container/heap"
	"encoding/binary"
	"fmt"
	"iter"

	"groupferry/internal/chat"
)

// The first byte of a stored reject. Behind it stand, for one of its own, input, line, code, reason and the fields,
// and for a row over a limit the stored row.
const (
	ownReject byte = iota
	excessConversation
	excessGroup
)

// Half of an input can be rejected for one of these.
var (
	reasonTooManyConversations = fmt.Sprintf("the group is full: %d conversations at most", chat.MaxConversationsPerGroup)
	reasonTooManyGroups        = fmt.Sprintf("the user has %d groups before this one, %[1]d at most", chat.MaxGroupsPerUser)
)

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

// cutReject reads the first reject of b.
func (p *Plan) cutReject(b []byte) (r Reject, rest []byte) {
	var fields [numColumns]string
	switch kind := b[0]; kind {
	case ownReject:
		b = b[1:]
		number := func() uint64 {
			n, size := binary.Uvarint(b)
			b = b[size:]
			return n
		}
		text := func() string {
			n := number()
			s := string(b[:n])
			b = b[n:]
			return s
		}
		r.file, r.Line = int(number()), int64(number())
		r.Code, r.Reason = text(), text()
		for i := range fields {
			fields[i] = text()
		}
	default:
		var s stored
		s, b = cutStored(b[1:])
		r.file, r.Line = place(s.member, s.conv)
		fields = s.fields()
		r.Code, r.Reason = codeTooManyConversations, reasonTooManyConversations
		if kind == excessGroup {
			r.Code, r.Reason = codeTooManyGroups, reasonTooManyGroups
		}
	}
	r.File = p.files[r.file]
	r.FromAccount, r.GroupName, r.Type = fields[colFrom], fields[colGroup], fields[colType]
	r.ToAccount, r.ToGroupID = fields[colUser], fields[colChat]
	return r, b
}

// Rejects goes through the rejected rows by input, then by line. It may be ranged over any number of times, also at
// once; ask Err afterwards.
func (p *Plan) Rejects() iter.Seq[Reject] {
	return func(yield func(Reject) bool) {
		// Rows that were rejected as they came, and those of each partition that went over a limit, are in order by
		// themselves: they need to be merged only.
		var m merge
		start := func(t *tape) bool {
			c := &cursor{plan: p, tape: t, number: len(m)}
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
			if !yield(m[0].head) {
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

// A cursor goes through one sequence of rejects.
type cursor struct {
	plan   *Plan
	tape   *tape
	number int // breaks ties: rows of one line are of one user, and so in one sequence, or rejected as they came
	piece  int // the next one
	buf    []byte
	b      []byte // what is left of the piece at hand
	head   Reject
}

func (c *cursor) next() (more bool, err error) {
	for len(c.b) == 0 {
		switch {
		case c.piece < len(c.tape.extents):
			e := c.tape.extents[c.piece]
			if c.b, err = c.plan.spool.get(e, c.buf); err != nil {
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
	c.head, c.b = c.plan.cutReject(c.b)
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
	if a.head.Line != b.head.Line {
		return a.head.Line < b.head.Line
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
