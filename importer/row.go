package importer

import "unicode/utf8"

// A row is one input record that could be read, before any check.
type row struct {
	position      // where the record begins
	field         [numColumns]string
	noType        bool   // the input has no type: the id that is there decides
	noOwner       bool   // the input has no user
	invalidReason string // why the row is invalid, if its fields do not show that; else ""
}

// A rowHandler receives what a parser finds. The row is only valid during the call.
type rowHandler interface {
	row(r *row)                              // a record that could be read
	reject(r *row, code, reason string)      // a record that could not; r has the fields that could be found
	refuse(line int64, problem, hint string) // what is there from this line on cannot be read; the input is refused
	warn(at position, text string)
	ignore(name string) // a column or key that is none of ours; may be called again for the same one
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
