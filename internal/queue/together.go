package queue

import (
	"context"
	"strconv"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
)

// A commit costs the server about what 30 single writes do, for it keeps the messages aside in files of their own first,
// and little more for each result in it.
const (
	minTogether = 32
	maxTogether = 512
)

// A together writes results in groups, for a server that syncs every write takes as long to sync one as it takes to sync
// many. What comes while a commit is on its way waits and makes the next one; what comes when there is none goes out at
// once.
//
//	put ──► waiting ──┐                      ┌──► answer to each
//	put ──► waiting ──┼──► atomic batch ─────┤
//	put ──► waiting ──┘    one at a time     └──► refused: each by itself
//
// A batch is refused as a whole if one of its results is not the next one of its job. Then, and whenever no answer
// came, each is put by itself, which tells what became of it.
type together struct {
	q       *Queue
	batches bool // the stream takes them

	mu      sync.Mutex
	waiting []*waitingPut
	busy    bool // somebody is committing
	running sync.WaitGroup
}

type waitingPut struct {
	ctx  context.Context
	msg  *nats.Msg
	seq  uint64 // of the result that it replaces
	done chan error
}

// put writes a result if the last one of its subject has the given sequence.
func (t *together) put(ctx context.Context, m *nats.Msg, seq uint64) error {
	if !t.batches {
		return t.single(ctx, m, seq)
	}
	p := &waitingPut{ctx, m, seq, make(chan error, 1)}
	t.mu.Lock()
	t.waiting = append(t.waiting, p)
	if !t.busy {
		t.busy = true
		t.running.Go(t.work)
	}
	t.mu.Unlock()
	select {
	case err := <-p.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// work commits until nothing waits.
func (t *together) work() {
	for {
		t.mu.Lock()
		n, size := 0, 0
		for n < min(len(t.waiting), maxTogether) && size < maxBatchBytes {
			size += len(t.waiting[n].msg.Data)
			n++
		}
		group := t.waiting[:n:n]
		t.waiting = t.waiting[n:]
		if n == 0 {
			t.busy, t.waiting = false, nil
			t.mu.Unlock()
			return
		}
		t.mu.Unlock()
		t.commit(group)
	}
}

func (t *together) commit(group []*waitingPut) {
	if len(group) >= minTogether && t.batch(group) == nil {
		for _, p := range group {
			p.done <- nil
		}
		return
	}
	var puts sync.WaitGroup
	for _, p := range group {
		puts.Go(func() { p.done <- t.single(p.ctx, p.msg, p.seq) })
	}
	puts.Wait()
}

func (t *together) batch(group []*waitingPut) error {
	ctx, cancel := t.q.within(context.Background())
	defer cancel()
	messages := make([]*nats.Msg, len(group))
	seen := make(map[string]bool, len(group))
	for i, p := range group {
		if seen[p.msg.Subject] { // the second one has to wait for the first one's sequence
			return jetstreamext.ErrInvalidBatchAck
		}
		seen[p.msg.Subject] = true
		header := make(nats.Header, len(p.msg.Header)+4)
		for name, values := range p.msg.Header {
			header[name] = values
		}
		header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(p.seq, 10))
		messages[i] = &nats.Msg{Subject: p.msg.Subject, Data: p.msg.Data, Header: header}
	}
	_, err := jetstreamext.PublishMsgBatch(ctx, t.q.js, messages)
	return err
}

func (t *together) single(ctx context.Context, m *nats.Msg, seq uint64) error {
	_, err := t.q.js.PublishMsg(ctx, m, jetstream.WithExpectLastSequencePerSubject(seq))
	return err
}
