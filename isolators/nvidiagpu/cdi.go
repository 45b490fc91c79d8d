package nvidiagpu

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// cdiKind is the kind of the devices in the specification: names are cdiKind=NAME.
const (
	cdiKind    = "nvidia.com/gpu"
	cdiVersion = "0.6.0" // the oldest that has all that is used
)

// A specification of the Container Device Interface, as far as it is used here.
//
// Source: cncf-tags/container-device-interface, SPEC.md, version 0.6.0.
type (
	cdiFile struct {
		Version string      `json:"cdiVersion"`
		Kind    string      `json:"kind"`
		Devices []cdiDevice `json:"devices"`
		Edits   cdiEdits    `json:"containerEdits"`
	}
	cdiDevice struct {
		Name  string   `json:"name"`
		Edits cdiEdits `json:"containerEdits"`
	}
	cdiEdits struct {
		Nodes  []cdiNode  `json:"deviceNodes,omitempty"`
		Mounts []cdiMount `json:"mounts,omitempty"`
	}
	cdiNode struct {
		Path        string `json:"path"`
		HostPath    string `json:"hostPath,omitempty"`
		Permissions string `json:"permissions,omitempty"`
	}
	cdiMount struct {
		HostPath      string   `json:"hostPath"`
		ContainerPath string   `json:"containerPath"`
		Options       []string `json:"options,omitempty"`
	}
)

// writeCDI writes what any runtime that knows the Container Device Interface needs to give these devices to a container:
// each by index, part and UUID, and all together.
func writeCDI(file string, d driver, volume string, pool []Device) error {
	spec, err := cdiSpec(d, volume, pool)
	if err != nil {
		return err
	}
	data, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	// Others read it at any moment, so it appears as a whole.
	tmp, err := os.CreateTemp(filepath.Dir(file), ".mosaic-gpu-*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(append(data, '\n'))
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
		return fmt.Errorf("write %s: %w", file, err)
	}
	return nil
}

func cdiSpec(d driver, volume string, pool []Device) (*cdiFile, error) {
	common, err := d.common()
	if err != nil {
		return nil, err
	}
	spec := &cdiFile{Version: cdiVersion, Kind: cdiKind, Devices: []cdiDevice{}, Edits: cdiEdits{Nodes: d.cdiNodes(common)}}
	for _, m := range d.volume(volume, allComponents()) {
		spec.Edits.Mounts = append(spec.Edits.Mounts, cdiMount{HostPath: m.GetSource(), ContainerPath: m.GetDestination(), Options: m.GetOptions()})
	}
	all := cdiDevice{Name: "all"}
	for _, dev := range pool {
		nodes, err := d.own(dev)
		if err != nil {
			return nil, err
		}
		edits := cdiEdits{Nodes: d.cdiNodes(nodes)}
		for _, name := range dev.names() {
			spec.Devices = append(spec.Devices, cdiDevice{Name: name, Edits: edits})
		}
		for _, n := range edits.Nodes {
			if !slices.Contains(all.Edits.Nodes, n) {
				all.Edits.Nodes = append(all.Edits.Nodes, n)
			}
		}
	}
	if len(pool) > 0 {
		spec.Devices = append(spec.Devices, all)
	}
	return spec, nil
}

func (d driver) cdiNodes(nodes []*containerv1.Device) []cdiNode {
	var list []cdiNode
	for _, n := range nodes {
		list = append(list, cdiNode{Path: n.GetPath(), HostPath: d.path(n.GetPath()), Permissions: n.GetAccess()})
	}
	return list
}
