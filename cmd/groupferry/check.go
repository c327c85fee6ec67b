package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"groupferry/internal/app"
	"groupferry/internal/chat"
)

func (p *program) checkCommand() *cobra.Command {
	var in inputFlags
	var out outputFlag
	var qf queueFlags
	var sync syncFlags
	var api apiFlags
	live, show := false, 0
	cmd := &cobra.Command{
		Use:   "check FILE...",
		Short: "Read and check the input, and do nothing else",
		Long: `check reads and checks the input as import and run do, and says what they would
make of it: rows, rejects, groups, calls, and the time that the calls take. It
needs no queue and no API, and sends nothing. With --rejects it writes the
rejected rows to a file, or with - to standard output. With --show it prints the
first call of the first groups as it would be sent, which is how a --preset or
--columns can be tried.

With --sync it also reads the queue, and says what a night of that sync would
do. It changes nothing there. With --live as well it reads the groups of all
users back, and compares them with the plan; it says first how many calls that
takes, and how long.

A FILE is CSV or JSONL, also compressed with gzip or zstd; - is standard input.`,
		Annotations: exits{exitIncomplete: "rows were rejected; or with --live, not all was there", exitHalted: "with --live: " + cannotRead,
			exitGuarded: "no row accepted, too many rejects, or a guard of a sync", exitInterrupted: "",
			exitUnreachable: "with --sync: NATS or the API is out of reach, or another process reads"}.annotations(),
		Example: `  groupferry check samples/messy.csv
  groupferry check --rejects bad.csv samples/messy.csv
  groupferry check --preset sdk --show 5 samples/sdk.csv
  groupferry check --output json export/*.jsonl.gz`,
		Args: files,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := out.check(p); err != nil {
				return err
			}
			if api.chunk < 1 || api.chunk > chat.MaxItemsPerCall {
				return usagef("%s %d: 1 to %d", p.named("chunk-size"), api.chunk, chat.MaxItemsPerCall)
			}
			if api.rate < 1 {
				return usagef("%s %d: at least 1", p.named("rate"), api.rate)
			}
			cfg := app.CheckConfig{Rate: api.rate, Show: show}
			night, err := sync.used(p, &in)
			if err != nil {
				return err
			}
			reader := readCommand{program: p, api: api, queue: qf, wait: sync.wait}
			switch {
			case live && !night:
				return usagef("--live goes with --sync NAME; 'groupferry verify' compares an input with the API")
			case live:
				close, err := sync.checkLive(cmd.Context(), &reader, &cfg, args, &in)
				if err != nil {
					return err
				}
				defer close()
			case night:
				if err := sync.check(cmd.Context(), p, &cfg, args, &in, &qf, &api.targetFlags, api.chunk); err != nil {
					return err
				}
				if cfg.Namespace != nil {
					defer cfg.Namespace.Close()
				}
			default:
				if cfg.Input, err = in.config(p, args, api.chunk); err != nil {
					return err
				}
			}
			r, err := app.Check(cmd.Context(), cfg)
			p.console.end()
			if err != nil && (exitCode(err) != exitGuarded || r.Import == "") { // a guard's error comes with a report
				return reader.ended(cmd.Context(), err, p.commandLine())
			}
			p.showKept(r.Kept, r.Rejected)
			if werr := out.write(p.stdout, r, func() string { return checkText(&r, args) }); werr != nil {
				return werr
			}
			if shrink, ok := errors.AsType[*app.ShrinkError](err); ok {
				return hint(err, "if that is right, give --accept %s to import or run", shrink.Import)
			}
			if err == nil && (r.Rejected > 0 || r.Live != nil && (r.Live.Gone > 0 || len(r.Live.Unread) > 0)) {
				err = errIncomplete
			}
			return err
		},
	}
	in.add(cmd)
	qf.add(cmd)
	sync.add(cmd)
	api.addCalls(cmd)
	out.add(cmd, "text", "json")
	cmd.Flags().IntVar(&api.chunk, "chunk-size", api.chunk, "conversations in a call, at most 100")
	cmd.Flags().BoolVar(&live, "live", false, "in a sync, read the groups of all users back and compare them with the plan")
	cmd.Flags().IntVar(&show, "show", 0, "print the first call of the first `n` groups")
	p.consoleFlags(cmd)
	return cmd
}

// checkText says what a check found.
func checkText(r *app.CheckReport, inputs []string) string {
	var b strings.Builder
	b.WriteString(nightText(r.Night))
	if r.Night != nil {
		b.WriteString(examplesText(&r.Night.Examples))
	}
	fmt.Fprintf(&b, "import %s (%s)\n", r.Import, fileNames(app.FileNames(inputs)))
	fmt.Fprintf(&b, "  rows           %-9s accepted %s · duplicates %s · rejected %s\n", count(r.Rows), count(r.Accepted), count(r.Duplicates), count(r.Rejected))
	fmt.Fprintf(&b, "  groups         %-9s of %s users\n", count(r.Groups), count(r.Users))
	fmt.Fprintf(&b, "  conversations  %s\n", count(r.Conversations))
	fmt.Fprintf(&b, "  calls          %-9s at %d a second: %s\n", count(r.Calls), r.Rate, span(time.Duration(r.Seconds)*time.Second))
	b.WriteString(liveText(r.Live))
	for _, g := range r.Rejects {
		fmt.Fprintf(&b, "  rejects        %-9s %s: %s; first at %s:%d\n", count(g.Count), g.Code, inLine(g.Reason), inLine(g.File), g.Line)
	}
	for _, call := range r.FirstCalls {
		fmt.Fprintf(&b, "%s\n", call)
	}
	return b.String()
}
