package mesosjson_test

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
)

// BenchmarkAppendState writes 10,000 tasks with four resources, two statuses and labels each; the state
// of a large cluster is twenty times that.
func BenchmarkAppendState(b *testing.B) {
	state := &masterv1.Response_GetTasks{}
	for i := range 10000 {
		id := &mesosv1.TaskID{Value: proto.String(fmt.Sprintf("task-%d", i))}
		status := &mesosv1.TaskStatus{
			TaskId: id, State: mesosv1.TaskState_TASK_RUNNING.Enum(), Source: mesosv1.TaskStatus_SOURCE_EXECUTOR.Enum(),
			Timestamp: proto.Float64(1767225600.25), Uuid: make([]byte, 16), Healthy: proto.Bool(true),
		}
		task := &mesosv1.Task{
			Name: proto.String("web"), TaskId: id, FrameworkId: &mesosv1.FrameworkID{Value: proto.String("5b8ac2f0-0000-4000-8000-000000000000-0000")},
			AgentId: &mesosv1.AgentID{Value: proto.String("5b8ac2f0-0000-4000-8000-000000000000-S0")}, State: mesosv1.TaskState_TASK_RUNNING.Enum(),
			Statuses: []*mesosv1.TaskStatus{status, status},
			Labels:   &mesosv1.Labels{Labels: []*mesosv1.Label{{Key: proto.String("owner"), Value: proto.String("team")}}},
		}
		for _, name := range []string{"cpus", "mem", "disk", "gpus"} {
			task.Resources = append(task.Resources, &mesosv1.Resource{
				Name: proto.String(name), Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: proto.Float64(0.5)},
				AllocationInfo: &mesosv1.Resource_AllocationInfo{Role: proto.String("role")},
			})
		}
		state.Tasks = append(state.Tasks, task)
	}
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = state.AppendJSON(buf[:0])
	}
	b.SetBytes(int64(len(buf)))
}
