package oci

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// propagations are the options that say how a mount is shared with others.
var propagations = []string{"shared", "rshared", "slave", "rslave", "private", "rprivate", "unbindable", "runbindable"}

// propagate returns how the root file system of a container with these mounts is to be shared: rshared where one of
// them shows on this machine what is mounted in it, "" where none does.
//
// A runtime makes all that its container sees a slave of this machine's mounts before it mounts anything, unless it is
// told otherwise, and nothing can be shared then. Told so it leaves all mounts shared: those that do not say how they
// want to be become the slaves that they would have been.
func propagate(mounts []specs.Mount) string {
	if !slices.ContainsFunc(mounts, func(m specs.Mount) bool {
		return slices.Contains(m.Options, "rshared") || slices.Contains(m.Options, "shared")
	}) {
		return ""
	}
	for i, m := range mounts {
		bound := slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
		if bound && !slices.ContainsFunc(m.Options, func(o string) bool { return slices.Contains(propagations, o) }) {
			mounts[i].Options = append(m.Options, "rslave")
		}
	}
	return "rshared"
}
