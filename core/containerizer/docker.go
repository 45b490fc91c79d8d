package containerizer

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/supervised"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// A container of type DOCKER was meant for a Docker daemon. Here it is said in the words of the agent's own containers
// before anybody looks at it, so that no isolator, launcher or provisioner knows the type: what ContainerInfo can say
// goes there, the rest becomes one more proposal beside the isolators', and what `docker run` gives to every container
// is given unless an isolator has it in hand. What cannot be given is refused by the name of its parameter.
//
// Its command is what it is to a daemon, too: value and arguments are what comes after the image's entrypoint, and
// replace the image's command; only a shell takes the entrypoint's place.

// dockerOwner is the owner of what such a container asks for itself. No module can have this name.
const dockerOwner = "container.docker"

// defaultBridge is the network of mode BRIDGE where the operator names none.
const defaultBridge = "mosaic"

// DockerConfig is what an operator says about containers of type DOCKER.
type DockerConfig struct {
	// Network that containers of network mode BRIDGE join. Default "mosaic".
	Bridge string
	// Capabilities such containers have that neither add nor drop any, as NET_RAW. Nil are Docker's. An operator who bounds
	// capabilities more tightly than that bounds these, too, or such containers are refused.
	Capabilities []string
	// Seccomp profile of such containers that ask for none; empty leaves it to the isolators.
	Seccomp string
	// Device nodes of the machine that such containers may ask for: absolute paths or patterns of path.Match. None by default.
	Devices []string
	// Give containers that ask for it (privileged) every capability and device, and /proc and /sys as the machine has them.
	// Whoever may launch one has the machine.
	Privileged bool
}

// dockerCapabilities are those that a daemon leaves to root in a container.
var dockerCapabilities = []string{
	"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW", "SETFCAP",
	"SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}

// dockerWish is what a container of type DOCKER asks for beyond what ContainerInfo can say of others.
type dockerWish struct {
	base       *containerv1.Proposal // nobody else may set the same
	command    *mesosv1.CommandInfo
	entrypoint *string // in place of the image's
	user       bool    // one is named: the image's does not count
	taskUser   string  // whom the task may be
	alone      bool    // not in the host's network
	shared     map[containerv1.Namespace_Type]bool
	noNewPrivs bool
	readOnly   bool // its root filesystem
	init       bool // before its command
	ownUTS     bool
	groups     []string // of its first process, beside the user's
	stopSignal string   // in place of the image's
	names      dockerNames
	unheeded   []string // parameters that mean nothing here
	privileged bool
	caps       *containerv1.Capabilities // where no isolator sets them
}

// asDocker says the container in the words of type MESOS and returns what is left to ask for; nil for a container of
// another type. machine is the one that it is to run on.
//
// Errors name what cannot be given.
func asDocker(spec *containerv1.Container, cfg DockerConfig, machine dockerMachine) (*dockerWish, error) {
	info := spec.GetContainerInfo()
	if info == nil || info.GetType() != mesosv1.ContainerInfo_DOCKER {
		return nil, nil
	}
	docker := info.GetDocker()
	switch {
	case docker.GetImage() == "":
		return nil, errors.New("container.docker: a container of type DOCKER without image, want docker.image")
	case info.GetMesos() != nil:
		return nil, errors.New("container.docker: got settings of type MESOS, too")
	case docker.GetPrivileged() && !cfg.Privileged:
		return nil, errors.New("container.docker: privileged: this agent gives no container all of the machine; name what it needs by cap-add and device")
	}
	info = proto.CloneOf(info)
	info.Type, info.Docker = mesosv1.ContainerInfo_MESOS.Enum(), nil
	image := &mesosv1.Image{Type: mesosv1.Image_DOCKER.Enum(), Docker: &mesosv1.Image_Docker{Name: proto.String(docker.GetImage())}}
	if docker.GetForcePullImage() {
		image.Cached = proto.Bool(false)
	}
	info.Mesos = &mesosv1.ContainerInfo_MesosInfo{Image: image}
	spec.ContainerInfo = info
	d := &dockering{
		cfg: cfg, machine: machine, spec: spec, info: info, image: image, driver: docker.GetVolumeDriver(),
		wish: &dockerWish{base: &containerv1.Proposal{}, taskUser: spec.GetUser(), shared: map[containerv1.Namespace_Type]bool{}},
	}
	if docker.GetPrivileged() {
		if err := d.privilege(); err != nil {
			return nil, fmt.Errorf("container.docker: privileged: %w", err)
		}
	}
	for _, p := range docker.GetPortMappings() {
		d.ports = append(d.ports, &mesosv1.NetworkInfo_PortMapping{HostPort: p.HostPort, ContainerPort: p.ContainerPort, Protocol: p.Protocol})
	}
	for _, p := range docker.GetParameters() {
		if err := d.parameter(p.GetKey(), p.GetValue()); err != nil {
			return nil, fmt.Errorf("container.docker: parameter %s=%q: %w", p.GetKey(), p.GetValue(), err)
		}
	}
	for _, step := range []func() error{d.volumes, d.capabilities, func() error { return d.networkOf(docker) }, d.seccomp, d.environment} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("container.docker: %w", err)
		}
	}
	d.wish.command = spec.GetCommand()
	return d.wish, nil
}

// dockering is one container on its way from type DOCKER to type MESOS.
type dockering struct {
	cfg     DockerConfig
	machine dockerMachine
	spec    *containerv1.Container
	info    *mesosv1.ContainerInfo // the new one
	image   *mesosv1.Image
	wish    *dockerWish

	joins      string // network of the parameter of that name
	driver     string // of volumes that have a name
	named      []*mesosv1.Volume
	ports      []*mesosv1.NetworkInfo_PortMapping
	addresses  []string
	add, drop  []string // capabilities
	env        []*mesosv1.Environment_Variable
	unconfined bool // no seccomp filter
}

// linux is the container's LinuxInfo, made when first needed.
func (d *dockering) linux() *mesosv1.LinuxInfo {
	if d.info.LinuxInfo == nil {
		d.info.LinuxInfo = &mesosv1.LinuxInfo{}
	}
	return d.info.LinuxInfo
}

// networkOf gives the container the network that docker.network names, or, where that is not set, the parameter.
func (d *dockering) networkOf(docker *mesosv1.ContainerInfo_DockerInfo) error {
	mode, networks := docker.GetNetwork(), d.info.GetNetworkInfos()
	if d.joins == "" {
		return d.network(mode)
	}
	asked, name := modeNamed(d.joins)
	switch {
	case docker.Network != nil && mode != asked:
		return fmt.Errorf("parameter network=%q: docker.network is %s, want one of them", d.joins, mode)
	case name != "" && len(networks) == 0:
		d.info.NetworkInfos = []*mesosv1.NetworkInfo{{Name: &name}}
	case name != "" && networks[0].GetName() == "":
		networks[0].Name = &name
	case name != "" && networks[0].GetName() != name:
		return fmt.Errorf("parameter network=%q: network_infos has %s, want one of them", name, networks[0].GetName())
	}
	return d.network(asked)
}

// modeNamed is the mode that a daemon's name of a network means, with the name where it is one of USER.
func modeNamed(text string) (mode mesosv1.ContainerInfo_DockerInfo_Network, name string) {
	switch text {
	case "host":
		return mesosv1.ContainerInfo_DockerInfo_HOST, ""
	case "none":
		return mesosv1.ContainerInfo_DockerInfo_NONE, ""
	case "bridge", "default":
		return mesosv1.ContainerInfo_DockerInfo_BRIDGE, ""
	}
	return mesosv1.ContainerInfo_DockerInfo_USER, text
}

// network gives the container the network of its mode.
func (d *dockering) network(mode mesosv1.ContainerInfo_DockerInfo_Network) error {
	networks := d.info.GetNetworkInfos()
	d.wish.alone = mode != mesosv1.ContainerInfo_DockerInfo_HOST
	switch mode {
	case mesosv1.ContainerInfo_DockerInfo_HOST, mesosv1.ContainerInfo_DockerInfo_NONE:
		switch {
		case len(d.ports) > 0:
			return fmt.Errorf("port_mappings: network %s has no ports to map, want BRIDGE or USER", mode)
		case len(d.addresses) > 0:
			return fmt.Errorf("parameter ip: network %s gives no addresses, want USER", mode)
		}
		for _, n := range networks {
			if n.GetName() != "" {
				return fmt.Errorf("network_infos: got network %q, want none of a name beside network %s", n.GetName(), mode)
			}
		}
		if mode == mesosv1.ContainerInfo_DockerInfo_NONE {
			d.wish.base.Namespaces = append(d.wish.base.Namespaces, &containerv1.Namespace{Type: containerv1.Namespace_NETWORK})
		}
		return nil
	case mesosv1.ContainerInfo_DockerInfo_BRIDGE, mesosv1.ContainerInfo_DockerInfo_USER:
	default:
		return fmt.Errorf("network: got %s, want HOST, BRIDGE, NONE or USER", mode)
	}
	if len(networks) > 1 {
		return fmt.Errorf("network_infos: got %d networks, want one", len(networks))
	}
	if len(networks) == 0 {
		networks = []*mesosv1.NetworkInfo{{}}
		d.info.NetworkInfos = networks
	}
	n := networks[0]
	if mode == mesosv1.ContainerInfo_DockerInfo_BRIDGE {
		bridge := d.cfg.Bridge
		if bridge == "" {
			bridge = defaultBridge
		}
		if n.GetName() != "" && n.GetName() != bridge {
			return fmt.Errorf("network_infos: got network %q with network BRIDGE, which is %q here; want network USER", n.GetName(), bridge)
		}
		n.Name = &bridge
	}
	if n.GetName() == "" {
		return errors.New("network USER: want its name in network_infos[0].name")
	}
	for _, p := range d.ports {
		if !d.holdsPort(p.GetHostPort()) {
			return fmt.Errorf("port_mappings: host port %d is not among the ports of the task's resources", p.GetHostPort())
		}
	}
	n.PortMappings = append(n.PortMappings, d.ports...)
	for _, address := range d.addresses {
		n.IpAddresses = append(n.IpAddresses, addressOf(address))
	}
	return nil
}

// holdsPort says whether a port of the machine was offered to the container: others are others'.
func (d *dockering) holdsPort(port uint32) bool {
	for _, r := range d.spec.GetResources() {
		if r.GetName() != "ports" {
			continue
		}
		for _, held := range r.GetRanges().GetRange() {
			if held.GetBegin() <= uint64(port) && uint64(port) <= held.GetEnd() {
				return true
			}
		}
	}
	return false
}

// volumes are those of ContainerInfo that mean something else to a daemon than to an agent, and those of parameters.
func (d *dockering) volumes() error {
	for n, v := range d.info.GetVolumes() {
		switch host := v.GetHostPath(); {
		case host == "" && v.GetSource() == nil && v.GetImage() == nil:
			return fmt.Errorf("volumes[%d]: a volume at %s that is of nothing, want a host_path or a source", n, v.GetContainerPath())
		case host != "" && !filepath.IsAbs(host) && d.driver != "":
			v.HostPath, v.Source = nil, dockerVolume(d.driver, host)
		}
	}
	for _, v := range d.named {
		if d.driver == "" {
			return fmt.Errorf("parameter volume: volume %q has a name and no driver keeps it, want an absolute path or the parameter volume-driver",
				v.GetSource().GetDockerVolume().GetName())
		}
		v.Source.DockerVolume.Driver = &d.driver
		d.info.Volumes = append(d.info.Volumes, v)
	}
	return nil
}

func dockerVolume(driver, name string) *mesosv1.Volume_Source {
	return &mesosv1.Volume_Source{
		Type: mesosv1.Volume_Source_DOCKER_VOLUME.Enum(), DockerVolume: &mesosv1.Volume_Source_DockerVolume{Driver: &driver, Name: &name},
	}
}

// privilege gives the container all of the machine but its namespaces.
func (d *dockering) privilege() error {
	devices, err := machineDevices("/dev")
	if err != nil {
		return err
	}
	p := d.wish.base
	p.Devices = append(p.Devices, devices...)
	p.Cgroup = &containerv1.CgroupResources{DeviceRules: []*containerv1.DeviceRule{{Allow: true, Type: "a", Access: "rwm"}}}
	p.Mounts = append(p.Mounts, &containerv1.Mount{Destination: "/sys", Source: "sysfs", Type: "sysfs", Options: []string{"nosuid", "noexec", "nodev"}})
	d.wish.privileged, d.unconfined = true, true
	d.add = append(d.add, "ALL")
	return nil
}

// maxMachineDevices bounds what is looked at for one container. Machines with a thousand disks have 20,000.
const maxMachineDevices = 1 << 16

// machineDevices are the device nodes below dir that a container may have as they are; those of terminals are its own.
func machineDevices(dir string) ([]*containerv1.Device, error) {
	var list []*containerv1.Device
	seen := 0
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if seen++; seen > maxMachineDevices {
			return fmt.Errorf("more than %d files in %s", maxMachineDevices, dir)
		}
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // gone meanwhile
		case err != nil:
			return err
		case e.IsDir() && slices.Contains([]string{"pts", "shm", "fd", "mqueue", "hugepages"}, e.Name()):
			return fs.SkipDir
		case e.Type()&fs.ModeDevice == 0 || e.Name() == "console" || e.Name() == "ptmx":
			return nil
		}
		_, node, err := deviceOf(name)
		if err == nil {
			node.Path, node.Access = name, "rwm"
			list = append(list, node)
		}
		return nil // else gone meanwhile
	})
	return list, err
}

// capabilities bounds the container to what it is to have.
func (d *dockering) capabilities() error {
	linux := d.linux()
	if linux.CapabilityInfo != nil || linux.EffectiveCapabilities != nil || linux.BoundingCapabilities != nil {
		if len(d.add)+len(d.drop) > 0 {
			return errors.New("parameters cap-add and cap-drop: linux_info has capabilities, too, want one of them")
		}
		return nil
	}
	held, err := d.machine.capabilities()
	if err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	have := d.cfg.Capabilities
	if have == nil {
		have = slices.DeleteFunc(slices.Clone(dockerCapabilities), func(name string) bool { return !slices.Contains(held, "CAP_"+name) })
	}
	set := map[string]bool{}
	put := func(names []string, what bool) error {
		for _, text := range names {
			name := strings.TrimPrefix(strings.ToUpper(text), "CAP_")
			if name == "ALL" {
				continue
			}
			if n, ok := mesosv1.CapabilityInfo_Capability_value[name]; !ok || n == 0 {
				return fmt.Errorf("got capability %q, want one such as NET_RAW, or ALL", text)
			}
			set[name] = what
		}
		return nil
	}
	all := func(list []string) bool {
		return slices.ContainsFunc(list, func(s string) bool { return strings.EqualFold(s, "ALL") })
	}
	switch {
	case all(d.add):
		have = nil
		for name, n := range mesosv1.CapabilityInfo_Capability_value {
			if n != 0 && slices.Contains(held, "CAP_"+name) {
				have = append(have, name)
			}
		}
	case all(d.drop):
		have = nil
	}
	// What is added stays although all is dropped, and what is dropped goes although all is added; as for a daemon, of one
	// that is named in both it is the addition that counts.
	for _, x := range []struct {
		names []string
		what  bool
	}{{have, true}, {d.drop, false}, {d.add, true}} {
		if err := put(x.names, x.what); err != nil {
			return err
		}
	}
	bound := &mesosv1.CapabilityInfo{}
	d.wish.caps = &containerv1.Capabilities{}
	for _, name := range slices.Sorted(maps.Keys(set)) {
		if set[name] {
			bound.Capabilities = append(bound.Capabilities, mesosv1.CapabilityInfo_Capability(mesosv1.CapabilityInfo_Capability_value[name]))
			d.wish.caps.Bounding = append(d.wish.caps.Bounding, "CAP_"+name)
		}
	}
	linux.BoundingCapabilities = bound
	return nil
}

func (d *dockering) seccomp() error {
	asked := d.linux().GetSeccomp()
	switch {
	case d.unconfined && asked.GetProfileName() != "":
		return fmt.Errorf("parameter security-opt: got seccomp=unconfined, and linux_info has profile %q", asked.GetProfileName())
	case d.unconfined:
		d.linux().Seccomp = &mesosv1.SeccompInfo{Unconfined: &d.unconfined}
	case asked == nil && d.cfg.Seccomp != "":
		d.linux().Seccomp = &mesosv1.SeccompInfo{ProfileName: &d.cfg.Seccomp}
	}
	return nil
}

// environment puts the parameters' variables before the command's, which win, and adds those that Docker's executor
// gave to its tasks.
func (d *dockering) environment() error {
	own := maps.Clone(d.spec.GetEnvironment())
	if own == nil {
		own = map[string]string{}
	}
	own["MESOS_CONTAINER_NAME"] = "mesos-" + d.spec.GetId()
	if task := d.spec.GetTaskId(); task != "" {
		own["MESOS_TASK_ID"] = task
	}
	d.spec.Environment = own
	if len(d.env) == 0 {
		return nil
	}
	command := proto.CloneOf(d.spec.GetCommand())
	if command.Environment == nil {
		command.Environment = &mesosv1.Environment{}
	}
	command.Environment.Variables = append(d.env, command.Environment.Variables...)
	d.spec.Command = command
	return nil
}

// answer is what the container asks for, once its image is there. init is the program that serves as one.
func (w *dockerWish) answer(spec *containerv1.Container, init string) (answer, error) {
	p := proto.CloneOf(w.base)
	image := spec.GetImageConfig()
	var err error
	if p.Arguments, err = dockerCommandLine(w.command, image, w.entrypoint); err != nil {
		return answer{}, fmt.Errorf("container.docker: %w", err)
	}
	if err := w.begin(init, p); err != nil {
		return answer{}, fmt.Errorf("container.docker: %w", err)
	}
	if p.WorkingDirectory == "" && image.GetWorkingDirectory() == "" {
		p.WorkingDirectory = "/"
	}
	return answer{module: dockerOwner, proposal: p}, nil
}

// dockerCommandLine makes the command line of a command as a daemon would: after the entrypoint comes the command's
// value with its arguments, or, where it has neither, the image's own command. One that names an entrypoint does
// without the image's command.
func dockerCommandLine(command *mesosv1.CommandInfo, image *containerv1.ImageConfig, entrypoint *string) ([]string, error) {
	if command.GetShell() {
		if entrypoint != nil {
			return nil, errors.New("parameter entrypoint: the command is for a shell, want shell=false")
		}
		if command.GetValue() == "" {
			return nil, errors.New("command: got shell without value, want a value to give to the shell")
		}
		return []string{"/bin/sh", "-c", command.GetValue()}, nil
	}
	first, rest := image.GetEntrypoint(), image.GetCmd()
	if entrypoint != nil {
		first, rest = nil, nil
		if *entrypoint != "" {
			first = []string{*entrypoint}
		}
	}
	if command.GetValue() != "" || len(command.GetArguments()) > 0 {
		rest = nil
		if command.GetValue() != "" {
			rest = append(rest, command.GetValue())
		}
		rest = append(rest, command.GetArguments()...)
	}
	argv := slices.Concat(first, rest)
	if len(argv) == 0 || argv[0] == "" {
		return nil, errors.New("command: got neither value nor arguments, and an image without entrypoint and command, want one of them")
	}
	return argv, nil
}

// settle adds what a daemon gives to every container and no isolator has set, for a process of user who.
func (w *dockerWish) settle(spec *containerv1.Container, who launcher.User, merged *containerv1.Spec) {
	p := merged.Merged
	if w.caps != nil && merged.Owners["capabilities"] == "" {
		p.Capabilities = proto.CloneOf(w.caps)
		merged.Owners["capabilities"] = dockerOwner
	}
	if c := p.Capabilities; who.UID == 0 && w.caps != nil && len(c.GetEffective()) == 0 {
		c = proto.CloneOf(c) // root has all that it is not bounded to do without
		c.Effective, c.Permitted = c.GetBounding(), c.GetBounding()
		p.Capabilities = c
	}
	if w.noNewPrivs && !p.GetNoNewPrivileges() {
		p.NoNewPrivileges = proto.Bool(true)
		merged.Owners["no_new_privileges"] = dockerOwner
	}
	own := func(t containerv1.Namespace_Type) {
		if field := "namespaces." + t.String(); merged.Owners[field] == "" && !w.shared[t] {
			merged.Owners[field] = dockerOwner
			p.Namespaces = append(p.Namespaces, &containerv1.Namespace{Type: t})
		}
	}
	if spec.GetParentId() == "" {
		own(containerv1.Namespace_PID)
		own(containerv1.Namespace_IPC)
	}
	hostname := spec.GetContainerInfo().GetHostname()
	if hostname == "" && w.alone && !w.shared[containerv1.Namespace_UTS] {
		hostname = spec.GetId()
		if hostname = hostname[strings.LastIndexByte(hostname, '.')+1:]; len(hostname) > shortHostname {
			hostname = hostname[:shortHostname]
		}
	}
	if w.ownUTS {
		own(containerv1.Namespace_UTS)
	}
	if hostname != "" && merged.Owners["hostname"] == "" {
		own(containerv1.Namespace_UTS)
		p.Hostname = hostname
		merged.Owners["hostname"] = dockerOwner
	}
}

// shortHostname is how much of its id a container without a hostname has for one; Docker's number.
const shortHostname = 12

// runsAs is whom the container runs as: the user it names, else the image's, else the task's.
func (w *dockerWish) runsAs(spec *containerv1.Container, image *containerv1.ImageConfig) string {
	if w == nil || w.user || image.GetUser() == "" {
		return spec.GetUser()
	}
	return image.GetUser()
}

// knowsUser says whether no file of the image is needed to tell whom the container runs as, its user being a number.
func (w *dockerWish) knowsUser() bool {
	return w == nil || w.user && !slices.ContainsFunc(w.groups, func(g string) bool {
		_, err := strconv.ParseUint(g, 10, 32)
		return err != nil
	})
}

// configOf is an image's configuration as it holds for the container.
func (w *dockerWish) configOf(image *containerv1.ImageConfig) *containerv1.ImageConfig {
	if w == nil && image.GetStopSignal() == "" || w != nil && w.stopSignal == "" {
		return image
	}
	if image = proto.CloneOf(image); image == nil { // others have it, too
		image = &containerv1.ImageConfig{}
	}
	image.StopSignal = ""
	if w != nil {
		image.StopSignal = w.stopSignal
	}
	return image
}

// joinGroups adds the groups that the container asks for, by number or as its image calls them.
func (c *Containerizer) joinGroups(w *dockerWish, who *launcher.User, rootfs string) error {
	if w == nil || len(w.groups) == 0 || !c.cfg.SwitchUser {
		return nil
	}
	more, err := lookupGroups(w.groups, rootfs)
	if err != nil {
		return fmt.Errorf("container.docker: parameter group-add: %w", err)
	}
	for _, g := range more {
		if g == 0 && who.GID != 0 && !slices.Contains(who.Groups, 0) {
			return errors.New("container.docker: parameter group-add: root's group is for those who have it")
		}
		if !slices.Contains(who.Groups, g) {
			who.Groups = append(slices.Clone(who.Groups), g)
		}
	}
	return nil
}

// keepsRoot refuses root to tasks of others: what their framework was allowed to run as is the task's user. name is what
// who was looked up by.
func (c *Containerizer) keepsRoot(w *dockerWish, name string, who launcher.User, rootfs string) error {
	if w == nil || who.UID != 0 || name == w.taskUser {
		return nil
	}
	task, err := c.identify(w.taskUser, rootfs)
	if err != nil {
		return err
	}
	if task.UID != 0 {
		return fmt.Errorf("container.docker: user %q is root, and the task is %q's: want another by the parameter user, or a task of root's", name, w.taskUser)
	}
	return nil
}

// dockerMachine is what a container of type DOCKER needs to know of the machine.
type dockerMachine struct {
	// Finds a device node and says its path without links.
	device func(name string) (resolved string, node *containerv1.Device, err error)
	// The most capabilities that anything the agent starts can have, as CAP_NET_RAW.
	capabilities func() ([]string, error)
}

// thisMachine is the one that the agent runs on.
func thisMachine() dockerMachine {
	return dockerMachine{device: deviceOf, capabilities: func() ([]string, error) {
		mask, err := supervised.BoundingSet()
		return supervised.CapabilityNames(mask), err
	}}
}

func deviceOf(name string) (string, *containerv1.Device, error) {
	resolved, err := filepath.EvalSymlinks(name)
	if err != nil {
		return "", nil, err
	}
	var st unix.Stat_t
	if err := unix.Stat(resolved, &st); err != nil {
		return "", nil, fmt.Errorf("stat %s: %w", resolved, err)
	}
	d := &containerv1.Device{
		Major: int64(unix.Major(uint64(st.Rdev))), Minor: int64(unix.Minor(uint64(st.Rdev))),
		Mode: st.Mode & 0o777, Uid: st.Uid, Gid: st.Gid,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		d.Type = "b"
	case unix.S_IFCHR:
		d.Type = "c"
	default:
		return "", nil, fmt.Errorf("%s is no device node", resolved)
	}
	return resolved, d, nil
}

// mayUse says whether the operator lends a device node to containers.
func (cfg DockerConfig) mayUse(name string) bool {
	return slices.ContainsFunc(cfg.Devices, func(pattern string) bool {
		ok, err := path.Match(pattern, name)
		return ok && err == nil
	})
}
