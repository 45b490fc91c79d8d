package wire_test

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/mosaic-cluster/mosaic/core/containerizer/shim/wire"
)

var spec = wire.Spec{
	Stdin: "/in", RotateStdout: wire.Rotation{Size: 1 << 40, Keep: 3}, RotateStderr: wire.Rotation{Size: 5, Keep: 1000},
	ID: "c1", RunDir: "/run/c1", Stdout: "/a", Stderr: "/b", LogUID: 1, LogGID: 1 << 31,
	JoinFiles: []string{"/x/cgroup.procs", ""}, CloneInto: "/u", CloneFlags: 1 << 63, PidNamespace: "/proc/1/ns/pid",
	EnterFiles: []string{"/x/tasks"}, LeaveFiles: []string{"/y/tasks", "/z/tasks"},
	AwaitReady: true, Stage: []byte{1, 2, 3},
	Runtime: wire.Runtime{Argv: []string{"runc"}, Env: []string{"PATH=/bin"}, PidFile: "/p"},
	Streams: wire.StreamsTerminal, Rows: 1<<16 - 1, Columns: 80, TerminalRoot: "/proc/7/root",
}

var stage = wire.Stage{
	Joins: []wire.Join{{Type: 7, Path: "/n"}}, PrivateMounts: true, Proc: true, Loopback: true, Hostname: "h", BindRoot: "/r",
	CgroupNamespace: true, Sysctls: []wire.Sysctl{{File: "net/x", Value: "1"}}, HasOOMScore: true, OOMScore: -1000,
	Rlimits: []wire.Rlimit{{Resource: 7, Soft: 1, Hard: ^uint64(0)}}, HasCapabilities: true,
	Capabilities: wire.Capabilities{Bounding: 1, Effective: 2, Permitted: 3, Inheritable: 4, Ambient: 5},
	SwitchUser:   true, UID: 1, GID: 2, Groups: []uint32{3, 4}, NoNewPrivileges: true, Seccomp: make([]byte, 16),
	Dir: "/d", Argv: []string{"a", ""}, Env: []string{"A=B"}, NoHold: true, Path: "/p",
}

var rooted = wire.Stage{
	PrivateMounts: true, Argv: []string{"a"}, Seccomp: make([]byte, 8), Root: &wire.Root{
		Path: "/root", ReadOnly: true, OwnDev: true, Home: true,
		Mounts: []wire.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"hidepid=2"}, Set: 1 << 20, Clear: 3},
			{Destination: "/data", Source: "/srv", Recursive: true, Propagation: 1<<19 | 1<<14},
		},
		Devices: []wire.Device{{Path: "/dev/x", Mode: 0o20666, Dev: 1<<8 | 3, UID: 1, GID: 1 << 31}},
		Masked:  []string{"/proc/kcore"}, Fixed: []string{"/proc/sys", ""},
	},
}

func TestMessagesComeBackAsTheyWere(t *testing.T) {
	gotSpec, err := wire.ParseSpec(spec.Append(nil))
	if err != nil || !reflect.DeepEqual(*gotSpec, spec) {
		t.Errorf("ParseSpec = %+v, %v; want %+v", gotSpec, err, spec)
	}
	gotStage, err := wire.ParseStage(stage.Append(nil))
	if err != nil || !reflect.DeepEqual(*gotStage, stage) {
		t.Errorf("ParseStage = %+v, %v; want %+v", gotStage, err, stage)
	}
	gotRooted, err := wire.ParseStage(rooted.Append(nil))
	if err != nil || !reflect.DeepEqual(*gotRooted, rooted) {
		t.Errorf("ParseStage = %+v, %v; want %+v", gotRooted, err, rooted)
	}
	state := wire.State{Pid: 1 << 22, StartTicks: ^uint64(0), Started: true, Exited: true, WaitStatus: 0xffffffff, Abilities: wire.CanRun}
	gotState, err := wire.ParseState(state.Append(nil))
	if err != nil || gotState != state {
		t.Errorf("ParseState = %+v, %v; want %+v", gotState, err, state)
	}
	errno, text, err := wire.ParseError(wire.AppendError(nil, 2, "no"))
	if errno != 2 || text != "no" || err != nil {
		t.Errorf("ParseError = %d, %q, %v", errno, text, err)
	}
	rows, columns, err := wire.ParseSize(wire.AppendSize(nil, 65535, 80))
	if rows != 65535 || columns != 80 || err != nil {
		t.Errorf("ParseSize = %d, %d, %v", rows, columns, err)
	}
	frame := wire.AppendFrame(nil, wire.KindSignal, 1<<31, wire.AppendUint32(nil, 9))
	n, kind, id, err := wire.Header(frame)
	if n != 1 || kind != wire.KindSignal || id != 1<<31 || err != nil {
		t.Errorf("Header = %d, %d, %d, %v", n, kind, id, err)
	}
}

func TestFieldsThatAnOlderWriterDidNotKnowAreZero(t *testing.T) {
	s, err := wire.ParseState(nil)
	if err != nil || s != (wire.State{}) {
		t.Errorf("ParseState(nil) = %+v, %v", s, err)
	}
}

// A stage that knows no roots reads up to Path only. It must not run the command where it is.
func TestARootIsNeverOverlooked(t *testing.T) {
	old := rooted
	old.Root = nil
	for _, size := range []int{len(rooted.Append(nil)), len(old.Append(nil)) - 2} { // Argv has two bytes
		b := rooted.Append(nil)[:size]
		if st, err := wire.ParseStage(b); err == nil && st.Root == nil {
			t.Errorf("ParseStage of the first %d bytes = %+v, want a root or an error", size, st)
		}
	}
}

func TestHugeLengthsAreRefused(t *testing.T) {
	for _, b := range [][]byte{
		{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1},
		{0, 0, 0, 1, 0, 0, 0, 0, 1},
	} {
		if n, _, _, err := wire.Header(b); err == nil {
			t.Errorf("Header(%v) = %d, nil", b, n)
		}
	}
	if _, err := wire.ParseStage(bytes.Repeat([]byte{0xff}, 64)); err == nil {
		t.Error("ParseStage of an endless number = nil")
	}
	if _, err := wire.ParseStage([]byte{200, 1}); err == nil {
		t.Error("ParseStage of a list longer than the message = nil")
	}
}

// TestNoInputPanics cuts and changes real messages, and feeds noise.
func TestNoInputPanics(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	parse := func(b []byte) {
		_, _ = wire.ParseSpec(b)
		_, _ = wire.ParseStage(b)
		_, _ = wire.ParseState(b)
		_, _, _ = wire.ParseError(b)
		_, _ = wire.ParseUint32(b)
		_, _, _ = wire.ParseSize(b)
		_, _, _, _ = wire.Header(b)
	}
	for _, whole := range [][]byte{spec.Append(nil), stage.Append(nil), rooted.Append(nil)} {
		for i := range whole {
			parse(whole[:i])
			for range 20 {
				changed := bytes.Clone(whole)
				changed[i] = byte(r.Uint32())
				parse(changed)
			}
		}
	}
	for range 20000 {
		b := make([]byte, r.IntN(64))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		parse(b)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(spec.Append(nil))
	f.Add(stage.Append(nil))
	f.Add(rooted.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := wire.ParseSpec(b); err == nil {
			if again, err := wire.ParseSpec(s.Append(nil)); err != nil || !reflect.DeepEqual(s, again) {
				t.Errorf("ParseSpec(%v) = %+v, again %+v, %v", b, s, again, err)
			}
		}
		if s, err := wire.ParseStage(b); err == nil {
			if again, err := wire.ParseStage(s.Append(nil)); err != nil || !bytes.Equal(again.Append(nil), s.Append(nil)) {
				t.Errorf("ParseStage(%v) = %+v, again %+v, %v", b, s, again, err)
			}
		}
	})
}
