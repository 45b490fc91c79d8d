package containerizer

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mosaic-cluster/mosaic/core/containerizer/fetcher"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/launchertest"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/oci"
	hostlauncher "github.com/mosaic-cluster/mosaic/core/containerizer/launcher/process"
	"github.com/mosaic-cluster/mosaic/core/containerizer/provisioner"
	"github.com/mosaic-cluster/mosaic/core/containerizer/shim"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// rig is a containerizer with everything real but the isolators and the agent's store, in a cgroup root of its own.
type rig struct {
	env *launchertest.Env
	cfg Config
}

func newRig(t *testing.T, isolators ...Isolator) *rig {
	t.Helper()
	env := launchertest.New(t)
	var launchers []launcher.Launcher
	launchers = append(launchers, hostlauncher.New(env.Shim, env.Cgroups, env.Log).WithRoots())
	if path, err := runtimePath(); err == nil {
		b, err := shim.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = b.Close() })
		launchers = append(launchers, oci.New(env.Shim, b, env.Cgroups, env.Log))
	}
	images, err := provisioner.New(provisioner.Config{Dir: filepath.Join(env.Dir, "images")})
	if err != nil {
		t.Fatal(err)
	}
	fetch, err := fetcher.New(fetcher.Config{CacheDir: filepath.Join(env.Dir, "cache")})
	if err != nil {
		t.Fatal(err)
	}
	return &rig{env: env, cfg: Config{
		Launchers: launchers, Store: fakeStore{newMachine(t)}, Isolators: isolators, Images: images, Fetcher: fetch,
		RunDir: filepath.Join(env.Dir, "run"), CgroupRoot: env.Root, SwitchUser: true,
		Fence: func(ctx context.Context, rel string) error {
			g, err := env.Cgroups.Group(rel)
			if err != nil {
				return err
			}
			if err := g.Kill(ctx); err != nil {
				return err
			}
			return g.Remove(ctx)
		},
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}}
}

func runtimePath() (string, error) {
	path, err := filepath.Abs("../../bin/runc")
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err != nil {
		return exec.LookPath("runc")
	}
	return path, nil
}

func (r *rig) start(t *testing.T) *Containerizer {
	t.Helper()
	c, err := New(r.cfg)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	return c
}

func (r *rig) container(id, script string) *containerv1.Container {
	return &containerv1.Container{
		Id: id, Generation: 1, Command: &mesosv1.CommandInfo{Value: &script}, User: "nobody",
		Sandbox: filepath.Join(r.env.Dir, "sandboxes", id), Cgroup: r.env.Root + "/" + id,
		Environment: map[string]string{"MESOS_SANDBOX": filepath.Join(r.env.Dir, "sandboxes", id)},
	}
}

func (r *rig) output(t *testing.T, id string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(r.env.Dir, "sandboxes", id, "stdout"))
	if err != nil {
		t.Errorf("output: %v", err)
	}
	return strings.TrimSpace(string(b))
}

// finish waits for the end of a container and until nothing of it is left.
func (r *rig) finish(t *testing.T, c *Containerizer, id string) *containerv1.Termination {
	t.Helper()
	end, err := c.Wait(launchertest.Context(t), id)
	if err != nil {
		t.Fatalf("Wait: %v", err)
	}
	if err := c.Forget(t.Context(), id); err != nil {
		t.Errorf("Forget: %v", err)
	}
	waitFor(t, id+" to be taken back", func() bool { _, err := c.find(id); return err != nil })
	return end
}

func TestRealProcessRunsAsItsUserInItsSandboxAndCgroup(t *testing.T) {
	shares := uint64(333)
	m := newMachine(t)
	r := newRig(t, &fakeIsolator{m: m, name: "cpu", proposal: &containerv1.Proposal{Cgroup: &containerv1.CgroupResources{CpuShares: &shares}}})
	c := r.start(t)
	defer stopAgent(t, c)
	tool := filepath.Join(r.env.Dir, "tool.sh")
	if err := os.WriteFile(tool, []byte("#!/bin/sh\necho fetched\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	want := r.container("c1", `./tool.sh; id -un; pwd; echo "$MESOS_SANDBOX"; touch made; grep -c "$CG" /proc/self/cgroup; exit 7`)
	yes := true
	want.Command.Uris = []*mesosv1.CommandInfo_URI{{Value: &tool, Executable: &yes}}
	want.Command.Environment = &mesosv1.Environment{Variables: []*mesosv1.Environment_Variable{variable("CG", want.Cgroup)}}
	pid, err := c.Launch(t.Context(), want)
	if err != nil {
		t.Fatalf("Launch: %v", err)
	}
	if pid <= 0 {
		t.Errorf("pid: got %d, want a process", pid)
	}
	end := r.finish(t, c, "c1")
	if end.WaitStatus == nil || syscall.WaitStatus(*end.WaitStatus).ExitStatus() != 7 {
		t.Errorf("Wait: got %v, want exit 7", end)
	}
	lines := strings.Split(r.output(t, "c1"), "\n")
	if len(lines) != 5 || lines[0] != "fetched" || lines[1] != "nobody" || lines[2] != want.Sandbox || lines[3] != want.Sandbox || lines[4] == "0" {
		t.Errorf("output: got %q, want the fetched tool, nobody, the sandbox twice, and its cgroup", lines)
	}
	if info, err := os.Stat(filepath.Join(want.Sandbox, "made")); err != nil || info.Sys().(*syscall.Stat_t).Uid == 0 {
		t.Errorf("file made by the task: got %v, %v, want it to be nobody's", info, err)
	}
}

func TestRealImageRunsByTheOCIRuntime(t *testing.T) {
	r := newRig(t)
	if len(r.cfg.Launchers) < 2 {
		t.Skip("there is no runc, neither in bin nor on the path")
	}
	r.cfg.Launchers = r.cfg.Launchers[1:]
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("there is no static busybox to make an image of")
	}
	image := filepath.Join(r.env.Dir, "image")
	for _, dir := range []string{"bin", "etc", "tmp"} {
		if err := os.MkdirAll(filepath.Join(image, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, body := range map[string]string{"bin/busybox": string(program), "etc/passwd": "app:x:4242:4243::/:/bin/sh\n", "etc/group": "app:x:4243:\n"} {
		if err := os.WriteFile(filepath.Join(image, name), []byte(body), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"sh", "id", "pwd", "cat", "touch", "ls"} {
		if err := os.Symlink("busybox", filepath.Join(image, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	c := r.start(t)
	defer stopAgent(t, c)
	want := r.container("c1", `id -u; id -g; pwd; echo $MESOS_SANDBOX; ls /bin; touch /mnt/mesos/sandbox/made; touch data/kept`)
	want.LocalImage, want.User = image, "app"
	volume := filepath.Join(r.env.Dir, "volume")
	if err := os.Mkdir(volume, 0o755); err != nil {
		t.Fatal(err)
	}
	want.Resources = append(want.Resources, volumeAt(volume, "data", mesosv1.Volume_RW))
	if _, err := c.Launch(t.Context(), want); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	end := r.finish(t, c, "c1")
	if end.WaitStatus == nil || *end.WaitStatus != 0 {
		b, _ := os.ReadFile(filepath.Join(want.Sandbox, "stderr"))
		t.Errorf("Wait: got %v, want exit 0: %s", end, b)
	}
	if got, want := r.output(t, "c1"), "4242\n4243\n/mnt/mesos/sandbox\n/mnt/mesos/sandbox\nbusybox\ncat\nid\nls\npwd\nsh\ntouch"; got != want {
		t.Errorf("output: got %q, want %q", got, want)
	}
	if info, err := os.Stat(filepath.Join(want.Sandbox, "made")); err != nil || info.Sys().(*syscall.Stat_t).Uid != 4242 {
		t.Errorf("file in the sandbox: got %v, %v, want it to be the user's", info, err)
	}
	if info, err := os.Stat(filepath.Join(volume, "kept")); err != nil || info.Sys().(*syscall.Stat_t).Uid != 4242 {
		t.Errorf("file in the persistent volume: got %v, %v, want it to be the user's", info, err)
	}
	if entries, err := os.ReadDir(filepath.Join(r.env.Dir, "images", "containers")); err != nil || len(entries) > 0 {
		t.Errorf("root filesystems: got %v, %v, want none left", entries, err)
	}
}

func TestRealContainersOutliveTheContainerizer(t *testing.T) {
	m := newMachine(t)
	r := newRig(t, &fakeIsolator{m: m, name: "a"})
	c := r.start(t)
	pids := map[string]int32{}
	var known []string
	for n := range 8 {
		id := fmt.Sprintf("c%d", n)
		script := "sleep 1000"
		if n == 0 {
			script = "read x < go; exit 3"
		}
		want := r.container(id, script)
		if n == 0 {
			if err := c.makeSandbox(want, launcher.User{UID: 65534, GID: 65534}); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Mkfifo(filepath.Join(want.Sandbox, "go"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		pid, err := c.Launch(t.Context(), want)
		if err != nil {
			t.Fatalf("Launch: %v", err)
		}
		pids[id], known = pid, append(known, id)
	}
	stopAgent(t, c)
	if err := os.WriteFile(filepath.Join(r.env.Dir, "sandboxes/c0/go"), []byte("go\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "c0 to end", func() bool { return syscall.Kill(int(pids["c0"]), 0) != nil })

	c = r.start(t)
	found, err := c.Recover(launchertest.Context(t), known[:7]) // the last one is an orphan now
	if err != nil || len(found) != 7 {
		t.Fatalf("Recover: got %d containers, %v, want 7", len(found), err)
	}
	for _, cp := range found {
		id := cp.GetContainer().GetId()
		if id != "c0" && (cp.GetPhase() != containerv1.Checkpoint_RUNNING || cp.GetPid() != pids[id] || syscall.Kill(int(cp.GetPid()), 0) != nil) {
			t.Errorf("%s: got %s pid %d, want it running under pid %d", id, cp.GetPhase(), cp.GetPid(), pids[id])
		}
	}
	if end := r.finish(t, c, "c0"); end.WaitStatus == nil || syscall.WaitStatus(*end.WaitStatus).ExitStatus() != 3 {
		t.Errorf("end of c0: got %v, want exit 3", end)
	}
	waitFor(t, "the orphan is gone", func() bool { return syscall.Kill(int(pids["c7"]), 0) != nil })
	for _, id := range known[1:7] {
		if err := c.Destroy(launchertest.Context(t), id, nil); err != nil {
			t.Errorf("Destroy: %v", err)
		}
		r.finish(t, c, id)
	}
	waitFor(t, "all are taken back", func() bool { return len(c.all()) == 0 })
	stopAgent(t, c)
	if entries, err := os.ReadDir(filepath.Join(r.cfg.RunDir, "c")); err != nil || len(entries) > 0 {
		t.Errorf("run folders: got %v, %v, want none left", entries, err)
	}
}

func TestRealCommandThatIsNotThereFailsTheLaunch(t *testing.T) {
	r := newRig(t)
	c := r.start(t)
	defer stopAgent(t, c)
	want := r.container("c1", "/does/not/exist")
	no := false
	want.Command.Shell = &no
	_, err := c.Launch(t.Context(), want)
	if err == nil || !strings.Contains(err.Error(), "launch container c1: launcher(process)") || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("Launch: got %v, want the launcher and the reason", err)
	}
	waitFor(t, "everything is undone", func() bool { return len(c.all()) == 0 })
}

func BenchmarkRealLaunchTrue(b *testing.B) {
	env := launchertest.New(b)
	c, err := New(Config{
		Launchers: []launcher.Launcher{hostlauncher.New(env.Shim, env.Cgroups, env.Log)}, Store: fakeStore{&machine{disk: map[string][]byte{}}},
		RunDir: filepath.Join(env.Dir, "run"), CgroupRoot: env.Root, SwitchUser: true,
	})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close(context.Background())
	shell, value := false, "/bin/true"
	for n := 0; b.Loop(); n++ {
		id := fmt.Sprintf("c%d", n)
		if _, err := c.Launch(b.Context(), &containerv1.Container{
			Id: id, Generation: 1, Command: &mesosv1.CommandInfo{Shell: &shell, Value: &value}, User: "root",
			Sandbox: filepath.Join(env.Dir, "sandboxes", id), Cgroup: env.Root + "/" + id,
		}); err != nil {
			b.Fatal(err)
		}
		if _, err := c.Wait(b.Context(), id); err != nil {
			b.Fatal(err)
		}
		if err := c.Forget(b.Context(), id); err != nil {
			b.Fatal(err)
		}
	}
	for len(c.all()) > 0 { // the last cleanups end in the background
		ct := c.all()
		if len(ct) > 0 {
			<-ct[0].gone
		}
	}
}
