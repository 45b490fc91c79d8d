package scaffold

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Folder is a module's folder as New writes it, whatever its author has made of it since.
type Folder struct {
	Dir  string
	Lang string // go or python
}

// ErrNoModule is returned for a folder in which there is no module.
var ErrNoModule = errors.New("no module")

// Find says what module a folder holds: a Python module has main.py and mosaic_module.py, a Go module go.mod and a
// main.go that serves one.
func Find(dir string) (Folder, error) {
	if exists(dir, "main.py") && exists(dir, "mosaic_module.py") {
		return Folder{dir, "python"}, nil
	}
	if exists(dir, "go.mod") {
		main, err := os.ReadFile(filepath.Join(dir, "main.go"))
		if err == nil && bytes.Contains(main, []byte("module.Serve(")) {
			return Folder{dir, "go"}, nil
		}
	}
	return Folder{}, fmt.Errorf("%w in %s: want go.mod and a main.go that calls module.Serve, or main.py and mosaic_module.py", ErrNoModule, dir)
}

// FindHere gives the module of a folder, or else the only one in the folders right below it.
func FindHere(dir string) (Folder, error) {
	f, err := Find(dir)
	if err == nil {
		return f, nil
	}
	entries, readErr := os.ReadDir(dir)
	if readErr != nil {
		return Folder{}, fmt.Errorf("look for a module: %w", readErr)
	}
	var found []Folder
	var names []string
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if f, err := Find(filepath.Join(dir, e.Name())); err == nil {
			found = append(found, f)
			names = append(names, e.Name())
		}
	}
	switch len(found) {
	case 0:
		return Folder{}, err
	case 1:
		return found[0], nil
	}
	return Folder{}, fmt.Errorf("there are several modules in %s: say which of %s", dir, strings.Join(names, ", "))
}

func exists(dir, name string) bool {
	info, err := os.Stat(filepath.Join(dir, name))
	return err == nil && info.Mode().IsRegular()
}

// Build makes the module's executable, in the folder out if one has to be made, and gives its path. What the tools say
// goes to log.
func (f Folder) Build(ctx context.Context, out string, log io.Writer) (string, error) {
	if f.Lang == "python" {
		return filepath.Join(f.Dir, "main.py"), nil
	}
	binary := filepath.Join(out, "module")
	cmd := exec.CommandContext(ctx, "go", "build", "-mod=mod", "-trimpath", "-o", binary, ".")
	cmd.Dir = f.Dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return "", fmt.Errorf("build the module in %s: Go is not installed, or not in PATH", f.Dir)
		}
		return "", fmt.Errorf("build the module in %s: %w", f.Dir, err)
	}
	return binary, nil
}

// Checkout finds a checkout of Mosaic at or above one of the folders; "" if there is none.
func Checkout(from ...string) string {
	for _, dir := range from {
		for dir != "" {
			data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
			if err == nil && bytes.HasPrefix(data, []byte("module "+modulePath+"\n")) {
				return dir
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				break
			}
			up := filepath.Dir(dir)
			if up == dir {
				break
			}
			dir = up
		}
	}
	return ""
}
