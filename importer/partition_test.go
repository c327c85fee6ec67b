package importer

import (
	"fmt"
	"slices"
	"testing"

	"groupferry/internal/job"
)

// TestSplitPartition comes to the same jobs and rejects with little memory as with much, by parts of parts.
func TestSplitPartition(t *testing.T) {
	var users []string // of partition 0
	for i := 0; len(users) < 30; i++ {
		if name := fmt.Sprint("user", i); partitionOf(hashUser(name), 0, partitionBits) == 0 {
			users = append(users, name)
		}
	}
	group := func(budget int) (jobs [20][]job.Job, rejects, runs int, s Summary) {
		g := newPartitionGrouper(newTestSpool(t, 1<<20), budget, 100)
		whole := partition{recordLog{spool: g.spool}, partitionBits}
		for i := range 20_000 {
			n := i * 7919 % 20_000
			r := testRow(users[n%len(users)], fmt.Sprint("g", n/7%23), fmt.Sprint("x", n%40), int64(i+1))
			if err := whole.rows.add(r.group, r.entry.bytes); err != nil {
				t.Fatal(err)
			}
		}
		for todo := []partition{whole}; len(todo) > 0; runs++ {
			r, parts, err := g.group(t.Context(), todo[0])
			if err != nil {
				t.Fatal(err)
			}
			todo = append(parts, todo[1:]...)
			for rank, seg := range r.jobs {
				var buf []byte
				b, err := g.spool.get(seg, &buf)
				for len(b) > 0 && err == nil {
					var j job.Job
					j, b = decodeJob(b, "imp")
					jobs[rank] = append(jobs[rank], j)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			for reader := (logReader{log: &r.overLimit}); ; {
				b, err := reader.next()
				if err != nil {
					break
				}
				for ; len(b) > 0; rejects++ {
					_, _, _, b = decodeReject(b)
				}
			}
		}
		return jobs, rejects, runs, g.summary
	}
	want, wantRejects, runs, sum := group(1 << 30)
	if runs != 1 || sum.Jobs != int64(len(users)*20) || wantRejects == 0 || sum.Duplicates == 0 {
		t.Fatalf("got %d runs and %+v, want one of everything", runs, sum)
	}
	for _, budget := range []int{1, 20_000, 60_000} {
		got, rejects, runs, s := group(budget)
		if runs == 1 {
			t.Errorf("budget %d: nothing was split", budget)
		}
		if rejects != wantRejects || s.Accepted != sum.Accepted || s.Duplicates != sum.Duplicates || s.Users != sum.Users {
			t.Errorf("budget %d: got %d rejects and %+v, want %d and %+v", budget, rejects, s, wantRejects, sum)
		}
		for rank := range got {
			if !slices.EqualFunc(got[rank], want[rank], func(a, b job.Job) bool {
				return a.ID == b.ID && slices.Equal(a.Conversations, b.Conversations)
			}) {
				t.Errorf("budget %d: got other jobs of rank %d", budget, rank)
			}
		}
	}
}

// TestHashUser is written down: the order of the jobs of an import that is under way depends on it.
func TestHashUser(t *testing.T) {
	for id, want := range map[string]uint64{"": 0xefd01f60ba992926, "lena": 0xba2101471d777195} {
		if got := hashUser(id); got != want || hashUser([]byte(id)) != want {
			t.Errorf("%q: got %#x, want %#x", id, got, want)
		}
	}
}
