// Package lease elects one leader among processes that share a record in a [Store], and tells the leader how long it
// may act.
//
// A process makes a [Candidate] and calls [Candidate.Lead], which waits until this process leads. It then runs
// [Tenure.Keep], which renews the record until its context ends or another process leads, and leaves with
// [Tenure.Release]. What the leader may do at any moment is bounded by its right, [Tenure.Right]: a deadline on both
// clocks of the process that each acknowledged renewal moves ahead.
//
//	leader     s1                 s2                 frozen                        ErrMoved: lost
//	            ├──── right: 2 s after s1 ─────┤
//	            │                  ├──── right: 2 s after s2 ─────┤  gap
//	            ▼                  ▼                              ┊       ┊
//	store ──── rev 7 ──────────── rev 8 ──────────────────────────┊────── rev 9, term + 1
//	                                  │                           ┊       ▲
//	                                  ▼ r: first read of rev 8    ┊       │ replaces rev 8, and nothing else
//	candidate  ·   ·   ·   ·   ·   ·  ├───── 2.5 s unchanged ─────┊───────┤ right of the new leader …
//
// # The record
//
// The record names the holder, its term, and what a successor has to know about calls to the API: per command the
// number that may be under way, and the longest time that one takes. Each write of it is a compare-and-set on the
// revision before. A term has one holder, and each change of holder counts the term up by one. Each write of a process
// has a number of its own in Renewal, so a process that got no response can read which of its writes the store has.
//
// The first record of a term promises the calls that the predecessor promised: they may still be under way. After that
// the [Pace] says what each renewal promises. It uses a higher number when Keep reports it acknowledged, and a lower
// one from the moment it proposed it. So at any moment the record in the store promises at least what is in use,
// whichever of the renewals without a response it is.
//
// # Who takes the lease, and when
//
// A candidate reads the record every 0.25 s. It takes a lease at once if nobody ever had it, or if it was released to
// everybody or to this candidate. It takes any other lease when it has watched the same revision for 2.5 s of its
// monotonic clock, from its first response with that revision. Time without a response, frozen or suspended counts for
// at most 0.5 s at a stretch: the leader may have been out of reach for the same reason, and comes first. A leader
// whose right has lapsed continues if its next compare-and-set succeeds.
//
// # No two rights at a time
//
// Let a leader send a renewal at s that the store keeps as revision n; its right from that ends at s + 2 s. Let another
// candidate take the lease later, with the leader not having released it.
//
//  1. There is one order of revisions, and the candidate replaces one of them, n. No renewal of the leader after n is
//     stored, before or afterwards: it would need to replace n too, or what follows from n. So the last right of the
//     leader comes from n, or from a revision before n, which was sent earlier.
//  2. The candidate had its first response with n at r. The store had n by then, so s < r, and the right ends before
//     r + 2 s. A right is counted from before the request was sent, also if its response was lost and a read found it.
//  3. The candidate sends its compare-and-set at r + 2.5 s or later, and its own right begins when it knows of the
//     success, which is later still. By induction the same holds between any two tenures.
//
// A leader that releases the lease gives up its right before it sends the record that says so, and sends no renewal
// afterwards. It says how many of the calls that it had permitted there are.
//
// This needs no time stamp of the store or of another process, no bound on delays, and no order of messages. Reads may
// be old: step 2 asks only that what was read had been stored. It does assume that
//
//   - the store replaces a revision once, and keeps what it acknowledged,
//   - names are unique (Config.Name),
//   - while a right lasts, at least one of the two clocks of its process advances with real time: the monotonic clock runs,
//     or else (a suspended machine) the wall clock is not set back by what passed. Frozen processes, and wall clocks that
//     are set while the machine runs, are covered,
//   - the leader's clock of those two is at most 20 % slower than the monotonic clock of a candidate: 2 s against 2.5 s,
//   - whoever acts on a right checks it right before it acts; the time between the two comes off the 0.5 s between the
//     two rights.
package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

const (
	// RenewEvery is how often the leader renews the lease: four times in Duration.
	RenewEvery = 500 * time.Millisecond

	// Duration is how long after it sent a renewal that succeeded the leader has the right to act.
	Duration = 2 * time.Second

	// TakeoverDelay is how long a candidate watches a lease unchanged before it takes it: Duration, and a quarter of it
	// for clocks that run at different rates and for the time between the check of the right and the act.
	TakeoverDelay = 2500 * time.Millisecond

	// pollEvery is how often a candidate reads the lease: half of RenewEvery, so that it sees each renewal. It is also
	// the least time from one request that failed to the next.
	pollEvery = 250 * time.Millisecond

	// kickEvery is the least time from one renewal to one that was asked for with Kick: a write may be a sync to disk.
	kickEvery = 50 * time.Millisecond

	// callTimeout bounds a request to the store. Half of Duration: the leader can find out in time, with a read,
	// whether a renewal without a response succeeded. Over a path that takes longer no lease can be held without gaps
	// anyway.
	callTimeout = Duration / 2

	// maxUnwatched is how much of the time between two responses counts as watched: with that much a renewal is seen.
	maxUnwatched = RenewEvery

	// version is that of Record.
	version = 1
)

var (
	// ErrMoved is returned by Store.Replace when the record has another revision by now.
	ErrMoved = errors.New("the lease has another revision")

	// ErrLost is returned by a Tenure when another process leads, or may lead: what this process did as the leader is
	// not its business any more.
	ErrLost = errors.New("the lease is lost")

	// ErrVersion is returned for a record that this version of the program cannot read.
	ErrVersion = errors.New("the lease was written by another version of the program")
)

// A Store keeps one record. Its methods return early when their context ends.
type Store interface {
	// Read returns the record and its revision; revision 0 when there never was a record.
	Read(ctx context.Context) (record []byte, revision uint64, err error)

	// Replace replaces the record of the given revision, or makes the first one when it is 0, and returns the new
	// revision. The error is ErrMoved when the record has another revision by now. After any other error it is open
	// whether it was replaced, or yet will be.
	Replace(ctx context.Context, record []byte, revision uint64) (uint64, error)
}

// A Record is what the store keeps.
type Record struct {
	Version int    `json:"version"`
	Holder  string `json:"holder"`         // Config.Name of the leader
	Host    string `json:"host,omitempty"` // Config.Host of the leader, for people
	Term    uint64 `json:"term"`           // counts the leaders, from 1
	Renewal uint64 `json:"renewal"`        // counts the writes that the holder's process tried

	// Released says that nobody leads. Successor, if set, may take the lease at once, others after TakeoverDelay.
	Released  bool   `json:"released,omitempty"`
	Successor string `json:"successor,omitempty"`

	Rate    int            `json:"rate,omitempty"`  // calls a second for each command
	Timeout time.Duration  `json:"timeout"`         // the longest that a call in Calls takes, in nanoseconds
	Calls   map[string]int `json:"calls,omitempty"` // by command: calls that may be under way, inherited ones included

	// Handovers is how often in a row, up to this released lease, the lead was handed over without a response of the
	// API in between. It is 0 while somebody leads.
	Handovers int `json:"handovers,omitempty"`
}

// Read reads the record of a store, to be shown to people. The revision is 0 when there never was one.
func Read(ctx context.Context, store Store) (Record, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	raw, revision, err := store.Read(ctx)
	if err != nil {
		return Record{}, 0, fmt.Errorf("read lease: %w", err)
	}
	if revision == 0 {
		return Record{}, 0, nil
	}
	var r Record
	if err := json.Unmarshal(raw, &r); err != nil {
		return Record{}, 0, fmt.Errorf("read lease: %w: %w", ErrVersion, err)
	}
	if r.Version != version {
		return Record{}, 0, fmt.Errorf("read lease: %w: it is %d, this one knows %d", ErrVersion, r.Version, version)
	}
	return r, revision, nil
}

// replace writes a record in place of that of the given revision. Errors are as of Store.Replace.
func replace(ctx context.Context, store Store, r Record, revision uint64) (uint64, error) {
	raw, err := json.Marshal(r)
	if err != nil {
		return 0, fmt.Errorf("write lease: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	revision, err = store.Replace(ctx, raw, revision)
	if err != nil {
		return 0, fmt.Errorf("write lease: %w", err)
	}
	return revision, nil
}
