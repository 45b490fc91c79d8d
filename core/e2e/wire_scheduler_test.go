package e2e

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

func TestWireTasksFromOfferToTeardown(t *testing.T) {
	c := start(t, cluster.Options{})
	inBothMedia(t, time.Minute, func(ctx context.Context, t *testing.T, media string) {
		p := subscribe(ctx, t, c.Master, media, "wire-tasks", nil)
		p.await("HEARTBEAT", nil)

		// Refused for long, then asked for again.
		o := p.offer(1, nil)
		if dig(o, "allocation_info", "role") != "wire-tasks" || dig(o, "url", "path") != "/slave(1)" || dig(o, "hostname") == nil {
			t.Errorf("offer %v, want its role, the agent's hostname and URL", o)
		}
		p.call(http.StatusAccepted, object{"type": "DECLINE", "decline": object{"offer_ids": []any{o["id"]}, "filters": object{"refuse_seconds": 3600}}})
		p.call(http.StatusAccepted, object{"type": "REVIVE", "revive": object{"roles": []any{"wire-tasks"}}})
		o = p.offer(1, nil)
		p.call(http.StatusAccepted, object{"type": "REQUEST", "request": object{"requests": []any{object{"resources": []any{scalarOf("cpus", 1)}}}}})

		p.accept(o, launchOf(taskOf(o, "short", "exit 3"), taskOf(o, "long", "sleep 1000")))
		if s := p.state("short", "TASK_FAILED"); dig(s, "message") != "Command exited with status 3" || dig(s, "source") != "SOURCE_EXECUTOR" || dig(s, "reason") != nil {
			t.Errorf("update %v, want the message and no reason", s)
		}
		p.call(http.StatusAccepted, object{"type": "SUPPRESS", "suppress": object{"roles": []any{"wire-tasks"}}})
		p.call(http.StatusAccepted, object{"type": "RECONCILE", "reconcile": object{"tasks": []any{object{"task_id": object{"value": "long"}}}}})
		s := p.await("UPDATE", func(e object) bool { return dig(e, "update", "status", "reason") == "REASON_RECONCILIATION" })
		if s := dig(s, "update", "status"); dig(s, "uuid") != nil || dig(s, "source") != "SOURCE_MASTER" {
			t.Errorf("answer to RECONCILE %v, want the master's, without uuid", s)
		}
		p.call(http.StatusAccepted, object{"type": "KILL", "kill": object{"task_id": object{"value": "long"}, "agent_id": o["agent_id"]}})
		killed := p.await("UPDATE", func(e object) bool { return dig(e, "update", "status", "state") == "TASK_KILLED" })
		// Once more by hand: an acknowledgement of what was acknowledged is accepted and does nothing.
		p.call(http.StatusAccepted, object{"type": "ACKNOWLEDGE", "acknowledge": object{
			"agent_id": o["agent_id"], "task_id": object{"value": "long"}, "uuid": dig(killed, "update", "status", "uuid"),
		}})
		p.call(http.StatusOK, object{"type": "UPDATE_FRAMEWORK", "update_framework": object{"framework_info": object{
			"id": p.framework, "user": "root", "name": "renamed", "roles": []any{"wire-tasks"}, "checkpoint": true, "failover_timeout": 60,
			"capabilities": []any{object{"type": "PARTITION_AWARE"}, object{"type": "MULTI_ROLE"}, object{"type": "RESERVATION_REFINEMENT"}},
		}}})
		p.call(http.StatusAccepted, object{"type": "TEARDOWN"})
		p.ended()
	})
}

func TestWireOperationsWithFeedback(t *testing.T) {
	c := start(t, cluster.Options{})
	inBothMedia(t, time.Minute, func(ctx context.Context, t *testing.T, media string) {
		role := "wire-volumes-" + mediaName(media)
		p := subscribe(ctx, t, c.Master, media, role, nil)
		finished := func(id string) object {
			t.Helper()
			e := p.await("UPDATE_OPERATION_STATUS", func(e object) bool { return dig(e, "update_operation_status", "status", "operation_id", "value") == id })
			status := dig(e, "update_operation_status", "status").(object)
			if dig(status, "state") != "OPERATION_FINISHED" {
				t.Fatalf("operation %s: %v", id, status)
			}
			p.call(http.StatusAccepted, object{"type": "ACKNOWLEDGE_OPERATION_STATUS", "acknowledge_operation_status": object{
				"agent_id": dig(status, "agent_id"), "operation_id": dig(status, "operation_id"), "uuid": dig(status, "uuid", "value"),
			}})
			return status
		}
		o := p.offer(1, nil)
		volume := reservedOf("disk", 64, role)
		volume["disk"] = object{
			"persistence": object{"id": "v1"},
			"volume":      object{"mode": "RW", "container_path": "data"},
		}
		p.accept(o,
			object{"type": "RESERVE", "id": object{"value": "reserve"}, "reserve": object{"resources": []any{reservedOf("cpus", 0.5, role), reservedOf("mem", 64, role), reservedOf("disk", 128, role)}}},
			object{"type": "CREATE", "id": object{"value": "create"}, "create": object{"volumes": []any{volume}}},
		)
		finished("reserve")
		finished("create")

		reserved := func(ok func(disk float64, persistent bool) bool) object {
			t.Helper()
			return p.offer(0.5, func(o object) bool {
				list, _ := o["resources"].([]any)
				for _, r := range list {
					size, _ := dig(r, "scalar", "value").(float64)
					if dig(r, "name") == "disk" && dig(r, "reservations", "0", "role") == role && ok(size, dig(r, "disk", "persistence", "id") == "v1") {
						return true
					}
				}
				return false
			})
		}
		o = reserved(func(size float64, persistent bool) bool { return persistent && size == 64 })
		// A task writes to the volume.
		task := taskOf(o, "writer", "echo kept > data/file")
		task["resources"] = []any{reservedOf("cpus", 0.1, role), reservedOf("mem", 32, role), volume}
		p.accept(o, launchOf(task))
		p.state("writer", "TASK_FINISHED")

		o = reserved(func(size float64, persistent bool) bool { return persistent && size == 64 })
		p.accept(o, object{"type": "GROW_VOLUME", "id": object{"value": "grow"}, "grow_volume": object{"volume": volume, "addition": reservedOf("disk", 32, role)}})
		finished("grow")
		o = reserved(func(size float64, persistent bool) bool { return persistent && size == 96 })
		volume["scalar"] = object{"value": 96}
		p.accept(o, object{"type": "SHRINK_VOLUME", "id": object{"value": "shrink"}, "shrink_volume": object{"volume": volume, "subtract": object{"value": 32}}})
		finished("shrink")
		volume["scalar"] = object{"value": 64}

		p.call(http.StatusAccepted, object{"type": "RECONCILE_OPERATIONS", "reconcile_operations": object{"operations": []any{
			object{"operation_id": object{"value": "nobody-knows"}, "agent_id": o["agent_id"]},
		}}})
		e := p.await("UPDATE_OPERATION_STATUS", func(e object) bool {
			return dig(e, "update_operation_status", "status", "operation_id", "value") == "nobody-knows"
		})
		if got := dig(e, "update_operation_status", "status", "state"); got != "OPERATION_UNKNOWN" {
			t.Errorf("reconciled operation is %v, want OPERATION_UNKNOWN", got)
		}

		o = reserved(func(size float64, persistent bool) bool { return persistent && size == 64 })
		// The volume is in use by a task of the same call: destroying it then is refused, the task runs.
		task = taskOf(o, "reader", "cat data/file && sleep 1000")
		task["resources"] = []any{reservedOf("cpus", 0.1, role), reservedOf("mem", 32, role), volume}
		p.accept(o, launchOf(task), object{"type": "DESTROY", "id": object{"value": "early"}, "destroy": object{"volumes": []any{volume}}})
		e = p.await("UPDATE_OPERATION_STATUS", func(e object) bool {
			return dig(e, "update_operation_status", "status", "operation_id", "value") == "early"
		})
		if got := dig(e, "update_operation_status", "status", "state"); got != "OPERATION_ERROR" {
			t.Errorf("DESTROY of a volume in use: %v, want OPERATION_ERROR", got)
		}
		p.state("reader", "TASK_RUNNING")
		p.call(http.StatusAccepted, object{"type": "KILL", "kill": object{"task_id": object{"value": "reader"}}})
		p.state("reader", "TASK_KILLED")
		o = reserved(func(size float64, persistent bool) bool { return persistent && size == 64 })
		p.accept(o,
			object{"type": "DESTROY", "id": object{"value": "destroy"}, "destroy": object{"volumes": []any{volume}}},
			object{"type": "UNRESERVE", "id": object{"value": "unreserve"}, "unreserve": object{"resources": []any{reservedOf("cpus", 0.5, role), reservedOf("mem", 64, role), reservedOf("disk", 128, role)}}},
		)
		finished("destroy")
		finished("unreserve")
		p.call(http.StatusAccepted, object{"type": "TEARDOWN"})
		p.ended()
	})
}

func TestWireSubscriptionsAreRefusedInTheStream(t *testing.T) {
	c := start(t, cluster.Options{})
	inBothMedia(t, 30*time.Second, func(ctx context.Context, t *testing.T, media string) {
		for name, change := range map[string]func(info object){
			"a bad role":             func(info object) { info["roles"] = []any{"/no"} },
			"a role given twice":     func(info object) { info["roles"] = []any{"x", "x"} },
			"role and roles":         func(info object) { info["role"] = "x" },
			"an endless failover":    func(info object) { info["failover_timeout"] = 1e300 },
			"an id that is not ours": func(info object) { info["id"] = object{"value": "../x"} },
		} {
			p := newPeer(ctx, t, schedulerAPI, c.Master, media)
			info := object{"user": "root", "name": "refused", "roles": []any{"x"}, "capabilities": []any{object{"type": "MULTI_ROLE"}}}
			change(info)
			call := object{"type": "SUBSCRIBE", "subscribe": object{"framework_info": info}}
			if info["id"] != nil {
				call["framework_id"] = info["id"]
			}
			p.open(call)
			e := <-p.events
			if e["type"] != "ERROR" || dig(e, "error", "message") == "" {
				t.Errorf("%s: first event %v, want an ERROR with a message", name, e)
			}
			observe(t, "scheduler", "event", "ERROR", media, 0)
			p.ended()
		}
	})
}

func TestWireATakeoverEndsTheOldStreamAndKeepsTheTasks(t *testing.T) {
	c := start(t, cluster.Options{})
	inBothMedia(t, 30*time.Second, func(ctx context.Context, t *testing.T, media string) {
		old := subscribe(ctx, t, c.Master, media, "wire-failover", nil)
		o := old.offer(1, nil)
		old.accept(o, launchOf(taskOf(o, "stays", "sleep 1000")))
		old.state("stays", "TASK_RUNNING")

		p := newPeer(ctx, t, schedulerAPI, c.Master, media)
		p.open(object{"type": "SUBSCRIBE", "framework_id": old.framework, "subscribe": object{"framework_info": object{
			"id": old.framework, "user": "root", "name": "wire", "roles": []any{"wire-failover"}, "checkpoint": true, "failover_timeout": 60,
			"capabilities": []any{object{"type": "PARTITION_AWARE"}, object{"type": "MULTI_ROLE"}, object{"type": "RESERVATION_REFINEMENT"}},
		}}})
		p.framework = dig(p.await("SUBSCRIBED", nil), "subscribed", "framework_id")
		if a, b := dig(p.framework, "value"), dig(old.framework, "value"); a != b {
			t.Errorf("taken over as %v, want %v", a, b)
		}
		for e := range old.events {
			if e["type"] == "ERROR" {
				if got := dig(e, "error", "message"); got != "Framework failed over" {
					t.Errorf("old stream: error %q, want Framework failed over", got)
				}
				observe(t, "scheduler", "event", "ERROR", media, 0)
			}
		}
		// The old stream's id is worth nothing now.
		old.call(http.StatusBadRequest, object{"type": "REVIVE", "revive": object{}})
		p.call(http.StatusAccepted, object{"type": "RECONCILE", "reconcile": object{}})
		e := p.await("UPDATE", func(e object) bool { return dig(e, "update", "status", "reason") == "REASON_RECONCILIATION" })
		if got := dig(e, "update", "status", "state"); got != "TASK_RUNNING" {
			t.Errorf("task after the takeover: %v, want TASK_RUNNING", got)
		}
		p.call(http.StatusAccepted, object{"type": "TEARDOWN"})
		p.ended()
	})
}

func TestWireAnUnacknowledgedUpdateComesAgainThroughTheNextMaster(t *testing.T) {
	inBothMedia(t, 2*time.Minute, func(ctx context.Context, t *testing.T, media string) {
		c := start(t, cluster.Options{})
		old := subscribe(ctx, t, c.Master, media, "wire-master", nil)
		old.keeps = true
		o := old.offer(1, nil)
		old.accept(o, launchOf(taskOf(o, "told", "sleep 1000"), taskOf(o, "beside", "sleep 1000")))
		first := map[any]any{}
		for len(first) < 2 {
			s := dig(old.await("UPDATE", nil), "update", "status")
			first[dig(s, "task_id", "value")] = dig(s, "uuid")
		}
		if err := c.KillMaster(); err != nil {
			t.Fatal(err)
		}
		if err := c.StartMaster(); err != nil {
			t.Fatal(err)
		}
		if err := c.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
		p := newPeer(ctx, t, schedulerAPI, c.Master, media)
		p.open(object{"type": "SUBSCRIBE", "framework_id": old.framework, "subscribe": object{"framework_info": object{
			"id": old.framework, "user": "root", "name": "wire", "roles": []any{"wire-master"}, "checkpoint": true, "failover_timeout": 60,
			"capabilities": []any{object{"type": "PARTITION_AWARE"}, object{"type": "MULTI_ROLE"}, object{"type": "RESERVATION_REFINEMENT"}, object{"type": "TASK_KILLING_STATE"}},
		}}})
		p.framework = dig(p.await("SUBSCRIBED", nil), "subscribed", "framework_id")
		again := map[any]bool{}
		for len(again) < 2 {
			s := dig(p.await("UPDATE", func(e object) bool { return dig(e, "update", "status", "uuid") != nil }), "update", "status")
			id := dig(s, "task_id", "value")
			if !again[id] && dig(s, "uuid") != first[id] {
				t.Errorf("task %v: the first update after the restart is %v, want that with uuid %v again", id, s, first[id])
			}
			again[id] = true
		}
		// Acknowledged now, they make way for what came after.
		p.state("told", "TASK_RUNNING")
		p.state("beside", "TASK_RUNNING")
		p.call(http.StatusAccepted, object{"type": "TEARDOWN"})
		p.ended()
	})
}

func TestWireInverseOffersAskForAnAgentBack(t *testing.T) {
	c := start(t, cluster.Options{})
	inBothMedia(t, time.Minute, func(ctx context.Context, t *testing.T, media string) {
		p := subscribe(ctx, t, c.Master, media, "wire-maintenance", nil)
		o := p.offer(1, nil)
		p.accept(o, launchOf(taskOf(o, "there", "sleep 1000")))
		p.state("there", "TASK_RUNNING")

		m := newPeer(ctx, t, masterAPI, c.Master, media)
		machine := object{"hostname": o["hostname"], "ip": "127.0.0.1"}
		schedule := func(windows ...any) {
			t.Helper()
			m.call(http.StatusOK, object{"type": "UPDATE_MAINTENANCE_SCHEDULE", "update_maintenance_schedule": object{"schedule": object{"windows": windows}}})
		}
		begin := time.Now().Add(time.Hour).UnixNano()
		window := object{"machine_ids": []any{machine}, "unavailability": object{"start": object{"nanoseconds": begin}, "duration": object{"nanoseconds": int64(time.Hour)}}}
		schedule(window)
		inverse := func() any {
			t.Helper()
			e := p.await("INVERSE_OFFERS", nil)
			io := dig(e, "inverse_offers", "inverse_offers", "0")
			if dig(io, "agent_id", "value") != dig(o, "agent_id", "value") || dig(io, "unavailability", "start") == nil {
				t.Errorf("inverse offer %v, want the agent and when it is away", io)
			}
			return dig(io, "id")
		}
		id := inverse()
		p.call(http.StatusAccepted, object{"type": "DECLINE_INVERSE_OFFERS", "decline_inverse_offers": object{"inverse_offer_ids": []any{id}, "filters": object{"refuse_seconds": 1}}})
		answered := func(want string) {
			t.Helper()
			eventually(t, "the framework's answer "+want, 15*time.Second, func() bool {
				a := m.try(object{"type": "GET_MAINTENANCE_STATUS"})
				return dig(a.object, "get_maintenance_status", "status", "draining_machines", "0", "statuses", "0", "status") == want
			})
		}
		answered("DECLINE")
		p.call(http.StatusAccepted, object{"type": "ACCEPT_INVERSE_OFFERS", "accept_inverse_offers": object{"inverse_offer_ids": []any{inverse()}, "filters": object{"refuse_seconds": 1}}})
		answered("ACCEPT")
		a := m.call(http.StatusOK, object{"type": "GET_MAINTENANCE_SCHEDULE"})
		if got := dig(a.object, "get_maintenance_schedule", "schedule", "windows", "0", "machine_ids", "0", "hostname"); got != o["hostname"] {
			t.Errorf("schedule %s, want the machine's window", a.text)
		}
		// An offer of that agent says when it is away.
		p.offer(0.1, func(o object) bool { return dig(o, "unavailability", "start") != nil })

		// A schedule that no longer has the machine takes an unanswered inverse offer back.
		inverse()
		schedule()
		p.await("RESCIND_INVERSE_OFFER", nil)
		p.call(http.StatusAccepted, object{"type": "TEARDOWN"})
		p.ended()
	})
}

func TestWireOffersAreTakenBackWhenAnOperatorReserves(t *testing.T) {
	c := start(t, cluster.Options{})
	inBothMedia(t, 30*time.Second, func(ctx context.Context, t *testing.T, media string) {
		p := subscribe(ctx, t, c.Master, media, "wire-rescind", nil)
		o := p.offer(1, nil)
		m := newPeer(ctx, t, masterAPI, c.Master, media)
		m.call(http.StatusAccepted, object{"type": "RESERVE_RESOURCES", "reserve_resources": object{
			"agent_id": o["agent_id"], "resources": []any{reservedOf("cpus", 1, "elsewhere")},
		}})
		p.await("RESCIND", func(e object) bool { return dig(e, "rescind", "offer_id", "value") == dig(o, "id", "value") })
		eventually(t, "UNRESERVE_RESOURCES", 10*time.Second, func() bool {
			return m.try(object{"type": "UNRESERVE_RESOURCES", "unreserve_resources": object{
				"agent_id": o["agent_id"], "resources": []any{reservedOf("cpus", 1, "elsewhere")},
			}}).status == http.StatusAccepted
		})
		p.call(http.StatusAccepted, object{"type": "TEARDOWN"})
		p.ended()
	})
}

func TestWireSchedulerCallsAreCheckedInMesosOrder(t *testing.T) {
	c := start(t, cluster.Options{})
	inBothMedia(t, 30*time.Second, func(ctx context.Context, t *testing.T, media string) {
		raw := func(method, contentType, accept, stream string, body []byte) (int, http.Header, string) {
			t.Helper()
			req, err := http.NewRequestWithContext(ctx, method, "http://"+c.Master+"/api/v1/scheduler", strings.NewReader(string(body)))
			if err != nil {
				t.Fatal(err)
			}
			for k, v := range map[string]string{"Content-Type": contentType, "Accept": accept, "Mesos-Stream-Id": stream} {
				if v != "" {
					req.Header.Set(k, v)
				}
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			text, _ := io.ReadAll(resp.Body)
			return resp.StatusCode, resp.Header, string(text)
		}
		p := newPeer(ctx, t, schedulerAPI, c.Master, media)
		good := p.encode(object{"type": "SUBSCRIBE", "subscribe": object{"framework_info": object{"user": "root", "name": "x"}}})
		want := func(what string, code int, method, contentType, accept, stream string, body []byte) {
			t.Helper()
			got, _, text := raw(method, contentType, accept, stream, body)
			if got != code {
				t.Errorf("%s: %d %s, want %d", what, got, text, code)
			}
		}
		if code, h, _ := raw(http.MethodGet, media, media, "", nil); code != http.StatusMethodNotAllowed || h.Get("Allow") != http.MethodPost {
			t.Errorf("GET: %d, Allow %q, want 405 and POST", code, h.Get("Allow"))
		}
		want("no content type", http.StatusBadRequest, "POST", "", media, "", good)
		want("a wrong content type", http.StatusUnsupportedMediaType, "POST", "text/plain", media, "", good)
		want("a body that does not parse", http.StatusBadRequest, "POST", media, media, "", []byte("\x0f{"))
		want("no type", http.StatusBadRequest, "POST", media, media, "", p.encode(object{}))
		want("no subscribe", http.StatusBadRequest, "POST", media, media, "", p.encode(object{"type": "SUBSCRIBE"}))
		want("an Accept that cannot be", http.StatusNotAcceptable, "POST", media, "text/html", "", good)
		want("SUBSCRIBE with a stream id", http.StatusBadRequest, "POST", media, media, "nonsense", good)
		p.framework = object{"value": "nobody"}
		a := p.call(http.StatusBadRequest, object{"type": "REVIVE", "revive": object{}})
		if a.text != "Framework cannot be found" {
			t.Errorf("a call of an unknown framework: %q, want Framework cannot be found", a.text)
		}

		p = subscribe(ctx, t, c.Master, media, "wire-order", nil)
		stream := p.stream
		p.stream = ""
		p.call(http.StatusBadRequest, object{"type": "REVIVE", "revive": object{}})
		p.stream = "00000000-0000-4000-8000-000000000000"
		p.call(http.StatusBadRequest, object{"type": "REVIVE", "revive": object{}})
		p.stream = stream
		p.call(http.StatusBadRequest, object{"type": "ACKNOWLEDGE", "acknowledge": object{
			"agent_id": object{"value": "a"}, "task_id": object{"value": "t"}, "uuid": "c2hvcnQ=",
		}})
		p.call(http.StatusBadRequest, object{"type": "KILL"})
		p.call(http.StatusNotImplemented, object{"type": "UNKNOWN"})
		p.call(http.StatusAccepted, object{"type": "TEARDOWN"})
		p.ended()
		// Removed for good.
		q := newPeer(ctx, t, schedulerAPI, c.Master, media)
		q.open(object{"type": "SUBSCRIBE", "framework_id": p.framework, "subscribe": object{"framework_info": object{
			"id": p.framework, "user": "root", "name": "wire", "roles": []any{"wire-order"}, "capabilities": []any{object{"type": "MULTI_ROLE"}},
		}}})
		if e := <-q.events; e["type"] != "ERROR" || dig(e, "error", "message") != "Framework has been removed" {
			t.Errorf("a removed framework's SUBSCRIBE: %v, want the error Framework has been removed", e)
		}
		q.ended()
	})
}
