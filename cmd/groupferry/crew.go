package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"groupferry/internal/chat"
	"groupferry/internal/governor"
	"groupferry/internal/queue"
	"groupferry/metrics"
	"groupferry/worker"
)

// queueEvery is how old the queue's counts in the metrics can be.
const queueEvery = 5 * time.Second

// heedEvery is how often a crew looks whether somebody said something.
const heedEvery = time.Second

// A crew is everything that works on jobs in this process: the API's client, the pace, the worker, and those who
// watch them.
type crew struct {
	p        *program
	q        *queue.Queue
	api      *chat.Client
	pace     *governor.Member
	metrics  *metrics.Metrics
	counters *counters
	cfg      worker.Config
	importID string       // that a run is about; "" for all
	paused   atomic.Bool  // that import is, by a person
	rate     int          // that this process was started with
	goOn     string       // the command that goes on after a halt
	total    atomic.Int64 // jobs that the progress line counts to; 0 when nobody knows

	queueFault atomic.Pointer[error] // why the queue could not be asked, for readiness
}

// muster joins the fleet that works on the queue. Somebody has to disband the crew.
func (p *program) muster(q *queue.Queue, api *apiClient, a *apiFlags, m *metrics.Metrics) (*crew, error) {
	c := &crew{p: p, q: q, api: api.Client, metrics: m, counters: &counters{}, rate: a.rate}
	log := p.console.log
	link, err := q.Link(p.soft)
	if err != nil {
		return nil, err
	}
	c.pace, err = governor.Join(link, governor.MemberConfig{
		Name:        memberName(),
		Rate:        a.rate,
		CallTimeout: a.timeout,
		Home:        q.Embedded,
		Gate:        &governor.Gate{OnHalt: c.halted},
		RoundTrip:   api.trips.Shortest,
		OnGrant:     m.Granted,
		OnSlower: func(command string, rate float64) {
			log.Warn("throttled by the API; going slower", "command", command, "calls_per_second", int(rate))
		},
		OnOutage: func(on bool) {
			if on {
				log.Warn("the API is out of reach; looking for it with one call at a time, no job is lost")
			} else {
				log.Info("the API answers again")
			}
		},
		OnLead: func(leading bool, wait time.Duration) {
			if leading && wait > 0 {
				log.Info("calls of an earlier process may still be on their way; waiting for them", "wait", wait.Round(time.Millisecond))
			}
			log.Debug("leading", "leading", leading)
		},
		OnError: func(err error) { log.Debug("lease", "err", err) },
		OnInherit: func() {
			if err := q.Reclaim(p.hard); err != nil {
				log.Warn("jobs of a process that was killed come back later", "err", err)
			}
		},
	})
	if err != nil {
		return nil, err
	}
	m.WatchPace(paceOf(c.pace))
	m.SetUserSigExpiry(api.SigExpiry())
	c.cfg = worker.Config{
		Concurrency: a.concurrency, ChunkSize: a.chunk, MaxAttempts: a.attempts,
		Name: processName(), Observer: observer{c.counters, m}, Log: log,
	}
	return c, nil
}

// disband leaves the fleet; the lead is handed over.
func (c *crew) disband() { c.pace.Leave() }

// memberName is processName with a part that no earlier process had.
func memberName() string {
	b := make([]byte, 8)
	rand.Read(b)
	return strings.Map(func(r rune) rune {
		if r == '.' || r == '*' || r == '>' || unicode.IsSpace(r) {
			return '_' // of a subject
		}
		return r
	}, processName()) + "-" + hex.EncodeToString(b)
}

// A standingHalt is one that another process said, or an earlier run.
type standingHalt struct{ queue.Halt }

func (h *standingHalt) Error() string {
	s := h.Reason
	if h.State == queue.Paused {
		s = "paused " + h.Reason
	}
	return fmt.Sprintf("%s (since %s, by %s)", s, h.Since.Local().Format(time.DateTime), h.By)
}

// isPause tells a pause, which a person ends, from a halt, which needs mending: nobody leaves because of a pause.
func isPause(cause error) bool {
	var standing *standingHalt
	return errors.As(cause, &standing) && standing.State == queue.Paused
}

func isNoPause(cause error) bool { return !isPause(cause) }

// stand makes a halt that is there already this crew's, and says so.
func (c *crew) stand(h *queue.Halt) {
	c.pace.Halt(&standingHalt{*h})
	c.p.console.warn("%s: %s; to go on: %s", h.State, h.Reason, h.Command)
}

// haltOf writes down why everything stopped.
func (c *crew) haltOf(cause error) queue.Halt {
	h := queue.Halt{State: "halted", Reason: cause.Error(), Command: c.goOn, By: processName()}
	var e *chat.Error
	if errors.As(cause, &e) {
		h.Code, h.Mend = e.Word(), e.Mend()
	}
	return h
}

// halted makes a halt of this process everybody's, and keeps it over restarts.
func (c *crew) halted(cause error) {
	var standing *standingHalt
	if errors.As(cause, &standing) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.p.hard), 10*time.Second)
	defer cancel()
	if err := c.q.SetHalt(ctx, c.haltOf(cause)); err != nil {
		c.p.console.log.Error("the halt could not be kept", "err", err)
	}
}

// A failure of the call that proves the credentials may pass, as that of any other call. It is made again after 0.2,
// 0.4, 0.8 s and so on, but not for long: somebody is waiting to be told that the API is out of reach.
const (
	checkTries    = 6
	checkBackoff  = 200 * time.Millisecond
	checkPatience = 15 * time.Second // for calls that end in a timeout: no new one after that
)

// check proves the credentials, so that a wrong key is told before any job is taken.
func (c *crew) check(ctx context.Context) error {
	end, renewed := time.Now().Add(checkPatience), false
	for try := 1; ; try++ {
		e, err := c.checkOnce(ctx)
		if e == nil || ctx.Err() != nil {
			return err
		}
		switch class := e.Class(); {
		case class == chat.Refresh && !renewed:
			renewed = true
			if rerr := c.api.Renew(); rerr != nil {
				return &governor.HaltedError{Cause: err}
			}
			continue
		case class == chat.Halt, class == chat.Refresh:
			return &governor.HaltedError{Cause: err}
		case e.Code != 0:
			return nil // busy, or something about this account: the signature was accepted
		}
		if try >= checkTries || time.Now().After(end) || !sleepFor(ctx, checkBackoff<<(try-1)) {
			return &unreachableError{err}
		}
	}
}

// checkOnce makes the call. The first error is the second one as the API's, if it is one.
func (c *crew) checkOnce(ctx context.Context) (*chat.Error, error) {
	permit, err := c.pace.Acquire(ctx, string(chat.GetContactGroup), "")
	if err != nil {
		return nil, err
	}
	start := time.Now()
	err = c.api.Check(ctx)
	permit.Done(governor.Answered)
	word, took := "ok", time.Since(start)
	var e *chat.Error
	if errors.As(err, &e) {
		word = e.Word()
	}
	c.cfg.Observer.CallDone(string(chat.GetContactGroup), word, took)
	return e, err
}

// work works on the jobs of the source until stopped or finished, and keeps everybody informed meanwhile.
func (c *crew) work(source *queue.Source, listener net.Listener) error {
	p := c.p
	// Those who watch go on until the work has ended, also after the first signal.
	watching, stopWatching := context.WithCancel(p.hard)
	var watchers sync.WaitGroup
	defer watchers.Wait()
	defer stopWatching()

	watchers.Go(func() {
		err := c.q.WatchHalt(watching, func(h *queue.Halt) {
			if h == nil {
				c.pace.Resume()
			} else {
				c.pace.Halt(&standingHalt{*h})
			}
		})
		if err != nil {
			p.console.log.Error("halts of other processes are not heard", "err", err)
		}
	})
	watchers.Go(func() { c.showProgress(watching) })
	watchers.Go(func() { c.heed(watching) })
	watchers.Go(func() { c.keepCount(watching) })
	if listener != nil {
		c.metrics.WatchQueue(c.watchQueue(watching, &watchers))
		watchers.Go(func() {
			if err := metrics.Serve(watching, listener, c.metrics.Handler(c.ready)); err != nil {
				p.console.log.Error("metrics are not served", "err", err)
			}
		})
	}
	err := worker.New(c.cfg, jobSource{source}, resultStore{c.q}, c.api, c.pace).Run(p.hard, p.soft.Done())
	p.console.end()
	return err
}

// heed follows what somebody says while the crew works: the rate, and whether the import of a run is paused.
func (c *crew) heed(ctx context.Context) {
	now := 0
	for {
		if c.importID != "" {
			if i, err := c.q.Import(ctx, c.importID); err == nil && c.paused.Swap(i.Paused) != i.Paused && i.Paused {
				c.p.console.log.Warn("the import is paused; to go on: groupferry resume " + c.importID)
			}
		}
		if rate, err := c.q.Rate(ctx); err == nil && rate != now {
			now = rate
			if rate == 0 {
				rate = c.rate
			}
			c.pace.SetRate(rate)
			c.p.console.log.Info("the rate was changed", "calls_per_second", rate)
		}
		if !sleepFor(ctx, heedEvery) {
			return
		}
	}
}

// countEvery is how old the stored count of an import can be. To count a thousand results costs about 20 ms.
const countEvery = 10 * time.Second

// keepCount counts the results of the imports that are worked on, so that a status of a million jobs need not. One
// process of the fleet does it.
func (c *crew) keepCount(ctx context.Context) {
	for sleepFor(ctx, countEvery) {
		if !c.pace.Snapshot().Leading {
			continue
		}
		all, err := c.q.Imports(ctx)
		for _, i := range all {
			if err == nil && !i.State.Over() {
				_, err = c.q.Tally(ctx, i.ID)
			}
		}
		if err != nil {
			c.p.console.log.Debug("count", "err", err)
		}
	}
}

// ready tells a load balancer, or a person, why no work is being done.
func (c *crew) ready() error {
	if cause := c.pace.Halted(); cause != nil {
		return &governor.HaltedError{Cause: cause}
	}
	if err := c.queueFault.Load(); err != nil && *err != nil {
		return *err
	}
	return nil
}

// watchQueue asks the queue for its counts now and then; a scrape gets the last ones.
func (c *crew) watchQueue(ctx context.Context, running *sync.WaitGroup) func() (metrics.Queue, bool) {
	var last atomic.Pointer[metrics.Queue]
	running.Go(func() {
		tick := time.NewTicker(queueEvery)
		defer tick.Stop()
		for {
			n, err := queueCounts(ctx, c.q)
			c.queueFault.Store(&err)
			if err != nil {
				last.Store(nil)
			} else {
				last.Store(&n)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	return func() (metrics.Queue, bool) {
		if n := last.Load(); n != nil {
			return *n, true
		}
		return metrics.Queue{}, false
	}
}

func queueCounts(ctx context.Context, q *queue.Queue) (metrics.Queue, error) {
	var n metrics.Queue
	all, err := q.Imports(ctx)
	for _, i := range all {
		if i.State.Over() {
			continue
		}
		pending, inHand, perr := q.Pending(ctx, i.ID)
		if perr != nil {
			return n, perr
		}
		n.Pending += pending
		n.InHand += inHand
	}
	return n, err
}

// showProgress draws the progress line until ctx ends.
func (c *crew) showProgress(ctx context.Context) {
	tick := time.NewTicker(redraw)
	defer tick.Stop()
	var speed speedometer
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		n := c.counters
		calls := speed.note(time.Now(), n.calls.Load())
		c.p.console.progress(func() string {
			finished := n.done.Load() + n.partial.Load() + n.failed.Load()
			s := fmt.Sprintf("%s jobs done", count(finished))
			if total := c.total.Load(); total > 0 {
				s = fmt.Sprintf("%s of %s jobs done", count(finished), count(total))
			}
			s += fmt.Sprintf(", %.0f calls/s", calls)
			if bad := n.partial.Load() + n.failed.Load(); bad > 0 {
				s += fmt.Sprintf(", %s failed or partial", count(bad))
			}
			if n := n.throttled.Load(); n > 0 {
				s += fmt.Sprintf(", %s throttled", count(n))
			}
			if state := c.pace.Snapshot().State; c.paused.Load() || isPause(c.pace.Halted()) {
				s += ", paused"
			} else if state != governor.Running {
				s += ", " + string(state)
			} else if left := c.total.Load() - finished; left > 0 && calls > 0 && finished > 0 {
				perJob := float64(n.calls.Load()) / float64(finished)
				s += ", " + span(time.Duration(float64(left)*perJob/calls*float64(time.Second))) + " left"
			}
			return s
		})
	}
}

// A speedometer tells the speed over the last ten seconds.
type speedometer struct {
	at    []time.Time
	count []int64
}

func (s *speedometer) note(now time.Time, n int64) float64 {
	for len(s.at) > 1 && now.Sub(s.at[0]) > 10*time.Second {
		s.at, s.count = s.at[1:], s.count[1:]
	}
	s.at, s.count = append(s.at, now), append(s.count, n)
	if d := now.Sub(s.at[0]).Seconds(); d > 0 {
		return float64(n-s.count[0]) / d
	}
	return 0
}

// completeAll closes the books of the imports whose jobs all have a result.
func (p *program) completeAll(ctx context.Context, q *queue.Queue) {
	all, err := q.Imports(ctx)
	if err != nil {
		return
	}
	for _, i := range all {
		if i.State != queue.Enqueued {
			continue
		}
		switch err := q.Complete(ctx, i.ID); {
		case err == nil:
			p.console.log.Info("import is complete", "import", i.ID)
			if _, err := q.Tally(ctx, i.ID); err != nil { // whoever asks for its status finds it counted
				p.console.log.Debug("count", "err", err)
			}
		case errors.Is(err, queue.ErrUnfinished), errors.Is(err, queue.ErrUnreachable), ctx.Err() != nil:
		default:
			p.console.log.Error("an import cannot be completed", "err", err)
		}
	}
}

// listen opens the address for metrics and status; "" and "off" mean none.
func listen(address string) (net.Listener, error) {
	if address == "" || address == "off" {
		return nil, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, hint(usagef("--listen: %w", err), "choose another address, or --listen off")
	}
	return l, nil
}
