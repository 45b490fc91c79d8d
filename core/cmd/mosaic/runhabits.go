package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// What people type by habit who have run containers by other means: the flags that mean the same there and here, those
// that are called otherwise here, and what is commonly mistaken.

// dockerFlags are flags of `docker run` that become parameters of a container of type DOCKER, by the same name.
var dockerFlags = []struct {
	name, usage string
	isSwitch    bool
}{
	{"add-host", "name that the task finds at an address: NAME:ADDRESS (repeatable)", false},
	{"cap-add", "capability to add, as NET_ADMIN, or ALL (repeatable)", false},
	{"cap-drop", "capability to do without, or ALL (repeatable)", false},
	{"device", "device of the machine, as far as its operator lends it: PATH[:PLACE[:rwm]] (repeatable)", false},
	{"dns", "name server of the task, in place of its network's (repeatable)", false},
	{"entrypoint", "program to run in place of the image's entrypoint; COMMAND is what follows it", false},
	{"hostname", "name of the machine that the task sees", false},
	{"init", "have an init be the first process: it buries orphans and passes signals on", true},
	{"label", "label of the container: NAME=VALUE (repeatable)", false},
	{"pull", "when to ask the registry for the image: missing or always", false},
	{"read-only", "keep the image's files as they are", true},
	{"security-opt", "no-new-privileges, seccomp=unconfined or seccomp=builtin (repeatable)", false},
	{"shm-size", "size of /dev/shm, as 64m", false},
	{"stop-signal", "signal that asks the task to end (default: the image's, or SIGTERM)", false},
	{"sysctl", "setting of the task's own kernel namespaces: NAME=VALUE (repeatable)", false},
	{"tmpfs", "folder in memory: PLACE[:size=64m,...] (repeatable)", false},
	{"ulimit", "limit of its processes, as nofile=1024:2048 (repeatable)", false},
}

// parameterFlag adds a parameter each time it is given.
type parameterFlag struct {
	to       *[]*mesosv1.Parameter
	key      string
	isSwitch bool
}

func (p *parameterFlag) String() string   { return "" }
func (p *parameterFlag) IsBoolFlag() bool { return p.isSwitch }

func (p *parameterFlag) Type() string {
	if p.isSwitch {
		return "bool"
	}
	return "string"
}

func (p *parameterFlag) Set(value string) error {
	if _, err := strconv.ParseBool(value); p.isSwitch && err != nil {
		return fmt.Errorf("got %q, want true or false", value)
	}
	*p.to = append(*p.to, &mesosv1.Parameter{Key: &p.key, Value: &value})
	return nil
}

// habitFlags adds the flags that are the same elsewhere.
func (o *containerFlags) habitFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	for _, d := range dockerFlags {
		f.Var(&parameterFlag{&o.parameters, d.name, d.isSwitch}, d.name, d.usage)
		if d.isSwitch {
			f.Lookup(d.name).NoOptDefVal = "true"
		}
	}
	f.SetInterspersed(false) // what follows the command's name is the command's
	f.Bool("rm", true, "remove the container when it has ended, which is always done")
	_ = f.MarkHidden("rm")
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if hint := flagHint(err.Error()); hint != "" {
			err = fmt.Errorf("%w; %s", err, hint)
		}
		return cmd.Parent().FlagErrorFunc()(cmd, err)
	})
}

// flagHint says what a flag is called here that another program has; "" where nobody knows.
func flagHint(problem string) string {
	for _, h := range []struct{ flags, hint string }{
		{"--memory -m", "memory is --mem"},
		{"--memory-swap --memory-reservation --cpu-shares --cpu-quota --cpu-period --cpuset-cpus", "what a task may use is said by --cpus, --mem, --max-cpus and --max-mem"},
		{"-v", "volumes are --volume; -v is --verbose"},
		{"--mount", "volumes are --volume"},
		{"--net", "networks are --network"},
		{"--env-file", "variables are --env, one each: --env KEY=VALUE, or KEY for yours"},
		{"--restart", "a task runs once; who starts it again is a framework, such as Marathon"},
		{"--privileged", "no flag gives all of the machine; name what the task needs by --cap-add and --device"},
		{"--publish-all -P", "ports are named one by one: --publish PORT"},
		{"--platform", "agents run what is made for their processor"},
		{"-h", "a host name is --hostname"},
		{"-l", "labels are --label"},
		{"-c", "shares of processors are --cpus; a line for a shell goes after --shell"},
	} {
		for _, flag := range strings.Fields(h.flags) {
			if strings.HasSuffix(problem, "unknown flag: "+flag) || strings.HasSuffix(problem, " in "+flag) {
				return h.hint
			}
		}
	}
	switch {
	case strings.Contains(problem, `for "--gpus" flag`):
		return "want a number of GPUs, such as --gpus 1"
	case strings.Contains(problem, "unknown shorthand flag") && strings.Contains(problem, "in -v"):
		return "volumes are --volume; -v is --verbose"
	}
	return ""
}

// checkHabits finds what is no mistake to a parser and one to who typed it.
func (o *runOptions) checkHabits(args []string) error {
	if !o.verbose || len(args) == 0 {
		return nil
	}
	if source, place, ok := strings.Cut(args[0], ":"); ok && source != "" && strings.HasPrefix(place, "/") {
		return fmt.Errorf("%q looks like a volume, and -v is --verbose: want --volume %s", args[0], args[0])
	}
	return nil
}

// imageHint says how an image is run, to who may have taken it for what goes first.
func (o *runOptions) imageHint(message string) string {
	if o.image != "" || o.shell || len(o.argv) == 0 || !strings.Contains(message, "exec "+o.argv[0]+":") {
		return ""
	}
	if st, err := os.Stat(o.argv[0]); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
		return "" // a program, but not on the agent's machine
	}
	rest := ""
	if len(o.argv) > 1 {
		rest = " -- " + strings.Join(o.argv[1:], " ")
	}
	return fmt.Sprintf("if %s is an image: mosaic run --image %s%s", o.argv[0], o.argv[0], rest)
}

// megabytes is a size in MB, or with a unit of its own: 64, 64m, 1.5g.
type megabytes float64

func (m *megabytes) Type() string   { return "MB" }
func (m *megabytes) String() string { return strconv.FormatFloat(float64(*m), 'g', -1, 64) }

func (m *megabytes) Set(text string) error {
	number := strings.TrimRight(strings.ToLower(text), "bikmgt")
	by := 1.0
	switch unit := strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(text)[len(number):], "b"), "i"); unit {
	case "", "m":
	case "k":
		by = 1.0 / 1024
	case "g":
		by = 1024
	case "t":
		by = 1024 * 1024
	default:
		return errors.New("want a size in MB, or one such as 512m or 2g")
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || !(n >= 0) || math.IsInf(n, 1) { // neither is a NaN
		return errors.New("want a size in MB, or one such as 512m or 2g")
	}
	*m = megabytes(n * by)
	return nil
}
