package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// helpWidth is how many columns a help text has.
const helpWidth = 80

// The groups of flags in a help text, in their order, after those of the command itself.
const (
	syncGroup   = "Sync"
	inputGroup  = "Input"
	apiGroup    = "API"
	queueGroup  = "Queue"
	outputGroup = "Output"
)

// ownFlags is the title of the flags of the command itself.
const ownFlags = "Flags"

var flagGroups = []string{ownFlags, syncGroup, inputGroup, apiGroup, queueGroup, outputGroup}

// groupAnnotation of a flag is its group.
const groupAnnotation = "groupferry_group"

// inGroup puts the flags that a command gets until the function is called that it returns into a group.
func inGroup(cmd *cobra.Command, group string) (end func()) {
	before := map[string]bool{}
	cmd.Flags().VisitAll(func(f *pflag.Flag) { before[f.Name] = true })
	return func() {
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !before[f.Name] && f.Annotations[groupAnnotation] == nil {
				cmd.Flags().SetAnnotation(f.Name, groupAnnotation, []string{group})
			}
		})
	}
}

// A section of a help text has the flags of a group.
type section struct {
	title string
	flags *pflag.FlagSet
}

// sections are the flags of a command by group, each in the order in which they were added.
func sections(cmd *cobra.Command) []section {
	cmd.InitDefaultHelpFlag()
	cmd.InitDefaultVersionFlag()
	cmd.Flags().SortFlags = false
	var all []section
	for _, title := range flagGroups {
		set := pflag.NewFlagSet(title, pflag.ContinueOnError)
		set.SortFlags = false
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Hidden || cmp.Or(strings.Join(f.Annotations[groupAnnotation], ""), ownFlags) != title {
				return
			}
			if f.Value.Type() == "stringToString" && f.DefValue == "[]" {
				f.DefValue = "" // else the help would show it
			}
			set.AddFlag(f)
		})
		if set.HasFlags() {
			all = append(all, section{title, set})
		}
	}
	return all
}

// help is the help text of a command.
func help(cmd *cobra.Command) string {
	var b strings.Builder
	b.WriteString(cmp.Or(cmd.Long, cmd.Short) + "\n\nUsage:\n  " + cmd.UseLine() + "\n")
	if len(cmd.Aliases) > 0 {
		fmt.Fprintf(&b, "\nAliases:\n  %s\n", strings.Join(cmd.Aliases, ", "))
	}
	if cmd.Example != "" {
		fmt.Fprintf(&b, "\nExamples:\n%s\n", cmd.Example)
	}
	for _, g := range cmd.Groups() {
		fmt.Fprintf(&b, "\n%s:\n", g.Title)
		for _, c := range cmd.Commands() {
			if c.GroupID == g.ID && !c.Hidden {
				fmt.Fprintf(&b, "  %-11s %s\n", c.Name(), c.Short)
			}
		}
	}
	for _, s := range sections(cmd) {
		fmt.Fprintf(&b, "\n%s:\n%s", s.title, s.flags.FlagUsagesWrapped(helpWidth))
	}
	if codes := exitsOf(cmd); len(codes) > 0 {
		b.WriteString("\n" + exitsText(codes) + "\n")
	}
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(&b, "\n'%s COMMAND --help' says more about a command.\n", cmd.CommandPath())
	}
	return b.String()
}

// exits are the exit codes that a command can end with beside those of everyCommand, and what they mean there; "" is what
// they mean in general.
type exits map[int]string

// everyCommand are the codes that every command can end with.
var everyCommand = exits{exitDone: "", exitFailed: "", exitUsage: ""}

// exitMeaning is what the codes mean in general.
var exitMeaning = exits{
	exitDone:        "all done",
	exitFailed:      "could not continue",
	exitUsage:       "usage or configuration",
	exitIncomplete:  "finished, but rows were rejected, jobs failed, or not all was there",
	exitHalted:      "halted: every job would fail the same way",
	exitGuarded:     "no row accepted, too many rejects, or a guard of a sync: nothing enqueued",
	exitUnreachable: "NATS or the API out of reach, or another process has the sync, or reads",
	exitInterrupted: "interrupted",
}

// exitAnnotation and a code are the annotation of a command that can end with it.
const exitAnnotation = "exit "

// annotations has the codes as those of a command.
func (e exits) annotations() map[string]string {
	a := map[string]string{}
	for _, list := range []exits{everyCommand, e} {
		for code, meaning := range list {
			a[exitAnnotation+strconv.Itoa(code)] = cmp.Or(meaning, exitMeaning[code])
		}
	}
	return a
}

// exitsOf are the exit codes that a command can end with.
func exitsOf(cmd *cobra.Command) exits {
	e := exits{}
	for key, meaning := range cmd.Annotations {
		if code, err := strconv.Atoi(strings.TrimPrefix(key, exitAnnotation)); err == nil {
			e[code] = meaning
		}
	}
	return e
}

func exitsText(e exits) string {
	var b strings.Builder
	b.WriteString("Exit codes:")
	for _, code := range slices.Sorted(maps.Keys(e)) {
		fmt.Fprintf(&b, "\n  %-4d %s", code, e[code])
	}
	return b.String()
}

// orList lists values as a sentence does: a, b or c.
func orList(values []string) string {
	last := len(values) - 1
	if last < 1 {
		return strings.Join(values, "")
	}
	return strings.Join(values[:last], ", ") + " or " + values[last]
}
