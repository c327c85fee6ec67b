package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"groupferry/internal/app"
)

// What a log line says of progress.
func TestProgressText(t *testing.T) {
	tests := []struct {
		state  app.State
		totals app.Totals
		left   time.Duration
		want   string
	}{
		{app.State{Mode: app.Running}, app.Totals{Jobs: 3}, 0, "0 of 3 jobs done"},
		{app.State{Mode: app.Running}, app.Totals{Jobs: 1, Finished: 1}, 0, "1 of 1 job done"},
		{app.State{Mode: app.Running}, app.Totals{Jobs: 9000, Finished: 1500, Pending: 7300, InFlight: 200, Rate: 150}, 50 * time.Second,
			"1,500 of 9,000 jobs done, 150 jobs/s, 50 s left"},
		{app.State{Mode: app.Running, Tally: app.Tally{Throttled: 1200}}, app.Totals{Jobs: 3, Finished: 3, Failed: 2, Rate: 1}, 0,
			"3 of 3 jobs done, 1 jobs/s, 2 failed or partial, 1,200 throttled"},
		{app.State{Mode: app.Standby, Leader: "host-1"}, app.Totals{Jobs: 3, Pending: 3}, 0, "0 of 3 jobs done, sent by host-1"},
		{app.State{Mode: app.Running}, app.Totals{Jobs: 3, Pending: 3, Rate: 1, Paused: true}, 0, "0 of 3 jobs done, 1 jobs/s, paused"},
		{app.State{Mode: app.Halted}, app.Totals{Jobs: 3, Pending: 3, Rate: 1}, 0, "0 of 3 jobs done, 1 jobs/s, halted"},
		{app.State{Mode: app.Running, Stopping: true}, app.Totals{Jobs: 3, Pending: 3}, 0, "0 of 3 jobs done, stopping"},
		{app.State{Mode: app.OutOfReach}, app.Totals{Jobs: 3, Pending: 3}, 0, "0 of 3 jobs done, outage"},
	}
	for _, test := range tests {
		if got := progressText(&test.state, test.totals, test.left); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}

// What is written into a file is not cleared, even when standard error is a terminal.
func TestWatchIntoFile(t *testing.T) {
	s := newShell(t, "")
	s.run(exitDone, "import", "--import-id", "over", writeRows(t, makeRows(12, 1)))
	s.run(exitDone, "cancel", "over") // so there is nothing to wait for
	var stdout buffer
	p := &program{getenv: func(string) (string, bool) { return "", false }, stdout: &stdout, console: newConsole(io.Discard)}
	p.console.terminal = true
	root := p.root()
	root.SetArgs([]string{"status", "--watch", "--data-dir", s.dir})
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if text := stdout.String(); !strings.HasPrefix(text, "IMPORT  STATE ") || strings.Contains(text, "\x1b") {
		t.Errorf("got %q, want the status without control characters", text)
	}
}

// Data that go to a terminal do not control it, wherever a write ends.
func TestLineWriter(t *testing.T) {
	for size := 1; size < 12; size++ {
		var got bytes.Buffer
		w := &lineWriter{w: &got, console: newConsole(io.Discard)}
		for text := "家,\x1b[2J\u202e\r\nb\tc\n"; text != ""; {
			n := min(size, len(text))
			if _, err := w.Write([]byte(text[:n])); err != nil {
				t.Fatal(err)
			}
			text = text[n:]
		}
		if want := `家,\u001b[2J\u202e\u000d` + "\nb\tc\n"; got.String() != want {
			t.Errorf("writes of %d bytes: got %q, want %q", size, got.String(), want)
		}
	}
}
