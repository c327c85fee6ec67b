package queue

import (
	"fmt"
	"testing"

	"groupferry/internal/job"
)

// BenchmarkEnqueue puts jobs of about 4 KB on an embedded server that syncs every write.
func BenchmarkEnqueue(b *testing.B) {
	q := openQueue(b)
	if _, _, err := q.Begin(b.Context(), Import{ID: "i", Digest: "d"}); err != nil {
		b.Fatal(err)
	}
	j := testJob("i", 0)
	for len(j.Conversations) < 70 {
		j.Conversations = append(j.Conversations, j.Conversations[:2]...)
	}
	b.SetBytes(int64(len(j.AppendJSON(nil))))
	b.ReportAllocs()
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
