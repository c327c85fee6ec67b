package importer

import (
	"encoding/binary"

	"groupferry/internal/job"
)

// A spooledRow is a valid row on its way through the spool, about as long as in CSV:
//
//	│ size, user │ size, group name │ size, type digit, id │ input, line │
//	└─────────── group ─────────────┴─────── entry ────────┬─────────────┘
//	                                └──── conversation ────┘  uvarints
//
// Sizes are one byte each; what they count has at most 49 bytes. A spooledRow shares the memory that it was decoded from.
type spooledRow struct {
	group groupKey
	entry entry
}

// A groupKey names a group: its user and its name, each behind its size.
type groupKey []byte

func (k groupKey) user() []byte { return k[1:][:k[0]] }
func (k groupKey) name() []byte { return k[2+k[0]:] }

// renamed is the key of a group of the same user with another name.
func (k groupKey) renamed(name []byte) groupKey {
	key := append(make(groupKey, 0, 2+int(k[0])+len(name)), k[:1+k[0]]...)
	return append(append(key, byte(len(name))), name...)
}

// An entry is what a row adds to its group: a conversation, and the place of the row in the input.
type entry struct {
	bytes []byte
	conv  int // length of the conversation in bytes
}

func (e entry) conversation() []byte { return e.bytes[:e.conv] }
func (e entry) kind() int            { return int(e.bytes[1]&^(againBit|keepBit|removeBit) - '0') }
func (e entry) again() bool          { return e.bytes[1]&againBit != 0 }
func (e entry) id() []byte           { return e.bytes[2:e.conv] }

// Bits in the type digit of a laid out job.
const (
	againBit  = 0x40 // [job.Conversation.Again]
	keepBit   = 0x08 // [job.Keep]
	removeBit = 0x80 // [job.Remove]
)

func (e entry) op() job.Op {
	switch {
	case e.bytes[1]&keepBit != 0:
		return job.Keep
	case e.bytes[1]&removeBit != 0:
		return job.Remove
	}
	return job.Add
}

func (e entry) position() position {
	file, n := binary.Uvarint(e.bytes[e.conv:])
	line, _ := binary.Uvarint(e.bytes[e.conv+n:])
	return position{int(file), int64(line)}
}

// appendSpooledRow encodes a valid row for the conversation (kind, id).
func appendSpooledRow(b []byte, r *row, kind int, id string) []byte {
	b = append(append(b, byte(len(r.field[colFrom]))), r.field[colFrom]...)
	b = append(append(b, byte(len(r.field[colGroup]))), r.field[colGroup]...)
	b = append(append(b, byte(1+len(id)), byte('0'+kind)), id...)
	b = binary.AppendUvarint(b, uint64(r.file))
	return binary.AppendUvarint(b, uint64(r.line))
}

// decodeSpooledRow decodes the first row of b.
func decodeSpooledRow(b []byte) (r spooledRow, rest []byte) {
	r.group, b = decodeGroupKey(b)
	r.entry, rest = decodeEntry(b)
	return r, rest
}

func decodeGroupKey(b []byte) (k groupKey, rest []byte) {
	n := 1 + int(b[0])
	n += 1 + int(b[n])
	return b[:n:n], b[n:]
}

func decodeEntry(b []byte) (e entry, rest []byte) {
	conv := 1 + int(b[0])
	n := conv
	for range 2 {
		for b[n] >= 0x80 {
			n++
		}
		n++
	}
	return entry{b[:n:n], conv}, b[n:]
}

// fields are those of the row as an input has them.
func (r spooledRow) fields() (f [numColumns]string) {
	f[colFrom], f[colGroup] = string(r.group.user()), string(r.group.name())
	f[colType] = string(r.entry.bytes[1:2])
	if r.entry.kind() == job.GroupChat {
		f[colChat] = string(r.entry.id())
	} else {
		f[colUser] = string(r.entry.id())
	}
	return f
}
