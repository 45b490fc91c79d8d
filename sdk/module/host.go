package module

import (
	"context"
	"errors"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// Host is a module's way to ask its host. Use NewHost, and put it into Info.
type Host struct {
	questions chan *modulev1.Question

	mu      sync.Mutex // guards what follows
	next    uint64
	waiting map[uint64]chan *modulev1.Reply
}

// NewHost returns a Host that is connected once the module is served.
func NewHost() *Host {
	return &Host{questions: make(chan *modulev1.Question), waiting: map[uint64]chan *modulev1.Reply{}}
}

// Containers asks which containers live on the agent; all of them without ids. It reads all pages.
//
// Errors: ctx's, when no host answers in time; what the host says it cannot do.
func (h *Host) Containers(ctx context.Context, ids ...string) ([]*modulev1.ContainerFact, error) {
	var all []*modulev1.ContainerFact
	token := ""
	for {
		reply, err := h.ask(ctx, &modulev1.Question{Question: &modulev1.Question_Containers{
			Containers: &modulev1.ContainersQuestion{Ids: ids, PageToken: token},
		}})
		if err != nil {
			return nil, err
		}
		all = append(all, reply.GetContainers().GetContainers()...)
		if token = reply.GetContainers().GetNextPageToken(); token == "" {
			return all, nil
		}
	}
}

func (h *Host) ask(ctx context.Context, q *modulev1.Question) (*modulev1.Reply, error) {
	answer := make(chan *modulev1.Reply, 1)
	h.mu.Lock()
	h.next++
	q.Id = h.next
	h.waiting[q.Id] = answer
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		delete(h.waiting, q.Id)
		h.mu.Unlock()
	}()
	select {
	case h.questions <- q:
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	select {
	case reply := <-answer:
		if text := reply.GetError(); text != "" {
			return nil, status.Error(codes.FailedPrecondition, "ask the host: "+text)
		}
		return reply, nil
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

// serve carries questions and replies of one stream.
func (h *Host) serve(s grpc.BidiStreamingServer[modulev1.Reply, modulev1.Question], done <-chan struct{}) error {
	received := make(chan error, 1)
	go func() { // ends with the stream
		for {
			reply, err := s.Recv()
			if err != nil {
				received <- err
				return
			}
			h.mu.Lock()
			answer := h.waiting[reply.GetId()]
			delete(h.waiting, reply.GetId())
			h.mu.Unlock()
			if answer != nil {
				answer <- reply
			}
		}
	}()
	for {
		select {
		case q := <-h.questions:
			if err := s.Send(q); err != nil {
				return err
			}
		case err := <-received:
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		case <-done:
			return nil
		}
	}
}
