package process_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/launchertest"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/process"
)

// lineRoom is what a file may have beyond its size: the rest of a line that is written in two pieces.
const lineRoom = 32

// inOrder reads a file and those rotated out of it, the oldest first, and returns how many there are. Each must be
// within size, but for the end of a line, and end with a line.
func inOrder(t *testing.T, path string, size int64, line func(string)) int {
	t.Helper()
	files := []string{path}
	for n := 1; ; n++ {
		name := fmt.Sprintf("%s.%d", path, n)
		if _, err := os.Lstat(name); err != nil {
			break
		}
		files = append(files, name)
	}
	for n := len(files) - 1; n >= 0; n-- {
		f, err := os.Open(files[n])
		if err != nil {
			t.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil || info.Size() > size+lineRoom || info.Mode() != 0o644 {
			t.Errorf("%s: got %v, %v, want about %d bytes, mode 0644", files[n], info, err, size)
		}
		last := byte('\n')
		s := bufio.NewScanner(f)
		s.Split(func(data []byte, atEOF bool) (int, []byte, error) {
			if len(data) > 0 {
				last = data[len(data)-1]
			}
			return bufio.ScanLines(data, atEOF)
		})
		for s.Scan() {
			line(s.Text())
		}
		if s.Err() != nil || last != '\n' {
			t.Errorf("%s: got %v and %q at its end, want whole lines", files[n], s.Err(), last)
		}
		f.Close()
	}
	return len(files)
}

func TestAHundredMegabytesGoThroughARotatedFileAndNoLineIsLost(t *testing.T) {
	e := launchertest.New(t)
	const lines, size = 13_000_000, 4 << 20
	r := e.Request("seq", "1", strconv.Itoa(lines))
	r.StdoutRotation = launcher.Rotation{Size: size, Keep: 100}
	h := launchertest.Start(t, process.New(e.Shim, e.Cgroups, e.Log), r)
	if status := launchertest.Wait(t, h); status != 0 {
		t.Errorf("Wait = %#x, want 0", status)
	}
	next := 1 // everything is written when the end is known
	files := inOrder(t, r.Stdout, size, func(line string) {
		if n, err := strconv.Atoi(line); err != nil || n != next {
			t.Fatalf("got line %q, want %d", line, next)
		}
		next++
	})
	if next != lines+1 || files < 24 {
		t.Errorf("got %d lines in %d files, want %d in 24 or more", next-1, files, lines)
	}
	if _, err := h.(launcher.Attacher).Attach(launchertest.Context(t)); !errors.Is(err, launcher.ErrNotAttached) {
		t.Errorf("Attach = %v, want ErrNotAttached", err)
	}
}

func TestOnlySoManyRotatedFilesAreKeptAndBothStreamsMayShareOne(t *testing.T) {
	e := launchertest.New(t)
	const size = 4096
	for name, x := range map[string]struct {
		keep  uint32
		names []string
	}{"none": {0, []string{"log"}}, "two": {2, []string{"log", "log.1", "log.2"}}} {
		dir := filepath.Join(e.Dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		r := e.Request("sh", "-c", "i=0; while [ $i -lt 1000 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done")
		r.Stdout = filepath.Join(dir, "log")
		r.Stderr = r.Stdout
		r.StdoutRotation = launcher.Rotation{Size: size, Keep: x.keep}
		r.StderrRotation = r.StdoutRotation
		h := launchertest.Start(t, process.New(e.Shim, e.Cgroups, e.Log), r)
		launchertest.Wait(t, h)
		if err := h.Destroy(launchertest.Context(t)); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, entry := range entries {
			got = append(got, entry.Name())
		}
		if strings.Join(got, " ") != strings.Join(x.names, " ") {
			t.Errorf("keep %d: got files %v, want %v", x.keep, got, x.names)
		}
		var last string
		inOrder(t, r.Stdout, size, func(line string) { last = line })
		if !strings.HasSuffix(last, " 999") {
			t.Errorf("keep %d: the last line is %q, want that of the end", x.keep, last)
		}
	}
}

func TestALineLongerThanAFileIsCutAndWhatIsInTheWayIsLeftAlone(t *testing.T) {
	e := launchertest.New(t)
	r := e.Request("sh", "-c", "head -c 20000 /dev/zero | tr '\\0' x; echo; echo end")
	r.StdoutRotation = launcher.Rotation{Size: 4096, Keep: 10}
	l := process.New(e.Shim, e.Cgroups, e.Log)
	h := launchertest.Start(t, l, r)
	launchertest.Wait(t, h)
	if err := h.Destroy(launchertest.Context(t)); err != nil {
		t.Fatal(err)
	}
	var all []byte
	for n := 10; n >= 0; n-- {
		name := r.Stdout
		if n > 0 {
			name += fmt.Sprintf(".%d", n)
		}
		b, err := os.ReadFile(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) || len(b) > 2*4096 {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
		all = append(all, b...)
	}
	if len(all) != 20005 || !bytes.HasSuffix(all, []byte("x\nend\n")) {
		t.Errorf("got %d bytes, want all 20005", len(all))
	}

	// The folder may be the task's: a folder with that name, a link out. Nothing is written through either.
	outside := filepath.Join(e.Dir, "outside")
	if err := os.WriteFile(outside, []byte("untouched"), 0o644); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(e.Dir, "d")
	if err := os.MkdirAll(filepath.Join(dir, "log.1"), 0o755); err != nil {
		t.Fatal(err)
	}
	r = e.Request("sh", "-c", "seq 1 5000; ln -sf "+outside+" "+dir+"/log; rmdir "+dir+"/log.1; seq 5001 10000")
	r.Stdout = filepath.Join(dir, "log")
	r.StdoutRotation = launcher.Rotation{Size: 4096, Keep: 1}
	h = launchertest.Start(t, l, r)
	if status := launchertest.Wait(t, h); status != 0 {
		t.Errorf("Wait = %#x, want 0", status)
	}
	if err := h.Destroy(launchertest.Context(t)); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(outside); err != nil || string(b) != "untouched" {
		t.Errorf("outside: got %q, %v, want it untouched", b, err)
	}
	if b, err := os.ReadFile(r.Stdout); err != nil || !bytes.HasSuffix(b, []byte("\n10000\n")) {
		t.Errorf("log ends with %q, %v, want the last line", b[max(0, len(b)-20):], err)
	}
}

func TestAProcessWhoseShimIsKilledGoesOn(t *testing.T) {
	e := launchertest.New(t)
	mark := filepath.Join(e.Dir, "mark")
	r := e.Request("sh", "-c", "echo before; until [ -e "+mark+" ]; do sleep 0.02; done; echo after && touch "+mark+".2; sleep 1000")
	r.StdoutRotation = launcher.Rotation{Size: 1 << 20, Keep: 1}
	h := launchertest.Start(t, process.New(e.Shim, e.Cgroups, e.Log), r)
	launchertest.Eventually(t, "it has written", func() bool { b, err := os.ReadFile(r.Stdout); return err == nil && len(b) > 0 })
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", h.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	shim, err := strconv.Atoi(strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(shim, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	launchertest.Eventually(t, "the shim is gone", func() bool { return syscall.Kill(shim, 0) != nil })
	if err := os.WriteFile(mark, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	launchertest.Eventually(t, "it has written again", func() bool { _, err := os.Stat(mark + ".2"); return err == nil })
	if err := syscall.Kill(h.Pid(), 0); err != nil {
		t.Errorf("the process: %v, want it alive", err)
	}
}

func TestAStandingReaderOfAPumpedPipeCostsOutputButNoLife(t *testing.T) {
	e := launchertest.New(t)
	fifo := filepath.Join(e.Dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	l := process.New(e.Shim, e.Cgroups, e.Log)
	r := e.Request("sh", "-c", "head -c 400000 /dev/zero; echo; echo last")
	r.Stdout, r.Pumped = fifo, true
	writer := launchertest.Start(t, l, r)
	if status := launchertest.Wait(t, writer); status != 0 { // after some seconds
		t.Errorf("Wait = %#x, want 0", status)
	}

	// One that reads gets everything, and the end.
	second := filepath.Join(e.Dir, "fifo2")
	if err := unix.Mkfifo(second, 0o600); err != nil {
		t.Fatal(err)
	}
	r = e.Request("sh", "-c", "seq 1 100000")
	r.Stdout, r.Pumped = second, true
	held := launchertest.Create(t, l, r) // it opens the pipe first, so that the reader meets no end before the beginning
	q := e.Request("tail", "-n", "1")
	q.Stdin = second
	reader := launchertest.Start(t, l, q)
	if err := held.Start(launchertest.Context(t)); err != nil {
		t.Fatal(err)
	}
	launchertest.Wait(t, held)
	if err := held.Destroy(launchertest.Context(t)); err != nil {
		t.Fatal(err)
	}
	if status := launchertest.Wait(t, reader); status != 0 {
		t.Errorf("Wait for the reader = %#x, want 0", status)
	}
	if out, err := os.ReadFile(q.Stdout); err != nil || string(out) != "100000\n" {
		t.Errorf("the reader's last line: got %q, %v, want 100000", out, err)
	}
}
