package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"groupferry/internal/app"
	"groupferry/internal/queue"
)

// steering makes a command that changes what workers do, while they run or before they do.
func (p *program) steering(cmd *cobra.Command, steer func(ctx context.Context, s *app.Namespace, args []string, where string) error) *cobra.Command {
	var qf queueFlags
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		s, err := p.open(qf, true)
		if err != nil {
			return err
		}
		defer s.Close()
		err = steer(p.soft, s, args, qf.args(p.getenv))
		if errors.Is(err, queue.ErrNoImport) {
			return hint(err, "'groupferry status%s' lists the imports", qf.args(p.getenv))
		}
		return err
	}
	qf.add(cmd)
	p.consoleFlags(cmd)
	return cmd
}

func (p *program) pauseCommand() *cobra.Command {
	return p.steering(&cobra.Command{
		Use:   "pause [IMPORT]",
		Short: "Make no more calls until resumed",
		Long: `pause stops the calls of all workers, those that join later included, until
'groupferry resume'. With an IMPORT it is that import alone, and the others continue.
Calls under way end, and nothing is lost.`,
		Args: imports(0, 1),
	}, func(ctx context.Context, s *app.Namespace, args []string, where string) error {
		if len(args) == 1 {
			i, err := s.SetImportPaused(ctx, args[0], true)
			if err != nil {
				return err
			}
			if i.State.Over() {
				p.console.say("import %s is %s: nothing to pause", i.ID, i.State)
				return nil
			}
			p.console.say("import %s is paused; to continue: groupferry resume %s%s", i.ID, i.ID, where)
			return nil
		}
		h, err := s.Pause(ctx, processName(), "groupferry resume"+where)
		if err != nil {
			return err
		}
		if h != nil && h.State == queue.Halted { // which stays: its reason is the one to fix
			p.console.say("halted already: %s; to continue, once that is fixed: %s", h.Reason, h.Command)
			return nil
		}
		p.console.say("paused; to continue: groupferry resume%s", where)
		return nil
	})
}

func (p *program) resumeCommand() *cobra.Command {
	return p.steering(&cobra.Command{
		Use:   "resume [IMPORT]",
		Short: "Continue after a pause or a halt",
		Long: `resume ends a pause, or a halt once its cause is fixed: the worker that leads
continues at once, and those that are started make calls again. 'groupferry status' says why
they stand still. With an IMPORT it ends the pause of that import.`,
		Args: imports(0, 1),
	}, func(ctx context.Context, s *app.Namespace, args []string, where string) error {
		if len(args) == 1 {
			i, err := s.SetImportPaused(ctx, args[0], false)
			if err != nil {
				return err
			}
			if i.State.Over() {
				p.console.say("import %s is %s: nothing to resume", i.ID, i.State)
				return nil
			}
			p.console.say("import %s continues", i.ID)
			return nil
		}
		was, err := s.ClearHalt(ctx)
		switch {
		case err != nil:
			return err
		case was == nil:
			p.console.say("nothing was halted or paused")
		default:
			p.console.say("resumed; it was %s since %s: %s", was.State, was.Since.Local().Format(time.DateTime), was.Reason)
		}
		return nil
	})
}

func (p *program) cancelCommand() *cobra.Command {
	return p.steering(&cobra.Command{
		Use:   "cancel IMPORT",
		Short: "Drop the jobs of an import that have not started",
		Long: `cancel drops the jobs of an import that have no result. Calls under way end, and
the results so far are kept; 'groupferry status' counts what was dropped.
The groups that were written stay. To import the same content again, give it
another --import-id.`,
		Args: imports(1, 1),
	}, func(ctx context.Context, s *app.Namespace, args []string, where string) error {
		i, err := s.CancelImport(ctx, args[0])
		if err != nil {
			return err
		}
		if i.State == string(queue.Complete) { // so a retry was
			p.console.say("retry %d of import %s is cancelled: %s conversations failed", i.Retry.Generation, i.Import, count(i.Conversations.Failed))
			return nil
		}
		p.console.say("import %s is cancelled: %s of %s jobs had a result", args[0], count(i.Jobs.Total-i.Jobs.Pending-i.Jobs.Dropped), count(i.Jobs.Total))
		return nil
	})
}

func (p *program) rateCommand() *cobra.Command {
	return p.steering(&cobra.Command{
		Use:   "rate [CALLS]",
		Short: "Show or change the calls a second while workers run",
		Long: `rate sets the calls a second for each command, for all workers, from the next second
on and for those that join later; it goes before their --rate. Without CALLS it
shows what is set, and 0 leaves it to the workers again.`,
		Example: "  groupferry rate 160",
		Args:    cobra.MaximumNArgs(1),
	}, func(ctx context.Context, s *app.Namespace, args []string, where string) error {
		if len(args) == 0 {
			rate, err := s.Rate(ctx)
			if err == nil {
				_, err = fmt.Fprintln(p.stdout, rate)
			}
			return err
		}
		n, err := strconv.Atoi(args[0])
		if err != nil || n < 0 {
			return usagef("rate %q: a number of calls a second", args[0])
		}
		if err := s.SetRate(ctx, n); err != nil {
			return err
		}
		if n == 0 {
			p.console.say("the rate is what the workers were started with")
		} else {
			p.console.say("at most %d calls a second for each command", n)
		}
		return nil
	})
}
