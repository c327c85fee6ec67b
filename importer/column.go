package importer

import (
	"fmt"
	"strings"
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

	colSkip   column = -1 // a column that the reject file adds: known and ignored
	colOther  column = -2
	colGroups column = -3 // GroupContactItem, which makes a JSONL line a request body
	colItems  column = -4 // ContactItem
)

// columnNames are our names of the columns, in the order in which the reject file has them.
var columnNames = [numColumns]string{"from_account", "group_name", "type", "to_account", "to_group_id"}

// extraColumns are the columns that the reject file has beside those.
var extraColumns = []string{"code", "reason", "file", "line"}

// resultColumns are those that exported results have beside both. An input with all of them is such a file; a single one
// can be somebody's own column and is reported as ignored.
var resultColumns = []string{"group_id", "attempts", "job", "outcome", "finished", "op"}

// columns finds the column that a name in an input means.
type columns struct {
	byName   map[string]column // by canonical name
	names    [numColumns]string
	renamed  map[column]string // canonical names that Config.Columns gave
	hasOwner bool              // there is a Config.Owner
}

// newColumns builds the table. problem is "" if renames are valid.
func newColumns(renames map[string]string) (c *columns, problem string) {
	c = &columns{byName: map[string]column{}, names: columnNames, renamed: map[column]string{}}
	ours := map[string]column{}
	for col, name := range columnNames {
		ours[canonicalName(name)] = column(col)
	}
	for name, theirs := range renames {
		col, ok := ours[canonicalName(name)]
		if !ok {
			return nil, fmt.Sprintf("%q is no column; the columns are %s", name, strings.Join(columnNames[:], ", "))
		}
		if canonicalName(theirs) == "" {
			return nil, fmt.Sprintf("%s has an empty name", columnNames[col])
		}
		if _, twice := c.renamed[col]; twice {
			return nil, fmt.Sprintf("%s is named twice", columnNames[col])
		}
		c.renamed[col] = canonicalName(theirs)
		c.names[col] = strings.TrimSpace(theirs)
	}
	for _, name := range extraColumns {
		c.byName[name] = colSkip
	}
	// A renamed column has its new name alone, which then has no other meaning.
	for col, name := range columnNames {
		if _, ok := c.renamed[column(col)]; !ok {
			c.byName[canonicalName(name)] = column(col)
		}
	}
	taken := map[string]column{}
	for col, name := range c.names {
		key := canonicalName(name)
		if other, twice := taken[key]; twice {
			return nil, fmt.Sprintf("%s and %s are both %q", columnNames[other], columnNames[col], name)
		}
		taken[key] = column(col)
		c.byName[key] = column(col)
	}
	return c, ""
}

// find returns the column for a name in an input.
func (c *columns) find(name string) column {
	if col, ok := c.byName[canonicalName(name)]; ok {
		return col
	}
	return colOther
}

// canonicalName maps our names and those of the API to one form: from_account, From_Account, FromAccount.
func canonicalName(name string) string {
	return joiners.Replace(strings.ToLower(strings.TrimSpace(name)))
}

var joiners = strings.NewReplacer("_", "", "-", "", " ", "")
