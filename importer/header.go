package importer

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"slices"
	"strings"
)

// otherName is in the header that gocsv gets for every column that is not ours.
const otherName = "x"

// A header maps the fields of a record to columns.
type header struct {
	texts []string // as in the input
	cols  []column
	names [numColumns]string // the text of each of our columns; "" where there is none
	comma string
}

// parseHeader parses the first record of an input. reason is "", or says why the splitter rejects it. The error is an
// [*Error] without file and line.
func parseHeader(raw, reason string, comma rune, cols *columns) (*header, error) {
	refuse := func(hint, format string, args ...any) (*header, error) {
		return nil, &Error{Problem: fmt.Sprintf(format, args...), Hint: hint}
	}
	if strings.Contains(strings.ReplaceAll(raw, "\r\n", ""), "\r") {
		return refuse(`convert it: tr '\r' '\n' < FILE > lines.csv`, "the lines end in CR alone")
	}
	if reason != "" {
		return refuse("", "the header cannot be read: %s", reason)
	}
	parser := csv.NewReader(strings.NewReader(raw))
	parser.Comma = comma
	texts, err := parser.Read()
	if err != nil {
		return refuse("", "the header cannot be read: %v", err)
	}

	h := &header{texts: texts, cols: make([]column, len(texts)), comma: string(comma)}
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
		h.names[col] = text
	}
	var missing []string
	for _, col := range []column{colFrom, colGroup} {
		if !there[col] && (col != colFrom || !cols.hasOwner) {
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
		suggested := ""
		if len(cols.renamed) == 0 {
			suggested = presetOf(texts)
		}
		return refuse(headerHint(raw, comma, missing, suggested), "the header has no column %s: it is %s",
			strings.Join(missing, ", "), excerpt(raw))
	}
	return h, nil
}

// headerHint guesses why columns are missing.
func headerHint(raw string, comma rune, missing []string, preset string) string {
	switch {
	case preset != "":
		return "--preset " + preset + " reads such a file"
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
	if slices.Equal(missing, []string{columnNames[colFrom]}) {
		return "if all rows are of one user, say --owner ID; if the column has another name, --columns from_account=NAME"
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

// ignored are the names of the columns that are not ours.
func (h *header) ignored() []string {
	var names []string
	for i, name := range h.texts {
		if h.cols[i] == colOther {
			names = append(names, strings.TrimSpace(name))
		}
	}
	return names
}

// has reports whether a column is there.
func (h *header) has(col column) bool { return slices.Contains(h.cols, col) }

// forGocsv is the header that gocsv gets, on one line.
func (h *header) forGocsv() string {
	names := make([]string, len(h.cols))
	for i, col := range h.cols {
		names[i] = otherName
		if col >= 0 {
			names[i] = columnNames[col]
		}
	}
	return strings.Join(names, h.comma) + "\n"
}

// isRepeated reports whether r is the header again, as in files joined with cat.
func (h *header) isRepeated(r *row) bool {
	// The length of one field is enough to exclude nearly every row.
	if over := len(r.field[colGroup]) - len(h.names[colGroup]); over != 0 && over != len(byteOrderMark) {
		return false
	}
	for col, text := range h.names {
		if !strings.EqualFold(strings.TrimPrefix(r.field[col], string(byteOrderMark)), text) {
			return false
		}
	}
	return true
}

// isOther reports whether r is a header whose columns are in another order, as in files joined with cat: what follows it
// would be read into the wrong columns. Two of our names in our columns are enough; no row has them.
func (h *header) isOther(r *row) bool {
	names := 0
	for _, field := range r.field {
		if h.isName(strings.TrimPrefix(field, string(byteOrderMark))) {
			names++
		}
	}
	return names >= 2
}

// isName reports whether a field is the name of one of our columns.
func (h *header) isName(field string) bool {
	for _, name := range h.names {
		if len(field) == len(name) && name != "" && strings.EqualFold(field, name) {
			return true
		}
	}
	return false
}

// salvage finds the fields of an unreadable line as far as possible, so that the row can be fixed without the input. A
// field that begins with a quote but does not end like one ends at the next comma and keeps its quotes.
func (h *header) salvage(raw []byte, cut bool) row {
	var fields []string
	comma := []byte(h.comma)
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
	// Excess fields stay with the last of our columns: perhaps only a name with a comma lacks its quotes.
	if len(fields) > len(h.cols) {
		over := strings.Join(fields[len(h.cols):], h.comma)
		if strings.Trim(over, h.comma) != "" {
			r.field[h.cols[lastOurs]] += h.comma + over
		}
	}
	r.noType = !h.has(colType)
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
