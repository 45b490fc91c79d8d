package containerizer

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"

	pathrs "github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
)

// numericUser says whether a user can be told without looking at any file: a number, or root.
func numericUser(name string) bool {
	if name == "" || name == "root" {
		return true
	}
	_, err := strconv.ParseUint(name, 10, 32)
	return err == nil
}

// identify resolves a user, a name or a number, in the files of rootfs; a name that the image does not know is looked
// up on the host, where a framework's users live. Without user switching it is whoever the agent is.
func (c *Containerizer) identify(name, rootfs string) (launcher.User, error) {
	if !c.cfg.SwitchUser {
		return launcher.User{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}, nil
	}
	if name == "" {
		name = "root"
	}
	if rootfs != "" {
		u, err := lookup(name, rootfs)
		if err == nil || !errors.Is(err, user.ErrNoPasswdEntries) {
			return u, err
		}
	}
	return c.hostUsers.lookup(name)
}

// hostUsers remembers users of the host as long as its files stay as they are: each launch asks for one.
type hostUsers struct {
	mu    sync.Mutex
	stamp string                   // guarded by mu
	known map[string]launcher.User // guarded by mu
}

// maxHostUsers bounds what is remembered.
const maxHostUsers = 1000

func (h *hostUsers) lookup(name string) (launcher.User, error) {
	stamp := fileStamp("/etc/passwd") + fileStamp("/etc/group")
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stamp != stamp || len(h.known) >= maxHostUsers {
		h.stamp, h.known = stamp, map[string]launcher.User{}
	}
	if u, ok := h.known[name]; ok {
		return u, nil
	}
	u, err := lookup(name, "/")
	if err == nil {
		h.known[name] = u
	}
	return u, err
}

// fileStamp changes when a file does; that of one that is not there is empty.
func fileStamp(path string) string {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return ""
	}
	return fmt.Sprint(st.Ino, st.Size, st.Mtim, st.Ctim, ";")
}

// maxAccounts bounds what is read of passwd and group files, which an image may fill with anything.
const maxAccounts = 8 << 20

func lookup(name, rootfs string) (launcher.User, error) {
	passwd, err := openIn(rootfs, "/etc/passwd")
	if err != nil {
		return launcher.User{}, fmt.Errorf("user %q: %w", name, err)
	}
	defer passwd.Close()
	group, err := openIn(rootfs, "/etc/group")
	if err != nil {
		return launcher.User{}, fmt.Errorf("user %q: %w", name, err)
	}
	defer group.Close()
	if name == "root" { // also where nobody wrote it down
		name = "0"
	}
	// A number that nobody has gets a group of the same number, not root's: on the host that would open doors.
	unknown := &user.ExecUser{}
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		unknown.Gid = int(n)
	}
	found, err := user.GetExecUser(name, unknown, io.LimitReader(passwd, maxAccounts), io.LimitReader(group, maxAccounts))
	if err != nil {
		return launcher.User{}, fmt.Errorf("user %q: %w", name, err)
	}
	u := launcher.User{}
	if u.UID, err = id32(found.Uid); err != nil {
		return u, fmt.Errorf("user %q: uid %w", name, err)
	}
	if u.GID, err = id32(found.Gid); err != nil {
		return u, fmt.Errorf("user %q: gid %w", name, err)
	}
	for _, g := range found.Sgids {
		gid, err := id32(g)
		if err != nil {
			return u, fmt.Errorf("user %q: group %w", name, err)
		}
		u.Groups = append(u.Groups, gid)
	}
	return u, nil
}

// lookupGroups resolves groups, names or numbers, in the files of rootfs; without one only numbers can be.
func lookupGroups(names []string, rootfs string) ([]uint32, error) {
	var group io.Reader = strings.NewReader("")
	if rootfs != "" {
		f, err := openIn(rootfs, "/etc/group")
		if err != nil {
			return nil, err
		}
		defer f.Close()
		group = io.LimitReader(f, maxAccounts)
	}
	found, err := user.GetAdditionalGroups(names, group)
	if err != nil {
		return nil, err
	}
	list := make([]uint32, len(found))
	for n, gid := range found {
		if list[n], err = id32(gid); err != nil {
			return nil, fmt.Errorf("group %w", err)
		}
	}
	return list, nil
}

// openIn opens a file below rootfs whose links cannot lead out of it. One that is not there reads as empty.
func openIn(rootfs, name string) (*os.File, error) {
	f, err := pathrs.OpenInRoot(rootfs, name)
	if errors.Is(err, fs.ErrNotExist) {
		return os.Open(os.DevNull)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// A handle that only names the file: see what it is before opening it, since a pipe would block.
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", name)
	}
	return pathrs.Reopen(f, os.O_RDONLY)
}

func id32(n int) (uint32, error) {
	if n < 0 || n >= math.MaxUint32 { // all ones means "leave it" to the kernel
		return 0, fmt.Errorf("%d is out of range", n)
	}
	return uint32(n), nil
}
