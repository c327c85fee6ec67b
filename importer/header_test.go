package importer

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// TestResultsAsInput reads exported results, whose columns are known, and files that have only some of those.
func TestResultsAsInput(t *testing.T) {
	const ours = "from_account,group_name,type,to_account,to_group_id,code,reason,file,line"
	const row = "\nu1,g,1,x1,,51007,gone,a.csv,9"
	for _, tc := range []struct{ name, input, notice string }{
		{"results", ours + ",group_id,attempts,job,outcome,finished,op" + row + ",7,3,j1,partial,2026-01-02T03:04:05Z,add\n", ""},
		{"results and more", ours + ",group_id,attempts,note,job,outcome,finished,op" + row + ",7,3,n,j1,partial,,add\n",
			`-: columns ignored: "note"`},
		{"some of them", ours + ",group_id,job" + row + ",7,j1\n", `-: columns ignored: "group_id", "job"`},
		{"results as JSONL", `{"from_account":"u1","group_name":"g","type":1,"to_account":"x1","code":"51007","reason":"gone",` +
			`"file":"a.csv","line":9,"group_id":7,"attempts":3,"job":"j1","outcome":"partial","finished":"2026-01-02T03:04:05Z","op":"add"}` +
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
			wantLines(t, "jobs", jobTexts(t, p), "u1/g: 1:x1@-:2")
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
		{"no user", "group_name,to_account\n", "say --owner ID", Config{}},
		{"of XMPP", "username,server_host,jid,grp\n", "--preset xmpp reads such a file", Config{}},
		{"of an SDK", "group_name,Conversation_ID\n", "--preset sdk reads such a file", Config{}},
		{"of an SDK, without a user", "group_name,conversation_id\n", "say --owner ID", Config{Preset: "sdk"}},
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
		wantLines(t, string(d), jobTexts(t, p), fmt.Sprintf("u1/a%cb: 1:x1@-:2", d))
		wantLines(t, string(d), rejectTexts(t, p), "3 parse 3 fields where the header has 4")
	}
}

func TestColumns(t *testing.T) {
	cfg := Config{Columns: map[string]string{"from_account": "Owner", "to_account": "from_account", "Group_Name": " 組 "}}
	p := readString(t, "owner,from_account,to_account,組\nu1,x1,ignored,g\n", cfg)
	wantLines(t, "jobs", jobTexts(t, p), "u1/g: 1:x1@-:2")
	wantLines(t, "notices", p.Notices, `-: columns ignored: "to_account"`)
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

// A header in the middle with its columns in another order would exchange users and groups behind it: the input is
// refused, wherever it stands, and nothing is said about its rows.
func TestAnotherHeader(t *testing.T) {
	rows := strings.Repeat("u1,g,1,x1,\n", 3000)
	for _, other := range []string{
		"group_name,from_account,type,to_account,to_group_id",
		"\ufeffTo_Group_ID,to_account,type,group_name,from_account",
	} {
		for _, before := range []string{"", rows} {
			_, err := Read(t.Context(), []string{"-"}, Config{Stdin: strings.NewReader(csvHeader + before + other + "\n" + rows)})
			var e *Error
			if !errors.As(err, &e) || e.Line != int64(2+strings.Count(before, "\n")) || e.File == "" || e.Hint == "" {
				t.Errorf("%q: got %v, want it to be refused at its line", other, err)
			}
		}
	}
	p := readString(t, csvHeader+"group_name,g,1,x1,\nu2,from_account,1,x2,\n", Config{})
	if p.Summary.Accepted != 2 {
		t.Errorf("got %+v, want one name of a column to be a name like others", p.Summary)
	}
}

// A column that was named and is not there is an error, also where an owner is given for what has none.
func TestNamedColumnIsMissing(t *testing.T) {
	err := readError(t, csvHeader+"u1,g,1,x1,\n", Config{Columns: map[string]string{"from_account": "TYPO"}, Owner: "boss"})
	if !strings.Contains(err.Error(), "the header has no column TYPO") {
		t.Errorf("got %v, want the column to be missing", err)
	}
}
