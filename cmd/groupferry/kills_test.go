package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
	"groupferry/internal/job"
	"groupferry/internal/longtest"
)

// A journal writes down the calls that arrive at a simulator: from which process, for which group, with how many
// conversations, and when the response was sent. Each process calls under a path of its own.
type journal struct {
	sim *chatsim.Sim

	mu      sync.Mutex
	entries map[[2]string][]*entry // by user and group
}

type entry struct {
	proc      int // number of the process
	items     int
	responded time.Time // zero until then
}

func (j *journal) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil { // the caller died
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	proc, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	r.URL.Path = "/" + rest
	var call struct {
		User   string `json:"From_Account"`
		Create []struct {
			GroupName   string
			ContactItem []json.RawMessage
		} `json:"GroupContactItem"`
		Update struct {
			OldGroupName      string
			ContactUpdateItem []json.RawMessage
		} `json:"UpdateGroup"`
	}
	if err := json.Unmarshal(body, &call); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	e := &entry{items: len(call.Update.ContactUpdateItem)}
	group := call.Update.OldGroupName
	if len(call.Create) == 1 {
		group, e.items = call.Create[0].GroupName, len(call.Create[0].ContactItem)
	}
	if e.proc, err = strconv.Atoi(proc); err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	if group != "" {
		j.mu.Lock()
		key := [2]string{call.User, group}
		j.entries[key] = append(j.entries[key], e)
		j.mu.Unlock()
	}
	said := &lastWrite{ResponseWriter: w}
	j.sim.ServeHTTP(said, r)
	j.mu.Lock()
	e.responded = time.Now()
	if bytes.Contains(said.bytes, []byte(`"ErrorCode":51009`)) {
		e.items = 0 // nothing was written: there is no such group
	}
	j.mu.Unlock()
}

// A lastWrite keeps what was written to it last.
type lastWrite struct {
	http.ResponseWriter
	bytes []byte
}

func (w *lastWrite) Write(b []byte) (int, error) {
	w.bytes = b
	return w.ResponseWriter.Write(b)
}

// Killed fifteen times at random in a run of 9,000 jobs at the pace of the API (-long; fewer and slower otherwise):
// everything is right in the end, less than 5 % of the conversations were sent twice, and each of these because a
// process was killed before it had a result for its job.
func TestFifteenKills(t *testing.T) {
	longtest.Only(t)
	t.Parallel()
	jobs, kills := either(1200, 9000), either(4, 15)
	rate, latency := either(60, chat.MaxRate), either(20*time.Millisecond, 50*time.Millisecond)
	sizes := either(nil, []int{1000, 250}) // among few jobs one of these weighs too much
	for i := range jobs - len(sizes) {
		sizes = append(sizes, 1+i%20)
	}
	rows := makeRows(71, sizes...)
	file := writeRows(t, rows)
	sim, _ := startSim(t, chatsim.Config{Latency: latency, Jitter: latency / 4})
	calls := &journal{sim: sim, entries: map[[2]string][]*entry{}}
	late := feelPulse(t)
	server := httptest.NewServer(calls)
	t.Cleanup(server.Close)
	s := newShell(t, "")
	s.env["GROUPFERRY_RATE"] = strconv.Itoa(rate)
	s.program = withFailpoints(t) // a build without the race detector: what counts is how soon a result is written
	seed := nthSeed(0)
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))

	procOf := map[string]int{} // by the end of the worker's name
	var killed []time.Time
	var last *process
	for proc := range kills + 1 {
		s.env["GROUPFERRY_API_URL"] = fmt.Sprintf("%s/%d", server.URL, proc)
		last = s.spawn("run", "--import-id", "killed", "--output", "json", file)
		procOf[fmt.Sprintf("-%d", last.cmd.Process.Pid)] = proc
		if proc == kills {
			break
		}
		before := created(sim)
		more := 1 + rng.IntN((jobs-before)/(kills+1-proc))
		if last.killWhen(func() bool { return created(sim) >= before+more }) {
			t.Fatalf("ended with exit code %d after %d kills:\n%s\n%s", last.wait(), proc, &last.stdout, &last.stderr)
		}
		killed = append(killed, time.Now())
	}
	if code := last.wait(); code != exitDone {
		t.Fatalf("got exit code %d, want 0\n%s\n%s", code, &last.stdout, &last.stderr)
	}

	checkState(t, sim, stateOf(rows))
	if got := len(s.results("killed")); got != len(rows) {
		t.Errorf("results: got %d conversations, want %d", got, len(rows))
	}
	if got := s.onQueue("killed"); got != 0 {
		t.Errorf("got %d jobs on the queue, want none", got)
	}
	l := sim.Ledger()
	if l.Readded*20 >= len(rows) && late() <= 10*smooth { // a slow machine has more calls and results on their way
		t.Errorf("got %d of %d conversations sent twice, want less than 5 %%", l.Readded, len(rows))
	}
	if got := l.Commands[chat.CreateContactGroup].MaxPerSecond; got > rate {
		t.Errorf("got %d calls in a second, want at most %d", got, rate)
	}

	// Each group has the calls of its result, all by the process that wrote it, and before them only calls of processes
	// that were killed without a result.
	results := map[[2]string]job.Result{}
	q := s.open()
	defer q.Close()
	for r, err := range q.Results(t.Context(), "killed") {
		if err != nil {
			t.Fatal(err)
		}
		results[[2]string{r.FromAccount, r.GroupName}] = r
	}
	calls.mu.Lock()
	defer calls.mu.Unlock()
	again, noResponse, responded, reads := 0, 0, 0, 0
	for key, entries := range calls.entries {
		r := results[key]
		writer, ok := procOf[r.Worker[strings.LastIndexByte(r.Worker, '-'):]]
		if !ok {
			t.Errorf("%q: got a result of %q, which is none of the processes", key, r.Worker)
		}
		own := 0
		for _, e := range entries {
			switch {
			case e.proc == writer:
				own++
			case e.proc > writer:
				t.Errorf("%q: got a call of process %d, though process %d wrote a result", key, e.proc, writer)
			case e.responded.IsZero() || e.responded.After(killed[e.proc]):
				noResponse++
				again += e.items
			default:
				responded++
				again += e.items
			}
		}
		if own == r.Calls-1 {
			reads++
		} else if own != r.Calls {
			t.Errorf("%q: got %d calls of the process that wrote its result, want the %d in it", key, own, r.Calls)
		}
	}
	if reads > kills+1 { // one job of each process finds out what create does, and reads for it
		t.Errorf("%d results have a call more than was seen, want at most one of each process", reads)
	}
	if again != l.Readded {
		t.Errorf("got %d conversations sent twice, and %d in calls of processes that were killed", l.Readded, again)
	}
	t.Logf("%d kills, %d jobs: %d of %d conversations sent twice (%.1f %%), by %d calls whose response came after the "+
		"kill and %d whose result was not written by then; woken %v late at most", kills, jobs, l.Readded, len(rows),
		100*float64(l.Readded)/float64(len(rows)), noResponse, responded, late().Round(time.Millisecond))
}
