package modulehost

import (
	"slices"
	"time"
)

// ModuleStatus is how one module is right now.
type ModuleStatus struct {
	Kind     string    `json:"kind"`
	Name     string    `json:"name"`
	Version  string    `json:"version,omitempty"`
	State    State     `json:"state"`
	Reason   string    `json:"reason,omitempty"`
	Since    time.Time `json:"since"`
	Required bool      `json:"required"`
	PID      int       `json:"pid,omitempty"`
	Digest   string    `json:"digest,omitempty"` // of the file that the running process was started from
	Restarts int       `json:"restarts"`
	Service  string    `json:"service,omitempty"` // contract in use
	Services []string  `json:"services,omitempty"`
	Powers   []string  `json:"powers,omitempty"`  // declared
	Granted  []string  `json:"granted,omitempty"` // of those, what the operator left it
	Memory   uint64    `json:"memory_bytes,omitempty"`
	Owed     int       `json:"cleanups_owed"`
	Doc      string    `json:"doc,omitempty"`
}

// Status tells of all modules in the order of the composition.
func (h *Host) Status() []ModuleStatus {
	out := make([]ModuleStatus, 0, len(h.modules))
	for _, m := range h.modules {
		out = append(out, m.status())
	}
	return out
}

func (m *module) status() ModuleStatus {
	m.mu.Lock()
	s := ModuleStatus{
		Kind: m.cfg.Kind, Name: m.cfg.Name, State: m.state, Reason: m.reason, Since: m.since, Required: m.cfg.Required,
		PID: m.pid, Digest: m.digest, Restarts: m.restarts, Service: m.service, Owed: int(m.owed.Load()),
	}
	d := m.desc
	if m.life != nil {
		s.Granted = slices.Clone(m.life.granted)
	}
	m.mu.Unlock()
	s.Version, s.Services, s.Powers, s.Doc = d.GetVersion(), d.GetServices(), d.GetPowers(), d.GetDoc()
	s.Memory = residentMemory(s.PID)
	return s
}

// Degraded says whether launches must be refused for now, and why: a required isolator is not up or says that it
// failed. Running containers are not concerned.
func (h *Host) Degraded() (reasons []string) {
	for _, m := range h.ofKind(KindIsolator) {
		if !m.cfg.Required {
			continue
		}
		s := m.status()
		if s.State == StateUp || s.State == StateDegraded {
			continue
		}
		reason := m.cfg.id() + " is " + string(s.State)
		if s.Reason != "" {
			reason += ": " + s.Reason
		}
		reasons = append(reasons, reason)
	}
	return reasons
}
