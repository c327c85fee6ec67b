package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"groupferry/internal/app"
	"groupferry/internal/queue"
)

func (p *program) deleteCommand() *cobra.Command {
	return p.onImport(&cobra.Command{
		Use:     "delete IMPORT",
		Aliases: []string{"forget"},
		Short:   "Remove an import with its results",
		Long: `delete removes an import that is complete or cancelled: its results, with the
ids of people in them, and its record. The groups that were written stay. The
same content is a new import then.

'groupferry work' and 'groupferry run' do this by themselves to imports that are
older than --keep.`,
		Args: p.imports(1, 1),
	}, fullName, func(ctx context.Context, s *app.Namespace, args []string, where string) error {
		err := s.Delete(ctx, args[0])
		if errors.Is(err, queue.ErrUnfinished) {
			return hint(err, "wait for its end, or 'groupferry cancel %s%s'", args[0], where)
		}
		if errors.As(err, new(*queue.PendingNightError)) {
			return hint(err, "--keep of 'groupferry work' and 'groupferry run' deletes it then, once it is old enough")
		}
		if err == nil {
			p.console.event("import is deleted", "import", args[0]).print("import %s is deleted", args[0])
		}
		return err
	})
}
