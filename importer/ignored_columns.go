package importer

import (
	"fmt"
	"slices"
)

// ignoredColumns are the names in the inputs that are none of our columns. The zero value is empty.
type ignoredColumns []ignoredNames

// ignoredNames are those of one input.
type ignoredNames struct {
	file  int
	names []string // the first maxIgnored, each once
	more  bool
}

// maxIgnored is how many ignored names of one input are reported.
const maxIgnored = 20

// add adds a name. Inputs come one after the other.
func (c *ignoredColumns) add(file int, name string) {
	if len(*c) == 0 || (*c)[len(*c)-1].file != file {
		*c = append(*c, ignoredNames{file: file})
	}
	at := &(*c)[len(*c)-1]
	switch {
	case slices.Contains(at.names, name):
	case len(at.names) == maxIgnored:
		at.more = true
	default:
		at.names = append(at.names, name)
	}
}

// notices returns one text for all inputs with the same ignored names.
func (c ignoredColumns) notices(files []string) []string {
	var texts []string
	in := map[string][]string{} // the inputs by text
	for _, at := range c {
		names := at.names
		if !slices.ContainsFunc(resultColumns, func(name string) bool { return !slices.Contains(names, name) }) {
			names = slices.DeleteFunc(slices.Clone(names), func(name string) bool {
				return slices.Contains(resultColumns, name)
			})
		}
		if len(names) == 0 {
			continue
		}
		text := "columns ignored: "
		for i, name := range names {
			if i > 0 {
				text += ", "
			}
			text += fmt.Sprintf("%q", name)
		}
		if at.more {
			text += ", …"
		}
		if in[text] == nil {
			texts = append(texts, text)
		}
		in[text] = append(in[text], files[at.file])
	}
	for i, text := range texts {
		where := in[text][0]
		if n := len(in[text]) - 1; n > 0 {
			where += fmt.Sprintf(" and %d more", n)
		}
		texts[i] = where + ": " + text
	}
	return texts
}
