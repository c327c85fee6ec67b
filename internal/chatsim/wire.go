package chatsim

import "groupferry/internal/chat"

// The numbers from the documentation of update_contact_group.
const (
	updateGroup = 1 // UpdateType: a group, not a mark

	renameGroup   = 1 // UpdateGroupType
	updateMembers = 2

	optAdd    = 1 // ContactOptType
	optRemove = 2
)

// A request is the body of any command; each uses its own fields.
type request struct {
	FromAccount string `json:"From_Account"`

	GroupContactItem []struct { // create
		GroupName   string
		ContactItem []wireItem
	}

	UpdateType  int // update
	UpdateGroup struct {
		UpdateGroupType   int
		OldGroupName      string
		NewGroupName      string
		ContactUpdateItem []struct {
			ContactOptType int
			ContactItem    wireItem
		}
	}

	GroupName []string // delete

	StartIndex int64 // get
}

type wireItem struct {
	Type      int
	ToAccount string `json:"To_Account,omitempty"`
	ToGroupID string `json:"ToGroupId,omitempty"`
}

func (w *wireItem) item() chat.Item {
	if w.Type == chat.GroupChat {
		return chat.Item{Type: w.Type, ID: w.ToGroupID}
	}
	return chat.Item{Type: w.Type, ID: w.ToAccount}
}

func toWire(it chat.Item) wireItem {
	if it.Type == chat.GroupChat {
		return wireItem{Type: it.Type, ToGroupID: it.ID}
	}
	return wireItem{Type: it.Type, ToAccount: it.ID}
}

// base has the fields of every response.
type base struct {
	ActionStatus string
	ErrorCode    int
	ErrorInfo    string
	ErrorDisplay string
}

var okBase = base{ActionStatus: "OK"}

type groupItem struct {
	GroupName string
	GroupID   int64 `json:"GroupId"`
}

type itemResult struct {
	ContactOptType int `json:",omitempty"`
	ContactItem    wireItem
	ResultCode     int
	ResultInfo     string
}

type groupResult struct {
	GroupItem  groupItem
	ResultItem []itemResult
}

type createResponse struct {
	GroupResultItem [1]groupResult
	base
}

type updateResponse struct {
	UpdateType        int
	UpdateGroupResult struct {
		UpdateGroupType   int
		GroupName         string
		GroupID           int64 `json:"GroupId"`
		OldGroupName      string
		ContactResultItem []itemResult `json:",omitempty"`
	}
	base
}

type delResponse struct {
	GroupItem []groupItem
	base
}

type getItem struct {
	wireItem
	ContactGroupID []int64 `json:"ContactGroupId"`
	Timestamp      int64
}

type getResponse struct {
	ContactItem    []getItem
	GroupItem      []groupItem
	CompleteFlag   int
	NextStartIndex int64
	base
}
