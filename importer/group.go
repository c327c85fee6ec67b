package importer

import (
	"bytes"
	"cmp"
	"hash/maphash"
	"iter"
	"slices"

	"groupferry/internal/chat"
)

// A grouper sorts the rows of one partition into users and groups, and holds the limits: 20 groups of a user, 1,000
// conversations in a group. Rows come in the order of the input. So it is known at each row whether it is accepted, and
// only an accepted one takes memory: at most 20,000 rows of a user, however many there are.
//
// A grouper that is limitless holds what a sync knows of the groups: see base.go.
type grouper struct {
	limitless bool
	all       bool // send what the base has, too

	again func(spooledRow) bool // reports whether a sync sent a row in vain before; nil without a base

	seed    maphash.Seed
	keys    []byte // of the groups, concatenated
	entries []byte // of the rows, concatenated
	users   []user
	groups  []group
	rows    []groupRow

	userIndex, groupIndex, rowIndex index
}

type user struct {
	hash        uint64 // see hashUser
	key         uint32 // offset in keys of the key of a group of the user
	n           uint32 // groups so far
	rows        uint32
	first, last uint32 // its groups, in the order of their first rows
}

type group struct {
	key     uint32 // offset in keys
	keySize uint16
	rank    uint16 // among the groups of its user, from 0
	user    uint32
	next    uint32 // the user's next group, if there is one
	rows    uint32
	known   uint32   // of these: the base has them
	wanted  uint32   // of these: they are accepted
	send    uint32   // of the wanted ones: its job adds them
	removes uint32   // of these: its job removes them
	size    uint32   // of the entries of both in bytes
	kept    uint32   // of the entries of the other wanted ones, in bytes
	deleted bool     // all of it goes
	was     groupKey // what it is renamed from; nil: it is not
}

// hasJob reports whether something is to be done with a group.
func (at *group) hasJob() bool { return at.send > 0 || at.removes > 0 || at.was != nil }

// keeps returns how many wanted conversations, which are there, the job of a group has, and the size of their entries: for
// the case that the group has to be created anew.
func (at *group) keeps() (n, size uint32) {
	if at.send == 0 && at.was == nil {
		return 0, 0
	}
	return at.wanted - at.send, at.kept
}

// A groupRow is an accepted row, or one of the base.
type groupRow struct {
	entry uint32 // offset in entries
	group uint32
	size  uint8 // of the entry
	conv  uint8 // of the conversation in it
	state rowState
}

// A rowState is what a row stands for.
type rowState uint8

const (
	toSend    rowState = iota // wanted, and in the group's job: every row where there is no base
	applied                   // the base says that it is in the group
	unchanged                 // so it does, and the row is wanted
	toRemove                  // the base says so, and the job removes it

	// In the fold of a base alone, beside applied:
	refused // it was sent, and is not in the group
	unsure  // it was sent, or was to be removed, and nobody knows whether it is in the group
	gone    // the sync has nothing to do with it any more
	renamed // what is known of the group is known of another one
	noGroup // nothing is known of the group any more
	ofOther // the group is another sync's
)

// live reports whether a row of a fold may be in its group.
func (s rowState) live() bool { return s == applied || s == unsure }

// wanted reports whether an accepted row asked for it.
func (s rowState) wanted() bool { return s == toSend || s == unchanged }

// The size of users, groups and rows in bytes, each with its slot in an index: a map has 17 bytes a slot and is 7/16
// to 7/8 full.
const (
	indexBytes    = 39
	bytesPerUser  = 32 + indexBytes
	bytesPerGroup = 72 + indexBytes + layoutBytes
	bytesPerRow   = 12 + indexBytes
)

// A verdict is what becomes of a row.
type verdict int

const (
	accepted  verdict = iota
	duplicate         // its group has the conversation
	tooManyConversations
	tooManyGroups
)

func newGrouper() *grouper {
	return &grouper{seed: maphash.MakeSeed(), userIndex: index{}, groupIndex: index{}, rowIndex: index{}}
}

// reset makes g empty. It keeps its memory.
func (g *grouper) reset() {
	g.keys, g.entries = g.keys[:0], g.entries[:0]
	g.users, g.groups, g.rows = g.users[:0], g.groups[:0], g.rows[:0]
	clear(g.userIndex)
	clear(g.groupIndex)
	clear(g.rowIndex)
}

// used is about how much memory g needs in bytes, the layout of its jobs included.
func (g *grouper) used() int {
	return 2*(len(g.keys)+len(g.entries)) + bytesPerUser*len(g.users) + bytesPerGroup*len(g.groups) + bytesPerRow*len(g.rows)
}

func (g *grouper) keyOf(at *group) groupKey  { return g.keys[at.key:][:at.keySize] }
func (g *grouper) nameOf(u *user) []byte     { return groupKey(g.keys[u.key:]).user() }
func (g *grouper) entryOf(r *groupRow) entry { return entry{g.entries[r.entry:][:r.size], int(r.conv)} }

// groupsOf gives the groups of a user in the order of their first rows.
func (g *grouper) groupsOf(u *user) iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		for at, left := u.first, u.n; left > 0 && yield(at); left-- {
			at = g.groups[at].next
		}
	}
}

func (g *grouper) rowOf(r *groupRow) spooledRow {
	return spooledRow{g.keyOf(&g.groups[r.group]), g.entryOf(r)}
}

// add adds the next row of the partition. It does not keep the memory of r.
func (g *grouper) add(r spooledRow) verdict {
	n, ok := g.findGroup(r.group)
	if !ok {
		return tooManyGroups
	}
	found, key, again := g.findRow(n, r.entry.conversation())
	at := &g.groups[n]
	switch {
	case again && g.rows[found].state == applied:
		of := &g.rows[found]
		of.entry, of.size, of.state = uint32(len(g.entries)), uint8(len(r.entry.bytes)), unchanged
		g.entries = append(g.entries, r.entry.bytes...) // with the place in the input
		at.wanted++
		if g.all {
			of.state = toSend
			at.send++
			at.size += uint32(len(r.entry.bytes))
		} else {
			at.kept += uint32(len(r.entry.bytes))
		}
		return accepted
	case again:
		return duplicate
	case at.rows >= chat.MaxConversationsPerGroup:
		return tooManyConversations
	}
	g.append(r.entry, n, key, toSend)
	at.wanted++
	at.send++
	at.size += uint32(len(r.entry.bytes))
	return accepted
}

// findRow returns the row of a group with that conversation, or else the free key for a new one.
func (g *grouper) findRow(group uint32, conv []byte) (n uint32, key uint64, ok bool) {
	// The odd factor makes the hashes of one conversation in different groups different.
	return g.rowIndex.find(maphash.Bytes(g.seed, conv)^uint64(group)*0x9e3779b97f4a7c15, func(i uint32) bool {
		return g.rows[i].group == group && bytes.Equal(g.entryOf(&g.rows[i]).conversation(), conv)
	})
}

// append adds a row that is not there to a group.
func (g *grouper) append(e entry, group uint32, key uint64, state rowState) {
	g.rowIndex[key] = uint32(len(g.rows))
	g.rows = append(g.rows, groupRow{uint32(len(g.entries)), group, uint8(len(e.bytes)), uint8(e.conv), state})
	g.entries = append(g.entries, e.bytes...)
	at := &g.groups[group]
	at.rows++
	g.users[at.user].rows++
}

// put sets the state of a row, which it adds if needed.
func (g *grouper) put(r spooledRow, state rowState) {
	n, ok := g.findGroup(r.group)
	if !ok { // the API let no more in, and the base cannot have them
		return
	}
	found, key, again := g.findRow(n, r.entry.conversation())
	if again {
		if state == refused && g.rows[found].state.live() { // it was sent once more, and that takes nothing out
			state = unsure
		}
		g.rows[found].state = state
		return
	}
	g.append(r.entry, n, key, state)
	g.groups[n].known++
}

// remove adds a row that its group's job removes. The group may be one too many for its user, until it is deleted.
func (g *grouper) remove(key groupKey, e entry, deleted bool) {
	limitless := g.limitless
	g.limitless = true
	n, _ := g.findGroup(key)
	g.limitless = limitless
	conv := e.conversation()
	_, slot, _ := g.findRow(n, conv)
	g.append(entry{append(conv[:len(conv):len(conv)], 0, 0), len(conv)}, n, slot, toRemove)
	at := &g.groups[n]
	at.removes++
	at.size += uint32(len(conv) + 2)
	at.deleted = deleted
}

func (g *grouper) indexGroup(key groupKey) (n uint32, slot uint64, ok bool) {
	return g.groupIndex.find(maphash.Bytes(g.seed, key), func(i uint32) bool {
		return bytes.Equal(g.keyOf(&g.groups[i]), key)
	})
}

func (g *grouper) indexUser(name []byte) (n uint32, slot uint64, ok bool) {
	// hashUser is no match for someone who wants ids to collide.
	return g.userIndex.find(maphash.Bytes(g.seed, name), func(i uint32) bool {
		return bytes.Equal(g.nameOf(&g.users[i]), name)
	})
}

// lookUp returns the number of a group.
func (g *grouper) lookUp(key groupKey) (n uint32, ok bool) {
	n, _, ok = g.indexGroup(key)
	return n, ok
}

// groupCount returns how many groups a user has.
func (g *grouper) groupCount(name []byte) int {
	if u, _, ok := g.indexUser(name); ok {
		return int(g.users[u].n)
	}
	return 0
}

// findGroup returns the number of a group, which it creates if needed. ok is false if its user has too many groups for that.
func (g *grouper) findGroup(key groupKey) (n uint32, ok bool) {
	n, groupSlot, ok := g.indexGroup(key)
	if ok {
		return n, true
	}
	name := key.user()
	u, userSlot, ok := g.indexUser(name)
	if !ok {
		u = uint32(len(g.users))
		g.userIndex[userSlot] = u
		g.users = append(g.users, user{hash: hashUser(name), key: uint32(len(g.keys))})
	}
	owner := &g.users[u]
	if owner.n == chat.MaxGroupsPerUser && !g.limitless {
		return 0, false
	}
	n = uint32(len(g.groups))
	g.groupIndex[groupSlot] = n
	g.groups = append(g.groups,
		group{key: uint32(len(g.keys)), keySize: uint16(len(key)), rank: uint16(owner.n), user: u})
	g.keys = append(g.keys, key...)
	if owner.n == 0 {
		owner.first = n
	} else {
		g.groups[owner.last].next = n
	}
	owner.last = n
	owner.n++
	return n, true
}

// An index maps hashes to the numbers of users, groups or rows. If hashes collide, the next free key is used.
type index map[uint64]uint32

// find returns the number with this hash for which is returns true, or else the free key for a new one.
func (x index) find(hash uint64, is func(n uint32) bool) (n uint32, key uint64, ok bool) {
	for key = hash; ; key++ {
		if n, ok = x[key]; !ok || is(n) {
			return n, key, ok
		}
	}
}

// rankOf is the place of the job of a group among those of its user. Groups are deleted last, unless the user has too many
// before that.
func (g *grouper) rankOf(at *group) int {
	u := &g.users[at.user]
	if u.n <= chat.MaxGroupsPerUser {
		return int(at.rank)
	}
	before := 0 // of the groups that come first
	for n := range g.groupsOf(u) {
		if other := &g.groups[n]; other.deleted && !at.deleted || other.deleted == at.deleted && other.rank < at.rank {
			before++
		}
	}
	return before
}

// jobOrder returns the groups that have a job, in the order of [Plan.Jobs], and their ranks.
func (g *grouper) jobOrder() (order []uint32, ranks []uint16) {
	order, ranks = make([]uint32, 0, len(g.groups)), make([]uint16, len(g.groups))
	for i := range g.groups {
		if at := &g.groups[i]; at.hasJob() {
			order = append(order, uint32(i))
			ranks[i] = uint16(g.rankOf(at))
		}
	}
	slices.SortFunc(order, func(a, b uint32) int {
		u, v := &g.users[g.groups[a].user], &g.users[g.groups[b].user]
		if c := cmp.Or(cmp.Compare(min(ranks[a], maxRanks-1), min(ranks[b], maxRanks-1)), cmp.Compare(u.hash, v.hash)); c != 0 {
			return c
		}
		return cmp.Or(bytes.Compare(g.nameOf(u), g.nameOf(v)), cmp.Compare(ranks[a], ranks[b]))
	})
	return order, ranks
}
