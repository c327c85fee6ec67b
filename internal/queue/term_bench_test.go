package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"groupferry/internal/broker"
	"groupferry/internal/job"
)

// BenchmarkDrain does jobs of 20 conversations without calls, on an embedded server that syncs every write; it reports
// the CPU time of the whole process, server included, for 1,000 jobs.
func BenchmarkDrain(b *testing.B) {
	const jobs, workers = 20_000, 64
	q := leaderQueue(b)
	var spent, took time.Duration
	for n := 0; b.Loop(); n++ {
		id := "imp" + strconv.Itoa(n)
		if _, _, err := q.Begin(b.Context(), Import{ID: id, Digest: "d"}); err != nil {
			b.Fatal(err)
		}
		if _, err := q.Enqueue(b.Context(), id, numberedJobs(id, jobs, 20), nil); err != nil {
			b.Fatal(err)
		}
		runtime.GC()
		cpuStart, start := cpu(), time.Now()
		l := lead(b, q, TermConfig{Term: uint64(n + 1)})
		ctx, cancel := context.WithCancel(b.Context())
		var all sync.WaitGroup
		for range workers {
			all.Go(func() {
				for {
					d, err := l.Next(ctx)
					if err != nil {
						return
					}
					d.Finish(resultOf(b, d, 0))
				}
			})
		}
		l.complete(b, 1)
		spent, took = spent+cpu()-cpuStart, took+time.Since(start)
		cancel()
		all.Wait()
		l.stop(b)
	}
	b.ReportMetric(float64(spent.Microseconds())/float64(b.N)/(jobs/1000), "cpu-µs/1000jobs")
	b.ReportMetric(float64(b.N)*jobs/took.Seconds(), "jobs/s")
}

// manyResults writes n results of an import, which is complete then, as a leader would, but without jobs: each
// failEvery-th is one of a failed job.
func manyResults(t testing.TB, q *Queue, id string, n, failEvery int) {
	t.Helper()
	i, _, err := q.Begin(t.Context(), Import{ID: id, Digest: "digest of " + id})
	if err != nil {
		t.Fatal(err)
	}
	term, err := q.Lead(t.Context(), TermConfig{Term: 1})
	if err != nil {
		t.Fatal(err)
	}
	a := &active{id: id, incarnation: i.Incarnation, open: map[uint64]*entry{}}
	for done := 0; done < n; {
		p := part{of: a}
		for len(p.results) < maxGroup-1 && done < n {
			r := job.Result{
				Import: id, Job: "job-" + strconv.Itoa(done), FromAccount: "user" + strconv.Itoa(done), GroupName: "friends",
				Attempts: 1, Calls: 1, Worker: "w",
				Started: time.Unix(1e9, 0), Finished: time.Unix(1e9, 0),
			}
			for k := range 5 {
				c := job.ConversationResult{Conversation: job.Conversation{Type: 1, ID: "peer" + strconv.Itoa(k), Line: int64(done)}}
				if failEvery > 0 && done%failEvery == 0 {
					c.Code = "50001"
				}
				r.Conversations = append(r.Conversations, c)
			}
			r.SetOutcome()
			done++
			p.results = append(p.results, &waitingResult{
				e: &entry{of: a, seq: uint64(done)}, kind: string(r.Outcome), data: r.AppendJSON(nil), share: shareOf(&r),
			})
		}
		a.handed, a.next = int64(done), uint64(done+1)
		term.makeState(&p, uint64(done), time.Now())
		end, err := term.send(t.Context(), &group{parts: []part{p}})
		if err != nil {
			t.Fatal(err)
		}
		term.expected, a.counts = end, p.state.Counts
	}
	record, err := q.Update(t.Context(), id, func(i *Import) {
		i.State, i.Enqueued, i.Completed, i.Jobs, i.Counts = Complete, now(), now(), int64(n), a.counts
	})
	if err == nil {
		err = q.finishEnd(t.Context(), record)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestManyResults measures what many results cost. It is for people: the first run with
//
//	GROUPFERRY_RESULTS=2000000 GROUPFERRY_RESULTS_DIR=/some/dir go test -v -run TestManyResults
//
// writes them, and the next one, whose memory is that of a process that was just started, reads and deletes them.
func TestManyResults(t *testing.T) {
	n, _ := strconv.Atoi(os.Getenv("GROUPFERRY_RESULTS"))
	dir := os.Getenv("GROUPFERRY_RESULTS_DIR")
	if n == 0 || dir == "" {
		t.Skip("GROUPFERRY_RESULTS and GROUPFERRY_RESULTS_DIR are not set")
	}
	step := steps(t)
	var q *Queue
	step("open", func() { q = leaderQueueIn(t, broker.Config{DataDir: dir}) })
	_, err := q.Import(t.Context(), "imp")
	if errors.Is(err, ErrNoImport) {
		step("write", func() { manyResults(t, q, "imp", n, 100) })
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	step("progress", func() {
		if _, err := q.Progress(t.Context(), "imp"); err != nil {
			t.Error(err)
		}
	})
	step("lead", func() { lead(t, q, TermConfig{Term: 2}).stop(t) })
	step("failed results", func() { countResults(t, q, n/100, job.Failed) })
	step("all results", func() { countResults(t, q, n) })
	step("delete", func() {
		if err := q.Delete(t.Context(), "imp"); err != nil {
			t.Error(err)
		}
	})
}

// steps measures what is done one after the other.
func steps(t *testing.T) (step func(what string, do func())) {
	step = func(what string, do func()) {
		start, used := time.Now(), cpu()
		do()
		t.Logf("%-16s %8.3f s %8.3f CPU s %5d MB", what, time.Since(start).Seconds(), (cpu() - used).Seconds(), residentMB())
	}
	step("begin", func() {})
	return step
}

// manyImports writes n imports that are complete, each with one result, as they are once everything has ended.
func manyImports(t testing.TB, q *Queue, n int) {
	t.Helper()
	publish := func(subject string, data []byte) {
		if _, err := q.js.PublishMsgAsync(&nats.Msg{Subject: subject, Data: data}); err != nil {
			t.Fatal(err)
		}
	}
	for k := range n {
		if k%200 == 0 {
			<-q.js.PublishAsyncComplete()
		}
		id := fmt.Sprintf("import-%d", k)
		r := testResult(id, k)
		var counts Counts
		counts.Results, counts.LastResult = 1, now()
		counts.add(shareOf(&r), 1)
		i := Import{
			ID: id, Digest: "digest of " + id, State: Complete, Incarnation: "i-" + id, Created: now(), Enqueued: now(), Completed: now(),
			Rows: 2, Accepted: 2, Conversations: 2, Calls: 1, Jobs: 1, Counts: counts, Files: []string{"in.csv"},
		}
		record, err := encodeImport(i)
		if err != nil {
			t.Fatal(err)
		}
		end, err := json.Marshal(endMessage{endVersion, i.Incarnation, 0})
		if err != nil {
			t.Fatal(err)
		}
		s := state{Term: 1, Incarnation: i.Incarnation, Counts: counts, Handed: 1, Next: 2, At: now()}
		publish(q.resultSubject(id, string(r.Outcome)), r.AppendJSON(nil))
		publish(q.resultSubject(id, stateKind), s.encode())
		publish(q.resultSubject(id, endKind), end)
		publish("$KV."+q.control.Bucket()+"."+importKey(id), record)
	}
	<-q.js.PublishAsyncComplete()
}

// TestManyImports measures what imports cost that are over. It is for people:
//
//	GROUPFERRY_IMPORTS=10000 GROUPFERRY_RESULTS_DIR=/some/dir go test -v -run TestManyImports
//
// The first run writes them, and the next one reads.
func TestManyImports(t *testing.T) {
	n, _ := strconv.Atoi(os.Getenv("GROUPFERRY_IMPORTS"))
	dir := os.Getenv("GROUPFERRY_RESULTS_DIR")
	if n == 0 || dir == "" {
		t.Skip("GROUPFERRY_IMPORTS and GROUPFERRY_RESULTS_DIR are not set")
	}
	step := steps(t)
	var q *Queue
	step("open", func() { q = leaderQueueIn(t, broker.Config{DataDir: dir}) })
	if _, err := q.Import(t.Context(), "import-0"); errors.Is(err, ErrNoImport) {
		step("write", func() { manyImports(t, q, n) })
		return
	}
	step("sweep", func() {
		if err := q.Sweep(t.Context()); err != nil {
			t.Error(err)
		}
	})
	step("lead", func() { lead(t, q, TermConfig{Term: 2}).stop(t) })
	step("list", func() {
		all, err := q.Imports(t.Context())
		if err != nil || len(all) != n {
			t.Errorf("got %d imports, %v, want %d", len(all), err, n)
		}
	})
	step("progress of all", func() {
		all, err := q.AllProgress(t.Context())
		if err != nil || len(all) != n {
			t.Errorf("got %d imports, %v, want %d", len(all), err, n)
		}
	})
}

func countResults(t *testing.T, q *Queue, want int, outcomes ...job.Outcome) {
	t.Helper()
	got := 0
	for _, err := range q.Results(t.Context(), "imp", outcomes...) {
		if err != nil {
			t.Fatal(err)
		}
		got++
	}
	if got != want {
		t.Errorf("got %d results, want %d", got, want)
	}
}

// residentMB is the memory of this process that is resident now; 0 where the system does not say.
func residentMB() int {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var size, resident int
	if _, err := fmt.Sscan(string(b), &size, &resident); err != nil {
		return 0
	}
	return resident * os.Getpagesize() >> 20
}
