package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// witness is a plugin of a vendor's: it writes down what it is told, and hands on what came before it. It hangs or fails
// where its folder says so.
const witness = `#!/usr/bin/env python3
import json, os, sys, time
folder = os.path.dirname(os.path.abspath(__file__))
command, config = os.environ["CNI_COMMAND"], json.load(sys.stdin)
with open(folder + "/witness.log", "a") as log:
    log.write(json.dumps({"command": command, "container": os.environ["CNI_CONTAINERID"], "netns": os.environ["CNI_NETNS"],
        "interface": os.environ["CNI_IFNAME"], "config": config}) + "\n")
if os.path.exists(folder + "/hang-" + command):
    time.sleep(1000)
if os.path.exists(folder + "/fail-" + command):
    print(json.dumps({"cniVersion": "1.0.0", "code": 100, "msg": "the fabric does not answer"}))
    sys.exit(1)
if command == "ADD":
    print(json.dumps(config["prevResult"]))
`

// testimony is one call of the witness.
type testimony struct {
	Command, Container, Netns, Interface string
	Config                               struct {
		PrevResult json.RawMessage `json:"prevResult"`
		Args       struct {
			Mesos struct {
				NetworkInfo struct {
					Labels struct {
						Labels []struct{ Key, Value string }
					}
				} `json:"network_info"`
			} `json:"org.apache.mesos"`
			CNI struct {
				Labels []struct{ Key, Value string }
			} `json:"cni"`
		}
	}
}

// fabric is an operator's own networks, on bridges of the test's own.
type fabric struct {
	t              *testing.T
	confs, plugins string
	bridges        []string
}

// newFabric makes folders for networks and plugins. Its bridges end with the test.
func newFabric(t *testing.T) *fabric {
	t.Helper()
	needBridge(t)
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("needs python3: " + err.Error())
	}
	v := &fabric{t: t, confs: t.TempDir(), plugins: t.TempDir()}
	v.install(true)
	t.Cleanup(func() {
		for _, name := range v.bridges {
			if link, err := netlink.LinkByName(name); err == nil {
				if err := netlink.LinkDel(link); err != nil {
					t.Errorf("remove bridge %s: %v", name, err)
				}
			}
		}
	})
	return v
}

func (v *fabric) path(name string) string { return filepath.Join(v.plugins, name) }

// install puts the witness there, or takes it away.
func (v *fabric) install(there bool) {
	v.t.Helper()
	err := os.Remove(v.path("witness"))
	if there {
		err = os.WriteFile(v.path("witness"), []byte(witness), 0o755) //nolint:gosec // a program
	}
	if err != nil && !os.IsNotExist(err) {
		v.t.Fatal(err)
	}
}

// mood has the witness do as told at a command from now on, or no longer.
func (v *fabric) mood(what string, on bool) {
	v.t.Helper()
	err := os.Remove(v.path(what))
	if on {
		err = os.WriteFile(v.path(what), nil, 0o644)
	}
	if err != nil && !os.IsNotExist(err) {
		v.t.Fatal(err)
	}
}

func (v *fabric) composition() string {
	return fmt.Sprintf(`
isolator "cgroups" {}
isolator "linux" {}
isolator "namespaces" {}
isolator "cni" {
  config {
    config_dir     = %q
    plugins_dir    = %q
    run_dir        = %q
    plugin_timeout = "5s"
  }
}
`, v.confs, filepath.Join(bin, "cni")+":"+v.plugins, v.path("run"))
}

// network writes the configuration of a network on a bridge, with addresses of these subnets.
func (v *fabric) network(name string, subnets ...string) {
	v.t.Helper()
	bridge := fmt.Sprintf("e%d%s", os.Getpid()%100000, name)
	v.bridges = append(v.bridges, bridge)
	var ranges []any
	for _, s := range subnets {
		ranges = append(ranges, []any{object{"subnet": s}})
	}
	data, err := json.Marshal(object{"name": name, "cniVersion": "1.0.0", "plugins": []any{
		object{"type": "bridge", "bridge": bridge, "ipam": object{"type": "host-local", "dataDir": v.path("leases"), "ranges": ranges}},
		object{"type": "witness"},
	}})
	if err == nil {
		err = os.WriteFile(filepath.Join(v.confs, name+".conflist"), data, 0o644)
	}
	if err != nil {
		v.t.Fatal(err)
	}
}

// heard are the calls of the witness so far.
func (v *fabric) heard(command string) []testimony {
	v.t.Helper()
	data, err := os.ReadFile(v.path("witness.log"))
	if err != nil && !os.IsNotExist(err) {
		v.t.Fatal(err)
	}
	var list []testimony
	for line := range strings.Lines(string(data)) {
		if !strings.HasSuffix(line, "\n") {
			break // it is just being written
		}
		var h testimony
		if err := json.Unmarshal([]byte(line), &h); err != nil {
			v.t.Fatalf("the witness's log: %v: %s", err, line)
		}
		if h.Command == command {
			list = append(list, h)
		}
	}
	return list
}

// left is what there is of any container's networks, each thing in words.
func (v *fabric) left() []string {
	v.t.Helper()
	var found []string
	for _, pattern := range []string{v.path("run") + "/*", v.path("leases") + "/*/[0-9f]*[.:]*"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			v.t.Fatal(err)
		}
		found = append(found, files...)
	}
	for _, line := range mountLines(v.t) {
		if strings.HasPrefix(mountPoint(line), v.path("run")+"/") {
			found = append(found, "mount "+mountPoint(line))
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		v.t.Fatal(err)
	}
	for _, l := range links {
		if master, err := netlink.LinkByIndex(l.Attrs().MasterIndex); l.Attrs().MasterIndex > 0 && err == nil && slices.Contains(v.bridges, master.Attrs().Name) {
			found = append(found, "interface "+l.Attrs().Name)
		}
	}
	return found
}

func (v *fabric) nothingLeft(when string) {
	v.t.Helper()
	var left []string
	deadline := time.Now().Add(30 * time.Second)
	for left = v.left(); len(left) > 0; left = v.left() {
		if time.Now().After(deadline) {
			v.t.Fatalf("%s there are still:\n%s", when, strings.Join(left, "\n"))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// again starts the agent anew after it was killed.
func again(ctx context.Context, t *testing.T, c *cluster.Cluster) {
	t.Helper()
	if err := c.StartAgent(); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitAgentRecovered(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestATaskHasEachNetworkThatItNamesAndIsToldOfByPlugins(t *testing.T) {
	v := newFabric(t)
	c := start(t, cluster.Options{Composition: v.composition()})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	f, err := cluster.Subscribe(ctx, c.Master, "wired", "*")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Disconnect()
	wired := func(o *mesosv1.Offer, id string) *mesosv1.TaskInfo {
		task := cluster.Task(o, id, 0.1, 32, cluster.Shell("hostname; cat /etc/hostname /etc/hosts; ip -o addr; sleep 1000"))
		task.Container = &mesosv1.ContainerInfo{
			Type: mesosv1.ContainerInfo_MESOS.Enum(), Hostname: proto.String("web.example"),
			NetworkInfos: []*mesosv1.NetworkInfo{
				{Name: proto.String("front"), Labels: &mesosv1.Labels{Labels: []*mesosv1.Label{{Key: proto.String("tier"), Value: proto.String("web")}}}},
				{Name: proto.String("back")},
			},
		}
		return task
	}
	launch := func(id string, want mesosv1.TaskState) *mesosv1.TaskStatus {
		t.Helper()
		o, err := f.Offer(ctx, 0.1, 32)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Launch(ctx, o, wired(o, id)); err != nil {
			t.Fatal(err)
		}
		u, err := f.State(ctx, []string{id}, mesosv1.TaskState_TASK_RUNNING, mesosv1.TaskState_TASK_FAILED)
		if err != nil {
			t.Fatal(err)
		}
		s := u[id].Status
		if s.GetState() != want {
			t.Fatalf("task %s: %s %s, want %s", id, s.GetState(), s.GetMessage(), want)
		}
		return s
	}
	// The operator adds the networks while the agent runs.
	if s := launch("early", mesosv1.TaskState_TASK_FAILED); !strings.Contains(s.GetMessage(), `network "front" is not known`) {
		t.Errorf("a task on a network that nobody knows: %q, want it named", s.GetMessage())
	}
	v.network("front", "10.201.0.0/24", "fd00:e2e:1::/64")
	v.network("back", "10.202.0.0/24")
	s := launch("wired", mesosv1.TaskState_TASK_RUNNING)
	infos := s.GetContainerStatus().GetNetworkInfos()
	if len(infos) != 2 || infos[0].GetName() != "front" || infos[1].GetName() != "back" {
		t.Fatalf("networks in the status: %v, want front and back", infos)
	}
	if l := infos[0].GetLabels().GetLabels(); len(l) != 1 || l[0].GetKey() != "tier" {
		t.Errorf("labels in the status: %v, want those that were asked for", l)
	}
	var all []string
	for n, want := range [][]mesosv1.NetworkInfo_Protocol{{mesosv1.NetworkInfo_IPv4, mesosv1.NetworkInfo_IPv6}, {mesosv1.NetworkInfo_IPv4}} {
		var got []mesosv1.NetworkInfo_Protocol
		for _, a := range infos[n].GetIpAddresses() {
			got = append(got, a.GetProtocol())
			all = append(all, a.GetIpAddress())
		}
		if !slices.Equal(got, want) {
			t.Errorf("addresses on %s: %v, want of %v", infos[n].GetName(), infos[n].GetIpAddresses(), want)
		}
	}
	var printed string
	eventually(t, "what the task sees", 10*time.Second, func() bool {
		printed = stdoutOf(t, c, "wired")
		return strings.Count(printed, "eth1") > 0
	})
	if !strings.HasPrefix(printed, "web.example\nweb.example\n") {
		t.Errorf("host name and /etc/hostname: %q, want web.example", printed)
	}
	for _, want := range append([]string{"eth0", "eth1", "\tweb.example web"}, all...) {
		if !strings.Contains(printed, want) {
			t.Errorf("the task sees no %s:\n%s", want, printed)
		}
	}
	for _, a := range all {
		if !strings.Contains(printed, a+"\tweb.example") {
			t.Errorf("/etc/hosts has no %s:\n%s", a, printed)
		}
	}
	if h := v.heard("ADD"); len(h) != 2 || h[0].Interface != "eth0" || h[1].Interface != "eth1" {
		t.Errorf("the witness heard %v, want an ADD for each interface", h)
	} else if l := h[0].Config.Args; len(l.Mesos.NetworkInfo.Labels.Labels) != 1 || len(l.CNI.Labels) != 1 || l.CNI.Labels[0].Value != "web" {
		t.Errorf("the witness was told %+v, want the labels in both forms", l)
	}
	if page, err := get("http://" + c.Agent + "/containers"); err != nil || !strings.Contains(page, `"net_rx_bytes"`) {
		t.Errorf("/containers = %s, %v; want statistics of the network", page, err)
	}

	// Nothing goes as it should at the end: DEL fails, then hangs while the agent is killed, then its program is gone.
	v.mood("fail-DEL", true)
	if err := f.Client().Kill(ctx, s.GetTaskId(), s.GetAgentId()); err != nil {
		t.Fatal(err)
	}
	if _, err := f.State(ctx, []string{"wired"}, mesosv1.TaskState_TASK_KILLED); err != nil {
		t.Fatalf("a failing DEL holds up the end: %v", err)
	}
	owed := func(what string, want bool) {
		t.Helper()
		eventually(t, what, 20*time.Second, func() bool { return modules(t, c)["isolator/cni"].Owed > 0 == want })
	}
	owed("a cleanup that is owed, for an operator to see", true)
	v.mood("hang-DEL", true)
	before := len(v.heard("DEL"))
	eventually(t, "a DEL that hangs", 40*time.Second, func() bool { return len(v.heard("DEL")) > before })
	if err := c.KillAgent(); err != nil {
		t.Fatal(err)
	}
	v.mood("hang-DEL", false)
	v.mood("fail-DEL", false)
	v.install(false)
	again(ctx, t, c)
	owed("the cleanup is owed still", true)
	if len(v.left()) == 0 {
		t.Error("nothing is left although the plugin never succeeded")
	}
	v.install(true)
	v.nothingLeft("with the plugin back")
	owed("nothing is owed any more", false)
	last := v.heard("DEL")
	if h := last[len(last)-1]; h.Config.PrevResult == nil {
		t.Errorf("the last DEL was told no result of its ADD: %+v", h)
	}
}

func TestAnAgentKilledWhileAPluginRunsLeavesNothingOfIt(t *testing.T) {
	v := newFabric(t)
	v.network("slow", "10.203.0.0/24")
	c := start(t, cluster.Options{Composition: v.composition()})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	f, err := cluster.Subscribe(ctx, c.Master, "slow", "*")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Disconnect()
	o, err := f.Offer(ctx, 0.1, 32)
	if err != nil {
		t.Fatal(err)
	}
	v.mood("hang-ADD", true)
	task := cluster.Task(o, "cut", 0.1, 32, cluster.Shell("sleep 1000"))
	task.Container = &mesosv1.ContainerInfo{
		Type: mesosv1.ContainerInfo_MESOS.Enum(), NetworkInfos: []*mesosv1.NetworkInfo{{Name: proto.String("slow")}},
	}
	if err := f.Launch(ctx, o, task); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the plugin runs", 20*time.Second, func() bool { return len(v.heard("ADD")) > 0 })
	if len(v.left()) == 0 {
		t.Error("the plugin before it made nothing")
	}
	if err := c.KillAgent(); err != nil {
		t.Fatal(err)
	}
	again(ctx, t, c)
	u, err := f.State(ctx, []string{"cut"}, mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_LOST, mesosv1.TaskState_TASK_KILLED)
	if err != nil {
		t.Fatalf("a task whose launch was cut off has no end: %v", err)
	}
	t.Logf("the task ended as %s: %s", u["cut"].Status.GetState(), u["cut"].Status.GetMessage())
	v.nothingLeft("after the agent was killed in the midst of ADD")
	id := v.heard("ADD")[0].Container
	environments, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range environments {
		if data, err := os.ReadFile(e); err == nil && strings.Contains(string(data), "CNI_CONTAINERID="+id) {
			t.Errorf("a plugin of container %s runs still: %s", id, filepath.Dir(e))
		}
	}
}

func TestNestedAndStandaloneContainersHaveNetworks(t *testing.T) {
	needBridge(t)
	c := start(t, cluster.Options{})
	inBothMedia(t, 90*time.Second, func(ctx context.Context, t *testing.T, media string) {
		network := []any{object{"name": "mosaic"}}
		// A pod on a network; one of its tasks asks for an address of its own.
		p := subscribe(ctx, t, c.Master, media, "pods", nil)
		o := p.offer(1, nil)
		shares, own := taskOf(o, "shares", "sleep 1000"), taskOf(o, "own", "sleep 1000")
		own["container"] = object{"type": "MESOS", "network_infos": network}
		group := groupOf(p, "pod-"+mediaName(media), shares, own)
		executor := dig(group, "launch_group", "executor").(object)
		executor["container"] = object{"type": "MESOS", "network_infos": network}
		p.accept(o, group)
		at := map[string]string{}
		for _, id := range []string{"shares", "own"} {
			s := p.state(id, "TASK_RUNNING")
			at[id] = firstAddress(dig(s, "container_status"))
			if net.ParseIP(at[id]) == nil {
				t.Errorf("task %s has the address %q in its status: %v", id, at[id], dig(s, "container_status"))
			}
		}
		if at["shares"] == at["own"] {
			t.Errorf("both tasks have the address %s, want the pod's and one of its own", at["own"])
		}
		p.call(202, object{"type": "TEARDOWN"})
		p.ended()

		a := newPeer(ctx, t, agentAPI, c.Agent, media)
		root := "lone-" + mediaName(media)
		a.call(200, object{"type": "LAUNCH_CONTAINER", "launch_container": object{
			"container_id": idOf(root), "command": object{"value": "sleep 1000"}, "resources": []any{scalarOf("cpus", 0.1), scalarOf("mem", 32)},
			"container": object{"type": "MESOS", "network_infos": network},
		}})
		a.call(200, object{"type": "LAUNCH_CONTAINER", "launch_container": object{"container_id": idOf(root, "child"), "command": object{"value": "sleep 1000"}}})
		listed := a.call(200, object{"type": "GET_CONTAINERS", "get_containers": object{"show_nested": true, "show_standalone": true}})
		found := map[any]string{}
		list, _ := dig(listed.object, "get_containers", "containers").([]any)
		for _, x := range list {
			found[dig(x.(object), "container_id", "value")] = firstAddress(dig(x.(object), "container_status"))
		}
		ip := found[root]
		if net.ParseIP(ip) == nil || found["child"] != ip {
			t.Errorf("the standalone container has the address %q, and the one nested in it %q; want one for both", ip, found["child"])
		}
		a.call(200, object{"type": "KILL_CONTAINER", "kill_container": object{"container_id": idOf(root)}})
		a.call(200, object{"type": "WAIT_CONTAINER", "wait_container": object{"container_id": idOf(root)}})
		for _, gone := range []string{ip, at["shares"], at["own"]} {
			eventually(t, "the lease of "+gone+" is given back", 20*time.Second, func() bool {
				leases, err := filepath.Glob(cniLeases + "/*/" + gone)
				if err != nil {
					t.Fatal(err)
				}
				for _, l := range leases {
					if data, err := os.ReadFile(l); err == nil && (strings.Contains(string(data), root) || strings.Contains(string(data), ".")) {
						return false
					}
				}
				return true
			})
		}
	})
}

// firstAddress is the first one of a container's status.
func firstAddress(status any) string {
	infos, _ := dig(status, "network_infos").([]any)
	for _, i := range infos {
		list, _ := dig(i, "ip_addresses").([]any)
		for _, a := range list {
			if text, ok := dig(a, "ip_address").(string); ok {
				return text
			}
		}
	}
	return ""
}

func TestEphemeralPortsThatTheAgentOffersAreRefusedWithTheirPlace(t *testing.T) {
	needRoot(t)
	const composition = "isolator \"port_mapping\" {\n  config {\n    ephemeral_ports = \"[31500-35000]\"\n  }\n}\n"
	c := prepare(t, cluster.Options{Composition: composition})
	file := filepath.Join(c.Dir, "agent.hcl")
	if err := os.WriteFile(file, []byte(composition), 0o644); err != nil {
		t.Fatal(err)
	}
	r := mosaic(t, c, 1, "agent", "--master", c.Master, "--listen", c.Agent, "--work-dir", filepath.Join(c.Dir, "agent"),
		"--cgroup-root", c.CgroupRoot(), "--config", file)
	for _, want := range []string{"agent.hcl:3:5", "ephemeral_ports", "[31500-32000]"} {
		if !strings.Contains(r.Stderr, want) {
			t.Errorf("mosaic agent said:\n%s\nwant it to contain %q", r.Stderr, want)
		}
	}
}
