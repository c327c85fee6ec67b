package governor

import (
	"context"
	"encoding/json"
	"errors"
	"time"
)

// ErrLeaseMoved is what a [Link] says when the lease is no longer the one that was to be replaced.
var ErrLeaseMoved = errors.New("the lease has moved on")

// A Link carries what a fleet has in common: one lease, and messages between its members. Package queue has one over
// NATS. Messages may be lost, late, doubled or out of order; the lease must not.
type Link interface {
	// Lease reads the lease. The revision is 0 when there never was one; age is how long ago it was written, by the
	// clock of the server that keeps it.
	Lease(ctx context.Context) (lease []byte, revision uint64, age time.Duration, err error)

	// PutLease replaces the lease of the given revision and returns the new one; ErrLeaseMoved when it has another
	// revision by now. After any other error it is open whether it was replaced.
	PutLease(ctx context.Context, lease []byte, revision uint64) (uint64, error)

	// Send sends a message to the member of that name.
	Send(to string, message []byte) error

	// Listen calls heard for each message to the member of that name, one at a time, until stop is called.
	Listen(name string, heard func(message []byte)) (stop func(), err error)
}

const (
	// validity is how old the sign of life may be that a grant answers, when its call begins.
	validity = time.Second

	// renewEvery is how often a leader renews its lease, and how often the others look at it.
	renewEvery = 500 * time.Millisecond

	// reign is how long a leader grants after it sent the last renewal that succeeded.
	reign = 2 * time.Second

	// patience is how long a lease stays unchanged, all the while in sight, before another member takes it.
	patience = 3 * time.Second

	// longAgo is an age of a lease after which nothing of its leader can be under way, with room for a clock of the
	// server that was set in the meantime.
	longAgo = time.Minute

	// rested is the same for a lease that was handed over: all calls had ended, and a second has passed since.
	rested = 3 * time.Second

	// wire is how long what a dead process has sent can be on its way; its own buffers are dropped with it.
	wire = time.Second

	// DefaultCallTimeout bounds a call where nobody says otherwise.
	DefaultCallTimeout = 10 * time.Second
)

// A lease says who leads. It is replaced by compare-and-set only, so there is one history of it.
type lease struct {
	Version int    `json:"v"`
	Leader  string `json:"leader"`
	Epoch   uint64 `json:"epoch"`   // counts the leaders
	Renewal uint64 `json:"renewal"` // counts the renewals, so that each is a change

	// Clean says that the leader stopped granting and had all permits back.
	Clean bool `json:"clean,omitempty"`

	// Longest is the longest call that the leader has permitted, or may before it renews the lease again.
	Longest time.Duration `json:"longest"`

	// Home says that the leader runs the embedded server that keeps this lease, and Alone that it has granted to
	// nobody else. Whoever runs that server afterwards knows that the leader is dead, and with it all its calls.
	Home  bool `json:"home,omitempty"`
	Alone bool `json:"alone,omitempty"`
}

// A sighting is a lease and when this member first saw it as it is.
type sighting struct {
	lease
	revision uint64
	seen     time.Time
	age      time.Duration // when it was first seen
}

// look reads the lease.
func (m *Member) look(ctx context.Context) (sighting, error) {
	c, cancel := context.WithTimeout(ctx, reign)
	defer cancel()
	raw, revision, age, err := m.link.Lease(c)
	if err != nil {
		return sighting{}, err
	}
	s := sighting{revision: revision, seen: time.Now(), age: age}
	if revision != 0 {
		if err := json.Unmarshal(raw, &s.lease); err != nil || s.Version > leaseVersion {
			return sighting{}, errors.New("the lease of the fleet was written by a newer groupferry")
		}
	}
	return s, nil
}

const leaseVersion = 1

func (m *Member) put(ctx context.Context, l lease, revision uint64) (uint64, error) {
	l.Version = leaseVersion
	raw, err := json.Marshal(l)
	if err != nil {
		return 0, err
	}
	c, cancel := context.WithTimeout(ctx, reign)
	defer cancel()
	return m.link.PutLease(c, raw, revision)
}

// orphaned tells whether the leader is known to be gone, and to have been alone: it ran the server that this process
// runs now.
func (s *sighting) orphaned(home bool) bool { return s.revision != 0 && s.Home && s.Alone && home }

// takeAt tells whether, and from when on, a lease may be taken that this member has had in sight, unchanged, for some
// time, and when the first permit may be granted then: once no call that the leader before has permitted can arrive
// within a second of one that this member permits.
func (s *sighting) takeAt(home bool) (take, grant time.Time) {
	switch {
	case s.revision == 0:
		return s.seen, s.seen
	case s.Clean && s.age >= rested, s.age >= longAgo:
		return s.seen, s.seen
	case s.Clean:
		return s.seen, s.seen.Add(cooldown)
	case s.orphaned(home):
		return s.seen, s.seen.Add(wire + cooldown)
	}
	// The last renewal was sent before it was seen, and the last grant comes at most a reign later. Its call begins
	// within the validity and ends by its timeout.
	return s.seen.Add(patience), s.seen.Add(reign + validity + s.Longest + cooldown)
}
