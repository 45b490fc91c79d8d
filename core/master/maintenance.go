package master

import (
	"context"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/mosaic-cluster/mosaic/core/registry"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	allocatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/allocator"
	maintenancev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/maintenance"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
)

// Maintenance: when which machines are to go away, and which are away. A machine in the schedule is DRAINING: offers of
// its agents say when it goes, and frameworks that have something there are asked to leave it (inverse.go). A machine
// that an operator took DOWN has no agents. Every other one is UP and not kept anywhere.

// maintenance is the schedule, and the machines that are not UP, by machineKey. It is immutable.
type maintenance struct {
	schedule *maintenancev1.Schedule // not nil
	machines map[string]*mesosv1.MachineInfo
}

func newMaintenance(schedule *maintenancev1.Schedule, machines []*mesosv1.MachineInfo) *maintenance {
	x := &maintenance{schedule: schedule, machines: make(map[string]*mesosv1.MachineInfo, len(machines))}
	if schedule == nil {
		x.schedule = &maintenancev1.Schedule{}
	}
	for _, m := range machines {
		x.machines[machineKey(m.GetId().GetHostname(), m.GetId().GetIp())] = m
	}
	return x
}

// machineKey names a machine; the case of its hostname does not matter.
func machineKey(hostname, ip string) string { return strings.ToLower(hostname) + "|" + ip }

func keyOfMachine(id *mesosv1.MachineID) string { return machineKey(id.GetHostname(), id.GetIp()) }

// find returns the machine that is at a hostname and an address: the one named by both, else by one of them; nil for one
// that is UP.
func (x *maintenance) find(hostname, ip string) *mesosv1.MachineInfo {
	if len(x.machines) == 0 {
		return nil
	}
	keys := []string{machineKey(hostname, ip)}
	if ip != "" {
		keys = append(keys, machineKey(hostname, ""), machineKey("", ip))
	}
	for _, key := range keys {
		if m := x.machines[key]; m != nil {
			return m
		}
	}
	return nil
}

// machineOf is the machine of an agent that is at ip, which may be unknown; nil for one that is UP.
func (s *state) machineOf(info *mesosv1.AgentInfo, ip string) *mesosv1.MachineInfo {
	if ip == "" && net.ParseIP(info.GetHostname()) != nil {
		ip = info.GetHostname()
	}
	return s.maintenance.find(info.GetHostname(), ip)
}

// machineText is a machine as sentences name it.
func machineText(id *mesosv1.MachineID) string { return string(id.AppendJSON(nil)) }

// checkMachine says what is wrong with the name of a machine.
func checkMachine(id *mesosv1.MachineID) error {
	switch {
	case id.GetHostname() == "" && id.Ip == nil:
		return badRequest("Both 'hostname' and 'ip' for a machine are empty")
	case id.Ip != nil && net.ParseIP(id.GetIp()) == nil:
		return badRequest("Failed to parse the IP '%s' of a machine", id.GetIp())
	}
	return nil
}

// checkMachines says what is wrong with a list of machines.
func checkMachines(ids []*mesosv1.MachineID) error {
	if len(ids) == 0 {
		return badRequest("List of machines is empty")
	}
	seen := make(map[string]bool, len(ids))
	for _, id := range ids {
		if err := checkMachine(id); err != nil {
			return err
		}
		if seen[keyOfMachine(id)] {
			return badRequest("Machine '%s' appears more than once in the list", machineText(id))
		}
		seen[keyOfMachine(id)] = true
	}
	return nil
}

// checkSchedule says what is wrong with a schedule in itself.
func checkSchedule(schedule *maintenancev1.Schedule) error {
	seen := make(map[string]bool)
	for _, w := range schedule.GetWindows() {
		if len(w.GetMachineIds()) == 0 {
			return badRequest("List of machines in the maintenance window is empty")
		}
		if w.GetUnavailability().GetDuration().GetNanoseconds() < 0 {
			return badRequest("Unavailability 'duration' is negative")
		}
		for _, id := range w.GetMachineIds() {
			if err := checkMachine(id); err != nil {
				return err
			}
			if seen[keyOfMachine(id)] {
				return badRequest("Machine '%s' appears more than once in the schedule", machineText(id))
			}
			seen[keyOfMachine(id)] = true
		}
	}
	return nil
}

// machineObject is a machine as an authorizer is asked about it.
func machineObject(id *mesosv1.MachineID) string {
	if id.GetHostname() != "" {
		return id.GetHostname()
	}
	return id.GetIp()
}

// approveMachines asks about each machine.
func (m *Master) approveMachines(ctx context.Context, principal, action string, ids []*mesosv1.MachineID) error {
	for _, id := range ids {
		if err := m.approve(ctx, principal, action, machineObject(id)); err != nil {
			return forbidden("%v", err)
		}
	}
	return nil
}

// updateSchedule replaces the maintenance schedule. Machines in it are DRAINING from then on, those that are not any
// more are UP.
//
// Errors: 400 for a schedule that is wrong, or lacks a machine that is DOWN; 403.
func (m *Master) updateSchedule(ctx context.Context, principal string, schedule *maintenancev1.Schedule) error {
	if schedule == nil {
		schedule = &maintenancev1.Schedule{}
	}
	if err := checkSchedule(schedule); err != nil {
		return err
	}
	for _, w := range schedule.GetWindows() {
		if err := m.approveMachines(ctx, principal, "UPDATE_MAINTENANCE_SCHEDULE", w.GetMachineIds()); err != nil {
			return err
		}
	}
	s := m.s
	return m.decidePersisted(ctx, func(time.Time) ([]change, func(time.Time), error) {
		next := newMaintenance(schedule, nil)
		changes := []change{registry.PutSchedule(schedule)}
		for _, w := range schedule.GetWindows() {
			for _, id := range w.GetMachineIds() {
				info := &mesosv1.MachineInfo{Id: id, Mode: mesosv1.MachineInfo_DRAINING.Enum(), Unavailability: w.GetUnavailability()}
				if old := s.decided.machines[keyOfMachine(id)]; old.GetMode() == mesosv1.MachineInfo_DOWN {
					info.Mode = old.Mode
				}
				next.machines[keyOfMachine(id)] = info
				changes = append(changes, registry.PutMachine(info))
			}
		}
		for _, key := range sortedKeys(s.decided.machines) {
			old := s.decided.machines[key]
			if next.machines[key] != nil {
				continue
			}
			if old.GetMode() == mesosv1.MachineInfo_DOWN {
				return nil, nil, badRequest("Machine '%s' is deactivated and cannot be removed from the schedule", machineText(old.GetId()))
			}
			changes = append(changes, registry.RemoveMachine(old.GetId()))
		}
		s.decided = next
		return changes, func(now time.Time) { s.setMaintenance(next, now) }, nil
	})
}

// startMaintenance takes machines DOWN that are DRAINING: their agents are removed, and refused until they are UP.
//
// Errors: 400 for a machine that is not DRAINING; 403.
func (m *Master) startMaintenance(ctx context.Context, principal string, ids []*mesosv1.MachineID) error {
	if err := checkMachines(ids); err != nil {
		return err
	}
	if err := m.approveMachines(ctx, principal, "START_MAINTENANCE", ids); err != nil {
		return err
	}
	s := m.s
	return m.decidePersisted(ctx, func(time.Time) ([]change, func(time.Time), error) {
		next := newMaintenance(s.decided.schedule, machineList(s.decided))
		var changes []change
		for _, id := range ids {
			old := s.decided.machines[keyOfMachine(id)]
			switch {
			case old == nil:
				return nil, nil, badRequest("Machine '%s' is not part of a maintenance schedule", machineText(id))
			case old.GetMode() != mesosv1.MachineInfo_DRAINING:
				return nil, nil, badRequest("Machine '%s' is not in DRAINING mode and cannot be brought down", machineText(id))
			}
			info := &mesosv1.MachineInfo{Id: old.Id, Mode: mesosv1.MachineInfo_DOWN.Enum(), Unavailability: old.Unavailability}
			next.machines[keyOfMachine(id)] = info
			changes = append(changes, registry.PutMachine(info))
		}
		s.decided = next
		return changes, func(now time.Time) { s.setMaintenance(next, now) }, nil
	})
}

// stopMaintenance brings machines UP that are DOWN, and takes them out of the schedule.
//
// Errors: 400 for a machine that is not DOWN; 403.
func (m *Master) stopMaintenance(ctx context.Context, principal string, ids []*mesosv1.MachineID) error {
	if err := checkMachines(ids); err != nil {
		return err
	}
	if err := m.approveMachines(ctx, principal, "STOP_MAINTENANCE", ids); err != nil {
		return err
	}
	s := m.s
	return m.decidePersisted(ctx, func(time.Time) ([]change, func(time.Time), error) {
		up := make(map[string]bool, len(ids))
		for _, id := range ids {
			old := s.decided.machines[keyOfMachine(id)]
			switch {
			case old == nil:
				return nil, nil, badRequest("Machine '%s' is not part of a maintenance schedule", machineText(id))
			case old.GetMode() != mesosv1.MachineInfo_DOWN:
				return nil, nil, badRequest("Machine '%s' is not in DOWN mode and cannot be brought up", machineText(id))
			}
			up[keyOfMachine(id)] = true
		}
		schedule := &maintenancev1.Schedule{}
		for _, w := range s.decided.schedule.GetWindows() {
			left := slices.DeleteFunc(slices.Clone(w.GetMachineIds()), func(id *mesosv1.MachineID) bool { return up[keyOfMachine(id)] })
			if len(left) > 0 {
				schedule.Windows = append(schedule.Windows, &maintenancev1.Window{MachineIds: left, Unavailability: w.Unavailability})
			}
		}
		next := newMaintenance(schedule, machineList(s.decided))
		changes := []change{registry.PutSchedule(schedule)}
		for _, key := range sortedKeys(up) {
			changes = append(changes, registry.RemoveMachine(next.machines[key].GetId()))
			delete(next.machines, key)
		}
		s.decided = next
		return changes, func(now time.Time) { s.setMaintenance(next, now) }, nil
	})
}

// machineList returns the machines that are not UP, in the order of their keys.
func machineList(x *maintenance) []*mesosv1.MachineInfo {
	out := make([]*mesosv1.MachineInfo, 0, len(x.machines))
	for _, key := range sortedKeys(x.machines) {
		out = append(out, x.machines[key])
	}
	return out
}

// setMaintenance has a schedule and the modes of machines hold.
func (s *state) setMaintenance(x *maintenance, now time.Time) {
	s.maintenance = x
	s.views.schedule, s.views.changed = x.schedule, true
	for _, id := range sortedKeys(s.agents) {
		s.obeyMaintenance(s.agents[id], now)
	}
	s.allocateBy(now)
}

// removeForMaintenance ends an agent whose machine went DOWN.
func (s *state) removeForMaintenance(a *agent) {
	if a.leaving {
		return
	}
	const why = "Operator initiated 'Machine DOWN'"
	s.tell(a, &clusterv1.ToAgent{Message: &clusterv1.ToAgent_Shutdown{Shutdown: &clusterv1.Shutdown{Message: why}}})
	s.dismiss(a, []change{registry.RemoveAgent(a.id)}, removal{
		state:   mesosv1.TaskState_TASK_GONE,
		reason:  mesosv1.TaskStatus_REASON_AGENT_REMOVED,
		message: "Agent " + a.info.GetHostname() + " was removed: " + why,
	})
}

// getSchedule is the body of GET_MAINTENANCE_SCHEDULE: of the machines that the principal may see.
func (m *Master) getSchedule(ctx context.Context, principal string) *maintenancev1.Schedule {
	all := m.view.Load().schedule
	out := &maintenancev1.Schedule{}
	for _, w := range all.GetWindows() {
		seen := m.visibleMachines(ctx, principal, "GET_MAINTENANCE_SCHEDULE", w.GetMachineIds())
		if len(seen) > 0 {
			out.Windows = append(out.Windows, &maintenancev1.Window{MachineIds: seen, Unavailability: w.Unavailability})
		}
	}
	return out
}

// visibleMachines leaves out the machines that the principal may not see.
func (m *Master) visibleMachines(ctx context.Context, principal, action string, ids []*mesosv1.MachineID) []*mesosv1.MachineID {
	if m.deps.Approvers == nil {
		return ids
	}
	var out []*mesosv1.MachineID
	for _, id := range ids {
		if m.approve(ctx, principal, action, machineObject(id)) == nil {
			out = append(out, id)
		}
	}
	return out
}

// getMaintenanceStatus is the body of GET_MAINTENANCE_STATUS: what frameworks said about machines that drain, and which
// machines are DOWN.
func (m *Master) getMaintenanceStatus(ctx context.Context, principal string) (*maintenancev1.ClusterStatus, error) {
	all := &maintenancev1.ClusterStatus{}
	err := m.do(ctx, func(time.Time) {
		s := m.s
		answers := make(map[*mesosv1.MachineInfo][]*allocatorv1.InverseOfferStatus)
		for _, id := range sortedKeys(s.agents) {
			a := s.agents[id]
			if a.unavailable != nil {
				machine := s.machineOf(a.info, a.peer)
				answers[machine] = append(answers[machine], a.unavailable.statuses()...)
			}
		}
		for _, machine := range machineList(s.maintenance) {
			if machine.GetMode() == mesosv1.MachineInfo_DOWN {
				all.DownMachines = append(all.DownMachines, machine.GetId())
				continue
			}
			all.DrainingMachines = append(all.DrainingMachines, &maintenancev1.ClusterStatus_DrainingMachine{
				Id: machine.GetId(), Statuses: answers[machine]})
		}
	})
	if err != nil {
		return nil, err
	}
	if m.deps.Approvers == nil {
		return all, nil
	}
	out := &maintenancev1.ClusterStatus{DownMachines: m.visibleMachines(ctx, principal, "GET_MAINTENANCE_STATUS", all.DownMachines)}
	for _, d := range all.DrainingMachines {
		if m.approve(ctx, principal, "GET_MAINTENANCE_STATUS", machineObject(d.GetId())) == nil {
			out.DrainingMachines = append(out.DrainingMachines, d)
		}
	}
	return out, nil
}

// maintenanceCall carries out those calls of operators that are about maintenance; ok is false for others.
func (m *Master) maintenanceCall(ctx context.Context, principal string, call *masterv1.Call) (resp *masterv1.Response, ok bool, err error) {
	switch call.GetType() {
	case masterv1.Call_GET_MAINTENANCE_SCHEDULE:
		resp = &masterv1.Response{
			Type:                   masterv1.Response_GET_MAINTENANCE_SCHEDULE.Enum(),
			GetMaintenanceSchedule: &masterv1.Response_GetMaintenanceSchedule{Schedule: m.getSchedule(ctx, principal)},
		}
	case masterv1.Call_GET_MAINTENANCE_STATUS:
		var status *maintenancev1.ClusterStatus
		if status, err = m.getMaintenanceStatus(ctx, principal); err == nil {
			resp = &masterv1.Response{
				Type:                 masterv1.Response_GET_MAINTENANCE_STATUS.Enum(),
				GetMaintenanceStatus: &masterv1.Response_GetMaintenanceStatus{Status: status},
			}
		}
	case masterv1.Call_UPDATE_MAINTENANCE_SCHEDULE:
		err = m.updateSchedule(ctx, principal, call.GetUpdateMaintenanceSchedule().GetSchedule())
	case masterv1.Call_START_MAINTENANCE:
		err = m.startMaintenance(ctx, principal, call.GetStartMaintenance().GetMachines())
	case masterv1.Call_STOP_MAINTENANCE:
		err = m.stopMaintenance(ctx, principal, call.GetStopMaintenance().GetMachines())
	default:
		return nil, false, nil
	}
	return resp, true, err
}

// refuseDown ends the stream of an agent whose machine is DOWN, and says whether it is: such an agent ends its tasks and
// itself.
func (s *state) refuseDown(c *agentConn, info *mesosv1.AgentInfo) bool {
	if s.machineOf(info, c.peer).GetMode() != mesosv1.MachineInfo_DOWN {
		return false
	}
	s.shutDown(c, "Machine is `DOWN`")
	return true
}

// obeyMaintenance has an agent that registered be as its machine is.
func (s *state) obeyMaintenance(a *agent, now time.Time) {
	machine := s.machineOf(a.info, a.peer)
	if machine.GetMode() == mesosv1.MachineInfo_DOWN {
		s.removeForMaintenance(a)
		return
	}
	s.setUnavailability(a, machine.GetUnavailability(), now)
}
