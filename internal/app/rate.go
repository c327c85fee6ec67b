package app

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"groupferry/internal/clock"
)

// The rate of a namespace is what 'groupferry rate' set. While nobody has set one it is the lowest of those that its
// processes were started with, whichever of them leads. Each process tells its own to the others every announceEvery, the
// leader as well as those that stand by, and each knows those of the others:
//
//	start, --rate 100 ──► Announce ──► all processes: lowest of those that were heard ──► State.Rate ──► pace of the leader
//
// Nothing of it is stored: a process that leads next has heard the others while it stood by, and the rate of a process
// that has ended counts no more.

const (
	// announceEvery is how often a process tells its rate. It stands by for longer than that before it takes over.
	announceEvery = time.Second

	// mostMissed announcements in a row of a process may get lost; after that it is taken for gone.
	mostMissed = 5
)

// An announcement is what a process tells the others. Rate is 0 when it leaves.
type announcement struct {
	Name string `json:"name"`
	Host string `json:"host"`
	Rate int    `json:"rate"`

	Reads bool `json:"reads,omitempty"` // it neither leads nor stands by, see reader.go
}

// rates has what decides about the rate, beside the process itself.
type rates struct {
	mu     sync.Mutex
	set    int // by 'groupferry rate'; 0: by nobody
	others map[string]*otherRate
}

// An otherRate is that of another process.
type otherRate struct {
	announcement
	missed int // announcements in a row
}

// announce tells the others the rate of this process until ctx ends, and follows theirs.
func (e *Engine) announce(ctx context.Context) {
	conn := e.cfg.Namespace.Conn
	tell := func(rate int) {
		b, err := json.Marshal(announcement{e.cfg.Name, e.cfg.Host, rate, e.reads()})
		if err == nil {
			err = conn.Announce(b)
		}
		if err != nil {
			e.log.Debug("the rate was not announced", "error", err)
		}
	}
	stop, err := conn.Announcements(e.heard)
	if err != nil {
		e.log.Warn("the rates of other processes are not known", "error", err)
		return
	}
	defer tell(0)
	defer stop()
	for {
		tell(e.cfg.Rate)
		if !clock.Pause(ctx, announceEvery) {
			return
		}
		e.forgetSilent()
	}
}

// forgetSilent counts an announcement as missed of each process, which the next one of it sets to none.
func (e *Engine) forgetSilent() {
	e.changeRates(func(r *rates) {
		for name, o := range r.others {
			if o.missed++; o.missed > mostMissed {
				delete(r.others, name)
			}
		}
	})
}

// heard takes in what a process announced.
func (e *Engine) heard(b []byte) {
	var a announcement
	if json.Unmarshal(b, &a) != nil || a.Name == e.cfg.Name {
		return
	}
	e.changeRates(func(r *rates) {
		if a.Rate <= 0 {
			delete(r.others, a.Name)
			return
		}
		if r.others == nil {
			r.others = map[string]*otherRate{}
		}
		r.others[a.Name] = &otherRate{announcement: a}
	})
}

// changeRates changes what decides about the rate, and has the process keep the one that follows from it.
func (e *Engine) changeRates(change func(*rates)) {
	e.rates.mu.Lock()
	defer e.rates.mu.Unlock()
	change(&e.rates)
	rate, of, differ := e.cfg.Rate, e.cfg.Host, false
	var hosts []string
	for _, o := range e.rates.others {
		if !o.Reads {
			hosts = append(hosts, o.Host)
		}
		differ = differ || o.Rate != e.cfg.Rate
		if o.Rate < rate || o.Rate == rate && rate < e.cfg.Rate && o.Host < of { // of two, always the same
			rate, of = o.Rate, o.Host
		}
	}
	switch {
	case e.rates.set > 0:
		rate, of = e.rates.set, ""
	case !differ:
		of = ""
	}
	slices.Sort(hosts)
	capped := e.cfg.Limit > 0 && rate > e.cfg.Limit
	if capped {
		rate = e.cfg.Limit
	}
	now, _ := e.state.get()
	if now.Rate == rate && now.RateOf == of && now.RateSet == e.rates.set && now.RateCapped == capped && slices.Equal(now.Others, hosts) {
		return
	}
	e.state.set(func(s *State) {
		s.Rate, s.RateOf, s.RateSet, s.RateCapped, s.Others = rate, of, e.rates.set, capped, hosts
	})
	e.candidate.SetRate(rate)
	if pace, _ := e.present(); pace != nil {
		pace.SetRate(rate)
	}
}

// reportRate logs how the rate came about, where it is not simply that which all were started with.
func (e *Engine) reportRate(before, now *State) {
	command := e.cfg.Namespace.Conn.Command("rate", "N")
	switch {
	case now.RateSet != before.RateSet && now.RateSet > 0:
		e.log.Info("the rate is the one that was set by hand", "calls_per_second", now.RateSet, "started_with", e.cfg.Rate,
			"hint", command)
	case now.RateOf != "" && (now.RateOf != before.RateOf || now.Rate != before.Rate):
		e.log.Warn("processes of this namespace were started with different rates: the lowest holds",
			"calls_per_second", now.Rate, "host", now.RateOf, "started_with", e.cfg.Rate, "hint", command)
	case now.RateSet != before.RateSet || now.RateOf != before.RateOf:
		e.log.Info("the rate is the one that all processes were started with", "calls_per_second", now.Rate)
	}
	if now.RateCapped && !before.RateCapped {
		e.log.Warn("the rate is more than the app has: keeping to the limit of the app", "calls_per_second", e.cfg.Limit)
	}
}
