package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"

	"github.com/mosaic-cluster/mosaic/sdk/operator"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// explanation is what the master answers: why there are no more offers, and what would make a task fit.
type explanation struct {
	Agents int `json:"agents"`
	Asked  []struct {
		FrameworkID string              `json:"framework_id"`
		Role        string              `json:"role"`
		Share       float64             `json:"share"`
		Turn        int                 `json:"turn"`
		Offerable   int                 `json:"offerable"`
		Examined    bool                `json:"examined"`
		Reasons     []explanationReason `json:"reasons"`
	} `json:"asked"`
	More   int `json:"more"`
	Quotas []struct {
		Role       string               `json:"role"`
		Guarantees resources.Quantities `json:"guarantees"`
		Limits     resources.Quantities `json:"limits"`
		Consumed   resources.Quantities `json:"consumed"`
	} `json:"quotas"`
	Need    resources.Quantities `json:"need"`
	Fits    int                  `json:"fits"`
	FitsOn  []string             `json:"fits_on"`
	Closest []struct {
		Text  string `json:"text"`
		Steps []struct {
			Code string `json:"code"`
			Text string `json:"text"`
		} `json:"steps"`
		Role     string `json:"role"`
		AgentID  string `json:"agent_id"`
		Hostname string `json:"hostname"`
		Agents   int    `json:"agents"`
	} `json:"closest"`
}

type explanationReason struct {
	Code     string    `json:"code"`
	Text     string    `json:"text"`
	Agents   int       `json:"agents"`
	Only     int       `json:"only"`
	Examples []string  `json:"examples"`
	Until    time.Time `json:"until"`
	Holders  []struct {
		FrameworkID string               `json:"framework_id"`
		Role        string               `json:"role"`
		Agents      int                  `json:"agents"`
		Resources   resources.Quantities `json:"resources"`
	} `json:"holders"`
}

var reasonColumns = []column[explanationReason]{
	{"AGENTS", false, func(r explanationReason) string { return strconv.Itoa(r.Agents) }},
	{"ONLY", true, func(r explanationReason) string { return strconv.Itoa(r.Only) }},
	{"CODE", true, func(r explanationReason) string { return r.Code }},
	{"UNTIL", false, func(r explanationReason) string { return untilText(r.Until) }},
	{"REASON", false, func(r explanationReason) string { return r.Text }},
	{"FOR EXAMPLE", false, func(r explanationReason) string { return examplesText(r.Examples, r.Agents) }},
}

// untilText says in how long something ends by itself.
func untilText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return "in " + max(0, time.Until(t)).Round(time.Second).String()
}

// examplesText names some of so many.
func examplesText(examples []string, all int) string {
	text := strings.Join(examples, ", ")
	if len(examples) > 0 && all > len(examples) {
		text += ", ..."
	}
	return text
}

func newExplain() *cobra.Command {
	cmd := &cobra.Command{
		Use: "explain", Short: "Say why something is not offered, or does not run", Args: cobra.NoArgs,
		Long: `Says why a framework or a role is not offered agents: every reason, for how many agents it holds
and for which. For a task it says where it would fit, and what is the smallest change that would
make it fit.`,
	}
	cmd.AddCommand(newExplainFramework(), newExplainRole(), newExplainTask())
	return cmd
}

// explainOptions are the flags that all three have.
type explainOptions struct {
	master, format string
	examples       int
}

func (o *explainOptions) flags(cmd *cobra.Command) {
	masterFlag(cmd, &o.master)
	outputFlag(cmd, &o.format)
	cmd.Flags().IntVar(&o.examples, "examples", 3, "how many agents to name for each reason")
}

func newExplainFramework() *cobra.Command {
	o := &explainOptions{}
	var role string
	cmd := &cobra.Command{
		Use: "framework FRAMEWORK", Short: "Say why a framework is not offered more", Args: cobra.ExactArgs(1),
		Example:           "  mosaic explain framework marathon\n  mosaic explain framework marathon --role web -o wide",
		ValidArgsFunction: completeFrom(frameworkNames, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			names, err := readNames(cmd.Context(), o.master)
			if err != nil {
				return err
			}
			id, err := names.find(args[0])
			if err != nil {
				return err
			}
			return o.explain(cmd, names, operator.Question{Framework: id, Role: role})
		},
	}
	o.flags(cmd)
	cmd.Flags().StringVar(&role, "role", "", "in this role only")
	return cmd
}

func newExplainRole() *cobra.Command {
	o := &explainOptions{}
	cmd := &cobra.Command{
		Use: "role ROLE", Short: "Say why the frameworks of a role are not offered more", Args: cobra.ExactArgs(1),
		Example:           "  mosaic explain role web",
		ValidArgsFunction: completeRoles,
		RunE: func(cmd *cobra.Command, args []string) error {
			names, err := readNames(cmd.Context(), o.master)
			if err != nil {
				return err
			}
			return o.explain(cmd, names, operator.Question{Role: args[0]})
		},
	}
	o.flags(cmd)
	return cmd
}

func newExplainTask() *cobra.Command {
	o := &explainOptions{}
	var role, framework string
	var cpus, mem, disk, gpus float64
	var ports int
	cmd := &cobra.Command{
		Use: "task [TASK]", Short: "Say where a task would fit, or what keeps it from fitting", Args: cobra.MaximumNArgs(1),
		Long: `Says where a task would fit, or what is the smallest change that would make it fit. The task is one
that the master knows, or one that flags describe; flags win over what the task has.`,
		Example: `  mosaic explain task --cpus 8 --mem 16384 --role batch
  mosaic explain task web-1`,
		ValidArgsFunction: completeTasks,
		RunE: func(cmd *cobra.Command, args []string) error {
			names, err := readNames(cmd.Context(), o.master)
			if err != nil {
				return err
			}
			need, q := resources.Quantities{}, operator.Question{Role: role, Ports: ports}
			if framework != "" {
				if q.Framework, err = names.find(framework); err != nil {
					return err
				}
			}
			if len(args) > 0 {
				c, err := readCluster(cmd.Context(), o.master)
				if err != nil {
					return err
				}
				t, err := c.findTask(args[0], q.Framework)
				if err != nil {
					return err
				}
				if o.format == "table" || o.format == "wide" {
					fmt.Fprintln(cmd.OutOrStdout(), taskLine(newTaskRow(c, t)))
				}
				need = ask(&q, t)
				if framework == "" && !c.frames[q.Framework].GetActive() {
					q.Framework = "" // one that has gone, as that of a detached task, will not run another
					if q.Role == "*" {
						q.Role = "" // whoever comes is in this one
					}
				}
			}
			for name, v := range map[string]float64{"cpus": cpus, "mem": mem, "disk": disk, "gpus": gpus} {
				if cmd.Flags().Changed(name) {
					if !(v >= 0 && v <= maxAmount) {
						return &exitError{exitUsage, fmt.Errorf("--%s: got %v, want 0 or more", name, v)}
					}
					need[name] = v
				}
			}
			for name, v := range need {
				if v == 0 {
					delete(need, name)
				}
			}
			if len(need) == 0 && q.Ports == 0 {
				return &exitError{exitUsage, errors.New("what the task needs is missing: name a task, or say --cpus, --mem or another resource")}
			}
			q.Need = amountsText(need)
			return o.explain(cmd, names, q)
		},
	}
	o.flags(cmd)
	f := cmd.Flags()
	f.Float64Var(&cpus, "cpus", 0, "cores that it needs")
	f.Float64Var(&mem, "mem", 0, "memory that it needs, in MB")
	f.Float64Var(&disk, "disk", 0, "disk that it needs, in MB")
	f.Float64Var(&gpus, "gpus", 0, "gpus that it needs")
	f.IntVar(&ports, "ports", 0, "how many ports it needs")
	f.StringVar(&role, "role", "", "role whose share of the cluster it uses")
	f.StringVar(&framework, "framework", "", "id or name of the framework that would run it (default: any)")
	_ = cmd.RegisterFlagCompletionFunc("framework", completeFrom(frameworkNames, true))
	_ = cmd.RegisterFlagCompletionFunc("role", completeRoles)
	return cmd
}

// taskLine says how a task is that somebody asks about.
func taskLine(r taskRow) string {
	text := fmt.Sprintf("task %s is %s on %s", r.ID, r.State, cmp.Or(r.Hostname, r.AgentID, "no agent"))
	if message, _, _ := strings.Cut(r.Message, "\n"); message != "" {
		text += ": " + message
	}
	return text + "\nAnother one like it:\n"
}

// ask completes a question with what a task has, and returns what it needs.
func ask(q *operator.Question, t *mesosv1.Task) resources.Quantities {
	q.Framework = cmp.Or(q.Framework, t.GetFrameworkId().GetValue())
	set := resources.New(t.GetResources()...)
	for _, r := range t.GetResources() {
		q.Role = cmp.Or(q.Role, r.GetAllocationInfo().GetRole())
	}
	if q.Ports == 0 {
		q.Ports = int(min(set.Ranges("ports").Count(), math.MaxUint16))
	}
	return set.Quantities()
}

// explain asks and prints the answer.
func (o *explainOptions) explain(cmd *cobra.Command, names frameworkIDs, q operator.Question) error {
	if o.examples < 0 {
		return &exitError{exitUsage, fmt.Errorf("--examples: got %d, want 0 or more", o.examples)}
	}
	q.Examples = o.examples
	ctx, cancel := context.WithTimeout(cmd.Context(), toolTimeout)
	defer cancel()
	data, err := operator.NewMaster(o.master).Explain(ctx, q)
	if err != nil {
		return hint(err, o.master, "master")
	}
	switch o.format {
	case "json":
		var indented bytes.Buffer
		if err := json.Indent(&indented, data, "", "  "); err != nil {
			return fmt.Errorf("answer of the master at %s: %w", o.master, err)
		}
		fmt.Fprintln(cmd.OutOrStdout(), indented.String())
		return nil
	case "yaml":
		return printYAML(cmd.OutOrStdout(), json.RawMessage(data))
	}
	var x explanation
	if err := json.Unmarshal(data, &x); err != nil {
		return fmt.Errorf("answer of the master at %s: %w", o.master, err)
	}
	return x.print(cmd.OutOrStdout(), o.format, names)
}

// print writes an explanation for people.
func (x *explanation) print(w io.Writer, format string, names frameworkIDs) error {
	for i, s := range x.Asked {
		if i > 0 {
			fmt.Fprintln(w)
		}
		line := "any framework"
		if s.FrameworkID != "" {
			line = "framework " + names.text(s.FrameworkID)
		}
		line += fmt.Sprintf(" in role %s: has %s %% of the cluster", s.Role, number(math.Round(s.Share*1000)/10))
		if s.Turn > 0 {
			line += ", is number " + strconv.Itoa(s.Turn) + " in line"
		}
		if s.Examined {
			line += fmt.Sprintf(", can be offered %d of %s", s.Offerable, count(x.Agents, "agent"))
		}
		fmt.Fprintln(w, line)
		if len(s.Reasons) == 0 {
			continue
		}
		if err := printRows(w, format, s.Reasons, reasonColumns); err != nil {
			return err
		}
		for _, r := range s.Reasons {
			for _, h := range r.Holders {
				fmt.Fprintf(w, "  %s are held by %s in role %s, on %s\n", amountsText(h.Resources), names.text(h.FrameworkID), h.Role, count(h.Agents, "agent"))
			}
		}
	}
	if x.More > 0 {
		fmt.Fprintf(w, "\n%s more in this question: ask about one\n", count(x.More, "framework"))
	}
	for _, q := range x.Quotas {
		fmt.Fprintf(w, "\nquota of role %s: guarantee %s, limit %s, consumed %s\n",
			q.Role, orNone(q.Guarantees), orNone(q.Limits), orNone(q.Consumed))
	}
	if len(x.Need) == 0 {
		return nil
	}
	fmt.Fprintf(w, "\na task of %s fits on %d of %s", amountsText(x.Need), x.Fits, count(x.Agents, "agent"))
	if x.Fits > 0 {
		fmt.Fprintf(w, ": %s\n", examplesText(x.FitsOn, x.Fits))
		return nil
	}
	fmt.Fprintln(w)
	for i, c := range x.Closest {
		head := "the smallest change:"
		if i > 0 {
			head = "or:"
		}
		where := cmp.Or(c.Hostname, c.AgentID)
		if c.Agents > 1 {
			where += fmt.Sprintf(" and %d more", c.Agents-1)
		}
		fmt.Fprintf(w, "%s %s (agent %s)\n", head, c.Text, where)
	}
	return nil
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.Itoa(n) + " " + what + "s"
}

func orNone(q resources.Quantities) string { return cmp.Or(amountsText(q), "none") }

// line is an explanation of a need in one line.
func (x *explanation) line() string {
	if x.Fits > 0 {
		turn := 0
		for _, s := range x.Asked {
			turn = max(turn, s.Turn)
		}
		if turn > 1 {
			return fmt.Sprintf("it fits on %s, with %s in line before it", count(x.Fits, "agent"), count(turn-1, "framework"))
		}
		return fmt.Sprintf("it fits on %s and is next in line", count(x.Fits, "agent"))
	}
	if len(x.Closest) > 0 {
		c := x.Closest[0]
		var texts []string
		for _, s := range c.Steps {
			// Who waits has refused what was too little, and takes the next offer that is enough.
			if s.Code != "filter" {
				texts = append(texts, s.Text)
			}
		}
		if len(texts) == 0 && len(c.Steps) > 0 {
			return "the next offer will do"
		}
		return fmt.Sprintf("it fits nowhere now; the smallest change: %s (agent %s)", strings.Join(texts, "; and "), cmp.Or(c.Hostname, c.AgentID))
	}
	for _, s := range x.Asked {
		for _, r := range s.Reasons {
			return r.Text
		}
	}
	return ""
}

// whyWaiting asks the master why a framework waits for an offer. It is empty where the master cannot say.
func whyWaiting(ctx context.Context, master string, q operator.Question) string {
	data, err := operator.NewMaster(master).Explain(ctx, q)
	var x explanation
	if err != nil || json.Unmarshal(data, &x) != nil {
		return "" // an explanation more or less
	}
	return x.line()
}

// frameworkIDs are names of frameworks by their ids.
type frameworkIDs map[string]string

// readNames reads the names of frameworks that have not ended.
func readNames(ctx context.Context, addr string) (frameworkIDs, error) {
	resp, err := masterCall(ctx, addr, &masterv1.Call{Type: masterv1.Call_GET_FRAMEWORKS.Enum()})
	if err != nil {
		return nil, err
	}
	names := frameworkIDs{}
	for _, f := range resp.GetGetFrameworks().GetFrameworks() {
		names[f.GetFrameworkInfo().GetId().GetValue()] = f.GetFrameworkInfo().GetName()
	}
	return names, nil
}

// text names a framework by name and id.
func (n frameworkIDs) text(id string) string {
	if name := n[id]; name != "" {
		return name + " (" + id + ")"
	}
	return id
}

// find looks a framework up by id, by name, or by the end or the beginning of its id.
func (n frameworkIDs) find(text string) (string, error) {
	if _, ok := n[text]; ok {
		return text, nil
	}
	var byName, byEnd, byStart []string
	for id, name := range n {
		switch {
		case name == text:
			byName = append(byName, id)
		case strings.HasSuffix(id, "-"+text):
			byEnd = append(byEnd, id)
		case strings.HasPrefix(id, text):
			byStart = append(byStart, id)
		}
	}
	for _, found := range [][]string{byName, byEnd, byStart} {
		if len(found) == 1 {
			return found[0], nil
		}
		if len(found) > 1 {
			slices.Sort(found)
			return "", fmt.Errorf("framework %q could be any of:\n  %s\nName one by its id", text, strings.Join(found, "\n  "))
		}
	}
	return "", fmt.Errorf("no framework %q; 'mosaic framework ls' lists them", text)
}
