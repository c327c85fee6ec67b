package app

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"groupferry/importer"
	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
	"groupferry/internal/job"
)

// A mirror is a sync of its own in a namespace that many tests share, with users of its own.
type mirror struct {
	*namespace
	t   *testing.T
	cfg SyncConfig
	in  InputConfig
}

// night prepares a night of rows "user,group,conversation", and waits for its end.
func (m *mirror) night(lines ...string) *Night {
	m.t.Helper()
	night := m.begin(lines...)
	m.awaitComplete(night.Record.ID)
	return night
}

// begin prepares a night, and enqueues it.
func (m *mirror) begin(lines ...string) *Night {
	m.t.Helper()
	night, err := m.try(lines...)
	if err != nil {
		m.t.Fatal(err)
	}
	m.enqueueNight(night)
	return night
}

// try prepares a night.
func (m *mirror) try(lines ...string) (*Night, error) {
	m.t.Helper()
	m.in.Files = []string{writeInput(m.t, lines...)}
	night, err := m.ReadNight(m.t.Context(), m.in, m.cfg)
	if err == nil {
		m.t.Cleanup(func() { night.Close() })
		m.t.Cleanup(func() { _ = night.Release(m.t.Context()) })
	}
	return night, err
}

// twice has a first night, and one more of the same rows: from then on what vanishes is removed.
func (m *mirror) twice(lines ...string) {
	m.t.Helper()
	m.night(lines...)
	m.night(lines...)
}

// there makes sure what the groups of users have: "user/group: a b".
func (m *mirror) there(want ...string) {
	m.t.Helper()
	var got []string
	for user, groups := range m.sim.State() {
		if !strings.HasPrefix(user, m.cfg.Name) {
			continue
		}
		for group, items := range groups {
			var ids []string
			for _, it := range items {
				ids = append(ids, it.ID)
			}
			slices.Sort(ids)
			got = append(got, fmt.Sprintf("%s/%s: %s", strings.TrimPrefix(user, m.cfg.Name), group, strings.Join(ids, " ")))
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		m.t.Errorf("got %q, want %q", got, want)
	}
}

// somebody else puts a conversation into a group.
func (m *mirror) somebody(user, group, id string) {
	m.t.Helper()
	r := chat.UpdateRequest{FromAccount: m.cfg.Name + user, GroupName: group, Add: []chat.Item{{Type: chat.OneToOne, ID: id}}}
	if _, err := m.client(chatsim.DemoSecretKey).Update(m.t.Context(), r); err != nil {
		m.t.Fatal(err)
	}
}

// writes counts the calls that change something.
func (m *mirror) writes() int {
	l := m.sim.Ledger().Commands
	return l[chat.CreateContactGroup].Calls + l[chat.UpdateContactGroup].Calls + l[chat.DelContactGroup].Calls
}

// failing makes calls for an id fail while do runs.
func (m *mirror) failing(ids map[string]int, do func()) {
	m.t.Helper()
	set := func(ids map[string]int) {
		if err := m.sim.Configure(func(c *chatsim.Config) { c.FailIDs = ids }); err != nil {
			m.t.Fatal(err)
		}
	}
	set(ids)
	do()
	set(nil)
}

// codes are those that the results of a night say of removals.
func (m *mirror) codes(id string) map[string]string {
	m.t.Helper()
	all := map[string]string{}
	for r, err := range m.Results(m.t.Context(), id) {
		if err != nil {
			m.t.Fatal(err)
		}
		for _, c := range r.Conversations {
			if c.Op == job.Remove {
				all[c.ID] = c.Code
			}
		}
	}
	return all
}

// TestMirror holds each sentence about removals. The users of each case are its own: "u1" in a row stands for one of them.
func TestMirror(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1})
	e := n.start(nil)
	cases := 0
	run := func(name string, do func(t *testing.T, m *mirror)) {
		t.Helper()
		cases++
		prefix := fmt.Sprintf("s%d-", cases)
		t.Run(name, func(t *testing.T) {
			m := &mirror{namespace: n, t: t, cfg: n.contacts()}
			m.cfg.Name, m.cfg.Mirror = prefix, true
			m.in.MaxRejects = Budget{Limited: true, Percent: 90}
			do(t, m)
		})
	}
	with := func(m *mirror, lines ...string) []string { // the users of the case
		for i, line := range lines {
			if !strings.HasPrefix(line, ",") {
				lines[i] = m.cfg.Name + line
			}
		}
		return lines
	}

	run("add mode, the default, removes nothing", func(t *testing.T, m *mirror) {
		m.cfg.Mirror = false
		m.twice(with(m, "u1,g,a", "u1,g,b")...)
		m.night(with(m, "u1,g,a")...)
		m.there("u1/g: a b")
	})
	run("what the snapshot has and the input has no more is removed", func(t *testing.T, m *mirror) {
		m.twice(with(m, "u1,g,a", "u1,g,b", "u1,h,a")...)
		rows := with(m, "u1,g,b", "u1,g,c")
		m.in.Files = []string{writeInput(t, rows...)}
		r, err := Check(t.Context(), CheckConfig{Input: m.in, Sync: &m.cfg, Namespace: m.Namespace, Show: 5})
		if calls := fmt.Sprintf("%s", r.FirstCalls); err != nil || len(r.FirstCalls) != 1 || strings.Count(calls, `"To_Account":`) != 1 || !strings.Contains(calls, `"To_Account":"c"`) {
			t.Errorf("check: got the first calls %s, %v, want one with c alone", calls, err)
		}
		m.there("u1/g: a b", "u1/h: a")
		night := m.night(rows...)
		m.there("u1/g: b c")
		if r := night.Report().Mirror; r.Conversations != 2 || r.Remove != 1 || r.Delete != 1 || r.OnlyAdds {
			t.Errorf("got %+v", r)
		}
	})
	run("what others put into the groups is not touched", func(t *testing.T, m *mirror) {
		m.twice(with(m, "u1,g,a", "u1,g,b", "u1,h,c")...)
		m.somebody("u1", "g", "theirs")
		m.somebody("u1", "h", "theirs")
		m.night(with(m, "u1,g,a")...)
		m.there("u1/g: a theirs", "u1/h: theirs")
	})
	run("the first night of a name only adds, and says what it would remove", func(t *testing.T, m *mirror) {
		m.cfg.Mirror = false
		m.night(with(m, "u1,g,a", "u1,g,b", "u1,h,c")...)
		m.cfg.Mirror = true
		night := m.night(with(m, "u1,g,a", "u1,g,d")...)
		m.there("u1/g: a b d", "u1/h: c")
		if r := night.Report().Mirror; !r.OnlyAdds || r.Conversations != 2 || r.Delete != 1 {
			t.Errorf("got %+v", r)
		}
		m.night(with(m, "u1,g,a", "u1,g,d")...)
		m.there("u1/g: a d")
	})
	run("the first night after a change from add to mirror only adds", func(t *testing.T, m *mirror) {
		m.twice(with(m, "u1,g,a", "u1,g,b", "u1,g,c")...)
		m.cfg.Mirror = false
		m.night(with(m, "u1,g,a", "u1,g,b", "u1,g,d")...)
		m.cfg.Mirror = true
		m.night(with(m, "u1,g,a", "u1,g,d")...)
		m.there("u1/g: a b c d")
		m.night(with(m, "u1,g,a", "u1,g,d")...)
		m.there("u1/g: a d")
	})
	run("users who are not in the input are kept by default", func(t *testing.T, m *mirror) {
		m.twice(with(m, "u1,g,a", "u2,g,a")...)
		m.night(with(m, "u1,g,a")...)
		m.there("u1/g: a", "u2/g: a")
	})
	run("users who are not in the input are cleared of what this sync has added", func(t *testing.T, m *mirror) {
		m.twice(with(m, "u1,g,a", "u2,g,a", "u2,h,b")...)
		m.somebody("u2", "h", "theirs")
		m.cfg.Clear = true
		night := m.night(with(m, "u1,g,a")...)
		m.there("u1/g: a", "u2/h: theirs")
		if r := night.Report().Mirror; r.Users != 1 {
			t.Errorf("got %+v, want one user cleared", r)
		}
	})
	run("a user with a rejected row gets no removal", func(t *testing.T, m *mirror) {
		m.twice(with(m, "u1,g,a", "u1,g,b", "u2,g,a", "u2,g,b")...)
		night := m.night(with(m, "u1,g,a", "u1,,b", "u2,g,a")...)
		m.there("u1/g: a b", "u2/g: a")
		if r := night.Report().Mirror; r.Withheld != 1 || r.WithheldUsers != 1 || r.Suspended != "" {
			t.Errorf("got %+v, want one withheld", r)
		}
		m.night(with(m, "u1,g,a", "u2,g,a")...)
		m.there("u1/g: a", "u2/g: a")
	})
	run("a user with an id that the map does not know gets no removal", func(t *testing.T, m *mirror) {
		u := func(n int) string { return fmt.Sprint(m.cfg.Name, "u", n) }
		ids := filepath.Join(t.TempDir(), "ids.csv")
		text := fmt.Sprintf("old,new\nold1,%s\nold2,%s\na,a\nb,b\n", u(1), u(2))
		if err := os.WriteFile(ids, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		m.in.Importer.MapIDs = ids
		m.twice("old1,g,a", "old1,g,b", "old2,g,a", "old2,g,b")
		m.night("old1,g,a", "old1,g,nobody", "old2,g,a")
		m.there("u1/g: a b", "u2/g: a")
		night := m.night("old1,g,a", "unknown,g,a", "old2,g,a")
		m.there("u1/g: a b", "u2/g: a")
		if r := night.Report().Mirror; r.Suspended == "" {
			t.Errorf("got %+v, want all suspended: nobody knows whose row it is", r)
		}
	})
	run("a rejected row without a user suspends all removals", func(t *testing.T, m *mirror) {
		m.twice(with(m, "u1,g,a", "u1,g,b", "u2,g,a")...)
		m.cfg.Clear = true
		night := m.night(with(m, "u1,g,a", ",g,b")...)
		m.there("u1/g: a b", "u2/g: a")
		if r := night.Report().Mirror; !strings.HasSuffix(r.Suspended, ":3: rejected, and it does not say of which user it is") || r.Withheld != 2 {
			t.Errorf("got %+v", r)
		}
	})
	run("a user with a row over a limit gets no removal", func(t *testing.T, m *mirror) {
		var before, after []string
		for i := range 21 {
			after = append(after, fmt.Sprintf("u1,g%02d,a", i))
		}
		before = append(before, "u1,old,a", "u1,g00,a")
		m.twice(with(m, before...)...)
		night := m.night(with(m, after...)...)
		if s := m.sim.State()[m.cfg.Name+"u1"]; len(s) != 20 || s["old"] == nil {
			t.Errorf("got %d groups, old %v, want 20 with the old one", len(s), s["old"])
		}
		if r := night.Report(); r.Rejected != 2 || r.Mirror.Withheld != 1 {
			t.Errorf("got %+v, %+v", r, r.Mirror)
		}
	})
	run("gross removals are refused before the first call, until they are accepted", func(t *testing.T, m *mirror) {
		var rows []string
		for i := range 30 {
			rows = append(rows, fmt.Sprintf("u%d,g%02d,a", i, i))
		}
		rows = append(rows, "v,g,a")
		m.twice(with(m, rows...)...)
		m.cfg.Clear, m.in.AllowEmpty = true, true
		m.cfg.Guards.MaxShrink = Budget{Limited: true, Rows: 1000}
		before := m.writes()
		_, err := m.try(m.cfg.Name + "v,g,a")
		refused, ok := errors.AsType[*ShrinkError](err)
		want := "it would remove more than --max-removals 5% allows: " +
			"30 of 31 conversations (at most 20), 30 of 31 groups (at most 20), 30 of 31 users (at most 20)"
		if !ok || len(refused.Wrong) != 1 || refused.Wrong[0] != want || m.writes() != before {
			t.Fatalf("got %v and %d writes, want %q", err, m.writes()-before, want)
		}
		m.cfg.Guards.Accept = refused.Import
		if _, err := m.try(m.cfg.Name + "v,g,b"); !errors.As(err, new(*ShrinkError)) {
			t.Errorf("other content: got %v", err)
		}
		m.night(m.cfg.Name + "v,g,a")
		m.there("v/g: a")
	})
	run("gross removals are not accepted while the night before may still add to them", func(t *testing.T, m *mirror) {
		var rows []string
		for i := range 60 {
			rows = append(rows, fmt.Sprintf("u1,g,a%02d", i))
		}
		m.twice(with(m, rows[:30]...)...)
		if _, err := m.Pause(t.Context(), "a test", "resume"); err != nil {
			t.Fatal(err)
		}
		m.await("the pause", func() bool { return e.State().Mode == Paused })
		live := m.begin(append(rows[:30:30], with(m, rows[30:]...)...)...)
		m.cfg.Guards.MaxShrink = Budget{Limited: true, Rows: 1000}
		_, err := m.try(with(m, "u1,g,a00")...)
		refused, ok := errors.AsType[*ShrinkError](err)
		if !ok || !strings.Contains(err.Error(), "29 of 30 conversations") {
			t.Fatalf("got %v, want a refusal", err)
		}
		m.cfg.Guards.Accept = refused.Import
		if _, err = m.try(with(m, "u1,g,a00")...); !errors.As(err, new(*ShrinkError)) ||
			!strings.Contains(err.Error(), "night 3 is not over") || strings.Contains(err.Error(), "other content") {
			t.Errorf("got %v, want it refused until that night is over", err)
		}
		if _, err := m.ClearHalt(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.awaitComplete(live.Record.ID)
		m.night(m.cfg.Name + "u1,g,a00")
		m.there("u1/g: a00")
	})
	run("an empty input removes nothing by itself", func(t *testing.T, m *mirror) {
		var rows []string
		for i := range 30 {
			rows = append(rows, fmt.Sprintf("u%d,g,a", i))
		}
		m.twice(with(m, rows...)...)
		m.cfg.Clear, m.in.AllowEmpty = true, true
		if _, err := m.try(); !errors.As(err, new(*ShrinkError)) {
			t.Errorf("got %v, want it refused", err)
		}
	})
	run("adds and removes of a group share a call", func(t *testing.T, m *mirror) {
		m.twice(with(m, "u1,g,a", "u1,g,b")...)
		before := m.writes()
		m.night(with(m, "u1,g,b", "u1,g,c")...)
		if n := m.writes() - before; n != 1 {
			t.Errorf("got %d writes, want 1", n)
		}
		m.there("u1/g: b c")
	})
	run("a full group is emptied before it is filled", func(t *testing.T, m *mirror) {
		var before, after []string
		for i := range 1000 {
			before = append(before, fmt.Sprintf("u1,g,a%d", i))
			after = append(after, fmt.Sprintf("u1,g,b%d", i))
		}
		m.twice(with(m, before...)...)
		m.cfg.Guards.MaxRemovals = Budget{Limited: true, Percent: 100}
		m.night(with(m, after...)...)
		items := m.sim.State()[m.cfg.Name+"u1"]["g"]
		if len(items) != 1000 || slices.ContainsFunc(items, func(it chat.Item) bool { return it.ID[0] == 'a' }) {
			t.Errorf("got %d conversations, want the 1,000 new ones", len(items))
		}
	})
	run("a user with 20 groups loses the old ones before the new ones come", func(t *testing.T, m *mirror) {
		var before, after []string
		for i := range 20 {
			before = append(before, fmt.Sprintf("u1,old%02d,a", i))
			after = append(after, fmt.Sprintf("u1,new%02d,a", i))
		}
		m.twice(with(m, before...)...)
		m.cfg.Guards.MaxRemovals = Budget{Limited: true, Percent: 100}
		m.night(with(m, after...)...)
		if s := slices.Sorted(maps.Keys(m.sim.State()[m.cfg.Name+"u1"])); len(s) != 20 || s[0] != "new00" {
			t.Errorf("got the groups %v, want the 20 new ones", s)
		}
	})
	run("a group that is gone is created whole", func(t *testing.T, m *mirror) {
		m.twice(with(m, "u1,g,a", "u1,g,b")...)
		if err := m.client(chatsim.DemoSecretKey).Delete(t.Context(), m.cfg.Name+"u1", "g"); err != nil {
			t.Fatal(err)
		}
		m.night(with(m, "u1,g,a", "u1,g,c")...)
		m.there("u1/g: a c")
	})
	run("what a group that was gone is not created with is not believed to be there", func(t *testing.T, m *mirror) {
		for _, mirrors := range []bool{true, false} {
			m.cfg.Mirror = mirrors
			m.twice(with(m, "u1,g,a", "u1,g,b", "u1,g,c")...)
			if err := m.client(chatsim.DemoSecretKey).Delete(t.Context(), m.cfg.Name+"u1", "g"); err != nil {
				t.Fatal(err)
			}
			d := fmt.Sprint("d", mirrors)
			m.night(with(m, "u1,g,a", "u1,g,"+d, "u1,,x")...)
			m.there("u1/g: a " + d)
			m.night(with(m, "u1,g,a", "u1,g,b", "u1,g,"+d)...)
			m.there("u1/g: a b " + d)
			m.night(with(m, "u1,g,a", "u1,g,b", "u1,g,c", "u1,g,"+d)...)
		}
	})
	run("a group that a retry finds gone is not believed to hold what the night has added", func(t *testing.T, m *mirror) {
		m.twice(with(m, "u1,g,b")...)
		rows := with(m, "u1,g,c")
		var night *Night
		m.failing(map[string]int{"b": 50002}, func() { night = m.night(rows...) })
		m.there("u1/g: b c")
		if err := m.client(chatsim.DemoSecretKey).Delete(t.Context(), m.cfg.Name+"u1", "g"); err != nil {
			t.Fatal(err)
		}
		if _, _, err := m.Retry(t.Context(), night.Record.ID, nil, nil); err != nil {
			t.Fatal(err)
		}
		m.awaitComplete(night.Record.ID)
		m.there()
		m.night(rows...)
		m.there("u1/g: c")
	})
	run("a removal from a group that is gone is done", func(t *testing.T, m *mirror) {
		m.twice(with(m, "u1,g,a", "u1,g,b", "u1,h,a")...)
		for _, g := range []string{"g", "h"} {
			if err := m.client(chatsim.DemoSecretKey).Delete(t.Context(), m.cfg.Name+"u1", g); err != nil {
				t.Fatal(err)
			}
		}
		night := m.night(with(m, "u1,g,a")...)
		if got := m.codes(night.Record.ID); !maps.Equal(got, map[string]string{"a": "", "b": ""}) {
			t.Errorf("got %v, want both done", got)
		}
	})
	run("a removal of somebody who is not there any more is recorded once", func(t *testing.T, m *mirror) {
		m.twice(with(m, "u1,g,a", "u1,g,b")...)
		m.failing(map[string]int{"b": chat.CodeUserNotImported}, func() {
			night := m.night(with(m, "u1,g,a")...)
			if got := m.codes(night.Record.ID); got["b"] != "50001" {
				t.Errorf("got %v, want 50001", got)
			}
			before := m.writes()
			m.night(with(m, "u1,g,a")...)
			m.night(with(m, "u1,g,a")...)
			if m.writes() != before {
				t.Errorf("got %d writes in the nights after it, want none", m.writes()-before)
			}
		})
	})
	run("a removal that failed is tried again the next night", func(t *testing.T, m *mirror) {
		m.twice(with(m, "u1,g,a", "u1,g,b")...)
		m.failing(map[string]int{"b": 50002}, func() { m.night(with(m, "u1,g,a")...) })
		m.there("u1/g: a b")
		m.night(with(m, "u1,g,a")...)
		m.there("u1/g: a")
	})
	run("a name that differs in case or form only is a rename", func(t *testing.T, m *mirror) {
		m.twice(with(m, "u1,Family,a", "u1,Family,b", "u1,cafe\u0301,c")...)
		before, deleted := m.writes(), m.sim.Ledger().Deleted
		night := m.night(with(m, "u1,family,a", "u1,family,b", "u1,caf\u00e9,c")...)
		m.there("u1/family: a b", "u1/caf\u00e9: c")
		if l := m.sim.Ledger(); m.writes()-before != 2 || l.Deleted != deleted {
			t.Errorf("got %d writes, %d groups deleted; want 2 and none", m.writes()-before, l.Deleted-deleted)
		}
		if r := night.Report(); r.Mirror.Rename != 2 || r.Create != 0 || r.Mirror.Conversations != 0 {
			t.Errorf("got %+v, %+v", r, r.Mirror)
		}
		m.night(with(m, "u1,family,a", "u1,caf\u00e9,c")...)
		m.there("u1/family: a", "u1/caf\u00e9: c")
	})
	run("no other rename is guessed", func(t *testing.T, m *mirror) {
		m.twice(with(m, "u1,friends,a", "u1,friends,b")...)
		renamed := m.sim.Ledger().Renamed
		m.night(with(m, "u1,mates,a", "u1,mates,b")...)
		m.there("u1/mates: a b")
		if m.sim.Ledger().Renamed != renamed {
			t.Error("a group was renamed")
		}
	})
	run("a group of another sync stops the mirror", func(t *testing.T, m *mirror) {
		other := *m
		other.cfg.Name = m.cfg.Name + "other"
		other.cfg.Mirror = false
		other.night(with(m, "u1,g,x")...)
		_, err := m.try(with(m, "u1,g,a")...)
		if e, ok := errors.AsType[*OtherSyncError](err); !ok || e.Sync != m.cfg.Name ||
			!slices.Equal(e.Groups, []importer.OtherGroup{{Sync: other.cfg.Name, FromAccount: m.cfg.Name + "u1", GroupName: "g"}}) {
			t.Errorf("got %v, want both names", err)
		}
		other.night(with(m, "u1,g,x")...) // it is in the snapshot now
		if _, err := m.try(with(m, "u1,g,a")...); !errors.As(err, new(*OtherSyncError)) {
			t.Errorf("got %v, want an OtherSyncError", err)
		}
		check := CheckConfig{Input: m.in, Sync: &m.cfg, Namespace: m.Namespace}
		if _, err := Check(t.Context(), check); !errors.As(err, new(*OtherSyncError)) {
			t.Errorf("check: got %v, want an OtherSyncError", err)
		}
		if _, err := m.try(with(m, "u1,G,a")...); !errors.As(err, new(*OtherSyncError)) {
			t.Errorf("a name that the API may take for it: got %v, want an OtherSyncError", err)
		}
		m.night(with(m, "u1,h,a")...)
		m.cfg.Mirror = false
		m.night(with(m, "u1,g,a")...)
	})
	run("a lost snapshot stops the mirror", func(t *testing.T, m *mirror) {
		m.twice(with(m, "u1,g,a", "u1,g,b")...)
		third := *m
		third.cfg.Name = m.cfg.Name + "third"
		js, err := m.Conn.JetStream().Stream(t.Context(), "OBJ_"+m.Conn.Namespace()+"-snapshots")
		if err == nil {
			err = js.Purge(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		before := m.writes()
		if _, err := m.try(with(m, "u1,g,a")...); !errors.As(err, new(*SnapshotError)) || m.writes() != before {
			t.Errorf("got %v, want a SnapshotError", err)
		}
		_, err = third.try(with(m, "u2,g,a")...)
		if e, ok := errors.AsType[*SnapshotError](err); !ok || e.Sync == third.cfg.Name || strings.Count(err.Error(), "nothing was enqueued") != 1 {
			t.Errorf("another mirror: got %v, want a SnapshotError with the name of the sync whose snapshot it is, said once", err)
		}
	})
	if err := e.end(t); err != nil {
		t.Error(err)
	}
}
