package importer

import (
	"context"
	"slices"
	"strings"

	"groupferry/internal/chat"
)

// Removals says what becomes of what the base has and the input has not. With all but [KeepAll] a group whose name the
// input has with other case, or in another form of Unicode, is renamed.
type Removals int

const (
	KeepAll      Removals = iota // nothing is removed
	OnlyCount                    // what would be removed is counted, and stays
	RemoveAbsent                 // it is removed
)

// Nothing is removed of
//
//   - a user of whom the input has no row, unless [Base.Clear] is given;
//   - a user of whom a row was rejected: what it asked for is not known;
//   - anybody, if a row was rejected that does not say whose it is;
//   - what was refused: it was never there, and the base forgets it;
//   - a conversation that the input wants in a group of the user whose name differs in case or form only: the API may take
//     both names for one group. Such a group is not deleted either.
//
// The rows of a partition are read once more for it:
//
//	base ─► what the rows want of it ─► renames ─► what goes ─► the base without it, and the rows ─► jobs
//	                                                  ▲                         │
//	                                                  └── users with rows over a limit: nothing of them goes
type removal struct {
	*partitionGrouper
	counts Summary

	live   []uint32 // by group of the fold: rows that may be in the group
	goes   []bool   // by row of the fold
	over   map[string]bool
	groups map[uint32]*groupPlan // by group of the fold: what is special about it
	absent map[uint32]bool       // users of the fold, of whom the input has no row, that are cleared
}

// A groupPlan is what is to become of a group with absent conversations.
type groupPlan struct {
	key   groupKey   // that it is renamed to; nil: none
	twins []groupKey // wanted groups of the user whose names differ in case or form only
}

func newRemoval(g *partitionGrouper) *removal {
	m := &removal{partitionGrouper: g, live: make([]uint32, len(g.fold.groups)), over: map[string]bool{}}
	for i := range g.fold.rows {
		if row := &g.fold.rows[i]; row.state.live() {
			m.live[row.group]++
		}
	}
	for i := range g.fold.users {
		var groups int64
		for n := range g.fold.groupsOf(&g.fold.users[i]) {
			if m.live[n] > 0 {
				groups++
				m.counts.Known.Conversations += int64(m.live[n])
			}
		}
		if m.counts.Known.Groups += groups; groups > 0 {
			m.counts.Known.Users++
		}
	}
	return m
}

// removes reports whether a row of the fold goes.
func (m *removal) removes(n uint32) bool { return m.base.Removals == RemoveAbsent && m.goes[n] }

// forgets reports whether a row of the fold is not worth to be known any more.
func (m *removal) forgets(n uint32) bool { return m.removes(n) && !m.fold.rows[n].state.live() }

// keyOf is the key that a group of the fold will have.
func (m *removal) keyOf(n uint32) groupKey {
	if at := m.groups[n]; at != nil && at.key != nil {
		return at.key
	}
	return m.fold.keyOf(&m.fold.groups[n])
}

// wants is what the rows want of the base.
type wants struct {
	rows, groups, users []bool                     // of the fold
	absent              []int64                    // by user of the fold: conversations that are there and not wanted
	names               map[uint32]map[string]bool // by user of the fold: groups that the fold has not
}

func (m *removal) wants(ctx context.Context, p partition) (*wants, error) {
	f := m.fold
	w := &wants{
		make([]bool, len(f.rows)), make([]bool, len(f.groups)), make([]bool, len(f.users)), make([]int64, len(f.users)),
		map[uint32]map[string]bool{},
	}
	err := m.each(ctx, &p.rows, func(row spooledRow) error {
		n, ok := f.lookUp(row.group)
		if ok {
			w.groups[n], w.users[f.groups[n].user] = true, true
			if i, _, ok := f.findRow(n, row.entry.conversation()); ok {
				w.rows[i] = true
			}
			return nil
		}
		if u, _, ok := f.indexUser(row.group.user()); ok {
			w.users[u] = true
			if w.names[u] == nil {
				w.names[u] = map[string]bool{}
			}
			w.names[u][string(row.group.name())] = true
		}
		return nil
	})
	for i := range f.rows {
		if row := &f.rows[i]; row.state.live() && !w.rows[i] {
			w.absent[f.groups[row.group].user]++
		}
	}
	return w, err
}

// decide decides what goes, but for users that are over a limit.
func (m *removal) decide(ctx context.Context, p partition) error {
	m.groups, m.absent = map[uint32]*groupPlan{}, map[uint32]bool{}
	m.counts.Withheld, m.counts.WithheldUsers = 0, 0
	if m.base.Removals == KeepAll {
		return nil
	}
	w, err := m.wants(ctx, p)
	if err != nil {
		return err
	}
	m.goes = make([]bool, len(m.fold.rows))
	mayGo := make([]bool, len(m.fold.users))
	for u := range m.fold.users {
		mayGo[u] = m.decideUser(uint32(u), w)
	}
	if err := m.wantUnderNewName(ctx, p, w); err != nil {
		return err
	}
	for i := range m.fold.rows {
		row := &m.fold.rows[i]
		m.goes[i] = !w.rows[i] && row.state != gone && mayGo[m.fold.groups[row.group].user]
	}
	return nil
}

// decideUser reports whether what is absent of a user goes, and decides what is special about the groups.
func (m *removal) decideUser(u uint32, w *wants) bool {
	at := &m.fold.users[u]
	user := m.fold.nameOf(at)
	if !w.users[u] && !m.base.Clear {
		return false
	}
	if m.withheld.suspended != "" || m.withheld.users[string(user)] || m.over[string(user)] {
		if w.absent[u] > 0 {
			m.counts.Withheld += w.absent[u]
			m.counts.WithheldUsers++
		}
		return false
	}
	if w.absent[u] == 0 {
		return true
	}
	if !w.users[u] {
		m.absent[u] = true
		return true
	}
	type names struct {
		lost, fresh []uint32 // groups of the fold: with nothing that is wanted; wanted, and not there
		unknown     []string // wanted groups that the fold has not
		all         []groupKey
	}
	byName := map[string]*names{}
	like := func(name []byte) *names {
		key := chat.FoldName(string(name))
		if byName[key] == nil {
			byName[key] = &names{}
		}
		return byName[key]
	}
	for n := range m.fold.groupsOf(at) {
		key := m.fold.keyOf(&m.fold.groups[n])
		switch {
		case w.groups[n]:
			of := like(key.name())
			of.all = append(of.all, key)
			if m.live[n] == 0 {
				of.fresh = append(of.fresh, n)
			}
		case m.live[n] > 0:
			of := like(key.name())
			of.lost = append(of.lost, n)
		}
	}
	first := m.fold.keyOf(&m.fold.groups[at.first])
	for name := range w.names[u] {
		of := like([]byte(name))
		of.unknown = append(of.unknown, name)
		of.all = append(of.all, first.renamed([]byte(name)))
	}
	for _, of := range byName {
		if len(of.lost) == 1 && len(of.all) == 1 && len(of.fresh)+len(of.unknown) == 1 {
			m.groups[of.lost[0]] = &groupPlan{key: of.all[0]}
			continue
		}
		for _, n := range of.lost {
			if len(of.all) > 0 {
				m.groups[n] = &groupPlan{twins: of.all}
			}
		}
	}
	for n := range m.fold.groupsOf(at) {
		if !w.groups[n] {
			continue
		}
		key := m.fold.keyOf(&m.fold.groups[n])
		if all := like(key.name()).all; len(all) > 1 {
			m.groups[n] = &groupPlan{twins: slices.DeleteFunc(slices.Clone(all), func(k groupKey) bool { return string(k) == string(key) })}
		}
	}
	return true
}

// wantUnderNewName notes what the rows want of groups that are renamed, for it is known under the old name.
func (m *removal) wantUnderNewName(ctx context.Context, p partition, w *wants) error {
	was := map[string]uint32{}
	for n, at := range m.groups {
		if at.key != nil {
			was[string(at.key)] = n
		}
	}
	if len(was) == 0 {
		return nil
	}
	return m.each(ctx, &p.rows, func(row spooledRow) error {
		if n, ok := was[string(row.group)]; ok {
			if i, _, ok := m.fold.findRow(n, row.entry.conversation()); ok {
				w.rows[i] = true
			}
		}
		return nil
	})
}

// withhold notes the users that are over a limit, and reports whether something of them was to go: then all has to be
// decided once more.
func (m *removal) withhold(t *taken) (again bool) {
	if m.base.Removals == KeepAll {
		return false
	}
	users := t.users
	for key := range t.groups {
		users[string(groupKey(key).user())] = true
	}
	for name := range users {
		u, _, ok := m.fold.indexUser([]byte(name))
		if !ok || m.over[name] {
			continue
		}
		m.over[name] = true
		for group := range m.fold.groupsOf(&m.fold.users[u]) {
			again = again || m.live[group] > 0
		}
	}
	return again
}

// place puts what goes into the jobs, which the grouper has the rows of, and counts it. known is in the order of names.
func (m *removal) place(known []uint32) {
	if m.base.Removals == KeepAll {
		return
	}
	cleared := map[uint32]bool{}
	for len(known) > 0 {
		group := m.fold.rows[known[0]].group
		end := 1
		for end < len(known) && m.fold.rows[known[end]].group == group {
			end++
		}
		if n := m.placeGroup(group, known[:end]); n > 0 {
			m.counts.Removed.Conversations += n
			if user := m.fold.groups[group].user; m.absent[user] && !cleared[user] {
				cleared[user] = true
				m.counts.Removed.Users++
			}
		}
		known = known[end:]
	}
}

// placeGroup returns how many conversations of a group go.
func (m *removal) placeGroup(group uint32, rows []uint32) (gone int64) {
	key, plan := m.keyOf(group), m.groups[group]
	if plan == nil {
		plan = &groupPlan{}
	}
	to, wanted := m.grouper.lookUp(key)
	wanted = wanted && m.grouper.groups[to].wanted > 0
	if plan.key != nil && wanted {
		m.grouper.groups[to].was = m.fold.keyOf(&m.fold.groups[group])
	}
	stays := len(plan.twins) > 0
	var going []uint32
	for _, n := range rows {
		row := &m.fold.rows[n]
		switch {
		case !row.state.live():
		case !m.goes[n] || m.wantedByTwin(plan, row):
			stays = true
		default:
			going = append(going, n)
		}
	}
	if len(going) == 0 {
		return 0
	}
	deleted := !wanted && !stays
	if deleted {
		m.counts.Removed.Groups++
		m.examples.add(exampleDelete, key)
	} else {
		m.counts.RemovedFrom++
		m.examples.add(exampleRemove, key)
	}
	if m.base.Removals == RemoveAbsent {
		for _, n := range going {
			m.grouper.remove(key, m.fold.entryOf(&m.fold.rows[n]), deleted)
		}
	}
	return int64(len(going))
}

// wantedByTwin reports whether the rows want a conversation in a group whose name is nearly that of its own. What is not
// removed for that counts as withheld.
func (m *removal) wantedByTwin(plan *groupPlan, row *groupRow) bool {
	for _, key := range plan.twins {
		n, ok := m.grouper.lookUp(key)
		if !ok {
			continue
		}
		if i, _, ok := m.grouper.findRow(n, m.fold.entryOf(row).conversation()); ok && m.grouper.rows[i].state.wanted() {
			m.counts.Withheld++
			return true
		}
	}
	return false
}

// findConflicts looks for groups of this partition that another sync wrote, under this name or one that the API may take
// for it.
func (m *removal) findConflicts(ctx context.Context, p partition) error {
	if m.base.Others == nil {
		return nil
	}
	return m.each(ctx, p.base, func(row spooledRow) error {
		if baseState(row.entry) != ofOther {
			return nil
		}
		there := func(n uint32) bool { return m.live[n] > 0 }
		if m.fold.hasLike(row.group, there) || m.grouper.hasLike(row.group, func(uint32) bool { return true }) {
			m.conflicts.add(append(append([]byte(nil), row.group...), row.entry.id()...))
		}
		return nil
	})
}

// hasLike reports whether a user has a group for which is returns true, and whose name is that of key but for case and form.
func (g *grouper) hasLike(key groupKey, is func(n uint32) bool) bool {
	if n, ok := g.lookUp(key); ok && is(n) {
		return true
	}
	u, _, ok := g.indexUser(key.user())
	if !ok {
		return false
	}
	for n := range g.groupsOf(&g.users[u]) {
		if is(n) && alike(string(key.name()), string(g.keyOf(&g.groups[n]).name())) {
			return true
		}
	}
	return false
}

// alike reports whether names differ in case and form only. Most are ASCII, which is quick.
func alike(a, b string) bool {
	if isPrintableASCII(a) && isPrintableASCII(b) {
		return strings.EqualFold(a, b)
	}
	return chat.FoldName(a) == chat.FoldName(b)
}
