package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A logKey is a key of a log line in the source, with the expression that gives its value.
type logKey struct {
	pos   token.Position
	name  string
	value string // the last name in it
}

// logKeys finds the keys in a file: of lines that a logger or an event of the console writes, and of fields that are added.
func logKeys(fset *token.FileSet, f *ast.File) (keys []logKey) {
	pairs := func(args []ast.Expr) {
		for i := 0; i+1 < len(args); i += 2 {
			lit, ok := args[i].(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				continue
			}
			name, err := strconv.Unquote(lit.Value)
			if err == nil {
				keys = append(keys, logKey{fset.Position(lit.Pos()), name, lastName(args[i+1])})
			}
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			name, of := lastName(n.Fun), ""
			if s, ok := n.Fun.(*ast.SelectorExpr); ok {
				of = strings.ToLower(lastName(s.X))
			}
			switch {
			case of == "log" && slices.Contains([]string{"Debug", "Info", "Warn", "Error"}, name), name == "event":
				pairs(n.Args[min(1, len(n.Args)):])
			case of == "log" && name == "Log":
				pairs(n.Args[min(3, len(n.Args)):])
			case of == "log" && name == "With":
				pairs(n.Args)
			case name == "append" && lastName(n.Args[0]) == "fields":
				pairs(n.Args[1:])
			}
		case *ast.CompositeLit:
			if list, ok := n.Type.(*ast.ArrayType); ok && lastName(list.Elt) == "any" {
				pairs(n.Elts)
			}
		}
		return true
	})
	return keys
}

func lastName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}

// wrongKeys says what is wrong with the keys, of which these are documented.
func wrongKeys(keys []logKey, documented map[string]bool) (wrong []string) {
	anError := regexp.MustCompile(`^([a-z]?err|[Ee]rr|Yielded)$`)
	for _, k := range keys {
		where := k.pos.String() + ": key " + strconv.Quote(k.name)
		switch {
		case !documented[k.name]:
			wrong = append(wrong, where+" is not in the table of deploy/README.md")
		case anError.MatchString(k.value) && k.name != "error":
			wrong = append(wrong, where+" is that of an error, which is error")
		}
	}
	return wrong
}

// TestLogKeys compares the keys of all log lines with the table of deploy/README.md.
func TestLogKeys(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(root, "deploy", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(b), "<!-- log keys -->")
	table, _, _ = strings.Cut(table, "<!-- end -->")
	documented := map[string]bool{}
	for line := range strings.Lines(table) {
		first, _, _ := strings.Cut(strings.TrimPrefix(line, "|"), "|")
		for _, m := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(first, -1) {
			documented[m[1]] = true
		}
	}
	unused := maps.Clone(documented)
	fset := token.NewFileSet()
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		keys := logKeys(fset, f)
		for _, w := range wrongKeys(keys, documented) {
			t.Error(w)
		}
		for _, k := range keys {
			delete(unused, k.name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, own := range []string{"time", "level", "msg"} { // of each line
		delete(unused, own)
	}
	for _, name := range slices.Sorted(maps.Keys(unused)) {
		t.Errorf("deploy/README.md documents the key %q, which no log line has", name)
	}
}

// A guard that cannot bark is none.
func TestWrongKeys(t *testing.T) {
	for source, want := range map[string]int{
		`e.log.Warn("x", "error", err)`:                       0,
		`e.log.Warn("x", "err", err)`:                         1,
		`e.cfg.Log.Error("x", "reason", s.Err)`:               1,
		`log.Log(ctx, level, "x", "reason", rerr)`:            1,
		`t.log.Info("x", "reason", text, "camelCase", 1)`:     1,
		`p.console.event("x", "jobs", 1).print("%s", "jobs")`: 1,
		`e.fields = append(e.fields, "jobs", 1)`:              1,
		`fields := []any{"jobs", 1}`:                          1,
		`fmt.Println("x", "jobs", 1)`:                         0,
	} {
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, "x.go", "package x\nfunc f() {\n"+source+"\n}", 0)
		if err != nil {
			t.Fatal(err)
		}
		wrong := wrongKeys(logKeys(fset, f), map[string]bool{"error": true, "reason": true})
		if len(wrong) != want {
			t.Errorf("%s: got %q, want %d", source, wrong, want)
		}
	}
}
