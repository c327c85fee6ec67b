package broker

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
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
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if !validNamespace(c.Namespace) {
		return c, fmt.Errorf("namespace %q: use 1 to %d of A-Z, a-z, 0-9, - and _", c.Namespace, maxNamespace)
	}
	if c.Replicas < 1 || c.Replicas > maxReplicas {
		return c, fmt.Errorf("%d replicas: JetStream keeps 1 to %d", c.Replicas, maxReplicas)
	}
	return c, nil
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

// redact takes user, password and token out of a list of URLs.
//
// The connection cuts a password in two where it has a comma, and so does this: what is left of it would look like a
// host. So an entry with a user may not come after one without. A password with a comma and an @ cannot be told from two
// entries.
func redact(list string) (string, error) {
	var out []string
	bare := false // an entry without a user was seen
	for s := range strings.SplitSeq(list, ",") {
		s = strings.TrimSpace(s)
		if !strings.Contains(s, "://") {
			s = "nats://" + s
		}
		at := strings.LastIndex(s, "@")
		u, err := url.Parse(s)
		if err != nil || u.Host == "" || at >= 0 && (bare || !strings.HasPrefix(s[at+1:], u.Host)) {
			// The cause would repeat the text, and a password can be what makes it unreadable. With an @ behind it, what
			// looks like the host may be a part of the password.
			return "", errors.New("NATS URL: want nats://host:port, or several of them separated by commas, " +
				"those with a user first; a comma in a password is written as %2C")
		}
		bare = bare || at < 0
		out = append(out, u.Scheme+"://"+u.Host)
	}
	return strings.Join(out, ","), nil
}
