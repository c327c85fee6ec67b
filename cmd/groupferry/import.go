package main

import (
	"fmt"

	"github.com/spf13/cobra"

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

The same content again is the same import: it goes on where it stopped, or says
that there is nothing to do. Rejected rows are kept in a file that can be mended
and imported as it is.

` + exitCodes,
		Example: `  groupferry import samples/groups.csv
  groupferry import --nats-url nats://queue:4222 --max-rejects 1% export/*.csv.gz`,
		Args: files,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := out.check(); err != nil {
				return err
			}
			plan, record, err := p.take(args, &in, chat.MaxItemsPerCall)
			if err != nil {
				return err
			}
			defer plan.Close()
			q, err := p.open(qf, false)
			if err != nil {
				return err
			}
			defer q.Close()
			if err := p.keepApart(p.soft, q, false); err != nil {
				return err
			}
			stored, err := p.begin(p.soft, q, record)
			if err != nil {
				return err
			}
			if stored.State == queue.Enqueueing {
				if err := p.enqueue(p.soft, q, plan, nil); err != nil {
					if p.soft.Err() != nil {
						return &unfinishedError{errInterrupted, p.commandLine(), false}
					}
					return err
				}
			}
			if err := p.sayEnqueued(q, stored, plan.Summary.Jobs, out.format); err != nil {
				return err
			}
			if record.Rejected > 0 {
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

func (p *program) sayEnqueued(q *queue.Queue, i queue.Import, jobs int64, format string) error {
	if format == "json" {
		return writeJSON(p.stdout, map[string]any{"import": i.ID, "rows": i.Rows, "accepted": i.Accepted,
			"duplicates": i.Duplicates, "rejected": i.Rejected, "jobs": jobs, "conversations": i.Conversations})
	}
	if i.State != queue.Complete {
		p.console.say("%s rows made %s jobs, in %s; 'groupferry work' makes their calls", count(i.Rows), count(jobs), q.Where())
	}
	_, err := fmt.Fprintln(p.stdout, i.ID)
	return err
}
