package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"groupferry/internal/app"
	"groupferry/internal/chat"
)

func (p *program) doctorCommand() *cobra.Command {
	d := doctor{program: p}
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check all that an import needs, before there is one",
		Long: `doctor checks what run, import and work need, with the same flags: the settings,
the key file, the way to the API, the credentials and the app's edition, the
clock, which commands the API offers, the time of a call and whether the rate
can be had with it, NATS, its limits, and what the user there may do, the disk,
and what is in the namespace. A finding that is not ok has a remedy below it. A
check that needs another one which failed is skipped.

It makes some 12 calls, which count against the limit as those of workers do.
They write nothing: commands that write are called for a user and a group whose
names are too long to be any. Beside a worker that runs, only get_contact_group
is called. The streams of the namespace, or the data directory, are made if they
are not there.

--try-account ID finds out on a throw-away user what no document says: what
create does to a group that exists, whether names that differ in case are one
group, which errors come for a conversation and which for a call, and how many
conversations a page has. Workers use it. The user has to be in the app, and
must have no group. What is written is deleted again, on Ctrl-C too; after a
kill the next doctor with --try-account does it.`,
		Annotations: exits{exitDone: "nothing failed; there may be warnings", exitFailed: "a check failed", exitUsage: "usage", exitInterrupted: ""}.annotations(),
		Example: `  groupferry doctor --region singapore --sdk-app-id 1400000000 \
      --secret-key-file key
  groupferry doctor --region singapore --sdk-app-id 1400000000 \
      --secret-key-file key --try-account nobody-1`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return d.run(cmd.Context()) },
	}
	f := cmd.Flags()
	f.StringVar(&d.account, "try-account", "", "`ID` of a throw-away user, on whom to find out what the API does")
	f.StringVar(&d.spoolDir, "spool-dir", "", "`directory` in which large input is sorted (default: that for temporary files)")
	d.api.add(cmd)
	d.queue.add(cmd)
	d.out.add(cmd, "text", "json")
	p.consoleFlags(cmd)
	return cmd
}

// errUnhealthy says that a check failed; what is printed already.
var errUnhealthy = errors.New("a check failed")

// A doctor is one run of the command doctor.
type doctor struct {
	*program
	api      apiFlags
	queue    queueFlags
	out      outputFlag
	account  string
	spoolDir string
}

// A dated keeps the last date of the API, and when it came.
type dated struct {
	mu        sync.Mutex
	api, here time.Time
}

func (d *dated) note(date time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.api, d.here = date, time.Now().Round(0)
}

func (d *dated) last() (api, here time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.api, d.here
}

func (d *doctor) run(ctx context.Context) error {
	if err := d.out.check(d.program); err != nil {
		return err
	}
	if d.account != "" && !chat.ValidUserID(d.account) {
		return usagef("%s %q: 1 to %d bytes of printable ASCII", d.named("try-account"), d.account, chat.MaxUserIDBytes)
	}
	var date dated
	d.api.onDate = date.note
	cfg := app.DoctorConfig{
		App: d.api.identity(), Admin: d.api.admin, Date: date.last, Secret: d.secretSetting(), SecretFile: cmp.Or(d.api.keyFile, d.api.sigFile),
		SpoolDir: d.spoolDir, TryAccount: d.account,
		Command: func(more ...string) string { return commandLine(append(slices.Clip(d.args), more...)) }, Named: d.named, Hint: hintFor,
	}
	api, err := d.client(&d.api)
	if err != nil {
		cfg.Settings = append(cfg.Settings, err)
	} else {
		defer api.Close()
		cfg.API = api.Client
	}
	if err := d.queue.check(d.program); err != nil {
		cfg.Settings = append(cfg.Settings, errors.New(d.inSettings(err)))
	} else {
		queue := d.queue.config(d.program, false)
		queue.OnBroken = nil // it is a finding
		cfg.Queue = &queue
	}
	cfg.Engine = func(n *app.Namespace) app.EngineConfig {
		engine := d.engineConfig(n, api, &d.api)
		engine.Worker.Log = nil // what it learns is a finding
		return engine
	}
	if d.out.format == "text" {
		cfg.OnFinding = func(f app.Finding) { io.WriteString(d.stdout, findingText(f, lookOf(d.stdout))) }
	}
	report, err := app.Doctor(untilLeft(ctx), ctx.Done(), cfg)
	if werr := d.out.write(d.stdout, report, func() string { return doctorText(&report) }); werr != nil {
		return werr
	}
	switch {
	case errors.Is(err, app.ErrStopped):
		return &unfinishedError{errInterrupted, d.commandLine(), false}
	case err != nil:
		return err
	case !report.Healthy:
		return errUnhealthy
	}
	return nil
}

// secretSetting names where the key or the UserSig comes from.
func (d *doctor) secretSetting() string {
	for flag, set := range map[string]bool{"secret-key-file": d.api.keyFile != "", "usersig-file": d.api.sigFile != ""} {
		if set {
			return d.named(flag)
		}
	}
	if d.secretEnv(envUserSig) != "" {
		return envUserSig
	}
	return envSecretKey
}

// findingIndent is where the text of a finding begins.
const findingIndent = 26

// findingText is a line, and one with the remedy; more of them where it has to fit into a width.
func findingText(f app.Finding, l look) string {
	mark := f.Result
	if mark == app.Failed {
		mark = "FAILED"
	}
	text := fmt.Sprintf("%-8s %-16s %s\n", mark, f.Name, wrapped(inLine(f.What), l.width))
	if f.Remedy != "" {
		text += strings.Repeat(" ", findingIndent) + wrapped("remedy: "+inLine(f.Remedy), l.width) + "\n"
	}
	c := map[string]color{app.Fine: green, app.Warning: yellow, app.Failed: red}[f.Result]
	return l.paint(c, mark) + shown(text)[len(mark):]
}

// wrapped breaks the text of a finding between words, so that it fits into a width; 0 is any.
func wrapped(text string, width int) string {
	var b strings.Builder
	at := findingIndent
	for i, word := range strings.Split(text, " ") {
		n := columns(word)
		switch {
		case i == 0:
		case width > 0 && at+1+n >= width:
			b.WriteString("\n" + strings.Repeat(" ", findingIndent))
			at = findingIndent
		default:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at += n
	}
	return b.String()
}

// doctorText is the last line.
func doctorText(r *app.DoctorReport) string {
	n := map[string]int64{}
	for _, f := range r.Findings {
		n[f.Result]++
	}
	return fmt.Sprintf("doctor: %s ok · %s · %s failed · %s skipped\n",
		count(n[app.Fine]), things(n[app.Warning], "warning"), count(n[app.Failed]), count(n[app.Skipped]))
}
