package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// An account is the processor time of this program and all that it starts, of daemons and their containers, from the
// cgroups that they run in. It says the same on a busy machine as on a quiet one, or nearly, where times do not.
//
// Where there is no cgroup for it, as without root, there are no rows of processor time.
type account struct {
	own  string // this program's cgroup, "" without
	home string // where it was before
	v2   bool
}

// openAccount moves this program into a cgroup of its own.
func openAccount() *account {
	a := &account{v2: exists("/sys/fs/cgroup/cgroup.controllers")}
	root := "/sys/fs/cgroup/cpuacct"
	if a.v2 {
		root = "/sys/fs/cgroup"
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return a
	}
	for line := range strings.Lines(string(own)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 && (a.v2 && f[1] == "" || strings.Contains(f[1], "cpuacct")) {
			a.home = filepath.Join(root, f[2])
		}
	}
	group := filepath.Join(root, fmt.Sprintf("mosaic-bench-%d-account", os.Getpid()))
	if a.home == "" || os.Mkdir(group, 0o755) != nil {
		return a
	}
	if move(group) != nil {
		_ = unix.Rmdir(group)
		return a
	}
	a.own = group
	return a
}

func move(group string) error {
	return os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// close moves this program back. What it started has been ended by now, and is given a moment to be gone.
func (a *account) close() {
	if a.own == "" {
		return
	}
	_ = move(a.home)
	for range 100 {
		if unix.Rmdir(a.own) != unix.EBUSY {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// used is the processor time of all so far, with that of the containers below a cluster's root.
func (a *account) used(root string) (time.Duration, bool) {
	if a.own == "" {
		return 0, false
	}
	var sum time.Duration
	for _, group := range []string{a.own, filepath.Join(filepath.Dir(a.own), root)} {
		if !a.v2 {
			b, err := os.ReadFile(filepath.Join(group, "cpuacct.usage"))
			ns, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
			if err == nil {
				sum += time.Duration(ns)
			}
			continue
		}
		b, _ := os.ReadFile(filepath.Join(group, "cpu.stat"))
		us, _ := strconv.ParseInt(strings.Fields(string(b) + " usage_usec 0")[1], 10, 64)
		sum += time.Duration(us) * time.Microsecond
	}
	return sum, true
}

// processesBelow counts the processes of a cluster's containers and shims.
func processesBelow(root string) int {
	top := "/sys/fs/cgroup/pids/" + root
	if !exists(top) {
		top = "/sys/fs/cgroup/" + root
	}
	n := 0
	_ = filepath.WalkDir(top, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.Name() == "cgroup.procs" {
			list, _ := os.ReadFile(p)
			n += strings.Count(string(list), "\n")
		}
		return nil // what ends meanwhile does not count
	})
	return n
}
