package importer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// TestUnclosedQuotes has several lines that depend on each other.
func TestUnclosedQuotes(t *testing.T) {
	const never = "parse a quote opens here and is never closed"
	for _, tc := range []struct {
		name, rows string
		jobs       []string
		rejects    []string
		warnings   []int64
	}{
		{
			name:    "to the end of the file",
			rows:    "u1,\"a,1,x1,\nu1,a,1,x2,\nu1,a,1,x3,\n",
			jobs:    []string{"u1/a: 1:x2@-:3 1:x3@-:4"},
			rejects: []string{"2 " + never},
		},
		{
			name:    "without a line end behind it",
			rows:    "u1,a,1,x2,\nu1,\"a,1,x1,",
			jobs:    []string{"u1/a: 1:x2@-:2"},
			rejects: []string{"3 " + never},
		},
		{
			name:    "two in a row",
			rows:    "u1,\"a,1,x1,\nu1,\"a,1,x2,\nu1,a,1,x3,\n",
			jobs:    []string{"u1/a: 1:x3@-:4"},
			rejects: []string{"2 " + never, "3 " + never},
		},
		{
			name:    "closed further down with the wrong number of fields",
			rows:    "u1,\"a,1,x1,\nu1,a,1,x2,\n\"u1\",a,1,x3,\n",
			jobs:    []string{"u1/a: 1:x2@-:3 1:x3@-:4"},
			rejects: []string{"2 " + never},
		},
		{
			name:    "closed on the next line",
			rows:    "u1,a,1,x1,\"\n\"\"u1,a,1,x2,\nu1,a,1,x3,\n",
			jobs:    []string{"u1/a: 1:x3@-:4"},
			rejects: []string{"2 " + never, "3 parse text follows a closing quote"},
		},
		{
			name: "closed so that the record is sound",
			rows: "u1,\"a,1,x1,\nu1,a,1,x2,\nb\",1,x3,\nu1,a,1,x4,\n",
			jobs: []string{"u1/a: 1:x4@-:5"},
			// By the rules of CSV lines 2 to 4 are one record; the warning says that it may not have been meant.
			rejects:  []string{"2 50002 group_name holds a control character"},
			warnings: []int64{2},
		},
		{
			name: "wrong count over several lines",
			rows: "u1,a,\"1\nx\"\nu1,a,1,x4,\n",
			jobs: []string{"u1/a: 1:x4@-:4"},
			rejects: []string{
				"2 parse a quote opens here and closes in line 3, which leaves 3 fields where the header has 5",
			},
		},
		{
			name: "a field too many behind closed quotes",
			rows: "u1,\"a\nu9,a,1,x9,\nb\",1,x3,,more\nu1,a,1,x4,\n",
			jobs: []string{"u1/a: 1:x4@-:5"},
			rejects: []string{ // and none of its lines is a row
				"2 parse a quote opens here and closes in line 4, which leaves 6 fields where the header has 5",
			},
		},
		{
			name:    "over the longest record",
			rows:    "u1,\"a,1,x1,\n" + strings.Repeat("u1,a,1,x2,\n", 7000) + "\"u1\",a,1,x3,\n",
			jobs:    []string{"u1/a: 1:x2@-:3 1:x3@-:7003"},
			rejects: []string{"2 parse a quote opens here and is never closed within 64 KiB"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := readString(t, csvHeader+tc.rows, Config{})
			wantLines(t, "jobs", jobTexts(t, p), tc.jobs...)
			wantLines(t, "rejects", rejectTexts(t, p), tc.rejects...)
			var lines []int64
			for _, w := range p.Warnings {
				lines = append(lines, w.Line)
			}
			if !slices.Equal(lines, tc.warnings) {
				t.Errorf("got warnings at %v, want %v", lines, tc.warnings)
			}
		})
	}
}

// TestMultilineFields reads records that are right to have line ends in them, in a column that is not ours.
func TestMultilineFields(t *testing.T) {
	p := readString(t, "\n\r\nnote,from_account,\"group\nname\",group_name,to_account\r\n"+
		"\"one\ntwo\r\n\r\nthree\",u1,,g,x1\n\nplain,u1,,g,x2\n", Config{})
	wantLines(t, "jobs", jobTexts(t, p), "u1/g: 1:x1@-:5 1:x2@-:10")
	wantLines(t, "notices", p.Notices, `-: columns ignored: "note", "group\nname"`)
	if len(rejectsOf(t, p))+len(p.Warnings) != 0 {
		t.Errorf("got %v and %v, want neither rejects nor warnings", rejectsOf(t, p), p.Warnings)
	}
}

// TestLongLines has a line that is many times as long as the buffer, and one that just fits.
func TestLongLines(t *testing.T) {
	fits := "u1,g,1,x1," + strings.Repeat(" ", maxRecord-len("u1,g,1,x1,"))
	for _, end := range []string{"\n", "\r\n"} {
		p := readString(t, csvHeader+fits+end+strings.Repeat("x,", 2<<20)+end+fits+"y"+end+"u1,g,1,x2,"+end, Config{})
		wantLines(t, "rejects", rejectTexts(t, p),
			"2 50002 type 1 has its id in to_account, and to_group_id is filled too",
			"3 parse the line is over 64 KiB",
			"4 parse the line is over 64 KiB")
		wantLines(t, "jobs", jobTexts(t, p), "u1/g: 1:x2@-:5")
	}
}

// TestSlowSource gives the same rows when the input comes one byte at a time.
func TestSlowSource(t *testing.T) {
	input := csvHeader + "u1,\"g\n\",1,x1,\nu1,g,1,x2,\nu1,\"g,1,x3,\nu1,g,1,x4,\n"
	cols, _ := newColumns(nil)
	var got, want recorder
	if _, err := readCSV(strings.NewReader(input), ',', cols, 0, &want); err != nil {
		t.Fatal(err)
	}
	if _, err := readCSV(iotest.OneByteReader(strings.NewReader(input)), ',', cols, 0, &got); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.rows, want.rows) || !slices.Equal(got.rejects, want.rejects) {
		t.Errorf("got %v %v, want %v %v", got.rows, got.rejects, want.rows, want.rejects)
	}
}

func TestBrokenSource(t *testing.T) {
	broken := errors.New("disk on fire")
	cols, _ := newColumns(nil)
	for _, input := range []string{"", "from_acc", csvHeader, csvHeader + "u1,g,1,x1,\nu1,g"} {
		src := &brokenReader{strings.NewReader(input), broken}
		line, err := readCSV(src, ',', cols, 0, &recorder{})
		if !errors.Is(err, broken) {
			t.Errorf("%q: got %v, want %v", input, err, broken)
		}
		if want := int64(strings.Count(input, "\n")) + 1; line != want {
			t.Errorf("%q: got line %d, want %d", input, line, want)
		}
	}
}

type brokenReader struct {
	r   *strings.Reader
	err error
}

func (b *brokenReader) Read(p []byte) (int, error) {
	if b.r.Len() == 0 {
		return 0, b.err
	}
	return b.r.Read(p)
}

// TestBlocks has an input of many blocks, with records of several lines, and no line may be off in any of them.
func TestBlocks(t *testing.T) {
	var b strings.Builder
	b.WriteString(csvHeader)
	for i := range 60_000 {
		switch {
		case i%1000 == 7:
			fmt.Fprintf(&b, "u%d,\"a\n\r\n\"\"b\"\"\n%s\",1,x,\r\n\n", i, strings.Repeat("z", i%5000))
		default:
			fmt.Fprintf(&b, "u%d,group,1,\"peer,%d\",\n", i, i)
		}
	}
	input := []byte(b.String())
	want, sound := soundRecords(input)
	if !sound || len(want) != 60_000 {
		t.Fatalf("got %d records, want 60000 sound ones", len(want))
	}
	cols, _ := newColumns(nil)
	var got recorder
	if _, err := readCSV(bytes.NewReader(input), ',', cols, 0, &got); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.rows, want) || len(got.rejects) != 0 {
		t.Errorf("got %d rows and %d rejects, want the same %d rows and lines as by one reader",
			len(got.rows), len(got.rejects), len(want))
	}
}

// TestBlockOfShortLines checks that a block has not as many lines as it has room for: each of them can be a reject.
func TestBlockOfShortLines(t *testing.T) {
	cols, _ := newColumns(nil)
	in, err := newCSVSplitter(strings.NewReader(csvHeader+strings.Repeat("x\n", 500_000)), new(buffers), ',', cols)
	if err != nil {
		t.Fatal(err)
	}
	var b block
	for err == nil {
		b.reset(0)
		err = in.next(&b)
		if lines := bytes.Count(b.data, []byte("\n")); lines > blockLines+maxRecord/2 {
			t.Fatalf("got %d lines in a block, want %d and one run of lines at most", lines, blockLines)
		}
	}
	if at := in.at(); err != io.EOF || at != 500_002 {
		t.Errorf("got to line %d, %v; want 500002, EOF", at, err)
	}
}

// TestLookahead has the longest record end exactly where the buffer ends but for the LF, and with CRLF: its line end must
// be read before it is scanned, or the LF counts as a line.
func TestLookahead(t *testing.T) {
	record := `u2,g,1,x2,"` + strings.Repeat(" ", maxRecord-len(`u2,g,1,x2,""`)) + `"`
	for short := range 4 { // bytes of the record and its line end that are not in the buffer yet
		b := bytes.NewBufferString(csvHeader)
		for pad := 8*maxRecord - (maxRecord + 2 - short) - b.Len(); pad > 0; { // rows up to the record
			n := min(pad, 1000)
			if pad-n < 100 {
				n = pad
			}
			b.WriteString("u1,g,1,x1," + strings.Repeat(" ", n-len("u1,g,1,x1,\n")) + "\n")
			pad -= n
		}
		first := int64(bytes.Count(b.Bytes(), []byte("\n"))) + 1
		b.WriteString(record + "\r\nu3,g,1,x3,\n")
		cols, _ := newColumns(nil)
		var got recorder
		if _, err := readCSV(b, ',', cols, 0, &got); err != nil {
			t.Fatal(err)
		}
		if len(got.rejects) != 0 {
			t.Fatalf("%d bytes short: got rejects %.100v", short, got.rejects)
		}
		last := got.rows[len(got.rows)-2:]
		if last[0].line != first || last[1].line != first+1 {
			t.Errorf("%d bytes short: got the last rows in lines %d and %d, want %d and %d",
				short, last[0].line, last[1].line, first, first+1)
		}
	}
}
