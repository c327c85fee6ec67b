package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"groupferry/internal/app"
)

func (p *program) resumeCommand() *cobra.Command {
	return p.onImport(&cobra.Command{
		Use:   "resume [IMPORT]",
		Short: "Continue after a pause or a halt",
		Long: `resume ends a pause, or a halt once its cause is fixed: the worker that leads
continues at once, and those that are started make calls again. 'groupferry
status' says why they stand still. With an IMPORT it ends the pause of that
import.`,
		Args: p.imports(0, 1),
	}, shortID, p.resume)
}

func (p *program) resume(ctx context.Context, s *app.Namespace, args []string, where string) error {
	if len(args) == 1 {
		i, err := s.SetImportPaused(ctx, args[0], false)
		if err != nil {
			return err
		}
		if i.State.Over() {
			p.console.event("nothing to resume", "import", i.ID, "state", i.State).
				print("import %s is %s: nothing to resume", i.ID, i.State)
			return nil
		}
		p.console.event("import continues", "import", i.ID).print("import %s continues", i.ID)
		return nil
	}
	was, err := s.ClearHalt(ctx)
	switch {
	case err != nil:
		return err
	case was == nil:
		p.console.event("nothing was halted or paused").print("nothing was halted or paused")
	default:
		p.console.event("resumed", "state", was.State, "since", was.Since, "reason", was.Reason).
			print("resumed; it was %s since %s: %s", was.State, was.Since.Local().Format(time.DateTime), was.Reason)
	}
	return nil
}
