package operator

import (
	"context"
	"net/url"
	"strconv"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	maintenancev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/maintenance"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	quotav1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/quota"
)

// Quota returns the quotas that are set, in both their forms.
func (m *Master) Quota(ctx context.Context) (*quotav1.QuotaStatus, error) {
	resp, err := m.Call(ctx, &masterv1.Call{Type: masterv1.Call_GET_QUOTA.Enum()})
	if err != nil {
		return nil, err
	}
	return orEmpty(resp.GetGetQuota().GetStatus()), nil
}

// UpdateQuota sets the quotas of roles, all or none; a role without guarantees and limits has none afterwards. force
// sets guarantees that the cluster cannot meet.
//
// Errors: *StatusError, with 400 and why for quotas that make no sense.
func (m *Master) UpdateQuota(ctx context.Context, force bool, configs ...*quotav1.QuotaConfig) error {
	_, err := m.Call(ctx, &masterv1.Call{
		Type:        masterv1.Call_UPDATE_QUOTA.Enum(),
		UpdateQuota: &masterv1.Call_UpdateQuota{Force: &force, QuotaConfigs: configs},
	})
	return err
}

// Weights returns the weights that are set; that of other roles is 1.
func (m *Master) Weights(ctx context.Context) ([]*mesosv1.WeightInfo, error) {
	resp, err := m.Call(ctx, &masterv1.Call{Type: masterv1.Call_GET_WEIGHTS.Enum()})
	if err != nil {
		return nil, err
	}
	return resp.GetGetWeights().GetWeightInfos(), nil
}

// UpdateWeights sets weights of roles, above 0.
func (m *Master) UpdateWeights(ctx context.Context, weights ...*mesosv1.WeightInfo) error {
	_, err := m.Call(ctx, &masterv1.Call{
		Type:          masterv1.Call_UPDATE_WEIGHTS.Enum(),
		UpdateWeights: &masterv1.Call_UpdateWeights{WeightInfos: weights},
	})
	return err
}

// MaintenanceSchedule returns the windows that are planned.
func (m *Master) MaintenanceSchedule(ctx context.Context) (*maintenancev1.Schedule, error) {
	resp, err := m.Call(ctx, &masterv1.Call{Type: masterv1.Call_GET_MAINTENANCE_SCHEDULE.Enum()})
	if err != nil {
		return nil, err
	}
	return orEmpty(resp.GetGetMaintenanceSchedule().GetSchedule()), nil
}

// UpdateMaintenanceSchedule replaces the whole schedule. Read it first: what is not in the new one is no longer planned.
func (m *Master) UpdateMaintenanceSchedule(ctx context.Context, schedule *maintenancev1.Schedule) error {
	_, err := m.Call(ctx, &masterv1.Call{
		Type:                      masterv1.Call_UPDATE_MAINTENANCE_SCHEDULE.Enum(),
		UpdateMaintenanceSchedule: &masterv1.Call_UpdateMaintenanceSchedule{Schedule: schedule},
	})
	return err
}

// MaintenanceStatus returns the machines that are draining, with what frameworks answered, and those that are down.
func (m *Master) MaintenanceStatus(ctx context.Context) (*maintenancev1.ClusterStatus, error) {
	resp, err := m.Call(ctx, &masterv1.Call{Type: masterv1.Call_GET_MAINTENANCE_STATUS.Enum()})
	if err != nil {
		return nil, err
	}
	return orEmpty(resp.GetGetMaintenanceStatus().GetStatus()), nil
}

// StartMaintenance takes machines of the schedule down: their agents are removed and refused until StopMaintenance.
func (m *Master) StartMaintenance(ctx context.Context, machines ...*mesosv1.MachineID) error {
	_, err := m.Call(ctx, &masterv1.Call{
		Type:             masterv1.Call_START_MAINTENANCE.Enum(),
		StartMaintenance: &masterv1.Call_StartMaintenance{Machines: machines},
	})
	return err
}

// StopMaintenance takes machines back; they leave the schedule.
func (m *Master) StopMaintenance(ctx context.Context, machines ...*mesosv1.MachineID) error {
	_, err := m.Call(ctx, &masterv1.Call{
		Type:            masterv1.Call_STOP_MAINTENANCE.Enum(),
		StopMaintenance: &masterv1.Call_StopMaintenance{Machines: machines},
	})
	return err
}

// Question is what Explain is asked.
type Question struct {
	Framework string // id of a framework; empty asks of all of the role
	Role      string // empty asks of all of the framework's roles
	Need      string // what one task needs, as cpus:2;mem:1024; empty asks for any offer
	Ports     int    // how many ports it needs
	Examples  int    // how many agents to name per reason; 0 leaves it to the master
}

// Explain returns, as JSON, why a framework or role is not offered what it needs. Masters of Apache Mesos cannot say.
//
// Errors: *StatusError, with 400 for a question that makes no sense.
func (m *Master) Explain(ctx context.Context, q Question) ([]byte, error) {
	query := url.Values{}
	for name, value := range map[string]string{"framework": q.Framework, "role": q.Role, "need": q.Need} {
		if value != "" {
			query.Set(name, value)
		}
	}
	for name, value := range map[string]int{"ports": q.Ports, "examples": q.Examples} {
		if value != 0 {
			query.Set(name, strconv.Itoa(value))
		}
	}
	path := "/mosaic/v1/explain"
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	return m.get(ctx, path)
}

// orEmpty returns an empty message in place of one that was left out of an answer because it is empty.
func orEmpty[M any](m *M) *M {
	if m == nil {
		return new(M)
	}
	return m
}
