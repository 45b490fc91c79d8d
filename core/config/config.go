// Package config reads what the operator wrote: HCL files, or a folder of them, or their JSON form, to typed values.
//
// It promises that everything that is wrong is told at once, each with file, line and column, the line itself, and what
// may have been meant. It reads only; it starts nothing, and the bodies of `config` blocks stay undecoded, since only
// the modules know what may stand in them: they go on with their places to the module host.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/json"
)

// maxFile bounds one file; a large site's composition has some 10 KiB.
const maxFile = 4 << 20

// Config is a whole composition with the settings of the daemons.
type Config struct {
	// debug, info, warn or error; empty if not said.
	LogLevel string
	Master   Master
	Agent    Agent
	// In the order of the blocks, which is the order of merging.
	Modules []Module
	// Text of each file read, by its name, to quote lines from.
	Files map[string][]byte
}

// Load reads a file, or the *.hcl and *.hcl.json files of a folder in the order of their names.
//
// Errors: Diagnostics with all that is wrong. What could be read is returned beside them, so that it can be checked
// further and everything be told at once; nothing may be run from it.
func Load(path string) (*Config, error) {
	names, err := files(path)
	if err != nil {
		return nil, Diagnostics{{Severity: Error, Summary: "Configuration cannot be read", Detail: err.Error() + "."}}
	}
	sources := make([]source, 0, len(names))
	var diags Diagnostics
	for _, name := range names {
		text, err := read(name)
		if err != nil {
			diags = append(diags, Diagnostic{Severity: Error, Summary: "File cannot be read", Detail: err.Error() + ".", File: name})
			continue
		}
		sources = append(sources, source{name, text})
	}
	c, more := parse(sources)
	if diags = append(diags, more...); diags.HasErrors() {
		return c, diags
	}
	return c, nil
}

// Parse reads one file from memory. The name decides the form: JSON if it ends in .json, else HCL.
//
// Errors: Diagnostics with all that is wrong.
func Parse(name string, text []byte) (*Config, error) {
	c, diags := parse([]source{{name, text}})
	if diags.HasErrors() {
		return nil, diags
	}
	return c, nil
}

// Default gives the composition of an operator who wrote none: what the bundle has that every agent needs.
func Default() *Config {
	c := &Config{Files: map[string][]byte{}}
	for _, name := range []string{"cgroups", "rlimits", "namespaces", "linux", "volumes"} {
		c.Modules = append(c.Modules, Module{Kind: "isolator", Name: name, Required: true})
	}
	c.Modules = append(c.Modules, Module{Kind: "container_logger", Name: "file", Required: true})
	return c
}

func files(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path) // sorted by name
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || e.IsDir() {
			continue
		}
		if strings.HasSuffix(e.Name(), ".hcl") || strings.HasSuffix(e.Name(), ".hcl.json") {
			names = append(names, filepath.Join(path, e.Name()))
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%s has no *.hcl and no *.hcl.json file", path)
	}
	return names, nil
}

func read(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: name, Err: errors.New("not a regular file")}
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("%s has %d bytes, want at most %d", name, info.Size(), maxFile)
	}
	return os.ReadFile(name)
}

// maxDepth bounds nesting: the parser recurses, and a stack that is full ends the program.
const maxDepth = 500

// tooDeep gives the line at which brackets, or operators in a row, are nested deeper than maxDepth; 0 if nowhere. It
// counts those in texts as well, which nobody has by the hundred.
func tooDeep(text []byte) int {
	line, depth, run := 1, 0, 0
	for _, c := range text {
		switch c {
		case '\n':
			line++
		case '{', '[', '(':
			depth++
		case '}', ']', ')':
			depth--
		}
		switch c {
		case '!', '-', ' ', '\t':
			run++
		default:
			run = 0
		}
		if depth > maxDepth || run > maxRun {
			return line
		}
	}
	return 0
}

// maxRun bounds operators in a row. Spaces count too, so that they cannot hide between; no indentation is that wide.
const maxRun = 10_000

type source struct {
	name string
	text []byte
}

// parse decodes files in their order, as if they were one.
func parse(sources []source) (*Config, Diagnostics) {
	c := &Config{Files: make(map[string][]byte, len(sources))}
	d := &decoder{files: c.Files}
	seen := make(map[string]hcl.Range)
	for _, s := range sources {
		c.Files[s.name] = s.text
		if line := tooDeep(s.text); line > 0 {
			at := hcl.Pos{Line: line, Column: 1}
			d.fail(hcl.Range{Filename: s.name, Start: at, End: at}, "Nested too deep", fmt.Sprintf("Got more than %d brackets deep.", maxDepth))
			continue
		}
		var file *hcl.File
		var diags hcl.Diagnostics
		if strings.HasSuffix(s.name, ".json") {
			file, diags = json.Parse(s.text, s.name)
		} else {
			file, diags = hclsyntax.ParseConfig(s.text, s.name, hcl.InitialPos)
		}
		d.diags = append(d.diags, diags...)
		if file != nil && file.Body != nil {
			d.file(c, file.Body, seen)
		}
	}
	return c, FromHCL(d.diags, c.Files)
}

// kinds are the module blocks.
func kinds() []string {
	return []string{
		"isolator", "authorizer", "authenticator", "resource_estimator", "qos_controller", "resource_provider",
		"secret_resolver", "container_logger", "hook",
	}
}

func (d *decoder) file(c *Config, body hcl.Body, seen map[string]hcl.Range) {
	schema := &hcl.BodySchema{
		Attributes: []hcl.AttributeSchema{{Name: "log_level"}},
		Blocks:     []hcl.BlockHeaderSchema{{Type: "master"}, {Type: "agent"}},
	}
	for _, kind := range kinds() {
		schema.Blocks = append(schema.Blocks, hcl.BlockHeaderSchema{Type: kind, LabelNames: []string{"name"}})
	}
	content := d.content(body, schema)
	if content == nil {
		return
	}
	top := struct {
		LogLevel string `name:"log_level" oneof:"debug,info,warn,error"`
	}{c.LogLevel}
	for _, a := range content.Attributes {
		if first, twice := seen[a.Name]; twice {
			d.twice(a.NameRange, a.Name, first)
		}
		seen[a.Name] = a.NameRange
	}
	d.attributes(&top, content.Attributes)
	c.LogLevel = top.LogLevel

	for _, b := range content.Blocks {
		id := b.Type
		if len(b.Labels) > 0 {
			id += " " + b.Labels[0]
		}
		if first, twice := seen[id]; twice {
			d.twice(b.DefRange, id, first)
			continue
		}
		seen[id] = b.DefRange
		switch b.Type {
		case "master":
			d.body(&c.Master, b.Body)
		case "agent":
			d.body(&c.Agent, b.Body)
		default:
			c.Modules = append(c.Modules, d.module(b))
		}
	}
}
