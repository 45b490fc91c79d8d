package agent

import (
	"context"
	"math"
	"runtime"
	"strings"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// Checks and health checks of command tasks and of those in groups. A health check that fails too often in a row ends the task; a check only
// reports what it found. Each has one timer while it waits, and a goroutine only while it runs (probe.go); the next
// run is set when the one before is over, so that one that hangs harms itself alone.
//
// What a new agent needs to go on is on disk: when checks began and how many failures were counted (progress), and what
// was reported last (updates).

// What runs at once is bounded, by what it costs; one that takes longer than slowCheck waits for the task rather than
// for the processor, and gives its place away.
const (
	networkChecks    = 64
	commandChecksPer = 2 // processor
	slowCheck        = time.Second
)

// minCheckInterval is the shortest time between two runs, for those who ask for none at all.
const minCheckInterval = 100 * time.Millisecond

// maxCheckTime stands for a timeout of 0, which is none, and for times too long to count: nobody waits for a year.
const maxCheckTime = 365 * 24 * time.Hour

// maxPendingReports bounds the updates of a task that may wait for their acknowledgement before results are no longer
// reported. A framework that comes back is told the newest result by the next run.
const maxPendingReports = 100

// checker is the health check, or the check, of one task. Guarded by Agent.mu; what does not change is set by
// checkersOf.
type checker struct {
	task     *task
	health   *mesosv1.HealthCheck // nil: a check
	probe    probe
	delay    time.Duration
	interval time.Duration
	timeout  time.Duration

	timer   *timer
	cancel  context.CancelFunc // of the run under way
	stopped bool
}

// checkGate lets so many run at once and the others wait, first come first served.
type checkGate struct {
	running int
	queue   []*checker
}

// checkersOf reads what checks a task has. They were validated by the master; of what a check still lacks its results
// tell.
func checkersOf(t *task) []*checker {
	var list []*checker
	if !t.builtin() {
		return nil // its executor's business
	}
	if h := t.info.GetHealthCheck(); h != nil {
		list = append(list, &checker{
			task: t, health: h, probe: healthProbe(h),
			delay: checkTime(h.GetDelaySeconds()), interval: checkTime(h.GetIntervalSeconds()), timeout: checkTime(h.GetTimeoutSeconds()),
		})
	}
	if i := t.info.GetCheck(); i != nil {
		list = append(list, &checker{
			task: t, probe: checkProbe(i),
			delay: checkTime(i.GetDelaySeconds()), interval: checkTime(i.GetIntervalSeconds()), timeout: checkTime(i.GetTimeoutSeconds()),
		})
	}
	for _, k := range list {
		k.interval = max(k.interval, minCheckInterval)
		if k.timeout == 0 {
			k.timeout = maxCheckTime
		}
	}
	return list
}

func checkTime(s float64) time.Duration {
	switch {
	case math.IsNaN(s) || s <= 0:
		return 0
	case s >= maxCheckTime.Seconds():
		return maxCheckTime
	}
	return time.Duration(s * float64(time.Second))
}

// beginChecks notes when the checks of a task that just started begin to count, and starts them when that and
// TASK_RUNNING are on disk.
func (a *Agent) beginChecks(c *change, t *task) {
	if t.info.GetHealthCheck() == nil && t.info.GetCheck() == nil {
		return
	}
	if t.checking.IsZero() {
		t.checking = time.Now()
		c.progress(t)
	}
	c.then(func() { a.startChecks(t) })
}

// startChecks sets the first run of each check of a running task: after what is left of its delay. The caller holds
// the lock.
func (a *Agent) startChecks(t *task) {
	if len(t.checkers) > 0 || t.executor.phase != phaseRunning || t.executor.destroying || !t.unharmed() {
		return
	}
	t.checkers = checkersOf(t)
	for _, k := range t.checkers {
		a.setCheck(k, max(0, time.Until(t.checking.Add(k.delay))))
	}
}

// unharmed says whether a task goes on for all we know: of one that is being ended no check is of interest.
func (t *task) unharmed() bool {
	return !terminal(t.state) && t.kill.IsZero() && !t.expired && !t.framework.terminating
}

// stopChecks ends the checks of a task, also those that run. The caller holds the lock.
func (a *Agent) stopChecks(t *task) {
	for _, k := range t.checkers {
		k.stopped = true
		a.timers.stop(k.timer)
		if k.cancel != nil {
			k.cancel()
		}
	}
}

func (a *Agent) setCheck(k *checker, in time.Duration) {
	k.timer = a.timers.after(in, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		gate := &a.networkChecks
		if k.probe.kind == mesosv1.CheckInfo_COMMAND {
			gate = &a.commandChecks
		}
		gate.queue = append(gate.queue, k)
		a.runChecks(gate)
	})
}

// runChecks runs those that wait, while there are places. The caller holds the lock.
func (a *Agent) runChecks(gate *checkGate) {
	width := networkChecks
	if gate == &a.commandChecks {
		width = commandChecksPer * runtime.NumCPU()
	}
	for gate.running < width && len(gate.queue) > 0 {
		k := gate.queue[0]
		gate.queue[0] = nil
		gate.queue = gate.queue[1:]
		if !k.stopped {
			gate.running++
			a.runCheck(gate, k)
		}
	}
}

// runCheck runs k once and sets its next run. The caller holds the lock.
func (a *Agent) runCheck(gate *checkGate, k *checker) {
	left := false
	leave := func() {
		if !left {
			left = true
			gate.running--
			a.runChecks(gate)
		}
	}
	place := a.timers.after(slowCheck, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		leave()
	})
	e := k.task.executor
	ctx, cancel := context.WithTimeout(a.work, k.timeout)
	k.cancel = cancel
	run := k.probe.run
	if k.probe.kind == mesosv1.CheckInfo_COMMAND {
		container := a.commandCheckOf(e, k.probe.command)
		run = func(ctx context.Context, _ int32) result { return a.runCommandCheck(ctx, container) }
	}
	pid := e.pid
	a.spawn(func(work context.Context) {
		defer cancel()
		r := run(ctx, pid)
		if r.err != nil && ctx.Err() == context.DeadlineExceeded {
			r.err = errCheckTimeout(k.timeout)
		}
		a.decide(func(c *change) {
			if !k.stopped && a.work.Err() == nil {
				a.checked(c, k, r)
			}
		})
		if r.discard != nil {
			r.discard(work)
		}
		a.timers.stop(place)
		a.mu.Lock()
		defer a.mu.Unlock()
		k.cancel = nil
		leave()
		if !k.stopped {
			a.setCheck(k, k.interval)
		}
	})
}

// checked takes the result of one run.
func (a *Agent) checked(c *change, k *checker, r result) {
	t := k.task
	if !t.unharmed() {
		return
	}
	if r.err != nil {
		a.log.Debug("check", "task", t.id, "health", k.health != nil, "error", r.err)
	}
	if k.health != nil {
		a.healthChecked(c, t, k.health, r)
		return
	}
	now := r.status(k.probe.kind)
	if t.lastStatus().GetCheckStatus().EqualVT(now) || t.pending() >= maxPendingReports {
		return
	}
	a.update(c, t, &mesosv1.TaskStatus{
		State:       t.state.Enum(),
		Reason:      mesosv1.TaskStatus_REASON_TASK_CHECK_STATUS_UPDATED.Enum(),
		Source:      mesosv1.TaskStatus_SOURCE_EXECUTOR.Enum(),
		CheckStatus: now,
	})
}

// healthChecked reports that a task became healthy, and each failure. Failures before the first success do not count
// while the grace period lasts; as many in a row as the health check says end the task.
func (a *Agent) healthChecked(c *change, t *task, h *mesosv1.HealthCheck, r result) {
	problem := r.problem()
	if problem == "" {
		if t.failures > 0 || !t.passed {
			t.failures, t.passed = 0, true
			c.progress(t)
		}
		if last := t.lastStatus(); last.Healthy == nil || !last.GetHealthy() {
			a.reportHealth(c, t, true, "")
		}
		return
	}
	if grace := checkTime(h.GetGracePeriodSeconds()); !t.passed && grace > 0 && time.Since(t.checking) <= grace {
		return
	}
	t.failures++
	c.progress(t)
	a.reportHealth(c, t, false, problem)
	if t.failures >= uint64(h.GetConsecutiveFailures()) {
		a.log.Info("task is killed, its health check failed", "framework", t.framework.id, "task", t.id, "failures", t.failures, "last", problem)
		t.unhealthy = true
		a.kill(c, t, nil)
	}
}

func (a *Agent) reportHealth(c *change, t *task, healthy bool, problem string) {
	if t.pending() >= maxPendingReports {
		return
	}
	s := &mesosv1.TaskStatus{
		State:   t.state.Enum(),
		Reason:  mesosv1.TaskStatus_REASON_TASK_HEALTH_CHECK_STATUS_UPDATED.Enum(),
		Source:  mesosv1.TaskStatus_SOURCE_EXECUTOR.Enum(),
		Healthy: &healthy,
	}
	if problem != "" {
		s.Message = new("the health check failed: " + strings.ToValidUTF8(problem, "?"))
	}
	a.update(c, t, s)
}

// lastStatus is the newest status of a task, which holds the newest results of its checks.
func (t *task) lastStatus() *mesosv1.TaskStatus {
	if len(t.updates) == 0 {
		return &mesosv1.TaskStatus{}
	}
	return t.updates[len(t.updates)-1].status
}

// carryChecks puts into a new status what the last one says of the task's checks. A check without result is there with
// its type and an empty value. How healthy a task was that has ended is left out, unless it was killed for that.
func (t *task) carryChecks(s *mesosv1.TaskStatus) {
	if !t.builtin() {
		return
	}
	last := t.lastStatus()
	if i := t.info.GetCheck(); i != nil && s.CheckStatus == nil {
		s.CheckStatus = last.GetCheckStatus()
		if s.CheckStatus == nil && s.GetSource() == mesosv1.TaskStatus_SOURCE_EXECUTOR {
			s.CheckStatus = result{}.status(checkProbe(i).kind)
		}
	}
	switch {
	case t.info.GetHealthCheck() == nil || s.Healthy != nil:
	case !terminal(s.GetState()):
		s.Healthy = last.Healthy
	case t.unhealthy && s.GetState() == mesosv1.TaskState_TASK_KILLED:
		s.Healthy = new(false)
	}
}
