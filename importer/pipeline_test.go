package importer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"testing"

	"groupferry/internal/longtest"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	src := io.MultiReader(strings.NewReader(gzipped(someRows)), readerFunc(func([]byte) (int, error) {
		cancel()
		return 0, nil
	}))
	_, err := Read(ctx, []string{"-"}, Config{Stdin: src})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

func TestProgress(t *testing.T) {
	packed := gzipped(someRows)
	files(t, map[string]string{"a.csv.gz": packed, "b.csv": someRows})
	var last Progress
	calls := 0
	_, err := Read(context.Background(), []string{"a.csv.gz", "b.csv"}, Config{Progress: func(p Progress) {
		if p.Rows < last.Rows || p.Bytes < last.Bytes {
			t.Errorf("got %+v after %+v", p, last)
		}
		last = p
		calls++
	}})
	if err != nil {
		t.Fatal(err)
	}
	n := int64(len(packed) + len(someRows))
	if want := (Progress{Rows: 4, Bytes: n, Total: n, Sorting: true, Sorted: 100}); last != want || calls == 0 {
		t.Errorf("got %+v at the end of %d calls, want %+v", last, calls, want)
	}
}

// TestSortingProgress has reports between the beginning and the end of the sorting.
func TestSortingProgress(t *testing.T) {
	var last Progress
	between := 0
	_, err := Read(t.Context(), []string{"-"}, Config{Stdin: strings.NewReader(overfull(50_000)), progressEvery: 1,
		Progress: func(p Progress) {
			if p.Sorting && p.Sorted < 100 {
				between++
			}
			if last.Sorting && (!p.Sorting || p.Sorted < last.Sorted || p.Sorted > 100) {
				t.Errorf("got %+v after %+v", p, last)
			}
			last = p
		}})
	if err != nil || between == 0 || !last.Sorting || last.Sorted != 100 {
		t.Errorf("got %d reports amid the sorting, the last one %+v, %v", between, last, err)
	}
}

// TestWorkers does not take more memory for more cores.
func TestWorkers(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(64))
	o, err := normalizeConfig(t.Context(), Config{})
	if err != nil || o.workers != maxWorkers {
		t.Errorf("got %d workers on 64 cores, %v; want %d", o.workers, err, maxWorkers)
	}
}

// TestSmallFiles reads many small files with the buffers of one: they would cost more than the rows.
func TestSmallFiles(t *testing.T) {
	const many = 200
	content := map[string]string{}
	for i := range many {
		content[fmt.Sprintf("%d.csv", i)] = csvHeader + fmt.Sprintf("u%d,g,1,x,\n", i)
		content[fmt.Sprintf("%d.jsonl", i)] = fmt.Sprintf(`{"from_account":"u%d","group_name":"h","to_account":"x"}`+"\n", i)
	}
	files(t, content)
	for _, ext := range []string{"csv", "jsonl"} {
		allocated := func(glob string) int64 {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			p, err := Read(t.Context(), []string{glob}, Config{})
			if err != nil {
				t.Fatal(err)
			}
			p.Close()
			runtime.ReadMemStats(&after)
			return int64(after.TotalAlloc - before.TotalAlloc)
		}
		if each := (allocated("*."+ext) - allocated("1."+ext)) / (many - 1); each > 64<<10 {
			t.Errorf("%s: each file takes %d bytes more", ext, each)
		}
	}
}

// streamDigest is a digest of all that a plan has to say: the jobs in their order, and the rejects.
func streamDigest(t *testing.T, p *Plan) string {
	t.Helper()
	h := sha256.New()
	var b []byte
	for _, j := range jobsOf(t, p) {
		b = j.AppendJSON(b[:0])
		h.Write(b)
	}
	if err := p.WriteRejects(h); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(h, "%+v", p.Warnings)
	return hex.EncodeToString(h.Sum(nil))
}

// overfull makes rows of all kinds: groups of many users, one user with a third of all rows, over both limits, with
// duplicates, bad rows and names that are nearly the same.
func overfull(rows int) string {
	var b strings.Builder
	b.WriteString(csvHeader)
	for i := range rows {
		n := i * 7919 % rows
		switch {
		case n%3 == 0:
			fmt.Fprintf(&b, "whale,g%d,1,peer%d,\n", n/3%23, n/5)
		case n%31 == 0:
			fmt.Fprintf(&b, "user%d,\"g%d,1,x,\n", n%100, n)
		case n%37 == 0:
			fmt.Fprintf(&b, "user%d,G %d,2,,@TGS#%d\n", n%100, n%5, n/500)
		default:
			fmt.Fprintf(&b, "user%d,g%d,1,peer%d,\n", n%100, n%5, n/500)
		}
	}
	return b.String()
}

// TestSameStream has the same input come to the same jobs and rejects, whatever the memory, the cores and the place.
func TestSameStream(t *testing.T) {
	var full strings.Builder // of groups whose jobs are longer than what is written at once
	full.WriteString(csvHeader)
	for i := range 60_000 {
		n := i * 7919 % 60_000
		fmt.Fprintf(&full, "user%d,g%d,1,%032d,\n", n/1000%20, n/20_000, n)
	}
	// Users of one partition, one of whom has most rows, and has too many before the last one comes.
	var together strings.Builder
	together.WriteString(csvHeader)
	var users []string
	for i := 0; len(users) < 40; i++ {
		name := fmt.Sprintf("user%d", i)
		if len(users) == 0 || partitionOf(hashUser(name), 0, partitionBits) == partitionOf(hashUser(users[0]), 0, partitionBits) {
			users = append(users, name)
		}
	}
	for i := range 120_000 {
		n := i * 7919 % 120_000
		switch user := users[i/7%(1+i/3000)]; {
		case n%5 > 1:
			fmt.Fprintf(&together, "%s,g%d,1,peer%d,\n", users[0], n/5%23, n/7)
		default:
			fmt.Fprintf(&together, "%s,g%d,1,peer%d,\n", user, n%22, n/7)
		}
	}
	for _, input := range []struct {
		text  string
		users int64
	}{{overfull(120_000), 101}, {full.String(), 20}, {together.String(), 40}} {
		usual := readString(t, input.text, Config{})
		want := streamDigest(t, usual)
		s := usual.Summary
		if s.Users != input.users {
			t.Fatalf("got %+v, want %d users", s, input.users)
		}
		if codes := s.RejectCodes; input.users != 20 && (s.Duplicates == 0 || codes[codeTooManyGroups] == 0 ||
			codes[codeTooManyConversations] == 0) {
			t.Fatalf("got %+v, want some of everything", s)
		}
		for _, tc := range []struct {
			cfg    Config
			onDisk bool
		}{
			{Config{workers: 1}, false},
			{Config{workers: 3, resident: -1}, true},
			{Config{workers: 2, resident: 100_000}, true},
			{Config{workers: 1, memory: 1}, false},
			{Config{workers: 1, memory: 3_000_000, resident: -1}, true}, // much is over a limit before a partition is split
			{Config{workers: 2, memory: 40_000, resident: -1}, true},    // every partition is split, and some of their parts
			{Config{workers: 2, memory: 8 << 20}, false},
		} {
			tc.cfg.SpoolDir = t.TempDir()
			p := readString(t, input.text, tc.cfg)
			if got := streamDigest(t, p); got != want {
				t.Errorf("%d workers, %d bytes of memory, %d resident: got another stream", tc.cfg.workers, tc.cfg.memory,
					tc.cfg.resident)
			}
			// What is split again and again does not fit into memory.
			if on := p.Summary.Spooled > 0; on != tc.onDisk && tc.cfg.memory != 1 {
				t.Errorf("%d resident: got %d bytes on disk", tc.cfg.resident, p.Summary.Spooled)
			}
			alone, split := int64(0), false
			for _, r := range p.runs {
				if r.jobs[0].size > 0 {
					alone++
				} else if len(r.overLimit.segments) > 0 {
					split = true
				}
			}
			if tc.cfg.memory == 1 && alone < input.users {
				t.Errorf("got %d runs with jobs, want one for each of %d users", alone, input.users)
			}
			if tc.cfg.memory == 3_000_000 && input.users == 40 && !split {
				t.Error("no partition was split after much of it was over a limit")
			}
		}
	}
}

// TestSameRows has rows in any order come to the same groups, and CSV and JSONL to the same jobs but for the lines.
func TestSameRows(t *testing.T) {
	input, _ := shuffled(1, 500, 7, 9)
	stream := func(p *Plan) (lines []string) {
		for _, j := range jobsOf(t, p) {
			s := j.FromAccount + "/" + j.GroupName + ":"
			for _, c := range j.Conversations {
				s += fmt.Sprintf(" %d:%s", c.Type, c.ID)
			}
			lines = append(lines, s)
		}
		return lines
	}
	p := readString(t, string(input), Config{})
	var jsonl bytes.Buffer
	rows := recorder{}
	cols, _ := newColumns(nil)
	if _, err := readCSV(bytes.NewReader(input), ',', cols, 0, &rows); err != nil {
		t.Fatal(err)
	}
	for _, r := range rows.rows {
		fmt.Fprintf(&jsonl, `{"from_account":%q,"group_name":%q,"type":%s,"to_account":%q,"to_group_id":%q}`+"\n",
			r.field[colFrom], r.field[colGroup], r.field[colType], r.field[colUser], r.field[colChat])
	}
	wantLines(t, "jsonl", stream(readString(t, jsonl.String(), Config{})), stream(p)...)
}

// endless gives n bytes of a line, after a beginning, and notes the most memory in use meanwhile.
type endless struct {
	begin string
	fill  []byte
	n     int64
	at    int64
	most  uint64
}

func (e *endless) Read(p []byte) (int, error) {
	if e.begin != "" {
		n := copy(p, e.begin)
		e.begin = e.begin[n:]
		return n, nil
	}
	if e.at >= e.n {
		return 0, io.EOF
	}
	if e.at>>26 != (e.at+int64(len(p)))>>26 { // every 64 MiB
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		e.most = max(e.most, m.HeapAlloc)
	}
	if len(e.fill) < len(p) {
		e.fill = bytes.Repeat([]byte("x"), len(p))
	}
	e.at += int64(len(p))
	return copy(p, e.fill), nil
}

// TestEndlessLine has lines that no memory holds.
func TestEndlessLine(t *testing.T) {
	size := int64(128 << 20)
	if longtest.Asked() && !raceEnabled {
		size = 5 << 30
	}
	for _, tc := range []struct {
		name, begin string
		size        int64
		want        string
	}{
		{"field", csvHeader + "u1,g,1,x1,\nu1,g,1,", size, "the line is over 64 KiB"},
		{"quoted field", csvHeader + "u1,g,1,x1,\nu1,\"g,1,", size / 8, "the line is over 64 KiB"},
		{"JSON string", `{"from_account":"u1","group_name":"g","to_account":"x1"}` + "\n" + `{"from_account":"`, size / 8, "the line is over 1024 KiB"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			runtime.GC() // what other tests have left does not count
			src := &endless{begin: tc.begin, n: tc.size}
			p, err := Read(context.Background(), []string{"-"}, Config{Stdin: src})
			if err != nil {
				t.Fatal(err)
			}
			closeAtEnd(t, p)
			rejects := rejectsOf(t, p)
			if len(rejects) != 1 || rejects[0].Reason != tc.want || p.Summary.Accepted != 1 {
				t.Errorf("got %+v and %+v, want one reject: %s", p.Summary, rejects, tc.want)
			}
			if most := uint64(100 << 20); src.most > most {
				t.Errorf("got %d MiB in use, want %d at most", src.most>>20, most>>20)
			}
		})
	}
	t.Run("header", func(t *testing.T) {
		src := &endless{begin: "from_account,", n: size / 16}
		_, err := Read(context.Background(), []string{"-"}, Config{Stdin: src})
		if err == nil || !strings.Contains(err.Error(), "the line is over 64 KiB") {
			t.Errorf("got %v, want a refusal of the header", err)
		}
	})
}

// TestBombs unpacks far more than there was packed, in rows that are all the same and in one line.
func TestBombs(t *testing.T) {
	gz := func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }
	zs := func(w io.Writer) io.WriteCloser {
		z, err := zstd.NewWriter(w)
		if err != nil {
			t.Fatal(err)
		}
		return z
	}
	for _, tc := range []struct {
		name               string
		packer             func(io.Writer) io.WriteCloser
		begin, again       string
		n                  int
		accepted, rejected int64
	}{
		{"gzip rows", gz, csvHeader, "u1,g,1,x1,\n", 500_000, 1, 0},
		{"zstd rows", zs, csvHeader, "u1,g,1,x1,\n", 500_000, 1, 0},
		{"gzip line", gz, csvHeader + "u1,g,1,x1,\n", strings.Repeat("0", 1<<20), 256, 1, 1},
		{"zstd line", zs, csvHeader + "u1,g,1,x1,\n", strings.Repeat("0", 1<<20), 256, 1, 1},
		{"gzip rejects", gz, csvHeader, ",,,,\n", 500_000, 0, 500_000},
		{"gzip unclosed", gz, csvHeader, "\"\n", 100_000, 0, 50_000},
		{"gzip empty lines", gz, csvHeader, "\n", 50 << 20, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var packed bytes.Buffer
			z := tc.packer(&packed)
			io.WriteString(z, tc.begin)
			chunk := []byte(strings.Repeat(tc.again, max(1, min(tc.n, 1<<16/len(tc.again)))))
			for left := tc.n * len(tc.again); left > 0; left -= len(chunk) {
				if _, err := z.Write(chunk[:min(left, len(chunk))]); err != nil {
					t.Fatal(err)
				}
			}
			if err := z.Close(); err != nil {
				t.Fatal(err)
			}
			src := &endless{begin: packed.String()}
			p, err := Read(context.Background(), []string{"-"}, Config{Stdin: src, SpoolDir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			closeAtEnd(t, p)
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			if most := uint64(150 << 20); m.HeapAlloc > most {
				t.Errorf("got %d MiB in use, want %d at most", m.HeapAlloc>>20, most>>20)
			}
			s := p.Summary
			if s.Accepted != tc.accepted || s.Rejected != tc.rejected || s.Accepted+s.Duplicates+s.Rejected != s.Rows {
				t.Errorf("got %+v, want %d accepted and %d rejected", s, tc.accepted, tc.rejected)
			}
			n := int64(0)
			for _, err := range p.Rejects() {
				if err != nil {
					t.Fatal(err)
				}
				n++
			}
			if n != s.Rejected {
				t.Errorf("got %d rejects, want %d", n, s.Rejected)
			}
		})
	}
}

// A fakeSplitter has n blocks of one row each, and then an error.
type fakeSplitter struct {
	blocks, n int
	err       error
}

func (s *fakeSplitter) next(b *block) error {
	if s.blocks == s.n {
		return s.err
	}
	s.blocks++
	r := row{position: position{b.file, int64(s.blocks)}, noType: true}
	r.field[colFrom], r.field[colGroup], r.field[colUser] = "u", "g", fmt.Sprint(s.blocks)
	b.rows = append(b.rows, r)
	return nil
}

func (s *fakeSplitter) newParser() parser { return documentParser{} }
func (s *fakeSplitter) at() int64         { return int64(s.blocks) }

func newTestPipeline(t *testing.T, cfg Config) *pipeline {
	t.Helper()
	o, err := normalizeConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return newPipeline(o, newTestSpool(t, residentBytes))
}

// TestPumpStops ends soon after a cancel, and after an error of the spool, without reading the input to its end.
func TestPumpStops(t *testing.T) {
	const many = 10_000
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	p := newTestPipeline(t, Config{})
	split := &fakeSplitter{n: many, err: io.EOF}
	if err := p.pump(cancelled, split, 0); err != context.Canceled || split.blocks > 2*len(p.blocks) {
		t.Errorf("got %v after %d blocks, want %v after a few", err, split.blocks, context.Canceled)
	}

	p = newTestPipeline(t, Config{})
	p.spool.dir, p.spool.limit = "none", 0
	for i := range p.partitions {
		p.partitions[i].tail = make([]byte, segmentBytes)
	}
	split = &fakeSplitter{n: many, err: io.EOF}
	if err := p.pump(t.Context(), split, 0); !errors.Is(err, fs.ErrNotExist) || split.blocks > 2*len(p.blocks) {
		t.Errorf("got %v after %d blocks, want %v after a few", err, split.blocks, fs.ErrNotExist)
	}
}

// TestPumpOrder has the rows of all blocks in order, and the error behind them.
func TestPumpOrder(t *testing.T) {
	broken := errors.New("disk on fire")
	p := newTestPipeline(t, Config{workers: 3})
	p.files = []string{"-"}
	if err := p.pump(t.Context(), &fakeSplitter{n: 500, err: broken}, 0); err != broken {
		t.Fatalf("got %v, want %v", err, broken)
	}
	plan, err := p.group(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	checkSums(t, plan)
	jobs := jobsOf(t, plan)
	if len(jobs) != 1 || len(jobs[0].Conversations) != 500 {
		t.Fatalf("got %d jobs, want 1 of 500 conversations", len(jobs))
	}
	for i, c := range jobs[0].Conversations {
		if c.Line != int64(i+1) || c.ID != fmt.Sprint(i+1) {
			t.Fatalf("conversation %d: got %+v", i, c)
		}
	}
}

// TestGroupAllStops returns the error of ctx, or the first one of a worker.
func TestGroupAllStops(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := newTestPipeline(t, Config{}).group(cancelled, nil); err != context.Canceled {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	p := newTestPipeline(t, Config{workers: 3})
	if err := p.partitions[7].add(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	p.partitions[7].segments = []segment{{0, 1}}
	p.spool.close()
	if _, err := p.group(t.Context(), nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v, want %v", err, os.ErrClosed)
	}
}
