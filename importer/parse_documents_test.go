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
	for _, s := range []string{`{}`, `[]`, `{"conversationIDs":null}`, `{"conversationIDs":[]}`, `{"conversationIDs":{}}`} {
		if got := readString(t, s, Config{Preset: "openim"}).Summary; got.Rows != 0 {
			t.Errorf("%s: got %+v, want nothing", s, got)
		}
	}
	for _, tc := range []struct{ input, want string }{
		{group + "\n" + group[:30], "-: line 2: the JSON ends before it is complete; fetch the file again"},
		{"\n\nfrom_account,x\n", "-: line 3: not valid JSON from here on"},
		{"1", "-: line 1: is no answer of that system: a JSON object belongs here"},
		{`{"conversationIDs":[` + strings.Repeat(`"sg_1",`, maxDocument+1) + `""]}`,
			"-: line 1: a document has over 100000 conversations; save the answers for each user as documents of their own"},
	} {
		if err := readError(t, tc.input, Config{Preset: "openim"}); err.Error() != tc.want {
			t.Errorf("%.40s: got %v, want %s", tc.input, err, tc.want)
		}
	}
}
