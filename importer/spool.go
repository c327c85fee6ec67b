package importer

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
)

// A spool stores what does not fit into memory: rows until the whole input is read, then jobs and rejects. It only
// grows. Its first bytes stay in memory, so that a usual input needs no disk; the rest is one file.
//
// The file is deleted as soon as it is open, on Windows by a flag when it is closed. So it disappears with its process,
// however that ends, and nothing is left to clean up.
//
// A spool may be used by several goroutines.
type spool struct {
	dir string

	mu     sync.Mutex
	memory []byte
	limit  int64    // offsets below it are in memory, the others in the file
	end    int64    // of all that was put
	file   *os.File // nil until it is needed
	closed bool
}

// A segment is a piece of a spool, written and read as one.
type segment struct {
	at   int64
	size int
}

const (
	// residentBytes of a spool stay in memory.
	residentBytes = 8 << 20

	// segmentBytes is how much of a log is written at once: large against the cost of a system call, and small enough for
	// one buffer of it in each of 512 partitions, 8 MiB.
	segmentBytes = 16 << 10
)

// newSpool makes a spool whose file will be in dir; "" is the system's directory for temporary files. Up to limit
// bytes stay in memory.
func newSpool(dir string, limit int) (*spool, error) {
	if dir == "" { // it need not be there if no file is needed
		return &spool{dir: os.TempDir(), limit: int64(max(limit, 0))}, nil
	}
	s := &spool{dir: dir, limit: int64(max(limit, 0))}
	if info, err := os.Stat(dir); err != nil {
		return nil, s.inputError(err)
	} else if !info.IsDir() {
		return nil, s.inputError(errors.New("is no directory"))
	}
	return s, nil
}

// create opens the file and deletes it.
func (s *spool) create() error {
	const deleteOnClose = 0x04000000 // FILE_FLAG_DELETE_ON_CLOSE
	flag := os.O_RDWR | os.O_CREATE | os.O_EXCL
	if runtime.GOOS == "windows" {
		flag |= deleteOnClose
	}
	name := filepath.Join(s.dir, fmt.Sprintf("groupferry-%016x.spool", rand.Uint64()))
	f, err := os.OpenFile(name, flag, 0o600)
	if err != nil {
		return err
	}
	_ = os.Remove(name) // where an open file cannot be deleted, close tries again
	s.file, s.limit = f, int64(len(s.memory))
	return nil
}

// put appends a copy of b.
func (s *spool) put(b []byte) (segment, error) {
	s.mu.Lock()
	seg := segment{s.end, len(b)}
	if s.file == nil && s.end+int64(len(b)) <= s.limit {
		if s.memory == nil {
			s.memory = make([]byte, 0, s.limit) // it takes no room before it is written to
		}
		s.memory = append(s.memory, b...)
		s.end += int64(len(b))
		s.mu.Unlock()
		return seg, nil
	}
	if s.file == nil {
		if err := s.create(); err != nil {
			s.mu.Unlock()
			return seg, s.inputError(err)
		}
	}
	s.end += int64(len(b))
	f, limit := s.file, s.limit
	s.mu.Unlock()
	if _, err := f.WriteAt(b, seg.at-limit); err != nil {
		return seg, s.inputError(err)
	}
	return seg, nil
}

// get returns a segment, in buf, which it grows, or in memory of the spool, which must not be changed.
func (s *spool) get(seg segment, buf *[]byte) ([]byte, error) {
	s.mu.Lock()
	f, memory, limit, closed := s.file, s.memory, s.limit, s.closed
	s.mu.Unlock()
	if closed {
		return nil, s.inputError(os.ErrClosed)
	}
	if seg.at < limit {
		return memory[seg.at:][:seg.size], nil
	}
	*buf = slices.Grow((*buf)[:0], seg.size)[:seg.size]
	if _, err := f.ReadAt(*buf, seg.at-limit); err != nil {
		return nil, s.inputError(err)
	}
	return *buf, nil
}

// onDisk is the size of the file in bytes.
func (s *spool) onDisk() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		return 0
	}
	return s.end - s.limit
}

// close drops all that the spool holds.
func (s *spool) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed, s.memory = true, nil
	if s.file == nil {
		return nil
	}
	err := s.file.Close()
	_ = os.Remove(s.file.Name())
	if err != nil {
		return s.inputError(err)
	}
	return nil
}

// inputError names the directory and says what to do.
func (s *spool) inputError(err error) error {
	e := &Error{
		File: s.dir, Problem: "cannot be used for sorting: " + plainError(err), Err: err,
		Hint: "make room there, or name another directory with --spool-dir",
	}
	switch {
	case errors.Is(err, syscall.ENOSPC):
		e.Problem = "the disk is full"
	case errors.Is(err, fs.ErrNotExist):
		e.Problem = "no such directory"
	case errors.Is(err, os.ErrClosed):
		e.Problem, e.Hint = "the spooled rows are gone: the plan was closed", ""
	}
	return e
}

// A recordLog is a sequence of records in a spool. No record is cut by the end of a segment.
type recordLog struct {
	spool    *spool
	segments []segment
	tail     []byte // the records after the segments
}

// add appends a copy of a record, given in parts.
func (l *recordLog) add(record ...[]byte) error {
	n := len(l.tail)
	for _, part := range record {
		n += len(part)
	}
	if n > segmentBytes && len(l.tail) > 0 {
		tail := l.tail
		if err := l.flush(); err != nil {
			return err
		}
		l.tail = tail[:0]
	} else if n > cap(l.tail) && n > segmentBytes/8 { // it will be full one day
		l.tail = slices.Grow(l.tail, segmentBytes-len(l.tail))
	}
	for _, part := range record {
		l.tail = append(l.tail, part...)
	}
	return nil
}

// flush leaves nothing of the log in its own memory.
func (l *recordLog) flush() error {
	if len(l.tail) == 0 {
		return nil
	}
	seg, err := l.spool.put(l.tail)
	if err == nil {
		l.segments, l.tail = append(l.segments, seg), nil
	}
	return err
}

// size is that of all records in bytes.
func (l *recordLog) size() int64 {
	n := int64(len(l.tail))
	for _, seg := range l.segments {
		n += int64(seg.size)
	}
	return n
}

// A logReader reads a log from its beginning.
type logReader struct {
	log *recordLog
	at  int // the next segment
	buf []byte
}

// next returns one or more whole records, valid until the next call, or io.EOF.
func (r *logReader) next() ([]byte, error) {
	at := r.at
	r.at++
	switch {
	case at < len(r.log.segments):
		return r.log.spool.get(r.log.segments[at], &r.buf)
	case at == len(r.log.segments) && len(r.log.tail) > 0:
		return r.log.tail, nil
	}
	return nil, io.EOF
}
