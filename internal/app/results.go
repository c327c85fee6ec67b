package app

import (
	"bufio"
	"cmp"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"time"

	"groupferry/internal/broker"
	"groupferry/internal/chat"
	"groupferry/internal/job"
	"groupferry/internal/queue"
)

// A ResultLine is what came of one conversation. Its JSON form is read by programs: fields are added, never changed.
type ResultLine struct {
	FromAccount string    `json:"from_account"`
	GroupName   string    `json:"group_name"`
	Type        int       `json:"type"`
	ToAccount   string    `json:"to_account,omitempty"`
	ToGroupID   string    `json:"to_group_id,omitempty"`
	Code        string    `json:"code"` // "" when it is in the group, or out of it, as Op says
	Reason      string    `json:"reason"`
	File        string    `json:"file"`
	Line        int64     `json:"line"`
	GroupID     int64     `json:"group_id"`
	Attempts    int       `json:"attempts"`
	Job         string    `json:"job"`
	Outcome     string    `json:"outcome"` // of the job; OutcomeDropped when it has none
	Finished    time.Time `json:"finished"`
	Op          string    `json:"op"` // OpAdd, OpRemove or OpRename; "" where it is not known
}

// The operations of a [ResultLine].
const (
	OpAdd    = "add"    // the conversation is to be in the group
	OpRemove = "remove" // it is to be out of it
	OpRename = "rename" // the line is about the name of the group, and about no conversation
)

// Lines says which lines of an import's results are wanted.
type Lines int

const (
	AllLines     Lines = iota
	FailedLines        // of conversations that are not in their group: an input that sends them again
	RemovedLines       // of conversations that were taken out: an input that puts them in again
)

// want reports whether a line is one of these.
func (w Lines) want(l *ResultLine) bool {
	switch w {
	case FailedLines: // what was to be removed, or renamed, is no row that could be imported
		return l.Code != "" && l.Op != OpRemove && l.Op != OpRename
	case RemovedLines:
		return l.Code == "" && l.Op == OpRemove
	}
	return true
}

var resultColumns = []string{"from_account", "group_name", "type", "to_account", "to_group_id", "code", "reason", "file", "line",
	"group_id", "attempts", "job", "outcome", "finished", "op"}

// inputColumns are the first of them, which an input has.
const inputColumns = 5

func (l *ResultLine) fields() []string {
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
		group, strconv.Itoa(l.Attempts), l.Job, l.Outcome, l.Finished.UTC().Format(time.RFC3339), l.Op}
}

// OutcomeDropped stands, as code and as outcome, for what a cancel dropped.
const OutcomeDropped = "dropped"

// droppedLines gives a job that was dropped then as one line for each conversation. files are the names of the import's
// inputs.
func droppedLines(j *job.Job, files []string, at time.Time) []ResultLine {
	all := make([]ResultLine, 0, len(j.Conversations))
	for _, c := range j.Conversations {
		if c.Op == job.Keep {
			continue
		}
		l := ResultLine{FromAccount: j.FromAccount, GroupName: j.GroupName, Type: c.Type, Code: OutcomeDropped,
			Reason: "the import was cancelled", Line: c.Line, Job: j.ID, Outcome: OutcomeDropped, Finished: at}
		l.setTarget(c, files)
		all = append(all, l)
	}
	return all
}

func (l *ResultLine) setTarget(c job.Conversation, files []string) {
	if l.Op = OpAdd; c.Op == job.Remove {
		l.Op = OpRemove
	}
	if c.File < len(files) && c.Line > 0 {
		l.File = files[c.File]
	}
	if c.Type == job.OneToOne {
		l.ToAccount = c.ID
	} else {
		l.ToGroupID = c.ID
	}
}

// resultLines gives a result as one line for each conversation, and one for the job if that failed for a reason of its own.
// files are the names of the import's inputs.
func resultLines(r *job.Result, files []string) []ResultLine {
	base := ResultLine{
		FromAccount: r.FromAccount, GroupName: r.GroupName, GroupID: r.GroupID, Attempts: r.Attempts,
		Job: r.Job, Outcome: string(r.Outcome), Finished: r.Finished,
	}
	all := make([]ResultLine, len(r.Conversations), len(r.Conversations)+1)
	if r.Code != "" && r.FailedConversations() == 0 {
		l := base
		l.Code, l.Reason = r.Code, r.Info
		if r.Rename != "" {
			l.Op = OpRename
		}
		all = append(all, l)
	}
	for i, c := range r.Conversations {
		l := base
		l.Type, l.Code, l.Reason, l.Line = c.Type, c.Code, c.Info, c.Line
		l.setTarget(c.Conversation, files)
		if l.Reason == "" && l.Code != "" {
			if code, err := strconv.Atoi(l.Code); err == nil {
				l.Reason = chat.Meaning(code)
			}
		}
		all[i] = l
	}
	return all
}

// A NotQueuedError says that an import was cancelled before all of its jobs were on the queue.
type NotQueuedError struct {
	Import string
	Jobs   int64
}

func (e *NotQueuedError) Error() string {
	return fmt.Sprintf("%d dropped jobs of import %s are missing: the import was cancelled before they were on the queue", e.Jobs, e.Import)
}

// ResultLines reads the results of an import, and what a cancel of it dropped, a line for each conversation. An error is the last thing it yields: a *NotQueuedError, or one of
// [queue.Queue.Results], [queue.Queue.Dropped] and [queue.Dropped.All].
func (n *Namespace) ResultLines(ctx context.Context, id string, wanted Lines) iter.Seq2[ResultLine, error] {
	var outcomes []job.Outcome // all
	if wanted == FailedLines {
		outcomes = failures
	}
	return n.resultLines(ctx, id, outcomes, wanted.want)
}

// failures are the outcomes of jobs with something that failed.
var failures = []job.Outcome{job.Partial, job.Failed}

func (n *Namespace) resultLines(
	ctx context.Context, id string, outcomes []job.Outcome, want func(*ResultLine) bool,
) iter.Seq2[ResultLine, error] {
	return func(yield func(ResultLine, error) bool) {
		var files []string
		record, err := n.Import(ctx, id)
		if err == nil {
			files, err = record.Inputs.Unpack()
		}
		var dropped *queue.Dropped
		if err == nil {
			dropped, err = n.Dropped(ctx, id) // before the results, so that a job is in one of the two
		}
		if err != nil {
			yield(ResultLine{}, err)
			return
		}
		for r, err := range n.Results(ctx, id, outcomes...) {
			if err != nil {
				yield(ResultLine{}, err)
				return
			}
			for _, l := range resultLines(&r, files) {
				if want(&l) && !yield(l, nil) {
					return
				}
			}
		}
		if dropped == nil {
			return
		}
		left := dropped.Jobs
		for j, err := range dropped.All(ctx) {
			if err != nil {
				yield(ResultLine{}, err)
				return
			}
			left--
			for _, l := range droppedLines(&j, files, dropped.At) {
				if want(&l) && !yield(l, nil) {
					return
				}
			}
		}
		if left > 0 {
			yield(ResultLine{}, &NotQueuedError{id, left})
		}
	}
}

// The formats of results.
const (
	CSV   = "csv"   // a header, and a record for each line
	JSONL = "jsonl" // a JSON object for each line
)

// WriteResults writes lines to w as [CSV] or [JSONL]. When lines end with an error, those before it are written, and the
// error is returned. The columns of the CSV begin with those of an input, so it can be imported as it is; asInput leaves out
// all others.
func WriteResults(w io.Writer, format string, asInput bool, lines iter.Seq2[ResultLine, error]) error {
	b := bufio.NewWriterSize(w, 64<<10)
	asJSON, asCSV := json.NewEncoder(b), csv.NewWriter(b)
	asJSON.SetEscapeHTML(false)
	write := func(l *ResultLine) error { return asJSON.Encode(l) }
	if format == CSV {
		columns := len(resultColumns)
		if asInput {
			columns = inputColumns
		}
		write = func(l *ResultLine) error { return asCSV.Write(l.fields()[:columns]) }
		if err := asCSV.Write(resultColumns[:columns]); err != nil {
			return err
		}
	}
	var failure error
	for l, err := range lines {
		if err != nil {
			failure = err
			break
		}
		if err := write(&l); err != nil {
			return err
		}
	}
	asCSV.Flush()
	return errors.Join(failure, asCSV.Error(), b.Flush())
}

// Failures are what failed in an import, by code. Their JSON form is read by programs: fields are added, never changed.
type Failures struct {
	Import  string        `json:"import"`
	Done    int64         `json:"done"` // conversations that were added
	Failed  int64         `json:"failed"`
	Dropped int64         `json:"dropped,omitempty"` // by cancel
	Codes   []FailureCode `json:"codes"`             // the most frequent first

	Removed        int64 `json:"removed,omitempty"` // conversations that were taken out
	RemovalsFailed int64 `json:"removals_failed,omitempty"`
	Deleted        int64 `json:"deleted_groups,omitempty"`
	Renamed        int64 `json:"renamed_groups,omitempty"`
}

// A FailureCode is what failed with one code.
type FailureCode struct {
	Code    string     `json:"code"`
	Reason  string     `json:"reason"`
	Count   int64      `json:"count"`
	Example ResultLine `json:"example"` // the first one of the first file
}

// Failures reads what failed in an import, and groups it by code.
func (n *Namespace) Failures(ctx context.Context, id string) (Failures, error) {
	progress, err := n.Progress(ctx, id)
	if err != nil && !errors.As(err, new(*broker.DamagedError)) {
		return Failures{}, err
	}
	counts := &progress.Counts
	s := Failures{Import: id, Done: counts.Conversations.Done + counts.Restored.Done, Removed: counts.Removals.Done,
		Deleted: counts.Deleted, Renamed: counts.Renamed}
	byCode := map[string]*FailureCode{}
	for l, err := range n.resultLines(ctx, id, failures, func(l *ResultLine) bool { return l.Code != "" }) {
		if err != nil {
			return s, err
		}
		switch {
		case l.Outcome == OutcomeDropped:
			s.Dropped++
		case l.Op == OpRemove:
			s.RemovalsFailed++
		default:
			s.Failed++
		}
		c := byCode[l.Code]
		if c == nil {
			c = &FailureCode{Code: l.Code, Reason: l.Reason, Example: l}
			byCode[l.Code] = c
		}
		c.Count++
		if e := &c.Example; cmp.Or(cmp.Compare(l.File, e.File), cmp.Compare(l.Line, e.Line)) < 0 {
			*e = l
		}
	}
	s.Codes = make([]FailureCode, 0, len(byCode))
	for _, c := range byCode {
		s.Codes = append(s.Codes, *c)
	}
	slices.SortFunc(s.Codes, func(a, b FailureCode) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Code, b.Code))
	})
	return s, nil
}
