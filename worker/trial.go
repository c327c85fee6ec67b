package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/job"
)

// A Names is which names of a user's groups are those of one group. No document says.
type Names string

// The readings of names.
const (
	ExactNames  Names = "exact"  // those that are equal
	FoldedNames Names = "folded" // those that differ in case or Unicode form only, too
)

// TrialAccepted stands in a [TrialResult] for the code of an error where there was none.
const TrialAccepted = "accepted"

// A Trial finds out what no document says of the API, on a user without groups: see [Reading] and [Names]. Its calls are
// repeated, and end, as those of jobs do. What it writes is in groups whose names begin with the base, which
// [Trial.Clean] deletes.
type Trial struct {
	w    *Worker
	a    *attempt
	base string

	// Settle is how long a write may not be in a list yet: what reads at once have shown is read again after it.
	Settle time.Duration
}

const (
	// TrialLeft is how long after the death of a process its calls may still take effect.
	TrialLeft = LateTime

	// TrialSettle is the usual Settle.
	TrialSettle = 2 * time.Second

	// cleanReads lists, with up to 5 s between them, may still name a group that was deleted.
	cleanReads = 6
)

// NewTrial returns a trial. The base is the beginning of the names of its groups, 24 bytes at most, unlike that of any other.
func NewTrial(cfg Config, api API, pace Pace, user, base string) *Trial {
	w := New(cfg, nil, api, pace)
	return &Trial{w: w, a: &attempt{w: w, result: job.Result{FromAccount: user}}, base: base}
}

// A TrialResult is what a trial learned. Its JSON form is read by programs: fields are added, never changed. Of an error it has
// the code, or the reason as of [chat.Error.Reason], and where it was: of the call as a whole, or of the conversation.
type TrialResult struct {
	Create        Reading `json:"create"` // "": that could not be found out; so in the texts below
	Names         Names   `json:"names"`
	UnknownUser   string  `json:"unknown_user"`
	UnknownGroup  string  `json:"unknown_group"`
	UpdateMissing string  `json:"update_missing"` // what update says of a group that does not exist
	DeleteMissing string  `json:"delete_missing"` // what del says of one, where 51009 counts as accepted
	Page          int     `json:"page"`           // conversations in a page of a list
	PageOrMore    bool    `json:"page_or_more"`   // there may be more in it: no list of the trial had two pages
}

// The names of the groups of a trial.
func (t *Trial) names() (main, cased, formed, user, chatGroup, missing string, pages []string) {
	const composed, decomposed = "\u00e9", "e\u0301"
	for i := range trialPages {
		pages = append(pages, fmt.Sprintf("%s-page%d", t.base, i+1))
	}
	return t.base + composed, strings.ToUpper(t.base[:1]) + t.base[1:] + composed, t.base + decomposed,
		t.base + "-user", t.base + "-chat", t.base + "-none", pages
}

// trialPages is how many groups of 100 conversations are made to see how many a page has.
const trialPages = 4

// Own reports whether a group may be one of the trial.
func (t *Trial) Own(group string) bool {
	main, _, _, user, chatGroup, missing, pages := t.names()
	return slices.ContainsFunc(append(pages, main, user, chatGroup, missing), func(name string) bool {
		return chat.FoldName(name) == chat.FoldName(group)
	})
}

// Groups reads the user's groups. The errors are those of [Reader.Read].
func (t *Trial) Groups(ctx context.Context) (List, error) {
	return (&Reader{t.w}).Read(ctx, t.a.result.FromAccount)
}

// Run finds out what it can. Other is an account that may be in a group: that of the admin. An error that is no
// *[chat.Error] is about ctx, the pace or a halt, or says that a call failed for now. Stopped is asked between the calls.
func (t *Trial) Run(ctx context.Context, other string, stopped func() bool) (r TrialResult, err error) {
	main, cased, formed, userGroup, chatGroup, missing, pages := t.names()
	nobody := chat.Item{Type: chat.OneToOne, ID: t.base + "-0"}
	noChat := chat.Item{Type: chat.GroupChat, ID: "@" + t.base}
	var usable []chat.Item // conversations of which one is known to be accepted first
	for _, probe := range []struct {
		group string
		item  chat.Item
		code  *string
	}{{userGroup, nobody, &r.UnknownUser}, {chatGroup, noChat, &r.UnknownGroup}} {
		if *probe.code, err = t.put(ctx, stopped, probe.group, probe.item); err != nil {
			return r, err
		}
		if *probe.code == TrialAccepted {
			usable = append(usable, probe.item)
		}
	}
	known := len(usable) > 0
	usable = append(usable, chat.Item{Type: chat.OneToOne, ID: other}, chat.Item{Type: chat.OneToOne, ID: t.a.result.FromAccount})

	if err := t.next(stopped, main); err != nil {
		return r, err
	}
	_, err = t.a.experiment(ctx, usable[:1], usable[1:2])
	if _, rejected := rejection(err); err != nil && !rejected {
		return r, err
	}
	r.Create = t.w.known.create()
	if err == nil {
		if r.Names, err = t.sameNames(ctx, stopped, main, []string{cased, formed}, usable[0], r.Create); err != nil {
			return r, err
		}
	}
	if t.w.known.offers(chat.UpdateContactGroup) {
		if err := t.next(stopped, missing); err != nil {
			return r, err
		}
		response, err := t.a.update(ctx, usable[:1], nil)
		if r.UpdateMissing, err = outcomeOfTrial(response, err); err != nil && !errors.Is(err, errNoUpdate) {
			return r, err
		}
	}
	if err := t.next(stopped, missing); err != nil {
		return r, err
	}
	if r.DeleteMissing, err = outcomeOfTrial(chat.Response{}, t.del(ctx, missing)); err != nil {
		return r, err
	}
	if known && r.UnknownUser == TrialAccepted {
		if err := t.page(ctx, stopped, pages, &r); err != nil {
			return r, err
		}
	}
	return r, t.confirm(ctx, stopped, &r, []string{main, cased, formed}, usable[:2])
}

// confirm reads once more, after Settle, and takes back what that does not show: a list may lag behind what was written, and
// may show a moment in the middle of it. For the readings that workers are careful with anyway, nothing is read.
func (t *Trial) confirm(ctx context.Context, stopped func() bool, r *TrialResult, names []string, items []chat.Item) error {
	if r.Create != Append && r.Names == "" {
		return nil
	}
	if stopped() {
		return context.Canceled
	}
	if err := sleep(ctx, t.Settle); err != nil {
		return err
	}
	list, err := t.Groups(ctx)
	if unread := (*Unread)(nil); errors.As(err, &unread) {
		r.Names = ""
		if r.Create == Append {
			r.Create = ""
		}
		return nil
	}
	if err != nil {
		return err
	}
	there := 0
	var members []chat.Item // of the first group, which may have got another of the names
	for _, name := range names {
		if i := slices.IndexFunc(list.Groups, func(g Group) bool { return g.Name == name }); i >= 0 {
			if there++; there == 1 {
				members = list.Groups[i].Items
			}
		}
	}
	if r.Names != "" && (r.Names == ExactNames) != (there == len(names)) {
		r.Names = ""
	}
	if r.Create == Append && slices.ContainsFunc(items, func(it chat.Item) bool { return !slices.Contains(members, it) }) {
		r.Create = ""
	}
	return nil
}

// next begins with another group, unless the trial is to stop.
func (t *Trial) next(stopped func() bool, group string) error {
	if stopped() {
		return context.Canceled
	}
	t.a.result.GroupName, t.a.group, t.a.foundAt = group, unknown, time.Time{}
	return nil
}

// put creates a group with conversations, and says what came of it.
func (t *Trial) put(ctx context.Context, stopped func() bool, group string, items ...chat.Item) (string, error) {
	if err := t.next(stopped, group); err != nil {
		return "", err
	}
	return outcomeOfTrial(t.a.create(ctx, items))
}

// outcomeOfTrial says what came of a call about one conversation, or alike ones. The error is one that ends the trial.
func outcomeOfTrial(response chat.Response, err error) (string, error) {
	if rejected, ok := rejection(err); ok {
		return "the call fails with " + rejected.Reason(), nil
	}
	if err != nil {
		return "", err
	}
	for _, i := range response.Items {
		switch {
		case !i.Reported:
			return "the conversation has no result", nil
		case i.Code != 0:
			return fmt.Sprintf("the conversation fails with %d", i.Code), nil
		}
	}
	return TrialAccepted, nil
}

// sameNames creates groups whose names differ from that of one which is there in case or Unicode form only, and reads what
// the user has then.
func (t *Trial) sameNames(ctx context.Context, stopped func() bool, main string, others []string, item chat.Item, create Reading) (Names, error) {
	result := ExactNames
	for _, other := range others {
		code, err := t.put(ctx, stopped, other, item)
		if err != nil {
			return "", err
		}
		list, err := t.Groups(ctx)
		if err != nil {
			if unread := (*Unread)(nil); errors.As(err, &unread) {
				err = nil
			}
			return "", err
		}
		there := func(name string) bool {
			return slices.ContainsFunc(list.Groups, func(g Group) bool { return g.Name == name })
		}
		switch {
		case there(main) && there(other):
		case there(main) != there(other) && (code == TrialAccepted || create == Refuse): // one group, under one of the names
			result = FoldedNames
		default:
			return "", nil
		}
	}
	return result, nil
}

// page makes groups until a list of the user has two pages.
func (t *Trial) page(ctx context.Context, stopped func() bool, groups []string, r *TrialResult) error {
	for n, group := range groups {
		items := make([]chat.Item, chat.MaxItemsPerCall)
		for i := range items {
			items[i] = chat.Item{Type: chat.OneToOne, ID: fmt.Sprintf("%s-%d", t.base, 1+n*len(items)+i)}
		}
		if code, err := t.put(ctx, stopped, group, items...); err != nil || code != TrialAccepted {
			return err
		}
		page, err := call(ctx, t.a, chat.GetContactGroup, func(ctx context.Context) (chat.Page, error) {
			return t.w.api.Get(ctx, t.a.result.FromAccount, 0)
		}, nil)
		if _, rejected := rejection(err); rejected {
			return nil
		}
		if err != nil {
			return err
		}
		r.Page, r.PageOrMore = len(page.Conversations), page.Complete
		if !page.Complete {
			return nil
		}
	}
	return nil
}

// Clean deletes the groups of the trial, also those of one that another process began: the calls of that one may take effect
// until a moment that the caller gives. A list may lag behind, so it deletes all that the trial can have made, whatever is
// listed; and ends when none is listed.
func (t *Trial) Clean(ctx context.Context, late time.Time) error {
	if t.a.maybeCreated && time.Now().Add(LateTime).After(late) {
		late = time.Now().Add(LateTime)
	}
	if late.After(t.a.lateUntil) {
		t.a.lateUntil = late
	}
	main, cased, formed, user, chatGroup, missing, pages := t.names()
	left := append(pages, main, cased, formed, user, chatGroup, missing)
	for reads := 0; ; reads++ {
		if err := t.a.waitForLate(ctx); err != nil {
			return err
		}
		for _, name := range left {
			err := t.del(ctx, name)
			if _, rejected := rejection(err); rejected && reads == 0 {
				err = nil // the list says whether there is one
			}
			if err != nil {
				return err
			}
		}
		if err := t.a.waitForLate(ctx); err != nil { // a deletion had no response
			return err
		}
		list, err := t.Groups(ctx)
		if err != nil {
			return err
		}
		left = nil
		for _, g := range list.Groups {
			if t.Own(g.Name) {
				left = append(left, g.Name)
			}
		}
		switch {
		case len(left) == 0:
			return nil
		case reads == cleanReads:
			return fmt.Errorf("they were deleted, and are listed all the same: %d", len(left))
		}
		if err := sleep(ctx, backoff(callBackoff, 5*time.Second, reads)); err != nil {
			return err
		}
	}
}

func (t *Trial) del(ctx context.Context, group string) error {
	_, err := call(ctx, t.a, chat.DelContactGroup, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, t.w.api.Delete(ctx, t.a.result.FromAccount, group)
	}, nil)
	return err
}
