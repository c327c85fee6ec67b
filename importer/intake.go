package importer

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"groupferry/internal/job"
)

// An intake gathers what the parsers find in all inputs.
type intake struct {
	options
	spool    *spool
	files    []string // names, in the order of reading
	digest   hash.Hash
	parts    [partitions]tape // accepted rows by hash of the user
	rejects  tape
	summary  Summary
	findings findings
	notices  []string
	ignored  []ignored
	blocks   []*block // to be used again
	progress Progress
	read     atomic.Int64 // bytes, before decompression
	told     time.Time    // when Config.Progress was last called
}

// ignored are the names in one input that are none of our columns.
type ignored struct {
	file  int
	names []string
	more  bool
}

func newIntake(o options, s *spool) *intake {
	in := &intake{options: o, spool: s, digest: sha256.New(), rejects: tape{spool: s}}
	for i := range in.parts {
		in.parts[i].spool = s
	}
	in.summary.RejectCodes = map[string]int64{}
	// Should the same rows ever come to other jobs, the number changes, and old imports are not mistaken for new ones.
	io.WriteString(in.digest, "groupferry import 1\n")
	return in
}

// collect takes what became of a block. Blocks come in the order of the input.
func (in *intake) collect(o *outcome) error {
	for b := o.rows; len(b) > 0; {
		part, n := binary.LittleEndian.Uint16(b), int(b[2])
		if err := in.parts[part].add(b[3 : 3+n]); err != nil {
			return err
		}
		b = b[3+n:]
	}
	from := 0
	for _, to := range o.rejectEnds {
		if err := in.rejects.add(o.rejects[from:to]); err != nil {
			return err
		}
		from = to
	}
	in.summary.Rows += o.total
	in.summary.Rejected += int64(len(o.rejectEnds))
	for code, n := range o.codes {
		in.summary.RejectCodes[code] += n
	}
	in.findings.add(&o.findings)
	for _, name := range o.ignored {
		in.ignore(o.file, name)
	}
	return nil
}

// An outcome is what became of the rows of a block. It is the sink of the parser that has the block in hand.
type outcome struct {
	in         *options
	file       int
	rows       []byte // the partition, the size, and the stored row of each accepted one
	rejects    []byte // stored
	rejectEnds []int  // where each of them ends
	total      int64
	codes      map[string]int64 // of the rejects
	findings   findings
	ignored    []string
}

func (o *outcome) reset() {
	o.rows, o.rejects, o.rejectEnds, o.total = o.rows[:0], o.rejects[:0], o.rejectEnds[:0], 0
	o.findings, o.ignored = findings{}, nil
	clear(o.codes)
}

// translate makes of a row what was asked for beside its own fields.
func (o *options) translate(r *row) {
	if r.unowned && o.Owner != "" {
		r.field[colFrom] = o.Owner
	}
	if o.preset.translate != nil && r.wrong == "" {
		o.preset.translate(r)
	}
}

// check is that of the row, by the new names of its ids if they get any. It changes r to them, and nothing else.
func (o *options) check(r *row) (kind int, id string, f *fault) {
	if o.ids != nil && r.wrong == "" {
		if f := o.ids.rename(r); f != nil {
			return 0, "", f
		}
	}
	return r.check()
}

func (o *outcome) row(r *row) {
	o.in.translate(r)
	was := r.field
	kind, id, f := o.in.check(r)
	if f != nil {
		r.field = was
		o.reject(r, f.code, f.reason)
		return
	}
	o.total++
	if kind := looksForeign(id, kind == job.OneToOne); kind != native {
		o.findings.foreign[kind].found(r.file, r.line)
	}
	head := len(o.rows)
	o.rows = binary.LittleEndian.AppendUint16(o.rows, uint16(spread(r.field[colFrom])>>(64-partitionBits)))
	o.rows = appendStored(append(o.rows, 0), r, kind, id)
	o.rows[head+2] = byte(len(o.rows) - head - 3)
}

func (o *outcome) reject(r *row, code, reason string) {
	o.total++
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
	if _, _, f := o.in.check(&row{field: fields}); f == nil {
		fields[colType] = ""
	}
	o.rejects = appendReject(o.rejects, r.file, r.line, code, reason, &fields)
	o.rejectEnds = append(o.rejectEnds, len(o.rejects))
	if o.codes == nil {
		o.codes = map[string]int64{}
	}
	o.codes[code]++
}

func (o *outcome) warn(file int, line int64, text string) {
	o.findings.warn(Warning{Text: text, Line: line, file: file})
}

func (o *outcome) ignore(file int, name string) {
	o.file = file
	o.ignored = append(o.ignored, cutText(name))
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
		names := at.names
		if !slices.ContainsFunc(resultColumns, func(name string) bool { return !slices.Contains(names, name) }) {
			names = slices.DeleteFunc(slices.Clone(names), func(name string) bool {
				return slices.Contains(resultColumns, name)
			})
		}
		if len(names) == 0 {
			continue
		}
		quoted := make([]string, len(names))
		for i, name := range names {
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
