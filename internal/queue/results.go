package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"groupferry/internal/broker"
	"groupferry/internal/clock"
	"groupferry/internal/job"
)

const (
	// fewResults and manyResultsAtOnce bound how many results are requested at a time; between them it is about
	// resultsBytes. A result of 1,000 conversations has some 250 KB.
	fewResults        = 16
	manyResultsAtOnce = 512
	resultsBytes      = 1 << 20

	// followerWait is how long to wait for results that the stream's leader counts but the responding server does not
	// have: a replica catches up in far less. A result that cannot be read blocks the server for good.
	followerWait = 5 * time.Second

	// passTime is how long the server may take to skip one result of another outcome or import. It takes 1 µs from the
	// disk's cache, and 20 µs from a disk that reads 30 MB a second.
	passTime = 20 * time.Microsecond
)

// lastState reads the state of an import and its sequence; nil if there is none. It asks the stream's leader.
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

// resultAt reads one result of an import. The error is a [*broker.DamagedError] if it is missing or is no result.
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
		Remedy: fmt.Sprintf("restore a backup, or export what is there with '%s', delete the import, "+
			"and import its files again", q.conn.Command("results", id)),
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

// checkCounts compares a state with what the stream's leader counts. Nobody may replace the state meanwhile. A nil
// state means that there is none.
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

// resultsEnd returns the sequence at which the results stream ends. First it removes the rest of a group that was not
// written as a whole.
//
// The server writes a batch message by message. After a kill it completes the batch when it starts. But if its disk was
// full, and still is at the next start, it drops the rest. A part of a group ends with its state, so results at the end
// of the stream are from an incomplete group. A stream with replicas writes a batch as one entry of its log.
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
		// Reading a message waits for the end of a batch that is being written; reading the state of the stream does
		// not.
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

// tornResults returns the sequences of the results at the end of the stream, newest first, and the import they are of.
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
		return nil // something else is wrong: loading the import finds it
	}
	// Remove the oldest first: if this is interrupted, the rest is still at the end of the stream.
	for _, seq := range slices.Backward(torn) {
		broker.Failpoint("torn-before")
		err := q.conn.Ask(ctx, func(ctx context.Context) error { return q.results.DeleteMsg(ctx, seq) })
		if err != nil && !errors.Is(err, broker.ErrNotFound) {
			return q.fault(ctx, "remove results of a group that was cut off", err)
		}
	}
	q.log.Warn("results were removed that were not written as a whole; their jobs are done again",
		"import", id, "jobs", len(torn))
	return nil
}

// Results reads the results of an import in the order in which they were written: the newest one of each job, with one
// of the outcomes, or any if none is named. It yields the results that exist when it starts. It keeps few of them in
// memory; after a retry, 8 bytes more for each retried job.
//
// It compares what it read with what the stream's leader counts. If something is missing, the last item that it yields
// is a [*broker.DamagedError]. An error is always the last item; the results after it are missing. The error wraps
// [ErrNoImport] if there is no such import, or it was deleted meanwhile.
func (q *Queue) Results(ctx context.Context, id string, outcomes ...job.Outcome) iter.Seq2[job.Result, error] {
	return func(yield func(job.Result, error) bool) {
		if len(outcomes) == 0 {
			outcomes = job.Outcomes
		}
		yieldAll(yield, func(yield func(job.Result, error) bool) error { return q.readResults(ctx, id, outcomes, yield) })
	}
}

// yieldAll yields what read does, and last its error. Once the caller wants no more the error is nobody's: it is another one
// than errStopped if the context has ended meanwhile.
func yieldAll[T any](yield func(T, error) bool, read func(yield func(T, error) bool) error) {
	stopped := false
	err := read(func(v T, err error) bool {
		stopped = !yield(v, err)
		return !stopped
	})
	if err != nil && !stopped {
		var none T
		yield(none, err)
	}
}

// errStopped says that the caller wants no more results.
var errStopped = errors.New("stopped by the caller")

func (q *Queue) readResults(
	ctx context.Context, id string, outcomes []job.Outcome, yield func(job.Result, error) bool,
) error {
	record, err := q.Import(ctx, id)
	if err != nil {
		return err
	}
	replaced, err := q.replacedResults(ctx, &record, 0)
	if err != nil {
		return err
	}
	// Count first: the scan looks for the last result later, so it finds all that are counted now.
	counted, err := q.countResults(ctx, id)
	if err != nil {
		return err
	}
	want := sum(counted, outcomes...)
	scan := resultScan{q: q, id: id, outcomes: outcomes}
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
	got := scan.read
	if got >= want {
		return nil
	}
	// A deletion or a repair may be the reason.
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

// replacedResults returns the sequences of the results that were replaced by results of retries up to upTo, in order;
// by those of all retries if upTo is 0.
func (q *Queue) replacedResults(ctx context.Context, i *Import, upTo uint64) ([]uint64, error) {
	if i.Generation == 0 {
		return nil, nil
	}
	scan := resultScan{q: q, id: i.ID, outcomes: job.Outcomes, next: i.FirstRetry + 1, upTo: upTo}
	var seqs []uint64
	err := scan.run(ctx, func(m stored) error {
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

// A resultScan reads the results of an import with some outcomes, or else its jobs, in the order of the stream.
type resultScan struct {
	q        *Queue
	id       string
	outcomes []job.Outcome // none for the jobs
	next     uint64        // the first sequence that is wanted
	upTo     uint64        // the last one; 0 for all that are there when it begins
	end      uint64        // the sequence of the last one that is there
	read     int64         // how many were read
}

func (s *resultScan) stream() (jetstream.Stream, string) {
	if len(s.outcomes) == 0 {
		return s.q.jobs, s.q.jobsStream()
	}
	return s.q.results, s.q.resultsStream()
}

func (s *resultScan) subjects() (all []string) {
	if len(s.outcomes) == 0 {
		return []string{s.q.jobsSubject(s.id)}
	}
	for _, o := range s.outcomes {
		all = append(all, s.q.resultSubject(s.id, string(o)))
	}
	return all
}

// run calls each with each result, and stops at its first error. The stream's leader says which result is the last. If
// run cannot reach that one, because a result cannot be read, it ends after a few seconds without an error; read has
// the number of results.
func (s *resultScan) run(ctx context.Context, each func(stored) error) error {
	s.next = max(s.next, 1)
	_, name := s.stream()
	for _, subject := range s.subjects() {
		m, err := s.q.conn.LastMsg(ctx, name, subject)
		if err != nil && !errors.Is(err, broker.ErrNotFound) {
			return fmt.Errorf("read results of import %s: %w", s.id, err)
		}
		if err == nil {
			s.end = max(s.end, m.Sequence)
		}
	}
	if s.upTo == 0 {
		s.upTo = s.end
	}
	if s.next > min(s.end, s.upTo) {
		return nil
	}
	for giveUp := time.Now().Add(2 * s.findTime()); ; {
		before := s.read
		done, err := s.consume(ctx, each)
		if done || err != nil && !broker.Unreachable(err) || ctx.Err() != nil {
			return s.q.fault(ctx, "read results of import "+s.id, err)
		}
		if s.read > before {
			giveUp = time.Now().Add(2 * s.findTime())
		} else if time.Now().After(giveUp) {
			return s.q.fault(ctx, "read results of import "+s.id, err) // nil: there are no more
		}
		clock.Pause(ctx, checkpointEvery)
	}
}

// findTime is how long the server may take to find the next result, including all that it may have to skip.
func (s *resultScan) findTime() time.Duration {
	return followerWait/2 + time.Duration(s.end-min(s.end, s.next))*passTime
}

// pullRequest asks a consumer for up to Batch messages. If it has none, it waits up to Expires for them.
type pullRequest struct {
	Batch   int           `json:"batch"`
	Expires time.Duration `json:"expires"`
	NoWait  bool          `json:"no_wait"`
}

// consume reads by a consumer of its own, which exists in the memory of one server and may end at any time. With it the
// server finds the next message faster than by direct gets: see [batchReader.read]. It returns when the last result was
// read.
func (s *resultScan) consume(ctx context.Context, each func(stored) error) (done bool, err error) {
	cfg := jetstream.ConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: s.next, AckPolicy: jetstream.AckNonePolicy,
		MemoryStorage: true, Replicas: 1, InactiveThreshold: time.Minute, FilterSubjects: s.subjects(),
	}
	stream, name := s.stream()
	s.q.conn.Reading() // a consumer that begins within the stream counts what comes
	var consumer jetstream.Consumer
	err = s.q.conn.Ask(ctx, func(ctx context.Context) (err error) {
		consumer, err = stream.CreateConsumer(ctx, cfg)
		return err
	})
	if err != nil {
		return false, err
	}
	info := consumer.CachedInfo()
	defer func() {
		// It would end by itself in a minute, but a watched report makes one with each read.
		ctx, cancel := s.q.conn.Within(context.WithoutCancel(ctx), requestTime)
		defer cancel()
		_ = stream.DeleteConsumer(ctx, info.Name)
	}()
	nc := s.q.conn.NATS()
	inbox := nc.NewInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		return false, err
	}
	defer sub.Unsubscribe() //nolint:errcheck // it fails with a connection that is gone, and is gone with it
	subject := s.q.conn.APIPrefix() + "CONSUMER.MSG.NEXT." + name + "." + info.Name
	for batch := fewResults; ; {
		s.q.conn.Reading()
		body, err := json.Marshal(pullRequest{batch, s.findTime(), true})
		if err != nil {
			return false, err
		}
		if err := nc.PublishRequest(subject, inbox, body); err != nil {
			return false, err
		}
		got, size, err := s.pulled(ctx, sub, batch, each)
		switch {
		case errors.Is(err, errScanned):
			return true, nil
		case err != nil:
			return false, err
		case got == 0: // nothing came for a while
			return false, nil
		}
		// As many as fit into resultsBytes, if they stay as large.
		batch = min(max(resultsBytes/(size/got+1), fewResults), manyResultsAtOnce)
	}
}

// errScanned says that all results that are wanted were read.
var errScanned = errors.New("all was read")

// pulled reads the responses to one pull request.
func (s *resultScan) pulled(
	ctx context.Context, sub *nats.Subscription, batch int, each func(stored) error,
) (got, size int, err error) {
	c, cancel := s.q.conn.Within(ctx, requestTime+s.findTime())
	defer cancel()
	for got < batch {
		m, err := sub.NextMsgWithContext(c)
		if err != nil {
			return got, size, err
		}
		if status := m.Header.Get("Status"); status != "" && m.Reply == "" {
			switch status {
			case "100": // the server is alive
				continue
			case "404", "408": // no more for now
				return got, size, nil
			}
			return got, size, fmt.Errorf("%w: status %s %s", nats.ErrNoResponders, status, m.Header.Get("Description"))
		}
		meta, err := m.Metadata()
		if err != nil {
			return got, size, err
		}
		seq := meta.Sequence.Stream
		if seq > s.upTo {
			return got, size, errScanned
		}
		got++
		size += len(m.Data)
		s.read++
		s.next = seq + 1
		if err := each(stored{m, seq}); err != nil {
			return got, size, err
		}
		if seq >= min(s.end, s.upTo) {
			return got, size, errScanned
		}
	}
	return got, size, nil
}
