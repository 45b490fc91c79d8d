package main

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	allocatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/allocator"
	maintenancev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/maintenance"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
)

func newMaintenance() *cobra.Command {
	cmd := &cobra.Command{
		Use: "maintenance", Short: "Plan when machines are away; take them down and bring them back", Args: cobra.NoArgs,
		Long: `Maintenance of machines. Once a machine is scheduled, frameworks are told when it will be away and
asked to leave it; nothing is killed. 'start' takes it down: its agents are removed and refused.
'stop' brings it back. A machine is named by host name, address, agent id, or HOSTNAME/ADDRESS
if no agent of it is registered.`,
	}
	cmd.AddCommand(newMaintenanceStatus(), newMaintenanceSchedule(), newMaintenanceCancel(),
		newMaintenanceMode("start", "Take machines of the plan down", func(m []*mesosv1.MachineID) *masterv1.Call {
			return &masterv1.Call{Type: masterv1.Call_START_MAINTENANCE.Enum(), StartMaintenance: &masterv1.Call_StartMaintenance{Machines: m}}
		}),
		newMaintenanceMode("stop", "Bring machines back that are down", func(m []*mesosv1.MachineID) *masterv1.Call {
			return &masterv1.Call{Type: masterv1.Call_STOP_MAINTENANCE.Enum(), StopMaintenance: &masterv1.Call_StopMaintenance{Machines: m}}
		}))
	return cmd
}

// machineRow is one line of `mosaic maintenance status`.
type machineRow struct {
	Hostname string    `json:"hostname,omitempty"`
	IP       string    `json:"ip,omitempty"`
	Mode     string    `json:"mode"` // draining or down
	Start    time.Time `json:"start,omitzero"`
	End      time.Time `json:"end,omitzero"` // none: for ever
	Accepted []string  `json:"accepted"`     // frameworks that will leave
	Declined []string  `json:"declined"`     // frameworks that will not
	Silent   []string  `json:"silent"`       // frameworks that have not answered
}

var machineColumns = []column[machineRow]{
	{"HOST", false, func(r machineRow) string { return r.Hostname }},
	{"ADDRESS", false, func(r machineRow) string { return r.IP }},
	{"MODE", false, func(r machineRow) string { return r.Mode }},
	{"START", false, func(r machineRow) string { return moment(r.Start) }},
	{"END", false, func(r machineRow) string { return moment(r.End) }},
	{"FRAMEWORKS", false, func(r machineRow) string {
		var parts []string
		for _, p := range []struct {
			list []string
			text string
		}{{r.Accepted, "leave"}, {r.Declined, "stay"}, {r.Silent, "silent"}} {
			if len(p.list) > 0 {
				parts = append(parts, strconv.Itoa(len(p.list))+" "+p.text)
			}
		}
		return strings.Join(parts, ", ")
	}},
}

// moment prints a time that is looked at by people of this machine.
func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

// plan is the schedule and how far each machine is.
type plan struct {
	schedule *maintenancev1.Schedule
	status   *maintenancev1.ClusterStatus
}

func readPlan(ctx context.Context, addr string) (plan, error) {
	resp, err := masterCall(ctx, addr, &masterv1.Call{Type: masterv1.Call_GET_MAINTENANCE_SCHEDULE.Enum()})
	if err != nil {
		return plan{}, fmt.Errorf("read the maintenance schedule: %w", err)
	}
	status, err := masterCall(ctx, addr, &masterv1.Call{Type: masterv1.Call_GET_MAINTENANCE_STATUS.Enum()})
	if err != nil {
		return plan{}, fmt.Errorf("read the maintenance status: %w", err)
	}
	p := plan{schedule: resp.GetGetMaintenanceSchedule().GetSchedule(), status: status.GetGetMaintenanceStatus().GetStatus()}
	if p.schedule == nil {
		p.schedule = &maintenancev1.Schedule{}
	}
	return p, nil
}

// machines are those that the plan knows.
func (p plan) machines() []*mesosv1.MachineID {
	var list []*mesosv1.MachineID
	for _, w := range p.schedule.GetWindows() {
		list = append(list, w.GetMachineIds()...)
	}
	for _, id := range p.status.GetDownMachines() {
		if !slices.ContainsFunc(list, func(o *mesosv1.MachineID) bool { return sameMachine(o, id) }) {
			list = append(list, id)
		}
	}
	return list
}

func sameMachine(a, b *mesosv1.MachineID) bool {
	return strings.EqualFold(a.GetHostname(), b.GetHostname()) && a.GetIp() == b.GetIp()
}

func machineName(m *mesosv1.MachineID) string {
	if m.GetHostname() == "" {
		return m.GetIp()
	}
	return m.GetHostname()
}

func (p plan) rows() []machineRow {
	var rows []machineRow
	add := func(id *mesosv1.MachineID) *machineRow {
		i := slices.IndexFunc(rows, func(r machineRow) bool {
			return sameMachine(id, &mesosv1.MachineID{Hostname: &r.Hostname, Ip: &r.IP})
		})
		if i < 0 {
			i = len(rows)
			rows = append(rows, machineRow{Hostname: id.GetHostname(), IP: id.GetIp(), Mode: "draining", Accepted: []string{}, Declined: []string{}, Silent: []string{}})
		}
		return &rows[i]
	}
	for _, w := range p.schedule.GetWindows() {
		for _, id := range w.GetMachineIds() {
			r := add(id)
			r.Start = time.Unix(0, w.GetUnavailability().GetStart().GetNanoseconds()).UTC()
			if d := w.GetUnavailability().GetDuration(); d != nil {
				r.End = r.Start.Add(time.Duration(d.GetNanoseconds()))
			}
		}
	}
	for _, m := range p.status.GetDrainingMachines() {
		r := add(m.GetId())
		for _, s := range m.GetStatuses() {
			list := &r.Silent
			switch s.GetStatus() {
			case allocatorv1.InverseOfferStatus_ACCEPT:
				list = &r.Accepted
			case allocatorv1.InverseOfferStatus_DECLINE:
				list = &r.Declined
			}
			*list = append(*list, s.GetFrameworkId().GetValue())
		}
	}
	for _, id := range p.status.GetDownMachines() {
		add(id).Mode = "down"
	}
	slices.SortStableFunc(rows, func(a, b machineRow) int {
		return cmp.Or(a.Start.Compare(b.Start), cmp.Compare(a.Hostname, b.Hostname), cmp.Compare(a.IP, b.IP))
	})
	return rows
}

func newMaintenanceStatus() *cobra.Command {
	var master, format string
	cmd := &cobra.Command{
		Use: "status", Aliases: []string{"ls", "list"}, Short: "List machines that are planned to be away, or are", Args: cobra.NoArgs,
		Example: "  mosaic maintenance status -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := readPlan(cmd.Context(), master)
			if err != nil {
				return err
			}
			return printRows(cmd.OutOrStdout(), format, p.rows(), machineColumns)
		},
	}
	masterFlag(cmd, &master)
	outputFlag(cmd, &format)
	return cmd
}

// findMachines looks machines up: those of the plan first, which may have no agent any more.
func findMachines(ctx context.Context, addr string, p plan, names []string) ([]*mesosv1.MachineID, error) {
	var c *cluster
	var found []*mesosv1.MachineID
	for _, name := range names {
		i := slices.IndexFunc(p.machines(), func(m *mesosv1.MachineID) bool {
			return strings.EqualFold(m.GetHostname(), name) || m.GetIp() == name
		})
		if i >= 0 {
			found = append(found, p.machines()[i])
			continue
		}
		if host, ip, ok := strings.Cut(name, "/"); ok {
			if net.ParseIP(ip) == nil {
				return nil, fmt.Errorf("machine %q: got address %q, want an IP address", name, ip)
			}
			found = append(found, &mesosv1.MachineID{Hostname: &host, Ip: &ip})
			continue
		}
		if c == nil {
			var err error
			if c, err = readCluster(ctx, addr); err != nil {
				return nil, err
			}
		}
		m, err := c.machine(name)
		if err != nil {
			return nil, err
		}
		found = append(found, m)
	}
	return found, nil
}

// machine is the machine of an agent, which may be named by its address too.
func (c *cluster) machine(name string) (*mesosv1.MachineID, error) {
	if net.ParseIP(name) != nil {
		for _, a := range c.agents {
			if m := machineOf(a); m.GetIp() == name {
				return m, nil
			}
		}
	}
	a, err := c.findAgent(name)
	if err != nil {
		return nil, err
	}
	return machineOf(a), nil
}

// machineOf names the machine of an agent as the master does: by the host name it gave and the address in its pid.
func machineOf(a *masterv1.Response_GetAgents_Agent) *mesosv1.MachineID {
	m := &mesosv1.MachineID{Hostname: a.GetAgentInfo().Hostname}
	_, at, _ := strings.Cut(a.GetPid(), "@")
	if host, _, err := net.SplitHostPort(at); err == nil && net.ParseIP(host) != nil {
		m.Ip = &host
	}
	return m
}

// without returns the schedule less some machines, and less windows that are then empty.
func (p plan) without(machines []*mesosv1.MachineID) *maintenancev1.Schedule {
	rest := &maintenancev1.Schedule{}
	for _, w := range p.schedule.GetWindows() {
		ids := slices.DeleteFunc(slices.Clone(w.GetMachineIds()), func(id *mesosv1.MachineID) bool {
			return slices.ContainsFunc(machines, func(m *mesosv1.MachineID) bool { return sameMachine(m, id) })
		})
		if len(ids) > 0 {
			rest.Windows = append(rest.Windows, &maintenancev1.Window{MachineIds: ids, Unavailability: w.GetUnavailability()})
		}
	}
	return rest
}

func updateSchedule(ctx context.Context, addr string, s *maintenancev1.Schedule) error {
	_, err := masterCall(ctx, addr, &masterv1.Call{
		Type:                      masterv1.Call_UPDATE_MAINTENANCE_SCHEDULE.Enum(),
		UpdateMaintenanceSchedule: &masterv1.Call_UpdateMaintenanceSchedule{Schedule: s},
	})
	if err != nil {
		return fmt.Errorf("update the maintenance schedule: %w", err)
	}
	return nil
}

// parseMoment reads a time: "now", a duration from now as "2h30m", RFC 3339, or "2026-01-31 22:00" of this machine.
func parseMoment(text string, now time.Time) (time.Time, error) {
	if text == "now" {
		return now, nil
	}
	if d, err := time.ParseDuration(strings.TrimPrefix(text, "+")); err == nil {
		return now.Add(d), nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	for _, layout := range []string{"2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02T15:04"} {
		if t, err := time.ParseInLocation(layout, text, now.Location()); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("got %q, want a time as 2026-01-31T22:00:00Z or '2026-01-31 22:00', or how long from now, as 2h", text)
}

func newMaintenanceSchedule() *cobra.Command {
	var master, start string
	var duration time.Duration
	cmd := &cobra.Command{
		Use: "schedule NODE...", Short: "Plan when machines are away", Args: cobra.MinimumNArgs(1),
		Long: `Plans when machines are away, all at the same time. Machines that are planned already are moved
to the new time; the plans of others stay.`,
		Example: `  mosaic maintenance schedule web-3 web-4 --start 2h --duration 30m
  mosaic maintenance schedule web-3 --start '2026-01-31 22:00'`,
		ValidArgsFunction: completeFrom(nodeNames, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			at, err := parseMoment(start, time.Now())
			if err != nil {
				return &exitError{exitUsage, fmt.Errorf("--start: %w", err)}
			}
			if duration < 0 {
				return &exitError{exitUsage, fmt.Errorf("--duration: got %s, want 0 or more", duration)}
			}
			p, err := readPlan(cmd.Context(), master)
			if err != nil {
				return err
			}
			machines, err := findMachines(cmd.Context(), master, p, args)
			if err != nil {
				return err
			}
			away := &mesosv1.Unavailability{Start: &mesosv1.TimeInfo{Nanoseconds: nanos(at.UnixNano())}}
			if duration > 0 {
				away.Duration = &mesosv1.DurationInfo{Nanoseconds: nanos(duration.Nanoseconds())}
			}
			s := p.without(machines)
			s.Windows = append(s.Windows, &maintenancev1.Window{MachineIds: machines, Unavailability: away})
			return updateSchedule(cmd.Context(), master, s)
		},
	}
	masterFlag(cmd, &master)
	cmd.Flags().StringVar(&start, "start", "now", "when they go: a time, or how long from now")
	cmd.Flags().DurationVar(&duration, "duration", 0, "for how long (0: until told otherwise)")
	return cmd
}

func nanos(n int64) *int64 { return &n }

func newMaintenanceCancel() *cobra.Command {
	var master string
	cmd := &cobra.Command{
		Use: "cancel NODE...", Short: "Take machines out of the plan that are not down yet", Args: cobra.MinimumNArgs(1),
		Example:           "  mosaic maintenance cancel web-3",
		ValidArgsFunction: completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := readPlan(cmd.Context(), master)
			if err != nil {
				return err
			}
			machines, err := planned(cmd.Context(), master, p, args)
			if err != nil {
				return err
			}
			return updateSchedule(cmd.Context(), master, p.without(machines))
		},
	}
	masterFlag(cmd, &master)
	return cmd
}

// planned looks machines up that are in the plan.
func planned(ctx context.Context, addr string, p plan, names []string) ([]*mesosv1.MachineID, error) {
	machines, err := findMachines(ctx, addr, p, names)
	if err != nil {
		return nil, err
	}
	for i, m := range machines {
		if !slices.ContainsFunc(p.machines(), func(o *mesosv1.MachineID) bool { return sameMachine(o, m) }) {
			return nil, fmt.Errorf("machine %s is not planned to be away; 'mosaic maintenance status' lists those that are, 'mosaic maintenance schedule' plans", names[i])
		}
	}
	return machines, nil
}

// completeMachines completes machines of the plan.
func completeMachines(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	master, err := cmd.Flags().GetString("master")
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	p, err := readPlan(cmd.Context(), master)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, m := range p.machines() {
		if name := machineName(m); !slices.Contains(args, name) {
			names = append(names, name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// newMaintenanceMode is `mosaic maintenance start` or `stop`.
func newMaintenanceMode(name, short string, call func([]*mesosv1.MachineID) *masterv1.Call) *cobra.Command {
	var master string
	cmd := &cobra.Command{
		Use: name + " NODE...", Short: short, Args: cobra.MinimumNArgs(1),
		Example:           "  mosaic maintenance " + name + " web-3 web-4",
		ValidArgsFunction: completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := readPlan(cmd.Context(), master)
			if err != nil {
				return err
			}
			machines, err := planned(cmd.Context(), master, p, args)
			if err != nil {
				return err
			}
			if _, err := masterCall(cmd.Context(), master, call(machines)); err != nil {
				return fmt.Errorf("%s maintenance: %w", name, err)
			}
			return nil
		},
	}
	masterFlag(cmd, &master)
	return cmd
}
