package importer

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// An intake gathers what the readers find in all inputs. It is their sink.
type intake struct {
	options
	files    []string // names, in the order of reading
	digest   hash.Hash
	groups   *grouping
	summary  Summary
	rejects  []Reject
	warnings []Warning
	notices  []string
	ignored  []ignored
	progress Progress
	told     time.Time // when Config.Progress was last called
}

// ignored are the names in one input that are none of our columns.
type ignored struct {
	file  int
	names []string
	more  bool
}

func newIntake(o options) *intake {
	in := &intake{options: o, digest: sha256.New(), groups: newGrouping()}
	in.summary.RejectCodes = map[string]int64{}
	// Should the same rows ever come to other jobs, the number changes, and old imports are not mistaken for new ones.
	io.WriteString(in.digest, "groupferry import 1\n")
	return in
}

func (in *intake) row(r *row) {
	kind, id, f := r.check()
	if f != nil {
		in.reject(r, f.code, f.reason)
		return
	}
	in.summary.Rows++
	in.groups.add(r, kind, id)
}

func (in *intake) reject(r *row, code, reason string) {
	in.summary.Rows++
	for i, f := range r.field {
		r.field[i] = cutText(f)
	}
	// The reject file always has a type column, so what the type was taken for has to be said there: the row could
	// not be mended otherwise without adding it.
	fields := r.field
	if fields[colType] == "" && r.untyped {
		if kind, f := r.kind(); f == nil {
			fields[colType] = fmt.Sprint(kind)
		}
	}
	// And a record that could not be read must not slip in unmended because what is left of it looks like a row.
	// Such a row has one id, which tells the type, so nothing is lost.
	if _, _, f := (&row{field: fields}).check(); f == nil {
		fields[colType] = ""
	}
	in.addReject(r.file, r.line, code, reason, fields)
}

// addReject adds a reject of which the row has been counted.
func (in *intake) addReject(file int, line int64, code, reason string, fields [numColumns]string) {
	in.summary.Rejected++
	in.summary.RejectCodes[code]++
	// The fields are parts of longer strings, which must not stay in memory for them.
	in.rejects = append(in.rejects, Reject{
		File: in.files[file], Line: line, Code: code, Reason: reason,
		FromAccount: strings.Clone(fields[colFrom]), GroupName: strings.Clone(fields[colGroup]),
		Type: strings.Clone(fields[colType]), ToAccount: strings.Clone(fields[colUser]),
		ToGroupID: strings.Clone(fields[colChat]), file: file,
	})
}

func (in *intake) warn(file int, line int64, text string) {
	in.warnings = append(in.warnings, Warning{Text: text, File: in.files[file], Line: line, file: file})
}

// maxIgnored is how many ignored names of one input are told.
const maxIgnored = 20

func (in *intake) ignore(file int, name string) {
	if len(in.ignored) == 0 || in.ignored[len(in.ignored)-1].file != file {
		in.ignored = append(in.ignored, ignored{file: file})
	}
	at := &in.ignored[len(in.ignored)-1]
	if name = cutText(name); slices.Contains(at.names, name) {
		return
	}
	if len(at.names) == maxIgnored {
		at.more = true
		return
	}
	at.names = append(at.names, name)
}

// ignoredNotices says what was ignored, once for all inputs in which the same was.
func (in *intake) ignoredNotices() []string {
	var order []string
	files := map[string][]string{}
	for _, at := range in.ignored {
		quoted := make([]string, len(at.names))
		for i, name := range at.names {
			quoted[i] = fmt.Sprintf("%q", name)
		}
		text := "columns ignored: " + strings.Join(quoted, ", ")
		if at.more {
			text += ", …"
		}
		if files[text] == nil {
			order = append(order, text)
		}
		files[text] = append(files[text], in.files[at.file])
	}
	for i, text := range order {
		where := files[text][0]
		if n := len(files[text]) - 1; n > 0 {
			where += fmt.Sprintf(" and %d more", n)
		}
		order[i] = where + ": " + text
	}
	return order
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
