package main

import (
	"context"

	"github.com/spf13/cobra"

	"groupferry/internal/app"
	"groupferry/internal/queue"
)

func (p *program) pauseCommand() *cobra.Command {
	return p.onImport(&cobra.Command{
		Use:   "pause [IMPORT]",
		Short: "Make no more calls until resumed",
		Long: `pause stops the calls of all workers, those that join later included, until
'groupferry resume'. With an IMPORT it is that import alone, and the others
continue. Calls under way end, and nothing is lost.`,
		Args: p.imports(0, 1),
	}, shortID, p.pause)
}

func (p *program) pause(ctx context.Context, s *app.Namespace, args []string, where string) error {
	if len(args) == 1 {
		i, err := s.SetImportPaused(ctx, args[0], true)
		if err != nil {
			return err
		}
		if i.State.Over() {
			p.console.event("nothing to pause", "import", i.ID, "state", i.State).
				print("import %s is %s: nothing to pause", i.ID, i.State)
			return nil
		}
		p.console.event("import is paused", "import", i.ID, "to_continue", "groupferry resume "+i.ID+where).
			print("import %s is paused; to continue: groupferry resume %s%s", i.ID, i.ID, where)
		return nil
	}
	h, err := s.Pause(ctx, processName(), "groupferry resume"+where)
	if err != nil {
		return err
	}
	if h != nil && h.State == queue.Halted { // which stays: its reason is the one to fix
		p.console.event("halted already", "reason", h.Reason, "to_continue", h.Command).
			print("halted already: %s; to continue, once that is fixed: %s", h.Reason, h.Command)
		return nil
	}
	p.console.event("paused", "to_continue", "groupferry resume"+where).print("paused; to continue: groupferry resume%s", where)
	return nil
}
