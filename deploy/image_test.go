package deploy

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"groupferry/internal/longtest"
)

// TestImage builds the image of the Dockerfile with buildah, and has it import a file. There may be no registry: the image that
// the build begins with has this machine's Go, and modules and compiled packages from its caches.
func TestImage(t *testing.T) {
	longtest.Only(t)
	if os.Geteuid() != 0 {
		t.Skip("only root can build an image here")
	}
	store := t.TempDir()
	buildah := func(args ...string) string {
		t.Helper()
		return strings.TrimSpace(run(t, "..", []string{"BUILDAH_ISOLATION=chroot"}, "buildah", append([]string{
			"--root", filepath.Join(store, "root"), "--runroot", filepath.Join(store, "run"), "--storage-driver", "vfs"}, args...)...))
	}
	env := func(name string) string { return strings.TrimSpace(run(t, ".", nil, "go", "env", name)) }

	base := regexp.MustCompile(`(?m)^FROM \S+ (golang:\S+) AS build$`).FindStringSubmatch(read(t, "Dockerfile"))
	if base == nil {
		t.Fatal("the Dockerfile does not begin with an image of Go")
	}
	c := buildah("from", "scratch")
	rootfs := buildah("mount", c)
	run(t, ".", nil, "sh", "-c", `
		set -e
		mkdir -p "$0"/tmp "$0"/usr/local/go "$0"/go && chmod 1777 "$0"/tmp
		for f in /bin/sh /bin/mkdir /etc/ssl/certs/ca-certificates.crt; do
			cp -L --parents $f "$0"
			for l in $(ldd $f 2>/dev/null | grep -o '/[^ ]*'); do cp -L --parents $l "$0"; done
		done`, rootfs)
	buildah("config", "--env", "PATH=/usr/local/go/bin:/bin", "--env", "GOPATH=/go", "--env", "GOCACHE=/go/cache", "--env", "GOPROXY=off",
		"--env", "GOTOOLCHAIN=local", c)
	buildah("umount", c)
	buildah("commit", c, "docker.io/library/"+base[1])

	buildah("build", "--pull=false", "-f", "deploy/Dockerfile", "--ignorefile", "deploy/Dockerfile.dockerignore",
		"--build-arg", "VERSION=v1.2.3", "--build-arg", "REVISION=abc", "-v", env("GOROOT")+":/usr/local/go:ro",
		"-v", env("GOMODCACHE")+":/go/pkg/mod", "-v", env("GOCACHE")+":/go/cache", "-t", "groupferry", ".")
	var image struct {
		OCIv1 struct {
			Config struct {
				User, WorkingDir, StopSignal string
				Entrypoint                   []string
				Labels                       map[string]string
			}
		}
	}
	if err := json.Unmarshal([]byte(buildah("inspect", "--type", "image", "groupferry")), &image); err != nil {
		t.Fatal(err)
	}
	config := image.OCIv1.Config
	if config.User != "65532:65532" || config.WorkingDir != "/data" || config.StopSignal != "SIGTERM" ||
		strings.Join(config.Entrypoint, " ") != "/usr/local/bin/groupferry" || config.Labels["org.opencontainers.image.licenses"] == "" {
		t.Errorf("got image %+v", config)
	}

	c = buildah("from", "--pull=false", "groupferry")
	rootfs = buildah("mount", c)
	if _, err := os.Stat(filepath.Join(rootfs, "bin")); err == nil {
		t.Error("the image has more than it needs")
	}
	if out, err := exec.Command("ldd", filepath.Join(rootfs, "usr/local/bin/groupferry")).CombinedOutput(); err == nil {
		t.Errorf("the binary is not static: %s", out)
	}
	if got := buildah("run", c, "--", "/usr/local/bin/groupferry", "--version"); !strings.Contains(got, "v1.2.3 abc") {
		t.Errorf("got version %q", got)
	}
	samples, err := filepath.Abs("../samples")
	if err != nil {
		t.Fatal(err)
	}
	// As a user that may write to /data and /tmp alone: the queue goes to one, the spool to the other.
	got := buildah("run", "-v", samples+":/samples:ro", c, "--", "/usr/local/bin/groupferry", "run", "--simulate", "--data-dir", "queue", "/samples/groups.csv")
	if !strings.Contains(got, ": complete, simulated") {
		t.Errorf("got report %q", got)
	}
	info, err := os.Stat(filepath.Join(rootfs, "data", "queue"))
	if err != nil || !info.IsDir() {
		t.Errorf("got no queue in /data: %v", err)
	}
}

func TestShellcheck(t *testing.T) {
	run(t, ".", nil, "shellcheck", "local.sh", "../.ci/run")
}

func TestAmtool(t *testing.T) {
	run(t, ".", nil, "amtool", "check-config", "alertmanager/alertmanager.yaml")
}

// TestStrict has each manifest read by the types of the Kubernetes API, and compose.yaml by the reader of docker compose,
// which know all fields. They are a module of their own, for they are large.
func TestStrict(t *testing.T) {
	longtest.Only(t)
	var paths []string
	for _, path := range files(t, ".yaml") {
		if path == "compose.yaml" || strings.HasPrefix(filepath.ToSlash(path), "kubernetes/") && filepath.Base(path) != "kustomization.yaml" {
			path, err := filepath.Abs(path)
			if err != nil {
				t.Fatal(err)
			}
			paths = append(paths, path)
		}
	}
	if len(paths) != 6 {
		t.Errorf("got manifests %q, want six files", paths)
	}
	run(t, filepath.Join("testdata", "strict"), []string{"GOFLAGS=-mod=mod"}, "go", append([]string{"run", "."}, paths...)...)
}
