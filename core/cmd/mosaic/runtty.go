package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"

	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

// `mosaic run -it`: a task that has a terminal, connected with the one that the command is typed at.

const (
	// connectAttempts bounds how often we attach anew because the task wrote meanwhile. Programs are silent once they
	// wait for keys; one that never is loses or repeats some of its output around the last attempt.
	connectAttempts = 5
	// farewell is how long the output of a task may take to end after the task has.
	farewell = 5 * time.Second
)

func (o *runOptions) terminalFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVarP(&o.tty, "tty", "t", false, "give the task a terminal")
	f.BoolVarP(&o.interactive, "interactive", "i", false, "type into the task's terminal, with --tty")
	f.StringVar(&o.keys, "detach-keys", defaultDetachKeys, "keys that leave a task of -it running ('' for none)")
}

// checkTerminal says what is wrong with these flags.
func (o *runOptions) checkTerminal(in io.Reader) error {
	var err error
	if o.detachKeys, err = parseDetachKeys(o.keys); err != nil {
		return fmt.Errorf("--detach-keys: %w", err)
	}
	switch {
	case o.interactive && !o.tty:
		return errors.New("a task has input if it has a terminal: say -it")
	case o.interactive && o.detach:
		return errors.New("-i does not go with --detach: 'mosaic task attach' connects later")
	case o.interactive && terminalOf(in) < 0:
		return errors.New("-i wants a terminal as standard input")
	}
	return nil
}

// terminalInfo is the terminal that a task gets, as large as ours.
func (o *runOptions) terminalInfo() *mesosv1.TTYInfo {
	info := &mesosv1.TTYInfo{}
	if rows, columns := windowSize(o.out, o.in); rows > 0 {
		r, c := uint32(rows), uint32(columns)
		info.WindowSize = &mesosv1.TTYInfo_WindowSize{Rows: &r, Columns: &c}
	}
	return info
}

// begin connects with the task once it runs, and once only.
func (r *runner) begin(ctx context.Context, t *running) {
	if !r.interactive || r.connected || t.stdout == nil || t.status.GetState() != mesosv1.TaskState_TASK_RUNNING {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	r.connected, r.endTalk, r.talk = true, cancel, make(chan error, 1)
	talk, id := r.talk, t.status.GetContainerStatus().GetContainerId()
	go func() { talk <- r.converse(ctx, t.stdout, id) }() // run waits for it
}

// converse attaches to a task's container and returns when its output has ended, or the detach keys were typed.
func (r *runner) converse(ctx context.Context, written *tail, id *mesosv1.ContainerID) error {
	agent := operator.NewAgent(r.agent)
	for attempt := 1; ; attempt++ {
		// What the task wrote up to now is in a file; what it writes from now on comes over the connection. Both meet
		// where nothing was written in between.
		if err := written.pull(ctx); err != nil {
			return err
		}
		session, err := agent.Attach(ctx, id, operator.AttachOptions{Input: true})
		if err != nil {
			return err
		}
		size, err := written.size(ctx)
		if err == nil && size != written.offset && attempt < connectAttempts {
			_ = session.Close()
			continue
		}
		talk := &conversation{in: r.in, out: r.out, err: r.err, terminal: true, detach: detacher{keys: r.detachKeys, hold: true}}
		_, err = talk.converse(ctx, session)
		return err
	}
}

// size is how large the file is now.
func (t *tail) size(ctx context.Context) (uint64, error) {
	none := uint64(0)
	resp, err := t.agent.Call(ctx, &agentv1.Call{
		Type: agentv1.Call_READ_FILE.Enum(), ReadFile: &agentv1.Call_ReadFile{Path: &t.path, Offset: &none, Length: &none},
	})
	var status *operator.StatusError
	if errors.As(err, &status) && status.Code == http.StatusNotFound {
		return 0, nil
	}
	return resp.GetReadFile().GetSize(), err
}

// talked handles the end of the conversation. Whatever it was, the task's own end is still to come, unless we left it.
func (r *runner) talked(ctx context.Context, err error) error {
	r.endTalk()
	r.talk, r.hangUp = nil, nil
	var exit *exitError
	var refused *operator.StatusError
	switch {
	case errors.Is(err, errDetached):
		if err := r.stay(ctx); err != nil {
			return err
		}
		r.detach = true
		fmt.Fprintln(r.err, "\nmosaic: left running; 'mosaic task attach' connects again")
		return errDone
	case errors.As(err, &exit): // a signal, or our terminal is gone
		if err := r.kill(ctx); err != nil {
			return err
		}
	case err == nil, errors.Is(err, context.Canceled):
	case errors.As(err, &refused): // it has ended too soon to attach, and its output is in the file
		r.connected, r.interactive = false, false
	default:
		fmt.Fprintln(r.err, "mosaic: the connection with the task was lost:", err)
	}
	if r.all((*running).ended) {
		return r.last(ctx)
	}
	return nil
}

// last prints what is left and ends the run.
func (r *runner) last(ctx context.Context) error {
	for _, t := range r.tasks {
		if err := r.pullLast(ctx, t); err != nil {
			return err
		}
	}
	return errDone
}

// stay has the task outlive its framework's connection, as that of a detached one.
func (r *runner) stay(ctx context.Context) error {
	forever := detachedFailover.Seconds()
	info := r.framework.CloneVT()
	info.Id, info.FailoverTimeout = r.client.FrameworkID(), &forever
	err := r.client.Call(ctx, &schedulerv1.Call{
		Type: schedulerv1.Call_UPDATE_FRAMEWORK.Enum(), FrameworkId: info.Id,
		UpdateFramework: &schedulerv1.Call_UpdateFramework{FrameworkInfo: info, SuppressedRoles: info.GetRoles()},
	})
	if err != nil {
		return fmt.Errorf("leave the task running: %w", err)
	}
	return nil
}
