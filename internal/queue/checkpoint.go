package queue

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"groupferry/internal/broker"
	"groupferry/internal/job"
)

// checkpointVersion is the version of a checkpoint that this package writes, and the newest that it reads.
const checkpointVersion = 1

// A checkpoint says how much of one generation of an import is on the jobs stream. It is written with the jobs that it
// counts, in one atomic batch, and each batch is conditional on the checkpoint before it. So the checkpoints of a
// generation form one chain, from the initial one with no jobs to the terminal one, Ended, after which nothing follows.
//
// Jobs after the newest checkpoint do not count: they are from a batch that was not completed.
type checkpoint struct {
	Version     int    `json:"v"`
	Incarnation string `json:"incarnation"` // of the record that it belongs to
	Generation  int    `json:"generation"`
	Jobs        int64  `json:"jobs"`            // of this generation, from its first one on
	Digest      string `json:"digest"`          // chain over the ids of those jobs, in order
	After       uint64 `json:"after,omitempty"` // of a retry: results up to this sequence were read
	Done        bool   `json:"done,omitempty"`  // no more jobs follow
	Ended       bool   `json:"ended,omitempty"` // the generation has ended; its jobs are being removed
	Writer      string `json:"writer,omitempty"`

	// Of a retry: how many results were read, and the numbers of [RetryStats].
	Looked        int64 `json:"looked,omitempty"`
	Conversations int64 `json:"conversations,omitempty"`
	Unreadable    int64 `json:"unreadable,omitempty"`
}

// newCheckpoint returns the first checkpoint of the record's generation: no jobs.
func newCheckpoint(i *Import) checkpoint {
	return checkpoint{
		Version: checkpointVersion, Incarnation: i.Incarnation, Generation: i.Generation, Digest: chain{}.String(),
	}
}

// of reports whether the checkpoint belongs to the record as it is: to its incarnation and its present generation.
func (p *checkpoint) of(i *Import) bool {
	return p.Incarnation == i.Incarnation && p.Generation == i.Generation
}

// checkpoint reads the newest checkpoint of an import and its sequence, which is 0 if there is none. It asks the
// stream's leader.
func (q *Queue) checkpoint(ctx context.Context, importID string) (p checkpoint, seq uint64, err error) {
	m, err := q.conn.LastMsg(ctx, q.jobsStream(), q.checkpointSubject(importID))
	if errors.Is(err, broker.ErrNotFound) {
		return checkpoint{}, 0, nil
	}
	if err == nil {
		p, err = decodeCheckpoint(m.Data)
	}
	if err != nil {
		return checkpoint{}, 0, fmt.Errorf("read checkpoint of import %s: %w", importID, err)
	}
	return p, m.Sequence, nil
}

func decodeCheckpoint(b []byte) (p checkpoint, err error) {
	if err := decodeVersioned(b, checkpointVersion, &p); err != nil {
		return checkpoint{}, fmt.Errorf("decode checkpoint: %w", err)
	}
	return p, nil
}

// decodeVersioned reads a JSON object with a version up to newest. The version is read by itself first: a newer form
// may not fit the value at all. The error wraps [job.ErrVersion] then.
func decodeVersioned(b []byte, newest int, value any) error {
	var v struct {
		Version int `json:"v"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	if v.Version > newest {
		return fmt.Errorf("version %d: %w", v.Version, job.ErrVersion)
	}
	if v.Version < 1 {
		return errors.New("no version")
	}
	return json.Unmarshal(b, value)
}

// A chain is a digest that grows job by job.
type chain [sha256.Size]byte

func (c chain) add(jobID string) chain {
	var buf [sha256.Size + 32]byte
	return sha256.Sum256(append(append(buf[:0], c[:]...), jobID...))
}

func (c chain) String() string { return hex.EncodeToString(c[:]) }

// parseChain undoes String.
func parseChain(s string) (c chain, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(c) {
		return chain{}, fmt.Errorf("digest %q is none", s)
	}
	return chain(b), nil
}
