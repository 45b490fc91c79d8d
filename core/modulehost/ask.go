package modulehost

import (
	"context"
	"slices"
	"strings"

	"golang.org/x/time/rate"

	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

const (
	// questionsPerSecond is what one module may ask; more wait in the stream's window.
	questionsPerSecond = 100
	// pageContainers and pageBytes bound a page of containers, in answers and in Recover.
	pageContainers = 500
	pageBytes      = 1 << 20
)

// answer serves the questions of one life until its stream ends. A module without questions ends it at once.
func (m *module) answer(ctx context.Context, l *life) {
	stream, err := l.control.Ask(ctx)
	if err != nil {
		return
	}
	limit := rate.NewLimiter(questionsPerSecond, questionsPerSecond)
	for {
		q, err := stream.Recv()
		if err != nil || limit.Wait(ctx) != nil {
			return
		}
		reply := &modulev1.Reply{Id: q.GetId(), Reply: &modulev1.Reply_Error{Error: "this host does not know the question"}}
		if c := q.GetContainers(); c != nil {
			reply.Reply = &modulev1.Reply_Containers{Containers: m.containerFacts(c)}
		}
		if err := stream.Send(reply); err != nil {
			return
		}
	}
}

// containerFacts gives one page of containers, by id. The page token is the last id of the page before.
func (m *module) containerFacts(q *modulev1.ContainersQuestion) *modulev1.ContainersReply {
	var records []*isolatorv1.ContainerRecord
	if c := m.host.attached(); c != nil {
		records = c.Records(m.cfg.Name)
	}
	records = slices.DeleteFunc(slices.Clone(records), func(r *isolatorv1.ContainerRecord) bool {
		id := r.GetContainer().GetId()
		return id <= q.GetPageToken() || len(q.GetIds()) > 0 && !slices.Contains(q.GetIds(), id)
	})
	slices.SortFunc(records, func(a, b *isolatorv1.ContainerRecord) int {
		return strings.Compare(a.GetContainer().GetId(), b.GetContainer().GetId())
	})
	reply := &modulev1.ContainersReply{}
	for i, r := range records {
		if i == pageContainers {
			reply.NextPageToken = records[i-1].GetContainer().GetId()
			break
		}
		reply.Containers = append(reply.Containers, &modulev1.ContainerFact{
			Id:          r.GetContainer().GetId(),
			FrameworkId: r.GetContainer().GetFrameworkId(),
			ExecutorId:  r.GetContainer().GetExecutorId(),
			Pid:         r.GetPid(),
			Cgroups:     r.GetCgroups(),
		})
	}
	return reply
}
