package portmapping

import (
	"encoding/binary"
	"math"
	"net"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// The table of ports: one entry for each, read by the programs and written by the module.
//
//	0  uint32  index of the interface that leads to the container; 0 steers nothing
//	4  uint32  what the port is to its owner: an ephemeral one, or one that was offered
//	8  uint64  owner: a digest of the container's id; 0 is nobody
const (
	entrySize  = 16
	entryPorts = 1 << 16
)

// Fields of struct __sk_buff (linux/bpf.h).
const (
	skbProtocol    = 16
	skbVLANPresent = 20
	skbIfindex     = 40
)

// What a classifier says (linux/pkt_cls.h).
const (
	actUnspec = -1 // ask the next filter
	actOK     = 0
	actShot   = 2
)

// Places on the programs' stack.
const (
	atIP       = -32 // the packet's IP header, 20 bytes
	atFragment = atIP + 6
	atProtocol = atIP + 9
	atSource   = atIP + 12
	atTarget   = atIP + 16
	atPorts    = -40 // its first four bytes: source and target port
	atKey      = -44 // key into the table
	atMAC      = -56
	atInner    = -80 // IP header inside an ICMP error
)

const etherHeader = 14

// linkAddress is the hardware address of both ends of every container's link. Each link has only two, so that they
// need not differ, and a frame sent to one's own address arrives without asking for anybody's.
func linkAddress() net.HardwareAddr { return net.HardwareAddr{0x02, 0x6d, 0x6f, 0x73, 0x61, 0x63} }

// load copies bytes of the packet to the stack, from the offset in register r7 plus at, or leaves for label.
func load(at, stack, size int32, label string) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Add.Imm(asm.R2, at),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, stack),
		asm.Mov.Imm(asm.R4, size),
		asm.FnSkbLoadBytes.Call(),
		asm.JNE.Imm(asm.R0, 0, label),
	}
}

// headerLength puts the length of an IP header on the stack into r2.
func headerLength(stack int16) asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(asm.R2, asm.RFP, stack, asm.Byte),
		asm.And.Imm(asm.R2, 15),
		asm.LSh.Imm(asm.R2, 2),
	}
}

// isHost leaves for label unless the address on the stack is the machine's.
func isHost(stack int16, host net.IP, label string) asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(asm.R2, asm.RFP, stack, asm.Word),
		asm.LoadImm(asm.R3, int64(binary.NativeEndian.Uint32(host.To4())), asm.DWord),
		asm.JNE.Reg(asm.R2, asm.R3, label),
	}
}

// start reads the IP header; packets that are none leave for label. Afterwards r6 is the packet, r7 the offset of what
// follows the IP header, r8 the protocol.
func start(label string) asm.Instructions {
	p := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R2, asm.R6, skbVLANPresent, asm.Word), // for an interface of its own
		asm.JNE.Imm(asm.R2, 0, label),
		asm.LoadMem(asm.R2, asm.R6, skbProtocol, asm.Word),
		asm.JNE.Imm(asm.R2, int32(binary.NativeEndian.Uint16([]byte{unix.ETH_P_IP >> 8, unix.ETH_P_IP & 0xff})), label),
		asm.Mov.Imm(asm.R7, 0),
	}
	p = append(p, load(etherHeader, atIP, 20, label)...)
	p = append(p, headerLength(atIP)...)
	return append(p,
		asm.Mov.Reg(asm.R7, asm.R2),
		asm.Add.Imm(asm.R7, etherHeader),
		asm.LoadMem(asm.R8, asm.RFP, atProtocol, asm.Byte),
	)
}

// later leaves for label if the packet is a fragment after the first, which has no ports.
func later(label string) asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(asm.R2, asm.RFP, atFragment, asm.Half),
		asm.And.Imm(asm.R2, int32(binary.NativeEndian.Uint16([]byte{0x1f, 0xff}))),
		asm.JNE.Imm(asm.R2, 0, label),
	}
}

// lookup reads the table's entry for the port that stands at stack in network order, and puts the interface's index
// into r9; without one it leaves for label.
func lookup(table *ebpf.Map, stack int16, label string) asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(asm.R2, asm.RFP, stack, asm.Half),
		asm.HostTo(asm.BE, asm.R2, asm.Half),
		asm.StoreMem(asm.RFP, atKey, asm.R2, asm.Word),
		asm.LoadMapPtr(asm.R1, table.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, atKey),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, label),
		asm.LoadMem(asm.R9, asm.R0, 0, asm.Word),
		asm.JEq.Imm(asm.R9, 0, label),
	}
}

// hand gives the packet to the interface in r9.
func hand() asm.Instructions {
	mac := linkAddress()
	return asm.Instructions{
		asm.StoreImm(asm.RFP, atMAC, int64(int32(binary.NativeEndian.Uint32(mac[:4]))), asm.Word),
		asm.StoreImm(asm.RFP, atMAC+4, int64(binary.NativeEndian.Uint16(mac[4:])), asm.Half),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Imm(asm.R2, 0),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, atMAC),
		asm.Mov.Imm(asm.R4, 6),
		asm.Mov.Imm(asm.R5, 0),
		asm.FnSkbStoreBytes.Call(),
		asm.Mov.Reg(asm.R1, asm.R9),
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRedirect.Call(),
		asm.Return(),
	}
}

// say ends a program at label with a verdict.
func say(label string, verdict int32) asm.Instructions {
	return asm.Instructions{asm.Mov.Imm(asm.R0, verdict).WithSymbol(label), asm.Return()}
}

// inward is the program on the way in: at the uplink for what comes from outside, at the loopback interface for what
// the machine sends to its own address. A packet for a container's port, or an ICMP error about a packet from one,
// goes to the container; everything else goes where it went before.
func inward(table *ebpf.Map, host net.IP) *ebpf.ProgramSpec {
	p := start("pass")
	p = append(p, isHost(atTarget, host, "pass")...)
	p = append(p, later("pass")...)
	p = append(p,
		asm.JEq.Imm(asm.R8, unix.IPPROTO_TCP, "ports"),
		asm.JEq.Imm(asm.R8, unix.IPPROTO_UDP, "ports"),
		asm.JNE.Imm(asm.R8, unix.IPPROTO_ICMP, "pass"),
	)
	// Errors carry the header of the packet they are about: sent by a container if its source port is one's.
	p = append(p, load(0, atPorts, 4, "pass")...)
	p = append(p,
		asm.LoadMem(asm.R2, asm.RFP, atPorts, asm.Byte),
		asm.JEq.Imm(asm.R2, 3, "error"),  // destination unreachable, also: fragmentation needed
		asm.JEq.Imm(asm.R2, 11, "error"), // time exceeded
		asm.JNE.Imm(asm.R2, 12, "pass"),  // parameter problem
		asm.Add.Imm(asm.R7, 8).WithSymbol("error"),
	)
	p = append(p, load(0, atInner, 20, "pass")...)
	p = append(p, isHost(atInner+12, host, "pass")...)
	p = append(p,
		asm.LoadMem(asm.R2, asm.RFP, atInner+9, asm.Byte),
		asm.JEq.Imm(asm.R2, unix.IPPROTO_TCP, "inner"),
		asm.JNE.Imm(asm.R2, unix.IPPROTO_UDP, "pass"),
	)
	inner := headerLength(atInner)
	inner[0] = inner[0].WithSymbol("inner")
	p = append(p, inner...)
	p = append(p, asm.Add.Reg(asm.R7, asm.R2))
	p = append(p, load(0, atPorts, 4, "pass")...)
	p = append(p,
		asm.LoadMem(asm.R2, asm.RFP, atPorts, asm.Half),
		asm.StoreMem(asm.RFP, atPorts+2, asm.R2, asm.Half),
		asm.Ja.Label("steer"),
	)
	ports := load(0, atPorts, 4, "pass")
	ports[0] = ports[0].WithSymbol("ports")
	p = append(p, ports...)
	steer := lookup(table, atPorts+2, "pass")
	steer[0] = steer[0].WithSymbol("steer")
	p = append(p, steer...)
	p = append(p, hand()...)
	p = append(p, say("pass", actUnspec)...)
	return program("mosaic_in", p)
}

// outward is the program on the way out of a container, at the machine's end of its link. A container sends only from
// the machine's address and from its own ports; the rest is dropped. What it sends goes to another container, to the
// machine itself, or out at the uplink, past the machine's own routing and filters.
func outward(table *ebpf.Map, host net.IP, uplink int) *ebpf.ProgramSpec {
	p := start("drop")
	p = append(p, isHost(atSource, host, "drop")...)
	p = append(p, later("whole")...)
	p = append(p,
		asm.JEq.Imm(asm.R8, unix.IPPROTO_ICMP, "whole"),
		asm.JEq.Imm(asm.R8, unix.IPPROTO_TCP, "ports"),
		asm.JNE.Imm(asm.R8, unix.IPPROTO_UDP, "drop"),
	)
	ports := load(0, atPorts, 4, "drop")
	ports[0] = ports[0].WithSymbol("ports")
	p = append(p, ports...)
	p = append(p, lookup(table, atPorts, "drop")...)
	p = append(p,
		asm.LoadMem(asm.R2, asm.R6, skbIfindex, asm.Word),
		asm.JNE.Reg(asm.R2, asm.R9, "drop"),
	)
	p = append(p, isHost(atTarget, host, "out")...)
	p = append(p, lookup(table, atPorts+2, "machine")...)
	p = append(p, hand()...)
	whole := isHost(atTarget, host, "out")
	whole[0] = whole[0].WithSymbol("whole")
	p = append(p, whole...)
	p = append(p, say("machine", actOK)...)
	p = append(p,
		asm.Mov.Imm(asm.R1, int32(uplink)).WithSymbol("out"),
		asm.Mov.Imm(asm.R2, 0),
		asm.Mov.Imm(asm.R3, 0),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnRedirectNeigh.Call(),
		asm.Return(),
	)
	p = append(p, say("drop", actShot)...)
	return program("mosaic_out", p)
}

func program(name string, p asm.Instructions) *ebpf.ProgramSpec {
	return &ebpf.ProgramSpec{Name: name, Type: ebpf.SchedCLS, Instructions: p, License: "Apache-2.0"}
}

// newTable makes an empty table.
func newTable() (*ebpf.Map, error) {
	return ebpf.NewMap(&ebpf.MapSpec{
		Name: "mosaic_ports", Type: ebpf.Array, KeySize: 4, ValueSize: entrySize, MaxEntries: entryPorts, Flags: unix.BPF_F_MMAPABLE,
	})
}

// maxIndex is the highest index of an interface that a program's constant holds.
const maxIndex = math.MaxInt32
