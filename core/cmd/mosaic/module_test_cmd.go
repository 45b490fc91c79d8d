package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mosaic-cluster/mosaic/core/modulehost"
	"github.com/mosaic-cluster/mosaic/sdk/authorizer/authorizertest"
	"github.com/mosaic-cluster/mosaic/sdk/isolator/isolatortest"
	"github.com/mosaic-cluster/mosaic/sdk/kit"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
	"github.com/mosaic-cluster/mosaic/sdk/scaffold"
)

// buildTimeout is how long building a module may take: the SDK is compiled with it the first time.
const buildTimeout = 10 * time.Minute

func newModuleTest() *cobra.Command {
	var configFile, level, format string
	cmd := &cobra.Command{
		Use: "test [BINARY|FOLDER|KIND/NAME] [-- ARGUMENT...]", Short: "Run the conformance kit against a module", Args: cobra.ArbitraryArgs,
		Long: `Starts a module as a host does and holds it to its contract, case by case. It needs no cluster.

The module is an executable in any language with its arguments; or a folder that 'mosaic module new'
wrote, which is built first; or KIND/NAME for a module of the bundle. Without an argument it is the
module of the working directory, or the only one in the folders below.

Levels: core is what every launch relies on; full adds repetition, wrong order, crashes, hostile
input and numbers; stress adds long runs whose result is figures. Isolators and authorizers have
a kit of their own; for the other kinds there are the cases that hold for every module.

As root the cases use real cgroups. Exits 0 if no case failed.`,
		Example: "  mosaic module test\n  mosaic module test ./mosaic-isolator-acme --level stress -o json\n  mosaic module test isolator/cgroups",
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := kit.ParseLevel(level)
			if err != nil {
				return &exitError{exitUsage, err}
			}
			program, done, err := programUnderTest(cmd, args)
			if err != nil {
				return err
			}
			defer done()
			return testModule(cmd, program, configFile, l, format)
		},
	}
	cmd.Flags().StringVar(&configFile, "config", "", "configuration for the module: a composition in HCL with its block, or its document in JSON")
	cmd.Flags().StringVar(&level, "level", kit.Full.String(), "how much to test: core, full or stress")
	_ = cmd.RegisterFlagCompletionFunc("level", cobra.FixedCompletions([]string{"core", "full", "stress"}, cobra.ShellCompDirectiveNoFileComp))
	outputFlag(cmd, &format)
	return cmd
}

// programUnderTest finds what to test and builds it if it must be; done removes what was built.
func programUnderTest(cmd *cobra.Command, args []string) (program kit.Program, done func(), err error) {
	nothing := func() {}
	target := "."
	if n := cmd.ArgsLenAtDash(); len(args) > 0 && n != 0 {
		target, args = args[0], args[1:]
	}
	info, err := os.Stat(target)
	switch {
	case err == nil && !info.IsDir():
		return kit.Program{Path: target, Args: args}, nothing, nil
	case err == nil:
		return buildFolder(cmd, target)
	case len(args) == 0 && strings.Count(target, "/") == 1 && !strings.HasPrefix(target, "."):
		own, ownErr := beside("mosaic-" + strings.NewReplacer("/", "-", "_", "-").Replace(target))
		if ownErr == nil {
			return kit.Program{Path: own}, nothing, nil
		}
		bundle, bundleErr := beside("mosaic-modules")
		if bundleErr != nil {
			return kit.Program{}, nil, bundleErr
		}
		dirs, err := programDirs("")
		if err != nil {
			return kit.Program{}, nil, err
		}
		kind, name, _ := strings.Cut(target, "/")
		for _, dir := range dirs {
			own := filepath.Join(dir, modulehost.ProgramName(kind, name))
			if _, err := os.Stat(own); err == nil {
				return kit.Program{Path: own}, nothing, nil
			}
		}
		return kit.Program{Path: bundle, Args: []string{target}}, nothing, nil
	default:
		return kit.Program{}, nil, fmt.Errorf("find the module: %w", err)
	}
}

func buildFolder(cmd *cobra.Command, dir string) (_ kit.Program, _ func(), err error) {
	folder, err := scaffold.FindHere(dir)
	if err != nil {
		return kit.Program{}, nil, err
	}
	out, err := os.MkdirTemp("", "mosaic-module-")
	if err != nil {
		return kit.Program{}, nil, fmt.Errorf("make a folder for the binary: %w", err)
	}
	done := func() { os.RemoveAll(out) }
	defer func() {
		if err != nil {
			done()
		}
	}()
	if err := os.Chmod(out, 0o755); err != nil { // a case runs the module as another user
		return kit.Program{}, nil, fmt.Errorf("make a folder for the binary: %w", err)
	}
	if folder.Lang == "go" {
		fmt.Fprintf(cmd.ErrOrStderr(), "building %s ...\n", folder.Dir)
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), buildTimeout)
	defer cancel()
	path, err := folder.Build(ctx, out, cmd.ErrOrStderr())
	if err != nil {
		return kit.Program{}, nil, err
	}
	return kit.Program{Path: path}, done, nil
}

// testModule runs the kit of the module's kind and prints what came of it.
func testModule(cmd *cobra.Command, program kit.Program, configFile string, level kit.Level, format string) error {
	d, err := askModule(cmd.Context(), program, func(ctx context.Context, c modulev1.ModuleClient) (*modulev1.DescribeResponse, error) {
		return c.Describe(ctx, &modulev1.DescribeRequest{HostVersion: version})
	})
	if err != nil {
		return fmt.Errorf("ask the module what it is: %w", err)
	}
	document, err := documentFor(cmd.Context(), configFile, program, d)
	if err != nil {
		return err
	}
	if err := tryConfiguration(cmd.Context(), program, d, document); err != nil {
		return err
	}
	cases, claim := casesFor(d, program.Dial, document, level)
	if format != "table" && format != "wide" && format != "json" && format != "yaml" {
		return printRows[kit.Result](cmd.OutOrStdout(), format, nil, nil)
	}
	table := format == "table" || format == "wide"
	if table {
		fmt.Fprintf(cmd.OutOrStdout(), "%s %s, version %s, against %s, level %s\n\n",
			d.GetKind(), d.GetName(), d.GetVersion(), kit.Kinds()[d.GetKind()], level)
	}
	r := kit.NewReporter(cmd.Context(), cases, func(res kit.Result) {
		if table {
			printResult(cmd.OutOrStdout(), res, format == "wide")
		}
	})
	kit.Run(r, level, cases)
	report := kit.Report{
		Kind: d.GetKind(), Name: d.GetName(), Version: d.GetVersion(), Contract: kit.Kinds()[d.GetKind()], Level: level.String(),
		Results: r.Results(),
	}
	report.Finish(claim)
	if err := cmd.Context().Err(); err != nil {
		return fmt.Errorf("run the kit: %w", err)
	}
	switch format {
	case "json":
		if err := printReport(cmd.OutOrStdout(), report); err != nil {
			return err
		}
	case "yaml":
		if err := printYAML(cmd.OutOrStdout(), report); err != nil {
			return err
		}
	default:
		printSummary(cmd.OutOrStdout(), report)
	}
	if !report.Passed {
		return &exitError{code: exitFailed}
	}
	return nil
}

// casesFor gives the kit of a kind, and what may be said of a module that passes.
func casesFor(d *modulev1.DescribeResponse, dial kit.Dial, document string, level kit.Level) (cases []kit.Case, claim string) {
	switch d.GetKind() {
	case "isolator":
		return isolatortest.Cases(dial, isolatortest.Config(document)), fmt.Sprintf("conformant to isolator v1, %s", level)
	case "authorizer":
		return authorizertest.Cases(dial, authorizertest.Config(document)), fmt.Sprintf("conformant to authorizer v1, %s", level)
	}
	s := kit.Subject{Dial: dial, Config: document}
	return s.Cases(), fmt.Sprintf("conformant to module v1, %s; there is no kit for %s's own calls", level, strings.ReplaceAll(d.GetKind(), "_", " "))
}

// askModule starts an instance for one question.
func askModule[R any](ctx context.Context, program kit.Program, ask func(context.Context, modulev1.ModuleClient) (R, error)) (R, error) {
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	var none R
	conn, stop, err := program.Dial(ctx)
	if err != nil {
		return none, err
	}
	defer stop()
	return ask(ctx, modulev1.NewModuleClient(conn))
}

// tryConfiguration tells once, instead of in every case, that the module needs a configuration that the kit cannot
// guess.
func tryConfiguration(ctx context.Context, program kit.Program, d *modulev1.DescribeResponse, document string) error {
	if document == "" {
		document = kit.Document(d.GetSchema())
	}
	r, err := askModule(ctx, program, func(ctx context.Context, c modulev1.ModuleClient) (*modulev1.ConfigureResponse, error) {
		return c.Configure(ctx, &modulev1.ConfigureRequest{ConfigJson: document, Node: &modulev1.NodeFacts{Root: os.Geteuid() == 0}, DryRun: true})
	})
	if err != nil || len(r.GetErrors()) == 0 {
		return nil // what is wrong then is a case's to tell
	}
	var list []error
	for _, e := range r.GetErrors() {
		list = append(list, fmt.Errorf("  %s: %s", e.GetPath(), e.GetMessage()))
	}
	return fmt.Errorf("the module refuses the configuration %s:\n%w\nGive it one with --config", document, errors.Join(list...))
}

func printResult(w io.Writer, r kit.Result, wide bool) {
	fmt.Fprintf(w, "%-4s  %-6s  %s", r.Result, r.Level, r.Case)
	if wide {
		fmt.Fprintf(w, "  (%.2fs)", r.Seconds)
	}
	fmt.Fprintln(w)
	for _, reason := range r.Reasons {
		if r.Result != kit.Passed || wide {
			fmt.Fprintf(w, "              %s\n", strings.ReplaceAll(reason, "\n", "\n              "))
		}
	}
	for _, f := range r.Figures {
		if r.Level == kit.Stress.String() || wide {
			fmt.Fprintf(w, "              %s: %.4g %s\n", f.Name, f.Value, f.Unit)
		}
	}
}

func printSummary(w io.Writer, r kit.Report) {
	count := func(result string) int {
		n := 0
		for _, c := range r.Results {
			if c.Result == result {
				n++
			}
		}
		return n
	}
	fmt.Fprintf(w, "\n%d passed, %d failed, %d skipped\n", count(kit.Passed), count(kit.Failed), count(kit.Skipped))
	if r.Passed {
		fmt.Fprintf(w, "%s %s: %s\n", r.Kind, r.Name, r.Claim)
		return
	}
	var failed []string
	for _, c := range r.Results {
		if c.Result == kit.Failed {
			failed = append(failed, c.Case)
		}
	}
	fmt.Fprintf(w, "%s %s is not conformant: %s\n", r.Kind, r.Name, strings.Join(failed, ", "))
}

// documentFor reads --config: the module's JSON document, or a composition in HCL.
func documentFor(ctx context.Context, file string, program kit.Program, d *modulev1.DescribeResponse) (string, error) {
	if file == "" {
		return "", nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read the module's configuration: %w", err)
	}
	if filepath.Ext(file) == ".json" && !strings.HasSuffix(file, ".hcl.json") {
		return string(bytes.TrimSpace(data)), nil
	}
	return documentFromHCL(ctx, file, program, d)
}

// printReport writes a report as one JSON object.
func printReport(w io.Writer, r kit.Report) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}
