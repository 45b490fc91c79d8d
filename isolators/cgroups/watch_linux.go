package cgroups

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

const (
	// suspicion is how long after an event of version 1 a kill is looked for: the kernel speaks before it kills, and
	// also when an ancestor is out of memory, which need not cost this container anything.
	suspicion = 2 * time.Second
	// glance is the time between two looks.
	glance = 5 * time.Millisecond
)

// watcher hears of containers out of memory from the kernel: on version 1 by an event descriptor for each cgroup, on
// version 2 by one inotify instance on the memory.events of all. One goroutine each waits for all of them, since
// there may be thousands and each almost never speaks.
type watcher struct {
	report func(*modulev1.Limitation) // called with no lock held
	epoll  int
	notify *os.File // inotify

	mu       sync.Mutex // guards what follows
	byID     map[string]*watched
	byFD     map[int32]*watched // event descriptors
	byNotify map[int32]*watched // inotify watches
}

// watched is one container.
type watched struct {
	id     string
	group  group
	fd     int                  // event descriptor, or -1
	notify int32                // inotify watch, or -1
	kills  uint64               // oom kills reported so far
	last   *modulev1.Limitation // what was reported last, for when the cgroup is gone
}

func newWatcher(report func(*modulev1.Limitation)) (*watcher, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create: %w", err)
	}
	inotify, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		_ = unix.Close(epoll)
		return nil, fmt.Errorf("inotify_init: %w", err)
	}
	w := &watcher{
		report: report, epoll: epoll, notify: os.NewFile(uintptr(inotify), "inotify"),
		byID: map[string]*watched{}, byFD: map[int32]*watched{}, byNotify: map[int32]*watched{},
	}
	go w.events() // both live as long as the module: there is one watcher, and no way to end it before the process
	go w.notifications()
	return w, nil
}

// follow watches a container; a second time is no change.
func (w *watcher) follow(id string, g group) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.byID[id] != nil {
		return nil
	}
	c := &watched{id: id, group: g, fd: -1, notify: -1}
	var err error
	if g.unified() {
		err = w.followV2(c)
	} else {
		err = w.followV1(c)
	}
	if err != nil {
		return err
	}
	w.byID[id] = c
	return nil
}

func (w *watcher) followV2(c *watched) error {
	// The descriptor is the runtime's, which must not block: inotify_add_watch goes through it all the same.
	raw, err := w.notify.SyscallConn()
	if err != nil {
		return err
	}
	var wd int
	var addErr error
	if err := raw.Control(func(fd uintptr) {
		wd, addErr = unix.InotifyAddWatch(int(fd), filepath.Join(c.group.path("memory"), "memory.events"), unix.IN_MODIFY)
	}); err != nil {
		return err
	}
	if addErr != nil {
		return fmt.Errorf("inotify_add_watch: %w", addErr)
	}
	c.notify = int32(wd)
	w.byNotify[c.notify] = c
	return nil
}

func (w *watcher) followV1(c *watched) error {
	dir := c.group.path("memory")
	control, err := os.Open(filepath.Join(dir, "memory.oom_control"))
	if err != nil {
		return err
	}
	defer control.Close()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	text := fmt.Sprintf("%d %d", fd, control.Fd())
	if err := os.WriteFile(filepath.Join(dir, "cgroup.event_control"), []byte(text), 0); err != nil {
		_ = unix.Close(fd)
		return err
	}
	c.fd = fd
	w.byFD[int32(fd)] = c
	if err := unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
		delete(w.byFD, int32(fd))
		_ = unix.Close(fd)
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// look checks a container without waiting for the kernel to speak.
func (w *watcher) look(id string) {
	w.mu.Lock()
	c := w.byID[id]
	w.mu.Unlock()
	if c != nil {
		w.check(c)
	}
}

// forget ends the watch of a container; of an unknown one it does nothing.
func (w *watcher) forget(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.byID[id]
	if c == nil {
		return
	}
	delete(w.byID, id)
	if c.fd >= 0 {
		delete(w.byFD, int32(c.fd))
		_ = unix.Close(c.fd) // takes it out of epoll as well
	}
	if c.notify >= 0 {
		delete(w.byNotify, c.notify)
		if raw, err := w.notify.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) {
				_, _ = unix.InotifyRmWatch(int(fd), uint32(c.notify)) // gone already if the cgroup is
			})
		}
	}
}

// events waits for event descriptors of version 1. They also speak when their cgroup is removed.
func (w *watcher) events() {
	list := make([]unix.EpollEvent, 64)
	suspects := map[*watched]time.Time{} // until when
	for {
		wait := -1
		if len(suspects) > 0 {
			wait = int(glance.Milliseconds())
		}
		n, err := unix.EpollWait(w.epoll, list, wait)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		n = max(n, 0)
		for _, e := range list[:n] {
			w.mu.Lock()
			c := w.byFD[e.Fd]
			if c != nil { // under the lock, so that the number is still this descriptor's
				var count [8]byte
				_, _ = unix.Read(c.fd, count[:])
				suspects[c] = time.Now().Add(suspicion)
			}
			w.mu.Unlock()
		}
		for c, until := range suspects {
			if w.check(c) || time.Now().After(until) {
				delete(suspects, c)
			}
		}
	}
}

// notifications waits for changes of memory.events on version 2.
func (w *watcher) notifications() {
	buf := make([]byte, 64*(unix.SizeofInotifyEvent+16))
	for {
		n, err := w.notify.Read(buf)
		if err != nil {
			return
		}
		for at := 0; at+unix.SizeofInotifyEvent <= n; {
			wd := int32(binary.NativeEndian.Uint32(buf[at:]))
			at += unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(buf[at+12:]))
			w.mu.Lock()
			c := w.byNotify[wd]
			w.mu.Unlock()
			if c != nil {
				w.check(c)
			}
		}
	}
}

// check reports a container if the kernel has killed in it since the last look, and says whether it did.
func (w *watcher) check(c *watched) bool {
	kills := c.group.oomKills()
	w.mu.Lock()
	more := kills > c.kills && w.byID[c.id] == c
	c.kills = max(c.kills, kills)
	w.mu.Unlock()
	if !more {
		return false
	}
	l := limitation(c.id, c.group)
	w.mu.Lock()
	c.last = l
	w.mu.Unlock()
	w.report(l)
	return true
}

// reported is the last limitation of a container, nil if there was none.
func (w *watcher) reported(id string) *modulev1.Limitation {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c := w.byID[id]; c != nil {
		return c.last
	}
	return nil
}
