// Package disk is the isolator for what containers store: it measures their sandboxes and persistent volumes, and ends
// those that take more than they asked for. Where the sandboxes are on XFS with project quotas the kernel counts instead,
// and nobody gets beyond the limit.
//
// It promises that measuring is cheap for others: it runs at the lowest priority, for few containers at a time, and stops
// at once when its container ends. It follows no links and enters no other mounts. What a container got is in its
// sandbox's own attributes, so that a crash loses nothing.
//
// Nested containers count to the one that they are nested in. Disks of storage plugins are limited by their size.
package disk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// stateVersion is the version of what is kept of a container.
const stateVersion = 1

// Config is what the operator may set.
type Config struct {
	Enforce    bool          `hcl:"enforce,optional" doc:"A container that takes more than it asked for ends, or with project quotas gets no more."`
	Interval   time.Duration `hcl:"interval,optional" doc:"Time between two measurements of a container." min:"1s"`
	ImageLayer bool          `hcl:"image_layer,optional" doc:"What a container writes into its image counts too."`
	Projects   string        `hcl:"projects,optional" doc:"Project numbers for XFS quotas, as 5000-10000; unset measures by walking." pattern:"|[0-9]+-[0-9]+"`
	Kill       bool          `hcl:"kill,optional" doc:"With project quotas: a container at its limit ends, instead of getting no more."`
}

// Isolator is the module.
type Isolator struct {
	isolatorv1.UnimplementedIsolatorServer
	config *module.Config[Config]
	events *module.Events
	quotas Quotas
	meter  *meter

	mu   sync.Mutex       // guards used
	used map[uint32]owner // of projects
}

// owner is the container that has a project.
type owner struct{ id, sandbox string }

// New returns the module with its defaults: it measures each 15 s, as Mesos does, and ends nobody.
func New() *Isolator { return NewWith(kernelQuotas{}) }

// NewWith is New with project quotas other than the kernel's.
func NewWith(q Quotas) *Isolator {
	i := &Isolator{
		config: module.NewConfig(Config{Interval: 15 * time.Second}, validate),
		events: module.NewEvents(), quotas: q, used: map[uint32]owner{},
	}
	i.meter = &meter{isolator: i, slots: make(chan struct{}, atOnce)}
	return i
}

func validate(c *Config) error {
	var wrong []error
	if c.Interval <= 0 {
		wrong = append(wrong, module.Wrong("interval", "got %v, want more than 0", c.Interval))
	}
	if _, _, err := c.projects(); err != nil {
		wrong = append(wrong, module.Wrong("projects", "%v", err))
	}
	if c.Kill && (c.Projects == "" || !c.Enforce) {
		wrong = append(wrong, module.Wrong("kill", "it needs enforce and projects"))
	}
	return errors.Join(wrong...)
}

// projects are the first and last project; both 0 if there are none.
func (c *Config) projects() (first, last uint32, err error) {
	if c.Projects == "" {
		return 0, 0, nil
	}
	from, to, _ := strings.Cut(c.Projects, "-")
	a, errA := strconv.ParseUint(from, 10, 32)
	b, errB := strconv.ParseUint(to, 10, 32)
	if errA != nil || errB != nil || a == 0 || b < a {
		return 0, 0, fmt.Errorf("got %q, want two numbers as 5000-10000, the first at least 1", c.Projects)
	}
	return uint32(a), uint32(b), nil
}

// Info describes the module.
func (i *Isolator) Info() module.Info {
	return module.Info{
		Kind: "isolator", Name: "disk", Version: "1.0.0", Doc: "use of disk space, and its limit",
		Calls: []string{"isolate", "update", "usage", "status"}, Standalone: true, NeedsRoot: true,
		MinState: stateVersion, MaxState: stateVersion, Config: i.config, Events: i.events,
	}
}

// state is what is kept of a container that has a project.
type state struct {
	Project uint32 `json:"project"`
}

// projectOf is a container's project by what was kept of it, 0 if it has none.
func projectOf(r *isolatorv1.ContainerRecord) uint32 {
	var s state
	if len(r.GetState()) == 0 || r.GetStateVersion() != stateVersion || json.Unmarshal(r.GetState(), &s) != nil {
		return 0
	}
	return s.Project
}

// headroom is what a container gets beyond its limit where reaching the limit ends it. Mesos gives 10 MB.
const headroom = 10 * resources.MiB

// limitOf is the kernel's limit for a container, 0 for none.
func limitOf(cfg *Config, c *containerv1.Container) uint64 {
	most, list := room(c)
	switch {
	case !cfg.Enforce || len(list) == 0:
		return 0
	case cfg.Kill:
		return uint64(most + headroom)
	}
	return max(uint64(most), blockSize) // 0 would be none
}

// Prepare gives the sandbox a project, if the operator has some for containers.
func (i *Isolator) Prepare(ctx context.Context, r *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
	cfg, c := i.config.Get(), r.GetContainer()
	for _, x := range c.GetResources() {
		if v := x.GetScalar().GetValue(); x.GetName() == "disk" && (!(v >= 0) || v > 1<<40) {
			return nil, module.InvalidArgument("disk: got %v, want a sensible amount", v)
		}
	}
	if cfg.Projects == "" {
		return &isolatorv1.PrepareResponse{}, nil
	}
	if !sensible(c.GetSandbox()) {
		return nil, module.InvalidArgument("sandbox %.200q: want an absolute, clean path", c.GetSandbox())
	}
	if err := i.quotas.Supported(c.GetSandbox()); err != nil {
		return nil, module.FailedPrecondition("project quotas (projects): %v", err)
	}
	project, err := i.claim(cfg, c)
	if err != nil {
		return nil, err
	}
	if err := i.quotas.Limit(c.GetSandbox(), project, limitOf(cfg, c)); err != nil {
		return nil, module.FailedPrecondition("limit project %d: %v", project, err)
	}
	if err := i.quotas.Assign(ctx, c.GetSandbox(), project); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, module.FailedPrecondition("give the sandbox to project %d: %v", project, err)
	}
	data, err := json.Marshal(state{project})
	if err != nil {
		return nil, err
	}
	return &isolatorv1.PrepareResponse{State: data, StateVersion: stateVersion}, nil
}

// claim takes a project for a container: the one that its sandbox has, or a free one. What a project without container
// still uses is somebody else's, so such a one is left alone.
func (i *Isolator) claim(cfg *Config, c *containerv1.Container) (uint32, error) {
	first, last, err := cfg.projects()
	if err != nil {
		return 0, err
	}
	has, err := i.quotas.Project(c.GetSandbox())
	if err != nil {
		return 0, module.FailedPrecondition("ask for the sandbox's project: %v", err)
	}
	me := owner{c.GetId(), c.GetSandbox()}
	i.mu.Lock()
	defer i.mu.Unlock()
	for p, who := range i.used {
		if who.id == me.id {
			return p, nil
		}
	}
	if has >= first && has <= last && i.used[has].id == "" {
		i.used[has] = me
		return has, nil
	}
	for project := uint64(first); project <= uint64(last); project++ {
		p := uint32(project)
		if i.used[p].id != "" {
			continue
		}
		n, err := i.quotas.Used(c.GetSandbox(), p)
		if err != nil {
			return 0, module.FailedPrecondition("ask for the use of project %d: %v", p, err)
		}
		if n == 0 {
			i.used[p] = me
			return p, nil
		}
	}
	return 0, module.FailedPrecondition("all projects (%s) are in use", cfg.Projects)
}

// Isolate begins to measure the container.
func (i *Isolator) Isolate(_ context.Context, r *isolatorv1.IsolateRequest) (*isolatorv1.IsolateResponse, error) {
	c := r.GetRecord().GetContainer()
	if !sensible(c.GetSandbox()) {
		return nil, module.InvalidArgument("sandbox %.200q: want an absolute, clean path", c.GetSandbox())
	}
	i.meter.follow(c, projectOf(r.GetRecord()))
	return &isolatorv1.IsolateResponse{}, nil
}

// Update takes over new amounts. Those who take more already end, or get no more.
func (i *Isolator) Update(_ context.Context, r *isolatorv1.UpdateRequest) (*isolatorv1.UpdateResponse, error) {
	cfg, c, project := i.config.Get(), r.GetRecord().GetContainer(), projectOf(r.GetRecord())
	if project != 0 && sensible(c.GetSandbox()) {
		if err := i.quotas.Limit(c.GetSandbox(), project, limitOf(cfg, c)); err != nil {
			return nil, module.FailedPrecondition("limit project %d: %v", project, err)
		}
	}
	if i.meter.find(c.GetId()) != nil {
		i.meter.follow(c, project)
	}
	return &isolatorv1.UpdateResponse{}, nil
}

// Recover goes on measuring what lives, and learns which projects are taken.
func (i *Isolator) Recover(s isolatorv1.Isolator_RecoverServer) error {
	for {
		page, err := s.Recv()
		if err != nil {
			return s.SendAndClose(&isolatorv1.RecoverResponse{})
		}
		for _, r := range page.GetContainers() {
			c, project := r.GetContainer(), projectOf(r)
			if project == 0 {
				project = i.marked(c) // of a Prepare whose answer was lost
			}
			if project != 0 {
				i.mu.Lock()
				i.used[project] = owner{c.GetId(), c.GetSandbox()}
				i.mu.Unlock()
			}
			if !r.GetOrphan() && r.GetPid() > 0 && sensible(c.GetSandbox()) {
				i.meter.follow(c, projectOf(r))
			}
		}
	}
}

// marked is the project that a container's sandbox has, 0 if it is none of ours.
func (i *Isolator) marked(c *containerv1.Container) uint32 {
	first, last, err := i.config.Get().projects()
	if err != nil || first == 0 || !sensible(c.GetSandbox()) || i.quotas.Supported(c.GetSandbox()) != nil {
		return 0
	}
	project, err := i.quotas.Project(c.GetSandbox())
	if err != nil || project < first || project > last {
		return 0
	}
	return project
}

// Usage tells what was measured last.
func (i *Isolator) Usage(_ context.Context, r *isolatorv1.UsageRequest) (*isolatorv1.UsageResponse, error) {
	results := map[string]*isolatorv1.UsageResult{}
	for _, rec := range r.GetRecords() {
		id := rec.GetContainer().GetId()
		t := i.meter.find(id)
		if t == nil {
			continue
		}
		switch s, err := t.statistics(); {
		case err != nil:
			results[id] = &isolatorv1.UsageResult{Error: strings.ToValidUTF8(err.Error(), "\uFFFD")}
		case s != nil:
			results[id] = &isolatorv1.UsageResult{Statistics: s}
		}
	}
	return &isolatorv1.UsageResponse{Results: results}, nil
}

// Status says whether a container reached its limit, also after its end.
func (i *Isolator) Status(_ context.Context, r *isolatorv1.StatusRequest) (*isolatorv1.StatusResponse, error) {
	results := map[string]*isolatorv1.StatusResult{}
	for _, rec := range r.GetRecords() {
		id := rec.GetContainer().GetId()
		if t := i.meter.find(id); t != nil {
			t.mu.Lock()
			if t.reached != nil {
				results[id] = &isolatorv1.StatusResult{Limitation: t.reached}
			}
			t.mu.Unlock()
		}
	}
	return &isolatorv1.StatusResponse{Results: results}, nil
}

// Cleanup ends the measuring and takes the project back: what the sandbox still holds counts for nobody.
func (i *Isolator) Cleanup(ctx context.Context, r *isolatorv1.CleanupRequest) (*isolatorv1.CleanupResponse, error) {
	c := r.GetRecord().GetContainer()
	i.meter.forget(c.GetId())
	project, sandbox := i.given(r.GetRecord())
	if project == 0 {
		return &isolatorv1.CleanupResponse{}, nil
	}
	if has, err := i.quotas.Project(sandbox); err == nil && has == project {
		if err := i.quotas.Assign(ctx, sandbox, 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, module.FailedPrecondition("take the sandbox from project %d: %v", project, err)
		}
	}
	if err := i.quotas.Limit(sandbox, project, 0); err != nil {
		return nil, module.FailedPrecondition("take back the limit of project %d: %v", project, err)
	}
	i.mu.Lock()
	delete(i.used, project)
	i.mu.Unlock()
	return &isolatorv1.CleanupResponse{}, nil
}

// given is the project that is to be taken from a container, and from which folder: by what is known of the container,
// by what was kept of it, by what its sandbox says. 0 is none, also if it is another's by now.
func (i *Isolator) given(r *isolatorv1.ContainerRecord) (uint32, string) {
	c := r.GetContainer()
	i.mu.Lock()
	for p, who := range i.used {
		if who.id == c.GetId() {
			i.mu.Unlock()
			return p, who.sandbox
		}
	}
	i.mu.Unlock()
	if !sensible(c.GetSandbox()) {
		return 0, ""
	}
	project := projectOf(r)
	if project == 0 {
		project = i.marked(c)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.used[project].id != "" {
		return 0, ""
	}
	return project, c.GetSandbox()
}
