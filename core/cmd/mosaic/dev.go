package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"

	"github.com/mosaic-cluster/mosaic/core/modulehost"
	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

func newDev() *cobra.Command {
	var listenMaster, listenAgent, workDir string
	var insecure bool
	o := &agentOptions{ephemeral: true}
	cmd := &cobra.Command{
		Use: "dev", Short: "Run a whole cluster on this machine, in this terminal", Args: cobra.NoArgs,
		Long: `Runs a master and an agent in one process, with the bundle's modules as its children. It needs no
configuration and works as root and, with what that allows, as an ordinary user. Ctrl-C ends it
and its tasks. Without --work-dir nothing is left behind.`,
		Example: "  mosaic dev\n  mosaic dev --listen 127.0.0.1:6050 --agent-listen 127.0.0.1:6051 --resources 'cpus:2;mem:1024'",
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			begun := time.Now()
			if err := o.configure(cmd); err != nil {
				return err
			}
			if workDir == "" {
				if workDir, err = os.MkdirTemp("", "mosaic-dev-"); err != nil {
					return fmt.Errorf("make a work directory: %w", err)
				}
				defer func() { err = errors.Join(err, os.RemoveAll(workDir)) }()
			}
			log, level, err := newLogger(cmd.ErrOrStderr(), o.logLevel)
			if err != nil {
				return err
			}
			ml, err := listen(listenMaster, "listen")
			if err != nil {
				return err
			}
			defer ml.Close()
			al, err := listen(listenAgent, "agent-listen")
			if err != nil {
				return err
			}
			defer al.Close()
			if err := errors.Join(checkExposure(ml, insecure, "listen"), checkExposure(al, insecure, "agent-listen")); err != nil {
				return err
			}
			return runDev(cmd, *o, ml, al, workDir, begun, log, level)
		},
	}
	f := cmd.Flags()
	f.StringVar(&listenMaster, "listen", defaultMaster, "address of the master, HOST:PORT")
	f.StringVar(&listenAgent, "agent-listen", defaultAgent, "address of the agent, HOST:PORT")
	f.StringVar(&workDir, "work-dir", "", "folder for everything, kept (default: a temporary one, removed)")
	f.BoolVar(&insecure, "insecure", false, "listen on other addresses than loopback without authentication")
	o.shared(cmd, "warn")
	return cmd
}

// runDev runs both daemons; the master outlives the agent, so that the agent's last words are heard.
func runDev(cmd *cobra.Command, o agentOptions, ml, al net.Listener, workDir string, begun time.Time, log *slog.Logger, level *slog.LevelVar) error {
	ctx := cmd.Context()
	o.master, o.workDir = ml.Addr().String(), filepath.Join(workDir, "agent")
	masterCtx, stopMaster := context.WithCancel(context.WithoutCancel(ctx))
	defer stopMaster()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := runMaster(masterCtx, masterOptions{workDir: filepath.Join(workDir, "master"), cluster: "dev", settings: o.composition.Master, composition: o.composition}, ml, log.With("daemon", "master"), level)
		if err == nil && gctx.Err() == nil {
			err = errors.New("the master ended")
		}
		return err
	})
	g.Go(func() error {
		defer stopMaster()
		return runAgent(gctx, o, al, log.With("daemon", "agent"), level, func(host *modulehost.Host) {
			g.Go(func() error {
				welcome(gctx, cmd, ml.Addr().String(), al.Addr().String(), workDir, begun, host)
				return nil
			})
		})
	})
	return g.Wait()
}

// welcome waits until tasks can be run and says what to type next.
func welcome(ctx context.Context, cmd *cobra.Command, master, agent, workDir string, begun time.Time, host *modulehost.Host) {
	m := operator.NewMaster(master)
	for {
		resp, err := m.Call(ctx, &masterv1.Call{Type: masterv1.Call_GET_AGENTS.Enum()})
		if err == nil && len(resp.GetGetAgents().GetAgents()) > 0 {
			a := resp.GetGetAgents().GetAgents()[0]
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "Mosaic %s is ready after %.1f s: %s cpus and %s MB of memory to share.\n\n", version, time.Since(begun).Seconds(),
				number(scalar(a.GetTotalResources(), "cpus")), number(scalar(a.GetTotalResources(), "mem")))
			fmt.Fprintf(out, "  master   http://%s\n  agent    http://%s\n  files    %s\n", master, agent, workDir)
			for i, s := range moduleRows(host.Status()) {
				label := "modules"
				if i > 0 {
					label = ""
				}
				fmt.Fprintf(out, "  %-8s %s %s: %s\n", label, s.Kind, s.Name, s.State)
			}
			if os.Geteuid() != 0 {
				fmt.Fprintln(out, "\nNot root: tasks run as you, without limits and namespaces of their own.")
			}
			prefix := ""
			if master != defaultMaster {
				prefix = "export MOSAIC_MASTER=" + master + " MOSAIC_AGENT=" + agent + "\n  "
			}
			fmt.Fprintf(out, "\nIn another terminal:\n\n  %smosaic run -- echo hello\n  mosaic run --detach --name web -- sleep 1000\n  mosaic task ls\n\nCtrl-C ends the cluster and its tasks.\n", prefix)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}
