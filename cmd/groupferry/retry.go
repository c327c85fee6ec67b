package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"groupferry/internal/app"
	"groupferry/internal/queue"
)

func (p *program) retryCommand() *cobra.Command {
	var codes []string
	cmd := p.onImport(&cobra.Command{
		Use:   "retry IMPORT",
		Short: "Put what failed on the queue again",
		Long: `retry puts the failed and partial jobs of a complete import on the queue again,
with the conversations that failed alone; what is in its group already is not
sent again. Workers ('groupferry work', or the 'groupferry run' of the import)
make the calls, and the new results take the place of the old ones.

It can be called as often as something fails, at once or a week later. Whatever
stops it, the same command continues, and no job is on the queue twice.`,
		Example: `  groupferry retry 3f9a1c0be2d47a55
  groupferry retry 3f9a1c0be2d47a55 --code 50001,51007`,
		Args: p.imports(1, 1),
	}, fullName, func(ctx context.Context, s *app.Namespace, args []string, where string) error {
		return p.retry(ctx, s, args[0], codes, where)
	})
	cmd.Flags().StringSliceVar(&codes, "code", nil, "only failures with one of these `codes`; default: all")
	return cmd
}

func (p *program) retry(ctx context.Context, s *app.Namespace, id string, codes []string, where string) error {
	i, stats, err := s.Retry(ctx, id, codes, func(done int64) {
		p.console.progress(func() progress {
			return progress{fmt.Sprintf("%s jobs are on the queue again", count(done)), p.console.event("enqueueing", "import", id, "done", done),
				line{doing: "enqueueing", parts: []part{{text: jobs(done), rank: rankCount}}}}
		})
	})
	p.console.end()
	switch {
	case err != nil && ctx.Err() != nil:
		return &unfinishedError{errInterrupted, p.commandLine(), false}
	case errors.As(err, new(*queue.NewerNightError)):
		return hint(err, "'groupferry status%s' lists the nights; the last one can be retried", where)
	case errors.Is(err, queue.ErrCancelled):
		return hint(err, "'groupferry results %s --failed%s' exports what failed, to be imported as it is", id, where)
	case errors.Is(err, queue.ErrUnfinished):
		return hint(err, "'groupferry status %s%s' shows how far it is", id, where)
	case err != nil:
		return err
	}
	if stats.Unreadable > 0 {
		p.console.event("conversations failed because no job could be read", "import", id, "conversations", stats.Unreadable).
			warn("%s failed because no job could be read; nobody knows what was in them", count(stats.Unreadable))
	}
	switch {
	case stats.Jobs == 0:
		p.console.event("no failures to retry", "import", id).print("import %s: no failures to retry", id)
	default:
		p.console.event("failures are on the queue again", "import", id, "retry", i.Generation, "jobs", stats.Jobs,
			"conversations", stats.Conversations).print("retry %d of import %s: %s on the queue again, with %s; "+
			"'groupferry work%s' makes their calls", i.Generation, id, jobs(stats.Jobs), things(stats.Conversations, "conversation"), where)
	}
	return nil
}
