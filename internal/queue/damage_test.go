package queue

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"groupferry/internal/broker"
	"groupferry/internal/job"
)

func isDamaged(err error) bool {
	_, ok := errors.AsType[*broker.DamagedError](err)
	return ok
}

// A retry's results supersede those they replace: in the counts and in the export; also where the worker did not read them.
func TestTermRetries(t *testing.T) {
	q := leaderQueue(t)
	imported(t, q, "imp", 100)
	l := lead(t, q, TermConfig{Term: 1})
	l.work(t, 100, func(i int, _ *Delivery) int { return []int{0, 1, 2, 0, 0}[i%5] })
	l.complete(t, 1)
	i, stats, err := q.Retry(t.Context(), "imp", nil, nil)
	if err != nil || i.Generation != 1 || stats.Jobs != 40 || stats.Conversations != 60 {
		t.Fatalf("retry: got %+v, %+v, %v", i, stats, err)
	}
	l.Changed("imp")
	for n := range 40 {
		d := l.next(t)
		j, err := d.Job()
		if err != nil || j.Generation != 1 || j.Prior == 0 {
			t.Fatalf("job: got %+v, %v", j, err)
		}
		if n%2 == 0 {
			prior, err := d.Prior(t.Context())
			if err != nil || prior.Job != j.ID || prior.Outcome == job.Done {
				t.Fatalf("prior: got %+v, %v", prior, err)
			}
		}
		r := resultOf(t, d, 0)
		r.Conversations = append(r.Conversations, make([]job.ConversationResult, 2-len(r.Conversations))...)
		for k := range r.Conversations {
			r.Conversations[k].Type, r.Conversations[k].ID = job.OneToOne, "peer"
		}
		if n == 0 {
			r.Conversations[0].Code = "50001"
			r.SetOutcome()
		}
		d.Finish(r)
	}
	l.complete(t, 2)
	i = record(t, q, "imp")
	want := Counts{Results: 140, Calls: 100, LastResult: i.Counts.LastResult, Codes: map[string]int64{"50001": 1}}
	want.Jobs.Done, want.Jobs.Partial, want.Conversations.Done, want.Conversations.Failed = 99, 1, 199, 1
	if i.State != Complete || !sameCounts(i.Counts, want) {
		t.Errorf("got %+v, want complete with %+v", i, want)
	}
	all := exported(t, q, "imp")
	if len(all) != 100 {
		t.Errorf("exported %d, want 100", len(all))
	}
	if failed := exported(t, q, "imp", job.Partial, job.Failed); len(failed) != 1 {
		t.Errorf("exported %d failures, want 1", len(failed))
	}
	if got := len(written(t, q, "imp")); got != 140 {
		t.Errorf("got %d results, want 140", got)
	}
}

// An import with missing results or jobs never becomes complete, and reading it returns an error.
func TestDamagedImports(t *testing.T) {
	q := leaderQueue(t)
	for _, id := range []string{"result", "job", "state", "fine"} {
		imported(t, q, id, 50)
	}
	remove := func(stream jetstream.Stream, subject string) {
		t.Helper()
		m, err := q.conn.NextMsg(t.Context(), stream.CachedInfo().Config.Name, 1, subject)
		if err == nil {
			err = stream.DeleteMsg(t.Context(), m.Sequence)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	remove(q.jobs, q.jobsSubject("job"))
	l := lead(t, q, TermConfig{Term: 1})
	var held *Delivery // so that the import is not complete too early
	handed := 0
	for finished := 0; finished < 5; handed++ {
		d := l.next(t)
		if d.Import() == "result" {
			if held == nil {
				held = d
				continue
			}
			finished++
		}
		d.Finish(resultOf(t, d, 0))
	}
	wait(t, "a result is written", func() bool {
		n, err := q.countResults(t.Context(), "result")
		return err == nil && n[job.Done] > 0
	})
	remove(q.results, q.resultSubject("result", "done"))
	held.Finish(resultOf(t, held, 0))
	l.work(t, 199-handed, nil)
	l.complete(t, 1) // whichever is fine
	wait(t, "damage is found", func() bool { return l.Snapshot().Damaged["job"] != nil && l.Snapshot().Damaged["result"] != nil })
	for id, damaged := range map[string]bool{"result": true, "job": true, "fine": false, "state": false} {
		if !damaged {
			wait(t, id+" is complete", func() bool { return record(t, q, id).State == Complete })
		} else if i := record(t, q, id); i.State != Running {
			t.Errorf("import %s: got %s, want it to stay %s", id, i.State, Running)
		}
		_, err := q.Progress(t.Context(), id)
		if isDamaged(err) != damaged || err != nil && !damaged {
			t.Errorf("progress of %s: got %v, want damaged: %v", id, err, damaged)
		}
		if err := l.Snapshot().Damaged[id]; isDamaged(err) != damaged {
			t.Errorf("snapshot of %s: got %v, want damaged: %v", id, err, damaged)
		}
	}
	wait(t, "the leader is idle, with damaged imports", l.Idle) // what is complete is being removed
	remove(q.results, q.resultSubject("state", "state"))
	if _, err := q.Progress(t.Context(), "state"); !isDamaged(err) {
		t.Errorf("progress without a state: got %v, want damaged", err)
	}
	l.stop(t)
	next := lead(t, q, TermConfig{Term: 2})
	if err := next.Snapshot().Damaged["result"]; !isDamaged(err) {
		t.Errorf("the next leader: got %v, want damaged", err)
	}
}

// A state that a newer binary wrote stops its import, and no other.
func TestStateOfANewerVersion(t *testing.T) {
	q := leaderQueue(t)
	imported(t, q, "newer", 5)
	imported(t, q, "imp", 5)
	if _, err := q.js.Publish(t.Context(), q.resultSubject("newer", stateKind), []byte(`{"v":2}`)); err != nil {
		t.Fatal(err)
	}
	l := lead(t, q, TermConfig{Term: 1})
	l.work(t, 5, nil)
	l.complete(t, 1)
	if err := l.Snapshot().Damaged["newer"]; !errors.Is(err, job.ErrVersion) {
		t.Errorf("got %v, want %v", err, job.ErrVersion)
	}
	if _, err := q.Progress(t.Context(), "newer"); !errors.Is(err, job.ErrVersion) {
		t.Errorf("progress: got %v, want %v", err, job.ErrVersion)
	}
}

// Results that are not all there end with an error; what a retry replaced does not count as missing.
func TestResultsTellWhatIsMissing(t *testing.T) {
	q := leaderQueue(t)
	imported(t, q, "imp", 50)
	l := lead(t, q, TermConfig{Term: 1})
	l.work(t, 50, nil)
	l.complete(t, 1)
	// A message that is no result stands for one that cannot be read.
	if _, err := q.js.Publish(t.Context(), q.resultSubject("imp", "done"), []byte("hello")); err != nil {
		t.Fatal(err)
	}
	n, last := 0, error(nil)
	for _, err := range q.Results(t.Context(), "imp") {
		if last != nil {
			t.Errorf("something came after the error %v", last)
		}
		if last = err; err == nil {
			n++
		}
	}
	if n != 50 || !isDamaged(last) {
		t.Errorf("got %d results and %v, want 50 and damaged", n, last)
	}
	if _, err := q.Progress(t.Context(), "imp"); !isDamaged(err) {
		t.Errorf("progress: got %v, want damaged", err)
	}
	for _, err := range q.Results(t.Context(), "other") {
		if !errors.Is(err, ErrNoImport) {
			t.Errorf("another import: got %v, want %v", err, ErrNoImport)
		}
	}
	for range q.Results(t.Context(), "imp") { // the caller may stop
		break
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range q.Results(ctx, "imp") { // also because its context has ended
		cancel()
		break
	}
}

// What is left of a group that was not written as a whole is removed when the next term begins, or the group is rejected.
func TestTornGroup(t *testing.T) {
	q := leaderQueue(t)
	imported(t, q, "imp", 30)
	term := notRunning(t, q, TermConfig{Term: 1})
	for _, d := range take(t, term, 10) {
		d.Finish(resultOf(t, d, 0))
	}
	if err := term.writeGroup(t.Context()); err != nil {
		t.Fatal(err)
	}
	tear := func(term *Term) {
		t.Helper()
		term.sent = term.nextGroup(time.Now())
		for _, m := range term.messages(term.sent, term.expected)[:5] {
			m.Header.Del(jetstream.ExpectedLastSeqHeader)
			if _, err := q.js.PublishMsg(t.Context(), m); err != nil {
				t.Fatal(err)
			}
		}
		if got := len(written(t, q, "imp")); got%10 != 5 {
			t.Fatalf("got %d results, want five more", got)
		}
	}
	for _, d := range take(t, term, 10) {
		d.Finish(resultOf(t, d, 0))
	}
	tear(term)
	if err := term.writeGroup(t.Context()); err != nil { // it is rejected, and sent again
		t.Fatal(err)
	}
	if got := len(written(t, q, "imp")); got != 20 {
		t.Errorf("got %d results, want 20", got)
	}
	for _, d := range take(t, term, 10) {
		d.Finish(resultOf(t, d, 0))
	}
	tear(term)
	l := lead(t, q, TermConfig{Term: 2, Crashed: true})
	l.work(t, 10, nil)
	l.complete(t, 1)
	if got := len(written(t, q, "imp")); got != 30 {
		t.Errorf("got %d results, want 30", got)
	}
}

// Messages that nobody enqueued, and that are no jobs, do not hide jobs that come after them.
func TestForeignMessagesAmongJobs(t *testing.T) {
	q := leaderQueue(t)
	const foreign, jobs = jobsAtOnce, 2*jobsAtOnce + 3 // readings end in the middle
	if _, _, err := q.Begin(t.Context(), Import{ID: "imp", Digest: "d"}); err != nil {
		t.Fatal(err)
	}
	publish := func(data []byte) {
		t.Helper()
		if _, err := q.js.Publish(t.Context(), q.jobsSubject("imp"), data); err != nil {
			t.Fatal(err)
		}
	}
	for range foreign {
		publish([]byte("hello"))
	}
	for j := range numberedJobs("imp", jobs, 1) {
		publish(j.AppendJSON(nil))
	}
	p, seq, err := q.checkpoint(t.Context(), "imp")
	if err != nil {
		t.Fatal(err)
	}
	p.Jobs, p.Done = jobs, true
	if _, err := q.putCheckpoint(t.Context(), "imp", p, seq); err != nil {
		t.Fatal(err)
	}
	l := lead(t, q, TermConfig{Term: 1})
	for range foreign + jobs {
		d := l.next(t)
		if _, err := d.Job(); err != nil {
			d.Finish(job.Result{Outcome: job.Failed, Code: job.CodeUndecodable})
			continue
		}
		d.Finish(resultOf(t, d, 0))
	}
	l.complete(t, 1)
	if got := exported(t, q, "imp", job.Done); len(got) != jobs {
		t.Errorf("got %d jobs done, want %d", len(got), jobs)
	}
}

// A message that is no job gets a failed result, and keeps its import from nothing.
func TestUndecodableJob(t *testing.T) {
	q := leaderQueue(t)
	if _, _, err := q.Begin(t.Context(), Import{ID: "imp", Digest: "d"}); err != nil {
		t.Fatal(err)
	}
	if _, err := q.js.PublishMsg(t.Context(), &nats.Msg{Subject: q.jobsSubject("imp"), Data: []byte("hello")}); err != nil {
		t.Fatal(err)
	}
	p, seq, err := q.checkpoint(t.Context(), "imp")
	if err != nil {
		t.Fatal(err)
	}
	p.Jobs, p.Done = 1, true
	if _, err := q.putCheckpoint(t.Context(), "imp", p, seq); err != nil {
		t.Fatal(err)
	}
	l := lead(t, q, TermConfig{Term: 1})
	d := l.next(t)
	if j, err := d.Job(); err == nil {
		t.Errorf("got %+v, want an error", j)
	}
	if prior, err := d.Prior(t.Context()); err == nil || prior != nil {
		t.Errorf("prior: got %v, %v, want an error", prior, err)
	}
	d.Finish(job.Result{Outcome: job.Failed, Code: job.CodeUndecodable, Started: noon, Finished: noon})
	l.complete(t, 1)
	if got := exported(t, q, "imp"); len(got) != 1 || !strings.HasPrefix(keyOf(got), "seq-") {
		t.Errorf("got %v, want one result seq-…", got)
	}
}

func keyOf[V any](m map[string]V) string {
	for k := range m {
		return k
	}
	return ""
}

// A result that the server does not take as it is, is written with less in it.
func TestResultTooLarge(t *testing.T) {
	q := leaderQueue(t)
	imported(t, q, "imp", 1)
	l := lead(t, q, TermConfig{Term: 1})
	d := l.next(t)
	r := resultOf(t, d, 1)
	r.Conversations[0].Info = strings.Repeat("x", int(q.conn.MaxPayload()))
	d.Finish(r)
	l.complete(t, 1)
	for got, err := range q.Results(t.Context(), "imp") {
		if err != nil || got.Outcome != job.Partial || got.Conversations[0].Code != "50001" || got.Conversations[0].Info != "" {
			t.Errorf("got %+v, %v, want it without the text", got, err)
		}
	}
	if c := record(t, q, "imp").Counts; c.Conversations.Failed != 1 || c.Conversations.Done != 1 {
		t.Errorf("got %+v", c)
	}
	r.Conversations[0].Info, r.Import, r.Job = "", "imp", "job-0"
	data := fit(&r, 300)
	if got, err := job.DecodeResult(data); err != nil || got.Code != CodeTooLarge || got.Outcome != job.Failed {
		t.Errorf("got %+v, %v, want the code %s", got, err, CodeTooLarge)
	}
}

// A job that is under way whenever the leader is lost is failed without a call after the third time. The others are not
// harmed, wherever they are.
func TestCrashes(t *testing.T) {
	q := leaderQueue(t)
	imported(t, q, "imp", 300)
	l := lead(t, q, TermConfig{Term: 1})
	poison := l.next(t).Sequence()
	l.work(t, 30, nil)
	for _, term := range []uint64{2, 3} {
		l.kill()
		l = lead(t, q, TermConfig{Term: term, Crashed: true})
		for d := l.next(t); d.Sequence() != poison; d = l.next(t) {
			d.Finish(resultOf(t, d, 0))
		}
	}
	if s := l.Snapshot(); s.InFlight != 1 || s.Pending > int64(trialSizes[0]) {
		t.Errorf("after two losses: got %+v, want the job alone, and those of its trial left at most", s)
	}
	l.kill()
	l = lead(t, q, TermConfig{Term: 4, Crashed: true})
	stop := l.busy(t, 4, 300)
	defer stop()
	l.complete(t, 1)
	all := exported(t, q, "imp")
	failed := 0
	for r, err := range q.Results(t.Context(), "imp", job.Failed) {
		if err != nil || r.Code != CodeCrashed {
			t.Errorf("got %+v, %v, want the code %s", r, err, CodeCrashed)
		}
		failed++
	}
	if len(all) != 300 || failed != 1 {
		t.Errorf("got %d results, %d of them failed, want 300 and 1", len(all), failed)
	}
}
