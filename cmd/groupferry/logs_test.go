package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"groupferry/internal/chatsim"
)

// logLines decodes log lines, each of which has to be one of JSON with keys that are documented.
func logLines(t *testing.T, text string) (lines []map[string]any) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "deploy", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(b), "<!-- log keys -->")
	table, _, _ = strings.Cut(table, "<!-- end -->")
	for line := range strings.Lines(text) {
		var l map[string]any
		if err := json.Unmarshal([]byte(line), &l); err != nil || l["time"] == nil || l["level"] == nil || l["msg"] == nil {
			t.Errorf("not a log line as JSON: %s", line)
			continue
		}
		for key := range l {
			if !strings.Contains(table, "`"+key+"`") {
				t.Errorf("key %q is not documented: %s", key, line)
			}
		}
		lines = append(lines, l)
	}
	return lines
}

// isLine compares a line with its level, the start of its message, and keys that it has: LEVEL|MESSAGE|KEYS.
func isLine(l map[string]any, want string) bool {
	parts := strings.Split(want, "|")
	is := l["level"] == parts[0] && strings.HasPrefix(l["msg"].(string), parts[1])
	for _, key := range strings.Fields(parts[2]) {
		is = is && l[key] != nil
	}
	return is
}

// A story of two workers, in which all happens that an operator looks for in a log: each is one line, at its level.
func TestLogStory(t *testing.T) {
	t.Parallel()
	sim, url := startSim(t, chatsim.Config{})
	nats := startNATS(t)
	faults := func(all ...chatsim.Fault) {
		t.Helper()
		if err := sim.Configure(func(c *chatsim.Config) { c.Faults = all }); err != nil {
			t.Fatal(err)
		}
	}
	s := newShell(t, url)
	s.env["NATS_URL"] = "nats://" + nats.client
	s.env["GROUPFERRY_LOG_FORMAT"] = "json"
	imports := 0
	begin := func() {
		t.Helper()
		imports++
		s.run(exitDone, "import", "--import-id", fmt.Sprintf("i%d", imports), writeRows(t, makeRows(uint64(90+imports), slices.Repeat([]int{1}, 60)...)))
	}
	says := func(c *call, msg string, times int) {
		t.Helper()
		await(t, fmt.Sprintf("%d × %s", times, msg), func() bool { return strings.Count(c.stderr.String(), `"msg":"`+msg) >= times })
	}

	a := s.start("work", "--listen", "off")
	says(a, "leading", 1)
	begin()
	says(a, "import is complete", 1)

	faults(chatsim.Fault{Kind: "51013"})
	begin()
	says(a, "halted", 1)
	faults()
	s.run(exitDone, "resume")
	says(a, "import is complete", 2)

	faults(chatsim.Fault{Kind: chatsim.Reset})
	begin()
	says(a, "the API is out of reach", 1)
	faults()
	says(a, "import is complete", 3)

	nats.kill()
	says(a, "NATS is out of reach", 1)
	nats.start()
	says(a, "NATS is in reach again", 1)
	s.run(exitDone, "pause")
	says(a, "paused", 1)
	s.run(exitDone, "resume")
	says(a, "resumed", 2)

	b := s.start("work", "--listen", "off")
	says(b, "working", 1)
	a.signals <- os.Interrupt
	a.wait(exitDone)
	says(b, "leading", 1)
	b.signals <- os.Interrupt
	b.wait(exitDone)

	const (
		start    = "INFO|working|queue calls_per_second"
		leads    = "INFO|leading|term"
		complete = "INFO|import is complete|import"
		stopping = "INFO|stopping|in_flight leads"
		back     = "INFO|resumed|"
	)
	for name, story := range map[string]struct {
		call *call
		want []string
	}{
		"first": {a, []string{
			start, leads, complete, "ERROR|halted|code reason hint host to_continue", back, complete,
			"WARN|the API is out of reach|error", "INFO|the API responds again|", complete,
			"WARN|NATS is out of reach|queue error", "INFO|NATS is in reach again|queue seconds",
			"WARN|paused|reason host to_continue", back,
			stopping,
		}},
		"second": {b, []string{start, "INFO|leading|term previous calls", stopping}},
	} {
		lines := slices.DeleteFunc(logLines(t, story.call.stderr.String()), func(l map[string]any) bool {
			return l["msg"] == "progress" || strings.HasPrefix(l["msg"].(string), "learned what create does")
		})
		for i := range max(len(lines), len(story.want)) {
			if i >= len(lines) || i >= len(story.want) {
				t.Errorf("%s: got %d lines, want %d:\n%s", name, len(lines), len(story.want), &story.call.stderr)
				break
			}
			if !isLine(lines[i], story.want[i]) {
				t.Errorf("%s: line %d: got %v, want %q", name, i, lines[i], story.want[i])
			}
		}
	}
}

// What the standard library logs by itself is a line like others.
func TestStandardLog(t *testing.T) { // not parallel: its logger is one for all
	var b buffer
	newConsole(&b).setLog("json")
	log.Print("http: a response that nobody asked for")
	lines := logLines(t, b.String())
	if len(lines) != 1 || !isLine(lines[0], "INFO|http: a response that nobody asked for|") {
		t.Errorf("got %q", b.String())
	}
}

// With JSON every line is one: reports about the input, hints, progress, and errors, those in the flags included.
func TestLogJSON(t *testing.T) {
	t.Parallel()
	_, url := startSim(t, chatsim.Config{FailIDs: map[string]int{"friend-1": 50001}})
	s := newShell(t, url)
	s.env["GROUPFERRY_LOG_FORMAT"] = "json"
	file := writeRows(t, makeRows(95, 1, 2))
	messy := filepath.Join(root, "samples", "messy.csv")
	rejects := filepath.Join(t.TempDir(), "rejects.csv")
	for _, test := range []struct {
		code int
		args string
		last string // level, message and keys of the last line; "" for no line
	}{
		{exitIncomplete, "import --import-id x --rejects " + rejects + " " + messy, "INFO|queued|import jobs rows rejected queue"},
		{exitIncomplete, "check " + messy, ""},
		{exitDone, "work --drain --listen off", "INFO|drained|total done partial failed pending"},
		{exitDone, "retry x", "INFO|no failures to retry|import"},
		{exitDone, "import --import-id y " + file, "INFO|queued|import jobs rows rejected queue"},
		{exitIncomplete, "work --quiet --drain --listen off", "INFO|drained|total done partial failed pending"},
		{exitDone, "retry y", "INFO|failures are on the queue again|import jobs conversations retry"},
		{exitDone, "cancel y", "INFO|retry is cancelled|import retry failed"},
		{exitDone, "import --sync z --sdk-app-id 7 --import-id= " + file, "INFO|queued|import jobs rows rejected queue"},
		{exitDone, "rate 300", "WARN|the rate is more|calls_per_second"},
		{exitDone, "delete y", "INFO|import is deleted|import"},
		{exitFailed, "status none", "ERROR|groupferry status ended with an error|error hint exit_code"},
		{exitUsage, "import --bogus", "ERROR|groupferry import ended with an error|error hint exit_code"},
		{exitUsage, "bogus", "ERROR|groupferry ended with an error|error hint exit_code"},
		{exitUsage, "work --rate none", "ERROR|groupferry work ended with an error|error hint exit_code"},
		{exitUnreachable, "run --api-url http://127.0.0.1:1 --import-id u --nats-url 127.0.0.1:1 " + file, "ERROR|groupferry run ended with an error|error exit_code"},
	} {
		c := s.run(test.code, strings.Fields(test.args)...)
		lines := logLines(t, c.stderr.String())
		if test.last == "" {
			continue
		}
		if len(lines) == 0 || !isLine(lines[len(lines)-1], test.last) {
			t.Errorf("groupferry %s: got\n%s\nwant %q", test.args, &c.stderr, test.last)
		}
	}
}
