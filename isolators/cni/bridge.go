package cni

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// The built-in network: a bridge of this machine, addresses leased from one subnet, what leaves the machine
// masqueraded, ports published. It is there for those who have configured nothing.

// bridgeInterface is the bridge's name on the host. All agents of a machine share it.
const bridgeInterface = "mosaic0"

// leases is where the built-in network's addresses are leased, for all agents of a machine. It is gone after a restart
// of the machine, as the containers are.
const leases = "/run/mosaic/cni-leases"

// candidates are the subnets to choose from: the first that nothing on this machine has a route to.
func candidates() []netip.Prefix {
	var list []netip.Prefix
	for second := byte(88); second < 104; second++ {
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, second, 0, 0}), 16))
	}
	for third := byte(200); third < 232; third++ {
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, third, 0}), 24))
	}
	return list
}

// What the built-in network's rules are made by.
const (
	byKernel  = "nftables" // this module, which tells the kernel
	byPlugins = "iptables" // the plugins, which run that program, where the kernel has no nftables
	byNobody  = "none"
)

// builtIn is the configuration of the built-in network. Where nobody makes rules it has neither masquerading nor
// published ports, and asking for those fails.
func builtIn(name string, subnet netip.Prefix, rules string) (*network, error) {
	type object = map[string]any
	bridge := object{
		"type": "bridge", "bridge": bridgeInterface, "isGateway": true, "hairpinMode": true,
		"capabilities": object{"ips": true},
		"ipam": object{
			"type": "host-local", "dataDir": leases,
			"ranges": [][]object{{{"subnet": subnet.String()}}}, "routes": []object{{"dst": "0.0.0.0/0"}},
		},
	}
	plugins := []object{bridge}
	if rules == byPlugins {
		bridge["ipMasq"], bridge["ipMasqBackend"] = true, "iptables"
		plugins = append(plugins, object{"type": "portmap", "snat": true, "backend": "iptables", "capabilities": object{"portMappings": true}})
	}
	data, err := json.Marshal(object{"name": name, "cniVersion": "1.0.0", "plugins": plugins})
	if err != nil {
		return nil, err
	}
	n, err := parseNetwork(data)
	if err != nil {
		return nil, err
	}
	n.builtIn, n.rules = true, rules
	return n, nil
}

// portPatience is how long a published port is waited for that another container has and may be giving back.
const portPatience = 10 * time.Second

// connectSoon is connect for a container that is being launched.
//
// A task's end is told, and its ports are offered again, before its container is cleaned up. So a port that was given to
// this container, as its resources say, is taken from one of the same agent's that had it. Any other is waited for: that
// ports are published which nobody was given is allowed, but not at the cost of those who were first.
func (i *Isolator) connectSoon(ctx context.Context, cfg *Config, c *containerv1.Container, r *record, a *attachment) error {
	given := portsOf(c)
	yields := func(port uint32, owner string) bool {
		if !given.Contains(resources.Ranges{{Begin: uint64(port), End: uint64(port)}}) || !plainID.MatchString(owner) {
			return false
		}
		_, err := os.Stat(filepath.Join(cfg.RunDir, owner, "record.json")) // the owner is as plugins know it
		return err == nil
	}
	patience := time.NewTimer(i.portPatience)
	defer patience.Stop()
	again := time.NewTicker(50 * time.Millisecond) // another agent's may be given back, too
	defer again.Stop()
	for {
		i.mu.Lock()
		freed := i.freed
		i.mu.Unlock()
		err := connect(ctx, r, a, yields)
		var taken *takenError
		if !errors.As(err, &taken) {
			return err
		}
		select {
		case <-freed:
		case <-again.C:
		case <-patience.C:
			return err
		case <-ctx.Done():
			return err
		}
	}
}

// portsOf are the ports among a container's resources.
func portsOf(c *containerv1.Container) resources.Ranges {
	var list []resources.Range
	for _, r := range c.GetResources() {
		if r.GetName() == "ports" {
			for _, v := range r.GetRanges().GetRange() {
				list = append(list, resources.Range{Begin: v.GetBegin(), End: v.GetEnd()})
			}
		}
	}
	return resources.NewRanges(list...)
}

// nobodyYields is for containers that run.
func nobodyYields(uint32, string) bool { return false }

// connect makes the rules that the network and one of its containers need, after its ADD.
func connect(ctx context.Context, r *record, a *attachment, yields func(port uint32, owner string) bool) error {
	if a.Rules != byKernel && a.Rules != byPlugins {
		return nil
	}
	return changeRules(ctx, a.Rules, func(c *nftables.Conn) error {
		if err := letThrough(ctx, c); err != nil {
			return err
		}
		if a.Rules == byPlugins {
			return nil
		}
		at, subnet := leased(a.Result)
		if !at.IsValid() {
			return errors.New("the plugin gave no IPv4 address")
		}
		if err := makeTable(c, subnet); err != nil {
			return fmt.Errorf("rules of the network: %w", err)
		}
		return publish(c, r.ID, a.info().GetPortMappings(), at, yields)
	})
}

// disconnect takes a container's rules back, before its DEL: none may lead to an address that is another's already.
func (i *Isolator) disconnect(ctx context.Context, r *record) error {
	if !slices.ContainsFunc(r.Networks, func(a attachment) bool { return a.Begun && !a.Gone && a.Rules == byKernel }) {
		return nil
	}
	if err := changeRules(ctx, byKernel, func(c *nftables.Conn) error { return withdraw(c, r.ID) }); err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	close(i.freed)
	i.freed = make(chan struct{})
	return nil
}

// closeDown takes the network's rules back if no container is left, of whichever agent.
func closeDown(ctx context.Context, a *attachment) error {
	if a.Rules != byKernel && a.Rules != byPlugins {
		return nil
	}
	return changeRules(ctx, a.Rules, func(c *nftables.Conn) error {
		if len(leaseholders(leases)) > 0 {
			return nil
		}
		if err := letThroughNoMore(ctx, c); err != nil || c == nil {
			return err
		}
		return removeTable(c)
	})
}

// leased is the address that the built-in network gave a container, and the subnet it is of.
func leased(result json.RawMessage) (netip.Addr, netip.Prefix) {
	if r := parseResult(result); r != nil {
		for _, ip := range r.IPs {
			bits, _ := ip.Address.Mask.Size()
			if a, ok := netip.AddrFromSlice(ip.Address.IP); ok && a.Unmap().Is4() {
				return a.Unmap(), netip.PrefixFrom(a.Unmap(), bits).Masked()
			}
		}
	}
	return netip.Addr{}, netip.Prefix{}
}

// leaseholders are the containers that have addresses of the built-in network, as the plugin writes it down: a file for
// each address, whose first word is the container.
func leaseholders(dir string) map[string]bool {
	files, _ := filepath.Glob(filepath.Join(dir, "*", "*")) // the pattern is no wrong one
	found := map[string]bool{}
	for _, f := range files {
		if _, err := netip.ParseAddr(filepath.Base(f)); err != nil {
			continue
		}
		data, err := os.ReadFile(f)
		if err != nil {
			continue // given back meanwhile
		}
		id, _, _ := strings.Cut(string(data), "\n")
		found[strings.TrimSpace(id)] = true
	}
	return found
}

// ensureBridge makes the built-in network's bridge with an address of its own, or gives one to a bridge that has none.
//
// The plugin makes the bridge first and fixes its address later. Killed in between it leaves a bridge whose address is
// that of a port, and zero when the last port has gone: which the plugin then tries to fix, and fails for ever.
func ensureBridge() error {
	address := make(net.HardwareAddr, 6)
	if _, err := rand.Read(address); err != nil {
		return err
	}
	address[0] = address[0]&^1 | 2 // of one station, administered locally
	at, err := net.InterfaceByName(bridgeInterface)
	if err == nil && slices.ContainsFunc(at.HardwareAddr, func(b byte) bool { return b != 0 }) {
		return nil // a zero address is told as none
	}
	attributes := netlink.NewLinkAttrs()
	attributes.Name, attributes.HardwareAddr = bridgeInterface, address
	bridge := &netlink.Bridge{LinkAttrs: attributes}
	if err != nil {
		if err := netlink.LinkAdd(bridge); err != nil && !errors.Is(err, syscall.EEXIST) {
			return fmt.Errorf("make bridge %s: %w", bridgeInterface, err)
		}
		return nil
	}
	bridge.Index = at.Index
	if err := netlink.LinkSetHardwareAddr(bridge, address); err != nil {
		return fmt.Errorf("address of bridge %s: %w", bridgeInterface, err)
	}
	return nil
}

// ruleMaker is what rules can be made by on this machine.
func ruleMaker() string {
	if hasNftables() {
		return byKernel
	}
	if _, err := exec.LookPath("iptables"); err == nil {
		return byPlugins
	}
	return byNobody
}

// chooseSubnet returns the built-in network's subnet: that which its bridge has, that which another agent chose since
// the machine started, or the first that is free. The choice is written down, so that agents agree.
func chooseSubnet(dir string) (netip.Prefix, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return netip.Prefix{}, err
	}
	file, err := os.OpenFile(filepath.Join(dir, "subnet"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return netip.Prefix{}, err
	}
	defer file.Close() // and with it the lock
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX); err != nil {
		return netip.Prefix{}, fmt.Errorf("lock %s: %w", file.Name(), err)
	}
	taken, own, err := occupied()
	if err != nil {
		return netip.Prefix{}, err
	}
	if own.IsValid() {
		return own, nil
	}
	text := make([]byte, 64)
	n, _ := file.ReadAt(text, 0)
	if kept, err := netip.ParsePrefix(strings.TrimSpace(string(text[:n]))); err == nil && free(kept, taken) {
		return kept, nil
	}
	for _, p := range candidates() {
		if free(p, taken) {
			if err := file.Truncate(0); err != nil {
				return p, err
			}
			_, err := file.WriteAt([]byte(p.String()+"\n"), 0)
			return p, err
		}
	}
	return netip.Prefix{}, fmt.Errorf("no subnet is free for the built-in network, set bridge_subnet")
}

func free(p netip.Prefix, taken []netip.Prefix) bool {
	for _, t := range taken {
		if t.Bits() > 0 && t.Overlaps(p) { // a default route takes nothing
			return false
		}
	}
	return true
}

// occupied are the subnets that this machine has addresses in or routes to, and that of the built-in bridge, if it is
// there already.
func occupied() (taken []netip.Prefix, own netip.Prefix, err error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, own, fmt.Errorf("list interfaces: %w", err)
	}
	for _, in := range interfaces {
		list, err := in.Addrs()
		if err != nil {
			continue // gone meanwhile
		}
		for _, a := range list {
			p, err := netip.ParsePrefix(a.String())
			if err != nil || !p.Addr().Is4() {
				continue
			}
			if in.Name == bridgeInterface && !own.IsValid() {
				own = p.Masked()
			}
			taken = append(taken, p.Masked())
		}
	}
	data, err := os.ReadFile("/proc/thread-self/net/route")
	if err != nil {
		return nil, own, err
	}
	return append(taken, parseRoutes(data)...), own, nil
}

// parseRoutes reads /proc/net/route: a line of headings, then interface, destination and, eighth, mask, in hex and in
// the machine's order of bytes. Routes of the built-in bridge itself are left out.
func parseRoutes(data []byte) []netip.Prefix {
	var list []netip.Prefix
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) < 8 || f[0] == bridgeInterface {
			continue
		}
		address, err1 := hex.DecodeString(f[1])
		mask, err2 := hex.DecodeString(f[7])
		if err1 != nil || err2 != nil || len(address) != 4 || len(mask) != 4 {
			continue
		}
		var a, m [4]byte
		binary.NativeEndian.PutUint32(a[:], binary.BigEndian.Uint32(address))
		binary.NativeEndian.PutUint32(m[:], binary.BigEndian.Uint32(mask))
		bits, size := net.IPMask(m[:]).Size()
		if size == 32 {
			list = append(list, netip.PrefixFrom(netip.AddrFrom4(a), bits).Masked())
		}
	}
	return list
}
