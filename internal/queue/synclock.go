package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"groupferry/internal/broker"
	"groupferry/internal/clock"
)

// The lock of a sync keeps two processes from preparing a night at the same time, to no purpose. Nothing rests on it: who
// comes second fails at [Queue.UpdateSync].
//
// The holder renews it every second. A process that has seen the same revision of it for five seconds takes it over. It
// counts by its own monotonic clock, and no time in which it did not look.

// ErrLockLost is the cause of the end of a [SyncLock.Context] when another process took the lock over.
var ErrLockLost = errors.New("another process took over the sync, as this one had not been heard of for seconds")

// A LockedError says that another process is preparing a night of the sync.
type LockedError struct {
	Name   string    // of the sync
	Holder string    // what the other process called itself
	Since  time.Time // by its clock
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("sync %s is locked: %s has been preparing a night since %s; try again later, or wait for it with --wait",
		e.Name, e.Holder, e.Since.Local().Format(time.DateTime))
}

// lockTimes is how fast a lock is renewed, looked at, and taken over.
type lockTimes struct{ renew, poll, stale time.Duration }

var usualLockTimes = lockTimes{
	renew: time.Second, poll: 250 * time.Millisecond, stale: broker.FailTime("GROUPFERRY_SYNC_LOCK_STALE", 5*time.Second),
}

// A storedLock is the wire form; it is free without a holder.
type storedLock struct {
	Version int       `json:"v"`
	Holder  string    `json:"holder,omitempty"`
	Token   string    `json:"token,omitempty"` // of the SyncLock
	Since   time.Time `json:"since,omitzero"`
	Renewed int       `json:"renewed,omitempty"`
}

const (
	lockPrefix  = "lock."
	lockVersion = 1
)

// A SyncLock is the lock of a sync's name, which this process holds.
type SyncLock struct {
	q    *Queue
	key  string
	mine storedLock

	revision uint64 // of the last write, as far as is known
	ctx      context.Context
	cancel   context.CancelCauseFunc
	stop     context.CancelFunc
	renewing sync.WaitGroup
}

// LockSync takes the lock of a sync's name, for all its targets; holder says for people who has it. If another process has
// it the error is a [*LockedError], which takes until that one has renewed it. With waiting it waits instead, and calls
// that once for each holder. It ends with ctx; the lock does not.
func (q *Queue) LockSync(ctx context.Context, name, holder string, waiting func(*LockedError)) (*SyncLock, error) {
	if !ValidSyncName(name) {
		return nil, fmt.Errorf("sync name %q: use 1 to %d of A-Z, a-z, 0-9, - and _", name, MaxSyncName)
	}
	l := &SyncLock{
		q: q, key: lockPrefix + name,
		mine: storedLock{Version: lockVersion, Holder: holder, Token: nuid.Next(), Since: now()},
	}
	var seen storedLock
	var revision uint64
	var looked time.Time
	var watched time.Duration // how long the same revision was seen
	for {
		other, at, err := l.read(ctx)
		if err != nil {
			return nil, err
		}
		switch {
		case other.Token == l.mine.Token: // the response to a try was lost
			l.revision = at
			l.begin()
			return l, nil
		case other.Holder != "" && at == revision:
			watched += min(time.Since(looked), 2*q.lockTimes.poll)
		case other.Holder != "":
			watched = 0
			e := &LockedError{Name: name, Holder: other.Holder, Since: other.Since}
			if waiting == nil && revision != 0 {
				return nil, e
			}
			if waiting != nil && other.Token != seen.Token {
				waiting(e)
			}
		}
		seen, revision, looked = other, at, time.Now()
		if other.Holder == "" || watched >= q.lockTimes.stale {
			if other.Holder != "" {
				q.log.Warn("the lock of a sync is taken over: its holder has not been heard of", "sync", name, "host", other.Holder)
			}
			l.mine.Since = now()
			err := l.write(ctx, l.mine, at)
			if err == nil {
				l.begin()
				return l, nil
			}
			if !errors.Is(err, errStale) {
				return nil, err
			}
			continue
		}
		if !clock.Pause(ctx, q.lockTimes.poll) {
			return nil, context.Cause(ctx)
		}
	}
}

// read gives the lock as it is, and its revision.
func (l *SyncLock) read(ctx context.Context) (other storedLock, revision uint64, err error) {
	b, revision, err := l.q.controlValue(ctx, l.key)
	if err == nil && len(b) > 0 {
		err = decodeVersioned(b, lockVersion, &other)
	}
	if err != nil {
		return other, 0, fmt.Errorf("read the lock of a sync: %w", err)
	}
	return other, revision, nil
}

// write replaces the lock at a revision; the error is errStale if it has another one by now.
func (l *SyncLock) write(ctx context.Context, value storedLock, revision uint64) error {
	b, err := json.Marshal(value)
	if err != nil {
		return err
	}
	broker.Failpoint("lock-before")
	broker.FailInside("lock-inside")
	var written uint64
	err = l.q.conn.Ask(ctx, func(ctx context.Context) (err error) {
		if revision == 0 {
			written, err = l.q.control.Create(ctx, l.key, b)
		} else {
			written, err = l.q.control.Update(ctx, l.key, b, revision)
		}
		return err
	})
	if broker.LostRace(err) || errors.Is(err, jetstream.ErrKeyExists) {
		return errStale
	}
	if err != nil {
		return l.q.fault(ctx, "write the lock of a sync", err)
	}
	l.revision = written
	broker.Failpoint("lock-after")
	return nil
}

func (l *SyncLock) begin() {
	l.ctx, l.cancel = context.WithCancelCause(context.Background())
	var renewing context.Context
	renewing, l.stop = context.WithCancel(l.ctx)
	every := l.q.lockTimes.renew
	l.renewing.Go(func() {
		for clock.Pause(renewing, every) {
			if err := l.renew(renewing); errors.Is(err, ErrLockLost) {
				l.cancel(err)
			} // otherwise nothing is known: the next one tells
		}
	})
}

func (l *SyncLock) renew(ctx context.Context) error {
	l.mine.Renewed++
	return l.replace(ctx, l.mine)
}

// replace writes the lock that is held; the error is ErrLockLost if it is not any more.
func (l *SyncLock) replace(ctx context.Context, value storedLock) error {
	for {
		err := l.write(ctx, value, l.revision)
		if !errors.Is(err, errStale) {
			return err
		}
		other, at, err := l.read(ctx)
		if err != nil {
			return err
		}
		if other.Token != l.mine.Token {
			return ErrLockLost
		}
		l.revision = at // the response to a write was lost
	}
}

// Context ends with [ErrLockLost] when another process has the lock, and with Release.
func (l *SyncLock) Context() context.Context { return l.ctx }

// Release gives the lock back, unless it is lost. It can be called more than once.
func (l *SyncLock) Release(ctx context.Context) error {
	l.stop()
	l.renewing.Wait()
	lost := l.ctx.Err() != nil
	l.cancel(context.Canceled)
	if lost {
		return nil
	}
	err := l.replace(ctx, storedLock{Version: lockVersion})
	if errors.Is(err, ErrLockLost) {
		return nil
	}
	return err
}
