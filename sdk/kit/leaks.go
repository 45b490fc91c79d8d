package kit

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// traces are what a module can leave lying about.
type traces struct {
	files, threads, cgroups int
	mounts, others          int // those that name the machine's folder, and those that may be anybody's
	leftovers               []int
}

// look counts the traces of a module now. In the test's own process descriptors and goroutines of the test count too;
// they do not grow either.
func look(m *Module, machine *Machine) traces {
	t := traces{cgroups: machine.Count()}
	t.countMounts("self", machine)
	if m.Process == nil {
		t.files = countDir("/proc/self/fd")
		t.threads = runtime.NumGoroutine()
		return t
	}
	proc := fmt.Sprintf("/proc/%d", m.Process.Pid())
	t.files, t.threads = countDir(proc+"/fd"), countDir(proc+"/task")
	t.countMounts(fmt.Sprint(m.Process.Pid()), machine)
	t.leftovers = m.Process.Leftovers()
	return t
}

func countDir(dir string) int {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	return len(entries)
}

// countMounts adds the mounts that a process sees. What else runs on the machine mounts and unmounts as well, so those that
// name a sandbox of the case are counted apart.
func (t *traces) countMounts(pid string, machine *Machine) {
	data, err := os.ReadFile("/proc/" + pid + "/mountinfo")
	if err != nil {
		return
	}
	for line := range bytes.Lines(data) {
		if bytes.Contains(line, []byte(machine.dir)) {
			t.mounts++
		} else {
			t.others++
		}
	}
}

const (
	// slack is how many descriptors, threads and goroutines may come and go by themselves: runtimes keep some.
	slack = 12
	// mountSlack is how many mounts others may add meanwhile. It is less than what fifty launches leave that lose one each.
	mountSlack = 40
	// settle is how long what ends by itself may take to do so.
	settle = 3 * time.Second
)

// leaks says what there is more of than before; "" if nothing.
func (t traces) leaks(before traces) string {
	var list []string
	for _, c := range []struct {
		what         string
		now, then, s int
	}{
		{"file descriptors", t.files, before.files, slack}, {"threads or goroutines", t.threads, before.threads, slack},
		{"mounts of sandboxes", t.mounts, before.mounts, 0}, {"mounts", t.others, before.others, mountSlack}, {"cgroups", t.cgroups, before.cgroups, 0},
	} {
		if c.now > c.then+c.s {
			list = append(list, fmt.Sprintf("%s: %d, were %d", c.what, c.now, c.then))
		}
	}
	for _, pid := range t.leftovers {
		if !slices.Contains(before.leftovers, pid) {
			list = append(list, fmt.Sprintf("process %d", pid))
		}
	}
	return strings.Join(list, "; ")
}

// Traces remembers what a module holds now. The function it returns fails the case if there is more later, once what
// ends by itself has ended.
func Traces(t T, m *Module, machine *Machine) (check func(after string)) {
	t.Helper()
	before := look(m, machine)
	return func(after string) {
		t.Helper()
		deadline := time.Now().Add(settle)
		for {
			leaks := look(m, machine).leaks(before)
			if leaks == "" {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("%s there is more than before: %s", after, leaks)
				return
			}
			time.Sleep(20 * time.Millisecond) // what happens in another process can only be looked at again
		}
	}
}
