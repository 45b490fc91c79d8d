package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// Persistent volumes are folders where Mesos has them: volumes/roles/ROLE/ID below the work directory, or below the
// root of a disk of type PATH; a disk of type MOUNT is one volume as a whole. A slash in a role is a space there.
//
// A volume that is destroyed is moved out of the way at once and removed in the background. Which move is owed is on
// disk with the total that no longer has the volume, and what was moved keeps the name of its operation until the
// move is on record: so a crash at any point neither leaves data where a new volume of the same id would find it nor
// takes a new volume away for an old one.

// trash holds what was moved away, beside volumes/roles.
const trash = ".destroyed"

// wipe is a volume that was destroyed. id, unique, names it in the trash.
type wipe struct {
	id     string
	volume *mesosv1.Resource
}

func decodeWipe(b []byte) (wipe, error) {
	w := wipe{volume: new(mesosv1.Resource)}
	err := fields(b, func(num protowire.Number, _ uint64, data []byte) error {
		switch num {
		case 1:
			w.id = string(data)
		case 2:
			return w.volume.UnmarshalVT(data)
		}
		return nil
	})
	if err == nil && (w.id == "" || filepath.Base(w.id) != w.id) {
		err = errRecord
	}
	return w, err
}

// wipesOf are the volumes that an operation destroys.
func wipesOf(op *mesosv1.Offer_Operation, id string) []wipe {
	var all []wipe
	for i, v := range op.GetDestroy().GetVolumes() {
		all = append(all, wipe{fmt.Sprintf("%s-%d", id, i), v})
	}
	return all
}

// volumeRoot is where the folders of volumes on the disk of v lie; mount says that it is the volume.
func (a *Agent) volumeRoot(v *mesosv1.Resource) (root string, mount bool, err error) {
	source := v.GetDisk().GetSource()
	if source == nil {
		return a.cfg.WorkDir, false, nil
	}
	switch source.GetType() {
	case mesosv1.Resource_DiskInfo_Source_PATH:
		root = source.GetPath().GetRoot()
	case mesosv1.Resource_DiskInfo_Source_MOUNT:
		root, mount = source.GetMount().GetRoot(), true
	default:
		return "", false, fmt.Errorf("no persistent volumes on a disk of type %s", source.GetType())
	}
	if root == "" {
		return "", false, fmt.Errorf("a disk of type %s has no root", source.GetType())
	}
	if !filepath.IsAbs(root) {
		root = filepath.Join(a.cfg.WorkDir, root)
	}
	return root, mount, nil
}

// volumeDir is the folder of a persistent volume.
func (a *Agent) volumeDir(v *mesosv1.Resource) (string, error) {
	root, mount, err := a.volumeRoot(v)
	if err != nil || mount {
		return root, err
	}
	role, id := strings.ReplaceAll(reservedTo(v), "/", " "), v.GetDisk().GetPersistence().GetId()
	if role == "" || role == "." || role == ".." || id == "" || filepath.Base(id) != id || id == "." || id == ".." {
		return "", fmt.Errorf("persistent volume %q of role %q: not a name of a folder", id, role)
	}
	return filepath.Join(root, "volumes", "roles", role, id), nil
}

// placeVolumes fills in where on this machine the persistent volumes among rs are. rs is not changed.
func (a *Agent) placeVolumes(rs []*mesosv1.Resource) []*mesosv1.Resource {
	var out []*mesosv1.Resource
	for i, r := range rs {
		if r.GetDisk().GetPersistence() == nil || r.GetDisk().GetVolume() == nil {
			continue
		}
		if out == nil {
			out = slices.Clone(rs)
		}
		out[i] = r.CloneVT()
		out[i].Disk.Volume.HostPath = nil // whoever set it, it is the agent's to say
		if dir, err := a.volumeDir(r); err == nil {
			out[i].Disk.Volume.HostPath = &dir
		} // else the launch is refused, for a volume that is nowhere
	}
	if out == nil {
		return rs
	}
	return out
}

// settleVolumes has the disk follow the holdings: volumes destroyed are moved away, others have their folder. The
// caller holds the lock; nothing here takes longer than a few calls of the kernel.
func (a *Agent) settleVolumes() {
	var c change
	for _, w := range a.holdings.wipes {
		if err := a.moveAway(w); err != nil {
			a.fail(fmt.Errorf("destroy volume %s: %w", w.volume.GetDisk().GetPersistence().GetId(), err))
			return
		}
	}
	for _, v := range a.holdings.total.PersistentVolumes().Resources() {
		dir, err := a.volumeDir(v)
		if err == nil {
			err = os.MkdirAll(dir, 0o755)
		}
		if err != nil {
			a.fail(fmt.Errorf("make volume %s: %w", v.GetDisk().GetPersistence().GetId(), err))
			return
		}
	}
	if len(a.holdings.wipes) == 0 {
		return
	}
	moved := a.holdings.wipes
	a.holdings.wipes = nil
	if err := a.putHoldings(&c); err != nil {
		a.fail(err)
		return
	}
	c.then(func() {
		var dirs []string
		for _, w := range moved {
			if dir, err := a.trashDir(w); err == nil {
				dirs = append(dirs, dir)
			}
		}
		a.empty(dirs)
	})
	a.do(&c)
}

// trashDir is where a destroyed volume is moved.
func (a *Agent) trashDir(w wipe) (string, error) {
	root, mount, err := a.volumeRoot(w.volume)
	if err != nil {
		return "", err
	}
	if mount {
		return filepath.Join(root, trash, w.id), nil
	}
	return filepath.Join(root, "volumes", trash, w.id), nil
}

// moveAway moves a destroyed volume to its place in the trash. If something is there, it was moved before.
func (a *Agent) moveAway(w wipe) error {
	from, err := a.volumeDir(w.volume)
	if err != nil {
		return err
	}
	to, err := a.trashDir(w)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(to); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	if _, mount, _ := a.volumeRoot(w.volume); mount {
		return moveContents(from, to)
	}
	err = os.Rename(from, to)
	if errors.Is(err, os.ErrNotExist) {
		err = os.Mkdir(to, 0o700) // nothing to move, which the next start shall see
	}
	return err
}

// moveContents moves all but the trash from a folder that is a mount and cannot be moved itself. The folder to gets
// its name at last, when all is in it.
func moveContents(from, to string) error {
	part := to + ".part"
	if err := os.MkdirAll(part, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == trash {
			continue
		}
		if err := os.Rename(filepath.Join(from, e.Name()), filepath.Join(part, e.Name())); err != nil {
			return err
		}
	}
	return os.Rename(part, to)
}

// empty removes folders of the trash in the background. What an agent that ends leaves the next one removes. The
// caller holds the lock.
func (a *Agent) empty(dirs []string) {
	if len(dirs) == 0 {
		return
	}
	a.spawn(func(ctx context.Context) {
		for _, dir := range dirs {
			if err := removeTree(ctx, dir); err != nil && ctx.Err() == nil {
				a.log.Warn("remove a destroyed volume, the next start tries again", "error", err)
			}
		}
	})
}

// removeTree removes a folder, in steps between which ctx can end it.
func removeTree(ctx context.Context, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	for _, e := range entries {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		path := filepath.Join(dir, e.Name())
		if e.IsDir() {
			err = removeTree(ctx, path)
		} else {
			err = os.Remove(path)
		}
		if err != nil {
			return err
		}
	}
	return os.Remove(dir)
}

// recoverVolumes finishes what an agent before left of destroyed volumes. The caller holds the lock.
func (a *Agent) recoverVolumes() {
	owed := make(map[string]bool)
	roots := map[string]bool{filepath.Join(a.cfg.WorkDir, "volumes", trash): true}
	for _, w := range a.holdings.wipes {
		if dir, err := a.trashDir(w); err == nil {
			owed[dir] = true
		}
	}
	for _, r := range a.holdings.total.Named("disk").Resources() {
		if dir, err := a.trashDir(wipe{id: "any", volume: r}); err == nil {
			roots[filepath.Dir(dir)] = true
		}
	}
	var left []string
	for root := range roots {
		entries, err := os.ReadDir(root)
		if err != nil {
			continue // there is none
		}
		for _, e := range entries {
			if dir := filepath.Join(root, e.Name()); !owed[dir] && !owed[strings.TrimSuffix(dir, ".part")] {
				left = append(left, dir)
			}
		}
	}
	a.settleVolumes()
	a.empty(left)
}
