package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"

	"github.com/mosaic-cluster/mosaic/sdk/operator"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
	"github.com/mosaic-cluster/mosaic/sdk/scheduler"
)

// runner is the framework of one `mosaic run`.
type runner struct {
	*runOptions
	client    *scheduler.Client
	framework *mesosv1.FrameworkInfo
	tasks     []*running
	group     *group                 // nil for a single task
	needs     []resources.Quantities // of the tasks, in their order, then of the group's executor
	launched  bool
	agent     string // host:port of the agent's API
	started   time.Time
	tooSmall  int // offers that did not hold enough

	pulling   *pullView        // of the image, once it is seen to be pulled
	pulled    bool             // and there is nothing more to show of it
	connected bool             // our terminal was connected with the task's, and prints its output
	talk      chan error       // of the connection; nil before and after
	endTalk   func()           // ends it
	hangUp    <-chan time.Time // when to do that, once the task has ended
}

// running is a task and how it is.
type running struct {
	info           *mesosv1.TaskInfo
	status         *mesosv1.TaskStatus // newest
	out, err       io.Writer
	stdout, stderr *tail // nil until it is known where they are
}

var errDone = errors.New("done")

func (o *runOptions) run(ctx context.Context) (int, error) {
	if err := o.check(); err != nil {
		return 0, err
	}
	r := &runner{runOptions: o, started: time.Now()}
	if err := r.prepare(); err != nil {
		return 0, err
	}
	name, failover := runFrameworkName, 0.0
	if o.detach {
		failover = detachedFailover.Seconds()
	}
	checkpoint := true
	r.framework = &mesosv1.FrameworkInfo{
		Name: &name, User: &o.user, Roles: []string{o.role}, FailoverTimeout: &failover, Checkpoint: &checkpoint,
		Capabilities: []*mesosv1.FrameworkInfo_Capability{
			{Type: mesosv1.FrameworkInfo_Capability_MULTI_ROLE.Enum()},
			{Type: mesosv1.FrameworkInfo_Capability_PARTITION_AWARE.Enum()},
			{Type: mesosv1.FrameworkInfo_Capability_RESERVATION_REFINEMENT.Enum()},
			{Type: mesosv1.FrameworkInfo_Capability_TASK_KILLING_STATE.Enum()},
		},
	}
	if r.wantsGPUs() { // machines with some are offered to nobody else
		r.framework.Capabilities = append(r.framework.Capabilities, &mesosv1.FrameworkInfo_Capability{Type: mesosv1.FrameworkInfo_Capability_GPU_RESOURCES.Enum()})
	}
	if o.detach { // nobody comes back to end it
		r.framework.Labels = &mesosv1.Labels{Labels: []*mesosv1.Label{{Key: new("mosaic.ends"), Value: new("with_its_tasks")}}}
	}
	r.client = scheduler.New(scheduler.Config{
		Master: o.master, GiveUpAfter: 3 * time.Second, Logger: slog.New(slog.DiscardHandler), Framework: r.framework.CloneVT(),
	})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	events := make(chan *schedulerv1.Event)
	ended := make(chan error, 1)
	go func() {
		ended <- r.client.Run(ctx, func(ctx context.Context, e *schedulerv1.Event) error {
			select {
			case events <- e:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	err := r.loop(ctx, events, ended)
	if r.talk != nil { // the terminal is put right before anything is said
		r.endTalk()
		_ = <-r.talk // the run is over, whatever it says
	}
	if !errors.Is(err, errDone) {
		return 0, hint(err, o.master, "master")
	}
	if o.detach && !r.all((*running).ended) {
		if o.printed {
			return 0, r.printTasks(ctx)
		}
		for _, t := range r.tasks {
			fmt.Fprintln(o.out, t.info.GetTaskId().GetValue())
		}
		return 0, nil
	}
	// The framework has served its purpose; leaving without a word would only leave it to time out.
	_ = r.client.Teardown(ctx)
	return r.exitCode(), nil
}

// printTasks prints the tasks that stay, as the master knows them.
func (r *runner) printTasks(ctx context.Context) error {
	c, err := readCluster(ctx, r.master)
	if err != nil {
		return err
	}
	var rows []taskRow
	for _, t := range r.tasks {
		found, err := c.findTask(t.info.GetTaskId().GetValue(), r.client.FrameworkID().GetValue())
		if err != nil {
			return err
		}
		rows = append(rows, newTaskRow(c, found))
	}
	return printRows(r.out, r.format, rows, taskColumns)
}

// prepare makes the tasks.
func (r *runner) prepare() error {
	if r.file == "" {
		task, err := r.task()
		if err != nil {
			return err
		}
		r.tasks = []*running{{info: task, out: r.out, err: r.err}}
		r.needs = []resources.Quantities{r.resources()}
		return nil
	}
	g, err := readGroup(r.file, r.resources(), r.user)
	if err != nil {
		return err
	}
	r.group, r.needs = g, append(slices.Clone(g.needs), g.own)
	width := 0
	for _, t := range g.tasks {
		width = max(width, utf8.RuneCountInString(t.GetName()))
	}
	lock := &sync.Mutex{}
	for _, t := range g.tasks {
		prefix := fmt.Sprintf("%-*s | ", width, t.GetName())
		r.tasks = append(r.tasks, &running{
			info: t, out: &prefixed{mu: lock, w: r.out, prefix: prefix}, err: &prefixed{mu: lock, w: r.err, prefix: prefix},
		})
	}
	return nil
}

// ended says whether a task has ended for good.
func (t *running) ended() bool { return t.status != nil && terminal(t.status.GetState()) }

// ran says whether a task runs, or has.
func (t *running) ran() bool {
	return t.ended() || t.status != nil && t.status.GetState() == mesosv1.TaskState_TASK_RUNNING
}

// all says whether something holds for all tasks.
func (r *runner) all(holds func(*running) bool) bool {
	return !slices.ContainsFunc(r.tasks, func(t *running) bool { return !holds(t) })
}

// total is what an offer must hold.
func (r *runner) total() resources.Quantities {
	sum := resources.Quantities{}
	for _, n := range r.needs {
		sum = sum.Add(n)
	}
	return sum
}

// wantsGPUs says whether any task, or the executor of a group, needs a GPU, or a part of one.
func (r *runner) wantsGPUs() bool {
	return slices.ContainsFunc(r.needs, func(need resources.Quantities) bool {
		for name, v := range need {
			if v > 0 && (name == "gpus" || strings.HasPrefix(name, "mig-")) {
				return true
			}
		}
		return false
	})
}

// loop handles events, signals and time until the task has ended, or runs detached.
func (r *runner) loop(ctx context.Context, events <-chan *schedulerv1.Event, ended <-chan error) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	interrupted := false
	poll := time.NewTicker(100 * time.Millisecond)
	defer poll.Stop()
	said := false
	for {
		select {
		case err := <-ended:
			return err
		case e := <-events:
			if err := r.event(ctx, e); err != nil {
				return err
			}
		case err := <-r.talk:
			if err := r.talked(ctx, err); err != nil {
				return err
			}
		case <-r.hangUp:
			r.endTalk()
		case <-signals:
			if interrupted || !r.launched {
				_ = r.client.Teardown(ctx)
				return errors.New("interrupted")
			}
			interrupted = true
			if err := r.kill(ctx); err != nil {
				return err
			}
		case <-poll.C:
			waited := time.Since(r.started)
			if !r.launched && !said && waited > 3*time.Second {
				said = true
				fmt.Fprintln(r.err, "mosaic:", r.waiting(ctx))
			}
			if !r.launched && r.waitFor > 0 && waited > r.waitFor {
				why := r.waiting(ctx)
				_ = r.client.Teardown(ctx)
				return fmt.Errorf("gave up after %s: %s", r.waitFor, why)
			}
			r.showPull(ctx)
			if err := r.pull(ctx); err != nil {
				return err
			}
		}
	}
}

// kill kills the tasks that have not ended.
func (r *runner) kill(ctx context.Context) error {
	for _, t := range r.tasks {
		if t.ended() {
			continue
		}
		if err := r.client.Kill(ctx, t.info.GetTaskId(), t.info.GetAgentId()); err != nil {
			return fmt.Errorf("kill task %s: %w", t.info.GetTaskId().GetValue(), err)
		}
	}
	return nil
}

// explainTimeout bounds the question why there is no offer: meanwhile none is taken.
const explainTimeout = 2 * time.Second

// waiting says what the task waits for, and why, if the master can tell.
func (r *runner) waiting(ctx context.Context) string {
	text := fmt.Sprintf("waiting for an offer of %s in role %s", amountsText(r.total()), r.role)
	if len(r.publish) > 0 {
		text += " with the ports to publish"
	}
	ctx, cancel := context.WithTimeout(ctx, explainTimeout)
	defer cancel()
	named, ports := r.portsToPublish()
	q := operator.Question{Framework: r.client.FrameworkID().GetValue(), Role: r.role, Need: amountsText(r.total()) + named, Ports: ports, Examples: 1}
	if why := whyWaiting(ctx, r.master, q); why != "" {
		return text + ": " + why
	}
	if r.tooSmall > 0 {
		return fmt.Sprintf("%s: %d offers held less", text, r.tooSmall)
	}
	return text + "; 'mosaic node ls' shows what is free"
}

// portsToPublish are the host ports that the task publishes: those it names, as a part of a need, and how many others.
func (r *runner) portsToPublish() (named string, others int) {
	mappings, err := r.published()
	if err != nil {
		return "", 0 // it was said when the flags were read
	}
	var ranges []resources.Range
	for _, m := range mappings {
		if m.HostPort == nil {
			others++
			continue
		}
		ranges = append(ranges, resources.Range{Begin: uint64(m.GetHostPort()), End: uint64(m.GetHostPort())})
	}
	if len(ranges) > 0 {
		named = ";ports:" + resources.NewRanges(ranges...).String()
	}
	return named, others
}

func (r *runner) event(ctx context.Context, e *schedulerv1.Event) error {
	switch e.GetType() {
	case schedulerv1.Event_OFFERS:
		return r.offers(ctx, e.GetOffers().GetOffers())
	case schedulerv1.Event_UPDATE:
		return r.update(ctx, e.GetUpdate().GetStatus())
	}
	return nil
}

func (r *runner) offers(ctx context.Context, offers []*mesosv1.Offer) error {
	var rest []*mesosv1.OfferID
	for _, offer := range offers {
		parts, ok := divide(offer.GetResources(), r.needs)
		if r.launched || !ok || !r.addPorts(parts, offer) {
			if !r.launched {
				r.tooSmall++
			}
			rest = append(rest, offer.GetId())
			continue
		}
		if err := r.launch(ctx, offer, parts); err != nil {
			return err
		}
	}
	if len(rest) == 0 {
		return nil
	}
	if err := r.client.Decline(ctx, rest, 5*time.Second); err != nil {
		return fmt.Errorf("decline offers: %w", err)
	}
	return nil
}

// launch uses an offer; parts are of it, as r.needs.
func (r *runner) launch(ctx context.Context, offer *mesosv1.Offer, parts [][]*mesosv1.Resource) error {
	r.launched = true
	for i, t := range r.tasks {
		t.info.AgentId, t.info.Resources = offer.GetAgentId(), parts[i]
	}
	host, port := offer.GetUrl().GetAddress().GetHostname(), offer.GetUrl().GetAddress().GetPort()
	if ip := offer.GetUrl().GetAddress().GetIp(); ip != "" {
		host = ip
	}
	if host == "" {
		host = offer.GetHostname()
	}
	r.agent = net.JoinHostPort(host, strconv.Itoa(int(port)))
	op := &mesosv1.Offer_Operation{Type: mesosv1.Offer_Operation_LAUNCH.Enum(), Launch: &mesosv1.Offer_Operation_Launch{}}
	for _, t := range r.tasks {
		op.Launch.TaskInfos = append(op.Launch.TaskInfos, t.info)
	}
	if r.group != nil {
		r.group.executor.FrameworkId, r.group.executor.Resources = r.client.FrameworkID(), parts[len(parts)-1]
		op = &mesosv1.Offer_Operation{Type: mesosv1.Offer_Operation_LAUNCH_GROUP.Enum(), LaunchGroup: &mesosv1.Offer_Operation_LaunchGroup{
			Executor: r.group.executor, TaskGroup: &mesosv1.TaskGroupInfo{Tasks: r.group.tasks},
		}}
	}
	if err := r.client.Accept(ctx, []*mesosv1.OfferID{offer.GetId()}, []*mesosv1.Offer_Operation{op}, 0); err != nil {
		return fmt.Errorf("launch the task: %w", err)
	}
	if err := r.client.Suppress(ctx); err != nil {
		return fmt.Errorf("stop further offers: %w", err)
	}
	return nil
}

// divide takes what each of several needs out of one offer; false if it does not hold all.
func divide(offered []*mesosv1.Resource, needs []resources.Quantities) (parts [][]*mesosv1.Resource, ok bool) {
	var left []*mesosv1.Resource
	for _, res := range offered {
		left = append(left, res.CloneVT())
	}
	for _, need := range needs {
		part, ok := take(left, need)
		if !ok {
			return nil, false
		}
		parts = append(parts, part)
	}
	return parts, true
}

// take moves amounts out of offered scalars; false if they are not all there. Revocable ones are left alone.
func take(offered []*mesosv1.Resource, want resources.Quantities) ([]*mesosv1.Resource, bool) {
	var taken []*mesosv1.Resource
	for _, name := range want.Names() {
		need := want[name]
		for _, res := range offered {
			if need <= 0 {
				break
			}
			if res.GetName() != name || res.GetType() != mesosv1.Value_SCALAR || res.Revocable != nil || res.Disk != nil || res.GetScalar().GetValue() <= 0 {
				continue
			}
			amount := min(need, res.GetScalar().GetValue())
			part := res.CloneVT()
			part.Scalar = &mesosv1.Value_Scalar{Value: &amount}
			taken = append(taken, part)
			need -= amount
			rest := math.Round((res.GetScalar().GetValue()-amount)*1000) / 1000 // as masters count
			res.Scalar = &mesosv1.Value_Scalar{Value: &rest}
		}
		if need > 1e-6 {
			return nil, false
		}
	}
	return taken, true
}

func (r *runner) update(ctx context.Context, status *mesosv1.TaskStatus) error {
	i := slices.IndexFunc(r.tasks, func(t *running) bool { return t.info.GetTaskId().GetValue() == status.GetTaskId().GetValue() })
	if i < 0 {
		return nil
	}
	t := r.tasks[i]
	t.status = status
	if r.verbose {
		fmt.Fprintln(r.err, "mosaic:", t.describe())
	}
	r.endPull(ctx)
	r.findOutput(t)
	r.begin(ctx, t)
	if t.ended() {
		if err := r.acknowledge(ctx, status); err != nil {
			return err
		}
		if r.talk != nil {
			r.hangUp = time.After(farewell) // its last words are still on their way
			return nil
		}
		if err := r.pullLast(ctx, t); err != nil {
			return err
		}
		if r.all((*running).ended) {
			return errDone
		}
	}
	if r.detach && r.all((*running).ran) {
		if err := r.acknowledge(ctx, status); err != nil {
			return err
		}
		return errDone
	}
	return nil
}

// findOutput says where a task's output is, once its container is known. A task by itself is in the sandbox of its
// executor, whose name is the task's.
func (r *runner) findOutput(t *running) {
	if t.stdout != nil || r.group != nil && t.status.GetContainerStatus().GetContainerId().GetParent() == nil {
		return
	}
	task := &mesosv1.Task{TaskId: t.info.GetTaskId(), FrameworkId: r.client.FrameworkID(), Statuses: []*mesosv1.TaskStatus{t.status}}
	if r.group != nil {
		task.ExecutorId = r.group.executor.GetExecutorId()
	}
	agent := operator.NewAgent(r.agent)
	t.stdout, t.stderr = newTail(agent, sandboxFile(task, "stdout"), t.out), newTail(agent, sandboxFile(task, "stderr"), t.err)
}

// acknowledge is sent here for the last update: leaving ends the client before it would do it itself.
func (r *runner) acknowledge(ctx context.Context, status *mesosv1.TaskStatus) error {
	if len(status.GetUuid()) == 0 {
		return nil
	}
	if err := r.client.Acknowledge(ctx, status); err != nil {
		return fmt.Errorf("acknowledge %s: %w", status.GetState(), err)
	}
	return nil
}

// pull copies new output. An agent that cannot be reached for a moment is no reason to give up the task.
func (r *runner) pull(ctx context.Context) error {
	for _, t := range r.tasks {
		if err := r.pullOne(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

func (r *runner) pullOne(ctx context.Context, t *running) error {
	if r.detach || r.connected || t.stdout == nil {
		return nil
	}
	for _, from := range []*tail{t.stdout, t.stderr} {
		ctx, cancel := context.WithTimeout(ctx, toolTimeout)
		err := from.pull(ctx)
		cancel()
		var op *net.OpError
		if errors.As(err, &op) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read the task's output from agent %s: %w", r.agent, err)
		}
	}
	return nil
}

// pullLast copies the last output of a task that has ended.
func (r *runner) pullLast(ctx context.Context, t *running) error {
	if err := r.pullOne(ctx, t); err != nil {
		return err
	}
	for _, w := range []io.Writer{t.out, t.err} {
		if p, ok := w.(*prefixed); ok {
			if err := p.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

var (
	exitedRE    = regexp.MustCompile(`exited with status (\d+)`)
	launchingRE = regexp.MustCompile(`^launch container \S+: `)
	signaledRE  = regexp.MustCompile(`terminated with signal (.+)$`)
)

// describe says in one line how the task is.
func (t *running) describe() string {
	text := fmt.Sprintf("task %s: %s", t.info.GetTaskId().GetValue(), t.status.GetState())
	if t.status.Reason != nil {
		text += ", " + t.status.GetReason().String()
	}
	// What follows the first line is for logs: statistics of memory, mostly.
	if m, _, _ := strings.Cut(t.status.GetMessage(), "\n"); m != "" {
		text += ": " + launchingRE.ReplaceAllString(m, "") // whose container it was going to be tells nobody anything
	}
	return text
}

// exitCode is the task's, as far as its last status tells, and says what else there is to say. Of several tasks it is
// that of the first that was not merely killed, for the others of its group are when one fails.
func (r *runner) exitCode() int {
	failed, killed := 0, 0
	for _, t := range r.tasks {
		code, exited := t.exitCode()
		if !r.verbose && code != 0 && (!exited || r.group != nil) {
			fmt.Fprintln(r.err, "mosaic:", t.describe())
			if hint := r.imageHint(t.status.GetMessage()); hint != "" {
				fmt.Fprintln(r.err, "mosaic:", hint)
			}
		}
		if t.status.GetState() == mesosv1.TaskState_TASK_KILLED {
			killed = cmp.Or(killed, code)
		} else {
			failed = cmp.Or(failed, code)
		}
	}
	return cmp.Or(failed, killed)
}

// exitCode is what the last status of a task says; exited is whether it is the command's own.
func (t *running) exitCode() (code int, exited bool) {
	state, message := t.status.GetState(), t.status.GetMessage()
	if state == mesosv1.TaskState_TASK_FINISHED {
		return 0, true
	}
	if m := exitedRE.FindStringSubmatch(message); m != nil {
		if code, err := strconv.Atoi(m[1]); err == nil && code > 0 && code < 256 {
			return code, true
		}
	}
	if m := signaledRE.FindStringSubmatch(message); m != nil {
		if n := signalNumber(m[1]); n > 0 {
			return 128 + n, false
		}
	}
	switch {
	case t.status.GetReason() == mesosv1.TaskStatus_REASON_CONTAINER_LAUNCH_FAILED:
		return exitRun, false
	case t.status.GetReason() == mesosv1.TaskStatus_REASON_CONTAINER_LIMITATION_MEMORY:
		return 128 + int(syscall.SIGKILL), false
	case state == mesosv1.TaskState_TASK_KILLED:
		return 128 + int(syscall.SIGTERM), false
	}
	return exitFailed, false
}

// signalNumber finds a signal by its description, as strsignal(3) writes it; 0 if there is none.
func signalNumber(text string) int {
	for n := 1; n < 65; n++ {
		if strings.EqualFold(syscall.Signal(n).String(), text) {
			return n
		}
	}
	return 0
}
