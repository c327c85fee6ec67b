package chatsim

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"groupferry/internal/chat"
)

// An account is a user with his groups, in order of creation.
type account struct {
	groups []*group
	lastID int64
}

type group struct {
	id    int64
	name  string
	items map[chat.Item]struct{}
}

// find returns the user's group of a name, and its place; nil if there is none.
func (s *Sim) find(a *account, name string) (*group, int) {
	if s.set.Names == Fold {
		name = chat.FoldName(name)
	}
	for i, g := range a.groups {
		if g.name == name || s.set.Names == Fold && chat.FoldName(g.name) == name {
			return g, i
		}
	}
	return nil, -1
}

// State returns all groups, by user and group name. The conversations of a group are sorted by type and id.
func (s *Sim) State() map[string]map[string][]chat.Item {
	s.mu.Lock()
	defer s.mu.Unlock()
	state := make(map[string]map[string][]chat.Item, len(s.users))
	for user, a := range s.users {
		if len(a.groups) == 0 {
			continue
		}
		groups := make(map[string][]chat.Item, len(a.groups))
		for _, g := range a.groups {
			items := make([]chat.Item, 0, len(g.items))
			for it := range g.items {
				items = append(items, it)
			}
			slices.SortFunc(items, compareItems)
			groups[g.name] = items
		}
		state[user] = groups
	}
	return state
}

func compareItems(a, b chat.Item) int {
	return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.ID, b.ID))
}

// A rejection is why a call fails as a whole.
type rejection struct {
	code int
	text string
	bad  bool // the call breaks a documented limit or rule
}

func (r *rejection) response() *base {
	return &base{ActionStatus: "FAIL", ErrorCode: r.code, ErrorInfo: r.text}
}

func badRequest(code int, format string, args ...any) *rejection {
	return &rejection{code: code, text: fmt.Sprintf(format, args...), bad: true}
}

// apply executes a call that passed all checks except those that depend on the groups. itemCode returns the code with
// which a conversation fails, 0 for none. The caller holds the lock.
func (s *Sim) apply(command chat.Command, r *request, itemCode func(chat.Item) int) (any, *rejection) {
	a := s.users[r.FromAccount]
	if a == nil {
		a = &account{}
		s.users[r.FromAccount] = a
	}
	switch command {
	case chat.CreateContactGroup:
		return s.create(a, r, itemCode)
	case chat.UpdateContactGroup:
		return s.update(a, r, itemCode)
	case chat.DelContactGroup:
		return s.del(a, r.GroupName[0])
	default:
		return s.get(a, r.StartIndex), nil
	}
}

func (s *Sim) create(a *account, r *request, itemCode func(chat.Item) int) (any, *rejection) {
	wanted := r.GroupContactItem[0]
	changes := make([]change, len(wanted.ContactItem))
	for i, it := range wanted.ContactItem {
		changes[i] = change{item: it.item()}
	}
	g, _ := s.find(a, wanted.GroupName)
	switch {
	case g == nil && len(a.groups) >= chat.MaxGroupsPerUser:
		return nil, badRequest(chat.CodeTooManyGroups, "the user has %d groups", len(a.groups))
	case g == nil:
		a.lastID++
		g = &group{id: a.lastID, name: wanted.GroupName, items: make(map[chat.Item]struct{}, len(changes))}
		a.groups = append(a.groups, g)
	case s.set.Existing == Refuse:
		return nil, &rejection{code: s.set.RefuseCode, text: "the group exists"}
	case s.set.Existing == Replace:
		clear(g.items)
	}
	if rejected := g.fits(changes); rejected != nil {
		return nil, rejected
	}
	return &createResponse{
		base: okBase,
		GroupResultItem: [1]groupResult{{
			GroupItem:  groupItem{GroupName: g.name, GroupID: g.id},
			ResultItem: s.change(g, changes, itemCode),
		}},
	}, nil
}

func (s *Sim) update(a *account, r *request, itemCode func(chat.Item) int) (any, *rejection) {
	wanted := r.UpdateGroup
	g, _ := s.find(a, wanted.OldGroupName)
	if g == nil {
		return nil, &rejection{code: chat.CodeNoSuchGroup, text: "the group to update does not exist"}
	}
	response := &updateResponse{base: okBase, UpdateType: updateGroup}
	response.UpdateGroupResult.UpdateGroupType = wanted.UpdateGroupType
	response.UpdateGroupResult.OldGroupName = wanted.OldGroupName
	response.UpdateGroupResult.GroupID = g.id
	if wanted.UpdateGroupType == renameGroup {
		if other, _ := s.find(a, wanted.NewGroupName); other != nil && other != g {
			return nil, badRequest(chat.CodeBadParameter, "the user has a group of the new name")
		}
		if g.name != wanted.NewGroupName {
			s.book.Renamed++
		}
		g.name = wanted.NewGroupName
	} else {
		changes := make([]change, len(wanted.ContactUpdateItem))
		for i, it := range wanted.ContactUpdateItem {
			changes[i] = change{opt: it.ContactOptType, item: it.ContactItem.item()}
		}
		if rejected := g.fits(changes); rejected != nil {
			return nil, rejected
		}
		response.UpdateGroupResult.ContactResultItem = s.change(g, changes, itemCode)
	}
	response.UpdateGroupResult.GroupName = g.name
	return response, nil
}

func (s *Sim) del(a *account, name string) (any, *rejection) {
	g, i := s.find(a, name)
	if g == nil {
		return nil, &rejection{code: chat.CodeNoSuchGroup, text: "the group to delete does not exist"}
	}
	a.groups = slices.Delete(a.groups, i, i+1)
	s.book.Deleted++
	s.book.Removed += len(g.items)
	return &delResponse{base: okBase, GroupItem: []groupItem{{GroupName: g.name, GroupID: g.id}}}, nil
}

// get returns a page of the user's conversations, sorted, and all his groups.
func (s *Sim) get(a *account, start int64) any {
	groups := make(map[chat.Item][]int64)
	response := &getResponse{base: okBase, GroupItem: make([]groupItem, len(a.groups))}
	for i, g := range a.groups {
		response.GroupItem[i] = groupItem{GroupName: g.name, GroupID: g.id}
		for it := range g.items {
			groups[it] = append(groups[it], g.id)
		}
	}
	items := make([]chat.Item, 0, len(groups))
	for it := range groups {
		items = append(items, it)
	}
	slices.SortFunc(items, compareItems)
	cut := s.set.ListLimit > 0 && len(items) > s.set.ListLimit
	if cut {
		items = items[:s.set.ListLimit]
	}
	from := min(max(start, 0), int64(len(items)))
	to := min(from+int64(s.set.PageSize), int64(len(items)))
	response.ContactItem = make([]getItem, 0, to-from)
	for _, it := range items[from:to] {
		response.ContactItem = append(response.ContactItem, getItem{
			wireItem: toWire(it), ContactGroupID: groups[it], Timestamp: time.Now().Unix(),
		})
	}
	if to == int64(len(items)) && !cut {
		response.CompleteFlag = 1
	} else {
		response.NextStartIndex = to
	}
	return response
}

// A change adds one conversation to a group or, with optRemove, removes it.
type change struct {
	opt  int
	item chat.Item
}

// fits returns a rejection if the changes take the group over its limit.
func (g *group) fits(changes []change) *rejection {
	if len(g.items)+len(changes) <= chat.MaxConversationsPerGroup {
		return nil
	}
	n := len(g.items)
	seen := make(map[change]bool, len(changes))
	for _, c := range changes {
		_, in := g.items[c.item]
		switch {
		case seen[c]:
		case c.opt == optRemove && in:
			n--
		case c.opt != optRemove && !in:
			n++
		}
		seen[c] = true
	}
	if n > chat.MaxConversationsPerGroup {
		return badRequest(chat.CodeTooManyConversations, "the group would have %d conversations", n)
	}
	return nil
}

// change applies the changes, except those that itemCode fails. To add a conversation that is there, or to remove one
// that is not, is no failure.
func (s *Sim) change(g *group, changes []change, itemCode func(chat.Item) int) []itemResult {
	results := make([]itemResult, len(changes))
	for i, c := range changes {
		results[i] = itemResult{ContactOptType: c.opt, ContactItem: toWire(c.item)}
		if code := itemCode(c.item); code != 0 {
			results[i].ResultCode = code
			results[i].ResultInfo = chat.Meaning(code)
			s.book.ItemsFailed++
			continue
		}
		_, in := g.items[c.item]
		switch {
		case c.opt == optRemove && in:
			delete(g.items, c.item)
			s.book.Removed++
		case c.opt == optRemove:
		case in:
			s.book.Readded++
		default:
			g.items[c.item] = struct{}{}
			s.book.Added++
		}
	}
	return results
}
