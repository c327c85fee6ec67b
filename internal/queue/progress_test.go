package queue

import (
	"reflect"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
)

// AllProgress says the same as Progress, whatever state the imports are in, and finds what is missing.
func TestAllProgress(t *testing.T) {
	q := openQueue(t)
	if all, err := q.AllProgress(t.Context()); err != nil || len(all) > 0 {
		t.Fatalf("without imports: got %+v, %v", all, err)
	}
	completed(t, q, "complete", 3)
	completed(t, q, "retried", 3)
	if _, _, err := q.Retry(t.Context(), "retried", nil, nil); err != nil {
		t.Fatal(err)
	}
	begin(t, q, "running", 2)
	begin(t, q, "cancelled", 2)
	if err := q.Cancel(t.Context(), "cancelled"); err != nil {
		t.Fatal(err)
	}
	// The leader that completed it, or the command that cancelled it, was killed before it had written the counts.
	for _, state := range []ImportState{Complete, Cancelled} {
		h := &handWriter{q: q, rec: begin(t, q, "cut-off-"+string(state), 1)}
		h.write(t, testResult(h.rec.ID, 0))
		if _, err := q.Update(t.Context(), h.rec.ID, func(i *Import) { i.State = state }); err != nil {
			t.Fatal(err)
		}
	}
	all, err := q.AllProgress(t.Context())
	if err != nil || len(all) != 6 {
		t.Fatalf("got %+v, %v, want 6 imports", all, err)
	}
	for n, got := range all {
		if n > 0 && all[n-1].Import.Created.Before(got.Import.Created) {
			t.Errorf("%s comes before %s, which is newer", all[n-1].Import.ID, got.Import.ID)
		}
		want, err := q.Progress(t.Context(), got.Import.ID)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v, %v", got.Import.ID, got, want, err)
		}
	}

	err = q.results.Purge(t.Context(), jetstream.WithPurgeSubject(q.resultSubject("complete", "failed")))
	if err != nil {
		t.Fatal(err)
	}
	all, err = q.AllProgress(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if got, want := isDamaged(p.Damaged), p.Import.ID == "complete"; got != want {
			t.Errorf("%s, when results of another one are missing: got %v, want damage: %t", p.Import.ID, p.Damaged, want)
		}
	}
}
