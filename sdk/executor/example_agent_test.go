package executor_test

import (
	"io"
	"net/http"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	executorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/executor"
	"github.com/mosaic-cluster/mosaic/sdk/recordio"
)

// newExampleAgent is the agent of the examples.
func newExampleAgent() http.Handler {
	events := make(chan *executorv1.Event, 16)
	hostname, user, name, id := "h", "u", "world", "t"
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		call := &executorv1.Call{}
		if call.UnmarshalVT(body) != nil {
			http.Error(w, "bad", http.StatusBadRequest)
			return
		}
		if call.GetType() != executorv1.Call_SUBSCRIBE {
			status := call.GetUpdate().GetStatus()
			events <- &executorv1.Event{
				Type:         executorv1.Event_ACKNOWLEDGED.Enum(),
				Acknowledged: &executorv1.Event_Acknowledged{TaskId: status.TaskId, Uuid: status.Uuid},
			}
			if status.GetState() == mesosv1.TaskState_TASK_FINISHED {
				events <- &executorv1.Event{Type: executorv1.Event_SHUTDOWN.Enum()}
			}
			w.WriteHeader(http.StatusAccepted)
			return
		}
		events <- &executorv1.Event{Type: executorv1.Event_SUBSCRIBED.Enum(), Subscribed: &executorv1.Event_Subscribed{
			ExecutorInfo:  &mesosv1.ExecutorInfo{ExecutorId: call.GetExecutorId()},
			FrameworkInfo: &mesosv1.FrameworkInfo{User: &user, Name: &name},
			AgentInfo:     &mesosv1.AgentInfo{Hostname: &hostname},
		}}
		events <- &executorv1.Event{Type: executorv1.Event_LAUNCH.Enum(), Launch: &executorv1.Event_Launch{Task: &mesosv1.TaskInfo{
			Name: &name, TaskId: &mesosv1.TaskID{Value: &id}, AgentId: &mesosv1.AgentID{Value: &hostname},
		}}}
		for {
			select {
			case e := <-events:
				data, _ := e.MarshalVT()
				_, _ = w.Write(recordio.Append(nil, data))
				w.(http.Flusher).Flush()
			case <-r.Context().Done():
				return
			}
		}
	})
}
