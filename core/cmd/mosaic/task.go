package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"

	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

func newTask() *cobra.Command {
	cmd := &cobra.Command{Use: "task", Short: "List tasks, read their output, enter them, kill them", Args: cobra.NoArgs}
	cmd.SuggestFor = []string{"ps", "logs", "exec", "kill", "stop", "attach", "inspect"}
	cmd.AddCommand(newTaskList(), newTaskLogs(), newTaskExec(), newTaskAttach(), newTaskKill())
	return cmd
}

// taskRow is one line of `mosaic task ls`.
type taskRow struct {
	ID          string    `json:"id"`
	Name        string    `json:"name"`
	State       string    `json:"state"`
	FrameworkID string    `json:"framework_id"`
	Framework   string    `json:"framework"`
	AgentID     string    `json:"agent_id"`
	Hostname    string    `json:"hostname"`
	CPUs        float64   `json:"cpus"`
	MemMB       float64   `json:"mem_mb"`
	ContainerID string    `json:"container_id,omitempty"`
	Addresses   []string  `json:"addresses,omitempty"` // of its own networks
	Ports       []string  `json:"ports,omitempty"`     // published: HOSTPORT:PORT/PROTOCOL
	Updated     time.Time `json:"updated,omitzero"`
	Message     string    `json:"message,omitempty"`
	Reason      string    `json:"reason,omitempty"`
	// Healthy and Check are what health check and check last said; absent where there is none, or it has not run yet.
	Healthy *bool      `json:"healthy,omitempty"`
	Check   *taskCheck `json:"check_status,omitempty"`
	active  bool
}

func newTaskRow(c *cluster, t *mesosv1.Task) taskRow {
	r := taskRow{
		ID: t.GetTaskId().GetValue(), Name: t.GetName(), State: t.GetState().String(),
		FrameworkID: t.GetFrameworkId().GetValue(), AgentID: t.GetAgentId().GetValue(),
		CPUs: scalar(t.GetResources(), "cpus"), MemMB: scalar(t.GetResources(), "mem"),
		Ports: portsOf(t.GetContainer()), active: !terminal(t.GetState()),
	}
	r.Framework = c.frames[r.FrameworkID].GetFrameworkInfo().GetName()
	r.Hostname = c.agents[r.AgentID].GetAgentInfo().GetHostname()
	for _, s := range t.GetStatuses() {
		if id := containerText(s.GetContainerStatus().GetContainerId()); id != "" {
			r.ContainerID = id
		}
		if list := addressesOf(s.GetContainerStatus()); len(list) > 0 {
			r.Addresses = list
		}
		r.Healthy, r.Check = s.Healthy, newTaskCheck(s.GetCheckStatus())
		r.Message = s.GetMessage()
		r.Reason = ""
		if s.Reason != nil {
			r.Reason = s.GetReason().String()
		}
		if s.Timestamp != nil {
			r.Updated = time.UnixMicro(int64(s.GetTimestamp() * 1e6)).UTC()
		}
	}
	return r
}

// addressesOf are those of a container that stand in the status of its task.
func addressesOf(s *mesosv1.ContainerStatus) []string {
	var list []string
	for _, n := range s.GetNetworkInfos() {
		for _, a := range n.GetIpAddresses() {
			if ip := a.GetIpAddress(); ip != "" {
				list = append(list, ip)
			}
		}
	}
	return list
}

// portsOf are the ports of the machine that lead into a container.
func portsOf(info *mesosv1.ContainerInfo) []string {
	var list []string
	add := func(from, to uint32, protocol string) {
		list = append(list, fmt.Sprintf("%d:%d/%s", from, to, cmp.Or(strings.ToLower(protocol), "tcp")))
	}
	for _, n := range info.GetNetworkInfos() {
		for _, m := range n.GetPortMappings() {
			add(m.GetHostPort(), m.GetContainerPort(), m.GetProtocol())
		}
	}
	for _, m := range info.GetDocker().GetPortMappings() {
		add(m.GetHostPort(), m.GetContainerPort(), m.GetProtocol())
	}
	return list
}

// containerText names a container as agents do: the ids from the outermost on, with dots between.
func containerText(id *mesosv1.ContainerID) string {
	if id.GetParent() == nil {
		return id.GetValue()
	}
	return containerText(id.GetParent()) + "." + id.GetValue()
}

// taskCheck is what a task's check last saw: the member of its kind, and none before the first result.
type taskCheck struct {
	Type       string  `json:"type"`
	ExitCode   *int32  `json:"exit_code,omitempty"`
	StatusCode *uint32 `json:"status_code,omitempty"`
	Succeeded  *bool   `json:"succeeded,omitempty"`
}

func newTaskCheck(s *mesosv1.CheckStatusInfo) *taskCheck {
	if s == nil {
		return nil
	}
	c := &taskCheck{Type: s.GetType().String()}
	if s.Command != nil {
		c.ExitCode = s.Command.ExitCode
	}
	if s.Http != nil {
		c.StatusCode = s.Http.StatusCode
	}
	if s.Tcp != nil {
		c.Succeeded = s.Tcp.Succeeded
	}
	return c
}

// healthText says in one word what the health check last said.
func healthText(healthy *bool) string {
	switch {
	case healthy == nil:
		return ""
	case *healthy:
		return "healthy"
	}
	return "unhealthy"
}

// terminal says whether a task in this state has ended for good.
func terminal(s mesosv1.TaskState) bool {
	switch s {
	case mesosv1.TaskState_TASK_FINISHED, mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_KILLED,
		mesosv1.TaskState_TASK_ERROR, mesosv1.TaskState_TASK_LOST, mesosv1.TaskState_TASK_DROPPED,
		mesosv1.TaskState_TASK_GONE, mesosv1.TaskState_TASK_GONE_BY_OPERATOR:
		return true
	}
	return false
}

var taskColumns = []column[taskRow]{
	{"TASK", false, func(r taskRow) string { return r.ID }},
	{"STATE", false, func(r taskRow) string { return r.State }},
	{"FRAMEWORK", false, func(r taskRow) string { return r.Framework }},
	{"HOST", false, func(r taskRow) string { return r.Hostname }},
	{"CPUS", false, func(r taskRow) string { return number(r.CPUs) }},
	{"MEM", false, func(r taskRow) string { return number(r.MemMB) + " MB" }},
	{"SINCE", false, func(r taskRow) string { return age(r.Updated) }},
	{"HEALTH", true, func(r taskRow) string { return healthText(r.Healthy) }},
	{"FRAMEWORK ID", true, func(r taskRow) string { return r.FrameworkID }},
	{"ADDRESS", true, func(r taskRow) string { return strings.Join(r.Addresses, ",") }},
	{"PORTS", true, func(r taskRow) string { return strings.Join(r.Ports, ",") }},
	{"CONTAINER", true, func(r taskRow) string { return r.ContainerID }},
	{"MESSAGE", true, func(r taskRow) string { return r.Message }},
}

func newTaskList() *cobra.Command {
	var master, format string
	var all bool
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List tasks", Args: cobra.NoArgs,
		Example: "  mosaic task ls --all -o wide",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := readCluster(cmd.Context(), master)
			if err != nil {
				return err
			}
			var rows []taskRow
			for _, t := range c.tasks() {
				if r := newTaskRow(c, t); all || r.active {
					rows = append(rows, r)
				}
			}
			slices.SortStableFunc(rows, func(a, b taskRow) int { return b.Updated.Compare(a.Updated) })
			return printRows(cmd.OutOrStdout(), format, rows, taskColumns)
		},
	}
	masterFlag(cmd, &master)
	outputFlag(cmd, &format)
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also tasks that have ended")
	return cmd
}

// findTask looks a task up by its id, by its name, or by the beginning of its id, whichever is first to find any. Live
// tasks go before others.
func (c *cluster) findTask(id, framework string) (*mesosv1.Task, error) {
	var byID, byName, byStart []*mesosv1.Task
	for _, t := range c.tasks() {
		switch v := t.GetTaskId().GetValue(); {
		case framework != "" && t.GetFrameworkId().GetValue() != framework:
		case v == id:
			byID = append(byID, t)
		case t.GetName() == id:
			byName = append(byName, t)
		case strings.HasPrefix(v, id):
			byStart = append(byStart, t)
		}
	}
	for _, found := range [][]*mesosv1.Task{byID, byName, byStart} {
		live := slices.DeleteFunc(slices.Clone(found), func(t *mesosv1.Task) bool { return terminal(t.GetState()) })
		switch {
		case len(found) == 0:
			continue
		case len(found) == 1:
			return found[0], nil
		case len(live) == 1:
			return live[0], nil
		}
		var names []string
		for _, t := range found {
			names = append(names, t.GetTaskId().GetValue()+" of framework "+t.GetFrameworkId().GetValue())
		}
		return nil, fmt.Errorf("task %q could be any of:\n  %s\nName one in full, or use --framework", id, strings.Join(names, "\n  "))
	}
	return nil, fmt.Errorf("no task %q; 'mosaic task ls --all' lists them", id)
}

// completeTasks completes the ids of tasks.
func completeTasks(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	master, err := cmd.Flags().GetString("master")
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	c, err := readCluster(cmd.Context(), master)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var ids []string
	for _, t := range c.tasks() {
		ids = append(ids, t.GetTaskId().GetValue())
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}

func newTaskLogs() *cobra.Command {
	var master, framework string
	var follow, stderr bool
	cmd := &cobra.Command{
		Use: "logs TASK", Short: "Print a task's output", Args: cobra.ExactArgs(1),
		Example:           "  mosaic task logs -f web-1\n  mosaic task logs --stderr web-1",
		ValidArgsFunction: completeTasks,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := readCluster(cmd.Context(), master)
			if err != nil {
				return err
			}
			t, err := c.findTask(args[0], framework)
			if err != nil {
				return err
			}
			addr, err := c.agentAddr(t.GetAgentId().GetValue())
			if err != nil {
				return err
			}
			name := "stdout"
			if stderr {
				name = "stderr"
			}
			tail := newTail(operator.NewAgent(addr), sandboxFile(t, name), cmd.OutOrStdout())
			ended := func() bool {
				if !follow {
					return true
				}
				c, err := readCluster(cmd.Context(), master)
				if err != nil {
					return false
				}
				now, err := c.findTask(t.GetTaskId().GetValue(), t.GetFrameworkId().GetValue())
				return err == nil && terminal(now.GetState())
			}
			return tail.follow(cmd.Context(), ended)
		},
	}
	masterFlag(cmd, &master)
	cmd.Flags().StringVar(&framework, "framework", "", "id of the framework, when several have a task of that name")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on printing until the task ends")
	cmd.Flags().BoolVar(&stderr, "stderr", false, "standard error instead of standard output")
	return cmd
}

// sandboxFile is the virtual path of a file in the sandbox of a task. One in a container inside its executor's has a
// sandbox of its own there.
func sandboxFile(t *mesosv1.Task, name string) string {
	executor := t.GetExecutorId().GetValue()
	if executor == "" {
		executor = t.GetTaskId().GetValue()
	}
	run, nested := "latest", ""
	for id := containerOf(t); id.GetParent() != nil; id = id.GetParent() {
		run, nested = id.GetParent().GetValue(), "containers/"+id.GetValue()+"/"+nested
	}
	return "/frameworks/" + t.GetFrameworkId().GetValue() + "/executors/" + executor + "/runs/" + run + "/" + nested + name
}

// tail copies a growing file of an agent to w.
type tail struct {
	agent  *operator.Agent
	path   string
	w      io.Writer
	offset uint64
}

func newTail(agent *operator.Agent, path string, w io.Writer) *tail {
	return &tail{agent: agent, path: path, w: w}
}

// tailChunk is how much is asked for at once.
const tailChunk = 256 << 10

// pull copies what is there beyond the offset. A file that does not exist yet is empty.
func (t *tail) pull(ctx context.Context) error {
	for {
		length := uint64(tailChunk)
		call := &agentv1.Call{
			Type:     agentv1.Call_READ_FILE.Enum(),
			ReadFile: &agentv1.Call_ReadFile{Path: &t.path, Offset: &t.offset, Length: &length},
		}
		resp, err := t.agent.Call(ctx, call)
		var status *operator.StatusError
		if errors.As(err, &status) && status.Code == http.StatusNotFound {
			return nil
		}
		if err != nil {
			return err
		}
		data := resp.GetReadFile().GetData()
		if len(data) == 0 {
			return nil
		}
		if _, err := t.w.Write(data); err != nil {
			return err
		}
		t.offset += uint64(len(data))
	}
}

// follow copies until ended says so, and then what is left.
func (t *tail) follow(ctx context.Context, ended func() bool) error {
	for {
		done := ended()
		if err := t.pull(ctx); err != nil {
			return err
		}
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(300 * time.Millisecond):
		}
	}
}

func newTaskKill() *cobra.Command {
	var master, framework string
	cmd := &cobra.Command{
		Use: "kill TASK", Short: "End a task", Args: cobra.ExactArgs(1),
		Long: `Ends a task.

A task started by 'mosaic run' is its framework's only one, or one of a group that ends together:
the framework is torn down and the task gets SIGTERM, then SIGKILL after its grace period. Tasks
of other frameworks belong to their schedulers, which may start them again; their container gets
SIGTERM.`,
		Example:           "  mosaic task kill web-1",
		ValidArgsFunction: completeFrom(liveTasks, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := readCluster(cmd.Context(), master)
			if err != nil {
				return err
			}
			t, err := c.findTask(args[0], framework)
			if err != nil {
				return err
			}
			id := t.GetTaskId().GetValue()
			if terminal(t.GetState()) {
				return fmt.Errorf("task %s has ended already: %s", id, t.GetState())
			}
			if err := c.kill(cmd.Context(), t); err != nil {
				return fmt.Errorf("kill task %s: %w", id, err)
			}
			fmt.Fprintln(cmd.ErrOrStderr(), "killing", id)
			return nil
		},
	}
	masterFlag(cmd, &master)
	cmd.Flags().StringVar(&framework, "framework", "", "id of the framework, when several have a task of that name")
	return cmd
}

func (c *cluster) kill(ctx context.Context, t *mesosv1.Task) error {
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	if c.frames[t.GetFrameworkId().GetValue()].GetFrameworkInfo().GetName() == runFrameworkName {
		_, err := operator.NewMaster(c.addr).Call(ctx, &masterv1.Call{
			Type:     masterv1.Call_TEARDOWN.Enum(),
			Teardown: &masterv1.Call_Teardown{FrameworkId: t.GetFrameworkId()},
		})
		return err
	}
	agent, container, err := c.liveContainer(t)
	if err != nil {
		return err
	}
	return agent.KillContainer(ctx, container, int(syscall.SIGTERM))
}
