package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/job"
)

// The documents do not say what create_contact_group does to a group that exists: see [Reading]. Under each reading a
// group keeps what it holds, also what this job does not name:
//
//	group ──► update adds ─────────────────────────────► all else with update
//	             │ no such group                              ▲
//	             ▼                                            │
//	          create, with the first chunk ───────────────────┘
//
//   - Where create is known to append, it comes first, and saves the update. One job learns what it does, by two creates
//     and a read of a group that was not there before. (Another namespace that runs the same file at that moment can
//     mislead it: a namespace is the only one of its app.)
//   - Where update is not offered, the group is read, and create carries all of it: what it holds, and what is new, 100
//     conversations at most. What does not fit fails. A conversation that the group holds and the API no longer accepts
//     cannot be carried; that is logged.
//   - Where get is not offered either, a create could take out what is in the group and nobody would know. Then nothing is
//     sent, unless the user accepts that.
//   - What is known about a group is used for half a minute: somebody else may create or delete it.
//   - A retry adds what failed before. If the group is gone meanwhile, all of it is sent: also what the job keeps, which is
//     in the group as far as the sync knows. So a job that keeps something, or takes something out, makes an update first.
//   - What is taken out shares the updates with what is added, which comes first. It comes first itself, in calls of its own,
//     where the group may have no room for both. A conversation is out of a group that does not exist.
//   - If a call for a group had no response, the group is read in the end, and what is missing is sent again, or what is still
//     there. While a create without a response may still take effect, nothing else is sent to its group; nor is anything for
//     a job that an earlier leader may have made calls for, until these have taken effect. No job of a night has a
//     result while a call of its attempt may take effect, unless that ended in a panic: the next night may take out again
//     what the call puts in, or the other way round.
//
// Doing a job twice ends in the same state. One job at a time works on the groups of a user.

// Codes of a result that no code of the API stands for.
const (
	CodeNoResult     = "no-result" // the response has no result for this conversation
	CodeNotInGroup   = "not-in-group"
	CodeStillInGroup = "still-in-group"
	CodeNeedsUpdate  = "needs-update" // only update_contact_group could do it, and that is not offered
)

// ErrMayReplace says that nothing can be written without the risk that create takes out what is in a group.
var ErrMayReplace = errors.New("neither update_contact_group nor get_contact_group is offered here, and " +
	"create_contact_group may take out what a group of the same name holds, so nothing more is written")

var (
	// errNeedsAll says that a retry has to write the whole group anew, not only what failed before.
	errNeedsAll = errors.New("the whole group is needed")

	// errNoUpdate says that update is not offered.
	errNoUpdate = errors.New("update is not offered")

	// errStale says that what the job knew is too old, or not known in this process: it has to read the group again.
	errStale = errors.New("the group has to be read again")

	// errNoEnd says that the groups of a user cannot be read to the end.
	errNoEnd = errors.New("get_contact_group gives no end of the list")
)

const (
	// staleAfter is how long a group that was not found is taken as not there.
	staleAfter = 30 * time.Second

	// carries is how often a create that took out what a group held is repeated, to put that in again.
	carries = 10
)

// presence is what is known about a group.
type presence int

const (
	unknown presence = iota
	absent
	present
)

// run makes the calls of the job and sets the outcome. An error means that there is none: halted, ctx's end, the pace
// closed, [ErrMayReplace], or one that wraps errAgain.
func (a *attempt) run(ctx context.Context) error {
	free, err := a.lock(ctx)
	if err != nil {
		return err
	}
	defer free()
	err = a.write(ctx)
	if err == nil && a.needsCheck && !a.result.Deleted {
		err = a.check(ctx)
	}
	if errors.Is(err, errNoUpdate) { // in the middle: the next attempt knows
		err = errStale
	}
	if werr := a.waitForAll(ctx); err == nil {
		err = werr
	}
	if err == nil {
		err = a.passing()
	}
	if err != nil {
		return err
	}
	a.result.SetOutcome()
	return nil
}

// lock locks out the user's other jobs. Two jobs could find at the same time that a group does not exist, and both
// create it. And if one changed the user's groups between two pages of a read, the read would miss something.
func (a *attempt) lock(ctx context.Context) (free func(), err error) {
	for {
		free, wait := a.w.users.try(a.result.FromAccount)
		if free != nil {
			return free, nil
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// write does what the job asks for.
func (a *attempt) write(ctx context.Context) error {
	if ready, err := a.rename(ctx); !ready || err != nil {
		return err
	}
	if a.result.Delete {
		if err := a.deleteGroup(ctx); err != nil || a.result.Deleted {
			return err
		}
	}
	if err := a.continueAnew(ctx); err != nil {
		return err
	}
	a.removesFirst = len(a.result.Conversations)+len(a.result.Keep) > chat.MaxConversationsPerGroup
	if a.w.known.offers(chat.UpdateContactGroup) || a.w.known.harmless() && !a.any(a.todo, job.Remove) {
		err := a.sendAll(ctx, a.todo)
		if !errors.Is(err, errNoUpdate) {
			return err
		}
	}
	removes := a.pick(a.todo, job.Remove)
	a.set(removes, CodeNeedsUpdate, "only update_contact_group takes a conversation out of a group, and it is not offered")
	if a.todo = a.pick(a.todo, job.Add); len(a.todo) == 0 {
		return nil
	}
	if len(removes) > 0 && a.w.known.harmless() {
		return a.sendAll(ctx, a.todo)
	}
	return a.writeWhole(ctx)
}

// continueAnew sends what the job keeps, too, if an attempt before this one had begun to create the group anew, and may not
// have come to the end of it. Of an attempt by another process nothing is known; the group tells. Only a job that adds
// something, or renames the group, creates it.
func (a *attempt) continueAnew(ctx context.Context) error {
	if a.anew {
		a.restart()
		a.restarted = false
		return nil
	}
	if !a.d.Earlier() || len(a.result.Keep) == 0 || a.result.OldName == "" && !a.any(a.todo, job.Add) {
		return nil
	}
	members, err := a.find(ctx)
	switch {
	case unreadable(err):
		a.addKept(nil)
	case err != nil:
		return err
	case a.group == absent && a.any(a.todo, job.Add):
		a.restart()
	default:
		a.addKept(members)
	}
	return nil
}

// addKept adds what the job keeps to what is sent, but for what the group is known to hold.
func (a *attempt) addKept(held map[chat.Item]bool) {
	var left []job.Conversation
	for _, c := range a.result.Keep {
		if held[chat.Item{Type: c.Type, ID: c.ID}] {
			left = append(left, c)
			continue
		}
		c.Op = job.Add
		a.append(job.ConversationResult{Conversation: c, Kept: true})
	}
	a.result.Keep = left
}

// restart makes the attempt write the whole group anew, for it does not exist. What was to be taken out is out.
func (a *attempt) restart() {
	a.restarted, a.result.Anew = true, true
	a.done(a.pick(a.todo, job.Remove))
	a.addKept(nil)
	a.todo = a.allConversations()
}

// done records that conversations are as the job asks.
func (a *attempt) done(places []int) {
	for _, i := range places {
		c := &a.result.Conversations[i]
		a.known[i], c.Code, c.Info = true, "", ""
	}
}

// gone records that the group does not exist any more. Calls without a response made no difference.
func (a *attempt) gone() {
	a.done(a.todo)
	a.group, a.result.Deleted = absent, true
}

// canAdd reports whether a call can add to a group that exists.
func (a *attempt) canAdd() bool {
	return a.w.known.offers(chat.UpdateContactGroup) || a.w.known.harmless()
}

// sendAll sends conversations, and again those that failed in a way that may pass.
func (a *attempt) sendAll(ctx context.Context, todo []int) error {
	for pass := 0; len(todo) > 0; pass++ {
		if pass > 0 {
			if err := sleep(ctx, jittered(backoff(callBackoff, time.Second, pass))); err != nil {
				return err
			}
		}
		again, err := a.send(ctx, todo, pass == resends)
		if errors.Is(err, errNeedsAll) {
			if !a.any(a.todo, job.Add) {
				a.gone()
				return nil
			}
			a.restart()
			todo, pass = a.todo, -1
			continue
		}
		if err != nil {
			return err
		}
		todo, a.removesFirst = again, a.removesFirst || a.full
	}
	return nil
}

// allConversations lists the conversations that the group should hold in the end, to be sent all.
func (a *attempt) allConversations() []int {
	all := a.wanted()
	for _, i := range all {
		a.known[i] = false
	}
	return all
}

// wanted lists the conversations of the result that the group should hold in the end.
func (a *attempt) wanted() (all []int) {
	todo := map[int]bool{}
	for _, i := range a.todo {
		todo[i] = true
	}
	for i, c := range a.result.Conversations {
		if c.Op == job.Add && (todo[i] || c.Code == "") {
			all = append(all, i)
		}
	}
	return all
}

// send sends the conversations at the given places, chunk by chunk, and returns those to be sent again.
func (a *attempt) send(ctx context.Context, places []int, last bool) (again []int, err error) {
	for places = a.ordered(places); len(places) > 0; {
		n := min(len(places), a.w.cfg.ChunkSize)
		adds, removes := a.pick(places[:n], job.Add), a.pick(places[:n], job.Remove)
		if a.removesFirst && len(adds) > 0 && len(removes) > 0 {
			n, adds = len(removes), nil
		}
		response, err := a.sendChunk(ctx, a.items(adds), a.items(removes))
		if rejected, ok := rejection(err); ok {
			if rejected.Code == chat.CodeTooManyConversations && len(adds) > 0 && a.mayMakeRoom(places) {
				a.removesFirst = true
				places = a.ordered(places)
				continue
			}
			if endsJob(rejected) {
				n = len(places)
			}
			a.reject(places[:n], rejected)
			places = places[n:]
			continue
		}
		if err != nil {
			return nil, err
		}
		again = append(again, a.noteAll(places[:n], response, last)...)
		places = places[n:]
	}
	return again, nil
}

// ordered puts what is added before what is removed; or after it, where there may be no room for both.
func (a *attempt) ordered(places []int) []int {
	adds, removes := a.pick(places, job.Add), a.pick(places, job.Remove)
	if a.removesFirst {
		return append(removes, adds...)
	}
	return append(adds, removes...)
}

// mayMakeRoom reports whether a group that is full may not be once some conversations are removed.
func (a *attempt) mayMakeRoom(places []int) bool {
	return !a.removesFirst && a.any(places, job.Remove)
}

func (a *attempt) items(places []int) []chat.Item {
	items := make([]chat.Item, len(places))
	for k, i := range places {
		items[k] = itemOf(&a.result.Conversations[i])
	}
	return items
}

// rejection reports whether err is the API's final response to a call. Any other error is temporary: the namespace is
// halted, the time is up, or the job should be tried again later.
func rejection(err error) (*chat.Error, bool) {
	e, ok := err.(*chat.Error) //nolint:errorlint // wrapped, it means something else; see call
	return e, ok
}

// endsJob reports whether a rejected chunk means that the rest of the job would be rejected too. A chunk that the API
// finds malformed says nothing about the others, and neither does a code that nobody knows.
func endsJob(e *chat.Error) bool {
	return e.Class() == chat.Permanent && e.Code != chat.CodeBadParameter
}

// reject records that the API rejected a call with these conversations.
func (a *attempt) reject(places []int, e *chat.Error) {
	a.set(places, e.Reason(), e.Info)
}

// need records that only update could add these conversations.
func (a *attempt) need(places []int) {
	a.set(places, CodeNeedsUpdate, "create_contact_group carries 100 conversations")
}

// set records that conversations failed with a code.
func (a *attempt) set(places []int, code, info string) {
	for _, i := range places {
		c := &a.result.Conversations[i]
		a.known[i], c.Code, c.Info = true, code, info
	}
}

// noteAll records the result of each conversation, and returns those to be sent again.
func (a *attempt) noteAll(places []int, response chat.Response, last bool) (again []int) {
	if response.GroupID != 0 {
		a.result.GroupID = response.GroupID
	}
	for k, i := range places {
		a.known[i] = true
		c, r := &a.result.Conversations[i], response.Items[k]
		if a.note(c, r, last) {
			again = append(again, i)
		} else if r.Code == chat.CodeTooManyConversations && !last && a.mayMakeRoom(a.todo) {
			a.full = true
			again = append(again, i)
		}
	}
	return again
}

// note records the result of one conversation, and reports whether it should be sent again.
func (a *attempt) note(c *job.ConversationResult, r chat.ItemResult, last bool) (again bool) {
	if r.Reported && r.Code == 0 {
		c.Code, c.Info = "", ""
		return false
	}
	if !r.Reported {
		c.Code, c.Info = CodeNoResult, "the response named other conversations, not this one"
		return !last
	}
	c.Code, c.Info = strconv.Itoa(r.Code), r.Info
	return !last && chat.ClassOf(r.Code) != chat.Permanent
}

// passing is the error of a job with conversations that failed in a way that passes, as for a call.
func (a *attempt) passing() error {
	for _, i := range a.todo {
		c := &a.result.Conversations[i]
		if code, err := strconv.Atoi(c.Code); err == nil && chat.ClassOf(code) == chat.Retry {
			return fmt.Errorf("%w: %w", errAgain, &chat.Error{Command: chat.CreateContactGroup, Code: code, Info: c.Info})
		}
	}
	return nil
}

// expected reports whether the group holds something of ours, as far as is known.
func (a *attempt) expected() bool {
	return a.doneBefore() > 0 || len(a.result.Keep) > 0 || a.any(a.todo, job.Remove)
}

// sendChunk makes the calls that add a chunk, and take one out. A *chat.Error says that they are rejected for good. The error
// is errNeedsAll if the group does not exist and something in it is expected.
func (a *attempt) sendChunk(ctx context.Context, items, removes []chat.Item) (chat.Response, error) {
	reading := a.w.known.create()
	if len(removes) > 0 && !a.w.known.offers(chat.UpdateContactGroup) {
		return chat.Response{}, errNoUpdate
	}
	if a.group == unknown && (a.expected() || reading != Append) {
		response, err := a.updateOrFind(ctx, items, removes)
		if a.group != absent || err != nil {
			return response, err
		}
	}
	if a.group == absent && a.expected() && !a.restarted { // deleted since, with all that was done
		return chat.Response{}, errNeedsAll
	}
	if a.group == present && (reading != Append || a.w.known.offers(chat.UpdateContactGroup)) {
		response, err := a.update(ctx, items, removes)
		if e, ok := rejection(err); ok && e.Code == chat.CodeNoSuchGroup { // deleted meanwhile
			if a.restarted {
				a.needsCheck = true
				return response, err
			}
			a.group, a.foundAt = absent, time.Now()
			return response, errNeedsAll
		}
		return response, err
	}
	var response chat.Response
	var err error
	tried := false
	if a.group == absent && reading == "" {
		response, err, tried = a.tryCreate(ctx, items)
	}
	if !tried {
		response, err = a.create(ctx, items)
	}
	if e, ok := rejection(err); ok && (a.maybeCreated || mayExist(e)) && a.w.known.offers(chat.UpdateContactGroup) {
		added, uerr := a.update(ctx, items, nil)
		if _, ok := rejection(uerr); !ok {
			return added, uerr
		}
	}
	return response, err
}

// mayExist reports whether create may have been rejected because the group is there by now, from a call of an earlier
// leader that took effect late. No document says with which code that would be.
func mayExist(e *chat.Error) bool {
	return e.Code == chat.CodeBadParameter || e.Code == chat.CodeTooManyGroups || e.Code != 0 && e.Class() == chat.Unknown
}

// updateOrFind updates the group with a chunk, or finds that the group does not exist.
func (a *attempt) updateOrFind(ctx context.Context, items, removes []chat.Item) (chat.Response, error) {
	if !a.w.known.offers(chat.UpdateContactGroup) {
		if !a.w.known.harmless() {
			return chat.Response{}, errNoUpdate
		}
		_, err := a.find(ctx)
		if unreadable(err) {
			a.group, err = present, nil
		}
		if a.group == present && err == nil {
			return a.create(ctx, items)
		}
		return chat.Response{}, err
	}
	response, err := a.update(ctx, items, removes)
	e, rejected := rejection(err)
	switch {
	case !rejected:
		return response, err
	case e.Code == chat.CodeNoSuchGroup:
		a.group, a.foundAt = absent, time.Now()
		return response, nil
	case e.Class() == chat.Permanent && e.Code != chat.CodeBadParameter:
		return response, err
	}
	// Not documented, but a call for a group that does not exist may be rejected in this way too.
	if _, ferr := a.find(ctx); ferr != nil && !unreadable(ferr) {
		return response, ferr
	}
	if a.group == absent {
		return response, nil
	}
	return response, err
}

// tryCreate writes a chunk into a group that does not exist, in a way that shows what create does to one that does;
// tried is false if this is not the time for it.
func (a *attempt) tryCreate(ctx context.Context, items []chat.Item) (_ chat.Response, err error, tried bool) {
	if len(items) < 2 || !a.w.known.offers(chat.GetContactGroup) || !a.w.known.offers(chat.UpdateContactGroup) {
		return chat.Response{}, nil, false
	}
	select {
	case a.w.known.trying <- struct{}{}:
		defer func() { <-a.w.known.trying }()
	default:
		return chat.Response{}, nil, false
	}
	if a.w.known.create() != "" { // learned just now
		return chat.Response{}, nil, false
	}
	response, err := a.experiment(ctx, items[:len(items)/2], items[len(items)/2:])
	if len(response.Items) < len(items) && err == nil {
		response, err = a.update(ctx, items, nil)
	}
	return response, err, true
}

// awaitReading finds out whether create appends, by the first two chunks of a group that does not exist, or waits for
// another job that does.
func (a *attempt) awaitReading(ctx context.Context, first, second []chat.Item) (appends bool, err error) {
	select {
	case a.w.known.trying <- struct{}{}:
		defer func() { <-a.w.known.trying }()
	case <-ctx.Done():
		return false, ctx.Err()
	}
	if a.w.known.create() == "" {
		_, err = a.experiment(ctx, first, second)
		if rejected, ok := rejection(err); ok { // the create that follows will say it of each conversation
			a.w.cfg.Log.Debug("what create does was not learned", "error", rejected)
			err = nil
		}
	}
	return a.w.known.harmless(), err
}

// experiment creates a group that does not exist with some items, and again with others, and reads what became of it.
// The response is about all of them if create appends; else the group holds some of the items.
func (a *attempt) experiment(ctx context.Context, some, others []chat.Item) (none chat.Response, err error) {
	first, err := a.create(ctx, some)
	if err != nil {
		return none, err
	}
	second, err := a.create(ctx, others)
	if e, ok := rejection(err); ok {
		// The others may be the reason.
		_, err = a.create(ctx, some)
		if again, ok := rejection(err); ok {
			if again.Code == e.Code {
				a.w.known.learn(Refuse)
			}
			return none, nil
		}
		return none, err
	}
	if err != nil {
		return none, err
	}
	if err := a.waitForLate(ctx); err != nil {
		return none, err
	}
	members, err := a.find(ctx)
	if unreadable(err) {
		return none, nil
	}
	if err != nil {
		return none, err
	}
	in, out, accepted := 0, 0, 0 // in and out of the first items, accepted of the others
	for k, it := range some {
		switch {
		case !first.Items[k].Reported || first.Items[k].Code != 0:
		case members[it]:
			in++
		default:
			out++
		}
	}
	for k, it := range others {
		switch {
		case !second.Items[k].Reported || second.Items[k].Code != 0:
		case !members[it]:
			return none, nil // what was read is not what was written last
		default:
			accepted++
		}
	}
	switch {
	case accepted == 0: // it may have done nothing at all
	case in > 0 && out == 0:
		a.w.known.learn(Append)
		return chat.Response{GroupID: second.GroupID, Items: slices.Concat(first.Items, second.Items)}, nil
	case out > 0 && in == 0:
		a.w.known.learn(Replace)
	}
	return none, nil
}

// writeWhole writes a group where only create can: it carries what the group holds as well.
func (a *attempt) writeWhole(ctx context.Context) error {
	members, err := a.find(ctx)
	rejected, ok := rejection(err)
	switch {
	case err == nil:
	case ok && !rejected.NotOffered():
		a.reject(a.todo, rejected)
		return nil
	case !unreadable(err):
		return err
	case !a.w.cfg.AcceptReplace:
		return a.w.known.mayReplace(err)
	}
	unread := err != nil
	if !unread && a.group == absent && a.similar && !a.w.cfg.AcceptReplace {
		a.set(a.todo, CodeNeedsUpdate, "the user has a group whose name differs in case only, and create_contact_group may take out what it holds")
		return nil
	}
	if unread && len(a.wanted())+len(a.result.Keep) > chat.MaxItemsPerCall && len(a.result.Keep) > 0 {
		a.need(a.todo) // it would take out what the job keeps
		return nil
	}
	if unread || a.group == absent {
		a.result.Anew = a.result.Anew || !unread && a.expected()
		a.addKept(nil)
	}
	var carried, added []int // of the job's conversations: those that are in the group, and those that are not
	for _, i := range a.allConversations() {
		c := &a.result.Conversations[i]
		if it := itemOf(c); members[it] {
			delete(members, it)
			a.done([]int{i})
			carried = append(carried, i)
		} else {
			added = append(added, i)
		}
	}
	var others []chat.Item // that the job does not name
	for it := range members {
		others = append(others, it)
	}
	room := max(0, chat.MaxItemsPerCall-len(others)-len(carried))
	if room < len(added) && unread && a.doneBefore() > 0 { // it would take out what was done
		a.need(a.todo)
		return nil
	}
	if room < len(added) && a.group == absent && !unread {
		rest := added[room:min(2*room, len(added))]
		appends, err := a.awaitReading(ctx, a.items(added[:room]), a.items(rest))
		if err != nil {
			return err
		}
		if appends {
			return a.sendAll(ctx, added)
		}
	}
	lost := false
	if room < len(added) {
		a.need(added[room:])
		added = added[:room]
	}
	for pass := 0; len(added) > 0 || lost; pass++ {
		if pass > 0 {
			if err := sleep(ctx, jittered(backoff(callBackoff, 5*time.Second, pass))); err != nil {
				return err
			}
		}
		places := append(slices.Clone(carried), added...)
		response, err := a.create(ctx, append(a.items(places), others...))
		if rejected, ok := rejection(err); ok {
			a.needsCheck = true // what it held, it holds
			a.reject(slices.DeleteFunc(added, a.wasDone), rejected)
			return nil
		}
		if err != nil {
			return err
		}
		a.needsCheck = a.needsCheck || len(others) > 0 || len(carried) > 0
		again := a.noteAll(places, response, pass >= resends)
		lost = false // something that was there before
		gone := 0
		for k := range others {
			switch r := response.Items[len(places)+k]; {
			case r.Reported && r.Code == 0:
			case pass < carries && (!r.Reported || chat.ClassOf(r.Code) != chat.Permanent):
				lost = true
			default:
				gone++
			}
		}
		if gone > 0 && !lost {
			a.w.cfg.Log.Error("the API no longer accepts conversations that a group held: where only create can write, they are gone",
				"import", a.result.Import, "job", a.result.Job, "conversations", gone)
		}
		carried = slices.DeleteFunc(places, func(i int) bool {
			return a.result.Conversations[i].Code != ""
		})
		added = again
	}
	return nil
}

func notOffered(err error) bool {
	e, ok := rejection(err)
	return ok && e.NotOffered()
}

// unreadable reports whether find failed in a way that will not change.
func unreadable(err error) bool {
	_, ok := rejection(err)
	return ok || errors.Is(err, errNoEnd)
}

func (a *attempt) create(ctx context.Context, items []chat.Item) (chat.Response, error) {
	if err := a.waitForLate(ctx); err != nil {
		return chat.Response{}, err
	}
	req := chat.CreateRequest{FromAccount: a.result.FromAccount, GroupName: a.result.GroupName, Items: items}
	response, err := call(ctx, a, chat.CreateContactGroup, func(ctx context.Context) (chat.Response, error) {
		return a.w.api.Create(ctx, req)
	}, codeOf)
	if err == nil {
		a.group, a.foundAt = present, time.Now()
	}
	if e, ok := rejection(err); ok && e.Code == chat.CodeTooManyGroups && a.w.deletesGroup(a.result.FromAccount) {
		return response, fmt.Errorf("%w: %w", errAgain, e) // there is going to be room
	}
	return response, err
}

// stale reports whether what a create relies on is too old: the wait for a permit can be long.
func (a *attempt) stale() bool {
	return !a.w.known.harmless() && time.Since(a.foundAt) > staleAfter && !a.foundAt.IsZero()
}

func (a *attempt) update(ctx context.Context, items, removes []chat.Item) (chat.Response, error) {
	if err := a.waitForLate(ctx); err != nil {
		return chat.Response{}, err
	}
	req := chat.UpdateRequest{FromAccount: a.result.FromAccount, GroupName: a.result.GroupName, Add: items, Remove: removes}
	a.takesOut = len(removes) > 0
	response, err := call(ctx, a, chat.UpdateContactGroup, func(ctx context.Context) (chat.Response, error) {
		return a.w.api.Update(ctx, req)
	}, codeOf)
	if err == nil {
		a.group = present
	}
	if notOffered(err) {
		return response, errNoUpdate
	}
	return response, err
}

// waitForLate waits until a call without a response can take effect no more, if that would make a difference.
func (a *attempt) waitForLate(ctx context.Context) error {
	if wait := time.Until(a.lateUntil); wait > 0 {
		return sleep(ctx, wait)
	}
	return nil
}

// waitForAll waits until no call without a response can take effect any more.
func (a *attempt) waitForAll(ctx context.Context) error {
	if wait := time.Until(a.openUntil); wait > 0 {
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
	return a.waitForLate(ctx)
}

// check reads the group back and corrects the result by it: what is in the group is done, or what is out of it. What is
// not is sent once more, where that can be done alone, and fails if it is not there then, or still there.
func (a *attempt) check(ctx context.Context) error {
	if !a.w.known.offers(chat.GetContactGroup) {
		return nil
	}
	for last := !a.canAdd(); ; last = true {
		if err := a.waitForLate(ctx); err != nil {
			return err
		}
		members, err := a.find(ctx)
		if unreadable(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if a.group == absent && a.similar { // nobody knows
			return nil
		}
		var missing []int
		for _, i := range a.todo {
			c := &a.result.Conversations[i]
			switch {
			case members[itemOf(c)] == (c.Op == job.Add):
				c.Code, c.Info = "", ""
			case c.Code == "":
				missing = append(missing, i)
			}
		}
		if len(missing) == 0 {
			a.result.Deleted = a.group == absent && !a.any(a.todo, job.Add)
			return nil
		}
		if !last {
			if err := a.sendAll(ctx, missing); err != nil {
				return err
			}
			continue
		}
		a.set(a.pick(missing, job.Add), CodeNotInGroup,
			"another call for the same group took it out again, or the API does not list it")
		a.set(a.pick(missing, job.Remove), CodeStillInGroup,
			"another call for the same group put it in again, or the API does not take it out")
		return nil
	}
}

// find reads the user's groups: whether the job's group exists, and what it holds. A name that is the same but for case or
// Unicode form counts if an update under the job's name said that it was of that group.
func (a *attempt) find(ctx context.Context) (map[chat.Item]bool, error) {
	list, _, err := a.list(ctx)
	if err != nil {
		return nil, err
	}
	a.group, a.foundAt = absent, time.Now()
	id, ok := groupNamed(list, a.result.GroupName)
	if name, there := list.Groups[a.result.GroupID]; !ok && there && chat.FoldName(name) == chat.FoldName(a.result.GroupName) {
		id, ok = a.result.GroupID, true
	}
	if !ok {
		a.similar = a.hasSimilar(list)
		return map[chat.Item]bool{}, nil
	}
	a.group = present
	return membersOf(list, id), nil
}

// groupNamed finds the number of a group.
func groupNamed(list chat.Page, name string) (id int64, ok bool) {
	for id, other := range list.Groups {
		if other == name {
			return id, true
		}
	}
	return 0, false
}

// hasSimilar reports whether there is a group whose name the API may take for that of the job.
func (a *attempt) hasSimilar(list chat.Page) bool {
	if a.w.known.exactNames() {
		return false
	}
	for _, other := range list.Groups {
		if chat.FoldName(other) == chat.FoldName(a.result.GroupName) {
			return true
		}
	}
	return false
}

// membersOf returns what a group holds.
func membersOf(list chat.Page, id int64) map[chat.Item]bool {
	members := map[chat.Item]bool{}
	for _, m := range list.Conversations {
		if slices.Contains(m.GroupIDs, id) {
			members[m.Item] = true
		}
	}
	return members
}

// list reads all pages of the user's groups. The error wraps errNoEnd when they have no end. Changed says that two pages do
// not go together: the list was another one in between. list.Next is where the last page began: 0 if there was one page.
func (a *attempt) list(ctx context.Context) (list chat.Page, changed bool, err error) {
	list.Groups = map[int64]string{}
	seen := map[chat.Item]bool{}
	for start := int64(0); !list.Complete; {
		page, err := call(ctx, a, chat.GetContactGroup, func(ctx context.Context) (chat.Page, error) {
			return a.w.api.Get(ctx, a.result.FromAccount, start)
		}, nil)
		if e, ok := rejection(err); ok && e.Code == chat.CodeNoSuchGroup { // of a user who has none
			return chat.Page{Complete: true}, start > 0, nil
		}
		if err != nil {
			return list, changed, err
		}
		for group, name := range page.Groups {
			was, known := list.Groups[group]
			changed = changed || known && was != name
			list.Groups[group] = name
		}
		for _, m := range page.Conversations {
			changed = changed || seen[m.Item]
			seen[m.Item] = true
		}
		list.Conversations = append(list.Conversations, page.Conversations...)
		list.Complete, list.Next = page.Complete, start
		if !page.Complete && (page.Next <= start || start > 0 && len(page.Conversations) == 0) {
			return list, changed, errNoEnd
		}
		start = page.Next
	}
	return list, changed, nil
}

func codeOf(a chat.Response) string {
	for _, r := range a.Items {
		if !r.Reported || r.Code != 0 {
			return "partial"
		}
	}
	return "ok"
}
