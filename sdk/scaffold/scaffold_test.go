package scaffold_test

import (
	"errors"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2/hclparse"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/mosaic-cluster/mosaic/sdk/authorizer/authorizertest"
	"github.com/mosaic-cluster/mosaic/sdk/isolator/isolatortest"
	"github.com/mosaic-cluster/mosaic/sdk/kit"
	"github.com/mosaic-cluster/mosaic/sdk/scaffold"
)

// checkout is a folder that looks like one, so that tests need not know where they are.
func checkout(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"go.mod": "module github.com/mosaic-cluster/mosaic\n\ngo 1.26\n", "go.sum": "sums\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestEveryKindHasATemplateInGo(t *testing.T) {
	got := scaffold.Languages()["go"]
	if want := slices.Sorted(maps.Keys(kit.Kinds())); !slices.Equal(got, want) {
		t.Errorf("kinds with a template in Go: %q, want %q", got, want)
	}
	if got, want := scaffold.Languages()["python"], []string{"authorizer", "isolator"}; !slices.Equal(got, want) {
		t.Errorf("kinds with a template in Python: %q, want %q", got, want)
	}
}

func TestWhatIsWrittenHasTheNewName(t *testing.T) {
	sdk := checkout(t)
	for lang, kinds := range scaffold.Languages() {
		for _, kind := range kinds {
			t.Run(lang+"/"+kind, func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "new")
				files, err := scaffold.New(scaffold.Options{Kind: kind, Name: "my_acme", Lang: lang, Dir: dir, Checkout: sdk})
				if err != nil {
					t.Fatal(err)
				}
				for _, name := range files {
					data, err := os.ReadFile(filepath.Join(dir, name))
					if err != nil {
						t.Fatal(err)
					}
					if strings.HasSuffix(name, ".binpb") {
						continue
					}
					for _, left := range []string{`"hello"`, "-hello", "{{.", "{{if", "<no value>"} {
						if strings.Contains(string(data), left) {
							t.Errorf("%s contains %q:\n%s", name, left, data)
						}
					}
					switch filepath.Ext(name) {
					case ".go":
						if _, err := parser.ParseFile(token.NewFileSet(), name, data, parser.AllErrors); err != nil {
							t.Errorf("%s: %v", name, err)
						}
					case ".hcl":
						if _, diags := hclparse.NewParser().ParseHCL(data, name); diags.HasErrors() {
							t.Errorf("%s: %v", name, diags)
						}
						if !strings.Contains(string(data), kind+` "my_acme" {`) {
							t.Errorf("%s = %s, want a block of the module", name, data)
						}
					}
				}
				f, err := scaffold.Find(dir)
				if err != nil || f.Lang != lang {
					t.Errorf("Find = %v, %v; want a module in %s", f, err, lang)
				}
			})
		}
	}
}

func TestWhatCannotBeWrittenIsRefused(t *testing.T) {
	good := scaffold.Options{Kind: "isolator", Name: "demo", Lang: "go", Dir: filepath.Join(t.TempDir(), "new"), Checkout: checkout(t)}
	for _, test := range []struct {
		change func(*scaffold.Options)
		want   string
	}{
		{func(o *scaffold.Options) { o.Kind = "isolater" }, `kind: got "isolater"`},
		{func(o *scaffold.Options) { o.Lang = "rust" }, `language: got "rust"`},
		{func(o *scaffold.Options) { o.Name = "My-Demo" }, "lower_snake_case"},
		{func(o *scaffold.Options) { o.Name = "../demo" }, "lower_snake_case"},
		{func(o *scaffold.Options) { o.Kind, o.Lang = "hook", "python" }, "no template for a hook in python"},
		{func(o *scaffold.Options) { o.Checkout, o.Version = "", "v0.1.0-4-gdeadbeef-dirty" }, "--sdk"},
	} {
		o := good
		test.change(&o)
		if _, err := scaffold.New(o); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("New(%+v) = %v, want an error with %q", o, err, test.want)
		}
		if _, err := os.Stat(o.Dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("New(%+v) left %s behind", o, o.Dir)
		}
	}
	if _, err := scaffold.New(good); err != nil {
		t.Fatal(err)
	}
	if _, err := scaffold.New(good); !errors.Is(err, scaffold.ErrExists) {
		t.Errorf("New into the same folder = %v, want ErrExists", err)
	}
}

func TestWithoutACheckoutAReleaseIsRequired(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	if _, err := scaffold.New(scaffold.Options{Kind: "isolator", Name: "demo", Lang: "go", Dir: dir, Version: "v1.4.0"}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	if text := string(data); !strings.Contains(text, "require github.com/mosaic-cluster/mosaic v1.4.0") || strings.Contains(text, "replace") {
		t.Errorf("go.mod = %s, want the published v1.4.0", text)
	}
}

func TestTheModuleHereIsFound(t *testing.T) {
	sdk, parent := checkout(t), t.TempDir()
	if _, err := scaffold.FindHere(parent); !errors.Is(err, scaffold.ErrNoModule) {
		t.Errorf("FindHere of an empty folder = %v, want ErrNoModule", err)
	}
	for n, lang := range []string{"go", "python"} {
		dir := filepath.Join(parent, lang)
		if _, err := scaffold.New(scaffold.Options{Kind: "isolator", Name: "demo", Lang: lang, Dir: dir, Checkout: sdk}); err != nil {
			t.Fatal(err)
		}
		if f, err := scaffold.FindHere(dir); err != nil || f.Dir != dir {
			t.Errorf("FindHere of the module's folder = %v, %v; want itself", f, err)
		}
		f, err := scaffold.FindHere(parent)
		if n == 0 && (err != nil || f.Dir != dir) {
			t.Errorf("FindHere above one module = %v, %v; want that", f, err)
		}
		if n == 1 && (err == nil || !strings.Contains(err.Error(), "go, python")) {
			t.Errorf("FindHere above two modules = %v, %v; want an error that names both", f, err)
		}
	}
}

func TestACheckoutIsFoundFromWithin(t *testing.T) {
	dir := checkout(t)
	inside := filepath.Join(dir, "a", "b")
	if err := os.MkdirAll(inside, 0o755); err != nil {
		t.Fatal(err)
	}
	if got := scaffold.Checkout("", inside); got != dir {
		t.Errorf("Checkout(%s) = %q, want %s", inside, got, dir)
	}
	if got := scaffold.Checkout(t.TempDir()); got != "" {
		t.Errorf("Checkout of another folder = %q, want none", got)
	}
}

func TestTheContractIsComplete(t *testing.T) {
	data, err := scaffold.Contract()
	if err != nil {
		t.Fatal(err)
	}
	set := &descriptorpb.FileDescriptorSet{}
	if err := proto.Unmarshal(data, set); err != nil {
		t.Fatal(err)
	}
	files, err := protodesc.NewFiles(set) // fails for a file that is missing or comes too late
	if err != nil {
		t.Fatal(err)
	}
	for kind, service := range kit.Kinds() {
		path := strings.ReplaceAll(service[:strings.LastIndex(service, ".")], ".", "/") + "/" + strings.ReplaceAll(kind, "_", "") + ".proto"
		if _, err := files.FindFileByPath(path); err != nil {
			t.Errorf("the contract of %s: %v", kind, err)
		}
	}
}

// TestPythonExamplesConform runs the kits of the kinds against the examples in Python.
func TestPythonExamplesConform(t *testing.T) {
	cmd := exec.Command("/usr/bin/env", "python3", "-c", "import grpc, google.protobuf")
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"} // as modules have it
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skip("needs python3 with grpc and protobuf: " + string(out))
	}
	for kind, run := range map[string]func(*testing.T, kit.Dial){
		"isolator":   func(t *testing.T, d kit.Dial) { isolatortest.Run(t, d) },
		"authorizer": func(t *testing.T, d kit.Dial) { authorizertest.Run(t, d) },
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel() // most of the time goes into starting Python and waiting for a heartbeat
			dir := t.TempDir()
			if err := scaffold.Python(dir, kind, "hello"); err != nil {
				t.Fatal(err)
			}
			run(t, kit.Program{Path: filepath.Join(dir, "main.py")}.Dial)
		})
	}
}
