package containerizer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// forContainer returns the isolators that take part in a container, in order.
func (c *composition) forContainer(spec *containerv1.Container) []Isolator {
	var list []Isolator
	for _, i := range c.list {
		if spec.GetParentId() != "" && !i.Nesting() || spec.GetStandalone() && !i.Standalone() {
			continue
		}
		list = append(list, i)
	}
	return list
}

// prepare asks every isolator what it wants set: all at once, but along declared edges, where the later one is shown
// what those before it proposed. Their states are written to the intent before the next step. The answers come in the
// composition's order.
func (c *Containerizer) prepare(ctx context.Context, ct *container, list []Isolator) ([]answer, error) {
	order := c.isolators()
	proposals := make([]*containerv1.Proposal, len(list))
	helpers := make([][]*containerv1.Helper, len(list))
	stateful := make([]bool, len(list))
	index := map[string]int{}
	for n, i := range list {
		index[i.Name()] = n
	}
	spec := ct.disclosed(ct.spec)
	err := order.alongEdges(ctx, list, func(ctx context.Context, n int, i Isolator) error {
		sofar, err := soFar(order, list, index, proposals, i)
		if err != nil {
			return err
		}
		r := &isolatorv1.PrepareRequest{OperationId: ct.operation(i.Name()), Container: spec, SoFar: sofar}
		a, err := again(ctx, func() (*isolatorv1.PrepareResponse, error) { return i.Prepare(ctx, r) })
		if err != nil {
			return c.unlessOptional(ct, i, err)
		}
		proposals[n], helpers[n] = a.GetProposal(), a.GetHelpers()
		if len(a.GetState()) > 0 || a.GetStateVersion() != 0 {
			stateful[n] = true
			ct.setState(i.Name(), func(m *containerv1.ModuleState) { m.State, m.StateVersion = a.GetState(), a.GetStateVersion() })
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if slices.Contains(stateful, true) {
		if err := c.writeIntent(ct); err != nil {
			return nil, err
		}
	}
	answers := make([]answer, len(list))
	for n, i := range list {
		answers[n] = answer{module: i.Name(), proposal: proposals[n], where: whereIs(i), helpers: helpers[n]}
	}
	return answers, nil
}

// soFar merges what the isolators before i along its edges proposed, near or far. They have all ended by now, and
// nobody writes their places any more.
func soFar(order *composition, list []Isolator, index map[string]int, proposals []*containerv1.Proposal, i Isolator) (*containerv1.Spec, error) {
	before := map[string]bool{}
	var walk func(name string)
	walk = func(name string) {
		for _, b := range order.after[name] {
			if !before[b] {
				before[b] = true
				walk(b)
			}
		}
	}
	walk(i.Name())
	if len(before) == 0 {
		return nil, nil
	}
	var answers []answer
	for _, b := range list {
		if before[b.Name()] {
			answers = append(answers, answer{module: b.Name(), proposal: proposals[index[b.Name()]], where: whereIs(b)})
		}
	}
	return merge(answers)
}

// unlessOptional turns a failure of an isolator that the operator can do without into a warning. A refusal of this
// very container is never one: the module is there, and says no.
func (c *Containerizer) unlessOptional(ct *container, i Isolator, err error) error {
	if i.Required() {
		return err
	}
	switch status.Code(err) {
	case codes.InvalidArgument, codes.PermissionDenied, codes.Canceled:
		return err
	}
	var refused *refusal
	if errors.Is(err, context.Canceled) || errors.As(err, &refused) {
		return err
	}
	c.log.Warn("container runs without an optional isolator", "container", ct.id, "isolator", i.Name(), "error", err)
	c.mu.Lock()
	c.skips[i.Name()]++
	c.mu.Unlock()
	ct.mu.Lock()
	defer ct.mu.Unlock()
	if ct.skipped == nil {
		ct.skipped = map[string]bool{}
	}
	ct.skipped[i.Name()] = true
	return nil
}

// A refusal is a validator's no.
type refusal struct{ err error }

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// validate shows the merged settings to those that want to judge them.
func (c *Containerizer) validate(ctx context.Context, ct *container, list []Isolator, spec *containerv1.Spec) error {
	return c.each(ctx, ct, list, "validate", func(ctx context.Context, i Isolator) error {
		_, err := i.Validate(ctx, &isolatorv1.ValidateRequest{Container: ct.spec, Spec: spec})
		if status.Code(err) == codes.FailedPrecondition {
			// By contract one of the two ways to refuse; an optional isolator's refusal counts, too.
			return &refusal{err}
		}
		return err
	})
}

// isolate tells those that asked for it that the first process exists and is held.
func (c *Containerizer) isolate(ctx context.Context, ct *container, list []Isolator) error {
	return c.each(ctx, ct, list, "isolate", func(ctx context.Context, i Isolator) error {
		r := &isolatorv1.IsolateRequest{OperationId: newOperation(), Record: ct.record(i.Name(), false)}
		r.Record.Container = ct.disclosed(r.Record.Container)
		_, err := again(ctx, func() (*isolatorv1.IsolateResponse, error) { return i.Isolate(ctx, r) })
		return err
	})
}

// each makes one optional call of all isolators that declared it, at once.
func (c *Containerizer) each(ctx context.Context, ct *container, list []Isolator, name string, call func(context.Context, Isolator) error) error {
	var want []Isolator
	for _, i := range list {
		if i.Wants(name) && ct.takesPart(i.Name()) {
			want = append(want, i)
		}
	}
	if len(want) == 0 {
		return nil
	}
	flat := composition{} // no edges
	return flat.alongEdges(ctx, want, func(ctx context.Context, _ int, i Isolator) error {
		if err := call(ctx, i); err != nil {
			return c.unlessOptional(ct, i, err)
		}
		return nil
	})
}

// again repeats a call as long as the module answers that the same operation is still at work.
func again[T any](ctx context.Context, call func() (T, error)) (T, error) {
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		answer, err := call()
		if status.Code(err) != codes.Aborted {
			return answer, err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return answer, err
		}
	}
}

// operation returns the id of the Prepare that is, or was, sent to module.
func (ct *container) operation(module string) string {
	ct.mu.Lock()
	defer ct.mu.Unlock()
	for _, m := range ct.modules {
		if m.GetModule() == module {
			return m.GetOperationId()
		}
	}
	return ""
}

// cleanup sends Cleanup to every isolator whose Prepare was sent, last first, and returns what is still owed. One that
// fails holds up only those it declared to come after, whose work it may stand on.
func (c *Containerizer) cleanup(ctx context.Context, ct *container) error {
	if err := ct.claim(ctx); err != nil {
		return err
	}
	defer ct.release()
	order := c.isolators()
	ct.mu.Lock()
	modules := slices.Clone(ct.modules)
	reason := ct.reason
	ct.mu.Unlock()
	var errs []error
	dirty := map[string]bool{}
	for _, m := range slices.Backward(modules) {
		name := m.GetModule()
		if m.GetClean() {
			continue
		}
		i := order.byName[name]
		switch blocker := order.dependant(name, dirty); {
		case i == nil:
			errs = append(errs, fmt.Errorf("isolator(%s) is no longer in the composition; its cleanup stays owed", name))
			dirty[name] = true
			continue
		case blocker != "":
			errs = append(errs, fmt.Errorf("isolator(%s) waits for the cleanup of isolator(%s)", name, blocker))
			dirty[name] = true
			continue
		}
		r := &isolatorv1.CleanupRequest{OperationId: ct.cleanupOperation(name), Record: ct.record(name, false), Reason: reason}
		if _, err := again(ctx, func() (*isolatorv1.CleanupResponse, error) { return i.Cleanup(ctx, r) }); err != nil {
			ct.endOperation(name, err)
			errs = append(errs, err)
			dirty[name] = true
			continue
		}
		ct.setState(name, func(m *containerv1.ModuleState) { m.Clean, m.State = true, nil })
	}
	return errors.Join(errs...)
}

// dependant returns one of dirty that must be cleaned up before name, or "".
func (c *composition) dependant(name string, dirty map[string]bool) string {
	for _, i := range c.list {
		if dirty[i.Name()] && slices.Contains(c.after[i.Name()], name) {
			return i.Name()
		}
	}
	return ""
}

// cleanupOperation returns the operation id for the next Cleanup sent to module: the one of the last attempt while
// nobody knows how that went, else a new one.
func (ct *container) cleanupOperation(module string) string {
	ct.mu.Lock()
	defer ct.mu.Unlock()
	if ct.cleanups == nil {
		ct.cleanups = map[string]string{}
	}
	if ct.cleanups[module] == "" {
		ct.cleanups[module] = newOperation()
	}
	return ct.cleanups[module]
}

// endOperation forgets the operation id of a Cleanup that the module answered. With the same id it would have to give
// the same answer again.
func (ct *container) endOperation(module string, err error) {
	switch status.Code(err) {
	case codes.DeadlineExceeded, codes.Canceled, codes.Unavailable, codes.Aborted:
		return
	}
	ct.mu.Lock()
	defer ct.mu.Unlock()
	delete(ct.cleanups, module)
}

// newOperation makes an operation id.
func newOperation() string { return uuid.NewString() }
