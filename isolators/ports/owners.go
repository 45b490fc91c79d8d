package ports

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const (
	// deepest bounds how far down cgroups are looked into; containers are nested far less deep.
	deepest = 16
	// mostProcesses bounds the processes looked at in one container, mostFiles the descriptors of one process: a
	// container can make the look slow, but not endless.
	mostProcesses = 1 << 16
	mostFiles     = 1 << 16
)

// processFolders gives the folders in which a container's processes are listed, the best first: every hierarchy lists
// all of them.
func processFolders(cgroups map[string]string) []string {
	var list []string
	for _, controller := range []string{"", "freezer", "memory", "pids", "cpu"} {
		p := cgroups[controller]
		if filepath.IsAbs(p) && filepath.Clean(p) == p && p != "/" && !strings.ContainsRune(p, 0) {
			list = append(list, p)
		}
	}
	return list
}

// owners finds which container each socket belongs to: the innermost whose cgroup has a process that holds it. A
// socket that several hold is each one's.
func owners(containers map[string]tracked, sockets map[uint64]uint16) map[string][]uint64 {
	folders := map[string]string{} // to container id
	for id, c := range containers {
		folder := processFolders(c.cgroups)[0]
		if other, taken := folders[folder]; !taken || len(id) < len(other) {
			folders[folder] = id // those that share one cgroup are told as the outermost
		}
	}
	found := map[string][]uint64{}
	for folder, id := range folders {
		pids := processes(folder, folders, 0, nil)
		seen := map[uint64]bool{}
		for _, pid := range pids {
			held(pid, sockets, seen)
		}
		if len(seen) > 0 {
			found[id] = slices.Sorted(maps.Keys(seen))
		}
	}
	return found
}

// processes lists the processes of a cgroup and of those in it that are no other container's.
func processes(folder string, others map[string]string, depth int, list []int) []int {
	data, err := os.ReadFile(filepath.Join(folder, "cgroup.procs"))
	if err != nil {
		return list // it ended
	}
	for line := range strings.Lines(string(data)) {
		if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && pid > 0 && len(list) < mostProcesses {
			list = append(list, pid)
		}
	}
	if depth == deepest {
		return list
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		return list
	}
	for _, e := range entries {
		inner := filepath.Join(folder, e.Name())
		if _, other := others[inner]; e.IsDir() && !other {
			list = processes(inner, others, depth+1, list)
		}
	}
	return list
}

// held adds to seen those sockets that a process holds.
func held(pid int, sockets map[uint64]uint16, seen map[uint64]bool) {
	dir, err := os.Open("/proc/" + strconv.Itoa(pid) + "/fd")
	if err != nil {
		return // it ended
	}
	defer dir.Close()
	for n := 0; n < mostFiles; {
		names, err := dir.Readdirnames(1024)
		n += len(names)
		for _, name := range names {
			target, err := os.Readlink(filepath.Join(dir.Name(), name))
			if err != nil {
				continue
			}
			number, ok := strings.CutPrefix(target, "socket:[")
			if !ok {
				continue
			}
			inode, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 64)
			if _, listens := sockets[inode]; err == nil && listens {
				seen[inode] = true
			}
		}
		if err != nil || len(names) == 0 {
			return
		}
	}
}
