package scheduler

import (
	"context"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
)

func TestEveryHelperMakesItsCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMaster(t, func(s *subscription) {
			s.begin("f-1", 1e6)
			s.hold()
		})
		c := network{"m:1": m}.client(Config{Master: "m:1"})
		_, _ = run(t, c, ignore)
		synctest.Wait()
		ctx := timeout(t)
		task, agent, executor := &mesosv1.TaskID{Value: new("t")}, &mesosv1.AgentID{Value: new("a")}, &mesosv1.ExecutorID{Value: new("e")}
		offers := []*mesosv1.OfferID{{Value: new("o")}}
		info := func(id string) *mesosv1.TaskInfo {
			return &mesosv1.TaskInfo{Name: &id, TaskId: &mesosv1.TaskID{Value: &id}, AgentId: agent}
		}
		for i, test := range []struct {
			do   func() error
			want string
		}{
			{func() error {
				return c.Accept(ctx, offers, []*mesosv1.Offer_Operation{Launch(info("t1"), info("t2"))}, 0)
			},
				`type: ACCEPT accept { offer_ids { value: "o" } filters { refuse_seconds: 0 } operations { type: LAUNCH launch {
					task_infos { name: "t1" task_id { value: "t1" } agent_id { value: "a" } }
					task_infos { name: "t2" task_id { value: "t2" } agent_id { value: "a" } } } } }`},
			{func() error {
				group := LaunchGroup(&mesosv1.ExecutorInfo{ExecutorId: executor}, info("t1"))
				return c.Accept(ctx, offers, []*mesosv1.Offer_Operation{group}, time.Second)
			},
				`type: ACCEPT accept { offer_ids { value: "o" } filters { refuse_seconds: 1 } operations { type: LAUNCH_GROUP launch_group {
					executor { executor_id { value: "e" } }
					task_group { tasks { name: "t1" task_id { value: "t1" } agent_id { value: "a" } } } } } }`},
			{func() error { return c.AcceptInverse(ctx, offers, time.Minute) },
				`type: ACCEPT_INVERSE_OFFERS accept_inverse_offers { inverse_offer_ids { value: "o" } filters { refuse_seconds: 60 } }`},
			{func() error { return c.DeclineInverse(ctx, offers, time.Minute) },
				`type: DECLINE_INVERSE_OFFERS decline_inverse_offers { inverse_offer_ids { value: "o" } filters { refuse_seconds: 60 } }`},
			{func() error { return c.Kill(ctx, task, agent) },
				`type: KILL kill { task_id { value: "t" } agent_id { value: "a" } }`},
			{func() error { return c.KillWithin(ctx, task, nil, 0) },
				`type: KILL kill { task_id { value: "t" } kill_policy { grace_period { nanoseconds: 0 } } }`},
			{func() error { return c.Shutdown(ctx, executor, agent) },
				`type: SHUTDOWN shutdown { executor_id { value: "e" } agent_id { value: "a" } }`},
			{func() error { return c.Message(ctx, executor, agent, []byte("hi")) },
				`type: MESSAGE message { executor_id { value: "e" } agent_id { value: "a" } data: "hi" }`},
			{func() error { return c.Reconcile(ctx, &schedulerv1.Call_Reconcile_Task{TaskId: task}) },
				`type: RECONCILE reconcile { tasks { task_id { value: "t" } } }`},
			{func() error {
				return c.ReconcileOperations(ctx, &schedulerv1.Call_ReconcileOperations_Operation{OperationId: &mesosv1.OperationID{Value: new("op")}})
			},
				`type: RECONCILE_OPERATIONS reconcile_operations { operations { operation_id { value: "op" } } }`},
			{func() error { return c.UpdateFramework(ctx, &mesosv1.FrameworkInfo{User: new("u"), Name: new("n")}) },
				`type: UPDATE_FRAMEWORK update_framework { framework_info { user: "u" name: "n" id { value: "f-1" } } }`},
		} {
			if err := test.do(); err != nil {
				t.Errorf("call %d: %v", i, err)
			}
			want := &schedulerv1.Call{}
			if err := prototext.Unmarshal([]byte(`framework_id { value: "f-1" } `+test.want), want); err != nil {
				t.Fatal(err)
			}
			if got := m.awaitCall(ctx, i+1); !proto.Equal(got, want) {
				t.Errorf("call %d came as %v, want %v", i, got, want)
			}
		}
	})
}

func TestSuppressedRolesStaySuppressedOverAReconnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		said := make(chan []string, 8)
		lose := make(chan struct{})
		m := newMaster(t, func(s *subscription) {
			said <- s.call.GetSubscribe().GetSuppressedRoles()
			s.begin("f-1", 1e6)
			<-lose
		})
		c := network{"m:1": m}.client(Config{Master: "m:1", SuppressedRoles: []string{"a"}})
		c.framework.Roles = []string{"a", "b", "c"}
		_, _ = run(t, c, ignore)
		reconnected := func() []string {
			synctest.Wait()
			lose <- struct{}{}
			return <-said
		}
		if got := <-said; !slices.Equal(got, []string{"a"}) {
			t.Errorf("SUBSCRIBE with %v suppressed, want what was configured", got)
		}
		synctest.Wait()
		for _, test := range []struct {
			what string
			do   func() error
			want []string
		}{
			{"suppress c", func() error { return c.Suppress(t.Context(), "c") }, []string{"a", "c"}},
			{"revive a", func() error { return c.Revive(t.Context(), "a") }, []string{"c"}},
			{"suppress all", func() error { return c.Suppress(t.Context()) }, []string{"a", "b", "c"}},
			{"leave role b", func() error {
				return c.UpdateFramework(t.Context(), &mesosv1.FrameworkInfo{User: new("u"), Name: new("n"), Roles: []string{"a", "c"}})
			}, []string{"a", "c"}},
			{"revive all", func() error { return c.Revive(t.Context()) }, nil},
		} {
			if err := test.do(); err != nil {
				t.Errorf("%s: %v", test.what, err)
			}
			if got := reconnected(); !slices.Equal(got, test.want) {
				t.Errorf("%s: reconnected with %v suppressed, want %v", test.what, got, test.want)
			}
			synctest.Wait()
		}
		m.refuse = http.StatusServiceUnavailable
		if err := c.Suppress(t.Context(), "a"); err == nil {
			t.Error("Suppress succeeded, want the master's refusal")
		}
		if got := reconnected(); len(got) != 0 {
			t.Errorf("reconnected with %v suppressed after a refused SUPPRESS, want none", got)
		}
		close(lose)
	})
}

func TestEachMasterIsTriedUntilOneLeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var leads atomic.Value
		leads.Store("b:1")
		cut := make(chan struct{})
		var at []string
		make1 := func(name string) *master {
			return newMaster(t, func(s *subscription) {
				leader := leads.Load().(string)
				switch {
				case leader == name:
					at = append(at, name)
					s.begin("f-1", 1e6)
					<-cut
				case leader == "":
					s.answer(http.StatusServiceUnavailable, "No leader elected")
				default:
					s.w.Header().Set("Location", "//"+leader+path)
					s.w.WriteHeader(http.StatusTemporaryRedirect)
				}
			})
		}
		masters := network{"a:1": make1("a:1"), "b:1": make1("b:1"), "c:1": make1("c:1")}
		c := masters.client(Config{Master: "dead:1", Masters: []string{"a:1", "c:1"}})
		_, _ = run(t, c, ignore)
		time.Sleep(10 * time.Second)
		// The leader dies with nobody in its place; then one is elected that was not named first.
		leads.Store("")
		cut <- struct{}{}
		time.Sleep(time.Minute)
		leads.Store("c:1")
		time.Sleep(time.Minute)
		synctest.Wait()
		if want := []string{"b:1", "c:1"}; !slices.Equal(at, want) || c.FrameworkID().GetValue() != "f-1" {
			t.Errorf("subscribed at %v as %v, want at %v", at, c.FrameworkID(), want)
		}
		close(cut)
	})
}

func TestOperationsAreAcknowledgedAndReconciled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lose := make(chan struct{})
		operation := func(uuid []byte) *schedulerv1.Event {
			status := &mesosv1.OperationStatus{
				OperationId: &mesosv1.OperationID{Value: new("op")}, State: mesosv1.OperationState_OPERATION_FINISHED.Enum(),
				AgentId: &mesosv1.AgentID{Value: new("a")}, ResourceProviderId: &mesosv1.ResourceProviderID{Value: new("rp")},
			}
			if uuid != nil {
				status.Uuid = &mesosv1.UUID{Value: uuid}
			}
			return &schedulerv1.Event{
				Type:                  schedulerv1.Event_UPDATE_OPERATION_STATUS.Enum(),
				UpdateOperationStatus: &schedulerv1.Event_UpdateOperationStatus{Status: status},
			}
		}
		m := newMaster(t, func(s *subscription) {
			s.begin("f-1", 1e6)
			if s.n == 1 {
				s.send(operation(nil)) // an answer to a reconciliation: nobody waits for its acknowledgement
				s.send(operation([]byte("0123456789abcdef")))
			}
			<-lose
		})
		c := network{"m:1": m}.client(Config{Master: "m:1"})
		handled := 0
		_, _ = run(t, c, func(_ context.Context, e *schedulerv1.Event) error {
			if e.GetType() == schedulerv1.Event_UPDATE_OPERATION_STATUS {
				handled++
			}
			return nil
		})
		ack := m.awaitCall(timeout(t), 1).GetAcknowledgeOperationStatus()
		if ack.GetOperationId().GetValue() != "op" || ack.GetAgentId().GetValue() != "a" || ack.GetResourceProviderId().GetValue() != "rp" || string(ack.GetUuid()) != "0123456789abcdef" {
			t.Errorf("first call %v, want the acknowledgement", ack)
		}
		synctest.Wait()
		lose <- struct{}{}
		if k := m.awaitCall(timeout(t), 2); k.GetType() != schedulerv1.Call_RECONCILE {
			t.Errorf("after the reconnection came %v, want RECONCILE", k)
		}
		if k := m.awaitCall(timeout(t), 3); k.GetType() != schedulerv1.Call_RECONCILE_OPERATIONS || len(k.GetReconcileOperations().GetOperations()) != 0 {
			t.Errorf("then came %v, want RECONCILE_OPERATIONS of all", k)
		}
		synctest.Wait()
		if handled != 2 {
			t.Errorf("handled %d updates of the operation, want 2", handled)
		}
		close(lose)
	})
}
