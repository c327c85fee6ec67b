package main

import (
	"github.com/spf13/cobra"

	"groupferry/internal/app"
	"groupferry/internal/chat"
	"groupferry/internal/queue"
)

func (p *program) importCommand() *cobra.Command {
	var in inputFlags
	var qf queueFlags
	var out outputFlag
	cmd := &cobra.Command{
		Use:   "import FILE...",
		Short: "Check the input and put its jobs on the queue",
		Long: `import reads and checks the whole input, then puts one job for each group on the
queue and prints the import ID. Workers ('groupferry work') make the calls, here
or on other hosts.

The same content again is the same import: it continues where it stopped, or says
that there is nothing to do. Rejected rows are kept in a file that can be fixed
and imported as it is.

` + exitCodes,
		Example: `  groupferry import samples/groups.csv
  groupferry import --nats-url nats://queue:4222 --max-rejects 1% export/*.csv.gz`,
		Args: files,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := out.check(); err != nil {
				return err
			}
			input, err := p.readInput(args, &in, chat.MaxItemsPerCall)
			if err != nil {
				return err
			}
			defer input.Close()
			s, err := p.open(qf, false)
			if err != nil {
				return err
			}
			defer s.Close()
			if err := p.notSimulated(s); err != nil {
				return err
			}
			stored, err := p.begin(p.soft, s, input)
			if err != nil {
				return err
			}
			if stored.State == queue.Enqueueing {
				if err := p.enqueue(p.soft, s, input, nil); err != nil {
					if p.soft.Err() != nil {
						return &unfinishedError{errInterrupted, p.commandLine(), false}
					}
					return err
				}
			}
			if err := p.reportEnqueued(s, stored, input.Record.Jobs, out); err != nil {
				return err
			}
			if input.Record.Rejected > 0 {
				return errIncomplete
			}
			return nil
		},
	}
	in.add(cmd)
	qf.add(cmd)
	out.add(cmd, "text", "json")
	p.consoleFlags(cmd)
	return cmd
}

// notSimulated refuses a namespace that works with a simulator: what it was told is in no app.
func (p *program) notSimulated(s *app.Namespace) error {
	id, err := s.App(p.soft)
	if err == nil && id != nil && id.Simulated {
		err = hint(usagef("%s holds the results of a simulation, which reached no app", s.Where()),
			"name another --data-dir or --namespace")
	}
	return err
}

// reportEnqueued says what is on the queue. The import ID goes to standard output.
func (p *program) reportEnqueued(s *app.Namespace, i queue.Import, jobs int64, out outputFlag) error {
	if out.format == "text" {
		switch {
		case i.State.Over(): // which was said
		case i.State != queue.Enqueueing:
			p.console.say("all jobs were on the queue already; start 'groupferry work' to send them")
		default:
			p.console.say("queued %s jobs (%s) in %s; start 'groupferry work' to send them", count(jobs), rows(i.Rows), s.Where())
		}
	}
	return out.write(p.stdout, map[string]any{"import": i.ID, "rows": i.Rows, "accepted": i.Accepted,
		"duplicates": i.Duplicates, "rejected": i.Rejected, "jobs": jobs, "conversations": i.Conversations,
	}, func() string { return i.ID + "\n" })
}
