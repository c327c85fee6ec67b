// Package chatsim simulates the Chat REST API: it checks calls as the API would, keeps the groups in memory, and counts
// the calls in a ledger. `groupferry simulate` serves it, `run --simulate` runs it in the same process, and the tests
// of the project call it.
//
//	POST /v4/recentcontact/COMMAND ─► stamp ─► limit ─► who calls ─► what is asked ─► faults ─► groups ─► response
//	                                    │                                  │            │         │
//	GET /ledger ◄───────────────────────┴──────────── Ledger ◄─────────────┴────────────┘         │
//	GET /state  ◄──────────────────────────────────── State  ◄────────────────────────────────────┘
//	POST /control, POST /reset: change the [Config], start over; from this machine only
//
// In a test:
//
//	sim := chatsim.New(chatsim.Config{Existing: chatsim.Refuse})
//	url, err := sim.Start("127.0.0.1:0")
//	…
//	defer sim.Close()
//	client, err := chat.New(chat.Config{BaseURL: url, SDKAppID: chatsim.DemoSDKAppID, SecretKey: chatsim.DemoSecretKey})
//
// Where the documents leave the behavior of the API open, a field of the Config selects it. So a test can try every
// reading.
package chatsim

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"groupferry/internal/chat"
)

// The default app of a simulator. Its key is published here, so it protects nothing.
const (
	DemoSDKAppID  = 1400000000
	DemoSecretKey = "demo-key-of-groupferry-simulate-it-is-published-and-protects-nothing"
)

const (
	// idleTimeout is longer than a client keeps an idle connection, so the client always closes first.
	idleTimeout = 2 * time.Minute

	readHeaderTimeout = 10 * time.Second
)

// A Sim is a simulated API for one app. It is an http.Handler; [Sim.Start] serves it on a listener of its own.
type Sim struct {
	closing  chan struct{} // closed when Close begins
	handlers sync.WaitGroup
	serving  sync.WaitGroup

	mu      sync.Mutex // guards all below
	closed  bool
	server  *http.Server
	set     *settings
	rng     *rand.Rand
	users   map[string]*account
	current map[string]int // calls in flight, by user
	sigs    map[seenSig]time.Time
	book    book
}

// settings are a Config with its defaults filled in, and what is derived from it. Only seen changes; for a new Config
// the settings are replaced.
type settings struct {
	Config
	seen map[chat.Command]int // calls that reached the faults; under "" those of all commands
}

func newSettings(c Config) *settings { return &settings{Config: c, seen: make(map[chat.Command]int)} }

// New returns a simulator. It panics if [Config.Validate] returns an error.
func New(c Config) *Sim {
	if err := c.Validate(); err != nil {
		panic("chatsim: " + err.Error())
	}
	s := &Sim{closing: make(chan struct{}), set: newSettings(c.withDefaults())}
	s.Reset()
	return s
}

// Start listens on addr, such as "127.0.0.1:0", and serves until Close. It returns the URL to call; if addr has no
// host, the URL has 127.0.0.1. A simulator can be started once.
func (s *Sim) Start(addr string) (url string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.server != nil {
		return "", errors.New("start the simulator: it was started before")
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return "", fmt.Errorf("start the simulator: %w", err)
	}
	server := &http.Server{Handler: s, ReadHeaderTimeout: readHeaderTimeout, IdleTimeout: idleTimeout}
	s.server = server
	s.serving.Go(func() { server.Serve(listener) }) // it ends with Close; its error says no more than that
	host, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil { // the address of a listener has a port
		panic(err)
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port), nil
}

// Close stops listening, closes the connections, and waits until no call is in flight. It can be called more than once.
func (s *Sim) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.closing)
	}
	server := s.server
	s.mu.Unlock()
	if server != nil {
		server.Close() // the only error is that the listener is closed already
	}
	s.serving.Wait()
	s.handlers.Wait()
}

// Reset deletes all users, groups and the ledger, and restarts the random numbers and the call count of the faults. It
// keeps the Config.
func (s *Sim) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set = newSettings(s.set.Config)
	s.rng = rand.New(rand.NewPCG(s.set.Seed, 0))
	s.users = make(map[string]*account)
	s.current = make(map[string]int)
	s.sigs = make(map[seenSig]time.Time)
	s.book = newBook()
}

// Configure changes the Config while the simulator runs. When the faults change, their After and For count from here.
func (s *Sim) Configure(change func(*Config)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.set.clone()
	change(&c)
	if err := c.Validate(); err != nil {
		return err
	}
	set := newSettings(c.withDefaults())
	if slices.Equal(set.Faults, s.set.Faults) {
		set.seen = s.set.seen
	}
	if set.Seed != s.set.Seed {
		s.rng = rand.New(rand.NewPCG(set.Seed, 0))
	}
	s.set = set
	clear(s.sigs)
	return nil
}

// Hint returns the shell lines that point groupferry at the simulator at url. They contain the secret key only if it is
// [DemoSecretKey].
func (s *Sim) Hint(url string) string {
	s.mu.Lock()
	set := s.set
	s.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "export GROUPFERRY_API_URL=%s\n", url)
	fmt.Fprintf(&b, "export GROUPFERRY_SDK_APP_ID=%d\n", set.SDKAppID)
	if admin := set.Admins[0]; admin != chat.DefaultAdmin {
		fmt.Fprintf(&b, "export GROUPFERRY_ADMIN='%s'\n", strings.ReplaceAll(admin, "'", `'\''`))
	}
	if set.SecretKey == DemoSecretKey {
		fmt.Fprintf(&b, "export GROUPFERRY_SECRET_KEY=%s\n", DemoSecretKey)
	} else {
		b.WriteString("# and --secret-key-file with the key that the simulator was given\n")
	}
	return b.String()
}
