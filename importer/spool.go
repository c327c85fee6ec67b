package importer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// A spool holds what an intake puts aside until it has seen the whole input: in memory as long as that is little, else
// in one file of slots of chunkBytes. What is not needed any more makes room for what comes. It may be used by several
// goroutines.
//
// The file is locked for as long as its process lives. That is how the leftover of a process that died is told from
// the file of one at work, without asking for processes: whoever gets the lock may remove the file.
type spool struct {
	dir string

	mu       sync.Mutex
	room     int          // bytes that may still stay in memory
	resident [][]byte     // what did
	vacant   []int64      // slots that may be used again
	rest     extent       // of a slot that was taken for less; size 0 if there is none
	file     *os.File     // nil until it is needed
	size     atomic.Int64 // of the file
}

// An extent is a piece of a spool that is read and written as one.
type extent struct {
	at   int64 // offset in the file; if negative, the complement of an index of resident
	size int32
}

// alone tells whether an extent has one slot of the file for itself.
func (e extent) alone() bool {
	return e.size > chunkBytes-leastRest && e.size <= chunkBytes && e.at%chunkBytes == 0
}

const (
	// residentBytes of a spool stay in memory, so that an everyday input needs no disk at all.
	residentBytes = 8 << 20

	// chunkBytes is how much is written at once: much beside the cost of a system call, and little enough for a buffer
	// of it in each of 512 partitions, 8 MiB.
	chunkBytes = 16 << 10

	// leastRest is the least room that is used behind what is shorter than a chunk. It is more than the longest row, so
	// that the chunks of a tape of rows leave none.
	leastRest = 1 << 10

	spoolPrefix, spoolSuffix = "groupferry-", ".spool"
)

// newSpool removes what dead processes left in dir, and makes a spool there. dir "" is the system's own place.
func newSpool(dir string, room int) (*spool, error) {
	s := &spool{dir: dir, room: room}
	if dir == "" {
		s.dir = os.TempDir()
	}
	if info, err := os.Stat(s.dir); err != nil {
		return nil, s.fault(err)
	} else if !info.IsDir() {
		return nil, s.fault(errors.New("is no directory"))
	}
	leftovers, err := filepath.Glob(filepath.Join(globQuote(s.dir), spoolPrefix+"*"+spoolSuffix))
	if err != nil {
		return nil, nil // never: the pattern is sound
	}
	for _, name := range leftovers {
		if f, err := os.OpenFile(name, os.O_RDWR, 0); err == nil {
			if lockFile(f) == nil {
				removeLocked(f)
			}
			f.Close()
		}
	}
	return s, nil
}

// globQuote makes a directory's name a pattern that matches itself.
func globQuote(dir string) string {
	if filepath.Separator == '\\' {
		return dir // no escapes there, and hardly a bracket
	}
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(dir)
}

// create makes the file. Another process that cleans up can take it for a leftover in the moment before it is locked;
// then another one is made.
func (s *spool) create() error {
	for {
		f, err := os.CreateTemp(s.dir, spoolPrefix+"*"+spoolSuffix)
		if err != nil {
			return err
		}
		switch err := lockFile(f); {
		case errors.Is(err, errors.ErrUnsupported):
			s.file = f
			return nil
		case err == nil:
			mine, err := f.Stat()
			if err != nil {
				f.Close()
				return err
			}
			if there, err := os.Stat(f.Name()); err == nil && os.SameFile(mine, there) {
				s.file = f
				return nil
			}
		}
		f.Close()
	}
}

// put keeps b, which may be changed afterwards.
func (s *spool) put(b []byte) (extent, error) {
	e := extent{size: int32(len(b))}
	s.mu.Lock()
	if len(b) <= s.room {
		s.room -= len(b)
		e.at = ^int64(len(s.resident))
		s.resident = append(s.resident, append([]byte(nil), b...))
		s.mu.Unlock()
		return e, nil
	}
	if s.file == nil {
		if err := s.create(); err != nil {
			s.mu.Unlock()
			return e, s.fault(err)
		}
	}
	e.at = s.allocate(len(b))
	f := s.file
	s.mu.Unlock()
	if _, err := f.WriteAt(b, e.at); err != nil {
		return e, s.fault(err)
	}
	return e, nil
}

// allocate finds the place for n bytes in the file, if possible one that was used before.
func (s *spool) allocate(n int) (at int64) {
	if n <= int(s.rest.size) {
		at = s.rest.at
		s.rest.at += int64(n)
		s.rest.size -= int32(n)
		return at
	}
	slots := (n + chunkBytes - 1) / chunkBytes
	if last := len(s.vacant) - 1; slots == 1 && last >= 0 {
		at = s.vacant[last]
		s.vacant = s.vacant[:last]
	} else {
		at = s.size.Add(int64(slots)*chunkBytes) - int64(slots)*chunkBytes
	}
	if left := slots*chunkBytes - n; left >= leastRest && left > int(s.rest.size) {
		s.rest = extent{at + int64(n), int32(left)}
	}
	return at
}

// release gives back what nobody will get any more.
func (s *spool) release(e extent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case e.at < 0:
		s.resident[^e.at] = nil
		s.room += int(e.size)
	case e.alone():
		s.vacant = append(s.vacant, e.at)
	}
}

// get returns what was put. It may use buf and may give it back; what it gives must not be changed.
func (s *spool) get(e extent, buf []byte) ([]byte, error) {
	s.mu.Lock()
	f, resident := s.file, s.resident
	s.mu.Unlock()
	switch {
	case e.at < 0 && resident != nil:
		return resident[^e.at], nil
	case f == nil:
		return nil, s.fault(os.ErrClosed)
	}
	if cap(buf) < int(e.size) {
		buf = make([]byte, max(int(e.size), chunkBytes))
	}
	buf = buf[:e.size]
	if _, err := f.ReadAt(buf, e.at); err != nil {
		return nil, s.fault(err)
	}
	return buf, nil
}

// close removes the file, if there is one. What the spool held is gone.
func (s *spool) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resident = nil
	if s.file == nil {
		return nil
	}
	err := removeLocked(s.file)
	if cerr := s.file.Close(); err == nil && !errors.Is(cerr, fs.ErrClosed) {
		err = cerr
	}
	s.file = nil
	if err != nil {
		return s.fault(err)
	}
	return nil
}

// require refuses to begin what would fill the disk.
func (s *spool) require(bytes int64) error {
	free, known := freeBytes(s.dir)
	if !known || free >= bytes {
		return nil
	}
	return &Error{
		File:    s.dir,
		Problem: fmt.Sprintf("%s are free and about %s are needed while this input is sorted", size(free), size(bytes)),
		Hint:    spoolHint,
	}
}

const spoolHint = "make room there, or name another directory with --spool-dir"

func (s *spool) fault(err error) error {
	e := &Error{File: s.dir, Problem: "cannot be used for sorting: " + plainError(err), Hint: spoolHint, Err: err}
	switch {
	case diskFull(err):
		e.Problem = fmt.Sprintf("the disk is full, with %s of rows put aside there", size(s.size.Load()))
	case errors.Is(err, fs.ErrNotExist):
		e.Problem = "no such directory"
	case errors.Is(err, os.ErrClosed):
		e.Problem, e.Hint = "the rows put aside are gone: the plan was closed", ""
	}
	return e
}

// size writes a number of bytes for people.
func size(n int64) string {
	switch {
	case n < 10<<20:
		return fmt.Sprintf("%d KiB", (n+1023)>>10)
	case n < 10<<30:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d GiB", n>>30)
}

// A tape is a sequence of records in a spool. No record is cut by the end of an extent.
type tape struct {
	spool   *spool
	extents []extent
	buf     []byte // what comes behind the extents
}

// add appends a record.
func (t *tape) add(record []byte) error {
	switch n := len(t.buf) + len(record); {
	case n > chunkBytes && len(t.buf) > 0:
		if err := t.flush(); err != nil {
			return err
		}
	case n > cap(t.buf) && n > chunkBytes/8: // it will be full one day
		t.buf = slices.Grow(t.buf, chunkBytes-len(t.buf))
	}
	t.buf = append(t.buf, record...)
	return nil
}

// flush puts away what is still in the buffer.
func (t *tape) flush() error {
	if len(t.buf) == 0 {
		return nil
	}
	e, err := t.spool.put(t.buf)
	if err != nil {
		return err
	}
	t.extents = append(t.extents, e)
	t.buf = t.buf[:0]
	return nil
}

// drain calls take with all records, some whole ones at a time, and gives back their room. What take gets is gone after
// the call. It reads into buf and leaves there what it needed.
func (t *tape) drain(buf *[]byte, take func(records []byte) error) error {
	for _, e := range t.extents {
		b, err := t.spool.get(e, *buf)
		if err != nil {
			return err
		}
		if e.at >= 0 {
			*buf = b
		}
		if err := take(b); err != nil {
			return err
		}
		t.spool.release(e)
	}
	return take(t.buf)
}
