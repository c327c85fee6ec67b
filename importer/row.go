package importer

import "unicode/utf8"

// A row is one input record that could be read, before any check.
type row struct {
	position      // where the record begins
	field         [numColumns]string
	noType        bool   // the input says nothing of a type: it goes by the id that is there
	noOwner       bool   // the input says nothing of a user
	invalidReason string // why a value cannot be one, where its text does not show that; "" if nothing is wrong
}

// A rowHandler takes what a parser finds. The row is the parser's and changes after the call.
type rowHandler interface {
	row(r *row)                         // a record that could be read
	reject(r *row, code, reason string) // a record that could not; r holds the fields that were still to be told apart
	warn(at position, text string)
	ignore(name string) // a column or key that is none of ours; may be told more than once
}

// maxText is the longest field in bytes that a reject keeps. No field of a valid row is longer than an id of 48
// bytes, so what is cut off here can never turn a bad row into a good one.
const maxText = 256

// cutText cuts s at a rune, after maxText bytes at most.
func cutText(s string) string {
	if len(s) <= maxText {
		return s
	}
	i := maxText
	for i > maxText-utf8.UTFMax && !utf8.RuneStart(s[i]) {
		i--
	}
	return s[:i]
}
