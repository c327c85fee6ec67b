package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"groupferry/internal/app"
	"groupferry/internal/queue"
)

func (p *program) cancelCommand() *cobra.Command {
	return p.onImport(&cobra.Command{
		Use:   "cancel IMPORT",
		Short: "Drop the jobs of an import that have not started",
		Long: `cancel drops the jobs of an import that have no result. Calls under way end, and
the results so far are kept; 'groupferry status' counts what was dropped. The
groups that were written stay. 'groupferry results IMPORT --failed' exports what
was dropped or failed, until the import is deleted; the file can be imported as
it is. To import all of it again, give it another --import-id. What a night of a
sync has not done, the next one does.`,
		Args: p.imports(1, 1),
	}, fullName, func(ctx context.Context, s *app.Namespace, args []string, where string) error {
		i, err := s.CancelImport(ctx, args[0])
		if err != nil {
			return err
		}
		if i.State == string(queue.Complete) { // so a retry was
			p.console.event("retry is cancelled", "import", i.Import, "retry", i.Retry.Generation, "failed", i.Conversations.Failed).
				print("retry %d of import %s is cancelled: %s failed", i.Retry.Generation, i.Import, things(i.Conversations.Failed, "conversation"))
			return nil
		}
		finished := i.Jobs.Total - i.Jobs.Pending - i.Jobs.Dropped
		p.console.event("import is cancelled", "import", args[0], "done", finished, "total", i.Jobs.Total, "dropped", i.Jobs.Dropped).
			print("import %s is cancelled: %s of %s had a result", args[0], count(finished), jobs(i.Jobs.Total))
		switch {
		case i.Superseded:
			p.console.event("a later night has taken over", "import", i.Import, "sync", i.Sync, "next_night", i.NextNight).
				print("night %d of sync %s has taken over from it", i.NextNight, i.Sync)
		case i.Jobs.Dropped > 0:
			p.console.event("what was dropped or failed can be exported", "import", args[0], "hint",
				fmt.Sprintf("groupferry results %s --failed%s", args[0], where)).
				print("'groupferry results %s --failed%s' exports what was dropped or failed", args[0], where)
		}
		return nil
	})
}
