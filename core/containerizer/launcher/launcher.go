// Package launcher says what a launcher is: the part of the containerizer that turns a finished
// proposal into a running, supervised process tree, and finds it again after the agent was away.
//
// Two launchers implement it: process, for tasks on the host's file system, and oci, which drives
// an OCI runtime for everything else. Both put every container under a shim of its own, so that a
// container outlives the agent, and into a cgroup of its own, so that its end can be proved.
//
// The package promises that a created process does nothing of its own before Start, and that
// Destroy returns nil only when no process of the container is left. Deciding what to launch,
// checkpointing, and telling modules is left to the containerizer.
package launcher

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// A Request is everything a launcher needs to create one container.
type Request struct {
	// Container names the container, its cgroup and its root file system.
	Container *containerv1.Container
	// Proposal is the merged one. Its environment, arguments and working directory have been
	// taken over into the fields below and are not read again.
	Proposal *containerv1.Proposal
	// Path is the program; empty means Argv[0]. Without a slash it is looked up along PATH of Env, as
	// the container sees it.
	Path string
	// Argv is the command line, beginning with the name that the program is called by. A runtime whose
	// configuration has no place for such a name calls the program by Path.
	Argv []string
	// Env is the complete environment, as KEY=VALUE.
	Env []string
	// Dir is the working directory, absolute, in the container; empty means the root.
	Dir string
	// ReadOnly makes a root file system of the container's own read-only, and nothing that is mounted in it.
	ReadOnly bool
	// Privileged hides and protects nothing of /proc and /sys in a container with a root file system of its own but what
	// the proposal names.
	Privileged bool
	// User is whom the command runs as.
	User User
	// Stdout and Stderr are files on the host, made when missing and appended to. They are opened
	// by the shim, without following a link in the last element; a named pipe may be given. Empty
	// means discarded.
	Stdout, Stderr string
	// StdoutRotation and StderrRotation keep those files small. Output then goes through the shim. Two streams into one
	// file are given the same.
	StdoutRotation, StderrRotation Rotation
	// Pumped lets output go through the shim also where nothing is rotated: a reader of a named pipe that stands still
	// then holds up the process for some seconds, and costs output after that, where it would hold it up for ever.
	Pumped bool
	// Stdin is a file or named pipe on the host that the command reads, without following a link in the last element.
	// Empty means nothing to read. It counts with FILES only.
	Stdin string
	// RunDir is a folder on the host for the launcher alone, made when missing. It must be short
	// enough for a socket in it (100 bytes), and is removed by Destroy.
	RunDir string
	// Within, if not empty, is the cgroup of another container. That of this one lies below it and has every controller
	// that it has.
	Within string
	// Streams says what the standard streams of the first process are. With ATTACHED and TERMINAL the shim keeps them
	// for clients that attach, and writes output to Stdout and Stderr as well where these are given. A terminal has no
	// standard error: all of its output goes to Stdout.
	Streams containerv1.Container_Streams
	// Rows and Columns are the size of a terminal at first; 0 means 24 and 80.
	Rows, Columns uint16
	// TerminalRoot is the root folder of the container that the command joins: a terminal is made in its /dev/pts, so
	// that the command finds its terminal by its name. Empty, or without such a folder: in the machine's.
	TerminalRoot string
	// Beside, if not nil, is a container whose shim is to keep this one too, as far as that is possible: then no shim is
	// started, and none is paid for. It is a handle of any launcher here. When that container is destroyed, whatever was
	// created beside it ends.
	Beside Handle
}

// Program is what is to be executed.
func (r *Request) Program() string {
	if r.Path == "" && len(r.Argv) > 0 {
		return r.Argv[0]
	}
	return r.Path
}

// A User is the numeric identity of a process. Names are resolved by the caller, in the
// container's own files.
type User struct {
	UID, GID uint32
	Groups   []uint32
}

// A Rotation says that a file that reaches Size bytes is renamed to one ending in .1, that one's name to .2, and so on up
// to Keep. Lines stay whole, if they are shorter than Size. The zero value never rotates.
type Rotation struct {
	Size uint64
	Keep uint32
}

// A Launcher creates containers and finds them again.
type Launcher interface {
	// Name is stored with each container and chooses the launcher when it is found again.
	Name() string
	// Supports returns nil when the request can be applied in full, and otherwise what cannot.
	Supports(r *Request) error
	// Create makes the cgroups, writes their limits and starts the shim. When it returns, the
	// first process exists, is in its cgroups and namespaces, and is held before the command.
	// On error nothing is left behind.
	Create(ctx context.Context, r *Request) (Handle, error)
	// Reattach finds a container by the state its handle gave. A *GoneError says that it ended or
	// cannot be found; whatever remains of it in its cgroup has been killed and removed then.
	Reattach(ctx context.Context, state []byte) (Handle, error)
}

// A Warmer is a Launcher that can prepare for containers to come.
type Warmer interface {
	// Warm keeps helpers ready for containers below the cgroup root. Called once, before the first Create.
	Warm(root string)
	// Cool ends those helpers and what keeps them up. Containers are not concerned.
	Cool(ctx context.Context) error
}

// A Handle is one created container. Its methods may be called at the same time.
type Handle interface {
	// State is what Reattach needs, at most 4 KiB. It does not change.
	State() []byte
	// Pid is the first process, in the agent's pid namespace.
	Pid() int
	// StartTicks is the start time of that process in clock ticks since boot. Together with the
	// boot id it says who Pid is.
	StartTicks() uint64
	// Cgroups maps each controller to the absolute path of the container's cgroup; the name is
	// empty on version 2. Empty when the container has no cgroup.
	Cgroups() map[string]string
	// Start lets the process go and returns when the command is being executed; one that was let go before, also by an
	// earlier agent, stays as it is. That a command
	// cannot be executed is an error of Start, or, where the runtime looks earlier, of Create.
	Start(ctx context.Context) error
	// Wait returns the wait(2) status of the first process when it ended; known is false when
	// nothing can say what it was. It may be called again.
	Wait(ctx context.Context) (waitStatus int, known bool, err error)
	// Signal sends sig to the process group of the first process. ErrEnded when there is none.
	Signal(ctx context.Context, sig syscall.Signal) error
	// Update writes those settings that are set to the cgroup.
	Update(ctx context.Context, c *containerv1.CgroupResources) error
	// Destroy kills every process of the container, proves that none is left, removes the cgroup
	// and RunDir, and ends the shim. Repeatable; on error it is to be called again.
	Destroy(ctx context.Context) error
}

// An Attacher is a Handle whose first process may have streams that clients attach to.
type Attacher interface {
	// Attach opens the streams for one more client. ctx bounds only the opening. ErrNotAttached when the container was
	// created with FILES, ErrGone when its shim is lost.
	//
	// A client is given what is written from when it attached. What the process wrote while nobody read is kept, the last
	// 64 KiB of each stream, unless it goes to files, and given to the next that reads; also by this handle after Destroy.
	Attach(ctx context.Context) (Streams, error)
}

// Streams are one client's view of the standard streams of a process. There may be several: all that read get the
// same output, and what they write is taken as it comes. Read, Write and the others may be called at the same time, each by
// one caller at a time; Close by any.
type Streams interface {
	// Read returns the next piece of output. A client that never reads is not sent any. It returns io.EOF when the process
	// has ended and everything was read, at the latest a second after the process if others hold its streams open,
	// ErrSlow when the client was cut off, an error that matches ErrGone when the shim is lost, and net.ErrClosed after
	// Close.
	//
	// Where output goes to no file, the process waits for the first client that ever reads, as in a pipe between two
	// commands, until that closes; and some seconds for it to come. It waits for no other: who falls behind by more than a
	// few hundred KiB is cut off.
	Read() (Chunk, error)
	// Write gives input to the process. It blocks while the process does not read, at most until Close. Input that the
	// process has closed is dropped. ErrEnded when the process has ended.
	Write(p []byte) error
	// CloseWrite ends the input, for all clients: it closes the pipe after what was written, or types the terminal's
	// end-of-file character.
	CloseWrite() error
	// Resize changes the size of the terminal, whose foreground processes are told by SIGWINCH. An error without
	// terminal.
	Resize(rows, columns uint16) error
	// Close gives the streams up. What was written is delivered all the same.
	Close() error
}

// A Chunk is a piece of output.
type Chunk struct {
	Stderr bool
	Data   []byte // the caller's own
}

// ErrNotAttached is returned by Attach when the process has no streams to attach to.
var ErrNotAttached = errors.New("container has no streams to attach to")

// ErrSlow is returned by Read when the client read so slowly that it was cut off.
var ErrSlow = errors.New("reads too slowly")

// ErrEnded is returned by Signal and Start when the first process has ended already.
var ErrEnded = errors.New("container has ended")

// ErrGone matches every *GoneError.
var ErrGone = errors.New("container is gone")

// A GoneError says that a container ended while nobody looked.
type GoneError struct {
	// WaitStatus is the wait(2) status of the first process, if Known.
	WaitStatus int
	Known      bool
	// Why says how this was found out.
	Why string
}

func (e *GoneError) Error() string {
	if e.Known {
		return fmt.Sprintf("container is gone: %s: wait status %#x", e.Why, e.WaitStatus)
	}
	return fmt.Sprintf("container is gone: %s: wait status unknown", e.Why)
}

// Is lets errors.Is find ErrGone.
func (e *GoneError) Is(target error) bool { return target == ErrGone }
