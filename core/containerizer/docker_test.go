package containerizer

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// dockerSpec is a container of type DOCKER, its ContainerInfo in text.
func dockerSpec(t *testing.T, text string) *containerv1.Container {
	t.Helper()
	spec := testContainer(t, "c1")
	spec.TaskId = "task"
	spec.ContainerInfo = &mesosv1.ContainerInfo{}
	if err := (prototext.UnmarshalOptions{AllowPartial: true}).Unmarshal([]byte(text), spec.ContainerInfo); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	ports := mesosv1.Value_Range{Begin: proto.Uint64(31000), End: proto.Uint64(31009)}
	spec.Resources = append(spec.Resources, &mesosv1.Resource{
		Name: proto.String("ports"), Type: mesosv1.Value_RANGES.Enum(), Ranges: &mesosv1.Value_Ranges{Range: []*mesosv1.Value_Range{&ports}},
	})
	if spec.ContainerInfo.Type == nil {
		spec.ContainerInfo.Type = mesosv1.ContainerInfo_DOCKER.Enum()
	}
	return spec
}

// fakeDevice is a machine with a fuse, and a disk that has another name, too.
func fakeDevice(name string) (string, *containerv1.Device, error) {
	switch name {
	case "/dev/fuse":
		return name, &containerv1.Device{Type: "c", Major: 10, Minor: 229, Mode: 0o666}, nil
	case "/dev/lent/disk":
		return "/dev/sda", &containerv1.Device{Type: "b", Major: 8}, nil
	}
	return "", nil, errors.New("no such device")
}

// fakeMachine has those devices, and nobody who could load kernel modules.
var fakeMachine = dockerMachine{device: fakeDevice, capabilities: func() ([]string, error) {
	var list []string
	for name := range mesosv1.CapabilityInfo_Capability_value {
		if name != "SYS_MODULE" {
			list = append(list, "CAP_"+name)
		}
	}
	return list, nil
}}

// TestDockerIsSaidInTheWordsOfMesos gives each way to ask for something what becomes of the ContainerInfo and of the
// proposal. What every container of the type has is left out of both.
func TestDockerIsSaidInTheWordsOfMesos(t *testing.T) {
	cfg := DockerConfig{Devices: []string{"/dev/fuse", "/dev/lent/*"}}
	param := func(pairs ...string) string {
		text := `docker { image: "i" `
		for n := 0; n < len(pairs); n += 2 {
			text += `parameters { key: "` + pairs[n] + `" value: "` + pairs[n+1] + `" } `
		}
		return text + "}"
	}
	for name, test := range map[string]struct {
		docker, info, base string
		check              func(*containerv1.Container, *dockerWish) bool
	}{
		"image": {docker: `docker { image: "library/busybox:1" }`, info: `mesos { image { type: DOCKER docker { name: "library/busybox:1" } } }`},
		"force_pull_image": {docker: `docker { image: "i" force_pull_image: true }`,
			info: `mesos { image { type: DOCKER docker { name: "i" } cached: false } }`},
		"what is no daemon's stays": {docker: `docker { image: "i" } hostname: "h" tty_info {} volumes { mode: RO container_path: "/d" host_path: "/h" }`,
			info: `hostname: "h" tty_info {} volumes { mode: RO container_path: "/d" host_path: "/h" }`},
		"host network of no name": {docker: `docker { image: "i" network: HOST } network_infos { groups: "g" }`, info: `network_infos { groups: "g" }`},
		"no network":              {docker: `docker { image: "i" network: NONE }`, base: `namespaces { type: NETWORK }`},
		"bridge": {docker: `docker { image: "i" network: BRIDGE port_mappings { host_port: 31000 container_port: 80 protocol: "tcp" } }`,
			info: `network_infos { name: "mosaic" port_mappings { host_port: 31000 container_port: 80 protocol: "tcp" } }`},
		"network of a user": {docker: `docker { image: "i" network: USER port_mappings { host_port: 31000 container_port: 80 } parameters { key: "ip" value: "10.0.0.7" } }
				network_infos { name: "blue" labels { labels { key: "a" value: "b" } } }`,
			info: `network_infos { name: "blue" labels { labels { key: "a" value: "b" } } port_mappings { host_port: 31000 container_port: 80 }
				ip_addresses { protocol: IPv4 ip_address: "10.0.0.7" } }`},
		"publish": {docker: `docker { image: "i" network: BRIDGE parameters { key: "publish" value: "31000:53/udp" } }`,
			info: `network_infos { name: "mosaic" port_mappings { host_port: 31000 container_port: 53 protocol: "udp" } }`},
		"env": {docker: param("env", "A=1", "env", "B=x=y"), check: func(c *containerv1.Container, _ *dockerWish) bool {
			v := c.GetCommand().GetEnvironment().GetVariables()
			return len(v) == 2 && v[0].GetName() == "A" && v[1].GetValue() == "x=y"
		}},
		"label": {docker: param("label", "a=b", "label", "c"), check: func(c *containerv1.Container, _ *dockerWish) bool {
			v, ok := c.GetLabels()["c"]
			return c.GetLabels()["a"] == "b" && ok && v == ""
		}},
		"user":       {docker: param("user", "7:8"), check: func(c *containerv1.Container, w *dockerWish) bool { return c.GetUser() == "7:8" && w.user }},
		"workdir":    {docker: param("workdir", "/srv/"), base: `working_directory: "/srv"`},
		"entrypoint": {docker: param("entrypoint", "/run"), check: func(_ *containerv1.Container, w *dockerWish) bool { return *w.entrypoint == "/run" }},
		"hostname":   {docker: param("hostname", "h"), info: `hostname: "h"`},
		"volume": {docker: param("volume", "/h:/c", "volume", "/h2:/c2:ro,rslave"), info: `
			volumes { mode: RW container_path: "/c" source { type: HOST_PATH host_path { path: "/h" } } }
			volumes { mode: RO container_path: "/c2" source { type: HOST_PATH host_path { path: "/h2" mount_propagation { mode: HOST_TO_CONTAINER } } } }`},
		"volume of a driver": {docker: param("volume", "data:/c:ro", "volume-driver", "rexray"),
			info: `volumes { mode: RO container_path: "/c" source { type: DOCKER_VOLUME docker_volume { driver: "rexray" name: "data" } } }`},
		"volume_driver": {docker: `docker { image: "i" volume_driver: "rexray" } volumes { mode: RW container_path: "/c" host_path: "data" }`,
			info: `volumes { mode: RW container_path: "/c" source { type: DOCKER_VOLUME docker_volume { driver: "rexray" name: "data" } } }`},
		"tmpfs": {docker: param("tmpfs", "/run:size=64m,exec", "tmpfs", "/t"), base: `
			mounts { destination: "/run" source: "tmpfs" type: "tmpfs" options: ["nosuid", "nodev", "size=64m", "exec"] }
			mounts { destination: "/t" source: "tmpfs" type: "tmpfs" options: ["nosuid", "nodev", "noexec"] }`},
		"cap-add and cap-drop": {docker: param("cap-drop", "ALL", "cap-add", "CAP_NET_ADMIN", "cap-add", "chown"),
			info: `linux_info { bounding_capabilities { capabilities: [CHOWN, NET_ADMIN] } }`},
		"cap-add of all there are": {docker: param("cap-add", "ALL", "cap-drop", "SYS_ADMIN"), check: func(_ *containerv1.Container, w *dockerWish) bool {
			return len(w.caps.GetBounding()) == len(mesosv1.CapabilityInfo_Capability_value)-3 // neither UNKNOWN nor what there is not nor what is dropped
		}},
		"capabilities of linux_info": {docker: `docker { image: "i" } linux_info { effective_capabilities { capabilities: KILL } }`,
			info: `linux_info { effective_capabilities { capabilities: KILL } }`},
		"no-new-privileges":  {docker: param("security-opt", "no-new-privileges"), check: func(_ *containerv1.Container, w *dockerWish) bool { return w.noNewPrivs }},
		"no-new-privileges:": {docker: param("security-opt", "no-new-privileges:true"), check: func(_ *containerv1.Container, w *dockerWish) bool { return w.noNewPrivs }},
		"seccomp=unconfined": {docker: param("security-opt", "seccomp=unconfined"), info: `linux_info { seccomp { unconfined: true } }`},
		"seccomp=builtin":    {docker: param("security-opt", "seccomp=builtin"), info: `linux_info { seccomp { profile_name: "default" } }`},
		"ulimit": {docker: param("ulimit", "nofile=1024:2048", "ulimit", "core=-1"),
			info: `rlimit_info { rlimits { type: RLMT_NOFILE soft: 1024 hard: 2048 } rlimits { type: RLMT_CORE soft: 18446744073709551615 hard: 18446744073709551615 } }`},
		"read-only": {docker: param("read-only", "true"), check: func(_ *containerv1.Container, w *dockerWish) bool { return w.readOnly }},
		"sysctl":    {docker: param("sysctl", "net.core.somaxconn=1024"), base: `sysctls { key: "net.core.somaxconn" value: "1024" }`},
		"shm-size":  {docker: param("shm-size", "1500k"), info: `linux_info { shm_size: 2 }`},
		"pid=host":  {docker: param("pid", "host"), info: `linux_info { share_pid_namespace: true }`},
		"ipc=host":  {docker: param("ipc", "host"), info: `linux_info { ipc_mode: SHARE_PARENT }`},
		"uts=host": {docker: param("uts", "host"), check: func(_ *containerv1.Container, w *dockerWish) bool {
			return w.shared[containerv1.Namespace_UTS]
		}},
		"cgroupns=private": {docker: param("cgroupns", "private"), base: `namespaces { type: CGROUP }`},
		"cpuset":           {docker: param("cpuset-cpus", "0-1", "cpuset-mems", "0"), base: `cgroup { cpuset_cpus: "0-1" cpuset_mems: "0" }`},
		"memory-swap":      {docker: param("memory-swap", "1g"), base: `cgroup { memory_swap_bytes: 1073741824 }`},
		"memory-swap=-1":   {docker: param("memory-swap", "-1"), base: `cgroup { memory_swap_bytes: -1 }`},
		"pids-limit":       {docker: param("pids-limit", "100"), base: `cgroup { pids_limit: 100 }`},
		"oom-score-adj":    {docker: param("oom-score-adj", "-5"), base: `oom_score_adj: -5`},
		"device": {docker: param("device", "/dev/fuse", "device", "/dev/fuse:/dev/other:r"), base: `
			devices { path: "/dev/fuse" type: "c" major: 10 minor: 229 mode: 438 access: "rwm" }
			devices { path: "/dev/other" type: "c" major: 10 minor: 229 mode: 438 access: "r" }`},
		"init": {docker: param("init", "true"), check: func(_ *containerv1.Container, w *dockerWish) bool { return w.init }},
		"stop-signal": {docker: param("stop-signal", "SIGUSR1", "stop-timeout", "30"), check: func(_ *containerv1.Container, w *dockerWish) bool {
			return w.stopSignal == "SIGUSR1"
		}},
		"group-add": {docker: param("group-add", "44", "group-add", "video"), check: func(_ *containerv1.Container, w *dockerWish) bool {
			return slices.Equal(w.groups, []string{"44", "video"}) && !w.knowsUser()
		}},
		"domainname": {docker: param("domainname", "example.com"), base: `sysctls { key: "kernel.domainname" value: "example.com" }`,
			check: func(_ *containerv1.Container, w *dockerWish) bool { return w.ownUTS }},
		"tty": {docker: param("tty", "true"), info: `tty_info {}`, check: func(c *containerv1.Container, _ *dockerWish) bool {
			return c.GetStreams() == containerv1.Container_TERMINAL
		}},
		"pull=always": {docker: param("pull", "always"), info: `mesos { image { type: DOCKER docker { name: "i" } cached: false } }`},
		"network":     {docker: param("network", "blue"), info: `network_infos { name: "blue" }`},
		"net=none":    {docker: param("net", "none"), base: `namespaces { type: NETWORK }`},
		"network of both": {docker: `docker { image: "i" network: USER parameters { key: "network" value: "blue" } } network_infos { groups: "g" }`,
			info: `network_infos { name: "blue" groups: "g" }`},
		"mount": {docker: param("mount", "type=bind,source=/h,target=/c,readonly,bind-propagation=rslave", "mount", "type=tmpfs,target=/t,tmpfs-size=1m"),
			info: `volumes { mode: RO container_path: "/c" source { type: HOST_PATH host_path { path: "/h" mount_propagation { mode: HOST_TO_CONTAINER } } } }`,
			base: `mounts { destination: "/t" source: "tmpfs" type: "tmpfs" options: ["nosuid", "nodev", "noexec", "size=1m"] }`},
		"mount of a driver": {docker: param("mount", "src=data,dst=/c,ro=true", "volume-driver", "rexray"),
			info: `volumes { mode: RO container_path: "/c" source { type: DOCKER_VOLUME docker_volume { driver: "rexray" name: "data" } } }`},
		"what is addressed to a daemon": {docker: param("name", "web", "log-driver", "syslog", "log-opt", "tag=x"),
			check: func(_ *containerv1.Container, w *dockerWish) bool {
				return slices.Equal(w.unheeded, []string{"name=web", "log-driver=syslog", "log-opt=tag=x"})
			}},
		"what is so anyway": {docker: param("rm", "true", "init", "false", "restart", "no", "expose", "80", "userns", "host", "privileged", "false", "security-opt", "apparmor=unconfined",
			"no-healthcheck", "true", "platform", "linux", "pull", "missing")},
	} {
		t.Run(name, func(t *testing.T) {
			spec := dockerSpec(t, test.docker)
			wish, err := asDocker(spec, cfg, fakeMachine)
			if err != nil {
				t.Fatalf("asDocker: %v", err)
			}
			want := dockerSpec(t, "type: MESOS "+test.info).ContainerInfo
			if want.Mesos == nil {
				want.Mesos = &mesosv1.ContainerInfo_MesosInfo{Image: &mesosv1.Image{Type: mesosv1.Image_DOCKER.Enum(), Docker: &mesosv1.Image_Docker{Name: proto.String("i")}}}
			}
			if want.LinuxInfo == nil {
				want.LinuxInfo = &mesosv1.LinuxInfo{}
			}
			if len(wish.caps.GetBounding()) > len(dockerCapabilities) {
				want.LinuxInfo.BoundingCapabilities = spec.GetContainerInfo().GetLinuxInfo().GetBoundingCapabilities() // told by check
			}
			if want.LinuxInfo.BoundingCapabilities == nil && want.LinuxInfo.EffectiveCapabilities == nil {
				want.LinuxInfo.BoundingCapabilities = &mesosv1.CapabilityInfo{}
				for _, c := range dockerCapabilities {
					want.LinuxInfo.BoundingCapabilities.Capabilities = append(want.LinuxInfo.BoundingCapabilities.Capabilities,
						mesosv1.CapabilityInfo_Capability(mesosv1.CapabilityInfo_Capability_value[c]))
				}
			}
			if diff := cmp.Diff(want, spec.GetContainerInfo(), protocmp.Transform()); diff != "" {
				t.Errorf("ContainerInfo (-want +got):\n%s", diff)
			}
			base := &containerv1.Proposal{}
			if err := prototext.Unmarshal([]byte(test.base), base); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(base, wish.base, protocmp.Transform()); diff != "" {
				t.Errorf("proposal (-want +got):\n%s", diff)
			}
			if test.check != nil && !test.check(spec, wish) {
				t.Errorf("asDocker: got %v and %+v", spec, wish)
			}
		})
	}
}

func TestDockerThatCannotBeGivenIsRefusedByName(t *testing.T) {
	for text, want := range map[string]string{
		``:                                       "without image",
		`docker { image: "i" } mesos {}`:         "MESOS",
		`docker { image: "i" privileged: true }`: "privileged",
		`docker { image: "i" port_mappings { host_port: 1 container_port: 2 } }`:                                                            "port_mappings: network HOST",
		`docker { image: "i" network: NONE parameters { key: "publish" value: "1:2" } }`:                                                    "port_mappings: network NONE",
		`docker { image: "i" parameters { key: "ip" value: "10.0.0.1" } }`:                                                                  "parameter ip",
		`docker { image: "i" network: BRIDGE port_mappings { host_port: 80 container_port: 80 } }`:                                          "host port 80",
		`docker { image: "i" network: HOST } network_infos { name: "blue" }`:                                                                `"blue"`,
		`docker { image: "i" network: BRIDGE } network_infos { name: "blue" }`:                                                              `"blue"`,
		`docker { image: "i" network: USER }`:                                                                                               "network_infos[0].name",
		`docker { image: "i" network: USER } network_infos { name: "a" } network_infos { name: "b" }`:                                       "got 2 networks",
		`docker { image: "i" } volumes { mode: RW container_path: "/c" }`:                                                                   "volumes[0]",
		`docker { image: "i" parameters { key: "volume" value: "data:/c" } }`:                                                               "volume-driver",
		`docker { image: "i" parameters { key: "cap-add" value: "FLY" } }`:                                                                  "FLY",
		`docker { image: "i" parameters { key: "cap-add" value: "KILL" } } linux_info { effective_capabilities { capabilities: KILL } }`:    "cap-add",
		`docker { image: "i" parameters { key: "security-opt" value: "seccomp=unconfined" } } linux_info { seccomp { profile_name: "p" } }`: `"p"`,
		`docker { image: "i" parameters { key: "hostname" value: "a" } } hostname: "b"`:                                                     "parameter hostname",
	} {
		_, err := asDocker(dockerSpec(t, text), DockerConfig{}, fakeMachine)
		if err == nil || !strings.HasPrefix(err.Error(), "container.docker: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("asDocker(%s): got %v, want container.docker and %q", text, err, want)
		}
	}
	for _, p := range []string{
		"env=A", "env==x", "user=", "workdir=srv", "volume=/h", "volume=/h:c", "volume=/h:/c:loud", "volume=a/b:/c", "tmpfs=run", "tmpfs=/:size=1m",
		"tmpfs=/run:uppercase", "security-opt=seccomp=/etc/p.json", "security-opt=apparmor=mine", "read-only=maybe", "ulimit=nofile", "ulimit=feet=3",
		"ulimit=nofile=2:1", "ulimit=nofile=x", "sysctl=a", "device=/dev/fuse:/dev/x:rx", "device=/dev/sda", "device=/dev/lent/disk", "device=/dev/lent/none",
		"publish=80", "publish=1-2:3-4", "publish=99999:1", "publish=1:2/sctp", "ip=x", "ip6=10.0.0.1", "pid=container:x", "ipc=none", "userns=keep", "cpuset-cpus=all",
		"memory-swap=lots", "memory-swap=9999999999t", "pids-limit=x", "oom-score-adj=2000", "shm-size=0", "shm-size=-1m", "memory=1g", "cpus=2", "gpus=all", "network=blue",
		"network=container:x", "dns=localhost", "dns=fe80::1%eth0", "dns-search=a b", "dns-option=", "add-host=a", "add-host=a:b", "add-host=:1.2.3.4",
		"add-host=a:host-gateway", "rm=false", "init=maybe", "restart=always", "tty=perhaps", "privileged=true", "env-file=f", "volumes-from=x",
		"no-such-option=1", "uts=container:x", "stop-signal=SIGLOUD", "stop-signal=65", "stop-signal=RTMIN-1", "stop-timeout=-1", "stop-timeout=soon",
		"group-add=", "group-add=a:b", "domainname=", "mount=type=bind,source=a,target=/b", "mount=type=bind,source=/a", "mount=type=npipe,source=/a,target=/b",
		"mount=type=bind,source=/a,target=/b,loud", "pull=never", "platform=windows", "runtime=kata", "attach=stdin", "health-cmd=true", "cgroup-parent=/x",
		"blkio-weight=10", "device-cgroup-rule=c 1:1 r", "publish-all=true", "mac-address=0:0:0:0:0:1", "storage-opt=size=1g", "memory-swappiness=10", "cidfile=/f",
	} {
		key, value, _ := strings.Cut(p, "=")
		spec := dockerSpec(t, `docker { image: "i" network: BRIDGE }`)
		spec.ContainerInfo.Docker.Parameters = []*mesosv1.Parameter{{Key: &key, Value: &value}}
		_, err := asDocker(spec, DockerConfig{Devices: []string{"/dev/lent/*"}}, fakeMachine)
		if err == nil || !strings.HasPrefix(err.Error(), "container.docker: parameter "+key+"=") {
			t.Errorf("asDocker with %s: got %v, want the parameter refused by name", p, err)
		}
	}
}

func TestOtherContainersAreNoDockers(t *testing.T) {
	for _, info := range []*mesosv1.ContainerInfo{nil, {Type: mesosv1.ContainerInfo_MESOS.Enum()}} {
		spec := testContainer(t, "c1")
		spec.ContainerInfo = info
		before := proto.CloneOf(spec)
		if wish, err := asDocker(spec, DockerConfig{}, fakeMachine); wish != nil || err != nil || !proto.Equal(spec, before) {
			t.Errorf("asDocker(%v): got %v, %v and %v, want it left alone", info, wish, err, spec)
		}
	}
}

func TestCommandOfADockerContainerIsWhatADaemonRuns(t *testing.T) {
	e, c := []string{"/entry", "-e"}, []string{"cmd", "-c"}
	entry, none := "/other", ""
	for _, test := range []struct {
		shell            bool
		value            string
		args             []string
		entrypoint       *string
		neither, c, e, b string // with an image of neither, of a command only, of an entrypoint only, of both; "" is an error
	}{
		{c: "cmd -c", e: "/entry -e", b: "/entry -e cmd -c"},
		{args: []string{"a"}, neither: "a", c: "a", e: "/entry -e a", b: "/entry -e a"},
		{value: "v", neither: "v", c: "v", e: "/entry -e v", b: "/entry -e v"},
		{value: "v", args: []string{"a", "b"}, neither: "v a b", c: "v a b", e: "/entry -e v a b", b: "/entry -e v a b"},
		{shell: true, value: "v | w", neither: "/bin/sh -c v | w", c: "/bin/sh -c v | w", e: "/bin/sh -c v | w", b: "/bin/sh -c v | w"},
		{shell: true},
		{entrypoint: &entry, neither: "/other", c: "/other", e: "/other", b: "/other"},
		{entrypoint: &entry, value: "v", args: []string{"a"}, neither: "/other v a", c: "/other v a", e: "/other v a", b: "/other v a"},
		{entrypoint: &none},
		{entrypoint: &none, value: "v", neither: "v", c: "v", e: "v", b: "v"},
		{entrypoint: &entry, shell: true, value: "v"},
	} {
		command := &mesosv1.CommandInfo{Shell: &test.shell, Arguments: test.args}
		if test.value != "" {
			command.Value = &test.value
		}
		for image, want := range map[*containerv1.ImageConfig]string{
			{}: test.neither, {Cmd: c}: test.c, {Entrypoint: e}: test.e, {Entrypoint: e, Cmd: c}: test.b,
		} {
			got, err := dockerCommandLine(command, image, test.entrypoint)
			if strings.Join(got, " ") != want || (err != nil) != (want == "") {
				t.Errorf("dockerCommandLine(%v, %v, %v) = %q, %v, want %q", command, image, test.entrypoint, got, err, want)
			}
		}
	}
}

// dockerImages has one image for all names.
type dockerImages struct{ config containerv1.ImageConfig }

func (i *dockerImages) Provision(context.Context, string, string) (string, *containerv1.ImageConfig, error) {
	return "/rootfs", &i.config, nil
}
func (*dockerImages) Remove(context.Context, string) error    { return nil }
func (*dockerImages) Recover(context.Context, []string) error { return nil }

// launchDocker launches a container of type DOCKER on a fake machine and returns what the launcher was asked for.
func launchDocker(t *testing.T, text string, change func(*Config), isolators ...Isolator) (*launcher.Request, *containerv1.Spec, error) {
	t.Helper()
	m := newMachine(t)
	for _, i := range isolators {
		i.(*fakeIsolator).m = m
	}
	c, _ := startAgent(t, m, t.TempDir(), isolators...)
	defer stopAgent(t, c)
	c.cfg.Images = &dockerImages{}
	if change != nil {
		change(&c.cfg)
	}
	spec := dockerSpec(t, text)
	if _, err := c.Launch(t.Context(), spec); err != nil {
		waitFor(t, "nothing to be left", func() bool { return len(m.left("c1")) == 0 })
		return nil, nil, err
	}
	ct, err := c.find("c1")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		m.exit("c1", 0)
		if _, err := c.Wait(t.Context(), "c1"); err != nil {
			t.Error(err)
		}
		if err := c.Forget(t.Context(), "c1"); err != nil {
			t.Error(err)
		}
		waitFor(t, "nothing to be left", func() bool { return len(m.left("c1")) == 0 })
	}()
	return m.process("c1").request, ct.merged, nil
}

func TestDockerContainerHasWhatADaemonGivesToAll(t *testing.T) {
	r, merged, err := launchDocker(t, `docker { image: "/image" network: NONE }`, func(cfg *Config) {
		cfg.Images = &dockerImages{config: containerv1.ImageConfig{Environment: []string{"FROM=image"}}}
	})
	if err != nil {
		t.Fatalf("Launch: %v", err)
	}
	p := r.Proposal
	var own []string
	for _, n := range p.GetNamespaces() {
		own = append(own, n.GetType().String()+n.GetPath())
	}
	slices.Sort(own)
	if want := []string{"IPC", "NETWORK", "PID", "UTS"}; !slices.Equal(own, want) {
		t.Errorf("namespaces: got %v, want own %v", own, want)
	}
	if p.GetHostname() != "c1" || r.Dir != "/" || !slices.Equal(r.Argv, []string{"/bin/sh", "-c", "sleep 1000"}) {
		t.Errorf("request: got hostname %q, folder %q, command line %q", p.GetHostname(), r.Dir, r.Argv)
	}
	if c := p.GetCapabilities(); len(c.GetBounding()) != len(dockerCapabilities) || slices.Contains(c.GetBounding(), "CAP_SYS_ADMIN") ||
		!slices.Equal(c.GetEffective(), c.GetBounding()) || len(c.GetAmbient())+len(c.GetInheritable()) > 0 {
		t.Errorf("capabilities: got %v, want Docker's for root", c)
	}
	for _, v := range []string{"FROM=image", "MESOS_TASK_ID=task", "MESOS_CONTAINER_NAME=mesos-c1"} {
		if !slices.Contains(r.Env, v) {
			t.Errorf("environment: got %q, want %s", r.Env, v)
		}
	}
	for _, field := range []string{"namespaces.PID", "namespaces.NETWORK", "capabilities", "hostname", "arguments"} {
		if merged.Owners[field] != dockerOwner {
			t.Errorf("owner of %s: got %q, want %q", field, merged.Owners[field], dockerOwner)
		}
	}
	if slices.ContainsFunc(p.GetMounts(), func(m *containerv1.Mount) bool { return m.GetDestination() == "/etc/hosts" }) {
		t.Errorf("mounts: got %v, want none of the host's names without its network", p.GetMounts())
	}
}

func TestIsolatorsSeeDockerContainersAsTheirOwnAndKeepTheirSay(t *testing.T) {
	var seen *mesosv1.ContainerInfo
	i := &fakeIsolator{name: "linux", onPrepare: func(_ context.Context, r *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
		seen = r.GetContainer().GetContainerInfo()
		return &isolatorv1.PrepareResponse{Proposal: &containerv1.Proposal{
			Capabilities: &containerv1.Capabilities{Bounding: []string{"CAP_KILL"}}, Hostname: "given",
			Namespaces: []*containerv1.Namespace{{Type: containerv1.Namespace_UTS}, {Type: containerv1.Namespace_NETWORK, Path: "/run/ns"}},
		}}, nil
	}}
	r, merged, err := launchDocker(t, `docker { image: "/image" network: BRIDGE }`, func(cfg *Config) { cfg.Docker.Bridge = "blue" }, i)
	if err != nil {
		t.Fatalf("Launch: %v", err)
	}
	if seen.GetType() != mesosv1.ContainerInfo_MESOS || seen.GetDocker() != nil || seen.GetNetworkInfos()[0].GetName() != "blue" {
		t.Errorf("Prepare: got %v, want a container of type MESOS on blue", seen)
	}
	if c := r.Proposal.GetCapabilities(); !slices.Equal(c.GetBounding(), []string{"CAP_KILL"}) || !slices.Equal(c.GetEffective(), c.GetBounding()) {
		t.Errorf("capabilities: got %v, want the isolator's, all of them root's", c)
	}
	if r.Proposal.GetHostname() != "given" || merged.Owners["hostname"] != "linux" || merged.Owners["namespaces.UTS"] != "linux" {
		t.Errorf("hostname: got %q of %q, want the isolator's", r.Proposal.GetHostname(), merged.Owners["hostname"])
	}
}

func TestDockerContainerAndIsolatorThatWantTheSameAreBothNamed(t *testing.T) {
	i := &fakeIsolator{name: "cpus", proposal: &containerv1.Proposal{Cgroup: &containerv1.CgroupResources{CpusetCpus: "1"}}}
	_, _, err := launchDocker(t, `docker { image: "/image" parameters { key: "cpuset-cpus" value: "0" } }`, nil, i)
	if err == nil || !strings.Contains(err.Error(), "container.docker") || !strings.Contains(err.Error(), "isolator(cpus)") || !strings.Contains(err.Error(), "cgroup.cpuset_cpus") {
		t.Errorf("Launch: got %v, want both and what they set", err)
	}
}

func TestDockerContainerDoesNotRunWithoutWhatItAskedFor(t *testing.T) {
	for text, want := range map[string]string{
		`docker { image: "/image" network: BRIDGE }`:                                           `network "mosaic"`,
		`docker { image: "/image" parameters { key: "ulimit" value: "nofile=10" } }`:           "resource limits",
		`docker { image: "/image" parameters { key: "shm-size" value: "1m" } }`:                "/dev/shm",
		`docker { image: "/image" parameters { key: "volume" value: "/etc:/c" } }`:             "volume at /c",
		`docker { image: "/image" parameters { key: "init" value: "true" } }`:                  "parameter init",
		`docker { image: "/image" network: HOST parameters { key: "network" value: "none" } }`: "parameter network",
	} {
		if _, _, err := launchDocker(t, text, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Launch of %s: got %v, want it refused for %s", text, err, want)
		}
	}
}

func FuzzDockerParameter(f *testing.F) {
	for _, p := range []string{"env A=1", "volume /a:/b:ro", "device /dev/fuse:/dev/x:rw", "ulimit nofile=1:2", "publish 1:2/udp", "shm-size 1g", "tmpfs /t:size=1m", "security-opt seccomp=unconfined"} {
		key, value, _ := strings.Cut(p, " ")
		f.Add(key, value)
	}
	f.Fuzz(func(t *testing.T, key, value string) {
		docker, bridge := mesosv1.ContainerInfo_DOCKER, mesosv1.ContainerInfo_DockerInfo_BRIDGE
		image := "i"
		spec := &containerv1.Container{Id: "c", Command: &mesosv1.CommandInfo{}, ContainerInfo: &mesosv1.ContainerInfo{Type: &docker,
			Docker: &mesosv1.ContainerInfo_DockerInfo{Image: &image, Network: &bridge, Parameters: []*mesosv1.Parameter{{Key: &key, Value: &value}}}}}
		if wish, err := asDocker(spec, DockerConfig{Devices: []string{"/dev/*"}}, fakeMachine); (wish == nil) == (err == nil) {
			t.Errorf("asDocker: got %v, %v, want one of them", wish, err)
		}
	})
}
