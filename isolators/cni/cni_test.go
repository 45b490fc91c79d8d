package cni

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/sdk/moduletest"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

const fake = `{"type":"fake","capabilities":{"portMappings":true,"ips":true},"args":{"theirs":1}}`

// scripted is a host with one network, named net, of one plugin, named fake, that is a script.
func scripted(t testing.TB, body string) *host {
	t.Helper()
	h := newHost(t, nil)
	h.script("fake", body)
	h.network("net", fake)
	return h
}

func TestPluginsAreToldWhatTheContainerAsksFor(t *testing.T) {
	h := scripted(t, answers("10.1.2.3/16"))
	info := published("net", 8080, 80)
	info.IpAddresses = []*mesosv1.NetworkInfo_IPAddress{{IpAddress: proto.String("10.1.2.3")}}
	info.Labels = &mesosv1.Labels{Labels: []*mesosv1.Label{{Key: proto.String("tier"), Value: proto.String("web")}}}
	info.Groups = []string{"blue"}
	h.cleanup(h.launch(asking("a.b", info)))
	got := h.input("fake", "ADD")
	want := map[string]any{}
	if err := json.Unmarshal([]byte(`{
		"name": "net", "cniVersion": "1.0.0", "type": "fake", "capabilities": {"portMappings": true, "ips": true},
		"args": {
			"theirs": 1,
			"cni": {"labels": [{"key": "tier", "value": "web"}], "ips": ["10.1.2.3"]},
			"org.apache.mesos": {"network_info": {
				"name": "net", "groups": ["blue"], "ip_addresses": [{"ip_address": "10.1.2.3"}],
				"labels": {"labels": [{"key": "tier", "value": "web"}]},
				"port_mappings": [{"host_port": 8080, "container_port": 80, "protocol": "tcp"}]
			}}
		},
		"runtimeConfig": {"ips": ["10.1.2.3"], "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
	}`), &want); err != nil {
		t.Fatal(err)
	}
	if a, b := text(t, got), text(t, want); a != b {
		t.Errorf("ADD was given\n%s\nwant\n%s", a, b)
	}
	if got := h.calls("fake"); !slices.Equal(got, []string{"ADD", "DEL"}) {
		t.Errorf("calls = %v, want ADD, DEL", got)
	}
	data, _ := os.ReadFile(h.log("fake"))
	if first := strings.Fields(string(data))[1:4]; first[0] != "a.b" || first[1] != "eth0" || first[2] != filepath.Join(h.run, "a.b", "netns") {
		t.Errorf("CNI_CONTAINERID, CNI_IFNAME, CNI_NETNS = %q", first)
	}
	if prev, ok := h.input("fake", "DEL")["prevResult"].(map[string]any); !ok || prev["ips"] == nil {
		t.Errorf("DEL was given the result %v, want ADD's", prev)
	}
}

func text(t *testing.T, v any) string {
	t.Helper()
	data, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestAContainerHasAnInterfaceForEachNetwork(t *testing.T) {
	h := scripted(t, answers("10.1.2.3/16", "fd00::3/64"))
	h.script("second", answers("10.2.2.3/16"))
	if err := os.WriteFile(filepath.Join(h.confs, "old.conf"), []byte(`{"cniVersion":"0.3.1","name":"other","type":"second"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	r := h.launch(asking("two", named("other"), named("net")))
	var got []string
	for _, n := range h.infos(r) {
		for _, a := range n.GetIpAddresses() {
			got = append(got, n.GetName()+" "+a.GetProtocol().String()+" "+a.GetIpAddress())
		}
	}
	if want := []string{"other IPv4 10.2.2.3", "net IPv4 10.1.2.3", "net IPv6 fd00::3"}; !slices.Equal(got, want) {
		t.Errorf("Status tells %v, want %v", got, want)
	}
	data, _ := os.ReadFile(h.log("fake"))
	if f := strings.Fields(string(data)); f[2] != "eth1" {
		t.Errorf("interface of the second network = %s, want eth1", f[2])
	}
	nested := &isolatorv1.ContainerRecord{Container: &containerv1.Container{Id: "two.n.m", ParentId: "two.n"}}
	if infos := h.infos(nested); len(infos) != 2 {
		t.Errorf("Status of a container nested in it tells %v, want the same two networks", infos)
	}
	h.cleanup(r)
	if infos := h.infos(nested); len(infos) != 0 {
		t.Errorf("Status of a nested container tells %v after the parent's Cleanup, want nothing", infos)
	}
	if got := h.calls("second"); !slices.Equal(got, []string{"ADD", "DEL"}) {
		t.Errorf("calls of the second plugin = %v", got)
	}
}

func TestWhatIsProposedIsTheNamespaceAndTheFiles(t *testing.T) {
	h := scripted(t, `[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/16"}],"dns":{"nameservers":["10.1.0.1"],"search":["a.example","b.example"],"options":["ndots:2"]}}'; exit 0`)
	c := asking("id-1", named("net"))
	c.ContainerInfo.Hostname = proto.String("web.example")
	first, err := h.prepare(c)
	if err != nil {
		t.Fatal(err)
	}
	again, err := h.prepare(c)
	if err != nil || !proto.Equal(first, again) {
		t.Errorf("Prepare with the same operation = %v, %v; the first time %v", again, err, first)
	}
	p := first.GetProposal()
	netns := filepath.Join(h.run, "id-1", "netns")
	if len(p.GetNamespaces()) != 2 || p.Namespaces[0].GetPath() != netns || p.Namespaces[1].GetType() != containerv1.Namespace_UTS || p.GetHostname() != "web.example" {
		t.Errorf("Prepare proposed %v, want the namespaces NETWORK at %s and UTS, and the host name", p, netns)
	}
	for _, want := range []struct{ name, text string }{
		{"hosts", "\n10.1.2.3\tweb.example web\n"}, {"hostname", "web.example\n"},
		{"resolv.conf", "search a.example b.example\nnameserver 10.1.0.1\noptions ndots:2\n"},
	} {
		i := slices.IndexFunc(p.GetMounts(), func(m *containerv1.Mount) bool { return m.GetDestination() == "/etc/"+want.name })
		if i < 0 {
			t.Errorf("nothing is mounted on /etc/%s: %v", want.name, p.GetMounts())
			continue
		}
		data, err := os.ReadFile(p.Mounts[i].GetSource())
		if err != nil || !strings.HasSuffix("\n"+string(data), want.text) {
			t.Errorf("/etc/%s = %q, %v; want %q at the end", want.name, data, err, want.text)
		}
	}
	h.cleanup(&isolatorv1.ContainerRecord{Container: c, State: first.GetState(), StateVersion: first.GetStateVersion()})

	// On the host's own root nothing is mounted where there is nothing.
	c = asking("id-2", named("net"))
	c.Rootfs = ""
	r, err := h.prepare(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range r.GetProposal().GetMounts() {
		if _, err := os.Stat(m.GetDestination()); err != nil {
			t.Errorf("on the host's root %s is mounted: %v", m.GetDestination(), err)
		}
	}
	if r.GetProposal().GetHostname() != "id-2" {
		t.Errorf("host name = %q, want the container's id", r.GetProposal().GetHostname())
	}
	h.cleanup(&isolatorv1.ContainerRecord{Container: c})
}

func TestContainersThatNameNoNetworkAreLeftAlone(t *testing.T) {
	h := scripted(t, answers("10.1.2.3/16"))
	debug := asking("debug", named("net"))
	debug.Class, debug.ParentId = containerv1.Container_DEBUG, "p"
	for name, c := range map[string]*containerv1.Container{
		"no container info": {Id: "a"}, "no networks": asking("b"), "an unnamed network": asking("c", &mesosv1.NetworkInfo{}), "debug": debug,
	} {
		r, err := h.prepare(c)
		if err != nil || r.GetProposal() != nil || len(r.GetState()) > 0 {
			t.Errorf("Prepare with %s = %v, %v; want nothing", name, r, err)
		}
	}
	hostname := asking("d")
	hostname.ContainerInfo.Hostname = proto.String("alone")
	r, err := h.prepare(hostname)
	if p := r.GetProposal(); err != nil || p.GetHostname() != "alone" || len(p.GetNamespaces()) != 1 || p.Namespaces[0].GetType() != containerv1.Namespace_UTS {
		t.Errorf("Prepare with a host name only = %v, %v; want it and a UTS namespace", r, err)
	}
	if got := h.calls("fake"); got != nil {
		t.Errorf("plugins were called: %v", got)
	}
}

func TestWhatCannotBeGivenIsRefused(t *testing.T) {
	h := scripted(t, answers("10.1.2.3/16"))
	h.network("bare", `{"type":"fake"}`)
	h.network("absent", `{"type":"nowhere"}`)
	docker := func(mode mesosv1.ContainerInfo_DockerInfo_Network, ports bool, infos ...*mesosv1.NetworkInfo) *containerv1.Container {
		c := asking("d", infos...)
		c.ContainerInfo.Type = mesosv1.ContainerInfo_DOCKER.Enum()
		c.ContainerInfo.Docker = &mesosv1.ContainerInfo_DockerInfo{Image: proto.String("i"), Network: &mode}
		if ports {
			c.ContainerInfo.Docker.PortMappings = []*mesosv1.ContainerInfo_DockerInfo_PortMapping{{HostPort: proto.Uint32(1), ContainerPort: proto.Uint32(2)}}
		}
		return c
	}
	addressed := func(text string) *mesosv1.NetworkInfo {
		n := named("net")
		n.IpAddresses = []*mesosv1.NetworkInfo_IPAddress{{IpAddress: &text}}
		return n
	}
	long := asking("c")
	long.ContainerInfo.Hostname = proto.String(strings.Repeat("x", 65))
	huge := named("net")
	huge.Groups = []string{strings.Repeat("g", 70<<10)}
	protocol := published("net", 1, 2)
	protocol.PortMappings[0].Protocol = proto.String("icmp")
	for _, test := range []struct {
		name string
		c    *containerv1.Container
		code codes.Code
		want string
	}{
		{"an unknown network", asking("c", named("no-such")), codes.FailedPrecondition, `network "no-such" is not known: this agent has absent, bare, net`},
		{"a plugin that is missing", asking("c", named("absent")), codes.FailedPrecondition, "plugin nowhere"},
		{"a network twice", asking("c", named("net"), named("net")), codes.InvalidArgument, "named twice"},
		{"ports of a network that has none", asking("c", published("bare", 80, 80)), codes.FailedPrecondition, "publishes no ports"},
		{"ports of the host's network", asking("c", &mesosv1.NetworkInfo{PortMappings: published("", 80, 80).PortMappings}), codes.InvalidArgument, "port_mappings"},
		{"port 0", asking("c", published("net", 0, 80)), codes.InvalidArgument, "port_mappings"},
		{"port 65536", asking("c", published("net", 80, 65536)), codes.InvalidArgument, "port_mappings"},
		{"a protocol without ports", asking("c", protocol), codes.InvalidArgument, "icmp"},
		{"no address", asking("c", addressed("ten")), codes.InvalidArgument, "ten"},
		{"an address that is not given", asking("c", addressed("10.9.9.9")), codes.FailedPrecondition, "10.9.9.9"},
		{"a long host name", long, codes.InvalidArgument, "hostname"},
		{"labels beyond what is kept", asking("c", huge), codes.InvalidArgument, "bytes"},
		{"docker's ports on the host's network", docker(mesosv1.ContainerInfo_DockerInfo_HOST, true), codes.InvalidArgument, "port_mappings"},
		{"docker's user network without a name", docker(mesosv1.ContainerInfo_DockerInfo_USER, false), codes.InvalidArgument, "USER"},
		{"docker's bridge where there is none", docker(mesosv1.ContainerInfo_DockerInfo_BRIDGE, false), codes.FailedPrecondition, `network "mosaic" is not known`},
	} {
		_, err := h.prepare(test.c)
		if status.Code(err) != test.code || !strings.Contains(fmt.Sprint(err), test.want) {
			t.Errorf("Prepare with %s = %v, want %s with %q", test.name, err, test.code, test.want)
		}
		h.cleanup(&isolatorv1.ContainerRecord{Container: test.c})
	}
	h.leaks(nil)
}

func TestDockersNetworkModesAreUnderstood(t *testing.T) {
	h := scripted(t, answers("10.1.2.3/16"))
	h.network("mosaic", fake)
	for _, test := range []struct {
		mode  mesosv1.ContainerInfo_DockerInfo_Network
		infos []*mesosv1.NetworkInfo
		want  string // the network
		own   bool
	}{
		{mesosv1.ContainerInfo_DockerInfo_HOST, nil, "", false},
		{mesosv1.ContainerInfo_DockerInfo_NONE, nil, "", true},
		{mesosv1.ContainerInfo_DockerInfo_BRIDGE, nil, "mosaic", true},
		{mesosv1.ContainerInfo_DockerInfo_USER, []*mesosv1.NetworkInfo{named("net")}, "net", true},
	} {
		c := asking("docker", test.infos...)
		c.ContainerInfo.Type = mesosv1.ContainerInfo_DOCKER.Enum()
		c.ContainerInfo.Docker = &mesosv1.ContainerInfo_DockerInfo{Image: proto.String("i"), Network: test.mode.Enum()}
		if test.want != "" {
			c.ContainerInfo.Docker.PortMappings = []*mesosv1.ContainerInfo_DockerInfo_PortMapping{{HostPort: proto.Uint32(8080), ContainerPort: proto.Uint32(80)}}
		}
		r := h.launch(c)
		if own := len(r.GetState()) > 0; own != test.own {
			t.Errorf("mode %s: own namespace %v, want %v", test.mode, own, test.own)
		}
		infos := h.infos(r)
		if got := ""; test.want != "" {
			if len(infos) == 1 {
				got = infos[0].GetName()
			}
			if got != test.want || len(infos[0].GetPortMappings()) != 1 {
				t.Errorf("mode %s: networks %v, want %s with its port", test.mode, infos, test.want)
			}
		}
		h.cleanup(r)
	}
	h.leaks(nil)
}

func TestPluginsThatMisbehaveFailTheLaunchAndNothingElse(t *testing.T) {
	for _, test := range []struct{ name, body, want string }{
		{"hangs", "sleep 1000", "did not end within"},
		{"hangs in a child", "sleep 1000 & sleep 1001", "did not end within"},
		{"leaves a child behind", "sleep 1000 & exit 0", ""}, // any failure will do
		{"prints garbage", "echo '<html>'", "not a JSON object"},
		{"prints nothing", "exit 0", "not a JSON object"},
		{"prints a list", "echo '[]'", "not a JSON object"},
		{"prints a result of no version there is", `echo '{"cniVersion":"99.0.0"}'`, "99.0.0"},
		{"prints addresses that are none", `echo '{"cniVersion":"1.0.0","ips":[{"address":"x"}]}'`, "answer"},
		{"prints without end", "echo '{'; yes '' | head -c 3000000; echo '}'", "it printed more than"},
		{"says why", `echo '{"code":7,"msg":"no more","details":"addresses"}'; exit 1`, "no more: addresses (code 7)"},
		{"complains in words", "echo out of luck >&2; exit 3", "out of luck"},
		{"is killed", "kill -9 $$", "killed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHost(t, func(config map[string]any) { config["plugin_timeout"] = int64(time.Second) })
			h.script("fake", `[ "$CNI_COMMAND" = ADD ] || exit 0`+"\n"+test.body)
			h.network("net", fake)
			c := asking("misbehave", named("net"))
			begin := time.Now()
			_, err := h.prepare(c)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "plugin fake (ADD)") {
				t.Errorf("Prepare = %v, want a failure of plugin fake with %q", err, test.want)
			}
			if d := time.Since(begin); d > 15*time.Second {
				t.Errorf("Prepare took %s", d)
			}
			h.cleanup(&isolatorv1.ContainerRecord{Container: c})
			if got := h.calls("fake"); !slices.Equal(got, []string{"ADD", "DEL"}) {
				t.Errorf("calls = %v, want DEL after the failed ADD", got)
			}
			h.leaks(nil)
			if err := noneLeft("misbehave"); err != nil {
				t.Error(err)
			}
		})
	}
}

// noneLeft says whether processes of plugins of a container are left.
func noneLeft(id string) error {
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil && strings.Contains(string(data), containerVariable+id+"\x00") {
			return fmt.Errorf("a plugin still runs: %s", filepath.Dir(f))
		}
	}
	return nil
}

func TestAFailedDelStaysOwedAndIsDoneAgain(t *testing.T) {
	h := scripted(t, answers("10.1.2.3/16"))
	h.script("broken", `[ "$CNI_COMMAND" = DEL ] && [ ! -e "$log.mended" ] && exit 1
`+answers("10.2.2.3/16"))
	h.network("other", `{"type":"broken"}`)
	r := h.launch(asking("owed", named("net"), named("other")))
	for range 2 {
		_, err := h.Client.Isolator.Cleanup(h.context(), &isolatorv1.CleanupRequest{Record: r})
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "network other: plugin broken (DEL)") {
			t.Fatalf("Cleanup = %v, want FailedPrecondition that names network and plugin", err)
		}
	}
	if got := h.calls("fake"); !slices.Equal(got, []string{"ADD", "DEL"}) {
		t.Errorf("calls of the other network's plugin = %v, want DEL once", got)
	}
	if err := os.WriteFile(h.log("broken")+".mended", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h.cleanup(r)
	h.leaks(nil)
}

func TestDelUsesTheConfigurationOfItsAdd(t *testing.T) {
	h := scripted(t, answers("10.1.2.3/16"))
	r := h.launch(asking("one", named("net")))
	if err := os.Remove(filepath.Join(h.confs, "net.conflist")); err != nil {
		t.Fatal(err)
	}
	if _, err := h.prepare(asking("two", named("net"))); err == nil {
		t.Errorf("Prepare with a network that is gone succeeds")
	}
	h.network("later", fake) // a name that was unknown until now
	h.cleanup(h.launch(asking("three", named("later"))))
	h.cleanup(r)
	if got := h.calls("fake"); !slices.Equal(got, []string{"ADD", "ADD", "DEL", "DEL"}) {
		t.Errorf("calls = %v", got)
	}
}

func TestAnUnfinishedAttemptIsUndoneBeforeTheNext(t *testing.T) {
	h := scripted(t, answers("10.1.2.3/16"))
	r := h.launch(asking("again", named("net")))
	next := asking("again", named("net"))
	next.Generation = 2
	r2 := h.launch(next)
	if got := h.calls("fake"); !slices.Equal(got, []string{"ADD", "DEL", "ADD"}) {
		t.Errorf("calls = %v, want ADD, DEL, ADD", got)
	}
	if string(r.GetState()) == string(r2.GetState()) {
		t.Errorf("the second attempt has the first one's state")
	}
	h.cleanup(r2)
	h.leaks(nil)
}

func TestAFailedCheckAfterARestartIsTold(t *testing.T) {
	h := scripted(t, `[ "$CNI_COMMAND" = CHECK ] && { echo '{"code":100,"msg":"the route is gone"}'; exit 1; }
`+answers("10.1.2.3/16"))
	r := h.launch(asking("checked", named("net")))
	r.Pid = 1
	h.restart()
	if unknown := h.recover(r); len(unknown) > 0 {
		t.Errorf("Recover does not know %v", unknown)
	}
	e := h.Next(t, func(e *modulev1.WatchEvent) bool { return e.GetHealth().GetState() == modulev1.Health_DEGRADED })
	if got := e.GetHealth().GetReason(); !strings.Contains(got, "of 1 running") || !strings.Contains(got, "container checked: network net: plugin fake (CHECK): the route is gone") {
		t.Errorf("health = %q, want the container and the reason", got)
	}
	h.cleanup(r)
	h.Next(t, func(e *modulev1.WatchEvent) bool { return e.GetHealth().GetState() == modulev1.Health_OK })
	if got := h.calls("fake"); !slices.Equal(got, []string{"ADD", "CHECK", "DEL"}) {
		t.Errorf("calls = %v", got)
	}
}

func TestACheckDoesNotHoldUpTheEnd(t *testing.T) {
	h := scripted(t, `[ "$CNI_COMMAND" = CHECK ] && sleep 1000
`+answers("10.1.2.3/16"))
	r := h.launch(asking("checked", named("net")))
	r.Pid = 1
	h.restart()
	h.recover(r)
	for !slices.Contains(h.calls("fake"), "CHECK") {
		time.Sleep(5 * time.Millisecond) // another process's step
	}
	begin := time.Now()
	h.cleanup(r)
	if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("Cleanup took %s while a check hung", d)
	}
	h.checks.wait()
	h.leaks(nil)
}

func TestWhatIsWrongWithConfigurationsIsToldAndCostsNoOther(t *testing.T) {
	h := scripted(t, answers("10.1.2.3/16"))
	for name, text := range map[string]string{
		"broken.conflist": "{", "nameless.conf": `{"type":"fake"}`, "net2.conflist": `{"name":"net","plugins":[{"type":"fake"}]}`,
		"future.conflist": `{"name":"f","cniVersion":"99.0.0","plugins":[{"type":"fake"}]}`, "note.txt": "not ours",
		"empty.conflist": `{"name":"e","cniVersion":"1.0.0","plugins":[]}`, "list.json": "[]",
	} {
		if err := os.WriteFile(filepath.Join(h.confs, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all, errs := readNetworks(h.confs)
	if len(all) != 1 || all["net"] == nil || len(errs) != 6 {
		t.Errorf("readNetworks = %v, %d errors (%v); want net and 6 errors", all, len(errs), errs)
	}
	h.restart()
	e := h.Next(t, func(e *modulev1.WatchEvent) bool { return e.GetHealth().GetState() == modulev1.Health_DEGRADED })
	if got := e.GetHealth().GetReason(); !strings.Contains(got, "broken.conflist") {
		t.Errorf("health = %q, want the file that is broken", got)
	}
	h.cleanup(h.launch(asking("c", named("net"))))
}

func TestWrongSettingsAreToldByName(t *testing.T) {
	for path, document := range map[string]string{
		"config_dir": `{"config_dir":"relative"}`, "plugins_dir": `{"plugins_dir":"/a:b"}`, "run_dir": `{"run_dir":""}`,
		"bridge_subnet": `{"bridge_subnet":"10.0.0.1/8"}`, "bridge_backend": `{"bridge_backend":"ipfw"}`,
		"nameservers": `{"nameservers":["one"]}`, "bridge_name": `{"default_bridge":true,"bridge_name":"a b"}`,
		"plugin_timeout": `{"plugin_timeout":-1}`,
	} {
		c := moduletest.Dial(t, New())
		errs := c.Configure(t, document)
		if len(errs) != 1 || errs[0].GetPath() != path {
			t.Errorf("Configure(%s) = %v, want one error at %s", document, errs, path)
		}
	}
}

func TestTheHostsResolverIsTakenWithoutWhatOnlyTheHostReaches(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	behind := file("behind", "nameserver 192.0.2.1\nsearch x\n")
	for _, test := range []struct{ text, want string }{
		{"nameserver 127.0.0.53\noptions edns0\n", "nameserver 192.0.2.1\nsearch x\n"},
		{"nameserver 127.0.0.53\nnameserver 192.0.2.9\nsearch y\n", "nameserver 192.0.2.9\nsearch y\n"},
		{"nameserver 192.0.2.9\n", "nameserver 192.0.2.9\n"},
		{"search only\n", "search only\n"},
	} {
		got, err := hostResolvConf(file("first", test.text), behind)
		if err != nil || string(got) != test.want {
			t.Errorf("hostResolvConf of %q = %q, %v; want %q", test.text, got, err, test.want)
		}
	}
	if got, err := hostResolvConf(filepath.Join(dir, "none"), behind); err != nil || len(got) != 0 {
		t.Errorf("hostResolvConf without a file = %q, %v; want nothing", got, err)
	}
}

func TestHostNamesAreMadeOfIds(t *testing.T) {
	for id, want := range map[string]string{
		"0f8b6c1e-1111-2222-3333-444455556666": "0f8b6c1e-1111-2222-3333-444455556666", "a.b": "b", "x_y:z": "x_y-z",
		strings.Repeat("l", 100): strings.Repeat("l", 63), "": "container", "-.-": "container", "ü\n": "container",
	} {
		if got := hostnameOf(id); got != want {
			t.Errorf("hostnameOf(%q) = %q, want %q", id, got, want)
		}
	}
}

func TestIdsThatPluginsDoNotTakeAreHashed(t *testing.T) {
	seen := map[string]string{}
	for _, id := range []string{"a", "a.b", "../../etc", "a b", ".", "..", "", "a/b", strings.Repeat("x", 300), "ü", hashed + "x"} {
		got := pluginID(id)
		if !plainID.MatchString(got) || seen[got] != "" || len(got) > 250 {
			t.Errorf("pluginID(%.50q) = %q, want a plain name of its own (%q has it)", id, got, seen[got])
		}
		seen[got] = id + "!"
	}
	if pluginID("a.b") != "a.b" {
		t.Errorf("pluginID changes an id that plugins take")
	}
}

func TestRoutesAreReadAsTheKernelWritesThem(t *testing.T) {
	got := parseRoutes([]byte("Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n" +
		"eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n" +
		"eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n" +
		bridgeInterface + "\t0000580A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\nx\tzz\n"))
	if fmt.Sprint(got) != "[0.0.0.0/0 172.17.0.0/16]" {
		t.Errorf("parseRoutes = %v", got)
	}
}

func TestCountersAreSummedOverInterfaces(t *testing.T) {
	s := &mesosv1.ResourceStatistics{}
	addInterfaces(s, []byte("Inter-|   Receive\n face |bytes\n"+
		"    lo: 9 9 9 9 0 0 0 0 9 9 9 9 0 0 0 0\n  eth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n  eth1:10 20 30 40 0 0 0 0 50 60 70 80 0 0 0 0\n bad: 1\n"))
	got := []uint64{s.GetNetRxBytes(), s.GetNetRxPackets(), s.GetNetRxErrors(), s.GetNetRxDropped(), s.GetNetTxBytes(), s.GetNetTxPackets(), s.GetNetTxErrors(), s.GetNetTxDropped()}
	if want := []uint64{11, 22, 33, 44, 55, 66, 77, 88}; !slices.Equal(got, want) {
		t.Errorf("counters = %v, want %v", got, want)
	}
	snmp := parseSNMP([]byte("Ip: Forwarding InReceives New\nIp: 2 7 1\nTcp: RtoAlgorithm CurrEstab\nTcp: 1\nUdpLite: X\nUdpLite: 1\n"))
	if snmp.GetIpStats().GetInReceives() != 7 || snmp.GetTcpStats().GetRtoAlgorithm() != 1 || snmp.GetTcpStats().CurrEstab != nil {
		t.Errorf("parseSNMP = %v", snmp)
	}
}

func FuzzResultsAreReadOrRefused(f *testing.F) {
	for _, s := range []string{"null", "{}", `{"ips":[null]}`, `{"cniVersion":"0.2.0","ip4":{"ip":"1.2.3.4/8"}}`,
		`{"cniVersion":"1.1.0","ips":[{"address":"1.2.3.4/8","interface":-1}],"interfaces":[null]}`, `{"cniVersion":"0.4.0","ips":[{"version":"4"}]}`} {
		f.Add([]byte(s), "1.0.0")
		f.Add([]byte(s), "0.2.0")
	}
	f.Fuzz(func(t *testing.T, data []byte, version string) {
		if result, err := normalize(data, version); err == nil {
			a := attachment{Result: result}
			r := &record{ID: "x", Networks: []attachment{a}}
			_ = addresses(result)
			_ = hosts(r)
			_ = r.infos()
		}
		_ = parseRecord(data)
		if n, err := parseNetwork(data); err == nil {
			_, _ = (&invocation{runtime: map[string]any{"x": 1}}).configure(n, n.Plugins[0], nil)
		}
	})
}

func TestWhoWaitsLongForATurnIsToldToAskAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := make(turns, 1)
		leave, err := one.enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if _, err := one.enter(t.Context()); status.Code(err) != codes.Aborted || time.Since(begin) != patience {
			t.Errorf("enter = %v after %s, want Aborted after %s", err, time.Since(begin), patience)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := one.enter(ctx); status.Code(err) != codes.Canceled {
			t.Errorf("enter of who went away = %v, want Canceled", err)
		}
		leave()
		if leave, err = one.enter(t.Context()); err != nil {
			t.Errorf("enter after leave = %v, want success", err)
		}
		leave()
	})
}
