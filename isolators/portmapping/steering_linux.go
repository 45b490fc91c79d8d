package portmapping

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

const (
	// filterName and filterPriority are where a filter of ours is found again. It comes early and lets others go on.
	filterName     = "mosaic_port_mapping"
	filterPriority = 0x4d
)

// What a port is to its owner.
const (
	ephemeral = 1
	offered   = 2
)

// entry is one port of the table.
type entry struct {
	index uint32
	kind  uint32
	owner uint64
}

// ownerOf is a container's digest in the table; never 0.
func ownerOf(id string) uint64 {
	sum := sha256.Sum256([]byte(id))
	return binary.LittleEndian.Uint64(sum[:]) | 1
}

// steering is the table with its programs. They live in the kernel as long as a filter holds them.
type steering struct {
	table   *ebpf.Map
	memory  *ebpf.Memory
	in, out *ebpf.Program // nil when only found to be released
	gone    bool          // taken away after the last container
}

func openSteering(table *ebpf.Map) (*steering, error) {
	if table.Type() != ebpf.Array || table.ValueSize() != entrySize || table.MaxEntries() != entryPorts {
		_ = table.Close()
		return nil, fmt.Errorf("the table is of another kind: %s", table)
	}
	memory, err := table.Memory()
	if err != nil {
		_ = table.Close()
		return nil, fmt.Errorf("map the table: %w", err)
	}
	return &steering{table: table, memory: memory}, nil
}

func (s *steering) close() {
	if s.in != nil {
		_ = s.in.Close()
	}
	if s.out != nil {
		_ = s.out.Close()
	}
	_ = s.table.Close() // the mapping goes with its last reference
}

// findSteering finds the table by a filter that uses it: every interface that has one will do, so that no table is
// made beside one that containers still use. Nil if there is none, since then nothing is steered.
func findSteering() (*steering, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		side := uint32(netlink.HANDLE_MIN_INGRESS)
		if l.Attrs().Name == "lo" {
			side = netlink.HANDLE_MIN_EGRESS
		}
		f, err := ourFilter(l, side)
		if err != nil {
			return nil, err
		}
		if f == nil {
			continue
		}
		if s, err := steeringOf(ebpf.ProgramID(f.Id)); s != nil || err != nil {
			return s, err
		}
	}
	return nil, nil
}

// steeringOf opens the table of a program; nil if the program is gone.
func steeringOf(id ebpf.ProgramID) (*steering, error) {
	program, err := ebpf.NewProgramFromID(id)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open program %d: %w", id, err)
	}
	defer program.Close()
	info, err := program.Info()
	if err != nil {
		return nil, fmt.Errorf("look at program %d: %w", id, err)
	}
	maps, ok := info.MapIDs()
	if !ok || len(maps) != 1 {
		return nil, fmt.Errorf("program %d has %d tables, want one", id, len(maps))
	}
	table, err := ebpf.NewMapFromID(maps[0])
	if err != nil {
		return nil, fmt.Errorf("open table %d: %w", maps[0], err)
	}
	return openSteering(table)
}

// ourFilter finds our filter at one side of an interface; nil if there is none.
func ourFilter(link netlink.Link, parent uint32) (*netlink.BpfFilter, error) {
	list, err := netlink.FilterList(link, parent)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil // no clsact there
	}
	if err != nil {
		return nil, fmt.Errorf("list filters of %s: %w", link.Attrs().Name, err)
	}
	for _, f := range list {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Name == filterName {
			return b, nil
		}
	}
	return nil, nil
}

// steer makes sure that the programs are in place for an uplink; mu is held.
func (i *Isolator) steer(at uplink) (*steering, error) {
	if i.steering != nil && i.at == at && i.steering.installed(at) {
		return i.steering, nil
	}
	i.forget()
	s, err := findSteering()
	if err != nil {
		return nil, err
	}
	if s == nil {
		table, err := newTable()
		if err != nil {
			return nil, fmt.Errorf("make the table of ports: %w", err)
		}
		if s, err = openSteering(table); err != nil {
			return nil, err
		}
	}
	if err := s.install(at); err != nil {
		s.close()
		return nil, err
	}
	i.steering, i.at = s, at
	return s, nil
}

// installed says whether the inward program is still in both its places: others administer this machine, too.
func (s *steering) installed(at uplink) bool {
	info, err := s.in.Info()
	if err != nil {
		return false
	}
	id, ok := info.ID()
	lo, err := netlink.LinkByName("lo")
	if !ok || err != nil {
		return false
	}
	up, err := netlink.LinkByIndex(at.index)
	if err != nil {
		return false
	}
	for _, place := range []struct {
		link netlink.Link
		side uint32
	}{{lo, netlink.HANDLE_MIN_EGRESS}, {up, netlink.HANDLE_MIN_INGRESS}} {
		if f, err := ourFilter(place.link, place.side); err != nil || f == nil || f.Id != int(id) {
			return false
		}
	}
	return true
}

// install loads the programs and puts the inward one in its two places, where it replaces an earlier one at once.
func (s *steering) install(at uplink) error {
	var err error
	if s.in, err = ebpf.NewProgram(inward(s.table, at.ip())); err != nil {
		return fmt.Errorf("load the inward program: %w", err)
	}
	if s.out, err = ebpf.NewProgram(outward(s.table, at.ip(), at.index)); err != nil {
		return fmt.Errorf("load the outward program: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find the loopback interface: %w", err)
	}
	up, err := netlink.LinkByIndex(at.index)
	if err != nil {
		return fmt.Errorf("find interface %d: %w", at.index, err)
	}
	if err := attach(lo, netlink.HANDLE_MIN_EGRESS, s.in); err != nil {
		return err
	}
	return attach(up, netlink.HANDLE_MIN_INGRESS, s.in)
}

// attach puts a program at one side of an interface, in place of an earlier one of ours.
func attach(link netlink.Link, parent uint32, p *ebpf.Program) error {
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact to %s: %w", link.Attrs().Name, err)
	}
	filter := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: link.Attrs().Index, Parent: parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: filterPriority,
		},
		Fd: p.FD(), Name: filterName, DirectAction: true,
	}
	if err := netlink.FilterReplace(filter); err != nil {
		return fmt.Errorf("add a filter to %s: %w", link.Attrs().Name, err)
	}
	return nil
}

// detach takes our filter from one side of an interface, and the place for filters too if nobody else has one there.
func detach(link netlink.Link, parent uint32) error {
	f, err := ourFilter(link, parent)
	if f == nil || err != nil {
		return err
	}
	if err := netlink.FilterDel(f); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove the filter of %s: %w", link.Attrs().Name, err)
	}
	for _, side := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		if left, err := netlink.FilterList(link, side); err != nil || len(left) > 0 {
			return nil //nolint:nilerr // it may stay: an empty place costs nothing
		}
	}
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
	if err := netlink.QdiscDel(qdisc); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("remove clsact from %s: %w", link.Attrs().Name, err)
	}
	return nil
}

// uninstall takes the programs away everywhere: also from an uplink that is no longer one.
func uninstall() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		side := uint32(netlink.HANDLE_MIN_INGRESS)
		if l.Attrs().Name == "lo" {
			side = netlink.HANDLE_MIN_EGRESS
		}
		if err := detach(l, side); err != nil {
			return err
		}
	}
	return nil
}

// entries reads the whole table.
func (s *steering) entries() ([]entry, error) {
	data := make([]byte, entryPorts*entrySize)
	if _, err := s.memory.ReadAt(data, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the table: %w", err)
	}
	list := make([]entry, entryPorts)
	order := binary.NativeEndian
	for port := range list {
		at := data[port*entrySize:]
		list[port] = entry{order.Uint32(at), order.Uint32(at[4:]), order.Uint64(at[8:])}
	}
	return list, nil
}

// set writes one entry. Programs read the index only, which is written at once.
func (s *steering) set(port uint64, e entry) error {
	var data [entrySize]byte
	order := binary.NativeEndian
	order.PutUint32(data[:], e.index)
	order.PutUint32(data[4:], e.kind)
	order.PutUint64(data[8:], e.owner)
	if _, err := s.memory.WriteAt(data[:], int64(port)*entrySize); err != nil {
		return fmt.Errorf("write port %d into the table: %w", port, err)
	}
	return nil
}

// take gives a container its offered ports and a range of ephemeral ones: the one it has, else the one in had, which
// is what its namespace was told, else the first that is free. Nothing is steered yet.
//
// Errors: ResourceExhausted if an offered port is another container's, or if no range is free.
func (s *steering) take(id string, want, pool resources.Ranges, per uint64, had *resources.Range) (resources.Range, error) {
	owner := ownerOf(id)
	list, err := s.entries()
	if err != nil {
		return resources.Range{}, err
	}
	free := func(r resources.Range) bool {
		for p := r.Begin; p <= r.End; p++ {
			if list[p].owner != 0 && list[p].owner != owner {
				return false
			}
		}
		return true
	}
	var own resources.Range
	for p, e := range list {
		if e.owner == owner && e.kind == ephemeral {
			if own.Begin == 0 {
				own.Begin = uint64(p)
			}
			own.End = uint64(p)
		}
	}
	for _, r := range want {
		if r.End >= entryPorts || r.Begin == 0 {
			return own, module.InvalidArgument("ports: got %d-%d, want ports from 1 to 65535", r.Begin, r.End)
		}
		if !free(r) {
			return own, status.Errorf(codes.ResourceExhausted, "one of the ports %d-%d is another container's", r.Begin, r.End)
		}
	}
	if len(want.Intersect(pool)) > 0 {
		return own, module.FailedPrecondition("the offered ports %v are among ephemeral_ports %v; the agent must not offer those", want, pool)
	}
	switch {
	case own.Begin != 0:
	case had != nil && had.Begin > 0 && had.End < entryPorts && free(*had):
		own = *had
	default:
		if own = firstFree(list, pool, per); own.Begin == 0 {
			return own, status.Errorf(codes.ResourceExhausted, "all ephemeral_ports %v are given out in ranges of %d; no more containers fit", pool, per)
		}
	}
	for p, e := range list { // what it had before and has no more
		if e.owner == owner && e.kind == offered && !want.Contains(resources.Ranges{{Begin: uint64(p), End: uint64(p)}}) {
			if err := s.set(uint64(p), entry{}); err != nil {
				return own, err
			}
		}
	}
	mark := func(r resources.Range, kind uint32) error {
		for p := r.Begin; p <= r.End; p++ {
			if list[p].owner == owner && list[p].kind == kind {
				continue
			}
			if err := s.set(p, entry{kind: kind, owner: owner}); err != nil {
				return err
			}
		}
		return nil
	}
	for _, r := range want {
		if err := mark(r, offered); err != nil {
			return own, err
		}
	}
	return own, mark(own, ephemeral)
}

// firstFree finds the first run of free ports; the zero range if there is none.
func firstFree(list []entry, pool resources.Ranges, per uint64) resources.Range {
	for _, r := range pool {
		begin := r.Begin
		for p := r.Begin; p <= r.End; p++ {
			if list[p].owner != 0 {
				begin = p + 1
			} else if p-begin+1 == per {
				return resources.Range{Begin: begin, End: p}
			}
		}
	}
	return resources.Range{}
}

// point steers a container's ports to its interface.
func (s *steering) point(id string, index int) error {
	owner := ownerOf(id)
	list, err := s.entries()
	if err != nil {
		return err
	}
	for p, e := range list {
		if e.owner == owner && e.index != uint32(index) {
			if err := s.set(uint64(p), entry{uint32(index), e.kind, owner}); err != nil {
				return err
			}
		}
	}
	return nil
}

// release frees a container's ports; after the last container's the programs go.
func (s *steering) release(id string) error {
	owner := ownerOf(id)
	list, err := s.entries()
	if err != nil {
		return err
	}
	left := false
	for p, e := range list {
		switch {
		case e.owner == owner:
			if err := s.set(uint64(p), entry{}); err != nil {
				return err
			}
		case e.owner != 0:
			left = true
		}
	}
	if left {
		return nil
	}
	if err := uninstall(); err != nil {
		return module.FailedPrecondition("take the programs away: %v", err)
	}
	s.gone = true
	return nil
}
