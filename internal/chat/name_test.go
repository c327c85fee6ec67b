package chat

import "testing"

func TestFoldName(t *testing.T) {
	for _, same := range [][2]string{
		{"Work", "work"}, {"ÉCOLE", "école"}, {"caf\u00e9", "cafe\u0301"}, {"CAFE\u0301", "caf\u00e9"}, {"ΣΑΣ", "σας"}, {"日本", "日本"},
	} {
		if a, b := FoldName(same[0]), FoldName(same[1]); a != b {
			t.Errorf("%q and %q: got %q and %q, want the same", same[0], same[1], a, b)
		}
	}
	for _, other := range [][2]string{{"work", "work "}, {"é", "e"}, {"ß", "ss"}, {"", "a"}} {
		if a, b := FoldName(other[0]), FoldName(other[1]); a == b {
			t.Errorf("%q and %q: got %q for both", other[0], other[1], a)
		}
	}
}

func FuzzFoldName(f *testing.F) {
	f.Add("Work")
	f.Add("cafe\u0301")
	f.Fuzz(func(t *testing.T, s string) {
		if once := FoldName(s); FoldName(once) != once {
			t.Errorf("%q: got %q, and that folded again is %q", s, once, FoldName(once))
		}
	})
}
