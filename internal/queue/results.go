package queue

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"time"

	"groupferry/internal/broker"
	"groupferry/internal/job"
)

const (
	// resultsAtOnce and resultsBytes bound one reading of results, and with it the memory that it takes, here and in the
	// server.
	resultsAtOnce = 1000
	resultsBytes  = 2 << 20

	// followerWait is how long results are waited for that the stream's leader counts, and the server that answers does not
	// have: a replica catches up in far less.
	followerWait = 5 * time.Second
)

// lastState reads the state of an import and its sequence; nil if there is none. The stream's leader answers.
func (q *Queue) lastState(ctx context.Context, id string) (*state, uint64, error) {
	m, err := q.conn.LastMsg(ctx, q.resultsStream(), q.resultSubject(id, stateKind))
	if errors.Is(err, broker.ErrNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	s, err := decodeState(m.Data)
	if errors.Is(err, job.ErrVersion) {
		return nil, 0, fmt.Errorf("import %s: %w", id, err)
	}
	if err != nil {
		return nil, 0, q.resultsDamaged(id, err.Error())
	}
	return s, m.Sequence, nil
}

// resultAt reads one result of an import. The error is a [*broker.DamagedError] when it is not there, or not one.
func (q *Queue) resultAt(ctx context.Context, id string, seq uint64) (job.Result, error) {
	m, err := q.conn.MsgAt(ctx, q.resultsStream(), seq)
	if errors.Is(err, broker.ErrNotFound) {
		return job.Result{}, q.resultsDamaged(id, fmt.Sprintf("the result at %d is missing", seq))
	}
	if err != nil {
		return job.Result{}, err
	}
	r, err := job.DecodeResult(m.Data)
	if err == nil && r.Import != id {
		err = fmt.Errorf("it is of import %s", r.Import)
	}
	if err != nil && !errors.Is(err, job.ErrVersion) {
		err = q.resultsDamaged(id, fmt.Sprintf("the result at %d cannot be read: %v", seq, err))
	}
	return r, err
}

func (q *Queue) resultsDamaged(id, what string) error { return q.damaged(q.resultsStream(), id, what) }
func (q *Queue) jobsDamaged(id, what string) error    { return q.damaged(q.jobsStream(), id, what) }

func (q *Queue) damaged(stream, id, what string) error {
	return &broker.DamagedError{
		Path: "stream " + stream,
		What: "import " + id + ": " + what,
		Remedy: fmt.Sprintf("restore a backup, or export what is there with 'groupferry results %s', delete the import, "+
			"and import its files again", id),
	}
}

// countResults asks the stream's leader how many results of an import there are, by outcome.
func (q *Queue) countResults(ctx context.Context, id string) (map[job.Outcome]int64, error) {
	s, err := q.conn.StreamState(ctx, q.resultsStream(), q.resultSubject(id, "*"))
	if err != nil {
		return nil, err
	}
	n := make(map[job.Outcome]int64, len(job.Outcomes))
	for _, o := range job.Outcomes {
		n[o] = int64(s.Subjects[q.resultSubject(id, string(o))])
	}
	return n, nil
}

func sum(n map[job.Outcome]int64, outcomes ...job.Outcome) (all int64) {
	for _, o := range outcomes {
		all += n[o]
	}
	return all
}

// checkCounts compares a state, which no one is going to replace meanwhile, with what the stream's leader counts. A nil
// state stands for none.
func (q *Queue) checkCounts(ctx context.Context, id string, s *state) error {
	n, err := q.countResults(ctx, id)
	if err != nil {
		return err
	}
	there := sum(n, job.Outcomes...)
	switch {
	case s == nil && there > 0:
		return q.resultsDamaged(id, fmt.Sprintf("its state is missing, with %d results there", there))
	case s != nil && there != s.Counts.Results:
		return q.resultsDamaged(id, fmt.Sprintf("%d results are there, and its state counts %d", there, s.Counts.Results))
	}
	return nil
}

// resultsEnd gives the sequence at which the results stream ends, and removes first what is left there of a group that was
// not written as a whole.
//
// The server writes a batch message by message. What a kill cuts off it completes when it starts, but when its disk is
// full, and full still at the next start, it throws the rest away. A part of a group ends with its state, so results at
// the end of the stream belong to such a one. A stream with replicas takes a batch as one entry of its log.
func (q *Queue) resultsEnd(ctx context.Context) (uint64, error) {
	for {
		s, err := q.conn.StreamState(ctx, q.resultsStream(), "")
		if err != nil {
			return 0, err
		}
		if s.Msgs == 0 || q.results.CachedInfo().Config.Replicas > 1 {
			return s.LastSeq, nil
		}
		torn, id, err := q.tornResults(ctx, s.LastSeq)
		if err != nil {
			return 0, err
		}
		if len(torn) == 0 {
			return s.LastSeq, nil
		}
		// Who reads a message waits for the end of a batch that is being written, but who asks for the state does not.
		again, err := q.conn.StreamState(ctx, q.resultsStream(), "")
		if err != nil {
			return 0, err
		}
		if again.LastSeq != s.LastSeq {
			continue
		}
		if err := q.dropTornResults(ctx, id, torn); err != nil {
			return 0, err
		}
		return s.LastSeq, nil
	}
}

// tornResults gives the sequences of the results at the end of the stream, newest first, and the import they are of.
func (q *Queue) tornResults(ctx context.Context, end uint64) (torn []uint64, id string, err error) {
	for seq := end; seq > 0; seq-- {
		m, err := q.conn.MsgAt(ctx, q.resultsStream(), seq)
		if errors.Is(err, broker.ErrNotFound) {
			break
		}
		if err != nil {
			return nil, "", err
		}
		of, kind, ok := q.importOfSubject(m.Subject)
		if !ok || !slices.Contains(outcomeKinds(), kind) || id != "" && of != id {
			break
		}
		id = of
		torn = append(torn, seq)
	}
	return torn, id, nil
}

func (q *Queue) dropTornResults(ctx context.Context, id string, torn []uint64) error {
	last, _, err := q.lastState(ctx, id)
	if err != nil {
		return err
	}
	n, err := q.countResults(ctx, id)
	if err != nil {
		return err
	}
	counted := int64(0)
	if last != nil {
		counted = last.Counts.Results
	}
	if sum(n, job.Outcomes...)-int64(len(torn)) != counted {
		return nil // something else is wrong: whoever loads the import finds that
	}
	// The oldest comes first: if this is cut off, what is left stands at the end of the stream.
	for _, seq := range slices.Backward(torn) {
		broker.Failpoint("torn-before")
		err := q.conn.Ask(ctx, func(ctx context.Context) error { return q.results.DeleteMsg(ctx, seq) })
		if err != nil && !errors.Is(err, broker.ErrNotFound) {
			return q.fault(ctx, "remove results of a group that was cut off", err)
		}
	}
	q.log.Warn("results were removed that were not written as a whole; their jobs are done again",
		"import", id, "results", len(torn))
	return nil
}

// Results reads the results of an import in the order in which they were written, those that were there when it began:
// the newest one of each job, with one of the outcomes, or any if none is named. It keeps few of them in memory; after
// a retry, 8 bytes more for each job that was retried.
//
// It compares what it read with what the stream's leader counts. If something is missing, the last thing that it yields is
// a [*broker.DamagedError]. After any error, which is the last thing too, the rest is missing. The error wraps
// [ErrNoImport] when there is no such import, or it was deleted meanwhile.
func (q *Queue) Results(ctx context.Context, id string, outcomes ...job.Outcome) iter.Seq2[job.Result, error] {
	return func(yield func(job.Result, error) bool) {
		if len(outcomes) == 0 {
			outcomes = job.Outcomes
		}
		if err := q.readResults(ctx, id, outcomes, yield); err != nil && !errors.Is(err, errStopped) {
			yield(job.Result{}, err)
		}
	}
}

// errStopped says that the caller wants no more.
var errStopped = errors.New("stopped by the caller")

func (q *Queue) readResults(
	ctx context.Context, id string, outcomes []job.Outcome, yield func(job.Result, error) bool,
) error {
	record, err := q.Import(ctx, id)
	if err != nil {
		return err
	}
	// What is counted now has to be found up to the end that the stream has after it.
	counted, err := q.countResults(ctx, id)
	if err != nil {
		return err
	}
	end, err := q.lastSeq(ctx, q.resultsStream())
	if err != nil {
		return err
	}
	scan := resultScan{q: q, id: id, end: end, read: make(map[job.Outcome]int64)}
	replaced, err := q.replacedResults(ctx, &record, end)
	if err != nil {
		return err
	}
	for _, o := range outcomes {
		if counted[o] > 0 {
			scan.sources = append(scan.sources, &resultSource{outcome: o, want: counted[o]})
		}
	}
	err = scan.run(ctx, func(m stored) error {
		for len(replaced) > 0 && replaced[0] < m.seq {
			replaced = replaced[1:]
		}
		if len(replaced) > 0 && replaced[0] == m.seq {
			return nil
		}
		r, err := job.DecodeResult(m.Data)
		if err != nil && !errors.Is(err, job.ErrVersion) {
			err = q.resultsDamaged(id, fmt.Sprintf("the result at %d cannot be read: %v", m.seq, err))
		}
		if err != nil {
			return err
		}
		if !yield(r, nil) {
			return errStopped
		}
		return nil
	})
	if err != nil {
		return err
	}
	want, got := sum(counted, outcomes...), sum(scan.read, outcomes...)
	if got >= want {
		return nil
	}
	// A deletion, or a repair, may have been at work.
	again, err := q.Import(ctx, id)
	if err != nil || again.State == Deleting || again.Incarnation != record.Incarnation {
		return errors.Join(err, fmt.Errorf("read results: %w: %s was deleted", ErrNoImport, id))
	}
	if counted, err = q.countResults(ctx, id); err != nil {
		return err
	}
	if want = min(want, sum(counted, outcomes...)); got < want {
		return q.resultsDamaged(id, fmt.Sprintf("%d of its %d results cannot be read", want-got, want))
	}
	return nil
}

// replacedResults gives the sequences of results that the result of a retry replaced, in rising order.
func (q *Queue) replacedResults(ctx context.Context, i *Import, end uint64) ([]uint64, error) {
	if i.Generation == 0 {
		return nil, nil
	}
	counted, err := q.countResults(ctx, i.ID)
	if err != nil {
		return nil, err
	}
	scan := resultScan{q: q, id: i.ID, end: end, read: make(map[job.Outcome]int64)}
	for _, o := range job.Outcomes {
		if counted[o] > 0 {
			scan.sources = append(scan.sources, &resultSource{outcome: o, next: i.FirstRetry + 1})
		}
	}
	var seqs []uint64
	err = scan.run(ctx, func(m stored) error {
		value := m.Header.Get(replacesHeader)
		if value == "" {
			return nil
		}
		seq, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			return q.resultsDamaged(i.ID, fmt.Sprintf("header %s of the result at %d: %v", replacesHeader, m.seq, err))
		}
		seqs = append(seqs, seq)
		return nil
	})
	slices.Sort(seqs)
	return seqs, err
}

// A resultScan reads the results of an import with some outcomes, in the order of the stream, up to a sequence:
//
//	done    ──►┐
//	partial ──►├─ the one with the lowest sequence ──► each
//	failed  ──►┘
type resultScan struct {
	q       *Queue
	id      string
	end     uint64
	sources []*resultSource
	read    map[job.Outcome]int64 // how many were read
}

// A resultSource is the results with one outcome.
type resultSource struct {
	outcome job.Outcome
	next    uint64 // where the next reading begins
	want    int64  // how many there are at least; 0 if that is not known
	got     []stored
	over    bool
}

func (s *resultScan) run(ctx context.Context, each func(stored) error) error {
	r := s.q.newBatchReader(s.q.resultsStream())
	defer r.close()
	for {
		var first *resultSource
		for _, src := range s.sources {
			if len(src.got) == 0 && !src.over {
				if err := s.fill(ctx, r, src); err != nil {
					return s.q.fault(ctx, "read results of import "+s.id, err)
				}
			}
			if len(src.got) > 0 && (first == nil || src.got[0].seq < first.got[0].seq) {
				first = src
			}
		}
		if first == nil {
			return nil
		}
		m := first.got[0]
		first.got[0], first.got = stored{}, first.got[1:]
		s.read[first.outcome]++
		if err := each(m); err != nil {
			return err
		}
	}
}

// fill reads more of a source, or finds that it is over.
func (s *resultScan) fill(ctx context.Context, r *batchReader, src *resultSource) error {
	subject := s.q.resultSubject(s.id, string(src.outcome))
	for giveUp := time.Now().Add(followerWait); ; {
		got, err := r.read(ctx, src.next, subject, resultsAtOnce, resultsBytes)
		if len(got) == 0 && err != nil {
			if !broker.Unreachable(err) || ctx.Err() != nil || time.Now().After(giveUp) {
				return err
			}
		}
		if n := len(got); n > 0 {
			src.next = got[n-1].seq + 1
			for n > 0 && got[n-1].seq > s.end {
				n--
				src.over = true
			}
			src.got = got[:n]
			return nil
		}
		if err == nil && (s.read[src.outcome] >= src.want || time.Now().After(giveUp)) {
			src.over = true
			return nil
		}
		if !pause(ctx, checkpointEvery) {
			return context.Cause(ctx)
		}
	}
}
