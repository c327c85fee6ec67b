package importer

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"encoding/csv"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"

	"github.com/gocarina/gocsv"

	"groupferry/internal/chat"
)

// A Reject is a row that was rejected, with its fields as they are in the input, so that it can be fixed. A field is cut
// after 256 bytes. Of a record that could not be read it has the fields that could be found.
type Reject struct {
	FromAccount string `csv:"from_account"`
	GroupName   string `csv:"group_name"`
	Type        string `csv:"type"`
	ToAccount   string `csv:"to_account"`
	ToGroupID   string `csv:"to_group_id"`
	Code        string `csv:"code"`   // the API's code for the same error (50002, 51008, 51010, 51011), or parse
	Reason      string `csv:"reason"` // for people; contains no value of the row
	File        string `csv:"file"`   // name of the input
	Line        int64  `csv:"line"`   // physical line from 1; that of the record's beginning
}

// codeParse is the code of a record that cannot be read. All other codes of rejects are the API's own.
const codeParse = "parse"

var (
	codeBadParameter         = strconv.Itoa(chat.CodeBadParameter)
	codeTooManyConversations = strconv.Itoa(chat.CodeTooManyConversations)
	codeTooManyGroups        = strconv.Itoa(chat.CodeTooManyGroups)
	codeGroupNameTooLong     = strconv.Itoa(chat.CodeGroupNameTooLong)
)

// limitReasons say what a valid row is rejected for.
var limitReasons = map[verdict]invalid{
	tooManyConversations: {codeTooManyConversations,
		fmt.Sprintf("the group is full: %d conversations at most", chat.MaxConversationsPerGroup)},
	tooManyGroups: {codeTooManyGroups,
		fmt.Sprintf("the user has %d groups before this one, %[1]d at most", chat.MaxGroupsPerUser)},
}

// appendReject encodes a row that was rejected before it was spooled: a 0, its position, code, reason and fields. That of
// a row over a limit is shorter: its verdict, which is not 0, and the spooled row.
func appendReject(b []byte, at position, why invalid, fields *[numColumns]string) []byte {
	b = append(b, 0)
	b = binary.AppendUvarint(b, uint64(at.file))
	b = binary.AppendUvarint(b, uint64(at.line))
	b = appendText(appendText(b, why.code), why.reason)
	for _, f := range fields {
		b = appendText(b, f)
	}
	return b
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// decodeReject decodes the first reject of b.
func decodeReject(b []byte) (at position, why invalid, fields [numColumns]string, rest []byte) {
	if b[0] != 0 {
		row, rest := decodeSpooledRow(b[1:])
		return row.entry.position(), limitReasons[verdict(b[0])], row.fields(), rest
	}
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
	at = position{int(number()), int64(number())}
	why = invalid{text(), text()}
	for i := range fields {
		fields[i] = text()
	}
	return at, why, fields, b
}

// mergeRejects goes through the rejects of several logs by input, then by line, then by log. files are the names of the
// inputs.
func mergeRejects(logs []*recordLog, files []string) iter.Seq2[Reject, error] {
	return func(yield func(Reject, error) bool) {
		var open []*rejectReader // ordered by what they have read
		read := func(r *rejectReader) error {
			err := r.next()
			if err == nil {
				i, _ := slices.BinarySearchFunc(open, r, (*rejectReader).compare)
				open = slices.Insert(open, i, r)
			} else if err != io.EOF {
				yield(Reject{}, err)
				return err
			}
			return nil
		}
		for number, log := range logs {
			if read(&rejectReader{number: number, log: logReader{log: log}}) != nil {
				return
			}
		}
		for len(open) > 0 {
			r := open[0]
			f := r.fields
			if !yield(Reject{f[colFrom], f[colGroup], f[colType], f[colUser], f[colChat],
				r.why.code, r.why.reason, files[r.at.file], r.at.line}, nil) {
				return
			}
			open = slices.Delete(open, 0, 1)
			if read(r) != nil {
				return
			}
		}
	}
}

// A rejectReader reads a log of rejects one by one.
type rejectReader struct {
	number  int // of the log, which orders the rejects of one line
	log     logReader
	records []byte

	// what was read
	at     position
	why    invalid
	fields [numColumns]string
}

// next reads the next reject, or returns io.EOF.
func (r *rejectReader) next() (err error) {
	if len(r.records) == 0 {
		if r.records, err = r.log.next(); err != nil {
			return err
		}
	}
	r.at, r.why, r.fields, r.records = decodeReject(r.records)
	return nil
}

func (r *rejectReader) compare(q *rejectReader) int {
	return cmp.Or(r.at.compare(q.at), cmp.Compare(r.number, q.number))
}

// rejectsAtOnce is how many rejects are passed to gocsv at a time.
const rejectsAtOnce = 1000

// writeRejects writes rejects as CSV, with a header.
func writeRejects(w io.Writer, all iter.Seq2[Reject, error]) error {
	buf := bufio.NewWriterSize(w, 64<<10)
	out := gocsv.NewSafeCSVWriter(csv.NewWriter(buf))
	marshal := gocsv.MarshalCSV // with the header
	rejects := make([]Reject, 0, rejectsAtOnce)
	write := func() error {
		err := marshal(&rejects, out)
		marshal, rejects = gocsv.MarshalCSVWithoutHeaders, rejects[:0]
		return err
	}
	for r, err := range all {
		if err == nil {
			rejects = append(rejects, r)
			if len(rejects) == rejectsAtOnce {
				err = write()
			}
		}
		if err != nil {
			return fmt.Errorf("write rejects: %w", err)
		}
	}
	if err := cmp.Or(write(), buf.Flush()); err != nil {
		return fmt.Errorf("write rejects: %w", err)
	}
	return nil
}
