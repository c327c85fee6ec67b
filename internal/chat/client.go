package chat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"groupferry/internal/redact"
)

const (
	// DefaultAdmin is the admin account that the vendor's console makes with every app.
	DefaultAdmin = "administrator"

	defaultSigLifetime = 24 * time.Hour   // the lifetime in the vendor's samples of server code
	defaultTimeout     = 10 * time.Second // well above the 3 s after which the API itself gives up
	defaultMaxConns    = 256              // above what 200 calls a second need at a call time of 1 s

	dialTimeout = 5 * time.Second // half of a call's, so that one failed attempt to connect is reported as such

	// idleTimeout is how long a connection is kept without a call: less than the 60 s or more that servers and
	// load balancers allow, so that a call seldom meets a connection that the other side is just closing.
	idleTimeout = 45 * time.Second

	// maxResponse bounds what is read of a response, in bytes. One about 100 conversations has about 20 kB.
	maxResponse = 1 << 20

	// maxBegin bounds what is looked at of a body that is no response of the API. It is more than is kept of it, so that a
	// secret is taken out before it could be cut in two.
	maxBegin = 8 << 10
)

// Config says which app to call, where and as whom. BaseURL, SDKAppID and one of SecretKey and UserSig have to be
// given; the zero value of everything else stands for its default.
type Config struct {
	BaseURL  string // scheme and host, as [RegionURL] gives it; a path is taken as a prefix
	SDKAppID uint64
	Admin    string // an app admin account; default [DefaultAdmin]

	SecretKey   Secret        // the app's key, from which the client makes its UserSigs; or else
	UserSig     Secret        // a UserSig that is ready
	SigLifetime time.Duration // of a UserSig the client makes, at least 1 s; default 24 h

	Timeout  time.Duration // of one call, connecting included; default 10 s
	MaxConns int           // connections kept open between calls; default 256

	// OnTrip hears the round trip of each call that got a response: from when the call had its connection to the first
	// byte of the response. It may be nil, and must not block.
	OnTrip func(time.Duration) `json:"-"`

	// OnDate hears what time it is for the API, or for what responds in its place, to a second: the Date header of each
	// response. It may be nil, and must not block.
	OnDate func(time.Time) `json:"-"`
}

// A Client makes calls for one app. It is safe for use by many goroutines at once. It speaks HTTP/1.1 with a pool of
// connections, so that one lost connection costs one call, and uses the proxy of the environment as net/http does.
type Client struct {
	base     url.URL
	appID    uint64
	admin    string
	lifetime time.Duration
	timeout  time.Duration
	onTrip   func(time.Duration)
	onDate   func(time.Time)
	http     *http.Transport

	// key is behind a pointer so that no %v of a Client can reach it; nil when a ready UserSig was given.
	key *Secret

	signing sync.Mutex // held while a new signature replaces the old one
	sig     atomic.Pointer[signature]
}

// A signature is a UserSig with what depends on it.
type signature struct {
	text    string
	query   string    // the query of a call, ready but for the digits of random, which come last
	expiry  time.Time // zero when the UserSig does not tell
	renewAt time.Time // zero for never
}

// New makes a client. It calls nobody. The error names the field that is wrong.
func New(c Config) (*Client, error) {
	if c.Admin == "" {
		c.Admin = DefaultAdmin
	}
	if c.SigLifetime == 0 {
		c.SigLifetime = defaultSigLifetime
	}
	if c.Timeout == 0 {
		c.Timeout = defaultTimeout
	}
	if c.MaxConns == 0 {
		c.MaxConns = defaultMaxConns
	}
	base, err := parseBaseURL(c.BaseURL)
	switch {
	case err != nil:
		return nil, err
	case c.SDKAppID == 0:
		return nil, errors.New("SDKAppID: required")
	case !ValidUserID(c.Admin):
		return nil, fmt.Errorf("Admin: not 1 to %d bytes of printable ASCII", MaxUserIDBytes)
	case c.SecretKey == "" && c.UserSig == "":
		return nil, errors.New("SecretKey: required, or UserSig")
	case c.SecretKey != "" && c.UserSig != "":
		return nil, errors.New("UserSig: SecretKey is set as well; set one of them")
	case strings.ContainsFunc(c.SecretKey.Reveal(), notInSecret):
		return nil, errors.New("SecretKey: holds white space or a control character")
	case strings.ContainsFunc(c.UserSig.Reveal(), notInSecret):
		return nil, errors.New("UserSig: holds white space or a control character")
	case c.SigLifetime < time.Second:
		return nil, fmt.Errorf("SigLifetime: %v is less than 1s", c.SigLifetime)
	case c.Timeout < 0:
		return nil, fmt.Errorf("Timeout: %v is negative", c.Timeout)
	case c.MaxConns < 0:
		return nil, fmt.Errorf("MaxConns: %d is negative", c.MaxConns)
	}

	client := &Client{
		base:     *base,
		appID:    c.SDKAppID,
		admin:    c.Admin,
		lifetime: c.SigLifetime,
		timeout:  c.Timeout,
		onTrip:   c.OnTrip,
		onDate:   c.OnDate,
		http: &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			DialContext:         dialer(c.Timeout),
			MaxIdleConns:        c.MaxConns,
			MaxIdleConnsPerHost: c.MaxConns,
			IdleConnTimeout:     idleTimeout,
			DisableCompression:  true, // responses are small; unpacking would cost more than it saves
			Protocols:           new(http.Protocols),
		},
	}
	client.http.Protocols.SetHTTP1(true)
	if c.SecretKey != "" {
		client.key = &c.SecretKey
		client.sign()
		return client, nil
	}
	// A ready UserSig may be of a version that only the API can read: then nobody here knows its end.
	expiry, _ := UserSigExpiry(c.UserSig.Reveal())
	client.sig.Store(client.newSignature(c.UserSig, expiry, time.Time{}))
	return client, nil
}

// parseBaseURL quotes nothing of a URL in its errors: people paste whole sample URLs, with a signature in them.
func parseBaseURL(s string) (*url.URL, error) {
	if s == "" {
		return nil, errors.New("BaseURL: required")
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, errors.New("BaseURL: not a URL")
	case u.Scheme != "https" && u.Scheme != "http", u.Host == "":
		return nil, errors.New("BaseURL: not of the form https://HOST")
	case u.User != nil, u.RawQuery != "", u.ForceQuery, u.Fragment != "":
		return nil, errors.New("BaseURL: more than scheme, host and path")
	}
	return u, nil
}

// ValidUserID reports whether s can be the id of a user.
func ValidUserID(s string) bool {
	return s != "" && len(s) <= MaxUserIDBytes && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

func notInSecret(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }

// String names the app and the host, so that a client that is printed shows nothing else.
func (c *Client) String() string {
	return fmt.Sprintf("chat client of app %d at %s", c.appID, c.base.Host)
}

// Address is the URL of the API, without the paths of the commands.
func (c *Client) Address() string { return c.base.String() }

// Address gives [Client.Address] for a base URL.
func Address(baseURL string) (string, error) {
	u, err := parseBaseURL(baseURL)
	if err != nil {
		return "", err
	}
	return u.String(), nil
}

// GoString is [Client.String].
func (c *Client) GoString() string { return c.String() }

// Close closes the connections that no call is using. Calls in flight continue; the client can still be used.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// SigExpiry tells when the UserSig ends that the next call would use; zero when a ready one was given that does not tell.
// One that it is time to renew is renewed: a process that makes no calls must not look as if its UserSig ran out.
func (c *Client) SigExpiry() time.Time { return c.signature().expiry }

// Renews tells whether the client signs its UserSigs itself, and so never runs out of one.
func (c *Client) Renews() bool { return c.key != nil }

// Renew signs again now, whether or not the UserSig in use has time left. It is an error when a ready UserSig was
// given: there is no key to sign with.
func (c *Client) Renew() error {
	if c.key == nil {
		return errors.New("renew the UserSig: it was given ready, without the secret key")
	}
	c.signing.Lock()
	defer c.signing.Unlock()
	c.sign()
	return nil
}

// sign replaces the signature. Only one goroutine at a time may be here.
func (c *Client) sign() {
	now := wallClock()
	sig := SignUserSig(*c.key, c.appID, c.admin, now, c.lifetime)
	expiry := time.Unix(now.Unix(), 0).Add(c.lifetime.Truncate(time.Second))
	c.sig.Store(c.newSignature(sig, expiry, now.Add(c.lifetime/4*3)))
}

func (c *Client) newSignature(sig Secret, expiry, renewAt time.Time) *signature {
	// The two characters beside letters and digits that a UserSig has may stand in a query as they are.
	escaped := strings.ReplaceAll(url.QueryEscape(sig.Reveal()), "%2A", "*")
	return &signature{
		text: sig.Reveal(),
		query: "sdkappid=" + strconv.FormatUint(c.appID, 10) + "&identifier=" + url.QueryEscape(c.admin) +
			"&usersig=" + escaped + "&contenttype=json&random=",
		expiry:  expiry,
		renewAt: renewAt,
	}
}

// signature returns the signature to use now, a new one if it is time.
func (c *Client) signature() *signature {
	s := c.sig.Load()
	if s.renewAt.IsZero() || wallClock().Before(s.renewAt) {
		return s
	}
	c.signing.Lock()
	defer c.signing.Unlock()
	if c.sig.Load() == s { // nobody was faster
		c.sign()
	}
	return c.sig.Load()
}

// wallClock leaves the monotonic clock out: a UserSig ends by the calendar, also while a machine is asleep.
func wallClock() time.Time { return time.Now().Round(0) }

// Check makes one get_contact_group for the admin account. It returns nil when the response shows that the API takes the
// signature, whatever it says beside: also when it does not offer the command, or does not know the account as a user.
// Any other error is an [*Error].
func (c *Client) Check(ctx context.Context) error {
	_, err := c.Get(ctx, c.admin, 0)
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	// Codes from 60000 on come from the layers that a request passes before it reaches the command, and so prove nothing.
	if e.NotOffered() || e.Class() == Permanent && e.Code < 60000 {
		return nil
	}
	return err
}

// call makes one call and decodes the response into response. The error is an [*Error] or nil.
func (c *Client) call(ctx context.Context, command Command, request any, response interface{ base() *baseResponse }) error {
	text := responseTexts.Get().(*bytes.Buffer)
	defer responseTexts.Put(text)
	text.Reset()
	status, cause := c.roundTrip(ctx, command, encode(request), text)
	switch {
	case cause != nil:
		return &Error{Command: command, Cause: cause}
	case status != http.StatusOK:
		// Not the API's word, unless the body is: then the code says more than the status.
		e := &Error{Command: command, Status: status, Info: c.clean(string(text.Bytes()[:min(text.Len(), maxBegin)]))}
		if base := response.base(); decode(text.Bytes(), response) == nil && base.ErrorCode.ok && base.ErrorCode.n != 0 {
			e = &Error{Command: command, Code: int(base.ErrorCode.n), Info: c.clean(base.ErrorInfo)}
		}
		return e
	}
	if cause := decode(text.Bytes(), response); cause != nil {
		return &Error{Command: command, Cause: cause}
	}
	base := response.base()
	switch {
	case !base.ErrorCode.ok, base.ErrorCode.n == 0 && base.ActionStatus != "OK":
		cause = fmt.Errorf("%w: no ErrorCode, or one that contradicts ActionStatus", errUndecodable)
		return &Error{Command: command, Cause: cause}
	case base.ErrorCode.n != 0:
		return &Error{Command: command, Code: int(base.ErrorCode.n), Info: c.clean(base.ErrorInfo)}
	}
	return nil
}

var responseTexts = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// roundTrip sends body. It returns the HTTP status and fills text; if the status is not 200, with what could be read. If
// there is no status it returns the cause.
func (c *Client) roundTrip(ctx context.Context, command Command, body []byte, text *bytes.Buffer) (int, error) {
	g, limited := guardCall(ctx, c.timeout)
	defer g.cancel()
	if !g.sendable() {
		return 0, errPermitEnded
	}
	limited = httptrace.WithClientTrace(limited, c.trace(g))

	target := c.base
	target.Path = strings.TrimSuffix(target.Path, "/") + PathPrefix + string(command)
	target.RawPath = ""
	target.RawQuery = c.signature().query + strconv.FormatUint(uint64(rand.Uint32()), 10)
	request := (&http.Request{
		Method:        http.MethodPost,
		URL:           &target,
		Host:          target.Host,
		Header:        http.Header{"Content-Type": {"application/json"}, "User-Agent": {"groupferry"}},
		Body:          io.NopCloser(bytes.NewReader(body)),
		GetBody:       func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil },
		ContentLength: int64(len(body)),
	}).WithContext(limited)

	// The transport by itself follows no redirect. It sends a POST again only where not one byte of it had gone out
	// on a connection that turned out to be closed.
	response, err := c.http.RoundTrip(request)
	if err != nil {
		return 0, c.ended(ctx, limited, g, networkCause(err, c.clean))
	}
	defer response.Body.Close()
	if date, err := http.ParseTime(response.Header.Get("Date")); err == nil && c.onDate != nil {
		c.onDate(date)
	}
	// Reading to the end is also what lets the connection be kept.
	_, err = text.ReadFrom(io.LimitReader(response.Body, maxResponse+1))
	switch {
	case response.StatusCode != http.StatusOK:
		return response.StatusCode, nil
	case err != nil:
		return 0, c.ended(ctx, limited, g, errCutOff)
	case text.Len() > maxResponse:
		return 0, fmt.Errorf("%w: more than %d bytes", errUndecodable, maxResponse)
	}
	return http.StatusOK, nil
}

// trace guards the connection that a call gets, and makes the round trip of the call known to onTrip: from when it had
// its connection, made and shaken hands on, to the first byte of the response.
func (c *Client) trace(g *guard) *httptrace.ClientTrace {
	var start time.Time
	t := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		start = time.Now()
		g.take(info.Conn)
	}}
	if c.onTrip != nil {
		t.GotFirstResponseByte = func() {
			if !start.IsZero() {
				c.onTrip(time.Since(start))
			}
		}
	}
	return t
}

// ended tells why a call ended that failed with why: that it was not sent, the end of its context and the timeout go
// before what the network made of it. A call that got no connection in time is the network's failure.
func (c *Client) ended(ctx, limited context.Context, g *guard, why error) error {
	connected, written := g.close()
	switch {
	case ctx.Err() != nil && !written:
		return fmt.Errorf("%w: %w", errUnsent, ctx.Err())
	case ctx.Err() != nil:
		return ctx.Err()
	case limited.Err() != nil && connected && !written:
		return errPermitEnded
	case limited.Err() != nil:
		return &cause{text: fmt.Sprintf("no response within %v", c.timeout), kind: errNoResponse}
	}
	return why
}

// clean makes a text fit to be kept in which somebody may have put the signature.
func (c *Client) clean(s string) string {
	if s == "" {
		return ""
	}
	secrets := redact.SigForms(c.sig.Load().text)
	if c.key != nil {
		secrets = append(secrets, c.key.Reveal())
	}
	return cleanText(s, secrets...)
}
