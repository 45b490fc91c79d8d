package master

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// randomHistory drives a cluster through random events and holds what must be true after each.
type randomHistory struct {
	*cluster
	rand       *rand.Rand
	schedulers []*scheduler
	held       map[*scheduler][]*mesosv1.Offer
	asked      map[*scheduler][]*mesosv1.InverseOffer
	unacked    map[*scheduler][]*mesosv1.TaskStatus
	away       map[*fakeAgent]bool
	tasks      int
	log        []string
}

func TestRandomHistoriesNeitherLoseNorDoubleResources(t *testing.T) {
	for seed := range uint64(25) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			inBubble(t, Config{OfferTimeout: 40 * time.Second}, Deps{}, func(t *testing.T, c *cluster) {
				h := &randomHistory{
					cluster: c,
					rand:    rand.New(rand.NewPCG(seed, 1)),
					held:    make(map[*scheduler][]*mesosv1.Offer),
					asked:   make(map[*scheduler][]*mesosv1.InverseOffer),
					unacked: make(map[*scheduler][]*mesosv1.TaskStatus),
					away:    make(map[*fakeAgent]bool),
				}
				for i := range 3 {
					c.agentAt("agent.example", int32(6000+i), "cpus:4;mem:1024;ports:[31000-31009]")
				}
				for i := range 3 {
					h.newScheduler(i)
				}
				for range 150 {
					h.step()
					h.collect()
					h.check()
					if t.Failed() {
						t.Fatalf("after %v", h.log)
					}
				}
				h.end()
				if t.Failed() {
					t.Fatalf("after %v", h.log)
				}
			})
		})
	}
}

func (h *randomHistory) newScheduler(i int) {
	info := frameworkInfo([]string{"a", "a/b", "c"}[i%3])
	if i%2 == 1 {
		info = oldInfo()
	}
	s, events := h.framework(info)
	h.schedulers = append(h.schedulers, s)
	h.take(s, events)
}

// take remembers what events give a framework.
func (h *randomHistory) take(s *scheduler, events []*schedulerv1.Event) {
	for _, e := range events {
		h.held[s] = append(h.held[s], e.GetOffers().GetOffers()...)
		h.asked[s] = append(h.asked[s], e.GetInverseOffers().GetInverseOffers()...)
		if r := e.GetRescind(); r != nil {
			for i, o := range h.held[s] {
				if o.GetId().GetValue() == r.GetOfferId().GetValue() {
					h.held[s] = append(h.held[s][:i:i], h.held[s][i+1:]...)
					break
				}
			}
		}
		if u := e.GetUpdate().GetStatus(); len(u.GetUuid()) > 0 {
			h.unacked[s] = append(h.unacked[s], u)
		}
	}
}

func (h *randomHistory) collect() {
	for _, s := range h.schedulers {
		h.take(s, s.stream.take())
	}
}

// step does one random thing.
func (h *randomHistory) step() {
	s := h.schedulers[h.rand.IntN(len(h.schedulers))]
	a := h.agents[h.rand.IntN(len(h.agents))]
	what := h.rand.IntN(13)
	h.log = append(h.log, fmt.Sprintf("%d(%s,%s)", what, s.id, a.id()))
	connected := !s.stream.closed()
	switch {
	case what <= 2 && connected && len(h.held[s]) > 0: // launch
		o := h.held[s][0]
		h.held[s] = h.held[s][1:]
		var tasks []*mesosv1.TaskInfo
		for range h.rand.IntN(3) + 1 {
			h.tasks++
			tasks = append(tasks, commandTask(fmt.Sprintf("t%d", h.tasks), o, "cpus:0.7;mem:100;ports:[31000-31001]"))
		}
		refuse := float64(h.rand.IntN(3))
		h.take(s, s.accept([]*mesosv1.Offer{o}, &mesosv1.Filters{RefuseSeconds: &refuse}, launch(tasks...)))
	case what == 3 && connected && len(h.held[s]) > 0: // decline
		o := h.held[s][0]
		h.held[s] = h.held[s][1:]
		h.take(s, s.decline(float64(h.rand.IntN(10)), o))
	case what == 4 && !h.away[a]: // a task ends
		a.mu.Lock()
		for _, k := range sortedKeys(a.tasks) {
			if t := a.tasks[k]; !terminal(t.GetState()) {
				a.update(t, mesosv1.TaskState_TASK_FINISHED)
				break
			}
		}
		a.mu.Unlock()
		h.settle()
	case what == 5 && connected && len(h.unacked[s]) > 0: // acknowledge
		u := h.unacked[s][0]
		h.unacked[s] = h.unacked[s][1:]
		h.take(s, s.ack(u))
	case what == 6 && !h.away[a]:
		a.disconnect()
		h.away[a] = true
	case what == 7 && h.away[a]:
		a.connect()
		h.away[a] = false
		h.settle()
	case what == 8: // failover, with or without the old stream ended
		if h.rand.IntN(2) == 0 {
			s.stream.Close()
			h.settle()
		}
		h.held[s], h.asked[s] = nil, nil
		h.take(s, s.subscribe())
	case what == 9 && h.tasks > 0 && connected:
		h.take(s, s.kill(fmt.Sprintf("t%d", h.rand.IntN(h.tasks)+1)))
	case what == 10 && len(h.log)%5 == 0: // torn down, and another comes
		if connected {
			s.call(&schedulerv1.Call{Type: schedulerv1.Call_TEARDOWN.Enum()})
			for i := range h.schedulers {
				if h.schedulers[i] == s {
					h.schedulers = append(h.schedulers[:i:i], h.schedulers[i+1:]...)
					break
				}
			}
			h.newScheduler(len(h.log))
		}
	case what == 11: // the machine of all agents is to go away, or is not
		if h.rand.IntN(2) == 0 {
			h.must(scheduleCall(window(time.Unix(h.rand.Int64N(3), 0), "agent.example")))
		} else {
			h.must(scheduleCall())
		}
	case what == 12 && connected && len(h.asked[s]) > 0:
		h.take(s, s.answerInverse(h.rand.IntN(2) == 0, float64(h.rand.IntN(20)), h.asked[s][0]))
		h.asked[s] = h.asked[s][1:]
	default:
		h.pass(time.Duration(h.rand.IntN(30)) * time.Second)
	}
}

// check holds that no agent has more used and offered than it has.
func (h *randomHistory) check() {
	h.Helper()
	v := h.m.view.Load()
	t := v.tally()
	for a := range v.agents.all() {
		u := usageOf(t.agents, a.id)
		sum := u.used.Unallocate().Add(u.offered.Unallocate())
		if !a.total.Contains(sum) {
			h.Errorf("agent %s has %v, of which %v is used and %v offered", a.id, a.total, u.used, u.offered)
		}
		// Ranges that are given twice become one in a sum: count them.
		if got, want := u.used.Ranges("ports").Count()+u.offered.Ranges("ports").Count(), sum.Ranges("ports").Count(); got != want {
			h.Errorf("agent %s: a port is given twice: used %v, offered %v", a.id, u.used, u.offered)
		}
	}
	for o := range v.offers.all() {
		if v.framework(o.proto.GetFrameworkId().GetValue()) == nil {
			h.Errorf("offer %v is of a framework that is not there", o.proto.GetId())
		}
	}
	asked := make(map[string]bool)
	for o := range v.inverses.all() {
		f, a := o.GetFrameworkId().GetValue(), o.GetAgentId().GetValue()
		switch {
		case v.framework(f) == nil || !v.framework(f).connected:
			h.Errorf("inverse offer %v is of a framework that is not there", o.GetId())
		case len(v.schedule.GetWindows()) == 0:
			h.Errorf("inverse offer %v without a window", o.GetId())
		case asked[f+" "+a]:
			h.Errorf("framework %s is asked twice about agent %s", f, a)
		}
		asked[f+" "+a] = true
	}
}

// end kills everything, and holds that a newcomer is then offered all there is.
func (h *randomHistory) end() {
	h.Helper()
	for _, a := range h.agents {
		if h.away[a] {
			a.connect()
		}
	}
	h.settle()
	for _, s := range h.schedulers {
		if s.stream.closed() {
			s.subscribe()
		}
		s.call(&schedulerv1.Call{Type: schedulerv1.Call_TEARDOWN.Enum()})
	}
	h.settle()
	_, events := h.framework(frameworkInfo("z"))
	got := make(map[string]resources.Set)
	for _, o := range offers(events) {
		id := o.GetAgentId().GetValue()
		got[id] = got[id].Add(resources.New(o.Resources...).Unallocate())
	}
	want := resources.MustParse("cpus:4;mem:1024;ports:[31000-31009]")
	for _, a := range h.agents {
		if !got[a.id()].Equal(want) {
			h.Errorf("of agent %s a newcomer is offered %v, want %v", a.id(), got[a.id()], want)
		}
	}
	if len(h.m.s.agents) == len(h.agents) {
		for _, a := range h.m.s.agents {
			if len(a.tasks)+len(a.executors) != 0 {
				h.Errorf("agent %s has tasks of nobody: %v", a.id, a.tasks)
			}
		}
	}
}
