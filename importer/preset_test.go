package importer

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
)

// TestPresetSamples imports the samples of other systems.
func TestPresetSamples(t *testing.T) {
	for _, tc := range []struct {
		file    string
		cfg     Config
		jobs    []string
		rejects []string
	}{
		{"openim.json", Config{Preset: "openim"}, []string{
			"bob/Work: 1:lena_k@:20",
			"lena_k/Climbing: 1:bob@:9 1:mei@:9 2:4711@:9",
			"lena_k/家族: 1:oma_k@:15",
		}, []string{"15 50002 the conversation id is neither si_A_B nor sg_ID"}},
		{"yunxin.json", Config{Preset: "yunxin"}, []string{
			"lena/Climbing: 1:bob@:8 2:4711@:9",
			"lena/家族: 1:bob@:8 2:4712@:10",
		}, []string{"12 50002 no conversation group with this id is named in its document or before it"}},
		{"xmpp.csv", Config{Preset: "xmpp"}, []string{
			"bob/Work: 1:lena@:5",
			"lena/Climbing: 1:bob@:2 1:mei@:3",
		}, []string{"4 50002 jid is not name@server"}},
		{"sdk.csv", Config{Preset: "sdk"}, []string{
			"lena/Climbing: 1:bob@:2 2:@TGS#2C5SZEAEF@:3",
			"lena/家族: 1:mei@:4 2:@TGS#1NVTZEAE4@:5",
		}, []string{"6 50002 conversation_id is neither c2c_ID nor group_ID, C2CID nor GROUPID"}},
		{"owner.csv", Config{Owner: "lena"}, []string{
			"lena/Climbing: 1:1001@:2 1:1002@:3",
			"lena/家族: 1:1003@:4",
		}, nil},
		{"owner.csv", Config{Owner: "1000", MapIDs: "../samples/ids.csv"}, []string{
			"lena/Climbing: 1:bob@:2 1:mei@:3",
		}, []string{"4 50002 to_account is not among the old ids in ../samples/ids.csv"}},
	} {
		t.Run(tc.file, func(t *testing.T) {
			p, err := Read(context.Background(), []string{"../samples/" + tc.file}, tc.cfg)
			if err != nil {
				t.Fatal(err)
			}
			closeAtEnd(t, p)
			checkSums(t, p)
			jobs := sorted(jobTexts(p))
			for i := range jobs {
				jobs[i] = strings.ReplaceAll(jobs[i], "../samples/"+tc.file, "")
			}
			wantLines(t, "jobs", jobs, tc.jobs...)
			wantLines(t, "rejects", rejectTexts(p), tc.rejects...)

			// What was rejected is in our own columns, and is rejected again as long as nobody mends it; old
			// ids still need their new ones.
			var b bytes.Buffer
			if err := p.WriteRejects(&b); err != nil {
				t.Fatal(err)
			}
			again := readString(t, b.String(), Config{MapIDs: tc.cfg.MapIDs})
			if again.Summary.Accepted != 0 || again.Summary.Rejected != p.Summary.Rejected {
				t.Errorf("got %+v of the reject file, want all rejected again:\n%s", again.Summary, &b)
			}
		})
	}
}

func TestOpenIMIDs(t *testing.T) {
	for _, tc := range []struct{ owner, id, want string }{
		{"a", "si_a_b", "1:b"},
		{"b", "si_a_b", "1:a"},
		{"a_b", "si_a_b_c_d", "1:c_d"},
		{"c_d", "si_a_b_c_d", "1:a_b"},
		{"a", "si_a_a", "1:a"},
		{"a", "sg_a_b", "2:a_b"},
		{"x", "si_a_b", ""},
		{"a", "si_ab", ""},
		{"", "si__b", ""},
		{"a", "sn_a_b", ""},
	} {
		var r row
		r.field[colFrom] = tc.owner
		fromOpenIM(&r, tc.id)
		got := r.field[colType] + ":" + r.field[colUser] + r.field[colChat]
		if r.wrong != "" {
			got = ""
		}
		if got != tc.want {
			t.Errorf("%s of %s: got %q, want %q", tc.id, tc.owner, got, tc.want)
		}
	}
}

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

// TestDefaultOwner does not cover up an owner that is missing in one row only.
func TestDefaultOwner(t *testing.T) {
	p := readString(t, csvHeader+",g,1,x,\nu,g,1,x,\n", Config{Owner: "o"})
	wantLines(t, "jobs", jobTexts(p), "u/g: 1:x@-:3")
	wantLines(t, "rejects", rejectTexts(p), "2 50002 from_account is empty")
	p = readString(t, `{"group_name":"g","to_account":"x"}`+"\n"+`{"from_account":"","group_name":"g","to_account":"x"}`+"\n"+
		`{"GroupContactItem":[{"GroupName":"g","ContactItem":[{"Type":1,"To_Account":"y"}]}]}`, Config{Owner: "o"})
	wantLines(t, "jobs", jobTexts(p), "o/g: 1:x@-:1 1:y@-:3")
	wantLines(t, "rejects", rejectTexts(p), "2 50002 from_account is empty")
}

func TestMapIDs(t *testing.T) {
	files(t, map[string]string{
		"ids.csv":    "\ufeffOld,new\na@old.example,u1\nb,u2\n\"c,d\",@TGS#1\nb,u2\n",
		"two.csv":    "old,new\na,b\na,c\n",
		"head.csv":   "a,b\n",
		"empty.csv":  "",
		"hole.csv":   "old,new\na,\n",
		"ragged.csv": "old,new\na,b\na,b,c\n",
	})
	input := csvHeader + "a@old.example,g,1,b,\nb,g,2,,\"c,d\"\nb,g,1,z,\nz,g,1,b,\nb,,1,b,\n"
	p := readString(t, input, Config{MapIDs: "ids.csv"})
	wantLines(t, "jobs", sorted(jobTexts(p)), "u1/g: 1:u2@-:2", "u2/g: 2:@TGS#1@-:3")
	wantLines(t, "rejects", rejectTexts(p),
		"4 50002 to_account is not among the old ids in ids.csv",
		"5 50002 from_account is not among the old ids in ids.csv",
		"6 50002 group_name is empty")
	if r := rejectsOf(t, p)[2]; r.FromAccount != "b" {
		t.Errorf("got from_account %q in a reject, want the old id", r.FromAccount)
	}
	if other := readString(t, input, Config{}); other.Digest == p.Digest {
		t.Error("got the same digest with other ids")
	}
	for file, want := range map[string]string{
		"none.csv": "no such file", "two.csv": "line 3: an id has two new ones", "head.csv": "line 1: the first line is not old,new",
		"empty.csv": "is empty", "hole.csv": "line 2: an id is empty", "ragged.csv": "line 3: cannot be read: wrong number of fields",
	} {
		err := readError(t, input, Config{MapIDs: file})
		var e *Error
		if !errors.As(err, &e) || !strings.HasPrefix(err.Error(), file+": "+want) {
			t.Errorf("got %v, want %s: %s", err, file, want)
		}
	}
}

func TestPresetRefused(t *testing.T) {
	for _, cfg := range []Config{
		{Preset: "icq"},
		{Preset: "openim", Format: FormatCSV},
		{Preset: "yunxin", Columns: map[string]string{"type": "x"}},
		{Owner: "é"},
	} {
		var e *ConfigError
		if err := readError(t, "", cfg); !errors.As(err, &e) {
			t.Errorf("%+v: got %v, want a *ConfigError", cfg, err)
		}
	}
	// A name given goes before that of the preset.
	p := readString(t, "username,jid,label\nu,x@y,g\n", Config{Preset: "xmpp", Columns: map[string]string{"group_name": "label"}})
	wantLines(t, "jobs", jobTexts(p), "u/g: 1:x@-:2")
}
