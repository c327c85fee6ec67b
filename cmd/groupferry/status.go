package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"groupferry/internal/app"
	"groupferry/internal/queue"
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
		Long: `status shows the imports in a table, newest first: how long ago they were begun,
the share of their jobs that is done, jobs that failed or are partial, rejected
rows, and the time left. Above it stands whether everything is halted and why,
and when the last night of each sync was complete. With IMPORT it shows more of
that one: rows, jobs, conversations and the rate over the last minute. It can
look at an embedded server while another groupferry works with it.`,
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
			for first := true; ; first = false {
				s, err := opened.Status(cmd.Context(), args...)
				if err != nil {
					return p.noImport(err, qf.args(p))
				}
				if l := lookOf(p.stdout); watch && l.width > 0 && out.format == "text" {
					err = drawFrame(p.stdout, l, first, statusText(&s, len(args) == 0, l.width-1, time.Now()))
				} else {
					err = out.write(p.stdout, s, func() string { return statusText(&s, len(args) == 0, l.width-1, time.Now()) })
				}
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
	if left := secondsLeft(s); left > 0 {
		rate := "not measured yet"
		if s.Rate > 0 {
			rate = fmt.Sprintf("%.1f jobs a second over the last minute", s.Rate)
		}
		fmt.Fprintf(&b, "  rate           %s, %s left\n", rate, span(left))
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

// secondsLeft is how long an import still takes; 0 while nobody knows, and when it is over.
func secondsLeft(s *app.ImportStatus) time.Duration {
	if s.SecondsLeft == nil {
		return 0
	}
	return time.Duration(*s.SecondsLeft * float64(time.Second))
}

// statusText says how far imports are, each in a line of at most width columns or as a block, and whether and why no call is
// made. A width of less than 1 is none.
func statusText(s *app.Status, table bool, width int, now time.Time) string {
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
	if table && len(s.Imports) > 0 {
		b.WriteString(importTable(s, width, now))
		return b.String()
	}
	for i := range s.Imports {
		b.WriteString(importText(&s.Imports[i], ""))
		b.WriteString(nightLine(&s.Imports[i]))
	}
	return b.String()
}

// Columns of the table of imports.
const (
	columnImport = iota
	columnState
	columnAge
	columnDone
	columnFailed
	columnRejected
	columnLeft
	columnFiles
)

var columnNames = []string{"IMPORT", "STATE", "AGE", "DONE", "FAILED", "REJECTED", "LEFT", "FILES"}

// leastFiles is how wide the last column is at least; in a narrower window it is left out.
const leastFiles = 8

// importTable has a line for each import, of at most width columns.
func importTable(s *app.Status, width int, now time.Time) string {
	table := [][]string{columnNames}
	for i := range s.Imports {
		table = append(table, importRow(&s.Imports[i], s.Halt, now))
	}
	const gap = "  "
	widths := make([]int, len(columnNames))
	for _, row := range table {
		for i, cell := range row {
			widths[i] = max(widths[i], columns(cell))
		}
	}
	if width > 0 {
		room := width - len(gap)*(len(widths)-1)
		for _, w := range widths[:columnFiles] {
			room -= w
		}
		if widths[columnFiles] = min(widths[columnFiles], room); room < leastFiles {
			widths = widths[:columnFiles]
			widths[columnImport] = max(widths[columnImport]+min(room+len(gap), 0), 1)
		}
	}
	var b strings.Builder
	for k, row := range table {
		var line strings.Builder
		for i, w := range widths {
			cell := row[i]
			if i == columnFiles && columns(cell) > w && k > 0 {
				cell = fileNames(withoutDirectories(s.Imports[k-1].Files))
			}
			cell = cut(cell, w)
			space := strings.Repeat(" ", w-columns(cell))
			if i > 0 {
				line.WriteString(gap)
			}
			if i == columnImport || i == columnState || i == columnFiles {
				line.WriteString(cell + space)
			} else {
				line.WriteString(space + cell)
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	return b.String()
}

// withoutDirectories shortens names of files.
func withoutDirectories(files []string) []string {
	names := make([]string, len(files))
	for i, f := range files {
		names[i] = f[strings.LastIndexAny(f, `/\`)+1:]
	}
	return names
}

// importRow is an import in the columns of the table.
func importRow(s *app.ImportStatus, halt *queue.Halt, now time.Time) []string {
	row := make([]string, len(columnNames))
	row[columnImport] = s.Import
	row[columnState] = s.State
	switch {
	case s.Damaged != "":
		row[columnState] = "damaged"
	case s.Superseded:
		row[columnState] = "superseded"
	case halt != nil && !s.Over():
		row[columnState] = string(halt.State)
	case s.Paused:
		row[columnState] = string(queue.Paused)
	}
	row[columnAge] = age(now.Sub(s.Created))
	total, pending := s.Jobs.Total, s.Jobs.Pending
	if r := s.Retry; r != nil && !s.Over() {
		total, pending = r.Jobs, r.Pending
	}
	row[columnDone] = "100%"
	if total > 0 || !s.Over() {
		row[columnDone] = fmt.Sprintf("%d%%", (total-pending-s.Jobs.Dropped)*100/max(total, 1))
	}
	row[columnFailed] = count(s.Jobs.Failed + s.Jobs.Partial)
	row[columnRejected] = count(s.Rejected)
	row[columnLeft] = "-"
	if left := secondsLeft(s); left > 0 {
		row[columnLeft] = brief(left)
	}
	row[columnFiles] = fileNames(s.Files)
	return row
}

// drawFrame draws a text over the last one, as much of it as the window shows.
func drawFrame(w io.Writer, l look, first bool, text string) error {
	var b strings.Builder
	b.WriteString("\x1b[H") // home
	if first {
		b.WriteString("\x1b[2J")
	}
	lines := strings.Split(strings.TrimSuffix(shown(text), "\n"), "\n")
	if most := max(l.height-1, 2); len(lines) > most {
		more := len(lines) - most + 1
		lines = append(lines[:most-1], fmt.Sprintf("… and %s more", things(int64(more), "line")))
	}
	for i := range lines {
		lines[i] = cut(lines[i], l.width-1) + "\n"
	}
	colored := l.colored(strings.Join(lines, ""))
	b.WriteString(strings.ReplaceAll(colored, "\n", "\x1b[K\n") + "\x1b[J")
	_, err := io.WriteString(w, b.String())
	return err
}
