package queue

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	long := make([]string, 5000)
	for i := range long {
		long[i] = fmt.Sprintf("/srv/%s/%05d-%016x.csv.gz", strings.Repeat("a long folder/", 70), i, rand.Uint64())
	}
	for _, names := range [][]string{nil, {}, {"-"}, {"a.csv", "b\n.csv", "\xff"}, long} {
		packed, err := PackNames(names)
		if err != nil {
			t.Errorf("%d names: %v", len(names), err)
		}
		if got, err := packed.Unpack(); !slices.Equal(got, names) || err != nil {
			t.Errorf("%d names: got %d, %v", len(names), len(got), err)
		}
	}
	if got, err := Names("\x01\x02").Unpack(); err == nil {
		t.Errorf("damaged: got %q", got)
	}
}

// What does not fit into a record is refused, and what is taken does.
func TestTooManyNames(t *testing.T) {
	var random []string
	for range maxNames / 24 { // of 48 digits, which are 24 bytes at best
		random = append(random, fmt.Sprintf("%016x%016x%016x", rand.Uint64(), rand.Uint64(), rand.Uint64()))
	}
	if _, err := PackNames(random); err == nil || !strings.Contains(err.Error(), "fewer files at a time") {
		t.Errorf("%d random names: got %v", len(random), err)
	}
	b, err := encodeImport(Import{Inputs: make(Names, maxNames)})
	if room := 1<<20 - headerRoom - 64<<10; err != nil || len(b) > room {
		t.Errorf("the largest record has %d bytes, %v; want %d for all but what else is in it", len(b), err, room)
	}
}
