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

	wake chan struct{} // holds one token while there is something to take
}

func newOutbox() *outbox { return &outbox{wake: make(chan struct{}, 1)} }

// push appends a message. It is false when the outbox is closed or was closed now, for being full.
func (o *outbox) push(msg *clusterv1.ToAgent) bool {
	o.mu.Lock()
	ok := !o.closed && len(o.queue) < maxOutbox
	if ok {
		o.queue = append(o.queue, msg)
	} else {
		o.closed = true
	}
	o.mu.Unlock()
	o.signal()
	return ok
}

// close ends the outbox after what is in it.
func (o *outbox) close() {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.signal()
}

func (o *outbox) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// take returns what is queued, and whether nothing will follow. spare is used for the next queue.
func (o *outbox) take(spare []*clusterv1.ToAgent) (queue []*clusterv1.ToAgent, closed bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	queue, o.queue = o.queue, spare[:0]
	return queue, o.closed
}
