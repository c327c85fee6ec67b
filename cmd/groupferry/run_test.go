package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
	"groupferry/worker"
)

// addUp checks that a report accounts for every row and every conversation.
func addUp(t *testing.T, c *call, rows, conversations int) {
	t.Helper()
	r := c.report()
	if got := r.Accepted + r.Duplicates + r.Rejected; got != r.Rows || r.Rows != int64(rows) {
		t.Errorf("rows: got %d, of which %d are accounted for, want %d", r.Rows, got, rows)
	}
	n := r.Conversations
	if got := n.Done + n.Failed + n.Pending; got != n.Total || n.Total != int64(conversations) {
		t.Errorf("conversations: got %d, of which %d are accounted for, want %d", n.Total, got, conversations)
	}
	j := r.Jobs
	if got := j.Done + j.Partial + j.Failed + j.Pending; got != j.Total {
		t.Errorf("jobs: got %d, of which %d are accounted for", j.Total, got)
	}
}

func TestSamples(t *testing.T) {
	tests := []struct {
		file                string
		code                int
		rows, conversations int
		want                state // nil: what the file says, which has no flaw
	}{
		{"groups.csv", exitDone, 40, 40, nil},
		{"groups.jsonl", exitDone, 15, 15, nil},
		{"messy.csv", exitIncomplete, 57, 28, messyState()},
	}
	for _, test := range tests {
		t.Run(test.file, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(root, "samples", test.file)
			if test.want == nil {
				rows, err := readRows(file)
				if err != nil {
					t.Fatal(err)
				}
				test.want = stateOf(rows)
			}

			// With the simulator in the process: its ledger and the report have to agree.
			s := newShell(t, "")
			delete(s.env, "GROUPFERRY_API_URL")
			delete(s.env, "GROUPFERRY_DATA_DIR")
			rejects := filepath.Join(t.TempDir(), "rejects.csv")
			c := s.run(test.code, "run", "--simulate", "--output", "json", "--rejects", rejects, file)
			addUp(t, c, test.rows, test.conversations)
			groups := 0
			for _, g := range test.want {
				groups += len(g)
			}
			sim := c.report().Run.Simulator
			if sim == nil || sim.Disagrees != "" || sim.Conversations != test.conversations || sim.Groups != groups {
				t.Errorf("the simulator: got %+v, want %d conversations in %d groups, and no word of disagreement",
					sim, test.conversations, groups)
			}
			text := s.run(test.code, "run", "--simulate", "--rejects", rejects, file).stdout.String()
			if !strings.Contains(text, fmt.Sprintf("%d conversations in %d groups: agrees\n", test.conversations, groups)) {
				t.Errorf("the report: got no agreement:\n%s", text)
			}

			// With one beside it, whose groups can be looked at.
			beside, url := startSim(t, chatsim.Config{})
			c = newShell(t, url).run(test.code, "run", "--output", "json", "--rejects", rejects, file)
			addUp(t, c, test.rows, test.conversations)
			checkState(t, beside, test.want)
			if l := beside.Ledger(); l.BadRequests != 0 || l.Readded != 0 {
				t.Errorf("ledger: got %d bad requests %+v and %d conversations sent twice, want none",
					l.BadRequests, l.BadSamples, l.Readded)
			}
		})
	}
}

// messyState is what samples/messy.csv comes to without its bad rows.
func messyState() state {
	var rows []row
	add := func(user, group string, friends ...string) {
		for _, f := range friends {
			rows = append(rows, row{user, group, chat.Item{Type: chat.OneToOne, ID: f}})
		}
	}
	add("lena", "Family", "mei", "tomas", "yuki", "kofi")
	add("lena", "Climbing, Tuesdays", "bob", "omar")
	add("lena", `The "A" team`, "priya")
	for i := range 20 {
		add("ivan", fmt.Sprintf("Group %d", i+1), "anna")
	}
	add("ivan", "Group 1", "yuki")
	return stateOf(rows)
}

// Every bad row of the sample is named by its line, in words on standard error and in the file of rejects.
func TestMessySampleByLine(t *testing.T) {
	t.Parallel()
	wantLines := []int{3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 25, 26, 27, 30, 32, 33, 35, 56, 59}
	file := filepath.Join(root, "samples", "messy.csv")
	rejects := filepath.Join(t.TempDir(), "rejects.csv")
	_, url := startSim(t, chatsim.Config{})
	c := newShell(t, url).run(exitIncomplete, "run", "--output", "json", "--rejects", rejects, file)
	if got := c.report().Rejected; got != int64(len(wantLines)) {
		t.Errorf("rejected: got %d, want %d", got, len(wantLines))
	}
	var named []int
	for line := range strings.Lines(c.stderr.String()) {
		if rest, ok := strings.CutPrefix(line, "rejected: "+file+":"); ok {
			var n int
			fmt.Sscanf(rest, "%d:", &n)
			named = append(named, n)
		}
	}
	if !slices.Equal(named, wantLines) {
		t.Errorf("lines named: got %v, want %v", named, wantLines)
	}
	got, err := os.ReadFile(rejects)
	if err != nil {
		t.Fatal(err)
	}
	golden, err := os.ReadFile(filepath.Join(root, "samples", "messy-rejects.csv"))
	if err != nil {
		t.Fatal(err)
	}
	// The golden file was made at the root, and so names the input without the way there.
	if want := strings.ReplaceAll(string(golden), "samples/messy.csv", file); string(got) != want {
		t.Errorf("rejects: got\n%s\nwant\n%s", got, want)
	}
}

// Shuffled rows, groups as large as they may be, names in several scripts: the same state whatever create does to a
// group that exists. Where update is not offered, no client can write a group of more than one call unless create
// appends: then the result has to name exactly what is not in its group.
func TestEveryReadingOfCreate(t *testing.T) {
	sizes := []int{1000, 1000, 101, 100, 99}
	for range 35 {
		sizes = append(sizes, 20)
	}
	rows := makeRows(7, sizes...)
	if len(rows) != 3000 {
		t.Fatalf("rows: got %d, want 3000", len(rows))
	}
	want := stateOf(rows)
	for _, existing := range []chatsim.Existing{chatsim.Append, chatsim.Replace, chatsim.Refuse} {
		for _, offer := range []struct {
			name string
			cfg  chatsim.Config
		}{
			{"update", chatsim.Config{}},
			{"no update 404", chatsim.Config{NoUpdate: true}},
			{"no update 60009", chatsim.Config{NoUpdate: true, NotOfferedCode: chat.CodeNotOffered}},
		} {
			t.Run(string(existing)+" "+offer.name, func(t *testing.T) {
				t.Parallel()
				file := writeRows(t, rows)
				cfg := offer.cfg
				cfg.Existing = existing
				sim, url := startSim(t, cfg)
				s := newShell(t, url)
				whole := existing == chatsim.Append || !cfg.NoUpdate
				code := exitDone
				if !whole {
					code = exitIncomplete
				}
				c := s.run(code, "run", "--output", "json", file)
				addUp(t, c, 3000, 3000)
				l := sim.Ledger()
				if l.BadRequests != 0 || l.MostAtOnce != 1 {
					t.Errorf("ledger: got %d bad requests %+v, %d calls of one user at once, want 0 and 1",
						l.BadRequests, l.BadSamples, l.MostAtOnce)
				}
				if cfg.NoUpdate {
					c.wantErr("update_contact_group is not offered")
				}
				r := c.report()
				if whole {
					checkState(t, sim, want)
					if r.Conversations.Done != 3000 || r.Jobs.Done != int64(len(sizes)) {
						t.Errorf("got %+v, %+v, want all done", r.Conversations, r.Jobs)
					}
					return
				}

				// What the result says is in a group has to be there, and nothing else.
				in := rowsOf(sim.State())
				failed := s.results(r.Import, "--failed")
				for w := range rowsOf(want) {
					if _, hasFailed := failed[w]; in[w] == hasFailed {
						t.Fatalf("%+v: in the group %v, reported as failed %v", w, in[w], hasFailed)
					}
				}
				// The groups of up to 100 conversations are all there; of the three larger ones, one call's worth.
				if lost := 900 + 900 + 1; existing == chatsim.Refuse && len(failed) != lost {
					t.Errorf("failed: got %d, want %d", len(failed), lost)
				}
				if r.Jobs.Partial != 3 || r.Jobs.Failed != 0 {
					t.Errorf("jobs: got %+v, want 3 partial", r.Jobs)
				}
			})
		}
	}
}

// Where groups can neither be updated nor read, nothing is written unless that is accepted; then a group gets what one
// call carries, and the rest has failed.
func TestNothingButCreate(t *testing.T) {
	t.Parallel()
	rows := makeRows(8, 250, 30)
	sim, url := startSim(t, chatsim.Config{NoUpdate: true, NoGet: true})
	s := newShell(t, url)
	file := writeRows(t, rows)
	c := s.run(exitUsage, "run", file)
	c.wantErr("neither update_contact_group nor get_contact_group is offered", "--accept-replace")
	if n := sim.Ledger().Commands[chat.CreateContactGroup].Calls; n != 0 {
		t.Errorf("got %d creates, want none", n)
	}
	c = s.run(exitIncomplete, "run", "--accept-replace", "--output", "json", file)
	r := c.report()
	in := rowsOf(sim.State())
	failed := s.results(r.Import, "--failed")
	for w, line := range failed {
		if in[w] || line.Code != worker.CodeNeedsUpdate {
			t.Errorf("%+v: got %+v, in the group: %t; want %s, and that it is not", w, line, in[w], worker.CodeNeedsUpdate)
		}
	}
	if len(failed) != 150 || len(in) != 130 {
		t.Errorf("got %d failed and %d in their groups, want 150 and 130", len(failed), len(in))
	}
}

// faultySizes make about 90 calls.
func faultySizes() []int {
	sizes := []int{1000, 250, 201}
	for i := range 70 {
		sizes = append(sizes, 1+i%4)
	}
	return sizes
}

// One call in three fails, in each of the ways that pass, and the end is the same.
func TestFaults(t *testing.T) {
	readings := []chatsim.Existing{chatsim.Append, chatsim.Replace, chatsim.Refuse}
	tests := [][]string{
		{"50004:33%"}, {"50005:33%"}, {"60008:33%"}, {"http-502:33%"}, {"http-429:33%"}, {"reset:33%"}, {"lost:33%"},
		{"cut:33%"}, {"garbage:33%"}, {"hang:15%"},
		// A rate that is throttled without need goes down for as long as that lasts.
		{"60007:33%+20", "60011:33%+20"},
		// Conversations are sent three times at most, and a signature is made anew once: more than these can strike
		// one job too often to pass.
		{"create_contact_group/item-51007+2"}, {"create_contact_group/item-50004+2"}, {"70001:1+1"},
		{"50004:6%", "http-502:6%", "reset:6%", "lost:6%", "cut:6%", "garbage:6%"},
		{"lost:15%", "hang:2%", "60007:15%+30", "50005:15%"},
		{"60008:5%", "cut:15%", "reset:15%", "item-51007:1+2"},
	}
	for i, faults := range tests {
		t.Run(strings.Join(faults, " "), func(t *testing.T) {
			t.Parallel()
			cfg := chatsim.Config{Existing: readings[i%len(readings)], Seed: uint64(i)}
			for _, text := range faults {
				f, err := chatsim.ParseFault(text)
				if err != nil {
					t.Fatal(err)
				}
				cfg.Faults = append(cfg.Faults, f)
			}
			rows := makeRows(uint64(i), faultySizes()...)
			sim, url := startSim(t, cfg)
			c := newShell(t, url).run(exitDone, "run", "--output", "json", "--timeout", "3s", writeRows(t, rows))
			addUp(t, c, len(rows), len(rows))
			checkState(t, sim, stateOf(rows))
			l := sim.Ledger()
			struck := l.ItemsFailed
			for _, calls := range l.Commands {
				struck += calls.Faulted
			}
			if struck == 0 || l.BadRequests != 0 {
				t.Errorf("ledger: got %d faults and %d bad requests %+v, want some and none", struck, l.BadRequests, l.BadSamples)
			}
		})
	}
}

// After 50 calls every job would fail the same way: exit 4 with no more calls than were in flight, and the command in
// the last line finishes the rest once that is fixed.
func TestHaltAndGoOn(t *testing.T) {
	t.Parallel()
	var sizes []int
	for i := range 300 {
		sizes = append(sizes, 1+i%3)
	}
	rows := makeRows(3, sizes...)
	sim, url := startSim(t, chatsim.Config{Faults: []chatsim.Fault{{Kind: "51013", After: 50}}})
	s := newShell(t, url)
	const slots = 8 // each can have a call under way when the first halt comes
	c := s.run(exitHalted, "run", "--rate", "200", "--concurrency", "8", "--data-dir", s.dir, writeRows(t, rows))
	c.wantErr("51013", "groupferry: error: ", "groupferry: hint: ", "edition")
	l := sim.Ledger()
	calls := 0
	for _, n := range l.Commands {
		calls += n.Calls
	}
	if calls < 51 || calls > 50+slots {
		t.Errorf("calls: got %d, want 51 to %d", calls, 50+slots)
	}
	if text := s.run(exitDone, "status").stdout.String(); !strings.Contains(text, "halted by ") || !strings.Contains(text, "51013") {
		t.Errorf("status: got nothing about the halt:\n%s", text)
	}

	// The same again, before anything was fixed, changes nothing.
	resume := c.resumeCommand("to continue, once that is fixed")
	s.run(exitHalted, resume...).wantErr("51013")
	if got := sim.Ledger().Conversations; got != l.Conversations {
		t.Errorf("conversations after a try that halted: got %d, want %d", got, l.Conversations)
	}

	if err := sim.Configure(func(c *chatsim.Config) { c.Faults = nil }); err != nil {
		t.Fatal(err)
	}
	s.run(exitDone, resume...)
	checkState(t, sim, stateOf(rows))
	if got := sim.Ledger().Readded; got != 0 {
		t.Errorf("conversations sent twice: got %d, want 0", got)
	}
	if text := s.run(exitDone, "status").stdout.String(); strings.Contains(text, "halted") {
		t.Errorf("status: got a halt, want none:\n%s", text)
	}
}

// What is wrong with the credentials or the app is told before any job is taken: no group is touched, nothing is on
// the queue, and the same command does it all once it is fixed.
func TestHaltBeforeAnyJob(t *testing.T) {
	expired := chat.SignUserSig(testKey, chatsim.DemoSDKAppID, chat.DefaultAdmin, time.Now().Add(-48*time.Hour), 24*time.Hour)
	tests := []struct {
		name string
		cfg  chatsim.Config
		env  map[string]string
		code string
	}{
		{"wrong secret key", chatsim.Config{}, map[string]string{"GROUPFERRY_SECRET_KEY": "another-key"}, "70009"},
		{"expired UserSig", chatsim.Config{}, map[string]string{"GROUPFERRY_SECRET_KEY": "", "GROUPFERRY_USERSIG": expired.Reveal()}, "70001"},
		{"UserSig of another app", chatsim.Config{}, map[string]string{"GROUPFERRY_SECRET_KEY": "", "GROUPFERRY_USERSIG": chat.SignUserSig(
			testKey, 1400000001, chat.DefaultAdmin, time.Now(), time.Hour).Reveal()}, "70014"},
		{"no UserSig at all", chatsim.Config{}, map[string]string{"GROUPFERRY_SECRET_KEY": "", "GROUPFERRY_USERSIG": "nonsense"}, "70003"},
		{"wrong SDKAppID", chatsim.Config{}, map[string]string{"GROUPFERRY_SDK_APP_ID": "1400000009"}, "60006"},
		{"no admin", chatsim.Config{Admins: []string{"somebody"}}, map[string]string{"GROUPFERRY_ADMIN": "nobody"}, "50003"},
		{"standard edition", chatsim.Config{Edition: chatsim.Standard}, nil, "51013"},
		{"disabled app", chatsim.Config{Disabled: true}, nil, "60016"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			rows := makeRows(4, 3, 5, 101)
			sim, url := startSim(t, test.cfg)
			s := newShell(t, url)
			right := maps.Clone(s.env)
			maps.Copy(s.env, test.env)
			c := s.run(exitHalted, "run", "--import-id", "first", writeRows(t, rows))
			c.wantErr(test.code, "groupferry: hint: ")
			if got := created(sim); got != 0 {
				t.Errorf("create calls: got %d, want 0", got)
			}
			if got := s.onQueue("first"); got != 0 {
				t.Errorf("jobs on the queue: got %d, want 0", got)
			}
			if sig := test.env["GROUPFERRY_USERSIG"]; sig != "" && strings.Contains(c.stderr.String(), sig) {
				t.Errorf("the UserSig is told:\n%s", &c.stderr)
			}

			resume := c.resumeCommand("to continue, once that is fixed")
			s.env = right
			err := sim.Configure(func(c *chatsim.Config) {
				c.Edition, c.Disabled, c.Admins = chatsim.Ultimate, false, []string{chat.DefaultAdmin}
			})
			if err != nil {
				t.Fatal(err)
			}
			s.run(exitDone, resume...)
			checkState(t, sim, stateOf(rows))
		})
	}
}

// At the default rate, against a simulator that throttles what is over it.
func TestPace(t *testing.T) {
	sizes := make([]int, 1000)
	for i := range sizes {
		sizes[i] = 1
	}
	rows := makeRows(5, sizes...)
	sim, url := startSim(t, chatsim.Config{Rate: chat.MaxRate})
	s := newShell(t, url)
	delete(s.env, "GROUPFERRY_RATE")
	late := feelPulse(t)
	c := s.run(exitDone, "run", "--output", "json", writeRows(t, rows))
	checkState(t, sim, stateOf(rows))
	got := sim.Ledger().Commands[chat.CreateContactGroup]
	if got.Calls != 1000 || got.MaxPerSecond > 200 || got.Throttled != 0 || got.OverLimit != 0 {
		t.Errorf("got %+v, want 1000 calls, none throttled, at most 200 in a second", got)
	}
	if got.MaxPer100ms > mostPer100ms && late() <= smooth {
		t.Errorf("got %d calls in 100 ms, want at most %d", got.MaxPer100ms, mostPer100ms)
	}
	if n := c.report().Run.Throttled; n != 0 {
		t.Errorf("throttled: got %d, want 0", n)
	}
}

func TestAPIOutOfReach(t *testing.T) {
	t.Parallel()
	rows := makeRows(10, 2, 3)
	sim, url := startSim(t, chatsim.Config{})
	s := newShell(t, "http://127.0.0.1:1")
	c := s.run(exitUnreachable, "run", "--import-id", "away", writeRows(t, rows))
	c.wantErr("groupferry: error: ", "refused")
	if got := s.onQueue("away"); got != 0 {
		t.Errorf("jobs on the queue: got %d, want 0", got)
	}
	s.env["GROUPFERRY_API_URL"] = url
	s.run(exitDone, c.resumeCommand("to continue")...)
	checkState(t, sim, stateOf(rows))
}

// An outage in the middle takes no job's life, however long it lasts in attempts.
func TestOutage(t *testing.T) {
	t.Parallel()
	sizes := make([]int, 120)
	for i := range sizes {
		sizes[i] = 2
	}
	rows := makeRows(11, sizes...)
	sim, url := startSim(t, chatsim.Config{Faults: []chatsim.Fault{{Kind: "http-503", After: 20}}})
	s := newShell(t, url)
	c := s.start("run", "--output", "json", "--rate", "200", "--max-attempts", "1", writeRows(t, rows))
	await(t, "calls into the outage", func() bool {
		return sim.Ledger().Commands[chat.CreateContactGroup].Faulted >= 5 && strings.Contains(c.stderr.String(), "out of reach")
	})
	if err := sim.Configure(func(c *chatsim.Config) { c.Faults = nil }); err != nil {
		t.Fatal(err)
	}
	c.wait(exitDone).wantErr("responds again")
	checkState(t, sim, stateOf(rows))
	if r := c.report(); r.Jobs.Done != 120 {
		t.Errorf("jobs: got %+v, want 120 done", r.Jobs)
	}
}

// The same content again, also in another file and while complete, makes no call for a job.
func TestAgain(t *testing.T) {
	t.Parallel()
	rows := makeRows(12, 5, 120)
	sim, url := startSim(t, chatsim.Config{})
	s := newShell(t, url)
	first := s.run(exitDone, "run", "--output", "json", writeRows(t, rows)).report()
	before := created(sim)
	again := s.run(exitDone, "run", "--output", "json", writeRows(t, rows))
	again.wantErr("nothing to do")
	if got := again.report(); got.Import != first.Import || got.Jobs != first.Jobs || got.Run.Calls != 0 {
		t.Errorf("got %+v, want the report of %+v and no call", got, first)
	}
	if got := created(sim); got != before {
		t.Errorf("create calls: got %d, want %d", got, before)
	}
}

// Conversations and users that the API refuses are told one by one, and their neighbours go through.
func TestPartial(t *testing.T) {
	t.Parallel()
	rows := makeRows(13, 30, 30)
	rows = append(rows, row{"unknown-user", "Family", chat.Item{Type: chat.OneToOne, ID: "friend-1"}})
	sim, url := startSim(t, chatsim.Config{FailIDs: map[string]int{"friend-3": 51007, "unknown-user": 50001}})
	s := newShell(t, url)
	r := s.run(exitIncomplete, "run", "--output", "json", writeRows(t, rows)).report()
	if r.Jobs.Partial != 2 || r.Jobs.Failed != 1 || r.Conversations.Failed != 3 || r.Conversations.Done != 58 {
		t.Errorf("got %+v, %+v, want 2 jobs partial, 1 failed; 58 conversations done, 3 failed", r.Jobs, r.Conversations)
	}
	codes := map[string]int{}
	for _, l := range s.results(r.Import, "--failed") {
		codes[l.Code]++
		if l.Reason == "" || l.File == "" || l.Line < 2 {
			t.Errorf("got %+v, want reason, file and line", l)
		}
	}
	if want := map[string]int{"51007": 2, "50001": 1}; !maps.Equal(codes, want) {
		t.Errorf("codes: got %v, want %v", codes, want)
	}
	if got := len(s.results(r.Import)); got != len(rows) {
		t.Errorf("results: got %d lines, want %d", got, len(rows))
	}
	if got := len(rowsOf(sim.State())); got != 58 {
		t.Errorf("state: got %d conversations, want 58", got)
	}
}

// The JSON of the report is the one of status, and what programs read of it is fixed.
func TestReportShape(t *testing.T) {
	t.Parallel()
	_, url := startSim(t, chatsim.Config{})
	s := newShell(t, url)
	report := s.run(exitDone, "run", "-o", "json", writeRows(t, makeRows(14, 2)))
	status := s.run(exitDone, "status", "-o", "json")
	var r map[string]any
	var st struct {
		Imports []map[string]any `json:"imports"`
		Halt    any              `json:"halt"`
	}
	if err := json.Unmarshal([]byte(report.stdout.String()), &r); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(status.stdout.String()), &st); err != nil {
		t.Fatal(err)
	}
	if len(st.Imports) != 1 || st.Halt != nil {
		t.Fatalf("status: got %+v, want one import and no halt", st)
	}
	for _, key := range []string{"import", "state", "files", "created", "completed", "rows", "accepted", "duplicates", "rejected",
		"jobs", "conversations", "calls", "rate", "seconds_left", "last_result"} {
		if fmt.Sprint(r[key]) != fmt.Sprint(st.Imports[0][key]) || r[key] == nil {
			t.Errorf("%s: got %v in the report and %v in the status, want the same", key, r[key], st.Imports[0][key])
		}
	}
	for key, fields := range map[string][]string{
		"jobs": {"total", "done", "partial", "failed", "pending", "in_flight"}, "conversations": {"total", "done", "failed", "pending"},
		"run": {"seconds", "calls", "throttled", "repeated"},
	} {
		inner, _ := r[key].(map[string]any)
		for _, field := range fields {
			if _, ok := inner[field]; !ok {
				t.Errorf("%s: got no %q in %v", key, field, inner)
			}
		}
	}
}
