package importer

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"unicode"

	"groupferry/internal/chat"
)

const (
	// partitionBits of a user's hash choose the partition: as many as it takes for those of a hundred million rows to fit
	// into the memory of each of four cores without being split.
	partitionBits = 9
	partitions    = 1 << partitionBits

	// splitBits more choose the part of a partition that turned out to be too large.
	splitBits = 4
)

// spread hashes a user with 64-bit FNV-1a. Ids that differ in their last digits only have hashes that stand close
// together in FNV, hence the finalizer of MurmurHash3 behind it.
func spread[T string | []byte](id T) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(id) {
		h = (h ^ uint64(id[i])) * 1099511628211
	}
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	h ^= h >> 33
	return h
}

// A run is what a partition comes to: the jobs of some users, those whose hashes lie next to each other, and the rows
// of theirs that went over a limit. One that is split leaves a run of such rows alone, before those of its parts.
type run struct {
	jobs  []extent
	ranks [chat.MaxGroupsPerUser + 1]int32 // the jobs of rank r are in the extents ranks[r] to ranks[r+1]

	excess tape // of rejects, in the order of the input

	counts   counts
	findings findings
}

type counts struct {
	duplicates, users, jobs, conversations, calls, tooMany, tooManyGroups int64
}

func (c *counts) add(d *counts) {
	c.duplicates += d.duplicates
	c.users += d.users
	c.jobs += d.jobs
	c.conversations += d.conversations
	c.calls += d.calls
	c.tooMany += d.tooMany
	c.tooManyGroups += d.tooManyGroups
}

// A settler makes jobs out of the rows of one partition after the other. The rows of a partition come in the order of
// the input, and that is why it needs no more memory than what is accepted takes: when a row comes it is known whether
// it is one of the first 20 groups, one of the first 1,000 conversations or there already, and a row that is not
// accepted leaves nothing behind. One user who has half of all rows is no special case: 20,000 of them can be accepted.
//
// A partition in which more is accepted than memory was given for is split by more bits of the hash, as soon as that
// shows. Each piece of it gives back its room before the next one is read, so that jobs and rejects take the place of
// the rows on disk.
type settler struct {
	spool     *spool
	budget    int // bytes that the rows of a partition may take
	chunkSize int // conversations in a call

	seed   maphash.Seed
	keys   []byte // of the groups, one behind the other
	convs  []byte // the accepted members, one behind the other
	users  []user
	groups []group
	rows   []accepted

	userTable, groupTable, rowTable table

	order []uint32 // groups, as their jobs come
	jobs  []byte   // one behind the other, in that order

	run    *run
	piece  []byte // of the partition
	buf    []byte
	seen   map[string]struct{} // conversations, or group names, of the user at hand
	placed []placed            // conversations of that user
}

type user struct {
	hash   uint64
	key    uint32 // where in keys a key of the user begins
	groups [chat.MaxGroupsPerUser]uint32
	n      uint32 // groups so far
	rows   uint32 // accepted
}

type group struct {
	key     uint32 // where in keys
	keySize uint16
	rank    uint16 // among the groups of its user, by first row
	user    uint32
	rows    uint32 // accepted
	size    uint32 // of their members
	end     uint32 // of what is laid out of its job in jobs
}

// An accepted row.
type accepted struct {
	member uint32 // where in convs
	size   uint16 // of the member
	conv   uint16 // length of the conversation there
	group  uint32
}

// A placed conversation is one with its place in the input.
type placed struct {
	file int
	line int64
	conv []byte
}

const bytesPerUser, bytesPerGroup, bytesPerRow = 104, 24, 12

// maxJobHead is what a job has beside its key and its members: its length, and the number of members.
const maxJobHead = 2 * binary.MaxVarintLen32

func newSettler(s *spool, budget, chunkSize int) *settler {
	return &settler{
		spool: s, budget: budget, chunkSize: chunkSize, seed: maphash.MakeSeed(), seen: map[string]struct{}{},
	}
}

// settle makes the runs of a partition, in the order of the hashes. bits of the hash are the same for all of its users.
func (s *settler) settle(ctx context.Context, part *tape, bits int) ([]*run, error) {
	s.reset()
	var parts []tape // of the partition, if it turns out not to fit
	err := part.drain(&s.piece, func(b []byte) error {
		for len(b) > 0 {
			r, rest := cutStored(b)
			var err error
			if parts == nil {
				err = s.add(r)
			} else {
				err = parts[partOf(r.key, bits)].add(b[:len(b)-len(rest)])
			}
			if err != nil {
				return err
			}
			b = rest
		}
		if parts == nil && s.used() > s.budget && len(s.users) > 1 && bits+splitBits <= 64 {
			var err error
			if parts, err = s.split(bits); err != nil {
				return err
			}
		}
		return ctx.Err()
	})
	if err != nil {
		return nil, err
	}
	s.run.excess.buf = bytes.Clone(s.run.excess.buf) // that of a full one is kept for as long as the plan
	if parts == nil {
		if len(s.users) == 0 {
			return nil, nil
		}
		if err := s.finish(); err != nil {
			return nil, err
		}
		return []*run{s.run}, nil
	}
	runs := []*run{s.run} // of no jobs, but of what went over a limit until then
	for i := range parts {
		more, err := s.settle(ctx, &parts[i], bits+splitBits)
		if err != nil {
			return nil, err
		}
		runs = append(runs, more...)
		parts[i] = tape{}
	}
	return runs, nil
}

// partOf tells into which part of its partition a row belongs.
func partOf(key []byte, bits int) uint64 { return spread(keyUser(key)) << bits >> (64 - splitBits) }

// split begins the parts of a partition with what was accepted so far, in the order of the input. They come to the same
// from there on.
func (s *settler) split(bits int) ([]tape, error) {
	parts := make([]tape, 1<<splitBits)
	for i := range parts {
		parts[i].spool = s.spool
	}
	for i := range s.rows {
		a := &s.rows[i]
		key := s.keyOf(&s.groups[a.group])
		s.buf = append(append(s.buf[:0], key...), s.memberOf(a)...)
		if err := parts[partOf(key, bits)].add(s.buf); err != nil {
			return nil, err
		}
	}
	return parts, nil
}

func (s *settler) reset() {
	s.keys, s.convs = s.keys[:0], s.convs[:0]
	s.users, s.groups, s.rows = s.users[:0], s.groups[:0], s.rows[:0]
	s.userTable.reset()
	s.groupTable.reset()
	s.rowTable.reset()
	s.run = &run{excess: tape{spool: s.spool}}
}

func (s *settler) used() int {
	return 2*(len(s.keys)+len(s.convs)) + bytesPerUser*len(s.users) + (bytesPerGroup+4+maxJobHead)*len(s.groups) +
		bytesPerRow*len(s.rows) + s.userTable.bytes() + s.groupTable.bytes() + s.rowTable.bytes()
}

func (s *settler) keyOf(g *group) []byte { return s.keys[g.key : g.key+uint32(g.keySize)] }

func (s *settler) userOf(u *user) []byte { return keyUser(s.keys[u.key:]) }

func (s *settler) memberOf(a *accepted) []byte { return s.convs[a.member : a.member+uint32(a.size)] }

func (s *settler) convOf(a *accepted) []byte { return s.convs[a.member : a.member+uint32(a.conv)] }

// add takes the next row of the partition.
func (s *settler) add(r stored) error {
	n, full := s.group(r.key)
	if full {
		s.run.counts.tooManyGroups++
		return s.reject(excessGroup, r)
	}
	g := &s.groups[n]
	conv := r.member[:r.conv]
	hash := maphash.Bytes(s.seed, conv) ^ uint64(n)*0x9e3779b97f4a7c15
	slot := s.rowTable.find(hash, func(i uint32) bool {
		a := &s.rows[i]
		return a.group == n && bytes.Equal(s.convOf(a), conv)
	})
	if _, again := s.rowTable.at(slot); again {
		s.run.counts.duplicates++
		return nil
	}
	if g.rows == chat.MaxConversationsPerGroup {
		s.run.counts.tooMany++
		return s.reject(excessConversation, r)
	}
	i := uint32(len(s.rows))
	s.rowTable.set(slot, hash, i)
	s.rows = append(s.rows,
		accepted{member: uint32(len(s.convs)), size: uint16(len(r.member)), conv: uint16(r.conv), group: n})
	s.convs = append(s.convs, r.member...)
	g.rows++
	g.size += uint32(len(r.member))
	s.users[g.user].rows++
	return nil
}

// group finds the group of a row, or makes it; full is set where its user has as many as there may be.
func (s *settler) group(key []byte) (n uint32, full bool) {
	hash := maphash.Bytes(s.seed, key)
	slot := s.groupTable.find(hash, func(i uint32) bool { return bytes.Equal(s.keyOf(&s.groups[i]), key) })
	if n, there := s.groupTable.at(slot); there {
		return n, false
	}
	from := keyUser(key)
	userHash := maphash.Bytes(s.seed, from) // spread is no match for someone who wants ids to collide
	userSlot := s.userTable.find(userHash, func(i uint32) bool { return bytes.Equal(s.userOf(&s.users[i]), from) })
	u, there := s.userTable.at(userSlot)
	if !there {
		u = uint32(len(s.users))
		s.userTable.set(userSlot, userHash, u)
		s.users = append(s.users, user{hash: spread(from), key: uint32(len(s.keys))})
	}
	at := &s.users[u]
	if at.n == chat.MaxGroupsPerUser {
		return 0, true
	}
	n = uint32(len(s.groups))
	s.groupTable.set(slot, hash, n)
	s.groups = append(s.groups,
		group{key: uint32(len(s.keys)), keySize: uint16(len(key)), rank: uint16(at.n), user: u})
	s.keys = append(s.keys, key...)
	at.groups[at.n] = n
	at.n++
	return n, false
}

// reject keeps a row that is over a limit.
func (s *settler) reject(kind byte, r stored) error {
	s.buf = append(append(append(s.buf[:0], kind), r.key...), r.member...)
	return s.run.excess.add(s.buf)
}

// finish writes the jobs, in the order (rank, hash of the user, user): see Plan.Jobs.
func (s *settler) finish() error {
	s.order = s.order[:0]
	for i := range s.groups {
		s.order = append(s.order, uint32(i))
	}
	slices.SortFunc(s.order, func(a, b uint32) int {
		x, y := &s.groups[a], &s.groups[b]
		u, v := &s.users[x.user], &s.users[y.user]
		if c := cmp.Or(cmp.Compare(x.rank, y.rank), cmp.Compare(u.hash, v.hash)); c != 0 {
			return c
		}
		return bytes.Compare(s.userOf(u), s.userOf(v))
	})
	s.lay()
	r := s.run
	next, from := 0, uint32(0)
	for rank := range r.ranks[1:] {
		to := from
		for ; next < len(s.order) && int(s.groups[s.order[next]].rank) == rank; next++ {
			to = s.groups[s.order[next]].end
		}
		for from < to {
			n := min(to-from, chunkBytes)
			e, err := s.spool.put(s.jobs[from : from+n])
			if err != nil {
				return err
			}
			r.jobs = append(r.jobs, e)
			from += n
		}
		r.ranks[rank+1] = int32(len(r.jobs))
	}
	for i := range s.groups {
		g := &s.groups[i]
		r.counts.jobs++
		r.counts.conversations += int64(g.rows)
		r.counts.calls += int64((int(g.rows) + s.chunkSize - 1) / s.chunkSize)
		if name := keyName(s.keyOf(g)); len(bytes.TrimSpace(name)) != len(name) {
			r.findings.spaced.found(s.firstOf(g))
		}
	}
	r.counts.users = int64(len(s.users))
	for i := range s.users {
		u := &s.users[i]
		if u.rows > chat.MaxConversationsPerGroup {
			s.crowded(u)
		}
		if u.n > 1 {
			s.alike(u)
		}
	}
	return nil
}

// lay lays out the jobs in memory, each behind its length. It goes through the rows once, as they came, for finding
// those of one job after the other would wait for memory at each of them.
func (s *settler) lay() {
	s.jobs = slices.Grow(s.jobs[:0], len(s.keys)+len(s.convs)+maxJobHead*len(s.groups))
	for _, n := range s.order {
		g := &s.groups[n]
		s.buf = binary.AppendUvarint(append(s.buf[:0], s.keyOf(g)...), uint64(g.rows))
		s.jobs = binary.AppendUvarint(s.jobs, uint64(len(s.buf))+uint64(g.size))
		s.jobs = append(s.jobs, s.buf...)
		g.end = uint32(len(s.jobs))
		s.jobs = s.jobs[:len(s.jobs)+int(g.size)]
	}
	for i := range s.rows {
		a := &s.rows[i]
		g := &s.groups[a.group]
		g.end += uint32(copy(s.jobs[g.end:], s.memberOf(a)))
	}
}

// membersOf are the members of a group, one behind the other, as they stand in its job.
func (s *settler) membersOf(g *group) []byte { return s.jobs[g.end-g.size : g.end] }

// firstOf tells where the first row of a group stood in the input.
func (s *settler) firstOf(g *group) (file int, line int64) {
	member, conv, _ := cutMember(s.membersOf(g))
	return place(member, conv)
}

// crowded finds out whether a user has more distinct conversations over all groups than some documents allow, and
// which row went over.
func (s *settler) crowded(u *user) {
	rows := s.placed[:0]
	for _, n := range u.groups[:u.n] {
		for b := s.membersOf(&s.groups[n]); len(b) > 0; {
			member, conv, rest := cutMember(b)
			file, line := place(member, conv)
			rows = append(rows, placed{file, line, member[:conv]})
			b = rest
		}
	}
	s.placed = rows
	slices.SortFunc(rows, func(a, b placed) int {
		return cmp.Or(cmp.Compare(a.file, b.file), cmp.Compare(a.line, b.line))
	})
	clear(s.seen)
	var over *placed
	for i := range rows {
		s.seen[string(rows[i].conv)] = struct{}{}
		if over == nil && len(s.seen) > chat.MaxConversationsPerGroup {
			over = &rows[i]
		}
	}
	if over == nil {
		return
	}
	s.run.findings.warn(Warning{
		Text: fmt.Sprintf("a user has %d distinct conversations over all groups: "+
			"some documents of the API say %d at most, and it may refuse the rest with %s",
			len(s.seen), chat.MaxConversationsPerGroup, codeTooManyConversations),
		Line: over.line, FromAccount: string(s.userOf(u)), file: over.file,
	})
}

// alike looks for groups of a user whose names differ in nothing but case and spaces.
func (s *settler) alike(u *user) {
	clear(s.seen)
	for _, n := range u.groups[:u.n] {
		g := &s.groups[n]
		name := strings.Map(func(c rune) rune {
			if unicode.IsSpace(c) {
				return -1
			}
			return unicode.ToLower(c)
		}, string(keyName(s.keyOf(g))))
		if _, again := s.seen[name]; again {
			s.run.findings.alike.found(s.firstOf(g))
		}
		s.seen[name] = struct{}{}
	}
}

// A table finds numbers by hash, with open addressing. Each slot has the upper half of a hash and a number plus one.
type table struct {
	slots []uint64
	n     int
}

// bytes is what its numbers take when it is half full. What an earlier partition made it grow to does not count.
func (t *table) bytes() int { return 16 * t.n }

func (t *table) reset() {
	if t.n > 0 {
		clear(t.slots)
		t.n = 0
	}
}

// find gives the slot of the number that has this hash and is the one, or the empty slot in which it belongs.
func (t *table) find(hash uint64, is func(uint32) bool) int {
	if 8*(t.n+1) > 7*len(t.slots) {
		t.grow()
	}
	mask := uint64(len(t.slots) - 1)
	for at := hash >> 32 & mask; ; at = (at + 1) & mask {
		slot := t.slots[at]
		if slot == 0 || slot>>32 == hash>>32 && is(uint32(slot)-1) {
			return int(at)
		}
	}
}

func (t *table) at(slot int) (n uint32, there bool) {
	return uint32(t.slots[slot]) - 1, t.slots[slot] != 0
}

// set fills a slot that find gave and that was empty; no other find may have come in between.
func (t *table) set(slot int, hash uint64, n uint32) {
	t.slots[slot] = hash>>32<<32 | uint64(n+1)
	t.n++
}

func (t *table) grow() {
	old := t.slots
	t.slots = make([]uint64, max(64, 2*len(old)))
	mask := uint64(len(t.slots) - 1)
	for _, slot := range old {
		if slot == 0 {
			continue
		}
		at := slot >> 32 & mask
		for t.slots[at] != 0 {
			at = (at + 1) & mask
		}
		t.slots[at] = slot
	}
}
