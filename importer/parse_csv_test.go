package importer

import (
	"bytes"
	"encoding/csv"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// FuzzCSV holds the splitter and gocsv against one reader of encoding/csv. Where that reads all of an input, the rows
// and their lines must be the same; on any other input, every line that is not empty must be in exactly one row or
// reject.
func FuzzCSV(f *testing.F) {
	for _, s := range []string{
		"u1,g,1,u2,\n",
		"u1,\"g\n\",1,u2,\r\n\r\nu1,g,2,,\"\"\"\"\n",
		"u1,\"g,1,u2,\nu3,\"g\",1,u4,\nu5,g\n",
		"\",\",\"\n\",,,\n,,,,\r",
		"a,b,c,d,\"\"\n\"a\"b,c\n\ra,b,c,d,e\r\r\n\x00,\xff,,,",
		"\"\n\"\"\n\",,,,\n\",\n,\",,,\n",
	} {
		f.Add([]byte(s))
	}
	cols, _ := newColumns(nil)
	f.Fuzz(func(t *testing.T, data []byte) {
		input := append([]byte(csvHeader), data...)
		var got recorder
		if _, err := readCSV(bytes.NewReader(input), ',', cols, 0, &got); err != nil {
			t.Fatalf("read: %v", err)
		}
		if got.refused > 0 {
			return // another header in the middle
		}
		want, sound := soundRecords(input)
		if sound && (!slices.Equal(got.rows, want) || len(got.rejects) != 0) {
			t.Errorf("got %v and rejects %v, want %v", got.rows, got.rejects, want)
		}
		checkCover(t, input, &got)
		readString(t, string(input), Config{Format: FormatCSV})
	})
}

// soundRecords reads input with encoding/csv alone; sound is false if that refuses any of it.
func soundRecords(input []byte) (records []record, sound bool) {
	r := csv.NewReader(bytes.NewReader(input))
	r.FieldsPerRecord = int(numColumns)
	if _, err := r.Read(); err != nil {
		return nil, false
	}
	for {
		from := r.InputOffset()
		fields, err := r.Read()
		if err != nil {
			return records, err == io.EOF
		}
		if r.InputOffset()-from > maxRecord || strings.HasPrefix(strings.ToLower(fields[0]), "from_account") ||
			strings.HasPrefix(fields[0], string(byteOrderMark)) {
			return nil, false // we are stricter here
		}
		line, _ := r.FieldPos(0)
		records = append(records, record{line: int64(line), field: [numColumns]string(fields)})
	}
}

// closesIn finds the last line of a record that is rejected as a whole.
var closesIn = regexp.MustCompile(`closes in line (\d+), which`)

// checkCover tells for each physical line behind the header to which row or reject it belongs.
func checkCover(t *testing.T, input []byte, got *recorder) {
	t.Helper()
	lines := bytes.Split(input, []byte("\n"))
	cover := make([]int, len(lines)+1)
	for _, r := range got.rows {
		last := r.line
		for _, f := range r.field {
			last += int64(strings.Count(f, "\n"))
		}
		for l := r.line; l <= last; l++ {
			cover[l]++
		}
	}
	for _, r := range got.rejects {
		last := r.line
		if m := closesIn.FindStringSubmatch(r.reason); m != nil {
			last, _ = strconv.ParseInt(m[1], 10, 64)
		}
		for l := r.line; l <= last; l++ {
			cover[l]++
		}
	}
	for i, line := range lines[1:] {
		n := i + 2
		empty := len(line) == 0 || string(line) == "\r"
		if c := cover[n]; c > 1 || c == 0 && !empty {
			t.Errorf("line %d %q: got it %d times, want once", n, line, c)
		}
	}
}
