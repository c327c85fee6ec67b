package job

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// fastDecode reads what [Job.AppendJSON] writes for a job whose strings need no escapes, as nearly all do, in a tenth of
// the time that encoding/json takes. What differs from that by a single byte it leaves to encoding/json: ok is false
// then, as it is for a job that [Decode] has to refuse.
func fastDecode(b []byte) (j Job, ok bool) {
	p := cursor{s: string(b)} // the strings of the job are parts of this one
	p.expect(`{"v":` + strconv.Itoa(Version) + `,"import":"`)
	j.Import = p.text()
	p.expect(`,"job":"`)
	j.ID = strings.Clone(p.text()) // this and the user are kept for longer than the job
	p.expect(`,"from_account":"`)
	j.FromAccount = strings.Clone(p.text())
	p.expect(`,"group_name":"`)
	j.GroupName = p.text()
	if p.next(`,"generation":`) {
		j.Generation = int(p.number())
	}
	if p.next(`,"prior":`) {
		j.Prior = uint64(p.number())
	}
	p.expect(`,"files":[`)
	j.Files = make([]string, 0, 1)
	for !p.bad && !p.next(`]`) {
		if len(j.Files) > 0 {
			p.expect(`,`)
		}
		p.expect(`"`)
		j.Files = append(j.Files, p.text())
	}
	p.expect(`,"conversations":[`)
	j.Conversations = make([]Conversation, 0, strings.Count(p.s, "\n"))
	for !p.bad && !p.next("\n]}") {
		if len(j.Conversations) > 0 {
			p.expect(`,`)
		}
		p.expect("\n" + `{"type":`)
		c := Conversation{Type: int(p.number())}
		p.expect(`,"id":"`)
		c.ID = p.text()
		if p.next(`,"file":`) {
			c.File = int(p.number())
		}
		p.expect(`,"line":`)
		c.Line = p.number()
		p.expect(`}`)
		j.Conversations = append(j.Conversations, c)
	}
	return j, !p.bad && p.s == "" && j.valid()
}

// valid reports whether a job can be what was written.
func (j *Job) valid() bool {
	for i := range j.Conversations {
		c := &j.Conversations[i]
		if c.Type != OneToOne && c.Type != GroupChat || c.File >= len(j.Files) {
			return false
		}
	}
	return ValidImportID(j.Import) && j.ID != "" && len(j.Conversations) > 0
}

// A cursor is text that is read from its beginning; bad says that it was not as expected.
type cursor struct {
	s   string
	bad bool
}

func (p *cursor) next(s string) bool {
	rest, ok := strings.CutPrefix(p.s, s)
	if ok {
		p.s = rest
	}
	return ok
}

func (p *cursor) expect(s string) { p.bad = !p.next(s) || p.bad }

// text reads a string up to and with the quotation mark at its end.
func (p *cursor) text() string {
	end := strings.IndexByte(p.s, '"')
	if end < 0 {
		p.bad = true
		return ""
	}
	s := p.s[:end]
	p.s = p.s[end+1:]
	ascii := true
	for i := range len(s) {
		p.bad = p.bad || s[i] < ' ' || s[i] == '\\'
		ascii = ascii && s[i] < utf8.RuneSelf
	}
	p.bad = p.bad || !ascii && !utf8.ValidString(s)
	return s
}

// number reads digits as they are written: at most 18 of them, and no 0 before others.
func (p *cursor) number() (n int64) {
	i := 0
	for i < len(p.s) && '0' <= p.s[i] && p.s[i] <= '9' {
		n = 10*n + int64(p.s[i]-'0')
		i++
	}
	if i == 0 || i > 18 || i > 1 && p.s[0] == '0' {
		p.bad = true
	}
	p.s = p.s[i:]
	return n
}
