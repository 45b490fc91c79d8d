package modulehost

import (
	"errors"
	"fmt"
	"math"
	"path"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

const (
	// maxState is what a module may have kept of one container, by its contract.
	maxState = 64 << 10
	// maxItems bounds each list and map of a proposal: a kernel refuses most of them far below.
	maxItems = 4096
	// maxText bounds each string of a proposal; an argument of exec cannot be longer.
	maxText = 128 << 10
	// maxMemory is above any machine, and keeps sums of limits away from overflow.
	maxMemory = 1 << 60
)

// powers names every power, in the order of the contract.
func powers() []string {
	return []string{
		"arguments", "capabilities", "cgroup", "devices", "environment", "helpers", "hostname", "masked_paths", "mounts",
		"namespaces", "no_new_privileges", "oom_score", "rlimits", "seccomp", "sysctls", "windows_job", "working_directory",
	}
}

// checkDescription refuses a description that the rest of the host could not rely on.
func checkDescription(d *modulev1.DescribeResponse) error {
	for _, power := range d.GetPowers() {
		if !slices.Contains(powers(), power) {
			return fmt.Errorf("declares the unknown power %q", cutText(power, 64))
		}
	}
	if len(d.GetAfter()) > maxItems || len(d.GetCalls()) > maxItems {
		return errors.New("declares too much")
	}
	if d.GetMinStateVersion() > d.GetMaxStateVersion() {
		return fmt.Errorf("min_state_version %d is above max_state_version %d", d.GetMinStateVersion(), d.GetMaxStateVersion())
	}
	return checkSchema(d.GetSchema(), 0)
}

func checkPrepare(l *life, r *isolatorv1.PrepareResponse) error {
	used := usedPowers(r.GetProposal())
	if len(r.GetHelpers()) > 0 {
		used = append(used, "helpers")
	}
	return errors.Join(
		checkPowers(l, used),
		checkProposal(r.GetProposal()),
		checkHelpers(r.GetHelpers()),
		checkState(l, r.GetState(), r.GetStateVersion()),
	)
}

func checkUpdate(l *life, r *isolatorv1.UpdateResponse) error {
	return errors.Join(
		checkPowers(l, usedPowers(r.GetProposal())),
		checkProposal(r.GetProposal()),
		checkState(l, r.GetState(), r.GetStateVersion()),
	)
}

// checkPowers refuses what the module did not declare, and what the operator did not grant.
func checkPowers(l *life, used []string) error {
	for _, power := range used {
		if !slices.Contains(l.desc.GetPowers(), power) {
			return fmt.Errorf("sets %s, a power that it did not declare", power)
		}
		if !slices.Contains(l.granted, power) {
			return fmt.Errorf("sets %s, a power that `allow` does not grant", power)
		}
	}
	return nil
}

// usedPowers names the powers that a proposal uses.
func usedPowers(p *containerv1.Proposal) []string {
	if p == nil {
		return nil
	}
	var used []string
	p.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		used = append(used, powerOf(string(f.Name())))
		return true
	})
	slices.Sort(used)
	return slices.Compact(used)
}

// powerOf gives the power that a field of Proposal belongs to. They have the same name but for two.
func powerOf(field string) string {
	switch field {
	case "readonly_paths":
		return "masked_paths"
	case "oom_score_adj":
		return "oom_score"
	default:
		return field
	}
}

func checkState(l *life, state []byte, version uint32) error {
	switch {
	case len(state) > maxState:
		return fmt.Errorf("state has %d bytes, want at most %d", len(state), maxState)
	case len(state) > 0 && (version < l.desc.GetMinStateVersion() || version > l.desc.GetMaxStateVersion()):
		return fmt.Errorf("state_version %d, want one that it declared: %d to %d",
			version, l.desc.GetMinStateVersion(), l.desc.GetMaxStateVersion())
	}
	return nil
}

func checkProposal(p *containerv1.Proposal) error {
	if p == nil {
		return nil
	}
	if err := checkBounds(p.ProtoReflect(), ""); err != nil {
		return err
	}
	return errors.Join(
		checkEnvironment(p.GetEnvironment()),
		checkMounts(p.GetMounts()),
		checkNamespaces(p.GetNamespaces()),
		checkCgroup(p.GetCgroup()),
		checkDevices(p.GetDevices()),
		checkRlimits(p.GetRlimits()),
		checkPaths("masked_paths", p.GetMaskedPaths()),
		checkPaths("readonly_paths", p.GetReadonlyPaths()),
		checkOptionalPath("working_directory", p.GetWorkingDirectory()),
		checkScore(p.OomScoreAdj),
	)
}

// checkBounds walks a message and refuses lists, strings and numbers that nothing real has: too many, too long, a NUL
// byte, NaN, an infinity, or a negative count.
func checkBounds(m protoreflect.Message, at string) error {
	var err error
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := at + string(f.Name())
		switch {
		case f.IsMap():
			if v.Map().Len() > maxItems {
				err = fmt.Errorf("%s has %d entries, want at most %d", name, v.Map().Len(), maxItems)
				break
			}
			v.Map().Range(func(key protoreflect.MapKey, value protoreflect.Value) bool {
				err = errors.Join(checkScalar(name, f.MapKey().Kind(), key.Value()), checkValue(name, f.MapValue(), value))
				return err == nil
			})
		case f.IsList():
			if v.List().Len() > maxItems {
				err = fmt.Errorf("%s has %d items, want at most %d", name, v.List().Len(), maxItems)
				break
			}
			for i := range v.List().Len() {
				if err = checkValue(fmt.Sprintf("%s[%d]", name, i), f, v.List().Get(i)); err != nil {
					break
				}
			}
		default:
			err = checkValue(name, f, v)
		}
		return err == nil
	})
	return err
}

func checkValue(name string, f protoreflect.FieldDescriptor, v protoreflect.Value) error {
	if f.Message() != nil {
		return checkBounds(v.Message(), name+".")
	}
	return checkScalar(name, f.Kind(), v)
}

func checkScalar(name string, kind protoreflect.Kind, v protoreflect.Value) error {
	switch kind {
	case protoreflect.StringKind:
		if len(v.String()) > maxText {
			return fmt.Errorf("%s has %d bytes, want at most %d", name, len(v.String()), maxText)
		}
		if strings.ContainsRune(v.String(), 0) {
			return fmt.Errorf("%s contains a NUL byte", name)
		}
	case protoreflect.BytesKind:
		if len(v.Bytes()) > 1<<20 {
			return fmt.Errorf("%s has %d bytes, want at most %d", name, len(v.Bytes()), 1<<20)
		}
	case protoreflect.DoubleKind, protoreflect.FloatKind:
		if f := v.Float(); math.IsNaN(f) || math.IsInf(f, 0) {
			return fmt.Errorf("%s is %v, want a number", name, f)
		}
	}
	return nil
}

func checkEnvironment(env map[string]string) error {
	for key := range env {
		if key == "" || strings.ContainsAny(key, "=") {
			return fmt.Errorf("environment: %q is no name of a variable", cutText(key, 64))
		}
	}
	return nil
}

func checkMounts(mounts []*containerv1.Mount) error {
	seen := make(map[string]bool)
	for i, m := range mounts {
		if err := checkPath(fmt.Sprintf("mounts[%d].destination", i), m.GetDestination()); err != nil {
			return err
		}
		if seen[path.Clean(m.GetDestination())] {
			return fmt.Errorf("mounts: %s twice", m.GetDestination())
		}
		seen[path.Clean(m.GetDestination())] = true
		if m.GetType() == "" {
			return fmt.Errorf("mounts[%d].type is empty", i)
		}
		if m.GetType() == "bind" || slices.Contains(m.GetOptions(), "bind") || slices.Contains(m.GetOptions(), "rbind") {
			if err := checkPath(fmt.Sprintf("mounts[%d].source", i), m.GetSource()); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkNamespaces(namespaces []*containerv1.Namespace) error {
	seen := make(map[containerv1.Namespace_Type]bool)
	for i, n := range namespaces {
		if _, known := containerv1.Namespace_Type_name[int32(n.GetType())]; !known || n.GetType() == containerv1.Namespace_TYPE_UNSPECIFIED {
			return fmt.Errorf("namespaces[%d].type is %d, want a known one", i, n.GetType())
		}
		if seen[n.GetType()] {
			return fmt.Errorf("namespaces: %s twice", n.GetType())
		}
		seen[n.GetType()] = true
		if err := checkOptionalPath(fmt.Sprintf("namespaces[%d].path", i), n.GetPath()); err != nil {
			return err
		}
	}
	return nil
}

// cgroupFile is the form of a file name that an isolator may have written: controller/file on version 1, file on 2.
var cgroupFile = regexp.MustCompile(`^([a-z_]+/)?[a-z0-9_]+(\.[a-zA-Z0-9_]+)+$`)

func checkCgroup(c *containerv1.CgroupResources) error {
	if c == nil {
		return nil
	}
	limited := func(name string, v *int64, lowest int64) error {
		if v != nil && *v != -1 && (*v < lowest || *v > maxMemory) {
			return fmt.Errorf("cgroup.%s is %d, want -1 or %d to %d", name, *v, lowest, int64(maxMemory))
		}
		return nil
	}
	var errs []error
	// The kernel's own bounds: 2 to 2^18 shares, a period of 1 ms to 1 s, a quota of at least 1 ms.
	if c.CpuShares != nil && (*c.CpuShares < 2 || *c.CpuShares > 1<<18) {
		errs = append(errs, fmt.Errorf("cgroup.cpu_shares is %d, want 2 to %d", *c.CpuShares, 1<<18))
	}
	if c.CpuPeriodUs != nil && (*c.CpuPeriodUs < 1000 || *c.CpuPeriodUs > 1_000_000) {
		errs = append(errs, fmt.Errorf("cgroup.cpu_period_us is %d, want 1000 to 1000000", *c.CpuPeriodUs))
	}
	errs = append(errs,
		limited("cpu_quota_us", c.CpuQuotaUs, 1000),
		limited("memory_limit_bytes", c.MemoryLimitBytes, 0),
		limited("memory_reservation_bytes", c.MemoryReservationBytes, 0),
		limited("memory_swap_bytes", c.MemorySwapBytes, 0),
		limited("pids_limit", c.PidsLimit, 1),
	)
	for name := range c.GetFiles() {
		if !cgroupFile.MatchString(name) || strings.HasPrefix(path.Base(name), "cgroup.") {
			errs = append(errs, fmt.Errorf("cgroup.files: %q is no file of a controller", cutText(name, 64)))
		}
	}
	for i, rule := range c.GetDeviceRules() {
		if !slices.Contains([]string{"a", "b", "c"}, rule.GetType()) || strings.Trim(rule.GetAccess(), "rwm") != "" {
			errs = append(errs, fmt.Errorf("cgroup.device_rules[%d]: type %q, access %q", i, rule.GetType(), rule.GetAccess()))
		}
	}
	return errors.Join(errs...)
}

func checkDevices(devices []*containerv1.Device) error {
	seen := make(map[string]bool)
	for i, d := range devices {
		if err := checkPath(fmt.Sprintf("devices[%d].path", i), d.GetPath()); err != nil {
			return err
		}
		if !slices.Contains([]string{"b", "c", "p"}, d.GetType()) || strings.Trim(d.GetAccess(), "rwm") != "" || d.GetMajor() < 0 || d.GetMinor() < 0 {
			return fmt.Errorf("devices[%d] %s: type %q, number %d:%d, access %q", i, d.GetPath(), d.GetType(), d.GetMajor(), d.GetMinor(), d.GetAccess())
		}
		if seen[path.Clean(d.GetPath())] {
			return fmt.Errorf("devices: %s twice", d.GetPath())
		}
		seen[path.Clean(d.GetPath())] = true
	}
	return nil
}

func checkRlimits(limits []*containerv1.Rlimit) error {
	seen := make(map[string]bool)
	for _, r := range limits {
		if !strings.HasPrefix(r.GetType(), "RLIMIT_") {
			return fmt.Errorf("rlimits: %q, want a name such as RLIMIT_NOFILE", cutText(r.GetType(), 64))
		}
		if seen[r.GetType()] {
			return fmt.Errorf("rlimits: %s twice", r.GetType())
		}
		seen[r.GetType()] = true
		if r.GetSoft() > r.GetHard() {
			return fmt.Errorf("rlimits: %s: soft %d above hard %d", r.GetType(), r.GetSoft(), r.GetHard())
		}
	}
	return nil
}

func checkHelpers(helpers []*containerv1.Helper) error {
	seen := make(map[string]bool)
	for i, h := range helpers {
		if h.GetName() == "" || seen[h.GetName()] {
			return fmt.Errorf("helpers[%d]: name %q, want one that is not taken", i, cutText(h.GetName(), 64))
		}
		seen[h.GetName()] = true
		if len(h.GetArgv()) == 0 || len(h.GetArgv()) > maxItems {
			return fmt.Errorf("helpers[%d] %s has %d arguments", i, h.GetName(), len(h.GetArgv()))
		}
		if err := checkBounds(h.ProtoReflect(), fmt.Sprintf("helpers[%d].", i)); err != nil {
			return err
		}
	}
	if len(helpers) > 64 {
		return fmt.Errorf("%d helpers, want at most 64", len(helpers))
	}
	return nil
}

func checkPaths(name string, paths []string) error {
	for i, p := range paths {
		if err := checkPath(fmt.Sprintf("%s[%d]", name, i), p); err != nil {
			return err
		}
	}
	return nil
}

func checkOptionalPath(name, p string) error {
	if p == "" {
		return nil
	}
	return checkPath(name, p)
}

func checkPath(name, p string) error {
	if !path.IsAbs(p) {
		return fmt.Errorf("%s is %q, want an absolute path", name, cutText(p, 256))
	}
	return nil
}

func checkScore(score *int32) error {
	if score != nil && (*score < -1000 || *score > 1000) {
		return fmt.Errorf("oom_score_adj is %d, want -1000 to 1000", *score)
	}
	return nil
}

// checkUsage puts an error in the place of each result that is not valid, so that one does not take the others along.
// Results for containers that were not asked for are an error of the call.
func checkUsage(asked []*isolatorv1.ContainerRecord, r *isolatorv1.UsageResponse) error {
	known := ids(asked)
	for id, result := range r.GetResults() {
		if !known[id] {
			return fmt.Errorf("result for container %q, which was not asked for", cutText(id, 256))
		}
		if err := checkNumbers(result.GetStatistics()); err != nil {
			r.Results[id] = &isolatorv1.UsageResult{Error: "answer is not valid: " + err.Error()}
		}
	}
	return nil
}

// checkStatus does for Status what checkUsage does for Usage.
func checkStatus(asked []*isolatorv1.ContainerRecord, r *isolatorv1.StatusResponse) error {
	known := ids(asked)
	for id, result := range r.GetResults() {
		if !known[id] {
			return fmt.Errorf("result for container %q, which was not asked for", cutText(id, 256))
		}
		err := checkNumbers(result.GetStatus())
		if l := result.GetLimitation(); l != nil && err == nil {
			err = checkLimitation(l)
			if l.GetContainerId() != id {
				err = errors.Join(err, fmt.Errorf("limitation is of container %q", cutText(l.GetContainerId(), 256)))
			}
		}
		if err != nil {
			r.Results[id] = &isolatorv1.StatusResult{Error: "answer is not valid: " + err.Error()}
		}
	}
	return nil
}

func ids(records []*isolatorv1.ContainerRecord) map[string]bool {
	out := make(map[string]bool, len(records))
	for _, r := range records {
		out[r.GetContainer().GetId()] = true
	}
	return out
}

func checkLimitation(l *modulev1.Limitation) error {
	if l.GetContainerId() == "" || len(l.GetContainerId()) > maxText {
		return errors.New("limitation without a container")
	}
	if _, ok := mesosv1.TaskStatus_Reason_value[l.GetReason()]; !ok {
		return fmt.Errorf("limitation has the unknown reason %q", cutText(l.GetReason(), 64))
	}
	if len(l.GetResources()) > maxItems {
		return fmt.Errorf("limitation has %d resources", len(l.GetResources()))
	}
	for _, r := range l.GetResources() {
		if err := checkNumbers(r); err != nil {
			return err
		}
	}
	l.Message = cutText(l.GetMessage(), maxErrorText)
	return nil
}

// checkNumbers refuses numbers in what a module measured that no measurement gives.
func checkNumbers(m proto.Message) error {
	if m == nil || !m.ProtoReflect().IsValid() {
		return nil
	}
	if err := checkBounds(m.ProtoReflect(), ""); err != nil {
		return err
	}
	return checkSigns(m.ProtoReflect(), "")
}

// unlimitedConnections is the one measured number that may be -1, and is on Linux: no fixed limit.
//
// Source: RFC 4022, tcpMaxConn.
const unlimitedConnections = "mesos.v1.TcpStatistics.MaxConn"

func checkSigns(m protoreflect.Message, at string) error {
	var err error
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := at + string(f.Name())
		negative := func(v protoreflect.Value) error {
			switch f.Kind() {
			case protoreflect.MessageKind:
				return checkSigns(v.Message(), name+".")
			case protoreflect.DoubleKind, protoreflect.FloatKind:
				if v.Float() < 0 {
					return fmt.Errorf("%s is %v, want no negative number", name, v.Float())
				}
			case protoreflect.Int32Kind, protoreflect.Int64Kind:
				if v.Int() < 0 && (f.FullName() != unlimitedConnections || v.Int() != -1) {
					return fmt.Errorf("%s is %d, want no negative number", name, v.Int())
				}
			}
			return nil
		}
		switch {
		case f.IsMap():
		case f.IsList():
			for i := range v.List().Len() {
				if err = negative(v.List().Get(i)); err != nil {
					break
				}
			}
		default:
			err = negative(v)
		}
		return err == nil
	})
	return err
}
