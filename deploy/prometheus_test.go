package deploy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"groupferry/internal/longtest"
	"groupferry/metrics"
)

// TestQueries asks a real Prometheus, which scrapes the real metrics during a made-up import, for everything that
// the dashboard shows: each query must parse, give data, and have the labels that its legend names.
func TestQueries(t *testing.T) {
	longtest.Only(t)
	if _, err := exec.LookPath("prometheus"); err != nil {
		t.Skip("prometheus is not installed")
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	m := metrics.New(metrics.Config{Commands: []string{"create_contact_group", "update_contact_group"}})
	exporter := httptest.NewServer(m.Handler(nil))
	defer exporter.Close()
	wg.Go(func() { madeUpImport(ctx, m) })
	base := startPrometheus(t, exporter.Listener.Addr().String())

	d := readDashboard(t)
	for _, a := range d.Annotations.List {
		// An annotation marks what is not so here: it need only parse.
		if _, err := query(ctx, base, a.Expr); err != nil {
			t.Errorf("annotation %s: %v", a.Name, err)
		}
	}
	for _, p := range d.Panels {
		for _, q := range p.Targets {
			t.Run(p.Title+"/"+q.RefID, func(t *testing.T) {
				labels := waitForData(t, base, q.Expr)
				for _, l := range regexp.MustCompile(`\{\{(\w+)\}\}`).FindAllStringSubmatch(q.LegendFormat, -1) {
					if labels[l[1]] == "" {
						t.Errorf("legend %q: got the labels %v, want %s among them", q.LegendFormat, labels, l[1])
					}
				}
			})
		}
	}
}

// madeUpImport has something of everything happen until ctx is done.
func madeUpImport(ctx context.Context, m *metrics.Metrics) {
	commands := []string{"create_contact_group", "update_contact_group"}
	m.WatchPace(func() metrics.Pace {
		lane := metrics.Lane{Limit: 200, Effective: 180, InUse: 150, Waiting: 12}
		return metrics.Pace{State: "running", Commands: map[string]metrics.Lane{commands[0]: lane, commands[1]: lane}}
	})
	m.WatchQueue(func() (metrics.Queue, bool) { return metrics.Queue{Pending: 1000, InFlight: 12}, true })
	m.WatchSyncs(func() []metrics.Sync {
		return []metrics.Sync{{Name: "contacts", Begun: time.Now(), Done: time.Now(), Night: 12, Unchanged: 2, Rejected: 3, Failed: 4}}
	})
	m.WatchUserSig(func() time.Time { return time.Now().Add(24 * time.Hour) })
	m.JobStarted() // one that stays in flight
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		m.Rows(10, 1, 1)
		m.JobsEnqueued(3)
		for i, outcome := range []string{"done", "partial", "failed"} {
			command := commands[i%len(commands)]
			m.JobStarted()
			m.Granted(command, 20*time.Millisecond)
			m.CallDone(command, []string{"ok", "partial", "timeout"}[i], 60*time.Millisecond)
			m.JobDone(outcome, 2-i, i, 100*time.Millisecond, 1+i)
		}
		m.JobStarted()
		m.JobRequeued("retry")
		m.Retry(commands[0])
		m.Throttled(commands[0])
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// startPrometheus starts a server of its own that scrapes the target every second, and returns its address.
func startPrometheus(t *testing.T, target string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()

	dir := t.TempDir()
	config := filepath.Join(dir, "prometheus.yaml")
	text := fmt.Sprintf("global: {scrape_interval: 1s}\n"+
		"scrape_configs: [{job_name: groupferry, static_configs: [{targets: [%q]}]}]\n", target)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("prometheus", "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+addr)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		cmd.Wait()
		close(exited)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-exited
		if t.Failed() {
			t.Logf("prometheus says:\n%s", &log)
		}
	})
	base := "http://" + addr
	poll(t, func() error {
		resp, err := http.Get(base + "/-/ready")
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
	return base
}

// waitForData asks until there is a number for expr and returns the labels of a series that has one.
func waitForData(t *testing.T, base, expr string) map[string]string {
	t.Helper()
	var labels map[string]string
	poll(t, func() error {
		results, err := query(t.Context(), base, expr)
		if err != nil {
			return err
		}
		for _, r := range results {
			if v, ok := r.Value[1].(string); ok && v != "NaN" && !strings.HasSuffix(v, "Inf") {
				labels = r.Metric
				return nil
			}
		}
		return fmt.Errorf("no number in %v for %s", results, expr)
	})
	return labels
}

// poll calls f until it returns nil.
func poll(t *testing.T, f func() error) {
	t.Helper()
	end := time.Now().Add(time.Minute)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

type result struct {
	Metric map[string]string
	Value  [2]any // time and number
}

func query(ctx context.Context, base, expr string) ([]result, error) {
	expr = strings.NewReplacer("$__rate_interval", "10s", "$job", ".+").Replace(expr)
	u := base + "/api/v1/query?" + url.Values{"query": {expr}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var response struct {
		Status, Error string
		Data          struct{ Result []result }
	}
	if err := json.NewDecoder(resp.Body).Decode(&response); err != nil {
		return nil, fmt.Errorf("decode the response for %s: %w", expr, err)
	}
	if response.Status != "success" {
		return nil, fmt.Errorf("query %s: %s", expr, response.Error)
	}
	return response.Data.Result, nil
}
