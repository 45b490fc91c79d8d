package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
)

// findAgent looks an agent up by its id, its host name, the end of its id, as S7, or the beginning, whichever is first
// to find any. Ids that one master gave differ at the end only.
func (c *cluster) findAgent(name string) (*masterv1.Response_GetAgents_Agent, error) {
	if a, ok := c.agents[name]; ok {
		return a, nil
	}
	var byHost, byEnd, byStart []string
	for id, a := range c.agents {
		switch {
		case name == "":
		case a.GetAgentInfo().GetHostname() == name:
			byHost = append(byHost, id)
		case strings.HasSuffix(id, "-"+name):
			byEnd = append(byEnd, id)
		case strings.HasPrefix(id, name):
			byStart = append(byStart, id)
		}
	}
	for _, found := range [][]string{byHost, byEnd, byStart} {
		switch len(found) {
		case 0:
			continue
		case 1:
			return c.agents[found[0]], nil
		}
		slices.Sort(found)
		return nil, fmt.Errorf("agent %q could be any of:\n  %s\nName one by its id", name, strings.Join(found, "\n  "))
	}
	return nil, fmt.Errorf("no agent %q; 'mosaic node ls' lists them", name)
}

// nodeState says in one word how an agent is.
func nodeState(a *masterv1.Response_GetAgents_Agent) string {
	switch {
	case a.GetDrainInfo() != nil && a.GetDrainInfo().GetState() != mesosv1.DrainState_UNKNOWN:
		return strings.ToLower(a.GetDrainInfo().GetState().String())
	case a.GetDeactivated():
		return "deactivated"
	case a.GetActive():
		return "active"
	}
	return "inactive"
}

// nodeCommand makes cmd do one thing to one agent: call builds what the master is told; then, unless nil, waits for it
// to be so.
func nodeCommand(cmd *cobra.Command, done string, call func(*mesosv1.AgentID) *masterv1.Call, then func(context.Context, string, string) error) *cobra.Command {
	var master string
	cmd.Args = cobra.ExactArgs(1)
	cmd.ValidArgsFunction = completeFrom(nodeNames, false)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := readCluster(cmd.Context(), master)
		if err != nil {
			return err
		}
		a, err := c.findAgent(args[0])
		if err != nil {
			return err
		}
		id := a.GetAgentInfo().GetId()
		if _, err := masterCall(cmd.Context(), master, call(id)); err != nil {
			return fmt.Errorf("%s agent %s: %w", cmd.Name(), id.GetValue(), err)
		}
		if then != nil {
			if err := then(cmd.Context(), master, id.GetValue()); err != nil {
				return err
			}
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "%s %s (%s)\n", done, a.GetAgentInfo().GetHostname(), id.GetValue())
		return nil
	}
	masterFlag(cmd, &master)
	return cmd
}

func newNodeDrain() *cobra.Command {
	var grace time.Duration
	var gone, wait bool
	cmd := &cobra.Command{
		Use: "drain NODE", Short: "Kill what runs on an agent and place nothing new there",
		Long: `Kills the tasks of an agent, each with its grace period, and offers nothing of it any more. The
agent stays drained, also over restarts, until 'mosaic node reactivate'.`,
		Example: `  mosaic node drain web-3 --max-grace 10m --wait
  mosaic node drain S7 --mark-gone`,
	}
	cmd.Flags().DurationVar(&grace, "max-grace", 0, "the longest grace period that a task gets (0: its own)")
	cmd.Flags().BoolVar(&gone, "mark-gone", false, "mark the agent gone for good once it is drained")
	cmd.Flags().BoolVar(&wait, "wait", false, "return once nothing runs there any more")
	return nodeCommand(cmd, "draining", func(id *mesosv1.AgentID) *masterv1.Call {
		drain := &masterv1.Call_DrainAgent{AgentId: id, MarkGone: &gone}
		if cmd.Flags().Changed("max-grace") {
			drain.MaxGracePeriod = durationpb.New(grace)
		}
		return &masterv1.Call{Type: masterv1.Call_DRAIN_AGENT.Enum(), DrainAgent: drain}
	}, func(ctx context.Context, master, id string) error {
		if !wait {
			return nil
		}
		return awaitDrained(ctx, master, id)
	})
}

// drainPoll is how often the master is asked whether an agent is drained: no event tells it.
const drainPoll = 500 * time.Millisecond

func awaitDrained(ctx context.Context, master, id string) error {
	for {
		resp, err := masterCall(ctx, master, &masterv1.Call{Type: masterv1.Call_GET_AGENTS.Enum()})
		if err != nil {
			return err
		}
		i := slices.IndexFunc(resp.GetGetAgents().GetAgents(), func(a *masterv1.Response_GetAgents_Agent) bool {
			return a.GetAgentInfo().GetId().GetValue() == id
		})
		if i < 0 || resp.GetGetAgents().GetAgents()[i].GetDrainInfo().GetState() == mesosv1.DrainState_DRAINED {
			return nil // drained, or marked gone after it was
		}
		if resp.GetGetAgents().GetAgents()[i].GetDrainInfo() == nil {
			return errors.New("somebody ended the draining")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(drainPoll):
		}
	}
}

func newNodeDeactivate() *cobra.Command {
	return nodeCommand(&cobra.Command{
		Use: "deactivate NODE", Short: "Offer nothing of an agent any more; what runs there goes on",
		Example: "  mosaic node deactivate web-3",
	}, "deactivated", func(id *mesosv1.AgentID) *masterv1.Call {
		return &masterv1.Call{Type: masterv1.Call_DEACTIVATE_AGENT.Enum(), DeactivateAgent: &masterv1.Call_DeactivateAgent{AgentId: id}}
	}, nil)
}

func newNodeReactivate() *cobra.Command {
	return nodeCommand(&cobra.Command{
		Use: "reactivate NODE", Short: "Offer an agent again that was deactivated or drained",
		Example: "  mosaic node reactivate web-3",
	}, "reactivated", func(id *mesosv1.AgentID) *masterv1.Call {
		return &masterv1.Call{Type: masterv1.Call_REACTIVATE_AGENT.Enum(), ReactivateAgent: &masterv1.Call_ReactivateAgent{AgentId: id}}
	}, nil)
}

func newNodeGone() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "gone NODE", Short: "Say that an agent will never come back",
		Long: `Marks an agent gone for good: its tasks are told to their frameworks as gone, so that they can be
started elsewhere, and the agent is shut down should it return. This cannot be undone, so it
wants --yes.`,
		Example: "  mosaic node gone S7 --yes",
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "I mean it")
	nodeCommand(cmd, "gone:", func(id *mesosv1.AgentID) *masterv1.Call {
		return &masterv1.Call{Type: masterv1.Call_MARK_AGENT_GONE.Enum(), MarkAgentGone: &masterv1.Call_MarkAgentGone{AgentId: id}}
	}, nil)
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !yes {
			return &exitError{exitUsage, fmt.Errorf("marking %s gone cannot be undone: say --yes", args[0])}
		}
		return run(cmd, args)
	}
	return cmd
}
