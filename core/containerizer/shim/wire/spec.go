package wire

// A Spec tells a new shim what to create.
type Spec struct {
	// ID of the container, for error texts.
	ID string
	// RunDir is where the socket and the records go.
	RunDir string
	// Stdout and Stderr are appended to; empty means discarded. Made for LogUID and LogGID.
	Stdout, Stderr string
	LogUID, LogGID uint32
	// JoinFiles are the cgroup.procs files that the first process is written to, unless listed there.
	JoinFiles []string
	// EnterFiles are the tasks files by which the shim's thread enters the container's version 1
	// cgroups to make the first process in them; LeaveFiles lead to where shims belong.
	EnterFiles, LeaveFiles []string
	// CloneInto is a version 2 cgroup in which the first process is made. Empty for none.
	CloneInto string
	// CloneFlags are the new namespaces, as CLONE_NEW*.
	CloneFlags uint64
	// PidNamespace is a namespace file in which the first process is made. Empty for none.
	PidNamespace string
	// AwaitReady: the stage's work before the hold must be done before Created is answered.
	AwaitReady bool
	// Stage is an encoded Stage. With Runtime it only prepares the runtime's root and does not hold.
	Stage []byte
	// Runtime, if Argv is not empty, is run to completion; the first process is then the one whose
	// pid it left in PidFile.
	Runtime Runtime
	// Streams says what the standard streams are.
	Streams uint8
	// Rows and Columns are the size of a terminal at first.
	Rows, Columns uint16
	// Stdin is what a first process without streams reads; empty means nothing.
	Stdin string
	// How the files Stdout and Stderr are rotated, when the shim writes to them.
	RotateStdout, RotateStderr Rotation
	// TerminalRoot is a folder in whose dev/pts a terminal is made, if there is one.
	TerminalRoot string
}

// A Rotation says that a file of Size bytes is renamed, and Keep of those before it are kept, as name.1, name.2 and so
// on. Size 0: never.
type Rotation struct {
	Size uint64
	Keep uint32
}

// The standard streams of a first process.
const (
	StreamsFiles    = 0 // no input, output to Stdout and Stderr
	StreamsPipes    = 1 // kept by the shim, which also writes to Stdout and Stderr, if any
	StreamsTerminal = 2 // likewise; its output goes to Stdout. A runtime sends the terminal to the socket ConsoleName.
	StreamsLogged   = 3 // no input, and output that the shim writes to Stdout and Stderr, for nobody to attach to
)

// ConsoleName is the socket in the run folder to which a runtime sends a terminal.
const ConsoleName = "tty"

// A Runtime is the create command of an OCI runtime.
type Runtime struct {
	// Argv[0] is the program's path; RuntimeFD in place of it means the descriptor handed to the shim.
	Argv    []string
	Env     []string
	PidFile string
}

// The descriptors a shim finds open beside the standard ones. A stage finds its own end of a
// socket pair at ConnFD too.
const (
	ConnFD    = 3
	RuntimeFD = 4
)

// RuntimePath names the program behind RuntimeFD.
const RuntimePath = "/proc/self/fd/4"

// What a stage says on its socket, one byte each, before any error text. That the socket closes
// after StageExecutes means that the command is being executed.
const (
	StageHolds    = 1
	StageExecutes = 2
)

// Append appends the encoding of s.
func (s *Spec) Append(b []byte) []byte {
	b = appendString(b, s.ID)
	b = appendString(b, s.RunDir)
	b = appendString(b, s.Stdout)
	b = appendString(b, s.Stderr)
	b = appendUint(b, uint64(s.LogUID))
	b = appendUint(b, uint64(s.LogGID))
	b = appendStrings(b, s.JoinFiles)
	b = appendString(b, s.CloneInto)
	b = appendUint(b, s.CloneFlags)
	b = appendString(b, s.PidNamespace)
	b = appendBool(b, s.AwaitReady)
	b = appendBytes(b, s.Stage)
	b = appendStrings(b, s.Runtime.Argv)
	b = appendStrings(b, s.Runtime.Env)
	b = appendString(b, s.Runtime.PidFile)
	b = appendStrings(b, s.EnterFiles)
	b = appendStrings(b, s.LeaveFiles)
	b = appendUint(b, uint64(s.Streams))
	b = AppendSize(b, s.Rows, s.Columns)
	b = appendString(b, s.Stdin)
	for _, r := range [...]Rotation{s.RotateStdout, s.RotateStderr} {
		b = appendUint(appendUint(b, r.Size), uint64(r.Keep))
	}
	return appendString(b, s.TerminalRoot)
}

// ParseSpec decodes a Spec. Its Stage shares memory with b.
func ParseSpec(b []byte) (*Spec, error) {
	r := reader{b: b}
	s := &Spec{
		ID: r.string(), RunDir: r.string(), Stdout: r.string(), Stderr: r.string(),
		LogUID: uint32(r.uint()), LogGID: uint32(r.uint()),
		JoinFiles: r.strings(), CloneInto: r.string(), CloneFlags: r.uint(), PidNamespace: r.string(),
		AwaitReady: r.bool(), Stage: r.bytes(),
	}
	s.Runtime = Runtime{Argv: r.strings(), Env: r.strings(), PidFile: r.string()}
	s.EnterFiles, s.LeaveFiles = r.strings(), r.strings()
	s.Streams, s.Rows, s.Columns = uint8(r.uint()), uint16(r.uint()), uint16(r.uint())
	s.Stdin = r.string()
	s.RotateStdout = Rotation{Size: r.uint(), Keep: uint32(r.uint())}
	s.RotateStderr = Rotation{Size: r.uint(), Keep: uint32(r.uint())}
	s.TerminalRoot = r.string()
	if r.err != nil {
		return nil, r.err
	}
	return s, nil
}

// A Stage is what the first process does to itself before it becomes the command.
type Stage struct {
	// Before the hold.

	// Joins are namespaces to enter, in order.
	Joins []Join
	// PrivateMounts: the mount namespace is new; stop what is mounted in it from spreading.
	PrivateMounts bool
	// Proc: mount a fresh /proc, for a new pid namespace.
	Proc bool
	// Loopback: the network namespace is new; bring its loopback device up.
	Loopback bool
	Hostname string
	// BindRoot is a folder onto which the whole file system is bound.
	BindRoot string

	// After the hold, in this order.

	CgroupNamespace bool
	// Sysctls are files below /proc/sys.
	Sysctls []Sysctl
	// OOMScore is written if HasOOMScore.
	HasOOMScore bool
	OOMScore    int32
	Rlimits     []Rlimit
	// Capabilities are applied if HasCapabilities.
	HasCapabilities bool
	Capabilities    Capabilities
	// SwitchUser: take on UID, GID and Groups.
	SwitchUser bool
	UID, GID   uint32
	Groups     []uint32

	NoNewPrivileges bool
	// Seccomp is a filter: sock_filter records of 8 bytes.
	Seccomp []byte

	Dir  string
	Argv []string
	Env  []string
	// NoHold: do not wait for the word to go.
	NoHold bool
	// Path is the program; empty means Argv[0].
	Path string
	// Root, if not nil, is put together and entered before the hold. Sysctls and OOMScore are then written before it, too.
	Root *Root
}

// A Join is a namespace file to enter.
type Join struct {
	Type uint64 // CLONE_NEW*
	Path string
}

// A Sysctl is a file below /proc/sys and what to write there.
type Sysctl struct{ File, Value string }

// An Rlimit is a limit by its number.
type Rlimit struct {
	Resource   uint32
	Soft, Hard uint64
}

// Capabilities are sets of bits by capability number.
type Capabilities struct {
	Bounding, Effective, Permitted, Inheritable, Ambient uint64
}

// Append appends the encoding of s.
func (s *Stage) Append(b []byte) []byte {
	b = appendUint(b, uint64(len(s.Joins)))
	for _, j := range s.Joins {
		b = appendString(appendUint(b, j.Type), j.Path)
	}
	b = appendBool(b, s.PrivateMounts)
	b = appendBool(b, s.Proc)
	b = appendBool(b, s.Loopback)
	b = appendString(b, s.Hostname)
	b = appendString(b, s.BindRoot)
	b = appendBool(b, s.CgroupNamespace)
	b = appendUint(b, uint64(len(s.Sysctls)))
	for _, c := range s.Sysctls {
		b = appendString(appendString(b, c.File), c.Value)
	}
	b = appendBool(b, s.HasOOMScore)
	b = appendUint(b, uint64(uint32(s.OOMScore)))
	b = appendUint(b, uint64(len(s.Rlimits)))
	for _, l := range s.Rlimits {
		b = appendUint(appendUint(appendUint(b, uint64(l.Resource)), l.Soft), l.Hard)
	}
	b = appendBool(b, s.HasCapabilities)
	c := s.Capabilities
	for _, v := range [...]uint64{c.Bounding, c.Effective, c.Permitted, c.Inheritable, c.Ambient} {
		b = appendUint(b, v)
	}
	b = appendBool(b, s.SwitchUser)
	b = appendUint(b, uint64(s.UID))
	b = appendUint(b, uint64(s.GID))
	b = appendUint(b, uint64(len(s.Groups)))
	for _, g := range s.Groups {
		b = appendUint(b, uint64(g))
	}
	b = appendBool(b, s.NoNewPrivileges)
	b = appendBytes(b, s.Seccomp)
	b = appendString(b, s.Dir)
	argv := s.Argv
	if s.Root != nil {
		argv = nil // to whoever knows no roots this is malformed: nothing runs outside of the root that it was to have
	}
	b = appendStrings(b, argv)
	b = appendStrings(b, s.Env)
	b = appendBool(b, s.NoHold)
	b = appendString(b, s.Path)
	if s.Root == nil {
		return b
	}
	return appendStrings(s.Root.append(b), s.Argv)
}

// ParseStage decodes a Stage. Its Seccomp shares memory with b.
func ParseStage(b []byte) (*Stage, error) {
	r := reader{b: b}
	s := &Stage{}
	for n := r.count(); r.more(n); n-- {
		s.Joins = append(s.Joins, Join{Type: r.uint(), Path: r.string()})
	}
	s.PrivateMounts, s.Proc, s.Loopback = r.bool(), r.bool(), r.bool()
	s.Hostname, s.BindRoot = r.string(), r.string()
	s.CgroupNamespace = r.bool()
	for n := r.count(); r.more(n); n-- {
		s.Sysctls = append(s.Sysctls, Sysctl{File: r.string(), Value: r.string()})
	}
	s.HasOOMScore, s.OOMScore = r.bool(), int32(uint32(r.uint()))
	for n := r.count(); r.more(n); n-- {
		s.Rlimits = append(s.Rlimits, Rlimit{Resource: uint32(r.uint()), Soft: r.uint(), Hard: r.uint()})
	}
	s.HasCapabilities = r.bool()
	s.Capabilities = Capabilities{Bounding: r.uint(), Effective: r.uint(), Permitted: r.uint(), Inheritable: r.uint(), Ambient: r.uint()}
	s.SwitchUser, s.UID, s.GID = r.bool(), uint32(r.uint()), uint32(r.uint())
	for n := r.count(); r.more(n); n-- {
		s.Groups = append(s.Groups, uint32(r.uint()))
	}
	s.NoNewPrivileges, s.Seccomp = r.bool(), r.bytes()
	s.Dir, s.Argv, s.Env = r.string(), r.strings(), r.strings()
	s.NoHold = r.bool()
	s.Path = r.string()
	if s.Root = r.root(); s.Root != nil {
		s.Argv = r.strings()
	}
	if r.err != nil {
		return nil, r.err
	}
	if len(s.Argv) == 0 || len(s.Seccomp)%8 != 0 {
		return nil, ErrMalformed
	}
	return s, nil
}
