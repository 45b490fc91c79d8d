package disk_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/isolators/disk"
	"github.com/mosaic-cluster/mosaic/sdk/isolator/isolatortest"
	"github.com/mosaic-cluster/mosaic/sdk/kit"
	"github.com/mosaic-cluster/mosaic/sdk/module"
	"github.com/mosaic-cluster/mosaic/sdk/moduletest"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

func TestConformance(t *testing.T) {
	isolatortest.Run(t, kit.InProcess(func() module.Module { return disk.New() }))
}

func TestConformanceWithProjects(t *testing.T) {
	q := newProjects() // of the machine, so that it outlives the module
	isolatortest.Run(t, kit.InProcess(func() module.Module { return disk.NewWith(q) }),
		isolatortest.Config(`{"projects":"5000-500000","enforce":true,"kill":true}`))
}

func room(mb float64) *mesosv1.Resource {
	return &mesosv1.Resource{Name: proto.String("disk"), Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: &mb}}
}

func volume(mb float64, dir string) *mesosv1.Resource {
	r := room(mb)
	r.Disk = &mesosv1.Resource_DiskInfo{
		Persistence: &mesosv1.Resource_DiskInfo_Persistence{Id: proto.String("id")},
		Volume:      &mesosv1.Volume{ContainerPath: proto.String("data"), HostPath: &dir, Mode: mesosv1.Volume_RW.Enum()},
	}
	return r
}

func record(t *testing.T, id string, list ...*mesosv1.Resource) *isolatorv1.ContainerRecord {
	t.Helper()
	return &isolatorv1.ContainerRecord{Pid: 1, Container: &containerv1.Container{Id: id, Sandbox: t.TempDir(), Resources: list}}
}

func fill(t *testing.T, dir string, mb int) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte(strings.Repeat("x", mb<<20)), 0o644); err != nil {
		t.Fatal(err)
	}
}

// launch takes a container to where it is measured.
func launch(t *testing.T, c *moduletest.Client, r *isolatorv1.ContainerRecord) {
	t.Helper()
	p, err := c.Isolator.Prepare(context.Background(), &isolatorv1.PrepareRequest{OperationId: "op", Container: r.GetContainer()})
	if err != nil {
		t.Fatalf("Prepare: %v", err)
	}
	r.State, r.StateVersion = p.GetState(), p.GetStateVersion()
	if _, err := c.Isolator.Isolate(context.Background(), &isolatorv1.IsolateRequest{OperationId: "op", Record: r}); err != nil {
		t.Fatalf("Isolate: %v", err)
	}
	t.Cleanup(func() { cleanup(t, c, r) })
}

func cleanup(t *testing.T, c *moduletest.Client, r *isolatorv1.ContainerRecord) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := c.Isolator.Cleanup(ctx, &isolatorv1.CleanupRequest{OperationId: "op", Record: r}); err != nil && status.Code(err) != codes.Canceled {
		t.Errorf("Cleanup: %v", err)
	}
}

// limitations are what the module says of containers over their limits.
func limitations(t *testing.T, c *moduletest.Client) <-chan *modulev1.Limitation {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s, err := c.Module.Watch(ctx, &modulev1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	list := make(chan *modulev1.Limitation, 100)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			e, err := s.Recv()
			if err != nil {
				return
			}
			if l := e.GetLimitation(); l != nil {
				list <- l
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return list
}

func next(t *testing.T, list <-chan *modulev1.Limitation) *modulev1.Limitation {
	t.Helper()
	select {
	case l := <-list:
		return l
	case <-time.After(30 * time.Second):
		t.Fatal("no limitation within 30 s")
		return nil
	}
}

const often = `{"interval":20000000,"enforce":true}`

func TestAContainerOverItsDiskEndsAsInMesos(t *testing.T) {
	c := moduletest.Start(t, disk.New(), often)
	list := limitations(t, c)
	good, bad := record(t, "good", room(8)), record(t, "bad", room(1), room(1))
	fill(t, good.Container.Sandbox, 4)
	launch(t, c, good)
	launch(t, c, bad)
	fill(t, bad.Container.Sandbox, 4)
	l := next(t, list)
	if l.GetContainerId() != "bad" || l.GetReason() != "REASON_CONTAINER_LIMITATION_DISK" || len(l.GetResources()) != 2 ||
		!strings.HasPrefix(l.GetMessage(), "Disk usage (") || !strings.HasSuffix(l.GetMessage(), "exceeds quota (2MB)") {
		t.Errorf("got the limitation %v, want bad's with Mesos's words", l)
	}
	both := []*isolatorv1.ContainerRecord{good, bad, {Container: &containerv1.Container{Id: "unknown"}}}
	u, err := c.Isolator.Usage(context.Background(), &isolatorv1.UsageRequest{Records: both})
	if err != nil {
		t.Fatal(err)
	}
	s := u.GetResults()["bad"].GetStatistics()
	if s.GetDiskLimitBytes() != 2<<20 || s.GetDiskUsedBytes() < 4<<20 || s.GetDiskUsedBytes() > 5<<20 {
		t.Errorf("Usage of bad = %v, want 4 MB of 2", u.GetResults()["bad"])
	}
	if len(u.GetResults()) > 2 {
		t.Errorf("Usage answers for %d containers, want the two that it knows", len(u.GetResults()))
	}
	st, err := c.Isolator.Status(context.Background(), &isolatorv1.StatusRequest{Records: both})
	if err != nil || !proto.Equal(st.GetResults()["bad"].GetLimitation(), l) || st.GetResults()["good"].GetLimitation() != nil {
		t.Errorf("Status = %v, %v; want the limitation of bad only", st, err)
	}
	select {
	case l := <-list:
		t.Errorf("it is told again: %v", l)
	default:
	}
}

func TestPersistentVolumesCountForThemselves(t *testing.T) {
	c := moduletest.Start(t, disk.New(), often)
	list := limitations(t, c)
	data := t.TempDir()
	r := record(t, "c", room(1), volume(2, data))
	if err := os.Symlink(data, filepath.Join(r.Container.Sandbox, "data")); err != nil {
		t.Fatal(err)
	}
	fill(t, data, 4)
	launch(t, c, r)
	l := next(t, list)
	if !strings.Contains(l.GetMessage(), "persistent volume at data") || !strings.Contains(l.GetMessage(), "quota (2MB)") || len(l.GetResources()) != 1 {
		t.Errorf("got the limitation %v, want the volume's", l)
	}
	u, err := c.Isolator.Usage(context.Background(), &isolatorv1.UsageRequest{Records: []*isolatorv1.ContainerRecord{r}})
	s := u.GetResults()["c"].GetStatistics()
	if err != nil || s.GetDiskUsedBytes() > 1<<20 || len(s.GetDiskStatistics()) != 2 {
		t.Fatalf("Usage = %v, %v; want a sandbox with little in it, and the volume", u, err)
	}
	if v := s.GetDiskStatistics()[1]; v.GetUsedBytes() < 4<<20 || v.GetLimitBytes() != 2<<20 || v.GetPersistence().GetId() != "id" {
		t.Errorf("statistics of the volume = %v, want 4 MB of 2", v)
	}
}

func TestMoreRoomIsTakenOver(t *testing.T) {
	c := moduletest.Start(t, disk.New(), often)
	list := limitations(t, c)
	grown, bad := record(t, "grown", room(1)), record(t, "bad", room(1))
	launch(t, c, grown)
	launch(t, c, bad)
	grown.Container.Resources = []*mesosv1.Resource{room(100)}
	if _, err := c.Isolator.Update(context.Background(), &isolatorv1.UpdateRequest{OperationId: "op", Record: grown}); err != nil {
		t.Fatal(err)
	}
	fill(t, grown.Container.Sandbox, 4)
	fill(t, bad.Container.Sandbox, 4)
	if l := next(t, list); l.GetContainerId() != "bad" {
		t.Errorf("got the limitation %v, want bad's", l)
	}
}

func TestAfterARestartLiveContainersAreMeasured(t *testing.T) {
	c := moduletest.Start(t, disk.New(), often)
	list := limitations(t, c)
	r, orphan := record(t, "c", room(1)), record(t, "orphan", room(1))
	orphan.Orphan = true
	fill(t, r.Container.Sandbox, 4)
	fill(t, orphan.Container.Sandbox, 4)
	recover(t, c, orphan, r)
	t.Cleanup(func() { cleanup(t, c, r) })
	if l := next(t, list); l.GetContainerId() != "c" {
		t.Errorf("got the limitation %v, want that of the live one", l)
	}
}

func recover(t *testing.T, c *moduletest.Client, records ...*isolatorv1.ContainerRecord) {
	t.Helper()
	s, err := c.Isolator.Recover(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&isolatorv1.RecoverRequest{Containers: records}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CloseAndRecv(); err != nil {
		t.Fatal(err)
	}
}

func TestWhatAContainerWritesIntoItsImageCountsIfAsked(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	base := t.TempDir()
	for _, d := range []string{"lower", "upper", "work", "rootfs"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	rootfs := filepath.Join(base, "rootfs")
	if err := unix.Mount("overlay", rootfs, "overlay", 0, fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", base)); err != nil {
		t.Skipf("this machine has no overlay: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(rootfs, unix.MNT_DETACH) })
	fill(t, rootfs, 4)
	c := moduletest.Start(t, disk.New(), `{"interval":20000000,"enforce":true,"image_layer":true}`)
	list := limitations(t, c)
	r := record(t, "c", room(1))
	r.Container.Rootfs = rootfs
	launch(t, c, r)
	if l := next(t, list); l.GetContainerId() != "c" {
		t.Errorf("got the limitation %v, want c's", l)
	}
}

func TestConfigurationsThatMakeNoSenseAreRefused(t *testing.T) {
	for config, path := range map[string]string{
		`{"projects":"5"}`: "projects", `{"projects":"9-5"}`: "projects", `{"projects":"0-5"}`: "projects", `{"kill":true}`: "kill",
		`{"interval":0}`: "interval", `{"projects":"1-99999999999"}`: "projects",
	} {
		c := moduletest.Dial(t, disk.New())
		if errs := c.Configure(t, config); len(errs) != 1 || errs[0].GetPath() != path {
			t.Errorf("Configure(%s) = %v, want an error at %s", config, errs, path)
		}
	}
}

// projects is a file system with project quotas, as far as the module can tell.
type projects struct {
	mu      sync.Mutex // guards what follows
	folders map[string]uint32
	limits  map[uint32]uint64
	used    map[uint32]uint64
	lacking error
	broken  error // what Assign gives
}

func newProjects() *projects {
	return &projects{folders: map[string]uint32{}, limits: map[uint32]uint64{}, used: map[uint32]uint64{}}
}

func (p *projects) Supported(string) error { return p.lacking }

func (p *projects) Project(dir string) (uint32, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.folders[dir], nil
}

func (p *projects) Assign(ctx context.Context, dir string, project uint32) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.broken != nil {
		return p.broken
	}
	p.folders[dir] = project
	return ctx.Err()
}

func (p *projects) Limit(_ string, project uint32, most uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limits[project] = most
	return nil
}

func (p *projects) Used(_ string, project uint32) (uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.used[project], nil
}

func prepare(c *moduletest.Client, r *isolatorv1.ContainerRecord) error {
	p, err := c.Isolator.Prepare(context.Background(), &isolatorv1.PrepareRequest{OperationId: "op", Container: r.GetContainer()})
	r.State, r.StateVersion = p.GetState(), p.GetStateVersion()
	return err
}

func TestEachContainerGetsAProjectOfItsOwn(t *testing.T) {
	q := newProjects()
	q.used[11] = 4096 // somebody else's
	config := `{"projects":"10-12","enforce":true}`
	c := moduletest.Start(t, disk.NewWith(q), config)
	a, b, full := record(t, "a", room(5)), record(t, "b", room(7)), record(t, "full", room(1))
	for _, r := range []*isolatorv1.ContainerRecord{a, b} {
		for range 2 {
			if err := prepare(c, r); err != nil {
				t.Fatalf("Prepare of %s: %v", r.Container.Id, err)
			}
		}
	}
	if string(a.State) != `{"project":10}` || string(b.State) != `{"project":12}` || q.limits[10] != 5<<20 || q.limits[12] != 7<<20 {
		t.Errorf("states %s and %s, limits %v; want projects 10 and 12 with 5 and 7 MiB", a.State, b.State, q.limits)
	}
	if err := prepare(c, full); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "in use") {
		t.Errorf("Prepare without a free project = %v, want FailedPrecondition", err)
	}
	cleanup(t, c, full)

	// Another process knows by the records, and by the sandbox where an answer was lost.
	lost := proto.CloneOf(b)
	lost.State, lost.StateVersion, lost.Pid = nil, 0, 0
	c = moduletest.Start(t, disk.NewWith(q), config)
	recover(t, c, a, lost)
	t.Cleanup(func() { cleanup(t, c, a) })
	if err := prepare(c, full); err == nil {
		t.Error("Prepare after a restart took a project that is in use")
	}
	cleanup(t, c, full)
	cleanup(t, c, lost)
	cleanup(t, c, lost)
	if q.folders[b.Container.Sandbox] != 0 || q.limits[12] != 0 {
		t.Errorf("after its cleanup b's sandbox has project %d with the limit %d", q.folders[b.Container.Sandbox], q.limits[12])
	}
	if err := prepare(c, full); err != nil || q.limits[12] != 1<<20 {
		t.Errorf("Prepare with a project that is free again = %v, limits %v", err, q.limits)
	}
	cleanup(t, c, b) // comes late, when its project is another's
	if q.limits[12] != 1<<20 {
		t.Error("a late cleanup took the limit of the project's next container")
	}
	full.Container.Resources = []*mesosv1.Resource{room(3)}
	if _, err := c.Isolator.Update(context.Background(), &isolatorv1.UpdateRequest{OperationId: "op", Record: full}); err != nil || q.limits[12] != 3<<20 {
		t.Errorf("Update = %v, limits %v; want 3 MiB", err, q.limits)
	}
}

func TestACleanupThatFailsIsOwedAndDoneLater(t *testing.T) {
	q := newProjects()
	c := moduletest.Start(t, disk.NewWith(q), `{"projects":"10-12"}`)
	r := record(t, "c", room(5))
	if err := prepare(c, r); err != nil {
		t.Fatal(err)
	}
	if q.limits[10] != 0 {
		t.Errorf("without enforce the limit is %d, want none", q.limits[10])
	}
	q.broken = errors.New("input/output error")
	if _, err := c.Isolator.Cleanup(context.Background(), &isolatorv1.CleanupRequest{Record: r}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("Cleanup = %v, want FailedPrecondition", err)
	}
	q.broken = nil
	cleanup(t, c, r)
	if q.folders[r.Container.Sandbox] != 0 {
		t.Error("the sandbox still has its project")
	}
}

func TestWithKillTheLimitIsReachedBeforeTheKernels(t *testing.T) {
	q := newProjects()
	c := moduletest.Start(t, disk.NewWith(q), `{"projects":"10-12","enforce":true,"kill":true,"interval":20000000}`)
	list := limitations(t, c)
	r := record(t, "c", room(5))
	launch(t, c, r)
	q.mu.Lock()
	if q.limits[10] != 15<<20 {
		t.Errorf("the kernel's limit is %d, want 10 MiB more than asked for", q.limits[10])
	}
	q.used[10] = 6 << 20
	q.mu.Unlock()
	if l := next(t, list); l.GetContainerId() != "c" || !strings.Contains(l.GetMessage(), "6MB") {
		t.Errorf("got the limitation %v, want c's with what the project uses", l)
	}
}

func TestWithoutQuotasAContainerThatShouldHaveThemIsRefused(t *testing.T) {
	c := moduletest.Start(t, disk.New(), `{"projects":"10-12"}`)
	dir := "/dev/shm"
	if _, err := os.Stat(dir); err != nil {
		dir = "/proc"
	}
	r := &isolatorv1.ContainerRecord{Container: &containerv1.Container{Id: "c", Sandbox: dir}}
	if err := prepare(c, r); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "not on XFS") {
		t.Errorf("Prepare with a sandbox on no XFS = %v, want FailedPrecondition", err)
	}
}
