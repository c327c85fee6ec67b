package worker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/governor"
	"groupferry/internal/job"
)

// What create_contact_group does to a group that exists is not documented: it may append, replace, or refuse. The
// plan below ends in the same state under each of the three, also when a job is done twice:
//
//   - The first chunk goes out with create. Once a group is known to be there, all else is added with
//     update_contact_group, conversations that are sent a second time included: a second create could replace them.
//   - Where create is refused for what may be the group's existence, the same chunk goes out with update. If that is
//     refused as well, the response to create stands.
//   - A retry adds what failed before with update, if the group was there then. Where update is not offered it writes the
//     whole group with create, and reads it back.
//   - Where update is not offered, later chunks go out with create. Two creates of one group, or a refused one, then
//     leave it open what the group holds, so it is read back with get_contact_group, and what is not in it has failed.
//     Where even that is not offered, create's own responses have to do, and a warning says so.

// Codes of a result that no code of the API stands for.
const (
	CodeUnanswered = "unanswered" // the API took the call and said nothing about this conversation
	CodeNotInGroup = "not-in-group"
)

const (
	// A call that failed in a way that passes is made again after 0.2, 0.4, 0.8 and 1.6 s, give or take a quarter;
	// the fifth failure ends the attempt.
	callTries   = 5
	callBackoff = 200 * time.Millisecond

	// A code that no document names may be anything: three tries.
	unknownTries = 3

	// Conversations that failed in a way that may pass are sent again twice (51007: "retry twice, then permanent").
	resends = 2

	// A call that is not sent so many times in a row has found no way to the API: making a connection takes longer than a
	// permit holds. A process that is frozen, or a machine that is suspended, is so once or twice.
	unsentMost = 10

	// 60002, 60004 and 60005 halt when this many calls in a row ended so, over all jobs.
	repeatsToHalt = 5
)

var (
	// errAgain says that a job failed for now: a call failed as often as it may within one attempt.
	errAgain = errors.New("failed for now")

	// errNeedsAll says that a retry has to write the whole group anew, not only what failed before.
	errNeedsAll = errors.New("the whole group is needed")

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

	exists     bool // the group is known to exist
	creates    int  // creates that were answered well
	needsCheck bool // only reading the group tells what it holds
}

// newAttempt starts an attempt with what earlier ones of the job took. It reads nothing of the job yet.
func newAttempt(w *Worker, d Delivery, now time.Time) *attempt {
	earlier := w.spentOn(d)
	if earlier.started.IsZero() {
		earlier.started = now
	}
	return &attempt{
		w: w, d: d, made: d.Attempt(), calls: earlier.calls, started: earlier.started,
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
		Import: j.Import, Job: j.ID, FromAccount: j.FromAccount, GroupName: j.GroupName, Files: j.Files,
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
// that failed then; all others keep what the earlier result says. A group that is known to exist is added to.
func (a *attempt) resume(before *job.Result) {
	wanted := map[chat.Item]bool{}
	for _, c := range a.result.Conversations {
		wanted[chat.Item{Type: c.Type, ID: c.ID}] = true
	}
	a.before = before
	a.result.Started, a.result.GroupID, a.result.Files = before.Started, before.GroupID, before.Files
	a.result.Conversations = slices.Clone(before.Conversations)
	a.known, a.todo = make([]bool, len(before.Conversations)), nil
	for i, c := range before.Conversations {
		if c.Code != "" && wanted[chat.Item{Type: c.Type, ID: c.ID}] {
			a.todo = append(a.todo, i)
		} else {
			a.known[i] = true
		}
	}
	if before.GroupID != 0 || before.Outcome == job.Partial {
		a.exists, a.creates = true, 1
	}
}

// doneBefore counts the conversations that an earlier generation got into the group.
func (a *attempt) doneBefore() int {
	if a.before == nil {
		return 0
	}
	return len(a.before.Conversations) - a.before.FailedConversations()
}

// final gives the result with the attempts and calls of all generations.
func (a *attempt) final() job.Result {
	r := a.result
	r.Attempts, r.Calls = a.made, a.calls
	if a.before != nil {
		r.Attempts += a.before.Attempts
		r.Calls += a.before.Calls
	}
	return r
}

// run makes the calls of the job and sets the outcome. An error means that there is none: halted, ctx's end, the pace
// closed, or one that wraps errAgain.
func (a *attempt) run(ctx context.Context) error {
	todo := a.todo
	if a.before != nil && a.exists && a.w.noUpdate.Load() {
		todo = a.allConversations()
	}
	for pass := 0; len(todo) > 0; pass++ {
		if pass > 0 {
			if err := sleep(ctx, jittered(backoff(callBackoff, time.Second, pass))); err != nil {
				return err
			}
		}
		again, err := a.send(ctx, todo, pass == resends)
		if errors.Is(err, errNeedsAll) {
			todo, pass = a.allConversations(), -1
			continue
		}
		if err != nil {
			return err
		}
		todo = again
	}
	if a.needsCheck {
		if err := a.verify(ctx); err != nil {
			return err
		}
	}
	a.result.SetOutcome()
	return nil
}

// allConversations lists the conversations that the group should hold after a retry: where it cannot be added to, a
// create that replaces has to bring what was done before as well.
func (a *attempt) allConversations() []int {
	for _, i := range a.todo {
		a.known[i] = false
	}
	var all []int
	for i, c := range a.before.Conversations {
		if c.Code == "" || !a.known[i] {
			a.known[i] = false
			all = append(all, i)
		}
	}
	return all
}

// untouched tells whether a conversation is in the group since an earlier generation, and no create has been answered
// in this one that could have taken it out.
func (a *attempt) untouched(i int) bool {
	return a.before != nil && a.before.Conversations[i].Code == "" && a.creates <= 1
}

// send sends the conversations at the given places, chunk by chunk, and returns those to be sent again.
func (a *attempt) send(ctx context.Context, places []int, last bool) (again []int, err error) {
	for len(places) > 0 {
		n := min(len(places), a.w.cfg.ChunkSize)
		response, err := a.sendChunk(ctx, places[:n])
		if rejected, ok := rejection(err); ok {
			if endsJob(rejected) {
				n = len(places)
			}
			for _, i := range places[:n] {
				a.known[i] = true
				if a.untouched(i) {
					continue
				}
				a.result.Conversations[i].Code, a.result.Conversations[i].Info = rejected.Word(), rejected.Info
			}
			places = places[n:]
			continue
		}
		if err != nil {
			return nil, err
		}
		if response.GroupID != 0 {
			a.result.GroupID = response.GroupID
		}
		for k, i := range places[:n] {
			a.known[i] = true
			if a.note(&a.result.Conversations[i], response.Items[k], last) {
				again = append(again, i)
			}
		}
		places = places[n:]
	}
	return again, nil
}

// rejection tells whether err is the API's last word on a call. Everything else that a call returns is about now: the
// namespace is halted, the time is up, or the job should try again later.
func rejection(err error) (*chat.Error, bool) {
	e, ok := err.(*chat.Error) //nolint:errorlint // wrapped, it means something else; see call
	return e, ok
}

// endsJob tells whether a rejected chunk means that the rest of the job would be rejected too. A chunk that the API
// finds malformed says nothing about the others, and neither does a code that nobody knows.
func endsJob(e *chat.Error) bool {
	return e.Class() == chat.Permanent && e.Code != chat.CodeBadParameter
}

// note records what the API said about one conversation, and tells whether it should be sent again.
func (a *attempt) note(c *job.ConversationResult, r chat.ItemResult, last bool) (again bool) {
	if r.Answered && r.Code == 0 {
		c.Code, c.Info = "", ""
		return false
	}
	if !r.Answered {
		c.Code, c.Info = CodeUnanswered, "the response named other conversations, not this one"
		return !last
	}
	c.Code, c.Info = strconv.Itoa(r.Code), r.Info
	return !last && chat.ClassOf(r.Code) != chat.Permanent
}

// sendChunk makes the one call that writes a chunk, by the plan above. A *chat.Error says that the chunk is rejected
// for good.
func (a *attempt) sendChunk(ctx context.Context, chunk []int) (chat.Response, error) {
	items := make([]chat.Item, len(chunk))
	for k, i := range chunk {
		c := &a.result.Conversations[i]
		items[k] = chat.Item{Type: c.Type, ID: c.ID}
	}
	if a.exists && !a.w.noUpdate.Load() {
		response, err := a.update(ctx, items)
		switch rejected, ok := rejection(err); {
		case notOffered(err):
			a.w.missUpdate()
			if a.before != nil {
				return response, errNeedsAll
			}
		case ok && rejected.Code == chat.CodeNoSuchGroup && a.before != nil:
			a.exists, a.needsCheck = false, true // somebody deleted it since, with all that was done before
		default:
			return response, err
		}
	}
	return a.createOrAdd(ctx, items)
}

// createOrAdd writes a chunk of a group that is not known to exist.
func (a *attempt) createOrAdd(ctx context.Context, items []chat.Item) (chat.Response, error) {
	for try := 1; ; try++ {
		response, err := a.create(ctx, items)
		rejected, ok := rejection(err)
		if !ok || !mayExist(rejected) {
			return response, err
		}
		if a.w.noUpdate.Load() {
			a.needsCheck = true
			return response, err
		}
		added, uerr := a.update(ctx, items)
		if _, ok := rejection(uerr); !ok {
			return added, uerr
		}
		if notOffered(uerr) {
			a.w.missUpdate()
			a.needsCheck = true
			return response, err
		}
		if rejected.Class() != chat.Unknown || try == unknownTries {
			return response, err // neither would have it: the response to create stands
		}
		if err := sleep(ctx, jittered(backoff(callBackoff, time.Second, try))); err != nil {
			return response, err
		}
	}
}

// mayExist tells whether create may have been refused because the group is there. No document says with which code
// that would be, so it is any that does not plainly mean something else.
func mayExist(e *chat.Error) bool {
	return e.Code == chat.CodeBadParameter || e.Code == chat.CodeTooManyGroups || e.Code != 0 && e.Class() == chat.Unknown
}

func notOffered(err error) bool {
	e, ok := rejection(err)
	return ok && e.NotOffered()
}

func (a *attempt) create(ctx context.Context, items []chat.Item) (chat.Response, error) {
	req := chat.CreateRequest{FromAccount: a.result.FromAccount, GroupName: a.result.GroupName, Items: items}
	response, err := call(ctx, a, chat.CreateContactGroup, func(ctx context.Context) (chat.Response, error) {
		return a.w.api.Create(ctx, req)
	}, codeOf)
	if err == nil {
		a.exists = true
		if a.creates++; a.creates > 1 {
			a.needsCheck = true
		}
	}
	return response, err
}

func (a *attempt) update(ctx context.Context, items []chat.Item) (chat.Response, error) {
	req := chat.UpdateRequest{FromAccount: a.result.FromAccount, GroupName: a.result.GroupName, Add: items}
	response, err := call(ctx, a, chat.UpdateContactGroup, func(ctx context.Context) (chat.Response, error) {
		return a.w.api.Update(ctx, req)
	}, codeOf)
	if err == nil {
		a.exists = true
	}
	return response, err
}

// missUpdate notes that there is no update_contact_group, and says so once.
func (w *Worker) missUpdate() {
	if w.noUpdate.CompareAndSwap(false, true) {
		w.cfg.Log.Warn("update_contact_group is not offered here: groups of more than one call are written with create alone")
	}
}

// verify reads the group and corrects the result by it: what is in the group is done, what is not has failed.
func (a *attempt) verify(ctx context.Context) error {
	if a.w.noGet.Load() {
		return nil
	}
	members, err := a.read(ctx)
	if notOffered(err) {
		if a.w.noGet.CompareAndSwap(false, true) {
			a.w.cfg.Log.Warn("get_contact_group is not offered either: whether such groups are complete cannot be checked")
		}
		return nil
	}
	if rejected, ok := rejection(err); ok {
		return fmt.Errorf("%w: read the group back: %w", errAgain, rejected)
	}
	if err != nil {
		return err
	}
	for i := range a.result.Conversations {
		c := &a.result.Conversations[i]
		switch {
		case members[chat.Item{Type: c.Type, ID: c.ID}]:
			c.Code, c.Info = "", ""
		case c.Code == "":
			c.Code = CodeNotInGroup
			c.Info = "another call for the same group took it out again, or the API does not list it"
		}
	}
	return nil
}

// read returns what the group holds.
func (a *attempt) read(ctx context.Context) (map[chat.Item]bool, error) {
	members := map[chat.Item]bool{}
	var id int64
	known := false
	var listed []chat.Membership
	for start, complete := int64(0), false; !complete; {
		page, err := call(ctx, a, chat.GetContactGroup, func(ctx context.Context) (chat.Page, error) {
			return a.w.api.Get(ctx, a.result.FromAccount, start)
		}, nil)
		if err != nil {
			return nil, err
		}
		for group, name := range page.Groups {
			if name == a.result.GroupName {
				id, known = group, true
			}
		}
		listed = append(listed, page.Conversations...)
		complete = page.Complete || page.Next <= start
		start = page.Next
	}
	if !known {
		return members, nil
	}
	for _, m := range listed {
		if slices.Contains(m.GroupIDs, id) {
			members[m.Item] = true
		}
	}
	return members, nil
}

func codeOf(a chat.Response) string {
	for _, r := range a.Items {
		if !r.Answered || r.Code != 0 {
			return "partial"
		}
	}
	return "ok"
}

// call makes one call as often as it takes: it waits for a permit each time, goes slower when told to, signs again
// once, and tries again what may pass. A *chat.Error is the API's last word on it; it comes wrapped in errAgain when
// more tries may help later, and in a *governor.HaltedError when every job would fail the same way.
func call[A any](ctx context.Context, a *attempt, command chat.Command, do func(context.Context) (A, error), code func(A) string) (A, error) {
	var none A
	tries, unsent, renewed := 0, 0, false
	for {
		permit, err := a.w.pace.Acquire(ctx, string(command), a.result.FromAccount)
		if err != nil {
			return none, err
		}
		response, excused, err := callOnce(ctx, a, permit, command, unsent >= unsentMost, do, code)
		if err == nil {
			a.w.repeats.Store(0)
			return response, nil
		}
		if ctx.Err() != nil {
			return none, ctx.Err()
		}
		var e *chat.Error
		if !errors.As(err, &e) {
			return none, fmt.Errorf("%w: %w", errAgain, err)
		}
		class := e.Class()
		if e.Unsent() && unsent < unsentMost {
			unsent++
			continue // with another permit; it counts as no try
		}
		if class == chat.Throttle {
			continue
		}
		if class != chat.HaltRepeated {
			a.w.repeats.Store(0)
		}
		if !excused {
			tries++
		}
		again, err := a.repeat(e, command, tries, renewed)
		if !again {
			return none, err
		}
		if class == chat.Refresh {
			renewed = true
			continue
		}
		a.w.cfg.Observer.Retry(string(command))
		if err := sleep(ctx, jittered(backoff(callBackoff, 5*time.Second, max(0, tries-1)))); err != nil {
			return none, err
		}
	}
}

// callOnce makes one call under a permit. Excused says that a failure does not count, for there is an outage. Far tells
// that a call which is not sent again is one that found no way: see unsentMost.
func callOnce[A any](ctx context.Context, a *attempt, permit *governor.Permit, command chat.Command, far bool,
	do func(context.Context) (A, error), code func(A) string,
) (response A, excused bool, err error) {
	// What a panic leaves open may still arrive.
	outcome := governor.Cancelled
	defer func() { excused = permit.Done(outcome) }()

	start := time.Now()
	response, err = do(chat.WithDeadline(ctx, permit.EndBy(), permit.Sendable))
	took := time.Since(start)
	outcome = outcomeOf(ctx, err)
	if outcome == governor.Unsent {
		if far && ctx.Err() == nil {
			outcome = governor.Lost
		}
		return response, false, err
	}
	a.calls++
	var e *chat.Error
	switch {
	case err == nil && code != nil:
		a.w.cfg.Observer.CallDone(string(command), code(response), took)
	case err == nil:
		a.w.cfg.Observer.CallDone(string(command), "ok", took)
	case errors.As(err, &e):
		a.w.cfg.Observer.CallDone(string(command), e.Word(), took)
	}
	return response, false, err // excused is set by the deferred function
}

// outcomeOf tells the governor how a call ended.
func outcomeOf(ctx context.Context, err error) governor.Outcome {
	var e *chat.Error
	switch {
	case err == nil:
		return governor.Answered
	case !errors.As(err, &e):
		return governor.Cancelled // nobody knows whether it was sent
	case e.Unsent():
		return governor.Unsent
	case e.Class() == chat.Throttle:
		return governor.Throttled
	case e.Code != 0, e.NotOffered():
		return governor.Answered
	case e.Status == 0 && ctx.Err() != nil:
		return governor.Cancelled
	}
	return governor.Lost // HTTP 200 carries every response of the API; anything else came from something in between
}

// repeat decides what follows a call that failed: again, or the error to return. Tries counts the failures of this call
// that were not excused, this one included.
func (a *attempt) repeat(e *chat.Error, command chat.Command, tries int, renewed bool) (again bool, err error) {
	most := callTries
	switch class := e.Class(); {
	case e.NotOffered():
		if command == chat.CreateContactGroup {
			return false, a.halt(e)
		}
		return false, e
	case class == chat.Halt:
		return false, a.halt(e)
	case class == chat.Refresh:
		if renewed {
			return false, a.halt(e)
		}
		if err := a.w.api.Renew(); err != nil {
			return false, a.halt(fmt.Errorf("%w: %w", e, err))
		}
		return true, nil
	case class == chat.HaltRepeated:
		if a.w.repeats.Add(1) >= repeatsToHalt {
			return false, a.halt(e)
		}
	case class == chat.Permanent:
		return false, e
	case class == chat.ItemRetry:
		if tries >= 1+resends {
			return false, e
		}
	case class == chat.Unknown && e.Code != 0:
		if tries >= unknownTries || command == chat.CreateContactGroup {
			return false, e
		}
	}
	if tries >= most {
		return false, fmt.Errorf("%w: %w", errAgain, e)
	}
	return true, nil
}

func (a *attempt) halt(cause error) error {
	a.w.pace.Halt(cause)
	return &governor.HaltedError{Cause: cause}
}

// giveUp makes the failure of the last attempt final.
func (a *attempt) giveUp(err error) {
	var e *chat.Error
	code, info := chat.WordNetwork, err.Error()
	if errors.As(err, &e) {
		code, info = e.Word(), e.Info
		if info == "" {
			info = e.Error()
		}
	}
	a.fail(code, info)
}

// fail sets the outcome of a job that ended before its end. What a response said holds; the rest failed with code. A job
// that could not be read has no conversations, and fails as a whole.
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

// backoff doubles from first with each step, up to most.
func backoff(first, most time.Duration, step int) time.Duration {
	if step > 20 {
		return most
	}
	return min(most, first<<step)
}

// jittered spreads d by a quarter to either side, so that what failed together does not come back together.
func jittered(d time.Duration) time.Duration {
	return d*3/4 + rand.N(d/2+1)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
