package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"groupferry/importer"
	"groupferry/internal/app"
	"groupferry/internal/queue"
)

func (p *program) verifyCommand() *cobra.Command {
	v := verifier{readCommand: readCommand{program: p}}
	cmd := &cobra.Command{
		Use:   "verify FILE...",
		Short: "Compare the input with what the API has",
		Long: `verify reads the groups of all users of the input, and lists what the API lacks
of it, by file and line. With --sync NAME it also lists what that sync put there
and the input has no more; what others put there is not its business. It changes
nothing.

The exit code is 3 if anything is listed. As CSV the list can be imported as it
is, which puts there what is missing. Users whose list could not be read as a
whole are listed on standard error, and their rows with the code unverified.

` + readingText,
		Annotations: exits{exitIncomplete: "something is missing or left over, or could not be verified", exitHalted: cannotRead,
			exitGuarded: emptyFile, exitUnreachable: "NATS or the API is out of reach, or another process reads", exitInterrupted: ""}.annotations(),
		Example: `  groupferry verify groups.csv --region singapore --sdk-app-id 1400000000 \
      --secret-key-file key
  groupferry verify --sync contacts --output csv contacts.csv \
      --region singapore --sdk-app-id 1400000000 --secret-key-file key`,
		Args: files,
		RunE: func(cmd *cobra.Command, args []string) error { return v.run(cmd, args) },
	}
	v.in.addReading(cmd, "auto", "csv", "jsonl")
	cmd.Flags().StringVar(&v.sync, "sync", "", "list also what the sync of this `name` put there and the input has no more")
	v.add(cmd, "text", "json", app.CSV, app.JSONL)
	return cmd
}

// A verifier is one run of the command verify.
type verifier struct{ readCommand }

func (v *verifier) run(cmd *cobra.Command, inputs []string) error {
	ctx := cmd.Context()
	if err := v.out.check(v.program); err != nil {
		return err
	}
	if v.sync != "" && !queue.ValidSyncName(v.sync) {
		return usagef("%s %q: use 1 to %d of A-Z, a-z, 0-9, - and _", v.named("sync"), v.sync, queue.MaxSyncName)
	}
	n, api, err := v.open(ctx)
	if err != nil {
		return err
	}
	defer n.Close()
	defer api.Close()
	plan, night, err := v.plan(ctx, n, api, inputs)
	v.console.end()
	if err != nil {
		return v.ended(ctx, err, v.commandLine())
	}
	defer plan.Close()
	users, err := app.CountUsers(plan)
	if err != nil {
		return err
	}
	cost, err := n.ReadCost(ctx, users, v.api.rate)
	if err != nil {
		return err
	}
	v.showCost(cost)
	list := app.NewDifferenceWriter(v.data(), v.out.format)
	report, err := app.Verify(untilLeft(ctx), ctx.Done(), app.VerifyConfig{
		Read: v.reading(n, api, &cost), Plan: plan, Night: night, Write: list.Write, OnUnread: v.showUnread,
	})
	v.console.end()
	err = cmp.Or(err, list.Close(&report))
	if report.Users > 0 || report.Complete {
		text := verifyText(&report, v.sync != "")
		if v.out.format == "text" {
			err = cmp.Or(err, v.out.write(v.stdout, nil, func() string { return text }))
		} else {
			v.console.event("verify ended", "conversations", report.Wanted, "missing", report.Missing, "unverified", report.Unverified,
				"leftover", report.Leftover, "calls", report.Calls, "not_complete", len(report.Unread)).
				lines(text)
		}
	}
	if err != nil {
		return v.ended(ctx, err, v.commandLine())
	}
	if report.Drift() {
		return errIncomplete
	}
	return nil
}

// plan reads the input. The night is the last one of the sync, if one is named.
func (v *verifier) plan(
	ctx context.Context, n *app.Namespace, api *apiClient, inputs []string,
) (plan *importer.Plan, night *queue.Night, err error) {
	in, err := v.in.config(v.program, inputs, v.api.chunk)
	if err != nil {
		return nil, nil, err
	}
	rows, err := importer.ReadRows(ctx, inputs, in.Importer)
	if err != nil {
		return nil, nil, err
	}
	if v.sync != "" {
		plan, night, err = n.PlanOnSync(ctx, rows, v.sync, app.Target(v.api.identity(), api.Address()))
	} else {
		plan, err = rows.Plan(ctx, nil)
	}
	if err == nil {
		err = v.showPlan(plan)
	}
	if err != nil {
		rows.Close() // err matters more
	}
	return plan, night, err
}

// verifyText says what a comparison found.
func verifyText(r *app.VerifyReport, sync bool) string {
	var b strings.Builder
	state := "the API has all of the input"
	switch {
	case !r.Complete:
		state = "not complete"
	case r.Missing+r.Leftover > 0:
		state = "drift"
	case r.Drift():
		state = "not all could be verified"
	}
	fmt.Fprintf(&b, "verify: %s\n", state)
	fmt.Fprintf(&b, "  rows           %-9s duplicates %s · rejected %s\n", count(r.Rows), count(r.Duplicates), count(r.Rejected))
	fmt.Fprintf(&b, "  users          %-9s %s\n", count(r.Users), readText(&r.ReadStats, len(r.Unread)))
	fmt.Fprintf(&b, "  conversations  %-9s there %s · missing %s · unverified %s\n", count(r.Wanted), count(r.There), count(r.Missing), count(r.Unverified))
	if sync {
		b.WriteString(leftoverText(&r.Differences))
	}
	b.WriteString(callsText(&r.ReadStats))
	return b.String()
}

// leftoverText says what a sync has put there and the input has no more.
func leftoverText(n *app.Differences) string {
	text := fmt.Sprintf("  leftover       %-9s put there by the sync, and the input has them no more\n", count(n.Leftover))
	if n.Kept > 0 {
		text += fmt.Sprintf("  kept           %-9s so, too; they stay, for the sync only adds, or keeps users without a row\n", count(n.Kept))
	}
	return text
}

// liveText says what check --live read.
func liveText(r *app.LiveReport) string {
	if r == nil {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "  live           %s: %s\n", things(r.Users, "user"), readText(&r.ReadStats, len(r.Unread)))
	fmt.Fprintf(&b, "  there          %-9s of them the night sends again %s\n", count(r.There), count(r.Early))
	fmt.Fprintf(&b, "  missing        %-9s the night sends %s · it sends only with --full %s\n", count(r.Missing), count(r.Waiting), count(r.Gone))
	b.WriteString(leftoverText(&r.Differences))
	if r.Unverified > 0 {
		fmt.Fprintf(&b, "  unverified     %s\n", count(r.Unverified))
	}
	b.WriteString(callsText(&r.ReadStats))
	return b.String()
}
