package docs

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"github.com/mosaic-cluster/mosaic/sdk/kit"
)

// fence is one fenced block of a document.
type fence struct {
	file string
	line int // of its first line
	text string
}

// fences gives the blocks of a language in a document, also those that are indented in a list.
func fences(file string, data []byte, language string) []fence {
	var list []fence
	var open *fence
	n := 0
	for raw := range bytes.Lines(data) {
		n++
		line := strings.TrimSpace(string(raw))
		switch {
		case open != nil && line == "```":
			list = append(list, *open)
			open = nil
		case open != nil:
			open.text += string(raw)
		case line == "```"+language:
			open = &fence{file: file, line: n + 1}
		}
	}
	if open != nil {
		list = append(list, *open) // its parser will stumble over what follows
	}
	return list
}

// documents gives every Markdown file of the tree, and the templates of those that are written for vendors.
func documents(t *testing.T) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != ".." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(d.Name(), ".md") && !strings.HasSuffix(d.Name(), ".md.tmpl") {
			return nil
		}
		data, err := os.ReadFile(path)
		files[path] = data
		return err
	})
	if err != nil {
		t.Fatalf("read the documents: %v", err)
	}
	return files
}

// check parses a block, and holds the modules in it to the kinds there are.
func (f fence) check() hcl.Diagnostics {
	text := strings.NewReplacer("{{.Kind}}", "isolator", "{{.Name}}", "sample", "{{.Binary}}", "sample").Replace(f.text)
	file, diags := hclparse.NewParser().ParseHCL([]byte(text), f.file)
	if diags.HasErrors() {
		return diags
	}
	for _, b := range file.Body.(*hclsyntax.Body).Blocks {
		if _, kind := kit.Kinds()[b.Type]; kind || len(b.Labels) != 1 {
			continue
		}
		if command := b.Body.Attributes["command"]; command != nil {
			diags = append(diags, &hcl.Diagnostic{
				Severity: hcl.DiagError, Summary: "No such kind of module", Detail: "Got " + b.Type + ".", Subject: b.TypeRange.Ptr(),
			})
		}
	}
	return diags
}

func TestEveryHCLBlockInADocumentParses(t *testing.T) {
	found := map[string]int{}
	for path, data := range documents(t) {
		for _, f := range fences(path, data, "hcl") {
			found[path]++
			for _, d := range f.check() {
				t.Errorf("%s, block at line %d: %s", f.file, f.line, d.Error())
			}
		}
	}
	for _, path := range []string{"../README.md", "../docs/modules.md", "../docs/containers.md", "../isolators/cgroups/README.md", "../sdk/scaffold/templates/go/README.md.tmpl"} {
		if found[path] == 0 {
			t.Errorf("%s has no hcl block, want the test to have found one", path)
		}
	}
}

func TestTheTestOfHCLBlocksFindsMistakes(t *testing.T) {
	for text, want := range map[string]string{
		"# A\n```hcl\nisolator \"a\" {\n```\n":                                   "Unclosed configuration block",
		"```hcl\nisolator \"a\" {\n  command = \n}\n```\n":                       "Invalid expression",
		"- a\n  ```hcl\n  isolater \"a\" {\n    command = \"x\"\n  }\n  ```\n":   "No such kind of module",
		"```hcl\nisolator \"a\" {\n  config {\n    a = 1\n  }\n}\n```\n":         "",
		"```sh\nisolator {\n```\n\n```hcl\nagent {\n  work_dir = \"/x\"\n}\n```": "",
	} {
		list := fences("x.md", []byte(text), "hcl")
		if len(list) != 1 {
			t.Errorf("fences(%q) = %v, want one", text, list)
			continue
		}
		diags := list[0].check()
		if want == "" && len(diags) > 0 || want != "" && !strings.Contains(diags.Error(), want) {
			t.Errorf("check(%q) = %v, want %q", text, diags, want)
		}
	}
}
