// Command mosaic is the whole program: master, agent, both in one for development, and the tools that talk to them.
//
// The daemons are wired here, in plain constructor calls: nothing inside core knows anything else of core. The tools
// use the public APIs only, as anybody's tools would.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// version is Mosaic's own version; the build sets it.
var version = "0.1.0-dev"

// mesosVersion is what the APIs report: clients of Mesos compare it with the releases they know.
const mesosVersion = "1.11.0"

// Exit codes. Tasks' own codes pass through `mosaic run` unchanged, so ours are the ones shells and container tools
// keep for themselves.
const (
	exitFailed = 1   // a command failed
	exitUsage  = 2   // wrong flags or arguments
	exitRun    = 125 // mosaic run itself failed, not the task
)

// exitError ends the program with a code, saying nothing more if err is nil.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newRoot().ExecuteContext(ctx)
	stop()
	os.Exit(report(err))
}

// report prints an error once and gives the exit code.
func report(err error) int {
	if err == nil {
		return 0
	}
	var exit *exitError
	if errors.As(err, &exit) {
		if exit.err != nil {
			fmt.Fprintln(os.Stderr, "mosaic:", exit.err)
		}
		return exit.code
	}
	fmt.Fprintln(os.Stderr, "mosaic:", err)
	return exitFailed
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "mosaic",
		Short: "A cluster manager: two-level scheduling, bare processes and containers, modules as processes",
		Long: `Mosaic shares the machines of a cluster among many schedulers. It speaks the v1 HTTP
API of Apache Mesos, so frameworks written for Mesos run on it unmodified.

Start with one machine:

  mosaic dev                          a master and an agent, in this terminal
  mosaic run -- echo hello            in another: run a task, see its output`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &exitError{exitUsage, fmt.Errorf("%w\nSee '%s --help'", err, cmd.CommandPath())}
	})
	root.AddGroup(
		&cobra.Group{ID: "start", Title: "Start a cluster:"},
		&cobra.Group{ID: "use", Title: "Use it:"},
		&cobra.Group{ID: "operate", Title: "Operate it:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("start", newDev(), newMaster(), newAgent())
	add("use", newRun(), newTask(), newExplain())
	add("operate", newNode(), newMaintenance(), newFramework(), newRole(), newQuota(), newVolume(), newImage(), newOperation(), newModule(), newConfig(), newVersion())
	checkArguments(root)
	return root
}

// checkArguments lets wrong arguments and unknown commands end as wrong flags do. A command that only groups others
// shows its help, but not for a misspelt one.
func checkArguments(cmd *cobra.Command) {
	if !cmd.Runnable() {
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	cmd.SuggestionsMinimumDistance = 2 // cobra's own choice
	check := cmd.Args
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		err := check(cmd, args)
		var exit *exitError
		if err == nil || errors.As(err, &exit) {
			return err
		}
		if similar := cmd.SuggestionsFor(args0(args)); cmd.HasSubCommands() && len(similar) > 0 {
			err = fmt.Errorf("%w; did you mean %s?", err, strings.Join(similar, " or "))
		}
		return &exitError{exitUsage, fmt.Errorf("%w\nSee '%s --help'", err, cmd.CommandPath())}
	}
	for _, c := range cmd.Commands() {
		checkArguments(c)
	}
}

func args0(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}
