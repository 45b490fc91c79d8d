package launchertest

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
)

// outputIsRotated: both streams, of a container with a shim of its own and of one beside it.
func outputIsRotated(t *testing.T, e *Env, l launcher.Launcher) {
	const script = "i=0; while [ $i -lt 2000 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done"
	root := Start(t, l, e.Request("sleep", "1000"))
	for name, beside := range map[string]launcher.Handle{"a shim of its own": nil, "the shim of another": root} {
		r := e.Request("sh", "-c", script)
		r.Beside = beside
		r.StdoutRotation = launcher.Rotation{Size: 5000, Keep: 100}
		r.StderrRotation = launcher.Rotation{Size: 6000, Keep: 100}
		h := Start(t, l, r)
		if status := Wait(t, h); status != 0 {
			t.Errorf("%s: Wait = %#x, want 0", name, status)
		}
		for path, word := range map[string]string{r.Stdout: "out", r.Stderr: "err"} {
			var all []byte
			for n := 100; n >= 0; n-- {
				file := path
				if n > 0 {
					file = fmt.Sprintf("%s.%d", path, n)
				}
				b, err := os.ReadFile(file)
				if n > 0 && os.IsNotExist(err) {
					continue
				}
				if err != nil || len(b) > 6020 || !strings.HasSuffix(string(b), "\n") {
					t.Errorf("%s: %s: got %d bytes, %v, want whole lines within its size", name, file, len(b), err)
				}
				all = append(all, b...)
			}
			lines := strings.Split(strings.TrimSuffix(string(all), "\n"), "\n")
			for n, line := range lines {
				if want := fmt.Sprintf("%s %d", word, n); line != want {
					t.Errorf("%s: line %d is %q, want %q", name, n, line, want)
					break
				}
			}
			if len(lines) != 2000 {
				t.Errorf("%s: got %d lines of %s, want 2000", name, len(lines), word)
			}
		}
	}
}
