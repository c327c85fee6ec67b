package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"groupferry/internal/app"
	"groupferry/internal/queue"
)

func (p *program) retryCommand() *cobra.Command {
	var qf queueFlags
	var codes []string
	cmd := &cobra.Command{
		Use:   "retry IMPORT",
		Short: "Put what failed on the queue again",
		Long: `retry puts the failed and partial jobs of a complete import on the queue again, with
the conversations that failed alone; what is in its group already is not sent
again. Workers ('groupferry work', or the 'groupferry run' of the import) make the
calls, and the new results take the place of the old ones.

It can be called as often as something fails, at once or a week later. Whatever
stops it, the same command continues, and no job is on the queue twice.

` + exitCodes,
		Example: `  groupferry retry 3f9a1c0be2d47a55
  groupferry retry 3f9a1c0be2d47a55 --code 50001,51007`,
		Args: imports(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			s, err := p.open(qf, true)
			if err != nil {
				return err
			}
			defer s.Close()
			return p.retry(s.Queue, args[0], codes, qf.args(p.getenv))
		},
	}
	cmd.Flags().StringSliceVar(&codes, "code", nil, "only failures with one of these `codes`; default: all")
	qf.add(cmd)
	p.consoleFlags(cmd)
	return cmd
}

func (p *program) retry(q *queue.Queue, id string, codes []string, where string) error {
	i, stats, err := q.Retry(p.soft, id, codes, func(jobs int64) {
		p.console.progress(func() string { return fmt.Sprintf("%s jobs are on the queue again", count(jobs)) })
	})
	p.console.end()
	switch {
	case err != nil && p.soft.Err() != nil:
		return &unfinishedError{errInterrupted, p.commandLine(), false}
	case errors.Is(err, queue.ErrNoImport):
		return hint(err, "'groupferry status%s' lists the imports", where)
	case errors.Is(err, queue.ErrCancelled):
		return hint(err, "'groupferry results %s --failed%s' exports what failed, to be imported as it is", id, where)
	case errors.Is(err, queue.ErrUnfinished):
		return hint(err, "'groupferry status %s%s' shows how far it is", id, where)
	case err != nil:
		return err
	}
	if stats.Unreadable > 0 {
		p.console.warn("%s failed because no job could be read; nobody knows what was in them", count(stats.Unreadable))
	}
	switch {
	case stats.Jobs == 0:
		p.console.say("import %s: no failures to retry", id)
	default:
		p.console.say("retry %d of import %s: %s jobs with %s conversations are on the queue again; "+
			"'groupferry work%s' makes their calls", i.Generation, id, count(stats.Jobs), count(stats.Conversations), where)
	}
	return nil
}

func (p *program) deleteCommand() *cobra.Command {
	return p.steering(&cobra.Command{
		Use:     "delete IMPORT",
		Aliases: []string{"forget"},
		Short:   "Remove an import with its results",
		Long: `delete removes an import that is complete or cancelled: its results, with the ids of
people in them, and its record. The groups that were written stay. The same
content is a new import then.

'groupferry work' and 'groupferry run' do this by themselves to imports that are
older than --keep.`,
		Args: imports(1, 1),
	}, func(ctx context.Context, s *app.Namespace, args []string, where string) error {
		err := s.Delete(ctx, args[0])
		if errors.Is(err, queue.ErrUnfinished) {
			return hint(err, "wait for its end, or 'groupferry cancel %s%s'", args[0], where)
		}
		if err == nil {
			p.console.say("import %s is deleted", args[0])
		}
		return err
	})
}

// keepFlag is how long an import is kept after its end.
type keepFlag time.Duration

func (k *keepFlag) add(cmd *cobra.Command) {
	cmd.Flags().Var(k, "keep", "delete imports that ended longer ago than this `time`, such as 30d; default: never")
}

// Set takes whole days as 30d, and what time.ParseDuration does.
func (k *keepFlag) Set(s string) error {
	var d time.Duration
	var err error
	if days, ok := strings.CutSuffix(s, "d"); ok {
		var n uint64
		n, err = strconv.ParseUint(days, 10, 16)
		d = time.Duration(n) * 24 * time.Hour
	} else {
		d, err = time.ParseDuration(s)
	}
	if err != nil || d <= 0 {
		return fmt.Errorf("%q: a number of days such as 30d, or a time such as 12h", s)
	}
	*k = keepFlag(d)
	return nil
}

func (k *keepFlag) String() string {
	if *k == 0 {
		return ""
	}
	return time.Duration(*k).String()
}

func (k *keepFlag) Type() string { return "time" }
