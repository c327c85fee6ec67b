package importer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
)

// A source is one input to be read.
type source struct {
	name string // as given; what a glob matched goes by its own name
	size int64  // bytes as stored, -1 when unknown
}

// stdinName is the name of standard input.
const stdinName = "-"

// expandSources turns names and globs into sources. It looks at all of them before the first is read, so that a misspelt
// last name is found at once.
func expandSources(inputs []string, stdin io.Reader) (sources []source, notices []string, err error) {
	if len(inputs) == 0 {
		return nil, nil, &ConfigError{Field: "inputs", Problem: "nothing to read: no input was named"}
	}
	seen := map[string]bool{}
	for _, input := range inputs {
		names := []string{input}
		if _, err := os.Stat(input); input != stdinName && err != nil && strings.ContainsAny(input, "*?[") {
			if names, err = filepath.Glob(input); err != nil {
				return nil, nil, &Error{File: input, Problem: "is no pattern of file names", Err: err}
			}
			if len(names) == 0 {
				return nil, nil, &Error{File: input, Problem: "matches no file", Err: fs.ErrNotExist}
			}
			slices.Sort(names)
		}
		for _, name := range names {
			key := name
			if name != stdinName {
				key = filepath.Clean(name)
			}
			if seen[key] {
				notices = append(notices, name+" is named twice and read once")
				continue
			}
			seen[key] = true
			s, err := newSource(name, stdin)
			if err != nil {
				return nil, nil, err
			}
			sources = append(sources, s)
		}
	}
	return sources, notices, nil
}

// newSource checks an input without opening it.
func newSource(name string, stdin io.Reader) (source, error) {
	s := source{name, -1}
	if name == stdinName {
		if stdin == nil {
			return s, &Error{File: name, Problem: "there is no standard input here"}
		}
		return s, nil
	}
	info, err := os.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s, &Error{File: name, Problem: "no such file", Err: err}
	case err != nil:
		return s, &Error{File: name, Problem: plainError(err), Err: err}
	case info.IsDir():
		return s, &Error{File: name, Problem: "is a directory",
			Hint: "name the files in it, for example " + filepath.Join(name, "*.csv")}
	case info.Mode().IsRegular():
		s.size = info.Size()
	}
	return s, nil
}

// A content is an open source, without compression and byte order mark.
type content struct {
	*bufio.Reader
	source      source
	file        *os.File    // nil for standard input
	opened      fs.FileInfo // of the file, when it was opened
	unpacked    io.ReadCloser
	compression string // its name; "" for none
	head        []byte // the beginning, valid until the first read
	digest      digester
}

// headBytes is how much of an input is used to detect its format.
const headBytes = 4 << 10

// Buffers are those of one input, and used again for the next: in an import of many small files they would cost more than
// the rows.
type buffers struct {
	stored, content, lines *bufio.Reader
	records                []byte // of a csvSplitter
}

// reset has a buffer read from src. It makes one the first time.
func reset(r **bufio.Reader, src io.Reader, size int) *bufio.Reader {
	if *r == nil {
		*r = bufio.NewReaderSize(src, size)
	} else {
		(*r).Reset(src)
	}
	return *r
}

// open opens a source. The bytes read from it, before decompression, are added to read. The error is an [*Error] or that
// of ctx.
func (s source) open(ctx context.Context, stdin io.Reader, read *atomic.Int64, buf *buffers) (c *content, err error) {
	c = &content{source: s}
	var src io.Reader = stdin
	if s.name != stdinName {
		f, err := openFile(ctx, s.name)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		} else if err != nil {
			return nil, &Error{File: s.name, Problem: plainError(err), Err: err}
		}
		src, c.file = f, f
		if c.opened, err = f.Stat(); err != nil {
			f.Close()
			return nil, &Error{File: s.name, Problem: plainError(err), Err: err}
		}
	}
	defer func() {
		if err != nil {
			c.close()
			err = c.explain(ctx, 0, err)
		}
	}()
	stored := reset(&buf.stored, &meter{ctx: ctx, src: src, read: read, mayWait: s.size < 0}, 128<<10)
	if c.unpacked, c.compression, err = decompress(stored); err != nil {
		return c, err
	}
	c.digest = digester{src: c.unpacked, sum: sha256.New()}
	c.Reader = reset(&buf.content, &c.digest, 128<<10)
	c.head, err = c.Peek(headBytes)
	if err != nil && err != io.EOF && len(c.head) == 0 { // else it comes again, after what could be read
		return c, err
	}
	if err := checkEncoding(c.head); err != nil {
		return c, err
	}
	if bytes.HasPrefix(c.head, byteOrderMark) {
		c.head = c.head[len(byteOrderMark):]
		_, _ = c.Discard(len(byteOrderMark)) // it is in the buffer
	}
	return c, nil
}

// changed reports whether a file is another one since it was opened, or was written to.
func (c *content) changed() bool {
	if c.file == nil || !c.opened.Mode().IsRegular() {
		return false
	}
	now, err := os.Stat(c.source.name)
	return err != nil || !os.SameFile(now, c.opened) || now.Size() != c.opened.Size() || !now.ModTime().Equal(c.opened.ModTime())
}

func (c *content) close() {
	if c.unpacked != nil {
		c.unpacked.Close()
	}
	if c.file != nil {
		c.file.Close()
	}
}

// explain returns the error of an input for one of reading it, at a line if that is not 0. FILE in a hint becomes its
// name.
func (c *content) explain(ctx context.Context, line int64, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	name := c.source.name
	var e *Error
	if errors.As(err, &e) {
		if e.File == "" { // else it is the spool's
			e.File = name
			e.Hint = strings.ReplaceAll(e.Hint, "FILE", name)
		}
		return err
	}
	e = &Error{File: name, Line: line, Problem: plainError(err), Err: err}
	if c.compression != "" {
		explainCompression(e, c.compression, err)
	}
	return e
}

// plainError drops the name of the file from an error of package os: our own errors begin with it.
func plainError(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return err.Error()
}

// A meter counts the bytes of an input before decompression, and stops when the context ends. Its errors stay: the peeks
// before an input is read must not swallow the end of one that comes from a terminal.
type meter struct {
	ctx  context.Context
	src  io.Reader
	read *atomic.Int64
	err  error

	// mayWait is for a source whose reads may take for ever, as those of a pipe or a terminal do. They have a buffer of
	// their own, for one that is left alone when the context ends.
	mayWait bool
	apart   []byte
}

func (m *meter) Read(p []byte) (int, error) {
	if m.err == nil {
		m.err = m.ctx.Err()
	}
	if m.err != nil {
		return 0, m.err
	}
	var n int
	if m.mayWait {
		if m.apart == nil {
			m.apart = make([]byte, 128<<10)
		}
		buf := m.apart[:min(len(p), len(m.apart))]
		n, m.err = untilEnd(m.ctx, func() (int, error) { return m.src.Read(buf) })
		copy(p, buf[:n])
	} else {
		n, m.err = m.src.Read(p)
	}
	m.read.Add(int64(n))
	return n, m.err
}

// openFile opens a file. That of a named pipe waits until somebody writes to it, or ctx ends.
func openFile(ctx context.Context, name string) (*os.File, error) {
	if info, err := os.Stat(name); err == nil && info.Mode().IsRegular() {
		return os.Open(name)
	}
	return untilEnd(ctx, func() (*os.File, error) { return os.Open(name) })
}

// untilEnd returns what do returns, or the error of ctx if that ends first. Then do is left alone: nothing ends a read of
// a terminal but the process.
func untilEnd[T any](ctx context.Context, do func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		v, err := do()
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

// A digester counts and hashes the bytes of an input's content.
type digester struct {
	src io.Reader
	sum hash.Hash
	n   int64
}

func (d *digester) Read(p []byte) (int, error) {
	n, err := d.src.Read(p)
	d.sum.Write(p[:n])
	d.n += int64(n)
	return n, err
}
