package importer

import (
	"encoding/binary"
	"fmt"

	"groupferry/internal/job"
)

// A block is a piece of an input on its way from the splitter to the spool: some whole records, and what became of them.
//
//	one goroutine       a parser on each core          the caller's goroutine
//
//	splitter ─► block ─┬─► rows parsed, validated ─┬─► in the order of the input: spool, counts
//	           block ─┘                           │
//	             ▲                                ▼
//	             └─────────── used again ─────────┘
type block struct {
	file     int
	line     int64  // physical line at which data begins
	data     []byte // whole records; an empty line stands for each that was skipped
	bad      []badLine
	raw      []byte // of the bad lines, one behind the other
	suspects []lines
	rows     []row // where the splitter makes rows itself

	result blockResult
	done   chan struct{} // one signal when result is complete
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

// blockBytes is about the size of a block: enough rows that handing it on costs nothing, and so little that the blocks
// in work fit into the caches of a core.
const blockBytes = 128 << 10

// A block that has blockLines is full as well: short lines can all be rejects, and these take more memory.
const blockLines = blockBytes / 16

func (b *block) reset(file int) {
	b.file, b.line = file, 0
	b.data, b.bad, b.raw, b.suspects, b.rows = b.data[:0], b.bad[:0], b.raw[:0], b.suspects[:0], b.rows[:0]
	b.result.reset()
}

// full tells when to hand the block on. Lines that were skipped count too: there may be nothing else.
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

// A splitter cuts an input into blocks. The parsers that it makes read them, each in a goroutine of its own.
type splitter interface {
	// next adds records to an empty block until it is full or the input ends. The error is that of the input, io.EOF at
	// its end, or an [*Error] without a file; the block counts all the same.
	next(*block) error
	newParser() parser
	at() int64 // the physical line that next has come to
}

// A parser makes rows of the records of a block.
type parser interface {
	parse(*block, rowHandler)
}

// A blockResult is what becomes of the rows of a block: they are validated, and encoded for the spool.
type blockResult struct {
	validator  *validator
	rows       []byte // the partition, the size, and the spooled row of each valid one
	rejects    []byte // spooled
	rejectEnds []int  // where each of them ends
	summary    Summary
	findings   findings
	ignored    []string
}

func (o *blockResult) reset() {
	*o = blockResult{validator: o.validator, rows: o.rows[:0], rejects: o.rejects[:0], rejectEnds: o.rejectEnds[:0]}
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
	if kind := foreignID(id, kind == job.OneToOne); kind != nothingFound {
		o.findings.found(kind, r.position)
	}
	head := len(o.rows)
	o.rows = binary.LittleEndian.AppendUint16(o.rows, uint16(partitionOf(hashUser(r.field[colFrom]), 0, partitionBits)))
	o.rows = appendSpooledRow(append(o.rows, 0), r, kind, id)
	o.rows[head+2] = byte(len(o.rows) - head - 3)
}

// eachRow calls f with the valid rows and their partitions.
func (o *blockResult) eachRow(f func(partition int, row []byte) error) error {
	for b := o.rows; len(b) > 0; {
		n := 3 + int(b[2])
		if err := f(int(binary.LittleEndian.Uint16(b)), b[3:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// eachReject calls f with the spooled rejects.
func (o *blockResult) eachReject(f func(reject []byte) error) error {
	from := 0
	for _, to := range o.rejectEnds {
		if err := f(o.rejects[from:to]); err != nil {
			return err
		}
		from = to
	}
	return nil
}

// reject implements rowHandler.
func (o *blockResult) reject(r *row, code, reason string) {
	o.summary.Rows++
	o.summary.reject(code, 1)
	for i, f := range r.field {
		r.field[i] = cutText(f)
	}
	// The reject file always has a type column, so what the type was taken for has to be said there: the row could
	// not be fixed otherwise without adding it.
	fields := r.field
	if fields[colType] == "" && r.noType {
		if kind, why := r.kind(); why == nil {
			fields[colType] = fmt.Sprint(kind)
		}
	}
	// And a record that could not be read must not slip in unfixed because what is left of it looks like a row.
	// Such a row has one id, which tells the type, so nothing is lost.
	if _, _, why := o.validator.validate(&row{field: fields}); why == nil {
		fields[colType] = ""
	}
	o.rejects = appendReject(o.rejects, r.position, invalid{code, reason}, &fields)
	o.rejectEnds = append(o.rejectEnds, len(o.rejects))
}

// warn implements rowHandler.
func (o *blockResult) warn(at position, text string) {
	o.findings.warn(Warning{Text: text, Line: at.line, file: at.file})
}

// ignore implements rowHandler.
func (o *blockResult) ignore(name string) { o.ignored = append(o.ignored, cutText(name)) }
