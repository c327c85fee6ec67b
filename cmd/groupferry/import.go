package main

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"groupferry/internal/app"
	"groupferry/internal/chat"
	"groupferry/internal/queue"
)

func (p *program) importCommand() *cobra.Command {
	var in inputFlags
	var qf queueFlags
	var out outputFlag
	var sync syncFlags
	var target targetFlags
	cmd := &cobra.Command{
		Use:   "import FILE...",
		Short: "Check the input and put its jobs on the queue",
		Long: `import reads and checks the whole input, then puts one job for each group on the
queue and prints the import ID. Workers ('groupferry work') make the calls, here
or on other hosts.

The same content again is the same import: it continues where it stopped, or
says that there is nothing to do. Rejected rows are kept in a file that can be
fixed and imported as it is. With --sync NAME the input is a night of an import
that recurs: only what is new since its last night is put on the queue, and a
file that lost too much is refused.`,
		Annotations: exits{exitIncomplete: "queued, but rows were rejected; or the import was cancelled", exitGuarded: "",
			exitUnreachable: "NATS is out of reach, or another process has the sync", exitInterrupted: ""}.annotations(),
		Example: `  groupferry import samples/groups.csv
  groupferry import --nats-url nats://queue:4222 --max-rejects 1% export/*.gz
  groupferry import --sync contacts --region singapore \
      --sdk-app-id 1400000000 export/*.csv.gz`,
		Args: files,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if err := out.check(p); err != nil {
				return err
			}
			if err := qf.check(p); err != nil {
				return err
			}
			open := func() (*app.Namespace, error) {
				s, err := p.open(ctx, qf, false)
				if err == nil {
					if err = notSimulated(ctx, s); err != nil {
						s.Close()
					}
				}
				return s, err
			}
			s, input, night, err := p.readFor(ctx, open, args, &in, &sync, target.target, chat.MaxItemsPerCall)
			if err != nil {
				return err
			}
			defer s.Close()
			defer input.Close()
			if night != nil {
				defer night.Release(context.WithoutCancel(ctx))
				p.showNight(night.Report())
			}
			stored, err := p.begin(ctx, s, input, qf.args(p))
			if err != nil {
				return err
			}
			if stored.State == queue.Enqueueing {
				if _, err := p.enqueue(ctx, s, input, true); err != nil {
					if ctx.Err() != nil {
						return &unfinishedError{errInterrupted, p.commandLine(), false}
					}
					return err
				}
			}
			if err := p.reportEnqueued(s, stored, input.Record.Jobs, out); err != nil {
				return err
			}
			if input.Record.Rejected > 0 || stored.State == queue.Cancelled {
				return errIncomplete
			}
			return nil
		},
	}
	in.add(cmd)
	qf.add(cmd)
	sync.add(cmd)
	target.add(cmd)
	out.add(cmd, "text", "json")
	p.consoleFlags(cmd)
	return cmd
}

// notSimulated refuses a namespace that works with a simulator: its results are in no app.
func notSimulated(ctx context.Context, s *app.Namespace) error {
	id, err := s.App(ctx)
	if err == nil && id != nil && id.Simulated {
		err = hint(usagef("%s holds the results of a simulation, which reached no app", s.Where()),
			"name another --data-dir or --namespace")
	}
	return err
}

// reportEnqueued says what is on the queue. The import ID goes to standard output.
func (p *program) reportEnqueued(s *app.Namespace, i queue.Import, queued int64, out outputFlag) error {
	if out.format == "text" {
		switch {
		case i.State.Over(): // already printed
		case i.State != queue.Enqueueing:
			p.console.event("all jobs were on the queue already", "import", i.ID, "queue", s.Where()).
				print("all jobs were on the queue already; start '%s' to send them", s.Conn.Command("work"))
		default:
			p.console.event("queued", "import", i.ID, "jobs", queued, "rows", i.Rows, "rejected", i.Rejected, "queue", s.Where()).
				print("queued %s (%s) in %s; start '%s' to send them", jobs(queued), rows(i.Rows), s.Where(), s.Conn.Command("work"))
		}
	}
	return out.write(p.stdout, map[string]any{"import": i.ID, "rows": i.Rows, "accepted": i.Accepted,
		"duplicates": i.Duplicates, "rejected": i.Rejected, "jobs": queued, "conversations": i.Conversations,
	}, func() string { return i.ID + "\n" })
}

// readInput reads the input of import and run.
func (p *program) readInput(ctx context.Context, files []string, flags *inputFlags, chunk int) (*app.Input, error) {
	cfg, err := flags.config(p, files, chunk)
	if err != nil {
		return nil, err
	}
	in, err := app.ReadInput(ctx, cfg)
	p.console.end()
	var guard *app.GuardError
	if errors.As(err, &guard) {
		p.showKept(guard.Rejects, guard.Rejected)
	}
	debug.FreeOSMemory() // what sorting took is free for what comes now
	return in, err
}

// begin makes the record of an import, or finds that of an earlier run with the same content; then it keeps the rejects.
// where is how another command gets to the queue.
func (p *program) begin(ctx context.Context, s *app.Namespace, in *app.Input, where string) (queue.Import, error) {
	stored, existed, err := s.Begin(ctx, in.Record)
	if err == nil {
		err = in.Rejects.Keep()
	}
	if err != nil {
		return stored, err
	}
	p.showKept(in.Rejects, in.Record.Rejected)
	id, at := stored.ID, stored.Created.Local().Format(time.DateTime)
	switch {
	case !existed:
	case stored.State == queue.Cancelled:
		p.console.event("import was cancelled: nothing is done", "import", id, "since", stored.Created, "hint",
			fmt.Sprintf("'groupferry results %s --failed%s' exports what was dropped, another --import-id imports all of it", id, where)).
			warn("import %s was begun at %s and cancelled: nothing is done; 'groupferry results %s --failed%s' exports "+
				"what was dropped, another --import-id imports all of it", id, at, id, where)
	case stored.State == queue.Complete:
		p.console.event("import is complete: nothing to do", "import", id, "since", stored.Created).
			print("import %s was begun at %s and is complete: nothing to do", id, at)
	default:
		p.console.event("continuing an import", "import", id, "since", stored.Created).print("continuing import %s, begun at %s", id, at)
	}
	return stored, nil
}

// enqueue puts the jobs on the queue that are not there yet, and shows how many are, unless something else is shown.
func (p *program) enqueue(ctx context.Context, s *app.Namespace, in *app.Input, show bool) (queue.EnqueueStats, error) {
	total := in.Record.Jobs
	progressed := func(done int64) {
		p.console.progress(func() progress {
			return progress{fmt.Sprintf("enqueued %s of %s", count(done), jobs(total)),
				p.console.event("enqueueing", "import", in.Record.ID, "done", done, "total", total),
				line{doing: "enqueueing", done: done, total: total, parts: []part{{text: count(done) + " of " + jobs(total), rank: rankCount}}}}
		})
	}
	if !show {
		progressed = nil
	}
	stats, err := in.Enqueue(ctx, s, progressed)
	p.console.end()
	if err == nil && stats.Skipped > 0 && stats.Jobs > 0 {
		p.console.event("jobs were on the queue already", "import", in.Record.ID, "jobs", stats.Skipped).
			print("%s jobs were on the queue already", count(stats.Skipped))
	}
	return stats, err
}
