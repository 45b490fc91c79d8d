package nvidiagpu

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// Names that nvidia-docker and its successor, the container toolkit, gave a meaning: of an image's label, and of variables
// of an image or a task.
const (
	volumesNeeded      = "com.nvidia.volumes.needed"
	neededVolume       = "nvidia_driver"
	visibleDevices     = "NVIDIA_VISIBLE_DEVICES"
	driverCapabilities = "NVIDIA_DRIVER_CAPABILITIES"
	cudaDevices        = "CUDA_VISIBLE_DEVICES"
)

// component is a part of the driver that an image asks for by name: what it cannot bring along, since it must be of the
// kernel driver's version. Libraries are named up to ".so".
type component struct{ libraries, programs []string }

// components are the parts by the names that NVIDIA_DRIVER_CAPABILITIES has for them.
//
// Source: the driver's README, "Installed Components", and the container toolkit's documentation, "Driver Capabilities".
func components() map[string]component {
	graphics := []string{
		"libEGL_nvidia", "libGLESv1_CM_nvidia", "libGLESv2_nvidia", "libGLX_nvidia", "libnvidia-eglcore", "libnvidia-glcore", "libnvidia-glsi",
		"libnvidia-glvkspirv", "libnvidia-tls", "libnvidia-fbc", "libnvidia-allocator", "libnvidia-gpucomp", "libnvoptix", "libnvidia-rtcore",
		"libnvidia-egl-gbm", "libnvidia-egl-wayland",
	}
	return map[string]component{
		"compute": {
			libraries: []string{
				"libcuda", "libcudadebugger", "libnvidia-ptxjitcompiler", "libnvidia-fatbinaryloader", "libnvidia-compiler", "libnvidia-nvvm",
				"libnvidia-opencl", "libnvidia-allocator", "libnvidia-gpucomp", "libnvidia-tileiras", "libnvidia-pkcs11", "libnvidia-pkcs11-openssl3",
				"libnvidia-sandboxutils",
			},
			programs: []string{"nvidia-cuda-mps-control", "nvidia-cuda-mps-server"},
		},
		"utility": {
			libraries: []string{"libnvidia-ml", "libnvidia-cfg"},
			programs:  []string{"nvidia-smi", "nvidia-debugdump", "nvidia-persistenced"},
		},
		"video":    {libraries: []string{"libnvcuvid", "libnvidia-encode", "libnvidia-opticalflow", "libvdpau_nvidia"}},
		"graphics": {libraries: graphics},
		"display":  {libraries: graphics},
		"ngx":      {libraries: []string{"libnvidia-ngx"}},
	}
}

// all is every part, and what an image that does not say gets is what most need: to compute, and to look at the GPUs.
func allComponents() []string   { return slices.Sorted(maps.Keys(components())) }
func usualComponents() []string { return []string{"compute", "utility"} }

// asked are the parts of the driver that a container asks for, by its image's label or variables or its own; nil if it asks
// for none.
func asked(c *containerv1.Container, env map[string]string) ([]string, error) {
	if c.GetLabels()[volumesNeeded] == neededVolume || c.GetImageConfig().GetLabels()[volumesNeeded] == neededVolume {
		return allComponents(), nil // that label is older than the parts
	}
	if v := env[visibleDevices]; v == "" || v == "void" {
		return nil, nil
	}
	names := strings.FieldsFunc(env[driverCapabilities], func(r rune) bool { return r == ',' || r == ' ' })
	if len(names) == 0 {
		return usualComponents(), nil
	}
	known := components()
	for _, name := range names {
		if name == "all" {
			return allComponents(), nil
		}
		if _, ok := known[name]; !ok {
			return nil, module.InvalidArgument("%s: got %.80q, want all or some of %s", driverCapabilities, name, strings.Join(allComponents(), ", "))
		}
	}
	return names, nil
}

// environmentOf is the environment that the image brings along, and over it what the command says itself.
func environmentOf(c *containerv1.Container) map[string]string {
	env := map[string]string{}
	for _, kv := range c.GetImageConfig().GetEnvironment() {
		if name, value, ok := strings.Cut(kv, "="); ok {
			env[name] = value
		}
	}
	for _, v := range c.GetCommand().GetEnvironment().GetVariables() {
		if v.GetType() != mesosv1.Environment_Variable_SECRET {
			env[v.GetName()] = v.GetValue()
		}
	}
	return env
}

// libraryFolders and programFolders are where distributions install the driver.
func libraryFolders() []string {
	return []string{
		"/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/lib/x86_64-linux-gnu/nvidia/current",
		"/usr/local/nvidia/lib64", "/usr/local/nvidia/lib", "/opt/nvidia/lib64",
	}
}

func programFolders() []string {
	return []string{"/usr/bin", "/usr/local/bin", "/usr/local/nvidia/bin", "/opt/nvidia/bin"}
}

// volume are the mounts that show a container the libraries and programs of some parts of the driver below where,
// read-only, each file by itself: nothing is copied, and an update of the driver holds for the next launch.
func (d driver) volume(where string, names []string) []*containerv1.Mount {
	known := components()
	var libraries, programs []string
	for _, name := range names {
		libraries, programs = append(libraries, known[name].libraries...), append(programs, known[name].programs...)
	}
	var list []*containerv1.Mount
	seen := map[string]bool{}
	add := func(folder, name, source string) {
		to := filepath.Join(where, folder, name)
		real, err := filepath.EvalSymlinks(source)
		if err != nil || seen[to] {
			return
		}
		if info, err := os.Stat(real); err != nil || !info.Mode().IsRegular() {
			return
		}
		seen[to] = true
		list = append(list, &containerv1.Mount{Destination: to, Source: real, Type: "bind", Options: []string{"bind", "ro", "nosuid", "nodev"}})
	}
	for _, folder := range libraryFolders() {
		entries, err := os.ReadDir(d.path(folder))
		if err != nil {
			continue
		}
		for _, e := range entries {
			// Under its full name and its soname, as programs were linked; but libcuda.so is opened by that name.
			name, version, ok := strings.Cut(e.Name(), ".so")
			if ok && slices.Contains(libraries, name) && (version != "" || name == "libcuda") {
				add("lib64", e.Name(), filepath.Join(d.path(folder), e.Name()))
			}
		}
	}
	for _, name := range programs {
		for _, folder := range programFolders() {
			add("bin", name, filepath.Join(d.path(folder), name))
		}
	}
	return list
}
