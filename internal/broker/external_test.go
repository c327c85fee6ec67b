package broker

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// startServer runs a server that is not ours.
func startServer(t *testing.T, opts server.Options) *server.Server {
	t.Helper()
	opts.Host, opts.NoSigs, opts.NoLog = "127.0.0.1", true, true
	if opts.Port == 0 {
		opts.Port = server.RANDOM_PORT
	}
	if opts.JetStream && opts.StoreDir == "" {
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

func TestExternalServer(t *testing.T) {
	t.Parallel() // a request waits for the server that is gone
	s := startServer(t, server.Options{JetStream: true, Username: "someone", Password: password})
	var log lockedBuffer
	ups := make(chan bool, 100)
	c := open(t, Config{URL: withPassword(s), Log: debugLog(&log), OnConnection: func(up bool, _ error) { ups <- up }})
	if c.Embedded() {
		t.Error("it says that it is embedded")
	}
	if got, want := c.Where(), s.ClientURL(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	ensure(t, c, "s")
	if seq := publish(t, c, "s.a", "x"); seq != 1 {
		t.Errorf("got sequence %d, want 1", seq)
	}
	fmt.Fprintf(&log, "%v %+v %#v %v %+v %#v %d", c, c, c, c.cfg, c.cfg, c.cfg, c.cfg)

	url := withPassword(s)
	opts := server.Options{JetStream: true, Username: "someone", Password: password, StoreDir: filepath.Dir(s.StoreDir()), Port: s.Addr().(*net.TCPAddr).Port}
	s.Shutdown()
	s.WaitForShutdown()
	_, err := c.LastMsg(t.Context(), "s", "s.a")
	if !errors.Is(err, ErrUnreachable) {
		t.Errorf("server gone: got %v, want %v", err, ErrUnreachable)
	}
	fmt.Fprintln(&log, err)
	_, err = Open(t.Context(), Config{URL: url})
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), c.Where()) {
		t.Errorf("open: got %v, want %v and the address", err, ErrUnreachable)
	}
	fmt.Fprintln(&log, err)
	if up := <-ups; up || c.Connected() {
		t.Errorf("got up %t, connected %t; want false", up, c.Connected())
	}

	startServer(t, opts)
	if up := <-ups; !up {
		t.Error("got the connection lost twice")
	}
	if m, err := c.LastMsg(t.Context(), "s", "s.a"); err != nil || string(m.Data) != "x" {
		t.Errorf("got %+v, %v; want x", m, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if len(ups) != 0 {
		t.Error("Close was reported as a loss of the connection")
	}
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
	c := open(t, Config{Context: file})
	ensure(t, c, "s")
	publish(t, c, "s.a", "x")
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

// TestDenied has an account that may ask for a stream, and not make one.
func TestDenied(t *testing.T) {
	t.Parallel() // a request that is denied gets no response
	s := startServer(t, server.Options{JetStream: true, Users: []*server.User{{
		Username: "someone", Password: password,
		Permissions: &server.Permissions{Publish: &server.SubjectPermission{
			Deny: []string{"$JS.API.STREAM.CREATE.>"},
		}},
	}}})
	var log lockedBuffer
	c := open(t, Config{URL: withPassword(s), Log: debugLog(&log)})
	_, err := c.EnsureStream(t.Context(), testStream("s"))
	if !errors.Is(err, ErrDenied) || !errors.Is(err, nats.ErrPermissionViolation) || errors.Is(err, ErrUnreachable) ||
		!strings.Contains(err.Error(), "$JS.API.STREAM.CREATE.s") || strings.Contains(err.Error(), password) {
		t.Errorf("got %v, want %v, the subject, and no password", err, ErrDenied)
	}
	if !strings.Contains(log.String(), "level=WARN") {
		t.Errorf("no warning was logged: %s", log.String())
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

// TestSilentServer meets one that accepts a connection and says nothing.
func TestSilentServer(t *testing.T) {
	t.Parallel() // it takes three seconds
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
		}
	}()
	_, err = Open(t.Context(), Config{URL: l.Addr().String()})
	if !errors.Is(err, ErrUnreachable) {
		t.Errorf("got %v, want %v", err, ErrUnreachable)
	}
	l.Close()
	<-done
}
