package modulehost

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"

	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

var checksumForm = regexp.MustCompile(`^sha256:[0-9a-fA-F]{64}$`)

// checkConfigs says what is wrong with a composition before anything is started.
func (h *Host) checkConfigs(configs []ModuleConfig) hcl.Diagnostics {
	var diags hcl.Diagnostics
	fail := func(c *ModuleConfig, attribute, summary, detail string) {
		diags = append(diags, &hcl.Diagnostic{
			Severity: hcl.DiagError, Summary: c.id() + ": " + summary, Detail: detail, Subject: c.rangeOf(attribute),
		})
	}
	kinds := slices.Sorted(maps.Keys(h.contracts))
	seen := make(map[string]*ModuleConfig)
	single := make(map[string]*ModuleConfig)
	for i := range configs {
		c := &configs[i]
		if _, ok := h.contracts[c.Kind]; !ok {
			fail(c, "", "Unknown kind of module", fmt.Sprintf("Got %q, want one of %s.%s", c.Kind, strings.Join(kinds, ", "), didYouMean(c.Kind, kinds)))
			continue
		}
		if !identifier.MatchString(c.Name) {
			fail(c, "", "Wrong name", fmt.Sprintf("Got %q, want lower_snake_case.", c.Name))
		}
		if first, twice := seen[c.id()]; twice {
			fail(c, "", "Module twice", fmt.Sprintf("It is already at %s.", first.Range))
		}
		seen[c.id()] = c
		if onlyOne(c.Kind) {
			if first, twice := single[c.Kind]; twice && first.Name != c.Name {
				fail(c, "", "More than one "+c.Kind, fmt.Sprintf("There can be one; %s is already at %s.", first.id(), first.Range))
			}
			single[c.Kind] = c
		}
		if _, err := lookupUser(c.User); err != nil {
			fail(c, "user", "Unknown user", err.Error()+".")
		}
		if c.Checksum != "" && !checksumForm.MatchString(c.Checksum) {
			fail(c, "checksum", "Wrong checksum", fmt.Sprintf("Got %q, want \"sha256:\" and 64 hex digits.", cutText(c.Checksum, 80)))
		}
		for _, power := range c.Allow {
			if !slices.Contains(powers(), power) {
				fail(c, "allow", "Unknown power", fmt.Sprintf("Got %q, want one of %s.%s", power, strings.Join(powers(), ", "), didYouMean(power, powers())))
			}
		}
		for _, name := range slices.Sorted(maps.Keys(c.Timeouts)) {
			if !slices.Contains(callNames(c.Kind), name) {
				fail(c, "timeouts", "Unknown call", fmt.Sprintf("Got %q, want one of %s.%s",
					name, strings.Join(callNames(c.Kind), ", "), didYouMean(name, callNames(c.Kind))))
			}
		}
	}
	return diags
}

// onlyOne says whether a composition can have at most one module of a kind.
func onlyOne(kind string) bool {
	return kind != KindIsolator && kind != KindHook && kind != KindResourceProvider
}

// callNames gives the calls of a kind whose deadline can be set.
func callNames(kind string) []string {
	common := []string{"describe", "configure"}
	switch kind {
	case KindIsolator:
		return append(common, "recover", "prepare", "isolate", "update", "validate", "usage", "status", "cleanup")
	case KindAuthorizer:
		return append(common, "approver", "authorize")
	case KindAuthenticator:
		return append(common, "authenticate")
	case KindSecretResolver:
		return append(common, "resolve")
	case KindContainerLogger:
		return append(common, "logger")
	case KindHook:
		return append(common, "decorateenvironment", "decoratelabels", "decoratestatus", "notify")
	default:
		return common
	}
}

// Validate checks a composition without running anything: the blocks themselves, the executables, their checksums, and
// the config bodies of those modules whose schema is in opts.CacheDir. For the others there is a warning. ok modules
// yield nothing.
func Validate(opts Options, configs []ModuleConfig) hcl.Diagnostics {
	h := &Host{opts: opts, contracts: opts.contracts, cache: schemaCache{opts.CacheDir}}
	if h.contracts == nil {
		h.contracts = contracts()
	}
	diags := h.checkConfigs(configs)
	for i := range configs {
		m := &module{host: h, cfg: configs[i]}
		if _, ok := h.contracts[m.cfg.Kind]; !ok || m.cfg.Command == "" && opts.Bundle == "" && len(opts.ProgramDirs) == 0 {
			continue
		}
		d, err := m.known()
		if err != nil {
			diags = append(diags, diagnosticsOf(err)...)
			continue
		}
		if d == nil {
			diags = append(diags, &hcl.Diagnostic{
				Severity: hcl.DiagWarning, Summary: m.cfg.id() + ": Configuration not checked",
				Detail:  "The schema of this module is not known yet; `mosaic module describe` asks the module for it.",
				Subject: m.cfg.rangeOf("config"),
			})
			continue
		}
		if _, err := m.grant(d); err != nil {
			continue // told by checkConfigs
		}
		_, _, more := decodeConfig(m.cfg.Config, d.GetSchema(), &m.cfg)
		diags = append(diags, more...)
	}
	return diags
}

// known gives what the executable that would be run said of itself at an earlier time; nil if it never did.
//
// Errors: a *CompositionError for a file that cannot be run.
func (m *module) known() (*modulev1.DescribeResponse, error) {
	for {
		exe, _, err := m.executable()
		if err != nil {
			return nil, err
		}
		exe.file.Close()
		d := m.host.cache.get(m.cfg.Kind, m.cfg.Name, exe.digest)
		if d != nil || m.cfg.Command != "" || exe.path != m.host.opts.Bundle {
			return d, nil
		}
		own, ok := m.ownProgram()
		if !ok {
			return nil, nil
		}
		m.program = own // the bundle does not know it
	}
}

// Describe starts one module, asks what it is, stops it, and keeps the answer for Validate.
func Describe(ctx context.Context, opts Options, config ModuleConfig) (*modulev1.DescribeResponse, error) {
	opts.Metrics, opts.LogDir = nil, ""
	h, err := newHost(opts)
	if err != nil {
		return nil, err
	}
	m, err := newModule(h, config)
	if err != nil {
		return nil, errors.Join(err, h.release())
	}
	l, err := m.startDescribed(ctx)
	if err == nil {
		l.close()
	}
	return m.description(), errors.Join(err, m.pump.close(), h.release())
}

func diagnosticsOf(err error) hcl.Diagnostics {
	var c *CompositionError
	if errors.As(err, &c) {
		return c.Diagnostics
	}
	return nil
}
