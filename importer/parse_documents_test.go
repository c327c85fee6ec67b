package importer

import (
	"strings"
	"testing"
)

// TestDocuments has answers as they may have been saved, and what is no answer.
func TestDocuments(t *testing.T) {
	const group = `{"ownerUserID":"a","name":"g","conversationIDs":["sg_1"]}`
	for _, s := range []string{group, "[" + group + "]", " \n" + group + "\n\n", `{"data":[[` + group + `],null,{"x":{}}]}`,
		`{"conversationIDs":["sg_1"],"name":"g","z":[1,true,"x"],"ownerUserID":"a"}`} {
		p := readString(t, s, Config{Preset: "openim"})
		if got := p.Summary; got.Rows != 1 || got.Accepted != 1 {
			t.Errorf("%s: got %+v, want one row", s, got)
		}
	}
	for _, s := range []string{`{"errCode":0,"data":{"groups":[]}}`, `{"conversationIDs":null}`, `{"conversationIDs":[]}`, `{"conversationIDs":{}}`} {
		if got := readString(t, s, Config{Preset: "openim"}).Summary; got.Rows != 0 {
			t.Errorf("%s: got %+v, want nothing", s, got)
		}
	}
	for _, s := range []string{`"sg_1"`, `{"0":"sg_1","2":"sg_2"}`, `7`} { // else it would be taken for empty, and a mirror would remove it
		p := readString(t, strings.Replace(group, `["sg_1"]`, s, 1), Config{Preset: "openim"})
		wantLines(t, s, rejectTexts(t, p), "1 50002 a list of ids is no list")
	}
	for _, tc := range []struct{ input, want string }{
		{group + "\n" + group[:30], "-: line 2: the JSON ends before it is complete; fetch the file again"},
		{`{"conversationIDs":{"a`, "-: line 1: the JSON ends before it is complete; fetch the file again"},
		{"\n\nfrom_account,x\n", "-: line 3: not valid JSON from here on"},
		{`{}`, "-: has nothing that the preset openim knows; is it a response of that system?"},
		{`[{"conversations":[]}]`, "-: has nothing that the preset openim knows; is it a response of that system?"},
		{"1", "-: line 1: is no response of that system: a JSON object belongs here"},
		{`{"conversationIDs":[` + strings.Repeat(`"sg_1",`, maxDocument+1) + `""]}`,
			"-: line 1: a document has over 100000 conversations; save the responses for each user as documents of their own"},
	} {
		if err := readError(t, tc.input, Config{Preset: "openim"}); err.Error() != tc.want {
			t.Errorf("%.40s: got %v, want %s", tc.input, err, tc.want)
		}
	}
}

// A response that says that it failed is a reject, with its line and code; the others count.
func TestFailedResponses(t *testing.T) {
	for preset, sound := range map[string]string{
		"openim": `{"errCode":0,"data":{"groups":[{"ownerUserID":"a","name":"g","conversationIDs":["sg_1"]}]}}`,
		"yunxin": `{"errCode":0,"data":{"conversation_groups":[{"group_id":1,"name":"g"}],` +
			`"conversations":[{"conversation_id":"a|1|b","group_ids":[1]}]}}`,
	} {
		p := readString(t, sound+"\n"+`{"errCode":1001,"errMsg":"args","data":null}`+"\n"+sound, Config{Preset: preset})
		wantLines(t, preset, rejectTexts(t, p), "2 50002 this response says that it failed: errCode 1001")
		if p.Summary.Accepted != 1 || p.Summary.Duplicates != 1 {
			t.Errorf("%s: got %+v, want one row accepted and one duplicate", preset, p.Summary)
		}
	}
}
