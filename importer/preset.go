package importer

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	"groupferry/internal/job"
)

// A preset reads what another system exports.
type preset struct {
	columns   map[string]string // names of columns that the system has
	translate func(*row)        // translates ids, or sets row.invalidReason
	documents bool              // whole JSON documents instead of rows
}

var presets = map[string]preset{
	// Responses of OpenIM's get_conversation_groups, one or many.
	"openim": {documents: true},

	// Responses of NetEase Yunxin that list conversation groups, and conversations with the ids of their groups.
	"yunxin": {documents: true},

	// The table rostergroups of an ejabberd.
	"xmpp": {
		columns:   map[string]string{"from_account": "username", "to_account": "jid", "group_name": "grp"},
		translate: fromXMPP,
	},

	// The conversation ids of Chat's own client SDKs.
	"sdk": {columns: map[string]string{"to_account": "conversation_id"}, translate: fromSDK},
}

// Presets are the names that [Config.Preset] can have.
func Presets() []string { return slices.Sorted(maps.Keys(presets)) }

// presetOf returns the preset of which a header has all columns, or "".
func presetOf(header []string) string {
	has := func(name string) bool {
		return slices.ContainsFunc(header, func(s string) bool { return canonicalName(s) == canonicalName(name) })
	}
	for _, name := range Presets() {
		columns := slices.Collect(maps.Values(presets[name].columns))
		if len(columns) > 0 && !slices.ContainsFunc(columns, func(s string) bool { return !has(s) }) {
			return name
		}
	}
	return ""
}

// documentMarks are keys that only the responses of a preset have.
var documentMarks = []struct{ key, preset string }{
	{`"conversationIDs"`, "openim"}, {`"ownerUserID"`, "openim"}, {`"conversation_groups"`, "yunxin"}, {`"group_ids"`, "yunxin"},
}

// checkDocument detects, by the beginning of an input, a response of another system, of which every line would be rejected.
func checkDocument(head []byte) error {
	if start := bytes.TrimLeft(head, " \t\r\n"); len(start) == 0 || start[0] != '{' && start[0] != '[' {
		return nil
	}
	for _, mark := range documentMarks {
		if bytes.Contains(head, []byte(mark.key)) {
			return &Error{Problem: "looks like a response of another system",
				Hint: "--preset " + mark.preset + " reads it; if it is none, say --format jsonl"}
		}
	}
	return nil
}

// setConversation sets type and id.
func setConversation(r *row, kind int, id string) {
	r.field[colType], r.field[colUser], r.field[colChat], r.noType = fmt.Sprint(kind), "", "", false
	if kind == job.GroupChat {
		r.field[colChat] = id
	} else {
		r.field[colUser] = id
	}
}

// fromSDK reads the ids of the native SDKs (c2c_ID, group_ID) and of those for the web (C2CID, GROUPID).
func fromSDK(r *row) {
	id := r.field[colUser]
	for _, p := range []struct {
		prefix string
		kind   int
	}{{"c2c_", job.OneToOne}, {"group_", job.GroupChat}, {"C2C", job.OneToOne}, {"GROUP", job.GroupChat}} {
		if rest, ok := strings.CutPrefix(id, p.prefix); ok && rest != "" {
			setConversation(r, p.kind, rest)
			return
		}
	}
	r.invalidReason = "conversation_id is neither c2c_ID nor group_ID, C2CID nor GROUPID"
}

// fromXMPP takes the local part of an address; a server by itself has none.
func fromXMPP(r *row) {
	local, _, ok := strings.Cut(r.field[colUser], "@")
	if !ok || local == "" {
		r.invalidReason = "jid is not name@server"
		return
	}
	setConversation(r, job.OneToOne, local)
}

// fromOpenIM reads si_A_B, one of which is the owner, and sg_ID. Ids may hold the underscore that joins them.
func fromOpenIM(r *row, id string) {
	owner := r.field[colFrom]
	r.field[colUser] = id
	if group, ok := strings.CutPrefix(id, "sg_"); ok {
		setConversation(r, job.GroupChat, group)
		return
	}
	if pair, ok := strings.CutPrefix(id, "si_"); ok && owner != "" {
		if peer, ok := strings.CutPrefix(pair, owner+"_"); ok {
			setConversation(r, job.OneToOne, peer)
			return
		}
		if peer, ok := strings.CutSuffix(pair, "_"+owner); ok {
			setConversation(r, job.OneToOne, peer)
			return
		}
		r.invalidReason = "the owner of the group is not in the conversation id"
		return
	}
	r.invalidReason = "the conversation id is neither si_A_B nor sg_ID"
}

// fromYunxin reads owner|type|target: type 1 is a person, 2 and 3 are kinds of groups.
func fromYunxin(r *row, id string) {
	r.field[colUser] = id
	parts := strings.SplitN(id, "|", 3)
	if len(parts) < 3 {
		r.invalidReason = "the conversation id is not owner|type|target"
		return
	}
	r.field[colFrom] = parts[0]
	switch parts[1] {
	case "1":
		setConversation(r, job.OneToOne, parts[2])
	case "2", "3":
		setConversation(r, job.GroupChat, parts[2])
	default:
		r.invalidReason = "the type in the conversation id is none of 1, 2 and 3"
	}
}
