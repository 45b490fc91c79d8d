package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// nodeRow is one line of `mosaic node ls`.
type nodeRow struct {
	ID         string             `json:"id"`
	Hostname   string             `json:"hostname"`
	Address    string             `json:"address"`
	Active     bool               `json:"active"`
	State      string             `json:"state"` // active, inactive, deactivated, draining or drained
	Tasks      int                `json:"tasks"`
	Total      map[string]float64 `json:"total"`
	Allocated  map[string]float64 `json:"allocated"`
	Attributes map[string]string  `json:"attributes,omitempty"`
	Registered time.Time          `json:"registered,omitzero"`
	Version    string             `json:"version"`
}

func scalars(list []*mesosv1.Resource) map[string]float64 {
	m := map[string]float64{}
	for _, r := range list {
		if r.GetType() == mesosv1.Value_SCALAR {
			m[r.GetName()] += r.GetScalar().GetValue()
		}
	}
	return m
}

func attributeText(a *mesosv1.Attribute) string {
	switch a.GetType() {
	case mesosv1.Value_SCALAR:
		return number(a.GetScalar().GetValue())
	case mesosv1.Value_RANGES:
		var parts []string
		for _, r := range a.GetRanges().GetRange() {
			parts = append(parts, fmt.Sprintf("%d-%d", r.GetBegin(), r.GetEnd()))
		}
		return "[" + strings.Join(parts, ",") + "]"
	case mesosv1.Value_SET:
		return "{" + strings.Join(a.GetSet().GetItem(), ",") + "}"
	}
	return a.GetText().GetValue()
}

func used(r nodeRow, name string) string {
	return number(r.Allocated[name]) + "/" + number(r.Total[name])
}

var nodeColumns = []column[nodeRow]{
	{"HOST", false, func(r nodeRow) string { return r.Hostname }},
	{"STATE", false, func(r nodeRow) string { return r.State }},
	{"TASKS", false, func(r nodeRow) string { return strconv.Itoa(r.Tasks) }},
	{"CPUS", false, func(r nodeRow) string { return used(r, "cpus") }},
	{"MEM", false, func(r nodeRow) string { return used(r, "mem") + " MB" }},
	{"DISK", true, func(r nodeRow) string { return used(r, "disk") + " MB" }},
	{"SINCE", false, func(r nodeRow) string { return age(r.Registered) }},
	{"AGENT", false, func(r nodeRow) string { return r.ID }},
	{"ADDRESS", true, func(r nodeRow) string { return r.Address }},
	{"ATTRIBUTES", true, func(r nodeRow) string {
		var parts []string
		for k, v := range r.Attributes {
			parts = append(parts, k+"="+v)
		}
		slices.Sort(parts)
		return strings.Join(parts, " ")
	}},
}

func newNode() *cobra.Command {
	cmd := &cobra.Command{Use: "node", Short: "List the machines; drain them", Args: cobra.NoArgs}
	var master, format string
	ls := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List agents and what is used of them", Args: cobra.NoArgs,
		Example: "  mosaic node ls -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := readCluster(cmd.Context(), master)
			if err != nil {
				return err
			}
			tasks := map[string]int{}
			for _, t := range c.tasks() {
				if !terminal(t.GetState()) {
					tasks[t.GetAgentId().GetValue()]++
				}
			}
			var rows []nodeRow
			for id, a := range c.agents {
				addr, err := c.agentAddr(id)
				if err != nil {
					return err
				}
				r := nodeRow{
					ID: id, Hostname: a.GetAgentInfo().GetHostname(), Address: addr, Active: a.GetActive(), State: nodeState(a),
					Tasks: tasks[id], Total: scalars(a.GetTotalResources()), Allocated: scalars(a.GetAllocatedResources()),
					Attributes: map[string]string{}, Version: a.GetVersion(),
					Registered: time.Unix(0, a.GetRegisteredTime().GetNanoseconds()).UTC(),
				}
				for _, at := range a.GetAgentInfo().GetAttributes() {
					r.Attributes[at.GetName()] = attributeText(at)
				}
				rows = append(rows, r)
			}
			slices.SortFunc(rows, func(a, b nodeRow) int {
				return cmp.Or(cmp.Compare(a.Hostname, b.Hostname), cmp.Compare(a.ID, b.ID))
			})
			return printRows(cmd.OutOrStdout(), format, rows, nodeColumns)
		},
	}
	masterFlag(ls, &master)
	outputFlag(ls, &format)
	cmd.AddCommand(ls, newNodeDrain(), newNodeDeactivate(), newNodeReactivate(), newNodeGone())
	return cmd
}

// frameworkRow is one line of `mosaic framework ls`.
type frameworkRow struct {
	ID         string             `json:"id"`
	Name       string             `json:"name"`
	User       string             `json:"user"`
	Roles      []string           `json:"roles"`
	Principal  string             `json:"principal,omitempty"`
	State      string             `json:"state"`
	Tasks      int                `json:"tasks"`
	Allocated  map[string]float64 `json:"allocated"`
	Registered time.Time          `json:"registered,omitzero"`
}

var frameworkColumns = []column[frameworkRow]{
	{"FRAMEWORK", false, func(r frameworkRow) string { return r.ID }},
	{"NAME", false, func(r frameworkRow) string { return r.Name }},
	{"STATE", false, func(r frameworkRow) string { return r.State }},
	{"ROLES", false, func(r frameworkRow) string { return strings.Join(r.Roles, ",") }},
	{"TASKS", false, func(r frameworkRow) string { return strconv.Itoa(r.Tasks) }},
	{"CPUS", false, func(r frameworkRow) string { return number(r.Allocated["cpus"]) }},
	{"MEM", false, func(r frameworkRow) string { return number(r.Allocated["mem"]) + " MB" }},
	{"SINCE", false, func(r frameworkRow) string { return age(r.Registered) }},
	{"USER", true, func(r frameworkRow) string { return r.User }},
	{"PRINCIPAL", true, func(r frameworkRow) string { return r.Principal }},
}

func newFramework() *cobra.Command {
	cmd := &cobra.Command{Use: "framework", Short: "List the frameworks; end them", Args: cobra.NoArgs}
	var master, format string
	var all bool
	ls := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List frameworks and what they hold", Args: cobra.NoArgs,
		Example: "  mosaic framework ls --all",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := readCluster(cmd.Context(), master)
			if err != nil {
				return err
			}
			tasks := map[string]int{}
			for _, t := range c.tasks() {
				if !terminal(t.GetState()) {
					tasks[t.GetFrameworkId().GetValue()]++
				}
			}
			var rows []frameworkRow
			completed := map[string]bool{}
			for _, f := range c.state.GetGetFrameworks().GetCompletedFrameworks() {
				completed[f.GetFrameworkInfo().GetId().GetValue()] = true
			}
			for id, f := range c.frames {
				info := f.GetFrameworkInfo()
				r := frameworkRow{
					ID: id, Name: info.GetName(), User: info.GetUser(), Principal: info.GetPrincipal(), Roles: info.GetRoles(),
					State: "disconnected", Tasks: tasks[id], Allocated: scalars(f.GetAllocatedResources()),
					Registered: time.Unix(0, f.GetRegisteredTime().GetNanoseconds()).UTC(),
				}
				if len(r.Roles) == 0 {
					r.Roles = []string{info.GetRole()}
				}
				switch {
				case completed[id]:
					r.State = "completed"
				case f.GetActive():
					r.State = "active"
				case f.GetConnected():
					r.State = "inactive"
				}
				if all || !completed[id] {
					rows = append(rows, r)
				}
			}
			slices.SortFunc(rows, func(a, b frameworkRow) int { return cmp2(a.Registered, b.Registered, a.ID, b.ID) })
			return printRows(cmd.OutOrStdout(), format, rows, frameworkColumns)
		},
	}
	masterFlag(ls, &master)
	outputFlag(ls, &format)
	ls.Flags().BoolVarP(&all, "all", "a", false, "also frameworks that have ended")
	cmd.AddCommand(ls, newFrameworkTeardown())
	return cmd
}

// cmp2 orders by time, then by id.
func cmp2(a, b time.Time, ida, idb string) int {
	return cmp.Or(a.Compare(b), cmp.Compare(ida, idb))
}

func newVersion() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Example: "  mosaic version -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := map[string]string{"version": version, "mesos_api": mesosVersion}
			switch format {
			case "json":
				return json.NewEncoder(cmd.OutOrStdout()).Encode(v)
			case "yaml":
				return printYAML(cmd.OutOrStdout(), v)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "mosaic %s (v1 API of Apache Mesos %s)\n", version, mesosVersion)
			return nil
		},
	}
	outputFlag(cmd, &format)
	return cmd
}

// reachedAt is the host and port that others reach a daemon at: what its settings advertise, else the listener's.
func reachedAt(advertise string, listen net.Addr, hostname string) (host string, port int, err error) {
	if advertise == "" {
		return advertisedHost(listen, hostname), listen.(*net.TCPAddr).Port, nil
	}
	host, text, err := net.SplitHostPort(advertise)
	if err != nil {
		return "", 0, fmt.Errorf("advertised address %q: %w", advertise, err)
	}
	if port, err = strconv.Atoi(text); err != nil {
		return "", 0, fmt.Errorf("advertised address %q: %w", advertise, err)
	}
	return host, port, nil
}

// advertisedHost is the host that others reach a listener at.
func advertisedHost(listen net.Addr, hostname string) string {
	if host, _, err := net.SplitHostPort(listen.String()); err == nil {
		if ip := net.ParseIP(host); ip != nil && !ip.IsUnspecified() {
			return host
		}
	}
	return hostname
}
