package app

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"

	"groupferry/internal/broker"
	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
	"groupferry/internal/queue"
)

// serve returns a monitor that serves, and how to read a page and a sample of it; "" stands for a sample that is not there.
func serve(t *testing.T) (m *Monitor, get func(path string) (int, string), sample func(series string) string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m = NewMonitor("", "")
	t.Cleanup(m.Serve(l, slog.New(slog.DiscardHandler)))
	get = func(path string) (int, string) {
		response, err := http.Get("http://" + m.Address + path)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		b, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(b)
	}
	sample = func(series string) string {
		_, page := get("/metrics")
		_, value, _ := strings.Cut(page, "\ngroupferry_"+series+" ")
		value, _, _ = strings.Cut(value, "\n")
		return value
	}
	return m, get, sample
}

// A process is alive, and not ready, before it has reached NATS; that it is out of reach is shown once that is known.
func TestMonitorBeforeNATS(t *testing.T) {
	m, get, sample := serve(t)
	check := func(when, ready, reason, connected string) {
		t.Helper()
		if code, text := get("/readyz"); code != http.StatusServiceUnavailable || text != ready+"\n" {
			t.Errorf("%s: ready: got %d %q, want 503 %q", when, code, text, ready)
		}
		if code, _ := get("/livez"); code != http.StatusOK {
			t.Errorf("%s: alive: got %d", when, code)
		}
		for series, want := range map[string]string{
			`state{reason="` + reason + `",state="leaderless"}`: "1", "ready": "0", "leader": "0", "nats_connected": connected,
		} {
			if got := sample(series); got != want {
				t.Errorf("%s: %s: got %q, want %q", when, series, got, want)
			}
		}
	}
	check("at first", "starting", Starting, "")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	opened := make(chan error, 1)
	ctx, stop := untilStopped(t.Context(), nil)
	go func() {
		_, err := OpenWaiting(ctx, broker.Config{URL: "nats://" + l.Addr().String()}, m)
		opened <- err
	}()
	n := &namespace{t: t}
	n.await("NATS to be out of reach", func() bool { return sample("nats_connected") != "" })
	check("without NATS", "NATS is out of reach", NoNATS, "0")
	stop()
	if err := <-opened; err == nil {
		t.Error("got a namespace, want none")
	}
}

// Import-level series come from the queue's records: the newest import of each kind, while it runs, and for a process that
// was not there.
func TestImportSeries(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1, FailIDs: map[string]int{"gone": 50001}})
	want := func(when string, sample func(string) string, want map[string]string) {
		t.Helper()
		for series, want := range want {
			n.await(when+": "+series+" to be "+want, func() bool { return sample(series) == want })
		}
	}
	begin := func(m *Monitor) (end func()) {
		p := n.process(func(c *ProcessConfig) { c.Monitor, c.Engine.Name = m, m.Address })
		stop, done := make(chan struct{}), make(chan error, 1)
		go func() { done <- p.Run(t.Context(), stop) }()
		n.await("the lead", func() bool { return p.State().Verified })
		return func() {
			close(stop)
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	n.enqueue("older", 3)
	if err := n.PauseImport(t.Context(), "older"); err != nil {
		t.Fatal(err)
	}
	m, _, sample := serve(t)
	end := begin(m)
	want("paused", sample, map[string]string{
		`import_unfinished_jobs{kind="single"}`: "3", `import_complete_timestamp_seconds{kind="single"}`: "0",
		"queue_imports": "1", "queue_paused_jobs": "3", "queue_pending_jobs": "0", "queue_in_flight_jobs": "0",
		`state{reason="import-paused",state="running"}`: "1",
	})
	n.enqueue("newer", 5)
	n.awaitComplete("newer")
	n.night(Target(testApp, n.url), "a,g,b", "a,h,gone", ",g,b")
	after := map[string]string{
		`import_rows{kind="single",outcome="accepted"}`: "5", `import_conversations{kind="single",outcome="done"}`: "5",
		`import_unfinished_jobs{kind="single"}`:        "0",
		`import_rows{kind="night",outcome="accepted"}`: "2", `import_rows{kind="night",outcome="rejected"}`: "1",
		`import_conversations{kind="night",outcome="done"}`: "1", `import_conversations{kind="night",outcome="failed"}`: "1",
	}
	want("done", sample, after)
	if at := sample(`import_complete_timestamp_seconds{kind="night"}`); at == "0" || at == "" {
		t.Errorf("complete: got %q, want when", at)
	}
	n.await("its size", func() bool { return sample(`storage_bytes{stream="results"}`) != "" })
	end()

	m, _, sample = serve(t)
	end = begin(m)
	want("another process", sample, after)
	if err := n.Delete(t.Context(), "newer"); err != nil {
		t.Fatal(err)
	}
	want("deleted", sample, map[string]string{`import_rows{kind="single",outcome="accepted"}`: ""})
	end()
}

// Results that NATS does not take are counted, and written later.
func TestResultWriteErrors(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1})
	m, _, sample := serve(t)
	p := n.process(func(c *ProcessConfig) { c.Monitor = m })
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- p.Run(t.Context(), stop) }()
	n.await("the lead", func() bool { return p.State().Verified })
	limit := func(bytes int32) {
		stream, err := n.Conn.JetStream().Stream(t.Context(), "groupferry-results")
		if err == nil {
			cfg := stream.CachedInfo().Config
			cfg.MaxMsgSize = bytes
			_, err = n.Conn.JetStream().UpdateStream(t.Context(), cfg)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	limit(1)
	n.enqueue("one", 1)
	n.await("an error", func() bool { count, _ := strconv.Atoi(sample("result_write_errors_total")); return count > 1 })
	limit(-1)
	n.awaitComplete("one")
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// The reasons of a state are a closed set, and the documentation has it. Each code that halts says what has to be fixed.
func TestModes(t *testing.T) {
	b, err := os.ReadFile("../../deploy/README.md")
	if err != nil {
		t.Fatal(err)
	}
	known := map[[2]string]bool{}
	for _, m := range Modes() {
		known[m] = true
		if row := "| `" + m[0] + "` | `" + m[1] + "` |"; !strings.Contains(string(b), "\n"+row) {
			t.Errorf("deploy/README.md: got no row %s", row)
		}
	}
	progress := func(pending int64, paused bool) *Progress {
		i := ImportProgress{Progress: queue.Progress{Pending: pending}}
		i.Import.Paused = paused
		return &Progress{[]ImportProgress{i}}
	}
	for _, test := range []struct {
		state State
		want  string
	}{
		{State{Mode: Running}, Starting},
		{State{Mode: Running, Verified: true}, Starting},
		{State{Mode: Running, Verified: true, Progress: &Progress{}}, Idle},
		{State{Mode: Running, Verified: true, Progress: progress(0, true)}, Idle},
		{State{Mode: Running, Verified: true, Progress: progress(1, true)}, AllPaused},
		{State{Mode: Running, Verified: true, Progress: progress(1, false)}, Working},
		{State{Mode: Standby}, OtherLeads},
		{State{Mode: Leaderless, Connected: true}, Election},
		{State{Mode: Leaderless, Connected: true, Lapsed: true}, NoNATS},
		{State{Mode: Leaderless}, NoNATS},
		{State{Mode: Paused}, ByHand},
		{State{Mode: OutOfReach}, NoAPI},
		{State{Mode: Halted, Halt: &Halt{}}, OtherHalt},
		{State{Mode: Halted, Halt: &Halt{Halt: queue.Halt{Code: "http-403"}}}, Address},
		{State{Mode: Halted, Halt: &Halt{Halt: queue.Halt{Code: "51013"}}}, Edition},
		{State{Mode: Halted, Halt: &Halt{Halt: queue.Halt{Code: "60021"}}}, AllowList},
		{State{Mode: Halted, Halt: &Halt{Halt: queue.Halt{Code: "70020"}}}, OfApp},
		{State{Mode: Halted, Halt: &Halt{Halt: queue.Halt{Code: "70009"}}}, Credentials},
	} {
		got := test.state.reason()
		if got != test.want || !known[[2]string{test.state.Mode, got}] {
			t.Errorf("%+v: got %q (in the set: %t), want %q", test.state, got, known[[2]string{test.state.Mode, got}], test.want)
		}
	}
	for _, code := range chat.Codes() {
		if class := chat.ClassOf(code); class == chat.Halt || class == chat.HaltRepeated || class == chat.Refresh {
			if reason := haltReason(strconv.Itoa(code)); reason == OtherHalt || !known[[2]string{Halted, reason}] {
				t.Errorf("%d %s: got the reason %q, want what has to be fixed", code, chat.Meaning(code), reason)
			}
		}
	}
}

// How a call ended is told in few words, whatever the code.
func TestOutcomeOf(t *testing.T) {
	for code, want := range map[string]string{
		"ok": "ok", "partial": "partial", "60007": "throttled", "50001": "rejected", "12345": "rejected",
		"timeout": "unanswered", "http-502": "unanswered", "cancelled": "cancelled", "unsent": "cancelled",
	} {
		if got := outcomeOf(code); got != want {
			t.Errorf("%s: got %s, want %s", code, got, want)
		}
	}
}
