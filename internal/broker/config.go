package broker

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/nats-io/nkeys"

	"groupferry/internal/redact"
)

const (
	// defaultDataDir is where the embedded server keeps its data when nobody says otherwise.
	defaultDataDir = "groupferry-data"

	// defaultNamespace is the first part of all names on the server when nobody says otherwise.
	defaultNamespace = "groupferry"

	// maxNamespace keeps the names of streams and the paths below the data directory short.
	maxNamespace = 32

	// maxReplicas is JetStream's own limit.
	maxReplicas = 5
)

// Config says which server to use, and under which name. The zero value is an embedded server in ./groupferry-data.
type Config struct {
	// URL names an external server, or several of one cluster, separated by commas. It wins over Context. When both
	// are empty the server is an embedded one. It may hold a password.
	URL string `json:"-"`

	// Creds is a file with the credentials for an external server.
	Creds string

	// Context is the name, or the absolute path, of a NATS context as the nats command keeps them.
	Context string

	// DataDir is the directory of the embedded server; default groupferry-data. It is created for its owner alone.
	DataDir string

	// Namespace keeps several installations apart on one server: 1 to 32 of A–Z, a–z, 0–9, - and _; default groupferry.
	Namespace string

	// Replicas is how many servers of a cluster keep a copy, 1 to 5; default 1. It counts when a stream is made, and
	// changes none that is there.
	Replicas int

	// Name is what the server calls this client in its reports; default groupferry.
	Name string

	// Log gets what happens to the connection and to the embedded server; nil discards it.
	Log *slog.Logger

	// OnBroken, unless nil, is called when the embedded server, run by this process, can no longer write its data: once,
	// also while Open has not returned, and from any goroutine. Nothing can be written from then on.
	OnBroken func(*DiskError)

	// JoinOnly makes [Open] and [Conn.EnsureStream] fail with [ErrNoData] where there is nothing to look at, rather than
	// create it.
	JoinOnly bool

	// ReadOnly is JoinOnly for who reads the bucket control alone, and must not disturb anybody: where no embedded server
	// runs, none is started on the data directory.
	ReadOnly bool

	// CommandFlags, beginning with a blank, are what a groupferry command needs to get to the same server and namespace;
	// for texts that say what to do.
	CommandFlags string

	// OnConnection, unless nil, is called when the connection is lost (false, and why if that is known) and when it is
	// back (true): not for the first connection, and not at Close. It is called from one goroutine, and must not block.
	OnConnection func(up bool, err error)
}

func (c Config) withDefaults() (Config, error) {
	if c.DataDir == "" {
		c.DataDir = defaultDataDir
	}
	if c.Namespace == "" {
		c.Namespace = defaultNamespace
	}
	if c.Replicas == 0 {
		c.Replicas = 1
	}
	if c.Name == "" {
		c.Name = "groupferry"
	}
	c.JoinOnly = c.JoinOnly || c.ReadOnly
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, c.check()
}

// Validate finds what is wrong with the Config as far as that can be seen without a server. The error is a
// [*ConfigError].
func (c Config) Validate() error {
	_, err := c.withDefaults()
	return err
}

func (c Config) check() error {
	if !validNamespace(c.Namespace) {
		return configErrorf("Namespace", "%q: use 1 to %d of A-Z, a-z, 0-9, - and _", c.Namespace, maxNamespace)
	}
	if c.Replicas < 1 || c.Replicas > maxReplicas {
		return configErrorf("Replicas", "%d: JetStream keeps 1 to %d copies", c.Replicas, maxReplicas)
	}
	if c.embedded() {
		return nil
	}
	if c.URL != "" {
		if _, err := redact.Servers(c.URL); err != nil {
			return &ConfigError{"URL", err}
		}
	}
	if c.Creds != "" { // the library would say that no server is available
		b, err := os.ReadFile(c.Creds)
		if err != nil {
			return &ConfigError{"Creds", err}
		}
		if _, err := nkeys.ParseDecoratedUserNKey(b); err != nil {
			return configErrorf("Creds", "%s: %w", c.Creds, err)
		}
	}
	return nil
}

// servers lists the hosts of the URL for people.
func (c Config) servers() string {
	all, err := redact.Servers(c.URL)
	if err != nil { // not after check
		return "external server"
	}
	var hosts []string
	for _, s := range all {
		hosts = append(hosts, s.URL.String())
	}
	return strings.Join(hosts, ",")
}

// user says for people as whom the server is asked. It holds no secret.
func (c Config) user() string {
	if c.Creds != "" {
		if name := credsUser(c.Creds); name != "" {
			return "user " + name + " of the credentials file " + c.Creds
		}
		return "the user of the credentials file " + c.Creds
	}
	if c.URL == "" {
		return "the user of NATS context " + c.Context
	}
	all, _ := redact.Servers(c.URL)
	var users []string
	login := false
	for _, s := range all {
		if u := fmt.Sprintf("user %q", s.User); s.User != "" && !slices.Contains(users, u) {
			users = append(users, u)
		}
		login = login || s.Login
	}
	switch {
	case len(users) > 0:
		return strings.Join(users, ", ")
	case login:
		return "the token in the URL"
	}
	return "a client without user and token"
}

// credsUser reads the name of a user, and their public key, from a credentials file; "" if there is none.
func credsUser(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	token, err := nkeys.ParseDecoratedJWT(b)
	if err != nil {
		return ""
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return ""
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return ""
	}
	var claims struct {
		Name    string `json:"name"`
		Subject string `json:"sub"`
	}
	if json.Unmarshal(payload, &claims) != nil || claims.Subject == "" {
		return ""
	}
	return fmt.Sprintf("%q (%s)", claims.Name, claims.Subject)
}

// Format keeps what the URL may hold out of logs and errors, whatever the verb.
func (c Config) Format(f fmt.State, _ rune) {
	server := "embedded server in " + c.DataDir
	if !c.embedded() {
		server = "external server"
	}
	fmt.Fprintf(f, "broker.Config{%s, namespace %q}", server, c.Namespace)
}

func (c Config) embedded() bool { return c.URL == "" && c.Context == "" }

// validNamespace takes what can be a token of a subject, and a part of a file's name, on every system.
func validNamespace(s string) bool {
	if s == "" || len(s) > maxNamespace {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !('A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}
