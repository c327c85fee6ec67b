package queue

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"groupferry/internal/job"
)

// mirrorResults are results of a mirror: one that took out and restored, one whose removals failed, one that could not
// rename, one that deleted.
func mirrorResults(id string) []job.Result {
	add := job.Conversation{Type: job.OneToOne, ID: "add", Line: 3}
	remove := job.Conversation{Type: job.OneToOne, ID: "remove", Op: job.Remove}
	keep := job.Conversation{Type: job.OneToOne, ID: "keep", Op: job.Keep, Line: 4}
	kept := keep
	kept.Op = job.Add
	done := func(c job.Conversation) job.ConversationResult { return job.ConversationResult{Conversation: c} }
	results := []job.Result{
		{OldName: "G", Conversations: []job.ConversationResult{done(add), done(remove), {Conversation: kept, Kept: true}}},
		{Conversations: []job.ConversationResult{done(add), {Conversation: remove, Code: "51007"}}, Keep: []job.Conversation{keep}},
		{Code: "50002", Rename: "G", Keep: []job.Conversation{keep}},
		{Deleted: true, Conversations: []job.ConversationResult{done(remove)}},
		{Delete: true, Conversations: []job.ConversationResult{{Conversation: remove, Code: "50004"}}},
	}
	for n := range results {
		r := &results[n]
		j := testJob(id, n)
		r.Import, r.Job, r.FromAccount, r.GroupName, r.Calls = id, j.ID, j.FromAccount, j.GroupName, 2
		r.SetOutcome()
	}
	return results
}

// The counts of an import tell what was added from what was taken out, and groups that were deleted or renamed; a result
// that is replaced leaves nothing.
func TestCountsOfAMirror(t *testing.T) {
	var c Counts
	for _, r := range mirrorResults("i") {
		c.add(shareOf(&r), 1)
	}
	want := Counts{Conversations: Ended{Done: 2}, Removals: Ended{Done: 2, Failed: 2}, Restored: Ended{Done: 1}, Deleted: 1, Renamed: 1, Calls: 10,
		Codes: map[string]int64{"50002": 1, "50004": 1, "51007": 1}}
	want.Jobs.Done, want.Jobs.Partial, want.Jobs.Failed = 2, 1, 2
	if !sameCounts(c, want) {
		t.Errorf("got %+v, want %+v", c, want)
	}
	for _, r := range mirrorResults("i") {
		c.add(shareOf(&r), -1)
	}
	if !sameCounts(c, Counts{}) {
		t.Errorf("without them: got %+v", c)
	}
}

// A retry sends failed removals again, and keeps what its job was to delete, to rename and to keep.
func TestRetryOfAMirror(t *testing.T) {
	q := openQueue(t)
	for _, tt := range []struct {
		id    string
		codes []string
		want  []int // results that are retried
	}{{"all", nil, []int{1, 2, 4}}, {"one", []string{"51007"}, []int{1}}, {"rename", []string{"50002"}, []int{2}}, {"none", []string{"51010"}, nil}} {
		h := handWriter{q: q, rec: begin(t, q, tt.id, 5)}
		results := mirrorResults(tt.id)
		seqs := h.write(t, results...)
		h.complete(t)
		_, stats, err := q.Retry(t.Context(), tt.id, tt.codes, nil)
		if err != nil || stats.Unreadable != 0 || stats.Jobs != int64(len(tt.want)) {
			t.Fatalf("%s: got %+v, %v", tt.id, stats, err)
		}
		jobs := storedJobs(t, q, tt.id)
		if len(jobs) != len(tt.want) {
			t.Fatalf("%s: got %d jobs, want %d", tt.id, len(jobs), len(tt.want))
		}
		for i, j := range jobs {
			r := &results[tt.want[i]]
			want := job.Job{Import: tt.id, ID: r.Job, FromAccount: r.FromAccount, GroupName: r.GroupName, OldName: r.Rename,
				Delete: r.Delete, Generation: 1, Prior: seqs[tt.want[i]]}
			for _, c := range r.Conversations {
				if c.Code != "" {
					want.Conversations = append(want.Conversations, c.Conversation)
				}
			}
			want.Conversations = append(want.Conversations, r.Keep...)
			if !reflect.DeepEqual(j, want) {
				t.Errorf("%s: got %+v, want %+v", tt.id, j, want)
			}
		}
	}
}

// A job that may crash the process fails with all that a retry of it needs.
func TestCrashedResultOfAMirror(t *testing.T) {
	for n, r := range mirrorResults("i") {
		r := r
		j := retryJob(&Import{ID: "i", Generation: 1}, 9, &r)
		if len(j.Conversations) == 0 {
			continue
		}
		for _, before := range []*job.Result{nil, &r} {
			got := crashedResult(&j, before)
			if got.Rename != r.Rename || got.Delete != r.Delete || !reflect.DeepEqual(got.Keep, r.Keep) || got.Outcome == job.Done {
				t.Errorf("result %d: got %+v", n, got)
			}
			got.Import = "i"
			if _, err := job.DecodeResult(got.AppendJSON(nil)); err != nil {
				t.Errorf("result %d: %v", n, err)
			}
			again := retryJob(&Import{ID: "i", Generation: 1}, 9, &got)
			if !reflect.DeepEqual(again, j) {
				t.Errorf("result %d: retried again: got %+v, want %+v", n, again, j)
			}
		}
	}
}

// Of a retry that was cut off the jobs without a result may have been under way; of one that came to its end none was.
func TestRetryUnderWay(t *testing.T) {
	q := openQueue(t)
	for _, tt := range []struct {
		ended int // retried jobs with a result
		cut   bool
		codes []string
		want  []string // group names
	}{
		{0, true, nil, []string{"g1", "g2", "g4"}}, {1, true, nil, []string{"g2", "g4"}}, {3, false, nil, nil},
		{0, true, []string{"51007"}, []string{"g1"}},
	} {
		id := fmt.Sprintf("retry-%d-%d", tt.ended, len(tt.codes))
		h := handWriter{q: q, rec: begin(t, q, id, 5)}
		results := mirrorResults(id)
		for n := range results {
			results[n].GroupName = fmt.Sprint("g", n)
		}
		seqs := h.write(t, results...)
		h.complete(t)
		rec, _, err := q.Retry(t.Context(), id, tt.codes, nil)
		if err != nil {
			t.Fatal(err)
		}
		h.rec = rec
		for _, n := range []int{1, 2, 4}[:tt.ended] {
			r := results[n]
			r.Replaces = seqs[n]
			h.write(t, r)
		}
		if tt.cut {
			rec, err = q.Supersede(t.Context(), id, 2, time.Millisecond)
		} else {
			h.complete(t)
			rec, err = q.Import(t.Context(), id)
		}
		if err != nil || rec.State != Complete {
			t.Fatalf("got %s, %v", rec.State, err)
		}
		var got []string
		for j, err := range q.UnderWay(t.Context(), &rec) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, j.GroupName)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%+v: got jobs of %v", tt, got)
		}
	}
}

// Of a night that was cut off after its leader stopped, that was under way which the leader had handed out. Where the leader was
// lost, it may have handed out more than its last state says; also where another one followed it, and took nothing.
func TestUnderWayOfANight(t *testing.T) {
	for lost, want := range map[bool]int{false: 1, true: 3} {
		q := leaderQueue(t)
		s := queuedNight(t, q, NewSync("contacts", testTarget), "i1", 4)
		l := lead(t, q, TermConfig{Term: 1})
		d := l.next(t)
		d.Finish(resultOf(t, d, 0))
		wait(t, "its result", func() bool { return len(written(t, q, "i1")) == 1 })
		d = l.next(t)
		l.leave(t, d, lost)
		i, err := q.FenceNight(t.Context(), s, 0)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, err := range q.UnderWay(t.Context(), &i) {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		if n != want {
			t.Errorf("lost %t: %d jobs may have been under way, want %d", lost, n, want)
		}
	}
}
