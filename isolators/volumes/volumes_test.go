package volumes_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/isolators/volumes"
	"github.com/mosaic-cluster/mosaic/sdk/isolator/isolatortest"
	"github.com/mosaic-cluster/mosaic/sdk/kit"
	"github.com/mosaic-cluster/mosaic/sdk/module"
	"github.com/mosaic-cluster/mosaic/sdk/moduletest"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

func TestConformance(t *testing.T) {
	isolatortest.Run(t, kit.InProcess(func() module.Module { return volumes.New() }))
}

func TestPreparedTwiceIsTheSame(t *testing.T) {
	c := moduletest.Start(t, volumes.New(), `{}`)
	box := container(t, hostVolume("data", t.TempDir(), true))
	first := prepared(t, c, box)
	if again := prepared(t, c, box); !proto.Equal(first, again) {
		t.Errorf("Prepare again = %v, want %v", again, first)
	}
}

func hostVolume(at, from string, write bool) *mesosv1.Volume {
	v := &mesosv1.Volume{ContainerPath: &at, Mode: mesosv1.Volume_RO.Enum(), Source: &mesosv1.Volume_Source{
		Type: mesosv1.Volume_Source_HOST_PATH.Enum(), HostPath: &mesosv1.Volume_Source_HostPath{Path: &from},
	}}
	if write {
		v.Mode = mesosv1.Volume_RW.Enum()
	}
	return v
}

func secretVolume(at string, data []byte) *mesosv1.Volume {
	return &mesosv1.Volume{ContainerPath: &at, Mode: mesosv1.Volume_RO.Enum(), Source: &mesosv1.Volume_Source{
		Type: mesosv1.Volume_Source_SECRET.Enum(), Secret: &mesosv1.Secret{Type: mesosv1.Secret_VALUE.Enum(), Value: &mesosv1.Secret_Value{Data: data}},
	}}
}

// container has a sandbox of its own and no image.
func container(t *testing.T, list ...*mesosv1.Volume) *containerv1.Container {
	t.Helper()
	return &containerv1.Container{Id: "c", Sandbox: t.TempDir(), User: "root", ContainerInfo: &mesosv1.ContainerInfo{
		Type: mesosv1.ContainerInfo_MESOS.Enum(), Volumes: list,
	}}
}

func prepare(c *moduletest.Client, box *containerv1.Container) (*isolatorv1.PrepareResponse, error) {
	return c.Isolator.Prepare(context.Background(), &isolatorv1.PrepareRequest{OperationId: "op", Container: box})
}

func prepared(t *testing.T, c *moduletest.Client, box *containerv1.Container) *isolatorv1.PrepareResponse {
	t.Helper()
	r, err := prepare(c, box)
	if err != nil {
		t.Fatalf("Prepare: %v", err)
	}
	return r
}

func TestWhatIsMountedWhere(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	old := func(at, from string) *mesosv1.Volume {
		return &mesosv1.Volume{ContainerPath: &at, HostPath: &from, Mode: mesosv1.Volume_RW.Enum()}
	}
	docker := hostVolume("data", dir, true)
	docker.Source.Type = mesosv1.Volume_Source_DOCKER_VOLUME.Enum()
	for _, test := range []struct {
		name   string
		image  bool
		volume *mesosv1.Volume
		want   string // destination, source, options; SANDBOX is the container's
	}{
		{"below the sandbox", false, hostVolume("a/b", dir, true), "SANDBOX/a/b " + dir + " rbind rw rslave"},
		{"read-only", false, hostVolume("a", dir, false), "SANDBOX/a " + dir + " rbind ro rslave"},
		{"a file", false, hostVolume("a/f", file, false), "SANDBOX/a/f " + file + " rbind ro rslave"},
		{"over a path of the machine", false, hostVolume("/var/tmp", dir, true), "/var/tmp " + dir + " rbind rw rslave"},
		{"in an image", true, hostVolume("/data/", dir, true), "/data " + dir + " rbind rw rslave"},
		{"in an image's sandbox", true, hostVolume("data", dir, true), "/mnt/mesos/sandbox/data " + dir + " rbind rw rslave"},
		{"the old form", true, old("/data", dir), "/data " + dir + " rbind rw rslave"},
		{"the old form of a path of the sandbox", true, old("/data", "in/it"), "/data SANDBOX/in/it rbind rw"},
		{"a secret", true, secretVolume("/etc/key", []byte("x")), "/etc/key /dev/null bind ro"},
		{"another's", true, docker, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			box := container(t, test.volume)
			if test.image {
				box.Rootfs, box.SandboxInContainer = "/some/rootfs", "/mnt/mesos/sandbox"
			}
			var got []string
			for _, m := range prepared(t, moduletest.Start(t, volumes.New(), `{}`), box).GetProposal().GetMounts() {
				got = append(got, m.GetDestination(), m.GetSource(), strings.Join(m.GetOptions(), " "))
			}
			want := strings.ReplaceAll(test.want, "SANDBOX", box.Sandbox)
			if text := strings.Join(got, " "); text != want {
				t.Errorf("Prepare proposed %q, want %q", text, want)
			}
		})
	}
}

func TestWhatIsRefused(t *testing.T) {
	dir, free := t.TempDir(), t.TempDir()
	for _, link := range []struct{ from, to string }{{"out", "/etc"}, {"in", dir}} {
		if err := os.Symlink(link.to, filepath.Join(dir, link.from)); err != nil {
			t.Fatal(err)
		}
	}
	propagated := func(from string, how mesosv1.MountPropagation_Mode) *mesosv1.Volume {
		v := hostVolume("/var/tmp", from, true)
		v.Source.HostPath.MountPropagation = &mesosv1.MountPropagation{Mode: how.Enum()}
		return v
	}
	reference := secretVolume("key", nil)
	reference.Source.Secret = &mesosv1.Secret{Type: mesosv1.Secret_REFERENCE.Enum(), Reference: &mesosv1.Secret_Reference{Name: proto.String("db")}}
	only := fmt.Sprintf(`{"allow":[%q],"allow_read_only":[%q]}`, dir, free)
	climbing := &mesosv1.Volume{ContainerPath: proto.String("a"), HostPath: proto.String("../../etc"), Mode: mesosv1.Volume_RW.Enum()}
	for _, test := range []struct {
		name, config string
		volume       *mesosv1.Volume
		want         codes.Code
		text         string
	}{
		{"a path that is not there", `{}`, hostVolume("a", dir+"/none", true), codes.FailedPrecondition, "does not exist"},
		{"a relative path", `{}`, hostVolume("a", "etc", true), codes.InvalidArgument, "absolute"},
		{"a path out of the sandbox", `{}`, climbing, codes.InvalidArgument, "below the sandbox"},
		{"the root", `{}`, hostVolume("/", dir, true), codes.InvalidArgument, "root"},
		{"a place out of the sandbox", `{}`, hostVolume("../a", dir, true), codes.InvalidArgument, "below the sandbox"},
		{"a place that the machine does not have", `{}`, hostVolume("/no/such/place", dir, true), codes.FailedPrecondition, "without image"},
		{"allowed", only, hostVolume("a", dir, true), codes.OK, ""},
		{"below what is allowed", only, hostVolume("a", dir+"/in/../in", true), codes.OK, ""},
		{"not allowed", only, hostVolume("a", "/etc", false), codes.InvalidArgument, "not among those allowed"},
		{"a name that only begins alike", only, hostVolume("a", filepath.Dir(dir), false), codes.InvalidArgument, "not among those allowed"},
		{"a link out of what is allowed", only, hostVolume("a", dir+"/out", false), codes.InvalidArgument, "leads to /etc"},
		{"read-only", only, hostVolume("a", free, false), codes.OK, ""},
		{"writing to what is read-only", only, hostVolume("a", free, true), codes.InvalidArgument, "only be read"},
		{"nothing is allowed", `{"allow":[]}`, hostVolume("a", dir, false), codes.InvalidArgument, "not among those allowed"},
		{"showing mounts", `{}`, propagated(dir, mesosv1.MountPropagation_BIDIRECTIONAL), codes.FailedPrecondition, "allow_bidirectional"},
		{"showing mounts without image", `{"allow_bidirectional":true}`, propagated(dir, mesosv1.MountPropagation_BIDIRECTIONAL), codes.InvalidArgument, "image"},
		{"a secret by reference", `{}`, reference, codes.FailedPrecondition, "not resolved"},
		{"a secret that is too large", `{}`, secretVolume("key", make([]byte, 1<<20+1)), codes.InvalidArgument, "at most"},
		{"secrets switched off", `{"secrets":false}`, secretVolume("key", []byte{}), codes.FailedPrecondition, "no secrets"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := prepare(moduletest.Start(t, volumes.New(), test.config), container(t, test.volume))
			if status.Code(err) != test.want || err != nil && !strings.Contains(err.Error(), test.text) {
				t.Errorf("Prepare = %v, want %s with %q", err, test.want, test.text)
			}
		})
	}
}

func TestRelativeFoldersInTheConfigurationAreRefused(t *testing.T) {
	c := moduletest.Dial(t, volumes.New())
	if errs := c.Configure(t, `{"allow":["data"]}`); len(errs) != 1 || errs[0].GetPath() != "allow" {
		t.Errorf("Configure with a relative folder = %v, want an error at allow", errs)
	}
}

func TestMissingPathsAreMadeWhereTheOperatorSaysSo(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("/var/tmp", filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	c := moduletest.Start(t, volumes.New(), fmt.Sprintf(`{"force_creation":[%q]}`, dir))
	prepared(t, c, container(t, hostVolume("a", dir+"/x/y", true)))
	if info, err := os.Stat(dir + "/x/y"); err != nil || !info.IsDir() {
		t.Errorf("the folder that was asked for: %v, want it made", err)
	}
	name := fmt.Sprintf("mosaic-volumes-%d", os.Getpid())
	if _, err := prepare(c, container(t, hostVolume("a", filepath.Join(dir, "out", name), true))); err == nil {
		t.Error("Prepare of a path through a link that leads out = success, want a refusal")
	}
	if _, err := os.Lstat("/var/tmp/" + name); err == nil {
		_ = os.Remove("/var/tmp/" + name)
		t.Error("a folder was made through a link that leads out")
	}
}

func TestPlacesAreNotMadeThroughLinksInTheSandbox(t *testing.T) {
	box := container(t, hostVolume("link/deep", t.TempDir(), true))
	outside := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(box.Sandbox, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := prepare(moduletest.Start(t, volumes.New(), `{}`), box); err == nil {
		t.Error("Prepare of a place behind a link that leads out of the sandbox = success, want a refusal")
	}
	if entries, _ := os.ReadDir(outside); len(entries) > 0 {
		t.Errorf("outside of the sandbox there is %v now", entries)
	}
}

// held is a process with mounts of its own, as a launcher leaves it to Isolate.
type held struct {
	pid   int32
	stdin io.WriteCloser
	out   *bufio.Reader
}

// hold starts a process that makes the mounts as a launcher would. It runs each line that it is given.
func hold(t *testing.T, mounts []*containerv1.Mount) *held {
	t.Helper()
	return holdWith(t, mounts, unix.CLONE_NEWNS)
}

// holdWith is hold with a mount namespace made by unshare, which makes all mounts private, or by clone, which does not.
func holdWith(t *testing.T, mounts []*containerv1.Mount, unshare uintptr) *held {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	var script strings.Builder
	script.WriteString("set -e\n")
	if unshare == 0 {
		script.WriteString("mount --make-private /\n") // so that what we mount at a place in it stays here
	}
	for _, m := range mounts {
		fmt.Fprintf(&script, "mount --bind '%s' '%s'\n", m.GetSource(), m.GetDestination())
		if slices.Contains(m.GetOptions(), "ro") && m.GetSource() != "/dev/null" {
			fmt.Fprintf(&script, "mount -o remount,bind,ro '%s'\n", m.GetDestination())
		}
	}
	script.WriteString("set +e\necho ready\nwhile read line; do eval \"$line\" 2>&1; echo \"end $?\"; done\n")
	cmd := exec.Command("sh", "-c", script.String())
	// It ends with its input, not by Pdeathsig: that comes when the thread ends that started it, and the module ends threads.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS &^ unshare, Unshareflags: unshare}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("this machine gives no mount namespace: %v", err)
	}
	h := &held{int32(cmd.Process.Pid), in, bufio.NewReader(out)}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	if line, err := h.out.ReadString('\n'); line != "ready\n" {
		t.Fatalf("the process that mounts says %q, %v", line, err)
	}
	return h
}

// run runs a line and gives what it printed, with its status in the last line.
func (h *held) run(t *testing.T, line string) string {
	t.Helper()
	if _, err := io.WriteString(h.stdin, line+"\n"); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for {
		text, err := h.out.ReadString('\n')
		all.WriteString(text)
		if at := strings.LastIndex(text, "end "); at >= 0 && text[len(text)-1] == '\n' {
			return strings.TrimSpace(all.String())
		}
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
	}
}

func isolate(c *moduletest.Client, box *containerv1.Container, r *isolatorv1.PrepareResponse, pid int32) error {
	_, err := c.Isolator.Isolate(context.Background(), &isolatorv1.IsolateRequest{OperationId: "op", Record: &isolatorv1.ContainerRecord{
		Container: box, Pid: pid, State: r.GetState(), StateVersion: r.GetStateVersion(),
	}})
	return err
}

func mounts(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(data, []byte("secret"))
}

func TestWhatWasExchangedBeforeItWasMountedFailsTheLaunch(t *testing.T) {
	base := t.TempDir()
	data, evil := filepath.Join(base, "data"), filepath.Join(base, "evil")
	for _, dir := range []string{data, evil} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c := moduletest.Start(t, volumes.New(), fmt.Sprintf(`{"allow":[%q]}`, data))
	box := container(t, hostVolume("a", data, true))
	r := prepared(t, c, box)
	good := hold(t, r.GetProposal().GetMounts())
	if err := isolate(c, box, r, good.pid); err != nil {
		t.Errorf("Isolate with what was asked for: %v", err)
	}
	// Between Prepare and the mount the folder becomes a link to another.
	if err := os.Rename(data, data+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(evil, data); err != nil {
		t.Fatal(err)
	}
	bad := hold(t, r.GetProposal().GetMounts())
	if err := isolate(c, box, r, bad.pid); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "exchanged") {
		t.Errorf("Isolate with something else mounted = %v, want FailedPrecondition", err)
	}
	none := hold(t, nil)
	if err := isolate(c, box, r, none.pid); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("Isolate with nothing mounted = %v, want FailedPrecondition", err)
	}
	if err := isolate(c, box, r, int32(os.Getpid())); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("Isolate of a process with the machine's mounts = %v, want FailedPrecondition", err)
	}
}

func TestPropagationThatWasNotGivenFailsTheLaunch(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("this machine does not mount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	both := hostVolume("/mnt", dir, true)
	both.Source.HostPath.MountPropagation = &mesosv1.MountPropagation{Mode: mesosv1.MountPropagation_BIDIRECTIONAL.Enum()}
	only := hostVolume("/mnt", dir, true)
	only.Source.HostPath.MountPropagation = &mesosv1.MountPropagation{Mode: mesosv1.MountPropagation_HOST_TO_CONTAINER.Enum()}
	c := moduletest.Start(t, volumes.New(), `{"allow_bidirectional":true}`)
	ask := func(v *mesosv1.Volume) (*containerv1.Container, *isolatorv1.PrepareResponse, error) {
		box := container(t, v)
		box.Rootfs = "/"
		r, err := prepare(c, box)
		return box, r, err
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	for _, v := range []*mesosv1.Volume{both, only} {
		if _, _, err := ask(v); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("Prepare of %s in a private mount = %v, want FailedPrecondition", v.Source.HostPath.MountPropagation, err)
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	if _, r, err := ask(only); err != nil || r.GetProposal().GetMounts()[0].GetOptions()[2] != "rslave" {
		t.Errorf("Prepare of HOST_TO_CONTAINER in a shared mount = %v, %v; want rslave", r, err)
	}
	box, r, err := ask(both)
	if err != nil || r.GetProposal().GetMounts()[0].GetOptions()[2] != "rshared" {
		t.Fatalf("Prepare of BIDIRECTIONAL in a shared mount = %v, %v; want rshared", r, err)
	}
	private := hold(t, r.GetProposal().GetMounts()) // its mounts show nowhere
	if err := isolate(c, box, r, private.pid); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "BIDIRECTIONAL") {
		t.Errorf("Isolate with a mount that is not shared = %v, want FailedPrecondition", err)
	}
	shared := holdWith(t, r.GetProposal().GetMounts(), 0)
	if err := isolate(c, box, r, shared.pid); err != nil {
		t.Errorf("Isolate with a shared mount: %v", err)
	}
}

func TestASecretIsInMemoryAndForTheContainerAlone(t *testing.T) {
	c := moduletest.Start(t, volumes.New(), `{}`)
	word := []byte("correct horse\n")
	box := container(t, secretVolume("keys/db", word))
	box.User = "nobody"
	r := prepared(t, c, box)
	if bytes.Contains(r.GetState(), word) || strings.Contains(r.String(), "horse") {
		t.Errorf("Prepare = %v, want the secret nowhere in it", r)
	}
	before := mounts(t)
	h := hold(t, r.GetProposal().GetMounts())
	for n := range 2 { // the agent may ask again
		if err := isolate(c, box, r, h.pid); err != nil {
			t.Fatalf("Isolate, time %d: %v", n+1, err)
		}
	}
	file := filepath.Join(box.Sandbox, "keys/db")
	for line, want := range map[string]string{
		"cat " + file:             "correct horse\nend 0",
		"stat -c '%U %a' " + file: "nobody 400\nend 0",
		"grep -c ' " + file + " .*fs' /proc/self/mountinfo": "2\nend 0", // the place, and the secret once
	} {
		if got := h.run(t, line); got != want {
			t.Errorf("%s says %q, want %q", line, got, want)
		}
	}
	if got := h.run(t, "echo x > "+file); strings.HasSuffix(got, "end 0") {
		t.Error("the secret can be written to")
	}
	if got := h.run(t, "stat -f -c %T "+file); got != "tmpfs\nend 0" && got != "ramfs\nend 0" {
		t.Errorf("the secret's file system is %q, want tmpfs or ramfs", got)
	}
	if data, err := os.ReadFile(file); err != nil || len(data) > 0 {
		t.Errorf("on the machine the place holds %q, %v; want nothing", data, err)
	}
	if now := mounts(t); now != before {
		t.Errorf("the machine has %d mounts of secrets, had %d", now, before)
	}
}

func TestASecretIsNotLaidOverAnythingElse(t *testing.T) {
	c := moduletest.Start(t, volumes.New(), `{}`)
	box := container(t, secretVolume("key", []byte("x")))
	r := prepared(t, c, box)
	h := hold(t, nil) // the place was not mounted
	if err := isolate(c, box, r, h.pid); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("Isolate without the secret's place = %v, want FailedPrecondition", err)
	}
}

func TestCleanupOfAnUnknownContainerSucceeds(t *testing.T) {
	c := moduletest.Start(t, volumes.New(), `{}`)
	if _, err := c.Isolator.Cleanup(context.Background(), &isolatorv1.CleanupRequest{}); err != nil {
		t.Errorf("Cleanup of an unknown container: %v, want success", err)
	}
}
