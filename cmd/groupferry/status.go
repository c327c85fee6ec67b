package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"groupferry/internal/app"
)

// watchEvery is how often status --watch looks.
const watchEvery = time.Second

func (p *program) statusCommand() *cobra.Command {
	var qf queueFlags
	var out outputFlag
	var watch bool
	cmd := &cobra.Command{
		Use:   "status [IMPORT]",
		Short: "Show how far the imports are",
		Long: `status shows the imports, newest first: rows, jobs, conversations, the rate over
the last minute and the time left, and whether everything is halted and why; and
when the last night of each sync was complete. It can look at an embedded server
while another groupferry works with it.`,
		Annotations: onQueue,
		Args:        p.imports(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := out.check(p); err != nil {
				return err
			}
			opened, err := p.open(cmd.Context(), qf, true)
			if err != nil {
				return err
			}
			defer opened.Close()
			if err := p.findImport(cmd.Context(), opened, args, shortID); err != nil {
				return err
			}
			for {
				s, err := opened.Status(cmd.Context(), args...)
				if err != nil {
					return p.noImport(err, qf.args(p))
				}
				if watch && onTerminal(p.stdout) && out.format == "text" {
					io.WriteString(p.stdout, "\x1b[H\x1b[2J") // home, clear
				}
				err = out.write(p.stdout, s, func() string { return statusText(&s) })
				if err != nil || !watch || s.Over() {
					return errors.Join(err, s.Damaged)
				}
				select {
				case <-time.After(watchEvery):
				case <-cmd.Context().Done():
					return nil
				}
			}
		},
	}
	qf.add(cmd)
	out.add(cmd, "text", "json")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "look again every second until all is done")
	p.consoleFlags(cmd)
	return cmd
}

// importText says how far an import is. Results is the command that shows its results; "" for none.
func importText(s *app.ImportStatus, results string) string {
	var b strings.Builder
	state := s.State
	if s.Paused {
		state += ", paused"
	}
	if s.Simulated {
		state += ", simulated"
	}
	fmt.Fprintf(&b, "import %s (%s): %s\n", s.Import, fileNames(s.Files), state)
	rejects := ""
	if s.RejectsFile != "" {
		rejects = ", kept in " + s.RejectsFile
	}
	fmt.Fprintf(&b, "  rows           %-9s accepted %s · duplicates %s · rejected %s%s\n",
		count(s.Rows), count(s.Accepted), count(s.Duplicates), count(s.Rejected), rejects)
	fmt.Fprintf(&b, "  jobs           %-9s %s\n", count(s.Jobs.Total), outcomesText(&s.Jobs))
	fmt.Fprintf(&b, "  conversations  %-9s done %s · failed %s · pending %s%s\n",
		count(s.Conversations.Total), count(s.Conversations.Done), count(s.Conversations.Failed), count(s.Conversations.Pending),
		droppedText(s.Conversations.Dropped))
	if n := &s.Removals; n.Total+n.Done+n.Failed+s.Withheld > 0 {
		withheld := ""
		if s.Withheld > 0 {
			withheld = " · withheld " + count(s.Withheld)
		}
		fmt.Fprintf(&b, "  removals       %-9s done %s · failed %s · pending %s%s%s\n",
			count(n.Total), count(n.Done), count(n.Failed), count(n.Pending), droppedText(n.Dropped), withheld)
	}
	if n := &s.Restored; n.Total > 0 {
		fmt.Fprintf(&b, "  restored       %-9s done %s · failed %s: their groups were gone\n", count(n.Total), count(n.Done), count(n.Failed))
	}
	if s.Deleted+s.Renamed > 0 {
		fmt.Fprintf(&b, "  groups         %s\n", groupsText("", s.Deleted, s.Renamed))
	}
	if r := s.Retry; r != nil {
		fmt.Fprintf(&b, "  retry %-8d %-9s pending %s", r.Generation, count(r.Jobs), count(r.Pending))
		if len(r.Codes) > 0 {
			fmt.Fprintf(&b, " · codes %s", strings.Join(r.Codes, ", "))
		}
		b.WriteByte('\n')
	}
	if s.Rate > 0 && s.SecondsLeft != nil {
		fmt.Fprintf(&b, "  rate           %.1f jobs a second over the last minute, %s left\n",
			s.Rate, span(time.Duration(*s.SecondsLeft*float64(time.Second))))
	}
	if s.Damaged != "" {
		fmt.Fprintf(&b, "  damaged        %s\n", s.Damaged)
	}
	if results != "" {
		if s.Jobs.Partial+s.Jobs.Failed > 0 {
			results += " --failed"
		}
		fmt.Fprintf(&b, "  results        %s\n", results)
	}
	return b.String()
}

// groupsText says how many groups were deleted and renamed, after a separator; "" if none was.
func groupsText(separator string, deleted, renamed int64) string {
	var parts []string
	if deleted > 0 {
		parts = append(parts, "deleted "+count(deleted))
	}
	if renamed > 0 {
		parts = append(parts, "renamed "+count(renamed))
	}
	if len(parts) == 0 {
		return ""
	}
	return separator + strings.Join(parts, " · ")
}

// nightLine says which night an import is; "" if it is none.
func nightLine(s *app.ImportStatus) string {
	if s.Sync == "" {
		return ""
	}
	line := fmt.Sprintf("  sync           %s, night %d · %s unchanged", s.Sync, s.Night, rows(s.Unchanged))
	if s.Superseded {
		line += fmt.Sprintf(" · superseded by night %d", s.NextNight)
	}
	return line + "\n"
}

// syncText says when the last night of a sync was complete.
func syncText(s *app.SyncStatus) string {
	at := func(t time.Time) string { return t.Local().Format(time.DateTime) }
	line := fmt.Sprintf("sync %s (%s): ", s.Sync, s.Target)
	last := 0
	if n := s.Last; n == nil {
		line += "no night is complete yet"
	} else {
		last = n.Number
		line += fmt.Sprintf("night %d complete at %s", last, at(n.Completed))
	}
	if s.Confirmed != nil && s.Night == last && s.Confirmed.After(s.Last.Completed) {
		line += ", nothing to do at " + at(*s.Confirmed)
	}
	if s.Unchanged > 0 {
		line += ", the input is the same for " + things(int64(s.Unchanged), "night")
	}
	if s.Night > last && s.Begun != nil {
		line += fmt.Sprintf("; night %d begun at %s", s.Night, at(*s.Begun))
	}
	return line + "\n"
}

// outcomesText says what became of jobs.
func outcomesText(n *app.JobCounts) string {
	return fmt.Sprintf("done %s · partial %s · failed %s · pending %s%s",
		count(n.Done), count(n.Partial), count(n.Failed), count(n.Pending), droppedText(n.Dropped))
}

func droppedText(n int64) string {
	if n == 0 {
		return ""
	}
	return " · dropped " + count(n)
}

// statusText says how far all imports are, and whether and why no call is made.
func statusText(s *app.Status) string {
	var b strings.Builder
	if h := s.Halt; h != nil {
		fmt.Fprintf(&b, "%s by %s since %s: %s\n", h.State, h.By, h.Since.Local().Format(time.DateTime), h.Reason)
		if h.Remedy != "" {
			fmt.Fprintf(&b, "  remedy: %s\n", h.Remedy)
		}
		if h.Command != "" {
			fmt.Fprintf(&b, "  then: %s\n", h.Command)
		}
	}
	for i := range s.Syncs {
		b.WriteString(syncText(&s.Syncs[i]))
	}
	if len(s.Imports) == 0 {
		b.WriteString("no imports\n")
	}
	for i := range s.Imports {
		b.WriteString(importText(&s.Imports[i], ""))
		b.WriteString(nightLine(&s.Imports[i]))
	}
	return b.String()
}
