package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/config"
	"github.com/mosaic-cluster/mosaic/core/containerizer/cgroup"
	"github.com/mosaic-cluster/mosaic/core/modulehost"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// loadConfig reads the operator's file or folder; without one, the default composition. A file that names no isolator
// gets the default ones, and what else is there by default beside those of its own kinds: nobody means to run tasks without
// any isolation by leaving something out.
func loadConfig(path string) (*config.Config, error) {
	if path == "" {
		return defaultComposition()
	}
	c, err := config.Load(path)
	if err != nil {
		return nil, &exitError{exitFailed, fmt.Errorf("the configuration is refused:\n%w", err)}
	}
	if diags := refuseUnused(c); diags.HasErrors() {
		return nil, &exitError{exitFailed, fmt.Errorf("the configuration is refused:\n%w", diags)}
	}
	if !slices.ContainsFunc(c.Modules, func(m config.Module) bool { return m.Kind == modulehost.KindIsolator }) {
		d, err := defaultComposition()
		if err != nil {
			return nil, err
		}
		maps.Copy(c.Files, d.Files)
		defaults := slices.DeleteFunc(d.Modules, func(m config.Module) bool {
			return slices.ContainsFunc(c.Modules, func(own config.Module) bool { return own.Kind == m.Kind })
		})
		c.Modules = append(defaults, c.Modules...)
	}
	return c, nil
}

// defaultComposition is the default bundle, with a network for containers where its plugins are; for an ordinary user,
// without what needs root. Whoever composes them by hand is taken at their word, and told at the first launch what the
// machine does not allow.
func defaultComposition() (*config.Config, error) {
	c := config.Default()
	if os.Geteuid() != 0 {
		c.Modules = slices.DeleteFunc(c.Modules, func(m config.Module) bool {
			return m.Kind == modulehost.KindIsolator && slices.Contains([]string{"cgroups", "namespaces", "volumes"}, m.Name)
		})
		return c, nil
	}
	bridge, err := beside(filepath.Join("cni", "bridge"))
	if err != nil {
		return c, nil //nolint:nilerr // installed without them: containers have the host's network
	}
	const name = "the default composition"
	network, err := config.Parse(name, fmt.Appendf(nil, "isolator \"cni\" {\n  config {\n    plugins_dir    = %q\n    default_bridge = true\n  }\n}\n", filepath.Dir(bridge)))
	if err != nil {
		return nil, err
	}
	maps.Copy(c.Files, network.Files)
	c.Modules = append(c.Modules, network.Modules...)
	return c, nil
}

// settings fills options from the configuration where no flag was given.
type settings struct{ cmd *cobra.Command }

func settingsOf(cmd *cobra.Command) settings { return settings{cmd} }

// text takes value for a flag that was not given, if there is a value.
func (s settings) text(flag, value string, target *string) {
	if value != "" && !s.cmd.Flags().Changed(flag) {
		*target = value
	}
}

// moduleConfigs are the composition's modules as the host wants them.
func moduleConfigs(c *config.Config) []modulehost.ModuleConfig {
	var list []modulehost.ModuleConfig
	for _, m := range c.Modules {
		list = append(list, modulehost.ModuleConfig{
			Kind: m.Kind, Name: m.Name, Command: m.Command, Args: m.Args, Checksum: m.Checksum, Required: m.Required, Allow: m.Allow,
			User: m.User, MemoryBytes: uint64(m.Memory), Pids: uint64(m.Pids), Timeouts: m.Timeouts, Config: m.Config, Source: m.Source,
			Range: m.Range, Ranges: m.Ranges,
		})
	}
	return list
}

// compositionError shows what the module host found wrong with file, line and column.
func compositionError(err error, c *config.Config) error {
	var wrong *modulehost.CompositionError
	if errors.As(err, &wrong) {
		return &exitError{exitFailed, fmt.Errorf("the composition is refused:\n%w", config.FromHCL(wrong.Diagnostics, c.Files))}
	}
	return err
}

// diagnose checks a configuration as far as that is possible without starting it. It runs no vendor's code: only the
// modules that come with this program are asked for their schemas, if those are not known yet.
func diagnose(ctx context.Context, c *config.Config) (config.Diagnostics, error) {
	bundle, err := beside("mosaic-modules")
	if err != nil {
		return nil, err
	}
	programs, err := programDirs(cmp.Or(c.Agent.ModuleDir, c.Master.ModuleDir))
	if err != nil {
		return nil, err
	}
	ours := modulehost.Options{Version: version, Bundle: bundle, ProgramDirs: programs[:1], CacheDir: schemaCacheDir()}
	modules := moduleConfigs(c)
	for _, m := range modules {
		if m.Command != "" {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		// A module that is not in the bundle fails here and is told by Validate with its place.
		_, _ = modulehost.Describe(ctx, describeOptions(ours), m)
		cancel()
	}
	all := ours
	all.ProgramDirs = programs
	var diags hcl.Diagnostics
	diags = append(diags, modulehost.Validate(all, modules)...)
	return config.Merge(refuseUnused(c), config.FromHCL(diags, c.Files)), nil
}

// schemaCacheDir is where descriptions of modules are kept by digest.
func schemaCacheDir() string {
	if os.Geteuid() == 0 {
		return "/var/cache/mosaic/schemas"
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "mosaic", "schemas")
}

// nodeFacts finds out what modules are told of the machine.
func nodeFacts(workDir, cgroupRoot string) (*modulev1.NodeFacts, error) {
	hostname, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("find the machine's name: %w", err)
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("find the kernel's version: %w", err)
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return nil, fmt.Errorf("find the machine's memory: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("find the boot's id: %w", err)
	}
	n := &modulev1.NodeFacts{
		Hostname: hostname, Os: runtime.GOOS, Arch: runtime.GOARCH, Kernel: unix.ByteSliceToString(uts.Release[:]),
		Cpus: float64(runtime.NumCPU()), MemBytes: info.Totalram * uint64(info.Unit), Root: os.Geteuid() == 0,
		BootId: strings.TrimSpace(string(boot)), WorkDir: workDir, CgroupRoots: map[string]string{},
	}
	h, err := cgroup.Detect()
	if err != nil {
		return n, nil //nolint:nilerr // a machine without cgroups is a fact like others
	}
	g, err := h.Group(cgroupRoot)
	if err != nil {
		return nil, fmt.Errorf("cgroup root %q: %w", cgroupRoot, err)
	}
	n.CgroupVersion, n.CgroupRoots = uint32(h.Version()), g.Paths()
	return n, nil
}

// moduleRow is one module as tools show it.
type moduleRow struct {
	Kind     string    `json:"kind"`
	Name     string    `json:"name"`
	Version  string    `json:"version,omitempty"`
	State    string    `json:"state"`
	Reason   string    `json:"reason,omitempty"`
	Since    time.Time `json:"since,omitzero"`
	Required bool      `json:"required"`
	Pid      int       `json:"pid,omitempty"`
	Restarts int       `json:"restarts"`
	Memory   uint64    `json:"memory_bytes,omitempty"`
	Owed     int       `json:"cleanups_owed"`
	Service  string    `json:"service,omitempty"`
	Powers   []string  `json:"powers,omitempty"`
	Granted  []string  `json:"granted,omitempty"`
	Digest   string    `json:"digest,omitempty"`
	Doc      string    `json:"doc,omitempty"`
}

func moduleRows(list []modulehost.ModuleStatus) []moduleRow {
	rows := []moduleRow{}
	for _, s := range list {
		rows = append(rows, moduleRow{
			Kind: s.Kind, Name: s.Name, Version: s.Version, State: string(s.State), Reason: s.Reason, Since: s.Since, Required: s.Required,
			Pid: s.PID, Restarts: s.Restarts, Memory: s.Memory, Owed: s.Owed, Service: s.Service, Powers: s.Powers, Granted: s.Granted,
			Digest: s.Digest, Doc: s.Doc,
		})
	}
	return rows
}

var moduleColumns = []column[moduleRow]{
	{"KIND", false, func(r moduleRow) string { return r.Kind }},
	{"NAME", false, func(r moduleRow) string { return r.Name }},
	{"STATE", false, func(r moduleRow) string { return r.State }},
	{"RESTARTS", false, func(r moduleRow) string { return strconv.Itoa(r.Restarts) }},
	{"PID", false, func(r moduleRow) string { return strconv.Itoa(r.Pid) }},
	{"MEMORY", false, func(r moduleRow) string { return strconv.FormatUint(r.Memory>>20, 10) + " MiB" }},
	{"SINCE", false, func(r moduleRow) string { return age(r.Since) }},
	{"REASON", false, func(r moduleRow) string { return r.Reason }},
	{"VERSION", true, func(r moduleRow) string { return r.Version }},
	{"CONTRACT", true, func(r moduleRow) string { return r.Service }},
	{"POWERS", true, func(r moduleRow) string { return strings.Join(r.Granted, ",") }},
	{"OWED", true, func(r moduleRow) string { return strconv.Itoa(r.Owed) }},
	{"DIGEST", true, func(r moduleRow) string { return r.Digest }},
}
