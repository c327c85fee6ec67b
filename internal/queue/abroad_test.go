package queue

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"groupferry/internal/job"
)

// startServer runs a server that is not ours.
func startServer(t *testing.T, opts server.Options) *server.Server {
	t.Helper()
	opts.Host, opts.Port, opts.NoSigs, opts.NoLog = "127.0.0.1", server.RANDOM_PORT, true, true
	if opts.JetStream {
		opts.StoreDir = t.TempDir()
	}
	s, err := server.NewServer(&opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server is not ready")
	}
	return s
}

const password = "pass-word-1"

func withPassword(s *server.Server) string {
	return strings.Replace(s.ClientURL(), "nats://", "nats://someone:"+password+"@", 1)
}

func TestExistingServer(t *testing.T) {
	s := startServer(t, server.Options{JetStream: true, Username: "someone", Password: password})
	var log lockedBuffer
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	q := open(t, Config{URL: withPassword(s), Log: logger})
	if q.Embedded() {
		t.Error("it says that it is embedded")
	}
	if got, want := q.Where(), s.ClientURL(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	enqueued(t, q, "i", 20)
	drain(t, q, "i", 20)
	fmt.Fprintf(&log, "%v %+v %#v %v %+v %#v %d", q, q, q, q.cfg, q.cfg, q.cfg, q.cfg)

	url := withPassword(s)
	s.Shutdown()
	s.WaitForShutdown()
	_, err := q.Import(t.Context(), "i")
	if !errors.Is(err, ErrUnreachable) {
		t.Errorf("server gone: got %v, want %v", err, ErrUnreachable)
	}
	fmt.Fprintln(&log, err)
	_, err = Open(t.Context(), Config{URL: url})
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), q.Where()) {
		t.Errorf("open: got %v, want %v and the address", err, ErrUnreachable)
	}
	fmt.Fprintln(&log, err)
	if strings.Contains(log.String(), password) {
		t.Errorf("the password is in what was logged and said: %s", log.String())
	}
}

func TestNATSContext(t *testing.T) {
	s := startServer(t, server.Options{JetStream: true, Username: "someone", Password: password})
	file := filepath.Join(t.TempDir(), "c.json")
	content := fmt.Sprintf(`{"url":%q,"user":"someone","password":%q}`, s.ClientURL(), password)
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	q := open(t, Config{Context: file})
	enqueued(t, q, "i", 20)
	drain(t, q, "i", 20)
	for name, content := range map[string]string{
		"bad.json": `{"url":"nats://u:` + password + `@host:port"}`, "none.json": "",
	} {
		file := filepath.Join(t.TempDir(), name)
		if content != "" {
			if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Open(t.Context(), Config{Context: file}); err == nil || strings.Contains(err.Error(), password) {
			t.Errorf("%s: got %v, want an error without the password", name, err)
		}
	}
}

func TestWrongPassword(t *testing.T) {
	s := startServer(t, server.Options{JetStream: true, Username: "someone", Password: "other"})
	_, err := Open(t.Context(), Config{URL: withPassword(s)})
	if err == nil || errors.Is(err, ErrUnreachable) || strings.Contains(err.Error(), password) {
		t.Errorf("got %v, want an error that is no matter of reach and has no password", err)
	}
}

func TestServerWithoutJetStream(t *testing.T) {
	s := startServer(t, server.Options{})
	if _, err := Open(t.Context(), Config{URL: s.ClientURL()}); !errors.Is(err, ErrNoJetStream) {
		t.Errorf("got %v, want %v", err, ErrNoJetStream)
	}
}

// TestOldServer meets one that says so and does nothing else.
func TestOldServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "INFO {\"server_id\":\"old\",\"version\":\"2.11.3\",\"max_payload\":1048576,\"proto\":1}\r\n")
		for lines := bufio.NewScanner(conn); lines.Scan(); {
			if lines.Text() == "PING" {
				fmt.Fprint(conn, "PONG\r\n")
			}
		}
	}()
	_, err = Open(t.Context(), Config{URL: "nats://" + l.Addr().String()})
	const want = "nats-server 2.11.3 is too old: 2.12 or newer is needed"
	if !errors.Is(err, ErrTooOld) || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
	l.Close()
	<-done
}

func TestTooOld(t *testing.T) {
	for version, want := range map[string]bool{
		"2.11.99": true, "1.4.1": true, "2.12.0": false, "2.12.0-RC.1": false, "2.15.2": false, "3.0.0": false, "": false,
	} {
		if got := tooOld(version); got != want {
			t.Errorf("%s: got %t, want %t", version, got, want)
		}
	}
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"nats://host:4222":                 "nats://host:4222",
		"host":                             "nats://host",
		"tls://user:pass-word-1@host:4222": "tls://host:4222",
		"nats://pass-word-1@a:1, nats://b:2?x=pw": "nats://a:1,nats://b:2",
		"nats://user:pass-word-1/@host":           "",
		"nats://user:pass-word-1@":                "",
		"":                                        "",
	} {
		got, err := redact(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: got %q, %v; want %q", in, got, err, want)
		}
		if err != nil && strings.Contains(err.Error(), password) {
			t.Errorf("%s: the password is in %v", in, err)
		}
	}
}

func TestNamespaces(t *testing.T) {
	dir := t.TempDir()
	a, b := open(t, Config{DataDir: dir, Namespace: "a"}), open(t, Config{DataDir: dir, Namespace: "a-b"})
	enqueued(t, a, "i", 5)
	put(t, a, testResult("i", 0, 1, 0), 0)
	if err := a.SetHalt(t.Context(), Halt{State: Paused}); err != nil {
		t.Fatal(err)
	}
	if all, err := b.Imports(t.Context()); len(all) != 0 || err != nil {
		t.Errorf("got imports %v, %v; want none", all, err)
	}
	if h, err := b.Halted(t.Context()); h != nil || err != nil {
		t.Errorf("got halt %v, %v; want none", h, err)
	}
	if ids := results(t, b, "i"); len(ids) != 0 {
		t.Errorf("got results %v, want none", ids)
	}
	enqueued(t, b, "i", 7)
	checkStream(t, a, "i", 5)
	for _, name := range []string{"a.b", "a b", "é", "*", strings.Repeat("x", 33)} {
		if _, err := Open(t.Context(), Config{DataDir: dir, Namespace: name}); err == nil {
			t.Errorf("namespace %q: got no error", name)
		}
	}
}

func TestTopologyThatIsNotOurs(t *testing.T) {
	dir := t.TempDir()
	q := open(t, Config{DataDir: dir})
	tests := []struct {
		name   string
		stream string
		change func(*jetstream.StreamConfig)
		want   string
	}{
		{"as it is", "jobs", func(*jetstream.StreamConfig) {}, ""},
		{"a limit of its own", "jobs", func(c *jetstream.StreamConfig) { c.MaxBytes = 1 << 30 }, ""},
		{"no mark", "jobs", func(c *jetstream.StreamConfig) { c.Metadata = nil }, "not made by groupferry"},
		{"newer", "jobs", func(c *jetstream.StreamConfig) { c.Metadata[schemaKey] = "3" }, "newer groupferry"},
		{"jobs age", "jobs", func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour }, "max age is 1h0m0s"},
		{"no rollup", "jobs", func(c *jetstream.StreamConfig) { c.AllowRollup = false }, "rollup is false"},
		{"subjects", "results", func(c *jetstream.StreamConfig) { c.Subjects = []string{"x.y"} }, "subjects are"},
		{"many results", "results", func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 2 }, "per subject is 2"},
		{"newer results", "results", func(c *jetstream.StreamConfig) { c.Metadata[schemaKey] = "3" }, "newer groupferry"},
	}
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			ns := fmt.Sprintf("ns%d", i)
			open(t, Config{DataDir: dir, Namespace: ns})
			s, err := q.js.Stream(t.Context(), ns+"-"+test.stream)
			if err != nil {
				t.Fatal(err)
			}
			cfg := s.CachedInfo().Config
			test.change(&cfg)
			if _, err := q.js.UpdateStream(t.Context(), cfg); err != nil {
				t.Fatal(err)
			}
			got, err := Open(t.Context(), Config{DataDir: dir, Namespace: ns})
			if got != nil {
				defer got.Close()
			}
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if test.want == "newer groupferry" && !errors.Is(err, job.ErrVersion) {
				t.Errorf("got %v, want %v", err, job.ErrVersion)
			}
		})
	}
}

func TestTopology(t *testing.T) {
	q := open(t, Config{})
	jobs, results := q.jobs.CachedInfo().Config, q.results.CachedInfo().Config
	if jobs.Name != "groupferry-jobs" || results.Name != "groupferry-results" {
		t.Errorf("got streams %s, %s", jobs.Name, results.Name)
	}
	if jobs.Retention != jetstream.LimitsPolicy || !jobs.AllowAtomicPublish || !jobs.AllowRollup ||
		!jobs.AllowDirect || jobs.Discard != jetstream.DiscardNew || jobs.Storage != jetstream.FileStorage {
		t.Errorf("got jobs stream %+v", jobs)
	}
	if results.Retention != jetstream.LimitsPolicy || results.MaxMsgsPerSubject != 1 || !results.AllowDirect {
		t.Errorf("got results stream %+v", results)
	}
	for _, m := range []map[string]string{jobs.Metadata, results.Metadata} {
		if m[schemaKey] != "2" {
			t.Errorf("got metadata %v, want schema 2", m)
		}
	}
}

func TestConsumerName(t *testing.T) {
	names := map[string]string{}
	for _, id := range []string{"may", "May", "mAy", "MAY", "con", "a-b_c9", "-", strings.Repeat("Z", job.MaxImportID)} {
		name := consumerName(id)
		if was, ok := names[strings.ToLower(name)]; ok {
			t.Errorf("%s and %s are both %s", id, was, name)
		}
		names[strings.ToLower(name)] = id
		if got, ok := importOf(name); !ok || got != id {
			t.Errorf("%s: got %s, %t back", id, got, ok)
		}
	}
	for _, name := range []string{"jobs-", "jobs-=", "jobs-=9", "other", "jobs-a.b"} {
		if id, ok := importOf(name); ok {
			t.Errorf("%s: got import %s, want none", name, id)
		}
	}
}

// FuzzConsumerName: every import ID has a name of its own, whatever the file system makes of capitals.
func FuzzConsumerName(f *testing.F) {
	f.Add("may", "May")
	f.Add("a-b_9", "a-B_9")
	f.Fuzz(func(t *testing.T, a, b string) {
		if !job.ValidImportID(a) || !job.ValidImportID(b) {
			if id, ok := importOf(a); ok && consumerName(id) != a {
				t.Errorf("%q is read as the name of %q, which has another", a, id)
			}
			return
		}
		if got, ok := importOf(consumerName(a)); !ok || got != a {
			t.Errorf("%q: got %q, %t back", a, got, ok)
		}
		if a != b && strings.EqualFold(consumerName(a), consumerName(b)) {
			t.Errorf("%q and %q share a name", a, b)
		}
	})
}
