package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/google/uuid"
	"gopkg.in/yaml.v3"

	"github.com/mosaic-cluster/mosaic/sdk/mesosjson"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// What `mosaic run --group FILE` reads: a LaunchGroup operation of the v1 API, or its task group alone, in JSON or
// YAML. What a person would only copy may be left out: ids, the executor, and resources, which are then the flags'.

// maxGroupFile bounds a group's file. A LaunchGroup as large would be refused by the API.
const maxGroupFile = 1 << 20

// groupExecutor is what the executor of a group gets: the least that masters allow.
var groupExecutor = resources.Quantities{"cpus": 0.1, "mem": 32, "disk": 32}

// group is a task group to run.
type group struct {
	executor *mesosv1.ExecutorInfo
	own      resources.Quantities // the executor's resources
	tasks    []*mesosv1.TaskInfo
	needs    []resources.Quantities // the tasks', in their order
}

// readGroup reads a group. Tasks that name no resources need usual ones.
func readGroup(path string, usual resources.Quantities, user string) (*group, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxGroupFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(data) > maxGroupFile {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxGroupFile)
	}
	g, err := parseGroup(data, usual, user)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return g, nil
}

func parseGroup(data []byte, usual resources.Quantities, user string) (*group, error) {
	var doc map[string]any
	if err := yaml.Unmarshal(data, &doc); err != nil { // JSON is YAML
		return nil, err
	}
	if _, alone := doc["tasks"]; alone {
		doc = map[string]any{"task_group": doc}
	}
	executor, err := object(doc, "executor")
	if err != nil {
		return nil, err
	}
	tasks, err := taskObjects(doc)
	if err != nil {
		return nil, err
	}
	// Both come with the offer, and a decoder wants them before.
	setDefault(executor, "executor_id", map[string]any{"value": "group-" + uuid.NewString()[:8]})
	setDefault(executor, "type", "DEFAULT")
	for _, t := range tasks {
		name, _ := t["name"].(string)
		setDefault(t, "name", "task")
		setDefault(t, "task_id", map[string]any{"value": cmp.Or(name, "task") + "-" + uuid.NewString()[:8]})
		setDefault(t, "agent_id", map[string]any{"value": "-"})
	}
	doc["executor"] = executor
	text, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("it has what JSON has not: %w", err)
	}
	op := &mesosv1.Offer_Operation_LaunchGroup{}
	if err := mesosjson.Unmarshal(text, op); err != nil {
		return nil, err
	}
	g := &group{executor: op.GetExecutor(), tasks: op.GetTaskGroup().GetTasks()}
	if g.own, err = needOf(g.executor.GetResources(), groupExecutor); err != nil {
		return nil, fmt.Errorf("executor: %w", err)
	}
	for _, t := range g.tasks {
		need, err := needOf(t.GetResources(), usual)
		if err != nil {
			return nil, fmt.Errorf("task %s: %w", t.GetName(), err)
		}
		if t.Command != nil && t.Command.User == nil {
			t.Command.User = &user
		}
		g.needs = append(g.needs, need)
	}
	return g, nil
}

// object is a member that is an object; an empty one if it is not there.
func object(doc map[string]any, name string) (map[string]any, error) {
	switch v := doc[name].(type) {
	case nil:
		return map[string]any{}, nil
	case map[string]any:
		return v, nil
	}
	return nil, fmt.Errorf("%s: want an object", name)
}

// taskObjects are the tasks of a LaunchGroup.
func taskObjects(doc map[string]any) ([]map[string]any, error) {
	g, err := object(doc, "task_group")
	if err != nil {
		return nil, err
	}
	list, ok := g["tasks"].([]any)
	if !ok || len(list) == 0 {
		return nil, errors.New(`want tasks, as in {"tasks": [{"name": "web", "command": {"value": "sleep 1000"}}]}`)
	}
	var tasks []map[string]any
	for i, v := range list {
		t, ok := v.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("task %d: want an object", i+1)
		}
		tasks = append(tasks, t)
	}
	return tasks, nil
}

func setDefault(m map[string]any, name string, v any) {
	if m[name] == nil {
		m[name] = v
	}
}

// needOf is what a list of resources says is needed, or the usual if it says nothing.
func needOf(list []*mesosv1.Resource, usual resources.Quantities) (resources.Quantities, error) {
	if len(list) == 0 {
		return usual, nil
	}
	need := resources.Quantities{}
	for _, r := range list {
		if r.GetType() != mesosv1.Value_SCALAR || r.Disk != nil || r.Revocable != nil || len(r.GetReservations()) > 0 {
			return nil, fmt.Errorf("resource %s: want a plain amount, as of cpus; for others use a framework", r.GetName())
		}
		need[r.GetName()] += r.GetScalar().GetValue()
	}
	return need, nil
}

// prefixed writes whole lines, each behind the name of the task that it is from. A last line without an end comes when
// it is flushed.
type prefixed struct {
	mu     *sync.Mutex // shared by all that write to w
	w      io.Writer
	prefix string
	rest   []byte
}

// maxLine bounds what is held back of a line. Longer ones come in pieces.
const maxLine = 64 << 10

func (p *prefixed) Write(b []byte) (int, error) {
	p.rest = append(p.rest, b...)
	for {
		i := bytes.IndexByte(p.rest, '\n')
		if i < 0 && len(p.rest) < maxLine {
			return len(b), nil
		}
		if i < 0 {
			i = len(p.rest) - 1
		}
		if err := p.line(p.rest[:i+1]); err != nil {
			return 0, err
		}
		p.rest = p.rest[i+1:]
	}
}

// flush writes what is held back.
func (p *prefixed) flush() error {
	if len(p.rest) == 0 {
		return nil
	}
	line := p.rest
	p.rest = nil
	return p.line(line)
}

func (p *prefixed) line(b []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := p.prefix + strings.TrimSuffix(string(b), "\n") + "\n"
	_, err := io.WriteString(p.w, text)
	return err
}
