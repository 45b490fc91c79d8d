package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
)

// A network is a chain of plugins under a name.
type network struct {
	Name         string            `json:"name"`
	Version      string            `json:"cniVersion"`
	DisableCheck bool              `json:"disableCheck,omitempty"`
	Plugins      []json.RawMessage `json:"plugins"`

	builtIn bool
	rules   string // what makes the built-in network's rules
}

// maxConfig bounds a configuration file, and what there is of it after it was read.
const maxConfig = 256 << 10

// parseNetwork reads a network as record.Config has it.
func parseNetwork(data []byte) (*network, error) {
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	return fromList(list)
}

func fromList(list *libcni.NetworkConfigList) (*network, error) {
	n := &network{Name: list.Name, Version: list.CNIVersion, DisableCheck: list.DisableCheck}
	if n.Version == "" {
		n.Version = "0.1.0" // what the specification takes it for
	}
	if err := utils.ValidateNetworkName(n.Name); err != nil {
		return nil, fmt.Errorf("name %.80q: %s", n.Name, err.Msg)
	}
	if _, err := version.GreaterThan(n.Version, "0.1.0"); err != nil {
		return nil, fmt.Errorf("cniVersion: %w", err)
	}
	if newer, err := version.GreaterThan(n.Version, version.Current()); err != nil || newer {
		return nil, fmt.Errorf("cniVersion: got %s, want at most %s", n.Version, version.Current())
	}
	if len(list.Plugins) == 0 {
		return nil, errors.New("no plugins")
	}
	for _, p := range list.Plugins {
		n.Plugins = append(n.Plugins, p.Bytes)
	}
	return n, nil
}

// readNetwork reads a file of any of the forms that there are: a list of plugins, or a single one.
func readNetwork(file string) (*network, error) {
	st, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxConfig {
		return nil, fmt.Errorf("got %d bytes, want a file of at most %d", st.Size(), maxConfig)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var single struct {
		Name    string          `json:"name"`
		Version string          `json:"cniVersion"`
		Type    string          `json:"type"`
		Plugins json.RawMessage `json:"plugins"`
	}
	if err := json.Unmarshal(data, &single); err != nil {
		return nil, err
	}
	if single.Type != "" && single.Plugins == nil {
		if data, err = json.Marshal(network{Name: single.Name, Version: single.Version, Plugins: []json.RawMessage{data}}); err != nil {
			return nil, err
		}
		return parseNetwork(data)
	}
	list, err := libcni.NetworkConfFromFile(file)
	if err != nil {
		return nil, err
	}
	return fromList(list)
}

// readNetworks reads all networks of a folder by name, in the order of the files' names: the first of a name holds. A
// file that cannot be used does not cost the others; what is wrong with it is among the errors.
func readNetworks(dir string) (map[string]*network, []error) {
	all := map[string]*network{}
	if dir == "" {
		return all, nil
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return all, []error{fmt.Errorf("config_dir %s: no such folder", dir)}
	}
	if err != nil {
		return all, []error{err}
	}
	var errs []error
	for _, e := range entries { // sorted
		if !slices.Contains([]string{".conf", ".json", ".conflist"}, filepath.Ext(e.Name())) {
			continue
		}
		file := filepath.Join(dir, e.Name())
		n, err := readNetwork(file)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%s: %w", file, err))
		case all[n.Name] != nil:
			errs = append(errs, fmt.Errorf("%s: another file before it has the network %s", file, n.Name))
		default:
			all[n.Name] = n
		}
	}
	return all, errs
}

// has says whether a plugin of the network, or its address management, declares a capability.
func (n *network) has(capability string) bool {
	return slices.ContainsFunc(n.Plugins, func(p json.RawMessage) bool { return capabilities(p)[capability] })
}

// missing names the first plugin that there is no program for.
func (n *network) missing(path []string) error {
	for _, p := range n.Plugins {
		if _, err := findPlugin(pluginType(p), path); err != nil {
			return fmt.Errorf("network %s: plugin %s: %w", n.Name, pluginType(p), err)
		}
	}
	return nil
}

// names lists networks for people.
func names(all map[string]*network) string {
	if len(all) == 0 {
		return "this agent has none"
	}
	return "this agent has " + strings.Join(slices.Sorted(maps.Keys(all)), ", ")
}
