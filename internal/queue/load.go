package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"groupferry/internal/broker"
	"groupferry/internal/clock"
	"groupferry/internal/job"
)

const (
	// jobsAtOnce and jobsBytes bound one read of jobs. The buffer of an import has at most that, and lowWater.
	jobsAtOnce = 256
	jobsBytes  = 512 << 10

	// lostAtOnce bounds one read of jobs that an earlier leader did not finish: there are others between them.
	lostAtOnce = 64

	// buffered is shared by the buffers of all imports if there are many; none gets less than minJobsBytes.
	buffered     = 16 << 20
	minJobsBytes = 32 << 10

	// checkpointEvery is how often new jobs are looked for, and generations that have no checkpoint yet.
	checkpointEvery = 250 * time.Millisecond

	// missingWait is how long jobs that should be on the stream are looked for, before the stream's leader is asked.
	// The server that serves a direct get may lag behind.
	missingWait = time.Second
)

// errNotYet says that a generation has no checkpoint yet, or has to wait for an earlier night of its sync.
var errNotYet = errors.New("the import is just beginning")

// loadAll loads the imports that are not loaded. A problem with one of them does not stop the others; the error is
// about NATS or ctx.
func (t *Term) loadAll(ctx context.Context, ids []string, crashed bool) error {
	var first error
	t.eachOf(ids, func(id string) {
		if err := t.load(ctx, id, crashed); err != nil && !errors.Is(err, errNotYet) {
			t.mu.Lock()
			defer t.mu.Unlock()
			if ctx.Err() == nil && !broker.Unreachable(err) {
				t.reportDamage(id, err)
			} else if first == nil {
				first = err
			}
		} else if err != nil {
			t.Changed(id)
		}
	})
	return first
}

// eachOf calls do for each, a few at a time, and returns when all have returned.
func (t *Term) eachOf(ids []string, do func(id string)) {
	slots := make(chan struct{}, loaders)
	var all sync.WaitGroup
	for _, id := range ids {
		slots <- struct{}{}
		all.Go(func() {
			do(id)
			<-slots
		})
	}
	all.Wait()
}

// load starts to work on an import, unless it is loaded already, over, or gone. It finishes the end of one that is over: whoever
// cancelled it before it was loaded waits for that.
func (t *Term) load(ctx context.Context, id string, crashed bool) error {
	t.mu.Lock()
	known := t.byID[id] != nil
	t.mu.Unlock()
	if known || !job.ValidImportID(id) {
		return nil
	}
	// Read the record last, so that it is the newest of the incarnations read.
	last, stateSeq, err := t.q.lastState(ctx, id)
	if err != nil {
		return err
	}
	p, seq, err := t.q.checkpoint(ctx, id)
	if err != nil {
		return err
	}
	record, _, err := t.q.importRecord(ctx, id)
	switch {
	case errors.Is(err, ErrNoImport):
		return nil
	case err != nil:
		return err
	case record.live():
	case seq != 0 && p.of(&record) && record.State != Deleting: // this leader has nothing of it in flight
		return t.q.finishEnd(ctx, record)
	default:
		return nil
	}
	if seq == 0 || !p.of(&record) || p.Ended {
		return errNotYet
	}
	if last != nil && last.Incarnation != record.Incarnation {
		// From an import with this ID whose deletion did not complete.
		if err := t.q.purgeResults(ctx, id, stateSeq); err != nil {
			return err
		}
		last = nil
	}
	if last == nil && !t.mayFollow(&record) { // else a leader has begun with it
		return errNotYet
	}
	if err := t.q.checkCounts(ctx, id, last); err != nil {
		return err
	}
	elsewhere := t.cfg.Target != "" && record.Target != "" && record.Target != t.cfg.Target
	a := &active{
		elsewhere: elsewhere, sync: record.syncNight(),
		id: id, incarnation: record.Incarnation, generation: record.Generation, paused: record.Paused,
		// No job is handed out before a state of this term is written: so the next leader knows whether any was.
		hold: true, stateWant: true,
		open: make(map[uint64]*entry), limit: minAhead,
		checkpoint: p, checkpointSeq: seq, checked: time.Now(), next: 1, jump: true,
	}
	if last != nil {
		a.counts = last.Counts
	}
	resumed := last != nil && last.Generation == record.Generation
	// Else the lost leader handed out none of its jobs, or had none in flight when it was lost.
	crashed = crashed && resumed && last.Term+1 == t.cfg.Term && !last.Closed
	if resumed {
		a.resume(last, crashed)
	}
	a.readNext = min(a.next, seq)
	if elsewhere {
		t.log.Warn("jobs of an import are not handed out: its sync belongs to another API than this process calls",
			"import", id, "sync", record.Sync, "target", record.Target)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	a.rate.add(time.Now(), 0)
	t.byID[id] = a
	delete(t.damagedIDs, id)
	t.d.add(a)
	t.d.stating = t.d.stating || a.stateWant
	t.d.hungry = true
	t.maybeComplete(a)
	t.dispatch()
	return nil
}

// mayFollow reports whether a leader can begin with an import. With a night of a sync it cannot while something that an earlier
// night called for may come after it: a job of that night is in flight here, whatever the fence waited for, or an earlier
// leader made calls. A job of a night is in flight until its calls have taken effect.
func (t *Term) mayFollow(record *Import) bool {
	night := record.syncNight()
	if night.number <= 1 {
		return true
	}
	if time.Since(t.began) < t.cfg.Late {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.left = slices.DeleteFunc(t.left, func(a *active) bool { return a.inFlight == 0 })
	if slices.ContainsFunc(t.left, func(a *active) bool { return night.after(a.sync) }) {
		return false
	}
	for _, a := range t.byID {
		if night.after(a.sync) { // it has ended, and is dropped when that is noticed
			t.changed[a.id] = true
			return false
		}
	}
	return true
}

// resume continues from the last state.
func (a *active) resume(s *state, crashed bool) {
	a.next, a.handed, a.stated, a.unreadable = max(s.Next, 1), s.Handed, s.Handed, s.Unreadable
	a.limit = s.Handed + s.Ahead
	a.maybeHanded = a.limit
	for _, seq := range s.Unfinished {
		a.open[seq] = &entry{of: a, seq: seq, earlier: true}
		a.lost = append(a.lost, seq)
	}
	for i, seqs := range s.Crashes {
		for _, seq := range seqs {
			if e := a.open[seq]; e != nil {
				e.crashes = min(i+1, len(trialSizes))
			}
		}
	}
	if !crashed {
		return
	}
	for _, seq := range s.Trial { // only these
		if e := a.open[seq]; e != nil {
			e.crashes++
		}
	}
	if len(s.Trial) > 0 {
		return
	}
	a.ahead = s.Ahead
	for _, e := range a.open {
		e.crashes = max(e.crashes, 1)
	}
}

// readJobs fills the buffers of the imports until ctx ends.
func (t *Term) readJobs(ctx context.Context) {
	r := t.q.newBatchReader(t.q.jobsStream())
	defer r.close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	failed := false
	for {
		again, err := t.fillAll(ctx, r)
		if err != nil && ctx.Err() == nil && !failed {
			t.q.conn.LogRetry("jobs cannot be read; trying again", err)
		}
		failed = err != nil
		timer.Reset(again)
		select {
		case <-t.feedKick:
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		if failed && !clock.Pause(ctx, checkpointEvery) {
			return
		}
	}
}

// fillAll fills each low buffer once, and returns when to call it again at the latest.
func (t *Term) fillAll(ctx context.Context, r *batchReader) (again time.Duration, err error) {
	t.mu.Lock()
	imports := append([]*active(nil), t.d.imports...)
	t.mu.Unlock()
	again = time.Minute
	for _, a := range imports {
		if err := t.fill(ctx, r, a, max(buffered/len(imports), minJobsBytes)); err != nil {
			return checkpointEvery, err
		}
		t.mu.Lock()
		switch {
		case a.gone:
		case a.missingSince.IsZero() && a.wantsJobs():
			again = 0
		case !a.checkpoint.Done || !a.missingSince.IsZero():
			again = min(again, checkpointEvery)
		}
		t.mu.Unlock()
	}
	return again, nil
}

// fill reads what an import needs.
func (t *Term) fill(ctx context.Context, r *batchReader, a *active, bytes int) error {
	t.mu.Lock()
	gone, lost, low := a.gone, len(a.lost) > 0, len(a.fresh) < lowWater
	stale := a.readNext >= a.checkpointSeq && !a.checkpoint.Done && time.Since(a.checked) >= checkpointEvery
	t.mu.Unlock()
	if gone {
		return nil
	}
	if lost {
		if err := t.readLost(ctx, r, a); err != nil {
			return err
		}
	}
	if stale {
		if err := t.readCheckpoint(ctx, a); err != nil {
			return err
		}
	}
	t.mu.Lock()
	from, end, jump, missing := a.readNext, a.checkpointSeq, a.jump, !a.missingSince.IsZero()
	t.mu.Unlock()
	if !low || from >= end && !missing {
		return nil
	}
	if from >= end { // there is a gap in the jobs that were read
		return t.lookForMissing(ctx, a, from, end)
	}
	got, next, jump, err := r.readRun(ctx, from, end, t.q.jobsSubject(a.id), jobsAtOnce, min(bytes, jobsBytes), jump)
	if len(got) == 0 && err != nil {
		return t.q.fault(ctx, "read the jobs of import "+a.id, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range got {
		a.fresh = append(a.fresh, &entry{of: a, seq: m.seq, data: m.Data})
	}
	a.readNext, a.jump = next, jump
	switch {
	case a.checkpoint.Jobs == 0:
		a.readNext = end
	case next > from && next < end, next >= end && a.missing() <= 0:
		a.missingSince = time.Time{}
	case a.missingSince.IsZero():
		a.missingSince = time.Now()
	case time.Since(a.missingSince) >= missingWait:
		t.mu.Unlock()
		err = t.lookForMissing(ctx, a, from, end)
		t.mu.Lock()
	}
	if a.handedOut() {
		t.maybeComplete(a)
	}
	t.d.hungry = false // done
	t.dispatch()
	return err
}

// lookForMissing asks the stream's leader for jobs that no direct get returned. If it has none either, they are lost.
func (t *Term) lookForMissing(ctx context.Context, a *active, next, end uint64) error {
	m, err := t.q.conn.NextMsg(ctx, t.q.jobsStream(), next, t.q.jobsSubject(a.id))
	if err != nil && !errors.Is(err, broker.ErrNotFound) {
		return err
	}
	if err == nil && m.Sequence < end {
		return nil // a follower lags
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if missing := a.missing(); missing > 0 {
		t.damage(a, t.q.jobsDamaged(a.id, fmt.Sprintf("%d of its %d jobs are missing", missing, a.checkpoint.Jobs)))
	}
	a.missingSince, a.readNext = time.Time{}, end
	t.dispatch()
	return nil
}

// readCheckpoint checks whether more jobs were put on the queue.
func (t *Term) readCheckpoint(ctx context.Context, a *active) error {
	p, seq, err := t.q.checkpoint(ctx, a.id)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	a.checked = time.Now()
	if p.Incarnation == a.incarnation && p.Generation == a.generation && !p.Ended {
		a.checkpoint, a.checkpointSeq = p, seq
		t.maybeComplete(a)
	} else { // it has ended, or will
		t.changed[a.id] = true
		kick(t.keepKick)
	}
	return nil
}

// readLost reads jobs that the last leader did not finish.
func (t *Term) readLost(ctx context.Context, r *batchReader, a *active) error {
	t.mu.Lock()
	lost := a.lost
	t.mu.Unlock()
	got, _, _, err := r.readRun(ctx, lost[0], lost[len(lost)-1]+1, t.q.jobsSubject(a.id), lostAtOnce, jobsBytes, false)
	if len(got) == 0 && err != nil {
		return t.q.fault(ctx, "read the jobs of import "+a.id, err)
	}
	if len(got) == 0 || got[0].seq != lost[0] {
		// The server that responded may lag behind; the stream's leader does not.
		m, err := t.q.conn.MsgAt(ctx, t.q.jobsStream(), lost[0])
		if err != nil && !errors.Is(err, broker.ErrNotFound) {
			return err
		}
		if err != nil || m.Subject != t.q.jobsSubject(a.id) {
			t.mu.Lock()
			defer t.mu.Unlock()
			a.lost = lost[1:]
			t.damage(a, t.q.jobsDamaged(a.id, fmt.Sprintf("the job at %d is missing", lost[0])))
			return nil
		}
		got = []stored{{&nats.Msg{Data: m.Data}, m.Sequence}}
	}
	before := make(map[uint64]*job.Result) // of the jobs that get a failed result
	for _, m := range got {
		t.mu.Lock()
		e := a.open[m.seq]
		crashed := e != nil && e.crashes > len(trialSizes)
		t.mu.Unlock()
		if !crashed {
			continue
		}
		if before[m.seq], err = t.priorOf(ctx, a, m.Data); err != nil {
			return err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range got {
		if len(lost) == 0 || lost[0] < m.seq {
			break // the next read starts with the missing one
		}
		if lost[0] > m.seq {
			continue // it has its result
		}
		lost = lost[1:]
		e := a.open[m.seq]
		e.data = m.Data
		switch {
		case e.crashes > len(trialSizes):
			t.finishCrashed(e, before[e.seq])
		case e.crashes > 0:
			a.suspects[e.crashes-1] = append(a.suspects[e.crashes-1], e)
		default:
			a.earlier = append(a.earlier, e)
		}
	}
	a.lost = lost
	t.dispatch()
	return nil
}

// CodeCrashed is the code of a job, and of its conversations, that was the only one under way when the process died.
const CodeCrashed = "crashed"

// finishCrashed finishes a job without a call; before is the result that it replaces, nil for none. The lock is held.
func (t *Term) finishCrashed(e *entry, before *job.Result) {
	j, err := job.Decode(e.data)
	r := crashedResult(&j, before)
	r.Import, r.Generation, r.Worker = e.of.id, e.of.generation, t.cfg.Name
	if err != nil {
		r.Job, r.Code, r.Info = fmt.Sprintf("seq-%d", e.seq), job.CodeUndecodable, err.Error()
	}
	w := &waitingResult{e: e, share: shareOf(&r), prior: j.Prior, unreadable: err != nil}
	if before != nil {
		s := shareOf(before)
		w.priorShare = &s
	}
	w.data = fit(&r, t.q.conn.MaxPayload()-resultHeadroom)
	w.kind, w.share.outcome = string(r.Outcome), r.Outcome
	t.d.unwritten++
	e.of.unwritten++
	t.enqueue(w)
}

// crashedResult returns the result of a job that is not done because it may crash the process. A retried job has some
// of the conversations of the result that it replaces; for the others the earlier result stays.
func crashedResult(j *job.Job, before *job.Result) job.Result {
	r := job.Result{
		Job: j.ID, FromAccount: j.FromAccount, GroupName: j.GroupName, Outcome: job.Failed,
		Code: CodeCrashed, Info: "the leader was lost three times while this job was under way",
		Replaces: j.Prior, Attempts: 1, Started: time.Now(), Finished: time.Now(), Rename: j.OldName, Delete: j.Delete,
	}
	for _, c := range j.Conversations {
		if c.Op == job.Keep {
			r.Keep = append(r.Keep, c)
		} else if before == nil {
			r.Conversations = append(r.Conversations, job.ConversationResult{Conversation: c, Code: CodeCrashed})
		}
	}
	if before == nil {
		return r
	}
	r.GroupID, r.Started, r.OldName, r.Anew = before.GroupID, before.Started, before.OldName, before.Anew
	r.Attempts, r.Calls = r.Attempts+before.Attempts, before.Calls
	type item struct {
		kind int
		id   string
	}
	wanted := make(map[item]bool, len(j.Conversations))
	for _, c := range j.Conversations {
		wanted[item{c.Type, c.ID}] = true
	}
	r.Conversations = slices.Clone(before.Conversations)
	for i := range r.Conversations {
		if c := &r.Conversations[i]; c.Code != "" && wanted[item{c.Type, c.ID}] {
			c.Code, c.Info = CodeCrashed, ""
		}
	}
	r.SetOutcome()
	return r
}

// priorOf reads the result that a job's result will replace; nil if there is none or it is missing.
func (t *Term) priorOf(ctx context.Context, a *active, data []byte) (*job.Result, error) {
	j, err := job.Decode(data)
	if err != nil || j.Prior == 0 {
		return nil, nil
	}
	r, err := t.q.resultAt(ctx, a.id, j.Prior)
	if _, damaged := errors.AsType[*broker.DamagedError](err); damaged {
		return nil, nil // loadPriors reports it
	}
	if err != nil {
		return nil, err
	}
	return &r, nil
}

// keepRecords follows the records until ctx ends: it loads new imports, and drops those that end.
func (t *Term) keepRecords(ctx context.Context) {
	ticker := time.NewTicker(relistEvery)
	defer ticker.Stop()
	early := time.NewTimer(time.Hour) // for new imports
	early.Stop()
	defer early.Stop()
	for {
		select {
		case <-t.keepKick:
		case <-early.C:
		case <-ticker.C:
			t.mu.Lock()
			t.relist = true
			t.mu.Unlock()
		case <-ctx.Done():
			return
		}
		if !t.recheckChanged(ctx) {
			early.Reset(checkpointEvery)
		}
	}
}

// recheckChanged reads the records that changed. It returns false if some have to be read again.
func (t *Term) recheckChanged(ctx context.Context) (all bool) {
	t.mu.Lock()
	relist := t.relist
	var ids []string
	for id := range t.changed {
		ids = append(ids, id)
	}
	t.mu.Unlock()
	all = true
	if relist {
		// A leader with nothing to write would not notice otherwise.
		if err := t.stillMine(ctx); errors.Is(err, ErrSuperseded) {
			t.end(err)
			kick(t.commitKick)
			return true
		}
		open, err := t.q.OpenImports(ctx)
		if err != nil {
			return false
		}
		t.mu.Lock()
		t.relist = false
		listed := make(map[string]bool, len(open))
		for _, id := range open {
			listed[id] = true
			if t.byID[id] == nil && !t.changed[id] {
				ids = append(ids, id)
			}
		}
		for id := range t.byID {
			if !listed[id] && !t.changed[id] {
				ids = append(ids, id)
			}
		}
		t.mu.Unlock()
	}
	var mu sync.Mutex
	t.eachOf(ids, func(id string) {
		t.mu.Lock()
		delete(t.changed, id) // before the record is read, which may change again
		t.mu.Unlock()
		err := t.recheck(ctx, id)
		if err == nil {
			err = t.load(ctx, id, false)
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		if !errors.Is(err, errNotYet) && !broker.Unreachable(err) {
			t.reportDamage(id, err)
			return
		}
		t.changed[id] = true
		mu.Lock()
		defer mu.Unlock()
		all = false
	})
	return all
}

// recheck reads the record of a loaded import, and drops the import if it has ended.
func (t *Term) recheck(ctx context.Context, id string) error {
	t.mu.Lock()
	a := t.byID[id]
	t.mu.Unlock()
	if a == nil {
		return nil
	}
	record, _, err := t.q.importRecord(ctx, id)
	if err != nil && !errors.Is(err, ErrNoImport) {
		return err
	}
	same := err == nil && record.Incarnation == a.incarnation && record.Generation == a.generation
	ended := true
	if same && !record.live() && record.State != Deleting { // cancelled: jobs in flight may still end
		if ended, err = t.q.ended(ctx, &record); err != nil {
			return err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if same && a.finishing {
		return nil // complete ends it, and removes its jobs
	}
	if same && !record.live() && !ended {
		a.ending = true
		t.maybeComplete(a)
		return nil
	}
	if !same || !record.live() {
		t.log.Info("import has ended", "import", id)
		t.drop(a)
		return nil
	}
	if a.paused != record.Paused {
		a.paused = record.Paused
		t.dispatch()
	}
	return nil
}

// recheckAll is recheck for all loaded imports.
func (t *Term) recheckAll(ctx context.Context) error {
	t.mu.Lock()
	var ids []string
	for id := range t.byID {
		ids = append(ids, id)
	}
	t.mu.Unlock()
	var mu sync.Mutex
	var first error
	t.eachOf(ids, func(id string) {
		if err := t.recheck(ctx, id); err != nil {
			mu.Lock()
			defer mu.Unlock()
			first = errors.Join(first, err)
		}
	})
	return first
}

// drop stops the work on an import, and drops its unwritten results. The lock is held.
func (t *Term) drop(a *active) {
	if a.gone {
		return
	}
	t.d.drop(a)
	delete(t.byID, a.id)
	if a.sync.name != "" && a.inFlight > 0 {
		t.left = append(t.left, a)
	}
	kept := t.waiting[:0]
	for _, r := range t.waiting {
		if r.e.of != a {
			kept = append(kept, r)
		}
	}
	clear(t.waiting[len(kept):])
	t.waiting = kept
	t.changed[a.id] = true // it may have been started again
	kick(t.keepKick)
	t.dispatch()
}

// maybeComplete schedules what ends an import: it is at its end, or it was cancelled and has no job in flight. The lock
// is held.
func (t *Term) maybeComplete(a *active) {
	switch {
	case a.gone, a.finishing:
		return
	case a.ending:
		if a.inFlight+a.unwritten > 0 {
			return
		}
	case a.damaged != nil, !a.checkpoint.Done, !a.atEnd():
		return
	}
	a.finishing = true
	a.stateWant = false // no state is written once it is over
	t.finished = append(t.finished, a)
	kick(t.completeKick)
}

// completeImports completes imports that are at their end, until ctx ends. [Term.Close] completes the rest.
func (t *Term) completeImports(ctx context.Context) {
	for {
		done, err := t.completeNext(ctx)
		switch {
		case done:
		case err != nil:
			if ctx.Err() == nil {
				t.q.conn.LogRetry("import cannot be completed yet; trying again", err)
			}
			if !clock.Pause(ctx, repeatMax) {
				return
			}
		default:
			select {
			case <-t.completeKick:
			case <-ctx.Done():
				return
			}
		}
	}
}

// completeNext completes the import that has been at its end for longest. It returns false if there is none, or with an
// error.
func (t *Term) completeNext(ctx context.Context) (done bool, err error) {
	t.mu.Lock()
	if len(t.finished) == 0 {
		t.mu.Unlock()
		return false, nil
	}
	a := t.finished[0]
	t.mu.Unlock()
	err = t.complete(ctx, a)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.finished = t.finished[1:]
	_, damaged := errors.AsType[*broker.DamagedError](err)
	switch {
	case err == nil:
		return true, nil
	case damaged, errors.Is(err, job.ErrVersion): // trying again does not help
		t.damage(a, err)
		a.finishing = false // it can still be ended
		return true, nil
	}
	t.finished = append(t.finished, a) // after the others
	return false, fmt.Errorf("complete import %s: %w", a.id, err)
}

// complete marks an import as complete if its stored data is consistent, and removes its jobs from the queue.
func (t *Term) complete(ctx context.Context, a *active) error {
	t.mu.Lock()
	gone, ending, counts, handed, unreadable, p := a.gone, a.ending, a.counts, a.handed, a.unreadable, a.checkpoint
	t.mu.Unlock()
	if gone {
		return nil
	}
	if ending {
		return t.finishCancelled(ctx, a)
	}
	err := t.q.checkCounts(ctx, a.id, &state{Counts: counts})
	if missing := p.Jobs - handed; err == nil && missing > 0 {
		err = t.q.jobsDamaged(a.id, fmt.Sprintf("%d of its %d jobs are missing", missing, p.Jobs))
	} else if err == nil && -missing > unreadable {
		err = t.q.jobsDamaged(a.id, fmt.Sprintf("it has %d jobs, and only %d were put on the queue", handed, p.Jobs))
	}
	if err != nil {
		return err
	}
	done := false
	record, _, err := t.q.update(ctx, a.id, func(i *Import) {
		done = i.live() && i.Incarnation == a.incarnation && i.Generation == a.generation
		if done {
			i.enqueued(p)
			i.State, i.Completed, i.Counts, i.Paused = Complete, now(), counts, false
		} else {
			done = i.State == Complete && i.Incarnation == a.incarnation && i.Generation == a.generation
		}
	})
	if errors.Is(err, ErrNoImport) {
		return t.recheck(ctx, a.id)
	}
	if err != nil {
		return err
	}
	if !done { // it was cancelled just now
		return t.finishCancelled(ctx, a)
	}
	if err := t.q.completed(ctx, record); err != nil {
		return err
	}
	t.mu.Lock()
	t.drop(a)
	t.mu.Unlock()
	if t.cfg.OnComplete != nil {
		t.cfg.OnComplete(record)
	}
	return nil
}

// finishCancelled ends a cancelled import when its jobs in flight have their results.
func (t *Term) finishCancelled(ctx context.Context, a *active) error {
	record, _, err := t.q.importRecord(ctx, a.id)
	if err != nil && !errors.Is(err, ErrNoImport) {
		return err
	}
	if err == nil && record.Incarnation == a.incarnation && record.Generation == a.generation {
		if err := t.q.finishEnd(ctx, record); err != nil {
			return err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drop(a)
	return nil
}

// importOfSubject returns the import ID and the kind of a subject of the results stream.
func (q *Queue) importOfSubject(subject string) (id, kind string, ok bool) {
	rest, ok := strings.CutPrefix(subject, q.conn.Subject("results")+".")
	if !ok {
		return "", "", false
	}
	return strings.Cut(rest, ".")
}
