package agent

import (
	"strconv"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// What Mesos's executor for containers of type DOCKER tells a framework, and does, beyond its command executor. The
// containers themselves are like all others by the time they run.

// An inspector is a Containerizer that describes a running container as `docker inspect` does, in JSON. asked is its
// ContainerInfo as the framework wrote it, status what Status says.
type inspector interface {
	Inspect(id string, asked *mesosv1.ContainerInfo, status *mesosv1.ContainerStatus) ([]byte, error)
}

// dockerAddress is the label of an update with a container's address; mesos-dns and others still look for it there.
const dockerAddress = "Docker.NetworkSettings.IPAddress"

// isDocker says whether a task's container was meant for a Docker daemon.
func (t *task) isDocker() bool {
	c := t.info.GetContainer()
	return c != nil && c.GetType() == mesosv1.ContainerInfo_DOCKER
}

// inspect describes e's container for a task of type DOCKER; nil for others.
func (a *Agent) inspect(e *executor, status *mesosv1.ContainerStatus) []byte {
	i, ok := a.ctzr.(inspector)
	if t := e.command; !ok || t == nil || !t.isDocker() {
		return nil
	}
	b, err := i.Inspect(string(e.container), e.command.info.GetContainer(), status)
	if err != nil {
		a.log.Warn("container is not described to its framework", "container", e.container, "error", err)
	}
	return b
}

// describeDocker adds to the update that a task runs what its container is.
func (e *executor) describeDocker(s *mesosv1.TaskStatus) {
	if !e.command.isDocker() {
		return
	}
	s.Data = e.inspected
	for _, n := range e.status.GetNetworkInfos() {
		for _, x := range n.GetIpAddresses() {
			if x.GetIpAddress() != "" {
				s.Labels = &mesosv1.Labels{Labels: []*mesosv1.Label{{Key: new(dockerAddress), Value: x.IpAddress}}}
				return
			}
		}
	}
}

// stopTimeout is how long a container of type DOCKER asks to be given by the parameter stop-timeout.
func (t *task) stopTimeout() (time.Duration, bool) {
	if !t.isDocker() {
		return 0, false
	}
	for _, p := range t.info.GetContainer().GetDocker().GetParameters() {
		if n, err := strconv.ParseUint(p.GetValue(), 10, 31); p.GetKey() == "stop-timeout" && err == nil {
			return min(time.Duration(n)*time.Second, maxGrace), true
		}
	}
	return 0, false
}

// maxGrace is far more than anybody waits, and far less than a duration holds.
const maxGrace = 100 * 365 * 24 * time.Hour
