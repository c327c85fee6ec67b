package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// The rules of output, which the four small functions of a console obey:
//
//   - Data goes to standard output. Everything here goes to standard error.
//   - An error is one line that begins with "groupferry: error: ", and a line "groupferry: hint: " says what to do.
//   - Progress is a line that is written over on a terminal, and a log line every ten seconds elsewhere.
//   - --quiet leaves errors, warnings and the report.

const (
	redraw   = 200 * time.Millisecond
	logEvery = 10 * time.Second
)

// A console writes to standard error. It takes care that a progress line and a log line do not run into each other.
type console struct {
	mu       sync.Mutex
	w        io.Writer
	terminal bool
	width    int
	quiet    bool
	log      *slog.Logger
	level    slog.LevelVar

	line string // the progress line as it stands on the terminal
	last time.Time
}

func newConsole(w io.Writer) *console {
	c := &console{w: w, width: 80}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" && os.Getenv("CI") == "" {
		c.terminal = true
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 20 {
			c.width = width
		}
	}
	c.setLog("text")
	return c
}

func (c *console) setLog(format string) {
	opts := &slog.HandlerOptions{Level: &c.level}
	if format == "json" {
		c.log = slog.New(slog.NewJSONHandler(c, opts))
	} else {
		c.log = slog.New(slog.NewTextHandler(c, opts))
	}
}

// Write puts whole lines above the progress line.
func (c *console) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wipe()
	n, err := c.w.Write(b)
	if c.line != "" {
		io.WriteString(c.w, c.line)
	}
	return n, err
}

func (c *console) wipe() {
	if c.line != "" {
		fmt.Fprintf(c.w, "\r%s\r", strings.Repeat(" ", len([]rune(c.line))))
	}
}

// say writes a line for people.
func (c *console) say(format string, args ...any) {
	if !c.quiet {
		fmt.Fprintf(c, format+"\n", args...)
	}
}

// warn writes a line that --quiet does not silence.
func (c *console) warn(format string, args ...any) {
	fmt.Fprintf(c, "groupferry: warning: "+format+"\n", args...)
}

func (c *console) error(err error)    { fmt.Fprintf(c, "groupferry: error: %v\n", err) }
func (c *console) report(text string) { fmt.Fprintf(c, "groupferry: %s\n", text) }
func (c *console) hint(text string)   { fmt.Fprintf(c, "groupferry: hint: %s\n", text) }

// progress shows how far it is; text is asked only when it is to be shown.
func (c *console) progress(text func() string) {
	if c.quiet {
		return
	}
	now := time.Now()
	every := logEvery
	if c.terminal {
		every = redraw
	}
	c.mu.Lock()
	if c.last.IsZero() && !c.terminal {
		c.last = now // the first log line after ten seconds, not at once
	}
	due := now.Sub(c.last) >= every
	if due {
		c.last = now
	}
	c.mu.Unlock()
	if !due {
		return
	}
	s := text()
	if !c.terminal {
		c.log.Info(s)
		return
	}
	if r := []rune(s); len(r) >= c.width {
		s = string(r[:c.width-1])
	}
	c.mu.Lock()
	c.wipe()
	c.line = s
	io.WriteString(c.w, s)
	c.mu.Unlock()
}

// end takes the progress line away.
func (c *console) end() {
	c.mu.Lock()
	c.wipe()
	c.line = ""
	c.mu.Unlock()
}

// count writes a number in groups of three, as people read it: 1,234,567.
func count[N int | int64](n N) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

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
