package redact

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

const password = "pass-word-1"

func TestServers(t *testing.T) {
	for in, want := range map[string]string{
		"nats://host:4222":           "nats://host:4222",
		"host":                       "nats://host",
		"host:4222":                  "nats://host:4222",
		"[::1]:4222":                 "nats://[::1]:4222",
		"user:pass-word-1@host:4222": "nats://***@host:4222",
		"pass-word-1@a, u:pass-word-1@b:2 ,tls://u:pass-word-1@c": "nats://***@a,nats://***@b:2,tls://***@c",
		"wss://user:pass-word-1@host:4222":                        "wss://***@host:4222",
		"nats://pass-word-1@a:1, nats://b:2?x=pw":                 "nats://***@a:1,nats://b:2",
		"nats://a:1/pass-word-1#pass-word-1":                      "nats://a:1",
		"nats://user:pass-word-1/@host":                           "",
		"user:pass-word-1/@host":                                  "",
		"a:1,nats://user:%zzpass-word-1@host":                     "",
		"nats://user:pass-word-1@":                                "",
		"a:1,":                                                    "",
		"nats://user:12,34@host":                                  "",
		"a:1,u:pass-word-1@b":                                     "",
		"http://host:4222":                                        "",
		"nats://:4222":                                            "",
		"nats://host:70000":                                       "",
		"":                                                        "",
	} {
		all, err := Servers(in)
		if (err == nil) != (want != "") {
			t.Errorf("%s: got %+v, %v", in, all, err)
		}
		if err != nil && strings.Contains(err.Error(), password) {
			t.Errorf("%s: the password is in %v", in, err)
		}
		if want == "" {
			want = "***"
		}
		if got := ServerList(in); got != want {
			t.Errorf("%s: got %q, want %q", in, got, want)
		}
	}
	all, err := Servers("bob:pass-word-1@a,token@b")
	if err != nil || all[0].User != "bob" || all[1].User != "" || !all[1].Login {
		t.Errorf("got %+v, %v; want bob, and a token that is no user", all, err)
	}
}

func TestLogins(t *testing.T) {
	for in, want := range map[string]string{
		"connect to nats://u:pass-word-1@h:1: no": "connect to nats://***@h:1: no",
		"nats://u:pass-word-1@a,tls://pass@b":     "nats://***@b",
		`"proxy http://u:p@ss@h" is none`:         `"proxy http://***@h" is none`,
		"nats://***@a:1,nats://***@b x":           "nats://***@a:1,nats://***@b x",
		"nats://***@a:1,nats://u:pass-word-1@b":   "nats://***@a:1,nats://***@b",
		"https://host/path":                       "https://host/path",
		"a@b.csv":                                 "a@b.csv",
	} {
		if got := Logins(in); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}

// aSig is a UserSig that has all characters of its base64: each place of three is a star, a dash or a letter.
var aSig = "eJ" + strings.Repeat("aB*c-d", 12) + "9_"

func TestUserSigs(t *testing.T) {
	standard := strings.NewReplacer("*", "+", "-", "/", "_", "=").Replace(aSig)
	for name, form := range map[string]string{
		"its own": aSig, "standard": standard, "escaped": url.QueryEscape(aSig), "standard, escaped": url.QueryEscape(standard),
		"in JSON": strings.ReplaceAll(standard, "/", `\/`), "in lower case": strings.ReplaceAll(standard, "+", "%2b"),
	} {
		want := "you sent " + secret + ", no"
		if got := UserSigs("you sent " + form + ", no"); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
	unlike := strings.TrimPrefix(aSig, "eJ") // of a version that begins otherwise
	for _, form := range SigForms(unlike) {
		if got := UserSigs("<"+form+">", SigForms(unlike)...); got != "<"+secret+">" {
			t.Errorf("%s: got %s", form, got)
		}
	}
	if got := UserSigs("a?usersig=x+/=&b=1"); got != "a?usersig="+secret+"&b=1" {
		t.Errorf("got %s", got)
	}
}

func TestVisible(t *testing.T) {
	for in, want := range map[string]string{
		"家族 naïve 👪\u200d": "家族 naïve 👪\u200d",
		"a\x1b[31mb":       `a\u001b[31mb`,
		"gpj\u202e.csv":    `gpj\u202e.csv`,
		"\u2066x\u200f":    `\u2066x\u200f`,
		"a\nb\tc":          `a\nb` + "\tc",
		"\x9b31m\u009b":    `\x9b31m\u009b`,
		"\ufffd\u2028":     "\ufffd" + `\u2028`,
	} {
		if got := Visible(in, "\t"); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// FuzzRedact: whatever stands before the last @ of a URL is in nothing that is shown, and what is shown is no
// instruction to a terminal.
func FuzzRedact(f *testing.F) {
	f.Add("user", "nats://", "host:1")
	f.Add("user:/?#", "", "host")
	f.Add("u\x1b", "tls://", "h\u202e\xff")
	f.Fuzz(func(t *testing.T, user, scheme, host string) {
		const hush = "Zq9Zq9Zq9"
		if strings.Contains(host, hush) {
			return
		}
		before := scheme + user
		if !strings.Contains(host, "@") && !(strings.Contains(before, ",") && strings.Contains(before, "@")) {
			for _, list := range []string{before + ":" + hush + "@" + host, "u@a:1, " + scheme + hush + user + "@" + host} {
				_, err := Servers(list)
				got := ServerList(list)
				if strings.Contains(got, hush) || err != nil && strings.Contains(err.Error(), hush) {
					t.Errorf("%q: got %q, %v", list, got, err)
				}
			}
		}
		if !strings.ContainsAny(user, "\"'<>") && strings.IndexFunc(user, unicode.IsSpace) < 0 {
			if got := Logins("see nats://" + user + ":" + hush + "@" + host); strings.Contains(got, hush) {
				t.Errorf("text: got %q", got)
			}
		}
		shown := Visible(before+host, "")
		if strings.IndexFunc(shown, func(r rune) bool {
			return unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)
		}) >= 0 || !utf8.ValidString(shown) {
			t.Errorf("got %q", shown)
		}
	})
}

// FuzzUserSigs: no run of a UserSig is left of any of its forms, whatever stands around it.
func FuzzUserSigs(f *testing.F) {
	f.Add("usersig=", "&x=1", uint8(0))
	f.Add("", "", uint8(3))
	f.Fuzz(func(t *testing.T, before, after string, form uint8) {
		forms := SigForms(aSig)
		text := forms[int(form)%len(forms)]
		got := UserSigs(before+text+after, forms...)
		for i := 0; i+24 <= len(text); i++ {
			if part := text[i : i+24]; strings.Contains(got, part) && !strings.Contains(before+after, part) {
				t.Fatalf("got %q, which has %q", got, part)
			}
		}
	})
}

// TestVisibleJSON: what is escaped in JSON is JSON with the same meaning.
func TestVisibleJSON(t *testing.T) {
	in := "a\u202eb\u009b\u007f"
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var got string
	if err := json.Unmarshal([]byte(Visible(string(b), "\n")), &got); err != nil || got != in {
		t.Errorf("got %q, %v", got, err)
	}
}
