package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"
	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// atOnce is how many containers are measured at the same time: more would only make the disk seek.
const atOnce = 2

// meter measures containers again and again, each by a goroutine of its own, few at a time.
type meter struct {
	isolator *Isolator
	slots    chan struct{}

	mu      sync.Mutex // guards targets
	targets map[string]*target
}

// target is one container that is measured.
type target struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when its goroutine has ended

	mu      sync.Mutex // guards what follows
	spec    *containerv1.Container
	project uint32 // 0 is none: it is measured by walking
	last    *usage // nil until it was measured
	reached *modulev1.Limitation
}

// usage is what was measured of a container.
type usage struct {
	sandbox uint64
	volumes map[string]uint64 // by the folder on the machine
	err     error             // why it is incomplete
}

// follow begins to measure a container, or takes over what changed of one.
func (m *meter) follow(c *containerv1.Container, project uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t := m.targets[c.GetId()]; t != nil {
		t.mu.Lock()
		t.spec, t.project = c, project
		t.mu.Unlock()
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	t := &target{cancel: cancel, done: make(chan struct{}), spec: c, project: project}
	if m.targets == nil {
		m.targets = map[string]*target{}
	}
	m.targets[c.GetId()] = t
	go m.run(ctx, t)
}

// forget ends the measuring of a container and waits for that.
func (m *meter) forget(id string) {
	m.mu.Lock()
	t := m.targets[id]
	delete(m.targets, id)
	m.mu.Unlock()
	if t != nil {
		t.cancel()
		<-t.done
	}
}

func (m *meter) find(id string) *target {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.targets[id]
}

// run measures until ctx ends.
func (m *meter) run(ctx context.Context, t *target) {
	defer close(t.done)
	for {
		select {
		case m.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		humbly(func() { m.once(ctx, t) })
		<-m.slots
		timer := time.NewTimer(m.isolator.config.Get().Interval)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// once measures a container and tells if it is over its limit.
func (m *meter) once(ctx context.Context, t *target) {
	t.mu.Lock()
	spec, project := t.spec, t.project
	t.mu.Unlock()
	cfg := m.isolator.config.Get()
	u := m.isolator.use(ctx, cfg, spec, project)
	if ctx.Err() != nil {
		return // cut short: what was counted means nothing
	}
	var l *modulev1.Limitation
	if cfg.Enforce {
		l = exceeded(spec, u, project != 0 && !cfg.Kill)
	}
	t.mu.Lock()
	t.last = u
	if t.reached != nil {
		l = nil // it was told
	} else {
		t.reached = l
	}
	t.mu.Unlock()
	if l != nil {
		m.isolator.events.Limit(l)
	}
}

// use measures a container now.
func (i *Isolator) use(ctx context.Context, cfg *Config, c *containerv1.Container, project uint32) *usage {
	u := &usage{volumes: map[string]uint64{}}
	var wrong []error
	add := func(dir string) uint64 {
		n, err := measure(ctx, dir)
		if err != nil {
			wrong = append(wrong, err)
		}
		return n
	}
	if project != 0 {
		n, err := i.quotas.Used(c.GetSandbox(), project)
		u.sandbox, wrong = n, append(wrong, err)
	} else {
		u.sandbox = add(c.GetSandbox())
	}
	if cfg.ImageLayer {
		if upper := layerOf(c.GetRootfs()); upper != "" {
			u.sandbox += add(upper)
		}
	}
	for _, r := range c.GetResources() {
		if dir, ok := volumeOf(r); ok {
			if _, twice := u.volumes[dir]; !twice {
				u.volumes[dir] = add(dir)
			}
		}
	}
	u.err = errors.Join(wrong...)
	return u
}

// layerOf is the folder that holds what a container wrote into its own root filesystem, "" if there is none.
func layerOf(rootfs string) string {
	if !sensible(rootfs) {
		return ""
	}
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(rootfs))
	if err != nil || len(mounts) != 1 || mounts[0].FSType != "overlay" {
		return ""
	}
	for _, o := range strings.Split(mounts[0].VFSOptions, ",") {
		if upper, ok := strings.CutPrefix(o, "upperdir="); ok && sensible(upper) {
			return upper
		}
	}
	return ""
}

// sensible says whether a path of a record is one that an agent would send: nothing else is walked.
func sensible(dir string) bool {
	return filepath.IsAbs(dir) && filepath.Clean(dir) == dir && dir != "/" && len(dir) < 4096 && !strings.ContainsRune(dir, 0)
}

// ofSandbox says whether a resource is room in the sandbox: disk that is neither a volume nor a disk of its own.
func ofSandbox(r *mesosv1.Resource) bool {
	return r.GetName() == "disk" && r.GetType() == mesosv1.Value_SCALAR && r.GetDisk().GetPersistence() == nil &&
		r.GetDisk().GetVolume() == nil && r.GetDisk().GetSource() == nil
}

// volumeOf is the folder of a persistent volume, if a resource is one that the agent keeps a folder for.
func volumeOf(r *mesosv1.Resource) (string, bool) {
	dir := r.GetDisk().GetVolume().GetHostPath()
	return dir, r.GetName() == "disk" && r.GetDisk().GetPersistence() != nil && sensible(dir)
}

// room is what a container asked for in its sandbox. ok is false if it did not ask.
func room(c *containerv1.Container) (total resources.Bytes, list []*mesosv1.Resource) {
	var sum float64
	for _, r := range c.GetResources() {
		if ofSandbox(r) {
			sum += r.GetScalar().GetValue()
			list = append(list, proto.CloneOf(r))
		}
	}
	return resources.BytesOf(sum), list
}

// exceeded says which limit a container is over, nil if none. held says that the kernel keeps the sandbox to its.
func exceeded(c *containerv1.Container, u *usage, held bool) *modulev1.Limitation {
	limit := func(message string, list ...*mesosv1.Resource) *modulev1.Limitation {
		return &modulev1.Limitation{
			ContainerId: c.GetId(), Reason: mesosv1.TaskStatus_REASON_CONTAINER_LIMITATION_DISK.String(), Message: message, Resources: list,
		}
	}
	over := func(what string, used, most resources.Bytes) string {
		short := func(b resources.Bytes) string { return strings.Replace(b.String(), "iB", "B", 1) } // as Mesos writes it
		return fmt.Sprintf("%s (%s) exceeds quota (%s)", what, short(used), short(most))
	}
	most, list := room(c)
	switch used := resources.Bytes(u.sandbox); {
	case len(list) == 0 || held:
	case used > most:
		return limit(over("Disk usage", used, most), list...)
	case errors.Is(u.err, errTooDeep):
		return limit("Disk usage cannot be measured: "+errTooDeep.Error(), list...)
	}
	for _, r := range c.GetResources() {
		if dir, ok := volumeOf(r); ok {
			used, most := resources.Bytes(u.volumes[dir]), resources.BytesOf(r.GetScalar().GetValue())
			if used > most {
				return limit(over("Disk usage of the persistent volume at "+r.GetDisk().GetVolume().GetContainerPath(), used, most), proto.CloneOf(r))
			}
		}
	}
	return nil
}

// statistics are what is told of a container; nil before it was measured.
func (t *target) statistics() (*mesosv1.ResourceStatistics, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last == nil {
		return nil, nil
	}
	if t.last.err != nil && !errors.Is(t.last.err, os.ErrNotExist) {
		return nil, t.last.err
	}
	s := &mesosv1.ResourceStatistics{
		Timestamp:     proto.Float64(float64(time.Now().UnixMicro()) / 1e6),
		DiskUsedBytes: proto.Uint64(t.last.sandbox),
	}
	most, list := room(t.spec)
	own := &mesosv1.DiskStatistics{UsedBytes: proto.Uint64(t.last.sandbox)}
	if len(list) > 0 {
		s.DiskLimitBytes, own.LimitBytes = proto.Uint64(uint64(most)), proto.Uint64(uint64(most))
	}
	s.DiskStatistics = append(s.DiskStatistics, own)
	for _, r := range t.spec.GetResources() {
		if dir, ok := volumeOf(r); ok {
			s.DiskStatistics = append(s.DiskStatistics, &mesosv1.DiskStatistics{
				Source: r.GetDisk().GetSource(), Persistence: r.GetDisk().GetPersistence(),
				LimitBytes: proto.Uint64(uint64(resources.BytesOf(r.GetScalar().GetValue()))), UsedBytes: proto.Uint64(t.last.volumes[dir]),
			})
		}
	}
	return s, nil
}
