package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"groupferry/internal/broker"
	"groupferry/internal/clock"
	"groupferry/internal/job"
)

// The fence. Jobs of a generation are on the queue only while its record is live, or until whoever ended it has removed
// them; those that a cancel dropped, which nobody works on any more, until the import is deleted:
//
//	to start and to continue                                 to end
//	  1 record live                   (compare-and-set)        1 record over                   (compare-and-set)
//	  2 initial checkpoint, if there is none                   2 terminal checkpoint, if it follows the one read
//	  3 record read again: remove the checkpoint if over       3 NS.results.IMPORT.end
//	  4 jobs and checkpoint, if they follow the one read       4 purge up to the sequences of 2 and 3; checkpoint last
//	                                                           5 delete alone: the record, at its revision
//
// A writer of jobs reads a checkpoint first and the live record after it. So an end of that generation comes later, and
// it finds that checkpoint or a newer one. Once the terminal checkpoint is there, a batch that is conditional on an
// earlier one is rejected. That is also true after the purge: a purge does not move the end of a stream, and only the
// first checkpoint expects 0.
//
// The same holds for results. The leader writes them in groups, each conditional on where the stream ends. It may treat
// an import as live only if it read the record after it knew that end. An end message moves the end, so the leader
// reads the record again.
//
// An interrupted end leaves the checkpoint, which is removed last. [Queue.Sweep] finds it, and so does each call for
// that import. There are two exceptions. [Queue.Delete] can be killed where only a record in state deleting is left:
// the next Delete, Begin or DeleteOlder finishes it. And a process can write its end message after another process has
// deleted the import, and be killed right then: the next Delete or Begin with this ID removes the message.

// An endMessage is the message on NS.results.IMPORT.end. Only its place on the stream matters; the contents are for
// people.
type endMessage struct {
	Version     int    `json:"v"`
	Incarnation string `json:"incarnation"`
	Generation  int    `json:"generation"`
}

const endVersion = 1

// errElsewhere says that another process put all jobs of the generation on the queue.
var errElsewhere = errors.New("enqueued by another process")

// startGeneration makes sure that the generation of a record that is being enqueued or retried has a checkpoint, and
// returns it with its sequence. If the record is not live any more, the error is that of [Queue.notLive].
func (q *Queue) startGeneration(ctx context.Context, i Import) (checkpoint, uint64, error) {
	for {
		p, seq, err := q.checkpoint(ctx, i.ID)
		if err != nil {
			return p, 0, err
		}
		if seq == 0 {
			if err := q.checkNoJobs(ctx, i.ID); err != nil {
				if now, rerr := q.Import(ctx, i.ID); rerr == nil && now.State == Cancelled { // they are what was dropped
					err = q.notLive(ctx, &i)
				}
				return p, 0, err
			}
			p = newCheckpoint(&i)
			broker.Failpoint("start-before")
			broker.FailInside("start-inside")
			seq, err = q.putCheckpoint(ctx, i.ID, p, 0)
			if broker.LostRace(err) {
				continue
			}
			if err != nil {
				return p, 0, q.fault(ctx, "start import "+i.ID, err)
			}
			broker.Failpoint("start-after")
		}
		// Read the record after the checkpoint: see above.
		record, err := q.Import(ctx, i.ID)
		if err != nil && !errors.Is(err, ErrNoImport) {
			return p, 0, err
		}
		live := err == nil && record.live() && record.same(&i)
		if live && p.of(&i) && !p.Ended {
			return p, seq, nil
		}
		if !live || !p.of(&i) {
			if err := q.tidy(ctx, i.ID); err != nil {
				return p, 0, err
			}
			if !live {
				return p, 0, q.notLive(ctx, &i)
			}
			continue
		}
		return p, 0, q.lost(i.ID, "it is %s, and its checkpoint says that it has ended", record.State)
	}
}

// checkNoJobs returns an error if an import without a checkpoint has jobs.
func (q *Queue) checkNoJobs(ctx context.Context, id string) error {
	m, err := q.conn.NextMsg(ctx, q.jobsStream(), 1, q.jobsSubject(id))
	if errors.Is(err, broker.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	// Another process may have written both just now.
	if _, seq, err := q.checkpoint(ctx, id); err != nil || seq != 0 {
		return err
	}
	// Or removed both, if the job is gone.
	if _, err := q.conn.MsgAt(ctx, q.jobsStream(), m.Sequence); errors.Is(err, broker.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	return q.lost(id, "it has jobs on the queue, and no checkpoint that counts them")
}

// lost is the error about an import of which the server has lost a part.
func (q *Queue) lost(id, format string, args ...any) error {
	return &broker.DamagedError{
		Path:   "import " + id,
		What:   fmt.Sprintf(format, args...),
		Remedy: fmt.Sprintf("cancel it if it is not over, delete it ('%s'), and import its files again", q.conn.Command("delete", id)),
	}
}

// putCheckpoint writes a checkpoint by itself, in place of all others of its import, if the last one has the given
// sequence; 0 means none. If the response to a first try is lost, the error may be that of a lost race.
func (q *Queue) putCheckpoint(ctx context.Context, id string, p checkpoint, after uint64) (seq uint64, err error) {
	b, err := json.Marshal(p)
	if err != nil {
		return 0, err
	}
	return q.put(ctx, &nats.Msg{Subject: q.checkpointSubject(id), Data: b, Header: nats.Header{
		jetstream.ExpectedLastSubjSeqHeader: {strconv.FormatUint(after, 10)},
		jetstream.MsgRollup:                 {jetstream.MsgRollupSubject},
	}})
}

// put publishes one message, and again if the response was lost.
func (q *Queue) put(ctx context.Context, m *nats.Msg) (seq uint64, err error) {
	err = q.conn.Ask(ctx, func(ctx context.Context) error {
		ack, err := q.js.PublishMsg(ctx, m)
		if err == nil {
			seq = ack.Sequence
		}
		return err
	})
	return seq, err
}

// notLive returns why no more jobs can be put on the queue for an earlier record. It is errElsewhere if all of them
// were put there and the import is over by now.
func (q *Queue) notLive(ctx context.Context, was *Import) error {
	i, err := q.Import(ctx, was.ID)
	switch {
	case err != nil:
		return err
	case i.Incarnation != was.Incarnation || i.State == Deleting:
		return fmt.Errorf("%w: %s was deleted", ErrNoImport, was.ID)
	case i.State == Cancelled:
		return i.cancelled()
	case i.Generation != was.Generation:
		return fmt.Errorf("%w: another retry was begun", ErrUnfinished)
	case i.Enqueued.IsZero(): // the retry was cancelled while it was enqueued
		return i.cancelled()
	}
	return errElsewhere
}

// drainTime is how long a cancel waits for the results of the jobs in flight: a call takes less, unless the API is out of
// reach. A job of a night takes longer after a call without a response; its result does not count then.
const drainTime = 3 * time.Second

// Cancel ends an import: its jobs without a result are dropped, and its results are kept. An enqueue of it stops there.
// [Queue.Dropped] reads what was dropped, until the import is deleted.
// Jobs that are in flight get their results if they end within three seconds; what comes later does not count any more. A
// retry that is cancelled leaves the import complete, with the failures that it did not get to.
//
// Cancelling again finishes what was interrupted. It is an error if the import is complete or being deleted.
func (q *Queue) Cancel(ctx context.Context, id string) error {
	i, err := q.markOver(ctx, id, 0)
	if err != nil {
		return err
	}
	if i.State != Deleting {
		if err := q.drainAndEnd(ctx, i, drainTime); err != nil {
			return fmt.Errorf("cancel import %s: %w", id, err)
		}
	}
	if i.State == Deleting || i.State == Complete && i.Generation == 0 {
		return fmt.Errorf("cancel import %s: it is %s already", id, i.State)
	}
	return nil
}

// markOver makes a live record one that is over. A night that takes over from the import is noted, also in one that was
// over before; 0 stands for none.
func (q *Queue) markOver(ctx context.Context, id string, night int) (Import, error) {
	for {
		was, err := q.Import(ctx, id)
		if err != nil {
			return was, err
		}
		// A retry without a checkpoint has nothing to end: then these are the final counts.
		var counts Counts
		if was.live() && was.Generation > 0 {
			if counts, err = q.stateCounts(ctx, &was); err != nil {
				return was, err
			}
		}
		other := false
		i, err := q.Update(ctx, id, func(i *Import) {
			other = i.live() && !i.same(&was)
			if other || i.State == Deleting {
				return
			}
			i.NextNight = max(i.NextNight, night)
			i.Superseded = i.Superseded || night > 0 && i.live()
			switch {
			case !i.live():
				return
			case i.Generation > 0:
				i.State, i.Counts = Complete, counts
			default:
				i.State = Cancelled
			}
			i.Completed, i.Paused = now(), false
		})
		if err != nil || !other {
			return i, err
		}
	}
}

// drainAndEnd is [Queue.finishEnd] for an import of which something may be in flight, for which it waits so long.
func (q *Queue) drainAndEnd(ctx context.Context, i Import, wait time.Duration) error {
	if err := q.awaitDrained(ctx, i, wait); err != nil {
		return err
	}
	return q.finishEnd(ctx, i)
}

// awaitDrained stops what is enqueued, and waits until the leader has ended the import, which it does when nothing of it is
// in flight, or wait is over. It does not wait if no leader has begun with the import, or the last one closed its term. A lost
// leader may have no successor, so this is no more than patience: see [Term.mayFollow].
func (q *Queue) awaitDrained(ctx context.Context, i Import, wait time.Duration) error {
	for end := time.Now().Add(wait); time.Now().Before(end); {
		p, seq, err := q.checkpoint(ctx, i.ID)
		switch {
		case err != nil:
			return err
		case seq == 0 || !p.of(&i):
			return nil
		case !p.Ended:
			if err := q.endCheckpoint(ctx, i.ID, p, seq); err != nil {
				return err
			}
		}
		s, _, err := q.lastState(ctx, i.ID)
		if err != nil {
			return err
		}
		if s == nil || s.Incarnation != i.Incarnation || s.Generation != i.Generation || s.Closed {
			return nil
		}
		if !clock.Pause(ctx, 20*time.Millisecond) {
			return context.Cause(ctx)
		}
	}
	return nil
}

// endCheckpoint replaces the checkpoint read at seq with the terminal one. If another process was faster, the new
// checkpoint has to be read.
func (q *Queue) endCheckpoint(ctx context.Context, id string, p checkpoint, seq uint64) error {
	p.Ended = true
	broker.Failpoint("end-before")
	broker.FailInside("end-inside")
	if _, err := q.putCheckpoint(ctx, id, p, seq); err != nil && !broker.LostRace(err) {
		return q.fault(ctx, "end import "+id, err)
	}
	broker.Failpoint("end-after")
	return nil
}

// ended reports whether a generation whose record is over has or had its end message: no result of it counts any more.
// If two processes end an import at once, the late one removes its end message, which replaced the other's; the
// checkpoint was removed before that.
func (q *Queue) ended(ctx context.Context, i *Import) (bool, error) {
	m, err := q.conn.LastMsg(ctx, q.resultsStream(), q.resultSubject(i.ID, endKind))
	if err == nil {
		var e endMessage
		if err := json.Unmarshal(m.Data, &e); err != nil {
			return false, fmt.Errorf("read the end of import %s: %w", i.ID, err)
		}
		if e.Incarnation == i.Incarnation && e.Generation >= i.Generation {
			return true, nil
		}
	} else if !errors.Is(err, broker.ErrNotFound) {
		return false, err
	}
	p, seq, err := q.checkpoint(ctx, i.ID)
	return seq == 0 || !p.of(i), err
}

// Delete removes an import with its results, its checkpoint and its record, so that nothing of it is left; its ID is free
// again. The error wraps [ErrUnfinished] while the import is not over, and is a [*PendingNightError] while the next night
// of its sync needs its results. Where it was cut off, the next call, or the next
// [Queue.Begin] of the same import, finishes it. It also removes what is left of an import whose record was lost.
func (q *Queue) Delete(ctx context.Context, id string) error {
	i, err := q.Import(ctx, id)
	if err == nil && i.State != Deleting && !i.live() {
		if err := q.checkNotPending(ctx, &i); err != nil {
			return fmt.Errorf("delete import %s: %w", id, err)
		}
		if err := q.checkMayRemove(ctx, id); err != nil {
			return err
		}
		was := i
		i, err = q.Update(ctx, id, func(i *Import) {
			if i.State.Over() && i.Incarnation == was.Incarnation {
				i.State = Deleting
			}
		})
	}
	if errors.Is(err, ErrNoImport) {
		return q.deleteOrphans(ctx, id, err)
	}
	if err != nil {
		return err
	}
	if i.State != Deleting {
		return fmt.Errorf("delete import %s: %w: it is %s", id, ErrUnfinished, i.State)
	}
	if err := q.finishEnd(ctx, i); err != nil {
		return fmt.Errorf("delete import %s: %w", id, err)
	}
	return nil
}

// checkMayRemove finds out whether this user may remove results: who may not could write the record all the same, and what
// is left of the import then would go with the next Sweep. It removes what comes before the first sequence, which is nothing.
func (q *Queue) checkMayRemove(ctx context.Context, id string) error {
	err := q.conn.Ask(ctx, func(ctx context.Context) error {
		return q.results.Purge(ctx, jetstream.WithPurgeSubject(q.resultSubject(id, "*")), jetstream.WithPurgeSequence(1))
	})
	return q.fault(ctx, "delete import "+id, err)
}

// DeleteOlder deletes the imports that were over longer ago than age, by this machine's clock, and returns their IDs. It
// finishes each deletion that was cut off. The last night of a sync stays, for the next one needs its results.
func (q *Queue) DeleteOlder(ctx context.Context, age time.Duration) ([]string, error) {
	all, err := q.Imports(ctx)
	if err != nil {
		return nil, err
	}
	var gone []string
	for _, i := range all {
		if i.State != Deleting && (i.live() || time.Since(i.Completed) < age) {
			continue
		}
		err := q.Delete(ctx, i.ID)
		_, pending := errors.AsType[*PendingNightError](err)
		switch {
		case err == nil:
			gone = append(gone, i.ID)
		case pending:
		case !errors.Is(err, ErrNoImport) && !errors.Is(err, ErrUnfinished): // deleted, or retried, by another process
			return gone, err
		}
	}
	return gone, nil
}

// finishEnd does the rest of the end of an import whose record is over, from wherever it was interrupted: see the
// fence. After it, the jobs of the import are gone, a group of results that was under way has been rejected, and the
// record has the final counts. If the record was deleting, nothing is left. finishEnd does nothing if i is no longer
// the record, or is live again: then another process has done all that.
//
// Any number of processes can do it at the same time.
func (q *Queue) finishEnd(ctx context.Context, i Import) error {
	for {
		p, seq, err := q.checkpoint(ctx, i.ID)
		if err != nil {
			return err
		}
		record, revision, err := q.importRecord(ctx, i.ID)
		if err != nil && !errors.Is(err, ErrNoImport) {
			return err
		}
		if err != nil || !record.same(&i) || record.live() {
			if seq == 0 || p.Incarnation != i.Incarnation || p.Generation > i.Generation {
				return nil
			}
			return q.removeStale(ctx, i.ID, p, seq)
		}
		switch {
		case seq == 0 && record.State != Deleting:
			return nil
		case seq == 0:
			p = newCheckpoint(&i)
		case !p.of(&record):
			if err := q.removeStale(ctx, i.ID, p, seq); err != nil {
				return err
			}
			continue
		case p.Ended:
			done, err := q.removeEnded(ctx, record, revision, p, seq)
			if err != nil {
				return err
			}
			if done {
				return nil
			}
			continue
		}
		if err := q.endCheckpoint(ctx, i.ID, p, seq); err != nil {
			return err
		}
		// Read again whether it is ours, and whether the record is still there.
	}
}

// removeEnded does the steps after the terminal checkpoint p. It returns false if that checkpoint is gone.
func (q *Queue) removeEnded(
	ctx context.Context, i Import, revision uint64, p checkpoint, seq uint64,
) (done bool, err error) {
	end, err := q.putEnd(ctx, &i)
	if err != nil {
		return false, err
	}
	if _, newest, err := q.checkpoint(ctx, i.ID); err != nil {
		return false, err
	} else if newest != seq {
		// Another process was faster, and removed its end message. Ours may be all that is left of the import.
		err := q.conn.Ask(ctx, func(ctx context.Context) error { return q.results.DeleteMsg(ctx, end) })
		if errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) { // it is gone
			err = nil
		}
		return false, q.fault(ctx, "end import "+i.ID, err)
	}
	if i.State != Deleting {
		if err := q.setCounts(ctx, i, p); err != nil {
			return false, err
		}
	}
	upTo := seq
	if i.State == Cancelled { // its jobs without a result: see Dropped, and UnderWay
		d, err := q.droppedFrom(ctx, &i)
		if err != nil {
			return false, err
		}
		upTo = min(seq, d.first()-1)
	}
	if upTo > 0 {
		if err := q.purgeJobs(ctx, q.jobsSubject(i.ID), upTo); err != nil {
			return false, err
		}
	}
	if i.State == Deleting {
		if err := q.purgeResults(ctx, i.ID, end); err != nil {
			return false, err
		}
	}
	if err := q.purgeJobs(ctx, q.checkpointSubject(i.ID), seq); err != nil {
		return false, err
	}
	if i.State != Deleting {
		return true, nil
	}
	broker.Failpoint("delete-record-before")
	broker.FailInside("delete-record-inside")
	// This leaves a marker, some 200 bytes of the server's memory. Do not remove the message itself: the server notes
	// on disk that it removed this message, but not that it removed the revisions before it (the bucket keeps one
	// revision). If it were killed in the next minutes, it would find the revision before this one at its start. With a
	// marker, the newest message is the marker.
	err = q.conn.Ask(ctx, func(ctx context.Context) error {
		return q.control.Purge(ctx, importKey(i.ID), jetstream.LastRevision(revision))
	})
	if broker.LostRace(err) {
		err = nil
	}
	broker.Failpoint("delete-record-after")
	return false, q.fault(ctx, "delete the record of import "+i.ID, err) // whether it is gone is read again
}

// putEnd writes the end message. It replaces that of an earlier generation.
func (q *Queue) putEnd(ctx context.Context, i *Import) (seq uint64, err error) {
	b, err := json.Marshal(endMessage{endVersion, i.Incarnation, i.Generation})
	if err != nil {
		return 0, err
	}
	q.conn.Reading() // to find an earlier one, the server reads all later results
	broker.Failpoint("end-results-before")
	broker.FailInside("end-results-inside")
	seq, err = q.put(ctx, &nats.Msg{
		Subject: q.resultSubject(i.ID, endKind), Data: b,
		Header: nats.Header{jetstream.MsgRollup: {jetstream.MsgRollupSubject}},
	})
	broker.Failpoint("end-results-after")
	return seq, q.fault(ctx, "end the results of import "+i.ID, err)
}

// setCounts sets the counts of a record that is over to those of the last state: there is no result after the end
// message. It also sets the number of jobs, if the record does not have it.
func (q *Queue) setCounts(ctx context.Context, i Import, p checkpoint) error {
	counts, err := q.stateCounts(ctx, &i)
	if err != nil {
		return err
	}
	_, err = q.Update(ctx, i.ID, func(now *Import) {
		if !now.same(&i) || now.live() || now.State == Deleting {
			return
		}
		if !sameCounts(now.Counts, counts) {
			now.Counts = counts
		}
		if now.Jobs == 0 && now.Generation == 0 {
			now.Jobs = p.Jobs
		}
	})
	if errors.Is(err, ErrNoImport) {
		return nil
	}
	return err
}

// stateCounts returns the counts of the last state of a record's incarnation.
func (q *Queue) stateCounts(ctx context.Context, i *Import) (Counts, error) {
	s, _, err := q.lastState(ctx, i.ID)
	if err != nil {
		return Counts{}, fmt.Errorf("count the results of import %s: %w", i.ID, err)
	}
	if s == nil || s.Incarnation != i.Incarnation {
		return Counts{}, nil
	}
	return s.Counts, nil
}

func sameCounts(a, b Counts) bool {
	same := a.LastResult.Equal(b.LastResult)
	a.LastResult, b.LastResult = time.Time{}, time.Time{}
	return same && reflect.DeepEqual(a, b)
}

// removeStale removes a checkpoint that does not belong to the present generation of its import: one without jobs, left
// by a late start, or a terminal one. One with jobs means that a record was lost.
func (q *Queue) removeStale(ctx context.Context, id string, p checkpoint, seq uint64) error {
	if p.Jobs > 0 && !p.Ended {
		if _, now, err := q.checkpoint(ctx, id); err != nil || now != seq {
			return err // what was read has changed
		}
		return q.lost(id, "%d jobs of it are on the queue, and there is no record of them", p.Jobs)
	}
	if p.Ended {
		if err := q.purgeJobs(ctx, q.jobsSubject(id), seq); err != nil {
			return err
		}
	}
	return q.purgeJobs(ctx, q.checkpointSubject(id), seq)
}

// leftovers checks what is left of an import without a record. It returns the end of the results stream if there are
// state or end messages, and 0 if there are none. Jobs or results are an error.
func (q *Queue) leftovers(ctx context.Context, id string) (upTo uint64, err error) {
	s, err := q.conn.StreamState(ctx, q.resultsStream(), q.resultSubject(id, "*"))
	if err != nil {
		return 0, err
	}
	results := uint64(0)
	for _, kind := range outcomeKinds() {
		results += s.Subjects[q.resultSubject(id, kind)]
	}
	p, seq, err := q.checkpoint(ctx, id)
	if err != nil {
		return 0, err
	}
	if seq == 0 {
		err = q.checkNoJobs(ctx, id)
	} else if p.Jobs > 0 && !p.Ended {
		err = q.lost(id, "%d jobs of it are on the queue, and there is no record of it", p.Jobs)
	}
	if results > 0 {
		err = q.lost(id, "%d results of it are there, and no record of it", results)
	}
	if err != nil {
		if _, err := q.Import(ctx, id); err == nil {
			return 0, errStale // the import was started meanwhile
		} else if !errors.Is(err, ErrNoImport) {
			return 0, err
		}
		return 0, err
	}
	if len(s.Subjects) > 0 {
		upTo = s.LastSeq
	}
	return upTo, nil
}

// deleteOrphans removes the jobs and results of an import that has no record. If there are none, it returns noImport.
func (q *Queue) deleteOrphans(ctx context.Context, id string, noImport error) error {
	if !job.ValidImportID(id) {
		return noImport
	}
	jobs, err := q.conn.StreamState(ctx, q.jobsStream(), q.jobsSubject(id))
	if err != nil {
		return err
	}
	results, err := q.conn.StreamState(ctx, q.resultsStream(), q.resultSubject(id, "*"))
	if err != nil {
		return err
	}
	_, checkpoint, err := q.checkpoint(ctx, id)
	if err != nil && !errors.Is(err, job.ErrVersion) {
		return err
	}
	if len(jobs.Subjects)+len(results.Subjects) == 0 && checkpoint == 0 {
		return noImport
	}
	// Read the record last: what is removed below was written earlier, and has no record.
	if _, err := q.Import(ctx, id); !errors.Is(err, ErrNoImport) {
		if err == nil {
			err = fmt.Errorf("delete import %s: %w: it was begun just now", id, ErrUnfinished)
		}
		return err
	}
	last := jobs.LastSeq
	if checkpoint != 0 { // an enqueue may still be under way: stop it
		p := newCheckpoint(&Import{})
		p.Ended = true
		last, err = q.putCheckpoint(ctx, id, p, checkpoint)
		if err != nil {
			return q.fault(ctx, "delete import "+id, err)
		}
	}
	for _, subject := range []string{q.jobsSubject(id), q.checkpointSubject(id)} {
		if err := q.purgeJobs(ctx, subject, last); err != nil {
			return err
		}
	}
	return q.purgeResults(ctx, id, results.LastSeq)
}

// Sweep finishes what was interrupted in all imports that have a checkpoint: ends, and enqueues that had only the
// record left to change. An error about one import does not stop it.
func (q *Queue) Sweep(ctx context.Context) error {
	ids, err := q.OpenImports(ctx)
	if err != nil {
		return err
	}
	var all []error
	for _, id := range ids {
		err := q.tidy(ctx, id)
		if ctx.Err() != nil || broker.Unreachable(err) {
			return err
		}
		all = append(all, err)
	}
	return errors.Join(all...)
}

// tidy is Sweep for one import.
func (q *Queue) tidy(ctx context.Context, id string) error {
	p, seq, err := q.checkpoint(ctx, id)
	if err != nil || seq == 0 {
		return err
	}
	i, err := q.Import(ctx, id)
	switch {
	case errors.Is(err, ErrNoImport):
		return q.removeStale(ctx, id, p, seq)
	case err != nil:
		return err
	case !i.live():
		return q.finishEnd(ctx, i)
	case !p.of(&i):
		return q.removeStale(ctx, id, p, seq)
	case p.Done:
		now, err := q.Update(ctx, id, func(now *Import) { now.enqueued(p) })
		if errors.Is(err, ErrNoImport) {
			return nil
		}
		if err == nil && now.State == Complete && p.Jobs == 0 {
			err = q.completed(ctx, now)
		}
		return err
	}
	return nil
}

// purgeJobs removes the messages with a subject of the jobs stream, up to a sequence.
func (q *Queue) purgeJobs(ctx context.Context, subject string, upTo uint64) error {
	broker.Failpoint("drop-before")
	broker.FailInside("drop-inside")
	err := q.purge(ctx, q.jobs, subject, upTo)
	broker.Failpoint("drop-after")
	return q.fault(ctx, "remove "+subject, err)
}

// purgeResults removes all results of an import, and its state and end, up to a sequence.
func (q *Queue) purgeResults(ctx context.Context, id string, upTo uint64) error {
	broker.Failpoint("delete-before")
	broker.FailInside("delete-inside")
	err := q.purge(ctx, q.results, q.resultSubject(id, "*"), upTo)
	broker.Failpoint("delete-after")
	return q.fault(ctx, "remove the results of import "+id, err)
}

// purge removes the messages of a stream with a subject, up to a sequence. It tries again as [broker.Conn.Ask] does,
// but with a longer timeout.
func (q *Queue) purge(ctx context.Context, s jetstream.Stream, subject string, upTo uint64) error {
	var failed time.Time
	for attempt := 1; ; attempt++ {
		q.conn.Reading() // the server reads all messages that it removes
		start := time.Now()
		bounded, cancel := q.conn.Within(ctx, purgeTime)
		err := s.Purge(bounded, jetstream.WithPurgeSubject(subject), jetstream.WithPurgeSequence(upTo+1)) // removes what is before it
		cancel()
		if err == nil || !broker.Unreachable(err) || ctx.Err() != nil {
			return err
		}
		if denied := q.conn.Denied(start, err); denied != nil {
			return denied
		}
		if failed.IsZero() {
			failed = time.Now()
		}
		if attempt >= 3 && time.Since(failed) > requestTime || !clock.Pause(ctx, 50*time.Millisecond) {
			return err
		}
	}
}
