package importer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxZstdWindow bounds what a zstd input can make the decoder hold: the most that zstd itself takes without --long
// is 8 MiB, and --long=25 is 32 MiB.
const maxZstdWindow = 32 << 20

// sniffBytes is how far into an input its format is looked for.
const sniffBytes = 4 << 10

// A source is one input to be read.
type source struct {
	name string // as given; what a glob matched goes by its own name
	size int64  // bytes as stored, -1 when unknown
}

// spooled estimates how many bytes are put aside for a source of ordinary rows. Of a row of CSV about as many are as it
// has, and the owner where one is given; the jobs, or what is over a limit, take the place of the rows. A row takes three
// times as much as JSONL but not in a whole request body, and as little as its id in documents. Compressed input is taken
// for CSV at a quarter of its size. Short rows take more, and so do those that are rejected. TestScale measures the disk
// that was used.
func (o *options) spooled(s source) int64 {
	owner := s.size / 16 * int64(len(o.Owner))
	switch {
	case s.size < 0:
		return 0
	case strings.HasSuffix(s.name, ".gz"), strings.HasSuffix(s.name, ".zst"):
		return 5 * s.size
	case o.preset.documents:
		return 5 * s.size / 2
	case o.Format == FormatJSONL, o.Format == FormatAuto && sniff(s.name, nil) == FormatJSONL:
		return s.size + owner
	}
	return s.size + s.size/4 + owner
}

const stdin = "-"

// expand turns what the caller named into sources. All of them are looked at before the first is read, so that a
// misspelt last name does not cost the time to read the others.
func (in *intake) expand(inputs []string) ([]source, error) {
	if len(inputs) == 0 {
		return nil, &ConfigError{Field: "inputs", Problem: "nothing to read: no input was named"}
	}
	var sources []source
	seen := map[string]bool{}
	add := func(name string) error {
		key := name
		if name != stdin {
			key = filepath.Clean(name)
		}
		if seen[key] {
			in.notices = append(in.notices, name+" is named twice and read once")
			return nil
		}
		seen[key] = true
		s := source{name: name, size: -1}
		if name == stdin {
			if in.Stdin == nil {
				return &Error{File: name, Problem: "there is no standard input here"}
			}
		} else {
			info, err := os.Stat(name)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return &Error{File: name, Problem: "no such file", Err: err}
			case err != nil:
				return &Error{File: name, Problem: plainError(err), Err: err}
			case info.IsDir():
				return &Error{File: name, Problem: "is a directory",
					Hint: "name the files in it, for example " + filepath.Join(name, "*.csv")}
			case info.Mode().IsRegular():
				s.size = info.Size()
			}
		}
		sources = append(sources, s)
		return nil
	}
	for _, input := range inputs {
		if _, err := os.Stat(input); input == stdin || err == nil || !strings.ContainsAny(input, "*?[") {
			if err := add(input); err != nil {
				return nil, err
			}
			continue
		}
		names, err := filepath.Glob(input)
		if err != nil {
			return nil, &Error{File: input, Problem: "is no pattern of file names", Err: err}
		}
		if len(names) == 0 {
			return nil, &Error{File: input, Problem: "matches no file", Err: fs.ErrNotExist}
		}
		slices.Sort(names)
		for _, name := range names {
			if err := add(name); err != nil {
				return nil, err
			}
		}
	}
	for _, s := range sources {
		if s.size < 0 {
			in.progress.Total = 0
			break
		}
		in.progress.Total += s.size
	}
	return sources, nil
}

// plainError drops the name of the file from an error of package os: our own errors begin with it.
func plainError(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return err.Error()
}

// readSource reads one input to its end.
func (in *intake) readSource(ctx context.Context, s source) error {
	var file io.Reader = in.Stdin
	if s.name != stdin {
		f, err := os.Open(s.name)
		if err != nil {
			return &Error{File: s.name, Problem: plainError(err), Err: err}
		}
		defer f.Close()
		file = f
	}
	stored := bufio.NewReaderSize(&meter{ctx: ctx, in: in, src: file}, 128<<10)
	unpacked, packed, err := unpack(stored)
	if err != nil {
		return in.damage(ctx, s, packed, 0, err)
	}
	defer unpacked.Close()
	sum := sha256.New()
	counted := &digester{src: unpacked, sum: sum}
	content := bufio.NewReaderSize(counted, 128<<10)

	index := len(in.files)
	in.files = append(in.files, s.name)
	head, err := content.Peek(sniffBytes)
	if err != nil && err != io.EOF && len(head) == 0 { // else it comes again, behind what could be read
		return in.damage(ctx, s, packed, 0, err)
	}
	if e := refused(head); e != nil {
		return in.damage(ctx, s, packed, 0, e)
	}
	if bytes.HasPrefix(head, bom) {
		head = head[len(bom):]
		if _, err := content.Discard(len(bom)); err != nil {
			return in.damage(ctx, s, packed, 0, err)
		}
	}
	format := in.Format
	switch {
	case in.preset.documents:
		format = formatDocuments
	case format == FormatAuto:
		format = sniff(s.name, head)
	}
	if len(head) == 0 {
		// A JSONL export of nothing is an empty file. A CSV export of nothing still has its header: without one it is
		// more likely an export that broke, and taking it for "no groups" would be wrong.
		if format == FormatCSV {
			return &Error{File: s.name, Problem: "is empty", Hint: "a CSV file begins with a header"}
		}
		in.notices = append(in.notices, s.name+" is empty")
	}

	var r reader
	switch format {
	case FormatCSV:
		c, err := newCSV(content, in.Delimiter, in.columns)
		if err != nil {
			return in.damage(ctx, s, packed, c.at(), err)
		}
		for _, name := range c.others() {
			in.ignore(index, name)
		}
		r = c
	case formatDocuments:
		r = newDocuments(content, in.Preset)
	default:
		r = newJSONL(content, in.columns)
	}
	if err := in.pump(ctx, r, index); err != nil {
		return in.damage(ctx, s, packed, r.at(), err)
	}
	if c, ok := r.(*csvInput); ok && c.split.open {
		// JSON that is cut off is no JSON, but half of an id is an id.
		in.notices = append(in.notices,
			s.name+": the last line has no line end; if the file was cut off there, its last row is not what it should be")
	}
	in.summary.Files++
	in.summary.Bytes += counted.n
	fmt.Fprintf(in.digest, "input %s\n%x\n", in.jobOptions(format), sum.Sum(nil))
	return nil
}

// damage makes the error of an input out of what a reader said. FILE in a hint becomes the name of the input.
func (in *intake) damage(ctx context.Context, s source, packed string, line int64, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var e *Error
	if errors.As(err, &e) {
		if e.File != "" {
			return err // not about the input, but about the place where rows are put aside
		}
		e.File = s.name
		e.Hint = strings.ReplaceAll(e.Hint, "FILE", s.name)
		return e
	}
	e = &Error{File: s.name, Line: line, Problem: plainError(err), Err: err}
	switch {
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		e.Problem = fmt.Sprintf("zstd with a window over %d MiB", maxZstdWindow>>20)
		e.Hint = "compress it again without --long or --ultra, or unpack it first"
	case packed != "" && (errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)):
		e.Problem = "the " + packed + " data is cut off"
		e.Hint = "fetch or make the file again"
	case packed != "":
		e.Problem = "the " + packed + " data is damaged: " + plainError(err)
		e.Hint = "fetch or make the file again"
	}
	return e
}

// unpack tells compression by the first bytes and takes it off; packed names it, "" for none.
func unpack(r *bufio.Reader) (content io.ReadCloser, packed string, err error) {
	magic, err := r.Peek(4)
	if err != nil && err != io.EOF {
		return nil, "", err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(r)
		return z, "gzip", err
	case len(magic) == 4 && (bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) || // a frame
		magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18})): // a frame to be skipped before it
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, "zstd", err
		}
		return z.IOReadCloser(), "zstd", nil
	}
	return io.NopCloser(r), "", nil
}

var bom = []byte("\xef\xbb\xbf")

// refused tells, by the first bytes, what would otherwise come out as nothing but rejects.
func refused(head []byte) *Error {
	for _, magic := range []struct{ bytes, what string }{
		{"PK\x03\x04", "a spreadsheet or a zip archive"},
		{"BZh", "compressed with bzip2"},
		{"\xfd7zXZ\x00", "compressed with xz"},
	} {
		if bytes.HasPrefix(head, []byte(magic.bytes)) {
			return &Error{Problem: "is " + magic.what,
				Hint: "export or unpack it first: CSV, JSONL, gzip and zstd can be read"}
		}
	}
	utf16 := func(name string) *Error {
		return &Error{Problem: "is UTF-16 text", Hint: "convert it: iconv -f " + name + " -t UTF-8 FILE > utf8.csv"}
	}
	switch {
	case bytes.HasPrefix(head, []byte("\xff\xfe")), bytes.HasPrefix(head, []byte("\xfe\xff")):
		return utf16("UTF-16")
	case len(head) >= 2 && head[0] != 0 && head[1] == 0:
		return utf16("UTF-16LE")
	case len(head) >= 2 && head[0] == 0 && head[1] != 0:
		return utf16("UTF-16BE")
	}
	return nil
}

// sniff tells the format by the name of an input, or else by the first byte that is no white space.
func sniff(name string, head []byte) Format {
	name = strings.ToLower(name)
	for _, ext := range []string{".gz", ".zst"} {
		name = strings.TrimSuffix(name, ext)
	}
	switch filepath.Ext(name) {
	case ".csv":
		return FormatCSV
	case ".jsonl", ".ndjson":
		return FormatJSONL
	}
	if bytes.HasPrefix(bytes.TrimLeft(head, " \t\r\n"), []byte("{")) {
		return FormatJSONL
	}
	return FormatCSV
}

// A meter counts the bytes of an input as stored, and stops when the context ends. Its errors stay: the peeks before
// an input is read must not take away the end of one that comes from a terminal.
type meter struct {
	ctx context.Context
	in  *intake
	src io.Reader
	err error
}

func (m *meter) Read(p []byte) (int, error) {
	if m.err == nil {
		m.err = m.ctx.Err()
	}
	if m.err != nil {
		return 0, m.err
	}
	n, err := m.src.Read(p)
	m.err = err
	m.in.read.Add(int64(n))
	return n, err
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

// progressEvery is the shortest time between two calls of Config.Progress.
const progressEvery = 100 * time.Millisecond

// tell reports progress, unless it did so just before.
func (in *intake) tell(last bool) {
	if in.Progress == nil {
		return
	}
	now := time.Now()
	if !last && now.Sub(in.told) < progressEvery {
		return
	}
	in.told = now
	in.progress.Rows, in.progress.Bytes = in.summary.Rows, in.read.Load()
	in.Progress(in.progress)
}
