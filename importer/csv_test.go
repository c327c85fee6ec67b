package importer

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

func TestCSVRejects(t *testing.T) {
	long := strings.Repeat("a", 33)
	for _, tc := range []struct{ name, row, want string }{
		{"sound", `u1,g,1,u2,`, ""},
		{"sound group chat", `u1,g,2,,@TGS#2`, ""},
		{"quotes around everything", `"u1","g","1","u2",""`, ""},
		{"quotes and commas in a name", `u1,"a ""b"", c",1,u2,`, ""},
		{"name of 32 bytes", `u1,` + strings.Repeat("é", 16) + `,1,u2,`, ""},
		{"id with a space inside", `u 1,g,1,u2,`, ""},
		{"no user", `,g,1,u2,`, "2 50002 from_account is empty"},
		{"long user", long + `,g,1,u2,`, "2 50002 from_account has 33 bytes, 32 at most"},
		{"user not ASCII", `ü,g,1,u2,`, "2 50002 from_account holds a character that is not printable ASCII"},
		{"user with NUL", "u\x00,g,1,u2,", "2 50002 from_account holds a character that is not printable ASCII"},
		{"user with DEL", "u\x7f,g,1,u2,", "2 50002 from_account holds a character that is not printable ASCII"},
		{"user begins with a space", ` u1,g,1,u2,`, "2 50002 from_account begins or ends with a space"},
		{"user ends with a space", `u1 ,g,1,u2,`, "2 50002 from_account begins or ends with a space"},
		{"no name", `u1,,1,u2,`, "2 50002 group_name is empty"},
		{"blank name", `u1, ,1,u2,`, "2 50002 group_name is empty"},
		{"name not UTF-8", "u1,\xff,1,u2,", "2 50002 group_name is not valid UTF-8"},
		{"name with a control character", "u1,a\tb,1,u2,", "2 50002 group_name holds a control character"},
		{"name with a line end", "u1,\"a\nb\",1,u2,", "2 50002 group_name holds a control character"},
		{"name with a lone CR", "u1,\"a\rb\",1,u2,", "2 50002 group_name holds a control character"},
		{"name of 33 bytes", `u1,` + strings.Repeat("家", 11) + `,1,u2,`, "2 51011 group_name has 33 bytes, 32 at most"},
		{"no type", `u1,g,,u2,`, "2 50002 type is empty"},
		{"no type, both ids", `u1,g,,u2,@TGS#2`, "2 50002 type is empty"},
		{"type 0", `u1,g,0,u2,`, "2 50002 type is neither 1 nor 2"},
		{"type 01", `u1,g,01,u2,`, "2 50002 type is neither 1 nor 2"},
		{"type 1.0", `u1,g,1.0,u2,`, "2 50002 type is neither 1 nor 2"},
		{"type +1", `u1,g,+1,u2,`, "2 50002 type is neither 1 nor 2"},
		{"type with a space", `u1,g, 1,u2,`, "2 50002 type is neither 1 nor 2"},
		{"type 0x1", `u1,g,0x1,u2,`, "2 50002 type is neither 1 nor 2"},
		{"no user id", `u1,g,1,,`, "2 50002 to_account is empty"},
		{"id of the other type", `u1,g,1,,@TGS#2`, "2 50002 to_account is empty"},
		{"no group id", `u1,g,2,u2,`, "2 50002 to_group_id is empty"},
		{"both ids", `u1,g,1,u2,@TGS#2`, "2 50002 type 1 has its id in to_account, and to_group_id is filled too"},
		{"both ids, group", `u1,g,2,u2,@TGS#2`, "2 50002 type 2 has its id in to_group_id, and to_account is filled too"},
		{"long user id", `u1,g,1,` + long + `,`, "2 50002 to_account has 33 bytes, 32 at most"},
		{"long group id", `u1,g,2,,` + strings.Repeat("a", 49), "2 50002 to_group_id has 49 bytes, 48 at most"},
		{"too few fields", `u1,g,1,u2`, "2 parse 4 fields where the header has 5"},
		{"too many fields", `u1,g,1,u2,,x`, "2 parse 6 fields where the header has 5"},
		{"blanks only", `   `, "2 parse 1 field where the header has 5"},
		{"quote in a field", `u1,a"b,1,u2,`, "2 parse a quote stands in a field that does not begin with one"},
		{"space before a quote", `u1, "b",1,u2,`, "2 parse a quote stands in a field that does not begin with one"},
		{"text after a quote", `u1,"a"b,1,u2,`, "2 parse text follows a closing quote"},
		{"unclosed quote", `u1,"a,1,u2,`, "2 parse a quote opens here and is never closed"},
		{"unclosed last quote", `u1,a,1,u2,"`, "2 parse a quote opens here and is never closed"},
		{"header again", `from_account,group_name,type,to_account,to_group_id`, "2 parse the header stands here again"},
		{"header again with a byte order mark", "\ufeffFrom_Account,group_name,type,to_account,to_group_id",
			"2 parse the header stands here again"},
		{"long record", strings.Repeat("x", maxRecord+1), "2 parse the line is over 64 KiB"},
		{"comment", "#u1,g,1,u2", "2 parse 4 fields where the header has 5"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			// Good neighbours before and behind never suffer. One of them is quoted, to close what is open.
			s := strings.Replace(csvHeader, "\n", "\r\n", 1) + tc.row + "\nn1,g,1,n2,\nn1,g,1,\"n3\",\n"
			p := readString(t, s, Config{})
			var want []string
			accepted := int64(3)
			if tc.want != "" {
				want, accepted = []string{tc.want}, 2
			}
			wantLines(t, "rejects", rejectTexts(p), want...)
			if p.Summary.Accepted != accepted {
				t.Errorf("got %d accepted, want %d", p.Summary.Accepted, accepted)
			}
		})
	}
}

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
				"3 parse a quote stands in a field that does not begin with one",
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
			wantLines(t, "jobs", jobTexts(p), tc.jobs...)
			wantLines(t, "rejects", rejectTexts(p), tc.rejects...)
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
	wantLines(t, "jobs", jobTexts(p), "u1/g: 1:x1@-:5 1:x2@-:10")
	wantLines(t, "notices", p.Notices, `-: columns ignored: "note", "group\nname"`)
	if len(rejectsOf(t, p))+len(p.Warnings) != 0 {
		t.Errorf("got %v and %v, want neither rejects nor warnings", rejectsOf(t, p), p.Warnings)
	}
}

// TestResultsAsInput reads exported results, whose columns are known, and files that have only some of those.
func TestResultsAsInput(t *testing.T) {
	const ours = "from_account,group_name,type,to_account,to_group_id,code,reason,file,line"
	const row = "\nu1,g,1,x1,,51007,gone,a.csv,9"
	for _, tc := range []struct{ name, input, notice string }{
		{"results", ours + ",group_id,attempts,job,outcome,finished" + row + ",7,3,j1,partial,2026-01-02T03:04:05Z\n", ""},
		{"results and more", ours + ",group_id,attempts,note,job,outcome,finished" + row + ",7,3,n,j1,partial,\n",
			`-: columns ignored: "note"`},
		{"some of them", ours + ",group_id,job" + row + ",7,j1\n", `-: columns ignored: "group_id", "job"`},
		{"results as JSONL", `{"from_account":"u1","group_name":"g","type":1,"to_account":"x1","code":"51007","reason":"gone",` +
			`"file":"a.csv","line":9,"group_id":7,"attempts":3,"job":"j1","outcome":"partial","finished":"2026-01-02T03:04:05Z"}` +
			"\n", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := readString(t, tc.input, Config{})
			if len(p.Notices) > 1 || strings.Join(p.Notices, "") != tc.notice {
				t.Errorf("got notices %q, want %q", p.Notices, tc.notice)
			}
			if p.Summary.Accepted != 1 {
				t.Errorf("got %d accepted, want 1", p.Summary.Accepted)
			}
		})
	}
}

func TestHeader(t *testing.T) {
	for _, tc := range []struct{ name, input string }{
		{"ours", "from_account,group_name,type,to_account,to_group_id\nu1,g,1,x1,\n"},
		{"the API's", "From_Account,GroupName,Type,To_Account,ToGroupId\nu1,g,1,x1,\n"},
		{"another order and case", "TYPE,TO_GROUP_ID,To_Account, Group_Name ,FROM_ACCOUNT\n1,,x1,g,u1\n"},
		{"with a byte order mark", "\ufefffrom_account,group_name,type,to_account,to_group_id\nu1,g,1,x1,\n"},
		{"quoted, with a byte order mark", "\ufeff\"from_account\",group_name,\"type\",to_account\nu1,g,1,x1\n"},
		{"no type", "from_account,group_name,to_account,to_group_id\nu1,g,x1,\n"},
		{"no type, one id", "from_account,group_name,to_account\nu1,g,x1\n"},
		{"a reject file's", "from_account,group_name,type,to_account,to_group_id,code,reason,file,line\nu1,g,1,x1,,50002,,a,9\n"},
		{"CRLF", "from_account,group_name,type,to_account\r\nu1,g,1,x1\r\n"},
		{"no last line end", "from_account,group_name,type,to_account\nu1,g,1,x1"},
		{"CR before the end", "from_account,group_name,type,to_account\nu1,g,1,x1\r"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := readString(t, tc.input, Config{})
			wantLines(t, "jobs", jobTexts(p), "u1/g: 1:x1@-:2")
			if strings.HasSuffix(tc.input, "\n") {
				wantLines(t, "notices", p.Notices)
			} else {
				wantLines(t, "notices", p.Notices,
					"-: the last line has no line end; if the file was cut off there, its last row is not what it should be")
			}
		})
	}
}

func TestHeaderRefused(t *testing.T) {
	for _, tc := range []struct {
		name, input, want string
		cfg               Config
	}{
		{"semicolons", "from_account;group_name;to_account\nu1;g;x1\n", "--delimiter ';'", Config{}},
		{"tabs", "from_account\tgroup_name\tto_account\nu1\tg\tx1\n", `--delimiter '\t'`, Config{}},
		{"commas after all", "from_account,group_name,to_account\n", "leave out --delimiter", Config{Delimiter: ';'}},
		{"none", "u1,g,1,x1,\n", `no column from_account, group_name: it is "u1,g,1,x1,"`, Config{}},
		{"no ids", "from_account,group_name,type\n", "no column to_account or to_group_id", Config{}},
		{"twice", "from_account,group_name,to_account,From_Account\n", "from_account is there twice", Config{}},
		{"twice by two names", "from_account,group_name,GroupName,to_account\n", "group_name is there twice", Config{}},
		{"renamed but not there", "from_account,group_name,to_account\n", "no column owner",
			Config{Columns: map[string]string{"from_account": "owner"}}},
		{"renamed type not there", "from_account,group_name,to_account\n", "no column kind",
			Config{Columns: map[string]string{"type": "kind"}}},
		{"an array", "[\n{}\n]\n", "jq -c", Config{}},
		{"lone CR", "from_account,group_name,to_account\ru1,g,x1\r", "CR alone", Config{}},
		{"unclosed quote", "from_account,\"group_name,to_account\nu1,g,x1\n", "line 1: the header cannot be read", Config{}},
		{"empty lines only", "\n\n\n", "no header", Config{}},
		{"long", strings.Repeat("a,", maxRecord), "over 64 KiB", Config{}},
		{"third line", "\n\na,b\n", "line 3:", Config{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := readError(t, tc.input, tc.cfg)
			var e *Error
			if !errors.As(err, &e) || e.File != "-" || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error of the input with %s", err, tc.want)
			}
		})
	}
}

func TestDelimiter(t *testing.T) {
	for _, d := range []rune{';', '|', '·', ' ', '-'} {
		s := strings.ReplaceAll("from_account,group_name,type,to_account\nu1,\"a,b\",1,x1\nu1,g,1\n", ",", string(d))
		p := readString(t, s, Config{Delimiter: d})
		wantLines(t, string(d), jobTexts(p), fmt.Sprintf("u1/a%cb: 1:x1@-:2", d))
		wantLines(t, string(d), rejectTexts(p), "3 parse 3 fields where the header has 4")
	}
}

func TestColumns(t *testing.T) {
	cfg := Config{Columns: map[string]string{"from_account": "Owner", "to_account": "from_account", "Group_Name": " 組 "}}
	p := readString(t, "owner,from_account,to_account,組\nu1,x1,ignored,g\n", cfg)
	wantLines(t, "jobs", jobTexts(p), "u1/g: 1:x1@-:2")
	wantLines(t, "notices", p.Notices, `-: columns ignored: "to_account"`)
}

func TestTypeByID(t *testing.T) {
	p := readString(t, "from_account,group_name,to_account,to_group_id\n"+
		"u1,g,x1,\nu1,g,,@TGS#1\nu1,g,x1,@TGS#1\nu1,g,,\nu1,,x1,\nu1,g,x1,@TGS#2,\n", Config{})
	wantLines(t, "jobs", jobTexts(p), "u1/g: 1:x1@-:2 2:@TGS#1@-:3")
	wantLines(t, "rejects", rejectTexts(p),
		"4 50002 to_account and to_group_id are both filled and no type says which one counts",
		"5 50002 to_account and to_group_id are both empty",
		"6 50002 group_name is empty",
		"7 parse 5 fields where the header has 4")
	// A row that only needs its name gets the type, or it could not be mended without adding it.
	if got := rejectsOf(t, p)[2].Type; got != "1" {
		t.Errorf("got type %q in the reject, want 1", got)
	}
}

func TestSalvage(t *testing.T) {
	for _, tc := range []struct {
		name, row string
		want      [numColumns]string
	}{
		{"too few", `u1,,1`, [numColumns]string{"u1", "", "1", "", ""}},
		{"a comma without quotes", `u1,a, b,1,x1,`, [numColumns]string{"u1", "a", " b", "1", "x1"}},
		{"too many", `u1,a,b,2,,@TGS#1`, [numColumns]string{"u1", "a", "b", "2", ",@TGS#1"}},
		{"unclosed", `u1,"a, ""b,1,x1`, [numColumns]string{"u1", `"a`, ` ""b`, "1", "x1"}},
		{"text after a quote", `"u,1","a"b,1,x1,,,1`, [numColumns]string{"u,1", `"a"b`, "1", "x1", ",,1"}},
		{"not UTF-8", "u1,\xff\",1,x1,", [numColumns]string{"u1", "\xff\"", "1", "x1", ""}},
		// What is left of these is a row. The type is left out, or the row would go in as it is.
		{"looks like a row", `u1,a,1,x1`, [numColumns]string{"u1", "a", "", "x1", ""}},
		{"looks like a row with a quote", `u1,"a,1,x1,`, [numColumns]string{"u1", `"a`, "", "x1", ""}},
		{"long", "u1," + strings.Repeat("家", 100) + ",1,x1," + strings.Repeat("b", maxRecord),
			[numColumns]string{"u1", strings.Repeat("家", 85), "1", "x1", ""}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := readString(t, csvHeader+tc.row, Config{})
			if len(rejectsOf(t, p)) != 1 {
				t.Fatalf("got %d rejects, want 1", len(rejectsOf(t, p)))
			}
			r := rejectsOf(t, p)[0]
			got := [numColumns]string{r.FromAccount, r.GroupName, r.Type, r.ToAccount, r.ToGroupID}
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// TestLongLines has a line that is many times as long as the buffer, and one that just fits.
func TestLongLines(t *testing.T) {
	fits := "u1,g,1,x1," + strings.Repeat(" ", maxRecord-len("u1,g,1,x1,"))
	for _, end := range []string{"\n", "\r\n"} {
		p := readString(t, csvHeader+fits+end+strings.Repeat("x,", 2<<20)+end+fits+"y"+end+"u1,g,1,x2,"+end, Config{})
		wantLines(t, "rejects", rejectTexts(p),
			"2 50002 type 1 has its id in to_account, and to_group_id is filled too",
			"3 parse the line is over 64 KiB",
			"4 parse the line is over 64 KiB")
		wantLines(t, "jobs", jobTexts(p), "u1/g: 1:x2@-:5")
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
	in, err := newCSV(strings.NewReader(csvHeader+strings.Repeat("x\n", 500_000)), ',', cols)
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
			strings.HasPrefix(fields[0], string(bom)) {
			return nil, false // we are stricter here
		}
		line, _ := r.FieldPos(0)
		records = append(records, record{line: int64(line), field: [numColumns]string(fields)})
	}
}

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
		cover[r.line]++
	}
	for i, line := range lines[1:] {
		n := i + 2
		empty := len(line) == 0 || string(line) == "\r"
		if c := cover[n]; c > 1 || c == 0 && !empty {
			t.Errorf("line %d %q: got it %d times, want once", n, line, c)
		}
	}
}
