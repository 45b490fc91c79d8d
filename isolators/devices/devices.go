// Package devices is the isolator that gives containers devices of the host: nodes by path, and devices of vendors by
// their names in the Container Device Interface (cdi.go).
//
// It promises that a container gets what the operator's list allows and it asked for, and that anything else fails the
// launch with the reason. It proposes only, and keeps nothing: the same device may be in many containers. Devices that
// must not be shared are other modules' business.
package devices

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

const (
	// askLabel is the label of a task that asks for devices; askParameter is the parameter of a Docker container that
	// does, one device each.
	askLabel     = "mosaic.devices"
	askParameter = "device"

	// mostAsked bounds what one container asks for, and mostText how long that is.
	mostAsked = 256
	mostText  = 64 << 10
)

// Config is what the operator may set.
type Config struct {
	Allowed []Allowed `hcl:"device,block" doc:"Host devices that containers may ask for, by path; the path may hold * and ?."`
	CDI     []string  `hcl:"cdi,optional" doc:"CDI devices that containers may ask for, such as vendor.com/net=*."`
	CDIDirs []string  `hcl:"cdi_spec_dirs,optional" doc:"Folders with CDI specifications; of two with the same device the later folder's holds."`
}

// Allowed is a device, or many by a pattern.
type Allowed struct {
	Path   string `hcl:"path,label"`
	Access string `hcl:"access,optional" doc:"What containers may do with it: some of r (read), w (write), m (make nodes); rw when not set." pattern:"[rwm]*"`
	Every  bool   `hcl:"every_container,optional" doc:"Containers with an image have it without asking."`
}

func (a Allowed) access() string {
	if a.Access == "" {
		return "rw"
	}
	return a.Access
}

// Isolator is the module.
type Isolator struct {
	isolatorv1.UnimplementedIsolatorServer
	config *module.Config[Config]
}

// New returns the module with its defaults: nothing is allowed.
func New() *Isolator {
	return &Isolator{config: module.NewConfig(Config{CDIDirs: []string{"/etc/cdi", "/var/run/cdi"}}, check)}
}

func check(c *Config) error {
	var errs []error
	for i, a := range c.Allowed {
		at := fmt.Sprintf("device[%d]", i)
		if _, err := filepath.Match(a.Path, "/dev/x"); err != nil || !filepath.IsAbs(a.Path) || filepath.Clean(a.Path) != a.Path {
			errs = append(errs, module.Wrong(at+".path", "got %q, want a clean absolute path, or a pattern of one", a.Path))
		}
		if strings.Trim(a.Access, "rwm") != "" {
			errs = append(errs, module.Wrong(at+".access", "got %q, want some of rwm", a.Access))
		}
	}
	for i, pattern := range c.CDI {
		if _, err := filepath.Match(pattern, ""); err != nil || !strings.Contains(pattern, "=") {
			errs = append(errs, module.Wrong(fmt.Sprintf("cdi[%d]", i), "got %q, want a name such as vendor.com/class=*", pattern))
		}
	}
	for i, dir := range c.CDIDirs {
		if !filepath.IsAbs(dir) {
			errs = append(errs, module.Wrong(fmt.Sprintf("cdi_spec_dirs[%d]", i), "got %q, want an absolute path", dir))
		}
	}
	return errors.Join(errs...)
}

// Info describes the module.
func (i *Isolator) Info() module.Info {
	return module.Info{
		Kind: "isolator", Name: "devices", Version: "1.0.0", Doc: "devices of the host, by path or CDI name",
		Powers: []string{"cgroup", "devices", "environment", "mounts"}, After: []string{"cgroups"}, Nesting: true, Standalone: true, Config: i.config,
	}
}

// Recover knows nothing between calls, so there is nothing to recover.
func (i *Isolator) Recover(s isolatorv1.Isolator_RecoverServer) error {
	for {
		if _, err := s.Recv(); err != nil {
			return s.SendAndClose(&isolatorv1.RecoverResponse{})
		}
	}
}

// asked lists what a container asks for, as texts.
func asked(c *containerv1.Container) ([]string, error) {
	var list []string
	add := func(from, text string) error {
		for _, item := range strings.Split(text, ",") {
			item = strings.TrimSpace(item)
			if item == "" || len(text) > mostText || len(list) == mostAsked || strings.ContainsRune(item, 0) {
				return module.InvalidArgument("%s: got %.80q, want at most %d devices, each with a name", from, text, mostAsked)
			}
			list = append(list, item)
		}
		return nil
	}
	if text := c.GetLabels()[askLabel]; text != "" {
		if err := add("label "+askLabel, text); err != nil {
			return nil, err
		}
	}
	for _, p := range c.GetContainerInfo().GetDocker().GetParameters() {
		if p.GetKey() == askParameter {
			if err := add("docker parameter "+askParameter, p.GetValue()); err != nil {
				return nil, err
			}
		}
	}
	return list, nil
}

// want is one device of the host and where a container is to have it.
type want struct {
	host, path string
	access     string // "" for what the operator allows
}

// parse reads "/dev/fuse", "/dev/fuse:rw", "/dev/sdb:/dev/data", "/dev/sdb:/dev/data:r", as Docker does.
func parse(text string) (want, error) {
	parts := strings.Split(text, ":")
	w := want{host: parts[0], path: parts[0]}
	rest := parts[1:]
	if len(rest) > 0 && filepath.IsAbs(rest[0]) {
		w.path, rest = rest[0], rest[1:]
	}
	if len(rest) > 0 {
		w.access, rest = rest[0], rest[1:]
		if w.access == "" || strings.Trim(w.access, "rwm") != "" {
			return w, module.InvalidArgument("device %.80q: got the access %.80q, want some of rwm", text, w.access)
		}
	}
	for _, p := range []string{w.host, w.path} {
		if len(rest) > 0 || !filepath.IsAbs(p) || filepath.Clean(p) != p || p == "/" {
			return w, module.InvalidArgument("device %.80q: want a clean absolute path, as in /dev/fuse, /dev/sdb:/dev/data or /dev/sdb:/dev/data:r", text)
		}
	}
	return w, nil
}

// allowed gives the access that the operator's list has for a device; the first entry that matches holds.
func (c *Config) allowed(path string) (string, bool) {
	for _, a := range c.Allowed {
		if ok, _ := filepath.Match(a.Path, path); ok {
			return a.access(), true
		}
	}
	return "", false
}

// node reads a device of the host. A link is followed: what it leads to is the operator's doing, as is the list.
func node(host string) (*containerv1.Device, error) {
	var st unix.Stat_t
	if err := unix.Stat(host, &st); err != nil {
		return nil, module.FailedPrecondition("device %s: %v", host, err)
	}
	d := &containerv1.Device{Path: host, Mode: st.Mode & 0o777, Uid: st.Uid, Gid: st.Gid, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev))}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.Type = "c"
	case unix.S_IFBLK:
		d.Type = "b"
	default:
		return nil, module.FailedPrecondition("device %s: it is no device", host)
	}
	return d, nil
}

// find resolves what a container asks for by path.
func (c *Config) find(text string) (*containerv1.Device, error) {
	w, err := parse(text)
	if err != nil {
		return nil, err
	}
	access, ok := c.allowed(w.host)
	if !ok {
		return nil, module.FailedPrecondition("device %s is not among those that containers may have here", w.host)
	}
	if w.access == "" {
		w.access = access
	}
	if more := strings.Trim(w.access, access); more != "" {
		return nil, module.FailedPrecondition("device %s: got a request for access %s, and containers may have %s here", w.host, w.access, access)
	}
	d, err := node(w.host)
	if err != nil {
		return nil, err
	}
	d.Path, d.Access = w.path, w.access
	return d, nil
}

// every lists what containers with an image have without asking.
func (c *Config) every() ([]*containerv1.Device, error) {
	var list []*containerv1.Device
	for _, a := range c.Allowed {
		if !a.Every {
			continue
		}
		paths := []string{a.Path}
		if strings.ContainsAny(a.Path, `*?[\`) {
			paths, _ = filepath.Glob(a.Path) // the pattern was checked; none is no mistake
		}
		for _, p := range paths {
			if info, err := os.Stat(p); err == nil && info.Mode()&os.ModeDevice == 0 && len(paths) > 1 {
				continue // a pattern may catch a folder
			}
			d, err := node(p)
			if err != nil {
				return nil, err
			}
			d.Access = a.access()
			list = append(list, d)
		}
	}
	return list, nil
}

// Prepare proposes the devices.
func (i *Isolator) Prepare(_ context.Context, r *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
	cfg, c := i.config.Get(), r.GetContainer()
	if c.GetClass() == containerv1.Container_DEBUG {
		return &isolatorv1.PrepareResponse{}, nil // shares everything with its parent
	}
	texts, err := asked(c)
	if err != nil {
		return nil, err
	}
	s := settings{image: c.GetRootfs() != "", byPath: map[string]*containerv1.Device{}}
	if s.image {
		list, err := cfg.every()
		if err != nil {
			return nil, err
		}
		for _, d := range list {
			s.byPath[d.GetPath()] = d
		}
	}
	var names []string
	for _, text := range texts {
		if !strings.HasPrefix(text, "/") {
			names = append(names, text)
			continue
		}
		d, err := cfg.find(text)
		if err == nil {
			err = s.add(d, text)
		}
		if err != nil {
			return nil, err
		}
	}
	if len(names) > 0 {
		if err := cfg.addCDI(&s, names); err != nil {
			return nil, err
		}
	}
	p := s.proposal(c.GetParentId() != "", len(r.GetSoFar().GetMerged().GetCgroup().GetDeviceRules()) > 0)
	return &isolatorv1.PrepareResponse{Proposal: p}, nil
}

// settings are what a container gets.
type settings struct {
	image       bool
	byPath      map[string]*containerv1.Device
	mounts      []*containerv1.Mount
	environment map[string]string
}

// add takes a device in. Without an image the container has the host's /dev, where nothing can be renamed.
func (s *settings) add(d *containerv1.Device, text string) error {
	before, taken := s.byPath[d.GetPath()]
	if taken && (before.GetMajor() != d.GetMajor() || before.GetMinor() != d.GetMinor() || before.GetType() != d.GetType()) {
		return module.InvalidArgument("device %.80q: %s is another device already", text, d.GetPath())
	}
	if !s.image {
		host, err := node(d.GetPath())
		if err != nil || host.GetMajor() != d.GetMajor() || host.GetMinor() != d.GetMinor() || host.GetType() != d.GetType() {
			return module.InvalidArgument("device %.80q: a container without an image of its own has the host's /dev, and cannot have the device at %s", text, d.GetPath())
		}
	}
	if len(s.byPath) == mostAsked*4 {
		return module.InvalidArgument("device %.80q: more than %d devices", text, mostAsked*4)
	}
	s.byPath[d.GetPath()] = d
	return nil
}

// proposal is nil if there is nothing to set. restricted says that an isolator before us lets the container open only
// what is on a list.
func (s *settings) proposal(nested, restricted bool) *containerv1.Proposal {
	p := &containerv1.Proposal{Mounts: s.mounts, Environment: s.environment}
	for _, path := range slices.Sorted(maps.Keys(s.byPath)) {
		d := s.byPath[path]
		if s.image {
			p.Devices = append(p.Devices, d)
		} else if restricted && !nested {
			if p.Cgroup == nil {
				p.Cgroup = &containerv1.CgroupResources{}
			}
			p.Cgroup.DeviceRules = append(p.Cgroup.DeviceRules, &containerv1.DeviceRule{
				Allow: true, Type: d.GetType(), Major: &d.Major, Minor: &d.Minor, Access: d.GetAccess(),
			})
		}
	}
	if len(p.Devices) == 0 && len(p.Mounts) == 0 && len(p.Environment) == 0 && p.Cgroup == nil {
		return nil
	}
	return p
}

// Cleanup has nothing to take back: nodes and rules end with the container.
func (i *Isolator) Cleanup(context.Context, *isolatorv1.CleanupRequest) (*isolatorv1.CleanupResponse, error) {
	return &isolatorv1.CleanupResponse{}, nil
}
