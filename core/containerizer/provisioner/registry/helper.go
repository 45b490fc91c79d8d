package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// helperTimeout bounds a credential helper: one asks its cloud, which takes a second.
	helperTimeout = 30 * time.Second
	// maxHelperOutput bounds what a helper says. Tokens of clouds have some kilobytes.
	maxHelperOutput = 1 << 20
)

// helperName is what may follow docker-credential- : a file name that leads nowhere else.
var helperName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// dockerHubKey is how Docker's tools call their own registry where they keep credentials.
const dockerHubKey = "https://index.docker.io/v1/"

// tokenUser is what a helper says for a user where the secret is a token to get tokens with.
const tokenUser = "<token>"

// askHelper runs docker-credential-NAME from the agent's PATH, as the agent's user, for who we are at a registry. A helper
// that knows nothing of the registry gives nothing.
//
// Source: github.com/docker/docker-credential-helpers, README (the protocol).
func askHelper(ctx context.Context, name, host string) (credential, error) {
	fail := func(err error) (credential, error) {
		return credential{}, fmt.Errorf("credential helper docker-credential-%s: %w", name, err)
	}
	if !helperName.MatchString(name) {
		return fail(errors.New("want a name of letters, digits, dots, hyphens and underscores"))
	}
	program, err := exec.LookPath("docker-credential-" + name)
	if err != nil {
		return fail(errors.New("not in the agent's PATH"))
	}
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	key := host
	if canonical(host) == DockerHub {
		key = dockerHubKey
	}
	var out, said bounded
	cmd := exec.CommandContext(ctx, program, "get")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(key+"\n"), &out, &said
	// What it started goes with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		switch text := strings.TrimSpace(string(out.all)); {
		case ctx.Err() != nil:
			return fail(fmt.Errorf("no answer within %s", helperTimeout))
		case !errors.As(err, &exit):
			return fail(err)
		case strings.Contains(text, "credentials not found"):
			return credential{}, nil
		case text == "":
			text = strings.TrimSpace(string(said.all))
			fallthrough
		default:
			text, _, _ = strings.Cut(text, "\n")
			return fail(fmt.Errorf("%w: %s", err, clip(text)))
		}
	}
	var answer struct{ Username, Secret string }
	if err := json.Unmarshal(out.all, &answer); err != nil || answer.Secret == "" {
		return fail(errors.New("its answer has no secret")) // and is not repeated: it may
	}
	if answer.Username == tokenUser {
		answer.Username = ""
	}
	return credential{user: answer.Username, secret: answer.Secret}, nil
}

// bounded takes so much and no more.
type bounded struct{ all []byte }

func (b *bounded) Write(p []byte) (int, error) {
	if len(b.all)+len(p) > maxHelperOutput {
		return 0, errors.New("says too much")
	}
	b.all = append(b.all, p...)
	return len(p), nil
}

// asked is who we are at a registry, found out when first needed and not again: registries ask several times in a pull.
func (c *Credentials) asked(ctx context.Context, host string) func() (credential, error) {
	return sync.OnceValues(func() (credential, error) {
		known, helper := c.of(host)
		if helper == "" {
			return known, nil
		}
		return askHelper(ctx, helper, host)
	})
}
