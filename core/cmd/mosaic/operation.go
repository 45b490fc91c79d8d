package main

import (
	"cmp"
	"encoding/hex"
	"slices"

	"github.com/spf13/cobra"

	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
)

// operationRow is one line of `mosaic operation ls`.
type operationRow struct {
	ID          string `json:"id,omitempty"` // its framework's, if it gave it one
	UUID        string `json:"uuid"`         // the master's
	Type        string `json:"type"`
	State       string `json:"state"`
	FrameworkID string `json:"framework_id,omitempty"` // none: an operator's
	AgentID     string `json:"agent_id"`
	Message     string `json:"message,omitempty"`
}

var operationColumns = []column[operationRow]{
	{"OPERATION", false, func(r operationRow) string { return cmp.Or(r.ID, r.UUID) }},
	{"TYPE", false, func(r operationRow) string { return r.Type }},
	{"STATE", false, func(r operationRow) string { return r.State }},
	{"FRAMEWORK", false, func(r operationRow) string { return r.FrameworkID }},
	{"AGENT", false, func(r operationRow) string { return r.AgentID }},
	{"UUID", true, func(r operationRow) string { return r.UUID }},
	{"MESSAGE", true, func(r operationRow) string { return r.Message }},
}

func newOperation() *cobra.Command {
	cmd := &cobra.Command{Use: "operation", Short: "List operations on resources", Args: cobra.NoArgs}
	var master, format string
	ls := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List operations that are under way or not acknowledged yet", Args: cobra.NoArgs,
		Long:    "Lists reservations, volumes and the like that are being made or undone, and those whose outcome their\nframework has not acknowledged yet.",
		Example: "  mosaic operation ls -o wide",
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := masterCall(cmd.Context(), master, &masterv1.Call{Type: masterv1.Call_GET_OPERATIONS.Enum()})
			if err != nil {
				return err
			}
			var rows []operationRow
			for _, op := range resp.GetGetOperations().GetOperations() {
				rows = append(rows, operationRow{
					ID: op.GetInfo().GetId().GetValue(), UUID: hex.EncodeToString(op.GetUuid().GetValue()), Type: op.GetInfo().GetType().String(),
					State: op.GetLatestStatus().GetState().String(), FrameworkID: op.GetFrameworkId().GetValue(), AgentID: op.GetAgentId().GetValue(),
					Message: op.GetLatestStatus().GetMessage(),
				})
			}
			slices.SortFunc(rows, func(a, b operationRow) int {
				return cmp.Or(cmp.Compare(a.AgentID, b.AgentID), cmp.Compare(a.FrameworkID, b.FrameworkID), cmp.Compare(a.ID, b.ID), cmp.Compare(a.UUID, b.UUID))
			})
			return printRows(cmd.OutOrStdout(), format, rows, operationColumns)
		},
	}
	masterFlag(ls, &master)
	outputFlag(ls, &format)
	cmd.AddCommand(ls)
	return cmd
}
