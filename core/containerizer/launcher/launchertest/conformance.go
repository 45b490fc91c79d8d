package launchertest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/supervised"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// Conformance runs the cases that hold for every launcher, each in an environment of its own, with a
// launcher that with makes for it.
func Conformance(t *testing.T, with func(t testing.TB, e *Env) launcher.Launcher) {
	runCases(t, with, []testCase{
		{"ExitCodeIsReported", exitCodeIsReported},
		{"DeathBySignalIsReported", deathBySignalIsReported},
		{"OutputIsAppended", outputIsAppended},
		{"OutputIsRotatedAndLinesStayWhole", outputIsRotated},
		{"OutputThroughALinkIsRefused", outputThroughALinkIsRefused},
		{"NothingRunsBeforeStart", nothingRunsBeforeStart},
		{"HeldProcessIsInItsCgroups", heldProcessIsInItsCgroups},
		{"ShimLeavesTheAgentsCgroups", shimLeavesTheAgentsCgroups},
		{"MissingCommandIsAnError", missingCommandIsAnError},
		{"UserAndGroupsAreTakenOn", userAndGroupsAreTakenOn},
		{"LimitsAreInEffect", limitsAreInEffect},
		{"CapabilitiesAreInEffect", capabilitiesAreInEffect},
		{"NamespacesAreNew", namespacesAreNew},
		{"NamespaceIsJoined", namespaceIsJoined},
		{"SysctlOfTheHostIsRefused", sysctlOfTheHostIsRefused},
		{"CgroupSettingsAreWritten", cgroupSettingsAreWritten},
		{"MemoryLimitKills", memoryLimitKills},
		{"SignalReachesTheGroup", signalReachesTheGroup},
		{"TerminationEndsTheFirstProcessOfAPidNamespace", terminationInPidNamespace},
		{"DestroyKillsWhatWasLeftBehind", destroyKillsWhatWasLeftBehind},
		{"DestroyIsRepeatable", destroyIsRepeatable},
		{"OccupiedCgroupIsRefused", occupiedCgroupIsRefused},
		{"FailedCreateLeavesNothing", failedCreateLeavesNothing},
		{"WaitEndsWithItsContext", waitEndsWithItsContext},
		{"ReattachFindsARunningContainer", reattachFindsARunningContainer},
		{"ReattachToldOfAnEarlierBootSaysGone", reattachOfEarlierBoot},
		{"LostShimLeavesTheContainerRunning", lostShimLeavesTheContainerRunning},
		{"EndWithoutShimAndAgentIsGone", endWithoutShimAndAgentIsGone},
	})
}

// A testCase is what must hold of a launcher.
type testCase struct {
	name string
	run  func(t *testing.T, e *Env, l launcher.Launcher)
}

// runCases runs each case in an environment of its own.
func runCases(t *testing.T, with func(t testing.TB, e *Env) launcher.Launcher, cases []testCase) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			e := New(t)
			c.run(t, e, with(t, e))
		})
	}
}

func exitCodeIsReported(t *testing.T, e *Env, l launcher.Launcher) {
	for _, code := range []int{0, 1, 77, 255} {
		status, _ := Run(t, l, e.Request("sh", "-c", "exit "+strconv.Itoa(code)))
		if ws := syscall.WaitStatus(status); !ws.Exited() || ws.ExitStatus() != code {
			t.Errorf("exit %d: Wait = %#x", code, status)
		}
	}
}

func deathBySignalIsReported(t *testing.T, e *Env, l launcher.Launcher) {
	status, _ := Run(t, l, e.Request("sh", "-c", "kill -USR1 $$"))
	if ws := syscall.WaitStatus(status); !ws.Signaled() || ws.Signal() != syscall.SIGUSR1 {
		t.Errorf("Wait = %#x, want death by SIGUSR1", status)
	}
}

func outputIsAppended(t *testing.T, e *Env, l launcher.Launcher) {
	r := e.Request("sh", "-c", "echo $GREETING; echo $MISSING; echo oops >&2")
	r.User = launcher.User{UID: 65534, GID: 65534}
	if err := os.WriteFile(r.Stdout, []byte("before\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, out := Run(t, l, r)
	if out != "before\nhello\n\n" {
		t.Errorf("standard output = %q", out)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(r.Stderr, &st); err != nil || st.Uid != 65534 {
		t.Errorf("new file of standard error belongs to %d (%v), want the container's user", st.Uid, err)
	}
}

func outputThroughALinkIsRefused(t *testing.T, e *Env, l launcher.Launcher) {
	r := e.Request("true")
	secret := filepath.Join(e.Dir, "secret")
	if err := os.Symlink(secret, r.Stdout); err != nil {
		t.Fatal(err)
	}
	if h, err := l.Create(Context(t), r); err == nil {
		_ = h.Destroy(Context(t))
		t.Error("Create followed a link that a user may have planted as the output file")
	}
	if _, err := os.Lstat(secret); err == nil {
		t.Error("the link's target was made")
	}
}

func nothingRunsBeforeStart(t *testing.T, e *Env, l launcher.Launcher) {
	mark := filepath.Join(e.Dir, "mark")
	h := Create(t, l, e.Request("touch", mark))
	if _, err := os.Lstat(mark); err == nil {
		t.Error("the command ran before Start")
	}
	if err := h.Start(Context(t)); err != nil {
		t.Fatal(err)
	}
	Wait(t, h)
	if _, err := os.Lstat(mark); err != nil {
		t.Error("the command did not run after Start")
	}
}

func heldProcessIsInItsCgroups(t *testing.T, e *Env, l launcher.Launcher) {
	r := e.Request("true")
	h := Create(t, l, r)
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", h.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	for c, dir := range h.Cgroups() {
		if !strings.Contains(string(b), ":"+c+":/"+r.Container.Cgroup+"\n") || !strings.HasSuffix(dir, r.Container.Cgroup) {
			t.Errorf("held process: got\n%swant %s in %s, folder %s", b, c, r.Container.Cgroup, dir)
		}
	}
	if len(h.Cgroups()) == 0 || h.StartTicks() == 0 {
		t.Errorf("Cgroups = %v, StartTicks = %d", h.Cgroups(), h.StartTicks())
	}
}

func shimLeavesTheAgentsCgroups(t *testing.T, e *Env, l launcher.Launcher) {
	h := Start(t, l, e.Request("sleep", "1000"))
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", ShimOf(t, h)))
	if err != nil {
		t.Fatal(err)
	}
	home := ":/" + e.Root + "/.shims\n"
	for _, name := range []string{":name=systemd", ":memory", "0::"} {
		// A service manager empties the agent's groups when it stops the agent.
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, name) && !strings.HasSuffix(line, home[1:]) {
				t.Errorf("the shim is in %swant %s", line, home[1:])
			}
		}
	}
}

func missingCommandIsAnError(t *testing.T, e *Env, l launcher.Launcher) {
	for _, argv := range [][]string{{"/no/such/program"}, {"no-such-program"}, {"/etc/passwd"}} {
		h, err := l.Create(Context(t), e.Request(argv...))
		if err == nil {
			err = h.Start(Context(t))
			if derr := h.Destroy(Context(t)); derr != nil {
				t.Error(derr)
			}
		}
		if err == nil || !strings.Contains(err.Error(), filepath.Base(argv[0])) && !strings.Contains(err.Error(), argv[0]) {
			t.Errorf("%v: error = %v, want one that names it", argv, err)
		} else if !strings.Contains(err.Error(), "no such file") && !strings.Contains(err.Error(), "not found") && !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("%v: error = %v, want the reason", argv, err)
		}
	}
}

func userAndGroupsAreTakenOn(t *testing.T, e *Env, l launcher.Launcher) {
	r := e.Request("sh", "-c", "id -u; id -g; id -G; pwd")
	r.User = launcher.User{UID: 65534, GID: 1234, Groups: []uint32{1234, 4321}}
	dir := filepath.Join(e.Dir, "work")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r.Dir = dir
	if _, out := Run(t, l, r); out != "65534\n1234\n1234 4321\n"+dir+"\n" {
		t.Errorf("got %q", out)
	}
}

// status reads fields of /proc/self/status as a container prints it.
func status(out, field string) string {
	for line := range strings.Lines(out) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func limitsAreInEffect(t *testing.T, e *Env, l launcher.Launcher) {
	r := e.Request("sh", "-c", "cat /proc/self/status; ulimit -Sn; ulimit -Hn; cat /proc/self/oom_score_adj")
	nnp, score := true, int32(321)
	r.Proposal = &containerv1.Proposal{
		Rlimits:         []*containerv1.Rlimit{{Type: "RLIMIT_NOFILE", Soft: 64, Hard: 128}},
		NoNewPrivileges: &nnp, OomScoreAdj: &score,
	}
	_, out := Run(t, l, r)
	if status(out, "NoNewPrivs") != "1" || !strings.HasSuffix(out, "64\n128\n321\n") {
		t.Errorf("got %s", out)
	}
	r.Proposal = &containerv1.Proposal{Rlimits: []*containerv1.Rlimit{{Type: "RLIMIT_NONSENSE"}}}
	if err := l.Supports(r); err == nil {
		t.Error("Supports of an unknown limit = nil")
	}
}

func capabilitiesAreInEffect(t *testing.T, e *Env, l launcher.Launcher) {
	net := []string{"CAP_NET_BIND_SERVICE", "CAP_NET_RAW"}
	const mask = "0000000000002400"
	for uid, want := range map[uint32][5]string{
		0:     {mask, mask, mask, mask, mask},
		65534: {mask, mask, mask, mask, mask},
	} {
		r := e.Request("cat", "/proc/self/status")
		r.User = launcher.User{UID: uid, GID: uid}
		r.Proposal = &containerv1.Proposal{Capabilities: &containerv1.Capabilities{
			Bounding: net, Effective: net, Permitted: net, Inheritable: net, Ambient: net,
		}}
		_, out := Run(t, l, r)
		for i, f := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
			if got := status(out, f); got != want[i] {
				t.Errorf("user %d: %s = %s, want %s", uid, f, got, want[i])
			}
		}
	}
	r := e.Request("cat", "/proc/self/status")
	r.User = launcher.User{UID: 65534, GID: 65534}
	if _, out := Run(t, l, r); status(out, "CapEff") != "0000000000000000" || status(out, "CapPrm") != "0000000000000000" {
		t.Errorf("without a proposal a plain user has capabilities:\n%s", out)
	}
}

func namespacesAreNew(t *testing.T, e *Env, l launcher.Launcher) {
	r := e.Request("sh", "-c", `for n in pid ipc uts mnt net cgroup; do readlink /proc/self/ns/$n; done; hostname; echo $$; ls -d /proc/[0-9]* | wc -l; cat /proc/self/cgroup; cat /proc/sys/kernel/shmmax /proc/sys/net/ipv4/ip_unprivileged_port_start; cat /sys/class/net/lo/operstate`)
	r.Proposal = &containerv1.Proposal{Hostname: "inside", Sysctls: map[string]string{"kernel.shmmax": "12345678", "net.ipv4.ip_unprivileged_port_start": "7"}}
	for _, n := range []containerv1.Namespace_Type{
		containerv1.Namespace_PID, containerv1.Namespace_IPC, containerv1.Namespace_UTS, containerv1.Namespace_MOUNT,
		containerv1.Namespace_NETWORK, containerv1.Namespace_CGROUP,
	} {
		r.Proposal.Namespaces = append(r.Proposal.Namespaces, &containerv1.Namespace{Type: n})
	}
	_, out := Run(t, l, r)
	lines := strings.Split(out, "\n")
	if len(lines) < 10 {
		t.Fatalf("got %s", out)
	}
	for i, n := range []string{"pid", "ipc", "uts", "mnt", "net", "cgroup"} {
		if host, err := os.Readlink("/proc/self/ns/" + n); err != nil || lines[i] == host || lines[i] == "" {
			t.Errorf("namespace %s = %q, the host's is %q (%v)", n, lines[i], host, err)
		}
	}
	if lines[6] != "inside" || lines[7] != "1" {
		t.Errorf("hostname %q and pid %q, want inside and 1", lines[6], lines[7])
	}
	if n, err := strconv.Atoi(lines[8]); err != nil || n > 4 {
		t.Errorf("sees %s processes: /proc is not its own", lines[8])
	}
	own := ":memory:/\n"
	if e.Cgroups.Version() == 2 {
		own = "\n0::/\n"
	}
	if strings.Contains(out, e.Root) || !strings.Contains(out, own) {
		t.Errorf("sees its cgroup from the host's root:\n%s", out)
	}
	if !strings.Contains(out, "\n12345678\n7\n") {
		t.Errorf("sysctls are not set: %s", out)
	}
	if host, err := os.ReadFile("/proc/sys/kernel/shmmax"); err != nil || strings.TrimSpace(string(host)) == "12345678" {
		t.Errorf("the host's kernel.shmmax is %s (%v)", host, err)
	}
}

func namespaceIsJoined(t *testing.T, e *Env, l launcher.Launcher) {
	first := e.Request("sleep", "1000")
	first.Proposal.Namespaces = []*containerv1.Namespace{{Type: containerv1.Namespace_NETWORK}, {Type: containerv1.Namespace_PID}, {Type: containerv1.Namespace_IPC}}
	h := Start(t, l, first)
	ns := func(n string) string { return fmt.Sprintf("/proc/%d/ns/%s", h.Pid(), n) }
	r := e.Request("sh", "-c", "readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; readlink /proc/self/ns/pid")
	r.Proposal.Namespaces = []*containerv1.Namespace{
		{Type: containerv1.Namespace_NETWORK, Path: ns("net")}, {Type: containerv1.Namespace_IPC, Path: ns("ipc")},
		{Type: containerv1.Namespace_PID, Path: ns("pid")},
	}
	_, out := Run(t, l, r)
	want := ""
	for _, n := range []string{"net", "ipc", "pid"} {
		link, err := os.Readlink(ns(n))
		if err != nil {
			t.Fatal(err)
		}
		want += link + "\n"
	}
	if out != want {
		t.Errorf("got %q, want %q", out, want)
	}
}

func sysctlOfTheHostIsRefused(t *testing.T, e *Env, l launcher.Launcher) {
	for _, name := range []string{"kernel.shmmax", "net.ipv4.ip_forward", "vm.swappiness", "kernel.core_pattern", "net.../../kernel.core_pattern", "net./../kernel", ""} {
		r := e.Request("true")
		if strings.HasPrefix(name, "net..") {
			r.Proposal.Namespaces = []*containerv1.Namespace{{Type: containerv1.Namespace_NETWORK}}
		}
		r.Proposal.Sysctls = map[string]string{name: "1"}
		if err := l.Supports(r); err == nil {
			t.Errorf("Supports of sysctl %q = nil", name)
		}
	}
}

func i64(v int64) *int64 { return &v }

func u64(v uint64) *uint64 { return &v }

func cgroupSettingsAreWritten(t *testing.T, e *Env, l launcher.Launcher) {
	r := e.Request("sleep", "1000")
	r.Proposal.Cgroup = &containerv1.CgroupResources{
		CpuShares: u64(512), CpuQuotaUs: i64(50000), CpuPeriodUs: u64(100000), MemoryLimitBytes: i64(64 << 20),
		MemoryReservationBytes: i64(32 << 20), PidsLimit: i64(40),
	}
	created := map[string]string{
		"cpu/cpu.shares": "512", "cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000",
		"memory/memory.limit_in_bytes": "67108864", "memory/memory.soft_limit_in_bytes": "33554432",
		"pids/pids.max": "40", "memory/memory.swappiness": "7",
	}
	updated := map[string]string{"memory/memory.limit_in_bytes": "134217728", "cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.shares": "512"}
	file, value := "memory/memory.swappiness", "7"
	if e.Cgroups.Version() == 2 {
		created = map[string]string{
			"/cpu.weight": "59", "/cpu.max": "50000 100000", "/memory.max": "67108864", "/memory.low": "33554432",
			"/pids.max": "40", "/memory.high": "62914560",
		}
		updated = map[string]string{"/memory.max": "134217728", "/cpu.max": "max 100000", "/cpu.weight": "59", "/cpuset.cpus": "0"}
		file, value = "memory.high", "62914560"
	}
	r.Proposal.Cgroup.Files = map[string]string{file: value}
	h := Start(t, l, r)
	check := func(want map[string]string) {
		t.Helper()
		for name, v := range want {
			c, file, _ := strings.Cut(name, "/")
			if b, err := os.ReadFile(filepath.Join(h.Cgroups()[c], file)); err != nil || strings.TrimSpace(string(b)) != v {
				t.Errorf("%s = %q (%v), want %s", name, b, err, v)
			}
		}
	}
	check(created)
	err := h.Update(Context(t), &containerv1.CgroupResources{MemoryLimitBytes: i64(128 << 20), CpuQuotaUs: i64(-1), CpusetCpus: "0"})
	if err != nil {
		t.Fatal(err)
	}
	check(updated)
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.Pid())); err != nil || status(string(b), "Cpus_allowed_list") != "0" {
		t.Errorf("the running process is on processors %s (%v), want 0", status(string(b), "Cpus_allowed_list"), err)
	}
	for _, bad := range []string{
		"memory/../cpu.shares", "memory/cgroup.procs", "memory/tasks", "../x", "../memory.max", "memory.limit_in_bytes", "cgroup.procs", "nothing/nothing.here",
	} {
		if err := h.Update(Context(t), &containerv1.CgroupResources{Files: map[string]string{bad: "1"}}); err == nil {
			t.Errorf("Update of file %q = nil", bad)
		}
	}
}

func memoryLimitKills(t *testing.T, e *Env, l launcher.Launcher) {
	r := e.Request("sh", "-c", "x=$(yes | head -c 150000000); exit 0")
	r.Proposal.Cgroup = &containerv1.CgroupResources{MemoryLimitBytes: i64(32 << 20), MemorySwapBytes: i64(32 << 20)}
	s, _ := Run(t, l, r)
	if ws := syscall.WaitStatus(s); !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		t.Errorf("Wait = %#x, want death by SIGKILL at the memory limit", s)
	}
}

func signalReachesTheGroup(t *testing.T, e *Env, l launcher.Launcher) {
	r := e.Request("sh", "-c", "sleep 1000 & sleep 1000; true")
	h := Start(t, l, r)
	Eventually(t, "both children run", func() bool { return len(Members(t, e, r)) == 3 })
	if err := h.Signal(Context(t), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if ws := syscall.WaitStatus(Wait(t, h)); !ws.Signaled() || ws.Signal() != syscall.SIGTERM {
		t.Errorf("Wait = %#x, want death by SIGTERM", ws)
	}
	Eventually(t, "the group's children end too", func() bool { return len(Members(t, e, r)) == 0 })
	if err := h.Signal(Context(t), syscall.SIGTERM); !errors.Is(err, launcher.ErrEnded) {
		t.Errorf("Signal after the end = %v, want ErrEnded", err)
	}
}

func terminationInPidNamespace(t *testing.T, e *Env, l launcher.Launcher) {
	own := []*containerv1.Namespace{{Type: containerv1.Namespace_PID}}
	plain := e.Request("sleep", "1000")
	plain.Proposal.Namespaces = own
	h := Start(t, l, plain)
	if err := h.Signal(Context(t), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if ws := syscall.WaitStatus(Wait(t, h)); !ws.Signaled() || ws.Signal() != syscall.SIGTERM {
		t.Errorf("Wait of a command without handler = %#x, want death by SIGTERM", ws)
	}
	handler := e.Request("sh", "-c", "trap 'exit 44' TERM; echo up; while :; do sleep 0.01; done")
	handler.Proposal.Namespaces = own
	h = Start(t, l, handler)
	Eventually(t, "it is up", func() bool { return Output(t, handler) == "up\n" })
	for _, harmless := range []syscall.Signal{syscall.SIGWINCH, syscall.SIGCONT} {
		if err := h.Signal(Context(t), harmless); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Signal(Context(t), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if ws := syscall.WaitStatus(Wait(t, h)); ws.ExitStatus() != 44 {
		t.Errorf("Wait of a command with handler = %#x, want exit 44", ws)
	}
}

// Members are the processes in a container's cgroup.
func Members(t testing.TB, e *Env, r *launcher.Request) []int {
	t.Helper()
	g, err := e.Cgroups.Group(r.Container.Cgroup)
	if err != nil {
		t.Fatal(err)
	}
	pids, err := g.Pids()
	if err != nil {
		t.Fatal(err)
	}
	return pids
}

func destroyKillsWhatWasLeftBehind(t *testing.T, e *Env, l launcher.Launcher) {
	r := e.Request("sh", "-c", "setsid sh -c 'trap \"\" TERM HUP; sleep 1000; sleep 1000' & setsid sleep 1000 & exit 3")
	h := Start(t, l, r)
	if ws := syscall.WaitStatus(Wait(t, h)); ws.ExitStatus() != 3 {
		t.Errorf("Wait = %#x, want exit 3", ws)
	}
	Eventually(t, "the daemons run", func() bool { return len(Members(t, e, r)) >= 2 })
	left := Members(t, e, r)
	if err := h.Destroy(Context(t)); err != nil {
		t.Fatal(err)
	}
	for _, pid := range left {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !strings.Contains(string(b), ") Z") && !strings.Contains(string(b), ") X") {
			t.Errorf("process %d lives after Destroy: %s", pid, b)
		}
	}
	for _, dir := range h.Cgroups() {
		t.Errorf("cgroup %s is there after Destroy", dir)
	}
	if _, err := os.Lstat(r.RunDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("run folder after Destroy: %v", err)
	}
	if ws := syscall.WaitStatus(Wait(t, h)); ws.ExitStatus() != 3 {
		t.Errorf("Wait after Destroy = %#x, want exit 3", ws)
	}
}

func destroyIsRepeatable(t *testing.T, e *Env, l launcher.Launcher) {
	h := Start(t, l, e.Request("sleep", "1000"))
	waited := make(chan int, 1)
	go func() {
		s, _, _ := h.Wait(Context(t))
		waited <- s
	}()
	for range 3 {
		if err := h.Destroy(Context(t)); err != nil {
			t.Fatal(err)
		}
	}
	if ws := syscall.WaitStatus(<-waited); !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		t.Errorf("Wait during Destroy = %#x, want death by SIGKILL", ws)
	}
}

func occupiedCgroupIsRefused(t *testing.T, e *Env, l launcher.Launcher) {
	first := e.Request("sleep", "1000")
	h := Start(t, l, first)
	second := e.Request("true")
	second.Container.Cgroup = first.Container.Cgroup
	if _, err := l.Create(Context(t), second); err == nil {
		t.Fatal("Create in a cgroup with processes = nil: two containers would be one")
	}
	if err := syscall.Kill(h.Pid(), 0); err != nil {
		t.Errorf("the refused Create harmed the container whose cgroup it is: %v", err)
	}
}

func failedCreateLeavesNothing(t *testing.T, e *Env, l launcher.Launcher) {
	r := e.Request("true")
	r.Proposal.Cgroup = &containerv1.CgroupResources{MemoryLimitBytes: i64(1 << 30), Files: map[string]string{"memory/memory.nothing": "1", "memory.nothing": "1"}}
	if _, err := l.Create(Context(t), r); err == nil {
		t.Fatal("Create with an impossible setting = nil")
	}
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	again := e.Request("true")
	if _, err := l.Create(cancelled, again); err == nil {
		t.Fatal("Create with a cancelled context = nil")
	}
	for _, r := range []*launcher.Request{r, again} {
		if _, err := os.Lstat(r.RunDir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("run folder after a failed Create: %v", err)
		}
		g, err := e.Cgroups.Group(r.Container.Cgroup)
		if err != nil {
			t.Fatal(err)
		}
		if paths := g.Paths(); len(paths) > 0 {
			t.Errorf("cgroups after a failed Create: %v", paths)
		}
	}
}

func waitEndsWithItsContext(t *testing.T, e *Env, l launcher.Launcher) {
	h := Start(t, l, e.Request("sleep", "1000"))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := h.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait with a cancelled context = %v", err)
	}
}

func reattachFindsARunningContainer(t *testing.T, e *Env, l launcher.Launcher) {
	r := e.Request("sh", "-c", "trap 'exit 42' TERM; echo up; while :; do sleep 0.01; done")
	h := Start(t, l, r)
	Eventually(t, "it is up", func() bool { return Output(t, r) == "up\n" })
	again, err := l.Reattach(Context(t), h.State())
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Start(Context(t)); err != nil { // its agent may have died before it could write that it was started
		t.Errorf("Start of what was started: %v, want nothing to happen", err)
	}
	if again.Pid() != h.Pid() || again.StartTicks() != h.StartTicks() || !slices.Equal(again.State(), h.State()) {
		t.Errorf("Reattach = process %d at %d, want %d at %d", again.Pid(), again.StartTicks(), h.Pid(), h.StartTicks())
	}
	if err := again.Signal(Context(t), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if ws := syscall.WaitStatus(Wait(t, again)); ws.ExitStatus() != 42 {
		t.Errorf("Wait = %#x, want exit 42", ws)
	}
	if ws := syscall.WaitStatus(Wait(t, h)); ws.ExitStatus() != 42 {
		t.Errorf("Wait of the first handle = %#x, want exit 42", ws)
	}
	if err := again.Destroy(Context(t)); err != nil {
		t.Fatal(err)
	}
}

func reattachOfEarlierBoot(t *testing.T, e *Env, l launcher.Launcher) {
	r := e.Request("sleep", "1000")
	h := Start(t, l, r)
	rec, err := supervised.ParseRecord(h.State())
	if err != nil {
		t.Fatal(err)
	}
	// The run folder stays whole: the record of the other boot names another.
	state := strings.ReplaceAll(string(h.State()), rec.BootID, "00000000-0000-0000-0000-000000000000")
	state = strings.ReplaceAll(state, rec.RunDir, rec.RunDir+"x")
	state = strings.ReplaceAll(state, rec.Cgroup, rec.Cgroup+"x")
	_, err = l.Reattach(Context(t), []byte(state))
	var gone *launcher.GoneError
	if !errors.As(err, &gone) || gone.Known || !errors.Is(err, launcher.ErrGone) {
		t.Errorf("Reattach to a container of another boot = %v, want an unknown GoneError", err)
	}
	if err := syscall.Kill(h.Pid(), 0); err != nil {
		t.Errorf("a process of this boot was harmed: %v", err)
	}
}

// ShimOf is the shim of a container: the parent of its first process.
func ShimOf(t testing.TB, h launcher.Handle) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(status(string(b), "PPid"))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// Subreaper makes the test process inherit and reap what loses its shim, as an agent's service
// manager would: some systems' first process does it late.
func Subreaper(t testing.TB) {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) })
}

func lostShimLeavesTheContainerRunning(t *testing.T, e *Env, l launcher.Launcher) {
	Subreaper(t)
	r := e.Request("sh", "-c", "trap 'exit 43' TERM; echo up; while :; do sleep 0.01; done")
	h := Start(t, l, r)
	Eventually(t, "it is up", func() bool { return Output(t, r) == "up\n" })
	if err := syscall.Kill(ShimOf(t, h), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	Eventually(t, "the container has another parent", func() bool { return ShimOf(t, h) == os.Getpid() })
	again, err := l.Reattach(Context(t), h.State())
	if err != nil {
		t.Fatalf("Reattach without shim = %v, want an adopted container", err)
	}
	type result struct {
		status int
		known  bool
		err    error
	}
	results := make(chan result, 2)
	for _, w := range []launcher.Handle{h, again} {
		go func() {
			s, known, err := w.Wait(Context(t))
			results <- result{s, known, err}
		}()
	}
	if err := again.Signal(Context(t), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(h.Pid(), &ws, 0, nil); err != nil || ws.ExitStatus() != 43 {
		t.Fatalf("wait4 = %#x, %v", ws, err)
	}
	for range 2 {
		got := <-results
		if got.err != nil || got.known && syscall.WaitStatus(got.status).ExitStatus() != 43 {
			t.Errorf("Wait without shim = %+v, want exit 43 or unknown", got)
		}
		if !got.known && kernelTells(t) {
			t.Errorf("Wait without shim is unknown, although the kernel tells")
		}
	}
	if err := again.Destroy(Context(t)); err != nil {
		t.Fatal(err)
	}
}

// kernelTells says whether this kernel gives exit statuses to others than the parent (from 6.15).
func kernelTells(t testing.TB) bool {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	return major > 6 || major == 6 && minor >= 15
}

func endWithoutShimAndAgentIsGone(t *testing.T, e *Env, l launcher.Launcher) {
	Subreaper(t)
	r := e.Request("sh", "-c", "setsid sleep 1000 & echo up; sleep 1000; true")
	h := Start(t, l, r)
	Eventually(t, "it is up", func() bool { return len(Members(t, e, r)) == 3 })
	if err := syscall.Kill(ShimOf(t, h), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	Eventually(t, "the container has another parent", func() bool { return ShimOf(t, h) == os.Getpid() })
	if err := syscall.Kill(h.Pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := syscall.Wait4(h.Pid(), nil, 0, nil); err != nil {
		t.Fatal(err)
	}
	_, err := l.Reattach(Context(t), h.State())
	var gone *launcher.GoneError
	if !errors.As(err, &gone) || gone.Known {
		t.Errorf("Reattach = %v, want an unknown GoneError", err)
	}
	if left := Members(t, e, r); len(left) > 0 {
		t.Errorf("after GoneError processes %v are left: a second copy would run beside them", left)
	}
}
