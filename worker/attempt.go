package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/job"
)

var (
	// errAgain says that a job failed for now: a call failed as often as it may within one attempt.
	errAgain = errors.New("failed for now")

	// errPrior says that the result which a retried job replaces could not be read.
	errPrior = errors.New("read the earlier result")

	// errUndecodable says that the message is no job that this binary can read.
	errUndecodable = errors.New("not a job of this version")
)

// An attempt is one delivery of a job, on its way to a result.
type attempt struct {
	w      *Worker
	d      Delivery
	result job.Result // but for what final adds
	known  []bool     // by conversation: a response said what became of it
	todo   []int      // the conversations to be sent

	made, calls int         // of this generation: attempts with this one, and calls
	started     time.Time   // of the first attempt of this generation
	before      *job.Result // of an earlier generation; nil in the first

	group        presence
	foundAt      time.Time // when that was found out; zero if it was not
	similar      bool      // there is one whose name differs in case or form only, which may be this one
	restarted    bool      // the group was gone in between
	anew         bool      // an earlier attempt began to create the group anew
	removesFirst bool      // the group has no room for what is added before what is removed is out
	full         bool      // the API said so of a conversation
	takesOut     bool      // the update that is being made, or the rename, which takes a name away
	deleting     int64     // the group that may have been deleted by now; 0 for none
	needsCheck   bool      // only reading the group tells what it holds
	maybeCreated bool      // by a create without a response
	lateUntil    time.Time // until then a call without a response may take out what a later one puts in
	openUntil    time.Time // until then one may take effect; only for a night
	night        bool
}

// newAttempt starts an attempt with what earlier ones of the job took. It reads nothing of the job yet.
func newAttempt(w *Worker, d Delivery, now time.Time) *attempt {
	earlier := w.spentOn(d)
	if earlier.started.IsZero() {
		earlier.started = now
	}
	return &attempt{
		w: w, d: d, made: d.Attempt(), calls: earlier.calls, started: earlier.started, needsCheck: earlier.needsCheck, anew: earlier.anew, deleting: earlier.deleting,
		lateUntil: w.earlierUntil(d), night: d.Night(),
		result: job.Result{Import: d.Import(), Job: sequenceName(d.Sequence()), Started: earlier.started},
	}
}

// prepare reads the job, and the result that it replaces if it is one of a retry. Its errors are errUndecodable,
// errPrior, or about ctx.
func (a *attempt) prepare(ctx context.Context) error {
	j, err := a.d.Job()
	if err != nil {
		return fmt.Errorf("%w: %w", errUndecodable, err)
	}
	a.result = job.Result{
		Import: j.Import, Job: j.ID, FromAccount: j.FromAccount, GroupName: j.GroupName,
		Generation: j.Generation, Replaces: j.Prior, Started: a.started, Rename: j.OldName, Delete: j.Delete,
		Conversations: make([]job.ConversationResult, 0, len(j.Conversations)),
	}
	for _, c := range j.Conversations {
		if c.Op == job.Keep {
			a.result.Keep = append(a.result.Keep, c)
		} else {
			a.append(job.ConversationResult{Conversation: c})
		}
	}
	if j.Delete {
		a.w.noteDelete(a.d, j.FromAccount)
		if a.d.Earlier() { // a deletion that takes effect once this job has its result would meet what others put there
			a.lateUntil = a.w.started.Add(LateTime)
		}
	}
	if j.Prior == 0 {
		return nil
	}
	before, err := a.d.Prior(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", errPrior, err)
	}
	if before != nil {
		a.resume(before)
	}
	return nil
}

// append adds a conversation to those that are to be sent.
func (a *attempt) append(c job.ConversationResult) {
	a.todo = append(a.todo, len(a.result.Conversations))
	a.known = append(a.known, false)
	a.result.Conversations = append(a.result.Conversations, c)
}

// resume makes the attempt continue from the result of an earlier generation: of the job's conversations those are sent
// that failed then; all others keep what the earlier result says.
func (a *attempt) resume(before *job.Result) {
	wanted := map[chat.Item]bool{}
	for _, c := range a.result.Conversations {
		wanted[itemOf(&c)] = true
	}
	a.before = before
	a.result.Started, a.result.GroupID, a.result.OldName, a.result.Anew = before.Started, before.GroupID, before.OldName, before.Anew
	a.result.Conversations = slices.Clone(before.Conversations)
	a.known, a.todo = make([]bool, len(before.Conversations)), nil
	for i, c := range before.Conversations {
		if c.Code != "" && wanted[itemOf(&c)] {
			a.todo = append(a.todo, i)
		} else {
			a.known[i] = true
		}
	}
}

// doneBefore counts the conversations that an earlier generation got into the group.
func (a *attempt) doneBefore() int {
	if a.before == nil {
		return 0
	}
	done, _ := count(a.before, job.Add)
	return done
}

// count counts the conversations of a result with an operation.
func count(r *job.Result, op job.Op) (done, failed int) {
	for i := range r.Conversations {
		switch c := &r.Conversations[i]; {
		case c.Op != op:
		case c.Code == "":
			done++
		default:
			failed++
		}
	}
	return done, failed
}

// wasDone reports whether an earlier generation did a conversation.
func (a *attempt) wasDone(i int) bool {
	return a.before != nil && i < len(a.before.Conversations) && a.before.Conversations[i].Code == ""
}

// pick returns those of some conversations that have an operation.
func (a *attempt) pick(places []int, op job.Op) (picked []int) {
	for _, i := range places {
		if a.result.Conversations[i].Op == op {
			picked = append(picked, i)
		}
	}
	return picked
}

// any reports whether one of some conversations has an operation.
func (a *attempt) any(places []int, op job.Op) bool {
	return slices.ContainsFunc(places, func(i int) bool { return a.result.Conversations[i].Op == op })
}

func itemOf(c *job.ConversationResult) chat.Item { return chat.Item{Type: c.Type, ID: c.ID} }

// final returns the result with the attempts and calls of all generations. What only a retry needs is in it if there may
// be one.
func (a *attempt) final() job.Result {
	r := a.result
	if r.Outcome == job.Done {
		r.Rename, r.Delete, r.Keep = "", false, nil
	}
	r.Attempts, r.Calls = a.made, a.calls
	if a.before != nil {
		r.Attempts += a.before.Attempts
		r.Calls += a.before.Calls
	}
	return r
}

// giveUp makes the failure of the last attempt final.
func (a *attempt) giveUp(err error) { a.fail(reasonOf(err)) }

// reasonOf gives the code and the text of a failure.
func reasonOf(err error) (code, info string) {
	var e *chat.Error
	if errors.As(err, &e) {
		return e.Reason(), cmp.Or(e.Info, e.Error())
	}
	return chat.ReasonNetwork, err.Error()
}

// fail sets the outcome of a job that ended before its end. What a response said holds; the rest failed with code. A
// job that could not be read has no conversations, and fails as a whole.
func (a *attempt) fail(code, info string) {
	if len(a.result.Conversations) == 0 {
		a.result.Outcome, a.result.Code, a.result.Info = job.Failed, code, info
		return
	}
	for i := range a.result.Conversations {
		if !a.known[i] {
			a.result.Conversations[i].Code, a.result.Conversations[i].Info = code, info
		}
	}
	a.result.SetOutcome()
}
