// Package docs holds the tests of the house: import rules, and that documents stay true.
package docs

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const modulePath = "github.com/mosaic-cluster/mosaic/"

// goFile is one Go file of the tree with what it imports of ours.
type goFile struct {
	path    string // relative to the root, slashes
	dir     string
	pkg     string
	doc     bool // has a package comment
	imports []string
}

// readTree parses the heads of all Go files. It reads the disk itself, so the test cache cannot hide a violation.
func readTree(t *testing.T) []goFile {
	t.Helper()
	var files []goFile
	root := ".."
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if name != ".." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin" || name == "node_modules") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		g := goFile{path: rel, dir: filepath.ToSlash(filepath.Dir(rel)), pkg: f.Name.Name, doc: f.Doc != nil}
		for _, i := range f.Imports {
			p, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			if strings.HasPrefix(p, modulePath) {
				g.imports = append(g.imports, strings.TrimPrefix(p, modulePath))
			}
		}
		files = append(files, g)
		return nil
	})
	if err != nil {
		t.Fatalf("read the tree: %v", err)
	}
	if len(files) < 20 {
		t.Fatalf("read the tree: got %d Go files, want the whole repository", len(files))
	}
	return files
}

func under(path, folder string) bool { return path == folder || strings.HasPrefix(path, folder+"/") }

// unit is the folder within which files may import each other freely: core/agent, isolators/cgroups, sdk ...
func unit(dir string) string {
	parts := strings.Split(dir, "/")
	switch parts[0] {
	case "core":
		if len(parts) > 2 && parts[1] == "cmd" {
			return strings.Join(parts[:3], "/")
		}
		return strings.Join(parts[:min(2, len(parts))], "/")
	case "isolators", "authorizers", "resourceproviders":
		return strings.Join(parts[:min(2, len(parts))], "/")
	case "modules":
		if len(parts) > 1 && parts[1] == "bundle" {
			return "modules/bundle"
		}
		return strings.Join(parts[:min(3, len(parts))], "/")
	}
	return parts[0]
}

// allowed says whether a file in dir may import the package imp of ours.
func allowed(dir, imp string) bool {
	from, to := unit(dir), unit(imp)
	if from == to || under(imp, "sdk") {
		return true
	}
	switch {
	case from == "core/cmd/mosaic":
		return under(imp, "core")
	case from == "core/master":
		return to == "core/allocator" || to == "core/registry"
	case from == "modules/bundle":
		for _, f := range []string{"isolators", "authorizers", "resourceproviders", "modules"} {
			if under(imp, f) {
				return true
			}
		}
	}
	return false
}

func TestNobodyImportsWhatTheyMayNot(t *testing.T) {
	for _, f := range readTree(t) {
		for _, imp := range f.imports {
			if !allowed(f.dir, imp) {
				t.Errorf("%s imports %s: %s may not know %s", f.path, imp, unit(f.dir), unit(imp))
			}
		}
	}
}

func TestTheRuleItselfForbidsWhatItShould(t *testing.T) {
	for _, c := range []struct {
		dir, imp string
		want     bool
	}{
		{"sdk/module", "sdk/proto/mosaic/module/v1", true},
		{"sdk/module", "core/agent", false},
		{"isolators/cgroups", "sdk/module", true},
		{"isolators/cgroups", "core/modulehost", false},
		{"isolators/cgroups", "isolators/rlimits", false},
		{"core/agent", "isolators/cgroups", false},
		{"core/agent", "core/containerizer", false},
		{"core/agent", "core/agent/internal", true},
		{"core/containerizer", "core/containerizer/launcher", true},
		{"core/master", "core/allocator", true},
		{"core/master", "core/agent", false},
		{"core/allocator", "core/master", false},
		{"core/cmd/mosaic", "core/master", true},
		{"core/cmd/mosaic", "isolators/cgroups", false},
		{"modules/bundle", "isolators/cgroups", true},
		{"modules/qoscontrollers/load", "modules/resourceestimators/fixed", false},
	} {
		if got := allowed(c.dir, c.imp); got != c.want {
			t.Errorf("allowed(%q, %q) = %v, want %v", c.dir, c.imp, got, c.want)
		}
	}
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	documented := map[string]bool{}
	for _, f := range readTree(t) {
		if strings.HasSuffix(f.pkg, "_test") || strings.HasSuffix(f.path, ".pb.go") || strings.HasPrefix(f.dir, "sdk/proto/") {
			continue
		}
		if strings.HasSuffix(f.path, "_test.go") && !f.doc {
			continue
		}
		documented[f.dir] = documented[f.dir] || f.doc
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s has no package comment", dir)
		}
	}
}

func TestNoGlobalInitialisation(t *testing.T) {
	for _, f := range readTree(t) {
		if strings.HasSuffix(f.path, ".pb.go") || strings.HasSuffix(f.path, "_test.go") {
			continue
		}
		tree, err := parser.ParseFile(token.NewFileSet(), filepath.Join("..", f.path), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range tree.Decls {
			if name := funcName(d); name == "init" {
				t.Errorf("%s declares init: wiring is done by plain constructor calls", f.path)
			}
		}
	}
}
