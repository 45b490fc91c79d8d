package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/elastic/go-seccomp-bpf/arch"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// The compiler is ours although the tables of system calls are go-seccomp-bpf's: its Policy ends at the first group of
// calls, knows one errno only, and compares arguments left in the accumulator with later calls, so that Docker's
// profile (which answers clone3 with ENOSYS and much else with EPERM) cannot be said in it.

const (
	// maxInstructions is the kernel's bound of a program (BPF_MAXINSNS).
	maxInstructions = 4096
	// x32Bit marks numbers of the x32 interface, which shares its architecture with x86-64.
	x32Bit = 0x40000000

	// Offsets in struct seccomp_data (linux/seccomp.h).
	offsetNumber    = 0
	offsetArch      = 4
	offsetArguments = 16
)

// verdict is what a filter returns: an action, with an errno or number in its low bits.
type verdict uint32

// check is one profile rule on one system call; without conditions it always applies.
type check struct {
	conditions []specs.LinuxSeccompArg
	verdict    verdict
}

// segment is a range of system calls, up to the next segment, that are treated alike.
type segment struct {
	start uint32
	code  []bpf.Instruction // ends with a return on every way
}

// compile turns a profile into a program for this machine and its sub-architectures. Of several rules on one system
// call the first that applies decides, in the order of the profile. System calls that an architecture does not have
// are left out, as every runtime does.
func compile(p *specs.LinuxSeccomp) ([]byte, error) {
	otherwise, err := verdictOf(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, fmt.Errorf("defaultAction: %w", err)
	}
	// Calls by another architecture's numbers cannot be judged, and a profile that allows by default forbids some.
	foreign := otherwise
	if a := otherwise &^ 0xffff; a == unix.SECCOMP_RET_ALLOW || a == unix.SECCOMP_RET_LOG {
		foreign = unix.SECCOMP_RET_KILL_PROCESS
	}
	checks, err := checksOf(p)
	if err != nil {
		return nil, err
	}
	code := []bpf.Instruction{returns(foreign)}
	for _, id := range slices.Sorted(maps.Keys(checks)) {
		tree := search(segments(checks[id], otherwise))
		if id == uint32(arch.X86_64.ID) && !slices.Contains(p.Architectures, specs.ArchX32) {
			tree = slices.Concat(jump(bpf.JumpGreaterOrEqual, x32Bit, len(tree)), tree, []bpf.Instruction{returns(foreign)})
		}
		tree = slices.Concat([]bpf.Instruction{bpf.LoadAbsolute{Off: offsetNumber, Size: 4}}, tree)
		code = slices.Concat(jump(bpf.JumpNotEqual, id, len(tree)), tree, code)
	}
	code = slices.Concat([]bpf.Instruction{bpf.LoadAbsolute{Off: offsetArch, Size: 4}}, code)
	if len(code) > maxInstructions {
		return nil, fmt.Errorf("got %d instructions, want at most %d", len(code), maxInstructions)
	}
	raw, err := bpf.Assemble(code)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, 8*len(raw))
	for _, r := range raw {
		out = binary.NativeEndian.AppendUint16(out, r.Op)
		out = append(out, r.Jt, r.Jf)
		out = binary.NativeEndian.AppendUint32(out, r.K)
	}
	return out, nil
}

// architectures are this machine's and those of the profile whose system calls are known here.
func architectures(p *specs.LinuxSeccomp) ([]*arch.Info, error) {
	native, err := arch.GetInfo("")
	if err != nil {
		return nil, err
	}
	list := []*arch.Info{native}
	for _, a := range p.Architectures {
		var info *arch.Info
		switch a {
		case specs.ArchX86:
			info = arch.I386
		case specs.ArchX86_64:
			info = arch.X86_64
		case specs.ArchX32:
			info = arch.X32
		case specs.ArchARM:
			info = arch.ARM
		case specs.ArchAARCH64:
			info = arch.AARCH64
		}
		if info != nil && !slices.Contains(list, info) {
			list = append(list, info)
		}
	}
	return list, nil
}

// checksOf sorts a profile's rules by the kernel's number of the architecture, and by system call.
func checksOf(p *specs.LinuxSeccomp) (map[uint32]map[uint32][]check, error) {
	infos, err := architectures(p)
	if err != nil {
		return nil, err
	}
	all := map[uint32]map[uint32][]check{}
	for _, info := range infos {
		byNumber := all[uint32(info.ID)]
		if byNumber == nil {
			byNumber = map[uint32][]check{}
			all[uint32(info.ID)] = byNumber
		}
		for n, call := range p.Syscalls {
			v, err := verdictOf(call.Action, call.ErrnoRet)
			if err != nil {
				return nil, fmt.Errorf("syscalls[%d]: %w", n, err)
			}
			list, err := checksOfCall(call.Args, v)
			if err != nil {
				return nil, fmt.Errorf("syscalls[%d]: %w", n, err)
			}
			for _, name := range call.Names {
				if number, ok := info.SyscallNames[name]; ok {
					key := uint32(number | info.SeccompMask)
					byNumber[key] = append(byNumber[key], list...)
				}
			}
		}
	}
	return all, nil
}

// checksOfCall gives one check with all conditions, or, as in runc, one for each when an argument is named twice.
func checksOfCall(args []specs.LinuxSeccompArg, v verdict) ([]check, error) {
	twice := false
	seen := map[uint]bool{}
	for _, a := range args {
		if a.Index > 5 {
			return nil, fmt.Errorf("args: got index %d, want at most 5", a.Index)
		}
		if condition(a, 0) == nil {
			return nil, fmt.Errorf("args: got op %q, want one of OCI's", a.Op)
		}
		twice = twice || seen[a.Index]
		seen[a.Index] = true
	}
	if !twice {
		return []check{{args, v}}, nil
	}
	var list []check
	for _, a := range args {
		list = append(list, check{[]specs.LinuxSeccompArg{a}, v})
	}
	return list, nil
}

// verdictOf is the kernel's form of an action.
func verdictOf(a specs.LinuxSeccompAction, errno *uint) (verdict, error) {
	data := verdict(unix.EPERM)
	if errno != nil {
		if *errno > 4095 {
			return 0, fmt.Errorf("got errno %d, want at most 4095", *errno)
		}
		data = verdict(*errno)
	}
	switch a {
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | data, nil
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActTrace:
		return unix.SECCOMP_RET_TRACE | data, nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	case specs.ActNotify:
		return 0, errors.New("SCMP_ACT_NOTIFY needs a listener, and there is none")
	}
	return 0, fmt.Errorf("got action %q, want one of OCI's", a)
}

func returns(v verdict) bpf.Instruction { return bpf.RetConstant{Val: uint32(v)} }

// segments cuts all numbers into ranges. Neighbours with the same unconditional verdict are one.
func segments(checks map[uint32][]check, otherwise verdict) []segment {
	list := []segment{{0, []bpf.Instruction{returns(otherwise)}}}
	add := func(start uint32, code []bpf.Instruction) {
		if last := &list[len(list)-1]; last.start == start {
			last.code = code
		} else {
			list = append(list, segment{start, code})
		}
		if n := len(list); n > 1 && len(code) == 1 && len(list[n-2].code) == 1 && code[0] == list[n-2].code[0] {
			list = list[:n-1]
		}
	}
	for _, number := range slices.Sorted(maps.Keys(checks)) {
		add(number, judge(checks[number], otherwise))
		add(number+1, []bpf.Instruction{returns(otherwise)})
	}
	return list
}

// search finds the segment of the number in the accumulator, by halves.
func search(list []segment) []bpf.Instruction {
	if len(list) == 1 {
		return list[0].code
	}
	middle := len(list) / 2
	low, high := search(list[:middle]), search(list[middle:])
	return slices.Concat(jump(bpf.JumpGreaterOrEqual, list[middle].start, len(low)), low, high)
}

// jump skips if the condition holds. Conditional jumps reach 255 instructions only.
func jump(cond bpf.JumpTest, value uint32, skip int) []bpf.Instruction {
	if skip <= 255 {
		return []bpf.Instruction{bpf.JumpIf{Cond: cond, Val: value, SkipTrue: uint8(skip)}}
	}
	return []bpf.Instruction{bpf.JumpIf{Cond: cond, Val: value, SkipFalse: 1}, bpf.Jump{Skip: uint32(skip)}}
}

// judge applies the checks of one system call in order. It leaves nothing in the accumulator that anybody reads: every
// way ends with a return.
func judge(checks []check, otherwise verdict) []bpf.Instruction {
	var code []bpf.Instruction
	for _, c := range checks {
		one := []bpf.Instruction{returns(c.verdict)}
		for _, a := range slices.Backward(c.conditions) {
			one = slices.Concat(condition(a, uint8(len(one))), one)
		}
		code = append(code, one...)
		if len(c.conditions) == 0 {
			return code
		}
	}
	return append(code, returns(otherwise))
}

// condition goes on with the next instruction if an argument is as wanted and else skips fail more; nil if its
// operator does not exist. Arguments have 64 bits and the machine of filters 32. A check has at most six conditions of
// six instructions, so that no skip is too far.
func condition(a specs.LinuxSeccompArg, fail uint8) []bpf.Instruction {
	offset := offsetArguments + 8*uint32(a.Index)
	low, high := offset, offset+4
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 { // big endian
		low, high = high, low
	}
	ld := func(off uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: off, Size: 4} }
	and := func(v uint32) bpf.Instruction { return bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: v} }
	is := func(cond bpf.JumpTest, v uint32, yes, no uint8) bpf.Instruction {
		return bpf.JumpIf{Cond: cond, Val: v, SkipTrue: yes, SkipFalse: no}
	}
	hi, lo := uint32(a.Value>>32), uint32(a.Value)
	switch a.Op {
	case specs.OpEqualTo:
		return []bpf.Instruction{ld(high), is(bpf.JumpEqual, hi, 0, fail+2), ld(low), is(bpf.JumpEqual, lo, 0, fail)}
	case specs.OpNotEqual:
		return []bpf.Instruction{ld(high), is(bpf.JumpEqual, hi, 0, 2), ld(low), is(bpf.JumpEqual, lo, fail, 0)}
	case specs.OpGreaterThan, specs.OpGreaterEqual:
		last := bpf.JumpGreaterThan
		if a.Op == specs.OpGreaterEqual {
			last = bpf.JumpGreaterOrEqual
		}
		return []bpf.Instruction{
			ld(high), is(bpf.JumpGreaterThan, hi, 3, 0), is(bpf.JumpEqual, hi, 0, fail+2), ld(low), is(last, lo, 0, fail),
		}
	case specs.OpLessThan, specs.OpLessEqual:
		last := bpf.JumpGreaterOrEqual
		if a.Op == specs.OpLessEqual {
			last = bpf.JumpGreaterThan
		}
		return []bpf.Instruction{
			ld(high), is(bpf.JumpGreaterThan, hi, fail+3, 0), is(bpf.JumpEqual, hi, 0, 2), ld(low), is(last, lo, fail, 0),
		}
	case specs.OpMaskedEqual: // Value is the mask, ValueTwo what must be left
		return []bpf.Instruction{
			ld(high), and(hi), is(bpf.JumpEqual, uint32(a.ValueTwo>>32), 0, fail+3),
			ld(low), and(lo), is(bpf.JumpEqual, uint32(a.ValueTwo), 0, fail),
		}
	}
	return nil
}
