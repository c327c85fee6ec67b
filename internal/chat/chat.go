// Package chat is the client of the Chat REST API: the commands that write and read conversation groups, their codes
// and what to do about each, their limits, the regions, and the UserSig that proves who calls.
//
//	CreateRequest ──► JSON body ──► POST HOST/v4/recentcontact/COMMAND?sdkappid=…&usersig=… ──► HTTP 200
//	                                                                                               │
//	     *Error ◄── Class: retry, throttle, refresh, halt … ◄── a code, or no readable response ◄────┤
//	     Response ◄── one ItemResult per conversation, in the order of the request ◄─────────────────┘
//
// A call is one HTTP request. The client makes it once: it keeps no pace, repeats nothing and follows no redirect.
// Whoever calls decides that from [Error.Class]. A call that the API accepted is no error even where some of its
// conversations failed; their results say so.
//
// Who paces the calls says with [WithDeadline] until when one may be sent. That is looked at where the connection is
// written to, so a process that stood still in between sends nothing. Where the system has TCP_USER_TIMEOUT (Linux), its
// kernel drops what was not acknowledged for as long as a call may take.
//
// A [Client] signs its own UserSig from the secret key and signs a new one after three quarters of its lifetime, or
// takes one that is ready. Neither the key nor the signature, nor a URL that holds one, is in anything that this
// package returns or prints: a [Secret] formats as "(secret)", the cause of an [Error] keeps the text of a network
// error and not the error, and what a server sends back is searched for the signature before it is kept.
//
// The simulator in package chatsim speaks the other side.
package chat

import "time"

// A Command is the last part of the path of a call. Each command has its own limit on calls per second.
type Command string

// The commands, under the names of their documents.
const (
	CreateContactGroup Command = "create_contact_group"
	UpdateContactGroup Command = "update_contact_group"
	GetContactGroup    Command = "get_contact_group"
	DelContactGroup    Command = "del_contact_group"
)

// Commands lists all commands.
func Commands() []Command {
	return []Command{CreateContactGroup, UpdateContactGroup, GetContactGroup, DelContactGroup}
}

// PathPrefix stands before the command in the path of every call.
const PathPrefix = "/v4/recentcontact/"

// The limits of the API. Their source is the vendor's document of create_contact_group, and for the two ids that of
// the account and group systems. The code is that of the response to a call over the limit.
const (
	MaxItemsPerCall          = 100  // conversations in one call; 51006
	MaxConversationsPerGroup = 1000 // 51008
	MaxGroupsPerUser         = 20   // 51010
	MaxGroupNameBytes        = 32   // UTF-8; 51011
	MaxUserIDBytes           = 32   // printable ASCII; 50002
	MaxGroupIDBytes          = 48   // printable ASCII; 50002
	MaxRate                  = 200  // calls a second for each command of one app; 60007
)

// ServerTimeout is when the API itself gives up a call, by the vendor's document. A caller that waits less may be gone
// when the call takes effect.
const ServerTimeout = 3 * time.Second

// The types of an [Item].
const (
	OneToOne  = 1 // the id is a user id
	GroupChat = 2 // the id is a group id
)

// An Item is one conversation as the API sees it.
type Item struct {
	Type int    `json:"type"` // OneToOne or GroupChat
	ID   string `json:"id"`   // user id or group id, as Type says
}

// A CreateRequest puts 1 to [MaxItemsPerCall] conversations into a group of a user. What the API does when the group
// is there already is in no document.
type CreateRequest struct {
	FromAccount string
	GroupName   string
	Items       []Item
}

// An UpdateRequest adds conversations to a group and takes others out; 1 to [MaxItemsPerCall] together.
type UpdateRequest struct {
	FromAccount string
	GroupName   string
	Add, Remove []Item
}

// A RenameRequest gives a group that exists another name. What it holds stays.
type RenameRequest struct {
	FromAccount string
	OldName     string
	NewName     string
}

// A Response says what became of every conversation of a call that the API accepted.
type Response struct {
	GroupID int64        // as the API numbered the group; 0 when it did not say
	Items   []ItemResult // one for each conversation of the request, in its order; Add before Remove
}

// An ItemResult is the result of one conversation.
type ItemResult struct {
	Item
	Code     int    // 0: done, if Reported
	Info     string // the server's text for a code, cleaned and cut; for people
	Reported bool   // the response has a result for the conversation; if false, it is not done
}

// A Page is a part of a user's groups.
type Page struct {
	Groups        map[int64]string // name by group id
	Conversations []Membership
	Next          int64 // where the next page starts
	Complete      bool  // this is the last page
}

// A Membership says which groups a conversation is in.
type Membership struct {
	Item
	GroupIDs []int64
}
