package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
)

// An invocation says on whose behalf the plugins of a network are called.
type invocation struct {
	path      []string // folders of plugins
	id        string
	netns     string // "" when it is lost
	ifname    string
	arguments map[string]any // goes into "args"
	runtime   map[string]any // capability to what it is given
	timeout   time.Duration  // of each plugin
}

// add calls ADD of the network's plugins one after the other and returns the last one's result, in the network's
// version, as JSON.
func (in *invocation) add(ctx context.Context, n *network) (json.RawMessage, error) {
	var last json.RawMessage
	for _, p := range n.Plugins {
		out, err := in.call(ctx, "ADD", n, p, last)
		if err != nil {
			return nil, err
		}
		if last, err = normalize(out, n.Version); err != nil {
			return nil, fmt.Errorf("plugin %s (ADD): answer: %w: %.200q", pluginType(p), err, out)
		}
	}
	return last, nil
}

// del calls DEL of the network's plugins, last first. It goes on after a failure, so that one broken plugin leaves no
// more behind than its own.
func (in *invocation) del(ctx context.Context, n *network, result json.RawMessage) error {
	if !n.atLeast("0.4.0") {
		result = nil // plugins of older versions are not told
	}
	var errs []error
	for i := len(n.Plugins) - 1; i >= 0; i-- {
		if _, err := in.call(ctx, "DEL", n, n.Plugins[i], result); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// check calls CHECK of the network's plugins. Networks of versions without it are taken as they are.
func (in *invocation) check(ctx context.Context, n *network, result json.RawMessage) error {
	if n.DisableCheck || !n.atLeast("0.4.0") || result == nil {
		return nil
	}
	for _, p := range n.Plugins {
		if _, err := in.call(ctx, "CHECK", n, p, result); err != nil {
			return err
		}
	}
	return nil
}

// call runs one plugin.
func (in *invocation) call(ctx context.Context, command string, n *network, plugin, prev json.RawMessage) ([]byte, error) {
	kind := pluginType(plugin)
	file, err := findPlugin(kind, in.path)
	if err != nil {
		return nil, fmt.Errorf("plugin %s (%s): %w", kind, command, err)
	}
	config, err := in.configure(n, plugin, prev)
	if err != nil {
		return nil, fmt.Errorf("plugin %s (%s): configuration: %w", kind, command, err)
	}
	env := []string{
		"CNI_COMMAND=" + command, containerVariable + in.id, "CNI_NETNS=" + in.netns, "CNI_IFNAME=" + in.ifname,
		"CNI_ARGS=", "CNI_PATH=" + strings.Join(in.path, ":"), "LANG=C.UTF-8",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	}
	ctx, cancel := context.WithTimeout(ctx, in.timeout)
	defer cancel()
	out, err := execute(ctx, file, config, env)
	if ctx.Err() != nil && err != nil {
		return nil, fmt.Errorf("plugin %s (%s) did not end within %s and was killed", kind, command, in.timeout)
	}
	if err != nil {
		return nil, fmt.Errorf("plugin %s (%s): %w", kind, command, err)
	}
	return out, nil
}

// configure completes a plugin's configuration by what every call adds to it.
func (in *invocation) configure(n *network, plugin, prev json.RawMessage) ([]byte, error) {
	doc := map[string]json.RawMessage{}
	if err := json.Unmarshal(plugin, &doc); err != nil {
		return nil, err
	}
	set := func(key string, v any) error {
		data, err := json.Marshal(v)
		doc[key] = data
		return err
	}
	if err := errors.Join(set("name", n.Name), set("cniVersion", n.Version)); err != nil {
		return nil, err
	}
	if prev != nil {
		doc["prevResult"] = prev
	}
	if len(in.arguments) > 0 {
		args := map[string]any{}
		if len(doc["args"]) > 0 {
			_ = json.Unmarshal(doc["args"], &args) // what is no object is replaced
		}
		for key, v := range in.arguments {
			args[key] = v
		}
		if err := set("args", args); err != nil {
			return nil, err
		}
	}
	given := map[string]any{}
	for capability, has := range capabilities(plugin) {
		if v, ok := in.runtime[capability]; has && ok {
			given[capability] = v
		}
	}
	if len(given) > 0 {
		if err := set("runtimeConfig", given); err != nil {
			return nil, err
		}
	}
	return json.Marshal(doc)
}

func pluginType(plugin json.RawMessage) string {
	var doc struct {
		Type string `json:"type"`
	}
	_ = json.Unmarshal(plugin, &doc) // read before, or it would not be here
	return doc.Type
}

func capabilities(plugin json.RawMessage) map[string]bool {
	var doc struct {
		Capabilities map[string]bool `json:"capabilities"`
	}
	_ = json.Unmarshal(plugin, &doc)
	return doc.Capabilities
}

// findPlugin looks for a plugin's file.
func findPlugin(kind string, path []string) (string, error) {
	if kind == "" || strings.ContainsRune(kind, '/') || kind == ".." {
		return "", fmt.Errorf("got the type %q, want a file's name", kind)
	}
	for _, dir := range path {
		file := filepath.Join(dir, kind)
		if st, err := os.Stat(file); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return file, nil
		}
	}
	return "", fmt.Errorf("no such program in %s: %w", strings.Join(path, ":"), fs.ErrNotExist)
}

// normalize reads a plugin's result and gives it in the version of its network.
func normalize(out []byte, cniVersion string) (_ json.RawMessage, err error) {
	// The conversions between versions trust what they are given, and plugins may print anything.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("cannot be converted to version %s: %v", cniVersion, r)
		}
	}()
	doc := map[string]json.RawMessage{}
	if err := json.Unmarshal(out, &doc); err != nil || doc == nil {
		return nil, errors.New("not a JSON object")
	}
	for _, list := range []string{"ips", "interfaces", "routes"} {
		var entries []json.RawMessage
		_ = json.Unmarshal(doc[list], &entries) // the reader of its version says what it should be
		if slices.ContainsFunc(entries, func(e json.RawMessage) bool { return string(e) == "null" }) {
			return nil, fmt.Errorf("%s: got null for an entry", list)
		}
	}
	var own string
	_ = json.Unmarshal(doc["cniVersion"], &own)
	if own == "" { // then it is that of the configuration
		own = cniVersion
		if doc["cniVersion"], err = json.Marshal(own); err != nil {
			return nil, err
		}
		if out, err = json.Marshal(doc); err != nil {
			return nil, err
		}
	}
	result, err := create.Create(own, out)
	if err != nil {
		return nil, err
	}
	if result, err = result.GetAsVersion(cniVersion); err != nil {
		return nil, err
	}
	return json.Marshal(result)
}

// atLeast compares the network's version.
func (n *network) atLeast(v string) bool {
	ok, err := version.GreaterThanOrEqualTo(n.Version, v)
	return err == nil && ok
}

const (
	// maxOutput bounds what a plugin may print: results are some hundred bytes.
	maxOutput = 1 << 20
	// maxWords bounds what is kept of its complaints.
	maxWords = 4 << 10
	// lingering is how long what a plugin started may hold its output open.
	lingering = 2 * time.Second
)

// execute runs a plugin with all it starts in a process group of its own, which is killed when ctx ends or this process
// does. It returns when none of it is left, or after lingering.
func execute(ctx context.Context, file string, stdin []byte, env []string) ([]byte, error) {
	// The signal for the parent's death comes when the thread that started it ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	out, words := &bounded{max: maxOutput}, &bounded{max: maxWords}
	cmd := exec.CommandContext(ctx, file)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Dir = env, bytes.NewReader(stdin), out, words, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = lingering
	err := cmd.Run()
	if err != nil && cmd.Process != nil {
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) // what it had started
	}
	switch {
	case out.over:
		return nil, fmt.Errorf("it printed more than %d bytes", maxOutput)
	case err != nil:
		return nil, complaint(err, out.kept, words.kept)
	}
	return out.kept, nil
}

// A pluginError is what a plugin says in the words of its protocol.
type pluginError types.Error

func (e *pluginError) Error() string {
	text := e.Msg
	if e.Details != "" {
		text += ": " + e.Details
	}
	return fmt.Sprintf("%s (code %d)", text, e.Code)
}

func complaint(err error, out, words []byte) error {
	e := &pluginError{}
	if json.Unmarshal(out, e) == nil && e.Msg != "" {
		return e
	}
	text := strings.TrimSpace(string(words))
	if text == "" {
		text = strings.TrimSpace(string(out[:min(len(out), maxWords)]))
	}
	if text == "" {
		return err
	}
	return fmt.Errorf("%w: %q", err, text)
}

// bounded is a buffer that drops what is too much. It is no bytes.Buffer: copying would go round Write.
type bounded struct {
	kept []byte
	max  int
	over bool
}

func (b *bounded) Write(p []byte) (int, error) {
	room := b.max - len(b.kept)
	b.over = b.over || len(p) > room
	b.kept = append(b.kept, p[:min(len(p), room)]...)
	return len(p), nil
}

const containerVariable = "CNI_CONTAINERID="

// endStrays kills what plugins of a container still run although nobody waits for them: after this process was killed
// their own children may be left, and would go on making what is about to be taken away.
func endStrays(ctx context.Context, id string) error {
	mark := []byte(containerVariable + id + "\x00")
	for {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return err
		}
		left := 0
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil {
				continue
			}
			data, err := os.ReadFile("/proc/" + e.Name() + "/environ")
			if err != nil || !bytes.Contains(append([]byte{0}, data...), append([]byte{0}, mark...)) {
				continue
			}
			left++
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		if left == 0 {
			return nil
		}
		timer := time.NewTimer(5 * time.Millisecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("plugins of container %s still run: %w", id, ctx.Err())
		}
	}
}
