package main

import (
	"bytes"
	"encoding/json"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
)

// version says what the metric groupferry_build_info does, and more.
func TestVersion(t *testing.T) {
	none := func(string) (string, bool) { return "", false }
	var stdout, stderr bytes.Buffer
	if code := run(nil, []string{"version", "-o", "json"}, none, strings.NewReader(""), &stdout, &stderr); code != exitDone {
		t.Fatalf("got exit code %d, %s", code, &stderr)
	}
	var got map[string]string
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	version, revision := build()
	want := map[string]string{"version": version, "revision": revision, "goversion": runtime.Version(),
		"platform": runtime.GOOS + "/" + runtime.GOARCH, "nats_server": natsServerVersion(t)}
	for key, value := range want {
		if got[key] != value || value == "" {
			t.Errorf("%s: got %q, want %q", key, got[key], value)
		}
	}
	if revision != testRevision || len(got) != len(want) {
		t.Errorf("got revision %q of %v", revision, got)
	}

	stdout.Reset()
	if code := run(nil, []string{"--version"}, none, strings.NewReader(""), &stdout, &stderr); code != exitDone {
		t.Errorf("--version: got exit code %d, %s", code, &stderr)
	}
	if got, want := stdout.String(), "groupferry version "+version+" "+revision+"\n"; got != want {
		t.Errorf("--version: got %q, want %q", got, want)
	}

	stdout.Reset()
	run(nil, []string{"version"}, none, strings.NewReader(""), &stdout, &stderr)
	for _, value := range want {
		if !strings.Contains(stdout.String(), value) {
			t.Errorf("got\n%s\nwant %s in it", &stdout, value)
		}
	}
}

// natsServerVersion is that of the module in this binary.
func natsServerVersion(t *testing.T) string {
	t.Helper()
	info, ok := debug.ReadBuildInfo()
	if !ok {
		t.Fatal("got no build info")
	}
	for _, m := range info.Deps {
		if m.Path == "github.com/nats-io/nats-server/v2" {
			return strings.TrimPrefix(m.Version, "v")
		}
	}
	t.Fatal("got no nats-server in the build info")
	return ""
}
