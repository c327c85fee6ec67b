package main

import (
	"context"
	"errors"
	"strconv"
	"sync/atomic"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/governor"
	"groupferry/internal/job"
	"groupferry/internal/queue"
	"groupferry/metrics"
	"groupferry/worker"
)

// This file joins rooms that do not know each other.

// jobSource gives the queue's deliveries to the worker.
type jobSource struct{ *queue.Source }

func (s jobSource) Fetch(ctx context.Context, most int) ([]worker.Delivery, error) {
	got, err := s.Source.Fetch(ctx, most)
	deliveries := make([]worker.Delivery, len(got))
	for i, d := range got {
		deliveries[i] = d
	}
	return deliveries, err
}

// resultStore keeps the worker's results on the queue.
type resultStore struct{ *queue.Queue }

func (s resultStore) Get(ctx context.Context, importID, jobID string) (job.Result, uint64, error) {
	r, sequence, err := s.Queue.Result(ctx, importID, jobID)
	if errors.Is(err, queue.ErrNoResult) {
		return r, 0, nil
	}
	return r, sequence, err
}

func (s resultStore) Put(ctx context.Context, r job.Result, sequence uint64) (bool, error) {
	err := s.Queue.PutResult(ctx, r, sequence)
	if errors.Is(err, queue.ErrResultExists) {
		return false, nil
	}
	return err == nil, err
}

// counters is what this process did, for its progress line and its report; the queue has the truth about an import.
type counters struct {
	calls, throttled, retries      atomic.Int64
	done, partial, failed          atomic.Int64
	conversations, conversationsKO atomic.Int64
	inHand                         atomic.Int64
}

// observer tells the metrics and the counters what the worker does.
type observer struct {
	*counters
	*metrics.Metrics
}

func (o observer) CallDone(command, word string, d time.Duration) {
	o.calls.Add(1)
	if code, err := strconv.Atoi(word); err == nil && chat.ClassOf(code) == chat.Throttle {
		o.throttled.Add(1)
		o.Metrics.Throttled(command)
	}
	o.Metrics.CallDone(command, word, d)
}

func (o observer) Retry(command string) {
	o.retries.Add(1)
	o.Metrics.Retry(command)
}

func (o observer) JobStarted() {
	o.inHand.Add(1)
	o.Metrics.JobStarted()
}

func (o observer) JobDone(outcome string, done, failed int, d time.Duration, attempts int) {
	o.inHand.Add(-1)
	switch job.Outcome(outcome) {
	case job.Done:
		o.counters.done.Add(1)
	case job.Partial:
		o.counters.partial.Add(1)
	case job.Failed:
		o.counters.failed.Add(1)
	}
	o.conversations.Add(int64(done))
	o.conversationsKO.Add(int64(failed))
	o.Metrics.JobDone(outcome, done, failed, d, attempts)
}

func (o observer) JobPutBack(reason string) {
	o.inHand.Add(-1)
	o.Metrics.JobPutBack(reason)
}

// paceOf shows the fleet to the metrics.
func paceOf(m *governor.Member) func() metrics.Pace {
	return func() metrics.Pace {
		s := m.Snapshot()
		p := metrics.Pace{
			State: string(s.State), Commands: map[string]metrics.Lane{}, Leading: s.Leading,
			LeaderChanges: s.LeaderChanges, Refused: s.Refused, Standstill: s.Standstill,
		}
		var standing *standingHalt
		if errors.As(m.Halted(), &standing) {
			p.State = standing.State // a person's pause looks like a halt to the governor
		}
		for command, l := range s.Lanes {
			p.Commands[command] = metrics.Lane{Limit: l.Limit, Effective: l.Effective, Out: l.Out, Waiting: l.Waiting}
		}
		return p
	}
}

func newMetrics() *metrics.Metrics {
	var commands, codes []string
	for _, c := range chat.Commands() {
		commands = append(commands, string(c))
	}
	for _, c := range chat.Codes() {
		codes = append(codes, strconv.Itoa(c))
	}
	return metrics.New(metrics.Config{Build: metrics.BuildInfo{Version: version()}, Commands: commands, Codes: codes})
}
