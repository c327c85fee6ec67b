package main

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"groupferry/internal/chat"
	"groupferry/internal/job"
	"groupferry/internal/queue"
)

func (p *program) resultsCommand() *cobra.Command {
	var qf queueFlags
	var out outputFlag
	var failed bool
	cmd := &cobra.Command{
		Use:   "results IMPORT",
		Short: "Export what came of every conversation",
		Long: `results writes one line for each conversation that has a result: where it came from,
what the API said about it, and the group it is in. An empty code means that the
conversation is in its group. The CSV begins with the columns of an input, so what
--failed writes can be mended and imported as it is.`,
		Example: `  groupferry results 3f9a1c0be2d47a55 --failed > failed.csv`,
		Args:    imports(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := out.check(); err != nil {
				return err
			}
			q, err := p.open(qf, true)
			if err != nil {
				return err
			}
			defer q.Close()
			if _, err := statusOf(p.soft, q, args[0]); err != nil {
				return err
			}
			return writeResults(p, q, args[0], out.format, failed)
		},
	}
	qf.add(cmd)
	out.add(cmd, "csv", "jsonl")
	cmd.Flags().BoolVar(&failed, "failed", false, "only conversations that are not in their group")
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
	for r, err := range q.Results(p.soft, importID) {
		if err != nil {
			return err
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
