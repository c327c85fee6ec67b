package main

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A path is a way over the network: a proxy for TCP whose length can be changed, which can be cut in one direction or in
// both, and on which nobody can be let in.
//
//	client ──► [gate, delay] ──► server        up
//	client ◄── [gate, delay] ◄── server        down
//
// What is said while a direction is cut arrives when it is open again, as on a path that loses packets for a while: unless
// who said it has closed the connection meanwhile, or was not heard for its TCP_USER_TIMEOUT. Then its system has given
// up sending it.
type path struct {
	t       testing.TB
	address string
	to      string

	up, down    direction
	userTimeout time.Duration // 0: none

	mu       sync.Mutex
	listener net.Listener // nil while nobody is let in
	conns    map[net.Conn]bool
	closed   bool
	running  sync.WaitGroup
}

// A direction carries bytes in order, each piece after a delay.
type direction struct {
	gate
	mu    sync.Mutex
	delay time.Duration
}

func (d *direction) set(delay time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.delay = delay
}

func (d *direction) get() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.delay
}

func newPath(t testing.TB, to string) *path {
	t.Helper()
	p := &path{t: t, to: to, address: "127.0.0.1:0", conns: map[net.Conn]bool{}}
	p.listen()
	t.Cleanup(func() {
		p.mu.Lock()
		p.closed = true
		p.mu.Unlock()
		p.shutOut()
		p.reset()
		p.up.open()
		p.down.open()
		p.running.Wait()
	})
	return p
}

// length makes a round trip take so long.
func (p *path) length(roundTrip time.Duration) {
	p.up.set(roundTrip / 2)
	p.down.set(roundTrip - roundTrip/2)
}

// cut stops both directions, and lets nobody in.
func (p *path) cut() {
	p.up.shut()
	p.down.shut()
	p.shutOut()
}

// heal ends a cut, of one direction or of both.
func (p *path) heal() {
	p.up.open()
	p.down.open()
	p.listen()
}

func (p *path) listen() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil || p.closed {
		return
	}
	l, err := net.Listen("tcp", p.address)
	if err != nil {
		p.t.Fatal(err)
	}
	p.listener, p.address = l, l.Addr().String()
	p.running.Go(func() { p.accept(l) })
}

func (p *path) shutOut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil {
		p.listener.Close()
		p.listener = nil
	}
}

// reset breaks all connections.
func (p *path) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

func (p *path) accept(l net.Listener) {
	for {
		near, err := l.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", p.to)
		if err != nil {
			near.Close()
			continue
		}
		p.mu.Lock()
		p.conns[near], p.conns[far] = true, true
		closed := p.closed
		p.mu.Unlock()
		if closed {
			near.Close()
			far.Close()
		}
		p.running.Go(func() { p.carry(far, near, &p.up) })
		p.running.Go(func() { p.carry(near, far, &p.down) })
	}
}

// A piece is what was read at once, and when it is to be at the other end.
type piece struct {
	data []byte
	due  time.Time
}

func (p *path) carry(to, from net.Conn, d *direction) {
	pieces := make(chan piece, 1024)
	var gone atomic.Bool // from is closed
	p.running.Go(func() {
		defer func() {
			p.mu.Lock()
			delete(p.conns, to)
			p.mu.Unlock()
			to.Close()
			from.Close()
		}()
		for one := range pieces {
			time.Sleep(time.Until(one.due))
			held := d.pass()
			// It may also be late because this process did not run.
			lost := held && gone.Load() || p.userTimeout > 0 && time.Since(one.due) > p.userTimeout
			if len(one.data) == 0 || lost {
				break
			}
			if _, err := to.Write(one.data); err != nil {
				break
			}
		}
		to.Close()
		from.Close()
		for range pieces { // until the reader notices
		}
	})
	defer close(pieces)
	for {
		b := make([]byte, 16<<10)
		n, err := from.Read(b)
		due := time.Now().Add(d.get())
		if n > 0 {
			pieces <- piece{b[:n], due}
		}
		if err != nil {
			gone.Store(true)
			pieces <- piece{nil, due}
			return
		}
	}
}

// A path carries what is said in order and late, holds it while it is cut, and loses nothing.
func TestPath(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // an echo
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 100)
				for {
					n, err := c.Read(b)
					if err != nil {
						return
					}
					c.Write(b[:n])
				}
			}()
		}
	}()
	p := newPath(t, l.Addr().String())
	p.length(60 * time.Millisecond)
	c, err := net.Dial("tcp", p.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	echo := func(text string) time.Duration {
		start := time.Now()
		c.Write([]byte(text))
		b := make([]byte, len(text))
		for n := 0; n < len(b); {
			m, err := c.Read(b[n:])
			if err != nil {
				t.Fatal(err)
			}
			n += m
		}
		if string(b) != text {
			t.Fatalf("got %q, want %q", b, text)
		}
		return time.Since(start)
	}
	if d := echo("hello"); d < 60*time.Millisecond {
		t.Errorf("round trip: got %v, want 60ms at least", d)
	}
	p.down.shut()
	time.AfterFunc(200*time.Millisecond, p.heal)
	if d := echo("again"); d < 200*time.Millisecond {
		t.Errorf("cut in one direction: got a response after %v, want none for 200ms", d)
	}
	p.cut()
	if c, err := net.Dial("tcp", p.address); err == nil {
		c.Close()
		t.Error("cut: got a connection, want none")
	}
}
