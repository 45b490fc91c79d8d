package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	quotav1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/quota"

	"github.com/mosaic-cluster/mosaic/sdk/operator"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// roleRow is one line of `mosaic role ls`. Amounts are cores and MB, by resource name.
type roleRow struct {
	Role       string               `json:"role"`
	Weight     float64              `json:"weight"`
	Frameworks []string             `json:"frameworks"`
	Share      float64              `json:"share"` // the largest part of any resource of the cluster, 0 to 1
	Allocated  resources.Quantities `json:"allocated"`
	Offered    resources.Quantities `json:"offered"`
	Reserved   resources.Quantities `json:"reserved"`
	Consumed   resources.Quantities `json:"consumed"` // of its quota, its subroles' part included
	Guarantee  resources.Quantities `json:"guarantee,omitempty"`
	Limit      resources.Quantities `json:"limit,omitempty"`
}

// quotaRow is one line of `mosaic quota ls`.
type quotaRow struct {
	Role      string               `json:"role"`
	Guarantee resources.Quantities `json:"guarantee"`
	Limit     resources.Quantities `json:"limit"` // a resource that is not named has none
	Consumed  resources.Quantities `json:"consumed"`
}

// masterCall asks the master one thing.
func masterCall(ctx context.Context, addr string, call *masterv1.Call) (*masterv1.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	resp, err := operator.NewMaster(addr).Call(ctx, call)
	return resp, hint(err, addr, "master")
}

// masterGet reads JSON from a path of the master into v.
func masterGet(ctx context.Context, addr, path string, v any) error {
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	data, err := operator.NewMaster(addr).Get(ctx, path)
	if err != nil {
		return hint(err, addr, "master")
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("answer of the master at %s to %s: %w", addr, path, err)
	}
	return nil
}

// amounts are what a JSON object of the legacy endpoints holds as numbers; ports and the like are left out.
type amounts resources.Quantities

// UnmarshalJSON takes the members that are numbers.
func (a *amounts) UnmarshalJSON(data []byte) error {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		return err
	}
	*a = amounts{}
	for name, value := range raw {
		if v, err := strconv.ParseFloat(string(value), 64); err == nil {
			(*a)[name] = v
		}
	}
	return nil
}

// readRoles lists the roles with their quotas, those of a quota that nobody uses included.
func readRoles(ctx context.Context, addr string) ([]roleRow, error) {
	var answer struct {
		Roles []struct {
			Name       string   `json:"name"`
			Weight     float64  `json:"weight"`
			Frameworks []string `json:"frameworks"`
			Resources  amounts  `json:"resources"`
			Allocated  amounts  `json:"allocated"`
			Offered    amounts  `json:"offered"`
			Reserved   amounts  `json:"reserved"`
			Quota      struct {
				Consumed amounts `json:"consumed"`
			} `json:"quota"`
		} `json:"roles"`
	}
	if err := masterGet(ctx, addr, "/roles", &answer); err != nil {
		return nil, err
	}
	agents, err := masterCall(ctx, addr, &masterv1.Call{Type: masterv1.Call_GET_AGENTS.Enum()})
	if err != nil {
		return nil, err
	}
	total := resources.Quantities{}
	for _, a := range agents.GetGetAgents().GetAgents() {
		for _, r := range a.GetTotalResources() {
			if r.GetType() == mesosv1.Value_SCALAR {
				total[r.GetName()] += r.GetScalar().GetValue()
			}
		}
	}
	quotas, err := readQuotas(ctx, addr)
	if err != nil {
		return nil, err
	}
	var rows []roleRow
	for _, r := range answer.Roles {
		row := roleRow{
			Role: r.Name, Weight: r.Weight, Frameworks: r.Frameworks, Allocated: resources.Quantities(r.Allocated),
			Offered: resources.Quantities(r.Offered), Reserved: resources.Quantities(r.Reserved), Consumed: resources.Quantities(r.Quota.Consumed),
		}
		for name, v := range row.Allocated {
			if t := total[name]; t > 0 {
				row.Share = max(row.Share, v/t)
			}
		}
		if q := quotas[r.Name]; q != nil {
			row.Guarantee, row.Limit = amountsOf(q.GetGuarantees()), amountsOf(q.GetLimits())
			delete(quotas, r.Name)
		}
		rows = append(rows, row)
	}
	for name, q := range quotas {
		rows = append(rows, roleRow{Role: name, Weight: 1, Guarantee: amountsOf(q.GetGuarantees()), Limit: amountsOf(q.GetLimits())})
	}
	slices.SortFunc(rows, func(a, b roleRow) int { return cmp.Compare(a.Role, b.Role) })
	return rows, nil
}

// readQuotas reads the quotas that were set, by role.
func readQuotas(ctx context.Context, addr string) (map[string]*quotav1.QuotaConfig, error) {
	resp, err := masterCall(ctx, addr, &masterv1.Call{Type: masterv1.Call_GET_QUOTA.Enum()})
	if err != nil {
		return nil, err
	}
	quotas := map[string]*quotav1.QuotaConfig{}
	for _, q := range resp.GetGetQuota().GetStatus().GetConfigs() {
		quotas[q.GetRole()] = q
	}
	return quotas, nil
}

// amountsOf are the amounts of a quota. Unlike resources.QuantitiesOf it keeps a limit of 0, which means none at all.
func amountsOf(m map[string]*mesosv1.Value_Scalar) resources.Quantities {
	q := resources.Quantities{}
	for name, v := range m {
		q[name] = v.GetValue()
	}
	return q
}

// amountsText prints amounts as the flags take them: cpus:4;mem:1024.
func amountsText(q resources.Quantities) string {
	var parts []string
	for name, v := range q {
		parts = append(parts, name+":"+number(v))
	}
	slices.Sort(parts)
	return strings.Join(parts, ";")
}

// parseAmounts reads what amountsText prints. Nothing is no amounts.
func parseAmounts(text string) (resources.Quantities, error) {
	q := resources.Quantities{}
	if strings.TrimSpace(text) == "" {
		return q, nil
	}
	for part := range strings.SplitSeq(text, ";") {
		name, value, ok := strings.Cut(part, ":")
		name = strings.TrimSpace(name)
		v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if !ok || name == "" || err != nil || !(v >= 0) || v > maxAmount {
			return nil, fmt.Errorf("got %q, want NAME:AMOUNT, as in 'cpus:4;mem:1024'", strings.TrimSpace(part))
		}
		if _, twice := q[name]; twice {
			return nil, fmt.Errorf("%s is named twice", name)
		}
		q[name] = v
	}
	return q, nil
}

// maxAmount is what a scalar holds exactly in thousandths: more is a slip of the hand.
const maxAmount = 1e12

func newQuota() *cobra.Command {
	cmd := &cobra.Command{
		Use: "quota", Short: "What roles are guaranteed and how much they may have", Args: cobra.NoArgs,
		Long: `Quotas of roles. A guarantee is kept free for a role even while others want it; a limit is what
the role may have at most. Only roles at the top of the tree have quotas; those below share it.`,
	}
	cmd.AddCommand(newQuotaList(), newQuotaSet(), newQuotaRemove())
	return cmd
}

var quotaColumns = []column[quotaRow]{
	{"ROLE", false, func(r quotaRow) string { return r.Role }},
	{"GUARANTEE", false, func(r quotaRow) string { return amountsText(r.Guarantee) }},
	{"LIMIT", false, func(r quotaRow) string { return amountsText(r.Limit) }},
	{"CONSUMED", false, func(r quotaRow) string { return amountsText(r.Consumed) }},
}

func newQuotaList() *cobra.Command {
	var master, format string
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List quotas and what is consumed of them", Args: cobra.NoArgs,
		Example: "  mosaic quota ls",
		RunE: func(cmd *cobra.Command, _ []string) error {
			roles, err := readRoles(cmd.Context(), master)
			if err != nil {
				return err
			}
			var rows []quotaRow
			for _, r := range roles {
				if r.Guarantee != nil || r.Limit != nil {
					rows = append(rows, quotaRow{Role: r.Role, Guarantee: r.Guarantee, Limit: r.Limit, Consumed: r.Consumed})
				}
			}
			return printRows(cmd.OutOrStdout(), format, rows, quotaColumns)
		},
	}
	masterFlag(cmd, &master)
	outputFlag(cmd, &format)
	return cmd
}

func newQuotaSet() *cobra.Command {
	var master, guarantee, limit string
	var force bool
	cmd := &cobra.Command{
		Use: "set ROLE", Short: "Set what a role is guaranteed and limited to", Args: cobra.ExactArgs(1),
		Long: `Sets what a role is guaranteed and limited to. What is not named stays as it is; --limit '' takes
the limits away. A guarantee beyond what the cluster has, or a limit below what the role
consumes, is refused, but not with --force.`,
		Example: `  mosaic quota set batch --guarantee 'cpus:4;mem:8192' --limit 'cpus:16'
  mosaic quota set batch --limit 'cpus:16;gpus:0'`,
		ValidArgsFunction: completeRoles,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("guarantee") && !cmd.Flags().Changed("limit") {
				return &exitError{exitUsage, fmt.Errorf("what to set is missing: --guarantee, --limit or both")}
			}
			quotas, err := readQuotas(cmd.Context(), master)
			if err != nil {
				return err
			}
			config := &quotav1.QuotaConfig{Role: &args[0], Guarantees: quotas[args[0]].GetGuarantees(), Limits: quotas[args[0]].GetLimits()}
			for name, to := range map[string]*map[string]*mesosv1.Value_Scalar{"guarantee": &config.Guarantees, "limit": &config.Limits} {
				if !cmd.Flags().Changed(name) {
					continue
				}
				q, err := parseAmounts(cmd.Flag(name).Value.String())
				if err != nil {
					return &exitError{exitUsage, fmt.Errorf("--%s: %w", name, err)}
				}
				*to = q.Scalars()
			}
			if err := updateQuotas(cmd.Context(), master, force, config); err != nil {
				return fmt.Errorf("set the quota of role %s: %w", args[0], err)
			}
			warnUnknown(cmd, master, config)
			return nil
		},
	}
	masterFlag(cmd, &master)
	cmd.Flags().StringVar(&guarantee, "guarantee", "", "what is kept for the role, as 'cpus:4;mem:1024' (cores and MB)")
	cmd.Flags().StringVar(&limit, "limit", "", "what the role may have at most; a resource that is not named is unlimited")
	cmd.Flags().BoolVar(&force, "force", false, "even if the cluster does not hold it, or the role has more already")
	return cmd
}

// warnUnknown says which resources of a quota no agent has: a name may be wrong, or its agents are still to come.
func warnUnknown(cmd *cobra.Command, master string, config *quotav1.QuotaConfig) {
	resp, err := masterCall(cmd.Context(), master, &masterv1.Call{Type: masterv1.Call_GET_AGENTS.Enum()})
	if err != nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "mosaic: warning: the quota is set, but whether any agent has its resources is not known: %v\n", err)
		return
	}
	there := map[string]bool{}
	for _, a := range resp.GetGetAgents().GetAgents() {
		for _, r := range a.GetTotalResources() {
			there[r.GetName()] = true
		}
	}
	if len(there) == 0 {
		return // there are no agents yet
	}
	named := map[string]bool{}
	for _, m := range []map[string]*mesosv1.Value_Scalar{config.GetGuarantees(), config.GetLimits()} {
		for name, v := range m {
			if v.GetValue() > 0 { // none of what is not there, as in gpus:0, is sensible
				named[name] = true
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(named)) {
		if there[name] {
			continue
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "mosaic: warning: no agent has %q; agents have %s\n", name, strings.Join(slices.Sorted(maps.Keys(there)), ", "))
	}
}

func newQuotaRemove() *cobra.Command {
	var master string
	cmd := &cobra.Command{
		Use: "rm ROLE...", Aliases: []string{"remove"}, Short: "Take away guarantees and limits of roles", Args: cobra.MinimumNArgs(1),
		Example:           "  mosaic quota rm batch",
		ValidArgsFunction: completeRoles,
		RunE: func(cmd *cobra.Command, args []string) error {
			quotas, err := readQuotas(cmd.Context(), master)
			if err != nil {
				return err
			}
			var configs []*quotav1.QuotaConfig
			for _, role := range args {
				if quotas[role] == nil {
					return fmt.Errorf("role %s has no quota; 'mosaic quota ls' lists them", role)
				}
				configs = append(configs, &quotav1.QuotaConfig{Role: &role})
			}
			if err := updateQuotas(cmd.Context(), master, false, configs...); err != nil {
				return fmt.Errorf("remove the quota of %s: %w", strings.Join(args, ", "), err)
			}
			return nil
		},
	}
	masterFlag(cmd, &master)
	return cmd
}

func updateQuotas(ctx context.Context, addr string, force bool, configs ...*quotav1.QuotaConfig) error {
	_, err := masterCall(ctx, addr, &masterv1.Call{
		Type: masterv1.Call_UPDATE_QUOTA.Enum(), UpdateQuota: &masterv1.Call_UpdateQuota{Force: &force, QuotaConfigs: configs},
	})
	return err
}
