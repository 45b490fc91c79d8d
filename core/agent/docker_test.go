package agent

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// Inspect says of a container what it was asked with.
func (x *containers) Inspect(id string, asked *mesosv1.ContainerInfo, status *mesosv1.ContainerStatus) ([]byte, error) {
	return fmt.Appendf(nil, "%s %s %d", asked.GetDocker().GetImage(), id, status.GetExecutorPid()), nil
}

// docker is a task of type DOCKER.
func docker(id, text string, parameters ...*mesosv1.Parameter) *mesosv1.TaskInfo {
	t := command(id, text)
	t.Container = &mesosv1.ContainerInfo{
		Type: mesosv1.ContainerInfo_DOCKER.Enum(), Docker: &mesosv1.ContainerInfo_DockerInfo{Image: new("busybox"), Parameters: parameters},
	}
	return t
}

func TestFrameworkOfADockerTaskIsToldWhatItsContainerIs(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		w.launch(checkpointed("F"), docker("t", "sleep"))
		w.launch(checkpointed("F"), command("plain", "sleep"))
		s := w.master.await(t, "t", mesosv1.TaskState_TASK_RUNNING).GetStatus()
		id := s.GetContainerStatus().GetContainerId().GetValue()
		if want := fmt.Sprintf("busybox %s %d", id, s.GetContainerStatus().GetExecutorPid()); string(s.GetData()) != want {
			t.Errorf("data of TASK_RUNNING = %q, want %q", s.GetData(), want)
		}
		if s := w.master.await(t, "plain", mesosv1.TaskState_TASK_RUNNING).GetStatus(); s.Data != nil || s.Labels != nil {
			t.Errorf("status of a task without such a container = %v, want neither data nor labels", s)
		}
		w.kill("t")
		if s := w.master.await(t, "t", mesosv1.TaskState_TASK_KILLED).GetStatus(); s.GetMessage() != "Container terminated with signal Terminated" {
			t.Errorf("message = %q, want the words of Mesos's Docker executor", s.GetMessage())
		}
	})
}

func TestDockerTaskIsGivenTheTimeThatItsContainerAsksFor(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		timeout := &mesosv1.Parameter{Key: new("stop-timeout"), Value: new("20")}
		policy := docker("policy", "stubborn", timeout)
		policy.KillPolicy = &mesosv1.KillPolicy{GracePeriod: &mesosv1.DurationInfo{Nanoseconds: new(int64(time.Second))}}
		w.launch(checkpointed("F"), docker("asks", "stubborn", timeout))
		w.launch(checkpointed("F"), policy)
		for id, want := range map[string]time.Duration{"asks": 20 * time.Second, "policy": time.Second} {
			w.master.await(t, id, mesosv1.TaskState_TASK_RUNNING)
			synctest.Wait()
			began := time.Now()
			w.kill(id)
			w.master.await(t, id, mesosv1.TaskState_TASK_KILLED)
			if took := time.Since(began); took != want {
				t.Errorf("kill of %s took %v, want %v", id, took, want)
			}
		}
	})
}

func TestAddressOfADockerContainerIsInALabel(t *testing.T) {
	e := &executor{command: &task{info: docker("t", "sleep")}, status: &mesosv1.ContainerStatus{
		NetworkInfos: []*mesosv1.NetworkInfo{{}, {IpAddresses: []*mesosv1.NetworkInfo_IPAddress{{}, {IpAddress: new("10.1.2.3")}}}},
	}}
	var s mesosv1.TaskStatus
	e.describeDocker(&s)
	if l := s.GetLabels().GetLabels(); len(l) != 1 || l[0].GetKey() != "Docker.NetworkSettings.IPAddress" || l[0].GetValue() != "10.1.2.3" {
		t.Errorf("labels = %v, want the address", l)
	}
}
