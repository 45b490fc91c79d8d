package modulehost

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// ProgramName is what the program of a module that has one of its own is called: mosaic-isolator-nvidia-gpu.
func ProgramName(kind, name string) string {
	return "mosaic-" + strings.ReplaceAll(kind+"-"+name, "_", "-")
}

// errNotInBundle says that the bundle holds no module of that name.
type errNotInBundle struct {
	bundle string
	known  []string // those of its kind
}

func (e *errNotInBundle) Error() string { return "not in the bundle " + e.bundle }

// ownProgram finds the program of a module that the composition gives no command for and the bundle does not hold, or
// not with the checksum that is pinned. Only the folders that the operator named are looked at, in their order, and the
// first file of the name is taken: one that is not safe to run is told of, and not passed over for another.
func (m *module) ownProgram() (path string, ok bool) {
	for _, dir := range m.host.opts.ProgramDirs {
		path := filepath.Join(dir, ProgramName(m.cfg.Kind, m.cfg.Name))
		if _, err := os.Stat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
			return path, true
		}
	}
	return "", false
}

// executable opens what is to be run for the module and gives its arguments.
//
// Errors: a *CompositionError for a file that cannot be run.
func (m *module) executable() (*executable, []string, error) {
	path, args := m.cfg.Command, m.cfg.Args
	switch {
	case path != "":
	case m.program != "":
		path = m.program
	case m.host.opts.Bundle != "":
		path, args = m.host.opts.Bundle, []string{m.cfg.Kind + "/" + m.cfg.Name}
	default:
		own, ok := m.ownProgram()
		if !ok {
			return nil, nil, m.refuse("command", "Module without a command",
				"This host has no bundle to take it from"+m.lookedAt()+"; say where its executable is.")
		}
		path = own
	}
	exe, err := m.host.digests.open(path, m.cfg.Checksum)
	if errors.Is(err, errChecksum) && m.cfg.Command == "" && m.program == "" {
		// What is pinned may be its own program.
		if own, ok := m.ownProgram(); ok {
			path, args = own, m.cfg.Args
			exe, err = m.host.digests.open(path, m.cfg.Checksum)
		}
	}
	if err != nil {
		return nil, nil, m.refuseFile(err)
	}
	return exe, args, nil
}

// lookedAt names the places where the module's program is not.
func (m *module) lookedAt() string {
	if len(m.host.opts.ProgramDirs) == 0 {
		return ""
	}
	return fmt.Sprintf(", and there is no %s in %s", ProgramName(m.cfg.Kind, m.cfg.Name), strings.Join(m.host.opts.ProgramDirs, " or "))
}

// refuseMissing says of a module that is nowhere where it was looked for.
func (m *module) refuseMissing(e *errNotInBundle) error {
	return m.refuse("command", "Not in the bundle", fmt.Sprintf("%s has no %s/%s%s; say where its executable is, or take one of %s.%s",
		e.bundle, m.cfg.Kind, m.cfg.Name, m.lookedAt(), strings.Join(e.known, ", "), didYouMean(m.cfg.Name, e.known)))
}
