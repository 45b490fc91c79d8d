// Program batch-scheduler runs a list of commands on a cluster, each as a task, and tries those that fail again. It is an
// example of a framework: it survives its own restart, the master's, and the loss of agents.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"os/user"
	"strings"
	"syscall"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
	"github.com/mosaic-cluster/mosaic/sdk/scheduler"
)

// Exit codes.
const (
	exitAll     = 0
	exitGivenUp = 1
	exitUsage   = 2
	exitStopped = 3
)

// maxBackoff bounds the pause before a job is tried again.
const maxBackoff = time.Minute

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// batch is the framework. Its methods are called by one goroutine: that of scheduler.Client.Run.
type batch struct {
	*state
	client   *scheduler.Client
	cpus     float64
	mem      float64
	attempts int
	backoff  time.Duration
	quiet    bool // offers are suppressed
	log      *slog.Logger
	out      io.Writer
}

// errDone ends the client's Run when there is nothing left to do.
var errDone = errors.New("all jobs have ended")

func run(ctx context.Context, args []string, out, errs io.Writer) int {
	b := &batch{out: out}
	flags := flag.NewFlagSet("batch-scheduler", flag.ContinueOnError)
	flags.SetOutput(errs)
	masters := flags.String("master", "127.0.0.1:5050", "masters, `host:port`, separated by commas")
	flags.Float64Var(&b.cpus, "cpus", 0.1, "cores of each job")
	flags.Float64Var(&b.mem, "mem", 32, "memory of each job, in MB")
	flags.IntVar(&b.attempts, "attempts", 3, "how often a job may fail before it is given up")
	flags.DurationVar(&b.backoff, "backoff", time.Second, "pause before the second attempt")
	path := flags.String("state", "", "`file` that remembers the framework and its jobs")
	failover := flags.Duration("failover", time.Hour, "how long the cluster keeps the jobs while the scheduler is away")
	name := flags.String("name", "batch", "name of the framework")
	role := flags.String("role", "*", "role of the framework")
	as := flags.String("user", "", "user to run the jobs as (default: yours)")
	if err := flags.Parse(args); err != nil {
		return exitUsage
	}
	if flags.NArg() != 1 || b.attempts < 1 || b.backoff <= 0 {
		fmt.Fprintln(errs, "usage: batch-scheduler [flags] JOBS; --attempts and --backoff are above 0")
		return exitUsage
	}
	if *as == "" {
		if u, err := user.Current(); err == nil {
			*as = u.Username
		}
	}
	if err := b.open(flags.Arg(0), *path); err != nil {
		fmt.Fprintln(errs, "batch-scheduler:", err)
		return exitUsage
	}
	info := &mesosv1.FrameworkInfo{Name: name, User: as, Roles: []string{*role}, Checkpoint: new(true)}
	for _, c := range []mesosv1.FrameworkInfo_Capability_Type{
		mesosv1.FrameworkInfo_Capability_MULTI_ROLE, mesosv1.FrameworkInfo_Capability_RESERVATION_REFINEMENT,
	} {
		info.Capabilities = append(info.Capabilities, &mesosv1.FrameworkInfo_Capability{Type: &c})
	}
	if *path != "" {
		info.FailoverTimeout = new(failover.Seconds())
	}
	b.log = slog.New(slog.NewTextHandler(errs, &slog.HandlerOptions{Level: slog.LevelWarn}))
	config := scheduler.Config{Masters: strings.Split(*masters, ","), Framework: info, Logger: b.log}
	if err := b.follow(ctx, config); err != nil {
		fmt.Fprintln(errs, "batch-scheduler:", err)
		return exitStopped
	}
	fmt.Fprintf(out, "%d finished, %d given up\n", b.count(finished), b.count(givenUp))
	if b.count(givenUp) > 0 {
		return exitGivenUp
	}
	return exitAll
}

func (b *batch) open(jobs, path string) error {
	f, err := os.Open(jobs)
	if err != nil {
		return err
	}
	defer f.Close()
	list, err := readJobs(f)
	if err != nil {
		return err
	}
	b.state, err = openState(path, list)
	return err
}

// follow runs the framework until all jobs have ended. A framework that the master has removed, because it was away for
// too long, begins anew with what is left.
func (b *batch) follow(ctx context.Context, config scheduler.Config) error {
	if b.over() {
		return b.remove()
	}
	for {
		config.Framework.Id = nil
		if b.FrameworkID != "" {
			config.Framework.Id = &mesosv1.FrameworkID{Value: &b.FrameworkID}
		}
		b.client, b.quiet = scheduler.New(config), false
		err := b.client.Run(ctx, b.handle)
		var fatal *scheduler.FatalError
		switch {
		case errors.Is(err, errDone):
			return b.remove()
		case errors.As(err, &fatal) && strings.Contains(fatal.Message, "has been removed") && b.FrameworkID != "":
			fmt.Fprintln(b.out, "the master has removed the framework: beginning anew")
			b.FrameworkID = ""
			for _, j := range b.Jobs {
				if j.Status == launched {
					j.Status, j.running = waiting, false // its task was killed with the framework
				}
			}
			if err := b.save(); err != nil {
				return err
			}
		default:
			return err
		}
	}
}

// over tells whether no job is left.
func (b *batch) over() bool { return b.count(finished)+b.count(givenUp) == len(b.Jobs) }

func (b *batch) handle(ctx context.Context, e *schedulerv1.Event) error {
	var err error
	switch e.GetType() {
	case schedulerv1.Event_SUBSCRIBED:
		err = b.subscribed(ctx, e.GetSubscribed().GetFrameworkId().GetValue())
	case schedulerv1.Event_OFFERS:
		for _, o := range e.GetOffers().GetOffers() {
			if err = b.offered(ctx, o); err != nil {
				break
			}
		}
	case schedulerv1.Event_UPDATE:
		err = b.updated(ctx, e.GetUpdate().GetStatus())
	}
	var broken *stateError
	if err == nil || errors.Is(err, errDone) || errors.As(err, &broken) {
		return err
	}
	// The master is away, or another leads: the next subscription says what matters again.
	b.log.Warn("call failed", "after", e.GetType(), "error", err)
	return nil
}

// subscribed stores who we are before anything is launched, and asks for each task that may have changed meanwhile. They
// are named: of a task that never reached its agent the master knows nothing, and says so only when asked.
func (b *batch) subscribed(ctx context.Context, id string) error {
	b.quiet = false
	if b.over() {
		return b.finish(ctx)
	}
	if b.FrameworkID != id {
		b.FrameworkID = id
		if err := b.save(); err != nil {
			return err
		}
	}
	var tasks []*schedulerv1.Call_Reconcile_Task
	for i, j := range b.Jobs {
		if j.Status == launched {
			tasks = append(tasks, &schedulerv1.Call_Reconcile_Task{TaskId: &mesosv1.TaskID{Value: new(taskID(i, j.Launches))}})
		}
	}
	if len(tasks) > 0 {
		if err := b.client.Reconcile(ctx, tasks...); err != nil {
			return err
		}
	}
	return b.wantOffers(ctx)
}

// wantOffers asks for offers while a job waits, and for none while nothing does: others have the cluster meanwhile.
func (b *batch) wantOffers(ctx context.Context) error {
	none := b.count(waiting) == 0
	if none == b.quiet {
		return nil
	}
	b.quiet = none
	if none {
		return b.client.Suppress(ctx)
	}
	return b.client.Revive(ctx)
}

// offered launches as many jobs as an offer has room for.
func (b *batch) offered(ctx context.Context, o *mesosv1.Offer) error {
	// What may be taken back, and what holds data, is not for jobs.
	free := resources.New(o.GetResources()...).Filter(func(e *resources.Entry) bool {
		return e.Divisible() && !e.Revocable() && !e.Shared() && !e.Persistent()
	})
	now := time.Now()
	refuse := maxBackoff // when nothing waits at all
	var tasks []*mesosv1.TaskInfo
	for i, j := range b.Jobs {
		if j.Status != waiting {
			continue
		}
		if wait := j.NotBefore.Sub(now); wait > 0 {
			refuse = min(refuse, wait)
			continue
		}
		part, ok := b.take(free)
		if !ok {
			refuse = 0 // another agent may have room, or this one soon
			break
		}
		free = free.Subtract(part)
		j.Status, j.running = launched, false
		j.Launches++
		tasks = append(tasks, &mesosv1.TaskInfo{
			Name: new(j.Command[:min(len(j.Command), 64)]), TaskId: &mesosv1.TaskID{Value: new(taskID(i, j.Launches))},
			AgentId: o.GetAgentId(), Resources: part.Resources(), Command: &mesosv1.CommandInfo{Value: &j.Command},
		})
	}
	ids := []*mesosv1.OfferID{o.GetId()}
	if len(tasks) == 0 {
		return b.client.Decline(ctx, ids, max(refuse, time.Second))
	}
	// First written, then launched: a launch that did not happen is found out by asking.
	if err := b.save(); err != nil {
		return err
	}
	err := b.client.Accept(ctx, ids, []*mesosv1.Offer_Operation{scheduler.Launch(tasks...)}, refuse)
	var refused *scheduler.StatusError
	if errors.As(err, &refused) {
		for _, t := range tasks {
			if _, j := b.find(t.GetTaskId().GetValue()); j != nil {
				j.Status = waiting // for certain it was not launched
			}
		}
	}
	if err != nil {
		return fmt.Errorf("launch %d jobs: %w", len(tasks), err)
	}
	return b.wantOffers(ctx)
}

// take picks what one job needs, if that is there.
func (b *batch) take(free resources.Set) (resources.Set, bool) {
	left := map[string]int64{"cpus": int64(b.cpus * 1000), "mem": int64(b.mem * 1000)} // thousandths, as resources count
	part := free.Limit(func(e *resources.Entry) int64 {
		n := min(left[e.Name()], e.Milli())
		left[e.Name()] -= n
		return n
	}).Filter(func(e *resources.Entry) bool { return e.Name() == "cpus" || e.Name() == "mem" })
	return part, left["cpus"] <= 0 && left["mem"] <= 0
}

// updated notes what became of a task.
func (b *batch) updated(ctx context.Context, s *mesosv1.TaskStatus) error {
	i, j := b.find(s.GetTaskId().GetValue())
	if j == nil || j.Status != launched {
		return nil // of an earlier launch, or said twice
	}
	say := func(what string) {
		fmt.Fprintf(b.out, "job %d, launch %d: %s: %s\n", i, j.Launches, what, j.Command)
	}
	failed := func(what string, try bool) {
		j.Failures++
		if text := s.GetMessage(); text != "" {
			what += " (" + text + ")"
		}
		if !try || j.Failures >= b.attempts {
			j.Status = givenUp
			say(what + ", given up")
			return
		}
		pause := min(b.backoff<<(j.Failures-1), maxBackoff)
		j.Status, j.NotBefore = waiting, time.Now().Add(pause)
		say(fmt.Sprintf("%s, again in %v", what, pause))
	}
	switch s.GetState() {
	case mesosv1.TaskState_TASK_RUNNING:
		if !j.running {
			j.running = true
			say("runs")
		}
		return nil
	case mesosv1.TaskState_TASK_FINISHED:
		j.Status = finished
		say("finished")
	case mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_KILLED:
		failed("failed", true)
	case mesosv1.TaskState_TASK_ERROR: // it makes no sense, and would make none the next time
		failed("refused", false)
	case mesosv1.TaskState_TASK_LOST, mesosv1.TaskState_TASK_DROPPED, mesosv1.TaskState_TASK_GONE,
		mesosv1.TaskState_TASK_GONE_BY_OPERATOR, mesosv1.TaskState_TASK_UNKNOWN:
		// Not the job's fault: it does not count.
		j.Status, j.NotBefore = waiting, time.Now().Add(b.backoff)
		say("lost, again")
	default:
		return nil
	}
	j.running = false
	// Stored before the client acknowledges it, or else a crash between the two would lose it.
	if err := b.save(); err != nil {
		return err
	}
	if !b.over() {
		return b.wantOffers(ctx)
	}
	if s.GetUuid() != nil {
		if err := b.client.Acknowledge(ctx, s); err != nil {
			return err
		}
	}
	return b.finish(ctx)
}

// finish ends the framework, of which nothing runs any more.
func (b *batch) finish(ctx context.Context) error {
	err := b.client.Teardown(ctx)
	var refused *scheduler.StatusError
	if err != nil && !errors.As(err, &refused) {
		return err // again with the next subscription
	}
	return errDone
}
