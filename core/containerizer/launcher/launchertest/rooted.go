package launchertest

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// Image makes a root file system of one static busybox.
func Image(t testing.TB, e *Env) string {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("there is no busybox to make a root file system of")
	}
	dir := filepath.Join(e.Dir, "image")
	for _, d := range []string{"bin", "proc", "sys", "dev", "etc", "tmp", "mnt"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	src, err := os.Open(busybox)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.OpenFile(filepath.Join(dir, "bin/busybox"), os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(dst, src); err != nil {
		t.Fatal(err)
	}
	if err := dst.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields("sh cat ls id mount hostname head wc stat touch dd tty stty sleep true env grep sed sort readlink") {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// Rooted runs the cases that hold for every launcher of containers with a root file system of their own.
func Rooted(t *testing.T, with func(t testing.TB, e *Env) launcher.Launcher) {
	runCases(t, with, []testCase{
		{"RootFileSystemIsItsOwn", rootFileSystemIsItsOwn},
		{"MountsMasksAndDevicesAreInEffect", mountsMasksAndDevices},
		{"MissingSourceOfAMountIsAnError", missingSource},
		{"MissingCommandIsAnError", missingCommandOfAnImage},
		{"LinksInAnImageLeadNoMountOutOfIt", linksLeadNowhere},
		{"WhatALinkLeadsToIsMade", linksLeadToWhatIsMade},
		{"NothingIsMountedInProc", nothingInProc},
		{"MountPointsAndWorkingDirectoryAreMade", placesAreMade},
		{"ReadOnlyRootHasWritableMounts", readOnlyRoot},
		{"HomeIsTheUsers", homeIsTheUsers},
		{"StandardFilesAreTheUsers", standardFilesAreTheUsers},
		{"MachinesNullDeviceIsOutOfReach", machinesNull},
		{"MachinesProcessesAndDescriptorsAreOutOfReach", machinesDescriptors},
		{"WorkingDirectoryLiesInTheRoot", workingDirectory},
		{"SysctlsAndScoreAreWritten", sysctlsAndScore},
	})
}

// inImage asks for a shell's line in an image, in a pid namespace of its own.
func inImage(t testing.TB, e *Env, line string) *launcher.Request {
	r := e.Request("sh", "-c", line)
	r.Container.Rootfs = Image(t, e)
	r.Proposal.Namespaces = []*containerv1.Namespace{{Type: containerv1.Namespace_PID}}
	return r
}

func rootFileSystemIsItsOwn(t *testing.T, e *Env, l launcher.Launcher) {
	r := inImage(t, e, "ls /; head -c 1 /proc/kcore | wc -c; ls /sys/firmware | wc -l; echo x > /proc/sys/kernel/hostname || echo refused; head -c 3 /dev/zero | wc -c; touch /made; cat /proc/self/cgroup")
	limit := int64(96 << 20)
	r.Proposal.Cgroup = &containerv1.CgroupResources{MemoryLimitBytes: &limit}
	h := Create(t, l, r)
	file, hierarchies := filepath.Join(h.Cgroups()["memory"], "memory.limit_in_bytes"), 5
	if e.Cgroups.Version() == 2 {
		file, hierarchies = filepath.Join(h.Cgroups()[""], "memory.max"), 1
	}
	b, err := os.ReadFile(file)
	if err != nil || strings.TrimSpace(string(b)) != fmt.Sprint(limit) {
		t.Errorf("memory limit = %q (%v), want %d", b, err, limit)
	}
	if err := h.Start(Context(t)); err != nil {
		t.Fatal(err)
	}
	Wait(t, h)
	out := Output(t, r)
	want := "bin\ndev\netc\nmnt\nproc\nsys\ntmp\n0\n0\nrefused\n3\n"
	if !strings.HasPrefix(out, want) {
		t.Errorf("got %q, want it to begin with %q", out, want)
	}
	if _, err := os.Stat(filepath.Join(r.Container.Rootfs, "made")); err != nil {
		t.Error(err)
	}
	if strings.Count(out, "/"+r.Container.Cgroup+"\n") < hierarchies {
		t.Errorf("cgroups: %s", out)
	}
}

func mountsMasksAndDevices(t *testing.T, e *Env, l launcher.Launcher) {
	shared := filepath.Join(e.Dir, "shared")
	if err := os.Mkdir(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(shared, "file"), []byte("from the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := inImage(t, e, "cat /data/file; touch /data/x 2>/dev/null || echo ' read-only'; cat /secret; touch /etc/x 2>/dev/null || echo fixed; "+
		"echo > /dev/full2 || echo full; cat /dev/mem2 2>/dev/null || echo denied; ls -A /hidden /hidden2 | wc -l; touch /hidden/x 2>/dev/null || echo sealed; mount")
	for _, d := range []string{"hidden", "hidden2"} {
		if err := os.MkdirAll(filepath.Join(r.Container.Rootfs, d, "inner"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(r.Container.Rootfs, "secret"), []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	r.Proposal.Mounts = []*containerv1.Mount{
		{Destination: "/data", Source: shared, Type: "bind", Options: []string{"ro"}},
		{Destination: "/mnt", Source: "tmpfs", Type: "tmpfs", Options: []string{"size=1m"}},
	}
	r.Proposal.MaskedPaths = []string{"/secret", "/hidden", "/hidden2", "/hidden", "/not/there"}
	r.Proposal.ReadonlyPaths = []string{"/etc", "/not/there"}
	r.Proposal.Devices = []*containerv1.Device{
		{Path: "/dev/full2", Type: "c", Major: 1, Minor: 7, Mode: 0o666, Access: "rw"},
		{Path: "/dev/mem2", Type: "c", Major: 1, Minor: 1, Mode: 0o666, Access: "m"}, // to be made, not to be opened
	}
	_, out := Run(t, l, r)
	// Five lines of ls: two names with a colon, an empty line between, nothing else.
	if !strings.HasPrefix(out, "from the host read-only\nfixed\nfull\ndenied\n3\nsealed\n") || !strings.Contains(out, " on /mnt type tmpfs (rw,relatime,size=1024k") {
		t.Errorf("got %s", out)
	}
	if b, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(b), e.Dir) {
		t.Errorf("mounts of the container are seen on the host (%v):\n%s", err, b)
	}
}

func missingSource(t *testing.T, e *Env, l launcher.Launcher) {
	r := inImage(t, e, "true")
	r.Proposal.Mounts = []*containerv1.Mount{{Destination: "/mnt", Source: "/no/such/source", Type: "bind"}}
	_, err := l.Create(Context(t), r)
	if err == nil || !strings.Contains(err.Error(), "/no/such/source") || !strings.HasPrefix(err.Error(), "launcher("+l.Name()+"): ") {
		t.Errorf("Create = %v, want an error that names the source", err)
	}
	if _, err := os.Lstat(r.RunDir); !os.IsNotExist(err) {
		t.Errorf("run folder after a failed Create: %v", err)
	}
}

func missingCommandOfAnImage(t *testing.T, e *Env, l launcher.Launcher) {
	r := inImage(t, e, "true")
	r.Argv = []string{"no-such-program"}
	h, err := l.Create(Context(t), r)
	if err == nil {
		err = h.Start(Context(t))
		if derr := h.Destroy(Context(t)); derr != nil {
			t.Error(derr)
		}
	}
	if err == nil || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("Create or Start = %v, want an error that names the program", err)
	}
}

// linksLeadNowhere: an image whose folders are links to the machine's, for a volume, for a device and for what the
// kernel shows.
func linksLeadNowhere(t *testing.T, e *Env, l launcher.Launcher) {
	outside, volume := filepath.Join(e.Dir, "outside"), filepath.Join(e.Dir, "volume")
	for _, d := range []string{outside, volume} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r := inImage(t, e, "ls -d /up/place; ls -d "+outside+"/place")
	for name, to := range map[string]string{"up": outside, "over": strings.Repeat("../", 20) + outside, "dangling": outside + "/none"} {
		if err := os.Symlink(to, filepath.Join(r.Container.Rootfs, name)); err != nil {
			t.Fatal(err)
		}
	}
	// The links' target is there in the image, too.
	if err := os.MkdirAll(filepath.Join(r.Container.Rootfs, outside), 0o755); err != nil {
		t.Fatal(err)
	}
	r.Proposal.Mounts = []*containerv1.Mount{
		{Destination: "/up/place", Source: volume, Type: "bind"}, {Destination: "/over/other", Source: volume, Type: "bind"},
	}
	r.Proposal.Devices = []*containerv1.Device{{Path: "/up/node", Type: "c", Major: 1, Minor: 3, Mode: 0o666}}
	if status, out := Run(t, l, r); status != 0 || out != "/up/place\n"+outside+"/place\n" {
		t.Errorf("ended with %#x and %q, want the volume in the image, by both names", status, out)
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("outside: got %v, %v, want nothing", left, err)
	}
	again := e.Request("true")
	again.Container.Rootfs = r.Container.Rootfs
	again.Proposal.Mounts = []*containerv1.Mount{{Destination: "/up", Source: "proc", Type: "proc"}}
	if h, err := l.Create(Context(t), again); err == nil {
		t.Error("what tells of processes was mounted through a link, want a refusal")
		_ = h.Destroy(Context(t))
	}
}

// linksLeadToWhatIsMade: places below links that lead to nothing yet, as images have them.
func linksLeadToWhatIsMade(t *testing.T, e *Env, l launcher.Launcher) {
	volume := filepath.Join(e.Dir, "volume")
	if err := os.Mkdir(volume, 0o755); err != nil {
		t.Fatal(err)
	}
	r := inImage(t, e, "ls -d /run/place /srv/far/place; readlink /var/run; readlink /tmp/relative")
	if err := os.Mkdir(filepath.Join(r.Container.Rootfs, "var"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"var/run": "/run/", "tmp/relative": "../srv/far", "loop": "/loop"} {
		if err := os.Symlink(to, filepath.Join(r.Container.Rootfs, name)); err != nil {
			t.Fatal(err)
		}
	}
	r.Proposal.Mounts = []*containerv1.Mount{
		{Destination: "/var/run/place", Source: volume, Type: "bind"}, {Destination: "/tmp/relative/place", Source: volume, Type: "bind"},
	}
	if status, out := Run(t, l, r); status != 0 || out != "/run/place\n/srv/far/place\n/run/\n../srv/far\n" {
		t.Errorf("ended with %#x and %q, want volumes where the links lead", status, out)
	}
	again := e.Request("true")
	again.Container.Rootfs = r.Container.Rootfs
	again.Proposal.Mounts = []*containerv1.Mount{{Destination: "/loop/place", Source: volume, Type: "bind"}}
	if h, err := l.Create(Context(t), again); err == nil {
		t.Error("a link to itself was followed to an end")
		_ = h.Destroy(Context(t))
	}
}

func nothingInProc(t *testing.T, e *Env, l launcher.Launcher) {
	r := inImage(t, e, "true")
	if err := os.Symlink("/proc/sys", filepath.Join(r.Container.Rootfs, "way")); err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"/proc/sys/kernel", "/way/kernel"} {
		again := e.Request("true")
		again.Container.Rootfs, again.Proposal.Namespaces = r.Container.Rootfs, r.Proposal.Namespaces
		again.Proposal.Mounts = []*containerv1.Mount{{Destination: at, Source: "tmpfs", Type: "tmpfs"}}
		err := l.Supports(again)
		var h launcher.Handle
		if err == nil {
			h, err = l.Create(Context(t), again)
		}
		if err == nil {
			t.Errorf("mounted at %s, want a refusal", at)
			_ = h.Destroy(Context(t))
		}
	}
}

func placesAreMade(t *testing.T, e *Env, l launcher.Launcher) {
	file := filepath.Join(e.Dir, "file")
	if err := os.WriteFile(file, []byte("a file\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := inImage(t, e, "pwd; cat /new/folders/file; stat -c %a /new/folders /new/place")
	r.Proposal.Mounts = []*containerv1.Mount{{Destination: "/new/folders/file", Source: file, Type: "bind", Options: []string{"bind", "ro"}}}
	r.Dir = "/new/place/here"
	if _, out := Run(t, l, r); out != "/new/place/here\na file\n755\n755\n" {
		t.Errorf("got %q", out)
	}
}

func readOnlyRoot(t *testing.T, e *Env, l launcher.Launcher) {
	r := inImage(t, e, "touch /x 2>/dev/null || echo refused; touch /mnt/x && echo made; touch /ro/x 2>/dev/null || echo refused; touch /ro/in/x && echo made; echo >/dev/null && echo open")
	r.ReadOnly = true
	r.Proposal.Mounts = []*containerv1.Mount{
		{Destination: "/mnt", Source: "tmpfs", Type: "tmpfs"},
		{Destination: "/ro", Source: "tmpfs", Type: "tmpfs", Options: []string{"ro", "nosuid"}},
		{Destination: "/ro/in", Source: "tmpfs", Type: "tmpfs", Options: []string{"nosuid"}},
	}
	if _, out := Run(t, l, r); out != "refused\nmade\nrefused\nmade\nopen\n" {
		t.Errorf("got %q", out)
	}
}

func homeIsTheUsers(t *testing.T, e *Env, l launcher.Launcher) {
	for _, test := range []struct {
		uid        uint32
		env, users string
		want       string
	}{
		{0, "A=b", "root:x:0:0:root:/root:/bin/sh\n", "/root"},
		{7, "HOME=", "root:x:0:0:root:/root:/bin/sh\nsomeone:x:7:7::/home/someone:/bin/sh\n", "/home/someone"},
		{8, "A=b", "root:x:0:0:root:/root:/bin/sh\n", "/"},
		{0, "HOME=/given", "root:x:0:0:root:/root:/bin/sh\n", "/given"},
	} {
		r := e.Request("sh", "-c", "echo $HOME")
		r.Container.Rootfs = filepath.Join(e.Dir, "image")
		if _, err := os.Stat(r.Container.Rootfs); err != nil {
			Image(t, e)
		}
		if err := os.WriteFile(filepath.Join(r.Container.Rootfs, "etc/passwd"), []byte(test.users), 0o644); err != nil {
			t.Fatal(err)
		}
		r.Env, r.User = append(r.Env, test.env), launcher.User{UID: test.uid, GID: test.uid}
		if _, out := Run(t, l, r); out != test.want+"\n" {
			t.Errorf("user %d with %s: HOME = %q, want %q", test.uid, test.env, out, test.want)
		}
	}
}

func standardFilesAreTheUsers(t *testing.T, e *Env, l launcher.Launcher) {
	for name, r := range map[string]*launcher.Request{
		"files": e.Request("sh", "-c", "echo again >/dev/stdout && echo fine >&2"),
		"pipes": e.Attached(containerv1.Container_ATTACHED, "sh", "-c", "echo again >/dev/stdout && echo fine >&2"),
	} {
		r.Container.Rootfs = filepath.Join(e.Dir, "image")
		if _, err := os.Stat(r.Container.Rootfs); err != nil {
			Image(t, e)
		}
		r.User = launcher.User{UID: 4242, GID: 4242}
		h := Start(t, l, r)
		if status := Wait(t, h); status != 0 {
			t.Errorf("%s: ended with %#x, want its standard output opened by name", name, status)
		}
	}
}

// machinesNull: a container whose standard input is nothing holds its own /dev/null open, not the machine's.
func machinesNull(t *testing.T, e *Env, l launcher.Launcher) {
	var before, after syscall.Stat_t
	if err := syscall.Stat("/dev/null", &before); err != nil {
		t.Fatal(err)
	}
	r := inImage(t, e, "busybox chmod 600 /proc/self/fd/0; busybox chmod 600 /dev/null; busybox chown 1:1 /proc/kcore /proc/self/fd/0; exit 0")
	Run(t, l, r)
	if err := syscall.Stat("/dev/null", &after); err != nil || after.Mode != before.Mode || after.Uid != before.Uid {
		_ = os.Chmod("/dev/null", 0o666)
		_ = os.Chown("/dev/null", 0, 0)
		t.Errorf("the machine's /dev/null has mode %o and owner %d now (%v)", after.Mode, after.Uid, err)
	}
}

func machinesDescriptors(t *testing.T, e *Env, l launcher.Launcher) {
	r := inImage(t, e, "ls /proc/$$/fd; readlink /proc/$$/cwd; readlink /proc/$$/root; echo /proc/[0-9]*; grep -c . /proc/keys 2>/dev/null")
	if _, out := Run(t, l, r); out != "0\n1\n2\n/\n/\n/proc/1\n0\n" {
		t.Errorf("got %q", out)
	}
}

func workingDirectory(t *testing.T, e *Env, l launcher.Launcher) {
	image := Image(t, e)
	for fd := range 12 {
		r := e.Request("ls", "../../../../../../../../../../tmp/"+filepath.Base(e.Dir), ".")
		r.Container.Rootfs, r.Dir = image, fmt.Sprintf("/proc/self/fd/%d", fd)
		h, err := l.Create(Context(t), r)
		if err != nil {
			continue
		}
		if h.Start(Context(t)) == nil {
			Wait(t, h)
			if out := Output(t, r); strings.Contains(out, filepath.Base(r.RunDir)) {
				t.Errorf("descriptor %d leads to the machine: %s", fd, out)
			}
		}
		if err := h.Destroy(Context(t)); err != nil {
			t.Error(err)
		}
	}
}

func sysctlsAndScore(t *testing.T, e *Env, l launcher.Launcher) {
	r := inImage(t, e, "cat /proc/sys/kernel/msgmax /proc/self/oom_score_adj; hostname")
	score := int32(123)
	r.Proposal.OomScoreAdj, r.Proposal.Hostname = &score, "inside"
	r.Proposal.Namespaces = append(r.Proposal.Namespaces, &containerv1.Namespace{Type: containerv1.Namespace_IPC}, &containerv1.Namespace{Type: containerv1.Namespace_UTS})
	r.Proposal.Sysctls = map[string]string{"kernel.msgmax": "12345"}
	if _, out := Run(t, l, r); out != "12345\n123\ninside\n" {
		t.Errorf("got %q", out)
	}
}
