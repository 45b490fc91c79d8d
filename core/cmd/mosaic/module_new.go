package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mosaic-cluster/mosaic/sdk/kit"
	"github.com/mosaic-cluster/mosaic/sdk/scaffold"
)

func newModuleNew() *cobra.Command {
	var lang, dir, sdk, path string
	kinds := slices.Sorted(maps.Keys(kit.Kinds()))
	cmd := &cobra.Command{
		Use: "new KIND NAME", Short: "Write a new module that passes the conformance kit", Args: cobra.ExactArgs(2),
		Long: `Writes a module into a folder of its name: source, tests, README, Makefile, Dockerfile, CI and the
block that an operator adds to a composition. It builds and passes 'mosaic module test' as it is.

KIND is one of ` + strings.Join(kinds, ", ") + `. NAME is lower_snake_case.

A Go module uses the SDK of the checkout of Mosaic that --sdk names, or that the working directory
or this program lies in; otherwise the published one of this program's version.`,
		Example:   "  mosaic module new isolator demo && mosaic module test\n  mosaic module new authorizer acme --lang python --dir ./acme",
		ValidArgs: kinds,
		RunE: func(cmd *cobra.Command, args []string) error {
			o := scaffold.Options{Kind: strings.ReplaceAll(args[0], "-", "_"), Name: args[1], Lang: lang, Dir: dir, ModulePath: path}
			if o.Dir == "" {
				o.Dir = o.Name
			}
			if err := findSDK(&o, sdk); err != nil {
				return err
			}
			files, err := scaffold.New(o)
			if errors.Is(err, scaffold.ErrExists) {
				return fmt.Errorf("%w; say where else with --dir", err)
			}
			if err != nil {
				return &exitError{exitUsage, err}
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "Wrote the %s %q to %s:\n", strings.ReplaceAll(o.Kind, "_", " "), o.Name, o.Dir)
			for _, f := range files {
				fmt.Fprintf(out, "  %s\n", f)
			}
			fmt.Fprintf(out, "\nNow:\n  mosaic module test %s      # builds it and runs the conformance kit\n", o.Dir)
			return nil
		},
	}
	cmd.Flags().StringVar(&lang, "lang", "go", "language: go or python")
	cmd.Flags().StringVar(&dir, "dir", "", "folder to write (default: NAME)")
	cmd.Flags().StringVar(&sdk, "sdk", "", "checkout of Mosaic whose SDK a Go module uses")
	cmd.Flags().StringVar(&path, "module", "", "path of the Go module (default: example.com/ and the binary's name)")
	_ = cmd.RegisterFlagCompletionFunc("lang", cobra.FixedCompletions([]string{"go", "python"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.MarkFlagDirname("dir")
	_ = cmd.MarkFlagDirname("sdk")
	return cmd
}

// findSDK says where a Go module gets its SDK from.
func findSDK(o *scaffold.Options, named string) error {
	if o.Lang != "go" {
		return nil
	}
	o.Version = "v" + strings.TrimPrefix(version, "v")
	if named != "" {
		dir, err := filepath.Abs(named)
		if err != nil {
			return err
		}
		if o.Checkout = scaffold.Checkout(dir); o.Checkout == "" {
			return &exitError{exitUsage, fmt.Errorf("--sdk %s: want a checkout of Mosaic", named)}
		}
		return nil
	}
	var from []string
	if wd, err := os.Getwd(); err == nil {
		from = append(from, wd)
	}
	if self, err := os.Executable(); err == nil {
		if self, err = filepath.EvalSymlinks(self); err == nil {
			from = append(from, filepath.Dir(self))
		}
	}
	o.Checkout = scaffold.Checkout(from...)
	return nil
}
