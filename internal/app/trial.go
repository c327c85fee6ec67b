package app

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
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

// tagBytes is how many random bytes follow it, as text, so that no group of anybody else has such a name.
const tagBytes = 3

const (
	// trialLimit bounds a trial: while the API is out of reach, its calls are repeated. At one call a second it takes half a minute.
	trialLimit = 3 * time.Minute

	// cleanLimit is how long it may take to delete what a trial wrote, also after a stop.
	cleanLimit = time.Minute
)

// trialLeft is how long the calls of a killed process may still take effect, and trialSettle how late a write may be in a
// list. Tests that know better set them.
var (
	trialLeft   = broker.FailTime("GROUPFERRY_TRIAL_LEFT", worker.TrialLeft)
	trialSettle = broker.FailTime("GROUPFERRY_TRIAL_LEFT", worker.TrialSettle)
)

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
	t := worker.NewTrial(cfg, e.cfg.API, pace, r.Account, r.Groups)
	t.Settle = trialSettle
	return t
}

// trial makes the trial, if one is asked for, and removes what an earlier one left. The process has led since then.
func (d *doctor) trial(ctx context.Context, stop <-chan struct{}, e *Engine, pace *governor.Governor, since time.Time) error {
	left, revision, err := d.ns.leftTrial(ctx)
	if err != nil {
		d.add(leftovers, Failed, err.Error(), cmp.Or(d.recordRemedy(err), d.natsRemedy(err)))
		return nil
	}
	d.recordRevision = revision
	serious := Failed
	if d.cfg.TryAccount == "" {
		serious = Warning
	}
	switch {
	case left != nil && (left.App != e.cfg.App || left.Address != e.cfg.API.Address()):
		d.add(leftovers, serious, fmt.Sprintf("a trial with another API, %v at %s, did not end: user %s may have groups that begin with %s",
			left.App, left.Address, left.Account, left.Groups),
			fmt.Sprintf("call doctor with --api-url %s --sdk-app-id %d --try-account and the key of that app, or name another namespace with %s",
				left.Address, left.App.SDKAppID, d.cfg.Named("namespace")))
		return nil
	case left != nil && d.cfg.TryAccount == "":
		d.add(leftovers, serious, fmt.Sprintf("a trial on %s since %s did not end: user %s may have groups that begin with %s",
			left.Host, left.Since.Local().Format(time.DateTime), left.Account, left.Groups),
			"call '"+d.cfg.Command("--try-account", left.Account)+"': it deletes them first")
		return nil
	case d.cfg.TryAccount == "":
		return nil
	}
	if why, remedy := d.refuseTrial(); why != "" {
		d.add(tryAccount, Failed, why, remedy)
		return nil
	}
	if left != nil {
		// The calls of a process that was killed just before the lease was taken may still take effect.
		if !d.cleanWith(ctx, d.newTrial(e, pace, left), since.Add(trialLeft), left, leftovers) {
			return nil
		}
		d.ok(leftovers, "the groups of an earlier trial are deleted")
	}
	b := make([]byte, tagBytes)
	rand.Read(b)
	r := &trialRecord{trialVersion, e.cfg.App, e.cfg.API.Address(), d.cfg.TryAccount, groupsPrefix + hex.EncodeToString(b), e.cfg.Host, time.Now().UTC()}
	t := d.newTrial(e, pace, r)
	empty, err := d.isEmpty(ctx, t)
	if err != nil || !empty {
		return err
	}
	if err := d.keepTrial(ctx, r); err != nil {
		d.add(tryAccount, Failed, err.Error(), d.natsRemedy(err))
		return nil
	}
	broker.Failpoint("trial-recorded")

	limit := cmp.Or(d.cfg.trialLimit, trialLimit)
	working, cancel := context.WithTimeout(ctx, limit)
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
		d.add(tryAccount, Failed, inTime(working, limit, err).Error(), "what it wrote is being deleted; call '"+d.cfg.Command()+"' again")
	}
	broker.Failpoint("trial-known")
	if d.cleanWith(ctx, t, time.Time{}, r, tryAccount) && err == nil {
		d.ok(tryAccount, "the groups of the trial are deleted: user %s has none of them", r.Account)
	}
	return nil
}

// refuseTrial says why a trial cannot be made, before it writes anything.
func (d *doctor) refuseTrial() (why, remedy string) {
	for _, c := range chat.Commands() {
		if f := d.failures[c]; f != nil && !f.NotOffered() {
			return fmt.Sprintf("refused: %s does not work (%s), and workers would learn something that is not so", c, f.Reason()),
				"do what is said above, then call '" + d.cfg.Command() + "' again"
		}
	}
	for _, c := range []chat.Command{chat.CreateContactGroup, chat.GetContactGroup, chat.DelContactGroup} {
		if !d.offers[c] {
			return fmt.Sprintf("refused: %s is not offered, so nobody could see or delete what a trial writes", c), "leave --try-account out"
		}
	}
	if strings.EqualFold(d.cfg.TryAccount, d.cfg.Admin) {
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
		result, remedy = Warning, "none is needed: it costs a call more for each group. To have it tried again, call '"+d.cfg.Command()+"'"
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
	if r.Names != "" {
		d.ok("names", "%s", names)
	} else {
		d.add("names", Warning, names, "give a group the same name each time")
	}
	missing := r.UpdateMissing
	if missing == "" {
		missing = "not tried"
	}
	d.ok("errors", "unknown user: %s; unknown group chat: %s; a group that does not exist: update: %s; del: %s",
		r.UnknownUser, r.UnknownGroup, missing, r.DeleteMissing)
	switch {
	case r.Page == 0:
		d.skip("page", "no list that is long enough could be made: the API takes no conversation with an unknown user, or lists none")
	case r.PageOrMore:
		d.ok("page", "a page of a list has %d conversations or more", r.Page)
	default:
		d.ok("page", "a page of a list has %d conversations", r.Page)
	}
}

// cleanWith deletes the groups of a record, and the record with the last of them.
func (d *doctor) cleanWith(ctx context.Context, t *worker.Trial, late time.Time, r *trialRecord, name string) bool {
	limit := cmp.Or(d.cfg.cleanLimit, cleanLimit)
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := inTime(bounded, limit, t.Clean(bounded, late))
	broker.Failpoint("trial-clean")
	if err == nil {
		err = d.keepTrial(ctx, nil)
	}
	broker.Failpoint("trial-end")
	if err != nil {
		d.add(name, Failed, fmt.Sprintf("user %s may have groups that begin with %s: %v", r.Account, r.Groups, err),
			"call '"+d.cfg.Command()+"' again: it deletes them first")
		return false
	}
	return true
}

// inTime is err, or says that the time was up if that is why.
func inTime(ctx context.Context, limit time.Duration, err error) error {
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("not ended within %v: the API did not respond, or too slowly", limit)
	}
	return err
}

var (
	errNewerRecord   = errors.New("the record of a trial is of another version of groupferry")
	errDamagedRecord = errors.New("the record of a trial is damaged: nobody knows which user has groups of it")
)

// recordRemedy says what to do about a record that says nothing.
func (d *doctor) recordRemedy(err error) string {
	switch {
	case errors.Is(err, errNewerRecord):
		return "call doctor of that version with --try-account"
	case errors.Is(err, errDamagedRecord):
		return "delete the groups that begin with " + groupsPrefix + " of the user that was tried, or name another namespace with " + d.cfg.Named("namespace")
	}
	return ""
}

// leftTrial reads the record of a trial that did not end, nil if there is none, and its revision. What is no record of a trial
// names no user and no group, whatever is in it.
func (n *Namespace) leftTrial(ctx context.Context) (*trialRecord, uint64, error) {
	b, revision, err := n.Trial(ctx)
	if err != nil || b == nil {
		return nil, revision, err
	}
	var r trialRecord
	if err := json.Unmarshal(b, &r); err == nil && r.Version > trialVersion {
		return nil, revision, errNewerRecord
	}
	tag, ours := strings.CutPrefix(r.Groups, groupsPrefix)
	if _, err := hex.DecodeString(tag); err != nil || !ours || len(tag) != 2*tagBytes || r.Version != trialVersion || !chat.ValidUserID(r.Account) {
		return nil, revision, errDamagedRecord
	}
	return &r, revision, nil
}

// keepTrial writes the record; nil says that nothing is left. It fails if another process wrote one since this one read it.
func (d *doctor) keepTrial(ctx context.Context, r *trialRecord) error {
	var b []byte
	if r != nil {
		var err error
		if b, err = json.Marshal(r); err != nil {
			return err
		}
	}
	revision, err := d.ns.SetTrial(ctx, b, d.recordRevision)
	if err == nil {
		d.recordRevision = revision
	}
	return err
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
