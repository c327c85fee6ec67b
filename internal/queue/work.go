package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"groupferry/internal/job"
)

const (
	// maxInHand is how many jobs of an import can be delivered and not settled. A job that was put back for later
	// counts until it is due, so this is mostly room for those.
	maxInHand = 20_000

	// fetchWait is how long a Fetch waits for a first job before it comes back without: short, for whoever works to
	// the end looks then whether all is done.
	fetchWait = 250 * time.Millisecond

	// A pull that finds no job waits at the server: longWait where nobody else is to be asked, shortWait otherwise, and
	// then that import is left alone for longWait. longWait is also how late a Fetch can notice that its context ended,
	// for a pull is never abandoned: the job that it may bring would be nobody's until ackWait is over.
	shortWait = 10 * time.Millisecond
	longWait  = 250 * time.Millisecond

	// lateWait is how long the answer to a pull is waited for when its time is over.
	lateWait = time.Second

	// maxFetch bounds what one Fetch gives.
	maxFetch = 1000

	// listEvery is how soon a new import is noticed.
	listEvery = time.Second
)

// createConsumer makes the consumer that gives the jobs of an import, from a sequence on; from all of them if that is 0.
func (q *Queue) createConsumer(ctx context.Context, importID string, from uint64) error {
	cfg := jetstream.ConsumerConfig{
		Durable:       consumerName(importID),
		Description:   "groupferry: the jobs of import " + importID,
		FilterSubject: q.jobsSubject(importID),
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       ackWait,
		MaxDeliver:    -1,
		MaxAckPending: maxInHand,
	}
	if from > 0 {
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, from
	}
	failpoint("consumer-before")
	var err error
	for end := time.Now().Add(opTimeout); ; {
		err = q.ask(ctx, func(c context.Context) error {
			_, err := q.jobs.CreateConsumer(c, cfg)
			return err
		})
		// The server can still be busy with removing one of the same name.
		if api := apiError(err); api == nil || api.ErrorCode != codeConsumerFailed || time.Now().After(end) {
			break
		}
		pause(ctx, joinPause)
	}
	if errors.Is(err, jetstream.ErrConsumerExists) { // with other limits: somebody set them
		return nil
	}
	return q.fault(ctx, "create consumer of import "+importID, err)
}

func (q *Queue) deleteConsumer(ctx context.Context, importID string) error {
	failpoint("consumer-delete-before")
	err := q.ask(ctx, func(c context.Context) error { return q.jobs.DeleteConsumer(c, consumerName(importID)) })
	failpoint("consumer-delete-after")
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil
	}
	return q.fault(ctx, "delete consumer of import "+importID, err)
}

// Pending counts the jobs of an import that wait, and those that are in hand: delivered and not settled yet, or put
// back and not due yet. After a crash some of them can have a result: see [Queue.Settled]. Both are 0 before the import
// is enqueued and after it is complete. The error wraps [ErrNoImport] when it was never begun.
//
// A consumer that is missing while there are jobs is made anew: a process can be killed between taking it down and
// making it again.
func (q *Queue) Pending(ctx context.Context, importID string) (pending, inHand int64, err error) {
	info, err := q.consumerInfo(ctx, importID)
	if err != nil {
		return 0, 0, err
	}
	if info == nil {
		return q.pendingWithoutConsumer(ctx, importID)
	}
	return int64(info.NumPending), int64(info.NumAckPending), nil
}

// consumerInfo says how an import's consumer is; nil when there is none.
func (q *Queue) consumerInfo(ctx context.Context, importID string) (*jetstream.ConsumerInfo, error) {
	var consumer jetstream.Consumer
	err := q.ask(ctx, func(c context.Context) (err error) {
		consumer, err = q.jobs.Consumer(c, consumerName(importID))
		return err
	})
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, q.fault(ctx, "count jobs of import "+importID, err)
	}
	return consumer.CachedInfo(), nil // of a moment ago: asking for the consumer brought it
}

func (q *Queue) pendingWithoutConsumer(ctx context.Context, importID string) (pending, inHand int64, err error) {
	i, err := q.Import(ctx, importID)
	if err != nil || i.State.Over() {
		return 0, 0, err
	}
	left, err := q.onStream(ctx, importID)
	if err != nil || left == 0 {
		return 0, 0, err
	}
	return left, 0, q.makeConsumer(ctx, i.ID, 0)
}

// makeConsumer makes the consumer of an import if it is not there, paused if the import is; see createConsumer.
func (q *Queue) makeConsumer(ctx context.Context, id string, from uint64) error {
	if err := q.createConsumer(ctx, id, from); err != nil {
		return err
	}
	i, err := q.Import(ctx, id) // whoever pauses an import notes that first
	if err != nil || !i.Paused {
		return err
	}
	return q.fault(ctx, "pause import "+id, q.ask(ctx, func(c context.Context) error { return q.pauseConsumer(c, id) }))
}

// A Source gives the jobs of some imports, or of all, in fair turns. It is not safe for concurrent use.
type Source struct {
	q    *Queue
	only []string // nil = every import

	imports []string // that have a consumer
	listed  time.Time
	quiet   map[string]time.Time // until when an import that had no jobs is left alone
	turn    int                  // grows, so that another import is asked first each time

	sub   *nats.Subscription
	msgs  chan *nats.Msg // what comes on sub
	inbox string
	pulls uint64 // each pull is answered on a subject of its own
}

// Source gives the jobs of the imports named; of every import there is or will be when none is named. An import need
// not be there yet.
func (q *Queue) Source(imports ...string) *Source {
	return &Source{q: q, only: slices.Clone(imports)}
}

// Fetch gives up to limit jobs; a limit below 1 counts as 1, and one above 1,000 as that. It waits for the first one,
// and comes back without any and without an error when none came for a quarter of a second or two, so that the caller can look
// whether all is done. It takes turns: an import with a million jobs waiting does not keep one with three from being
// done.
//
// Nothing is fetched ahead: what Fetch returns is all that this process has in hand. When ctx ends, its error comes
// back within a quarter of a second, and jobs that came in that time are handed back. Trouble with the connection is an
// error that wraps [ErrUnreachable], after a while in which it may have mended itself.
func (s *Source) Fetch(ctx context.Context, limit int) ([]*Delivery, error) {
	limit = min(max(limit, 1), maxFetch)
	for end := time.Now().Add(fetchWait); ; {
		got, err := s.fetch(ctx, limit)
		if ctx.Err() != nil {
			s.handBack(got)
			return nil, context.Cause(ctx)
		}
		if len(got) > 0 {
			failpoint("fetch-after")
			return got, nil // what is wrong, if anything, will be so the next time
		}
		if err != nil {
			if unreachable(err) {
				pause(ctx, longWait)
			}
			return nil, s.q.fault(ctx, "fetch jobs", err)
		}
		if !time.Now().Before(end) {
			return nil, nil
		}
		if s.listed.IsZero() { // a consumer was not there; the list will tell, but it is no reason to hurry
			pause(ctx, longWait)
		}
	}
}

// fetch asks every import once, and those that had more than their share again.
func (s *Source) fetch(ctx context.Context, limit int) ([]*Delivery, error) {
	if err := s.prepare(ctx); err != nil {
		return nil, err
	}
	if len(s.imports) == 0 {
		pause(ctx, longWait)
		return nil, nil
	}
	s.turn = (s.turn + 1) % len(s.imports)
	if len(s.imports) == 1 {
		got, _, err := s.pull(s.imports, limit, longWait)
		return got, err
	}
	now := time.Now()
	line := slices.DeleteFunc(slices.Concat(s.imports[s.turn:], s.imports[:s.turn]), func(id string) bool {
		return now.Before(s.quiet[id])
	})
	var got []*Delivery
	for len(line) > 0 && len(got) < limit && ctx.Err() == nil {
		asked := line[:min(len(line), limit-len(got))]
		line = line[len(asked):]
		more, full, err := s.pull(asked, limit-len(got), shortWait)
		got = append(got, more...)
		if err != nil {
			return got, err
		}
		line = append(line, full...)
	}
	if len(got) > 0 || ctx.Err() != nil {
		return got, nil
	}
	got, _, err := s.pull(s.imports[s.turn:s.turn+1], limit, longWait)
	return got, err
}

// prepare makes sure that there is a connection, a subject to be answered on, and a fresh list of imports.
func (s *Source) prepare(ctx context.Context) error {
	if s.sub == nil {
		inbox := s.q.nc.NewInbox()
		// A pull brings at most maxFetch jobs, and one last word from each consumer asked: the library drops what does
		// not fit.
		msgs := make(chan *nats.Msg, 2*maxFetch)
		sub, err := s.q.nc.ChanSubscribe(inbox+".*", msgs)
		if err != nil {
			return err
		}
		s.sub, s.msgs, s.inbox = sub, msgs, inbox
	}
	if time.Since(s.listed) < listEvery {
		return nil
	}
	imports, err := s.list(ctx)
	if err != nil {
		return err
	}
	s.imports, s.listed, s.quiet = imports, time.Now(), make(map[string]time.Time)
	s.turn = min(s.turn, max(len(imports)-1, 0))
	return nil
}

// list names the imports that can have jobs: those with a consumer.
func (s *Source) list(ctx context.Context) ([]string, error) {
	c, cancel := s.q.within(ctx)
	defer cancel()
	var imports []string
	names := s.q.jobs.ConsumerNames(c)
	for name := range names.Name() {
		id, ok := importOf(name)
		if ok && (len(s.only) == 0 || slices.Contains(s.only, id)) {
			imports = append(imports, id)
		}
	}
	slices.Sort(imports)
	return imports, names.Err()
}

// pullRequest asks a consumer for what it has at once, up to Batch, and if it has nothing, for the first that comes
// before Expires, in nanoseconds, is over.
type pullRequest struct {
	Batch   int           `json:"batch"`
	Expires time.Duration `json:"expires"`
	NoWait  bool          `json:"no_wait"`
}

// pull asks the consumers of the imports at once, each for an equal share of limit, which is not below their number.
// It returns when all have answered. full are the imports that may have more than their share.
func (s *Source) pull(imports []string, limit int, wait time.Duration) (got []*Delivery, full []string, err error) {
	left := make(map[string]int, len(imports))       // import → jobs it may still send
	answers := make(map[string]string, len(imports)) // subject → import
	for i, id := range imports {
		left[id] = limit / len(imports)
		if i < limit%len(imports) {
			left[id]++
		}
		s.pulls++
		reply := s.inbox + "." + strconv.FormatUint(s.pulls, 36)
		answers[reply] = id
		body, err := json.Marshal(pullRequest{Batch: left[id], Expires: wait, NoWait: true})
		if err != nil {
			return nil, nil, err
		}
		if err := s.q.nc.PublishRequest(s.q.nextSubject(id), reply, body); err != nil {
			return nil, nil, err
		}
	}
	// The caller's context is no reason to stop listening: a job may be on its way.
	c, cancel := s.q.withinTime(context.Background(), wait+opTimeout)
	defer cancel()
	for len(left) > 0 {
		var m *nats.Msg
		select {
		case m = <-s.msgs:
		case <-c.Done():
			late, err := s.late(c)
			return append(got, late...), full, errors.Join(c.Err(), err)
		}
		status := m.Header.Get("Status")
		if status == "" {
			d, err := newDelivery(s.q, m)
			if err != nil {
				return got, full, err
			}
			got = append(got, d)
			if left[d.importID]--; left[d.importID] == 0 {
				full = append(full, d.importID)
				delete(left, d.importID)
			}
			continue
		}
		id, ok := answers[m.Subject]
		if !ok {
			continue
		}
		delete(left, id)
		switch status {
		case "404", "408": // no more jobs for now
			s.quiet[id] = time.Now().Add(longWait)
		case "409", "503": // the consumer is gone, or cannot answer now; the list tells
			s.listed = time.Time{}
		default:
			return got, full, fmt.Errorf("import %s: status %s %s", id, status, m.Header.Get("Description"))
		}
	}
	return got, full, nil
}

// late gives up a pull whose time, c, is over, and gives the jobs that have come all the same: a process that was stopped
// for a while, or its machine, finds them on its connection.
func (s *Source) late(c context.Context) (got []*Delivery, err error) {
	if errors.Is(c.Err(), context.DeadlineExceeded) {
		_ = s.q.nc.FlushTimeout(lateWait) // what was sent to this process before the answer is in msgs then
	}
	// What comes yet would pass for the answer to the next pull.
	_ = s.sub.Unsubscribe()
	s.sub = nil
	for {
		select {
		case m := <-s.msgs:
			if m.Header.Get("Status") != "" {
				continue
			}
			d, err := newDelivery(s.q, m)
			if err != nil {
				return got, err
			}
			got = append(got, d)
		default:
			return got, nil
		}
	}
}

// nextSubject is where an import's consumer takes requests for jobs.
func (q *Queue) nextSubject(importID string) string {
	return q.apiPrefix + "CONSUMER.MSG.NEXT." + q.jobsStream() + "." + consumerName(importID)
}

// handBack makes jobs that nobody waits for any more available at once.
func (s *Source) handBack(ds []*Delivery) {
	for _, d := range ds {
		_ = s.q.nc.Publish(d.reply, []byte(nak)) // if it does not arrive, the ack wait does the same later
	}
}

// A Delivery is one job in hand. Its worker settles it with Ack or Nak, and until then says [Delivery.Working] well
// within every minute, or the job is given to another one. None of the three proves that the job was still this
// worker's: what must not happen twice is guarded by [Queue.PutResult].
type Delivery struct {
	q        *Queue
	importID string
	data     []byte
	reply    string
	sequence uint64
}

func newDelivery(q *Queue, m *nats.Msg) (*Delivery, error) {
	meta, err := m.Metadata()
	if err != nil {
		return nil, fmt.Errorf("delivery: %w", err)
	}
	importID, ok := importOf(meta.Consumer)
	if !ok {
		return nil, fmt.Errorf("delivery of consumer %s: no import has such a one", meta.Consumer)
	}
	return &Delivery{
		q:        q,
		importID: importID,
		data:     m.Data,
		reply:    m.Reply,
		sequence: meta.Sequence.Stream,
	}, nil
}

// Import is the ID of the import that the job belongs to; known even when the job cannot be read.
func (d *Delivery) Import() string { return d.importID }

// Data is the job as it stands on the stream.
func (d *Delivery) Data() []byte { return d.data }

// Sequence is the job's place on the stream; it is the same for every delivery of it.
func (d *Delivery) Sequence() uint64 { return d.sequence }

// Job decodes the job. The error wraps job.ErrVersion when a newer binary wrote it.
func (d *Delivery) Job() (job.Job, error) {
	j, err := job.Decode(d.data)
	if err == nil && j.Import != d.importID {
		err = fmt.Errorf("decode job: it says import %s and stands under %s", j.Import, d.importID)
	}
	return j, err
}

// What a worker can say about a delivery, as JetStream spells it.
const (
	ack     = "+ACK"
	nak     = "-NAK"
	working = "+WPI"
)

// Ack says that the job has its result. If that gets lost the job is delivered again; it can be said again after an
// error.
//
// The server does not answer. It forgets what it was told in its last moments when it is killed, so an answer would be
// worth nothing. On a jobs stream of schema 1 it deletes the job, and answers when it has.
func (d *Delivery) Ack(ctx context.Context) error {
	failpoint("ack-before")
	failInside("ack-inside")
	defer failpoint("ack-after")
	if !d.q.keeps {
		return d.say(ctx, "ack", ack)
	}
	return d.fault(ctx, "ack", d.q.nc.Publish(d.reply, []byte(ack)))
}

// Nak puts the job back, to be delivered again after delay, to whoever asks then.
func (d *Delivery) Nak(ctx context.Context, delay time.Duration) error {
	if delay <= 0 {
		return d.say(ctx, "put back", nak)
	}
	return d.say(ctx, "put back", fmt.Sprintf(`%s {"delay": %d}`, nak, delay.Nanoseconds()))
}

// Working tells that the job is still being worked on: it is this worker's for another minute.
func (d *Delivery) Working(ctx context.Context) error { return d.say(ctx, "keep", working) }

func (d *Delivery) say(ctx context.Context, doing, what string) error {
	c, cancel := d.q.within(ctx)
	defer cancel()
	_, err := d.q.nc.RequestWithContext(c, d.reply, []byte(what))
	return d.fault(ctx, doing, err)
}

func (d *Delivery) fault(ctx context.Context, doing string, err error) error {
	if err == nil {
		return nil
	}
	return d.q.fault(ctx, fmt.Sprintf("%s job %d of import %s", doing, d.sequence, d.importID), err)
}

// Reclaim makes the jobs available that are in hand, of all imports: for whoever knows that those who had them are dead,
// and does not want to wait for their ack wait to end. Jobs that were put back for later become due as well.
func (q *Queue) Reclaim(ctx context.Context) error {
	all, err := q.Imports(ctx)
	if err != nil {
		return err
	}
	for _, i := range all {
		if i.State.Over() {
			continue
		}
		info, err := q.consumerInfo(ctx, i.ID)
		if err != nil {
			return err
		}
		if info == nil || info.NumAckPending == 0 {
			continue
		}
		// A new consumer gives each job that is left once. Up to the floor all were acknowledged, and after it some: those
		// are found to have a result. On a stream of schema 1 what was acknowledged is gone.
		from := uint64(0)
		if q.keeps {
			from = info.AckFloor.Stream + 1
		}
		failpoint("reclaim-before")
		if err := q.deleteConsumer(ctx, i.ID); err != nil {
			return err
		}
		failpoint("reclaim-between")
		if err := q.makeConsumer(ctx, i.ID, from); err != nil {
			return err
		}
		failpoint("reclaim-after")
	}
	return nil
}
