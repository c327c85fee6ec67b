package importer

import (
	"bytes"
	"context"
	"os"
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
			jobs := sorted(jobTexts(t, p))
			for i := range jobs {
				jobs[i] = strings.ReplaceAll(jobs[i], "../samples/"+tc.file, "")
			}
			wantLines(t, "jobs", jobs, tc.jobs...)
			wantLines(t, "rejects", rejectTexts(t, p), tc.rejects...)

			// What was rejected is in our own columns, and is rejected again as long as nobody fixes it; old
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
		if r.invalidReason != "" {
			got = ""
		}
		if got != tc.want {
			t.Errorf("%s of %s: got %q, want %q", tc.id, tc.owner, got, tc.want)
		}
	}
}

// What another system exports names its preset, unless it is said to be something else.
func TestPresetIsNamed(t *testing.T) {
	for _, name := range []string{"openim", "yunxin"} {
		b, err := os.ReadFile("../samples/" + name + ".json")
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{string(b), "[" + string(b) + "]"} {
			want := "-: looks like a response of another system; --preset " + name + " reads it; if it is none, say --format jsonl"
			if err := readError(t, text, Config{}); err.Error() != want {
				t.Errorf("got %v, want %s", err, want)
			}
		}
		readString(t, string(b), Config{Preset: name})
		readString(t, string(b), Config{Format: FormatJSONL})
	}
}
