package app

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"

	"groupferry/internal/chatsim"
	"groupferry/internal/queue"
)

// night reads an input as a night of the sync contacts, and puts its jobs on the queue.
func (n *namespace) night(target string, lines ...string) *NightReport {
	n.t.Helper()
	ctx := n.t.Context()
	night, err := n.ReadNight(ctx, InputConfig{Files: []string{writeInput(n.t, lines...)}},
		SyncConfig{Name: "contacts", Target: target, Holder: "a test"})
	if err != nil {
		n.t.Fatal(err)
	}
	defer night.Close()
	defer night.Release(ctx)
	stored, _, err := n.Begin(ctx, night.Record)
	if err == nil && stored.State == queue.Enqueueing {
		_, err = night.Enqueue(ctx, n.Namespace, nil)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return night.Report()
}

// A logText is a log that can be read while it is written.
type logText struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logText) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

// count counts the lines that match.
func (l *logText) count(pattern string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(regexp.MustCompile("(?m)^.*"+pattern).FindAllString(l.b.String(), -1))
}

// A process knows the syncs of its API, serves what came of their nights, and the leader logs each night once.
func TestSyncState(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1, FailIDs: map[string]int{"gone": 50001}})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var log logText
	m := NewMonitor("", "")
	defer m.Serve(l, slog.New(slog.DiscardHandler))()
	p := n.process(func(c *ProcessConfig) {
		c.Monitor, c.Engine.Log = m, slog.New(slog.NewTextHandler(&log, nil))
	})
	stop := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		if err := p.Run(t.Context(), stop); err != nil {
			t.Error(err)
		}
	})
	defer running.Wait()
	defer close(stop)
	metric := func(name string) string {
		response, err := http.Get("http://" + l.Addr().String() + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		page, _ := io.ReadAll(response.Body)
		_, value, _ := strings.Cut(string(page), "\ngroupferry_"+name+`{sync="contacts"} `)
		value, _, _ = strings.Cut(value, "\n")
		return value
	}
	metrics := func(when string, want map[string]string) {
		t.Helper()
		for name, want := range want {
			if got := metric(name); got != want {
				t.Errorf("%s: %s: got %q, want %q", when, name, got, want)
			}
		}
	}
	n.await("the lead", func() bool { return p.State().Verified })
	target := Target(p.cfg.Engine.App, p.cfg.Engine.API.Address())

	n.night(target+"/elsewhere", "x,g,b") // whose jobs nobody here does
	first := n.night(target, "a,g,b", "a,h,gone", ",g,b")
	n.await("the first night", func() bool { return log.count("night is complete.*night=1") == 1 })
	n.await("its record", func() bool { return metric("sync_night") == "1" })
	metrics("first night", map[string]string{
		"sync_confirmed": "0", "sync_unchanged_nights": "0", "sync_rejected_rows": "1", "sync_failed_rows": "1",
	})
	if log.count(`"night is complete" sync=contacts night=1 import=`+first.Import+` done=1 failed=1 unchanged=0$`) != 1 {
		t.Errorf("got no line about the first night in\n%s", &log.b)
	}
	began, complete := metric("sync_begun_timestamp_seconds"), metric("sync_complete_timestamp_seconds")
	if began == "" || complete == "" || complete == "0" {
		t.Errorf("first night: got begun %q, complete %q", began, complete)
	}

	n.night(target, "a,g,b") // it is there
	n.await("the second night", func() bool { return log.count("night is complete.*night=2.*done=0 failed=0 unchanged=1$") == 1 })
	if again := n.night(target, "a,g,b"); !again.NothingToDo {
		t.Errorf("got %+v, want nothing to do", again)
	}
	n.await("no third night", func() bool {
		return log.count("night found nothing to do.*sync=contacts night=2 unchanged_nights=1$") == 1
	})
	metrics("confirmed", map[string]string{
		"sync_confirmed": "1", "sync_unchanged_nights": "1", "sync_night": "2", "sync_rejected_rows": "0", "sync_failed_rows": "0",
	})
	if got := metric("sync_complete_timestamp_seconds"); got == complete {
		t.Errorf("confirmed: got %s as before, want when it was", got)
	}
	if all := log.count("night is complete"); all != 2 {
		t.Errorf("got %d lines about complete nights, want 2:\n%s", all, &log.b)
	}
	if s := p.State().Syncs; len(s) != 1 || s[0].Target != target {
		t.Errorf("got %+v, want the sync of this API alone", s)
	}
}

// A night that wrote something is logged by whose term ended it, and by nobody else.
func TestReportSyncs(t *testing.T) {
	for _, test := range []struct {
		night queue.Night
		want  int
	}{
		{queue.Night{Unchanged: 3, Withheld: 1}, 1},
		{queue.Night{Done: 1}, 0},
		{queue.Night{Failed: 1}, 0},
		{queue.Night{Removed: 1}, 0},
		{queue.Night{Deleted: 1}, 0},
	} {
		var log strings.Builder
		e := &Engine{log: slog.New(slog.NewTextHandler(&log, nil))}
		test.night.Number = 2
		e.reportSyncs([]queue.Sync{{Name: "contacts"}}, []queue.Sync{{Name: "contacts", Complete: &test.night}})
		if got := strings.Count(log.String(), "night is complete"); got != test.want {
			t.Errorf("%+v: got %d lines, want %d", test.night, got, test.want)
		}
	}
}
