package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"groupferry/internal/app"
)

func (p *program) rateCommand() *cobra.Command {
	return p.onNamespace(&cobra.Command{
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
			p.console.print("the rate is what the workers were started with")
		} else {
			p.console.print("at most %d calls a second for each command", n)
		}
		return nil
	})
}
