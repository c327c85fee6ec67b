package importer

import (
	"context"
	"fmt"
	"io"

	"groupferry/internal/chat"
)

// withheld says of whom nothing is removed, for what they want is not known.
type withheld struct {
	users     map[string]bool // with rejected rows
	suspended string          // why nothing is removed of anybody; "": so it is not
}

// maxWithheld bounds the memory for the users: some 100 bytes each.
const maxWithheld = 100_000

// findWithheld goes through the rejected rows, if something is to be removed. Those over a limit are found later. What was
// warned of so far are records in which others may be.
func (p *pipeline) findWithheld(ctx context.Context, base *Base) (*withheld, error) {
	w := &withheld{users: map[string]bool{}}
	if base.Removals == KeepAll {
		return w, nil
	}
	if found := p.findings.warnings; len(found) > 0 { // accepted or not, there is one user in it, and there may be more
		w.suspended = fmt.Sprintf("%s:%d: a quote makes one record of lines that look like rows", p.files[found[0].file], found[0].Line)
		return w, nil
	}
	reader := rejectReader{log: logReader{log: &p.rejects}}
	for {
		err := reader.next()
		if err == io.EOF {
			return w, nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, err
		}
		user, ok := p.validator.user(reader.fields[colFrom])
		if !ok || reader.why.code == codeParse {
			w.suspended = fmt.Sprintf("%s:%d: rejected, and it does not say of which user it is", p.files[reader.at.file], reader.at.line)
			return w, nil
		}
		if w.users[user] = true; len(w.users) > maxWithheld {
			w.suspended = fmt.Sprintf("more than %d users have rejected rows", maxWithheld)
			return w, nil
		}
	}
}

// user is the user of a rejected row, by the field of it.
func (v *validator) user(from string) (string, bool) {
	if v.ids != nil {
		id, ok := v.ids.ids[from]
		if !ok {
			return "", false
		}
		from = id
	}
	return from, validateID(columnNames[colFrom], from, chat.MaxUserIDBytes) == nil
}
