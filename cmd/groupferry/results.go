package main

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"groupferry/internal/app"
	"groupferry/internal/broker"
	"groupferry/internal/queue"
)

func (p *program) resultsCommand() *cobra.Command {
	var qf queueFlags
	var out outputFlag
	var failed, removed, summary bool
	cmd := &cobra.Command{
		Use:   "results IMPORT",
		Short: "Export what came of every conversation",
		Long: `results writes one line for each conversation that has a result: where it came
from, what the API said about it, and the group it is in. An empty code means
that the conversation is in its group. The CSV begins with the columns of an
input, so what --failed writes can be fixed and imported as it is. Of an import
that was cancelled it also writes what was dropped, with the code dropped. The
column op tells what was to be added from what was to be removed; removals are
not among the --failed.

--removed writes what a night of a mirror took out of groups, also of those that
it deleted, as an input in the five columns: imported, it is there again.

--summary groups the failures by code instead, each with its count and an
example.`,
		Annotations: onQueue,
		Example: `  groupferry results 3f9a1c0be2d47a55 --failed > failed.csv
  groupferry results 3f9a1c0be2d47a55 --removed > removed.csv
  groupferry results 3f9a1c0be2d47a55 --summary`,
		Args: p.imports(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := oneOf(p.nameIf(failed, "failed"), p.nameIf(removed, "removed"), p.nameIf(summary, "summary")); err != nil {
				return err
			}
			wanted := app.AllLines
			switch {
			case failed:
				wanted = app.FailedLines
			case removed:
				wanted = app.RemovedLines
			}
			if summary {
				out.formats = []string{"text", "json"}
				if !cmd.Flags().Changed("output") {
					out.format = "text"
				}
			}
			if err := out.check(p); err != nil {
				return err
			}
			s, err := p.open(cmd.Context(), qf, true)
			if err != nil {
				return err
			}
			defer s.Close()
			if err := p.findImport(cmd.Context(), s, args, shortID); err != nil {
				return err
			}
			i, damaged := s.ImportStatus(cmd.Context(), args[0])
			if damaged != nil && !errors.As(damaged, new(*broker.DamagedError)) {
				return p.noImport(damaged, qf.args(p))
			}
			if i.Superseded && i.Jobs.Dropped > 0 {
				p.console.event("a later night has taken over", "import", i.Import, "sync", i.Sync, "night", i.Night, "next_night", i.NextNight).
					print("night %d of sync %s was superseded: what it dropped was left to night %d", i.Night, i.Sync, i.NextNight)
			}
			if !summary {
				err = app.WriteResults(p.data(), out.format, removed, s.ResultLines(cmd.Context(), args[0], wanted))
				if errors.Is(err, queue.ErrUnfinished) {
					return hint(err, "'groupferry cancel %s%s' finishes it", args[0], qf.args(p))
				}
				return cmp.Or(err, damaged) // what can be read is written all the same
			}
			f, err := s.Failures(cmd.Context(), args[0])
			if err == nil {
				err = out.write(p.stdout, f, func() string { return failuresText(&f) })
			}
			return cmp.Or(err, damaged)
		},
	}
	qf.add(cmd)
	out.add(cmd, app.CSV, app.JSONL)
	cmd.Flags().BoolVar(&failed, "failed", false, "only conversations that are not in their group")
	cmd.Flags().BoolVar(&removed, "removed", false, "only conversations that were taken out, as an input that puts them in again")
	cmd.Flags().BoolVar(&summary, "summary", false, "failures by code, as text or --output json")
	p.consoleFlags(cmd)
	return cmd
}

// failuresText says what failed, by code.
func failuresText(s *app.Failures) string {
	var b strings.Builder
	fmt.Fprintf(&b, "import %s: %s conversations done, %s failed", s.Import, count(s.Done), count(s.Failed))
	if s.Dropped > 0 {
		fmt.Fprintf(&b, ", %s dropped", count(s.Dropped))
	}
	if s.Removed+s.RemovalsFailed > 0 {
		fmt.Fprintf(&b, "; %s removed, %s not", count(s.Removed), count(s.RemovalsFailed))
	}
	b.WriteString(groupsText("; groups ", s.Deleted, s.Renamed))
	b.WriteByte('\n')
	for _, c := range s.Codes {
		e := c.Example
		fmt.Fprintf(&b, "  %-14s %-9s %s\n", c.Code, count(c.Count), c.Reason)
		switch {
		case e.Op == app.OpRemove:
			fmt.Fprintf(&b, "  %24s such as the removal of %s from %q of %s\n", "", cmp.Or(e.ToAccount, e.ToGroupID), e.GroupName, e.FromAccount)
		case e.Type != 0:
			fmt.Fprintf(&b, "  %24s such as %s in %q of %s, %s:%d\n",
				"", cmp.Or(e.ToAccount, e.ToGroupID), e.GroupName, e.FromAccount, inLine(e.File), e.Line)
		}
	}
	return b.String()
}
