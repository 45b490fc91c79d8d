package devices_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/isolators/devices"
	"github.com/mosaic-cluster/mosaic/sdk/isolator"
	"github.com/mosaic-cluster/mosaic/sdk/moduletest"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// nodes makes device nodes in a folder of the test; nothing opens them.
func nodes(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, n := range map[string]struct{ kind, major, minor uint32 }{
		"fuse": {unix.S_IFCHR, 10, 229}, "tty1": {unix.S_IFCHR, 188, 1}, "tty2": {unix.S_IFCHR, 188, 2}, "disk": {unix.S_IFBLK, 8, 0}, "secret": {unix.S_IFCHR, 1, 1},
	} {
		if err := unix.Mknod(filepath.Join(dir, name), n.kind|0o640, int(unix.Mkdev(n.major, n.minor))); err != nil {
			t.Skipf("this machine does not let us make device nodes: %v", err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("fuse", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// ask prepares a container that asks for devices, "DIR" standing for the folder.
func ask(t *testing.T, c *moduletest.Client, dir, text string, change func(*isolatorv1.PrepareRequest)) (string, error) {
	t.Helper()
	r := &isolatorv1.PrepareRequest{OperationId: "op", Container: &containerv1.Container{
		Id: "c", Rootfs: "/r", Labels: map[string]string{"mosaic.devices": strings.ReplaceAll(text, "DIR", dir)},
	}}
	if change != nil {
		change(r)
	}
	a, err := c.Isolator.Prepare(context.Background(), r)
	for _, wrong := range isolator.CheckPrepare(c.Describe(t), a) {
		t.Errorf("Prepare: %s", wrong)
	}
	return strings.ReplaceAll(told(a.GetProposal()), dir, "DIR"), err
}

func told(p *containerv1.Proposal) string {
	var list []string
	for _, d := range p.GetDevices() {
		list = append(list, fmt.Sprintf("%s=%s%d:%d %o %s", d.GetPath(), d.GetType(), d.GetMajor(), d.GetMinor(), d.GetMode(), d.GetAccess()))
	}
	for _, r := range p.GetCgroup().GetDeviceRules() {
		list = append(list, fmt.Sprintf("%v %s%d:%d %s", r.GetAllow(), r.GetType(), r.GetMajor(), r.GetMinor(), r.GetAccess()))
	}
	for _, m := range p.GetMounts() {
		list = append(list, fmt.Sprintf("%s<-%s %s %s", m.GetDestination(), m.GetSource(), m.GetType(), strings.Join(m.GetOptions(), ",")))
	}
	for k, v := range p.GetEnvironment() {
		list = append(list, k+"="+v)
	}
	return strings.Join(list, "; ")
}

func TestContainersGetWhatIsAllowedAndAskedFor(t *testing.T) {
	dir := nodes(t)
	host := func(r *isolatorv1.PrepareRequest) { r.Container.Rootfs = "" }
	listed := func(r *isolatorv1.PrepareRequest) {
		r.Container.Rootfs = ""
		r.SoFar = &containerv1.Spec{Merged: &containerv1.Proposal{Cgroup: &containerv1.CgroupResources{DeviceRules: []*containerv1.DeviceRule{{Type: "a"}}}}}
	}
	c := moduletest.Start(t, devices.New(), strings.ReplaceAll(
		`{"device":[{"path":"DIR/fuse"},{"path":"DIR/tty*","access":"r"},{"path":"DIR/disk","access":"rwm"},{"path":"DIR/file"},{"path":"DIR/link"},{"path":"DIR/gone"}]}`, "DIR", dir))
	for _, test := range []struct {
		name, ask string
		change    func(*isolatorv1.PrepareRequest)
		want      string
		code      codes.Code
	}{
		{"nothing", "", nil, "", codes.OK},
		{"a device", "DIR/fuse", nil, "DIR/fuse=c10:229 640 rw", codes.OK},
		{"two, and less than allowed", "DIR/fuse:r, DIR/tty2", nil, "DIR/fuse=c10:229 640 r; DIR/tty2=c188:2 640 r", codes.OK},
		{"under another name", "DIR/disk:/dev/data:r", nil, "/dev/data=b8:0 640 r", codes.OK},
		{"a link", "DIR/link:/dev/fuse", nil, "/dev/fuse=c10:229 640 rw", codes.OK},
		{"twice the same", "DIR/fuse,DIR/fuse", nil, "DIR/fuse=c10:229 640 rw", codes.OK},
		{"two at one place", "DIR/fuse:/dev/x,DIR/disk:/dev/x", nil, "another device already", codes.InvalidArgument},
		{"not allowed", "DIR/secret", nil, "not among those", codes.FailedPrecondition},
		{"more than allowed", "DIR/tty1:rw", nil, "may have r here", codes.FailedPrecondition},
		{"not there", "DIR/gone", nil, "no such file", codes.FailedPrecondition},
		{"a file", "DIR/file", nil, "no device", codes.FailedPrecondition},
		{"climbing", "DIR/../etc/passwd", nil, "clean absolute path", codes.InvalidArgument},
		{"climbing inside", "DIR/fuse:/dev/../etc/x", nil, "clean absolute path", codes.InvalidArgument},
		{"no access", "DIR/fuse:q", nil, "some of rwm", codes.InvalidArgument},
		{"too much", "DIR/fuse:/dev/x:r:w", nil, "clean absolute path", codes.InvalidArgument},
		{"an empty one", "DIR/fuse,,", nil, "each with a name", codes.InvalidArgument},
		{"no name at all", "fuse", nil, "CDI name", codes.InvalidArgument},
		{"on the host's file system", "DIR/fuse", host, "", codes.OK},
		{"on the host's file system, with a list", "DIR/fuse:r", listed, "true c10:229 r", codes.OK},
		{"renamed on the host's file system", "DIR/fuse:/dev/x", host, "without an image", codes.InvalidArgument},
		{"by a docker parameter", "", func(r *isolatorv1.PrepareRequest) {
			r.Container.ContainerInfo = &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_DOCKER.Enum(), Docker: &mesosv1.ContainerInfo_DockerInfo{
				Image: proto.String("i"), Parameters: []*mesosv1.Parameter{
					{Key: proto.String("device"), Value: proto.String(dir + "/fuse:/dev/fuse:r")}, {Key: proto.String("env"), Value: proto.String("A=B")},
				},
			}}
		}, "/dev/fuse=c10:229 640 r", codes.OK},
		{"debug", "DIR/secret", func(r *isolatorv1.PrepareRequest) { r.Container.Class = containerv1.Container_DEBUG }, "", codes.OK},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := ask(t, c, dir, test.ask, test.change)
			if status.Code(err) != test.code {
				t.Fatalf("Prepare: %v, want %s", err, test.code)
			}
			if err != nil && !strings.Contains(err.Error(), test.want) || err == nil && got != test.want {
				t.Errorf("Prepare proposed %q, %v; want %q", got, err, test.want)
			}
		})
	}
}

func TestSomeDevicesAreInEveryContainerWithAnImage(t *testing.T) {
	dir := nodes(t)
	c := moduletest.Start(t, devices.New(), strings.ReplaceAll(`{"device":[{"path":"DIR/tty*","every_container":true},{"path":"DIR/nothing*","every_container":true}]}`, "DIR", dir))
	if got, err := ask(t, c, dir, "", nil); err != nil || got != "DIR/tty1=c188:1 640 rw; DIR/tty2=c188:2 640 rw" {
		t.Errorf("with an image: %q, %v; want both", got, err)
	}
	if got, err := ask(t, c, dir, "", func(r *isolatorv1.PrepareRequest) { r.Container.Rootfs = "" }); err != nil || got != "" {
		t.Errorf("without an image: %q, %v; want nothing", got, err)
	}
	c = moduletest.Start(t, devices.New(), strings.ReplaceAll(`{"device":[{"path":"DIR/gone","every_container":true}]}`, "DIR", dir))
	if _, err := ask(t, c, dir, "", nil); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("one that is gone: %v, want FailedPrecondition", err)
	}
}

func TestMistakesInTheListAreToldByTheirPath(t *testing.T) {
	c := moduletest.Dial(t, devices.New())
	errs := c.Configure(t, `{"device":[{"path":"/dev/ok"},{"path":"dev/x"},{"path":"/dev/[","access":"rx"}],"cdi":["all"],"cdi_spec_dirs":["etc"]}`)
	var got []string
	for _, e := range errs {
		got = append(got, e.GetPath())
	}
	if want := "device[1].path device[2].path device[2].access cdi[0] cdi_spec_dirs[0]"; strings.Join(got, " ") != want {
		t.Errorf("Configure found mistakes at %q, want %q", strings.Join(got, " "), want)
	}
}

func TestVendorsDevicesComeByTheirSpecification(t *testing.T) {
	dir := nodes(t)
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "DIR", dir)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("etc/net.yaml", `
cdiVersion: 0.6.0
kind: vendor.com/net
containerEdits:
  env: [VENDOR=yes]
  mounts:
    - {hostPath: DIR/lib, containerPath: /opt/vendor, options: [ro, nosuid]}
devices:
  - name: a
    containerEdits:
      deviceNodes: [{path: /dev/net-a, hostPath: DIR/tty1, permissions: r, fileMode: 438, uid: 7}]
  - name: b
    containerEdits:
      deviceNodes: [{path: /dev/net-b, hostPath: DIR/tty2}]
  - name: hooked
    containerEdits:
      hooks: [{hookName: createContainer, path: /bin/true}]
  - name: bad
    containerEdits:
      mounts: [{hostPath: relative, containerPath: /x}]
  - name: gone
    containerEdits:
      deviceNodes: [{path: DIR/gone}]
`)
	write("etc/over.json", `{"cdiVersion":"0.5.0","kind":"vendor.com/disk","devices":[{"name":"x","containerEdits":{"env":["FROM=etc"]}}]}`)
	write("run/over.json", `{"cdiVersion":"0.5.0","kind":"vendor.com/disk","devices":[{"name":"x","containerEdits":{"env":["FROM=run"]}}]}`)
	write("run/new.json", `{"cdiVersion":"9.0.0","kind":"vendor.com/new","devices":[],"futureThing":1}`)
	write("run/broken.json", `{"cdiVersion":`)
	write("run/notes.txt", `not one`)
	c := moduletest.Start(t, devices.New(), strings.ReplaceAll(`{"cdi":["vendor.com/*=*"],"cdi_spec_dirs":["DIR/etc","DIR/run","DIR/none"]}`, "DIR", dir))
	for _, test := range []struct {
		ask, want string
		code      codes.Code
	}{
		{"vendor.com/net=a", "/dev/net-a=c188:1 666 r; /opt/vendor<-DIR/lib bind ro,nosuid,rbind; VENDOR=yes", codes.OK},
		{"vendor.com/net=a,vendor.com/net=b", "/dev/net-a=c188:1 666 r; /dev/net-b=c188:2 640 rwm; /opt/vendor<-DIR/lib bind ro,nosuid,rbind; VENDOR=yes", codes.OK},
		{"vendor.com/disk=x", "FROM=run", codes.OK},
		{"vendor.com/net=hooked", "wants hooks", codes.FailedPrecondition},
		{"vendor.com/net=bad", "absolute paths", codes.FailedPrecondition},
		{"vendor.com/net=gone", "no such file", codes.FailedPrecondition},
		{"vendor.com/net=none", "broken.json", codes.FailedPrecondition},
		{"vendor.com/new=x", "futureThing", codes.FailedPrecondition},
		{"other.com/net=a", "not among those", codes.FailedPrecondition},
		{"vendor.com/net", "CDI name", codes.InvalidArgument},
	} {
		got, err := ask(t, c, dir, test.ask, nil)
		if status.Code(err) != test.code || err == nil && got != test.want || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("Prepare with %s = %q, %v; want %q, %s", test.ask, got, err, test.want, test.code)
		}
	}
}
