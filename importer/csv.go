package importer

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/gocarina/gocsv"
)

// A csvRow is what gocsv fills. All fields are strings because gocsv reads "", "1.9" and "010" as numbers without a
// word.
type csvRow struct {
	FromAccount string `csv:"from_account"`
	GroupName   string `csv:"group_name"`
	Type        string `csv:"type"`
	ToAccount   string `csv:"to_account"`
	ToGroupID   string `csv:"to_group_id"`
}

// otherName stands in the header that gocsv gets for every column that is not ours.
const otherName = "x"

// A csvInput cuts a CSV input into blocks of sound records.
type csvInput struct {
	split *splitter
	head  *header
	comma rune
}

// newCSV reads the header of an input, without its byte order mark. The error is that of src, or an [*Error] without a
// file for a header that cannot be used.
func newCSV(src io.Reader, comma rune, cols *columns) (*csvInput, error) {
	c := &csvInput{split: newSplitter(src, comma), comma: comma}
	var err error
	if c.head, err = c.split.header(cols); err != nil {
		return c, err
	}
	c.split.fields = len(c.head.cols)
	return c, nil
}

// others are the names of columns that are not ours.
func (c *csvInput) others() []string {
	var names []string
	for i, name := range c.head.texts {
		if c.head.cols[i] == colOther {
			names = append(names, strings.TrimSpace(name))
		}
	}
	return names
}

func (c *csvInput) at() int64 { return c.split.read() }

func (c *csvInput) next(b *block) error {
	s := c.split
	b.line = s.line
	s.bad = b.takeOut
	s.doubt = func(first, last int64) { b.doubt = append(b.doubt, [2]int64{first, last}) }
	for !b.full() && s.line-b.line < blockLines {
		if err := s.judge(); err != nil {
			return err
		}
		b.data = append(b.data, s.ready...)
	}
	return nil
}

func (c *csvInput) parser() parser {
	return &csvParser{
		csvInput: c,
		ours:     c.head.ours(c.comma),
		untyped:  !slices.Contains(c.head.cols, colType),
		unowned:  !slices.Contains(c.head.cols, colFrom),
		buf:      bufio.NewReaderSize(nil, maxRecord),
	}
}

// A csvParser has gocsv make rows of blocks.
type csvParser struct {
	*csvInput
	ours    string
	untyped bool
	unowned bool
	buf     *bufio.Reader
}

func (c *csvParser) parse(b *block, out sink) {
	for _, lines := range b.doubt {
		out.warn(b.file, lines[0], fmt.Sprintf("a quote makes one record of lines %d to %d, "+
			"though some of them look like rows: is it closed where it should be?", lines[0], lines[1]))
	}
	bad := b.bad
	takenOut := func(before int64) {
		for len(bad) > 0 && bad[0].line < before {
			r := c.head.salvage(b.raw[bad[0].from:bad[0].to], bad[0].cut, c.split.comma)
			r.file, r.line = b.file, bad[0].line
			out.reject(&r, codeParse, bad[0].reason)
			bad = bad[1:]
		}
	}
	defer takenOut(math.MaxInt64)

	// gocsv knows columns by one spelling only and fills nothing, without an error, where it does not find it. So it
	// gets a header of our making before each block; shift makes up for the line of that.
	c.buf.Reset(io.MultiReader(strings.NewReader(c.ours), bytes.NewReader(b.data)))
	parser := csv.NewReader(c.buf)
	parser.Comma = c.comma
	parser.FieldsPerRecord = len(c.head.cols)
	parser.ReuseRecord = true
	shift := b.line - 2
	rows, err := gocsv.NewUnmarshaller(parser, &csvRow{})
	if err != nil {
		panic(fmt.Sprintf("importer: gocsv refuses our own header %q: %v", c.ours, err))
	}
	r := row{file: b.file}
	for {
		v, err := rows.Read()
		if err == io.EOF {
			return
		}
		if err != nil {
			c.refused(b, parser.InputOffset(), shift, err, takenOut, out)
			continue
		}
		f := v.(*csvRow)
		at, _ := parser.FieldPos(0)
		r.line, r.untyped, r.unowned, r.wrong = int64(at)+shift, c.untyped, c.unowned, ""
		takenOut(r.line)
		r.field = [numColumns]string{f.FromAccount, f.GroupName, f.Type, f.ToAccount, f.ToGroupID}
		if c.head.again(&r) {
			out.reject(&r, codeParse, "the header stands here again")
			continue
		}
		out.row(&r)
	}
}

// refused rejects what the parser has just refused: a line without quotes that has another number of fields than the
// header.
func (c *csvParser) refused(b *block, offset, shift int64, err error, takenOut func(int64), out sink) {
	var r row
	var reason string
	at := int64(2)
	var syntax *csv.ParseError
	if errors.As(err, &syntax) {
		at = int64(syntax.StartLine)
	}
	if errors.Is(err, csv.ErrFieldCount) {
		raw := trimEnd(b.data[:offset-int64(len(c.ours))])
		raw = raw[bytes.LastIndexByte(raw, '\n')+1:]
		reason = c.split.miscounted(bytes.Count(raw, c.split.comma) + 1)
		r = c.head.salvage(raw, false, c.split.comma)
	} else { // the splitter lets nothing else through that ends here; if it did, the row must still be counted
		reason = err.Error()
	}
	r.file, r.line = b.file, at+shift
	takenOut(r.line)
	out.reject(&r, codeParse, reason)
}

// A header says which column each field of a record is.
type header struct {
	texts []string // as in the input
	cols  []column
	first [numColumns]string // the text of each of our columns; "" where there is none
}

// header reads the first record that is not empty.
func (s *splitter) header(cols *columns) (*header, error) {
	for {
		if err := s.fill(); err == io.EOF {
			return nil, &Error{Problem: "there is no header, only empty lines"}
		} else if err != nil {
			return nil, err
		}
		if size := lineSize(s.buf[s.start:s.end]); len(trimEnd(s.buf[s.start:s.start+size])) > 0 {
			break
		} else {
			s.start += size
			s.line++
		}
	}
	line := s.line
	refuse := func(hint, format string, args ...any) (*header, error) {
		return nil, &Error{Line: line, Problem: fmt.Sprintf(format, args...), Hint: hint}
	}
	size, lines, reason := s.record(s.buf[s.start:s.end])
	raw := string(trimEnd(s.buf[s.start : s.start+size]))
	if strings.Contains(strings.ReplaceAll(raw, "\r\n", ""), "\r") {
		return refuse(`convert it: tr '\r' '\n' < FILE > lines.csv`, "the lines end in CR alone")
	}
	if reason != "" {
		return refuse("", "the header cannot be read: %s", reason)
	}
	comma, _ := utf8.DecodeRune(s.comma)
	parser := csv.NewReader(strings.NewReader(raw))
	parser.Comma = comma
	texts, err := parser.Read()
	if err != nil {
		return refuse("", "the header cannot be read: %v", err)
	}

	h := &header{texts: texts, cols: make([]column, len(texts))}
	var there [numColumns]bool
	for i, text := range texts {
		col := cols.find(text)
		h.cols[i] = col
		if col < 0 {
			continue
		}
		if there[col] {
			return refuse("leave one of them out", "column %s is there twice: the header is %s",
				cols.names[col], excerpt(raw))
		}
		there[col] = true
		h.first[col] = text
	}
	var missing []string
	for _, col := range []column{colFrom, colGroup} {
		if !there[col] && (col != colFrom || !cols.owned) {
			missing = append(missing, cols.names[col])
		}
	}
	for col := range cols.renamed {
		if !there[col] && (col != colFrom || !cols.owned) && !slices.Contains(missing, cols.names[col]) {
			missing = append(missing, cols.names[col])
		}
	}
	if !there[colUser] && !there[colChat] && len(missing) == 0 {
		missing = append(missing, cols.names[colUser]+" or "+cols.names[colChat])
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return refuse(headerHint(raw, comma), "the header has no column %s: it is %s",
			strings.Join(missing, ", "), excerpt(raw))
	}
	s.start += size
	s.line += lines
	return h, nil
}

// headerHint guesses why a header does not have the columns that it should.
func headerHint(raw string, comma rune) string {
	switch {
	case comma != ';' && strings.Contains(raw, ";"):
		return "if its columns are separated by semicolons, say --delimiter ';'"
	case comma != '\t' && strings.Contains(raw, "\t"):
		return "if its columns are separated by tabs, say --delimiter '\\t'"
	case comma != '|' && strings.Contains(raw, "|"):
		return "if its columns are separated by bars, say --delimiter '|'"
	case comma != ',' && strings.Contains(raw, ","):
		return "if its columns are separated by commas, leave out --delimiter"
	case strings.HasPrefix(raw, "["):
		return "a JSON array has to become one object on each line: jq -c '.[]' FILE > groups.jsonl"
	}
	return "name the columns in the first line, or say --columns group_name=NAME,… for other names"
}

// excerpt quotes the beginning of a text from an input.
func excerpt(s string) string {
	const most = 120
	if len(s) > most {
		return fmt.Sprintf("%q…", s[:most])
	}
	return fmt.Sprintf("%q", s)
}

// ours is the header that gocsv gets, on one line.
func (h *header) ours(comma rune) string {
	names := make([]string, len(h.cols))
	for i, col := range h.cols {
		names[i] = otherName
		if col >= 0 {
			names[i] = columnNames[col]
		}
	}
	return strings.Join(names, string(comma)) + "\n"
}

// again tells whether r is the header once more, as in files put together with cat.
func (h *header) again(r *row) bool {
	// Nearly every row is told from it by the length of one field.
	if over := len(r.field[colGroup]) - len(h.first[colGroup]); over != 0 && over != len(bom) {
		return false
	}
	for col, text := range h.first {
		if !strings.EqualFold(strings.TrimPrefix(r.field[col], string(bom)), text) {
			return false
		}
	}
	return true
}

// salvage tells apart what can be told of the fields of an unreadable line, so that a person can mend the row without
// the input at hand. A field that begins with a quote but does not end like it is taken up to the next comma, quotes
// and all.
func (h *header) salvage(raw []byte, cut bool, comma []byte) row {
	var fields []string
	for rest := raw; ; {
		field, size, more := looseField(rest, comma)
		if cut && !more {
			break // half a field would mislead
		}
		fields = append(fields, field)
		if !more {
			break
		}
		rest = rest[size:]
	}
	var r row
	lastOurs := -1
	for i, col := range h.cols {
		if col < 0 {
			continue
		}
		lastOurs = max(lastOurs, i)
		if i < len(fields) {
			r.field[col] = fields[i]
		}
	}
	// What is too much stays with the last of our columns: perhaps only a name with a comma lacks its quotes.
	if len(fields) > len(h.cols) {
		over := strings.Join(fields[len(h.cols):], string(comma))
		if strings.Trim(over, string(comma)) != "" {
			r.field[h.cols[lastOurs]] += string(comma) + over
		}
	}
	r.untyped = !slices.Contains(h.cols, colType)
	return r
}

// looseField cuts the first field from b; size includes the comma behind it, if there is one.
func looseField(b, comma []byte) (field string, size int, more bool) {
	if len(b) > 0 && b[0] == '"' {
		for i := 1; ; i += 2 {
			j := bytes.IndexByte(b[i:], '"')
			if j < 0 {
				break
			}
			i += j
			if i+1 < len(b) && b[i+1] == '"' {
				continue
			}
			rest := b[i+1:]
			if more := bytes.HasPrefix(rest, comma); more || len(rest) == 0 {
				return strings.ReplaceAll(string(b[1:i]), `""`, `"`), i + 1 + len(comma), more
			}
			break
		}
	}
	if i := bytes.Index(b, comma); i >= 0 {
		return string(b[:i]), i + len(comma), true
	}
	return string(b), len(b), false
}
