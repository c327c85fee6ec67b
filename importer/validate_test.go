package importer

import (
	"strings"
	"testing"
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
			wantLines(t, "rejects", rejectTexts(t, p), want...)
			if p.Summary.Accepted != accepted {
				t.Errorf("got %d accepted, want %d", p.Summary.Accepted, accepted)
			}
		})
	}
}

func TestTypeByID(t *testing.T) {
	p := readString(t, "from_account,group_name,to_account,to_group_id\n"+
		"u1,g,x1,\nu1,g,,@TGS#1\nu1,g,x1,@TGS#1\nu1,g,,\nu1,,x1,\nu1,g,x1,@TGS#2,\n", Config{})
	wantLines(t, "jobs", jobTexts(t, p), "u1/g: 1:x1@-:2 2:@TGS#1@-:3")
	wantLines(t, "rejects", rejectTexts(t, p),
		"4 50002 to_account and to_group_id are both filled and no type says which one counts",
		"5 50002 to_account and to_group_id are both empty",
		"6 50002 group_name is empty",
		"7 parse 5 fields where the header has 4")
	// A row that only needs its name gets the type, or it could not be fixed without adding it.
	if got := rejectsOf(t, p)[2].Type; got != "1" {
		t.Errorf("got type %q in the reject, want 1", got)
	}
}
