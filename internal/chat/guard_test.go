package chat

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A tapServer accepts every call and counts what reaches it: connections, bytes beside those of handshakes, and
// calls.
type tapServer struct {
	*httptest.Server
	opened, calls atomic.Int32
	received      atomic.Int64
}

// tappedConn counts what the server reads from a connection.
type tappedConn struct {
	net.Conn
	n *atomic.Int64
}

func (c tappedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.n.Add(int64(n))
	return n, err
}

type tapListener struct {
	net.Listener
	s *tapServer
}

func (l tapListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.s.opened.Add(1)
	return tappedConn{c, &l.s.received}, nil
}

// tap starts a server, and a client of it that trusts its certificate.
func tap(t *testing.T, secure bool) (*tapServer, *Client) {
	t.Helper()
	s := &tapServer{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.calls.Add(1)
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, okResponse)
	}))
	s.Listener = tapListener{s.Listener, s}
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // of connections that are given up in their handshake
	if secure {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	c := newClient(t, Config{BaseURL: s.URL})
	if secure {
		pool := x509.NewCertPool()
		pool.AddCert(s.Certificate())
		c.http.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	return s, c
}

func bothWays(t *testing.T, test func(t *testing.T, secure bool)) {
	t.Run("plain", func(t *testing.T) { test(t, false) })
	t.Run("TLS", func(t *testing.T) { test(t, true) })
}

func create(ctx context.Context, c *Client, conversations int) (*Error, error) {
	r := CreateRequest{FromAccount: "u", GroupName: "g"}
	for range conversations {
		r.Items = append(r.Items, Item{OneToOne, strings.Repeat("x", MaxUserIDBytes)})
	}
	_, err := c.Create(ctx, r)
	var e *Error
	errors.As(err, &e)
	return e, err
}

// permit returns a context under a permit that lasts for so many looks at it.
func permit(ctx context.Context, looks int64) (context.Context, *atomic.Int64) {
	var looked atomic.Int64
	return WithDeadline(ctx, time.Now().Add(time.Minute), func() bool { return looked.Add(1) <= looks }), &looked
}

// TestFrozenAfterThePermit is a process that stands still between its permit and the write: on the way to a connection,
// and when it has one, a new one and one that was kept. Nothing of the call reaches the API.
func TestFrozenAfterThePermit(t *testing.T) {
	bothWays(t, func(t *testing.T, secure bool) {
		s, c := tap(t, secure)

		ctx, _ := permit(t.Context(), 0)
		e, _ := create(ctx, c, 1)
		if e == nil || !e.Unsent() || e.Reason() != ReasonUnsent || e.Transport() || s.opened.Load() != 0 {
			t.Errorf("before it connects: got %v and %d connections, want unsent and none", e, s.opened.Load())
		}

		ctx, looked := permit(t.Context(), 1) // the look of the call's start; the next is that of the write
		e, _ = create(ctx, c, 1)
		if e == nil || !e.Unsent() || looked.Load() != 2 {
			t.Errorf("on a new connection: got %v after %d looks, want unsent after 2", e, looked.Load())
		}

		if _, err := create(t.Context(), c, 1); err != nil {
			t.Fatal(err)
		}
		opened, received := s.opened.Load(), s.received.Load()
		ctx, looked = permit(t.Context(), 1)
		e, _ = create(ctx, c, 1)
		if e == nil || !e.Unsent() || looked.Load() != 2 {
			t.Errorf("on a kept connection: got %v after %d looks, want unsent after 2, on no other connection", e, looked.Load())
		}
		if s.opened.Load() != opened {
			t.Errorf("a call that was not sent opened %d connections more", s.opened.Load()-opened)
		}

		if _, err := create(t.Context(), c, 1); err != nil { // the client is as good as before
			t.Fatal(err)
		}
		if got := s.calls.Load(); got != 2 {
			t.Errorf("%d calls arrived, want 2: those without a frozen permit", got)
		}
		// The number in the query of a call has 1 to 10 digits; a handshake is of many sizes.
		if got := s.received.Load(); !secure && (got < 2*received-10 || got > 2*received+10) {
			t.Errorf("%d bytes arrived, want about twice the %d of one call", got, received)
		}
	})
}

// TestFrozenWithinTheRequest is a process that stands still when a part of a long request was written. The rest is not
// sent; whether the API saw the call is open.
func TestFrozenWithinTheRequest(t *testing.T) {
	bothWays(t, func(t *testing.T, secure bool) {
		s, c := tap(t, secure)
		ctx, _ := permit(t.Context(), 2)
		e, _ := create(ctx, c, 100) // some 7 kB, which the transport writes in more than one piece
		if e == nil || e.Unsent() || e.Reason() != ReasonTimeout || !e.Transport() {
			t.Errorf("got %v, want a timeout: a part was written", e)
		}
		if _, err := create(t.Context(), c, 100); err != nil {
			t.Fatal(err)
		}
		if opened := s.opened.Load(); opened != 2 {
			t.Errorf("got %d connections, want 2: one with half a request is not used again", opened)
		}
	})
}

// TestPermitsOfAKeptConnection makes calls one after another on one connection. Each looks at its own permit.
func TestPermitsOfAKeptConnection(t *testing.T) {
	bothWays(t, func(t *testing.T, secure bool) {
		s, c := tap(t, secure)
		var first atomic.Bool
		first.Store(true)
		for range 20 {
			ctx := WithDeadline(t.Context(), time.Now().Add(time.Minute), first.Load)
			if _, err := create(ctx, c, 100); err != nil {
				t.Fatal(err)
			}
			first.Store(false) // the permit of a call that has ended says nothing about the next one
			if _, err := create(WithDeadline(t.Context(), time.Now().Add(time.Minute), func() bool { return true }), c, 1); err != nil {
				t.Fatal(err)
			}
			if _, err := create(t.Context(), c, 1); err != nil { // without any
				t.Fatal(err)
			}
			first.Store(true)
		}
		if got := s.opened.Load(); got != 1 {
			t.Errorf("got %d connections, want 1", got)
		}
	})
}

// TestCancelledOrUnsent tells a call that its caller gave up before a byte was written from one that may have arrived.
func TestCancelledOrUnsent(t *testing.T) {
	bothWays(t, func(t *testing.T, secure bool) {
		_, c := tap(t, secure)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if e, err := create(ctx, c, 1); e == nil || !e.Unsent() || !errors.Is(err, context.Canceled) {
			t.Errorf("given up before: got %v, want unsent and cancelled", err)
		}

		for _, looks := range []int64{2, 3} { // at the first write, which is not made then, and at the second
			ctx, cancel = context.WithCancel(t.Context())
			var looked atomic.Int64
			ctx = WithDeadline(ctx, time.Now().Add(time.Minute), func() bool {
				if looked.Add(1) == looks {
					cancel()
					return false
				}
				return true
			})
			e, err := create(ctx, c, 100)
			if e == nil || !errors.Is(err, context.Canceled) || e.Unsent() != (looks == 2) {
				t.Errorf("cancelled at check %d: got %v, unsent %v", looks, err, e.Unsent())
			}
		}
	})
}

// TestDeadlineOfThePermit ends a call that is under way at the permit's end, well before the client's own timeout.
func TestDeadlineOfThePermit(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-release
	}))
	t.Cleanup(func() { close(release); server.Close() })
	c := newClient(t, Config{BaseURL: server.URL, Timeout: time.Hour})
	ctx := WithDeadline(t.Context(), time.Now().Add(100*time.Millisecond), func() bool { return true })
	e, err := create(ctx, c, 1)
	if e == nil || e.Reason() != ReasonTimeout || e.Unsent() || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want a timeout", err)
	}
	<-arrived

	// One that never gets a connection is the network's failure, not a call that was held back.
	c = newClient(t, Config{BaseURL: "http://192.0.2.1"})
	c.http.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	ctx = WithDeadline(t.Context(), time.Now().Add(10*time.Millisecond), func() bool { return true })
	if e, _ := create(ctx, c, 1); e == nil || e.Reason() != ReasonTimeout || e.Unsent() || !e.Transport() {
		t.Errorf("without a connection: got %v, want a timeout", e)
	}
}

// TestGuardedThroughAProxy holds permits back on the connection to a proxy as well, with and without a tunnel.
func TestGuardedThroughAProxy(t *testing.T) {
	bothWays(t, func(t *testing.T, secure bool) {
		s, c := tap(t, secure)
		proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodConnect {
				r.RequestURI = ""
				response, err := http.DefaultTransport.RoundTrip(r)
				if err != nil {
					t.Error(err)
					return
				}
				defer response.Body.Close()
				io.Copy(w, response.Body)
				return
			}
			there, err := net.Dial("tcp", r.Host)
			if err != nil {
				t.Error(err)
				return
			}
			here, buffered, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n")
			var both sync.WaitGroup
			both.Go(func() { io.Copy(there, buffered); there.Close() })
			both.Go(func() { io.Copy(here, there); here.Close() })
			both.Wait()
		}))
		t.Cleanup(proxy.Close)
		t.Cleanup(c.Close)
		through, err := url.Parse(proxy.URL)
		if err != nil {
			t.Fatal(err)
		}
		c.http.Proxy = http.ProxyURL(through)

		ctx, _ := permit(t.Context(), 1)
		if e, _ := create(ctx, c, 1); e == nil || !e.Unsent() {
			t.Errorf("got %v, want unsent", e)
		}
		if e, err := create(t.Context(), c, 1); err != nil {
			t.Errorf("with time left: got %v", e)
		}
		ctx, _ = permit(t.Context(), 1)
		if e, _ := create(ctx, c, 1); e == nil || !e.Unsent() {
			t.Errorf("on a kept connection: got %v, want unsent", e)
		}
		if got := s.calls.Load(); got != 1 {
			t.Errorf("%d calls arrived, want 1", got)
		}
	})
}
