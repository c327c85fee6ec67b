package importer

import (
	"cmp"
	"hash/fnv"
	"io"
	"slices"
	"strings"

	"groupferry/internal/chat"
)

// A grouping holds the good rows of all inputs until the last one is read, for the rows of a group need not stand
// together. It keeps a row in 32 bytes and its id, without a pointer: users and groups are numbered, ids stand one
// behind the other in large pieces of memory. It holds up to 4 billion rows.
type grouping struct {
	users  []user
	groups []group // in the order of their first row
	rows   members
	keys   arena

	userNumbers  map[string]uint32
	groupNumbers map[groupKey]uint32
}

type user struct {
	id     string
	groups uint32 // so far
}

type group struct {
	user uint32
	rank uint32 // among the groups of its user, by first row
	name string
	rows uint32 // of it in rows
	// members are its conversations in the order of their rows, as numbers in grouping.rows. Set by settle.
	members []uint32
}

type groupKey struct {
	user uint32
	name string
}

// A member is a row that wants to be in a group. What it wants there, its key, is the digit of the type and the id.
type member struct {
	line  int64
	key   place
	group uint32
	file  uint32
}

func newGrouping() *grouping {
	return &grouping{userNumbers: map[string]uint32{}, groupNumbers: map[groupKey]uint32{}}
}

// add takes a row that has passed its check. Rows must come in the order of the inputs and their lines.
func (g *grouping) add(r *row, kind int, id string) {
	u, ok := g.userNumbers[r.field[colFrom]]
	if !ok {
		u = uint32(len(g.users))
		name := strings.Clone(r.field[colFrom])
		g.users = append(g.users, user{id: name})
		g.userNumbers[name] = u
	}
	key := groupKey{u, r.field[colGroup]}
	n, ok := g.groupNumbers[key]
	if !ok {
		n = uint32(len(g.groups))
		key.name = strings.Clone(key.name)
		g.groups = append(g.groups, group{user: u, rank: g.users[u].groups, name: key.name})
		g.users[u].groups++
		g.groupNumbers[key] = n
	}
	g.groups[n].rows++
	g.rows.add(member{line: r.line, key: g.keys.add(byte('0'+kind), id), group: n, file: uint32(r.file)})
}

// settle gives every group its members: without the rows that say the same again, which duplicate hears of, and
// without those over a limit of the API, which excess hears of. Both limits count in the order of the input, after
// duplicates are gone. Call it once, after the last add.
func (g *grouping) settle(duplicate func(*member), excess func(m *member, code string)) {
	g.userNumbers, g.groupNumbers = nil, nil
	order := make([]uint32, g.rows.n)
	next := make([]uint32, len(g.groups))
	at := uint32(0)
	for i := range g.groups {
		next[i] = at
		g.groups[i].members = order[at : at : at+g.groups[i].rows]
		at += g.groups[i].rows
	}
	for i := range g.rows.n {
		n := g.rows.at(i).group
		order[next[n]] = i
		next[n]++
	}
	there := map[string]struct{}{} // keys in the group at hand
	for i := range g.groups {
		gr := &g.groups[i]
		all := gr.members[:gr.rows]
		clear(there)
		for _, n := range all {
			m := g.rows.at(n)
			if len(all) > 1 {
				key := g.keys.text(m.key)
				if _, again := there[key]; again {
					duplicate(m)
					continue
				}
				there[key] = struct{}{}
			}
			switch {
			case gr.rank >= chat.MaxGroupsPerUser:
				excess(m, codeTooManyGroups)
			case len(gr.members) == chat.MaxConversationsPerGroup:
				excess(m, codeTooManyConversations)
			default:
				gr.members = append(gr.members, n)
			}
		}
	}
}

// jobs are the groups that have members, in the order in which their jobs go out: all first groups of users, then
// all second ones, and so on, and within such a round by a hash of the user. Calls for one user may not overlap, so the
// groups of a user stand as far apart as they can, and the order depends on nothing but the data.
func (g *grouping) jobs() []uint32 {
	hashes := make([]uint64, len(g.users))
	for i := range g.users {
		hashes[i] = spread(g.users[i].id)
	}
	var order []uint32
	for i := range g.groups {
		if len(g.groups[i].members) > 0 {
			order = append(order, uint32(i))
		}
	}
	slices.SortFunc(order, func(a, b uint32) int {
		x, y := &g.groups[a], &g.groups[b]
		return cmp.Or(
			cmp.Compare(x.rank, y.rank),
			cmp.Compare(hashes[x.user], hashes[y.user]),
			cmp.Compare(g.users[x.user].id, g.users[y.user].id),
		)
	})
	return order
}

// spread hashes a user with 64-bit FNV-1a. Ids that differ in their last digits only have hashes that stand close
// together in FNV, hence the finalizer of MurmurHash3 behind it.
func spread(id string) uint64 {
	f := fnv.New64a()
	io.WriteString(f, id)
	h := f.Sum64()
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	h ^= h >> 33
	return h
}

// crowded finds the users that have more than limit distinct conversations over all their groups, and for each the
// row with which it went over.
func (g *grouping) crowded(limit int) []crowd {
	total := make([]uint32, len(g.users))
	for i := range g.groups {
		total[g.groups[i].user] += uint32(len(g.groups[i].members))
	}
	rows := map[uint32][]uint32{}
	for i := range g.groups {
		if u := g.groups[i].user; total[u] > uint32(limit) {
			rows[u] = append(rows[u], g.groups[i].members...)
		}
	}
	var crowds []crowd
	for u, members := range rows {
		slices.Sort(members)
		there := map[string]struct{}{}
		c := crowd{user: g.users[u].id}
		for _, n := range members {
			m := g.rows.at(n)
			there[g.keys.text(m.key)] = struct{}{}
			if len(there) == limit+1 && c.over == nil {
				c.over = m
			}
		}
		if c.over != nil {
			c.conversations = len(there)
			crowds = append(crowds, c)
		}
	}
	return crowds
}

type crowd struct {
	user          string
	conversations int
	over          *member
}

// conversation tells what a member wants: the type and the id.
func (g *grouping) conversation(m *member) (kind int, id string) {
	key := g.keys.text(m.key)
	return int(key[0] - '0'), key[1:]
}

// Members are held in pieces, so that growing copies nothing and leaves no garbage of half the size behind.
type members struct {
	pieces [][]member
	n      uint32
}

// membersPiece is how many members a piece holds: 256 KiB.
const membersPiece = 8192

func (ms *members) add(m member) {
	if ms.n%membersPiece == 0 {
		ms.pieces = append(ms.pieces, make([]member, 0, membersPiece))
	}
	last := &ms.pieces[ms.n/membersPiece]
	*last = append(*last, m)
	ms.n++
}

// at gives the member of that number, counted from 0 in the order of add.
func (ms *members) at(n uint32) *member { return &ms.pieces[n/membersPiece][n%membersPiece] }

// An arena holds many short strings with no overhead for each of them. What it has given out stays where it is.
type arena struct {
	pieces []*strings.Builder
}

// A place says where a string stands in an arena.
type place struct {
	piece uint32
	from  uint32
	size  uint8
}

// pieceSize is small beside the rows that fill it, and large beside what its last string may leave over.
const pieceSize = 1 << 20

// add copies first and rest, which have at most 255 bytes together, into the arena as one string.
func (a *arena) add(first byte, rest string) place {
	n := len(a.pieces) - 1
	if n < 0 || a.pieces[n].Len()+1+len(rest) > pieceSize {
		b := new(strings.Builder)
		b.Grow(pieceSize)
		a.pieces = append(a.pieces, b)
		n++
	}
	b := a.pieces[n]
	p := place{piece: uint32(n), from: uint32(b.Len()), size: uint8(1 + len(rest))}
	b.WriteByte(first)
	b.WriteString(rest)
	return p
}

// text is the string at p. It shares the memory of the arena.
func (a *arena) text(p place) string {
	return a.pieces[p.piece].String()[p.from : p.from+uint32(p.size)]
}
