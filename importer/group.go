package importer

import (
	"bytes"
	"cmp"
	"hash/maphash"
	"slices"

	"groupferry/internal/chat"
)

// A grouper sorts the rows of one partition into users and groups, and holds the limits: 20 groups of a user, 1,000
// conversations in a group. Rows come in the order of the input. So it is known at each row whether it is accepted, and
// only an accepted one takes memory: at most 20,000 rows of a user, however many there are.
type grouper struct {
	seed    maphash.Seed
	keys    []byte // of the groups, concatenated
	entries []byte // of the rows, concatenated
	users   []user
	groups  []group
	rows    []groupRow

	userIndex, groupIndex, rowIndex index
}

type user struct {
	hash   uint64 // see hashUser
	key    uint32 // offset in keys of the key of a group of the user
	n      uint32 // groups so far
	rows   uint32
	groups [chat.MaxGroupsPerUser]uint32 // in the order of their first rows
}

type group struct {
	key     uint32 // offset in keys
	keySize uint16
	rank    uint16 // among the groups of its user, from 0
	user    uint32
	rows    uint32
	size    uint32 // of their entries in bytes
}

// A groupRow is an accepted row.
type groupRow struct {
	entry uint32 // offset in entries
	size  uint16 // of the entry
	conv  uint16 // of the conversation in it
	group uint32
}

// The size of users, groups and rows in bytes, each with its slot in an index: a map has 17 bytes a slot and is 7/16
// to 7/8 full.
const (
	indexBytes    = 39
	bytesPerUser  = 104 + indexBytes
	bytesPerGroup = 24 + indexBytes + layoutBytes
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
func (g *grouper) groupsOf(u *user) []uint32 { return u.groups[:u.n] }
func (g *grouper) rowOf(r *groupRow) spooledRow {
	return spooledRow{g.keyOf(&g.groups[r.group]), g.entryOf(r)}
}

// add adds the next row of the partition. It does not keep the memory of r.
func (g *grouper) add(r spooledRow) verdict {
	n, ok := g.findGroup(r.group)
	if !ok {
		return tooManyGroups
	}
	conv := r.entry.conversation()
	// The odd factor makes the hashes of one conversation in different groups different.
	_, key, again := g.rowIndex.find(maphash.Bytes(g.seed, conv)^uint64(n)*0x9e3779b97f4a7c15, func(i uint32) bool {
		return g.rows[i].group == n && bytes.Equal(g.entryOf(&g.rows[i]).conversation(), conv)
	})
	at := &g.groups[n]
	switch {
	case again:
		return duplicate
	case at.rows == chat.MaxConversationsPerGroup:
		return tooManyConversations
	}
	g.rowIndex[key] = uint32(len(g.rows))
	size := len(r.entry.bytes)
	g.rows = append(g.rows, groupRow{uint32(len(g.entries)), uint16(size), uint16(r.entry.conv), n})
	g.entries = append(g.entries, r.entry.bytes...)
	at.rows++
	at.size += uint32(size)
	g.users[at.user].rows++
	return accepted
}

// findGroup returns the number of a group, which it creates if needed. ok is false if its user has too many groups for that.
func (g *grouper) findGroup(key groupKey) (n uint32, ok bool) {
	n, groupSlot, ok := g.groupIndex.find(maphash.Bytes(g.seed, key), func(i uint32) bool {
		return bytes.Equal(g.keyOf(&g.groups[i]), key)
	})
	if ok {
		return n, true
	}
	name := key.user()
	// hashUser is no match for someone who wants ids to collide.
	u, userSlot, ok := g.userIndex.find(maphash.Bytes(g.seed, name), func(i uint32) bool {
		return bytes.Equal(g.nameOf(&g.users[i]), name)
	})
	if !ok {
		u = uint32(len(g.users))
		g.userIndex[userSlot] = u
		g.users = append(g.users, user{hash: hashUser(name), key: uint32(len(g.keys))})
	}
	owner := &g.users[u]
	if owner.n == chat.MaxGroupsPerUser {
		return 0, false
	}
	n = uint32(len(g.groups))
	g.groupIndex[groupSlot] = n
	g.groups = append(g.groups,
		group{key: uint32(len(g.keys)), keySize: uint16(len(key)), rank: uint16(owner.n), user: u})
	g.keys = append(g.keys, key...)
	owner.groups[owner.n] = n
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

// jobOrder returns the groups in the order of [Plan.Jobs].
func (g *grouper) jobOrder() []uint32 {
	order := make([]uint32, len(g.groups))
	for i := range order {
		order[i] = uint32(i)
	}
	slices.SortFunc(order, func(a, b uint32) int {
		x, y := &g.groups[a], &g.groups[b]
		u, v := &g.users[x.user], &g.users[y.user]
		if c := cmp.Or(cmp.Compare(x.rank, y.rank), cmp.Compare(u.hash, v.hash)); c != 0 {
			return c
		}
		return bytes.Compare(g.nameOf(u), g.nameOf(v))
	})
	return order
}
