package cni

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	mdlayher "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// The rules of the built-in network, told to the kernel directly. They are a table of nftables of their own: a handful of
// rules for the whole network, and a map from the machine's published ports to containers, where each entry bears the id
// of its container. So a container costs one entry and no program, and what is a container's is found by its id.
//
// The table comes with the first container and goes with the last, whichever agents they belong to.

const (
	// tableName is the table's, of the family ip.
	tableName = "mosaic"
	// portsName is the map's.
	portsName = "ports"
	// answerTime bounds how long the kernel may take to answer. It takes a millisecond, and more where others change
	// large rule sets at the same time.
	answerTime = 5 * time.Second
)

// Registers of a lookup whose key has two parts: each part has its own, and the first is also the whole's.
const (
	firstRegister  = unix.NFT_REG_1
	secondRegister = unix.NFT_REG32_01
)

// statusDestinationChanged is conntrack's status of connections to published ports.
//
// Source: enum ip_conntrack_status, include/uapi/linux/netfilter/nf_conntrack_common.h.
const statusDestinationChanged = 1 << 5

// dialRules connects to the kernel's rules. The caller closes it.
func dialRules() (*nftables.Conn, error) {
	return nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *mdlayher.Conn) error {
		return c.SetDeadline(time.Now().Add(answerTime))
	}))
}

// hasNftables says whether the kernel has nftables and lets this process use it.
func hasNftables() bool {
	c, err := dialRules()
	if err != nil {
		return false
	}
	defer func() { _ = c.CloseLasting() }()
	_, err = c.ListTablesOfFamily(nftables.TableFamilyIPv4)
	return err == nil
}

// lockRules keeps other agents from changing the built-in network's rules until unlock is called.
func lockRules(ctx context.Context, dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(dir+"/rules.lock", os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { file.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			file.Close()
			return nil, fmt.Errorf("lock %s: %w", file.Name(), err)
		}
		timer := time.NewTimer(2 * time.Millisecond) // held for a few
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			file.Close()
			return nil, fmt.Errorf("lock %s: %w", file.Name(), ctx.Err())
		}
	}
}

// changeRules calls f with a connection to the rules, alone on this machine. Where the kernel has no nftables and it was
// not those that made them, f is given nil.
func changeRules(ctx context.Context, by string, f func(*nftables.Conn) error) error {
	unlock, err := lockRules(ctx, leases)
	if err != nil {
		return err
	}
	defer unlock()
	if by != byKernel && !hasNftables() {
		return f(nil)
	}
	c, err := dialRules()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	defer func() { _ = c.CloseLasting() }()
	return f(c)
}

func mosaicTable() *nftables.Table {
	return &nftables.Table{Name: tableName, Family: nftables.TableFamilyIPv4}
}

// portsMap leads from protocol and port of the machine to address and port of a container.
func portsMap() *nftables.Set {
	return &nftables.Set{
		Table: mosaicTable(), Name: portsName, IsMap: true, Concatenation: true,
		KeyType:  nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService),
		DataType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService),
	}
}

// makeTable makes the table, or makes the rules of the one that is there anew, in one step: no packet sees half of it.
// Published ports stay.
func makeTable(c *nftables.Conn, subnet netip.Prefix) error {
	table := c.AddTable(mosaicTable())
	ports := portsMap()
	if _, err := c.GetSetByName(table, portsName); err != nil { // there is none; a wrong guess fails below
		if err := c.AddSet(ports, nil); err != nil {
			return err
		}
	}
	chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority, rules ...[]expr.Any) {
		ch := c.AddChain(&nftables.Chain{Name: name, Table: table, Type: kind, Hooknum: hook, Priority: priority})
		c.FlushChain(ch)
		for _, r := range rules {
			c.AddRule(&nftables.Rule{Table: table, Chain: ch, Exprs: r})
		}
	}
	published := concat(toThisMachine(), lookUpPort(ports))
	chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, published)
	chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest, published)
	masquerade := []expr.Any{&expr.Masq{}}
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource,
		// From this machine by its loopback address, which means another one in the container.
		concat(to(bridgeInterface), address(sourceAddress, expr.CmpOpEq, loopback), masquerade),
		// From one container to another by a published port: the answer must come back through here.
		concat(to(bridgeInterface), address(sourceAddress, expr.CmpOpEq, subnet), trackedAs(statusDestinationChanged), masquerade),
		// To the rest of the world.
		concat(notTo(bridgeInterface), address(sourceAddress, expr.CmpOpEq, subnet),
			address(destinationAddress, expr.CmpOpNeq, netip.MustParsePrefix("224.0.0.0/4")), masquerade))
	// The bridge may route loopback addresses for the first of these rules. Nobody in a container is to make use of it.
	chain("guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw,
		concat(from(bridgeInterface), address(destinationAddress, expr.CmpOpEq, loopback), []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}))
	return c.Flush()
}

func concat(parts ...[]expr.Any) []expr.Any { return slices.Concat(parts...) }

// name is an interface's name as the kernel compares it.
func name(text string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, text)
	return b
}

func from(iface string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: firstRegister},
		&expr.Cmp{Op: expr.CmpOpEq, Register: firstRegister, Data: name(iface)},
	}
}

func to(iface string) []expr.Any    { return out(expr.CmpOpEq, iface) }
func notTo(iface string) []expr.Any { return out(expr.CmpOpNeq, iface) }

func out(op expr.CmpOp, iface string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: firstRegister},
		&expr.Cmp{Op: op, Register: firstRegister, Data: name(iface)},
	}
}

// Where a packet of IPv4 has its addresses.
const (
	sourceAddress      = 12
	destinationAddress = 16
)

func address(offset uint32, op expr.CmpOp, p netip.Prefix) []expr.Any {
	mask := make([]byte, 4)
	binary.BigEndian.PutUint32(mask, ^uint32(0)<<(32-p.Bits()))
	return []expr.Any{
		&expr.Payload{DestRegister: firstRegister, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{SourceRegister: firstRegister, DestRegister: firstRegister, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: firstRegister, Data: p.Masked().Addr().AsSlice()},
	}
}

// trackedAs is true of connections with a status.
func trackedAs(status uint32) []expr.Any { return conntrackHas(expr.CtKeySTATUS, status) }

func conntrackHas(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: firstRegister},
		&expr.Bitwise{SourceRegister: firstRegister, DestRegister: firstRegister, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: firstRegister, Data: make([]byte, 4)},
	}
}

// toThisMachine is true of packets to one of the machine's own addresses.
func toThisMachine() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: firstRegister, ResultADDRTYPE: true, FlagDADDR: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: firstRegister, Data: binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)},
	}
}

// lookUpPort sends packets to published ports where the map says. Others it leaves alone.
func lookUpPort(ports *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: firstRegister},
		&expr.Payload{DestRegister: secondRegister, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: firstRegister, DestRegister: firstRegister, IsDestRegSet: true, SetName: ports.Name, SetID: ports.ID},
		&expr.NAT{
			Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: firstRegister, RegAddrMax: firstRegister,
			RegProtoMin: secondRegister, RegProtoMax: secondRegister, Specified: true,
		},
	}
}

// protocols by the name that a port mapping gives them.
var protocols = map[string]byte{"": unix.IPPROTO_TCP, "tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}

// entry is a published port as the map has it.
func entry(id string, m *mesosv1.NetworkInfo_PortMapping, at netip.Addr) nftables.SetElement {
	// Each part of a key or a value takes a multiple of four bytes.
	key := []byte{protocols[strings.ToLower(m.GetProtocol())], 0, 0, 0}
	key = append(binary.BigEndian.AppendUint16(key, uint16(m.GetHostPort())), 0, 0)
	value := append(binary.BigEndian.AppendUint16(at.AsSlice(), uint16(m.GetContainerPort())), 0, 0)
	return nftables.SetElement{Key: key, Val: value, Comment: id}
}

// A takenError says whose a port is.
type takenError struct {
	port  uint32
	owner string
}

func (e *takenError) Error() string {
	return fmt.Sprintf("port %d of this machine is published for container %s already", e.port, e.owner)
}

// publish has ports of the machine lead to a container. yields says of a port and the container that has it whether that
// must give way.
//
// Errors: a *takenError if a port is another container's, unless nothing is left of that but the entry.
func publish(c *nftables.Conn, id string, ports []*mesosv1.NetworkInfo_PortMapping, at netip.Addr, yields func(port uint32, owner string) bool) error {
	if len(ports) == 0 {
		return nil
	}
	set := portsMap()
	there, err := c.GetSetElements(set)
	if err != nil {
		return fmt.Errorf("published ports: %w", err)
	}
	var add, drop []nftables.SetElement
	for _, m := range ports {
		e := entry(id, m, at)
		n := slices.IndexFunc(there, func(old nftables.SetElement) bool { return bytes.Equal(old.Key, e.Key) })
		switch {
		case n < 0:
		case there[n].Comment == id && bytes.Equal(there[n].Val, e.Val):
			continue
		case there[n].Comment == id || yields(m.GetHostPort(), there[n].Comment) || !leaseholders(leases)[there[n].Comment]:
			drop = append(drop, there[n])
		default:
			return &takenError{m.GetHostPort(), there[n].Comment}
		}
		add = append(add, e)
	}
	if len(add) > 0 {
		if err := change(c, set, add, drop); err != nil {
			return fmt.Errorf("publish ports: %w", err)
		}
	}
	forgetDatagrams(ports)
	// Only with this does a packet from 127.0.0.1 leave the machine's loopback.
	return routeLoopback("1")
}

// change adds and drops entries in one step.
func change(c *nftables.Conn, set *nftables.Set, add, drop []nftables.SetElement) error {
	if len(drop) > 0 {
		if err := c.SetDeleteElements(set, drop); err != nil {
			return err
		}
	}
	if len(add) > 0 {
		if err := c.SetAddElements(set, add); err != nil {
			return err
		}
	}
	return c.Flush()
}

// withdraw takes a container's ports back. It may have none, nor may there be a table.
func withdraw(c *nftables.Conn, id string) error {
	set := portsMap()
	there, err := c.GetSetElements(set)
	if isAbsent(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("published ports: %w", err)
	}
	drop := slices.DeleteFunc(there, func(e nftables.SetElement) bool { return e.Comment != id })
	if len(drop) == 0 {
		return nil
	}
	if err := change(c, set, nil, drop); err != nil {
		return fmt.Errorf("withdraw ports: %w", err)
	}
	return nil
}

// removeTable takes the whole table away.
func removeTable(c *nftables.Conn) error {
	list, err := c.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return fmt.Errorf("tables: %w", err)
	}
	if !slices.ContainsFunc(list, func(t *nftables.Table) bool { return t.Name == tableName }) {
		return nil
	}
	c.DelTable(mosaicTable())
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove table %s: %w", tableName, err)
	}
	if err := routeLoopback("0"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err // with the table the guard went
	}
	return nil
}

// isAbsent says whether the kernel answered that there is no such thing.
func isAbsent(err error) bool {
	return err != nil && (errors.Is(err, unix.ENOENT) || strings.Contains(err.Error(), unix.ENOENT.Error()))
}

// routeLoopback lets packets with loopback addresses out by the bridge, or keeps them in.
func routeLoopback(value string) error {
	file := "/proc/sys/net/ipv4/conf/" + bridgeInterface + "/route_localnet"
	if old, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(old)) == value {
		return nil
	}
	if err := os.WriteFile(file, []byte(value), 0o644); err != nil {
		return fmt.Errorf("route loopback addresses on %s: %w", bridgeInterface, err)
	}
	return nil
}

// forgetDatagrams has the kernel forget where datagrams to these ports went until now: senders that never stop would
// never reach the container. That it has nothing to forget is no failure, and neither is that it does not track.
func forgetDatagrams(ports []*mesosv1.NetworkInfo_PortMapping) {
	for _, m := range ports {
		if strings.ToLower(m.GetProtocol()) != "udp" {
			continue
		}
		f := &netlink.ConntrackFilter{}
		if f.AddProtocol(unix.IPPROTO_UDP) == nil && f.AddPort(netlink.ConntrackOrigDstPort, uint16(m.GetHostPort())) == nil {
			_, _ = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, f)
		}
	}
}
