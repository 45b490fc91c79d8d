// Command httpexecutor is an executor made of nothing but an HTTP library and JSON: no code of Mosaic's is in it.
//
// A task's data says what it does: "finish" ends at once, "until PATH" ends when the file is there, "stay" runs until
// it is killed. A message is sent back with "echo: " before it.
package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

type object = map[string]any

// executor is what this process knows.
type executor struct {
	endpoint  string
	framework object
	id        object

	mu      sync.Mutex // guards what follows
	order   []string   // uuids of updates that nobody has acknowledged, oldest first
	updates map[string]object
	tasks   map[string]object // that no update has been acknowledged for, by id
	running map[string]bool
}

func main() {
	e := &executor{
		endpoint:  "http://" + os.Getenv("MESOS_AGENT_ENDPOINT") + "/api/v1/executor",
		framework: object{"value": os.Getenv("MESOS_FRAMEWORK_ID")}, id: object{"value": os.Getenv("MESOS_EXECUTOR_ID")},
		updates: map[string]object{}, tasks: map[string]object{}, running: map[string]bool{},
	}
	if err := os.WriteFile("executor.pid", []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	lost := time.Now()
	for {
		subscribed, err := e.session()
		fmt.Fprintln(os.Stderr, "stream ended:", err)
		if subscribed {
			lost = time.Now()
		}
		if errors.Is(err, errOver) {
			return
		}
		if os.Getenv("MESOS_CHECKPOINT") != "1" || time.Since(lost) > time.Minute {
			os.Exit(1)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// errOver ends the executor as the agent wants it.
var errOver = errors.New("shut down")

func (e *executor) post(call object) (*http.Response, error) {
	call["framework_id"], call["executor_id"] = e.framework, e.id
	body, err := json.Marshal(call)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequest(http.MethodPost, e.endpoint, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	if token := os.Getenv("MESOS_EXECUTOR_AUTHENTICATION_TOKEN"); token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return http.DefaultClient.Do(req)
}

// call sends what is answered 202. What cannot be sent now is sent with the next SUBSCRIBE.
func (e *executor) call(call object) {
	resp, err := e.post(call)
	if err != nil {
		fmt.Fprintln(os.Stderr, call["type"], err)
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		text, _ := io.ReadAll(resp.Body)
		fmt.Fprintln(os.Stderr, call["type"], resp.Status, string(text))
	}
}

// session subscribes and handles events until the stream ends.
func (e *executor) session() (subscribed bool, err error) {
	e.mu.Lock()
	updates, tasks := []any{}, []any{}
	for _, uuid := range e.order {
		updates = append(updates, e.updates[uuid])
	}
	for _, t := range e.tasks {
		tasks = append(tasks, t)
	}
	e.mu.Unlock()
	resp, err := e.post(object{"type": "SUBSCRIBE", "subscribe": object{"unacknowledged_updates": updates, "unacknowledged_tasks": tasks}})
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(resp.Body)
		return false, fmt.Errorf("%s %s", resp.Status, text)
	}
	r := bufio.NewReader(resp.Body)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return subscribed, err
		}
		n, err := strconv.Atoi(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return subscribed, err
		}
		record := make([]byte, n)
		if _, err := io.ReadFull(r, record); err != nil {
			return subscribed, err
		}
		var event object
		if err := json.Unmarshal(record, &event); err != nil {
			return subscribed, err
		}
		subscribed = true
		if err := e.event(event); err != nil {
			return subscribed, err
		}
	}
}

// dig follows keys into JSON.
func dig(v any, path ...string) any {
	for _, p := range path {
		m, _ := v.(object)
		v = m[p]
	}
	return v
}

func (e *executor) event(event object) error {
	switch event["type"] {
	case "LAUNCH":
		task, _ := dig(event, "launch", "task").(object)
		e.launch(task)
	case "ACKNOWLEDGED":
		uuid, _ := dig(event, "acknowledged", "uuid").(string)
		id, _ := dig(event, "acknowledged", "task_id", "value").(string)
		e.mu.Lock()
		delete(e.updates, uuid)
		delete(e.tasks, id)
		for i, u := range e.order {
			if u == uuid {
				e.order = append(e.order[:i:i], e.order[i+1:]...)
				break
			}
		}
		e.mu.Unlock()
	case "KILL":
		id, _ := dig(event, "kill", "task_id", "value").(string)
		e.end(id, "TASK_KILLED", "killed as told")
	case "MESSAGE":
		text, _ := dig(event, "message", "data").(string)
		data, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return err
		}
		e.call(object{"type": "MESSAGE", "message": object{"data": base64.StdEncoding.EncodeToString([]byte("echo: " + string(data)))}})
	case "SHUTDOWN":
		e.mu.Lock()
		var ids []string
		for id := range e.running {
			ids = append(ids, id)
		}
		e.mu.Unlock()
		for _, id := range ids {
			e.end(id, "TASK_KILLED", "shut down as told")
		}
		return errOver
	case "ERROR":
		return fmt.Errorf("%w: %v", errOver, dig(event, "error", "message"))
	}
	return nil
}

func (e *executor) launch(task object) {
	id, _ := dig(task, "task_id", "value").(string)
	text, _ := task["data"].(string)
	data, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		fmt.Fprintln(os.Stderr, "data of task", id, err)
	}
	e.mu.Lock()
	e.tasks[id], e.running[id] = task, true
	e.mu.Unlock()
	e.update(id, "TASK_RUNNING", "")
	what, path, _ := strings.Cut(string(data), " ")
	switch what {
	case "finish":
		e.end(id, "TASK_FINISHED", "nothing to do")
	case "until":
		go func() {
			for {
				if _, err := os.Stat(path); err == nil {
					e.end(id, "TASK_FINISHED", path+" is there")
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		}()
	}
}

// end reports the end of a task that runs.
func (e *executor) end(id, state, message string) {
	e.mu.Lock()
	was := e.running[id]
	delete(e.running, id)
	e.mu.Unlock()
	if was {
		e.update(id, state, message)
	}
}

func (e *executor) update(id, state, message string) {
	raw := make([]byte, 16)
	_, _ = rand.Read(raw)
	raw[6], raw[8] = raw[6]&0x0f|0x40, raw[8]&0x3f|0x80 // version 4: agents take nothing else
	uuid := base64.StdEncoding.EncodeToString(raw)
	u := object{"status": object{
		"task_id": object{"value": id}, "state": state, "message": message, "source": "SOURCE_EXECUTOR", "uuid": uuid,
		"executor_id": e.id, "timestamp": float64(time.Now().UnixNano()) / 1e9,
	}}
	e.mu.Lock()
	e.order = append(e.order, uuid)
	e.updates[uuid] = u
	e.mu.Unlock()
	e.call(object{"type": "UPDATE", "update": u})
}
