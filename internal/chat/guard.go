package chat

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A process can be stopped between two of its instructions for any length of time. So that a call which was permitted
// before such a stop is not sent after it, the connection itself looks at the permit:
//
//	call ──► transport ──► TLS, if any ──► guardedConn.Write ──► sendable? ──► kernel
//	            │                                ▲
//	            └─ GotConn: this call has it ────┘
//
// The bytes of a handshake carry no call and pass: a connection has no guard until a call gets it. A guard stays until the
// next call has the connection. In between only TLS itself may write, and where that fails the transport takes another
// connection. What remains open is a stop between the look and the system call that follows it.

// errUnsent says that no byte of a request was written.
var errUnsent = errors.New("not sent")

var errPermitEnded = fmt.Errorf("%w: the permit has ended", errUnsent)

type deadlineKey struct{}

type deadline struct {
	endBy    time.Time
	sendable func() bool
}

// WithDeadline returns a context for one call under a permit. The call ends at endBy, or after [Config.Timeout] if that
// is earlier. No byte of its request is written once sendable returns false, which is asked before each write; it has to
// be quick, and safe to call from any goroutine, also after the call. A call that was not sent fails with an [*Error] for
// which [Error.Unsent] is true.
func WithDeadline(ctx context.Context, endBy time.Time, sendable func() bool) context.Context {
	return context.WithValue(ctx, deadlineKey{}, deadline{endBy, sendable})
}

// A guard lets the bytes of one call pass as long as they may.
type guard struct {
	sendable func() bool
	cancel   context.CancelFunc // ends the call

	mu        sync.Mutex
	connected bool // the call has a connection
	written   bool // a byte of the request may have left
	closed    bool // nothing more may be written
}

// guardCall makes the guard of a call, and the context that the call ends with.
func guardCall(ctx context.Context, timeout time.Duration) (*guard, context.Context) {
	g := &guard{sendable: func() bool { return true }}
	endBy := time.Now().Add(timeout)
	if d, ok := ctx.Value(deadlineKey{}).(deadline); ok {
		g.sendable = d.sendable
		if d.endBy.Before(endBy) {
			endBy = d.endBy
		}
	}
	ctx, g.cancel = context.WithDeadline(ctx, endBy)
	return g, ctx
}

// take guards the connection that the call was given. Another call has no use of it until this one has ended.
func (g *guard) take(conn net.Conn) {
	guarded := guardedUnder(conn)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.connected = true
	if guarded == nil { // a mistake in this package: without a guard nothing is sent
		g.closed = true
		g.cancel()
		return
	}
	guarded.guard.Store(g)
}

// pass reports whether bytes of the call may be written now. Where they may not the call is over: the transport must not
// try another connection.
func (g *guard) pass() bool {
	g.mu.Lock()
	g.closed = g.closed || !g.sendable()
	ok := !g.closed
	g.written = g.written || ok
	g.mu.Unlock()
	if !ok {
		g.cancel()
	}
	return ok
}

// close lets no more bytes pass. It reports whether the call had a connection, and whether a byte of it may have left.
func (g *guard) close() (connected, written bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	return g.connected, g.written
}

// A guardedConn is a connection to the API, or to a proxy on the way to it.
type guardedConn struct {
	net.Conn
	guard atomic.Pointer[guard] // of the call that has it or had it last; nil before the first
}

// Write writes b unless the call that has the connection may not send any more.
func (c *guardedConn) Write(b []byte) (int, error) {
	if g := c.guard.Load(); g != nil && !g.pass() {
		return 0, errPermitEnded
	}
	return c.Conn.Write(b)
}

// guardedUnder finds the guardedConn under the layers that a transport put on it; nil if there is none.
func guardedUnder(conn net.Conn) *guardedConn {
	for {
		switch c := conn.(type) {
		case *guardedConn:
			return c
		case *tls.Conn:
			conn = c.NetConn()
		default:
			return nil
		}
	}
}
