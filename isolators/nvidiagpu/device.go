package nvidiagpu

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// gpus is the resource of whole GPUs; the slices of a GPU that is divided are resources of their own, named by what
// NVIDIA calls their profile: mig-1g.5gb.
const (
	gpus      = "gpus"
	migPrefix = "mig-"
)

// Device is what can be given to one container: a whole GPU, or a MIG device of one.
type Device struct {
	UUID   string // GPU-... or MIG-...
	Name   string // as the driver calls the product
	Index  int    // of the GPU, as nvidia-smi counts
	Minor  int    // of the GPU's node, /dev/nvidiaN
	Parent string // UUID of the GPU that it is a part of; "" for a whole one
	// Of a MIG device only.
	Profile                       string // 1g.5gb
	GPUInstance, ComputeInstance  int
	MIGIndex                      int // among those of its GPU
	MultiprocessorCount, MemoryMB int // 0 if not known
}

// Resource is the name of the resource that the device is one unit of.
func (d Device) Resource() string {
	if d.Parent == "" {
		return gpus
	}
	return migPrefix + d.Profile
}

// names are those by which an operator or a task may call the device, the UUID first.
func (d Device) names() []string {
	index := strconv.Itoa(d.Index)
	if d.Parent != "" {
		index += ":" + strconv.Itoa(d.MIGIndex)
	}
	return []string{d.UUID, index}
}

// is says whether a name means this device; the name of a whole GPU means all its parts, too.
func (d Device) is(name string) bool {
	return slices.Contains(d.names(), name) || d.Parent != "" && (d.Parent == name || strconv.Itoa(d.Index) == name)
}

// profileOf takes the profile out of the name of a MIG device: "NVIDIA A100-SXM4-40GB MIG 1g.5gb".
func profileOf(name string) string {
	if _, after, ok := strings.Cut(name, "MIG "); ok {
		name = after
	}
	return strings.Map(func(r rune) rune { // what the text form of resources gives a meaning to, or has no place in a name
		if strings.ContainsRune(":;()[]{},/ ", r) {
			return '_'
		}
		return r
	}, strings.TrimSpace(name))
}

// Resources sums this machine's devices up in the text form of an agent's resources, such as "gpus:2;mig-1g.5gb:7". The
// library is found as the module finds it that is not configured otherwise.
func Resources(open func(path string) Library) (string, error) {
	_, list, err := find(DefaultLibrary, "/", open)
	if err != nil {
		return "", err
	}
	var text []string
	for _, r := range resourcesOf(list) {
		text = append(text, fmt.Sprintf("%s:%v", r.GetName(), r.GetScalar().GetValue()))
	}
	return strings.Join(text, ";"), nil
}

// resourcesOf sums devices up by the resource that each is one unit of; whole GPUs are always among them.
func resourcesOf(list []Device) []*mesosv1.Resource {
	n := map[string]float64{gpus: 0}
	for _, d := range list {
		n[d.Resource()]++
	}
	var sums []*mesosv1.Resource
	for _, name := range slices.Sorted(maps.Keys(n)) {
		sums = append(sums, &mesosv1.Resource{Name: new(name), Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: new(n[name])}})
	}
	return sums
}

// most is how many devices of one kind a container may ask for; no machine has as many.
const most = 1024

// requested says how many devices of each resource a container asks for.
func requested(list []*mesosv1.Resource) (map[string]int, error) {
	sums := map[string]float64{}
	for _, r := range list {
		name := r.GetName()
		if name != gpus && !strings.HasPrefix(name, migPrefix) {
			continue
		}
		if r.GetType() != mesosv1.Value_SCALAR {
			return nil, module.InvalidArgument("%.80s: got %s, want a number", name, r.GetType())
		}
		sums[name] += r.GetScalar().GetValue()
	}
	want := map[string]int{}
	for name, v := range sums {
		if v != math.Trunc(v) || v < 0 || v > most || math.IsNaN(v) {
			return nil, module.InvalidArgument("%.80s: got %v, want a whole number of at most %d", name, v, most)
		}
		if v > 0 {
			want[name] = int(v)
		}
	}
	return want, nil
}
