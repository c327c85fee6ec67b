package importer

import (
	"fmt"

	"groupferry/internal/job"
)

// A block is a piece of an input between the splitter and the spool: some whole records, and their result.
//
//	one goroutine       up to 4 parsers                the caller's goroutine
//
//	splitter ─► block ─┬─► rows parsed, validated ─┬─► in the order of the input: spool, counts
//	           block ─┘                           │
//	             ▲                                ▼
//	             └───────────── reused ───────────┘
type block struct {
	file     int
	line     int64  // physical line at which data begins
	data     []byte // whole records; an empty line replaces each one that was skipped
	bad      []badLine
	raw      []byte // the bad lines, concatenated
	suspects []lines
	rows     []row // if the splitter makes rows itself

	result blockResult
	done   chan struct{} // gets one signal when result is complete
}

// A badLine was skipped by the splitter because it is no record.
type badLine struct {
	line     int64
	from, to int  // of block.raw
	cut      bool // there was more of it
	reason   string
}

// Lines are those from first to last.
type lines struct{ first, last int64 }

// blockBytes is the approximate size of a block: large against the cost of a channel, and small enough that the blocks
// being parsed fit into the caches of a core.
const blockBytes = 128 << 10

// A block of blockLines is full as well: short lines can all be rejects, which take more memory than rows.
const blockLines = blockBytes / 16

func (b *block) reset(file int) {
	b.file, b.line = file, 0
	b.data, b.bad, b.raw, b.suspects, b.rows = b.data[:0], b.bad[:0], b.raw[:0], b.suspects[:0], b.rows[:0]
	b.result.reset()
}

// full reports whether to pass the block on. Skipped lines count too: there may be nothing else.
func (b *block) full() bool {
	return len(b.data)+len(b.raw)+64*len(b.bad) >= blockBytes || len(b.rows) >= blockBytes/64
}

func (b *block) empty() bool { return len(b.data) == 0 && len(b.bad) == 0 && len(b.rows) == 0 }

// skipBad adds a line that is no record. raw is its beginning at least, and is not kept.
func (b *block) skipBad(line int64, raw []byte, cut bool, reason string) {
	from := len(b.raw)
	b.raw = append(b.raw, raw...)
	b.bad = append(b.bad, badLine{line, from, len(b.raw), cut, reason})
}

// A splitter cuts an input into blocks. Its parsers parse them, each in its own goroutine.
type splitter interface {
	// next adds records to an empty block until it is full or the input ends. The error is that of the input, io.EOF at
	// its end, or an [*Error] without a file; the block counts all the same.
	next(*block) error
	newParser() parser
	at() int64 // the physical line that next has reached
}

// A parser makes rows of the records of a block.
type parser interface {
	parse(*block, rowHandler)
}

// A blockResult is what the rows of a block become: validated, and encoded for the spool.
type blockResult struct {
	validator *validator
	records   []byte // concatenated
	ends      []recordEnd
	summary   Summary
	findings  findings
	ignored   []string
	refused   *Error // without a file; nil if the block could be read
}

// A recordEnd says where a record ends, and to which partition it belongs: a row, or rejected.
type recordEnd struct{ end, partition int32 }

// rejected is in the place of a partition.
const rejected = -1

func (o *blockResult) reset() {
	*o = blockResult{validator: o.validator, records: o.records[:0], ends: o.ends[:0]}
}

// row implements rowHandler.
func (o *blockResult) row(r *row) {
	o.validator.complete(r)
	kind, id, why := o.validator.validate(r)
	if why != nil {
		o.reject(r, why.code, why.reason)
		return
	}
	o.summary.Rows++
	if id != "" { // else only users matter
		if kind := foreignID(id, kind == job.OneToOne); kind != nothingFound {
			o.findings.found(kind, r.position)
		}
	}
	o.records = appendSpooledRow(o.records, r, kind, id)
	partition := partitionOf(hashUser(r.field[colFrom]), 0, partitionBits)
	o.ends = append(o.ends, recordEnd{int32(len(o.records)), int32(partition)})
}

// reject implements rowHandler.
func (o *blockResult) reject(r *row, code, reason string) {
	o.summary.Rows++
	o.summary.reject(code, 1)
	for i, f := range r.field {
		r.field[i] = cutText(f)
	}
	// The reject file always has a type column, so an inferred type goes there: else the row could not be fixed without
	// adding it.
	fields := r.field
	if fields[colType] == "" && r.noType {
		if kind, why := conversationType(r); why == nil {
			fields[colType] = fmt.Sprint(kind)
		}
	}
	// A record that could not be read must not slip in unfixed because what is left of it looks like a row. Such a row
	// has one id, which implies the type, so nothing is lost.
	if _, _, why := o.validator.validate(&row{field: fields}); why == nil {
		fields[colType] = ""
	}
	o.records = appendReject(o.records, r.position, invalid{code, reason}, &fields)
	o.ends = append(o.ends, recordEnd{int32(len(o.records)), rejected})
}

// refuse implements rowHandler.
func (o *blockResult) refuse(line int64, problem, hint string) {
	o.refused = &Error{Line: line, Problem: problem, Hint: hint}
}

// warn implements rowHandler.
func (o *blockResult) warn(at position, text string) {
	o.findings.warn(Warning{Text: text, Line: at.line, file: at.file})
}

// ignore implements rowHandler.
func (o *blockResult) ignore(name string) { o.ignored = append(o.ignored, cutText(name)) }
