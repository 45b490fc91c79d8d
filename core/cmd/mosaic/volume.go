package main

import (
	"cmp"
	"slices"

	"github.com/spf13/cobra"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
)

// volumeRow is one line of `mosaic volume ls`.
type volumeRow struct {
	ID        string  `json:"id"`
	Role      string  `json:"role"` // whose reservation it lies in
	SizeMB    float64 `json:"size_mb"`
	AgentID   string  `json:"agent_id"`
	Hostname  string  `json:"hostname"`
	Used      bool    `json:"used"` // by a task or an executor
	Shared    bool    `json:"shared"`
	Principal string  `json:"principal,omitempty"` // who made it
}

var volumeColumns = []column[volumeRow]{
	{"VOLUME", false, func(r volumeRow) string { return r.ID }},
	{"ROLE", false, func(r volumeRow) string { return r.Role }},
	{"SIZE", false, func(r volumeRow) string { return number(r.SizeMB) + " MB" }},
	{"HOST", false, func(r volumeRow) string { return r.Hostname }},
	{"USED", false, func(r volumeRow) string { return yesNo(r.Used) }},
	{"SHARED", true, func(r volumeRow) string { return yesNo(r.Shared) }},
	{"PRINCIPAL", true, func(r volumeRow) string { return r.Principal }},
	{"AGENT", true, func(r volumeRow) string { return r.AgentID }},
}

func yesNo(v bool) string {
	if v {
		return "yes"
	}
	return "no"
}

func newVolume() *cobra.Command {
	cmd := &cobra.Command{Use: "volume", Short: "List persistent volumes", Args: cobra.NoArgs}
	var master, format string
	ls := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List persistent volumes and where they are", Args: cobra.NoArgs,
		Example: "  mosaic volume ls -o wide",
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := masterCall(cmd.Context(), master, &masterv1.Call{Type: masterv1.Call_GET_AGENTS.Enum()})
			if err != nil {
				return err
			}
			return printRows(cmd.OutOrStdout(), format, volumeRows(resp.GetGetAgents().GetAgents()), volumeColumns)
		},
	}
	masterFlag(ls, &master)
	outputFlag(ls, &format)
	cmd.AddCommand(ls)
	return cmd
}

func volumeRows(agents []*masterv1.Response_GetAgents_Agent) []volumeRow {
	var rows []volumeRow
	for _, a := range agents {
		used := map[[2]string]bool{}
		for _, r := range a.GetAllocatedResources() {
			used[[2]string{reservedTo(r), r.GetDisk().GetPersistence().GetId()}] = true
		}
		for _, r := range a.GetTotalResources() {
			p := r.GetDisk().GetPersistence()
			if p == nil {
				continue
			}
			rows = append(rows, volumeRow{
				ID: p.GetId(), Role: reservedTo(r), SizeMB: r.GetScalar().GetValue(), Principal: p.GetPrincipal(), Shared: r.GetShared() != nil,
				AgentID: a.GetAgentInfo().GetId().GetValue(), Hostname: a.GetAgentInfo().GetHostname(),
				Used: used[[2]string{reservedTo(r), p.GetId()}],
			})
		}
	}
	slices.SortFunc(rows, func(a, b volumeRow) int {
		return cmp.Or(cmp.Compare(a.Hostname, b.Hostname), cmp.Compare(a.AgentID, b.AgentID), cmp.Compare(a.Role, b.Role), cmp.Compare(a.ID, b.ID))
	})
	return rows
}

// reservedTo is the role that a resource is reserved to, by its last reservation.
func reservedTo(r *mesosv1.Resource) string {
	if n := len(r.GetReservations()); n > 0 {
		return r.GetReservations()[n-1].GetRole()
	}
	return r.GetRole()
}
