package wire

// A Root is the root file system that the first process makes its own, and what is mounted in it.
type Root struct {
	// Path is a folder on the host, which nobody but the agent may move.
	Path string
	// ReadOnly: once all is in place, nothing of Path itself can be written.
	ReadOnly bool
	// Mounts are made in this order.
	Mounts []Mount
	// OwnDev: /dev is the container's own and is given the usual links.
	OwnDev  bool
	Devices []Device
	// Masked hide files and folders, Fixed keep them from being written. What is not there is passed over.
	Masked, Fixed []string
	// Home: HOME, where the environment has none, comes from the container's own list of users.
	Home bool
}

// A Mount is one mount below a root.
type Mount struct {
	// Destination is absolute and clean. It is made when missing.
	Destination string
	// Type is a file system's, or empty to bind Source, a path on the host.
	Type, Source string
	// Recursive: with what is mounted below Source.
	Recursive bool
	// Options of the file system, NAME or NAME=VALUE.
	Options []string
	// Set and Clear are MOUNT_ATTR_* of the mount itself.
	Set, Clear uint64
	// Propagation is MS_PRIVATE, MS_SLAVE or MS_UNBINDABLE, with MS_REC for what is below too; 0 leaves it a slave.
	Propagation uint64
}

// A Device is a node to make.
type Device struct {
	Path     string // absolute and clean
	Mode     uint32 // as in stat(2), with the type
	Dev      uint64 // as mknod(2) takes it
	UID, GID uint32
}

func (r *Root) append(b []byte) []byte {
	b = appendString(b, r.Path)
	b = appendBool(b, r.ReadOnly)
	b = appendUint(b, uint64(len(r.Mounts)))
	for _, m := range r.Mounts {
		b = appendString(appendString(appendString(b, m.Destination), m.Type), m.Source)
		b = appendStrings(appendBool(b, m.Recursive), m.Options)
		b = appendUint(appendUint(appendUint(b, m.Set), m.Clear), m.Propagation)
	}
	b = appendBool(b, r.OwnDev)
	b = appendUint(b, uint64(len(r.Devices)))
	for _, d := range r.Devices {
		b = appendUint(appendUint(appendString(b, d.Path), uint64(d.Mode)), d.Dev)
		b = appendUint(appendUint(b, uint64(d.UID)), uint64(d.GID))
	}
	b = appendStrings(appendStrings(b, r.Masked), r.Fixed)
	return appendBool(b, r.Home)
}

// root decodes a Root, nil where there is none.
func (r *reader) root() *Root {
	v := &Root{Path: r.string()}
	if v.Path == "" {
		return nil
	}
	v.ReadOnly = r.bool()
	for n := r.count(); r.more(n); n-- {
		v.Mounts = append(v.Mounts, Mount{
			Destination: r.string(), Type: r.string(), Source: r.string(), Recursive: r.bool(), Options: r.strings(),
			Set: r.uint(), Clear: r.uint(), Propagation: r.uint(),
		})
	}
	v.OwnDev = r.bool()
	for n := r.count(); r.more(n); n-- {
		v.Devices = append(v.Devices, Device{
			Path: r.string(), Mode: uint32(r.uint()), Dev: r.uint(), UID: uint32(r.uint()), GID: uint32(r.uint()),
		})
	}
	v.Masked, v.Fixed = r.strings(), r.strings()
	v.Home = r.bool()
	return v
}
