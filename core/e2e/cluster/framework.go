package cluster

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"

	"github.com/mosaic-cluster/mosaic/sdk/scheduler"
)

// Framework is a scheduler under the control of a test: it holds offers until told to launch, and remembers every
// update with the time it came.
type Framework struct {
	client *scheduler.Client
	cancel context.CancelFunc
	ended  chan struct{} // closed when the client has ended

	mu      sync.Mutex // guards what follows
	changed chan struct{}
	offers  []*mesosv1.Offer
	updates map[string][]Update
	enough  bool // offers go back at once
	err     error

	subscribed bool
	failures   []*schedulerv1.Event_Failure
	messages   []string
}

// Update is one status update as it came.
type Update struct {
	Status *mesosv1.TaskStatus
	At     time.Time
}

// Subscribe connects a framework of the given name and role. Its tasks survive its disconnection for a minute.
func Subscribe(ctx context.Context, master, name, role string) (*Framework, error) {
	return SubscribeAs(ctx, master, &mesosv1.FrameworkInfo{
		Name: &name, User: proto.String("root"), Roles: []string{role}, Checkpoint: proto.Bool(true), FailoverTimeout: proto.Float64(60),
		Capabilities: []*mesosv1.FrameworkInfo_Capability{
			{Type: mesosv1.FrameworkInfo_Capability_MULTI_ROLE.Enum()},
			{Type: mesosv1.FrameworkInfo_Capability_PARTITION_AWARE.Enum()},
			{Type: mesosv1.FrameworkInfo_Capability_RESERVATION_REFINEMENT.Enum()},
		},
	})
}

// SubscribeAs connects a framework described in full.
func SubscribeAs(ctx context.Context, master string, info *mesosv1.FrameworkInfo) (*Framework, error) {
	f := &Framework{
		client:  scheduler.New(scheduler.Config{Master: master, Framework: info, MaxBackoff: time.Second}),
		ended:   make(chan struct{}),
		changed: make(chan struct{}),
		updates: map[string][]Update{},
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f.cancel = cancel
	go func() {
		err := f.client.Run(run, f.event)
		f.mu.Lock()
		f.err = err
		f.wake()
		f.mu.Unlock()
		close(f.ended)
	}()
	return f, f.wait(ctx, "SUBSCRIBED", func() bool { return f.subscribed })
}

// wake tells waiters that something changed. mu is held.
func (f *Framework) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *Framework) event(ctx context.Context, e *schedulerv1.Event) error {
	now := time.Now()
	f.mu.Lock()
	if f.enough && e.GetType() == schedulerv1.Event_OFFERS {
		f.mu.Unlock()
		return f.giveBack(ctx, e.GetOffers().GetOffers())
	}
	defer f.mu.Unlock()
	defer f.wake()
	switch e.GetType() {
	case schedulerv1.Event_SUBSCRIBED:
		f.subscribed = true
	case schedulerv1.Event_FAILURE:
		f.failures = append(f.failures, e.GetFailure())
	case schedulerv1.Event_MESSAGE:
		f.messages = append(f.messages, string(e.GetMessage().GetData()))
	case schedulerv1.Event_OFFERS:
		f.offers = append(f.offers, e.GetOffers().GetOffers()...)
	case schedulerv1.Event_RESCIND:
		kept := f.offers[:0]
		for _, o := range f.offers {
			if o.GetId().GetValue() != e.GetRescind().GetOfferId().GetValue() {
				kept = append(kept, o)
			}
		}
		f.offers = kept
	case schedulerv1.Event_UPDATE:
		s := e.GetUpdate().GetStatus()
		id := s.GetTaskId().GetValue()
		f.updates[id] = append(f.updates[id], Update{s, now})
	}
	return nil
}

func (f *Framework) giveBack(ctx context.Context, offers []*mesosv1.Offer) error {
	var ids []*mesosv1.OfferID
	for _, o := range offers {
		ids = append(ids, o.GetId())
	}
	if len(ids) == 0 {
		return nil
	}
	return f.client.Decline(ctx, ids, time.Hour)
}

// Enough gives back what offers are held and wants no more, so that others get them.
func (f *Framework) Enough(ctx context.Context) error {
	f.mu.Lock()
	held := f.offers
	f.offers, f.enough = nil, true
	f.mu.Unlock()
	if err := f.client.Suppress(ctx); err != nil {
		return err
	}
	return f.giveBack(ctx, held)
}

// wait waits until ok, which is called with mu held, or the framework has ended.
func (f *Framework) wait(ctx context.Context, what string, ok func() bool) error {
	for {
		f.mu.Lock()
		changed, err, done := f.changed, f.err, ok()
		f.mu.Unlock()
		if done {
			return nil
		}
		if err != nil {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, ctx.Err())
		case <-changed:
		}
	}
}

// Client is the connection, for calls of all kinds.
func (f *Framework) Client() *scheduler.Client { return f.client }

// Offer waits for an offer with at least so much and takes it. Smaller ones are declined for a moment.
func (f *Framework) Offer(ctx context.Context, cpus, mem float64) (*mesosv1.Offer, error) {
	for {
		var small []*mesosv1.OfferID
		var found *mesosv1.Offer
		err := f.wait(ctx, fmt.Sprintf("an offer of cpus:%v;mem:%v", cpus, mem), func() bool {
			for i, o := range f.offers {
				if Scalar(o.GetResources(), "cpus") >= cpus && Scalar(o.GetResources(), "mem") >= mem {
					found = o
					f.offers = append(f.offers[:i:i], f.offers[i+1:]...)
					return true
				}
			}
			for _, o := range f.offers {
				small = append(small, o.GetId())
			}
			f.offers = nil
			return len(small) > 0
		})
		if err != nil || found != nil {
			return found, err
		}
		if err := f.client.Decline(ctx, small, 10*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// Scalar sums a scalar resource.
func Scalar(list []*mesosv1.Resource, name string) float64 {
	var sum float64
	for _, r := range list {
		if r.GetName() == name {
			sum += r.GetScalar().GetValue()
		}
	}
	return sum
}

// Task makes a task of the offer's agent and role.
func Task(o *mesosv1.Offer, id string, cpus, mem float64, command *mesosv1.CommandInfo) *mesosv1.TaskInfo {
	res := func(name string, v float64) *mesosv1.Resource {
		return &mesosv1.Resource{
			Name: &name, Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: &v},
			AllocationInfo: o.GetAllocationInfo(),
		}
	}
	return &mesosv1.TaskInfo{
		Name: &id, TaskId: &mesosv1.TaskID{Value: &id}, AgentId: o.GetAgentId(), Command: command,
		Resources: []*mesosv1.Resource{res("cpus", cpus), res("mem", mem)},
	}
}

// Exec is a command without a shell.
func Exec(argv ...string) *mesosv1.CommandInfo {
	return &mesosv1.CommandInfo{Shell: proto.Bool(false), Value: &argv[0], Arguments: argv}
}

// Shell is a command line for /bin/sh.
func Shell(line string) *mesosv1.CommandInfo { return &mesosv1.CommandInfo{Value: &line} }

// Launch accepts an offer with the tasks; what is left of it may be offered again at once.
func (f *Framework) Launch(ctx context.Context, o *mesosv1.Offer, tasks ...*mesosv1.TaskInfo) error {
	return f.client.Accept(ctx, []*mesosv1.OfferID{o.GetId()}, []*mesosv1.Offer_Operation{{
		Type:   mesosv1.Offer_Operation_LAUNCH.Enum(),
		Launch: &mesosv1.Offer_Operation_Launch{TaskInfos: tasks},
	}}, 0)
}

// State waits until each task has had an update with one of the states, and returns those updates by task.
func (f *Framework) State(ctx context.Context, tasks []string, states ...mesosv1.TaskState) (map[string]Update, error) {
	found := map[string]Update{}
	next := 0 // tasks before it have been found
	err := f.wait(ctx, fmt.Sprintf("%v of %d tasks", states, len(tasks)), func() bool {
		for ; next < len(tasks); next++ {
			u, ok := first(f.updates[tasks[next]], states)
			if !ok {
				return false
			}
			found[tasks[next]] = u
		}
		return true
	})
	if err != nil && next < len(tasks) {
		f.mu.Lock()
		defer f.mu.Unlock()
		err = fmt.Errorf("%w: %d have it; task %s has had %s", err, len(found), tasks[next], describe(f.updates[tasks[next]]))
	}
	return found, err
}

func first(updates []Update, states []mesosv1.TaskState) (Update, bool) {
	for _, u := range updates {
		for _, s := range states {
			if u.Status.GetState() == s {
				return u, true
			}
		}
	}
	return Update{}, false
}

func describe(updates []Update) string {
	text := "nothing"
	for i, u := range updates {
		if i == 0 {
			text = ""
		}
		text += fmt.Sprintf("[%s %s %s]", u.Status.GetState(), u.Status.GetReason(), u.Status.GetMessage())
	}
	return text
}

// Updates are all updates of a task so far.
func (f *Framework) Updates(task string) []Update {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]Update(nil), f.updates[task]...)
}

// Failure waits for the failure of an executor.
func (f *Framework) Failure(ctx context.Context, executor string) (*schedulerv1.Event_Failure, error) {
	var found *schedulerv1.Event_Failure
	err := f.wait(ctx, "FAILURE of executor "+executor, func() bool {
		for _, e := range f.failures {
			if e.GetExecutorId().GetValue() == executor {
				found = e
			}
		}
		return found != nil
	})
	return found, err
}

// Messages are what executors have sent so far.
func (f *Framework) Messages() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.messages...)
}

// Offers is how many offers are held.
func (f *Framework) Offers() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.offers)
}

// Ended waits until the master has ended the subscription, and says how.
func (f *Framework) Ended(ctx context.Context) error {
	select {
	case <-f.ended:
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.err
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of the subscription: %w", ctx.Err())
	}
}

// Teardown ends the framework and its tasks.
func (f *Framework) Teardown(ctx context.Context) error {
	err := f.client.Teardown(ctx)
	f.Disconnect()
	return err
}

// Disconnect drops the connection without a word; twice is once.
func (f *Framework) Disconnect() {
	f.cancel()
	<-f.ended
}
