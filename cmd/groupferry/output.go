package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"groupferry/importer"
	"groupferry/internal/app"
	"groupferry/internal/redact"
)

// The rules of output, which a console and its events obey:
//
//   - Data goes to standard output. Everything here goes to standard error.
//   - An error is one line that begins with "groupferry: error: ", and a line "groupferry: hint: " says what to do.
//   - Progress is a line that is drawn over on a terminal, and a log line every ten seconds elsewhere: progress.go.
//   - On a terminal a report has colors, unless NO_COLOR is set. Its text is the same elsewhere: terminal.go.
//   - --quiet leaves errors, warnings and the report.
//   - With --log-format json each line is a log line as JSON, the error at the end included: what people read in words is
//     in fields, by the keys that deploy/README.md lists.

const (
	redraw   = 200 * time.Millisecond
	logEvery = 10 * time.Second
)

// A console writes to standard error. It takes care that a progress line and a log line do not run into each other.
type console struct {
	mu       sync.Mutex
	w        io.Writer
	terminal bool // that can be written over
	quiet    bool
	json     bool // every line is a log line
	log      *slog.Logger
	level    slog.LevelVar

	line    string // the progress line as it stands on the terminal
	drawnAt int    // how wide the window was then
	last    time.Time
}

func newConsole(w io.Writer) *console {
	c := &console{w: w, terminal: onTerminal(w)}
	c.setLog("text")
	return c
}

// setLog also has the lines that the standard library logs by itself go where ours go.
func (c *console) setLog(format string) {
	opts := &slog.HandlerOptions{Level: &c.level}
	if c.json = format == "json"; c.json {
		c.log = slog.New(slog.NewJSONHandler(c, opts))
	} else {
		c.log = slog.New(slog.NewTextHandler(c, opts))
	}
	slog.SetDefault(c.log)
}

// Write puts whole lines above the progress line. Whatever is in them, a terminal is not controlled by it, and no login of a
// URL is shown.
func (c *console) Write(b []byte) (int, error) { return len(b), c.above(c.w, shown(string(b))) }

// above writes a text of whole lines to w where the progress line stands, and that below.
func (c *console) above(w io.Writer, text string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wipe()
	_, err := io.WriteString(w, text)
	if c.line != "" {
		io.WriteString(c.w, c.line)
	}
	return err
}

// look is what the terminal shows now.
func (c *console) look() look { return lookOf(c.w) }

// shown makes lines fit for a terminal.
func shown(s string) string { return redact.Visible(redact.Logins(s), "\n\t") }

// inLine makes a text fit to stand in a line, such as the name of a file.
func inLine(s string) string { return redact.Visible(s, "") }

// A lineWriter writes data to a terminal, line by line and fit for it, and not into the progress line that may stand there.
// Anywhere else data stay as they are.
type lineWriter struct {
	w       io.Writer
	console *console
	rest    []byte // of a line that has not ended
}

func (l *lineWriter) Write(b []byte) (int, error) {
	l.rest = append(l.rest, b...)
	end := bytes.LastIndexByte(l.rest, '\n') + 1
	err := l.console.above(l.w, shown(string(l.rest[:end])))
	l.rest = append(l.rest[:0], l.rest[end:]...)
	return len(b), err
}

// data is where data go whose lines all end: standard output.
func (p *program) data() io.Writer {
	if isTerminal(p.stdout) {
		return &lineWriter{w: p.stdout, console: p.console}
	}
	return p.stdout
}

// write writes one line, whatever is in it.
func (c *console) write(prefix, text string) { fmt.Fprintln(c, prefix+inLine(text)) }

func (c *console) wipe() {
	if c.line != "" {
		io.WriteString(c.w, c.rewind(c.look())+"\x1b[K")
	}
}

// An event is something that a command says: in words to people, in fields to programs.
type event struct {
	c      *console
	msg    string // of the log line; the same each time
	fields []any  // keys and values of it
}

func (c *console) event(msg string, fields ...any) event { return event{c, msg, fields} }

// print writes a line.
func (e event) print(format string, args ...any) {
	switch {
	case e.c.json:
		e.c.log.Info(e.msg, e.fields...)
	case !e.c.quiet:
		e.c.write("", fmt.Sprintf(format, args...))
	}
}

// lines writes a text of whole lines.
func (e event) lines(text string) {
	switch {
	case e.c.json:
		e.c.log.Info(e.msg, e.fields...)
	case !e.c.quiet:
		io.WriteString(e.c, text)
	}
}

// warn writes a line that --quiet does not silence.
func (e event) warn(format string, args ...any) {
	if e.c.json {
		e.c.log.Warn(e.msg, e.fields...)
		return
	}
	e.c.write("groupferry: warning: ", fmt.Sprintf(format, args...))
}

// report writes a line that nothing silences.
func (e event) report(text string) {
	if e.c.json {
		slog.New(slog.NewJSONHandler(e.c, nil)).Info(e.msg, e.fields...)
		return
	}
	e.c.write("groupferry: ", text)
}

// error writes an error, or several that were joined, and a hint if there is one.
func (e event) error(text, hint string) {
	if e.c.json {
		e.fields = append(e.fields, "error", text)
		if hint != "" {
			e.fields = append(e.fields, "hint", hint)
		}
		e.c.log.Error(e.msg, e.fields...)
		return
	}
	e.c.write("groupferry: error: ", strings.ReplaceAll(text, "\n", "; "))
	if hint != "" {
		e.c.write("groupferry: hint: ", hint)
	}
}

// end takes the progress line away.
func (c *console) end() {
	c.mu.Lock()
	c.wipe()
	c.line = ""
	c.mu.Unlock()
}

func count[N int | int64](n N) string { return app.Count(int64(n)) }

// span writes a duration as people say it: 1.2 s, 3 min 20 s, 2 h 5 min.
func span(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%d min %d s", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
}

// outputFlag is --output with the formats that a command knows, the default first.
type outputFlag struct {
	format  string
	formats []string
}

func (o *outputFlag) add(cmd *cobra.Command, formats ...string) {
	o.formats = formats
	defer inGroup(cmd, outputGroup)()
	cmd.Flags().StringVarP(&o.format, "output", "o", formats[0], "`format` of the output: "+orList(formats))
	offer(cmd, "output", formats...)
}

// check refuses a format that the command does not have. One from the environment that another command has is none of
// this one's: it writes what it writes by default.
func (o *outputFlag) check(p *program) error {
	switch {
	case slices.Contains(o.formats, o.format):
		return nil
	case p.fromEnv["output"] != "" && slices.Contains([]string{"text", "json", app.CSV, app.JSONL}, o.format):
		o.format = o.formats[0]
		return nil
	}
	return valueError(p.named("output"), o.format, o.formats)
}

// write writes what a program is to read, or what text gives.
func (o *outputFlag) write(w io.Writer, v any, text func() string) error {
	var b strings.Builder
	if o.format == "json" {
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		if err := e.Encode(v); err != nil {
			return err
		}
	} else {
		b.WriteString(text())
	}
	out := shown(b.String())
	if o.format == "text" {
		out = lookOf(w).colored(out)
	}
	_, err := io.WriteString(w, out)
	return err
}

// fileNames lists files in a line.
func fileNames(files []string) string { return inLine(strings.Join(files, ", ")) }

// maxShown is how many rejects, and how many warnings, are shown one by one. The file has all rejects.
const maxShown = 50

// showPlan says what is noteworthy about an input, and what is wrong with it.
func (p *program) showPlan(plan *importer.Plan) error {
	p.console.end()
	for _, n := range plan.Notices {
		p.console.event("note about the input", "reason", n).print("note: %s", n)
	}
	for i, w := range plan.Warnings {
		if i == maxShown {
			more := plan.Summary.Warnings - int64(i)
			p.console.event("more warnings about the input", "rows", more).warn("and %s more", count(more))
			break
		}
		p.console.event("warning about the input", "file", w.File, "line", w.Line, "reason", w.Text).
			warn("%s:%d: %s", w.File, w.Line, w.Text)
	}
	shown := 0
	for r, err := range plan.Rejects() {
		if err != nil {
			return err
		}
		if shown == maxShown {
			more := plan.Summary.Rejected - maxShown
			p.console.event("more rows rejected", "rows", more).print("… and %s more", count(more))
			break
		}
		p.console.event("row rejected", "file", r.File, "line", r.Line, "code", r.Code, "reason", r.Reason).
			print("rejected: %s:%d: %s: %s", r.File, r.Line, r.Code, r.Reason)
		shown++
	}
	return nil
}

// showKept says which file has the rejects; it may be nil if none was asked for.
func (p *program) showKept(r *app.Rejects, rejected int64) {
	switch {
	case r == nil:
	case r.Older != "":
		p.console.event("no row was rejected; the rejects are those of an earlier run", "file", r.Older).
			print("note: %s is from an earlier run: no row was rejected in this one", r.Older)
	case r.Other != "":
		p.console.event("rejects are kept", "rejected", rejected, "file", r.File, "reason", r.Other+" has other content").
			print("%s rejected, kept in %s, for %s has other content: fix and import that file", rows(rejected), r.File, r.Other)
	case r.File != "":
		p.console.event("rejects are kept", "rejected", rejected, "file", r.File).
			print("%s rejected, kept in %s: fix and import that file", rows(rejected), r.File)
	}
}

func rows(n int64) string { return things(n, "row") }
func jobs(n int64) string { return things(n, "job") }

func things(n int64, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return count(n) + " " + one + "s"
}
