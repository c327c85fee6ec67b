package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
)

// freeAddress gives an address that nobody listens at.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// scrape returns the samples of a page of metrics by their name with labels; none while nobody responds.
func scrape(t testing.TB, url string) map[string]float64 {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		return nil
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		return nil
	}
	if leak := leakIn(string(b)); leak != "" {
		t.Errorf("the metrics show a secret: %s", leak)
	}
	samples := map[string]float64{}
	for lines := bufio.NewScanner(strings.NewReader(string(b))); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if n, err := strconv.ParseFloat(value, 64); err == nil {
			samples[name] = n
		}
	}
	return samples
}

// buildInfo is the series that says which build is running.
func buildInfo() string {
	version, _ := build()
	return fmt.Sprintf("groupferry_build_info{goversion=%q,revision=%q,version=%q}", runtime.Version(), testRevision, version)
}

// A run that listens shows how far it is, in the numbers of its report.
func TestListen(t *testing.T) {
	t.Parallel()
	sizes := make([]int, 30)
	for i := range sizes {
		sizes[i] = 1 + i%7
	}
	rows := makeRows(15, sizes...)
	accepted := len(rows)
	rows = append(rows, rows[0], rows[1], row{"nobody", "", rows[0].item})
	// With one job in flight the calls come one by one, and the create after the first 21 gets no response: the numbers stand
	// still then. One of the first jobs makes two creates, to find out what that does.
	const done = 20
	sim, url := startSim(t, chatsim.Config{
		FailIDs: map[string]int{"friend-4": 50001},
		Faults:  []chatsim.Fault{{Command: chat.CreateContactGroup, Kind: chatsim.Hang, After: 1 + done}},
	})
	s := newShell(t, url)
	base := "http://" + freeAddress(t)
	c := s.start("run", "--output", "json", "--concurrency", "1", "--timeout", "10m", "--listen", strings.TrimPrefix(base, "http://"),
		"--rejects", filepath.Join(t.TempDir(), "rejects.csv"), writeRows(t, rows))
	var samples map[string]float64
	sum := func(name string) (n float64) {
		for key, value := range samples {
			if strings.HasPrefix(key, name+"{") {
				n += value
			}
		}
		return n
	}
	await(t, "the call that gets no response", func() bool {
		if created(sim) < 2+done {
			return false // and the page is read after this call began, so the jobs before it are counted to the end
		}
		samples = scrape(t, base+"/metrics")
		return sum("groupferry_jobs_total") == done && samples["groupferry_jobs_in_flight"] == 1
	})
	for path, want := range map[string]int{"/livez": 200, "/readyz": 200, "/": 200, "/nothing": 404} {
		response, err := http.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("%s: got status %d, want %d", path, response.StatusCode, want)
		}
	}
	c.signals <- os.Interrupt
	c.signals <- os.Interrupt
	r := c.wait(exitInterrupted).report()

	if r.Accepted != int64(accepted) || r.Duplicates != 2 || r.Rejected != 1 || r.Jobs.Partial == 0 || r.Jobs.Done == 0 {
		t.Errorf("report: got %+v, want %d rows accepted, 2 duplicates, 1 rejected, some jobs done and some partial", r, accepted)
	}
	for name, want := range map[string]int64{
		`groupferry_rows_total{outcome="accepted"}`:                 r.Accepted,
		`groupferry_rows_total{outcome="duplicate"}`:                r.Duplicates,
		`groupferry_rows_total{outcome="rejected"}`:                 r.Rejected,
		`groupferry_jobs_enqueued_total`:                            r.Jobs.Total,
		`groupferry_jobs_total{outcome="done"}`:                     r.Jobs.Done,
		`groupferry_jobs_total{outcome="partial"}`:                  r.Jobs.Partial,
		`groupferry_jobs_total{outcome="failed"}`:                   r.Jobs.Failed,
		`groupferry_conversations_total{outcome="done"}`:            r.Conversations.Done,
		`groupferry_conversations_total{outcome="failed"}`:          r.Conversations.Failed,
		`groupferry_job_attempts_total`:                             done,
		buildInfo():                                                 1,
		`groupferry_state{reason="working",state="running"}`:        1,
		`groupferry_state{reason="credentials",state="halted"}`:     0,
		`groupferry_permits_in_use{command="create_contact_group"}`: 1,
	} {
		if got, there := samples[name]; got != float64(want) || !there {
			t.Errorf("%s: got %v, want %d", name, got, want)
		}
	}
	// The first of all proves the credentials, and three more find out what create does. The report has the call that the
	// interrupt cut short as well.
	const calls = 1 + done + 3
	if got := sum("groupferry_calls_total"); got != calls || r.Run.Calls != calls+1 {
		t.Errorf("calls: got %v in the metrics and %d in the report, want %d and %d", got, r.Run.Calls, calls, calls+1)
	}
	if got, want := samples[`groupferry_usersig_expiry_timestamp_seconds{renewed="yes"}`], float64(time.Now().Unix()); got <= want {
		t.Errorf("end of the UserSig: got %v, want it after %v", got, want)
	}
	if _, err := http.Get(base + "/livez"); err == nil {
		t.Error("after the end: got a response, want none")
	}
}
