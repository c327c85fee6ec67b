package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"groupferry/internal/governor"
	"groupferry/internal/queue"
)

// completeEvery is how often a worker looks whether an import has become complete.
const completeEvery = 5 * time.Second

func (p *program) workCommand() *cobra.Command {
	var api apiFlags
	var qf queueFlags
	var drain bool
	var address string
	var keep keepFlag
	cmd := &cobra.Command{
		Use:   "work",
		Short: "Make the calls of the jobs on the queue",
		Long: `work takes jobs from the queue, makes their calls and writes their results, until it
is stopped; with --drain, until the queue is empty.

When every job would fail the same way (a wrong key, an edition without groups) it
halts: it keeps the jobs, makes no more calls, is not ready, and goes on after
'groupferry resume', also over restarts. The first interrupt lets jobs in hand
finish for up to 30 seconds, the second leaves at once; neither loses anything.

` + exitCodes,
		Example: `  groupferry work --nats-url nats://queue:4222 --region singapore --sdk-app-id 1400000000 --secret-key-file key
  groupferry work --drain --region singapore --sdk-app-id 1400000000 --secret-key-file key`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			client, err := p.client(&api)
			if err != nil {
				return err
			}
			defer client.Close()
			listener, err := listen(address)
			if err != nil {
				return err
			}
			if listener != nil {
				defer listener.Close()
				p.console.log.Info("serving metrics and status", "url", "http://"+listener.Addr().String())
			}
			q, err := p.open(qf, drain)
			if err != nil {
				return err
			}
			defer q.Close()
			if err := p.keepApart(p.soft, q, false); err != nil {
				return err
			}
			c, err := p.muster(q, client, &api, newMetrics())
			if err != nil {
				return err
			}
			defer c.disband()
			c.goOn = "groupferry resume" + qf.args(p.getenv)
			if drain {
				c.cfg.LeaveOn = isNoPause
				c.cfg.Finished = drained(q)
			}

			standing, err := q.Halted(p.soft)
			switch {
			case err != nil:
				return err
			case standing != nil:
				c.stand(standing)
			default:
				var unreachable *unreachableError
				if err := c.check(p.soft); errors.As(err, &unreachable) && !drain {
					p.console.log.Warn("the API does not answer yet", "err", err)
				} else if err != nil && p.soft.Err() == nil {
					return err
				}
			}
			p.console.log.Info("working", "queue", q.Where(), "calls_per_second", api.rate)

			closing, stop := context.WithCancel(p.soft)
			closed := make(chan struct{})
			go func() {
				defer close(closed)
				for tidied := (time.Time{}); ; {
					if time.Since(tidied) > tidyEvery {
						tidied = time.Now()
						p.tidy(closing, q, keep)
					}
					if !sleepFor(closing, completeEvery) {
						return
					}
					p.completeAll(closing, q)
				}
			}()
			err = c.work(q.Source(), listener)
			stop()
			<-closed
			p.completeAll(context.WithoutCancel(p.soft), q)
			switch {
			case governor.IsHalted(err):
				return &unfinishedError{err, c.goOn + " && " + p.commandLine(), true}
			case err == nil && drain && p.soft.Err() != nil:
				return &unfinishedError{errInterrupted, p.commandLine(), false}
			}
			return err
		},
	}
	api.add(cmd)
	qf.add(cmd)
	cmd.Flags().BoolVar(&drain, "drain", false, "end when the queue is empty")
	cmd.Flags().StringVar(&address, "listen", "127.0.0.1:9477", "`address` for metrics and status; off for none")
	keep.add(cmd)
	p.consoleFlags(cmd)
	return cmd
}

// drained tells whether nothing is left to do for any import.
func drained(q *queue.Queue) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		all, err := q.Imports(ctx)
		if err != nil {
			return false, err
		}
		for _, i := range all {
			if done, err := settled(ctx, q, i.ID); !done {
				return false, err
			}
		}
		return true, nil
	}
}

// settled tells whether nothing is left to do for an import. Trouble that does not pass is an end too: whoever completes
// the import tells what it is.
func settled(ctx context.Context, q *queue.Queue, id string) (bool, error) {
	done, err := q.Settled(ctx, id)
	if err != nil && ctx.Err() == nil && !errors.Is(err, queue.ErrUnreachable) {
		return true, nil
	}
	return done, err
}

// sleepFor waits, and returns false when ctx ends first.
func sleepFor(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}
