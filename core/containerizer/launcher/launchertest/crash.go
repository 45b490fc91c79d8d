package launchertest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mosaic-cluster/mosaic/core/containerizer/cgroup"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	"github.com/mosaic-cluster/mosaic/core/containerizer/shim"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// creatorVariable makes the test program a creator: an agent to be killed. It holds the JSON of job.
const creatorVariable = "MOSAIC_TEST_CREATOR"

// A job tells a creator what to do.
type job struct {
	Shim, Root, Dir string
	Started, Held   int
	Terminals       bool // make a container, a session beside it, and one with a terminal of its own
}

// made is what a creator says of each container.
type made struct {
	State  []byte
	Pid    int
	RunDir string
	Cgroup string
}

// KilledAgent kills a creator with SIGKILL while containers run, and finds all of them again.
// A package's test that calls it must have BeCreator in its TestMain.
func KilledAgent(t *testing.T, with func(t testing.TB, e *Env) launcher.Launcher) {
	const running, held = 10, 2
	e := New(t)
	l := with(t, e)
	all := killedCreator(t, e, job{Started: running, Held: held}, running+held)

	// Those never started have ended with their creator, and say so.
	for _, m := range all[running:] {
		Eventually(t, "a held process ends with its creator", func() bool { return !alive(m.Pid) })
		if h, err := l.Reattach(Context(t), m.State); err == nil {
			if s, known, err := h.Wait(Context(t)); err != nil || known && syscall.WaitStatus(s).Signal() != syscall.SIGKILL {
				t.Errorf("Wait of a held container = %#x, %v, %v", s, known, err)
			}
			if err := h.Destroy(Context(t)); err != nil {
				t.Error(err)
			}
		} else if !errors.Is(err, launcher.ErrGone) {
			t.Errorf("Reattach of a held container = %v, want ErrGone", err)
		}
	}
	// Half of the others end while nobody looks, by themselves, with a code that tells them apart.
	for i, m := range all[:running] {
		if !alive(m.Pid) {
			t.Errorf("container %d ended with its creator", i)
		}
		if i%2 == 0 {
			if err := os.WriteFile(filepath.Join(e.Dir, fmt.Sprintf("end%d", i)), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			Eventually(t, "the container ends", func() bool { return !alive(m.Pid) })
		}
	}
	for i, m := range all[:running] {
		h, err := l.Reattach(Context(t), m.State)
		var gone *launcher.GoneError
		switch {
		case err == nil:
			if i%2 != 0 {
				if err := os.WriteFile(filepath.Join(e.Dir, fmt.Sprintf("end%d", i)), nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if ws := syscall.WaitStatus(Wait(t, h)); ws.ExitStatus() != 10+i {
				t.Errorf("container %d: Wait = %#x, want exit %d", i, ws, 10+i)
			}
			if err := h.Destroy(Context(t)); err != nil {
				t.Error(err)
			}
		case errors.As(err, &gone):
			if ws := syscall.WaitStatus(gone.WaitStatus); i%2 != 0 || !gone.Known || ws.ExitStatus() != 10+i {
				t.Errorf("container %d: Reattach = %v, want exit %d", i, err, 10+i)
			}
		default:
			t.Errorf("container %d: Reattach = %v", i, err)
		}
	}
	for i, m := range all {
		if _, err := os.Lstat(m.RunDir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("container %d: run folder is left: %v", i, err)
		}
	}
}

// KilledAgentsTerminals kills a creator with SIGKILL while it is attached to terminals, one of a session beside another
// container, and goes on with them. A package's test that calls it must have BeCreator in its TestMain.
func KilledAgentsTerminals(t *testing.T, with func(t testing.TB, e *Env) launcher.Launcher) {
	e := New(t)
	l := with(t, e)
	all := killedCreator(t, e, job{Terminals: true}, 3)
	for i, m := range all {
		h, err := l.Reattach(Context(t), m.State)
		if err != nil {
			t.Fatalf("Reattach of container %d = %v", i, err)
		}
		defer func() { // the first one last
			if err := h.Destroy(Context(t)); err != nil {
				t.Error(err)
			}
		}()
		if i == 0 {
			continue
		}
		s := Attach(t, h)
		write(t, s, "hello\n")
		if out := ReadUntil(t, s, "got hello\r\n"); strings.Contains(out, "up") {
			t.Errorf("terminal %d: what the killed agent had read comes again: %q", i, out)
		}
		if err := s.Resize(7, 70); err != nil {
			t.Errorf("terminal %d: Resize = %v", i, err)
		}
		write(t, s, "size\n")
		ReadUntil(t, s, "7 70\r\n")
		closeWrite(t, s)
		ReadAll(t, s)
		if ws := syscall.WaitStatus(Wait(t, h)); ws.ExitStatus() != 3 {
			t.Errorf("terminal %d: Wait = %#x, want exit 3", i, ws)
		}
	}
}

// terminals makes what job.Terminals says.
func terminals(ctx context.Context, e *Env, l launcher.Launcher, tell func(*launcher.Request, launcher.Handle) error) error {
	const script = `stty -echo; echo up; while read x; do if [ "$x" = size ]; then stty size; else echo got $x; fi; done; exit 3`
	root := e.Request("sleep", "1000")
	h, err := l.Create(ctx, root)
	if err == nil {
		err = h.Start(ctx)
	}
	if err == nil {
		err = tell(root, h)
	}
	if err != nil {
		return err
	}
	for _, r := range []*launcher.Request{
		e.Session(h, root, containerv1.Container_TERMINAL, "sh", "-c", script),
		e.Attached(containerv1.Container_TERMINAL, "sh", "-c", script),
	} {
		c, err := l.Create(ctx, r)
		if err != nil {
			return err
		}
		s, err := c.(launcher.Attacher).Attach(ctx)
		if err == nil {
			err = c.Start(ctx)
		}
		for out := ""; err == nil && !strings.Contains(out, "up"); {
			var chunk launcher.Chunk
			chunk, err = s.Read()
			out += string(chunk.Data)
		}
		if err == nil {
			err = tell(r, c)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// killedCreator runs a creator, kills it when it has told of n containers, and returns what it told.
func killedCreator(t *testing.T, e *Env, do job, n int) []made {
	t.Helper()
	do.Shim, do.Root, do.Dir = e.Shim.Path(), e.Root, e.Dir
	j, err := json.Marshal(do)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^$")
	cmd.Env = append(os.Environ(), creatorVariable+"="+string(j))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var all []made
	sc := bufio.NewScanner(out)
	for len(all) < n && sc.Scan() {
		var m made
		if err := json.Unmarshal(sc.Bytes(), &m); err != nil {
			t.Errorf("creator says %q: %v", sc.Text(), err)
			continue
		}
		all = append(all, m)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if len(all) != n {
		t.Fatalf("creator made %d containers, want %d", len(all), n)
	}
	return all
}

func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(b), ") Z") && !strings.Contains(string(b), ") X")
}

// BeCreator makes this process a creator if it was started as one, and does not return then.
func BeCreator(with func(e *Env) (launcher.Launcher, error)) {
	text := os.Getenv(creatorVariable)
	if text == "" {
		return
	}
	if err := create(text, with); err != nil {
		fmt.Fprintln(os.Stderr, "creator:", err)
		os.Exit(1)
	}
	select {} // until killed
}

func create(text string, with func(e *Env) (launcher.Launcher, error)) error {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return err
	}
	b, err := shim.Open(j.Shim)
	if err != nil {
		return err
	}
	h, err := cgroup.Detect()
	if err != nil {
		return err
	}
	e := &Env{Shim: b, Cgroups: h, Root: j.Root, Dir: j.Dir, Log: quietLog()}
	l, err := with(e)
	if err != nil {
		return err
	}
	tell := func(r *launcher.Request, c launcher.Handle) error {
		line, err := json.Marshal(made{State: c.State(), Pid: c.Pid(), RunDir: r.RunDir, Cgroup: r.Container.Cgroup})
		if err != nil {
			return err
		}
		fmt.Println(string(line))
		return nil
	}
	if j.Terminals {
		return terminals(context.Background(), e, l, tell)
	}
	for i := range j.Started + j.Held {
		r := e.Request("sh", "-c", fmt.Sprintf("while ! [ -e %s/end%d ]; do sleep 0.01; done; exit %d", j.Dir, i, 10+i))
		c, err := l.Create(context.Background(), r)
		if err != nil {
			return err
		}
		if i < j.Started {
			if err := c.Start(context.Background()); err != nil {
				return err
			}
		}
		if err := tell(r, c); err != nil {
			return err
		}
	}
	return nil
}
