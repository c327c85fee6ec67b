package broker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"groupferry/internal/lease"
)

var serverOptions = server.Options{JetStream: true}

func leaseOf(t *testing.T, c *Conn) *LeaseStore {
	t.Helper()
	s, err := c.Lease(t.Context(), LeaderLease)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func checkLease(t *testing.T, s *LeaseStore, record string, revision uint64) {
	t.Helper()
	b, rev, err := s.Read(t.Context())
	if string(b) != record || rev != revision || err != nil {
		t.Errorf("got %q, revision %d, %v; want %q, %d", b, rev, err, record, revision)
	}
}

func TestLease(t *testing.T) {
	dir := t.TempDir()
	s, other := leaseOf(t, open(t, Config{DataDir: dir})), leaseOf(t, open(t, Config{DataDir: dir}))
	strange := leaseOf(t, open(t, Config{DataDir: dir, Namespace: "strange"}))
	checkLease(t, s, "", 0)
	if _, err := s.Replace(t.Context(), []byte("x"), 1); !errors.Is(err, lease.ErrMoved) {
		t.Errorf("revision 1 of none: got %v, want %v", err, lease.ErrMoved)
	}
	first, err := s.Replace(t.Context(), []byte("one"), 0)
	if err != nil {
		t.Fatal(err)
	}
	checkLease(t, other, "one", first)
	for _, stale := range []uint64{0, first + 1, 99} {
		if _, err := other.Replace(t.Context(), []byte("x"), stale); !errors.Is(err, lease.ErrMoved) {
			t.Errorf("revision %d: got %v, want %v", stale, err, lease.ErrMoved)
		}
	}
	second, err := other.Replace(t.Context(), []byte("two"), first)
	if err != nil || second <= first {
		t.Fatalf("got revision %d after %d, %v", second, first, err)
	}
	if _, err := s.Replace(t.Context(), []byte("x"), first); !errors.Is(err, lease.ErrMoved) {
		t.Errorf("revision that was replaced: got %v, want %v", err, lease.ErrMoved)
	}
	checkLease(t, s, "two", second)
	checkLease(t, strange, "", 0)

	kv, err := s.c.JetStream().KeyValue(t.Context(), "groupferry-lease")
	if err != nil {
		t.Fatal(err)
	}
	if err := kv.Delete(t.Context(), LeaderLease); err != nil { // by hand
		t.Fatal(err)
	}
	checkLease(t, s, "", second+1)
	if _, err := s.Replace(t.Context(), []byte("three"), second+1); err != nil {
		t.Error(err)
	}
}

// TestLeaseRace has many replace the same revision: one of them does.
func TestLeaseRace(t *testing.T) {
	dir := t.TempDir()
	var stores []*LeaseStore
	for range 3 {
		stores = append(stores, leaseOf(t, open(t, Config{DataDir: dir})))
	}
	revision := uint64(0)
	for round := range 20 {
		var won atomic.Uint64
		var wins atomic.Int32
		var all sync.WaitGroup
		for i, s := range stores {
			all.Go(func() {
				next, err := s.Replace(t.Context(), fmt.Append(nil, round, i), revision)
				switch {
				case err == nil:
					wins.Add(1)
					won.Store(next)
				case !errors.Is(err, lease.ErrMoved):
					t.Errorf("round %d: %v", round, err)
				}
			})
		}
		all.Wait()
		if wins.Load() != 1 {
			t.Fatalf("round %d: %d of %d replaced revision %d, want one", round, wins.Load(), len(stores), revision)
		}
		revision = won.Load()
	}
}

// A deafProxy passes on what clients say, and, while it is deaf, no responses of the server.
type deafProxy struct {
	l    net.Listener
	deaf atomic.Bool
	wg   sync.WaitGroup
}

func newDeafProxy(t *testing.T, to string) *deafProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &deafProxy{l: l}
	p.wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close()
				continue
			}
			p.wg.Go(func() {
				defer server.Close()
				_, _ = io.Copy(server, client)
			})
			p.wg.Go(func() {
				defer client.Close()
				b := make([]byte, 1<<16)
				for {
					n, err := server.Read(b)
					if err != nil {
						return
					}
					if p.deaf.Load() {
						continue
					}
					if _, err := client.Write(b[:n]); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.wg.Wait()
	})
	return p
}

// TestLeaseResponseLost replaces the lease and gets no response: that is no ErrMoved, and a read shows what became of it.
func TestLeaseResponseLost(t *testing.T) {
	s := startServer(t, serverOptions)
	proxy := newDeafProxy(t, s.Addr().String())
	near := leaseOf(t, open(t, Config{URL: s.ClientURL()}))
	far := leaseOf(t, open(t, Config{URL: "nats://" + proxy.l.Addr().String()}))
	first, err := far.Replace(t.Context(), []byte("one"), 0)
	if err != nil {
		t.Fatal(err)
	}
	proxy.deaf.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = far.Replace(ctx, []byte("two"), first)
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, lease.ErrMoved) {
		t.Errorf("no response: got %v, want the end of the context", err)
	}
	waitFor(t, "the write", func() bool {
		b, _, err := near.Read(t.Context())
		return err == nil && string(b) == "two"
	})
	proxy.deaf.Store(false)
	// A response that never came leaves a gap in the stream of bytes, so this connection is lost, and there is a next one.
	waitFor(t, "a read on the far side", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		b, revision, err := far.Read(ctx)
		return err == nil && string(b) == "two" && revision == first+1
	})
	if _, err := far.Replace(t.Context(), []byte("x"), first); !errors.Is(err, lease.ErrMoved) {
		t.Errorf("the revision before: got %v, want %v", err, lease.ErrMoved)
	}
	if _, err := far.Replace(t.Context(), []byte("three"), first+1); err != nil {
		t.Error(err)
	}
}
