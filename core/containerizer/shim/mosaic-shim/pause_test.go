package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// build makes the program.
func build(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mosaic-shim")
	if out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

// A pause as the first process of a pid namespace takes in the orphans of others there and leaves none of them dead and
// unburied, and ends only when it is killed.
func TestPauseBuriesOrphansAndEndsWhenKilled(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("namespaces need root")
	}
	path := build(t)
	cmd := exec.Command(path, "pause")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // ends with the process, which is killed below
	t.Cleanup(func() { _ = cmd.Process.Kill() })

	// A shell in the namespace, whose child dies after it. The child says its pid through a pipe that it keeps open.
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	inside := exec.Command("nsenter", fmt.Sprintf("--pid=/proc/self/fd/%d", 3), "sh", "-c", "sh -c 'read x' & exit 0")
	inside.ExtraFiles = []*os.File{ns}
	hold, release, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer release.Close()
	inside.Stdin = hold
	if out, err := inside.CombinedOutput(); err != nil {
		t.Fatalf("nsenter: %v: %s", err, out)
	}
	hold.Close()
	release.Close() // the orphan reads the end, and ends
	children := func() []string {
		list, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Fields(string(list))
	}
	for limit := time.Now().Add(10 * time.Second); len(children()) > 0; {
		if time.Now().After(limit) {
			t.Fatalf("children of pause = %v, want none left", children())
		}
		time.Sleep(time.Millisecond)
	}
	select {
	case err := <-ended:
		t.Fatalf("pause ended: %v", err)
	default:
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-ended
}

func TestShimStartedByHandSaysSo(t *testing.T) {
	path := build(t)
	cmd := exec.Command(path)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(stderr).ReadString('\n')
	err = cmd.Wait()
	if cmd.ProcessState.ExitCode() != 64 || !strings.Contains(line, "not by hand") {
		t.Errorf("mosaic-shim = %v, %q; want exit code 64 and why", err, line)
	}
}
