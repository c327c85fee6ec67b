package chat

import (
	"cmp"
	"context"
	"encoding/json"
)

// Update types and operations of update_contact_group, as its document numbers them.
const (
	updateGroup = 1 // UpdateType: a group, not a mark

	renameGroup   = 1 // UpdateGroupType
	updateMembers = 2

	optNone   = 0 // no operation given
	optAdd    = 1 // ContactOptType
	optRemove = 2
)

// A wireItem is an Item in a request. Only the id that matches the type is sent.
type wireItem struct {
	Type      int    `json:"Type"`
	ToAccount string `json:"To_Account,omitempty"`
	ToGroupID string `json:"ToGroupId,omitempty"`
}

func toWire(it Item) wireItem {
	if it.Type == GroupChat {
		return wireItem{Type: it.Type, ToGroupID: it.ID}
	}
	return wireItem{Type: it.Type, ToAccount: it.ID}
}

type createGroup struct {
	GroupName   string
	ContactItem []wireItem
}

type createBody struct {
	FromAccount      string `json:"From_Account"`
	GroupContactItem [1]createGroup
}

type updateItem struct {
	ContactOptType int
	ContactItem    wireItem
}

type updateBody struct {
	FromAccount string `json:"From_Account"`
	UpdateType  int
	UpdateGroup struct {
		UpdateGroupType   int
		OldGroupName      string
		NewGroupName      string       `json:",omitempty"`
		ContactUpdateItem []updateItem `json:",omitempty"`
	}
}

type getBody struct {
	FromAccount string `json:"From_Account"`
	StartIndex  int64
}

type deleteBody struct {
	FromAccount string    `json:"From_Account"`
	GroupName   [1]string `json:"GroupName"`
}

// encode makes the body of a call.
func encode(request any) []byte {
	body, err := json.Marshal(request)
	if err != nil { // strings and integers always marshal
		panic(err)
	}
	return body
}

// Body returns the body that [Client.Create] sends for r, for people who want to see it before.
func (r CreateRequest) Body() []byte { return encode(r.wire()) }

func (r CreateRequest) wire() *createBody {
	body := &createBody{FromAccount: r.FromAccount}
	body.GroupContactItem[0] = createGroup{GroupName: r.GroupName, ContactItem: make([]wireItem, len(r.Items))}
	for i, it := range r.Items {
		body.GroupContactItem[0].ContactItem[i] = toWire(it)
	}
	return body
}

// Create makes a group with conversations in it.
func (c *Client) Create(ctx context.Context, r CreateRequest) (Response, error) {
	var a createResponse
	if err := c.call(ctx, CreateContactGroup, r.wire(), &a); err != nil {
		return Response{}, err
	}
	m := matcher{clean: c.clean}
	var response Response
	for _, g := range a.GroupResultItem {
		m.add(g.ResultItem)
		response.GroupID = cmp.Or(response.GroupID, g.GroupItem.GroupID.n)
	}
	response.Items = m.match(make([]ItemResult, 0, len(r.Items)), r.Items, optNone)
	return response, nil
}

// Update adds conversations to a group that exists and takes others out of it. An accepted update whose response has no
// list of conversations at all counts as done for every one, for documents do not agree on its shape. If the list is too
// short, the rest is not Reported.
func (c *Client) Update(ctx context.Context, r UpdateRequest) (Response, error) {
	body := updateBody{FromAccount: r.FromAccount, UpdateType: updateGroup}
	body.UpdateGroup.UpdateGroupType = updateMembers
	body.UpdateGroup.OldGroupName = r.GroupName
	list := make([]updateItem, 0, len(r.Add)+len(r.Remove))
	for _, it := range r.Add {
		list = append(list, updateItem{ContactOptType: optAdd, ContactItem: toWire(it)})
	}
	for _, it := range r.Remove {
		list = append(list, updateItem{ContactOptType: optRemove, ContactItem: toWire(it)})
	}
	body.UpdateGroup.ContactUpdateItem = list

	var a updateResponse
	if err := c.call(ctx, UpdateContactGroup, &body, &a); err != nil {
		return Response{}, err
	}
	m := matcher{clean: c.clean}
	var response Response
	for _, g := range a.UpdateGroupResult {
		m.add(g.ContactResultItem)
		m.add(g.ResultItem)
		response.GroupID = cmp.Or(response.GroupID, g.GroupID.n)
	}
	for _, g := range a.GroupResultItem {
		m.add(g.ResultItem)
		response.GroupID = cmp.Or(response.GroupID, g.GroupItem.GroupID.n)
	}
	items := make([]ItemResult, 0, len(list))
	if m.listed {
		items = m.match(items, r.Add, optAdd)
		items = m.match(items, r.Remove, optRemove)
	} else {
		for _, it := range r.Add {
			items = append(items, ItemResult{Item: it, Reported: true})
		}
		for _, it := range r.Remove {
			items = append(items, ItemResult{Item: it, Reported: true})
		}
	}
	response.Items = items
	return response, nil
}

// Rename renames a group.
func (c *Client) Rename(ctx context.Context, r RenameRequest) error {
	body := updateBody{FromAccount: r.FromAccount, UpdateType: updateGroup}
	body.UpdateGroup.UpdateGroupType = renameGroup
	body.UpdateGroup.OldGroupName, body.UpdateGroup.NewGroupName = r.OldName, r.NewName
	var a baseResponse
	return c.call(ctx, UpdateContactGroup, &body, &a)
}

// Get reads a page of a user's groups: the first from start 0, each other from the Next of the one before it.
func (c *Client) Get(ctx context.Context, fromAccount string, start int64) (Page, error) {
	var a getResponse
	err := c.call(ctx, GetContactGroup, &getBody{FromAccount: fromAccount, StartIndex: start}, &a)
	if err != nil {
		return Page{}, err
	}
	p := Page{
		Groups:        make(map[int64]string, len(a.GroupItem)),
		Conversations: make([]Membership, len(a.ContactItem)),
		Next:          a.NextStartIndex.n,
		Complete:      a.CompleteFlag.n == 1,
	}
	for _, g := range a.GroupItem {
		p.Groups[g.GroupID.n] = g.GroupName
	}
	for i := range a.ContactItem {
		from := &a.ContactItem[i]
		ids := make([]int64, len(from.ContactGroupID))
		for j, id := range from.ContactGroupID {
			ids[j] = id.n
		}
		p.Conversations[i] = Membership{Item: from.item(), GroupIDs: ids}
	}
	return p, nil
}

// Delete removes a group of a user. That there is no such group is no error: it is what was asked for.
func (c *Client) Delete(ctx context.Context, fromAccount, groupName string) error {
	var a baseResponse
	err := c.call(ctx, DelContactGroup, &deleteBody{FromAccount: fromAccount, GroupName: [1]string{groupName}}, &a)
	if e, ok := err.(*Error); ok && e.Code == CodeNoSuchGroup {
		return nil
	}
	return err
}

// A matcher finds for each conversation of a request what the response says about it.
type matcher struct {
	clean   func(string) string
	listed  bool // there was a list, if an empty one
	results []responseResult
	next    int                 // while the server keeps the order of the request, the result that is due
	byItem  map[resultKey][]int // where it does not: the results that are not used yet
}

type resultKey struct {
	opt int64
	Item
}

func (m *matcher) add(list []responseResult) {
	m.listed = m.listed || list != nil
	if m.results == nil {
		m.results = list // the usual response has one
	} else {
		m.results = append(m.results, list...)
	}
}

// match appends a result for each of items to out. Every result of the response is used for one conversation only, so a
// conversation that is sent twice needs two results.
func (m *matcher) match(out []ItemResult, items []Item, opt int64) []ItemResult {
	for _, it := range items {
		r := ItemResult{Item: it}
		if found := m.take(resultKey{opt, it}); found != nil && found.ResultCode.ok {
			r.Reported = true
			r.Code = int(found.ResultCode.n)
			r.Info = m.clean(found.ResultInfo)
		}
		out = append(out, r)
	}
	return out
}

func (m *matcher) take(want resultKey) *responseResult {
	if m.byItem == nil {
		if m.next < len(m.results) {
			got := m.key(m.next)
			if got.Item == want.Item && (got.opt == want.opt || got.opt == optNone) {
				m.next++
				return &m.results[m.next-1]
			}
		}
		m.byItem = make(map[resultKey][]int)
		for i := m.next; i < len(m.results); i++ {
			k := m.key(i)
			m.byItem[k] = append(m.byItem[k], i)
		}
	}
	// A result that does not say its operation serves either.
	for _, k := range []resultKey{want, {optNone, want.Item}} {
		if left := m.byItem[k]; len(left) > 0 {
			m.byItem[k] = left[1:]
			return &m.results[left[0]]
		}
	}
	return nil
}

func (m *matcher) key(i int) resultKey {
	return resultKey{m.results[i].ContactOptType.n, m.results[i].ContactItem.item()}
}
