package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/mosaic-cluster/mosaic/core/config"
)

func newConfig() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Check configurations", Args: cobra.NoArgs}
	cmd.AddCommand(newConfigValidate())
	return cmd
}

func newConfigValidate() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "validate FILE|FOLDER", Short: "Say all that is wrong with a configuration", Args: cobra.ExactArgs(1),
		Long: `Checks settings and composition and says all that is wrong at once, with file, line and column. It needs
no running agent and runs no vendor's code: a vendor's module is checked against what it said of
itself when it was last run or described. Exits 0 if nothing but warnings was found.`,
		Example: "  mosaic config validate /etc/mosaic",
		RunE: func(cmd *cobra.Command, args []string) error {
			var diags config.Diagnostics
			c, err := config.Load(args[0])
			if err != nil && !errors.As(err, &diags) {
				return err
			}
			if c != nil {
				more, err := diagnose(cmd.Context(), c)
				if err != nil {
					return err
				}
				diags = config.Merge(diags, more)
			}
			switch format {
			case "json", "yaml":
				if err := printRows(cmd.OutOrStdout(), format, []config.Diagnostic(diags), nil); err != nil {
					return err
				}
			default:
				for _, d := range diags {
					fmt.Fprintln(cmd.ErrOrStderr(), d.String())
				}
			}
			if diags.HasErrors() {
				return &exitError{code: exitFailed}
			}
			if format == "table" || format == "wide" {
				fmt.Fprintf(cmd.OutOrStdout(), "%s is valid\n", args[0])
			}
			return nil
		},
	}
	outputFlag(cmd, &format)
	return cmd
}
