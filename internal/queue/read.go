package queue

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A batchReader reads messages of a stream by direct gets, many with each request. Any server with a copy of the stream
// may respond; one that lags behind returns less. A batchReader is not safe for concurrent use.
type batchReader struct {
	q       *Queue
	subject string // of the requests

	sub   *nats.Subscription
	inbox string
	asked uint64 // each request has a reply subject of its own
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
		_ = r.sub.Unsubscribe() // it fails only when the connection is gone, and the subscription with it
		r.sub = nil
	}
}

// getBatch is the server's request for several messages.
type getBatch struct {
	Seq      uint64 `json:"seq"`
	NextFor  string `json:"next_by_subj,omitempty"`
	Batch    int    `json:"batch,omitempty"`
	MaxBytes int    `json:"max_bytes,omitempty"`
}

// read returns the first messages with that subject from seq on; an empty subject means any. It returns up to most
// messages, or fewer if they reach maxBytes together, but at least one if there is one. With an error it returns what
// it has read until then, which is correct.
//
// With a subject the server counts the remaining messages for each request. For that it scans half of the stream: 0.1 s
// with 500,000 messages. So use readRun to read many messages.
func (r *batchReader) read(ctx context.Context, seq uint64, subject string, most, maxBytes int) ([]stored, error) {
	return r.get(ctx, getBatch{max(seq, 1), subject, most, maxBytes})
}

// next returns the first message with that subject from seq on; a sequence of 0 means that there is none.
func (r *batchReader) next(ctx context.Context, seq uint64, subject string) (stored, error) {
	got, err := r.get(ctx, getBatch{Seq: max(seq, 1), NextFor: subject})
	if err != nil || len(got) == 0 {
		return stored{}, err
	}
	return got[0], nil
}

// readRun returns messages with that subject from seq on and before end: up to most, or fewer if they reach maxBytes
// together. It also reads the messages of other subjects between them. It has seen all messages before next. Jump means
// that many messages of other subjects may come first, which are skipped; jumpNext is the value for the next call.
func (r *batchReader) readRun(
	ctx context.Context, seq, end uint64, subject string, most, maxBytes int, jump bool,
) (got []stored, next uint64, jumpNext bool, err error) {
	if jump {
		first, err := r.next(ctx, seq, subject)
		if err != nil || first.seq == 0 {
			return nil, seq, true, err
		}
		if seq = first.seq; seq >= end {
			return nil, end, true, nil
		}
	}
	all, err := r.read(ctx, seq, "", min(most, int(min(end-seq, maxGroup))), maxBytes)
	for _, m := range all {
		if m.seq >= end {
			return got, end, true, nil
		}
		seq = m.seq + 1
		if jumpNext = m.Header.Get(jetstream.SubjectHeader) != subject; !jumpNext {
			got = append(got, m)
		}
	}
	return got, seq, jumpNext, err
}

func (r *batchReader) get(ctx context.Context, request getBatch) ([]stored, error) {
	nc := r.q.conn.NATS()
	if r.sub == nil {
		inbox := nc.NewInbox()
		sub, err := nc.SubscribeSync(inbox + ".*")
		if err != nil {
			return nil, err
		}
		r.sub, r.inbox = sub, inbox
	}
	body, err := json.Marshal(request)
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
		if m.Subject != reply { // a late message of an earlier request
			continue
		}
		if status := m.Header.Get("Status"); status != "" && len(m.Data) == 0 {
			switch status {
			case "204", "404": // end of the messages; no message
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
		if request.Batch == 0 {
			return got, nil
		}
	}
}
