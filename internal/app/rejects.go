package app

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"groupferry/importer"
)

// Stdout is the name of standard output, for [InputConfig.Rejects].
const Stdout = "-"

// Rejects are the rejected rows of an input, and where they go. A file with other content is never written to, for
// somebody may have fixed the rows in it, or it may be an input: then the rejects go to another one, NAME-2.csv and so
// on. A device or a pipe is written to, a link to a file is refused.
type Rejects struct {
	File  string // that has them or gets them; "" if there are none, or they go elsewhere
	Other string // the file that was to get them, and has other content; "" if there is none
	Older string // if there are none: the file that they would go to, and that is there from an earlier run

	plan  *importer.Plan
	name  string       // of what is written to
	write func() error // nil if there is nothing to write
}

// A RejectsError says that rejects cannot be written.
type RejectsError struct {
	Name string
	Err  error
}

func (e *RejectsError) Error() string {
	return fmt.Sprintf("the rejected rows cannot be written to %s: %v", e.Name, e.Err)
}

func (e *RejectsError) Unwrap() error { return e.Err }

// findRejects decides where the rejects of a plan go. It writes nothing, but makes sure that a file can be made there. The
// error is a *RejectsError.
func findRejects(plan *importer.Plan, name string, stdout io.Writer) (*Rejects, error) {
	r := &Rejects{plan: plan}
	if plan.Summary.Rejected == 0 {
		if info, err := os.Lstat(name); err == nil && info.Mode().IsRegular() && info.Size() > 0 && !r.isInput(info) {
			r.Older = name
		}
		return r, nil
	}
	if r.name = name; name == Stdout {
		r.write = func() error { return plan.WriteRejects(stdout) }
		return r, nil
	}
	for n := 1; ; n++ {
		if n > 1 {
			ext := filepath.Ext(name)
			r.name, r.Other = fmt.Sprintf("%s-%d%s", strings.TrimSuffix(name, ext), n, ext), name
		}
		if found, err := r.try(r.name); err != nil {
			return nil, &RejectsError{r.name, reason(err)}
		} else if found {
			return r, nil
		}
	}
}

// try reports whether the rejects can go to a file, or are there.
func (r *Rejects) try(file string) (bool, error) {
	info, err := os.Lstat(file)
	if errors.Is(err, fs.ErrNotExist) {
		r.File, r.write = file, func() error { return r.create(file) }
		probe, err := os.CreateTemp(filepath.Dir(file), ".rejects-*")
		if err != nil {
			return false, err
		}
		probe.Close()
		return true, os.Remove(probe.Name())
	}
	link := err == nil && info.Mode()&fs.ModeSymlink != 0
	if link {
		info, err = os.Stat(file)
	}
	switch {
	case link && (err != nil || info.Mode().IsRegular()):
		return false, errors.New("it is a link to a file")
	case err != nil:
		return false, err
	case info.IsDir():
		return false, errors.New("it is a directory")
	case !info.Mode().IsRegular():
		r.File, r.write = "", func() error { return r.fill(file) }
		return true, nil
	case info.Size() > 0:
		r.File, r.write = file, nil
		return r.isIn(file), nil
	case r.isInput(info): // an empty one
		return false, nil
	}
	r.File, r.write = file, func() error { return r.fill(file) }
	return true, nil
}

// isInput reports whether a file is one of the inputs.
func (r *Rejects) isInput(info fs.FileInfo) bool {
	for _, name := range r.plan.Files {
		if input, err := os.Stat(name); err == nil && os.SameFile(input, info) {
			return true
		}
	}
	return false
}

// isIn reports whether a file has the rejects and nothing else.
func (r *Rejects) isIn(file string) bool {
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	have := bufio.NewReaderSize(f, 64<<10)
	if r.plan.WriteRejects(&comparer{have: have}) != nil {
		return false
	}
	_, err = have.ReadByte()
	return err == io.EOF
}

// A comparer fails when something else is written to it than what have has.
type comparer struct {
	have *bufio.Reader
	buf  []byte
}

func (c *comparer) Write(p []byte) (int, error) {
	c.buf = append(c.buf[:0], p...)
	if _, err := io.ReadFull(c.have, c.buf); err != nil {
		return 0, err
	}
	if !bytes.Equal(c.buf, p) {
		return 0, errors.New("other content")
	}
	return len(p), nil
}

// create makes the file, unless somebody else just did. It is written beside and renamed, so that a crash leaves no half
// of it.
func (r *Rejects) create(file string) error {
	f, err := os.CreateTemp(filepath.Dir(file), ".rejects-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	err = r.plan.WriteRejects(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	reserved, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(reserved.Close(), os.Rename(f.Name(), file))
}

// fill writes into what is there and has nothing in it: an empty file, a device, a pipe.
func (r *Rejects) fill(file string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(r.plan.WriteRejects(f), f.Close())
}

// Keep writes the rejects, unless they are there already. The error is a *RejectsError.
func (r *Rejects) Keep() error {
	if r.write == nil {
		return nil
	}
	if err := r.write(); err != nil {
		return &RejectsError{r.name, reason(err)}
	}
	return nil
}

// reason drops the name of a temporary file from an error.
func reason(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
