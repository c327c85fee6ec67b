package app

import (
	"cmp"
	"context"
	"encoding/json"
	"iter"
	"math"
	"slices"

	"groupferry/importer"
	"groupferry/internal/chat"
	"groupferry/internal/governor"
	"groupferry/internal/job"
)

// CheckConfig says what to check.
type CheckConfig struct {
	Input InputConfig
	Rate  int // calls a second, for the time needed; 0: governor.DefaultRate
	Show  int // how many groups to show the first call of

	// Sync, unless nil, says that the input is a night of a sync in Namespace, which is nil where nothing was imported yet.
	Sync      *SyncConfig
	Namespace *Namespace

	// Live, unless nil, has the check of a night compare the API with the input as well.
	Live *LiveConfig
}

// A CheckReport is what an import of the input would come to. Its JSON form is read by programs: fields are added, never
// changed.
type CheckReport struct {
	Accepted      int64             `json:"accepted"`
	Bytes         int64             `json:"bytes"` // of the input, after decompression
	Calls         int64             `json:"calls"` // if all goes well
	Conversations int64             `json:"conversations"`
	Duplicates    int64             `json:"duplicates"`
	Files         int               `json:"files"`
	FirstCalls    []json.RawMessage `json:"first_calls"`
	Groups        int64             `json:"groups"`
	Import        string            `json:"import"`
	Jobs          int64             `json:"jobs"`
	Rate          int               `json:"rate"`
	Rejected      int64             `json:"rejected"`
	Rejects       []RejectGroup     `json:"rejects"` // the most frequent first
	RejectsFile   string            `json:"rejects_file,omitempty"`
	Rows          int64             `json:"rows"`
	Seconds       float64           `json:"seconds"` // that the calls take at the rate
	Users         int64             `json:"users"`
	Warnings      []CheckWarning    `json:"warnings"`
	WarningsTotal int64             `json:"warnings_total"`
	Night         *NightReport      `json:"night,omitempty"` // in a sync
	Live          *LiveReport       `json:"live,omitempty"`  // what the API has, if that was asked for

	Kept *Rejects `json:"-"` // nil if no file was named for them
}

// A RejectGroup is the rejects with one code and reason.
type RejectGroup struct {
	Code   string `json:"code"`
	Reason string `json:"reason"`
	Count  int64  `json:"count"`
	File   string `json:"first_file"`
	Line   int64  `json:"first_line"`
}

// A CheckWarning is about rows that are accepted and may yet not be what was meant.
type CheckWarning struct {
	Text string `json:"text"`
	File string `json:"file"`
	Line int64  `json:"line"`
}

// Check reads and checks the input, and reports what an import of it would come to. It needs no queue and no API. The
// error is a *[GuardError] or, in a sync, a *[ShrinkError] when nothing would be enqueued, and comes with the report then; the
// other errors are those of [ReadInput] and [Namespace.ReadNight], and of the queue.
func Check(ctx context.Context, cfg CheckConfig) (CheckReport, error) {
	in, rows, night, err := cfg.read(ctx)
	if err != nil {
		return CheckReport{}, err
	}
	defer in.Close()
	plan := in.Plan
	var kept *Rejects
	file := ""
	if cfg.Input.Rejects != "" {
		if kept, err = findRejects(plan, cfg.Input.Rejects, cfg.Input.Stdout); err == nil {
			err = kept.Keep()
		}
		if err != nil {
			return CheckReport{}, err
		}
		file = kept.File
	}
	calls, err := firstCalls(plan, cfg.Show, cmp.Or(cfg.Input.Importer.ChunkSize, chat.MaxItemsPerCall))
	if err != nil {
		return CheckReport{}, err
	}
	rejected, err := groupRejects(plan.Rejects())
	if err != nil {
		return CheckReport{}, err
	}
	s, rate := plan.Summary, cmp.Or(cfg.Rate, governor.DefaultRate)
	r := CheckReport{
		Accepted: s.Accepted, Bytes: s.Bytes, Calls: s.Calls, Conversations: s.Conversations, Duplicates: s.Duplicates,
		Files: s.Files, FirstCalls: []json.RawMessage{}, Groups: s.Jobs, Import: plan.ImportID, Jobs: s.Jobs, Rate: rate,
		Rejected: s.Rejected, Rejects: rejected, RejectsFile: file, Rows: s.Rows,
		Seconds: math.Ceil(float64(s.Calls) / float64(rate)), Users: s.Users,
		Warnings: []CheckWarning{}, WarningsTotal: s.Warnings, Kept: kept, Night: night.Report(),
	}
	for _, c := range calls {
		r.FirstCalls = append(r.FirstCalls, c.Body())
	}
	for _, w := range plan.Warnings {
		r.Warnings = append(r.Warnings, CheckWarning{w.Text, w.File, w.Line})
	}
	if err := cfg.Input.guard(s, kept); err != nil || night == nil {
		return r, err
	}
	err = night.guardShrink(*cfg.Sync)
	if err == nil && cfg.Live != nil {
		r.Live, err = cfg.Namespace.live(ctx, rows, cfg.Sync, *cfg.Live)
	}
	return r, err
}

// read reads the input; the rows and the night are nil if it is none of a sync.
func (cfg *CheckConfig) read(ctx context.Context) (*Input, *importer.Rows, *Night, error) {
	if cfg.Sync == nil {
		in, err := readPlan(ctx, cfg.Input)
		return in, nil, nil, err
	}
	rows, err := importer.ReadRows(ctx, cfg.Input.Files, cfg.Input.Importer)
	if err != nil {
		return nil, nil, nil, err
	}
	night, err := cfg.Namespace.planNight(ctx, rows, cfg.Input, *cfg.Sync)
	if err == nil && cfg.Input.OnRead != nil {
		err = cfg.Input.OnRead(night.Plan)
	}
	if err == nil {
		err = night.conflict()
	}
	if err != nil {
		rows.Close()
		return nil, nil, nil, err
	}
	return night.Input, rows, night, nil
}

// firstCalls returns the bodies of the requests with which the first groups would be made, or added to.
func firstCalls(plan *importer.Plan, show, chunk int) ([]chat.CreateRequest, error) {
	var calls []chat.CreateRequest
	if show <= 0 {
		return nil, nil
	}
	for j, err := range plan.Jobs() {
		if err != nil {
			return nil, err
		}
		call := chat.CreateRequest{FromAccount: j.FromAccount, GroupName: j.GroupName}
		for _, c := range j.Conversations {
			if c.Op == job.Add && len(call.Items) < chunk {
				call.Items = append(call.Items, chat.Item{Type: c.Type, ID: c.ID})
			}
		}
		if len(call.Items) == 0 { // it only removes, or renames
			continue
		}
		if calls = append(calls, call); len(calls) == show {
			break
		}
	}
	return calls, nil
}

// maxRejectGroups bounds what groupRejects holds: some reasons have a line number in them.
const maxRejectGroups = 1000

// groupRejects gathers rejects with the same code and reason, the most frequent first. Where there are very many
// reasons, the last ones to appear go by their codes.
func groupRejects(rejects iter.Seq2[importer.Reject, error]) ([]RejectGroup, error) {
	type key struct{ code, reason string }
	groups := map[key]*RejectGroup{}
	for r, err := range rejects {
		if err != nil {
			return nil, err
		}
		k := key{r.Code, r.Reason}
		if groups[k] == nil && len(groups) >= maxRejectGroups {
			k.reason = "for other reasons"
		}
		if groups[k] == nil {
			groups[k] = &RejectGroup{Code: k.code, Reason: k.reason, File: r.File, Line: r.Line}
		}
		groups[k].Count++
	}
	all := make([]RejectGroup, 0, len(groups))
	for _, g := range groups {
		all = append(all, *g)
	}
	slices.SortFunc(all, func(a, b RejectGroup) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line),
			cmp.Compare(a.Reason, b.Reason))
	})
	return all, nil
}
