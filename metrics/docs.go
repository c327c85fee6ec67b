package metrics

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Table returns all series of groupferry as a Markdown table, by name: what a README shows and what a dashboard may
// ask for. It is made from a registry, so it cannot differ from what is served.
func Table() string {
	families, err := full().registry.Gather()
	if err != nil { // only a mistake in this package can make a sample inconsistent
		panic(err)
	}

	var b strings.Builder
	b.WriteString("| series | type | labels | meaning |\n|---|---|---|---|\n")
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), prefix) {
			continue // of the Go runtime or the process
		}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, "`"+l.GetName()+"`")
		}
		slices.Sort(labels)
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n",
			f.GetName(), strings.ToLower(f.GetType().String()), strings.Join(labels, ", "), f.GetHelp())
	}
	return b.String()
}

// full returns Metrics that know everything, so that no series is missing.
func full() *Metrics {
	const command = "command"
	m := New(Config{Commands: []string{command}, States: []State{{"running", "working"}}})
	m.Watch(func() Snapshot {
		return Snapshot{
			NATS: &NATS{}, Commands: map[string]Lane{command: {}}, Queue: &Queue{}, Storage: map[string]int64{"jobs": 0},
			Imports: []Import{{Kind: "single"}}, Syncs: []Sync{{Name: "contacts"}}, UserSigExpiry: time.Now(),
		}
	})
	m.JobStarted()
	m.JobDone("done", 0, 0, 0, 1)
	m.CallDone(command, "rejected", "", 0)
	return m
}
