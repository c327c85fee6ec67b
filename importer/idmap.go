package importer

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
)

// An idMap gives old ids new names. It is held in memory as a whole, with some 20 bytes for each pair beside its texts.
type idMap struct {
	name   string // of its file
	digest string
	seed   maphash.Seed
	text   []byte // old id and new id, each behind its size
	pairs  []uint32
	table  table
}

// readIDMap reads a CSV file with the columns old and new, in this order.
func readIDMap(name string) (*idMap, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &Error{File: name, Problem: "no such file", Err: err}
	} else if err != nil {
		return nil, &Error{File: name, Problem: plainError(err), Err: err}
	}
	defer f.Close()
	sum := sha256.New()
	content := bufio.NewReaderSize(io.TeeReader(f, sum), 128<<10)
	if head, _ := content.Peek(len(bom)); bytes.Equal(head, bom) {
		_, _ = content.Discard(len(bom)) // it is in the buffer
	}
	r := csv.NewReader(content)
	r.ReuseRecord = true
	m := &idMap{name: name, seed: maphash.MakeSeed()}
	for first := true; ; first = false {
		fields, err := r.Read()
		if err == io.EOF && !first {
			break
		}
		var line int
		if err == nil {
			line, _ = r.FieldPos(0)
		}
		refuse := func(format string, args ...any) (*idMap, error) {
			return nil, &Error{File: name, Line: int64(line), Problem: fmt.Sprintf(format, args...), Err: err,
				Hint: "it has the columns old,new and one pair of ids on each line"}
		}
		var syntax *csv.ParseError
		switch {
		case errors.As(err, &syntax):
			line = syntax.StartLine
			return refuse("cannot be read: %v", syntax.Err)
		case err == io.EOF:
			return refuse("is empty")
		case err != nil:
			return refuse("%s", plainError(err))
		case first && (len(fields) != 2 || canonical(fields[0]) != "old" || canonical(fields[1]) != "new"):
			return refuse("the first line is not old,new")
		case first:
			continue
		case fields[0] == "" || fields[1] == "":
			return refuse("an id is empty")
		case len(fields[0]) > maxText-1 || len(fields[1]) > maxText-1:
			return refuse("an id is over %d bytes", maxText-1)
		}
		if again, ok := m.find(fields[0]); ok {
			if again != fields[1] {
				return refuse("an id has two new ones")
			}
			continue
		}
		if len(m.text) > 1<<31 {
			return refuse("over %s of ids cannot be held in memory", size(1<<31))
		}
		m.add(fields[0], fields[1])
	}
	m.digest = hex.EncodeToString(sum.Sum(nil))
	m.find("") // makes room if that is due, so that no later find does: many goroutines ask
	return m, nil
}

func (m *idMap) slot(old string) (slot int, hash uint64) {
	hash = maphash.String(m.seed, old)
	return m.table.find(hash, func(i uint32) bool {
		b := m.text[m.pairs[i]:]
		return string(b[1:1+b[0]]) == old
	}), hash
}

func (m *idMap) add(old, new string) {
	slot, hash := m.slot(old)
	m.table.set(slot, hash, uint32(len(m.pairs)))
	m.pairs = append(m.pairs, uint32(len(m.text)))
	m.text = append(append(m.text, byte(len(old))), old...)
	m.text = append(append(m.text, byte(len(new))), new...)
}

// find gives the new id of an old one.
func (m *idMap) find(old string) (string, bool) {
	slot, _ := m.slot(old)
	i, ok := m.table.at(slot)
	if !ok {
		return "", false
	}
	b := m.text[m.pairs[i]:]
	b = b[1+b[0]:]
	return string(b[1 : 1+b[0]]), true
}

// rename gives the ids of r their new names, or tells which one has none. Empty ids are left to the check.
func (m *idMap) rename(r *row) *fault {
	for _, col := range []column{colFrom, colUser, colChat} {
		old := r.field[col]
		if old == "" {
			continue
		}
		id, ok := m.find(old)
		if !ok {
			return &fault{codeBadParameter, fmt.Sprintf("%s is not among the old ids in %s", columnNames[col], m.name)}
		}
		r.field[col] = id
	}
	return nil
}
