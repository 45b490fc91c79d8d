package containerizer

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// answer is what one isolator proposed.
type answer struct {
	module   string
	proposal *containerv1.Proposal
	where    string // its place in the composition, "" if that is not known
	helpers  []*containerv1.Helper
}

// merge joins proposals in the order given and says who set what.
//
// Lists that only ever add (mounts, device rules, masked and read-only paths) are joined; everything else has one
// owner, and two modules that set the same thing are an error that names both, also when they agree: one of them
// would believe it is in charge and be wrong after the other's next release. Masking the same path twice is the
// exception, since it is the same wish.
//
// Owners are keyed by field: "cgroup.cpu_shares", "cgroup.files.cpu.weight", "environment.PATH", "namespaces.PID",
// "mounts./data", "devices./dev/fuse", "rlimits.RLIMIT_NOFILE", "sysctls.net.core.somaxconn", "masked_paths./proc/kcore".
func merge(answers []answer) (*containerv1.Spec, error) {
	m := merger{spec: &containerv1.Spec{Merged: &containerv1.Proposal{}, Owners: map[string]string{}}, where: map[string]string{}}
	for _, a := range answers {
		m.where[a.module] = a.where
	}
	for _, a := range answers {
		if err := m.add(a); err != nil {
			return nil, err
		}
	}
	return m.spec, nil
}

type merger struct {
	spec  *containerv1.Spec
	where map[string]string // places in the composition by module, as far as they are known
}

// name is a module as errors name it: with the place where the operator can change it.
func (m *merger) name(module string) string {
	if module == dockerOwner {
		return "the container's own settings (" + dockerOwner + ")"
	}
	if where := m.where[module]; where != "" {
		return "isolator(" + module + ") (" + where + ")"
	}
	return "isolator(" + module + ")"
}

// conflict says that two modules want the same thing, and what the operator can do about it.
func conflict(first, second, field string) error {
	return fmt.Errorf("%s and %s both set %s: drop one of them, or withhold the power with `allow`", first, second, field)
}

// own notes that module sets field, or says who has it already.
func (m *merger) own(module, field string) error {
	if first, taken := m.spec.Owners[field]; taken {
		if first == module {
			return fmt.Errorf("%s set %s twice", m.name(module), field)
		}
		return conflict(m.name(first), m.name(module), field)
	}
	m.spec.Owners[field] = module
	return nil
}

func (m *merger) add(a answer) error {
	p, to := a.proposal, m.spec.Merged
	if p == nil {
		return nil
	}
	var err error
	// claim runs own until the first conflict; keys of maps come sorted so that the same conflict is named each time.
	claim := func(field string) bool {
		if err == nil {
			err = m.own(a.module, field)
		}
		return err == nil
	}

	for _, k := range slices.Sorted(maps.Keys(p.GetEnvironment())) {
		if claim("environment." + k) {
			to.Environment = set(to.Environment, k, p.Environment[k])
		}
	}
	for _, v := range p.GetMounts() {
		if claim("mounts." + v.GetDestination()) {
			to.Mounts = append(to.Mounts, v)
		}
	}
	for _, v := range p.GetNamespaces() {
		if claim("namespaces." + v.GetType().String()) {
			to.Namespaces = append(to.Namespaces, v)
		}
	}
	for _, v := range p.GetDevices() {
		if claim("devices." + v.GetPath()) {
			to.Devices = append(to.Devices, v)
		}
	}
	for _, v := range p.GetRlimits() {
		if claim("rlimits." + v.GetType()) {
			to.Rlimits = append(to.Rlimits, v)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(p.GetSysctls())) {
		if claim("sysctls." + k) {
			to.Sysctls = set(to.Sysctls, k, p.Sysctls[k])
		}
	}
	to.MaskedPaths = m.union(a.module, "masked_paths.", to.MaskedPaths, p.GetMaskedPaths())
	to.ReadonlyPaths = m.union(a.module, "readonly_paths.", to.ReadonlyPaths, p.GetReadonlyPaths())

	if p.Cgroup != nil && err == nil {
		if to.Cgroup == nil {
			to.Cgroup = &containerv1.CgroupResources{}
		}
		err = m.addCgroup(a.module, to.Cgroup, p.Cgroup)
	}
	if p.Capabilities != nil && claim("capabilities") {
		to.Capabilities = p.Capabilities
	}
	if p.Seccomp != nil && claim("seccomp") {
		to.Seccomp = p.Seccomp
	}
	if len(p.GetArguments()) > 0 && claim("arguments") {
		to.Arguments = p.Arguments
	}
	if p.GetWorkingDirectory() != "" && claim("working_directory") {
		to.WorkingDirectory = p.WorkingDirectory
	}
	if p.NoNewPrivileges != nil && claim("no_new_privileges") {
		to.NoNewPrivileges = p.NoNewPrivileges
	}
	if p.OomScoreAdj != nil && claim("oom_score_adj") {
		to.OomScoreAdj = p.OomScoreAdj
	}
	if p.GetHostname() != "" && claim("hostname") {
		to.Hostname = p.Hostname
	}
	if p.WindowsJob != nil && claim("windows_job") {
		to.WindowsJob = p.WindowsJob
	}
	return err
}

// addCgroup joins from into to. It walks the message's fields, so that a field added to the contract later cannot be
// forgotten here: scalars have one owner each, files one per name, device rules add up in order.
func (m *merger) addCgroup(module string, to, from *containerv1.CgroupResources) error {
	src, dst := from.ProtoReflect(), to.ProtoReflect()
	fields := src.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if !src.Has(f) {
			continue
		}
		name := "cgroup." + string(f.Name())
		switch {
		case f.IsMap():
			for _, k := range slices.Sorted(maps.Keys(from.GetFiles())) {
				if err := m.own(module, name+"."+k); err != nil {
					return err
				}
			}
			src.Get(f).Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				dst.Mutable(f).Map().Set(k, v)
				return true
			})
		case f.IsList():
			list := dst.Mutable(f).List()
			for j := range src.Get(f).List().Len() {
				list.Append(src.Get(f).List().Get(j))
			}
			if _, taken := m.spec.Owners[name]; !taken {
				m.spec.Owners[name] = module
			}
		default:
			if err := m.own(module, name); err != nil {
				return err
			}
			dst.Set(f, src.Get(f))
		}
	}
	return nil
}

func (m *merger) union(module, prefix string, have, more []string) []string {
	for _, path := range more {
		if _, taken := m.spec.Owners[prefix+path]; !taken {
			m.spec.Owners[prefix+path] = module
			have = append(have, path)
		}
	}
	return have
}

// overlay puts the cgroup settings of update over those of spec and returns the result; spec is left as it is.
// A module may change what it owns and add what nobody owns, else the error names both.
func overlay(spec, update *containerv1.Spec) (*containerv1.Spec, error) {
	out := proto.CloneOf(spec)
	if out == nil {
		out = &containerv1.Spec{}
	}
	if out.Merged == nil {
		out.Merged = &containerv1.Proposal{}
	}
	if out.Owners == nil {
		out.Owners = map[string]string{}
	}
	for _, field := range slices.Sorted(maps.Keys(update.GetOwners())) {
		module := update.Owners[field]
		if !strings.HasPrefix(field, "cgroup.") {
			return nil, fmt.Errorf("isolator(%s) set %s of a running container, want only cgroup", module, field)
		}
		if first, taken := out.Owners[field]; taken && first != module {
			return nil, conflict("isolator("+first+")", "isolator("+module+")", field)
		}
		out.Owners[field] = module
	}
	if c := update.GetMerged().GetCgroup(); c != nil {
		if out.Merged.Cgroup == nil {
			out.Merged.Cgroup = &containerv1.CgroupResources{}
		}
		if len(c.GetDeviceRules()) > 0 {
			out.Merged.Cgroup.DeviceRules = nil // replaced, not added to: an update sent twice must not grow them
		}
		proto.Merge(out.Merged.Cgroup, c)
	}
	return out, nil
}

func set(m map[string]string, k, v string) map[string]string {
	if m == nil {
		m = map[string]string{}
	}
	m[k] = v
	return m
}
