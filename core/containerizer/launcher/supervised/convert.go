package supervised

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// cloneFlags are the namespaces by kind.
var cloneFlags = map[containerv1.Namespace_Type]uint64{
	containerv1.Namespace_PID:     unix.CLONE_NEWPID,
	containerv1.Namespace_IPC:     unix.CLONE_NEWIPC,
	containerv1.Namespace_UTS:     unix.CLONE_NEWUTS,
	containerv1.Namespace_MOUNT:   unix.CLONE_NEWNS,
	containerv1.Namespace_NETWORK: unix.CLONE_NEWNET,
	containerv1.Namespace_CGROUP:  unix.CLONE_NEWCGROUP,
	containerv1.Namespace_USER:    unix.CLONE_NEWUSER,
}

// Namespaces are a proposal's namespaces: those to make, and the files of those to join.
type Namespaces struct {
	New  uint64            // CLONE_NEW*
	Join map[uint64]string // CLONE_NEW* to path
}

// ParseNamespaces reads a proposal's namespaces.
func ParseNamespaces(p *containerv1.Proposal) (Namespaces, error) {
	ns := Namespaces{Join: map[uint64]string{}}
	for _, n := range p.GetNamespaces() {
		flag, ok := cloneFlags[n.GetType()]
		if !ok {
			return ns, fmt.Errorf("namespace of unknown type %d", n.GetType())
		}
		if _, dup := ns.Join[flag]; dup || ns.New&flag != 0 {
			return ns, fmt.Errorf("namespace %s is given twice", n.GetType())
		}
		switch {
		case n.GetPath() == "":
			ns.New |= flag
		case !strings.HasPrefix(n.GetPath(), "/"):
			return ns, fmt.Errorf("namespace %s: got path %q, want an absolute one", n.GetType(), n.GetPath())
		default:
			ns.Join[flag] = n.GetPath()
		}
	}
	return ns, nil
}

// Own says whether the container has a namespace of that kind other than the host's.
func (ns Namespaces) Own(flag uint64) bool {
	return ns.New&flag != 0 || ns.Join[flag] != ""
}

// rlimits by name, getrlimit(2).
var rlimits = map[string]uint32{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU,
	"RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
	"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
	"RLIMIT_STACK": unix.RLIMIT_STACK,
}

// Rlimit returns the number of a limit by its name.
func Rlimit(name string) (uint32, error) {
	n, ok := rlimits[name]
	if !ok {
		return 0, fmt.Errorf("unknown rlimit %q", name)
	}
	return n, nil
}

// capabilities by name, made at the first use.
var capabilities = sync.OnceValue(func() map[string]uint {
	m := map[string]uint{}
	for _, c := range capability.ListKnown() {
		m["CAP_"+strings.ToUpper(c.String())] = uint(c)
	}
	return m
})

// CapabilityNames lists those capabilities, as CAP_CHOWN, that mask has.
func CapabilityNames(mask uint64) []string {
	var list []string
	for name, n := range capabilities() {
		if mask&(1<<n) != 0 {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list
}

// CapabilityMask is the set of the capabilities named, by their numbers.
func CapabilityMask(names []string) (uint64, error) {
	var mask uint64
	for _, name := range names {
		n, ok := capabilities()[name]
		if !ok {
			return 0, fmt.Errorf("unknown capability %q", name)
		}
		mask |= 1 << n
	}
	return mask, nil
}

// BoundingSet is the set of capabilities that this process could give to a child.
func BoundingSet() (uint64, error) {
	var mask uint64
	for n := range uint(64) {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(n), 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break
		}
		if err != nil {
			return 0, fmt.Errorf("read bounding set: %w", err)
		}
		if has == 1 {
			mask |= 1 << n
		}
	}
	return mask, nil
}

// sysctls of a namespace, by name or, with a dot at the end, by prefix.
var namespacedSysctls = map[string]uint64{
	"net.":                   unix.CLONE_NEWNET,
	"fs.mqueue.":             unix.CLONE_NEWIPC,
	"kernel.msgmax":          unix.CLONE_NEWIPC,
	"kernel.msgmnb":          unix.CLONE_NEWIPC,
	"kernel.msgmni":          unix.CLONE_NEWIPC,
	"kernel.sem":             unix.CLONE_NEWIPC,
	"kernel.shmall":          unix.CLONE_NEWIPC,
	"kernel.shmmax":          unix.CLONE_NEWIPC,
	"kernel.shmmni":          unix.CLONE_NEWIPC,
	"kernel.shm_rmid_forced": unix.CLONE_NEWIPC,
	"kernel.domainname":      unix.CLONE_NEWUTS,
}

// CheckSysctl says why a sysctl would change more than the container, or nil when it would not.
func CheckSysctl(name string, ns Namespaces) error {
	for _, part := range strings.Split(name, ".") {
		if part == "" || strings.ContainsAny(part, "\x00") || part == ".." {
			return fmt.Errorf("sysctl %q: malformed name", name)
		}
	}
	if strings.HasPrefix(name, "/") || strings.Contains(name, "/../") || strings.Contains(name, "//") {
		return fmt.Errorf("sysctl %q: malformed name", name)
	}
	dotted := strings.ReplaceAll(name, "/", ".")
	for key, flag := range namespacedSysctls {
		if dotted != key && (!strings.HasSuffix(key, ".") || !strings.HasPrefix(dotted, key)) {
			continue
		}
		if !ns.Own(flag) {
			return fmt.Errorf("sysctl %s needs a namespace of its own", name)
		}
		return nil
	}
	return fmt.Errorf("sysctl %s belongs to no namespace: it would change the whole machine", name)
}

// SysctlFile is the file of a sysctl below /proc/sys. As for sysctl(8), dots separate and a slash
// stands for a dot within a part, unless slashes separate.
func SysctlFile(name string) string {
	i := strings.IndexAny(name, "./")
	if i >= 0 && name[i] == '/' {
		return name
	}
	return strings.NewReplacer(".", "/", "/", ".").Replace(name)
}
