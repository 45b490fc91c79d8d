package containerizer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// pageSize is how many containers one Usage call asks for; the contract's bound for batches.
const pageSize = 500

// Usage measures containers: one call to each module for all of them (or for 500 at a time), all modules at once. What
// the modules say of a container is merged in the order of the composition. Ids that are not running are left out, and
// so is what a module cannot tell; an error is returned only if no module could be asked at all.
func (c *Containerizer) Usage(ctx context.Context, ids []string) (map[string]*mesosv1.ResourceStatistics, error) {
	var running []*container
	for _, id := range ids {
		if ct, err := c.find(id); err == nil && ct.running() != nil {
			running = append(running, ct)
		}
	}
	list := slices.DeleteFunc(slices.Clone(c.isolators().list), func(i Isolator) bool { return !i.Wants("usage") })
	answers := make([]map[string]*isolatorv1.UsageResult, len(list))
	failed := make([]error, len(list))
	var wg sync.WaitGroup
	for n, i := range list {
		var records []*isolatorv1.ContainerRecord
		for _, ct := range running {
			if ct.takesPart(i.Name()) {
				records = append(records, ct.record(i.Name(), true))
			}
		}
		wg.Go(func() {
			answers[n] = map[string]*isolatorv1.UsageResult{}
			for page := range slices.Chunk(records, pageSize) {
				a, err := i.Usage(ctx, &isolatorv1.UsageRequest{Records: page})
				if err != nil {
					failed[n] = err
					return
				}
				for id, r := range a.GetResults() {
					answers[n][id] = r
				}
			}
		})
	}
	wg.Wait()
	for n, err := range failed {
		if err != nil {
			c.log.Warn("usage is incomplete", "isolator", list[n].Name(), "error", err)
		}
	}
	if len(list) > 0 && len(running) > 0 && !slices.Contains(failed, nil) {
		return nil, fmt.Errorf("usage: %w", errors.Join(failed...))
	}
	result := make(map[string]*mesosv1.ResourceStatistics, len(running))
	now := float64(time.Now().UnixNano()) / 1e9
	for _, ct := range running {
		s := &mesosv1.ResourceStatistics{}
		for n := range list {
			r := answers[n][ct.id]
			if r.GetError() != "" {
				c.log.Debug("usage is incomplete", "container", ct.id, "isolator", list[n].Name(), "error", r.GetError())
			}
			if r.GetStatistics() != nil {
				proto.Merge(s, r.GetStatistics())
			}
		}
		if s.Timestamp == nil {
			s.Timestamp = &now
		}
		result[ct.id] = s
	}
	return result, nil
}

// Status tells who and where a container is: its id with its parents, the pid, and what isolators add (addresses,
// cgroup facts). A module that does not answer within a second is left out. The first time after a launch the answers
// are there already.
func (c *Containerizer) Status(ctx context.Context, id string) (*mesosv1.ContainerStatus, error) {
	ct, err := c.find(id)
	if err != nil {
		return nil, err
	}
	ct.mu.Lock()
	s := ct.early
	ct.early = nil
	ct.mu.Unlock()
	if s == nil {
		s = c.status(ctx, ct)
	}
	return s, nil
}

// describe asks for the status of a container that is being started.
func (c *Containerizer) describe(ctx context.Context, ct *container) {
	s := c.status(ctx, ct)
	ct.mu.Lock()
	defer ct.mu.Unlock()
	ct.early = s
}

func (c *Containerizer) status(ctx context.Context, ct *container) *mesosv1.ContainerStatus {
	id := ct.id
	s := &mesosv1.ContainerStatus{ContainerId: containerID(id)}
	if ct.running() == nil {
		return s
	}
	ct.mu.Lock()
	pid := uint32(ct.pid)
	ct.mu.Unlock()
	list := slices.DeleteFunc(slices.Clone(c.isolators().list), func(i Isolator) bool {
		return !i.Wants("status") || !ct.takesPart(i.Name())
	})
	ctx, cancel := context.WithTimeout(ctx, reasonTimeout)
	defer cancel()
	answers := make([]*isolatorv1.StatusResult, len(list))
	var wg sync.WaitGroup
	for n, i := range list {
		wg.Go(func() {
			a, err := i.Status(ctx, &isolatorv1.StatusRequest{Records: []*isolatorv1.ContainerRecord{ct.record(i.Name(), true)}})
			if err != nil {
				c.log.Warn("status is incomplete", "container", id, "error", err)
				return
			}
			answers[n] = a.GetResults()[id]
		})
	}
	wg.Wait()
	for _, a := range answers {
		if a.GetStatus() != nil {
			proto.Merge(s, a.GetStatus())
		}
	}
	s.ContainerId, s.ExecutorPid = containerID(id), &pid
	return s
}

// containerID is the id as Mesos nests it: the values from the root down, joined by dots, inside out.
func containerID(id string) *mesosv1.ContainerID {
	var parent *mesosv1.ContainerID
	for value := range strings.SplitSeq(id, ".") {
		parent = &mesosv1.ContainerID{Value: &value, Parent: parent}
	}
	return parent
}

// Records says what a module has to know about: every container it was asked to prepare and has not cleaned up. The
// module host asks for them after each start of the module. Sorted by id.
func (c *Containerizer) Records(module string) []*isolatorv1.ContainerRecord {
	var records []*isolatorv1.ContainerRecord
	for _, ct := range c.all() {
		if !ct.takesPart(module) {
			continue
		}
		r := ct.record(module, false)
		ct.mu.Lock()
		if ct.bootID != c.cfg.BootID { // its processes died with the machine
			r.Pid, r.Orphan = 0, true
		}
		ct.mu.Unlock()
		records = append(records, r)
	}
	slices.SortFunc(records, func(a, b *isolatorv1.ContainerRecord) int {
		return strings.Compare(a.GetContainer().GetId(), b.GetContainer().GetId())
	})
	return records
}

// Update gives a running container other resources and limits. All isolators that want to know are asked first; only
// when all agree, and their states are written down, is anything applied. On error nothing was, unless the launcher
// says that it could not write the cgroup; the same Update may be sent again in either case.
func (c *Containerizer) Update(ctx context.Context, id string, resources []*mesosv1.Resource, limits map[string]float64) error {
	ct, err := c.find(id)
	if err != nil {
		return err
	}
	if err := c.update(ctx, ct, resources, limits); err != nil {
		return fmt.Errorf("update container %s: %w", id, err)
	}
	return nil
}

func (c *Containerizer) update(ctx context.Context, ct *container, resources []*mesosv1.Resource, limits map[string]float64) error {
	if err := ct.claim(ctx); err != nil {
		return err
	}
	defer ct.release()
	h := ct.running()
	if h == nil {
		return ErrNotRunning
	}
	ct.mu.Lock()
	next, merged := proto.CloneOf(ct.spec), ct.merged
	ct.mu.Unlock()
	next.Resources, next.Limits = nil, limits
	for _, r := range resources {
		next.Resources = append(next.Resources, proto.CloneOf(r))
	}

	list := slices.DeleteFunc(slices.Clone(c.isolators().list), func(i Isolator) bool {
		return !i.Wants("update") || !ct.takesPart(i.Name())
	})
	answers := make([]answer, len(list))
	flat := composition{}
	if len(list) > 0 {
		err := flat.alongEdges(ctx, list, func(ctx context.Context, n int, i Isolator) error {
			record := ct.record(i.Name(), false)
			record.Container = next
			r := &isolatorv1.UpdateRequest{OperationId: newOperation(), Record: record}
			a, err := again(ctx, func() (*isolatorv1.UpdateResponse, error) { return i.Update(ctx, r) })
			if err != nil {
				if !i.Required() {
					c.log.Warn("update goes on without an optional isolator", "container", ct.id, "isolator", i.Name(), "error", err)
					return nil
				}
				return err
			}
			answers[n] = answer{module: i.Name(), proposal: a.GetProposal(), where: whereIs(i)}
			if len(a.GetState()) > 0 || a.GetStateVersion() != 0 {
				ct.setState(i.Name(), func(m *containerv1.ModuleState) { m.State, m.StateVersion = a.GetState(), a.GetStateVersion() })
			}
			return nil
		})
		if err != nil {
			return errors.Join(err, c.save(ctx, ct)) // states of those that answered are theirs all the same
		}
	}
	wish, err := merge(answers)
	if err != nil {
		return errors.Join(err, c.save(ctx, ct))
	}
	spec, err := overlay(merged, wish)
	if err != nil {
		return errors.Join(err, c.save(ctx, ct))
	}
	ct.change(func() { ct.spec, ct.merged = next, spec })
	if err := c.save(ctx, ct); err != nil {
		return err
	}
	if wish.GetMerged().GetCgroup() == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	if err := h.Update(ctx, wish.GetMerged().GetCgroup()); err != nil {
		return fmt.Errorf("launcher(%s): %w", ct.launcherName, err)
	}
	return nil
}
