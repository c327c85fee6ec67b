package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"groupferry/internal/job"
)

// A Tally counts the results of an import.
type Tally struct {
	Jobs          struct{ Done, Partial, Failed int64 }
	Conversations struct{ Done, Failed int64 }
	Calls         int64     // that the results took
	LastResult    time.Time // by the server's clock; zero when there is none
}

// Total is the number of jobs that have a result.
func (t *Tally) Total() int64 { return t.Jobs.Done + t.Jobs.Partial + t.Jobs.Failed }

// tallyEvery is how many results more a count has to have than the stored one to be stored in its stead.
const tallyEvery = 1000

// tallyVersion is the version of a stored count; others are counted anew.
const tallyVersion = 1

// A counted is a count that can be gone on from. It is kept in memory, and in the control bucket for other processes.
//
// To go on means to add what came after UpTo and to take out what that replaced. That is right only where all results
// up to UpTo were there to be counted, so nothing is kept that was counted while a retry replaced results; and only
// where each was replaced once since, so a count is of use in its own round and in the next one.
type counted struct {
	Version int       `json:"v"`
	Created time.Time `json:"created"` // of the import: its ID can have been another's
	Round   int       `json:"round"`
	UpTo    uint64    `json:"up_to"` // sequence
	Tally
}

// tallyCache holds what was counted so far.
type tallyCache struct {
	mu sync.Mutex
	m  map[string]counted
	// stored is the number of results in the stored counts.
	stored map[string]int64
}

func tallyKey(importID string) string { return "tally." + importID }

// errReplaced says that a result took the place of one that was counted, and does not tell what it was.
var errReplaced = errors.New("a counted result was replaced")

// Tally counts the results of an import, without reading more than their headers, and no more of them than have come
// since some process counted last.
func (q *Queue) Tally(ctx context.Context, importID string) (Tally, error) {
	rec, err := q.recordForTally(ctx, importID)
	if err != nil {
		return Tally{}, err
	}
	from, err := q.countedSoFar(ctx, &rec)
	if err != nil {
		return Tally{}, err
	}
	next, err := q.count(ctx, importID, from)
	if errors.Is(err, errReplaced) {
		next, err = q.count(ctx, importID, counted{})
	}
	if err != nil {
		return Tally{}, err
	}
	now, err := q.recordForTally(ctx, importID)
	if err != nil {
		return Tally{}, err
	}
	if rec.steady() && now.steady() && now.Round == rec.Round && now.Created.Equal(rec.Created) {
		next.Version, next.Created, next.Round = tallyVersion, rec.Created, rec.Round
		q.keepCount(ctx, importID, next)
	}
	return next.Tally, nil
}

// steady tells whether no result is being replaced.
func (i *Import) steady() bool { return i.Round == 0 || i.State.Over() && !i.mayChange() }

// recordForTally is the record of an import, or an empty one: results can be counted without.
func (q *Queue) recordForTally(ctx context.Context, importID string) (Import, error) {
	i, err := q.Import(ctx, importID)
	if errors.Is(err, ErrNoImport) {
		return Import{ID: importID}, nil
	}
	return i, err
}

// countedSoFar is the newest count to go on from: this process's own, or else the stored one.
func (q *Queue) countedSoFar(ctx context.Context, i *Import) (counted, error) {
	fits := func(c counted) bool {
		return c.Version == tallyVersion && c.Created.Equal(i.Created) && c.Round <= i.Round && c.Round >= i.Round-1
	}
	q.tallies.mu.Lock()
	own, known := q.tallies.m[i.ID]
	q.tallies.mu.Unlock()
	if known && fits(own) {
		return own, nil
	}
	var e jetstream.KeyValueEntry
	err := q.ask(ctx, func(c context.Context) (err error) {
		e, err = q.control.Get(c, tallyKey(i.ID))
		return err
	})
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return counted{}, nil
	}
	if err != nil {
		return counted{}, q.fault(ctx, "read count of import "+i.ID, err)
	}
	var stored counted
	if json.Unmarshal(e.Value(), &stored) != nil || !fits(stored) {
		return counted{}, nil
	}
	q.tallies.mu.Lock()
	defer q.tallies.mu.Unlock()
	q.tallies.note(i.ID, stored.Total())
	return stored, nil
}

func (t *tallyCache) note(importID string, stored int64) {
	if t.stored == nil {
		t.stored = make(map[string]int64)
	}
	t.stored[importID] = stored
}

// keepCount keeps a count, here and, if it is worth it, for others. Which of two processes stores last does not matter:
// each count is right.
func (q *Queue) keepCount(ctx context.Context, importID string, next counted) {
	q.tallies.mu.Lock()
	if q.tallies.m == nil {
		q.tallies.m = make(map[string]counted)
	}
	if old := q.tallies.m[importID]; !old.Created.Equal(next.Created) || next.UpTo >= old.UpTo {
		q.tallies.m[importID] = next
	}
	worth := next.Total()-q.tallies.stored[importID] >= tallyEvery
	if worth {
		q.tallies.note(importID, next.Total())
	}
	q.tallies.mu.Unlock()
	if !worth {
		return
	}
	b, err := json.Marshal(next)
	if err != nil {
		return
	}
	c, cancel := q.within(ctx)
	defer cancel()
	_, _ = q.control.Put(c, tallyKey(importID), b) // without it the next one counts longer
}

// count goes on from c. When a result replaced a counted one and does not tell what to take out of the sum, as an older
// binary wrote it, it stops with errReplaced.
func (q *Queue) count(ctx context.Context, importID string, c counted) (counted, error) {
	from := c.UpTo
	upTo, err := q.scan(ctx, importID, from, true, func(m jetstream.Msg, meta *jetstream.MsgMetadata) error {
		if err := c.add(m.Headers().Get(tallyHeader), from); err != nil {
			return fmt.Errorf("result %d: %w", meta.Sequence.Stream, err)
		}
		if meta.Timestamp.After(c.LastResult) {
			c.LastResult = meta.Timestamp
		}
		return nil
	})
	c.UpTo = upTo
	return c, err
}

// tallyLine is the header of a result that replaces the one at a sequence, if that is not 0, with the given header.
func tallyLine(r *job.Result, replaced uint64, its string) string {
	failed := r.FailedConversations()
	line := fmt.Sprintf("%s %d %d %d %d", r.Outcome, len(r.Conversations)-failed, failed, r.Calls, replaced)
	if f := strings.Fields(its); len(f) >= 5 {
		line += " " + strings.Join(f[:4], " ")
	}
	if r.Round > 0 {
		line += " " + roundMark + strconv.Itoa(r.Round)
	}
	return line
}

// roundMark is before the round in a line of tallyLine.
const roundMark = "round="

// roundOf is the round of the result with a line of tallyLine.
func roundOf(line string) int {
	_, mark, _ := strings.Cut(line, roundMark)
	n, _ := strconv.Atoi(mark) // 0 where there is none
	return n
}

// add reads a line of tallyLine, and takes out what it replaced if that has a sequence up to counted. More fields than
// this version knows may follow.
func (t *Tally) add(line string, counted uint64) error {
	unreadable := fmt.Errorf("header %s %q cannot be read", tallyHeader, line)
	f := strings.Fields(line)
	if len(f) < 5 {
		return unreadable
	}
	replaced, err := strconv.ParseUint(f[4], 10, 64)
	if err != nil || !t.sum(f[:4], 1) {
		return unreadable
	}
	if replaced == 0 || replaced > counted {
		return nil
	}
	if len(f) < 9 {
		return errReplaced
	}
	if !t.sum(f[5:9], -1) {
		return unreadable
	}
	return nil
}

// sum adds the four fields of a result as often as times says.
func (t *Tally) sum(f []string, times int64) bool {
	var n [3]int64
	for i := range n {
		var err error
		if n[i], err = strconv.ParseInt(f[i+1], 10, 64); err != nil {
			return false
		}
	}
	switch job.Outcome(f[0]) {
	case job.Done:
		t.Jobs.Done += times
	case job.Partial:
		t.Jobs.Partial += times
	case job.Failed:
		t.Jobs.Failed += times
	default:
		return false
	}
	t.Conversations.Done += times * n[0]
	t.Conversations.Failed += times * n[1]
	t.Calls += times * n[2]
	return true
}
