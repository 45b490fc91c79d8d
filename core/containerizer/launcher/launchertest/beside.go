package launchertest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/supervised"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// Sharing runs the cases about containers that are kept by the shim of another.
func Sharing(t *testing.T, with func(t testing.TB, e *Env) launcher.Launcher) {
	runCases(t, with, []testCase{
		{"OneShimKeepsSeveral", oneShimKeepsSeveral},
		{"DestroyLeavesTheOthers", destroyLeavesTheOthers},
		{"DestroyOfTheFirstEndsAll", destroyOfTheFirstEndsAll},
		{"ReattachFindsEach", reattachFindsEach},
		{"EndWhileTheAgentIsAwayIsKnown", endWhileTheAgentIsAway},
		{"NamespacesOfTheFirstAreJoinedByThoseThatAsk", besideJoinsNamespaces},
		{"LostShimLeavesAllRunning", lostSharedShim},
		{"LostShimIsReplacedByOneOfItsOwn", lostShimIsReplaced},
		{"FailedCreateHarmsNobody", failedCreateBeside},
		{"NeverStartedEndsWithItsClient", neverStartedBeside},
		{"KilledWithoutACgroup", killedWithoutACgroup},
		{"LimitsOfItsOwnAreInEffect", limitsBeside},
		{"TooManyForOneShimGetTheirOwn", tooManyForOneShim},
		{"AHundredSessionsLeaveNothing", aHundredSessions},
	})
}

// Beside asks for a container that the shim of first, which r made, is to keep too, in a cgroup below that one's.
func (e *Env) Beside(first launcher.Handle, r *launcher.Request, argv ...string) *launcher.Request {
	n := e.Request(argv...)
	n.Container.ParentId, n.Container.Id = r.Container.Id, r.Container.Id+"."+n.Container.Id
	n.Container.Cgroup = r.Container.Cgroup + "/nested-" + filepath.Base(n.RunDir)
	n.Within = r.Container.Cgroup
	n.Beside = first
	return n
}

// Session asks for one with attached streams.
func (e *Env) Session(first launcher.Handle, r *launcher.Request, s containerv1.Container_Streams, argv ...string) *launcher.Request {
	n := e.Beside(first, r, argv...)
	n.Streams, n.Stdout, n.Stderr = s, "", ""
	return n
}

// ShimOfState is the run folder of the container whose shim keeps h too, "" when it has one of its own.
func ShimOfState(t testing.TB, h launcher.Handle) string {
	t.Helper()
	rec, err := supervised.ParseRecord(h.State())
	if err != nil {
		t.Fatal(err)
	}
	return rec.Shim
}

func oneShimKeepsSeveral(t *testing.T, e *Env, l launcher.Launcher) {
	root := e.Request("sleep", "1000")
	h := Start(t, l, root)
	shim := ShimOf(t, h)
	child := e.Beside(h, root, "sh", "-c", "echo out; read x; sleep 1000")
	a := Start(t, l, child)
	grandchild := e.Beside(a, child, "sh", "-c", "exit 9")
	b := Create(t, l, grandchild)
	for _, n := range []launcher.Handle{a, b} {
		if got := ShimOf(t, n); got != shim {
			t.Errorf("the shim of process %d is %d, want that of the first container, %d", n.Pid(), got, shim)
		}
	}
	g, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", a.Pid()))
	if err != nil || !strings.Contains(string(g), "/"+child.Container.Cgroup) {
		t.Errorf("the one beside is in\n%s(%v), want %s", g, err, child.Container.Cgroup)
	}
	if err := b.Start(Context(t)); err != nil {
		t.Fatal(err)
	}
	if ws := syscall.WaitStatus(Wait(t, b)); ws.ExitStatus() != 9 {
		t.Errorf("Wait = %#x, want exit 9", ws)
	}
	if err := a.Signal(Context(t), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if ws := syscall.WaitStatus(Wait(t, a)); ws.Signal() != syscall.SIGTERM {
		t.Errorf("Wait = %#x, want death by SIGTERM", ws)
	}
	if Output(t, child) != "out\n" {
		t.Errorf("output = %q", Output(t, child))
	}
	if err := syscall.Kill(h.Pid(), 0); err != nil {
		t.Errorf("the first one was harmed: %v", err)
	}
}

func destroyLeavesTheOthers(t *testing.T, e *Env, l launcher.Launcher) {
	root := e.Request("sleep", "1000")
	h := Start(t, l, root)
	stay := Start(t, l, e.Beside(h, root, "sleep", "1000"))
	r := e.Beside(h, root, "sh", "-c", "sleep 1000 & setsid sleep 1000 & sleep 1000")
	gone := Start(t, l, r)
	Eventually(t, "its children run", func() bool { return len(Members(t, e, r)) >= 3 })
	left := Members(t, e, r)
	if err := gone.Destroy(Context(t)); err != nil {
		t.Fatal(err)
	}
	for _, pid := range left {
		if alive(pid) {
			t.Errorf("process %d lives after Destroy", pid)
		}
	}
	if _, err := os.Lstat(r.RunDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("run folder after Destroy: %v", err)
	}
	for _, n := range []launcher.Handle{h, stay} {
		if !alive(n.Pid()) {
			t.Errorf("process %d ended with the one beside it", n.Pid())
		}
		if err := n.Signal(Context(t), syscall.SIGCONT); err != nil {
			t.Errorf("Signal = %v", err)
		}
	}
}

func destroyOfTheFirstEndsAll(t *testing.T, e *Env, l launcher.Launcher) {
	root := e.Request("sleep", "1000")
	h := Start(t, l, root)
	shim := ShimOf(t, h)
	n := Start(t, l, e.Beside(h, root, "sleep", "1000"))
	if err := h.Destroy(Context(t)); err != nil {
		t.Fatal(err)
	}
	if alive(n.Pid()) || alive(shim) {
		t.Errorf("after Destroy of the first, the one beside lives: %v, the shim lives: %v", alive(n.Pid()), alive(shim))
	}
	if s, known, err := n.Wait(Context(t)); err != nil || known && syscall.WaitStatus(s).Signal() != syscall.SIGKILL {
		t.Errorf("Wait of the one beside = %#x, %v, %v", s, known, err)
	}
}

func reattachFindsEach(t *testing.T, e *Env, l launcher.Launcher) {
	root := e.Request("sleep", "1000")
	h := Start(t, l, root)
	n := Start(t, l, e.Session(h, root, containerv1.Container_TERMINAL, "sh", "-c", "read x; echo got $x; exit 4"))
	again, err := l.Reattach(Context(t), h.State())
	if err != nil {
		t.Fatal(err)
	}
	nagain, err := l.Reattach(Context(t), n.State())
	if err != nil {
		t.Fatal(err)
	}
	s := Attach(t, nagain)
	write(t, s, "hello\n")
	ReadUntil(t, s, "got hello")
	if ws := syscall.WaitStatus(Wait(t, nagain)); ws.ExitStatus() != 4 {
		t.Errorf("Wait = %#x, want exit 4", ws)
	}
	// The found ones can be built beside like the made ones.
	third := Start(t, l, e.Beside(again, root, "true"))
	if ws := syscall.WaitStatus(Wait(t, third)); ws != 0 {
		t.Errorf("Wait = %#x, want exit 0", ws)
	}
	if err := nagain.Destroy(Context(t)); err != nil {
		t.Fatal(err)
	}
	if err := third.Destroy(Context(t)); err != nil {
		t.Fatal(err)
	}
	if err := again.Destroy(Context(t)); err != nil {
		t.Fatal(err)
	}
}

func endWhileTheAgentIsAway(t *testing.T, e *Env, l launcher.Launcher) {
	root := e.Request("sleep", "1000")
	h := Start(t, l, root)
	r := e.Beside(h, root, "sh", "-c", "read x <"+e.Dir+"/go; exit 21")
	if err := syscall.Mkfifo(e.Dir+"/go", 0o600); err != nil {
		t.Fatal(err)
	}
	n, err := l.Create(Context(t), r)
	if err == nil {
		err = n.Start(Context(t))
	}
	if err != nil {
		t.Fatal(err)
	}
	n.(detacher).Detach()
	if err := os.WriteFile(e.Dir+"/go", []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	Eventually(t, "it ends", func() bool { return !alive(n.Pid()) })
	Eventually(t, "the shim has forgotten it", func() bool {
		again, err := l.Reattach(Context(t), n.State())
		if err == nil {
			again.(detacher).Detach()
			return false
		}
		var gone *launcher.GoneError
		if !errors.As(err, &gone) || !gone.Known || syscall.WaitStatus(gone.WaitStatus).ExitStatus() != 21 {
			t.Fatalf("Reattach = %v, want a GoneError with exit 21", err)
		}
		return true
	})
	if !alive(h.Pid()) {
		t.Error("the first one ended with it")
	}
}

// A detacher is a handle that can be given up as an agent's end does.
type detacher interface{ Detach() }

func besideJoinsNamespaces(t *testing.T, e *Env, l launcher.Launcher) {
	root := e.Request("sleep", "1000")
	root.Proposal.Namespaces = []*containerv1.Namespace{{Type: containerv1.Namespace_NETWORK}, {Type: containerv1.Namespace_PID}, {Type: containerv1.Namespace_IPC}}
	h := Start(t, l, root)
	ns := func(n string) string { return fmt.Sprintf("/proc/%d/ns/%s", h.Pid(), n) }
	joins := e.Beside(h, root, "sh", "-c", "readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; readlink /proc/self/ns/pid")
	joins.Proposal.Namespaces = []*containerv1.Namespace{
		{Type: containerv1.Namespace_NETWORK, Path: ns("net")}, {Type: containerv1.Namespace_IPC, Path: ns("ipc")},
		{Type: containerv1.Namespace_PID, Path: ns("pid")},
	}
	links := func(of string) string {
		want := ""
		for _, n := range []string{"net", "ipc", "pid"} {
			link, err := os.Readlink(fmt.Sprintf("/proc/%s/ns/%s", of, n))
			if err != nil {
				t.Fatal(err)
			}
			want += link + "\n"
		}
		return want
	}
	inside, host := links(fmt.Sprint(h.Pid())), links("self")
	if _, out := Run(t, l, joins); out != inside {
		t.Errorf("one that joins is in %q, want %q", out, inside)
	}
	// The shim is where it was.
	free := e.Beside(h, root, "sh", "-c", "readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; readlink /proc/self/ns/pid")
	if _, out := Run(t, l, free); out != host {
		t.Errorf("one that does not is in %q, want the host's %q", out, host)
	}
}

func lostSharedShim(t *testing.T, e *Env, l launcher.Launcher) {
	Subreaper(t)
	root := e.Request("sleep", "1000")
	h := Start(t, l, root)
	n := Start(t, l, e.Beside(h, root, "sleep", "1000"))
	if err := syscall.Kill(ShimOf(t, h), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, x := range []launcher.Handle{h, n} {
		Eventually(t, "it has another parent", func() bool { return ShimOf(t, x) == os.Getpid() })
		again, err := l.Reattach(Context(t), x.State())
		if err != nil {
			t.Fatalf("Reattach without shim = %v, want an adopted container", err)
		}
		again.(detacher).Detach()
	}
	if err := n.Destroy(Context(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := syscall.Wait4(n.Pid(), nil, 0, nil); err != nil {
		t.Fatal(err)
	}
	if !alive(h.Pid()) {
		t.Error("Destroy of the one beside ended the first")
	}
	var gone *launcher.GoneError
	if _, err := l.Reattach(Context(t), n.State()); !errors.As(err, &gone) {
		t.Errorf("Reattach after its end = %v, want ErrGone", err)
	}
	t.Cleanup(func() { _, _ = syscall.Wait4(h.Pid(), nil, 0, nil) })
	if err := h.Destroy(Context(t)); err != nil {
		t.Fatal(err)
	}
}

func lostShimIsReplaced(t *testing.T, e *Env, l launcher.Launcher) {
	Subreaper(t)
	root := e.Request("sleep", "1000")
	h := Start(t, l, root)
	if err := syscall.Kill(ShimOf(t, h), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	Eventually(t, "it has another parent", func() bool { return ShimOf(t, h) == os.Getpid() })
	n := Start(t, l, e.Beside(h, root, "sh", "-c", "exit 8"))
	if ws := syscall.WaitStatus(Wait(t, n)); ws.ExitStatus() != 8 {
		t.Errorf("Wait = %#x, want exit 8", ws)
	}
	if err := n.Destroy(Context(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = syscall.Wait4(h.Pid(), nil, 0, nil) })
	if err := h.Destroy(Context(t)); err != nil {
		t.Fatal(err)
	}
}

func failedCreateBeside(t *testing.T, e *Env, l launcher.Launcher) {
	root := e.Request("sleep", "1000")
	h := Start(t, l, root)
	for name, spoil := range map[string]func(r *launcher.Request){
		"output that cannot be made": func(r *launcher.Request) { r.Stdout = "/proc/no/such/file" },
		"an impossible setting": func(r *launcher.Request) {
			r.Proposal.Cgroup = &containerv1.CgroupResources{MemoryLimitBytes: i64(1 << 30), Files: map[string]string{"memory/memory.nothing": "1", "memory.nothing": "1"}}
		},
		"a namespace that is not there": func(r *launcher.Request) {
			r.Proposal.Namespaces = []*containerv1.Namespace{{Type: containerv1.Namespace_NETWORK, Path: "/proc/self/no"}}
		},
	} {
		r := e.Beside(h, root, "true")
		spoil(r)
		if n, err := l.Create(Context(t), r); err == nil {
			t.Errorf("Create with %s = nil", name)
			_ = n.Destroy(Context(t))
		}
		if _, err := os.Lstat(r.RunDir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: run folder is left: %v", name, err)
		}
		if !alive(h.Pid()) {
			t.Fatalf("%s: the first one is dead", name)
		}
		if err := h.Signal(Context(t), syscall.SIGCONT); err != nil {
			t.Errorf("%s: Signal to the first = %v", name, err)
		}
	}
	missing := e.Beside(h, root, "/no/such/program")
	n, err := l.Create(Context(t), missing)
	if err == nil {
		err = n.Start(Context(t))
		if derr := n.Destroy(Context(t)); derr != nil {
			t.Error(derr)
		}
	}
	if err == nil || !alive(h.Pid()) {
		t.Errorf("a missing program: %v, the first lives: %v", err, alive(h.Pid()))
	}
	if _, out := Run(t, l, e.Beside(h, root, "echo", "fine")); out != "fine\n" {
		t.Errorf("after all that, one more says %q", out)
	}
}

func neverStartedBeside(t *testing.T, e *Env, l launcher.Launcher) {
	root := e.Request("sleep", "1000")
	h := Start(t, l, root)
	n, err := l.Create(Context(t), e.Beside(h, root, "sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	n.(detacher).Detach()
	Eventually(t, "a held process ends with its client", func() bool { return !alive(n.Pid()) })
	if again, err := l.Reattach(Context(t), n.State()); err == nil { // the shim is about to forget it
		if s, known, err := again.Wait(Context(t)); err != nil || known && syscall.WaitStatus(s).Signal() != syscall.SIGKILL {
			t.Errorf("Wait = %#x, %v, %v, want death by SIGKILL", s, known, err)
		}
		if err := again.Destroy(Context(t)); err != nil {
			t.Error(err)
		}
	} else if !errors.Is(err, launcher.ErrGone) {
		t.Errorf("Reattach = %v, want ErrGone", err)
	}
	if !alive(h.Pid()) {
		t.Error("the first one ended with it")
	}
}

func killedWithoutACgroup(t *testing.T, e *Env, l launcher.Launcher) {
	root := e.Request("sleep", "1000")
	h := Start(t, l, root)
	r := e.Beside(h, root, "sh", "-c", "sleep 1000 & (setsid sleep 1000 & sleep 1000) & echo up; sleep 1000")
	r.Container.Cgroup, r.Within = "", ""
	n := Start(t, l, r)
	var left []int
	Eventually(t, "its children run", func() bool { left = below(t, n.Pid()); return len(left) >= 4 })
	if err := n.Destroy(Context(t)); err != nil {
		t.Fatal(err)
	}
	for _, pid := range left {
		if alive(pid) {
			t.Errorf("process %d lives after Destroy", pid)
		}
	}
	if !alive(h.Pid()) {
		t.Error("the first one ended with it")
	}
}

func limitsBeside(t *testing.T, e *Env, l launcher.Launcher) {
	root := e.Request("sh", "-c", "sleep 1000 & sleep 1000; true")
	root.Proposal.Cgroup = &containerv1.CgroupResources{MemoryLimitBytes: i64(256 << 20), PidsLimit: i64(200)}
	h := Start(t, l, root)
	Eventually(t, "it is up", func() bool { return len(Members(t, e, root)) == 3 })
	shares := Start(t, l, e.Beside(h, root, "sleep", "1000"))
	limited := e.Beside(h, root, "sleep", "1000")
	limited.Proposal.Cgroup = &containerv1.CgroupResources{MemoryLimitBytes: i64(32 << 20), PidsLimit: i64(20), CpuShares: u64(512)}
	n := Start(t, l, limited)
	files := map[string]string{"memory/memory.limit_in_bytes": "33554432", "pids/pids.max": "20", "cpu/cpu.shares": "512"}
	outer := map[string]string{"memory/memory.limit_in_bytes": "268435456", "pids/pids.max": "200"}
	if e.Cgroups.Version() == 2 {
		files = map[string]string{"/memory.max": "33554432", "/pids.max": "20", "/cpu.weight": "59"}
		outer = map[string]string{"/memory.max": "268435456", "/pids.max": "200"}
	}
	check := func(h launcher.Handle, want map[string]string) {
		t.Helper()
		for name, v := range want {
			c, file, _ := strings.Cut(name, "/")
			if b, err := os.ReadFile(filepath.Join(h.Cgroups()[c], file)); err != nil || strings.TrimSpace(string(b)) != v {
				t.Errorf("%s = %q (%v), want %s", name, b, err, v)
			}
		}
	}
	check(n, files)
	check(h, outer)
	if err := n.Update(Context(t), &containerv1.CgroupResources{PidsLimit: i64(30)}); err != nil {
		t.Fatal(err)
	}
	if err := h.Update(Context(t), &containerv1.CgroupResources{PidsLimit: i64(300)}); err != nil {
		t.Fatal(err)
	}
	hog := e.Beside(h, root, "sh", "-c", "x=$(yes | head -c 150000000); exit 0")
	hog.Proposal.Cgroup = &containerv1.CgroupResources{MemoryLimitBytes: i64(32 << 20), MemorySwapBytes: i64(32 << 20)}
	s, _ := Run(t, l, hog)
	if ws := syscall.WaitStatus(s); !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		t.Errorf("Wait = %#x, want death by SIGKILL at the memory limit", s)
	}
	// After limits below it, one that shares and one below it can still be made; and the first is whole.
	if _, out := Run(t, l, e.Beside(h, root, "echo", "fine")); out != "fine\n" {
		t.Errorf("one that shares the limits says %q", out)
	}
	for _, x := range []launcher.Handle{h, shares, n} {
		if !alive(x.Pid()) {
			t.Errorf("process %d has ended", x.Pid())
		}
	}
	if got := len(Members(t, e, root)); got != 5 {
		t.Errorf("%d processes are in the first one's cgroup and below, want 5", got)
	}
}

// below lists what descends from a process.
func below(t *testing.T, pid int) []int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	parents := map[int]int{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		var child, parent int
		var state string
		_, rest, _ := strings.Cut(string(b), ") ")
		if _, err := fmt.Sscan(rest, &state, &parent); err == nil {
			if _, err := fmt.Sscan(string(b), &child); err == nil && state != "Z" {
				parents[child] = parent
			}
		}
	}
	var list []int
	for p := range parents {
		for q := p; q > 1; q = parents[q] {
			if parents[q] == pid {
				list = append(list, p)
				break
			}
		}
	}
	return list
}

func tooManyForOneShim(t *testing.T, e *Env, l launcher.Launcher) {
	root := e.Request("sleep", "1000")
	h := Start(t, l, root)
	few := unix.Rlimit{Cur: 64, Max: 64}
	if err := unix.Prlimit(ShimOf(t, h), unix.RLIMIT_NOFILE, &few, nil); err != nil {
		t.Fatal(err)
	}
	shared, own := 0, 0
	for range 10 {
		n := Start(t, l, e.Session(h, root, containerv1.Container_ATTACHED, "cat"))
		if ShimOfState(t, n) == "" {
			own++
		} else {
			shared++
		}
		s := Attach(t, n)
		write(t, s, "hello\n")
		ReadUntil(t, s, "hello\n")
	}
	if shared == 0 || own == 0 {
		t.Errorf("%d containers share a shim that may open 64 files, %d have one of their own; want some of both", shared, own)
	}
	if err := h.Signal(Context(t), syscall.SIGCONT); err != nil {
		t.Errorf("Signal to the first = %v", err)
	}
}

func aHundredSessions(t *testing.T, e *Env, l launcher.Launcher) {
	root := e.Request("sleep", "1000")
	h := Start(t, l, root)
	shimPid := ShimOf(t, h)
	session := func(i int, r *launcher.Request) time.Duration {
		ctx := Context(t)
		begin := time.Now()
		n, err := l.Create(ctx, r)
		if err != nil {
			t.Error(err)
			return 0
		}
		defer func() {
			if err := n.Destroy(ctx); err != nil {
				t.Error(err)
			}
		}()
		s, err := n.(launcher.Attacher).Attach(ctx)
		if err == nil {
			defer s.Close()
			err = n.Start(ctx)
		}
		if err != nil {
			t.Error(err)
			return 0
		}
		c, err := s.Read()
		first := time.Since(begin)
		out := string(c.Data)
		for ; err == nil; c, err = s.Read() {
			if out += string(c.Data); strings.Contains(out, "ready") {
				out = strings.ReplaceAll(out, "ready", "")
				if err := s.Write([]byte("go\n")); err != nil {
					t.Error(err)
				}
			}
		}
		if !errors.Is(err, io.EOF) || !strings.Contains(out, fmt.Sprintf("go %d", i)) {
			t.Errorf("session %d says %q, then %v", i, out, err)
		}
		return first
	}
	request := func(i int) *launcher.Request {
		return e.Session(h, root, containerv1.Container_Streams(1+i%2), "sh", "-c", fmt.Sprintf("echo ready; read x; echo $x %d", i))
	}
	session(0, request(0)) // what the first one pays for all
	open := descriptors(t, shimPid)
	before := field(t, fmt.Sprintf("/proc/%d/status", shimPid), "RssAnon")
	var took []time.Duration
	for i := range 20 {
		took = append(took, session(i, request(i)))
	}
	slices.Sort(took)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 10)
	begin, sessions := time.Now(), len(took)
	for i := range 80 {
		slots <- struct{}{}
		if time.Since(begin) > time.Minute { // an emulated machine takes half an hour for all
			<-slots
			break
		}
		sessions++
		r := request(i)
		wg.Go(func() {
			session(i, r)
			<-slots
		})
	}
	wg.Wait()
	Eventually(t, "the shim has as many descriptors open as before", func() bool { return descriptors(t, shimPid) <= open })
	if left := below(t, shimPid); len(left) != 1 {
		t.Errorf("processes %v are left below the shim, want one", left)
	}
	after := field(t, fmt.Sprintf("/proc/%d/status", shimPid), "RssAnon")
	t.Logf("start of a session to its first byte %v (median of 20); memory of the shim %d KiB before, %d KiB after %d", took[10].Round(10*time.Microsecond), before, after, sessions)
	if after > 6<<10 {
		t.Errorf("the shim has grown from %d to %d KiB", before, after)
	}
	if fds := descriptors(t, os.Getpid()); fds > 200 {
		t.Errorf("this process has %d descriptors open", fds)
	}
}

func descriptors(t *testing.T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
