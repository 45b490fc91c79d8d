package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// script is a framework in JSON that a test drives step by step.
type script struct {
	t         *testing.T
	ctx       context.Context
	master    string
	stream    string
	framework any
	events    chan object
}

// subscribeScript subscribes a framework of one role.
func subscribeScript(ctx context.Context, t *testing.T, master, role string) *script {
	t.Helper()
	s := &script{t: t, ctx: ctx, master: master, events: make(chan object, 4096)}
	body, err := json.Marshal(object{"type": "SUBSCRIBE", "subscribe": object{"framework_info": object{
		"user": "root", "name": "volumes", "roles": []any{role}, "checkpoint": true, "failover_timeout": 600, "capabilities": []any{
			object{"type": "PARTITION_AWARE"}, object{"type": "MULTI_ROLE"}, object{"type": "RESERVATION_REFINEMENT"},
		},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := post(ctx, master, "/api/v1/scheduler", "application/json", "", body)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("SUBSCRIBE answered %d", resp.StatusCode)
	}
	s.stream = resp.Header.Get("Mesos-Stream-Id")
	go func() {
		defer close(s.events)
		r := bufio.NewReader(resp.Body)
		for {
			record, err := readRecord(r)
			if err != nil {
				return
			}
			var event object
			if json.Unmarshal(record, &event) != nil {
				return
			}
			select {
			case s.events <- event:
			case <-ctx.Done():
				return
			}
		}
	}()
	s.framework = dig(s.await("SUBSCRIBED", func(object) bool { return true }), "subscribed", "framework_id")
	return s
}

// await returns the next event of a type that ok takes. Offers that come meanwhile and are not awaited are declined,
// and updates acknowledged.
func (s *script) await(kind string, ok func(object) bool) object {
	s.t.Helper()
	for {
		select {
		case e, open := <-s.events:
			if !open {
				s.t.Fatalf("the stream ended while waiting for %s", kind)
			}
			s.acknowledge(e)
			if e["type"] == kind && ok(e) {
				return e
			}
			if e["type"] == "OFFERS" {
				s.decline(e, 0.5)
			}
			if e["type"] == "ERROR" {
				s.t.Fatalf("error event: %v", e)
			}
		case <-s.ctx.Done():
			s.t.Fatalf("no %s: %v", kind, s.ctx.Err())
		}
	}
}

func (s *script) decline(offers object, seconds float64) {
	s.t.Helper()
	var ids []any
	list, _ := dig(offers, "offers", "offers").([]any)
	for _, o := range list {
		ids = append(ids, dig(o, "id"))
	}
	s.call(object{"type": "DECLINE", "decline": object{"offer_ids": ids, "filters": object{"refuse_seconds": seconds}}})
}

func (s *script) acknowledge(e object) {
	s.t.Helper()
	switch e["type"] {
	case "UPDATE":
		if status := dig(e, "update", "status"); dig(status, "uuid") != nil {
			s.call(object{"type": "ACKNOWLEDGE", "acknowledge": object{
				"agent_id": dig(status, "agent_id"), "task_id": dig(status, "task_id"), "uuid": dig(status, "uuid")}})
		}
	case "UPDATE_OPERATION_STATUS":
		if status := dig(e, "update_operation_status", "status"); dig(status, "uuid") != nil {
			s.call(object{"type": "ACKNOWLEDGE_OPERATION_STATUS", "acknowledge_operation_status": object{
				"agent_id": dig(status, "agent_id"), "operation_id": dig(status, "operation_id"), "uuid": dig(status, "uuid", "value")}})
		}
	}
}

func (s *script) call(body object) {
	s.t.Helper()
	body["framework_id"] = s.framework
	data, err := json.Marshal(body)
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := post(s.ctx, s.master, "/api/v1/scheduler", "application/json", s.stream, data)
	if err != nil {
		s.t.Fatalf("%v: %v", body["type"], err)
	}
	defer resp.Body.Close()
	if text, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusAccepted {
		s.t.Fatalf("%v answered %d %s, want 202", body["type"], resp.StatusCode, text)
	}
}

// offer waits for an offer whose resources, as JSON, hold all of the texts.
func (s *script) offer(texts ...string) any {
	s.t.Helper()
	return dig(s.await("OFFERS", func(e object) bool {
		data, _ := json.Marshal(dig(e, "offers", "offers", "0", "resources"))
		for _, text := range texts {
			if !strings.Contains(string(data), text) {
				return false
			}
		}
		return true
	}), "offers", "offers", "0")
}

// accept answers an offer.
func (s *script) accept(offer any, operations ...any) {
	s.t.Helper()
	s.call(object{"type": "ACCEPT", "accept": object{
		"offer_ids": []any{dig(offer, "id")}, "operations": operations, "filters": object{"refuse_seconds": 0.1}}})
}

// operation waits for the end of an operation and returns its status.
func (s *script) operation(id string) any {
	s.t.Helper()
	return dig(s.await("UPDATE_OPERATION_STATUS", func(e object) bool {
		return dig(e, "update_operation_status", "status", "operation_id", "value") == id
	}), "update_operation_status", "status")
}

// state waits for a task's state; another one that ends the task fails the test.
func (s *script) state(task, want string) {
	s.t.Helper()
	s.await("UPDATE", func(e object) bool {
		status := dig(e, "update", "status")
		if dig(status, "task_id", "value") != task {
			return false
		}
		switch got := dig(status, "state"); got {
		case want:
			return true
		case "TASK_STAGING", "TASK_STARTING", "TASK_RUNNING", "TASK_KILLING":
		default:
			s.t.Fatalf("task %s: %v, want %s", task, status, want)
		}
		return false
	})
}

func scalar(name string, value float64) object {
	return object{"name": name, "type": "SCALAR", "scalar": object{"value": value}}
}

func reservedScalar(role, name string, value float64) object {
	r := scalar(name, value)
	r["reservations"] = []any{object{"type": "DYNAMIC", "role": role}}
	return r
}

func volumeJSON(role, id string, mib float64) object {
	v := reservedScalar(role, "disk", mib)
	v["disk"] = object{"persistence": object{"id": id}, "volume": object{"container_path": "data", "mode": "RW"}}
	return v
}

// taskOn is a LAUNCH of one task with a volume.
func taskOn(offer any, id, command string, resources ...any) object {
	return object{"type": "LAUNCH", "launch": object{"task_infos": []any{object{
		"name": id, "task_id": object{"value": id}, "agent_id": dig(offer, "agent_id"),
		"command":   object{"value": command},
		"resources": append([]any{scalar("cpus", 0.1), scalar("mem", 32)}, resources...),
	}}}}
}

// operatorJSON makes an operator call and returns status and body.
func operatorJSON(ctx context.Context, t *testing.T, master string, body object) (int, object) {
	t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := post(ctx, master, "/api/v1", "application/json", "", data)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer object
	if json.Unmarshal(text, &answer) != nil {
		answer = object{"text": string(text)}
	}
	return resp.StatusCode, answer
}

// crashAgent kills the agent and starts it again. While nobody listens on its port an outgoing connection of another
// program may get that port for a moment; then it is started once more.
func crashAgent(ctx context.Context, t *testing.T, c *cluster.Cluster) {
	t.Helper()
	if err := c.KillAgent(); err != nil {
		t.Fatal(err)
	}
	for {
		if err := c.StartAgent(); err != nil {
			t.Fatal(err)
		}
		for alive(c.AgentPid()) {
			try, cancel := context.WithTimeout(ctx, 3*time.Second)
			err := c.WaitAgentRecovered(try)
			cancel()
			if err == nil {
				return
			}
			if ctx.Err() != nil {
				t.Fatalf("the agent does not recover: %v", err)
			}
		}
	}
}

func TestAVolumeKeepsItsDataUntilItIsDestroyed(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	s := subscribeScript(ctx, t, c.Master, "eng")
	volume := volumeJSON("eng", "v1", 64)
	const held = `"id":"v1"`

	// Reserve, create and use in one call; the task writes.
	offer := s.offer()
	s.accept(offer,
		object{"type": "RESERVE", "id": object{"value": "reserve"}, "reserve": object{"resources": []any{reservedScalar("eng", "disk", 64)}}},
		object{"type": "CREATE", "id": object{"value": "create"}, "create": object{"volumes": []any{volume}}},
		taskOn(offer, "writer", "echo kept > data/file && sync && sleep 1000", volume))
	for _, id := range []string{"reserve", "create"} {
		if status := s.operation(id); dig(status, "state") != "OPERATION_FINISHED" || dig(status, "uuid") == nil {
			t.Fatalf("operation %s: %v, want it finished, with a uuid", id, status)
		}
	}
	s.state("writer", "TASK_RUNNING")
	agent := dig(offer, "agent_id")
	dir := filepath.Join(c.Dir, "agent", "volumes", "roles", "eng", "v1")
	eventually(t, "the file is in the volume's folder", 10*time.Second, func() bool {
		data, err := os.ReadFile(filepath.Join(dir, "file"))
		return err == nil && string(data) == "kept\n"
	})
	destroyVolume := object{"type": "DESTROY_VOLUMES", "destroy_volumes": object{"agent_id": agent, "volumes": []any{volume}}}
	if code, answer := operatorJSON(ctx, t, c.Master, destroyVolume); code != http.StatusConflict {
		t.Errorf("DESTROY_VOLUMES of a used volume answered %d %v, want 409", code, answer)
	}

	// The task goes, the agent dies, and another task finds the file.
	s.call(object{"type": "KILL", "kill": object{"task_id": object{"value": "writer"}}})
	s.state("writer", "TASK_KILLED")
	crashAgent(ctx, t, c)
	offer = s.offer(held)
	s.accept(offer, taskOn(offer, "reader", "[ \"$(cat data/file)\" = kept ] && sleep 1000", volume))
	s.state("reader", "TASK_RUNNING")

	// The agent dies again while it runs: the volume is still the task's.
	crashAgent(ctx, t, c)
	eventually(t, "DESTROY_VOLUMES while the volume is used is refused after a restart", 30*time.Second, func() bool {
		code, answer := operatorJSON(ctx, t, c.Master, destroyVolume)
		if code == http.StatusAccepted {
			t.Fatal("a used volume was destroyed")
		}
		return code == http.StatusConflict && strings.Contains(fmt.Sprint(answer["text"]), "in use")
	})
	s.call(object{"type": "KILL", "kill": object{"task_id": object{"value": "reader"}}})
	s.state("reader", "TASK_KILLED")

	// Destroyed by the framework: nothing is left, and a new volume of that name is empty.
	offer = s.offer(held)
	s.accept(offer,
		object{"type": "DESTROY", "id": object{"value": "destroy"}, "destroy": object{"volumes": []any{volume}}},
		object{"type": "CREATE", "id": object{"value": "again"}, "create": object{"volumes": []any{volume}}},
		taskOn(offer, "empty", "[ -d data ] && [ -z \"$(ls -A data/)\" ]", volume))
	for _, id := range []string{"destroy", "again"} {
		if status := s.operation(id); dig(status, "state") != "OPERATION_FINISHED" {
			t.Fatalf("operation %s: %v", id, status)
		}
	}
	s.state("empty", "TASK_FINISHED")

	// By the operator: destroy and unreserve.
	if code, answer := operatorJSON(ctx, t, c.Master, destroyVolume); code != http.StatusAccepted {
		t.Fatalf("DESTROY_VOLUMES answered %d %v, want 202", code, answer)
	}
	if code, answer := operatorJSON(ctx, t, c.Master, object{"type": "UNRESERVE_RESOURCES", "unreserve_resources": object{
		"agent_id": agent, "resources": []any{reservedScalar("eng", "disk", 64)}}}); code != http.StatusAccepted {
		t.Fatalf("UNRESERVE_RESOURCES answered %d %v, want 202", code, answer)
	}
	eventually(t, "the folder is gone and no operation waits", 10*time.Second, func() bool {
		_, err := os.Lstat(dir)
		trash, _ := os.ReadDir(filepath.Join(c.Dir, "agent", "volumes", ".destroyed"))
		_, answer := operatorJSON(ctx, t, c.Master, object{"type": "GET_OPERATIONS"})
		return os.IsNotExist(err) && len(trash) == 0 && dig(answer, "get_operations", "operations") == nil
	})
	_, answer := operatorJSON(ctx, t, c.Master, object{"type": "GET_AGENTS"})
	if data, _ := json.Marshal(dig(answer, "get_agents", "agents", "0", "total_resources")); strings.Contains(string(data), "DYNAMIC") {
		t.Errorf("the agent still has reservations: %s", data)
	}
}

func TestADrainedAgentTakesTasksAgainOnlyWhenReactivated(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	s := subscribeScript(ctx, t, c.Master, "eng")
	offer := s.offer()
	agent := dig(offer, "agent_id")
	s.accept(offer, taskOn(offer, "t", "sleep 1000"))
	s.state("t", "TASK_RUNNING")
	if code, answer := operatorJSON(ctx, t, c.Master, object{"type": "DRAIN_AGENT", "drain_agent": object{"agent_id": agent, "max_grace_period": object{"seconds": 1}}}); code != http.StatusOK {
		t.Fatalf("DRAIN_AGENT answered %d %v, want 200", code, answer)
	}
	e := s.await("UPDATE", func(e object) bool { return dig(e, "update", "status", "state") == "TASK_KILLED" })
	if got := dig(e, "update", "status", "reason"); got != "REASON_AGENT_DRAINING" && got != "REASON_SLAVE_DRAINING" {
		t.Errorf("reason of the end = %v, want that of a drain", got)
	}
	drainState := func() any {
		_, answer := operatorJSON(ctx, t, c.Master, object{"type": "GET_AGENTS"})
		return dig(answer, "get_agents", "agents", "0", "drain_info", "state")
	}
	eventually(t, "the agent is drained", 20*time.Second, func() bool { return drainState() == "DRAINED" })
	reactivate := object{"type": "REACTIVATE_AGENT", "reactivate_agent": object{"agent_id": agent}}
	if code, answer := operatorJSON(ctx, t, c.Master, reactivate); code != http.StatusOK {
		t.Fatalf("REACTIVATE_AGENT answered %d %v, want 200", code, answer)
	}
	offer = s.offer()
	s.accept(offer, taskOn(offer, "u", "true"))
	s.state("u", "TASK_FINISHED")
	if code, answer := operatorJSON(ctx, t, c.Master, object{"type": "UPDATE_QUOTA", "update_quota": object{"quota_configs": []any{object{
		"role": "eng", "guarantees": object{"cpus": object{"value": 1000}}}}}}); code != http.StatusBadRequest {
		t.Errorf("UPDATE_QUOTA beyond the cluster answered %d %v, want 400", code, answer)
	}
	if code, answer := operatorJSON(ctx, t, c.Master, object{"type": "UPDATE_QUOTA", "update_quota": object{"quota_configs": []any{object{
		"role": "eng", "limits": object{"cpus": object{"value": 1}}}}}}); code != http.StatusOK {
		t.Errorf("UPDATE_QUOTA answered %d %v, want 200", code, answer)
	}
	_, answer := operatorJSON(ctx, t, c.Master, object{"type": "GET_QUOTA"})
	if got := dig(answer, "get_quota", "status", "configs", "0", "limits", "cpus", "value"); got != 1.0 {
		t.Errorf("GET_QUOTA answered %v, want a limit of one cpu", answer)
	}
}

func TestReservationsVolumesAndQuotasOutliveTheMaster(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	agents := func() any {
		_, answer := operatorJSON(ctx, t, c.Master, object{"type": "GET_AGENTS"})
		return dig(answer, "get_agents", "agents", "0")
	}
	id := dig(agents(), "agent_info", "id")
	for _, call := range []object{
		{"type": "RESERVE_RESOURCES", "reserve_resources": object{"agent_id": id, "resources": []any{reservedScalar("eng", "disk", 64)}}},
		{"type": "CREATE_VOLUMES", "create_volumes": object{"agent_id": id, "volumes": []any{volumeJSON("eng", "v1", 64)}}},
	} {
		if code, answer := operatorJSON(ctx, t, c.Master, call); code != http.StatusAccepted {
			t.Fatalf("%v answered %d %v, want 202", call["type"], code, answer)
		}
	}
	quota := object{"type": "UPDATE_QUOTA", "update_quota": object{"quota_configs": []any{object{
		"role": "eng", "guarantees": object{"cpus": object{"value": 1}}}}}}
	for _, call := range []object{quota, {"type": "DEACTIVATE_AGENT", "deactivate_agent": object{"agent_id": id}}} {
		if code, answer := operatorJSON(ctx, t, c.Master, call); code != http.StatusOK {
			t.Fatalf("%v answered %d %v, want 200", call["type"], code, answer)
		}
	}
	if err := c.KillMaster(); err != nil {
		t.Fatal(err)
	}
	if err := c.StartMaster(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the agent is back", 30*time.Second, func() bool {
		resp, err := post(ctx, c.Master, "/api/v1", "application/json", "", []byte(`{"type":"GET_AGENTS"}`))
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK && agents() != nil
	})
	data, err := json.Marshal(dig(agents(), "total_resources"))
	if err != nil || !strings.Contains(string(data), `"id":"v1"`) {
		t.Errorf("resources after the restart: %s, want the volume", data)
	}
	if dig(agents(), "deactivated") != true {
		t.Errorf("agent after the restart: %v, want it deactivated", agents())
	}
	_, answer := operatorJSON(ctx, t, c.Master, object{"type": "GET_QUOTA"})
	if got := dig(answer, "get_quota", "status", "configs", "0", "guarantees", "cpus", "value"); got != 1.0 {
		t.Errorf("GET_QUOTA after the restart answered %v, want the guarantee", answer)
	}
	unreserve := object{"type": "UNRESERVE_RESOURCES", "unreserve_resources": object{"agent_id": id, "resources": []any{reservedScalar("eng", "disk", 64)}}}
	if code, answer := operatorJSON(ctx, t, c.Master, unreserve); code != http.StatusConflict {
		t.Errorf("UNRESERVE_RESOURCES under a volume answered %d %v, want 409", code, answer)
	}
}
