package deploy

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"groupferry/metrics"
)

// A node is a piece of a YAML document: at goes down by keys and indexes, and gives nothing where there is nothing.
type node struct{ v any }

func (n node) at(path ...any) node {
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := n.v.(map[string]any)
			n = node{m[p]}
		case int:
			l, _ := n.v.([]any)
			if p >= len(l) {
				return node{}
			}
			n = node{l[p]}
		}
	}
	return n
}

func (n node) list() (all []node) {
	l, _ := n.v.([]any)
	for _, v := range l {
		all = append(all, node{v})
	}
	return all
}

// keys are those of a map.
func (n node) keys() (keys []string) {
	m, _ := n.v.(map[string]any)
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (n node) String() string {
	if n.v == nil {
		return ""
	}
	return fmt.Sprint(n.v)
}

func (n node) int() int {
	i, _ := n.v.(int)
	return i
}

func (n node) strings() (all []string) {
	for _, s := range n.list() {
		all = append(all, s.String())
	}
	return all
}

// documents reads all documents of a YAML file.
func documents(t *testing.T, path string) []node {
	t.Helper()
	return decode(t, path, read(t, path))
}

func decode(t *testing.T, path, text string) (all []node) {
	t.Helper()
	d := yaml.NewDecoder(strings.NewReader(text))
	for {
		var v any
		err := d.Decode(&v)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		all = append(all, node{v})
	}
}

// manifests reads all objects of Kubernetes, by kind.
func manifests(t *testing.T) map[string][]node {
	t.Helper()
	all := map[string][]node{}
	for _, path := range files(t, ".yaml") {
		if filepath.Base(path) == "kustomization.yaml" || !strings.HasPrefix(filepath.ToSlash(path), "kubernetes/") {
			continue
		}
		for _, d := range documents(t, path) {
			all[d.at("kind").String()] = append(all[d.at("kind").String()], d)
		}
	}
	return all
}

// pods are the pod templates of all objects that make pods.
func pods(t *testing.T) map[string]node {
	all := map[string]node{}
	for kind, objects := range manifests(t) {
		for _, o := range objects {
			for _, template := range []node{o.at("spec", "template"), o.at("spec", "jobTemplate", "spec", "template")} {
				if template.v != nil {
					all[kind+" "+o.at("metadata", "name").String()] = template
				}
			}
		}
	}
	if len(all) != 3 {
		t.Fatalf("pods: got %d, want those of a Deployment, a CronJob and a Job", len(all))
	}
	return all
}

// selects reports whether labels have all that a selector asks for, which must ask for something.
func selects(selector, labels node) bool {
	for _, k := range selector.keys() {
		if selector.at(k).String() != labels.at(k).String() {
			return false
		}
	}
	return len(selector.keys()) > 0
}

func TestSelectors(t *testing.T) {
	all := manifests(t)
	if len(all["Deployment"]) != 1 || len(all["PodDisruptionBudget"]) != 1 || len(all["NetworkPolicy"]) != 1 || len(all["PodMonitor"]) != 1 {
		t.Fatalf("got kinds %v", all)
	}
	worker := all["Deployment"][0]
	labels := worker.at("spec", "template", "metadata", "labels")
	for what, selector := range map[string]node{
		"Deployment":          worker.at("spec", "selector", "matchLabels"),
		"PodDisruptionBudget": all["PodDisruptionBudget"][0].at("spec", "selector", "matchLabels"),
		"PodMonitor":          all["PodMonitor"][0].at("spec", "selector", "matchLabels"),
	} {
		if !selects(selector, labels) {
			t.Errorf("%s: selects %v, the pods have %v", what, selector, labels)
		}
		if name := "app.kubernetes.io/name"; selector.at(name).v == nil {
			t.Errorf("%s: selects %v, and not by %s", what, selector, name)
		}
	}
	for name, pod := range pods(t) {
		if !strings.HasPrefix(name, "Deployment") && selects(worker.at("spec", "selector", "matchLabels"), pod.at("metadata", "labels")) {
			t.Errorf("the Deployment takes the pod of %s for its own", name)
		}
	}
	// The policy is for what kustomize labels, pods included.
	label := documents(t, "kubernetes/kustomization.yaml")[0].at("labels", 0)
	if policy := all["NetworkPolicy"][0].at("spec", "podSelector", "matchLabels"); !selects(policy, label.at("pairs")) ||
		label.at("includeTemplates").v != true {
		t.Errorf("NetworkPolicy: selects %v, pods get %v", policy, label)
	}
	if got := worker.at("spec", "replicas").int(); got != 2 {
		t.Errorf("got %d replicas, want one that works and one that stands by", got)
	}
	if got := worker.at("spec", "strategy", "type").String(); got != "Recreate" {
		t.Errorf("got strategy %q, in which a halted worker is waited for", got)
	}
	if got := all["PodDisruptionBudget"][0].at("spec", "maxUnavailable").int(); got != 1 {
		t.Errorf("at most %d pods are away, want one of the two", got)
	}
}

// container is the one of a pod.
func container(t *testing.T, name string, pod node) node {
	t.Helper()
	all := pod.at("spec", "containers").list()
	if len(all) != 1 {
		t.Fatalf("%s: got %d containers, want one", name, len(all))
	}
	return all[0]
}

// Ports and paths lead to what is served there.
func TestPorts(t *testing.T) {
	handler := metrics.New(metrics.Config{}).Handler(func() error { return nil })
	serves := func(what, path string) {
		t.Helper()
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != http.StatusOK {
			t.Errorf("%s: %s: got status %d", what, path, w.Code)
		}
	}
	all := manifests(t)
	c := container(t, "worker", all["Deployment"][0].at("spec", "template"))
	ports := map[string]int{}
	for _, p := range c.at("ports").list() {
		ports[p.at("name").String()] = p.at("containerPort").int()
	}
	_, listens, _ := strings.Cut(flagOf(c.at("args").strings(), "listen"), ":")
	if port, _ := strconv.Atoi(listens); port == 0 || ports["metrics"] != port {
		t.Errorf("worker: got ports %v, it listens on %q", ports, listens)
	}
	for probe, path := range map[string]string{"livenessProbe": "/livez", "readinessProbe": "/readyz"} {
		get := c.at(probe, "httpGet")
		serves(probe, get.at("path").String())
		if got := get.at("path").String(); got != path {
			t.Errorf("%s: got path %q, want %q", probe, got, path)
		}
		if ports[get.at("port").String()] == 0 {
			t.Errorf("%s: port %s is not one of %v", probe, get.at("port"), ports)
		}
	}
	endpoint := all["PodMonitor"][0].at("spec", "podMetricsEndpoints", 0)
	serves("PodMonitor", endpoint.at("path").String())
	policy := all["NetworkPolicy"][0].at("spec", "ingress", 0, "ports", 0, "port").String()
	for what, port := range map[string]string{"PodMonitor": endpoint.at("port").String(), "NetworkPolicy": policy} {
		if ports[port] == 0 {
			t.Errorf("%s: port %s is not one of %v", what, port, ports)
		}
	}
	if got := all["Deployment"][0].at("spec", "template", "metadata", "annotations", "prometheus.io/port").String(); got != listens {
		t.Errorf("annotation: got port %q, want %q", got, listens)
	}
	out := fmt.Sprint(all["NetworkPolicy"][0].at("spec", "egress"))
	for _, port := range []string{"port:53 ", "port:4222 ", "port:443 "} { // DNS, NATS, the API
		if !strings.Contains(out, port) {
			t.Errorf("NetworkPolicy: lets nothing out to %s: %s", port, out)
		}
	}
	if url := configMap(t)["NATS_URL"]; !strings.HasPrefix(url, "nats://") || strings.Contains(url, ":") && !strings.Contains(url, ":4222") {
		t.Errorf("NATS_URL %q: the NetworkPolicy lets port 4222 out", url)
	}
}

// configMap has the settings of all pods.
func configMap(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, l := range documents(t, "kubernetes/kustomization.yaml")[0].at("configMapGenerator", 0, "literals").strings() {
		name, value, _ := strings.Cut(l, "=")
		all[name] = value
	}
	return all
}

// flagOf is the value of a flag in arguments, written with = or as two of them.
func flagOf(args []string, name string) string {
	for i, arg := range args {
		if value, ok := strings.CutPrefix(arg, "--"+name+"="); ok {
			return value
		}
		if arg == "--"+name && i+1 < len(args) {
			return args[i+1]
		}
	}
	return ""
}

// constant finds a number of seconds in the source.
func constant(t *testing.T, file, pattern string) time.Duration {
	t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(read(t, file))
	if m == nil {
		t.Fatalf("%s: got nothing like %s", file, pattern)
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(n) * time.Second
}

// After SIGTERM jobs in flight may end, then the last call, then what the leader has to write: only after that it is killed.
func TestGrace(t *testing.T) {
	least := constant(t, "../worker/worker.go", `cfg\.Grace = (\d+) \* time\.Second`) +
		constant(t, "../cmd/groupferry/settings.go", `"timeout", (\d+)\*time\.Second`) +
		constant(t, "../internal/app/term.go", `\bclosing += (\d+) \* time\.Second`)
	enough := func(what, seconds string) {
		t.Helper()
		got, err := time.ParseDuration(seconds + "s")
		if err != nil || got <= least {
			t.Errorf("%s: got %q seconds to stop in, want more than %v", what, seconds, least)
		}
	}
	for name, pod := range pods(t) {
		enough(name, pod.at("spec", "terminationGracePeriodSeconds").String())
	}
	enough("compose", strings.TrimSuffix(documents(t, "compose.yaml")[0].at("services", "worker", "stop_grace_period").String(), "s"))
	if m := regexp.MustCompile(`(?m)^TimeoutStopSec=(\d+)$`).FindStringSubmatch(read(t, "systemd/groupferry-worker.service")); m == nil {
		t.Error("systemd: got no TimeoutStopSec")
	} else {
		enough("systemd", m[1])
	}
}

// Each pod is closed to what it does not need, and finds what it mounts.
func TestPods(t *testing.T) {
	claims := map[string]bool{}
	for _, c := range manifests(t)["PersistentVolumeClaim"] {
		claims[c.at("metadata", "name").String()] = true
	}
	k := documents(t, "kubernetes/kustomization.yaml")[0]
	comment := read(t, "kubernetes/kustomization.yaml")
	for name, pod := range pods(t) {
		c := container(t, name, pod)
		for path, want := range map[string]any{
			"securityContext runAsNonRoot": true, "securityContext runAsUser": 65532, "securityContext fsGroup": 65532,
			"securityContext seccompProfile type": "RuntimeDefault", "automountServiceAccountToken": false,
		} {
			at := pod.at("spec")
			for _, key := range strings.Fields(path) {
				at = at.at(key)
			}
			if at.v != want {
				t.Errorf("%s: %s: got %v, want %v", name, path, at, want)
			}
		}
		security := c.at("securityContext")
		if security.at("readOnlyRootFilesystem").v != true || security.at("allowPrivilegeEscalation").v != false ||
			security.at("capabilities", "drop", 0).v != "ALL" {
			t.Errorf("%s: got %v, want it hardened", name, security)
		}
		if c.at("resources", "limits", "memory").v == nil || c.at("resources", "limits", "cpu").v != nil {
			t.Errorf("%s: got %v, want a limit of memory and none of CPU", name, c.at("resources"))
		}
		if c.at("image").String() != k.at("images", 0, "name").String() {
			t.Errorf("%s: image %s is not the one of the kustomization", name, c.at("image"))
		}

		volumes, mounts := map[string]node{}, map[string]string{}
		for _, v := range pod.at("spec", "volumes").list() {
			volumes[v.at("name").String()] = v
			if claim := v.at("persistentVolumeClaim", "claimName"); claim.v != nil && !claims[claim.String()] {
				t.Errorf("%s: there is no claim %s", name, claim)
			}
			if secret := v.at("secret", "secretName").String(); secret != "" && !strings.Contains(comment, "secret generic "+secret+" ") &&
				!strings.Contains(comment, " "+secret+" hold as ") {
				t.Errorf("%s: nobody is told to make the secret %s", name, secret)
			}
		}
		for _, m := range c.at("volumeMounts").list() {
			mounts[m.at("mountPath").String()] = m.at("name").String()
			if volumes[m.at("name").String()].v == nil {
				t.Errorf("%s: there is no volume %s", name, m.at("name"))
			}
		}
		if len(mounts) != len(volumes) {
			t.Errorf("%s: got volumes %v and mounts %v, want each mounted", name, volumes, mounts)
		}
		if mounts["/tmp"] == "" {
			t.Errorf("%s: got no /tmp, where an input is sorted", name)
		}
		if mounts["/run/secrets/nats"] == "" || !strings.Contains(comment, "NATS_CREDS=/run/secrets/nats/nats.creds") {
			t.Errorf("%s: got no place for NATS credentials", name)
		}
		if key := flagOf(c.at("args").strings(), "secret-key-file"); key != "" {
			m := regexp.MustCompile(`secret generic (\S+) --from-file=(\S+)=FILE`).FindStringSubmatch(comment)
			volume := volumes[mounts[filepath.ToSlash(filepath.Dir(key))]]
			if m == nil || filepath.Base(key) != m[2] || volume.at("secret", "secretName").String() != m[1] {
				t.Errorf("%s: nothing is at %s, as the kustomization has it made", name, key)
			}
		} else if strings.HasPrefix(name, "Deployment") {
			t.Errorf("%s: got no --secret-key-file", name)
		}
		if in := c.at("workingDir").String(); in != "" && mounts[in] == "" {
			t.Errorf("%s: nothing is mounted at %s, where it works", name, in)
		}
		from := c.at("envFrom", 0, "configMapRef", "name").String()
		if from != k.at("configMapGenerator", 0, "name").String() {
			t.Errorf("%s: settings come from %q", name, from)
		}
		if secret := c.at("envFrom", 1, "secretRef", "name").String(); !strings.Contains(comment, "secret generic "+secret+" --from-literal=NATS_URL=") {
			t.Errorf("%s: nobody is told to make the secret %s", name, secret)
		}
	}
}

// Jobs that wait for a person are not tried again: see TestNoRestart for the codes.
func TestJobs(t *testing.T) {
	all := manifests(t)
	cron, job := all["CronJob"][0], all["Job"][0]
	for name, spec := range map[string]node{"CronJob": cron.at("spec", "jobTemplate", "spec"), "Job": job.at("spec")} {
		c := container(t, name, spec.at("template"))
		rule := spec.at("podFailurePolicy", "rules", 0)
		codes := rule.at("onExitCodes", "values").strings()
		if rule.at("action").String() != "FailJob" || rule.at("onExitCodes", "operator").String() != "In" ||
			rule.at("onExitCodes", "containerName").String() != c.at("name").String() || !slices.Equal(codes, []string{"2", "3", "4", "5"}) {
			t.Errorf("%s: got rule %v, want the codes 2 to 5 of %s to fail it", name, rule, c.at("name"))
		}
		if got := spec.at("template", "spec", "restartPolicy").String(); got != "Never" { // which a failure policy needs
			t.Errorf("%s: got restartPolicy %q", name, got)
		}
		if ignored := spec.at("podFailurePolicy", "rules", 1); ignored.at("action").String() != "Ignore" ||
			ignored.at("onPodConditions", 0, "type").String() != "DisruptionTarget" {
			t.Errorf("%s: a drained node counts as a failure: %v", name, ignored)
		}
		if spec.at("backoffLimit").int() < 1 || spec.at("activeDeadlineSeconds").int() < 3600 {
			t.Errorf("%s: got backoffLimit %s, activeDeadlineSeconds %s", name, spec.at("backoffLimit"), spec.at("activeDeadlineSeconds"))
		}
	}
	if len(strings.Fields(cron.at("spec", "schedule").String())) != 5 || cron.at("spec", "concurrencyPolicy").String() != "Forbid" ||
		cron.at("spec", "timeZone").v == nil {
		t.Errorf("CronJob: got %v", cron.at("spec"))
	}
	args := container(t, "Job", job.at("spec", "template")).at("args").strings()
	if flagOf(args, "import-id") == "" || flagOf(args, "sync") != "" {
		t.Errorf("Job: got %q, want an import with an ID of its own", args)
	}
}

// buildDir is where the tests build programs.
var buildDir string

func TestMain(m *testing.M) {
	var err error
	if buildDir, err = os.MkdirTemp("", "groupferry-deploy-*"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(buildDir)
	os.Exit(code)
}

// binary builds the program once, and gives its path.
var binary = sync.OnceValues(func() (string, error) { return build("groupferry", "../cmd/groupferry") })

func build(name, pkg string) (string, error) {
	path := filepath.Join(buildDir, name)
	out, err := exec.Command("go", "build", "-buildvcs=false", "-o", path, pkg).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return path, nil
}

// commands are all command lines of groupferry in the files here.
func commands(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for name, pod := range pods(t) {
		all[name] = container(t, name, pod).at("args").strings()
	}
	services := documents(t, "compose.yaml")[0].at("services")
	for _, name := range services.keys() {
		if s := services.at(name); s.at("image").String() == "groupferry" {
			all["compose "+name] = s.at("command").strings()
		}
	}
	for _, unit := range files(t, ".service") {
		m := regexp.MustCompile(`(?m)^ExecStart=/usr/local/bin/groupferry (.*)$`).FindStringSubmatch(read(t, unit))
		if m == nil {
			t.Fatalf("%s: does not start /usr/local/bin/groupferry", unit)
		}
		all[unit] = strings.Fields(m[1])
	}
	return all
}

// The program knows each flag and its value, and each setting.
func TestFlags(t *testing.T) {
	program, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	all := commands(t)
	if len(all) != 10 {
		t.Errorf("got %d commands, want 10: %v", len(all), all)
	}
	flags := map[string]bool{}
	flag := regexp.MustCompile(`--([a-z][a-z-]+)`)
	for name, args := range all {
		out, err := exec.Command(program, append(slices.Clone(args), "--help")...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "groupferry "+args[0]) {
			t.Errorf("%s: groupferry %s --help: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		for _, m := range flag.FindAllStringSubmatch(string(out), -1) {
			flags[m[1]] = true
		}
	}
	settings := regexp.MustCompile(`\b(?:GROUPFERRY|NATS)_[A-Z_]*[A-Z]\b`)
	used := map[string]bool{}
	for _, path := range append(files(t, ".yaml", ".service", ".sh"), "README.md") {
		for _, name := range settings.FindAllString(read(t, path), -1) {
			used[name] = true
			known := flags[strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(name, "GROUPFERRY_")), "_", "-")] ||
				flags[strings.ReplaceAll(strings.ToLower(name), "_", "-")] || slices.Contains([]string{
				"GROUPFERRY_SECRET_KEY", "GROUPFERRY_USERSIG", "GROUPFERRY_LONG_TESTS", "GROUPFERRY_SIMULATE_LISTEN", "GROUPFERRY_SIMULATE_RATE",
			}, name)
			if !known {
				t.Errorf("%s: no flag is set by %s", path, name)
			}
		}
	}
	if len(used) < 8 {
		t.Errorf("got settings %v, want some more", used)
	}
}

// What the services of compose name is there, and what one offers another one asks for.
func TestCompose(t *testing.T) {
	c := documents(t, "compose.yaml")[0]
	services := c.at("services")
	conf := read(t, "nats/groupferry.conf")
	login := regexp.MustCompile(`^nats://(\w+):(.+)@nats:4222$`)
	for _, name := range services.keys() {
		s := services.at(name)
		for _, on := range s.at("depends_on").keys() {
			if services.at(on).v == nil {
				t.Errorf("%s depends on %s, which is not there", name, on)
			}
			if s.at("depends_on", on, "condition").String() == "service_healthy" && services.at(on, "healthcheck").v == nil {
				t.Errorf("%s waits for %s to be healthy, which nobody checks", name, on)
			}
		}
		for _, v := range s.at("volumes").strings() {
			from, _, _ := strings.Cut(v, ":")
			if strings.HasPrefix(from, ".") {
				if _, err := os.Stat(from); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			} else if _, ok := c.at("volumes").v.(map[string]any)[from]; !ok {
				t.Errorf("%s: there is no volume %s", name, from)
			}
		}
		if s.at("read_only").v != true || s.at("cap_drop", 0).v != "ALL" || s.at("security_opt", 0).v != "no-new-privileges:true" {
			t.Errorf("%s is not hardened", name)
		}
		for _, port := range s.at("ports").strings() {
			if !strings.HasPrefix(port, "127.0.0.1:") {
				t.Errorf("%s: port %s is open to the network", name, port)
			}
		}
		if url := s.at("environment", "NATS_URL").String(); url != "" {
			m := login.FindStringSubmatch(url)
			if m == nil || !strings.Contains(conf, "user: "+m[1]+"\n") ||
				services.at("nats", "environment", strings.ToUpper(m[1])+"_PASSWORD").String() != m[2] {
				t.Errorf("%s: NATS does not let %s in", name, url)
			}
		}
	}
	var passwords []string
	for _, m := range regexp.MustCompile(`\$([A-Z]+_PASSWORD)`).FindAllStringSubmatch(conf, -1) {
		passwords = append(passwords, m[1])
	}
	slices.Sort(passwords)
	if got := services.at("nats", "environment").keys(); !slices.Equal(got, passwords) {
		t.Errorf("NATS: got passwords %q, want %q", got, passwords)
	}
	if got := services.at("worker", "deploy", "replicas").int(); got != 2 {
		t.Errorf("got %d workers, want 2", got)
	}

	prometheus := documents(t, "prometheus/prometheus.yaml")[0]
	scrape := prometheus.at("scrape_configs", 0, "dns_sd_configs", 0)
	if name := scrape.at("names", 0).String(); services.at(name).v == nil ||
		flagOf(services.at(name, "command").strings(), "listen") != "0.0.0.0:"+scrape.at("port").String() {
		t.Errorf("Prometheus scrapes %v, and nobody is there", scrape)
	}
	for _, target := range prometheus.at("alerting", "alertmanagers", 0, "static_configs", 0, "targets").strings() {
		name, port, _ := strings.Cut(target, ":")
		if ports := services.at(name, "ports").strings(); !slices.Contains(ports, "127.0.0.1:"+port+":"+port) {
			t.Errorf("Prometheus sends alerts to %s, and nobody is there", target)
		}
	}
	_, listens, _ := strings.Cut(flagOf(services.at("simulator", "command").strings(), "listen"), ":")
	if got := services.at("worker", "environment", "GROUPFERRY_API_URL").String(); got != "http://simulator:"+listens {
		t.Errorf("workers call %s, the simulator listens on %s", got, listens)
	}
}

// The values for the NATS chart give the server the passwords that its configuration asks for, and that configuration.
func TestNATSValues(t *testing.T) {
	v := documents(t, "nats/values.yaml")[0]
	comment := read(t, "nats/values.yaml")
	var passwords []string
	for _, m := range regexp.MustCompile(`\$([A-Z]+_PASSWORD)`).FindAllStringSubmatch(read(t, "nats/groupferry.conf"), -1) {
		passwords = append(passwords, m[1])
	}
	slices.Sort(passwords)
	env := v.at("container", "env")
	if !slices.Equal(env.keys(), passwords) {
		t.Errorf("got passwords %q, want %q", env.keys(), passwords)
	}
	for _, name := range env.keys() {
		ref := env.at(name, "valueFrom", "secretKeyRef")
		if ref.at("key").String() != name || !strings.Contains(comment, "secret generic "+ref.at("name").String()+" ") ||
			!strings.Contains(comment, "--from-literal="+name+"=") {
			t.Errorf("%s: got %v, want a secret that the comment makes", name, ref)
		}
	}
	file := v.at("config", "merge", "00$include").String()
	if !strings.Contains(comment, `configMap.merge.data.`+strings.Replace(file, ".", `\.`, 1)+"=deploy/nats/"+file) {
		t.Errorf("got include %q, which the comment does not put there", file)
	}
	if v.at("config", "cluster", "replicas").int() != 3 || v.at("config", "cluster", "enabled").v != true || v.at("config", "jetstream", "enabled").v != true {
		t.Errorf("got %v, want three servers with JetStream", v.at("config"))
	}
}

// TestKustomize builds what is applied, with and without the components that the comment offers.
func TestKustomize(t *testing.T) {
	tool := []string{"kubectl", "kustomize"}
	if _, err := exec.LookPath("kubectl"); err != nil {
		tool = []string{"kustomize", "build"}
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("kubernetes")); err != nil {
		t.Fatal(err)
	}
	kinds := func(dir string) (all []string) {
		t.Helper()
		out := run(t, dir, nil, tool[0], tool[1], ".")
		generated := regexp.MustCompile(`(?m)^  name: (groupferry-[a-z0-9]{10})$`).FindStringSubmatch(out)
		if generated == nil {
			t.Fatalf("got no ConfigMap whose name is made from what is in it:\n%s", out)
		}
		for _, o := range decode(t, "kustomize", out) {
			all = append(all, o.at("kind").String())
			if got := o.at("metadata", "namespace").String(); got != "groupferry" {
				t.Errorf("%s: got namespace %q", o.at("kind"), got)
			}
		}
		for _, m := range regexp.MustCompile(`configMapRef:\n +name: (\S+)\n`).FindAllStringSubmatch(out, -1) {
			if m[1] != generated[1] {
				t.Errorf("a pod has its settings from %s, want %s", m[1], generated[1])
			}
		}
		slices.Sort(all)
		return all
	}
	base := []string{"ConfigMap", "CronJob", "Deployment", "NetworkPolicy", "PersistentVolumeClaim", "PodDisruptionBudget"}
	if got := kinds(dir); !slices.Equal(got, base) {
		t.Errorf("got %q, want %q", got, base)
	}
	path := filepath.Join(dir, "kustomization.yaml")
	text := strings.ReplaceAll(strings.Replace(read(t, "kubernetes/kustomization.yaml"), "components: []", "components:", 1), "\n#  - ", "\n  - ")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	all := append(slices.Clone(base), "Job", "PodMonitor")
	slices.Sort(all)
	if got := kinds(dir); !slices.Equal(got, all) {
		t.Errorf("with components: got %q, want %q", got, all)
	}
}
