package app

import (
	"context"
	"encoding/json"

	"groupferry/internal/queue"
	"groupferry/worker"
)

// storedKnown is what is known about an API, and which one that is. What was found out about another app, another
// address or the simulator says nothing.
type storedKnown struct {
	App     queue.App `json:"app"`
	Address string    `json:"address"`
	worker.Known
}

// knownAPI reads what earlier leaders found out about this API. What cannot be read is not known.
func (e *Engine) knownAPI(ctx context.Context) (worker.Known, error) {
	var stored storedKnown
	err := e.retry(ctx, "read what is known about the API", func() error {
		b, err := e.cfg.Namespace.KnownAPI(ctx)
		if err != nil || b == nil {
			return err
		}
		if json.Unmarshal(b, &stored) != nil {
			stored = storedKnown{}
		}
		return nil
	})
	if stored.App != e.cfg.App || stored.Address != e.cfg.API.Address() {
		stored = storedKnown{}
	}
	return stored.Known, err
}

// keepKnown stores what is found out, until ctx ends, and what was found out last. What cannot be stored is found out
// again by the next leader.
func (e *Engine) keepKnown(ctx context.Context, learned <-chan worker.Known) {
	store := func(ctx context.Context, k worker.Known) {
		b, err := json.Marshal(storedKnown{e.cfg.App, e.cfg.API.Address(), k})
		if err == nil {
			err = e.cfg.Namespace.SetKnownAPI(ctx, b)
		}
		if err != nil {
			e.log.Debug("what was found out about the API is not stored", "error", err)
		}
	}
	for {
		select {
		case k := <-learned:
			store(ctx, k)
			continue
		case <-ctx.Done():
		}
		select {
		case k := <-learned:
			last, cancel := e.closingContext(ctx)
			defer cancel()
			store(last, k)
		default:
		}
		return
	}
}

// latest puts v on a channel with one place, instead of what is there.
func latest[T any](c chan T, v T) {
	for {
		select {
		case c <- v:
			return
		default:
		}
		select {
		case <-c:
		default:
		}
	}
}
