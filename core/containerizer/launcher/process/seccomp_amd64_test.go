package process_test

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher/launchertest"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// filter refuses mkdir and mkdirat with EDOM, an error they do not give by themselves, and allows
// everything else.
func filter() []byte {
	refuse := uint32(unix.SECCOMP_RET_ERRNO | int(syscall.EDOM))
	prog := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // number of the system call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_MKDIRAT, Jt: 1},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_MKDIR, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: refuse},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	var b []byte
	for _, i := range prog {
		b = append(b, byte(i.Code), byte(i.Code>>8), i.Jt, i.Jf, byte(i.K), byte(i.K>>8), byte(i.K>>16), byte(i.K>>24))
	}
	return b
}

func TestSeccompFilterIsInEffect(t *testing.T) {
	for name, nnp := range map[string]bool{"with no_new_privs": true, "without no_new_privs": false} {
		t.Run(name, func(t *testing.T) {
			e := launchertest.New(t)
			r := e.Request("sh", "-c", "cat /proc/self/status; mkdir "+e.Dir+"/made || exit 9")
			r.User = launcher.User{UID: 65534, GID: 65534}
			r.Proposal = &containerv1.Proposal{NoNewPrivileges: &nnp, Seccomp: &containerv1.Seccomp{Bpf: filter()}}
			status, out := launchertest.Run(t, newLauncher(t, e), r)
			if !strings.Contains(out, "Seccomp:\t2\n") || syscall.WaitStatus(status).ExitStatus() != 9 {
				t.Errorf("status %#x, output %s", status, out)
			}
			stderr, err := os.ReadFile(r.Stderr)
			if err != nil || !strings.Contains(string(stderr), "argument out of domain") {
				t.Errorf("mkdir said %q (%v), want the filter's error", stderr, err)
			}
		})
	}
}
