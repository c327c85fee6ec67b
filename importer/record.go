package importer

import (
	"encoding/binary"

	"groupferry/internal/job"
)

// An accepted row on its way through the spool, about as long as in CSV:
//
//	│ size, user │ size, group name │ size, type digit, id │ input, line │
//	└───────── group key ───────────┴─────── member ───────────────┬─────┘
//	                                └── conversation ──┘           └ uvarints
//
// Sizes are a byte each; what they count has been checked and has at most 49 bytes.

// maxStored is the longest stored row in bytes.
const maxStored = 1 + 32 + 1 + 32 + 1 + 1 + 48 + 2*binary.MaxVarintLen64

// appendStored stores a row that has passed its check.
func appendStored(b []byte, r *row, kind int, id string) []byte {
	b = append(append(b, byte(len(r.field[colFrom]))), r.field[colFrom]...)
	b = append(append(b, byte(len(r.field[colGroup]))), r.field[colGroup]...)
	b = append(append(b, byte(1+len(id)), byte('0'+kind)), id...)
	b = binary.AppendUvarint(b, uint64(r.file))
	return binary.AppendUvarint(b, uint64(r.line))
}

// A stored is a row cut from the spool. Its parts share the memory of what it was cut from.
type stored struct {
	key    []byte // sizes, user, group name
	member []byte // size, type digit, id, input, line
	conv   int    // length of the conversation in member
}

// cutStored cuts the first row from b.
func cutStored(b []byte) (s stored, rest []byte) {
	n := 1 + int(b[0])
	n += 1 + int(b[n])
	s.key, b = b[:n:n], b[n:]
	s.member, s.conv, rest = cutMember(b)
	return s, rest
}

// cutMember cuts the first member from b.
func cutMember(b []byte) (member []byte, conv int, rest []byte) {
	conv = 1 + int(b[0])
	n := conv
	for range 2 {
		for b[n] >= 0x80 {
			n++
		}
		n++
	}
	return b[:n:n], conv, b[n:]
}

func keyUser(key []byte) []byte { return key[1 : 1+key[0]] }
func keyName(key []byte) []byte { return key[2+key[0]:] }

// place tells where a member stood in the input.
func place(member []byte, conv int) (file int, line int64) {
	f, n := binary.Uvarint(member[conv:])
	l, _ := binary.Uvarint(member[conv+n:])
	return int(f), int64(l)
}

// fields are those of a row that passed its check, and share its memory.
func (s stored) fields() (f [numColumns][]byte) {
	f[colFrom], f[colGroup], f[colType] = keyUser(s.key), keyName(s.key), s.member[1:2]
	if id := s.member[2:s.conv]; int(s.member[1]-'0') == job.GroupChat {
		f[colChat] = id
	} else {
		f[colUser] = id
	}
	return f
}
