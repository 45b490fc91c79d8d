package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// runFrameworkName marks the frameworks of `mosaic run`: each has one task, and `mosaic task kill` may end them whole.
const runFrameworkName = "mosaic run"

// detachedFailover is how long a detached task outlives its framework's connection, which never comes back: as long as
// the API's durations reach in round numbers. The framework ends with its tasks.
const detachedFailover = 100 * 365 * 24 * time.Hour

// runOptions are the flags of `mosaic run`.
type runOptions struct {
	master   string
	file     string // of a group
	name     string
	role     string
	user     string
	env      []string
	uris     []string
	cpus     float64
	mem      megabytes
	disk     megabytes
	maxCPUs  float64
	maxMem   megabytes
	detach   bool
	verbose  bool
	shell    bool
	waitFor  time.Duration
	grace    time.Duration
	format   string // of -o
	printed  bool   // -o was given
	argv     []string
	in       io.Reader
	out, err io.Writer

	containerFlags

	tty, interactive bool
	keys             string
	detachKeys       []byte
}

func newRun() *cobra.Command {
	o := &runOptions{}
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARGUMENT...]",
		Short: "Run a task and show its output",
		Long: `Runs one task on the cluster, shows its output, and exits with its exit code.

Ctrl-C kills the task; a second one gives up waiting for it. With --detach the command returns
once the task runs, and the task stays: 'mosaic task logs' and 'mosaic task kill' deal with it. Its
framework ends with it.

With -it the task has a terminal, and yours is connected with it: a shell or an editor works as if
it ran here. The keys of --detach-keys leave it running.

With --image the task runs in it: COMMAND takes the place of the image's entrypoint and command,
and without one those are run. The flags from --add-host to --ulimit that docker run has, too, mean
the same.

With --group it is several tasks on one machine: they start together, share a network and their
SANDBOX_PATH volumes, and end together if one fails. The file has a TaskGroupInfo of the v1 API, or
a whole LaunchGroup, in JSON or YAML. Ids are made up; --cpus, --mem and --disk are for tasks that
name no resources:

  tasks:
    - name: web
      command: {value: python3 -m http.server 31000}
    - name: probe
      command: {value: while sleep 1; do curl -s localhost:31000; done}

Exit codes: the task's own, of a group that of the first task that failed; 128 plus the signal's
number if a signal ended it; 125 if it could not be started.`,
		Example: `  mosaic run -- echo hello
  mosaic run --cpus 0.5 --mem 64 --env WHO=world --shell -- 'echo hello $WHO'
  mosaic run --image ./rootfs -- /bin/sh -c 'ls /'
  mosaic run --image nginx --network bridge --publish 8080:80
  mosaic run --image nginx --publish 80 --detach -o json
  mosaic run --image ./rootfs --volume /data:/data:ro --workdir /data -- ls
  mosaic run --detach --name web -- python3 -m http.server 31000
  mosaic run -it --image ./rootfs -- /bin/sh
  mosaic run --group web-and-cache.yaml`,
		Args: func(cmd *cobra.Command, args []string) error {
			if o.file != "" {
				return o.checkGroup(cmd, args)
			}
			if len(args) == 0 && o.image == "" {
				return &exitError{exitUsage, errors.New("what to run is missing: mosaic run -- COMMAND [ARGUMENT...]")}
			}
			if o.printed = cmd.Flags().Changed("output"); o.printed && !o.detach {
				return &exitError{exitUsage, errors.New("-o is for --detach: without it the output is the task's")}
			}
			if err := o.checkHabits(args); err != nil {
				return &exitError{exitUsage, err}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.argv, o.in, o.out, o.err = args, cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
			if err := o.checkTerminal(o.in); err != nil {
				return &exitError{exitUsage, err}
			}
			code, err := o.run(context.WithoutCancel(cmd.Context()))
			if err != nil {
				return &exitError{exitRun, err}
			}
			if code != 0 {
				return &exitError{code: code}
			}
			return nil
		},
	}
	masterFlag(cmd, &o.master)
	o.terminalFlags(cmd)
	o.imageFlags(cmd)
	f := cmd.Flags()
	f.StringVarP(&o.file, "group", "f", "", "run the tasks of this file together; see above")
	f.Float64Var(&o.cpus, "cpus", 0.1, "cores to reserve")
	o.mem = 32
	f.Var(&o.mem, "mem", "memory to reserve, in MB or as 2g")
	f.Var(&o.disk, "disk", "disk to reserve, in MB or as 2g")
	f.Float64Var(&o.maxCPUs, "max-cpus", 0, "cores it may use beyond its share when they are free (0: as --cpus)")
	f.Var(&o.maxMem, "max-mem", "memory it may use before it is killed, in MB or as 2g (0: as --mem)")
	f.StringArrayVarP(&o.env, "env", "e", nil, "environment variable KEY=VALUE (repeatable; KEY alone passes yours on)")
	f.StringArrayVar(&o.uris, "uri", nil, "file or archive to fetch into the sandbox (repeatable)")
	f.StringVar(&o.name, "name", "", "name of the task")
	f.StringVar(&o.role, "role", "*", "role whose share of the cluster it uses")
	f.StringVarP(&o.user, "user", "u", "", "user to run as (default: yours)")
	f.BoolVarP(&o.detach, "detach", "d", false, "return once the task runs; it stays")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "print each state of the task on standard error")
	f.BoolVar(&o.shell, "shell", false, "the command is one line for /bin/sh")
	f.DurationVar(&o.waitFor, "wait", 0, "give up when no machine offered enough for so long (0: wait for ever)")
	f.DurationVar(&o.grace, "grace", 3*time.Second, "time between SIGTERM and SIGKILL when it is killed")
	outputFlag(cmd, &o.format)
	f.Lookup("output").Usage = "with --detach: print the task in a format: table, wide, json or yaml (default: its id)"
	f.Lookup("output").DefValue = ""
	o.habitFlags(cmd)
	return cmd
}

// resources are what a task needs that does not say it itself.
func (o *runOptions) resources() resources.Quantities {
	r := resources.Quantities{"cpus": o.cpus, "mem": float64(o.mem)}
	if o.disk > 0 {
		r["disk"] = float64(o.disk)
	}
	if o.gpus > 0 {
		r["gpus"] = float64(o.gpus)
	}
	return r
}

// ofOneTask are flags that describe the task, which a group's file does for each.
var ofOneTask = []string{"image", "name", "env", "uri", "shell", "max-cpus", "max-mem", "grace", "tty", "interactive", "network", "publish", "volume", "gpus", "workdir"}

func (o *runOptions) checkGroup(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return &exitError{exitUsage, fmt.Errorf("the tasks of --group are in its file: got %q as well", strings.Join(args, " "))}
	}
	names := slices.Clone(ofOneTask)
	for _, d := range dockerFlags {
		names = append(names, d.name)
	}
	for _, name := range names {
		if cmd.Flags().Changed(name) {
			return &exitError{exitUsage, fmt.Errorf("--%s does not go with --group: say it in the file", name)}
		}
	}
	return nil
}

func (o *runOptions) check() error {
	if o.cpus <= 0 || o.mem <= 0 {
		return fmt.Errorf("--cpus and --mem: got %v and %v, want more than 0", o.cpus, o.mem)
	}
	if o.maxCPUs != 0 && o.maxCPUs < o.cpus || o.maxMem != 0 && o.maxMem < o.mem {
		return errors.New("--max-cpus and --max-mem may not be below --cpus and --mem")
	}
	if o.shell && len(o.argv) != 1 {
		return fmt.Errorf("--shell takes one argument, the whole line: got %d", len(o.argv))
	}
	if o.user == "" {
		u, err := user.Current()
		if err != nil {
			return fmt.Errorf("look up who you are (set --user): %w", err)
		}
		o.user = u.Username
	}
	return o.checkContainer()
}

// task builds the TaskInfo without agent and resources.
func (o *runOptions) task() (*mesosv1.TaskInfo, error) {
	name := o.name
	if name == "" {
		name = "task"
		if len(o.argv) > 0 && !o.shell {
			name = filepath.Base(o.argv[0])
		}
	}
	id := name + "-" + uuid.NewString()[:8]
	command := &mesosv1.CommandInfo{Shell: &o.shell, User: &o.user}
	if len(o.argv) > 0 {
		command.Value = &o.argv[0]
	}
	if !o.shell {
		command.Arguments = o.argv
	}
	if variables := environment(o.env); len(variables) > 0 {
		command.Environment = &mesosv1.Environment{Variables: variables}
	}
	for _, uri := range o.uris {
		command.Uris = append(command.Uris, &mesosv1.CommandInfo_URI{Value: &uri})
	}
	grace := o.grace.Nanoseconds()
	t := &mesosv1.TaskInfo{
		Name: &name, TaskId: &mesosv1.TaskID{Value: &id}, Command: command,
		KillPolicy: &mesosv1.KillPolicy{GracePeriod: &mesosv1.DurationInfo{Nanoseconds: &grace}},
	}
	if o.maxCPUs > 0 {
		t.Limits = map[string]*mesosv1.Value_Scalar{"cpus": {Value: &o.maxCPUs}}
	}
	if o.maxMem > 0 {
		if t.Limits == nil {
			t.Limits = map[string]*mesosv1.Value_Scalar{}
		}
		most := float64(o.maxMem)
		t.Limits["mem"] = &mesosv1.Value_Scalar{Value: &most}
	}
	if err := o.container(t); err != nil {
		return nil, err
	}
	return t, nil
}
