// Package cluster starts real masters and agents from the built binaries, on free loopback ports and in a cgroup
// subtree of their own, for end-to-end tests and benchmarks.
//
// It promises to leave nothing behind: Stop ends the daemons, kills what still runs in its cgroups, and takes away what
// containers have left on the machine: cgroups, mounts, networks, the agent's folder in memory.
// It knows the programs by their command lines, the public APIs and the places that their documents name.
package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"

	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

// Options say what to start.
type Options struct {
	// Bin is the folder of the built programs. Required.
	Bin string
	// Dir is the cluster's own folder; a short path, since sockets lie below it. Required.
	Dir string
	// Name makes the cgroup root unique. Required.
	Name string
	// Resources of the agent; default cpus:4;mem:4096;disk:4096;ports:[31000-32000].
	Resources string
	// Composition is HCL for the agent; default is the bundle's.
	Composition string
	// Dev runs master and agent as one `mosaic dev`.
	Dev bool
	// MasterArgs and AgentArgs are further arguments.
	MasterArgs, AgentArgs []string
	// User runs all programs, and owns Dir; nil is whoever runs the test.
	User *syscall.Credential
	// Env are further variables of all programs.
	Env []string
}

// Cluster is one master and one agent.
type Cluster struct {
	Options
	Master, Agent string // host:port
	master, agent *daemon
}

// daemon is one running program.
type daemon struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when the program has ended
}

func (d *daemon) running() bool {
	select {
	case <-d.done:
		return false
	default:
		return true
	}
}

// Pid of the program.
func (d *daemon) pid() int { return d.cmd.Process.Pid }

// New prepares a cluster and starts nothing.
func New(o Options) (*Cluster, error) {
	if o.Resources == "" {
		o.Resources = "cpus:4;mem:4096;disk:4096;ports:[31000-32000]"
	}
	c := &Cluster{Options: o}
	for _, addr := range []*string{&c.Master, &c.Agent} {
		l, err := listenBelowEphemeral()
		if err != nil {
			return nil, err
		}
		*addr = l.Addr().String()
		defer l.Close()
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, err
	}
	if o.User != nil {
		return c, os.Chown(o.Dir, int(o.User.Uid), int(o.User.Gid))
	}
	return c, nil
}

// listenBelowEphemeral takes a free port that the kernel gives to no outgoing connection: a daemon that is killed and
// started again must find its port as it left it.
func listenBelowEphemeral() (net.Listener, error) {
	const lowest, highest, tries = 15000, 30000, 100 // ephemeral ports begin at 32768
	var err error
	for range tries {
		var l net.Listener
		port := lowest + rand.IntN(highest-lowest)
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return l, nil
		}
	}
	return nil, fmt.Errorf("find a free port between %d and %d: %w", lowest, highest, err)
}

// Start starts master and agent and waits until the agent's resources can be offered.
func (c *Cluster) Start(ctx context.Context) error {
	if c.Dev {
		if err := c.startDev(); err != nil {
			return err
		}
		return c.WaitReady(ctx)
	}
	if err := c.StartMaster(); err != nil {
		return err
	}
	if err := c.StartAgent(); err != nil {
		return err
	}
	return c.WaitReady(ctx)
}

// CgroupRoot is where the agent's containers get their cgroups.
func (c *Cluster) CgroupRoot() string { return "mosaic-e2e-" + c.Name }

func (c *Cluster) agentFlags() ([]string, error) {
	args := []string{"--resources", c.Resources, "--cgroup-root", c.CgroupRoot()}
	if c.Composition != "" {
		file := filepath.Join(c.Dir, "agent.hcl")
		if err := os.WriteFile(file, []byte(c.Composition), 0o644); err != nil {
			return nil, err
		}
		args = append(args, "--config", file)
	}
	return append(args, c.AgentArgs...), nil
}

func (c *Cluster) startDev() (err error) {
	args, err := c.agentFlags()
	if err != nil {
		return err
	}
	args = append([]string{"dev", "--listen", c.Master, "--agent-listen", c.Agent, "--work-dir", filepath.Join(c.Dir, "work")}, args...)
	c.master, err = c.spawn("dev", append(args, c.MasterArgs...)...)
	c.agent = c.master
	return err
}

// StartMaster starts the master on its own work directory, again if it ran before.
func (c *Cluster) StartMaster() (err error) {
	args := append([]string{"master", "--listen", c.Master, "--work-dir", filepath.Join(c.Dir, "master")}, c.MasterArgs...)
	c.master, err = c.spawn("master", args...)
	return err
}

// StartAgent starts the agent on its own work directory, again if it ran before.
func (c *Cluster) StartAgent() error {
	args, err := c.agentFlags()
	if err != nil {
		return err
	}
	args = append([]string{"agent", "--master", c.Master, "--listen", c.Agent, "--work-dir", filepath.Join(c.Dir, "agent")}, args...)
	c.agent, err = c.spawn("agent", args...)
	return err
}

func (c *Cluster) spawn(name string, args ...string) (*daemon, error) {
	log := filepath.Join(c.Dir, name+".log")
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := exec.Command(filepath.Join(c.Bin, "mosaic"), args...)
	cmd.Stdout, cmd.Stderr = f, f
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: c.User}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start mosaic %s: %w", name, err)
	}
	d := &daemon{cmd: cmd, log: log, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(d.done)
	}()
	return d, nil
}

// WaitMaster waits until the master answers.
func (c *Cluster) WaitMaster(ctx context.Context) error {
	m := operator.NewMaster(c.Master)
	for {
		_, err := m.Call(ctx, &masterv1.Call{Type: masterv1.Call_GET_HEALTH.Enum()})
		if err == nil {
			return nil
		}
		if !c.master.running() {
			return fmt.Errorf("the master ended: %w\n%s", err, c.Logs())
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return fmt.Errorf("wait for the master: %w", err)
		}
	}
}

// WaitReady waits until the master has an active agent.
func (c *Cluster) WaitReady(ctx context.Context) error {
	m := operator.NewMaster(c.Master)
	for {
		resp, err := m.Call(ctx, &masterv1.Call{Type: masterv1.Call_GET_AGENTS.Enum()})
		for _, a := range resp.GetGetAgents().GetAgents() {
			if a.GetActive() {
				return nil
			}
		}
		for _, d := range []*daemon{c.master, c.agent} {
			if d != nil && !d.running() {
				return fmt.Errorf("%s ended: %s", filepath.Base(d.cmd.Path), c.Logs())
			}
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return fmt.Errorf("wait for an active agent: %w\n%s", err, c.Logs())
		}
		_ = err
	}
}

// WaitAgentRecovered waits until the agent answers calls about its tasks.
func (c *Cluster) WaitAgentRecovered(ctx context.Context) error {
	a := operator.NewAgent(c.Agent)
	for {
		if _, err := a.Call(ctx, &agentv1.Call{Type: agentv1.Call_GET_TASKS.Enum()}); err == nil {
			return nil
		}
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return fmt.Errorf("wait for the agent to recover: %w\n%s", err, c.Logs())
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// AgentPid and MasterPid are the daemons' process ids.
func (c *Cluster) AgentPid() int  { return c.agent.pid() }
func (c *Cluster) MasterPid() int { return c.master.pid() }

// KillAgent ends the agent without warning and waits until it is gone.
func (c *Cluster) KillAgent() error { return c.agent.end(syscall.SIGKILL) }

// KillMaster ends the master without warning and waits until it is gone.
func (c *Cluster) KillMaster() error { return c.master.end(syscall.SIGKILL) }

// StopAgent asks the agent to end, leaving its tasks.
func (c *Cluster) StopAgent() error { return c.agent.end(syscall.SIGTERM) }

func (d *daemon) end(sig syscall.Signal) error {
	if d == nil || !d.running() {
		return nil
	}
	if err := d.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-d.done:
		return nil
	case <-time.After(20 * time.Second):
		_ = d.cmd.Process.Kill()
		<-d.done
		return fmt.Errorf("%v did not end within 20 s of %v", d.cmd.Args, sig)
	}
}

// Stop ends everything and takes away what its containers left.
func (c *Cluster) Stop() error {
	var errs []error
	errs = append(errs, c.agent.end(syscall.SIGTERM))
	if !c.Dev {
		errs = append(errs, c.master.end(syscall.SIGTERM))
	}
	containers := c.containers()
	errs = append(errs, c.sweepCgroups(), c.sweepMounts(containers), sweepNetworks(containers), os.RemoveAll(c.RunDir()))
	return errors.Join(errs...)
}

// Logs are the last lines of the daemons.
func (c *Cluster) Logs() string {
	var b strings.Builder
	for _, d := range []*daemon{c.master, c.agent} {
		if d == nil || d == c.master && c.Dev && b.Len() > 0 {
			continue
		}
		data, err := os.ReadFile(d.log)
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(data)), "\n")
		fmt.Fprintf(&b, "--- %s\n%s\n", filepath.Base(d.log), strings.Join(lines[max(0, len(lines)-60):], "\n"))
	}
	return b.String()
}

// Result is what a finished program left.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// Mosaic runs the program against this cluster and waits for it.
func (c *Cluster) Mosaic(ctx context.Context, args ...string) (Result, error) {
	cmd := c.Command(ctx, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	r := Result{Stdout: out.String(), Stderr: errs.String(), Code: cmd.ProcessState.ExitCode()}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return r, err
	}
	return r, nil
}

// Command prepares the program to run against this cluster.
func (c *Cluster) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(c.Bin, "mosaic"), args...)
	cmd.Env = append(os.Environ(), "MOSAIC_MASTER="+c.Master, "MOSAIC_AGENT="+c.Agent)
	cmd.Env = append(cmd.Env, c.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.User}
	cmd.WaitDelay = time.Second
	return cmd
}
