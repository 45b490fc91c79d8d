package agent

import (
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
	return filepath.Join(a.cfg.WorkDir, "slaves", a.info.GetId().GetValue(), "frameworks", string(e.framework.id),
		"executors", string(e.id), "runs", string(e.container))
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
// runs/latest, or /frameworks/FRAMEWORK/executors/EXECUTOR/runs/CONTAINER (or latest) for those of this agent.
//
// Errors: fs.ErrNotExist for all other paths, those below a sandbox included.
func (a *Agent) ResolveFile(virtual string) (string, error) {
	missing := &fs.PathError{Op: "resolve", Path: virtual, Err: fs.ErrNotExist}
	clean := path.Clean("/" + virtual)
	slaves := filepath.Join(a.cfg.WorkDir, "slaves")
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
