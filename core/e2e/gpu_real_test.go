package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// realGPUs says how many whole GPUs this machine has, and skips the test where it has none or cannot give any to a
// container: it may itself be a container without the rights for that.
func realGPUs(t *testing.T) int {
	t.Helper()
	needRoot(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(bin, "mosaic-isolator-nvidia-gpu"), "resources").CombinedOutput()
	if err != nil {
		t.Skipf("no GPU on this machine: %v: %s", err, out)
	}
	found := regexp.MustCompile(`gpus:([0-9]+)`).FindStringSubmatch(string(out))
	if found == nil || found[1] == "0" {
		t.Skipf("no whole GPU on this machine: %s", out)
	}
	n, err := strconv.Atoi(found[1])
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range []string{"/dev/nvidiactl", "/dev/nvidia-uvm"} {
		if _, err := os.Stat(node); err != nil {
			t.Skipf("this machine has not all nodes of its GPUs: %v", err)
		}
	}
	// What every container needs.
	probe := exec.CommandContext(ctx, "true")
	probe.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID}
	if err := probe.Run(); err != nil {
		t.Skipf("this machine makes no namespaces: %v", err)
	}
	if err := unix.Mknod(filepath.Join(t.TempDir(), "null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil {
		t.Skipf("this machine makes no device nodes: %v", err)
	}
	roots := []string{"/sys/fs/cgroup/devices", "/sys/fs/cgroup/memory"} // version 1
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		roots = []string{"/sys/fs/cgroup"}
	}
	for _, root := range roots {
		group := filepath.Join(root, "mosaic-e2e-probe-"+strconv.Itoa(os.Getpid()))
		if err := os.Mkdir(group, 0o755); err != nil {
			t.Skipf("this machine lets us make no cgroups: %v", err)
		}
		if err := os.Remove(group); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// machineFolder is an image of this machine's own shell and C library, with what nvidia-smi is linked against: the driver's
// programs need a C library like the one they were made for.
func machineFolder(t *testing.T, programs ...string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	add := func(source, at string) {
		data, err := os.ReadFile(source)
		if err == nil {
			err = os.MkdirAll(filepath.Join(dir, filepath.Dir(at)), 0o755)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, at), data, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	paths := regexp.MustCompile(`(/\S+) \(0x`)
	for _, program := range programs {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		out, err := exec.CommandContext(ctx, "ldd", program).CombinedOutput()
		cancel()
		if err != nil && !strings.Contains(string(out), "not a dynamic executable") && !strings.Contains(string(out), "statically linked") {
			t.Skipf("needs ldd to make an image of this machine: %v: %s", err, out)
		}
		for _, found := range paths.FindAllStringSubmatch(string(out), -1) {
			add(found[1], found[1])
		}
	}
	add("/bin/sh", "/bin/sh")
	return dir
}

// orSkip runs a command that may fail for want of rights that a container of others does not have: that is no mistake of
// ours, and is told. Everything else must succeed.
func orSkip(t *testing.T, c *cluster.Cluster, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	r, err := c.Mosaic(ctx, args...)
	if err != nil {
		t.Fatal(err)
	}
	if r.Code == 125 {
		for _, want := range []string{"bpf", "permission denied", "operation not permitted", "read-only file system"} {
			if strings.Contains(strings.ToLower(r.Stderr), want) {
				t.Skipf("this machine does not let us run containers with devices: %s", r.Stderr)
			}
		}
	}
	if r.Code != 0 {
		t.Fatalf("mosaic %s: exit code %d\nstdout: %s\nstderr: %s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// TestARealGPUIsSeenInAContainer has NVIDIA's own program look, from the machine's file system and from an image that asks for
// the driver. It sees one GPU, however many there are.
func TestARealGPUIsSeenInAContainer(t *testing.T) {
	gpus := realGPUs(t)
	smi := ""
	for _, folder := range []string{"/usr/bin", "/usr/local/bin", "/usr/local/nvidia/bin", "/opt/nvidia/bin"} { // where the isolator looks
		if path := filepath.Join(folder, "nvidia-smi"); smi == "" {
			if _, err := os.Stat(path); err == nil {
				smi = path
			}
		}
	}
	if smi == "" {
		t.Skip("there is a GPU, and no nvidia-smi to look at it with")
	}
	c := start(t, cluster.Options{Composition: "isolator \"cgroups\" {}\nisolator \"nvidia_gpu\" {}\n"})
	// The library's folder, for machines whose linker does not know it.
	const folders = "LD_LIBRARY_PATH=/usr/local/nvidia/lib64:/usr/local/nvidia/lib "
	list := regexp.MustCompile(`(?m)^GPU [0-9]+: .*\(UUID: (GPU-[0-9a-f-]+)\)`)
	seen := func(where, out string) string {
		uuids := list.FindAllStringSubmatch(out, -1)
		if len(uuids) != 1 {
			t.Fatalf("%s: nvidia-smi -L said\n%s\nwant one GPU of the machine's %d", where, out, gpus)
		}
		return uuids[0][1]
	}

	t.Run("on the machine's file system", func(t *testing.T) {
		out := orSkip(t, c, "run", "--gpus", "1", "--mem", "512", "--shell", "--", folders+smi+" -L; echo visible:$NVIDIA_VISIBLE_DEVICES")
		if uuid := seen("on the machine", out); !strings.Contains(out, "visible:"+uuid) {
			t.Errorf("the task sees %s, and its variable says\n%s", uuid, out)
		}
	})
	t.Run("in an image", func(t *testing.T) {
		image := machineFolder(t, "/bin/sh", smi)
		out := orSkip(t, c, "run", "--gpus", "1", "--mem", "512", "--image", image, "--env", "NVIDIA_VISIBLE_DEVICES=all", "--shell", "--",
			"for d in /dev/nvidia[0-9]*; do echo node $d; done; /usr/local/nvidia/bin/nvidia-smi -L")
		seen("in an image", out)
		if n := strings.Count(out, "node /dev/nvidia"); n != 1 {
			t.Errorf("the container has %d nodes of GPUs, want 1:\n%s", n, out)
		}
		// One that does not ask for the driver has the GPU alone.
		orSkip(t, c, "run", "--gpus", "1", "--mem", "512", "--image", image, "--shell", "--", "test ! -e /usr/local/nvidia && test -c /dev/nvidiactl")
	})
}
