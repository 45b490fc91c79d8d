package containerizer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/launchertest"
	hostlauncher "github.com/mosaic-cluster/mosaic/core/containerizer/launcher/process"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// separate is an isolator as the real ones are: the root container gets a network, shared memory and a name of its own,
// every container its own pid namespace unless it asks to share its parent's.
func separate(m *machine) *fakeIsolator {
	i := &fakeIsolator{m: m, name: "separate"}
	i.onPrepare = func(_ context.Context, r *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
		c, p := r.GetContainer(), &containerv1.Proposal{}
		add := func(types ...containerv1.Namespace_Type) {
			for _, t := range types {
				p.Namespaces = append(p.Namespaces, &containerv1.Namespace{Type: t})
			}
		}
		if !c.GetContainerInfo().GetLinuxInfo().GetSharePidNamespace() {
			add(containerv1.Namespace_PID)
		}
		if c.GetParentId() == "" {
			add(containerv1.Namespace_NETWORK, containerv1.Namespace_UTS, containerv1.Namespace_IPC)
			p.Hostname = "pod"
		}
		if c.GetContainerInfo().GetLinuxInfo().GetIpcMode() == mesosv1.LinuxInfo_PRIVATE {
			p.Mounts = append(p.Mounts, &containerv1.Mount{Destination: "/dev/shm", Source: "tmpfs", Type: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777", "size=1m"}})
		}
		if limit, ok := c.GetLimits()["mem"]; ok && (c.GetParentId() == "" || !c.GetContainerInfo().GetLinuxInfo().GetShareCgroups()) {
			bytes := int64(limit) << 20
			p.Cgroup = &containerv1.CgroupResources{MemoryLimitBytes: &bytes}
		}
		return &isolatorv1.PrepareResponse{Proposal: p}, nil
	}
	return i
}

// busyboxImage makes an image in which the static busybox is everything, or skips the test.
func busyboxImage(t *testing.T, r *rig) string {
	t.Helper()
	if len(r.cfg.Launchers) < 2 {
		t.Skip("there is no runc, neither in bin nor on the path")
	}
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("there is no static busybox to make an image of")
	}
	image := filepath.Join(r.env.Dir, "image")
	for _, dir := range []string{"bin", "etc", "proc", "tmp"} {
		if err := os.MkdirAll(filepath.Join(image, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, body := range map[string]string{"bin/busybox": string(program), "etc/passwd": "nobody:x:65534:65534::/:/bin/sh\n", "etc/group": "nogroup:x:65534:\n"} {
		if err := os.WriteFile(filepath.Join(image, name), []byte(body), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"sh", "sleep", "cat", "nc", "stty", "touch", "ls", "hostname", "readlink", "kill", "tty", "test", "["} {
		if err := os.Symlink("busybox", filepath.Join(image, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	return image
}

// child describes a container nested in parent, which runs script by busybox where there is an image.
func (r *rig) child(parent *containerv1.Container, id, image, script string) *containerv1.Container {
	c := nestedIn(parent, id)
	c.Command.Value, c.LocalImage = &script, image
	c.Environment = map[string]string{"MESOS_SANDBOX": c.Sandbox}
	return c
}

func logs(c *containerv1.Container) string {
	out, _ := os.ReadFile(filepath.Join(c.Sandbox, "stdout"))
	all, _ := os.ReadFile(filepath.Join(c.Sandbox, "stderr"))
	return string(out) + string(all)
}

// succeeds waits for the end of a container that is to exit with 0.
func succeeds(t *testing.T, c *Containerizer, x *containerv1.Container) {
	t.Helper()
	end, err := c.Wait(launchertest.Context(t), x.Id)
	if err != nil || end.WaitStatus == nil || *end.WaitStatus != 0 {
		t.Errorf("%s ended with %v, %v, want status 0:\n%s", x.Id, end, err, logs(x))
	}
}

// takenDown destroys a root container and sees that nothing is left of it.
func (r *rig) takenDown(t *testing.T, c *Containerizer, root *containerv1.Container) {
	t.Helper()
	if err := c.Destroy(launchertest.Context(t), root.Id, nil); err != nil {
		t.Errorf("Destroy: %v", err)
	}
	r.finish(t, c, root.Id)
	if left := c.all(); len(left) > 0 {
		t.Errorf("%d containers are left, the first %s", len(left), left[0].id)
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		if strings.Contains(line, filepath.Join(r.env.Dir, "run")) {
			t.Errorf("a mount is left: %s", line)
		}
	}
}

// inBoth runs a test with containers on the host's file system and in an image.
func inBoth(t *testing.T, test func(t *testing.T, r *rig, m *machine, image string)) {
	for _, name := range []string{"host", "image"} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			r := newRig(t, separate(m))
			image := ""
			if name == "image" {
				image = busyboxImage(t, r)
			} else if _, err := exec.LookPath("busybox"); err != nil {
				t.Skip("there is no busybox to listen and connect with")
			}
			test(t, r, m, image)
		})
	}
}

func TestRealNestedContainersShareNetworkNameAndAPath(t *testing.T) {
	inBoth(t, func(t *testing.T, r *rig, _ *machine, image string) {
		c := r.start(t)
		defer stopAgent(t, c)
		root := r.container("root", "exec sleep 1000")
		if _, err := c.Launch(launchertest.Context(t), root); err != nil {
			t.Fatalf("Launch: %v", err)
		}
		listen := withVolumes(r.child(root, "listen", image, `[ "$$" -lt 10 ] || exit 2
[ "$(hostname)" = pod ] || exit 3
while [ ! -s data/got ]; do sleep 0.05; done | busybox nc -l -p 4711 > data/got & touch data/listening; wait`), sandboxPath(ofParent, "data", "data", mesosv1.Volume_RW))
		connect := withVolumes(r.child(root, "connect", image, `while [ ! -e shared/listening ]; do sleep 0.05; done
until echo hello | busybox nc 127.0.0.1 4711; do sleep 0.05; done
while [ "$(cat shared/got)" != hello ]; do sleep 0.05; done`), sandboxPath(ofParent, "data", "shared", mesosv1.Volume_RW))
		for _, x := range []*containerv1.Container{listen, connect} {
			if _, err := c.Launch(launchertest.Context(t), x); err != nil {
				t.Fatalf("Launch(%s): %v", x.Id, err)
			}
		}
		succeeds(t, c, connect)
		succeeds(t, c, listen)
		if err := c.Remove(launchertest.Context(t), listen.Id); err != nil {
			t.Errorf("Remove: %v", err)
		}
		if _, err := os.Stat(listen.Sandbox); !os.IsNotExist(err) {
			t.Errorf("sandbox after Remove: %v, want it gone", err)
		}
		if got, err := os.ReadFile(filepath.Join(root.Sandbox, "data", "got")); err != nil || string(got) != "hello\n" {
			t.Errorf("shared file after Remove of one that wrote it: %q, %v, want it kept", got, err)
		}
		r.takenDown(t, c, root)
	})
}

func TestRealReadOnlyPathCannotBeWritten(t *testing.T) {
	inBoth(t, func(t *testing.T, r *rig, _ *machine, image string) {
		if len(r.cfg.Launchers) < 2 {
			t.Skip("there is no runc, neither in bin nor on the path")
		}
		c := r.start(t)
		defer stopAgent(t, c)
		root := r.container("root", "mkdir data; echo given > data/file; touch ready; exec sleep 1000")
		if _, err := c.Launch(launchertest.Context(t), root); err != nil {
			t.Fatalf("Launch: %v", err)
		}
		waitFor(t, "the parent's file", func() bool { _, err := os.Stat(filepath.Join(root.Sandbox, "ready")); return err == nil })
		x := withVolumes(r.child(root, "x", image, `[ "$(cat data/file)" = given ] || exit 2
if touch data/file data/new; then exit 3; fi; exit 0`), sandboxPath(ofParent, "data", "data", mesosv1.Volume_RO))
		if _, err := c.Launch(launchertest.Context(t), x); err != nil {
			t.Fatalf("Launch: %v", err)
		}
		succeeds(t, c, x)
		r.takenDown(t, c, root)
	})
}

func TestRealNestedContainerSharesWhatItAsksFor(t *testing.T) {
	inBoth(t, func(t *testing.T, r *rig, _ *machine, image string) {
		if len(r.cfg.Launchers) < 2 {
			t.Skip("there is no runc, neither in bin nor on the path")
		}
		c := r.start(t)
		defer stopAgent(t, c)
		yes := true
		root := r.container("root", "echo parents > /dev/shm/file; touch ready; exec sleep 1000")
		root.ContainerInfo = &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum(), LinuxInfo: &mesosv1.LinuxInfo{IpcMode: mesosv1.LinuxInfo_PRIVATE.Enum()}}
		if _, err := c.Launch(launchertest.Context(t), root); err != nil {
			t.Fatalf("Launch: %v", err)
		}
		waitFor(t, "the parent's file", func() bool { _, err := os.Stat(filepath.Join(root.Sandbox, "ready")); return err == nil })
		pids := r.child(root, "pids", image, `[ "$(cat /dev/shm/file)" = parents ] || exit 2
tr '\0' ' ' < /proc/1/cmdline | grep -q 'sleep 1000' || exit 3
touch /dev/shm/mine`)
		if image != "" {
			pids.Command.Value = new(strings.ReplaceAll(*pids.Command.Value, `tr '\0' ' ' < /proc/1/cmdline | grep -q 'sleep 1000'`, `busybox tr '\0' ' ' < /proc/1/cmdline | busybox grep -q 'sleep 1000'`))
		}
		pids.ContainerInfo = &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum(), LinuxInfo: &mesosv1.LinuxInfo{SharePidNamespace: &yes}}
		if _, err := c.Launch(launchertest.Context(t), pids); err != nil {
			t.Fatalf("Launch: %v", err)
		}
		succeeds(t, c, pids)
		memory := r.child(root, "memory", image, `[ -e /dev/shm/mine ] && [ "$$" -lt 10 ]`)
		if _, err := c.Launch(launchertest.Context(t), memory); err != nil {
			t.Fatalf("Launch: %v", err)
		}
		succeeds(t, c, memory)
		r.takenDown(t, c, root)
	})
}

func TestRealNestedContainerWithLimitsOfItsOwn(t *testing.T) {
	m := newMachine(t)
	r := newRig(t, separate(m))
	c := r.start(t)
	defer stopAgent(t, c)
	root := r.container("root", "exec sleep 1000")
	root.Limits = map[string]float64{"mem": 256}
	own := ownCgroup(r.child(root, "own", "", "exec sleep 1000"))
	own.Limits = map[string]float64{"mem": 64}
	shared := r.child(root, "shared", "", "exec sleep 1000")
	shared.Limits = map[string]float64{"mem": 64}
	for _, x := range []*containerv1.Container{root, own, shared} {
		if _, err := c.Launch(launchertest.Context(t), x); err != nil {
			t.Fatalf("Launch(%s): %v", x.Id, err)
		}
	}
	limitOf := func(id string) string {
		ct, err := c.find(id)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(ct.cgroups[""], "memory.max")
		if dir := ct.cgroups["memory"]; dir != "" {
			file = filepath.Join(dir, "memory.limit_in_bytes")
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	if got := limitOf("root"); got != fmt.Sprint(256<<20) {
		t.Errorf("limit of the root container: %s, want 256 MiB", got)
	}
	if got := limitOf(own.Id); got != fmt.Sprint(64<<20) {
		t.Errorf("limit of the container with its own: %s, want 64 MiB", got)
	}
	if got := limitOf(shared.Id); got == fmt.Sprint(64<<20) {
		t.Errorf("limit of the container that shares: %s, want none of its own", got)
	}
	r.takenDown(t, c, root)
}

func TestRealContainersNestedInAnImageMayUseItsDevicesOnly(t *testing.T) {
	r := newRig(t)
	c := r.start(t)
	defer stopAgent(t, c)
	root := r.container("root", "exec sleep 1000")
	root.LocalImage = busyboxImage(t, r)
	if _, err := c.Launch(launchertest.Context(t), root); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	const script = `echo x > /dev/null || exit 2; exec sleep 1000`
	shares, own := r.child(root, "shares", "", script), ownCgroup(r.child(root, "own", "", script))
	image, grand := r.child(root, "image", root.LocalImage, script), r.child(own, "grand", "", script)
	list := func(id string) string {
		ct, err := c.find(id)
		if err != nil {
			t.Fatal(err)
		}
		dir := ct.cgroups["devices"]
		if dir == "" {
			return "" // version 2 has no lists
		}
		b, err := os.ReadFile(filepath.Join(dir, "devices.list"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, x := range []*containerv1.Container{shares, own, image, grand} {
		if _, err := c.Launch(launchertest.Context(t), x); err != nil {
			t.Fatalf("Launch(%s): %v", x.Id, err)
		}
		if got, want := list(x.Id), list(root.Id); got != want {
			t.Errorf("devices of %s: %q, want those of the container around: %q", x.Id, got, want)
		}
	}
	r.takenDown(t, c, root)
}

func TestRealNestedContainersOutliveTheAgentAndDieAlone(t *testing.T) {
	inBoth(t, func(t *testing.T, r *rig, _ *machine, image string) {
		c := r.start(t)
		root := r.container("root", "exec sleep 1000")
		a, b := r.child(root, "a", image, "exec sleep 1000"), r.child(root, "b", image, "while [ ! -e go ]; do sleep 0.05; done; exit 3")
		pids := map[string]int32{}
		for _, x := range []*containerv1.Container{root, a, b} {
			pid, err := c.Launch(launchertest.Context(t), x)
			if err != nil {
				t.Fatalf("Launch(%s): %v", x.Id, err)
			}
			pids[x.Id] = pid
		}
		grand := r.child(a, "grand", image, "exec sleep 1000")
		if _, err := c.Launch(launchertest.Context(t), grand); err != nil {
			t.Fatalf("Launch(%s): %v", grand.Id, err)
		}
		stopAgent(t, c)
		if err := os.WriteFile(filepath.Join(b.Sandbox, "go"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "b to end", func() bool { return syscall.Kill(int(pids[b.Id]), 0) != nil })

		c = r.start(t)
		defer stopAgent(t, c)
		found, err := c.Recover(launchertest.Context(t), []string{"root", b.Id})
		if err != nil || len(found) != 2 {
			t.Fatalf("Recover = %v, %v, want two", found, err)
		}
		if end, err := c.Wait(launchertest.Context(t), b.Id); err != nil || end.WaitStatus == nil || syscall.WaitStatus(*end.WaitStatus).ExitStatus() != 3 {
			t.Errorf("Wait(%s) = %v, %v, want exit 3", b.Id, end, err)
		}
		// One is killed: what is nested in it goes too, and nothing else.
		if err := syscall.Kill(int(pids[a.Id]), syscall.SIGKILL); err != nil {
			t.Fatalf("kill: %v", err)
		}
		for _, id := range []string{a.Id, grand.Id} {
			if end, err := c.Wait(launchertest.Context(t), id); err != nil || end.WaitStatus == nil || syscall.WaitStatus(*end.WaitStatus).Signal() != syscall.SIGKILL {
				t.Errorf("Wait(%s) = %v, %v, want that it was killed", id, end, err)
			}
		}
		if err := syscall.Kill(int(pids["root"]), 0); err != nil {
			t.Errorf("the root container: %v, want it to go on", err)
		}
		again := r.child(root, "again", image, "exit 0")
		if _, err := c.Launch(launchertest.Context(t), again); err != nil {
			t.Fatalf("Launch after recovery: %v", err)
		}
		succeeds(t, c, again)
		r.takenDown(t, c, root)
	})
}

func TestRealStandaloneContainerOutlivesTheAgentWithItsExitCode(t *testing.T) {
	r := newRig(t)
	c := r.start(t)
	alone := r.container("alone", "while [ ! -e go ]; do sleep 0.05; done; exit 5")
	alone.Standalone = true
	pid, err := c.Launch(launchertest.Context(t), alone)
	if err != nil {
		t.Fatalf("Launch: %v", err)
	}
	stopAgent(t, c)
	c = r.start(t)
	if found, err := c.Recover(launchertest.Context(t), nil); err != nil || len(found) != 0 {
		t.Fatalf("Recover = %v, %v, want none that is known", found, err)
	}
	if k := c.Containers(); len(k) != 1 || !k[0].Standalone || !k[0].Running || syscall.Kill(int(pid), 0) != nil {
		t.Fatalf("Containers() = %+v, want it running", k)
	}
	if err := os.WriteFile(filepath.Join(alone.Sandbox, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "it to end", func() bool { return syscall.Kill(int(pid), 0) != nil })
	stopAgent(t, c)
	c = r.start(t)
	defer stopAgent(t, c)
	if _, err := c.Recover(launchertest.Context(t), nil); err != nil {
		t.Fatalf("Recover: %v", err)
	}
	end, err := c.Wait(launchertest.Context(t), "alone")
	if err != nil || end.WaitStatus == nil || syscall.WaitStatus(*end.WaitStatus).ExitStatus() != 5 {
		t.Errorf("Wait = %v, %v, want exit 5", end, err)
	}
	if err := c.Remove(launchertest.Context(t), "alone"); err != nil {
		t.Errorf("Remove: %v", err)
	}
	if _, err := os.Stat(alone.Sandbox); !os.IsNotExist(err) {
		t.Errorf("sandbox after Remove: %v, want it gone", err)
	}
}

// person is a client of a session with a terminal.
type person struct {
	t    *testing.T
	in   chan *agentv1.ProcessIO
	text func() string
	out  chan error
	done chan error
}

func sitDown(t *testing.T, c *Containerizer, id string) *person {
	t.Helper()
	p := &person{t: t, in: make(chan *agentv1.ProcessIO), done: make(chan error, 1)}
	p.text, p.out = collect(c, launchertest.Context(t), id)
	go func() {
		p.done <- c.AttachInput(launchertest.Context(t), id, func() (*agentv1.ProcessIO, error) {
			if piece := <-p.in; piece != nil {
				return piece, nil
			}
			return nil, io.EOF
		})
	}()
	return p
}

func (p *person) says(piece *agentv1.ProcessIO) {
	p.t.Helper()
	select {
	case p.in <- piece:
	case err := <-p.done:
		p.t.Fatalf("AttachInput ended with %v; the screen says %q", err, p.text())
	case <-time.After(10 * time.Second):
		p.t.Fatalf("input is not taken; the screen says %q", p.text())
	}
}

func (p *person) sees(want string) {
	p.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !strings.Contains(p.text(), want) {
		if time.Now().After(deadline) {
			p.t.Fatalf("the screen says %q, want %q", p.text(), want)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestRealSessionWithATerminal(t *testing.T) {
	inBoth(t, func(t *testing.T, r *rig, _ *machine, image string) {
		c := r.start(t)
		defer stopAgent(t, c)
		root := r.container("root", "exec sleep 1000")
		task := r.child(root, "task", image, "export OF=task; exec sleep 1000")
		task.Command.Environment = &mesosv1.Environment{Variables: []*mesosv1.Environment_Variable{variable("WHO", "task")}}
		for _, x := range []*containerv1.Container{root, task} {
			if _, err := c.Launch(launchertest.Context(t), x); err != nil {
				t.Fatalf("Launch(%s): %v", x.Id, err)
			}
		}
		s := session(task, "s", containerv1.Container_TERMINAL)
		shell := "/bin/sh"
		no := false
		s.Command = &mesosv1.CommandInfo{Shell: &no, Value: &shell}
		s.TerminalRows, s.TerminalColumns = 33, 44
		if _, err := c.Launch(launchertest.Context(t), s); err != nil {
			t.Fatalf("Launch: %v", err)
		}
		p := sitDown(t, c, s.Id)
		p.says(data("echo I am $WHO on $(hostname), $TERM; ls -d /home; stty size; tty\n"))
		p.sees("I am task on pod, " + defaultTerm)
		p.sees("33 44")
		p.sees("/dev/pts/") // it has a name here
		if image != "" {
			p.sees("/dev/pts/0\r") // of the container's own
		}
		if inImage := !strings.Contains(p.text(), "\n/home\r"); inImage != (image != "") {
			t.Errorf("the session sees the files of the image: %v, want %v: %q", inImage, image != "", p.text())
		}
		p.says(window(55, 66))
		p.says(data("stty size\n"))
		p.sees("55 66")
		waitFor(t, "the next prompt", func() bool { _, after, _ := strings.Cut(p.text(), "55 66"); return strings.Contains(after, "$ ") })
		p.says(data(""))
		if err := <-p.out; err != nil {
			t.Errorf("AttachOutput: %v", err)
		}
		end, err := c.Wait(launchertest.Context(t), s.Id)
		if err != nil || end.WaitStatus == nil || *end.WaitStatus != 0 {
			t.Errorf("Wait(session) = %v, %v, want status 0 after ^D", end, err)
		}
		close(p.in)
		if err := <-p.done; err != nil {
			t.Errorf("AttachInput: %v", err)
		}
		if k := c.Containers(); !slices.ContainsFunc(k, func(k Known) bool { return k.ID == task.Id && k.Running }) {
			t.Errorf("Containers() = %+v, want the task to go on", k)
		}
		r.finish(t, c, s.Id)
		r.takenDown(t, c, root)
	})
}

func TestRealSessionWithPipesLosesNothing(t *testing.T) {
	inBoth(t, func(t *testing.T, r *rig, _ *machine, image string) {
		c := r.start(t)
		defer stopAgent(t, c)
		root := r.container("root", "exec sleep 1000")
		root.LocalImage = image
		if _, err := c.Launch(launchertest.Context(t), root); err != nil {
			t.Fatalf("Launch: %v", err)
		}
		for n := range 5 {
			s := within(root, fmt.Sprintf("s%d", n), "echo out; echo err >&2; cat; exit 7")
			s.Streams = containerv1.Container_ATTACHED
			if _, err := c.Launch(launchertest.Context(t), s); err != nil {
				t.Fatalf("Launch: %v", err)
			}
			text, done := collect(c, launchertest.Context(t), s.Id)
			big := strings.Repeat("0123456789abcde\n", 1<<14)
			if err := c.AttachInput(launchertest.Context(t), s.Id, sequence(io.EOF, data(big), data("end\n"), data(""))); err != nil {
				t.Errorf("AttachInput: %v", err)
			}
			if err := <-done; err != nil {
				t.Errorf("AttachOutput: %v", err)
			}
			got := strings.Replace(strings.ReplaceAll(text(), "(stderr)", ""), "err\n", "", 1)
			if want := "out\n" + big + "end\n"; got != want {
				t.Errorf("session: got %d bytes, want %d", len(got), len(want))
			}
			if end := r.finish(t, c, s.Id); end.WaitStatus == nil || syscall.WaitStatus(*end.WaitStatus).ExitStatus() != 7 {
				t.Errorf("Wait = %v, want exit 7", end)
			}
		}
		r.takenDown(t, c, root)
	})
}

func TestRealSessionEndsWithItsParent(t *testing.T) {
	r := newRig(t)
	c := r.start(t)
	defer stopAgent(t, c)
	root := r.container("root", "exec sleep 1000")
	s := within(root, "s", "echo hello; exec sleep 1000")
	s.Streams = containerv1.Container_ATTACHED
	for _, x := range []*containerv1.Container{root, s} {
		if _, err := c.Launch(launchertest.Context(t), x); err != nil {
			t.Fatalf("Launch(%s): %v", x.Id, err)
		}
	}
	text, done := collect(c, launchertest.Context(t), s.Id)
	waitFor(t, "its output", func() bool { return text() == "hello\n" })
	r.takenDown(t, c, root)
	if err := <-done; err != nil && !errors.Is(err, ErrNotFound) {
		t.Errorf("AttachOutput = %v, want the end", err)
	}
}

func TestRealSignalReachesTheFirstProcessOfAPidNamespace(t *testing.T) {
	m := newMachine(t)
	r := newRig(t, separate(m))
	c := r.start(t)
	defer stopAgent(t, c)
	for n, test := range []struct {
		script string
		sig    syscall.Signal
		want   int // wait status
	}{
		{"touch ready; exec sleep 1000", syscall.SIGTERM, int(syscall.SIGTERM)},
		{"touch ready; exec sleep 1000", syscall.SIGKILL, int(syscall.SIGKILL)},
		{"touch ready; sleep 1000 & wait; exit 4", syscall.SIGTERM, int(syscall.SIGTERM)},
		{"trap 'exit 3' TERM; touch ready; while :; do sleep 0.05; done", syscall.SIGTERM, 3 << 8},
		{"trap '' TERM; touch ready; while [ ! -e go ]; do sleep 0.05; done; exit 5", syscall.SIGTERM, 5 << 8},
		{"touch ready; while [ ! -e go ]; do sleep 0.05; done; exit 6", syscall.SIGWINCH, 6 << 8},
	} {
		x := r.container(fmt.Sprintf("c%d", n), test.script)
		if _, err := c.Launch(launchertest.Context(t), x); err != nil {
			t.Fatalf("Launch: %v", err)
		}
		waitFor(t, "it to be ready", func() bool { _, err := os.Stat(filepath.Join(x.Sandbox, "ready")); return err == nil })
		if err := c.Signal(launchertest.Context(t), x.Id, int(test.sig)); err != nil {
			t.Errorf("%s: Signal: %v", test.script, err)
		}
		if err := os.WriteFile(filepath.Join(x.Sandbox, "go"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if end := r.finish(t, c, x.Id); end.WaitStatus == nil || int(*end.WaitStatus) != test.want {
			t.Errorf("%s, sent %v: %v, want wait status %#x", test.script, test.sig, end, test.want)
		}
	}
}

func TestRealNestedContainerSeesTheProcessesThatItShares(t *testing.T) {
	m := newMachine(t)
	r := newRig(t, separate(m))
	c := r.start(t)
	defer stopAgent(t, c)
	yes := true
	root := r.container("root", "exec sleep 1000")
	x := r.child(root, "x", "", `tr '\0' ' ' < /proc/1/cmdline | grep -q 'sleep 1000' && [ -e /proc/$$/stat ]`)
	x.ContainerInfo = &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum(), LinuxInfo: &mesosv1.LinuxInfo{SharePidNamespace: &yes}}
	for _, y := range []*containerv1.Container{root, x} {
		if _, err := c.Launch(launchertest.Context(t), y); err != nil {
			t.Fatalf("Launch(%s): %v", y.Id, err)
		}
	}
	succeeds(t, c, x)
	r.takenDown(t, c, root)
}

// BenchmarkRealNestedLaunchTrue is a whole life of a container nested in one that goes on.
func BenchmarkRealNestedLaunchTrue(b *testing.B) {
	env := launchertest.New(b)
	c, err := New(Config{
		Launchers: []launcher.Launcher{hostlauncher.New(env.Shim, env.Cgroups, env.Log)}, Store: fakeStore{&machine{disk: map[string][]byte{}}},
		RunDir: filepath.Join(env.Dir, "run"), CgroupRoot: env.Root, SwitchUser: true,
	})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close(context.Background())
	script, shell, value := "exec sleep 1000", false, "/bin/true"
	root := &containerv1.Container{
		Id: "root", Generation: 1, Command: &mesosv1.CommandInfo{Value: &script}, User: "root",
		Sandbox: filepath.Join(env.Dir, "sandboxes", "root"), Cgroup: env.Root + "/root",
	}
	if _, err := c.Launch(b.Context(), root); err != nil {
		b.Fatal(err)
	}
	for n := 0; b.Loop(); n++ {
		x := nestedIn(root, fmt.Sprintf("n%d", n))
		x.Command = &mesosv1.CommandInfo{Shell: &shell, Value: &value}
		if _, err := c.Launch(b.Context(), x); err != nil {
			b.Fatal(err)
		}
		if _, err := c.Wait(b.Context(), x.Id); err != nil {
			b.Fatal(err)
		}
		if err := c.Forget(b.Context(), x.Id); err != nil {
			b.Fatal(err)
		}
	}
	if err := c.Destroy(b.Context(), "root", nil); err != nil {
		b.Fatal(err)
	}
	if err := c.Forget(b.Context(), "root"); err != nil {
		b.Fatal(err)
	}
	for len(c.all()) > 0 { // the last cleanups end in the background
		if ct := c.all(); len(ct) > 0 {
			<-ct[0].gone
		}
	}
}
