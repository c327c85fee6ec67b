// Package page is the page that a process shows to people: its three files and an icon, the events that keep it up to date,
// and the actions of its buttons. What is on it comes from whoever makes the [Page]:
//
//	Snapshot ──► sections as JSON ──► those that changed ──► GET /events ──► page.js ──► page.html
//	Do ◄──────── POST /actions/NAME, with the token ◄─────────────────────── buttons
//
// At most once a second a section is sent, and only where it changed. While no page is open nothing is computed. The page
// loads nothing from anywhere else, and its policy lets it run no script and no style but its own.
package page

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A Snapshot is what the page shows. Its fields are sections, by the names of their JSON form; page.js knows what is in them.
// There is no user ID in it.
type Snapshot struct {
	Process Process         `json:"process"`
	Calls   Calls           `json:"calls"`
	Live    []Import        `json:"live"` // imports that are not over, newest first
	Over    []Import        `json:"over"` // the newest of the others, newest first
	Codes   map[string]Code `json:"codes"`
}

// A Process is what a process does, and why nothing else.
type Process struct {
	Host     string   `json:"host"`
	Version  string   `json:"version"`
	State    string   `json:"state"` // which the colour is of
	Headline string   `json:"headline"`
	Detail   string   `json:"detail"`
	Since    int64    `json:"since,omitempty"` // of the state, in Unix milliseconds; 0 where it does not matter
	Remedy   string   `json:"remedy,omitempty"`
	Command  string   `json:"command,omitempty"` // what continues
	Leads    bool     `json:"leads"`
	Leader   string   `json:"leader"`
	Standbys []string `json:"standbys"`
	Rate     int      `json:"rate"` // calls a second for each command
	RateNote string   `json:"rate_note,omitempty"`
	Slowed   bool     `json:"slowed"`   // the API throttled calls
	Controls bool     `json:"controls"` // there are actions
	CanPause bool     `json:"can_pause"`
	CanGo    bool     `json:"can_resume"`
}

// Calls are those that this process made in the last minutes.
type Calls struct {
	Limit    float64      `json:"limit"`  // calls a second for each command
	Bucket   int          `json:"bucket"` // seconds
	Commands []CommandSum `json:"commands"`
	Jobs     float64      `json:"jobs"` // a second, whoever does them
}

// A CommandSum is how often a command of the API was called.
type CommandSum struct {
	Command   string    `json:"command"`
	PerSecond []float64 `json:"per_second"` // of each bucket, the newest last
	Now       float64   `json:"now"`        // over the last seconds
}

// An Import is how far one import is. Times are in Unix milliseconds.
type Import struct {
	ID        string   `json:"id"`
	Name      string   `json:"name"`
	Files     []string `json:"files"` // the first
	FileCount int      `json:"file_count"`
	Begun     int64    `json:"begun"`
	Ended     int64    `json:"ended,omitempty"`
	State     string   `json:"state"`
	Note      string   `json:"note,omitempty"` // what is wrong with it
	Total     int64    `json:"total"`          // conversations
	Done      int64    `json:"done"`
	Failed    int64    `json:"failed"`
	Removals  int64    `json:"removals,omitempty"` // conversations that are to be taken out of groups
	Removed   int64    `json:"removed,omitempty"`
	Rejected  int64    `json:"rejected"` // rows
	Rejects   string   `json:"rejects,omitempty"`

	Codes map[string]int64 `json:"codes,omitempty"` // what failed
	Retry bool             `json:"retry,omitempty"` // something can be retried

	// Of one that is not over.
	Unknown    bool     `json:"unknown,omitempty"` // nobody knows yet how far it is
	Jobs       int64    `json:"jobs"`
	Finished   int64    `json:"finished"` // jobs
	InFlight   int64    `json:"in_flight"`
	FailedJobs int64    `json:"failed_jobs"`
	Left       *float64 `json:"left,omitempty"` // seconds; nil when nobody knows
}

// A Code is what is known about a code of a failure.
type Code struct {
	Meaning string `json:"meaning"`
	Remedy  string `json:"remedy,omitempty"`
}

const (
	// every is how often a page is sent what changed, at most.
	every = time.Second

	// heartbeat is how long nothing is sent until an event without a meaning is: both sides notice a connection that is gone.
	heartbeat = 15 * time.Second

	// writeWait is how long a browser may take to take in what is sent.
	writeWait = 5 * time.Second

	// maxStreams is how many pages can be open at once.
	maxStreams = 20
)

//go:embed page.html page.css page.js icon.svg
var files embed.FS

// policy lets the page load its own files and ask its own process, and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// A Page serves the page. Use New.
type Page struct {
	snapshot func() Snapshot
	mux      *http.ServeMux
	slots    chan struct{} // a place for each open page
	control  *control      // nil: the page only shows
	closed   chan struct{}
	close    func()

	every, heartbeat, writeWait time.Duration

	mu  sync.Mutex
	now []section // as of at
	at  time.Time
}

// A section is a part of the page, as it is sent.
type section struct {
	name string
	data []byte
}

// New returns a page that shows what snapshot returns. With a token its buttons call do, which may be called at once by many;
// without one it only shows.
func New(snapshot func() Snapshot, token string, do func(Action) Answer) *Page {
	p := &Page{
		snapshot: snapshot, mux: http.NewServeMux(), slots: make(chan struct{}, maxStreams), closed: make(chan struct{}),
		every: every, heartbeat: heartbeat, writeWait: writeWait,
	}
	p.close = sync.OnceFunc(func() { close(p.closed) })
	if token != "" {
		p.control = newControl(token, do)
	}
	for path, file := range map[string][2]string{
		"/{$}":      {"page.html", "text/html; charset=utf-8"},
		"/page.css": {"page.css", "text/css; charset=utf-8"},
		"/page.js":  {"page.js", "text/javascript; charset=utf-8"},
		"/icon.svg": {"icon.svg", "image/svg+xml"},
	} {
		content, err := files.ReadFile(file[0])
		if err != nil {
			panic(err) // it is embedded
		}
		p.mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", file[1])
			w.Write(content) // an error means that the browser left
		})
	}
	p.mux.HandleFunc("GET /events", p.events)
	p.mux.HandleFunc("POST /actions/{action}", p.act)
	return p
}

// ServeHTTP serves the page, its events and its actions.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	switch {
	case !calledRight(r):
		respond(w, http.StatusForbidden, Answer{Text: "a loopback address answers to localhost and to IP addresses alone, not to " + strconv.Quote(r.Host),
			Hint: "have the proxy in front send the name of this address as Host"})
	case r.URL.Path != "/" && otherSite(r):
		respond(w, http.StatusForbidden, Answer{Text: "a page of another site asks"})
	default:
		p.mux.ServeHTTP(w, r)
	}
}

// calledRight reports whether a request to a loopback address names a host that nobody else can have in DNS: one with a name of
// theirs comes from a browser on this machine, in which a page of another site has its name stand for this address.
func calledRight(r *http.Request) bool {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	if local == nil || !local.IP.IsLoopback() {
		return true
	}
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = strings.Trim(r.Host, "[]")
	}
	return net.ParseIP(host) != nil || !strings.Contains(host, ".") || strings.HasSuffix(host, ".localhost")
}

// otherSite reports whether the browser says that a page of another site asks. It would not see the response, but it could keep
// events open.
func otherSite(r *http.Request) bool {
	site := r.Header.Get("Sec-Fetch-Site")
	return site != "" && site != "same-origin" && site != "none"
}

// Close sends all open pages what changed last, and that the process ends.
func (p *Page) Close() { p.close() }

// events sends the sections of the page: all at first, and then what changed, until the browser leaves or the page is closed.
func (p *Page) events(w http.ResponseWriter, r *http.Request) {
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	default: // a browser tells its page nothing of another status
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprintf(w, "event: full\ndata: %d\n\n", maxStreams)
		return
	}
	conn := http.NewResponseController(w)
	if err := conn.SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // of a proxy, which would hold back what is sent
	if r.Method == http.MethodHead {
		return
	}
	send := func(b []byte) error {
		if err := conn.SetWriteDeadline(time.Now().Add(p.writeWait)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return err
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
		return conn.Flush()
	}
	sent, last := map[string][]byte{}, time.Now()
	tick := time.NewTicker(p.every)
	defer tick.Stop()
	for ended := false; ; {
		var b bytes.Buffer
		for _, s := range p.sections(ended) {
			if have, known := sent[s.name]; !known || !bytes.Equal(have, s.data) {
				fmt.Fprintf(&b, "id: %d\nevent: %s\ndata: %s\n\n", time.Now().UnixMilli(), s.name, s.data)
				sent[s.name] = s.data
			}
		}
		switch {
		case ended:
			b.WriteString("event: end\ndata: {}\n\n")
		case b.Len() == 0 && time.Since(last) >= p.heartbeat:
			fmt.Fprintf(&b, "id: %d\nevent: beat\ndata: {}\n\n", time.Now().UnixMilli())
		}
		if b.Len() > 0 {
			if send(b.Bytes()) != nil {
				return
			}
			last = time.Now()
		}
		if ended {
			return
		}
		select {
		case <-tick.C:
		case <-p.closed:
			ended = true
		case <-r.Context().Done():
			return
		}
	}
}

// sections are those of the present snapshot; for all open pages it is asked for once each time, unless it has to be fresh.
func (p *Page) sections(fresh bool) []section {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !fresh && p.now != nil && time.Since(p.at) < p.every*9/10 { // tickers are not exact
		return p.now
	}
	s := p.snapshot()
	s.Process.Controls = p.control != nil
	p.now, p.at = nil, time.Now()
	for _, part := range []struct {
		name  string
		value any
	}{{"codes", s.Codes}, {"live", s.Live}, {"over", s.Over}, {"calls", s.Calls}, {"process", s.Process}} {
		b, err := json.Marshal(part.value)
		if err != nil {
			panic(err) // numbers and texts
		}
		p.now = append(p.now, section{part.name, b})
	}
	return p.now
}

// respond writes an answer as JSON.
func respond(w http.ResponseWriter, status int, a Answer) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	b, err := json.Marshal(a)
	if err != nil {
		panic(err) // texts
	}
	io.WriteString(w, string(b)+"\n") // an error means that the browser left
}
