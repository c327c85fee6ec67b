package importer

import (
	"fmt"
	"strings"
	"testing"
)

func TestWarnings(t *testing.T) {
	var b strings.Builder
	b.WriteString(csvHeader)
	for i := range 1001 {
		fmt.Fprintf(&b, "u1,g%d,1,x%d,\n", i%2, i)
		fmt.Fprintf(&b, "u2,g%d,1,x%d,\n", i%2, i/2) // as many rows, half as many conversations
	}
	b.WriteString("u3, a,1,x,\nu3,b ,1,x,\nu3,b ,1,y,\n")
	p := readString(t, b.String(), Config{})
	if len(p.Warnings) != 2 {
		t.Fatalf("got %+v, want 2 warnings", p.Warnings)
	}
	w := p.Warnings[0]
	if w.Line != 2002 || w.File != "-" || w.FromAccount != "u1" || !strings.Contains(w.Text, "1001 distinct conversations") {
		t.Errorf("got %+v, want line 2002 and 1001 conversations of u1", w)
	}
	if strings.Contains(w.Text, "u1") {
		t.Errorf("got %q, which holds an id", w.Text)
	}
	if w := p.Warnings[1]; w.Line != 2004 || !strings.HasSuffix(w.Text, ": 2") {
		t.Errorf("got %+v, want line 2004 and 2 groups", w)
	}
	if p.Summary.Rejected != 0 {
		t.Errorf("got %d rejects, want none", p.Summary.Rejected)
	}
}
