package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

// attachOptions are the flags of `mosaic task attach`.
type attachOptions struct {
	master, framework string
	noInput           bool
	keys              string
}

func newTaskAttach() *cobra.Command {
	o := &attachOptions{}
	cmd := &cobra.Command{
		Use: "attach TASK", Short: "Connect your terminal with a task that runs", Args: cobra.ExactArgs(1),
		Long: `Shows the output of a task from now on. If the task was given a terminal, what you type goes to it,
and the keys of --detach-keys leave it running. Otherwise it has no input, and Ctrl-C leaves it.

Exit codes: the task's own, if it ends meanwhile; 128 plus the signal's number if a signal ended
it; 0 if you leave by the keys; 125 if something went wrong.`,
		Example:           "  mosaic task attach editor-1\n  mosaic task attach --no-stdin web-1",
		ValidArgsFunction: completeFrom(liveTasks, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			keys, err := parseDetachKeys(o.keys)
			if err != nil {
				return &exitError{exitUsage, fmt.Errorf("--detach-keys: %w", err)}
			}
			ctx, talking := untilTalking(cmd.Context())
			defer talking()
			return exitWith(o.run(ctx, talking, cmd, args[0], keys))
		},
	}
	masterFlag(cmd, &o.master)
	f := cmd.Flags()
	f.StringVar(&o.framework, "framework", "", "id of the framework, when several have a task of that name")
	f.BoolVar(&o.noInput, "no-stdin", false, "only watch")
	f.StringVar(&o.keys, "detach-keys", defaultDetachKeys, "keys that leave the task running ('' for none)")
	return cmd
}

func (o *attachOptions) run(ctx context.Context, talking func(), cmd *cobra.Command, task string, keys []byte) (int, error) {
	c, err := readCluster(ctx, o.master)
	if err != nil {
		return 0, err
	}
	t, err := c.findTask(task, o.framework)
	if err != nil {
		return 0, err
	}
	agent, container, err := c.liveContainer(t)
	if err != nil {
		return 0, err
	}
	tty := t.GetContainer().GetTtyInfo() != nil
	talk := &conversation{out: cmd.OutOrStdout(), err: cmd.ErrOrStderr(), terminal: tty, redraw: true}
	if tty && !o.noInput {
		talk.in = cmd.InOrStdin()
		if terminalOf(talk.in) >= 0 {
			talk.detach = detacher{keys: keys, hold: true} // the task goes on and must not find keys that were not for it
		}
	}
	session, err := agent.Attach(ctx, container, operator.AttachOptions{Input: tty && !o.noInput})
	if err != nil {
		return 0, fmt.Errorf("attach to task %s: %w", t.GetTaskId().GetValue(), err)
	}
	talking()
	status, err := talk.converse(ctx, session)
	switch {
	case errors.Is(err, errDetached):
		fmt.Fprintf(cmd.ErrOrStderr(), "\nmosaic: detached from %s\n", t.GetTaskId().GetValue())
		return 0, nil
	case err != nil:
		return 0, err
	}
	return exitCode(status), nil
}
