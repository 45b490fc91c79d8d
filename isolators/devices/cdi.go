package devices

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
	"tags.cncf.io/container-device-interface/pkg/parser"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

const (
	// mostSpec bounds a specification; those of machines with many devices have some ten thousand lines.
	mostSpec = 4 << 20
	// mostSpecs bounds the files of one folder.
	mostSpecs = 1000
)

// A specification of the Container Device Interface. What is in one and is not here is refused when one of its devices
// is asked for: a container that lacks half of what a vendor thought necessary is not what was asked for.
//
// Source: cncf-tags/container-device-interface, SPEC.md, version 1.0.0.
type (
	cdiSpec struct {
		Version     string            `yaml:"cdiVersion"`
		Kind        string            `yaml:"kind"`
		Annotations map[string]string `yaml:"annotations"`
		Devices     []cdiDevice       `yaml:"devices"`
		Edits       cdiEdits          `yaml:"containerEdits"`
	}
	cdiDevice struct {
		Name        string            `yaml:"name"`
		Annotations map[string]string `yaml:"annotations"`
		Edits       cdiEdits          `yaml:"containerEdits"`
	}
	cdiEdits struct {
		Env        []string   `yaml:"env"`
		Nodes      []cdiNode  `yaml:"deviceNodes"`
		Mounts     []cdiMount `yaml:"mounts"`
		Hooks      []any      `yaml:"hooks"`
		NetDevices []any      `yaml:"netDevices"`
		RDT        any        `yaml:"intelRdt"`
		Gids       []uint32   `yaml:"additionalGids"`
	}
	cdiNode struct {
		Path        string  `yaml:"path"`
		HostPath    string  `yaml:"hostPath"`
		Type        string  `yaml:"type"`
		Major       int64   `yaml:"major"`
		Minor       int64   `yaml:"minor"`
		Mode        *uint32 `yaml:"fileMode"`
		UID         *uint32 `yaml:"uid"`
		GID         *uint32 `yaml:"gid"`
		Permissions string  `yaml:"permissions"`
	}
	cdiMount struct {
		HostPath      string   `yaml:"hostPath"`
		ContainerPath string   `yaml:"containerPath"`
		Options       []string `yaml:"options"`
		Type          string   `yaml:"type"`
	}
)

// addCDI finds devices by name and adds what their specifications say. What a specification says of all its devices
// is added once.
func (c *Config) addCDI(s *settings, names []string) error {
	specs, broken := readSpecs(c.CDIDirs)
	done := map[*cdiSpec]bool{}
	for _, name := range names {
		vendor, class, device, err := parser.ParseQualifiedName(name)
		if err != nil {
			return module.InvalidArgument("device %.80q: want a path such as /dev/fuse, or a CDI name such as vendor.com/class=name", name)
		}
		if !slices.ContainsFunc(c.CDI, func(pattern string) bool { ok, _ := filepath.Match(pattern, name); return ok }) {
			return module.FailedPrecondition("CDI device %s is not among those that containers may have here", name)
		}
		spec, d := lookUp(specs, vendor+"/"+class, device)
		if spec == nil {
			return module.FailedPrecondition("CDI device %s is in no specification below %s%s", name, strings.Join(c.CDIDirs, ", "), words(broken))
		}
		edits := []cdiEdits{d.Edits}
		if !done[spec] {
			done[spec] = true
			edits = []cdiEdits{spec.Edits, d.Edits}
		}
		for _, e := range edits {
			if err := s.edit(name, e); err != nil {
				return err
			}
		}
	}
	return nil
}

func words(broken error) string {
	if broken == nil {
		return ""
	}
	return fmt.Sprintf(" (some cannot be read: %.500v)", broken)
}

// readSpecs reads all specifications of the folders, those that hold over others first. One that cannot be read does
// not hide the others.
func readSpecs(dirs []string) ([]*cdiSpec, error) {
	var list []*cdiSpec
	var errs []error
	for _, dir := range slices.Backward(dirs) {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, e := range entries[:min(len(entries), mostSpecs)] {
			if ext := filepath.Ext(e.Name()); ext != ".json" && ext != ".yaml" || strings.HasPrefix(e.Name(), ".") {
				continue
			}
			spec, err := readSpec(filepath.Join(dir, e.Name()))
			if err != nil {
				errs = append(errs, err)
				continue
			}
			list = append(list, spec)
		}
	}
	return list, errors.Join(errs...)
}

func readSpec(file string) (*cdiSpec, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no file", file)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, mostSpec+1))
	if err != nil {
		return nil, err
	}
	if len(data) > mostSpec {
		return nil, fmt.Errorf("%s has more than %d bytes", file, mostSpec)
	}
	spec := &cdiSpec{}
	d := yaml.NewDecoder(bytes.NewReader(data)) // JSON is YAML
	d.KnownFields(true)
	if err := d.Decode(spec); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return spec, nil
}

// lookUp finds a device; the first specification that has it holds.
func lookUp(specs []*cdiSpec, kind, device string) (*cdiSpec, cdiDevice) {
	for _, s := range specs {
		if s.Kind != kind {
			continue
		}
		for _, d := range s.Devices {
			if d.Name == device {
				return s, d
			}
		}
	}
	return nil, cdiDevice{}
}

// edit adds what a specification says.
func (s *settings) edit(name string, e cdiEdits) error {
	for what, has := range map[string]bool{
		"hooks": len(e.Hooks) > 0, "network devices": len(e.NetDevices) > 0, "a cache allocation (intelRdt)": e.RDT != nil, "additional groups": len(e.Gids) > 0,
	} {
		if has {
			return module.FailedPrecondition("CDI device %s: its specification wants %s, which cannot be had here", name, what)
		}
	}
	for _, kv := range e.Env {
		key, value, ok := strings.Cut(kv, "=")
		if !ok || key == "" || strings.ContainsRune(kv, 0) {
			return module.FailedPrecondition("CDI device %s: its specification has %.80q as a variable", name, kv)
		}
		if s.environment == nil {
			s.environment = map[string]string{}
		}
		s.environment[key] = value
	}
	for _, n := range e.Nodes {
		d, err := n.device()
		if err == nil {
			err = s.add(d, name)
		}
		if err != nil {
			return module.FailedPrecondition("CDI device %s: %v", name, err)
		}
	}
	for _, m := range e.Mounts {
		kind, options := m.Type, slices.Clone(m.Options)
		if kind == "" {
			kind = "bind"
		}
		if kind == "bind" && !slices.Contains(options, "bind") && !slices.Contains(options, "rbind") {
			options = append(options, "rbind")
		}
		if !filepath.IsAbs(m.ContainerPath) || filepath.Clean(m.ContainerPath) == "/" || kind == "bind" && !filepath.IsAbs(m.HostPath) {
			return module.FailedPrecondition("CDI device %s: its specification mounts %.80q at %.80q, want absolute paths", name, m.HostPath, m.ContainerPath)
		}
		mount := &containerv1.Mount{Destination: filepath.Clean(m.ContainerPath), Source: m.HostPath, Type: kind, Options: options}
		n := slices.IndexFunc(s.mounts, func(o *containerv1.Mount) bool { return o.GetDestination() == mount.GetDestination() })
		switch {
		case n < 0:
			s.mounts = append(s.mounts, mount)
		case s.mounts[n].GetSource() != mount.GetSource():
			return module.FailedPrecondition("CDI device %s: two mounts at %s", name, mount.GetDestination())
		}
	}
	return nil
}

// device is a node as the specification says, and for the rest as it is on the host.
func (n cdiNode) device() (*containerv1.Device, error) {
	host := n.HostPath
	if host == "" {
		host = n.Path
	}
	if !filepath.IsAbs(n.Path) || !filepath.IsAbs(host) || strings.Trim(n.Permissions, "rwm") != "" {
		return nil, fmt.Errorf("node %.80q with permissions %.80q, want an absolute path and some of rwm", n.Path, n.Permissions)
	}
	d := &containerv1.Device{Type: n.Type, Major: n.Major, Minor: n.Minor, Mode: 0o660}
	switch {
	case n.Type == "" || n.Major == 0 && n.Type != "p":
		var err error
		if d, err = node(host); err != nil {
			return nil, err
		}
		if n.Type != "" && n.Type != d.GetType() && (n.Type != "u" || d.GetType() != "c") {
			return nil, fmt.Errorf("node %s is of type %s, want %s", host, d.GetType(), n.Type)
		}
	case n.Type == "u":
		d.Type = "c"
	case n.Type != "b" && n.Type != "c":
		return nil, fmt.Errorf("node %s: got the type %.80q, want b or c", n.Path, n.Type)
	}
	d.Path, d.Access = filepath.Clean(n.Path), n.Permissions
	if d.Access == "" {
		d.Access = "rwm"
	}
	if n.Mode != nil {
		d.Mode = *n.Mode & 0o777
	}
	if n.UID != nil {
		d.Uid = *n.UID
	}
	if n.GID != nil {
		d.Gid = *n.GID
	}
	return d, nil
}
