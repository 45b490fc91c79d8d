package cni

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// Addresses of a network beside the machine: its own, and that of its neighbour.
const (
	machineOutside = "192.0.2.1"
	neighbour      = "192.0.2.2"
)

// outside is another machine, which has this one as its router. It gives the file of its network namespace.
func outside(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "outside")
	if err := makeNetns(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := dropNetns(path); err != nil {
			t.Error(err)
		}
	})
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	attributes := netlink.NewLinkAttrs()
	attributes.Name = "kept-out"
	veth := &netlink.Veth{LinkAttrs: attributes, PeerName: "kept-in", PeerNamespace: netlink.NsFd(fd)}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(veth); err != nil {
			t.Error(err)
		}
	})
	furnish := func(name, address, gateway string) error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(address + "/24")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, a); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil || gateway == "" {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(gateway)})
	}
	if err := furnish("kept-out", machineOutside, ""); err != nil {
		t.Fatal(err)
	}
	if err := inNetns(path, func() error { return furnish("kept-in", neighbour, machineOutside) }); err != nil {
		t.Fatal(err)
	}
	return path
}

// command runs a program whose failure ends the test, and gives what it prints.
func command(t *testing.T, line string) string {
	t.Helper()
	words := strings.Fields(line)
	out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
	return string(out)
}

// A firewall is a machine's own that drops what is forwarded.
type firewall struct {
	name     string
	program  string // that it needs
	up, down []string
	show     string
}

func firewalls(t *testing.T) []firewall {
	t.Helper()
	all := []firewall{
		{
			"policy of iptables on nftables", "iptables-nft",
			[]string{"iptables-nft -P FORWARD DROP"}, []string{"iptables-nft -P FORWARD ACCEPT"}, "iptables-nft -S FORWARD",
		},
		{
			"policy of legacy iptables", "iptables-legacy",
			[]string{"iptables-legacy -P FORWARD DROP"}, []string{"iptables-legacy -P FORWARD ACCEPT"}, "iptables-legacy -S FORWARD",
		},
		{
			"last rule of iptables", "iptables-nft",
			[]string{"iptables-nft -A FORWARD -j REJECT"}, []string{"iptables-nft -D FORWARD -j REJECT"}, "iptables-nft -S FORWARD",
		},
		{
			"policy of a table of its own", "nft",
			[]string{"nft add table inet kept", "nft add chain inet kept forward { type filter hook forward priority 0 ; policy drop ; }"},
			[]string{"nft delete table inet kept"}, "nft list chain inet kept forward",
		},
	}
	var here []firewall
	for _, f := range all {
		if _, err := exec.LookPath(f.program); err == nil {
			here = append(here, f)
		}
	}
	if len(here) == 0 {
		t.Skip("neither iptables nor nft is installed")
	}
	return here
}

func TestContainersAreReachedOnMachinesThatDropWhatTheyForward(t *testing.T) {
	for _, backend := range backends(t) {
		for _, f := range firewalls(t) {
			t.Run(backend+"/"+f.name, func(t *testing.T) {
				h := bridged(t, backend)
				away := outside(t)
				for _, line := range f.up {
					command(t, line)
				}
				t.Cleanup(func() {
					for _, line := range f.down {
						command(t, line)
					}
				})
				before, filter := h.traces(), command(t, f.show)
				web, other := h.launch(asking("web", published("mosaic", 18080, 80))), h.launch(asking("other", named("mosaic")))
				h.serve(web, 80, "web")
				serveIn(t, away, neighbour+":8080", "neighbour")
				at := h.address(web)
				reach := func(when string) {
					t.Helper()
					for _, ask := range []struct{ from, netns, to, want string }{
						{"the machine", "", "127.0.0.1:18080", "web"},
						{"outside", away, machineOutside + ":18080", "web"},
						{"another container", h.netns(other), machineOutside + ":18080", "web"},
						{"another container", h.netns(other), at + ":80", "web"},
						{"the container itself", h.netns(web), machineOutside + ":18080", "web"},
						{"the container", h.netns(web), neighbour + ":8080", "neighbour"},
					} {
						if got, err := askFrom(ask.netns, ask.to); err != nil || got != ask.want {
							t.Errorf("%s: from %s to %s = %q, %v; want %q", when, ask.from, ask.to, got, err, ask.want)
						}
					}
				}
				reach("at first")
				// What the machine did not let through before it does not now: ports that nobody published.
				if got, err := askFrom(away, at+":80"); err == nil { // takes all the patience there is
					t.Errorf("from outside to %s:80, which is not published, = %q; want no way", at, got)
				}
				if strings.HasPrefix(f.show, "iptables") {
					if text := command(t, f.show); !strings.Contains(text, "-i "+bridgeInterface) || !strings.Contains(text, "DNAT") {
						t.Errorf("%s does not show the rules as its own:\n%s", f.show, text)
					}
				}
				// Somebody loads the firewall anew, and the agent is started again.
				for _, line := range f.down {
					command(t, line)
				}
				switch f.program {
				case "iptables-nft", "iptables-legacy":
					command(t, f.program+" -F FORWARD")
				}
				for _, line := range f.up {
					command(t, line)
				}
				h.restart()
				for _, r := range []*isolatorv1.ContainerRecord{web, other} {
					r.Pid = int32(os.Getpid())
				}
				h.recover(web, other)
				h.checks.wait()
				reach("with the firewall loaded anew")

				h.cleanup(web)
				if got, err := askFrom(h.netns(other), neighbour+":8080"); err != nil || got != "neighbour" {
					t.Errorf("with one container gone the other reaches %q, %v outside; want %q", got, err, "neighbour")
				}
				h.cleanup(other)
				if after := command(t, f.show); after != filter {
					t.Errorf("the filter was\n%s\nand is, with the containers gone,\n%s", filter, after)
				}
				h.leaks(before)
			})
		}
	}
}

func TestALegacyFilterWithoutItsProgramRefusesTheLaunch(t *testing.T) {
	h := bridged(t, byKernel)
	if _, err := exec.LookPath("iptables-legacy"); err != nil {
		t.Skip("iptables-legacy is not installed")
	}
	command(t, "iptables-legacy -P FORWARD DROP")
	t.Cleanup(func() { command(t, "iptables-legacy -P FORWARD ACCEPT") })
	before := h.traces()
	path := os.Getenv("PATH")
	t.Setenv("PATH", t.TempDir()) // as if it had come from elsewhere, a container of another manager's
	c := asking("web", named("mosaic"))
	_, err := h.prepare(c)
	t.Setenv("PATH", path)
	if err == nil || !strings.Contains(err.Error(), "legacy iptables") || !strings.Contains(err.Error(), bridgeInterface) {
		t.Errorf("Prepare = %v, want a refusal that names legacy iptables and the bridge", err)
	}
	h.cleanup(&isolatorv1.ContainerRecord{Container: c})
	h.leaks(before)
}

func TestAPortThatAnotherContainerPublishesIsRefused(t *testing.T) {
	h := bridged(t, byKernel)
	before := h.traces()
	h.portPatience = 100 * time.Millisecond
	first := h.launch(asking("first", published("mosaic", 18080, 80)))
	c := asking("second", published("mosaic", 18080, 81))
	if _, err := h.prepare(c); err == nil || !strings.Contains(err.Error(), "first") || !strings.Contains(err.Error(), "18080") {
		t.Errorf("Prepare = %v, want a refusal that names the port and the container that has it", err)
	}
	h.cleanup(&isolatorv1.ContainerRecord{Container: c})
	h.serve(first, 80, "first")
	if got, err := h.ask(nil, "127.0.0.1:18080"); err != nil || got != "first" {
		t.Errorf("the port of the first container leads to %q, %v", got, err)
	}
	// An entry that is all that is left of a container is nobody's.
	for _, lease := range leaseFiles(t, "first") {
		if err := os.Remove(lease); err != nil {
			t.Fatal(err)
		}
	}
	second := h.launch(c)
	h.serve(second, 81, "second")
	if got, err := h.ask(nil, "127.0.0.1:18080"); err != nil || got != "second" {
		t.Errorf("the port leads to %q, %v; want the second container", got, err)
	}
	h.cleanup(first)
	if got, err := h.ask(nil, "127.0.0.1:18080"); err != nil || got != "second" {
		t.Errorf("with the first container gone the port leads to %q, %v; want the second", got, err)
	}
	h.cleanup(second)
	h.leaks(before)
}

// A task's end is told before its container is cleaned up, and the next one may be given its ports at once.
func TestAPortIsWaitedForWhileItsContainerIsCleanedUp(t *testing.T) {
	h := bridged(t, byKernel)
	before := h.traces()
	first := h.launch(asking("first", published("mosaic", 18080, 80)))
	c := asking("second", published("mosaic", 18080, 81))
	prepared := make(chan error, 1)
	go func() {
		_, err := h.prepare(c)
		prepared <- err
	}()
	for len(leaseFiles(t, "second")) == 0 { // its ADD was done, and its port is asked for next
		select {
		case err := <-prepared:
			t.Fatalf("Prepare = %v before the port was free", err)
		case <-time.After(5 * time.Millisecond): // another process's step
		}
	}
	h.cleanup(first)
	if err := <-prepared; err != nil {
		t.Errorf("Prepare = %v, want it to wait for the port", err)
	}
	h.cleanup(&isolatorv1.ContainerRecord{Container: c})
	h.leaks(before)
}

func TestAPortGoesToTheContainerThatWasGivenIt(t *testing.T) {
	h := bridged(t, byKernel)
	before := h.traces()
	given := func(id string) *containerv1.Container {
		c := asking(id, published("mosaic", 18080, 80))
		name, port := "ports", uint64(18080)
		c.Resources = []*mesosv1.Resource{{
			Name: &name, Type: mesosv1.Value_RANGES.Enum(), Ranges: &mesosv1.Value_Ranges{Range: []*mesosv1.Value_Range{{Begin: &port, End: &port}}},
		}}
		return c
	}
	first := h.launch(given("first"))
	// The agent gives a port to the next when the first has ended, and cleans up later.
	second := h.launch(given("second"))
	h.serve(second, 80, "second")
	ask := func(when string) {
		t.Helper()
		if got, err := h.ask(nil, "127.0.0.1:18080"); err != nil || got != "second" {
			t.Errorf("%s the port leads to %q, %v; want the second container", when, got, err)
		}
	}
	ask("before the first is cleaned up")
	h.cleanup(first)
	ask("with the first cleaned up")
	h.cleanup(second)
	h.leaks(before)
}

// leaseFiles are the files of a container's addresses.
func leaseFiles(t *testing.T, id string) []string {
	t.Helper()
	files, err := filepath.Glob(leases + "/*/*.*.*.*")
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(data), id) {
			list = append(list, f)
		}
	}
	return list
}

func TestLoopbackServicesOfTheMachineAreNotReachedByTheBridge(t *testing.T) {
	h := bridged(t, byKernel)
	before := h.traces()
	r := h.launch(asking("curious", published("mosaic", 18080, 80)))
	l, err := net.ListenPacket("udp", "127.0.0.1:18081") // one packet does harm enough
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	// A container that may change its routes sends packets for the machine's loopback to the machine.
	err = inNetns(h.netns(r), func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/eth0/route_localnet", []byte("1"), 0o644); err != nil {
			return err
		}
		own, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		loopback, err := netlink.ParseAddr("127.0.0.1/8")
		if err != nil {
			return err
		}
		if err := netlink.AddrDel(own, loopback); err != nil {
			return err
		}
		_, all, err := net.ParseCIDR("127.0.0.0/8")
		if err != nil {
			return err
		}
		gateway := net.ParseIP(strings.Join(strings.Split(h.address(r), ".")[:2], ".") + ".0.1")
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: all, Gw: gateway}); err != nil {
			return err
		}
		c, err := net.Dial("udp", "127.0.0.1:18081")
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("harm"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, from, err := l.ReadFrom(make([]byte, 100)); err == nil {
		t.Errorf("a packet of the container's reaches a service of the machine's loopback, from %s", from)
	}
	h.cleanup(r)
	h.leaks(before)
}

func TestDatagramsReachPublishedPortsToo(t *testing.T) {
	h := bridged(t, byKernel)
	before := h.traces()
	info := published("mosaic", 18053, 53)
	udp := "UDP"
	info.PortMappings[0].Protocol = &udp
	r := h.launch(asking("names", info))
	var server net.PacketConn
	if err := inNetns(h.netns(r), func() (err error) {
		server, err = net.ListenPacket("udp", ":53")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, 100)
		for {
			n, from, err := server.ReadFrom(buffer)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(append([]byte("heard "), buffer[:n]...), from)
		}
	}()
	client, err := net.Dial("udp", "127.0.0.1:18053")
	if err != nil {
		t.Fatal(err)
	}
	if err := client.SetDeadline(deadline()); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprint(client, "this"); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 100)
	if n, err := client.Read(buffer); err != nil || string(buffer[:n]) != "heard this" {
		t.Errorf("the published port answers %q, %v; want %q", buffer[:n], err, "heard this")
	}
	client.Close()
	server.Close()
	<-done
	h.cleanup(r)
	h.leaks(before)
}
