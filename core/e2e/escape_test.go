package e2e

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

func TestAContainerOfAnImageSeesAndMayNoMoreThanItShould(t *testing.T) {
	needRoot(t)
	image := imageRegistry(t)
	c := start(t, cluster.Options{Dev: true})
	for _, test := range []struct {
		name, line string
		want       string // all of its output
	}{
		{"descriptors", "busybox ls /proc/$$/fd", "0\n1\n2\n"},
		{"its own processes alone", "echo /proc/[0-9]*", "/proc/1\n"},
		{"settings of the kernel", "echo changed >/proc/sys/kernel/core_pattern || echo refused", "refused\n"},
		{"the machine's keys", "echo b >/proc/sysrq-trigger || echo refused", "refused\n"},
		{"sys", "busybox mkdir /sys/fs/cgroup/mine || busybox mkdir /sys/kernel/mine || echo 1 >/sys/kernel/profiling || echo refused", "refused\n"},
		{"memory of the kernel", "busybox head -c 1 /proc/kcore | busybox wc -c", "0\n"},
		{"firmware", "busybox ls -A /sys/firmware", ""},
		{"keys of others", "cat /proc/keys", ""},
		{"devices of the machine", "busybox ls /dev/sda /dev/vda /dev/mem /dev/kmsg /dev/net; echo end", "end\n"},
		{"above the root", "cd ../../../../..; busybox ls -d root home usr/lib lib64; echo end", "end\n"},
		{"mounting", "busybox mount -t tmpfs none /tmp || echo refused", "refused\n"},
		{"mounting again, for writing", "busybox mount -o remount,rw,bind /proc/sys /proc/sys || echo refused", "refused\n"},
		{"unmounting what hides", "busybox umount /proc/kcore || echo refused", "refused\n"},
		{"a disk of its own making", "busybox mknod /tmp/disk b 8 0; busybox head -c 1 /tmp/disk | busybox wc -c", "0\n"},
	} {
		types := map[string][]string{
			"MESOS":  {"run", "--image", image, "--mem", "64", "--shell", "--"},
			"DOCKER": {"run", "--image", image, "--workdir", "/", "--mem", "64", "--shell", "--"}, // a folder is what only that one has
		}
		for kind, args := range types {
			t.Run(kind+" "+test.name, func(t *testing.T) {
				if r := mosaic(t, c, 0, append(args, "exec 2>/dev/null; "+test.line+"; true")...); r.Stdout != test.want {
					t.Errorf("%s\nprinted %q, want %q", test.line, r.Stdout, test.want)
				}
			})
		}
	}
}

// digests are those of the programs that start containers, or enter them.
func digests(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, name := range []string{"mosaic", "mosaic-shim", "mosaic-modules", "runc"} {
		data, err := os.ReadFile(filepath.Join(bin, name))
		if err != nil {
			t.Fatal(err)
		}
		found[name] = fmt.Sprintf("%x", sha256.Sum256(data))
	}
	return found
}

func TestKnownWaysOutOfAContainerAreShut(t *testing.T) {
	needRoot(t)
	image := imageRegistry(t)
	before := digests(t)
	c := start(t, cluster.Options{Dev: true})
	unchanged := func(t *testing.T) {
		t.Helper()
		for name, now := range digests(t) {
			if now != before[name] {
				t.Errorf("%s has been overwritten", name)
			}
		}
	}

	t.Run("the runtime as the container's program", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if _, err := c.Mosaic(ctx, "run", "--image", image, "--mem", "64", "--", "/proc/self/exe"); err != nil {
			t.Fatal(err)
		}
		unchanged(t)
	})

	t.Run("the program of who enters", func(t *testing.T) {
		// It holds on to the program of each process that comes, and writes to it when that has gone.
		const attack = `echo ready; while :; do for p in /proc/[0-9]*; do
  case $p in /proc/1|/proc/$$) continue;; esac
  at=$(busybox readlink $p/exe); case $at in ""|/bin/busybox) continue;; esac
  { echo "holds $at"; i=0; while [ $i -lt 50 ]; do echo overwritten >/proc/self/fd/9; i=$((i+1)); done; } 9<$p/exe
done 2>/dev/null; done 2>/dev/null`
		r := mosaic(t, c, 0, "run", "--detach", "--name", "thief", "--image", image, "--mem", "64", "--shell", "--", attack)
		id := strings.TrimSpace(r.Stdout)
		eventually(t, "the attack", 10*time.Second, func() bool {
			return strings.Contains(mosaic(t, c, 0, "task", "logs", id).Stdout, "ready")
		})
		for range 10 {
			if r := mosaic(t, c, 0, "task", "exec", id, "--", "/bin/echo", "entered"); r.Stdout != "entered\n" {
				t.Errorf("task exec printed %q", r.Stdout)
			}
		}
		if held := mosaic(t, c, 0, "task", "logs", id).Stdout; !strings.Contains(held, "holds ") {
			t.Logf("it got hold of nothing: %q", held)
		}
		mosaic(t, c, 0, "task", "kill", id)
		unchanged(t)
	})

	t.Run("a folder that was left open", func(t *testing.T) {
		for fd := 3; fd < 11; fd++ {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			r, err := c.Mosaic(ctx, "run", "--image", image, "--mem", "64", "--workdir", fmt.Sprintf("/proc/self/fd/%d", fd), "--",
				"/bin/ls", "../../../../../../../../../../tmp", "..")
			cancel()
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(r.Stdout, filepath.Base(c.Dir)) {
				t.Errorf("descriptor %d leads to the machine: %s", fd, r.Stdout)
			}
		}
	})

	t.Run("a folder that was left open, for who enters", func(t *testing.T) {
		const line = `busybox mkdir /at; echo ready; until [ -e /swap ]; do sleep 0.1; done; exec sleep 1000`
		id := strings.TrimSpace(mosaic(t, c, 0, "run", "--detach", "--image", image, "--workdir", "/at", "--mem", "64", "--shell", "--", line).Stdout)
		enter := func(line string) cluster.Result {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			r, err := c.Mosaic(ctx, "task", "exec", id, "--", "/bin/sh", "-c", line)
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		for fd := 3; fd < 20; fd++ {
			// It enters by a folder that it can still be in, and makes the next one enter by a link.
			if r := enter(fmt.Sprintf("cd /; busybox rm -rf /at; ln -s /proc/self/fd/%d /at 2>/dev/null || busybox ln -s /proc/self/fd/%d /at", fd, fd)); r.Code != 0 {
				t.Fatalf("descriptor %d: %q", fd, r.Stderr)
			}
			r := enter("busybox pwd -P; busybox ls ../../../../../../../../../../tmp ..; busybox rm -f /at; busybox mkdir /at")
			if strings.Contains(r.Stdout, filepath.Base(c.Dir)) || strings.Contains(r.Stdout, "unreachable") {
				t.Errorf("descriptor %d leads who enters to the machine: %s", fd, r.Stdout)
			}
			if r.Code != 0 { // refused: nobody can enter any more to put the folder back
				mosaic(t, c, 0, "task", "kill", id)
				id = strings.TrimSpace(mosaic(t, c, 0, "run", "--detach", "--image", image, "--workdir", "/at", "--mem", "64", "--shell", "--", line).Stdout)
			}
		}
		mosaic(t, c, 0, "task", "kill", id)
	})

	t.Run("the runtime as an interpreter", func(t *testing.T) {
		const script = "printf '#!/proc/self/exe\\n' >/script; busybox chmod 755 /script"
		id := strings.TrimSpace(mosaic(t, c, 0, "run", "--detach", "--image", image, "--workdir", "/", "--mem", "64", "--shell", "--",
			script+"; busybox cp /script /bin/other; sleep 1000").Stdout)
		eventually(t, "the script", 10*time.Second, func() bool {
			r, err := c.Mosaic(t.Context(), "task", "exec", id, "--", "/bin/ls", "/bin/other")
			return err == nil && r.Code == 0
		})
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		r, err := c.Mosaic(ctx, "task", "exec", id, "--", "/bin/other")
		if err != nil {
			t.Fatal(err)
		}
		if r.Code == 0 {
			t.Errorf("the program that enters ran as an interpreter: %q", r.Stdout)
		}
		mosaic(t, c, 0, "task", "kill", id)
		unchanged(t)
	})

	t.Run("a place of a volume that leads out of the image", func(t *testing.T) {
		volume, name := t.TempDir(), "mosaic-e2e-"+filepath.Base(c.Dir)
		if err := os.WriteFile(filepath.Join(volume, "inside"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		outside := "/" + name
		t.Cleanup(func() { os.Remove(outside) })
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		r, err := c.Mosaic(ctx, "run", "--image", image, "--mem", "64", "--volume", volume+":/up/"+name, "--", "/bin/ls", outside)
		if err != nil {
			t.Fatal(err)
		}
		if r.Code != 0 || r.Stdout != "inside\n" {
			t.Errorf("ended with %d and %q %q, want the volume below the container's own root", r.Code, r.Stdout, r.Stderr)
		}
		if _, err := os.Stat(outside); err == nil {
			t.Errorf("the machine has %s now", outside)
		}
	})
}
