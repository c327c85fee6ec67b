package main

import (
	"errors"
	"time"

	"groupferry/internal/broker"
	"groupferry/internal/queue"
)

// A store is the queue of a namespace with the connection that it is reached by.
type store struct {
	*queue.Queue
	conn *broker.Conn
}

// Where says for people where the queue is.
func (s *store) Where() string { return s.conn.Where() }

// Close leaves the server, and stops it when this process runs it.
func (s *store) Close() error { return s.conn.Close() }

// open opens the queue. With joinOnly it makes nothing: where no import was ever begun that is an error.
func (p *program) open(q queueFlags, joinOnly bool) (*store, error) {
	conn, err := broker.Open(p.soft, broker.Config{
		URL: q.url, Creds: q.creds, Context: q.context, DataDir: q.dataDir, Namespace: q.namespace,
		Replicas: q.replicas, Name: "groupferry " + processName(), Log: p.console.log, JoinOnly: joinOnly,
		OnBroken: func(e *broker.DiskError) { p.fail(e) },
	})
	var opened *queue.Queue
	if err == nil {
		if opened, err = queue.Open(p.soft, conn); err != nil {
			conn.Close()
		}
	}
	if errors.Is(err, broker.ErrNoData) {
		return nil, hint(err, "name the directory with --data-dir, or the server with --nats-url")
	}
	if err != nil {
		return nil, err
	}
	return &store{opened, conn}, nil
}

// mostWait is the longest pause between two attempts to reach NATS at a start.
const mostWait = time.Minute

// openWaiting opens the queue, and waits for NATS as long as it takes: a worker that is started before its server is up
// would else have to be started again. Each attempt takes about five seconds by itself.
func (p *program) openWaiting(q queueFlags, joinOnly bool) (*store, error) {
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
