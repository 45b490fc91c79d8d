package agent

import (
	"net"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/mosaic-cluster/mosaic/sdk/resources"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// containerOf describes the container that e needs.
func (a *Agent) containerOf(e *executor) *containerv1.Container {
	c := &containerv1.Container{
		Id:          string(e.container),
		Generation:  e.generation,
		FrameworkId: string(e.framework.id),
		ExecutorId:  string(e.id),
		AgentId:     a.info.GetId().GetValue(),
		Sandbox:     e.directory,
		Cgroup:      a.cfg.CgroupRoot + "/" + string(e.container),
		Created:     timestamppb.Now(),
	}
	labels := e.info.GetLabels()
	switch t := e.command; {
	case t != nil:
		c.TaskId = string(t.id)
		c.Command = t.info.GetCommand()
		c.ContainerInfo = t.info.GetContainer()
		labels = t.info.GetLabels()
	case e.ofGroups():
		c.Command = a.pause()
		c.ContainerInfo = e.info.GetContainer()
	default:
		c.Command = e.info.GetCommand()
		c.ContainerInfo = e.info.GetContainer()
	}
	terminalOf(c)
	if p := e.parent; p != nil {
		c.ParentId = string(p.container)
		c.Cgroup = a.cfg.CgroupRoot + "/" + string(p.container) + "/" + e.container.own()
		if e.sharesCgroup() {
			c.Cgroup = a.cfg.CgroupRoot + "/" + string(p.container) + "/nested-" + e.container.own()
		}
	}
	allowed := e.allowance()
	c.Resources, c.Limits = a.placeVolumes(allowed.resources), allowed.limits
	c.User = e.framework.user(c.GetCommand())
	if a.cfg.KeepUser {
		c.User = strconv.Itoa(os.Geteuid())
		if u, err := user.Current(); err == nil {
			c.User = u.Username
		}
	}
	c.SandboxInContainer = c.Sandbox
	if c.GetContainerInfo().GetMesos().GetImage() != nil || c.GetContainerInfo().GetDocker().GetImage() != "" {
		c.SandboxInContainer = a.cfg.SandboxDirectory
	}
	c.Environment = a.environment(e, c)
	for _, l := range labels.GetLabels() {
		if c.Labels == nil {
			c.Labels = make(map[string]string, len(labels.GetLabels()))
		}
		c.Labels[l.GetKey()] = l.GetValue()
	}
	return c
}

// resources is what e's container may use: its own and that of its tasks that have not ended. Limits are summed
// likewise; a task without one counts with its request, and one without end makes the sum so.
func (e *executor) resources() ([]*mesosv1.Resource, map[string]float64) {
	if t := e.command; t != nil {
		return t.info.GetResources(), limitsOf(t.info)
	}
	all := resources.New(e.info.GetResources()...)
	limited := make(map[string]bool)
	var live []*task
	for _, t := range e.tasks {
		if terminal(t.state) {
			continue
		}
		live = append(live, t)
		all = all.Add(resources.New(t.info.GetResources()...))
		for name := range t.info.GetLimits() {
			limited[name] = true
		}
	}
	var limits map[string]float64
	for name := range limited {
		sum := resources.New(e.info.GetResources()...).Scalar(name)
		for _, t := range live {
			if l, ok := t.info.GetLimits()[name]; ok {
				sum += l.GetValue()
			} else {
				sum += resources.New(t.info.GetResources()...).Scalar(name)
			}
		}
		if limits == nil {
			limits = make(map[string]float64)
		}
		limits[name] = sum
	}
	return all.Resources(), limits
}

func limitsOf(t *mesosv1.TaskInfo) map[string]float64 {
	if len(t.GetLimits()) == 0 {
		return nil
	}
	limits := make(map[string]float64, len(t.GetLimits()))
	for name, l := range t.GetLimits() {
		limits[name] = l.GetValue()
	}
	return limits
}

// inherited are the variables that containers get of the agent's own environment. Mesos hands on all of it; here
// what may hold an operator's secrets stays with the agent unless ExecutorEnvironment says otherwise.
var inherited = []string{"PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ"}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment is what the agent gives an executor in container c, by the names and in the spelling of Mesos.
func (a *Agent) environment(e *executor, c *containerv1.Container) map[string]string {
	env := a.ownEnvironment(c)
	endpoint := net.JoinHostPort(a.cfg.IP, strconv.Itoa(a.cfg.Port))
	grace := a.shutdownGrace(e)
	if e.parent != nil {
		grace = a.shutdownGrace(e.parent)
	}
	env["MESOS_FRAMEWORK_ID"] = string(e.framework.id)
	env["MESOS_EXECUTOR_ID"] = string(e.id)
	if p := e.parent; p != nil {
		env["MESOS_CONTAINER_IP"] = a.addressOf(p)
	}
	env["MESOS_SLAVE_ID"] = a.info.GetId().GetValue()
	env["MESOS_SLAVE_PID"] = "slave(1)@" + endpoint
	env["MESOS_AGENT_ENDPOINT"] = endpoint
	env["MESOS_DIRECTORY"] = e.directory
	env["MESOS_SANDBOX"] = c.GetSandboxInContainer()
	env["MESOS_HTTP_COMMAND_EXECUTOR"] = "0"
	env["MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD"] = mesosDuration(grace)
	env["MESOS_CHECKPOINT"] = "0"
	if e.framework.info.GetCheckpoint() {
		env["MESOS_CHECKPOINT"] = "1"
		env["MESOS_RECOVERY_TIMEOUT"] = mesosDuration(a.cfg.RecoveryTimeout)
		env["MESOS_SUBSCRIPTION_BACKOFF_MAX"] = mesosDuration(a.cfg.ExecutorReregistrationTimeout)
	}
	if e.command == nil && !e.ofGroups() && a.deps.ExecutorToken != nil {
		if token := a.deps.ExecutorToken(string(e.framework.id), string(e.id), string(e.container)); token != "" {
			env["MESOS_EXECUTOR_AUTHENTICATION_TOKEN"] = token
		}
	}
	env["LIBPROCESS_IP"] = a.cfg.IP
	env["LIBPROCESS_PORT"] = "0"
	var rs []*mesosv1.Resource
	if e.command != nil {
		rs = e.command.info.GetResources()
	} else if rs = e.info.GetResources(); len(rs) == 0 {
		for _, t := range e.tasks {
			rs = t.info.GetResources()
			break
		}
	}
	for _, r := range rs {
		if role := r.GetAllocationInfo().GetRole(); role != "" {
			env["MESOS_ALLOCATION_ROLE"] = role
			break
		}
	}
	return env
}

// shutdownGrace is how long an executor may take to end when it is told to.
func (a *Agent) shutdownGrace(e *executor) time.Duration {
	if g := e.info.GetShutdownGracePeriod(); g != nil {
		return max(time.Duration(g.GetNanoseconds()), 0)
	}
	return a.cfg.ExecutorShutdownGracePeriod
}

// addressOf is the first address of a container's own network, or the agent's.
func (a *Agent) addressOf(e *executor) string {
	for _, n := range e.status.GetNetworkInfos() {
		for _, x := range n.GetIpAddresses() {
			if ip := x.GetIpAddress(); ip != "" {
				return ip
			}
		}
	}
	return a.cfg.IP
}

// mesosDuration spells a duration as Mesos does: the largest unit that divides it, else a fraction of the
// largest below it.
func mesosDuration(d time.Duration) string {
	units := []struct {
		d    time.Duration
		name string
	}{
		{7 * 24 * time.Hour, "weeks"}, {24 * time.Hour, "days"}, {time.Hour, "hrs"}, {time.Minute, "mins"},
		{time.Second, "secs"}, {time.Millisecond, "ms"}, {time.Microsecond, "us"}, {time.Nanosecond, "ns"},
	}
	if d == 0 {
		return "0ns"
	}
	for _, u := range units {
		if d%u.d == 0 {
			return strconv.FormatInt(int64(d/u.d), 10) + u.name
		}
	}
	return strings.TrimSpace(strconv.FormatInt(int64(d), 10)) + "ns"
}
