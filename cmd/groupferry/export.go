package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"groupferry/importer"
	"groupferry/internal/app"
	"groupferry/internal/job"
	"groupferry/internal/queue"
)

func (p *program) exportCommand() *cobra.Command {
	e := exporter{readCommand: readCommand{program: p}}
	cmd := &cobra.Command{
		Use:   "export [FILE...]",
		Short: "Read users' groups back as CSV",
		Long: `export reads all groups of users with get_contact_group and writes them to
standard output, as CSV that can be imported as it is. The users are those of a
FILE: one that import takes, of which only the users matter, or user ids, one on
a line. A FILE whose first line has one field is a list of ids; --format users
says so of any. --import and --sync take the users of what was imported instead.
Each user is read once.

A user is in the output as a whole or not at all. Users whose list could not be
read as a whole are listed on standard error, and the exit code is 3. A user
without groups, or whom the app does not have, is no error. Users are read one
after the other, while others may write: the output is no picture of one
instant.

With --to the rows go to a file, and the report to standard output. Whatever
stops it, the same command continues: FILE.progress says how far the file
counts. A complete export with unread users keeps it, and the same command reads
these again.

` + readingText,
		Annotations: exits{exitIncomplete: "users could not be read as a whole, or rows have no valid user", exitHalted: cannotRead,
			exitGuarded: emptyFile, exitUnreachable: "NATS or the API is out of reach, or another process reads", exitInterrupted: ""}.annotations(),
		Example: `  groupferry export groups.csv --region singapore --sdk-app-id 1400000000 \
      --secret-key-file key > before.csv
  groupferry export users.txt --to groups.csv --region singapore \
      --sdk-app-id 1400000000 --secret-key-file key
  groupferry export --sync contacts --to contacts.csv --region singapore \
      --sdk-app-id 1400000000 --secret-key-file key`,
		RunE: func(cmd *cobra.Command, args []string) error { return e.run(cmd, args) },
	}
	e.in.addReading(cmd, "auto", "csv", "jsonl", "users")
	cmd.Flags().StringVar(&e.importID, "import", "", "the users of this `import`, instead of a FILE")
	cmd.Flags().StringVar(&e.sync, "sync", "", "the users of the sync of this `name`, instead of a FILE")
	cmd.Flags().StringVar(&e.to, "to", "", "`file` that the rows go to, and that the same command continues")
	e.add(cmd, "text", "json")
	return cmd
}

// What the commands say that read groups back.
const (
	readingText = `Reading takes half of the rate of its command, for the other half is the
leader's. One process of a namespace reads at a time; another one ends with code
75, or waits with --wait.`
	cannotRead = "every user would fail the same way"
	emptyFile  = "the file is empty"
)

// A readCommand is what the commands have in common that read groups back.
type readCommand struct {
	*program
	in    inputFlags
	api   apiFlags
	queue queueFlags
	out   outputFlag
	sync  string
	wait  bool
}

func (r *readCommand) add(cmd *cobra.Command, formats ...string) {
	r.api.addCalls(cmd)
	r.queue.add(cmd)
	r.out.add(cmd, formats...)
	cmd.Flags().BoolVar(&r.wait, "wait", false, "wait while another process reads groups back")
	r.consoleFlags(cmd)
}

// open makes the client, and opens the queue. Both have to be closed.
func (r *readCommand) open(ctx context.Context) (*app.Namespace, *apiClient, error) {
	if err := r.queue.check(r.program); err != nil {
		return nil, nil, err
	}
	api, err := r.client(&r.api)
	if err != nil {
		return nil, nil, err
	}
	if r.api.rate < 2 {
		api.Close()
		return nil, nil, usagef("%s 1: one half of it is the leader's, so there is nothing to read with; at least 2", r.named("rate"))
	}
	n, err := r.program.open(ctx, r.queue, false)
	if err != nil {
		api.Close()
	}
	return n, api, err
}

// reading is the config of a reading of so many users.
func (r *readCommand) reading(n *app.Namespace, api *apiClient, cost *app.ReadCost) app.ReadConfig {
	cfg := app.ReadConfig{Engine: r.engineConfig(n, api, &r.api)}
	if r.wait {
		cfg.Engine.Waiting = func(host string) {
			r.console.event("waiting for a reader", "host", host).print("waiting for %s, which reads groups back", host)
		}
	}
	started, done := time.Time{}, int64(0)
	cfg.OnRead = func(s app.State) {
		if done++; started.IsZero() {
			started = time.Now()
		}
		r.console.progress(func() progress { return r.readProgress(done, cost.Users, s.Tally.Throttled, time.Since(started)) })
	}
	return cfg
}

// readProgress is how far a reading is after so much time.
func (r *readCommand) readProgress(done, total, throttled int64, took time.Duration) progress {
	text := fmt.Sprintf("%s of %s users read", count(done), count(total))
	n := line{doing: "reading", done: done, total: total, parts: []part{{text: count(done) + " of " + things(total, "user"), rank: rankCount}}}
	if took > 0 && done > 1 {
		rate, left := fmt.Sprintf("%.0f users/s", float64(done)/took.Seconds()), took/time.Duration(done)*time.Duration(max(0, total-done))
		text += ", " + rate + ", " + span(left) + " left"
		n.parts = append(n.parts, part{text: rate, rank: rankRate}, part{text: brief(left) + " left", rank: rankLeft})
	}
	if throttled > 0 {
		text += fmt.Sprintf(", %s throttled", count(throttled))
		n.parts = append(n.parts, part{text: count(throttled) + " throttled", rank: rankThrottled, color: yellow})
	}
	return progress{text, r.console.event("reading groups back", "done", done, "total", total, "throttled", throttled), n}
}

// showCost says what a reading takes, before it begins.
func (p *program) showCost(c app.ReadCost) {
	took := "no call at all"
	if c.Rate > 0 {
		took = fmt.Sprintf("%s at %d a second, half of the rate", span(time.Duration(c.Seconds)*time.Second), c.Rate)
	}
	p.console.event("reading begins", "total", c.Users, "rate", c.Rate, "seconds_left", c.Seconds).
		print("reading %s: %s or more, %s", things(c.Users, "user"), things(c.Users, "call"), took)
}

func (p *program) showUnread(u app.UnreadUser) {
	p.console.event("list is not complete", "from_account", u.FromAccount, "code", u.Code, "reason", u.Reason).
		warn("not complete: %s: %s: %s", u.FromAccount, u.Code, u.Reason)
}

// ended adds to the error of a reading what to do next.
func (r *readCommand) ended(ctx context.Context, err error, command string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, app.ErrStopped), ctx.Err() != nil && errors.Is(err, context.Canceled):
		return &unfinishedError{errInterrupted, command, false}
	case errors.Is(err, queue.ErrNoSync):
		return hint(usagef("%w", err), "'groupferry status%s' lists them", r.queue.args(r.program))
	case errors.Is(err, queue.ErrNoImport):
		return r.noImport(usagef("%w", err), r.queue.args(r.program))
	case exitCode(err) == exitHalted:
		return &unfinishedError{err, command, true}
	case exitCode(err) == exitUnreachable:
		return &unfinishedError{err, command, false}
	}
	return err
}

// An exporter is one run of the command export.
type exporter struct {
	readCommand
	importID, to string
}

func (e *exporter) run(cmd *cobra.Command, inputs []string) error {
	ctx := cmd.Context()
	if err := e.out.check(e.program); err != nil {
		return err
	}
	if err := e.check(inputs); err != nil {
		return err
	}
	n, api, err := e.open(ctx)
	if err != nil {
		return err
	}
	defer n.Close()
	defer api.Close()
	if e.importID != "" {
		named := []string{e.importID}
		if err := e.findImport(ctx, n, named, shortID); err != nil {
			return err
		}
		e.importID = named[0]
	}
	plan, err := e.users(ctx, n, api, inputs)
	e.console.end()
	if err != nil {
		return e.ended(ctx, err, e.commandLine())
	}
	defer plan.Close()
	cost, err := n.ReadCost(ctx, plan.Summary.Users, e.api.rate)
	if err != nil {
		return err
	}
	e.showCost(cost)
	report, err := app.Export(untilLeft(ctx), ctx.Done(), app.ExportConfig{
		Read: e.reading(n, api, &cost), Users: plan, Stdout: e.data(), File: e.to,
		Target: app.Target(e.api.identity(), api.Address()), OnUnread: e.showUnread,
	})
	e.console.end()
	began := report.Users+report.Earlier > 0 || report.Complete
	if began {
		werr := e.report(&report, plan.Summary.Rejected)
		err = cmp.Or(err, werr)
	}
	if err != nil {
		if e.to == "" && began {
			const text = "with --to FILE the same command continues instead of reading all again"
			e.console.event("nothing can be continued", "hint", text).print("hint: %s", text)
		}
		err = e.ended(ctx, err, e.commandLine())
		if e.to != "" && exitCode(err) == exitFailed { // such as a full disk
			err = &unfinishedError{err, e.commandLine(), true}
		}
		return err
	}
	if len(report.Unread) > 0 || plan.Summary.Rejected > 0 {
		return errIncomplete
	}
	return nil
}

// check finds out whether there is one source of users.
func (e *exporter) check(inputs []string) error {
	if len(inputs) > 0 { // a variable is for where none is named
		for flag, value := range map[string]*string{"import": &e.importID, "sync": &e.sync} {
			if !e.given[flag] {
				*value = ""
			}
		}
	}
	file := ""
	if len(inputs) > 0 {
		file = "FILE"
	}
	if err := oneOf(file, e.nameIf(e.importID != "", "import"), e.nameIf(e.sync != "", "sync")); err != nil {
		return err
	}
	switch {
	case len(inputs) == 0 && e.importID == "" && e.sync == "":
		return usagef("no users: name one or more files, or - for standard input, or give --import or --sync")
	case e.importID != "" && !job.ValidImportID(e.importID):
		return usagef("%s %q: this cannot be an import ID", e.named("import"), e.importID)
	case e.sync != "" && !queue.ValidSyncName(e.sync):
		return usagef("%s %q: use 1 to %d of A-Z, a-z, 0-9, - and _", e.named("sync"), e.sync, queue.MaxSyncName)
	case e.to == "" && e.out.format == "json" && e.given["output"]: // a variable is for the commands whose format it is
		return usagef("--output json: this is for the report, which is on standard output with --to FILE alone")
	}
	return nil
}

// users reads whom to export.
func (e *exporter) users(ctx context.Context, n *app.Namespace, api *apiClient, inputs []string) (*importer.Plan, error) {
	in, err := e.in.config(e.program, inputs, e.api.chunk)
	if err != nil {
		return nil, err
	}
	in.Importer.UsersOnly = true
	switch {
	case e.importID != "":
		return importer.ReadUsers(ctx, n.UsersOfImport(ctx, e.importID), in.Importer)
	case e.sync != "":
		return importer.ReadUsers(ctx, n.UsersOfSync(ctx, e.sync, app.Target(e.api.identity(), api.Address())), in.Importer)
	}
	plan, err := importer.Read(ctx, inputs, in.Importer)
	if err == nil {
		err = e.showPlan(plan)
	}
	return plan, err
}

// report says what came of an export: where the rows are not.
func (e *exporter) report(r *app.ExportReport, rejected int64) error {
	text := func() string { return exportText(r, rejected) }
	if e.to != "" {
		return e.out.write(e.stdout, r, text)
	}
	e.console.event("export ended", "conversations", r.Conversations, "calls", r.Calls, "not_complete", len(r.Unread)).
		lines(text())
	return nil
}

// exportText says what an export read.
func exportText(r *app.ExportReport, rejected int64) string {
	var b strings.Builder
	state := "complete"
	switch {
	case !r.Complete:
		state = "not complete"
	case len(r.Unread) > 0:
		state = "complete, but for the users above"
	}
	fmt.Fprintf(&b, "export: %s\n", state)
	fmt.Fprintf(&b, "  users          %-9s %s", count(r.Total), readText(&r.ReadStats, len(r.Unread)))
	if r.Earlier > 0 {
		fmt.Fprintf(&b, " · read by an earlier run %s", count(r.Earlier))
	}
	fmt.Fprintf(&b, "\n  conversations  %-9s in %s, %s of them empty\n", count(r.Conversations), things(r.Groups, "group"), count(r.EmptyGroups))
	if rejected > 0 {
		fmt.Fprintf(&b, "  rejected       %-9s rows without a valid user\n", count(rejected))
	}
	b.WriteString(callsText(&r.ReadStats))
	b.WriteString("  Users were read one after the other: this is no picture of one instant.\n")
	return b.String()
}

// readText says how many users were read, and what of them.
func readText(r *app.ReadStats, unread int) string {
	return fmt.Sprintf("read %s · not complete %s · without a group %s · not in the app %s",
		count(r.Users-int64(unread)), count(unread), count(r.WithoutGroups), count(r.NoAccount))
}

func callsText(r *app.ReadStats) string {
	return fmt.Sprintf("  this run       %s in %s\n", things(r.Calls, "call"), span(time.Duration(r.Seconds*float64(time.Second))))
}
