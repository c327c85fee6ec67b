package importer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func newTestSpool(t *testing.T, limit int) *spool {
	t.Helper()
	s, err := newSpool(t.TempDir(), limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.close() })
	return s
}

// TestSpool has several goroutines put segments of all sizes: each is read as it was put, from memory and from the file.
func TestSpool(t *testing.T) {
	const limit = 100_000
	s := newTestSpool(t, limit)
	var wait sync.WaitGroup
	var total [4]int
	for w := range total {
		wait.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(w)))
			var want [][]byte
			var segments []segment
			var buf []byte
			for range 200 {
				b := bytes.Repeat([]byte{byte(r.Uint32())}, r.IntN(3*segmentBytes))
				seg, err := s.put(b)
				if err != nil {
					t.Error(err)
					return
				}
				total[w] += len(b)
				want, segments = append(want, slices.Clone(b)), append(segments, seg)
				clear(b) // put may not keep it
				i := r.IntN(len(want))
				if got, err := s.get(segments[i], &buf); err != nil || !bytes.Equal(got, want[i]) {
					t.Errorf("segment %d: got %d bytes that differ or %v", i, len(got), err)
				}
			}
		})
	}
	wait.Wait()
	sum := int64(total[0] + total[1] + total[2] + total[3])
	if got := s.onDisk(); got < sum-limit || got >= sum {
		t.Errorf("got %d bytes on disk, want %d without the %d in memory", got, sum, limit)
	}
	if info, err := s.file.Stat(); err != nil || info.Size() != s.onDisk() {
		t.Errorf("got a file of %d bytes, want %d", info.Size(), s.onDisk())
	}
}

func TestSpoolInMemory(t *testing.T) {
	s := newTestSpool(t, 10)
	for _, b := range []string{"12345", "67890"} {
		if _, err := s.put([]byte(b)); err != nil || s.file != nil {
			t.Fatalf("%s: got a file or %v, want it in memory", b, err)
		}
	}
	if _, err := s.put([]byte("1")); err != nil || s.onDisk() != 1 {
		t.Errorf("got %d bytes on disk and %v, want 1", s.onDisk(), err)
	}
}

// TestSpoolIsDeleted looks for files where rows are spooled: there is none even while a plan is open, so none is left
// when the process dies.
func TestSpoolIsDeleted(t *testing.T) {
	dir := t.TempDir()
	check := func(when string) {
		t.Helper()
		if names, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(names) != 0 {
			t.Errorf("%s: got %q and %v, want no file", when, names, err)
		}
	}
	cfg := Config{SpoolDir: dir, resident: -1, Stdin: strings.NewReader(someRows)}
	p, err := Read(context.Background(), []string{"-"}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if p.Summary.Spooled == 0 {
		t.Fatal("got nothing on disk, want the rows there")
	}
	if runtime.GOOS != "windows" {
		check("while the plan is open")
	}
	wantLines(t, "jobs", jobTexts(t, p), "u1/g: 1:x1@-:2 1:x2@-:3")
	if err := errors.Join(p.Close(), p.Close()); err != nil {
		t.Errorf("close: %v", err)
	}
	check("after Close")
	cfg.Stdin = strings.NewReader(gzipped(overfull(10_000))[:20_000])
	if _, err := Read(context.Background(), []string{"-"}, cfg); err == nil {
		t.Error("got no error, want one for data that is cut off")
	}
	check("after an error")
}

// TestSpoolErrors says what is wrong with the directory, and what to do.
func TestSpoolErrors(t *testing.T) {
	dir := t.TempDir()
	for _, tc := range []struct{ dir, want string }{
		{filepath.Join(dir, "none"), "no such directory"},
		{os.Args[0], "is no directory"},
	} {
		err := readError(t, someRows, Config{SpoolDir: tc.dir})
		if !strings.HasPrefix(err.Error(), tc.dir+": ") || !strings.Contains(err.Error(), tc.want) ||
			!strings.Contains(err.Error(), "--spool-dir") {
			t.Errorf("got %v, want %s, %s and --spool-dir", err, tc.dir, tc.want)
		}
	}
	s := newTestSpool(t, -1)
	full := s.inputError(&os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC})
	want := s.dir + ": the disk is full; make room there, or name another directory with --spool-dir"
	if full.Error() != want || !errors.Is(full, syscall.ENOSPC) {
		t.Errorf("got %v, want %s", full, want)
	}
	for _, limit := range []int{100, -1} {
		s := newTestSpool(t, limit)
		seg, err := s.put([]byte("rows"))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
		var buf []byte
		if _, err := s.get(seg, &buf); !errors.Is(err, os.ErrClosed) || !strings.Contains(err.Error(), "the plan was closed") {
			t.Errorf("limit %d: got %v, want word of the plan that was closed", limit, err)
		}
	}
}

// TestNoTempDir needs no directory for what fits into memory.
func TestNoTempDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	for _, name := range []string{"TMPDIR", "TMP", "TEMP"} {
		t.Setenv(name, dir)
	}
	if p := readString(t, someRows, Config{}); p.Summary.Accepted == 0 {
		t.Errorf("got %+v", p.Summary)
	}
	err := readError(t, overfull(10_000), Config{resident: -1})
	if want := dir + ": no such directory; make room there, or name another directory with --spool-dir"; err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// TestRecordLog reads back records of many sizes, none of them cut.
func TestRecordLog(t *testing.T) {
	log := recordLog{spool: newTestSpool(t, 3*segmentBytes)}
	r := rand.New(rand.NewPCG(1, 2))
	var want []int
	for i := range 2_000 {
		n := 4 + r.IntN(100)
		if i%100 == 50 {
			n = 4 + r.IntN(3*segmentBytes)
		}
		record := bytes.Repeat([]byte{byte(i)}, n)
		record[0], record[1], record[2], record[3] = byte(n), byte(n>>8), byte(n>>16), byte(i)
		if err := log.add(record[:2], record[2:]); err != nil {
			t.Fatal(err)
		}
		want = append(want, n)
	}
	if len(log.segments) < 10 {
		t.Fatalf("got %d segments, want many", len(log.segments))
	}
	for range 2 { // a log is read any number of times
		var got []int
		reader := logReader{log: &log}
		for {
			b, err := reader.next()
			if err == io.EOF {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			for len(b) > 0 {
				n := int(b[0]) | int(b[1])<<8 | int(b[2])<<16
				if fill := byte(len(got)); n > len(b) || b[3] != fill || bytes.Count(b[3:n], []byte{fill}) != n-3 {
					t.Fatalf("record %d is not as it was added", len(got))
				}
				got, b = append(got, n), b[n:]
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %d records, want %d of the same sizes", len(got), len(want))
		}
	}
}
