package cni

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// bridged is a host with the built-in network, by the real plugins.
func bridged(t testing.TB, backend string) *host {
	t.Helper()
	plugins := builtPlugins(t)
	return newHost(t, func(config map[string]any) {
		config["plugins_dir"], config["default_bridge"], config["bridge_backend"] = plugins, true, backend
	})
}

// backends are what rules can be made by here.
func backends(t testing.TB) []string {
	t.Helper()
	needHost(t)
	var list []string
	if hasNftables() {
		list = append(list, byKernel)
	}
	if _, err := exec.LookPath("iptables"); err == nil {
		list = append(list, byPlugins)
	}
	if len(list) == 0 {
		t.Skip("the kernel has no nftables, and iptables is not installed")
	}
	return list
}

func TestTwoContainersListenOnOnePortAndReachEachOther(t *testing.T) {
	h := bridged(t, "none")
	before := h.traces()
	one, two := h.launch(asking("one", named("mosaic"))), h.launch(asking("two", named("mosaic")))
	a, b := h.address(one), h.address(two)
	if a == b {
		t.Fatalf("both containers have the address %s, want two", a)
	}
	h.serve(one, 80, "one")
	h.serve(two, 80, "two")
	for _, ask := range []struct {
		from *isolatorv1.ContainerRecord
		to   string
		want string
	}{{nil, a, "one"}, {nil, b, "two"}, {one, b, "two"}, {two, a, "one"}, {one, "127.0.0.1", "one"}} {
		got, err := h.ask(ask.from, ask.to+":80")
		if err != nil || got != ask.want {
			t.Errorf("connect from container %q to %s:80 = %q, %v; want %q", ask.from.GetContainer().GetId(), ask.to, got, err, ask.want)
		}
	}
	if path, err := exec.LookPath("ping"); err == nil {
		err := inNetns(h.netns(one), func() error { return exec.Command(path, "-c", "1", "-W", "5", b).Run() })
		if err != nil {
			t.Errorf("ping from %s to %s: %v", a, b, err)
		}
	}
	h.cleanup(one)
	h.cleanup(two)
	h.leaks(before)
}

func TestPublishedPortsLeadToTheContainer(t *testing.T) {
	for _, backend := range backends(t) {
		t.Run(backend, func(t *testing.T) {
			h := bridged(t, backend)
			before := h.traces()
			web, other := h.launch(asking("web", published("mosaic", 18080, 80))), h.launch(asking("other", named("mosaic")))
			h.serve(web, 80, "web")
			gateway := strings.Join(strings.Split(h.address(web), ".")[:2], ".") + ".0.1"
			for _, ask := range []struct {
				from *isolatorv1.ContainerRecord
				to   string
			}{{nil, "127.0.0.1:18080"}, {nil, gateway + ":18080"}, {other, gateway + ":18080"}, {web, gateway + ":18080"}} {
				if got, err := h.ask(ask.from, ask.to); err != nil || got != "web" {
					t.Errorf("connect from container %q to %s = %q, %v; want %q", ask.from.GetContainer().GetId(), ask.to, got, err, "web")
				}
			}
			h.cleanup(web)
			if got, err := h.ask(nil, "127.0.0.1:18080"); err == nil {
				t.Errorf("the port leads somewhere after Cleanup: %q", got)
			}
			h.cleanup(other)
			h.leaks(before)
		})
	}
}

func TestAddressesHoldAcrossARestartOfTheModule(t *testing.T) {
	h := bridged(t, "none")
	before := h.traces()
	r := h.launch(asking("one", named("mosaic")))
	h.serve(r, 80, "one")
	a := h.address(r)
	h.restart()
	r.Pid = int32(os.Getpid())
	h.recover(r)
	h.checks.wait()
	if got, err := h.ask(nil, a+":80"); err != nil || got != "one" || h.address(r) != a {
		t.Errorf("after a restart: connect = %q, %v, address %s; want %q at %s", got, err, h.address(r), "one", a)
	}
	h.cleanup(r)
	h.leaks(before)
}

func TestABridgeThatLostItsAddressIsMended(t *testing.T) {
	h := bridged(t, "none")
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("ip is not installed")
	}
	for _, command := range []string{
		"link del " + bridgeInterface, "link add " + bridgeInterface + " type bridge", "link add kept7 type veth peer name kept8",
		"link set kept7 master " + bridgeInterface, "link del kept7",
	} {
		if out, err := exec.Command("ip", strings.Fields(command)...).CombinedOutput(); err != nil && !strings.HasPrefix(command, "link del mosaic0") {
			t.Fatalf("ip %s: %v: %s", command, err, out)
		}
	}
	if at, err := net.InterfaceByName(bridgeInterface); err != nil || len(at.HardwareAddr) != 0 { // zero is told as none
		t.Fatalf("bridge = %v, %v; want one without an address", at, err)
	}
	before := h.traces()
	r := h.launch(asking("mended", named("mosaic")))
	at, err := net.InterfaceByName(bridgeInterface)
	if err != nil {
		t.Fatal(err)
	}
	h.cleanup(r)
	h.leaks(before)
	after, err := net.InterfaceByName(bridgeInterface)
	if err != nil || after.HardwareAddr.String() != at.HardwareAddr.String() {
		t.Errorf("the bridge's address was %s with a container and is %v, %v without; want it to stay", at.HardwareAddr, after, err)
	}
}

func (h *host) recover(records ...*isolatorv1.ContainerRecord) []string {
	h.t.Helper()
	s, err := h.Client.Isolator.Recover(h.context())
	if err != nil {
		h.t.Fatal(err)
	}
	if err := s.Send(&isolatorv1.RecoverRequest{Containers: records}); err != nil {
		h.t.Fatal(err)
	}
	a, err := s.CloseAndRecv()
	if err != nil {
		h.t.Fatalf("Recover: %v", err)
	}
	return a.GetUnknown()
}

func TestANetworkIsTakenBackWhateverIsLostOfIt(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, h *host, r *isolatorv1.ContainerRecord){
		"nothing": func(*testing.T, *host, *isolatorv1.ContainerRecord) {},
		"the namespace": func(t *testing.T, h *host, r *isolatorv1.ContainerRecord) {
			if err := unix.Unmount(h.netns(r), unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
		},
		"the folder": func(t *testing.T, h *host, r *isolatorv1.ContainerRecord) { // as after a restart of the machine
			if err := unix.Unmount(h.netns(r), unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(h.run); err != nil {
				t.Fatal(err)
			}
		},
		"the state":  func(_ *testing.T, _ *host, r *isolatorv1.ContainerRecord) { r.State, r.StateVersion = nil, 0 },
		"the module": func(_ *testing.T, h *host, _ *isolatorv1.ContainerRecord) { h.restart() },
		"folder and state": func(t *testing.T, h *host, r *isolatorv1.ContainerRecord) {
			if err := unix.Unmount(h.netns(r), unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(h.run); err != nil {
				t.Fatal(err)
			}
			r.State, r.StateVersion = nil, 0
		},
		"the record": func(t *testing.T, h *host, r *isolatorv1.ContainerRecord) {
			if err := os.WriteFile(filepath.Join(h.run, "lost", "record.json"), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := bridged(t, "none")
			before := h.traces()
			r := h.launch(asking("lost", named("mosaic")))
			lose(t, h, r)
			h.cleanup(r)
			h.cleanup(r)
			h.leaks(before)
		})
	}
}

func TestAnAddressThatIsAskedForIsGivenOrTheLaunchFails(t *testing.T) {
	h := bridged(t, "none")
	before := h.traces()
	info := func(address string) *mesosv1.NetworkInfo {
		return &mesosv1.NetworkInfo{Name: proto.String("mosaic"), IpAddresses: []*mesosv1.NetworkInfo_IPAddress{{IpAddress: &address}}}
	}
	first := h.launch(asking("first", named("mosaic")))
	want := h.address(first)
	want = want[:strings.LastIndexByte(want, '.')] + ".77"
	r := h.launch(asking("asks", info(want)))
	if got := h.address(r); got != want {
		t.Errorf("address = %s, want %s", got, want)
	}
	for _, bad := range []string{want, "203.0.113.9"} { // taken; of another subnet
		c := asking("refused", info(bad))
		if _, err := h.prepare(c); err == nil || !strings.Contains(err.Error(), "network mosaic") {
			t.Errorf("Prepare with address %s = %v, want a refusal that names the network", bad, err)
		}
		h.cleanup(&isolatorv1.ContainerRecord{Container: c})
	}
	h.cleanup(r)
	h.cleanup(first)
	h.leaks(before)
}

func TestUsageCountsWhatGoesThroughTheContainersInterfaces(t *testing.T) {
	h := bridged(t, "none")
	one, two := h.launch(asking("one", named("mosaic"))), h.launch(asking("two", named("mosaic")))
	usage := func(r *isolatorv1.ContainerRecord) *mesosv1.ResourceStatistics {
		t.Helper()
		a, err := h.Client.Isolator.Usage(h.context(), &isolatorv1.UsageRequest{Records: []*isolatorv1.ContainerRecord{r}})
		if err != nil || a.GetResults()[r.GetContainer().GetId()].GetStatistics() == nil {
			t.Fatalf("Usage = %v, %v", a, err)
		}
		return a.GetResults()[r.GetContainer().GetId()].GetStatistics()
	}
	h.serve(one, 80, strings.Repeat("x", 90))
	before, idle := usage(one), usage(two)
	for range 20 {
		if _, err := h.ask(nil, h.address(one)+":80"); err != nil {
			t.Fatal(err)
		}
	}
	after := usage(one)
	if n := after.GetNetTxBytes() - before.GetNetTxBytes(); n < 20*90 {
		t.Errorf("net_tx_bytes grew by %d, want at least what was sent, %d", n, 20*90)
	}
	if after.GetNetRxPackets() <= before.GetNetRxPackets() {
		t.Errorf("net_rx_packets = %d after %d, want more", after.GetNetRxPackets(), before.GetNetRxPackets())
	}
	if n := usage(two).GetNetTxBytes() - idle.GetNetTxBytes(); n > 20*90 {
		t.Errorf("the idle container sent %d bytes, want hardly any", n)
	}
	if got := after.GetNetSnmpStatistics().GetTcpStats().GetPassiveOpens(); got < 20 {
		t.Errorf("tcp_stats.PassiveOpens = %d, want at least 20", got)
	}
}

func TestTheBuiltInSubnetIsOneThatTheHostHasNoRouteTo(t *testing.T) {
	needHost(t)
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("ip is not installed")
	}
	dir := t.TempDir()
	var steps []string
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil { // a host of its own
			return err
		}
		for _, step := range []struct{ commands, want string }{
			{"link add kept0 type bridge; addr add 10.88.3.1/24 dev kept0; link set kept0 up; route add 10.90.0.0/15 dev kept0", "10.89.0.0/16"},
			{"", "10.89.0.0/16"},
			{"route add 10.89.7.0/24 dev kept0", "10.92.0.0/16"},
			{"link add " + bridgeInterface + " type bridge; addr add 10.95.0.1/16 dev " + bridgeInterface, "10.95.0.0/16"},
		} {
			for command := range strings.SplitSeq(step.commands, ";") {
				if args := strings.Fields(command); len(args) > 0 {
					if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
						return fmt.Errorf("ip %s: %w: %s", command, err, out)
					}
				}
			}
			got, err := chooseSubnet(dir)
			if err != nil || got.String() != step.want {
				steps = append(steps, fmt.Sprintf("after %q: %s, %v; want %s", step.commands, got, err, step.want))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range steps {
		t.Error(s)
	}
}
