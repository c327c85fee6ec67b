package page

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const testToken = "correct-horse-battery"

// A shown is what a page in a test shows, and what its buttons were asked for.
type shown struct {
	mu    sync.Mutex
	now   Snapshot
	asked atomic.Int64 // for the snapshot
	done  []Action
}

func (s *shown) snapshot() Snapshot {
	s.asked.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *shown) set(change func(*Snapshot)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.now)
}

func (s *shown) do(a Action) Answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done = append(s.done, a)
	if a.Import == "running" {
		return Answer{Text: "it is running", Hint: "wait"}
	}
	return Answer{OK: true, Text: a.Name + " is done"}
}

// newPage returns a page that looks for changes all the time, and its server.
func newPage(t *testing.T, token string) (*shown, *Page, *httptest.Server) {
	t.Helper()
	s := &shown{now: Snapshot{Process: Process{Headline: "Idle"}}}
	p := New(s.snapshot, token, s.do)
	p.every = 5 * time.Millisecond
	server := httptest.NewServer(p)
	t.Cleanup(server.Close)
	t.Cleanup(p.Close)
	return s, p, server
}

// open opens the events of a page, and returns how to read the next one; "" at the end.
func open(t *testing.T, server *httptest.Server) (next func() (event, data string), response *http.Response) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	request, _ := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/events", nil)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { response.Body.Close() })
	lines := bufio.NewReader(response.Body)
	return func() (event, data string) {
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return "", ""
			}
			name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
			switch {
			case name == "event":
				event = value
			case name == "data":
				data = value
			case name == "" && event != "":
				return event, data
			}
		}
	}, response
}

// untilEvent reads to an event of that name.
func untilEvent(t *testing.T, next func() (string, string), name string) (data string) {
	t.Helper()
	for {
		event, data := next()
		if event == name {
			return data
		}
		if event == "" {
			t.Fatalf("the events ended before %q", name)
		}
	}
}

// The page, its files and its events may load nothing but these, and nothing keeps them.
func TestHeaders(t *testing.T) {
	_, _, server := newPage(t, testToken)
	for path, kind := range map[string]string{
		"/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript", "/icon.svg": "image/svg+xml", "/events": "text/event-stream",
	} {
		response, err := http.Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		if got := response.Header.Get("Content-Type"); response.StatusCode != 200 || !strings.HasPrefix(got, kind) {
			t.Errorf("%s: got %d and %q, want 200 and %q", path, response.StatusCode, got, kind)
		}
		for name, want := range map[string]string{
			"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; " +
				"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
			"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
		} {
			if got := response.Header.Get(name); got != want {
				t.Errorf("%s: %s: got %q, want %q", path, name, got, want)
			}
		}
		if path != "/events" {
			b, err := io.ReadAll(response.Body)
			if err != nil || len(b) < 100 || strings.Contains(string(b), testToken) {
				t.Errorf("%s: got %d bytes, %v, want a file without the token", path, len(b), err)
			}
			for _, bad := range []string{"<style", " style=", " onclick=", "innerHTML", "https://", "src=\"http"} {
				if strings.Contains(string(b), bad) {
					t.Errorf("%s: has %q", path, bad)
				}
			}
		}
		response.Body.Close()
	}
	for path, want := range map[string]int{"/nothing": 404, "/actions/pause": 405, "/page.html": 404} {
		response, err := http.Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		if response.Body.Close(); response.StatusCode != want {
			t.Errorf("%s: got %d, want %d", path, response.StatusCode, want)
		}
	}
}

// All sections come at first, and then those alone that changed. Two pages get the same. At the end it is said that it ends.
func TestEvents(t *testing.T) {
	s, p, server := newPage(t, "")
	first, _ := open(t, server)
	second, _ := open(t, server)
	for _, next := range []func() (string, string){first, second} {
		var got []string
		for range 5 {
			event, data := next()
			if got = append(got, event); event == "process" && !strings.Contains(data, `"headline":"Idle"`) {
				t.Errorf("process: got %s", data)
			}
		}
		if strings.Join(got, " ") != "codes live over calls process" {
			t.Errorf("at first: got %q", got)
		}
	}
	s.set(func(n *Snapshot) { n.Live = []Import{{ID: "one", Done: 1}} })
	for _, next := range []func() (string, string){first, second} {
		if event, data := next(); event != "live" || !strings.Contains(data, `"id":"one"`) {
			t.Errorf("a change: got %s %s, want the imports", event, data)
		}
	}
	s.set(func(n *Snapshot) { n.Process.Headline = "Done" })
	p.Close()
	for _, next := range []func() (string, string){first, second} {
		if data := untilEvent(t, next, "process"); !strings.Contains(data, "Done") {
			t.Errorf("the last state: got %s", data)
		}
		untilEvent(t, next, "end")
		if event, _ := next(); event != "" {
			t.Errorf("after the end: got %s", event)
		}
	}
}

// A page that is open is told now and then that the process is there.
func TestHeartbeat(t *testing.T) {
	_, p, server := newPage(t, "")
	p.heartbeat = time.Millisecond
	next, _ := open(t, server)
	untilEvent(t, next, "beat")
}

// Nothing is computed while no page is open, and pages share what is.
func TestComputedWhenNeeded(t *testing.T) {
	s, p, server := newPage(t, "")
	p.every = time.Hour
	if n := s.asked.Load(); n != 0 {
		t.Errorf("no page is open: asked %d times", n)
	}
	for range 3 {
		next, _ := open(t, server)
		untilEvent(t, next, "process")
	}
	if n := s.asked.Load(); n != 1 {
		t.Errorf("three pages: asked %d times, want once", n)
	}
}

// There is a place for so many pages, and one that is closed leaves its own.
func TestMaxStreams(t *testing.T) {
	_, _, server := newPage(t, "")
	var last *http.Response
	for range maxStreams {
		next, response := open(t, server)
		untilEvent(t, next, "process")
		last = response
	}
	next, _ := open(t, server)
	if event, data := next(); event != "full" || data != strconv.Itoa(maxStreams) {
		t.Errorf("one more: got %q and %q, want how many there are", event, data)
	}
	if event, _ := next(); event != "" {
		t.Errorf("after that: got %q", event)
	}
	last.Body.Close()
	for end := time.Now().Add(30 * time.Second); ; {
		next, _ := open(t, server)
		if event, _ := next(); event != "full" {
			break
		}
		if time.Now().After(end) {
			t.Fatal("no place, after a page was closed")
		}
	}
}

// A browser that takes in nothing is left after a while, and holds up neither the others nor the end.
func TestSlowReader(t *testing.T) {
	s, p, server := newPage(t, "")
	p.writeWait = 50 * time.Millisecond
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
	large, end := strings.Repeat("x", 1<<20), time.Now().Add(30*time.Second)
	until := func(what string, so func() bool) {
		t.Helper()
		for !so() {
			if time.Now().After(end) {
				t.Fatal(what)
			}
			time.Sleep(time.Millisecond)
		}
	}
	until("it is never served", func() bool { return len(p.slots) == 1 })
	for n := 0; len(p.slots) > 0; n++ {
		s.set(func(now *Snapshot) { now.Process.Detail = fmt.Sprint(n, large) })
		asked := s.asked.Load()
		until("it is never left", func() bool { return len(p.slots) == 0 || s.asked.Load() > asked })
	}
	next, _ := open(t, server)
	untilEvent(t, next, "process")
}

// Actions need the token, the right kind of request, and what they are about; the answer is that of the command.
func TestActions(t *testing.T) {
	s, p, _ := newPage(t, testToken)
	right := testToken
	for _, test := range []struct {
		name, path, token, kind, body string
		status                        int
		text                          string
		done                          string // action
	}{
		{"pause", "pause", right, "application/json", `{}`, 200, "pause is done", Pause},
		{"resume", "resume", right, "application/json; charset=utf-8", `{}`, 200, "resume is done", Resume},
		{"rate", "rate", right, "application/json", `{"calls":0}`, 200, "rate is done", Rate},
		{"retry", "retry", right, "application/json", `{"import":"a"}`, 200, "retry is done", Retry},
		{"a refused one", "retry", right, "application/json", `{"import":"running"}`, 409, `it is running","hint":"wait"`, Retry},
		{"check", "check", right, "application/json", `{}`, 200, "the token is right", ""},
		{"no rate", "rate", right, "application/json", `{}`, 400, "how many", ""},
		{"no import", "retry", right, "application/json", `{}`, 400, "which", ""},
		{"no such action", "delete", right, "application/json", `{}`, 404, "no such action", ""},
		{"a form", "pause", right, "application/x-www-form-urlencoded", `{}`, 415, "application/json", ""},
		{"plain text", "pause", right, "text/plain", `{}`, 415, "application/json", ""},
		{"no token", "pause", "", "application/json", `{}`, 401, "a token is needed", ""},
		{"a wrong one", "pause", "wrong", "application/json", `{}`, 401, "the token is wrong", ""},
		{"half of it", "pause", right[:15], "application/json", `{}`, 401, "the token is wrong", ""},
		{"with a scheme", "pause", "Bearer " + testToken, "application/json", `{}`, 401, "the token is wrong", ""},
		{"no JSON", "pause", right, "application/json", `pause`, 400, "cannot be read", ""},
		{"two of them", "pause", right, "application/json", `{}{}`, 400, "more than one", ""},
		{"another field", "pause", right, "application/json", `{"force":true}`, 400, "unknown field", ""},
		{"a long body", "pause", right, "application/json", `{"import":"` + strings.Repeat("x", maxBody) + `"}`, 400, "too large", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			s.done = nil
			r := httptest.NewRequest(http.MethodPost, "/actions/"+test.path, strings.NewReader(test.body))
			r.Header.Set("Content-Type", test.kind)
			r.Header.Set("Authorization", "Basic that-of-a-proxy")
			r.Header.Set("Page-Token", test.token)
			w := httptest.NewRecorder()
			p.ServeHTTP(w, r)
			if w.Code != test.status || !strings.Contains(w.Body.String(), test.text) || !json.Valid(w.Body.Bytes()) {
				t.Errorf("got %d %s, want %d with %q", w.Code, w.Body, test.status, test.text)
			}
			if strings.Contains(w.Body.String(), testToken) {
				t.Error("the response has the token")
			}
			if got := len(s.done); got > 1 || (got == 1) != (test.done != "") || got == 1 && s.done[0].Name != test.done {
				t.Errorf("done: got %+v, want %q", s.done, test.done)
			}
		})
	}
}

// Without a token there are no actions, whatever is sent.
func TestReadOnly(t *testing.T) {
	s, p, server := newPage(t, "")
	r := httptest.NewRequest(http.MethodPost, "/actions/pause", strings.NewReader("{}"))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	p.ServeHTTP(w, r)
	if w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "--page-token-file") || len(s.done) > 0 {
		t.Errorf("got %d %s and %v, want 403 with the flag", w.Code, w.Body, s.done)
	}
	next, _ := open(t, server)
	if data := untilEvent(t, next, "process"); !strings.Contains(data, `"controls":false`) {
		t.Errorf("got %s, want no controls", data)
	}
}

// After so many wrong tokens from an address none from there is looked at for the rest of the minute, not even the right one. Who
// is elsewhere is not locked out.
func TestWrongTokens(t *testing.T) {
	c := newControl(testToken, nil)
	now := time.Now()
	c.now = func() time.Time { return now }
	const here = "192.0.2.1:1"
	for range mostWrong {
		if got := c.check("wrong", here); got != http.StatusUnauthorized {
			t.Fatalf("a wrong token: got %d", got)
		}
	}
	for _, token := range []string{"wrong", testToken} {
		for _, from := range []string{here, "192.0.2.1:2", "[::ffff:192.0.2.1]:3"} {
			if got := c.check(token, from); got != http.StatusTooManyRequests {
				t.Errorf("%s from %s after %d wrong ones: got %d, want 429", token, from, mostWrong, got)
			}
		}
	}
	if got := c.check(testToken, "192.0.2.2:1"); got != 0 {
		t.Errorf("from elsewhere: got %d", got)
	}
	now = now.Add(time.Minute)
	if got := c.check(testToken, here); got != 0 {
		t.Errorf("the right one, a minute later: got %d", got)
	}
	for n := range mostWrong {
		c.check("wrong", fmt.Sprintf("[2001:db8::%x]:1", n+1))
	}
	if got := c.check("wrong", "[2001:db8::ffff%eth0]:1"); got != http.StatusTooManyRequests {
		t.Errorf("from one network: got %d, want 429", got)
	}
	for n := range 2 * mostAddresses {
		c.check("wrong", fmt.Sprintf("10.0.%d.%d:1", n/256, n%256))
	}
	if len(c.wrong) > mostAddresses+1 {
		t.Errorf("got %d addresses, want at most %d", len(c.wrong), mostAddresses+1)
	}
}

// A name that somebody else could have in DNS is refused at a loopback address: that is how a page of theirs would read this one.
// No page of another site can keep events open, or act.
func TestOtherSites(t *testing.T) {
	_, _, server := newPage(t, testToken)
	status := func(path, host, site string) int {
		t.Helper()
		r, _ := http.NewRequest(http.MethodHead, server.URL+path, nil)
		r.Host = host
		if site != "" {
			r.Header.Set("Sec-Fetch-Site", site)
		}
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		return response.StatusCode
	}
	for host, want := range map[string]int{
		"127.0.0.1:9477": 200, "localhost:9477": 200, "localhost": 200, "[::1]:9477": 200, "[::1]": 200, "my-host:80": 200, "gf.localhost:1": 200,
		"evil.example": 403, "evil.example:9477": 403, "127.0.0.1.evil.example:9477": 403, "localhost.evil.example": 403, "com.:80": 403,
	} {
		for _, path := range []string{"/", "/page.js", "/events"} {
			if got := status(path, host, ""); got != want {
				t.Errorf("%s of %s: got %d, want %d", path, host, got, want)
			}
		}
	}
	for site, want := range map[string]int{"same-origin": 200, "none": 200, "cross-site": 403, "same-site": 403} {
		if got := status("/events", "localhost", site); got != want {
			t.Errorf("/events from %s: got %d, want %d", site, got, want)
		}
		if got := status("/", "localhost", site); got != 200 {
			t.Errorf("/ from %s, a link: got %d, want 200", site, got)
		}
	}
	r := httptest.NewRequest(http.MethodGet, "/", nil) // not at a loopback address
	r.Host = "groupferry.example"
	w := httptest.NewRecorder()
	server.Config.Handler.ServeHTTP(w, r)
	if w.Code != 200 {
		t.Errorf("elsewhere: got %d, want 200", w.Code)
	}
}
