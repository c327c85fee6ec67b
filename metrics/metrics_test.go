package metrics

import (
	"flag"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

var update = flag.Bool("update", false, "write the golden files anew")

func testConfig() Config {
	return Config{
		Build:    BuildInfo{Version: "v1.2.3", Revision: "abc"},
		Commands: []string{"create", "update"},
		Codes:    []string{"50001", "51013", "60007", "timeout"},
		Expected: []string{"51013"},
		States:   []State{{"running", "working"}, {"running", "idle"}, {"halted", "edition"}},
	}
}

// samples scrapes m and returns what Prometheus would store: "name{labels}" without the prefix, and the value.
func samples(t *testing.T, m *Metrics) map[string]float64 {
	t.Helper()
	got := map[string]float64{}
	for line := range strings.Lines(get(t, m.Handler(nil), "/metrics").Body.String()) {
		series, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		name, ours := strings.CutPrefix(series, prefix)
		if !ok || !ours {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatalf("sample %q: %v", line, err)
		}
		got[name] = v
	}
	return got
}

// now stands for a time that was just now.
const now = -1

// snapshot has m show s.
func snapshot(s Snapshot) func(*Metrics) {
	return func(m *Metrics) { m.Watch(func() Snapshot { return s }) }
}

// with adds what every snapshot shows, unless want has it.
func with(want map[string]float64) map[string]float64 {
	all := map[string]float64{
		`state{reason="working",state="running"}`: 0, `state{reason="idle",state="running"}`: 0, `state{reason="edition",state="halted"}`: 0,
		`ready`: 0, `leader`: 0, `leader_changes_total`: 0, `standstill_seconds_total`: 0,
	}
	maps.Copy(all, want)
	return all
}

func TestValues(t *testing.T) {
	tests := []struct {
		name   string
		events func(*Metrics)
		want   map[string]float64 // nothing else may change, buckets aside
	}{
		{"rows", func(m *Metrics) { m.Rows(7, 2, 1); m.Rows(1, 0, 0) }, map[string]float64{
			`rows_total{outcome="accepted"}`: 8, `rows_total{outcome="duplicate"}`: 2, `rows_total{outcome="rejected"}`: 1,
		}},
		{"enqueued", func(m *Metrics) { m.JobsEnqueued(999); m.JobsEnqueued(1) }, map[string]float64{
			`jobs_enqueued_total`: 1000,
		}},
		{"call", func(m *Metrics) { m.CallDone("create", "ok", "ok", 30*time.Millisecond) }, map[string]float64{
			`calls_total{command="create",outcome="ok"}`:                1,
			`call_duration_seconds_count{command="create"}`:             1,
			`call_duration_seconds_sum{command="create"}`:               .03,
			`call_duration_seconds_bucket{command="create",le="0.025"}`: 0,
			`call_duration_seconds_bucket{command="create",le="0.05"}`:  1,
			`call_duration_seconds_bucket{command="create",le="+Inf"}`:  1,
			`last_call_timestamp_seconds`:                               now,
		}},
		{"call that hung", func(m *Metrics) { m.CallDone("update", "unanswered", "timeout", 11*time.Second) }, map[string]float64{
			`calls_total{command="update",outcome="unanswered"}`:       1,
			`call_errors_total{code="timeout"}`:                        1,
			`call_duration_seconds_count{command="update"}`:            1,
			`call_duration_seconds_sum{command="update"}`:              11,
			`call_duration_seconds_bucket{command="update",le="10"}`:   0,
			`call_duration_seconds_bucket{command="update",le="+Inf"}`: 1,
			`last_call_timestamp_seconds`:                              now,
		}},
		{"retry", func(m *Metrics) { m.Retry() }, map[string]float64{
			`call_retries_total`: 1,
		}},
		{"result not written", func(m *Metrics) { m.ResultWriteFailed(); m.ResultWriteFailed() }, map[string]float64{
			`result_write_errors_total`: 2,
		}},
		{"granted", func(m *Metrics) { m.Granted(40 * time.Second) }, map[string]float64{
			`permit_wait_seconds_count`:             1,
			`permit_wait_seconds_sum`:               40,
			`permit_wait_seconds_bucket{le="5"}`:    0,
			`permit_wait_seconds_bucket{le="60"}`:   1,
			`permit_wait_seconds_bucket{le="+Inf"}`: 1,
		}},
		{"started", func(m *Metrics) { m.JobStarted(); m.JobStarted() }, map[string]float64{
			`jobs_in_flight`: 2,
		}},
		{"requeued", func(m *Metrics) {
			m.JobStarted()
			m.JobStarted()
			m.JobRequeued("stop")
		}, map[string]float64{
			`jobs_in_flight`:                     1,
			`jobs_requeued_total{reason="stop"}`: 1,
		}},
		{"state", snapshot(Snapshot{
			State: State{"halted", "edition"}, NATS: &NATS{Connected: true, Reconnects: 2},
			Commands: map[string]Lane{
				"create":  {Limit: 200, Effective: 150.5, InUse: 3, Waiting: 9},
				"unknown": {Limit: 1},
			}, Leader: true, LeaderChanges: 3, Standstill: 1500 * time.Millisecond,
		}), with(map[string]float64{
			`state{reason="working",state="running"}`: 0, `state{reason="idle",state="running"}`: 0,
			`state{reason="edition",state="halted"}`: 1,
			`nats_connected`:                         1, `nats_reconnects_total`: 2,
			`leader`: 1, `leader_changes_total`: 3, `standstill_seconds_total`: 1.5,
			`rate_limit_calls_per_second{command="create"}`:     200,
			`rate_effective_calls_per_second{command="create"}`: 150.5,
			`permits_in_use{command="create"}`:                  3,
			`permits_waiting{command="create"}`:                 9,
		})},
		{"ready", snapshot(Snapshot{Ready: true}), with(map[string]float64{`ready`: 1})},
		{"nothing known", snapshot(Snapshot{}), with(nil)},
		{"queue", snapshot(Snapshot{Queue: &Queue{Imports: 2, Pending: 50, Paused: 7, InFlight: 4}}), with(map[string]float64{
			`queue_imports`: 2, `queue_pending_jobs`: 50, `queue_paused_jobs`: 7, `queue_in_flight_jobs`: 4,
		})},
		{"storage", snapshot(Snapshot{Storage: map[string]int64{"jobs": 5}}), with(map[string]float64{`storage_bytes{stream="jobs"}`: 5})},
		{"imports", snapshot(Snapshot{Imports: []Import{{
			Kind: "night", Begun: time.Unix(1_700_000_000, 0), Complete: time.UnixMilli(1_700_000_060_500),
			Accepted: 1, Duplicates: 2, Rejected: 3, Done: 4, Failed: 5, Left: 6,
		}}}), with(map[string]float64{
			`import_begun_timestamp_seconds{kind="night"}`:        1_700_000_000,
			`import_complete_timestamp_seconds{kind="night"}`:     1_700_000_060.5,
			`import_rows{kind="night",outcome="accepted"}`:        1,
			`import_rows{kind="night",outcome="duplicate"}`:       2,
			`import_rows{kind="night",outcome="rejected"}`:        3,
			`import_conversations{kind="night",outcome="done"}`:   4,
			`import_conversations{kind="night",outcome="failed"}`: 5,
			`import_unfinished_jobs{kind="night"}`:                6,
		})},
		{"sync", snapshot(Snapshot{Syncs: []Sync{
			{Name: "contacts", Begun: time.Unix(1_700_000_000, 0), Done: time.UnixMilli(1_700_000_060_500), Night: 12, Confirmed: true,
				Unchanged: 2, Rejected: 3, Failed: 4, Removed: 5, Withheld: 6},
			{Name: "first", Begun: time.Unix(1_700_000_000, 0)},
		}}), with(map[string]float64{
			`sync_begun_timestamp_seconds{sync="contacts"}`:    1_700_000_000,
			`sync_complete_timestamp_seconds{sync="contacts"}`: 1_700_000_060.5,
			`sync_night{sync="contacts"}`:                      12,
			`sync_confirmed{sync="contacts"}`:                  1,
			`sync_unchanged_nights{sync="contacts"}`:           2,
			`sync_rejected_rows{sync="contacts"}`:              3,
			`sync_failed_rows{sync="contacts"}`:                4,
			`sync_removed_conversations{sync="contacts"}`:      5,
			`sync_withheld_conversations{sync="contacts"}`:     6,
			`sync_begun_timestamp_seconds{sync="first"}`:       1_700_000_000,
			`sync_complete_timestamp_seconds{sync="first"}`:    0,
			`sync_night{sync="first"}`:                         0,
			`sync_confirmed{sync="first"}`:                     0,
			`sync_unchanged_nights{sync="first"}`:              0,
			`sync_rejected_rows{sync="first"}`:                 0,
			`sync_failed_rows{sync="first"}`:                   0,
			`sync_removed_conversations{sync="first"}`:         0,
			`sync_withheld_conversations{sync="first"}`:        0,
		})},
		{"usersig", snapshot(Snapshot{UserSigExpiry: time.UnixMilli(1_700_000_000_500)}), with(map[string]float64{
			`usersig_expiry_timestamp_seconds{renewed="no"}`: 1_700_000_000.5,
		})},
		{"usersig that is renewed", snapshot(Snapshot{UserSigExpiry: time.Unix(1_700_000_000, 0), UserSigRenewed: true}), with(map[string]float64{
			`usersig_expiry_timestamp_seconds{renewed="yes"}`: 1_700_000_000,
		})},
		{"outside the closed sets", func(m *Metrics) {
			m.CallDone("user-4711", "rejected", "12345", 0)
			m.CallDone("create", "unanswered", "http-418", 0)
			m.CallDone("create", "what", "51013", 0)
			m.JobStarted()
			m.JobRequeued("no reason")
		}, map[string]float64{
			`calls_total{command="other",outcome="rejected"}`:    1,
			`calls_total{command="create",outcome="unanswered"}`: 1,
			`calls_total{command="create",outcome="other"}`:      1,
			`call_errors_total{code="other"}`:                    2,
			`call_errors_total{code="51013"}`:                    1,
			`jobs_requeued_total{reason="other"}`:                1,
			`call_duration_seconds_count{command="other"}`:       1,
			`call_duration_seconds_sum{command="other"}`:         0,
			`call_duration_seconds_count{command="create"}`:      2,
			`call_duration_seconds_sum{command="create"}`:        0,
			`last_call_timestamp_seconds`:                        now,
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := New(testConfig())
			before := samples(t, m)
			test.events(m)
			after := samples(t, m)
			for series, want := range test.want {
				got, ok := after[series]
				if ok && want == now && time.Since(time.UnixMilli(int64(got*1000))).Abs() < time.Minute {
					continue
				}
				if !ok || got != want {
					t.Errorf("%s: got %v (there: %t), want %v", series, got, ok, want)
				}
			}
			for series, got := range after {
				if _, wanted := test.want[series]; wanted || strings.Contains(series, "_bucket{") {
					continue
				}
				if was, ok := before[series]; !ok || got != was {
					t.Errorf("%s: got %v, want it untouched at %v (there: %t)", series, got, was, ok)
				}
			}
		})
	}
}

func TestJobDone(t *testing.T) {
	m := New(testConfig())
	if _, ok := samples(t, m)["last_result_timestamp_seconds"]; ok {
		t.Error("a last result is told before there was one")
	}
	start := time.Now().Truncate(time.Millisecond)
	for range 3 {
		m.JobStarted()
	}
	m.JobDone("done", 10, 0, 200*time.Millisecond, 1)
	m.JobDone("partial", 4, 2, time.Second, 3)
	m.JobDone("what", 0, 1, time.Second, 1)
	m.Removed(7, 2, 1)

	got := samples(t, m)
	for series, want := range map[string]float64{
		`jobs_in_flight`:                        0,
		`jobs_total{outcome="done"}`:            1,
		`jobs_total{outcome="partial"}`:         1,
		`jobs_total{outcome="failed"}`:          0,
		`jobs_total{outcome="other"}`:           1,
		`job_attempts_total`:                    5,
		`conversations_total{outcome="done"}`:   14,
		`conversations_total{outcome="failed"}`: 3,
		`removals_total{outcome="done"}`:        7,
		`removals_total{outcome="failed"}`:      2,
		`groups_deleted_total`:                  1,
		`job_duration_seconds_count`:            3,
		`job_duration_seconds_sum`:              2.2,
		`job_duration_seconds_bucket{le="0.1"}`: 0,
		`job_duration_seconds_bucket{le="0.5"}`: 1,
		`job_duration_seconds_bucket{le="1"}`:   3,
	} {
		if v, ok := got[series]; !ok || v != want {
			t.Errorf("%s: got %v (there: %t), want %v", series, v, ok, want)
		}
	}
	last := time.UnixMilli(int64(got["last_result_timestamp_seconds"] * 1000))
	if last.Before(start.Add(-time.Millisecond)) || last.After(time.Now()) {
		t.Errorf("last result: got %v, want it between %v and now", last, start)
	}
}

// A rate cannot see the first event of a series that starts with it, so what can be known is there from the start.
func TestStartAtZero(t *testing.T) {
	got := samples(t, New(testConfig()))
	for _, series := range []string{
		`rows_total{outcome="rejected"}`,
		`jobs_enqueued_total`,
		`jobs_total{outcome="failed"}`,
		`conversations_total{outcome="failed"}`,
		`jobs_requeued_total{reason="retry"}`,
		`jobs_requeued_total{reason="halt"}`,
		`calls_total{command="create",outcome="ok"}`,
		`calls_total{command="update",outcome="partial"}`,
		`calls_total{command="update",outcome="throttled"}`,
		`call_errors_total{code="51013"}`,
		`call_retries_total`,
		`result_write_errors_total`,
	} {
		if v, ok := got[series]; !ok || v != 0 {
			t.Errorf("%s: got %v (there: %t), want 0", series, v, ok)
		}
	}
	for _, series := range []string{`call_errors_total{code="50001"}`, `call_errors_total{code="timeout"}`, `call_errors_total{code="other"}`} {
		if v, ok := got[series]; ok {
			t.Errorf("%s: got %v before it came, want no series", series, v)
		}
	}
	build := `build_info{goversion="` + runtime.Version() + `",revision="abc",version="v1.2.3"}`
	if got[build] != 1 {
		t.Errorf("%s: got %v, want 1", build, got[build])
	}
}

func TestZeroConfig(t *testing.T) {
	m := New(Config{})
	m.CallDone("create", "ok", "ok", time.Millisecond)
	m.Watch(func() Snapshot {
		return Snapshot{State: State{"no such state", ""}, Commands: map[string]Lane{"create": {Limit: 1}}}
	})
	got := samples(t, m)
	for series, want := range map[string]float64{
		`calls_total{command="other",outcome="ok"}`: 1,
		`leader`: 0,
		`build_info{goversion="` + runtime.Version() + `",revision="unknown",version="unknown"}`: 1,
	} {
		if v, ok := got[series]; !ok || v != want {
			t.Errorf("%s: got %v (there: %t), want %v", series, v, ok, want)
		}
	}
}

// However many syncs there are, and whatever comes of the calls: what one worker costs a Prometheus has a ceiling. That of a
// worker as it is, idle, is in cmd/groupferry.
func TestCardinality(t *testing.T) {
	cfg := testConfig()
	for code := range 100 {
		cfg.Codes = append(cfg.Codes, strconv.Itoa(50000+code))
	}
	m := New(cfg)
	snapshot(Snapshot{})(m)
	before := len(samples(t, m))
	m.Watch(func() (s Snapshot) {
		for i := range 3 * MaxSyncs {
			s.Syncs = append(s.Syncs, Sync{Name: fmt.Sprintf("sync-%03d", i)})
		}
		return s
	})
	after := samples(t, m)
	if got, ceiling := len(after)-before, 9*MaxSyncs; got != ceiling {
		t.Errorf("series of many syncs: got %d, want %d", got, ceiling)
	}
	if _, there := after[`sync_night{sync="sync-099"}`]; !there {
		t.Error("got no series of the sync 099, want the first hundred")
	}
	snapshot(Snapshot{})(m)
	for code := range 100_000 {
		m.CallDone("create", "rejected", strconv.Itoa(code), 0)
		m.CallDone("command-"+strconv.Itoa(code), "outcome-"+strconv.Itoa(code), "ok", 0)
	}
	// 100 codes and other, two commands (create and other) with a histogram and one more outcome, and the last call.
	if got, ceiling := len(samples(t, m))-before, 101+2*11+2+1; got > ceiling {
		t.Errorf("series of 100,000 codes: got %d more, want at most %d", got, ceiling)
	}
}

// Who asks for native histograms gets them, with the classic ones.
func TestNativeHistograms(t *testing.T) {
	m := full()
	m.Granted(time.Second)
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, f := range families {
		for _, metric := range f.GetMetric() {
			if h := metric.GetHistogram(); h != nil {
				seen++
				if len(h.GetPositiveSpan())+len(h.GetNegativeSpan()) == 0 && h.GetZeroCount() == 0 || len(h.GetBucket()) == 0 {
					t.Errorf("%s: got %v, want native and classic buckets", f.GetName(), h)
				}
			}
		}
	}
	if seen != 3 {
		t.Errorf("got %d histograms, want 3", seen)
	}
	r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	r.Header.Set("Accept", "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited")
	w := httptest.NewRecorder()
	m.Handler(nil).ServeHTTP(w, r)
	if got := w.Header().Get("Content-Type"); !strings.HasPrefix(got, "application/vnd.google.protobuf") {
		t.Errorf("content type: got %q, want the one that native histograms come in", got)
	}
}

func TestLint(t *testing.T) {
	m := full()
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), prefix) {
			names = append(names, f.GetName())
		}
		for _, metric := range f.GetMetric() {
			for _, l := range metric.GetLabel() {
				if l.GetName() == "job" || l.GetName() == "instance" {
					t.Errorf("%s: label %s belongs to Prometheus", f.GetName(), l.GetName())
				}
			}
		}
	}
	problems, err := testutil.GatherAndLint(m.registry, names...)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestTable(t *testing.T) {
	golden := filepath.Join("testdata", "table.md")
	got := Table()
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got:\n%s\nwant what %s says:\n%s\nif the change is meant, run the test with -update", got, golden, want)
	}
}

func TestConcurrency(t *testing.T) {
	m := New(testConfig())
	const workers, rounds = 8, 50
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range rounds {
				m.Rows(1, 1, 1)
				m.JobsEnqueued(1)
				m.JobStarted()
				m.Granted(time.Millisecond)
				m.CallDone("create", "ok", "ok", time.Millisecond)
				m.CallDone("create", "rejected", "never heard of", time.Millisecond)
				m.JobDone("done", 1, 0, time.Millisecond, 1)
				m.JobStarted()
				m.JobRequeued("halt")
				m.Watch(func() Snapshot { return Snapshot{Syncs: []Sync{{Name: "contacts"}}} })
			}
		})
	}
	wg.Go(func() {
		for range rounds {
			if _, err := m.registry.Gather(); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	got := samples(t, m)
	for series, want := range map[string]float64{
		`jobs_in_flight`:                             0,
		`jobs_total{outcome="done"}`:                 workers * rounds,
		`calls_total{command="create",outcome="ok"}`: workers * rounds,
		`jobs_requeued_total{reason="halt"}`:         workers * rounds,
	} {
		if got[series] != want {
			t.Errorf("%s: got %v, want %v", series, got[series], want)
		}
	}
}
