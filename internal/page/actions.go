package page

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// The names of actions.
const (
	Pause  = "pause"
	Resume = "resume"
	Rate   = "rate"
	Retry  = "retry"

	check = "check" // is the token right?
)

// An Action is what a button of the page asks for. Its JSON form is the body of a request; the name is in the path.
type Action struct {
	Name   string `json:"-"`
	Calls  *int   `json:"calls,omitempty"`  // a second, of [Rate]; 0 leaves it to the processes
	Import string `json:"import,omitempty"` // of [Retry]
}

// An Answer says what an action came to, or why not, and what to do then.
type Answer struct {
	OK   bool   `json:"ok"`
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
}

const (
	// MinToken is how many characters a token has at least.
	MinToken = 16

	// tokenHeader is not Authorization, which belongs to the login of a proxy in front.
	tokenHeader = "Page-Token"

	maxBody = 4 << 10

	// mostWrong wrong tokens from an address are looked at in a minute; then none from there is, for the rest of it. With more
	// than mostAddresses of them, the others count as one.
	mostWrong     = 10
	mostAddresses = 1000
)

// A control says who may act.
type control struct {
	token [sha256.Size]byte
	do    func(Action) Answer
	now   func() time.Time

	mu    sync.Mutex
	since time.Time      // of the minute
	wrong map[string]int // tokens in it, by address
}

func newControl(token string, do func(Action) Answer) *control {
	return &control{token: sha256.Sum256([]byte(token)), do: do, now: time.Now}
}

// check returns 0 if the token is the right one, else the status of the response.
func (c *control) check(token, remote string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.now(); c.wrong == nil || now.Sub(c.since) >= time.Minute {
		c.since, c.wrong = now, map[string]int{}
	}
	from := addressOf(remote)
	if c.wrong[from] == 0 && len(c.wrong) >= mostAddresses {
		from = ""
	}
	if c.wrong[from] >= mostWrong {
		return http.StatusTooManyRequests
	}
	got := sha256.Sum256([]byte(token))
	if subtle.ConstantTimeCompare(got[:], c.token[:]) == 1 {
		return 0
	}
	c.wrong[from]++
	return http.StatusUnauthorized
}

// addressOf is that of a client, without its port; of IPv6 the network, for a host has all addresses of one.
func addressOf(remote string) string {
	at, err := netip.ParseAddrPort(remote)
	if err != nil {
		return ""
	}
	if a := at.Addr().Unmap(); a.Is4() {
		return a.String()
	}
	network, _ := at.Addr().WithZone("").Prefix(64)
	return network.String()
}

func (p *Page) act(w http.ResponseWriter, r *http.Request) {
	if p.control == nil {
		respond(w, http.StatusForbidden, Answer{Text: "this page only shows",
			Hint: "start the process with --page-token-file FILE, or use the commands pause, resume, rate and retry"})
		return
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		respond(w, http.StatusUnsupportedMediaType, Answer{Text: "the content type has to be application/json"})
		return
	}
	token := r.Header.Get(tokenHeader)
	if token == "" {
		w.Header().Set("WWW-Authenticate", tokenHeader)
		respond(w, http.StatusUnauthorized, Answer{Text: "a token is needed", Hint: "give the one in the file of --page-token-file"})
		return
	}
	switch status := p.control.check(token, r.RemoteAddr); status {
	case 0:
	case http.StatusTooManyRequests:
		w.Header().Set("Retry-After", "60")
		respond(w, status, Answer{Text: "too many wrong tokens", Hint: "wait a minute, or use the commands pause, resume, rate and retry"})
		return
	default:
		w.Header().Set("WWW-Authenticate", tokenHeader)
		respond(w, status, Answer{Text: "the token is wrong", Hint: "give the one in the file of --page-token-file"})
		return
	}
	a, err := decodeAction(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		respond(w, http.StatusBadRequest, Answer{Text: "the request cannot be read: " + err.Error()})
		return
	}
	switch a.Name = r.PathValue("action"); {
	case a.Name == check:
		respond(w, http.StatusOK, Answer{OK: true, Text: "the token is right"})
		return
	case a.Name == Pause, a.Name == Resume:
	case a.Name == Rate && a.Calls == nil:
		respond(w, http.StatusBadRequest, Answer{Text: "how many calls a second?"})
		return
	case a.Name == Retry && a.Import == "":
		respond(w, http.StatusBadRequest, Answer{Text: "which import?"})
		return
	case a.Name == Rate, a.Name == Retry:
	default:
		respond(w, http.StatusNotFound, Answer{Text: "there is no such action"})
		return
	}
	answer := p.control.do(a)
	status := http.StatusOK
	if !answer.OK {
		status = http.StatusConflict
	}
	respond(w, status, answer)
}

// decodeAction reads one JSON object and nothing after it.
func decodeAction(body io.Reader) (a Action, err error) {
	d := json.NewDecoder(body)
	d.DisallowUnknownFields()
	if err := d.Decode(&a); err != nil {
		return a, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return a, errors.New("there is more than one value")
	}
	return a, nil
}
