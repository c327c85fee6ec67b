package importer

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// TestRejectsAgain imports a reject file: as it is, everything is rejected again; fixed, it goes in.
func TestRejectsAgain(t *testing.T) {
	bad := []string{
		`u1,"a,1,x1,`,
		`u1,a,1,x1`,
		`u1,a,1,x1,,`,
		`u1,a, b,1,x1,`,
		"u1,\"a\r\nb\",1,x1,",
		`"u ""1""` + "\x00" + `",g,1,x1,`,
		"\xff,g,1,x1,",
		` u1,g,,x1,`,
		`from_account,group_name,type,to_account,to_group_id`,
		strings.Repeat("u", 300) + ",g,1,x1,",
		`u1,` + strings.Repeat("家", 90) + `,1,x1,`,
		``, // separates the rows from the one that is not closed
		`u1,g,1,x1,"`,
	}
	p := readString(t, csvHeader+strings.Join(bad, "\n"), Config{})
	var first, second bytes.Buffer
	if err := p.WriteRejects(&first); err != nil {
		t.Fatal(err)
	}
	again := readString(t, first.String(), Config{})
	wantLines(t, "notices", again.Notices)
	if again.Summary.Accepted != 0 || again.Summary.Rejected != p.Summary.Rejected {
		t.Errorf("got %+v, want all %d rejected again:\n%s", again.Summary, p.Summary.Rejected, &first)
	}
	if err := again.WriteRejects(&second); err != nil {
		t.Fatal(err)
	}
	fixed := strings.Replace(first.String(), `u1,"""a",,x1`, `u1,"a",1,x1`, 1)
	if got := readString(t, fixed, Config{}).Summary.Accepted; got != 1 {
		t.Errorf("got %d accepted after fixing one row, want 1", got)
	}
	// From then on nothing is lost: all but the reasons stays as it is.
	fields := func(p *Plan) (texts []string) {
		for _, r := range rejectsOf(t, p) {
			texts = append(texts, fmt.Sprintf("%q", []string{r.FromAccount, r.GroupName, r.Type, r.ToAccount, r.ToGroupID}))
		}
		return texts
	}
	wantLines(t, "fields", fields(again), fields(p)...)
}

func TestWriteRejectsError(t *testing.T) {
	p := readString(t, csvHeader+"x\n", Config{})
	full := errors.New("disk full")
	err := p.WriteRejects(writerFunc(func([]byte) (int, error) { return 0, full }))
	if !errors.Is(err, full) {
		t.Errorf("got %v, want %v", err, full)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
