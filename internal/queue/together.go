package queue

import (
	"context"
	"encoding/json"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
)

const (
	// minTogether is from how many results on a commit is worth it: it costs the server what a handful of single writes
	// do, for it keeps the messages aside in a file of their own first, and little more for each result in it.
	minTogether = 8
	maxTogether = 512

	// While they come by the dozen a commit waits a little for more: half of what 256 jobs in hand can have at most.
	enoughTogether = 128
	togetherWait   = 20 * time.Millisecond

	// maxLookups keeps the request below 100 KB; the server answers up to 1,024 subjects.
	maxLookups = 512
)

// A waitingPut is a result on its way: the next one of its job if that has the sequence seq.
type waitingPut struct {
	ctx  context.Context
	msg  *nats.Msg
	seq  uint64
	done chan error
}

// put writes a result if the last one of its subject has the given sequence.
//
// Results are written in groups, for a server that syncs every write takes as long to sync one as it takes to sync
// many. A group is an atomic batch, and is refused as a whole if one of its results is not the next one of its job.
// Then, and whenever no answer came, each is put by itself, which tells what became of it.
func (q *Queue) put(ctx context.Context, m *nats.Msg, seq uint64) error {
	if !q.batches {
		return q.putSingle(ctx, m, seq)
	}
	p := &waitingPut{ctx, m, seq, make(chan error, 1)}
	q.puts.add(p)
	select {
	case err := <-p.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (q *Queue) commit(group []*waitingPut) {
	if len(group) >= minTogether && q.putBatch(group) == nil {
		for _, p := range group {
			p.done <- nil
		}
		return
	}
	var puts sync.WaitGroup
	for _, p := range group {
		puts.Go(func() { p.done <- q.putSingle(p.ctx, p.msg, p.seq) })
	}
	puts.Wait()
}

func (q *Queue) putBatch(group []*waitingPut) error {
	ctx, cancel := q.within(context.Background())
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
	_, err := jetstreamext.PublishMsgBatch(ctx, q.js, messages)
	return err
}

func (q *Queue) putSingle(ctx context.Context, m *nats.Msg, seq uint64) error {
	c, cancel := q.within(ctx)
	defer cancel()
	_, err := q.js.PublishMsg(c, m, jetstream.WithExpectLastSequencePerSubject(seq))
	return err
}

// A lookup asks whether there is a result on a subject.
type lookup struct {
	subject string
	none    chan bool
}

// last reads the newest result on a subject; the error is ErrMsgNotFound when there is none.
//
// Every delivery of every job asks, and nearly none has one. So those that ask at the same time are asked about in one
// request, and only where one of them has a result, or no answer came, each is asked about by itself.
func (q *Queue) last(ctx context.Context, subject string) (*jetstream.RawStreamMsg, error) {
	l := &lookup{subject, make(chan bool, 1)}
	q.lookups.add(l)
	select {
	case none := <-l.none:
		if none {
			return nil, jetstream.ErrMsgNotFound
		}
		c, cancel := q.within(ctx)
		defer cancel()
		return q.results.GetLastMsgForSubject(c, subject)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (q *Queue) lookUp(group []*lookup) {
	ctx, cancel := q.within(context.Background())
	defer cancel()
	none, err := q.noneOf(ctx, group)
	for _, l := range group {
		l.none <- none && err == nil
	}
}

// lastRequest asks for the newest message of each subject, up to Batch of them.
type lastRequest struct {
	Subjects []string `json:"multi_last"`
	Batch    int      `json:"batch"`
}

// noneOf tells whether no subject has a result. The server answers with a status for nothing when that is so, and else
// with a message first, which is as much as is heard of its answer.
func (q *Queue) noneOf(ctx context.Context, group []*lookup) (bool, error) {
	ask := lastRequest{make([]string, len(group)), 1}
	for i, l := range group {
		ask.Subjects[i] = l.subject
	}
	body, err := json.Marshal(ask)
	if err != nil {
		return false, err
	}
	m, err := q.nc.RequestWithContext(ctx, q.apiPrefix+"DIRECT.GET."+q.resultsStream(), body)
	if err != nil {
		return false, err
	}
	return m.Header.Get("Status") == "404" && m.Header.Get("Description") == "No Results", nil
}
