package main

import (
	"slices"

	"github.com/spf13/cobra"

	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
)

// Completion asks the master that the command line names. Where nobody answers nothing is offered, and no files
// either: none of these arguments is one.

// completeFrom offers names of the cluster for the first argument, or for every one if more is set.
func completeFrom(names func(*cluster) []string, more bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		master, err := cmd.Flags().GetString("master")
		if err != nil || len(args) > 0 && !more {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		c, err := readCluster(cmd.Context(), master)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		list := slices.DeleteFunc(names(c), func(s string) bool { return s == "" || slices.Contains(args, s) })
		slices.Sort(list)
		return slices.Compact(list), cobra.ShellCompDirectiveNoFileComp
	}
}

// liveTasks are the ids of tasks that have not ended.
func liveTasks(c *cluster) []string {
	var ids []string
	for _, t := range c.tasks() {
		if !terminal(t.GetState()) {
			ids = append(ids, t.GetTaskId().GetValue())
		}
	}
	return ids
}

// nodeNames are the host names of agents.
func nodeNames(c *cluster) []string {
	var names []string
	for _, a := range c.agents {
		names = append(names, a.GetAgentInfo().GetHostname())
	}
	return names
}

// frameworkNames are ids and names of frameworks that have not ended.
func frameworkNames(c *cluster) []string {
	var names []string
	for _, f := range c.state.GetGetFrameworks().GetFrameworks() {
		names = append(names, f.GetFrameworkInfo().GetId().GetValue(), f.GetFrameworkInfo().GetName())
	}
	return names
}

// completeRoles completes the names of roles.
func completeRoles(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	master, err := cmd.Flags().GetString("master")
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	resp, err := masterCall(cmd.Context(), master, &masterv1.Call{Type: masterv1.Call_GET_ROLES.Enum()})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, r := range resp.GetGetRoles().GetRoles() {
		names = append(names, r.GetName())
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeNetworks completes the names of networks: those that are everywhere, and those that tasks are in.
func completeNetworks(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	names := []string{"host", "bridge", "none"}
	master, err := cmd.Flags().GetString("master")
	if err != nil {
		return names, cobra.ShellCompDirectiveNoFileComp
	}
	c, err := readCluster(cmd.Context(), master)
	if err != nil {
		return names, cobra.ShellCompDirectiveNoFileComp
	}
	for _, t := range c.tasks() {
		for _, n := range t.GetContainer().GetNetworkInfos() {
			if name := n.GetName(); name != "" && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
