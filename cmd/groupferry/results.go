package main

import (
	"bufio"
	"cmp"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"groupferry/internal/broker"
	"groupferry/internal/chat"
	"groupferry/internal/job"
	"groupferry/internal/queue"
)

func (p *program) resultsCommand() *cobra.Command {
	var qf queueFlags
	var out outputFlag
	var failed, summary bool
	cmd := &cobra.Command{
		Use:   "results IMPORT",
		Short: "Export what came of every conversation",
		Long: `results writes one line for each conversation that has a result: where it came from,
what the API said about it, and the group it is in. An empty code means that the
conversation is in its group. The CSV begins with the columns of an input, so what
--failed writes can be fixed and imported as it is.

--summary groups the failures by code instead, each with its count and an example.`,
		Example: `  groupferry results 3f9a1c0be2d47a55 --failed > failed.csv
  groupferry results 3f9a1c0be2d47a55 --summary`,
		Args: imports(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if summary && failed {
				return usagef("--failed and --summary: one of them")
			}
			if summary {
				out.formats = []string{"text", "json"}
				if !cmd.Flags().Changed("output") {
					out.format = "text"
				}
			}
			if err := out.check(); err != nil {
				return err
			}
			s, err := p.open(qf, true)
			if err != nil {
				return err
			}
			defer s.Close()
			_, damaged := statusOf(p.soft, s, args[0])
			if damaged != nil && !errors.As(damaged, new(*broker.DamagedError)) {
				return damaged
			}
			if summary {
				err = summarise(p, s.Queue, args[0], out.format)
			} else {
				err = writeResults(p, s.Queue, args[0], out.format, failed)
			}
			return cmp.Or(err, damaged) // what can be read is written all the same
		},
	}
	qf.add(cmd)
	out.add(cmd, "csv", "jsonl")
	cmd.Flags().BoolVar(&failed, "failed", false, "only conversations that are not in their group")
	cmd.Flags().BoolVar(&summary, "summary", false, "failures by code, as text or --output json")
	p.consoleFlags(cmd)
	return cmd
}

// A resultLine is what came of one conversation. Its JSON form is read by programs: fields are added, never changed.
type resultLine struct {
	FromAccount string    `json:"from_account"`
	GroupName   string    `json:"group_name"`
	Type        int       `json:"type"`
	ToAccount   string    `json:"to_account,omitempty"`
	ToGroupID   string    `json:"to_group_id,omitempty"`
	Code        string    `json:"code"` // "" when it is in the group
	Reason      string    `json:"reason"`
	File        string    `json:"file"`
	Line        int64     `json:"line"`
	GroupID     int64     `json:"group_id"`
	Attempts    int       `json:"attempts"`
	Job         string    `json:"job"`
	Outcome     string    `json:"outcome"` // of the job
	Finished    time.Time `json:"finished"`
}

var resultColumns = []string{"from_account", "group_name", "type", "to_account", "to_group_id", "code", "reason", "file", "line",
	"group_id", "attempts", "job", "outcome", "finished"}

func (l *resultLine) fields() []string {
	kind, line, group := "", "", ""
	if l.Type != 0 {
		kind = strconv.Itoa(l.Type)
	}
	if l.Line != 0 {
		line = strconv.FormatInt(l.Line, 10)
	}
	if l.GroupID != 0 {
		group = strconv.FormatInt(l.GroupID, 10)
	}
	return []string{l.FromAccount, l.GroupName, kind, l.ToAccount, l.ToGroupID, l.Code, l.Reason, l.File, line,
		group, strconv.Itoa(l.Attempts), l.Job, l.Outcome, l.Finished.UTC().Format(time.RFC3339)}
}

// lines gives a result as one line for each conversation, or a single one for a job of which nothing is known.
func lines(r *job.Result) []resultLine {
	base := resultLine{
		FromAccount: r.FromAccount, GroupName: r.GroupName, GroupID: r.GroupID, Attempts: r.Attempts,
		Job: r.Job, Outcome: string(r.Outcome), Finished: r.Finished,
	}
	if len(r.Conversations) == 0 {
		base.Code, base.Reason = r.Code, r.Info
		return []resultLine{base}
	}
	all := make([]resultLine, len(r.Conversations))
	for i, c := range r.Conversations {
		l := base
		l.Type, l.Code, l.Reason, l.File, l.Line = c.Type, c.Code, c.Info, r.Files[c.File], c.Line
		if c.Type == job.OneToOne {
			l.ToAccount = c.ID
		} else {
			l.ToGroupID = c.ID
		}
		if l.Reason == "" && l.Code != "" {
			if code, err := strconv.Atoi(l.Code); err == nil {
				l.Reason = chat.Meaning(code)
			}
		}
		all[i] = l
	}
	return all
}

func writeResults(p *program, q *queue.Queue, importID, format string, failedOnly bool) error {
	buffered := bufio.NewWriterSize(p.stdout, 64<<10)
	write, flush := jsonLines(buffered)
	if format == "csv" {
		write, flush = csvLines(buffered)
	}
	var outcomes []job.Outcome // all
	if failedOnly {
		outcomes = []job.Outcome{job.Partial, job.Failed}
	}
	for r, err := range q.Results(p.soft, importID, outcomes...) {
		if err != nil {
			return errors.Join(err, flush(), buffered.Flush())
		}
		for _, l := range lines(&r) {
			if failedOnly && l.Code == "" {
				continue
			}
			if err := write(&l); err != nil {
				return err
			}
		}
	}
	if err := flush(); err != nil {
		return err
	}
	return buffered.Flush()
}

func jsonLines(w io.Writer) (write func(*resultLine) error, flush func() error) {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return func(l *resultLine) error { return e.Encode(l) }, func() error { return nil }
}

func csvLines(w io.Writer) (write func(*resultLine) error, flush func() error) {
	c := csv.NewWriter(w)
	headed := false
	header := func() error {
		if headed {
			return nil
		}
		headed = true
		return c.Write(resultColumns)
	}
	return func(l *resultLine) error {
			if err := header(); err != nil {
				return err
			}
			return c.Write(l.fields())
		}, func() error {
			if err := header(); err != nil {
				return err
			}
			c.Flush()
			return c.Error()
		}
}

// A summary is what failed in an import, by code. Its JSON form is read by programs: fields are added, never changed.
type summary struct {
	Import string        `json:"import"`
	Done   int64         `json:"done"` // conversations
	Failed int64         `json:"failed"`
	Codes  []codeSummary `json:"codes"` // the most frequent first
}

type codeSummary struct {
	Code    string     `json:"code"`
	Reason  string     `json:"reason"`
	Count   int64      `json:"count"`
	Example resultLine `json:"example"` // the first one of the first file
}

func summarise(p *program, q *queue.Queue, importID, format string) error {
	progress, err := q.Progress(p.soft, importID)
	if err != nil && !errors.As(err, new(*broker.DamagedError)) {
		return err
	}
	s := summary{Import: importID, Done: progress.Counts.Conversations.Done}
	byCode := map[string]*codeSummary{}
	for r, err := range q.Results(p.soft, importID, job.Partial, job.Failed) {
		if err != nil {
			return err
		}
		for _, l := range lines(&r) {
			if l.Code == "" {
				continue
			}
			s.Failed++
			c := byCode[l.Code]
			if c == nil {
				c = &codeSummary{Code: l.Code, Reason: l.Reason, Example: l}
				byCode[l.Code] = c
			}
			c.Count++
			if e := &c.Example; cmp.Or(cmp.Compare(l.File, e.File), cmp.Compare(l.Line, e.Line)) < 0 {
				*e = l
			}
		}
	}
	s.Codes = make([]codeSummary, 0, len(byCode))
	for _, c := range byCode {
		s.Codes = append(s.Codes, *c)
	}
	slices.SortFunc(s.Codes, func(a, b codeSummary) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Code, b.Code))
	})
	if format == "json" {
		return writeJSON(p.stdout, s)
	}
	_, err = io.WriteString(p.stdout, s.text())
	return err
}

func (s *summary) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "import %s: %s conversations done, %s failed\n", s.Import, count(s.Done), count(s.Failed))
	for _, c := range s.Codes {
		e := c.Example
		fmt.Fprintf(&b, "  %-14s %-9s %s\n", c.Code, count(c.Count), c.Reason)
		if e.Type != 0 {
			fmt.Fprintf(&b, "  %24s such as %s in %q of %s, %s:%d\n",
				"", cmp.Or(e.ToAccount, e.ToGroupID), e.GroupName, e.FromAccount, e.File, e.Line)
		}
	}
	return b.String()
}
