package importer

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/klauspost/compress/zstd"

	"groupferry/internal/job"
)

// Snapshot goes through what the sync knew before this import, the nights of [Base.Groups] folded together: by the hash of
// the user, the user and the group name. A plan without a base has none.
func (p *Plan) Snapshot() iter.Seq2[Group, error] {
	return func(yield func(Group, error) bool) {
		var g Group
		var key groupKey
		for _, r := range p.runs {
			reader := logReader{log: &r.base}
			for {
				records, err := reader.next()
				if err == io.EOF {
					break
				}
				if err != nil {
					yield(Group{}, err)
					return
				}
				for len(records) > 0 {
					var row spooledRow
					row, records = decodeSpooledRow(records)
					if string(row.group) != string(key) {
						if key != nil && !yield(g, nil) {
							return
						}
						key = append(key[:0:0], row.group...)
						g = Group{FromAccount: string(key.user()), GroupName: string(key.name())}
					}
					g.Conversations = append(g.Conversations, GroupConversation{
						Type: row.entry.kind(), ID: string(row.entry.id()), State: stateOf(baseState(row.entry)),
					})
				}
			}
		}
		if key != nil {
			yield(g, nil)
		}
	}
}

// snapshotHeader begins a snapshot; the number grows if the form changes.
const snapshotHeader = "groupferry snapshot 1\n"

// maxSnapshotText is the longest id or name of a snapshot in bytes. A spooled row has one byte for the size.
const maxSnapshotText = 254

// WriteSnapshot writes groups in the form that [ReadSnapshot] reads, compressed by zstd:
//
//	header │ size, user │ size, group name │ 1 + count │ state and type, size, id │ … │ size, user │ … │ 0 0 0 │ number of groups
//
// Sizes and counts are uvarints. A snapshot that is cut off lacks its end.
func WriteSnapshot(w io.Writer, groups iter.Seq2[Group, error]) (n int64, err error) {
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(true))
	if err != nil {
		return 0, err
	}
	defer z.Close()
	b := bufio.NewWriter(z)
	b.WriteString(snapshotHeader) // the error stays until Flush
	var record []byte
	for g, err := range groups {
		if err != nil {
			return n, err
		}
		record = appendText(appendText(record[:0], g.FromAccount), g.GroupName)
		record = binary.AppendUvarint(record, 1+uint64(len(g.Conversations)))
		for _, c := range g.Conversations {
			record = appendText(append(record, byte(c.State)<<4|byte(c.Type)), c.ID)
		}
		if _, err := b.Write(record); err != nil {
			return n, err
		}
		n++
	}
	b.Write(binary.AppendUvarint([]byte{0, 0, 0}, uint64(n)))
	if err := b.Flush(); err != nil {
		return n, err
	}
	return n, z.Close()
}

// ErrSnapshot is wrapped by the error of a snapshot that is damaged, cut off, or of another form.
var ErrSnapshot = errors.New("the snapshot cannot be read")

// ReadSnapshot goes through the groups of a snapshot. An error, which wraps [ErrSnapshot], ends the sequence.
func ReadSnapshot(r io.Reader) iter.Seq2[Group, error] {
	return func(yield func(Group, error) bool) {
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(32<<20))
		if err != nil {
			yield(Group{}, fmt.Errorf("%w: %w", ErrSnapshot, err))
			return
		}
		defer z.Close()
		s := snapshotReader{r: bufio.NewReaderSize(z, 64<<10)}
		if head := s.text(len(snapshotHeader)); s.err == nil && head != snapshotHeader {
			s.fail("it is of another form")
		}
		for n := uint64(0); ; n++ {
			g, end := s.group()
			if end && s.err == nil {
				if s.number() != n {
					s.fail("it does not have as many groups as it says")
				} else if _, err := s.r.ReadByte(); s.err == nil && err != io.EOF {
					s.fail("something follows its end")
				}
			}
			if s.err != nil {
				yield(Group{}, fmt.Errorf("%w: %w", ErrSnapshot, s.err))
			}
			if s.err != nil || end || !yield(g, nil) {
				return
			}
		}
	}
}

// A snapshotReader reads the parts of a snapshot. After its first error it reads nothing more.
type snapshotReader struct {
	r   *bufio.Reader
	buf []byte
	err error
}

func (s *snapshotReader) fail(text string) { s.err = errors.New(text) }

func (s *snapshotReader) number() uint64 {
	if s.err != nil {
		return 0
	}
	n, err := binary.ReadUvarint(s.r)
	s.err = noEOF(err)
	return n
}

func (s *snapshotReader) text(n int) string {
	if s.err != nil {
		return ""
	}
	if n > cap(s.buf) {
		s.buf = make([]byte, n)
	}
	_, err := io.ReadFull(s.r, s.buf[:n])
	s.err = noEOF(err)
	return string(s.buf[:n])
}

func (s *snapshotReader) sized() string {
	n := s.number()
	if n > maxSnapshotText {
		s.fail("a text in it is too long")
		return ""
	}
	return s.text(int(n))
}

// group reads a group, or the mark at the end.
func (s *snapshotReader) group() (g Group, end bool) {
	g.FromAccount, g.GroupName = s.sized(), s.sized()
	count := s.number()
	if count == 0 {
		return g, true
	}
	for range count - 1 {
		kind := s.text(1)
		id := s.sized()
		if s.err != nil {
			return g, false
		}
		c := GroupConversation{Type: int(kind[0] & 0xf), ID: id, State: State(kind[0] >> 4)}
		if c.Type != job.OneToOne && c.Type != job.GroupChat || c.State >= Removed {
			s.fail("a type or a state in it is not known")
			return g, false
		}
		g.Conversations = append(g.Conversations, c)
	}
	return g, false
}

// noEOF is err; an end is no end in the middle of a snapshot.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
