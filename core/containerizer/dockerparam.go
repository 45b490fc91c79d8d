package containerizer

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// parameter takes one option of `docker run` by its long name. The error says why it cannot be given.
func (d *dockering) parameter(key, value string) error {
	switch key {
	case "env":
		return d.variable(value)
	case "label":
		name, text, _ := strings.Cut(value, "=")
		if name == "" {
			return errors.New("want NAME=VALUE")
		}
		labels := map[string]string{}
		for k, v := range d.spec.GetLabels() {
			labels[k] = v
		}
		labels[name] = text
		d.spec.Labels = labels
		return nil
	case "user":
		if value == "" {
			return errors.New("want a user, or USER:GROUP")
		}
		d.spec.User, d.wish.user = value, true
		return nil
	case "workdir":
		if !path.IsAbs(value) {
			return errors.New("want an absolute path")
		}
		d.wish.base.WorkingDirectory = path.Clean(value)
		return nil
	case "entrypoint":
		d.wish.entrypoint = &value
		return nil
	case "hostname":
		if have := d.info.GetHostname(); have != "" && have != value {
			return fmt.Errorf("the container's hostname is %q already", have)
		}
		if value == "" || d.wish.shared[containerv1.Namespace_UTS] {
			return errors.New("want a name, and no parameter uts=host")
		}
		d.info.Hostname = &value
		return nil
	case "volume":
		return d.volume(value)
	case "volume-driver":
		if d.driver != "" && d.driver != value {
			return fmt.Errorf("the driver is %q already, want one for all", d.driver)
		}
		d.driver = value
		return nil
	case "tmpfs":
		return d.tmpfs(value)
	case "cap-add":
		d.add = append(d.add, value)
		return nil
	case "cap-drop":
		d.drop = append(d.drop, value)
		return nil
	case "security-opt":
		return d.security(value)
	case "read-only":
		return flag(value, &d.wish.readOnly)
	case "init":
		return flag(value, &d.wish.init)
	case "stop-signal":
		if _, ok := signalNamed(value); !ok {
			return errors.New("want a signal such as SIGQUIT or 3")
		}
		d.wish.stopSignal = value
		return nil
	case "stop-timeout":
		if n, err := strconv.ParseUint(value, 10, 31); err != nil || n > maxStopTimeout {
			return fmt.Errorf("want seconds, up to %d", maxStopTimeout)
		}
		return nil // who ends the container reads it
	case "group-add":
		if !oneWord(value) || strings.ContainsAny(value, ":/") {
			return errors.New("want a group, or its number")
		}
		d.wish.groups = append(d.wish.groups, value)
		return nil
	case "domainname":
		if !oneWord(value) || d.wish.shared[containerv1.Namespace_UTS] {
			return errors.New("want a name, and no parameter uts=host")
		}
		d.wish.ownUTS = true
		d.wish.base.Sysctls = set(d.wish.base.Sysctls, "kernel.domainname", value)
		return nil
	case "mount":
		return d.mount(value)
	case "tty":
		return d.terminal(value)
	case "pull":
		return d.pull(value)
	case "net", "network", "network-mode":
		if value == "" || strings.Contains(value, ":") || d.joins != "" && d.joins != value {
			return errors.New("want host, bridge, none or the name of one network")
		}
		d.joins = value
		return nil
	case "ulimit":
		return d.ulimit(value)
	case "sysctl":
		name, setting, ok := strings.Cut(value, "=")
		if !ok || name == "" {
			return errors.New("want NAME=VALUE")
		}
		d.wish.base.Sysctls = set(d.wish.base.Sysctls, name, setting)
		return nil
	case "device":
		return d.node(value)
	case "publish":
		return d.publish(value)
	case "ip", "ip6":
		if a, err := netip.ParseAddr(value); err != nil || a.Is4() != (key == "ip") {
			return errors.New("want an address")
		}
		d.addresses = append(d.addresses, value)
		return nil
	case "pid", "ipc", "uts", "userns", "cgroupns":
		return d.namespace(key, value)
	}
	if known, err := d.wish.names.parameter(key, value); known {
		return err
	}
	if known, err := d.limit(key, value); known {
		return err
	}
	if unheeded(key) {
		d.wish.unheeded = append(d.wish.unheeded, key+"="+value)
		return nil
	}
	return refused(key, value)
}

// maxStopTimeout is the longest stop-timeout in seconds: as long as the API's durations reach in round numbers.
const maxStopTimeout = 100 * 365 * 24 * 60 * 60

// unheeded says whether an option means nothing without a daemon, to which it is addressed. Nothing that a container may
// do or must not do depends on those.
func unheeded(key string) bool {
	return slices.Contains([]string{"name", "log-driver", "log-opt", "detach-keys", "sig-proxy", "quiet", "disable-content-trust", "isolation", "annotation"}, key)
}

// refused says why an option is not given; those that ask for what is so anyway are.
func refused(key, value string) error {
	for _, p := range []struct {
		keys, values string // values that are so anyway
		why          string
	}{
		{"rm", "true", "every container is removed when it has ended"},
		{"detach interactive", "true false", "want true or false"},
		{"restart", "no", "tasks are started again by their framework"},
		{"oom-kill-disable", "false", "a container that cannot be ended would hold its memory for ever"},
		{"expose", value, ""},
		{"no-healthcheck", "true", "want true, which it is anyway"},
		{"health-cmd health-interval health-retries health-start-interval health-start-period health-timeout", "",
			"want the task's health_check, which tells its framework"},
		{"privileged", "false", "want docker.privileged"},
		{"memory memory-reservation memory-swappiness cpus cpu-shares cpu-quota cpu-period cpu-rt-period cpu-rt-runtime cpu-count cpu-percent kernel-memory", "",
			"the task's resources and limits say it"},
		{"blkio-weight blkio-weight-device device-read-bps device-read-iops device-write-bps device-write-iops io-maxbandwidth io-maxiops", "",
			"disks are shared by the operator's settings"},
		{"storage-opt", "", "want the resource disk"},
		{"gpus", "", "want the resource gpus"},
		{"device-cgroup-rule", "", "want the parameter device, of a device that the operator lends"},
		{"cgroup-parent", "", "the agent says where cgroups are"},
		{"platform", "linux linux/" + runtime.GOARCH, "this agent runs linux/" + runtime.GOARCH + " only"},
		{"publish-all", "false", "host ports come from offers: want port_mappings"},
		{"mac-address link-local-ip", "", "the network says it"},
		{"cidfile", "", "nobody could read it: the container's id is in the status of its task"},
		{"env-file label-file", "", "there is no such file where the agent runs; want the parameter env or label"},
		{"volumes-from link network-alias net-alias", "", "containers here do not know one another by name"},
		{"runtime", "runc io.containerd.runc.v2", "the operator of this agent chooses it"},
		{"attach", "stdout stderr STDOUT STDERR", "input comes by the agent's API, to containers with tty_info"},
		{"use-api-socket", "false", "there is no daemon"},
	} {
		if !slices.Contains(strings.Fields(p.keys), key) {
			continue
		}
		if key == "expose" || value == "" && slices.Contains([]string{"rm", "detach", "interactive", "no-healthcheck"}, key) || slices.Contains(strings.Fields(p.values), value) {
			return nil
		}
		return errors.New(p.why)
	}
	return errors.New("this agent cannot give it")
}

// terminal is the switch that gives the container a terminal.
func (d *dockering) terminal(value string) error {
	var on bool
	if err := flag(value, &on); err != nil {
		return err
	}
	if on && d.info.GetTtyInfo() == nil {
		d.info.TtyInfo = &mesosv1.TTYInfo{}
		attachable(d.spec)
	}
	return nil
}

// pull says when the image is asked for anew.
func (d *dockering) pull(value string) error {
	switch value {
	case "missing":
		return nil
	case "always":
		d.image.Cached = proto.Bool(false)
		return nil
	}
	return errors.New("want missing or always")
}

func (d *dockering) variable(text string) error {
	name, value, ok := strings.Cut(text, "=")
	if !ok || name == "" {
		return errors.New("want NAME=VALUE")
	}
	d.env = append(d.env, &mesosv1.Environment_Variable{Name: &name, Value: &value})
	return nil
}

// flag reads a switch, which is on without a value.
func flag(value string, to *bool) error {
	if value == "" {
		*to = true
		return nil
	}
	on, err := strconv.ParseBool(value)
	if err != nil {
		return errors.New("want true or false")
	}
	*to = on
	return nil
}

// volume is SOURCE:PLACE[:OPTION,...]; a source that is no path is the name of a driver's volume.
func (d *dockering) volume(text string) error {
	parts := strings.Split(text, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || !path.IsAbs(parts[1]) {
		return errors.New("want SOURCE:PLACE or SOURCE:PLACE:OPTIONS, with an absolute place")
	}
	v := &mesosv1.Volume{ContainerPath: &parts[1], Mode: mesosv1.Volume_RW.Enum()}
	propagation := mesosv1.MountPropagation_UNKNOWN
	if len(parts) == 3 {
		for _, o := range strings.Split(parts[2], ",") {
			switch o {
			case "rw":
			case "ro":
				v.Mode = mesosv1.Volume_RO.Enum()
			case "shared", "rshared":
				propagation = mesosv1.MountPropagation_BIDIRECTIONAL
			case "slave", "rslave":
				propagation = mesosv1.MountPropagation_HOST_TO_CONTAINER
			case "private", "rprivate", "consistent", "cached", "delegated", "z", "Z": // as it is anyway
			default:
				return fmt.Errorf("got option %q", o)
			}
		}
	}
	if !path.IsAbs(parts[0]) {
		if propagation != mesosv1.MountPropagation_UNKNOWN || strings.Contains(parts[0], "/") {
			return errors.New("want an absolute source, or the name of a volume")
		}
		v.Source = dockerVolume("", parts[0])
		d.named = append(d.named, v)
		return nil
	}
	host := &mesosv1.Volume_Source_HostPath{Path: proto.String(path.Clean(parts[0]))}
	if propagation != mesosv1.MountPropagation_UNKNOWN {
		host.MountPropagation = &mesosv1.MountPropagation{Mode: propagation.Enum()}
	}
	v.Source = &mesosv1.Volume_Source{Type: mesosv1.Volume_Source_HOST_PATH.Enum(), HostPath: host}
	d.info.Volumes = append(d.info.Volumes, v)
	return nil
}

// mount is the longer way to ask for a volume: type=bind,source=PATH,target=PLACE,readonly.
func (d *dockering) mount(text string) error {
	var kind, source, target, more string
	readOnly := false
	for _, pair := range strings.Split(text, ",") {
		key, value, given := strings.Cut(pair, "=")
		switch key {
		case "type":
			kind = value
		case "source", "src":
			source = value
		case "target", "destination", "dst":
			target = value
		case "readonly", "ro":
			if value == "" && !given {
				value = "true"
			}
			if err := flag(value, &readOnly); err != nil {
				return err
			}
		case "bind-propagation":
			more += "," + value
		case "consistency":
		case "tmpfs-size", "tmpfs-mode":
			more += "," + strings.TrimPrefix(key, "tmpfs-") + "=" + value
		default:
			return fmt.Errorf("got option %q", key)
		}
	}
	if kind == "" {
		kind = "volume"
	}
	switch {
	case strings.ContainsAny(source+target, ":"):
		return errors.New("want a source and a target without colons")
	case kind == "tmpfs" && source == "":
		if readOnly {
			more += ",ro"
		}
		return d.tmpfs(target + ":" + strings.TrimPrefix(more, ","))
	case (kind == "bind") != path.IsAbs(source), kind != "bind" && kind != "volume", source == "":
		return errors.New("want type=bind with an absolute source, type=volume with a name, or type=tmpfs")
	case readOnly:
		more += ",ro"
	}
	return d.volume(source + ":" + target + ":rw" + more)
}

// tmpfs is PLACE[:OPTION,...], with a daemon's options before those given.
func (d *dockering) tmpfs(text string) error {
	place, given, _ := strings.Cut(text, ":")
	if !path.IsAbs(place) || path.Clean(place) == "/" {
		return errors.New("want PLACE or PLACE:OPTIONS, with an absolute place")
	}
	options := []string{"nosuid", "nodev", "noexec"}
	for _, o := range strings.Split(given, ",") {
		name, _, _ := strings.Cut(o, "=")
		if !slices.Contains([]string{"", "rw", "ro", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "noatime", "relatime", "size", "mode", "uid", "gid", "nr_inodes", "nr_blocks"}, name) {
			return fmt.Errorf("got option %q", o)
		}
		if o != "" {
			options = append(slices.DeleteFunc(options, func(have string) bool { return have == "no"+o }), o)
		}
	}
	d.wish.base.Mounts = append(d.wish.base.Mounts, &containerv1.Mount{
		Destination: path.Clean(place), Source: "tmpfs", Type: "tmpfs", Options: options,
	})
	return nil
}

func (d *dockering) security(text string) error {
	name, value, ok := strings.Cut(text, "=")
	if !ok {
		name, value, _ = strings.Cut(text, ":") // the older way to write it
	}
	switch {
	case name == "no-new-privileges":
		return flag(value, &d.wish.noNewPrivs)
	case name == "seccomp" && value == "unconfined":
		d.unconfined = true
		return nil
	case name == "seccomp" && value == "builtin":
		d.linux().Seccomp = &mesosv1.SeccompInfo{ProfileName: proto.String("default")}
		return nil
	case name == "seccomp":
		return errors.New("want unconfined or builtin; other profiles have a name (linux_info.seccomp.profile_name)")
	case name == "apparmor" && value == "unconfined", name == "label" && value == "disable": // as it is anyway
		return nil
	}
	return errors.New("this agent cannot give it")
}

// ulimit is NAME=SOFT[:HARD]; -1 is none.
func (d *dockering) ulimit(text string) error {
	name, limits, ok := strings.Cut(text, "=")
	kind, known := mesosv1.RLimitInfo_RLimit_Type_value["RLMT_"+strings.ToUpper(name)]
	if !ok || !known {
		return errors.New("want NAME=SOFT or NAME=SOFT:HARD, with a name such as nofile")
	}
	first, second, both := strings.Cut(limits, ":")
	soft, err := rlimit(first)
	if err != nil {
		return err
	}
	hard := soft
	if both {
		if hard, err = rlimit(second); err != nil {
			return err
		}
	}
	if soft > hard {
		return errors.New("want a soft limit that is not above the hard one")
	}
	if d.info.RlimitInfo == nil {
		d.info.RlimitInfo = &mesosv1.RLimitInfo{}
	}
	d.info.RlimitInfo.Rlimits = append(d.info.RlimitInfo.Rlimits, &mesosv1.RLimitInfo_RLimit{
		Type: mesosv1.RLimitInfo_RLimit_Type(kind).Enum(), Soft: &soft, Hard: &hard,
	})
	return nil
}

func rlimit(text string) (uint64, error) {
	if text == "-1" || text == "unlimited" {
		return math.MaxUint64, nil
	}
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil {
		return 0, errors.New("want limits that are numbers, or -1 for none")
	}
	return n, nil
}

// node is PATH[:PLACE[:ACCESS]], with the access a part of rwm.
func (d *dockering) node(text string) error {
	parts := strings.Split(text, ":")
	if len(parts) > 3 {
		return errors.New("want PATH, PATH:PLACE or PATH:PLACE:ACCESS")
	}
	place, access := parts[0], "rwm"
	if len(parts) == 2 && deviceAccess(parts[1]) {
		access = parts[1]
	} else if len(parts) > 1 {
		place = parts[1]
	}
	if len(parts) == 3 {
		access = parts[2]
	}
	if !path.IsAbs(parts[0]) || !path.IsAbs(place) || !deviceAccess(access) {
		return errors.New("want absolute paths, and an access such as rw")
	}
	if !d.cfg.mayUse(path.Clean(parts[0])) {
		return errors.New("the operator of this agent lends that device to no container")
	}
	resolved, node, err := d.machine.device(parts[0])
	if err != nil {
		return err
	}
	if !d.cfg.mayUse(resolved) {
		return fmt.Errorf("it is %s, which the operator of this agent lends to no container", resolved)
	}
	node.Path, node.Access = path.Clean(place), access
	d.wish.base.Devices = append(d.wish.base.Devices, node)
	return nil
}

func deviceAccess(text string) bool {
	return text != "" && strings.Trim(text, "rwm") == "" && len(text) <= 3
}

// publish is HOSTPORT:PORT[/PROTOCOL].
func (d *dockering) publish(text string) error {
	ports, protocol, ok := strings.Cut(text, "/")
	if !ok {
		protocol = "tcp"
	}
	first, second, _ := strings.Cut(ports, ":")
	host, err := strconv.ParseUint(first, 10, 16)
	inside, err2 := strconv.ParseUint(second, 10, 16)
	if err != nil || err2 != nil || host == 0 || inside == 0 || protocol != "tcp" && protocol != "udp" {
		return errors.New("want HOSTPORT:PORT or HOSTPORT:PORT/PROTOCOL, one port each")
	}
	from, to := uint32(host), uint32(inside)
	d.ports = append(d.ports, &mesosv1.NetworkInfo_PortMapping{HostPort: &from, ContainerPort: &to, Protocol: &protocol})
	return nil
}

func addressOf(text string) *mesosv1.NetworkInfo_IPAddress {
	protocol := mesosv1.NetworkInfo_IPv4
	if a, err := netip.ParseAddr(text); err == nil && a.Is6() {
		protocol = mesosv1.NetworkInfo_IPv6
	}
	return &mesosv1.NetworkInfo_IPAddress{IpAddress: &text, Protocol: &protocol}
}

// namespace is whose namespaces of a kind the container has: its own or the machine's.
func (d *dockering) namespace(key, value string) error {
	host := value == "host"
	switch {
	case host && key == "pid":
		d.linux().SharePidNamespace = &host
		d.wish.shared[containerv1.Namespace_PID] = true
	case host && key == "ipc":
		d.linux().IpcMode = mesosv1.LinuxInfo_SHARE_PARENT.Enum()
		d.wish.shared[containerv1.Namespace_IPC] = true
	case host && key == "uts":
		if d.info.GetHostname() != "" {
			return errors.New("the container has a hostname, want one of its own")
		}
		d.wish.shared[containerv1.Namespace_UTS] = true
	case host: // userns, cgroupns: as it is anyway
	case value == "private" && key == "cgroupns":
		d.wish.base.Namespaces = append(d.wish.base.Namespaces, &containerv1.Namespace{Type: containerv1.Namespace_CGROUP})
	case key == "ipc" && (value == "private" || value == "shareable"): // as it is anyway
	default:
		return errors.New("this agent cannot give it, want host or nothing")
	}
	return nil
}

// limit takes options that become settings of the cgroup, the processes or /dev/shm, and says whether key is one.
func (d *dockering) limit(key, value string) (known bool, err error) {
	cgroup := func() *containerv1.CgroupResources {
		if d.wish.base.Cgroup == nil {
			d.wish.base.Cgroup = &containerv1.CgroupResources{}
		}
		return d.wish.base.Cgroup
	}
	switch key {
	case "cpuset-cpus", "cpuset-mems":
		if strings.Trim(value, "0123456789,-") != "" || value == "" {
			return true, errors.New("want a list such as 0-3,7")
		}
		if key == "cpuset-cpus" {
			cgroup().CpusetCpus = value
		} else {
			cgroup().CpusetMems = value
		}
	case "memory-swap":
		bytes := int64(-1)
		if value != "-1" {
			if bytes, err = byteSize(value); err != nil {
				return true, err
			}
		}
		cgroup().MemorySwapBytes = &bytes
	case "pids-limit":
		n, err := strconv.ParseInt(value, 10, 32)
		if err != nil || n < -1 {
			return true, errors.New("want a number, or -1 for none")
		}
		if n == 0 {
			n = -1
		}
		cgroup().PidsLimit = &n
	case "oom-score-adj":
		n, err := strconv.ParseInt(value, 10, 32)
		if err != nil || n < -1000 || n > 1000 {
			return true, errors.New("want a number from -1000 to 1000")
		}
		d.wish.base.OomScoreAdj = proto.Int32(int32(n))
	case "shm-size":
		bytes, err := byteSize(value)
		if err != nil {
			return true, err
		}
		mib := (bytes + 1<<20 - 1) >> 20
		if bytes == 0 || mib > math.MaxUint32 {
			return true, errors.New("want a size such as 64m")
		}
		d.linux().ShmSize = proto.Uint32(uint32(mib))
	default:
		return false, nil
	}
	return true, nil
}

// byteSize reads a size as Docker does: bytes, or a number with b, k, m, g or t of powers of 1024, with or without
// another b.
func byteSize(text string) (int64, error) {
	s := strings.ToLower(text)
	number := strings.TrimRight(s, "bkmgti")
	unit := strings.TrimSuffix(strings.TrimSuffix(s[len(number):], "b"), "i")
	shift := map[string]uint{"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
	n, err := strconv.ParseInt(number, 10, 64)
	by, known := shift[unit]
	if err != nil || !known || n < 0 || n > math.MaxInt64>>by {
		return 0, errors.New("want a size such as 64m")
	}
	return n << by, nil
}
