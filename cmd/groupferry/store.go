package main

import (
	"errors"

	"groupferry/internal/app"
	"groupferry/internal/broker"
)

// config says where the queue is. With joinOnly nothing is made: where no import was ever begun that is an error.
func (q *queueFlags) config(p *program, joinOnly bool) broker.Config {
	return broker.Config{
		URL: q.url, Creds: q.creds, Context: q.context, DataDir: q.dataDir, Namespace: q.namespace,
		Replicas: q.replicas, Name: "groupferry " + processName(), Log: p.console.log, JoinOnly: joinOnly,
		OnBroken: func(e *broker.DiskError) { p.fail(e) },
	}
}

func (p *program) open(q queueFlags, joinOnly bool) (*app.Namespace, error) {
	s, err := app.Open(p.soft, q.config(p, joinOnly))
	return s, noData(err)
}

// noData adds what to do where no import was ever begun.
func noData(err error) error {
	if errors.Is(err, broker.ErrNoData) {
		err = hint(err, "name the directory with --data-dir, or the server with --nats-url")
	}
	return err
}
