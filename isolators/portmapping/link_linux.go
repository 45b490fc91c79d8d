package portmapping

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// inside is the name of a container's interface.
const inside = "eth0"

// Where a container's namespace looks for routes to the machine's own address: what is not the container's own port
// leads outside, to the table machineTable; the kernel's own rule for local addresses, which is always first, comes after.
const (
	machineTable  = 100
	rulesOwn      = 10
	rulesMachine  = 20
	rulesLocal    = 30
	localTable    = 255
	mostPortRules = 512 // ranges of offered ports with rules of their own; each packet sent to the machine passes them
)

// linkName is the name of the machine's end of a container's link.
func linkName(id string) string {
	sum := sha256.Sum256([]byte(id))
	return "mo" + hex.EncodeToString(sum[:6])
}

// linkIP is the address of the machine's end of every link.
func linkIP() *net.IPNet {
	return &net.IPNet{IP: net.IPv4(169, 254, 77, 77).To4(), Mask: net.CIDRMask(32, 32)}
}

// uplink is where the machine meets the outside.
type uplink struct {
	index, mtu int
	address    [4]byte
}

func (u uplink) ip() net.IP { return net.IP(u.address[:]).To4() }

// findUplink finds the interface that leads outside and its address.
func findUplink(cfg *Config) (uplink, error) {
	var link netlink.Link
	var err error
	if cfg.Uplink != "" {
		if link, err = netlink.LinkByName(cfg.Uplink); err != nil {
			return uplink{}, fmt.Errorf("eth0_name: interface %s: %w", cfg.Uplink, err)
		}
	} else {
		routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
		if err != nil {
			return uplink{}, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if ones, _ := mask(r.Dst); ones == 0 && r.LinkIndex > 0 {
				if link, err = netlink.LinkByIndex(r.LinkIndex); err != nil {
					return uplink{}, fmt.Errorf("interface %d of the default route: %w", r.LinkIndex, err)
				}
				break
			}
		}
		if link == nil {
			return uplink{}, errors.New("this machine has no default route: set eth0_name to the interface that leads outside")
		}
	}
	a := link.Attrs()
	if a.EncapType != "ether" {
		return uplink{}, fmt.Errorf("interface %s is of type %s, want Ethernet", a.Name, a.EncapType)
	}
	if a.Index > maxIndex {
		return uplink{}, fmt.Errorf("interface %s has the index %d", a.Name, a.Index)
	}
	addresses, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return uplink{}, fmt.Errorf("list addresses of %s: %w", a.Name, err)
	}
	for _, have := range addresses {
		if ip := have.IP.To4(); ip != nil && (cfg.Address == "" || have.IP.String() == cfg.Address) {
			return uplink{a.Index, a.MTU, [4]byte(ip)}, nil
		}
	}
	if cfg.Address != "" {
		return uplink{}, fmt.Errorf("interface %s does not have the address %s", a.Name, cfg.Address)
	}
	return uplink{}, fmt.Errorf("interface %s has no IPv4 address", a.Name)
}

func mask(n *net.IPNet) (ones, bits int) {
	if n == nil {
		return 0, 32
	}
	return n.Mask.Size()
}

// poolIsFree says whether the machine itself keeps away from the ports that containers get.
func poolIsFree(cfg *Config) error {
	pool, err := cfg.pool()
	if err != nil {
		return err
	}
	data, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return fmt.Errorf("read the machine's own ephemeral ports: %w", err)
	}
	own, ok := portRange(string(data))
	if !ok {
		return fmt.Errorf("read the machine's own ephemeral ports: got %q", data)
	}
	if both := pool.Intersect(resources.Ranges{own}); len(both) > 0 {
		return fmt.Errorf("ephemeral_ports %s overlap with the machine's own ephemeral ports %d-%d: change one of them (sysctl net.ipv4.ip_local_port_range)",
			cfg.Ephemeral, own.Begin, own.End)
	}
	return nil
}

func portRange(text string) (resources.Range, bool) {
	f := strings.Fields(text)
	if len(f) != 2 {
		return resources.Range{}, false
	}
	begin, err1 := strconv.ParseUint(f[0], 10, 16)
	end, err2 := strconv.ParseUint(f[1], 10, 16)
	return resources.Range{Begin: begin, End: end}, err1 == nil && err2 == nil && begin <= end
}

// isFurnished says whether a container has its link.
func isFurnished(id string) bool {
	_, err := netlink.LinkByName(linkName(id))
	return err == nil
}

// removeLink removes a container's link, both ends of it.
func removeLink(id string) error {
	link, err := netlink.LinkByName(linkName(id))
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

// portsOf adds up the ports of a container's resources.
func portsOf(c *containerv1.Container) resources.Ranges {
	var list []resources.Range
	for _, r := range c.GetResources() {
		if r.GetName() != "ports" || r.GetType() != mesosv1.Value_RANGES {
			continue
		}
		list = append(list, rangesOf(r.GetRanges())...)
	}
	return resources.NewRanges(list...)
}

func rangesOf(v *mesosv1.Value_Ranges) resources.Ranges {
	var list []resources.Range
	for _, r := range v.GetRange() {
		list = append(list, resources.Range{Begin: r.GetBegin(), End: r.GetEnd()})
	}
	return resources.NewRanges(list...)
}

// namespace is a container's network namespace, open.
type namespace struct {
	handle netns.NsHandle
	net    *netlink.Handle
}

// openNamespace opens the namespace of a process. It refuses the module's own: a container that is in it has none.
func openNamespace(pid int32) (*namespace, error) {
	handle, err := netns.GetFromPath(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, fmt.Errorf("open the network namespace of process %d: %w", pid, err)
	}
	own, err := machineNamespace()
	if err != nil {
		_ = handle.Close()
		return nil, fmt.Errorf("open the machine's network namespace: %w", err)
	}
	same := own.Equal(handle)
	_ = own.Close()
	if same {
		_ = handle.Close()
		return nil, fmt.Errorf("process %d is in the machine's network namespace", pid)
	}
	h, err := netlink.NewHandleAt(handle, unix.NETLINK_ROUTE, unix.NETLINK_INET_DIAG)
	if err != nil {
		_ = handle.Close()
		return nil, fmt.Errorf("reach the network namespace of process %d: %w", pid, err)
	}
	return &namespace{handle, h}, nil
}

func (n *namespace) close() {
	n.net.Close()
	_ = n.handle.Close()
}

// machineNamespace opens the namespace that the module is in: that of the calling thread, since the first thread's,
// which /proc/self shows, may be visiting a container.
func machineNamespace() (netns.NsHandle, error) { return netns.GetFromPath("/proc/thread-self/ns/net") }

// do calls f on a thread that is in the namespace: /proc/sys/net shows that of who looks.
func (n *namespace) do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // where the way back fails it is never let go of, and ends with the goroutine
		own, err := machineNamespace()
		if err != nil {
			done <- fmt.Errorf("open the machine's network namespace: %w", err)
			return
		}
		defer own.Close()
		if err := netns.Set(n.handle); err != nil {
			done <- fmt.Errorf("enter the network namespace: %w", err)
			return
		}
		err = f()
		if netns.Set(own) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

func sysctl(name, value string) error {
	if err := os.WriteFile(filepath.Join("/proc/sys/net/ipv4", name), []byte(value), 0); err != nil {
		return fmt.Errorf("sysctl net.ipv4.%s: %w", strings.ReplaceAll(name, "/", "."), err)
	}
	return nil
}

// furnish gives a container's namespace what it needs. What is there already stays, so that it can be repeated, and
// what changed is changed.
//
// For ports that others have it waits until ctx ends, and patience at most.
func (i *Isolator) furnish(ctx context.Context, r *isolatorv1.ContainerRecord, patience time.Duration) error {
	cfg, c := i.config.Get(), r.GetContainer()
	missing := i.ready()
	i.health(missing)
	if missing != nil {
		return module.FailedPrecondition("%v", missing)
	}
	at, err := findUplink(cfg)
	if err != nil {
		return module.FailedPrecondition("%v", err)
	}
	if r.GetPid() <= 0 || c.GetId() == "" {
		return module.FailedPrecondition("container %.80q has no process whose network could be furnished", c.GetId())
	}
	ns, err := openNamespace(r.GetPid())
	if err != nil {
		return module.FailedPrecondition("%v", err)
	}
	defer ns.close()
	var had *resources.Range
	if isFurnished(c.GetId()) {
		_ = ns.do(func() error { // without it a new range is given
			data, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
			if found, ok := portRange(string(data)); err == nil && ok {
				had = &found
			}
			return nil
		})
	}
	want := portsOf(c)
	own, s, err := i.await(ctx, patience, func() (resources.Range, *steering, error) { return i.give(cfg, at, c.GetId(), want, had) })
	if err != nil {
		return err
	}
	host, err := makeLink(at, c.GetId(), ns)
	if err != nil {
		return module.FailedPrecondition("make the link of container %s: %v", c.GetId(), err)
	}
	if err := settle(at, ns, want, own); err != nil {
		return module.FailedPrecondition("furnish the network of container %s: %v", c.GetId(), err)
	}
	if err := attach(host, netlink.HANDLE_MIN_INGRESS, s.out); err != nil {
		return module.FailedPrecondition("%v", err)
	}
	if err := limit(cfg, c, host, ns); err != nil {
		return module.FailedPrecondition("limit the network of container %s: %v", c.GetId(), err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if err := s.point(c.GetId(), host.Attrs().Index); err != nil {
		return module.FailedPrecondition("%v", err)
	}
	return nil
}

// await repeats give while others have the ports. A task's end is told, and its ports are offered again, before its
// container is cleaned up.
func (i *Isolator) await(ctx context.Context, patience time.Duration, give func() (resources.Range, *steering, error)) (resources.Range, *steering, error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		i.mu.Lock()
		freed := i.freed
		i.mu.Unlock()
		own, s, err := give()
		if status.Code(err) != codes.ResourceExhausted || patience == 0 {
			return own, s, err
		}
		select {
		case <-freed:
		case <-timer.C:
			return own, nil, err
		case <-ctx.Done():
			return own, nil, err
		}
	}
}

// give hands out ports. Until its interface is known they lead nowhere.
func (i *Isolator) give(cfg *Config, at uplink, id string, want resources.Ranges, had *resources.Range) (resources.Range, *steering, error) {
	pool, err := cfg.pool()
	if err != nil {
		return resources.Range{}, nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	s, err := i.steer(at)
	if err != nil {
		return resources.Range{}, nil, module.FailedPrecondition("%v", err)
	}
	own, err := s.take(id, want, pool, uint64(cfg.Per), had)
	return own, s, err
}

// makeLink makes the pair of interfaces, or finds it, and returns the machine's end, which is up.
func makeLink(at uplink, id string, ns *namespace) (netlink.Link, error) {
	name := linkName(id)
	host, err := netlink.LinkByName(name)
	if err == nil {
		if _, err := ns.net.LinkByName(inside); err == nil && host.Attrs().OperState == netlink.OperUp {
			return host, nil
		}
		// Half of one, or that of an earlier container of this id whose namespace somebody still holds.
		if err := removeLink(id); err != nil {
			return nil, err
		}
	}
	veth := &netlink.Veth{
		LinkAttrs:        netlink.LinkAttrs{Name: name, MTU: at.mtu, TxQLen: 1000, HardwareAddr: linkAddress(), Alias: "mosaic container " + id},
		PeerName:         inside,
		PeerHardwareAddr: linkAddress(),
		PeerNamespace:    netlink.NsFd(int(ns.handle)),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("add %s: %w", name, err)
	}
	if host, err = netlink.LinkByName(name); err != nil {
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	// What a container sends to the machine comes from the machine's own address.
	for _, s := range [][2]string{{"accept_local", "1"}, {"rp_filter", "2"}} {
		if err := sysctl("conf/"+name+"/"+s[0], s[1]); err != nil {
			return nil, err
		}
	}
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0) // there may be no IPv6
	// The loose check of sources (rp_filter 2, which holds if it is set for all interfaces) takes nothing from an
	// interface without an address. No route leads to this one.
	if err := netlink.AddrReplace(host, &netlink.Addr{IPNet: linkIP(), Scope: int(netlink.SCOPE_LINK)}); err != nil {
		return nil, fmt.Errorf("add an address to %s: %w", name, err)
	}
	if err := netlink.LinkSetARPOff(host); err != nil {
		return nil, fmt.Errorf("switch ARP off on %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(host); err != nil {
		return nil, fmt.Errorf("set %s up: %w", name, err)
	}
	return host, nil
}

// settle does what is to be done inside the namespace.
func settle(at uplink, ns *namespace, want resources.Ranges, own resources.Range) error {
	if err := ns.do(func() error {
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+inside+"/disable_ipv6", []byte("1"), 0) // there may be no IPv6
		for _, s := range [][2]string{
			{"ip_local_port_range", fmt.Sprintf("%d %d", own.Begin, own.End)},
			// From another container of this machine, or the machine itself, come packets from the very same address.
			{"conf/" + inside + "/accept_local", "1"}, {"conf/" + inside + "/rp_filter", "0"}, {"conf/all/rp_filter", "0"},
		} {
			if err := sysctl(s[0], s[1]); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	eth, err := ns.net.LinkByName(inside)
	if err != nil {
		return fmt.Errorf("find %s: %w", inside, err)
	}
	lo, err := ns.net.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := ns.net.LinkSetARPOff(eth); err != nil {
		return fmt.Errorf("switch ARP off: %w", err)
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: at.ip(), Mask: net.CIDRMask(32, 32)}}
	if err := ns.net.AddrReplace(eth, address); err != nil {
		return fmt.Errorf("add the address %s: %w", at.ip(), err)
	}
	for _, l := range []netlink.Link{lo, eth} {
		if err := ns.net.LinkSetUp(l); err != nil {
			return fmt.Errorf("set %s up: %w", l.Attrs().Name, err)
		}
	}
	for _, table := range []int{unix.RT_TABLE_MAIN, machineTable} {
		route := &netlink.Route{LinkIndex: eth.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, Scope: netlink.SCOPE_LINK, Table: table, Src: at.ip()}
		if err := ns.net.RouteReplace(route); err != nil {
			return fmt.Errorf("add a route: %w", err)
		}
	}
	return routeOwn(at, ns, resources.Ranges{own}.Union(want))
}

// routeOwn makes the container's own ports lead to itself and all others of the machine's address outside.
func routeOwn(at uplink, ns *namespace, own resources.Ranges) error {
	if len(own) > mostPortRules {
		return fmt.Errorf("the ports are in %d pieces, want at most %d", len(own), mostPortRules)
	}
	dst := &net.IPNet{IP: at.ip(), Mask: net.CIDRMask(32, 32)}
	rule := func(priority, table int) *netlink.Rule {
		r := netlink.NewRule()
		r.Family, r.Priority, r.Table = netlink.FAMILY_V4, priority, table
		return r
	}
	var want []*netlink.Rule
	for _, r := range own {
		for _, proto := range []int{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			one := rule(rulesOwn, localTable)
			one.IifName, one.Dst, one.IPProto, one.Dport = "lo", dst, proto, netlink.NewRulePortRange(uint16(r.Begin), uint16(r.End))
			want = append(want, one)
		}
	}
	machine := rule(rulesMachine, machineTable)
	machine.IifName, machine.Dst = "lo", dst
	want = append(want, machine, rule(rulesLocal, localTable))
	have, err := ns.net.RuleList(netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list rules: %w", err)
	}
	same := func(a, b *netlink.Rule) bool {
		return a.Priority == b.Priority && a.IPProto == b.IPProto && (a.Dport == nil) == (b.Dport == nil) && (a.Dport == nil || *a.Dport == *b.Dport)
	}
	for _, w := range want {
		there := false
		for n := range have {
			there = there || same(w, &have[n])
		}
		if !there {
			if err := ns.net.RuleAdd(w); err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("add a rule: %w", err)
			}
		}
	}
	for n := range have { // the kernel's first, and those of ports that are no longer its own
		h := &have[n]
		stale := h.Priority == 0 || h.Priority == -1 || h.Priority == rulesOwn
		for _, w := range want {
			stale = stale && !same(w, h)
		}
		if !stale {
			continue
		}
		h.Family = netlink.FAMILY_V4
		if h.Priority <= 0 {
			h = rule(0, localTable)
		}
		if err := ns.net.RuleDel(h); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove a rule: %w", err)
		}
	}
	return nil
}
