// Package deploy holds no code, only what runs groupferry elsewhere: an image and a compose file, rules for Prometheus,
// a dashboard for Grafana, units for systemd, manifests for Kubernetes. Its tests keep all of that true to the metrics
// that are really served, and ask the tools of those worlds about it where they are installed.
package deploy

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"groupferry/metrics"
)

const dashboardFile = "grafana/dashboards/groupferry.json"

// served returns the names of all series, as a query may ask for them.
func served() map[string]bool {
	names := map[string]bool{}
	row := regexp.MustCompile("(?m)^\\| `(groupferry_[a-z_]+)` \\| ([a-z]+) \\|")
	for _, m := range row.FindAllStringSubmatch(metrics.Table(), -1) {
		name, kind := m[1], m[2]
		if kind != "histogram" {
			names[name] = true
			continue
		}
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			names[name+suffix] = true
		}
	}
	return names
}

// files returns the paths of all files here that have one of the suffixes.
func files(t *testing.T, suffixes ...string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && slices.Contains(suffixes, filepath.Ext(path)) {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestSeriesExist(t *testing.T) {
	names := served()
	if len(names) < 20 {
		t.Fatalf("served series: got %d, want at least 20", len(names))
	}
	series := regexp.MustCompile(`groupferry_[a-z_]+`)
	used := map[string]bool{}
	for _, path := range files(t, ".json", ".yaml") {
		for _, name := range series.FindAllString(read(t, path), -1) {
			used[name] = true
			if !names[name] {
				t.Errorf("%s: series %s is not served", path, name)
			}
		}
	}
	if len(used) < 15 {
		t.Errorf("series used: got %d, want at least 15", len(used))
	}
}

// Each YAML file can be read, and has none of the slips that a parser lets pass.
func TestYAML(t *testing.T) {
	for _, path := range files(t, ".yaml") {
		documents(t, path)
		text := read(t, path)
		if !strings.HasSuffix(text, "\n") {
			t.Errorf("%s: no newline at the end", path)
		}
		for i, line := range strings.Split(text, "\n") {
			indent := len(line) - len(strings.TrimLeft(line, " "))
			switch {
			case strings.Contains(line, "\t"):
				t.Errorf("%s:%d: a tab", path, i+1)
			case strings.TrimRight(line, " ") != line:
				t.Errorf("%s:%d: a space at the end", path, i+1)
			case indent%2 != 0:
				t.Errorf("%s:%d: got an indent of %d, want an even one", path, i+1, indent)
			}
		}
	}
}

// What does not get better by trying again is not restarted: wrong settings (2), and credentials that the API rejects, or
// another halt (4); of an import also rejected rows (3), and what a guard stopped (5).
func TestNoRestart(t *testing.T) {
	for path, line := range map[string]string{
		"systemd/groupferry-worker.service": `(?m)^RestartPreventExitStatus=(.*)$`,
		"systemd/groupferry-import.service": `(?m)^RestartPreventExitStatus=(.*)$`,
		"kubernetes/cronjob.yaml":           `action: FailJob\n +onExitCodes:\n.*\n +operator: In\n +values: \[(.*)\]`,
	} {
		m := regexp.MustCompile(line).FindStringSubmatch(read(t, path))
		if m == nil {
			t.Errorf("%s: got no list of exit codes", path)
			continue
		}
		codes := strings.FieldsFunc(m[1], func(r rune) bool { return r == ' ' || r == ',' })
		want := []string{"2", "4"}
		if !strings.Contains(path, "worker") {
			want = append(want, "3", "5")
		}
		for _, code := range want {
			if !slices.Contains(codes, code) {
				t.Errorf("%s: got %q, want %s among them", path, codes, code)
			}
		}
		if slices.Contains(codes, "75") {
			t.Errorf("%s: got 75, which passes", path)
		}
	}
	// Always is all that a Deployment can do, and Docker has a number of attempts alone.
	if !strings.Contains(read(t, "kubernetes/worker.yaml"), "CrashLoopBackOff") {
		t.Error("kubernetes/worker.yaml: got nothing about codes that a Deployment restarts all the same")
	}
	if !regexp.MustCompile(`restart: "on-failure:\d+"`).MatchString(read(t, "compose.yaml")) {
		t.Error("compose.yaml: got no bound on the restarts of the worker")
	}
}

// What imports every night is a sync, no night overwrites what another one wrote, and nights do not pile up.
func TestNights(t *testing.T) {
	for path, sync := range map[string]string{
		"systemd/groupferry-import.service": "--sync contacts ", "kubernetes/cronjob.yaml": "- --sync=contacts\n",
		"compose.yaml": "import, --sync, samples,",
	} {
		text := read(t, path)
		if !strings.Contains(text, sync) {
			t.Errorf("%s: got no %q", path, sync)
		}
		// The name that rejects have by default is another one each night.
		if strings.Contains(text, "--rejects") || strings.Contains(text, "--import-id") {
			t.Errorf("%s: what one night writes goes where another one's is", path)
		}
	}
	for path, keep := range map[string]string{
		"systemd/groupferry-worker.service": "--keep 30d ", "kubernetes/worker.yaml": "- --keep=30d\n", "compose.yaml": "--keep, 30d]",
	} {
		if !strings.Contains(read(t, path), keep) {
			t.Errorf("%s: got no %q: nights are kept for ever", path, keep)
		}
	}
}

func TestAlerts(t *testing.T) {
	text := read(t, "prometheus/alerts.yaml")
	if m := regexp.MustCompile(`\bjob=`).FindString(text); m != "" {
		t.Errorf("alerts.yaml: got %q, want no job: whatever scrapes groupferry has a name of its own for it", m)
	}
	rules := regexp.MustCompile(`(?m)^      - alert: `).Split(text, -1)[1:]
	cases := read(t, "prometheus/alerts_test.yaml") + read(t, "prometheus/alerts_hours_test.yaml")
	if len(rules) < 10 {
		t.Fatalf("alerts: got %d, want at least 10", len(rules))
	}
	window := regexp.MustCompile(`\[(\w+)\]`)
	for _, m := range window.FindAllStringSubmatch(text, -1) {
		if d, err := time.ParseDuration(m[1]); err != nil || d < 4*time.Minute {
			t.Errorf("alerts.yaml: got a range of %s, want at least four scrapes of a minute each", m[1])
		}
	}
	runbooks := map[string]bool{}
	for _, path := range files(t, ".md") {
		if name, ok := strings.CutPrefix(path, "runbooks/"); ok {
			runbooks[strings.TrimSuffix(name, ".md")] = true
		}
	}
	for _, rule := range rules {
		name, _, _ := strings.Cut(rule, "\n")
		runbook := "../runbooks/" + name + ".md"
		for _, want := range []string{"expr: ", "for: ", "severity: ", "summary: ", "description: ", "`groupferry ", "runbook_url: " + runbook + "\n"} {
			if !strings.Contains(rule, want) {
				t.Errorf("%s: got no %q", name, want)
			}
		}
		page := read(t, filepath.Join("prometheus", runbook))
		for _, want := range []string{"# " + name + "\n", "\n## Look at\n", "\n## Do\n", "`groupferry "} {
			if !strings.Contains(page, want) {
				t.Errorf("%s: got no %q", runbook, want)
			}
		}
		for _, m := range regexp.MustCompile(`\]\(([^)]+)\)`).FindAllStringSubmatch(page, -1) {
			if _, err := os.Stat(filepath.Join("runbooks", m[1])); err != nil {
				t.Errorf("%s: link %s: %v", runbook, m[1], err)
			}
		}
		delete(runbooks, name)
		fires := regexp.MustCompile(`alertname: ` + name + `\n +exp_alerts:\n`)
		quiet := regexp.MustCompile(`alertname: ` + name + `\n +exp_alerts: \[\]\n`)
		if !fires.MatchString(cases) || !quiet.MatchString(cases) {
			t.Errorf("%s: got no case that fires or none that stays quiet, want both", name)
		}
	}
	for name := range runbooks {
		t.Errorf("runbooks/%s.md: got no alert of that name", name)
	}
}

// afterThat is what passes before the expression of an alert is true, where it looks back: a part of its range.
var afterThat = map[string]struct {
	expr string
	time time.Duration
}{
	"GroupferryAPIDown": {`{state="outage"}[5m])) > 0.5`, 150 * time.Second},
	"GroupferryStalled": {`(increase(groupferry_jobs_total[5m])) == 0`, 5 * time.Minute},
}

// Each runbook says after which time its alert fires: that of the rule, and what passes before its expression is true. The
// table of the README has the same, where it names one.
func TestAlertTimes(t *testing.T) {
	readme := read(t, "README.md")
	words := map[string]string{"two": "2m", "five": "5m", "ten": "10m"}
	rule := regexp.MustCompile(`(?s)- alert: (\w+)\n +expr: (.*?)\n +for: (\d+m)\n`)
	rules := rule.FindAllStringSubmatch(read(t, "prometheus/alerts.yaml"), -1)
	if want := strings.Count(read(t, "prometheus/alerts.yaml"), "- alert: "); len(rules) != want {
		t.Fatalf("got %d rules with a time, want %d", len(rules), want)
	}
	for _, m := range rules {
		name, expr, wait := m[1], m[2], m[3]
		want, err := time.ParseDuration(wait)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(expr, afterThat[name].expr) {
			t.Errorf("%s: got the expression %q, want %q in it", name, expr, afterThat[name].expr)
		}
		want += afterThat[name].time
		line := regexp.MustCompile(`(?m)\bFires after ([0-9.]+) minutes? of that\.$`).FindStringSubmatch(read(t, "runbooks/"+name+".md"))
		if line == nil {
			t.Errorf("runbooks/%s.md: does not say after which time it fires", name)
		} else if got, err := time.ParseDuration(line[1] + "m"); err != nil || got != want {
			t.Errorf("runbooks/%s.md: got %q, want %v", name, line[0], want)
		}
		row := regexp.MustCompile("(?m)^\\| `" + name + "` \\|.*$").FindString(readme)
		if row == "" {
			t.Errorf("%s: not in README.md", name)
		}
		if m := regexp.MustCompile(` for (two|five|ten) minutes`).FindStringSubmatch(row); m != nil && words[m[1]] != wait {
			t.Errorf("%s: README.md has%s, want %s", name, m[0], wait)
		}
	}
}

type dashboard struct {
	ID            *int
	UID           string
	Title         string
	Editable      bool
	SchemaVersion int
	Panels        []panel
	Annotations   struct{ List []annotation }
	Templating    struct {
		List []struct {
			Name, Type, Query string // the query of a data source variable
			Definition        string
			Refresh           int
		}
	}
}

type annotation struct {
	Name, TitleFormat string
	Datasource        datasource
	Expr              string
}

type datasource struct{ Type, UID string }

type panel struct {
	ID                       int
	Type, Title, Description string
	Datasource               datasource
	GridPos                  struct{ X, Y, W, H int }
	Targets                  []target
	FieldConfig              struct{ Defaults struct{ Unit string } }
	Links                    []struct{ URL string }
}

type target struct {
	RefID        string
	Datasource   datasource
	Expr         string
	LegendFormat string
}

func readDashboard(t *testing.T) dashboard {
	t.Helper()
	// The query of a variable is a string or an object, as its type wants it.
	text := regexp.MustCompile(`"query": \{[^}]*\}`).ReplaceAllString(read(t, dashboardFile), `"query": ""`)
	var d dashboard
	if err := json.Unmarshal([]byte(text), &d); err != nil {
		t.Fatalf("%s: %v", dashboardFile, err)
	}
	return d
}

func TestDashboard(t *testing.T) {
	d := readDashboard(t)
	if d.ID != nil || d.UID == "" || d.Title == "" || d.Editable || d.SchemaVersion == 0 {
		t.Errorf("got id %v, uid %q, title %q, editable %t, schema %d; want no id, a uid, a title, not editable, a schema",
			d.ID, d.UID, d.Title, d.Editable, d.SchemaVersion)
	}
	vars := map[string]string{}
	for _, v := range d.Templating.List {
		vars[v.Name] = v.Type + " " + v.Query + v.Definition
	}
	if got, want := vars["datasource"], "datasource prometheus"; got != want {
		t.Errorf("variable datasource: got %q, want %q", got, want)
	}
	if got, want := vars["job"], "query label_values(groupferry_build_info, job)"; got != want {
		t.Errorf("variable job: got %q, want %q", got, want)
	}
	if got, want := vars["runbooks"], "textbox runbooks"; got != want {
		t.Errorf("variable runbooks: got %q, want %q", got, want)
	}
	var marked []string
	for _, a := range d.Annotations.List {
		checkQuery(t, "annotation "+a.Name, a.Expr, a.Datasource)
		marked = append(marked, a.Name)
	}
	if want := []string{"Import begun", "Process started", "Halted", "Paused, or the API out of reach", "Leader changed"}; !slices.Equal(marked, want) {
		t.Errorf("annotations: got %q, want %q", marked, want)
	}

	runbooks := map[string]bool{}
	for _, m := range regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(read(t, "prometheus/alerts.yaml"), -1) {
		runbooks[m[1]] = true
	}
	var rows []string
	ids := map[int]string{}
	cells := map[[2]int]string{}
	for _, p := range d.Panels {
		if other, ok := ids[p.ID]; ok {
			t.Errorf("panels %q and %q have the same id %d", other, p.Title, p.ID)
		}
		ids[p.ID] = p.Title
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				cell := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if other, ok := cells[cell]; ok || cell[0] >= 24 {
					t.Fatalf("panel %q lies on %q or over the edge", p.Title, other)
				}
				cells[cell] = p.Title
			}
		}
		if p.Type == "row" {
			rows = append(rows, p.Title)
			continue
		}
		if p.Title == "" || p.Description == "" || p.FieldConfig.Defaults.Unit == "" || len(p.Targets) == 0 {
			t.Errorf("panel %d %q: got description %q, unit %q, %d targets; want all of them",
				p.ID, p.Title, p.Description, p.FieldConfig.Defaults.Unit, len(p.Targets))
		}
		for _, l := range p.Links {
			name, ok := strings.CutPrefix(strings.TrimSuffix(l.URL, ".md"), "${runbooks}/")
			if _, err := os.Stat("runbooks/" + name + ".md"); !ok || err != nil {
				t.Errorf("panel %q: link %q leads to no runbook", p.Title, l.URL)
			}
			delete(runbooks, name)
		}
		refs := map[string]bool{}
		for _, q := range p.Targets {
			checkQuery(t, "panel "+p.Title, q.Expr, q.Datasource)
			if q.LegendFormat == "" || refs[q.RefID] {
				t.Errorf("panel %q: target %s has no legend, or the refId of another", p.Title, q.RefID)
			}
			refs[q.RefID] = true
		}
	}
	for name := range runbooks {
		t.Errorf("runbook of %s: got no panel that links it", name)
	}
	if want := []string{"Now", "Nights", "Import", "Pace", "API", "Queue", "Process"}; !slices.Equal(rows, want) {
		t.Errorf("rows: got %q, want %q", rows, want)
	}
}

var (
	selector = regexp.MustCompile(`(?:job:groupferry_\w+:\w+|groupferry_[a-z_]+|process_[a-z_]+|ALERTS)(?:\{[^}]*\})?`)
	counter  = regexp.MustCompile(`(\w+\()?groupferry_\w+_(total|bucket)\{[^}]*\}(\[[^]]*\])?`)
)

func checkQuery(t *testing.T, where, expr string, ds datasource) {
	t.Helper()
	if ds != (datasource{"prometheus", "${datasource}"}) {
		t.Errorf("%s: got data source %+v, want the variable", where, ds)
	}
	selectors := selector.FindAllString(expr, -1)
	if len(selectors) == 0 {
		t.Errorf("%s: no series in %q", where, expr)
	}
	for _, s := range selectors {
		if !strings.Contains(s, `job=~"$job"`) {
			t.Errorf("%s: %s does not match the job", where, s)
		}
	}
	for _, m := range counter.FindAllStringSubmatch(expr, -1) {
		if m[1] != "rate(" || m[3] != "[$__rate_interval]" {
			t.Errorf("%s: got %s, want a rate over $__rate_interval", where, m[0])
		}
	}
}

// installed returns where a tool is, and skips the test where it is not; but in CI, which installs what can be had.
func installed(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil && os.Getenv("CI") == "true" && slices.Contains([]string{"promtool", "prometheus", "prometheus-alertmanager"}, name) {
		t.Fatal(err)
	}
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	return path
}

// run runs a tool where it is installed.
func run(t *testing.T, dir string, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(installed(t, name), args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, &out, &stderr)
	}
	return out.String()
}

func TestPromtool(t *testing.T) {
	for _, args := range [][]string{
		{"check", "config", "prometheus.yaml"},
		{"check", "rules", "alerts.yaml"},
		{"test", "rules", "alerts_test.yaml"},
		{"test", "rules", "alerts_hours_test.yaml"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			run(t, "prometheus", nil, "promtool", args...)
		})
	}
}

func TestSystemd(t *testing.T) {
	// systemd-analyze wants the binary to be there, so it gets one that is.
	dir := t.TempDir()
	binary := regexp.MustCompile(`(?m)^ExecStart=/usr/local/bin/groupferry `)
	units := files(t, ".service", ".timer")
	if len(units) != 3 {
		t.Errorf("units: got %q, want three", units)
	}
	for _, path := range units {
		text := read(t, path)
		if strings.HasSuffix(path, ".service") && !binary.MatchString(text) {
			t.Errorf("%s: does not start /usr/local/bin/groupferry", path)
		}
		text = binary.ReplaceAllString(text, "ExecStart=/bin/true ")
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(path)), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range units {
		name := filepath.Base(path)
		t.Run(name, func(t *testing.T) {
			env := []string{"SYSTEMD_UNIT_PATH=" + dir + ":"}
			run(t, dir, env, "systemd-analyze", "verify", "--man=no", "--recursive-errors=no", "./"+name)
			if strings.HasSuffix(name, ".service") { // exposure from 0 to 100; 20 is where "OK" ends
				run(t, dir, env, "systemd-analyze", "security", "--offline=true", "--threshold=20", "./"+name)
			}
		})
	}
}

// What a person set up by one file must find the place that another file names.
func TestPlacesAgree(t *testing.T) {
	tests := []struct{ file, holds string }{
		{"compose.yaml", `command: [work, --listen, "0.0.0.0:9477"`},
		{"prometheus/prometheus.yaml", "port: 9477"},
		{"prometheus/prometheus.yaml", "names: [worker]"},
		{"compose.yaml", "\n  worker:\n"},
		{"prometheus/prometheus.yaml", "job_name: groupferry\n"},
		{"compose.yaml", "./prometheus:/etc/prometheus:ro"},
		{"compose.yaml", "--config.file=/etc/prometheus/prometheus.yaml"},
		{"compose.yaml", "./grafana/dashboards:/var/lib/groupferry/dashboards:ro"},
		{"compose.yaml", "/var/lib/groupferry/dashboards/groupferry.json"},
		{"grafana/provisioning/dashboards/groupferry.yaml", "path: /var/lib/groupferry/dashboards\n"},
		{"grafana/provisioning/datasources/prometheus.yaml", "url: http://prometheus:9090\n"},
		{"compose.yaml", "\n  prometheus:\n"},
		{"compose.yaml", "stop_grace_period: 60s"},
		{"systemd/groupferry-worker.service", "TimeoutStopSec=60\n"},
		{"kubernetes/kustomization.yaml", "create secret generic groupferry-nats-worker --from-literal=NATS_URL="},
		{"kubernetes/worker.yaml", "name: groupferry-nats-worker\n                optional: true\n"},
		{"kubernetes/kustomization.yaml", "create secret generic groupferry-nats-import --from-literal=NATS_URL="},
		{"kubernetes/cronjob.yaml", "name: groupferry-nats-import\n                    optional: true\n"},
		{"Dockerfile", "-X main.buildVersion="},
		{"Dockerfile", "-X main.buildRevision="},
		{"../cmd/groupferry/version.go", "\n\tbuildVersion  string\n"},
		{"../cmd/groupferry/version.go", "\n\tbuildRevision string\n"},
	}
	for _, test := range tests {
		if !strings.Contains(read(t, test.file), test.holds) {
			t.Errorf("%s: got no %q", test.file, test.holds)
		}
	}
	for _, path := range []string{"../samples/groups.csv"} { // what compose imports
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is not there", path)
		}
	}
}
