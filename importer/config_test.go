package importer

import (
	"context"
	"errors"
	"strings"
	"testing"
)

func TestDigest(t *testing.T) {
	base := readString(t, someRows, Config{})
	if len(base.Digest) != 64 || base.ImportID != base.Digest[:16] {
		t.Errorf("got import %q of digest %q, want its first 16 digits", base.ImportID, base.Digest)
	}
	same := map[string]*Plan{
		"again":                 readString(t, someRows, Config{}),
		"another chunk size":    readString(t, someRows, Config{ChunkSize: 7}),
		"the format by name":    readString(t, someRows, Config{Format: FormatCSV}),
		"the default delimiter": readString(t, someRows, Config{Delimiter: ','}),
		"an import id":          readString(t, someRows, Config{ImportID: "nightly"}),
	}
	for name, p := range same {
		if p.Digest != base.Digest {
			t.Errorf("%s: got another digest, want the same", name)
		}
	}
	if got := same["an import id"].ImportID; got != "nightly" {
		t.Errorf("got import id %q, want nightly", got)
	}
	other := map[string]*Plan{
		"other content":     readString(t, someRows+"\n", Config{}),
		"a byte order mark": readString(t, "\ufeff"+someRows, Config{}),
		"renamed columns":   readString(t, someRows, Config{Columns: map[string]string{"to_account": "to_account"}}),
		"another delimiter": readString(t, strings.ReplaceAll(someRows, ",", ";"), Config{Delimiter: ';'}),
		"JSONL":             readString(t, someRows, Config{Format: FormatJSONL}),
	}
	seen := map[string]string{base.Digest: "the base"}
	for name, p := range other {
		if before, twice := seen[p.Digest]; twice {
			t.Errorf("%s and %s have the same digest", name, before)
		}
		seen[p.Digest] = name
	}
}

func TestConfigRefused(t *testing.T) {
	for _, tc := range []struct {
		field string
		cfg   Config
	}{
		{"Format", Config{Format: "xml"}},
		{"Delimiter", Config{Delimiter: '"'}},
		{"Delimiter", Config{Delimiter: '\n'}},
		{"Delimiter", Config{Delimiter: 'x'}},
		{"Delimiter", Config{Delimiter: '_'}},
		{"Delimiter", Config{Delimiter: -1}},
		{"Delimiter", Config{Delimiter: 0xFFFD}},
		{"Delimiter", Config{Delimiter: 0xD800}},
		{"ImportID", Config{ImportID: "a b"}},
		{"ImportID", Config{ImportID: strings.Repeat("a", 65)}},
		{"ChunkSize", Config{ChunkSize: 101}},
		{"ChunkSize", Config{ChunkSize: -1}},
		{"Columns", Config{Columns: map[string]string{"sender": "x"}}},
		{"Columns", Config{Columns: map[string]string{"type": " "}}},
		{"Columns", Config{Columns: map[string]string{"type": "x", "Type": "y"}}},
		{"Columns", Config{Columns: map[string]string{"type": "x", "to_account": "X"}}},
		{"Columns", Config{Columns: map[string]string{"to_account": "from_account"}}},
	} {
		_, err := Read(context.Background(), []string{"-"}, tc.cfg)
		var e *ConfigError
		if !errors.As(err, &e) || e.Field != tc.field {
			t.Errorf("%+v: got %v, want a refusal of %s", tc.cfg, err, tc.field)
		}
	}
}

// TestDefaultOwner does not cover up an owner that is missing in one row only.
func TestDefaultOwner(t *testing.T) {
	p := readString(t, csvHeader+",g,1,x,\nu,g,1,x,\n", Config{Owner: "o"})
	wantLines(t, "jobs", jobTexts(t, p), "u/g: 1:x@-:3")
	wantLines(t, "rejects", rejectTexts(t, p), "2 50002 from_account is empty")
	p = readString(t, `{"group_name":"g","to_account":"x"}`+"\n"+`{"from_account":"","group_name":"g","to_account":"x"}`+"\n"+
		`{"GroupContactItem":[{"GroupName":"g","ContactItem":[{"Type":1,"To_Account":"y"}]}]}`, Config{Owner: "o"})
	wantLines(t, "jobs", jobTexts(t, p), "o/g: 1:x@-:1 1:y@-:3")
	wantLines(t, "rejects", rejectTexts(t, p), "2 50002 from_account is empty")
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
	wantLines(t, "jobs", jobTexts(t, p), "u/g: 1:x@-:2")
}
