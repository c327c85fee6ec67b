package importer

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
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

// readCSV reads one CSV input, without its byte order mark, to its end and hands its rows to out. The error is that
// of src, or an [*Error] without a file for a header that cannot be used; line is where reading stopped.
func readCSV(src io.Reader, comma rune, cols *columns, file int, out sink) (line int64, err error) {
	split := newSplitter(src, comma)
	h, err := split.header(cols)
	if err != nil {
		return split.read(), err
	}
	for i, name := range h.texts {
		if h.cols[i] == colOther {
			out.ignore(file, strings.TrimSpace(name))
		}
	}
	split.fields = len(h.cols)
	split.bad = func(line int64, raw []byte, cut bool, reason string) {
		r := h.salvage(raw, cut, split.comma)
		r.file, r.line = file, line
		out.reject(&r, codeParse, reason)
	}
	split.doubt = func(first, last int64) {
		out.warn(file, first, fmt.Sprintf("a quote makes one record of lines %d to %d, "+
			"though some of them look like rows: is it closed where it should be?", first, last))
	}

	// gocsv knows columns by one spelling only and fills nothing, without an error, where it does not find it. So it
	// gets a header of our making in place of the one in the input; shift makes up for the lines of that.
	parser := csv.NewReader(bufio.NewReaderSize(io.MultiReader(strings.NewReader(h.ours(comma)), split), maxRecord))
	parser.Comma = comma
	parser.FieldsPerRecord = len(h.cols)
	parser.ReuseRecord = true
	shift := split.line - 2
	rows, err := gocsv.NewUnmarshaller(parser, &csvRow{})
	if err != nil {
		return split.read(), err
	}
	r := row{file: file, untyped: !slices.Contains(h.cols, colType)}
	for {
		v, err := rows.Read()
		if err == io.EOF {
			return split.read(), nil
		}
		if err != nil {
			var bad *csv.ParseError
			if !errors.As(err, &bad) {
				return split.read(), err
			}
			// The splitter lets nothing through that ends here; if it did, the row must still be counted.
			out.reject(&row{file: file, line: int64(bad.StartLine) + shift}, codeParse, bad.Err.Error())
			continue
		}
		f := v.(*csvRow)
		at, _ := parser.FieldPos(0)
		r.line = int64(at) + shift
		r.field = [numColumns]string{f.FromAccount, f.GroupName, f.Type, f.ToAccount, f.ToGroupID}
		if h.again(&r) {
			out.reject(&r, codeParse, "the header stands here again")
			continue
		}
		out.row(&r)
	}
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
		if !there[col] {
			missing = append(missing, cols.names[col])
		}
	}
	for col := range cols.renamed {
		if !there[col] && !slices.Contains(missing, cols.names[col]) {
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
