package queue

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"

	"groupferry/internal/job"
)

// BenchmarkEnqueue puts jobs of about 4 KB on an embedded server that syncs every write.
func BenchmarkEnqueue(b *testing.B) {
	q := open(b, Config{})
	begin(b, q, "i")
	j := testJob("i", 0, 70)
	b.SetBytes(int64(len(j.AppendJSON(nil))))
	b.ResetTimer()
	_, err := q.Enqueue(b.Context(), "i", func(yield func(job.Job) bool) {
		for i := range b.N {
			j.ID = fmt.Sprintf("job%d", i)
			if !yield(j) {
				return
			}
		}
	}, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
}

// BenchmarkWork is what a worker does for a job beside the call: look for a result, put one, ack. 32 at once.
func BenchmarkWork(b *testing.B) {
	q := open(b, Config{})
	begin(b, q, "i")
	if _, err := q.Enqueue(b.Context(), "i", jobsOf("i", b.N), nil); err != nil {
		b.Fatal(err)
	}
	s := q.Source("i")
	b.ResetTimer()
	var wg sync.WaitGroup
	slots := make(chan struct{}, 32)
	for done := 0; done < b.N; {
		ds, err := s.Fetch(b.Context(), cap(slots))
		if err != nil {
			b.Fatal(err)
		}
		for _, d := range ds {
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				j, err := d.Job()
				if err != nil {
					b.Error(err)
					return
				}
				if _, _, err := q.Result(b.Context(), j.Import, j.ID); err == nil {
					b.Error("there is a result already")
				}
				r := job.Result{Import: j.Import, Job: j.ID, Outcome: job.Done, Files: j.Files}
				if err := q.PutResult(b.Context(), r, 0); err != nil {
					b.Error(err)
				}
				if err := d.Ack(b.Context()); err != nil {
					b.Error(err)
				}
			})
		}
		done += len(ds)
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
}

// BenchmarkTally counts 5,000 results, of which none is known yet.
func BenchmarkTally(b *testing.B) {
	const n = 5000
	q := open(b, Config{})
	var wg sync.WaitGroup
	for k := range 32 {
		wg.Go(func() {
			for i := k; i < n; i += 32 {
				if err := q.PutResult(b.Context(), testResult("i", i, 20, 0), 0); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for b.Loop() {
		if got, err := q.count(b.Context(), "i", counted{}); got.Jobs.Done != n || err != nil {
			b.Fatalf("got %d, %v; want %d", got.Jobs.Done, err, n)
		}
	}
	b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds(), "results/s")
}

// BenchmarkFreshTally counts a million results in a process that knows nothing yet, all but the last 5,000 of which some
// other process has counted: what a status has to do. GROUPFERRY_QUEUE_RESULTS changes the million. To be run with -benchtime 1x, for it stores its own
// count.
func BenchmarkFreshTally(b *testing.B) {
	n := 1_000_000
	if s := os.Getenv("GROUPFERRY_QUEUE_RESULTS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			b.Fatal(err)
		}
	}
	dir := b.TempDir()
	q := open(b, Config{DataDir: dir})
	begin(b, q, "i")
	for i := 0; i < n; {
		var group []*waitingPut
		for ; i < n && len(group) < 1000; i++ {
			r := testResult("i", i, 1, 0)
			group = append(group, &waitingPut{msg: &nats.Msg{
				Subject: q.resultSubject(r.Import, r.Job),
				Data:    r.AppendJSON(nil),
				Header:  nats.Header{tallyHeader: {tallyLine(&r, 0, "")}},
			}})
		}
		if err := q.putBatch(group); err != nil {
			b.Fatal(err)
		}
		if i == n-5000 {
			if _, err := q.Tally(b.Context(), "i"); err != nil {
				b.Fatal(err)
			}
		}
	}
	for b.Loop() {
		b.StopTimer()
		fresh := open(b, Config{DataDir: dir})
		b.StartTimer()
		if got, err := fresh.Tally(b.Context(), "i"); got.Jobs.Done != int64(n) || err != nil {
			b.Fatalf("got %d, %v; want %d", got.Jobs.Done, err, n)
		}
	}
}
