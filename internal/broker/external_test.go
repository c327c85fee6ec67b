package broker

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
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
	return strings.Replace(s.ClientURL(), "://", "://someone:"+password+"@", 1)
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
	write(t, file, content)
	c := open(t, Config{Context: file})
	ensure(t, c, "s")
	publish(t, c, "s.a", "x")
	for name, content := range map[string]string{
		"bad.json": `{"url":"nats://u:` + password + `@host:port"}`, "none.json": "", "no.json": "no JSON",
		"creds.json": fmt.Sprintf(`{"url":%q,"creds":"/missing/creds"}`, s.ClientURL()),
	} {
		file := filepath.Join(t.TempDir(), name)
		if content != "" {
			write(t, file, content)
		}
		_, err := Open(t.Context(), Config{Context: file})
		wrong, ok := errors.AsType[*ConfigError](err)
		if !ok || wrong.Field != "Context" || strings.Contains(err.Error(), password) {
			t.Errorf("%s: got %v, want an error about the context without the password", name, err)
		}
	}
}

// TestRefused has a server refuse each kind of login: the error says whose it is, and holds nothing of it.
func TestRefused(t *testing.T) {
	s := startServer(t, server.Options{JetStream: true, Username: "someone", Password: "other"})
	dir := t.TempDir()
	key, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := key.Seed()
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	claims := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"name":"night","sub":%q}`, public))
	creds := filepath.Join(dir, "night.creds")
	write(t, creds, "-----BEGIN NATS USER JWT-----\ne30."+claims+".c2ln\n------END NATS USER JWT------\n\n"+
		"-----BEGIN USER NKEY SEED-----\n"+string(seed)+"\n------END USER NKEY SEED------\n")
	named := filepath.Join(dir, "c.json")
	write(t, named, fmt.Sprintf(`{"url":%q,"user":"someone","password":%q}`, s.ClientURL(), password))
	for _, test := range []struct {
		cfg  Config
		want string
	}{
		{Config{URL: withPassword(s)}, `user "someone"`},
		{Config{URL: strings.Replace(s.ClientURL(), "nats://", "nats://"+password+"@", 1)}, "the token in the URL"},
		{Config{URL: s.ClientURL()}, "a client without user and token"},
		{Config{URL: s.ClientURL(), Creds: creds}, `user "night" (` + public + ") of the credentials file " + creds},
		{Config{Context: named}, "the user of NATS context " + named},
	} {
		_, err := Open(t.Context(), test.cfg)
		refused, ok := errors.AsType[*AuthError](err)
		if !ok || errors.Is(err, ErrUnreachable) || refused.User != test.want || !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("got %v, want one about %s", err, test.want)
			continue
		}
		for _, secret := range []string{password, claims, string(seed)} {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("got %v, which holds a secret", err)
			}
		}
	}
}

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
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
		!strings.Contains(err.Error(), "stream s is not there yet, and this user may not make it") ||
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

// TestLogins opens a connection with each kind of login that a client can have, and TLS: each has to let it in, and each
// server turns away who comes without.
func TestLogins(t *testing.T) {
	dir := t.TempDir()
	inContext := func(name string, settings map[string]string) Config {
		b, err := json.Marshal(settings)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, name+".json")
		write(t, file, string(b))
		return Config{Context: file}
	}
	user, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, seed := keysOf(t, user)
	keyFile := filepath.Join(dir, "user.nk")
	write(t, keyFile, seed)
	withNkey := startServer(t, server.Options{JetStream: true, Nkeys: []*server.NkeyUser{{Nkey: public}}})

	withJWT, creds := startJWTServer(t)
	credsFile := filepath.Join(dir, "night.creds")
	write(t, credsFile, creds)

	certs := makeCerts(t, dir)
	encrypted := startServer(t, server.Options{
		JetStream: true, Username: "someone", Password: password, TLSConfig: &tls.Config{Certificates: []tls.Certificate{certs.server}},
	})
	mutual := startServer(t, server.Options{
		JetStream: true, TLSVerify: true, TLSConfig: &tls.Config{
			Certificates: []tls.Certificate{certs.server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: certs.pool,
		},
	})
	for name, test := range map[string]struct {
		in, out Config
		refused func(error) bool
	}{
		"nkey": {
			inContext("nkey", map[string]string{"url": withNkey.ClientURL(), "nkey": keyFile}),
			Config{URL: withNkey.ClientURL()}, isAuthError,
		},
		"creds":            {Config{URL: withJWT.ClientURL(), Creds: credsFile}, Config{URL: withJWT.ClientURL()}, isAuthError},
		"creds in context": {inContext("creds", map[string]string{"url": withJWT.ClientURL(), "creds": credsFile}), Config{URL: withJWT.ClientURL()}, isAuthError},
		"TLS": {
			inContext("tls", map[string]string{"url": encrypted.ClientURL(), "user": "someone", "password": password, "ca": certs.caFile}),
			Config{URL: withPassword(encrypted)}, isUntrusted,
		},
		"client certificate": {
			inContext("mutual", map[string]string{
				"url": mutual.ClientURL(), "ca": certs.caFile, "cert": certs.clientFile, "key": certs.clientKeyFile,
			}),
			inContext("one-sided", map[string]string{"url": mutual.ClientURL(), "ca": certs.caFile}),
			func(err error) bool { return err != nil },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := open(t, test.in)
			ensure(t, c, "s")
			publish(t, c, "s.a", "x")
			_, err := Open(t.Context(), test.out)
			if !test.refused(err) {
				t.Errorf("without: got %v", err)
			}
		})
	}
}

func isAuthError(err error) bool {
	_, ok := errors.AsType[*AuthError](err)
	return ok
}

func isUntrusted(err error) bool {
	_, config := errors.AsType[*ConfigError](err)
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	return config && unknown && !strings.Contains(err.Error(), password)
}

// The certificate of a server with a tls URL can come from an authority that SSL_CERT_FILE names. The file is read once by
// a process, so another one makes the connection.
func TestSystemRoots(t *testing.T) {
	const env = "GROUPFERRY_TEST_TLS_URL"
	if url := os.Getenv(env); url != "" {
		c := open(t, Config{URL: url})
		ensure(t, c, "s")
		publish(t, c, "s.a", "x")
		return
	}
	if runtime.GOOS != "linux" {
		t.Skip("Go reads SSL_CERT_FILE on some systems only")
	}
	dir := t.TempDir()
	certs := makeCerts(t, dir)
	s := startServer(t, server.Options{
		JetStream: true, Username: "someone", Password: password, TLSConfig: &tls.Config{Certificates: []tls.Certificate{certs.server}},
	})
	for file, want := range map[string]bool{certs.caFile: true, certs.clientFile: false} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestSystemRoots$", "-test.v")
		cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+file, "SSL_CERT_DIR="+dir+"/none", env+"="+withPassword(s))
		out, err := cmd.CombinedOutput()
		if trusts := err == nil; trusts != want {
			t.Errorf("SSL_CERT_FILE=%s: got %v, want trust %t\n%s", file, err, want, out)
		}
		if !want && !strings.Contains(string(out), "SSL_CERT_FILE") {
			t.Errorf("got no remedy:\n%s", out)
		}
	}
}

func keysOf(t *testing.T, k nkeys.KeyPair) (public, seed string) {
	t.Helper()
	public, err := k.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	b, err := k.Seed()
	if err != nil {
		t.Fatal(err)
	}
	return public, string(b)
}

// startJWTServer runs a server that knows its users by JWTs, and returns the credentials of one.
func startJWTServer(t *testing.T) (s *server.Server, creds string) {
	t.Helper()
	must := func(k nkeys.KeyPair, err error) nkeys.KeyPair {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	encoded := func(token string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	operator, system, account, user := must(nkeys.CreateOperator()), must(nkeys.CreateAccount()), must(nkeys.CreateAccount()), must(nkeys.CreateUser())
	operatorKey, _ := keysOf(t, operator)
	systemKey, _ := keysOf(t, system)
	accountKey, _ := keysOf(t, account)
	userKey, seed := keysOf(t, user)

	trusted, err := jwt.DecodeOperatorClaims(encoded(jwt.NewOperatorClaims(operatorKey).Encode(operator)))
	if err != nil {
		t.Fatal(err)
	}
	claims := jwt.NewAccountClaims(accountKey)
	claims.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: jwt.NoLimit, DiskStorage: jwt.NoLimit, Streams: jwt.NoLimit, Consumer: jwt.NoLimit}
	accounts := &server.MemAccResolver{}
	for key, token := range map[string]string{
		systemKey: encoded(jwt.NewAccountClaims(systemKey).Encode(operator)), accountKey: encoded(claims.Encode(operator)),
	} {
		if err := accounts.Store(key, token); err != nil {
			t.Fatal(err)
		}
	}
	b, err := jwt.FormatUserConfig(encoded(jwt.NewUserClaims(userKey).Encode(account)), []byte(seed))
	if err != nil {
		t.Fatal(err)
	}
	return startServer(t, server.Options{
		JetStream: true, TrustedOperators: []*jwt.OperatorClaims{trusted}, SystemAccount: systemKey, AccountResolver: accounts,
	}), string(b)
}

// A certs is an authority that nobody trusts, and what it signed.
type certs struct {
	caFile, clientFile, clientKeyFile string
	pool                              *x509.CertPool
	server                            tls.Certificate
}

func makeCerts(t *testing.T, dir string) certs {
	t.Helper()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(name string, c *x509.Certificate, key *ecdsa.PrivateKey) (certFile, keyFile string) {
		t.Helper()
		der, err := x509.CreateCertificate(rand.Reader, c, ca, key.Public(), caKey)
		if err != nil {
			t.Fatal(err)
		}
		keyDER, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		certFile, keyFile = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
		write(t, certFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
		write(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
		return certFile, keyFile
	}
	leaf := func(name string, serial int64, usage x509.ExtKeyUsage) (certFile, keyFile string) {
		t.Helper()
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return sign(name, &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{usage},
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		}, key)
	}
	made := certs{pool: x509.NewCertPool()}
	made.caFile, _ = sign("ca", ca, caKey)
	made.clientFile, made.clientKeyFile = leaf("client", 3, x509.ExtKeyUsageClientAuth)
	serverFile, serverKeyFile := leaf("server", 2, x509.ExtKeyUsageServerAuth)
	if made.server, err = tls.LoadX509KeyPair(serverFile, serverKeyFile); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(made.caFile)
	if err != nil || !made.pool.AppendCertsFromPEM(b) {
		t.Fatal("the certificate of the authority cannot be read", err)
	}
	return made
}
