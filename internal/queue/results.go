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
	// fewResults and manyResultsAtOnce bound how many results are asked for at a time; between them, it is what makes about
	// resultsBytes. A result of 1,000 conversations has some 250 KB.
	fewResults        = 16
	manyResultsAtOnce = 512
	resultsBytes      = 1 << 20

	// followerWait is how long results are waited for that the stream's leader counts, and the server that answers does not
	// have: a replica catches up in far less. One that cannot be read holds the server up for good.
	followerWait = 5 * time.Second

	// passTime is how long the server may take to pass over one result of another outcome or import. From the disk's cache
	// it takes 1 µs, and a disk that reads 30 MB a second takes 20.
	passTime = 20 * time.Microsecond
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
	replaced, err := q.replacedResults(ctx, &record, 0)
	if err != nil {
		return err
	}
	// What is counted now is there for the scan to find, which looks for the last one later.
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

// replacedResults gives the results, by sequence and in order, that those of retries up to upTo have replaced, or those of
// all retries if it is 0.
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

// A resultScan reads the results of an import with some outcomes, in the order of the stream.
type resultScan struct {
	q        *Queue
	id       string
	outcomes []job.Outcome
	next     uint64 // the first sequence that is wanted
	upTo     uint64 // the last one; 0 for all that are there when it begins
	end      uint64 // the sequence of the last one that is there
	read     int64  // how many were read
}

// run gives each of them to each, and stops at its first error. The stream's leader says what the last one is. If that
// cannot be reached, since it or another one cannot be read, run ends without an error after a few seconds, and read says
// how many there were.
func (s *resultScan) run(ctx context.Context, each func(stored) error) error {
	s.next = max(s.next, 1)
	for _, o := range s.outcomes {
		m, err := s.q.conn.LastMsg(ctx, s.q.resultsStream(), s.q.resultSubject(s.id, string(o)))
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

// findTime is how long the server may take to find the next result, with all that it may have to pass over.
func (s *resultScan) findTime() time.Duration {
	return followerWait/2 + time.Duration(s.end-min(s.end, s.next))*passTime
}

// pullRequest asks a consumer for what it has at once, up to Batch, and if it has nothing, for what comes within Expires.
type pullRequest struct {
	Batch   int           `json:"batch"`
	Expires time.Duration `json:"expires"`
	NoWait  bool          `json:"no_wait"`
}

// consume reads by a consumer of its own, which lives in the memory of one server, and may end at any time. The server
// finds the next message faster so than by direct gets: see [batchReader.read]. It is done at the end of what is wanted.
func (s *resultScan) consume(ctx context.Context, each func(stored) error) (done bool, err error) {
	cfg := jetstream.ConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: s.next, AckPolicy: jetstream.AckNonePolicy,
		MemoryStorage: true, Replicas: 1, InactiveThreshold: time.Minute,
	}
	for _, o := range s.outcomes {
		cfg.FilterSubjects = append(cfg.FilterSubjects, s.q.resultSubject(s.id, string(o)))
	}
	s.q.conn.Reading() // a consumer that begins within the stream counts what comes
	var consumer jetstream.Consumer
	err = s.q.conn.Ask(ctx, func(ctx context.Context) (err error) {
		consumer, err = s.q.results.CreateConsumer(ctx, cfg)
		return err
	})
	if err != nil {
		return false, err
	}
	info := consumer.CachedInfo()
	defer func() {
		// It would go by itself in a minute; a report that is watched makes one with each look.
		ctx, cancel := s.q.conn.Within(context.WithoutCancel(ctx), requestTime)
		defer cancel()
		_ = s.q.results.DeleteConsumer(ctx, info.Name)
	}()
	nc := s.q.conn.NATS()
	inbox := nc.NewInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		return false, err
	}
	defer sub.Unsubscribe() //nolint:errcheck // it fails with a connection that is gone, and is gone with it
	subject := s.q.conn.APIPrefix() + "CONSUMER.MSG.NEXT." + s.q.resultsStream() + "." + info.Name
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
		case got == 0: // and nothing came for a while
			return false, nil
		}
		// As many as fit into resultsBytes, if they go on like this.
		batch = min(max(resultsBytes/(size/got+1), fewResults), manyResultsAtOnce)
	}
}

// errScanned says that all results that are wanted were read.
var errScanned = errors.New("all was read")

// pulled takes the answer to one pull request.
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
