package app

import (
	"errors"
	"slices"
	"testing"

	"groupferry/internal/chatsim"
	"groupferry/internal/queue"
)

func TestFindImport(t *testing.T) {
	n := newNamespace(t, chatsim.Config{})
	for _, id := range []string{"abcd", "abcd0", "abcd01", "night-1", "night-2", "0123456789abcdef", "0123ffff00000000"} {
		n.enqueue(id, 1)
	}
	tests := []struct {
		text   string
		inFull bool
		want   string // "" if the error is an AmbiguousError, "-" if there is none
	}{
		{"abcd", false, "abcd"}, // also the beginning of others
		{"abcd0", false, "abcd0"},
		{"abcd01", true, "abcd01"},
		{"abcd0", true, "abcd0"},
		{"nigh", false, ""},
		{"nig", false, "-"},
		{"nigh", true, "-"},
		{"night-1", true, "night-1"},
		{"night-10", false, "-"},
		{"0123", false, ""},
		{"0123", true, ""},
		{"01234", true, "0123456789abcdef"},
		{"0123F", false, "-"},
		{"", false, "-"},
	}
	for _, test := range tests {
		id, others, err := n.FindImport(t.Context(), test.text, test.inFull)
		var ambiguous *AmbiguousError
		switch {
		case test.want == "":
			if !errors.As(err, &ambiguous) || len(ambiguous.Imports) != 2 {
				t.Errorf("%q: got %q, %v, want an AmbiguousError with 2 imports", test.text, id, err)
			}
		case test.want == "-":
			if !errors.Is(err, queue.ErrNoImport) || id != test.text || len(others) != 7 {
				t.Errorf("%q: got %q, %d others, %v, want ErrNoImport and 7", test.text, id, len(others), err)
			}
		case id != test.want || err != nil:
			t.Errorf("%q: got %q, %v, want %q", test.text, id, err, test.want)
		}
	}
	if text := (&AmbiguousError{"a", []queue.Import{{ID: "ab"}, {ID: "ac"}}}).Error(); text != "several imports begin with a: ab, ac" {
		t.Errorf("got %q", text)
	}
	if slices.ContainsFunc([]string{"", "0123456789abcde", "0123456789abcdefa", "0123456789abcdeF"}, madeFromContent) {
		t.Error("an ID that is none of content counts as one")
	}
}
