package master

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// maxIDLength bounds ids that frameworks choose: they become names of files.
const maxIDLength = 255

// minimum of what the executor of a task group has.
const (
	minExecutorCPUs = 0.01
	minExecutorMem  = 32
)

// validateID says why a text cannot be an id: ids become names of files.
func validateID(id string) error {
	switch {
	case id == "":
		return errors.New("ID must not be empty")
	case len(id) > maxIDLength:
		return fmt.Errorf("ID has %d bytes, want at most %d", len(id), maxIDLength)
	case id == "." || id == "..":
		return fmt.Errorf("'%s' is disallowed", id)
	}
	for i := 0; i < len(id); i++ {
		if c := id[i]; c < 0x20 || c == 0x7f || c == '/' || c == '\\' {
			return fmt.Errorf("'%s' contains invalid characters", strings.ToValidUTF8(id, "?"))
		}
	}
	return nil
}

// checkFramework says what is wrong with a FrameworkInfo.
func (m *Master) checkFramework(info *mesosv1.FrameworkInfo, suppressed []string) error {
	if id := info.GetId().GetValue(); id != "" {
		if err := validateID(id); err != nil {
			return fmt.Errorf("Framework ID is invalid: %w", err)
		}
	}
	roles := rolesOf(info)
	if capabilitiesOf(info).multiRole {
		if info.Role != nil {
			return errors.New("'FrameworkInfo.role' must not be set when the framework is MULTI_ROLE capable")
		}
	} else if len(info.GetRoles()) > 0 {
		return errors.New("'FrameworkInfo.roles' must not be set when the framework is not MULTI_ROLE capable")
	}
	seen := make(map[string]bool, len(roles))
	for _, r := range roles {
		if seen[r] {
			return fmt.Errorf("'FrameworkInfo.roles' contains duplicate item: %s", r)
		}
		seen[r] = true
		if err := resources.ValidateRole(r); err != nil {
			return err
		}
		if err := m.cfg.knownRole(r); err != nil {
			return err
		}
	}
	for _, r := range suppressed {
		if !seen[r] {
			return fmt.Errorf("Suppressed role %q is not one of the framework's roles", r)
		}
	}
	if err := checkOfferFilters(info, seen); err != nil {
		return err
	}
	t := info.GetFailoverTimeout()
	if math.IsNaN(t) || t < 0 || t*float64(time.Second) >= math.MaxInt64 {
		return fmt.Errorf("The framework failover_timeout (%v) is invalid: want 0 to %.0f seconds", t, float64(math.MaxInt64)/1e9)
	}
	if m.cfg.NoRootSubmissions && info.GetUser() == "root" {
		return errors.New("User 'root' is not allowed to run frameworks without root submissions")
	}
	return nil
}

// validateTask says what is wrong with a task, apart from what it costs.
func validateTask(t *mesosv1.TaskInfo, f *framework, a *agent) error {
	id := t.GetTaskId().GetValue()
	if err := validateID(id); err != nil {
		return fmt.Errorf("Task ID is invalid: %w", err)
	}
	if _, ok := f.tasks[id]; ok {
		return fmt.Errorf("Task has duplicate ID: %s", id)
	}
	if got := t.GetAgentId().GetValue(); got != a.id {
		return fmt.Errorf("Task uses invalid agent %s while agent %s is expected", got, a.id)
	}
	if len(t.GetResources()) == 0 {
		return errors.New("Task uses no resources")
	}
	if err := validateMix(t.GetResources()); err != nil {
		return err
	}
	if t.KillPolicy != nil && t.KillPolicy.GracePeriod.GetNanoseconds() < 0 {
		return errors.New("Task's 'kill_policy.grace_period' must be non-negative")
	}
	if t.MaxCompletionTime.GetNanoseconds() < 0 {
		return errors.New("Task's 'max_completion_time' must be non-negative")
	}
	if err := validateLimits(t, a); err != nil {
		return err
	}
	if t.Command != nil {
		if err := validateCommand(t.Command); err != nil {
			return err
		}
	}
	if t.Check != nil {
		if err := validateCheck(t.Check); err != nil {
			return fmt.Errorf("Task uses invalid check: %w", err)
		}
	}
	if t.HealthCheck != nil {
		if err := validateHealthCheck(t.HealthCheck); err != nil {
			return fmt.Errorf("Task uses invalid health check: %w", err)
		}
	}
	return nil
}

// validateMix refuses revocable and other resources of one name, and a volume held twice.
func validateMix(rs []*mesosv1.Resource) error {
	revocable := make(map[string]bool)
	volumes := make(map[string]bool)
	for _, r := range rs {
		name := r.GetName()
		if before, ok := revocable[name]; ok && before != (r.Revocable != nil) {
			return fmt.Errorf("Cannot use both revocable and non-revocable '%s' at the same time", name)
		}
		revocable[name] = r.Revocable != nil
		if id := r.GetDisk().GetPersistence().GetId(); id != "" && r.Shared == nil {
			if volumes[id] {
				return fmt.Errorf("Task uses duplicate persistence ID %s", id)
			}
			volumes[id] = true
		}
	}
	return nil
}

// validateLimits checks that limits are of cpus and mem, and not below what is asked for.
func validateLimits(t *mesosv1.TaskInfo, a *agent) error {
	if len(t.Limits) == 0 {
		return nil
	}
	if !a.can(mesosv1.AgentInfo_Capability_TASK_RESOURCE_LIMITS) {
		return fmt.Errorf("Agent %s does not support resource limits", a.id)
	}
	for name, limit := range t.Limits {
		if name != "cpus" && name != "mem" {
			return fmt.Errorf("Task may set limits of 'cpus' and 'mem', not of '%s'", name)
		}
		if math.IsNaN(limit.GetValue()) || limit.GetValue() < resources.New(t.Resources...).Scalar(name) {
			return fmt.Errorf("Task's limit of '%s' is %v, want at least its request", name, limit.GetValue())
		}
	}
	return nil
}

func validateCommand(c *mesosv1.CommandInfo) error {
	for _, u := range c.GetUris() {
		if u.GetValue() == "" {
			return errors.New("A URI of the command is empty")
		}
		if out := u.GetOutputFile(); strings.HasPrefix(out, "/") || escapes(out) {
			return fmt.Errorf("'%s' is not a path within the sandbox", out)
		}
	}
	return validateEnvironment(c.GetEnvironment())
}

func escapes(path string) bool {
	for _, part := range strings.Split(path, "/") {
		if part == ".." {
			return true
		}
	}
	return false
}

func validateEnvironment(e *mesosv1.Environment) error {
	for _, v := range e.GetVariables() {
		switch v.GetType() {
		case mesosv1.Environment_Variable_VALUE:
			if v.Value == nil || v.Secret != nil {
				return fmt.Errorf("Environment variable '%s' of type 'VALUE' must have a value and no secret", v.GetName())
			}
		case mesosv1.Environment_Variable_SECRET:
			if v.Secret == nil || v.Value != nil {
				return fmt.Errorf("Environment variable '%s' of type 'SECRET' must have a secret and no value", v.GetName())
			}
		default:
			return fmt.Errorf("Environment variable '%s' has an unknown type", v.GetName())
		}
	}
	return nil
}

// validateCheck also finds out the type where a framework left it out.
func validateCheck(c *mesosv1.CheckInfo) error {
	if c.Type == nil {
		switch {
		case c.Command != nil && c.Http == nil && c.Tcp == nil:
			c.Type = mesosv1.CheckInfo_COMMAND.Enum()
		case c.Http != nil && c.Command == nil && c.Tcp == nil:
			c.Type = mesosv1.CheckInfo_HTTP.Enum()
		case c.Tcp != nil && c.Command == nil && c.Http == nil:
			c.Type = mesosv1.CheckInfo_TCP.Enum()
		}
	}
	switch c.GetType() {
	case mesosv1.CheckInfo_COMMAND:
		if c.Command == nil {
			return errors.New("Expecting 'command' to be set for COMMAND check")
		}
		if err := validateShell(c.Command.GetCommand()); err != nil {
			return err
		}
	case mesosv1.CheckInfo_HTTP:
		if c.Http == nil {
			return errors.New("Expecting 'http' to be set for HTTP check")
		}
		if p := c.Http.GetPath(); p != "" && !strings.HasPrefix(p, "/") {
			return fmt.Errorf("The path '%s' of HTTP check must start with '/'", p)
		}
	case mesosv1.CheckInfo_TCP:
		if c.Tcp == nil {
			return errors.New("Expecting 'tcp' to be set for TCP check")
		}
	default:
		return errors.New("CheckInfo must specify 'type'")
	}
	return nonNegative(c.GetDelaySeconds(), c.GetIntervalSeconds(), c.GetTimeoutSeconds())
}

// validateHealthCheck also finds out the type where an older framework left it out.
func validateHealthCheck(h *mesosv1.HealthCheck) error {
	if h.Type == nil {
		switch {
		case h.Command != nil && h.Http == nil && h.Tcp == nil:
			h.Type = mesosv1.HealthCheck_COMMAND.Enum()
		case h.Http != nil && h.Command == nil && h.Tcp == nil:
			h.Type = mesosv1.HealthCheck_HTTP.Enum()
		case h.Tcp != nil && h.Command == nil && h.Http == nil:
			h.Type = mesosv1.HealthCheck_TCP.Enum()
		}
	}
	switch h.GetType() {
	case mesosv1.HealthCheck_COMMAND:
		if h.Command == nil {
			return errors.New("Expecting 'command' to be set for COMMAND health check")
		}
		if err := validateShell(h.Command); err != nil {
			return err
		}
	case mesosv1.HealthCheck_HTTP:
		if h.Http == nil {
			return errors.New("Expecting 'http' to be set for HTTP health check")
		}
		if s := h.Http.GetScheme(); s != "" && s != "http" && s != "https" {
			return fmt.Errorf("Unsupported HTTP health check scheme: '%s'", s)
		}
		if p := h.Http.GetPath(); p != "" && !strings.HasPrefix(p, "/") {
			return fmt.Errorf("The path '%s' of HTTP health check must start with '/'", p)
		}
	case mesosv1.HealthCheck_TCP:
		if h.Tcp == nil {
			return errors.New("Expecting 'tcp' to be set for TCP health check")
		}
	default:
		return errors.New("HealthCheck must specify 'type'")
	}
	return nonNegative(h.GetDelaySeconds(), h.GetIntervalSeconds(), h.GetTimeoutSeconds(), h.GetGracePeriodSeconds())
}

func validateShell(c *mesosv1.CommandInfo) error {
	if c.Value == nil {
		if c.GetShell() {
			return errors.New("Shell command must specify 'value'")
		}
		return errors.New("Command must specify 'value'")
	}
	return validateCommand(c)
}

func nonNegative(values ...float64) error {
	for _, v := range values {
		if math.IsNaN(v) || v < 0 {
			return fmt.Errorf("Expecting times to be non-negative, got %v", v)
		}
	}
	return nil
}

// validateExecutor says what is wrong with an executor, apart from what it costs.
func validateExecutor(e *mesosv1.ExecutorInfo, f *framework) error {
	if err := validateID(e.GetExecutorId().GetValue()); err != nil {
		return fmt.Errorf("ExecutorInfo has an invalid ID: %w", err)
	}
	if e.FrameworkId != nil && e.FrameworkId.GetValue() != f.id {
		return fmt.Errorf("ExecutorInfo has an invalid FrameworkID (Actual: %s vs Expected: %s)", e.FrameworkId.GetValue(), f.id)
	}
	switch e.GetType() {
	case mesosv1.ExecutorInfo_DEFAULT:
		if e.Command != nil {
			return errors.New("'ExecutorInfo.command' must not be set for 'DEFAULT' executor")
		}
		if e.GetContainer().GetMesos().GetImage() != nil {
			return errors.New("'ExecutorInfo.container.mesos.image' must not be set for 'DEFAULT' executor")
		}
		if c := e.Container; c != nil && c.GetType() != mesosv1.ContainerInfo_MESOS {
			return errors.New("'ExecutorInfo.container.type' must be 'MESOS' for 'DEFAULT' executor")
		}
	default:
		if e.Command == nil {
			return errors.New("'ExecutorInfo.command' must be set for 'CUSTOM' executor")
		}
		if err := validateCommand(e.Command); err != nil {
			return err
		}
	}
	if e.ShutdownGracePeriod.GetNanoseconds() < 0 {
		return errors.New("ExecutorInfo's 'shutdown_grace_period' must be non-negative")
	}
	return validateMix(e.GetResources())
}

// validateGroup says what is wrong with a task group as a whole.
func validateGroup(g *mesosv1.Offer_Operation_LaunchGroup) error {
	if len(g.GetTaskGroup().GetTasks()) == 0 {
		return errors.New("Task group cannot be empty")
	}
	if t := g.GetExecutor().GetType(); t == mesosv1.ExecutorInfo_UNKNOWN {
		return errors.New("'ExecutorInfo.type' must be set")
	}
	for _, t := range g.GetTaskGroup().GetTasks() {
		id := t.GetTaskId().GetValue()
		switch {
		case t.Executor != nil:
			return fmt.Errorf("Task '%s' is invalid: 'TaskInfo.executor' must not be set", id)
		case t.GetContainer().GetType() == mesosv1.ContainerInfo_DOCKER && t.Container != nil:
			return fmt.Errorf("Task '%s' is invalid: Docker ContainerInfo is not supported on the task", id)
		case g.GetExecutor().GetType() == mesosv1.ExecutorInfo_DEFAULT && t.Command == nil:
			return fmt.Errorf("Task '%s' is invalid: 'TaskInfo.command' must be set", id)
		}
	}
	return nil
}

// validateGroupExecutor checks what a new executor of a task group has to live on.
func validateGroupExecutor(set resources.Set) error {
	switch {
	case set.Scalar("cpus") < minExecutorCPUs:
		return fmt.Errorf("Executor's cpus are %v, want at least %v", set.Scalar("cpus"), minExecutorCPUs)
	case set.Scalar("mem") < minExecutorMem:
		return fmt.Errorf("Executor's mem is %v, want at least %v", set.Scalar("mem"), minExecutorMem)
	case set.Scalar("disk") <= 0:
		return errors.New("Executor has no disk")
	}
	return nil
}
