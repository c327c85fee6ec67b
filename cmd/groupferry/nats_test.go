package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"groupferry/internal/app"
	"groupferry/internal/chatsim"
)

// natsServer builds the server that is in go.mod, beside the program itself, and gives its path.
var natsServer = sync.OnceValues(func() (string, error) {
	program, err := exec.LookPath("groupferry")
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(program), "nats-server")
	out, err := exec.Command("go", "build", "-o", path, "github.com/nats-io/nats-server/v2").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build nats-server: %w\n%s", err, out)
	}
	return path, nil
})

// A natsProcess is a NATS server as a process, alone or in a cluster, which can be killed, and started again where it was.
type natsProcess struct {
	t              testing.TB
	name, dir      string
	client, status string // addresses
	cluster        string // what the configuration says about it, if it is in one
	include        string // a file in dir that the configuration begins with; it can be ""
	env            []string
	cmd            *exec.Cmd
}

func startNATS(t testing.TB) *natsProcess {
	t.Helper()
	return startAlone(t, &natsProcess{dir: t.TempDir()})
}

// startAlone starts a server that is in no cluster.
func startAlone(t testing.TB, b *natsProcess) *natsProcess {
	t.Helper()
	b.t, b.name, b.client, b.status = t, "alone", "127.0.0.1:-1", "127.0.0.1:-1"
	b.start()
	t.Cleanup(func() { b.kill() })
	var ports struct{ NATS, Monitoring []string }
	await(t, "the ports of the NATS server", func() bool {
		b, err := os.ReadFile(filepath.Join(b.dir, fmt.Sprintf("nats-server_%d.ports", b.cmd.Process.Pid)))
		return err == nil && json.Unmarshal(b, &ports) == nil && len(ports.NATS) > 0 && len(ports.Monitoring) > 0
	})
	b.client = strings.TrimPrefix(ports.NATS[0], "nats://")
	b.status = strings.TrimPrefix(ports.Monitoring[0], "http://")
	b.ready()
	return b
}

// startCluster starts a cluster of three, and waits until each of them is ready.
func startCluster(t testing.TB) []*natsProcess {
	t.Helper()
	routes := []string{freeAddress(t), freeAddress(t), freeAddress(t)}
	var nodes []*natsProcess
	for i := range routes {
		b := &natsProcess{t: t, name: fmt.Sprintf("n%d", i), dir: t.TempDir(), client: freeAddress(t), status: freeAddress(t)}
		b.cluster = fmt.Sprintf("cluster { name: c, listen: %q, no_advertise: true, routes: [\"nats://%s\"] }\n",
			routes[i], strings.Join(routes, `", "nats://`))
		b.start()
		t.Cleanup(func() { b.kill() })
		nodes = append(nodes, b)
	}
	for _, b := range nodes {
		b.ready()
	}
	return nodes
}

func (b *natsProcess) start() {
	b.t.Helper()
	path, err := natsServer()
	if err != nil {
		b.t.Fatal(err)
	}
	config := filepath.Join(b.dir, "config")
	text := fmt.Sprintf("server_name: %s\nlisten: %q\nhttp: %q\nports_file_dir: %q\njetstream { store_dir: %q }\n%s",
		b.name, b.client, b.status, b.dir, filepath.Join(b.dir, "store"), b.cluster)
	if b.include != "" {
		text = fmt.Sprintf("include %q\n%s", b.include, text)
	}
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
	b.cmd = exec.Command(path, "-c", config, "-l", filepath.Join(b.dir, "log"))
	b.cmd.Env = append(os.Environ(), b.env...)
	if err := b.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
}

// ready waits until the server has its streams, and has caught up with the others of its cluster.
func (b *natsProcess) ready() {
	b.t.Helper()
	await(b.t, "the NATS server "+b.name, b.isReady)
}

func (b *natsProcess) isReady() bool {
	client := http.Client{Timeout: time.Second} // it may be frozen
	response, err := client.Get("http://" + b.status + "/healthz")
	if err != nil {
		return false
	}
	response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// A leader and a standby that lose NATS say so: neither is ready, and neither counts as the leader. One signal ends them.
func TestLostNATS(t *testing.T) {
	t.Parallel()
	_, url := startSim(t, chatsim.Config{})
	nats := startNATS(t)
	s := newShell(t, url)
	s.env["NATS_URL"] = "nats://" + nats.client
	s.run(exitDone, "import", writeRows(t, makeRows(11, 1)))
	states := func(base string) (leader float64, state string, ready int) {
		samples := scrape(t, base+"/metrics")
		for name, value := range samples {
			if _, rest, ok := strings.Cut(name, `,state="`); ok && value == 1 {
				state = strings.TrimSuffix(rest, `"}`)
			}
		}
		if response, err := http.Get(base + "/readyz"); err == nil {
			response.Body.Close()
			ready = response.StatusCode
		}
		return samples["groupferry_leader"], state, ready
	}
	var calls []*call
	var bases []string
	for _, want := range []string{app.Running, app.Standby} {
		address := freeAddress(t)
		calls, bases = append(calls, s.start("work", "--listen", address)), append(bases, "http://"+address)
		await(t, "a process that is "+want, func() bool {
			_, state, ready := states("http://" + address)
			return state == want && ready == http.StatusOK
		})
	}
	nats.kill()
	for i, c := range calls {
		await(t, "a process that has noticed", func() bool {
			leader, state, ready := states(bases[i])
			return leader == 0 && state == app.Leaderless && ready == http.StatusServiceUnavailable
		})
		c.signals <- os.Interrupt
	}
	for _, c := range calls {
		c.wait(exitDone)
	}
}

// kill is kill -9.
func (b *natsProcess) kill() {
	b.cmd.Process.Kill()
	b.cmd.Wait()
}

// freeze stops the server where it is, and thaw lets it continue.
func (b *natsProcess) freeze() { freeze(b.t, b.cmd) }
func (b *natsProcess) thaw()   { thaw(b.t, b.cmd) }

// messages counts those that went in and out so far.
func (b *natsProcess) messages() int64 {
	b.t.Helper()
	response, err := http.Get("http://" + b.status + "/varz")
	if err != nil {
		b.t.Fatal(err)
	}
	defer response.Body.Close()
	var v struct {
		In  int64 `json:"in_msgs"`
		Out int64 `json:"out_msgs"`
	}
	if err := json.NewDecoder(response.Body).Decode(&v); err != nil {
		b.t.Fatal(err)
	}
	return v.In + v.Out
}
