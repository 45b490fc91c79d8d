package master

import (
	"sync"

	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
)

// maxOutbox bounds the messages that wait for one agent. An agent that is this far behind is cut off
// and told anew what matters when it returns. It is far above one ACCEPT with all the tasks that an
// agent can run.
const maxOutbox = 100_000

// outbox holds what the loop has to say to one agent until the stream's sender takes it. The loop only
// appends, and never waits.
type outbox struct {
	mu     sync.Mutex
	queue  []*clusterv1.ToAgent // guarded by mu
	closed bool                 // guarded by mu; nothing more comes

	wake  chan struct{} // holds one token while there is something to take
	ended chan struct{} // closed with the outbox
}

func newOutbox() *outbox {
	return &outbox{wake: make(chan struct{}, 1), ended: make(chan struct{})}
}

// push appends a message. It is false when the outbox is closed or was closed now, for being full.
func (o *outbox) push(msg *clusterv1.ToAgent) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return false
	}
	if len(o.queue) >= maxOutbox {
		o.end()
		return false
	}
	o.queue = append(o.queue, msg)
	o.signal()
	return true
}

// close ends the outbox after what is in it.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.closed {
		o.end()
	}
}

// end is called once, with mu held.
func (o *outbox) end() {
	o.closed = true
	close(o.ended)
	o.signal()
}

func (o *outbox) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// pump sends what is pushed until the outbox is closed and empty, or send fails.
func (o *outbox) pump(send func(*clusterv1.ToAgent) error) error {
	var queue []*clusterv1.ToAgent
	for {
		o.mu.Lock()
		queue, o.queue = o.queue, queue[:0]
		closed := o.closed
		o.mu.Unlock()
		for i, msg := range queue {
			if err := send(msg); err != nil {
				return err
			}
			queue[i] = nil
		}
		if len(queue) > 0 {
			continue
		}
		if closed {
			return nil
		}
		<-o.wake
	}
}
