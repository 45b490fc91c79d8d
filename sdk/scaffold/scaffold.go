// Package scaffold writes new modules, which pass their conformance kit as they are, and knows them again.
//
// What it writes are the examples of sdk/examples under another name: they are compiled and tested here, so that a new
// module never starts from stale code.
package scaffold

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"text/template"

	"github.com/mosaic-cluster/mosaic/sdk/examples"
	"github.com/mosaic-cluster/mosaic/sdk/kit"
)

// modulePath is where Go modules import the SDK from.
const modulePath = "github.com/mosaic-cluster/mosaic"

//go:embed mosaic_module.py
var pythonSupport []byte

//go:embed templates
var templates embed.FS

// Options say what to write.
type Options struct {
	// Required. Kind as in a composition.
	Kind string
	// Required. Name in lower_snake_case.
	Name string
	// Required. go or python.
	Lang string
	// Required. Folder to make; it must not exist, or be empty.
	Dir string
	// Optional. Checkout of Mosaic whose SDK a Go module uses, absolute; empty for the published one.
	Checkout string
	// Version of the published SDK, as v1.2.3. Required for Go without Checkout.
	Version string
	// Optional. Path of the Go module; default is example.com/ and the binary's name.
	ModulePath string
}

// Languages are those that modules can be written in, with the kinds that each has a template for.
func Languages() map[string][]string {
	list := map[string][]string{}
	for _, lang := range []string{"go", "python"} {
		for _, kind := range slices.Sorted(maps.Keys(kit.Kinds())) {
			if _, err := fs.Stat(examples.Files, source(kind, lang)); err == nil {
				list[lang] = append(list[lang], kind)
			}
		}
	}
	return list
}

// source is the main file of the example of a kind.
func source(kind, lang string) string {
	folder := strings.ReplaceAll(kind, "_", "-") + "-hello"
	if lang == "python" {
		return folder + "-python/main.py"
	}
	return folder + "/main.go"
}

// Binary is the name of a module's executable, by the rule of the house.
func Binary(kind, name string) string {
	return "mosaic-" + strings.ReplaceAll(kind+"-"+name, "_", "-")
}

var namePattern = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)

// ErrExists is returned for a folder that has something in it.
var ErrExists = errors.New("the folder is not empty")

// New writes a module and gives the names of its files, in the order of their names.
func New(o Options) ([]string, error) {
	kinds := Languages()[o.Lang]
	switch {
	case kinds == nil:
		return nil, fmt.Errorf("language: got %q, want go or python", o.Lang)
	case !slices.Contains(slices.Collect(maps.Keys(kit.Kinds())), o.Kind):
		return nil, fmt.Errorf("kind: got %q, want one of %s", o.Kind, strings.Join(slices.Sorted(maps.Keys(kit.Kinds())), ", "))
	case !slices.Contains(kinds, o.Kind):
		return nil, fmt.Errorf("there is no template for a %s in %s; there is for %s", words(o.Kind), o.Lang, strings.Join(kinds, ", "))
	case !namePattern.MatchString(o.Name):
		return nil, fmt.Errorf("name: got %q, want lower_snake_case of at most 63 characters", o.Name)
	}
	if entries, err := os.ReadDir(o.Dir); err == nil && len(entries) > 0 {
		return nil, fmt.Errorf("write %s: %w", o.Dir, ErrExists)
	}
	files, err := o.files()
	if err != nil {
		return nil, err
	}
	for name, data := range files {
		path := filepath.Join(o.Dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, fmt.Errorf("write the module: %w", err)
		}
		mode := os.FileMode(0o644)
		if bytes.HasPrefix(data, []byte("#!")) {
			mode = 0o755
		}
		if err := os.WriteFile(path, data, mode); err != nil {
			return nil, fmt.Errorf("write the module: %w", err)
		}
	}
	return slices.Sorted(maps.Keys(files)), nil
}

// fields are what the templates know.
type fields struct {
	Kind, Name, Words, Binary string
	SDK, SDKVersion, Checkout string
	ModulePath                string
	GoDirective, GoVersion    string
	HasKit, OnMaster          bool
}

func (o Options) files() (map[string][]byte, error) {
	f := fields{
		Kind: o.Kind, Name: o.Name, Words: words(o.Kind), Binary: Binary(o.Kind, o.Name), SDK: modulePath, SDKVersion: o.Version,
		Checkout: o.Checkout, ModulePath: o.ModulePath, GoDirective: goDirective(), HasKit: o.Kind == "isolator" || o.Kind == "authorizer",
		OnMaster: o.Kind == "authorizer" || o.Kind == "authenticator" || o.Kind == "hook",
	}
	f.GoVersion, _, _ = strings.Cut(f.GoDirective, "-")
	if f.ModulePath == "" {
		f.ModulePath = "example.com/" + f.Binary
	}
	files := map[string][]byte{}
	if o.Lang == "go" {
		if err := o.addGo(&f, files); err != nil {
			return nil, err
		}
	} else if err := addPython(o.Kind, o.Name, files); err != nil {
		return nil, err
	}
	folder := "templates/" + o.Lang
	entries, err := templates.ReadDir(folder)
	if err != nil {
		return nil, fmt.Errorf("read the templates: %w", err)
	}
	for _, e := range entries {
		data, err := templates.ReadFile(folder + "/" + e.Name())
		if err != nil {
			return nil, fmt.Errorf("read the templates: %w", err)
		}
		t, err := template.New(e.Name()).Parse(string(data))
		if err != nil {
			return nil, fmt.Errorf("read the templates: %w", err)
		}
		var out bytes.Buffer
		if err := t.Execute(&out, f); err != nil {
			return nil, fmt.Errorf("fill in the template %s: %w", e.Name(), err)
		}
		files[target(strings.TrimSuffix(e.Name(), ".tmpl"))] = out.Bytes()
	}
	return files, nil
}

// target is where the file of a template goes.
func target(name string) string {
	switch name {
	case "gitignore":
		return ".gitignore"
	case "ci.yml":
		return ".github/workflows/ci.yml"
	}
	return name
}

// addGo adds the example's sources, and with a checkout its sums, so that nothing need be asked of the network.
func (o Options) addGo(f *fields, files map[string][]byte) error {
	folder := filepath.Dir(source(o.Kind, "go"))
	for _, name := range []string{"main.go", "main_test.go"} {
		data, err := renamed(folder+"/"+name, o.Kind, o.Name)
		if err != nil {
			return err
		}
		files[name] = data
	}
	if o.Checkout == "" {
		if !regexp.MustCompile(`^v\d+\.\d+\.\d+$`).MatchString(o.Version) {
			return fmt.Errorf("this program's version is %q, no release whose SDK could be fetched; say where a checkout of Mosaic is (--sdk)", o.Version)
		}
		return nil
	}
	f.SDKVersion = "v0.0.0"
	sums, err := os.ReadFile(filepath.Join(o.Checkout, "go.sum"))
	if err != nil {
		return fmt.Errorf("read the checkout's sums: %w", err)
	}
	files["go.sum"] = sums
	return nil
}

// Python writes a Python module without the files around it: its main.py, the support and the contract.
func Python(dir, kind, name string) error {
	files := map[string][]byte{}
	if err := addPython(kind, name, files); err != nil {
		return err
	}
	for file, data := range files {
		if err := os.WriteFile(filepath.Join(dir, file), data, 0o755); err != nil {
			return fmt.Errorf("write the module: %w", err)
		}
	}
	return nil
}

func addPython(kind, name string, files map[string][]byte) error {
	main, err := renamed(source(kind, "python"), kind, name)
	if err != nil {
		return err
	}
	contract, err := Contract()
	if err != nil {
		return err
	}
	files["main.py"], files["mosaic_module.py"], files["contract.binpb"] = main, pythonSupport, contract
	return nil
}

// renamed gives a file of an example under another name.
func renamed(file, kind, name string) ([]byte, error) {
	data, err := examples.Files.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the example: %w", err)
	}
	data = bytes.ReplaceAll(data, []byte(`"hello"`), []byte(`"`+name+`"`))
	return bytes.ReplaceAll(data, []byte(strings.ReplaceAll(kind, "_", "-")+"-hello"), []byte(Binary(kind, name))), nil
}

// words is a kind as people say it.
func words(kind string) string { return strings.ReplaceAll(kind, "_", " ") }

// goDirective is the Go version that the SDK is built with, for go.mod.
func goDirective() string {
	v := strings.TrimPrefix(runtime.Version(), "go")
	parts := strings.SplitN(v, ".", 3)
	if len(parts) < 2 {
		return "1.26"
	}
	return parts[0] + "." + parts[1]
}
