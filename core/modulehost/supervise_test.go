package modulehost

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

func TestAKilledModuleIsUsableAgainAtOnceAndTwentyTimesInARow(t *testing.T) {
	containers := &fakeContainers{records: records(3)}
	h := startHost(t, Options{Containers: containers}, testConfig("good"))
	var slowest time.Duration
	before := mustPrepare(t, h, "c")["PID"]
	for n := range 20 {
		pid := h.Status()[0].PID
		began := time.Now()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatalf("kill %d: %v", pid, err)
		}
		eventually(t, "another process answers", func() bool { return h.Status()[0].PID != pid && h.Status()[0].State == StateUp })
		env := mustPrepare(t, h, fmt.Sprint("c", n))
		took := time.Since(began)
		slowest = max(slowest, took)
		if env["PID"] == before {
			t.Fatalf("Prepare was answered by the process %s that was killed", before)
		}
		before = env["PID"]
		if env["RECOVERED"] != "c0000,c0001,c0002" {
			t.Fatalf("Recover after restart told %q, want the three containers", env["RECOVERED"])
		}
	}
	t.Logf("slowest of 20: killed to usable again in %s", slowest)
	// Ten times the goal of a quiet machine: this one may be busy.
	if slowest > 2*time.Second {
		t.Errorf("killed to usable again took %s", slowest)
	}
	if got := h.Status()[0].Restarts; got != 20 {
		t.Errorf("Status().Restarts = %d, want 20", got)
	}
}

func TestACallInFlightWhenTheModuleDiesIsSentAgainToTheNext(t *testing.T) {
	h := startHost(t, Options{}, testConfig("good"))
	first := mustPrepare(t, h, "c")["PID"]
	done := make(chan error, 1)
	pid := h.Status()[0].PID
	go func() {
		_, err := h.Isolators()[0].Prepare(t.Context(), prepareRequest("hang-first"))
		done <- err
	}()
	// The request may be on its way or not yet sent: both must end well.
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("Prepare across a restart: %v", err)
	}
	if second := mustPrepare(t, h, "c")["PID"]; second == first {
		t.Errorf("the killed process %s still answers", first)
	}
}

func TestACallWaitsForAModuleThatIsDownAndThenFailsWithItsName(t *testing.T) {
	c := testConfig("exits")
	h := startHost(t, Options{}, c)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := h.Isolators()[0].Prepare(ctx, prepareRequest("c"))
	if status.Code(err) != codes.Unavailable {
		t.Errorf("Prepare on a module that is down = %v, want UNAVAILABLE", err)
	}
	for _, want := range []string{"isolator(test): Prepare: ", "exit status 3", "no such device"} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("Prepare on a module that is down = %v, want it to say %q", err, want)
		}
	}
	reasons := h.Degraded()
	if len(reasons) != 1 || !strings.Contains(reasons[0], "isolator(test)") || !strings.Contains(reasons[0], "no such device") {
		t.Errorf("Degraded() = %q, want the module and what it wrote", reasons)
	}
}

func TestAnOptionalModuleThatIsDownDoesNotDegrade(t *testing.T) {
	c := testConfig("exits")
	c.Required = false
	h := startHost(t, Options{}, c)
	if reasons := h.Degraded(); len(reasons) != 0 {
		t.Errorf("Degraded() = %q, want none", reasons)
	}
}

func TestRecoverIsSentInPages(t *testing.T) {
	containers := &fakeContainers{records: records(1201)}
	h := startHost(t, Options{Containers: containers}, testConfig("good"))
	env := mustPrepare(t, h, "c")
	if env["PAGES"] != "[500 500 201]" {
		t.Errorf("Recover came in pages of %s, want [500 500 201]", env["PAGES"])
	}
}

func TestPagesOfRecoverStayBelowTheirSize(t *testing.T) {
	list := records(40)
	for _, r := range list {
		r.State = make([]byte, 60<<10)
	}
	total := 0
	for _, page := range recoverPages(list) {
		size := 0
		for _, r := range page {
			size += len(r.GetState())
		}
		if size > pageBytes {
			t.Errorf("a page of %d containers has %d bytes of state, want at most %d", len(page), size, pageBytes)
		}
		total += len(page)
	}
	if total != len(list) {
		t.Errorf("pages hold %d containers, want %d", total, len(list))
	}
}

func TestContainersAttachedLaterAreTold(t *testing.T) {
	h := startHost(t, Options{}, testConfig("good"))
	if env := mustPrepare(t, h, "c"); env["RECOVERED"] != "" {
		t.Errorf("Recover before Attach told %q", env["RECOVERED"])
	}
	if err := h.Attach(t.Context(), &fakeContainers{records: records(2)}); err != nil {
		t.Fatalf("Attach: %v", err)
	}
	if env := mustPrepare(t, h, "c"); env["RECOVERED"] != "c0000,c0001" {
		t.Errorf("Recover after Attach told %q, want both containers", env["RECOVERED"])
	}
}

func TestLimitationsReachTheContainersAndInventedReasonsDoNot(t *testing.T) {
	containers := &fakeContainers{}
	h := startHost(t, Options{Containers: containers}, testConfig("good"))
	request := &isolatorv1.IsolateRequest{OperationId: "op", Record: &isolatorv1.ContainerRecord{Container: prepareRequest("limit").GetContainer()}}
	if _, err := h.Isolators()[0].Isolate(t.Context(), request); err != nil {
		t.Fatalf("Isolate: %v", err)
	}
	mustPrepare(t, h, "metrics") // comes behind both limitations on the same stream
	eventually(t, "the limitation is told", func() bool { return len(containers.limitations()) > 0 })
	got := containers.limitations()
	if len(got) != 1 || got[0].GetContainerId() != "limit" || got[0].GetReason() != "REASON_CONTAINER_LIMITATION_MEMORY" {
		t.Errorf("Limited was told %v, want the one with a known reason", got)
	}
}

func TestAModuleMayAskWhatLives(t *testing.T) {
	containers := &fakeContainers{records: records(1100)}
	startHost(t, Options{Containers: containers}, testConfig("asks"))
	eventually(t, "the module reports what it was told", func() bool { return len(containers.limitations()) > 0 })
	if got := containers.limitations()[0].GetMessage(); got != "1100 in 3 pages" {
		t.Errorf("the module was told %s, want 1100 in 3 pages", got)
	}
}

func TestAModuleThatReportsFailureGetsNoLaunches(t *testing.T) {
	h := startHost(t, Options{}, testConfig("good"))
	mustPrepare(t, h, "health-failed")
	eventually(t, "the failure is seen", func() bool { return h.Status()[0].State == StateFailed })
	_, err := h.Isolators()[0].Prepare(t.Context(), prepareRequest("c"))
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "the card fell off") {
		t.Errorf("Prepare = %v, want FAILED_PRECONDITION with the reason", err)
	}
	r := &isolatorv1.CleanupRequest{Record: &isolatorv1.ContainerRecord{Container: prepareRequest("c").GetContainer()}}
	if _, err := h.Isolators()[0].Cleanup(t.Context(), r); err != nil {
		t.Errorf("Cleanup on a failed module: %v", err)
	}
	if reasons := h.Degraded(); len(reasons) != 1 || !strings.Contains(reasons[0], "the card fell off") {
		t.Errorf("Degraded() = %q, want the reason", reasons)
	}
}

func TestProgressMovesTheDeadlineOfAPrepare(t *testing.T) {
	c := testConfig("good")
	c.Timeouts = map[string]time.Duration{"prepare": 250 * time.Millisecond}
	h := startHost(t, Options{}, c)
	// Takes 500 ms, and says each 100 ms that it needs 400 more.
	if _, err := h.Isolators()[0].Prepare(t.Context(), prepareRequest("slow-with-progress")); err != nil {
		t.Errorf("Prepare with progress: %v", err)
	}
}

func TestProgressCannotMoveADeadlineForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var table progressTable
		began := time.Now()
		ctx, end := table.begin(t.Context(), "op", 10*time.Second)
		defer end()
		stop := make(chan struct{})
		go func() {
			defer close(stop)
			for ctx.Err() == nil {
				table.extend("op", time.Hour)
				table.extend("unknown", time.Hour)
				time.Sleep(time.Second)
			}
		}()
		<-ctx.Done()
		if took := time.Since(began); took != 50*time.Second {
			t.Errorf("the call ended after %s, want five times its deadline, 50s", took)
		}
		<-stop
	})
}

func TestOneCallAtATimeIsInFlightForAContainer(t *testing.T) {
	var k keyedLock
	unlock, err := k.lock(t.Context(), "c1")
	if err != nil {
		t.Fatalf("lock: %v", err)
	}
	other, err := k.lock(t.Context(), "c2")
	if err != nil {
		t.Fatalf("lock of another container: %v", err)
	}
	other()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := k.lock(ctx, "c1"); status.Code(err) != codes.Aborted {
		t.Errorf("lock of a held container = %v, want ABORTED", err)
	}
	got := make(chan error)
	go func() {
		u, err := k.lock(t.Context(), "c1")
		if err == nil {
			u()
		}
		got <- err
	}()
	unlock()
	if err := <-got; err != nil {
		t.Errorf("lock after unlock: %v", err)
	}
	if len(k.held) != 0 {
		t.Errorf("%d keys are held at the end", len(k.held))
	}
}

func TestSeveralMissedDeadlinesRestartTheModuleOnce(t *testing.T) {
	c := testConfig("good")
	c.Timeouts = map[string]time.Duration{"prepare": 50 * time.Millisecond}
	h := startHost(t, Options{}, c)
	i := h.Isolators()[0]
	pid := h.Status()[0].PID
	for n := range breakerMisses {
		if got := h.Status()[0].PID; got != pid {
			t.Fatalf("the module was restarted after %d missed deadlines, want %d", n, breakerMisses)
		}
		_, err := i.Prepare(t.Context(), prepareRequest("hang"))
		if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "isolator(test): Prepare: no answer within 50ms") {
			t.Fatalf("Prepare that hangs = %v, want DEADLINE_EXCEEDED", err)
		}
	}
	eventually(t, "the module is restarted", func() bool { return h.Status()[0].PID != pid && h.Status()[0].State == StateUp })
	if got := h.Status()[0].Restarts; got != 1 {
		t.Errorf("Status().Restarts = %d, want 1", got)
	}
}

func TestTheBreakerForgetsOldMisses(t *testing.T) {
	var b breaker
	now := time.Now()
	for n := range 20 {
		if b.miss(now.Add(time.Duration(n) * 8 * time.Second)) {
			t.Fatalf("tripped at miss %d, with one each 8 s", n)
		}
	}
	now = now.Add(time.Hour)
	for n := range breakerMisses {
		if got, want := b.miss(now.Add(time.Duration(n)*time.Second)), n == breakerMisses-1; got != want {
			t.Errorf("miss %d within a few seconds: tripped %v, want %v", n, got, want)
		}
	}
}

func TestPausesGrowToThirtySecondsAndAreForgottenAfterAMinuteUp(t *testing.T) {
	var b backoff
	now := time.Now()
	if got := b.next(false, now); got != 0 {
		t.Errorf("first pause = %s, want none", got)
	}
	want := firstBackoff
	for range 12 {
		got := b.next(false, now)
		if got < want*8/10 || got > want*12/10 {
			t.Errorf("pause = %s, want %s or a fifth around it", got, want)
		}
		want = min(2*want, maxBackoff)
	}
	if got := b.next(true, now.Add(steadyAfter+time.Second)); got != 0 {
		t.Errorf("pause after a minute up = %s, want none", got)
	}
}

func TestAModuleThatCrashesWithEveryCallRunsIntoPauses(t *testing.T) {
	var b backoff
	now := time.Now()
	for n := range freeRestarts {
		if got := b.next(true, now); got != 0 {
			t.Fatalf("restart %d of a module that had come up: pause %s, want none", n, got)
		}
	}
	if got := b.next(true, now); got == 0 {
		t.Errorf("restart %d within a minute has no pause", freeRestarts+1)
	}
}

func TestRestartDrainsAndStartsAnew(t *testing.T) {
	h := startHost(t, Options{}, testConfig("good"))
	before := mustPrepare(t, h, "c")["PID"]
	if err := h.Restart(t.Context(), "isolator/test"); err != nil {
		t.Fatalf("Restart: %v", err)
	}
	if after := mustPrepare(t, h, "c")["PID"]; after == before {
		t.Errorf("process %s answers after Restart", after)
	}
	if err := h.Restart(t.Context(), "nobody"); !errors.Is(err, ErrNoModule) {
		t.Errorf("Restart of an unknown module = %v, want ErrNoModule", err)
	}
}

func TestCloseLeavesNothingBehind(t *testing.T) {
	for _, how := range []string{"good", "ignores the end of its input"} {
		h, err := Start(t.Context(), testOptions(t), []ModuleConfig{testConfig(how)})
		if err != nil {
			t.Fatalf("Start: %v", err)
		}
		pid, dir := h.Status()[0].PID, h.runDir
		if err := h.Close(t.Context()); err != nil {
			t.Errorf("Close: %v", err)
		}
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("process %d of a module that %s is there after Close: %v", pid, how, err)
		}
		if s := h.Status()[0]; s.State != StateStopped || s.PID != 0 {
			t.Errorf("Status() after Close = %+v", s)
		}
		if exists(dir) {
			t.Errorf("%s is there after Close", dir)
		}
		if err := h.Close(t.Context()); err != nil {
			t.Errorf("Close again: %v", err)
		}
		if _, err := h.Isolators()[0].Prepare(t.Context(), prepareRequest("c")); status.Code(err) != codes.Unavailable {
			t.Errorf("Prepare after Close = %v, want UNAVAILABLE at once", err)
		}
	}
}

func TestASilentModuleCountsAsDegradedByTheTimerAndIsForgivenWhenItBeats(t *testing.T) {
	now := time.Now()
	l := &life{}
	m := &module{state: StateUp, life: l, heartbeat: now, changed: make(chan struct{})}
	m.checkHeartbeat(l, now.Add(heartbeatGrace))
	if m.state != StateUp {
		t.Errorf("state after %s of silence = %s, want up", heartbeatGrace, m.state)
	}
	m.checkHeartbeat(l, now.Add(heartbeatGrace+time.Second))
	if m.state != StateDegraded || m.reason != silentReason {
		t.Errorf("state after more = %s: %s, want degraded", m.state, m.reason)
	}
	m.beat(now.Add(heartbeatGrace + 2*time.Second))
	m.checkHeartbeat(l, now.Add(heartbeatGrace+3*time.Second))
	if m.state != StateUp {
		t.Errorf("state after a beat = %s, want up", m.state)
	}
	m.beat(time.Time{}) // owes none
	m.checkHeartbeat(l, now.Add(time.Hour))
	if m.state != StateUp {
		t.Errorf("state of a module without Watch = %s, want up", m.state)
	}
}

// The files of a version 2 hierarchy, as far as a plain folder can stand for them.
func TestOnCgroupVersion2TheLimitsAndTheKillAreFiles(t *testing.T) {
	c := &cgroups{unified: t.TempDir()}
	g, err := c.make("isolator.test", 64<<20, 0)
	if err != nil || !g.exists() {
		t.Fatalf("make: %v", err)
	}
	folder := filepath.Join(c.unified, "isolator.test")
	for file, want := range map[string]string{"memory.max": "67108864", "pids.max": "max", "cgroup.kill": "1"} {
		data, err := os.ReadFile(filepath.Join(folder, file))
		if err != nil || string(data) != want {
			t.Errorf("%s = %q, %v, want %q", file, data, err, want)
		}
	}
	// A process that does not die, here our own by another name, ends in an error and not in a loop.
	if err := os.WriteFile(filepath.Join(folder, "cgroup.procs"), []byte("0\n"+fmt.Sprint(os.Getpid())+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if pids, err := members(folder); err != nil || len(pids) != 0 {
		t.Errorf("members = %v, %v, want neither 0 nor ourselves", pids, err)
	}
}
