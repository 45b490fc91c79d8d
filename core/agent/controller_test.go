package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
)

// controller is a master: it registers agents, gives them tasks, and acknowledges updates when told to.
type controller struct {
	clusterv1.UnimplementedMasterServer
	listener *bufconn.Listener
	server   *grpc.Server

	mu          sync.Mutex
	term        uint64
	refuse      *clusterv1.Refused
	streams     int
	current     clusterv1.Master_ConnectServer
	down        string // address that does not answer
	pingTimeout time.Duration
	drop        chan struct{} // closed to end the current stream
	hellos      []*clusterv1.Hello
	received    []*clusterv1.FromAgent
	autoAck     bool
	changed     chan struct{} // closed and made anew with each message
}

func newController(t *testing.T) *controller {
	m := &controller{listener: bufconn.Listen(1 << 20), server: grpc.NewServer(), term: 1, pingTimeout: 24 * time.Hour, changed: make(chan struct{})}
	clusterv1.RegisterMasterServer(m.server, m)
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.server.Serve(m.listener)
	}()
	t.Cleanup(func() {
		m.server.Stop()
		<-done
	})
	return m
}

func (m *controller) Connect(s clusterv1.Master_ConnectServer) error {
	first, err := s.Recv()
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.hellos = append(m.hellos, first.GetHello())
	if r := m.refuse; r != nil {
		m.mu.Unlock()
		return s.Send(&clusterv1.ToAgent{Term: m.term, Message: &clusterv1.ToAgent_Refused{Refused: r}})
	}
	m.streams++
	m.current = s
	drop := make(chan struct{})
	m.drop = drop
	id := first.GetHello().GetAgent().GetId()
	if id == nil {
		id = &mesosv1.AgentID{Value: new("M-S0")}
	}
	err = s.Send(&clusterv1.ToAgent{Term: m.term, Message: &clusterv1.ToAgent_Registered{
		Registered: &clusterv1.Registered{AgentId: id, PingTimeoutMs: m.pingTimeout.Milliseconds()}}})
	m.notify()
	m.mu.Unlock()
	if err != nil {
		return err
	}
	type received struct {
		msg *clusterv1.FromAgent
		err error
	}
	messages := make(chan received)
	go func() { // ends with the stream
		for {
			msg, err := s.Recv()
			select {
			case messages <- received{msg, err}:
			case <-s.Context().Done():
				return
			}
		}
	}()
	for {
		var x received
		select {
		case x = <-messages:
		case <-drop:
			x.err = errors.New("dropped")
		case <-s.Context().Done():
			x.err = s.Context().Err()
		}
		msg, err := x.msg, x.err
		m.mu.Lock()
		if err != nil {
			if m.current == s {
				m.current = nil
			}
			m.notify()
			m.mu.Unlock()
			return nil
		}
		m.received = append(m.received, msg)
		if u := msg.GetUpdate(); u != nil && m.autoAck {
			s.Send(m.message(&clusterv1.ToAgent_Acknowledge{Acknowledge: ackOf(u)}))
		}
		m.notify()
		m.mu.Unlock()
	}
}

func (m *controller) notify() {
	close(m.changed)
	m.changed = make(chan struct{})
}

func ackOf(u *clusterv1.StatusUpdate) *clusterv1.Acknowledge {
	return &clusterv1.Acknowledge{FrameworkId: u.GetFrameworkId(), TaskId: u.GetStatus().GetTaskId().GetValue(), Uuid: u.GetStatus().GetUuid()}
}

func (m *controller) message(x any) *clusterv1.ToAgent {
	msg := &clusterv1.ToAgent{Term: m.term}
	switch x := x.(type) {
	case *clusterv1.ToAgent_Acknowledge:
		msg.Message = x
	case *clusterv1.ToAgent_RunTask:
		msg.Message = x
	case *clusterv1.ToAgent_KillTask:
		msg.Message = x
	case *clusterv1.ToAgent_ShutdownFramework:
		msg.Message = x
	case *clusterv1.ToAgent_ShutdownExecutor:
		msg.Message = x
	case *clusterv1.ToAgent_FrameworkMessage:
		msg.Message = x
	case *clusterv1.ToAgent_Drain:
		msg.Message = x
	case *clusterv1.ToAgent_Shutdown:
		msg.Message = x
	case *clusterv1.ToAgent_RunTaskGroup:
		msg.Message = x
	case *clusterv1.ToAgent_Ping:
		msg.Message = x
	case *clusterv1.ToAgent_ApplyOperation:
		msg.Message = x
	case *clusterv1.ToAgent_AcknowledgeOperation:
		msg.Message = x
	default:
		panic(fmt.Sprintf("no message %T", x))
	}
	return msg
}

// dropped cuts the connection as a master that dies does.
func (m *controller) dial(ctx context.Context, address string) (net.Conn, error) {
	if address == m.down {
		return nil, errors.New("connection refused")
	}
	return m.listener.DialContext(ctx)
}
