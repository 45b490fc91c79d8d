package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
)

func newRole() *cobra.Command {
	cmd := &cobra.Command{Use: "role", Short: "List the roles and their shares; set weights", Args: cobra.NoArgs}
	cmd.AddCommand(newRoleList(), newRoleWeight())
	return cmd
}

var roleColumns = []column[roleRow]{
	{"ROLE", false, func(r roleRow) string { return r.Role }},
	{"WEIGHT", false, func(r roleRow) string { return number(r.Weight) }},
	{"FRAMEWORKS", false, func(r roleRow) string { return strconv.Itoa(len(r.Frameworks)) }},
	{"SHARE", false, func(r roleRow) string { return number(math.Round(r.Share*1000)/10) + " %" }},
	{"CPUS", false, func(r roleRow) string { return number(r.Allocated["cpus"]) }},
	{"MEM", false, func(r roleRow) string { return number(r.Allocated["mem"]) + " MB" }},
	{"GUARANTEE", false, func(r roleRow) string { return amountsText(r.Guarantee) }},
	{"LIMIT", false, func(r roleRow) string { return amountsText(r.Limit) }},
	{"CONSUMED", true, func(r roleRow) string { return amountsText(r.Consumed) }},
	{"RESERVED", true, func(r roleRow) string { return amountsText(r.Reserved) }},
	{"OFFERED", true, func(r roleRow) string { return amountsText(r.Offered) }},
	{"FRAMEWORK IDS", true, func(r roleRow) string { return strings.Join(r.Frameworks, ",") }},
}

func newRoleList() *cobra.Command {
	var master, format string
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List roles: weights, shares, quotas, what they hold", Args: cobra.NoArgs,
		Long: `Lists roles. The share is the largest part that a role has of any resource of the cluster; among
roles beside each other, the one with the smallest share divided by its weight is offered
resources first.`,
		Example: "  mosaic role ls -o wide",
		RunE: func(cmd *cobra.Command, _ []string) error {
			rows, err := readRoles(cmd.Context(), master)
			if err != nil {
				return err
			}
			return printRows(cmd.OutOrStdout(), format, rows, roleColumns)
		},
	}
	masterFlag(cmd, &master)
	outputFlag(cmd, &format)
	return cmd
}

func newRoleWeight() *cobra.Command {
	var master string
	cmd := &cobra.Command{
		Use: "weight ROLE=WEIGHT...", Short: "Set how large a share of the cluster roles get", Args: cobra.MinimumNArgs(1),
		Long: `Sets weights of roles, all or none. A role of weight 2 gets twice the share of one of weight 1
beside it; 1 is what a role has without being told.`,
		Example: "  mosaic role weight batch=1 web=2.5",
		ValidArgsFunction: func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			roles, directive := completeRoles(cmd, nil, "")
			for i := range roles {
				roles[i] += "="
			}
			return roles, directive | cobra.ShellCompDirectiveNoSpace
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var infos []*mesosv1.WeightInfo
			for _, arg := range args {
				role, text, ok := strings.Cut(arg, "=")
				weight, err := strconv.ParseFloat(text, 64)
				if !ok || role == "" || err != nil || !(weight > 0) || math.IsInf(weight, 0) {
					return &exitError{exitUsage, fmt.Errorf("got %q, want ROLE=WEIGHT with a weight above 0", arg)}
				}
				infos = append(infos, &mesosv1.WeightInfo{Role: &role, Weight: &weight})
			}
			_, err := masterCall(cmd.Context(), master, &masterv1.Call{
				Type: masterv1.Call_UPDATE_WEIGHTS.Enum(), UpdateWeights: &masterv1.Call_UpdateWeights{WeightInfos: infos},
			})
			if err != nil {
				return fmt.Errorf("set weights: %w", err)
			}
			return nil
		},
	}
	masterFlag(cmd, &master)
	return cmd
}
