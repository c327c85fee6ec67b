package main

import (
	"bytes"
	"context"
	"errors"
	"strconv"
	"strings"

	"groupferry/internal/app"
	"groupferry/internal/broker"
	"groupferry/internal/page"
)

// actions are the buttons of the page: they do what the commands of their names do, and say the same. Where is how a command
// gets to the queue.
func (p *program) actions(s *app.Namespace, where string) func(context.Context, page.Action) page.Answer {
	return func(ctx context.Context, a page.Action) page.Answer {
		var said bytes.Buffer
		as := *p
		as.console = &console{w: &said, log: p.console.log}
		log := p.console.log
		if a.Import != "" {
			log = log.With("import", a.Import)
		}
		var err error
		switch a.Name {
		case page.Pause:
			err = as.pause(ctx, s, nil, where)
		case page.Resume:
			err = as.resume(ctx, s, nil, where)
		case page.Rate:
			err = as.rate(ctx, s, []string{strconv.Itoa(*a.Calls)}, where)
		case page.Retry:
			err = as.retry(ctx, s, a.Import, nil, where)
		}
		if err = as.noImport(err, where); err != nil {
			log.Warn("the page: "+a.Name, "error", err)
			return p.failed(err)
		}
		log.Info("the page: " + a.Name)
		return page.Answer{OK: true, Text: strings.ReplaceAll(strings.TrimSpace(said.String()), "groupferry: ", "")}
	}
}

// failed is the answer where an action ended with an error. What was asked of a server that is out of reach may still be on its way.
func (p *program) failed(err error) page.Answer {
	a := page.Answer{Text: shown(p.inSettings(err)), Hint: hintFor(err)}
	if errors.Is(err, broker.ErrUnreachable) && a.Hint == "" {
		a.Hint = "it may be done all the same once NATS is back; the page then shows it"
	}
	return a
}
