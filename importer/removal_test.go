package importer

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"groupferry/internal/chat"
	"groupferry/internal/job"
)

// A removalCase is a base and rows, with what a person makes of them.
type removalCase struct {
	mode      Removals
	clear     bool
	base      map[[2]string]map[string]State
	rows      [][3]string // of valid users
	rejected  map[string]bool
	suspended bool

	withheld map[string]bool // users, found
	jobs     map[[2]string]*expectedJob
	counts   Summary
}

type expectedJob struct {
	old     string
	deleted bool
	ops     map[string]job.Op
}

func (c *removalCase) users() []string {
	all := map[string]bool{}
	for k := range c.base {
		all[k[0]] = true
	}
	for _, r := range c.rows {
		all[r[0]] = true
	}
	return slices.Sorted(maps.Keys(all))
}

// expect works out the plan: once, and again for users with rows over a limit.
func (c *removalCase) expect() {
	c.withheld = map[string]bool{}
	for {
		c.jobs, c.counts = map[[2]string]*expectedJob{}, Summary{}
		over := false
		for _, user := range c.users() {
			if c.expectUser(user) && !c.withheld[user] {
				c.withheld[user], over = true, true
			}
		}
		if !over {
			return
		}
	}
}

func (c *removalCase) expectUser(user string) (overLimit bool) {
	rows := map[string]map[string]bool{} // by group
	for _, r := range c.rows {
		if r[0] == user {
			if rows[r[1]] == nil {
				rows[r[1]] = map[string]bool{}
			}
			rows[r[1]][r[2]] = true
		}
	}
	live := map[string]map[string]bool{} // by group: applied
	users := 0
	for k, convs := range c.base {
		if k[0] != user {
			continue
		}
		for id, state := range convs {
			if state == Applied || state == Unsure {
				if live[k[1]] == nil {
					live[k[1]] = map[string]bool{}
				}
				live[k[1]][id] = state == Applied
				c.counts.Known.Conversations++
			}
		}
		if live[k[1]] != nil {
			c.counts.Known.Groups++
			users = 1
		}
	}
	c.counts.Known.Users += int64(users)
	absent := 0
	for g, convs := range live {
		for id := range convs {
			if !rows[g][id] {
				absent++
			}
		}
	}
	may := c.mode != KeepAll && (len(rows) > 0 || c.clear)
	if may && (c.suspended || c.rejected[user] || c.withheld[user]) {
		if absent > 0 {
			c.counts.Withheld += int64(absent)
			c.counts.WithheldUsers++
		}
		may = false
	}
	old := map[string]string{} // names before, by new ones
	twins := func(name string) (all []string) {
		for g := range rows {
			if g != name && strings.EqualFold(g, name) {
				all = append(all, g)
			}
		}
		return all
	}
	if may {
		for g := range live {
			if rows[g] != nil || len(twins(g)) != 1 {
				continue
			}
			to, lost := twins(g)[0], 0
			for other := range live {
				if strings.EqualFold(other, g) && rows[other] == nil {
					lost++
				}
			}
			if live[to] == nil && lost == 1 {
				old[to] = g
			}
		}
		for to, from := range old {
			live[to] = live[from]
			delete(live, from)
		}
	}
	going := map[string][]string{}
	stays := world{}
	for g, convs := range live {
		kept := false
		for id, applied := range convs {
			twin := false
			for _, name := range twins(g) {
				twin = twin || rows[name][id]
			}
			switch {
			case !rows[g][id] && may && !twin:
				going[g] = append(going[g], id)
				if c.mode == RemoveAbsent {
					continue
				}
			case !rows[g][id] && may:
				c.counts.Withheld++
				kept = true
				continue // it does not count for the limits
			case !rows[g][id]:
				kept = true
			}
			if applied {
				stays.set(user, g, id, true)
			}
		}
		if len(going[g]) == 0 {
			continue
		}
		c.counts.Removed.Conversations += int64(len(going[g]))
		j := &expectedJob{ops: map[string]job.Op{}}
		if j.deleted = rows[g] == nil && !kept && len(twins(g)) == 0; j.deleted {
			c.counts.Removed.Groups++
		} else {
			c.counts.RemovedFrom++
		}
		if c.mode != RemoveAbsent {
			continue
		}
		for _, id := range going[g] {
			j.ops[id] = job.Remove
		}
		c.jobs[[2]string{user, g}] = j
	}
	if len(going) > 0 && len(rows) == 0 {
		c.counts.Removed.Users++
	}
	var flat [][3]string
	for g, convs := range rows {
		for id := range convs {
			flat = append(flat, [3]string{user, g, id})
		}
	}
	take, tooMany := wanted(flat, stays)
	for g := range rows {
		k := [2]string{user, g}
		add := map[string]job.Op{}
		for id := range take[k] {
			if !stays[k][id] {
				add[id] = job.Add
			}
		}
		if len(add) == 0 && old[g] == "" || len(take[k]) == 0 {
			continue
		}
		if c.jobs[k] == nil {
			c.jobs[k] = &expectedJob{ops: map[string]job.Op{}}
		}
		j := c.jobs[k]
		j.old = old[g]
		maps.Copy(j.ops, add)
		for id := range take[k] {
			if stays[k][id] {
				j.ops[id] = job.Keep
			}
		}
		if j.old != "" {
			c.counts.Renamed++
		}
	}
	return len(tooMany) > 0
}

// TestRemovals holds plans that remove against what a person would work out, whatever the order of the rows, the memory and
// the number of workers.
func TestRemovals(t *testing.T) {
	var neighbours []string // users of one partition
	for i := 0; len(neighbours) < 6; i++ {
		if name := fmt.Sprint("u", i); partitionOf(hashUser(name), 0, partitionBits) == 0 {
			neighbours = append(neighbours, name)
		}
	}
	var seen Summary
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 14))
		c := &removalCase{
			mode: []Removals{KeepAll, OnlyCount, RemoveAbsent, RemoveAbsent}[r.IntN(4)], clear: r.IntN(3) == 0,
			base: map[[2]string]map[string]State{}, rejected: map[string]bool{}, suspended: r.IntN(10) == 0,
		}
		users, names, ids := 1+r.IntN(6), 1+r.IntN(12), 1+r.IntN(12)
		switch seed % 10 {
		case 0:
			names = 30 // users over their limit
		case 1:
			users, names, ids = 1, 1, 1500 // groups over theirs
		}
		name := func() string {
			s := fmt.Sprintf("g%02d", r.IntN(names))
			if r.IntN(6) == 0 {
				s = strings.ToUpper(s)
			}
			return s
		}
		for range r.IntN(4 * ids) {
			k := [2]string{neighbours[r.IntN(users)], name()}
			if groups := slices.Collect(maps.Keys(c.base)); c.base[k] == nil && len(groups) < 18 {
				c.base[k] = map[string]State{}
			}
			if c.base[k] != nil && len(c.base[k]) < 900 {
				c.base[k][fmt.Sprint("c", r.IntN(ids))] = []State{Applied, Applied, Applied, Unsure, Refused}[r.IntN(5)]
			}
		}
		for range r.IntN(5 * ids) {
			c.rows = append(c.rows, [3]string{neighbours[r.IntN(users)], name(), fmt.Sprint("c", r.IntN(ids))})
		}
		for _, u := range neighbours[:users] {
			c.rejected[u] = r.IntN(6) == 0
		}
		c.expect()
		seen.add(&c.counts)
		for _, cfg := range []Config{{}, {workers: 3, memory: 3}, {workers: 2, memory: 20_000, resident: -1}} {
			plan := c.plan(t, r, cfg)
			c.compare(t, fmt.Sprintf("seed %d, memory %d", seed, cfg.memory), plan)
		}
	}
	if seen.Removed.Groups == 0 || seen.Removed.Users == 0 || seen.RemovedFrom == 0 || seen.Renamed == 0 || seen.Withheld == 0 {
		t.Errorf("the cases are poor: %+v", seen)
	}
}

// plan plans the case, with all in a random order.
func (c *removalCase) plan(t *testing.T, r *rand.Rand, cfg Config) *Plan {
	t.Helper()
	lines := [][3]string{}
	lines = append(lines, c.rows...)
	for u, is := range c.rejected {
		if is {
			lines = append(lines, [3]string{u, "", "c1"})
		}
	}
	if c.suspended {
		lines = append(lines, [3]string{"", "g", "c1"})
	}
	r.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
	var known []Group
	for k, convs := range c.base {
		g := Group{FromAccount: k[0], GroupName: k[1]}
		for id, state := range convs {
			g.Conversations = append(g.Conversations, GroupConversation{job.OneToOne, id, state})
		}
		known = append(known, g)
	}
	return planOn(t, lines, cfg, &Base{Name: "n", Generation: 3, Groups: seqOf(known), Removals: c.mode, Clear: c.clear})
}

func (c *removalCase) compare(t *testing.T, what string, p *Plan) {
	t.Helper()
	deleted := map[string]bool{} // users with a job that is no deletion, so far
	groups := map[string]int{}
	for k := range c.base {
		groups[k[0]]++
	}
	got := map[[2]string]bool{}
	for _, j := range jobsOf(t, p) {
		k := [2]string{j.FromAccount, j.GroupName}
		want := c.jobs[k]
		if want == nil || got[k] {
			t.Errorf("%s: got a job for %v, want none: %+v", what, k, j)
			continue
		}
		got[k] = true
		ops := map[string]job.Op{}
		for _, conv := range j.Conversations {
			ops[conv.ID] = conv.Op
			if known := c.base[[2]string{k[0], k[1]}]; conv.Op == job.Add && conv.Again != (known[conv.ID] != Applied && known != nil && has(known, conv.ID)) && j.OldName == "" {
				t.Errorf("%s: %v: got %+v of what was %v", what, k, conv, known)
			}
			if (conv.Op == job.Remove) != (conv.Line == 0) {
				t.Errorf("%s: %v: got line %d of %q", what, k, conv.Line, conv.Op)
			}
		}
		if j.OldName != want.old || j.Delete != want.deleted || !maps.Equal(ops, want.ops) {
			t.Errorf("%s: %v: got old name %q, delete %t, %v; want %+v", what, k, j.OldName, j.Delete, ops, want)
		}
		if j.Delete && deleted[j.FromAccount] && groups[j.FromAccount]+countNew(c, j.FromAccount) > chat.MaxGroupsPerUser {
			t.Errorf("%s: %v is deleted after other jobs of the user, who has too many groups", what, k)
		}
		deleted[j.FromAccount] = deleted[j.FromAccount] || !j.Delete
	}
	for k, j := range c.jobs {
		if !got[k] {
			t.Errorf("%s: no job for %v, want %+v", what, k, j)
		}
	}
	s := p.Summary
	if s.Known != c.counts.Known || s.Removed != c.counts.Removed || s.RemovedFrom != c.counts.RemovedFrom ||
		s.Renamed != c.counts.Renamed || s.Withheld != c.counts.Withheld || s.WithheldUsers != c.counts.WithheldUsers {
		t.Errorf("%s: got %+v, want %+v", what, s, c.counts)
	}
	if (p.Suspended != "") != (c.suspended && c.mode != KeepAll) {
		t.Errorf("%s: got suspended %q, want %t", what, p.Suspended, c.suspended)
	}
	if s.Rows != s.Accepted+s.Duplicates+s.Rejected || len(rejectsOf(t, p)) != int(s.Rejected) {
		t.Errorf("%s: not every row is accounted for: %+v", what, s)
	}
}

func has(known map[string]State, id string) bool {
	_, ok := known[id]
	return ok
}

// countNew counts the groups of a user that the rows make.
func countNew(c *removalCase, user string) (n int) {
	for k, j := range c.jobs {
		if k[0] == user && c.base[k] == nil && j.old == "" && !j.deleted {
			n++
		}
	}
	return n
}

// A user of whom more groups may be there than the API lets one have: what nights without an end left unsure.
func TestRemovalOfManyGroups(t *testing.T) {
	var base []Group
	for i := range 100 {
		base = append(base, known("u", fmt.Sprintf("g%02d", i), GroupConversation{job.OneToOne, "a", Unsure}))
	}
	p := planOn(t, [][3]string{{"u", "h", "x"}}, Config{}, &Base{Groups: seqOf(base), Removals: RemoveAbsent})
	if got := len(collect(t, p.Jobs())); got != 101 {
		t.Errorf("got %d jobs, want 101", got)
	}
	users := collect(t, p.Users())
	if len(users) != 1 || len(users[0].Jobs) != 101 {
		t.Errorf("got %d users, want one with all jobs", len(users))
	}
}

// Rows that are within the quotes of another one are not known, whether that one is accepted or rejected.
func TestQuotedRowsSuspendRemovals(t *testing.T) {
	for _, row := range []string{"u,g,1,a,,\"note\nv,g,1,a,,\nw,g,1,a,,\"\n", "u,g,1,\"a\nv,g,1,a,,\nw,g,1,a\",,\n"} {
		text := "from_account,group_name,type,to_account,to_group_id,note\nv,g,1,b,,\n" + row
		rows, err := ReadRows(t.Context(), []string{"-"}, Config{Stdin: strings.NewReader(text)})
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		p, err := rows.Plan(t.Context(), &Base{Removals: RemoveAbsent, Groups: seqOf([]Group{
			known("v", "g", GroupConversation{job.OneToOne, "a", Applied}, GroupConversation{job.OneToOne, "b", Applied}),
		})})
		if err != nil {
			t.Fatal(err)
		}
		want := "-:3: a quote makes one record of lines that look like rows"
		if s := p.Summary; s.Removed.Conversations != 0 || s.Withheld != 1 || p.Suspended != want {
			t.Errorf("%q: got %d removed, %d withheld, %q; want none, one, %q", row, s.Removed.Conversations, s.Withheld, p.Suspended, want)
		}
	}
}
