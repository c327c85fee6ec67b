package worker

import (
	"context"
	"fmt"

	"groupferry/internal/chat"
	"groupferry/internal/job"
)

// rename gives the group its new name, if the job has one for it. If there is no group of the old name, an earlier attempt
// renamed it, or it is created anew. Where both names are there, nothing can be said about what the new one holds, so what
// the job keeps is added to it. If the API does not rename the group, nothing else is sent: ready is false.
func (a *attempt) rename(ctx context.Context) (ready bool, err error) {
	old, name := a.result.Rename, a.result.GroupName
	if old == "" {
		return true, nil
	}
	if err := a.waitForLate(ctx); err != nil {
		return false, err
	}
	req := chat.RenameRequest{FromAccount: a.result.FromAccount, OldName: old, NewName: name}
	a.takesOut = true
	_, err = call(ctx, a, chat.UpdateContactGroup, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, a.w.api.Rename(ctx, req)
	}, nil)
	if err == nil {
		a.renamed()
		a.group = present
		return true, nil
	}
	rejected, ok := rejection(err)
	if !ok {
		return false, err
	}
	if rejected.NotOffered() {
		a.rejectJob(CodeNeedsUpdate, "only update_contact_group renames a group, and it is not offered")
		return false, nil
	}
	list, _, err := a.list(ctx)
	switch {
	case unreadable(err) && rejected.Code == chat.CodeNoSuchGroup:
		a.renamed()
		a.addKept(nil) // the group may have to be created; an update tells
		return true, nil
	case unreadable(err):
		a.rejectJob(rejected.Reason(), rejected.Info)
		return false, nil
	case err != nil:
		return false, err
	}
	_, oldThere := groupNamed(list, old)
	id, newThere := groupNamed(list, name)
	switch {
	case oldThere && newThere:
		text := fmt.Sprintf("group %q is left as it is: there is another one named %q", old, name)
		a.result.Code, a.result.Info = job.CodeNotRenamed, text
		removes := a.pick(a.todo, job.Remove)
		a.set(removes, job.CodeNotRenamed, text)
		a.todo = a.pick(a.todo, job.Add)
		a.addKept(membersOf(list, id))
		a.group = present
	case newThere:
		a.renamed()
		a.group = present
	case oldThere:
		a.rejectJob(rejected.Reason(), rejected.Info)
		return false, nil
	default:
		a.renamed()
		a.group = absent
		a.restart()
	}
	return true, nil
}

func (a *attempt) renamed() { a.result.OldName, a.result.Rename = a.result.Rename, "" }

// rejectJob records that nothing of the job is done.
func (a *attempt) rejectJob(code, info string) {
	a.set(a.todo, code, info)
	a.todo, a.result.Code, a.result.Info = nil, code, info
}
