package chat

import (
	"bytes"
	"compress/zlib"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// The vector of the project's notes on the API.
const (
	vectorApp  = 1400000000
	vectorKey  = Secret("5f4dcc3b5aa765d61d8327deb882cf99aabbccddeeff00112233445566778899")
	vectorTime = 1700000000
	vectorLife = 15552000
	vectorMAC  = "wnX5QyHQtPYDZx6+7yxR+21RjaRnuOIy79PopMMY3RQ="
	vectorSig  = "eJyrVgrxCdYrSy1SslIy0jNQ0gHzM1NS80oy0zLBwokpuZl5mcUlRYkl*UVQBcUp2YkFBZkpSlaGJgZQAJFJrSjILEoFipuamhrBRUsyc0Fi5q" +
		"hqizPTgeaX50WYBlZ6BJYERLpEVZhpm1dWBGkbGQZlJQbllfp7VppbBuQX*PpGGgcF2irVAgBILjSD"
)

var day = time.Unix(vectorTime, 0)

func TestUserSigVector(t *testing.T) {
	s := userSig{Identifier: "administrator", SDKAppID: vectorApp, Time: vectorTime, Expire: vectorLife}
	if got := s.mac(vectorKey); got != vectorMAC {
		t.Errorf("mac: got %s, want %s", got, vectorMAC)
	}
	tests := []struct {
		name       string
		sig        string
		key        Secret
		app        uint64
		identifier string
		now        int64
		want       int
	}{
		{"valid", vectorSig, vectorKey, vectorApp, "administrator", 1700000100, 0},
		{"last second", vectorSig, vectorKey, vectorApp, "administrator", vectorTime + vectorLife, 0},
		{"expired", vectorSig, vectorKey, vectorApp, "administrator", 1715552001, CodeSigExpired},
		{"empty", "", vectorKey, vectorApp, "administrator", vectorTime, CodeSigEmpty},
		{"not base64", "!", vectorKey, vectorApp, "administrator", vectorTime, CodeSigUnparsable},
		{"cut", vectorSig[:100], vectorKey, vectorApp, "administrator", vectorTime, CodeSigUnparsable},
		{"other app", vectorSig, vectorKey, 1400000001, "administrator", vectorTime, CodeSigOtherApp},
		{"other account", vectorSig, vectorKey, vectorApp, "admin", vectorTime, CodeSigOtherIdentifier},
		{"other key", vectorSig, vectorKey + "0", vectorApp, "administrator", vectorTime, CodeSigWrongKey},
		{"the app is looked at before the time", vectorSig, vectorKey, 1, "x", 1715552001, CodeSigOtherApp},
	}
	for _, tt := range tests {
		if got := VerifyUserSig(tt.sig, tt.key, tt.app, tt.identifier, time.Unix(tt.now, 0)); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
	}
	if got, err := UserSigExpiry(vectorSig); err != nil || got.Unix() != vectorTime+vectorLife {
		t.Errorf("expiry: got %v, %v, want %d", got, err, vectorTime+vectorLife)
	}
}

func TestSignedUserSigVerifies(t *testing.T) {
	for _, id := range []string{"administrator", `a "quoted" <admin>`, "a&b=c\\"} {
		sig := SignUserSig("key", 7, id, day, 90*time.Second)
		if got := VerifyUserSig(sig.Reveal(), "key", 7, id, day.Add(90*time.Second)); got != 0 {
			t.Errorf("%q in time: got %d, want 0", id, got)
		}
		if got := VerifyUserSig(sig.Reveal(), "key", 7, id, day.Add(91*time.Second)); got != CodeSigExpired {
			t.Errorf("%q too late: got %d, want %d", id, got, CodeSigExpired)
		}
		if strings.ContainsAny(sig.Reveal(), "+/=&? ") {
			t.Errorf("%q: the UserSig cannot stand in a query", id)
		}
	}
}

// packed makes a UserSig of any text.
func packed(text string) string {
	var b bytes.Buffer
	z := zlib.NewWriter(&b)
	z.Write([]byte(text))
	z.Close()
	return sigEncoding.EncodeToString(b.Bytes())
}

func TestUserSigThatUnpacksToTooMuch(t *testing.T) {
	sig := packed(`{"TLS.ver":"2.0"` + strings.Repeat(" ", 64<<20) + "}")
	if got := VerifyUserSig(sig, "k", 0, "", day); got != CodeSigUnparsable {
		t.Errorf("got %d, want %d", got, CodeSigUnparsable)
	}
}

func TestUserSigTimesDoNotOverflow(t *testing.T) {
	sig := packed(`{"TLS.ver":"2.0","TLS.time":9000000000000000000,"TLS.expire":9000000000000000000}`)
	if got := VerifyUserSig(sig, "k", 0, "", day); got != CodeSigWrongKey {
		t.Errorf("got %d, want %d", got, CodeSigWrongKey)
	}
}

func FuzzVerifyUserSig(f *testing.F) {
	f.Add(vectorSig)
	f.Add("")
	f.Add("eJ")
	f.Add(packed(`{"TLS.ver":"2.0"}`))
	f.Fuzz(func(t *testing.T, sig string) {
		got := VerifyUserSig(sig, vectorKey, vectorApp, "administrator", day)
		if got == 0 {
			s, err := parseUserSig(sig)
			if err != nil || s.mac(vectorKey) != s.Sig {
				t.Errorf("%q passed", sig)
			}
		}
		if _, err := UserSigExpiry(sig); (err != nil) != (got == CodeSigEmpty || got == CodeSigUnparsable) {
			t.Errorf("%q: verify says %d, expiry %v", sig, got, err)
		}
	})
}

func TestSecretHides(t *testing.T) {
	s := Secret("hush")
	config := Config{SecretKey: s, UserSig: s}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "secret", s, "config", config)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "secret", s, "config", config)
	text, err := json.Marshal(map[string]any{"s": s, "c": config})
	if err != nil {
		t.Fatal(err)
	}
	out := log.String() + string(text) + s.String() + s.GoString()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		out += fmt.Sprintf(verb, s) + fmt.Sprintf(verb, config) + fmt.Sprintf(verb, &config) + fmt.Sprintf(verb, []Secret{s})
	}
	for _, bad := range []string{"hush", "68757368", "104 117"} {
		if strings.Contains(out, bad) {
			t.Errorf("found %q in %s", bad, out)
		}
	}
	if got := s.Reveal(); got != "hush" {
		t.Errorf("reveal: got %q", got)
	}
}
