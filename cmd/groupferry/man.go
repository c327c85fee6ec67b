package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func (p *program) manCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "man DIRECTORY",
		Short: "Write the man pages of all commands",
		Long: `man writes groupferry.1 and a page for each command, such as groupferry-run.1,
to a directory, which it makes if need be. They say what --help says, and the
variable of each flag. Packages put them into /usr/share/man/man1. To read one:
man -l DIRECTORY/groupferry-run.1`,
		Annotations: exits{}.annotations(),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("one DIRECTORY is required")
			}
			return nil
		},
		ValidArgsFunction: cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			root := cmd.Root()
			for _, c := range append(root.Commands(), root) {
				if c.Hidden || c.Name() == "help" {
					continue
				}
				if err := os.WriteFile(filepath.Join(args[0], pageName(c)+".1"), []byte(manPage(c)), 0o644); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// pageName is what a man page is called: groupferry-run.
func pageName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// manPage is the man page of a command: its help as roff. It has no date, so that the same program makes the same page.
func manPage(cmd *cobra.Command) string {
	var b strings.Builder
	root := cmd.Root()
	section := func(title string) { fmt.Fprintf(&b, ".SH %s\n", roff(strings.ToUpper(title))) }
	fmt.Fprintf(&b, ".TH %s 1 \"\" groupferry groupferry\n.nh\n.ad l\n", roff(strings.ToUpper(pageName(cmd)))) // no hyphens in words
	section("Name")
	fmt.Fprintf(&b, "%s \\- %s\n", roff(pageName(cmd)), roff(cmd.Short))
	section("Synopsis")
	fmt.Fprintf(&b, ".B %s\n", roff(cmd.UseLine()))
	section("Description")
	for i, paragraph := range strings.Split(cmd.Long, "\n\n") {
		switch {
		case strings.HasPrefix(paragraph, "  "): // lines that stay lines
			fmt.Fprintf(&b, ".PP\n.nf\n%s\n.fi\n", roff(paragraph))
			continue
		case i > 0:
			b.WriteString(".PP\n")
		}
		b.WriteString(roff(paragraph) + "\n")
	}
	if len(cmd.Groups()) > 0 {
		section("Commands")
	}
	for _, g := range cmd.Groups() {
		fmt.Fprintf(&b, ".SS %s\n", roff(g.Title))
		for _, c := range cmd.Commands() {
			if c.GroupID == g.ID && !c.Hidden {
				fmt.Fprintf(&b, ".TP\n.B %s\n%s\n", roff(c.Name()), roff(c.Short))
			}
		}
	}
	section("Options")
	for _, s := range sections(cmd) {
		if s.title != ownFlags {
			fmt.Fprintf(&b, ".SS %s\n", roff(s.title))
		}
		s.flags.VisitAll(func(f *pflag.Flag) { b.WriteString(manFlag(f)) })
	}
	if cmd.Example != "" {
		section("Examples")
		fmt.Fprintf(&b, ".nf\n%s\n.fi\n", roff(cmd.Example))
	}
	section("Exit status")
	for _, line := range strings.Split(exitsText(exitsOf(cmd)), "\n")[1:] {
		code, meaning, _ := strings.Cut(strings.TrimSpace(line), " ")
		fmt.Fprintf(&b, ".TP\n.B %s\n%s\n", code, roff(strings.TrimSpace(meaning)))
	}
	section("See also")
	also := []string{}
	for _, c := range append(root.Commands(), root) {
		if c != cmd && !c.Hidden && c.Name() != "help" && (cmd == root || c == root) {
			also = append(also, fmt.Sprintf(".BR %s (1)", roff(pageName(c))))
		}
	}
	b.WriteString(strings.Join(also, ",\n") + "\n")
	return b.String()
}

// manFlag is a flag in the list of options, with its variable.
func manFlag(f *pflag.Flag) string {
	value, usage := pflag.UnquoteUsage(f)
	name := "--" + f.Name
	if f.Shorthand != "" {
		name = "-" + f.Shorthand + ", " + name
	}
	text := ".TP\n\\fB" + roff(name) + "\\fR"
	if value != "" {
		text += " \\fI" + roff(value) + "\\fR"
	}
	text += "\n" + roff(usage)
	if !slices.Contains([]string{"", "false", "0", "0s", "[]"}, f.DefValue) {
		text += " (default " + roff(f.DefValue) + ")"
	}
	text += "\n"
	if env := envName(f); env != "-" && f.Name != "help" && f.Name != "version" {
		text += ".br\nEnvironment: " + roff(env) + "\n"
	}
	return text
}

// roff makes text of a text: no character of it is an instruction.
func roff(s string) string {
	s = strings.NewReplacer("\\", "\\e", "-", "\\-").Replace(s)
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = "\\&" + line
		}
	}
	return strings.Join(lines, "\n")
}
