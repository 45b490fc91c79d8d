package dockervolume_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/isolators/dockervolume"
	"github.com/mosaic-cluster/mosaic/sdk/isolator/isolatortest"
	"github.com/mosaic-cluster/mosaic/sdk/kit"
	"github.com/mosaic-cluster/mosaic/sdk/module"
	"github.com/mosaic-cluster/mosaic/sdk/moduletest"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// plugin is a volume driver that counts mounts by call, as the strictest do, and mounts for real where it may.
type plugin struct {
	dir string

	mu      sync.Mutex // guards what follows
	options map[string]map[string]string
	mounts  map[string]int
	calls   []string
	real    bool
	lie     map[string]string        // method to the answer given instead
	stuck   map[string]chan struct{} // method to what it waits for
	deaf    map[string]bool          // method that is done but whose answer is lost
}

// serve starts the driver; it listens at a socket of that name in sockets.
func serve(t *testing.T, sockets, name string) *plugin {
	t.Helper()
	p := &plugin{
		dir: t.TempDir(), options: map[string]map[string]string{}, mounts: map[string]int{}, real: os.Geteuid() == 0,
		lie: map[string]string{}, stuck: map[string]chan struct{}{}, deaf: map[string]bool{},
	}
	l, err := net.Listen("unix", filepath.Join(sockets, name+".sock"))
	if err != nil {
		t.Fatal(err)
	}
	p.listen(t, l)
	return p
}

func (p *plugin) listen(t *testing.T, l net.Listener) {
	s := &http.Server{Handler: p}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = s.Serve(l) }()
	t.Cleanup(func() {
		_ = s.Close()
		<-ended
		p.mu.Lock()
		defer p.mu.Unlock()
		for name, n := range p.mounts {
			if n > 0 && p.real {
				_ = unix.Unmount(p.at(name), unix.MNT_DETACH)
			}
		}
	})
}

func (p *plugin) at(name string) string { return filepath.Join(p.dir, "at", name) }

func (p *plugin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	method := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/"), "VolumeDriver.")
	var in struct {
		Name, ID string
		Opts     map[string]string
	}
	if r.Method != http.MethodPost || json.NewDecoder(r.Body).Decode(&in) != nil {
		http.Error(w, "bad request", http.StatusBadRequest)
		return
	}
	p.mu.Lock()
	stuck := p.stuck[method]
	p.mu.Unlock()
	if stuck != nil {
		select {
		case <-stuck:
		case <-r.Context().Done():
			return
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, strings.TrimSpace(method+" "+in.Name))
	if answer, ok := p.lie[method]; ok {
		fmt.Fprint(w, answer)
		return
	}
	answer := p.do(method, in.Name, in.Opts)
	if p.deaf[method] {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "application/vnd.docker.plugins.v1.2+json")
	_ = json.NewEncoder(w).Encode(answer)
}

// do needs mu held.
func (p *plugin) do(method, name string, options map[string]string) map[string]any {
	no := func(text string) map[string]any { return map[string]any{"Err": text} }
	_, known := p.options[name]
	switch method {
	case "Plugin.Activate":
		return map[string]any{"Implements": []string{"VolumeDriver"}}
	case "Capabilities":
		return map[string]any{"Capabilities": map[string]string{"Scope": "global"}}
	case "Create":
		if known {
			return no("it exists")
		}
		p.options[name] = options
		if err := os.MkdirAll(filepath.Join(p.dir, "data", name), 0o755); err != nil {
			return no(err.Error())
		}
		return map[string]any{}
	}
	if !known {
		return no("no such volume")
	}
	at := ""
	if p.mounts[name] > 0 {
		at = p.at(name)
	}
	switch method {
	case "Get":
		return map[string]any{"Volume": map[string]any{"Name": name, "Mountpoint": at}}
	case "Path":
		return map[string]any{"Mountpoint": at}
	case "Mount":
		p.mounts[name]++
		if p.mounts[name] == 1 {
			if err := os.MkdirAll(p.at(name), 0o755); err != nil {
				return no(err.Error())
			}
			if p.real {
				if err := unix.Mount(filepath.Join(p.dir, "data", name), p.at(name), "", unix.MS_BIND, ""); err != nil {
					return no(err.Error())
				}
			}
		}
		return map[string]any{"Mountpoint": p.at(name)}
	case "Unmount":
		if p.mounts[name] == 0 {
			return no("not mounted")
		}
		if p.mounts[name]--; p.mounts[name] == 0 && p.real {
			if err := unix.Unmount(p.at(name), 0); err != nil {
				return no(err.Error())
			}
		}
		return map[string]any{}
	}
	return no("unknown method " + method)
}

func (p *plugin) count(name string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mounts[name]
}

func (p *plugin) change(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

func (p *plugin) asked() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.calls)
}

// nothingMounted fails the test if any mount of the driver is left.
func (p *plugin) nothingMounted(t *testing.T) {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(data), p.dir) {
		t.Errorf("mounts of %s are left", p.dir)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, n := range p.mounts {
		if n != 0 {
			t.Errorf("the driver counts %d mounts of %s, want 0", n, name)
		}
	}
}

// folder is short, for sockets.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func config(sockets string, more string) string {
	return fmt.Sprintf(`{"sockets":%q,"specs":[%q]%s}`, sockets, sockets, more)
}

func dockerVolume(at, driver, name string, options ...string) *mesosv1.Volume {
	v := &mesosv1.Volume{ContainerPath: &at, Mode: mesosv1.Volume_RW.Enum(), Source: &mesosv1.Volume_Source{
		Type: mesosv1.Volume_Source_DOCKER_VOLUME.Enum(), DockerVolume: &mesosv1.Volume_Source_DockerVolume{Name: &name},
	}}
	if driver != "" {
		v.Source.DockerVolume.Driver = &driver
	}
	for n := 0; n+1 < len(options); n += 2 {
		if v.Source.DockerVolume.DriverOptions == nil {
			v.Source.DockerVolume.DriverOptions = &mesosv1.Parameters{}
		}
		v.Source.DockerVolume.DriverOptions.Parameter = append(v.Source.DockerVolume.DriverOptions.Parameter,
			&mesosv1.Parameter{Key: &options[n], Value: &options[n+1]})
	}
	return v
}

func box(t *testing.T, id string, list ...*mesosv1.Volume) *containerv1.Container {
	t.Helper()
	return &containerv1.Container{Id: id, Sandbox: t.TempDir(), User: "nobody", ContainerInfo: &mesosv1.ContainerInfo{
		Type: mesosv1.ContainerInfo_MESOS.Enum(), Volumes: list,
	}}
}

func prepare(c *moduletest.Client, b *containerv1.Container) (*isolatorv1.ContainerRecord, *isolatorv1.PrepareResponse, error) {
	r, err := c.Isolator.Prepare(context.Background(), &isolatorv1.PrepareRequest{OperationId: "op", Container: b})
	return &isolatorv1.ContainerRecord{Container: b, State: r.GetState(), StateVersion: r.GetStateVersion()}, r, err
}

func mustPrepare(t *testing.T, c *moduletest.Client, b *containerv1.Container) (*isolatorv1.ContainerRecord, *isolatorv1.PrepareResponse) {
	t.Helper()
	record, r, err := prepare(c, b)
	if err != nil {
		t.Fatalf("Prepare of container %s: %v", b.GetId(), err)
	}
	return record, r
}

func cleanup(c *moduletest.Client, r *isolatorv1.ContainerRecord) error {
	_, err := c.Isolator.Cleanup(context.Background(), &isolatorv1.CleanupRequest{OperationId: "op", Record: r})
	return err
}

func mustCleanup(t *testing.T, c *moduletest.Client, r *isolatorv1.ContainerRecord) {
	t.Helper()
	for range 2 { // it may come again
		if err := cleanup(c, r); err != nil {
			t.Fatalf("Cleanup of container %s: %v", r.GetContainer().GetId(), err)
		}
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

func TestConformance(t *testing.T) {
	isolatortest.Run(t, kit.InProcess(func() module.Module { return dockervolume.New() }))
}

func TestConformanceWithVolumes(t *testing.T) {
	sockets := folder(t)
	serve(t, sockets, "kit")
	isolatortest.Run(t, kit.InProcess(func() module.Module { return dockervolume.New() }), isolatortest.Config(config(sockets, "")),
		isolatortest.Container(func(c *containerv1.Container) {
			c.ContainerInfo = &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum(), Volumes: []*mesosv1.Volume{
				dockerVolume("shared", "kit", "shared"), dockerVolume("own", "kit", "own-"+c.GetId()[:min(len(c.GetId()), 20)]),
			}}
		}))
}

func TestAVolumeIsMountedOnceAndUnmountedAfterItsLastContainer(t *testing.T) {
	sockets := folder(t)
	p := serve(t, sockets, "d")
	c := moduletest.Start(t, dockervolume.New(), config(sockets, ""))
	var records []*isolatorv1.ContainerRecord
	for n := range 3 {
		read := dockerVolume("data", "d", "vol", "size", "10G")
		if n == 1 {
			read.Mode = mesosv1.Volume_RO.Enum()
		}
		record, r := mustPrepare(t, c, box(t, fmt.Sprint("c", n), read))
		records = append(records, record)
		m := r.GetProposal().GetMounts()
		mode := []string{"rw", "ro", "rw"}[n]
		if len(m) != 1 || m[0].GetSource() != p.at("vol") || m[0].GetDestination() != record.Container.Sandbox+"/data" || m[0].GetOptions()[1] != mode {
			t.Errorf("Prepare proposed %v, want %s at data, %s", m, p.at("vol"), mode)
		}
	}
	if n := p.count("vol"); n != 1 {
		t.Errorf("for three containers the driver mounted %d times, want once", n)
	}
	if got := p.options["vol"]["size"]; got != "10G" {
		t.Errorf("the volume was made with size %q, want 10G", got)
	}
	for n, r := range records {
		mustCleanup(t, c, r)
		if got, want := p.count("vol"), 1; n < 2 && got != want {
			t.Errorf("after the end of %d containers it is mounted %d times, want %d", n+1, got, want)
		}
	}
	p.nothingMounted(t)
	if calls := p.asked(); slices.Contains(calls, "Remove vol") {
		t.Errorf("the driver was asked %v, want no Remove", calls)
	}
}

func TestWhatOneTaskWroteAnotherReads(t *testing.T) {
	sockets := folder(t)
	p := serve(t, sockets, "d")
	c := moduletest.Start(t, dockervolume.New(), config(sockets, `,"default_driver":"d","chown":true`))
	if !p.real {
		t.Skip("mounting needs root")
	}
	first, r := mustPrepare(t, c, box(t, "first", dockerVolume("data", "", "vol")))
	source := r.GetProposal().GetMounts()[0].GetSource()
	if err := os.WriteFile(filepath.Join(source, "file"), []byte("words"), 0o644); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(source, &st); err != nil || st.Uid != 65534 {
		t.Errorf("the volume belongs to %d, %v; want the container's user", st.Uid, err)
	}
	mustCleanup(t, c, first)
	if _, err := os.Stat(filepath.Join(source, "file")); err == nil {
		t.Error("after the end of its container the volume is still mounted")
	}
	second, _ := mustPrepare(t, c, box(t, "second", dockerVolume("data", "", "vol")))
	if data, err := os.ReadFile(filepath.Join(source, "file")); string(data) != "words" {
		t.Errorf("the second task reads %q, %v", data, err)
	}
	mustCleanup(t, c, second)
	p.nothingMounted(t)
}

func TestAfterACrashNothingIsCountedTwiceOrForgotten(t *testing.T) {
	sockets := folder(t)
	p := serve(t, sockets, "d")
	c := moduletest.Start(t, dockervolume.New(), config(sockets, ""))
	live, _ := mustPrepare(t, c, box(t, "live", dockerVolume("data", "d", "vol")))
	orphan, _ := mustPrepare(t, c, box(t, "orphan", dockerVolume("data", "d", "vol"), dockerVolume("more", "d", "orphaned")))
	cut, _ := mustPrepare(t, c, box(t, "cut", dockerVolume("data", "d", "half")))
	cut.State, cut.StateVersion = nil, 0 // its answer never arrived
	orphan.Orphan = true

	c = moduletest.Start(t, dockervolume.New(), config(sockets, "")) // another process, which knows nothing
	recover(t, c, live, orphan, cut)
	recover(t, c, live, orphan, cut)
	for _, name := range []string{"vol", "orphaned", "half"} {
		if n := p.count(name); n != 1 {
			t.Errorf("Recover: %s is mounted %d times, want 1 still", name, n)
		}
	}
	again, _ := mustPrepare(t, c, box(t, "again", dockerVolume("data", "d", "half")))
	if n := p.count("half"); n != 1 {
		t.Errorf("mounted again after a lost answer the driver counts %d, want 1", n)
	}
	mustCleanup(t, c, orphan)
	mustCleanup(t, c, cut)
	if p.count("vol") != 1 || p.count("orphaned") != 0 || p.count("half") != 1 {
		t.Errorf("after the orphans' cleanup there are mounts %v, want vol and half only", p.mounts)
	}
	mustCleanup(t, c, live)
	mustCleanup(t, c, again)
	p.nothingMounted(t)
}

func TestCleanupOfWhatWasNeverMountedLeavesOthersAlone(t *testing.T) {
	sockets := folder(t)
	p := serve(t, sockets, "d")
	c := moduletest.Start(t, dockervolume.New(), config(sockets, ""))
	live, _ := mustPrepare(t, c, box(t, "live", dockerVolume("data", "d", "vol")))
	for _, r := range []*isolatorv1.ContainerRecord{
		nil, {}, {Container: &containerv1.Container{Id: "unknown"}},
		{Container: box(t, "never", dockerVolume("data", "d", "vol"))},
		{Container: box(t, "nowhere", dockerVolume("data", "none", "vol"))},
	} {
		if err := cleanup(c, r); err != nil {
			t.Errorf("Cleanup of %v: %v, want success", r.GetContainer().GetId(), err)
		}
	}
	if n := p.count("vol"); n != 1 {
		t.Errorf("after cleanups of strangers it is mounted %d times, want 1", n)
	}
	mustCleanup(t, c, live)
	p.nothingMounted(t)
}

func TestAMountWhoseAnswerWasLostIsTakenBack(t *testing.T) {
	sockets := folder(t)
	p := serve(t, sockets, "d")
	c := moduletest.Start(t, dockervolume.New(), config(sockets, ""))
	p.change(func() { p.deaf["Mount"] = true })
	record, _, err := prepare(c, box(t, "c", dockerVolume("data", "d", "vol")))
	if err == nil {
		t.Fatal("Prepare with a driver that does not answer = success")
	}
	p.change(func() { p.deaf["Mount"] = false })
	mustCleanup(t, c, record)
	p.nothingMounted(t)
}

func TestAnUnmountThatFailsStaysOwed(t *testing.T) {
	sockets := folder(t)
	p := serve(t, sockets, "d")
	c := moduletest.Start(t, dockervolume.New(), config(sockets, ""))
	record, _ := mustPrepare(t, c, box(t, "c", dockerVolume("data", "d", "vol")))
	p.change(func() { p.lie["Unmount"] = `{"Err":"device is busy"}` })
	if err := cleanup(c, record); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "busy") {
		t.Errorf("Cleanup = %v, want FailedPrecondition with the driver's words", err)
	}
	p.change(func() { delete(p.lie, "Unmount") })
	mustCleanup(t, c, record)
	p.nothingMounted(t)
}

func TestVolumesOfAnEarlierBootAreNotWaitedFor(t *testing.T) {
	sockets := folder(t)
	p := serve(t, sockets, "d")
	c := moduletest.Start(t, dockervolume.New(), config(sockets, ""))
	record, _ := mustPrepare(t, c, box(t, "c", dockerVolume("data", "d", "vol")))
	mustCleanup(t, c, record) // by the end of the machine
	record.State = []byte(strings.Replace(string(record.State), `"boot":"boot"`, `"boot":"before"`, 1))
	record.Orphan = true
	c = moduletest.Start(t, dockervolume.New(), config(sockets, ""))
	recover(t, c, record)
	next, _ := mustPrepare(t, c, box(t, "next", dockerVolume("data", "d", "vol")))
	mustCleanup(t, c, record)
	if n := p.count("vol"); n != 1 {
		t.Errorf("it is mounted %d times, want once for the new container", n)
	}
	mustCleanup(t, c, next)
	p.nothingMounted(t)
}

func TestDriversThatLieAreNotBelieved(t *testing.T) {
	sockets := folder(t)
	p := serve(t, sockets, "d")
	c := moduletest.Start(t, dockervolume.New(), config(sockets, ""))
	for _, test := range []struct{ method, answer, want string }{
		{"Plugin.Activate", `{"Implements":["NetworkDriver"]}`, "want VolumeDriver"},
		{"Plugin.Activate", `hello`, "no JSON"},
		{"Plugin.Activate", strings.Repeat("x", 2<<20), "more than"},
		{"Mount", `{"Mountpoint":"relative"}`, "absolute"},
		{"Mount", `{"Mountpoint":""}`, "absolute"},
		{"Mount", `{"Mountpoint":"/"}`, "no volume can be there"},
		{"Mount", `{"Mountpoint":"/no/such/place"}`, "no such file"},
		{"Mount", `{"Mountpoint":"/etc/passwd"}`, "folder"},
		{"Mount", `{"Mountpoint":7}`, "cannot unmarshal"},
		{"Create", `{"Err":"no space left"}`, "no space left"},
	} {
		p.change(func() { p.lie[test.method] = test.answer })
		record, _, err := prepare(c, box(t, "c", dockerVolume("data", "d", "vol")))
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), test.want) {
			t.Errorf("Prepare when %s answers %.40q = %v, want FailedPrecondition with %q", test.method, test.answer, err, test.want)
		}
		p.change(func() { delete(p.lie, test.method); delete(p.options, "vol") })
		mustCleanup(t, c, record)
	}
	p.nothingMounted(t)
}

func TestADriverThatHangsFailsItsContainerOnly(t *testing.T) {
	sockets := folder(t)
	stuck, fine := serve(t, sockets, "stuck"), serve(t, sockets, "fine")
	release := make(chan struct{})
	stuck.stuck["Mount"] = release
	c := moduletest.Start(t, dockervolume.New(), config(sockets, `,"timeout":300000000`))
	began := time.Now()
	failed := make(chan error, 1)
	hung := box(t, "hung", dockerVolume("data", "stuck", "vol"))
	var record *isolatorv1.ContainerRecord
	go func() {
		var err error
		record, _, err = prepare(c, hung)
		failed <- err
	}()
	other, _ := mustPrepare(t, c, box(t, "other", dockerVolume("data", "fine", "vol")))
	if err := <-failed; status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "no answer within 300ms") {
		t.Errorf("Prepare with a driver that hangs = %v, want FailedPrecondition", err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	stuck.change(func() { delete(stuck.stuck, "Mount") })
	mustCleanup(t, c, record)
	mustCleanup(t, c, other)
	stuck.nothingMounted(t)
	fine.nothingMounted(t)
}

func TestWhatIsRefused(t *testing.T) {
	sockets := folder(t)
	p := serve(t, sockets, "d")
	for _, test := range []struct {
		name, config string
		volumes      []*mesosv1.Volume
		want         codes.Code
		text         string
	}{
		{"twice", "", []*mesosv1.Volume{dockerVolume("a", "d", "v"), dockerVolume("b", "d", "v")}, codes.InvalidArgument, "already"},
		{"no driver", "", []*mesosv1.Volume{dockerVolume("a", "", "v")}, codes.InvalidArgument, "default_driver"},
		{"no such driver", "", []*mesosv1.Volume{dockerVolume("a", "none", "v")}, codes.FailedPrecondition, "no such driver"},
		{"a driver that is a path", "", []*mesosv1.Volume{dockerVolume("a", "../d", "v")}, codes.InvalidArgument, "letters"},
		{"a name that is a path", "", []*mesosv1.Volume{dockerVolume("a", "d", "../v")}, codes.InvalidArgument, "slash"},
		{"a driver that is not allowed", `,"allow":["e"]`, []*mesosv1.Volume{dockerVolume("a", "d", "v")}, codes.InvalidArgument, "not among those allowed"},
		{"an option twice", "", []*mesosv1.Volume{dockerVolume("a", "d", "v", "k", "1", "k", "2")}, codes.InvalidArgument, "twice"},
		{"the root", "", []*mesosv1.Volume{dockerVolume("/", "d", "v")}, codes.InvalidArgument, "root"},
		{"a place that is not there", "", []*mesosv1.Volume{dockerVolume("/no/such", "d", "v")}, codes.FailedPrecondition, "without image"},
	} {
		c := moduletest.Start(t, dockervolume.New(), config(sockets, test.config))
		if _, _, err := prepare(c, box(t, "c", test.volumes...)); status.Code(err) != test.want || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: Prepare = %v, want %s with %q", test.name, err, test.want, test.text)
		}
	}
	if calls := p.asked(); len(calls) > 0 {
		t.Errorf("for what is refused the driver was asked %v", calls)
	}
}

func TestDriversAreFoundWhereDockerFindsThem(t *testing.T) {
	dir := folder(t)
	p := serve(t, dir, "real")
	if err := os.Mkdir(filepath.Join(dir, "nested"), 0o755); err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.listen(t, tcp)
	nested, err := net.Listen("unix", filepath.Join(dir, "nested", "nested.sock"))
	if err != nil {
		t.Fatal(err)
	}
	p.listen(t, nested)
	for name, text := range map[string]string{
		"byfile.spec": "unix://" + dir + "/real.sock\n", "bytcp.spec": "tcp://" + tcp.Addr().String(),
		"byjson.json": `{"Name":"x","Addr":"http://` + tcp.Addr().String() + `/"}`,
		"ftp.spec":    "ftp://x", "broken.json": "{", "nokeys.json": `{"Addr":"https://127.0.0.1:1","TLSConfig":{"CAFile":"/no/such"}}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c := moduletest.Start(t, dockervolume.New(), config(dir, ""))
	for _, name := range []string{"real", "nested", "byfile", "bytcp", "byjson"} {
		record, _, err := prepare(c, box(t, name, dockerVolume("data", name, "vol-"+name)))
		if err != nil {
			t.Errorf("Prepare with driver %s: %v", name, err)
		}
		mustCleanup(t, c, record)
	}
	for name, want := range map[string]string{"ftp": "want unix", "broken": "broken.json", "nokeys": "/no/such"} {
		if _, _, err := prepare(c, box(t, name, dockerVolume("data", name, "vol"))); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Prepare with driver %s = %v, want an error with %q", name, err, want)
		}
	}
	p.nothingMounted(t)
}

func TestManyContainersOfOneVolumeAtOnce(t *testing.T) {
	sockets := folder(t)
	p := serve(t, sockets, "d")
	c := moduletest.Start(t, dockervolume.New(), config(sockets, ""))
	var wg sync.WaitGroup
	for n := range 30 {
		b := box(t, fmt.Sprint("c", n), dockerVolume("data", "d", "vol"))
		wg.Go(func() {
			for range 3 {
				record, _, err := prepare(c, b)
				if err != nil {
					t.Errorf("Prepare: %v", err)
				}
				if p.count("vol") != 1 {
					t.Errorf("it is mounted %d times while it is in use", p.count("vol"))
				}
				if err := cleanup(c, record); err != nil {
					t.Errorf("Cleanup: %v", err)
				}
			}
		})
	}
	wg.Wait()
	p.nothingMounted(t)
}

func TestSameOperationGivesTheSame(t *testing.T) {
	sockets := folder(t)
	p := serve(t, sockets, "d")
	c := moduletest.Start(t, dockervolume.New(), config(sockets, ""))
	b := box(t, "c", dockerVolume("data", "d", "vol"))
	record, first := mustPrepare(t, c, b)
	if _, again := mustPrepare(t, c, b); !proto.Equal(first, again) || p.count("vol") != 1 {
		t.Errorf("Prepare again = %v, mounted %d times; want %v, once", again, p.count("vol"), first)
	}
	mustCleanup(t, c, record)
	p.nothingMounted(t)
}
