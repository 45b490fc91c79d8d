package containerizer

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// Mesos's executor for such tasks hands a framework what `docker inspect` prints, in the data of TASK_RUNNING: an array
// of one container. Frameworks take addresses and ports out of it. What follows are those of its fields that are true
// here, under their names there; a field that is not here is one that has no meaning without a daemon.

type inspected struct {
	ID              string `json:"Id"`
	Created         string
	Path            string
	Args            []string
	State           inspectedState
	Image           string // as it was asked for
	Name            string
	Platform        string
	HostConfig      inspectedHost
	Config          inspectedConfig
	NetworkSettings inspectedNetworks
}

type inspectedState struct {
	Status                                       string
	Running, Paused, Restarting, OOMKilled, Dead bool
	Pid                                          int32
	ExitCode                                     int
	Error                                        string
	StartedAt, FinishedAt                        string
}

type inspectedHost struct {
	Binds          []string
	NetworkMode    string
	PortBindings   map[string][]inspectedBinding
	RestartPolicy  struct{ Name string }
	CapAdd         []string
	CapDrop        []string
	DNS            []string `json:"Dns"`
	DNSSearch      []string `json:"DnsSearch"`
	DNSOptions     []string `json:"DnsOptions"`
	ExtraHosts     []string
	Privileged     bool
	ReadonlyRootfs bool
	Init           bool
	Memory         int64 // bytes
	NanoCPUs       int64 `json:"NanoCpus"`
}

type inspectedConfig struct {
	Hostname     string
	User         string
	ExposedPorts map[string]struct{} `json:",omitempty"`
	Tty          bool
	Env          []string
	Cmd          []string
	Image        string
	WorkingDir   string
	Entrypoint   []string
	Labels       map[string]string
	StopSignal   string `json:",omitempty"`
}

type inspectedNetworks struct {
	Ports             map[string][]inspectedBinding
	IPAddress         string
	GlobalIPv6Address string
	Networks          map[string]inspectedNetwork
}

type inspectedNetwork struct {
	IPAddress         string
	GlobalIPv6Address string
}

type inspectedBinding struct {
	HostIP   string `json:"HostIp"`
	HostPort string
}

// neverEnded is how a daemon writes the end of a container that has not ended.
const neverEnded = "0001-01-01T00:00:00Z"

// Inspect describes a running container of type DOCKER in the words of `docker inspect`, in JSON. asked is its
// ContainerInfo as its framework wrote it, status what Status said of it. Variables whose values are secrets are left
// out: they are read from the store of secrets, and not to be sent about.
func (c *Containerizer) Inspect(id string, asked *mesosv1.ContainerInfo, status *mesosv1.ContainerStatus) ([]byte, error) {
	ct, err := c.find(id)
	if err != nil {
		return nil, err
	}
	ct.mu.Lock()
	spec, merged, pid := ct.spec, ct.merged.GetMerged(), ct.pid
	ct.mu.Unlock()
	b, err := json.Marshal([]*inspected{inspect(spec, merged, pid, asked, status, time.Now())})
	if err != nil {
		return nil, fmt.Errorf("inspect container %s: %w", id, err)
	}
	return b, nil
}

func inspect(spec *containerv1.Container, merged *containerv1.Proposal, pid int32, asked *mesosv1.ContainerInfo, status *mesosv1.ContainerStatus, now time.Time) *inspected {
	docker, image := asked.GetDocker(), spec.GetImageConfig()
	parameter := func(keys ...string) (values []string) {
		for _, p := range docker.GetParameters() {
			if slices.Contains(keys, p.GetKey()) {
				values = append(values, p.GetValue())
			}
		}
		return values
	}
	on := func(key string) bool {
		var set bool
		for _, v := range parameter(key) {
			_ = flag(v, &set) // it was read before
		}
		return set
	}
	i := &inspected{
		ID: spec.GetId(), Name: "/mesos-" + spec.GetId(), Image: docker.GetImage(), Platform: "linux",
		Created: spec.GetCreated().AsTime().UTC().Format(time.RFC3339Nano),
		State:   inspectedState{Status: "running", Running: true, Pid: pid, StartedAt: now.UTC().Format(time.RFC3339Nano), FinishedAt: neverEnded},
		HostConfig: inspectedHost{
			NetworkMode: strings.ToLower(docker.GetNetwork().String()), Privileged: docker.GetPrivileged(),
			CapAdd: parameter("cap-add"), CapDrop: parameter("cap-drop"), ReadonlyRootfs: on("read-only"), Init: on("init"),
			DNS: parameter("dns"), DNSSearch: parameter("dns-search"), DNSOptions: parameter("dns-option", "dns-opt"),
			ExtraHosts: parameter("add-host"), PortBindings: map[string][]inspectedBinding{},
		},
		Config: inspectedConfig{
			Hostname: merged.GetHostname(), User: spec.GetUser(), Tty: spec.GetStreams() == containerv1.Container_TERMINAL,
			Env: inspectedEnv(spec, merged), Image: docker.GetImage(), Labels: map[string]string{}, StopSignal: image.GetStopSignal(),
			WorkingDir: cmp.Or(merged.GetWorkingDirectory(), image.GetWorkingDirectory()), Entrypoint: image.GetEntrypoint(),
		},
	}
	maps.Copy(i.Config.Labels, image.GetLabels())
	maps.Copy(i.Config.Labels, spec.GetLabels())
	if argv := merged.GetArguments(); len(argv) > 0 {
		i.Path, i.Args = argv[0], argv[1:]
	}
	if e := parameter("entrypoint"); len(e) > 0 {
		i.Config.Entrypoint = e[len(e)-1:]
	}
	if command := spec.GetCommand(); command.GetShell() {
		i.Config.Entrypoint, i.Config.Cmd = nil, []string{"/bin/sh", "-c", command.GetValue()}
	} else if i.Config.Cmd = command.GetArguments(); command.GetValue() != "" {
		i.Config.Cmd = append([]string{command.GetValue()}, command.GetArguments()...)
	} else if len(i.Config.Cmd) == 0 && len(parameter("entrypoint")) == 0 {
		i.Config.Cmd = image.GetCmd()
	}
	i.HostConfig.RestartPolicy.Name = "no"
	for _, r := range spec.GetResources() {
		switch r.GetName() {
		case "mem":
			i.HostConfig.Memory += int64(r.GetScalar().GetValue() * (1 << 20))
		case "cpus":
			i.HostConfig.NanoCPUs += int64(r.GetScalar().GetValue() * 1e9)
		}
	}
	i.bind(spec.GetContainerInfo().GetVolumes())
	i.attach(spec.GetContainerInfo().GetNetworkInfos(), status.GetNetworkInfos())
	return i
}

// inspectedEnv are the variables that the container has and anybody may see.
func inspectedEnv(spec *containerv1.Container, merged *containerv1.Proposal) []string {
	env := map[string]string{}
	for _, kv := range spec.GetImageConfig().GetEnvironment() {
		name, value, _ := strings.Cut(kv, "=")
		env[name] = value
	}
	maps.Copy(env, merged.GetEnvironment())
	for _, v := range spec.GetCommand().GetEnvironment().GetVariables() {
		if v.GetType() == mesosv1.Environment_Variable_SECRET {
			delete(env, v.GetName())
			continue
		}
		env[v.GetName()] = v.GetValue()
	}
	list := []string{}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		list = append(list, name+"="+env[name])
	}
	return list
}

// bind adds the folders of the machine that the container sees.
func (i *inspected) bind(volumes []*mesosv1.Volume) {
	for _, v := range volumes {
		source := cmp.Or(v.GetHostPath(), v.GetSource().GetHostPath().GetPath(), v.GetSource().GetDockerVolume().GetName())
		if source == "" {
			continue
		}
		i.HostConfig.Binds = append(i.HostConfig.Binds, source+":"+v.GetContainerPath()+":"+strings.ToLower(v.GetMode().String()))
	}
}

// attach adds the networks: asked for with their ports, given with their addresses.
func (i *inspected) attach(asked, given []*mesosv1.NetworkInfo) {
	s := &i.NetworkSettings
	s.Ports, s.Networks = map[string][]inspectedBinding{}, map[string]inspectedNetwork{}
	for _, n := range asked {
		if n.GetName() != "" && i.HostConfig.NetworkMode == "user" {
			i.HostConfig.NetworkMode = n.GetName()
		}
		for _, m := range n.GetPortMappings() {
			name := fmt.Sprintf("%d/%s", m.GetContainerPort(), cmp.Or(strings.ToLower(m.GetProtocol()), "tcp"))
			s.Ports[name] = append(s.Ports[name], inspectedBinding{HostIP: "0.0.0.0", HostPort: fmt.Sprint(m.GetHostPort())})
			if i.Config.ExposedPorts == nil {
				i.Config.ExposedPorts = map[string]struct{}{}
			}
			i.Config.ExposedPorts[name] = struct{}{}
		}
	}
	maps.Copy(i.HostConfig.PortBindings, s.Ports)
	for _, n := range given {
		var at inspectedNetwork
		for _, a := range n.GetIpAddresses() {
			if strings.Contains(a.GetIpAddress(), ":") {
				at.GlobalIPv6Address = cmp.Or(at.GlobalIPv6Address, a.GetIpAddress())
			} else {
				at.IPAddress = cmp.Or(at.IPAddress, a.GetIpAddress())
			}
		}
		s.IPAddress, s.GlobalIPv6Address = cmp.Or(s.IPAddress, at.IPAddress), cmp.Or(s.GlobalIPv6Address, at.GlobalIPv6Address)
		if name := cmp.Or(n.GetName(), i.HostConfig.NetworkMode); i.HostConfig.NetworkMode != "host" {
			s.Networks[name] = at
		}
	}
	if mode := i.HostConfig.NetworkMode; len(s.Networks) == 0 {
		s.Networks[mode] = inspectedNetwork{}
	}
}
