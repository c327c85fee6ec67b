package deploy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/longtest"
)

// The simulator's app.
const (
	demoApp = 1400000000
	demoKey = "demo-key-of-groupferry-simulate-it-is-published-and-protects-nothing"
)

// scrapedJob is what the configuration of this test calls groupferry: not what any file here could take for granted.
const scrapedJob = "chat/anything"

// TestRealRun has a real Prometheus scrape a real run, against the simulator with faults, and evaluate everything that is
// asked of it anywhere: by the dashboard, its variables and annotations, by alerts and recording rules, and by the documents.
// Each expression must parse, give data, and have the labels that its legend names. Then the run halts, and a real
// Alertmanager gets the alert.
func TestRealRun(t *testing.T) {
	longtest.Only(t)
	installed(t, "prometheus")
	installed(t, "prometheus-alertmanager")
	r := startRun(t)
	alertmanager := startAlertmanager(t)
	p := startPrometheus(t, r.workers, alertmanager, "")
	native := startPrometheus(t, r.workers, "", "native-histograms")
	rules := p.rules(t)
	d := readDashboard(t)

	empty := map[string]bool{ // while nothing has gone wrong for good; see below
		"panel Alerts/A": true, "annotation Halted": true, "annotation Paused, or the API out of reach": true,
	}
	for _, rule := range rules {
		empty["rule "+rule.Name] = rule.Type == "alerting"
	}
	expressions := map[string]target{}
	for _, a := range d.Annotations.List {
		expressions["annotation "+a.Name] = target{Expr: a.Expr, LegendFormat: a.TitleFormat}
	}
	for _, panel := range d.Panels {
		for _, q := range panel.Targets {
			expressions["panel "+panel.Title+"/"+q.RefID] = q
		}
	}
	for _, rule := range rules {
		expressions["rule "+rule.Name] = target{Expr: rule.Query}
	}
	for _, series := range documented(t) {
		expressions["series "+series] = target{Expr: series}
	}
	if len(expressions) < 100 {
		t.Errorf("got %d expressions, want more", len(expressions))
	}
	for name, q := range expressions {
		t.Run(name, func(t *testing.T) {
			if _, err := p.query(t.Context(), q.Expr); err != nil {
				t.Error(err)
			}
			if !empty[name] {
				p.checkLegend(t, q)
			}
			for _, s := range selector.FindAllString(q.Expr, -1) { // one that is misspelt is easy to overlook beside others
				if !strings.HasPrefix(s, "ALERTS") {
					p.waitForData(t, s)
				}
			}
		})
	}
	for _, v := range d.Templating.List {
		if m := regexp.MustCompile(`^label_values\((\w+), (\w+)\)$`).FindStringSubmatch(v.Definition); m != nil {
			if labels := p.waitForData(t, m[1]); labels[m[2]] != scrapedJob {
				t.Errorf("variable %s: got %v, want the job", v.Name, labels)
			}
		}
	}
	for _, h := range []string{"call_duration", "job_duration", "permit_wait"} {
		native.waitForData(t, "histogram_quantile(0.5, sum(rate(groupferry_"+h+"_seconds[10s])))")
	}

	r.fault(t, "51013")
	poll(t, func() error { return alertmanager.has(t, "GroupferryHalted", "edition") })
	for _, name := range []string{"panel Alerts/A", "annotation Halted", "rule GroupferryHalted"} {
		p.checkLegend(t, expressions[name])
	}
	for _, worker := range r.workers {
		resp, err := http.Get("http://" + worker + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("%s is halted: got ready %s, want 503", worker, resp.Status)
		}
	}
	for _, rule := range p.rules(t) {
		if rule.Health != "ok" {
			t.Errorf("rule %s: got health %s: %s", rule.Name, rule.Health, rule.LastError)
		}
	}
}

// documented are the series that the documents and runbooks name.
func documented(t *testing.T) []string {
	t.Helper()
	names := served()
	var found []string
	for _, path := range append(files(t, ".md"), "../README.md", "../samples/README.md") {
		for _, m := range regexp.MustCompile("`(groupferry_[a-z_]+)(\\{[^}`]*\\})?`").FindAllStringSubmatch(read(t, path), -1) {
			name := m[1]
			if names[name+"_count"] {
				name += "_count"
			}
			if !names[name] {
				t.Errorf("%s: series %s is not served", path, m[1])
			}
			found = append(found, name+m[2])
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// A realRun is two workers on an embedded NATS server, of which one stands by, and the simulator that they call: one with
// the key, and one with a UserSig that ends. They have done a night of a sync, and work on a large import.
type realRun struct {
	sim     string
	workers []string
}

func startRun(t *testing.T) *realRun {
	t.Helper()
	dir := t.TempDir()
	touch(t)
	binary, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	r := &realRun{sim: freeAddress(t), workers: []string{freeAddress(t), freeAddress(t)}}
	env := []string{
		"GROUPFERRY_API_URL=http://" + r.sim, fmt.Sprintf("GROUPFERRY_SDK_APP_ID=%d", demoApp),
		"GROUPFERRY_DATA_DIR=" + filepath.Join(dir, "data"), "GROUPFERRY_LOG_FORMAT=text",
	}
	key := append(slices.Clone(env), "GROUPFERRY_SECRET_KEY="+demoKey)
	sig := append(slices.Clone(env),
		"GROUPFERRY_USERSIG="+chat.SignUserSig(demoKey, demoApp, "administrator", time.Now(), 48*time.Hour).Reveal())
	start(t, nil, binary, "simulate", "--listen", r.sim, "--fail-id", "friend-0=50001",
		"--fault", "60007:4%", "--fault", "50004:4%", "--fault", "reset:2%")
	poll(t, func() error { return responds("http://" + r.sim + "/ledger") })
	start(t, key, binary, "work", "--listen", r.workers[0])
	poll(t, func() error { return responds("http://" + r.workers[0] + "/readyz") })
	start(t, sig, binary, "work", "--listen", r.workers[1])
	poll(t, func() error { return responds("http://" + r.workers[1] + "/readyz") })

	input := func(name string, groups int) string {
		var b strings.Builder
		b.WriteString("from_account,group_name,type,to_account,to_group_id\n")
		for i := range groups {
			for friend := range 2 {
				fmt.Fprintf(&b, "%s-%d,group-%d,1,friend-%d,\n", name, i/10, i%10, (i*2+friend)%40)
			}
		}
		path := filepath.Join(dir, name+".csv")
		if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, args := range [][]string{
		{"import", "--sync", "contacts", input("night", 30)},
		{"import", input("large", 20_000)}, // for 100 s: longer than all that is asked meanwhile
	} {
		cmd := exec.Command(binary, args...)
		cmd.Env = append(os.Environ(), key...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("groupferry %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	return r
}

// fault makes every call fail with the code.
func (r *realRun) fault(t *testing.T, code string) {
	t.Helper()
	controlSimulator(t, r.sim, `{"faults":["`+code+`"]}`)
}

// controlSimulator changes what a simulator does.
func controlSimulator(t *testing.T, address, body string) {
	t.Helper()
	resp, err := http.Post("http://"+address+"/control", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode >= 300 {
		t.Fatalf("control the simulator: %s", resp.Status)
	}
}

// touch looks at every source, for go test repeats an old verdict while the files that the test has looked at stay the same.
func touch(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".go" {
			_, err = os.Stat(path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // somebody's temporary file, gone meanwhile
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A process is one that start started, with what it has said.
type process struct {
	cmd *exec.Cmd
	log *output
}

// start starts a process that is killed at the end of the test, if it was not before, and shows what it said when the test
// failed.
func start(t *testing.T, env []string, name string, args ...string) *process {
	t.Helper()
	p := &process{exec.Command(name, args...), &output{}}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("%s %s says:\n%s", filepath.Base(name), args[0], p.log)
		}
	})
	return p
}

// kill kills a process, and waits until it is gone and all it said is there.
func (p *process) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func responds(url string) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// An alertmanager is the address of one.
type alertmanager string

func startAlertmanager(t *testing.T) alertmanager {
	t.Helper()
	dir, address := t.TempDir(), freeAddress(t)
	config := filepath.Join(dir, "alertmanager.yaml")
	if err := os.WriteFile(config, []byte("route: {receiver: nobody}\nreceivers: [{name: nobody}]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	start(t, nil, "prometheus-alertmanager", "--config.file="+config, "--storage.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+address, "--cluster.listen-address=")
	poll(t, func() error { return responds("http://" + address + "/-/ready") })
	return alertmanager(address)
}

// An alert is what an Alertmanager has, as long as it lasts.
type alert struct{ Labels, Annotations map[string]string }

func (a alertmanager) alerts() (all []alert, err error) {
	resp, err := http.Get("http://" + string(a) + "/api/v2/alerts")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	err = json.NewDecoder(resp.Body).Decode(&all)
	return all, err
}

// has returns nil when the Alertmanager has an alert of that name and reason, with its runbook.
func (a alertmanager) has(t *testing.T, name, reason string) error {
	all, err := a.alerts()
	if err != nil {
		return err
	}
	var names []string
	for _, one := range all {
		names = append(names, one.Labels["alertname"])
		if one.Labels["alertname"] == name && one.Labels["reason"] == reason && one.Labels["job"] == scrapedJob {
			if got, want := one.Annotations["runbook_url"], "../runbooks/"+name+".md"; got != want {
				t.Errorf("alert %s: got the runbook %q, want %q", name, got, want)
			}
			return nil
		}
	}
	return fmt.Errorf("alerts that have come: %q, want %s with the reason %q", names, name, reason)
}

// A prometheus is a server. What it is asked for may take until its end to be there; all of it together, so that a test that
// misses much does not wait for each.
type prometheus struct {
	address string
	end     time.Time
}

// hurry shortens the times of alerts.yaml: that for which an alert waits, and that for which the API has to be out of reach.
func hurry(rules string) string {
	rules = regexp.MustCompile(`for: \d+m`).ReplaceAllString(rules, "for: 1s")
	return regexp.MustCompile(`(avg_over_time\(.*)\[\d+m\]`).ReplaceAllString(rules, "${1}[5s]")
}

// startPrometheus starts a server that scrapes the targets twice a second, has the rules of alerts.yaml in a hurry, and tells
// the Alertmanager, unless that is "".
func startPrometheus(t *testing.T, targets []string, tell alertmanager, feature string) prometheus {
	t.Helper()
	dir, address := t.TempDir(), freeAddress(t)
	list := `["` + strings.Join(targets, `", "`) + `"]`
	config := "global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}\n" +
		"scrape_configs: [{job_name: " + scrapedJob + ", static_configs: [{targets: " + list + "}]}]\n"
	if tell != "" {
		config += "rule_files: [alerts.yaml]\n" +
			"alerting: {alertmanagers: [{static_configs: [{targets: [\"" + string(tell) + "\"]}]}]}\n"
	}
	for name, text := range map[string]string{
		"prometheus.yaml": config,
		"alerts.yaml":     hurry(read(t, "prometheus/alerts.yaml")),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	start(t, nil, "prometheus", "--config.file="+filepath.Join(dir, "prometheus.yaml"), "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+address, "--enable-feature="+feature)
	poll(t, func() error { return responds("http://" + address + "/-/ready") })
	return prometheus{address, time.Now().Add(time.Minute)}
}

// A rule is one of alerts.yaml, as Prometheus has it.
type rule struct{ Type, Name, Query, Health, LastError string }

func (p prometheus) rules(t *testing.T) (all []rule) {
	t.Helper()
	var data struct{ Groups []struct{ Rules []rule } }
	if err := p.get(t.Context(), "rules", nil, &data); err != nil {
		t.Fatal(err)
	}
	for _, g := range data.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) < 10 {
		t.Fatalf("got %d rules, want more", len(all))
	}
	return all
}

// checkLegend waits until there is a number for a query, and checks that it has the labels that the legend names.
func (p prometheus) checkLegend(t *testing.T, q target) {
	t.Helper()
	labels := p.waitForData(t, q.Expr)
	for _, l := range regexp.MustCompile(`\{\{(\w+)\}\}`).FindAllStringSubmatch(q.LegendFormat, -1) {
		if labels[l[1]] == "" {
			t.Errorf("legend %q: got the labels %v, want %s among them", q.LegendFormat, labels, l[1])
		}
	}
}

// waitForData asks until there is a number for expr and returns the labels of a series that has one.
func (p prometheus) waitForData(t *testing.T, expr string) map[string]string {
	t.Helper()
	var labels map[string]string
	pollUntil(t, p.end, func() error {
		results, err := p.query(t.Context(), expr)
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

// poll calls f until it returns nil, for a minute at most.
func poll(t *testing.T, f func() error) {
	t.Helper()
	pollUntil(t, time.Now().Add(time.Minute), f)
}

// pollUntil calls f until it returns nil or the end has passed, but once in any case.
func pollUntil(t *testing.T, end time.Time, f func() error) {
	t.Helper()
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

func (p prometheus) query(ctx context.Context, expr string) ([]result, error) {
	expr = strings.NewReplacer("$__rate_interval", "10s", "$job", ".+").Replace(expr)
	var data struct{ Result []result }
	err := p.get(ctx, "query", url.Values{"query": {expr}}, &data)
	if err != nil {
		err = fmt.Errorf("query %s: %w", expr, err)
	}
	return data.Result, err
}

func (p prometheus) get(ctx context.Context, path string, values url.Values, data any) error {
	u := "http://" + p.address + "/api/v1/" + path + "?" + values.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	response := struct {
		Status, Error string
		Data          any
	}{Data: data}
	if err := json.NewDecoder(resp.Body).Decode(&response); err != nil {
		return fmt.Errorf("decode the response: %w", err)
	}
	if response.Status != "success" {
		return errors.New(response.Error)
	}
	return nil
}
