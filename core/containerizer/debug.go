package containerizer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// A container of class DEBUG is one more command in its parent's: in its namespaces and below its cgroup, as its user,
// with its environment, working directory, limits, capabilities and filter. What it prints is appended to the parent's
// stderr, or, in a session, sent to whoever attaches. Since it is given nothing that its parent does not have, no isolator is asked about it.
//
// It serves whoever asked for it and does not outlive the agent. Its intent therefore stays until it is gone, and
// nothing of it is stored: a new agent finds the intent and takes it down, and a check every few seconds costs no
// write to the disk that anybody waits for.

// checkDebug says what is wrong with the description of a debug container.
func checkDebug(want *containerv1.Container) error {
	switch {
	case want.GetClass() != containerv1.Container_DEBUG:
		return nil
	case want.GetParentId() == "":
		return errors.New("a debug container needs a parent")
	case asksForItsOwn(want.GetContainerInfo()) || want.GetLocalImage() != "" || want.GetRootfs() != "":
		return errors.New("a debug container has its parent's root filesystem, volumes and networks, and none of its own")
	case want.GetCommand().GetValue() == "":
		return errors.New("a debug container runs no image's command: got none of its own")
	case len(want.GetCommand().GetUris()) > 0:
		return errors.New("a debug container fetches nothing")
	}
	return nil
}

// asksForItsOwn says whether a description asks for more than a terminal.
func asksForItsOwn(info *mesosv1.ContainerInfo) bool {
	if info == nil {
		return false
	}
	return !proto.Equal(info, &mesosv1.ContainerInfo{Type: info.Type, TtyInfo: info.TtyInfo}) || info.GetType() == mesosv1.ContainerInfo_DOCKER && info.Type != nil
}

// launchDebug is Launch for a container of class DEBUG.
func (c *Containerizer) launchDebug(ctx context.Context, ct *container) (pid int32, err error) {
	if err := c.writeIntent(ct); err != nil {
		return 0, err
	}
	parent, err := c.find(ct.spec.GetParentId())
	if err != nil {
		return 0, fmt.Errorf("parent: %w", err)
	}
	inside, err := c.inside(parent)
	defer inside.close()
	if err != nil {
		return 0, err
	}
	request, err := c.debugRequest(ctx, ct, parent, inside.list)
	if err != nil {
		return 0, err
	}
	request.TerminalRoot = inside.root
	chosen, err := c.choose(request)
	if err != nil {
		return 0, err
	}
	handle, err := create(ctx, chosen, request)
	if err != nil {
		return 0, err // the launcher names itself
	}
	c.created(ct, chosen, handle, &containerv1.Spec{Merged: request.Proposal})
	if request.Streams != containerv1.Container_FILES {
		if err := c.holdStreams(ctx, ct, handle); err != nil {
			return 0, err
		}
	}
	if err := start(ctx, handle); err != nil {
		return 0, fmt.Errorf("launcher(%s): %w", chosen.Name(), err)
	}
	if err := c.runs(ct); err != nil {
		return 0, err
	}
	return int32(handle.Pid()), nil
}

// debugRequest is request for a container of class DEBUG.
func (c *Containerizer) debugRequest(ctx context.Context, ct, parent *container, namespaces []*containerv1.Namespace) (*launcher.Request, error) {
	parent.mu.Lock()
	spec, merged := parent.spec, parent.merged.GetMerged()
	parent.mu.Unlock()
	if merged == nil {
		return nil, fmt.Errorf("parent: %w", ErrNotRunning)
	}
	as := proto.CloneOf(spec)
	if user := ct.spec.GetUser(); user != "" {
		as.User = user
	}
	who, err := c.identify(as.GetUser(), spec.GetRootfs())
	if err != nil {
		return nil, err
	}
	as.Streams, as.TerminalRows, as.TerminalColumns = ct.spec.GetStreams(), ct.spec.GetTerminalRows(), ct.spec.GetTerminalColumns()
	as.Command = proto.CloneOf(ct.spec.GetCommand())
	as.Command.Environment = &mesosv1.Environment{Variables: slices.Concat(
		spec.GetCommand().GetEnvironment().GetVariables(), ct.spec.GetCommand().GetEnvironment().GetVariables(),
	)}
	r, err := c.request(ctx, as, &containerv1.Proposal{
		Namespaces: namespaces, Environment: merged.GetEnvironment(), WorkingDirectory: merged.GetWorkingDirectory(),
		Rlimits: merged.GetRlimits(), Capabilities: asUser(merged.GetCapabilities(), who), Seccomp: merged.GetSeccomp(),
		NoNewPrivileges: merged.NoNewPrivileges, OomScoreAdj: merged.OomScoreAdj,
	}, who)
	if err != nil {
		return nil, err
	}
	r.Container, r.Within = ct.spec, spec.GetCgroup()
	r.Stdout = r.Stderr
	if r.Streams != containerv1.Container_FILES {
		r.Stdout, r.Stderr = "", "" // a session's is its client's alone
	}
	r.Beside = c.rootHandle(ct)
	r.RunDir = filepath.Join(c.runDir, shortName(ct.id))
	return r, nil
}

// asUser are a container's capabilities for a command of who in it. What another user than root would lose with its first
// program it does not have for finding that program either.
func asUser(c *containerv1.Capabilities, who launcher.User) *containerv1.Capabilities {
	if c == nil || who.UID == 0 {
		return c
	}
	c = proto.CloneOf(c)
	c.Effective, c.Permitted = c.GetAmbient(), c.GetAmbient()
	return c
}

// namespaces are those of a process that are not the agent's, held open so that they cannot become others'.
type namespaces struct {
	files []*os.File
	list  []*containerv1.Namespace
	root  string // the process's root folder, where it is not the agent's mount namespace
}

func (n *namespaces) close() {
	for _, f := range n.files {
		_ = f.Close() // opened for reading
	}
}

// namespacesOf opens the namespaces of a container's first process.
func namespacesOf(ct *container) (*namespaces, error) {
	ct.mu.Lock()
	pid, ticks := ct.pid, ct.ticks
	ct.mu.Unlock()
	n := &namespaces{}
	open := func(name string, flags int) (*os.File, error) {
		f, err := os.OpenFile(fmt.Sprintf("/proc/%d/%s", pid, name), flags, 0)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			return nil, fmt.Errorf("container %s: %w", ct.id, ErrNotRunning)
		}
		if err != nil {
			return nil, fmt.Errorf("namespaces of container %s: %w", ct.id, err)
		}
		n.files = append(n.files, f)
		return f, nil
	}
	for _, kind := range []struct {
		name string
		is   containerv1.Namespace_Type
	}{
		{"user", containerv1.Namespace_USER}, {"pid", containerv1.Namespace_PID}, {"ipc", containerv1.Namespace_IPC},
		{"uts", containerv1.Namespace_UTS}, {"net", containerv1.Namespace_NETWORK}, {"cgroup", containerv1.Namespace_CGROUP},
		{"mnt", containerv1.Namespace_MOUNT},
	} {
		// Of this thread: another may be visiting a container's network for a moment.
		own, err := os.Stat("/proc/thread-self/ns/" + kind.name)
		if errors.Is(err, os.ErrNotExist) {
			continue // the kernel has no such namespaces
		}
		if err != nil {
			return n, fmt.Errorf("namespaces of container %s: %w", ct.id, err)
		}
		f, err := open("ns/"+kind.name, os.O_RDONLY)
		if err != nil {
			return n, err
		}
		theirs, err := f.Stat()
		if err != nil {
			return n, fmt.Errorf("namespaces of container %s: %w", ct.id, err)
		}
		if !os.SameFile(own, theirs) {
			n.list = append(n.list, &containerv1.Namespace{Type: kind.is, Path: pathOf(f)})
			if kind.is == containerv1.Namespace_MOUNT {
				root, err := open("root", unix.O_PATH)
				if err != nil {
					return n, err
				}
				n.root = pathOf(root)
			}
		}
	}
	// Asked after they were opened: while the process lives nobody else can have had its pid before.
	if now, err := startTicks(pid); err != nil || now != ticks {
		return n, fmt.Errorf("container %s: %w", ct.id, ErrNotRunning)
	}
	return n, nil
}

// pathOf names an open file of the agent for other processes.
func pathOf(f *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) }

// startTicks is when a process started, in clock ticks since boot.
func startTicks(pid int32) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name may hold spaces and parentheses; the 22nd field is the 20th after it.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat: got %d fields after the name, want at least 20", pid, len(fields))
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}
