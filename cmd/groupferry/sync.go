package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"groupferry/importer"
	"groupferry/internal/app"
	"groupferry/internal/broker"
	"groupferry/internal/chat"
	"groupferry/internal/queue"
)

// syncFlags say that an input is a night of a sync.
type syncFlags struct {
	name, mode, missing            string
	maxShrink, maxRemovals, accept string
	full, wait                     bool
}

func (s *syncFlags) add(cmd *cobra.Command) {
	defer inGroup(cmd, syncGroup)()
	f := cmd.Flags()
	f.StringVar(&s.name, "sync", "", "`name` of an import that recurs: only what is new since its last night is sent")
	f.StringVar(&s.mode, "mode", "add", "`mode` of a sync: add, or mirror to remove what it added and the input has no more")
	f.StringVar(&s.missing, "missing-users", "keep", "`what` becomes of users without a row in a mirror: keep or clear")
	choices(cmd, "mode", "add", "mirror")
	choices(cmd, "missing-users", "keep", "clear")
	f.StringVar(&s.maxRemovals, "max-removals", "", "in a mirror, enqueue nothing if it would remove more than `N or N%` (default 5%, at most 10,000)")
	f.StringVar(&s.maxShrink, "max-shrink", "", "in a sync, enqueue nothing if the last night had `N or N%` rows more (default 10%)")
	f.StringVar(&s.accept, "accept", "", "in a sync, take the `import` that a guard refused; it is the one that was meant")
	f.BoolVar(&s.full, "full", false, "in a sync, send all that the input has, not only what is new")
	f.BoolVar(&s.wait, "wait", false, "in a sync, wait while another process prepares a night of it")
	// What was accepted once must not be accepted every night.
	_ = f.SetAnnotation("accept", envAnnotation, []string{"-"})
}

// used reports whether the input is a night of a sync.
func (s *syncFlags) used(p *program, in *inputFlags) (bool, error) {
	switch {
	case s.name == "":
		for _, flag := range []string{"mode", "missing-users", "max-removals", "max-shrink", "accept", "full", "wait"} {
			if p.given[flag] {
				return false, usagef("--%s goes with --sync NAME", flag)
			}
		}
		return false, nil
	case in.importID != "":
		return false, usagef("%s and %s: a night of a sync makes its own import ID", p.named("sync"), p.named("import-id"))
	case s.mode == "add" && (s.missing == "clear" || p.given["max-removals"]):
		return false, usagef("--missing-users and --max-removals go with --mode mirror")
	case !queue.ValidSyncName(s.name):
		return false, usagef("%s %q: use 1 to %d of A-Z, a-z, 0-9, - and _", p.named("sync"), s.name, queue.MaxSyncName)
	}
	return true, nil
}

// config says which sync it is, and how the input is read; target is that of its API.
func (s *syncFlags) config(p *program, files []string, in *inputFlags, target string, chunk int) (app.InputConfig, app.SyncConfig, error) {
	cfg := app.SyncConfig{
		Name: s.name, Target: target, Holder: processName(), Full: s.full,
		Mirror: s.mode == "mirror", Clear: s.missing == "clear",
		Guards: app.SyncGuards{Accept: s.accept},
		Warn: func(text string) {
			p.console.event("warning about the sync", "sync", s.name, "reason", text).warn("%s", text)
		},
	}
	if s.wait {
		cfg.Waiting = func(e *queue.LockedError) {
			p.console.event("waiting for another process that prepares a night", "sync", e.Name, "host", e.Holder, "since", e.Since).
				print("waiting for %s, which prepares a night of sync %s since %s",
					e.Holder, e.Name, e.Since.Local().Format(time.DateTime))
		}
	}
	input, err := in.config(p, files, chunk)
	if err != nil {
		return input, cfg, err
	}
	if !input.MaxRejects.Limited {
		input.MaxRejects = app.DefaultMaxRejects
	}
	if cfg.Guards.MaxShrink, err = p.budget("max-shrink", s.maxShrink); err == nil {
		cfg.Guards.MaxRemovals, err = p.budget("max-removals", s.maxRemovals)
	}
	return input, cfg, err
}

// target is that of a sync, for a command that does not call the API.
func (t *targetFlags) target(p *program) (string, error) {
	base, err := t.baseURL(p)
	if err != nil {
		return "", err
	}
	var missing []string
	if base == "" {
		missing = append(missing, "--region or --api-url is required")
	}
	if t.app == 0 {
		missing = append(missing, "--sdk-app-id is required")
	}
	if len(missing) > 0 {
		return "", usagef("%s: a sync belongs to one app", strings.Join(missing, "; "))
	}
	address, err := chat.Address(base)
	if err != nil {
		return "", usagef("%s: %w", p.named("api-url"), err)
	}
	return app.Target(queue.App{SDKAppID: t.app}, address), nil
}

// readNight reads the input of import and run as a night of a sync.
func (p *program) readNight(
	ctx context.Context, n *app.Namespace, files []string, in *inputFlags, s *syncFlags, target string, chunk int,
) (*app.Night, error) {
	input, cfg, err := s.config(p, files, in, target, chunk)
	if err != nil {
		return nil, err
	}
	night, err := n.ReadNight(ctx, input, cfg)
	p.console.end()
	if guard, ok := errors.AsType[*app.GuardError](err); ok {
		p.showKept(guard.Rejects, guard.Rejected)
	}
	if shrink, ok := errors.AsType[*app.ShrinkError](err); ok {
		return nil, hint(err, "check the input; if it is what is wanted: %s", acceptCommand(p.args, shrink.Import))
	}
	return night, err
}

// acceptCommand is the same command with --accept, in the place of one that was given.
func acceptCommand(args []string, importID string) string {
	var without []string
	for i, a := range args {
		if a != "--accept" && !strings.HasPrefix(a, "--accept=") && (i == 0 || args[i-1] != "--accept") {
			without = append(without, a)
		}
	}
	return commandLine(without) + " --accept " + importID
}

// nightText begins the report of a night.
func nightText(n *app.NightReport) string {
	if n == nil {
		return ""
	}
	var b strings.Builder
	base := "the first"
	switch {
	case n.Last == nil && n.Night > 1:
		base = "none before it was completed"
	case n.Last != nil:
		base = fmt.Sprintf("base: night %d, %s", n.Last.Number, n.Last.Completed.Local().Format(time.DateTime))
	}
	if n.NothingToDo {
		base = "complete, and the input is the same"
	}
	fmt.Fprintf(&b, "sync %s, night %d (%s)\n", n.Sync, n.Night, base)
	difference := ""
	if n.Last != nil {
		difference = " (" + count(n.Accepted-n.Last.Accepted) + ")"
		if n.Accepted >= n.Last.Accepted {
			difference = " (+" + count(n.Accepted-n.Last.Accepted) + ")"
		}
	}
	fmt.Fprintf(&b, "  input          %s · %s accepted%s · %s rejected, at most %s\n", things(int64(n.Files), "file"), rows(n.Accepted),
		difference, count(n.Rejected), count(n.MayReject))
	fmt.Fprintf(&b, "  plan           create %s · add %s%s · unchanged %s\n", count(n.Create), count(n.Add), mirrorPlan(n.Mirror),
		count(n.Unchanged))
	b.WriteString(mirrorText(n.Mirror))
	if len(n.Guards) > 0 {
		all := make([]string, len(n.Guards))
		for i, g := range n.Guards {
			all[i] = fmt.Sprintf("%s %s, at %s %s", g.What, count(g.Now), map[bool]string{false: "least", true: "most"}[g.AtMost], count(g.Limit))
		}
		fmt.Fprintf(&b, "  guards         %s\n", strings.Join(all, " · "))
	}
	if r := n.Run; r != nil {
		fmt.Fprintf(&b, "  result         %s in %s · failed: %s new, %s known\n", things(r.Calls, "call"),
			span(time.Duration(r.Seconds*float64(time.Second))), count(r.FailedNew), count(r.FailedKnown))
	}
	if n.Snapshot > 0 {
		fmt.Fprintf(&b, "  snapshot       generation %d saved: %s in %s bytes\n", n.Generation, things(n.Snapshot, "group"), count(n.SnapshotBytes))
	}
	return b.String()
}

// mirrorPlan is what a mirror adds to the line with the plan.
func mirrorPlan(m *app.Mirror) string {
	if m == nil || m.OnlyAdds {
		return ""
	}
	text := fmt.Sprintf(" · remove from %s · delete %s", count(m.Remove), count(m.Delete))
	if m.Rename > 0 {
		text += " · rename " + count(m.Rename)
	}
	return text
}

// mirrorText says what a mirror removes, and what it does not.
func mirrorText(m *app.Mirror) string {
	if m == nil {
		return ""
	}
	var b strings.Builder
	what := fmt.Sprintf("%s, %s deleted, %s cleared", things(m.Conversations, "conversation"), things(m.Delete, "group"),
		things(m.Users, "user"))
	if m.OnlyAdds {
		fmt.Fprintf(&b, "  would remove   %s; the first night of a mirror only adds\n", what)
	} else {
		fmt.Fprintf(&b, "  removals       %s\n", what)
	}
	switch {
	case m.Suspended != "":
		fmt.Fprintf(&b, "  withheld       all: %s\n", inLine(m.Suspended))
	case m.Withheld > 0:
		fmt.Fprintf(&b, "  withheld       %s; %s with rejected rows\n", things(m.Withheld, "removal"), things(m.WithheldUsers, "user"))
	}
	return b.String()
}

// examplesText has the first groups of each kind.
func examplesText(e *app.NightExamples) string {
	var b strings.Builder
	for _, kind := range []struct {
		name   string
		groups []importer.GroupName
	}{
		{"create", e.Create}, {"add", e.Add}, {"remove from", e.Remove}, {"delete", e.Delete}, {"rename to", e.Rename},
		{"unchanged", e.Unchanged},
	} {
		for _, g := range kind.groups {
			fmt.Fprintf(&b, "  %-14s %q of %s\n", kind.name, inLine(g.GroupName), inLine(g.FromAccount))
		}
	}
	return b.String()
}

// showNight says what a night is to send.
func (p *program) showNight(n *app.NightReport) {
	e := p.console.event("night is planned", "sync", n.Sync, "night", n.Night, "import", n.Import, "accepted", n.Accepted,
		"rejected", n.Rejected, "create", n.Create, "add", n.Add, "unchanged", n.Unchanged)
	if m := n.Mirror; m != nil {
		e.fields = append(e.fields, "remove", m.Remove, "delete", m.Delete, "withheld", m.Withheld)
	}
	if p.console.json {
		e.print("")
		return
	}
	for line := range strings.Lines(nightText(n)) {
		e.print("%s", strings.TrimSuffix(line, "\n"))
	}
}

// readFor reads the input of import and run, and opens the queue: before the input if it is a night of a sync. The night is
// nil if it is not.
func (p *program) readFor(
	ctx context.Context, open func() (*app.Namespace, error), files []string, in *inputFlags, s *syncFlags,
	target func(*program) (string, error), chunk int,
) (*app.Namespace, *app.Input, *app.Night, error) {
	sync, err := s.used(p, in)
	if err != nil {
		return nil, nil, nil, err
	}
	if !sync {
		input, err := p.readInput(ctx, files, in, chunk)
		if err != nil {
			return nil, nil, nil, err
		}
		n, err := open()
		if err != nil {
			input.Close()
		}
		return n, input, nil, err
	}
	of, err := target(p)
	if err != nil {
		return nil, nil, nil, err
	}
	n, err := open()
	if err != nil {
		return nil, nil, nil, err
	}
	night, err := p.readNight(ctx, n, files, in, s, of, chunk)
	if err != nil {
		n.Close()
		return nil, nil, nil, err
	}
	return n, night.Input, night, nil
}

// check makes the config of check say that the input is a night of a sync. Where nothing was imported yet there is no
// namespace, and it is the first night.
func (s *syncFlags) check(
	ctx context.Context, p *program, cfg *app.CheckConfig, files []string, in *inputFlags, qf *queueFlags, target *targetFlags,
	chunk int,
) error {
	of, err := target.target(p)
	if err != nil {
		return err
	}
	input, sync, err := s.config(p, files, in, of, chunk)
	if err != nil {
		return err
	}
	cfg.Input, cfg.Sync = input, &sync
	cfg.Namespace, err = p.open(ctx, *qf, true)
	if errors.Is(err, broker.ErrNoData) {
		err = nil
	}
	return err
}

// checkLive is check for one that reads what the API has. What it opened, close closes.
func (s *syncFlags) checkLive(
	ctx context.Context, r *readCommand, cfg *app.CheckConfig, files []string, in *inputFlags,
) (close func(), err error) {
	n, api, err := r.open(ctx)
	if err != nil {
		return nil, err
	}
	close = func() {
		n.Close()
		api.Close()
	}
	input, sync, err := s.config(r.program, files, in, app.Target(r.api.identity(), api.Address()), r.api.chunk)
	if err != nil {
		close()
		return nil, err
	}
	cfg.Input, cfg.Sync, cfg.Namespace = input, &sync, n
	cfg.Live = &app.LiveConfig{OnUnread: r.showUnread}
	var cost app.ReadCost
	cfg.Live.Read = r.reading(n, api, &cost)
	cfg.Live.OnCost = func(c app.ReadCost) {
		cost = c
		r.console.end()
		r.showCost(c)
	}
	return close, nil
}
