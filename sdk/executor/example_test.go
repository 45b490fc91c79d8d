package executor_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	executorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/executor"

	"github.com/mosaic-cluster/mosaic/sdk/executor"
)

// A whole executor: its tasks say hello, and have then finished.
func Example() {
	lookup, agent := startAgent() // an agent starts the executor with this environment; elsewhere it is os.LookupEnv
	defer agent.Close()

	environment, err := executor.ReadEnvironment(lookup)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	client := executor.New(executor.Config{Environment: environment, Logger: slog.New(slog.DiscardHandler)})
	err = client.Run(context.Background(), func(_ context.Context, e *executorv1.Event) error {
		switch e.GetType() {
		case executorv1.Event_LAUNCH:
			task := e.GetLaunch().GetTask()
			fmt.Println("hello", task.GetName())
			return errors.Join(
				client.UpdateState(task.GetTaskId(), mesosv1.TaskState_TASK_RUNNING, ""),
				client.UpdateState(task.GetTaskId(), mesosv1.TaskState_TASK_FINISHED, "said hello"),
			)
		case executorv1.Event_SHUTDOWN:
			fmt.Println("shut down")
		}
		return nil
	})
	fmt.Println("ended:", err)
	// Output:
	// hello world
	// shut down
	// ended: <nil>
}

// An executor that ends by itself, after its only task, waits until the agent knows of it.
func ExampleClient_Flush() {
	lookup, agent := startAgent()
	defer agent.Close()

	environment, err := executor.ReadEnvironment(lookup)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	client := executor.New(executor.Config{Environment: environment})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	launched := make(chan *mesosv1.TaskInfo, 1)
	ended := make(chan error)
	go func() {
		ended <- client.Run(ctx, func(_ context.Context, e *executorv1.Event) error {
			if task := e.GetLaunch().GetTask(); task != nil {
				launched <- task
			}
			return nil
		})
	}()
	task := <-launched
	err = client.UpdateState(task.GetTaskId(), mesosv1.TaskState_TASK_FINISHED, "")
	fmt.Println("updated:", err)
	fmt.Println("known:", client.Flush(ctx))
	cancel()
	<-ended
	// Output:
	// updated: <nil>
	// known: <nil>
}

// startAgent serves a little of an agent: one task to launch, and SHUTDOWN when it has finished.
func startAgent() (lookup func(string) (string, bool), agent *httptest.Server) {
	agent = httptest.NewServer(newExampleAgent())
	return func(name string) (string, bool) {
		v, ok := map[string]string{
			"MESOS_FRAMEWORK_ID": "f", "MESOS_EXECUTOR_ID": "e", "MESOS_AGENT_ENDPOINT": agent.Listener.Addr().String(),
		}[name]
		return v, ok
	}, agent
}
