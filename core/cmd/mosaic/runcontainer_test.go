package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

func TestContainerThatRunAsksFor(t *testing.T) {
	for name, test := range map[string]struct {
		flags containerFlags
		want  string // ContainerInfo in text; empty for none
		argv  string // command value, a bar, arguments; as given if empty
	}{
		"nothing":       {},
		"host network":  {flags: containerFlags{network: "host"}},
		"registry name": {flags: containerFlags{image: "library/nginx:1"}, want: `type: MESOS mesos { image { type: DOCKER docker { name: "library/nginx:1" } } }`},
		"bridge": {flags: containerFlags{image: "nginx", network: "bridge"},
			want: `type: MESOS mesos { image { type: DOCKER docker { name: "nginx" } } } network_infos { name: "mosaic" }`},
		"published means a bridge": {flags: containerFlags{publish: []string{"80", "31000:53/udp"}}, want: `type: MESOS network_infos { name: "mosaic"
			port_mappings { container_port: 80 protocol: "tcp" } port_mappings { host_port: 31000 container_port: 53 protocol: "udp" } }`},
		"named network": {flags: containerFlags{network: "blue"}, want: `type: MESOS network_infos { name: "blue" }`},
		"volumes": {flags: containerFlags{volumes: []string{"/a:/b:ro", "/c:d"}}, want: `type: MESOS
			volumes { mode: RO container_path: "/b" source { type: HOST_PATH host_path { path: "/a" } } }
			volumes { mode: RW container_path: "d" source { type: HOST_PATH host_path { path: "/c" } } }`},
		"working directory": {flags: containerFlags{image: "nginx", workdir: "/srv", network: "blue"}, argv: "|a b",
			want: `type: DOCKER network_infos { name: "blue" } docker { image: "nginx" network: USER parameters { key: "workdir" value: "/srv" }
				parameters { key: "user" value: "me" } parameters { key: "entrypoint" value: "/bin/echo" } }`},
		"flags of docker run": {flags: containerFlags{image: "nginx", publish: []string{"80"}, parameters: []*mesosv1.Parameter{
			{Key: proto.String("init"), Value: proto.String("true")}, {Key: proto.String("add-host"), Value: proto.String("a:10.0.0.1")}}}, argv: "|a b",
			want: `type: DOCKER network_infos { name: "mosaic" port_mappings { container_port: 80 protocol: "tcp" } } docker { image: "nginx" network: USER
				parameters { key: "user" value: "me" } parameters { key: "init" value: "true" } parameters { key: "add-host" value: "a:10.0.0.1" }
				parameters { key: "entrypoint" value: "/bin/echo" } }`},
		"an entrypoint keeps the command for itself": {flags: containerFlags{image: "nginx", parameters: []*mesosv1.Parameter{
			{Key: proto.String("entrypoint"), Value: proto.String("/bin/env")}}}, argv: "|/bin/echo a b",
			want: `type: DOCKER docker { image: "nginx" network: HOST parameters { key: "user" value: "me" } parameters { key: "entrypoint" value: "/bin/env" } }`},
		"no network": {flags: containerFlags{image: "nginx", network: "none"}, argv: "|a b",
			want: `type: DOCKER docker { image: "nginx" network: NONE parameters { key: "user" value: "me" } parameters { key: "entrypoint" value: "/bin/echo" } }`},
	} {
		o := &runOptions{cpus: 1, mem: 32, user: "me", argv: []string{"/bin/echo", "a", "b"}, containerFlags: test.flags}
		if err := o.check(); err != nil {
			t.Errorf("%s: check: %v", name, err)
			continue
		}
		task, err := o.task()
		if err != nil {
			t.Errorf("%s: task: %v", name, err)
			continue
		}
		var want *mesosv1.ContainerInfo
		if test.want != "" {
			want = &mesosv1.ContainerInfo{}
			if err := (prototext.UnmarshalOptions{AllowPartial: true}).Unmarshal([]byte(test.want), want); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(want, task.Container, protocmp.Transform()); diff != "" {
			t.Errorf("%s: container (-want +got):\n%s", name, diff)
		}
		argv := test.argv
		if argv == "" {
			argv = "/bin/echo|/bin/echo a b"
		}
		if got := task.GetCommand().GetValue() + "|" + strings.Join(task.GetCommand().GetArguments(), " "); got != argv {
			t.Errorf("%s: command %q, want %q", name, got, argv)
		}
	}
}

func TestContainerFlagsThatCannotBeAreRefused(t *testing.T) {
	for _, test := range []struct {
		flags containerFlags
		want  string
	}{
		{containerFlags{gpus: -1}, "--gpus"},
		{containerFlags{workdir: "/srv"}, "--image"},
		{containerFlags{workdir: "srv", image: "i"}, "--workdir"},
		{containerFlags{network: "none"}, "--image"},
		{containerFlags{network: "host", publish: []string{"80"}}, "--publish"},
		{containerFlags{network: "none", image: "i", publish: []string{"80"}}, "--publish"},
		{containerFlags{publish: []string{"http"}}, "--publish"},
		{containerFlags{publish: []string{":80"}}, "--publish"},
		{containerFlags{publish: []string{"70000:80"}}, "--publish"},
		{containerFlags{publish: []string{"1:2/sctp"}}, "--publish"},
		{containerFlags{volumes: []string{"data:/b"}}, "--volume"},
		{containerFlags{volumes: []string{"/a"}}, "--volume"},
		{containerFlags{volumes: []string{"/a:/b:loud"}}, "--volume"},
		{containerFlags{volumes: []string{"/a:b"}, image: "i"}, "--volume"},
	} {
		o := &runOptions{cpus: 1, mem: 32, user: "me", containerFlags: test.flags}
		if err := o.check(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("check of %+v: got %v, want an error about %s", test.flags, err, test.want)
		}
	}
}

func TestPublishedPortsComeOutOfTheOffer(t *testing.T) {
	ports := func(from, to uint64) *mesosv1.Resource {
		return &mesosv1.Resource{Name: proto.String("ports"), Type: mesosv1.Value_RANGES.Enum(),
			Ranges: resources.NewRanges(resources.Range{Begin: from, End: to}).Value()}
	}
	revocable := ports(1, 100)
	revocable.Revocable = &mesosv1.Resource_RevocableInfo{}
	offer := &mesosv1.Offer{Hostname: proto.String("box"), Resources: []*mesosv1.Resource{amount("cpus", 1), revocable, ports(31000, 31001), ports(32000, 32000)}}
	for _, test := range []struct {
		publish []string
		ports   []uint32 // nil where the offer does not do
		taken   string
		said    string
	}{
		{[]string{"80"}, []uint32{31000}, "[31000-31000]", "port 31000 of box leads to port 80"},
		{[]string{"80", "31000:81", "32000:82"}, []uint32{31001, 31000, 32000}, "[31000-31001][32000-32000]", "port 31001 of box leads to port 80"},
		{[]string{"31001:53/udp", "31001:53/tcp"}, []uint32{31001, 31001}, "[31001-31001]", ""},
		{[]string{"8080:80"}, nil, "", ""},
		{[]string{"50:80"}, nil, "", ""},
		{[]string{"1", "2", "3", "4"}, nil, "", ""},
	} {
		var said bytes.Buffer
		r := &runner{runOptions: &runOptions{err: &said, user: "me", argv: []string{"x"}, containerFlags: containerFlags{publish: test.publish}}}
		info, err := r.task()
		if err != nil {
			t.Fatal(err)
		}
		r.tasks = []*running{{info: info}}
		parts := [][]*mesosv1.Resource{nil}
		before := proto.CloneOf(offer)
		ok := r.addPorts(parts, offer)
		if ok != (test.ports != nil) || !proto.Equal(before, offer) {
			t.Errorf("addPorts for %v = %t, want %t, and the offer as it was", test.publish, ok, test.ports != nil)
			continue
		}
		if !ok {
			if len(parts[0]) > 0 {
				t.Errorf("addPorts for %v took %v of an offer that does not do", test.publish, parts[0])
			}
			continue
		}
		for i, m := range info.GetContainer().GetNetworkInfos()[0].GetPortMappings() {
			if m.GetHostPort() != test.ports[i] {
				t.Errorf("addPorts for %v: mapping %d has port %d, want %d", test.publish, i, m.GetHostPort(), test.ports[i])
			}
		}
		taken := ""
		for _, res := range parts[0] {
			taken += resources.New(res).Ranges("ports").String()
		}
		if taken != test.taken || test.said != "" && !strings.Contains(said.String(), test.said) || test.said == "" && said.Len() > 0 {
			t.Errorf("addPorts for %v: took %s and said %q, want %s and %q", test.publish, taken, said.String(), test.taken, test.said)
		}
	}
}

func TestGPUsAreAskedForAsAResource(t *testing.T) {
	o := &runOptions{cpus: 1, mem: 32, containerFlags: containerFlags{gpus: 2}}
	if got := o.resources()["gpus"]; got != 2 {
		t.Errorf("resources: got %v gpus, want 2", got)
	}
}
