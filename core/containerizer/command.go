package containerizer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// defaultPath is used where neither task, image, isolator nor agent sets PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// defaultTerm is the kind of a terminal where nobody says another: what those that people sit at can do.
const defaultTerm = "xterm-256color"

// request puts together what the launcher is to create.
func (c *Containerizer) request(ctx context.Context, spec *containerv1.Container, merged *containerv1.Proposal, who launcher.User) (*launcher.Request, error) {
	path, argv := "", merged.GetArguments()
	if len(argv) == 0 {
		var err error
		if path, argv, err = commandLine(spec.GetCommand(), spec.GetImageConfig()); err != nil {
			return nil, err
		}
	}
	env, err := c.environment(ctx, spec, merged)
	if err != nil {
		return nil, err
	}
	dir := merged.GetWorkingDirectory()
	if dir == "" && spec.GetRootfs() != "" {
		dir = spec.GetImageConfig().GetWorkingDirectory()
	}
	if dir == "" {
		dir = inContainer(spec)
	}
	return &launcher.Request{
		Container: spec, Proposal: merged, Path: path, Argv: argv, Env: env, Dir: filepath.Clean("/" + dir), User: who,
		Stdout: filepath.Join(spec.GetSandbox(), "stdout"), Stderr: filepath.Join(spec.GetSandbox(), "stderr"),
		RunDir:  filepath.Join(c.runDir, shortName(spec.GetId())),
		Streams: spec.GetStreams(), Rows: uint16(spec.GetTerminalRows()), Columns: uint16(spec.GetTerminalColumns()),
	}, nil
}

// inContainer is the sandbox as the container sees it.
func inContainer(spec *containerv1.Container) string {
	if spec.GetRootfs() == "" || spec.GetSandboxInContainer() == "" {
		return spec.GetSandbox()
	}
	return spec.GetSandboxInContainer()
}

// commandLine makes the command line of a command and the image's entrypoint (E) and default arguments (C), by
// Mesos's table:
//
//	shell  value  arguments | neither  C only            E only         E and C
//	no     no     no        | error    C                 E              E + C
//	no     no     yes       | error    C[0] + arguments  E + arguments  E + arguments
//	no     yes    no        | value
//	no     yes    yes       | value, called by the name arguments[0], + arguments[1:]
//	yes    no     any       | error
//	yes    yes    any       | /bin/sh -c value
//
// Without image and without value there is nothing to run, also when there are arguments. path is the program, "" where
// it is what argv begins with.
func commandLine(command *mesosv1.CommandInfo, image *containerv1.ImageConfig) (path string, argv []string, err error) {
	entry, args := image.GetEntrypoint(), command.GetArguments()
	switch {
	case command.GetShell():
		if command.GetValue() == "" {
			return "", nil, errors.New("command: got shell without value, want a value to give to the shell")
		}
		return "", []string{"/bin/sh", "-c", command.GetValue()}, nil
	case command.GetValue() != "":
		if len(args) > 0 {
			return command.GetValue(), slices.Clone(args), nil
		}
		return "", []string{command.GetValue()}, nil
	case len(entry) > 0 && len(args) > 0:
		return "", slices.Concat(entry, args), nil
	case len(entry) > 0:
		return "", slices.Concat(entry, image.GetCmd()), nil
	case len(image.GetCmd()) > 0 && len(args) > 0:
		return "", slices.Concat(image.GetCmd()[:1], args), nil
	case len(image.GetCmd()) > 0:
		return "", slices.Clone(image.GetCmd()), nil
	}
	return "", nil, errors.New("command: got neither value nor an image with entrypoint or command, want one of them")
}

// environment joins the variables, each over those before it: what the agent inherited, the image's, the isolators',
// the command's. The agent's own names (MESOS_*) stand above the image, which must not move the sandbox or the agent.
func (c *Containerizer) environment(ctx context.Context, spec *containerv1.Container, merged *containerv1.Proposal) ([]string, error) {
	env := map[string]string{"PATH": defaultPath}
	maps.Copy(env, spec.GetEnvironment())
	for _, kv := range spec.GetImageConfig().GetEnvironment() {
		name, value, _ := strings.Cut(kv, "=")
		if _, ours := spec.GetEnvironment()[name]; name == "" || ours && strings.HasPrefix(name, "MESOS_") {
			continue
		}
		env[name] = value
	}
	if _, given := env["MESOS_SANDBOX"]; given {
		env["MESOS_SANDBOX"] = inContainer(spec)
	}
	maps.Copy(env, merged.GetEnvironment())
	for _, v := range spec.GetCommand().GetEnvironment().GetVariables() {
		value := v.GetValue()
		if v.GetType() == mesosv1.Environment_Variable_SECRET {
			var err error
			if value, err = c.secret(ctx, v.GetSecret()); err != nil {
				return nil, fmt.Errorf("environment variable %s: %w", v.GetName(), err)
			}
		}
		env[v.GetName()] = value
	}
	if spec.GetStreams() == containerv1.Container_TERMINAL && env["TERM"] == "" {
		env["TERM"] = defaultTerm
	}
	list := make([]string, 0, len(env))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(env[name], 0) {
			return nil, fmt.Errorf("environment variable %q: want a name without '=', and no zero bytes", name)
		}
		list = append(list, name+"="+env[name])
	}
	return list, nil
}

func (c *Containerizer) secret(ctx context.Context, s *mesosv1.Secret) (string, error) {
	switch {
	case s.GetType() == mesosv1.Secret_VALUE && s.GetValue() != nil:
		return string(s.GetValue().GetData()), nil
	case s.GetType() == mesosv1.Secret_REFERENCE && c.cfg.Secret != nil:
		ctx, cancel := context.WithTimeout(ctx, createTimeout)
		defer cancel()
		b, err := c.cfg.Secret(ctx, s)
		if err != nil {
			return "", fmt.Errorf("secret %s: %w", s.GetReference().GetName(), err)
		}
		return string(b), nil
	case s.GetType() == mesosv1.Secret_REFERENCE:
		return "", fmt.Errorf("secret %s: this agent has no secret resolver", s.GetReference().GetName())
	}
	return "", errors.New("secret without value or reference")
}
