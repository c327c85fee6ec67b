package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"groupferry/internal/app"
	"groupferry/internal/queue"
)

// How a command takes the ID of an import.
const (
	shortID  = false // or a prefix
	fullName = true  // a prefix is taken of an ID that nobody chose, for what is done cannot be undone
)

// findImport puts whole IDs in place of prefixes. Where none is meant it leaves them to the command, and notes which are like
// them.
func (p *program) findImport(ctx context.Context, n *app.Namespace, args []string, inFull bool) error {
	for i, text := range args {
		id, others, err := n.FindImport(ctx, text, inFull)
		var ambiguous *app.AmbiguousError
		switch {
		case errors.As(err, &ambiguous):
			candidates := make([]string, len(ambiguous.Imports))
			for k, c := range ambiguous.Imports {
				candidates[k] = fmt.Sprintf("%s (%s, %s ago)", c.ID, fileNames(c.Files), span(time.Since(c.Created)))
			}
			return hint(usagef("%s can be %s", text, orList(candidates)), "give more of its ID")
		case err != nil && !errors.Is(err, queue.ErrNoImport):
			return err
		}
		args[i] = id
		ids := make([]string, len(others))
		for k, c := range others {
			ids[k] = c.ID
		}
		p.meant = similar(text, ids)
	}
	return nil
}

// noImport adds to an error about an import that is not there which can be meant, and what lists them; where is how another
// command gets to the queue.
func (p *program) noImport(err error, where string) error {
	if !errors.Is(err, queue.ErrNoImport) {
		return err
	}
	question := didYouMean(p.meant)
	if question != "" {
		question += " "
	}
	return hint(err, "%s'groupferry status%s' lists the imports", question, where)
}

// maxSimilar is how many similar names are shown.
const maxSimilar = 3

// similar returns the names that can be meant by a text: those that begin with it, or else those from which it differs by the
// fewest characters, if these are so few that it is a slip.
func similar(text string, names []string) (found []string) {
	text = strings.ToLower(text)
	fewest := min(max(1, min(3, len(text)/3)), len(text)-1)
	for _, name := range names {
		d := distance(text, strings.ToLower(name))
		if len(text) > 1 && strings.HasPrefix(strings.ToLower(name), text) {
			d = 0
		}
		if d < fewest {
			fewest, found = d, nil
		}
		if d == fewest {
			found = append(found, name)
		}
	}
	return found[:min(len(found), maxSimilar)]
}

// distance is how many bytes have to be inserted, left out, replaced, or swapped with the next one to make b of a.
func distance(a, b string) int {
	var before, last []int // the two rows above
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before, last, row = last, row, make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			replaced := last[j]
			if a[i] != b[j] {
				replaced++
			}
			row[j+1] = min(replaced, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
	}
	return row[len(b)]
}

// didYouMean asks whether one of the names is meant; "" if there is none.
func didYouMean(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return "did you mean '" + strings.Join(names, "' or '") + "'?"
}
