package app

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"groupferry/importer"
	"groupferry/internal/queue"
	"groupferry/worker"
)

// Users are read many at a time and passed on in their order:
//
//	plan.Users ──► begun, at most readWindow ──► worker.Reader, a goroutine for each ──► done, in order ──► export, verify
//	                     ▲                                   │
//	                     └── again, in the next term ◄───────┘ the lease was lost

const (
	// readWindow is how many users are begun and not passed on yet: enough for 100 calls a second of more than a second each.
	// A user takes memory for as long, a few kB usually.
	readWindow = 128

	// readGrace is how long the calls under way may take after a stop.
	readGrace = 5 * time.Second
)

// ReadConfig says how users are read.
type ReadConfig struct {
	Engine EngineConfig // Read and Worker.Observer are set by the reading

	// Begin is called once, when this process has the permits of readers, and gives the users.
	Begin func() (iter.Seq2[importer.PlannedUser, error], error)

	// OnRead, unless nil, is called after each user with what the engine knows.
	OnRead func(State)
}

// A UserList is what was read of one user: List, or why it could not be read as a whole.
type UserList struct {
	importer.PlannedUser
	List   worker.List
	Unread *worker.Unread
}

// An UnreadUser is a user whose list could not be read as a whole. Its JSON form is read by programs.
type UnreadUser struct {
	FromAccount string `json:"from_account"`
	Code        string `json:"code"`
	Reason      string `json:"reason"`
}

func (u *UserList) unread() UnreadUser { return UnreadUser{u.ID, u.Unread.Code, u.Unread.Info} }

// ReadStats say what a reading took. Their JSON form is read by programs: fields are added, never changed.
type ReadStats struct {
	Users   int64   `json:"users"`   // that were read, also those whose list is not complete
	Calls   int64   `json:"calls"`   // get_contact_group
	Seconds float64 `json:"seconds"` //

	NoAccount     int64 `json:"no_account"`     // users that the API does not know
	WithoutGroups int64 `json:"without_groups"` // users that it knows, without a group
	Groups        int64 `json:"groups"`
	EmptyGroups   int64 `json:"empty_groups"` // of these: groups that hold nothing
}

// add counts what was read of one user.
func (s *ReadStats) add(u *UserList) {
	s.Users++
	switch {
	case u.Unread != nil:
		return
	case u.List.NoUser:
		s.NoAccount++
	case len(u.List.Groups) == 0:
		s.WithoutGroups++
	}
	for _, g := range u.List.Groups {
		s.Groups++
		if len(g.Items) == 0 {
			s.EmptyGroups++
		}
	}
}

// A ReadCost is what a reading takes, if each list has one page and no call fails.
type ReadCost struct {
	Users   int64   `json:"users"`
	Rate    int     `json:"rate"` // calls a second: the half of readers
	Seconds float64 `json:"seconds"`
}

// ReadCost says what it takes to read so many users by a process that was started with a rate.
func (n *Namespace) ReadCost(ctx context.Context, users int64, rate int) (ReadCost, error) {
	set, err := n.Rate(ctx)
	if err != nil {
		return ReadCost{}, err
	}
	if set > 0 {
		rate = set
	}
	c := ReadCost{Users: users, Rate: readerShare("", rate)}
	if c.Rate > 0 {
		c.Seconds = math.Ceil(float64(users) / float64(c.Rate))
	}
	return c, nil
}

// readAll reads users, and calls each with every one of them, in their order, one at a time. It returns what it took. The
// error is ErrStopped when stop was closed before the end, a *[ReadingError] when another process reads, ErrCredentials,
// a *governor.HaltedError when no list can be read, and that of Begin, the users or each.
func readAll(ctx context.Context, stop <-chan struct{}, cfg ReadConfig, each func(*UserList) error) (calls int64, took time.Duration, err error) {
	r := &reading{each: each}
	defer func() {
		if r.close != nil {
			r.close()
		}
	}()
	var started time.Time
	var complete atomic.Bool
	var e *Engine
	engine := cfg.Engine
	engine.LeaveOnHalt = true
	engine.Read = func(ctx context.Context, stop <-chan struct{}, reader *worker.Reader) error {
		if r.next == nil {
			started = time.Now()
			users, err := cfg.Begin()
			if err != nil {
				return err
			}
			r.next, r.close = iter.Pull2(users)
		}
		r.progress = func() {
			if cfg.OnRead != nil {
				cfg.OnRead(e.State())
			}
		}
		err := r.run(ctx, stop, reader)
		complete.Store(err == nil)
		return err
	}
	var have *queue.App
	if have, err = engine.Namespace.App(ctx); err == nil && have != nil && *have != engine.App {
		err = &queue.OtherAppError{Want: engine.App, Have: *have}
	}
	if err == nil {
		e, err = NewEngine(ctx, engine)
	}
	if err != nil {
		return 0, 0, err
	}
	err = e.Run(ctx, stop)
	if err == nil && !complete.Load() {
		err = ErrStopped
	}
	if !started.IsZero() {
		took = time.Since(started)
	}
	return e.State().Tally.Calls, took, err
}

// A reading is how far the users are.
type reading struct {
	next     func() (importer.PlannedUser, error, bool) // one goroutine at a time
	close    func()
	each     func(*UserList) error
	progress func()

	ended  bool
	begun  []*userRead // in their order: those that were not passed on
	failed error       // of each: what it did of that user is not known, so nobody is passed on after it
}

type userRead struct {
	UserList
	done bool
}

// run reads until all is read, or it cannot continue here. Then it can be called again.
func (r *reading) run(ctx context.Context, stop <-chan struct{}, reader *worker.Reader) error {
	reading, cancel := context.WithCancel(ctx)
	defer cancel()
	type outcome struct {
		u   *userRead
		err error
	}
	outcomes := make(chan outcome, readWindow)
	var underWay sync.WaitGroup
	defer underWay.Wait()
	left := 0
	begin := func(u *userRead) {
		left++
		underWay.Go(func() {
			list, err := reader.Read(reading, u.ID)
			u.List = list
			outcomes <- outcome{u, err}
		})
	}
	for _, u := range r.begun {
		if !u.done {
			begin(u)
		}
	}
	var failure error
	fail := func(err error) {
		if failure == nil {
			failure = err
			cancel()
		}
	}
	var grace <-chan time.Time
	for {
		for failure == nil && grace == nil && !r.ended && len(r.begun) < readWindow {
			u, err, ok := r.next()
			switch {
			case !ok:
				r.ended = true
			case err != nil:
				fail(err)
			default:
				r.begun = append(r.begun, &userRead{UserList: UserList{PlannedUser: u}})
				begin(r.begun[len(r.begun)-1])
			}
		}
		if left == 0 {
			break
		}
		select {
		case o := <-outcomes:
			left--
			if unread, ok := errors.AsType[*worker.Unread](o.err); ok {
				o.u.Unread, o.err = unread, nil
			}
			if o.u.done = o.err == nil; !o.u.done {
				fail(o.err)
			}
			if err := r.passOn(); err != nil {
				fail(err)
			}
		case <-stop:
			stop, grace = nil, time.After(readGrace)
		case <-grace:
			cancel()
		}
	}
	switch {
	case r.failed != nil:
		return r.failed
	case grace != nil && (len(r.begun) > 0 || !r.ended) && (failure == nil || errors.Is(failure, context.Canceled)):
		return ErrStopped
	}
	return failure
}

// passOn passes on what is done, in order.
func (r *reading) passOn() error {
	for r.failed == nil && len(r.begun) > 0 && r.begun[0].done {
		if r.failed = r.each(&r.begun[0].UserList); r.failed == nil {
			r.begun[0] = nil
			r.begun = r.begun[1:]
			r.progress()
		}
	}
	return r.failed
}

// UsersOfImport goes through the users of an import, as often as they occur. The errors are those of [Namespace.ResultLines];
// an import that is not over is one, too.
func (n *Namespace) UsersOfImport(ctx context.Context, id string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		i, err := n.Import(ctx, id)
		if err == nil && !i.State.Over() {
			err = fmt.Errorf("import %s is not over: the users of jobs without a result are not known; wait, or name its files", id)
		}
		if err != nil {
			yield("", err)
			return
		}
		last := ""
		for l, err := range n.ResultLines(ctx, id, AllLines) {
			if l.FromAccount == last && err == nil {
				continue
			}
			last = l.FromAccount
			if !yield(last, err) {
				return
			}
		}
	}
}

// UsersOfSync goes through the users that a sync has sent something for, as often as they occur. The error wraps
// [queue.ErrNoSync] when it has had no night.
func (n *Namespace) UsersOfSync(ctx context.Context, name, target string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		base, _, err := n.syncBase(ctx, name, target)
		if err != nil {
			yield("", err)
			return
		}
		for g, err := range base.Groups {
			if !yield(g.FromAccount, err) {
				return
			}
		}
	}
}

// syncBase is what a sync knows now, its snapshot and the results of its last night, and that night.
func (n *Namespace) syncBase(ctx context.Context, name, target string) (*importer.Base, *queue.Night, error) {
	s, err := n.Queue.Sync(ctx, name, target)
	if err == nil && s.Pending == nil {
		err = fmt.Errorf("%w: %s has had no night", queue.ErrNoSync, name)
	}
	if err != nil {
		return nil, nil, err
	}
	var before *queue.Import
	if i, err := n.Import(ctx, s.Pending.Import); err == nil {
		before = &i
	} else if !errors.Is(err, queue.ErrNoImport) {
		return nil, nil, err
	}
	return &importer.Base{
		Name: name, Generation: s.Generation, All: true,
		Groups: func(yield func(importer.Group, error) bool) {
			n.yieldKnown(ctx, s.Object, before, new(bool), yield)
		},
	}, s.Pending, nil
}
