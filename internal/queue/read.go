package queue

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A batchReader reads messages of a stream by direct gets, many with each request. Any server that has a copy of the
// stream answers, and one that lags behind answers with less. It is not safe for concurrent use.
type batchReader struct {
	q       *Queue
	subject string // that takes the requests

	sub   *nats.Subscription
	inbox string
	asked uint64 // each request is answered on a subject of its own
}

// A stored is a message that was read.
type stored struct {
	*nats.Msg
	seq uint64
}

func (q *Queue) newBatchReader(stream string) *batchReader {
	return &batchReader{q: q, subject: q.conn.APIPrefix() + "DIRECT.GET." + stream}
}

func (r *batchReader) close() {
	if r.sub != nil {
		_ = r.sub.Unsubscribe() // it fails with a connection that is gone, and is gone with it
		r.sub = nil
	}
}

// getBatch is the server's request for several messages.
type getBatch struct {
	Seq      uint64 `json:"seq"`
	NextFor  string `json:"next_by_subj"`
	Batch    int    `json:"batch"`
	MaxBytes int    `json:"max_bytes"`
}

// read gives the first messages with that subject from seq on: up to most, or fewer that reach maxBytes together, but one
// at least if there is one. What was read is given with an error as well, and is right.
func (r *batchReader) read(ctx context.Context, seq uint64, subject string, most, maxBytes int) ([]stored, error) {
	nc := r.q.conn.NATS()
	if r.sub == nil {
		inbox := nc.NewInbox()
		sub, err := nc.SubscribeSync(inbox + ".*")
		if err != nil {
			return nil, err
		}
		r.sub, r.inbox = sub, inbox
	}
	body, err := json.Marshal(getBatch{max(seq, 1), subject, most, maxBytes})
	if err != nil {
		return nil, err
	}
	r.asked++
	reply := r.inbox + "." + strconv.FormatUint(r.asked, 36)
	ctx, cancel := r.q.conn.Within(ctx, requestTime)
	defer cancel()
	if err := nc.PublishRequest(r.subject, reply, body); err != nil {
		return nil, err
	}
	var got []stored
	for {
		m, err := r.sub.NextMsgWithContext(ctx)
		if err != nil {
			return got, err
		}
		if m.Subject != reply { // the rest of an answer that was given up
			continue
		}
		if status := m.Header.Get("Status"); status != "" && len(m.Data) == 0 {
			switch status {
			case "204", "404": // the end of the answer; nothing there
				return got, nil
			case "503":
				return got, nats.ErrNoResponders
			}
			return got, fmt.Errorf("direct get: status %s %s", status, m.Header.Get("Description"))
		}
		n, err := strconv.ParseUint(m.Header.Get(jetstream.SequenceHeader), 10, 64)
		if err != nil {
			return got, fmt.Errorf("direct get: %w", err)
		}
		got = append(got, stored{m, n})
	}
}
