package nvidiagpu

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// driver is where NVIDIA's driver is installed: "/", or where a driver container has it.
type driver string

func (d driver) path(p string) string { return filepath.Join(string(d), p) }

// node reads a device node of the driver's root; path is where containers have it.
func (d driver) node(path string) (*containerv1.Device, error) {
	var st unix.Stat_t
	if err := unix.Stat(d.path(path), &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: d.path(path), Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return nil, fmt.Errorf("%s is no character device", d.path(path))
	}
	return &containerv1.Device{
		Path: path, Type: "c", Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		Mode: st.Mode & 0o777, Uid: st.Uid, Gid: st.Gid, Access: "rwm",
	}, nil
}

// common are the nodes that every program on a GPU opens; those of the second list are used where they are.
func (d driver) common() ([]*containerv1.Device, error) {
	var list []*containerv1.Device
	for _, p := range []string{"/dev/nvidiactl", "/dev/nvidia-uvm"} {
		n, err := d.node(p)
		if err != nil {
			return nil, fmt.Errorf("%w: `nvidia-modprobe -u -c=0` makes it", err)
		}
		list = append(list, n)
	}
	for _, p := range []string{"/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"} {
		if n, err := d.node(p); err == nil {
			list = append(list, n)
		}
	}
	return list, nil
}

// own are a device's own nodes: that of the GPU, and of a part of one the two capabilities that open it.
func (d driver) own(dev Device) ([]*containerv1.Device, error) {
	n, err := d.node("/dev/nvidia" + strconv.Itoa(dev.Minor))
	if err != nil {
		return nil, err
	}
	list := []*containerv1.Device{n}
	if dev.Parent == "" {
		return list, nil
	}
	caps, err := d.capabilities(dev)
	return append(list, caps...), err
}

// capabilities are the nodes that open a MIG device; which they are, the kernel's driver says.
func (d driver) capabilities(dev Device) ([]*containerv1.Device, error) {
	text, err := os.ReadFile(d.path("/proc/driver/nvidia-caps/mig-minors"))
	if err != nil {
		return nil, err
	}
	minors := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if name, minor, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			minors[name] = minor
		}
	}
	var list []*containerv1.Device
	for _, name := range []string{
		fmt.Sprintf("gpu%d/gi%d/access", dev.Minor, dev.GPUInstance),
		fmt.Sprintf("gpu%d/gi%d/ci%d/access", dev.Minor, dev.GPUInstance, dev.ComputeInstance),
	} {
		minor, err := strconv.ParseUint(minors[name], 10, 20)
		if err != nil {
			return nil, fmt.Errorf("the driver has no capability %s", name)
		}
		n, err := d.node(fmt.Sprintf("/dev/nvidia-caps/nvidia-cap%d", minor))
		if err != nil {
			return nil, err
		}
		list = append(list, n)
	}
	return list, nil
}

// nodes are those that a container with these devices needs, each once.
func (d driver) nodes(devices []Device) ([]*containerv1.Device, error) {
	list, err := d.common()
	if err != nil {
		return nil, err
	}
	for _, dev := range devices {
		more, err := d.own(dev)
		if err != nil {
			return nil, fmt.Errorf("nodes of %s: %w", dev.UUID, err)
		}
		for _, n := range more {
			if !slices.ContainsFunc(list, func(o *containerv1.Device) bool { return o.GetPath() == n.GetPath() }) {
				list = append(list, n)
			}
		}
	}
	return list, nil
}
