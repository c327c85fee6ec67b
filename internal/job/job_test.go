package job

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files")

func sampleJob() Job {
	return Job{
		Import: "9f2c41d07ab3e655", ID: ID("9f2c41d07ab3e655", "anna", "日本 & friends"),
		FromAccount: "anna", GroupName: "日本 & friends",
		Conversations: []Conversation{
			{Type: OneToOne, ID: "bob", Line: 2},
			{Type: GroupChat, ID: "@TGS#1ABC", File: 1, Line: 70000, Again: true},
		},
	}
}

func sampleResult() Result {
	return Result{
		Import: "nightly", Job: "abc", FromAccount: "anna", GroupName: "work", GroupID: 7,
		Outcome: Partial, Attempts: 2, Calls: 3, Worker: "host-1",
		Started:  time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC),
		Finished: time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC),
		Conversations: []ConversationResult{
			{Conversation: Conversation{Type: OneToOne, ID: "bob", Line: 2}},
			{Conversation: Conversation{Type: GroupChat, ID: "g", Line: 3}, Code: "51007", Info: "group \"g\" is gone"},
		},
	}
}

// sampleMirror is a job of a mirror with a result of it: a group is renamed, added to, and taken from.
func sampleMirror() (Job, Result) {
	j := Job{
		Import: "9f2c41d07ab3e655", ID: ID("9f2c41d07ab3e655", "anna", "Friends"),
		FromAccount: "anna", GroupName: "Friends", OldName: "friends",
		Conversations: []Conversation{
			{Type: OneToOne, ID: "bob", Line: 2},
			{Type: OneToOne, ID: "carl", Op: Remove},
			{Type: GroupChat, ID: "@TGS#1ABC", Op: Keep, File: 1, Line: 7},
		},
	}
	r := Result{
		Import: j.Import, Job: j.ID, FromAccount: "anna", GroupName: "Friends", OldName: "friends", GroupID: 7,
		Outcome: Partial, Attempts: 1, Calls: 2, Worker: "host-1",
		Started:  time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC),
		Finished: time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC),
		Conversations: []ConversationResult{
			{Conversation: Conversation{Type: OneToOne, ID: "bob", Line: 2}},
			{Conversation: Conversation{Type: OneToOne, ID: "carl", Op: Remove}, Code: "50001", Info: "no such user"},
		},
		Keep: []Conversation{{Type: GroupChat, ID: "@TGS#1ABC", Op: Keep, File: 1, Line: 7}},
	}
	return j, r
}

// sampleDelete is a job that deletes a group, and a result that says that it is gone.
func sampleDelete() (Job, Result) {
	j, r := sampleMirror()
	carl := Conversation{Type: OneToOne, ID: "carl", Op: Remove}
	j.OldName, j.Delete, j.Conversations = "", true, []Conversation{carl}
	r.OldName, r.Deleted, r.Outcome, r.Keep = "", true, Done, nil
	r.Conversations = []ConversationResult{{Conversation: carl}}
	return j, r
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got)+"\n" != string(want) {
		t.Errorf("%s: the wire form changed: got\n%s\nwant\n%s", name, got, want)
	}
}

func TestWireForm(t *testing.T) {
	j, r := sampleJob(), sampleResult()
	jb, rb := j.AppendJSON(nil), r.AppendJSON(nil)
	golden(t, "job.v1.json", jb)
	golden(t, "result.v1.json", rb)
	if !json.Valid(jb) || !json.Valid(rb) {
		t.Fatal("not JSON")
	}
	j2, err := Decode(jb)
	if err != nil || !reflect.DeepEqual(j, j2) {
		t.Errorf("job: got %+v, %v, want %+v", j2, err, j)
	}
	r2, err := DecodeResult(rb)
	if err != nil || !reflect.DeepEqual(r, r2) {
		t.Errorf("result: got %+v, %v, want %+v", r2, err, r)
	}
	j.Generation, r.Generation, j.Prior, r.Replaces = 2, 2, 70_001, 70_001
	jb, rb = j.AppendJSON(nil), r.AppendJSON(nil)
	golden(t, "job.retry.v1.json", jb)
	golden(t, "result.retry.v1.json", rb)
	if j2, err := Decode(jb); err != nil || !reflect.DeepEqual(j, j2) {
		t.Errorf("job of a retry: got %+v, %v, want %+v", j2, err, j)
	}
	if r2, err := DecodeResult(rb); err != nil || !reflect.DeepEqual(r, r2) {
		t.Errorf("result of a retry: got %+v, %v, want %+v", r2, err, r)
	}
	for name, sample := range map[string]func() (Job, Result){"mirror": sampleMirror, "delete": sampleDelete} {
		j, r := sample()
		jb, rb := j.AppendJSON(nil), r.AppendJSON(nil)
		golden(t, "job."+name+".v1.json", jb)
		golden(t, "result."+name+".v1.json", rb)
		if j2, err := Decode(jb); err != nil || !reflect.DeepEqual(j, j2) {
			t.Errorf("job of a %s: got %+v, %v, want %+v", name, j2, err, j)
		}
		r2, err := DecodeResult(rb)
		if err != nil || !reflect.DeepEqual(r, r2) {
			t.Errorf("result of a %s: got %+v, %v, want %+v", name, r2, err, r)
		}
		r.Rename, r.Delete = "friends", true // failed ones
		if r2, err = DecodeResult(r.AppendJSON(nil)); err != nil || !reflect.DeepEqual(r, r2) {
			t.Errorf("failed result of a %s: got %+v, %v, want %+v", name, r2, err, r)
		}
	}
	poison := Result{Import: "i", Job: "seq-9", Outcome: Failed, Code: CodeUndecodable, Info: "x",
		Started: r.Started, Finished: r.Finished, Conversations: []ConversationResult{}}
	p2, err := DecodeResult(poison.AppendJSON(nil))
	if err != nil || !reflect.DeepEqual(poison, p2) {
		t.Errorf("undecodable: got %+v, %v, want %+v", p2, err, poison)
	}
}

func TestDecodeRefuses(t *testing.T) {
	ok := string(func() []byte { j := sampleJob(); return j.AppendJSON(nil) }())
	for name, b := range map[string]string{
		"no JSON":          "hello",
		"empty":            "",
		"no version":       strings.Replace(ok, `"v":1,`, "", 1),
		"no import":        strings.Replace(ok, `"import":"9f2c41d07ab3e655"`, `"import":""`, 1),
		"import with dots": strings.Replace(ok, `"import":"9f2c41d07ab3e655"`, `"import":"a.b"`, 1),
		"type 3":           strings.Replace(ok, `"type":2`, `"type":3`, 1),
		"file -1":          strings.Replace(ok, `"file":1`, `"file":-1`, 1),
		"no conversations": `{"v":1,"import":"i","job":"j"}`,
		"generation -1":    strings.Replace(ok, `"v":1,`, `"v":1,"generation":-1,`, 1),
		"cut off":          ok[:len(ok)-5],
		"op move":          strings.Replace(ok, `"type":2`, `"type":2,"op":"move"`, 1),
		"delete and add":   strings.Replace(ok, `"v":1,`, `"v":1,"delete":true,`, 1),
	} {
		if j, err := Decode([]byte(b)); err == nil {
			t.Errorf("%s: got %+v, want an error", name, j)
		} else if errors.Is(err, ErrVersion) {
			t.Errorf("%s: got ErrVersion", name)
		}
	}
	newer := strings.Replace(ok, `"v":1,`, `"v":2,"from_account":{"not":"a string"},`, 1)
	if _, err := Decode([]byte(newer)); !errors.Is(err, ErrVersion) {
		t.Errorf("newer version: got %v, want ErrVersion", err)
	}
	if _, err := Decode([]byte(strings.Replace(ok, `"v":1,`, `"v":1,"later":[1],`, 1))); err != nil {
		t.Errorf("a field added within the version: got %v", err)
	}
	if _, err := DecodeResult([]byte(`{"v":1,"import":"i","job":"j","outcome":"maybe"}`)); err == nil {
		t.Error("outcome maybe: got no error")
	}
	_, r := sampleMirror()
	kept := strings.Replace(string(r.AppendJSON(nil)), `"op":"remove"`, `"op":"keep"`, 1)
	if _, err := DecodeResult([]byte(kept)); err == nil {
		t.Error("a result of what is kept: got no error")
	}
}

func TestID(t *testing.T) {
	a := ID("imp", "u", "g")
	if len(a) != 16 || a != ID("imp", "u", "g") {
		t.Errorf("got %q", a)
	}
	seen := map[string]string{a: "base"}
	for _, k := range [][3]string{{"imp", "ug", ""}, {"imp", "", "ug"}, {"impu", "", "g"}, {"imp", "u", "G"}, {"im", "pu", "g"}} {
		id := ID(k[0], k[1], k[2])
		if was, ok := seen[id]; ok {
			t.Errorf("%v has the id of %v", k, was)
		}
		seen[id] = strings.Join(k[:], "|")
	}
}

func TestSetOutcome(t *testing.T) {
	for codes, want := range map[string]Outcome{"..": Done, ".x": Partial, "xx": Failed} {
		var r Result
		for _, c := range codes {
			code := ""
			if c == 'x' {
				code = "50001"
			}
			r.Conversations = append(r.Conversations, ConversationResult{Code: code})
		}
		if r.SetOutcome(); r.Outcome != want {
			t.Errorf("%s: got %s, want %s", codes, r.Outcome, want)
		}
	}
}

// A job without a conversation that failed can fail itself: its rename was rejected.
func TestSetOutcomeOfTheJob(t *testing.T) {
	r := Result{Code: "50002"}
	if r.SetOutcome(); r.Outcome != Failed {
		t.Errorf("got %s, want %s", r.Outcome, Failed)
	}
}

func TestValidImportID(t *testing.T) {
	for s, want := range map[string]bool{"a": true, "Night-2_b": true, "": false, "a.b": false, "a b": false, "ä": false,
		strings.Repeat("x", 64): true, strings.Repeat("x", 65): false, "a*": false, "a>": false} {
		if got := ValidImportID(s); got != want {
			t.Errorf("%q: got %v, want %v", s, got, want)
		}
	}
}

func TestStrings(t *testing.T) {
	for s, want := range map[string]string{
		"": "", "abc": "abc", `a"b\c`: `a"b\c`, "日本": "日本", "a\nb\x00": "a\nb\x00", "<&>": "<&>", "\u2028": "\u2028",
		"\xff\xfe": "\ufffd\ufffd",
	} {
		j := sampleJob()
		j.GroupName = s
		if got, err := Decode(j.AppendJSON(nil)); err != nil || got.GroupName != want {
			t.Errorf("%q: got %q, %v, want %q", s, got.GroupName, err, want)
		}
	}
}

// FuzzDecode reads anything as a job and as a result: what was read is the same when it is written and read again.
func FuzzDecode(f *testing.F) {
	j, r := sampleJob(), sampleResult()
	for range 2 {
		f.Add(j.AppendJSON(nil))
		f.Add(r.AppendJSON(nil))
		mj, mr := sampleMirror()
		f.Add(mj.AppendJSON(nil))
		f.Add(mr.AppendJSON(nil))
		j.GroupName, j.Generation, j.Prior = "Familie Müller", 2, 1<<50
		r.Code, r.Info, r.Generation, r.Replaces = "51000", "gone", 2, 1<<50
		r.Conversations[1].Info = "no such group"
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if j, err := Decode(b); err == nil {
			again, err := Decode(j.AppendJSON(nil))
			if err != nil || !bytes.Equal(j.AppendJSON(nil), again.AppendJSON(nil)) {
				t.Errorf("%s: got %+v, then %+v, %v", b, j, again, err)
			}
		}
		if r, err := DecodeResult(b); err == nil {
			again, err := DecodeResult(r.AppendJSON(nil))
			if err != nil || !bytes.Equal(r.AppendJSON(nil), again.AppendJSON(nil)) {
				t.Errorf("%s: got %+v, then %+v, %v", b, r, again, err)
			}
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	j := Job{Import: "i", ID: "x", FromAccount: "user", GroupName: "g"}
	for i := range 100 {
		j.Conversations = append(j.Conversations, Conversation{Type: OneToOne, ID: "user-12345", Line: int64(i)})
	}
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = j.AppendJSON(buf[:0])
	}
}

// BenchmarkDecode reads a job and a result of 20 conversations.
func BenchmarkDecode(b *testing.B) {
	j := Job{Import: "i", ID: "x", FromAccount: "user", GroupName: "g"}
	r := Result{Import: "i", Job: "x", FromAccount: "user", GroupName: "g", Outcome: Done, Started: time.Now()}
	for i := range 20 {
		c := Conversation{Type: OneToOne, ID: "user-12345", Line: int64(i)}
		j.Conversations = append(j.Conversations, c)
		r.Conversations = append(r.Conversations, ConversationResult{Conversation: c})
	}
	jb, rb := j.AppendJSON(nil), r.AppendJSON(nil)
	for _, bench := range []struct {
		name   string
		decode func() error
	}{
		{"job", func() error { _, err := Decode(jb); return err }},
		{"result", func() error { _, err := DecodeResult(rb); return err }},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := bench.decode(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// The largest job fits into a message of a server's usual size: 1,000 wanted conversations whose ids need escapes, and
// 1,000 that are to be taken out.
func TestLargestJob(t *testing.T) {
	j := Job{Import: strings.Repeat("i", MaxImportID), ID: ID("i", "u", "g"), FromAccount: strings.Repeat(`"`, 32),
		GroupName: strings.Repeat("\x01", 32), Generation: 999, Prior: 1 << 60}
	for range 1000 {
		id := strings.Repeat(`"`, 48)
		j.Conversations = append(j.Conversations,
			Conversation{Type: GroupChat, ID: id, Op: Keep, File: 1 << 30, Line: 1 << 60, Again: true},
			Conversation{Type: GroupChat, ID: id, Op: Remove})
	}
	if n := len(j.AppendJSON(nil)); n > 1<<19 {
		t.Errorf("got %d bytes", n)
	}
}

func TestGone(t *testing.T) {
	for code, want := range map[string]bool{"50001": true, "51007": true, CodeNotRenamed: true, "": false, "50002": false, "51009": false, "http-502": false} {
		if got := Gone(code); got != want {
			t.Errorf("%q: got %t, want %t", code, got, want)
		}
	}
}
