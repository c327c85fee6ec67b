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
	restarted    bool      // the group was gone in between
	needsCheck   bool      // only reading the group tells what it holds
	maybeCreated bool      // by a create without a response
	lateUntil    time.Time // until then it may take effect
}

// newAttempt starts an attempt with what earlier ones of the job took. It reads nothing of the job yet.
func newAttempt(w *Worker, d Delivery, now time.Time) *attempt {
	earlier := w.spentOn(d)
	if earlier.started.IsZero() {
		earlier.started = now
	}
	return &attempt{
		w: w, d: d, made: d.Attempt(), calls: earlier.calls, started: earlier.started, needsCheck: earlier.needsCheck,
		lateUntil: w.earlierUntil(d),
		result:    job.Result{Import: d.Import(), Job: sequenceName(d.Sequence()), Started: earlier.started},
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
		Generation: j.Generation, Replaces: j.Prior, Started: a.started,
		Conversations: make([]job.ConversationResult, len(j.Conversations)),
	}
	a.known, a.todo = make([]bool, len(j.Conversations)), make([]int, len(j.Conversations))
	for i, c := range j.Conversations {
		a.result.Conversations[i].Conversation = c
		a.todo[i] = i
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

// resume makes the attempt continue from the result of an earlier generation: of the job's conversations those are sent
// that failed then; all others keep what the earlier result says.
func (a *attempt) resume(before *job.Result) {
	wanted := map[chat.Item]bool{}
	for _, c := range a.result.Conversations {
		wanted[chat.Item{Type: c.Type, ID: c.ID}] = true
	}
	a.before = before
	a.result.Started, a.result.GroupID = before.Started, before.GroupID
	a.result.Conversations = slices.Clone(before.Conversations)
	a.known, a.todo = make([]bool, len(before.Conversations)), nil
	for i, c := range before.Conversations {
		if c.Code != "" && wanted[chat.Item{Type: c.Type, ID: c.ID}] {
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
	return len(a.before.Conversations) - a.before.FailedConversations()
}

// final returns the result with the attempts and calls of all generations.
func (a *attempt) final() job.Result {
	r := a.result
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
