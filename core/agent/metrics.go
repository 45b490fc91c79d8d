package agent

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/mosaic-cluster/mosaic/sdk/resources"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// Metrics under the names that monitoring of Mesos reads.

// counters only grow. Guarded by Agent.mu.
type counters struct {
	ended             map[mesosv1.TaskState]uint64
	validUpdates      uint64
	invalidUpdates    uint64
	frameworkMessages uint64
	droppedMessages   uint64
	launchErrors      uint64
	preempted         uint64
	executorsEnded    uint64
	sandboxesRemoved  uint64
	sandboxesKept     uint64 // removal failed
	maxAge            time.Duration
	recovery          time.Duration
}

func (c *counters) count(s mesosv1.TaskState) {
	if c.ended == nil {
		c.ended = make(map[mesosv1.TaskState]uint64)
	}
	c.ended[s]++
}

// metrics returns all values by name.
func (a *Agent) metrics() map[string]float64 {
	m := map[string]float64{
		"system/cpus_total": float64(runtime.NumCPU()),
		"slave/uptime_secs": time.Since(a.started).Seconds(),
	}
	m["system/load_1min"], m["system/load_5min"], m["system/load_15min"] = loadAverages()
	m["system/mem_total_bytes"], m["system/mem_free_bytes"] = memoryBytes()

	a.mu.Lock()
	defer a.mu.Unlock()
	c := &a.counters
	m["slave/registered"] = 0
	if a.master != nil {
		m["slave/registered"] = 1
	}
	m["slave/recovery_errors"] = 0
	if a.recovered {
		m["slave/recovery_time_secs"] = c.recovery.Seconds()
	}
	m["slave/frameworks_active"] = float64(len(a.frameworks))
	for _, name := range []string{"staging", "starting", "running", "killing"} {
		m["slave/tasks_"+name] = 0
	}
	for _, name := range []string{"registering", "running", "terminating"} {
		m["slave/executors_"+name] = 0
	}
	var used resources.Set
	for _, f := range a.frameworks {
		for _, t := range f.tasks {
			switch t.state {
			case mesosv1.TaskState_TASK_STAGING:
				m["slave/tasks_staging"]++
			case mesosv1.TaskState_TASK_STARTING:
				m["slave/tasks_starting"]++
			case mesosv1.TaskState_TASK_RUNNING:
				m["slave/tasks_running"]++
			case mesosv1.TaskState_TASK_KILLING:
				m["slave/tasks_killing"]++
			}
		}
		for _, e := range f.sortedUnits() {
			if e.phase == phaseTerminated {
				continue
			}
			rs, _ := e.resources()
			used = used.Add(resources.New(rs...))
			switch {
			case e.phase == phaseTerminating || e.destroying:
				m["slave/executors_terminating"]++
			case e.phase == phaseRunning:
				m["slave/executors_running"]++
			default:
				m["slave/executors_registering"]++
			}
		}
	}
	for name, state := range map[string]mesosv1.TaskState{
		"finished": mesosv1.TaskState_TASK_FINISHED, "failed": mesosv1.TaskState_TASK_FAILED,
		"killed": mesosv1.TaskState_TASK_KILLED, "lost": mesosv1.TaskState_TASK_LOST, "gone": mesosv1.TaskState_TASK_GONE,
	} {
		m["slave/tasks_"+name] = float64(c.ended[state])
	}
	m["slave/executors_terminated"] = float64(c.executorsEnded)
	m["slave/executors_preempted"] = float64(c.preempted)
	m["slave/executor_directory_max_allowed_age_secs"] = c.maxAge.Seconds()
	m["slave/container_launch_errors"] = float64(c.launchErrors)
	m["slave/valid_status_updates"] = float64(c.validUpdates)
	m["slave/invalid_status_updates"] = float64(c.invalidUpdates)
	m["slave/valid_framework_messages"] = float64(c.frameworkMessages)
	m["slave/invalid_framework_messages"] = float64(c.droppedMessages)
	m["gc/path_removals_succeeded"] = float64(c.sandboxesRemoved)
	m["gc/path_removals_failed"] = float64(c.sandboxesKept)

	total := resources.New(a.info.GetResources()...)
	lent := resources.New(a.revocable...)
	for _, name := range []string{"cpus", "gpus", "mem", "disk"} {
		for suffix, pair := range map[string][2]float64{
			"":           {total.NonRevocable().Scalar(name), used.NonRevocable().Scalar(name)},
			"_revocable": {lent.Scalar(name), used.Revocable().Scalar(name)},
		} {
			key := "slave/" + name + suffix
			m[key+"_total"], m[key+"_used"], m[key+"_percent"] = pair[0], pair[1], 0
			if pair[0] > 0 {
				m[key+"_percent"] = pair[1] / pair[0]
			}
		}
	}
	return m
}

// memoryBytes of the machine; zeros where it does not say.
func memoryBytes() (total, free float64) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		v, err := strconv.ParseFloat(f[1], 64)
		if err != nil {
			continue
		}
		switch f[0] {
		case "MemTotal:":
			total = v * 1024
		case "MemFree:":
			free = v * 1024
		}
	}
	return total, free
}
