package importer

import (
	"fmt"
	"slices"
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

// TestWarningLimit keeps the first 1,000 warnings about one place each, counts all, and does not count those of a kind
// among them.
func TestWarningLimit(t *testing.T) {
	const n = 2*maxWarnings + 500
	var b strings.Builder
	b.WriteString("from_account,group_name,type,to_account,to_group_id,note\n")
	for i := range n { // records of three lines, the second of which could be one itself
		fmt.Fprintf(&b, "u1, g,1,x%d,,\"note\nu1,g,1,x,,\n\"\n", i%900)
	}
	for _, workers := range []int{1, 3} {
		p := readString(t, b.String(), Config{workers: workers})
		if got, want := p.Summary.Warnings, int64(n+1); got != want {
			t.Errorf("got %d warnings in all, want %d", got, want)
		}
		if got, want := len(p.Warnings), maxWarnings+1; got != want {
			t.Fatalf("got %d warnings kept, want %d", got, want)
		}
		for i := range maxWarnings {
			at := i // the group's own warning is about line 2 as well, and comes after the one about that place alone
			if i > 0 {
				at = i + 1
			}
			if w := p.Warnings[at]; w.Line != int64(2+3*i) || !strings.HasPrefix(w.Text, "a quote makes one record") {
				t.Fatalf("warning %d: got %+v, want line %d", at, w, 2+3*i)
			}
		}
		if w := p.Warnings[1]; w.Line != 2 || !strings.HasPrefix(w.Text, "group names begin or end") {
			t.Errorf("got %+v, want the name in line 2", w)
		}
	}
}

// TestFindings adds up in any order.
func TestFindings(t *testing.T) {
	var a, b findings
	a.found(xmppID, position{1, 3})
	a.found(xmppID, position{0, 9})
	b.found(xmppID, position{0, 7})
	b.found(sdkID, position{1, 1})
	for _, order := range [][]*findings{{&a, &b}, {&b, &a}} {
		var sum findings
		for _, f := range order {
			sum.add(f)
		}
		warnings, all := sum.report([]string{"a.csv", "b.csv"})
		want := []Warning{
			{Text: findingTexts[xmppID] + ": 3", File: "a.csv", Line: 7},
			{Text: findingTexts[sdkID] + ": 1", File: "b.csv", Line: 1, file: 1},
		}
		if all != 2 || !slices.Equal(warnings, want) {
			t.Errorf("got %d, %+v; want %+v", all, warnings, want)
		}
	}
}

func TestForeignID(t *testing.T) {
	for _, tc := range []struct {
		id         string
		user, chat findingKind
	}{
		{"lena", nothingFound, nothingFound},
		{"c2c_lena", sdkID, sdkID},
		{"GROUP@TGS#1", sdkID, sdkID},
		{"si_a_b", openIMID, openIMID},
		{"lena|1|bob", yunxinID, yunxinID},
		{"lena@example.org", xmppID, nothingFound},
		{"@TGS#1", groupChatID, nothingFound},
	} {
		if user, chat := foreignID(tc.id, true), foreignID(tc.id, false); user != tc.user || chat != tc.chat {
			t.Errorf("%s: got %d for a user and %d for a group chat, want %d and %d", tc.id, user, chat, tc.user, tc.chat)
		}
	}
}
