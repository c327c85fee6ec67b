package app

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"groupferry/internal/broker"
	"groupferry/internal/chat"
	"groupferry/internal/governor"
	"groupferry/internal/queue"
	"groupferry/worker"
)

// A trial of the doctor writes into groups of a user who has none, and finds out what no document says of the API:
//
//	no groups? ─► record in NATS ─► worker.Trial ─► what is known, for workers ─► groups deleted ─► record gone
//
// The record names the user and the groups before the first of them is made. Whoever finds one, killed or not, deletes these
// groups first: the next trial, for whatever user. Two trials cannot run at once, for each has the lease of the leader.

// A Trial is what a trial found. Its JSON form is read by programs.
type Trial struct {
	worker.TrialResult
	Kept bool `json:"kept"` // workers use it
}

// A trialRecord says what a trial may have left.
type trialRecord struct {
	Version int       `json:"v"`
	App     queue.App `json:"app"`
	Address string    `json:"address"`
	Account string    `json:"account"`
	Groups  string    `json:"groups"` // what their names begin with
	Host    string    `json:"host"`
	Since   time.Time `json:"since"`
}

const trialVersion = 1

// groupsPrefix begins the names of all groups of trials, so that a person who sees one knows where it is from.
const groupsPrefix = "groupferry-doctor-"

// cleanLimit is how long it may take to delete what a trial wrote, also after a stop.
const cleanLimit = time.Minute

// trialLeft is how long the calls of a killed process may still take effect. Tests that know better set it.
var trialLeft = broker.FailTime("GROUPFERRY_TRIAL_LEFT", worker.TrialLeft)

// Names of findings.
const (
	tryAccount = "try-account"
	leftovers  = "leftovers"
)

// trialObserver passes each call of a trial, for tests that kill the process there.
type trialObserver struct{ worker.Observer }

func (o trialObserver) CallDone(command, code string, took time.Duration) {
	o.Observer.CallDone(command, code, took)
	broker.Failpoint("trial-call")
}

// newTrial makes a trial on the groups of a record.
func (d *doctor) newTrial(e *Engine, pace *governor.Governor, r *trialRecord) *worker.Trial {
	cfg := e.workerConfig()
	cfg.Observer = trialObserver{cfg.Observer}
	if !d.offers[chat.UpdateContactGroup] {
		cfg.Known.NoUpdateAt = time.Now()
	}
	return worker.NewTrial(cfg, e.cfg.API, pace, r.Account, r.Groups)
}

// trial makes the trial, if one is asked for, and removes what an earlier one left. The process has led since then.
func (d *doctor) trial(ctx context.Context, stop <-chan struct{}, e *Engine, pace *governor.Governor, since time.Time) error {
	left, err := d.ns.leftTrial(ctx)
	if err != nil {
		d.add(leftovers, Failed, err.Error(), d.natsRemedy(err))
		return nil
	}
	if left != nil && d.cfg.TryAccount == "" {
		d.add(leftovers, Warning, fmt.Sprintf("a trial on %s since %s did not end: user %s may have groups that begin with %s",
			left.Host, left.Since.Local().Format(time.DateTime), left.Account, left.Groups),
			"call '"+d.cfg.Command+" --try-account "+left.Account+"': it deletes them first")
		return nil
	}
	if d.cfg.TryAccount == "" {
		return nil
	}
	if left != nil && (left.App != e.cfg.App || left.Address != e.cfg.API.Address()) {
		d.add(leftovers, Failed, fmt.Sprintf("a trial with another API, %v at %s, did not end: user %s may have groups that begin with %s",
			left.App, left.Address, left.Account, left.Groups), "call doctor with that API and --try-account first")
		return nil
	}
	if why, remedy := d.refuseTrial(); why != "" {
		d.add(tryAccount, Failed, why, remedy)
		return nil
	}
	if left != nil {
		// The calls of a process that was killed just before the lease was taken may still take effect.
		if !d.clean(ctx, e, pace, left, since.Add(trialLeft), leftovers) {
			return nil
		}
		d.ok(leftovers, "the groups of an earlier trial are deleted")
	}
	b := make([]byte, 3)
	rand.Read(b)
	r := &trialRecord{trialVersion, e.cfg.App, e.cfg.API.Address(), d.cfg.TryAccount, groupsPrefix + hex.EncodeToString(b), e.cfg.Host, time.Now().UTC()}
	t := d.newTrial(e, pace, r)
	empty, err := d.isEmpty(ctx, t)
	if err != nil || !empty {
		return err
	}
	if err := d.ns.keepTrial(ctx, r); err != nil {
		d.add(tryAccount, Failed, err.Error(), d.natsRemedy(err))
		return nil
	}
	broker.Failpoint("trial-recorded")

	working, cancel := context.WithCancel(ctx)
	defer cancel()
	stopped := make(chan struct{})
	defer close(stopped)
	go func() { // the call under way may end
		select {
		case <-stop:
			select {
			case <-time.After(readGrace):
				cancel()
			case <-stopped:
			}
		case <-stopped:
		}
	}()
	result, err := t.Run(working, d.cfg.Admin, func() bool { return isClosed(stop) })
	if err == nil {
		d.report.Trial = &Trial{TrialResult: result}
		kerr := d.ns.keepLearned(ctx, e, result, d.offers)
		d.report.Trial.Kept = kerr == nil
		d.found(&result, kerr)
	} else if !isClosed(stop) && ctx.Err() == nil {
		d.add(tryAccount, Failed, err.Error(), "what it wrote is being deleted; call '"+d.cfg.Command+"' again")
	}
	broker.Failpoint("trial-known")
	cleaning, endCleaning := context.WithTimeout(ctx, cleanLimit)
	defer endCleaning()
	if d.cleanWith(cleaning, t, time.Time{}, r, tryAccount) && err == nil {
		d.ok(tryAccount, "the groups of the trial are deleted: user %s has none", r.Account)
	}
	return nil
}

// refuseTrial says why a trial cannot be made, before it writes anything.
func (d *doctor) refuseTrial() (why, remedy string) {
	for _, c := range []chat.Command{chat.CreateContactGroup, chat.GetContactGroup, chat.DelContactGroup} {
		if !d.offers[c] {
			return fmt.Sprintf("refused: %s is not offered, so nobody could see or delete what a trial writes", c), "leave --try-account out"
		}
	}
	if d.cfg.TryAccount == d.cfg.Admin {
		return "refused: it is the admin account", "name a throw-away user"
	}
	return "", ""
}

// isEmpty finds out whether the user is there, and has no group.
func (d *doctor) isEmpty(ctx context.Context, t *worker.Trial) (bool, error) {
	list, err := t.Groups(ctx)
	var unread *worker.Unread
	switch {
	case errors.As(err, &unread):
		d.add(tryAccount, Failed, "refused: the groups of the user cannot be read: "+unread.Error(), "name another user")
	case err != nil:
		return false, err
	case list.NoUser:
		d.add(tryAccount, Failed, "refused: the app has no user "+d.cfg.TryAccount,
			"import the account first, in the console or with v4/im_open_login_svc/account_import, or name another one")
	case len(list.Groups) > 0:
		groups := "1 group"
		if n := len(list.Groups); n > 1 {
			groups = fmt.Sprintf("%d groups", n)
		}
		d.add(tryAccount, Failed, "refused: the user has "+groups,
			"name a throw-away user, who has none: a trial writes")
	default:
		return true, nil
	}
	return false, nil
}

// found makes findings of what a trial found.
func (d *doctor) found(r *worker.TrialResult, kept error) {
	result, remedy := Fine, ""
	otherwise := "workers add with update_contact_group first"
	if !d.offers[chat.UpdateContactGroup] {
		otherwise = "workers read each group, and write it as a whole"
	}
	what := map[worker.Reading]string{
		worker.Append:  "adds to it: one call for each group",
		worker.Replace: "replaces what it holds: " + otherwise,
		worker.Refuse:  "refuses: " + otherwise,
		"":             "could not be found out: " + otherwise,
	}[r.Create]
	if r.Create == "" {
		result = Warning
	}
	if kept != nil {
		result, remedy = Warning, d.natsRemedy(kept)
		what += "; not kept for workers: " + kept.Error()
	}
	d.add("create", result, "to a group that exists, create "+what, remedy)
	names := map[worker.Names]string{
		worker.ExactNames:  "names that differ in case or Unicode form are different groups",
		worker.FoldedNames: "names that differ in case or Unicode form only are one group: give a group the same name each time",
		"":                 "whether names that differ in case are one group could not be found out",
	}[r.Names]
	d.add("names", map[bool]string{true: Fine, false: Warning}[r.Names != ""], names, "")
	missing := r.UpdateMissing
	if missing == "" {
		missing = "not tried"
	}
	d.ok("errors", "unknown user: %s; unknown group chat: %s; a group that does not exist: update: %s; del: %s",
		r.UnknownUser, r.UnknownGroup, missing, r.DeleteMissing)
	switch {
	case r.Page == 0:
		d.skip("page", "the API takes no conversation with an unknown user, so no long list can be made")
	case r.PageOrMore:
		d.ok("page", "a page of a list has %d conversations or more", r.Page)
	default:
		d.ok("page", "a page of a list has %d conversations", r.Page)
	}
}

// clean deletes what an earlier trial left.
func (d *doctor) clean(ctx context.Context, e *Engine, pace *governor.Governor, r *trialRecord, late time.Time, name string) bool {
	bounded, cancel := context.WithTimeout(ctx, cleanLimit)
	defer cancel()
	return d.cleanWith(bounded, d.newTrial(e, pace, r), late, r, name)
}

// cleanWith deletes the groups of a record, and the record with the last of them.
func (d *doctor) cleanWith(ctx context.Context, t *worker.Trial, late time.Time, r *trialRecord, name string) bool {
	err := t.Clean(ctx, late)
	broker.Failpoint("trial-clean")
	if err == nil {
		err = d.ns.SetTrial(ctx, nil)
	}
	broker.Failpoint("trial-end")
	if err != nil {
		d.add(name, Failed, fmt.Sprintf("user %s may have groups that begin with %s: %v", r.Account, r.Groups, err),
			"call '"+d.cfg.Command+"' again: it deletes them first")
		return false
	}
	return true
}

// leftTrial reads the record of a trial that did not end; nil if there is none.
func (n *Namespace) leftTrial(ctx context.Context) (*trialRecord, error) {
	b, err := n.Trial(ctx)
	if err != nil || b == nil {
		return nil, err
	}
	var r trialRecord
	if err := json.Unmarshal(b, &r); err != nil || r.Version != trialVersion {
		return nil, errors.New("the record of a trial is of another version of groupferry, or damaged")
	}
	return &r, nil
}

func (n *Namespace) keepTrial(ctx context.Context, r *trialRecord) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return n.SetTrial(ctx, b)
}

// keepLearned stores what a trial found where the next leader reads it.
func (n *Namespace) keepLearned(ctx context.Context, e *Engine, r worker.TrialResult, offers map[chat.Command]bool) error {
	known, err := e.knownAPI(ctx)
	if err != nil {
		return err
	}
	now := time.Now().Round(0)
	if r.Create != "" {
		known.Create, known.CreateAt = r.Create, now
	}
	if r.Names != "" {
		known.Names, known.NamesAt = r.Names, now
	}
	if known.NoUpdateAt = (time.Time{}); !offers[chat.UpdateContactGroup] {
		known.NoUpdateAt = now
	}
	known.NoGetAt, known.NoDeleteAt = time.Time{}, time.Time{} // a trial needs both
	b, err := json.Marshal(storedKnown{e.cfg.App, e.cfg.API.Address(), known})
	if err != nil {
		return err
	}
	return n.SetKnownAPI(ctx, b)
}
