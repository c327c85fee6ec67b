package importer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// streamDigest is a digest of all that a plan has to say: the jobs in their order, and the rejects.
func streamDigest(t *testing.T, p *Plan) string {
	t.Helper()
	h := sha256.New()
	var b []byte
	for j := range p.Jobs() {
		b = j.AppendJSON(b[:0])
		h.Write(b)
	}
	if err := p.Err(); err != nil {
		t.Fatal(err)
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
		if len(users) == 0 || spread(name)>>(64-partitionBits) == spread(users[0])>>(64-partitionBits) {
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
			{Config{workers: 3}, false},
			{Config{workers: 3, resident: -1}, true},
			{Config{workers: 2, resident: 100_000}, true},
			{Config{workers: 1, memory: 1}, false},
			{Config{workers: 1, memory: 3_000_000, resident: -1}, true}, // much is over a limit before a partition is split
			{Config{workers: 2, memory: 40_000, resident: -1}, true},    // every partition is split, and some of their parts
			{Config{workers: 2, memory: 8 << 20}, false},
			{Config{workers: 2, memory: 64 << 20}, false},
		} {
			tc.cfg.SpoolDir = t.TempDir()
			p := readString(t, input.text, tc.cfg)
			if got := streamDigest(t, p); got != want {
				t.Errorf("%d workers, %d bytes of memory, %d resident: got another stream", tc.cfg.workers, tc.cfg.memory,
					tc.cfg.resident)
			}
			if on := p.Summary.Spooled > 0; on != tc.onDisk {
				t.Errorf("%d resident: got %d bytes on disk", tc.cfg.resident, p.Summary.Spooled)
			}
			alone, split := int64(0), false
			for _, r := range p.runs {
				if len(r.jobs) > 0 {
					alone++
				} else if len(r.excess.extents) > 0 {
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
		for j := range p.Jobs() {
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

// TestSpoolIsRemoved looks for files that should be gone: after Close, after a refusal, and those that a process left
// which died.
func TestSpoolIsRemoved(t *testing.T) {
	dir := t.TempDir()
	left := func() []string {
		t.Helper()
		names, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	cfg := Config{SpoolDir: dir, resident: -1}
	dead := filepath.Join(dir, spoolPrefix+"123"+spoolSuffix)
	foreign := filepath.Join(dir, "groupferry-notes.txt")
	for _, name := range []string{dead, foreign} {
		if err := os.WriteFile(name, []byte("rows"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg.Stdin = strings.NewReader(someRows)
	p, err := Read(context.Background(), []string{"-"}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if names := left(); len(names) != 2 || names[0] == dead || names[1] == dead {
		t.Errorf("got %q, want the file at work and what is not ours", names)
	}
	other := readString(t, someRows, cfg) // may not remove the file of the first one
	if got, want := len(jobTexts(p)), int(p.Summary.Jobs); got != want || p.Err() != nil {
		t.Errorf("got %d jobs and %v, want %d", got, p.Err(), want)
	}
	if err := errors.Join(p.Close(), other.Close(), p.Close()); err != nil {
		t.Errorf("close: %v", err)
	}
	readError(t, csvHeader+strings.Repeat("u,g,1,x,\n", 100)+"\xff", Config{SpoolDir: dir, resident: -1, Format: "xml"})
	_, err = Read(context.Background(), []string{"-"}, Config{
		SpoolDir: dir, resident: -1, Stdin: strings.NewReader(gzipped(overfull(10_000))[:20_000]),
	})
	if err == nil {
		t.Error("got no error, want one for data that is cut off")
	}
	if names := left(); len(names) != 1 || names[0] != foreign {
		t.Errorf("got %q, want nothing of ours left", names)
	}
}

// TestSpooled puts aside inputs of each kind: what is asked for before has to be there, and is not far too much.
func TestSpooled(t *testing.T) {
	if raceEnabled {
		t.Skip("much to do, and nothing in it that the others do not do at once")
	}
	const n = 800_000 // much beside the 8 MiB that stay in the buffers of the partitions
	each := func(head string, row func(i int) string) string {
		var b strings.Builder
		b.WriteString(head)
		for i := range n {
			b.WriteString(row(i*7919%n) + "\n")
		}
		return b.String()
	}
	rows := each(csvHeader, func(i int) string { return fmt.Sprintf("user%d,Book club,1,peer%d,", i/20, uint32(i)*2654435761%1e8) })
	var bodies strings.Builder
	for i := range n {
		if i%50 == 0 {
			fmt.Fprintf(&bodies, `{"From_Account":"user%d","GroupContactItem":[{"GroupName":"Book club","ContactItem":[`, i/50)
		}
		fmt.Fprintf(&bodies, `{"Type":1,"To_Account":"peer%d"}`, i)
		if i%50 == 49 {
			bodies.WriteString("]}]}\n")
		} else {
			bodies.WriteByte(',')
		}
	}
	for _, tc := range []struct {
		name, content string
		cfg           Config
	}{
		{"a.csv", rows, Config{}},
		{"full.csv", each(csvHeader, func(i int) string {
			return fmt.Sprintf("user%d,Book club,1,%032d,", i/1000, i)
		}), Config{}},
		{"over.csv", overfull(n), Config{}},
		{"split.csv", overfull(n), Config{memory: 400_000}},
		{"owner.csv", each("group_name,type,to_account,to_group_id\n", func(i int) string {
			return fmt.Sprintf("Book club %d,1,peer%d,", i%20, i)
		}), Config{Owner: "user123456"}},
		{"a.csv.gz", gzipped(rows), Config{}},
		{"a.csv.zst", zstded(t, rows), Config{}},
		{"a.jsonl", each("", func(i int) string {
			return fmt.Sprintf(`{"from_account":"user%d","group_name":"Book club","type":1,"to_account":"peer%d"}`, i/20, i)
		}), Config{}},
		{"bodies.jsonl", bodies.String(), Config{}},
	} {
		name := filepath.Join(t.TempDir(), tc.name)
		if err := os.WriteFile(name, []byte(tc.content), 0o600); err != nil {
			t.Fatal(err)
		}
		o, err := settle(tc.cfg)
		if err != nil {
			t.Fatal(err)
		}
		got := o.spooled(source{name: name, size: int64(len(tc.content))})
		tc.cfg.SpoolDir, tc.cfg.resident = t.TempDir(), -1
		p, err := Read(t.Context(), []string{name}, tc.cfg)
		if err != nil {
			t.Fatal(err)
		}
		if want := p.Summary.Spooled; got < want || got > 3*want {
			t.Errorf("%s: got %d bytes asked for, want at least the %d that were put aside, and not three times that",
				tc.name, got, want)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestSpoolRoom has extents of all sizes come and go: none is written over another one, and the file does not grow for
// what fits where something was.
func TestSpoolRoom(t *testing.T) {
	s, err := newSpool(t.TempDir(), 10*chunkBytes)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	r := rand.New(rand.NewPCG(1, 2))
	type kept struct {
		extent
		fill byte
	}
	var all []kept
	put := func(n int) {
		t.Helper()
		k := kept{fill: byte(r.Uint32())}
		if k.extent, err = s.put(bytes.Repeat([]byte{k.fill}, n)); err != nil {
			t.Fatal(err)
		}
		all = append(all, k)
	}
	check := func(k kept) {
		t.Helper()
		got, err := s.get(k.extent, nil)
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(got, []byte{k.fill}); n != int(k.size) || len(got) != n {
			t.Fatalf("%+v: got %d bytes, %d of them as they were put", k.extent, len(got), n)
		}
	}
	for range 50_000 {
		switch {
		case len(all) > 100:
			i := r.IntN(len(all))
			check(all[i])
			s.release(all[i].extent)
			all = slices.Delete(all, i, i+1)
		case r.IntN(2) == 0:
			put(chunkBytes - r.IntN(2*leastRest))
		case r.IntN(2) == 0:
			put(1 + r.IntN(2*leastRest))
		default:
			put(1 + r.IntN(3*chunkBytes))
		}
	}
	for _, k := range all {
		check(k)
	}
	for range 100 {
		put(chunkBytes)
	}
	before := s.size.Load()
	for range 10 {
		for range 100 {
			check(all[len(all)-1])
			s.release(all[len(all)-1].extent)
			all = all[:len(all)-1]
		}
		for range 100 {
			put(chunkBytes - r.IntN(maxStored))
		}
	}
	if after := s.size.Load(); after != before {
		t.Errorf("got %d bytes more for what fits where the same was", after-before)
	}
}

// TestSpoolFaults says what is wrong with the place for sorting, and what to do.
func TestSpoolFaults(t *testing.T) {
	dir := t.TempDir()
	for _, tc := range []struct{ dir, want string }{
		{filepath.Join(dir, "none"), "no such directory"},
		{os.Args[0], "is no directory"},
	} {
		err := readError(t, someRows, Config{SpoolDir: tc.dir})
		if !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "--spool-dir") {
			t.Errorf("got %v, want %s and --spool-dir", err, tc.want)
		}
	}
	s, err := newSpool(dir, -1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.put([]byte("rows")); err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if err := s.require(1 << 62); err == nil || !strings.Contains(err.Error(), "are needed") {
		t.Errorf("got %v, want a refusal of more than any disk has", err)
	}
	if err := s.require(1); err != nil {
		t.Errorf("got %v, want a byte to be free", err)
	}
	full := s.fault(&os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC})
	if want := dir + ": the disk is full, with 16 KiB of rows put aside there; " + spoolHint; full.Error() != want {
		t.Errorf("got %v, want %s", full, want)
	}

	// What was put aside may be damaged afterwards: that is told, and no job is made up.
	p := readString(t, overfull(50_000), Config{SpoolDir: t.TempDir(), resident: -1})
	if err := p.spool.file.Truncate(p.spool.size.Load() / 2); err != nil {
		t.Fatal(err)
	}
	n := int64(0)
	for range p.Jobs() {
		n++
	}
	if n >= p.Summary.Jobs || p.Err() == nil {
		t.Errorf("got %d of %d jobs and %v, want fewer and an error", n, p.Summary.Jobs, p.Err())
	}
	if err := p.WriteRejects(io.Discard); err == nil {
		t.Error("got no error from rejects that cannot be read")
	}

	for _, resident := range []int{0, -1} {
		p := readString(t, overfull(50_000), Config{SpoolDir: t.TempDir(), resident: resident})
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		for range p.Jobs() {
			t.Fatal("got a job of a plan that was closed")
		}
		if err := p.Err(); err == nil || !strings.Contains(err.Error(), "the plan was closed") {
			t.Errorf("got %v, want word of the plan that was closed", err)
		}
	}
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
	size := int64(5 << 30)
	if testing.Short() || raceEnabled {
		size = 128 << 20
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
		{"gzip unclosed", gz, csvHeader, "\"\n", 100_000, 0, 100_000},
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
			for range p.Rejects() {
				n++
			}
			if n != s.Rejected || p.Err() != nil {
				t.Errorf("got %d rejects and %v, want %d", n, p.Err(), s.Rejected)
			}
		})
	}
}
