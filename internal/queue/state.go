package queue

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"groupferry/internal/job"
)

// Counts says what the results of an import add up to.
type Counts struct {
	// Results counts the messages under done, partial and failed, including results that a retry replaced. It is
	// compared with what the server counts.
	Results int64 `json:"results"`

	// Jobs counts the jobs by the outcome of their newest result.
	Jobs struct {
		Done    int64 `json:"done"`
		Partial int64 `json:"partial"`
		Failed  int64 `json:"failed"`
	} `json:"jobs"`

	// Conversations counts what the newest result of each job says about the conversations that it adds, Removals about
	// those that it takes out. Restored are those that the job keeps, and that were sent because their group had to be
	// created anew.
	Conversations Ended `json:"conversations"`
	Removals      Ended `json:"removals"`
	Restored      Ended `json:"restored"`

	Deleted int64 `json:"deleted"` // groups that the newest results say are gone
	Renamed int64 `json:"renamed"` // groups that they say were renamed

	Calls      int64     `json:"calls"`                // that the newest results took
	LastResult time.Time `json:"last_result,omitzero"` // by the leader's clock; zero when there is none

	// Codes counts by code what failed by the newest result of each job: conversations that it adds, takes out or keeps, and
	// a job that failed for a reason of its own. Results that an earlier version wrote are not in it. It is never changed, only
	// replaced: copies of Counts share it.
	Codes map[string]int64 `json:"codes,omitempty"`
}

// MaxCodes bounds [Counts].Codes; what comes with one more code counts as [OtherCodes].
const MaxCodes = 50

// OtherCodes stands in Counts.Codes for all codes that are not in there by themselves.
const OtherCodes = "other"

// Ended counts conversations with a result.
type Ended struct {
	Done   int64 `json:"done"`
	Failed int64 `json:"failed"`
}

func (e *Ended) add(other Ended, times int64) {
	e.Done += times * other.Done
	e.Failed += times * other.Failed
}

// JobsWithResult returns the number of jobs that have a result, of any generation.
func (c *Counts) JobsWithResult() int64 { return c.Jobs.Done + c.Jobs.Partial + c.Jobs.Failed }

// share is what one result adds to the counts.
type share struct {
	outcome                  job.Outcome
	added, removed, restored Ended
	deleted, renamed         int64 // groups
	calls                    int64
	codes                    map[string]int64 // nil where nothing failed
}

func shareOf(r *job.Result) share {
	s := share{outcome: r.Outcome, calls: int64(r.Calls)}
	failed := func(code string) {
		if s.codes == nil {
			s.codes = make(map[string]int64)
		}
		s.codes[code]++
	}
	if r.Code != "" && r.FailedConversations() == 0 {
		failed(r.Code)
	}
	for i := range r.Conversations {
		c, one := &r.Conversations[i], Ended{Done: 1}
		if c.Code != "" {
			one = Ended{Failed: 1}
			failed(c.Code)
		}
		switch {
		case c.Op == job.Remove:
			s.removed.add(one, 1)
		case c.Kept:
			s.restored.add(one, 1)
		default:
			s.added.add(one, 1)
		}
	}
	if r.Deleted {
		s.deleted = 1
	}
	if r.OldName != "" {
		s.renamed = 1
	}
	return s
}

// add adds a share; times is 1, or -1 to subtract the share of a result that a retry replaces.
func (c *Counts) add(s share, times int64) {
	switch s.outcome {
	case job.Done:
		c.Jobs.Done += times
	case job.Partial:
		c.Jobs.Partial += times
	case job.Failed:
		c.Jobs.Failed += times
	}
	c.Conversations.add(s.added, times)
	c.Removals.add(s.removed, times)
	c.Restored.add(s.restored, times)
	c.Deleted += times * s.deleted
	c.Renamed += times * s.renamed
	c.Calls += times * s.calls
	if len(s.codes) == 0 {
		return
	}
	codes := make(map[string]int64, len(c.Codes)+len(s.codes))
	maps.Copy(codes, c.Codes)
	for code, n := range s.codes {
		if _, known := codes[code]; !known && (len(codes) >= MaxCodes || times < 0) {
			code = OtherCodes
		}
		if codes[code] += times * n; codes[code] <= 0 {
			delete(codes, code)
		}
	}
	if c.Codes = codes; len(codes) == 0 {
		c.Codes = nil
	}
}

// stateVersion is the version of a state message that this package writes, and the newest that it reads.
const stateVersion = 1

// A state is what the leader writes about an import after its results in each group. It has all that the next leader
// needs to continue, and that commands need to report. It is the newest message on NS.results.IMPORT.state, and
// replaces the one before it.
//
//	jobs of the import, in stream order
//	──────────────────────────────────────────┬─────────────────┬───────────────►
//	  have a result, but for Unfinished       │ Ahead: may have │ not handed out
//	                                         Next  been handed out
type state struct {
	Version     int    `json:"v"`
	Term        uint64 `json:"term"`
	Marker      uint64 `json:"marker"` // sequence of the leader's marker: no two terms share it
	Group       uint64 `json:"group"`  // number of the group that it was written with, within the term
	Incarnation string `json:"incarnation"`
	Generation  int    `json:"generation"`
	Counts      Counts `json:"counts"`

	Handed     int64     `json:"handed"`     // jobs of this generation below Next
	Unreadable int64     `json:"unreadable"` // messages among them that could not be read as jobs
	Next       uint64    `json:"next"`       // the first sequence whose job was not handed out
	Unfinished sequences `json:"unfinished"` // jobs below Next without a result

	// Ahead bounds how many jobs from Next on are handed out before the next state is written, or were by a lost leader. A
	// closed state has only the latter.
	Ahead int64 `json:"ahead"`

	// Crashes says which jobs were under way when a leader was lost: Crashes[0] once, Crashes[1] twice, and so on.
	Crashes []sequences `json:"crashes,omitempty"`

	// Trial has the jobs of a trial: they may be under way now, and no other job of any import is.
	Trial sequences `json:"trial,omitempty"`

	At       time.Time `json:"at"`                  // by the leader's clock
	Rate     float64   `json:"rate"`                // results a second over the last minute, or since the leader began with the import
	RateOver float64   `json:"rate_over,omitempty"` // how many seconds that was
	InFlight int64     `json:"in_flight"`
	Requeued int64     `json:"requeued"`

	// Closed says that the term has ended: nothing is in flight, nor will be before another term writes a state.
	Closed bool `json:"closed,omitempty"`
}

// minAhead is how many jobs a leader may hand out before it writes the first state of an import.
const minAhead = 64

// finished returns the number of jobs of this generation that have a result.
func (s *state) finished() int64 { return s.Handed - int64(len(s.Unfinished)) }

func (s *state) encode() []byte {
	s.Version = stateVersion
	b, err := json.Marshal(s)
	if err != nil { // numbers, strings and times of this century
		panic(err)
	}
	return b
}

func decodeState(b []byte) (*state, error) {
	var v struct {
		Version int `json:"v"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, fmt.Errorf("decode state: %w", err)
	}
	if v.Version > stateVersion {
		return nil, fmt.Errorf("decode state: version %d: %w", v.Version, job.ErrVersion)
	}
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("decode state: %w", err)
	}
	if v.Version < 1 || s.Handed < int64(len(s.Unfinished)) {
		return nil, errors.New("decode state: its fields contradict each other")
	}
	return &s, nil
}

// sequences are stream sequences in ascending order. On the wire each is the difference to the one before.
type sequences []uint64

func (s sequences) MarshalJSON() ([]byte, error) {
	deltas, last := make([]uint64, len(s)), uint64(0)
	for i, seq := range s {
		if seq <= last {
			return nil, fmt.Errorf("sequence %d after %d", seq, last)
		}
		deltas[i], last = seq-last, seq
	}
	return json.Marshal(deltas)
}

func (s *sequences) UnmarshalJSON(b []byte) error {
	var deltas []uint64
	if err := json.Unmarshal(b, &deltas); err != nil {
		return err
	}
	last := uint64(0)
	for i, d := range deltas {
		if d == 0 || last+d < last {
			return fmt.Errorf("difference %d after %d", d, last)
		}
		last += d
		deltas[i] = last
	}
	*s = deltas
	return nil
}

func sortedKeys[V any](m map[uint64]V) sequences {
	s := make(sequences, 0, len(m))
	for seq := range m {
		s = append(s, seq)
	}
	slices.Sort(s)
	return s
}
