// Package bundle is the list of modules that come with Mosaic, each under the name by which a composition asks for it.
//
// They share one binary, mosaic-modules, so that their processes share its pages; each is a process of its own all the
// same, and could be served by a binary of its own.
package bundle

import (
	"github.com/mosaic-cluster/mosaic/authorizers/acl"
	"github.com/mosaic-cluster/mosaic/isolators/cgroups"
	"github.com/mosaic-cluster/mosaic/isolators/cni"
	"github.com/mosaic-cluster/mosaic/isolators/devices"
	"github.com/mosaic-cluster/mosaic/isolators/disk"
	"github.com/mosaic-cluster/mosaic/isolators/dockervolume"
	"github.com/mosaic-cluster/mosaic/isolators/linux"
	"github.com/mosaic-cluster/mosaic/isolators/namespaces"
	"github.com/mosaic-cluster/mosaic/isolators/portmapping"
	"github.com/mosaic-cluster/mosaic/isolators/ports"
	"github.com/mosaic-cluster/mosaic/isolators/rlimits"
	"github.com/mosaic-cluster/mosaic/isolators/volumes"
	logfile "github.com/mosaic-cluster/mosaic/modules/containerloggers/file"
	"github.com/mosaic-cluster/mosaic/modules/containerloggers/syslog"
	"github.com/mosaic-cluster/mosaic/modules/qoscontrollers/load"
	"github.com/mosaic-cluster/mosaic/modules/resourceestimators/fixed"
	"github.com/mosaic-cluster/mosaic/modules/secretresolvers/file"
	"github.com/mosaic-cluster/mosaic/sdk/module"
)

// Modules returns the constructors by "kind/name".
func Modules() map[string]func() module.Module {
	return map[string]func() module.Module{
		"authorizer/acl":           func() module.Module { return acl.New() },
		"container_logger/file":    func() module.Module { return logfile.New() },
		"container_logger/syslog":  func() module.Module { return syslog.New() },
		"isolator/cgroups":         func() module.Module { return cgroups.New() },
		"isolator/cni":             func() module.Module { return cni.New() },
		"isolator/devices":         func() module.Module { return devices.New() },
		"isolator/linux":           func() module.Module { return linux.New() },
		"isolator/namespaces":      func() module.Module { return namespaces.New() },
		"isolator/volumes":         func() module.Module { return volumes.New() },
		"isolator/disk":            func() module.Module { return disk.New() },
		"isolator/docker_volume":   func() module.Module { return dockervolume.New() },
		"isolator/port_mapping":    func() module.Module { return portmapping.New() },
		"isolator/ports":           func() module.Module { return ports.New() },
		"isolator/rlimits":         func() module.Module { return rlimits.New() },
		"qos_controller/load":      func() module.Module { return load.New() },
		"resource_estimator/fixed": func() module.Module { return fixed.New() },
		"secret_resolver/file":     func() module.Module { return file.New() },
	}
}
