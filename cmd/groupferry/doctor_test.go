package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"groupferry/internal/app"
	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
	"groupferry/internal/longtest"
	"groupferry/internal/queue"
)

// A planted fault is what is wrong in a set-up that is sound otherwise, and what doctor has to say.
type planted struct {
	name  string
	sim   chatsim.Config
	plant func(t *testing.T, s *shell) // changes the set-up
	args  []string

	finding string // its name; FAILED unless code is 0, a warning then
	what    string // part of it
	remedy  string // part of it
	code    int
}

func set(name, value string) func(*testing.T, *shell) {
	return func(_ *testing.T, s *shell) { s.env[name] = value }
}

// keyFile has the key in a file of that mode and content.
func keyFile(mode os.FileMode, content string) func(*testing.T, *shell) {
	return func(t *testing.T, s *shell) {
		t.Helper()
		file := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		delete(s.env, "GROUPFERRY_SECRET_KEY")
		s.env["GROUPFERRY_SECRET_KEY_FILE"] = file
	}
}

// dated has the API say another time.
func datedAPI(off time.Duration) func(*testing.T, *shell) {
	return func(t *testing.T, s *shell) {
		t.Helper()
		api, err := url.Parse(s.env["GROUPFERRY_API_URL"])
		if err != nil {
			t.Fatal(err)
		}
		front := httptest.NewServer(&dateShifter{api: api.Host, off: off})
		t.Cleanup(front.Close)
		s.env["GROUPFERRY_API_URL"] = front.URL
	}
}

type dateShifter struct {
	api string
	off time.Duration
}

func (d *dateShifter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.URL.Scheme, r.URL.Host, r.RequestURI = "http", d.api, ""
	response, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer response.Body.Close()
	w.Header().Set("Date", time.Now().Add(d.off).UTC().Format(http.TimeFormat))
	w.WriteHeader(response.StatusCode)
	bufio.NewReader(response.Body).WriteTo(w)
}

// inNamespace changes the namespace before doctor looks.
func inNamespace(change func(t *testing.T, n *app.Namespace)) func(*testing.T, *shell) {
	return func(t *testing.T, s *shell) {
		t.Helper()
		n := s.open()
		defer n.Close()
		change(t, n)
	}
}

// oldServer is a NATS server that says that it is old, and does nothing else.
func oldServer(t *testing.T, s *shell) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(conn, "INFO {\"server_id\":\"old\",\"version\":\"2.11.3\",\"max_payload\":1048576,\"proto\":1}\r\n")
			go func() {
				defer conn.Close()
				for lines := bufio.NewScanner(conn); lines.Scan(); {
					if lines.Text() == "PING" {
						fmt.Fprint(conn, "PONG\r\n")
					}
				}
			}()
		}
	}()
	s.env["NATS_URL"] = "nats://" + l.Addr().String()
}

// natsAccounts are accounts of one server, each with what is wrong in its name.
const natsAccounts = `accounts {
	SOUND { jetstream: enabled, users: [{user: sound, password: p}] }
	NONE { users: [{user: none, password: p}] }
	FEW { jetstream: { max_streams: 2 }, users: [{user: few, password: p}] }
	SMALL { jetstream: { max_file: 60MB, max_mem: 1MB }, users: [{user: small, password: p}] }
	LOCKED { jetstream: enabled, users: [
		{user: halfway, password: p, permissions: { publish: { deny: ["$KV.groupferry-control.import.*", "groupferry.results.>"] } } }
		{user: maker, password: p}
		{user: leaseless, password: p, permissions: { publish: { deny: ["$KV.groupferry-lease.*"] } } }
	] }
}
`

// natsWith starts a server whose configuration begins so.
func natsWith(t *testing.T, config string) *natsProcess {
	t.Helper()
	n := &natsProcess{dir: t.TempDir(), include: "more.conf"}
	if err := os.WriteFile(filepath.Join(n.dir, n.include), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return startAlone(t, n)
}

// TestDoctorFindsFaults plants one fault at a time: doctor says what and what to do, and exits 1; or 0 where it can work so.
func TestDoctorFindsFaults(t *testing.T) {
	t.Parallel()
	nats := natsWith(t, natsAccounts)
	small := natsWith(t, "max_payload: 64KB\n")
	as := func(user string) func(*testing.T, *shell) { return set("NATS_URL", "nats://"+user+":p@"+nats.client) }
	key := "GROUPFERRY_SECRET_KEY"
	all := func(kind string) chatsim.Config { return chatsim.Config{Faults: []chatsim.Fault{{Kind: kind}}} }
	for _, p := range []planted{
		{name: "no settings", plant: func(_ *testing.T, s *shell) { s.env = map[string]string{"GROUPFERRY_DATA_DIR": s.dir} },
			finding: "settings", what: "--region or --api-url is required (or --simulate with 'run'); --sdk-app-id is required; no credentials", remedy: "each is a flag", code: exitFailed},
		{name: "two settings", plant: set("GROUPFERRY_REGION", "tokyo"), finding: "settings", what: "GROUPFERRY_API_URL and GROUPFERRY_REGION: one of them", remedy: "doctor --help", code: exitFailed},
		{name: "queue settings", args: []string{"--namespace", "a.b"}, finding: "settings", what: `--namespace: "a.b"`, remedy: "doctor --help", code: exitFailed},

		{name: "key of others", plant: set(key, "another-key"), finding: "credentials", what: "70009", remedy: key, code: exitFailed},
		{name: "another admin", args: []string{"--admin", "someone"}, finding: "credentials", what: "50003", remedy: "(--admin, ", code: exitFailed},
		{name: "another app", args: []string{"--sdk-app-id", "1400000001"}, finding: "credentials", what: "60006", remedy: "(--sdk-app-id, ", code: exitFailed},
		{name: "edition", sim: chatsim.Config{Edition: chatsim.Standard}, finding: "credentials", what: "51013", remedy: "upgrade the app", code: exitFailed},
		{name: "region", sim: all("70020"), finding: "credentials", what: "70020", remedy: "the region is the one the app was made in (GROUPFERRY_SDK_APP_ID, --region or GROUPFERRY_API_URL)", code: exitFailed},
		{name: "allow list", sim: all("60021"), finding: "credentials", what: "60021", remedy: "put this host's address on the app's allow-list", code: exitFailed},
		{name: "disabled", sim: chatsim.Config{Disabled: true}, finding: "credentials", what: "60016", remedy: "enable the app", code: exitFailed},
		{name: "plan", sim: all("60020"), finding: "credentials", what: "60020", remedy: "renew the plan", code: exitFailed},
		{name: "proxy", sim: all("http-403"), finding: "credentials", what: "HTTP status 403", remedy: "proxy or firewall", code: exitFailed},
		{name: "old UserSig", plant: func(_ *testing.T, s *shell) {
			delete(s.env, key)
			s.env["GROUPFERRY_USERSIG"] = chat.SignUserSig(testKey, chatsim.DemoSDKAppID, chat.DefaultAdmin, time.Now().Add(-48*time.Hour), 24*time.Hour).Reveal()
		}, finding: "clock", what: "the UserSig has ended at ", remedy: "get a new UserSig", code: exitFailed},
		{name: "UserSig that ends", plant: func(_ *testing.T, s *shell) {
			delete(s.env, key)
			s.env["GROUPFERRY_USERSIG"] = chat.SignUserSig(testKey, chatsim.DemoSDKAppID, chat.DefaultAdmin, time.Now(), time.Hour).Reveal()
		}, finding: "clock", what: "the UserSig ends at ", remedy: "get a new UserSig"},
		{name: "clock", plant: datedAPI(26 * time.Hour), finding: "clock", what: "26h0m0s behind that of the API", remedy: "set this host's clock", code: exitFailed},
		{name: "expired by the clock", sim: all("70001"), plant: datedAPI(-5 * time.Minute), finding: "clock", what: "5m0s ahead of that of the API", remedy: "set this host's clock", code: exitFailed},
		{name: "clock, a little", plant: datedAPI(3 * time.Hour), finding: "clock", what: "3h0m0s behind that of the API", remedy: "set this host's clock"},
		{name: "clock, ahead", plant: datedAPI(-90 * time.Hour), finding: "clock", what: "90h0m0s ahead of that of the API", remedy: "set this host's clock"},

		{name: "DNS", plant: set("GROUPFERRY_API_URL", "http://nowhere.invalid"), finding: "API", what: "DNS: ", remedy: "check --region or GROUPFERRY_API_URL, and the name server", code: exitFailed},
		{name: "TCP", plant: set("GROUPFERRY_API_URL", "http://127.0.0.1:1"), finding: "API", what: "TCP: ", remedy: "firewall", code: exitFailed},
		{name: "TLS", plant: func(_ *testing.T, s *shell) {
			s.env["GROUPFERRY_API_URL"] = strings.Replace(s.env["GROUPFERRY_API_URL"], "http:", "https:", 1)
		}, finding: "API", what: "TLS: ", remedy: "SSL_CERT_FILE", code: exitFailed},

		{name: "no update", sim: chatsim.Config{NoUpdate: true, NotOfferedCode: chat.CodeNotOffered}, finding: "update_contact_group", what: "not offered (60009)", remedy: "What a group holds stays"},
		{name: "no update, 404", sim: chatsim.Config{NoUpdate: true}, finding: "update_contact_group", what: "not offered (http-404)", remedy: "What a group holds stays"},
		{name: "no del", sim: chatsim.Config{NoDelete: true, NotOfferedCode: chat.CodeNotOffered}, finding: "del_contact_group", what: "not offered (60009)", remedy: "What a group holds stays"},
		{name: "create only", sim: chatsim.Config{NoUpdate: true, NoGet: true, NotOfferedCode: chat.CodeNotOffered}, finding: "update_contact_group",
			what: "neither is get_contact_group", remedy: "--accept-replace writes all the same", code: exitFailed},
		{name: "create only, accepted", sim: chatsim.Config{NoUpdate: true, NoGet: true, NotOfferedCode: chat.CodeNotOffered}, args: []string{"--accept-replace"},
			finding: "get_contact_group", what: "not offered (60009)", remedy: "ask the vendor"},
		{name: "slow", sim: chatsim.Config{Latency: 60 * time.Millisecond}, args: []string{"--concurrency", "8", "--rate", "200"},
			finding: "round trip", what: "--concurrency 8 is not enough", remedy: "--concurrency "},
		{name: "slower", sim: chatsim.Config{Latency: 300 * time.Millisecond}, args: []string{"--rate", "200", "--concurrency", "5000"},
			finding: "round trip", what: "a permit rests for a second after its call", remedy: "nearer to the API"},

		{name: "key file is not there", plant: func(t *testing.T, s *shell) {
			delete(s.env, key)
			s.env["GROUPFERRY_SECRET_KEY_FILE"] = filepath.Join(t.TempDir(), "missing")
		}, finding: "key file", what: "no such file", remedy: "GROUPFERRY_SECRET_KEY_FILE", code: exitFailed},
		{name: "key file for all", plant: keyFile(0o644, testKey), finding: "key file", what: "mode 0644: all users of this host may read it", remedy: "chmod 600 ", code: exitFailed},
		{name: "key file for a group", plant: keyFile(0o640, testKey), finding: "key file", what: "mode 0640: its group may read it", remedy: "chmod 600 "},
		{name: "empty key file", plant: keyFile(0o600, "\n"), finding: "settings", what: "is empty", remedy: "doctor --help", code: exitFailed},
		{name: "two lines in the key file", plant: keyFile(0o600, "a\nb\n"), finding: "settings", what: "GROUPFERRY_SECRET_KEY_FILE: holds white space", remedy: "doctor --help", code: exitFailed},
		{name: "byte order mark", plant: keyFile(0o600, "\xef\xbb\xbf"+testKey), finding: "key file", what: "byte order mark", remedy: "plain text", code: exitFailed},
		{name: "spool directory", args: []string{"--spool-dir", "/missing/dir"}, finding: "spool directory", what: "cannot be written to: no such file", remedy: "--spool-dir", code: exitFailed},
		{name: "data directory", plant: func(t *testing.T, s *shell) {
			file := filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			s.env["GROUPFERRY_DATA_DIR"] = filepath.Join(file, "data")
		}, finding: "data directory", what: "cannot be written to: not a directory", remedy: "GROUPFERRY_DATA_DIR", code: exitFailed},
		{name: "data directory for all", plant: func(t *testing.T, s *shell) {
			if err := os.Mkdir(s.dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}, finding: "data directory", what: "mode 0755: others may read ids of people", remedy: "chmod 700 "},

		{name: "no NATS", plant: set("NATS_URL", "nats://127.0.0.1:1"), finding: "NATS", what: "NATS is out of reach", remedy: "check NATS_URL", code: exitFailed},
		{name: "old NATS", plant: oldServer, finding: "NATS", what: "nats-server 2.11.3 is too old", remedy: "install nats-server 2.12 or newer", code: exitFailed},
		{name: "no JetStream", plant: as("none"), finding: "NATS", what: "JetStream is not enabled", remedy: "enable JetStream", code: exitFailed},
		{name: "another password", plant: as("nobody"), finding: "NATS", what: `refuses user "nobody"`, remedy: "NATS_CREDS", code: exitFailed},
		{name: "small messages", plant: set("NATS_URL", "nats://"+small.client), finding: "NATS limits", what: "max_payload 64 KiB", remedy: "max_payload: 1MB", code: exitFailed},
		{name: "small storage", plant: as("small"), finding: "NATS limits", what: "MiB left", remedy: "max_file", code: exitFailed},
		{name: "few streams", plant: as("few"), finding: "streams", what: "maximum number of streams", remedy: "allow the account more streams", code: exitFailed},
		{name: "copies", plant: as("sound"), args: []string{"--replicas", "3", "--namespace", "copies"}, finding: "streams", what: "replicas", remedy: "cluster of 3", code: exitFailed},
		{name: "may not write", plant: as("halfway"), finding: "NATS user", what: "may neither import nor work: import (denied: $KV.groupferry-control.import.groupferry-doctor)",
			remedy: "deploy/nats/groupferry.conf", code: exitFailed},
		{name: "may not lead", plant: as("leaseless"), finding: "NATS user", what: "not work (denied: $KV.groupferry-lease.leader)", remedy: "deploy/nats/groupferry.conf"},

		{name: "namespace of another app", plant: inNamespace(func(t *testing.T, n *app.Namespace) {
			if err := n.ClaimApp(t.Context(), queue.App{SDKAppID: 7}); err != nil {
				t.Fatal(err)
			}
		}), finding: "namespace", what: "belongs to another app (SDKAppID 7, not SDKAppID 1400000000)", remedy: "name another --namespace", code: exitFailed},
		{name: "halted", plant: inNamespace(func(t *testing.T, n *app.Namespace) {
			h := queue.Halt{State: queue.Halted, Reason: "60016 the app is disabled", Remedy: "enable the app", Command: "groupferry resume", By: "host"}
			if err := n.SetHalt(t.Context(), h); err != nil {
				t.Fatal(err)
			}
		}), finding: "halt", what: "60016 the app is disabled (by host since ", remedy: "enable the app, then call 'groupferry resume'", code: exitFailed},
		{name: "paused", plant: inNamespace(func(t *testing.T, n *app.Namespace) {
			if _, err := n.Pause(t.Context(), "host", "groupferry resume"); err != nil {
				t.Fatal(err)
			}
		}), finding: "halt", what: "paused by hand on host", remedy: "groupferry resume --data-dir ", code: exitFailed},
		{name: "rate", plant: inNamespace(func(t *testing.T, n *app.Namespace) {
			if err := n.SetRate(t.Context(), 50); err != nil {
				t.Fatal(err)
			}
		}), finding: "rate", what: "50 calls a second are set", remedy: "groupferry rate 0 --data-dir "},
		{name: "an import that is not over", plant: func(t *testing.T, s *shell) {
			s.run(exitDone, "import", "--import-id", "begun", writeRows(t, makeRows(3, 2, 1)))
		}, finding: "imports", what: "not over: begun (running, 2 jobs left)", remedy: "groupferry cancel IMPORT --data-dir "},
		{name: "a leader in another namespace", plant: func(t *testing.T, s *shell) {
			s.run(exitDone, "run", "--namespace", "other", writeRows(t, makeRows(3, 2)))
			work := s.start("work", "--namespace", "other", "--listen", "off")
			t.Cleanup(func() {
				work.signals <- os.Interrupt
				work.wait(exitDone)
			})
			await(t, "a leader", func() bool { return strings.Contains(work.stderr.String(), "leading") })
		}, finding: "namespaces", what: " leads in namespace other, and makes calls for the same app", remedy: "--namespace", code: exitFailed},
	} {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			_, api := startSim(t, p.sim)
			s := newShell(t, api)
			if p.plant != nil {
				p.plant(t, s)
			}
			c := s.run(p.code, append([]string{"doctor", "--spool-dir", t.TempDir()}, p.args...)...)
			mark := "warning"
			if p.code != exitDone {
				mark = "FAILED"
			}
			want := regexp.MustCompile(fmt.Sprintf(`(?m)^%-8s %-16s .*%s.*\n {26}remedy: .*%s`, mark, regexp.QuoteMeta(p.finding), regexp.QuoteMeta(p.what), regexp.QuoteMeta(p.remedy)))
			if !want.MatchString(c.stdout.String()) {
				t.Errorf("got\n%s\n%s\nwant %s", &c.stdout, &c.stderr, want)
			}
			if strings.Contains(c.stderr.String(), "error: ") {
				t.Errorf("got %s on standard error: all is said already", &c.stderr)
			}
		})
	}
}

// TestDoctorTries has users of [rolesFile] call doctor: it finds out what they may do, changes nothing, and is denied nothing
// that counts. What was begun before is done after it.
func TestDoctorTries(t *testing.T) {
	t.Parallel()
	r := startRoleServer(t, rolesFile)
	r.first()
	rows := makeRows(79, 3, 2)
	r.does("importer", exitDone, "import", "--import-id", "begun", writeRows(t, rows))
	for _, test := range []struct {
		role, want string
		code       int
	}{
		{"operator", "ok       NATS user        may do all: import, import --sync, work, export and verify, pause and rate, doctor --try-account", exitDone},
		{"importer", "warning  NATS user        may import; not ", exitDone},
		{"nightly", "warning  NATS user        may import, import --sync; not ", exitDone},
		{"worker", "warning  NATS user        may work; not ", exitDone},
		{"reader", "FAILED   NATS user        may neither import nor work: ", exitFailed},
	} {
		c := r.as(t, test.role).run(test.code, "doctor")
		if !strings.Contains(c.stdout.String(), test.want) {
			t.Errorf("%s: got %s\n%s\nwant %s", test.role, &c.stdout, &c.stderr, test.want)
		}
	}
	r.denied() // what was tried
	c := r.as(t, "operator").run(exitDone, "doctor", "--try-account", "nobody", "--output", "json")
	if denied := r.denied(); len(denied) != 1 || !strings.Contains(denied[0], "$JS.API.STREAM.NAMES") { // of other namespaces
		t.Errorf("operator: denied %q", denied)
	}
	var report app.DoctorReport
	if err := json.Unmarshal([]byte(c.stdout.String()), &report); err != nil || report.Trial == nil || !report.Trial.Kept || !report.Healthy {
		t.Errorf("got %s, %v", &c.stdout, err)
	}
	r.does("worker", exitDone, "work", "--drain", "--listen", "off")
	checkState(t, r.sim, stateOf(append(makeRows(70, 2), rows...)))
}

// Ctrl-C lets the call under way end, and deletes what the trial wrote; a second one leaves at once.
func TestDoctorInterrupted(t *testing.T) {
	t.Parallel()
	for _, signals := range []int{1, 2} {
		t.Run(strconv.Itoa(signals), func(t *testing.T) {
			t.Parallel()
			sim, api := startSim(t, chatsim.Config{Latency: 50 * time.Millisecond})
			s := newShell(t, api)
			c := s.start("doctor", "--try-account", "nobody")
			await(t, "a group of the trial", func() bool { return sim.Ledger().Added > 0 })
			for range signals {
				c.signals <- os.Interrupt
			}
			c.wait(exitInterrupted).wantErr("groupferry: interrupted; to continue: groupferry doctor --try-account nobody\n")
			if signals == 1 {
				checkState(t, sim, state{})
				if strings.Contains(c.stdout.String(), "FAILED") {
					t.Errorf("got %s", &c.stdout)
				}
			}
			n := s.open()
			defer n.Close()
			if left, _, err := n.Trial(t.Context()); (left == nil) != (signals == 1) || err != nil {
				t.Errorf("got the record %s, %v", left, err)
			}
		})
	}
}

// On a terminal a finding is broken between words, so that the next line is below it.
func TestFindingText(t *testing.T) {
	f := app.Finding{Name: "key file", Result: app.Failed, What: "key: mode 0644: all users of this host may read it", Remedy: "chmod 600 key"}
	const wide = "FAILED   key file         key: mode 0644: all users of this host may read it\n" +
		"                          remedy: chmod 600 key\n"
	const narrow = "FAILED   key file         key: mode 0644: all users of this\n" +
		"                          host may read it\n" +
		"                          remedy: chmod 600 key\n"
	for width, want := range map[int]string{0: wide, 80: wide, 60: narrow} {
		if got := findingText(f, look{width: width}); got != want {
			t.Errorf("in %d columns: got\n%s\nwant\n%s", width, got, want)
		}
		if got := findingText(f, look{width: width, color: true}); got != "\x1b[31mFAILED\x1b[0m"+strings.TrimPrefix(want, "FAILED") {
			t.Errorf("in %d columns, with colors: got %q", width, got)
		}
	}
}

// A trial that is killed, at any call or between any two writes to NATS, leaves nothing once doctor is called again.
func TestTrialKilled(t *testing.T) {
	longtest.Only(t)
	t.Parallel()
	program := withFailpoints(t)
	points := []string{"trial-recorded", "trial-known", "trial-clean", "trial-end"}
	for n := 1; n <= 40; n++ {
		points = append(points, "trial-call:"+strconv.Itoa(n), "grant:"+strconv.Itoa(n))
	}
	killed := make(chan string, len(points))
	t.Run("kills", func(t *testing.T) {
		for i, point := range points {
			t.Run(point, func(t *testing.T) {
				t.Parallel()
				cfg := chatsim.Config{
					Existing: []chatsim.Existing{chatsim.Append, chatsim.Replace, chatsim.Refuse}[i%3], Names: []chatsim.Names{chatsim.Exact, chatsim.Fold}[i/3%2],
				}
				sim, api := startSim(t, cfg)
				s := newShell(t, api)
				s.program = program
				s.env["GROUPFERRY_FAILPOINT"] = point
				doctor := s.spawn("doctor", "--try-account", "nobody")
				if code := doctor.wait(); code == exitDone {
					return
				} else if code != -1 {
					t.Fatalf("got exit code %d, want it killed\n%s\n%s", code, &doctor.stdout, &doctor.stderr)
				}
				killed <- point
				delete(s.env, "GROUPFERRY_FAILPOINT")
				next := s.spawn("doctor", "--try-account", "somebody-else", "--output", "json")
				code := next.wait()
				var report app.DoctorReport
				err := json.Unmarshal([]byte(next.stdout.String()), &report)
				names := map[chatsim.Names]string{chatsim.Exact: "exact", chatsim.Fold: "folded"}[cfg.Names]
				if code != exitDone || err != nil || report.Trial == nil || string(report.Trial.Create) != string(cfg.Existing) || string(report.Trial.Names) != names {
					t.Errorf("got exit code %d, %v, want %s and %s\n%s\n%s", code, err, cfg.Existing, names, &next.stdout, &next.stderr)
				}
				checkState(t, sim, state{})
				n := s.open()
				defer n.Close()
				if left, _, err := n.Trial(t.Context()); left != nil || err != nil {
					t.Errorf("got the record %s, %v; want none", left, err)
				}
				if known, err := n.KnownAPI(t.Context()); err != nil || !strings.Contains(string(known), `"create":"`+string(cfg.Existing)+`"`) {
					t.Errorf("workers know %s, %v; want %s", known, err, cfg.Existing)
				}
			})
		}
	})
	if n := len(killed); n < 45 || n == len(points) {
		t.Errorf("got %d kills of %d, want one at each call of a trial, and more rounds than calls", n, len(points))
	}
}
