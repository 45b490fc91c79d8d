package modulehost

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// isolatorCalls is the isolator contract as the host speaks it: the newest version. Adapters lift older ones to it.
type isolatorCalls interface {
	Recover(ctx context.Context, pages [][]*isolatorv1.ContainerRecord) (*isolatorv1.RecoverResponse, error)
	Prepare(ctx context.Context, r *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error)
	Isolate(ctx context.Context, r *isolatorv1.IsolateRequest) (*isolatorv1.IsolateResponse, error)
	Update(ctx context.Context, r *isolatorv1.UpdateRequest) (*isolatorv1.UpdateResponse, error)
	Validate(ctx context.Context, r *isolatorv1.ValidateRequest) (*isolatorv1.ValidateResponse, error)
	Usage(ctx context.Context, r *isolatorv1.UsageRequest) (*isolatorv1.UsageResponse, error)
	Status(ctx context.Context, r *isolatorv1.StatusRequest) (*isolatorv1.StatusResponse, error)
	Cleanup(ctx context.Context, r *isolatorv1.CleanupRequest) (*isolatorv1.CleanupResponse, error)
}

// Isolator is one isolator of the composition. Its calls wait for the module while it is restarted, keep the contract's
// deadlines, and give errors as gRPC codes with text that begins with isolator(name).
type Isolator struct{ m *module }

// Isolators gives the isolators in the order of the composition, which is the order of merging.
func (h *Host) Isolators() []*Isolator {
	var out []*Isolator
	for _, m := range h.ofKind(KindIsolator) {
		out = append(out, &Isolator{m})
	}
	return out
}

// Where is the place of its block in the composition, as file:line; empty for one that stands in no file.
func (i *Isolator) Where() string {
	r := i.m.cfg.Range
	if r.Filename == "" {
		return ""
	}
	return fmt.Sprintf("%s:%d", r.Filename, r.Start.Line)
}

// Name gives its name in the composition.
func (i *Isolator) Name() string { return i.m.cfg.Name }

// Required says whether a launch without it must fail.
func (i *Isolator) Required() bool { return i.m.cfg.Required }

// After names the isolators whose Prepare must have ended before this one's begins.
func (i *Isolator) After() []string { return i.m.description().GetAfter() }

// Wants says whether it declared an optional call: isolate, update, validate, usage, status, watch.
func (i *Isolator) Wants(call string) bool {
	return slices.Contains(i.m.description().GetCalls(), call)
}

// Nesting says whether it takes part in nested containers.
func (i *Isolator) Nesting() bool { return i.m.description().GetNesting() }

// Standalone says whether it takes part in standalone containers.
func (i *Isolator) Standalone() bool { return i.m.description().GetStandalone() }

// Prepare asks for what to set for a container. The powers granted are filled in here.
func (i *Isolator) Prepare(ctx context.Context, r *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
	if reason, failing := i.m.failing(); failing {
		return nil, i.m.name("Prepare", status.Error(codes.FailedPrecondition, "module reports failure: "+reason))
	}
	q := request{name: "Prepare", container: r.GetContainer().GetId(), operation: r.GetOperationId()}
	return call(ctx, i.m, q, func(ctx context.Context, c isolatorCalls) (*isolatorv1.PrepareResponse, error) {
		out := proto.CloneOf(r)
		out.Granted = i.m.granted()
		return c.Prepare(ctx, out)
	}, checkPrepare)
}

// Isolate tells of the first process, which is held.
func (i *Isolator) Isolate(ctx context.Context, r *isolatorv1.IsolateRequest) (*isolatorv1.IsolateResponse, error) {
	q := request{name: "Isolate", container: r.GetRecord().GetContainer().GetId()}
	return call(ctx, i.m, q, func(ctx context.Context, c isolatorCalls) (*isolatorv1.IsolateResponse, error) {
		return c.Isolate(ctx, r)
	}, unchecked)
}

// Update asks for what changes with new resources or limits.
func (i *Isolator) Update(ctx context.Context, r *isolatorv1.UpdateRequest) (*isolatorv1.UpdateResponse, error) {
	q := request{name: "Update", container: r.GetRecord().GetContainer().GetId()}
	return call(ctx, i.m, q, func(ctx context.Context, c isolatorCalls) (*isolatorv1.UpdateResponse, error) {
		return c.Update(ctx, r)
	}, checkUpdate)
}

// Validate shows the merged settings to a validator.
func (i *Isolator) Validate(ctx context.Context, r *isolatorv1.ValidateRequest) (*isolatorv1.ValidateResponse, error) {
	q := request{name: "Validate", container: r.GetContainer().GetId()}
	return call(ctx, i.m, q, func(ctx context.Context, c isolatorCalls) (*isolatorv1.ValidateResponse, error) {
		return c.Validate(ctx, r)
	}, unchecked)
}

// Usage asks for the statistics of many containers. A result that is not valid becomes that container's error.
func (i *Isolator) Usage(ctx context.Context, r *isolatorv1.UsageRequest) (*isolatorv1.UsageResponse, error) {
	return call(ctx, i.m, request{name: "Usage"}, func(ctx context.Context, c isolatorCalls) (*isolatorv1.UsageResponse, error) {
		return c.Usage(ctx, r)
	}, func(_ *life, a *isolatorv1.UsageResponse) error { return checkUsage(r.GetRecords(), a) })
}

// Status asks what the module knows of many containers. A result that is not valid becomes that container's error.
func (i *Isolator) Status(ctx context.Context, r *isolatorv1.StatusRequest) (*isolatorv1.StatusResponse, error) {
	return call(ctx, i.m, request{name: "Status"}, func(ctx context.Context, c isolatorCalls) (*isolatorv1.StatusResponse, error) {
		return c.Status(ctx, r)
	}, func(_ *life, a *isolatorv1.StatusResponse) error { return checkStatus(r.GetRecords(), a) })
}

// Cleanup takes back what Prepare and Isolate did to the machine. The caller repeats it until it succeeds.
func (i *Isolator) Cleanup(ctx context.Context, r *isolatorv1.CleanupRequest) (*isolatorv1.CleanupResponse, error) {
	q := request{name: "Cleanup", container: r.GetRecord().GetContainer().GetId()}
	return call(ctx, i.m, q, func(ctx context.Context, c isolatorCalls) (*isolatorv1.CleanupResponse, error) {
		return c.Cleanup(ctx, r)
	}, unchecked)
}

func unchecked[A any](*life, A) error { return nil }

// granted gives the powers that the module may use; none before it described itself.
func (m *module) granted() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.life == nil {
		return nil
	}
	return m.life.granted
}

// recoverPerContainer is what each container adds to the deadline of Recover: the module may have to look at it.
const recoverPerContainer = 5 * time.Millisecond

// recover tells the module what lives, in pages.
func (m *module) recover(ctx context.Context, l *life) error {
	var records []*isolatorv1.ContainerRecord
	if c := m.host.attached(); c != nil {
		records = c.Records(m.cfg.Name)
	}
	began := time.Now()
	limit := m.timeout("recover", deadline("recover")) + time.Duration(len(records))*recoverPerContainer
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	r, err := l.calls.(isolatorCalls).Recover(ctx, recoverPages(records))
	m.host.metrics.observe(m, "Recover", status.Code(err), time.Since(began))
	if err != nil {
		return m.name("Recover", meaning(err))
	}
	if n := len(r.GetUnknown()); n > 0 {
		m.log.Warn("module does not know containers that it keeps state of", "containers", n, "first", cutText(r.GetUnknown()[0], 256))
	}
	return nil
}

// recoverPages splits records into pages of at most pageContainers and pageBytes.
func recoverPages(records []*isolatorv1.ContainerRecord) [][]*isolatorv1.ContainerRecord {
	var pages [][]*isolatorv1.ContainerRecord
	begin, size := 0, 0
	for i, r := range records {
		n := proto.Size(r) + 8 // and its tag and length
		if i > begin && (i-begin == pageContainers || size+n > pageBytes) {
			pages = append(pages, records[begin:i])
			begin, size = i, 0
		}
		size += n
	}
	if begin < len(records) {
		pages = append(pages, records[begin:])
	}
	return pages
}
