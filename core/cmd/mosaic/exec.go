package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

// Exit codes of shells for commands that do not start.
const (
	exitNotExecutable = 126
	exitNotFound      = 127
)

// defaultShell is what `mosaic task exec -it TASK` runs.
const defaultShell = "/bin/sh"

// liveContainer is where a task runs: its container, and the agent that has it.
func (c *cluster) liveContainer(t *mesosv1.Task) (*operator.Agent, *mesosv1.ContainerID, error) {
	id := t.GetTaskId().GetValue()
	if terminal(t.GetState()) {
		return nil, nil, fmt.Errorf("task %s has ended: %s; 'mosaic task logs' shows its output", id, t.GetState())
	}
	container := containerOf(t)
	if container == nil {
		return nil, nil, fmt.Errorf("task %s has no container yet: it is in %s; try again when it runs", id, t.GetState())
	}
	addr, err := c.agentAddr(t.GetAgentId().GetValue())
	if err != nil {
		return nil, nil, err
	}
	return operator.NewAgent(addr), container, nil
}

// containerOf is the container that the newest update of a task names, with its parents; nil if none does.
func containerOf(t *mesosv1.Task) *mesosv1.ContainerID {
	for _, s := range slices.Backward(t.GetStatuses()) {
		if id := s.GetContainerStatus().GetContainerId(); id.GetValue() != "" {
			return id
		}
	}
	return nil
}

// execOptions are the flags of `mosaic task exec`.
type execOptions struct {
	master, framework string
	interactive, tty  bool
	env               []string
	keys              string
}

func newTaskExec() *cobra.Command {
	o := &execOptions{}
	cmd := &cobra.Command{
		Use:   "exec [flags] TASK -- COMMAND [ARGUMENT...]",
		Short: "Run a command beside a task, in its container",
		Long: `Runs a command in the container of a task: in its root filesystem, its namespaces and its limits.
With -it it is a shell at your terminal; without a command, that is /bin/sh.

The keys of --detach-keys end it, whatever it does, and so does the loss of the connection: the
command is killed, the task is not touched. With -t every other key goes to the command, Ctrl-C
too. Without -t the first Ctrl-C is passed on to the command as SIGINT, a second one kills it.

Exit codes: the command's own; 128 plus the signal's number if a signal ended it; 127 if there
is no such command, 126 if it cannot be executed, 125 if something else went wrong.`,
		Example: `  mosaic task exec -it web-1
  mosaic task exec web-1 -- ls -l /proc/self/fd
  mosaic task exec -i web-1 -- tar x -C /tmp < files.tar`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: completeFrom(liveTasks, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			argv, err := o.command(args[1:])
			if err != nil {
				return &exitError{exitUsage, err}
			}
			keys, err := parseDetachKeys(o.keys)
			if err != nil {
				return &exitError{exitUsage, fmt.Errorf("--detach-keys: %w", err)}
			}
			if o.interactive && o.tty && terminalOf(cmd.InOrStdin()) < 0 {
				return &exitError{exitUsage, errors.New("-t with -i wants a terminal as standard input; for a pipe or a file say -i alone")}
			}
			ctx, talking := untilTalking(cmd.Context())
			defer talking()
			return exitWith(o.run(ctx, talking, cmd, args[0], argv, keys))
		},
	}
	cmd.Flags().SetInterspersed(false) // what follows the task is the command's
	masterFlag(cmd, &o.master)
	f := cmd.Flags()
	f.StringVar(&o.framework, "framework", "", "id of the framework, when several have a task of that name")
	f.BoolVarP(&o.interactive, "interactive", "i", false, "pass standard input on to the command")
	f.BoolVarP(&o.tty, "tty", "t", false, "give the command a terminal")
	f.StringArrayVarP(&o.env, "env", "e", nil, "environment variable KEY=VALUE (repeatable; KEY alone passes yours on)")
	f.StringVar(&o.keys, "detach-keys", defaultDetachKeys, "keys that end the session ('' for none)")
	return cmd
}

// untilTalking is a context that ends with ctx, which signals end, until talking is called: from then on a signal is for
// the conversation to handle.
func untilTalking(ctx context.Context) (until context.Context, talking func()) {
	until, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	return until, func() { stop() }
}

// exitWith turns the code of a process into how this program ends; other failures are 125, as those of other tools.
func exitWith(code int, err error) error {
	var exit *exitError
	switch {
	case errors.As(err, &exit):
		return err
	case errors.Is(err, context.Canceled): // by a signal, before there was anything to pass it on to
		return &exitError{code: 128 + int(syscall.SIGINT)}
	case err != nil:
		return &exitError{exitRun, err}
	case code != 0:
		return &exitError{code: code}
	}
	return nil
}

// command is what to run: what follows the task, with -- or without.
func (o *execOptions) command(args []string) ([]string, error) {
	switch {
	case len(args) > 0 && args[0] == "--":
		args = args[1:]
	case len(args) > 0 && strings.HasPrefix(args[0], "-"):
		return nil, fmt.Errorf("%s: flags come before the task, as in mosaic task exec -it TASK -- COMMAND", args[0])
	}
	if len(args) > 0 {
		return args, nil
	}
	if o.interactive && o.tty {
		return []string{defaultShell}, nil
	}
	return nil, errors.New("what to run is missing: mosaic task exec TASK -- COMMAND [ARGUMENT...]; -it alone opens a shell")
}

func (o *execOptions) run(ctx context.Context, talking func(), cmd *cobra.Command, task string, argv []string, keys []byte) (int, error) {
	c, err := readCluster(ctx, o.master)
	if err != nil {
		return 0, err
	}
	t, err := c.findTask(task, o.framework)
	if err != nil {
		return 0, err
	}
	agent, parent, err := c.liveContainer(t)
	if err != nil {
		return 0, err
	}
	talk := &conversation{
		out: cmd.OutOrStdout(), err: cmd.ErrOrStderr(), terminal: o.tty,
		detach: detacher{keys: keys}, // the command is killed: a key too many does not matter to it, a late one to people
	}
	if o.interactive {
		talk.in = cmd.InOrStdin()
	}
	if !o.interactive || !o.tty {
		talk.detach.keys = nil // data, not keys
	}
	options := operator.SessionOptions{TTY: o.tty}
	options.Rows, options.Columns = windowSize(cmd.OutOrStdout(), cmd.InOrStdin())
	session, err := agent.Session(ctx, parent, o.commandInfo(argv), options)
	if err != nil {
		return 0, notStarted(argv[0], fmt.Errorf("run %s in task %s: %w", argv[0], t.GetTaskId().GetValue(), err))
	}
	talk.kill = func(ctx context.Context, signal int) error {
		ctx, cancel := context.WithTimeout(ctx, toolTimeout)
		defer cancel()
		var gone *operator.StatusError
		if err := agent.KillContainer(ctx, session.ID, signal); !errors.As(err, &gone) || gone.Code != http.StatusNotFound {
			return err
		}
		return nil
	}
	talking()
	status, err := talk.converse(ctx, session)
	switch {
	case errors.Is(err, errDetached):
		fmt.Fprintln(cmd.ErrOrStderr(), "\nmosaic: session ended")
		return 0, nil
	case err != nil:
		return 0, err
	}
	return exitCode(status), nil
}

// commandInfo says what to run. A terminal is of the kind that we are at.
func (o *execOptions) commandInfo(argv []string) *mesosv1.CommandInfo {
	shell := false
	info := &mesosv1.CommandInfo{Shell: &shell, Value: &argv[0], Arguments: argv}
	variables := environment(o.env)
	if o.tty && !slices.ContainsFunc(variables, func(v *mesosv1.Environment_Variable) bool { return v.GetName() == "TERM" }) {
		name, value := "TERM", envOr("TERM", "xterm")
		variables = append(variables, &mesosv1.Environment_Variable{Name: &name, Value: &value})
	}
	if len(variables) > 0 {
		info.Environment = &mesosv1.Environment{Variables: variables}
	}
	return info
}

// environment are the variables that --env flags name: KEY=VALUE, or KEY alone for what it is here.
func environment(flags []string) []*mesosv1.Environment_Variable {
	var list []*mesosv1.Environment_Variable
	for _, kv := range flags {
		k, v, ok := strings.Cut(kv, "=")
		if !ok {
			v = os.Getenv(k)
		}
		list = append(list, &mesosv1.Environment_Variable{Name: &k, Value: &v})
	}
	return list
}

// notStarted gives an error the code that shells have for it.
func notStarted(command string, err error) error {
	var refused *operator.StatusError
	if !errors.As(err, &refused) {
		return err
	}
	switch {
	case strings.Contains(refused.Message, command+": no such file or directory"), strings.Contains(refused.Message, "executable file not found"):
		return &exitError{exitNotFound, err}
	case strings.Contains(refused.Message, command+": permission denied"):
		return &exitError{exitNotExecutable, err}
	}
	return err
}
