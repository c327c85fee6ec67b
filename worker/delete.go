package worker

import (
	"context"
	"errors"
	"reflect"

	"groupferry/internal/chat"
	"groupferry/internal/job"
)

// deleters is how many jobs at a time may be about to delete a group. Each has read the group before it waits for its
// permit, and at one call a second the last of them has it in time; see staleAfter.
const deleters = 16

var (
	errShared = errors.New("the group holds something that the job does not name, or the list is not complete")
	errGone   = errors.New("the group does not exist")
)

// deleteGroup deletes the group if nothing is in it but what the job takes out. The whole of the user's groups is read
// before each try, and no earlier than staleAfter. If there is something else, or they cannot be read to the end, nothing is
// done: what the job takes out is to go by updates, and the group stays.
//
// What remains is that somebody puts something into the group between the read and the deletion: usually some milliseconds,
// at worst staleAfter and the time of a call; that is lost with it. So is what a plan leaves out of a list that it says is
// complete. And a deletion without a response may take effect up to LateTime after it failed. The job has no result before
// that.
//
// If the process ends before the result is written, the job is done again. A group that somebody made since stays, unless
// it holds no more than what the job names.
func (a *attempt) deleteGroup(ctx context.Context) error {
	if !a.w.known.offers(chat.GetContactGroup) || !a.w.known.offers(chat.DelContactGroup) {
		return nil
	}
	select {
	case a.w.deleter <- struct{}{}:
		defer func() { <-a.w.deleter }()
	case <-ctx.Done():
		return ctx.Err()
	}
	_, err := callAfter(ctx, a, chat.DelContactGroup, a.mayDelete, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, a.w.api.Delete(ctx, a.result.FromAccount, a.result.GroupName)
	}, nil)
	if err == nil || errors.Is(err, errGone) {
		a.gone()
		return nil
	}
	if _, ok := rejection(err); ok || errors.Is(err, errShared) {
		return nil
	}
	return err
}

// mayDelete reads the group, and returns nil if it exists and holds nothing but what the job takes out. Else the error is
// errGone or errShared, or one of a call.
func (a *attempt) mayDelete(ctx context.Context) error {
	if err := a.waitForLate(ctx); err != nil {
		return err
	}
	list, settled, err := a.settledList(ctx)
	if unreadable(err) || !settled && err == nil {
		return errShared
	}
	if err != nil {
		return err
	}
	id, ok := groupNamed(list, a.result.GroupName)
	if !ok {
		if a.hasSimilar(list) { // it may be this one, or not
			return errShared
		}
		return errGone
	}
	if a.deleting != 0 && id != a.deleting { // a call without a response deleted it, and this is a new one
		return errGone
	}
	a.deleting = id
	members := membersOf(list, id)
	for _, i := range a.pick(a.todo, job.Remove) {
		delete(members, itemOf(&a.result.Conversations[i]))
	}
	if len(members) > 0 {
		return errShared
	}
	return nil
}

// settledList reads the user's groups until nobody can have changed them between two pages: a list of several pages until two
// reads in a row are the same, as [Reader.Read] does, and once more than that at most: a group that cannot be deleted stays for
// good.
func (a *attempt) settledList(ctx context.Context) (list chat.Page, settled bool, err error) {
	var before *chat.Page
	for range listReads + 1 {
		list, changed, err := a.list(ctx)
		if err != nil {
			return list, false, err
		}
		if !changed && (list.Next == 0 || before != nil && reflect.DeepEqual(list, *before)) {
			return list, true, nil
		}
		if before = nil; !changed {
			before = &list
		}
	}
	return list, false, nil
}
