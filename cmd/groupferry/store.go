package main

import (
	"errors"
	"time"

	"groupferry/internal/app"
	"groupferry/internal/broker"
)

// open opens the queue. With joinOnly it makes nothing: where no import was ever begun that is an error.
func (p *program) open(q queueFlags, joinOnly bool) (*app.Namespace, error) {
	s, err := app.Open(p.soft, broker.Config{
		URL: q.url, Creds: q.creds, Context: q.context, DataDir: q.dataDir, Namespace: q.namespace,
		Replicas: q.replicas, Name: "groupferry " + processName(), Log: p.console.log, JoinOnly: joinOnly,
		OnBroken: func(e *broker.DiskError) { p.fail(e) },
	})
	if errors.Is(err, broker.ErrNoData) {
		return nil, hint(err, "name the directory with --data-dir, or the server with --nats-url")
	}
	return s, err
}

// mostWait is the longest pause between two attempts to reach NATS at a start.
const mostWait = time.Minute

// openWaiting opens the queue, and waits for NATS as long as it takes: a worker that is started before its server is up
// would else have to be started again. Each attempt takes about five seconds by itself.
func (p *program) openWaiting(q queueFlags, joinOnly bool) (*app.Namespace, error) {
	for pause := time.Second; ; pause = min(2*pause, mostWait) {
		s, err := p.open(q, joinOnly)
		if err == nil || !errors.Is(err, broker.ErrUnreachable) || p.soft.Err() != nil {
			return s, err
		}
		p.console.log.Warn("waiting for NATS", "err", err, "next_attempt_in", pause.String())
		if !sleepFor(p.soft, pause) {
			return nil, errInterrupted
		}
	}
}
