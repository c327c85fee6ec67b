package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

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
			all := ambiguous.Imports
			var candidates []string
			for _, c := range all[:min(len(all), maxSimilar)] {
				candidates = append(candidates, fmt.Sprintf("%s (%s, %s ago)", c.ID, fileNames(c.Files), age(time.Since(c.Created))))
			}
			if more := len(all) - maxSimilar; more > 0 {
				candidates = append(candidates, "one of "+count(more)+" more")
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

// valuesAnnotation of a flag are the values that it takes, and checkedAnnotation says that it takes no other.
const (
	valuesAnnotation  = "groupferry_values"
	checkedAnnotation = "groupferry_checked"
)

// offer says which values of a flag a shell completes.
func offer(cmd *cobra.Command, flag string, values ...string) {
	cmd.Flags().SetAnnotation(flag, valuesAnnotation, values)
}

// choices says that a flag takes one of these values.
func choices(cmd *cobra.Command, flag string, values ...string) {
	offer(cmd, flag, values...)
	cmd.Flags().SetAnnotation(flag, checkedAnnotation, nil)
}

// checkChoices refuses a value that a flag does not take, wherever it came from.
func (p *program) checkChoices(cmd *cobra.Command) (err error) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		value, values := f.Value.String(), f.Annotations[valuesAnnotation]
		_, checked := f.Annotations[checkedAnnotation]
		if err == nil && checked && f.Changed && value != f.DefValue && !slices.Contains(values, value) {
			err = valueError(p.named(f.Name), value, values)
		}
	})
	return err
}

// valueError says which values there are, and which can be meant.
func valueError(name, value string, values []string) error {
	err := usagef("%s %q: %s", name, value, orList(values))
	if question := didYouMean(similar(value, values)); question != "" {
		return hint(err, "%s", question)
	}
	return err
}

// flagError says which flags are like one that is not there. A flag of a command that is not there is no error of its own.
func (p *program) flagError(cmd *cobra.Command, err error) error {
	if cmd == cmd.Root() && !strings.HasPrefix(p.args[0], "-") {
		return unknownCommand(cmd, p.args[0])
	}
	usage := &usageError{err}
	unknown, ok := errors.AsType[*pflag.NotExistError](err)
	if !ok || unknown.GetSpecifiedShortnames() != "" {
		return usage
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	meant := similar(unknown.GetSpecifiedName(), names)
	for i, name := range meant {
		meant[i] = "--" + name
	}
	if question := didYouMean(meant); question != "" {
		return hint(usage, "%s", question)
	}
	return usage
}

// unknownCommand says which commands are like one that is not there.
func unknownCommand(root *cobra.Command, name string) error {
	err := usagef("unknown command %q", name)
	var names []string
	for _, c := range root.Commands() {
		if !c.Hidden {
			names = append(append(names, c.Name()), c.Aliases...)
		}
	}
	meant := similar(name, names)
	for i, name := range meant {
		meant[i] = "groupferry " + name
	}
	if question := didYouMean(meant); question != "" {
		return hint(err, "%s", question)
	}
	return err
}
