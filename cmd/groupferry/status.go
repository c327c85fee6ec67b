package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"groupferry/internal/broker"
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
		Long: `status shows the imports, newest first: rows, jobs, conversations, the rate over the
last minute and the time left, and whether everything is halted and why. It can
look at an embedded server while another groupferry works with it.`,
		Args: imports(0, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := out.check(); err != nil {
				return err
			}
			opened, err := p.open(qf, true)
			if err != nil {
				return err
			}
			defer opened.Close()
			for {
				s, err := p.statusAll(p.soft, opened, args)
				if err != nil {
					return err
				}
				text := s.text()
				if watch && p.console.terminal && out.format == "text" {
					text = "\x1b[H\x1b[2J" + text // home, clear
				}
				if out.format == "json" {
					err = writeJSON(p.stdout, s)
				} else {
					_, err = io.WriteString(p.stdout, text)
				}
				if err != nil || !watch || s.over() {
					return errors.Join(err, s.damaged)
				}
				select {
				case <-time.After(watchEvery):
				case <-p.soft.Done():
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

// An importStatus is how far an import is. Its JSON form is read by programs: fields are added, never changed.
type importStatus struct {
	Import        string             `json:"import"`
	State         string             `json:"state"` // enqueueing, running, complete, cancelled, retrying, deleting
	Paused        bool               `json:"paused"`
	Simulated     bool               `json:"simulated,omitempty"`
	Files         []string           `json:"files"`
	Created       time.Time          `json:"created"`
	Completed     *time.Time         `json:"completed,omitempty"`
	Rows          int64              `json:"rows"`
	Accepted      int64              `json:"accepted"`
	Duplicates    int64              `json:"duplicates"`
	Rejected      int64              `json:"rejected"`
	RejectsFile   string             `json:"rejects_file,omitempty"`
	Jobs          jobCounts          `json:"jobs"`
	Conversations conversationCounts `json:"conversations"`
	Calls         int64              `json:"calls"`        // that the results took
	Rate          float64            `json:"rate"`         // jobs a second over the last minute
	SecondsLeft   *float64           `json:"seconds_left"` // null when nobody knows
	LastResult    *time.Time         `json:"last_result,omitempty"`
	Retry         *retryStatus       `json:"retry,omitempty"`   // the last one
	Damaged       string             `json:"damaged,omitempty"` // what is wrong with what is stored of it

	Command string `json:"-"` // that shows the results
}

// A retryStatus is how far a retry is. Until a job of it has its new result, it counts as what it was before.
type retryStatus struct {
	Generation int      `json:"generation"`      // 1 for the first retry
	Jobs       int64    `json:"jobs"`            // 0 until all are on the queue
	Pending    int64    `json:"pending"`         // those in flight included
	Codes      []string `json:"codes,omitempty"` // of the failures that it is about; all when empty
}

type jobCounts struct {
	Total    int64 `json:"total"`
	Done     int64 `json:"done"`
	Partial  int64 `json:"partial"`
	Failed   int64 `json:"failed"`
	Pending  int64 `json:"pending"` // without a result, those in flight included
	InFlight int64 `json:"in_flight"`
	Dropped  int64 `json:"dropped"` // by cancel
}

type conversationCounts struct {
	Total   int64 `json:"total"`
	Done    int64 `json:"done"`
	Failed  int64 `json:"failed"`
	Pending int64 `json:"pending"`
	Dropped int64 `json:"dropped"`
}

// rateFresh is how old a rate can be that is shown: what a leader wrote before that says nothing about now. Clocks of other
// machines are not exact to much less.
const rateFresh = 15 * time.Second

// statusOf gathers what the queue knows about an import.
func statusOf(ctx context.Context, q *store, id string) (importStatus, error) {
	p, err := q.Progress(ctx, id)
	damaged := errors.As(err, new(*broker.DamagedError)) && p.Import.ID != ""
	if err != nil && !damaged {
		if errors.Is(err, queue.ErrNoImport) {
			err = hint(err, "'groupferry status' lists the imports of %s", q.Where())
		}
		return importStatus{}, err
	}
	return newStatus(p), err // about damage, or nil
}

func newStatus(p queue.Progress) importStatus {
	i, n := p.Import, p.Counts
	results := n.Jobs.Done + n.Jobs.Partial + n.Jobs.Failed
	s := importStatus{
		Import: i.ID, State: string(i.State), Paused: i.Paused, Simulated: i.Simulated, Files: i.Files, Created: i.Created,
		Rows: i.Rows, Accepted: i.Accepted, Duplicates: i.Duplicates, Rejected: i.Rejected, RejectsFile: i.RejectsFile,
		Jobs: jobCounts{Total: i.Jobs, Done: n.Jobs.Done, Partial: n.Jobs.Partial, Failed: n.Jobs.Failed,
			Pending: i.Jobs - results, InFlight: p.InFlight},
		Conversations: conversationCounts{Total: i.Conversations, Done: n.Conversations.Done, Failed: n.Conversations.Failed,
			Pending: i.Conversations - n.Conversations.Done - n.Conversations.Failed},
		Calls: n.Calls,
	}
	if s.Files == nil {
		s.Files = []string{}
	}
	if !i.Completed.IsZero() {
		s.Completed = &i.Completed
	}
	if !n.LastResult.IsZero() {
		s.LastResult = &n.LastResult
	}
	todo := s.Jobs.Pending
	if i.Generation > 0 {
		todo = p.Pending + p.InFlight
		s.Retry = &retryStatus{Generation: i.Generation, Jobs: i.Retried, Pending: todo, Codes: i.RetryCodes}
	}
	if i.State == queue.Cancelled {
		s.Jobs.Pending, s.Jobs.Dropped = 0, s.Jobs.Pending
		s.Conversations.Pending, s.Conversations.Dropped = 0, s.Conversations.Pending
	}
	switch {
	case i.State.Over():
		zero := 0.0
		s.SecondsLeft = &zero
	case p.Rate > 0 && !i.Paused && time.Since(p.At).Abs() < rateFresh:
		s.Rate = p.Rate
		left := float64(todo) / p.Rate
		s.SecondsLeft = &left
	}
	return s
}

// addsUp checks that no row and no conversation is unaccounted for.
func (s *importStatus) addsUp() error {
	c := s.Conversations
	switch {
	case s.Rows != s.Accepted+s.Duplicates+s.Rejected:
		return fmt.Errorf("the counts do not add up: %d rows, %d accepted + %d duplicates + %d rejected",
			s.Rows, s.Accepted, s.Duplicates, s.Rejected)
	case s.Accepted != c.Total:
		return fmt.Errorf("the counts do not add up: %d rows accepted, %d conversations", s.Accepted, c.Total)
	case c.Pending < 0 || s.Jobs.Pending < 0 || (c.Pending == 0) != (s.Jobs.Pending == 0):
		return fmt.Errorf("the counts do not add up: %d of %d jobs and %d of %d conversations have no result",
			s.Jobs.Pending, s.Jobs.Total, c.Pending, c.Total)
	case s.State == string(queue.Complete) && c.Pending != 0:
		return fmt.Errorf("the counts do not add up: complete, but %d conversations have no result", c.Pending)
	}
	return nil
}

func (s *importStatus) text() string {
	var b strings.Builder
	state := s.State
	if s.Paused {
		state += ", paused"
	}
	if s.Simulated {
		state += ", simulated"
	}
	dropped := func(n int64) string {
		if n == 0 {
			return ""
		}
		return " · dropped " + count(n)
	}
	fmt.Fprintf(&b, "import %s (%s): %s\n", s.Import, strings.Join(s.Files, ", "), state)
	rejects := ""
	if s.RejectsFile != "" {
		rejects = ", kept in " + s.RejectsFile
	}
	fmt.Fprintf(&b, "  rows           %-9s accepted %s · duplicates %s · rejected %s%s\n",
		count(s.Rows), count(s.Accepted), count(s.Duplicates), count(s.Rejected), rejects)
	fmt.Fprintf(&b, "  jobs           %-9s done %s · partial %s · failed %s · pending %s%s\n",
		count(s.Jobs.Total), count(s.Jobs.Done), count(s.Jobs.Partial), count(s.Jobs.Failed), count(s.Jobs.Pending), dropped(s.Jobs.Dropped))
	fmt.Fprintf(&b, "  conversations  %-9s done %s · failed %s · pending %s%s\n",
		count(s.Conversations.Total), count(s.Conversations.Done), count(s.Conversations.Failed), count(s.Conversations.Pending),
		dropped(s.Conversations.Dropped))
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
	if s.Command != "" {
		if s.Jobs.Partial+s.Jobs.Failed > 0 {
			s.Command += " --failed"
		}
		fmt.Fprintf(&b, "  results        %s\n", s.Command)
	}
	return b.String()
}

// A statusReport is the answer of status.
type statusReport struct {
	Imports []importStatus `json:"imports"`
	Halt    *queue.Halt    `json:"halt"` // null while calls may be made

	damaged error // about imports that are
}

func (p *program) statusAll(ctx context.Context, q *store, ids []string) (statusReport, error) {
	r := statusReport{Imports: []importStatus{}}
	var err error
	if r.Halt, err = q.Halted(ctx); err != nil {
		return r, err
	}
	if len(ids) == 0 {
		all, err := q.AllProgress(ctx)
		if err != nil {
			return r, err
		}
		for _, p := range all {
			r.add(newStatus(p), p.Damaged)
		}
	}
	for _, id := range ids {
		s, err := statusOf(ctx, q, id)
		if err != nil && !errors.As(err, new(*broker.DamagedError)) {
			return r, err
		}
		r.add(s, err)
	}
	return r, nil
}

// add adds an import, which may be damaged.
func (r *statusReport) add(s importStatus, damaged error) {
	if damaged != nil {
		r.damaged = errors.Join(r.damaged, damaged)
		s.Damaged = damaged.Error()
	}
	if r.Halt != nil && !queue.ImportState(s.State).Over() { // no call is made
		s.Rate, s.SecondsLeft = 0, nil
	}
	r.Imports = append(r.Imports, s)
}

func (r *statusReport) text() string {
	var b strings.Builder
	if h := r.Halt; h != nil {
		fmt.Fprintf(&b, "%s by %s since %s: %s\n", h.State, h.By, h.Since.Local().Format(time.DateTime), h.Reason)
		if h.Remedy != "" {
			fmt.Fprintf(&b, "  remedy: %s\n", h.Remedy)
		}
		if h.Command != "" {
			fmt.Fprintf(&b, "  then: %s\n", h.Command)
		}
	}
	if len(r.Imports) == 0 {
		b.WriteString("no imports\n")
	}
	for i := range r.Imports {
		b.WriteString(r.Imports[i].text())
	}
	return b.String()
}

// settled tells whether nothing is going to change.
func (r *statusReport) over() bool {
	for _, i := range r.Imports {
		if !queue.ImportState(i.State).Over() {
			return false
		}
	}
	return true
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
