package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// busyboxRoot is a root filesystem with a busybox and nothing else.
func busyboxRoot(t *testing.T) string {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs a busybox to make an image of: " + err.Error())
	}
	if out, err := exec.CommandContext(t.Context(), "ldd", busybox).CombinedOutput(); err == nil {
		t.Skipf("needs a static busybox: %s", out)
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "root")
	for _, dir := range []string{"bin", "proc", "sys", "dev", "etc", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "bin", "busybox"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, applet := range []string{"sh", "cat", "ls", "sleep", "echo"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// imageOf gives a task an image.
func imageOf(task *mesosv1.TaskInfo, image string) {
	task.Container = &mesosv1.ContainerInfo{
		Type:  mesosv1.ContainerInfo_MESOS.Enum(),
		Mesos: &mesosv1.ContainerInfo_MesosInfo{Image: &mesosv1.Image{Type: mesosv1.Image_DOCKER.Enum(), Docker: &mesosv1.Image_Docker{Name: proto.String(image)}}},
	}
}

// A difference is where a container of ours is not as one that the runtime makes of its own example of a configuration.
// docs/containers.md tells of each.
type difference struct {
	fact string // by its whole name, or what it begins with where that ends in a star
	ours string // "" is nothing of the kind, * is anything
	only string // the kind of container that it holds for, "" for all
}

const anything = "*"

var differences = []difference{
	// 14 capabilities in place of three, and programs that give more than their user has.
	{fact: "status CapPrm", ours: "00000000a80425fb"}, {fact: "status CapEff", ours: "00000000a80425fb"},
	{fact: "status CapBnd", ours: "00000000a80425fb"}, {fact: "status NoNewPrivs", ours: "0"},
	{fact: "may chroot / /bin/busybox true", ours: "yes"}, {fact: "open device tun", ours: "yes"},
	// The agent's limits.
	{fact: "limit *", ours: anything},
	// The sandbox, the machine's network and with it the machine's names.
	{fact: "working directory", ours: "/mnt/mesos/sandbox"}, {fact: "mount /mnt/mesos/sandbox", ours: anything},
	{fact: "namespace net", ours: "the machine's"}, {fact: "namespace uts", ours: "the machine's"},
	{fact: "mount /etc/resolv.conf", ours: anything}, {fact: "mount /etc/hosts", ours: anything},
	// No cgroups are shown.
	{fact: "mount /sys/fs/cgroup*", ours: ""}, {fact: "write /sys/fs/cgroup/x", ours: "no"}, {fact: "namespace cgroup", ours: "the machine's"},
	// Layers, and mounts that are narrower than theirs.
	{fact: "mount /", ours: "overlay rw,relatime"},
	{fact: "mount /proc", ours: "proc rw,nosuid,nodev,noexec,relatime"}, {fact: "mount /proc/bus", ours: "proc ro,nosuid,nodev,noexec,relatime"},
	{fact: "mount /proc/fs", ours: "proc ro,nosuid,nodev,noexec,relatime"}, {fact: "mount /proc/irq", ours: "proc ro,nosuid,nodev,noexec,relatime"},
	{fact: "mount /proc/sys", ours: "proc ro,nosuid,nodev,noexec,relatime"},
	{fact: "mount /proc/interrupts", ours: "tmpfs rw,nosuid"}, {fact: "hidden /proc/interrupts", ours: "0"},
	// What a task is told of where it runs.
	{fact: "variable MESOS_*", ours: "set"}, {fact: "variable LIBPROCESS_*", ours: "set"}, {fact: "variable TERM", ours: ""},
	{fact: "variable HOME", ours: "", only: "session"}, {fact: "variable HOME", ours: "", only: "check"},
}

// listed is the difference for a fact of a kind of container, nil if there is to be none.
func listed(fact, kind string) *difference {
	for i, d := range slices.Backward(differences) { // the special come last
		prefix, more := strings.CutSuffix(d.fact, anything)
		if (d.only == "" || d.only == kind) && (d.fact == fact || more && strings.HasPrefix(fact, prefix)) {
			return &differences[i]
		}
	}
	return nil
}

// factsOf reads what audit.sh printed. Namespaces are told by whether they are the machine's.
func factsOf(t *testing.T, kind, text string) map[string]string {
	t.Helper()
	facts := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if !ok {
			t.Fatalf("%s: the audit printed %q", kind, line)
		}
		value = strings.TrimSpace(value)
		if ns, is := strings.CutPrefix(name, "namespace "); is {
			own, err := os.Readlink("/proc/self/ns/" + ns)
			if err != nil {
				t.Fatal(err)
			}
			value = map[bool]string{true: "the machine's", false: "its own"}[own == value]
		}
		facts[name] = value
	}
	if len(facts) < 100 {
		t.Fatalf("%s: the audit ended after %d facts:\n%s", kind, len(facts), text)
	}
	return facts
}

// runtimeFacts is the audit of a container that the runtime makes by its own example of a configuration.
func runtimeFacts(t *testing.T, root, name string) map[string]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	bundle := t.TempDir()
	run := func(args ...string) string {
		cmd := exec.CommandContext(ctx, filepath.Join(bin, "runc"), append([]string{"--root", filepath.Join(bundle, "state")}, args...)...)
		cmd.Dir, cmd.Stderr = bundle, os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("runc %s: %v", args[0], err)
		}
		return string(out)
	}
	run("spec")
	file := filepath.Join(bundle, "config.json")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var config object
	if err := json.Unmarshal(data, &config); err != nil {
		t.Fatal(err)
	}
	process := config["process"].(object)
	process["terminal"], process["args"] = false, []string{"/bin/sh", "/audit.sh"}
	config["root"] = object{"path": root, "readonly": false}
	config["linux"].(object)["cgroupsPath"] = "/" + name
	if data, err = json.Marshal(config); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return factsOf(t, "runc", run("run", name))
}

func TestAContainerSeesWhatTheRuntimeShowsByDefaultAndNoMore(t *testing.T) {
	needRoot(t)
	root := busyboxRoot(t)
	script, err := os.ReadFile("testdata/audit.sh")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "audit.sh"), script, 0o644); err != nil {
		t.Fatal(err)
	}
	c := start(t, cluster.Options{Env: []string{"AUDIT_SECRET=of the agent", "LC_ALL=C.UTF-8"}})
	theirs := runtimeFacts(t, root, c.CgroupRoot()+"-runc")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	ours := map[string]string{
		"task":   mosaic(t, c, 0, "run", "--image", root, "--mem", "64", "--", "/bin/sh", "/audit.sh").Stdout,
		"DOCKER": mosaic(t, c, 0, "run", "--image", root, "--workdir", "/", "--mem", "64", "--", "/bin/sh", "/audit.sh").Stdout,
	}
	f := checkFramework(ctx, t, c)
	launchOne(ctx, t, f, "checked", "exec sleep 1000", func(task *mesosv1.TaskInfo) {
		imageOf(task, root)
		task.HealthCheck = &mesosv1.HealthCheck{
			DelaySeconds: proto.Float64(0), IntervalSeconds: proto.Float64(30), GracePeriodSeconds: proto.Float64(0),
			Command: cluster.Shell("/bin/sh /audit.sh >/tmp/audit"),
		}
	})
	if err := f.Enough(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the task is healthy", 20*time.Second, func() bool { return slices.Contains(health(f, "checked"), "RUNNING true") })
	ours["session"] = mosaic(t, c, 0, "task", "exec", "checked", "--", "/bin/sh", "/audit.sh").Stdout
	ours["check"] = mosaic(t, c, 0, "task", "exec", "checked", "--", "/bin/cat", "/tmp/audit").Stdout

	group := filepath.Join(t.TempDir(), "group.yaml")
	if err := os.WriteFile(group, fmt.Appendf(nil, `tasks:
  - name: nested
    command: {value: "sh /audit.sh >/tmp/audit; mv /tmp/audit /audit; sleep 1000"}
    container: {type: MESOS, mesos: {image: {type: DOCKER, docker: {name: %q}}}}
`, root), 0o644); err != nil {
		t.Fatal(err)
	}
	nested := strings.TrimSpace(mosaic(t, c, 0, "run", "--detach", "--mem", "64", "--group", group).Stdout)
	eventually(t, "the nested container's audit", 20*time.Second, func() bool {
		r, err := c.Mosaic(ctx, "task", "exec", nested, "--", "/bin/cat", "/audit")
		ours["nested"] = r.Stdout
		return err == nil && r.Code == 0
	})

	used := map[*difference]bool{}
	for _, kind := range slices.Sorted(maps.Keys(ours)) {
		facts := factsOf(t, kind, ours[kind])
		all := maps.Clone(theirs)
		maps.Copy(all, facts)
		for _, fact := range slices.Sorted(maps.Keys(all)) {
			d := listed(fact, kind)
			if facts[fact] != theirs[fact] && d != nil {
				used[d] = true
			}
			if want := theirs[fact]; d == nil && facts[fact] != want {
				t.Errorf("%s: %s is %q, want %q as in the runtime's own container", kind, fact, facts[fact], want)
			} else if d != nil && d.ours != anything && facts[fact] != d.ours && facts[fact] != want {
				t.Errorf("%s: %s is %q, want %q, where the runtime's own container has %q", kind, fact, facts[fact], d.ours, want)
			}
		}
	}
	for i, d := range differences {
		if !used[&differences[i]] && d.fact != "namespace cgroup" { // theirs is the machine's on version 1
			t.Errorf("%s is as in the runtime's own container; it need not be listed as different", d.fact)
		}
	}
}

func TestOperatorsAndFrameworksSayWhatCapabilitiesImagesHave(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{Composition: "isolator \"cgroups\" {}\nisolator \"linux\" {\n  config {\n" +
		"    bounding_capabilities = [\"CHOWN\", \"NET_RAW\", \"SYS_TIME\"]\n  }\n}\n"})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	root := busyboxRoot(t)
	f := checkFramework(ctx, t, c)
	offer, err := f.Offer(ctx, 1, 512)
	if err != nil {
		t.Fatal(err)
	}
	named := func(list ...mesosv1.CapabilityInfo_Capability) *mesosv1.CapabilityInfo {
		return &mesosv1.CapabilityInfo{Capabilities: list}
	}
	const chown, netRaw, sysTime = 1 << 0, 1 << 13, 1 << 25
	var tasks []*mesosv1.TaskInfo
	var ids []string
	wants := map[string][2]uint64{} // effective and bounding
	for _, test := range []struct {
		id, user string
		asked    *mesosv1.LinuxInfo
		want     [2]uint64
	}{
		{"unasked", "root", nil, [2]uint64{chown | netRaw, chown | netRaw}},
		{"another", "65534", nil, [2]uint64{0, chown | netRaw}},
		{"fewer", "root", &mesosv1.LinuxInfo{BoundingCapabilities: named(mesosv1.CapabilityInfo_CHOWN)}, [2]uint64{chown, chown}},
		{"more", "65534", &mesosv1.LinuxInfo{EffectiveCapabilities: named(mesosv1.CapabilityInfo_SYS_TIME)}, [2]uint64{sysTime, chown | netRaw | sysTime}},
		{"beyond", "root", &mesosv1.LinuxInfo{EffectiveCapabilities: named(mesosv1.CapabilityInfo_SYS_ADMIN)}, [2]uint64{}},
	} {
		task := cluster.Task(offer, test.id, 0.1, 64, cluster.Shell("cat /proc/self/status"))
		imageOf(task, root)
		task.Container.LinuxInfo, task.Command.User = test.asked, &test.user
		tasks, ids = append(tasks, task), append(ids, test.id)
		wants[test.id] = test.want
	}
	if err := f.Launch(ctx, offer, tasks...); err != nil {
		t.Fatal(err)
	}
	ended, err := f.State(ctx, ids, mesosv1.TaskState_TASK_FINISHED, mesosv1.TaskState_TASK_FAILED)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		s := ended[id].Status
		if id == "beyond" {
			if s.GetState() != mesosv1.TaskState_TASK_FAILED || !strings.Contains(s.GetMessage(), "CAP_SYS_ADMIN, which the operator does not allow") {
				t.Errorf("%s: %s: %s; want it refused by its name", id, s.GetState(), s.GetMessage())
			}
			continue
		}
		out := mosaic(t, c, 0, "task", "logs", id).Stdout
		for n, set := range []string{"CapEff", "CapBnd"} {
			if want := fmt.Sprintf("%s:\t%016x\n", set, wants[id][n]); !strings.Contains(out, want) {
				t.Errorf("%s: %s %s: its status is\n%s\nwant %s", id, s.GetState(), s.GetMessage(), out, want)
			}
		}
	}
}
