package queue

import (
	"context"
	"testing"
)

// TestTornPiece puts jobs on the stream as a server leaves them whose disk was full amid a piece: with no checkpoint.
func TestTornPiece(t *testing.T) {
	for _, test := range []struct {
		name   string
		before int // jobs that were enqueued as they should be; 0: not even a first piece
		torn   int
	}{
		{"the first piece", 0, 5},
		{"a later piece", 2 * maxBatchJobs, 7},
		{"nothing", 2 * maxBatchJobs, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			q := open(t, Config{DataDir: dir})
			begin(t, q, "i")
			enqueued(t, q, "other", 3)
			const more = 20
			if test.before > 0 {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if _, err := q.Enqueue(ctx, "i", cutOff("i", test.before+more, test.before, cancel), nil); err == nil {
					t.Fatal("got no error of an Enqueue that was cut off")
				}
			}
			n := 0
			for j := range jobsOf("i", test.before+test.torn) {
				if n++; n > test.before {
					if _, err := q.js.Publish(t.Context(), q.jobsSubject("i"), j.AppendJSON(nil)); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := q.Close(); err != nil {
				t.Fatal(err)
			}
			q = open(t, Config{DataDir: dir})
			if left, err := q.onStream(t.Context(), "i"); err != nil || left != int64(test.before) {
				t.Errorf("got %d jobs, %v; want %d", left, err, test.before)
			}
			if _, err := q.Enqueue(t.Context(), "i", jobsOf("i", test.before+more), nil); err != nil {
				t.Fatal(err)
			}
			checkStream(t, q, "i", test.before+more)
			checkStream(t, q, "other", 3)
		})
	}
}

// TestOpenWhileEnqueueing opens the queue again and again while a piece after the other is written: none of them is torn.
func TestOpenWhileEnqueueing(t *testing.T) {
	dir := t.TempDir()
	q := open(t, Config{DataDir: dir})
	begin(t, q, "i")
	const n = 10 * maxBatchJobs
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := q.Enqueue(t.Context(), "i", jobsOf("i", n), nil); err != nil {
			t.Error(err)
		}
	}()
	opened := 0
	for ; ; opened++ {
		guest, err := Open(t.Context(), Config{DataDir: dir})
		if err != nil {
			t.Error(err)
			break
		}
		guest.Close()
		select {
		case <-done:
			t.Logf("opened %d times", opened)
			checkStream(t, q, "i", n)
			return
		default:
		}
	}
	<-done
}
