package main

import (
	"slices"
	"strings"
	"testing"
)

func TestSimilar(t *testing.T) {
	regions := strings.Fields("china singapore seoul tokyo frankfurt mumbai siliconvalley jakarta")
	tests := []struct {
		text, names, want string
	}{
		{"singapur", "", "singapore"}, {"sinagpore", "", "singapore"}, {"Seoul", "", "seoul"}, {"toyko", "", "tokyo"},
		{"frank", "", "frankfurt"}, {"mars", "", ""}, {"", "", ""}, {"x", "csv jsonl", ""}, {"jsno", "text json", "json"},
		{"s", "", ""}, {"se", "", "seoul"}, {"67c54d65456a9f63", "67c54d65456a9f36 17c54d65456a9f36 aaaa", "67c54d65456a9f36"},
		{"67c54", "67c54d65456a9f36 67c54000456a9f36", "67c54d65456a9f36 67c54000456a9f36"}, {"dat-dir", "data-dir nats-url", "data-dir"},
	}
	for _, test := range tests {
		names := regions
		if test.names != "" {
			names = strings.Fields(test.names)
		}
		if got := similar(test.text, names); !slices.Equal(got, strings.Fields(test.want)) {
			t.Errorf("similar(%q): got %q, want %q", test.text, got, test.want)
		}
	}
	for _, test := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"regoin", "region", 1}, {"kitten", "sitting", 3}, {"ab", "ba", 1}, {"rate", "rte", 1}} {
		if got := distance(test.a, test.b); got != test.want {
			t.Errorf("distance(%q, %q): got %d, want %d", test.a, test.b, got, test.want)
		}
	}
}
