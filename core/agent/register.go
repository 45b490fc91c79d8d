package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
)

const (
	// helloTimeout is how long a master has to answer a Hello. It may have to write the registry first;
	// its own limit for that is 20 s.
	helloTimeout = 30 * time.Second
	// pingTimeout is used when the master does not say how often it pings: five pings of Mesos.
	pingTimeout = 75 * time.Second
	// goodConnection is how long a connection must have lasted for the next to begin without delay.
	goodConnection = 10 * time.Second
	// maxMessage bounds one message to or from the master. A Hello names every task: a thousand of them
	// are about a megabyte.
	maxMessage = 64 << 20
	// maxOutbox bounds what waits for a slow master. Beyond it frameworks' messages, which nobody
	// promised to deliver, are dropped; updates are bounded by the number of tasks.
	maxOutbox = 1 << 16
)

// errRefused ends the agent.
type errRefused struct{ message string }

func (e *errRefused) Error() string { return "the master refuses this agent: " + e.message }
func (e *errRefused) Unwrap() error { return ErrShutdown }

// stayRegistered keeps a connection to the leading master until ctx ends, trying the masters in turn: first
// again after 100 ms, then with doubling.
func (a *Agent) stayRegistered(ctx context.Context) {
	backoff := a.cfg.RegistrationBackoffMin
	for i := 0; ; i++ {
		address := a.cfg.Masters[i%len(a.cfg.Masters)]
		began := time.Now()
		registered, err := a.connect(ctx, address)
		if ctx.Err() != nil {
			return
		}
		var refused *errRefused
		if errors.As(err, &refused) {
			a.mu.Lock()
			a.fail(err)
			a.mu.Unlock()
			return
		}
		if registered && time.Since(began) >= goodConnection {
			backoff = a.cfg.RegistrationBackoffMin
		}
		if registered {
			i-- // the leader we had is the likeliest next one
		}
		// Jitter, so that the agents of a restarted master do not come all at once.
		wait := backoff/2 + rand.N(backoff/2+1)
		a.log.Info("not connected to a master", "master", address, "again_in", wait, "error", err)
		if !sleep(ctx, wait) {
			return
		}
		backoff = min(2*backoff, a.cfg.RegistrationBackoffMax)
	}
}

// connect registers with one master and serves it until the connection ends. It says whether the agent was
// registered.
func (a *Agent) connect(ctx context.Context, address string) (registered bool, err error) {
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithUserAgent("mosaic-agent"),
	}
	conn, err := grpc.NewClient(address, append(options, a.deps.DialOptions...)...)
	if err != nil {
		return false, fmt.Errorf("master %s: %w", address, err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := clusterv1.NewMasterClient(conn).Connect(ctx)
	if err != nil {
		return false, fmt.Errorf("connect to master %s: %w", address, err)
	}
	silence := time.AfterFunc(helloTimeout, func() { cancel(errors.New("the master does not answer")) })
	defer silence.Stop()
	if err := stream.Send(&clusterv1.FromAgent{Message: &clusterv1.FromAgent_Hello{Hello: a.hello()}}); err != nil {
		_, err = stream.Recv() // says why
		return false, fmt.Errorf("register with master %s: %w", address, err)
	}

	m := &masterConn{wake: make(chan struct{}, 1)}
	var sender sync.WaitGroup
	defer sender.Wait()
	defer cancel(nil)
	defer a.disconnected(m)
	limit := helloTimeout
	for {
		msg, err := stream.Recv()
		if err != nil {
			if cause := context.Cause(ctx); cause != nil && ctx.Err() != nil {
				err = cause
			}
			return registered, fmt.Errorf("master %s: %w", address, err)
		}
		silence.Reset(limit)
		if err := a.fence(ctx, msg.GetTerm()); err != nil {
			return registered, fmt.Errorf("master %s: %w", address, err)
		}
		if !registered {
			switch x := msg.GetMessage().(type) {
			case *clusterv1.ToAgent_Registered:
				if err := a.registered(ctx, m, x.Registered); err != nil {
					return false, fmt.Errorf("master %s: %w", address, err)
				}
				registered = true
				limit = pingTimeout
				if ms := x.Registered.GetPingTimeoutMs(); ms > 0 {
					limit = time.Duration(ms) * time.Millisecond
				}
				silence.Reset(limit)
				sender.Go(func() {
					if err := m.pump(ctx, stream); err != nil {
						cancel(err)
					}
				})
			case *clusterv1.ToAgent_Refused:
				if x.Refused.GetFatal() {
					return false, &errRefused{x.Refused.GetMessage()}
				}
				return false, fmt.Errorf("master %s: %s", address, x.Refused.GetMessage())
			case *clusterv1.ToAgent_Shutdown:
				a.shutDown(x.Shutdown.GetMessage())
			default:
				return false, fmt.Errorf("master %s: got %T before Registered", address, x)
			}
			continue
		}
		a.obey(m, msg)
	}
}

// obey does what a message of the master asks for. It does not wait for it.
func (a *Agent) obey(m *masterConn, msg *clusterv1.ToAgent) {
	switch x := msg.GetMessage().(type) {
	case *clusterv1.ToAgent_Ping:
		m.send(&clusterv1.FromAgent{Message: &clusterv1.FromAgent_Pong{Pong: &clusterv1.Pong{}}})
	case *clusterv1.ToAgent_RunTask:
		a.runTask(x.RunTask)
	case *clusterv1.ToAgent_RunTaskGroup:
		a.runTaskGroup(x.RunTaskGroup)
	case *clusterv1.ToAgent_KillTask:
		a.killTask(x.KillTask)
	case *clusterv1.ToAgent_Acknowledge:
		a.acknowledge(x.Acknowledge)
	case *clusterv1.ToAgent_FrameworkMessage:
		a.messageToExecutor(x.FrameworkMessage)
	case *clusterv1.ToAgent_ShutdownExecutor:
		a.shutdownExecutor(x.ShutdownExecutor)
	case *clusterv1.ToAgent_ShutdownFramework:
		a.shutdownFramework(x.ShutdownFramework)
	case *clusterv1.ToAgent_UpdateFramework:
		a.updateFramework(x.UpdateFramework)
	case *clusterv1.ToAgent_ApplyOperation:
		a.applyOperation(x.ApplyOperation)
	case *clusterv1.ToAgent_AcknowledgeOperation:
		a.acknowledgeOperation(x.AcknowledgeOperation)
	case *clusterv1.ToAgent_Drain:
		a.startDrain(x.Drain.GetConfig())
	case *clusterv1.ToAgent_Shutdown:
		a.shutDown(x.Shutdown.GetMessage())
	case *clusterv1.ToAgent_Refused:
		if x.Refused.GetFatal() {
			a.mu.Lock()
			a.fail(&errRefused{x.Refused.GetMessage()})
			a.mu.Unlock()
		}
	default:
		a.log.Warn("ignored a message of the master", "type", fmt.Sprintf("%T", x))
	}
}

// hello says who the agent is and what it has.
func (a *Agent) hello() *clusterv1.Hello {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.toldRevocable = a.revocable
	h := &clusterv1.Hello{
		Agent:                   a.info,
		Version:                 a.cfg.Version.GetVersion(),
		Capabilities:            capabilities(),
		Session:                 uuid.NewString(),
		TotalResources:          a.holdings.total.Resources(),
		OversubscribedResources: a.revocable,
		DrainConfig:             a.drain,
	}
	if a.info.GetId() == nil {
		return h
	}
	h.Operations = a.operationRecords()
	a.holdings.announce(a.holdings.total, a.holdings.version)
	for _, f := range a.frameworks {
		h.Frameworks = append(h.Frameworks, f.info)
		for _, t := range f.tasks {
			h.Tasks = append(h.Tasks, t.describe())
		}
		for _, e := range f.executors {
			if e.phase != phaseTerminated {
				h.Executors = append(h.Executors, &clusterv1.ExecutorRecord{
					Executor:    e.info,
					FrameworkId: string(f.id),
					ContainerId: string(e.container),
				})
			}
		}
		for _, x := range f.completed {
			h.CompletedTasks = append(h.CompletedTasks, x.tasks...)
		}
	}
	return h
}

// capabilities names what this agent can do of mesos.v1.AgentInfo.Capability.
func capabilities() []string {
	var names []string
	for _, c := range []mesosv1.AgentInfo_Capability_Type{
		mesosv1.AgentInfo_Capability_MULTI_ROLE,
		mesosv1.AgentInfo_Capability_HIERARCHICAL_ROLE,
		mesosv1.AgentInfo_Capability_RESERVATION_REFINEMENT,
		mesosv1.AgentInfo_Capability_AGENT_DRAINING,
		mesosv1.AgentInfo_Capability_TASK_RESOURCE_LIMITS,
		mesosv1.AgentInfo_Capability_AGENT_OPERATION_FEEDBACK,
		mesosv1.AgentInfo_Capability_RESIZE_VOLUME,
	} {
		names = append(names, c.String())
	}
	return names
}

// fence sees to it that a master that was replaced is not obeyed any more: the highest term seen is on disk
// before anything of that term is done.
func (a *Agent) fence(ctx context.Context, term uint64) error {
	a.mu.Lock()
	have := a.term
	a.mu.Unlock()
	switch {
	case term < have:
		return fmt.Errorf("it speaks for term %d, the agent has seen %d", term, have)
	case term == have:
		return nil
	}
	if err := a.put(ctx, []op{{bucketAgent, keyTerm, binary.BigEndian.AppendUint64(nil, term)}}); err != nil {
		return fmt.Errorf("checkpoint term %d: %w", term, err)
	}
	a.mu.Lock()
	a.term = max(a.term, term)
	a.mu.Unlock()
	return nil
}

// put writes ops and waits. An agent that cannot write does not go on.
func (a *Agent) put(ctx context.Context, ops []op) error {
	err := a.store.put(ctx, ops)
	if err != nil && ctx.Err() == nil {
		a.mu.Lock()
		a.fail(fmt.Errorf("checkpoint: %w", err))
		a.mu.Unlock()
	}
	return err
}

// registered takes the id the master gave, on disk before it is used, and tells the master what waits.
func (a *Agent) registered(ctx context.Context, m *masterConn, r *clusterv1.Registered) error {
	id := r.GetAgentId().GetValue()
	if err := checkID(id); err != nil {
		return fmt.Errorf("agent id: %w", err)
	}
	a.mu.Lock()
	old := a.info.GetId().GetValue()
	a.mu.Unlock()
	switch {
	case old == "":
		info := a.info.CloneVT()
		info.Id = &mesosv1.AgentID{Value: new(id)}
		data, err := info.MarshalVT()
		if err != nil {
			return fmt.Errorf("encode agent: %w", err)
		}
		ops := []op{{bucketAgent, keyInfo, data}, {bucketAgent, keyBoot, []byte(a.bootID)}}
		if err := a.put(ctx, ops); err != nil {
			return fmt.Errorf("checkpoint agent %s: %w", id, err)
		}
		a.mu.Lock()
		a.info = info
		a.mu.Unlock()
	case old != id:
		return fmt.Errorf("it calls agent %s by the id %s", old, id)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.log.Info("registered", "agent", id, "again", old != "", "term", a.term)
	a.master, a.masterInfo = m, r.GetMaster()
	a.sendRevocable() // an estimate may have come since hello
	a.sendAll()
	a.sendOperations()
	return nil
}

func (a *Agent) disconnected(m *masterConn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.master == m {
		a.master = nil
	}
}

// masterConn is what goes to the master over one connection.
type masterConn struct {
	mu    sync.Mutex // guards queue
	queue []*clusterv1.FromAgent
	wake  chan struct{}
}

// send queues a message. It never blocks.
func (m *masterConn) send(msg *clusterv1.FromAgent) {
	m.mu.Lock()
	if _, loose := msg.GetMessage().(*clusterv1.FromAgent_FrameworkMessage); loose && len(m.queue) >= maxOutbox {
		m.mu.Unlock()
		return
	}
	m.queue = append(m.queue, msg)
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// pump sends what is queued, until ctx ends or sending fails.
func (m *masterConn) pump(ctx context.Context, stream clusterv1.Master_ConnectClient) error {
	for {
		m.mu.Lock()
		batch := m.queue
		m.queue = nil
		m.mu.Unlock()
		for _, msg := range batch {
			if err := stream.Send(msg); err != nil {
				return fmt.Errorf("send to master: %w", err)
			}
		}
		if len(batch) > 0 {
			continue
		}
		select {
		case <-m.wake:
		case <-ctx.Done():
			return nil
		}
	}
}
