package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// task is one that was started.
type task struct {
	info *mesosv1.TaskInfo
	cmd  *exec.Cmd
	told chan struct{} // closed when its end has been told

	mu     sync.Mutex // guards what follows
	timer  *time.Timer
	killed bool
	ended  bool // its number may be another's by now
}

// start runs the command in a task's data, as a process group of its own, so that all that it starts is killed with it.
// Should the executor die, its container and all within are destroyed by the agent.
func start(sandbox string, info *mesosv1.TaskInfo) (*task, error) {
	if len(info.GetData()) == 0 {
		return nil, errors.New("data holds no command")
	}
	name := strings.ReplaceAll(info.GetTaskId().GetValue(), "/", "_")
	out, err := create(filepath.Join(sandbox, name+".stdout"))
	if err != nil {
		return nil, err
	}
	defer out.Close() // the process has its own
	errs, err := create(filepath.Join(sandbox, name+".stderr"))
	if err != nil {
		return nil, err
	}
	defer errs.Close()
	t := &task{info: info, told: make(chan struct{}), cmd: exec.Command("/bin/sh", "-c", string(info.GetData()))}
	t.cmd.Dir, t.cmd.Stdout, t.cmd.Stderr = sandbox, out, errs
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return t, t.cmd.Start()
}

func create(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
}

// wait waits until the task has ended and says how.
func (t *task) wait() (mesosv1.TaskState, string) {
	err := t.cmd.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	if t.timer != nil {
		t.timer.Stop()
	}
	status, ok := t.cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case err == nil:
		return mesosv1.TaskState_TASK_FINISHED, "Command exited with status 0"
	case t.killed:
		return mesosv1.TaskState_TASK_KILLED, "Command was killed: " + err.Error()
	case ok && status.Exited():
		return mesosv1.TaskState_TASK_FAILED, fmt.Sprintf("Command exited with status %d", status.ExitStatus())
	}
	return mesosv1.TaskState_TASK_FAILED, "Command ended: " + err.Error()
}

// kill asks the task to end, and kills it after grace.
func (t *task) kill(grace time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return
	}
	if t.timer != nil {
		t.timer.Stop()
	}
	if grace <= 0 {
		t.killed = true
		t.signal(syscall.SIGKILL)
		return
	}
	if !t.killed {
		t.killed = true
		t.signal(syscall.SIGTERM)
	}
	t.timer = time.AfterFunc(grace, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if !t.ended {
			t.signal(syscall.SIGKILL)
		}
	})
}

// signal reaches all of the group. The caller holds the lock, and the task has not ended.
func (t *task) signal(s syscall.Signal) {
	_ = syscall.Kill(-t.cmd.Process.Pid, s) // it may just have ended
}
