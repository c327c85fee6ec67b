package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"groupferry/internal/app"
	"groupferry/internal/governor"
)

func (p *program) workCommand() *cobra.Command {
	var api apiFlags
	var qf queueFlags
	var drain bool
	var serve serveFlags
	var keep keepFlag
	cmd := &cobra.Command{
		Use:   "work",
		Short: "Make the calls of the jobs on the queue",
		Long: `work takes jobs from the queue, makes their calls and writes their results,
until it is stopped; with --drain, until the queue is empty; the last line then
says what became of its jobs, and the exit code is 3 if one of them failed. Of
several workers one leads and makes all calls; the others stand by and take over
when it stops or dies.

When every job would fail the same way (a wrong key, an edition without groups)
it halts: it keeps the jobs, makes no more calls, is not ready, and continues
after 'groupferry resume', also over restarts. A worker whose credentials have
never worked ends with code 4 instead. The first interrupt lets jobs in flight
finish for up to 30 seconds, the second leaves at once; neither loses anything.`,
		Annotations: exits{exitIncomplete: "drained, but jobs failed or have no result", exitHalted: "",
			exitUnreachable: "NATS or the API is out of reach", exitInterrupted: ""}.annotations(),
		Example: `  groupferry work --nats-url nats://queue:4222 --region singapore \
      --sdk-app-id 1400000000 --secret-key-file key
  groupferry work --drain --region singapore --sdk-app-id 1400000000 \
      --secret-key-file key`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if err := qf.check(p); err != nil {
				return err
			}
			client, err := p.client(&api)
			if err != nil {
				return err
			}
			defer client.Close()
			monitor, stopServing, err := p.listen(&serve, false)
			if err != nil {
				return err
			}
			defer stopServing()
			if monitor != nil {
				p.console.log.Info("serving the page, metrics and status", "url", "http://"+monitor.Address)
			}
			s, err := app.OpenWaiting(ctx, qf.config(p, drain), monitor)
			switch {
			case errors.Is(err, app.ErrStopped) && drain:
				return &unfinishedError{errInterrupted, p.commandLine(), false}
			case errors.Is(err, app.ErrStopped): // while it waited
				p.console.log.Info("stopping")
				return nil
			case err != nil:
				return noData(err)
			}
			defer s.Close()
			defer monitor.Control(ctx, p.actions(s, qf.args(p)))()
			resume := "groupferry resume" + qf.args(p)
			cfg := p.processConfig(s, client, &api, "")
			cfg.Monitor, cfg.Drain, cfg.Keep = monitor, drain, time.Duration(keep)
			cfg.Engine.LeaveOnHalt, cfg.Engine.Resume = drain, resume
			w, err := app.NewProcess(ctx, cfg)
			if err != nil {
				return err
			}
			p.console.log.Info("working", "queue", s.Where(), "calls_per_second", api.rate)
			endWatch := p.watch(ctx, w, "")
			err = w.Run(untilLeft(ctx), ctx.Done())
			endWatch()
			switch {
			case errors.Is(err, app.ErrCredentials): // which halts nothing but this process
				return &unfinishedError{err, p.commandLine(), true}
			case governor.IsHalted(err):
				return &unfinishedError{err, resume + " && " + p.commandLine(), true}
			case err == nil && drain && ctx.Err() != nil:
				return &unfinishedError{errInterrupted, p.commandLine(), false}
			case drain && (err == nil || errors.Is(err, app.ErrAbandoned)): // which was printed
				return p.reportDrained(ctx, w, qf.args(p), err == nil)
			}
			return err
		},
	}
	api.add(cmd)
	qf.add(cmd)
	cmd.Flags().BoolVar(&drain, "drain", false, "end when every job has its result")
	keep.add(cmd)
	serve.add(cmd, "127.0.0.1:9477", "off for none")
	p.consoleFlags(cmd)
	return cmd
}

// reportDrained says in the last line what became of the jobs that were on the queue. The error is errIncomplete when some
// of them failed, or not all had a result; where is how another command gets to the queue.
func (p *program) reportDrained(ctx context.Context, w *app.Process, where string, complete bool) error {
	all, err := w.Drained(ctx)
	if err != nil {
		return err
	}
	var n app.JobCounts
	var failed []string
	for _, s := range all {
		n.Add(s.Jobs)
		if s.Jobs.Partial+s.Jobs.Failed+s.Jobs.Dropped > 0 {
			failed = append(failed, s.Import)
		}
	}
	for _, id := range failed[:min(len(failed), maxDrainHints)] {
		text := fmt.Sprintf("'groupferry results %s --summary%s' says what failed", id, where)
		p.console.event("jobs of an import failed", "import", id, "hint", text).report("hint: " + text)
	}
	p.console.event("drained", "total", n.Total, "done", n.Done, "partial", n.Partial, "failed", n.Failed, "pending", n.Pending,
		"dropped", n.Dropped).report("drained: " + jobs(n.Total) + ": " + outcomesText(&n))
	if !complete || len(failed) > 0 {
		return errIncomplete
	}
	return nil
}

// maxDrainHints is for how many imports a command is named.
const maxDrainHints = 3
