package importer

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"groupferry/internal/chat"
	"groupferry/internal/job"
)

// Invalid says why a row cannot be used. Its reason names columns and sizes, never a value: reasons end up in logs,
// and the values are personal.
type invalid struct{ code, reason string }

// A validator checks rows against the rules of the API.
type validator struct {
	owner     string     // of rows that have none; "" for none
	translate func(*row) // what the ids of another system mean; may be nil
	ids       *idMap     // nil if ids stay as they are
	usersOnly bool       // see Config
}

// complete fills in what a row lacks: its owner, and what the ids of another system mean.
func (v *validator) complete(r *row) {
	if r.noOwner && v.owner != "" {
		r.field[colFrom] = v.owner
	} else if r.noOwner && r.invalidReason == "" {
		r.invalidReason = "from_account is missing (see --owner)"
	}
	if v.translate != nil && r.invalidReason == "" {
		v.translate(r)
	}
}

// validate returns the conversation that a complete row asks for, or why it is invalid. It replaces the ids of a valid
// row by those of the map.
func (v *validator) validate(r *row) (kind int, id string, why *invalid) {
	if v.usersOnly {
		return job.OneToOne, "", v.validateUser(r)
	}
	if v.ids == nil || r.invalidReason != "" {
		return validateRow(r)
	}
	was := r.field
	if why = v.ids.rename(r); why == nil {
		kind, id, why = validateRow(r)
	}
	if why != nil {
		r.field = was
	}
	return kind, id, why
}

// validateUser leaves nothing but the user of a complete row, or says why that is invalid.
func (v *validator) validateUser(r *row) *invalid {
	was := r.field
	r.field = [numColumns]string{colFrom: was[colFrom]}
	why := validateID(columnNames[colFrom], r.field[colFrom], chat.MaxUserIDBytes)
	switch {
	case r.noOwner && v.owner == "" && r.invalidReason != "":
		why = &invalid{codeBadParameter, r.invalidReason}
	case v.ids != nil:
		if why = v.ids.rename(r); why == nil {
			why = validateID(columnNames[colFrom], r.field[colFrom], chat.MaxUserIDBytes)
		}
	}
	if why != nil {
		r.field = was
	}
	return why
}

// validateRow returns the conversation that a row asks for, or why it is invalid.
func validateRow(r *row) (kind int, id string, why *invalid) {
	if r.invalidReason != "" {
		return 0, "", &invalid{codeBadParameter, r.invalidReason}
	}
	if why := validateID(columnNames[colFrom], r.field[colFrom], chat.MaxUserIDBytes); why != nil {
		return 0, "", why
	}
	if why := validateGroupName(r.field[colGroup]); why != nil {
		return 0, "", why
	}
	if kind, why = conversationType(r); why != nil {
		return 0, "", why
	}
	col, limit, other := colUser, chat.MaxUserIDBytes, colChat
	if kind == job.GroupChat {
		col, limit, other = colChat, chat.MaxGroupIDBytes, colUser
	}
	if why := validateID(columnNames[col], r.field[col], limit); why != nil {
		return 0, "", why
	}
	if r.field[other] != "" {
		return 0, "", &invalid{codeBadParameter, fmt.Sprintf("type %d has its id in %s, and %s is filled too",
			kind, columnNames[col], columnNames[other])}
	}
	return kind, r.field[col], nil
}

// conversationType returns the type of the conversation of a row. Only the texts "1" and "2" are types; if the input has no type at all, the
// id that is there decides.
func conversationType(r *row) (int, *invalid) {
	switch t := r.field[colType]; {
	case t == "1":
		return job.OneToOne, nil
	case t == "2":
		return job.GroupChat, nil
	case t != "":
		return 0, &invalid{codeBadParameter, "type is neither 1 nor 2"}
	case !r.noType:
		return 0, &invalid{codeBadParameter, "type is empty"}
	}
	user, chat := r.field[colUser] != "", r.field[colChat] != ""
	switch {
	case user && chat:
		return 0, &invalid{codeBadParameter,
			"to_account and to_group_id are both filled and no type says which one counts"}
	case user:
		return job.OneToOne, nil
	case chat:
		return job.GroupChat, nil
	}
	return 0, &invalid{codeBadParameter, "to_account and to_group_id are both empty"}
}

// validateID checks an id against the rules of the API: 1 to limit bytes of printable ASCII.
func validateID(name, id string, limit int) *invalid {
	bad := func(format string, args ...any) *invalid {
		return &invalid{codeBadParameter, name + " " + fmt.Sprintf(format, args...)}
	}
	switch {
	case id == "":
		return bad("is empty")
	case len(id) > limit:
		return bad("has %d bytes, %d at most", len(id), limit)
	}
	if !isPrintableASCII(id) {
		return bad("holds a character that is not printable ASCII")
	}
	if id[0] == ' ' || id[len(id)-1] == ' ' {
		return bad("begins or ends with a space")
	}
	return nil
}

func validateGroupName(name string) *invalid {
	if n := len(name); 0 < n && n <= chat.MaxGroupNameBytes && isPrintableASCII(name) && name[0] != ' ' {
		return nil
	}
	switch {
	case strings.TrimSpace(name) == "":
		return &invalid{codeBadParameter, "group_name is empty"}
	case !utf8.ValidString(name):
		return &invalid{codeBadParameter, "group_name is not valid UTF-8"}
	case strings.ContainsFunc(name, unicode.IsControl):
		return &invalid{codeBadParameter, "group_name holds a control character"}
	case len(name) > chat.MaxGroupNameBytes:
		return &invalid{codeGroupNameTooLong,
			fmt.Sprintf("group_name has %d bytes, %d at most", len(name), chat.MaxGroupNameBytes)}
	}
	return nil
}

// isPrintableASCII reports whether s is printable ASCII, as ids are and most names.
func isPrintableASCII(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
