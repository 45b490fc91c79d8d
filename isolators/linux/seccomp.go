package linux

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

const (
	// builtin is the profile that there is without a file: Docker's.
	builtin = "default"
	// maxProfile bounds a profile's file; Docker's default has 15 kB.
	maxProfile = 1 << 20
	// maxFilters bounds the cache. A machine has a few profiles and a few sets of capabilities; beyond this many
	// somebody makes them up, and all are compiled anew.
	maxFilters = 256
)

// errNoProfile is a name without a profile.
var errNoProfile = errors.New("there is no seccomp profile of that name")

// filters are compiled profiles by what they were made of.
type filters struct {
	mu   sync.Mutex // guards what follows
	made map[[sha256.Size]byte]*filter
}

// filter is one compiled profile.
type filter struct {
	once   sync.Once // so that many launches at once compile it once
	result *containerv1.Seccomp
	err    error
}

func newFilters() *filters { return &filters{made: map[[sha256.Size]byte]*filter{}} }

// get is the filter of a named profile for a container with these capabilities at most; nil if the profile filters
// nothing.
//
// Errors: errNoProfile; others say what is wrong with the profile.
func (f *filters) get(folder, name string, caps []string) (*containerv1.Seccomp, error) {
	text, err := profile(folder, name)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile %q: %w", name, err)
	}
	caps = slices.Sorted(slices.Values(caps))
	key := sha256.Sum256([]byte(strings.Join(caps, ",") + "\n" + text))
	f.mu.Lock()
	one := f.made[key]
	if one == nil {
		if len(f.made) >= maxFilters {
			clear(f.made)
		}
		one = &filter{}
		f.made[key] = one
	}
	f.mu.Unlock()
	one.once.Do(func() { one.result, one.err = build(text, caps) })
	if one.err != nil {
		return nil, fmt.Errorf("seccomp profile %q: %w", name, one.err)
	}
	return one.result, nil
}

// profile reads a profile; the built in one is the empty text. It is read at each launch, which costs no more than
// finding out whether it changed.
func profile(folder, name string) (string, error) {
	if name != filepath.Base(name) || strings.HasPrefix(name, ".") {
		return "", fmt.Errorf("%w: it is not the name of a file", errNoProfile)
	}
	if folder == "" {
		if name == builtin {
			return "", nil
		}
		return "", fmt.Errorf("%w: no folder is set (seccomp_profiles)", errNoProfile)
	}
	for _, file := range []string{name, name + ".json"} {
		f, err := os.Open(filepath.Join(folder, file))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		text, err := io.ReadAll(io.LimitReader(f, maxProfile+1))
		f.Close()
		if err != nil {
			return "", err
		}
		if len(text) > maxProfile {
			return "", fmt.Errorf("more than %d bytes", maxProfile)
		}
		if len(text) == 0 {
			return "", errors.New("the file is empty")
		}
		return string(text), nil
	}
	if name == builtin {
		return "", nil
	}
	return "", fmt.Errorf("%w in %s", errNoProfile, folder)
}

// build resolves a profile for this machine and these capabilities, and compiles it.
func build(text string, caps []string) (*containerv1.Seccomp, error) {
	spec := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}}
	var resolved *specs.LinuxSeccomp
	var err error
	if text == "" {
		resolved, err = seccomp.GetDefaultProfile(spec)
	} else {
		resolved, err = seccomp.LoadProfile(text, spec)
	}
	if err != nil {
		return nil, err
	}
	if resolved == nil { // neither an action nor system calls
		return nil, nil
	}
	program, err := compile(resolved)
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(resolved)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	digest := sha256.Sum256(data)
	return &containerv1.Seccomp{OciJson: string(data), Bpf: program, Digest: hex.EncodeToString(digest[:])}, nil
}
