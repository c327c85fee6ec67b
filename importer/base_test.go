package importer

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"groupferry/internal/chat"
	"groupferry/internal/job"
)

// A world is groups with their conversations: true where they are applied.
type world map[[2]string]map[string]bool

func (w world) set(user, group, id string, is bool) {
	k := [2]string{user, group}
	if w[k] == nil {
		w[k] = map[string]bool{}
	}
	w[k][id] = is
}

// groups gives what is in w, a conversation at a time, in a random order.
func (w world) groups(r *rand.Rand) iter.Seq2[Group, error] {
	var all []Group
	for k, convs := range w {
		for id, is := range convs {
			all = append(all, known(k[0], k[1], GroupConversation{job.OneToOne, id, stateIf(is)}))
		}
	}
	slices.SortFunc(all, func(a, b Group) int {
		return cmp.Or(cmp.Compare(a.FromAccount, b.FromAccount), cmp.Compare(a.GroupName, b.GroupName),
			cmp.Compare(a.Conversations[0].ID, b.Conversations[0].ID))
	})
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return seqOf(all)
}

func known(user, name string, c ...GroupConversation) Group {
	return Group{FromAccount: user, GroupName: name, Conversations: c}
}

func stateIf(applied bool) State {
	if applied {
		return Applied
	}
	return Refused
}

func seqOf(all []Group) iter.Seq2[Group, error] {
	return func(yield func(Group, error) bool) {
		for _, g := range all {
			if !yield(g, nil) {
				return
			}
		}
	}
}

// planOn reads rows as CSV and plans them on a base.
func planOn(t *testing.T, rows [][3]string, cfg Config, base *Base) *Plan {
	t.Helper()
	var csv strings.Builder
	csv.WriteString("from_account,group_name,to_account\n")
	for _, r := range rows {
		fmt.Fprintf(&csv, "%s,%s,%s\n", r[0], r[1], r[2])
	}
	cfg.Stdin = strings.NewReader(csv.String())
	read, err := ReadRows(t.Context(), []string{"-"}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	p, err := read.Plan(t.Context(), base)
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, p)
	return p
}

// wanted is what the rows ask for within the limits, as a person would work it out: what is applied stays, the rest comes
// by name.
func wanted(rows [][3]string, base world) (take world, tooMany map[[3]string]bool) {
	groups := map[string]map[string]bool{} // of a user, that count
	for k, convs := range base {
		for _, is := range convs {
			if is {
				if groups[k[0]] == nil {
					groups[k[0]] = map[string]bool{}
				}
				groups[k[0]][k[1]] = true
			}
		}
	}
	sorted := slices.Clone(rows)
	slices.SortFunc(sorted, func(a, b [3]string) int { return slices.Compare(a[:], b[:]) })
	take, tooMany = world{}, map[[3]string]bool{}
	full := map[[2]string]map[string]bool{}
	for _, r := range sorted {
		user, name, id := r[0], r[1], r[2]
		if groups[user] == nil {
			groups[user] = map[string]bool{}
		}
		if !groups[user][name] {
			if len(groups[user]) >= chat.MaxGroupsPerUser {
				tooMany[r] = true
				continue
			}
			groups[user][name] = true
		}
		k := [2]string{user, name}
		if full[k] == nil {
			full[k] = map[string]bool{}
			for id, is := range base[k] {
				if is {
					full[k][id] = true
				}
			}
		}
		if !full[k][id] && len(full[k]) >= chat.MaxConversationsPerGroup {
			tooMany[r] = true
			continue
		}
		full[k][id] = true
		take.set(user, name, id, true)
	}
	return take, tooMany
}

// TestBase holds plans on random bases against what a person would work out, whatever the order of the rows, the memory
// and the number of workers.
func TestBase(t *testing.T) {
	var neighbours []string // users of one partition
	for i := 0; len(neighbours) < 6; i++ {
		if name := fmt.Sprint("u", i); partitionOf(hashUser(name), 0, partitionBits) == 0 {
			neighbours = append(neighbours, name)
		}
	}
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 13))
		base := world{}
		var rows [][3]string
		users, names, ids := 1+r.IntN(6), 1+r.IntN(30), 1+r.IntN(40)
		if seed%10 == 0 {
			users, names, ids = 1, 2, 1500 // groups over their limit
		}
		pick := func() (string, string, string) {
			return neighbours[r.IntN(users)], fmt.Sprintf("g%02d", r.IntN(names)), fmt.Sprint("c", r.IntN(ids)) // of unlike lengths
		}
		for range r.IntN(3 * ids) {
			u, g, c := pick()
			if len(base[[2]string{u, g}]) < 900 {
				base.set(u, fmt.Sprintf("g%02d", r.IntN(min(names, 18))), c, r.IntN(4) > 0)
			}
		}
		for range 1 + r.IntN(4*ids) {
			u, g, c := pick()
			rows = append(rows, [3]string{u, g, c})
		}
		take, tooMany := wanted(rows, base)
		var first string
		for _, cfg := range []Config{{}, {workers: 3, memory: 3}, {workers: 2, memory: 20_000, resident: -1}} {
			r.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
			plan := planOn(t, rows, cfg, &Base{Name: "n", Generation: 3, Groups: base.groups(r)})
			send, jobs := world{}, int64(0)
			for _, j := range jobsOf(t, plan) {
				jobs++
				for _, c := range j.Conversations {
					if c.Op == job.Add {
						send.set(j.FromAccount, j.GroupName, c.ID, true)
					} else if c.Op != job.Keep || !base[[2]string{j.FromAccount, j.GroupName}][c.ID] || !take[[2]string{j.FromAccount, j.GroupName}][c.ID] {
						t.Errorf("seed %d: %v has %+v", seed, j.GroupName, c)
					}
				}
			}
			known, groupsWanted, newGroups, conversations := int64(0), 0, 0, int64(0)
			for k, convs := range take {
				groupsWanted++
				isNew := true
				for _, is := range base[k] {
					isNew = isNew && !is
				}
				if isNew {
					newGroups++
				}
				for id := range convs {
					if base[k][id] {
						known++
						if send[k][id] {
							t.Errorf("seed %d: %v %s is sent and was applied", seed, k, id)
						}
					} else if conversations++; !send[k][id] {
						t.Errorf("seed %d: %v %s is not sent", seed, k, id)
					}
				}
			}
			s := plan.Summary
			if s.Conversations != conversations || s.Accepted != known+conversations || s.Jobs != jobs ||
				s.Rows != s.Accepted+s.Duplicates+s.Rejected || int(s.Groups) != groupsWanted || int(s.NewGroups) != newGroups {
				t.Errorf("seed %d: got %+v, want %d conversations, %d accepted, %d jobs, %d groups, %d new",
					seed, s, conversations, known+conversations, jobs, groupsWanted, newGroups)
			}
			rejects := rejectsOf(t, plan)
			for _, x := range rejects {
				if !tooMany[[3]string{x.FromAccount, x.GroupName, x.ToAccount}] {
					t.Errorf("seed %d: %+v was rejected", seed, x)
				}
			}
			want := 0
			for _, x := range rows {
				if tooMany[x] {
					want++
				}
			}
			if len(rejects) != want {
				t.Errorf("seed %d: got %d rejects, want %d", seed, len(rejects), want)
			}
			got := snapshotText(t, plan)
			if first == "" {
				first = got
			}
			if got != first {
				t.Errorf("seed %d: the snapshot depends on memory or the order of rows", seed)
			}
			compareWorlds(t, plan, base)
			// Each split has 16 parts more, and takes users apart.
			if split := len(plan.runs) - partitions; cfg.memory == 3 && s.Users > 1 && (split < 16 || split > 16*len(neighbours)) {
				t.Errorf("seed %d: got %d runs more than partitions", seed, split)
			}
		}
	}
}

func snapshotText(t *testing.T, p *Plan) string {
	t.Helper()
	var b strings.Builder
	for _, g := range collect(t, p.Snapshot()) {
		slices.SortFunc(g.Conversations, func(a, b GroupConversation) int { return cmp.Compare(a.ID, b.ID) })
		fmt.Fprintln(&b, g)
	}
	return b.String()
}

// compareWorlds checks that the snapshot has what the base had.
func compareWorlds(t *testing.T, p *Plan, base world) {
	t.Helper()
	got := world{}
	for _, g := range collect(t, p.Snapshot()) {
		if got[[2]string{g.FromAccount, g.GroupName}] != nil {
			t.Errorf("group %s of %s comes twice", g.GroupName, g.FromAccount)
		}
		for _, c := range g.Conversations {
			got.set(g.FromAccount, g.GroupName, c.ID, c.State == Applied)
		}
	}
	if !maps.EqualFunc(got, base, maps.Equal) {
		t.Errorf("got snapshot %v, want %v", got, base)
	}
}

// What was known last counts.
func TestBaseLastCounts(t *testing.T) {
	was := func(is ...bool) (all []Group) {
		for _, is := range is {
			all = append(all, known("u", "g", GroupConversation{job.GroupChat, "c", stateIf(is)}))
		}
		return all
	}
	for _, test := range []struct {
		known []Group
		jobs  int64
	}{
		{nil, 1}, {was(true), 0}, {was(false), 1}, {was(false, true), 0}, {was(true, false), 1}, {was(true, false, true), 0},
	} {
		read, err := ReadRows(t.Context(), []string{"-"}, Config{Stdin: strings.NewReader(csvHeader + "u,g,2,,c\n")})
		if err != nil {
			t.Fatal(err)
		}
		defer read.Close()
		for _, all := range []bool{false, true} {
			p, err := read.Plan(t.Context(), &Base{Groups: seqOf(test.known), All: all})
			want := test.jobs
			if all {
				want = 1
			}
			if err != nil || p.Summary.Jobs != want || p.Summary.Accepted != 1 {
				t.Errorf("%v, all %t: got %+v, %v, want %d jobs", test.known, all, p.Summary, err, want)
			}
			for _, j := range jobsOf(t, p) {
				again := len(test.known) > 0 && test.known[len(test.known)-1].Conversations[0].State != Applied
				if c := j.Conversations[0]; c.ID != "c" || c.Line != 2 || c.Again != again {
					t.Errorf("%v: got %+v, want again %t", test.known, c, again)
				}
			}
		}
	}
}

// The same rows are another import on another base, and the same one on the same base.
func TestBaseIDs(t *testing.T) {
	seen := map[string]Base{}
	for _, b := range []Base{
		{Name: "a"}, {Name: "b"}, {Name: "a", Generation: 1}, {Name: "a", All: true}, {Name: "a", Generation: 1, All: true},
		{Name: "a", Removals: OnlyCount}, {Name: "a", Removals: RemoveAbsent}, {Name: "a", Removals: RemoveAbsent, Clear: true},
	} {
		b.Groups = seqOf(nil)
		p := planOn(t, [][3]string{{"u", "g", "c"}}, Config{}, &b)
		if was, again := seen[p.ImportID]; again {
			t.Errorf("%+v and %+v have the ID %s", was, b, p.ImportID)
		}
		seen[p.ImportID] = b
		if again := planOn(t, [][3]string{{"u", "g", "c"}}, Config{}, &b); again.ImportID != p.ImportID || len(again.Digest) != 64 {
			t.Errorf("got ID %s, then %s", p.ImportID, again.ImportID)
		}
	}
}

// An error of the base is the plan's.
func TestBaseError(t *testing.T) {
	broken := errors.New("disk on fire")
	read, err := ReadRows(t.Context(), []string{"-"}, Config{Stdin: strings.NewReader(csvHeader + "u,g,2,,c\n")})
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	base := &Base{Groups: func(yield func(Group, error) bool) { yield(Group{}, broken) }}
	if _, err := read.Plan(t.Context(), base); err != broken {
		t.Errorf("got %v, want %v", err, broken)
	}
}

func TestSnapshot(t *testing.T) {
	groups := []Group{
		known("u", "family", GroupConversation{job.OneToOne, "a", Applied}, GroupConversation{job.GroupChat, "b", Refused}),
		known("v", "名", GroupConversation{job.GroupChat, "@TGS#1", Unsure}),
	}
	var b bytes.Buffer
	if n, err := WriteSnapshot(&b, seqOf(groups)); n != 2 || err != nil {
		t.Fatalf("got %d, %v", n, err)
	}
	if got := collect(t, ReadSnapshot(bytes.NewReader(b.Bytes()))); fmt.Sprint(got) != fmt.Sprint(groups) {
		t.Errorf("got %v, want %v", got, groups)
	}
	for n := range b.Len() {
		if err := snapshotError(b.Bytes()[:n]); !errors.Is(err, ErrSnapshot) {
			t.Errorf("cut off after %d bytes: got %v, want ErrSnapshot", n, err)
		}
		changed := bytes.Clone(b.Bytes())
		changed[n] ^= 0x41
		if err := snapshotError(changed); err != nil && !errors.Is(err, ErrSnapshot) {
			t.Errorf("byte %d changed: got %v, want ErrSnapshot", n, err)
		}
	}
	if err := snapshotError(append(bytes.Clone(b.Bytes()), "more"...)); !errors.Is(err, ErrSnapshot) {
		t.Errorf("something behind it: got %v, want ErrSnapshot", err)
	}
	broken := errors.New("disk on fire")
	if _, err := WriteSnapshot(io.Discard, func(yield func(Group, error) bool) { yield(Group{}, broken) }); err != broken {
		t.Errorf("got %v, want %v", err, broken)
	}
}

// Snapshots that older versions wrote, which knew applied and not applied, are read as they were meant.
func TestSnapshotOfOlderVersions(t *testing.T) {
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(z, "groupferry snapshot 1\n\x01u\x01g\x03\x11\x01a\x02\x01b\x00\x00\x00\x01")
	z.Close()
	want := []Group{known("u", "g", GroupConversation{job.OneToOne, "a", Applied}, GroupConversation{job.GroupChat, "b", Refused})}
	if got := collect(t, ReadSnapshot(&b)); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func snapshotError(b []byte) (err error) {
	for _, err = range ReadSnapshot(bytes.NewReader(b)) {
	}
	return err
}

// A group that was renamed is known by its new name, and of one that was deleted nothing is known any more.
func TestBaseRenamedAndDeleted(t *testing.T) {
	applied := func(ids ...string) (all []GroupConversation) {
		for _, id := range ids {
			all = append(all, GroupConversation{job.OneToOne, id, Applied})
		}
		return all
	}
	before := []Group{known("u", "g", applied("a", "b", "c")...), known("u", "h", applied("a")...)}
	moved := known("u", "G", GroupConversation{job.OneToOne, "b", Removed}, GroupConversation{job.OneToOne, "d", Applied})
	moved.OldName = "g"
	gone := known("u", "h", GroupConversation{job.OneToOne, "a", Removed})
	gone.Deleted = true
	empty := known("u", "h")
	empty.Deleted = true
	anew := known("u", "g", append(applied("b", "d"), GroupConversation{job.OneToOne, "c", Removed})...)
	anew.Deleted = true
	other := anew
	other.GroupName, other.OldName = "G", "g"
	for _, test := range []struct {
		what string
		then []Group
		want string
	}{
		{"nothing", nil, "[{u g [{1 a 1} {1 b 1} {1 c 1}]  false} {u h [{1 a 1}]  false}]"},
		{"renamed", []Group{moved}, "[{u G [{1 a 1} {1 c 1} {1 d 1}]  false} {u h [{1 a 1}]  false}]"},
		{"deleted", []Group{gone}, "[{u g [{1 a 1} {1 b 1} {1 c 1}]  false}]"},
		{"refused", []Group{known("u", "g", GroupConversation{job.OneToOne, "a", Refused}, GroupConversation{job.OneToOne, "x", Refused})},
			"[{u g [{1 a 2} {1 b 1} {1 c 1} {1 x 0}]  false} {u h [{1 a 1}]  false}]"},
		{"found gone", []Group{empty}, "[{u g [{1 a 1} {1 b 1} {1 c 1}]  false}]"},
		{"created anew", []Group{anew}, "[{u g [{1 b 1} {1 d 1}]  false} {u h [{1 a 1}]  false}]"},
		{"created anew with a new name", []Group{other}, "[{u G [{1 b 1} {1 d 1}]  false} {u h [{1 a 1}]  false}]"},
		{"both", []Group{gone, moved}, "[{u G [{1 a 1} {1 c 1} {1 d 1}]  false}]"},
	} {
		p := planOn(t, [][3]string{{"v", "g", "x"}}, Config{}, &Base{Groups: seqOf(slices.Concat(before, test.then))})
		got := collect(t, p.Snapshot())
		for _, g := range got {
			slices.SortFunc(g.Conversations, func(a, b GroupConversation) int { return cmp.Compare(a.ID, b.ID) })
		}
		if text := fmt.Sprint(got); text != test.want {
			t.Errorf("%s: got %s, want %s", test.what, text, test.want)
		}
	}
}
