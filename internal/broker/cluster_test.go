package broker

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"groupferry/internal/lease"
	"groupferry/internal/longtest"
)

// startCluster runs three servers that are not ours.
func startCluster(t *testing.T) []*server.Server {
	t.Helper()
	var routes []*url.URL
	var ports []int
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
		routes = append(routes, &url.URL{Scheme: "nats", Host: l.Addr().String()})
		l.Close()
	}
	var servers []*server.Server
	for i, port := range ports {
		servers = append(servers, startServer(t, server.Options{
			ServerName: fmt.Sprint("n", i), JetStream: true, Routes: routes,
			Cluster: server.ClusterOpts{Name: "c", Host: "127.0.0.1", Port: port},
		}))
	}
	waitFor(t, "a leader of the cluster", func() bool {
		for _, s := range servers {
			if s.JetStreamIsLeader() {
				return len(s.JetStreamClusterPeers()) == len(servers)
			}
		}
		return false
	})
	return servers
}

// TestCluster asks each server of a cluster, and continues when the one that leads the stream stops.
func TestCluster(t *testing.T) {
	longtest.Only(t)
	t.Parallel() // elections take seconds
	servers := startCluster(t)
	var conns []*Conn
	var urls []string
	for _, s := range servers {
		urls = append(urls, s.ClientURL())
		conns = append(conns, open(t, Config{URL: s.ClientURL(), Replicas: 3}))
	}
	ensure(t, conns[0], "s")
	var leases []*LeaseStore
	for _, c := range conns {
		leases = append(leases, leaseOf(t, c))
	}
	revision := uint64(0)
	for i := range 30 {
		publish(t, conns[i%3], "s.a", fmt.Sprint(i))
		m, err := conns[(i+1)%3].LastMsg(t.Context(), "s", "s.a")
		if err != nil || string(m.Data) != fmt.Sprint(i) {
			t.Fatalf("got %+v, %v right after %d was written through another server", m, err, i)
		}
		if revision, err = leases[i%3].Replace(t.Context(), fmt.Append(nil, i), revision); err != nil {
			t.Fatal(err)
		}
		b, read, err := leases[(i+1)%3].Read(t.Context())
		if err != nil || read != revision || string(b) != fmt.Sprint(i) {
			t.Fatalf("got %q, %d, %v; want %d, %d", b, read, err, i, revision)
		}
		if _, err := leases[(i+2)%3].Replace(t.Context(), nil, revision-1); !errors.Is(err, lease.ErrMoved) && i > 0 {
			t.Fatalf("got %v, want %v", err, lease.ErrMoved)
		}
	}

	c := open(t, Config{URL: strings.Join(urls, ","), Replicas: 3})
	for _, s := range servers {
		if s.JetStreamIsStreamLeader("$G", "s") {
			s.Shutdown()
			s.WaitForShutdown()
			break
		}
	}
	waitFor(t, "the next leader of the stream", func() bool {
		m, err := c.LastMsg(t.Context(), "s", "s.a")
		if err != nil && !Unreachable(err) {
			t.Fatal(err)
		}
		return err == nil && string(m.Data) == "29"
	})
	end := time.Now().Add(30 * time.Second)
	for {
		_, read, err := readLease(t, c)
		if err == nil && read == revision {
			break
		}
		if time.Now().After(end) || err != nil && !Unreachable(err) {
			t.Fatalf("lease: got revision %d, %v; want %d", read, err, revision)
		}
	}
}

func readLease(t *testing.T, c *Conn) ([]byte, uint64, error) {
	s, err := c.Lease(t.Context(), LeaderLease)
	if err != nil {
		return nil, 0, err
	}
	return s.Read(t.Context())
}
