package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"groupferry/internal/chatsim"
	"groupferry/internal/longtest"
)

// leader gives the server that leads a stream.
func leader(t testing.TB, nodes []*natsProcess, stream string) *natsProcess {
	t.Helper()
	var found *natsProcess
	await(t, "a leader of "+stream, func() bool {
		for _, n := range nodes {
			response, err := http.Get("http://" + n.status + "/jsz?accounts=true&streams=true")
			if err != nil {
				continue
			}
			var v struct {
				Accounts []struct {
					Streams []struct {
						Name    string `json:"name"`
						Cluster struct {
							Leader string `json:"leader"`
						} `json:"cluster"`
					} `json:"stream_detail"`
				} `json:"account_details"`
			}
			err = json.NewDecoder(response.Body).Decode(&v)
			response.Body.Close()
			if err != nil {
				continue
			}
			for _, a := range v.Accounts {
				for _, s := range a.Streams {
					for _, l := range nodes {
						if s.Name == stream && s.Cluster.Leader == l.name {
							found = l
						}
					}
				}
			}
		}
		return found != nil
	})
	return found
}

// On a cluster of three, with three copies of each stream: a node is killed, the leader of the jobs is killed, all are
// restarted one after the other, and for a while there is no quorum. The run continues through all of it.
func TestCluster(t *testing.T) {
	longtest.Only(t)
	t.Parallel()
	nodes := startCluster(t)
	sizes := make([]int, 1200)
	for i := range sizes {
		sizes[i] = 1 + i%3
	}
	rows := makeRows(51, sizes...)
	file := writeRows(t, rows)
	sim, url := startSim(t, chatsim.Config{Existing: chatsim.Replace})
	s := newShell(t, url)
	var urls []string
	for _, n := range nodes {
		urls = append(urls, "nats://"+n.client)
	}
	s.env["NATS_URL"] = strings.Join(urls, ",")
	s.env["GROUPFERRY_REPLICAS"] = "3"
	s.env["GROUPFERRY_RATE"] = "40"
	run := s.spawn("run", "--import-id", "clustered", "--concurrency", "8", file)
	calls := func(n int) {
		t.Helper()
		select {
		case <-run.done:
			t.Fatalf("the run ended early:\n%s\n%s", &run.stdout, &run.stderr)
		default:
		}
		before := created(sim)
		await(t, "more calls", func() bool { return created(sim) >= before+n })
	}
	calls(20)

	nodes[0].kill()
	calls(20)
	nodes[0].start()
	nodes[0].ready()

	first := leader(t, nodes, "groupferry-jobs")
	first.kill()
	calls(20)
	first.start()
	first.ready()

	for _, n := range nodes {
		n.kill()
		n.start()
		n.ready()
	}
	calls(20)

	// Without a quorum nothing can be written. That is a state, said so, not an end.
	nodes[1].kill()
	nodes[2].kill()
	told := len(run.stderr.String())
	await(t, "a line about the queue", func() bool { return len(run.stderr.String()) > told })
	if p := s.spawn("status"); p.wait() != exitUnreachable {
		t.Errorf("status without a quorum: got exit code %d, want %d\n%s", p.cmd.ProcessState.ExitCode(), exitUnreachable, &p.stderr)
	}
	for _, n := range nodes[1:] {
		n.start()
	}
	for _, n := range nodes {
		n.ready()
	}
	calls(20)
	await(t, "the other streams", func() bool { return s.spawn("rate", "1000000").wait() == exitDone })

	if code := run.wait(); code != exitDone {
		t.Fatalf("got exit code %d, want 0\n%s\n%s", code, &run.stdout, &run.stderr)
	}
	checkState(t, sim, stateOf(rows))
	for _, n := range nodes {
		n.ready()
	}
	await(t, "the results stream", func() bool { return s.spawn("results", "clustered").wait() == exitDone })
	if got := len(s.results("clustered")); got != len(rows) {
		t.Errorf("results: got %d conversations, want %d", got, len(rows))
	}
	// What was in flight while nothing could be written may have been done twice.
	if got, most := created(sim), len(sizes)+len(sizes)/10; got > most {
		t.Errorf("got %d create calls for %d jobs, want at most %d", got, len(sizes), most)
	}
	t.Logf("%d create calls for %d jobs", created(sim), len(sizes))
}
