package operator

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	"github.com/mosaic-cluster/mosaic/sdk/recordio"
)

const (
	// maxInput bounds one record of input. Agents take a megabyte; smaller ones let a new window size through sooner.
	maxInput = 32 << 10
	// heartbeatInterval is how often a client that has nothing to say shows that it is there, as agents do.
	heartbeatInterval = 30 * time.Second
)

// size is a terminal's.
type size struct{ rows, columns uint16 }

// input is one ATTACH_CONTAINER_INPUT: a request whose body lasts as long as the session. It is Session.Stdin.
type input struct {
	data   chan []byte   // pieces of standard input; an empty one is its end
	sizes  chan size     // holds the newest size that has not been sent
	detach chan struct{} // closed to end the request's body
	once   sync.Once     // closes detach
	done   chan struct{} // closed when the request has ended
	err    error         // why; written before done is closed
	closed atomic.Bool   // the end of standard input has been given
}

func newInput() *input {
	return &input{data: make(chan []byte), sizes: make(chan size, 1), detach: make(chan struct{}), done: make(chan struct{})}
}

// attach makes the request and returns when it has ended.
func (in *input) attach(ctx context.Context, a *Agent, id *mesosv1.ContainerID) {
	body, w := io.Pipe()
	var feeding sync.WaitGroup
	feeding.Go(func() { w.CloseWithError(in.feed(id, w)) })
	resp, err := a.post(ctx, body, "Content-Type", streamType, "Message-Content-Type", mediaType, "Accept", mediaType)
	if err == nil {
		err = io.ErrClosedPipe // the agent needs no more
		if resp.StatusCode/100 != 2 {
			err = refusal(resp)
		}
		resp.Body.Close()
	}
	if ctx.Err() != nil {
		err = io.ErrClosedPipe
	}
	in.err = err
	close(in.done)
	body.CloseWithError(err)
	feeding.Wait()
}

// feed writes the records of the request's body until it is detached, or done.
func (in *input) feed(id *mesosv1.ContainerID, w io.Writer) error {
	records := recordio.NewWriter(w)
	send := func(c *agentv1.Call_AttachContainerInput) error {
		data, err := (&agentv1.Call{Type: agentv1.Call_ATTACH_CONTAINER_INPUT.Enum(), AttachContainerInput: c}).MarshalVT()
		if err != nil {
			return fmt.Errorf("encode input: %w", err)
		}
		return records.Write(data)
	}
	err := send(&agentv1.Call_AttachContainerInput{Type: agentv1.Call_AttachContainerInput_CONTAINER_ID.Enum(), ContainerId: id})
	heartbeats := time.NewTicker(heartbeatInterval)
	defer heartbeats.Stop()
	for err == nil {
		var io *agentv1.ProcessIO
		select {
		case p := <-in.data:
			io = stdin(p)
		case z := <-in.sizes:
			io = control(&agentv1.ProcessIO_Control{
				Type:    agentv1.ProcessIO_Control_TTY_INFO.Enum(),
				TtyInfo: &mesosv1.TTYInfo{WindowSize: windowSize(z.rows, z.columns)},
			})
		case <-heartbeats.C:
			io = control(&agentv1.ProcessIO_Control{
				Type: agentv1.ProcessIO_Control_HEARTBEAT.Enum(),
				Heartbeat: &agentv1.ProcessIO_Control_Heartbeat{
					Interval: &mesosv1.DurationInfo{Nanoseconds: new(heartbeatInterval.Nanoseconds())},
				},
			})
		case <-in.detach:
			return nil
		case <-in.done:
			return nil
		}
		err = send(&agentv1.Call_AttachContainerInput{Type: agentv1.Call_AttachContainerInput_PROCESS_IO.Enum(), ProcessIo: io})
	}
	return err
}

func stdin(p []byte) *agentv1.ProcessIO {
	return &agentv1.ProcessIO{
		Type: agentv1.ProcessIO_DATA.Enum(),
		Data: &agentv1.ProcessIO_Data{Type: agentv1.ProcessIO_Data_STDIN.Enum(), Data: p},
	}
}

func control(c *agentv1.ProcessIO_Control) *agentv1.ProcessIO {
	return &agentv1.ProcessIO{Type: agentv1.ProcessIO_CONTROL.Enum(), Control: c}
}

func windowSize(rows, columns uint16) *mesosv1.TTYInfo_WindowSize {
	return &mesosv1.TTYInfo_WindowSize{Rows: new(uint32(rows)), Columns: new(uint32(columns))}
}

// Write feeds the process. It returns when all of p is on its way.
//
// Errors: *StatusError when the agent refuses the input; io.ErrClosedPipe after the end of input or of the process.
func (in *input) Write(p []byte) (n int, err error) {
	for n < len(p) {
		if in.closed.Load() {
			return n, io.ErrClosedPipe
		}
		piece := append([]byte(nil), p[n:min(len(p), n+maxInput)]...)
		select {
		case in.data <- piece:
			n += len(piece)
		case <-in.done:
			return n, in.err
		}
	}
	return n, nil
}

// Close gives the process the end of its input. Window sizes may follow.
func (in *input) Close() error {
	if in.closed.Swap(true) {
		return nil
	}
	select {
	case in.data <- []byte{}:
	case <-in.done: // it has ended anyway
	}
	return nil
}

// resize leaves a size to be sent next, in place of one that has not been.
func (in *input) resize(rows, columns uint16) error {
	for {
		select {
		case <-in.done:
			return in.err
		default:
		}
		select {
		case in.sizes <- size{rows, columns}:
			return nil
		default:
		}
		select {
		case <-in.sizes:
		default:
		}
	}
}

// end ends the request's body and waits until the agent has answered, at most as long as told.
func (in *input) end(timeout time.Duration) {
	in.once.Do(func() { close(in.detach) })
	wait := time.NewTimer(timeout)
	defer wait.Stop()
	select {
	case <-in.done:
	case <-wait.C:
	}
}
