package lease

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"groupferry/internal/clock"
)

// Config says who stands for election. Name is required.
type Config struct {
	Name    string        // unlike that of any other candidate, now or earlier: a new one for each start of a process
	Host    string        // for people: host and process ID
	Rate    int           // calls a second, for the record; see Candidate.SetRate
	Timeout time.Duration // of a call of this process, for the first record of a term
	Clock   clock.Clock   // that rights are kept on

	// OnObserve, if set, is called for each revision that this candidate reads or writes, in order, by the goroutine
	// that runs Lead, Keep or Release. It must not block.
	OnObserve func(r Record, revision uint64)
}

// A Candidate is a process that can lead. One goroutine at a time may run Lead, or Keep or Release of a tenure that
// came from it; the other methods can be called at any time.
type Candidate struct {
	store Store
	cfg   Config

	mu       sync.Mutex
	rate     int
	writes   uint64 // tried so far
	observed Record
	revision uint64 // of observed; 0: none
}

// New returns a candidate for the lease in the store. It does nothing until Lead is called.
func New(store Store, cfg Config) *Candidate {
	return &Candidate{store: store, cfg: cfg, rate: cfg.Rate}
}

// SetRate changes the rate that the next records tell.
func (c *Candidate) SetRate(rate int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rate = rate
}

// Observed returns the record as this candidate last read or wrote it, and false when it knows of none.
func (c *Candidate) Observed() (Record, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.observed.clone(), c.revision != 0
}

// An observedLease is the record as this candidate last read it.
type observedLease struct {
	Record
	revision uint64
	readAt   time.Time // of the last response with it; zero: nothing was read
	due      time.Time // when the lease may be taken
}

// Lead waits until this process leads, and returns its tenure. It repeats requests that fail. The error is that of ctx
// when it ends, or wraps ErrVersion. When it ends while this candidate takes the lease, it is open whether it did; as
// nobody keeps it then, the next one can have it after TakeoverDelay.
func (c *Candidate) Lead(ctx context.Context) (*Tenure, error) {
	var (
		o     observedLease
		tried *Tenure // the last attempt, which had no response
	)
	for {
		if now := time.Now(); o.fresh(now) && !now.Before(o.due) {
			t := c.tenure(o)
			if err := t.take(ctx); err == nil {
				return t, nil
			}
			tried = t
			o.due = now.Add(pollEvery)
		}
		asked := time.Now()
		r, revision, err := Read(ctx, c.store)
		now := time.Now() // after the response, on the monotonic clock: the proof counts from here
		switch {
		case err == nil:
			c.observe(r, revision)
			if tried != nil {
				if own, _ := tried.found(r, revision); own {
					return tried, nil
				}
			}
			c.watch(&o, r, revision, now)
		case errors.Is(err, ErrVersion):
			return nil, err
		}
		next := asked.Add(pollEvery)
		if o.fresh(now) && o.due.Before(next) {
			next = o.due
		}
		if err := sleep(ctx, time.Until(next)); err != nil {
			return nil, err
		}
	}
}

// watch takes a record that was read now.
func (c *Candidate) watch(o *observedLease, r Record, revision uint64, now time.Time) {
	free := revision == 0 || r.Released && (r.Successor == "" || r.Successor == c.cfg.Name)
	switch {
	case o.readAt.IsZero() || o.revision != revision:
		*o = observedLease{Record: r, revision: revision, due: now}
		if !free {
			o.due = now.Add(TakeoverDelay)
		}
	case !free:
		if unwatched := now.Sub(o.readAt) - maxUnwatched; unwatched > 0 {
			o.due = o.due.Add(unwatched)
		}
	}
	o.readAt = now
}

// fresh reports whether the last response is so recent that the time since counts as watched.
func (o *observedLease) fresh(now time.Time) bool {
	return !o.readAt.IsZero() && now.Sub(o.readAt) <= maxUnwatched
}

// tenure returns the tenure that replaces the observed lease; it has no right yet.
func (c *Candidate) tenure(o observedLease) *Tenure {
	return &Tenure{
		c: c, term: o.Term + 1, before: o.Record, revision: o.revision,
		kick: make(chan struct{}, 1),
	}
}

// record returns the next record of a term of this candidate.
func (c *Candidate) record(term uint64, calls map[string]int, timeout time.Duration) Record {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writes++
	return Record{
		Version: version, Holder: c.cfg.Name, Host: c.cfg.Host, Term: term, Renewal: c.writes,
		Rate: c.rate, Timeout: timeout, Calls: maps.Clone(calls),
	}
}

// observe notes a record that was read or written.
func (c *Candidate) observe(r Record, revision uint64) {
	c.mu.Lock()
	known := c.revision == revision
	c.observed, c.revision = r, revision
	c.mu.Unlock()
	if !known && c.cfg.OnObserve != nil {
		c.cfg.OnObserve(r.clone(), revision)
	}
}

func (r Record) clone() Record {
	r.Calls = maps.Clone(r.Calls)
	return r
}

// sleep waits for d, or until ctx ends; then it returns the error of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	if err := ctx.Err(); err != nil || d <= 0 {
		return err
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
