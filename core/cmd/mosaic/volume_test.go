package main

import (
	"testing"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

func TestVolumesAndOperationsAreListed(t *testing.T) {
	m := administer(t)
	volume := func(id, role string, size float64) *mesosv1.Resource {
		r := amount("disk", size)
		r.Reservations = []*mesosv1.Resource_ReservationInfo{{Role: ptr("top")}, {Role: &role}}
		r.Disk = &mesosv1.Resource_DiskInfo{Persistence: &mesosv1.Resource_DiskInfo_Persistence{Id: &id, Principal: ptr("ops")}}
		return r
	}
	for _, a := range m.state.GetAgents.GetAgents() {
		if a.GetAgentInfo().GetHostname() == "alpha" {
			shared := volume("cache", "top/web", 20)
			shared.Shared = &mesosv1.Resource_SharedInfo{}
			a.TotalResources = append(a.TotalResources, volume("db", "top/web", 10), shared)
			a.AllocatedResources = append(a.AllocatedResources, volume("db", "top/web", 10), volume("cache", "top/batch", 1)) // of another role
		}
	}
	out, _, err := m.mosaic(t, "volume", "ls", "-o", "wide")
	const volumes = `
VOLUME   ROLE      SIZE    HOST    USED   SHARED   PRINCIPAL   AGENT
cache    top/web   20 MB   alpha   no     yes      ops         agent-a
db       top/web   10 MB   alpha   yes    no       ops         agent-a
`
	if err != nil || "\n"+out != volumes {
		t.Errorf("volume ls = %v\n%s\nwant\n%s", err, out, volumes)
	}
	m.operations = []*mesosv1.Operation{
		{
			Info: &mesosv1.Offer_Operation{Type: mesosv1.Offer_Operation_DESTROY.Enum()}, Uuid: &mesosv1.UUID{Value: []byte{0xab, 1}},
			LatestStatus: &mesosv1.OperationStatus{State: mesosv1.OperationState_OPERATION_FAILED.Enum(), Message: ptr("no such volume")}, AgentId: &mesosv1.AgentID{Value: ptr("agent-b")},
		},
		{
			Info: &mesosv1.Offer_Operation{Type: mesosv1.Offer_Operation_RESERVE.Enum(), Id: &mesosv1.OperationID{Value: ptr("op-1")}}, Uuid: &mesosv1.UUID{Value: []byte{2}},
			LatestStatus: &mesosv1.OperationStatus{State: mesosv1.OperationState_OPERATION_PENDING.Enum()}, AgentId: &mesosv1.AgentID{Value: ptr("agent-a")},
			FrameworkId: &mesosv1.FrameworkID{Value: ptr("f-1")},
		},
	}
	out, _, err = m.mosaic(t, "operation", "ls", "-o", "wide")
	const operations = `
OPERATION   TYPE      STATE               FRAMEWORK   AGENT     UUID   MESSAGE
op-1        RESERVE   OPERATION_PENDING   f-1         agent-a   02     -
ab01        DESTROY   OPERATION_FAILED    -           agent-b   ab01   no such volume
`
	if err != nil || "\n"+out != operations {
		t.Errorf("operation ls = %v\n%s\nwant\n%s", err, out, operations)
	}
}
