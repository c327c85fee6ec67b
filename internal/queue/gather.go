package queue

import (
	"sync"
	"time"
)

// A gather makes groups of what many ask for at once. What comes while a group is being seen to waits and makes the
// next one; what comes when there is none is seen to at once. Nobody waits for others to come, unless many came just
// now and a few more make the group cheaper: see [gather.patience].
//
//	add ──► waiting ──┐
//	add ──► waiting ──┼──► do, one group at a time
//	add ──► waiting ──┘
type gather[T any] struct {
	do   func(group []T)
	most int         // in a group
	size func(T) int // in bytes; nil counts none
	room int         // a group that has reached it takes no more

	// After a group of many or more, the next one may take patience to become one of plenty.
	many, plenty int
	patience     time.Duration

	mu      sync.Mutex
	waiting []T
	busy    bool          // a group is being seen to
	crowd   bool          // the last one was of many
	full    chan struct{} // closed when plenty wait, if somebody wants to know
	running sync.WaitGroup
}

// add returns at once; do tells what became of it.
func (g *gather[T]) add(one T) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting = append(g.waiting, one)
	if g.full != nil && len(g.waiting) >= g.plenty {
		close(g.full)
		g.full = nil
	}
	if !g.busy {
		g.busy = true
		g.running.Go(g.work)
	}
}

// work goes on until nothing waits.
func (g *gather[T]) work() {
	for {
		g.awaitPlenty()
		group := g.next()
		if group == nil {
			return
		}
		g.do(group)
	}
}

func (g *gather[T]) awaitPlenty() {
	g.mu.Lock()
	if !g.crowd || len(g.waiting) >= g.plenty {
		g.mu.Unlock()
		return
	}
	full := make(chan struct{})
	g.full = full
	g.mu.Unlock()
	select {
	case <-full:
	case <-time.After(g.patience):
		g.mu.Lock()
		g.full = nil
		g.mu.Unlock()
	}
}

func (g *gather[T]) next() []T {
	g.mu.Lock()
	defer g.mu.Unlock()
	n, size := 0, 0
	for n < min(len(g.waiting), g.most) && (g.size == nil || size < g.room) {
		if g.size != nil {
			size += g.size(g.waiting[n])
		}
		n++
	}
	group := g.waiting[:n:n]
	g.waiting = g.waiting[n:]
	g.crowd = g.many > 0 && n >= g.many
	if n == 0 {
		g.busy, g.waiting = false, nil
		return nil
	}
	return group
}
