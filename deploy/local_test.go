package deploy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"groupferry/internal/longtest"
)

// output is what a script has printed so far.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// eventually waits until something is so.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !so(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

// get reads a page; "" if there is none.
func get(url string) string {
	response, err := http.Get(url)
	if err != nil {
		return ""
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		return ""
	}
	return string(b) + "\n" // it is there
}

// startLocal starts local.sh, and waits until all is up.
func startLocal(t *testing.T) (script *exec.Cmd, out *output, ended chan error) {
	t.Helper()
	for _, tool := range []string{"bash", "sed", "mktemp"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	program, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	server, err := build("nats-server", "github.com/nats-io/nats-server/v2")
	if err != nil {
		t.Fatal(err)
	}
	script, out = exec.Command("bash", "local.sh", t.TempDir()), &output{}
	script.Env = append(os.Environ(), "program="+program, "nats_server="+server)
	script.Stdout, script.Stderr = out, out
	script.WaitDelay = time.Minute
	if err := script.Start(); err != nil {
		t.Fatal(err)
	}
	ended = make(chan error, 1)
	go func() { ended <- script.Wait() }()
	t.Cleanup(func() {
		script.Process.Signal(syscall.SIGTERM) // by which it stops the others
		select {
		case <-ended:
		case <-time.After(time.Minute):
			script.Process.Kill()
		}
		if t.Failed() {
			t.Log(out)
		}
	})
	eventually(t, "local.sh", func() bool {
		select {
		case err := <-ended:
			t.Fatalf("local.sh: %v\n%s", err, out)
		default:
		}
		return strings.Contains(out.String(), "Ctrl-C ends all of it.")
	})
	return script, out, ended
}

// down waits until nothing that a script started responds any more.
func down(t *testing.T, out *output) {
	t.Helper()
	for _, m := range regexp.MustCompile(`process (\d+)`).FindAllStringSubmatch(out.String(), -1) {
		eventually(t, "the end of process "+m[1], func() bool {
			stat, err := os.ReadFile("/proc/" + m[1] + "/stat")
			return err != nil || strings.Contains(string(stat), ") Z ")
		})
	}
}

// TestLocal has local.sh bring up everything, does an import there, and stops it as Ctrl-C does.
func TestLocal(t *testing.T) {
	longtest.Only(t)
	script, out, ended := startLocal(t)
	address := func(name string) (all []string) {
		line := regexp.MustCompile(`(?m)^` + name + ` .*$`).FindString(out.String())
		return regexp.MustCompile(`http://[0-9.:]+`).FindAllString(line, -1)
	}
	workers := address("workers")
	if len(workers) != 2 {
		t.Fatalf("got workers %q, want two", workers)
	}
	eventually(t, "one that leads and one that stands by", func() bool {
		leaders := 0
		for _, w := range workers {
			if strings.Contains(get(w+"/metrics"), "\ngroupferry_leader 1\n") {
				leaders++
			}
			if get(w+"/readyz") == "" {
				return false
			}
		}
		return leaders == 1
	})

	url := regexp.MustCompile(`NATS_URL=(\S+)`).FindStringSubmatch(out.String())
	program, _ := binary()
	groupferry := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(program, args...)
		cmd.Env, cmd.Dir = append(os.Environ(), "NATS_URL="+url[1]), t.TempDir()
		b, err := cmd.Output()
		if err != nil {
			t.Fatalf("groupferry %s: %v\n%s", strings.Join(args, " "), err, b)
		}
		return strings.TrimSpace(string(b))
	}
	samples, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	id := groupferry("import", samples+"/../samples/groups.csv")
	eventually(t, "the import", func() bool { return strings.Contains(groupferry("status", id), ": complete") })
	if ledger := get(address("simulator")[0] + "/ledger"); !strings.Contains(ledger, `"groups":`) {
		t.Errorf("got ledger %q", ledger)
	}

	if _, err := exec.LookPath("prometheus"); err == nil {
		prometheus := address("Prometheus")[0]
		eventually(t, "both workers in Prometheus", func() bool {
			var a struct {
				Data struct{ Result []struct{ Value [2]any } }
			}
			json.Unmarshal([]byte(get(prometheus+"/api/v1/query?query=sum(up{job=%22groupferry%22})")), &a)
			return len(a.Data.Result) == 1 && fmt.Sprint(a.Data.Result[0].Value[1]) == "2"
		})
		if _, err := exec.LookPath("prometheus-alertmanager"); err == nil {
			eventually(t, "Alertmanager in Prometheus", func() bool {
				return strings.Contains(get(prometheus+"/api/v1/alertmanagers"), address("Alertmanager")[0])
			})
		}
	}

	script.Process.Signal(os.Interrupt)
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("local.sh: %v", err)
		}
		ended <- nil
	case <-time.After(time.Minute):
		t.Fatal("local.sh does not end")
	}
	down(t, out)
}

// When one of them ends, local.sh ends all.
func TestLocalEnds(t *testing.T) {
	longtest.Only(t)
	_, out, ended := startLocal(t)
	m := regexp.MustCompile(`simulator: process (\d+)`).FindStringSubmatch(out.String())
	if err := exec.Command("kill", m[1]).Run(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(out.String(), "one of them has ended") {
			t.Errorf("local.sh: got %v, want code 1 and why", err)
		}
		ended <- nil
	case <-time.After(time.Minute):
		t.Fatal("local.sh does not end")
	}
	down(t, out)
}
