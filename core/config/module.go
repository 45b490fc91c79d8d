package config

import (
	"regexp"
	"time"

	"github.com/hashicorp/hcl/v2"
)

// Module is one module block.
type Module struct {
	Kind string
	Name string
	// Absolute path of the executable; empty takes the module from the bundle.
	Command string
	Args    []string
	// "sha256:" and 64 hex digits, or empty.
	Checksum string
	// Default true.
	Required bool
	// Powers granted; nil if not said.
	Allow []string
	// Name or number; empty is the agent's own.
	User string
	// Limits of the module's own cgroup; 0 if not said.
	Memory Bytes
	Pids   int
	// Deadlines by call in lower case.
	Timeouts map[string]time.Duration
	// Body of the config block, not decoded; nil without one.
	Config hcl.Body
	// Text of the file of the block.
	Source []byte
	// The block's header, and its attributes and the blocks timeouts and config by name.
	Range  hcl.Range
	Ranges map[string]hcl.Range
}

// attributes of a module block.
type moduleSettings struct {
	Command  string   `name:"command" form:"path"`
	Args     []string `name:"args"`
	Checksum string   `name:"checksum"`
	Required *bool    `name:"required"`
	Allow    []string `name:"allow"`
	User     string   `name:"user"`
	Memory   Bytes    `name:"memory"`
	Pids     int      `name:"pids" min:"1" max:"4194304"`
}

var moduleName = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

func (d *decoder) module(b *hcl.Block) Module {
	m := Module{
		Kind: b.Type, Name: b.Labels[0], Range: b.DefRange, Ranges: make(map[string]hcl.Range), Source: d.files[b.DefRange.Filename],
	}
	if !moduleName.MatchString(m.Name) {
		d.fail(b.LabelRanges[0], "Wrong name", "Got "+show(text(m.Name))+", want lower_snake_case.")
	}
	schema := &hcl.BodySchema{Blocks: []hcl.BlockHeaderSchema{{Type: "timeouts"}, {Type: "config"}}}
	for _, name := range fieldNames(moduleSettings{}) {
		schema.Attributes = append(schema.Attributes, hcl.AttributeSchema{Name: name})
	}
	content := d.content(b.Body, schema)
	if content == nil {
		return m
	}
	var s moduleSettings
	d.attributes(&s, content.Attributes)
	for name, a := range content.Attributes {
		m.Ranges[name] = a.Expr.Range()
	}
	m.Command, m.Args, m.Checksum, m.Allow, m.User = s.Command, s.Args, s.Checksum, s.Allow, s.User
	m.Memory, m.Pids = s.Memory, s.Pids
	m.Required = s.Required == nil || *s.Required
	if !m.Required && m.Kind == "authorizer" {
		d.fail(m.Ranges["required"], "An authorizer cannot be optional", "Without it everything would be allowed; leave the block out to run without authorization.")
	}
	if len(m.Args) > 0 && m.Command == "" {
		d.fail(m.Ranges["args"], "Arguments without a command", "Modules of the bundle take no arguments; say which command they are for.")
	}
	seen := make(map[string]hcl.Range)
	for _, inner := range content.Blocks {
		if first, twice := seen[inner.Type]; twice {
			d.twice(inner.DefRange, inner.Type, first)
			continue
		}
		seen[inner.Type] = inner.DefRange
		m.Ranges[inner.Type] = inner.DefRange
		if inner.Type == "config" {
			m.Config = inner.Body
			continue
		}
		m.Timeouts = d.timeouts(inner.Body)
	}
	return m
}

// timeouts decodes the deadlines. Which calls a kind has is known to the module host, which checks the names.
func (d *decoder) timeouts(body hcl.Body) map[string]time.Duration {
	attributes, diags := body.JustAttributes()
	d.diags = append(d.diags, diags...)
	out := make(map[string]time.Duration, len(attributes))
	for name, a := range attributes {
		v, diags := a.Expr.Value(nil)
		if diags.HasErrors() {
			d.diags = append(d.diags, diags...)
			continue
		}
		dur, err := toDuration(v)
		switch {
		case err != nil:
			d.fail(a.Expr.Range(), "Wrong value of "+name, sentence(err))
		case dur <= 0 || dur > time.Hour:
			d.fail(a.Expr.Range(), "Wrong value of "+name, "Got "+show(v)+", want more than 0 and at most 1h.")
		default:
			out[name] = dur
		}
	}
	return out
}
