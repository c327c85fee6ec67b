package importer

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"groupferry/internal/chat"
	"groupferry/internal/job"
)

// A column is one of the fields that a row is made of.
type column int

const (
	colFrom column = iota
	colGroup
	colType
	colUser
	colChat
	numColumns

	colSkip   column = -1 // the reject file's own columns: known, and of no use here
	colOther  column = -2
	colGroups column = -3 // GroupContactItem, which makes a JSONL line a request body
	colItems  column = -4 // ContactItem
)

// columnNames are our names of the columns, in the order in which the reject file has them.
var columnNames = [numColumns]string{"from_account", "group_name", "type", "to_account", "to_group_id"}

// extraColumns are the columns that the reject file has beside those.
var extraColumns = []string{"code", "reason", "file", "line"}

// resultColumns are those that exported results have beside both. An input with all of them is such a file; each by
// itself can be someone's own column and is told as ignored.
var resultColumns = []string{"group_id", "attempts", "job", "outcome", "finished"}

// columns finds the column that a name in an input means.
type columns struct {
	byName  map[string]column // by canonical name
	names   [numColumns]string
	renamed map[column]string // canonical names that Config.Columns gave
	owned   bool              // there is a Config.Owner
}

// newColumns builds the table; the problem is "" or what is wrong with renames.
func newColumns(renames map[string]string) (c *columns, problem string) {
	c = &columns{byName: map[string]column{}, names: columnNames, renamed: map[column]string{}}
	ours := map[string]column{}
	for col, name := range columnNames {
		ours[canonical(name)] = column(col)
	}
	for name, theirs := range renames {
		col, ok := ours[canonical(name)]
		if !ok {
			return nil, fmt.Sprintf("%q is no column; the columns are %s", name, strings.Join(columnNames[:], ", "))
		}
		if canonical(theirs) == "" {
			return nil, fmt.Sprintf("%s has an empty name", columnNames[col])
		}
		if _, twice := c.renamed[col]; twice {
			return nil, fmt.Sprintf("%s is named twice", columnNames[col])
		}
		c.renamed[col] = canonical(theirs)
		c.names[col] = strings.TrimSpace(theirs)
	}
	for _, name := range extraColumns {
		c.byName[name] = colSkip
	}
	// A renamed column answers to its new name alone, and takes that name from any other meaning.
	for col, name := range columnNames {
		if _, ok := c.renamed[column(col)]; !ok {
			c.byName[canonical(name)] = column(col)
		}
	}
	taken := map[string]column{}
	for col, name := range c.names {
		key := canonical(name)
		if other, twice := taken[key]; twice {
			return nil, fmt.Sprintf("%s and %s are both %q", columnNames[other], columnNames[col], name)
		}
		taken[key] = column(col)
		c.byName[key] = column(col)
	}
	return c, ""
}

// find tells what a name in an input means.
func (c *columns) find(name string) column {
	if col, ok := c.byName[canonical(name)]; ok {
		return col
	}
	return colOther
}

// canonical makes our names and the API's one: from_account, From_Account and FromAccount.
func canonical(name string) string {
	return strings.NewReplacer("_", "", "-", "", " ", "").Replace(strings.ToLower(strings.TrimSpace(name)))
}

// A row is one input record before any check.
type row struct {
	file    int   // index of the input
	line    int64 // physical line where the record begins
	field   [numColumns]string
	untyped bool   // the input says nothing of a type: it goes by the id that is there
	unowned bool   // the input says nothing of a user
	wrong   string // why a value is no text at all; JSONL only
}

// codeParse is the code of a record that cannot be read. All other codes of rejects are the API's own.
const codeParse = "parse"

var (
	codeBadParameter         = strconv.Itoa(chat.CodeBadParameter)
	codeTooManyConversations = strconv.Itoa(chat.CodeTooManyConversations)
	codeTooManyGroups        = strconv.Itoa(chat.CodeTooManyGroups)
	codeGroupNameTooLong     = strconv.Itoa(chat.CodeGroupNameTooLong)
)

// A fault says why a row cannot be used. Its reason names columns and sizes, never a value: reasons end up in logs,
// and the values are personal.
type fault struct{ code, reason string }

// check gives the conversation that the row asks for, or what is wrong with it.
func (r *row) check() (kind int, id string, f *fault) {
	if r.wrong != "" {
		return 0, "", &fault{codeBadParameter, r.wrong}
	}
	if f := checkID(columnNames[colFrom], r.field[colFrom], chat.MaxUserIDBytes); f != nil {
		return 0, "", f
	}
	if f := checkGroupName(r.field[colGroup]); f != nil {
		return 0, "", f
	}
	kind, f = r.kind()
	if f != nil {
		return 0, "", f
	}
	col, limit, other := colUser, chat.MaxUserIDBytes, colChat
	if kind == job.GroupChat {
		col, limit, other = colChat, chat.MaxGroupIDBytes, colUser
	}
	if f := checkID(columnNames[col], r.field[col], limit); f != nil {
		return 0, "", f
	}
	if r.field[other] != "" {
		return 0, "", &fault{codeBadParameter, fmt.Sprintf("type %d has its id in %s, and %s is filled too",
			kind, columnNames[col], columnNames[other])}
	}
	return kind, r.field[col], nil
}

// kind tells the type of the conversation. Only the texts "1" and "2" are types; where an input has no type at all,
// the one id that is there decides.
func (r *row) kind() (int, *fault) {
	switch t := r.field[colType]; {
	case t == "1":
		return job.OneToOne, nil
	case t == "2":
		return job.GroupChat, nil
	case t != "":
		return 0, &fault{codeBadParameter, "type is neither 1 nor 2"}
	case !r.untyped:
		return 0, &fault{codeBadParameter, "type is empty"}
	}
	user, chat := r.field[colUser] != "", r.field[colChat] != ""
	switch {
	case user && chat:
		return 0, &fault{codeBadParameter,
			"to_account and to_group_id are both filled and no type says which one counts"}
	case user:
		return job.OneToOne, nil
	case chat:
		return job.GroupChat, nil
	}
	return 0, &fault{codeBadParameter, "to_account and to_group_id are both empty"}
}

// checkID holds an id against what the API takes: 1 to limit bytes of printable ASCII.
func checkID(name, id string, limit int) *fault {
	bad := func(format string, args ...any) *fault {
		return &fault{codeBadParameter, name + " " + fmt.Sprintf(format, args...)}
	}
	switch {
	case id == "":
		return bad("is empty")
	case len(id) > limit:
		return bad("has %d bytes, %d at most", len(id), limit)
	}
	if !plain(id) {
		return bad("holds a character that is not printable ASCII")
	}
	if id[0] == ' ' || id[len(id)-1] == ' ' {
		return bad("begins or ends with a space")
	}
	return nil
}

func checkGroupName(name string) *fault {
	if n := len(name); 0 < n && n <= chat.MaxGroupNameBytes && plain(name) && name[0] != ' ' {
		return nil
	}
	switch {
	case strings.TrimSpace(name) == "":
		return &fault{codeBadParameter, "group_name is empty"}
	case !utf8.ValidString(name):
		return &fault{codeBadParameter, "group_name is not valid UTF-8"}
	case strings.ContainsFunc(name, unicode.IsControl):
		return &fault{codeBadParameter, "group_name holds a control character"}
	case len(name) > chat.MaxGroupNameBytes:
		return &fault{codeGroupNameTooLong,
			fmt.Sprintf("group_name has %d bytes, %d at most", len(name), chat.MaxGroupNameBytes)}
	}
	return nil
}

// plain tells whether s is printable ASCII, as ids are and most names.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// A sink takes what a reader finds in one input. The row is the reader's and changes after the call.
type sink interface {
	row(r *row)                         // a record that could be read
	reject(r *row, code, reason string) // a record that could not; r holds the fields that were still to be told apart
	warn(file int, line int64, text string)
	ignore(file int, column string) // a column or key that is none of ours; may be told more than once
}
