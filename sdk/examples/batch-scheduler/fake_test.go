package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	"github.com/mosaic-cluster/mosaic/sdk/recordio"
)

// master is a fake of a master with one agent and one framework. Tasks end as outcome says, at once; a task of no outcome
// runs until end is called.
type master struct {
	t       *testing.T
	addr    string
	outcome func(command string, launch int) mesosv1.TaskState

	mu         sync.Mutex // guards what follows
	events     chan *schedulerv1.Event
	framework  *mesosv1.FrameworkInfo
	frameworks int
	tasks      map[string]mesosv1.TaskState
	commands   map[string]string
	launches   []string // commands, in order
	acks       map[string]bool
	offers     int
	offered    bool // an offer is out
	suppressed bool
	over       bool          // torn down
	removed    bool          // frameworks with ids are refused
	changed    chan struct{} // closed and replaced at each change
}

func newMaster(t *testing.T, outcome func(string, int) mesosv1.TaskState) *master {
	m := &master{
		t: t, outcome: outcome, tasks: map[string]mesosv1.TaskState{}, commands: map[string]string{},
		acks: map[string]bool{}, changed: make(chan struct{}),
	}
	srv := httptest.NewServer(m)
	t.Cleanup(srv.Close)
	t.Cleanup(srv.CloseClientConnections)
	m.addr = srv.Listener.Addr().String()
	return m
}

func (m *master) send(e *schedulerv1.Event) {
	if m.events != nil {
		m.events <- e
	}
}

// offer makes an offer if the framework wants one. The caller holds the lock.
func (m *master) offer() {
	if m.offered || m.suppressed || m.over {
		return
	}
	m.offered = true
	m.offers++
	scalar := func(name string, v float64) *mesosv1.Resource {
		return &mesosv1.Resource{
			Name: &name, Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: &v},
			AllocationInfo: &mesosv1.Resource_AllocationInfo{Role: new("*")},
		}
	}
	m.send(&schedulerv1.Event{Type: schedulerv1.Event_OFFERS.Enum(), Offers: &schedulerv1.Event_Offers{Offers: []*mesosv1.Offer{{
		Id: &mesosv1.OfferID{Value: new(fmt.Sprint("o-", m.offers))}, FrameworkId: m.framework.Id, AgentId: &mesosv1.AgentID{Value: new("a")},
		Hostname: new("h"), Resources: []*mesosv1.Resource{scalar("cpus", 0.25), scalar("mem", 128)},
	}}}})
}

// update sends a task's state.
func (m *master) update(id string, withUUID bool) {
	state := m.tasks[id]
	s := &mesosv1.TaskStatus{TaskId: &mesosv1.TaskID{Value: &id}, State: &state, AgentId: &mesosv1.AgentID{Value: new("a")}}
	if state == mesosv1.TaskState_TASK_FAILED {
		s.Message = new("Command exited with status 1")
	}
	if withUUID {
		s.Uuid = []byte(fmt.Sprintf("%16.16s", id+state.String()))
	}
	m.send(&schedulerv1.Event{Type: schedulerv1.Event_UPDATE.Enum(), Update: &schedulerv1.Event_Update{Status: s}})
}

// end ends a task that runs.
func (m *master) end(id string, state mesosv1.TaskState) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tasks[id] = state
	m.update(id, true)
}

func (m *master) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	call := &schedulerv1.Call{}
	if err == nil {
		err = call.UnmarshalVT(body)
	}
	if err != nil {
		m.t.Errorf("%s %s: %v", r.Method, r.URL, err)
		http.Error(w, "bad", http.StatusBadRequest)
		return
	}
	m.mu.Lock()
	defer func() {
		close(m.changed)
		m.changed = make(chan struct{})
		m.mu.Unlock()
	}()
	if call.GetType() == schedulerv1.Call_SUBSCRIBE {
		m.subscribe(w, r, call.GetSubscribe())
		return
	}
	w.WriteHeader(http.StatusAccepted)
	switch call.GetType() {
	case schedulerv1.Call_ACCEPT:
		m.offered = false
		for _, op := range call.GetAccept().GetOperations() {
			for _, info := range op.GetLaunch().GetTaskInfos() {
				m.launch(info)
			}
		}
		m.offer()
	case schedulerv1.Call_DECLINE: // the filter is over at once
		m.offered = false
		m.offer()
	case schedulerv1.Call_SUPPRESS:
		m.suppressed = true
	case schedulerv1.Call_REVIVE:
		m.suppressed = false
		m.offer()
	case schedulerv1.Call_ACKNOWLEDGE:
		m.acks[call.GetAcknowledge().GetTaskId().GetValue()+":"+string(call.GetAcknowledge().GetUuid())] = true
	case schedulerv1.Call_RECONCILE:
		for _, t := range call.GetReconcile().GetTasks() {
			id := t.GetTaskId().GetValue()
			if _, ok := m.tasks[id]; !ok {
				m.tasks[id] = mesosv1.TaskState_TASK_LOST
			}
			m.update(id, false)
		}
	case schedulerv1.Call_TEARDOWN:
		m.over = true
	default:
		m.t.Errorf("call %v", call)
	}
}

func (m *master) launch(info *mesosv1.TaskInfo) {
	id, command := info.GetTaskId().GetValue(), info.GetCommand().GetValue()
	var i, launch int
	if _, err := fmt.Sscanf(id, "job-%d.%d", &i, &launch); err != nil || len(info.GetResources()) != 2 {
		m.t.Errorf("launched %v: %v", info, err)
	}
	if _, ok := m.tasks[id]; ok {
		m.t.Errorf("%s is launched twice", id)
	}
	m.launches = append(m.launches, command)
	m.commands[id] = command
	m.tasks[id] = mesosv1.TaskState_TASK_RUNNING
	m.update(id, true)
	if state := m.outcome(command, launch); state != mesosv1.TaskState_TASK_RUNNING {
		m.tasks[id] = state
		m.update(id, true)
	}
}

// subscribe serves a stream until it ends. The lock is let go meanwhile.
func (m *master) subscribe(w http.ResponseWriter, r *http.Request, s *schedulerv1.Call_Subscribe) {
	events := make(chan *schedulerv1.Event, 1024)
	m.events, m.offered, m.suppressed = events, false, len(s.GetSuppressedRoles()) > 0
	m.framework = s.GetFrameworkInfo()
	if m.framework.Id != nil && m.removed {
		m.send(&schedulerv1.Event{Type: schedulerv1.Event_ERROR.Enum(), Error: &schedulerv1.Event_Error{Message: new("Framework has been removed")}})
	} else {
		if m.framework.Id == nil {
			m.frameworks++
			m.framework.Id = &mesosv1.FrameworkID{Value: new(fmt.Sprint("f-", m.frameworks))}
			clear(m.tasks)
		}
		m.send(&schedulerv1.Event{Type: schedulerv1.Event_SUBSCRIBED.Enum(), Subscribed: &schedulerv1.Event_Subscribed{
			FrameworkId: m.framework.Id, HeartbeatIntervalSeconds: new(1000.0),
		}})
		m.offer()
	}
	close(m.changed)
	m.changed = make(chan struct{})
	m.mu.Unlock()
	defer m.mu.Lock()
	w.Header().Set("Mesos-Stream-Id", "s")
	for {
		select {
		case e := <-events:
			data, err := e.MarshalVT()
			if err != nil {
				m.t.Errorf("encode %v: %v", e, err)
			}
			_, _ = w.Write(recordio.Append(nil, data)) // the framework may have gone
			w.(http.Flusher).Flush()
		case <-r.Context().Done():
			return
		}
	}
}

// await waits until is, called under the lock, holds.
func (m *master) await(what string, is func() bool) {
	m.t.Helper()
	for {
		m.mu.Lock()
		ok, changed := is(), m.changed
		m.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-m.t.Context().Done():
			m.t.Fatalf("wait for %s: the test is over", what)
		}
	}
}

// lines are the lines of a text, in order, that hold a word.
func lines(text, word string) (out []string) {
	for line := range strings.Lines(text) {
		if strings.Contains(line, word) {
			out = append(out, strings.TrimSuffix(line, "\n"))
		}
	}
	return out
}
