package importer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync/atomic"

	"github.com/gocarina/gocsv"

	"groupferry/internal/chat"
)

// An idMap maps old ids to new ones. It is in memory as a whole: about 100 bytes for each pair.
type idMap struct {
	name   string // of its file
	digest string
	ids    map[string]string // new ids by old ones
}

// An idPair is a row of the file.
type idPair struct {
	Old string `csv:"old"`
	New string `csv:"new"`
}

// readIDMap reads a CSV file with the columns old and new, in this order. Its error is an [*Error], or that of ctx.
func readIDMap(ctx context.Context, name string) (*idMap, error) {
	f, err := openFile(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &Error{File: name, Problem: "no such file", Err: err}
	} else if ctx.Err() != nil {
		return nil, ctx.Err()
	} else if err != nil {
		return nil, &Error{File: name, Problem: plainError(err), Err: err}
	}
	defer f.Close()
	sum := sha256.New()
	content := bufio.NewReaderSize(io.TeeReader(&meter{ctx: ctx, src: f, read: new(atomic.Int64), mayWait: true}, sum), 128<<10)
	if head, _ := content.Peek(len(byteOrderMark)); bytes.Equal(head, byteOrderMark) {
		_, _ = content.Discard(len(byteOrderMark)) // it is in the buffer
	}
	parser := csv.NewReader(content)
	parser.ReuseRecord = true
	m := &idMap{name: name, ids: map[string]string{}}
	line, err := m.readPairs(parser)
	if err == nil {
		m.digest = hex.EncodeToString(sum.Sum(nil))
		return m, nil
	} else if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	var syntax *csv.ParseError
	e := &Error{File: name, Line: int64(line), Problem: plainError(err), Err: err,
		Hint: "it has the columns old,new and one pair of ids on each line"}
	if errors.As(err, &syntax) {
		e.Line, e.Problem = int64(syntax.StartLine), fmt.Sprintf("cannot be read: %v", syntax.Err)
	}
	return nil, e
}

// readPairs fills m. If line is not 0, the error is about that line.
func (m *idMap) readPairs(parser *csv.Reader) (line int, err error) {
	rows, err := gocsv.NewUnmarshaller(parser, &idPair{})
	if err == io.EOF {
		return 0, errors.New("is empty")
	} else if err != nil {
		return 0, err
	}
	for i, name := range rows.Headers {
		rows.Headers[i] = canonicalName(name)
	}
	if !slices.Equal(rows.Headers, []string{"old", "new"}) {
		return 1, errors.New("the first line is not old,new")
	}
	if err := rows.RenormalizeHeaders(nil); err != nil { // looks for the columns again
		return 1, err
	}
	for {
		v, err := rows.Read()
		if err == io.EOF {
			return 0, nil
		} else if err != nil {
			return 0, err
		}
		pair := v.(*idPair)
		line, _ := parser.FieldPos(0)
		known, again := m.ids[pair.Old]
		switch {
		case pair.Old == "" || pair.New == "":
			return line, errors.New("an id is empty")
		case len(pair.New) > chat.MaxGroupIDBytes:
			return line, fmt.Errorf("the new id has %d bytes, %d at most", len(pair.New), chat.MaxGroupIDBytes)
		case again && known != pair.New:
			return line, errors.New("an id has two new ones")
		}
		m.ids[pair.Old] = pair.New
	}
}

// rename replaces the ids of r, or says which one is unknown. Empty ids are left to the validation.
func (m *idMap) rename(r *row) *invalid {
	for _, col := range []column{colFrom, colUser, colChat} {
		old := r.field[col]
		if old == "" {
			continue
		}
		id, ok := m.ids[old]
		if !ok {
			return &invalid{codeBadParameter, fmt.Sprintf("%s is not among the old ids in %s", columnNames[col], m.name)}
		}
		r.field[col] = id
	}
	return nil
}
