package queue

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"groupferry/internal/job"
)

var (
	// ErrNoResult is wrapped by the error of a [Queue.Result] for a job that has none.
	ErrNoResult = errors.New("no result yet")

	// ErrResultExists is wrapped by the error of a [Queue.PutResult] that came second.
	ErrResultExists = errors.New("the job has another result by now")
)

const (
	// tallyHeader carries what Tally counts: outcome, conversations done, conversations failed, calls, and the sequence
	// of the result that this one replaced, or 0; if it is not, the first four of that result follow. A result of a retry
	// has its round at the end.
	tallyHeader = "Groupferry-Result"

	// resultsAhead bounds the results that wait in memory while they are read: at about 250 KB for the largest, 8 MB.
	resultsAhead = 32

	// headersAhead is the same for headers alone.
	headersAhead = 1000

	// scanPatience is how long the server may be silent while results are read.
	scanPatience = 2 * opTimeout

	// scanNudge is after how much silence the library is asked anew: see nextOf.
	scanNudge = time.Second
)

// Result reads the result of a job, and the sequence to give to [Queue.PutResult] to replace it. The error wraps
// [ErrNoResult] when there is none.
func (q *Queue) Result(ctx context.Context, importID, jobID string) (job.Result, uint64, error) {
	m, err := q.rawResult(ctx, importID, jobID)
	if err != nil {
		return job.Result{}, 0, err
	}
	r, err := job.DecodeResult(m.Data)
	if err != nil {
		return job.Result{}, 0, err
	}
	return r, m.Sequence, nil
}

func (q *Queue) rawResult(ctx context.Context, importID, jobID string) (*jetstream.RawStreamMsg, error) {
	doing := "read result of job " + jobID
	m, err := q.last(ctx, q.resultSubject(importID, jobID))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, fmt.Errorf("%s: %w", doing, ErrNoResult)
	}
	return m, q.fault(ctx, doing, err)
}

// PutResult writes a result, if the job's newest one has the given sequence: 0 when it must have none, else what
// [Queue.Result] said. The error wraps [ErrResultExists] when it does not. After an error that wraps [ErrUnreachable]
// it is open whether the result was written; putting the same again tells, for a result that is there already,
// byte for byte, is taken for written.
func (q *Queue) PutResult(ctx context.Context, r job.Result, seq uint64) error {
	if !job.ValidImportID(r.Import) || r.Job == "" || strings.ContainsAny(r.Job, ".*> \t\r\n") {
		return fmt.Errorf("put result: import %q, job %q cannot be a subject", r.Import, r.Job)
	}
	doing := "put result of job " + r.Job
	m := &nats.Msg{
		Subject: q.resultSubject(r.Import, r.Job),
		Data:    r.AppendJSON(make([]byte, 0, 512+64*len(r.Conversations))),
		Header:  nats.Header{},
	}
	replaced := ""
	if seq != 0 {
		stored, err := q.rawResult(ctx, r.Import, r.Job)
		switch {
		case err != nil && !errors.Is(err, ErrNoResult):
			return err
		case err == nil && bytes.Equal(stored.Data, m.Data):
			return nil // an earlier try arrived though its answer did not
		case err != nil, stored.Sequence != seq:
			return fmt.Errorf("%s: %w", doing, ErrResultExists)
		}
		replaced = stored.Header.Get(tallyHeader)
	}
	m.Header.Set(tallyHeader, tallyLine(&r, seq, replaced))
	if room := q.nc.MaxPayload() - headerRoom; int64(len(m.Data)) > room {
		return fmt.Errorf("%s: it has %d bytes and the server takes %d: raise its max_payload", doing, len(m.Data), room)
	}
	failpoint("result-before")
	failInside("result-inside")
	err := q.put(ctx, m, seq)
	failpoint("result-after")
	if !lostRace(err) {
		return q.fault(ctx, doing, err)
	}
	stored, readErr := q.rawResult(ctx, r.Import, r.Job)
	if readErr == nil && bytes.Equal(stored.Data, m.Data) {
		return nil // an earlier try arrived though its answer did not
	}
	return fmt.Errorf("%s: %w", doing, ErrResultExists)
}

// Results reads the results of an import in the order in which they were written, those that were there when it began.
// It keeps few of them in memory. After an error, which is the last thing it yields, the rest is missing.
func (q *Queue) Results(ctx context.Context, importID string) iter.Seq2[job.Result, error] {
	return func(yield func(job.Result, error) bool) {
		stopped := errors.New("stopped by the caller")
		_, err := q.scan(ctx, importID, 0, false, func(m jetstream.Msg, _ *jetstream.MsgMetadata) error {
			r, err := job.DecodeResult(m.Data())
			if err != nil {
				return err
			}
			if !yield(r, nil) {
				return stopped
			}
			return nil
		})
		if err != nil && !errors.Is(err, stopped) {
			yield(job.Result{}, err)
		}
	}
}

// scan gives the results of an import after a sequence, as many as there are when it begins, and returns the sequence
// up to which it saw everything. It stops at the first error that each returns, and returns that. A result that is
// replaced while it runs is left out rather than seen twice.
func (q *Queue) scan(
	ctx context.Context, importID string, after uint64, headersOnly bool,
	each func(jetstream.Msg, *jetstream.MsgMetadata) error,
) (upTo uint64, err error) {
	doing := "read results of import " + importID
	if !job.ValidImportID(importID) {
		return 0, fmt.Errorf("%s: %w", doing, ErrNoImport)
	}
	var last uint64
	err = q.ask(ctx, func(c context.Context) (err error) {
		last, err = q.newest(c, q.resultSubject(importID, "*"))
		return err
	})
	if err != nil {
		return 0, q.fault(ctx, doing, err)
	}
	if last <= after {
		return after, nil
	}
	ahead := resultsAhead
	if headersOnly {
		ahead = headersAhead
	}
	c, cancel := q.within(ctx)
	defer cancel()
	consumer, err := q.results.OrderedConsumer(c, jetstream.OrderedConsumerConfig{
		FilterSubjects:    []string{q.resultSubject(importID, "*")},
		DeliverPolicy:     jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:       after + 1,
		HeadersOnly:       headersOnly,
		InactiveThreshold: time.Minute,
	})
	if err != nil {
		return 0, q.fault(ctx, doing, err)
	}
	defer func() {
		// It would go by itself in a minute; a status that is watched makes one every other second.
		c, cancel := q.within(context.WithoutCancel(ctx))
		defer cancel()
		_ = q.results.DeleteConsumer(c, consumer.CachedInfo().Name)
	}()
	messages, err := consumer.Messages(jetstream.PullMaxMessages(ahead))
	if err != nil {
		return 0, q.fault(ctx, doing, err)
	}
	defer messages.Stop()
	for {
		m, err := nextOf(ctx, messages)
		if err != nil {
			return 0, q.fault(ctx, doing, err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return 0, fmt.Errorf("%s: %w", doing, err)
		}
		if meta.Sequence.Stream > last {
			return last, nil
		}
		if err := each(m, meta); err != nil {
			return 0, fmt.Errorf("%s: %w", doing, err)
		}
		if meta.Sequence.Stream == last {
			return last, nil
		}
	}
}

// newest is the sequence of the newest result with such a subject, 0 if there is none. It asks the leader of the stream:
// the node that a consumer is on may not have that result yet, and does not know that it is behind.
func (q *Queue) newest(ctx context.Context, subject string) (uint64, error) {
	m, err := q.nc.RequestWithContext(ctx, q.apiPrefix+"STREAM.MSG.GET."+q.resultsStream(),
		fmt.Appendf(nil, `{"last_by_subj":%q}`, subject))
	if err != nil {
		return 0, err
	}
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message struct {
			Sequence uint64 `json:"seq"`
		} `json:"message"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return 0, err
	}
	switch e := answer.Error; {
	case e == nil:
		return answer.Message.Sequence, nil
	case e.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return 0, nil
	}
	return 0, answer.Error
}

// nextOf waits for a message, for as long as scanPatience.
//
// Whether more has to be requested is looked at by the library when Next begins and whenever a message arrives, but not
// while the goroutine that sends the requests is busy with the last one. If that one is not scheduled until all that it
// asked for has arrived and was read, nobody looks again until ten seconds without a heartbeat have passed. So Next is
// called again before.
func nextOf(ctx context.Context, messages jetstream.MessagesContext) (jetstream.Msg, error) {
	for end := time.Now().Add(scanPatience); ; {
		c, cancel := context.WithTimeout(ctx, scanNudge)
		m, err := messages.Next(jetstream.NextContext(c))
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil || time.Now().After(end) {
			return m, err
		}
	}
}
