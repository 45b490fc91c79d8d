package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Sandboxes lie where Mesos has them, so that tools find them:
// WORK/slaves/AGENT/frameworks/FRAMEWORK/executors/EXECUTOR/runs/CONTAINER, beside a link "latest".

func (a *Agent) sandbox(e *executor) string {
	if p := e.parent; p != nil {
		return filepath.Join(p.directory, "containers", e.container.own())
	}
	return filepath.Join(a.cfg.WorkDir, "slaves", a.info.GetId().GetValue(), "frameworks", string(e.framework.id),
		"executors", string(e.id), "runs", string(e.container))
}

// makeFolders makes what a container's sandbox is found by.
func (a *Agent) makeFolders(e *executor) error {
	if e.parent != nil {
		return e.linkTask()
	}
	return a.makeRunsDir(e)
}

// linkTask has tasks/TASK in the sandbox of a group's executor point to the sandbox of the task, which the
// containerizer makes. The tasks may write there: a link of theirs is not followed out of the sandbox.
func (e *executor) linkTask() error {
	root, err := os.OpenRoot(e.parent.directory)
	if err != nil {
		return fmt.Errorf("link sandbox: %w", err)
	}
	defer root.Close()
	if err := root.MkdirAll("tasks", 0o755); err != nil {
		return fmt.Errorf("link sandbox: %w", err)
	}
	name, target := filepath.Join("tasks", string(e.command.id)), filepath.Join("..", "containers", e.container.own())
	err = root.Symlink(target, name)
	if errors.Is(err, fs.ErrExist) {
		// Of a launch that was cut short, or of an earlier task of this name.
		if have, readErr := root.Readlink(name); readErr == nil && have == target {
			return nil
		}
		if err = root.Remove(name); err == nil {
			err = root.Symlink(target, name)
		}
	}
	if err != nil {
		return fmt.Errorf("link sandbox: %w", err)
	}
	return nil
}

// makeRunsDir makes the folder that sandboxes of an executor lie in, and has "latest" point to the one to come.
// The sandbox itself the containerizer makes, as the task's user.
func (a *Agent) makeRunsDir(e *executor) error {
	a.runs.RLock()
	defer a.runs.RUnlock()
	runs := filepath.Dir(e.directory)
	if err := os.MkdirAll(runs, 0o755); err != nil {
		return fmt.Errorf("make sandbox: %w", err)
	}
	latest := filepath.Join(runs, "latest")
	err := os.Symlink(string(e.container), latest)
	if os.IsExist(err) {
		// By rename, so that a reader always finds one.
		next := filepath.Join(runs, ".latest-"+string(e.container))
		if err = os.Symlink(string(e.container), next); err == nil || os.IsExist(err) {
			err = os.Rename(next, latest)
		}
	}
	if err != nil {
		return fmt.Errorf("make sandbox: %w", err)
	}
	return nil
}

// ResolveFile returns the folder that a virtual path stands for: a sandbox by its absolute path, the same ending in
// runs/latest, or /frameworks/FRAMEWORK/executors/EXECUTOR/runs/CONTAINER (or latest) for those of this agent; of a
// standalone container its absolute path or /containers/CONTAINER. Those of nested containers lie below.
//
// Errors: fs.ErrNotExist for all other paths, those below a sandbox included.
func (a *Agent) ResolveFile(virtual string) (string, error) {
	missing := &fs.PathError{Op: "resolve", Path: virtual, Err: fs.ErrNotExist}
	clean := path.Clean("/" + virtual)
	slaves := filepath.Join(a.cfg.WorkDir, "slaves")
	for _, top := range []string{filepath.Join(a.cfg.WorkDir, "containers"), "/containers"} {
		if id, ok := strings.CutPrefix(clean, top+"/"); ok {
			dir := filepath.Join(a.cfg.WorkDir, "containers", id)
			if info, err := os.Lstat(dir); checkID(id) != nil || err != nil || !info.IsDir() {
				return "", missing
			}
			return dir, nil
		}
	}
	rest, ok := strings.CutPrefix(clean, slaves+"/")
	if !ok {
		if !strings.HasPrefix(clean, "/frameworks/") {
			return "", missing
		}
		a.mu.Lock()
		id := a.info.GetId().GetValue()
		a.mu.Unlock()
		rest = id + clean
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 7 || parts[1] != "frameworks" || parts[3] != "executors" || parts[5] != "runs" || parts[0] == "" {
		return "", missing
	}
	if parts[6] == "latest" {
		target, err := os.Readlink(filepath.Join(append([]string{slaves}, parts...)...))
		if err != nil || checkID(target) != nil {
			return "", missing
		}
		parts[6] = target
	}
	dir := filepath.Join(append([]string{slaves}, parts...)...)
	if info, err := os.Lstat(dir); err != nil || !info.IsDir() {
		return "", missing
	}
	return dir, nil
}
