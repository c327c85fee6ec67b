package deploy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"groupferry/internal/broker"
	"groupferry/internal/chat"
	"groupferry/internal/longtest"
	"groupferry/internal/queue"
)

// TestFaults has two workers, of which one stands by, work on an import that outlasts the test, and does to them what happens
// at night. Each fault is seen in the log, in the metrics that Prometheus has, at /readyz, and as an alert at Alertmanager; and
// so is its end. After which time an alert fires is in TestAlertTimes: here it is a second, and the API is looked at for five
// seconds instead of five minutes.
func TestFaults(t *testing.T) {
	longtest.Only(t)
	installed(t, "prometheus")
	installed(t, "prometheus-alertmanager")
	f := startFaults(t)
	for _, test := range []struct {
		name string
		run  func(*faults, *testing.T)
	}{
		{"NATS is killed", (*faults).natsKilled},
		{"the API is cut off", (*faults).apiCut},
		{"a halt", (*faults).halt},
		{"a missed night", (*faults).nightMissed},
		{"a UserSig expires", (*faults).sigExpires},
		{"the leader is killed", (*faults).leaderKilled},
	} {
		t.Run(test.name, func(t *testing.T) {
			f.begin(t)
			test.run(f, t)
			f.healthy(t)
		})
	}
}

// takesOver is what a worker says that leads after another one.
const takesOver = "leading: waiting 1 s, for calls of the previous leader may still be in flight"

// NATS is out of reach for all: one alert says so, and not one for each process.
func (f *faults) natsKilled(t *testing.T) {
	f.nats.kill()
	for _, w := range f.workers {
		f.ready(t, w, http.StatusServiceUnavailable, "NATS is out of reach")
		w.has(t, "WARN", "NATS is out of reach; trying again", "error")
		f.sees(t, `groupferry_nats_connected{`+w.instance()+`} == 0`)
		f.sees(t, `groupferry_ready{`+w.instance()+`} == 0`)
		f.sees(t, `groupferry_state{state="leaderless", reason="nats", `+w.instance()+`} == 1`)
	}
	f.alert(t, "GroupferryNATSDown", "")
	poll(t, func() error { // it can be there for a moment, when one of them notices before the other
		if f.alertmanager.has(t, "GroupferryNotReady", "") == nil {
			return errors.New("got GroupferryNotReady, which is for one process alone")
		}
		return nil
	})

	f.startNATS()
	for _, w := range f.workers {
		w.has(t, "INFO", "NATS is in reach again", "seconds")
		f.ready(t, w, http.StatusOK, "")
		f.sees(t, `groupferry_nats_connected{`+w.instance()+`} == 1`)
	}
	f.healthy(t)
	for _, w := range f.workers {
		w.once(t, "NATS is out of reach; trying again")
		w.once(t, "NATS is in reach again")
	}
}

// In an outage of the API a process does its part, which is to probe: so it is ready. The outage ends with a response, or with
// a standby that finds the API in reach before the next probe of the leader does.
func (f *faults) apiCut(t *testing.T) {
	const (
		begins     = "the API is out of reach: probing with one call at a time, no job is lost"
		ends       = "the API responds again"
		handedOver = "standing by: the API is out of reach from here, and the lead was handed over"
	)
	leader, standby := f.roles(t)
	f.simulator.kill()
	leader.has(t, "WARN", begins, "error")
	f.sees(t, `groupferry_state{state="outage", reason="api", `+leader.instance()+`} == 1`)
	f.alert(t, "GroupferryAPIDown", "")
	for _, w := range f.workers {
		f.ready(t, w, http.StatusOK, "")
		f.sees(t, `groupferry_ready{`+w.instance()+`} == 1`)
	}

	f.startSimulator()
	f.healthy(t)
	responded, handed := leader.lines(t, ends), leader.lines(t, handedOver)
	if len(responded) > 1 || len(handed) > 1 || len(responded)+len(handed) == 0 { // both: a response came during the hand-over
		t.Errorf("got the lines %v and %v, want one, or one of each", responded, handed)
	}
	if len(responded) > 0 {
		leader.has(t, "INFO", ends)
	}
	if len(handed) > 0 {
		leader.has(t, "WARN", handedOver, "host", "error")
		standby.has(t, "INFO", takesOver, "previous")
	}
	leader.once(t, begins)
	standby.none(t, begins)
}

func (f *faults) halt(t *testing.T) {
	f.control(t, `{"edition":"standard"}`)
	for _, w := range f.workers {
		line := w.has(t, "ERROR", "halted: every job would fail the same way", "code", "reason", "hint", "to_continue")
		if line["code"] != "51013" || !strings.Contains(fmt.Sprint(line["to_continue"]), "groupferry resume") {
			t.Errorf("got the line %v, want the code 51013, and resume to continue", line)
		}
		f.sees(t, `groupferry_state{state="halted", reason="edition", `+w.instance()+`} == 1`)
		f.sees(t, `groupferry_ready{`+w.instance()+`} == 0`)
		f.ready(t, w, http.StatusServiceUnavailable, "51013")
	}
	f.alert(t, "GroupferryHalted", "edition")

	f.control(t, `{"edition":"ultimate"}`)
	f.groupferry(t, "resume")
	for _, w := range f.workers {
		w.has(t, "INFO", "resumed")
		f.ready(t, w, http.StatusOK, "")
	}
	f.healthy(t)
	for _, w := range f.workers {
		w.once(t, "halted: every job would fail the same way")
		w.once(t, "resumed")
	}
}

// A night that nobody called is in no log: no process knows when it was to be. Its end is. The hours pass in the record of the
// sync, as the queue writes it: 27 since the night was begun and complete.
func (f *faults) nightMissed(t *testing.T) {
	leader, _ := f.roles(t)
	const complete = "night is complete"
	f.groupferry(t, "import", "--sync", "contacts", f.input(t, "night", 2))
	if line := leader.has(t, "INFO", complete, "sync", "night", "import"); line["sync"] != "contacts" || line["night"] != 1.0 {
		t.Errorf("got the line %v, want that of night 1", line)
	}
	f.sees(t, `groupferry_sync_complete_timestamp_seconds{sync="contacts", `+leader.instance()+`} > 0`)
	f.healthy(t) // so it is not missed yet

	long := 27 * time.Hour
	f.moveNight(t, long)
	for _, w := range f.workers {
		f.sees(t, fmt.Sprintf(`time() - groupferry_sync_complete_timestamp_seconds{sync="contacts", %s} >= %v`, w.instance(), long.Seconds()))
	}
	f.alert(t, "GroupferryNightMissed", "")
	for _, w := range f.workers {
		f.ready(t, w, http.StatusOK, "")
	}
	leader.once(t, complete)

	f.groupferry(t, "import", "--sync", "contacts", f.input(t, "night", 3))
	eventually(t, "the second night in the log", func() bool { return len(leader.lines(t, complete)) == 2 })
	if line := leader.lines(t, complete)[1]; line["level"] != "INFO" || line["night"] != 2.0 {
		t.Errorf("got the line %v, want that of night 2", line)
	}
	f.sees(t, `groupferry_sync_night{sync="contacts"} == 2`)
	f.healthy(t)
}

// moveNight moves the last night into the past.
func (f *faults) moveNight(t *testing.T, by time.Duration) {
	t.Helper()
	conn, err := broker.Open(t.Context(), broker.Config{URL: "nats://" + f.natsAddress, JoinOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	q, err := queue.Open(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	poll(t, func() error { // the leader may be writing it
		syncs, err := q.Syncs(t.Context())
		switch {
		case err != nil:
			return err
		case len(syncs) != 1 || syncs[0].Complete == nil:
			return fmt.Errorf("got the syncs %+v, want one that was complete", syncs)
		}
		_, err = q.UpdateSync(t.Context(), syncs[0], func(s *queue.Sync) {
			pending, complete := *s.Pending, *s.Complete
			pending.Begun = pending.Begun.Add(-by)
			complete.Begun, complete.Completed = complete.Begun.Add(-by), complete.Completed.Add(-by)
			s.Pending, s.Complete = &pending, &complete
		})
		return err
	})
}

// The UserSig of a process that makes its own ends within a day, too, but that one is renewed.
func (f *faults) sigExpires(t *testing.T) {
	leader, standby := f.roles(t)
	for _, w := range f.workers {
		f.sees(t, `groupferry_usersig_expiry_timestamp_seconds{renewed="yes", `+w.instance()+`} - time() < 24 * 3600`)
	}
	now := time.Now()
	file := filepath.Join(f.dir, "usersig")
	sig := chat.SignUserSig(demoKey, demoApp, "administrator", now, 2*time.Hour).Reveal()
	if err := os.WriteFile(file, []byte(sig), 0o600); err != nil {
		t.Fatal(err)
	}
	const ends = "the UserSig ends soon, and nobody renews it"
	standby.kill()
	f.startWorker(standby, f.env, "--usersig-file", file)
	standby.has(t, "WARN", ends, "seconds_left", "hint")
	f.sees(t, fmt.Sprintf(`groupferry_usersig_expiry_timestamp_seconds{renewed="no", %s} == %d`,
		standby.instance(), now.Add(2*time.Hour).Unix()))
	f.alert(t, "GroupferryUserSigExpires", "")
	for _, w := range f.workers {
		f.ready(t, w, http.StatusOK, "")
	}
	standby.once(t, ends)
	leader.none(t, ends)

	standby.kill()
	f.startWorker(standby, f.keyed())
	f.healthy(t)
	standby.none(t, ends)
}

// The standby goes on, ready all the time. When it is killed, too, nobody is there to be asked.
func (f *faults) leaderKilled(t *testing.T) {
	leader, standby := f.roles(t)
	leader.kill()
	killed := time.Now()
	line := standby.has(t, "INFO", takesOver, "term", "previous")
	if pid := fmt.Sprint(leader.cmd.Process.Pid); !strings.Contains(fmt.Sprint(line["previous"]), pid) {
		t.Errorf("got the line %v, want the process %s as the previous leader", line, pid)
	}
	f.sees(t, `groupferry_leader{`+standby.instance()+`} == 1`)
	f.sees(t, `groupferry_state{state="running", reason="working", `+standby.instance()+`} == 1`)
	f.ready(t, standby, http.StatusOK, "")
	poll(t, func() error {
		always := fmt.Sprintf(`min_over_time(groupferry_ready{%s}[%dms]) == 1`, standby.instance(), time.Since(killed).Milliseconds())
		return f.has(t, always)
	})
	poll(t, func() error { return f.quiet(t) }) // GroupferryLeaderless does not stay

	standby.kill()
	if err := responds("http://" + standby.address + "/readyz"); err == nil {
		t.Error("got a response from a process that was killed")
	}
	f.alert(t, "GroupferryAbsent", "")

	for _, w := range f.workers {
		f.startWorker(w, f.keyed())
	}
	f.healthy(t)
}

// Faults are what TestFaults does them to.
type faults struct {
	t            *testing.T // of all: what a part starts lives on in the next one
	dir, binary  string
	env          []string // without credentials
	natsServer   string
	natsAddress  string
	nats         *process
	simAddress   string
	simulator    *process
	workers      []*worker
	alertmanager alertmanager
	prometheus   prometheus
}

// A worker is a process that is started again and again at one address.
type worker struct {
	*process
	address string
	before  int // lines that it had logged when this part of the test began
}

func startFaults(t *testing.T) *faults {
	t.Helper()
	touch(t)
	f := &faults{
		t: t, dir: t.TempDir(), natsAddress: freeAddress(t), simAddress: freeAddress(t),
		workers: []*worker{{address: freeAddress(t)}, {address: freeAddress(t)}},
	}
	var err error
	if f.binary, err = binary(); err != nil {
		t.Fatal(err)
	}
	if f.natsServer, err = build("nats-server", "github.com/nats-io/nats-server/v2"); err != nil {
		t.Fatal(err)
	}
	f.env = []string{
		"NATS_URL=nats://" + f.natsAddress, "GROUPFERRY_API_URL=http://" + f.simAddress,
		fmt.Sprintf("GROUPFERRY_SDK_APP_ID=%d", demoApp), "GROUPFERRY_LOG_FORMAT=json",
	}
	f.startNATS()
	f.startSimulator()
	for _, w := range f.workers {
		f.startWorker(w, f.keyed())
	}
	f.groupferry(t, "import", f.input(t, "large", 20_000)) // at 20 calls a second for longer than this test may take
	f.alertmanager = startAlertmanager(t)
	f.prometheus = startPrometheus(t, []string{f.workers[0].address, f.workers[1].address}, f.alertmanager, "")
	return f
}

func (f *faults) keyed() []string {
	return append(slices.Clone(f.env), "GROUPFERRY_SECRET_KEY="+demoKey)
}

func (f *faults) startNATS() {
	f.t.Helper()
	host, port, _ := strings.Cut(f.natsAddress, ":")
	f.nats = start(f.t, nil, f.natsServer, "--addr", host, "--port", port, "--jetstream", "--store_dir", filepath.Join(f.dir, "nats"))
}

func (f *faults) startSimulator() {
	f.t.Helper()
	f.simulator = start(f.t, nil, f.binary, "simulate", "--listen", f.simAddress)
	poll(f.t, func() error { return responds("http://" + f.simAddress + "/ledger") })
}

// startWorker starts a worker, and waits until it is ready. It has few jobs in flight, for a night to get its turn soon, and a
// short timeout, after which the calls of a leader that was killed are over.
func (f *faults) startWorker(w *worker, env []string, args ...string) {
	f.t.Helper()
	args = append([]string{"work", "--listen", w.address, "--rate", "20", "--concurrency", "20", "--timeout", "3s"}, args...)
	w.process, w.before = start(f.t, env, f.binary, args...), 0
	poll(f.t, func() error { return responds("http://" + w.address + "/readyz") })
}

// groupferry runs a command that has to succeed.
func (f *faults) groupferry(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command(f.binary, args...)
	cmd.Env, cmd.Dir = append(os.Environ(), f.keyed()...), f.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("groupferry %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// input writes an input with so many groups, of one conversation each.
func (f *faults) input(t *testing.T, name string, groups int) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("from_account,group_name,type,to_account,to_group_id\n")
	for i := range groups {
		fmt.Fprintf(&b, "%s-%d,group-%d,1,friend,\n", name, i/10, i%10)
	}
	path := filepath.Join(f.dir, name+".csv")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// control changes what the simulator does.
func (f *faults) control(t *testing.T, body string) {
	t.Helper()
	controlSimulator(t, f.simAddress, body)
}

// begin makes sure that all is well, and that what was logged so far does not count.
func (f *faults) begin(t *testing.T) {
	t.Helper()
	f.healthy(t)
	for _, w := range f.workers {
		w.before = len(w.all(t))
	}
}

// healthy waits until one worker leads and works, the other one stands by, both are ready, and no alert is left.
func (f *faults) healthy(t *testing.T) {
	t.Helper()
	for _, w := range f.workers {
		f.ready(t, w, http.StatusOK, "")
	}
	f.sees(t, `sum(groupferry_ready) == 2`)
	f.sees(t, `sum(groupferry_state{state="running", reason="working"}) == 1`)
	f.sees(t, `sum(groupferry_state{state="standby", reason="other-leads"}) == 1`)
	f.sees(t, `sum(groupferry_leader) == 1`)
	poll(t, func() error { return f.quiet(t) })
}

// quiet returns nil when there is no alert, neither at Prometheus, where it may be pending, nor at Alertmanager.
func (f *faults) quiet(t *testing.T) error {
	pending, err := f.prometheus.query(t.Context(), "ALERTS")
	if err != nil {
		return err
	}
	all, err := f.alertmanager.alerts()
	if err == nil && len(pending)+len(all) > 0 {
		err = fmt.Errorf("got the alerts %v at Prometheus, and %v at Alertmanager, want none", pending, all)
	}
	return err
}

// roles returns the worker that leads, and the one that stands by.
func (f *faults) roles(t *testing.T) (leader, standby *worker) {
	t.Helper()
	leads := func(w *worker) bool {
		return strings.Contains(get("http://"+w.address+"/metrics"), "\ngroupferry_leader 1\n")
	}
	switch a, b := f.workers[0], f.workers[1]; {
	case leads(a) && !leads(b):
		return a, b
	case leads(b) && !leads(a):
		return b, a
	}
	t.Fatal("got no leader, or two")
	return nil, nil
}

// sees waits until Prometheus has something for the expression.
func (f *faults) sees(t *testing.T, expr string) {
	t.Helper()
	poll(t, func() error { return f.has(t, expr) })
}

// has returns nil when Prometheus has something for the expression.
func (f *faults) has(t *testing.T, expr string) error {
	results, err := f.prometheus.query(t.Context(), expr)
	if err == nil && len(results) == 0 {
		err = fmt.Errorf("got nothing for %s", expr)
	}
	return err
}

// alert waits until Alertmanager has an alert.
func (f *faults) alert(t *testing.T, name, reason string) {
	t.Helper()
	poll(t, func() error { return f.alertmanager.has(t, name, reason) })
}

// ready waits until a worker says with that status, and those words, whether it is ready.
func (f *faults) ready(t *testing.T, w *worker, status int, words string) {
	t.Helper()
	poll(t, func() error {
		resp, err := http.Get("http://" + w.address + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err == nil && (resp.StatusCode != status || !strings.Contains(string(b), words)) {
			err = fmt.Errorf("got %s %q from %s, want %d and %q", resp.Status, b, w.address, status, words)
		}
		return err
	})
}

func (w *worker) instance() string { return `instance="` + w.address + `"` }

// all are the lines that the worker has logged, each of which has to be JSON; but for one that is not written as a whole yet.
func (w *worker) all(t *testing.T) (all []map[string]any) {
	t.Helper()
	for line := range strings.Lines(w.log.String()) {
		if !strings.HasSuffix(line, "\n") {
			break
		}
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("got the line %q: %v", line, err)
		}
		all = append(all, fields)
	}
	return all
}

// lines are those with that text that the worker has logged since this part of the test began.
func (w *worker) lines(t *testing.T, msg string) []map[string]any {
	t.Helper()
	return slices.DeleteFunc(w.all(t)[w.before:], func(line map[string]any) bool { return line["msg"] != msg })
}

// has waits for a line of that level, which has to have values for the keys.
func (w *worker) has(t *testing.T, level, msg string, keys ...string) map[string]any {
	t.Helper()
	var line map[string]any
	poll(t, func() error {
		lines := w.lines(t, msg)
		if len(lines) == 0 {
			return fmt.Errorf("got no line %q from %s", msg, w.address)
		}
		line = lines[0]
		return nil
	})
	if line["level"] != level {
		t.Errorf("got the line %v, want the level %s", line, level)
	}
	for _, key := range keys {
		if line[key] == nil || line[key] == "" {
			t.Errorf("got the line %v, want %s in it", line, key)
		}
	}
	return line
}

// once makes sure that the line is there once.
func (w *worker) once(t *testing.T, msg string) {
	t.Helper()
	if n := len(w.lines(t, msg)); n != 1 {
		t.Errorf("got %d lines %q from %s, want one", n, msg, w.address)
	}
}

func (w *worker) none(t *testing.T, msg string) {
	t.Helper()
	if n := len(w.lines(t, msg)); n != 0 {
		t.Errorf("got %d lines %q from %s, want none", n, msg, w.address)
	}
}
