package importer

import (
	"bytes"
	"cmp"
	"container/heap"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"iter"
	"slices"

	"groupferry/internal/chat"
)

// A Base is what a sync knows of the groups that it wrote. Against it a plan has jobs only for what is not there.
type Base struct {
	Name       string // of the sync
	Generation int    // grows with each night that changes what is known

	// Groups gives what is known, in the order in which it became known. Of a conversation that comes more than once, the
	// last time counts.
	Groups iter.Seq2[Group, error]

	// All has everything that is wanted sent, also what is there. The base then only says where the limits cut.
	All bool

	// Removals says what becomes of what the base has and the input has not: see removal.go.
	Removals Removals

	// Clear also takes out what is in the groups of users of whom the input has no row at all.
	Clear bool

	// Others gives the groups that other syncs wrote, for [Plan.Conflicts]; nil if nobody asks.
	Others iter.Seq2[OtherGroup, error]
}

// A Group is what a sync knows of one group.
type Group struct {
	FromAccount   string
	GroupName     string
	Conversations []GroupConversation

	// OldName, unless empty, is the name that the group had before: what was known of that one is known of this one.
	OldName string

	// Deleted says that the group is gone, and the one of OldName, whatever was known before. Conversations are those of a new
	// one.
	Deleted bool
}

// A GroupConversation is one that a sync sent.
type GroupConversation struct {
	Type  int // [job.OneToOne] or [job.GroupChat]
	ID    string
	State State
}

// A State is what a sync knows of a conversation.
type State uint8

// The numbers are those of snapshots, of which older ones have the first two alone.
const (
	Refused State = iota // it was sent, and the API did not take it; what may have been there before is Unsure then
	Applied              // it is in the group
	Unsure               // it was sent, or to be taken out, and nobody knows whether it is in the group
	Removed              // it was taken out: this sync has nothing to do with it any more. In no snapshot
)

// An OtherGroup is a group that another sync wrote.
type OtherGroup struct {
	Sync        string // its name
	FromAccount string
	GroupName   string
}

// The base of a partition is spooled like rows, with the state in the place of the input:
//
//	results of the last nights ─┐
//	snapshot ───────────────────┴─► spool, by the hash of the user ─► fold ─┬─► group: what is there, then the rows
//	                                                                        └─► Plan.Snapshot
//
// A group that was renamed is a row of the old one, with the new name in the place of the id; one of another sync has the
// name of the sync there. Of a group that was deleted the rows before count no more.
func appendBaseRow(b []byte, user, group string, kind int, id string, state rowState) []byte {
	b = append(append(b, byte(len(user))), user...)
	b = append(append(b, byte(len(group))), group...)
	b = append(append(b, byte(1+len(id)), byte('0'+kind)), id...)
	return binary.AppendUvarint(binary.AppendUvarint(b, uint64(state)), 0)
}

func baseState(e entry) rowState { return rowState(e.position().file) }

// rowStates are those of the base's states.
var rowStates = [...]rowState{Refused: refused, Unsure: unsure, Applied: applied, Removed: gone}

// stateOf is the other way round.
func stateOf(s rowState) State { return State(slices.Index(rowStates[:], s)) }

// spoolBase spools what is known by the hash of the user.
func spoolBase(ctx context.Context, s *spool, base *Base) (*[partitions]recordLog, error) {
	logs := new([partitions]recordLog)
	for i := range logs {
		logs[i].spool = s
	}
	var record []byte
	add := func(user, group string, kind int, id string, state rowState) error {
		record = appendBaseRow(record[:0], user, group, kind, id, state)
		return logs[partitionOf(hashUser(user), 0, partitionBits)].add(record)
	}
	for g, err := range base.Groups {
		if err = cmp.Or(err, ctx.Err()); err == nil && g.OldName != "" {
			state := renamed
			if g.Deleted {
				state = noGroup
			}
			err = add(g.FromAccount, g.OldName, 0, g.GroupName, state)
		}
		if err == nil && g.Deleted {
			err = add(g.FromAccount, g.GroupName, 0, "", noGroup)
		}
		if err != nil {
			return nil, err
		}
		for i := range g.Conversations {
			c := &g.Conversations[i]
			if err := add(g.FromAccount, g.GroupName, c.Type, c.ID, rowStates[c.State]); err != nil {
				return nil, err
			}
		}
	}
	if base.Others != nil {
		for g, err := range base.Others {
			if err = cmp.Or(err, ctx.Err()); err == nil {
				err = add(g.FromAccount, g.GroupName, 0, g.Sync, ofOther)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	return logs, nil
}

// groupOnBase is group with a base. Where a limit cuts, what the base has stays first, and then names and ids decide: the
// order of the rows changes nothing.
func (g *partitionGrouper) groupOnBase(ctx context.Context, p partition) (*run, []partition, error) {
	r, err := g.tryOnBase(ctx, p)
	switch {
	case err == errOverBudget:
		parts, err := g.redistribute(ctx, p)
		return &run{}, parts, err
	case err != nil:
		return nil, nil, err
	}
	return r, nil, g.finish(r)
}

func (g *partitionGrouper) tryOnBase(ctx context.Context, p partition) (*run, error) {
	if err := g.foldBase(ctx, p); err != nil {
		return nil, err
	}
	known := g.fold.nameOrder()
	m := newRemoval(g)
	var t *taken
	for {
		err := m.decide(ctx, p)
		if err == nil {
			t, err = g.takeWithin(ctx, p, known, m)
		}
		if err != nil {
			return nil, err
		}
		if !m.withhold(t) {
			break
		}
	}
	m.place(known)
	if err := m.findConflicts(ctx, p); err != nil {
		return nil, err
	}
	g.summary.add(&t.counts)
	g.summary.add(&m.counts)
	r := &run{overLimit: t.overLimit, base: recordLog{spool: g.spool}}
	var state []byte
	for _, n := range known {
		row := &g.fold.rows[n]
		if row.state == gone || m.forgets(n) {
			continue
		}
		spooled := g.fold.rowOf(row)
		state = append(binary.AppendUvarint(state[:0], uint64(row.state)), 0)
		if err := r.base.add(spooled.group, spooled.entry.conversation(), state); err != nil {
			return nil, err
		}
	}
	// These are kept for as long as the plan, and of 100 million rows there are 8,000.
	r.overLimit.tail = bytes.Clone(r.overLimit.tail)
	return r, r.base.flush()
}

// foldBase makes of all that became known what is known now.
func (g *partitionGrouper) foldBase(ctx context.Context, p partition) error {
	g.fold.reset()
	moved := map[string]move{}
	err := g.each(ctx, p.base, func(row spooledRow) error {
		switch state := baseState(row.entry); state {
		case renamed:
			moved[string(row.group)] = move{to: row.group.renamed(row.entry.id())}
		case noGroup:
			moved[string(row.group)] = move{deleted: uint32(len(g.fold.rows))}
		case ofOther:
		default:
			if m := moved[string(row.group)]; m.deleted > 0 {
				g.fold.forget(row, m.deleted)
			}
			g.fold.put(row, state)
		}
		return g.checkBudget(p)
	})
	if err == nil && len(moved) > 0 {
		g.fold.move(moved)
	}
	return err
}

// A move says that a group was renamed, or that it was deleted.
type move struct {
	to      groupKey // nil: it was deleted
	deleted uint32   // how many rows, of all groups, came before that; 0 if that is none, too
}

// forget makes a row that came before its group was deleted, if there is one, a row that came after.
func (g *grouper) forget(r spooledRow, before uint32) {
	n, ok := g.lookUp(r.group)
	if !ok {
		return
	}
	if i, slot, ok := g.findRow(n, r.entry.conversation()); ok && i < before {
		g.rows[i].state = gone
		g.append(r.entry, n, slot, gone)
	}
}

// move moves the rows of groups to other groups, or to none. What is known there of the same conversation came with the
// move, or after it, and stays.
func (g *grouper) move(to map[string]move) {
	for i := range len(g.rows) {
		row := g.rows[i]
		m, ok := to[string(g.keyOf(&g.groups[row.group]))]
		if !ok || row.state == gone || m.to == nil && uint32(i) >= m.deleted {
			continue
		}
		if g.rows[i].state = gone; m.to == nil {
			continue
		}
		n, _ := g.findGroup(m.to)
		if _, slot, there := g.findRow(n, g.entryOf(&row).conversation()); !there {
			g.append(g.entryOf(&row), n, slot, row.state)
		}
	}
}

// taken is what became of the rows of a partition, beside those that the grouper has.
type taken struct {
	counts    Summary
	overLimit recordLog
	users     map[string]bool // with rows over the limit of groups
	groups    map[string]bool // with rows over the limit of conversations
}

// loadBase fills the grouper with what is known to be there, and stays.
func (g *partitionGrouper) loadBase(known []uint32, m *removal) {
	g.grouper.reset()
	for _, n := range known {
		row := &g.fold.rows[n]
		if row.state != applied || m.removes(n) {
			continue
		}
		g.grouper.put(spooledRow{m.keyOf(row.group), g.fold.entryOf(row)}, applied)
	}
}

// takeWithin fills the grouper with the base and then the rows. If some are over a limit, what is there stays, and then
// names and ids decide.
func (g *partitionGrouper) takeWithin(ctx context.Context, p partition, known []uint32, m *removal) (*taken, error) {
	t, err := g.takeRows(ctx, p, known, m, nil)
	if err != nil || t.counts.Rejected == 0 {
		return t, err
	}
	c, err := g.choose(ctx, p, known, m, t)
	if err != nil {
		return nil, err
	}
	return g.takeRows(ctx, p, known, m, c)
}

// takeRows fills the grouper with the base and then the rows.
func (g *partitionGrouper) takeRows(ctx context.Context, p partition, known []uint32, m *removal, c *choice) (*taken, error) {
	g.loadBase(known, m)
	t := &taken{overLimit: recordLog{spool: g.spool}, users: map[string]bool{}, groups: map[string]bool{}}
	err := g.each(ctx, &p.rows, func(row spooledRow) error {
		v := accepted
		if c != nil {
			v = c.refuse(g.grouper, row)
		}
		if v == accepted {
			v = g.grouper.add(row)
		}
		switch v {
		case accepted:
			return g.checkBudget(p)
		case duplicate:
			t.counts.Duplicates++
			return nil
		case tooManyGroups:
			t.users[string(row.group.user())] = true
		case tooManyConversations:
			t.groups[string(row.group)] = true
		}
		t.counts.reject(limitReasons[v].code, 1)
		return t.overLimit.add([]byte{byte(v)}, row.group, row.entry.bytes)
	})
	return t, err
}

// each goes through the rows of a log.
func (g *partitionGrouper) each(ctx context.Context, log *recordLog, do func(spooledRow) error) error {
	reader := logReader{log: log, buf: g.buf}
	defer func() { g.buf = reader.buf }()
	for {
		records, err := reader.next()
		if err == io.EOF {
			return nil
		}
		if err = cmp.Or(err, ctx.Err()); err != nil {
			return err
		}
		for len(records) > 0 {
			var row spooledRow
			row, records = decodeSpooledRow(records)
			if err := do(row); err != nil {
				return err
			}
		}
	}
}

// errOverBudget says that a partition has to be split.
var errOverBudget = errors.New("over budget")

func (g *partitionGrouper) checkBudget(p partition) error {
	if g.fold.used()+g.grouper.used() > g.budget && max(len(g.fold.users), len(g.grouper.users)) > 1 && p.bits+splitBits <= 64 {
		return errOverBudget
	}
	return nil
}

// redistribute makes the parts of a partition with a base.
func (g *partitionGrouper) redistribute(ctx context.Context, p partition) ([]partition, error) {
	parts := make([]partition, 1<<splitBits)
	for i := range parts {
		parts[i] = partition{recordLog{spool: g.spool}, &recordLog{spool: g.spool}, p.bits + splitBits}
	}
	part := func(row spooledRow) *partition {
		return &parts[partitionOf(hashUser(row.group.user()), p.bits, splitBits)]
	}
	err := g.each(ctx, p.base, func(row spooledRow) error { return part(row).base.add(row.group, row.entry.bytes) })
	if err == nil {
		err = g.each(ctx, &p.rows, func(row spooledRow) error { return part(row).rows.add(row.group, row.entry.bytes) })
	}
	return parts, err
}

// nameOrder returns the rows by the hash of the user, the user and the group name.
func (g *grouper) nameOrder() []uint32 {
	groups := make([]uint32, len(g.groups))
	for i := range groups {
		groups[i] = uint32(i)
	}
	slices.SortFunc(groups, func(a, b uint32) int {
		x, y := &g.groups[a], &g.groups[b]
		u, v := &g.users[x.user], &g.users[y.user]
		return cmp.Or(cmp.Compare(u.hash, v.hash), bytes.Compare(g.nameOf(u), g.nameOf(v)),
			bytes.Compare(g.keyOf(x).name(), g.keyOf(y).name()))
	})
	next, at := make([]uint32, len(g.groups)), uint32(0)
	for _, n := range groups {
		next[n], at = at, at+g.groups[n].rows
	}
	order := make([]uint32, len(g.rows))
	for i := range g.rows {
		to := &next[g.rows[i].group]
		order[*to] = uint32(i)
		*to++
	}
	return order
}

// A choice says what of users and groups over a limit is taken, beside what the base has.
type choice struct {
	groups        map[string]*smallest // of a user: names
	conversations map[string]*smallest // of a group: type and id
}

// choose chooses for the users and groups that were over a limit when the rows were taken in the order of the input.
func (g *partitionGrouper) choose(ctx context.Context, p partition, known []uint32, m *removal, over *taken) (*choice, error) {
	g.loadBase(known, m)
	c := &choice{map[string]*smallest{}, map[string]*smallest{}}
	err := g.each(ctx, &p.rows, func(row spooledRow) error {
		user := row.group.user()
		if _, there := g.grouper.lookUp(row.group); there || !over.users[string(user)] {
			return nil
		}
		names := c.groups[string(user)]
		if names == nil {
			names = newSmallest(chat.MaxGroupsPerUser - g.grouper.groupCount(user))
			c.groups[string(user)] = names
		}
		names.add(row.group.name())
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = g.each(ctx, &p.rows, func(row spooledRow) error {
		n, there := g.grouper.lookUp(row.group)
		names := c.groups[string(row.group.user())]
		switch {
		case names == nil && !over.groups[string(row.group)], !there && names != nil && !names.has[string(row.group.name())]:
			return nil
		}
		room := chat.MaxConversationsPerGroup
		if there {
			if _, _, there := g.grouper.findRow(n, row.entry.conversation()); there {
				return nil
			}
			room -= int(g.grouper.groups[n].rows)
		}
		convs := c.conversations[string(row.group)]
		if convs == nil {
			convs = newSmallest(room)
			c.conversations[string(row.group)] = convs
		}
		convs.add(row.entry.conversation()[1:]) // type and id, without the size
		return nil
	})
	return c, err
}

// refuse returns the limit that a row is over, or accepted. g has the base, and rows that were chosen.
func (c *choice) refuse(g *grouper, row spooledRow) verdict {
	n, there := g.lookUp(row.group)
	if names := c.groups[string(row.group.user())]; names != nil && !there && !names.has[string(row.group.name())] {
		return tooManyGroups
	}
	convs := c.conversations[string(row.group)]
	if convs == nil || convs.has[string(row.entry.conversation()[1:])] {
		return accepted
	}
	if there {
		if _, _, there := g.findRow(n, row.entry.conversation()); there {
			return accepted
		}
	}
	return tooManyConversations
}

// smallest keeps the smallest of many strings: a heap with the largest of them on top.
type smallest struct {
	most int
	heap []string
	has  map[string]bool
}

func newSmallest(most int) *smallest { return &smallest{most: most, has: map[string]bool{}} }

func (s *smallest) add(b []byte) {
	switch {
	case s.most <= 0 || s.has[string(b)]:
		return
	case len(s.heap) == s.most:
		if string(b) >= s.heap[0] {
			return
		}
		delete(s.has, heap.Pop(s).(string))
	}
	v := string(b)
	s.has[v] = true
	heap.Push(s, v)
}

func (s *smallest) Len() int           { return len(s.heap) }
func (s *smallest) Less(i, j int) bool { return s.heap[i] > s.heap[j] }
func (s *smallest) Swap(i, j int)      { s.heap[i], s.heap[j] = s.heap[j], s.heap[i] }
func (s *smallest) Push(v any)         { s.heap = append(s.heap, v.(string)) }
func (s *smallest) Pop() any {
	v := s.heap[len(s.heap)-1]
	s.heap = s.heap[:len(s.heap)-1]
	return v
}
