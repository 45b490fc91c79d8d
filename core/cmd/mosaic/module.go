package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"

	"github.com/mosaic-cluster/mosaic/core/modulehost"
	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

// modulesPath is where an agent tells of its modules.
const modulesPath = "/mosaic/v1/modules"

func newModule() *cobra.Command {
	cmd := &cobra.Command{Use: "module", Short: "List modules; write, describe and test them", Args: cobra.NoArgs}
	cmd.AddCommand(newModuleList(), newModuleDescribe(), newModuleNew(), newModuleTest())
	return cmd
}

func newModuleList() *cobra.Command {
	var agent, format string
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list", "status"}, Short: "List the modules of an agent and how they are", Args: cobra.NoArgs,
		Example: "  mosaic module ls -o wide",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), toolTimeout)
			defer cancel()
			data, err := operator.NewAgent(agent).Get(ctx, modulesPath)
			if err != nil {
				return hint(err, agent, "agent")
			}
			var rows []moduleRow
			if err := json.Unmarshal(data, &rows); err != nil {
				return fmt.Errorf("answer of agent %s: %w", agent, err)
			}
			return printRows(cmd.OutOrStdout(), format, rows, moduleColumns)
		},
	}
	agentFlag(cmd, &agent)
	outputFlag(cmd, &format)
	return cmd
}

// describeOptions are those of a host that only asks what a module is.
func describeOptions(o modulehost.Options) modulehost.Options {
	o.Logger = discard()
	return o
}

func newModuleDescribe() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "describe BINARY [ARGUMENT...]", Short: "Show what a module is and wants", Args: cobra.MinimumNArgs(1),
		Long: `Starts a module, asks what it is, and stops it. BINARY is a path, or KIND/NAME for a module of the
bundle or one with a program beside it. The answer is kept by the binary's digest, so that 'mosaic config validate' can check
the module's configuration without running it.`,
		Example: "  mosaic module describe isolator/cgroups\n  mosaic module describe /opt/acme/mosaic-isolator-acme-numa -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := describe(cmd.Context(), args[0], args[1:])
			if err != nil {
				return err
			}
			if format != "table" && format != "wide" {
				data, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(d)
				if err != nil {
					return err
				}
				var v any
				if err := json.Unmarshal(data, &v); err != nil {
					return err
				}
				return printRows(cmd.OutOrStdout(), format, []any{v}, nil)
			}
			printDescription(cmd, d)
			return nil
		},
	}
	outputFlag(cmd, &format)
	return cmd
}

// describe asks one module, by path or as one of the bundle.
func describe(ctx context.Context, binary string, args []string) (*modulev1.DescribeResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	bundle, err := beside("mosaic-modules")
	if err != nil {
		return nil, err
	}
	programs, err := programDirs("")
	if err != nil {
		return nil, err
	}
	m := modulehost.ModuleConfig{}
	if kind, name, ok := strings.Cut(binary, "/"); ok && !strings.HasPrefix(binary, ".") && !strings.HasPrefix(binary, "/") && !strings.Contains(name, "/") {
		m.Kind, m.Name = kind, name
	} else {
		if m.Command, err = filepath.Abs(binary); err != nil {
			return nil, err
		}
		m.Args = args
	}
	d, err := modulehost.Describe(ctx, describeOptions(modulehost.Options{Version: version, Bundle: bundle, ProgramDirs: programs, CacheDir: schemaCacheDir()}), m)
	if wrong := (*modulehost.CompositionError)(nil); errors.As(err, &wrong) && len(wrong.Diagnostics) > 0 {
		first := wrong.Diagnostics[0] // there is no file whose place it could name
		return nil, fmt.Errorf("%s: %s", first.Summary, first.Detail)
	}
	return d, err
}

func printDescription(cmd *cobra.Command, d *modulev1.DescribeResponse) {
	out := cmd.OutOrStdout()
	fmt.Fprintf(out, "%s %s, version %s: %s\n", d.GetKind(), d.GetName(), d.GetVersion(), d.GetDoc())
	list := func(name string, items []string) {
		if len(items) > 0 {
			fmt.Fprintf(out, "  %-12s %s\n", name, strings.Join(items, ", "))
		}
	}
	list("services", d.GetServices())
	list("calls", d.GetCalls())
	list("powers", d.GetPowers())
	list("after", d.GetAfter())
	printSchema(cmd, d.GetSchema(), "  ")
}

func printSchema(cmd *cobra.Command, s *modulev1.Schema, indent string) {
	out := cmd.OutOrStdout()
	for _, a := range s.GetAttributes() {
		text := strings.ToLower(strings.ReplaceAll(a.GetType().String(), "_", " "))
		if a.GetRequired() {
			text += ", required"
		}
		if a.GetDefaultJson() != "" {
			text += ", default " + a.GetDefaultJson()
		}
		fmt.Fprintf(out, "%sconfig       %s (%s): %s\n", indent, a.GetName(), text, a.GetDoc())
	}
	for _, b := range s.GetBlocks() {
		fmt.Fprintf(out, "%sconfig       %s %s{ ... }: %s\n", indent, b.GetName(), strings.Join(append(b.GetLabels(), ""), " "), b.GetDoc())
		printSchema(cmd, b.GetBody(), indent+"  ")
	}
}
