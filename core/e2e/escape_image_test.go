package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// An outside is what containers must not reach: a folder of the machine with one file, and a setting of its kernel.
type outside struct {
	dir     string
	setting []byte
}

const (
	kernelSetting = "/proc/sys/kernel/core_pattern"
	untouched     = "untouched\n"
)

func newOutside(t *testing.T) *outside {
	t.Helper()
	setting, err := os.ReadFile(kernelSetting)
	if err != nil {
		t.Fatal(err)
	}
	o := &outside{dir: t.TempDir(), setting: setting}
	if err := os.WriteFile(o.victim(), []byte(untouched), 0o644); err != nil {
		t.Fatal(err)
	}
	return o
}

func (o *outside) victim() string { return filepath.Join(o.dir, "victim") }

// from is a path to below the folder for a link in an image, wherever that is.
func (o *outside) from(name string) string {
	return strings.Repeat("../", 30) + strings.TrimPrefix(filepath.Join(o.dir, name), "/")
}

// isUntouched fails the test if anything has been made, changed or mounted there.
func (o *outside) isUntouched(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir(o.dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("the folder outside holds %v, %v; want one file", entries, err)
	}
	text, err := os.ReadFile(o.victim())
	info, statErr := os.Lstat(o.victim())
	if err != nil || statErr != nil || string(text) != untouched || info.Mode() != 0o644 {
		t.Errorf("the file outside is %v and holds %q, %v", info, text, err)
	}
	for _, line := range mountLines(t) {
		if at := mountPoint(line); at == o.dir || strings.HasPrefix(at, o.dir+"/") {
			t.Errorf("something is mounted outside: %s", line)
		}
	}
	if setting, err := os.ReadFile(kernelSetting); err != nil || !bytes.Equal(setting, o.setting) {
		t.Errorf("%s is %q, %v; was %q", kernelSetting, setting, err, o.setting)
	}
}

// replace puts a link in the place of a file or folder of an image.
func replace(t *testing.T, root, name, target string) {
	t.Helper()
	at := filepath.Join(root, name)
	if err := os.RemoveAll(at); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, at); err != nil {
		t.Fatal(err)
	}
}

func TestAnImageWhosePlacesAreLinksLeadsNowhere(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	o := newOutside(t)
	volume := t.TempDir()
	f := checkFramework(ctx, t, c)
	offer, err := f.Offer(ctx, 3, 2048)
	if err != nil {
		t.Fatal(err)
	}
	// Whatever is behind the names of places that a container is given, or that are hidden from it, is written to.
	const script = `exec 2>/dev/null; echo "hidden: $(cat /proc/timer_list /proc/keys /proc/kcore | busybox head -c 1 | busybox wc -c)"
for at in /etc/written /etc/resolv.conf /etc/hosts /etc/passwd /dev/null /dev/console /dev/tty /dev/ptmx /dev/shm/written /dev/written \
  /proc/sys/kernel/core_pattern /proc/sysrq-trigger /sys/written $MESOS_SANDBOX/written /mnt/written /volume/written /etc/volume/written; do
  busybox timeout 1 /bin/sh -c 'echo written >>$0' $at
done; true`
	var tasks []*mesosv1.TaskInfo
	var ids []string
	for name, change := range map[string]func(root string){
		"etc":        func(root string) { replace(t, root, "etc", o.from("")) },
		"etc-rooted": func(root string) { replace(t, root, "etc", o.dir) },
		"names": func(root string) {
			replace(t, root, "etc/hosts", o.from("victim"))
			replace(t, root, "etc/resolv.conf", o.from("victim"))
		},
		"users": func(root string) {
			replace(t, root, "etc/passwd", o.from("victim"))
			replace(t, root, "etc/group", o.from("victim"))
		},
		"sandbox":     func(root string) { replace(t, root, "mnt", o.from("")) },
		"sandbox-end": func(root string) { replace(t, root, "mnt/mesos/sandbox", o.from("")) },
		"dev":         func(root string) { replace(t, root, "dev", o.from("")) },
		"proc":        func(root string) { replace(t, root, "proc", o.from("")) },
		"sys":         func(root string) { replace(t, root, "sys", o.from("")) },
		// What masks a file is the container's own /dev/null, and a terminal is laid over /dev/console.
		"null": func(root string) { replace(t, root, "dev/null", kernelSetting) },
		"console": func(root string) {
			replace(t, root, "dev/console", kernelSetting)
			replace(t, root, "dev/ptmx", o.from("victim"))
		},
		"shm":    func(root string) { replace(t, root, "dev/shm", o.from("")); replace(t, root, "dev/pts", o.from("")) },
		"volume": func(root string) { replace(t, root, "volume", o.from("new")) },
	} {
		root := busyboxRoot(t)
		change(root)
		for _, terminal := range []bool{false, true} {
			id := fmt.Sprintf("%s-%v", name, terminal)
			task := cluster.Task(offer, id, 0.1, 64, cluster.Shell(script))
			imageOf(task, root)
			if terminal {
				task.Container.TtyInfo = &mesosv1.TTYInfo{}
			}
			task.Container.Volumes = []*mesosv1.Volume{
				hostVolume(volume, "/volume", mesosv1.Volume_RO, mesosv1.MountPropagation_UNKNOWN),
				hostVolume(volume, "/etc/volume", mesosv1.Volume_RO, mesosv1.MountPropagation_UNKNOWN),
				secretVolume("/etc/secret", secretOf("value")),
			}
			tasks, ids = append(tasks, task), append(ids, id)
		}
	}
	if err := f.Launch(ctx, offer, tasks...); err != nil {
		t.Fatal(err)
	}
	ended, err := f.State(ctx, ids, mesosv1.TaskState_TASK_FINISHED, mesosv1.TaskState_TASK_FAILED)
	if err != nil {
		t.Fatal(err)
	}
	finished := 0
	for _, id := range slices.Sorted(slices.Values(ids)) {
		s := ended[id].Status
		if s.GetState() != mesosv1.TaskState_TASK_FINISHED {
			t.Logf("%s: %s: %s", id, s.GetState(), s.GetMessage()) // refused is as good
			continue
		}
		finished++
		if out := mosaic(t, c, 0, "task", "logs", id).Stdout; !strings.Contains(out, "hidden: 0") {
			t.Errorf("%s: it printed %q, want nothing read of what is hidden", id, out)
		}
	}
	if finished < len(ids)/2 {
		t.Errorf("of %d containers %d ran: what shuts others out cannot be told", len(ids), finished)
	}
	o.isUntouched(t)
	if entries, err := os.ReadDir(volume); err != nil || len(entries) > 0 {
		t.Errorf("a volume that is read-only holds %v, %v", entries, err)
	}
}

func TestAPlaceThatIsSwappedForALinkDuringALaunchLeadsNowhere(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	o := newOutside(t)
	// What a neighbour with the same volume can do, done from beside: a folder and a link change places all the time.
	shared := t.TempDir()
	for _, dir := range []string{"place", "place/deep"} {
		if err := os.Mkdir(filepath.Join(shared, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(o.from(""), filepath.Join(shared, "link")); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var swapping sync.WaitGroup
	swaps := 0
	swapping.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if unix.Renameat2(unix.AT_FDCWD, filepath.Join(shared, "place"), unix.AT_FDCWD, filepath.Join(shared, "link"), unix.RENAME_EXCHANGE) == nil {
				swaps++
			}
			time.Sleep(50 * time.Microsecond)
		}
	})
	root, volume := busyboxRoot(t), t.TempDir()
	f := checkFramework(ctx, t, c)
	states := map[mesosv1.TaskState]int{}
	for round := range 4 {
		offer, err := f.Offer(ctx, 1, 640)
		if err != nil {
			t.Fatal(err)
		}
		var tasks []*mesosv1.TaskInfo
		var ids []string
		for n := range 10 {
			id := fmt.Sprintf("task-%d-%d", round, n)
			task := cluster.Task(offer, id, 0.1, 64, cluster.Shell("true"))
			imageOf(task, root)
			task.Container.Volumes = []*mesosv1.Volume{
				hostVolume(shared, "/shared", mesosv1.Volume_RW, mesosv1.MountPropagation_UNKNOWN),
				hostVolume(volume, "/shared/place/deep", mesosv1.Volume_RW, mesosv1.MountPropagation_UNKNOWN),
				hostVolume(volume, fmt.Sprintf("/shared/place/new-%d", n), mesosv1.Volume_RW, mesosv1.MountPropagation_UNKNOWN),
			}
			tasks, ids = append(tasks, task), append(ids, id)
		}
		if err := f.Launch(ctx, offer, tasks...); err != nil {
			t.Fatal(err)
		}
		ended, err := f.State(ctx, ids, mesosv1.TaskState_TASK_FINISHED, mesosv1.TaskState_TASK_FAILED)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range ids {
			states[ended[id].Status.GetState()]++
		}
		o.isUntouched(t)
	}
	close(stop)
	swapping.Wait()
	t.Logf("%v, while the place was swapped %d times", states, swaps)
	if swaps < 1000 {
		t.Errorf("the place was swapped %d times, want more for this to mean anything", swaps)
	}
	if states[mesosv1.TaskState_TASK_FINISHED] == 0 {
		t.Errorf("no container ran: %v", states)
	}
	for _, name := range []string{"new-0", "deep"} {
		if _, err := os.Stat("/" + name); err == nil {
			t.Errorf("the machine has a /%s now", name)
		}
	}
}

func TestLogsThatATaskReplacesByLinksLeadNowhere(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{Composition: "isolator \"cgroups\" {}\nisolator \"namespaces\" {}\nisolator \"linux\" {}\n" +
		"container_logger \"file\" {\n  config {\n    max_size = \"4KiB\"\n    keep     = 3\n  }\n}\n"})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	o := newOutside(t)
	root := busyboxRoot(t)
	f := checkFramework(ctx, t, c)
	// Each round it puts links where the log and its older files are, and prints more than one file holds.
	script := fmt.Sprintf(`cd $MESOS_SANDBOX; n=0; while :; do
  for at in stdout stderr stdout.1 stdout.2 stderr.1 stderr.2; do busybox rm -f $at; busybox ln -s %s $at; done
  i=0; while [ $i -lt 100 ]; do echo "a line of some length, so that a few of them fill a file $n $i"; echo "and errors $n $i" >&2; i=$((i+1)); done
  n=$((n+1)); echo $n >rounds; busybox sleep 0.05
done`, o.victim())
	check := func(task *mesosv1.TaskInfo) {
		task.Check = &mesosv1.CheckInfo{
			Type: mesosv1.CheckInfo_COMMAND.Enum(), DelaySeconds: proto.Float64(0), IntervalSeconds: proto.Float64(0.2),
			Command: &mesosv1.CheckInfo_Command{Command: cluster.Shell("echo checked; echo checked >&2")}, // what it prints is added to the task's
		}
	}
	for id, change := range map[string]func(*mesosv1.TaskInfo){
		"image": func(task *mesosv1.TaskInfo) { imageOf(task, root); check(task) },
		"plain": check, // on the machine's files, as who owns the log
	} {
		launchOne(ctx, t, f, id, strings.ReplaceAll(script, "busybox ", map[bool]string{true: "busybox ", false: ""}[id == "image"]), change)
	}
	rounds := func(id string) (n int) {
		r := mosaic(t, c, 0, "task", "exec", id, "--", "/bin/sh", "-c", "cat $MESOS_SANDBOX/rounds")
		_, _ = fmt.Sscan(r.Stdout, &n)
		return n
	}
	further := func(when string) {
		t.Helper()
		for _, id := range []string{"image", "plain"} {
			first := rounds(id)
			eventually(t, id+" goes on "+when, 20*time.Second, func() bool { return rounds(id) > first+5 })
		}
		o.isUntouched(t)
	}
	further("at first")
	if err := c.KillAgent(); err != nil {
		t.Fatal(err)
	}
	if err := c.StartAgent(); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitAgentRecovered(ctx); err != nil {
		t.Fatal(err)
	}
	further("with another agent")
	// Who reads the logs is not led there either.
	for _, id := range []string{"image", "plain"} {
		for _, file := range []string{"stdout", "stderr"} {
			r, err := c.Mosaic(ctx, "task", "logs", "--"+file, id)
			if err == nil && strings.Contains(r.Stdout, strings.TrimSpace(untouched)) {
				t.Errorf("task logs of %s shows a file outside its sandbox: %q", id, r.Stdout)
			}
		}
		mosaic(t, c, 0, "task", "kill", id)
	}
	o.isUntouched(t)
}

func TestALogThatATaskReplacesByADeviceIsNotOpened(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	f := checkFramework(ctx, t, c)
	// The kernel's log: a container may make the node, and not open it. Were it opened for its check, that could write. It is
	// put there by its name, since a check that begins while there is nothing makes a file.
	const script = `cd $MESOS_SANDBOX; for at in stdout stderr; do busybox mknod new c 1 11; busybox mv -f new $at; done; echo made >/made; exec sleep 1000`
	launchOne(ctx, t, f, "task", script, func(task *mesosv1.TaskInfo) {
		imageOf(task, busyboxRoot(t))
		task.HealthCheck = &mesosv1.HealthCheck{
			DelaySeconds: proto.Float64(0), IntervalSeconds: proto.Float64(0.2), GracePeriodSeconds: proto.Float64(0), ConsecutiveFailures: proto.Uint32(1000),
			Command: cluster.Shell(`for fd in 0 1 2; do busybox stat -L -c "%F %t:%T" /proc/$$/fd/$fd; done >>/streams`),
		}
	})
	cat := func(name string) string {
		return mosaic(t, c, 0, "task", "exec", "task", "--", "/bin/sh", "-c", "cat "+name+" 2>/dev/null; true").Stdout
	}
	eventually(t, "the nodes", 10*time.Second, func() bool { return cat("/made") == "made\n" })
	// One that cannot be started has failed; one that was has written something.
	eventually(t, "a check after that", 20*time.Second, func() bool {
		return slices.Contains(health(f, "task"), "RUNNING false") || strings.Contains(cat("/streams"), "1:b")
	})
	if streams := cat("/streams"); strings.Contains(streams, "1:b") {
		t.Errorf("a check had the streams\n%s\nwant no device of the machine among them", streams)
	}
	for _, args := range [][]string{{"task", "logs", "task"}, {"task", "logs", "--stderr", "task"}} {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		r, err := c.Mosaic(ctx, args...)
		cancel()
		if err == nil && r.Stdout != "" {
			t.Errorf("%v: the agent read a device for who asked: %q", args, r.Stdout)
		}
	}
}
