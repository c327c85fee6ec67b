package importer

import (
	"errors"
	"strings"
	"testing"
)

func TestMapIDs(t *testing.T) {
	files(t, map[string]string{
		"ids.csv":    "\ufeffOld,new\na@old.example,u1\nb,u2\n\"c,d\",@TGS#1\nb,u2\n",
		"two.csv":    "old,new\na,b\na,c\n",
		"head.csv":   "a,b\n",
		"empty.csv":  "",
		"hole.csv":   "old,new\na,\n",
		"long.csv":   "old,new\n" + strings.Repeat("a", 255) + ",b\nc," + strings.Repeat("d", 255) + "\n",
		"ragged.csv": "old,new\na,b\na,b,c\n",
	})
	input := csvHeader + "a@old.example,g,1,b,\nb,g,2,,\"c,d\"\nb,g,1,z,\nz,g,1,b,\nb,,1,b,\n"
	p := readString(t, input, Config{MapIDs: "ids.csv"})
	wantLines(t, "jobs", sorted(jobTexts(t, p)), "u1/g: 1:u2@-:2", "u2/g: 2:@TGS#1@-:3")
	wantLines(t, "rejects", rejectTexts(t, p),
		"4 50002 to_account is not among the old ids in ids.csv",
		"5 50002 from_account is not among the old ids in ids.csv",
		"6 50002 group_name is empty")
	if r := rejectsOf(t, p)[2]; r.FromAccount != "b" {
		t.Errorf("got from_account %q in a reject, want the old id", r.FromAccount)
	}
	if other := readString(t, input, Config{}); other.Digest == p.Digest {
		t.Error("got the same digest with other ids")
	}
	for file, want := range map[string]string{
		"none.csv": "no such file", "two.csv": "line 3: an id has two new ones", "head.csv": "line 1: the first line is not old,new",
		"empty.csv": "is empty", "hole.csv": "line 2: an id is empty", "long.csv": "line 3: the new id has 255 bytes, 48 at most", "ragged.csv": "line 3: cannot be read: wrong number of fields",
	} {
		err := readError(t, input, Config{MapIDs: file})
		var e *Error
		if !errors.As(err, &e) || !strings.HasPrefix(err.Error(), file+": "+want) {
			t.Errorf("got %v, want %s: %s", err, file, want)
		}
	}
}
