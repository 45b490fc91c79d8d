package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	executorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/executor"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
	"github.com/mosaic-cluster/mosaic/sdk/recordio"
	"github.com/mosaic-cluster/mosaic/sdk/scheduler"
)

const (
	updateTasks   = 1_000
	updatesOfTask = 100
	// updateSenders is how many connections the executor sends on.
	updateSenders = 16
)

// talk is this program as an executor: it says of each task that it runs, over and over, as fast as the agent takes it.
func talk() error {
	e := &talker{
		base: "http://" + os.Getenv("MESOS_AGENT_ENDPOINT") + "/api/v1/executor",
		ids: &executorv1.Call{
			FrameworkId: &mesosv1.FrameworkID{Value: new(os.Getenv("MESOS_FRAMEWORK_ID"))},
			ExecutorId:  &mesosv1.ExecutorID{Value: new(os.Getenv("MESOS_EXECUTOR_ID"))},
		},
		hc: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: updateSenders}},
	}
	resp, err := e.post(&executorv1.Call{Type: executorv1.Call_SUBSCRIBE.Enum(), Subscribe: &executorv1.Call_Subscribe{}})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	records := recordio.NewReader(resp.Body, 64<<20)
	tasks := make(chan *mesosv1.TaskID, updateTasks)
	var senders errgroup.Group
	for range updateSenders {
		senders.Go(func() error {
			for id := range tasks {
				for n := range updatesOfTask {
					if err := e.update(id, n); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	for {
		record, err := records.Next()
		if err != nil {
			return err
		}
		event := new(executorv1.Event)
		if err := event.UnmarshalVT(record); err != nil {
			return err
		}
		switch event.GetType() {
		case executorv1.Event_LAUNCH:
			tasks <- event.GetLaunch().GetTask().GetTaskId()
		case executorv1.Event_SHUTDOWN:
			close(tasks)
			return senders.Wait()
		}
	}
}

type talker struct {
	base string
	ids  *executorv1.Call
	hc   *http.Client
}

func (e *talker) post(c *executorv1.Call) (*http.Response, error) {
	c.FrameworkId, c.ExecutorId = e.ids.GetFrameworkId(), e.ids.GetExecutorId()
	body, err := c.MarshalVT()
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequest(http.MethodPost, e.base, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	req.Header.Set("Accept", "application/x-protobuf")
	resp, err := e.hc.Do(req)
	if err == nil && resp.StatusCode >= 300 {
		resp.Body.Close()
		return nil, fmt.Errorf("%s: %s", c.GetType(), resp.Status)
	}
	return resp, err
}

func (e *talker) update(id *mesosv1.TaskID, n int) error {
	u := uuid.New()
	text := strconv.Itoa(n)
	resp, err := e.post(&executorv1.Call{Type: executorv1.Call_UPDATE.Enum(), Update: &executorv1.Call_Update{Status: &mesosv1.TaskStatus{
		TaskId: id, State: mesosv1.TaskState_TASK_RUNNING.Enum(), Source: mesosv1.TaskStatus_SOURCE_EXECUTOR.Enum(), Uuid: u[:], Message: &text,
	}}})
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// updates measures 100,000 status updates on their way from one executor through agent and master to the scheduler, each
// written down by the agent and acknowledged, and the memory that both daemons take for it.
func (b *bench) updates() error {
	if !b.report.wants("updates") {
		return nil
	}
	return b.with(cluster.Options{}, func(c *cluster.Cluster) error {
		ctx, cancel := context.WithTimeout(b.ctx, 5*time.Minute)
		defer cancel()
		self, err := os.Executable()
		if err != nil {
			return err
		}
		name, user := "updates", "root"
		var mu sync.Mutex
		seen, launched := 0, false
		var first time.Time
		done := make(chan struct{})
		client := scheduler.New(scheduler.Config{Master: c.Master, Framework: &mesosv1.FrameworkInfo{Name: &name, User: &user, Checkpoint: new(true)}})
		event := func(ctx context.Context, e *schedulerv1.Event) error {
			switch e.GetType() {
			case schedulerv1.Event_OFFERS:
				if launched {
					return nil
				}
				launched = true
				o := e.GetOffers().GetOffers()[0]
				return client.Accept(ctx, []*mesosv1.OfferID{o.GetId()}, []*mesosv1.Offer_Operation{{
					Type: mesosv1.Offer_Operation_LAUNCH.Enum(), Launch: &mesosv1.Offer_Operation_Launch{TaskInfos: talkers(o, self)},
				}}, 3600)
			case schedulerv1.Event_UPDATE:
				if s := e.GetUpdate().GetStatus(); s.GetState() != mesosv1.TaskState_TASK_RUNNING {
					return fmt.Errorf("task %s is %s: %s", s.GetTaskId().GetValue(), s.GetState(), s.GetMessage())
				}
				mu.Lock()
				defer mu.Unlock()
				if seen == 0 {
					first = time.Now()
				}
				if seen++; seen == updateTasks*updatesOfTask {
					close(done)
				}
			}
			return nil
		}
		group, gctx := errgroup.WithContext(ctx)
		running, stop := context.WithCancel(gctx)
		defer stop()
		group.Go(func() error { return client.Run(running, event) })
		select {
		case <-done:
		case <-gctx.Done():
			stop()
			return errors.Join(fmt.Errorf("updates: %d seen", seen), group.Wait())
		}
		b.report.add(row{"updates/100000-rate", float64(seen) / time.Since(first).Seconds(), "/s", 0, 0})
		for _, d := range []struct {
			name string
			pid  int
		}{{"master", c.MasterPid()}, {"agent", c.AgentPid()}} {
			rss, err := rssMiB(d.pid)
			if err != nil {
				return err
			}
			b.report.add(row{"updates/" + d.name + "-rss", rss, "MiB", 0, 0})
		}
		var stored int64
		err = filepath.WalkDir(filepath.Join(c.Dir, "agent"), func(path string, d os.DirEntry, err error) error {
			if err == nil && filepath.Ext(path) == ".db" {
				if info, err := d.Info(); err == nil {
					stored += info.Size()
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		b.report.add(row{"updates/agent-store", float64(stored) / (1 << 20), "MiB", 0, 0})
		stop()
		_ = group.Wait() // told to end
		return nil
	})
}

// talkers are the tasks of one executor that runs this program.
func talkers(o *mesosv1.Offer, self string) []*mesosv1.TaskInfo {
	amount := func(name string, v float64) *mesosv1.Resource {
		return &mesosv1.Resource{
			Name: &name, Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: &v}, AllocationInfo: o.GetAllocationInfo(),
		}
	}
	executor := &mesosv1.ExecutorInfo{
		Type: mesosv1.ExecutorInfo_CUSTOM.Enum(), ExecutorId: &mesosv1.ExecutorID{Value: new("talker")},
		Command:   &mesosv1.CommandInfo{Shell: new(false), Value: &self, Arguments: []string{"bench", "talk"}},
		Resources: []*mesosv1.Resource{amount("cpus", 1), amount("mem", 256)},
	}
	var tasks []*mesosv1.TaskInfo
	for i := range updateTasks {
		t := cluster.Task(o, fmt.Sprintf("talk-%d", i), 0.1, 32, nil)
		t.Command, t.Executor = nil, executor
		tasks = append(tasks, t)
	}
	return tasks
}
