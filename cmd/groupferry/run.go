package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"groupferry/internal/app"
	"groupferry/internal/chatsim"
	"groupferry/internal/queue"
)

func (p *program) runCommand() *cobra.Command {
	r := runner{program: p}
	cmd := &cobra.Command{
		Use:   "run FILE...",
		Short: "Check the input, enqueue its jobs and work to the end",
		Long: `run does the whole of it in one process: it reads and checks the input, puts one
job for each group on the queue, makes the calls, and reports what came of every
row. A FILE is CSV or JSONL, also compressed with gzip or zstd; - is standard
input.

Whatever stops it, the same command continues: what is done is not done again.
If it halted (every job would fail the same way), fix what it says first. The
first interrupt lets the calls under way finish, the second leaves at once;
neither loses anything. While another process leads, run shows the progress of
its import and takes over if that process goes.

With --sync NAME the input is a night of an import that recurs: only what is new
since its last night is sent, and a file that lost too much is refused.

With --simulate it needs nothing else: the API is simulated in the same process,
and nothing is kept unless --data-dir names a place for it.`,
		Annotations: exits{exitIncomplete: "finished, but rows were rejected, or jobs failed", exitHalted: "", exitGuarded: "",
			exitUnreachable: "NATS or the API is out of reach, or another process has the sync", exitInterrupted: ""}.annotations(),
		Example: `  groupferry run --simulate samples/groups.csv
  groupferry run groups.csv --region singapore --sdk-app-id 1400000000 \
      --secret-key-file key
  groupferry run --sync contacts export/*.csv --region singapore \
      --sdk-app-id 1400000000 --secret-key-file key`,
		Args: files,
		RunE: func(cmd *cobra.Command, args []string) error { return r.run(cmd, args) },
	}
	r.in.add(cmd)
	r.sync.add(cmd)
	r.api.add(cmd)
	r.queue.add(cmd)
	r.out.add(cmd, "text", "json")
	cmd.Flags().BoolVar(&r.simulate, "simulate", false, "call a simulated API in this process")
	r.keep.add(cmd)
	r.serve.add(cmd, "", "such as 127.0.0.1:9477 (default off)")
	p.consoleFlags(cmd)
	return cmd
}

// A runner is one run of the command run.
type runner struct {
	*program
	in       inputFlags
	api      apiFlags
	queue    queueFlags
	out      outputFlag
	sync     syncFlags
	simulate bool
	serve    serveFlags
	keep     keepFlag
	sim      *chatsim.Sim
}

func (r *runner) run(cmd *cobra.Command, inputs []string) error {
	ctx := cmd.Context()
	if err := r.out.check(r.program); err != nil {
		return err
	}
	if r.simulate {
		cleanUp, err := r.startSimulator(cmd)
		if err != nil {
			return err
		}
		defer cleanUp()
	}
	if err := r.queue.check(r.program); err != nil {
		return err
	}
	api, err := r.client(&r.api)
	if err != nil {
		return err
	}
	defer api.Close()
	monitor, stopServing, err := r.program.listen(&r.serve, true)
	if err != nil {
		return err
	}
	defer stopServing()
	if monitor != nil {
		r.console.event("serving the page, metrics and status", "url", "http://"+monitor.Address).print("the page: http://%s", monitor.Address)
	}

	target := func(*program) (string, error) { return app.Target(r.api.identity(), api.Address()), nil }
	open := func() (*app.Namespace, error) { return r.open(ctx, r.queue, false) }
	s, in, night, err := r.readFor(ctx, open, inputs, &r.in, &r.sync, target, r.api.chunk)
	if err != nil {
		return err
	}
	defer s.Close()
	defer in.Close()
	defer monitor.Control(ctx, r.actions(s, r.queue.args(r.program)))()
	if night != nil {
		defer night.Release(context.WithoutCancel(ctx))
	}
	cfg := r.processConfig(s, api, &r.api, in.Record.ID)
	cfg.Monitor = monitor
	cfg.Engine.LeaveOnHalt, cfg.Engine.LiftHalt, cfg.Engine.Resume = true, true, r.commandLine()
	w, err := app.NewProcess(ctx, cfg)
	if err != nil {
		return err
	}
	w.Metrics.Rows(in.Record.Accepted, in.Record.Duplicates, in.Record.Rejected)
	in.Record.Simulated = r.simulate
	stored, err := r.begin(ctx, s, in, r.queue.args(r.program))
	if err != nil {
		return err
	}
	started := time.Now()
	if !stored.State.Over() {
		if err := r.work(ctx, w, s, in, stored, night); err != nil {
			// What was done until then is worth a report; that it is unfinished is what counts.
			if rerr := r.report(ctx, w, s, in.Record.ID, night, time.Since(started)); rerr != nil && !errors.Is(rerr, errIncomplete) {
				r.console.log.Warn("no report", "error", rerr)
			}
			return r.unfinished(ctx, err)
		}
	}
	err = r.report(ctx, w, s, in.Record.ID, night, time.Since(started))
	s.DeleteOld(ctx, time.Duration(r.keep), r.console.log)
	return err
}

// work enqueues what is not enqueued yet, and works until the import is over.
func (r *runner) work(
	ctx context.Context, w *app.Process, s *app.Namespace, in *app.Input, stored queue.Import, night *app.Night,
) error {
	var enqueue func(context.Context) error
	if stored.State == queue.Enqueueing {
		enqueue = func(ctx context.Context) error {
			stats, err := r.enqueue(ctx, s, in, !r.console.draws())       // the line of the import says more
			w.Metrics.JobsEnqueued(int(stats.Jobs))                       // not those of an earlier run
			return cmp.Or(err, night.Release(context.WithoutCancel(ctx))) // the import may be over by now, which ends ctx
		}
	}
	if enqueue != nil && in.Record.Jobs == 0 {
		return enqueue(ctx) // that completes it, whoever leads
	}
	if enqueue == nil { // it is on the queue, and the next night may come
		if err := night.Release(ctx); err != nil {
			return err
		}
	}
	defer r.watch(ctx, w, in.Record.ID)()
	return w.RunImport(untilLeft(ctx), ctx.Done(), enqueue)
}

// startSimulator gives the run an API of its own, and a place for its data that is gone afterwards unless one was
// named: a later run against the real API must not take the simulation's results for its own.
func (r *runner) startSimulator(cmd *cobra.Command) (cleanUp func(), err error) {
	simulate := r.named("simulate")
	if err := oneOf(simulate, r.nameIf(r.api.url != "", "api-url"), r.nameIf(r.api.region != "", "region")); err != nil {
		return nil, err
	}
	if !r.queue.embedded() {
		server := r.named("nats-url")
		if r.queue.url == "" {
			server = r.named("nats-context")
		}
		return nil, hint(usagef("%s works on an embedded server, not on a shared one (%s)", simulate, server),
			"start 'groupferry simulate' and name it with --api-url")
	}
	r.sim = chatsim.New(chatsim.Config{Rate: r.api.rate})
	url, err := r.sim.Start("127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start the simulator: %w", err)
	}
	r.api.simulator = url
	cleanUp = r.sim.Close
	if !cmd.Flags().Changed("data-dir") { // by a variable neither
		dir, err := os.MkdirTemp("", "groupferry-simulate-*")
		if err != nil {
			r.sim.Close()
			return nil, err
		}
		r.queue.dataDir = dir
		cleanUp = func() {
			r.sim.Close()
			os.RemoveAll(dir)
		}
	}
	return cleanUp, nil
}

// unfinished adds the command that continues, where there is one.
func (r *runner) unfinished(ctx context.Context, err error) error {
	switch code := exitCode(err); {
	case ctx.Err() != nil && code != exitHalted:
		return &unfinishedError{errInterrupted, r.commandLine(), false}
	case code == exitHalted, code == exitUnreachable:
		return &unfinishedError{err, r.commandLine(), code == exitHalted}
	}
	return err
}

// report says what came of every row, and checks that it adds up.
func (r *runner) report(
	ctx context.Context, w *app.Process, n *app.Namespace, importID string, night *app.Night, took time.Duration,
) error {
	reading, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	s, err := n.ImportStatus(reading, importID)
	if err != nil {
		return err
	}
	if !s.Over() { // and this process does no more of it
		s.Rate, s.SecondsLeft = 0, nil
	}
	var ledger *chatsim.Ledger
	if r.sim != nil {
		l := r.sim.Ledger()
		ledger = &l
	}
	run := app.NewRunReport(w.State().Tally, took, ledger)
	planned := night.Report()
	if planned != nil {
		planned.Run = &app.NightRun{
			Calls: run.Calls, Seconds: run.Seconds, Added: s.Conversations.Done, Removed: s.Removals.Done,
			RemovalsFailed: s.Removals.Failed, Deleted: s.Deleted,
		}
		if planned.Run.FailedNew, planned.Run.FailedKnown, err = n.NightFailures(reading, importID); err != nil {
			return err
		}
	}
	err = r.out.write(r.stdout, struct {
		app.ImportStatus
		Night *app.NightReport `json:"night,omitempty"`
		Run   *app.RunReport   `json:"run"`
	}{s, planned, run}, func() string {
		return nightText(planned) + importText(&s, r.resultsLine(importID)) + runText(run)
	})
	if err != nil {
		return err
	}
	if err := s.CheckSums(); err != nil {
		return err
	}
	if sim := run.Simulator; sim != nil && sim.Disagrees != "" && ctx.Err() == nil {
		return fmt.Errorf("the simulator's ledger and the report disagree: %s", sim.Disagrees)
	}
	if s.Incomplete() {
		return errIncomplete
	}
	return nil
}

// resultsLine is the command that shows what failed, or all of it.
func (r *runner) resultsLine(importID string) string {
	if r.sim != nil && strings.Contains(r.queue.dataDir, "groupferry-simulate-") {
		return "" // gone by then
	}
	return "groupferry results " + importID + r.queue.args(r.program)
}

// runText says what one run did.
func runText(r *app.RunReport) string {
	took := time.Duration(r.Seconds * float64(time.Second))
	s := fmt.Sprintf("  this run       %s calls in %s · throttled %s · repeated %s\n", count(r.Calls), span(took), count(r.Throttled), count(r.Repeated))
	if sim := r.Simulator; sim != nil {
		s += fmt.Sprintf("  simulator      %s calls, at most %s in any second · throttled %s · bad requests %s · %s conversations in %s groups",
			count(sim.Calls), count(sim.MaxPerSecond), count(sim.Throttled), count(sim.BadRequests), count(sim.Conversations), count(sim.Groups))
		if sim.Disagrees == "" {
			s += ": agrees"
		}
		s += "\n"
	}
	return s
}
