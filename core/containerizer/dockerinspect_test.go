package containerizer

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

func TestInspectedContainerIsAsADaemonTellsIt(t *testing.T) {
	const asked = `docker { image: "nginx:1" network: BRIDGE privileged: false
		port_mappings { host_port: 31000 container_port: 80 } port_mappings { host_port: 31001 container_port: 53 protocol: "udp" }
		parameters { key: "dns" value: "192.0.2.53" } parameters { key: "label" value: "a=b" } parameters { key: "volume" value: "/h:/c:ro" }
		parameters { key: "init" value: "true" } parameters { key: "cap-add" value: "NET_ADMIN" } }`
	spec := dockerSpec(t, asked)
	info := proto.CloneOf(spec.ContainerInfo)
	if _, err := asDocker(spec, DockerConfig{}, fakeMachine); err != nil {
		t.Fatal(err)
	}
	spec.Command = &mesosv1.CommandInfo{Shell: proto.Bool(false), Arguments: []string{"-g", "daemon off;"}, Environment: &mesosv1.Environment{
		Variables: []*mesosv1.Environment_Variable{
			{Name: proto.String("PORT0"), Value: proto.String("31000")},
			{Name: proto.String("KEY"), Type: mesosv1.Environment_Variable_SECRET.Enum(), Secret: &mesosv1.Secret{}},
		},
	}}
	spec.ImageConfig = &containerv1.ImageConfig{Entrypoint: []string{"nginx"}, Environment: []string{"VERSION=1", "KEY=image"}, Labels: map[string]string{"of": "image"}, StopSignal: "SIGQUIT"}
	spec.Resources = append(spec.Resources, &mesosv1.Resource{Name: proto.String("mem"), Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: proto.Float64(64)}})
	merged := &containerv1.Proposal{Arguments: []string{"/dev/init", "nginx", "-g", "daemon off;"}, Hostname: "c1", WorkingDirectory: "/"}
	status := &mesosv1.ContainerStatus{}
	if err := prototext.Unmarshal([]byte(`network_infos { name: "mosaic" ip_addresses { ip_address: "10.88.0.7" } ip_addresses { ip_address: "2001:db8::7" } }`), status); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal([]*inspected{inspect(spec, merged, 4242, info, status, time.Unix(0, 0))})
	if err != nil {
		t.Fatal(err)
	}
	var all []map[string]any
	if err := json.Unmarshal(b, &all); err != nil || len(all) != 1 {
		t.Fatalf("inspect: got %s, %v, want an array of one", b, err)
	}
	for path, want := range map[string]any{
		"Id": "c1", "Name": "/mesos-c1", "Image": "nginx:1", "Path": "/dev/init", "Args": []any{"nginx", "-g", "daemon off;"},
		"State.Running": true, "State.Pid": 4242.0, "State.Status": "running",
		"Config.Image": "nginx:1", "Config.Entrypoint": []any{"nginx"}, "Config.Cmd": []any{"-g", "daemon off;"}, "Config.StopSignal": "SIGQUIT",
		"Config.Env": []any{"PORT0=31000", "VERSION=1"}, "Config.Labels": map[string]any{"a": "b", "of": "image"}, "Config.Hostname": "c1",
		"HostConfig.NetworkMode": "bridge", "HostConfig.Init": true, "HostConfig.CapAdd": []any{"NET_ADMIN"}, "HostConfig.Dns": []any{"192.0.2.53"},
		"HostConfig.Binds": []any{"/h:/c:ro"}, "HostConfig.Memory": 64.0 * (1 << 20), "HostConfig.RestartPolicy": map[string]any{"Name": "no"},
		"NetworkSettings.IPAddress": "10.88.0.7", "NetworkSettings.GlobalIPv6Address": "2001:db8::7",
		"NetworkSettings.Ports": map[string]any{
			"80/tcp": []any{map[string]any{"HostIp": "0.0.0.0", "HostPort": "31000"}}, "53/udp": []any{map[string]any{"HostIp": "0.0.0.0", "HostPort": "31001"}},
		},
		"NetworkSettings.Networks": map[string]any{"mosaic": map[string]any{"IPAddress": "10.88.0.7", "GlobalIPv6Address": "2001:db8::7"}},
	} {
		if diff := cmp.Diff(want, at(all[0], path)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", path, diff)
		}
	}
}

func TestInspectedContainerOfTheHostsNetworkHasNoAddress(t *testing.T) {
	spec := dockerSpec(t, `docker { image: "i" network: HOST }`)
	info := proto.CloneOf(spec.ContainerInfo)
	if _, err := asDocker(spec, DockerConfig{}, fakeMachine); err != nil {
		t.Fatal(err)
	}
	got := inspect(spec, &containerv1.Proposal{}, 1, info, nil, time.Unix(0, 0))
	if n := got.NetworkSettings; n.IPAddress != "" || len(n.Ports) != 0 || len(n.Networks) != 1 || got.HostConfig.NetworkMode != "host" {
		t.Errorf("inspect: got %+v in mode %s, want no address in mode host", n, got.HostConfig.NetworkMode)
	}
	if len(got.Config.Cmd) != 3 || got.Config.Cmd[0] != "/bin/sh" {
		t.Errorf("inspect: got command %q, want the shell's", got.Config.Cmd)
	}
}

// at is what JSON has at a path of names.
func at(v any, path string) any {
	for name := range strings.SplitSeq(path, ".") {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[name]
	}
	return v
}
