package master

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
)

// helloTimeout bounds how long a stream may stand without a Hello.
const helloTimeout = 10 * time.Second

// flushTimeout bounds how long a stream that was ended may take for what is still in its outbox.
const flushTimeout = 5 * time.Second

// errShuttingDown ends streams with the master.
var errShuttingDown = status.Error(codes.Unavailable, "this master is shutting down")

// connector serves the streams of agents.
type connector struct {
	clusterv1.UnimplementedMasterServer
	master *Master
}

// agentConn is one stream of an agent. All but out and peer are the loop's.
type agentConn struct {
	out  *outbox
	peer string // IP address, empty if there is none

	greeted bool
	ended   bool
	agent   *agent // nil before it is registered, and after another stream took over
}

// Connect receives what an agent says and sends what is in its outbox, until either ends.
func (c *connector) Connect(stream clusterv1.Master_ConnectServer) error {
	m := c.master
	if leads, recovered, addr := m.Leader(); !leads || !recovered {
		if addr != "" {
			return status.Errorf(codes.Unavailable, "this master does not lead; %s does", addr)
		}
		return status.Error(codes.Unavailable, "this master does not lead")
	}
	conn := &agentConn{out: newOutbox()}
	if p, ok := peer.FromContext(stream.Context()); ok {
		if host, _, err := net.SplitHostPort(p.Addr.String()); err == nil {
			conn.peer = host
		}
	}
	// Sending and receiving block for as long as the connection wants, and end when this function has
	// returned; so the master waits for them, not we.
	greeted := make(chan struct{})
	received, sent := make(chan error, 1), make(chan error, 1)
	if !m.goWatch(func() { received <- m.receive(conn, stream, greeted) }) {
		return errShuttingDown
	}
	if !m.goWatch(func() { sent <- conn.out.pump(stream.Send) }) {
		return errShuttingDown
	}
	defer conn.out.close() // or pump would wait for more
	timeout := time.NewTimer(helloTimeout)
	defer timeout.Stop()
	closed := conn.out.ended
	for {
		select {
		case err := <-sent:
			return err
		case err := <-received:
			return err
		case <-greeted:
			greeted = nil
			timeout.Stop()
		case <-closed:
			closed = nil
			timeout.Reset(flushTimeout)
		case <-timeout.C:
			return status.Error(codes.DeadlineExceeded, "the agent says no Hello, or takes no messages")
		case <-m.stopped:
			return errShuttingDown
		}
	}
}

// receive hands messages to the loop until the stream ends.
func (m *Master) receive(conn *agentConn, stream clusterv1.Master_ConnectServer, greeted chan<- struct{}) error {
	// Not the stream's context: the loop must learn about the end of every stream. It waits no longer
	// than the loop runs.
	defer m.post(context.Background(), func(now time.Time) { m.s.agentDisconnected(conn, now) })
	for first := true; ; first = false {
		msg, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		hello := msg.GetHello()
		if first {
			if hello == nil {
				return status.Error(codes.InvalidArgument, "the first message is not a Hello")
			}
			close(greeted)
		}
		if !m.post(stream.Context(), func(now time.Time) { m.s.fromAgent(conn, msg, now) }) {
			return nil
		}
	}
}

// fromAgent dispatches a message of an agent. What comes on a stream that another has replaced, or from
// an agent that is being removed, is dropped: the agent repeats what matters when it registers anew.
func (s *state) fromAgent(c *agentConn, msg *clusterv1.FromAgent, now time.Time) {
	if h := msg.GetHello(); h != nil {
		s.hello(c, h, now)
		return
	}
	a := c.agent
	if a == nil {
		return
	}
	if _, pong := msg.Message.(*clusterv1.FromAgent_Pong); pong {
		s.answered(a)
		return
	}
	if a.leaving {
		return
	}
	switch x := msg.Message.(type) {
	case *clusterv1.FromAgent_Update:
		s.statusUpdate(a, x.Update, now)
	case *clusterv1.FromAgent_FrameworkMessage:
		s.messageToFramework(a, x.FrameworkMessage)
	case *clusterv1.FromAgent_ExecutorExited:
		s.executorExited(a, x.ExecutorExited, now)
	case *clusterv1.FromAgent_ResourcesChanged:
		s.resourcesChanged(a, x.ResourcesChanged, now)
	case *clusterv1.FromAgent_OperationUpdate:
		s.operationUpdate(a, x.OperationUpdate, now)
	case *clusterv1.FromAgent_Bye:
		s.bye(a, x.Bye)
	}
}
