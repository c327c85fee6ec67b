// Command groupferry imports conversation groups in bulk into Tencent Cloud Chat.
//
// It makes configs of flags and the environment (settings.go), has internal/app do the work, and prints what came of it
// (output.go). What a person can call is in help.go, man.go and completion.go, and what was meant instead in suggest.go.
// There is a file for each command, and this one has what they share: exit codes, errors and signals.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"groupferry/importer"
	"groupferry/internal/app"
	"groupferry/internal/broker"
	"groupferry/internal/chat"
	"groupferry/internal/governor"
	"groupferry/internal/job"
	"groupferry/internal/queue"
	"groupferry/internal/redact"
	"groupferry/worker"
)

func main() {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	os.Exit(run(signals, os.Args[1:], os.LookupEnv, os.Stdin, os.Stdout, os.Stderr))
}

// The exit codes.
const (
	exitDone        = 0
	exitFailed      = 1   // could not continue
	exitUsage       = 2   // usage or configuration
	exitIncomplete  = 3   // finished, but some rows were rejected, some jobs failed, or not all was there
	exitHalted      = 4   // every job would fail the same way
	exitGuarded     = 5   // a guard stopped it: nothing was enqueued
	exitUnreachable = 75  // NATS or the API is out of reach
	exitInterrupted = 130 // by a signal
)

// Errors that only say how it ended; what happened is printed already.
var (
	errIncomplete  = errors.New("incomplete")
	errInterrupted = errors.New("interrupted")
)

// A usageError is a flag or a setting that cannot be used.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// A hinted error also says what to do next.
type hinted struct {
	error
	hint string
}

func (e *hinted) Unwrap() error { return e.error }

func hint(err error, format string, args ...any) error {
	return &hinted{err, fmt.Sprintf(format, args...)}
}

// exitCode is the one place where an error becomes an exit code.
func exitCode(err error) int {
	var (
		usage  *usageError
		config *importer.ConfigError
	)
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errIncomplete):
		return exitIncomplete
	case errors.Is(err, errInterrupted), errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.As(err, &usage), errors.As(err, &config), errors.Is(err, broker.ErrTooOld), errors.Is(err, broker.ErrNoJetStream),
		errors.Is(err, broker.ErrDenied), errors.Is(err, broker.ErrSchema), errors.Is(err, job.ErrVersion), errors.Is(err, worker.ErrMayReplace),
		errors.As(err, new(*queue.OtherAppError)), errors.As(err, new(*broker.ConfigError)), errors.As(err, new(*broker.AuthError)), errors.Is(err, app.ErrExportFile):
		return exitUsage
	case governor.IsHalted(err):
		return exitHalted
	case errors.As(err, new(*app.GuardError)), errors.As(err, new(*app.ShrinkError)), errors.Is(err, importer.ErrEmpty),
		errors.As(err, new(*app.SnapshotError)), errors.As(err, new(*app.OtherSyncError)):
		return exitGuarded
	case errors.As(err, new(*queue.LockedError)), errors.As(err, new(*app.ReadingError)), errors.Is(err, queue.ErrLockLost), errors.Is(err, queue.ErrSyncChanged),
		errors.Is(err, broker.ErrUnreachable), errors.Is(err, app.ErrAPIUnreachable):
		return exitUnreachable
	}
	return exitFailed
}

// hintFor says what to do about an error that does not say it itself.
func hintFor(err error) string {
	var h *hinted
	var e *chat.Error
	var disk *broker.DiskError
	var damaged *broker.DamagedError
	var guard *app.GuardError
	var rejects *app.RejectsError
	switch {
	case errors.As(err, &damaged):
		return damaged.Remedy
	case errors.As(err, &disk):
		return "make room on its disk, or see that it can be written to"
	case errors.As(err, &h):
		return h.hint
	case errors.As(err, &rejects):
		return "name another file with --rejects, or - for standard output"
	case errors.As(err, &guard):
		return guardHint(guard)
	case errors.As(err, new(*app.SnapshotError)):
		return "run a night of that sync with --mode add: it sends all that its input has, and makes a new one"
	case errors.As(err, new(*app.OtherSyncError)):
		return "let each group be in the input of one sync alone, or use --mode add"
	case errors.As(err, new(*queue.OtherAppError)):
		return "name another --namespace, or another --data-dir"
	case errors.As(err, new(*app.NotQueuedError)):
		return "their rows are in the input alone: import that with another --import-id"
	case errors.As(err, new(*broker.AuthError)):
		return "give a user that the server knows: in --nats-url or NATS_URL, as USER:PASSWORD@HOST:PORT, " +
			"or as a file with --nats-creds or NATS_CREDS"
	case errors.Is(err, broker.ErrDenied):
		return "use another NATS user, or let this one publish that: deploy/nats/groupferry.conf has what each command needs"
	case errors.Is(err, queue.ErrOrder):
		return "give the input another --import-id to import it as a whole"
	case errors.Is(err, worker.ErrMayReplace):
		return "check the API URL; --accept-replace writes all the same, and such a group may then hold nothing but this import's"
	case errors.As(err, &e):
		return e.Remedy()
	}
	return ""
}

func guardHint(e *app.GuardError) string {
	if e.Rows == 0 {
		return "--allow-empty takes it all the same"
	}
	fix := "fix the rows"
	if e.Rejects != nil && e.Rejects.File != "" {
		fix += " in " + e.Rejects.File
	}
	if e.Accepted == 0 {
		return fix + "; if another system wrote the input, see --preset, --owner and --columns"
	}
	return fix + ", or allow more"
}

// An unfinishedError ends with the command that continues.
type unfinishedError struct {
	error
	command string
	fix     bool // something has to be fixed first
}

func (e *unfinishedError) Unwrap() error { return e.error }

// A program is one run of the command: what it reads, where it writes, and how it is told to stop.
type program struct {
	args           []string
	getenv         func(string) (string, bool)
	stdin          io.Reader
	stdout, stderr io.Writer

	console *console

	// Of the settings of the command, see fromEnvironment.
	given   map[string]bool   // flags of the command line
	fromEnv map[string]string // flags that came from a variable: its name
	unread  map[string]bool   // flags and variables that a flag goes before

	// meant are the imports whose IDs are like one that is not there.
	meant []string

	// fail ends the command at once because nothing can be done any more; the cause is what the program ends with.
	fail func(cause error)
}

// leftKey is the key of the context that a second signal ends, in that which the first one ends.
type leftKey struct{}

// untilLeft returns the context that ends with the second signal, when everything is left as it is. That of the command,
// from which it is taken, ends with the first: what reads stops, and workers take no more jobs.
func untilLeft(ctx context.Context) context.Context { return ctx.Value(leftKey{}).(context.Context) }

// leaveWithin is how long a command may take to end after the second signal, whatever it waits for.
const leaveWithin = 1500 * time.Millisecond

func run(signals <-chan os.Signal, args []string, getenv func(string) (string, bool), stdin io.Reader, stdout, stderr io.Writer) int {
	hard, fail := context.WithCancelCause(context.Background())
	leave := func() { fail(nil) }
	defer leave()
	soft, stop := context.WithCancel(context.WithValue(hard, leftKey{}, hard))
	defer stop()
	overdue := make(chan struct{}) // closed a while after the second signal
	p := &program{
		args: args, getenv: getenv, stdin: stdin, stdout: stdout, stderr: stderr, fail: fail, console: newConsole(stderr),
	}
	p.console.setLog(p.logFormat())
	go func() {
		for _, heard := range []func(){stop, leave} {
			select {
			case <-signals:
				heard()
			case <-hard.Done():
				return
			}
		}
		time.AfterFunc(leaveWithin, func() { close(overdue) })
	}()

	root := p.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	type result struct {
		cmd *cobra.Command
		err error
	}
	ended := make(chan result, 1)
	go func() {
		cmd, err := root.ExecuteContextC(soft)
		ended <- result{cmd, err}
	}()
	end := result{root, context.Canceled}
	select {
	case end = <-ended:
	case <-overdue: // it is left where it is, as by a kill
	}
	code := p.ended(soft, hard, end.cmd, end.err)
	if onExit != nil {
		code = onExit(end.cmd, code)
	}
	return code
}

// onExit gets the exit code of each command in tests that set it; nil otherwise.
var onExit func(cmd *cobra.Command, code int) int

// ended prints how a command ended, and returns its exit code.
func (p *program) ended(soft, hard context.Context, cmd *cobra.Command, err error) int {
	p.console.end()
	var disk *broker.DiskError
	if errors.As(context.Cause(hard), &disk) || errors.As(err, &disk) {
		err = &unfinishedError{disk, p.commandLine(), true} // all else follows from that
	}
	if err == nil {
		return exitDone
	}
	if soft.Err() != nil && errors.Is(err, context.Canceled) { // a signal, and what it cut short is of no interest
		err = &unfinishedError{errInterrupted, p.commandLine(), false}
	}
	p.explain(err, cmd)
	return exitCode(err)
}

// sayStopping says at the first signal what is waited for, where no line of progress does.
func (p *program) sayStopping(w *app.Process) {
	s, inFlight := w.State(), int64(0)
	if s.Jobs != nil {
		inFlight = s.Jobs.InFlight
	}
	e := p.console.event("stopping: jobs in flight may end, for up to 30 s; a second signal leaves at once",
		"in_flight", inFlight, "leads", s.Leading)
	switch {
	case p.console.draws():
	case p.console.json || !p.console.terminal:
		p.console.log.Info(e.msg, e.fields...)
	case inFlight > 0:
		e.report(fmt.Sprintf("stopping: waiting for %s, Ctrl-C again to leave now, which loses nothing", jobs(inFlight)))
	}
}

// explain says what happened, what to do about it, and which command continues.
func (p *program) explain(err error, cmd *cobra.Command) {
	e := p.console.event(cmd.CommandPath()+" ended with an error", "exit_code", exitCode(err))
	var u *unfinishedError
	unfinished := errors.As(err, &u)
	if unfinished {
		e.fields = append(e.fields, "to_continue", u.command)
	}
	failed := !errors.Is(err, errIncomplete) && !errors.Is(err, errInterrupted) && !errors.Is(err, errUnhealthy)
	if failed {
		h := hintFor(err)
		if h == "" && exitCode(err) == exitUsage {
			h = fmt.Sprintf("see '%s --help'", cmd.CommandPath())
		}
		e.error(p.inSettings(err), h)
	}
	switch {
	case !unfinished, failed && p.console.json: // which is in that line
	case u.fix:
		e.report("to continue, once that is fixed: " + u.command)
	case errors.Is(err, errInterrupted):
		e.msg = "interrupted"
		e.report("interrupted; to continue: " + u.command)
	default:
		e.report("to continue: " + u.command)
	}
}

// settingOf has the flag that a field of a package's Config comes from.
var settingOf = map[string]string{
	"URL": "nats-url", "Creds": "nats-creds", "Context": "nats-context", "Namespace": "namespace", "Replicas": "replicas",

	"Format": "format", "Delimiter": "delimiter", "Columns": "columns", "ImportID": "import-id", "ChunkSize": "chunk-size",
	"Preset": "preset", "Owner": "owner", "MapIDs": "map-ids", "SpoolDir": "spool-dir",
}

// inSettings is the text of an error, with the setting that is wrong in place of the field that it made.
func (p *program) inSettings(err error) string {
	text := err.Error()
	var queue *broker.ConfigError
	var input *importer.ConfigError
	switch {
	case errors.As(err, &queue):
		text = strings.Replace(text, queue.Error(), p.named(settingOf[queue.Field])+": "+queue.Err.Error(), 1)
	case errors.As(err, &input) && p.fromEnv[settingOf[input.Field]] != "":
		text = p.named(settingOf[input.Field]) + ": " + text
	}
	return text
}

// The help lists commands in the order in which they are added.
func init() { cobra.EnableCommandSorting = false }

func (p *program) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "groupferry COMMAND",
		Short: "Import conversation groups in bulk into Tencent Cloud Chat",
		Long: `groupferry imports conversation groups in bulk into Tencent Cloud Chat.

It reads CSV or JSONL rows (one conversation of one group each), makes one job
of each group, and writes the groups with the REST API at no more than 200 calls
a second. The jobs and their results are kept by a NATS server: an embedded one
that needs no set-up, or yours. Whatever stops it, the same command continues.

Every flag can be set in the environment: GROUPFERRY_ and its name in capitals,
such as GROUPFERRY_SDK_APP_ID. The flags --nats-* have NATS_URL, NATS_CREDS and
NATS_CONTEXT. A flag wins over the environment, also over the variable of a flag
that it excludes. Data goes to standard output, the rest to standard error.

IMPORT is an import ID, or a prefix of it: at least four characters, with which
no other import begins. For cancel and delete, an ID that a person chose with
--import-id has to be given in full.`,
		Annotations:       exitMeaning.annotations(),
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return p.fromEnvironment(cmd) },
	}
	root.SetFlagErrorFunc(p.flagError)
	group := func(title string, commands ...*cobra.Command) {
		root.AddGroup(&cobra.Group{ID: title, Title: title})
		for _, c := range commands {
			c.GroupID = title
			root.AddCommand(c)
		}
	}
	group("Import", p.runCommand(), p.checkCommand(), p.importCommand(), p.workCommand(), p.doctorCommand())
	group("Watch and control", p.statusCommand(), p.resultsCommand(), p.retryCommand(), p.pauseCommand(), p.resumeCommand(),
		p.cancelCommand(), p.deleteCommand(), p.rateCommand())
	group("Read groups back", p.exportCommand(), p.verifyCommand())
	group("More", p.simulateCommand(), p.versionCommand(), p.completionCommand(), p.manCommand())
	if len(p.args) > 0 && (p.args[0] == cobra.ShellCompRequestCmd || p.args[0] == cobra.ShellCompNoDescRequestCmd) {
		for _, c := range root.Commands() {
			p.complete(c)
		}
	}
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { io.WriteString(cmd.OutOrStdout(), help(cmd)) })
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return unknownCommand(root, args[0])
		}
		return cmd.Help()
	}
	root.Args = cobra.ArbitraryArgs
	root.SetHelpCommandGroupID("More")
	root.InitDefaultHelpCmd()
	for _, c := range root.Commands() {
		if c.Name() == "help" { // which takes what it does not know for the root
			c.Annotations = exits{}.annotations()
			c.Args = func(_ *cobra.Command, args []string) error {
				if topic, _, err := root.Find(args); err != nil || len(args) > 0 && topic == root {
					return unknownCommand(root, args[0])
				}
				return nil
			}
		}
	}
	root.Version = version()
	return root
}

// files checks the arguments of a command that reads inputs.
func files(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usagef("no input: name one or more files, or - for standard input")
	}
	return nil
}

// noArgs checks the arguments of a command that takes none.
func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%q: this command takes no arguments", args[0])
	}
	return nil
}

// imports checks the arguments of a command that takes import IDs.
func (p *program) imports(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			q := queueOf(cmd)
			return hint(usagef("IMPORT is required"), "'groupferry status%s' lists them", q.args(p))
		case len(args) > most:
			return usagef("one import at a time, not %d", len(args))
		}
		for _, id := range args {
			if !job.ValidImportID(id) {
				return usagef("%q cannot be an import ID", id)
			}
		}
		return nil
	}
}

// commandLine is how this program was called, ready to be pasted into a shell; but for a login in a URL, which is to be
// filled in again.
func (p *program) commandLine() string { return commandLine(p.args) }

func commandLine(args []string) string {
	words := []string{"groupferry"}
	for i, a := range args {
		switch list, joined := strings.CutPrefix(a, "--nats-url="); {
		case joined:
			a = "--nats-url=" + hideLogins(list)
		case i > 0 && args[i-1] == "--nats-url":
			a = hideLogins(a)
		default:
			a = redact.Logins(a)
		}
		words = append(words, quoted(a))
	}
	return strings.Join(words, " ")
}

// quoted quotes an argument for a POSIX shell if it needs that.
func quoted(s string) string {
	plain := s != ""
	for _, r := range s {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=,@%+", r) {
			plain = false
		}
	}
	if plain {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
