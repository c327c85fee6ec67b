package importer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"groupferry/internal/chat"
)

// maxBody is how many conversations a request body may have: as many as a user, 20 groups of 1,000.
const maxBody = chat.MaxGroupsPerUser * chat.MaxConversationsPerGroup

// A jsonlParser makes rows of the lines of blocks. It reads token by token, so that a value of the wrong kind costs only
// its row, keys are found in any case, and keys that are not ours can be reported.
type jsonlParser struct {
	out    rowHandler
	file   int
	top    *keys // at the top of a line
	inner  *keys // within a GroupContactItem
	buf    bytes.Buffer
	dec    *jsontext.Decoder
	rows   []row // of the line at hand
	single row   // the line as a row, or what is common to the rows of a body
	body   bool
	seen   uint // columns met at the top
}

func newJSONLParser(cols *columns) *jsonlParser {
	d := &jsonlParser{
		top:   &keys{cols: cols, known: map[string]column{}},
		inner: &keys{known: map[string]column{}},
	}
	d.inner.cols, _ = newColumns(nil) // no renames, no problem
	d.dec = jsontext.NewDecoder(&d.buf)
	return d
}

func (d *jsonlParser) parse(b *block, out rowHandler) {
	d.out, d.file = out, b.file
	bad := b.bad
	rest := b.data
	for n := b.line; len(rest) > 0; n++ {
		size := lineSize(rest)
		line := bytes.TrimRight(rest[:size], " \t\r\n")
		rest = rest[size:]
		if len(bad) > 0 && bad[0].line == n {
			out.reject(&row{position: position{b.file, n}}, codeParse, bad[0].reason)
			bad = bad[1:]
		} else if len(line) > 0 {
			d.line(n, line)
		}
	}
}

// A shapeError is about a line that is valid JSON.
type shapeError string

func (e shapeError) Error() string { return string(e) }

// line handles the rows of one line: all of them, or one reject.
func (d *jsonlParser) line(n int64, b []byte) {
	d.rows, d.body, d.seen = d.rows[:0], false, 0
	d.single = row{position: position{d.file, n}, noType: true, noOwner: true}
	d.buf = *bytes.NewBuffer(b)
	d.dec.Reset(&d.buf)
	if err := d.object(); err != nil {
		d.out.reject(&d.single, codeParse, jsonReason(b, err))
		return
	}
	if !d.body {
		d.out.row(&d.single)
		return
	}
	for i := range d.rows {
		r := &d.rows[i]
		r.field[colFrom], r.noOwner = d.single.field[colFrom], d.single.noOwner
		if r.invalidReason == "" {
			r.invalidReason = d.single.invalidReason
		}
		d.out.row(r)
	}
}

// jsonReason says why a line cannot be read. The text of the error may change with the version of the package, and may
// contain parts of the line.
func jsonReason(line []byte, err error) string {
	var shape shapeError
	var syntax *jsontext.SyntacticError
	switch {
	case errors.As(err, &shape):
		return string(shape)
	case !utf8.Valid(line):
		return "the line is not valid UTF-8"
	case errors.Is(err, jsontext.ErrDuplicateName):
		return "a key is there twice"
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "the line ends before its JSON does"
	case errors.As(err, &syntax):
		return fmt.Sprintf("not valid JSON from byte %d on", syntax.ByteOffset+1)
	}
	return "not valid JSON"
}

// object reads the one value of a line.
func (d *jsonlParser) object() error {
	if kind := d.dec.PeekKind(); kind != '{' {
		if _, err := d.dec.ReadValue(); err != nil {
			return err
		}
		return shapeError("the line is no JSON object")
	}
	err := d.members(d.top, func(col column) error {
		if err := once(&d.seen, col); err != nil {
			return err
		}
		switch col {
		case colGroups:
			d.body = true
			return d.groups()
		case colItems:
			return shapeError("ContactItem stands outside a GroupContactItem")
		}
		return d.field(&d.single, col)
	})
	if err != nil {
		return err
	}
	if d.body && d.seen&^(1<<colFrom|onceBit(colGroups)) != 0 {
		return shapeError("the line is a row and a request body at once")
	}
	if _, err := d.dec.ReadToken(); err == nil {
		return shapeError("something follows the JSON object")
	} else if err != io.EOF {
		return err
	}
	return nil
}

// members reads an object and calls value for every key that is ours.
func (d *jsonlParser) members(k *keys, value func(column) error) error {
	if _, err := d.dec.ReadToken(); err != nil {
		return err
	}
	for d.dec.PeekKind() != '}' {
		name, err := d.dec.ReadValue()
		if err != nil {
			return err
		}
		col, other := k.find(name)
		if other != "" {
			d.out.ignore(other)
		}
		if col == colSkip || col == colOther {
			err = d.dec.SkipValue()
		} else {
			err = value(col)
		}
		if err != nil {
			return err
		}
	}
	_, err := d.dec.ReadToken()
	return err
}

// field reads the value of one of our five columns into r.
func (d *jsonlParser) field(r *row, col column) error {
	kind := d.dec.PeekKind()
	if kind == '"' {
		t, err := d.dec.ReadToken()
		if err != nil {
			return err
		}
		r.field[col] = t.String()
		r.noType = r.noType && col != colType
		r.noOwner = r.noOwner && col != colFrom
		return nil
	}
	v, err := d.dec.ReadValue()
	switch {
	case err != nil:
		return err
	case kind == 'n': // null: as if the key were not there
	case col == colType:
		// The text of the number is what counts: 1.0 and 1e0 are no types.
		r.field[col] = cutText(string(v))
		r.noType = false
	default:
		r.field[col] = cutText(string(v))
		r.noOwner = r.noOwner && col != colFrom
		r.invalidReason = columnNames[col] + " is not a JSON string"
	}
	return nil
}

// elements reads an array of objects. It calls object for each, and other for each element that is none.
func (d *jsonlParser) elements(key string, object func() error, other func()) error {
	if d.dec.PeekKind() != '[' {
		if _, err := d.dec.ReadValue(); err != nil {
			return err
		}
		return shapeError(key + " is no JSON array")
	}
	if _, err := d.dec.ReadToken(); err != nil {
		return err
	}
	for d.dec.PeekKind() != ']' {
		var err error
		if d.dec.PeekKind() == '{' {
			err = object()
		} else if err = d.dec.SkipValue(); err == nil {
			other()
		}
		if err != nil {
			return err
		}
		if len(d.rows) > maxBody {
			return shapeError(fmt.Sprintf("the line has over %d conversations", maxBody))
		}
	}
	_, err := d.dec.ReadToken()
	return err
}

// bad adds a row that is invalid as a whole, so that it is counted.
func (d *jsonlParser) bad(reason string) {
	d.rows = append(d.rows, row{position: d.single.position, noType: true, invalidReason: reason})
}

func (d *jsonlParser) groups() error {
	err := d.elements("GroupContactItem", d.group, func() { d.bad("a GroupContactItem is no JSON object") })
	if err == nil && len(d.rows) == 0 {
		d.bad("GroupContactItem is empty")
	}
	return err
}

func (d *jsonlParser) group() error {
	first := len(d.rows)
	var seen uint
	group := row{}
	err := d.members(d.inner, func(col column) error {
		if err := once(&seen, col); err != nil {
			return err
		}
		switch col {
		case colItems:
			return d.elements("ContactItem", d.item, func() { d.bad("a ContactItem is no JSON object") })
		case colGroup:
			return d.field(&group, col)
		}
		return d.dec.SkipValue()
	})
	if err != nil {
		return err
	}
	if len(d.rows) == first {
		d.bad("the group has no ContactItem")
	}
	for i := first; i < len(d.rows); i++ {
		r := &d.rows[i]
		r.field[colGroup] = group.field[colGroup]
		if r.invalidReason == "" {
			r.invalidReason = group.invalidReason
		}
	}
	return nil
}

func (d *jsonlParser) item() error {
	r := row{position: d.single.position, noType: true}
	var seen uint
	err := d.members(d.inner, func(col column) error {
		if err := once(&seen, col); err != nil {
			return err
		}
		switch col {
		case colType, colUser, colChat:
			return d.field(&r, col)
		}
		return d.dec.SkipValue()
	})
	d.rows = append(d.rows, r)
	return err
}

// once rejects a column that an object has in two spellings. The decoder rejects a key that is there twice.
func once(seen *uint, col column) error {
	bit := onceBit(col)
	if *seen&bit != 0 {
		return shapeError("a key is there twice in different spellings")
	}
	*seen |= bit
	return nil
}

func onceBit(col column) uint {
	if col < 0 {
		col = numColumns - col
	}
	return 1 << col
}

// keys finds the column that a JSON key means, and remembers keys as they are spelt in the input.
type keys struct {
	cols  *columns
	known map[string]column // by the key with its quotes
}

// maxKnownKeys bounds what is remembered of an input whose keys are never the same.
const maxKnownKeys = 1000

// find returns the column of a quoted key. If that is none of ours, other is its text, at least the first time.
func (k *keys) find(quoted []byte) (col column, other string) {
	if col, ok := k.known[string(quoted)]; ok {
		return col, ""
	}
	text, err := jsontext.AppendUnquote(nil, quoted)
	if err != nil { // the decoder has read it
		return colOther, ""
	}
	switch name := string(text); canonicalName(name) {
	case "groupcontactitem":
		col = colGroups
	case "contactitem":
		col = colItems
	default:
		if col = k.cols.find(name); col == colOther {
			other = name
		}
	}
	if len(k.known) < maxKnownKeys {
		k.known[string(quoted)] = col
	}
	return col, other
}
