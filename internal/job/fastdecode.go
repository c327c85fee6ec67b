package job

import (
	"strings"
	"time"
	"unicode/utf8"
)

// fastDecode reads what [Job.AppendJSON] and [Result.AppendJSON] write when no string needs an escape, as nearly none
// does, in a tenth of the time that encoding/json takes. It leaves to encoding/json what has other white space, an escape
// or a key that is not known: ok is false then, as it is for what is not the wire form.
func fastDecode(b []byte) (w *wire, ok bool) {
	p := cursor{s: string(b)} // the strings of w are parts of this one
	w = new(wire)
	for p.first('{'); p.more('}'); {
		switch p.key() {
		case "v":
			w.Version = int(p.number())
		case "import":
			w.Import = p.text()
		case "job":
			w.Job = p.text()
		case "from_account":
			w.FromAccount = p.text()
		case "group_name":
			w.GroupName = p.text()
		case "group_id":
			w.GroupID = p.number()
		case "outcome":
			w.Outcome = Outcome(p.text())
		case "code":
			w.Code = p.text()
		case "info":
			w.Info = p.text()
		case "generation":
			w.Generation = int(p.number())
		case "prior":
			w.Prior = uint64(p.number())
		case "replaces":
			w.Replaces = uint64(p.number())
		case "attempts":
			w.Attempts = int(p.number())
		case "calls":
			w.Calls = int(p.number())
		case "started":
			w.Started = p.time()
		case "finished":
			w.Finished = p.time()
		case "worker":
			w.Worker = p.text()
		case "conversations":
			p.bad = p.bad || w.Conversations != nil // encoding/json would merge them
			w.Conversations = make([]ConversationResult, 0, strings.Count(p.s, "\n"))
			for p.first('['); p.more(']'); {
				w.Conversations = append(w.Conversations, p.conversation())
			}
		default:
			p.bad = true
		}
	}
	return w, !p.bad && p.at == len(p.s) && w.Version == Version
}

func (p *cursor) conversation() (c ConversationResult) {
	for p.first('{'); p.more('}'); {
		switch p.key() {
		case "type":
			c.Type = int(p.number())
		case "id":
			c.ID = p.text()
		case "file":
			c.File = int(p.number())
		case "line":
			c.Line = p.number()
		case "code":
			c.Code = p.text()
		case "info":
			c.Info = p.text()
		default:
			p.bad = true
		}
	}
	return c
}

// A cursor is text that is read from its beginning; bad says that it was not as expected.
type cursor struct {
	s     string
	at    int // what is before it was read
	bad   bool
	begun bool // an object or an array, of which nothing was read yet
}

// is tells whether c comes next.
func (p *cursor) is(c byte) bool { return p.at < len(p.s) && p.s[p.at] == c }

// next reads c if it comes next.
func (p *cursor) next(c byte) bool {
	ok := p.is(c)
	if ok {
		p.at++
	}
	return ok
}

func (p *cursor) expect(c byte) { p.bad = !p.next(c) || p.bad }

// first reads the beginning of an object or an array.
func (p *cursor) first(open byte) {
	p.expect(open)
	p.begun = true
}

// more tells whether another field or element comes, and reads what is before it; if none does, it reads the end.
func (p *cursor) more(end byte) bool {
	another := p.begun || p.next(',')
	p.next('\n')
	if p.begun && p.is(end) {
		another = false
	}
	p.begun = false
	if !another {
		p.expect(end)
	}
	return another && !p.bad
}

func (p *cursor) key() string {
	s := p.text()
	p.expect(':')
	return s
}

// text reads a string.
func (p *cursor) text() string {
	p.expect('"')
	n := strings.IndexByte(p.s[p.at:], '"')
	if n < 0 {
		p.bad = true
		return ""
	}
	s := p.s[p.at : p.at+n]
	p.at += n + 1
	odd, ascii := false, true
	for i := range len(s) {
		odd = odd || s[i] < ' ' || s[i] == '\\'
		ascii = ascii && s[i] < utf8.RuneSelf
	}
	p.bad = p.bad || odd || !ascii && !utf8.ValidString(s)
	return s
}

// number reads digits as they are written: at most 18 of them, and no 0 before others.
func (p *cursor) number() (n int64) {
	from := p.at
	for p.at < len(p.s) && '0' <= p.s[p.at] && p.s[p.at] <= '9' {
		n = 10*n + int64(p.s[p.at]-'0')
		p.at++
	}
	if digits := p.at - from; digits == 0 || digits > 18 || digits > 1 && p.s[from] == '0' {
		p.bad = true
	}
	return n
}

func (p *cursor) time() (t time.Time) {
	p.bad = t.UnmarshalText([]byte(p.text())) != nil || p.bad
	return t
}
