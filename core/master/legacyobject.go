package master

import (
	"fmt"

	"github.com/mosaic-cluster/mosaic/sdk/mesosjson"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// legacyJSON is a task as older endpoints show it.
func (e *taskEntry) legacyJSON() []byte {
	data, _ := e.legacy.get(func() ([]byte, error) {
		t := e.proto
		b := append(make([]byte, 0, 512), '{')
		b = text(b, "id", t.GetTaskId().GetValue())
		b = text(b, "name", t.GetName())
		b = text(b, "framework_id", t.GetFrameworkId().GetValue())
		b = text(b, "executor_id", t.GetExecutorId().GetValue())
		b = text(b, "slave_id", t.GetAgentId().GetValue())
		b = text(b, "state", t.GetState().String())
		set := resources.New(t.GetResources()...)
		b = summary(b, "resources", set)
		if len(t.Limits) > 0 {
			b = object(b, "limits", func(b []byte) []byte {
				for _, n := range sortedKeys(t.Limits) {
					b = number(b, n, t.Limits[n].GetValue())
				}
				return b
			})
		}
		b = text(b, "role", allocationRole(set))
		b = list(b, "statuses", func(b []byte) []byte {
			for _, s := range t.Statuses {
				b = append(appendStatus(b, s), ',')
			}
			return b
		})
		if t.GetUser() != "" {
			b = text(b, "user", t.GetUser())
		}
		b = labels(b, "labels", t.Labels)
		if t.Discovery != nil {
			b = message(b, "discovery", t.Discovery)
		}
		if t.Container != nil {
			b = message(b, "container", t.Container)
		}
		if t.HealthCheck != nil {
			b = message(b, "health_check", t.HealthCheck)
		}
		return append(mesosjson.CloseObject(b), ','), nil
	})
	return data
}

func appendStatus(b []byte, s *mesosv1.TaskStatus) []byte {
	b = append(b, '{')
	b = text(b, "state", s.GetState().String())
	b = number(b, "timestamp", s.GetTimestamp())
	b = labels(b, "labels", s.Labels)
	if c := s.ContainerStatus; c != nil {
		b = object(b, "container_status", func(b []byte) []byte {
			if c.ContainerId != nil {
				b = message(b, "container_id", c.ContainerId)
			}
			if len(c.NetworkInfos) > 0 {
				b = list(b, "network_infos", func(b []byte) []byte {
					for _, n := range c.NetworkInfos {
						b = append(appendNetwork(b, n), ',')
					}
					return b
				})
			}
			if c.CgroupInfo != nil {
				b = message(b, "cgroup_info", c.CgroupInfo)
			}
			return b
		})
	}
	if s.Healthy != nil {
		b = boolean(b, "healthy", s.GetHealthy())
	}
	return mesosjson.CloseObject(b)
}

func appendNetwork(b []byte, n *mesosv1.NetworkInfo) []byte {
	b = append(b, '{')
	if len(n.Groups) > 0 {
		b = texts(b, "groups", n.Groups)
	}
	b = labels(b, "labels", n.Labels)
	if len(n.IpAddresses) > 0 {
		b = list(b, "ip_addresses", func(b []byte) []byte {
			for _, a := range n.IpAddresses {
				b = append(a.AppendJSON(b), ',')
			}
			return b
		})
	}
	if n.Name != nil {
		b = text(b, "name", n.GetName())
	}
	if len(n.PortMappings) > 0 {
		b = list(b, "port_mappings", func(b []byte) []byte {
			for _, p := range n.PortMappings {
				b = append(p.AppendJSON(b), ',')
			}
			return b
		})
	}
	return mesosjson.CloseObject(b)
}

// legacyJSON is an executor as older endpoints show it.
func (e *executorEntry) legacyJSON() []byte {
	data, _ := e.legacy.get(func() ([]byte, error) {
		b := append(make([]byte, 0, 512), '{')
		b = text(b, "executor_id", e.info.GetExecutorId().GetValue())
		b = text(b, "name", e.info.GetName())
		b = text(b, "framework_id", e.frameworkID)
		b = object(b, "command", func(b []byte) []byte {
			c := e.info.GetCommand()
			if c == nil {
				return b
			}
			b = boolean(b, "shell", c.GetShell())
			if c.Value != nil {
				b = text(b, "value", c.GetValue())
			}
			b = texts(b, "argv", c.GetArguments())
			if c.Environment != nil {
				b = message(b, "environment", c.Environment)
			}
			return list(b, "uris", func(b []byte) []byte {
				for _, u := range c.GetUris() {
					b = append(b, '{')
					b = text(b, "value", u.GetValue())
					b = boolean(b, "executable", u.GetExecutable())
					b = append(mesosjson.CloseObject(b), ',')
				}
				return b
			})
		})
		b = summary(b, "resources", e.set)
		if role := allocationRole(e.set); role != "" {
			b = text(b, "role", role)
		}
		b = labels(b, "labels", e.info.Labels)
		if e.info.Type != nil {
			b = text(b, "type", e.info.GetType().String())
		}
		b = text(b, "slave_id", e.agentID.GetValue())
		return append(mesosjson.CloseObject(b), ','), nil
	})
	return data
}

func (e *offerEntry) appendLegacy(b []byte) []byte {
	b = append(b, '{')
	b = text(b, "id", e.proto.GetId().GetValue())
	b = text(b, "framework_id", e.proto.GetFrameworkId().GetValue())
	b = object(b, "allocation_info", func(b []byte) []byte { return text(b, "role", e.role) })
	b = text(b, "slave_id", e.proto.GetAgentId().GetValue())
	b = summary(b, "resources", e.set)
	return mesosjson.CloseObject(b)
}

// appendLegacy appends the members of an agent; full adds the lists that only /slaves has.
func (a *agentEntry) appendLegacy(b []byte, u *usage, full bool) []byte {
	b = text(b, "id", a.id)
	b = text(b, "hostname", a.info.GetHostname())
	b = integer(b, "port", int64(a.info.GetPort()))
	b = attributes(b, "attributes", a.info.GetAttributes())
	if a.info.Domain != nil {
		b = message(b, "domain", a.info.Domain)
	}
	b = text(b, "pid", a.pid)
	b = number(b, "registered_time", seconds(a.registered))
	if !a.reregistered.IsZero() {
		b = number(b, "reregistered_time", seconds(a.reregistered))
	}
	b = summary(b, "resources", a.total)
	b = summary(b, "used_resources", u.used)
	b = summary(b, "offered_resources", u.offered)
	b = reserved(b, "reserved_resources", a.total)
	b = summary(b, "unreserved_resources", a.total.Unreserved())
	b = boolean(b, "active", a.active)
	b = boolean(b, "deactivated", a.deactivated)
	if a.drain != nil {
		b = message(b, "drain_info", a.drain)
	}
	if !a.drainStarted.IsZero() {
		b = number(b, "estimated_drain_start_time_seconds", seconds(a.drainStarted))
	}
	b = text(b, "version", a.version)
	b = texts(b, "capabilities", a.capabilities)
	if !full {
		return b
	}
	resourceList := func(b []byte, name string, set resources.Set) []byte {
		return list(b, name, func(b []byte) []byte {
			for _, r := range resources.ToEndpoint(set.Resources()) {
				b = append(r.AppendJSON(b), ',')
			}
			return b
		})
	}
	byRole := a.total.Reservations()
	b = object(b, "reserved_resources_full", func(b []byte) []byte {
		for _, role := range sortedKeys(byRole) {
			b = resourceList(b, role, byRole[role])
		}
		return b
	})
	b = resourceList(b, "unreserved_resources_full", a.total.Unreserved())
	b = resourceList(b, "used_resources_full", u.used)
	return resourceList(b, "offered_resources_full", u.offered)
}

// appendLegacyHead appends the members of a framework that all lists have.
func (f *frameworkEntry) appendLegacyHead(b []byte, u *usage) []byte {
	b = text(b, "id", f.id)
	b = text(b, "name", f.info.GetName())
	b = summary(b, "used_resources", u.used)
	b = summary(b, "offered_resources", u.offered)
	b = list(b, "capabilities", func(b []byte) []byte {
		for _, c := range f.info.GetCapabilities() {
			b = append(mesosjson.AppendString(b, c.GetType().String()), ',')
		}
		return b
	})
	b = text(b, "hostname", f.info.GetHostname())
	b = text(b, "webui_url", f.info.GetWebuiUrl())
	b = boolean(b, "active", f.active)
	b = boolean(b, "connected", f.connected)
	return boolean(b, "recovered", f.recovered)
}

func (f *frameworkEntry) appendLegacy(b []byte, u *usage, h *holdings) []byte {
	b = append(b, '{')
	b = f.appendLegacyHead(b, u)
	b = text(b, "user", f.info.GetUser())
	b = number(b, "failover_timeout", f.info.GetFailoverTimeout())
	b = boolean(b, "checkpoint", f.info.GetCheckpoint())
	b = number(b, "registered_time", seconds(f.registered))
	b = number(b, "unregistered_time", seconds(f.unregistered))
	if !f.reregistered.IsZero() {
		b = number(b, "reregistered_time", seconds(f.reregistered))
	}
	if f.info.Principal != nil {
		b = text(b, "principal", f.info.GetPrincipal())
	}
	b = summary(b, "resources", u.used.Add(u.offered))
	if capabilitiesOf(f.info).multiRole {
		b = texts(b, "roles", f.roles)
	} else {
		b = text(b, "role", f.info.GetRole())
	}
	for i, name := range []string{"tasks", "unreachable_tasks", "completed_tasks"} {
		b = list(b, name, func(b []byte) []byte {
			if h != nil {
				for _, t := range h.tasks[i] {
					b = append(b, t.legacyJSON()...)
				}
			}
			return b
		})
	}
	b = list(b, "offers", func(b []byte) []byte {
		for _, o := range u.offers {
			b = append(o.appendLegacy(b), ',')
		}
		return b
	})
	b = list(b, "executors", func(b []byte) []byte {
		if h != nil {
			for _, e := range h.executors {
				b = append(b, e.legacyJSON()...)
			}
		}
		return b
	})
	b = labels(b, "labels", f.info.Labels)
	if f.constraints.proto != nil {
		b = message(b, "offer_constraints", f.constraints.proto)
	} else {
		b = object(b, "offer_constraints", func(b []byte) []byte { return b })
	}
	return mesosjson.CloseObject(b)
}

// agentPID is an agent's address in the form that tools take apart.
func agentPID(host string, port int32) string {
	return fmt.Sprintf("slave(1)@%s:%d", host, port)
}
