package oci_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/launchertest"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/process"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// survey prints what a process finds around it.
const survey = `
echo MOUNTS; cat /proc/self/mountinfo
echo STATUS; grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|Umask)' /proc/self/status
echo LIMITS; cat /proc/self/limits
echo DEVICES; ls -ln /dev /dev/pts /dev/mqueue /dev/shm
echo DESCRIPTORS; ls /proc/$$/fd
echo SESSION; stat -c %a,%u,%g / /dev /proc /sys /tmp /data; cat /proc/self/attr/current; cat /proc/self/sessionid
echo ENVIRONMENT; env | sort
echo CGROUP; cat /proc/self/cgroup
echo KEYS; grep -q . /proc/keys && echo some
echo REST; cat /proc/self/oom_score_adj /proc/self/timerslack_ns /proc/sys/kernel/hostname; pwd
echo REFUSED
for d in "c 1 1" "b 8 0" "c 10 200" "c 1 3" "c 5 0" "c 136 0" "c 1 11"; do
  set -- $d; busybox mknod /tmp/node $1 $2 $3 && { head -c 0 </tmp/node && echo "$d opens" || echo "$d does not"; busybox rm /tmp/node; }
done
busybox mount -t tmpfs none /tmp || echo no mount
touch /sys/x /proc/sys/x /proc/x /etc/x /made || echo no file
`

// order and numbers of mounts are of no account, nor which of the shared ones they are slaves of.
var mountNumbers = regexp.MustCompile(`(?m)^\d+ \d+ \d+:\d+ `)

var (
	masters = regexp.MustCompile(`master:\d+`)
	moments = regexp.MustCompile(`[A-Z][a-z][a-z] +\d+ +\d\d:\d\d`)
	// Hierarchies that limit nothing; a runtime makes groups in all, where the launchers make those that are used.
	unused = regexp.MustCompile(`(?m)^\d+:(freezer|cpuset|net_cls|net_prio|perf_event|hugetlb|rdma|misc|[a-z_]+,net_prio):.*\n`)
	inodes = regexp.MustCompile(`(pts|mqueue|shm|tmpfs)( rw.*?)inode\d+`)
)

// tidy takes out of a survey what differs from one container to the next.
func tidy(out string, r *launcher.Request) []string {
	out = strings.ReplaceAll(out, r.Container.Id, "ID")
	out = strings.ReplaceAll(out, filepath.Dir(r.RunDir), "DIR")
	out = mountNumbers.ReplaceAllString(out, "")
	out = masters.ReplaceAllString(out, "master")
	out = moments.ReplaceAllString(out, "WHEN")
	out = unused.ReplaceAllString(out, "")
	out = inodes.ReplaceAllString(out, "$1$2")
	lines := strings.Split(out, "\n")
	end := slices.Index(lines, "STATUS")
	if end > 0 {
		slices.Sort(lines[1:end])
	}
	return lines
}

// TestAnImageLooksTheSameWithoutARuntime: what a process finds in an image is what it finds there under the runtime.
func TestAnImageLooksTheSameWithoutARuntime(t *testing.T) {
	for name, change := range map[string]func(e *launchertest.Env, r *launcher.Request){
		"plain": func(*launchertest.Env, *launcher.Request) {},
		"a user of its own": func(_ *launchertest.Env, r *launcher.Request) {
			r.User = launcher.User{UID: 1234, GID: 1235, Groups: []uint32{1236, 1237}}
		},
		"capabilities as Docker gives them": func(_ *launchertest.Env, r *launcher.Request) {
			some := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_MKNOD", "CAP_NET_BIND_SERVICE", "CAP_SETUID"}
			r.Proposal.Capabilities = &containerv1.Capabilities{Bounding: some, Effective: some, Permitted: some}
			r.Proposal.NoNewPrivileges = new(true)
		},
		"namespaces, limits and a read-only root": func(_ *launchertest.Env, r *launcher.Request) {
			for _, n := range []containerv1.Namespace_Type{containerv1.Namespace_PID, containerv1.Namespace_IPC, containerv1.Namespace_UTS, containerv1.Namespace_NETWORK, containerv1.Namespace_CGROUP} {
				r.Proposal.Namespaces = append(r.Proposal.Namespaces, &containerv1.Namespace{Type: n})
			}
			r.Proposal.Rlimits = []*containerv1.Rlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}}
			score := int32(77)
			r.Proposal.Hostname, r.Proposal.OomScoreAdj, r.ReadOnly, r.Dir = "inside", &score, true, "/tmp"
		},
		"mounts of all kinds": func(e *launchertest.Env, r *launcher.Request) {
			r.Proposal.Mounts = []*containerv1.Mount{
				{Destination: "/data/ro", Source: e.Dir, Type: "bind", Options: []string{"rbind", "ro"}},
				{Destination: "/data/rw", Source: e.Dir, Type: "bind", Options: []string{"rbind", "rw", "rslave"}},
				{Destination: "/data/safe", Source: e.Dir, Type: "bind", Options: []string{"bind", "nosuid", "nodev", "noexec", "rprivate"}},
				{Destination: "/data/bare", Source: e.Dir, Type: "bind"},
				{Destination: "/data/sysbound", Source: "/sys", Type: "bind", Options: []string{"bind", "rw"}},
				{Destination: "/data/sysbare", Source: "/sys", Type: "bind", Options: []string{"bind"}},
				{Destination: "/data/tmp", Type: "tmpfs", Options: []string{"size=1m", "mode=1770", "noatime", "ro"}},
				{Destination: "/dev/shm", Source: "tmpfs", Type: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777", "size=2m"}},
				{Destination: "/dev/mine", Source: "/dev/zero", Type: "bind", Options: []string{"bind"}},
			}
		},
		"devices, masks and rules": func(_ *launchertest.Env, r *launcher.Request) {
			r.Proposal.Devices = []*containerv1.Device{
				{Path: "/dev/one", Type: "c", Major: 1, Minor: 11, Mode: 0o640, Uid: 3, Gid: 4, Access: "r"},
				{Path: "/dev/deep/er/two", Type: "b", Major: 7, Minor: 0}, {Path: "/dev/null", Type: "c", Major: 1, Minor: 3, Mode: 0o600},
			}
			r.Proposal.MaskedPaths, r.Proposal.ReadonlyPaths = []string{"/etc", "/proc/version"}, []string{"/bin"}
			five, zero := int64(5), int64(0)
			r.Proposal.Cgroup = &containerv1.CgroupResources{DeviceRules: []*containerv1.DeviceRule{
				{Type: "a"}, {Allow: true, Type: "b", Major: &five, Access: "rw"}, {Type: "c", Major: &five, Minor: &zero, Access: "rwm"},
			}}
		},
		"privileged": func(_ *launchertest.Env, r *launcher.Request) {
			r.Privileged = true
			r.Proposal.Cgroup = &containerv1.CgroupResources{DeviceRules: []*containerv1.DeviceRule{{Allow: true, Type: "a"}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := launchertest.New(t)
			with, without := newLauncher(t, e), process.New(e.Shim, e.Cgroups, e.Log).WithRoots()
			image := launchertest.Image(t, e)
			if err := os.Mkdir(filepath.Join(image, "data"), 0o755); err != nil {
				t.Fatal(err)
			}
			look := func(l launcher.Launcher) []string {
				r := e.Request("sh", "-c", "exec 2>&1;"+survey)
				r.Container.Rootfs = image
				change(e, r)
				if err := without.Supports(r); err != nil {
					t.Skip(err) // as on version 2 of cgroups
				}
				_, out := launchertest.Run(t, l, r)
				return tidy(out, r)
			}
			look(with) // makes the places in the image
			if diff := cmp.Diff(look(with), look(without)); diff != "" {
				t.Errorf("with a runtime -, without one +:\n%s", diff)
			}
		})
	}
}
