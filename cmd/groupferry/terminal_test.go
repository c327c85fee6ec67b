package main

import (
	"strings"
	"testing"
	"time"

	"groupferry/internal/app"
	"groupferry/internal/queue"
)

func TestCut(t *testing.T) {
	for _, test := range []struct {
		text string
		most int
		want string
	}{
		{"plain", 5, "plain"}, {"plain", 4, "pla…"}, {"plain", 1, "…"}, {"plain", 0, ""}, {"", 0, ""},
		{"家族家族", 8, "家族家族"}, {"家族家族", 7, "家族家…"}, {"家族家族", 6, "家族…"}, {"e\u0301e\u0301", 2, "e\u0301e\u0301"},
		{"한국 친구", 6, "한국 …"}, {"🎲 games", 4, "🎲 …"}, {"ｱｲｳ！", 5, "ｱｲｳ！"},
	} {
		if got := cut(test.text, test.most); got != test.want || columns(got) > test.most {
			t.Errorf("%q, %d columns: got %q, want %q", test.text, test.most, got, test.want)
		}
	}
}

func TestUTF8(t *testing.T) {
	for _, test := range []struct {
		env  map[string]string
		want bool
	}{
		{map[string]string{"LANG": "en_US.UTF-8"}, true},
		{map[string]string{"LC_CTYPE": "C.utf8", "LANG": "C"}, true},
		{map[string]string{"LC_ALL": "C", "LANG": "en_US.UTF-8"}, false},
		{map[string]string{"LANG": "zh_CN.GB18030"}, false},
		{nil, false},
	} {
		if got := isUTF8(func(name string) string { return test.env[name] }); got != test.want {
			t.Errorf("%v: got %t, want %t", test.env, got, test.want)
		}
	}
}

// Colors are added to numbers that should be 0 and to states, and nothing else is changed.
func TestColored(t *testing.T) {
	const text = `halted by host since 2026-11-29 07:45:23: 51013 failed 3
  remedy: upgrade
sync contacts (1400000000 https://x): night 2 complete at 2026-11-29 02:31:07
import a (failed 3.csv): complete
  rows           40        accepted 38 · duplicates 0 · rejected 2, kept in a-rejects.csv
  jobs           12        done 10 · partial 1 · failed 1,000 · pending 0 · dropped 4
  conversations  40        done 40 · failed 0 · pending 0
  damaged        results are missing
  this run       23 calls in 0.4 s · throttled 7 · repeated 0
import b (b.csv): running, paused
IMPORT  STATE      AGE  DONE  FAILED  REJECTED  LEFT  FILES
a       complete    3h  100%   1,001         2     -  failed 3.csv
b       halted      5m   50%       0         0     -  b.csv
… and 2 more lines
`
	const want = `{31}halted{0} by host since 2026-11-29 07:45:23: 51013 failed 3
  remedy: upgrade
sync contacts (1400000000 https://x): night 2 complete at 2026-11-29 02:31:07
import a (failed 3.csv): {32}complete{0}
  rows           40        accepted 38 · duplicates 0 · {33}rejected 2{0}, kept in a-rejects.csv
  jobs           12        done 10 · {31}partial 1{0} · {31}failed 1,000{0} · pending 0 · {33}dropped 4{0}
  conversations  40        done 40 · failed 0 · pending 0
{31}  damaged        results are missing{0}
  this run       23 calls in 0.4 s · {33}throttled 7{0} · repeated 0
import b (b.csv): running{33}, paused{0}
IMPORT  STATE      AGE  DONE  FAILED  REJECTED  LEFT  FILES
a       {32}complete{0}    3h  100%   {31}1,001{0}         {33}2{0}     -  failed 3.csv
b       {31}halted{0}      5m   50%       0         0     -  b.csv
… and 2 more lines
`
	got := look{color: true}.colored(text)
	if shown := strings.NewReplacer("\x1b[", "{", "m", "}").Replace(colors.FindString(got)); shown != "{31}" {
		t.Errorf("first color: got %q", shown)
	}
	named := colors.ReplaceAllStringFunc(got, func(s string) string { return "{" + s[2:len(s)-1] + "}" })
	if named != want {
		t.Errorf("got\n%s\nwant\n%s", named, want)
	}
	if plainText(got) != text {
		t.Errorf("without its colors it is\n%s", plainText(got))
	}
	if got := (look{}).colored(text); got != text {
		t.Errorf("without colors: got\n%s", got)
	}
}

// tableStatus has imports of all kinds, as of noon.
func tableStatus() (s app.Status, noon time.Time) {
	noon = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	left := 250.0
	at := func(ago time.Duration) time.Time { return noon.Add(-ago) }
	return app.Status{Imports: []app.ImportStatus{
		{Import: "67c54d65456a9f36", State: "running", Created: at(12 * time.Second), Files: []string{"export/monday.csv.gz", "export/家族.csv"},
			Jobs: app.JobCounts{Total: 50000, Done: 15000, Partial: 1000, Failed: 204, Pending: 33796}, Rejected: 31, SecondsLeft: &left},
		{Import: "waits", State: "running", Paused: true, Created: at(5 * time.Minute), Files: []string{"-"}, Jobs: app.JobCounts{Total: 8, Pending: 8}},
		{Import: "nightly", State: "cancelled", Superseded: true, Created: at(26 * time.Hour), Files: []string{"x.csv"},
			Jobs: app.JobCounts{Total: 10, Done: 5, Dropped: 5}},
		{Import: "again", State: "running", Created: at(50 * time.Hour), Files: []string{"y.csv"}, Retry: &app.RetryStatus{Jobs: 4, Pending: 3},
			Jobs: app.JobCounts{Total: 100, Done: 96, Failed: 4}},
		{Import: "nothing", State: "complete", Created: at(50 * time.Hour), Files: []string{"empty.csv"}},
		{Import: "broken", State: "complete", Created: at(50 * time.Hour), Damaged: "results are missing", Jobs: app.JobCounts{Total: 1, Done: 1}},
	}}, noon
}

func TestImportTable(t *testing.T) {
	s, noon := tableStatus()
	for width, want := range map[int]string{
		0: `
IMPORT            STATE       AGE  DONE  FAILED  REJECTED    LEFT  FILES
67c54d65456a9f36  running     12s   32%   1,204        31  4m 10s  export/monday.csv.gz, export/家族.csv
waits             paused       5m    0%       0         0       -  -
nightly           superseded   1d   50%       0         0       -  x.csv
again             running      2d   25%       4         0       -  y.csv
nothing           complete     2d  100%       0         0       -  empty.csv
broken            damaged      2d  100%       0         0       -
`,
		79: `
IMPORT            STATE       AGE  DONE  FAILED  REJECTED    LEFT  FILES
67c54d65456a9f36  running     12s   32%   1,204        31  4m 10s  monday.csv.…
waits             paused       5m    0%       0         0       -  -
nightly           superseded   1d   50%       0         0       -  x.csv
again             running      2d   25%       4         0       -  y.csv
nothing           complete     2d  100%       0         0       -  empty.csv
broken            damaged      2d  100%       0         0       -
`,
		59: `
IMPORT      STATE       AGE  DONE  FAILED  REJECTED    LEFT
67c54d654…  running     12s   32%   1,204        31  4m 10s
`,
	} {
		got := statusText(&s, true, width, noon)
		if width == 59 {
			got = strings.Join(strings.SplitAfter(got, "\n")[:2], "")
		}
		if got != want[1:] {
			t.Errorf("%d columns: got\n%s\nwant%s", width, got, want)
		}
	}
	for width := 50; width < 200; width++ {
		for line := range strings.Lines(statusText(&s, true, width, noon)) {
			if got := columns(strings.TrimSuffix(line, "\n")); got > width {
				t.Errorf("%d columns: it takes %d: %s", width, got, line)
			}
		}
	}
	s.Imports[0].Files = []string{"a/new\nline.csv", "b/escape\x1b, and more.csv"} // neither \n nor a comma begins a name
	if text := statusText(&s, true, 90, noon); !strings.Contains(text, `  new\nline.csv, escape\…`) {
		t.Errorf("names with control characters: got\n%s", text)
	}
	s.Halt = &queue.Halt{State: queue.Halted, By: "host"}
	if text := statusText(&s, true, 0, noon); !strings.HasPrefix(text, "halted by host ") || strings.Count(text, "  halted ") != 3 {
		t.Errorf("while all is halted: got\n%s", text)
	}
	if text := statusText(&s, false, 79, noon); strings.Count(text, "\n  jobs ") != len(s.Imports) {
		t.Errorf("of named imports: got\n%s", text)
	}
}

// A frame fits the window, and is drawn over the last one.
func TestDrawFrame(t *testing.T) {
	s, noon := tableStatus()
	for _, l := range []look{{width: 80, height: 24}, {width: 80, height: 5, color: true}, {width: 30, height: 3, color: true}, {width: 9, height: 1}} {
		var b strings.Builder
		if err := drawFrame(&b, l, l.height == 24, statusText(&s, true, l.width-1, noon)); err != nil {
			t.Fatal(err)
		}
		got := b.String()
		rest, home := strings.CutPrefix(got, "\x1b[H")
		rest, cleared := strings.CutPrefix(rest, "\x1b[2J")
		rest, end := strings.CutSuffix(rest, "\x1b[J")
		if !home || !end || cleared != (l.height == 24) || strings.Contains(rest, "\x1b[2J") {
			t.Errorf("%+v: got %q", l, got)
		}
		lines := strings.SplitAfter(rest, "\n")
		lines = lines[:len(lines)-1]
		if len(lines) > max(l.height-1, 2) {
			t.Errorf("%+v: got %d lines", l, len(lines))
		}
		for _, line := range lines {
			line, cleared := strings.CutSuffix(line, "\x1b[K\n")
			if !cleared || columns(plainText(line)) >= l.width {
				t.Errorf("%+v: got line %q", l, line)
			}
		}
		if cutOff := strings.Contains(got, " more"); cutOff != (l.height < 10) && l.width > 20 {
			t.Errorf("%+v: got\n%s", l, got)
		}
	}
}
