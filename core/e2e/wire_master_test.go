package e2e

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// mediaName is the encoding's name in names of roles and executors.
func mediaName(media string) string {
	return strings.TrimPrefix(strings.TrimPrefix(media, "application/"), "x-")
}

func TestWireMasterReads(t *testing.T) {
	c := start(t, cluster.Options{})
	inBothMedia(t, time.Minute, func(ctx context.Context, t *testing.T, media string) {
		role := "wire-reads-" + mediaName(media)
		p := subscribe(ctx, t, c.Master, media, role, nil)
		o := p.offer(1, nil)
		p.accept(o, launchOf(taskOf(o, "task-"+role, "sleep 1000")))
		p.state("task-"+role, "TASK_RUNNING")

		m := newPeer(ctx, t, masterAPI, c.Master, media)
		read := func(call string, body object, path ...string) any {
			t.Helper()
			if body == nil {
				body = object{}
			}
			body["type"] = call
			a := m.call(http.StatusOK, body)
			if got := dig(a.object, "type"); got != call {
				t.Errorf("%s is answered with type %v", call, got)
			}
			return dig(a.object, path...)
		}
		has := func(what string, list any, ok func(any) bool) {
			t.Helper()
			items, _ := list.([]any)
			for _, i := range items {
				if ok(i) {
					return
				}
			}
			t.Errorf("%s: not in %v", what, list)
		}
		if got := read("GET_HEALTH", nil, "get_health", "healthy"); got != true {
			t.Errorf("healthy is %v", got)
		}
		has("flag work_dir", read("GET_FLAGS", nil, "get_flags", "flags"), func(f any) bool { return dig(f, "name") == "work_dir" })
		if got := read("GET_VERSION", nil, "get_version", "version_info", "version"); got != "1.11.0" {
			t.Errorf("version %v, want dotted numbers", got)
		}
		has("metric master/elected", read("GET_METRICS", object{"get_metrics": object{"timeout": object{"nanoseconds": 5000000000}}}, "get_metrics", "metrics"), func(x any) bool {
			return dig(x, "name") == "master/elected" && dig(x, "value") == 1.0
		})
		read("GET_LOGGING_LEVEL", nil, "get_logging_level", "level")
		m.call(http.StatusOK, object{"type": "SET_LOGGING_LEVEL", "set_logging_level": object{"level": 1, "duration": object{"nanoseconds": 1000000000}}})
		if got := read("GET_LOGGING_LEVEL", nil, "get_logging_level", "level"); got != 1.0 {
			t.Errorf("level %v after it was set to 1", got)
		}
		m.call(http.StatusNotFound, object{"type": "LIST_FILES", "list_files": object{"path": "/no/such"}})
		m.call(http.StatusNotFound, object{"type": "READ_FILE", "read_file": object{"path": "/no/such", "offset": 0}})
		mine := func(path ...string) func(any) bool {
			return func(i any) bool { return dig(i, path...) == dig(p.framework, "value") }
		}
		has("the framework", read("GET_FRAMEWORKS", nil, "get_frameworks", "frameworks"), mine("framework_info", "id", "value"))
		has("the task", read("GET_TASKS", nil, "get_tasks", "tasks"), mine("framework_id", "value"))
		has("the task in the state", read("GET_STATE", nil, "get_state", "get_tasks", "tasks"), mine("framework_id", "value"))
		has("the agent", read("GET_AGENTS", nil, "get_agents", "agents"), func(a any) bool {
			return dig(a, "active") == true && dig(a, "agent_info", "id", "value") == dig(o, "agent_id", "value")
		})
		has("the role", read("GET_ROLES", nil, "get_roles", "roles"), func(r any) bool { return dig(r, "name") == role && dig(r, "weight") == 1.0 })
		read("GET_EXECUTORS", nil)
		read("GET_OPERATIONS", nil)
		if got := read("GET_MASTER", nil, "get_master", "master_info", "address", "port"); got == nil {
			t.Error("GET_MASTER has no port")
		}
		m.call(http.StatusNotImplemented, object{"type": "UNKNOWN"})
		m.call(http.StatusOK, object{"type": "TEARDOWN", "teardown": object{"framework_id": p.framework}})
		p.ended()
		m.call(http.StatusBadRequest, object{"type": "TEARDOWN", "teardown": object{"framework_id": object{"value": "nobody"}}})
	})
}

func TestWireMasterEvents(t *testing.T) {
	c := start(t, cluster.Options{})
	inBothMedia(t, time.Minute, func(ctx context.Context, t *testing.T, media string) {
		m := newPeer(ctx, t, masterAPI, c.Master, media)
		m.open(object{"type": "SUBSCRIBE"})
		s := m.await("SUBSCRIBED", nil)
		if dig(s, "subscribed", "heartbeat_interval_seconds") != 15.0 || dig(s, "subscribed", "get_state", "get_agents", "agents", "0") == nil {
			t.Errorf("SUBSCRIBED %v, want the interval and the whole state", s)
		}
		m.await("HEARTBEAT", nil)
		p := subscribe(ctx, t, c.Master, media, "wire-events", nil)
		mine := func(path ...string) func(object) bool {
			return func(e object) bool { return dig(e, path...) == dig(p.framework, "value") }
		}
		m.await("FRAMEWORK_ADDED", mine("framework_added", "framework", "framework_info", "id", "value"))
		o := p.offer(1, nil)
		p.accept(o, launchOf(taskOf(o, "seen", "true")))
		p.state("seen", "TASK_FINISHED")
		m.await("TASK_ADDED", mine("task_added", "task", "framework_id", "value"))
		m.await("TASK_UPDATED", func(e object) bool {
			return mine("task_updated", "framework_id", "value")(e) && dig(e, "task_updated", "status", "state") == "TASK_FINISHED"
		})
		p.body.Close()
		m.await("FRAMEWORK_UPDATED", func(e object) bool {
			return mine("framework_updated", "framework", "framework_info", "id", "value")(e) && dig(e, "framework_updated", "framework", "connected") != true
		})
		newPeer(ctx, t, masterAPI, c.Master, media).call(http.StatusOK, object{"type": "TEARDOWN", "teardown": object{"framework_id": p.framework}})
		m.await("FRAMEWORK_REMOVED", mine("framework_removed", "framework_info", "id", "value"))
	})
	// The agent is marked gone and another comes: once for both streams.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var streams []*peer
	for _, media := range []string{mediaJSON, mediaProtobuf} {
		m := newPeer(ctx, t, masterAPI, c.Master, media)
		m.open(object{"type": "SUBSCRIBE"})
		m.await("SUBSCRIBED", nil)
		streams = append(streams, m)
	}
	m := newPeer(ctx, t, masterAPI, c.Master, mediaProtobuf)
	agent := dig(m.call(http.StatusOK, object{"type": "GET_AGENTS"}).object, "get_agents", "agents", "0", "agent_info", "id")
	m.call(http.StatusNotFound, object{"type": "MARK_AGENT_GONE", "mark_agent_gone": object{"agent_id": object{"value": "nobody"}}})
	newPeer(ctx, t, masterAPI, c.Master, mediaJSON).call(http.StatusOK, object{"type": "MARK_AGENT_GONE", "mark_agent_gone": object{"agent_id": agent}})
	for _, s := range streams {
		s.await("AGENT_REMOVED", func(e object) bool { return dig(e, "agent_removed", "agent_id", "value") == dig(agent, "value") })
	}
	_ = c.StopAgent()                                                   // told to go, it may have gone already
	if err := os.RemoveAll(filepath.Join(c.Dir, "agent")); err != nil { // a new agent, with an id of its own
		t.Fatal(err)
	}
	if err := c.StartAgent(); err != nil {
		t.Fatal(err)
	}
	for _, s := range streams {
		s.await("AGENT_ADDED", nil)
	}
}

func TestWireMasterReservesAndMakesVolumes(t *testing.T) {
	c := start(t, cluster.Options{})
	inBothMedia(t, 30*time.Second, func(ctx context.Context, t *testing.T, media string) {
		role := "wire-disks-" + mediaName(media)
		m := newPeer(ctx, t, masterAPI, c.Master, media)
		agent := dig(m.call(http.StatusOK, object{"type": "GET_AGENTS"}).object, "get_agents", "agents", "0", "agent_info", "id")
		operation := func(call, body string, fields object) {
			t.Helper()
			fields["agent_id"] = agent
			m.call(http.StatusAccepted, object{"type": call, body: fields})
		}
		operation("RESERVE_RESOURCES", "reserve_resources", object{"resources": []any{reservedOf("disk", 128, role)}})
		volume := reservedOf("disk", 64, role)
		volume["disk"] = object{"persistence": object{"id": "v"}, "volume": object{"mode": "RW", "container_path": "data"}}
		operation("CREATE_VOLUMES", "create_volumes", object{"volumes": []any{volume}})
		operation("GROW_VOLUME", "grow_volume", object{"volume": volume, "addition": reservedOf("disk", 64, role)})
		volume["scalar"] = object{"value": 128}
		operation("SHRINK_VOLUME", "shrink_volume", object{"volume": volume, "subtract": object{"value": 96}})
		volume["scalar"] = object{"value": 32}
		m.call(http.StatusConflict, object{"type": "UNRESERVE_RESOURCES", "unreserve_resources": object{"agent_id": agent, "resources": []any{reservedOf("disk", 128, role)}}})
		operation("DESTROY_VOLUMES", "destroy_volumes", object{"volumes": []any{volume}})
		operation("UNRESERVE_RESOURCES", "unreserve_resources", object{"resources": []any{reservedOf("disk", 128, role)}})
		m.call(http.StatusBadRequest, object{"type": "RESERVE_RESOURCES", "reserve_resources": object{"agent_id": object{"value": "nobody"}, "resources": []any{reservedOf("disk", 1, role)}}})
	})
}

func TestWireMasterQuotaAndWeights(t *testing.T) {
	c := start(t, cluster.Options{})
	inBothMedia(t, 30*time.Second, func(ctx context.Context, t *testing.T, media string) {
		m := newPeer(ctx, t, masterAPI, c.Master, media)
		role := "wire-quota-" + mediaName(media)
		quota := func(call object, code int) {
			t.Helper()
			call["type"] = "UPDATE_QUOTA"
			m.call(code, call)
		}
		config := func(role string, guarantee, limit float64) object {
			return object{"update_quota": object{"quota_configs": []any{object{
				"role": role, "guarantees": object{"cpus": object{"value": guarantee}}, "limits": object{"cpus": object{"value": limit}},
			}}}}
		}
		quota(config(role, 1, 2), http.StatusOK)
		quota(config(role, 3, 2), http.StatusBadRequest)
		quota(config(role, 1000, 2000), http.StatusBadRequest)
		quota(config(role+"/nested", 1, 2), http.StatusBadRequest)
		a := m.call(http.StatusOK, object{"type": "GET_QUOTA"})
		found := false
		configs, _ := dig(a.object, "get_quota", "status", "configs").([]any)
		for _, q := range configs {
			found = found || dig(q, "role") == role && dig(q, "limits", "cpus", "value") == 2.0 && dig(q, "guarantees", "cpus", "value") == 1.0
		}
		if !found {
			t.Errorf("GET_QUOTA %s, want the quota of %s", a.text, role)
		}
		quota(object{"update_quota": object{"quota_configs": []any{object{"role": role}}}}, http.StatusOK)
		// The older pair of calls.
		old := object{"type": "SET_QUOTA", "set_quota": object{"quota_request": object{"role": role, "guarantee": []any{scalarOf("cpus", 1)}}}}
		m.call(http.StatusOK, old)
		m.call(http.StatusBadRequest, old) // there is one already
		m.call(http.StatusOK, object{"type": "REMOVE_QUOTA", "remove_quota": object{"role": role}})
		m.call(http.StatusBadRequest, object{"type": "REMOVE_QUOTA", "remove_quota": object{"role": role}})

		m.call(http.StatusOK, object{"type": "UPDATE_WEIGHTS", "update_weights": object{"weight_infos": []any{object{"role": role, "weight": 2.5}}}})
		m.call(http.StatusBadRequest, object{"type": "UPDATE_WEIGHTS", "update_weights": object{"weight_infos": []any{object{"role": role, "weight": -1}}}})
		a = m.call(http.StatusOK, object{"type": "GET_WEIGHTS"})
		found = false
		weights, _ := dig(a.object, "get_weights", "weight_infos").([]any)
		for _, w := range weights {
			found = found || dig(w, "role") == role && dig(w, "weight") == 2.5
		}
		if !found {
			t.Errorf("GET_WEIGHTS %s, want 2.5 for %s", a.text, role)
		}
	})
}

func TestWireMasterDrainsAndDeactivates(t *testing.T) {
	c := start(t, cluster.Options{})
	inBothMedia(t, time.Minute, func(ctx context.Context, t *testing.T, media string) {
		p := subscribe(ctx, t, c.Master, media, "wire-drain", nil)
		o := p.offer(1, nil)
		p.accept(o, launchOf(taskOf(o, "drained", "sleep 1000")))
		p.state("drained", "TASK_RUNNING")
		m := newPeer(ctx, t, masterAPI, c.Master, media)
		m.call(http.StatusBadRequest, object{"type": "DRAIN_AGENT", "drain_agent": object{"agent_id": object{"value": "nobody"}}})
		drain := object{"type": "DRAIN_AGENT", "drain_agent": object{"agent_id": o["agent_id"]}}
		if media == mediaJSON {
			// Mesos's JSON of a google.protobuf.Duration is the plain message.
			drain["drain_agent"].(object)["max_grace_period"] = object{"seconds": 1, "nanos": 0}
		}
		m.call(http.StatusOK, drain)
		s := p.await("UPDATE", func(e object) bool { return dig(e, "update", "status", "state") == "TASK_KILLED" })
		if got := dig(s, "update", "status", "reason"); got != "REASON_AGENT_DRAINING" && got != "REASON_SLAVE_DRAINING" {
			t.Errorf("drained task: reason %v, want the draining", got)
		}
		eventually(t, "DRAINED", 20*time.Second, func() bool {
			a := m.call(http.StatusOK, object{"type": "GET_AGENTS"})
			return dig(a.object, "get_agents", "agents", "0", "drain_info", "state") == "DRAINED"
		})
		m.call(http.StatusOK, object{"type": "REACTIVATE_AGENT", "reactivate_agent": object{"agent_id": o["agent_id"]}})
		m.call(http.StatusBadRequest, object{"type": "REACTIVATE_AGENT", "reactivate_agent": object{"agent_id": o["agent_id"]}})
		m.call(http.StatusOK, object{"type": "DEACTIVATE_AGENT", "deactivate_agent": object{"agent_id": o["agent_id"]}})
		a := m.call(http.StatusOK, object{"type": "GET_AGENTS"})
		if got := dig(a.object, "get_agents", "agents", "0", "deactivated"); got != true {
			t.Errorf("deactivated is %v", got)
		}
		m.call(http.StatusOK, object{"type": "REACTIVATE_AGENT", "reactivate_agent": object{"agent_id": o["agent_id"]}})
		p.offer(1, nil)
		p.call(http.StatusAccepted, object{"type": "TEARDOWN"})
		p.ended()
	})
}

func TestWireMaintenanceTakesAMachineDownAndUp(t *testing.T) {
	c := start(t, cluster.Options{})
	inBothMedia(t, time.Minute, func(ctx context.Context, t *testing.T, media string) {
		m := newPeer(ctx, t, masterAPI, c.Master, media)
		agent := func() any {
			a := m.call(http.StatusOK, object{"type": "GET_AGENTS"})
			return dig(a.object, "get_agents", "agents", "0", "agent_info")
		}
		eventually(t, "an agent", 30*time.Second, func() bool { return agent() != nil })
		machine := object{"hostname": dig(agent(), "hostname"), "ip": "127.0.0.1"}
		machines := []any{machine}
		m.call(http.StatusBadRequest, object{"type": "START_MAINTENANCE", "start_maintenance": object{"machines": machines}}) // not scheduled
		m.call(http.StatusOK, object{"type": "UPDATE_MAINTENANCE_SCHEDULE", "update_maintenance_schedule": object{"schedule": object{"windows": []any{
			object{"machine_ids": machines, "unavailability": object{"start": object{"nanoseconds": time.Now().UnixNano()}}},
		}}}})
		m.call(http.StatusOK, object{"type": "START_MAINTENANCE", "start_maintenance": object{"machines": machines}})
		eventually(t, "the agent to be gone", 20*time.Second, func() bool { return agent() == nil })
		a := m.call(http.StatusOK, object{"type": "GET_MAINTENANCE_STATUS"})
		if got := dig(a.object, "get_maintenance_status", "status", "down_machines", "0", "hostname"); got != machine["hostname"] {
			t.Errorf("status %s, want the machine down", a.text)
		}
		// Down machines may not vanish from the schedule.
		m.call(http.StatusBadRequest, object{"type": "UPDATE_MAINTENANCE_SCHEDULE", "update_maintenance_schedule": object{"schedule": object{}}})
		m.call(http.StatusOK, object{"type": "STOP_MAINTENANCE", "stop_maintenance": object{"machines": machines}})
		m.call(http.StatusBadRequest, object{"type": "STOP_MAINTENANCE", "stop_maintenance": object{"machines": machines}})
		a = m.call(http.StatusOK, object{"type": "GET_MAINTENANCE_SCHEDULE"})
		if dig(a.object, "get_maintenance_schedule", "schedule", "windows", "0") != nil {
			t.Errorf("schedule %s, want the machine out of it", a.text)
		}
		_ = c.StopAgent() // told to go, it may have gone already
		if err := c.StartAgent(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the agent to be back", 30*time.Second, func() bool { return agent() != nil })
	})
}
