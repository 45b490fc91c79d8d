package supervised

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/core/containerizer/cgroup"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// On version 1 of cgroups a group that may use some devices only has no group below it that may use more, and to say
// "all" in it is refused as such, also where nobody means more than what is left. So what is allowed to a container is
// what is allowed around it, where that is not all. On version 2 each group's rules are asked anyway.

// What a rule says that concerns every device, and everything one can do with it.
const (
	allTypes  = "a"
	allAccess = "rwm"
)

// DeviceRules are what a container may do with devices, in the order in which they count: the proposal's rules or, without
// any, all devices on the machine's file system and none on one of its own; then the devices it is given.
func DeviceRules(r *launcher.Request) []*containerv1.DeviceRule {
	var list []*containerv1.DeviceRule
	for _, d := range r.Proposal.GetCgroup().GetDeviceRules() {
		d = proto.CloneOf(d)
		if d.Access == "" {
			d.Access = allAccess
		}
		list = append(list, d)
	}
	if len(list) == 0 {
		list = append(list, &containerv1.DeviceRule{Allow: r.Container.GetRootfs() == "", Type: allTypes, Access: allAccess})
	}
	for _, d := range r.Proposal.GetDevices() {
		if d.GetType() == "p" {
			continue
		}
		major, minor := d.GetMajor(), d.GetMinor()
		rule := &containerv1.DeviceRule{Allow: true, Type: d.GetType(), Major: &major, Minor: &minor, Access: d.GetAccess()}
		if rule.Access == "" {
			rule.Access = allAccess
		}
		list = append(list, rule)
	}
	return list
}

// maxDeviceRules bounds the rules that are read of a cgroup. A list is a handful of lines; one that names each of a
// machine's disks has hundreds.
const maxDeviceRules = 10_000

// DevicesAround returns the rules of the cgroup around rel, nil where all devices are allowed or nothing says otherwise.
func DevicesAround(cgroups *cgroup.Hierarchy, rel string) ([]*containerv1.DeviceRule, error) {
	outer := path.Dir(rel)
	if cgroups == nil || cgroups.Version() != 1 || rel == "" || outer == "." {
		return nil, nil
	}
	g, err := cgroups.Group(outer)
	if err != nil {
		return nil, err
	}
	dir := g.Paths()["devices"]
	if dir == "" {
		return nil, nil // it is about to be made, and allows what the machine does
	}
	f, err := os.Open(filepath.Join(dir, "devices.list"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("devices of the cgroup around: %w", err)
	}
	defer f.Close()
	rules, err := parseDevices(f)
	if err != nil {
		return nil, fmt.Errorf("devices of the cgroup around, %s: %w", f.Name(), err)
	}
	return rules, nil
}

// parseDevices reads a devices.list: lines "TYPE MAJOR:MINOR ACCESS", in which numbers may be "*". What allows all
// comes out as nil; what allows none has one rule that denies all.
func parseDevices(r io.Reader) ([]*containerv1.DeviceRule, error) {
	rules := []*containerv1.DeviceRule{{Type: allTypes, Access: allAccess}}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 {
			continue
		}
		if fields[0] == "a" {
			return nil, nil // as the kernel puts it for a group that allows all but some
		}
		if len(fields) != 3 || fields[0] != "b" && fields[0] != "c" {
			return nil, fmt.Errorf("line %q, want type, numbers and access", lines.Text())
		}
		major, minor, _ := strings.Cut(fields[1], ":")
		rule := &containerv1.DeviceRule{Allow: true, Type: fields[0], Access: fields[2]}
		var err error
		if rule.Major, err = deviceNumber(major); err == nil {
			rule.Minor, err = deviceNumber(minor)
		}
		if err != nil {
			return nil, fmt.Errorf("line %q: %w", lines.Text(), err)
		}
		if rules = append(rules, rule); len(rules) > maxDeviceRules {
			return nil, fmt.Errorf("more than %d lines", maxDeviceRules)
		}
	}
	return rules, lines.Err()
}

func deviceNumber(text string) (*int64, error) {
	if text == "*" {
		return nil, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	return &n, err
}

// DevicesWithin puts what is allowed around in the place of rules that allow all.
func DevicesWithin(around, rules []*containerv1.DeviceRule) []*containerv1.DeviceRule {
	if around == nil {
		return rules
	}
	var out []*containerv1.DeviceRule
	for _, r := range rules {
		if r.GetAllow() && (r.GetType() == "" || r.GetType() == allTypes) && r.Major == nil && r.Minor == nil {
			out = append(out, around...)
		} else {
			out = append(out, r)
		}
	}
	return out
}
