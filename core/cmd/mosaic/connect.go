package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"

	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

const (
	defaultMaster = "127.0.0.1:5050"
	defaultAgent  = "127.0.0.1:5051"
	// toolTimeout bounds one question of a tool; a person waits no longer.
	toolTimeout = 30 * time.Second
)

// masterFlag adds --master, with MOSAIC_MASTER as its default.
func masterFlag(cmd *cobra.Command, addr *string) {
	cmd.Flags().StringVar(addr, "master", envOr("MOSAIC_MASTER", defaultMaster), "master to talk to, HOST:PORT (or MOSAIC_MASTER)")
}

// agentFlag adds --agent, with MOSAIC_AGENT as its default.
func agentFlag(cmd *cobra.Command, addr *string) {
	cmd.Flags().StringVar(addr, "agent", envOr("MOSAIC_AGENT", defaultAgent), "agent to talk to, HOST:PORT (or MOSAIC_AGENT)")
}

func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// hint adds to the error of an unreachable server what most likely helps.
func hint(err error, addr, flag string) error {
	if err == nil {
		return nil
	}
	var op *net.OpError
	if asNet(err, &op) {
		return fmt.Errorf("%w\nIs it running? 'mosaic dev' starts one on this machine; --%s or MOSAIC_%s names another than %s",
			err, flag, upper(flag), addr)
	}
	return err
}

// cluster is what tools show: the master's state with ways to look things up.
type cluster struct {
	addr   string
	state  *masterv1.Response_GetState
	agents map[string]*masterv1.Response_GetAgents_Agent
	frames map[string]*masterv1.Response_GetFrameworks_Framework
}

func readCluster(ctx context.Context, addr string) (*cluster, error) {
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	resp, err := operator.NewMaster(addr).Call(ctx, &masterv1.Call{Type: masterv1.Call_GET_STATE.Enum()})
	if err != nil {
		return nil, hint(err, addr, "master")
	}
	c := &cluster{
		addr: addr, state: resp.GetGetState(),
		agents: map[string]*masterv1.Response_GetAgents_Agent{},
		frames: map[string]*masterv1.Response_GetFrameworks_Framework{},
	}
	for _, a := range c.state.GetGetAgents().GetAgents() {
		c.agents[a.GetAgentInfo().GetId().GetValue()] = a
	}
	for _, list := range [][]*masterv1.Response_GetFrameworks_Framework{
		c.state.GetGetFrameworks().GetCompletedFrameworks(), c.state.GetGetFrameworks().GetFrameworks(),
	} {
		for _, f := range list {
			c.frames[f.GetFrameworkInfo().GetId().GetValue()] = f
		}
	}
	return c, nil
}

// tasks lists the master's tasks: those that live first, then those that do not.
func (c *cluster) tasks() []*mesosv1.Task {
	t := c.state.GetGetTasks()
	var all []*mesosv1.Task
	all = append(all, t.GetTasks()...)
	all = append(all, t.GetUnreachableTasks()...)
	return append(all, t.GetCompletedTasks()...)
}

// agentAddr is where an agent's API listens.
func (c *cluster) agentAddr(id string) (string, error) {
	a, ok := c.agents[id]
	if !ok {
		return "", fmt.Errorf("agent %s is not registered with the master at %s", id, c.addr)
	}
	info := a.GetAgentInfo()
	return net.JoinHostPort(info.GetHostname(), strconv.Itoa(int(info.GetPort()))), nil
}
