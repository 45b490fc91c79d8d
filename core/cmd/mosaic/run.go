package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"

	"github.com/mosaic-cluster/mosaic/sdk/operator"
	"github.com/mosaic-cluster/mosaic/sdk/scheduler"
)

// runFrameworkName marks the frameworks of `mosaic run`: each has one task, and `mosaic task kill` may end them whole.
const runFrameworkName = "mosaic run"

// detachedFailover is how long a detached task outlives its framework's connection. It never comes back, so this is
// as long as the API's durations reach in round numbers.
const detachedFailover = 100 * 365 * 24 * time.Hour

// runOptions are the flags of `mosaic run`.
type runOptions struct {
	master   string
	image    string
	name     string
	role     string
	user     string
	env      []string
	uris     []string
	cpus     float64
	mem      float64
	disk     float64
	maxCPUs  float64
	maxMem   float64
	detach   bool
	verbose  bool
	shell    bool
	waitFor  time.Duration
	grace    time.Duration
	argv     []string
	out, err io.Writer
}

func newRun() *cobra.Command {
	o := &runOptions{}
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARGUMENT...]",
		Short: "Run a task and show its output",
		Long: `Runs one task on the cluster, shows its output, and exits with its exit code.

Ctrl-C kills the task; a second one gives up waiting for it. With --detach the command returns
once the task runs, and the task stays: 'mosaic task logs' and 'mosaic task kill' deal with it.

Exit codes: the task's own; 128 plus the signal's number if a signal ended it; 125 if it
could not be started.`,
		Example: `  mosaic run -- echo hello
  mosaic run --cpus 0.5 --mem 64 --env WHO=world --shell -- 'echo hello $WHO'
  mosaic run --image ./rootfs -- /bin/sh -c 'ls /'
  mosaic run --detach --name web -- python3 -m http.server 31000`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 && o.image == "" {
				return &exitError{exitUsage, errors.New("what to run is missing: mosaic run -- COMMAND [ARGUMENT...]")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.argv, o.out, o.err = args, cmd.OutOrStdout(), cmd.ErrOrStderr()
			code, err := o.run(context.WithoutCancel(cmd.Context()))
			if err != nil {
				return &exitError{exitRun, err}
			}
			if code != 0 {
				return &exitError{code: code}
			}
			return nil
		},
	}
	masterFlag(cmd, &o.master)
	f := cmd.Flags()
	f.StringVar(&o.image, "image", "", "run in the root filesystem of an image: an OCI layout, an image archive or a folder")
	f.Float64Var(&o.cpus, "cpus", 0.1, "cores to reserve")
	f.Float64Var(&o.mem, "mem", 32, "memory to reserve, in MB")
	f.Float64Var(&o.disk, "disk", 0, "disk to reserve, in MB")
	f.Float64Var(&o.maxCPUs, "max-cpus", 0, "cores it may use beyond its share when they are free (0: as --cpus)")
	f.Float64Var(&o.maxMem, "max-mem", 0, "memory it may use before it is killed, in MB (0: as --mem)")
	f.StringArrayVar(&o.env, "env", nil, "environment variable KEY=VALUE (repeatable; KEY alone passes yours on)")
	f.StringArrayVar(&o.uris, "uri", nil, "file or archive to fetch into the sandbox (repeatable)")
	f.StringVar(&o.name, "name", "", "name of the task")
	f.StringVar(&o.role, "role", "*", "role whose share of the cluster it uses")
	f.StringVar(&o.user, "user", "", "user to run as (default: yours)")
	f.BoolVarP(&o.detach, "detach", "d", false, "return once the task runs; it stays")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "print each state of the task on standard error")
	f.BoolVar(&o.shell, "shell", false, "the command is one line for /bin/sh")
	f.DurationVar(&o.waitFor, "wait", 0, "give up when no machine offered enough for so long (0: wait for ever)")
	f.DurationVar(&o.grace, "grace", 3*time.Second, "time between SIGTERM and SIGKILL when it is killed")
	return cmd
}

// resources are what an offer must hold.
func (o *runOptions) resources() map[string]float64 {
	r := map[string]float64{"cpus": o.cpus, "mem": o.mem}
	if o.disk > 0 {
		r["disk"] = o.disk
	}
	return r
}

func (o *runOptions) check() error {
	if o.cpus <= 0 || o.mem <= 0 {
		return fmt.Errorf("--cpus and --mem: got %v and %v, want more than 0", o.cpus, o.mem)
	}
	if o.maxCPUs != 0 && o.maxCPUs < o.cpus || o.maxMem != 0 && o.maxMem < o.mem {
		return errors.New("--max-cpus and --max-mem may not be below --cpus and --mem")
	}
	if o.shell && len(o.argv) != 1 {
		return fmt.Errorf("--shell takes one argument, the whole line: got %d", len(o.argv))
	}
	if o.user == "" {
		u, err := user.Current()
		if err != nil {
			return fmt.Errorf("look up who you are (set --user): %w", err)
		}
		o.user = u.Username
	}
	return nil
}

// task builds the TaskInfo without agent and resources.
func (o *runOptions) task() (*mesosv1.TaskInfo, error) {
	name := o.name
	if name == "" {
		name = "task"
		if len(o.argv) > 0 && !o.shell {
			name = filepath.Base(o.argv[0])
		}
	}
	id := name + "-" + uuid.NewString()[:8]
	command := &mesosv1.CommandInfo{Shell: &o.shell, User: &o.user}
	if len(o.argv) > 0 {
		command.Value = &o.argv[0]
	}
	if !o.shell {
		command.Arguments = o.argv
	}
	if variables := environment(o.env); len(variables) > 0 {
		command.Environment = &mesosv1.Environment{Variables: variables}
	}
	for _, uri := range o.uris {
		command.Uris = append(command.Uris, &mesosv1.CommandInfo_URI{Value: &uri})
	}
	grace := o.grace.Nanoseconds()
	t := &mesosv1.TaskInfo{
		Name: &name, TaskId: &mesosv1.TaskID{Value: &id}, Command: command,
		KillPolicy: &mesosv1.KillPolicy{GracePeriod: &mesosv1.DurationInfo{Nanoseconds: &grace}},
	}
	if o.maxCPUs > 0 {
		t.Limits = map[string]*mesosv1.Value_Scalar{"cpus": {Value: &o.maxCPUs}}
	}
	if o.maxMem > 0 {
		if t.Limits == nil {
			t.Limits = map[string]*mesosv1.Value_Scalar{}
		}
		t.Limits["mem"] = &mesosv1.Value_Scalar{Value: &o.maxMem}
	}
	if o.image != "" {
		image := o.image
		if _, err := os.Stat(image); err == nil {
			if image, err = filepath.Abs(image); err != nil {
				return nil, err
			}
		} else if strings.HasPrefix(image, "/") || strings.HasPrefix(image, ".") {
			return nil, fmt.Errorf("image: %w", err)
		}
		t.Container = &mesosv1.ContainerInfo{
			Type: mesosv1.ContainerInfo_MESOS.Enum(),
			Mesos: &mesosv1.ContainerInfo_MesosInfo{Image: &mesosv1.Image{
				Type: mesosv1.Image_DOCKER.Enum(), Docker: &mesosv1.Image_Docker{Name: &image},
			}},
		}
	}
	return t, nil
}

// runner is the framework of one `mosaic run`.
type runner struct {
	*runOptions
	client   *scheduler.Client
	task     *mesosv1.TaskInfo
	launched bool
	agent    string // host:port of the agent's API
	stdout   *tail
	stderr   *tail
	status   *mesosv1.TaskStatus // newest
	started  time.Time
	tooSmall int // offers that did not hold enough
}

var errDone = errors.New("done")

func (o *runOptions) run(ctx context.Context) (int, error) {
	if err := o.check(); err != nil {
		return 0, err
	}
	task, err := o.task()
	if err != nil {
		return 0, err
	}
	name, failover := runFrameworkName, 0.0
	if o.detach {
		failover = detachedFailover.Seconds()
	}
	checkpoint := true
	r := &runner{runOptions: o, task: task, started: time.Now()}
	r.client = scheduler.New(scheduler.Config{
		Master: o.master, GiveUpAfter: 3 * time.Second, Logger: slog.New(slog.DiscardHandler),
		Framework: &mesosv1.FrameworkInfo{
			Name: &name, User: &o.user, Roles: []string{o.role}, FailoverTimeout: &failover, Checkpoint: &checkpoint,
			Capabilities: []*mesosv1.FrameworkInfo_Capability{
				{Type: mesosv1.FrameworkInfo_Capability_MULTI_ROLE.Enum()},
				{Type: mesosv1.FrameworkInfo_Capability_PARTITION_AWARE.Enum()},
				{Type: mesosv1.FrameworkInfo_Capability_RESERVATION_REFINEMENT.Enum()},
				{Type: mesosv1.FrameworkInfo_Capability_TASK_KILLING_STATE.Enum()},
			},
		},
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
	err = r.loop(ctx, events, ended)
	if !errors.Is(err, errDone) {
		return 0, hint(err, o.master, "master")
	}
	if o.detach && !terminal(r.status.GetState()) {
		fmt.Fprintln(o.out, r.task.GetTaskId().GetValue())
		return 0, nil
	}
	// The framework has served its purpose; leaving without a word would only leave it to time out.
	_ = r.client.Teardown(ctx)
	return r.exitCode(), nil
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
		case <-signals:
			if interrupted || !r.launched {
				_ = r.client.Teardown(ctx)
				return errors.New("interrupted")
			}
			interrupted = true
			if err := r.client.Kill(ctx, r.task.GetTaskId(), r.task.GetAgentId()); err != nil {
				return fmt.Errorf("kill the task: %w", err)
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
			if err := r.pull(ctx); err != nil {
				return err
			}
		}
	}
}

// explainTimeout bounds the question why there is no offer: meanwhile none is taken.
const explainTimeout = 2 * time.Second

// waiting says what the task waits for, and why, if the master can tell.
func (r *runner) waiting(ctx context.Context) string {
	text := fmt.Sprintf("waiting for an offer of cpus %s and mem %s MB in role %s", number(r.cpus), number(r.mem), r.role)
	ctx, cancel := context.WithTimeout(ctx, explainTimeout)
	defer cancel()
	q := operator.Question{Framework: r.client.FrameworkID().GetValue(), Role: r.role, Need: amountsText(r.resources()), Examples: 1}
	if why := whyWaiting(ctx, r.master, q); why != "" {
		return text + ": " + why
	}
	if r.tooSmall > 0 {
		return fmt.Sprintf("%s: %d offers held less", text, r.tooSmall)
	}
	return text + "; 'mosaic node ls' shows what is free"
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
		resources, ok := take(offer.GetResources(), r.resources())
		if r.launched || !ok {
			if !ok {
				r.tooSmall++
			}
			rest = append(rest, offer.GetId())
			continue
		}
		if err := r.launch(ctx, offer, resources); err != nil {
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

func (r *runner) launch(ctx context.Context, offer *mesosv1.Offer, resources []*mesosv1.Resource) error {
	r.launched = true
	r.task.AgentId = offer.GetAgentId()
	r.task.Resources = resources
	host, port := offer.GetUrl().GetAddress().GetHostname(), offer.GetUrl().GetAddress().GetPort()
	if ip := offer.GetUrl().GetAddress().GetIp(); ip != "" {
		host = ip
	}
	if host == "" {
		host = offer.GetHostname()
	}
	r.agent = net.JoinHostPort(host, strconv.Itoa(int(port)))
	err := r.client.Accept(ctx, []*mesosv1.OfferID{offer.GetId()}, []*mesosv1.Offer_Operation{{
		Type:   mesosv1.Offer_Operation_LAUNCH.Enum(),
		Launch: &mesosv1.Offer_Operation_Launch{TaskInfos: []*mesosv1.TaskInfo{r.task}},
	}}, 0)
	if err != nil {
		return fmt.Errorf("launch the task: %w", err)
	}
	if err := r.client.Suppress(ctx); err != nil {
		return fmt.Errorf("stop further offers: %w", err)
	}
	agent := operator.NewAgent(r.agent)
	t := &mesosv1.Task{TaskId: r.task.GetTaskId(), FrameworkId: r.client.FrameworkID()}
	r.stdout = newTail(agent, sandboxFile(t, "stdout"), r.out)
	r.stderr = newTail(agent, sandboxFile(t, "stderr"), r.err)
	return nil
}

// take picks amounts out of offered scalars; false if they are not all there. Revocable ones are left alone.
func take(offered []*mesosv1.Resource, want map[string]float64) ([]*mesosv1.Resource, bool) {
	var taken []*mesosv1.Resource
	for _, name := range []string{"cpus", "mem", "disk"} {
		need := want[name]
		for _, res := range offered {
			if need <= 0 {
				break
			}
			if res.GetName() != name || res.GetType() != mesosv1.Value_SCALAR || res.Revocable != nil || res.Disk != nil {
				continue
			}
			amount := min(need, res.GetScalar().GetValue())
			part := res.CloneVT()
			part.Scalar = &mesosv1.Value_Scalar{Value: &amount}
			taken = append(taken, part)
			need -= amount
		}
		if need > 1e-6 {
			return nil, false
		}
	}
	return taken, true
}

func (r *runner) update(ctx context.Context, status *mesosv1.TaskStatus) error {
	if status.GetTaskId().GetValue() != r.task.GetTaskId().GetValue() {
		return nil
	}
	r.status = status
	state := status.GetState()
	if r.verbose {
		fmt.Fprintln(r.err, "mosaic:", r.describe())
	}
	switch {
	case terminal(state):
		if err := r.acknowledge(ctx, status); err != nil {
			return err
		}
		if r.detach && state == mesosv1.TaskState_TASK_FINISHED {
			return errDone
		}
		if err := r.pull(ctx); err != nil {
			return err
		}
		return errDone
	case r.detach && state == mesosv1.TaskState_TASK_RUNNING:
		if err := r.acknowledge(ctx, status); err != nil {
			return err
		}
		return errDone
	}
	return nil
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
	if r.detach || r.stdout == nil || r.status == nil {
		return nil
	}
	for _, t := range []*tail{r.stdout, r.stderr} {
		ctx, cancel := context.WithTimeout(ctx, toolTimeout)
		err := t.pull(ctx)
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

var (
	exitedRE   = regexp.MustCompile(`exited with status (\d+)`)
	signaledRE = regexp.MustCompile(`terminated with signal (.+)$`)
)

// describe says in one line how the task is.
func (r *runner) describe() string {
	text := fmt.Sprintf("task %s: %s", r.task.GetTaskId().GetValue(), r.status.GetState())
	if r.status.Reason != nil {
		text += ", " + r.status.GetReason().String()
	}
	// What follows the first line is for logs: statistics of memory, mostly.
	if m, _, _ := strings.Cut(r.status.GetMessage(), "\n"); m != "" {
		text += ": " + m
	}
	return text
}

// exitCode is the task's, as far as its last status tells, and says what else there is to say.
func (r *runner) exitCode() int {
	state, message := r.status.GetState(), r.status.GetMessage()
	if state == mesosv1.TaskState_TASK_FINISHED {
		return 0
	}
	if m := exitedRE.FindStringSubmatch(message); m != nil {
		if code, err := strconv.Atoi(m[1]); err == nil && code > 0 && code < 256 {
			return code
		}
	}
	if !r.verbose {
		fmt.Fprintln(r.err, "mosaic:", r.describe())
	}
	if m := signaledRE.FindStringSubmatch(message); m != nil {
		if n := signalNumber(m[1]); n > 0 {
			return 128 + n
		}
	}
	switch {
	case r.status.GetReason() == mesosv1.TaskStatus_REASON_CONTAINER_LAUNCH_FAILED:
		return exitRun
	case r.status.GetReason() == mesosv1.TaskStatus_REASON_CONTAINER_LIMITATION_MEMORY:
		return 128 + int(syscall.SIGKILL)
	case state == mesosv1.TaskState_TASK_KILLED:
		return 128 + int(syscall.SIGTERM)
	}
	return exitFailed
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
