package containerizer

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/launchertest"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// docker describes a container of type DOCKER of an image that runs script by its shell.
func (r *rig) docker(t *testing.T, image, options, script string) *containerv1.Container {
	t.Helper()
	c := r.container("c1", script)
	c.User = "root"
	c.TaskId = "task"
	c.ContainerInfo = dockerSpec(t, `docker { image: "`+image+`" `+options+` }`).ContainerInfo
	return c
}

// runDocker runs a container of type DOCKER to its end, which is to be a good one, and returns what it printed.
func runDocker(t *testing.T, r *rig, want *containerv1.Container) []string {
	t.Helper()
	c := r.start(t)
	defer stopAgent(t, c)
	if _, err := c.Launch(launchertest.Context(t), want); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	if end := r.finish(t, c, "c1"); end.WaitStatus == nil || *end.WaitStatus != 0 {
		b, _ := os.ReadFile(filepath.Join(want.Sandbox, "stderr"))
		t.Fatalf("Wait: got %v, want exit 0: %s", end, b)
	}
	return strings.Split(r.output(t, "c1"), "\n")
}

func TestRealDockerContainerIsShutInAsByADaemon(t *testing.T) {
	r := newRig(t)
	image := busyboxImage(t, r)
	lines := runDocker(t, r, r.docker(t, image, "network: NONE", `cd /
busybox hostname
busybox pwd
echo $$
busybox grep CapEff /proc/self/status
busybox grep CapBnd /proc/self/status
busybox ls /sys/class/net
echo $MESOS_SANDBOX $MESOS_TASK_ID $MESOS_CONTAINER_NAME
busybox mount -t tmpfs none /tmp 2>/dev/null && echo mounted || echo kept`))
	const docker14 = "00000000a80425fb"
	want := []string{"c1", "/", "1", "CapEff:\t" + docker14, "CapBnd:\t" + docker14, "lo", "/mnt/mesos/sandbox task mesos-c1", "kept"}
	if len(lines) != len(want) {
		t.Fatalf("output: got %q, want %q", lines, want)
	}
	for n := range want {
		if lines[n] != want[n] {
			t.Errorf("line %d: got %q, want %q", n, lines[n], want[n])
		}
	}
}

func TestRealDockerParametersHoldInTheContainer(t *testing.T) {
	r := newRig(t)
	r.cfg.Docker.Devices = []string{"/dev/full"}
	image := busyboxImage(t, r)
	if err := os.Mkdir(filepath.Join(image, "srv"), 0o777); err != nil {
		t.Fatal(err)
	}
	lines := runDocker(t, r, r.docker(t, image, `network: NONE
		parameters { key: "read-only" value: "true" }
		parameters { key: "tmpfs" value: "/tmp:size=1m,mode=1777" }
		parameters { key: "user" value: "4242:4243" }
		parameters { key: "workdir" value: "/srv" }
		parameters { key: "hostname" value: "given" }
		parameters { key: "env" value: "A=b c" }
		parameters { key: "cap-add" value: "SYS_TIME" }
		parameters { key: "cap-drop" value: "ALL" }
		parameters { key: "security-opt" value: "no-new-privileges" }
		parameters { key: "sysctl" value: "net.ipv4.ip_unprivileged_port_start=80" }
		parameters { key: "device" value: "/dev/full:/dev/fill" }
		parameters { key: "oom-score-adj" value: "77" }
		parameters { key: "pids-limit" value: "50" }
		parameters { key: "init" value: "false" }`, `busybox hostname
busybox pwd
busybox id -u
busybox id -g
echo "$A"
busybox touch /etc/new 2>/dev/null && echo wrote || echo sealed
echo x > /tmp/new && busybox cat /tmp/new
echo x > /mnt/mesos/sandbox/made && echo sandbox
busybox grep CapBnd /proc/self/status
busybox grep NoNewPrivs /proc/self/status
busybox cat /proc/sys/net/ipv4/ip_unprivileged_port_start
echo full 2>/dev/null > /dev/fill || echo refused
busybox cat /dev/fill 2>/dev/null | busybox head -c 1 | busybox wc -c
busybox cat /proc/self/oom_score_adj`))
	want := []string{"given", "/srv", "4242", "4243", "b c", "sealed", "x", "sandbox", "CapBnd:\t0000000002000000", "NoNewPrivs:\t1", "80", "refused", "1", "77"}
	for n := range want {
		if n >= len(lines) || lines[n] != want[n] {
			t.Fatalf("output: got %q, want %q from line %d on", lines, want, n)
		}
	}
	if entries, err := os.ReadDir(filepath.Join(r.env.Dir, "images", "containers")); err == nil && len(entries) > 0 {
		t.Errorf("root filesystems: got %v, want none left", entries)
	}
}

func TestRealDockerCommandComesAfterTheEntrypoint(t *testing.T) {
	r := newRig(t)
	image := busyboxImage(t, r)
	want := r.docker(t, image, `parameters { key: "entrypoint" value: "/bin/busybox" }`, "")
	no, value := false, "echo"
	want.Command.Shell, want.Command.Value, want.Command.Arguments = &no, &value, []string{"one", "two"}
	if got := runDocker(t, r, want); len(got) != 1 || got[0] != "one two" {
		t.Errorf("output: got %q, want the entrypoint's, with value and arguments", got)
	}
}

func TestRealDockerContainerOfAnotherMayNotBeRoot(t *testing.T) {
	r := newRig(t)
	image := busyboxImage(t, r)
	c := r.start(t)
	defer stopAgent(t, c)
	want := r.docker(t, image, `parameters { key: "user" value: "0" }`, "id -u")
	want.User = "nobody"
	if _, err := c.Launch(launchertest.Context(t), want); err == nil || !strings.Contains(err.Error(), "container.docker") || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("Launch: got %v, want root refused to a task of nobody's", err)
	}
	waitFor(t, "everything is undone", func() bool { return len(c.all()) == 0 })
}

func TestRealDockerContainerIsKilledAndLeavesNothing(t *testing.T) {
	r := newRig(t)
	image := busyboxImage(t, r)
	c := r.start(t)
	defer stopAgent(t, c)
	want := r.docker(t, image, `network: NONE`, "trap 'exit 9' TERM; touch /mnt/mesos/sandbox/ready; while :; do busybox sleep 0.05; done")
	if _, err := c.Launch(launchertest.Context(t), want); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	waitFor(t, "it to be ready", func() bool { _, err := os.Stat(filepath.Join(want.Sandbox, "ready")); return err == nil })
	if err := c.Signal(launchertest.Context(t), "c1", int(syscall.SIGTERM)); err != nil {
		t.Fatalf("Signal: %v", err)
	}
	if end := r.finish(t, c, "c1"); end.WaitStatus == nil || syscall.WaitStatus(*end.WaitStatus).ExitStatus() != 9 {
		t.Errorf("Wait: got %v, want its own exit 9", end)
	}
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(b), r.env.Dir) {
		t.Errorf("mounts: got %v and some below %s, want none left", err, r.env.Dir)
	}
}

func TestRealPrivilegedContainerHasTheMachine(t *testing.T) {
	r := newRig(t)
	r.cfg.Docker.Privileged = true
	devices, err := machineDevices("/dev")
	if err != nil || len(devices) == 0 {
		t.Fatalf("machineDevices: got %v, %v, want some", devices, err)
	}
	var names []string
	for _, d := range devices {
		names = append(names, d.GetPath())
	}
	image := busyboxImage(t, r)
	lines := runDocker(t, r, r.docker(t, image, "privileged: true network: NONE", `busybox grep CapEff /proc/self/status
busybox mount -t tmpfs none /tmp && echo mounted
busybox grep ' /sys ' /proc/mounts | busybox cut -c 1-20
busybox grep -c /proc/ /proc/mounts
for d in `+strings.Join(names, " ")+`; do [ -e $d ] || echo missing $d; done; echo nodes`))
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, have, _ := strings.Cut(string(status), "CapBnd:\t")
	want := []string{"CapEff:\t" + have[:16], "mounted", "sysfs /sys sysfs rw,", "0", "nodes"}
	for n := range want {
		if n >= len(lines) || lines[n] != want[n] {
			t.Fatalf("output: got %q, want %q from line %d on", lines, want, n)
		}
	}
}

// initProgram makes the program that serves containers as init.
func initProgram(t *testing.T, dir string) string {
	t.Helper()
	program := filepath.Join(dir, "mosaic-init")
	build := exec.Command("go", "build", "-o", program, "./shim/mosaic-init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	return program
}

func TestRealDockerContainerHasAnInit(t *testing.T) {
	r := newRig(t)
	r.cfg.Init = initProgram(t, r.env.Dir)
	image := busyboxImage(t, r)
	got := runDocker(t, r, r.docker(t, image, `network: NONE parameters { key: "init" value: "true" } parameters { key: "user" value: "4242" }
		parameters { key: "read-only" value: "true" }`, `busybox cat /proc/1/cmdline | busybox tr '\0' ' ' | busybox head -n 1
busybox id -u
p=$(sh -c 'busybox sleep 0.05 >/dev/null & echo $!'); while kill -0 $p 2>/dev/null; do busybox sleep 0.01; done; echo buried
echo x 2>/dev/null >> /dev/init || echo sealed
busybox kill -KILL 1; echo here`))
	if len(got) != 5 || !strings.HasPrefix(got[0], "/dev/init /bin/sh -c ") || strings.Join(got[1:], " ") != "4242 buried sealed here" {
		t.Errorf("output: got %q, want /dev/init first, run as 4242, orphans buried and the program sealed", got)
	}
	if _, err := os.Lstat(filepath.Join(image, "dev", "init")); err == nil {
		t.Error("the image has a /dev/init now, want it left alone")
	}
}

func TestRealInitOfADockerContainerCannotBeChangedFromInside(t *testing.T) {
	r := newRig(t)
	r.cfg.Init = initProgram(t, r.env.Dir)
	before, err := os.ReadFile(r.cfg.Init)
	if err != nil {
		t.Fatal(err)
	}
	got := runDocker(t, r, r.docker(t, busyboxImage(t, r), `network: HOST parameters { key: "init" value: "true" }`,
		`busybox id -u
for f in /dev/init /proc/1/exe; do echo x 2>/dev/null >$f && echo wrote $f; done
busybox mount -o remount,rw,bind /dev/init 2>/dev/null && echo mounted
busybox rm -f /dev/init 2>/dev/null && echo removed; busybox mv /dev/null /dev/init 2>/dev/null && echo moved
exit 0`))
	if len(got) != 1 || got[0] != "0" {
		t.Errorf("output: got %q, want root refused whatever it tries", got)
	}
	if after, err := os.ReadFile(r.cfg.Init); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the program: changed, or %v", err)
	}
}

func TestRealDockerContainerIsAskedToEndByItsSignalThroughItsInit(t *testing.T) {
	r := newRig(t)
	r.cfg.Init = initProgram(t, r.env.Dir)
	image := busyboxImage(t, r)
	c := r.start(t)
	defer stopAgent(t, c)
	want := r.docker(t, image, `network: NONE parameters { key: "init" value: "true" } parameters { key: "stop-signal" value: "SIGUSR1" }`,
		"trap 'exit 1' TERM; trap 'exit 9' USR1; touch /mnt/mesos/sandbox/ready; while :; do busybox sleep 0.05; done")
	if _, err := c.Launch(launchertest.Context(t), want); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	waitFor(t, "it to be ready", func() bool { _, err := os.Stat(filepath.Join(want.Sandbox, "ready")); return err == nil })
	if err := c.Signal(launchertest.Context(t), "c1", int(syscall.SIGTERM)); err != nil {
		t.Fatalf("Signal: %v", err)
	}
	if end := r.finish(t, c, "c1"); end.WaitStatus == nil || syscall.WaitStatus(*end.WaitStatus).ExitStatus() != 9 {
		t.Errorf("Wait: got %v, want exit 9 of SIGUSR1", end)
	}
}

func TestRealDockerContainerFindsTheNamesItAskedFor(t *testing.T) {
	for _, mode := range []string{"NONE", "HOST"} {
		t.Run(mode, func(t *testing.T) {
			r := newRig(t)
			image := busyboxImage(t, r)
			got := strings.Join(runDocker(t, r, r.docker(t, image, `network: `+mode+`
				parameters { key: "dns" value: "192.0.2.53" } parameters { key: "dns-search" value: "a.example" }
				parameters { key: "dns-option" value: "ndots:4" } parameters { key: "add-host" value: "db:192.0.2.7" }
				parameters { key: "domainname" value: "d.example" } parameters { key: "group-add" value: "77" }`,
				`busybox grep -v '^#' /etc/resolv.conf; busybox grep db /etc/hosts; busybox grep -c localhost /etc/hosts
busybox cat /proc/sys/kernel/domainname; busybox id -G`)), "\n")
			for _, want := range []string{"nameserver 192.0.2.53\nsearch a.example\noptions ndots:4\n192.0.2.7\tdb\n", "\nd.example\n0 77"} {
				if !strings.Contains(got, want) {
					t.Errorf("output: got %q, want %q in it", got, want)
				}
			}
			if strings.Count(got, "nameserver") != 1 {
				t.Errorf("output: got %q, want one name server", got)
			}
			if left, err := os.ReadDir(filepath.Join(r.env.Dir, "run", "m")); len(left) > 0 {
				t.Errorf("staged: got %v, %v, want nothing left", left, err)
			}
		})
	}
}
