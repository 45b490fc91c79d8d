package operator_test

import (
	"errors"
	"io"
	"net/http"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	maintenancev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/maintenance"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	quotav1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/quota"

	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

// answering serves answer to a call that reads as want does, both in the text form of protobuf.
func answering(t *testing.T, status int, call, want proto.Message, answer string, into interface {
	proto.Message
	MarshalVT() ([]byte, error)
}) string {
	t.Helper()
	return listen(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			err = proto.Unmarshal(body, call)
		}
		if err != nil || !proto.Equal(call, want) {
			t.Errorf("call %v, %v; want %v", call, err, want)
		}
		if err := (prototext.UnmarshalOptions{}).Unmarshal([]byte(answer), into); err != nil {
			t.Errorf("answer %s: %v", answer, err)
		}
		data, err := into.MarshalVT()
		if err != nil {
			t.Errorf("encode %s: %v", answer, err)
		}
		w.WriteHeader(status)
		_, _ = w.Write(data)
	})
}

func parse[M proto.Message](t *testing.T, text string, into M) M {
	t.Helper()
	if err := prototext.Unmarshal([]byte(text), into); err != nil {
		t.Fatal(err)
	}
	return into
}

func TestEachCallOfAMasterSaysWhatItIs(t *testing.T) {
	machine := &mesosv1.MachineID{Hostname: new("h")}
	for _, test := range []struct {
		want, answer string
		do           func(*operator.Master) (any, error)
		got          string // of the message returned; empty is no message
	}{
		{`type: GET_QUOTA`, `type: GET_QUOTA get_quota { status { configs { role: "a" } } }`,
			func(m *operator.Master) (any, error) { return m.Quota(timeout(t)) }, `configs { role: "a" }`},
		{`type: GET_QUOTA`, `type: GET_QUOTA`,
			func(m *operator.Master) (any, error) { return m.Quota(timeout(t)) }, ``},
		{`type: UPDATE_QUOTA update_quota { force: true quota_configs { role: "a" } }`, ``,
			func(m *operator.Master) (any, error) {
				return nil, m.UpdateQuota(timeout(t), true, &quotav1.QuotaConfig{Role: new("a")})
			}, ``},
		{`type: UPDATE_WEIGHTS update_weights { weight_infos { role: "a" weight: 2 } }`, ``,
			func(m *operator.Master) (any, error) {
				return nil, m.UpdateWeights(timeout(t), &mesosv1.WeightInfo{Role: new("a"), Weight: new(2.0)})
			}, ``},
		{`type: GET_MAINTENANCE_SCHEDULE`, `type: GET_MAINTENANCE_SCHEDULE get_maintenance_schedule { schedule { windows { unavailability { start { nanoseconds: 1 } } } } }`,
			func(m *operator.Master) (any, error) { return m.MaintenanceSchedule(timeout(t)) }, `windows { unavailability { start { nanoseconds: 1 } } }`},
		{`type: UPDATE_MAINTENANCE_SCHEDULE update_maintenance_schedule { schedule {} }`, ``,
			func(m *operator.Master) (any, error) {
				return nil, m.UpdateMaintenanceSchedule(timeout(t), &maintenancev1.Schedule{})
			}, ``},
		{`type: GET_MAINTENANCE_STATUS`, `type: GET_MAINTENANCE_STATUS get_maintenance_status { status { down_machines { hostname: "h" } } }`,
			func(m *operator.Master) (any, error) { return m.MaintenanceStatus(timeout(t)) }, `down_machines { hostname: "h" }`},
		{`type: START_MAINTENANCE start_maintenance { machines { hostname: "h" } }`, ``,
			func(m *operator.Master) (any, error) { return nil, m.StartMaintenance(timeout(t), machine) }, ``},
		{`type: STOP_MAINTENANCE stop_maintenance { machines { hostname: "h" } }`, ``,
			func(m *operator.Master) (any, error) { return nil, m.StopMaintenance(timeout(t), machine) }, ``},
	} {
		want := parse(t, test.want, &masterv1.Call{})
		got, err := test.do(operator.NewMaster(answering(t, 200, &masterv1.Call{}, want, test.answer, &masterv1.Response{})))
		if err != nil {
			t.Errorf("%s: %v", test.want, err)
			continue
		}
		if m, ok := got.(proto.Message); ok {
			if wanted := parse(t, test.got, m.ProtoReflect().New().Interface()); !proto.Equal(m, wanted) {
				t.Errorf("%s: got %v, want %s", test.want, m, test.got)
			}
		}
	}
	m := operator.NewMaster(answering(t, 200, &masterv1.Call{}, parse(t, `type: GET_WEIGHTS`, &masterv1.Call{}),
		`type: GET_WEIGHTS get_weights { weight_infos { role: "a" weight: 3 } }`, &masterv1.Response{}))
	if weights, err := m.Weights(timeout(t)); err != nil || len(weights) != 1 || weights[0].GetWeight() != 3 {
		t.Errorf("Weights = %v, %v; want a's 3", weights, err)
	}
}

func TestEachCallOfAnAgentSaysWhatItIs(t *testing.T) {
	id := &mesosv1.ContainerID{Value: new("c")}
	const named = `container_id { value: "c" }`
	agent := func(status int, want, answer string) *operator.Agent {
		return operator.NewAgent(answering(t, status, &agentv1.Call{}, parse(t, want, &agentv1.Call{}), answer, &agentv1.Response{}))
	}
	for status, want := range map[int]bool{200: true, 202: false} {
		launched, err := agent(status, `type: LAUNCH_CONTAINER launch_container { `+named+` }`, ``).
			LaunchContainer(timeout(t), &agentv1.Call_LaunchContainer{ContainerId: id})
		if launched != want || err != nil {
			t.Errorf("LaunchContainer answered %d = %v, %v; want %v", status, launched, err, want)
		}
	}
	launched, err := agent(400, `type: LAUNCH_CONTAINER launch_container { `+named+` }`, ``).
		LaunchContainer(timeout(t), &agentv1.Call_LaunchContainer{ContainerId: id})
	var status *operator.StatusError
	if launched || !errors.As(err, &status) || status.Code != 400 {
		t.Errorf("LaunchContainer that is refused = %v, %v; want 400", launched, err)
	}
	const wait = `type: WAIT_CONTAINER wait_container { ` + named + ` }`
	if w, err := agent(200, wait, `type: WAIT_CONTAINER wait_container { exit_status: 256 }`).WaitContainer(timeout(t), id); err != nil || w.GetExitStatus() != 256 {
		t.Errorf("WaitContainer = %v, %v; want 256", w, err)
	}
	if w, err := agent(200, wait, `type: WAIT_CONTAINER`).WaitContainer(timeout(t), id); err != nil || w == nil || w.ExitStatus != nil {
		t.Errorf("WaitContainer of one without a status = %v, %v; want an empty answer", w, err)
	}
	if err := agent(200, `type: KILL_CONTAINER kill_container { `+named+` signal: 15 }`, ``).KillContainer(timeout(t), id, 15); err != nil {
		t.Errorf("KillContainer = %v", err)
	}
	if err := agent(200, `type: KILL_CONTAINER kill_container { `+named+` }`, ``).KillContainer(timeout(t), id, 0); err != nil {
		t.Errorf("KillContainer without a signal = %v", err)
	}
	if err := agent(500, `type: REMOVE_CONTAINER remove_container { `+named+` }`, ``).RemoveContainer(timeout(t), id); !errors.As(err, &status) || status.Code != 500 {
		t.Errorf("RemoveContainer of one that runs = %v, want 500", err)
	}
}

func TestAQuestionIsAskedOfTheLeader(t *testing.T) {
	var asked string
	leader := listen(t, func(w http.ResponseWriter, r *http.Request) {
		asked = r.URL.RequestURI()
		_, _ = io.WriteString(w, `{"fits":0}`)
	})
	follower := listen(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", "//"+leader+r.URL.RequestURI())
		w.WriteHeader(http.StatusTemporaryRedirect)
	})
	for _, test := range []struct {
		q    operator.Question
		want string
	}{
		{operator.Question{}, "/mosaic/v1/explain"},
		{operator.Question{Framework: "f-1", Role: "eng/dev", Need: "cpus:2;mem:64", Ports: 1, Examples: 3},
			"/mosaic/v1/explain?examples=3&framework=f-1&need=cpus%3A2%3Bmem%3A64&ports=1&role=eng%2Fdev"},
	} {
		got, err := operator.NewMaster(follower).Explain(timeout(t), test.q)
		if err != nil || string(got) != `{"fits":0}` || asked != test.want {
			t.Errorf("Explain(%+v) asked %s and got %s, %v; want %s", test.q, asked, got, err, test.want)
		}
	}
}
