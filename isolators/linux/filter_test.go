package linux

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/elastic/go-seccomp-bpf/arch"
	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// machine runs a compiled filter as the kernel would.
type machine struct{ vm *bpf.VM }

func load(t *testing.T, program []byte) machine {
	t.Helper()
	var code []bpf.Instruction
	for at := 0; at < len(program); at += 8 {
		r := bpf.RawInstruction{
			Op: binary.NativeEndian.Uint16(program[at:]), Jt: program[at+2], Jf: program[at+3], K: binary.NativeEndian.Uint32(program[at+4:]),
		}
		code = append(code, r.Disassemble())
	}
	vm, err := bpf.NewVM(code)
	if err != nil {
		t.Fatalf("the filter is no valid program: %v", err)
	}
	return machine{vm}
}

// run gives the verdict on one system call. The virtual machine loads words in network order, and the filter loads
// words only, so its struct seccomp_data is written in that order.
func (m machine) run(t *testing.T, id uint32, number uint32, args ...uint64) verdict {
	t.Helper()
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[offsetNumber:], number)
	binary.BigEndian.PutUint32(data[offsetArch:], id)
	for i, a := range args {
		words := []uint32{uint32(a), uint32(a >> 32)}
		if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
			slices.Reverse(words)
		}
		binary.BigEndian.PutUint32(data[offsetArguments+8*i:], words[0])
		binary.BigEndian.PutUint32(data[offsetArguments+8*i+4:], words[1])
	}
	v, err := m.vm.Run(data)
	if err != nil {
		t.Fatalf("run the filter: %v", err)
	}
	return verdict(uint32(v))
}

func native(t *testing.T) *arch.Info {
	t.Helper()
	info, err := arch.GetInfo("")
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func dockers(t *testing.T, caps ...string) *specs.LinuxSeccomp {
	t.Helper()
	p, err := seccomp.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

const (
	allow = verdict(unix.SECCOMP_RET_ALLOW)
	perm  = verdict(unix.SECCOMP_RET_ERRNO | unix.EPERM)
	nosys = verdict(unix.SECCOMP_RET_ERRNO | unix.ENOSYS)
)

func TestTheDefaultProfileAllowsAndForbidsWhatDockerDoes(t *testing.T) {
	info := native(t)
	plain, err := compile(dockers(t))
	if err != nil {
		t.Fatal(err)
	}
	admin, err := compile(dockers(t, "CAP_SYS_ADMIN"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d instructions", len(plain)/8)
	thread, namespace := uint64(unix.CLONE_VM|unix.CLONE_THREAD), uint64(unix.CLONE_NEWUSER)
	for _, test := range []struct {
		program []byte
		call    string
		args    []uint64
		want    verdict
	}{
		{plain, "read", nil, allow},
		{plain, "exit_group", nil, allow},
		{plain, "clone", []uint64{thread}, allow},
		{plain, "clone", []uint64{namespace}, perm},
		{admin, "clone", []uint64{namespace}, allow},
		{plain, "clone3", nil, nosys},
		{admin, "clone3", nil, allow},
		{plain, "mount", nil, perm},
		{admin, "mount", nil, allow},
		{plain, "personality", []uint64{0}, allow},
		{plain, "personality", []uint64{0xffffffff}, allow},
		{plain, "personality", []uint64{0x0040000}, perm},
		{plain, "personality", []uint64{1 << 40}, perm},
		{plain, "socket", []uint64{unix.AF_INET}, allow},
		{plain, "socket", []uint64{unix.AF_VSOCK}, perm},
		{plain, "kexec_load", nil, perm},
		{plain, "bpf", nil, perm},
	} {
		number, ok := info.SyscallNames[test.call]
		if !ok {
			t.Fatalf("no system call %s here", test.call)
		}
		if got := load(t, test.program).run(t, uint32(info.ID), uint32(number), test.args...); got != test.want {
			t.Errorf("%s%v: verdict %#x, want %#x", test.call, test.args, got, test.want)
		}
	}
}

func TestCallsByOtherNumbersAreJudgedByTheirOwn(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the numbers are those of amd64")
	}
	m := func(p *specs.LinuxSeccomp) machine {
		program, err := compile(p)
		if err != nil {
			t.Fatal(err)
		}
		return load(t, program)
	}
	x86, i386 := uint32(arch.X86_64.ID), uint32(arch.I386.ID)
	whitelist := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"getpid", "no_such_call"}, Action: specs.ActAllow}}}
	blacklist := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"mount"}, Action: specs.ActErrno}}}
	both := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86, specs.ArchX32}, Syscalls: whitelist.Syscalls}
	for _, test := range []struct {
		name    string
		profile *specs.LinuxSeccomp
		id      uint32
		number  uint32
		want    verdict
	}{
		{"listed", whitelist, x86, 39, allow},
		{"not listed", whitelist, x86, 40, perm},
		{"i386 without being listed", whitelist, i386, 20, perm},
		{"x32 without being listed", whitelist, x86, x32Bit | 39, perm},
		{"forbidden", blacklist, x86, 165, perm},
		{"allowed by default", blacklist, x86, 39, allow},
		{"around a forbidden call by i386", blacklist, i386, 21, unix.SECCOMP_RET_KILL_PROCESS},
		{"around a forbidden call by x32", blacklist, x86, x32Bit | 165, unix.SECCOMP_RET_KILL_PROCESS},
		{"i386's own number", both, i386, 20, allow},
		{"amd64's number at i386", both, i386, 39, perm},
		{"x32", both, x86, x32Bit | 39, allow},
		{"an unknown machine", both, 0x1234, 39, perm},
	} {
		if got := m(test.profile).run(t, test.id, test.number); got != test.want {
			t.Errorf("%s: verdict %#x, want %#x", test.name, got, test.want)
		}
	}
}

// judgeSlowly is what compile promises, without a program.
func judgeSlowly(p *specs.LinuxSeccomp, name string, args []uint64) verdict {
	for _, s := range p.Syscalls {
		if !slices.Contains(s.Names, name) {
			continue
		}
		seen, twice, every, one := map[uint]bool{}, false, true, false
		for _, a := range s.Args {
			twice = twice || seen[a.Index]
			seen[a.Index] = true
			v := args[a.Index]
			holds := map[specs.LinuxSeccompOperator]bool{
				specs.OpEqualTo: v == a.Value, specs.OpNotEqual: v != a.Value, specs.OpGreaterThan: v > a.Value, specs.OpGreaterEqual: v >= a.Value,
				specs.OpLessThan: v < a.Value, specs.OpLessEqual: v <= a.Value, specs.OpMaskedEqual: v&a.Value == a.ValueTwo,
			}[a.Op]
			every, one = every && holds, one || holds
		}
		if every && !twice || one && twice {
			v, _ := verdictOf(s.Action, s.ErrnoRet)
			return v
		}
	}
	v, _ := verdictOf(p.DefaultAction, p.DefaultErrnoRet)
	return v
}

func TestRandomProfilesMeanWhatTheySay(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	info := native(t)
	var calls []string
	for name := range info.SyscallNames {
		calls = append(calls, name)
	}
	slices.Sort(calls)
	values := []uint64{0, 1, 2, 0xffffffff, 1 << 32, 1<<32 + 1, 1 << 63, 1<<64 - 1, 0x7e020000}
	value := func() uint64 { return values[r.IntN(len(values))] }
	ops := []specs.LinuxSeccompOperator{
		specs.OpEqualTo, specs.OpNotEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpMaskedEqual,
	}
	actions := []specs.LinuxSeccompAction{specs.ActAllow, specs.ActErrno, specs.ActKillProcess, specs.ActTrap, specs.ActLog, specs.ActTrace}
	for range 60 {
		p := &specs.LinuxSeccomp{DefaultAction: actions[r.IntN(len(actions))]}
		for range 1 + r.IntN(60) {
			s := specs.LinuxSyscall{Action: actions[r.IntN(len(actions))]}
			if r.IntN(2) == 0 {
				errno := uint(r.IntN(100))
				s.ErrnoRet = &errno
			}
			for range 1 + r.IntN(8) {
				s.Names = append(s.Names, calls[r.IntN(len(calls))])
			}
			for range r.IntN(4) {
				s.Args = append(s.Args, specs.LinuxSeccompArg{Index: uint(r.IntN(6)), Value: value(), ValueTwo: value(), Op: ops[r.IntN(len(ops))]})
			}
			p.Syscalls = append(p.Syscalls, s)
		}
		program, err := compile(p)
		if err != nil {
			t.Fatal(err)
		}
		m := load(t, program)
		for range 200 {
			name := calls[r.IntN(len(calls))]
			args := []uint64{value(), value(), value(), value(), value(), value()}
			if got, want := m.run(t, uint32(info.ID), uint32(info.SyscallNames[name]), args...), judgeSlowly(p, name, args); got != want {
				text, _ := json.Marshal(p)
				t.Fatalf("%s%#x: verdict %#x, want %#x, by %s", name, args, got, want, text)
			}
		}
	}
}

func TestProfilesThatCannotBeCompiledAreRefused(t *testing.T) {
	errno := uint(100000)
	for want, p := range map[string]*specs.LinuxSeccomp{
		"defaultAction": {DefaultAction: "SCMP_ACT_MAYBE"},
		"listener":      {DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActNotify}}},
		"errno":         {DefaultAction: specs.ActErrno, DefaultErrnoRet: &errno},
		"index":         {DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}}}},
		"op":            {DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Op: "SCMP_CMP_ODD"}}}}},
		"instructions":  huge(),
	} {
		if _, err := compile(p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("compile: %v, want an error about %s", err, want)
		}
	}
}

// huge is a profile with more conditions than the kernel takes.
func huge() *specs.LinuxSeccomp {
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
	for n := range uint64(1000) {
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{"ioctl"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 1, Value: n, Op: specs.OpEqualTo}}})
	}
	return p
}

// TestTheKernelTakesTheFilter runs this test's binary again under the default profile.
func TestTheKernelTakesTheFilter(t *testing.T) {
	if os.Getenv("MOSAIC_TEST_FILTERED") != "" {
		filtered()
		return
	}
	c := exec.Command(os.Args[0], "-test.run=^TestTheKernelTakesTheFilter$")
	c.Env = append(os.Environ(), "MOSAIC_TEST_FILTERED=1")
	out, err := c.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "unshare: operation not permitted, clone3: function not implemented, getpid works\n") {
		t.Errorf("under the filter: %v\n%s", err, out)
	}
}

func filtered() {
	p, err := seccomp.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}})
	if err != nil {
		panic(err)
	}
	program, err := compile(p)
	if err != nil {
		panic(err)
	}
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	f := unix.SockFprog{Len: uint16(len(program) / 8), Filter: (*unix.SockFilter)(unsafe.Pointer(&program[0]))}
	if _, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&f))); e != 0 {
		panic(fmt.Sprint("load the filter: ", e))
	}
	_, _, unshare := syscall.RawSyscall(unix.SYS_UNSHARE, unix.CLONE_NEWUSER, 0, 0)
	_, _, clone3 := syscall.RawSyscall(unix.SYS_CLONE3, 0, 0, 0)
	getpid := "works"
	if pid, _, e := syscall.RawSyscall(unix.SYS_GETPID, 0, 0, 0); e != 0 || int(pid) != os.Getpid() {
		getpid = errors.Join(e).Error()
	}
	fmt.Printf("unshare: %v, clone3: %v, getpid %s\n", unshare, clone3, getpid)
}
