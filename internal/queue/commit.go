package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"groupferry/internal/broker"
	"groupferry/internal/clock"
)

const (
	// groupEvery is the time between the starts of two groups while few results come: a server that syncs every write
	// takes as long for one result as for a hundred.
	groupEvery = 100 * time.Millisecond

	// fullGroup results are written without waiting for more. It is an eighth of maxOpen, so that calls need not stop.
	fullGroup = 256

	// maxGroup and maxGroupBytes bound a group. The server takes 1,000 messages in a batch.
	maxGroup      = 900
	maxGroupBytes = 4 << 20

	// repeatWait is the pause before a group without a response is sent again; it doubles up to repeatMax.
	repeatWait = 50 * time.Millisecond
	repeatMax  = time.Second
)

const (
	// jobSequenceHeader has the sequence of the job on the jobs stream. No two results may have the same.
	jobSequenceHeader = "Groupferry-Job-Sequence"

	// replacesHeader has the sequence of the result that a retry's result replaces.
	replacesHeader = "Groupferry-Replaces"
)

// A waitingResult waits to be written.
type waitingResult struct {
	e     *entry
	kind  string // done, partial or failed
	data  []byte
	share share

	prior      uint64 // sequence of the result that it replaces, 0 for none
	priorShare *share // what that result added to the counts; nil while unknown

	unreadable bool // its job could not be read
}

// A group is written together: for each of its imports the results and then the state.
//
//	import A: result result result state   import B: result state   …
//	└─ if the stream ends where it is expected to end                │
//	                                              all or nothing ◄───┘
type group struct {
	number uint64
	parts  []part
}

// A part of a group is about one import.
type part struct {
	of      *active
	results []*waitingResult
	state   state
}

// results returns the number of results in the group.
func (g *group) results() (n int) {
	for _, p := range g.parts {
		n += len(p.results)
	}
	return n
}

// commitResults writes groups until ctx ends or another leader takes over.
func (t *Term) commitResults(ctx context.Context) error {
	var last time.Time
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		ready, urgent, err := t.toWrite()
		if err != nil {
			return err
		}
		if wait := groupEvery - time.Since(last); ready && (urgent || wait <= 0) {
			last = time.Now()
			if err := t.writeGroup(ctx); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				return err
			}
			continue
		} else if ready {
			timer.Reset(wait)
		}
		select {
		case <-t.commitKick:
		case <-timer.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// toWrite reports whether there is something to write, and whether it is urgent. The error says why the term has ended.
func (t *Term) toWrite() (ready, urgent bool, ended error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended != nil {
		return false, false, t.ended
	}
	if t.sent != nil || len(t.waiting) >= fullGroup {
		return true, true, nil
	}
	for _, a := range t.d.imports {
		if a.stateWant || a.lastResultIn() {
			return true, true, nil
		}
	}
	return len(t.waiting) > 0, false, nil
}

// writeGroup writes one group. It returns when the group is written or the term has to end.
func (t *Term) writeGroup(ctx context.Context) error {
	for wait := repeatWait; ; wait = min(2*wait, repeatMax) {
		err := t.tryGroup(ctx)
		switch {
		case err == nil:
			t.sent = nil
			t.reportWaiting(nil)
			return nil
		case errors.Is(err, ErrSuperseded):
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		if t.cfg.OnWriteError != nil {
			t.cfg.OnWriteError()
		}
		t.reportWaiting(err)
		if !clock.Pause(ctx, wait) {
			return context.Cause(ctx)
		}
	}
}

// tryGroup makes a group if there is none, and sends it until it is written. After an error it may or may not be
// written.
func (t *Term) tryGroup(ctx context.Context) error {
	if t.sent == nil {
		if err := t.loadPriors(ctx); err != nil {
			return err
		}
		t.mu.Lock()
		t.sent = t.nextGroup(time.Now())
		t.mu.Unlock()
	}
	for len(t.sent.parts) > 0 {
		broker.Failpoint("group-before")
		broker.FailInside("group-inside")
		end, err := t.send(ctx, t.sent)
		if err == nil {
			broker.Failpoint("group-after")
			t.written(t.sent, end)
			return nil
		}
		if !broker.LostRace(err) {
			return err
		}
		if written, err := t.resolve(ctx); written || err != nil {
			return err
		}
	}
	return nil
}

// reportWaiting reports once that results cannot be written, and once that they can again.
func (t *Term) reportWaiting(err error) {
	if (err != nil) == t.reported {
		return
	}
	t.reported = err != nil
	if err != nil {
		t.warned = t.q.conn.LogRetry("results cannot be written; trying again", err)
	} else if t.warned {
		t.log.Info("results are being written again")
	}
	if t.cfg.OnWaiting != nil {
		t.cfg.OnWaiting(err)
	}
}

// nextGroup makes a group of the waiting results. The lock is held.
func (t *Term) nextGroup(now time.Time) *group {
	t.groups++
	g := &group{number: t.groups}
	index := make(map[*active]int)
	partOf := func(a *active) *part {
		i, ok := index[a]
		if !ok {
			i = len(g.parts)
			index[a] = i
			g.parts = append(g.parts, part{of: a})
		}
		return &g.parts[i]
	}
	n, size := 0, 0
	for _, a := range t.d.imports {
		if a.stateWant && len(g.parts) < maxGroup/2 {
			partOf(a)
		}
	}
	for n < len(t.waiting) {
		r := t.waiting[n]
		if n > 0 && (size+len(r.data) > maxGroupBytes || n+1+len(g.parts)+1 > maxGroup) {
			break
		}
		if r.prior != 0 && r.priorShare == nil { // the result arrived after the priors were loaded
			break
		}
		p := partOf(r.e.of)
		p.results = append(p.results, r)
		size += len(r.data)
		n++
	}
	clear(t.waiting[:n:n])
	if t.waiting = t.waiting[n:]; len(t.waiting) == 0 {
		t.waiting = nil
	}
	for i := range g.parts {
		t.makeState(&g.parts[i], g.number, now)
	}
	return g
}

// makeState makes the state of an import as of when the results of the part are written. The lock is held.
func (t *Term) makeState(p *part, number uint64, now time.Time) {
	a := p.of
	a.stateWant = false
	s := state{
		Term: t.cfg.Term, Marker: t.marker, Group: number, Incarnation: a.incarnation, Generation: a.generation,
		Counts: a.counts, Handed: a.handed, Unreadable: a.unreadable, Next: a.next, At: now.UTC().Round(0),
	}
	done := make(map[uint64]bool, len(p.results))
	for _, r := range p.results {
		done[r.e.seq] = true
		s.Counts.Results++
		s.Counts.add(r.share, 1)
		if r.priorShare != nil {
			s.Counts.add(*r.priorShare, -1)
		}
		if r.unreadable {
			s.Unreadable++
		}
		s.Counts.LastResult = s.At
	}
	unfinished := make(map[uint64]bool, len(a.open))
	for seq, e := range a.open {
		if done[seq] {
			continue
		}
		unfinished[seq] = true
		for len(s.Crashes) < e.crashes {
			s.Crashes = append(s.Crashes, sequences{})
		}
		if e.crashes > 0 {
			s.Crashes[e.crashes-1] = append(s.Crashes[e.crashes-1], seq)
		}
	}
	s.Unfinished = sortedKeys(unfinished)
	for _, c := range s.Crashes {
		slices.Sort(c)
	}
	// Allow twice of what was handed out since the last state, so that the committer sets the pace. Never allow less
	// than the last state did: that one holds as long as it is unknown whether this one was written.
	s.Ahead = min(max(2*(a.handed-a.stated), minAhead), maxAhead)
	s.Ahead = max(s.Ahead, a.limit-a.handed)
	a.stated = a.handed
	a.rate.add(now, len(p.results))
	s.Rate, s.RateOver = a.rate.perSecond(now)
	if s.Closed = t.closing; s.Closed {
		s.Ahead = max(a.maybeHanded-a.handed, 0)
	} else {
		s.Trial, s.InFlight, s.Requeued = a.trial, a.inFlight, a.requeued()
	}
	p.state = s
}

// messages makes the messages of a group. They are written only if the stream ends at expected.
func (t *Term) messages(g *group, expected uint64) []*nats.Msg {
	msgs := make([]*nats.Msg, 0, g.results()+len(g.parts))
	for i := range g.parts {
		p := &g.parts[i]
		for _, r := range p.results {
			header := make(nats.Header, 5)
			header[jobSequenceHeader] = []string{strconv.FormatUint(r.e.seq, 10)}
			if r.prior != 0 {
				header[replacesHeader] = []string{strconv.FormatUint(r.prior, 10)}
			}
			msgs = append(msgs, &nats.Msg{Subject: t.q.resultSubject(p.of.id, r.kind), Header: header, Data: r.data})
		}
		msgs = append(msgs, &nats.Msg{
			Subject: t.q.resultSubject(p.of.id, stateKind), Data: p.state.encode(),
			Header: nats.Header{jetstream.MsgRollup: {jetstream.MsgRollupSubject}},
		})
	}
	msgs[0].Header[jetstream.ExpectedLastSeqHeader] = []string{strconv.FormatUint(expected, 10)}
	return msgs
}

// send writes a group if the stream ends where it is expected to, and returns the new end.
func (t *Term) send(ctx context.Context, g *group) (end uint64, err error) {
	ctx, cancel := t.q.conn.Within(ctx, requestTime)
	defer cancel()
	msgs := t.messages(g, t.expected)
	start := time.Now()
	if len(msgs) == 1 {
		ack, err := t.q.js.PublishMsg(ctx, msgs[0])
		if err != nil {
			return 0, cmp.Or(t.q.conn.Denied(start, err), err)
		}
		return ack.Sequence, nil
	}
	// Only the response to the last message matters.
	ack, err := jetstreamext.PublishMsgBatch(ctx, t.q.js, msgs, jetstreamext.BatchFlowControl{})
	if err != nil {
		return 0, cmp.Or(t.q.conn.Denied(start, err), err)
	}
	return ack.Sequence, nil
}

// written is called when a group is on the stream, which ends at end.
func (t *Term) written(g *group, end uint64) {
	t.expected = end
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range g.parts {
		p := &g.parts[i]
		a := p.of
		if a.gone {
			continue
		}
		for _, r := range p.results {
			t.d.written(r.e)
		}
		a.counts, a.unreadable = p.state.Counts, p.state.Unreadable
		a.limit = p.state.Handed + p.state.Ahead
		a.hold = false
		t.d.announced(a, p.state.Trial)
		t.maybeComplete(a)
	}
	t.dispatch()
}

// resolve finds out why the group was rejected: the stream does not end where it was expected to. After that the group
// is written, or is to be sent again without the imports that are over.
//
// A rejected group cannot be written any more: a stream never has the same end again.
func (t *Term) resolve(ctx context.Context) (written bool, err error) {
	// Read the end of the stream first: what is read later may be newer, but an import that ends later moves the end
	// again.
	end, err := t.q.resultsEnd(ctx)
	if err != nil {
		return false, err
	}
	if err := t.stillMine(ctx); err != nil {
		return false, err
	}
	// The group ends with the state of its last part. An end message of an import may follow it. So expect the stream
	// to end with that state: then the next group is rejected, and the records are read.
	own := uint64(0)
	for i := range t.sent.parts {
		p := &t.sent.parts[i]
		s, seq, err := t.q.lastState(ctx, p.of.id)
		if err != nil {
			return false, err
		}
		if s != nil && s.Marker == t.marker && s.Group >= t.sent.number {
			own = max(own, seq)
		}
	}
	if own > 0 {
		t.written(t.sent, own)
		return true, nil
	}
	if err := t.recheckAll(ctx); err != nil {
		return false, err
	}
	if end == t.expected { // a cluster rejects a group while it processes the same one
		clock.Pause(ctx, repeatWait)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	kept := t.sent.parts[:0]
	for _, p := range t.sent.parts {
		if !p.of.gone && !p.of.finishing { // the part of a finishing import has only a state
			kept = append(kept, p)
		}
	}
	t.sent.parts = kept
	t.expected = end
	return false, nil
}

// stillMine checks that there is no marker of a newer term.
func (t *Term) stillMine(ctx context.Context) error {
	_, seq, err := t.q.lastMarker(ctx)
	if err == nil && seq != t.marker {
		err = fmt.Errorf("term %d: %w", t.cfg.Term, ErrSuperseded)
	}
	return err
}

// loadPriors reads the results that the waiting ones replace, unless the worker has read them.
func (t *Term) loadPriors(ctx context.Context) error {
	t.mu.Lock()
	var need []*waitingResult
	for _, r := range t.waiting[:min(len(t.waiting), maxGroup)] {
		if r.prior != 0 && r.priorShare == nil {
			need = append(need, r)
		}
	}
	t.mu.Unlock()
	for _, r := range need {
		result, err := t.q.resultAt(ctx, r.e.of.id, r.prior)
		_, damaged := errors.AsType[*broker.DamagedError](err)
		if err != nil && !damaged {
			return err
		}
		s := shareOf(&result) // zero if there is no result to subtract
		t.mu.Lock()
		r.priorShare = &s
		if damaged {
			t.damage(r.e.of, err)
		}
		t.mu.Unlock()
	}
	return nil
}

// A meter measures a rate over the last minute.
type meter struct {
	start   time.Time
	seconds [60]int
	at      int64 // the last second that was counted, since start
	sum     int
}

func (m *meter) add(now time.Time, n int) {
	if m.start.IsZero() {
		m.start = now
	}
	second := max(int64(now.Sub(m.start)/time.Second), m.at)
	if second-m.at >= int64(len(m.seconds)) { // such as in a pause, which says nothing about what comes after it
		*m, second = meter{start: now}, 0
	}
	for m.at < second {
		m.at++
		i := m.at % int64(len(m.seconds))
		m.sum -= m.seconds[i]
		m.seconds[i] = 0
	}
	m.seconds[m.at%int64(len(m.seconds))] += n
	m.sum += n
}

// perSecond returns the mean over the last minute, or since the first call of add, or since the first one after a minute
// without any, if that is less than a minute ago; and how many seconds that is.
func (m *meter) perSecond(now time.Time) (rate, seconds float64) {
	m.add(now, 0)
	seconds = min(max(now.Sub(m.start).Seconds(), 1), 60)
	return float64(m.sum) / seconds, seconds
}
