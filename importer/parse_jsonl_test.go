package importer

import (
	"bytes"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

func TestJSONLRows(t *testing.T) {
	const sound = `{"from_account":"u1","group_name":"g","type":1,"to_account":"x1"}`
	long := strings.Repeat("a", maxLine)
	for _, tc := range []struct{ name, line, want string }{
		{"sound", sound, ""},
		{"with the API's names", `{"From_Account":"u1","GroupName":"g","Type":1,"To_Account":"x1"}`, ""},
		{"type as text", `{"from_account":"u1","group_name":"g","type":"1","to_account":"x1"}`, ""},
		{"no type", `{"from_account":"u1","group_name":"g","to_account":"x1"}`, ""},
		{"type null", `{"from_account":"u1","group_name":"g","type":null,"to_account":"x1","to_group_id":null}`, ""},
		{"escapes", `{"from_account":"\u00751","group_name":"g","to_account":"x1"}`, ""},
		{"a reject's other keys", `{"from_account":"u1","group_name":"g","to_account":"x1","code":1,"reason":[],"file":"","line":{}}`, ""},
		{"space around", " \t" + sound + " \r", ""},
		{"type 1.0", `{"from_account":"u1","group_name":"g","type":1.0,"to_account":"x1"}`, "1 50002 type is neither 1 nor 2"},
		{"type 1e0", `{"from_account":"u1","group_name":"g","type":1e0,"to_account":"x1"}`, "1 50002 type is neither 1 nor 2"},
		{"type 01", `{"from_account":"u1","group_name":"g","type":"01","to_account":"x1"}`, "1 50002 type is neither 1 nor 2"},
		{"type true", `{"from_account":"u1","group_name":"g","type":true,"to_account":"x1"}`, "1 50002 type is neither 1 nor 2"},
		{"type empty", `{"from_account":"u1","group_name":"g","type":"","to_account":"x1"}`, "1 50002 type is empty"},
		{"no type and both ids", `{"from_account":"u1","group_name":"g","to_account":"x1","to_group_id":"x"}`,
			"1 50002 to_account and to_group_id are both filled and no type says which one counts"},
		{"number for an id", `{"from_account":12,"group_name":"g","type":1,"to_account":"x1"}`,
			"1 50002 from_account is not a JSON string"},
		{"object for a name", `{"from_account":"u1","group_name":{"a":[]},"type":1,"to_account":"x1"}`,
			"1 50002 group_name is not a JSON string"},
		{"null for an id", `{"from_account":null,"group_name":"g","type":1,"to_account":"x1"}`, "1 50002 from_account is missing (see --owner)"},
		{"empty object", `{}`, "1 50002 from_account is missing (see --owner)"},
		{"control character", `{"from_account":"u1","group_name":"a\nb","to_account":"x1"}`,
			"1 50002 group_name holds a control character"},
		{"null", `null`, "1 parse the line is no JSON object"},
		{"array", `[` + sound + `]`, "1 parse the line is no JSON object"},
		{"text", `from_account,group_name`, "1 parse not valid JSON from byte 2 on"},
		{"two objects", sound + sound, "1 parse something follows the JSON object"},
		{"trailing comma", sound + ",", "1 parse not valid JSON from byte 66 on"},
		{"cut off", sound[:30], "1 parse the line ends before its JSON does"},
		{"key twice", `{"from_account":"u1","from_account":"u2"}`, "1 parse a key is there twice"},
		{"other key twice", `{"x":1,"x":2}`, "1 parse a key is there twice"},
		{"key twice in two spellings", `{"from_account":"u1","From_Account":"u2"}`,
			"1 parse a key is there twice in different spellings"},
		{"not UTF-8", "{\"from_account\":\"\xff\"}", "1 parse the line is not valid UTF-8"},
		{"lone surrogate", `{"from_account":"\ud800"}`, "1 parse not valid JSON from byte 18 on"},
		{"NaN", `{"type":NaN}`, "1 parse not valid JSON from byte 9 on"},
		{"lone CR between rows", sound + "\r" + sound, "1 parse something follows the JSON object"},
		{"too long", `{"x":"` + long + `"}`, "1 parse the line is over 1024 KiB"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := readString(t, tc.line+"\n\n \r\n"+sound+"\n", Config{Format: FormatJSONL})
			var want []string
			rejected := int64(0)
			if tc.want != "" {
				want, rejected = []string{tc.want}, 1
			}
			wantLines(t, "rejects", rejectTexts(t, p), want...)
			if s := p.Summary; s.Rows != 2 || s.Rejected != rejected || s.Accepted != 1 {
				t.Errorf("got %+v, want 2 rows, %d rejected, 1 accepted", s, rejected)
			}
		})
	}
}

func TestJSONLBodies(t *testing.T) {
	for _, tc := range []struct {
		name, line    string
		jobs, rejects []string
	}{
		{
			name: "the API's own sample",
			line: `{"From_Account":"user15","GroupContactItem":[{"GroupName":"test0","ContactItem":[{"Type":1,"To_Account":"user0"}]}]}`,
			jobs: []string{"user15/test0: 1:user0@-:1"},
		},
		{
			name: "several groups, keys in another order",
			line: `{"GroupContactItem":[{"ContactItem":[{"ToGroupId":"@TGS#1","Type":2},{"To_Account":"x"}],"GroupName":"a"},` +
				`{"GroupName":"b","ContactItem":[{"Type":1,"To_Account":"x"},{"Type":1,"To_Account":"x"}]}],"From_Account":"u"}`,
			jobs: []string{"u/a: 2:@TGS#1@-:1 1:x@-:1", "u/b: 1:x@-:1"},
		},
		{
			name: "a bad conversation among good ones",
			line: `{"From_Account":"u","GroupContactItem":[{"GroupName":"a","ContactItem":[{"Type":1,"To_Account":7},null,` +
				`{"Type":3,"To_Account":"x"},{"Type":1,"To_Account":"y"}]},{"GroupName":"","ContactItem":[{"Type":1,"To_Account":"x"}]},9]}`,
			jobs: []string{"u/a: 1:y@-:1"},
			rejects: []string{
				"1 50002 to_account is not a JSON string",
				"1 50002 a ContactItem is no JSON object",
				"1 50002 type is neither 1 nor 2",
				"1 50002 group_name is empty",
				"1 50002 a GroupContactItem is no JSON object",
			},
		},
		{
			name:    "no groups",
			line:    `{"From_Account":"u","GroupContactItem":[]}`,
			rejects: []string{"1 50002 GroupContactItem is empty"},
		},
		{
			name:    "no conversations",
			line:    `{"From_Account":"u","GroupContactItem":[{"GroupName":"a","ContactItem":[]},{"GroupName":"b"}]}`,
			rejects: []string{"1 50002 the group has no ContactItem", "1 50002 the group has no ContactItem"},
		},
		{
			name:    "no user",
			line:    `{"GroupContactItem":[{"GroupName":"a","ContactItem":[{"Type":1,"To_Account":"x"}]}]}`,
			rejects: []string{"1 50002 from_account is missing (see --owner)"},
		},
		{
			name:    "a number for the user",
			line:    `{"From_Account":1,"GroupContactItem":[{"GroupName":"a","ContactItem":[{"Type":1,"To_Account":"x"}]}]}`,
			rejects: []string{"1 50002 from_account is not a JSON string"},
		},
		{
			name:    "a number for the name",
			line:    `{"From_Account":"u","GroupContactItem":[{"GroupName":1,"ContactItem":[{"Type":1,"To_Account":"x"}]}]}`,
			rejects: []string{"1 50002 group_name is not a JSON string"},
		},
		{
			name:    "null for the groups",
			line:    `{"From_Account":"u","GroupContactItem":null}`,
			rejects: []string{"1 parse GroupContactItem is no JSON array"},
		},
		{
			name:    "an object for the conversations",
			line:    `{"From_Account":"u","GroupContactItem":[{"GroupName":"a","ContactItem":{}}]}`,
			rejects: []string{"1 parse ContactItem is no JSON array"},
		},
		{
			name:    "a row and a body",
			line:    `{"From_Account":"u","GroupName":"a","GroupContactItem":[]}`,
			rejects: []string{"1 parse the line is a row and a request body at once"},
		},
		{
			name:    "conversations without a group",
			line:    `{"From_Account":"u","GroupName":"a","ContactItem":[{"Type":1,"To_Account":"x"}]}`,
			rejects: []string{"1 parse ContactItem stands outside a GroupContactItem"},
		},
		{
			name: "cut off behind good conversations",
			line: `{"From_Account":"u","GroupContactItem":[{"GroupName":"a","ContactItem":[{"Type":1,"To_Account":"x"},{"Ty`,
			// Half a body is no body: nobody knows what the rest was.
			rejects: []string{"1 parse the line ends before its JSON does"},
		},
		{
			name:    "key twice inside",
			line:    `{"From_Account":"u","GroupContactItem":[{"GroupName":"a","group_name":"b"}]}`,
			rejects: []string{"1 parse a key is there twice in different spellings"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := readString(t, tc.line, Config{})
			wantLines(t, "jobs", jobTexts(t, p), tc.jobs...)
			wantLines(t, "rejects", rejectTexts(t, p), tc.rejects...)
			for _, r := range rejectsOf(t, p) {
				if strings.Contains(tc.line, `"From_Account":"u"`) && r.FromAccount != "u" {
					t.Errorf("got user %q in the reject, want u", r.FromAccount)
				}
			}
		})
	}
}

func TestJSONLKeys(t *testing.T) {
	cfg := Config{Columns: map[string]string{"from_account": "owner", "group_name": "label"}}
	p := readString(t, `{"owner":"u1","label":"g","to_account":"x1","from_account":"?","tag":[1,{"a":2}]}`+"\n"+
		`{"Owner":"u1","Label":"g","To_Account":"x2","tag":3,"note":4}`+"\n"+
		`{"owner":"u1","GroupContactItem":[{"GroupName":"g","label":"?","ContactItem":[{"To_Account":"x3","Timestamp":5}]}]}`, cfg)
	wantLines(t, "jobs", jobTexts(t, p), "u1/g: 1:x1@-:1 1:x2@-:2 1:x3@-:3")
	wantLines(t, "notices", p.Notices, `-: columns ignored: "from_account", "tag", "note", "label", "Timestamp"`)
}

// TestJSONLManyKeys has keys that never come again: they must not pile up in memory or in the notice.
func TestJSONLManyKeys(t *testing.T) {
	var b strings.Builder
	for i := range 3 * maxKnownKeys {
		b.WriteString(`{"k` + strings.Repeat("x", i) + `":1}` + "\n")
	}
	p := readString(t, b.String(), Config{})
	if len(p.Notices) != 1 || !strings.HasSuffix(p.Notices[0], ", …") || len(p.Notices[0]) > 10_000 {
		t.Errorf("got %q, want one notice that ends in …", p.Notices)
	}
}

// FuzzJSONL holds the reader against Unmarshal of the same package for lines that are rows without anything special,
// and any line against what must be true of all.
func FuzzJSONL(f *testing.F) {
	for _, s := range []string{
		`{"from_account":"u1","group_name":"g","type":1,"to_account":"x1"}`,
		`{"From_Account":"u","GroupContactItem":[{"GroupName":"a","ContactItem":[{"Type":2,"ToGroupId":"x"},0]},{}]}`,
		"\n\r\n{}\nnull\n[{}]\n{\"from_account\":\"\\ud83d\\ude00\",\"to_group_id\":null}",
		`{"from_account":"` + "\x00\xff" + `","GROUPNAME":{},"x":[[[]]]} {}`,
	} {
		f.Add([]byte(s))
	}
	cols, _ := newColumns(nil)
	type flat struct {
		From  string         `json:"from_account"`
		Group string         `json:"group_name"`
		Type  jsontext.Value `json:"type"`
		User  string         `json:"to_account"`
		Chat  string         `json:"to_group_id"`
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var got recorder
		if _, err := readJSONL(bytes.NewReader(data), cols, 0, &got); err != nil {
			t.Fatalf("read: %v", err)
		}
		rows, rejects := map[int64][]record{}, map[int64]int{}
		for _, r := range got.rows {
			rows[r.line] = append(rows[r.line], r)
		}
		for _, r := range got.rejects {
			rejects[r.line]++
		}
		for i, line := range bytes.Split(data, []byte("\n")) {
			n := int64(i + 1)
			switch blank := len(bytes.Trim(line, " \t\r")) == 0; {
			case blank != (len(rows[n])+rejects[n] == 0), rejects[n] > 1, rejects[n] == 1 && len(rows[n]) > 0:
				t.Errorf("line %d %q: got %d rows and %d rejects", n, line, len(rows[n]), rejects[n])
			}
			var want flat
			if json.Unmarshal(line, &want, json.RejectUnknownMembers(true)) != nil || string(bytes.TrimSpace(line)) == "null" {
				delete(rows, n)
				continue
			}
			if len(rows[n]) != 1 {
				t.Errorf("line %d %q: got %d rows, want 1", n, line, len(rows[n]))
			} else if g := rows[n][0].field; g[colFrom] != want.From || g[colGroup] != want.Group || g[colUser] != want.User ||
				g[colChat] != want.Chat {
				t.Errorf("line %d: got %q, want %+v", n, g, want)
			}
			delete(rows, n)
		}
		if len(rows) > 0 {
			t.Errorf("got rows for lines that are not there: %v", rows)
		}
		// The first line keeps the data from looking like UTF-16 or an archive.
		readString(t, "{}\n"+string(data), Config{Format: FormatJSONL})
	})
}

// TestHugeBody has a line with more in it than a user can have.
func TestHugeBody(t *testing.T) {
	for _, item := range []string{`{}`, `0`, `{"Type":1,"To_Account":"x"}`} {
		line := `{"From_Account":"u","GroupContactItem":[{"GroupName":"g","ContactItem":[` +
			strings.Repeat(item+",", maxBody) + item + `]}]}`
		p := readString(t, line+"\n"+`{"from_account":"u","group_name":"g","to_account":"x"}`, Config{})
		wantLines(t, item, rejectTexts(t, p), "1 parse the line has over 20000 conversations")
		if p.Summary.Accepted != 1 {
			t.Errorf("got %+v, want the next line accepted", p.Summary)
		}
	}
}
