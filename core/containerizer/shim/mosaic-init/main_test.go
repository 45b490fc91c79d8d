package main

import (
	"bufio"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// build makes the program, once for the tests of a process.
func build(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mosaic-init")
	cmd := exec.Command("go", "build", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

func TestInitEndsAsItsCommand(t *testing.T) {
	path := build(t)
	for _, test := range []struct {
		argv []string
		code int
		says string
	}{
		{[]string{"sh", "-c", "exit 7"}, 7, ""},
		{[]string{"true"}, 0, ""},
		{[]string{"sh", "-c", "kill -QUIT $$"}, 128 + 3, ""},
		{[]string{"no-such-program"}, 127, "no-such-program"},
		{[]string{"/no/such/program"}, 127, "/no/such/program"},
		{[]string{"/etc/passwd"}, 126, "permission denied"},
		{nil, 64, "a command is missing"},
	} {
		var said strings.Builder
		cmd := exec.Command(path, test.argv...)
		cmd.Stderr = &said
		err := cmd.Run()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		if code := cmd.ProcessState.ExitCode(); code != test.code || !strings.Contains(said.String(), test.says) {
			t.Errorf("mosaic-init %q: got exit code %d and %q, want %d and %q", test.argv, code, said.String(), test.code, test.says)
		}
	}
}

// inNamespace runs script by an init that is the first process of a pid namespace, and returns it with its output.
func inNamespace(t *testing.T, script string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("namespaces need root")
	}
	cmd := exec.Command(build(t), "sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd, bufio.NewReader(out)
}

func line(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	text, err := r.ReadString('\n')
	if err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return strings.TrimSuffix(text, "\n")
}

func TestInitPassesSignalsOn(t *testing.T) {
	cmd, out := inNamespace(t, `trap 'echo term' TERM; trap 'echo hup; exit 9' HUP; echo ready; while :; do sleep 0.01; done`)
	if got := line(t, out); got != "ready" {
		t.Fatalf("output: got %q, want ready", got)
	}
	for _, x := range []struct {
		sig  syscall.Signal
		want string
	}{{syscall.SIGTERM, "term"}, {syscall.SIGHUP, "hup"}} {
		if err := cmd.Process.Signal(x.sig); err != nil {
			t.Fatal(err)
		}
		if got := line(t, out); got != x.want {
			t.Fatalf("output after %v: got %q, want %q", x.sig, got, x.want)
		}
	}
	if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 9 {
		t.Errorf("exit code: got %d, want the command's 9", cmd.ProcessState.ExitCode())
	}
}

func TestInitBuriesOrphans(t *testing.T) {
	// The orphan's parent is gone before it ends. Once its number is of nobody, it is buried; until then, /proc of the
	// machine shows it, dead or alive.
	_, out := inNamespace(t, `p=$(sh -c 'sleep 0.1 >/dev/null & echo $!'); while kill -0 $p 2>/dev/null; do sleep 0.01; done; echo buried`)
	if got := line(t, out); got != "buried" {
		t.Errorf("output: got %q, want buried", got)
	}
}

func TestCommandOfAnInitHasSignalsAsUsual(t *testing.T) {
	signals := func(argv ...string) map[string]string {
		out, err := exec.Command(argv[0], argv[1:]...).Output()
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]string{}
		for l := range strings.Lines(string(out)) {
			if name, mask, _ := strings.Cut(l, ":"); slices.Contains([]string{"SigBlk", "SigIgn", "SigCgt"}, name) {
				found[name] = strings.TrimSpace(mask)
			}
		}
		return found
	}
	// Whoever runs the tests may have left signals ignored.
	want, got := signals("cat", "/proc/self/status"), signals(build(t), "cat", "/proc/self/status")
	if len(want) != 3 || !maps.Equal(got, want) {
		t.Errorf("the command's signals: got %v, want them as without an init: %v", got, want)
	}
}
