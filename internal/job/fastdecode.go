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
		case "files":
			w.Files = make([]string, 0, 1)
			for p.first('['); p.more(']'); {
				w.Files = append(w.Files, p.text())
			}
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
	return w, !p.bad && p.s == "" && w.Version == Version
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
	bad   bool
	begun bool // an object or an array, of which nothing was read
}

func (p *cursor) next(c byte) bool {
	if p.s == "" || p.s[0] != c {
		return false
	}
	p.s = p.s[1:]
	return true
}

func (p *cursor) expect(c byte) { p.bad = !p.next(c) || p.bad }

// first reads the beginning of an object or an array.
func (p *cursor) first(open byte) {
	p.expect(open)
	p.begun = true
}

// more tells whether another field or element comes. It reads what is before it, or else the end.
func (p *cursor) more(end byte) bool {
	first := p.begun
	p.begun = false
	if !first && p.next(',') {
		p.next('\n')
		return !p.bad
	}
	p.next('\n')
	if first && !p.bad && p.s != "" && p.s[0] != end {
		return true
	}
	p.expect(end)
	return false
}

func (p *cursor) key() string {
	s := p.text()
	p.expect(':')
	return s
}

// text reads a string.
func (p *cursor) text() string {
	p.expect('"')
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

func (p *cursor) time() (t time.Time) {
	p.bad = t.UnmarshalText([]byte(p.text())) != nil || p.bad
	return t
}
