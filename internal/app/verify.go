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
	"strings"

	"groupferry/importer"
	"groupferry/internal/chat"
	"groupferry/internal/job"
	"groupferry/internal/queue"
	"groupferry/worker"
)

// Codes of a difference between an input and the API.
const (
	Missing    = "missing"    // the input has it, and the API does not
	Leftover   = "leftover"   // a sync put it there, it is there, and the input has it no more
	Unverified = "unverified" // the list of its user could not be read as a whole
)

// A Difference is a conversation that is not as the input says, or of which nobody knows. Its JSON form is read by programs:
// fields are added, never changed. As CSV it has the columns of a rejects file, so that it can be imported as it is.
type Difference struct {
	FromAccount string `json:"from_account"`
	GroupName   string `json:"group_name"`
	Type        int    `json:"type"`
	ToAccount   string `json:"to_account,omitempty"`
	ToGroupID   string `json:"to_group_id,omitempty"`
	Code        string `json:"code"`
	Reason      string `json:"reason"`
	File        string `json:"file"` // "" and 0 for what the input does not have
	Line        int64  `json:"line"`
}

var differenceColumns = resultColumns[:9]

func (d *Difference) fields() []string {
	l := ResultLine{FromAccount: d.FromAccount, GroupName: d.GroupName, Type: d.Type, ToAccount: d.ToAccount, ToGroupID: d.ToGroupID,
		Code: d.Code, Reason: d.Reason, File: d.File, Line: d.Line}
	return l.fields()[:len(differenceColumns)]
}

// Differences count the conversations of an input by what the API says of them. There, Missing and Unverified add up to
// those that are wanted. The rest is about a sync. Their JSON form is read by programs: fields are added, never changed.
type Differences struct {
	Wanted     int64 `json:"wanted"`
	There      int64 `json:"there"`
	Missing    int64 `json:"missing"`
	Unverified int64 `json:"unverified"`

	Leftover int64 `json:"leftover"`          // the sync put it there, it is there, and the input has it no more: a mirror removes it
	Kept     int64 `json:"kept,omitempty"`    // it is so, and stays there in the mode of the sync
	Gone     int64 `json:"gone,omitempty"`    // of Missing: the sync had put it there, so only a night with --full sends it
	Waiting  int64 `json:"waiting,omitempty"` // of Missing: the next night sends it
	Early    int64 `json:"early,omitempty"`   // of There: the next night sends it all the same
}

// compare says where the list of a user is not what is wanted of it. It calls each with every difference, in the order of
// the groups; files are the names of the inputs, and night says how a sync goes whose base is known.
func (n *Differences) compare(u *UserList, files []string, night *queue.Night, each func(*Difference) error) error {
	there, known := map[string]map[chat.Item]bool{}, map[string]map[chat.Item]importer.State{}
	for _, g := range u.List.Groups {
		there[g.Name] = map[chat.Item]bool{}
		for _, it := range g.Items {
			there[g.Name][it] = true
		}
	}
	for _, g := range u.Known {
		states := map[chat.Item]importer.State{}
		for _, c := range g.Conversations {
			states[chat.Item{Type: c.Type, ID: c.ID}] = c.State
		}
		known[g.GroupName] = states
	}
	tell := func(group, code, reason string, c job.Conversation) error {
		d := Difference{FromAccount: u.ID, GroupName: group, Type: c.Type, Code: code, Reason: reason, Line: c.Line}
		if c.Type == job.OneToOne {
			d.ToAccount = c.ID
		} else {
			d.ToGroupID = c.ID
		}
		if c.Line > 0 && c.File < len(files) {
			d.File = files[c.File]
		}
		return each(&d)
	}
	for _, j := range u.Jobs {
		states := known[j.GroupName]
		for _, c := range j.Conversations {
			it := chat.Item{Type: c.Type, ID: c.ID}
			applied := states[it] == importer.Applied
			n.Wanted++
			var err error
			switch {
			case u.Unread != nil:
				n.Unverified++
				err = tell(j.GroupName, Unverified, u.Unread.Error(), c)
			case there[j.GroupName][it]:
				n.There++
				if night != nil && !applied {
					n.Early++
				}
			default:
				n.Missing++
				if applied {
					n.Gone++
				} else if night != nil {
					n.Waiting++
				}
				err = tell(j.GroupName, Missing, missingReason(&u.List, there, j.GroupName), c)
			}
			if err != nil {
				return err
			}
			delete(states, it) // what is left of it, the input does not have
		}
	}
	for _, g := range u.Known {
		for _, c := range g.Conversations {
			it := chat.Item{Type: c.Type, ID: c.ID}
			if state := known[g.GroupName][it]; state != importer.Applied && state != importer.Unsure || !there[g.GroupName][it] {
				continue
			}
			if !night.Mirror || len(u.Jobs) == 0 && !night.Clear {
				n.Kept++
				continue
			}
			n.Leftover++
			reason := "the input has it no more"
			if len(u.Jobs) == 0 {
				reason = "the input has the user no more"
			}
			if err := tell(g.GroupName, Leftover, reason, job.Conversation{Type: c.Type, ID: c.ID}); err != nil {
				return err
			}
		}
	}
	return nil
}

// missingReason says why a conversation is not in a group.
func missingReason(list *worker.List, there map[string]map[chat.Item]bool, group string) string {
	if list.NoUser {
		return "the API does not know the user"
	}
	if there[group] != nil {
		return "the group does not have it"
	}
	for _, g := range list.Groups {
		if strings.EqualFold(g.Name, group) {
			return fmt.Sprintf("the user has no such group, but %q", g.Name)
		}
	}
	return "the user has no such group"
}

// VerifyConfig says what to compare with the API.
type VerifyConfig struct {
	Read  ReadConfig     // Begin is set by Verify
	Plan  *importer.Plan // of the input, or the one of [Namespace.PlanOnSync]
	Night *queue.Night   // it is that: a night in whose mode the sync goes
	Write func(*Difference) error

	OnUnread func(UnreadUser) // is called for each user whose list is not complete
}

// A VerifyReport says what came of a comparison. Its JSON form is read by programs: fields are added, never changed.
type VerifyReport struct {
	ReadStats
	Differences
	Rows       int64        `json:"rows"`
	Duplicates int64        `json:"duplicates"`
	Rejected   int64        `json:"rejected"` // rows that no import would send: nothing is verified of them
	Unread     []UnreadUser `json:"unread"`   // users
	Complete   bool         `json:"complete"` // all users were read, but for the unread ones
}

// Drift reports whether the API is not as the input says, or nobody knows.
func (r *VerifyReport) Drift() bool {
	return r.Missing+r.Leftover+r.Unverified+r.Rejected > 0 || len(r.Unread) > 0 || !r.Complete
}

// Verify reads the groups of all users that a plan is about, and compares them with it. The errors are those of reading,
// and of Write; the report says how far it came.
func Verify(ctx context.Context, stop <-chan struct{}, cfg VerifyConfig) (r VerifyReport, err error) {
	s := &cfg.Plan.Summary
	r.Rows, r.Duplicates, r.Rejected, r.Unread = s.Rows, s.Duplicates, s.Rejected, []UnreadUser{}
	cfg.Read.Begin = func() (iter.Seq2[importer.PlannedUser, error], error) { return cfg.Plan.Users(), nil }
	r.Calls, r.Seconds, err = seconds(readAll(ctx, stop, cfg.Read, func(u *UserList) error {
		r.add(u)
		if u.Unread != nil {
			r.Unread = append(r.Unread, u.unread())
			if cfg.OnUnread != nil {
				cfg.OnUnread(u.unread())
			}
		}
		return r.compare(u, cfg.Plan.Files, cfg.Night, cfg.Write)
	}))
	r.Complete = err == nil
	return r, err
}

// PlanOnSync plans all that rows want against what a sync knows, for Verify, and returns its last night. The error wraps
// [queue.ErrNoSync] when the sync has had none.
func (n *Namespace) PlanOnSync(ctx context.Context, rows *importer.Rows, name, target string) (*importer.Plan, *queue.Night, error) {
	base, night, err := n.syncBase(ctx, name, target)
	if err != nil {
		return nil, nil, err
	}
	plan, err := rows.Plan(ctx, base)
	return plan, night, err
}

// CountUsers counts the users that Verify reads for a plan: those of its rows, and those that its base knows.
func CountUsers(plan *importer.Plan) (users int64, err error) {
	for _, err := range plan.Users() {
		if err != nil {
			return 0, err
		}
		users++
	}
	return users, nil
}

// A LiveConfig says how check reads what the API has.
type LiveConfig struct {
	Read     ReadConfig
	OnCost   func(ReadCost) // is called before anything is read
	OnUnread func(UnreadUser)
}

// A LiveReport says what the API has of the input of a sync. Its JSON form is read by programs.
type LiveReport struct {
	Cost ReadCost `json:"cost"`
	VerifyReport
}

// live compares the API with rows and with what a sync knows, which may be nothing yet.
func (n *Namespace) live(ctx context.Context, rows *importer.Rows, sync *SyncConfig, cfg LiveConfig) (*LiveReport, error) {
	plan, _, err := n.PlanOnSync(ctx, rows, sync.Name, sync.Target)
	if errors.Is(err, queue.ErrNoSync) {
		plan, err = rows.Plan(ctx, nil)
	}
	if err != nil {
		return nil, err
	}
	users, err := CountUsers(plan)
	if err != nil {
		return nil, err
	}
	r := &LiveReport{}
	if r.Cost, err = n.ReadCost(ctx, users, cfg.Read.Engine.Rate); err != nil {
		return nil, err
	}
	cfg.OnCost(r.Cost)
	r.VerifyReport, err = Verify(ctx, nil, VerifyConfig{
		Read: cfg.Read, Plan: plan, Night: &queue.Night{Mirror: sync.Mirror, Clear: sync.Clear}, Write: func(*Difference) error { return nil }, OnUnread: cfg.OnUnread,
	})
	return r, err
}

// A DifferenceWriter writes differences as they are found: as text, [CSV] or [JSONL]; or the report with all of them, as json.
type DifferenceWriter struct {
	format string
	out    *bufio.Writer
	csv    *csv.Writer
	json   *json.Encoder
	any    bool // differences, as json
}

// NewDifferenceWriter returns a writer. Close has to be called.
func NewDifferenceWriter(w io.Writer, format string) *DifferenceWriter {
	d := &DifferenceWriter{format: format, out: bufio.NewWriterSize(w, 64<<10)}
	d.csv, d.json = csv.NewWriter(d.out), json.NewEncoder(d.out)
	d.json.SetEscapeHTML(false)
	switch format {
	case CSV:
		_ = d.csv.Write(differenceColumns) // the error comes again
	case "json":
		d.out.WriteString(`{"differences":[`)
	}
	return d
}

// Write writes a difference.
func (w *DifferenceWriter) Write(d *Difference) error {
	switch w.format {
	case CSV:
		return w.csv.Write(d.fields())
	case JSONL:
		return w.json.Encode(d)
	case "json":
		b, err := json.Marshal(d)
		if w.any {
			w.out.WriteString(",")
		}
		w.any = true
		w.out.WriteString("\n")
		w.out.Write(b) // its error comes again
		return err
	}
	at := ""
	if d.Line > 0 {
		at = fmt.Sprintf("%s:%d: ", d.File, d.Line)
	}
	_, err := fmt.Fprintf(w.out, "%s%s: %s in %q of %s: %s\n", at, d.Code, d.ToAccount+d.ToGroupID, d.GroupName, d.FromAccount, d.Reason)
	return err
}

// Close ends the list, and writes the report if it is json.
func (w *DifferenceWriter) Close(r *VerifyReport) error {
	if w.format == "json" {
		w.out.WriteString("\n],\n\"report\":")
		_ = w.json.Encode(r) // the error comes again
		w.out.WriteString("}\n")
	}
	w.csv.Flush()
	return cmp.Or(w.csv.Error(), w.out.Flush())
}
