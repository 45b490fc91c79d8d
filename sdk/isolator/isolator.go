// Package isolator says what an isolator's answers must look like. The agent refuses a launch for an answer that does
// not; here an author finds out before.
//
// It promises no more than the contract's words (sdk/proto/mosaic/isolator/v1). Whether a proposal makes sense on the
// machine is between module and kernel. The conformance kit is sdk/isolator/isolatortest.
package isolator

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// MaxState is how much a module may have kept of one container, in bytes.
const MaxState = 64 << 10

// maxItems and maxText bound lists and texts of a proposal as the agent does: a kernel refuses most of it far below.
const (
	maxItems = 4096
	maxText  = 128 << 10
)

// CheckPrepare says what is wrong with an answer of Prepare, each problem one line; nil if nothing is.
func CheckPrepare(d *modulev1.DescribeResponse, r *isolatorv1.PrepareResponse) []string {
	wrong := checkPowers(d, UsedPowers(r.GetProposal(), len(r.GetHelpers()) > 0))
	wrong = append(wrong, checkProposal(r.GetProposal())...)
	wrong = append(wrong, checkState(d, r.GetState(), r.GetStateVersion())...)
	names := map[string]bool{}
	for i, h := range r.GetHelpers() {
		if h.GetName() == "" || names[h.GetName()] {
			wrong = append(wrong, fmt.Sprintf("helpers[%d]: got the name %q, want one that is not taken", i, h.GetName()))
		}
		names[h.GetName()] = true
		if len(h.GetArgv()) == 0 {
			wrong = append(wrong, fmt.Sprintf("helpers[%d]: got no argv", i))
		}
	}
	return wrong
}

// CheckUpdate does for Update what CheckPrepare does for Prepare.
func CheckUpdate(d *modulev1.DescribeResponse, r *isolatorv1.UpdateResponse) []string {
	wrong := checkPowers(d, UsedPowers(r.GetProposal(), false))
	wrong = append(wrong, checkProposal(r.GetProposal())...)
	return append(wrong, checkState(d, r.GetState(), r.GetStateVersion())...)
}

// UsedPowers names the powers that a proposal needs.
func UsedPowers(p *containerv1.Proposal, helpers bool) []string {
	var used []string
	if helpers {
		used = append(used, "helpers")
	}
	if p != nil {
		p.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
			switch name := string(f.Name()); name {
			case "readonly_paths":
				used = append(used, "masked_paths")
			case "oom_score_adj":
				used = append(used, "oom_score")
			default:
				used = append(used, name)
			}
			return true
		})
	}
	slices.Sort(used)
	return slices.Compact(used)
}

func checkPowers(d *modulev1.DescribeResponse, used []string) []string {
	var wrong []string
	for _, p := range used {
		if !slices.Contains(d.GetPowers(), p) {
			wrong = append(wrong, fmt.Sprintf("it sets %s, a power that Describe does not declare", p))
		}
	}
	return wrong
}

func checkState(d *modulev1.DescribeResponse, state []byte, version uint32) []string {
	var wrong []string
	if len(state) > MaxState {
		wrong = append(wrong, fmt.Sprintf("state has %d bytes, want at most %d", len(state), MaxState))
	}
	if len(state) > 0 && (version < d.GetMinStateVersion() || version > d.GetMaxStateVersion()) {
		wrong = append(wrong, fmt.Sprintf("state_version is %d, want %d to %d as declared", version, d.GetMinStateVersion(), d.GetMaxStateVersion()))
	}
	return wrong
}

func checkProposal(p *containerv1.Proposal) []string {
	if p == nil {
		return nil
	}
	var wrong []string
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	absolute := func(what, p string) {
		if !path.IsAbs(p) {
			say("%s is %q, want an absolute path", what, p)
		}
	}
	checkBounds(p.ProtoReflect(), "", say)
	for key := range p.GetEnvironment() {
		if key == "" || strings.Contains(key, "=") {
			say("environment: %q is no name of a variable", key)
		}
	}
	seen := map[string]bool{}
	once := func(what, key string) {
		if seen[what+key] {
			say("%s: %s is there twice", what, key)
		}
		seen[what+key] = true
	}
	for i, m := range p.GetMounts() {
		absolute(fmt.Sprintf("mounts[%d].destination", i), m.GetDestination())
		once("mounts", path.Clean(m.GetDestination()))
		if m.GetType() == "" {
			say("mounts[%d].type is empty", i)
		}
		if m.GetType() == "bind" || slices.Contains(m.GetOptions(), "bind") || slices.Contains(m.GetOptions(), "rbind") {
			absolute(fmt.Sprintf("mounts[%d].source", i), m.GetSource())
		}
	}
	for i, n := range p.GetNamespaces() {
		if n.GetType() == containerv1.Namespace_TYPE_UNSPECIFIED {
			say("namespaces[%d].type is not set", i)
		}
		once("namespaces", n.GetType().String())
		if n.GetPath() != "" {
			absolute(fmt.Sprintf("namespaces[%d].path", i), n.GetPath())
		}
	}
	for i, d := range p.GetDevices() {
		absolute(fmt.Sprintf("devices[%d].path", i), d.GetPath())
		once("devices", path.Clean(d.GetPath()))
		if !slices.Contains([]string{"b", "c", "p"}, d.GetType()) || strings.Trim(d.GetAccess(), "rwm") != "" {
			say("devices[%d]: type %q, access %q", i, d.GetType(), d.GetAccess())
		}
	}
	for _, r := range p.GetRlimits() {
		once("rlimits", r.GetType())
		if !strings.HasPrefix(r.GetType(), "RLIMIT_") || r.GetSoft() > r.GetHard() {
			say("rlimits: %q with soft %d and hard %d, want RLIMIT_..., soft at most hard", r.GetType(), r.GetSoft(), r.GetHard())
		}
	}
	for _, m := range p.GetMaskedPaths() {
		absolute("masked_paths", m)
	}
	for _, m := range p.GetReadonlyPaths() {
		absolute("readonly_paths", m)
	}
	if p.GetWorkingDirectory() != "" {
		absolute("working_directory", p.GetWorkingDirectory())
	}
	if s := p.OomScoreAdj; s != nil && (*s < -1000 || *s > 1000) {
		say("oom_score_adj is %d, want -1000 to 1000", *s)
	}
	checkCgroup(p.GetCgroup(), say)
	return wrong
}

func checkCgroup(c *containerv1.CgroupResources, say func(string, ...any)) {
	if c == nil {
		return
	}
	// The kernel's own bounds.
	if c.CpuShares != nil && (*c.CpuShares < 2 || *c.CpuShares > 1<<18) {
		say("cgroup.cpu_shares is %d, want 2 to %d", *c.CpuShares, 1<<18)
	}
	if c.CpuPeriodUs != nil && (*c.CpuPeriodUs < 1000 || *c.CpuPeriodUs > 1_000_000) {
		say("cgroup.cpu_period_us is %d, want 1000 to 1000000", *c.CpuPeriodUs)
	}
	for name, l := range map[string]struct {
		v   *int64
		low int64
	}{
		"cpu_quota_us": {c.CpuQuotaUs, 1000}, "memory_limit_bytes": {c.MemoryLimitBytes, 0},
		"memory_reservation_bytes": {c.MemoryReservationBytes, 0}, "memory_swap_bytes": {c.MemorySwapBytes, 0}, "pids_limit": {c.PidsLimit, 1},
	} {
		if l.v != nil && *l.v != -1 && (*l.v < l.low || *l.v > 1<<60) {
			say("cgroup.%s is %d, want -1 or %d to %d", name, *l.v, l.low, 1<<60)
		}
	}
}

// checkBounds walks a message for lists and texts that nothing real has.
func checkBounds(m protoreflect.Message, at string, say func(string, ...any)) {
	text := func(name, s string) {
		if len(s) > maxText || strings.ContainsRune(s, 0) {
			say("%s: a text of %d bytes, want at most %d without NUL", name, len(s), maxText)
		}
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := at + string(f.Name())
		switch {
		case f.IsMap():
			if v.Map().Len() > maxItems {
				say("%s has %d entries, want at most %d", name, v.Map().Len(), maxItems)
			}
			v.Map().Range(func(k protoreflect.MapKey, item protoreflect.Value) bool {
				text(name, k.String())
				if f.MapValue().Kind() == protoreflect.StringKind {
					text(name, item.String())
				}
				return true
			})
		case f.IsList():
			if v.List().Len() > maxItems {
				say("%s has %d items, want at most %d", name, v.List().Len(), maxItems)
			}
			for i := range v.List().Len() {
				if f.Message() != nil {
					checkBounds(v.List().Get(i).Message(), name+".", say)
				} else if f.Kind() == protoreflect.StringKind {
					text(name, v.List().Get(i).String())
				}
			}
		case f.Message() != nil:
			checkBounds(v.Message(), name+".", say)
		case f.Kind() == protoreflect.StringKind:
			text(name, v.String())
		}
		return true
	})
}
