package importer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/go-json-experiment/json/jsontext"
)

// maxDocument is how many conversations one document of another system may have: they are in memory until its end.
const maxDocument = 100_000

// documents reads the responses of another system's API as they were saved: one JSON document, several, a list of them,
// on one line or many. Invalid JSON is an error, because the rest of the document cannot be read.
type documents struct {
	preset string
	lines  *lineCounter
	dec    *jsontext.Decoder
	rows   []row             // of the document at hand
	wanted []string          // Yunxin: for each of them the id of its group
	names  map[string]string // Yunxin: of the groups so far, by id
	known  bool              // something was found that the preset knows
}

func newDocuments(src io.Reader, preset string) *documents {
	lines := &lineCounter{src: src, line: 1}
	return &documents{preset: preset, lines: lines, dec: jsontext.NewDecoder(lines), names: map[string]string{}}
}

func (d *documents) at() int64 { return d.lines.at(d.dec.InputOffset()) }

func (d *documents) next(b *block) error {
	for !b.full() {
		d.rows, d.wanted = d.rows[:0], d.wanted[:0]
		kind := d.dec.PeekKind()
		var err error
		switch {
		case kind == '{':
			err = d.object()
		case kind == '[' || kind == ']':
			_, err = d.dec.ReadToken()
		default:
			if _, err = d.dec.ReadToken(); err == nil {
				return &Error{Line: d.at(), Problem: "is no response of that system: a JSON object belongs here"}
			}
		}
		if err != nil {
			return d.explain(err)
		}
		for i := range d.wanted {
			name, ok := d.names[d.wanted[i]]
			if r := &d.rows[i]; !ok && r.invalidReason == "" {
				r.invalidReason = "no conversation group with this id is named in its document or before it"
			}
			d.rows[i].field[colGroup] = name
		}
		for i := range d.rows {
			d.rows[i].file = b.file
		}
		b.rows = append(b.rows, d.rows...)
	}
	return nil
}

func (d *documents) explain(err error) error {
	switch {
	case d.lines.err != nil && d.lines.err != io.EOF:
		return d.lines.err
	case err == io.EOF && !d.known && d.dec.InputOffset() > 0:
		return &Error{Problem: "has nothing that the preset " + d.preset + " knows", Hint: "is it a response of that system?"}
	case err == io.EOF:
		return err
	}
	if e, ok := err.(*Error); ok {
		return e
	}
	if d.lines.err == io.EOF && d.dec.StackDepth() > 0 {
		return &Error{Line: d.lines.last(), Problem: "the JSON ends before it is complete", Hint: "fetch the file again"}
	}
	at := d.dec.InputOffset()
	if syntax := (*jsontext.SyntacticError)(nil); errors.As(err, &syntax) {
		at = max(at, syntax.ByteOffset)
	}
	return &Error{Line: d.lines.at(at), Problem: "not valid JSON from here on"}
}

func (d *documents) newParser() parser { return documentParser{} }

type documentParser struct{}

func (documentParser) parse(b *block, out rowHandler) {
	for i := range b.rows {
		out.row(&b.rows[i])
	}
}

// documentKeys are those of which a response of the presets has at least one.
var documentKeys = []string{
	"openim errCode", "openim groups", "openim ownerUserID", "openim conversationIDs",
	"yunxin errCode", "yunxin conversation_groups", "yunxin conversations", "yunxin group_id", "yunxin conversation_id",
}

// failure reads the code of a response. One that says that it failed is a reject, for what it should have is missing.
func (d *documents) failure() error {
	v, err := d.dec.ReadValue()
	if err != nil {
		return err
	}
	if code := string(v); code != "0" && code != "null" && code != `""` {
		d.bad("this response says that it failed: errCode " + cutText(code))
	}
	return nil
}

// bad adds a row for what cannot be used.
func (d *documents) bad(reason string) {
	d.rows = append(d.rows, row{position: position{line: d.at()}, invalidReason: reason})
	if d.preset == "yunxin" {
		d.wanted = append(d.wanted, "")
	}
}

// object reads an object at any depth. Its keys decide what it is.
func (d *documents) object() error {
	var owner, name, group, conversation string
	var ids []string
	var at []int64
	if _, err := d.dec.ReadToken(); err != nil {
		return err
	}
	for d.dec.PeekKind() != '}' {
		t, err := d.dec.ReadToken()
		if err != nil {
			return err
		}
		key := d.preset + " " + t.String()
		d.known = d.known || slices.Contains(documentKeys, key)
		switch key {
		case "openim ownerUserID":
			owner, err = d.text()
		case "openim errCode", "yunxin errCode":
			err = d.failure()
		case "openim name", "yunxin name":
			name, err = d.text()
		case "yunxin group_id":
			group, err = d.text()
		case "yunxin conversation_id":
			conversation, err = d.text()
		case "openim conversationIDs", "yunxin group_ids":
			ids, at, err = d.texts()
		default:
			err = d.value()
		}
		if err != nil {
			return err
		}
	}
	line := d.at()
	if _, err := d.dec.ReadToken(); err != nil {
		return err
	}
	for i, id := range ids {
		r := row{position: position{line: at[i]}}
		r.field[colFrom], r.field[colGroup] = owner, name
		if d.preset == "openim" {
			fromOpenIM(&r, id)
		} else {
			r.line = line
			fromYunxin(&r, conversation)
			d.wanted = append(d.wanted, id)
		}
		d.rows = append(d.rows, r)
	}
	if len(d.rows) > maxDocument {
		return &Error{Line: line, Problem: fmt.Sprintf("a document has over %d conversations", maxDocument),
			Hint: "save the responses for each user as documents of their own"}
	}
	if group != "" && ids == nil {
		d.names[group] = name
	}
	return nil
}

// value reads any value, and the objects in it.
func (d *documents) value() error {
	switch d.dec.PeekKind() {
	case '{':
		return d.object()
	case '[':
		if _, err := d.dec.ReadToken(); err != nil {
			return err
		}
		for d.dec.PeekKind() != ']' {
			if err := d.value(); err != nil {
				return err
			}
		}
	}
	_, err := d.dec.ReadToken()
	return err
}

// text reads a string or a number.
func (d *documents) text() (string, error) {
	switch d.dec.PeekKind() {
	case '{', '[':
		return "", d.value()
	}
	t, err := d.dec.ReadToken()
	if err != nil || t.Kind() == 'n' {
		return "", err
	}
	return cutText(t.String()), nil
}

// texts reads a list of strings or numbers, with the line of each. It is not nil if there is a list.
func (d *documents) texts() (ids []string, at []int64, err error) {
	if kind := d.dec.PeekKind(); kind != '[' {
		v, err := d.dec.ReadValue()
		if err == nil && kind != 'n' && (kind != '{' || len(bytes.TrimSpace(v[1:len(v)-1])) > 0) {
			d.bad("a list of ids is no list") // so that it is not taken for empty
		}
		return nil, nil, err
	}
	if _, err := d.dec.ReadToken(); err != nil {
		return nil, nil, err
	}
	ids = []string{}
	for d.dec.PeekKind() != ']' {
		id, err := d.text()
		if err != nil {
			return nil, nil, err
		}
		if ids, at = append(ids, id), append(at, d.at()); len(ids) > maxDocument {
			break // object returns the error
		}
	}
	if len(ids) <= maxDocument {
		_, err = d.dec.ReadToken()
	}
	return ids, at, err
}

// A lineCounter knows the line of an offset in what was read through it. Offsets must not go back.
type lineCounter struct {
	src  io.Reader
	read int64
	ends []int64 // offsets of line ends behind the last one asked for
	line int64   // of the last one asked for
	err  error   // of src
}

func (l *lineCounter) Read(p []byte) (int, error) {
	n, err := l.src.Read(p)
	for i := 0; ; i++ {
		j := bytes.IndexByte(p[i:n], '\n')
		if j < 0 {
			break
		}
		i += j
		l.ends = append(l.ends, l.read+int64(i))
	}
	l.read += int64(n)
	if err != nil {
		l.err = err
	}
	return n, err
}

func (l *lineCounter) at(offset int64) int64 {
	n := 0
	for n < len(l.ends) && l.ends[n] < offset {
		n++
	}
	l.ends = l.ends[:copy(l.ends, l.ends[n:])]
	l.line += int64(n)
	return l.line
}

func (l *lineCounter) last() int64 { return l.line + int64(len(l.ends)) }
