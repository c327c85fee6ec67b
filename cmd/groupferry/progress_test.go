package main

import (
	"io"
	"strings"
	"testing"
	"time"

	"groupferry/importer"
	"groupferry/internal/app"
	"groupferry/internal/queue"
)

// progressStates are states of a process that a person looks at, with what is left and the calls a second.
var progressStates = []struct {
	name   string
	state  app.State
	totals app.Totals
	left   time.Duration
	calls  float64
}{
	{"begin", app.State{Mode: app.Running, Reason: app.Starting}, app.Totals{}, 0, -1},
	{"running", app.State{Mode: app.Running}, app.Totals{Finished: 1592}, 7400 * time.Millisecond, 199},
	{"failures", app.State{Mode: app.Running, Tally: app.Tally{Throttled: 31}}, app.Totals{Finished: 1592, Failed: 1204}, 250 * time.Second, 199},
	{"stopping", app.State{Mode: app.Running, Stopping: true, Jobs: &queue.TermSnapshot{InFlight: 67}}, app.Totals{Finished: 1592}, 0, 150},
	{"stopped", app.State{Mode: app.Running, Stopping: true}, app.Totals{Finished: 1592}, 0, -1},
	{"import paused", app.State{Mode: app.Running, Reason: app.AllPaused}, app.Totals{Finished: 1592, Paused: true}, 0, 3},
	{"paused", app.State{Mode: app.Paused, Reason: app.ByHand}, app.Totals{Finished: 1592}, 0, 0},
	{"halted", app.State{Mode: app.Halted, Reason: app.Credentials, Halt: &app.Halt{Halt: queue.Halt{Code: "70009"}}}, app.Totals{Finished: 1592}, 0, 0},
	{"halted by hand", app.State{Mode: app.Halted, Reason: app.OtherHalt, Halt: &app.Halt{}}, app.Totals{Finished: 1592}, 0, 0},
	{"outage", app.State{Mode: app.OutOfReach}, app.Totals{Finished: 1592}, 0, 0},
	{"no NATS", app.State{Mode: app.Leaderless, Reason: app.NoNATS}, app.Totals{Finished: 1592}, 0, -1},
	{"no leader", app.State{Mode: app.Leaderless, Reason: app.Election}, app.Totals{Finished: 1592}, 0, -1},
	{"standby", app.State{Mode: app.Standby, Leader: "主机-1\x1b"}, app.Totals{Finished: 1592}, 7400 * time.Millisecond, -1},
	{"end", app.State{Mode: app.Running}, app.Totals{Finished: 3000}, 0, 199},
}

// The line of a terminal, in windows of these widths.
func TestProgressLine(t *testing.T) {
	want := map[string]map[int]string{
		"begin": {80: "──────────────────────────────    0%  0 of 3,000 jobs  starting"},
		"running": {
			120: "━━━━━━━━━━━━━━━───────────────   53%  1,592 of 3,000 jobs  199 of 200 calls/s  7s left",
			80:  "━━━━━━━━━─────────   53%  1,592 of 3,000 jobs  199 of 200 calls/s  7s left",
			60:  "━━━───   53%  1,592/3,000 jobs  199/200 calls/s  7s left",
			40:  "━━━━━━━━━━━───────────   53%  7s left",
			20:  "53%  7s left",
		},
		"failures": {
			120: "━━━━━━━━━━━━━─────────────   53%  1,592 of 3,000 jobs  199 of 200 calls/s  4m 10s left  1,204 failed  31 throttled",
			80:  "━━━───   53%  1,592/3,000 jobs  199/200 calls/s  4m 10s left  1,204 failed",
			60:  "━━━───   53%  199/200 calls/s  4m 10s left  1,204 failed",
			40:  "53%  4m 10s left  1,204 failed",
			20:  "53%",
		},
		"stopping": {
			80: "━━━━━─────   53%  stopping: waiting for 67 jobs, Ctrl-C again to leave now",
			60: "━━━───   53%  stopping: 67 jobs, Ctrl-C again to leave",
			40: "stopping: 67 jobs, Ctrl-C again to l…",
			20: "stopping: 67 job…",
		},
		"stopped":       {80: "━━━━━━━━━━━━━━━───────────────   53%  stopping"},
		"import paused": {80: "━━━━━━━━━━━━━─────────────   53%  1,592 of 3,000 jobs  import paused by hand"},
		"paused":        {80: "━━━━━━━━━━━━━━━───────────────   53%  1,592 of 3,000 jobs  paused by hand"},
		"halted": {
			80: "━━━━━━━━━─────────   53%  1,592 of 3,000 jobs  halted: credentials (70009)",
			60: "━━━━━━━━━━━───────────   53%  halted: credentials (70009)",
			40: "53%  halted: credentials (70009)",
		},
		"halted by hand": {80: "━━━━━━━━━━━━━━━───────────────   53%  1,592 of 3,000 jobs  halted"},
		"outage":         {80: "━━━━━━━━━━━━━━━───────────────   53%  1,592 of 3,000 jobs  API out of reach"},
		"no NATS":        {80: "━━━━━━━━━━━━━━━───────────────   53%  1,592 of 3,000 jobs  NATS out of reach"},
		"no leader":      {80: "━━━━━━━━━━━━━─────────────   53%  1,592 of 3,000 jobs  waiting for a leader"},
		"standby": {
			80: `━━━━━─────   53%  1,592 of 3,000 jobs  7s left  standby: 主机-1\u001b leads`,
			60: "━━━━━━━───────   53%  1,592/3,000 jobs  7s left  standby",
		},
		"end": {80: "━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━  100%  3,000 of 3,000 jobs  199 of 200 calls/s"},
	}
	compared := 0
	for _, test := range progressStates {
		test.totals.Imports, test.totals.Jobs, test.state.Rate = 1, 3000, 200
		n := progressLine(&test.state, test.totals, test.left, test.calls)
		for width, line := range want[test.name] {
			compared++
			if got := strings.TrimLeft((look{width: width, unicode: true}).line(n), " "); got != line {
				t.Errorf("%s, %d columns: got\n%s\nwant\n%s", test.name, width, got, line)
			}
		}
		for width := 1; width < 200; width++ {
			plain := look{width: width, unicode: true}.line(n)
			if got := columns(plain); got > max(width-3, 1) {
				t.Errorf("%s, %d columns: it takes %d:\n%s", test.name, width, got, plain)
			}
			colored := look{width: width, unicode: true, color: true}.line(n)
			if strings.Contains(plain, "\x1b") || plainText(colored) != plain {
				t.Errorf("%s, %d columns: got %q with colors, %q without", test.name, width, colored, plain)
			}
			for _, r := range (look{width: width}).line(n) {
				if test.name != "standby" && r > '~' && r != '…' {
					t.Errorf("%s, %d columns: got %q in a locale without UTF-8", test.name, width, r)
				}
			}
		}
	}
	if compared < 25 {
		t.Errorf("compared %d lines", compared)
	}
	failures := progressLine(&app.State{Rate: 200, Tally: app.Tally{Throttled: 3}}, app.Totals{Jobs: 3000, Finished: 1592, Failed: 12}, 0, -1)
	const ascii = "[\x1b[36m##############\x1b[0m..............]   53%  1,592 of 3,000 jobs  \x1b[31m12 failed\x1b[0m  \x1b[33m3 throttled\x1b[0m"
	if got := (look{width: 100, color: true}).line(failures); got != ascii {
		t.Errorf("in ASCII: got %q, want %q", got, ascii)
	}
}

// Reading and sorting look the same; without a total there is no bar.
func TestReadingLine(t *testing.T) {
	p := &program{console: newConsole(io.Discard)}
	for _, test := range []struct {
		at         importer.Progress
		text, line string
	}{
		{importer.Progress{Rows: 12345, Bytes: 30, Total: 120}, "reading: 12,345 rows, 6,172 rows/s, 25%",
			"reading  ━━━━━━━───────────────────────   25%  12,345 rows  6,172 rows/s"},
		{importer.Progress{Rows: 12345, Bytes: 30}, "reading: 12,345 rows, 6,172 rows/s", "reading  12,345 rows  6,172 rows/s"},
		{importer.Progress{Rows: 12345, Sorting: true, Sorted: 50}, "sorting: 12,345 rows, 50%",
			"sorting  ━━━━━━━━━━━━━━━───────────────   50%  12,345 rows"},
	} {
		got := p.readingProgress(test.at, 2*time.Second)
		if line := (look{width: 80, unicode: true}).line(got.line); got.text != test.text || line != test.line {
			t.Errorf("got %q and\n%s\nwant %q and\n%s", got.text, line, test.text, test.line)
		}
	}
	r := readCommand{program: p}
	got := r.readProgress(50, 200, 3, 5*time.Second)
	const text = "50 of 200 users read, 10 users/s, 15 s left, 3 throttled"
	const line = "reading  ━━────────   25%  50 of 200 users  10 users/s  15s left  3 throttled"
	if drawn := (look{width: 80, unicode: true}).line(got.line); got.text != text || drawn != line {
		t.Errorf("got %q and\n%s\nwant %q and\n%s", got.text, drawn, text, line)
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration][2]string{
		-time.Second:                 {"0s", "0s"},
		12900 * time.Millisecond:     {"12s", "13s"},
		59*time.Minute + time.Second: {"59m", "59m 1s"},
		3*time.Hour + 20*time.Minute: {"3h", "3h 20m"},
		50 * time.Hour:               {"2d", "2d 2h"},
		1000 * 24 * time.Hour:        {"1000d", "1000d 0h"},
	} {
		if got := [2]string{age(d), brief(max(d, 0))}; got != want {
			t.Errorf("%v: got %q, want %q", d, got, want)
		}
	}
}
