// Package archtest keeps the layout: it reads what the packages of this module import and fails on an import that the
// layout does not allow, on a package that it does not know, and on anything at the root that does not belong there.
//
//	cmd/groupferry ──► internal/app                           flags, environment and terminal: in cmd alone
//	                        │
//	       ┌────────────────┼───────────────┬──────────────┐
//	       ▼                ▼               ▼              ▼
//	   importer          worker          metrics     internal/page      do not know each other
//	       │                │               │
//	       └────────────────┴───┬───────────┘
//	                            ▼
//	   internal/: queue ──► broker ──► lease ──► clock      governor ──► clock      job  chat  chatsim  redact
//
// Every third-party module has one package that imports it, so that it can be replaced there, but for becomingStandard
// and for NATS, which queue and broker share. A package that gets one more is added to the table here, in the commit
// that does it.
package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// module is the path of this module, and root its directory as seen from here.
const (
	module = "groupferry"
	root   = "../.."
)

// Rules say what a package may import beside the standard library.
type rules struct {
	own         []string // packages of this module
	modules     []string // third-party modules: the path itself, or all paths under one that ends in a slash
	testOwn     []string // what its tests may import too
	testModules []string
}

// becomingStandard is on its way into the standard library, as encoding/json/jsontext; there every package may use it, so
// more than one has it here.
const becomingStandard = "github.com/go-json-experiment/json"

// shared are the modules that more than one package may import: what is becoming standard, and NATS, whose connection is
// in one package and whose streams are in another.
var shared = []string{becomingStandard, "github.com/nats-io/", "github.com/synadia-io/orbit.go/"}

var layout = map[string]rules{
	"cmd/groupferry": {
		own: []string{
			"importer", "worker", "internal/app", "internal/page",
			"internal/job", "internal/queue", "internal/broker", "internal/chat", "internal/governor", "internal/chatsim", "internal/redact",
		},
		testOwn: []string{"metrics", "internal/longtest"},
		modules: []string{"github.com/spf13/cobra", "github.com/spf13/pflag", "golang.org/x/term"},
		testModules: []string{"github.com/rogpeppe/go-internal",
			"github.com/gocarina/gocsv", "github.com/klauspost/compress"}, // to measure against
	},
	"internal/app": {
		own: []string{
			"importer", "worker", "metrics", "internal/page", "internal/queue", "internal/broker", "internal/lease", "internal/governor", "internal/clock",
			"internal/chat", "internal/chatsim", "internal/job", "internal/redact",
		},
		testOwn: []string{"internal/longtest"},
	},
	"importer": {
		own: []string{"internal/job", "internal/chat"},
		modules: []string{
			"github.com/gocarina/gocsv", "github.com/klauspost/compress", becomingStandard,
		},
		testOwn: []string{"internal/longtest"},
	},
	"worker": {
		own:     []string{"internal/job", "internal/chat", "internal/governor"},
		modules: []string{"golang.org/x/sync"},
		testOwn: []string{"internal/chatsim", "internal/lease", "internal/clock"},
	},
	"metrics": {
		own:     []string{"internal/job"},
		modules: []string{"github.com/prometheus/"},
	},
	"internal/page": {},
	"internal/job":  {modules: []string{becomingStandard}},
	"internal/queue": {
		own:     []string{"internal/job", "internal/broker", "internal/clock"},
		modules: []string{"github.com/nats-io/", "github.com/synadia-io/orbit.go/"},
		testOwn: []string{"internal/longtest"},
	},
	"internal/broker": {
		own: []string{"internal/lease", "internal/clock", "internal/job", "internal/redact"},
		modules: []string{"github.com/nats-io/", "github.com/synadia-io/orbit.go/", "github.com/gofrs/flock",
			"github.com/minio/highwayhash"}, // checksums of the store
		testOwn: []string{"internal/longtest"},
	},
	"internal/lease":  {own: []string{"internal/clock"}},
	"internal/clock":  {},
	"internal/redact": {},
	"internal/chat": {
		own:     []string{"internal/redact"},
		modules: []string{becomingStandard, "golang.org/x/text/"},
		testOwn: []string{"internal/chatsim"},
	},
	"internal/governor": {own: []string{"internal/clock"}},
	"internal/chatsim":  {own: []string{"internal/chat"}},
	"internal/archtest": {},
	"internal/longtest": {},
	"deploy": { // tests only
		testOwn: []string{"metrics", "internal/chat", "internal/longtest",
			"internal/broker", "internal/queue"}, // a night that is missed has the time of its record moved into the past
		testModules: []string{"go.yaml.in/yaml/v3"},
	},
}

// atRoot lists what may stand at the root beside dotfiles.
var atRoot = []string{
	"cmd", "importer", "worker", "metrics", "internal", "deploy", "samples",
	"go.mod", "go.sum", "README.md", "LICENSE",
}

// pkg is what go list says about a package.
type pkg struct {
	ImportPath   string
	Imports      []string
	TestImports  []string // of the tests in the package itself
	XTestImports []string // of the tests beside it, in package x_test
}

// violations returns a sentence for each thing about p that the layout does not allow.
func violations(p pkg) []string {
	name := strings.TrimPrefix(p.ImportPath, module+"/")
	r, ok := layout[name]
	if !ok {
		return []string{fmt.Sprintf("package %s is not in the layout", p.ImportPath)}
	}
	var found []string
	for _, path := range p.Imports {
		if !allowed(path, r.own, r.modules) {
			found = append(found, fmt.Sprintf("%s imports %s, which the layout does not allow", name, path))
		}
	}
	own := slices.Concat(r.own, r.testOwn, []string{name}) // a test in package x_test imports its own x
	modules := slices.Concat(r.modules, r.testModules)
	for _, path := range slices.Concat(p.TestImports, p.XTestImports) {
		if !allowed(path, own, modules) {
			found = append(found, fmt.Sprintf("a test of %s imports %s, which the layout does not allow", name, path))
		}
	}
	return found
}

func allowed(path string, own, modules []string) bool {
	if inner, ok := strings.CutPrefix(path, module+"/"); ok {
		return slices.Contains(own, inner)
	}
	first, _, _ := strings.Cut(path, "/")
	if !strings.Contains(first, ".") {
		return path != "C" // the standard library, and no cgo: the binary is static
	}
	return slices.ContainsFunc(modules, func(m string) bool {
		return path == m || strings.HasPrefix(path, strings.TrimSuffix(m, "/")+"/")
	})
}

func TestImports(t *testing.T) {
	// A file for another system is invisible to go list unless it is asked for that system.
	for _, goos := range []string{"linux", "darwin", "windows"} {
		t.Run(goos, func(t *testing.T) {
			pkgs := list(t, goos)
			if len(pkgs) < 2 {
				t.Fatalf("go list: got %d packages, want the whole module", len(pkgs))
			}
			for _, p := range pkgs {
				for _, v := range violations(p) {
					t.Error(v)
				}
			}
		})
	}
}

func list(t *testing.T, goos string) []pkg {
	t.Helper()
	touch(t)
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOOS="+goos, "GOARCH=amd64", "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatalf("decode the output of go list: %v", err)
		}
		pkgs = append(pkgs, p)
	}
}

// touch looks at every file of the module, because go test repeats an old verdict while the files that the test itself
// has looked at stay the same, and it knows nothing of what go list reads.
func touch(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == ".git" {
			return fs.SkipDir
		}
		if err == nil {
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

// terminal is what belongs to cmd alone: what a command prints, reads, and is called with. Failpoints and longtest are for tests.
var terminal = regexp.MustCompile(`\bos\.(Std(in|out|err)|Args|Getenv|LookupEnv|Environ|Exit)\b|"(flag|os/signal)"`)

func TestNoTerminal(t *testing.T) {
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		name := filepath.ToSlash(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // somebody's temporary file, gone meanwhile
		case err != nil:
			return err
		case d.IsDir() && (strings.HasSuffix(name, "/.git") || strings.HasSuffix(name, "/cmd") || strings.HasSuffix(name, "/testdata")):
			return fs.SkipDir
		case d.IsDir(), !strings.HasSuffix(name, ".go"), strings.HasSuffix(name, "_test.go"), strings.HasSuffix(name, "/fail_on.go"), strings.HasSuffix(name, "/longtest.go"):
			return nil
		}
		b, err := os.ReadFile(path)
		if found := terminal.Find(b); found != nil {
			t.Errorf("%s uses %s, which the layout leaves to cmd", name, found)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if !terminal.MatchString("fmt.Fprintln(os.Stderr)") || terminal.MatchString("os.CreateTemp") {
		t.Error("the pattern does not tell what belongs to cmd")
	}
}

func TestOnePackagePerModule(t *testing.T) {
	packageOf := map[string]string{}
	for name, r := range layout {
		for _, m := range r.modules { // a test may measure against what another package uses
			if first, ok := packageOf[m]; ok && !slices.Contains(shared, m) {
				t.Errorf("module %s: got two packages, %s and %s, want one", m, first, name)
			}
			packageOf[m] = name
		}
	}
}

func TestRoot(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("git is not installed")
	}
	os.Stat(filepath.Join(root, ".git", "index")) // as in touch
	cmd := exec.Command("git", "ls-files", "-z")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("not a git checkout: %v", err)
	}
	seen := map[string]bool{}
	for file := range strings.SplitSeq(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		entry, _, _ := strings.Cut(file, "/")
		if seen[entry] || strings.HasPrefix(entry, ".") || slices.Contains(atRoot, entry) {
			continue
		}
		seen[entry] = true
		t.Errorf("%s stands at the root, where it does not belong", entry)
	}
}

// A guard that cannot bark is none.
func TestViolations(t *testing.T) {
	tests := []struct {
		name string
		pkg  pkg
		want string // part of the one violation; "" when there is none
	}{
		{"standard library", pkg{ImportPath: "groupferry/internal/job", Imports: []string{"encoding/json"}}, ""},
		{"allowed module", pkg{ImportPath: "groupferry/worker", Imports: []string{"golang.org/x/sync/errgroup"}}, ""},
		{"allowed family", pkg{ImportPath: "groupferry/metrics", TestImports: []string{
			"github.com/prometheus/client_golang/prometheus/testutil"}}, ""},
		{"own package in an outer test", pkg{ImportPath: "groupferry/worker", XTestImports: []string{
			"groupferry/worker", "groupferry/internal/chatsim"}}, ""},
		{"neighbours", pkg{ImportPath: "groupferry/worker", Imports: []string{"groupferry/importer"}},
			"worker imports groupferry/importer"},
		{"neighbours in a test", pkg{ImportPath: "groupferry/metrics", TestImports: []string{"groupferry/worker"}},
			"a test of metrics imports groupferry/worker"},
		{"module in the wrong package", pkg{ImportPath: "groupferry/worker", Imports: []string{
			"github.com/nats-io/nats.go"}}, "worker imports github.com/nats-io/nats.go"},
		{"module with the start of another's name", pkg{ImportPath: "groupferry/importer", Imports: []string{
			"github.com/gocarina/gocsvx"}}, "importer imports github.com/gocarina/gocsvx"},
		{"test module outside a test", pkg{ImportPath: "groupferry/cmd/groupferry", Imports: []string{
			"github.com/rogpeppe/go-internal/testscript"}}, "cmd/groupferry imports github.com/rogpeppe"},
		{"what a test may, outside a test", pkg{ImportPath: "groupferry/deploy", Imports: []string{
			"groupferry/metrics"}}, "deploy imports groupferry/metrics"},
		{"terminal in the app", pkg{ImportPath: "groupferry/internal/app", Imports: []string{
			"github.com/spf13/cobra"}}, "internal/app imports github.com/spf13/cobra"},
		{"against the arrows", pkg{ImportPath: "groupferry/internal/queue", Imports: []string{
			"groupferry/internal/app"}}, "internal/queue imports groupferry/internal/app"},
		{"cgo", pkg{ImportPath: "groupferry/internal/queue", Imports: []string{"C"}}, "internal/queue imports C"},
		{"unknown package", pkg{ImportPath: "groupferry/internal/util"}, "groupferry/internal/util is not in the layout"},
		{"unknown package below another", pkg{ImportPath: "groupferry/importer/csv"}, "groupferry/importer/csv is not in the layout"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := violations(test.pkg)
			switch {
			case test.want == "" && len(got) != 0:
				t.Errorf("got %q, want none", got)
			case test.want != "" && (len(got) != 1 || !strings.Contains(got[0], test.want)):
				t.Errorf("got %q, want one with %q", got, test.want)
			}
		})
	}
}
