package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
)

// A fleet is agents that exist only as streams to a master: they answer each launch with TASK_RUNNING at once and run
// nothing. What is measured with them is the master and its wire.
type fleet struct {
	conns   []*grpc.ClientConn
	running atomic.Int64 // updates sent
	group   *errgroup.Group
	cancel  context.CancelFunc
}

// fleetConns is how many connections the agents share: the kernel's part in thousands of sockets is not the subject.
const fleetConns = 16

// startFleet registers n agents and returns when the master has them all.
func startFleet(ctx context.Context, master string, n int, resources []*mesosv1.Resource) (*fleet, error) {
	ctx, cancel := context.WithCancel(ctx)
	f := &fleet{cancel: cancel}
	f.group, ctx = errgroup.WithContext(ctx)
	for range fleetConns {
		conn, err := grpc.NewClient("passthrough:///"+master, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)))
		if err != nil {
			return nil, errors.Join(err, f.stop())
		}
		f.conns = append(f.conns, conn)
	}
	var registered sync.WaitGroup
	registered.Add(n)
	for i := range n {
		f.group.Go(func() error { return f.agent(ctx, i, f.conns[i%fleetConns], resources, registered.Done) })
	}
	done := make(chan struct{})
	go func() { registered.Wait(); close(done) }()
	select {
	case <-done:
		return f, nil
	case <-ctx.Done():
		return nil, f.stop()
	}
}

// agent is one agent's life.
func (f *fleet) agent(ctx context.Context, i int, conn *grpc.ClientConn, resources []*mesosv1.Resource, registered func()) error {
	stream, err := clusterv1.NewMasterClient(conn).Connect(ctx)
	if err != nil {
		return unlessDone(ctx, err)
	}
	hostname, port := fmt.Sprintf("agent-%05d", i), int32(5051)
	err = stream.Send(&clusterv1.FromAgent{Message: &clusterv1.FromAgent_Hello{Hello: &clusterv1.Hello{
		Agent:   &mesosv1.AgentInfo{Hostname: &hostname, Port: &port, Resources: resources},
		Version: "1.11.0", Session: uuid.NewString(), TotalResources: resources,
		Capabilities: []string{"MULTI_ROLE", "HIERARCHICAL_ROLE", "RESERVATION_REFINEMENT", "RESOURCE_PROVIDER", "RESIZE_VOLUME", "AGENT_OPERATION_FEEDBACK", "AGENT_DRAINING", "TASK_RESOURCE_LIMITS"},
	}}})
	if err != nil {
		return unlessDone(ctx, err)
	}
	var id *mesosv1.AgentID
	for {
		m, err := stream.Recv()
		if err != nil {
			return unlessDone(ctx, err)
		}
		switch x := m.GetMessage().(type) {
		case *clusterv1.ToAgent_Registered:
			id = x.Registered.GetAgentId()
			registered()
		case *clusterv1.ToAgent_Refused:
			return fmt.Errorf("agent %d is refused: %s", i, x.Refused.GetMessage())
		case *clusterv1.ToAgent_Ping:
			err = stream.Send(&clusterv1.FromAgent{Message: &clusterv1.FromAgent_Pong{Pong: &clusterv1.Pong{}}})
		case *clusterv1.ToAgent_RunTask:
			u := uuid.New()
			now := float64(time.Now().UnixNano()) / 1e9
			err = stream.Send(&clusterv1.FromAgent{Message: &clusterv1.FromAgent_Update{Update: &clusterv1.StatusUpdate{
				FrameworkId: x.RunTask.GetFramework().GetId().GetValue(),
				Status: &mesosv1.TaskStatus{
					TaskId: x.RunTask.GetTask().GetTaskId(), State: mesosv1.TaskState_TASK_RUNNING.Enum(), Source: mesosv1.TaskStatus_SOURCE_EXECUTOR.Enum(),
					AgentId: id, Uuid: u[:], Timestamp: &now,
				},
				LatestState: mesosv1.TaskState_TASK_RUNNING.String(),
			}}})
			f.running.Add(1)
		}
		if err != nil {
			return unlessDone(ctx, err)
		}
	}
}

// unlessDone drops errors that come of being told to end.
func unlessDone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// stop ends all agents and returns the first error of one that ended by itself.
func (f *fleet) stop() error {
	f.cancel()
	err := f.group.Wait()
	for _, c := range f.conns {
		_ = c.Close() // all streams have ended
	}
	return err
}
