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
//     refused as well, the answer to create stands.
//   - A retry adds what failed before with update, if the group was there then. Where update is not offered it writes the
//     whole group with create, and reads it back.
//   - Where update is not offered, later chunks go out with create. Two creates of one group, or a refused one, then
//     leave it open what the group holds, so it is read back with get_contact_group, and what is not in it has failed.
//     Where even that is not offered, create's own answers have to do, and a warning says so.

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

	// 60002, 60004 and 60005 halt when this many calls in a row ended so, over all jobs.
	repeatsToHalt = 5
)

// errAgain says that a job failed for now: a call failed as often as it may within one attempt.
var errAgain = errors.New("failed for now")

// errWhole says that a retry has to write the whole group anew, not only what failed before.
var errWhole = errors.New("the whole group is needed")

// An attempt is one delivery of a job, on its way to a result.
type attempt struct {
	w       *Worker
	result  job.Result // but for what final adds
	settled []bool     // by conversation: an answer said what became of it
	todo    []int      // the conversations to be sent

	made, calls int         // of this round: deliveries with this one, and calls
	started     time.Time   // of this round
	before      *job.Result // of an earlier round; nil in the first

	there   bool // the group is known to exist
	creates int  // creates that were answered well
	doubt   bool // only reading the group tells what it holds
}

func newAttempt(w *Worker, j job.Job, started time.Time, earlier attempts) *attempt {
	a := &attempt{
		w: w, settled: make([]bool, len(j.Conversations)), todo: make([]int, len(j.Conversations)),
		made: earlier.made + 1, calls: earlier.calls, started: started,
		result: job.Result{
			Import: j.Import, Job: j.ID, FromAccount: j.FromAccount, GroupName: j.GroupName, Files: j.Files, Round: j.Round,
			Started: started, Conversations: make([]job.ConversationResult, len(j.Conversations)),
		},
	}
	for i, c := range j.Conversations {
		a.result.Conversations[i].Conversation = c
		a.todo[i] = i
	}
	return a
}

// goOn makes the attempt one of a retry, which goes on from the result of an earlier round: of the job's conversations
// those are sent that failed then; all others keep what the earlier result says. A group that is known to be there is
// added to.
func (a *attempt) goOn(earlier job.Result) {
	wanted := map[chat.Item]bool{}
	for _, c := range a.result.Conversations {
		wanted[chat.Item{Type: c.Type, ID: c.ID}] = true
	}
	a.before = &earlier
	a.result.Started, a.result.GroupID, a.result.Files = earlier.Started, earlier.GroupID, earlier.Files
	a.result.Conversations = slices.Clone(earlier.Conversations)
	a.settled, a.todo = make([]bool, len(earlier.Conversations)), nil
	for i, c := range earlier.Conversations {
		if c.Code != "" && wanted[chat.Item{Type: c.Type, ID: c.ID}] {
			a.todo = append(a.todo, i)
		} else {
			a.settled[i] = true
		}
	}
	if earlier.GroupID != 0 || earlier.Outcome == job.Partial {
		a.there, a.creates = true, 1
	}
}

// doneBefore counts the conversations that an earlier round got into the group.
func (a *attempt) doneBefore() int {
	if a.before == nil {
		return 0
	}
	return len(a.before.Conversations) - a.before.FailedConversations()
}

// final gives the result with the attempts and calls of all rounds.
func (a *attempt) final() job.Result {
	r := a.result
	r.Attempts, r.Calls = a.made, a.calls
	if a.before != nil {
		r.Attempts += a.before.Attempts
		r.Calls += a.before.Calls
	}
	return r
}

// run makes the calls of the job and settles its result. An error means that there is none: halted, ctx's end, or
// one that wraps errAgain.
func (a *attempt) run(ctx context.Context) error {
	todo := a.todo
	if a.before != nil && a.there && a.w.noUpdate.Load() {
		todo = a.whole()
	}
	for round := 0; len(todo) > 0; round++ {
		if round > 0 {
			if err := sleep(ctx, jittered(backoff(callBackoff, time.Second, round))); err != nil {
				return err
			}
		}
		again, err := a.send(ctx, todo, round == resends)
		if errors.Is(err, errWhole) {
			todo, round = a.whole(), -1
			continue
		}
		if err != nil {
			return err
		}
		todo = again
	}
	if a.doubt {
		if err := a.verify(ctx); err != nil {
			return err
		}
	}
	a.result.Settle()
	return nil
}

// whole lists the conversations that the group should hold after a retry: where it cannot be added to, a create that
// replaces has to bring what was done before as well.
func (a *attempt) whole() []int {
	for _, i := range a.todo {
		a.settled[i] = false
	}
	var all []int
	for i, c := range a.before.Conversations {
		if c.Code == "" || !a.settled[i] {
			a.settled[i] = false
			all = append(all, i)
		}
	}
	return all
}

// untouched tells whether a conversation is in the group since an earlier round, and no create has been answered in
// this one that could have taken it out.
func (a *attempt) untouched(i int) bool {
	return a.before != nil && a.before.Conversations[i].Code == "" && a.creates <= 1
}

// send sends the conversations at the given places, chunk by chunk, and returns those to be sent again.
func (a *attempt) send(ctx context.Context, places []int, last bool) (again []int, err error) {
	for len(places) > 0 {
		n := min(len(places), a.w.cfg.ChunkSize)
		answer, err := a.sendChunk(ctx, places[:n])
		if refused, ok := refusal(err); ok {
			if endsJob(refused) {
				n = len(places)
			}
			for _, i := range places[:n] {
				a.settled[i] = true
				if a.untouched(i) {
					continue
				}
				a.result.Conversations[i].Code, a.result.Conversations[i].Info = refused.Word(), refused.Info
			}
			places = places[n:]
			continue
		}
		if err != nil {
			return nil, err
		}
		if answer.GroupID != 0 {
			a.result.GroupID = answer.GroupID
		}
		for k, i := range places[:n] {
			a.settled[i] = true
			if a.note(&a.result.Conversations[i], answer.Items[k], last) {
				again = append(again, i)
			}
		}
		places = places[n:]
	}
	return again, nil
}

// refusal tells whether err is the API's last word on a call. Everything else that a call returns is about now: the
// fleet is halted, the time is up, or the job should try again later.
func refusal(err error) (*chat.Error, bool) {
	e, ok := err.(*chat.Error) //nolint:errorlint // wrapped, it means something else; see call
	return e, ok
}

// endsJob tells whether a refused chunk means that the rest of the job would be refused too. A chunk that the API
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
		c.Code, c.Info = CodeUnanswered, "the answer named other conversations, not this one"
		return !last
	}
	c.Code, c.Info = strconv.Itoa(r.Code), r.Info
	return !last && chat.ClassOf(r.Code) != chat.Permanent
}

// sendChunk makes the one call that writes a chunk, by the plan above. A *chat.Error says that the chunk is refused
// for good.
func (a *attempt) sendChunk(ctx context.Context, chunk []int) (chat.Answer, error) {
	items := make([]chat.Item, len(chunk))
	for k, i := range chunk {
		c := &a.result.Conversations[i]
		items[k] = chat.Item{Type: c.Type, ID: c.ID}
	}
	if a.there && !a.w.noUpdate.Load() {
		answer, err := a.update(ctx, items)
		switch refused, ok := refusal(err); {
		case notOffered(err):
			a.w.missUpdate()
			if a.before != nil {
				return answer, errWhole
			}
		case ok && refused.Code == chat.CodeNoSuchGroup && a.before != nil:
			a.there, a.doubt = false, true // somebody deleted it since, with all that was done before
		default:
			return answer, err
		}
	}
	for try := 1; ; try++ {
		answer, err := a.create(ctx, items)
		refused, ok := refusal(err)
		if !ok || !mayExist(refused) {
			return answer, err
		}
		if a.w.noUpdate.Load() {
			a.doubt = true
			return answer, err
		}
		added, uerr := a.update(ctx, items)
		if _, ok := refusal(uerr); !ok {
			return added, uerr
		}
		if notOffered(uerr) {
			a.w.missUpdate()
			a.doubt = true
			return answer, err
		}
		if refused.Class() != chat.Unknown || try == unknownTries {
			return answer, err // neither would have it: the answer to create stands
		}
		if err := sleep(ctx, jittered(backoff(callBackoff, time.Second, try))); err != nil {
			return answer, err
		}
	}
}

// mayExist tells whether create may have been refused because the group is there. No document says with which code
// that would be, so it is any that does not plainly mean something else.
func mayExist(e *chat.Error) bool {
	return e.Code == chat.CodeBadParameter || e.Code == chat.CodeTooManyGroups || e.Code != 0 && e.Class() == chat.Unknown
}

func notOffered(err error) bool {
	e, ok := refusal(err)
	return ok && e.NotOffered()
}

func (a *attempt) create(ctx context.Context, items []chat.Item) (chat.Answer, error) {
	req := chat.CreateRequest{FromAccount: a.result.FromAccount, GroupName: a.result.GroupName, Items: items}
	answer, err := call(ctx, a, chat.CreateContactGroup, func(ctx context.Context) (chat.Answer, error) {
		return a.w.api.Create(ctx, req)
	}, worstOfItems)
	if err == nil {
		a.there = true
		if a.creates++; a.creates > 1 {
			a.doubt = true
		}
	}
	return answer, err
}

func (a *attempt) update(ctx context.Context, items []chat.Item) (chat.Answer, error) {
	req := chat.UpdateRequest{FromAccount: a.result.FromAccount, GroupName: a.result.GroupName, Add: items}
	answer, err := call(ctx, a, chat.UpdateContactGroup, func(ctx context.Context) (chat.Answer, error) {
		return a.w.api.Update(ctx, req)
	}, worstOfItems)
	if err == nil {
		a.there = true
	}
	return answer, err
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
	if refused, ok := refusal(err); ok {
		return fmt.Errorf("%w: read the group back: %w", errAgain, refused)
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

func worstOfItems(a chat.Answer) string {
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
func call[A any](ctx context.Context, a *attempt, command chat.Command, do func(context.Context) (A, error), word func(A) string) (A, error) {
	var none A
	tries, renewed := 0, false
	for {
		permit, err := a.w.pace.Acquire(ctx, string(command), a.result.FromAccount)
		if err != nil {
			return none, err
		}
		start := time.Now()
		answer, err := do(ctx)
		took := time.Since(start)
		a.calls++
		if err == nil {
			permit.Done(governor.Answered)
			a.w.repeats.Store(0)
			told := "ok"
			if word != nil {
				told = word(answer)
			}
			a.w.cfg.Observer.CallDone(string(command), told, took)
			return answer, nil
		}
		var e *chat.Error
		if ctx.Err() != nil || !errors.As(err, &e) {
			permit.Done(governor.Answered) // it may have reached the API, and says nothing about its health
			if ctx.Err() != nil {
				return none, ctx.Err()
			}
			return none, fmt.Errorf("%w: %w", errAgain, err)
		}
		a.w.cfg.Observer.CallDone(string(command), e.Word(), took)
		class := e.Class()
		if class != chat.HaltRepeated {
			a.w.repeats.Store(0)
		}
		most := callTries
		switch {
		case class == chat.Throttle:
			permit.Done(governor.Throttled)
			continue
		case e.NotOffered():
			permit.Done(governor.Answered)
			if command == chat.CreateContactGroup {
				return none, a.halt(e)
			}
			return none, e
		case e.Code == 0: // HTTP 200 carries every answer of the API; anything else came from something in between
			if !permit.Done(governor.Lost) {
				tries++
			}
		default:
			permit.Done(governor.Answered)
			tries++
		}
		switch class {
		case chat.Halt:
			return none, a.halt(e)
		case chat.Refresh:
			if renewed {
				return none, a.halt(e)
			}
			renewed = true
			if err := a.w.api.Renew(); err != nil {
				return none, a.halt(fmt.Errorf("%w: %w", e, err))
			}
			continue
		case chat.HaltRepeated:
			if a.w.repeats.Add(1) >= repeatsToHalt {
				return none, a.halt(e)
			}
		case chat.Permanent:
			return none, e
		case chat.ItemRetry:
			if most = 1 + resends; tries >= most {
				return none, e
			}
		case chat.Unknown:
			if e.Code != 0 && (tries >= unknownTries || command == chat.CreateContactGroup) {
				return none, e
			}
		}
		if tries >= most {
			return none, fmt.Errorf("%w: %w", errAgain, e)
		}
		a.w.cfg.Observer.Retry(string(command))
		if err := sleep(ctx, jittered(backoff(callBackoff, 5*time.Second, max(0, tries-1)))); err != nil {
			return none, err
		}
	}
}

func (a *attempt) halt(cause error) error {
	a.w.pace.Halt(cause)
	return &governor.HaltedError{Cause: cause}
}

// giveUp makes the failure of the last attempt final.
func (a *attempt) giveUp(err error) {
	var e *chat.Error
	code, info := "network", err.Error()
	if errors.As(err, &e) {
		code, info = e.Word(), e.Info
		if info == "" {
			info = e.Error()
		}
	}
	// What an answer said holds; the rest failed with the attempt.
	for i := range a.result.Conversations {
		if !a.settled[i] {
			a.result.Conversations[i].Code, a.result.Conversations[i].Info = code, info
		}
	}
	a.result.Settle()
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

func seqName(n uint64) string { return "seq-" + strconv.FormatUint(n, 10) }
