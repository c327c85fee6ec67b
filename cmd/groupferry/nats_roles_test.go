package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
)

// rolesFile gives each part of groupferry a NATS user.
var rolesFile = filepath.Join(root, "deploy", "nats", "groupferry.conf")

var roles = []string{"operator", "importer", "nightly", "worker", "reader"}

func rolePassword(role string) string { return "password-of-" + role }

// A roleServer is a NATS server with the users of [rolesFile].
type roleServer struct {
	t    *testing.T
	sim  *chatsim.Sim
	api  string
	nats *natsProcess
	seen int // bytes of its log
}

func startRoleServer(t *testing.T, file string) *roleServer {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	n := &natsProcess{dir: t.TempDir(), include: "users.conf"}
	if err := os.WriteFile(filepath.Join(n.dir, n.include), b, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, role := range roles {
		n.env = append(n.env, strings.ToUpper(role)+"_PASSWORD="+rolePassword(role))
	}
	r := &roleServer{t: t, nats: startAlone(t, n)}
	r.sim, r.api = startSim(t, chatsim.Config{})
	return r
}

// denied gives what the server logged since the last call about what users must not do.
func (r *roleServer) denied() (lines []string) {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(r.nats.dir, "log"))
	if err != nil {
		r.t.Fatal(err)
	}
	for line := range strings.Lines(string(b[r.seen:])) {
		if strings.Contains(line, "Violation") {
			lines = append(lines, line)
		}
	}
	r.seen = len(b)
	return lines
}

// as gives a shell with the login of a role in its URL.
func (r *roleServer) as(t *testing.T, role string) *shell {
	s := newShell(t, r.api)
	s.env["NATS_URL"] = "nats://" + role + ":" + rolePassword(role) + "@" + r.nats.client
	return s
}

// does calls a command as a role, which must not be denied anything.
func (r *roleServer) does(role string, code int, args ...string) *call {
	r.t.Helper()
	c := r.as(r.t, role).run(code, args...)
	if denied := r.denied(); len(denied) > 0 {
		r.t.Errorf("%s, groupferry %q: denied %q", role, args, denied)
	}
	return c
}

// status is that of all imports, and of what holds for all of them.
func (r *roleServer) status() string {
	r.t.Helper()
	return r.does("operator", exitDone, "status", "--output", "json").stdout.String()
}

// first does what needs streams that are not there: an import, and work.
func (r *roleServer) first() {
	r.t.Helper()
	r.does("operator", exitDone, "import", "--import-id", "first", writeRows(r.t, makeRows(70, 2)))
	r.does("operator", exitDone, "work", "--drain", "--listen", "off")
}

// TestRolesWork has each NATS user of the configuration file do what it is for.
func TestRolesWork(t *testing.T) {
	t.Parallel()
	r := startRoleServer(t, rolesFile)
	r.first()
	drain := func(code int) { r.does("worker", code, "work", "--drain", "--listen", "off") }

	rows := makeRows(71, 1, 2, 3)
	file := writeRows(t, rows)
	r.does("importer", exitDone, "check", file)
	r.does("importer", exitDone, "import", "--import-id", "once", file)
	r.does("importer", exitDone, "import", "--import-id", "once", file) // which continues
	target := []string{"import", "--sync", "nights"}
	r.does("nightly", exitDone, append(target, file)...)
	drain(exitDone)
	checkState(t, r.sim, stateOf(slices.Concat(makeRows(70, 2), rows)))

	// A night on the results of the one before, one that cuts it off, and one after that.
	nights := makeRows(71, 1, 2, 3, 1, 1, 1)
	for n := range 3 {
		var input []row
		for _, want := range nights {
			if slices.Index(names, want.group) < 4+n {
				input = append(input, want)
			}
		}
		r.does("nightly", exitDone, append(target, writeRows(t, input))...)
		if n > 0 {
			drain(exitDone)
		}
	}
	checkState(t, r.sim, stateOf(slices.Concat(makeRows(70, 2), nights)))

	for _, role := range []string{"importer", "nightly", "worker", "reader"} {
		if c := r.does(role, exitDone, "status"); !strings.Contains(c.stdout.String(), "\nonce ") {
			t.Errorf("%s: got status %s", role, &c.stdout)
		}
	}
	r.does("operator", exitDone, "export", "--import", "once")
	r.does("operator", exitDone, "export", "--sync", "nights")
	r.does("operator", exitDone, "verify", "--sync", "nights", writeRows(t, nights))
	if c := r.does("reader", exitDone, "results", "once"); strings.Count(c.stdout.String(), ",done,") != len(rows) {
		t.Errorf("got results %s, want %d done", &c.stdout, len(rows))
	}
	r.does("reader", exitDone, "results", "once", "--summary")

	// What failed is retried, what was cancelled is exported, and both are deleted.
	if err := r.sim.Configure(func(c *chatsim.Config) { c.FailIDs = map[string]int{"friend-1": 50001} }); err != nil {
		t.Fatal(err)
	}
	r.does("importer", exitDone, "import", "--import-id", "fails", writeRows(t, makeRows(72, 2)))
	drain(exitIncomplete)
	if c := r.does("reader", exitDone, "results", "fails", "--failed"); !strings.Contains(c.stdout.String(), ",50001,") {
		t.Errorf("got results %s, want a failure", &c.stdout)
	}
	r.does("operator", exitDone, "retry", "fails")
	r.does("importer", exitDone, "import", "--import-id", "dropped", writeRows(t, makeRows(73, 2)))
	r.does("operator", exitDone, "cancel", "dropped")
	if c := r.does("reader", exitDone, "results", "dropped"); !strings.Contains(c.stdout.String(), ",dropped,") {
		t.Errorf("got results %s, want some that were dropped", &c.stdout)
	}
	r.does("operator", exitDone, "delete", "dropped")
	r.does("operator", exitDone, "pause")
	r.does("operator", exitDone, "resume")
	r.does("operator", exitDone, "pause", "first")
	r.does("operator", exitDone, "rate", "100")

	// One of two workers leads, does the retry, and deletes what is old.
	two := []*call{r.as(t, "worker").start("work", "--listen", "off", "--keep", "1ms"), r.as(t, "worker").start("work", "--listen", "off", "--keep", "1ms")}
	await(t, "the deletion of what is old", func() bool {
		c := r.as(t, "operator").run(exitDone, "status", "--output", "json")
		return !strings.Contains(c.stdout.String(), `"once"`)
	})
	for _, c := range two {
		c.signals <- os.Interrupt
		c.wait(exitDone)
	}
	if denied := r.denied(); len(denied) > 0 {
		t.Errorf("work: denied %q", denied)
	}
	if err := r.sim.Configure(func(c *chatsim.Config) { c.Faults = []chatsim.Fault{{Command: chat.CreateContactGroup, Kind: "51013"}} }); err != nil {
		t.Fatal(err)
	}
	r.does("importer", exitDone, "import", "--import-id", "halts", writeRows(t, makeRows(74, 2)))
	drain(exitHalted)
	if c := r.does("reader", exitDone, "status"); !strings.Contains(c.stdout.String(), "halted") {
		t.Errorf("got status %s, want the halt", &c.stdout)
	}
}

// A server that comes back is watched as before, by what a worker may ask it for.
func TestRolesRestart(t *testing.T) {
	t.Parallel()
	r := startRoleServer(t, rolesFile)
	r.first()
	c := r.as(t, "worker").start("work", "--listen", "off", "--log-level", "debug")
	says := func(text string, times int) {
		t.Helper()
		await(t, text, func() bool { return strings.Count(c.stderr.String(), text) >= times })
	}
	paused := func(times int) {
		t.Helper()
		r.as(t, "operator").run(exitDone, "pause")
		says("msg=paused", times)
		r.as(t, "operator").run(exitDone, "resume")
		says("msg=resumed", times)
	}
	says("msg=\"leading", 1)
	paused(1)
	r.nats.kill()
	says("watching the control bucket failed", 1) // which is tried again without a connection
	r.nats.start()
	says("NATS is in reach again", 1)
	paused(2)
	c.signals <- os.Interrupt
	c.wait(exitDone)
	if denied := r.denied(); len(denied) > 0 {
		t.Errorf("denied %q", denied)
	}
}

// TestRolesDenied has NATS users of the configuration file try what is not theirs: the error names the subject, the exit code
// is one that is not restarted, and nothing has changed.
func TestRolesDenied(t *testing.T) {
	t.Parallel()
	r := startRoleServer(t, rolesFile)
	r.first()
	r.does("importer", exitDone, "import", "--import-id", "waits", writeRows(t, makeRows(75, 1, 2)))
	before, state := r.status(), r.sim.State()
	file := writeRows(t, makeRows(76, 1))
	tests := []struct{ role, command, subject string }{
		{"reader", "pause", "$KV.groupferry-control.halt"},
		{"reader", "cancel waits", "$KV.groupferry-control.import.waits"},
		{"reader", "delete first", "$JS.API.STREAM.PURGE.groupferry-results"},
		{"reader", "import " + file, "$KV.groupferry-control.import."},
		{"reader", "work --drain --listen off", "$JS.API.STREAM.INFO.KV_groupferry-lease"},
		{"importer", "pause", "$KV.groupferry-control.halt"},
		{"importer", "delete first", "$JS.API.STREAM.PURGE.groupferry-results"},
		{"importer", "results first", "$JS.API.CONSUMER.CREATE.groupferry-results."},
		{"nightly", "pause", "$KV.groupferry-control.halt"},
		{"nightly", "delete first", "$JS.API.STREAM.PURGE.groupferry-results"},
		{"worker", "rate 5", "$KV.groupferry-control.rate"},
		{"worker", "results first", "$JS.API.CONSUMER.CREATE.groupferry-results."},
	}
	t.Run("try", func(t *testing.T) {
		for _, test := range tests {
			t.Run(test.role+" "+strings.Fields(test.command)[0], func(t *testing.T) {
				t.Parallel() // what is denied gets no response
				s := r.as(t, test.role)
				c := s.run(exitUsage, strings.Fields(test.command)...)
				c.wantErr("error: ", "NATS denies it", `Publish to "`+test.subject, "hint: use another NATS user")
				if strings.Contains(c.stdout.String()+c.stderr.String(), rolePassword(test.role)) {
					t.Errorf("the password was printed:\n%s\n%s", &c.stdout, &c.stderr)
				}
			})
		}
	})
	r.denied()
	if after := r.status(); after != before {
		t.Errorf("status: got\n%s\nwant\n%s", after, before)
	}
	if d := differences(r.sim.State(), state); d != "" {
		t.Errorf("state of the app:\n%s", d)
	}
}

// Records of imports are under one key for all who change them: a worker that tries to import leaves a record, and no jobs.
// Who may put them on the queue continues.
func TestRolesDeniedJobs(t *testing.T) {
	t.Parallel()
	r := startRoleServer(t, rolesFile)
	r.first()
	file := writeRows(t, makeRows(76, 1))
	c := r.as(t, "worker").run(exitUsage, "import", "--import-id", "begun", file)
	c.wantErr("enqueue import begun: ", `Publish to "groupferry.jobs.begun"`)
	r.denied()
	r.does("importer", exitDone, "import", "--import-id", "begun", file)
}

// Before the operator made the streams the others are told who has to.
func TestRolesFirst(t *testing.T) {
	t.Parallel()
	r := startRoleServer(t, rolesFile)
	file := writeRows(t, makeRows(77, 1))
	for _, test := range []struct{ role, command string }{
		{"importer", "import " + file}, {"nightly", "import --sync nights " + file}, {"worker", "work --listen off"},
	} {
		t.Run(test.role, func(t *testing.T) {
			t.Parallel()
			r.as(t, test.role).run(exitUsage, strings.Fields(test.command)...).wantErr(
				"stream groupferry-jobs is not there yet, and this user may not make it; let one who may run this first")
		})
	}
	t.Run("reader", func(t *testing.T) {
		t.Parallel()
		r.as(t, "reader").run(exitFailed, "status").wantErr("no groupferry data")
	})
}

// The comment of the file has the command that changes its namespace.
func TestRolesNamespace(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(rolesFile)
	if err != nil {
		t.Fatal(err)
	}
	command := regexp.MustCompile(`sed '.*'`).FindString(string(b))
	if command == "" {
		t.Fatal("the file has no command that changes the namespace")
	}
	if _, err := exec.LookPath("sed"); err != nil {
		t.Skip(err)
	}
	const namespace = "app-2"
	cmd := exec.Command("sh", "-c", strings.Replace(command, "NAMESPACE", namespace, 1))
	cmd.Stdin = bytes.NewReader(b)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "groupferry.conf")
	if err := os.WriteFile(file, out, 0o600); err != nil {
		t.Fatal(err)
	}
	r := startRoleServer(t, file)
	input := writeRows(t, makeRows(78, 2, 1))
	r.does("operator", exitDone, "import", "--namespace", namespace, "--import-id", "first", input)
	r.does("operator", exitDone, "work", "--namespace", namespace, "--drain", "--listen", "off")
	r.does("importer", exitDone, "import", "--namespace", namespace, "--import-id", "second", input)
	r.does("worker", exitDone, "work", "--namespace", namespace, "--drain", "--listen", "off")
	if c := r.does("reader", exitDone, "status", "--namespace", namespace, "second"); !strings.Contains(c.stdout.String(), ": complete") {
		t.Errorf("got status %s", &c.stdout)
	}
}
