package chatsim

import (
	"math/rand/v2"
	"testing"

	"groupferry/internal/chat"
)

func TestParseFault(t *testing.T) {
	tests := []struct {
		text string
		want Fault
		back string
	}{
		{"50004:0.1", Fault{Kind: "50004", Share: 0.1}, "50004:0.1"},
		{"lost:5%", Fault{Kind: Lost, Share: 0.05}, "lost:0.05"},
		{"51013:1@50", Fault{Kind: "51013", Share: 1, After: 50}, "51013@50"},
		{"reset@10+2", Fault{Kind: Reset, Share: 1, After: 10, For: 2}, "reset@10+2"},
		{"hang:100%+3", Fault{Kind: Hang, Share: 1, For: 3}, "hang+3"},
		{"http-502:0.001", Fault{Kind: "http-502", Share: 0.001}, "http-502:0.001"},
		{"item-51007:0.00001", Fault{Kind: "item-51007", Share: 0.00001}, "item-51007:0.00001"},
		{"cut", Fault{Kind: Cut, Share: 1}, "cut"},
		{"garbage", Fault{Kind: Garbage, Share: 1}, "garbage"},
		{"late", Fault{Kind: Late, Share: 1}, "late"},
		{"update_contact_group/http-404:50%@1+1", Fault{chat.UpdateContactGroup, "http-404", 0.5, 1, 1}, "update_contact_group/http-404:0.5@1+1"},
	}
	for _, tt := range tests {
		got, err := ParseFault(tt.text)
		if err != nil || got != tt.want {
			t.Errorf("%s: got %+v, %v, want %+v", tt.text, got, err, tt.want)
		}
		if s := got.String(); s != tt.back {
			t.Errorf("%s: back as %s, want %s", tt.text, s, tt.back)
		}
		if again, err := ParseFault(got.String()); err != nil || again != got {
			t.Errorf("%s: round trip: got %+v, %v, want %+v", tt.text, again, err, got)
		}
	}
	for _, bad := range []string{
		"", "x", "5004", "500004", "05004", "-5004", "http-", "http-200", "http-99", "http-600", "http-+50", "item-", "item-x", "item-lost",
		"lost:", "lost:x", "lost:0", "lost:-1", "lost:1.1", "lost:101%", "lost:NaN", "lost@", "lost@0", "lost@-1", "lost+0", "lost@1@2", "lost+1@2",
	} {
		if f, err := ParseFault(bad); err == nil {
			t.Errorf("%q: got %+v, want an error", bad, f)
		}
	}
}

func FuzzParseFault(f *testing.F) {
	f.Add("item-51007:3.5%@7+9")
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseFault(s)
		if err != nil {
			return
		}
		if again, err := ParseFault(got.String()); err != nil || again != got {
			t.Errorf("%q: got %+v, %v from %q, want %+v", s, again, err, got.String(), got)
		}
	})
}

func TestFaultShare(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, tt := range []struct {
		share  float64
		lo, hi int
	}{{0, 10000, 10000}, {1, 10000, 10000}, {0.05, 400, 600}, {0.9, 8900, 9100}} {
		f := Fault{Kind: Lost, Share: tt.share}
		n := 0
		for range 10000 {
			if f.strikes(rng) {
				n++
			}
		}
		if n < tt.lo || n > tt.hi {
			t.Errorf("share %v: got %d of 10000, want %d to %d", tt.share, n, tt.lo, tt.hi)
		}
	}
}
