package main

import (
	"fmt"

	"github.com/spf13/cobra"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
)

func newFrameworkTeardown() *cobra.Command {
	var master string
	var yes bool
	cmd := &cobra.Command{
		Use: "teardown FRAMEWORK", Short: "End a framework and kill all its tasks", Args: cobra.ExactArgs(1),
		Long: `Ends a framework: its tasks are killed, its scheduler is disconnected and cannot come back under
this id. This cannot be undone, so it wants --yes.`,
		Example:           "  mosaic framework teardown marathon --yes",
		ValidArgsFunction: completeFrom(frameworkNames, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !yes {
				return &exitError{exitUsage, fmt.Errorf("the end of framework %s cannot be undone: say --yes", args[0])}
			}
			names, err := readNames(cmd.Context(), master)
			if err != nil {
				return err
			}
			id, err := names.find(args[0])
			if err != nil {
				return err
			}
			_, err = masterCall(cmd.Context(), master, &masterv1.Call{
				Type: masterv1.Call_TEARDOWN.Enum(), Teardown: &masterv1.Call_Teardown{FrameworkId: &mesosv1.FrameworkID{Value: &id}},
			})
			if err != nil {
				return fmt.Errorf("tear down framework %s: %w", names.text(id), err)
			}
			fmt.Fprintln(cmd.ErrOrStderr(), "ended", names.text(id))
			return nil
		},
	}
	masterFlag(cmd, &master)
	cmd.Flags().BoolVar(&yes, "yes", false, "I mean it")
	return cmd
}
