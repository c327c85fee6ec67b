package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"groupferry/internal/app"
	"groupferry/internal/chat"
)

func (p *program) rateCommand() *cobra.Command {
	return p.onNamespace(&cobra.Command{
		Use:   "rate [CALLS]",
		Short: "Show or change the calls a second while workers run",
		Long: `rate sets the calls a second for each command, for all workers, from the next
second on and for those that join later; it goes before their --rate. Without
CALLS it shows what is set, and 0 leaves it to the workers again: the lowest
--rate of those that run is the one that holds.`,
		Example: "  groupferry rate 160",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("one rate at a time, not %d", len(args))
			}
			return nil
		},
	}, p.rate)
}

func (p *program) rate(ctx context.Context, s *app.Namespace, args []string, where string) error {
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
		p.console.event("the rate is the one that all processes were started with").
			print("the rate is what the workers were started with: the lowest of theirs")
	} else {
		p.console.event("the rate is set", "calls_per_second", n).print("at most %d calls a second for each command", n)
		if n > chat.MaxRate {
			p.console.event("the rate is more than an app of the vendor has", "calls_per_second", n).
				warn("an app has %d calls a second: workers with a --region keep to that, or to their --app-limit", chat.MaxRate)
		}
	}
	return nil
}
