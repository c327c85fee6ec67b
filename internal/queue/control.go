package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"groupferry/internal/broker"
	"groupferry/internal/clock"
	"groupferry/internal/job"
)

// The keys of the control bucket, apart from the import records.
const (
	appKey  = "app"
	haltKey = "halt" // its value is null when there is no halt, so that each change has a revision
	rateKey = "rate"
	apiKey  = "api"

	trialKey = "doctor" // its value is null when no trial left anything
)

// controlVersion is the version of app and halt that this package writes, and the newest that it reads.
const controlVersion = 1

// An App is the app that a namespace belongs to: the pace is kept for one app, by one process at a time.
type App struct {
	SDKAppID  uint64 `json:"sdk_app_id"`
	Simulated bool   `json:"simulated,omitempty"` // its calls go to the simulator
}

func (a App) String() string {
	if a.Simulated {
		return fmt.Sprintf("SDKAppID %d, simulated", a.SDKAppID)
	}
	return fmt.Sprintf("SDKAppID %d", a.SDKAppID)
}

// An OtherAppError says that a namespace belongs to another app.
type OtherAppError struct{ Want, Have App }

func (e *OtherAppError) Error() string {
	return fmt.Sprintf("the namespace belongs to another app (%v, not %v): use one --namespace, or one --data-dir, per app",
		e.Have, e.Want)
}

type storedApp struct {
	Version int `json:"v"`
	App
}

// ClaimApp assigns the namespace to the app, unless it has one. The error is an [*OtherAppError] if it belongs to
// another app.
func (q *Queue) ClaimApp(ctx context.Context, app App) error {
	b, err := json.Marshal(storedApp{controlVersion, app})
	if err != nil {
		return err
	}
	for {
		have, err := q.App(ctx)
		switch {
		case err != nil:
			return err
		case have != nil && *have == app:
			return nil
		case have != nil:
			return &OtherAppError{Want: app, Have: *have}
		}
		err = q.conn.Ask(ctx, func(ctx context.Context) error {
			_, err := q.control.Create(ctx, appKey, b)
			return err
		})
		if err != nil && !broker.LostRace(err) && !errors.Is(err, jetstream.ErrKeyExists) {
			return q.fault(ctx, "write the app of the namespace", err)
		}
	}
}

// App reads which app the namespace belongs to; nil if it has none yet.
func (q *Queue) App(ctx context.Context) (*App, error) {
	b, _, err := q.controlValue(ctx, appKey)
	if err != nil || b == nil {
		return nil, err
	}
	return decodeApp(b)
}

// AppOf is [Queue.App] of another namespace of the server.
func (q *Queue) AppOf(ctx context.Context, namespace string) (*App, error) {
	bucket := namespace + "-control"
	m, err := q.conn.LastMsg(ctx, "KV_"+bucket, "$KV."+bucket+"."+appKey)
	if errors.Is(err, broker.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return decodeApp(m.Data)
}

func decodeApp(b []byte) (*App, error) {
	var s storedApp
	if err := decodeVersioned(b, controlVersion, &s); err != nil {
		return nil, fmt.Errorf("decode the app of the namespace: %w", err)
	}
	return &s.App, nil
}

// controlValue reads a key of the control bucket: its value, nil if it was never set, and its revision.
func (q *Queue) controlValue(ctx context.Context, key string) ([]byte, uint64, error) {
	var e jetstream.KeyValueEntry
	err := q.conn.Ask(ctx, func(ctx context.Context) (err error) {
		e, err = q.control.Get(ctx, key)
		return err
	})
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, q.fault(ctx, "read "+key, err)
	}
	return e.Value(), e.Revision(), nil
}

// controlValues reads all keys of the control bucket that match.
func (q *Queue) controlValues(ctx context.Context, keys string) (all []jetstream.KeyValueEntry, err error) {
	err = q.conn.Ask(ctx, func(ctx context.Context) error {
		all = nil
		w, err := q.control.Watch(ctx, keys, jetstream.IgnoreDeletes())
		if err != nil {
			return err
		}
		defer w.Stop()
		for {
			select {
			case e, ok := <-w.Updates():
				if !ok {
					return errors.Join(ctx.Err(), jetstream.ErrConnectionClosed)
				}
				if e == nil { // all that was there has come
					return nil
				}
				all = append(all, e)
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	return all, err
}

// The states of a [Halt].
const (
	Halted = "halted" // the API rejected a call in a way that every call would be
	Paused = "paused" // by a person
)

// A Halt says why no call is made. It stays until somebody clears it, also after a restart.
type Halt struct {
	State   string    `json:"state"`             // Halted or Paused
	Code    string    `json:"code,omitempty"`    // the API's code, if that was the reason
	Reason  string    `json:"reason,omitempty"`  // what happened
	Remedy  string    `json:"remedy,omitempty"`  // what to do about it
	Command string    `json:"command,omitempty"` // the command that resumes
	By      string    `json:"by,omitempty"`      // who halted or paused
	Since   time.Time `json:"since,omitzero"`
}

type storedHalt struct {
	Version int `json:"v"`
	Halt
}

func decodeHalt(b []byte) (*Halt, error) {
	if b == nil || string(b) == "null" {
		return nil, nil
	}
	var s storedHalt
	if err := decodeVersioned(b, controlVersion, &s); err != nil {
		return nil, fmt.Errorf("decode halt: %w", err)
	}
	return &s.Halt, nil
}

// Halted reads the halt; nil if calls may be made.
func (q *Queue) Halted(ctx context.Context) (*Halt, error) {
	h, _, err := q.halt(ctx)
	return h, err
}

func (q *Queue) halt(ctx context.Context) (*Halt, uint64, error) {
	b, revision, err := q.controlValue(ctx, haltKey)
	if err != nil {
		return nil, 0, err
	}
	h, err := decodeHalt(b)
	return h, revision, err
}

// SetHalt stops all calls. An existing halt stays as it is: the first reason is the one to fix. SetHalt sets Since if
// it is zero.
func (q *Queue) SetHalt(ctx context.Context, h Halt) error {
	if h.State != Halted && h.State != Paused {
		return fmt.Errorf("halt state %q: want %s or %s", h.State, Halted, Paused)
	}
	if h.Since.IsZero() {
		h.Since = time.Now()
	}
	h.Since = h.Since.UTC()
	b, err := json.Marshal(storedHalt{controlVersion, h})
	if err != nil {
		return err
	}
	_, err = q.swapHalt(ctx, b, func(now *Halt) bool { return now == nil })
	return err
}

// ClearHalt allows calls again, and returns the halt that it cleared; nil if there was none.
func (q *Queue) ClearHalt(ctx context.Context) (was *Halt, err error) {
	return q.swapHalt(ctx, []byte("null"), func(now *Halt) bool { return now != nil })
}

// swapHalt writes b if the present halt requires it, and returns the present halt.
func (q *Queue) swapHalt(ctx context.Context, b []byte, wanted func(now *Halt) bool) (*Halt, error) {
	for {
		now, revision, err := q.halt(ctx)
		if err != nil || !wanted(now) {
			return now, err
		}
		err = q.conn.Ask(ctx, func(ctx context.Context) (err error) {
			if revision == 0 {
				_, err = q.control.Create(ctx, haltKey, b)
			} else {
				_, err = q.control.Update(ctx, haltKey, b, revision)
			}
			return err
		})
		if err == nil {
			return now, nil
		}
		if !broker.LostRace(err) && !errors.Is(err, jetstream.ErrKeyExists) {
			return nil, q.fault(ctx, "write halt", err)
		}
	}
}

// Rate reads the calls a second that were set for the namespace; 0 if none were.
func (q *Queue) Rate(ctx context.Context) (int, error) {
	rate, _, err := q.rate(ctx)
	return rate, err
}

func (q *Queue) rate(ctx context.Context) (rate int, revision uint64, err error) {
	b, revision, err := q.controlValue(ctx, rateKey)
	if err != nil {
		return 0, 0, err
	}
	rate, err = decodeRate(b)
	return rate, revision, err
}

func decodeRate(b []byte) (int, error) {
	if b == nil {
		return 0, nil
	}
	n, err := strconv.Atoi(string(b))
	if err != nil || n < 0 {
		return 0, fmt.Errorf("read rate: %q is no number of calls", b)
	}
	return n, nil
}

// SetRate sets the calls a second for the namespace. It overrides the rate that the workers were started with; 0
// removes it.
func (q *Queue) SetRate(ctx context.Context, calls int) error {
	if calls < 0 {
		return fmt.Errorf("set rate: %d calls a second", calls)
	}
	err := q.conn.Ask(ctx, func(ctx context.Context) error {
		_, err := q.control.Put(ctx, rateKey, []byte(strconv.Itoa(calls)))
		return err
	})
	return q.fault(ctx, "set rate", err)
}

// KnownAPI reads what [Queue.SetKnownAPI] wrote; nil if there is nothing.
func (q *Queue) KnownAPI(ctx context.Context) ([]byte, error) {
	b, _, err := q.controlValue(ctx, apiKey)
	return b, err
}

// SetKnownAPI stores what a leader found out about the API, for later leaders.
func (q *Queue) SetKnownAPI(ctx context.Context, b []byte) error {
	err := q.conn.Ask(ctx, func(ctx context.Context) error {
		_, err := q.control.Put(ctx, apiKey, b)
		return err
	})
	return q.fault(ctx, "write what is known about the API", err)
}

// ErrTrialChanged says that another process wrote the record of a trial meanwhile.
var ErrTrialChanged = errors.New("another process has begun a trial, or ended one, meanwhile")

// Trial reads what [Queue.SetTrial] wrote, nil if there is nothing, and its revision.
func (q *Queue) Trial(ctx context.Context) ([]byte, uint64, error) {
	b, revision, err := q.controlValue(ctx, trialKey)
	if string(b) == "null" {
		b = nil
	}
	return b, revision, err
}

// SetTrial stores what a trial is about to write into the app, so that it is removed whatever happens; nil says that it is.
// It replaces that revision alone, for a process may have stood still since it read it, and returns the one that follows.
func (q *Queue) SetTrial(ctx context.Context, b []byte, revision uint64) (uint64, error) {
	if b == nil {
		b = []byte("null")
	}
	err := q.conn.Ask(ctx, func(ctx context.Context) (err error) {
		if revision == 0 {
			revision, err = q.control.Create(ctx, trialKey, b)
		} else {
			revision, err = q.control.Update(ctx, trialKey, b, revision)
		}
		return err
	})
	if broker.LostRace(err) || errors.Is(err, jetstream.ErrKeyExists) {
		return 0, ErrTrialChanged
	}
	return revision, q.fault(ctx, "write the record of a trial", err)
}

// A Watcher has the callbacks of [Queue.Watch]; each may be nil. They are called one at a time.
type Watcher struct {
	Halt func(*Halt) // nil: calls may be made
	Rate func(int)   // as by Queue.Rate

	Import func(id string) // the record of the import changed; a record is in state deleting before it is removed
	Resync func()          // any record may have changed

	// The record of an import, or of a sync, as it is: each one at first, after the server was out of reach, and after each
	// change.
	Record func(Import)
	Sync   func(Sync)
}

const (
	// watchPoll is how late a change is noticed at most if the server's notification is lost.
	watchPoll = 5 * time.Second

	// watchRetry is the pause before a broken watch is started again, the same as for a lost connection.
	watchRetry = 250 * time.Millisecond

	// watchLife bounds one watch: it is far longer than connections last.
	watchLife = 365 * 24 * time.Hour
)

// Watch calls w with the present syncs, halt and rate, and again after each change, until ctx ends; it returns nil then. While
// the server is out of reach nothing is known and nothing is called; afterwards w gets the syncs, the halt and the rate as
// they are then, and Resync. Changes that follow each other quickly may come as one.
//
// The error is that of the first read, or wraps [job.ErrVersion] if a newer binary wrote the halt.
func (q *Queue) Watch(ctx context.Context, w Watcher) error {
	failing := false
	for first := true; ; first = false {
		err := q.watch(ctx, w, first)
		switch {
		case ctx.Err() != nil:
			return nil
		case first && err != nil, errors.Is(err, job.ErrVersion):
			return err
		case err != nil && !failing:
			q.conn.LogRetry("watching the control bucket failed; trying again", err)
		}
		failing = err != nil
		if !clock.Pause(ctx, watchRetry) {
			return nil
		}
	}
}

// watch is Watch over one connection. It returns nil if the watch broke after it had started.
func (q *Queue) watch(ctx context.Context, w Watcher, first bool) error {
	life, cancel := q.conn.Within(ctx, watchLife)
	defer cancel()
	// The watch begins before the first read, so that no change falls in between. Begun without a connection, the library would
	// ask for it later, by a subject of older servers that a user need not be allowed; and what is denied gets no response,
	// for which it would wait as long as the watch may live.
	if !q.conn.Connected() {
		return broker.ErrUnreachable
	}
	var updates jetstream.KeyWatcher
	err := q.conn.Ask(ctx, func(ctx context.Context) (err error) {
		watching, stop := context.WithCancel(life) // with the request that begins it, until that has its response
		context.AfterFunc(life, stop)
		defer context.AfterFunc(ctx, stop)()
		updates, err = q.control.WatchAll(watching, jetstream.UpdatesOnly())
		return err
	})
	if err != nil {
		return q.fault(ctx, "watch the control bucket", err)
	}
	defer func() {
		// It has the server remove the watch, which goes by itself when nobody has it; a server that is silent, or gone, holds
		// that up for seconds.
		if life.Err() != nil {
			go updates.Stop()
		} else {
			updates.Stop()
		}
	}()

	seen, err := q.lastSeq(ctx, q.controlStream()) // later reads include the changes up to this one
	if err != nil {
		return err
	}
	halt, haltRevision, err := q.halt(ctx)
	if err != nil {
		return err
	}
	rate, rateRevision, err := q.rate(ctx)
	if err != nil {
		return err
	}
	syncs := make(map[string]uint64) // newest known revisions
	if w.Sync != nil {
		all, err := q.controlValues(ctx, syncPrefix+">")
		if err != nil {
			return q.fault(ctx, "list syncs", err)
		}
		for _, e := range all {
			q.watchedSync(w, e, syncs)
		}
	}
	if w.Record != nil {
		all, err := q.controlValues(ctx, importKey("*"))
		if err != nil {
			return q.fault(ctx, "list imports", err)
		}
		for _, e := range all {
			q.watchedImport(w, e)
		}
	}
	w.halt(halt)
	w.rate(rate)
	if !first && w.Resync != nil {
		w.Resync()
	}

	poll := time.NewTicker(watchPoll)
	defer poll.Stop()
	for {
		select {
		case <-life.Done():
			return nil
		case e, ok := <-updates.Updates():
			if !ok {
				return nil
			}
			if e == nil {
				continue
			}
			seen = max(seen, e.Revision())
			switch key := e.Key(); {
			case e.Operation() != jetstream.KeyValuePut: // this package does not write these
			case key == haltKey && e.Revision() > haltRevision:
				h, err := decodeHalt(e.Value())
				if err != nil {
					return err
				}
				w.halt(h)
			case key == rateKey && e.Revision() > rateRevision:
				n, err := decodeRate(e.Value())
				if err != nil {
					return err
				}
				w.rate(n)
			case strings.HasPrefix(key, importPrefix):
				q.watchedImport(w, e)
				if w.Import != nil {
					w.Import(strings.TrimPrefix(key, importPrefix))
				}
			case strings.HasPrefix(key, syncPrefix) && w.Sync != nil:
				q.watchedSync(w, e, syncs)
			}
		case <-poll.C:
			last, err := q.lastSeq(ctx, q.controlStream())
			if err == nil && last > seen && len(updates.Updates()) == 0 {
				return nil // the watch missed it: start again
			}
		}
	}
}

// watchedImport calls w with the record of an import. One that cannot be read stops nobody.
func (q *Queue) watchedImport(w Watcher, e jetstream.KeyValueEntry) {
	if w.Record == nil {
		return
	}
	i, err := decodeImport(e.Value())
	if err != nil {
		q.log.Warn("the record of an import cannot be read", "import", strings.TrimPrefix(e.Key(), importPrefix), "error", err)
		return
	}
	w.Record(i)
}

// watchedSync calls w with the record of a sync, unless it has a newer one. One that cannot be read stops nobody.
func (q *Queue) watchedSync(w Watcher, e jetstream.KeyValueEntry, newest map[string]uint64) {
	if e.Revision() <= newest[e.Key()] {
		return
	}
	newest[e.Key()] = e.Revision()
	s, err := decodeSync(e.Value(), e.Revision())
	if err != nil {
		q.log.Warn("the record of a sync cannot be read", "sync", strings.TrimPrefix(e.Key(), syncPrefix), "error", err)
		return
	}
	w.Sync(s.Sync)
}

func (w *Watcher) halt(h *Halt) {
	if w.Halt != nil {
		w.Halt(h)
	}
}

func (w *Watcher) rate(n int) {
	if w.Rate != nil {
		w.Rate(n)
	}
}
